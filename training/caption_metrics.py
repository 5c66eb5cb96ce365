# SPDX-License-Identifier: Apache-2.0
"""BLEU-4, ROUGE-L and CIDEr of captions against one true name each. Pure text; knows no model and no photo.

BLEU and ROUGE come from torchmetrics. CIDEr is our own: the library that has it, pycocoevalcap, brings 100 MB of Java.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torchmetrics.functional.text import bleu_score, rouge_score

from captioner.query import words_of

MAX_NGRAM = 4
LENGTH_SIGMA = 6.0  # words; CIDEr-D's tolerance for a difference in length
CIDER_SCALE = 10.0

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class CaptionMetrics:
    """How alike captions and true names are; more is better.

    Attributes:
        bleu4: 0 to 1. Of the whole corpus, without smoothing: 0 if no four words in a row are right anywhere.
        rouge_l: 0 to 1. F1 of the longest common subsequence, mean over the captions.
        cider: 0 to 10, as it is usually reported (CIDEr-D). Names below four words do not reach 10, since they have no
            n-grams of the higher orders: a name of two words that is captioned perfectly scores 5.
    """

    bleu4: float
    rouge_l: float
    cider: float


def caption_metrics(captions: Sequence[str], names: Sequence[str]) -> CaptionMetrics:
    """Compare captions with the true names, one reference each.

    Words are `captioner.query.words_of` in lower case, the words a search would use: "Blue," is "blue", "T-shirt" stays
    one word. Library tokenizers differ in just that (ROUGE's cuts at hyphens, BLEU's splits off commas), so that three
    figures of one caption would judge three different texts. They are therefore comparable with each other and between
    our checkpoints, and roughly with published ones, whose tokenizer (COCO's, in Java) also drops punctuation.

    CIDEr weighs n-grams by how rare they are among the references, here `names`: it depends on which products are
    evaluated, so compare checkpoints on the same ones.

    Sources: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE), Vedantam et al. 2015 (CIDEr).

    Raises:
        ValueError: there is nothing to compare, or the two differ in length.
    """
    if not captions:
        raise ValueError("there is not one caption to compare")
    pairs = [(_words(caption), _words(name)) for caption, name in zip(captions, names, strict=True)]
    predictions, references = ([" ".join(words) for words in side] for side in zip(*pairs, strict=True))
    rouge = rouge_score(predictions, references, rouge_keys="rougeL", normalizer=str, tokenizer=str.split)
    return CaptionMetrics(
        bleu4=float(bleu_score(predictions, [[reference] for reference in references], n_gram=MAX_NGRAM)),
        rouge_l=float(rouge["rougeL_fmeasure"]),
        cider=_cider(pairs),
    )


def _words(text: str) -> list[str]:
    return words_of(text.lower())


def _cider(pairs: Sequence[tuple[list[str], list[str]]]) -> float:
    """CIDEr-D of (caption, reference) words, mean over the pairs, 0 to 10 (Vedantam et al. 2015, equations 1 to 5).

    Mean over n = 1 to 4 of the cosine of two tf-idf vectors of n-grams, where the caption's counts are clipped to the
    reference's and a Gaussian punishes another length, times 10. No stemming, as in COCO's own implementation.
    """
    counts = [(_ngrams(caption), _ngrams(reference)) for caption, reference in pairs]
    frequency = Counter(ngram for _, reference in counts for ngram in reference)  # references that have the n-gram
    # An n-gram of no reference counts as one of a single reference: idf stays finite.
    idf = {ngram: math.log(len(pairs) / max(1, frequency[ngram])) for both in counts for side in both for ngram in side}
    total = 0.0
    for (caption, reference), (caption_words, reference_words) in zip(counts, pairs, strict=True):
        difference = len(caption_words) - len(reference_words)
        penalty = math.exp(-(difference**2) / (2 * LENGTH_SIGMA**2))
        total += penalty * sum(_cosine(caption, reference, idf, n) for n in range(1, MAX_NGRAM + 1)) / MAX_NGRAM
    return CIDER_SCALE * total / len(pairs)


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """How often each n-gram of one to four words occurs."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, MAX_NGRAM + 1) for start in range(len(words) - n + 1)
    )


def _cosine(caption: Counter[Ngram], reference: Counter[Ngram], idf: dict[Ngram, float], n: int) -> float:
    """Clipped cosine of the tf-idf vectors of order n; 0 where either side has no n-gram of any weight."""
    got = {ngram: count * idf[ngram] for ngram, count in caption.items() if len(ngram) == n}
    wanted = {ngram: count * idf[ngram] for ngram, count in reference.items() if len(ngram) == n}
    lengths = math.hypot(*got.values()) * math.hypot(*wanted.values())
    if not lengths:
        return 0.0
    return sum(min(weight, wanted.get(ngram, 0.0)) * wanted.get(ngram, 0.0) for ngram, weight in got.items()) / lengths
