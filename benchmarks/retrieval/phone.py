# SPDX-License-Identifier: Apache-2.0
"""Street to shop: phone photos of people's own clothes are searched in a catalogue of studio photos.

The queries are the photos of the validation senders, and the gallery is all studio products. A result is right if its
articleType fits the garment of the photo's label (`Garment.accepts_type`); the colour is not known. Intervals are over
senders, because photos of one sender resemble each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common.report import markdown_table
from benchmarks.retrieval.metrics import Floats, judge
from benchmarks.retrieval.systems import OURS, VISUAL, WORDS, Ranking
from benchmarks.retrieval.table import interval, percent
from training.phone_accuracy import SenderBootstrap
from training.phone_photos import GARMENTS, PhonePhoto
from training.prepare_data import Product

SYSTEMS = (VISUAL, WORDS, OURS)  # of `systems.systems`
METRICS = ("P@1", "P@5", "P@10", "nDCG@10")


def phone_grades(photos: Sequence[PhonePhoto], gallery: Sequence[Product]) -> list[npt.NDArray[np.int64]]:
    """Grade every product for every photo.

    Returns:
        For each photo int64 [m], 1 for the garment or a similar one, else 0. Photos of one label share an array.
    """
    kinds = np.array([product.article_type for product in gallery])
    accepted = {
        label: np.isin(kinds, [kind for kind in np.unique(kinds) if GARMENTS[label].accepts_type(kind)])
        for label in {photo.label for photo in photos}
    }
    grades = {label: right.astype(np.int64) for label, right in accepted.items()}
    return [grades[photo.label] for photo in photos]


def phone_record(
    rankings: Mapping[str, Sequence[Ranking]],
    photos: Sequence[PhonePhoto],
    gallery: Sequence[Product],
    milliseconds: Mapping[str, float],
) -> dict[str, Any]:
    """Score the answers of every system.

    Returns:
        "queries", "senders", "gallery", "systems" (system -> metric -> mean and interval over senders, "empty", "ms
        per query", and "ours minus this" by nDCG@10) and "labels" (label -> "queries", the share of the gallery that
        is right, and system -> metric -> mean).

    Raises:
        ValueError: there is no photo, or nothing in the gallery is right for one.
    """
    grades = phone_grades(photos, gallery)
    for photo, grade in zip(photos, grades, strict=True):
        if not grade.any():
            raise ValueError(f"no product of the gallery is a {photo.label!r}: the gallery is too small")
    scores: dict[str, dict[str, Floats]] = {}
    for name, found in rankings.items():
        every = judge(found, grades)
        scores[name] = {metric: every[metric] for metric in METRICS}
    bootstrap = SenderBootstrap([photo.sender for photo in photos])
    labels = np.array([photo.label for photo in photos])
    names, counts = np.unique(labels, return_counts=True)
    return {
        "queries": len(photos),
        "senders": bootstrap.num_senders,
        "gallery": len(gallery),
        "systems": {
            name: {
                **{metric: asdict(bootstrap.interval(values)) for metric, values in metrics.items()},
                "empty": float(np.mean([not ranking for ranking in rankings[name]])),
                "ms per query": milliseconds[name],
                "ours minus this": asdict(bootstrap.interval(scores[OURS]["nDCG@10"] - metrics["nDCG@10"])),
            }
            for name, metrics in scores.items()
        },
        "labels": {
            str(label): {
                "queries": int(count),
                "share of the gallery": float(grades[int(np.argmax(labels == label))].mean()),
                **{
                    name: {metric: float(values[labels == label].mean()) for metric, values in metrics.items()}
                    for name, metrics in scores.items()
                },
            }
            for count, label in sorted(zip(counts.tolist(), names.tolist(), strict=True), reverse=True)
        },
    }


def phone_table(record: Mapping[str, Any]) -> str:
    """Format a record as Markdown tables."""
    rows = [
        [name, *(interval(row[metric]) for metric in METRICS), percent(row["empty"]), f"{row['ms per query']:.1f}"]
        for name, row in record["systems"].items()
    ]
    systems = list(record["systems"])
    labels = [
        [
            label,
            str(row["queries"]),
            percent(row["share of the gallery"]),
            *(f"{row[name]['P@1']:.3f}" for name in systems),
        ]
        for label, row in record["labels"].items()
    ]
    return "\n".join(
        [
            f"{record['queries']:,} phone photos of {record['senders']} senders, {record['gallery']:,} products; "
            "right: an articleType that the label accepts; intervals over senders",
            "",
            markdown_table(["system", *METRICS, "empty", "ms"], rows),
            "",
            markdown_table(["label", "n", "share of the gallery", *(f"{name}, P@1" for name in systems)], labels),
        ]
    )
