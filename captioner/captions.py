# SPDX-License-Identifier: Apache-2.0
"""Decoded tokens -> a caption of words with probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from captioner.caption_tokenizer import CaptionTokenizer
from captioner.decoding import DecodedToken, Hypothesis

MAX_WORD_ALTERNATIVES = 3


@dataclass(frozen=True)
class WordAlternative:
    """What the model would have begun a word with instead; of a query's words, what else the word may be."""

    text: str
    probability: float


@dataclass(frozen=True)
class Word:
    text: str
    probability: float  # product over the word's tokens; of a query's words their share of the query distribution
    alternatives: tuple[WordAlternative, ...]
    first_probability: float  # of its first token alone: what those of `alternatives` compare with


@dataclass(frozen=True)
class CaptionAlternative:
    """Another finished hypothesis of beam search."""

    text: str
    log_probability: float  # of all tokens, in nats


@dataclass(frozen=True)
class Caption:
    text: str
    words: tuple[Word, ...]
    log_probability: float  # of all tokens, in nats
    complete: bool  # False where max_tokens cut it
    alternatives: tuple[CaptionAlternative, ...]  # best first
    ends_edited: bool = False  # its last words are the query's, which were not decoded


def caption_of(hypotheses: Sequence[Hypothesis], tokenizer: CaptionTokenizer) -> Caption:
    """The caption of the best hypothesis; the others become its alternatives."""
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
    """Candidates for a word's first token that also begin a word, the chosen one left out."""
    found = []
    pairs = zip(first.candidate_tokens.tolist(), first.candidate_logprobs.tolist(), strict=True)
    for token, log_probability in pairs:
        text = tokenizer.text([token])
        # A token may also be the mere space before a word that is rare.
        if text and token != first.token and tokenizer.starts_word(token):
            found.append(WordAlternative(text, math.exp(log_probability)))
    return tuple(found[:MAX_WORD_ALTERNATIVES])
