# SPDX-License-Identifier: Apache-2.0
"""Decoded tokens -> words with probabilities, with a tokenizer of ten pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from captioner.caption_tokenizer import TOKENIZER_FILE, CaptionTokenizer
from captioner.captions import MAX_WORD_ALTERNATIVES, Caption, CaptionAlternative, caption_of
from captioner.decoding import DecodedToken, Hypothesis

SPACE = "\u0120"  # as byte-level BPE writes the space before a word
PIECES = ["<s>", "</s>", "<pad>", f"{SPACE}Blue", f"{SPACE}Shirt", "s", f"{SPACE}Red", f"{SPACE}Navy", SPACE, "-T"]
BOS, EOS, PAD, BLUE, SHIRT, PLURAL, RED, NAVY, ALONE, HYPHEN = range(len(PIECES))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CaptionTokenizer:
    pieces = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(PIECES)}, merges=[]))
    pieces.decoder = decoders.ByteLevel()
    pieces.add_special_tokens(PIECES[:3])
    folder = tmp_path_factory.mktemp("tokenizer")
    pieces.save(str(folder / TOKENIZER_FILE))
    return CaptionTokenizer(folder)


def token(piece: int, probability: float = 0.5, others: dict[int, float] | None = None) -> DecodedToken:
    """A decoded token and what else was considered, given as piece -> probability, best first."""
    candidates = {piece: probability, **(others or {})}
    ranked = sorted(candidates.items(), key=lambda item: -item[1])
    return DecodedToken(
        piece,
        math.log(probability),
        np.array([one for one, _ in ranked], np.int32),
        np.log(np.array([share for _, share in ranked], np.float32)),
    )


def hypothesis(*tokens: DecodedToken, log_probability: float = -1.0, complete: bool = True) -> Hypothesis:
    return Hypothesis(tokens, log_probability, complete)


def caption(tokenizer: CaptionTokenizer, *tokens: DecodedToken) -> Caption:
    return caption_of([hypothesis(*tokens)], tokenizer)


def test_words_joined_are_the_caption(tokenizer: CaptionTokenizer) -> None:
    result = caption(tokenizer, token(BLUE), token(SHIRT), token(PLURAL), token(RED))
    assert result.text == "Blue Shirts Red"
    assert [word.text for word in result.words] == ["Blue", "Shirts", "Red"]


def test_probability_of_a_word_is_the_product_over_its_tokens(tokenizer: CaptionTokenizer) -> None:
    result = caption(tokenizer, token(BLUE, 0.9), token(SHIRT, 0.5), token(PLURAL, 0.4), token(HYPHEN, 0.1))
    assert [word.text for word in result.words] == ["Blue", "Shirts-T"]
    assert [word.probability for word in result.words] == pytest.approx([0.9, 0.02])


def test_alternatives_of_a_word_begin_words_themselves_best_first(tokenizer: CaptionTokenizer) -> None:
    blue = token(BLUE, 0.4, {RED: 0.2, PLURAL: 0.15, EOS: 0.1, NAVY: 0.06, HYPHEN: 0.05})
    (word,) = caption(tokenizer, blue).words
    assert [one.text for one in word.alternatives] == ["Red", "Navy"]
    assert [one.probability for one in word.alternatives] == pytest.approx([0.2, 0.06])


def test_alternatives_may_be_more_probable_than_the_word(tokenizer: CaptionTokenizer) -> None:
    """Beam search does not always take the best word."""
    (word,) = caption(tokenizer, token(BLUE, 0.3, {RED: 0.6})).words
    assert [one.text for one in word.alternatives] == ["Red"]


def test_alternatives_are_those_of_a_words_first_token(tokenizer: CaptionTokenizer) -> None:
    tokens = [token(SHIRT, 0.5, {BLUE: 0.3}), token(PLURAL, 0.5, {RED: 0.4})]
    (word,) = caption(tokenizer, *tokens).words
    assert [one.text for one in word.alternatives] == ["Blue"]


def test_a_space_without_a_word_is_no_alternative(tokenizer: CaptionTokenizer) -> None:
    (word,) = caption(tokenizer, token(BLUE, 0.5, {ALONE: 0.3, RED: 0.1})).words
    assert [one.text for one in word.alternatives] == ["Red"]


def test_number_of_alternatives_is_limited(tokenizer: CaptionTokenizer) -> None:
    others = {SHIRT: 0.2, RED: 0.15, NAVY: 0.1, 100: 0.09}
    (word,) = caption(tokenizer, token(BLUE, 0.3, others)).words
    assert [one.text for one in word.alternatives] == ["Shirt", "Red", "Navy"]
    assert len(word.alternatives) == MAX_WORD_ALTERNATIVES


def test_other_hypotheses_become_alternative_captions_in_their_order(tokenizer: CaptionTokenizer) -> None:
    result = caption_of(
        [
            hypothesis(token(BLUE), token(SHIRT), log_probability=-1.5),
            hypothesis(token(RED), token(SHIRT), log_probability=-2.5),
            hypothesis(token(NAVY), log_probability=-2.0, complete=False),
        ],
        tokenizer,
    )
    assert (result.text, result.log_probability, result.complete) == ("Blue Shirt", -1.5, True)
    assert result.alternatives == (
        CaptionAlternative("Red Shirt", -2.5),
        CaptionAlternative("Navy", -2.0),
    )


def test_caption_that_was_cut_says_so(tokenizer: CaptionTokenizer) -> None:
    assert not caption_of([hypothesis(token(BLUE), complete=False)], tokenizer).complete


def test_empty_caption_is_no_error(tokenizer: CaptionTokenizer) -> None:
    result = caption(tokenizer)
    assert result == Caption("", (), -1.0, True, ())
