# SPDX-License-Identifier: Apache-2.0
"""Answers keep the order of their requests, few are in work at a time, and nothing outlives the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from search_gateway.errors import BadRequestError
from search_gateway.kserve.inference_stream import MAX_IN_WORK, answer_in_order


async def numbers(count: int) -> AsyncIterator[int]:
    for i in range(count):
        yield i


def test_answers_come_in_order_though_the_first_takes_longest() -> None:
    async def run() -> tuple[list[int], list[int]]:
        done: list[int] = []
        written: list[int] = []
        last_is_done = asyncio.Event()

        async def answer(request: int | BadRequestError) -> int:
            assert isinstance(request, int)
            if request == 0:
                await last_is_done.wait()
            done.append(request)
            if request == 9:
                last_is_done.set()
            return request

        async def write(response: int) -> None:
            written.append(response)

        await answer_in_order(numbers(10), answer, write, asyncio.Event())
        return done, written

    done, written = asyncio.run(run())
    assert written == list(range(10))
    assert done[-1] == 0, "the others did not wait for the first"


def test_no_more_is_read_than_may_be_in_work() -> None:
    async def run() -> tuple[int, int]:
        read = 0
        may_write = asyncio.Event()
        written = 0

        async def requests() -> AsyncIterator[int]:
            nonlocal read
            for i in range(1000):
                read += 1
                yield i

        async def answer(request: int | BadRequestError) -> int | BadRequestError:
            return request

        async def write(_: object) -> None:
            nonlocal written
            await may_write.wait()
            written += 1

        stream = asyncio.create_task(answer_in_order(requests(), answer, write, asyncio.Event()))
        for _ in range(500):
            await asyncio.sleep(0)
        read_ahead = read
        may_write.set()
        await stream
        return read_ahead, written

    read_ahead, written = asyncio.run(run())
    assert read_ahead == MAX_IN_WORK
    assert written == 1000


def test_request_that_cannot_be_read_is_answered_and_the_next_one_follows() -> None:
    class Requests:
        def __init__(self) -> None:
            self._left = iter([1, BadRequestError("no message"), 3])

        def __aiter__(self) -> Requests:
            return self

        async def __anext__(self) -> int:
            one = next(self._left, None)
            if one is None:
                raise StopAsyncIteration
            if isinstance(one, BadRequestError):
                raise one
            return one

    async def run() -> list[str]:
        written: list[str] = []

        async def answer(request: int | BadRequestError) -> str:
            return str(request)

        async def write(response: str) -> None:
            written.append(response)

        await answer_in_order(Requests(), answer, write, asyncio.Event())
        return written

    assert asyncio.run(run()) == ["1", "no message", "3"]


@pytest.mark.parametrize("where", ["answer", "write"])
def test_cancelling_the_stream_ends_its_work_before_it_returns(where: str) -> None:
    async def run() -> tuple[int, int, set[asyncio.Task[object]]]:
        begun = ended = 0

        async def answer(request: int | BadRequestError) -> None:
            nonlocal begun, ended
            begun += 1
            try:
                if where == "answer" or request != 0:
                    await asyncio.Event().wait()
            finally:
                ended += 1

        async def write(_: object) -> None:
            await asyncio.Event().wait()

        stream = asyncio.create_task(answer_in_order(numbers(5), answer, write, asyncio.Event()))
        for _ in range(50):
            await asyncio.sleep(0)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
        return begun, ended, asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    assert asyncio.run(run()) == (5, 5, set())


def test_closing_answers_what_was_read_and_ends_an_idle_stream() -> None:
    async def run() -> list[int]:
        written: list[int] = []
        closing, release = asyncio.Event(), asyncio.Event()

        async def requests() -> AsyncIterator[int]:
            yield 1
            yield 2
            await asyncio.Event().wait()  # the caller neither asks nor ends

        async def answer(request: int | BadRequestError) -> int:
            assert isinstance(request, int)
            await release.wait()
            return request

        async def write(response: int) -> None:
            written.append(response)

        stream = asyncio.create_task(answer_in_order(requests(), answer, write, closing))
        for _ in range(50):
            await asyncio.sleep(0)
        closing.set()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not stream.done(), "what was read is not answered yet"
        release.set()
        await asyncio.wait_for(stream, 10)
        return written

    assert asyncio.run(run()) == [1, 2]
