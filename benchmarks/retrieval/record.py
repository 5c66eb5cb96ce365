# SPDX-License-Identifier: Apache-2.0
"""Makes the record of a run from all scores: means, intervals, paired differences and slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from benchmarks.retrieval.metrics import METRICS, Bootstrap, Floats
from benchmarks.retrieval.systems import OURS, VISUAL, Ranking
from training.label_words import LabelWords
from training.prepare_data import Product

MAIN = "nDCG@10"
MIN_SLICE = 20  # queries; means over fewer are left out
_COMMON, _RARE = 1000, 200  # products of an articleType in the gallery

Scores = Mapping[str, Mapping[str, Floats]]  # system -> metric -> [queries]
Record = dict[str, object]


def system_rows(
    scores: Scores, rankings: Mapping[str, Sequence[Ranking]], milliseconds: Mapping[str, float], bootstrap: Bootstrap
) -> dict[str, Record]:
    """Return for each system its metrics with intervals, share of empty answers, time, and the difference of ours."""
    rows: dict[str, Record] = {}
    for name, metrics in scores.items():
        difference = bootstrap.interval(scores[OURS][MAIN] - metrics[MAIN])
        rows[name] = {
            **{metric: asdict(bootstrap.interval(metrics[metric])) for metric in METRICS},
            "empty": float(np.mean([not ranking for ranking in rankings[name]])),
            "ms per query": milliseconds[name],
            "ours minus this": asdict(difference),
        }
    return rows


def slices(
    scores: Scores, queries: Sequence[Product], captions: Sequence[str], gallery: Sequence[Product]
) -> dict[str, Record]:
    """Return for each kind of query their number, and the scores of ours and of the visual search."""
    found = {**by_frequency(queries, gallery), **by_words(queries, captions)}
    return {name: _compared(scores, chosen) for name, chosen in found.items() if chosen.any()}


def by_type(scores: Scores, queries: Sequence[Product]) -> dict[str, Record]:
    """Return the same for each articleType with enough queries; ours is worst on the first."""
    types = np.array([one.article_type for one in queries])
    rows = {
        kind: _compared(scores, types == kind) for kind, count in Counter(types.tolist()).items() if count >= MIN_SLICE
    }
    return dict(sorted(rows.items(), key=lambda row: row[1]["difference"]["mean"]))  # type: ignore[index]


def by_frequency(queries: Sequence[Product], gallery: Sequence[Product]) -> dict[str, npt.NDArray[np.bool_]]:
    """Group queries by the number of the gallery's products of their articleType.

    Returns:
        Kind of query -> bool [n].
    """
    known = Counter(one.article_type for one in gallery)
    counts = np.array([known[one.article_type] for one in queries])
    return {
        f"type with at least {_COMMON:,} products": counts >= _COMMON,
        f"type with {_RARE} to {_COMMON - 1} products": (counts >= _RARE) & (counts < _COMMON),
        f"type with fewer than {_RARE} products": counts < _RARE,
    }


def by_words(queries: Sequence[Product], captions: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Group queries by whether the caption names the product's type and colour (`label_words.json`).

    Returns:
        Kind of query -> bool [n].
    """
    words = LabelWords.load()
    types = np.array([words.type_of(text) == one.article_type for text, one in zip(captions, queries, strict=True)])
    colours = np.array([words.colour_of(text) == one.colour for text, one in zip(captions, queries, strict=True)])
    return {
        "caption: type and colour right": types & colours,
        "caption: type right, colour not": types & ~colours,
        "caption: colour right, type not": ~types & colours,
        "caption: both wrong": ~types & ~colours,
    }


def _compared(scores: Scores, chosen: npt.NDArray[np.bool_]) -> Record:
    ours, visual = scores[OURS][MAIN][chosen], scores[VISUAL][MAIN][chosen]
    bootstrap = Bootstrap(len(ours))
    return {
        "queries": len(ours),
        "ours": float(ours.mean()),
        "visual only": float(visual.mean()),
        "difference": asdict(bootstrap.interval(ours - visual)),
    }
