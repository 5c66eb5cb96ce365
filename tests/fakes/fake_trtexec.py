# SPDX-License-Identifier: Apache-2.0
"""A stand-in for NVIDIA's `trtexec` that runs the ONNX file with ONNX Runtime.

It runs the engines of `fake_tensorrt`. As the real program it checks arguments, names and shapes of inputs, and sizes
of files. The variable `FAKE_TRTEXEC` makes it and `fake_tensorrt` fail, see `MISBEHAVIOUR`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BANNER = "&&&& {state} TensorRT.trtexec [TensorRT v110300] [b99] # {command}"

MISBEHAVIOUR = """
fail:MODEL          cannot build MODEL
wrong:TENSOR:DELTA  adds DELTA to every value of TENSOR
nan:TENSOR          its first value is no number
silent              runs, writes no output
hang                does not end
"""

RUN_FLAGS = {"--loadEngine", "--shapes", "--loadInputs", "--exportOutput", "--iterations", "--warmUp", "--duration"}


class UsageError(Exception):
    pass


def fake_run(command: Sequence[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
    """Stands in for `subprocess.run`, but runs in this process, because starting Python takes longest."""
    said, code = trtexec(command[1:], Path(cwd))
    return subprocess.CompletedProcess(command, code, said)


def trtexec(arguments: Sequence[str], folder: Path) -> tuple[str, int]:
    """Run the program; returns what it prints, and its exit code."""
    command = " ".join(["trtexec", *arguments])
    what, *details = os.environ.get("FAKE_TRTEXEC", "").split(":")
    log = [BANNER.format(state="RUNNING", command=command)]
    flags = dict(argument.partition("=")[::2] for argument in arguments)
    if what == "hang":
        time.sleep(3600)
    try:
        if unknown := flags.keys() - RUN_FLAGS:
            raise UsageError(f"Unknown option: {unknown}")
        log.append("[01/01/2026-00:00:00] [I] Selected Device: Tesla T4")
        _run(flags, folder, what, details)
        log.append("[01/01/2026-00:00:00] [I] GPU Compute Time: min = 1 ms, max = 3 ms, mean = 2 ms, median = 1.5 ms")
    except (UsageError, OSError, ValueError) as error:
        log.append(f"[01/01/2026-00:00:00] [E] {error}")
        return "\n".join([*log, BANNER.format(state="FAILED", command=command)]), 1
    return "\n".join([*log, BANNER.format(state="PASSED", command=command)]), 0


def _run(flags: dict[str, str], folder: Path, what: str, details: list[str]) -> None:
    header, _, onnx_bytes = (folder / flags["--loadEngine"]).read_bytes().partition(b"\n")
    limits = json.loads(header)
    session = _session(onnx_bytes)
    shapes = _shapes(flags["--shapes"])
    files = dict(pair.rsplit(":", 1) for pair in flags["--loadInputs"].split(","))
    values = {}
    for one in session.get_inputs():
        shape = shapes[one.name]
        for size, low, high in zip(shape, limits["least"][one.name], limits["most"][one.name], strict=True):
            if not low <= size <= high:
                raise UsageError(f"{one.name}: {shape} is outside the profile")
        dtype = {"tensor(uint8)": "u1", "tensor(int32)": "i4", "tensor(float)": "f4", "tensor(float16)": "f2"}[one.type]
        data = (folder / files[one.name]).read_bytes()
        if len(data) != np.prod(shape) * np.dtype(dtype).itemsize:
            raise UsageError(f"Unexpected file size for input file: {files[one.name]}")
        values[one.name] = np.frombuffer(data, dtype).reshape(shape)
    names = [one.name for one in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, values), strict=True))
    if what == "wrong" and details[0] in outputs:
        outputs[details[0]] = outputs[details[0]] + outputs[details[0]].dtype.type(float(details[1]))
    if what == "nan" and details[0] in outputs:
        outputs[details[0]].flat[0] = np.nan
    if what != "silent":
        (folder / flags["--exportOutput"]).write_text(_written(outputs), encoding="utf-8")


def _written(outputs: dict[str, npt.NDArray[Any]]) -> str:
    """Format outputs as sampleReporting.cpp does: floats with six digits."""
    tensors = [
        f'{{ "name" : "{name}"\n  , "dimensions" : "{"x".join(map(str, array.shape))}"\n'
        f'  , "values" : [ {", ".join(f"{value:g}" for value in array.astype(float).flat)} ]\n  }}'
        for name, array in outputs.items()
    ]
    return "[\n  " + "\n, ".join(tensors) + "\n]\n"


def _session(model: bytes) -> Any:
    import onnxruntime  # slow, and not needed for --help

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def _shapes(text: str) -> dict[str, list[int]]:
    pairs = (pair.rsplit(":", 1) for pair in text.split(","))
    return {name: [int(size) for size in shape.split("x")] for name, shape in pairs}


if __name__ == "__main__":
    said, code = trtexec(sys.argv[1:], Path.cwd())
    print(said)
    sys.exit(code)
