# SPDX-License-Identifier: Apache-2.0
"""A real Triton: caches in shared memory and over gRPC are the same to it, and what fails has a name."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from captioner.model_contract import ModelContract
from search_gateway import kv_arena
from search_gateway.caption_scheduler import CaptionScheduler
from search_gateway.deadline import Deadline
from search_gateway.decoding import DecodingOptions
from search_gateway.errors import DeadlineError, InferenceError
from search_gateway.triton_inference import SharedMemory, TritonInference
from tests.conftest import MODELS

pytestmark = pytest.mark.triton

CONTRACT = ModelContract.load(MODELS)
PIXELS = np.random.default_rng(7).integers(
    0, 256, (6, CONTRACT.image_height, CONTRACT.image_width, 3), dtype=np.uint8
)  # fmt: skip

Tokens = list[list[int]]


def prefix() -> str:
    return f"captrieve_test_{os.getpid()}_{secrets.token_hex(4)}_"


def regions(start: str) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"{start}*")]


def run_with(
    address: str,
    memory: SharedMemory,
    region_prefix: str,
    use: Callable[[TritonInference, CaptionScheduler], Awaitable[Any]],
) -> Any:
    async def run() -> Any:
        inference = TritonInference(address, CONTRACT, shared_memory=memory, region_prefix=region_prefix)
        scheduler = CaptionScheduler(inference, bos_token_id=CONTRACT.bos_token_id, eos_token_id=CONTRACT.eos_token_id)
        try:
            return await use(inference, scheduler)
        finally:
            await scheduler.close()
            await inference.close()

    return asyncio.run(run())


async def captions(inference: TritonInference, scheduler: CaptionScheduler, beams: int) -> Tokens:
    async def one(pixels: npt.NDArray[np.uint8]) -> list[int]:
        options = DecodingOptions(num_beams=beams, max_tokens=CONTRACT.max_tokens)
        decoded = await scheduler.caption(pixels, options, Deadline(30.0))
        return [token.token for token in decoded.hypotheses[0].tokens]

    return await asyncio.gather(*(one(pixels) for pixels in PIXELS))


@pytest.mark.parametrize("memory", [SharedMemory.SYSTEM, SharedMemory.EMBEDDED])
@pytest.mark.parametrize("beams", [1, 3])
def test_shared_memory_and_grpc_give_the_same_captions(triton_address: str, memory: SharedMemory, beams: int) -> None:
    start = prefix()
    used: list[list[str]] = []

    async def use(inference: TritonInference, scheduler: CaptionScheduler) -> Tokens:
        answer = await captions(inference, scheduler, beams)
        used.append(regions(start))
        return answer

    shared = run_with(triton_address, memory, start, use)
    over_grpc = run_with(triton_address, SharedMemory.NONE, "", use)
    assert shared == over_grpc
    assert len({tuple(one) for one in shared}) > 1, "all captions are the same: the test shows little"
    assert len(used[0]) == 1
    assert regions(start) == [], "the region was left behind"


def test_too_small_shared_memory_sends_the_caches_over_grpc(
    triton_address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(region: str, size: int) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = run_with(
        triton_address, SharedMemory.NONE, "", lambda inference, scheduler: captions(inference, scheduler, 1)
    )
    monkeypatch.setattr(kv_arena, "_map", full)
    got = run_with(
        triton_address, SharedMemory.SYSTEM, prefix(), lambda inference, scheduler: captions(inference, scheduler, 1)
    )
    assert got == expected
    assert "MB in /dev/shm for the caches, they go over gRPC" in caplog.text


def test_triton_elsewhere_makes_the_memory_stale_and_captions_go_on(triton_address: str) -> None:
    start, later = prefix(), prefix()

    async def use(inference: TritonInference, scheduler: CaptionScheduler) -> None:
        before = await captions(inference, scheduler, 1)
        assert inference.seconds_since_success() < 30
        await inference.reconnect(triton_address, region_prefix=later)
        assert inference.seconds_since_success() == float("inf")
        assert regions(start) == []
        assert await captions(inference, scheduler, 1) == before
        assert len(regions(later)) == 1

    run_with(triton_address, SharedMemory.EMBEDDED, start, use)


def test_models_are_known_to_work_without_shared_memory(triton_address: str) -> None:
    start = prefix()

    async def use(inference: TritonInference, scheduler: CaptionScheduler) -> None:
        assert await inference.is_ready()
        assert await inference.works(Deadline(30.0))
        assert regions(start) == []

    run_with(triton_address, SharedMemory.EMBEDDED, start, use)


def test_nobody_there_is_an_inference_error() -> None:
    async def use(inference: TritonInference, scheduler: CaptionScheduler) -> None:
        assert not await inference.is_ready()
        assert not await inference.works(Deadline(1.0))
        with pytest.raises(InferenceError, match="cannot be reached"):
            await inference.encode(PIXELS[:1], Deadline(1.0))
        with pytest.raises(InferenceError, match="cannot be reached"):
            await scheduler.caption(PIXELS[0], DecodingOptions(), Deadline(1.0))

    start = prefix()
    run_with("127.0.0.1:1", SharedMemory.SYSTEM, start, use)
    assert regions(start) == []


def test_deadline_that_has_passed_asks_nobody() -> None:
    async def use(inference: TritonInference, scheduler: CaptionScheduler) -> None:
        with pytest.raises(DeadlineError, match="inference"):
            await inference.encode(PIXELS[:1], Deadline(0.0))

    run_with("127.0.0.1:1", SharedMemory.NONE, "", use)
