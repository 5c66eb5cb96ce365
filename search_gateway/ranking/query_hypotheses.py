# SPDX-License-Identifier: Apache-2.0
"""Query hypotheses: the queries that may name the product of a photo, and the probability of each.

The captioner gives several captions with probabilities. If "white shirt" and "white tshirt" are both likely, a title
with either is better than one with neither. The products that look like the photo have names too. Both distributions
are mixed, as kNN-LM mixes a language model with the nearest neighbours in its data store (Khandelwal et
al., "Generalization through Memorization: Nearest Neighbor Language Models", ICLR 2020, https://arxiv.org/abs/1911.00172).
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from captioner.captions import Caption, Word
from captioner.query import QUERY_WORDS, Query, QueryRule, words_of
from captioner.query_distribution import CaptionHypothesis, QueryDistribution, hypothesis_weights
from captioner.searchable_words import salient_words
from captioner.word_folding import fold
from search_gateway.providers.base import Candidate

_MIN_LETTERS = 3  # minimum length of an alternative that counts as a word
MAX_HYPOTHESES = 8  # of the caption, and as many of the nearest neighbours; further ones change the scores very little

# The titles of the NUM_NAMES nearest neighbours count, each with the weight exp(SHARPNESS x cosine). docs/evaluation.md
# says what half or twice as much changes.
NUM_NAMES = 20
SHARPNESS = 40.0

# Words that this share of all titles have say nothing, if there are that many titles.
_SHARED = 0.9
_MIN_TITLES = 10
_JOINTS = re.compile(r"[\W_]+")
_PLAIN_WORD = re.compile(r"(?<!\S)[A-Za-z]{2,}(?!\S)")
_READ_CHARACTERS = 400  # of a title

# Words of file names that cameras, phones and computers give: "IMG_4312", "WhatsApp Image (2)", "Screenshot 7".
_FILE_NAME_WORDS = frozenset(
    {"copy", "dsc", "dscf", "dscn", "image", "images", "img", "mvimg", "pano", "photo", "photos", "pic", "picture",
     "pxl", "scan", "screenshot", "untitled", "whatsapp"}
)  # fmt: skip


@dataclass(frozen=True)
class QueryHypothesis:
    """A query and its probability, 0 to 1."""

    query: Query
    probability: float


@dataclass(frozen=True)
class QueryHypotheses:
    """A distribution over queries.

    Attributes:
        hypotheses: most likely first, at least one; their probabilities add up to 1.
    """

    hypotheses: tuple[QueryHypothesis, ...]

    @classmethod
    def certain(cls, query: Query) -> QueryHypotheses:
        """Return one query with probability 1, for a query that the caller gave."""
        return cls((QueryHypothesis(query, 1.0),))

    @classmethod
    def weighted(cls, weighted: Iterable[tuple[Query, float]]) -> QueryHypotheses | None:
        """Normalise weights; those of one name are added, in its likeliest spelling. None if all weights are 0."""
        sums: defaultdict[str, float] = defaultdict(float)
        likeliest: dict[str, tuple[float, Query]] = {}
        for query, weight in weighted:
            sums[query.spelling] += weight
            known = likeliest.get(query.spelling)
            if known is None or weight > known[0]:
                likeliest[query.spelling] = (weight, query)
        total = sum(sums.values())
        if not total > 0:
            return None
        ordered = sorted(sums.items(), key=lambda item: -item[1])
        return cls(tuple(QueryHypothesis(likeliest[one][1], weight / total) for one, weight in ordered if weight > 0))

    def most_likely(self, count: int) -> QueryHypotheses:
        """Return the first `count` hypotheses, normalised."""
        kept = QueryHypotheses.weighted((one.query, one.probability) for one in self.hypotheses[:count])
        assert kept is not None, "the first has a probability"
        return kept

    def mixed(self, others: QueryHypotheses | None, share: float) -> QueryHypotheses:
        """Mix with other hypotheses, if there are any; they get `share` of the probability, 0 to 1."""
        if others is None:
            return self
        both = QueryHypotheses.weighted(
            [(one.query, (1 - share) * one.probability) for one in self.hypotheses]
            + [(one.query, share * one.probability) for one in others.hypotheses]
        )
        assert both is not None, "probabilities add up to 1"
        return both

    def changed(self, change: Callable[[Query], Query]) -> QueryHypotheses:
        """Apply a function to each query; queries that become equal are merged."""
        changed = QueryHypotheses.weighted((change(one.query), one.probability) for one in self.hypotheses)
        assert changed is not None, "probabilities add up to 1"
        return changed

    def readings(self, query: Query) -> list[tuple[str, float]]:
        """Return what callers are told: the names of the photo with their probabilities.

        Args:
            query: what is searched for. If it is one of the names, it comes first; the others are most likely first.
        """
        own = [one for one in self.hypotheses if one.query.spelling == query.spelling]
        others = [one for one in self.hypotheses if one.query.spelling != query.spelling]
        words = " ".join(query.terms)
        return [
            *((one.query.text if one.query.terms == query.terms else words, one.probability) for one in own),
            *((one.query.text, one.probability) for one in others),
        ]


def photo_hypotheses(
    caption: Caption,
    rule: QueryRule,
    photo: npt.NDArray[np.float32],
    candidates: Sequence[Candidate],
    neighbour_weight: float,
    distribution: QueryDistribution | None = None,
) -> QueryHypotheses:
    """Mix the captioner's hypotheses with the names of the photo's nearest neighbours.

    Args:
        caption: with its alternatives.
        rule: how the query is made.
        photo: the photo's embedding, float32 [D], L2-normalised as those of the candidates.
        candidates: the nearest neighbours among them are used.
        neighbour_weight: the neighbours' share of the probability if there are any, 0 to 1.
        distribution: of the model's query head; None for a model without one.
    """
    return with_neighbours(caption_query_hypotheses(caption, rule, distribution), photo, candidates, neighbour_weight)


def with_neighbours(
    own: QueryHypotheses, photo: npt.NDArray[np.float32], candidates: Sequence[Candidate], neighbour_weight: float
) -> QueryHypotheses:
    """Mix the captioner's hypotheses, `own`, with the names of the nearest neighbours, as `photo_hypotheses` does."""
    wanted = [one.query for one in own.hypotheses]
    return own.mixed(neighbour_hypotheses(photo, candidates, wanted), neighbour_weight)


def caption_query_hypotheses(
    caption: Caption, rule: QueryRule, distribution: QueryDistribution | None = None
) -> QueryHypotheses:
    """Return the captioner's own hypotheses.

    With a query head, and any rule but `FULL_CAPTION`, they are its likeliest queries that name a product. Otherwise
    they come from the caption: with several beams the captions of all of them, weighted as `hypothesis_weights` does;
    with a greedy one the alternatives of its last words. The first tokens that can be words are combined as if they
    were independent, and the probability of the others is shared among these combinations.
    """
    if distribution is not None and rule is not QueryRule.FULL_CAPTION:
        likeliest = QueryHypotheses.weighted(
            (Query.of(text), probability) for text, probability in distribution.top(MAX_HYPOTHESES)
        )
        return QueryHypotheses.certain(Query.of(distribution.likeliest())) if likeliest is None else likeliest
    if caption.alternatives:
        hypotheses = [
            CaptionHypothesis(caption.text, caption.log_probability),
            *(CaptionHypothesis(one.text, one.log_probability) for one in caption.alternatives),
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
    queries = QueryHypotheses.weighted((Query.of_caption(text, rule), weight) for text, weight in weighted)
    if queries is None:  # probabilities may underflow
        return QueryHypotheses.certain(Query.of_caption(caption.text, rule))
    return queries.most_likely(MAX_HYPOTHESES)


def _options(word: Word) -> list[tuple[str, float]]:
    """Return what a word may be, by its first token; skips beginnings of longer words ("t", "ch") and codes."""
    others = [one for one in word.alternatives if one.text.isalpha() and len(one.text) >= _MIN_LETTERS]
    return [(word.text, word.first_probability), *((one.text, one.probability) for one in others)]


def neighbour_hypotheses(
    photo: npt.NDArray[np.float32], candidates: Sequence[Candidate], wanted: Sequence[Query] = ()
) -> QueryHypotheses | None:
    """Return the names of the photo's nearest neighbours: colour and thing of their titles, two words.

    Candidates that only the query's words found do not count, because they would repeat the query. Names without words,
    such as "14" or "IMG 4312", do not count either: in a catalogue without titles they are file names. Words that
    nearly all candidates' titles share ("for women") are left out.

    Args:
        photo: the photo's embedding, float32 [D], L2-normalised as those of the candidates.
        candidates: as the provider returned them.
        wanted: queries whose words are not left out: all candidates may have them because they were searched for.

    Returns:
        The hypotheses; None if no nearest neighbour has a name.
    """
    cosines = [
        (float(photo @ one.embedding), one.title)
        for one in candidates
        if one.is_nearest_neighbour and one.embedding is not None
    ]
    cosines.sort(key=lambda pair: -pair[0])
    shared = _shared_words(candidates, {fold(word) for query in wanted for word in query.words})
    nearest = [(cosine, _name(title, shared)) for cosine, title in cosines[:NUM_NAMES]]
    named = QueryHypotheses.weighted(
        (query, math.exp(SHARPNESS * (cosine - nearest[0][0])))
        for cosine, query in nearest
        if any(map(_is_word, query.words))
    )
    return None if named is None else named.most_likely(MAX_HYPOTHESES)


def names_something(title: str) -> bool:
    """Return whether a title has a word that may name a product, unlike "107", "IMG_2231" or ""."""
    return _names_something(title[:_READ_CHARACTERS])


@lru_cache(maxsize=4096)
def _names_something(title: str) -> bool:
    plain = _PLAIN_WORD.search(title)  # of nearly all titles, found at once
    if plain is not None and plain[0].lower() not in _FILE_NAME_WORDS:
        return True
    return any(_is_word(part.lower()) for word in words_of(title) for part in _JOINTS.split(word) if part)


def _shared_words(candidates: Sequence[Candidate], wanted: Collection[str]) -> frozenset[str]:
    """Return the words, folded, that nearly all titles have, such as "women"; without those that are searched for."""
    titles = [set(map(fold, words_of(one.title))) for one in candidates]
    titles = [words for words in titles if words]
    if len(titles) < _MIN_TITLES:
        return frozenset()
    counts = Counter(itertools.chain.from_iterable(titles))
    return frozenset(word for word, count in counts.items() if count >= _SHARED * len(titles) and word not in wanted)


def _name(title: str, shared: Collection[str]) -> Query:
    """Return the last two words of a title's colour and thing that not nearly all titles share."""
    words = _salient_words(title[:_READ_CHARACTERS])
    kept = [word for word in words if fold(word) not in shared]
    return Query.of_caption(" ".join(kept or words))


_salient_words = lru_cache(maxsize=4096)(salient_words)


def _is_word(word: str) -> bool:
    """Return whether a word, in lower case, may name a product: a number, a code or `_FILE_NAME_WORDS` does not."""
    if any(character.isdigit() for character in word) or word in _FILE_NAME_WORDS:
        return False
    return len(word) > 1 or not word.isascii()  # one letter is a word in some scripts
