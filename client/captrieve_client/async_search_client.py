# SPDX-License-Identifier: Apache-2.0
"""The client for asyncio: calls and their answers. Messages are built and read in `messages`.

It may be shared by tasks: all its calls use one connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import ExitStack, aclosing
from types import TracebackType
from typing import Self, Unpack

import grpc
import grpc.aio
from google.protobuf import wrappers_pb2

from captrieve_client.caption_batch import DEFAULT_CONCURRENCY, CaptionOutcome, answer_of, check_batch
from captrieve_client.client_errors import SearchClientError, translated_errors
from captrieve_client.connection import (
    CAPTION,
    CHANNEL_OPTIONS,
    CHECK_HEALTH,
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    HEALTH_TIMEOUT_SECONDS,
    SEARCH,
    STREAM_SEARCH,
    health_name,
)
from captrieve_client.messages import (
    CaptionAnswer,
    CaptionOptions,
    Photo,
    Result,
    SearchAnswer,
    SearchEvent,
    SearchOptions,
    caption_answer,
    caption_request,
    read_photo,
    search_answer,
    search_event,
    search_request,
)


class AsyncSearchClient:
    """`SearchClient` for asyncio; made and used inside one running event loop.

    Args:
        address: HOST:PORT of the gateway.
        credentials: for a gateway behind TLS, e.g. `grpc.ssl_channel_credentials()`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.address = address
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, CHANNEL_OPTIONS)
        self._search = self._channel.unary_unary(*SEARCH)
        self._stream_search = self._channel.unary_stream(*STREAM_SEARCH)
        self._caption = self._channel.unary_unary(*CAPTION)
        self._check_health = self._channel.unary_unary(*CHECK_HEALTH)

    async def search(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[SearchOptions],
    ) -> SearchAnswer:
        """As `SearchClient.search`.

        Raises:
            SearchClientError: there is no answer; the subclass and its `code` say why.
            ValueError: an option that no server would understand.
        """
        request = search_request(await asyncio.to_thread(read_photo, photo), **options)
        with translated_errors(self.address, timeout_seconds):
            return search_answer(await self._search(request, timeout=timeout_seconds))

    async def stream_search(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[SearchOptions],
    ) -> AsyncGenerator[SearchEvent, None]:
        """As `SearchClient.stream_search`.

        Raises:
            SearchClientError: as `search`; may come after the first pieces.
            ValueError: an option that no server would understand.
        """
        request = search_request(await asyncio.to_thread(read_photo, photo), **options)
        results: list[Result] = []
        call = self._stream_search(request, timeout=timeout_seconds)
        with ExitStack() as stack, translated_errors(self.address, timeout_seconds):
            stack.callback(call.cancel)
            async for message in call:
                event = search_event(message, results)
                if event is not None:
                    yield event

    async def caption(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> CaptionAnswer:
        """As `SearchClient.caption`.

        Raises:
            SearchClientError: there is no answer; the subclass and its `code` say why.
            ValueError: an option that no server would understand.
        """
        request = caption_request(await asyncio.to_thread(read_photo, photo), **options)
        with translated_errors(self.address, timeout_seconds):
            return caption_answer(await self._caption(request, timeout=timeout_seconds))

    async def captions(
        self,
        photos: Sequence[Photo],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> list[CaptionAnswer]:
        """As `SearchClient.captions`.

        Raises:
            SearchClientError: of the first photo without an answer; the others are cancelled.
            ValueError: an option that no server would understand.
        """
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
        """As `SearchClient.stream_captions`.

        Raises:
            ValueError: `concurrency` below 1, or an option that no server would understand.
            TypeError: one photo instead of many.
        """
        check_batch(photos, concurrency)
        free = asyncio.Semaphore(concurrency)
        waiting: deque[asyncio.Task[CaptionOutcome]] = deque()

        async def outcome(photo: Photo) -> CaptionOutcome:
            try:
                return await self.caption(photo, timeout_seconds=timeout_seconds, **options)
            except SearchClientError as error:
                return error

        try:
            for photo in photos:
                await free.acquire()
                task = asyncio.create_task(outcome(photo))
                task.add_done_callback(lambda _: free.release())
                waiting.append(task)
                while waiting and waiting[0].done():
                    yield waiting.popleft().result()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def health(self, *, timeout_seconds: float = HEALTH_TIMEOUT_SECONDS) -> str:
        """As `SearchClient.health`.

        Raises:
            SearchClientError: there is no answer; the subclass and its `code` say why.
        """
        with translated_errors(self.address, timeout_seconds):
            return health_name(await self._check_health(wrappers_pb2.StringValue(), timeout=timeout_seconds))

    async def close(self) -> None:
        """Ends the connection and all calls on it."""
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
