# SPDX-License-Identifier: Apache-2.0
"""What a call can fail with, as one tree, and the one place where gRPC errors become it.

    SearchClientError            never raised itself
    ├── RequestRejectedError     the request must change: INVALID_ARGUMENT, UNAUTHENTICATED, ...
    ├── PhotoFileError           the photo's file cannot be read; nothing was sent
    ├── ServerOverloadedError    RESOURCE_EXHAUSTED: come back after `retry_after_seconds`
    ├── ServerUnavailableError   nothing listens, or what the server needs is down or broke
    └── RequestTimeoutError      DEADLINE_EXCEEDED

Knows nothing about requests and answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

_Code = grpc.StatusCode


class SearchClientError(Exception):
    """A request that got no answer.

    Attributes:
        code: the gRPC status code, or the one that says the same where nothing was sent.
        retryable: the same request may succeed later.
        retry_after_seconds: the pause the server asks for; None where it asks for none.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds


class RequestRejectedError(SearchClientError):
    """The request must change before it can be answered."""


class PhotoFileError(SearchClientError):
    """The photo's file cannot be read; nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=_Code.INVALID_ARGUMENT)


class ServerOverloadedError(SearchClientError):
    """The server is full; `retry_after_seconds` says when to come back."""


class ServerUnavailableError(SearchClientError):
    """No server answers, or what it needs (models, image search) is down or broke."""


class RequestTimeoutError(SearchClientError):
    """There was no answer in time."""


_CLASS_OF: dict[grpc.StatusCode, type[SearchClientError]] = {
    _Code.INVALID_ARGUMENT: RequestRejectedError,
    _Code.UNAUTHENTICATED: RequestRejectedError,
    _Code.PERMISSION_DENIED: RequestRejectedError,
    _Code.NOT_FOUND: RequestRejectedError,
    _Code.ALREADY_EXISTS: RequestRejectedError,
    _Code.FAILED_PRECONDITION: RequestRejectedError,
    _Code.OUT_OF_RANGE: RequestRejectedError,
    _Code.UNIMPLEMENTED: RequestRejectedError,
    _Code.RESOURCE_EXHAUSTED: ServerOverloadedError,
    _Code.UNAVAILABLE: ServerUnavailableError,
    _Code.ABORTED: ServerUnavailableError,
    _Code.CANCELLED: ServerUnavailableError,
    _Code.INTERNAL: ServerUnavailableError,
    _Code.UNKNOWN: ServerUnavailableError,
    _Code.DATA_LOSS: ServerUnavailableError,
    _Code.DEADLINE_EXCEEDED: RequestTimeoutError,
}
_RETRYABLE = (
    _Code.RESOURCE_EXHAUSTED,
    _Code.UNAVAILABLE,
    _Code.ABORTED,
    _Code.DEADLINE_EXCEEDED,
)

# Statuses that gRPC's core makes up on this side differ from the server's own in their text alone.
_NO_SERVER = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")
_CONNECTION_BROKE = ("Socket closed", "Cancelling all calls", "Connection reset", "GOAWAY")
_NO_GRPC = "Received http2 header with status"

_STATUS_KEY = "grpc-status-details-bin"  # holds a google.rpc.Status


@contextmanager
def translated_errors(address: str, timeout_seconds: float) -> Iterator[None]:
    """Turns gRPC's errors into ours; usable around awaited calls as well.

    Raises:
        SearchClientError: the subclass that fits the gRPC status.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise _translated(error, address, timeout_seconds) from error
    except grpc.FutureCancelledError as error:
        raise ServerUnavailableError(
            "the request was cancelled: its client was closed", code=_Code.CANCELLED
        ) from error


def _translated(error: grpc.RpcError, address: str, timeout_seconds: float) -> SearchClientError:
    code, text = error.code(), error.details() or ""
    kind = _CLASS_OF.get(code, ServerUnavailableError)
    retryable = code in _RETRYABLE
    if code is _Code.UNAVAILABLE and text.startswith(_NO_SERVER):
        text = f'no server answers at {address}: start one with "make up"'
    elif code is _Code.UNAVAILABLE and any(part in text for part in _CONNECTION_BROKE):
        text = f"the server at {address} went away before it answered"
    elif code is _Code.UNIMPLEMENTED or text.startswith(_NO_GRPC):
        kind, retryable = RequestRejectedError, False
        text = (
            f"what answers at {address} is not a Captrieve server, or one too old for this request: check host and port"
        )
    elif code is _Code.DEADLINE_EXCEEDED and text in ("", "Deadline Exceeded"):
        text = f"no answer from {address} within {timeout_seconds:g} s"
    elif code is _Code.RESOURCE_EXHAUSTED and "message larger than max" in text:
        # gRPC's own size check on either side: waiting does not help, a smaller message does.
        kind, retryable = RequestRejectedError, False
        text = "a message was too large: send a smaller photo or ask for fewer results"
    return kind(
        text or f"the server at {address} answered {code.name} without a reason",
        code=code,
        retryable=retryable,
        retry_after_seconds=_retry_after_seconds(error),
    )


def _retry_after_seconds(error: grpc.RpcError) -> float | None:
    """The pause in google.rpc.RetryInfo, read from the trailer of sync and async calls alike."""
    trailer: Any = error.trailing_metadata()  # pairs; the stubs know the sync kind only
    details = next((value for key, value in trailer or () if key == _STATUS_KEY), None)
    if not isinstance(details, bytes):
        return None
    try:
        # Optional: without googleapis-common-protos only this hint is lost.
        from google.rpc import error_details_pb2, status_pb2
    except ImportError:
        return None
    try:
        for detail in status_pb2.Status.FromString(details).details:
            retry_info = error_details_pb2.RetryInfo()
            if detail.Is(retry_info.DESCRIPTOR) and detail.Unpack(retry_info):
                delay = retry_info.retry_delay
                return float(delay.seconds + delay.nanos / 1e9)
    except DecodeError:
        pass
    return None
