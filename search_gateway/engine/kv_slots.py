# SPDX-License-Identifier: Apache-2.0
"""The KV slot pool: memory for the caches of the captions of one running batch; row s belongs to slot s.

The memory may be a region in /dev/shm that Triton maps too. A step then tells Triton where its inputs are, and no cache
crosses gRPC. The owner of a region holds a lock on its file while it lives, so that `remove_orphans` recognises and
removes regions whose owner was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.kv_cache import Floats, Ids, KvCache, zeros
from captioner.model_contract import ModelContract, TensorSpec, with_beams

_SHARED_MEMORY = Path("/dev/shm")
_ALIGNMENT = 64  # bytes: rows begin where a processor's vectors do


class KvSlotPool:
    """The caches of `slots` captions with `beams` beams each.

    Args:
        contract: gives names, types and shapes of the tensors.
        slots: number of captions.
        beams: number of beams of each caption.
        region: name of a new file in /dev/shm for the tensors; empty for memory of this process alone.
        cross_region: name of a region that another owner has allocated for the cross-attention's caches and that only
            Triton reads and writes (GPU memory); empty where these caches are in `region` too.

    Attributes:
        cache: the self-attention's keys and values, and the ancestors.
        cross: cross_key, cross_value [slots, H, S, d] of each layer; empty with `cross_region`.
        descriptions: number of rows -> where their tensors are, in the words of Triton's backend; for its caller.
        tokens_per_call: N, of the contract.
        is_stale: the Triton that maps the region is gone, or a write whose end nobody will learn may still reach the
            region. No new caption may begin here.
        freed: called whenever a slot becomes free.

    Raises:
        OSError: /dev/shm is too small or not writable.
    """

    def __init__(self, contract: ModelContract, *, slots: int, beams: int, region: str = "", cross_region: str = ""):
        self.slots, self.beams, self.region, self.cross_region = slots, beams, region, cross_region
        self.tokens_per_call = contract.tokens_per_call
        self._candidates = contract.num_candidates
        self.is_stale = False
        self.freed: Callable[[], object] = lambda: None
        self._file: mmap.mmap | None = None
        self._lock: int | None = None
        self._free = list(range(slots))
        self._written: set[int] = set()  # a call may still write to these slots
        self._released_early: set[int] = set()  # of those, the ones to free when the write has ended
        self.descriptions: dict[int, str] = {}
        here = self.tensors_of(contract, has_cross=not cross_region)
        self._locations = _layout(here, slots, beams)
        if cross_region:
            self._locations |= _layout(contract.cross_caches, slots, beams)
        if region:
            self._file, self._lock = _map(region, self.byte_size(here, slots, beams))
        allocate: Callable[[TensorSpec, tuple[int, ...]], Floats] = self._at_its_location if region else zeros
        self.cache = KvCache(contract, rows=slots, beams=beams, allocate=allocate)
        self.cross = [] if cross_region else [allocate(spec, (slots, *spec.shape)) for spec in contract.cross_caches]
        caches = contract.self_caches if cross_region else contract.caches
        self._tensors = dict(zip([spec.name for spec in caches], [*self.cache.tensors, *self.cross], strict=True))

    @staticmethod
    def tensors_of(contract: ModelContract, *, has_cross: bool = True) -> tuple[TensorSpec, ...]:
        """What lies in a region: the caches, and room for what a step returns for them."""
        return (*(contract.caches if has_cross else contract.self_caches), new_kv_room(contract))

    @staticmethod
    def byte_size(tensors: Sequence[TensorSpec], slots: int, beams: int) -> int:
        """Return the size of a region with these caches, in bytes."""
        return sum(_aligned(slots * size) for _, size in _layout(tensors, slots, beams).values())

    @property
    def num_free(self) -> int:
        """Number of slots that `acquire` can give now."""
        return len(self._free)

    def acquire(self) -> int:
        """Take the lowest free slot, so that a step computes few rows.

        Raises:
            IndexError: all slots are taken.
        """
        return heapq.heappop(self._free)

    def release(self, slot: int) -> None:
        """Return a slot that `acquire` gave. A slot that is written to becomes free at `end_write`."""
        if slot in self._written:
            self._released_early.add(slot)
            return
        heapq.heappush(self._free, slot)
        self.freed()

    def begin_write(self, slots: Sequence[int]) -> None:
        """A call begins that writes to these slots, however long its caller waits for it."""
        self._written.update(slots)

    def end_write(self, slots: Sequence[int]) -> None:
        """The call has ended: it writes no more."""
        self._written.difference_update(slots)
        for slot in self._released_early.intersection(slots):
            self._released_early.remove(slot)
            self.release(slot)

    def append(self, slots: Sequence[int], new_kv: Floats, selected: Ids, positions: Ids) -> None:
        """Store what a call of the step made for n slots, see `KvCache.append`; row i is that of the i-th of them."""
        if slots:
            self.cache.append(np.array(slots, np.intp), new_kv, selected, positions, self._candidates)

    def tensor(self, name: str) -> Floats:
        """Return a tensor by its name in the contract, [slots, ...]."""
        return self._tensors[name]

    def answer(self, name: str, shape: tuple[int, ...]) -> Floats:
        """Return what Triton wrote to the room of a step's output."""
        assert self._file is not None
        return np.ndarray(shape, self.cache.tensors[0].dtype, self._file, self._locations[name][0])

    def location(self, name: str) -> tuple[int, int]:
        """Return where a tensor is in its region: (offset, size of one slot), in bytes."""
        return self._locations[name]

    def close(self) -> None:
        """Remove the region; the arrays must not be used afterwards."""
        if self._file is not None and self._lock is not None:
            with contextlib.suppress(FileNotFoundError):  # Triton's supervisor may have removed it already
                (_SHARED_MEMORY / self.region).unlink()
            os.close(self._lock)
            self._file = self._lock = None  # unmapped when the last array on it is deleted

    def _at_its_location(self, spec: TensorSpec, shape: tuple[int, ...]) -> Floats:
        assert self._file is not None
        return np.ndarray(shape, _dtype(spec), self._file, self._locations[spec.name][0])


class PhotoBuffer:
    """A region for what a call of encoder, prefill and perhaps step reads and writes for some photos.

    A photo gets its slot only when it has been encoded, if it needs one then. So photos in the encoder do not hold low
    slots, and a step computes all rows up to the highest slot in use.

    Args:
        contract: gives names, types and shapes of the tensors.
        photos: most photos of a call.
        beams: K, if calls make the captions' first tokens, too; 0: they end with prefill.
        region: name of a new file in /dev/shm.

    Attributes:
        cross: cross_key, cross_value [photos, H, S, d] of each layer.

    Raises:
        OSError: /dev/shm is too small or not writable.
    """

    def __init__(self, contract: ModelContract, photos: int, beams: int, region: str):
        self.region, self.beams = region, beams
        specs = list(contract.cross_caches)
        self._cross_names = [spec.name for spec in specs]
        if beams:
            # A new caption's caches are zeros, which all of them share, and ancestors that are less than one cache.
            self._empty = {spec.name: spec for spec in contract.step.inputs if spec in contract.self_caches}
            self._empty |= {spec.name: spec for spec in contract.step.inputs if spec.name == "ancestors"}
            self._small = [
                spec for spec in contract.step.inputs if spec.name not in self._empty and spec not in contract.caches
            ]
            self._new_kv = new_kv_room(contract)
            specs += [*self._small, self._new_kv, contract.self_caches[0]]
        self._places = {name: place for name, (place, _) in _layout(specs, photos, max(beams, 1)).items()}
        self._zeros = specs[-1].name
        self._file, self._lock = _map(region, KvSlotPool.byte_size(specs, photos, max(beams, 1)))
        self.cross: list[Floats] = [
            np.ndarray((photos, *spec.shape), _dtype(spec), self._file, self._places[spec.name])
            for spec in contract.cross_caches
        ]
        self._descriptions: dict[int, str] = {}

    def description(self, photos: int) -> str:
        """Return where the tensors of so many photos are, in the words of Triton's backend."""
        if photos not in self._descriptions:
            inputs: dict[str, list[object]] = {}
            outputs = {name: self._places[name] for name in self._cross_names}
            if self.beams:
                for spec in (*self._small, *self._empty.values()):
                    place = self._places[self._zeros if spec.name in self._empty else spec.name]
                    inputs[spec.name] = [place, [photos, *with_beams(spec, self.beams)]]
                outputs[self._new_kv.name] = self._places[self._new_kv.name]
            self._descriptions[photos] = json.dumps({"region": self.region, "inputs": inputs, "outputs": outputs})
        return self._descriptions[photos]

    def write(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Store the inputs of a first call of the step, what `captioner.decoding.small_inputs` returned."""
        for spec in self._small:
            values = inputs[spec.name]
            np.ndarray(values.shape, values.dtype, self._file, self._places[spec.name])[...] = values

    def new_kv(self, photos: int, tokens: int) -> Floats:
        """Return what the step wrote, [photos, L, 2, H, tokens, K, d]; valid until the next call."""
        layers, two, heads, _, _, width = self._new_kv.shape
        shape = (photos, layers, two, heads, tokens, self.beams, width)
        return np.ndarray(shape, _dtype(self._new_kv), self._file, self._places[self._new_kv.name])

    def close(self) -> None:
        """Remove the region, which is unmapped when the last array on it is deleted."""
        with contextlib.suppress(FileNotFoundError):
            (_SHARED_MEMORY / self.region).unlink()
        os.close(self._lock)


def new_kv_room(contract: ModelContract) -> TensorSpec:
    """The step's output new_kv with room for the most tokens of a call."""
    *_, answer = contract.step.outputs
    shape = (*answer.shape[:3], contract.tokens_per_call, *answer.shape[4:])
    return TensorSpec(answer.name, answer.datatype, shape)


def remove_orphans(prefix: str) -> list[str]:
    """Remove the regions with this prefix whose owner is dead (kill -9), and return their names."""
    removed = []
    for path in _SHARED_MEMORY.glob(f"{prefix}*"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or already removed
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed.append(path.name)
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            os.close(descriptor)
    return removed


def orphans_among(regions: Iterable[str], prefix: str) -> list[str]:
    """Those with this prefix that have no file any more."""
    return [name for name in regions if name.startswith(prefix) and not (_SHARED_MEMORY / name).exists()]


def _layout(tensors: Sequence[TensorSpec], slots: int, beams: int) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size of one slot) in bytes, one tensor after the other."""
    locations, end = {}, 0
    for spec in tensors:
        width = 2 if spec.datatype == "FP16" else 4
        size = width * math.prod(with_beams(spec, beams))
        locations[spec.name] = end, size
        end += _aligned(slots * size)
    return locations


def _dtype(spec: TensorSpec) -> type[np.floating[Any]]:
    return np.float16 if spec.datatype == "FP16" else np.float32


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _map(region: str, size: int) -> tuple[mmap.mmap, int]:
    """Create a region of zeros; returns it and the descriptor that holds its lock.

    All its memory is reserved now: a page that did not fit later would kill the process.

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
