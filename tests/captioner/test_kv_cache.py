# SPDX-License-Identifier: Apache-2.0
"""The cache that never moves says the same as one that gathers its rows by parents in every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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

    def append(self, new_kv: Floats, parents: npt.NDArray[np.int32]) -> None:
        """Some tokens: keys and values [L, 2, H, N, K, d] and the parents [N, K] that go on behind each."""
        for number, chosen in enumerate(parents):
            token = new_kv[:, :, :, number].transpose(3, 0, 1, 2, 4)  # [K, L, 2, H, d]
            self.beams = np.concatenate([self.beams, token[:, None]], axis=1)[chosen]


def seen(cache: KvCache, row: int, position: int) -> Floats:
    """What each beam of a row finds at its ancestors: [K, t, L, 2, H, d]."""
    found = np.empty((cache.beams, position, LAYERS, 2, HEADS, SIZE), cache.tensors[0].dtype)
    for number, tensor in enumerate(cache.tensors):  # [rows, H, T, K, d]
        for k, t in np.ndindex(cache.beams, position):
            found[k, t, number // 2, number % 2] = tensor[row, :, t, cache.ancestors[row, k, t]]
    return found


def new_keys_and_values(rng: np.random.Generator, rows: int, beams: int, tokens: int = 1) -> npt.NDArray[np.float32]:
    return rng.normal(size=(rows, LAYERS, 2, HEADS, tokens, beams, SIZE)).astype(np.float32)


def append(
    cache: KvCache, rows: Sequence[int], new_kv: Floats, parents: npt.NDArray[np.int32], at: Sequence[int]
) -> None:
    """Parents [n, N, K] as the step tells them: by the number of a candidate, here the parent's second one."""
    cache.append(np.array(rows, np.intp), new_kv, parents * 9 + 1, np.array(at, np.int32), 9)


@given(beams=st.integers(1, 5), count=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_beams_see_what_a_gathering_cache_gives_them(beams: int, count: int, seed: int) -> None:
    """In every round some rows get tokens, in any order and each at its own position; others wait, begin or leave."""
    rng = np.random.default_rng(seed)
    cache, wanted = KvCache(CONTRACT, rows=count, beams=beams), [GatheringCache(beams) for _ in range(count)]
    for _ in range(3 * TIMES):
        rows = rng.permutation(len(wanted))[: rng.integers(1, len(wanted) + 1)].tolist()
        for row in rows:
            if wanted[row].position == TIMES or rng.random() < 0.05:
                wanted[row] = GatheringCache(beams)  # another caption begins where the old one's numbers still lie
        positions, tokens = [wanted[row].position for row in rows], int(rng.integers(1, TIMES + 1))
        parents = rng.integers(0, beams, (len(rows), tokens, beams), dtype=np.int32)
        new = new_keys_and_values(rng, len(rows), beams, tokens)
        append(cache, rows, new, parents, positions)
        for row, own, of in zip(rows, new, parents, strict=True):
            left = TIMES - wanted[row].position  # what lies behind the last position is dropped
            wanted[row].append(own[:, :, :, :left], of[:left])
        if rng.random() < 0.1:  # rows leave, and those that stay may change places
            kept = rng.permutation(len(wanted))[: rng.integers(1, len(wanted) + 1)].tolist()
            cache.keep(kept)
            wanted = [wanted[row] for row in kept]
        for row, one in enumerate(wanted):  # also those that had no part in this
            assert np.array_equal(seen(cache, row, one.position), one.beams)


def test_step_writes_its_own_rows_and_times_only() -> None:
    rng = np.random.default_rng(1)
    cache = KvCache(CONTRACT, rows=3, beams=2)
    arrays = list(cache.tensors)
    for tensor in cache.tensors:
        tensor[:] = rng.normal(size=tensor.shape)
    before = [tensor.copy() for tensor in cache.tensors]
    rows, positions = [2, 0], [1, 3]
    new = new_keys_and_values(rng, 2, 2, 2)
    append(cache, rows, new, np.zeros((2, 2, 2), np.int32), positions)
    for number, (tensor, old) in enumerate(zip(cache.tensors, before, strict=True)):
        for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
            part = slice(position, position + 2)
            assert np.array_equal(tensor[row, :, part], new[i, number // 2, number % 2])
            old[row, :, part] = tensor[row, :, part]
        assert np.array_equal(tensor, old)
    assert all(tensor is array for tensor, array in zip(cache.tensors, arrays, strict=True)), "memory was exchanged"


def test_ancestors_of_waiting_rows_stay() -> None:
    cache = KvCache(CONTRACT, rows=3, beams=2)
    cache.ancestors[:] = np.random.default_rng(2).integers(0, 2, cache.ancestors.shape)
    before = cache.ancestors.copy()
    append(cache, [1], new_keys_and_values(np.random.default_rng(3), 1, 2), np.array([[[1, 1]]], np.int32), [1])
    assert np.array_equal(cache.ancestors[[0, 2]], before[[0, 2]])
    assert cache.ancestors[1, :, 1].tolist() == [1, 1]
    assert np.array_equal(cache.ancestors[1, 0, :1], before[1, 1, :1])


def test_kept_rows_share_nothing_with_the_cache_before() -> None:
    """Otherwise a photo that left would be written over by one that stays."""
    cache = KvCache(CONTRACT, rows=3, beams=2)
    whole = cache.tensors
    cache.keep([2, 0])
    append(cache, [0, 1], np.ones((2, LAYERS, 2, HEADS, 1, 2, SIZE), np.float32), np.zeros((2, 1, 2), np.int32), [0, 0])
    assert [len(tensor) for tensor in cache.tensors] == [2] * 2 * LAYERS
    assert not any(tensor.any() for tensor in whole)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("beams", [1, 4])
def test_shapes_and_datatypes_are_the_contracts(precision: Precision, beams: int) -> None:
    contract = tiny_contract(precision)
    cache = KvCache(contract, rows=3, beams=beams)
    new = np.full((2, LAYERS, 2, HEADS, 1, beams, SIZE), 0.1, np.float32)
    append(cache, [0, 2], new, np.zeros((2, 1, beams), np.int32), [2, 4])
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
    new = np.arange(6, dtype=np.float32).reshape(1, 3, 2, 1, 1, 1, 1) * np.ones((HEADS, 1, 1, SIZE), np.float32)
    append(cache, [0], new, np.zeros((1, 1, 1), np.int32), [1])
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
    append(cache, [1], np.ones((1, LAYERS, 2, HEADS, 1, 3, SIZE), np.float32), np.zeros((1, 1, 3), np.int32), [0])
    assert all(array[1, :, 0].all() and not array[0].any() for array in given_out.values())
