# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: its port, its limits, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import uuid
from collections.abc import Sequence

import grpc
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from search_gateway.web.local_calls import Status
from search_gateway.web.problems import problem
from search_gateway.web.responses import (
    SECURITY_HEADERS,
    Handler,
    add_headers,
    only_own_pages,
    problem_response,
    problems,
)

_MAX_CONNECTIONS = 1000
_HANDSHAKE_SECONDS = 10.0
# For the headers of a request, and between two requests of a connection.
_IDLE_SECONDS = 20.0
_LINGERING_SECONDS = 2.0  # the rest of a refused body is read for so long, so that the caller sees the answer
_HEADER_BYTES, _MAX_HEADERS = 8190, 64
_BUFFER_BYTES = 2**16
_SEND_SECONDS = 30.0  # for a caller to read an answer; a stream of events ends at its deadline
_END_SECONDS = 0.5  # for connections that are cut


class HttpServer:
    """Listens from the moment it is made, and answers after `start`.

    Args:
        address: HOST:PORT; port 0 takes a free one.

    Attributes:
        address: HOST:PORT it listens on.

    Raises:
        OSError: the address cannot be used.
    """

    def __init__(self, address: str):
        host, _, port = address.rpartition(":")
        name = host.strip("[]")
        family = socket.AF_INET6 if ":" in name else socket.AF_INET
        self._socket = socket.create_server((name, int(port)), family=family, backlog=128)
        self._socket.setblocking(False)
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._is_closing = False
        self._log = _connection_log()
        self._busy: set[asyncio.Transport | None] = set()  # connections with a request in progress
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(
        self,
        routes: Sequence[web.AbstractRouteDef],
        allowed_hosts: Sequence[str] | None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Answer requests from now on.

        Args:
            routes: what is served.
            allowed_hosts: see `only_own_pages`.
            tls: for HTTPS; None: HTTP.
        """
        app = web.Application(middlewares=[self._sent, problems, only_own_pages(allowed_hosts)])
        app.add_routes(routes)
        app.on_response_prepare.append(add_headers)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # a search ends when its caller leaves
            shutdown_timeout=_END_SECONDS,
        )
        await self._runner.setup()
        self._listening = await asyncio.get_running_loop().create_server(
            self._connection,
            sock=self._socket,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else _HANDSHAKE_SECONDS,
        )

    async def close(self, drain_seconds: float) -> None:
        """Take no new requests, let those in progress finish for so long, and end the others."""
        if self._listening is None or self._runner is None or self._runner.server is None:
            self._socket.close()
            return  # it has not begun, or is closed already
        self._is_closing = True
        self._listening.close()
        await asyncio.sleep(0)  # requests that are there begin
        for connection in self._runner.server.connections:
            if connection.transport not in self._busy:
                connection.force_close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_seconds):
                await self._idle.wait()
        await self._runner.cleanup()

    @web.middleware
    async def _sent(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the request as in progress until its answer is sent, for which there is a time limit."""
        transport = request.transport
        self._busy.add(transport)
        self._idle.clear()
        try:
            response = await (_refuse(request) if self._is_closing else handler(request))
            async with asyncio.timeout(_SEND_SECONDS):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if transport is not None:
                transport.abort()
            raise asyncio.CancelledError("the caller does not read") from None
        finally:
            self._busy.discard(transport)
            if not self._busy:
                self._idle.set()
        return response

    def _connection(self) -> asyncio.Protocol:
        assert self._runner is not None
        assert self._runner.server is not None
        if len(self._runner.server.connections) >= _MAX_CONNECTIONS:
            return _Refusal()
        return _Connection(
            self._runner.server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # as web.AppRunner passes it on
            auto_decompress=False,
            keepalive_timeout=_IDLE_SECONDS,
            logger=self._log,
            lingering_time=_LINGERING_SECONDS,
            max_field_size=_HEADER_BYTES,
            max_line_size=_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
            read_bufsize=_BUFFER_BYTES,
        )


def _connection_log() -> logging.Logger:
    """Return a log without the tracebacks of requests that are no HTTP, with which callers could fill it."""
    log = logging.getLogger(f"{__name__}.connections")
    log.addFilter(_is_no_broken_request)
    return log


def _is_no_broken_request(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def _refuse(request: web.Request) -> web.StreamResponse:
    details = problem(Status(grpc.StatusCode.UNAVAILABLE, "the server is stopping: try another one"), uuid.uuid4().hex)
    return problem_response(details, {"Connection": "close"})


class _Connection(web.RequestHandler):
    """Answers requests that are no HTTP as all other errors; aiohttp would quote its parser."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Return problem details, and close the connection."""
        super().handle_error(request, status, exc, message)  # logs it, and ends what has begun to answer
        details = Status(grpc.StatusCode.INTERNAL, "internal error")
        if status < 500:
            details = Status(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"this is no request of HTTP/1.1 with at most {_MAX_HEADERS} headers of {_HEADER_BYTES} bytes each, "
                "or it is for HTTPS: see /openapi.json",
            )
        return problem_response(problem(details, uuid.uuid4().hex, status), {"Connection": "close", **SECURITY_HEADERS})


class _Refusal(asyncio.Protocol):
    """Closes a connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()
