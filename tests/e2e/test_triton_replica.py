# SPDX-License-Identifier: Apache-2.0
"""One Triton that is not our own, sharing memory: what dead gateways left is removed, and a restart is survived."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from captioner.decoding import DecodingOptions
from captioner.model_contract import ModelContract
from search_gateway.deadline import Deadline
from search_gateway.errors import InferenceError
from search_gateway.triton import replica
from search_gateway.triton.client import SharedMemory
from search_gateway.triton.embedded import EmbeddedTriton
from search_gateway.triton.replica import TritonReplica
from tests.conftest import MODELS
from tests.fakes.tcp_forwarder import TcpForwarder

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        importlib.util.find_spec("pytriton") is None,
        reason="THE REAL TRITON IS NOT TESTED: install the embedded extra (nvidia-pytriton)",
    ),
]

CONTRACT = ModelContract.load(MODELS)
PIXELS = np.random.default_rng(3).integers(0, 256, (CONTRACT.image_height, CONTRACT.image_width, 3), dtype=np.uint8)


def our_regions() -> set[Path]:
    """Of all hosts of this process."""
    return set(Path("/dev/shm").glob(f"captrieve_gateway_{os.getpid()}_*"))


async def with_host(address: str, memory: SharedMemory, use: Callable[[TritonReplica], Awaitable[None]]) -> None:
    host = TritonReplica(CONTRACT, address=address, shared_memory=memory, slots=4, waiting=8)
    try:
        await host.start()
        await use(host)
    finally:
        await host.close()


async def words(host: TritonReplica, beams: int = 1) -> list[int]:
    options = DecodingOptions(num_beams=beams, max_tokens=CONTRACT.max_tokens)
    decoded = await host.captions.caption(PIXELS, options, Deadline(30.0))
    return [token.token for token in decoded.hypotheses[0].tokens]


def forget_regions(address: str) -> None:
    """As a Triton does that is started again, only faster than anybody looks."""
    with tritonclient.grpc.InferenceServerClient(address) as client:
        assert client.get_system_shared_memory_status().regions, "nothing is registered: the test shows nothing"
        while client.get_system_shared_memory_status().regions:
            with contextlib.suppress(InferenceServerException):  # it refuses for a moment after its last answer
                client.unregister_system_shared_memory()


def is_there(path: Path) -> bool:
    return path.exists()


@pytest.fixture
def orphan() -> Iterator[Path]:
    path = Path("/dev/shm", f"captrieve_gateway_1_{secrets.token_hex(4)}_kv_1_00000000")
    path.write_bytes(b"left by kill -9")
    yield path
    path.unlink(missing_ok=True)


def test_regions_of_dead_gateways_are_removed_at_start(triton_address: str, orphan: Path) -> None:
    async def use(host: TritonReplica) -> None:
        assert not is_there(orphan)

    asyncio.run(with_host(triton_address, SharedMemory.SYSTEM, use))


def test_a_gateway_that_shares_no_memory_leaves_that_of_others_alone(
    triton_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "remove_orphans", lambda prefix: pytest.fail("it removes regions"))

    async def use(host: TritonReplica) -> None:
        assert host.is_serving

    asyncio.run(with_host(triton_address, SharedMemory.NONE, use))


def test_regions_of_dead_gateways_are_unregistered_at_start(triton_address: str, orphan: Path) -> None:
    """As after kill -9: the Triton would map them for ever."""

    async def use(host: TritonReplica) -> None:
        await words(host)
        with tritonclient.grpc.InferenceServerClient(triton_address) as client:
            assert set(client.get_system_shared_memory_status().regions) == {path.name for path in our_regions()}

    with tritonclient.grpc.InferenceServerClient(triton_address) as client:
        client.register_system_shared_memory(orphan.name, f"/{orphan.name}", orphan.stat().st_size)
    asyncio.run(with_host(triton_address, SharedMemory.SYSTEM, use))


def test_regions_of_living_gateways_stay(triton_address: str) -> None:
    async def use(first: TritonReplica) -> None:
        before = await words(first)
        mine = our_regions()
        assert len(mine) == 1

        async def use_second(second: TritonReplica) -> None:
            assert mine <= our_regions()
            assert await words(second) == before
            assert await words(first) == before

        await with_host(triton_address, SharedMemory.SYSTEM, use_second)
        assert await words(first) == before

    asyncio.run(with_host(triton_address, SharedMemory.SYSTEM, use))


def test_a_triton_that_forgot_the_memory_faster_than_anybody_looks_fails_one_caption_only(
    triton_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(host: TritonReplica) -> None:
        before = {beams: await words(host, beams) for beams in (1, 3)}
        old = our_regions()
        assert len(old) == 2
        forget_regions(triton_address)
        for beams in (1, 3):
            with pytest.raises(InferenceError, match="try again shortly"):
                await words(host, beams)
            assert await words(host, beams) == before[beams]
            assert await words(host, beams) == before[beams]
        new = our_regions()
        assert len(new) == 2
        assert not new & old, "memory nobody maps is kept"

    asyncio.run(with_host(triton_address, SharedMemory.SYSTEM, use))
    assert "Triton no longer maps the memory of the caches" in caplog.text


def test_a_triton_that_was_away_gets_new_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(replica, "_HEALTH_INTERVAL_SECONDS", 0.05)

    async def use(host: TritonReplica) -> None:
        watching = asyncio.create_task(host.watch(lambda: None))
        before = await words(host)
        port.target = None
        await asyncio.to_thread(triton.stop)
        async with asyncio.timeout(100):
            while host.is_serving:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.02)
        again = EmbeddedTriton(MODELS, log_file=tmp_path / "again.log")
        try:
            await asyncio.to_thread(again.start)
            port.target = again.grpc_address
            async with asyncio.timeout(100):
                while not host.is_serving:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert await words(host) == before  # at the first attempt
            assert len(our_regions()) == 1
        finally:
            watching.cancel()
            port.target = None
            await asyncio.to_thread(again.stop)

    triton = EmbeddedTriton(MODELS, log_file=tmp_path / "triton.log")
    with TcpForwarder() as port:
        try:
            triton.start()
            port.target = triton.grpc_address
            asyncio.run(with_host(port.address, SharedMemory.SYSTEM, use))
        finally:
            triton.stop()
    assert our_regions() == set()


def test_a_triton_that_was_out_of_reach_does_not_keep_the_old_memory(
    monkeypatch: pytest.MonkeyPatch, triton_address: str
) -> None:
    monkeypatch.setattr(replica, "_HEALTH_INTERVAL_SECONDS", 0.05)

    async def until(serving: bool, host: TritonReplica) -> None:
        async with asyncio.timeout(100):
            while host.is_serving is not serving:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.02)

    async def use(host: TritonReplica) -> None:
        watching = asyncio.create_task(host.watch(lambda: None))
        before, old = await words(host), our_regions()
        port.target = None
        await until(False, host)
        port.target = triton_address
        await until(True, host)
        assert await words(host) == before
        assert not our_regions() & old
        with tritonclient.grpc.InferenceServerClient(triton_address) as client:
            assert set(client.get_system_shared_memory_status().regions) == {path.name for path in our_regions()}
        watching.cancel()

    with TcpForwarder() as port:
        port.target = triton_address
        asyncio.run(with_host(port.address, SharedMemory.SYSTEM, use))


def test_a_failed_start_can_be_closed_and_says_what_is_wrong() -> None:
    async def use(host: TritonReplica) -> Any:
        raise AssertionError("it started")

    with pytest.raises(InferenceError, match="does not serve the model"):
        asyncio.run(with_host("127.0.0.1:1", SharedMemory.SYSTEM, use))
