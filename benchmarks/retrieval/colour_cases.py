# SPDX-License-Identifier: Apache-2.0
"""The same product in another colour: a photo asks for a colour that is not its own (`--colour`).

A case is a query photo and a wanted colour that at least `MIN_PRODUCTS` products of its articleType have. The first
result is right if it has the articleType and the wanted baseColour.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common.report import markdown_table
from benchmarks.retrieval.collection import SAME_TYPE, SAME_TYPE_AND_COLOUR
from benchmarks.retrieval.metrics import Bootstrap, judge
from benchmarks.retrieval.systems import Ranking
from benchmarks.retrieval.table import interval, percent
from training.prepare_data import Product

COLOURS = ("Beige", "Black", "Blue", "Brown", "Green", "Grey", "Orange", "Pink", "Purple", "Red", "White", "Yellow")
MIN_PRODUCTS = 5


@dataclass(frozen=True)
class ColourCase:
    """Place of the query, its own colour and the wanted one, in lower case."""

    place: int
    own: str
    wanted: str


def colour_cases(queries: Sequence[Product], gallery: Sequence[Product]) -> list[ColourCase]:
    """Return a case for each query whose type comes in other colours; a hash of the product's id draws the colour."""
    counts = Counter((one.article_type, one.colour) for one in gallery)
    cases = []
    for place, query in enumerate(queries):
        others = [
            colour
            for colour in COLOURS
            if colour != query.colour and counts[query.article_type, colour] >= MIN_PRODUCTS
        ]
        if query.colour in COLOURS and others:
            wanted = others[zlib.crc32(query.id.encode()) % len(others)]
            cases.append(ColourCase(place, query.colour.lower(), wanted.lower()))
    return cases


def colour_grades(query: Product, colour: str, gallery: Sequence[Product]) -> npt.NDArray[np.int64]:
    """Grade the gallery for the query's type in a colour in lower case: int64 [n], as of `Relevance`."""
    types = np.array([one.article_type == query.article_type for one in gallery])
    colours = np.array([one.colour.lower() == colour for one in gallery])
    return np.where(types & colours, SAME_TYPE_AND_COLOUR, np.where(types, SAME_TYPE, 0))


def colour_record(
    rankings: Mapping[str, Sequence[Ranking]],
    cases: Sequence[ColourCase],
    queries: Sequence[Product],
    gallery: Sequence[Product],
    seed: int,
) -> dict[str, Any]:
    """Score the answers of every system to the cases."""
    asked = [queries[case.place] for case in cases]
    grades = [colour_grades(query, case.wanted, gallery) for query, case in zip(asked, cases, strict=True)]
    unchanged = [
        bool(ranking) and gallery[ranking[0]].colour.lower() == case.own
        for found in rankings.values()
        for ranking, case in zip(found, cases, strict=True)
    ]
    kept = np.array(unchanged, float).reshape(len(rankings), len(cases))
    bootstrap = Bootstrap(len(cases), seed=seed)
    return {
        "cases": len(cases),
        "gallery": len(gallery),
        "systems": {
            name: {
                "first has type and wanted colour": asdict(bootstrap.interval(scores["P@1 colour"])),
                "first has the type": asdict(bootstrap.interval(scores["P@1"])),
                "nDCG@10": asdict(bootstrap.interval(scores["nDCG@10"])),
                "first has its own colour": float(kept[number].mean()),
            }
            for number, (name, found) in enumerate(rankings.items())
            for scores in [judge(found, grades)]
        },
    }


def colour_table(record: Mapping[str, Any]) -> str:
    """Format a record as Markdown."""
    metrics = ("first has type and wanted colour", "first has the type", "nDCG@10")
    rows = [
        [name, *(interval(row[metric]) for metric in metrics), percent(row["first has its own colour"])]
        for name, row in record["systems"].items()
    ]
    return "\n\n".join(
        [
            f"{record['cases']:,} photos that ask for another colour, {record['gallery']:,} products in the gallery",
            markdown_table(["system", *metrics, "first has the photo's own colour"], rows),
        ]
    )
