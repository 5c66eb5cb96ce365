# SPDX-License-Identifier: Apache-2.0
"""How likely each query is for a photo: by the encoder's query head, by the captions, and by both. Pure.

Queries whose words are equal when folded (`captioner.word_folding`) are one query, in its likeliest spelling.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captioner.query import query_from_caption, words_of
from captioner.query_classes import NO_PRODUCT
from captioner.word_folding import fold

# Share of the probability that the captions get beside the query head.
GREEDY_CAPTION_WEIGHT = 0.0
BEAM_CAPTIONS_WEIGHT = 0.3


@dataclass(frozen=True)
class CaptionHypothesis:
    """A finished caption as decoding ranks it.

    Attributes:
        log_probability: of all its tokens, in nats.
        num_tokens: at least 1 where `log_probability` is not 0; the end of the caption is a token.
    """

    text: str
    log_probability: float
    num_tokens: int


@dataclass(frozen=True)
class QueryDistribution:
    """Attributes:
    probabilities: query -> probability; they add up to 1. The query "" means that the photo shows no product.
    """

    probabilities: Mapping[str, float]

    @classmethod
    def of(cls, weighted: Iterable[tuple[str, float]]) -> QueryDistribution:
        """Build a distribution from queries with probabilities that add up to 1; equal queries are added up."""
        sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        spellings: dict[tuple[str, ...], tuple[float, str]] = {}
        for query, probability in weighted:
            key = _folded(query)
            sums[key] += probability
            if key not in spellings or probability > spellings[key][0]:
                spellings[key] = (probability, query)
        return cls({spellings[key][1]: probability for key, probability in sums.items()})

    def mixed(self, captions: QueryDistribution | None, weight: float) -> QueryDistribution:
        """Mix this distribution with that of the captions.

        Args:
            captions: None where no caption has words.
            weight: share of the captions, 0 to 1.
        """
        if captions is None or weight == 0:
            return self
        return QueryDistribution.of(
            [(query, (1 - weight) * probability) for query, probability in self.probabilities.items()]
            + [(query, weight * probability) for query, probability in captions.probabilities.items()]
        )

    @property
    def no_product_probability(self) -> float:
        """How likely it is that the photo shows no product."""
        return self.probabilities.get(NO_PRODUCT, 0.0)

    def likeliest(self) -> str:
        """The likeliest query of a product; "" only where there is no other."""
        return next((query for query, _ in self.top(1)), NO_PRODUCT)

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest queries of products with their probabilities, likeliest first."""
        products = ((query, probability) for query, probability in self.probabilities.items() if query != NO_PRODUCT)
        return heapq.nlargest(count, products, key=lambda pair: pair[1])

    def probability_of(self, query: str) -> float:
        """The probability of a query, folded; 0 where it is not known."""
        key = _folded(query)
        return sum(probability for other, probability in self.probabilities.items() if _folded(other) == key)

    def last_word_probability(self, word: str) -> float:
        """The probability that the query's last (or only) word is this one, folded."""
        return self._marginal(word, -1)

    def first_word_probability(self, word: str) -> float:
        """The probability that the query has two words and the first is this one, folded."""
        return self._marginal(word, 0)

    def last_words(self) -> list[tuple[str, float]]:
        """Every last (or only) word of a query with its probability, likeliest first."""
        return self._marginals(-1)

    def first_words(self) -> list[tuple[str, float]]:
        """Every first word of a query of two words with its probability, likeliest first."""
        return self._marginals(0)

    def _marginal(self, word: str, place: int) -> float:
        folded = fold(word)
        return sum(
            probability
            for query, probability in self.probabilities.items()
            if _has_word(query, place) and _folded(query)[place] == folded
        )

    def _marginals(self, place: int) -> list[tuple[str, float]]:
        sums: dict[str, float] = {}
        spellings: dict[str, tuple[float, str]] = {}
        for query, probability in self.probabilities.items():
            if _has_word(query, place):
                key = _folded(query)[place]
                sums[key] = sums.get(key, 0.0) + probability
                if key not in spellings or probability > spellings[key][0]:
                    spellings[key] = (probability, _words(query)[place])
        return sorted(((spellings[key][1], total) for key, total in sums.items()), key=lambda pair: -pair[1])


def head_distribution(classes: Sequence[str], logprobs: npt.NDArray[np.float32]) -> QueryDistribution:
    """What the query head says of one photo.

    Args:
        classes: the Q queries of the head.
        logprobs: float [Q], natural logarithms.
    """
    return QueryDistribution.of(zip(classes, np.exp(logprobs.astype(np.float64)).tolist(), strict=True))


def caption_distribution(hypotheses: Sequence[CaptionHypothesis]) -> QueryDistribution | None:
    """What the captions of one photo say: their last two words, weighted as `hypothesis_weights` does.

    Returns:
        None where no caption has words.
    """
    weights = hypothesis_weights(hypotheses)
    queries = [query_from_caption(one.text) for one in hypotheses]
    pairs = [(query, weight) for query, weight in zip(queries, weights, strict=True) if query]
    total = sum(weight for _, weight in pairs)
    return QueryDistribution.of((query, weight / total) for query, weight in pairs) if total > 0 else None


def hypothesis_weights(hypotheses: Sequence[CaptionHypothesis]) -> list[float]:
    """How likely the captions of one photo are beside each other; the likeliest has the weight 1.

    Captions are as likely as their tokens are in the mean, each taken to be as long as the first: what beam search
    ranked them by (with a length penalty of 1), or short captions would outweigh the one that was chosen.
    """
    means = [one.log_probability / max(one.num_tokens, 1) for one in hypotheses]
    best = max(means, default=0.0)
    return [math.exp(hypotheses[0].num_tokens * (mean - best)) for mean in means]


def photo_distribution(
    classes: Sequence[str], logprobs: npt.NDArray[np.float32], hypotheses: Sequence[CaptionHypothesis]
) -> QueryDistribution:
    """What head and captions together say of one photo.

    Args:
        classes: the Q queries of the head.
        logprobs: float [Q], natural logarithms.
        hypotheses: one greedy caption, or those of all beams, best first.
    """
    weight = BEAM_CAPTIONS_WEIGHT if len(hypotheses) > 1 else GREEDY_CAPTION_WEIGHT
    return head_distribution(classes, logprobs).mixed(caption_distribution(hypotheses), weight)


@functools.lru_cache(maxsize=2**16)
def _words(query: str) -> tuple[str, ...]:
    return tuple(words_of(query))


@functools.lru_cache(maxsize=2**16)
def _folded(query: str) -> tuple[str, ...]:
    return tuple(fold(word) for word in _words(query))


def _has_word(query: str, place: int) -> bool:
    """Whether a query has a last word (place -1), or a first one beside it (place 0)."""
    return len(_folded(query)) >= (2 if place == 0 else 1)
