# SPDX-License-Identifier: Apache-2.0
"""The cache that never moves says the same as one that gathers its rows by parents in every step."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.model_contract import Precision
from search_gateway.kv_cache import Floats, KvCache
from tests.tiny_onnx_models import CONTRACT, tiny_contract

HEADS, SIZE, LAYERS, TIMES = CONTRACT.num_heads, CONTRACT.head_size, CONTRACT.num_layers, CONTRACT.max_tokens


class GatheringCache:
    """What `generate()` does: all keys and values of a beam, [B, K, t, L, 2, H, d], in a new order in every step."""

    def __init__(self, photos: int, beams: int):
        self.rows: npt.NDArray[np.float32] = np.zeros((photos, beams, 0, LAYERS, 2, HEADS, SIZE), np.float32)

    def follow(self, parents: npt.NDArray[np.int32]) -> None:
        self.rows = np.stack([rows[of] for rows, of in zip(self.rows, parents, strict=True)])

    def append(self, new_kv: Floats) -> None:
        self.rows = np.concatenate([self.rows, new_kv[:, :, None]], axis=2)


def seen(cache: KvCache, position: int) -> Floats:
    """What each beam finds at its ancestors: [B, K, t, L, 2, H, d]."""
    photos, beams, _ = cache.ancestors.shape
    found = np.empty((photos, beams, position, LAYERS, 2, HEADS, SIZE), cache.tensors[0].dtype)
    for number, tensor in enumerate(cache.tensors):  # [B, H, T, K, d]
        for b, k, t in np.ndindex(photos, beams, position):
            found[b, k, t, number // 2, number % 2] = tensor[b, :, t, cache.ancestors[b, k, t]]
    return found


def new_keys_and_values(rng: np.random.Generator, photos: int, beams: int) -> npt.NDArray[np.float32]:
    return rng.normal(size=(photos, beams, LAYERS, 2, HEADS, SIZE)).astype(np.float32)


@given(beams=st.integers(1, 5), photos=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_beams_see_what_a_gathering_cache_gives_them(beams: int, photos: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cache, wanted = KvCache(CONTRACT, photos=photos, beams=beams), GatheringCache(photos, beams)
    for position in range(TIMES):
        count = len(cache.ancestors)
        parents = rng.integers(0, beams, (count, beams), dtype=np.int32)
        cache.follow(parents, position)
        wanted.follow(parents)
        assert np.array_equal(seen(cache, position), wanted.rows)
        new = new_keys_and_values(rng, count, beams)
        cache.append(new, position)
        wanted.append(new)
        if rng.random() < 0.4:  # photos leave, and those that stay may change places
            rows = rng.permutation(count)[: rng.integers(1, count + 1)].tolist()
            cache.keep(rows)
            wanted.rows = wanted.rows[rows]


def test_what_was_written_never_moves() -> None:
    rng = np.random.default_rng(1)
    cache = KvCache(CONTRACT, photos=2, beams=3)
    arrays = list(cache.tensors)
    for position in range(TIMES):
        before = [tensor.copy() for tensor in cache.tensors]
        cache.follow(np.array([[2, 0, 0], [1, 1, 2]], np.int32), position)
        cache.append(new_keys_and_values(rng, 2, 3), position)
        others = [time for time in range(TIMES) if time != position]
        for tensor, old in zip(cache.tensors, before, strict=True):
            assert np.array_equal(tensor[:, :, others], old[:, :, others])
            assert tensor[:, :, position].all()
    assert all(tensor is array for tensor, array in zip(cache.tensors, arrays, strict=True))


def test_first_step_has_nothing_to_go_on_from() -> None:
    cache = KvCache(CONTRACT, photos=1, beams=2)
    cache.follow(np.array([[1, 1]], np.int32), 0)
    assert not cache.ancestors.any()


def test_kept_photos_share_nothing_with_the_cache_before() -> None:
    """Otherwise a photo that left would be written over by one that stays, or the other way round."""
    cache = KvCache(CONTRACT, photos=3, beams=2)
    whole = cache.tensors
    cache.keep([2, 0])
    cache.append(np.ones((2, 2, LAYERS, 2, HEADS, SIZE), np.float32), 0)
    assert [len(tensor) for tensor in cache.tensors] == [2] * 2 * LAYERS
    assert not any(tensor.any() for tensor in whole)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("beams", [1, 4])
def test_shapes_and_datatypes_are_the_contracts(precision: Precision, beams: int) -> None:
    contract = tiny_contract(precision)
    cache = KvCache(contract, photos=3, beams=beams)
    cache.append(np.full((3, beams, LAYERS, 2, HEADS, SIZE), 0.1, np.float32), 2)
    arrays = {f"self_{part}_{layer}": cache.tensors[2 * layer + i]
              for layer in range(LAYERS) for i, part in enumerate(("key", "value"))} | {"ancestors": cache.ancestors}  # fmt: skip
    names = {"FP32": np.float32, "FP16": np.float16, "INT32": np.int32}
    specs = [spec for spec in contract.step.inputs if spec.name in arrays]
    assert len(specs) == len(arrays)
    for spec in specs:
        assert arrays[spec.name].shape == (3, *(beams if size == -1 else size for size in spec.shape))
        assert arrays[spec.name].dtype == names[spec.datatype]


def test_layers_keep_the_contracts_order() -> None:
    contract = dataclasses.replace(CONTRACT, num_layers=3)
    cache = KvCache(contract, photos=1, beams=1)
    new = np.arange(6, dtype=np.float32).reshape(1, 1, 3, 2, 1, 1) * np.ones((HEADS, SIZE), np.float32)
    cache.append(new, 1)
    assert [tensor[0, 0, 1, 0, 0] for tensor in cache.tensors] == [0, 1, 2, 3, 4, 5]
    names = [spec.name for spec in contract.step.inputs if spec.name.startswith("self_")]
    assert names == [f"self_{part}_{layer}" for layer in range(3) for part in ("key", "value")]
