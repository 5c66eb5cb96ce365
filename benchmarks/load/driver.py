# SPDX-License-Identifier: Apache-2.0
"""Load by the clock: callers who wait for their answers (closed loop), and arrivals at given times (open loop).

Calls are any coroutine function from a request's number to its outcome. Time is the event loop's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from benchmarks.load.outcomes import HealthCheck, LoadTurn, Outcome, Sample

Call = Callable[[int], Awaitable[Outcome]]
Check = Callable[[], Awaitable[bool]]

HEALTH_INTERVAL_SECONDS = 0.05
# A refused caller of the closed loop waits as long as the server asks, but at most this long.
_DEFAULT_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 1.0


async def closed_loop(
    call: Call,
    *,
    callers: int,
    warm_seconds: float = 0.0,
    seconds: float = float("inf"),
    requests: int | None = None,
    first: int = 0,
    give_up_seconds: float = 60.0,
) -> LoadTurn:
    """`callers` callers, each sends its next request when the last is answered.

    Args:
        warm_seconds: least time before the window in which rates are measured. It begins when every caller has had an
            answer, too: until then the queue is not as it will be.
        seconds: length of the window; callers finish what they have begun when it ends.
        requests: stop after so many, without warming up; the window ends with the last answer.
        first: number of the first request.
        give_up_seconds: a request that is not answered in that time is lost.
    """
    clock = asyncio.get_running_loop().time
    start = clock()
    begin = start if requests is not None else None
    sent = 0
    samples: list[Sample] = []
    new_callers = callers

    def is_over() -> bool:
        if requests is not None:
            return sent >= requests
        return begin is not None and clock() >= begin + seconds

    async def caller() -> None:
        nonlocal begin, sent, new_callers
        is_new = True
        while not is_over():
            number, sent = first + sent, sent + 1
            started = clock()
            outcome = await _within(give_up_seconds, call(number))
            if outcome is not None:
                samples.append(Sample(started, started, clock(), outcome))
            if is_new:
                is_new, new_callers = False, new_callers - 1
            if begin is None and not new_callers and clock() >= start + warm_seconds:
                begin = clock()
            if outcome is not None and outcome.kind == "shed":
                pause = _DEFAULT_RETRY_SECONDS if outcome.retry_seconds is None else outcome.retry_seconds
                await asyncio.sleep(min(pause, _MAX_RETRY_SECONDS))

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    assert begin is not None
    return LoadTurn(sent, begin, min(begin + seconds, clock()), samples)


async def open_loop(
    call: Call,
    arrivals: Sequence[float],
    *,
    warm_seconds: float = 0.0,
    seconds: float,
    first: int = 0,
    give_up_seconds: float = 60.0,
) -> LoadTurn:
    """Each request is sent at its time, whatever became of those before; its latency counts from that time.

    Args:
        arrivals: seconds from now on, ascending, over `warm_seconds + seconds`.
        warm_seconds: before the window in which rates are measured.
        seconds: length of the window. Answers that come later count, but not into rates.
        first: number of the first request.
        give_up_seconds: a request that is not answered in that time is lost.
    """
    clock = asyncio.get_running_loop().time
    start = clock()
    samples: list[Sample] = []

    async def send(number: int, scheduled: float) -> None:
        sent = clock()
        outcome = await _within(give_up_seconds, call(number))
        if outcome is not None:
            samples.append(Sample(scheduled, sent, clock(), outcome))

    async with asyncio.TaskGroup() as group:
        for place, arrival in enumerate(arrivals):
            await asyncio.sleep(max(0.0, start + arrival - clock()))
            group.create_task(send(first + place, start + arrival))
    begin = start + warm_seconds
    return LoadTurn(len(arrivals), begin, begin + seconds, samples)


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds of arrivals that know nothing of each other, `rate` a second on average; the same for the same seed."""
    generator = random.Random(seed)
    arrivals = []
    moment = generator.expovariate(rate)
    while moment < seconds:
        arrivals.append(moment)
        moment += generator.expovariate(rate)
    return arrivals


def one_at_a_time(call: Call) -> Call:
    """The same call behind a lock that all its callers share: the next begins when the last is answered."""
    lock = asyncio.Lock()

    async def locked(number: int) -> Outcome:
        async with lock:
            return await call(number)

    return locked


@contextlib.asynccontextmanager
async def watched_health(
    check: Check, interval_seconds: float = HEALTH_INTERVAL_SECONDS
) -> AsyncIterator[list[HealthCheck]]:
    """Asks every `interval_seconds` while the block runs, without waiting for the last answer; the list fills up."""
    clock = asyncio.get_running_loop().time
    checks: list[HealthCheck] = []
    start = clock()

    async def ask(due: float) -> None:
        is_serving = await check()
        checks.append(HealthCheck(clock() - due, is_serving))

    async with asyncio.TaskGroup() as group:

        async def ask_on() -> None:
            due = start
            while True:
                group.create_task(ask(due))
                due += interval_seconds
                await asyncio.sleep(max(0.0, due - clock()))

        asking = group.create_task(ask_on())
        try:
            yield checks
        finally:
            asking.cancel()  # questions that were asked are still answered


async def _within(seconds: float, answer: Awaitable[Outcome]) -> Outcome | None:
    """None where there is no answer in time."""
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        return None
