# SPDX-License-Identifier: Apache-2.0
"""Which texts name a garment, how sure that share is over senders, and what is confused with what."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.phone_samples import phone_photo
from training.phone_accuracy import (
    NO_GARMENT_WORD,
    STRICT,
    SenderBootstrap,
    confusion_of,
    label_shares,
    phone_outcomes,
)


def test_near_labels_count_unless_strictly() -> None:
    photos = [phone_photo("T-Shirt"), phone_photo("T-Shirt"), phone_photo("Shirt")]
    found = phone_outcomes(photos, ["Nike Men Blue T-Shirts", "Nike Men Blue Tank", "Nike Men Blue Shorts"])
    assert found["last two words"].tolist() == [True, True, False]
    assert found["last two words" + STRICT].tolist() == [True, False, False]
    assert set(found) == {"last two words", "whole caption", "last two words" + STRICT, "whole caption" + STRICT}


def test_last_two_words_are_not_the_whole_caption() -> None:
    found = phone_outcomes([phone_photo("Dress")], ["Dress with Red Handbag"])
    assert not found["last two words"][0]
    assert found["whole caption"][0]


def test_query_and_type_are_judged_where_they_are_there() -> None:
    photos = [phone_photo("Hoodie"), phone_photo("Hoodie"), phone_photo("Hoodie")]
    found = phone_outcomes(
        photos, ["", "", ""], queries=["grey jacket", "sweatshirts", ""], types=["Jackets", "Sweatshirts", "Watches"]
    )
    assert found["query head"].tolist() == [True, True, False]
    assert found["query head" + STRICT].tolist() == [False, True, False]
    assert found["articleType head"].tolist() == [True, True, False]
    assert found["articleType head" + STRICT].tolist() == [False, True, False]
    assert not found["last two words"].any()


def test_interval_is_over_senders_not_photos() -> None:
    # Two senders of 50 photos each, one always right: over photos the share would look well known.
    right = np.arange(100) < 50
    by_two = SenderBootstrap(["a"] * 50 + ["b"] * 50).interval(right)
    by_photo = SenderBootstrap([str(i) for i in range(100)]).interval(right)
    assert by_two.mean == by_photo.mean == 0.5
    assert (by_two.low, by_two.high) == (0.0, 1.0)
    assert 0.38 < by_photo.low < by_photo.high < 0.62


def test_sender_with_more_photos_weighs_more() -> None:
    found = SenderBootstrap(["a", "a", "a", "b"]).interval([1.0, 1.0, 1.0, 0.0])
    assert found.mean == 0.75
    assert (found.low, found.high) == (0.0, 1.0)


def test_interval_is_the_same_again_and_contains_the_mean() -> None:
    generator = np.random.default_rng(3)
    senders, right = [str(i) for i in generator.integers(0, 12, 90)], generator.random(90) < 0.3
    one, other = (SenderBootstrap(senders).interval(right) for _ in range(2))
    assert one == other
    assert one.low < one.mean < one.high
    with pytest.raises(ValueError, match="no photos"):
        SenderBootstrap([])


def test_labels_have_their_own_shares() -> None:
    photos = [phone_photo("Hat"), phone_photo("Shirt"), phone_photo("Shirt")]
    found = label_shares({"way": np.array([True, True, False])}, photos)
    assert list(found) == ["Shirt", "Hat"]
    assert found == {"Shirt": {"n": 2, "way": 0.5}, "Hat": {"n": 1, "way": 1.0}}


def test_confusion_counts_the_first_word_that_names_any_garment() -> None:
    photos = [phone_photo("Pants"), phone_photo("Pants"), phone_photo("T-Shirt"), phone_photo("Hat")]
    found = confusion_of(["Lee Blue Jeans Shirt", "Lee Jean", "Nike Black Backpacks", ""], photos)
    assert found.labels == ["T-Shirt", "Pants", "Hat"]
    assert found.words == ["jean", NO_GARMENT_WORD]
    assert found.counts == [[0, 1], [2, 0], [0, 1]]
    assert found.other_last_words == {"backpack": 1, "": 1}
