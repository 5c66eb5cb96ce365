# SPDX-License-Identifier: Apache-2.0
"""Lets in calls that have a valid key with the right scope, within the caller's limits.

A call is refused before its message is read. This interceptor stands inside the error interceptor, which makes the
statuses. They do not say what was wrong with a key; the gateway's log does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import grpc

from search_gateway.errors import PermissionDeniedError, SearchError, UnauthenticatedError
from search_gateway.fair_share import current_caller
from search_gateway.security.api_keys import Caller
from search_gateway.security.quotas import Quotas
from search_gateway.security.wrapped_handler import Context, Handler, Seen, wrapped_handler

_OPEN = "/grpc.health.v1.Health/"  # probes have no key
_ANY_SCOPE = ""
_SCOPES = {
    "/captrieve.v1.SearchService/Caption": "caption",
    "/captrieve.v1.SearchService/Search": "search",
    "/captrieve.v1.SearchService/StreamSearch": "search",
}
_KSERVE = "/inference.GRPCInferenceService/"
_ADMIN = ("Repository", "SystemSharedMemory", "CudaSharedMemory", "TraceSetting", "LogSettings")
_REFLECTION = "/grpc.reflection."

_UNAUTHENTICATED = "a valid key is needed, as metadata `authorization: Bearer KEY`"
_DENIED = "this key does not allow this method"

_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def scope_of(method: str) -> str:
    """Return the scope that a method needs: "" for any, "admin" for methods that are not known."""
    if method.startswith(_KSERVE):
        return "admin" if method.removeprefix(_KSERVE).startswith(_ADMIN) else "kserve"
    return _ANY_SCOPE if method.startswith(_REFLECTION) else _SCOPES.get(method, "admin")


class AuthInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Checks keys, scopes and quotas of each call, and remembers whose call it is.

    Args:
        sources: return whose token it is, or None; asked in turn. Without any, the callers are those of mutual TLS.
        quotas: of all callers.
    """

    def __init__(self, sources: Sequence[Callable[[str], Caller | None]], quotas: Quotas):
        self._sources = sources
        self._quotas = quotas

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's handler, wrapped, or one that refuses the call."""
        details = handler_call_details
        if details.method.startswith(_OPEN):
            return await continuation(details)
        if self._sources:
            try:
                _caller.set(self._checked(details))
            except SearchError as error:
                return _refusal(error)
        handler = await continuation(details)
        return handler if handler is None else wrapped_handler(handler, self._around)

    @contextmanager
    def charged(self, request: Any) -> Iterator[None]:
        """Charge the caller of the call in progress for a request; for each message of a stream.

        Raises:
            OverloadedError: the caller has reached a limit.
        """
        caller = _caller.get()
        if caller is None:
            yield
            return
        with self._quotas.charged(caller.name, caller.limits, request):
            yield

    def _checked(self, details: grpc.HandlerCallDetails) -> Caller:
        """Return who calls, whose name is known even if the call is refused for its scope or its limits.

        Raises:
            UnauthenticatedError, PermissionDeniedError, OverloadedError: the call is refused.
        """
        token = _bearer_token(details)
        caller = next(filter(None, (source(token) for source in self._sources)), None) if token else None
        if caller is None:
            raise UnauthenticatedError(_UNAUTHENTICATED)
        current_caller.set(caller.name)  # gRPC handles a call in one task, from here to its end
        scope = scope_of(details.method)
        if scope != _ANY_SCOPE and not caller.scopes & {scope, "admin"}:
            raise PermissionDeniedError(_DENIED)
        self._quotas.check(caller.name, caller.limits)
        return caller

    @asynccontextmanager
    async def _around(self, request: Any, context: Context) -> AsyncIterator[Seen]:
        if not self._sources:
            name = next(iter(context.auth_context().get("x509_common_name", ())), b"")
            current_caller.set(name.decode("utf-8", "replace"))
        with self.charged(request):
            yield _ignore


def _bearer_token(details: grpc.HandlerCallDetails) -> str:
    """Return the one bearer token of a call; "" if it has none, or several."""
    metadata: Any = details.invocation_metadata
    values = [value for key, value in metadata or () if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        return ""
    kind, _, token = values[0].partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _refusal(error: SearchError) -> Handler:
    """Return a handler that raises the error; one of two streams, so that gRPC does not wait for the message."""

    async def refuse(requests: Any, context: Context) -> NoReturn:
        raise error

    handler: Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return handler


async def _ignore(message: Any) -> None:
    """Quotas need no more than the request."""
