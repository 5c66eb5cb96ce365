# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Python module `tensorrt`: TensorRT-RTX parses and holds the network, but nothing is compiled.

An "engine" is a line with its shapes, followed by the ONNX file; `fake_trtexec` runs it. The variable `FAKE_TRTEXEC`
makes it fail as `fake_trtexec` says.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import tensorrt_rtx
from tensorrt_rtx import DataType, ILogger, MemoryPoolType, NetworkDefinitionCreationFlag

__all__ = ["Builder", "DataType", "ILogger", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser"]
__version__ = "11.3.0.99"

_files: dict[str, Path] = {}  # name of a network -> its ONNX file


class OnnxParser:
    def __init__(self, network: Any, log: Any):
        self._network, self._parser = network, tensorrt_rtx.OnnxParser(network, log)

    def parse_from_file(self, path: str) -> bool:
        is_parsed: bool = self._parser.parse_from_file(path)
        _files[self._network.name] = Path(path)
        return is_parsed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


class Builder:
    def __init__(self, log: Any):
        self._log, self._builder = log, tensorrt_rtx.Builder(log)

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return self._builder.create_network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Any:
        return self._builder.create_optimization_profile()

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        file = _files[network.name]
        if os.environ.get("FAKE_TRTEXEC", "") == f"fail:{file.stem}":
            self._log.log(ILogger.Severity.ERROR, "Error Code 10: Could not find any implementation for node")
            return None
        config.cache.text += f"{file.stem}\n"
        (profile,) = config.profiles
        shapes = {tensor.name: profile.get_shape(tensor.name)
                  for tensor in map(network.get_input, range(network.num_inputs))}  # fmt: skip
        limits = {which: {name: list(shape[place]) for name, shape in shapes.items()}
                  for which, place in (("least", 0), ("most", 2))}  # fmt: skip
        return json.dumps(limits).encode() + b"\n" + file.read_bytes()


class Config:
    def __init__(self) -> None:
        self.profiles: list[Any] = []
        self.cache = TimingCache("")

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert pool == MemoryPoolType.WORKSPACE
        assert size < 8 << 30, "a T4 has 16 GB for everything"

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, known: bytes) -> TimingCache:
        return TimingCache(known.decode())

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.cache = cache

    def get_timing_cache(self) -> TimingCache:
        return self.cache


class TimingCache:
    def __init__(self, text: str):
        self.text = text

    def serialize(self) -> bytes:
        return self.text.encode()
