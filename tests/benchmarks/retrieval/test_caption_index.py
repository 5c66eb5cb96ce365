# SPDX-License-Identifier: Apache-2.0
"""Captions are found by captions."""

from __future__ import annotations

import pytest

from benchmarks.retrieval.caption_index import BM25_PAIRS, CAPTION_WEIGHTINGS, CaptionIndex

CAPTIONS = ["Puma Men Blue Shirt", "Puma Men Red Shirts", "Nike Red Shoes", "Nike Men Shirt Blue", "Watch"]


@pytest.mark.parametrize("weighting", CAPTION_WEIGHTINGS)
def test_caption_with_the_most_and_rarest_words_comes_first(weighting: str) -> None:
    index = CaptionIndex(CAPTIONS, weighting)
    assert index.best("adidas men red shirt", 10)[0] == 1
    assert index.best("nike shoe", 2) == [2, 3]
    assert index.best("nothing of the kind", 10) == []
    assert index.best("", 10) == []


def test_pairs_of_words_tell_the_order() -> None:
    assert CaptionIndex(CAPTIONS, BM25_PAIRS).best("Shirt Blue", 2) == [3, 0]
