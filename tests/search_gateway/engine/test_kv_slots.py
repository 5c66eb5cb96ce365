# SPDX-License-Identifier: Apache-2.0
"""Slots and their memory: lowest first, each tensor in its own place, nothing left in /dev/shm."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from captioner.model_contract import ModelContract, with_beams
from search_gateway.engine.kv_slots import KvSlotPool, PhotoBuffer, new_kv_room, remove_orphans

CONTRACT = ModelContract(
    model="toy", image_height=8, image_width=8, fit="pad", num_positions=5, hidden_size=6, num_layers=2, num_heads=3,
    head_size=2, max_tokens=7, num_candidates=8, max_beams=4, tokens_per_call=2, vocab_size=50, bos_token_id=0,
    eos_token_id=1, pad_token_id=2,
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
    assert len(content) == KvSlotPool.byte_size(KvSlotPool.tensors_of(contract), 3, 2)
    for slot, (number, spec) in itertools.product(range(3), enumerate(contract.caches)):
        offset, size = slot_pool.location(spec.name)
        datatype = np.float16 if precision == "fp16" else np.float32
        found = np.frombuffer(content[offset + slot * size : offset + (slot + 1) * size], datatype)
        assert (found == slot_pool.tensor(spec.name)[slot].ravel()).all()
        assert (found // 100 == number).all()
    slot_pool.close()


def test_appending_reaches_the_region(region: str) -> None:
    slot_pool = KvSlotPool(CONTRACT, slots=2, beams=1, region=region)
    new_kv = np.full((2, 2, 2, 3, 1, 1, 2), 5, np.float32)
    slot_pool.append([1], new_kv[1:], np.zeros((1, 1, 1), np.int32), np.array([6], np.int32))
    offset, size = slot_pool.location("self_value_1")
    content = np.frombuffer(Path("/dev/shm", region).read_bytes(), np.float32)[offset // 4 :][: 2 * size // 4]
    expected = np.zeros((2, 3, 7, 1, 2), np.float32)
    expected[1, :, 6] = 5
    assert (content == expected.ravel()).all()
    slot_pool.close()


def test_the_answer_of_a_step_is_read_where_triton_writes_it(region: str) -> None:
    slot_pool = KvSlotPool(CONTRACT, slots=3, beams=2, region=region)
    offset, size = slot_pool.location("new_kv")
    shape = (3, 2, 2, 3, CONTRACT.tokens_per_call, 2, 2)
    assert 3 * size == 4 * np.prod(shape), "the room is not that of all rows and tokens"
    ends = [sum(slot_pool.location(spec.name)) + 2 * slot_pool.location(spec.name)[1] for spec in CONTRACT.caches]
    assert offset >= max(ends)
    content = np.memmap(Path("/dev/shm", region), np.float32)
    content[offset // 4 :][: np.prod(shape)] = np.arange(np.prod(shape))
    answer = slot_pool.answer("new_kv", (2, *shape[1:]))
    assert (answer.ravel() == np.arange(answer.size)).all()
    slot_pool.close()


@pytest.mark.parametrize("beams", [0, 2])
def test_buffer_of_photos_has_its_tensors_where_it_says(region: str, beams: int) -> None:
    buffer = PhotoBuffer(CONTRACT, 4, beams, region)
    content = np.memmap(Path("/dev/shm", region), np.uint8)
    told = json.loads(buffer.description(3))
    assert told["region"] == region
    shapes = {spec.name: (3, *with_beams(spec, beams)) for spec in (*CONTRACT.step.inputs, new_kv_room(CONTRACT))}
    written: dict[str, tuple[int, int]] = {}  # where Triton or the gateway writes

    def place(name: str, offset: int) -> npt.NDArray[np.int32]:
        size = 4 * math.prod(shapes[name])
        written[name] = offset, offset + size * 4 // 3  # with room for a fourth photo
        return content[offset : offset + size].view(np.int32).reshape(shapes[name])

    for number, (name, offset) in enumerate(told["outputs"].items()):
        place(name, offset)[...] = number
    for number, (spec, tensor) in enumerate(zip(CONTRACT.cross_caches, buffer.cross, strict=True)):
        assert tensor.shape == (4, *spec.shape)
        assert (tensor[:3].view(np.int32) == number).all()
    if not beams:
        assert told["inputs"] == {}
        assert set(told["outputs"]) == {spec.name for spec in CONTRACT.cross_caches}
    else:
        assert told["inputs"].keys() | {spec.name for spec in CONTRACT.cross_caches} == {
            spec.name for spec in CONTRACT.step.inputs
        }
        small = {
            spec.name: np.arange(math.prod(shapes[spec.name]), dtype=np.int32).reshape(shapes[spec.name])
            for spec in CONTRACT.step.inputs
            if spec not in CONTRACT.caches and spec.name != "ancestors"
        }
        buffer.write(small)
        for name, (offset, shape) in told["inputs"].items():
            assert tuple(shape) == shapes[name]
            if name in small:
                assert (place(name, offset) == small[name]).all()
            else:  # of a caption that begins
                assert not content[offset : offset + 4 * math.prod(shape)].any()
        assert (buffer.new_kv(3, CONTRACT.tokens_per_call).view(np.int32) == len(CONTRACT.cross_caches)).all()
        assert buffer.new_kv(2, 1).shape == (2, *shapes["new_kv"][1:4], 1, *shapes["new_kv"][5:])
    ordered = sorted(written.values())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ordered)), "two tensors overlap"
    buffer.close()
    assert not Path("/dev/shm", region).exists()


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
    size = KvSlotPool.byte_size(KvSlotPool.tensors_of(CONTRACT, has_cross=False), 3, 2)
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
