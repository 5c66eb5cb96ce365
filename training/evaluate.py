# SPDX-License-Identifier: Apache-2.0
"""Measure a checkpoint: `python -m training.evaluate --checkpoint DIR --data DIR [--phone DIR] [--json]`.

Prints every figure of the model card: the perplexity of the raw names; words, labels and similarity of the greedy
captions, compared with the true names themselves (ceiling) and with captions without a captioner (baselines);
determinism and robustness. `--phone` adds how often the garment on phone photos is named, how reliable the
probabilities of the query's words are, and how well pictures without a product are separated from photos of one. Parts
that take minutes can be skipped. Progress bars go to stderr; with --json, stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from captioner.query import QUERY_WORDS, words_of
from training.baselines import most_frequent_pair, nearest_names, pixel_features, unit_length
from training.caption_metrics import caption_metrics
from training.captioning import CheckpointCaptioner, CheckpointError
from training.determinism import measure_determinism
from training.evaluation_table import table
from training.label_words import label_accuracy
from training.new_captioner import gpt2_files_beside
from training.perplexity import Gpt2Bpe, Gpt2FilesError, PerplexityMeter
from training.phone_evaluation import phone_figures, write_pictures
from training.phone_photos import load_phone_photos
from training.prepare_data import DataError, Product, ProductSet, is_validation, load_products
from training.product_files import open_files, read_photo
from training.robustness import measure_robustness
from training.word_metrics import word_metrics

SLOW = ("baselines", "determinism", "robustness")
DETERMINISM_PHOTOS = 200
ROBUSTNESS_PHOTOS = 500
EXAMPLES = 10


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    parser.add_argument("--data", type=Path, required=True, help="product set in a Kaggle layout, folder or ZIP file")
    parser.add_argument("--split", choices=("validation", "all"), default="validation")
    parser.add_argument("--limit", type=int, help="use only the first N products of the split")
    parser.add_argument(
        "--training-limit", type=int, help="baselines of --split validation: use only the first N training photos"
    )
    parser.add_argument(
        "--gpt2-tokenizer",
        type=Path,
        help="folder with GPT-2's vocab.json and merges.txt (default: gpt2-tokenizer beside the data, if it exists)",
    )
    parser.add_argument("--skip", nargs="+", choices=SLOW, default=[], help="parts to skip; each takes minutes")
    parser.add_argument(
        "--robustness-photos", type=int, default=ROBUSTNESS_PHOTOS, help="degrade the first N products of the split"
    )
    parser.add_argument(
        "--phone", type=Path, metavar="DIR", help="also measure the validation senders of phone photos with images.csv"
    )
    parser.add_argument("--phone-limit", type=int, help="use only the first N phone photos of those senders")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="with --phone: write plots of confusion and reliability to DIR"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    for flag in ("limit", "training_limit", "robustness_photos", "phone_limit"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            parser.error(f"--{flag.replace('_', '-')} is {value}: give at least 1")
    if args.pictures is not None and args.phone is None:
        parser.error("--pictures needs --phone")
    return args


def caption_figures(captions: Sequence[str], products: Sequence[Product]) -> dict[str, float]:
    """Compare captions with the names and labels of their products.

    Returns:
        Figures from 0 to 1, CIDEr from 0 to 10; a figure that these products do not determine is absent.
    """
    names = [product.name for product in products]
    figures = {
        **dataclasses.asdict(word_metrics(captions, names)),
        **dataclasses.asdict(caption_metrics(captions, names)),
        **dataclasses.asdict(label_accuracy(captions, products)),
    }
    return {name: value for name, value in figures.items() if value is not None}


def head_figures(
    captioner: CheckpointCaptioner, embeddings: npt.NDArray[np.float32], products: Sequence[Product]
) -> dict[str, float]:
    """How often the auxiliary heads name articleType and baseColour.

    Args:
        captioner: has the heads.
        embeddings: float32 [n, D].
        products: n products; a value that a head does not know counts as wrong.

    Returns:
        Shares from 0 to 1; empty where the checkpoint has no heads.
    """
    figures = {}
    for figure, label in (("head_type_accuracy", "article_type"), ("head_colour_accuracy", "colour")):
        if label in captioner.heads:
            predicted = captioner.heads[label].predict(embeddings)
            right = [value == getattr(product, label) for value, product in zip(predicted, products, strict=True)]
            figures[figure] = sum(right) / len(right)
    return figures


def ceilings(products: Sequence[Product]) -> dict[str, Any]:
    """The figures of the true names and of their last two words as captions: what a perfect captioner would reach."""
    names = [product.name for product in products]
    queries = [" ".join(words_of(name)[-QUERY_WORDS:]) for name in names]
    return {
        "true_name": caption_figures(names, products),
        "true_last_two_words": caption_figures(queries, products),
    }


def baselines(
    captioner: CheckpointCaptioner, data: ProductSet, embeddings: npt.NDArray[np.float32], args: argparse.Namespace
) -> dict[str, Any]:
    """The figures of captions without a captioner.

    The known photos are the training photos; with --split all, they are the photos themselves. No photo is captioned
    with its own name.
    """
    if args.split == "all":
        known, known_embeddings = data, embeddings
    else:
        known = load_products(args.data, **captioner.photo_shape, limit=args.training_limit, validation=False)
        known_embeddings = captioner.embeddings(known.pixels, progress="embeddings of training photos")
    names = [product.name for product in data.products]
    known_names = [product.name for product in known.products]
    pair = most_frequent_pair([name for name in known_names if not is_validation(name)])
    by_pixel = nearest_names(
        names, pixel_features(data.pixels), known_names, pixel_features(known.pixels), progress="nearest by pixel"
    )
    by_embedding = nearest_names(
        names, unit_length(embeddings), known_names, unit_length(known_embeddings), progress="nearest by embedding"
    )
    return {
        "known_photos": len(known),
        "pair": pair,
        "most_frequent_pair": caption_figures([pair] * len(names), data.products),
        "nearest_by_pixel": caption_figures(by_pixel, data.products),
        "nearest_by_embedding": caption_figures(by_embedding, data.products),
    }


def examples(
    captions: Sequence[str], served: Sequence[str], products: Sequence[Product], count: int = EXAMPLES
) -> list[dict[str, str]]:
    """The products whose ids have the smallest SHA-256, so that nobody chooses them by hand."""
    rows = sorted(
        zip(captions, served, products, strict=True), key=lambda row: hashlib.sha256(row[2].id.encode()).hexdigest()
    )
    return [
        {"id": product.id, "name": product.name, "caption": caption, "served": shown}
        for caption, shown, product in rows[:count]
    ]


def find_gpt2(args: argparse.Namespace) -> Gpt2Bpe | None:
    """Read GPT-2's BPE from --gpt2-tokenizer, else from beside the data; None where neither exists.

    Raises:
        Gpt2FilesError: --gpt2-tokenizer cannot be read.
    """
    if args.gpt2_tokenizer is not None:
        return Gpt2Bpe(args.gpt2_tokenizer)
    beside = gpt2_files_beside(args.data)
    return None if beside is None else Gpt2Bpe(beside)


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that the arguments request.

    Returns:
        The JSON object that --json prints.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: a data set cannot be read.
        Gpt2FilesError: GPT-2's tokenizer cannot be read.
    """
    gpt2 = find_gpt2(args)
    captioner = CheckpointCaptioner.load(args.checkpoint)
    validation = True if args.split == "validation" else None
    data = load_products(args.data, **captioner.photo_shape, limit=args.limit, validation=validation)
    names = [product.name for product in data.products]
    meter = PerplexityMeter(captioner.tokenizer, gpt2)

    def score(hidden: torch.Tensor, start: int) -> None:
        labels = captioner.labels(names[start : start + len(hidden)])
        log_probabilities = captioner.logits(hidden, labels).log_softmax(dim=-1)
        meter.add(log_probabilities, labels, names[start : start + len(hidden)])

    described = captioner.describe(data.pixels, progress="captions", each_batch=score)
    perplexity, served = meter.result(), captioner.served_captions(described)
    notes = [f"{part}: skipped" for part in args.skip]
    if gpt2 is None:
        notes.append("perplexity per GPT-2 token: no --gpt2-tokenizer given and none beside the data")
    if perplexity.names_cut:
        notes.append(f"perplexity: {perplexity.names_cut} names too long for the model are left out")
    figures: dict[str, Any] = {
        # Only the name of a path: the folders of one machine mean nothing on another.
        "checkpoint": args.checkpoint.resolve().name,
        "split": args.split,
        "n": len(data),
        "left_out": dict(data.skipped),
        "notes": notes,
        **{key: value for key, value in dataclasses.asdict(perplexity).items() if value is not None},
        **caption_figures(described.captions, data.products),
        **head_figures(captioner, described.embeddings, data.products),
        **({} if captioner.query_head is None else {"served": caption_figures(served, data.products)}),
        "mean_words": float(np.mean([len(words_of(caption)) for caption in described.captions])),
        "ceiling": ceilings(data.products),
    }
    if "baselines" not in args.skip:
        figures["baselines"] = baselines(captioner, data, described.embeddings, args)
    if "determinism" not in args.skip:
        some = data.subset(list(range(min(DETERMINISM_PHOTOS, len(data)))))
        figures["determinism"] = dataclasses.asdict(measure_determinism(captioner, some))
    if "robustness" not in args.skip:
        products = data.products[: args.robustness_photos]
        with open_files(args.data) as files:
            accuracies = measure_robustness(captioner, products, lambda product: read_photo(files, product.id)[1])
        figures["robustness"] = {"n": len(products), "accuracies": accuracies}
    if args.phone is not None:
        phone = load_phone_photos(args.phone, **captioner.photo_shape, validation=True, limit=args.phone_limit)
        of_phone = phone_figures(captioner, phone, described, names)
        figures["notes"] += of_phone.pop("notes")
        figures |= of_phone
        if args.pictures is not None:
            write_pictures(figures, args.pictures)
    figures["examples"] = examples(described.captions, served, data.products)
    return figures


def main() -> None:
    """Run the command."""
    args = parse_args()
    transformers.logging.set_verbosity_error()
    try:
        figures = evaluate(args)
    except (CheckpointError, DataError, Gpt2FilesError) as error:
        raise SystemExit(str(error)) from error
    print(json.dumps(figures, indent=2, ensure_ascii=False) if args.json else table(figures))


if __name__ == "__main__":
    main()
