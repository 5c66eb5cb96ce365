# SPDX-License-Identifier: Apache-2.0
"""With which code a gRPC call ended, for what counts and writes down calls.

grpc.aio does not tell an interceptor which code a handler aborted with, so handlers get a context that notes it. gRPC
ends a call whose deadline has passed as it ends one that is cancelled; the clock tells them apart.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeAlias

import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_CODES = {code.value[0]: code for code in grpc.StatusCode}
# A client's deadline is earlier than the server's: gRPC rounds it up, by 1 % at most, and it takes its time to arrive.
_DEADLINE_SHARE, _DEADLINE_SECONDS = 0.01, 0.025


class WatchedContext:
    """A call's context that notes how the handler ends it."""

    def __init__(self, context: Context):
        self._context = context
        self._started = time.monotonic()
        self._seconds = context.time_remaining()
        self._aborted: grpc.StatusCode | None = None
        self.details = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call with this code."""
        self._aborted, self.details = code, details
        await self._context.abort(code, details, trailing_metadata)

    async def abort_with_status(self, status: Any) -> None:
        """End the call with this status."""
        self._aborted, self.details = status.code, status.details
        await self._context.abort_with_status(status)  # type: ignore[attr-defined]  # its stubs do not know it

    def code_after(self, error: BaseException | None) -> grpc.StatusCode:
        """Return the code of the call, given what its handler raised."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.details = ""
            return grpc.StatusCode.DEADLINE_EXCEEDED if self._is_over() else grpc.StatusCode.CANCELLED
        if self._aborted is not None:
            return self._aborted
        code = self._context.code()
        found = code if isinstance(code, grpc.StatusCode) else _CODES.get(code or 0, grpc.StatusCode.UNKNOWN)
        return grpc.StatusCode.UNKNOWN if error is not None and found is grpc.StatusCode.OK else found

    def _is_over(self) -> bool:
        if self._seconds is None:
            return False
        remaining = self._seconds - (time.monotonic() - self._started)
        return remaining <= _DEADLINE_SHARE * self._seconds + _DEADLINE_SECONDS
