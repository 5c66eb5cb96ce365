# SPDX-License-Identifier: Apache-2.0
"""How likely each query is for a photo: by the encoder's query head, by the captions, and by both. Pure.

Queries whose words are equal when folded (`captioner.word_folding`) are one query, in its likeliest spelling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captioner.query import query_from_caption, words_of
from captioner.query_classes import NO_PRODUCT
from captioner.word_folding import fold

# Share of the probability that the captions get beside the query head. With `fashion-small` any share costs more than
# it gives (`benchmarks.query_rules`, 532 studio photos: last two words right for 37.6 % by the head alone, 36.1 % with
# 4 beams at 0.3, 37.4 % with 8 beams at 0.3).
GREEDY_CAPTION_WEIGHT = 0.0
BEAM_CAPTIONS_WEIGHT = 0.0


@dataclass(frozen=True)
class CaptionHypothesis:
    """A finished caption as decoding ranks it.

    Attributes:
        log_probability: of all its tokens, in nats.
    """

    text: str
    log_probability: float


class QueryVocabulary:
    """Queries, and which of them are equal or share a word; made once for the classes of a query head.

    Args:
        queries: in the order of the shares of a `QueryDistribution`; "" means that the photo shows no product.
    """

    def __init__(self, queries: Sequence[str]):
        self.queries = tuple(queries)
        keys = [_folded(query) for query in self.queries]
        self.whole = QueryGroups(keys)
        self.last = QueryGroups([key[-1] if key else None for key in keys])
        self.first = QueryGroups([key[0] if len(key) > 1 else None for key in keys])
        self.no_product = self.whole.ids.get((), -1)

    def word(self, query: int, place: int) -> str:
        """The word of a query at a place, 0 or -1, as it is spelled."""
        return _words(self.queries[query])[place]


class QueryGroups:
    """Queries in groups of equal keys, such as their last words.

    Args:
        keys: one for each query; None: the query is in no group.

    Attributes:
        ids: the number of each key's group, in the order of the keys.
        numbers: int64 [n], the group of each query; -1: none.
        members: the places of each group's queries.
    """

    def __init__(self, keys: Sequence[Hashable]):
        self.ids: dict[Hashable, int] = {}
        numbers = [-1 if key is None else self.ids.setdefault(key, len(self.ids)) for key in keys]
        self.numbers = np.array(numbers, dtype=np.int64)
        self.members: list[list[int]] = [[] for _ in self.ids]
        for place, number in enumerate(numbers):
            if number >= 0:
                self.members[number].append(place)


@functools.lru_cache(maxsize=8)
def vocabulary_of(queries: tuple[str, ...]) -> QueryVocabulary:
    """The vocabulary of a query head's classes, made once: 1,000 of them take some 10 ms."""
    return QueryVocabulary(queries)


class QueryDistribution:
    """The probabilities of queries.

    Args:
        vocabulary: n queries.
        shares: float64 [n], their probabilities, whose sum is 1.
    """

    def __init__(self, vocabulary: QueryVocabulary, shares: npt.NDArray[np.float64]):
        self._vocabulary, self._shares = vocabulary, shares

    @classmethod
    def of(cls, weighted: Iterable[tuple[str, float]]) -> QueryDistribution:
        """Build a distribution from queries with probabilities that add up to 1; equal queries are added up."""
        pairs = list(weighted)
        return cls(
            QueryVocabulary([query for query, _ in pairs]), np.array([share for _, share in pairs], dtype=np.float64)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QueryDistribution) and self.probabilities == other.probabilities

    __hash__ = None  # type: ignore[assignment]

    @property
    def probabilities(self) -> dict[str, float]:
        """Query -> probability, each query in its likeliest spelling."""
        groups, queries = self._vocabulary.whole, self._vocabulary.queries
        return {queries[self._spelt(groups, group)]: float(share) for group, share in enumerate(self._sums(groups))}

    def mixed(self, captions: QueryDistribution | None, weight: float) -> QueryDistribution:
        """Mix this distribution with that of the captions.

        Args:
            captions: None where no caption has words.
            weight: share of the captions, 0 to 1.
        """
        if captions is None or weight == 0:
            return self
        return QueryDistribution.of(
            [(query, (1 - weight) * share) for query, share in zip(*self._parts(), strict=True)]
            + [(query, weight * share) for query, share in zip(*captions._parts(), strict=True)]
        )

    def _parts(self) -> tuple[tuple[str, ...], list[float]]:
        return self._vocabulary.queries, self._shares.tolist()

    @functools.cached_property
    def no_product_probability(self) -> float:
        """How likely it is that the photo shows no product."""
        return float(self._shares[self._vocabulary.whole.numbers == self._vocabulary.no_product].sum())

    def likeliest(self) -> str:
        """The likeliest query of a product; "" only where there is no other."""
        return next((query for query, _ in self.top(1)), NO_PRODUCT)

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest queries of products with their probabilities, likeliest first."""
        vocabulary = self._vocabulary
        sums, order = self._likeliest_queries
        likeliest = [group for group in order[: count + 1].tolist() if group != vocabulary.no_product][:count]
        return [(vocabulary.queries[self._spelt(vocabulary.whole, group)], float(sums[group])) for group in likeliest]

    @functools.cached_property
    def _likeliest_queries(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """The probability of each group of equal queries, and the groups, likeliest first."""
        sums = self._sums(self._vocabulary.whole)
        return sums, _largest_first(sums)

    def probability_of(self, query: str) -> float:
        """The probability of a query, folded; 0 where it is not known."""
        return self._share_of(self._vocabulary.whole, _folded(query))

    def last_word_probability(self, word: str) -> float:
        """The probability that the query's last (or only) word is this one, folded."""
        return self._share_of(self._vocabulary.last, fold(word))

    def first_word_probability(self, word: str) -> float:
        """The probability that the query has two words and the first is this one, folded."""
        return self._share_of(self._vocabulary.first, fold(word))

    def _share_of(self, groups: QueryGroups, key: Hashable) -> float:
        number = groups.ids.get(key)
        return 0.0 if number is None else float(self._shares[groups.members[number]].sum())

    def last_words(self, count: int | None = None) -> list[tuple[str, float]]:
        """The `count` likeliest last (or only) words of a query with their probabilities; None: all."""
        return self._words(self._vocabulary.last, -1, count)

    def first_words(self, count: int | None = None) -> list[tuple[str, float]]:
        """The `count` likeliest first words of a query of two words with their probabilities; None: all."""
        return self._words(self._vocabulary.first, 0, count)

    def _words(self, groups: QueryGroups, place: int, count: int | None) -> list[tuple[str, float]]:
        sums = self._sums(groups)
        return [
            (self._vocabulary.word(self._spelt(groups, number), place), float(sums[number]))
            for number in _largest_first(sums)[:count].tolist()
        ]

    def _sums(self, groups: QueryGroups) -> npt.NDArray[np.float64]:
        """The probability of each group, float64."""
        known = groups.numbers >= 0
        return np.bincount(groups.numbers[known], self._shares[known], minlength=len(groups.ids)).astype(float)

    def _spelt(self, groups: QueryGroups, number: int) -> int:
        """The place of a group's likeliest query, the first of equals."""
        return max(groups.members[number], key=self._shares.__getitem__)


def _largest_first(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Places of the values, largest first; of equals the first comes first."""
    return np.argsort(-sums, kind="stable")


def head_distribution(classes: Sequence[str], logprobs: npt.NDArray[np.float32]) -> QueryDistribution:
    """What the query head says of one photo.

    Args:
        classes: the Q queries of the head.
        logprobs: float [Q], natural logarithms.

    Raises:
        ValueError: these are no log-probabilities.
    """
    shares = np.exp(logprobs.astype(np.float64))
    total = float(shares.sum())
    if not abs(total - 1) < 0.02:  # also where one is no number
        raise ValueError(f"the query head's probabilities add up to {total:.3g} instead of 1: export the model again")
    return QueryDistribution(vocabulary_of(tuple(classes)), shares)


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
    """How probable the captions of one photo are beside each other; the most probable has the weight 1."""
    best = max((one.log_probability for one in hypotheses), default=0.0)
    return [math.exp(one.log_probability - best) for one in hypotheses]


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
    head = head_distribution(classes, logprobs)
    return head.mixed(caption_distribution(hypotheses), weight) if weight else head


@functools.lru_cache(maxsize=2**16)
def _words(query: str) -> tuple[str, ...]:
    return tuple(words_of(query))


@functools.lru_cache(maxsize=2**16)
def _folded(query: str) -> tuple[str, ...]:
    return tuple(fold(word) for word in _words(query))
