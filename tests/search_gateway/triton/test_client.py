# SPDX-License-Identifier: Apache-2.0
"""What the client does when Triton answers late, in part or never. Triton is a fake that answers at a test's word."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from captioner.model_contract import PREFILL, STEP, ContractError, ModelContract
from search_gateway.deadline import Deadline
from search_gateway.engine.inference import EncodedPhotos
from search_gateway.engine.kv_slots import KvSlotPool
from search_gateway.errors import DeadlineError, InferenceError
from search_gateway.triton import client
from search_gateway.triton.client import SharedMemory, TritonClient
from tests.fakes.event_loop import on_event_loop

CONTRACT = ModelContract(
    model="fake", image_height=2, image_width=2, fit="pad", num_positions=1, hidden_size=1, num_layers=1, num_heads=1,
    head_size=1, max_tokens=4, num_candidates=4, max_beams=2, tokens_per_call=2, vocab_size=12,
    bos_token_id=0, eos_token_id=1, pad_token_id=1,
)  # fmt: skip

# The embedded Triton fills no slots: encoder and prefill are one call, from whose memory the gateway copies.
IN_PLACE = pytest.mark.parametrize("memory", [SharedMemory.SYSTEM])


def refused(message: str = "bad input", status: str = "INVALID_ARGUMENT") -> InferenceServerException:
    return InferenceServerException(message, status=f"StatusCode.{status}")


class Call:
    """One call of a model that a test answers."""

    def __init__(self, model: str, client_timeout: float | None) -> None:
        self.model = model
        self.client_timeout = client_timeout
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class FakeTriton:
    """In the place of tritonclient's client."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.registered: set[str] = set()
        self.refusals = 0  # how often a region is not unregistered

    async def infer(self, model: str, inputs: Any, *, client_timeout: float | None, **_: Any) -> Any:
        self.calls.append(Call(model, client_timeout))
        return await self.calls[-1].answer

    async def register_system_shared_memory(self, name: str, key: str, size: int, **_: Any) -> None:
        self.registered.add(name)

    async def unregister_system_shared_memory(self, name: str, **_: Any) -> None:
        if self.refusals:
            self.refusals -= 1
            raise refused("Failed to unregister", "INTERNAL")
        self.registered.discard(name)

    async def get_system_shared_memory_status(self, **_: Any) -> Any:
        return Struct(regions=dict.fromkeys(self.registered))

    async def close(self) -> None:
        for call in self.calls:
            call.answer.cancel()  # as gRPC does


def regions(prefix: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{prefix}*"))


@asynccontextmanager
async def connected(memory: SharedMemory) -> AsyncIterator[tuple[TritonClient, FakeTriton, KvSlotPool]]:
    prefix = f"captrieve_test_{os.getpid()}_{secrets.token_hex(4)}_"
    inference = TritonClient("127.0.0.1:1", CONTRACT, shared_memory=memory, region_prefix=prefix)
    await inference._client.close()
    inference._client = triton = FakeTriton()
    slot_pool = await inference.new_slot_pool(4, 1)
    try:
        yield inference, triton, slot_pool
    finally:
        await inference.close()
        slot_pool.close()
    assert regions(prefix) == []


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def prefill(
    inference: TritonClient, slot_pool: KvSlotPool, slots: list[int], seconds: float = 30.0
) -> asyncio.Task[None]:
    hidden_states = np.zeros((len(slots), CONTRACT.num_positions, CONTRACT.hidden_size), np.float32)
    encoded = EncodedPhotos(hidden_states, np.zeros((len(slots), 1), np.float32))
    return asyncio.create_task(inference.prefill(encoded, range(len(slots)), slot_pool, slots, Deadline(seconds)))


def taken(slot_pool: KvSlotPool, count: int) -> list[int]:
    return [slot_pool.acquire() for _ in range(count)]


def release(slot_pool: KvSlotPool, slots: list[int]) -> None:
    for slot in slots:
        slot_pool.release(slot)


@on_event_loop
async def test_prefill_waits_for_all_calls_when_one_fails() -> None:
    async with connected(SharedMemory.SYSTEM) as (inference, triton, slot_pool):
        slots = taken(slot_pool, 2)
        task = prefill(inference, slot_pool, slots)
        await turns()
        first, second = triton.calls
        first.answer.set_exception(refused())
        await turns()
        assert not task.done(), "the second call still writes to its slot"
        second.answer.set_result(None)
        with pytest.raises(InferenceError):
            await task
        release(slot_pool, slots)
        assert taken(slot_pool, 4) == [0, 1, 2, 3]


@IN_PLACE
@on_event_loop
async def test_slots_of_a_call_that_is_late_are_given_to_nobody_until_it_has_ended(memory: SharedMemory) -> None:
    async with connected(memory) as (inference, triton, slot_pool):
        slots = taken(slot_pool, 1)
        freed: list[int] = []
        slot_pool.freed = lambda: freed.append(slot_pool.num_free)
        with pytest.raises(DeadlineError):
            await prefill(inference, slot_pool, slots, seconds=0.01)
        release(slot_pool, slots)
        [call] = triton.calls
        assert call.client_timeout is None, "a call that is cancelled may write after its end"
        assert slot_pool.num_free == 3
        assert slot_pool.acquire() == 1, "slot 0 went to another photo under a late write"
        assert freed == []
        call.answer.set_result(None)
        await turns()
        assert freed == [3]
        assert slot_pool.acquire() == 0
        assert not slot_pool.is_stale


@IN_PLACE
@on_event_loop
async def test_slots_of_a_cancelled_caller_wait_for_the_call_too(memory: SharedMemory) -> None:
    async with connected(memory) as (inference, triton, slot_pool):
        slots = taken(slot_pool, 1)
        task = prefill(inference, slot_pool, slots)
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release(slot_pool, slots)
        assert slot_pool.num_free == 3
        triton.calls[0].answer.set_exception(refused("the model failed", "INTERNAL"))
        await turns()
        assert slot_pool.num_free == 4


@IN_PLACE
@pytest.mark.parametrize("status", ["UNAVAILABLE", "UNKNOWN", "CANCELLED"])
@on_event_loop
async def test_memory_is_exchanged_where_the_end_of_a_write_stays_unknown(memory: SharedMemory, status: str) -> None:
    async with connected(memory) as (inference, triton, slot_pool):
        slots = taken(slot_pool, 1)
        task = prefill(inference, slot_pool, slots)
        await turns()
        triton.calls[0].answer.set_exception(refused("Socket closed", status))
        with pytest.raises(InferenceError):
            await task
        release(slot_pool, slots)
        assert slot_pool.is_stale
        assert slot_pool.num_free == 3, "a slot that may still be written to was given back"


@on_event_loop
async def test_memory_of_an_encoder_call_is_used_again_unless_triton_may_still_write_to_it() -> None:
    async with connected(SharedMemory.EMBEDDED) as (inference, triton, slot_pool):
        pixels = np.zeros((2, 2, 2, 3), np.uint8)

        class Answer:
            def as_numpy(self, name: str) -> Any:
                assert name == "embedding", "hidden states have no use here"
                return np.zeros((2, 1), np.float32)

        async def encode(answer: Answer | Exception) -> EncodedPhotos:
            task = asyncio.create_task(inference.encode(pixels, Deadline(30.0)))
            while not triton.calls or triton.calls[-1].answer.done():  # noqa: ASYNC110  # a fake knows no events
                await asyncio.sleep(0.001)
            if isinstance(answer, Exception):
                triton.calls[-1].answer.set_exception(answer)
            else:
                triton.calls[-1].answer.set_result(answer)
            return await task

        first = await encode(Answer())
        assert first.hidden_states is None
        assert first.buffer is not None
        first.buffer.cross[0][:2, 0, 0, 0] = [5, 7]
        await inference.prefill(first, [1, 0], slot_pool, [2, 3], Deadline(30.0))
        assert slot_pool.tensor("cross_key_0")[:, 0, 0, 0].tolist() == [0, 0, 7, 5]
        inference.release(first)
        second = await encode(Answer())
        assert second.buffer is first.buffer
        inference.release(second)
        with pytest.raises(DeadlineError):
            await encode(refused("too late", "DEADLINE_EXCEEDED"))
        third = await encode(Answer())
        assert third.buffer is not first.buffer
        assert third.buffer is not None
        assert not regions(first.buffer.region)
        inference.release(third)
        only = asyncio.create_task(inference.encode(pixels, Deadline(30.0), embeddings_only=True))
        await turns()
        triton.calls[-1].answer.set_result(Answer())
        assert (await only).buffer is None


@on_event_loop
async def test_a_full_queue_of_triton_frees_the_slots() -> None:
    async with connected(SharedMemory.SYSTEM) as (inference, triton, slot_pool):
        slots = taken(slot_pool, 1)
        task = prefill(inference, slot_pool, slots)
        await turns()
        triton.calls[0].answer.set_exception(refused("Exceeds maximum queue size", "UNAVAILABLE"))
        await asyncio.wait([task])
        release(slot_pool, slots)
        assert (slot_pool.num_free, slot_pool.is_stale) == (4, False)
        assert task.exception() is not None


@on_event_loop
async def test_calls_that_a_reconnection_ends_fail_and_cancel_nobody() -> None:
    async with connected(SharedMemory.EMBEDDED) as (inference, triton, slot_pool):
        task = prefill(inference, slot_pool, taken(slot_pool, 1))
        encoding = asyncio.create_task(inference.encode(np.zeros((1, 2, 2, 3), np.uint8), Deadline(30.0)))
        await turns()
        await inference.reconnect("127.0.0.1:1")
        for one in (task, encoding):
            with pytest.raises(InferenceError, match="cannot be reached"):
                await one


@on_event_loop
async def test_memory_is_reserved_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    reserve = os.posix_fallocate

    def watched(*arguments: int) -> None:
        threads.append(threading.get_ident())
        reserve(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", watched)
    async with connected(SharedMemory.EMBEDDED):
        pass
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


@on_event_loop
async def test_regions_that_were_forgotten_are_unregistered_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(SharedMemory.SYSTEM) as (inference, triton, slot_pool):
        prefix = slot_pool.region[:20]
        await inference.unregister_orphans(prefix)
        assert triton.registered == {slot_pool.region}
        inference.forget_slot_pools()
        assert triton.registered == {slot_pool.region}, "Triton may still write there"
        await inference.unregister_orphans(prefix)
        assert triton.registered == set()


@pytest.mark.parametrize("refusals", [2, 5])
@on_event_loop
async def test_a_region_that_triton_still_holds_is_unregistered_later(
    refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_UNREGISTER_PAUSE_SECONDS", 0.0)
    async with connected(SharedMemory.SYSTEM) as (inference, triton, slot_pool):
        triton.refusals = refusals
        await inference.free_slot_pool(slot_pool)
        assert bool(triton.registered) == (refusals > 3)
        await inference.unregister_orphans(slot_pool.region)
        assert triton.registered == set()


@on_event_loop
async def test_regions_of_dead_gateways_are_unregistered_and_no_others() -> None:
    async with connected(SharedMemory.SYSTEM) as (inference, triton, slot_pool):
        prefix = slot_pool.region[:15]
        triton.registered |= {f"{prefix}dead_kv_1", "of_another_program"}
        await inference.unregister_orphans(prefix)
        assert len(triton.registered) == 3, "it asks only where it knows of some"
        await inference.unregister_orphans(prefix, has_any=True)
        assert triton.registered == {slot_pool.region, "of_another_program"}


class Served:
    """Metadata and configuration as the contract has them, with these instance groups of prefill."""

    def __init__(self, groups: list[Any]) -> None:
        self._groups = groups

    async def get_model_metadata(self, name: str, **_: Any) -> Any:
        spec = next(one for one in CONTRACT.models if one.name == name)

        def of(tensors: Any) -> list[Any]:
            return [Struct(name=one.name, datatype=one.datatype, shape=[-1, *one.shape]) for one in tensors]

        return Struct(inputs=of(spec.inputs), outputs=of(spec.outputs))

    async def get_model_config(self, name: str, **_: Any) -> Any:
        assert name in {PREFILL, STEP}
        if not self._groups:
            raise grpc.RpcError
        return Struct(config=Struct(instance_group=self._groups))

    async def close(self) -> None:
        pass


class Struct:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def group(count: int, *gpus: int) -> Struct:
    return Struct(count=count, gpus=list(gpus))


@pytest.mark.parametrize(
    ("groups", "memory", "problem"),
    [
        ([group(1)], SharedMemory.SYSTEM, None),
        ([group(1, 0)], SharedMemory.CUDA, None),
        ([group(2)], SharedMemory.NONE, None),
        ([group(2)], SharedMemory.SYSTEM, "runs 2 instances of gpt2_prefill"),
        ([group(1), group(1)], SharedMemory.EMBEDDED, "runs 2 instances of gpt2_prefill"),
        ([group(1, 0, 1)], SharedMemory.CUDA, "runs 2 instances of gpt2_prefill"),
        ([], SharedMemory.SYSTEM, "does not tell the configuration"),
    ],
)
@on_event_loop
async def test_several_instances_that_share_our_memory_are_refused_at_start(
    groups: list[Any], memory: SharedMemory, problem: str | None
) -> None:
    inference = TritonClient("127.0.0.1:1", CONTRACT, shared_memory=memory)
    await inference._client.close()
    inference._client = Served(groups)
    if problem is None:
        await inference.check_contract()
    else:
        with pytest.raises((ContractError, InferenceError), match=problem):
            await inference.check_contract()


@pytest.mark.parametrize(
    ("memory", "calls"), [(SharedMemory.EMBEDDED, 1), (SharedMemory.SYSTEM, 2), (SharedMemory.NONE, 2)]
)
@on_event_loop
async def test_one_instance_of_the_embedded_triton_gets_one_call_at_a_time(memory: SharedMemory, calls: int) -> None:
    """With first tokens, which only `check_contract` finds out, there is an instance for each of two calls."""
    inference = TritonClient("127.0.0.1:1", CONTRACT, shared_memory=memory)
    assert inference.encoder_calls == calls
    await inference.close()
