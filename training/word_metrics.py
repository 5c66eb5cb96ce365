# SPDX-License-Identifier: Apache-2.0
"""How often the words of a search are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from captioner.query import QUERY_WORDS, words_of
from captioner.word_folding import fold


@dataclass(frozen=True)
class WordMetrics:
    """Shares of captions, 0 to 1; "normalised" means that case, hyphens and plurals are folded."""

    last_two_exact: float  # both words as they are written
    last_two_normalised: float  # both words, normalised
    last_word_accuracy: float  # the last word, normalised
    second_last_accuracy: float  # the word before it, normalised
    order_free_accuracy: float  # both words, normalised, in either order
    whole_caption_exact: float  # all words as they are written


def word_metrics(captions: Sequence[str], names: Sequence[str]) -> WordMetrics:
    """Compare captions with the true names, one by one.

    Raises:
        ValueError: there are no captions, or the lengths differ.
    """
    if not captions:
        raise ValueError("there are no captions to compare")
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
