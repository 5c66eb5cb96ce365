# SPDX-License-Identifier: Apache-2.0
"""Every system on a gallery of five products whose answers can be told by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.retrieval.systems import (
    OURS,
    OURS_BY_WORDS,
    VISUAL,
    Query,
    SearchedGallery,
    Settings,
    Whitening,
    nearest,
    systems,
    write_catalogue,
)
from captioner.captions import Caption, CaptionAlternative, Word
from captioner.photo_words import PhotoWords
from captioner.query import Query as Words
from captioner.query import QueryRule
from search_gateway.ranking.rerank import RefinementLimits

TITLES = ["Puma Red Shirt", "Nike Men Blue Shirt", "Red Bag", "Old Red Shirt", "Green Hat"]
ANGLES = np.radians([80, 10, 5, 20, 85])  # of the embeddings, from the query's
EMBEDDINGS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def caption(text: str, *alternatives: CaptionAlternative) -> Caption:
    """One the captioner is sure of, but for alternatives of beam search."""
    words = tuple(Word(word, 1.0, (), 1.0) for word in text.split())
    return Caption(text, words, log_probability=-0.5, complete=True, alternatives=alternatives)


def said(text: str, *alternatives: CaptionAlternative) -> PhotoWords:
    return PhotoWords(caption(text, *alternatives), Words.of_caption(text), QueryRule.LAST_TWO_WORDS)


QUERY = Query(
    embedding=np.array([1, 0], np.float32),
    patch_mean=np.array([0, 1], np.float32),
    words=said("Adidas Red Shirt"),
    beams=said("Adidas Red Shirt", CaptionAlternative("Adidas Blue Shirt", -0.6)),
    paper=said("Adidas Red Shirt"),
    name="Fine Blue Shirt",
    product_id="7",
)
LIMITS = RefinementLimits(
    min_visual_score=0.5, min_semantic_score=0.7, visual_weight=0.5, neighbour_weight=0.5, max_results=10
)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[SearchedGallery]:
    write_catalogue(tmp_path / "shop" / "gallery.sqlite", TITLES, EMBEDDINGS, "a model")
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["gallery.sqlite"]
    with SearchedGallery(tmp_path / "shop" / "gallery.sqlite", "a model") as opened:
        yield opened


def answers(gallery: SearchedGallery, query: Query) -> dict[str, list[int]]:
    whitening = Whitening(EMBEDDINGS, 0.1)
    every = systems(gallery, EMBEDDINGS, whitening, EMBEDDINGS, Settings(LIMITS, max_candidates=10))
    return {name: search(query) for name, search in every.items()}


def test_systems_answer_what_they_are_named_for(gallery: SearchedGallery) -> None:
    found = answers(gallery, QUERY)
    assert found[VISUAL] == [2, 1, 3, 0, 4]
    assert found["visual only, mean of patches"] == [4, 0, 3, 1, 2]
    assert set(found["two words"][:2]) == {0, 3}, "both words come first"
    assert set(found["two words"]) == {0, 1, 2, 3}
    assert set(found["two words + visual filter"]) == {1, 2, 3}, "the first shirt looks otherwise"
    assert found["two words + visual filter"][0] == 3
    assert set(found["two words + semantic filter"]) == {0, 3}, "other colours and things agree by less than 0.7"
    assert found[OURS] == [3]
    assert found["two words, salient"] == found["two words"]
    assert found[OURS_BY_WORDS] == [3], "the neighbours' names have no say"
    assert found["ours with beams"] == [3, 1], "beam search holds a blue shirt for possible"
    assert found["ours, without neighbours' names"] == found["ours, the two words taken as certain"] == [3]
    assert found["neighbours' names, no captioner"] == [2, 3], "the bag looks most alike: it may be a bag"
    assert found["oracle words"][0] == 1
    assert found["oracle words and looks"] == [1]


def test_caption_without_words_finds_nothing_by_words(gallery: SearchedGallery) -> None:
    found = answers(
        gallery, Query(QUERY.embedding, QUERY.patch_mean, said("..."), said("..."), said("..."), "Blue Shirt", "8")
    )
    assert [name for name, answer in found.items() if not answer] == [
        "two words",
        "two words, salient",
        "two words, the caption's last (the paper)",
        "two words + visual filter",
        "two words + semantic filter",
        OURS,
        OURS_BY_WORDS,
        "the same, salient",
        "ours, the caption's last two words",
        "ours with beams",
        "ours, without neighbours' names",
        "ours, the two words taken as certain",
        "full caption",
        "full caption, words and looks",
    ]
    assert found[VISUAL] == [2, 1, 3, 0, 4]


def test_nearest_neighbours_join_the_candidates_only_where_a_photo_is_given(gallery: SearchedGallery) -> None:
    by_words = [seen.candidate.title for seen in gallery.candidates(Words.of("green hat"), 10, None)]
    both = [seen.candidate.title for seen in gallery.candidates(Words.of("green hat"), 10, QUERY.embedding)]
    assert by_words == ["Green Hat"]
    assert sorted(both) == sorted(TITLES)


def test_nearest_is_stable() -> None:
    rows = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    assert nearest(rows, np.array([1, 0], np.float32), 3) == [0, 2, 1]


def test_whitening_evens_out_the_spread() -> None:
    spread = np.random.default_rng(0).normal(size=(5000, 3)) * [10, 1, 0.1] + [5, 0, 0]
    whitened = Whitening(spread.astype(np.float32), 0.0)(spread.astype(np.float32))
    assert np.linalg.norm(whitened, axis=1) == pytest.approx(1, abs=1e-5)
    # Points on a sphere that is even in all directions.
    assert np.cov(whitened, rowvar=False) == pytest.approx(np.eye(3) / 3, abs=0.02)
