# SPDX-License-Identifier: Apache-2.0
"""Places are shared fairly: the search that has the fewest gets the next one."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from search_gateway.thumbnails.fair_semaphore import FairSemaphore, SemaphoreClosedError
from tests.fakes.virtual_time import run_virtually


async def work(semaphore: FairSemaphore, search: str, seconds: float, done: list[str]) -> None:
    async with semaphore.place(search):
        await asyncio.sleep(seconds)
        done.append(search)


def test_searches_take_turns_whoever_came_first() -> None:
    async def run() -> list[str]:
        semaphore, done = FairSemaphore(1), list[str]()
        async with asyncio.TaskGroup() as group:
            for search in "aaaabbc":
                group.create_task(work(semaphore, search, 1.0, done))
        return done

    assert "".join(run_virtually(run())) == "abcabaa"


def test_slow_search_does_not_collect_all_places() -> None:
    """With one grant each in turn, a search whose fetches take 30 times as long would hold nearly all places."""

    async def run() -> tuple[float, Counter[str]]:
        semaphore, done, loop = FairSemaphore(8), list[str](), asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            slow = [group.create_task(work(semaphore, "slow", 3.0, done)) for _ in range(100)]
            await asyncio.sleep(3.5)  # it has all places by now
            fast = [group.create_task(work(semaphore, "fast", 0.1, done)) for _ in range(100)]
            began = loop.time()
            await asyncio.wait(fast)
            seconds, done_by_now = loop.time() - began, Counter(done)
            for task in slow:
                task.cancel()
        return seconds, done_by_now

    seconds, done = run_virtually(run())
    assert seconds == pytest.approx(2.5 + 100 / 4 * 0.1, abs=0.2)  # the slow fetches end, then half of the places
    assert done["slow"] <= 20


def test_cancelled_waiters_and_holders_leave_no_place_taken() -> None:
    async def run() -> None:
        semaphore, done = FairSemaphore(2), list[str]()
        tasks = [asyncio.create_task(work(semaphore, search, 100.0, done)) for search in "aabbcc"]
        await asyncio.sleep(1)
        for task in tasks[1:5]:
            task.cancel()
        await asyncio.sleep(0)
        tasks[0].cancel()  # while the place of tasks[1] is on its way to tasks[5]
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [True] * 5 + [False]
        async with asyncio.timeout(1), semaphore.place("d"), semaphore.place("d"):
            pass

    run_virtually(run())


def test_waiter_that_is_cancelled_as_it_gets_its_turn_passes_it_on() -> None:
    async def run() -> None:
        semaphore, done = FairSemaphore(1), list[str]()
        first, second, third = (asyncio.create_task(work(semaphore, search, 1.0, done)) for search in "abc")
        await asyncio.wait([first])
        second.cancel()  # it has been given the place but has not run yet
        await asyncio.wait([second, third])
        assert second.cancelled()
        assert done == ["a", "c"]

    run_virtually(run())


def test_closing_sends_waiters_away_and_nobody_gets_a_turn_any_more() -> None:
    async def run() -> None:
        semaphore, done = FairSemaphore(1), list[str]()
        holder, waiter = (asyncio.create_task(work(semaphore, search, 5.0, done)) for search in "ab")
        await asyncio.sleep(1)
        semaphore.close()
        with pytest.raises(SemaphoreClosedError):
            await waiter
        with pytest.raises(SemaphoreClosedError):
            await work(semaphore, "c", 1.0, done)
        await holder
        assert done == ["a"]

    run_virtually(run())
