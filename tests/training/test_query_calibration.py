# SPDX-License-Identifier: Apache-2.0
"""Which word of which source is right, with which probability."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the training extra (torch)")

from tests.fakes.phone_samples import phone_photo
from training.captioning import DescribedPhotos, likeliest_queries
from training.query_calibration import (
    FIRST,
    LAST,
    calibration_figures,
    caption_words,
    garment_shares,
    head_garments,
    head_words,
)

pytestmark = pytest.mark.torch

CLASSES = ["", "blue shirt", "red shirts", "tshirt"]


def described(
    rows: list[list[float]] | None = None, words: list[list[tuple[str, float]]] | None = None
) -> DescribedPhotos:
    """Photos with these query probabilities and caption words."""
    count = len(rows or words or [])
    words = words or [[] for _ in range(count)]
    captions = [" ".join(word for word, _ in row) for row in words]
    logs = None if rows is None else np.log(np.array(rows, np.float32))
    return DescribedPhotos(captions, words, np.zeros((count, 2), np.float32), logs)


def test_likeliest_query_is_never_no_product() -> None:
    assert likeliest_queries(np.log(np.array([[0.7, 0.1, 0.15, 0.05]], np.float32)), CLASSES) == ["red shirts"]


def test_head_words_have_the_probability_of_all_queries_with_them() -> None:
    photos = described([[0.1, 0.4, 0.3, 0.2], [0.1, 0.2, 0.1, 0.6]])
    words, probabilities = head_words(photos, CLASSES, LAST)
    assert words == ["shirt", "tshirt"]
    assert probabilities.tolist() == pytest.approx([0.7, 0.6])
    words, probabilities = head_words(photos, CLASSES, FIRST)
    assert words == ["blue", ""]
    assert probabilities[0] == pytest.approx(0.4)
    with pytest.raises(ValueError, match="without a query head"):
        head_words(described(None, [[("x", 1.0)]]), CLASSES, LAST)


def test_garment_has_the_probability_of_every_word_for_it() -> None:
    classes = ["", "blue shirt", "blue tee", "red t-shirt", "hoodie", "watch"]
    shares = garment_shares(classes)
    assert shares[2, 2:4].tolist() == pytest.approx([1.0, 1.0])
    assert shares[5].tolist() == [0.0] * 6
    assert shares[2, 4] == 0.0  # nothing that is called a hoodie may be called a tee
    words, probabilities = head_garments(described([[0.1, 0.1, 0.4, 0.2, 0.1, 0.1]]), classes)
    assert words == ["tee"]
    assert probabilities.tolist() == pytest.approx([0.6])


def test_caption_words_are_its_last_two() -> None:
    photos = described(None, [[("Nike", 0.5), ("Blue", 0.6), ("T-Shirts", 0.9)], [("Cap", 0.4)], []])
    assert caption_words(photos, LAST)[0] == ["tshirt", "cap", ""]
    assert caption_words(photos, LAST)[1].tolist() == [0.9, 0.4, 0.0]
    assert caption_words(photos, FIRST)[0] == ["blue", "", ""]


def test_figures_have_every_domain_and_place_and_leave_out_photos_without_the_word() -> None:
    studio = described([[0.1, 0.4, 0.3, 0.2], [0.1, 0.2, 0.1, 0.6]], [[("Blue", 0.5), ("Shirt", 0.9)], [("Top", 0.8)]])
    phone = described([[0.1, 0.4, 0.3, 0.2]], [[("Red", 0.3), ("Vest", 0.7)]])
    found = calibration_figures(studio, ["Lee Blue Shirts", "Lee Red Top"], phone, [phone_photo("T-Shirt")], CLASSES)
    assert list(found) == ["caption", "query head"]
    head, caption = found["query head"], found["caption"]
    last = head["studio, last word"]
    assert (last["n"], last["accuracy"], last["mean_probability"]) == (2, 0.5, pytest.approx(0.65))
    assert (head["studio, first word of the pair"]["n"], head["studio, first word of the pair"]["accuracy"]) == (1, 1.0)
    assert head["phone, last word names the garment"]["accuracy"] == 0.0  # "shirt" is no T-shirt
    assert caption["studio, last word"]["accuracy"] == 1.0
    assert caption["phone, last word names the garment"]["accuracy"] == 1.0  # "vest" is near
    assert caption["phone, last word names the garment"]["mean_probability"] == pytest.approx(0.7)


def test_without_a_head_there_is_the_caption_alone_and_without_words_nothing() -> None:
    empty = described(None, [[]])
    found = calibration_figures(empty, ["Lee Shirt"], empty, [phone_photo("Hat")], [])
    assert found == {"caption": dict.fromkeys(found["caption"], {})}
