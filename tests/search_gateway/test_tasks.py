# SPDX-License-Identifier: Apache-2.0
"""Tasks of a request end with it; tasks in the background go on."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from search_gateway.tasks import all_of, kept_running
from tests.fakes.virtual_time import run_virtually


async def after(seconds: float, result: object) -> object:
    await asyncio.sleep(seconds)
    if isinstance(result, BaseException):
        raise result
    return result


def test_results_come_in_the_order_of_the_coroutines() -> None:
    assert run_virtually(all_of(after(3 - number, number) for number in range(3))) == [0, 1, 2]
    assert run_virtually(all_of([])) == []


def test_first_failure_is_raised_as_it_is_and_nothing_goes_on() -> None:
    async def run() -> float:
        cause = OSError("why")
        failure = KeyError("first")
        failure.__cause__ = cause
        with pytest.raises(KeyError, match="first") as caught:
            await all_of([after(9, 1), after(1, failure), after(2, ValueError("second"))])
        assert caught.value.__cause__ is cause
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return asyncio.get_running_loop().time()

    assert run_virtually(run()) == 1


def test_cancelling_it_cancels_all_of_it() -> None:
    async def run() -> None:
        whole = asyncio.create_task(all_of([after(9, 1), after(9, 2)]))
        await asyncio.sleep(1)
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtually(run())


def test_failure_is_not_kept_alive_by_its_own_frames() -> None:
    class FailureError(Exception):
        pass

    async def failing() -> None:
        raise FailureError

    async def run() -> weakref.ref[BaseException]:
        try:
            await all_of([failing()])
        except FailureError as error:
            return weakref.ref(error)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(run())() is None
    finally:
        gc.enable()


def test_work_in_the_background_is_started_again_however_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        begun, loop = list[float](), asyncio.get_running_loop()
        endings = [KeyError("a defect"), None]

        async def work() -> None:
            begun.append(loop.time())
            await after(4, endings.pop(0) if endings else asyncio.Future())
            if len(begun) > 2:
                await asyncio.Event().wait()

        task = asyncio.create_task(kept_running("the watch", work))
        await asyncio.sleep(20)
        assert begun == [0, 5, 10]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtually(run())
    assert "the watch failed unexpectedly: it is started again" in caplog.text
    assert "a defect" in caplog.text
    assert "the watch ended: it is started again" in caplog.text
