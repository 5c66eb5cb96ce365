# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong, as one tree. Each class carries its gRPC code; its message is fit for the caller.

    SearchError                    never raised itself
    ├── BadRequestError            INVALID_ARGUMENT    the caller must change the request
    ├── NotFoundError              NOT_FOUND           there is no model of that name (the message lists them)
    ├── UnsupportedError           UNIMPLEMENTED       KServe's protocol has it, this server does not
    ├── OverloadedError            RESOURCE_EXHAUSTED  full; comes with the time to wait
    ├── DeadlineError              DEADLINE_EXCEEDED   the caller's time is over
    ├── InferenceError             UNAVAILABLE         Triton or the photo decoder failed or is not there
    └── ProviderError              UNAVAILABLE         an image search failed or refused
        ├── ProviderTimeoutError     DEADLINE_EXCEEDED
        └── ProviderNotAskedError    UNAVAILABLE       we did not even ask it, and say when to come back

    ImageError (ValueError)        INVALID_ARGUMENT    the photo cannot be used, see `captioner.image_error`
    ConfigError (ValueError)       start-up only; lists every wrong setting at once
    TritonStartError               start-up only, see `triton.embedded`

Messages say what happened, the value, and the limit or the remedy. What must not reach a caller (paths, addresses,
class names) goes into `__cause__`, which is logged and never sent.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class SearchError(Exception):
    code: ClassVar[grpc.StatusCode]


class BadRequestError(SearchError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(SearchError):
    code = grpc.StatusCode.NOT_FOUND


class UnsupportedError(SearchError):
    code = grpc.StatusCode.UNIMPLEMENTED


class OverloadedError(SearchError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_seconds: float):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(SearchError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class InferenceError(SearchError):
    code = grpc.StatusCode.UNAVAILABLE


class ProviderError(SearchError):
    code = grpc.StatusCode.UNAVAILABLE


class ProviderTimeoutError(ProviderError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class ProviderNotAskedError(ProviderError):
    """Says nothing about the provider: it was left alone, is asked too often, or we have no thread for it."""

    code = grpc.StatusCode.UNAVAILABLE


class ConfigError(ValueError):
    """Settings the gateway cannot start with; the message lists all of them, one a line."""
