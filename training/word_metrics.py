# SPDX-License-Identifier: Apache-2.0
"""How often the words a search would use are right. Pure text; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from captioner.query import QUERY_WORDS, words_of
from captioner.word_folding import fold


@dataclass(frozen=True)
class WordMetrics:
    """Shares of captions, 0 to 1. "Normalised" folds case, hyphens and plurals; the single words are normalised too."""

    last_two_exact: float
    last_two_normalised: float
    last_word_accuracy: float
    second_last_accuracy: float
    order_free_accuracy: float  # both words, in either order
    whole_caption_exact: float


def word_metrics(captions: Sequence[str], names: Sequence[str]) -> WordMetrics:
    """Compare captions with the true names, one by one.

    Raises:
        ValueError: there is nothing to compare, or the two differ in length.
    """
    if not captions:
        raise ValueError("there is not one caption to compare")
    rows = []
    for caption, name in zip(captions, names, strict=True):
        got, wanted = words_of(caption)[-QUERY_WORDS:], words_of(name)[-QUERY_WORDS:]
        folded, expected = [fold(word) for word in got], [fold(word) for word in wanted]
        rows.append(
            (
                got == wanted,
                folded == expected,
                folded[-1:] == expected[-1:],
                folded[:-1] == expected[:-1],
                sorted(folded) == sorted(expected),
                caption.split() == name.split(),
            )
        )
    return WordMetrics(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))
