# SPDX-License-Identifier: Apache-2.0
"""Turns decoded tokens into a caption of words with probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from captioner.caption_tokenizer import CaptionTokenizer
from captioner.decoding import DecodedToken, Hypothesis

MAX_WORD_ALTERNATIVES = 3


@dataclass(frozen=True)
class WordAlternative:
    """Another first token of a word, or for a word of the query another word."""

    text: str
    probability: float


@dataclass(frozen=True)
class Word:
    """One word of a caption.

    Attributes:
        text: the word.
        probability: product over its tokens; for a word of the query its share of the query distribution.
        alternatives: most probable first.
        first_probability: of its first token alone, to which the probabilities of `alternatives` compare.
    """

    text: str
    probability: float
    alternatives: tuple[WordAlternative, ...]
    first_probability: float


@dataclass(frozen=True)
class CaptionAlternative:
    """Another finished hypothesis of beam search."""

    text: str
    log_probability: float  # of all tokens, in nats


@dataclass(frozen=True)
class Caption:
    """The caption of a photo."""

    text: str
    words: tuple[Word, ...]
    log_probability: float  # of all tokens, in nats
    complete: bool  # False if it was cut at max_tokens
    alternatives: tuple[CaptionAlternative, ...]  # best first
    ends_edited: bool = False  # whether its last words were replaced by those of the query


def caption_of(hypotheses: Sequence[Hypothesis], tokenizer: CaptionTokenizer) -> Caption:
    """Make the caption of the best hypothesis; the others become its alternatives.

    Args:
        hypotheses: best first, at least one.
        tokenizer: of their tokens.
    """
    best = hypotheses[0]
    text = tokenizer.text([token.token for token in best.tokens])
    others = tuple(
        CaptionAlternative(tokenizer.text([token.token for token in other.tokens]), other.log_probability)
        for other in hypotheses[1:]
    )
    words = _words(best.tokens, tokenizer)
    return Caption(text, words, best.log_probability, best.complete, others)


def _words(tokens: Sequence[DecodedToken], tokenizer: CaptionTokenizer) -> tuple[Word, ...]:
    words = []
    for start, end in tokenizer.word_spans([token.token for token in tokens]):
        span = tokens[start:end]
        probability = math.exp(sum(token.log_probability for token in span))
        text = tokenizer.text([token.token for token in span])
        first_probability = math.exp(span[0].log_probability)
        words.append(Word(text, probability, _alternatives(span[0], tokenizer), first_probability))
    return tuple(words)


def _alternatives(first: DecodedToken, tokenizer: CaptionTokenizer) -> tuple[WordAlternative, ...]:
    """Return the other candidates for a word's first token that begin a word, too."""
    found: list[WordAlternative] = []
    pairs = zip(first.candidate_tokens.tolist(), first.candidate_logprobs.tolist(), strict=True)
    for token, log_probability in pairs:
        if len(found) == MAX_WORD_ALTERNATIVES:
            break
        # The token of a rare word may be the space before it alone.
        if token != first.token and tokenizer.starts_word(token) and (text := tokenizer.text([token])):
            found.append(WordAlternative(text, math.exp(log_probability)))
    return tuple(found)
