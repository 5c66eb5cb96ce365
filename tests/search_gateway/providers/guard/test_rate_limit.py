# SPDX-License-Identifier: Apache-2.0
"""Turns, in virtual time: seconds are exact and cost nothing."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gateway.errors import ProviderNotAskedError
from search_gateway.providers.base import QuotaWindow
from search_gateway.providers.guard.rate_limit import RateLimit, duration
from tests.fakes.virtual_time import run_virtually


def spacing_of(
    min_seconds: float = 1.0, *, jitter: float = 0.0, max_waiting: int = 16, random: float = 1.0
) -> RateLimit:
    clock = asyncio.get_running_loop().time
    return RateLimit(min_seconds, jitter=jitter, max_waiting=max_waiting, clock=clock, random=lambda: random)


def now() -> float:
    return asyncio.get_running_loop().time()


async def begin(spacing: RateLimit, timeout_seconds: float = 100.0) -> float:
    await spacing.turn(timeout_seconds)
    return now()


def test_first_call_begins_at_once_and_the_others_one_after_the_other() -> None:
    async def run() -> list[float]:
        spacing = spacing_of()
        return list(await asyncio.gather(*(begin(spacing) for _ in range(4))))

    assert run_virtually(run()) == pytest.approx([0, 1, 2, 3])


def test_pause_since_the_last_call_counts() -> None:
    async def run() -> None:
        spacing = spacing_of()
        await begin(spacing)
        await asyncio.sleep(0.75)
        assert await begin(spacing) == pytest.approx(1.0)
        await asyncio.sleep(50)
        assert await begin(spacing) == pytest.approx(51.0)

    run_virtually(run())


def test_jitter_only_lengthens() -> None:
    async def run(random: float) -> float:
        spacing = spacing_of(jitter=0.2, random=random)
        await begin(spacing)
        return await begin(spacing)

    assert run_virtually(run(0.0)) == pytest.approx(1.0)
    assert run_virtually(run(1.0)) == pytest.approx(1.2)


def test_nothing_to_keep_apart() -> None:
    async def run() -> None:
        spacing = spacing_of(0.0)
        for _ in range(100):
            assert await begin(spacing, 0.001) == 0

    run_virtually(run())


def test_turn_that_would_come_too_late_is_refused_at_once() -> None:
    async def run() -> None:
        spacing = spacing_of()
        waiting = [asyncio.create_task(begin(spacing)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ProviderNotAskedError, match="at most once every 1 s"):
            spacing.check(2.9)
        with pytest.raises(ProviderNotAskedError, match="turn comes too late"):
            await spacing.turn(2.9)
        assert now() == 0
        assert await begin(spacing, 3.1) == pytest.approx(3.0)
        await asyncio.gather(*waiting)

    run_virtually(run())


def test_queue_is_bounded() -> None:
    async def run() -> None:
        spacing = spacing_of(max_waiting=2)
        await begin(spacing)
        waiting = [asyncio.create_task(begin(spacing)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ProviderNotAskedError, match="2 searches already wait for their turn"):
            await spacing.turn(1000)
        await asyncio.gather(*waiting)
        await spacing.turn(1000)

    run_virtually(run())


def test_caller_who_leaves_costs_those_behind_no_turn() -> None:
    async def run() -> None:
        spacing = spacing_of()
        await begin(spacing)
        leaving, staying = asyncio.create_task(begin(spacing)), asyncio.create_task(begin(spacing))
        await asyncio.sleep(0.5)
        leaving.cancel()
        assert await staying == pytest.approx(1.0)
        spacing.check(1.01)

    run_virtually(run())


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 8), st.booleans()), max_size=25),
    random=st.floats(0, 1),
)
def test_calls_are_always_apart_whoever_leaves(arrivals: list[tuple[float, float, bool]], random: float) -> None:
    """Any times of arrival, any time given, some cancelled on the way."""

    async def run() -> list[float]:
        spacing = spacing_of(jitter=0.2, max_waiting=8, random=random)
        begun: list[float] = []

        async def arrive(at: float, timeout_seconds: float) -> None:
            await asyncio.sleep(at)
            try:
                async with asyncio.timeout(timeout_seconds):
                    await spacing.turn(timeout_seconds)
                    begun.append(now())
            except (ProviderNotAskedError, TimeoutError):
                pass

        tasks = []
        for at, timeout_seconds, leaves in arrivals:
            tasks.append(asyncio.create_task(arrive(at, timeout_seconds)))
            if leaves:
                asyncio.get_running_loop().call_later(at + timeout_seconds / 2, tasks[-1].cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(spacing.turn(100), 10)  # nobody left it locked
        return begun

    begun = run_virtually(run())
    assert all(later - earlier >= 1 - 1e-9 for earlier, later in zip(begun, begun[1:], strict=False))


def test_pause_holds_calls_back_and_tells_those_that_cannot_wait() -> None:
    async def run() -> None:
        spacing = spacing_of(0.0)
        spacing.pause(5.0)
        spacing.pause(2.0)  # a shorter one does not end it
        with pytest.raises(ProviderNotAskedError, match="its own limit is reached and it is not asked for 5 seconds"):
            spacing.check(5.0)
        assert spacing.paused_seconds == pytest.approx(5.0)
        assert await begin(spacing, 6.0) == pytest.approx(5.0)
        assert spacing.paused_seconds == 0.0

    run_virtually(run())


def test_pause_that_begins_during_the_wait_counts() -> None:
    async def run() -> float:
        spacing = spacing_of(1.0)
        await begin(spacing)
        waiting = asyncio.create_task(begin(spacing))
        await asyncio.sleep(0.5)
        spacing.pause(3.0)
        return await waiting

    assert run_virtually(run()) == pytest.approx(3.5)


def test_no_header_can_switch_a_provider_off_for_more_than_a_day() -> None:
    async def run() -> None:
        spacing = spacing_of()
        spacing.pause(1e12)
        assert spacing.paused_seconds == pytest.approx(86400.0)

    run_virtually(run())


def test_used_up_window_is_a_pause_and_a_short_one_the_rate() -> None:
    async def run() -> None:
        spacing = spacing_of(1.0)
        month = QuotaWindow(limit=15000, remaining=1000, window_seconds=2592000.0, reset_seconds=1419704.0)
        spacing.learn([QuotaWindow(limit=20, remaining=0, window_seconds=1.0, reset_seconds=1.0), month])
        assert await begin(spacing) == pytest.approx(1.0)
        assert await begin(spacing) == pytest.approx(1.05)  # 20 in a second
        spacing.learn([QuotaWindow(limit=20, remaining=0, window_seconds=60.0)])  # no word of its end
        assert spacing.paused_seconds == pytest.approx(60.0)
        spacing.learn([QuotaWindow(limit=200, remaining=0, window_seconds=86400.0)])
        assert spacing.paused_seconds == pytest.approx(60.0)

    run_virtually(run())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 seconds"), (59, "59 seconds"), (60, "1 minute"), (7300, "2 hours"), (90000, "1 day")],
)
def test_durations_are_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
