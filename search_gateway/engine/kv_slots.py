# SPDX-License-Identifier: Apache-2.0
"""Slots for captions that are decoded together: both caches of a caption lie in the row of its slot.

The memory may be a region in /dev/shm that Triton maps too. Then a step tells Triton where its inputs lie, and no
cache ever crosses gRPC. Whoever owns a region holds a lock on its file for as long as it lives, so that one whose owner
was killed can be told and removed. Knows nothing about Triton itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import math
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from captioner.kv_cache import Floats, KvCache, zeros
from captioner.model_contract import ModelContract, TensorSpec, with_beams

_SHARED_MEMORY = Path("/dev/shm")
_ALIGNMENT = 64  # bytes: rows begin where a processor's vectors do


class KvArena:
    """`slots` captions of `beams` beams each.

    Attributes:
        cache: self-attention's keys and values, and the ancestors; row s belongs to slot s.
        cross: cross_key, cross_value [slots, H, S, d] of each layer.
        region: name of the file in /dev/shm the tensors lie in; empty where they are this process's own.
        cross_region: name of a region of somebody else's that has the cross-attention's caches, which only Triton
            writes and reads (memory of a GPU); empty where they lie with the others.
        is_stale: whoever else maps the region is gone, so no new caption may begin here.
    """

    def __init__(self, contract: ModelContract, *, slots: int, beams: int, region: str = "", cross_region: str = ""):
        self.slots, self.beams, self.region, self.cross_region = slots, beams, region, cross_region
        self.is_stale = False
        self._file: mmap.mmap | None = None
        self._lock: int | None = None
        self._free = list(range(slots))
        here = contract.self_caches if cross_region else contract.caches
        self._places = _layout(here, slots, beams)
        if cross_region:
            self._places |= _layout(contract.cross_caches, slots, beams)
        if region:
            self._file, self._lock = _map(region, self.byte_size(here, slots, beams))
        allocate: Callable[[TensorSpec, tuple[int, ...]], Floats] = self._at_its_place if region else zeros
        self.cache = KvCache(contract, rows=slots, beams=beams, allocate=allocate)
        self.cross = [] if cross_region else [allocate(spec, (slots, *spec.shape)) for spec in contract.cross_caches]
        self._tensors = dict(zip([spec.name for spec in here], [*self.cache.tensors, *self.cross], strict=True))

    @staticmethod
    def byte_size(tensors: Sequence[TensorSpec], slots: int, beams: int) -> int:
        """Of a region with these caches."""
        return sum(_aligned(slots * size) for _, size in _layout(tensors, slots, beams).values())

    def acquire(self) -> int:
        """The lowest free slot, so that the rows in use stay few.

        Raises:
            IndexError: all are taken.
        """
        return heapq.heappop(self._free)

    def release(self, slot: int) -> None:
        heapq.heappush(self._free, slot)

    def tensor(self, name: str) -> Floats:
        """[slots, ...] by the contract's name."""
        return self._tensors[name]

    def place(self, name: str) -> tuple[int, int]:
        """Where a tensor lies in its region: (offset, bytes of one slot)."""
        return self._places[name]

    def close(self) -> None:
        """Give the region back; the arrays must not be used afterwards."""
        if self._file is not None and self._lock is not None:
            with contextlib.suppress(FileNotFoundError):  # whoever watches over Triton may have been faster
                (_SHARED_MEMORY / self.region).unlink()
            os.close(self._lock)
            self._file = self._lock = None  # unmapped with the last array on it

    def _at_its_place(self, spec: TensorSpec, shape: tuple[int, ...]) -> Floats:
        assert self._file is not None
        datatype = np.float16 if spec.datatype == "FP16" else np.float32
        flat: Floats = np.frombuffer(self._file, datatype, int(np.prod(shape)), self._places[spec.name][0])
        return flat.reshape(shape)


def remove_orphans(prefix: str) -> list[str]:
    """Remove regions whose name begins so and whose owner is dead (kill -9); their names."""
    removed = []
    for path in _SHARED_MEMORY.glob(f"{prefix}*"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or gone meanwhile
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed.append(path.name)
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            os.close(descriptor)
    return removed


def _layout(tensors: Sequence[TensorSpec], slots: int, beams: int) -> dict[str, tuple[int, int]]:
    """Name -> (offset, bytes of one slot), one tensor after the other."""
    places, end = {}, 0
    for spec in tensors:
        width = 2 if spec.datatype == "FP16" else 4
        size = width * math.prod(with_beams(spec, beams))
        places[spec.name] = end, size
        end += _aligned(slots * size)
    return places


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _map(region: str, size: int) -> tuple[mmap.mmap, int]:
    """A new region of zeros, and the descriptor that holds its lock.

    Reserved whole: what does not fit must be told now, not kill the process later.

    Raises:
        OSError: /dev/shm is too small or cannot be written.
    """
    path = _SHARED_MEMORY / region
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size), descriptor
    except BaseException:
        path.unlink()
        os.close(descriptor)
        raise
