# SPDX-License-Identifier: Apache-2.0
"""BLEU-4, ROUGE-L and CIDEr of captions, each compared with one true name.

BLEU and ROUGE come from torchmetrics. CIDEr is implemented here, since pycocoevalcap brings 100 MB of Java with it.
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
    """How similar captions and true names are; higher is better.

    Attributes:
        bleu4: 0 to 1, of the whole corpus, without smoothing: 0 if no caption has four consecutive words right.
        rouge_l: 0 to 1, F1 of the longest common subsequence, mean over the captions.
        cider: 0 to 10 (CIDEr-D). A name of fewer than four words cannot reach 10, since it has no n-grams of the higher
            orders: a perfect caption of a two-word name scores 5.
    """

    bleu4: float
    rouge_l: float
    cider: float


def caption_metrics(captions: Sequence[str], names: Sequence[str]) -> CaptionMetrics:
    """Compare captions with the true names.

    Words are `captioner.query.words_of` in lower case, the words of a search: "Blue," is "blue", "T-shirt" is one word.
    The libraries' own tokenizers differ (ROUGE's cuts at hyphens, BLEU's splits off commas) and would score three
    different texts. The figures are comparable between our checkpoints, and roughly with published ones, whose
    tokenizer (COCO's) also drops punctuation.

    CIDEr weighs n-grams by their rarity among `names`, so compare checkpoints on the same products.

    Sources: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE), Vedantam et al. 2015 (CIDEr).

    Args:
        captions: n captions.
        names: n true names.

    Returns:
        The metrics over all n pairs.

    Raises:
        ValueError: there are no captions, or the lengths differ.
    """
    if not captions:
        raise ValueError("there are no captions to compare")
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

    Ten times the mean over n = 1 to 4 of the cosine of two tf-idf vectors of n-grams. The caption's counts are clipped
    to the reference's, and a Gaussian penalises a different length. No stemming, as in COCO's implementation.
    """
    counts = [(_ngrams(caption), _ngrams(reference)) for caption, reference in pairs]
    frequency = Counter(ngram for _, reference in counts for ngram in reference)  # references that have the n-gram
    # An n-gram without a reference counts as if one had it, so that idf stays finite.
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
    """Clipped cosine of the tf-idf vectors of order n; 0 where a side has no n-gram with a weight."""
    got = {ngram: count * idf[ngram] for ngram, count in caption.items() if len(ngram) == n}
    wanted = {ngram: count * idf[ngram] for ngram, count in reference.items() if len(ngram) == n}
    lengths = math.hypot(*got.values()) * math.hypot(*wanted.values())
    if not lengths:
        return 0.0
    return sum(min(weight, wanted.get(ngram, 0.0)) * wanted.get(ngram, 0.0) for ngram, weight in got.items()) / lengths
