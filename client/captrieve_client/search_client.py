# SPDX-License-Identifier: Apache-2.0
"""The client: calls and their answers. Messages are built and read in `messages`.

It may be shared by threads: all its calls use one connection.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Self, Unpack

import grpc
from google.protobuf import wrappers_pb2

from captrieve_client._generated import search_pb2
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
            self._channel = grpc.insecure_channel(address, CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, CHANNEL_OPTIONS)
        self._search = self._channel.unary_unary(*SEARCH)
        self._stream_search = self._channel.unary_stream(*STREAM_SEARCH)
        self._caption = self._channel.unary_unary(*CAPTION)
        self._check_health = self._channel.unary_unary(*CHECK_HEALTH)

    def search(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[SearchOptions],
    ) -> SearchAnswer:
        """Finds pictures that look like the photo and agree with what it may be called.

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
            return [answer_of(outcome) for outcome in outcomes]

    def stream_captions(
        self,
        photos: Iterable[Photo],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> Generator[CaptionOutcome, None, None]:
        """Captions many photos at once and yields in their order as soon as each is ready.

        A photo without an answer yields its error; nothing is raised for it. Photos are read when
        their turn comes, so there may be any number of them.

        Raises:
            ValueError: `concurrency` below 1, or an option that no server would understand.
            TypeError: one photo instead of many.
        """
        check_batch(photos, concurrency)
        return self._caption_outcomes(photos, concurrency, timeout_seconds, options)

    def _caption_outcomes(
        self,
        photos: Iterable[Photo],
        concurrency: int,
        timeout_seconds: float,
        options: CaptionOptions,
    ) -> Generator[CaptionOutcome, None, None]:
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
    ) -> CaptionOutcome:
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
            return health_name(self._check_health(wrappers_pb2.StringValue(), timeout=timeout_seconds))

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
