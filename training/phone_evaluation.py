# SPDX-License-Identifier: Apache-2.0
"""The figures of `training.evaluate --phone` (garments named, calibration, "no product") and their plots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from training.captioning import CheckpointCaptioner, DescribedPhotos, likeliest_queries
from training.no_product import no_product_figures, pictures_without_product
from training.phone_accuracy import Confusion, SenderBootstrap, confusion_of, label_shares, phone_outcomes
from training.phone_photos import PhonePhotoSet
from training.phone_plots import plot_confusion, plot_reliability
from training.query_calibration import calibration_figures


def garment_figures(captioner: CheckpointCaptioner, phone: PhonePhotoSet, described: DescribedPhotos) -> dict[str, Any]:
    """How often the garment is named.

    Args:
        captioner: described the photos.
        phone: n photos.
        described: the captioner's outputs for the n photos.

    Returns:
        "n", "senders", "left_out", "named" (way -> mean and interval), "labels" (label -> n and share of each way),
        "confusion" (source of the words -> counts) and "examples".
    """
    queries = types = None
    if described.query_log_probabilities is not None:
        queries = likeliest_queries(described.query_log_probabilities, captioner.query_classes)
    if "article_type" in captioner.heads:
        types = captioner.heads["article_type"].predict(described.embeddings)
    outcomes = phone_outcomes(phone.photos, described.captions, queries=queries, types=types)
    bootstrap = SenderBootstrap([photo.sender for photo in phone.photos])
    sources = {"caption": described.captions} | ({} if queries is None else {"query head": queries})
    return {
        "n": len(phone),
        "senders": bootstrap.num_senders,
        "left_out": dict(phone.skipped),
        "named": {name: asdict(bootstrap.interval(right)) for name, right in outcomes.items()},
        "labels": label_shares(outcomes, phone.photos),
        "confusion": {name: asdict(confusion_of(texts, phone.photos)) for name, texts in sources.items()},
        "examples": _examples(phone, described.captions, queries),
    }


def _examples(
    phone: PhonePhotoSet, captions: Sequence[str], queries: Sequence[str] | None, count: int = 10
) -> list[dict[str, str]]:
    """The photos whose names have the smallest SHA-256, so that nobody chooses them by hand."""
    rows = sorted(range(len(phone)), key=lambda row: hashlib.sha256(phone.photos[row].image.encode()).hexdigest())
    return [
        {
            "image": phone.photos[row].image,
            "label": phone.photos[row].label,
            "caption": captions[row],
            "query": "" if queries is None else queries[row],
        }
        for row in rows[:count]
    ]


def phone_figures(
    captioner: CheckpointCaptioner, phone: PhonePhotoSet, studio: DescribedPhotos, names: Sequence[str]
) -> dict[str, Any]:
    """All figures that `--phone` adds.

    Args:
        captioner: described the studio photos.
        phone: phone photos that it was not trained on.
        studio: its outputs for n studio photos that it was not trained on.
        names: the n true names.

    Returns:
        "phone", "calibration", "no_product" and "notes" (sentences about what is missing).
    """
    described = captioner.describe(phone.pixels, progress="captions of phone photos")
    pictures, kinds, notes = pictures_without_product(captioner.photo_shape)
    without = captioner.describe(np.stack(list(pictures.values())))
    if captioner.query_head is None:
        notes.append("query head: the checkpoint has none; words and scores of queries are the caption's")
    return {
        "phone": garment_figures(captioner, phone, described),
        "calibration": calibration_figures(studio, names, described, phone.photos, captioner.query_classes),
        "no_product": no_product_figures(
            list(pictures), kinds, without, {"studio photos": studio, "phone photos": described}
        ),
        "notes": notes,
    }


def write_pictures(figures: dict[str, Any], folder: Path) -> None:
    """Write the confusion of garments (PNG and JSON) and the reliability curves (PNG), one file for each source.

    Args:
        figures: from `phone_figures`.
        folder: gets phone-confusion-*.png, phone-confusion-*.json and reliability-*.png.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for source, content in figures["phone"]["confusion"].items():
        path = folder / f"phone-confusion-{source.replace(' ', '-')}.png"
        plot_confusion(Confusion(**content), f"phone photos, {source}", path)
        path.with_suffix(".json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for source, curves in figures["calibration"].items():
        plot_reliability(curves, folder / f"reliability-{source.replace(' ', '-')}.png")
