# SPDX-License-Identifier: Apache-2.0
"""How fast does a catalogue answer? `python -m benchmarks.catalog_speed CATALOG --data FOLDER`.

Searches a catalogue by words and by embeddings, one question at a time in this process, and reads the products that
are found. The words are the last two of the names of validation products, as a perfect captioner would say them. Each
question is asked twice: at first most words are new to the store, which then caches them until the file changes.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.common.process_usage import peak_bytes
from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, publish
from captioner.model_contract import ModelContract, model_fingerprint
from captioner.query import query_from_caption, words_of
from search_gateway.catalog.store import CatalogStore
from training.prepare_data import is_validation, read_styles

_T = TypeVar("_T")


def questions(data: Path, count: int) -> list[list[str]]:
    """Return the words of up to `count` questions about validation products, in a fixed random order."""
    names = [product.name for product in read_styles(data, Counter()) if is_validation(product.name)]
    random.Random(0).shuffle(names)
    return [words for name in names if (words := words_of(query_from_caption(name)))][:count]


def milliseconds(
    ask: Callable[[_T], object], asked: Iterable[_T], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Ask each question, and return the milliseconds: "p50", "p99", "longest" and "first"."""
    times = []
    for one in asked:
        started = clock()
        ask(one)
        times.append(1000 * (clock() - started))
    p50, p99, longest = np.percentile(times, (50, 99, 100)).tolist()
    return {"p50": p50, "p99": p99, "longest": longest, "first": times[0]}


def measure(store: CatalogStore, words: list[list[str]], limit: int, neighbours: int) -> dict[str, dict[str, float]]:
    """Ask a catalogue all questions.

    Returns:
        Kind of question ("find", "find again", "similar") -> the result of `milliseconds`.
    """
    found, again = (milliseconds(lambda one: store.find(one, limit), words) for _ in range(2))
    photos = [row.embedding for one in words for row in store.find(one, 1)]
    similar = milliseconds(lambda photo: store.similar(photo, neighbours), photos)
    return {"find": found, "find again": again, "similar": similar}


def speed_text(record: Mapping[str, Any]) -> str:
    """Format a record as lines of text."""
    products, questions, peak_mb = record["products"], record["questions"], record["peak_mb"]
    return "\n".join(
        [
            f"{products:,} products, {questions} questions of each kind, peak {peak_mb:.0f} MB; milliseconds:",
            *(
                f"{kind:10}" + "".join(f"  {name} {value:.2f}" for name, value in values.items())
                for kind, values in record["milliseconds"].items()
            ),
        ]
    )


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.catalog_speed", __doc__)
    parser.add_argument("catalog", type=Path, metavar="CATALOG", help="catalogue built with the models of --models")
    parser.add_argument("--data", type=Path, required=True, help="folder with styles.csv, which has the names")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--count", type=int, default=500, help="number of questions of each kind (default 500)")
    parser.add_argument("--limit", type=int, default=40, help="number of products to find by words (default 40)")
    parser.add_argument(
        "--neighbours", type=int, default=20, help="number of products to find by embedding (default 20)"
    )
    add_output_options(parser)
    args = parser.parse_args()
    fingerprint = model_fingerprint(ModelContract.load(args.models))
    with CatalogStore.open_for_reading(args.catalog, model_fingerprint=fingerprint) as store:
        words = questions(args.data, args.count)
        measured = measure(store, words, args.limit, args.neighbours)
        num_products = len(store)
    peak_mb = peak_bytes(os.getpid()) / 1e6
    record = {"products": num_products, "questions": len(words), "milliseconds": measured, "peak_mb": peak_mb}
    publish({**record, **provenance()}, speed_text, args)


if __name__ == "__main__":
    main()
