# SPDX-License-Identifier: Apache-2.0
"""What a photo may be called: distributions over queries, from a caption and from what looks like the photo."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.query import QueryRule, query_from_caption
from search_gateway.candidates import Candidate
from search_gateway.captions import Caption, Word, WordAlternative
from search_gateway.readings import (
    MAX_READINGS,
    NUM_NAMES,
    SHARPNESS,
    Reading,
    Readings,
    caption_readings,
    lookalike_readings,
    photo_readings,
)

TWO, FULL = QueryRule.LAST_TWO_WORDS, QueryRule.FULL_CAPTION
PHOTO = np.array([1.0, 0.0], np.float32)


def at(cosine: float) -> npt.NDArray[np.float32]:
    """An embedding of this similarity with the photo."""
    return np.array([cosine, np.sqrt(1 - cosine**2)], np.float32)


def word(text: str, probability: float = 1.0, **alternatives: float) -> Word:
    return Word(text, probability, tuple(WordAlternative(*one) for one in alternatives.items()))


def greedy(*words: Word) -> Caption:
    return Caption(" ".join(one.text for one in words), words, -1.0, complete=True, alternatives=())


def beams(*captions: tuple[str, float]) -> Caption:
    (text, log_probability), *others = captions
    return Caption(text, (), log_probability, complete=True, alternatives=tuple(others))


def lookalike(title: str, cosine: float) -> Candidate:
    return Candidate(title=title, url="", thumbnail_url="", source="", embedding=at(cosine), is_lookalike=True)


def shares(readings: Readings | None) -> dict[str, float]:
    assert readings is not None
    return {one.query: one.probability for one in readings.readings}


distributions = st.dictionaries(st.sampled_from("abcdefghijkl"), st.floats(0.01, 1), min_size=1).map(
    lambda weights: Readings.weighted(weights.items())
)


def is_distribution(readings: Readings) -> bool:
    probabilities = [one.probability for one in readings.readings]
    return (
        math.isclose(sum(probabilities), 1)
        and min(probabilities) > 0
        and probabilities == sorted(probabilities, reverse=True)
        and len(shares(readings)) == len(probabilities)
    )


def test_weights_of_any_sum_become_probabilities() -> None:
    found = Readings.weighted([("blue shirt", 1), ("navy shirt", 4), ("blue shirt", 2), ("red shirt", 0)])
    assert found == Readings((Reading("navy shirt", 4 / 7), Reading("blue shirt", 3 / 7)))


@pytest.mark.parametrize("weighted", [[], [("blue shirt", 0.0)], [("blue shirt", math.nan)]])
def test_without_weight_there_is_no_reading(weighted: list[tuple[str, float]]) -> None:
    assert Readings.weighted(weighted) is None


@given(distributions, distributions, st.floats(0, 1))
def test_mixtures_are_distributions(one: Readings, other: Readings, share: float) -> None:
    mixed = one.mixed(other, share)
    assert is_distribution(mixed)
    for query in set(shares(one)) | set(shares(other)):
        expected = (1 - share) * shares(one).get(query, 0) + share * shares(other).get(query, 0)
        assert shares(mixed).get(query, 0) == pytest.approx(expected)
    assert one.mixed(None, share) == one


@given(distributions, st.integers(1, 12))
def test_the_rest_is_shared_among_the_most_likely(readings: Readings, count: int) -> None:
    kept = readings.most_likely(count)
    assert is_distribution(kept)
    assert [one.query for one in kept.readings] == [one.query for one in readings.readings[:count]]


def test_readings_that_become_equal_are_one() -> None:
    found = Readings.weighted([("blue shirt", 0.5), ("navy shirt", 0.3), ("blue top", 0.2)])
    assert found is not None
    changed = found.changed(lambda query: f"red {query.split()[1]}")
    assert shares(changed) == {"red shirt": pytest.approx(0.8), "red top": pytest.approx(0.2)}


def test_greedy_caption_is_read_with_what_its_last_words_could_be() -> None:
    caption = greedy(word("Puma", 0.4, nike=0.3), word("Blue", 0.5, navy=0.3), word("Tshirt", 0.6, shirt=0.2))
    total = 0.8 * 0.8
    assert shares(caption_readings(caption, TWO)) == {
        "blue tshirt": pytest.approx(0.5 * 0.6 / total),
        "navy tshirt": pytest.approx(0.3 * 0.6 / total),
        "blue shirt": pytest.approx(0.5 * 0.2 / total),
        "navy shirt": pytest.approx(0.3 * 0.2 / total),
    }
    assert "puma navy shirt" in shares(caption_readings(caption, FULL)), "the words before stay"


def test_unlikely_readings_are_left_out() -> None:
    others = {"a": 0.1, "b": 0.1, "c": 0.1}
    assert len(shares(caption_readings(greedy(word("Blue", 0.5, **others), word("Shirt", 0.6, **others)), TWO))) == (
        MAX_READINGS
    )


def test_captions_of_all_beams_count_as_much_as_they_are_likely() -> None:
    caption = beams(("Puma Blue Shirt", -1.0), ("Nike Navy Shirt", -1.5), ("Nike Blue Shirt", -2.0))
    weights = [math.exp(-1.0) + math.exp(-2.0), math.exp(-1.5)]
    assert shares(caption_readings(caption, TWO)) == {
        "blue shirt": pytest.approx(weights[0] / sum(weights)),
        "navy shirt": pytest.approx(weights[1] / sum(weights)),
    }


@pytest.mark.parametrize(
    "caption",
    [
        beams(("Puma Blue Shirt", -5000.0), ("Nike Navy Shirt", -9000.0)),
        greedy(word("Blue", 0.0), word("Shirt", 0.0)),
        greedy(word("Blue", 1e-300), word("Shirt", 1e-300)),
    ],
)
def test_very_unlikely_captions_are_read_all_the_same(caption: Caption) -> None:
    assert shares(caption_readings(caption, TWO)) == {"blue shirt": 1.0}


@pytest.mark.parametrize("text", ["", "...", "Watch"])
def test_short_captions_have_short_readings(text: str) -> None:
    caption = greedy(*map(word, text.split()))
    assert shares(caption_readings(caption, TWO)) == {query_from_caption(text): 1.0}


def test_lookalikes_say_what_they_are_called_the_nearest_loudest() -> None:
    candidates = [lookalike("Nike Men Blue Shirt", 0.9), lookalike("Puma Red Bag", 0.88), lookalike("Blue Shirt", 0.8)]
    weights = [1 + math.exp(-0.1 * SHARPNESS), math.exp(-0.02 * SHARPNESS)]
    assert shares(lookalike_readings(PHOTO, candidates)) == {
        "blue shirt": pytest.approx(weights[0] / sum(weights), abs=1e-4),
        "red bag": pytest.approx(weights[1] / sum(weights), abs=1e-4),
    }


def test_who_was_found_by_words_alone_is_not_asked() -> None:
    by_words = Candidate(title="Red Bag", url="", thumbnail_url="", source="", embedding=at(0.99))
    unseen = Candidate(title="Red Hat", url="", thumbnail_url="", source="", is_lookalike=True)
    assert lookalike_readings(PHOTO, [by_words, unseen]) is None
    assert shares(lookalike_readings(PHOTO, [by_words, unseen, lookalike("Blue Shirt", 0.5)])) == {"blue shirt": 1.0}


@pytest.mark.parametrize("title", ["", "...", " - "])
def test_titles_without_words_have_no_say(title: str) -> None:
    assert lookalike_readings(PHOTO, [lookalike(title, 0.9)]) is None
    assert shares(lookalike_readings(PHOTO, [lookalike(title, 0.9), lookalike("Bag", 0.1)])) == {"bag": 1.0}


def test_only_the_nearest_lookalikes_are_asked() -> None:
    near = [lookalike("Blue Shirt", 0.9)] * NUM_NAMES
    assert shares(lookalike_readings(PHOTO, [lookalike("Red Bag", 0.89), *near])) == {"blue shirt": pytest.approx(1.0)}


def test_photo_is_read_by_captioner_and_lookalikes() -> None:
    caption, candidates = greedy(word("Blue"), word("Shirt")), [lookalike("Green Shirt", 0.9)]
    assert shares(photo_readings(caption, TWO, PHOTO, candidates, 0.7)) == {
        "green shirt": pytest.approx(0.7),
        "blue shirt": pytest.approx(0.3),
    }
    assert shares(photo_readings(caption, TWO, PHOTO, [], 0.7)) == {"blue shirt": 1.0}
