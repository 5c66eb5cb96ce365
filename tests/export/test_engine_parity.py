# SPDX-License-Identifier: Apache-2.0
"""An engine that rounds is accepted, one that computes something else is not; ONNX Runtime plays the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime
import pytest

from captioner.model_contract import STEP, ModelSpec
from export.engine_parity import (
    MAX_ERROR,
    MAX_NATS,
    Array,
    Difference,
    Run,
    candidate_error,
    compare_engines,
    decode,
    nats_error,
    relative_error,
    step_inputs,
)
from export.trtexec import DTYPES
from tests.fakes.tiny_onnx_models import tiny_contract, tiny_model

CONTRACT = tiny_contract("fp16", num_queries=5)
FP32 = tiny_contract("fp32", num_queries=5)
PIXELS = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
Change = Callable[[ModelSpec, Mapping[str, Array], dict[str, Array]], None]


def runner(precision: str, change: Change | None = None) -> Run:
    contract = tiny_contract(precision, num_queries=5)  # type: ignore[arg-type]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    sessions = {
        spec.name: onnxruntime.InferenceSession(tiny_model(spec, contract).SerializeToString(), settings)
        for spec in contract.models
    }
    specs = {spec.name: spec for spec in contract.models}

    def run(spec: ModelSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if spec.name == STEP:  # an engine has no such inputs, and the reference may play one
            given = inputs["tokens"]
            inputs = {"finished": given, "limits": np.ones((len(given), 2), np.int32), **inputs}
        typed = {one.name: inputs[one.name].astype(DTYPES[one.datatype]) for one in specs[spec.name].inputs}
        names = [one.name for one in spec.outputs]
        outputs = dict(zip(names, sessions[spec.name].run(names, typed), strict=True))
        if change is not None:
            change(spec, inputs, outputs)
        return outputs

    return run


@pytest.fixture(scope="module")
def reference() -> Run:
    return runner("fp32")


def test_engine_that_only_rounds_is_right(reference: Run) -> None:
    parity = compare_engines(CONTRACT, PIXELS, reference, runner("fp16"))
    assert parity.problems == []
    assert parity.tokens > len(PIXELS)
    assert 0 < max(parity.errors_of(STEP).values()) < MAX_NATS["fp16"]


def test_every_output_is_compared_at_several_sizes(reference: Run) -> None:
    parity = compare_engines(CONTRACT, PIXELS, reference, reference)
    compared = {(one.model, one.tensor) for one in parity.differences}
    assert compared == {
        (spec.name, tensor.name) for spec in CONTRACT.models for tensor in spec.outputs
    } - {(STEP, "candidate_tokens")}  # fmt: skip
    assert {one.batch for one in parity.differences if one.model == STEP} == {
        "32 photos x 1 beams", "1 photos x 1 beams", "8 photos x 4 beams", "2 photos x 4 beams",
    }  # fmt: skip
    assert all(one.error < 1e-6 for one in parity.differences if one.tensor == "candidate_logprobs")


@pytest.mark.parametrize("tensor", [
    "hidden_states", "embedding", "query_logprobs", "cross_value_1", "new_kv", "candidate_logprobs",
])  # fmt: skip
def test_wrong_tensor_is_named_with_its_error(reference: Run, tensor: str) -> None:
    def change(spec: ModelSpec, inputs: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        if tensor in outputs:
            outputs[tensor] = outputs[tensor] + 0.5

    parity = compare_engines(CONTRACT, PIXELS, reference, runner("fp16", change))
    assert parity.problems
    for problem in parity.problems:
        assert f"{tensor} differs by" in problem
        assert "limit" in problem
    assert parity.tokens == 0, "the rollout would only repeat it"


def test_one_wrong_value_in_one_photo_is_found(reference: Run) -> None:
    def change(spec: ModelSpec, inputs: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        if "new_kv" in outputs and len(outputs["new_kv"]) == 8:
            outputs["new_kv"][7, 1, 1, 1, 0, 3, 1] += 1

    parity = compare_engines(CONTRACT, PIXELS, reference, runner("fp16", change))
    assert len(parity.problems) == 1
    assert "8 photos x 4 beams" in parity.problems[0]


@pytest.mark.parametrize("ignored", ["tokens", "ancestors", "position", "self_key_0", "cross_value_1"])
def test_engine_that_ignores_an_input_is_found(reference: Run, ignored: str) -> None:
    engine = runner("fp16")

    def deaf(spec: ModelSpec, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if ignored in inputs:
            inputs = {**inputs, ignored: np.zeros_like(inputs[ignored])}
        return engine(spec, inputs)

    assert compare_engines(CONTRACT, PIXELS, reference, deaf).problems


def test_value_that_is_no_number_is_wrong(reference: Run) -> None:
    def change(spec: ModelSpec, inputs: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        if "cross_key_0" in outputs:
            outputs["cross_key_0"][0, 0, 0, 0] = np.nan

    assert compare_engines(CONTRACT, PIXELS, reference, runner("fp16", change)).problems


def test_chain_that_says_another_word_is_wrong(reference: Run) -> None:
    """Every engine is right on the reference's values, but not on its own: only the rollout can tell."""
    seen = []

    def change(spec: ModelSpec, inputs: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        seen.append(spec.name)
        if spec.name == STEP and seen.count(STEP) > 4:  # the four comparisons come first
            outputs["candidate_tokens"][1, 0, 0, 0] = outputs["candidate_tokens"][1, 0, 0, -1]

    parity = compare_engines(CONTRACT, PIXELS, reference, runner("fp16", change))
    assert len(parity.wrong_tokens) == 1
    assert "photo 1, position 0" in parity.problems[0]
    assert "nats" in parity.problems[0]


def test_word_the_reference_was_undecided_about_is_a_tie(reference: Run) -> None:
    def undecided(spec: ModelSpec, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs = dict(reference(spec, inputs))
        if spec.name == STEP:
            outputs["candidate_logprobs"] = outputs["candidate_logprobs"] * 0.01 - 1
        return outputs

    def swapped(spec: ModelSpec, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs = dict(undecided(spec, inputs))
        if spec.name == STEP:
            outputs["candidate_tokens"] = outputs["candidate_tokens"].copy()
            outputs["candidate_tokens"][..., :2] = outputs["candidate_tokens"][..., 1::-1]
        return outputs

    parity = compare_engines(CONTRACT, PIXELS, undecided, swapped)
    assert parity.problems == []
    assert parity.ties == len(PIXELS)


def test_relative_error_is_measured_by_the_tensors_own_size() -> None:
    values = np.array([1.0, -1.0, 1.0, -1.0])
    assert relative_error(values, values) == 0
    assert relative_error(values, values + [0.02, 0, 0, 0]) == pytest.approx(0.01)
    assert relative_error(1000 * values, 1000 * values + [20, 0, 0, 0]) == pytest.approx(0.01)
    assert relative_error(0 * values, 0 * values) == 0
    assert relative_error(0 * values, values) > 1
    assert relative_error(values, values * np.inf) == np.inf


def candidates(tokens: list[int], logprobs: list[float]) -> dict[str, Array]:
    return {
        "candidate_tokens": np.array([[tokens]], np.int32), "candidate_logprobs": np.array([[logprobs]], np.float32),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "logprobs", "error"),
    [
        ([5, 6, 7], [-1.0, -1.1, -3.0], 0.0),
        ([6, 5, 7], [-1.05, -1.05, -3.0], 0.05),  # two that were close changed places
        ([6, 5, 7], [-1.0, -1.1, -3.0], 0.1),
        ([7, 6, 5], [-1.0, -1.1, -3.0], 2.0),  # two that were not
        ([5, 6, 8], [-1.0, -1.1, -3.01], 0.01),  # another last one, as likely
        ([5, 6, 8], [-1.0, -1.1, -2.0], 1.0),  # the last one has gone, another is far more likely
        ([5, 5, 7], [-1.0, -1.1, -3.0], np.inf),  # twice the same
        ([5, 6, 7], [-1.1, -1.0, -3.0], np.inf),  # not in order
        ([5, 6, 7], [-1.0, np.nan, -3.0], np.inf),
    ],
)
def test_candidates_are_compared_as_lists(tokens: list[int], logprobs: list[float], error: float) -> None:
    found = candidate_error(candidates([5, 6, 7], [-1.0, -1.1, -3.0]), candidates(tokens, logprobs))
    assert found == pytest.approx(error, abs=1e-6)


def test_step_inputs_are_of_many_positions_and_every_photo(reference: Run) -> None:
    caches = reference(CONTRACT.prefill, reference(CONTRACT.encoder, {"pixels": PIXELS}))
    inputs = step_inputs(FP32, reference, caches, 32, 1)
    assert set(inputs) == {tensor.name for tensor in FP32.step.inputs}
    assert set(inputs["position"].flat) == set(range(CONTRACT.max_tokens))
    assert len(np.unique(inputs["cross_key_0"], axis=0)) == len(PIXELS)


def test_beams_have_ancestors_of_every_kind(reference: Run) -> None:
    caches = reference(CONTRACT.prefill, reference(CONTRACT.encoder, {"pixels": PIXELS}))
    steps = list(decode(FP32, reference, caches, 4, CONTRACT.max_tokens))
    ancestors = steps[-1][0]["ancestors"][0]  # [K, T], the same dict at every step
    assert len({tuple(row) for row in ancestors}) > 1
    assert (ancestors < 4).all()
    assert set(ancestors[:, 1:].flat) > {0, 1}


def test_not_a_number_is_too_large() -> None:
    assert Difference("m", "t", "1 photos", float("nan"), MAX_ERROR["fp16"]).is_too_large


def test_queries_that_are_most_unlikely_may_differ() -> None:
    expected = np.log(np.array([[0.5, 0.4999, 1e-6]]))
    assert nats_error(expected, expected + np.array([[0.02, -0.01, 3.0]])) == pytest.approx(0.02)
    assert nats_error(expected, expected + np.array([[0.0, 0.0, 8.0]])) == pytest.approx(8.0), "it has become likely"
    assert nats_error(expected, expected + np.array([[0.0, 0.0, np.nan]])) == np.inf
