# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's `trtexec`, which runs TensorRT engines on given values.

It is the second program that reads an engine: that it runs there shows that the engine fits the TensorRT library that
`trtexec` is linked with, which is the one that Triton serves with.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ModelSpec
from export.tensorrt_plan import (
    OUTPUT_FILE,
    full_shape,
    input_file,
    run_arguments,
)

DTYPES: dict[str, npt.DTypeLike] = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32, "FP16": np.float16}

# Where NVIDIA's images have it outside the PATH.
USUAL_PLACE = Path("/usr/src/tensorrt/bin/trtexec")

RUN_TIMEOUT_SECONDS = 600.0

_OUTPUT = re.compile(
    r'"name"\s*:\s*"(?P<name>[^"]*)"\s*,\s*"dimensions"\s*:\s*"(?P<shape>[\dx]*)"\s*,\s*'
    r'"values"\s*:\s*\[(?P<values>[^\]]*)\]'
)


# "GPU Compute Time: min = 3.41 ms, max = 3.5 ms, mean = 3.44 ms, median = 3.43 ms, percentile(90%) = ..."
_MEDIAN = re.compile(r"GPU Compute Time:.*?median = ([\d.]+) ms")


class TrtexecError(RuntimeError):
    """`trtexec` is missing, failed, took too long, or wrote unexpected outputs."""


class Trtexec:
    """`trtexec` in one folder, which holds `<model>.plan` and gets all other files.

    Args:
        folder: the working folder.
        timeout_seconds: for one run.

    Attributes:
        milliseconds: (model, B, K) -> the GPU's time for such a batch, without copies, where `trtexec` printed it.

    Raises:
        TrtexecError: `trtexec` is not installed.
    """

    def __init__(self, folder: Path, *, timeout_seconds: float = RUN_TIMEOUT_SECONDS):
        self.folder = folder.resolve()
        self.milliseconds: dict[tuple[str, int, int], float] = {}
        self._timeout_seconds = timeout_seconds
        found = shutil.which("trtexec") or (str(USUAL_PLACE) if USUAL_PLACE.is_file() else None)
        if found is None:
            raise TrtexecError(
                f"trtexec is neither on the PATH nor at {USUAL_PLACE}: build engines on the GPU host, in Triton's "
                "image, with `docker compose run --rm --build engines`"
            )
        self._program = found

    def run(self, spec: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run `<model>.plan` on a batch some times, and keep the median time.

        Args:
            spec: of the model.
            inputs: name -> array, batch axis first.

        Returns:
            Output name -> array, batch axis first; floats are FP32.

        Raises:
            TrtexecError: the engine does not run, or its outputs are not those of `spec`.
        """
        batch_size, beams = _sizes(spec, inputs)
        for tensor in spec.inputs:
            values = np.ascontiguousarray(inputs[tensor.name], dtype=DTYPES[tensor.datatype])
            values.tofile(self.folder / input_file(tensor.name))
        output = self.folder / OUTPUT_FILE
        output.unlink(missing_ok=True)
        shapes = {tensor.name: full_shape(tensor, batch_size, beams) for tensor in spec.inputs}
        log = self._call(run_arguments(spec.name, shapes))
        if median := _MEDIAN.search(log):
            self.milliseconds[spec.name, batch_size, beams] = float(median[1])
        if not output.is_file():
            raise TrtexecError(f"trtexec ran {spec.name} but wrote no outputs; its last words:\n{_tail(log)}")
        found = parse_outputs(output.read_text(encoding="utf-8", errors="replace"))
        for tensor in spec.outputs:
            shape = full_shape(tensor, batch_size, beams)
            if tensor.name not in found:
                raise TrtexecError(f"the engine of {spec.name} has no output {tensor.name}, only {', '.join(found)}")
            if found[tensor.name].shape != shape:
                raise TrtexecError(
                    f"{spec.name}: {tensor.name} is {list(found[tensor.name].shape)}, the contract says {list(shape)}"
                )
        return {tensor.name: found[tensor.name].astype(_result_dtype(tensor.datatype)) for tensor in spec.outputs}

    def _call(self, arguments: Sequence[str]) -> str:
        """Run the program and return its output."""
        try:
            answer = run(
                (self._program, *arguments), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", timeout=self._timeout_seconds,
            )  # fmt: skip
        except OSError as error:
            raise TrtexecError(f"{self._program} cannot be started: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise TrtexecError(f"trtexec was stopped, it took longer than {self._timeout_seconds:.0f} s") from error
        if answer.returncode != 0:
            raise TrtexecError(f"{self._program} ended with exit code {answer.returncode}:\n{_tail(answer.stdout)}")
        return answer.stdout


def gpu_name() -> str:
    """The name of the first GPU from nvidia-smi; "" where there is none."""
    command = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    try:
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = answer.stdout.splitlines()
    return lines[0].strip() if answer.returncode == 0 and lines else ""


def parse_outputs(text: str) -> dict[str, npt.NDArray[np.float64]]:
    """Parse the output of --exportOutput, which is JSON except for the values nan, -nan and inf.

    Returns:
        Output name -> array.

    Raises:
        TrtexecError: a value is not a number, or the number of values does not fit a shape.
    """
    outputs = {}
    for found in _OUTPUT.finditer(text):
        shape = tuple(int(size) for size in found["shape"].split("x") if size)
        try:
            values = np.array(found["values"].replace("\n", " ").split(","), dtype=np.float64)
        except ValueError as error:
            raise TrtexecError(f"{OUTPUT_FILE}: {found['name']} holds a value that is not a number: {error}") from error
        if values.size != math.prod(shape):
            raise TrtexecError(f"{OUTPUT_FILE}: {found['name']} has {values.size} values, its shape is {list(shape)}")
        outputs[found["name"]] = values.reshape(shape)
    return outputs


def _sizes(spec: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int]:
    """(B, K) of some inputs."""
    for tensor in spec.inputs:
        shape = inputs[tensor.name].shape
        if -1 in tensor.shape:
            return shape[0], shape[1 + tensor.shape.index(-1)]
    return len(inputs[spec.inputs[0].name]), 1


def _result_dtype(datatype: str) -> npt.DTypeLike:
    """The dtype for an output: printed floats have six digits, so all of them become FP32."""
    return np.float32 if datatype.startswith("FP") else DTYPES[datatype]


def _tail(log: str, lines: int = 20) -> str:
    """The last error lines, which TensorRT prints long before the end, and the last lines of a log."""
    everything = log.splitlines()
    errors = [line for line in everything if "[E]" in line]
    return "\n".join("  " + line for line in [*errors[-lines:], *everything[-5:]])
