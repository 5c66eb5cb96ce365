# SPDX-License-Identifier: Apache-2.0
"""An engine is built again when anything it depends on has changed, and only then."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from export.engine_record import EngineRecord, reason_to_build, record_path, sha256_of

CURRENT: dict[str, Any] = {
    "onnx_sha256": "0123", "arguments": ("--a=1", "--b"), "tensorrt": "11.3.0", "gpu": "Tesla T4", "weights": "f00d",
}  # fmt: skip


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(b"an engine")
    record(path).save(path)
    return path


def record(plan: Path) -> EngineRecord:
    return EngineRecord(
        model="tiny", precision="fp16", plan_sha256=sha256_of(plan), built="2026-01-01", errors={"x": 0.1},
        **CURRENT,
    )  # fmt: skip


def test_record_is_read_as_it_was_written(plan: Path) -> None:
    assert EngineRecord.load(plan) == record(plan)


def test_nothing_changed_nothing_is_built(plan: Path) -> None:
    assert reason_to_build(plan, **CURRENT) is None


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("onnx_sha256", "4567", "ONNX file was 0123, is 4567"),
        ("tensorrt", "11.4.0", r"TensorRT was 11\.3\.0, is 11\.4\.0"),
        ("gpu", "NVIDIA L4", "GPU was Tesla T4, is NVIDIA L4"),
        ("weights", "beef", "checkpoint was f00d, is beef"),
        ("arguments", ("--a=2", "--b"), "other arguments"),
        ("gpu", "", "the GPU cannot be asked for"),
    ],
)
def test_every_change_is_a_reason(plan: Path, name: str, value: Any, reason: str) -> None:
    found = reason_to_build(plan, **{**CURRENT, name: value})
    assert found is not None
    assert re.search(reason, found)


def test_engine_that_is_not_the_recorded_one_is_a_reason(plan: Path) -> None:
    plan.write_bytes(b"another engine")
    assert reason_to_build(plan, **CURRENT) == "the file is not the one that was recorded"


def test_missing_engine_is_a_reason(tmp_path: Path) -> None:
    assert reason_to_build(tmp_path / "model.plan", **CURRENT) == "there is none"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"arguments": []}', "\x00"])
def test_record_that_cannot_be_read_is_a_reason(plan: Path, text: str) -> None:
    record_path(plan).write_text(text)
    assert reason_to_build(plan, **CURRENT) == "what it was made of is not known"


def test_record_of_another_version_is_a_reason(plan: Path) -> None:
    fields = dataclasses.asdict(record(plan)) | {"new_field": 1}
    record_path(plan).write_text(json.dumps(fields))
    assert EngineRecord.load(plan) is None
