# SPDX-License-Identifier: Apache-2.0
"""Semantic score: how well a title agrees with a photo's query hypotheses, in the mean over them.

The score is relative to the best possible title: a title that equals the best hypothesis has the score 1, however
uncertain the hypotheses are, so that a threshold means the same for every photo. With one certain hypothesis the score
is the agreement with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from captioner.query import Query
from search_gateway.ranking.findings import Finding, title_wording
from search_gateway.ranking.product_reading import Grades, ProductReading
from search_gateway.ranking.query_hypotheses import QueryHypotheses, QueryHypothesis, names_something
from search_gateway.ranking.word_agreement import (
    Synonyms,
    TextWords,
    WantedWord,
    WordWeights,
    title_findings,
    wanted_words,
    word_weights,
)

_LOW = 0.5  # score of a title that has every word but names another product
_MIN_TOLD = 0.05  # minimum probability of a hypothesis that a reason names


@dataclass(frozen=True)
class Agreement:
    """How well a title agrees.

    Attributes:
        score: 0 to 1.
        findings: what the title says or lacks.
    """

    score: float
    findings: tuple[Finding, ...]

    @property
    def wording(self) -> str:
        """The findings in words; continues the words "its title"."""
        return title_wording(self.findings)


class ExpectedAgreement:
    """Scores titles for one photo. A query without words agrees with every title.

    Args:
        query: what is searched for; the wording refers to it.
        hypotheses: what the photo may show; `QueryHypotheses.certain(query)` if the caller gave the query.
        synonyms: words that agree with each other.
        weights: of the query's words.
    """

    def __init__(self, query: Query, hypotheses: QueryHypotheses, synonyms: Synonyms, weights: WordWeights):
        self._synonyms = synonyms
        self._weights = weights
        self._query = query
        # The mean over hypotheses is a sum over their words. They share words, so each is looked up once per title.
        self._places: dict[WantedWord, int] = {}
        self._shares: list[float] = []
        self._agreed = 0.0  # the probability of hypotheses without words
        self._own = self._add(query, 0.0)
        self._told: list[
            tuple[QueryHypothesis, list[int]]
        ] = []  # hypotheses other than the query that a reason may name
        for one in hypotheses.hypotheses:
            places = self._add(one.query, one.probability)
            if one.query.text and one.query.spelling != query.spelling and one.probability >= _MIN_TOLD:
                self._told.append((one, places))
        self._words = list(self._places)
        self._hypotheses = hypotheses.hypotheses
        self._most_likely = hypotheses.hypotheses[0]

    @cached_property
    def _best(self) -> float:
        """The mean of the best of the hypotheses, taken as titles."""
        names = (TextWords(one.query, self._synonyms) for one in self._hypotheses)
        return max(self._mean(self._values(name)) for name in names)

    def of(self, title: str) -> Agreement:
        """Return the agreement of a candidate's title."""
        values = self._values(TextWords.of(title, self._synonyms))
        return Agreement(self._score(values), self.findings(title))

    def grades(self, titles: Sequence[str]) -> Grades:
        """Return the agreement of titles."""
        scores = np.array([self._score(self._values(TextWords.of(one, self._synonyms))) for one in titles], np.float64)
        says = np.array([names_something(one) or not self._query.text for one in titles], bool)
        return Grades(scores, says, says, {"words": scores})

    def findings(self, title: str, reading: ProductReading | None = None, score: float = 1.0) -> tuple[Finding, ...]:
        """Return what a title says or lacks.

        Args:
            title: of a candidate.
            reading: if titles are read as a whole.
            score: that the reading gives the title.
        """
        text = TextWords.of(title, self._synonyms)
        other = self._other_name(text)
        if reading is None:
            return (*title_findings(self._query, text, self._synonyms), *other)
        meant, colour = reading.agreed(title)
        said = title_findings(self._query, text, self._synonyms, meant, colour)
        if not other and not said and score < _LOW:
            other = [Finding("rather", (reading.likeliest(),))]
        elif other and other[0].kind == "rather" and score >= _LOW:
            other = []
        return (*said, *other)

    def _score(self, values: Sequence[float]) -> float:
        return min(max(self._mean(values) / self._best, 0.0), 1.0) if self._best > 0 else 0.0

    def _add(self, query: Query, probability: float) -> list[int]:
        """Add a hypothesis's probability to the weights of its words; returns the places of the words."""
        if not query.terms:
            self._agreed += probability
            return []
        places = []
        wanted = wanted_words(query, self._synonyms)
        for word, weight in zip(wanted, word_weights(query, self._weights.product_type_weight), strict=True):
            place = self._places.setdefault(word, len(self._shares))
            if place == len(self._shares):
                self._shares.append(0.0)
            self._shares[place] += probability * weight
            places.append(place)
        return places

    def _values(self, title: TextWords) -> list[float]:
        return [word.value(title, self._weights) for word in self._words]

    def _mean(self, values: Sequence[float]) -> float:
        return self._agreed + sum(share * value for share, value in zip(self._shares, values, strict=True))

    def _other_name(self, title: TextWords) -> list[Finding]:
        """Return what the query's words do not tell: that the title has, or lacks, the words of another hypothesis."""

        def fits(places: Sequence[int]) -> bool:
            return bool(places) and all(self._words[place].value(title, self._weights) >= 1 for place in places)

        fitting = next((one for one, places in self._told if fits(places)), None)
        if not fits(self._own):
            return [] if fitting is None else [_named("fits", fitting)]
        likelier = self._told and self._told[0][0] is self._most_likely
        if likelier and not fits(self._told[0][1]):
            return [_named("rather", self._most_likely)]
        return []


def _named(kind: str, hypothesis: QueryHypothesis) -> Finding:
    return Finding(kind, (hypothesis.query.text,), hypothesis.probability)
