# SPDX-License-Identifier: Apache-2.0
"""The record of an installed engine, `model.plan.json` beside it, which decides whether it must be built again.

An engine runs only with the TensorRT version and on the kind of GPU that it was built with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

RECORD_SUFFIX = ".json"


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """How an engine was built."""

    model: str  # of the contract, e.g. "fashion-small"
    weights: str  # the contract's fingerprint of the checkpoint
    precision: str  # of the contract
    tensorrt: str  # version, e.g. "11.3.0.99"
    gpu: str  # e.g. "Tesla T4"
    arguments: tuple[str, ...]  # with which trtexec would build the same engine
    onnx_sha256: str  # of the ONNX file
    plan_sha256: str  # of the engine
    built: str  # time, ISO 8601
    errors: dict[str, float]  # tensor -> largest error, see `engine_parity`

    def save(self, plan: Path) -> Path:
        """Write the record of an engine beside it; return its path."""
        path = record_path(plan)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, plan: Path) -> EngineRecord | None:
        """Read the record of an engine; None where there is none, or where another version of this code wrote it."""
        try:
            fields = json.loads(record_path(plan).read_text(encoding="utf-8"))
            return cls(**{**fields, "arguments": tuple(fields["arguments"])})
        except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, TypeError, KeyError):
            return None


def record_path(plan: Path) -> Path:
    """The path of an engine's record."""
    return plan.with_name(plan.name + RECORD_SUFFIX)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason_to_build(
    plan: Path, *, onnx_sha256: str, arguments: tuple[str, ...], tensorrt: str, gpu: str, weights: str
) -> str | None:
    """Why the engine at `plan` must be built for this model, TensorRT and GPU; None where it can be used."""
    if not plan.is_file():
        return "there is none"
    record = EngineRecord.load(plan)
    if record is None:
        return "what it was made of is not known"
    if not gpu:
        return "the GPU cannot be asked for"
    for name, installed, wanted in (
        ("TensorRT", record.tensorrt, tensorrt),
        ("GPU", record.gpu, gpu),
        ("checkpoint", record.weights, weights),
        ("ONNX file", record.onnx_sha256, onnx_sha256),
    ):
        if installed != wanted:
            return f"{name} was {installed[:16]}, is {wanted[:16]}"
    if record.arguments != arguments:
        return "it was built with other arguments"
    if sha256_of(plan) != record.plan_sha256:
        return "the file is not the one that was recorded"
    return None
