# SPDX-License-Identifier: Apache-2.0
"""The two clients, sync and async: channels and calls. Messages are built and read in `messages`.

A client may be shared by threads (sync) or tasks (async): all its calls use one connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import ExitStack, aclosing, closing
from types import TracebackType
from typing import Self, Unpack

import grpc
import grpc.aio
from google.protobuf import wrappers_pb2

from client.client_errors import SearchClientError, translated_errors
from client.messages import (
    MAX_MESSAGE_BYTES,
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
from search_api import search_pb2

DEFAULT_ADDRESS = "127.0.0.1:8001"
DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_CONCURRENCY = 32
HEALTH_TIMEOUT_SECONDS = 5.0

_SERVICE = "/captrieve.v1.SearchService/"
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
# Names of grpc.health.v1.HealthCheckResponse.ServingStatus by number.
_HEALTH_NAMES = ("unknown", "serving", "not_serving", "service_unknown")
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The server is named by its address; a proxy set for web traffic would only get in the way.
    ("grpc.enable_http_proxy", 0),
    # gRPC would wait up to two minutes before it looks for a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3000),
)


class SearchClient:
    """Searches and captions, one call at a time or many at once.

    Every call takes the options of `SearchOptions` or `CaptionOptions` as keyword arguments, and
    a photo as bytes or as the path of its file.

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
            self._channel = grpc.insecure_channel(address, _CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, _CHANNEL_OPTIONS)
        self._search = self._channel.unary_unary(
            _SERVICE + "Search",
            search_pb2.SearchRequest.SerializeToString,
            search_pb2.SearchResponse.FromString,
        )
        self._stream_search = self._channel.unary_stream(
            _SERVICE + "StreamSearch",
            search_pb2.SearchRequest.SerializeToString,
            search_pb2.SearchEvent.FromString,
        )
        self._caption = self._channel.unary_unary(
            _SERVICE + "Caption",
            search_pb2.CaptionRequest.SerializeToString,
            search_pb2.CaptionResponse.FromString,
        )
        # The health messages look the same on the wire as these two wrappers, one string and one
        # number in field 1: grpcio-health-checking is not needed for them.
        self._check_health = self._channel.unary_unary(
            _HEALTH_CHECK,
            wrappers_pb2.StringValue.SerializeToString,
            wrappers_pb2.Int32Value.FromString,
        )

    def search(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[SearchOptions],
    ) -> SearchAnswer:
        """Finds pictures that look like the photo and agree with its caption's last two words.

        Raises:
            SearchClientError: there is no answer; the subclass and its `code` say why.
            ValueError: an option that no server would understand.
        """
        request = search_request(read_photo(photo), **options)
        with translated_errors(self.address, timeout_seconds):
            return search_answer(self._search(request, timeout=timeout_seconds))

    def stream_search(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[SearchOptions],
    ) -> Generator[SearchEvent, None, None]:
        """The same search piece by piece: `Caption`, `Query`, each `Result`, then the whole answer.

        Closing the generator early cancels the search.

        Raises:
            SearchClientError: as `search`; may come after the first pieces.
            ValueError: an option that no server would understand.
        """
        return self._events(search_request(read_photo(photo), **options), timeout_seconds)

    def _events(self, request: search_pb2.SearchRequest, timeout_seconds: float) -> Generator[SearchEvent, None, None]:
        results: list[Result] = []
        call = self._stream_search(request, timeout=timeout_seconds)
        with ExitStack() as stack, translated_errors(self.address, timeout_seconds):
            stack.callback(call.cancel)
            for message in call:
                event = search_event(message, results)
                if event is not None:
                    yield event

    def caption(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> CaptionAnswer:
        """Says what the photo shows, without a search.

        Raises:
            SearchClientError: there is no answer; the subclass and its `code` say why.
            ValueError: an option that no server would understand.
        """
        request = caption_request(read_photo(photo), **options)
        with translated_errors(self.address, timeout_seconds):
            return caption_answer(self._caption(request, timeout=timeout_seconds))

    def captions(
        self,
        photos: Sequence[Photo],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> list[CaptionAnswer]:
        """Captions many photos at once; the answers are in the order of the photos.

        Raises:
            SearchClientError: of the first photo without an answer; the others are cancelled.
                Use `stream_captions` to keep them.
            ValueError: an option that no server would understand.
        """
        outcomes = self.stream_captions(photos, concurrency=concurrency, timeout_seconds=timeout_seconds, **options)
        with closing(outcomes):
            return [_answer_of(outcome) for outcome in outcomes]

    def stream_captions(
        self,
        photos: Iterable[Photo],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> Generator[CaptionAnswer | SearchClientError, None, None]:
        """Captions many photos at once and yields in their order as soon as each is ready.

        A photo without an answer yields its error; nothing is raised for it. Photos are read when
        their turn comes, so there may be any number of them.

        Raises:
            ValueError: `concurrency` below 1, or an option that no server would understand.
            TypeError: one photo instead of many.
        """
        _check_many(photos, concurrency)
        return self._caption_outcomes(photos, concurrency, timeout_seconds, options)

    def _caption_outcomes(
        self,
        photos: Iterable[Photo],
        concurrency: int,
        timeout_seconds: float,
        options: CaptionOptions,
    ) -> Generator[CaptionAnswer | SearchClientError, None, None]:
        free = threading.Semaphore(concurrency)
        waiting: deque[grpc.Future[search_pb2.CaptionResponse] | SearchClientError] = deque()
        try:
            for photo in photos:
                try:
                    request = caption_request(read_photo(photo), **options)
                except SearchClientError as error:
                    waiting.append(error)
                else:
                    free.acquire()
                    call = self._caption.future(request, timeout=timeout_seconds)
                    call.add_done_callback(lambda _: free.release())
                    waiting.append(call)
                while waiting and (isinstance(waiting[0], SearchClientError) or waiting[0].done()):
                    yield self._caption_outcome(waiting.popleft(), timeout_seconds)
            while waiting:
                yield self._caption_outcome(waiting.popleft(), timeout_seconds)
        finally:
            for call_or_error in waiting:
                if not isinstance(call_or_error, SearchClientError):
                    call_or_error.cancel()

    def _caption_outcome(
        self,
        call: grpc.Future[search_pb2.CaptionResponse] | SearchClientError,
        timeout_seconds: float,
    ) -> CaptionAnswer | SearchClientError:
        if isinstance(call, SearchClientError):
            return call
        try:
            with translated_errors(self.address, timeout_seconds):
                return caption_answer(call.result())
        except SearchClientError as error:
            return error

    def health(self, *, timeout_seconds: float = HEALTH_TIMEOUT_SECONDS) -> str:
        """What the server says of itself: "serving", "not_serving" or "unknown".

        Raises:
            SearchClientError: there is no answer; the subclass and its `code` say why.
        """
        with translated_errors(self.address, timeout_seconds):
            return _health_name(self._check_health(wrappers_pb2.StringValue(), timeout=timeout_seconds))

    def close(self) -> None:
        """Ends the connection and all calls on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


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
            self._channel = grpc.aio.insecure_channel(address, _CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, _CHANNEL_OPTIONS)
        self._search = self._channel.unary_unary(
            _SERVICE + "Search",
            search_pb2.SearchRequest.SerializeToString,
            search_pb2.SearchResponse.FromString,
        )
        self._stream_search = self._channel.unary_stream(
            _SERVICE + "StreamSearch",
            search_pb2.SearchRequest.SerializeToString,
            search_pb2.SearchEvent.FromString,
        )
        self._caption = self._channel.unary_unary(
            _SERVICE + "Caption",
            search_pb2.CaptionRequest.SerializeToString,
            search_pb2.CaptionResponse.FromString,
        )
        self._check_health = self._channel.unary_unary(
            _HEALTH_CHECK,
            wrappers_pb2.StringValue.SerializeToString,
            wrappers_pb2.Int32Value.FromString,
        )

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
            return [_answer_of(outcome) async for outcome in outcomes]

    async def stream_captions(
        self,
        photos: Iterable[Photo],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> AsyncGenerator[CaptionAnswer | SearchClientError, None]:
        """As `SearchClient.stream_captions`.

        Raises:
            ValueError: `concurrency` below 1, or an option that no server would understand.
            TypeError: one photo instead of many.
        """
        _check_many(photos, concurrency)
        free = asyncio.Semaphore(concurrency)
        waiting: deque[asyncio.Task[CaptionAnswer | SearchClientError]] = deque()

        async def outcome(photo: Photo) -> CaptionAnswer | SearchClientError:
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
            return _health_name(await self._check_health(wrappers_pb2.StringValue(), timeout=timeout_seconds))

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


def _answer_of(outcome: CaptionAnswer | SearchClientError) -> CaptionAnswer:
    if isinstance(outcome, SearchClientError):
        raise outcome
    return outcome


def _check_many(photos: Iterable[Photo], concurrency: int) -> None:
    if isinstance(photos, (str, bytes)):
        # A string is a sequence of strings too: its letters would be taken for file names.
        raise TypeError("captions takes a sequence of photos; use caption for one")
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; it must be at least 1")


def _health_name(status: wrappers_pb2.Int32Value) -> str:
    number = status.value
    return _HEALTH_NAMES[number] if 0 <= number < len(_HEALTH_NAMES) else "unknown"
