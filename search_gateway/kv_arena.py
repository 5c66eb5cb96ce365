# SPDX-License-Identifier: Apache-2.0
"""Slots for captions that are decoded together: both caches of a caption lie in the row of its slot.

The memory may be a region in /dev/shm that Triton maps too. Then a step tells Triton where its inputs lie, and no
cache ever crosses gRPC. Knows nothing about Triton itself.
"""

from __future__ import annotations

import contextlib
import heapq
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from captioner.model_contract import ModelContract, TensorSpec
from search_gateway.kv_cache import Floats, KvCache, zeros

_SHARED_MEMORY = Path("/dev/shm")
_ALIGNMENT = 64  # bytes: rows begin where a processor's vectors do


class KvArena:
    """`slots` captions of `beams` beams each.

    Attributes:
        cache: self-attention's keys and values, and the ancestors; row s belongs to slot s.
        cross: cross_key, cross_value [slots, H, S, d] of each layer.
        region: name of the file in /dev/shm the tensors lie in; empty where they are this process's own.
        is_stale: whoever else maps the region is gone, so no new caption may begin here.
    """

    def __init__(self, contract: ModelContract, *, slots: int, beams: int, region: str = ""):
        self.slots, self.beams, self.region = slots, beams, region
        self.is_stale = False
        self._offsets: dict[str, int] = {}
        self._file: mmap.mmap | None = None
        self._free = list(range(slots))
        if region:
            self._file = _map(region, self.byte_size(contract, slots, beams))
        allocate: Callable[[TensorSpec, tuple[int, ...]], Floats] = self._place if region else zeros
        self._end = 0
        self.cache = KvCache(contract, rows=slots, beams=beams, allocate=allocate)
        self.cross = [allocate(spec, (slots, *spec.shape)) for spec in contract.cross_caches]
        self._tensors = dict(
            zip([spec.name for spec in contract.caches], [*self.cache.tensors, *self.cross], strict=True)
        )

    @staticmethod
    def byte_size(contract: ModelContract, slots: int, beams: int) -> int:
        """Of all tensors."""
        width = 2 if contract.float_datatype == "FP16" else 4
        sizes = [np.prod([abs(beams if n == -1 else n) for n in spec.shape]) for spec in contract.caches]
        return sum(_aligned(int(size) * width * slots) for size in sizes)

    def acquire(self) -> int | None:
        """The lowest free slot, so that the rows in use stay few; None where all are taken."""
        return heapq.heappop(self._free) if self._free else None

    def release(self, slot: int) -> None:
        heapq.heappush(self._free, slot)

    def tensor(self, name: str) -> Floats:
        """[slots, ...] by the contract's name."""
        return self._tensors[name]

    def place(self, name: str) -> tuple[int, int]:
        """Where a tensor lies in the region: (offset, bytes of one slot)."""
        tensor = self._tensors[name]
        return self._offsets[name], tensor.nbytes // self.slots

    def close(self) -> None:
        """Give the region back; the arrays must not be used afterwards."""
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):  # whoever watches over Triton may have been faster
                (_SHARED_MEMORY / self.region).unlink()
            self._file = None  # unmapped with the last array on it

    def _place(self, spec: TensorSpec, shape: tuple[int, ...]) -> Floats:
        assert self._file is not None
        datatype = np.float16 if spec.datatype == "FP16" else np.float32
        flat: Floats = np.frombuffer(self._file, datatype, int(np.prod(shape)), self._end)
        array = flat.reshape(shape)
        self._offsets[spec.name] = self._end
        self._end += _aligned(array.nbytes)
        return array


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _map(region: str, size: int) -> mmap.mmap:
    """A new region of zeros. Reserved whole: what does not fit must be told now, not kill the process later.

    Raises:
        OSError: /dev/shm is too small or cannot be written.
    """
    path = _SHARED_MEMORY / region
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)
