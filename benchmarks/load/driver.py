# SPDX-License-Identifier: Apache-2.0
"""Generates load: callers that wait for their answers (closed loop), and requests at given times (open loop).

A call is a coroutine function from a request's number to its outcome. Times are those of the event loop's clock.
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
# A caller of the closed loop that is refused waits as long as the server asks, but at most _MAX_RETRY_SECONDS.
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
    """Let callers send requests, each its next one when its last one is answered.

    Args:
        call: sends a request.
        callers: number of callers.
        warm_seconds: least time before the window in which rates are measured. The window also waits until every
            caller has had an answer, because the queue fills until then.
        seconds: length of the window; callers wait for their last answers after it.
        requests: if given, the number of requests; there is no warm-up, and the window ends with the last answer.
        first: number of the first request.
        give_up_seconds: a request without an answer after this time is lost.
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
    """Send requests at given times, whether or not the earlier ones are answered; latencies count from these times.

    Args:
        call: sends a request.
        arrivals: ascending seconds from now, up to `warm_seconds + seconds`.
        warm_seconds: time before the window in which rates are measured.
        seconds: length of the window. Later answers are counted, but not in rates.
        first: number of the first request.
        give_up_seconds: a request without an answer after this time is lost.
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
    """Return the times of a Poisson process with `rate` arrivals per second, in ascending seconds."""
    generator = random.Random(seed)
    arrivals = []
    moment = generator.expovariate(rate)
    while moment < seconds:
        arrivals.append(moment)
        moment += generator.expovariate(rate)
    return arrivals


def one_at_a_time(call: Call) -> Call:
    """Wrap a call so that each request begins only when the one before is answered."""
    lock = asyncio.Lock()

    async def locked(number: int) -> Outcome:
        async with lock:
            return await call(number)

    return locked


@contextlib.asynccontextmanager
async def watched_health(
    check: Check, interval_seconds: float = HEALTH_INTERVAL_SECONDS
) -> AsyncIterator[list[HealthCheck]]:
    """Check a server's health every `interval_seconds` during the block; yields a list to which checks are added."""
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
            asking.cancel()  # the task group still waits for the checks that have begun


async def _within(seconds: float, answer: Awaitable[Outcome]) -> Outcome | None:
    """Return None if there is no answer in time."""
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        return None
