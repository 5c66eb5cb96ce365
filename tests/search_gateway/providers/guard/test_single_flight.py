# SPDX-License-Identifier: Apache-2.0
"""Shared calls, in virtual time: who comes, who leaves, who gets what."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from search_gateway.providers.guard.single_flight import FlightCancelledError, SingleFlight
from tests.fakes.virtual_time import run_virtually


class Calls:
    """Counts what was begun, finished and cancelled."""

    def __init__(self, seconds: float = 1.0, failure: Exception | None = None):
        self.seconds = seconds
        self.failure = failure
        self.begun = 0
        self.ended = 0
        self.cancelled = 0

    def __call__(self) -> Coroutine[Any, Any, int]:
        return self._run()

    async def _run(self) -> int:
        self.begun += 1
        number = self.begun
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.ended += 1
        if self.failure is not None:
            raise self.failure
        return number


def flight_test(test: Callable[[SingleFlight[int]], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        flights: SingleFlight[int] = SingleFlight()
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        await test(flights)
        await asyncio.sleep(100)
        assert not problems

    run_virtually(run())


def test_same_key_is_one_call_and_other_keys_are_others() -> None:
    async def test(flights: SingleFlight[int]) -> None:
        calls = Calls()
        answers = await asyncio.gather(*(flights.join(key, calls, 10) for key in "aabab"))
        assert answers == [1, 1, 2, 1, 2]
        assert not flights.is_under_way("a")

    flight_test(test)


def test_next_call_begins_when_the_last_has_ended() -> None:
    async def test(flights: SingleFlight[int]) -> None:
        calls = Calls()
        assert [await flights.join("a", calls, 10) for _ in range(3)] == [1, 2, 3]

    flight_test(test)


def test_first_caller_may_leave() -> None:
    async def test(flights: SingleFlight[int]) -> None:
        calls = Calls()
        first = asyncio.create_task(flights.join("a", calls, 10))
        await asyncio.sleep(0.25)
        second = asyncio.create_task(flights.join("a", calls, 10))
        await asyncio.sleep(0.25)
        first.cancel()
        assert await second == 1
        assert first.cancelled()
        assert (calls.begun, calls.cancelled) == (1, 0)

    flight_test(test)


def test_each_callers_deadline_is_its_own() -> None:
    async def test(flights: SingleFlight[int]) -> None:
        calls = Calls()
        loop = asyncio.get_running_loop()
        hurried = asyncio.create_task(flights.join("a", calls, 0.5))
        patient = asyncio.create_task(flights.join("a", calls, 5))
        with pytest.raises(TimeoutError):
            await hurried
        assert loop.time() == pytest.approx(0.5)
        assert await patient == 1
        assert loop.time() == pytest.approx(1.0)

    flight_test(test)


@pytest.mark.parametrize("leave", ["cancelled", "late"])
def test_call_ends_with_its_last_caller_and_nobody_joins_it_any_more(leave: str) -> None:
    async def test(flights: SingleFlight[int]) -> None:
        calls = Calls()
        timeout_seconds = 10 if leave == "cancelled" else 0.5
        callers = [asyncio.create_task(flights.join("a", calls, timeout_seconds)) for _ in range(3)]
        await asyncio.sleep(0.25)
        if leave == "cancelled":
            for caller in callers:
                caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        assert not flights.is_under_way("a")
        assert await flights.join("a", calls, 10) == 2
        assert (calls.cancelled, calls.ended) == (1, 1)

    flight_test(test)


def test_failure_reaches_everybody_and_is_not_kept() -> None:
    async def test(flights: SingleFlight[int]) -> None:
        calls = Calls(failure=ValueError("no"))
        answers = await asyncio.gather(*(flights.join("a", calls, 10) for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ValueError] * 3
        assert await flights.join("a", Calls(), 10) == 1

    flight_test(test)


def test_call_that_cannot_begin_leaves_nothing_behind() -> None:
    def begin() -> Coroutine[Any, Any, int]:
        raise ValueError("no")

    async def test(flights: SingleFlight[int]) -> None:
        with pytest.raises(ValueError, match="no"):
            await flights.join("a", begin, 10)
        assert not flights.is_under_way("a")

    flight_test(test)


def test_closing_ends_calls_without_looking_like_their_callers_cancellation() -> None:
    async def test(flights: SingleFlight[int]) -> None:
        calls = Calls()
        callers = [asyncio.create_task(flights.join(key, calls, 10)) for key in "ab"]
        await asyncio.sleep(0.25)
        assert await flights.close(1) == 0
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(answer) for answer in answers] == [FlightCancelledError] * 2
        assert calls.cancelled == 2

    flight_test(test)


def test_cancelling_a_caller_while_its_call_is_cancelled_is_a_cancellation() -> None:
    async def test(flights: SingleFlight[int]) -> None:
        caller = asyncio.create_task(flights.join("a", Calls(), 10))
        await asyncio.sleep(0.25)
        closing = asyncio.create_task(flights.close(1))
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await closing

    flight_test(test)


def test_after_closing_nothing_begins_and_nothing_that_was_left_goes_on() -> None:
    async def test(flights: SingleFlight[int]) -> None:
        has_ended = asyncio.Event()

        async def slow_to_end() -> int:
            try:
                await asyncio.sleep(10)
            finally:
                await asyncio.sleep(5)
                has_ended.set()
            return 1

        with pytest.raises(TimeoutError):
            await flights.join("a", slow_to_end, 1)  # the last caller leaves; the call takes a while to end
        assert await flights.close(10) == 0
        assert has_ended.is_set()
        calls = Calls()
        with pytest.raises(FlightCancelledError):
            await flights.join("a", calls, 10)
        assert calls.begun == 0

    flight_test(test)


def test_closing_does_not_wait_for_a_call_that_ignores_its_cancellation() -> None:
    async def test(flights: SingleFlight[int]) -> None:
        loop, is_over = asyncio.get_running_loop(), False

        async def stubborn() -> int:
            while not is_over:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(3)
            return 1

        with pytest.raises(TimeoutError):
            await flights.join("a", stubborn, 1)
        began = loop.time()
        assert await flights.close(0.5) == 1
        assert loop.time() == began + 0.5
        is_over = True

    flight_test(test)
