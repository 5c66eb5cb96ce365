# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Bing's thumbnail server: TLS on loopback, and canary ports to which nothing may connect."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass, field

import trustme

from search_gateway.thumbnails.public_addresses import is_public

HOST = "tse1.mm.bing.net"
SERVER_ADDRESS = "127.0.0.2"
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 40


class RawAnswer(bytes):
    """Bytes that the server sends unchanged."""


def answer(body: bytes = JPEG, *, status: str = "200 OK", kind: str | None = "image/jpeg", **headers: str) -> RawAnswer:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return RawAnswer("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


@dataclass
class ThumbnailServer:
    """TLS on 127.0.0.2 with a certificate for `HOST`; canaries beside it; all in one thread."""

    answers: dict[str, RawAnswer] = field(default_factory=dict)  # by path
    requests: list[bytes] = field(default_factory=list)  # heads, as they came
    canaries_connected: int = 0
    has_ipv6_canary: bool = False
    num_open: int = 0  # connections
    max_open: int = 0
    num_connections: int = 0
    port: int = 0
    request_came: threading.Condition = field(default_factory=threading.Condition)
    gate: threading.Event = field(default_factory=threading.Event)  # until set, /gate waits

    def start(self) -> None:
        authority = trustme.CA()
        self.client_context = ssl.create_default_context()
        authority.configure_trust(self.client_context)
        self._server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        names = (HOST, "tse2.mm.bing.net", "th.bing.com", "shard.example")
        authority.issue_cert(*names).configure_cert(self._server_context)
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._is_ready.wait(10)

    def stop(self) -> None:
        self.gate.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def reset(self) -> None:
        self.answers = {"/good": answer()}
        self.requests = []
        self.canaries_connected = self.num_open = self.max_open = self.num_connections = 0
        self.gate.set()  # handlers of the test before must not wait any longer
        self.gate = threading.Event()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._handlers: set[asyncio.Task[None]] = set()
        canary = await asyncio.start_server(self._canary, "127.0.0.1", 0)
        self.port = canary.sockets[0].getsockname()[1]
        servers = [
            canary,
            await asyncio.start_server(self._handle, SERVER_ADDRESS, self.port, ssl=self._server_context),
        ]
        if socket.has_ipv6:
            # Without IPv6 there is no such canary; the tests also record all connections.
            with contextlib.suppress(OSError):
                servers.append(await asyncio.start_server(self._canary, "::1", self.port))
                self.has_ipv6_canary = True
        self._is_ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _canary(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.canaries_connected += 1
        writer.transport.abort()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        test = self.gate  # each test has its own
        self.num_connections += 1
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                with self.request_came:
                    self.requests.append(head)
                    self.request_came.notify_all()
                await self._answer(head.split(b" ")[1].decode().partition("?")[0], writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            if test is self.gate:
                self.num_open -= 1
            self._handlers.discard(task)
            writer.transport.abort()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/silent":
            await asyncio.Event().wait()
        if path.startswith("/gate"):
            await asyncio.to_thread(self.gate.wait, 5)
            path = "/good"
        if path in ("/drip", "/drip-headers", "/endless", "/endless-redirect"):
            await self._trickle(path, writer)
        writer.write(self.answers.get(path, answer(status="404 Not Found")))
        await writer.drain()
        if path.startswith("/cut"):
            raise EOFError

    async def _trickle(self, path: str, writer: asyncio.StreamWriter) -> None:
        """Send little or endless data until the client closes the connection."""
        if path == "/endless-redirect":
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /good\r\n")
            writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        elif path == "/drip-headers":
            writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n")
            writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        # asyncio silently drops what is written to a closed TLS connection.
        while not writer.transport.is_closing():
            if path == "/drip-headers":
                writer.write(b"x")
            elif path == "/drip":
                writer.write(b"1\r\nx\r\n")
            else:
                writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.02 if path.startswith("/drip") else 0)
        raise EOFError


def only_the_server(address: str) -> bool:
    return address == SERVER_ADDRESS or is_public(address)


def always_the_server(host: str, port: int) -> list[str]:
    return [SERVER_ADDRESS]
