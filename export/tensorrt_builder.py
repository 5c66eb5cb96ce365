# SPDX-License-Identifier: Apache-2.0
"""Builds engines with the Python API that TensorRT and TensorRT-RTX have in common.

TensorRT builds for the GPU of this host, on which it times its kernels. TensorRT-RTX compiles for a compute capability
and needs no GPU; its engines do not run in Triton. In both, types come from the ONNX file alone (strong typing).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from captioner.model_contract import ContractError, ModelContract, ModelSpec
from export.tensorrt_plan import WORKSPACE_MIB, full_shape, shape_ranges
from export.triton_config import request_sizes

Backend = Literal["tensorrt", "rtx"]

TURING = "7.5"

# The wheel of the bindings alone has another name than the complete package; both have the same content.
_MODULES: dict[Backend, tuple[str, ...]] = {"tensorrt": ("tensorrt", "tensorrt_bindings"), "rtx": ("tensorrt_rtx",)}
_REMEDIES: dict[Backend, str] = {
    "tensorrt": "build the engines in Triton's image, with `docker compose run --rm --build engines`",
    "rtx": "install tensorrt-rtx-cu12, which the dependency group dev has",
}
_DATATYPES = {"UINT8": "UINT8", "INT32": "INT32", "FLOAT": "FP32", "HALF": "FP16"}  # TensorRT's name -> KServe's


class BuildError(RuntimeError):
    """The library is missing, or cannot parse or build a model."""


@dataclass(frozen=True)
class Builder:
    """TensorRT or TensorRT-RTX.

    Attributes:
        trt: the Python module.
        compute_capability: for which TensorRT-RTX compiles, e.g. "7.5"; None: the GPU of this host.
    """

    trt: Any
    compute_capability: str | None = None

    @classmethod
    def load(cls, backend: Backend, compute_capability: str | None = None) -> Builder:
        """Import the library.

        Raises:
            BuildError: it is not installed, or does not know the compute capability.
        """
        for name in _MODULES[backend]:
            try:
                builder = cls(importlib.import_module(name), compute_capability)
            except ImportError as error:
                reason = error
            else:
                if compute_capability is not None:
                    builder._capability(compute_capability)
                return builder
        raise BuildError(
            f"the Python module {_MODULES[backend][0]} cannot be imported ({reason}): {_REMEDIES[backend]}"
        )

    @property
    def version(self) -> str:
        """The library's version, e.g. "11.3.0.99"."""
        return str(self.trt.__version__)

    def build(self, onnx: Path, spec: ModelSpec, contract: ModelContract, timing_cache: Path | None = None) -> bytes:
        """Build the engine of one model.

        Args:
            onnx: the model's file.
            spec: of the model.
            contract: of the repository.
            timing_cache: a file of kernel timings, which is read if it exists and written.

        Returns:
            The engine.

        Raises:
            BuildError: the library cannot parse or build the model.
            ContractError: the model's tensors are not those of `spec`, or the engine would refuse what Triton sends.
        """
        trt, log = self.trt, _log(self.trt)
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(onnx)):
            errors = [str(parser.get_error(number)) for number in range(parser.num_errors)]
            raise BuildError(_sentence(f"{spec.name}: the ONNX parser refuses {onnx}", errors or log.errors))
        problems = list(_tensor_problems(network, spec))
        if self.compute_capability == TURING:
            _halve_products(trt, network)
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_MIB << 20)
        for one in shape_ranges(spec, contract):
            profile.set_shape(one.name, one.least, one.best, one.most)
        problems = problems or list(_profile_problems(profile, spec))
        if problems:
            raise ContractError(f"{onnx}: {'; '.join(problems)}: export it again")
        config.add_optimization_profile(profile)
        if self.compute_capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(self._capability(self.compute_capability), 0)
        if timing_cache is not None:
            known = timing_cache.read_bytes() if timing_cache.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise BuildError(_sentence(f"{spec.name}: no engine was built", log.errors))
        if timing_cache is not None:
            timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
        return bytes(engine)

    def _capability(self, text: str) -> Any:
        known = {name: value for name, value in self.trt.ComputeCapability.__members__.items() if name.startswith("SM")}
        name = f"SM{text.replace('.', '')}"
        if name not in known:
            raise BuildError(f"compute capability {text} is none of {', '.join(f'{k[2:-1]}.{k[-1]}' for k in known)}")
        return known[name]


def _tensor_problems(network: Any, spec: ModelSpec) -> Iterator[str]:
    """Compare name, type and shape of every tensor that enters or leaves the network with the contract."""
    for kind, tensors, count, tensor_of in (
        ("input", spec.inputs, network.num_inputs, network.get_input),
        ("output", spec.outputs, network.num_outputs, network.get_output),
    ):
        found = {}
        for tensor in map(tensor_of, range(count)):
            found[tensor.name] = (_DATATYPES.get(tensor.dtype.name, tensor.dtype.name), tuple(tensor.shape))
        wanted = {tensor.name: (tensor.datatype, (-1, *tensor.shape)) for tensor in tensors}
        for name in found.keys() - wanted.keys():
            yield f"{kind} {name} is not in the contract"
        for name, (datatype, shape) in wanted.items():
            if name not in found:
                yield f"{kind} {name} is missing"
            elif found[name] != (datatype, shape):
                yield (
                    f"{kind} {name} is {found[name][0]} {list(found[name][1])}, the contract says {datatype} "
                    f"{list(shape)}"
                )


def _profile_problems(profile: Any, spec: ModelSpec) -> Iterator[str]:
    """Compare the engine's shapes with those that the Triton configuration allows, warms up and captures."""
    for tensor in spec.inputs:
        least, _, most = (tuple(shape) for shape in profile.get_shape(tensor.name))
        for batch_size, beams in request_sizes(spec):
            shape = full_shape(tensor, batch_size, beams)
            if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
                yield f"Triton may send {tensor.name} {list(shape)}, the engine takes {list(least)} to {list(most)}"
                break


def _halve_products(trt: Any, network: Any) -> None:
    """Make products of FP32 matrices products in FP16: TensorRT-RTX has none in FP32 for Turing, TensorRT has them."""
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    for product in products:
        result = product.get_output(0)
        if result.dtype != trt.DataType.FLOAT:
            continue
        readers = [
            (layer, place)
            for layer in layers
            for place in range(layer.num_inputs)
            if (tensor := layer.get_input(place)) is not None and tensor.name == result.name
        ]
        for place in range(product.num_inputs):
            half = network.add_cast(product.get_input(place), trt.DataType.HALF)
            product.set_input(place, half.get_output(0))
        single = network.add_cast(result, trt.DataType.FLOAT).get_output(0)
        for layer, place in readers:
            layer.set_input(place, single)


def _log(trt: Any) -> Any:
    """A logger for the library that keeps errors and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _sentence(what: str, errors: list[str]) -> str:
    return "\n  ".join([what, *errors[-20:]])
