# SPDX-License-Identifier: Apache-2.0
"""Captions of photos as documents: a photo's caption finds photos with similar captions (as Kansara et al. 2020)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from captioner.word_folding import fold, words_of

BM25, BM25_PAIRS, COSINE = "BM25", "BM25, words and pairs", "cosine of tf-idf"
CAPTION_WEIGHTINGS = (BM25, BM25_PAIRS, COSINE)
_K1, _B = 1.2, 0.75  # Robertson and Zaragoza 2009


class CaptionIndex:
    """Args: the captions, and one of `CAPTION_WEIGHTINGS`."""

    def __init__(self, captions: Sequence[str], weighting: str):
        self._weighting = weighting
        counts = [self._terms(caption) for caption in captions]
        self._size = len(captions)
        lengths = np.array([max(1, one.total()) for one in counts], np.float64)
        postings: dict[str, tuple[list[int], list[int]]] = {}
        for place, terms in enumerate(counts):
            for term, count in terms.items():
                own = postings.setdefault(term, ([], []))
                own[0].append(place)
                own[1].append(count)
        self._postings: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = {}
        squares = np.zeros(self._size)
        for term, (found, often) in postings.items():
            places, frequency = np.array(found, np.int64), np.array(often, dtype=np.float64)
            if weighting == COSINE:
                weights = frequency * math.log((1 + self._size) / (1 + len(places)))
                squares[places] += weights**2
            else:
                idf = math.log(1 + (self._size - len(places) + 0.5) / (len(places) + 0.5))
                norm = _K1 * (1 - _B + _B * lengths[places] / lengths.mean())
                weights = idf * frequency * (_K1 + 1) / (frequency + norm)
            self._postings[term] = places, weights
        self._norms = np.sqrt(np.maximum(squares, 1e-12)) if weighting == COSINE else np.ones(self._size)

    def best(self, caption: str, count: int) -> list[int]:
        """Return the places of the `count` captions most like this one, best first; of equals the first."""
        scores = np.zeros(self._size)
        for term, often in self._terms(caption).items():
            if term in self._postings:
                places, weights = self._postings[term]
                # The query's own weight of a term is its tf-idf; BM25 counts the term as often as it is there.
                idf = math.log((1 + self._size) / (1 + len(places))) if self._weighting == COSINE else 1.0
                scores[places] += often * idf * weights
        order: list[int] = np.argsort(-scores / self._norms, kind="stable")[:count].tolist()
        return [place for place in order if scores[place] > 0]

    def _terms(self, caption: str) -> Counter[str]:
        words = [fold(word) for word in words_of(caption)]
        pairs = [f"{one} {other}" for one, other in zip(words, words[1:], strict=False)]
        return Counter(words + pairs if self._weighting == BM25_PAIRS else words)
