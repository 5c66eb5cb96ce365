# SPDX-License-Identifier: Apache-2.0
"""How good a checkpoint is: `python -m training.evaluate --checkpoint DIR --data DIR [--phone DIR] [--json]`.

Prints every figure of the model card: perplexity of the raw names, words, labels and likeness of the greedy captions as
served, beside the true names' own figures (ceiling) and captions without a captioner (baselines); determinism and
robustness. `--phone` adds how often the garment on phone photos is named, how reliable the probabilities of the query's
words are, and how well pictures without a product are told from photos of one. What takes minutes can be skipped.
Progress bars go to stderr; with --json stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import transformers

from captioner.query import QUERY_WORDS, words_of
from training.baselines import most_frequent_pair, nearest_names, pixel_features, unit_length
from training.caption_metrics import caption_metrics
from training.caption_model import embedding_of
from training.captioning import CheckpointCaptioner, CheckpointError, DescribedPhotos
from training.determinism import measure_determinism
from training.evaluation_table import table
from training.label_words import label_accuracy
from training.new_captioner import gpt2_files_beside
from training.perplexity import Gpt2Bpe, Gpt2FilesError, Perplexity, PerplexityMeter
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    parser.add_argument("--data", type=Path, required=True, help="product set in a Kaggle layout, folder or ZIP file")
    parser.add_argument("--split", choices=("validation", "all"), default="validation")
    parser.add_argument("--limit", type=int, help="use only the first N products of the split")
    parser.add_argument(
        "--training-limit", type=int, help="only the first N training photos for the baselines (--split validation)"
    )
    parser.add_argument(
        "--gpt2-tokenizer",
        type=Path,
        help="folder with GPT-2's vocab.json and merges.txt (default: gpt2-tokenizer beside the data, if there)",
    )
    parser.add_argument("--skip", nargs="+", choices=SLOW, default=[], help="leave these out; each takes minutes")
    parser.add_argument(
        "--robustness-photos", type=int, default=ROBUSTNESS_PHOTOS, help="degrade the first N products of the split"
    )
    parser.add_argument(
        "--phone", type=Path, metavar="DIR", help="phone photos with images.csv: measure their validation senders, too"
    )
    parser.add_argument("--phone-limit", type=int, help="use only the first N phone photos of those senders")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="with --phone: write confusion and reliability as pictures there"
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


@dataclass(frozen=True, eq=False)
class Described(DescribedPhotos):
    """What one pass over the photos gives, their true names being known."""

    perplexity: Perplexity
    served: list[str]  # captions that end with the query, as the gateway shows them


def describe(
    captioner: CheckpointCaptioner, data: ProductSet, gpt2: Gpt2Bpe | None, *, with_probabilities: bool
) -> Described:
    """Caption, embed and score all photos, each encoded once.

    Args:
        captioner: reads the photos.
        data: n photos with their true names.
        gpt2: for the perplexity per GPT-2 token; None leaves that out.
        with_probabilities: also ask for those of the captions' words and of the queries; without it there are none.

    Returns:
        What the captioner says of the n photos.
    """
    meter = PerplexityMeter(captioner.tokenizer, gpt2)
    captions: list[str] = []
    served: list[str] = []
    words: list[list[tuple[str, float]]] = []
    embeddings, queries = [], []
    for start, stop in captioner.batches(len(data), progress="captions"):
        hidden = captioner.encode(data.pixels[start:stop])
        names = [product.name for product in data.products[start:stop]]
        labels = captioner.labels(names)
        meter.add(captioner.logits(hidden, labels).log_softmax(dim=-1), labels, names)
        greedy = captioner.greedy(hidden)
        captions += greedy
        served += greedy if captioner.query_head is None else captioner.with_queries(greedy, hidden)
        embeddings.append(embedding_of(hidden).numpy())
        if with_probabilities:
            words += captioner.word_probabilities(hidden, greedy)
        if with_probabilities and captioner.query_head is not None:
            queries.append(captioner.query_log_probabilities(hidden).numpy())
    log_probabilities = np.concatenate(queries) if queries else None
    return Described(captions, words, np.concatenate(embeddings), log_probabilities, meter.result(), served)


def caption_figures(captions: Sequence[str], products: Sequence[Product]) -> dict[str, float]:
    """All figures of captions that need no model, 0 to 1, CIDEr 0 to 10; what these products cannot tell is absent."""
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
    """How often the auxiliary heads name articleType and baseColour, of all products: a value a head does not know is
    one it gets wrong. Empty where the checkpoint has no heads."""
    figures = {}
    for figure, label in (("head_type_accuracy", "article_type"), ("head_colour_accuracy", "colour")):
        if label in captioner.heads:
            predicted = captioner.heads[label].predict(embeddings)
            right = [value == getattr(product, label) for value, product in zip(predicted, products, strict=True)]
            figures[figure] = sum(right) / len(right)
    return figures


def ceilings(products: Sequence[Product]) -> dict[str, Any]:
    """The same figures of the true names: what a perfect captioner would reach."""
    names = [product.name for product in products]
    queries = [" ".join(words_of(name)[-QUERY_WORDS:]) for name in names]
    return {
        "true_name": caption_figures(names, products),
        "true_last_two_words": caption_figures(queries, products),
        "note": "The true name, and its last two words, as the caption: the words are right by construction; of "
        "interest is how often they name articleType and baseColour.",
    }


def baselines(
    captioner: CheckpointCaptioner, data: ProductSet, embeddings: npt.NDArray[np.float32], args: argparse.Namespace
) -> dict[str, Any]:
    """The same figures of captions without a captioner, from the training photos.

    With --split all the photos themselves are the known ones; never a product of the same name.
    """
    if args.split == "all":
        known, known_embeddings = data, embeddings
    else:
        known = load_products(
            args.data,
            height=captioner.height,
            width=captioner.width,
            fit=captioner.fit,
            limit=args.training_limit,
            only=lambda product: not is_validation(product.name),
        )
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
    """Not chosen by hand: those whose id has the smallest SHA-256."""
    rows = sorted(
        zip(captions, served, products, strict=True), key=lambda row: hashlib.sha256(row[2].id.encode()).hexdigest()
    )
    return [
        {"id": product.id, "name": product.name, "caption": caption, "served": shown}
        for caption, shown, product in rows[:count]
    ]


def find_gpt2(args: argparse.Namespace) -> Gpt2Bpe | None:
    """GPT-2's BPE where it was said to be, else from beside the data, else none.

    Raises:
        Gpt2FilesError: it is not where it was said to be.
    """
    if args.gpt2_tokenizer is not None:
        return Gpt2Bpe(args.gpt2_tokenizer)
    beside = gpt2_files_beside(args.data)
    return None if beside is None else Gpt2Bpe(beside)


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """All figures that were asked for, as they are printed.

    Raises:
        CheckpointError, DataError, Gpt2FilesError: an input is not what it should be.
    """
    gpt2 = find_gpt2(args)
    captioner = CheckpointCaptioner.load(args.checkpoint)
    data = load_products(
        args.data,
        height=captioner.height,
        width=captioner.width,
        fit=captioner.fit,
        limit=args.limit,
        only=lambda product: args.split == "all" or is_validation(product.name),
    )
    described = describe(captioner, data, gpt2, with_probabilities=args.phone is not None)
    notes = [f"{part}: skipped" for part in args.skip]
    if gpt2 is None:
        notes.append("perplexity per GPT-2 token: no --gpt2-tokenizer given and none beside the data")
    if described.perplexity.names_cut:
        notes.append(f"perplexity: {described.perplexity.names_cut} names too long for the model are left out")
    figures: dict[str, Any] = {
        # Of a path only its name: where things lay on one machine is of no use on another.
        "checkpoint": args.checkpoint.resolve().name,
        "split": args.split,
        "n": len(data),
        "left_out": dict(data.skipped),
        "notes": notes,
        **{key: value for key, value in dataclasses.asdict(described.perplexity).items() if value is not None},
        **caption_figures(described.captions, data.products),
        **head_figures(captioner, described.embeddings, data.products),
        **({} if captioner.query_head is None else {"served": caption_figures(described.served, data.products)}),
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
        phone = load_phone_photos(
            args.phone,
            height=captioner.height,
            width=captioner.width,
            fit=captioner.fit,
            validation=True,
            limit=args.phone_limit,
        )
        of_phone = phone_figures(captioner, phone, described, [product.name for product in data.products])
        figures["notes"] += of_phone.pop("notes")
        figures |= of_phone
        if args.pictures is not None:
            write_pictures(figures, args.pictures)
    figures["examples"] = examples(described.captions, described.served, data.products)
    return figures


def main() -> None:
    args = parse_args()
    transformers.logging.set_verbosity_error()
    try:
        figures = evaluate(args)
    except (CheckpointError, DataError, Gpt2FilesError) as error:
        raise SystemExit(str(error)) from error
    print(json.dumps(figures, indent=2, ensure_ascii=False) if args.json else table(figures))


if __name__ == "__main__":
    main()
