# SPDX-License-Identifier: Apache-2.0
"""What the served models read is what the captioner gives, and is read once for the same photos and models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.retrieval.photo_reader import PhotoReader
from captioner.caption_tokenizer import CaptionTokenizer
from captioner.captions import caption_of
from captioner.decoding import DecodingOptions
from captioner.model_contract import ModelContract
from captioner.query import Query, QueryRule
from export.calibration import drawn_photos
from export.onnx_captioner import OnnxCaptioner
from tests.conftest import MODELS
from training.prepare_data import Product, ProductSet


def photos(count: int, seed: int = 3) -> ProductSet:
    products = [Product(str(number), "a name", "Shirts", "Red", "Men") for number in range(count)]
    return ProductSet(products, drawn_photos(ModelContract.load(MODELS), count, seed))


def test_hypotheses_are_the_captioners(tmp_path: Path) -> None:
    data = photos(3)
    captioner = OnnxCaptioner(MODELS, threads=1)
    states, embedding = captioner.encode(data.pixels)
    reader = PhotoReader(MODELS, tmp_path, threads=1)
    found = reader.embeddings(data)
    assert found.served == pytest.approx(embedding, abs=1e-5)
    means = states[:, 1:].mean(axis=1)
    assert found.patch_mean == pytest.approx(means / np.linalg.norm(means, axis=1, keepdims=True), abs=1e-5)
    tokenizer, options = CaptionTokenizer(MODELS), DecodingOptions(max_tokens=captioner.contract.max_tokens)
    said = [one.caption for one in reader.words(data, rule=QueryRule.LAST_TWO_WORDS)]
    assert said == [caption_of(one, tokenizer) for one in captioner.caption(data.pixels, options)]
    beams = replace(options, num_beams=2)
    expected = [caption_of(one, tokenizer) for one in captioner.caption(data.pixels, beams)]
    assert all(caption.alternatives for caption in expected)
    found_words = reader.words(data, num_beams=2, rule=QueryRule.LAST_TWO_WORDS)
    assert [one.caption for one in found_words] == expected
    assert [one.query for one in found_words] == [Query.of_caption(one.text) for one in expected]


def test_second_reading_comes_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = PhotoReader(MODELS, tmp_path, threads=1)
    first, captions = reader.embeddings(photos(2)), reader.words(photos(2))
    assert len(list(tmp_path.iterdir())) == 2, "nothing but the two files"

    def refuse(*_: object) -> None:
        raise AssertionError("the models were asked again")

    monkeypatch.setattr(OnnxCaptioner, "encode", refuse)
    again = PhotoReader(MODELS, tmp_path, threads=1)
    assert np.array_equal(again.embeddings(photos(2)).served, first.served)
    assert again.words(photos(2)) == captions
    with pytest.raises(AssertionError, match="asked again"):
        again.embeddings(photos(2, seed=4))
