# SPDX-License-Identifier: Apache-2.0
"""What a photo may be called: distributions over queries, from a caption and from what looks like the photo."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.captions import Caption, CaptionAlternative, Word, WordAlternative
from captioner.query import Query, QueryRule, query_from_caption
from captioner.query_distribution import QueryDistribution
from search_gateway.providers.base import Candidate
from search_gateway.ranking.query_hypotheses import (
    MAX_HYPOTHESES,
    NUM_NAMES,
    SHARPNESS,
    QueryHypotheses,
    QueryHypothesis,
    caption_query_hypotheses,
    neighbour_hypotheses,
    photo_hypotheses,
)

TWO, FULL = QueryRule.LAST_TWO_WORDS, QueryRule.FULL_CAPTION
LIKELIEST = QueryRule.LIKELIEST_WORDS
PHOTO = np.array([1.0, 0.0], np.float32)


def at(cosine: float) -> npt.NDArray[np.float32]:
    """An embedding of this similarity with the photo."""
    return np.array([cosine, np.sqrt(1 - cosine**2)], np.float32)


def word(text: str, first: float = 1.0, whole: float | None = None, **alternatives: float) -> Word:
    """A word whose first token and all of whose tokens have these probabilities."""
    others = tuple(WordAlternative(*one) for one in alternatives.items())
    return Word(text, first if whole is None else whole, others, first)


def greedy(*words: Word) -> Caption:
    return Caption(" ".join(one.text for one in words), words, -1.0, complete=True, alternatives=())


def beams(*captions: tuple[str, float]) -> Caption:
    """Each with its log-probability."""
    (text, log_probability), *others = captions
    alternatives = tuple(CaptionAlternative(*one) for one in others)
    return Caption(text, (), log_probability, True, alternatives)


def neighbour(title: str, cosine: float) -> Candidate:
    return Candidate(title=title, url="", thumbnail_url="", source="", embedding=at(cosine), is_nearest_neighbour=True)


def weighted(*pairs: tuple[str, float]) -> QueryHypotheses | None:
    return QueryHypotheses.weighted((Query.of(text), weight) for text, weight in pairs)


def shares(hypotheses: QueryHypotheses | None) -> dict[str, float]:
    assert hypotheses is not None
    return {one.query.text: one.probability for one in hypotheses.hypotheses}


distributions = st.dictionaries(st.sampled_from("abcdefghijkl"), st.floats(0.01, 1), min_size=1).map(
    lambda weights: QueryHypotheses.weighted((Query.of(text), weight) for text, weight in weights.items())
)


def is_distribution(hypotheses: QueryHypotheses) -> bool:
    probabilities = [one.probability for one in hypotheses.hypotheses]
    return (
        math.isclose(sum(probabilities), 1)
        and min(probabilities) > 0
        and probabilities == sorted(probabilities, reverse=True)
        and len(shares(hypotheses)) == len(probabilities)
    )


def test_weights_of_any_sum_become_probabilities() -> None:
    found = weighted(("blue shirt", 1), ("navy shirt", 4), ("blue shirt", 2), ("red shirt", 0))
    assert found == QueryHypotheses(
        (QueryHypothesis(Query.of("navy shirt"), 4 / 7), QueryHypothesis(Query.of("blue shirt"), 3 / 7))
    )


@pytest.mark.parametrize("pairs", [[], [("blue shirt", 0.0)], [("blue shirt", math.nan)]])
def test_without_weight_there_is_no_hypothesis(pairs: list[tuple[str, float]]) -> None:
    assert weighted(*pairs) is None


@given(distributions, distributions, st.floats(0, 1))
def test_mixtures_are_distributions(one: QueryHypotheses, other: QueryHypotheses, share: float) -> None:
    mixed = one.mixed(other, share)
    assert is_distribution(mixed)
    for query in set(shares(one)) | set(shares(other)):
        expected = (1 - share) * shares(one).get(query, 0) + share * shares(other).get(query, 0)
        assert shares(mixed).get(query, 0) == pytest.approx(expected)
    assert one.mixed(None, share) == one


@given(distributions, st.integers(1, 12))
def test_the_rest_is_shared_among_the_most_likely(hypotheses: QueryHypotheses, count: int) -> None:
    kept = hypotheses.most_likely(count)
    assert is_distribution(kept)
    assert [one.query for one in kept.hypotheses] == [one.query for one in hypotheses.hypotheses[:count]]


def test_hypotheses_that_become_equal_are_one() -> None:
    found = weighted(("blue shirt", 0.5), ("navy shirt", 0.3), ("blue top", 0.2))
    assert found is not None
    changed = found.changed(lambda query: query.replaced(colour="red", product_type=None))
    assert shares(changed) == {"red shirt": pytest.approx(0.8), "red top": pytest.approx(0.2)}


def test_callers_are_told_the_query_first_and_each_name_once() -> None:
    found = weighted(
        ("red shirts", 0.4), ("blue t-shirt", 0.1), ("red shirt", 0.2), ("T Shirts blue", 0.05), ("Blue T Shirts", 0.25)
    )
    assert found is not None
    own = ("blue t-shirt", pytest.approx(0.35))
    reds, order = ("red shirts", pytest.approx(0.6)), ("T Shirts blue", pytest.approx(0.05))
    assert shares(found) == dict([reds, ("Blue T Shirts", own[1]), order])
    assert found.readings(Query.of("blue t-shirt")) == [own, reds, order]
    assert found.readings(Query.of("blue t-shirt").excluding(["striped"])) == [own, reds, order]
    assert found.readings(Query.of("navy shirt")) == [reds, ("Blue T Shirts", pytest.approx(0.35)), order]


def test_greedy_caption_is_read_with_what_its_last_words_could_be() -> None:
    caption = greedy(word("Puma", 0.4, nike=0.3), word("Blue", 0.5, navy=0.3), word("Tshirt", 0.6, shirt=0.2))
    total = 0.8 * 0.8
    assert shares(caption_query_hypotheses(caption, TWO)) == {
        "blue tshirt": pytest.approx(0.5 * 0.6 / total),
        "navy tshirt": pytest.approx(0.3 * 0.6 / total),
        "blue shirt": pytest.approx(0.5 * 0.2 / total),
        "navy shirt": pytest.approx(0.3 * 0.2 / total),
    }
    assert "puma navy shirt" in shares(caption_query_hypotheses(caption, FULL)), "the words before stay"


def test_unlikely_hypotheses_are_left_out() -> None:
    others = {"red": 0.1, "top": 0.1, "hat": 0.1}
    assert len(
        shares(caption_query_hypotheses(greedy(word("Blue", 0.5, **others), word("Shirt", 0.6, **others)), TWO))
    ) == (MAX_HYPOTHESES)


def test_words_are_weighed_by_their_first_token_as_their_alternatives_are() -> None:
    """Of several tokens the chosen word is less likely as a whole than the first token of another."""
    caption = greedy(word("Heroes"), word("T-shirt", 0.5, whole=0.06, graphic=0.22))
    assert caption_query_hypotheses(caption, TWO).hypotheses[0].query.text == "heroes t-shirt"
    assert shares(caption_query_hypotheses(caption, TWO))["heroes graphic"] == pytest.approx(0.22 / 0.72)


@pytest.mark.parametrize("beginning", ["t", "ch", "fs", "4647", "x1y2"])
def test_what_is_no_word_by_itself_is_not_read(beginning: str) -> None:
    caption = greedy(word("Solid"), word("Tshirts", 0.5, **{beginning: 0.4}))
    assert shares(caption_query_hypotheses(caption, TWO)) == {"solid tshirts": 1.0}


def test_captions_of_all_beams_count_as_much_as_they_are_likely() -> None:
    caption = beams(("Puma Blue Shirt", -1.0), ("Nike Navy Shirt", -1.5), ("Nike Blue Shirt", -2.0))
    weights = [math.exp(-1.0) + math.exp(-2.0), math.exp(-1.5)]
    assert shares(caption_query_hypotheses(caption, TWO)) == {
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
    assert shares(caption_query_hypotheses(caption, TWO)) == {"blue shirt": 1.0}


@pytest.mark.parametrize("text", ["", "...", "Watch"])
def test_short_captions_have_short_hypotheses(text: str) -> None:
    caption = greedy(*map(word, text.split()))
    assert shares(caption_query_hypotheses(caption, TWO)) == {query_from_caption(text): 1.0}


def test_neighbours_say_what_they_are_called_the_nearest_loudest() -> None:
    candidates = [neighbour("Nike Men Blue Shirt", 0.9), neighbour("Puma Red Bag", 0.88), neighbour("Blue Shirt", 0.8)]
    weights = [1 + math.exp(-0.1 * SHARPNESS), math.exp(-0.02 * SHARPNESS)]
    assert shares(neighbour_hypotheses(PHOTO, candidates)) == {
        "blue shirt": pytest.approx(weights[0] / sum(weights), abs=1e-4),
        "red bag": pytest.approx(weights[1] / sum(weights), abs=1e-4),
    }


def test_who_was_found_by_words_alone_is_not_asked() -> None:
    by_words = Candidate(title="Red Bag", url="", thumbnail_url="", source="", embedding=at(0.99))
    unseen = Candidate(title="Red Hat", url="", thumbnail_url="", source="", is_nearest_neighbour=True)
    assert neighbour_hypotheses(PHOTO, [by_words, unseen]) is None
    assert shares(neighbour_hypotheses(PHOTO, [by_words, unseen, neighbour("Blue Shirt", 0.5)])) == {"blue shirt": 1.0}


@pytest.mark.parametrize("title", ["", "...", " - "])
def test_titles_without_words_have_no_say(title: str) -> None:
    assert neighbour_hypotheses(PHOTO, [neighbour(title, 0.9)]) is None
    assert shares(neighbour_hypotheses(PHOTO, [neighbour(title, 0.9), neighbour("Bag", 0.1)])) == {"bag": 1.0}


@pytest.mark.parametrize(
    "title",
    ["14", "0042 3", "IMG 4312", "img 20230412 153012", "DSC 0017", "DSCN0042", "P1010101", "PXL 20230101 120000123",
     "WhatsApp Image 2021 05 03 at 10 11 12", "WhatsApp Image (2)", "Screenshot 7", "3f2a9b1c e4d0", "image", "x 3"],
)  # fmt: skip
def test_file_names_of_cameras_have_no_say(title: str) -> None:
    assert neighbour_hypotheses(PHOTO, [neighbour(title, 0.99)]) is None
    assert shares(neighbour_hypotheses(PHOTO, [neighbour(title, 0.99), neighbour("Bag", 0.1)])) == {"bag": 1.0}


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Puma Blue Shirt", "blue shirt"),
        ("shirt 01", "shirt"),
        ("Amante White T-shirt Bra BCMF02", "white bra"),
        ("Shirt - Navy Blue - M", "blue shirt"),
        ("Nike Men Black Track Pants", "track pants"),
        ("Red Handbag - Pack of 2", "red handbag"),
        ("Photo Frame", "photo frame"),
        ("T-shirt", "t-shirt"),
        ("Watch MTP-1239D", "watch"),
        ("裙", "裙"),
    ],
)
def test_names_with_a_word_have_a_say(title: str, name: str) -> None:
    assert shares(neighbour_hypotheses(PHOTO, [neighbour(title, 0.9)])) == {name: 1.0}


def test_only_the_nearest_neighbours_are_asked() -> None:
    near = [neighbour("Blue Shirt", 0.9)] * NUM_NAMES
    assert shares(neighbour_hypotheses(PHOTO, [neighbour("Red Bag", 0.89), *near])) == {
        "blue shirt": pytest.approx(1.0)
    }


def test_photo_is_read_by_captioner_and_neighbours() -> None:
    caption, candidates = greedy(word("Blue"), word("Shirt")), [neighbour("Green Shirt", 0.9)]
    assert shares(photo_hypotheses(caption, TWO, PHOTO, candidates, 0.7)) == {
        "green shirt": pytest.approx(0.7),
        "blue shirt": pytest.approx(0.3),
    }
    assert shares(photo_hypotheses(caption, TWO, PHOTO, [], 0.7)) == {"blue shirt": 1.0}


@given(st.lists(st.lists(st.floats(1e-6, 1), min_size=1, max_size=4), min_size=1, max_size=5))
def test_the_query_of_a_greedy_caption_is_its_likeliest_reading(probabilities: list[list[float]]) -> None:
    names = iter(f"w{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(100))
    words = []
    for options in probabilities:
        first, *others = sorted(options, reverse=True)
        words.append(word(next(names), first, whole=first / 10, **{next(names): other for other in others}))
    caption = greedy(*words)
    hypotheses = caption_query_hypotheses(caption, TWO)
    of_query = shares(hypotheses)[query_from_caption(caption.text)]
    assert of_query == pytest.approx(hypotheses.hypotheses[0].probability)


# A model with a query head


@pytest.mark.parametrize("rule", [TWO, LIKELIEST])
def test_hypotheses_of_a_query_head_are_its_likeliest_products(rule: QueryRule) -> None:
    head = QueryDistribution.of([("", 0.5), ("blue shirt", 0.3), ("navy shirt", 0.2)])
    caption = greedy(word("Puma"), word("Red", 0.6, Blue=0.4), word("Shirt"))
    expected = {"blue shirt": pytest.approx(0.6), "navy shirt": pytest.approx(0.4)}
    assert shares(caption_query_hypotheses(caption, rule, head)) == expected
    assert shares(photo_hypotheses(caption, rule, PHOTO, [neighbour("Nike Red Cap", 0.9)], 0.5, head)) == {
        "blue shirt": pytest.approx(0.3),
        "navy shirt": pytest.approx(0.2),
        "red cap": pytest.approx(0.5),
    }


def test_hypotheses_of_a_query_head_are_as_many_as_of_a_caption() -> None:
    head = QueryDistribution.of([(f"thing{number}", 0.05) for number in range(20)])
    assert len(caption_query_hypotheses(greedy(word("Shirt")), LIKELIEST, head).hypotheses) == MAX_HYPOTHESES


def test_whole_captions_are_read_as_before() -> None:
    head = QueryDistribution.of([("blue shirt", 1.0)])
    caption = greedy(word("Puma"), word("Red"), word("Shirt"))
    assert shares(caption_query_hypotheses(caption, FULL, head)) == {"puma red shirt": 1.0}


def test_products_that_are_all_impossible_leave_one_reading() -> None:
    head = QueryDistribution.of([("", 1.0), ("watch", 0.0), ("shirt", 0.0)])
    assert shares(caption_query_hypotheses(greedy(word("Shirt")), LIKELIEST, head)) == {"watch": 1.0}


def test_words_that_nearly_all_titles_share_are_no_names() -> None:
    near = [neighbour(f"{colour} Dress for Women - Size M", 0.9) for colour in ("Red", "Blue", "Green") * 4]
    wanted = [Query.of("red dress")]
    assert shares(neighbour_hypotheses(PHOTO, near, wanted)).keys() == {"red dress", "blue dress", "green dress"}


def test_few_titles_may_share_all_their_words() -> None:
    near = [neighbour("Red Dress for Women", 0.9)] * 3
    assert shares(neighbour_hypotheses(PHOTO, near, [Query.of("cap")])) == {"red dress": 1.0}
