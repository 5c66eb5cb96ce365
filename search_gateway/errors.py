# SPDX-License-Identifier: Apache-2.0
"""The gateway's errors as one tree. Each class has its gRPC status; its message is written for the caller.

    SearchError                    never raised itself
    ├── BadRequestError            INVALID_ARGUMENT    the caller must change the request
    │   └── HttpRequestError       INVALID_ARGUMENT    one over HTTP, see `web.problems`
    ├── NotFoundError              NOT_FOUND           no model or service has that name (the message lists them)
    ├── UnsupportedError           UNIMPLEMENTED       part of KServe's protocol that this server does not offer
    ├── UnauthenticatedError       UNAUTHENTICATED     no valid key; does not say what is wrong with it
    ├── PermissionDeniedError      PERMISSION_DENIED   the key is valid, but not for this method
    ├── OverloadedError            RESOURCE_EXHAUSTED  full; says how long to wait
    ├── DeadlineError              DEADLINE_EXCEEDED   the caller's deadline passed
    ├── InferenceError             UNAVAILABLE         Triton or the photo decoder failed or does not run
    └── ProviderError              UNAVAILABLE         an image search failed or refused
        ├── ProviderTimeoutError     DEADLINE_EXCEEDED
        ├── ProviderLimitedError     UNAVAILABLE       it takes no more calls for now; may say for how long
        └── ProviderNotAskedError    UNAVAILABLE       the gateway did not ask it; says when to try again

    ImageError (ValueError)        INVALID_ARGUMENT    the photo cannot be used, see `captioner.image_error`
    ConfigError (ValueError)       start-up only; lists every wrong setting at once
    TritonStartError               start-up only, see `triton.embedded`

A message says what happened, the value, and the limit or the remedy. Details that callers must not see (paths,
addresses, class names) belong in `__cause__`, which is logged and never sent.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class SearchError(Exception):
    """The base of all errors that a request can end with; never raised itself."""

    code: ClassVar[grpc.StatusCode]


class BadRequestError(SearchError):
    """The caller must change the request."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(SearchError):
    """No model has this name or version, or no service this name."""

    code = grpc.StatusCode.NOT_FOUND


class UnsupportedError(SearchError):
    """KServe's protocol has this feature; the gateway does not."""

    code = grpc.StatusCode.UNIMPLEMENTED


class UnauthenticatedError(SearchError):
    """The call has no valid key or token."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(SearchError):
    """The caller may not use this method."""

    code = grpc.StatusCode.PERMISSION_DENIED


class OverloadedError(SearchError):
    """A limit of concurrent work is reached.

    Attributes:
        retry_after_seconds: when the caller should try again.
        reason: which limit, in one word for the metrics.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_seconds: float, reason: str = "other"):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.reason = reason


class DeadlineError(SearchError):
    """The request's deadline passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class InferenceError(SearchError):
    """Triton or the photo decoder failed, or does not run."""

    code = grpc.StatusCode.UNAVAILABLE


class ProviderError(SearchError):
    """An image search failed or refused."""

    code = grpc.StatusCode.UNAVAILABLE


class ProviderTimeoutError(ProviderError):
    """An image search did not answer in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class ProviderLimitedError(ProviderError):
    """An image search takes no more calls for now.

    Attributes:
        retry_after_seconds: when it takes calls again; None where it did not say.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ProviderNotAskedError(ProviderError):
    """The gateway did not ask the provider: it failed too often, is called too often, or no thread is free."""


class ConfigError(ValueError):
    """The gateway cannot start with these settings; the message has one line for each wrong one."""
