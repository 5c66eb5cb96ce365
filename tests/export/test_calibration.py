# SPDX-License-Identifier: Apache-2.0
"""What fixes INT8's ranges: inputs of each model as they come in use, of photos nothing is measured on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from captioner.decoding import DecodingOptions  # noqa: E402
from captioner.model_contract import ModelContract, ModelSpec  # noqa: E402
from export.calibration import BATCH, drawn_photos, feeds_of  # noqa: E402
from export.onnx_captioner import Feeds, OnnxCaptioner  # noqa: E402
from export.to_onnx import calibration_photos  # noqa: E402
from tests.conftest import SHARED_DATA  # noqa: E402
from tests.fakes.exported_captioner import random_photos, tiny_captioner  # noqa: E402
from tests.fakes.tiny_onnx_models import CONTRACT  # noqa: E402
from training.prepare_data import is_validation, load_products  # noqa: E402

pytestmark = pytest.mark.torch

PHOTOS = BATCH + 3  # so that there is a second batch, of another size

_NUMPY = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> OnnxCaptioner:
    return tiny_captioner(tmp_path_factory, "fp32")


def assert_valid(feeds: Sequence[Feeds], spec: ModelSpec, captioner: OnnxCaptioner) -> None:
    for one in feeds:
        assert list(one) == [tensor.name for tensor in spec.inputs]
        photos = {len(array) for array in one.values()}
        beams = {one[t.name].shape[1 + i] for t in spec.inputs for i, size in enumerate(t.shape) if size == -1}
        assert len(photos) == 1
        assert len(beams) <= 1
        for tensor in spec.inputs:
            array = one[tensor.name]
            assert array.dtype == _NUMPY[tensor.datatype]
            rest = zip(array.shape[1:], tensor.shape, strict=True)
            assert all(size in (wanted, *beams) if wanted == -1 else size == wanted for size, wanted in rest)
        captioner.sessions[spec.name].run(None, one)


def test_encoder_is_given_every_photo_once(captioner: OnnxCaptioner) -> None:
    pixels = random_photos(PHOTOS, 1)
    feeds = list(feeds_of(captioner, pixels, "vit_encoder"))
    assert_valid(feeds, captioner.contract.encoder, captioner)
    assert np.array_equal(np.concatenate([one["pixels"] for one in feeds]), pixels)


def test_prefill_is_given_what_the_encoder_says(captioner: OnnxCaptioner) -> None:
    pixels = random_photos(PHOTOS, 2)
    feeds = list(feeds_of(captioner, pixels, "gpt2_prefill"))
    assert_valid(feeds, captioner.contract.prefill, captioner)
    hidden = np.concatenate([one["hidden_states"] for one in feeds])
    np.testing.assert_allclose(hidden, captioner.encode(pixels)[0], rtol=1e-4, atol=1e-4)


def test_step_is_given_all_steps_greedy_and_with_beams(captioner: OnnxCaptioner) -> None:
    pixels = random_photos(PHOTOS, 3)
    contract = captioner.contract
    feeds = list(feeds_of(captioner, pixels, "gpt2_step"))
    assert_valid(feeds, contract.step, captioner)
    for beams in (1, 4):
        of_beams = [one for one in feeds if one["tokens"].shape[1] == beams]
        starts = [one for one in of_beams if not one["position"].any()]
        assert [len(one["tokens"]) for one in starts] == [BATCH, PHOTOS - BATCH]
        assert all((one["tokens"] == contract.bos_token_id).all() for one in starts)
        captions = captioner.caption(pixels, DecodingOptions(num_beams=beams, max_tokens=contract.max_tokens))
        longest = max(len(one[0].tokens) + one[0].complete for one in captions)
        assert longest > 2
        assert max(int(one["position"][0, 0]) for one in of_beams) >= longest - 1
        later = [one for one in of_beams if one["position"].any()]
        assert all(one["self_value_1"].any() for one in later), "the cache is empty: its range would be nothing"
    assert {one["tokens"].shape[1] for one in feeds} == {1, 4}


def test_drawn_photos_are_the_same_every_time(captioner: OnnxCaptioner) -> None:
    contract = captioner.contract
    photos = drawn_photos(contract, 5)
    assert photos.shape == (5, contract.image_height, contract.image_width, 3)
    assert photos.dtype == np.uint8
    assert np.array_equal(photos, drawn_photos(contract, 5))
    assert not np.array_equal(photos, drawn_photos(contract, 5, seed=2)), "parity would be measured on the same ones"
    assert len({photo.tobytes() for photo in photos}) == 5


@pytest.mark.data
def test_calibration_sees_photos_of_the_training_split_only() -> None:
    folder = SHARED_DATA / "fashion-product-images-small"
    if not folder.is_dir():
        pytest.skip("no ../shared/data")
    contract = _contract_of_size(20, 16)
    mixed = load_products(folder, height=20, width=16, fit="pad", limit=100)
    training = [not is_validation(product.listed_name or product.name) for product in mixed.products]
    assert 0 < sum(training) < 100
    photos = calibration_photos(contract, folder, sum(training))
    assert np.array_equal(photos, mixed.pixels[np.array(training)])


def _contract_of_size(height: int, width: int) -> ModelContract:
    return dataclasses.replace(CONTRACT, image_height=height, image_width=width, fit="pad")
