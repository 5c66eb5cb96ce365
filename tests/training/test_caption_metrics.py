# SPDX-License-Identifier: Apache-2.0
"""BLEU-4, ROUGE-L and CIDEr: values worked out by hand, and those of other programs."""

from __future__ import annotations

import dataclasses
import math

import pytest

pytest.importorskip("torchmetrics", reason="the training extra is not installed")

from training.caption_metrics import caption_metrics

pytestmark = pytest.mark.torch

NAMES = ["a man in a navy blue shirt", "blue tie", "women red shoes", "casio men watch"]
CAPTIONS = ["a man in a blue shirt", "red tie", "men red shoes shoes", "watch"]


def test_true_names_score_what_can_be_had() -> None:
    names = ["Turtle Check Men Navy Blue Shirt", "Puma Men Red Running Shoes", "Titan Women Silver Watch"]
    result = caption_metrics(names, names)
    assert result.bleu4 == pytest.approx(1)
    assert result.rouge_l == pytest.approx(1)
    assert result.cider == pytest.approx(10)


def test_names_below_four_words_do_not_reach_the_full_cider() -> None:
    names = ["red shoes", "blue shirt"]
    assert caption_metrics(names, names).cider == pytest.approx(5)


def test_captions_without_a_right_word_score_nothing() -> None:
    result = caption_metrics(["one two three four"] * 2, ["five six seven eight", "red shoes"])
    assert dataclasses.astuple(result) == (0, 0, 0)


def test_case_and_punctuation_around_words_do_not_count_and_hyphens_do() -> None:
    names = ["Puma Men, Navy (Blue) T-shirt", "Titan Women Silver Watch"]
    assert caption_metrics(["puma men navy BLUE t-shirt", names[1]], names) == caption_metrics(names, names)
    hyphen = caption_metrics(["puma men navy blue t shirt", names[1]], names)
    assert hyphen.rouge_l == pytest.approx((2 * 4 / (6 + 5) + 1) / 2)


def test_bleu_is_the_geometric_mean_of_precisions_over_the_whole_corpus_times_the_brevity_penalty() -> None:
    # By hand: 1-grams 4 + 4 of 5 + 4, 2-grams 3 + 3 of 4 + 3, 3-grams 2 + 2 of 3 + 2, 4-grams 1 + 1 of 2 + 1;
    # 9 words in the captions, 11 in the names.
    result = caption_metrics(["a b c d x", "p q r s"], ["a b c d e", "p q r s t u"])
    precisions = 8 / 9 * 6 / 7 * 4 / 5 * 2 / 3
    assert result.bleu4 == pytest.approx(precisions**0.25 * math.exp(1 - 11 / 9))


def test_bleu_is_not_smoothed() -> None:
    assert caption_metrics(["red shoes"], ["red shoes"]).bleu4 == 0


def test_rouge_is_the_mean_f1_of_the_longest_common_subsequence() -> None:
    # "b d" of 3 and 4 words: precision 2/3, recall 1/2.
    assert caption_metrics(["b d a"], ["a b c d"]).rouge_l == pytest.approx(4 / 7)
    assert caption_metrics(["b d a", "x y"], ["a b c d", "x y"]).rouge_l == pytest.approx((4 / 7 + 1) / 2)


def test_cider_weighs_words_by_their_rarity_among_the_names() -> None:
    # By hand, three names: "red" and "blue" stand in one of them, "tie" in one, "shoes" in two.
    rare, common = math.log(3), math.log(3 / 2)
    names = ["red shoes", "blue shoes", "green tie"]
    result = caption_metrics(["blue shoes", "blue shoes", "green tie"], names)
    single_words = common**2 / (rare**2 + common**2)  # only "shoes" is right; the pair of words is not
    assert result.cider == pytest.approx(10 * (single_words / 4 + 2 / 4 + 2 / 4) / 3)


def test_cider_punishes_repetition_and_another_length() -> None:
    # The second "tie" is clipped to one: cosine of (1, 2) clipped to (1, 1), which is 2 / (sqrt 5 sqrt 2).
    names = ["red tie", "blue shoes"]
    result = caption_metrics(["red tie tie", "blue shoes"], names)
    pairs_of_words = 1 / math.sqrt(2)  # "red tie" of "red tie" and "tie tie"
    penalty = math.exp(-1 / (2 * 6**2))
    assert result.cider == pytest.approx(10 * (penalty * (2 / math.sqrt(10) + pairs_of_words) / 4 + 2 / 4) / 2)


def test_cider_equals_that_of_coco() -> None:
    # pycocoevalcap 1.2, Cider().compute_score on these words.
    assert caption_metrics(CAPTIONS, NAMES).cider == pytest.approx(2.760371754026029)


def test_one_pair_alone_has_no_rarity_and_so_no_cider() -> None:
    assert caption_metrics(["red running shoes here"], ["red running shoes here"]).cider == 0


def test_empty_captions_and_names_count_as_wrong() -> None:
    half = caption_metrics(["", "titan women silver watch"], ["puma men red shoes", "titan women silver watch"])
    assert half.rouge_l == pytest.approx(0.5)
    assert half.cider == pytest.approx(5)
    assert half.bleu4 == pytest.approx(math.exp(1 - 8 / 4))
    assert caption_metrics(["red shoes"], ["!"]).rouge_l == 0


def test_nothing_to_compare_is_an_error_and_not_a_perfect_score() -> None:
    with pytest.raises(ValueError, match="no captions"):
        caption_metrics([], [])


@pytest.mark.parametrize(("captions", "names"), [(["a"], []), (["a"], ["a", "b"]), (["a", "b"], ["a"])])
def test_lists_of_different_lengths_are_an_error(captions: list[str], names: list[str]) -> None:
    with pytest.raises(ValueError, match="zip"):
        caption_metrics(captions, names)
