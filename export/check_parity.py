# SPDX-License-Identifier: Apache-2.0
"""Prove that the installed ONNX models say what the PyTorch checkpoint says, token for token.

`python -m export.check_parity --data FOLDER` compares greedy and beam decoding with `generate()` on validation photos;
without --data on drawn samples. Exit code 1 where a single caption differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm
from transformers import VisionEncoderDecoderModel

from captioner.model_contract import ModelContract
from captioner.preprocessing import fit_photo
from demo.draw_samples import training_samples
from export.onnx_captioner import OnnxCaptioner
from export.to_onnx import load_captioner
from search_gateway.decoding import DecodingOptions
from training.caption_model import embedding_of, normalise
from training.prepare_data import is_validation, load_products

BATCH = 25  # photos; a small odd size, so that the last batch differs


@dataclass(frozen=True)
class Parity:
    """How one way of decoding compares over all photos."""

    options: DecodingOptions
    photos: int
    equal: int
    different: tuple[int, ...]  # numbers of the photos


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--data", type=Path, help="folder with images/ and styles.csv; its validation split is used")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    return parser.parse_args()


def photos_for(contract: ModelContract, data: Path | None, count: int) -> npt.NDArray[np.uint8]:
    """`count` photos as the encoder sees them, uint8 [n, height, width, 3]."""
    height, width, fit = contract.image_height, contract.image_width, contract.fit
    if data is None:
        samples = training_samples(count, seed=2, width=height * 3 // 4, height=height)
        return np.stack([fit_photo(picture, height=height, width=width, fit=fit) for picture, _ in samples])
    products = load_products(
        data, height=height, width=width, fit=fit, limit=count, only=lambda product: is_validation(product.name)
    )
    return products.pixels


def reference_tokens(
    model: VisionEncoderDecoderModel, pixels: npt.NDArray[np.uint8], options: DecodingOptions
) -> list[list[int]]:
    """What `generate()` says, EOS included where it was reached, BOS and padding left out."""
    with torch.no_grad():
        rows = model.generate(
            normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).float()),
            do_sample=False,
            num_beams=options.num_beams,
            length_penalty=options.length_penalty,
            max_length=options.max_tokens + 1,
        )
    return [[token for token in row[1:] if token != model.config.pad_token_id] for row in rows.tolist()]


def compare(
    model: VisionEncoderDecoderModel, captioner: OnnxCaptioner, pixels: npt.NDArray[np.uint8], options: DecodingOptions
) -> Parity:
    """Caption all photos both ways."""
    different = []
    eos = captioner.contract.eos_token_id
    for start in tqdm(range(0, len(pixels), BATCH), desc=f"{options.num_beams} beams", unit="batch"):
        batch = pixels[start : start + BATCH]
        answers = captioner.caption(batch, options)
        for i, (expected, hypotheses) in enumerate(zip(reference_tokens(model, batch, options), answers, strict=True)):
            best = hypotheses[0]
            got = [token.token for token in best.tokens] + ([eos] if best.complete else [])
            if got != expected:
                different.append(start + i)
    return Parity(options, len(pixels), len(pixels) - len(different), tuple(different))


def embedding_error(model: VisionEncoderDecoderModel, captioner: OnnxCaptioner, pixels: npt.NDArray[np.uint8]) -> float:
    """Largest difference of any element of any embedding."""
    with torch.no_grad():
        hidden = model.encoder(normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())).last_hidden_state
        expected = torch.nn.functional.normalize(embedding_of(hidden), dim=-1).numpy()
    return float(np.abs(captioner.encode(pixels)[1] - expected).max())


def table(rows: Sequence[Parity]) -> str:
    lines = [f"{'beams':>5} {'photos':>7} {'equal':>6} {'different':>10}"]
    lines += [f"{row.options.num_beams:>5} {row.photos:>7} {row.equal:>6} {row.photos - row.equal:>10}" for row in rows]
    return "\n".join(lines)


def main() -> int:
    args = parse_args()
    contract = ModelContract.load(args.models)
    model, _ = load_captioner(args.checkpoint)
    files = {spec.name: args.models / spec.name / "1" / "model.onnx" for spec in contract.models}
    captioner = OnnxCaptioner(files, contract)
    pixels = photos_for(contract, args.data, args.photos)
    rows = [
        compare(model, captioner, pixels, DecodingOptions(num_beams=beams, max_tokens=contract.max_tokens))
        for beams in args.beams
    ]
    print(table(rows))
    print(f"embedding: largest difference {embedding_error(model, captioner, pixels[:BATCH]):.1e}")
    for row in rows:
        if row.different:
            print(f"{row.options.num_beams} beams: photos {list(row.different)} differ", file=sys.stderr)
    return 1 if any(row.different for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
