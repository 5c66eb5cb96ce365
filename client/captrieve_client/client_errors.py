# SPDX-License-Identifier: Apache-2.0
"""The errors of a call, and the translation of gRPC's errors into them.

SearchClientError            base class, never raised itself
├── RequestRejectedError     the request must change: INVALID_ARGUMENT, UNAUTHENTICATED, ...
├── PhotoFileError           the photo's file cannot be read; nothing was sent
├── ConnectionSettingsError  the address, the certificates or the token cannot be used
├── ServerOverloadedError    RESOURCE_EXHAUSTED: retry after `retry_after_seconds`
├── ServerUnavailableError   the gateway, or a service that it needs, does not answer or failed
└── RequestTimeoutError      DEADLINE_EXCEEDED
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_Code = grpc.StatusCode


class SearchClientError(Exception):
    """A request without an answer.

    Attributes:
        code: the gRPC status code; INVALID_ARGUMENT if the request was not sent.
        retryable: whether the same request may succeed later.
        retry_after_seconds: the pause that the gateway asks for, or None.
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


class ConnectionSettingsError(SearchClientError):
    """The address, the certificates or the token cannot be used; nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=_Code.INVALID_ARGUMENT)


class ServerOverloadedError(SearchClientError):
    """The gateway is overloaded; retry after `retry_after_seconds`."""


class ServerUnavailableError(SearchClientError):
    """The gateway, or a service that it needs (models, image search), does not answer or failed."""


class RequestTimeoutError(SearchClientError):
    """The answer did not arrive before the deadline."""


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

# Only the text distinguishes a status that gRPC creates in this process from one that the gateway sent.
_NO_SERVER = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "errors resolving",
    "DNS resolution failed",
)
_CONNECTION_BROKE = (
    "Socket closed",
    "Cancelling all calls",
    "Connection reset",
    "GOAWAY",
    "Stream removed",
    "Broken pipe",
    "Transport closed",
)
_RESET = "CANCELLED"  # gRPC's text for a call that the server has reset
_HTTP_STATUS = re.compile(r"Received http2 header with status: (\d+)")
_TLS_FAILURES = {
    "CERTIFICATE_VERIFY_FAILED": "the certificate of {} is not from a known authority; name its authority (--ca-file)",
    "Hostname Verification Check failed": "the certificate of {} is for another host name; use a name it is for",
    "WRONG_VERSION_NUMBER": "the server at {} does not speak TLS; leave out https:// and the options for TLS",
    "handshake failed": "no TLS connection to {} can be made",
}

_STATUS_KEY = "grpc-status-details-bin"  # holds a google.rpc.Status


@contextmanager
def translated_errors(address: str, timeout_seconds: float) -> Iterator[None]:
    """Raises gRPC's errors as `SearchClientError`, in blocking and in asyncio code.

    Args:
        address: HOST:PORT of the gateway, for the message.
        timeout_seconds: the deadline of the call, for the message.

    Raises:
        SearchClientError: the subclass for the gRPC status.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise _translated(error, address, timeout_seconds) from error
    except grpc.FutureCancelledError as error:
        raise ServerUnavailableError(
            f"the request to {address} was cancelled because its client was closed", code=_Code.CANCELLED
        ) from error


def connection_broke(error: grpc.RpcError) -> bool:
    """Whether the connection ended before the whole answer was there."""
    text = error.details() or ""
    is_unavailable = error.code() is _Code.UNAVAILABLE
    return is_unavailable and not text.startswith(_NO_SERVER) and any(part in text for part in _CONNECTION_BROKE)


def _translated(error: grpc.RpcError, address: str, timeout_seconds: float) -> SearchClientError:
    code, text = error.code(), error.details() or ""
    kind = _CLASS_OF.get(code, ServerUnavailableError)
    retryable = code in _RETRYABLE
    tls_failure = next((reason for part, reason in _TLS_FAILURES.items() if part in text), None)
    http_status = _HTTP_STATUS.match(text)
    if code is _Code.UNAVAILABLE and tls_failure:
        kind, retryable, text = RequestRejectedError, False, tls_failure.format(address)
    elif code is _Code.UNAVAILABLE and text.startswith(_NO_SERVER) and text.endswith(_CONNECTION_BROKE):
        text = f"the server at {address} closes every connection; if it expects TLS, use https:// or TLS (--tls)"
    elif code is _Code.UNAVAILABLE and text.startswith(_NO_SERVER):
        text = f"no gateway answers at {address}; start it, or check host and port"
    elif connection_broke(error):
        text = f"the connection to {address} was closed before the answer arrived; try again"
    elif code is _Code.CANCELLED and text == _RESET:
        retryable, text = True, f"the gateway at {address} is stopping; try again"
    elif http_status and http_status[1] in ("401", "403"):
        kind, retryable = RequestRejectedError, False
        text = f"the server at {address} wants a valid token (--token-file, CAPTRIEVE_TOKEN): HTTP {http_status[1]}"
    elif http_status and http_status[1] == "429":
        kind, retryable, text = ServerOverloadedError, True, f"the proxy at {address} is asked too often: HTTP 429"
    elif http_status and http_status[1] in ("502", "503", "504"):
        kind, retryable = ServerUnavailableError, True
        text = f"the proxy at {address} does not reach the gateway: HTTP {http_status[1]}; try again later"
    elif code is _Code.UNIMPLEMENTED or http_status:
        kind, retryable = RequestRejectedError, False
        text = (
            f"the server at {address} is not a Captrieve gateway, or is too old for this request; check host and port"
        )
    elif code is _Code.DEADLINE_EXCEEDED and text in ("", "Deadline Exceeded"):
        text = f"no answer from {address} within {timeout_seconds:g} s; allow more time, or try again later"
    elif code is _Code.RESOURCE_EXHAUSTED and "message larger than max" in text:
        # gRPC's own size limit on either side: a retry fails again.
        kind, retryable = RequestRejectedError, False
        numbers = [f"{int(number) / 1e6:.1f} MB" for number in re.findall(r"\d+", text)]
        sizes = f" ({numbers[0]}, the limit is {numbers[1]})" if len(numbers) == 2 else ""
        if "Sent message" in text:
            text = f"the answer is too large for the gateway{sizes}; ask for fewer results"
        else:
            text = f"the request is too large for the gateway{sizes}; send a smaller photo"
    return kind(
        text or f"the gateway at {address} answered {code.name} without a message",
        code=code,
        retryable=retryable,
        retry_after_seconds=_retry_after_seconds(error),
    )


def _retry_after_seconds(error: grpc.RpcError) -> float | None:
    """The pause in google.rpc.RetryInfo, from the trailing metadata of a blocking or an asyncio call."""
    trailer: Any = error.trailing_metadata()  # pairs; grpc-stubs types the blocking kind only
    details = next((value for key, value in trailer or () if key == _STATUS_KEY), None)
    if not isinstance(details, bytes):
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
