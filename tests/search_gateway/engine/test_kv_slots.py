# SPDX-License-Identifier: Apache-2.0
"""Slots and their memory: lowest first, each tensor in its own place, nothing left in /dev/shm."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from captioner.model_contract import ModelContract
from search_gateway.engine.kv_slots import KvSlotPool, remove_orphans

CONTRACT = ModelContract(
    model="toy", image_height=8, image_width=8, fit="pad", num_positions=5, hidden_size=6, num_layers=2, num_heads=3,
    head_size=2, max_tokens=7, num_candidates=8, max_beams=4, vocab_size=50, bos_token_id=0, eos_token_id=1,
    pad_token_id=2,
)  # fmt: skip


@pytest.fixture
def region() -> Iterator[str]:
    name = f"captrieve_test_{os.getpid()}_{secrets.token_hex(4)}"
    yield name
    Path("/dev/shm", name).unlink(missing_ok=True)


def test_lowest_free_slot_comes_first() -> None:
    slot_pool = KvSlotPool(CONTRACT, slots=3, beams=1)
    assert [slot_pool.acquire() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(IndexError):
        slot_pool.acquire()
    slot_pool.release(2)
    slot_pool.release(0)
    assert [slot_pool.acquire(), slot_pool.acquire()] == [0, 2]


def test_tensors_have_the_contracts_shapes_and_are_zero(region: str) -> None:
    for name in ("", region):
        slot_pool = KvSlotPool(CONTRACT, slots=3, beams=4, region=name)
        for spec in CONTRACT.caches:
            tensor = slot_pool.tensor(spec.name)
            assert tensor.shape == (3, *(4 if size == -1 else size for size in spec.shape))
            assert not tensor.any()
        slot_pool.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_places_are_where_the_file_has_the_values(region: str, precision: str) -> None:
    """What Triton finds at (offset, size) is what we wrote, and no two tensors share a byte."""
    contract = ModelContract(**{**CONTRACT.__dict__, "precision": precision})
    slot_pool = KvSlotPool(contract, slots=3, beams=2, region=region)
    for number, spec in enumerate(contract.caches):
        tensor = slot_pool.tensor(spec.name)
        tensor[...] = np.arange(tensor.size).reshape(tensor.shape) % 100 + number * 100
    content = Path("/dev/shm", region).read_bytes()
    assert len(content) == KvSlotPool.byte_size(contract.caches, 3, 2)
    for slot, (number, spec) in itertools.product(range(3), enumerate(contract.caches)):
        offset, size = slot_pool.location(spec.name)
        datatype = np.float16 if precision == "fp16" else np.float32
        found = np.frombuffer(content[offset + slot * size : offset + (slot + 1) * size], datatype)
        assert (found == slot_pool.tensor(spec.name)[slot].ravel()).all()
        assert (found // 100 == number).all()
    slot_pool.close()


def test_appending_reaches_the_region(region: str) -> None:
    slot_pool = KvSlotPool(CONTRACT, slots=2, beams=1, region=region)
    new_kv = np.full((1, 1, 2, 2, 3, 2), 5, np.float32)
    slot_pool.cache.append(np.array([1]), new_kv, np.array([6], np.int32))
    offset, size = slot_pool.location("self_value_1")
    content = np.frombuffer(Path("/dev/shm", region).read_bytes(), np.float32)[offset // 4 :][: 2 * size // 4]
    expected = np.zeros((2, 3, 7, 1, 2), np.float32)
    expected[1, :, 6] = 5
    assert (content == expected.ravel()).all()
    slot_pool.close()


def test_region_is_private_and_gone_after_close(region: str) -> None:
    slot_pool = KvSlotPool(CONTRACT, slots=2, beams=1, region=region)
    path = Path("/dev/shm", region)
    assert path.stat().st_mode & 0o777 == 0o600
    slot_pool.close()
    assert not path.exists()
    slot_pool.close()  # may be repeated


def test_region_of_that_name_is_never_shared(region: str) -> None:
    slot_pool = KvSlotPool(CONTRACT, slots=2, beams=1, region=region)
    with pytest.raises(FileExistsError):
        KvSlotPool(CONTRACT, slots=2, beams=1, region=region)
    slot_pool.close()


def test_too_small_shared_memory_is_told_at_once_and_leaves_nothing(
    region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        KvSlotPool(CONTRACT, slots=2, beams=1, region=region)
    assert not Path("/dev/shm", region).exists()


def test_caches_on_a_gpu_have_places_there_and_no_memory_here(region: str) -> None:
    slot_pool = KvSlotPool(CONTRACT, slots=3, beams=2, region=region, cross_region="on_the_gpu")
    size = KvSlotPool.byte_size(CONTRACT.self_caches, 3, 2)
    assert Path("/dev/shm", region).stat().st_size == size
    offsets = [slot_pool.location(spec.name)[0] for spec in CONTRACT.cross_caches]
    assert offsets[0] == 0, "each region begins at its own beginning"
    assert offsets == sorted(set(offsets))
    assert max(offsets) < KvSlotPool.byte_size(CONTRACT.cross_caches, 3, 2)
    with pytest.raises(KeyError):
        slot_pool.tensor("cross_key_0")
    slot_pool.close()


def test_regions_of_dead_owners_are_removed_and_no_others(region: str) -> None:
    living = KvSlotPool(CONTRACT, slots=1, beams=1, region=f"{region}_living")
    orphan = Path("/dev/shm", f"{region}_orphan")
    orphan.write_bytes(b"left by kill -9")
    stranger = Path("/dev/shm", f"other_{region}")
    stranger.touch()
    try:
        assert remove_orphans(region) == [orphan.name]
        assert not orphan.exists()
        assert Path("/dev/shm", living.region).exists()
        assert stranger.exists()
    finally:
        stranger.unlink()
        living.close()
