# SPDX-License-Identifier: Apache-2.0
"""How fast a catalogue answers: `python -m benchmarks.catalog_speed CATALOG --data FOLDER [--json]`.

Asks by words and by looks, one question at a time in this process, reading the products that are found. The words are
those a perfect captioner would give for products that are held back: the last two of their names. All are asked twice:
the first time most words are new to the store, which remembers them until the file changes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.common.process_usage import peak_bytes
from benchmarks.common.provenance import provenance
from captioner.model_contract import ModelContract, model_fingerprint
from captioner.query import query_from_caption, words_of
from search_gateway.catalog.store import CatalogStore
from training.prepare_data import is_validation, read_styles

_T = TypeVar("_T")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", type=Path, metavar="CATALOG", help="built with the models of --models")
    parser.add_argument("--data", type=Path, required=True, help="folder with styles.csv, whose names are asked for")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--count", type=int, default=500, help="questions of each kind")
    parser.add_argument("--limit", type=int, default=40, help="products asked for by words")
    parser.add_argument("--neighbours", type=int, default=20, help="products asked for by looks")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def questions(data: Path, count: int) -> list[list[str]]:
    """The words of at most `count` questions, of held-back products, shuffled alike each time."""
    names = [product.name for product in read_styles(data, Counter()) if is_validation(product.name)]
    random.Random(0).shuffle(names)
    return [words for name in names if (words := words_of(query_from_caption(name)))][:count]


def milliseconds(ask: Callable[[_T], object], asked: Iterable[_T]) -> dict[str, float]:
    """How long each question takes: p50, p99, the longest, and the first."""
    times = []
    for one in asked:
        started = time.perf_counter()
        ask(one)
        times.append(1000 * (time.perf_counter() - started))
    p50, p99, longest = np.percentile(times, (50, 99, 100)).tolist()
    return {"p50": p50, "p99": p99, "longest": longest, "first": times[0]}


def measure(store: CatalogStore, words: list[list[str]], limit: int, neighbours: int) -> dict[str, dict[str, float]]:
    """Milliseconds by kind of question. By looks the best product of each question is asked for others like it."""
    found, again = (milliseconds(lambda one: store.find(one, limit), words) for _ in range(2))
    photos = [row.embedding for one in words for row in store.find(one, 1)]
    similar = milliseconds(lambda photo: store.similar(photo, neighbours), photos)
    return {"find": found, "find again": again, "similar": similar}


def main() -> None:
    args = parse_args()
    fingerprint = model_fingerprint(ModelContract.load(args.models))
    with CatalogStore.open_for_reading(args.catalog, model_fingerprint=fingerprint) as store:
        words = questions(args.data, args.count)
        measured = measure(store, words, args.limit, args.neighbours)
        num_products = len(store)
    peak_mb = peak_bytes(os.getpid()) / 1e6
    if args.json:
        record = {"products": num_products, "questions": len(words), "milliseconds": measured, "peak_mb": peak_mb}
        print(json.dumps({**record, **provenance()}, indent=2))
        return
    print(f"{num_products:,} products, {len(words)} questions of each kind, peak {peak_mb:.0f} MB; milliseconds:")
    for kind, values in measured.items():
        print(f"{kind:10}" + "".join(f"  {name} {value:.2f}" for name, value in values.items()))


if __name__ == "__main__":
    main()
