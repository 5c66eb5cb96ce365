# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's `trtexec`, which builds TensorRT engines and runs them on given values.

It runs in one folder, directly where it is installed, else inside `IMAGE` with Docker.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ModelContract, ModelSpec
from export.tensorrt_plan import (
    OUTPUT_FILE,
    build_arguments,
    docker_command,
    full_shape,
    input_file,
    plan_file,
    run_arguments,
)

DTYPES: dict[str, npt.DTypeLike] = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32, "FP16": np.float16}

# Where NVIDIA's images have it outside the PATH.
USUAL_PLACE = Path("/usr/src/tensorrt/bin/trtexec")

BUILD_TIMEOUT_SECONDS = 3600.0  # the large model's encoder takes minutes; others may take longer
RUN_TIMEOUT_SECONDS = 600.0  # includes pulling the image
STOP_TIMEOUT_SECONDS = 20.0

_OUTPUT = re.compile(
    r'"name"\s*:\s*"(?P<name>[^"]*)"\s*,\s*"dimensions"\s*:\s*"(?P<shape>[\dx]*)"\s*,\s*'
    r'"values"\s*:\s*\[(?P<values>[^\]]*)\]'
)


class TrtexecError(RuntimeError):
    """`trtexec` is missing, failed, took too long, or wrote unexpected outputs."""


def find_trtexec() -> tuple[str, ...] | None:
    """The command that starts `trtexec` on this machine; None where it is not installed."""
    found = shutil.which("trtexec")
    if found is None and USUAL_PLACE.is_file():
        found = str(USUAL_PLACE)
    return None if found is None else (found,)


class Trtexec:
    """`trtexec` in one folder, which holds `<model>.onnx` and gets `<model>.plan` and all other files.

    Args:
        folder: the working folder.
        build_timeout_seconds: for one engine.
        run_timeout_seconds: for one run.

    Raises:
        TrtexecError: neither `trtexec` nor Docker is installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        build_timeout_seconds: float = BUILD_TIMEOUT_SECONDS,
        run_timeout_seconds: float = RUN_TIMEOUT_SECONDS,
    ):
        self.folder = folder.resolve()
        self._build_timeout_seconds = build_timeout_seconds
        self._run_timeout_seconds = run_timeout_seconds
        self._local = find_trtexec()
        self._calls = count()
        if self._local is None and shutil.which("docker") is None:
            raise TrtexecError(
                f"neither trtexec (on the PATH or at {USUAL_PLACE}) nor docker is installed: "
                "build engines on the GPU host, with `docker compose run --rm engines` or with Docker installed"
            )

    @property
    def in_docker(self) -> bool:
        """Whether `trtexec` runs in a container."""
        return self._local is None

    def command(self, arguments: Sequence[str]) -> tuple[str, ...]:
        """The whole command for these arguments of `trtexec`."""
        if self._local is not None:
            return (*self._local, *arguments)
        name = f"captrieve-trtexec-{os.getpid()}-{next(self._calls)}"
        return (*docker_command(str(self.folder), name, f"{os.getuid()}:{os.getgid()}"), *arguments)

    def version(self) -> str:
        """TensorRT's version, e.g. "11.3.0"; "" where the program does not print it.

        Raises:
            TrtexecError: the program cannot be started.
        """
        found = re.search(r"\[TensorRT v([\d.]+)\]", self._call(("--help",), self._run_timeout_seconds))
        if found is None or "." in found[1] or len(found[1]) < 6:
            return "" if found is None else found[1]
        number = int(found[1])  # 110300
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def build(self, spec: ModelSpec, contract: ModelContract) -> Path:
        """Build `<model>.plan` from `<model>.onnx`; return its path.

        Raises:
            TrtexecError: TensorRT cannot build it.
        """
        plan = self.folder / plan_file(spec.name)
        plan.unlink(missing_ok=True)
        log = self._call(build_arguments(spec, contract), self._build_timeout_seconds)
        if not plan.is_file() or plan.stat().st_size == 0:
            raise TrtexecError(f"trtexec said it built {spec.name} but wrote no engine; its last words:\n{_tail(log)}")
        return plan

    def run(self, spec: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run `<model>.plan` once.

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
        log = self._call(run_arguments(spec.name, shapes), self._run_timeout_seconds)
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

    def _call(self, arguments: Sequence[str], timeout_seconds: float) -> str:
        """Run the program and return its output; `subprocess.run` would kill `docker run` but not the container."""
        command = self.command(arguments)
        try:
            process = Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                encoding="utf-8", errors="replace",
            )  # fmt: skip
        except OSError as error:
            raise TrtexecError(f"{command[0]} cannot be started: {error}") from error
        try:
            log, _ = process.communicate(timeout=timeout_seconds)
        except BaseException as problem:
            process.terminate()
            try:
                process.communicate(timeout=STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            if isinstance(problem, subprocess.TimeoutExpired):
                raise TrtexecError(f"trtexec was stopped, it took longer than {timeout_seconds:.0f} s") from problem
            raise
        if process.returncode != 0:
            raise TrtexecError(f"{command[0]} ended with exit code {process.returncode}:\n{_tail(log)}")
        return log


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
