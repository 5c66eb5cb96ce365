# SPDX-License-Identifier: Apache-2.0
"""The model contract: its file, the shapes it implies, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from captioner.model_contract import (
    CONTRACT_FILE,
    CONTRACT_VERSION,
    ENCODER,
    PREFILL,
    STEP,
    ContractError,
    ModelContract,
    TensorSpec,
)

# Every size another number, so that no two axes can be swapped unnoticed.
FIELDS: dict[str, Any] = {
    "model": "toy",
    "image_height": 80,
    "image_width": 64,
    "fit": "pad",
    "num_positions": 81,
    "hidden_size": 40,
    "num_layers": 3,
    "num_heads": 5,
    "head_size": 8,
    "max_tokens": 12,
    "num_candidates": 9,
    "max_beams": 4,
    "tokens_per_call": 2,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def contract(**changes: Any) -> ModelContract:
    return ModelContract(**{**FIELDS, **changes})


def written(folder: Path, fields: object) -> Path:
    (folder / CONTRACT_FILE).write_text(json.dumps(fields), encoding="utf-8")
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("fit", ["pad", "trim", "squash"])
def test_contract_is_read_as_it_was_written(tmp_path: Path, precision: str, fit: str) -> None:
    original = contract(precision=precision, fit=fit)
    assert original.save(tmp_path) == tmp_path / CONTRACT_FILE
    assert ModelContract.load(tmp_path) == original


def test_file_names_every_field_and_ends_in_a_newline(tmp_path: Path) -> None:
    text = contract().save(tmp_path).read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text) == {
        **FIELDS,
        "num_queries": 0,
        "weights": "",
        "precision": "fp32",
        "title_reader": "",
        "version": CONTRACT_VERSION,
    }


def test_contract_in_the_repository_is_readable() -> None:
    stored = ModelContract.load(Path(__file__).parents[2] / "model_repository")
    assert stored.hidden_size > 0
    assert [spec.name for spec in stored.models] == [ENCODER, PREFILL, STEP]


def test_encoder_takes_pixels_and_gives_hidden_states_and_embedding() -> None:
    spec = contract(precision="fp16").encoder
    assert spec.name == "vit_encoder"
    assert spec.inputs == (TensorSpec("pixels", "UINT8", (80, 64, 3)),)
    assert spec.outputs == (
        TensorSpec("hidden_states", "FP16", (81, 40)),
        TensorSpec("embedding", "FP32", (40,)),
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_query_head_is_a_third_output_of_the_encoder_in_fp32(precision: str) -> None:
    with_head, without = contract(precision=precision, num_queries=7).encoder, contract(precision=precision).encoder
    assert with_head.inputs == without.inputs
    assert with_head.outputs == (*without.outputs, TensorSpec("query_logprobs", "FP32", (7,)))


@pytest.mark.parametrize("count", [1, -2])
def test_number_of_queries_that_no_head_can_have_is_refused(count: int) -> None:
    with pytest.raises(ContractError, match=f"^num_queries {count} is neither 0 nor at least 2$"):
        contract(num_queries=count)


def test_prefill_turns_hidden_states_into_keys_and_values() -> None:
    spec = contract().prefill
    assert spec.name == "gpt2_prefill"
    assert spec.inputs == (TensorSpec("hidden_states", "FP32", (81, 40)),)
    assert spec.outputs == (
        TensorSpec("cross_key_0", "FP32", (5, 81, 8)),
        TensorSpec("cross_value_0", "FP32", (5, 81, 8)),
        TensorSpec("cross_key_1", "FP32", (5, 81, 8)),
        TensorSpec("cross_value_1", "FP32", (5, 81, 8)),
        TensorSpec("cross_key_2", "FP32", (5, 81, 8)),
        TensorSpec("cross_value_2", "FP32", (5, 81, 8)),
    )


def test_step_shares_the_cross_attention_of_a_photo_between_its_beams() -> None:
    spec = contract(precision="fp16").step
    assert spec.name == "gpt2_step"
    assert spec.inputs == (
        TensorSpec("tokens", "INT32", (-1,)),
        TensorSpec("scores", "FP32", (-1,)),
        TensorSpec("ancestors", "INT32", (-1, 12)),
        TensorSpec("position", "INT32", (1,)),
        *(TensorSpec(f"self_{part}_{i}", "FP16", (5, 12, -1, 8)) for i in range(3) for part in ("key", "value")),
        *(TensorSpec(f"cross_{part}_{i}", "FP16", (5, 81, 8)) for i in range(3) for part in ("key", "value")),
    )
    assert spec.outputs == (
        TensorSpec("candidate_logprobs", "FP32", (2, -1, 9)),
        TensorSpec("candidate_tokens", "INT32", (2, -1, 9)),
        TensorSpec("selected", "INT32", (2, -1)),
        TensorSpec("new_kv", "FP16", (3, 2, 5, 2, -1, 8)),
    )


def test_step_for_cpus_is_told_when_to_end_and_makes_fewer_tokens_then() -> None:
    half, whole = contract(precision="fp16").step, contract(precision="fp32").step
    assert [tensor for tensor in whole.inputs if tensor.name not in {one.name for one in half.inputs}] == [
        TensorSpec("finished", "FP32", (-1,)), TensorSpec("limits", "INT32", (2,)),
    ]  # fmt: skip
    assert [tensor.shape for tensor in whole.outputs] == [
        (-1, -1, 9), (-1, -1, 9), (-1, -1), (3, 2, 5, -1, -1, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [0, 13])
def test_number_of_tokens_that_no_call_can_make_is_refused(count: int) -> None:
    with pytest.raises(ContractError, match=f"^tokens_per_call {count} is not between 1 and 12$"):
        contract(tokens_per_call=count)


def test_what_one_model_gives_the_next_one_takes() -> None:
    encoder, prefill, step = contract().models
    assert encoder.outputs[0] == prefill.inputs[0]
    assert set(prefill.outputs) <= set(step.inputs)


def test_int8_models_take_and_give_floats() -> None:
    assert contract(precision="int8").models == contract(precision="fp32").models


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ContractError, match="precision 'int4' is none of fp32, fp16, int8"):
        contract(precision="int4")


def test_older_version_is_named_before_its_fields(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="contract version 1 is not 4, the one this code reads: export the model"):
        ModelContract.load(written(tmp_path, {**FIELDS, "float_datatype": "FP32", "version": 1}))


def test_contract_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        contract().max_tokens = 13  # type: ignore[misc]


def test_missing_file_names_the_command_that_writes_it(tmp_path: Path) -> None:
    message = f"{tmp_path / CONTRACT_FILE} is missing: run `python -m export.install_models`"
    with pytest.raises(ContractError, match=f"^{re.escape(message)}$"):
        ModelContract.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"not json"])
def test_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CONTRACT_FILE).write_bytes(content)
    with pytest.raises(ContractError, match=f"{CONTRACT_FILE} is not JSON: "):
        ModelContract.load(tmp_path)


@pytest.mark.parametrize(("value", "kind"), [([], "list"), ("pad", "str"), (7, "int"), (None, "NoneType")])
def test_json_that_is_no_object_is_refused(tmp_path: Path, value: object, kind: str) -> None:
    with pytest.raises(ContractError, match=f"{CONTRACT_FILE} holds {kind}, not an object"):
        ModelContract.load(written(tmp_path, value))


def test_unknown_field_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=f"{CONTRACT_FILE} does not fit this code: .*'colour'"):
        ModelContract.load(written(tmp_path, {**FIELDS, "colour": "red"}))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_missing_field_is_refused_by_name(tmp_path: Path, name: str) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != name}
    with pytest.raises(ContractError, match=f"{CONTRACT_FILE} does not fit this code: .*'{name}'"):
        ModelContract.load(written(tmp_path, fields))


def test_number_written_as_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=f"{CONTRACT_FILE} does not fit this code"):
        ModelContract.load(written(tmp_path, {**FIELDS, "max_beams": "4"}))


@pytest.mark.parametrize("version", [0, 1, 2, 3, 99])
def test_other_version_is_refused_with_both_numbers(tmp_path: Path, version: int) -> None:
    message = f"contract version {version} is not {CONTRACT_VERSION}, the one this code reads: export the model again"
    with pytest.raises(ContractError, match=f"^{message}$"):
        ModelContract.load(written(tmp_path, {**FIELDS, "version": version}))


def test_a_step_must_return_twice_as_many_candidates_as_beams() -> None:
    assert contract(max_beams=4, num_candidates=8).num_candidates == 8
    with pytest.raises(ContractError, match=r"^num_candidates 7 is less than twice max_beams 4$"):
        contract(max_beams=4, num_candidates=7)


def test_unknown_fit_is_refused_with_the_choices() -> None:
    with pytest.raises(ContractError, match=r"^fit 'crop' is none of pad, trim, squash$"):
        contract(fit="crop")


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_height", 0), ("image_height", 192.0), ("num_layers", True), ("vocab_size", -1), ("bos_token_id", None),
     ("bos_token_id", -1), ("model", 7), ("weights", None)],
)  # fmt: skip
def test_value_of_another_kind_is_refused_with_file_and_name(tmp_path: Path, name: str, value: object) -> None:
    written(tmp_path, {**FIELDS, name: value})
    with pytest.raises(ContractError, match=f"{CONTRACT_FILE}: {name} {value!r} is not a "):
        ModelContract.load(tmp_path)
