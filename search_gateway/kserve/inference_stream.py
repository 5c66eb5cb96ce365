# SPDX-License-Identifier: Apache-2.0
"""Works on many requests of one stream at a time and writes the answers in the order of the requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from search_gateway.errors import BadRequestError

MAX_IN_WORK = 64  # requests of one stream that were read but not answered yet

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answer_in_order(
    requests: AsyncIterator[Request],
    answer: Callable[[Request | BadRequestError], Awaitable[Response]],
    write: Callable[[Response], Awaitable[object]],
    closing: asyncio.Event,
) -> None:
    """Answer a stream; returns when the last answer is written. Cancelling this cancels all work in progress.

    Args:
        requests: may raise BadRequestError for a request that cannot be read, and continue.
        answer: must not raise; also gets the errors that `requests` raised.
        write: sends one answer.
        closing: when it is set, no further request is read; those in progress are still answered.

    Raises:
        SearchError: `requests` or `write` raised it; all work in progress is cancelled.
    """
    in_work: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()  # None: no more
    places = asyncio.Semaphore(MAX_IN_WORK)

    async def do(request: Request | BadRequestError) -> Response:
        return await answer(request)

    async def read() -> None:
        while True:
            await places.acquire()
            try:
                request: Request | BadRequestError = await _next_or_closing(requests, closing)
            except StopAsyncIteration:
                in_work.put_nowait(None)
                return
            except BadRequestError as error:
                request = error
            in_work.put_nowait(group.create_task(do(request)))

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            while (task := await in_work.get()) is not None:
                await write(await task)
                places.release()
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None


async def _next_or_closing(requests: AsyncIterator[Request], closing: asyncio.Event) -> Request:
    """Return the next request.

    Raises:
        StopAsyncIteration: there is none, or `closing` was set first.
    """

    async def receive() -> tuple[Request, ...]:
        # A StopAsyncIteration cannot leave a task.
        with contextlib.suppress(StopAsyncIteration):
            return (await anext(requests),)
        return ()

    receiving, closed = asyncio.create_task(receive()), asyncio.create_task(closing.wait())
    try:
        await asyncio.wait((receiving, closed), return_when=asyncio.FIRST_COMPLETED)
        received = receiving.result() if receiving.done() else ()
    finally:
        receiving.cancel()
        closed.cancel()
    if not received:
        raise StopAsyncIteration
    return received[0]
