# SPDX-License-Identifier: Apache-2.0
"""Ranking by what titles name, wherever their words stand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from captioner.photo_labels import PhotoLabels
from captioner.query import Query
from search_gateway.providers.base import Candidate
from search_gateway.ranking.product_reading import ProductReader, ProductReading, excluded_in
from search_gateway.ranking.query_hypotheses import QueryHypotheses
from search_gateway.ranking.rerank import InspectedCandidate, RefinementLimits, RerankResult, Verdict, rerank
from search_gateway.ranking.word_agreement import Synonyms
from tests.fakes.word_reader import COLOURS, TYPES, WORDS_OF_TYPES, WordReader, word_reader

SYNONYMS = Synonyms.builtin()
LIMITS = RefinementLimits(
    min_visual_score=-0.5, min_semantic_score=0.4, max_results=10, visual_weight=0.3, neighbour_weight=0.7
)
RED_SHIRT = np.array([0.6, 0, 0.8, 0], np.float32)  # a shirt that is red; see `LABELS`
TYPE_AXES, COLOUR_AXES = np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32)
TYPE_AXES[0, 0] = TYPE_AXES[1, 1] = COLOUR_AXES[2, 0] = COLOUR_AXES[3, 1] = 10
LABELS = PhotoLabels(
    weights="", type_names=("Shirts", "Dresses"), colour_names=("Red", "Blue"), type_weight=TYPE_AXES,
    type_bias=np.zeros(2, np.float32), colour_weight=COLOUR_AXES, colour_bias=np.zeros(2, np.float32),
    colour_directions=np.eye(4, dtype=np.float32)[2:],
)  # fmt: skip


def pictured(title: str, embedding: npt.ArrayLike = RED_SHIRT, *, near: bool = False) -> InspectedCandidate:
    found = np.asarray(embedding, np.float32)
    candidate = Candidate(
        title=title, url=title, thumbnail_url="", source="shop", embedding=found, is_nearest_neighbour=near
    )
    return InspectedCandidate(candidate, found, title.encode())


def of_photo(
    seen: Sequence[InspectedCandidate],
    query: str,
    labels: PhotoLabels | None = LABELS,
    **changes: bool | tuple[str, ...],
) -> ProductReading | None:
    wanted = Query.of(query)
    own = QueryHypotheses.certain(wanted)
    found = [one.candidate for one in seen]
    reader = ProductReader(word_reader(), labels)
    return reader.of_photo(RED_SHIRT, wanted, own, found, LIMITS, **changes)  # type: ignore[arg-type]


def ranked(
    *titles: str | InspectedCandidate,
    query: str = "red shirt",
    reading: ProductReading | None = None,
    excluded: Sequence[str] = (),
) -> RerankResult:
    seen = [pictured(one) if isinstance(one, str) else one for one in titles]
    reading = reading or of_photo(seen, query)
    wanted = Query.of(query)
    return rerank(
        RED_SHIRT, wanted, QueryHypotheses.certain(wanted), seen, LIMITS, SYNONYMS, reading, excluded=excluded
    )


def titles_of(result: RerankResult) -> list[str]:
    return [one.candidate.title for one in result.kept]


@pytest.mark.parametrize(
    "style",
    ["{}", "{} for Women", "Brand {} - Size M", "RED SHIRT (Pack of 1)", "shirt-in-red", "Rot Hemd", "shirt red"],
)
def test_words_may_stand_anywhere(style: str) -> None:
    right = style.format("Red Shirt")
    result = ranked("Blue Shirt for Women - Size M", right, "Red Dress for Women - Size M")
    assert titles_of(result)[0] == right
    assert result.kept[0].semantic_score > 0.9
    assert result.kept[0].reason.endswith("and its title has every word")
    assert "Red Dress for Women - Size M" not in titles_of(result)


def test_right_type_in_another_colour_has_half_the_grade() -> None:
    result = ranked("Red Shirt", "Blue Shirt", "Blue Cap")
    scores = {one.candidate.title: one.semantic_score for one in result.kept + result.dropped}
    assert scores["Blue Shirt"] == pytest.approx(0.5 * scores["Red Shirt"], abs=0.03)
    assert scores["Blue Cap"] < 0.1


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("Black Shirt", "says black, not red"),
        ("Schwarz Hemd", "says schwarz, not red"),
        ("Red Kleid", "lacks 'shirt'"),
        ("Shirt", "lacks 'red'"),
        ("Hemd Rot", "has every word"),
    ],
)
def test_reason_names_words(title: str, said: str) -> None:
    result = ranked("Red Shirt", title)
    (reason,) = (one.reason for one in result.kept + result.dropped if one.candidate.title == title)
    assert f"its title {said}" in reason


def test_title_with_every_word_that_fits_badly_is_explained() -> None:
    blue_caps = [pictured("Blue Cap", near=True)]
    reading = of_photo(blue_caps, "red shirt", None)
    result = ranked("Red Shirt", reading=reading)
    assert "but the photo is rather 'red caps'" in (result.kept + result.dropped)[0].reason


@pytest.mark.parametrize("title", ["", "107", "IMG_2231", "Veltona", "\u3042"])
def test_title_that_says_nothing_is_judged_by_looks(title: str) -> None:
    like, unlike = pictured(title), pictured(f"{title} ", np.eye(4)[3])
    result = ranked(unlike, like)
    assert [one.verdict for one in result.kept] == [Verdict.KEPT] * 2
    assert titles_of(result) == [title, f"{title} "]
    assert result.kept[0].reason == "looks like the photo (1.00) and its title does not say what it shows"


def test_title_that_says_nothing_gets_the_score_of_what_looks_like_it() -> None:
    red, cap = pictured("Red Shirt"), pictured("Cap", [0, 1, 0, 0])
    silent_red, silent_cap = pictured("107", [0.59, 0.1, 0.8, 0]), pictured("108", [0.1, 0.99, 0, 0])
    reading = of_photo([], "red shirt", None)
    result = ranked(silent_cap, silent_red, red, cap, reading=reading)
    scores = {one.candidate.title: one.semantic_score for one in result.kept + result.dropped}
    assert scores["107"] == pytest.approx(scores["Red Shirt"], abs=0.01)
    assert scores["108"] == pytest.approx(scores["Cap"], abs=0.01)


def test_picture_says_what_a_title_does_not() -> None:
    red, blue, dress = pictured("Shirt"), pictured("shirt", [0.6, 0, 0, 0.8]), pictured("107", [0, 0.6, 0.8, 0])
    result = ranked(blue, red, dress, pictured("108"))
    scores = {one.candidate.title: one.semantic_score for one in result.kept + result.dropped}
    assert scores["Shirt"] == pytest.approx(0.97, abs=0.02)
    assert scores["shirt"] == pytest.approx(0.5, abs=0.02)
    assert scores["107"] < 0.1
    assert scores["108"] > 0.95
    assert {one.verdict for one in result.kept} == {Verdict.KEPT}, "titles that say nothing are not refused"
    assert len(result.kept) == 4


def test_photo_and_neighbours_share_the_say() -> None:
    neighbours = [pictured("Blue Shirt", near=True), pictured("Blue Shirt Large", near=True)]
    reading = of_photo(neighbours, "red shirt")
    assert reading is not None
    shares = {one.source: one.share for one in reading.types}
    assert shares == {"neighbours": pytest.approx(0.7), "photo": pytest.approx(0.3)}
    of_colour = {one.source: one.share for one in reading.colours}
    assert of_colour["photo"] == pytest.approx(0.3 * 5 / (0.3 * 5 + 0.7)), "it sees its own colour"
    assert reading.likeliest() == "red shirts"
    alone = of_photo([], "red shirt")
    assert alone is not None
    assert [one.source for one in alone.types + alone.colours] == ["photo", "photo"]


def test_without_labels_the_captioner_says_what_the_photo_shows() -> None:
    reading = of_photo([], "black cap", None)
    assert reading is not None
    assert reading.likeliest() == "black caps"


def test_contributions_add_up_to_the_score() -> None:
    result = ranked(pictured("Red Shirt", near=True), "Blue Shirt", "Red Cap", "107")
    for one in result.kept + result.dropped:
        parts = dict(one.contributions)
        assert sum(parts.values()) == pytest.approx(one.score, abs=1e-6)
        of_title = {"type_neighbours", "type_photo", "colour_neighbours", "colour_photo"}
        silent = one.candidate.title == "107"
        assert parts.keys() == {"looks", *({"picture"} if silent else of_title)}


def test_another_colour_is_compared_without_the_photos_own() -> None:
    blue_twin, red_other = (
        pictured("Blue Shirt", [0.6, 0, 0, 0.8]),
        pictured("Blue Shirt, Striped", [0.3, 0.5, 0.81, 0]),
    )
    reading = of_photo([], "blue shirt", colour_given=True)
    result = ranked(red_other, blue_twin, pictured("Red Shirt"), query="blue shirt", reading=reading)
    assert titles_of(result)[0] == "Blue Shirt"
    assert result.kept[0].visual_score == pytest.approx(1)
    assert titles_of(result)[-1] == "Red Shirt"


def test_title_and_picture_have_a_say_beside_the_colour_that_the_caller_gave() -> None:
    blue, red = [0.6, 0, 0, 0.8], [0.6, 0, 0.8, 0]
    seen = [
        pictured("Brand of Red Tape Shirt Blue", blue),  # read as red by the reader, not by its words
        pictured("Shirt Blue", red),
        pictured("Blue Shirt", blue),
        pictured("Red Shirt", blue),
    ]
    reading = of_photo([], "blue shirt", colour_given=True)
    result = ranked(*seen, query="blue shirt", reading=reading)
    assert titles_of(result)[0] == "Blue Shirt"
    assert titles_of(result)[-1] == "Red Shirt"
    scores = [one.semantic_score for one in result.kept]
    assert scores[0] - 0.13 < scores[1] < scores[0], "the words still say most"
    without = of_photo([], "blue shirt", None, colour_given=True)
    scores = [one.semantic_score for one in ranked(*seen, query="blue shirt", reading=without).kept]
    assert scores[0] == scores[1] > scores[2], "no picture can be read, but titles can"


def test_both_words_of_a_thing_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORDS_OF_TYPES, "track", TYPES.index("Caps"))
    reading = of_photo([], "red track pants", type_given=True)
    result = ranked("Red Trousers", "Red Pants", "Red Track Pants", query="red track pants", reading=reading)
    assert titles_of(result)[0] == "Red Track Pants"
    assert result.kept[1].semantic_score < 0.9, "pants are trousers, too"


def test_thing_colour_and_exclusion_at_once() -> None:
    reading = of_photo([], "blue cap", colour_given=True, type_given=True, excluded=("striped",))
    unlike = pictured("Blue Cap", [-0.8, 0.6, 0, 0])
    found = ranked("Striped Blue Cap", unlike, "Blue Shirt", query="blue cap", reading=reading, excluded=("striped",))
    assert titles_of(found)[0] == "Blue Cap"
    assert found.kept[0].verdict is Verdict.KEPT, "although it looks like no shirt"
    (striped,) = (one for one in found.dropped if one.candidate.title == "Striped Blue Cap")
    assert striped.verdict is Verdict.DROPPED_SEMANTIC
    assert striped.reason == "its title says striped, which is excluded"


def test_thing_is_understood_beside_a_word_of_the_photos_own_type(monkeypatch: pytest.MonkeyPatch) -> None:
    read = WordReader.read
    monkeypatch.setattr(
        WordReader, "read", lambda reader, titles: read(reader, [t.replace("track cap", "") for t in titles])
    )
    reading = of_photo([], "track cap", type_given=True)
    assert reading is not None
    assert reading.another_type
    assert reading.likeliest().endswith("caps")


def test_excluded_class_is_not_expected() -> None:
    reading = of_photo([], "shirt", excluded=("red",))
    assert reading is not None
    assert reading.likeliest() == "blue shirts"
    everything = of_photo([], "shirt", excluded=("red", "blue", "black"))
    assert everything is not None
    assert all(np.isfinite(one.classes).all() for one in everything.colours)


def test_word_that_the_reader_does_not_know_is_left_to_the_words() -> None:
    reader = ProductReader(word_reader(), LABELS)
    assert reader.of_query(Query.of("blue gizmo"), LIMITS) is None
    assert of_photo([], "blue gizmo", type_given=True) is None


def test_given_query_counts_its_other_words() -> None:
    reading = ProductReader(word_reader(), LABELS).of_query(Query.of("striped blue shirt"), LIMITS)
    result = ranked("Blue Shirt", "Shirt Blue Striped", query="striped blue shirt", reading=reading)
    assert titles_of(result) == ["Shirt Blue Striped", "Blue Shirt"]
    any_colour = ProductReader(word_reader(), LABELS).of_query(Query.of("shirt"), LIMITS)
    result = ranked("Black Shirt", "Red Shirt", query="shirt", reading=any_colour)
    assert [one.semantic_score for one in result.kept] == [pytest.approx(1)] * 2


def test_reader_reads_each_candidate_once_and_reasons_are_for_what_is_shown() -> None:
    counting = WordReader()
    seen = [pictured(f"Red Shirt {number}") for number in range(1000)]
    reading = ProductReader(counting, LABELS).of_photo(  # type: ignore[arg-type]
        RED_SHIRT, Query.of("red shirt"), QueryHypotheses.certain(Query.of("red shirt")), [], LIMITS
    )
    counting.read_titles = 0
    wanted = Query.of("red shirt")
    result = rerank(RED_SHIRT, wanted, QueryHypotheses.certain(wanted), seen, LIMITS, SYNONYMS, reading, explain=False)
    shown = LIMITS.max_results + 1  # the results and the nearest miss
    assert counting.read_titles <= len(seen) + shown * 3
    assert [bool(one.reason) for one in result.dropped] == [True] + [False] * 989
    assert not result.kept[0].contributions


def test_classes_of_the_labels_are_found_by_name() -> None:
    assert set(LABELS.type_names) <= set(TYPES)
    assert set(LABELS.colour_names) <= set(COLOURS)


@pytest.mark.parametrize(
    ("excluded", "title"),
    [
        ("décolleté", "Decollete Top"), ("decollete", "Décolleté Top"), ("striped", "\uff33\uff54ripe\uff44 Shirt"),
        ("straße", "STRASSE"), ("v-neck", "V Neck Top"), ("v neck", "vneck top"), ("polkadot", "Polka Dot Dress"),
        ("polka-dot", "polka dots"), ("scarf", "Two Scarves"), ("handbag", "rote Handtasche"),
    ],
)  # fmt: skip
def test_excluded_words_are_found_in_every_spelling(excluded: str, title: str) -> None:
    assert excluded_in(title, ("socks", excluded), SYNONYMS) == excluded


def test_excluded_words_are_not_found_in_others() -> None:
    titles = ("T Shirt", "Neck Tie with V", "Dot and Polka", "")
    assert not any(excluded_in(title, ("shirt", "striped", "v-neck", "polkadot"), SYNONYMS) for title in titles)


@pytest.mark.parametrize(
    ("excluded", "title", "is_excluded"),
    [
        ("striped", "Men Stripes Shirt", True),
        ("check", "Checked Shirt", True),
        ("blue", "Navy Shirt", True),
        ("navy", "Blue Shirt", False),
        ("navy blue", "Blue Shirt", False),
        ("navy blue", "Navy Shirt", True),
        ("off white", "White Shirt", False),
        ("off white", "Off-White Shirt", True),
        ("charcoal", "Grey Shirt", False),
        ("gray", "Grey Shirt", True),
    ],
)
def test_excluded_shade_leaves_the_other_shades(excluded: str, title: str, is_excluded: bool) -> None:
    assert bool(excluded_in(title, (excluded,), SYNONYMS)) is is_excluded


def test_word_that_is_no_colour_must_be_in_the_title_and_any_colour_is_right() -> None:
    reading = of_photo([], "floral shirt", colour_given=True)
    result = ranked("Blue Shirt", "Red Shirt", "Floral Black Shirt", query="floral shirt", reading=reading)
    assert titles_of(result)[0] == "Floral Black Shirt"
    assert result.kept[0].semantic_score == pytest.approx(1, abs=0.05)
    assert [one.semantic_score for one in result.kept[1:]] == [pytest.approx(0.6, abs=0.05)] * 2


def test_reason_does_not_say_that_another_thing_looks_like_the_photo() -> None:
    reading = of_photo([], "red cap", type_given=True)
    result = ranked(pictured("Red Cap", -RED_SHIRT), pictured("Red Cap 2"), query="red cap", reading=reading)
    assert [one.reason.split(" and ")[0] for one in result.kept] == [
        "looks like the photo (1.00)",
        "need not look like the photo (-1.00)",
    ]
