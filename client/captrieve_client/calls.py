# SPDX-License-Identifier: Apache-2.0
"""The core of both clients: builds each call, reads its answer and translates its errors.

`SearchClient` and `AsyncSearchClient` add only the sending: a blocking call, or an awaited one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from captrieve_client._generated import search_pb2, search_pb2_grpc
from captrieve_client.client_errors import connection_broke, translated_errors
from captrieve_client.connection import Connection
from captrieve_client.messages import (
    CaptionAnswer,
    CaptionOptions,
    SearchAnswer,
    SearchEvent,
    SearchOptions,
    caption_answer,
    caption_request,
    health_name,
    search_answer,
    search_event,
    search_request,
)

# By name: the empty one only means that the gateway's process lives.
_SERVICE = search_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One call that is ready to be sent.

    Attributes:
        method: the stub's method, of a blocking or of an asyncio channel.
        request: the message to send.
        read: turns a message of the answer into the value for the caller.
        address: HOST:PORT of the gateway, for error messages.
        timeout_seconds: how long the gateway may take for the answer.
        metadata: what is sent in the header, or None.
        is_repeated: whether it may be sent again.
    """

    method: Any
    request: Message
    read: Callable[[Any], Answer]
    address: str
    timeout_seconds: float
    metadata: tuple[tuple[str, str], ...] | None = None
    is_repeated: bool = False

    def again(self, error: grpc.RpcError, seconds: float) -> Call[Answer]:
        """The same call, if its connection broke in the middle of the answer, which gRPC's own retries leave alone.

        Args:
            error: how the call ended.
            seconds: how long it took.

        Raises:
            grpc.RpcError: the given error, if the call is not worth another attempt.
        """
        if not self.is_repeated or seconds >= self.timeout_seconds or not connection_broke(error):
            raise error
        return replace(self, timeout_seconds=self.timeout_seconds - seconds, is_repeated=False)

    def start(self) -> Any:
        """Sends the request.

        Returns:
            The answer of a blocking unary call, otherwise gRPC's call object.
        """
        return self.method(self.request, timeout=self.timeout_seconds, metadata=self.metadata)

    def start_future(self) -> Any:
        """Sends the request of a blocking channel without waiting for the answer.

        Returns:
            A `grpc.Future` of the answer.
        """
        return self.method.future(self.request, timeout=self.timeout_seconds, metadata=self.metadata)

    def translated_errors(self) -> AbstractContextManager[None]:
        """A context that raises gRPC's errors as `SearchClientError`."""
        return translated_errors(self.address, self.timeout_seconds)


class Calls:
    """Builds the calls of one connection.

    Args:
        connection: the address for error messages, and the metadata of each call.
        channel: a `grpc.Channel` or a `grpc.aio.Channel`.
    """

    def __init__(self, connection: Connection, channel: Any) -> None:
        self._connection = connection
        self._search_service = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
        self._health_service = health_pb2_grpc.HealthStub(channel)

    def search(self, photo: bytes, timeout_seconds: float, options: SearchOptions) -> Call[SearchAnswer]:
        """The call of a search.

        Raises:
            ValueError: an unknown query rule, or a number that does not fit its field.
        """
        request = search_request(photo, **options)
        return self._call(self._search_service.Search, request, search_answer, timeout_seconds)

    def stream_search(self, photo: bytes, timeout_seconds: float, options: SearchOptions) -> Call[SearchEvent | None]:
        """The call of a streamed search; `read` returns None for events that this client does not know.

        Raises:
            ValueError: an unknown query rule, or a number that does not fit its field.
        """
        request = search_request(photo, **options)
        read = partial(search_event, results=[])  # each stream collects its own results
        return self._call(self._search_service.StreamSearch, request, read, timeout_seconds)

    def caption(self, photo: bytes, timeout_seconds: float, options: CaptionOptions) -> Call[CaptionAnswer]:
        """The call of a caption.

        Raises:
            ValueError: an unknown query rule, or a number that does not fit its field.
        """
        request = caption_request(photo, **options)
        return self._call(self._search_service.Caption, request, caption_answer, timeout_seconds)

    def health(self, timeout_seconds: float) -> Call[str]:
        """The call that asks whether the gateway is ready for requests."""
        request = health_pb2.HealthCheckRequest(service=_SERVICE)
        return self._call(self._health_service.Check, request, health_name, timeout_seconds)

    def _call(
        self, method: Any, request: Message, read: Callable[[Any], Answer], timeout_seconds: float
    ) -> Call[Answer]:
        connection = self._connection
        is_repeated = connection.max_attempts > 1
        return Call(method, request, read, connection.target, timeout_seconds, connection.metadata, is_repeated)
