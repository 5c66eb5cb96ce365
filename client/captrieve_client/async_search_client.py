# SPDX-License-Identifier: Apache-2.0
"""The asyncio client. `calls` builds its calls and reads their answers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import ExitStack, aclosing
from types import TracebackType
from typing import TypeVar

import grpc
import grpc.aio
from typing_extensions import Self, Unpack

from captrieve_client.calls import Call, Calls
from captrieve_client.caption_batch import DEFAULT_CONCURRENCY, CaptionOutcome, OrderedFutures, answer_of, check_batch
from captrieve_client.client_errors import SearchClientError
from captrieve_client.connection import (
    DEFAULT_ADDRESS,
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_TIMEOUT_SECONDS,
    HEALTH_TIMEOUT_SECONDS,
    make_connection,
)
from captrieve_client.messages import (
    CaptionAnswer,
    CaptionOptions,
    SearchAnswer,
    SearchEvent,
    SearchOptions,
)
from captrieve_client.photos import Photo, read_photo

Answer = TypeVar("Answer")


class AsyncSearchClient:
    """`SearchClient` for asyncio, with the same methods as coroutines and asynchronous generators.

    It may be made outside an event loop. Tasks of one loop may share it; all calls use one connection,
    which the first call opens. After the end of a loop, another may use it.

    Args:
        address, credentials, tls, ca_file, certificate_file, key_file, token, max_attempts: as for `SearchClient`.

    Raises:
        ConnectionSettingsError: as for `SearchClient`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        tls: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        certificate_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        token: str | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    ) -> None:
        connection = make_connection(
            address,
            credentials,
            tls=tls,
            ca_file=ca_file,
            certificate_file=certificate_file,
            key_file=key_file,
            token=token,
            max_attempts=max_attempts,
        )
        self.address = connection.target
        self._connection = connection
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the channel
        self._channel: grpc.aio.Channel
        self._opened_calls: Calls

    async def search(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[SearchOptions],
    ) -> SearchAnswer:
        """Finds pictures; arguments, result and errors are those of `SearchClient.search`."""
        return await self._send(self._calls().search(await _read_photo(photo), timeout_seconds, options))

    async def stream_search(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[SearchOptions],
    ) -> AsyncGenerator[SearchEvent, None]:
        """Searches and yields each part of the answer, see `SearchClient.stream_search`."""
        call = self._calls().stream_search(await _read_photo(photo), timeout_seconds, options)
        messages = call.start()
        with ExitStack() as stack, call.translated_errors():
            stack.callback(messages.cancel)
            async for message in messages:
                event = call.read(message)
                if event is not None:
                    yield event

    async def caption(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> CaptionAnswer:
        """Describes the photo in words; arguments, result and errors are those of `SearchClient.caption`."""
        return await self._send(self._calls().caption(await _read_photo(photo), timeout_seconds, options))

    async def captions(
        self,
        photos: Sequence[Photo],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> list[CaptionAnswer]:
        """Captions many photos at once; arguments, result and errors are those of `SearchClient.captions`."""
        outcomes = self.stream_captions(photos, concurrency=concurrency, timeout_seconds=timeout_seconds, **options)
        async with aclosing(outcomes):
            return [answer_of(outcome) async for outcome in outcomes]

    async def stream_captions(
        self,
        photos: Iterable[Photo],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> AsyncGenerator[CaptionOutcome, None]:
        """Captions many photos at once and yields each outcome, see `SearchClient.stream_captions`."""
        check_batch(photos, concurrency)
        free = asyncio.Semaphore(concurrency)
        tasks: OrderedFutures[asyncio.Task[CaptionOutcome]] = OrderedFutures()
        try:
            for photo in photos:
                await free.acquire()
                tasks.add(asyncio.create_task(self._caption_outcome(photo, timeout_seconds, options)), free.release)
                for task in tasks.finished():
                    yield task.result()
            for task in tasks.remaining():
                yield await task
        finally:
            await asyncio.gather(*tasks.cancel(), return_exceptions=True)

    async def health(self, *, timeout_seconds: float = HEALTH_TIMEOUT_SECONDS) -> str:
        """Asks whether the gateway is ready for requests, see `SearchClient.health`."""
        return await self._send(self._calls().health(timeout_seconds))

    async def close(self) -> None:
        """Closes the connection and cancels all calls that use it."""
        if self._loop is asyncio.get_running_loop():
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _calls(self) -> Calls:
        """The calls of the running loop's connection, since a channel belongs to one loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and self._loop.is_running():
                raise RuntimeError("the client is used in another event loop; make one client for each loop")
            connection = self._connection
            if connection.credentials is None:
                self._channel = grpc.aio.insecure_channel(connection.target, connection.options)
            else:
                self._channel = grpc.aio.secure_channel(connection.target, connection.credentials, connection.options)
            self._loop, self._opened_calls = loop, Calls(connection, self._channel)
        return self._opened_calls

    @staticmethod
    async def _send(call: Call[Answer]) -> Answer:
        started = time.monotonic()
        with call.translated_errors():
            try:
                answer = await call.start()
            except grpc.RpcError as error:
                answer = await call.again(error, time.monotonic() - started).start()
            return call.read(answer)

    async def _caption_outcome(self, photo: Photo, timeout_seconds: float, options: CaptionOptions) -> CaptionOutcome:
        try:
            return await self.caption(photo, timeout_seconds=timeout_seconds, **options)
        except SearchClientError as error:
            return error


async def _read_photo(photo: Photo) -> bytes:
    # A file may lie on a slow disk, which must not block the event loop.
    return await asyncio.to_thread(read_photo, photo)
