# SPDX-License-Identifier: Apache-2.0
"""Python-based Triton backend `onnxruntime`: runs a model.onnx with ONNX Runtime on the CPU.

It has the name of NVIDIA's native backend, so that one config.pbtxt works with both. Triton's stub process reads this
file alone: it can import only numpy, onnxruntime and triton_python_backend_utils.

Unlike the native backend, it can read and write tensors in the caller's memory. Triton copies every tensor of a python
backend twice, also one in shared memory, which costs more than decoding in the case of a decoder's caches. The request
parameter `shared_tensors` is JSON:

    {"region": name of a file in /dev/shm,
     "inputs": {name: [offset in bytes, [shape]]},      read there; the config calls them optional
     "outputs": {name: offset in bytes}}                written there

The caller must not touch these bytes until it has the answer.

A model whose config has the parameter `then`, names of further models of the repository with commas between, is the
first of a chain. Where a request wants outputs of a later model, in its answer or in "outputs", all models up to that
one run in the same call, each with the outputs of those before it. So the caller's photo needs one call, and what is
between the models is copied nowhere. "inputs" may name inputs of later models, too. The output `chain_seconds` is the
duration of each model of the chain, in seconds, and the same for all rows.

Where the config has the parameter `alone_thread_count`, the first model runs with so many threads for a request that
has the parameter `alone`: the caller knows of no other work for the cores.
"""

import gc
import json
import math
import mmap
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]
import triton_python_backend_utils as pb_utils

Feeds = dict[str, npt.NDArray[Any]]

_PARAMETER = "shared_tensors"
_ALONE = "alone"
_THREADS = "intra_op_thread_count"
_SECONDS = "chain_seconds"
_SHARED_MEMORY = Path("/dev/shm")
_MAX_KNOWN = 1000
_SPIN_MICROSECONDS = (
    "20"  # export/LOG.md, 2026-11-30: of the large step 17 % less time than without, and no more gain at 100
)

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
# The same for tensors in shared memory, without what numpy has no name of its own for.
_NUMPY_TYPES = {
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


class TritonPythonModel:
    """One model instance: one stub process with an ONNX Runtime session, or several in a chain."""

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
        self._chain = [_Model(_open_session(model_path, _thread_count(config)))]
        self._alone = self._chain[0].session
        if _parameter(config, "alone_thread_count"):
            self._alone = _open_session(model_path, _thread_count(config, "alone_thread_count"))
        for name in filter(None, _parameter(config, "then").split(",")):
            folder = Path(args["model_repository"]).parent / name / args["model_version"]
            self._chain.append(
                _Model(_open_session(folder / model_path.name, _thread_count(config, f"{_THREADS}.{name}")))
            )
        self._is_batched = config.get("max_batch_size", 0) > 0
        self._input_names = [tensor["name"] for tensor in config["input"]]
        self._output_names = [tensor["name"] for tensor in config["output"]]
        self._shared = SharedTensors([tensor for model in self._chain for tensor in model.session.get_inputs()])
        # A wrong config fails here, at start, as it does with the native backend.
        _check_tensors(
            "input", config["input"], self._chain[0].session.get_inputs(), self._is_batched, is_complete=True
        )
        _check_tensors(
            "output",
            [tensor for tensor in config["output"] if tensor["name"] != _SECONDS],
            [tensor for model in self._chain for tensor in model.session.get_outputs()],
            self._is_batched,
            is_complete=False,
        )
        if len(self._chain) > 1:  # a warm-up sample of Triton's has inputs of the first model only
            for session in (self._alone, *(model.session for model in self._chain)):
                _warm_up(session)
        gc.collect()
        gc.freeze()  # a later collection, which stops every call, need not look at all of this

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests that Triton's dynamic batcher put together, in their order.

        Cancellation is not asked for: `is_cancelled` costs a round trip to the server per request,
        and the native backend does not ask either.
        """
        # Shared tensors cannot be joined without the copy they are there to save.
        if self._is_batched and len(requests) > 1 and not any(map(_shared_tensors, requests)):
            try:
                return self._run_together(requests)
            except Exception:
                # One request with, say, an index out of range fails the whole run. Alone, below,
                # only that one fails and its neighbours get their answers.
                pass
        return [self._run_alone(request) for request in requests]

    def finalize(self) -> None:
        """Release the sessions' memory when the model is unloaded."""
        del self._chain, self._alone

    def _run_together(self, requests: Sequence[Any]) -> list[Any]:
        feeds = [self._feeds(request) for request in requests]
        wanted = [set(request.requested_output_names()) for request in requests]
        output_names = [name for name in self._output_names if any(name in one for one in wanted)]
        rows = [len(feed[self._input_names[0]]) for feed in feeds]
        together = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        outputs = self._run(set(output_names), together)
        for name, output in outputs.items():
            if len(output) != sum(rows):
                raise ValueError(f"output {name} has {len(output)} rows, its input {sum(rows)}")
        ends = np.cumsum(rows)
        return [
            pb_utils.InferenceResponse(
                [
                    # Rows are contiguous, so the slice is a view, which Triton copies once.
                    pb_utils.Tensor(name, output[end - count : end])
                    for name, output in outputs.items()
                    if name in names
                ]
            )
            for names, count, end in zip(wanted, rows, ends, strict=True)
        ]

    def _run_alone(self, request: Any) -> Any:
        try:
            shared = self._shared.of(request)
            wanted = set(request.requested_output_names()).union(shared.outputs if shared else ())
            outputs = self._run(wanted, self._feeds(request, shared), is_alone=_ALONE in _parameters(request))
            if shared is not None:
                shared.take(outputs)
            return pb_utils.InferenceResponse([pb_utils.Tensor(name, output) for name, output in outputs.items()])
        except Exception as error:
            # Raised further, it would fail every request of this call, also those already answered.
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _run(self, wanted: set[str], feeds: Feeds, *, is_alone: bool = False) -> Feeds:
        """Compute outputs with the models up to the last one that has any of them.

        Raises:
            ValueError: no model has such an output.
        """
        if unknown := wanted.difference({_SECONDS}, *(model.outputs for model in self._chain)):
            raise ValueError(f"the model has no outputs {', '.join(sorted(unknown))}")
        last = max(number for number, model in enumerate(self._chain) if number == 0 or wanted & model.outputs)
        used = self._chain[: last + 1]
        known, seconds = dict(feeds), []
        for number, model in enumerate(used):
            later = wanted.union(*(one.inputs for one in used[number + 1 :]))
            names = [name for name in model.output_names if name in later]
            begun = time.perf_counter()
            session = self._alone if is_alone and number == 0 else model.session
            outputs = session.run(names, {name: known[name] for name in model.inputs & known.keys()})
            known |= zip(names, outputs, strict=True)
            seconds.append(time.perf_counter() - begun)
        if _SECONDS in wanted:
            seconds += [0.0] * (len(self._chain) - len(used))
            known[_SECONDS] = np.tile(np.array(seconds, np.float32), (len(feeds[self._input_names[0]]), 1))
        return {name: known[name] for name in wanted}

    def _feeds(self, request: Any, shared: "_Shared | None" = None) -> Feeds:
        # `as_numpy` is a view on the shared memory Triton wrote to; ONNX Runtime reads it there.
        tensors = ((name, pb_utils.get_input_tensor_by_name(request, name)) for name in self._input_names)
        feeds = {name: tensor.as_numpy() for name, tensor in tensors if tensor is not None}
        return feeds if shared is None else {**feeds, **shared.inputs}


class _Model:
    """One model of the chain."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.inputs = {tensor.name for tensor in session.get_inputs()}
        self.output_names = [tensor.name for tensor in session.get_outputs()]
        self.outputs = set(self.output_names)


class SharedTensors:
    """The callers' regions of /dev/shm, and the tensors that requests have there."""

    def __init__(self, inputs: Sequence[onnxruntime.NodeArg]) -> None:
        self._types = {tensor.name: _NUMPY_TYPES[tensor.type] for tensor in inputs if tensor.type in _NUMPY_TYPES}
        self._regions: dict[str, mmap.mmap] = {}
        self._known: dict[str, _Shared] = {}  # a decoder uses the same views in every step

    def of(self, request: Any) -> "_Shared | None":
        """What the request's parameter asks for, if it has one.

        Raises:
            ValueError, LookupError, TypeError, OSError: it is malformed, or there is no such region.
        """
        text = _shared_tensors(request)
        if not text:
            return None
        if text not in self._known:
            question = json.loads(text)
            region = self._regions.get(question["region"]) or self._open(question["region"])
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[text] = _Shared(
                region,
                {
                    name: _view(region, offset, shape, np.dtype(self._types[name]))
                    for name, (offset, shape) in question.get("inputs", {}).items()
                },
                dict(question.get("outputs", {})),
            )
        return self._known[text]

    def _open(self, name: str) -> mmap.mmap:
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise ValueError(f"{name!r} is no name of a region")
        # A region without a file has no caller any more; its memory is freed with the last view.
        gone = [other for other in self._regions if not (_SHARED_MEMORY / other).exists()]
        for other in gone:
            del self._regions[other]
        self._known.clear()
        descriptor = os.open(_SHARED_MEMORY / name, os.O_RDWR | os.O_NOFOLLOW)
        try:
            self._regions[name] = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        return self._regions[name]


class _Shared:
    """One request's tensors in a region."""

    def __init__(self, region: mmap.mmap, inputs: Feeds, outputs: dict[str, int]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._region = region

    def take(self, outputs: Feeds) -> None:
        """Move outputs from `outputs` to the region, as requested; none of them if one does not fit."""
        moved = {name: outputs.pop(name) for name in self.outputs}
        places = {
            name: _view(self._region, self.outputs[name], values.shape, values.dtype) for name, values in moved.items()
        }
        for name, values in moved.items():
            places[name][...] = values


def _view(region: mmap.mmap, offset: int, shape: Sequence[int], datatype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array in a region. numpy itself looks at the end only: an offset below zero would read what lies before.

    Raises:
        ValueError, TypeError: it does not lie in the region.
    """
    end = offset + math.prod(shape) * datatype.itemsize
    if min(offset, *shape) < 0 or end > len(region):
        raise ValueError(f"{list(shape)} at byte {offset} does not lie in the region of {len(region)} bytes")
    return np.ndarray(shape, datatype, region, offset)


def _shared_tensors(request: Any) -> str:
    """The request's parameter, or nothing."""
    return str(_parameters(request).get(_PARAMETER, ""))


def _parameters(request: Any) -> dict[str, Any]:
    parameters = request.parameters()
    return dict(json.loads(parameters)) if parameters else {}


def _open_session(model_path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # A thread that goes on spinning takes a core from the other models; one that sleeps at once is woken a thousand
    # times in a call.
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: its warnings about optimisations are of no use here
    try:
        return onnxruntime.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise pb_utils.TritonModelException(f"cannot load {model_path}: {error}") from error


def _warm_up(session: onnxruntime.InferenceSession) -> None:
    """Run a model once with zeros, all free sizes being 1."""
    feeds = {
        tensor.name: np.zeros(
            [size if isinstance(size, int) else 1 for size in tensor.shape], _NUMPY_TYPES[tensor.type]
        )
        for tensor in session.get_inputs()
    }
    session.run(None, feeds)


def _parameter(config: dict[str, Any], key: str) -> str:
    return str(config.get("parameters", {}).get(key, {}).get("string_value", ""))


def _thread_count(config: dict[str, Any], key: str = _THREADS) -> int:
    """The parameter that NVIDIA's backend reads too; 0 or none means every core we may use.

    ONNX Runtime's own 0 would also pin its threads to cores, whoever else runs there.
    """
    text = _parameter(config, key) or "0"
    if not text.isdecimal():
        raise pb_utils.TritonModelException(f"parameter {key} is {text!r}; it must be a whole number, 0 for all")
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
