# SPDX-License-Identifier: Apache-2.0
"""Tokens -> words, with a small tokenizer trained and written as a checkpoint's is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.caption_tokenizer import TOKENIZER_FILE, CaptionTokenizer
from captioner.model_contract import ContractError
from drawings.draw_samples import COLOURS, GARMENTS, sample_name

pytest.importorskip("torch")

pytestmark = pytest.mark.torch

NAMES = [sample_name(garment, colour) for garment in GARMENTS for colour in COLOURS]
NAMES += ["Levi's Men's 3/4 Jeans", "Café Noir Women T-shirt", "Puma Men's (Pack of 2) Socks"]
WORDS = st.lists(
    st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="<"), min_size=1, max_size=8), max_size=6
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, CaptionTokenizer]:
    """What training uses, and what serving reads of it."""
    from training.caption_dataset import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer(NAMES, 400)
    tokenizer.save_pretrained(folder)
    return tokenizer, CaptionTokenizer(folder)


def ids(trained: tuple[Any, CaptionTokenizer], text: str) -> list[int]:
    return list(trained[0].encode(text, add_special_tokens=False))


def words(tokenizer: CaptionTokenizer, tokens: list[int]) -> list[str]:
    return [tokenizer.text(tokens[start:end]) for start, end in tokenizer.word_spans(tokens)]


def test_missing_file_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing: run `python -m export.install_models`"):
        CaptionTokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"{}", b'{"version": "1.0", "model": 7}'])
def test_damaged_file_is_one_sentence_with_file_and_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TOKENIZER_FILE).write_bytes(content)
    with pytest.raises(ContractError) as caught:
        CaptionTokenizer(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / TOKENIZER_FILE} is not a tokenizer (")
    assert message.endswith("run `python -m export.install_models`")
    assert "\n" not in message


def test_vocabulary_counts_special_tokens_too(trained: tuple[Any, CaptionTokenizer]) -> None:
    assert trained[1].vocab_size == len(trained[0])


@pytest.mark.parametrize("name", NAMES[::10] + NAMES[-3:])
def test_text_of_a_names_tokens_is_the_name(trained: tuple[Any, CaptionTokenizer], name: str) -> None:
    assert trained[1].text(ids(trained, name)) == name


def test_special_tokens_are_left_out_of_the_text(trained: tuple[Any, CaptionTokenizer]) -> None:
    hub, tokenizer = trained
    tokens = [hub.bos_token_id, *ids(trained, "Blue Shirt"), hub.eos_token_id, hub.pad_token_id]
    assert tokenizer.text(tokens) == "Blue Shirt"
    assert tokenizer.text([hub.bos_token_id]) == tokenizer.text([]) == ""


def test_spans_of_a_name_are_its_words(trained: tuple[Any, CaptionTokenizer]) -> None:
    name = "Sketch Blue T-shirt, Levi's 3/4"
    tokens = ids(trained, name)
    assert len(tokens) > len(name.split()), "no word is of several tokens: the test shows nothing"
    assert words(trained[1], tokens) == name.split()


def test_no_tokens_have_no_words(trained: tuple[Any, CaptionTokenizer]) -> None:
    assert trained[1].word_spans([]) == []


def test_a_caption_may_begin_inside_a_word(trained: tuple[Any, CaptionTokenizer]) -> None:
    """A model may continue a word that it never began: its first tokens are a word all the same."""
    hub, tokenizer = trained
    inside = hub.convert_tokens_to_ids("x")
    assert not tokenizer.starts_word(inside)
    tokens = [inside, inside, *ids(trained, "Shirt")]
    assert words(tokenizer, tokens) == ["xx", "Shirt"]


@pytest.mark.parametrize("token", [0, 1, 2, 10**6])
def test_special_and_unknown_tokens_begin_no_word(trained: tuple[Any, CaptionTokenizer], token: int) -> None:
    assert not trained[1].starts_word(token)


@given(WORDS)
@settings(deadline=None)
def test_words_joined_equal_the_text(trained: tuple[Any, CaptionTokenizer], parts: list[str]) -> None:
    text = " ".join(parts)
    tokens = ids(trained, text)
    tokenizer = trained[1]
    assert tokenizer.text(tokens) == text
    assert words(tokenizer, tokens) == text.split()


@given(st.lists(st.integers(min_value=3, max_value=399), max_size=24))
@settings(deadline=None)
def test_spans_cover_all_tokens_in_order_whatever_the_model_says(
    trained: tuple[Any, CaptionTokenizer], tokens: list[int]
) -> None:
    tokenizer = trained[1]
    spans = tokenizer.word_spans(tokens)
    assert [i for start, end in spans for i in range(start, end)] == list(range(len(tokens)))
    assert all(start < end for start, end in spans)
    assert " ".join(words(tokenizer, tokens)).split() == tokenizer.text(tokens).split()
