# SPDX-License-Identifier: Apache-2.0
"""By what rule a variant is refused, and that what it is judged by sees a wrong number where there is one."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from onnx import numpy_helper  # noqa: E402
from transformers import VisionEncoderDecoderModel  # noqa: E402

from captioner.decoding import DecodedToken, DecodingOptions, Hypothesis  # noqa: E402
from captioner.model_contract import PRECISIONS, Precision  # noqa: E402
from export.onnx_captioner import OnnxCaptioner  # noqa: E402
from export.onnx_export import load_captioner  # noqa: E402
from export.parity import (  # noqa: E402
    MAX_ERROR,
    MIN_PHOTOS,
    Parity,
    falls_of,
    reference_tokens,
    share_equal,
    tensor_errors,
    tokens_of,
)
from tests.fakes.exported_captioner import random_photos, tiny_captioner, tiny_checkpoint, tiny_repository  # noqa: E402
from tests.fakes.onnx_parts import constants_of  # noqa: E402

pytestmark = pytest.mark.torch

OPTIONS = DecodingOptions(max_tokens=7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisionEncoderDecoderModel:
    return load_captioner(tiny_checkpoint(tmp_path_factory))[0]


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_captions_and_small_errors_pass(precision: Precision) -> None:
    parity = Parity(precision, "triton", 10, {"embedding": MAX_ERROR[precision]}, {1: 1.0, 4: 1.0})
    assert parity.problems == []


def test_fp32_may_not_be_off_by_one_caption() -> None:
    parity = Parity("fp32", "triton", 2000, equal={1: 1.0, 4: 1999 / 2000}, falls={4: {"bleu": -1.0}})
    assert parity.problems == ["4 beams: 99.95% of captions are equal, wanted 100%"]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_others_may_be_off_by_one_in_a_hundred(precision: Precision) -> None:
    assert Parity(precision, "triton", 200, equal={1: 0.99}).problems == []
    assert Parity(precision, "triton", 200, equal={1: 0.985}).problems == [
        "1 beams: 98.50% of captions are equal, wanted 99%"
    ]


def int8(photos: int, fall: float, *, beams: int = 4) -> Parity:
    return Parity("int8", "onnxruntime", photos, equal={beams: 0.95}, falls={beams: {"bleu": 0.1, "cider": fall}})


def test_metrics_count_where_captions_differ() -> None:
    assert int8(MIN_PHOTOS, 0.5).problems == []
    assert int8(MIN_PHOTOS, -3.0).problems == [], "better than the checkpoint is no problem"


def test_a_metric_that_falls_refuses() -> None:
    assert int8(MIN_PHOTOS, 0.6).problems == [
        "4 beams: 95.00% of captions are equal, wanted 99%, and metrics fall by more than 0.5 points: cider by 0.60"
    ]


def test_metrics_of_few_photos_do_not_count() -> None:
    (problem,) = int8(MIN_PHOTOS - 1, -1.0).problems
    assert "95.00%" in problem
    assert f"metrics of {MIN_PHOTOS - 1} photos are not reliable, give {MIN_PHOTOS} or more" in problem


def test_metrics_of_other_beams_do_not_count() -> None:
    parity = int8(MIN_PHOTOS, 0.0)
    parity.equal[1] = 0.95
    assert parity.problems == ["1 beams: 95.00% of captions are equal, wanted 99%"]


def test_queries_are_judged_as_captions_are() -> None:
    def parity(photos: int, equal: float, fall: float | None, precision: Precision = "int8") -> Parity:
        falls = None if fall is None else {"right queries": fall}
        return Parity(precision, "onnxruntime", photos, queries_equal=equal, query_falls=falls)

    assert parity(10, 0.99, None).problems == []
    assert parity(10, 0.98, None).problems == ["98.00% of likeliest queries are equal, wanted 99%"]
    assert parity(MIN_PHOTOS, 0.98, 0.4).problems == []
    assert parity(MIN_PHOTOS, 0.98, 0.6).problems == [
        "98.00% of likeliest queries are equal, wanted 99%, and metrics fall by more than 0.5 points: "
        "right queries by 0.60"
    ]
    assert parity(MIN_PHOTOS, 0.999, 0.0, "fp32").problems == ["99.90% of likeliest queries are equal, wanted 100%"]


@pytest.mark.parametrize("error", [MAX_ERROR["int8"] * 1.01, math.inf, math.nan])
def test_error_over_its_limit_refuses_even_where_captions_are_equal(error: float) -> None:
    parity = Parity("int8", "onnxruntime", 10, {"embedding": 0.01, "new_kv": error}, {1: 1.0})
    assert parity.problems == [f"new_kv differs by {error:.2g}, limit 0.15"]


def test_a_metric_that_is_no_number_refuses() -> None:
    assert int8(MIN_PHOTOS, math.nan).problems != []


def test_falls_are_points_of_a_hundred() -> None:
    falls = falls_of({"bleu": 0.30, "cider": 2.0}, {"bleu": 0.31, "cider": 1.99, "more": 1.0})
    assert falls == {"bleu": pytest.approx(-1.0), "cider": pytest.approx(1.0)}


def test_share_of_equal_captions() -> None:
    assert share_equal([[1, 2], [3], [4], []], [[1, 2], [3, 4], [4], []]) == 0.75
    with pytest.raises(ValueError, match="shorter"):
        share_equal([[1], [2]], [[1]])


def test_tokens_end_with_eos_where_it_was_reached() -> None:
    none = np.zeros(0)
    tokens = tuple(DecodedToken(one, -1.0, none, none) for one in (5, 6))
    best, other = Hypothesis(tokens, -2.0, complete=True), Hypothesis(tokens[:1], -3.0, complete=False)
    assert tokens_of([best, other], eos_token_id=1) == [5, 6, 1]
    assert tokens_of([other, best], eos_token_id=1) == [5]


# --- reference --------------------------------------------------------------------------------------------------------


def test_reference_has_neither_bos_nor_padding(model: VisionEncoderDecoderModel) -> None:
    expected = reference_tokens(model, random_photos(30, 1), OPTIONS)
    end, pad, start = model.config.eos_token_id, model.config.pad_token_id, model.config.decoder_start_token_id
    assert len({len(tokens) for tokens in expected}) > 1
    for tokens in expected:
        assert not {pad, start} & set(tokens)
        assert end not in tokens[:-1]
        assert len(tokens) == 7 or tokens[-1] == end


def test_reference_keeps_eos_where_it_is_also_the_padding(model: VisionEncoderDecoderModel) -> None:
    """As GPT-2's own tokenizer has it."""
    pixels = random_photos(30, 1)
    expected = reference_tokens(model, pixels, OPTIONS)
    other = copy.deepcopy(model)
    for config in (other.config, other.generation_config):
        config.pad_token_id = config.eos_token_id
    assert reference_tokens(other, pixels, OPTIONS) == expected


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_tensors_of_fp32_are_pytorchs(
    model: VisionEncoderDecoderModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    errors = tensor_errors(model, tiny_captioner(tmp_path_factory, "fp32"), random_photos(8, 2))
    assert set(errors) == {"hidden_states", "embedding", "cross caches", "new_kv", "candidate_logprobs"}
    assert max(errors.values()) < 1e-5
    assert Parity("fp32", "onnxruntime", 8, errors).problems == []


@pytest.mark.parametrize(
    ("graph", "weights", "seen"),
    [
        ("vit_encoder", "embeddings.position_embeddings", "hidden_states"),
        ("gpt2_prefill", "weights.3", "cross caches"),
        ("gpt2_step", "blocks.1.attn.c_attn.weight", "new_kv"),
        ("gpt2_step", "blocks.0.crossattention.c_proj.weight", "candidate_logprobs"),
    ],
)
def test_changed_weights_are_seen_and_refused(
    model: VisionEncoderDecoderModel, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
    graph: str, weights: str, seen: str,
) -> None:  # fmt: skip
    repository = Path(shutil.copytree(tiny_repository(tmp_path_factory, "fp32"), tmp_path / "models"))
    path = repository / graph / "1" / "model.onnx"
    changed = onnx.load(path)
    tensor = constants_of(changed)[weights]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[..., ::-1].copy(), weights))
    onnx.save(changed, path)
    errors = tensor_errors(model, OnnxCaptioner(repository, threads=1), random_photos(8, 2))
    assert errors[seen] > 0.05
    problems = Parity("fp32", "onnxruntime", 8, errors).problems
    assert any(problem.startswith(f"{seen} differs by") for problem in problems)
