# SPDX-License-Identifier: Apache-2.0
"""Reliability of the query's words on studio photos and on phone photos.

Two sources of words are measured: the query head (the likeliest query; a word's probability is the sum over all queries
with that word in that place) and the caption (its last two words; a word's probability is the decoder's, given the
words before it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.query import QUERY_WORDS
from training.captioning import DescribedPhotos, likeliest_queries
from training.phone_photos import GARMENTS, PhonePhoto
from training.reliability import reliability, word_at, word_marginals

LAST, FIRST = -1, -QUERY_WORDS

# A word of each photo, folded ("" for none), with its probability.
Words = tuple[list[str], npt.NDArray[np.float64]]


def head_words(described: DescribedPhotos, classes: Sequence[str], place: int) -> Words:
    """The words at a place of the likeliest queries, with their marginal probabilities.

    Args:
        described: n photos with query probabilities.
        classes: Q queries.
        place: LAST or FIRST.

    Returns:
        n folded words, "" where `place` is FIRST and the query has one word only, and their probabilities, float64 [n].

    Raises:
        ValueError: there are no query probabilities.
    """
    if described.query_log_probabilities is None:
        raise ValueError("the photos were described without a query head")
    words = [word_at(query, place) for query in likeliest_queries(described.query_log_probabilities, classes)]
    return words, word_marginals(np.exp(described.query_log_probabilities), classes, place, words)


def garment_shares(classes: Sequence[str]) -> npt.NDArray[np.float64]:
    """How far each query stands for the garment that another query names.

    Args:
        classes: Q queries.

    Returns:
        float64 [Q, Q]: the share of the phone photos' labels named by the column's last word that the row's last word
        names too; 0 where the column's last word names no label.
    """
    names = np.array(
        [[garment.is_named_by([word_at(query, LAST)]) for garment in GARMENTS.values()] for query in classes],
        np.float64,
    )
    shares: npt.NDArray[np.float64] = names @ (names / np.maximum(names.sum(axis=1, keepdims=True), 1)).T
    return shares


def head_garments(described: DescribedPhotos, classes: Sequence[str]) -> Words:
    """The last words of the likeliest queries, with the probability of the garment they name, by any word.

    Args:
        described: n photos with query probabilities.
        classes: Q queries.

    Returns:
        n folded words, and float64 [n]: the sum of all queries' probabilities, each weighted by how far it stands for
        that garment (`garment_shares`). The labels that a word names are assumed to be equally likely.

    Raises:
        ValueError: there are no query probabilities.
    """
    words, _ = head_words(described, classes, LAST)
    assert described.query_log_probabilities is not None
    row_of = {word_at(query, LAST): row for row, query in enumerate(classes)}
    shares = garment_shares(classes)[[row_of[word] for word in words]]
    return words, np.minimum((np.exp(described.query_log_probabilities) * shares).sum(axis=1), 1.0)


def caption_words(described: DescribedPhotos, place: int) -> Words:
    """The words at a place of the captions, with the decoder's probabilities; as `head_words`."""
    rows = [row[place] if len(row) >= -place else ("", 0.0) for row in described.word_probabilities]
    return [word_at(word, LAST) for word, _ in rows], np.array([value for _, value in rows], np.float64)


def studio_reliability(words: Words, names: Sequence[str], place: int) -> dict[str, Any]:
    """Reliability of words on studio photos, where the true name's word in the same place is right.

    Args:
        words: of n photos, from `head_words`; photos without a word are left out.
        names: n true names.
        place: LAST or FIRST.

    Returns:
        The result of `reliability`; empty where no photo has such a word.
    """
    right = np.array([word == word_at(name, place) for word, name in zip(words[0], names, strict=True)], bool)
    return _of_those_with_a_word(words, right)


def phone_reliability(words: Words, photos: Sequence[PhonePhoto]) -> dict[str, Any]:
    """Reliability of last words on phone photos, where each word that names the garment or a near one is right.

    Args:
        words: of n photos, from `head_garments` or `caption_words`; photos without a word are left out.
        photos: n photos.

    Returns:
        The result of `reliability`; empty where no photo has such a word.
    """
    right = np.array([photo.garment.is_named_by([word]) for word, photo in zip(words[0], photos, strict=True)], bool)
    return _of_those_with_a_word(words, right)


def calibration_figures(
    studio: DescribedPhotos,
    names: Sequence[str],
    phone: DescribedPhotos,
    photos: Sequence[PhonePhoto],
    classes: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Reliability of every source, word and domain.

    Args:
        studio: n studio photos.
        names: their n true names.
        phone: m phone photos.
        photos: the labels of the m phone photos.
        classes: of the query head; empty where there is none.

    Returns:
        "caption" and, where there is a head, "query head" -> "studio, last word", "studio, first word of the pair",
        "phone, last word names the garment" -> the result of `reliability`.
    """
    # Of the caption, the probability is that of one word although several would be right.
    sources = {"caption": (caption_words(studio, LAST), caption_words(studio, FIRST), caption_words(phone, LAST))}
    if classes:
        of_studio = [head_words(studio, classes, place) for place in (LAST, FIRST)]
        sources["query head"] = (of_studio[0], of_studio[1], head_garments(phone, classes))
    return {
        name: {
            "studio, last word": studio_reliability(last, names, LAST),
            "studio, first word of the pair": studio_reliability(first, names, FIRST),
            "phone, last word names the garment": phone_reliability(garments, photos),
        }
        for name, (last, first, garments) in sources.items()
    }


def _of_those_with_a_word(words: Words, right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    has_word = np.array([bool(word) for word in words[0]], bool)
    return reliability(words[1][has_word], right[has_word]) if has_word.any() else {}
