# SPDX-License-Identifier: Apache-2.0
"""Errors over HTTP: problem details (RFC 9457) with the code that the same error has over gRPC."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import grpc

from search_gateway.api.request_validation import PROTO_NAMES
from search_gateway.errors import BadRequestError
from search_gateway.web.local_calls import Status

CONTENT_TYPE = "application/problem+json"

# As google.rpc.Code says; 499 is what nginx says of a caller that left.
_HTTP_STATUS: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    503: grpc.StatusCode.UNAVAILABLE,
}

# Options have other names over HTTP than the fields of search.proto.
OPTION_NAMES = {"colour": "override_colour", "thing": "override_thing"}
_SHOWN = {proto: OPTION_NAMES.get(name, name) for name, proto in PROTO_NAMES.items()}


class HttpRequestError(BadRequestError):
    """A request that the HTTP side refuses; the message says what to do.

    Attributes:
        http_status: of the answer.
        headers: of the answer, beside those of every problem.
    """

    def __init__(self, message: str, http_status: int = 400, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.http_status = http_status
        self.headers = headers or {}

    @property
    def status(self) -> Status:
        """The same as a status of gRPC."""
        return Status(_CODES.get(self.http_status, grpc.StatusCode.INVALID_ARGUMENT), str(self))


def http_status_of(code: grpc.StatusCode) -> int:
    """Return the HTTP status of a gRPC code."""
    return _HTTP_STATUS.get(code, 500)


def problem(status: Status, request_id: str, http_status: int | None = None) -> dict[str, Any]:
    """Return the problem details of a call that failed.

    Args:
        status: how it failed.
        request_id: under which the log has it.
        http_status: None: that of the code.
    """
    number = http_status_of(status.code) if http_status is None else http_status
    return {
        "type": "about:blank",
        "title": HTTPStatus(number).phrase if number in set(HTTPStatus) else "Client Closed Request",
        "status": number,
        "detail": _as_over_http(status),
        "code": status.code.name,
        "request_id": request_id,
    }


def problem_headers(status: Status) -> dict[str, str]:
    """Return the headers that belong to a failed call: when to come back, and what is needed to be let in."""
    headers = {}
    if status.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(status.retry_after_seconds)))
    if status.code is grpc.StatusCode.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _as_over_http(status: Status) -> str:
    """Return the message with the names that things have over HTTP."""
    message = status.message
    if status.code is grpc.StatusCode.INVALID_ARGUMENT:
        for proto, option in _SHOWN.items():
            message = message.replace(proto, option)
    elif status.code is grpc.StatusCode.UNAUTHENTICATED:
        message = message.replace("as metadata `authorization", "as the header `Authorization")
    return message
