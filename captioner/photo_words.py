# SPDX-License-Identifier: Apache-2.0
"""Turns a decoded photo into its caption, its query, and the probabilities of queries.

With the rule `LIKELIEST_WORDS` the query is the most likely one of the distribution, and the caption is made to end
with it. `SALIENT` takes colour and thing from this caption, or from the decoded one where the model has no query head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from captioner.caption_tokenizer import CaptionTokenizer
from captioner.captions import MAX_WORD_ALTERNATIVES, Caption, Word, WordAlternative, caption_of
from captioner.decoding import Hypothesis
from captioner.query import QUERY_WORDS, Query, QueryRule, caption_words, query_from_caption, words_of
from captioner.query_distribution import CaptionHypothesis, QueryDistribution, photo_distribution
from captioner.word_folding import fold


class DecodedPhoto(Protocol):
    """What the engine returns for one photo."""

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The decoded captions, best first."""
        ...

    @property
    def query_logprobs(self) -> npt.NDArray[np.float32] | None:
        """The log-probability of each query class, float32 [Q]; None for a model without a query head."""
        ...


@dataclass(frozen=True)
class PhotoWords:
    """The words of a photo.

    Attributes:
        caption: its caption.
        query: its query.
        rule: how the query was derived.
        distribution: the probabilities of queries; None for a model without a query head.
        paper_query: the last two words of the caption that was decoded; "" where `query` has the same words.
    """

    caption: Caption
    query: Query
    rule: QueryRule
    distribution: QueryDistribution | None = None
    paper_query: str = ""

    @property
    def no_product_probability(self) -> float:
        """The probability that the photo shows no product; 0 for a model without a query head."""
        return 0.0 if self.distribution is None else self.distribution.no_product_probability


def photo_words(
    decoded: DecodedPhoto, tokenizer: CaptionTokenizer, query_classes: Sequence[str], rule: QueryRule
) -> PhotoWords:
    """Derive the words of a decoded photo.

    Args:
        decoded: the photo.
        tokenizer: of its captions.
        query_classes: of the model's query head; empty for a model without one.
        rule: how to derive the query; `LIKELIEST_WORDS` needs a query head.
    """
    distribution = None
    caption = caption_of(decoded.hypotheses, tokenizer)
    texts = [caption.text, *(one.text for one in caption.alternatives)]
    if query_classes:
        assert decoded.query_logprobs is not None, "a model with a query head says how likely each query is"
        hypotheses = [
            CaptionHypothesis(text, one.log_probability) for text, one in zip(texts, decoded.hypotheses, strict=True)
        ]
        distribution = photo_distribution(query_classes, decoded.query_logprobs, hypotheses)
    paper = query_from_caption(caption.text)
    if rule is QueryRule.LIKELIEST_WORDS or (rule is QueryRule.SALIENT and distribution is not None):
        assert distribution is not None, "the rule was checked against the contract"
        likeliest = distribution.likeliest()
        best = next((place for place, text in enumerate(texts) if _ends_with(text, likeliest)), 0)
        if best:
            others = [*decoded.hypotheses[:best], *decoded.hypotheses[best + 1 :]]
            caption = caption_of([decoded.hypotheses[best], *others], tokenizer)
        caption = ending_with(caption, likeliest, distribution)
        query = Query.of(likeliest if rule is QueryRule.LIKELIEST_WORDS else query_from_caption(caption.text, rule))
    else:
        query = Query.of_caption(caption.text, rule)
    differs = Query.of(paper).spelling != query.spelling
    return PhotoWords(caption, query, rule, distribution, paper if differs else "")


def ending_with(caption: Caption, query: str, distribution: QueryDistribution) -> Caption:
    """Make a caption end with a query.

    If the caption ends with other words, the query replaces its last two words; if it ends with another spelling of the
    query ("Shirts"), it gets the query's spelling. Its log-probability stays that of the decoded caption.

    Args:
        caption: the decoded caption.
        query: one or two words in lower case.
        distribution: has the probabilities and alternatives of the query's words.
    """
    wanted = caption_words(query)
    places = [place for place, word in enumerate(caption.words) if words_of(word.text)]
    is_end = _ends_with(caption.text, query)
    last = places[-len(wanted) :] if is_end else places[-QUERY_WORDS:]
    own = [" ".join(words_of(caption.words[place].text)) for place in last]
    if [word.lower() for word in own] == query.split():
        words = list(caption.words)
        for place, word in zip(
            last, _query_words([caption.words[place].text for place in last], distribution), strict=True
        ):
            words[place] = word
        return replace(caption, words=tuple(words))
    kept = caption.words[: last[0]] if last else caption.words
    words = [*kept, *_query_words(wanted, distribution)]
    text = " ".join(word.text for word in words if word.text)
    return replace(caption, text=text, words=tuple(words), ends_edited=True)


def _query_words(texts: Sequence[str], distribution: QueryDistribution) -> list[Word]:
    """Return the words of a query as words of a caption."""
    likeliest = MAX_WORD_ALTERNATIVES + 1
    probability = distribution.last_word_probability(texts[-1])
    last = _word(texts[-1], probability, distribution.last_words(likeliest))
    if len(texts) == 1:
        return [last]
    probability = distribution.first_word_probability(texts[0])
    return [_word(texts[0], probability, distribution.first_words(likeliest)), last]


def _word(text: str, probability: float, words: Sequence[tuple[str, float]]) -> Word:
    """Make a word with its alternatives from the most likely words for its place."""
    others = [
        WordAlternative(" ".join(caption_words(other)), share)
        for other, share in words
        if fold(other) != fold(text) and share > 0
    ]
    return Word(text, probability, tuple(others[:MAX_WORD_ALTERNATIVES]), probability)


def _ends_with(text: str, query: str) -> bool:
    """Return whether a caption ends with the query's words, both folded."""
    wanted = [fold(word) for word in words_of(query)]
    return bool(wanted) and [fold(word) for word in words_of(text)[-len(wanted) :]] == wanted
