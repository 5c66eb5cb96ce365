# SPDX-License-Identifier: Apache-2.0
"""Python-based Triton backend `onnxruntime`: runs a model.onnx with ONNX Runtime on the CPU.

It takes the name of NVIDIA's native backend, so one config.pbtxt serves both. Triton's stub process
reads this file on its own: it can import numpy, onnxruntime and triton_python_backend_utils, and
knows nothing about captions, the gateway or what its tensors mean.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]
import triton_python_backend_utils as pb_utils

Feeds = dict[str, npt.NDArray[Any]]

# Triton's tensor types that are plain numpy arrays on both sides, so nothing is converted per call.
_ONNX_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
}


class TritonPythonModel:
    """One model instance: one stub process with one ONNX Runtime session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model and compare it with config.pbtxt.

        Raises:
            TritonModelException: the file cannot be loaded, or it is not what the config says.
        """
        config = json.loads(args["model_config"])
        model_path = (
            Path(args["model_repository"])
            / args["model_version"]
            / (config.get("default_model_filename") or "model.onnx")
        )
        self._session = _open_session(model_path, config)
        self._is_batched = config.get("max_batch_size", 0) > 0
        self._input_names = [tensor["name"] for tensor in config["input"]]
        self._output_names = [tensor["name"] for tensor in config["output"]]
        # A wrong config fails here, at start, as it does with the native backend.
        _check_tensors("input", config["input"], self._session.get_inputs(), self._is_batched, is_complete=True)
        _check_tensors(
            "output",
            config["output"],
            self._session.get_outputs(),
            self._is_batched,
            is_complete=False,
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests that Triton's dynamic batcher put together, in their order.

        Cancellation is not asked for: `is_cancelled` costs a round trip to the server per request,
        and the native backend does not ask either.
        """
        if self._is_batched and len(requests) > 1:
            try:
                return self._run_together(requests)
            except Exception:
                # One request with, say, an index out of range fails the whole run. Alone, below,
                # only that one fails and its neighbours get their answers.
                pass
        return [self._run_alone(request) for request in requests]

    def finalize(self) -> None:
        """Give the session's memory back when the model is unloaded."""
        del self._session

    def _run_together(self, requests: Sequence[Any]) -> list[Any]:
        feeds = [self._feeds(request) for request in requests]
        wanted = [set(request.requested_output_names()) for request in requests]
        output_names = [name for name in self._output_names if any(name in w for w in wanted)]
        rows = [len(feed[self._input_names[0]]) for feed in feeds]
        together = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        outputs = self._session.run(output_names, together)
        for name, output in zip(output_names, outputs, strict=True):
            if len(output) != sum(rows):
                raise ValueError(f"output {name} has {len(output)} rows, its input {sum(rows)}")
        ends = np.cumsum(rows)
        return [
            pb_utils.InferenceResponse(
                [
                    # Rows are contiguous: the slice is a view and is copied once, by Triton.
                    pb_utils.Tensor(name, output[end - count : end])
                    for name, output in zip(output_names, outputs, strict=True)
                    if name in names
                ]
            )
            for names, count, end in zip(wanted, rows, ends, strict=True)
        ]

    def _run_alone(self, request: Any) -> Any:
        try:
            requested = set(request.requested_output_names())
            output_names = [name for name in self._output_names if name in requested]
            outputs = self._session.run(output_names, self._feeds(request))
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, output) for name, output in zip(output_names, outputs, strict=True)]
            )
        except Exception as error:
            # Raised further it would fail every request of this call, also those already answered.
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _feeds(self, request: Any) -> Feeds:
        # `as_numpy` is a view on the shared memory Triton wrote to; ONNX Runtime reads it there.
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._input_names}


def _open_session(model_path: Path, config: dict[str, Any]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _thread_count(config)
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Idle threads that spin win microseconds for one model and take whole cores from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: warnings about its own optimisations help nobody here
    try:
        return onnxruntime.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise pb_utils.TritonModelException(f"cannot load {model_path}: {error}") from error


def _thread_count(config: dict[str, Any]) -> int:
    """The parameter that NVIDIA's backend reads too; 0 or none means every core we may use.

    ONNX Runtime's own 0 would also pin its threads to cores, whoever else runs there.
    """
    text = config.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value", "0")
    if not text.isdecimal():
        raise pb_utils.TritonModelException(
            f"parameter intra_op_thread_count is {text!r}; it must be a whole number, 0 for all"
        )
    return int(text) or len(os.sched_getaffinity(0))


def _check_tensors(
    kind: str,
    configured: Sequence[dict[str, Any]],
    in_model: Sequence[onnxruntime.NodeArg],
    is_batched: bool,
    *,
    is_complete: bool,
) -> None:
    """Compare names, types and shapes; `is_complete` when the model cannot run without each one."""
    by_name = {tensor.name: tensor for tensor in in_model}
    missing = by_name.keys() - {tensor["name"] for tensor in configured}
    if is_complete and missing:
        raise pb_utils.TritonModelException(f"config.pbtxt lacks {kind} {', '.join(sorted(missing))} of the model")
    for tensor in configured:
        name, data_type = tensor["name"], tensor["data_type"]
        if name not in by_name:
            raise pb_utils.TritonModelException(
                f"config.pbtxt names {kind} {name}; the model has {', '.join(sorted(by_name))}"
            )
        model_type, model_dims = by_name[name].type, by_name[name].shape
        if _ONNX_TYPES.get(data_type) != model_type:
            raise pb_utils.TritonModelException(
                f"{kind} {name} is {data_type} in config.pbtxt and {model_type} in the model"
            )
        dims = [-1, *tensor["dims"]] if is_batched else tensor["dims"]
        if not _fits(dims, model_dims):
            batch = ", the first being the batch (max_batch_size > 0)" if is_batched else ""
            raise pb_utils.TritonModelException(
                f"{kind} {name} is {dims} in config.pbtxt{batch}, and {model_dims} in the model"
            )


def _fits(dims: Sequence[int], model_dims: Sequence[int | str | None]) -> bool:
    """Whether the model takes every shape the config lets through; a named dimension is free."""
    return len(dims) == len(model_dims) and all(
        not isinstance(model_dim, int) or model_dim == dim for dim, model_dim in zip(dims, model_dims, strict=True)
    )
