# SPDX-License-Identifier: Apache-2.0
"""How well titles agree with what a photo may be called, the mean over its readings. Pure text and numbers.

The score is relative to the best that a title could say: one with the most fitting of the readings has 1, however
unsure they are, so that a limit means the same for every photo. With one certain reading it is the agreement with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search_gateway.ranking.query_hypotheses import Reading, Readings
from search_gateway.ranking.word_agreement import (
    QueryWords,
    Synonyms,
    TextWords,
    WantedWord,
    WordWeights,
    wanted_words,
    wording,
)

_LEAST_TOLD = 0.05  # probability of a reading that is worth a word in a reason


@dataclass(frozen=True)
class Agreement:
    """Attributes:
    score: 0 to 1.
    wording: what a title does or does not say, to go on after "its title".
    is_open: whether the title leaves a word of the query open, so that its picture may be asked.
    """

    score: float
    wording: str
    is_open: bool


class ExpectedAgreement:
    """A query without words agrees with everything.

    Args:
        query: what is searched for; the wording is about it.
        readings: what the photo may be called, `Readings.certain(query)` where that is known.
    """

    def __init__(self, query: str, readings: Readings, synonyms: Synonyms, weights: WordWeights):
        self._synonyms = synonyms
        self._weights = weights
        self._query = QueryWords.of(query, synonyms.colours)
        # The mean over readings is a sum over their words, and readings share words: each is looked up once per title.
        self._places: dict[WantedWord, int] = {}
        self._shares: list[float] = []
        self._agreed = 0.0  # the share of readings without words
        self._own = self._add(self._query, 0.0)
        self._told: list[tuple[Reading, list[int]]] = []  # others than the query that a reason may name
        names = []
        for one in readings.readings:
            words = QueryWords.of(one.query, synonyms.colours)
            places = self._add(words, one.probability)
            if one.query and one.query != query and one.probability >= _LEAST_TOLD:
                self._told.append((one, places))
            names.append(TextWords(one.query, synonyms))
        self._most_likely = readings.readings[0]
        self._nothing = TextWords("", synonyms)
        self._best = max(self._mean([value for value, _ in self._values(name, self._nothing)]) for name in names)

    def of(self, title: str, picture_words: str = "") -> Agreement:
        """The agreement of a title.

        Args:
            picture_words: the last words of the caption of the title's picture; empty where nobody asked for it.
        """
        text = TextWords(title, self._synonyms)
        picture = TextWords(picture_words, self._synonyms) if picture_words else self._nothing
        found = self._values(text, picture)
        values = [value for value, _ in found]
        score = min(max(self._mean(values) / self._best, 0.0), 1.0) if self._best > 0 else 0.0
        said = wording(self._query, text, self._synonyms) + self._other_name(values)
        return Agreement(score, said, is_open=any(found[place][1] for place in self._own))

    def _add(self, words: QueryWords, probability: float) -> list[int]:
        """The places of a reading's words, where they count as much more as it is likely."""
        if not words.words:
            self._agreed += probability
            return []
        places = []
        wanted = wanted_words(words, self._synonyms)
        for word, weight in zip(wanted, words.weights(self._weights.thing_weight), strict=True):
            place = self._places.setdefault(word, len(self._shares))
            if place == len(self._shares):
                self._shares.append(0.0)
            self._shares[place] += probability * weight
            places.append(place)
        return places

    def _values(self, title: TextWords, picture: TextWords) -> list[tuple[float, bool]]:
        return [word.value(title, picture, self._weights) for word in self._places]

    def _mean(self, values: Sequence[float]) -> float:
        return self._agreed + sum(share * value for share, value in zip(self._shares, values, strict=True))

    def _other_name(self, values: Sequence[float]) -> str:
        """What the query's words alone would not explain: that the title fits, or lacks, what else the photo may be."""

        def fits(places: Sequence[int]) -> bool:
            return bool(places) and all(values[place] >= 1 for place in places)

        fitting = next((one for one, places in self._told if fits(places)), None)
        if not fits(self._own):
            if fitting is None:
                return ""
            return f", but has every word of {_shown(fitting)}, which the photo may be, too"
        likelier = self._told and self._told[0][0] is self._most_likely
        if likelier and not fits(self._told[0][1]):
            return f", but the photo is rather {_shown(self._most_likely)}"
        return ""


def _shown(reading: Reading) -> str:
    return f"{reading.query!r} ({reading.probability:.2f})"
