# SPDX-License-Identifier: Apache-2.0
"""The blocking client. `calls` builds its calls and reads their answers."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Any, TypeVar

import grpc
from typing_extensions import Self, Unpack

from captrieve_client.calls import Call, Calls
from captrieve_client.caption_batch import DEFAULT_CONCURRENCY, CaptionOutcome, OrderedFutures, answer_of, check_batch
from captrieve_client.client_errors import SearchClientError, translated_errors
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
    caption_answer,
)
from captrieve_client.photos import Photo, read_photo

Answer = TypeVar("Answer")


class SearchClient:
    """Searches with photos and captions them. Threads may share one client; all calls use one connection.

    Every method takes a photo as bytes, path, `file:` or `https:` URL, open file, PIL image or numpy
    array (see `read_photo`), and the keyword arguments of `SearchOptions` or `CaptionOptions`. A
    string from a stranger may name any file or address that this machine reaches: pass bytes instead.

    Args:
        address: HOST:PORT, HOST or https://HOST of the gateway; the port is 8001 by default, with TLS 443. Several,
            separated by commas, are called in turn; with TLS, the certificates of all must be for the first host.
        credentials: for a gateway behind TLS that needs more than the arguments below.
        tls: whether to use TLS; https:// and `ca_file` imply it.
        ca_file: certificates of the authorities to trust, in PEM format; None trusts those that gRPC brings.
        certificate_file, key_file: the client's own certificate and its key in PEM format, for mutual TLS.
        token: sent as bearer token with each request; needs TLS, unless the gateway is on this machine.
        max_attempts: how often a request is sent, from 1 to 5, if the gateway is unavailable or overloaded; gRPC pauses
            in between as the gateway asks, within the request's timeout. If more than 1, a request whose connection
            breaks in the middle of the answer is sent once more.

    Raises:
        ConnectionSettingsError: one of these cannot be used.
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
        if connection.credentials is None:
            self._channel = grpc.insecure_channel(connection.target, connection.options)
        else:
            self._channel = grpc.secure_channel(connection.target, connection.credentials, connection.options)
        self._calls = Calls(connection, self._channel)

    def search(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[SearchOptions],
    ) -> SearchAnswer:
        """Finds pictures that look like the photo and whose titles agree with its description.

        Args:
            photo: see `read_photo`.
            timeout_seconds: how long the gateway may take.
            **options: see `SearchOptions`.

        Returns:
            The results, best first, with the caption, the query, the counts and the times.

        Raises:
            SearchClientError: the gateway gave no answer; the subclass and its `code` say why.
            ValueError: an option has a value that cannot be sent.
        """
        return self._send(self._calls.search(read_photo(photo), timeout_seconds, options))

    def stream_search(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[SearchOptions],
    ) -> Generator[SearchEvent, None, None]:
        """Searches and yields each part of the answer as soon as the gateway has it.

        Close the generator to cancel the search.

        Args:
            photo: see `read_photo`.
            timeout_seconds: how long the gateway may take for the whole answer.
            **options: see `SearchOptions`.

        Yields:
            The `Caption`, the `Query`, each `Result`, then the whole `SearchAnswer`.

        Raises:
            SearchClientError: as for `search`; it may follow the first parts.
            ValueError: an option has a value that cannot be sent.
        """
        return self._events(self._calls.stream_search(read_photo(photo), timeout_seconds, options))

    def caption(
        self,
        photo: Photo,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> CaptionAnswer:
        """Describes the photo in words, without a search.

        Args:
            photo: see `read_photo`.
            timeout_seconds: how long the gateway may take.
            **options: see `CaptionOptions`.

        Returns:
            The caption and the query that a search would use.

        Raises:
            SearchClientError: the gateway gave no answer; the subclass and its `code` say why.
            ValueError: an option has a value that cannot be sent.
        """
        return self._send(self._calls.caption(read_photo(photo), timeout_seconds, options))

    def captions(
        self,
        photos: Sequence[Photo],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Unpack[CaptionOptions],
    ) -> list[CaptionAnswer]:
        """Captions many photos at once.

        Args:
            photos: see `read_photo`; `photo_files` lists those of a folder.
            concurrency: how many requests may be in flight at once.
            timeout_seconds: how long the gateway may take for each photo.
            **options: see `CaptionOptions`.

        Returns:
            One answer per photo, in the order of the photos.

        Raises:
            SearchClientError: the error of the first photo without an answer; the other requests
                are cancelled. `stream_captions` keeps the other answers.
            ValueError: `concurrency` is below 1, or an option has a value that cannot be sent.
            TypeError: `photos` is one photo.
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
        """Captions many photos at once and yields each outcome in the order of the photos.

        A photo is read shortly before it is sent, so `photos` may be an endless iterator. Close
        the generator to cancel the requests in flight.

        Args:
            photos: see `read_photo`; `photo_files` lists those of a folder.
            concurrency: how many requests may be in flight at once.
            timeout_seconds: how long the gateway may take for each photo.
            **options: see `CaptionOptions`.

        Yields:
            The photo's answer, or its `SearchClientError`.

        Raises:
            ValueError: `concurrency` is below 1, or an option has a value that cannot be sent.
            TypeError: `photos` is one photo.
        """
        check_batch(photos, concurrency)
        return self._caption_outcomes(photos, concurrency, timeout_seconds, options)

    def health(self, *, timeout_seconds: float = HEALTH_TIMEOUT_SECONDS) -> str:
        """Asks whether the gateway is ready for requests.

        Args:
            timeout_seconds: how long the gateway may take.

        Returns:
            "serving", "not_serving" or "unknown".

        Raises:
            SearchClientError: the gateway gave no answer; the subclass and its `code` say why.
        """
        return self._send(self._calls.health(timeout_seconds))

    def close(self) -> None:
        """Closes the connection and cancels all calls that use it."""
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

    @staticmethod
    def _send(call: Call[Answer]) -> Answer:
        started = time.monotonic()
        with call.translated_errors():
            try:
                answer = call.start()
            except grpc.RpcError as error:
                answer = call.again(error, time.monotonic() - started).start()
            return call.read(answer)

    @staticmethod
    def _events(call: Call[SearchEvent | None]) -> Generator[SearchEvent, None, None]:
        messages = call.start()
        with ExitStack() as stack, call.translated_errors():
            stack.callback(messages.cancel)
            for message in messages:
                event = call.read(message)
                if event is not None:
                    yield event

    def _caption_outcomes(
        self,
        photos: Iterable[Photo],
        concurrency: int,
        timeout_seconds: float,
        options: CaptionOptions,
    ) -> Generator[CaptionOutcome, None, None]:
        free = threading.Semaphore(concurrency)
        futures: OrderedFutures[Any] = OrderedFutures()  # of grpc.Future, or one that holds the photo's error
        try:
            for photo in photos:
                free.acquire()
                futures.add(self._caption_future(photo, timeout_seconds, options), free.release)
                for future in futures.finished():
                    yield self._caption_outcome(future, timeout_seconds)
            for future in futures.remaining():
                yield self._caption_outcome(future, timeout_seconds)
        finally:
            futures.cancel()

    def _caption_future(self, photo: Photo, timeout_seconds: float, options: CaptionOptions) -> Any:
        try:
            return self._calls.caption(read_photo(photo), timeout_seconds, options).start_future()
        except SearchClientError as error:
            failed: concurrent.futures.Future[CaptionAnswer] = concurrent.futures.Future()
            failed.set_exception(error)
            return failed

    def _caption_outcome(self, future: Any, timeout_seconds: float) -> CaptionOutcome:
        try:
            with translated_errors(self.address, timeout_seconds):
                return caption_answer(future.result())
        except SearchClientError as error:
            return error
