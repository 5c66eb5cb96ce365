# SPDX-License-Identifier: Apache-2.0
"""The output of `export.to_tensorrt --dry-run`: a shell script that builds every engine with `trtexec`.

It shows the shapes and settings, and lets you check an engine with NVIDIA's own program inside Triton's image. Every
word is quoted.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from captioner.model_contract import ModelContract
from export.tensorrt_plan import (
    IMAGE,
    build_arguments,
    full_shape,
    onnx_file,
    run_arguments,
    shape_ranges,
)
from export.triton_config import PLAN_FILE, TENSORRT_CONFIG


def script(contract: ModelContract, models: Path, scratch: Path) -> str:
    """The script, for a shell in the image.

    Args:
        contract: of the models.
        models: folder of the ONNX models.
        scratch: folder for temporary files.
    """
    folder = scratch.resolve() / "engines"
    lines = [
        "#!/bin/sh",
        f"# {contract.model!r}, {contract.precision}: three engines, to be built in {IMAGE}.",
        "set -eu",
        shlex.join(["mkdir", "-p", "--", str(folder)]),
        shlex.join(["cd", "--", str(folder)]),
    ]
    for spec in contract.models:
        source = models.resolve() / spec.name / "1" / "model.onnx"
        arguments = build_arguments(spec, contract)
        lines += ["", f"# {spec.name}: the smallest shapes, those for which kernels are chosen, the largest"]
        lines += [
            f"#   {tensor.name:<18}{tensor.datatype:<6}{_times(one.least)} {_times(one.best)} {_times(one.most)}"
            for tensor, one in zip(spec.inputs, shape_ranges(spec, contract), strict=True)
        ]
        lines.append(shlex.join(["cp", "--", str(source), onnx_file(spec.name)]))
        lines.append(shlex.join(["trtexec", *arguments]))
    lines += ["", "# Then each engine is run on photos and compared with the FP32 model, for example one photo:"]
    for spec in contract.models:
        shapes = {tensor.name: full_shape(tensor, 1, 1) for tensor in spec.inputs}
        lines.append(f"#   {shlex.join(['trtexec', *run_arguments(spec.name, shapes)])}")
    lines.append(
        f"# If all pass, they are installed as 1/{PLAN_FILE} with {TENSORRT_CONFIG} in each folder of {str(models)!r}."
    )
    return "\n".join(lines) + "\n"


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
