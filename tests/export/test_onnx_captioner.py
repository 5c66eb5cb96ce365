# SPDX-License-Identifier: Apache-2.0
"""A model of large random weights, exported and decoded by us, says what `generate()` says."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from transformers import VisionEncoderDecoderModel  # noqa: E402

from captioner.decoding import DecodingOptions, Hypothesis  # noqa: E402
from captioner.model_contract import PRECISIONS, ContractError, Precision  # noqa: E402
from export.check_parity import photos_for  # noqa: E402
from export.onnx_captioner import Feeds, OnnxCaptioner  # noqa: E402
from export.onnx_export import load_captioner  # noqa: E402
from export.parity import MAX_ERROR, reference_tokens, share_equal, tensor_errors, tokens_of  # noqa: E402
from tests.conftest import MODELS, ROOT, SHARED_DATA  # noqa: E402
from tests.fakes.exported_captioner import random_photos, tiny_captioner, tiny_checkpoint, words  # noqa: E402
from tests.fakes.tiny_captioner import TINY  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisionEncoderDecoderModel:
    return load_captioner(tiny_checkpoint(tmp_path_factory))[0]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> OnnxCaptioner:
    return tiny_captioner(tmp_path_factory, "fp32")


def tokens_with_end(captioner: OnnxCaptioner, hypotheses: list[list[Hypothesis]]) -> list[list[int]]:
    return [tokens_of(one, captioner.contract.eos_token_id) for one in hypotheses]


@pytest.mark.parametrize("beams", [1, 2, 4, 8])
def test_exported_models_say_what_generate_says(
    model: VisionEncoderDecoderModel, captioner: OnnxCaptioner, beams: int
) -> None:
    pixels = random_photos(16, 1)
    said = set()
    for length_penalty in (0.5, 1.0, 2.0):
        options = DecodingOptions(num_beams=beams, length_penalty=length_penalty, max_tokens=TINY.max_tokens)
        expected = reference_tokens(model, pixels, options)
        assert tokens_with_end(captioner, captioner.caption(pixels, options)) == expected
        said |= {tuple(tokens) for tokens in expected}
    assert len(said) > 10, "all photos look the same: nothing is tested"


def test_captions_of_different_lengths_are_what_generate_says(
    model: VisionEncoderDecoderModel, captioner: OnnxCaptioner
) -> None:
    """Photos that are finished leave the batch; those that stay must keep their own caches."""
    pixels = random_photos(60, 2)
    for beams in (1, 3):
        options = DecodingOptions(num_beams=beams, max_tokens=TINY.max_tokens)
        expected = reference_tokens(model, pixels, options)
        assert len({len(tokens) for tokens in expected}) > 1
        assert tokens_with_end(captioner, captioner.caption(pixels, options)) == expected


def test_embedding_is_normalised_and_equals_pytorch(model: VisionEncoderDecoderModel, captioner: OnnxCaptioner) -> None:
    pixels = random_photos(3, 2)
    assert tensor_errors(model, captioner, pixels)["embedding"] < 1e-5
    embedding = captioner.encode(pixels)[1]
    assert embedding.dtype == np.float32
    assert np.linalg.norm(embedding, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_captions_do_not_depend_on_their_company(
    precision: Precision, tmp_path_factory: pytest.TempPathFactory
) -> None:
    captioner = tiny_captioner(tmp_path_factory, precision)
    pixels = random_photos(9, 3)
    options = DecodingOptions(num_beams=3, max_tokens=TINY.max_tokens)
    together = captioner.caption(pixels, options)
    alone = [captioner.caption(pixels[i : i + 1], options)[0] for i in range(len(pixels))]
    assert words(together) == words(alone)
    np.testing.assert_allclose(
        [one[0].log_probability for one in together], [one[0].log_probability for one in alone],
        rtol=2e-2 if precision == "fp16" else 1e-4,
    )  # fmt: skip


class Kept:
    """The calls of a captioner, and then its hypotheses."""

    def __init__(self, steps: Generator[Feeds, None, list[list[Hypothesis]]]):
        self._steps = steps
        self.hypotheses: list[list[Hypothesis]] = []

    def __iter__(self) -> Generator[Feeds, None, None]:
        self.hypotheses = yield from self._steps


@pytest.mark.parametrize("beams", [1, 2, 3, 4, 5])
def test_words_do_not_depend_on_how_many_tokens_a_call_makes(captioner: OnnxCaptioner, beams: int) -> None:
    pixels = random_photos(30, 5)
    for length_penalty, max_tokens in ((0.0, TINY.max_tokens), (1.0, TINY.max_tokens), (0.0, 4)):
        options = DecodingOptions(num_beams=beams, length_penalty=length_penalty, max_tokens=max_tokens)
        expected = words(captioner.caption(pixels, options))
        for count in range(1, TINY.max_tokens):
            steps = Kept(captioner.steps(pixels, options, tokens_per_call=count))
            assert sum(1 for _ in steps) <= -(-max_tokens // count)
            assert words(steps.hypotheses) == expected


def test_a_call_ends_when_nobody_wants_more(captioner: OnnxCaptioner) -> None:
    """Greedy, and with beams where lengths do not matter: exactly as many tokens as the longest caption has."""
    pixels = random_photos(20, 6)
    for beams in (1, 3):
        options = DecodingOptions(num_beams=beams, max_tokens=TINY.max_tokens)
        for photo in range(len(pixels)):
            steps = captioner.steps(pixels[photo : photo + 1], options, tokens_per_call=1)
            needed = sum(1 for _ in steps)
            feeds = next(captioner.steps(pixels[photo : photo + 1], options))
            answer = captioner.sessions["gpt2_step"].run(["selected"], feeds)[0]
            assert answer.shape == (1, needed, beams)


@pytest.mark.parametrize("beams", [1, 4])
def test_steps_lead_to_what_caption_says(captioner: OnnxCaptioner, beams: int) -> None:
    pixels = random_photos(60, 2)
    options = DecodingOptions(num_beams=beams, max_tokens=TINY.max_tokens)
    steps, feeds = captioner.steps(pixels, options, tokens_per_call=3), []
    hypotheses: list[list[Hypothesis]] = []
    while not hypotheses:
        try:
            feeds.append({name: array.copy() for name, array in next(steps).items()})
        except StopIteration as end:
            hypotheses = end.value
    assert words(hypotheses) == words(captioner.caption(pixels, options))
    assert [set(one["position"].flat) for one in feeds] == [{3 * call} for call in range(len(feeds))]
    counts = [len(one["tokens"]) for one in feeds]
    assert counts[0] == len(pixels)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0], "no photo was finished before the others"
    if beams == 1:  # what a call is given is what the one before it said last, of those that go on
        for call in range(1, len(feeds)):
            position = 3 * call
            going_on = [one for one in hypotheses if len(one[0].tokens) + one[0].complete > position]
            said = [one[0].tokens[position - 1].token for one in going_on]
            assert feeds[call]["tokens"][:, 0].tolist() == said


def test_repository_without_contract_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="missing"):
        OnnxCaptioner(tmp_path)


def test_shipped_models_equal_the_shipped_checkpoint() -> None:
    """On our own drawings; on real photos where they are at hand. INT8 is judged by 2,000 of them before it ships."""
    model, _ = load_captioner(ROOT / "checkpoints" / "fashion-small")
    captioner = OnnxCaptioner(MODELS, threads=1)
    contract = captioner.contract
    folder = SHARED_DATA / "fashion-product-images-small"
    pixels = photos_for(contract, folder if folder.is_dir() else None, 40).pixels
    wanted = {"fp32": 1.0, "fp16": 0.95, "int8": 0.85}[contract.precision]
    for beams in (1, 4):
        options = DecodingOptions(num_beams=beams, max_tokens=contract.max_tokens)
        expected = reference_tokens(model, pixels, options)
        assert share_equal(expected, tokens_with_end(captioner, captioner.caption(pixels, options))) >= wanted
    errors = tensor_errors(model, captioner, pixels)
    assert {name: error for name, error in errors.items() if not error <= MAX_ERROR[contract.precision]} == {}
