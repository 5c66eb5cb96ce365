# SPDX-License-Identifier: Apache-2.0
"""The cache that never moves says the same as one that gathers its rows by parents in every step."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.kv_cache import Floats, KvCache, zeros
from captioner.model_contract import Precision, TensorSpec
from tests.fakes.tiny_onnx_models import CONTRACT, tiny_contract

HEADS, SIZE, LAYERS, TIMES = CONTRACT.num_heads, CONTRACT.head_size, CONTRACT.num_layers, CONTRACT.max_tokens

_NUMPY = {"FP32": np.float32, "FP16": np.float16, "INT32": np.int32}


class GatheringCache:
    """What `generate()` does, of one caption: all keys and values, [K, t, L, 2, H, d], in a new order in every step."""

    def __init__(self, beams: int):
        self.beams: npt.NDArray[np.float32] = np.zeros((beams, 0, LAYERS, 2, HEADS, SIZE), np.float32)

    @property
    def position(self) -> int:
        return self.beams.shape[1]

    def follow(self, parents: npt.NDArray[np.int32]) -> None:
        self.beams = self.beams[parents]

    def append(self, new_kv: Floats) -> None:
        self.beams = np.concatenate([self.beams, new_kv[:, None]], axis=1)


def seen(cache: KvCache, row: int, position: int) -> Floats:
    """What each beam of a row finds at its ancestors: [K, t, L, 2, H, d]."""
    found = np.empty((cache.beams, position, LAYERS, 2, HEADS, SIZE), cache.tensors[0].dtype)
    for number, tensor in enumerate(cache.tensors):  # [rows, H, T, K, d]
        for k, t in np.ndindex(cache.beams, position):
            found[k, t, number // 2, number % 2] = tensor[row, :, t, cache.ancestors[row, k, t]]
    return found


def new_keys_and_values(rng: np.random.Generator, rows: int, beams: int) -> npt.NDArray[np.float32]:
    return rng.normal(size=(rows, beams, LAYERS, 2, HEADS, SIZE)).astype(np.float32)


@given(beams=st.integers(1, 5), count=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_beams_see_what_a_gathering_cache_gives_them(beams: int, count: int, seed: int) -> None:
    """In every round some rows take a step, in any order and each at its own position; others wait, begin or leave."""
    rng = np.random.default_rng(seed)
    cache, wanted = KvCache(CONTRACT, rows=count, beams=beams), [GatheringCache(beams) for _ in range(count)]
    for _ in range(3 * TIMES):
        rows = rng.permutation(len(wanted))[: rng.integers(1, len(wanted) + 1)].astype(np.intp)
        for row in rows:
            if wanted[row].position == TIMES or rng.random() < 0.05:
                wanted[row] = GatheringCache(beams)  # another caption begins where the old one's numbers still lie
        positions = np.array([wanted[row].position for row in rows], np.int32)
        parents = rng.integers(0, beams, (len(rows), beams), dtype=np.int32)
        cache.reorder_beams(rows, parents, positions)
        for row, of in zip(rows, parents, strict=True):
            wanted[row].follow(of)
            assert np.array_equal(seen(cache, row, wanted[row].position), wanted[row].beams)
        new = new_keys_and_values(rng, len(rows), beams)
        cache.append(rows, new, positions)
        for row, own in zip(rows, new, strict=True):
            wanted[row].append(own)
        if rng.random() < 0.1:  # rows leave, and those that stay may change places
            kept = rng.permutation(len(wanted))[: rng.integers(1, len(wanted) + 1)].tolist()
            cache.keep(kept)
            wanted = [wanted[row] for row in kept]
        for row, one in enumerate(wanted):  # also those that had no part in this
            before = one.position - 1  # its own step is not yet in anybody's ancestors
            assert np.array_equal(seen(cache, row, max(before, 0)), one.beams[:, : max(before, 0)])


def test_step_writes_its_own_rows_and_times_only() -> None:
    rng = np.random.default_rng(1)
    cache = KvCache(CONTRACT, rows=3, beams=2)
    arrays = list(cache.tensors)
    for tensor in cache.tensors:
        tensor[:] = rng.normal(size=tensor.shape)
    before = [tensor.copy() for tensor in cache.tensors]
    rows, positions = np.array([2, 0]), np.array([1, 3], np.int32)
    cache.reorder_beams(rows, np.array([[1, 1], [0, 0]], np.int32), positions)
    assert all(np.array_equal(tensor, old) for tensor, old in zip(cache.tensors, before, strict=True))
    new = new_keys_and_values(rng, 2, 2)
    cache.append(rows, new, positions)
    for number, (tensor, old) in enumerate(zip(cache.tensors, before, strict=True)):
        for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
            written = new[i, :, number // 2, number % 2]  # [K, H, d]
            assert np.array_equal(tensor[row, :, position], written.transpose(1, 0, 2))
            old[row, :, position] = tensor[row, :, position]
        assert np.array_equal(tensor, old)
    assert all(tensor is array for tensor, array in zip(cache.tensors, arrays, strict=True)), "memory was exchanged"


def test_ancestors_of_waiting_rows_stay() -> None:
    cache = KvCache(CONTRACT, rows=3, beams=2)
    cache.ancestors[:] = np.random.default_rng(2).integers(0, 2, cache.ancestors.shape)
    before = cache.ancestors.copy()
    cache.reorder_beams(np.array([1]), np.array([[1, 1]], np.int32), np.array([2], np.int32))
    assert np.array_equal(cache.ancestors[[0, 2]], before[[0, 2]])
    assert cache.ancestors[1, :, 1].tolist() == [1, 1]
    assert np.array_equal(cache.ancestors[1, 0, :1], before[1, 1, :1])


def test_first_step_has_nothing_to_go_on_from() -> None:
    cache = KvCache(CONTRACT, rows=2, beams=2)
    rows, parents = np.array([0, 1]), np.array([[1, 1], [1, 0]], np.int32)
    cache.reorder_beams(rows, parents, np.array([0, 0], np.int32))
    assert not cache.ancestors.any()  # above all not of the last time, which is where position - 1 would point


def test_kept_rows_share_nothing_with_the_cache_before() -> None:
    """Otherwise a photo that left would be written over by one that stays."""
    cache = KvCache(CONTRACT, rows=3, beams=2)
    whole = cache.tensors
    cache.keep([2, 0])
    cache.append(np.array([0, 1]), np.ones((2, 2, LAYERS, 2, HEADS, SIZE), np.float32), np.zeros(2, np.int32))
    assert [len(tensor) for tensor in cache.tensors] == [2] * 2 * LAYERS
    assert not any(tensor.any() for tensor in whole)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("beams", [1, 4])
def test_shapes_and_datatypes_are_the_contracts(precision: Precision, beams: int) -> None:
    contract = tiny_contract(precision)
    cache = KvCache(contract, rows=3, beams=beams)
    new = np.full((2, beams, LAYERS, 2, HEADS, SIZE), 0.1, np.float32)
    cache.append(np.array([0, 2]), new, np.array([2, 4], np.int32))
    names = [f"self_{part}_{layer}" for layer in range(LAYERS) for part in ("key", "value")]
    arrays = dict(zip(names, cache.tensors, strict=True)) | {"ancestors": cache.ancestors}
    specs = [spec for spec in contract.step.inputs if spec.name in arrays]
    assert len(specs) == len(arrays)
    for spec in specs:
        assert arrays[spec.name].shape == (3, *(beams if size == -1 else size for size in spec.shape))
        assert arrays[spec.name].dtype == _NUMPY[spec.datatype]


def test_layers_keep_the_contracts_order() -> None:
    contract = dataclasses.replace(CONTRACT, num_layers=3)
    cache = KvCache(contract, rows=1, beams=1)
    new = np.arange(6, dtype=np.float32).reshape(1, 1, 3, 2, 1, 1) * np.ones((HEADS, SIZE), np.float32)
    cache.append(np.array([0]), new, np.array([1], np.int32))
    assert [tensor[0, 0, 1, 0, 0] for tensor in cache.tensors] == [0, 1, 2, 3, 4, 5]
    names = [spec.name for spec in contract.step.inputs if spec.name.startswith("self_")]
    assert names == [f"self_{part}_{layer}" for layer in range(3) for part in ("key", "value")]


def test_memory_may_come_from_elsewhere() -> None:
    given_out: dict[str, Floats] = {}

    def allocate(spec: TensorSpec, shape: tuple[int, ...]) -> Floats:
        given_out[spec.name] = zeros(spec, shape)
        return given_out[spec.name]

    cache = KvCache(CONTRACT, rows=2, beams=3, allocate=allocate)
    assert list(given_out) == [f"self_{part}_{layer}" for layer in range(LAYERS) for part in ("key", "value")]
    cache.append(np.array([1]), np.ones((1, 3, LAYERS, 2, HEADS, SIZE), np.float32), np.array([0], np.int32))
    assert all(array[1, :, 0].all() and not array[0].any() for array in given_out.values())
