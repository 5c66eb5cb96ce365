# SPDX-License-Identifier: Apache-2.0
"""Compare exported models with the PyTorch checkpoint: every variant, on every host, in one table.

`python -m export.check_parity --models model_repository_fp32 model_repository_int8 --data FOLDER` compares tensors,
greedy and beam captions with Hugging Face's own model and `generate()` on validation photos; without --data it uses
drawn samples. With --peers the table has a row of optimum's own export. The exit code is 1 if a variant of ours is
refused; `export.parity` has the rules.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import VisionEncoderDecoderModel

from captioner.caption_tokenizer import CaptionTokenizer
from captioner.decoding import DecodingOptions
from captioner.model_contract import ModelContract
from captioner.query_classes import load_query_classes
from export.calibration import drawn_photos
from export.hosts import HOSTS, PROVIDERS, Caption, HostError, captioner_on
from export.onnx_captioner import OnnxCaptioner
from export.onnx_export import load_captioner
from export.optimum_peer import OptimumCaptioner, PeerError, export_with_optimum
from export.parity import (
    Parity,
    Pixels,
    Tokens,
    falls_of,
    peer_errors,
    reference_logprobs,
    reference_tokens,
    share_equal,
    tensor_errors,
    tokens_of,
)
from training.evaluate import caption_figures
from training.prepare_data import Product, load_products
from training.word_metrics import word_metrics

BATCH = 25  # photos; an odd size, so that the last batch is usually smaller


@dataclass(frozen=True)
class Photos:
    """The photos that are captioned."""

    pixels: Pixels  # uint8 [n, height, width, 3]
    products: Sequence[Product] | None  # n products; None for drawn samples

    def figures(self, captions: Sequence[Tokens], tokenizer: CaptionTokenizer, eos: int) -> dict[str, float] | None:
        """Compare n captions with the products, see `training.evaluate.caption_figures`; None for drawn samples."""
        if self.products is None:
            return None
        texts = [tokenizer.text([token for token in caption if token != eos]) for caption in captions]
        return caption_figures(texts, self.products)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    parser.add_argument("--models", type=Path, nargs="+", default=[Path("model_repository")], help="model repositories")
    parser.add_argument("--hosts", nargs="+", choices=list(HOSTS), default=["onnxruntime"])
    parser.add_argument("--data", type=Path, help="folder with images/ and styles.csv; its validation split is used")
    parser.add_argument("--photos", type=int, default=200, help="number of photos")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], help="numbers of beams to compare")
    parser.add_argument("--peers", action="store_true", help="also compare optimum's export (needs the extra peers)")
    return parser.parse_args(arguments)


def photos_for(contract: ModelContract, data: Path | None, count: int) -> Photos:
    """`count` validation photos of the set `data` at the encoder's size; without a set, drawn ones."""
    if data is None:
        return Photos(drawn_photos(contract, count, seed=2), None)
    products = load_products(data, **contract.photo_shape, limit=count, validation=True)
    return Photos(products.pixels, products.products)


@dataclass(frozen=True)
class Reference:
    """The checkpoint and its captions."""

    model: VisionEncoderDecoderModel  # in FP32
    photos: Photos  # n photos
    expected: dict[int, list[Tokens]]  # number of beams -> the tokens that `generate()` returns for each photo

    @classmethod
    def of(cls, checkpoint: Path, contract: ModelContract, photos: Photos, beams: Sequence[int]) -> Reference:
        """Caption all photos with `generate()`."""
        model, _ = load_captioner(checkpoint)
        expected = {}
        for count in beams:
            options = DecodingOptions(num_beams=count, max_tokens=contract.max_tokens)
            batches = _batches(photos.pixels, f"generate(), {count} beams")
            expected[count] = [tokens for batch in batches for tokens in reference_tokens(model, batch, options)]
        return cls(model, photos, expected)


def measure(repository: Path, reference: Reference, hosts: Sequence[str]) -> list[Parity]:
    """Compare one variant on several hosts with the reference; one row for each host.

    Raises:
        HostError: a host is not available on this machine.
    """
    rows = []
    for host in hosts:
        with HOSTS[host](repository) as caption:
            row = _captions(caption, repository, host, reference)
        if host in PROVIDERS:
            captioner = captioner_on(host, repository)
            row.errors = tensor_errors(reference.model, captioner, reference.photos.pixels[:BATCH])
            _compare_queries(row, captioner, load_query_classes(repository, captioner.contract.num_queries), reference)
        rows.append(row)
    return rows


def measure_peer(checkpoint: Path, contract: ModelContract, reference: Reference) -> Parity:
    """Compare optimum's export of the checkpoint with the reference.

    Raises:
        PeerError: optimum is not installed, or cannot export the checkpoint.
    """
    photos = reference.photos.pixels
    with tempfile.TemporaryDirectory(prefix="optimum-") as folder:
        export_with_optimum(checkpoint, Path(folder))
        peer = OptimumCaptioner(Path(folder))
        row = Parity("fp32", "optimum", len(photos))
        row.errors = peer_errors(reference.model, peer, photos[:BATCH], contract.num_candidates)
        for beams, wanted in reference.expected.items():
            options = DecodingOptions(num_beams=beams, max_tokens=contract.max_tokens)
            batches = _batches(photos, f"optimum, {beams} beams")
            got = [tokens for batch in batches for tokens in reference_tokens(peer.model, batch, options)]
            row.equal[beams] = share_equal(wanted, got)
    return row


def _captions(caption: Caption, repository: Path, host: str, reference: Reference) -> Parity:
    contract, tokenizer, photos = ModelContract.load(repository), CaptionTokenizer(repository), reference.photos
    parity = Parity(contract.precision, host, len(photos.pixels))
    for beams, wanted in reference.expected.items():
        options = DecodingOptions(num_beams=beams, max_tokens=contract.max_tokens)
        batches = _batches(photos.pixels, f"{contract.precision} {host}, {beams} beams")
        answers = [hypotheses for batch in batches for hypotheses in caption(batch, options)]
        got = [tokens_of(hypotheses, contract.eos_token_id) for hypotheses in answers]
        parity.equal[beams] = share_equal(wanted, got)
        before, after = (photos.figures(one, tokenizer, contract.eos_token_id) for one in (wanted, got))
        if before is not None and after is not None:
            parity.falls[beams] = falls_of(before, after)
    return parity


def _compare_queries(row: Parity, captioner: OnnxCaptioner, classes: Sequence[str], reference: Reference) -> None:
    """Compare the likeliest queries; does nothing where the model has no query head."""
    if not classes:
        return
    likeliest: list[list[str]] = [[], []]  # of the checkpoint, of the variant
    for batch in _batches(reference.photos.pixels, f"{row.precision} {row.host}, queries"):
        for queries, logprobs in zip(
            likeliest, (reference_logprobs(reference.model, batch), captioner.query_logprobs(batch)), strict=True
        ):
            queries += [classes[1 + int(place)] for place in logprobs[:, 1:].argmax(axis=-1)]
    row.queries_equal = float(np.mean([one == other for one, other in zip(*likeliest, strict=True)]))
    if reference.photos.products is not None:
        names = [product.name for product in reference.photos.products]
        before, after = ({"right queries": word_metrics(one, names).last_two_normalised} for one in likeliest)
        row.query_falls = falls_of(before, after)


def table(rows: Sequence[Parity]) -> str:
    """Format the results, one line per variant and host."""
    tensors = list(dict.fromkeys(name for row in rows for name in row.errors))
    beams = list(dict.fromkeys(count for row in rows for count in row.equal))
    has_queries = any(row.queries_equal is not None for row in rows)
    header = ["precision", "host", *tensors, *(f"equal, {count} beams" for count in beams)]
    header += [*(["equal queries"] if has_queries else []), "worst metric", "verdict"]
    lines = [header]
    for row in rows:
        falls = [(fall, f"{name} ({count} beams)") for count, some in row.falls.items() for name, fall in some.items()]
        falls += [(fall, name) for name, fall in (row.query_falls or {}).items()]
        worst = max(falls, default=None)
        queries = "-" if row.queries_equal is None else f"{row.queries_equal:.2%}"
        lines.append(
            [
                row.precision,
                row.host,
                *(f"{row.errors[name]:.1e}" if name in row.errors else "-" for name in tensors),
                *(f"{row.equal[count]:.2%}" for count in beams),
                *([queries] if has_queries else []),
                "-" if worst is None else f"{-worst[0]:+.2f} {worst[1]}",
                "refused" if row.problems else "passes",
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _batches(pixels: Pixels, title: str) -> Iterator[Pixels]:
    for start in tqdm(range(0, len(pixels), BATCH), desc=title, unit="batch"):
        yield pixels[start : start + BATCH]


def main() -> int:
    """Run the command; return its exit code."""
    args = parse_args()
    contract = ModelContract.load(args.models[0])
    photos = photos_for(contract, args.data, args.photos)
    reference = Reference.of(args.checkpoint, contract, photos, args.beams)
    try:
        rows = [row for repository in args.models for row in measure(repository, reference, args.hosts)]
    except HostError as error:
        print(f"export.check_parity: {error}", file=sys.stderr)
        return 2
    ours = list(rows)
    if args.peers:
        try:
            rows.append(measure_peer(args.checkpoint, contract, reference))
        except PeerError as error:
            print(f"optimum: {error}", file=sys.stderr)
    kind = "drawn samples" if args.data is None else "validation photos"
    print(f"{contract.model}, {len(photos.pixels)} {kind}, compared with PyTorch in FP32\n{table(rows)}")
    for row in rows:
        for problem in row.problems:
            print(f"{row.precision} on {row.host}: {problem}", file=sys.stderr)
    return 1 if any(row.problems for row in ours) else 0


if __name__ == "__main__":
    sys.exit(main())
