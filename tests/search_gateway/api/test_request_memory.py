# SPDX-License-Identifier: Apache-2.0
"""The budget of messages: who waits, who is refused, and who makes room. On a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from search_gateway.api import request_memory
from search_gateway.api.request_memory import MemoryBudget, Message, Share
from search_gateway.config import GatewayConfig
from search_gateway.errors import BadRequestError, DeadlineError, OverloadedError
from tests.fakes.virtual_time import run_virtually

LARGEST = 100


def budget(messages: int) -> MemoryBudget:
    return MemoryBudget(messages * LARGEST, LARGEST, receive_seconds=10.0)


async def arriving(*num_bytes: int, after: float = 0.0) -> AsyncIterator[Message]:
    for one in num_bytes:
        await asyncio.sleep(after)
        yield Message("photo", one)


def never() -> AsyncIterator[Message]:
    return arriving(1, after=1e9)


def now() -> float:
    return asyncio.get_running_loop().time()


async def receive(memory: MemoryBudget, messages: AsyncIterator[Message], caller: str = "") -> Share:
    message, share = await memory.receive(messages, caller)
    assert message == "photo"
    return share


def test_room_of_the_largest_message_is_taken_before_it_is_read_and_its_own_size_afterwards() -> None:
    async def run() -> None:
        memory = budget(2)
        receiving = asyncio.create_task(receive(memory, arriving(30, after=1.0)))
        await asyncio.sleep(0.5)
        assert memory.num_bytes == LARGEST
        share = await receiving
        assert memory.num_bytes == 30
        share.release()
        share.release()
        assert memory.num_bytes == 0

    run_virtually(run())


def test_calls_wait_for_room_in_order_and_then_are_refused() -> None:
    async def run() -> None:
        memory = budget(1)
        held = await receive(memory, arriving(1))
        order: list[int] = []

        async def call(number: int) -> None:
            share = await receive(memory, arriving(1))
            order.append(number)
            await asyncio.sleep(1.0)
            share.release()

        calls = [asyncio.create_task(call(number)) for number in range(3)]
        await asyncio.sleep(1.0)
        assert order == []
        held.release()
        await asyncio.gather(*calls)
        assert order == [0, 1, 2]
        held = await receive(memory, arriving(1))
        begun = now()
        with pytest.raises(OverloadedError, match="the requests of all callers") as refusal:
            await memory.receive(arriving(1))
        assert now() - begun == 10.0
        assert refusal.value.retry_after_seconds > 0
        assert memory.num_bytes == 1

    run_virtually(run())


def test_calls_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_memory, "_MAX_WAITING", 2)

    async def run() -> None:
        memory = budget(1)
        await receive(memory, arriving(1))
        waiting = [asyncio.create_task(receive(memory, arriving(1))) for _ in range(2)]
        await asyncio.sleep(1.0)
        with pytest.raises(OverloadedError):
            await memory.receive(arriving(1))
        assert now() == 1.0, "at once"
        for task in waiting:
            task.cancel()

    run_virtually(run())


def test_caller_who_fills_the_budget_leaves_room_for_another_one() -> None:
    async def run() -> None:
        memory = budget(4)
        held = [await receive(memory, arriving(LARGEST), "flood") for _ in range(3)]
        more = [asyncio.create_task(receive(memory, arriving(LARGEST), "flood")) for _ in range(3)]
        await asyncio.sleep(5.0)
        assert not any(task.done() for task in more)
        for _ in range(3):
            (await receive(memory, arriving(1), "shop")).release()
        assert now() == 5.0, "it never waited"
        held[0].release()
        await more[0]
        assert memory.num_bytes == 3 * LARGEST
        for task in more[1:]:
            task.cancel()

    run_virtually(run())


def test_answers_that_one_caller_does_not_read_keep_no_other_one_out() -> None:
    async def run() -> None:
        memory = budget(4)
        unread = [memory.count(LARGEST, "flood") for _ in range(10)]
        (await receive(memory, arriving(1), "shop")).release()
        assert now() == 0.0
        with pytest.raises(OverloadedError):
            await receive(memory, arriving(1), "flood")
        for share in unread:
            share.release()
        assert memory.num_bytes == 0

    run_virtually(run())


def test_unread_byte_of_one_caller_does_not_lock_a_small_budget() -> None:
    async def run() -> None:
        memory = MemoryBudget(LARGEST + 10, LARGEST, receive_seconds=10.0)
        memory.count(1, "flood")
        (await receive(memory, arriving(1), "shop")).release()

    run_virtually(run())


def test_caller_with_most_makes_room_for_others_and_for_itself() -> None:
    async def run() -> None:
        memory = budget(8)
        slow = asyncio.create_task(receive(memory, arriving(1, after=3.0), "shop"))
        flood = [asyncio.create_task(receive(memory, never(), "flood")) for _ in range(7)]
        await asyncio.sleep(0.1)
        (await receive(memory, arriving(1), "shop")).release()
        assert now() == 0.1
        held = await receive(memory, arriving(LARGEST), "shop")
        (await receive(memory, arriving(1), "shop")).release()
        assert now() == 1.0, "after the fair time of one message, not of seven"
        (await slow).release()
        assert now() == 3.0, "the slow message of a caller with little is not ended for the flood"
        held.release()
        for task in flood:
            task.cancel()

    run_virtually(run())


def test_waiting_calls_of_one_caller_do_not_keep_another_one_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_memory, "_MAX_WAITING", 2)

    async def run() -> None:
        memory = budget(1)
        held = await receive(memory, arriving(1), "flood")
        order: list[str] = []

        async def call(caller: str) -> None:
            share = await receive(memory, arriving(1), caller)
            order.append(caller)
            share.release()

        waiting = [asyncio.create_task(call("flood")) for _ in range(2)]
        await asyncio.sleep(1.0)
        with pytest.raises(OverloadedError):
            await memory.receive(arriving(1), "flood")
        waiting.append(asyncio.create_task(call("shop")))
        await asyncio.sleep(1.0)
        held.release()
        await asyncio.gather(*waiting)
        assert order == ["flood", "shop", "flood"], "they take turns"

    run_virtually(run())


def test_room_that_comes_free_as_a_caller_leaves_goes_to_the_next_one() -> None:
    async def run() -> None:
        memory = budget(1)
        held = await receive(memory, arriving(1))
        leaving, staying = (asyncio.create_task(receive(memory, arriving(1))) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        held.release()  # before the task of the caller that leaves has run
        (await staying).release()
        assert memory.num_bytes == 0

    run_virtually(run())


def test_message_that_does_not_come_is_a_deadline() -> None:
    async def run() -> None:
        memory = budget(1)
        with pytest.raises(DeadlineError, match="did not arrive within 10 s"):
            await memory.receive(never())
        assert (now(), memory.num_bytes) == (10.0, 0)

    run_virtually(run())


def test_call_without_a_message_is_a_bad_request() -> None:
    async def run() -> None:
        memory = budget(1)
        with pytest.raises(BadRequestError, match="no message"):
            await memory.receive(arriving())
        assert memory.num_bytes == 0

    run_virtually(run())


def test_one_slow_message_makes_room_for_each_call_that_waits_after_a_fair_time() -> None:
    async def run() -> None:
        memory = budget(2)
        slow = [asyncio.create_task(receive(memory, never())) for _ in range(2)]
        await asyncio.sleep(0.2)
        await receive(memory, arriving(1))
        assert now() == 1.0
        await asyncio.sleep(0)
        assert [task.done() for task in slow] == [True, False]
        with pytest.raises(OverloadedError):
            await slow[0]
        slow[1].cancel()

    run_virtually(run())


def test_room_goes_back_when_a_caller_leaves_at_any_moment() -> None:
    async def run() -> None:
        for moment in range(12):
            memory = budget(1)
            held = await receive(memory, arriving(1))
            call = asyncio.create_task(receive(memory, arriving(1, after=0)))
            await asyncio.sleep(0)
            held.release()
            for _ in range(moment):
                await asyncio.sleep(0)
            if not call.cancel():
                call.result().release()
            await asyncio.wait((call,))
            if not call.cancelled():
                call.result().release()
            assert memory.num_bytes == 0, moment
            (await receive(memory, arriving(1))).release()

    run_virtually(run())


def test_stream_is_read_no_further_than_there_is_memory() -> None:
    async def run() -> None:
        photos, streams = budget(2), budget(1)
        messages = arriving(60, 60, 60)
        shares: list[Any] = []
        for _ in range(2):
            shares.append((await streams.receive_next(messages, photos))[1])
        assert (photos.num_bytes, streams.num_bytes) == (120, 0)
        third = asyncio.create_task(streams.receive_next(messages, photos))
        await asyncio.sleep(100.0)
        assert not third.done()
        shares[0].release()
        await third

    run_virtually(run())


def test_idle_stream_ends_when_another_one_waits_to_be_read() -> None:
    async def run() -> None:
        photos, streams = budget(2), budget(1)
        idle = asyncio.create_task(streams.receive_next(never(), photos))
        await asyncio.sleep(1000.0)
        assert not idle.done(), "nobody waits"
        await streams.receive_next(arriving(1), photos)
        with pytest.raises(DeadlineError, match="open it again"):
            await idle

    run_virtually(run())


def test_stream_that_waits_for_memory_is_not_idle() -> None:
    async def run() -> None:
        photos, streams = budget(1), budget(1)
        held = photos.count(LARGEST)
        waiting = asyncio.create_task(streams.receive_next(arriving(1), photos))
        await asyncio.sleep(100.0)
        held.release()
        reading = asyncio.create_task(streams.receive_next(never(), photos))  # would end one that is idle
        await waiting
        reading.cancel()

    run_virtually(run())


def test_stream_that_sends_slowly_goes_on_when_those_who_waited_were_read() -> None:
    async def run() -> None:
        photos, streams = budget(4), budget(2)
        slow = asyncio.create_task(streams.receive_next(arriving(1, after=5.0), photos))
        asyncio.create_task(streams.receive_next(arriving(1, after=0.2), photos))
        await asyncio.sleep(0.1)
        await streams.receive_next(arriving(1), photos)
        await slow
        assert now() == 5.0

    run_virtually(run())


def test_slow_call_keeps_its_own_time_limit_when_nobody_waits_any_more() -> None:
    async def run() -> None:
        memory = budget(1)
        slow = asyncio.create_task(receive(memory, arriving(1, after=20.0)))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(receive(memory, arriving(1)))
        await asyncio.sleep(0.5)
        waiting.cancel()
        with pytest.raises(DeadlineError, match="within 10 s"):
            await slow
        assert now() == 10.0

    run_virtually(run())


def test_largest_message_fits_whatever_the_settings_say() -> None:
    assert MemoryBudget(1, LARGEST, 10.0)._max_bytes == LARGEST
    config = GatewayConfig(max_photo_bytes=10)
    assert request_memory.max_message_bytes(config) > 10


def test_memory_is_returned_to_the_system_after_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[float]:
        memory = MemoryBudget(2**30, 2**25, 10.0)
        trimmed: list[float] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "run_in_executor", lambda *_: trimmed.append(now()))
        for num_bytes in (1000, 2**25, 1000):
            memory.count(num_bytes).release()
        await asyncio.sleep(60.0)
        return trimmed

    assert run_virtually(run()) == list(request_memory._TRIM_SECONDS)
