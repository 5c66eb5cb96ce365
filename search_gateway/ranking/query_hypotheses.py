# SPDX-License-Identifier: Apache-2.0
"""What a photo may be called: queries and how likely each is. Pure text and numbers.

A caption is a guess, and the captioner says how sure it is. Where it wavers between "white shirt" and "white tshirt", a
title with either is better than one with neither. The products that look like the photo have names, too: both
distributions are mixed, as kNN-LM mixes a language model with the nearest neighbours in what it has seen (Khandelwal et
al., "Generalization through Memorization: Nearest Neighbor Language Models", ICLR 2020, https://arxiv.org/abs/1911.00172).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captioner.captions import Caption, Word
from captioner.query import QUERY_WORDS, QueryRule, query_from_caption
from captioner.query_distribution import CaptionHypothesis, QueryDistribution, hypothesis_weights
from search_gateway.providers.base import Candidate

_FEWEST_LETTERS = 3  # of what can be a word by itself
MAX_READINGS = 8  # of a caption, and as many of the lookalikes: the tail is long and adds next to nothing

# So many lookalikes are asked for their names, each with the weight exp(SHARPNESS x cosine). What half or twice as much
# changes: docs/evaluation.md.
NUM_NAMES = 20
SHARPNESS = 40.0


@dataclass(frozen=True)
class Reading:
    query: str
    probability: float


@dataclass(frozen=True)
class Readings:
    """Attributes:
    readings: most likely first, at least one; their probabilities add up to 1.
    """

    readings: tuple[Reading, ...]

    @classmethod
    def certain(cls, query: str) -> Readings:
        """What somebody said who knows."""
        return cls((Reading(query, 1.0),))

    @classmethod
    def weighted(cls, weighted: Iterable[tuple[str, float]]) -> Readings | None:
        """Queries with weights of any sum; equal ones are added up. None where nothing has weight."""
        sums: defaultdict[str, float] = defaultdict(float)
        for query, weight in weighted:
            sums[query] += weight
        total = sum(sums.values())
        if not total > 0:
            return None
        ordered = sorted(sums.items(), key=lambda item: -item[1])
        return cls(tuple(Reading(query, weight / total) for query, weight in ordered if weight > 0))

    def most_likely(self, count: int) -> Readings:
        """The first `count`, with the probability of the rest shared among them."""
        kept = Readings.weighted((one.query, one.probability) for one in self.readings[:count])
        assert kept is not None, "the first has a probability"
        return kept

    def mixed(self, others: Readings | None, share: float) -> Readings:
        """These and others, which get `share` of the probability, 0 to 1."""
        if others is None:
            return self
        both = Readings.weighted(
            [(one.query, (1 - share) * one.probability) for one in self.readings]
            + [(one.query, share * one.probability) for one in others.readings]
        )
        assert both is not None, "probabilities add up to 1"
        return both

    def changed(self, change: Callable[[str], str]) -> Readings:
        """Each query changed; those that become equal are one."""
        changed = Readings.weighted((change(one.query), one.probability) for one in self.readings)
        assert changed is not None, "probabilities add up to 1"
        return changed


def photo_readings(
    caption: Caption,
    rule: QueryRule,
    photo: npt.NDArray[np.float32],
    candidates: Sequence[Candidate],
    lookalike_weight: float,
    distribution: QueryDistribution | None = None,
) -> Readings:
    """What the captioner considers, and what the products that look like the photo are called.

    Args:
        photo: the photo's embedding, [D], L2-normalised as those of the candidates.
        lookalike_weight: share of the probability that the lookalikes' names get where there are any, 0 to 1.
        distribution: of the model's query head; None where it has none.
    """
    return caption_readings(caption, rule, distribution).mixed(lookalike_readings(photo, candidates), lookalike_weight)


def caption_readings(caption: Caption, rule: QueryRule, distribution: QueryDistribution | None = None) -> Readings:
    """What the captioner considers: the captions of all beams; of a greedy one, what else its last words could be.

    A model with a query head says itself how likely each query is: then the readings are its likeliest queries of
    products. Only with the rule `FULL_CAPTION` they are whole captions, and what follows holds.

    Beams are weighted as `hypothesis_weights` does.

    A greedy caption knows other first tokens for each of its words, given the words before. Those that can be words are
    combined as if one did not depend on the other, and what they leave out is shared among them.
    """
    if distribution is not None and rule is not QueryRule.FULL_CAPTION:
        likeliest = Readings.weighted(distribution.top(MAX_READINGS))
        return Readings.certain(distribution.likeliest()) if likeliest is None else likeliest
    if caption.alternatives:
        hypotheses = [
            CaptionHypothesis(caption.text, caption.log_probability, caption.num_tokens),
            *(CaptionHypothesis(one.text, one.log_probability, one.num_tokens) for one in caption.alternatives),
        ]
        weights = hypothesis_weights(hypotheses)
        weighted = [(one.text, weight) for one, weight in zip(hypotheses, weights, strict=True)]
    else:
        kept = [word.text for word in caption.words[:-QUERY_WORDS]]
        options = [_options(word) for word in caption.words[-QUERY_WORDS:]]
        weighted = [
            (" ".join([*kept, *(text for text, _ in chosen)]), math.prod(probability for _, probability in chosen))
            for chosen in itertools.product(*options)
        ]
    readings = Readings.weighted((query_from_caption(text, rule), weight) for text, weight in weighted)
    if readings is None:  # probabilities may underflow
        return Readings.certain(query_from_caption(caption.text, rule))
    return readings.most_likely(MAX_READINGS)


def _options(word: Word) -> list[tuple[str, float]]:
    """What a word could be, by its first token; the beginning of a longer one ("t", "ch") or a code says nothing."""
    others = [one for one in word.alternatives if one.text.isalpha() and len(one.text) >= _FEWEST_LETTERS]
    return [(word.text, word.first_probability), *((one.text, one.probability) for one in others)]


def lookalike_readings(photo: npt.NDArray[np.float32], candidates: Sequence[Candidate]) -> Readings | None:
    """What the candidates that were found by their looks are called: the last words of their titles.

    Those found by the words of the query alone are not asked: they would only say it once more. None where nobody was
    found by looks.

    Args:
        photo: the photo's embedding, [D], L2-normalised as those of the candidates.
    """
    cosines = [
        (float(photo @ one.embedding), one.title)
        for one in candidates
        if one.is_lookalike and one.embedding is not None
    ]
    cosines.sort(key=lambda pair: -pair[0])
    nearest = cosines[:NUM_NAMES]
    named = Readings.weighted(
        (query_from_caption(title), math.exp(SHARPNESS * (cosine - nearest[0][0])))
        for cosine, title in nearest
        if query_from_caption(title)
    )
    return None if named is None else named.most_likely(MAX_READINGS)
