# SPDX-License-Identifier: Apache-2.0
"""Figures as text: each once, in its column, and nothing of what was not measured."""

from __future__ import annotations

from typing import Any

from training.evaluation_table import table

FIGURES: dict[str, Any] = {
    "checkpoint": "some-checkpoint",
    "split": "validation",
    "n": 12,
    "left_out": {"no photo": 1, "no name": 2},
    "notes": ["a note"],
    "perplexity_per_token": 7.5,
    "last_word_accuracy": 0.625,
    "ceiling": {"true_name": {"last_word_accuracy": 1.0}, "true_last_two_words": {"last_word_accuracy": 0.9}},
    "baselines": {
        "known_photos": 34,
        "pair": "Blue Shirt",
        "most_frequent_pair": {"last_word_accuracy": 0.1},
        "nearest_by_pixel": {"last_word_accuracy": 0.2},
        "nearest_by_embedding": {"last_word_accuracy": 0.3},
    },
    "determinism": {
        "photos": 12, "batch_sizes": (128, 128, 7, 1), "captions_compared": 36, "captions_equal": 35,
        "largest_logit_difference": 1.2e-5,
    },
    "robustness": {
        "n": 5,
        "accuracies": {"clean": {"last_word_accuracy": 0.8}, "blur": {"last_word_accuracy": 0.4}},
    },
    "examples": [{"id": "7", "name": "Puma Blue Shirt", "caption": "Nike Blue Shirts"}],
}  # fmt: skip


def rows(figures: dict[str, Any]) -> list[list[str]]:
    return [line.split() for line in table(figures).splitlines()]


def test_heading_says_of_what_the_figures_are() -> None:
    first, second = table(FIGURES).splitlines()[:2]
    assert first == "some-checkpoint: 12 photos, split validation; left out: 1 no photo, 2 no name"
    assert second == "note: a note"


def test_figure_stands_beside_ceilings_and_baselines() -> None:
    assert ["last_word_accuracy", "0.6250", "1.0000", "0.9000", "0.1000", "0.2000", "0.3000"] in rows(FIGURES)
    assert ["perplexity_per_token", "7.5000"] in rows(FIGURES)


def test_columns_line_up_with_their_headings() -> None:
    lines = table(FIGURES).splitlines()
    heading = next(line for line in lines if line.split()[:1] == ["checkpoint"])
    row = next(line for line in lines if line.startswith("last_word_accuracy"))
    for name, value in (("checkpoint", "0.6250"), ("by pixel", "0.2000"), ("by embedding", "0.3000")):
        assert heading.index(name) + len(name) == row.index(value) + len(value)


def test_every_part_is_there() -> None:
    text = table(FIGURES)
    assert ["clean", "0.8000"] in rows(FIGURES)
    assert ["blur", "0.4000"] in rows(FIGURES)
    assert "35 of 36 captions equal, batches of 128, 128, 7, 1; logits differ by 1.2e-05 at most" in text
    assert "nearest of 34 photos; most frequent pair 'Blue Shirt'" in text
    assert ["7", "Puma", "Blue", "Shirt", "->", "Nike", "Blue", "Shirts"] in rows(FIGURES)


def test_what_was_not_measured_is_left_out() -> None:
    fewer = {key: value for key, value in FIGURES.items() if key not in ("baselines", "determinism", "robustness")}
    text = table(fewer)
    assert ["last_word_accuracy", "0.6250", "1.0000", "0.9000"] in rows(fewer)
    for absent in ("by pixel", "degraded", "determinism", "baselines"):
        assert absent not in text


def test_nothing_left_out_is_said() -> None:
    assert "left out: none" in table({**FIGURES, "left_out": {}})


# Phone photos


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


PHONE: dict[str, Any] = {
    "phone": {
        "n": 30, "senders": 7, "left_out": {"label 'Skip'": 2},
        "named": {"last two words": interval(0.5), "last two words, strictly": interval(0.25)},
        "labels": {"Shirt": {"n": 20, "last two words": 0.75, "last two words, strictly": 0.5}},
        "confusion": {"caption": {
            "labels": ["Shirt"], "words": ["tshirt", "shirt", "(no garment word)"], "counts": [[2, 15, 0]],
            "other_last_words": {"bag": 3},
        }},
    },
    "calibration": {"caption": {
        "studio, last word": {
            "n": 12, "mean_probability": 0.7, "accuracy": 0.6, "ece_equal_width": 0.11, "ece_equal_mass": 0.12,
        },
        "empty": {},
    }},
    "no_product": {
        "groups": {"drawn": {"n": 13, "highest query": {"quarter": 0.1, "median": 0.2, "three quarters": 0.3}}},
        "auroc": {"highest query": {"studio photos": 0.875}},
    },
}  # fmt: skip


def test_phone_photos_have_their_tables() -> None:
    found = [" ".join(row) for row in rows({**FIGURES, **PHONE})]
    for line in (
        "last two words 0.5000 0.4000 0.6000 0.2500 0.1500 0.3500",
        "95 % intervals over 7 senders; left out: 2 label 'Skip'",
        "Shirt (20) 0.7500",
        "Shirt shirt 15, tshirt 2",
        "last words of texts without a garment word: 3 bag",
        "12 0.7000 0.6000 0.1100 0.1200",
        "drawn (13) 0.1000 0.2000 0.3000",
        "studio photos 0.8750",
    ):
        assert line in found
    assert "empty" not in found


def test_without_phone_photos_nothing_is_said_of_them() -> None:
    assert not any(word in table(FIGURES) for word in ("phone", "reliability", "no product"))
