# SPDX-License-Identifier: Apache-2.0
"""A stand-in for DuckDuckGo's image search on loopback, for tests with the real library ddgs and TLS.

A proxy accepts `CONNECT duckduckgo.com:443` and forwards to a TLS server that answers `/` (a page with the token vqd)
and `/i.js` (the results). Give a provider `proxy=fake.proxy_url` and `verify=fake.ca_path`. The rows depend on the
query (`rows_for`), so the answer to another query is noticed.

    with FakeDuckDuckGo() as fake:
        fake.behaviour = "forbidden"
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, urlencode, urlsplit

import trustme

Behaviour = Literal[
    "results",  # the rows of the query
    "empty",  # a well-formed answer without rows
    "forbidden",  # 403 for the results
    "forbidden_page",  # 403 for the page already
    "limited",  # 202 for the results, DuckDuckGo's way to say "slower"
    "garbage",  # HTML where JSON should be
    "no_list",  # JSON, but not an answer
    "null_titles",  # rows with null where text should be
    "number_titles",  # rows with numbers where text should be
    "hostile",  # good rows between wrong types, huge strings and URLs that must not be linked to
    "stall",  # accepts the request for the results and says nothing
    "stall_page",  # the same for the page
    "drip",  # a byte now and then, for ever
    "huge",  # results without end
    "bomb",  # a small packed answer that is huge when unpacked
    "nested",  # JSON that is nested deeper than a parser can follow
    "no_redirect_end",  # sends from one address to the next
    "cut",  # closes in the middle of the results
    "reset",  # TCP reset instead of results
    "refuse_connect",  # the proxy does not let through
]
BEHAVIOURS: tuple[str, ...] = get_args(Behaviour)

NUM_ROWS = 6
_DRIP_SECONDS = 0.05
_HOST = "duckduckgo.com"
_VQD = "4-123456789012345678901234567890"

Row = dict[str, Any]


def rows_for(query: str, num_rows: int = NUM_ROWS) -> list[Row]:
    """Return the rows that the behaviour "results" has for a query."""
    rows = []
    for index in range(num_rows):
        picture = hashlib.sha256(f"{query} {index}".encode()).hexdigest()[:16]
        rows.append(
            {
                "title": f"{query.title()} {index}",
                "image": f"https://shop.example/pictures/{picture}.jpg",
                "thumbnail": f"https://tse{index % 4 + 1}.mm.bing.net/th?id=OIP.{picture}&pid=Api",
                "url": f"https://shop.example/products/{picture}",
                "height": 800 + index,
                "width": 600 + index,
                "source": "Bing",
            }
        )
    return rows


def hostile_rows_for(query: str) -> list[Row]:
    """Return rows of which only those of `rows_for` are usable; ddgs returns all of them."""
    good = rows_for(query)
    bad = [{**row, "image": f"https://shop.example/bad/{i}"} for i, row in enumerate(good * 3)]
    for index, row in enumerate(bad):
        row["thumbnail"] = f"https://tse1.mm.bing.net/th?id=OIP.bad{index}"
    bad[0]["thumbnail"] = "http://tse1.mm.bing.net/th?id=plain"
    bad[1]["thumbnail"] = "javascript:alert(1)"
    bad[2]["thumbnail"] = "https://tse1.mm.bing.net/" + "x" * 3000
    bad[3]["thumbnail"] = ""
    bad[4]["thumbnail"] = None
    bad[5]["thumbnail"] = "https://user@tse1.mm.bing.net/th"
    bad[6]["thumbnail"] = "https://tse1.mm.bing.net/th%0d%0aSet-Cookie:x"  # ddgs unquotes
    bad[7]["thumbnail"] = "https://[::1/th"
    bad[8]["thumbnail"] = "file:///etc/passwd"
    bad[9]["title"] = ""
    bad[10]["title"] = "\u0000\u202e\u200b"
    bad[11].update(url="javascript:alert(1)", image="data:text/html,<script>")
    bad[12].update(url="ftp://shop.example/", image="")
    bad[13].update(url="https://a.example/\u202egpj.exe", image=None)
    bad[14].update(url='https://a.example/"><script>', image="https://")
    bad[15]["thumbnail"] = good[0]["thumbnail"]  # the same picture again, after the good one
    bad[16]["thumbnail"] = "https://"
    bad[17]["thumbnail"] = "https://tse1.mm.bing.net:99999/th"
    return [row for pair in zip(good * 3, bad, strict=True) for row in pair]


class FakeDuckDuckGo:
    """The server, in a thread of its own; a context manager.

    Attributes:
        behaviour: what it does from the next request on; may be set at any time.
        rows: how rows are made from a query.
        delay_seconds: before each answer.
        queries: of the requests for results, in the order they came.
        parameters: of the same requests, all of them.
        num_pages, num_searches: requests for the page and for results.
        num_connections: that reached the proxy.
        refused: what the proxy was asked for and did not let through.
        is_stalled: set when a request came that is never answered.
    """

    def __init__(self, behaviour: Behaviour = "results", rows: Callable[[str], list[Row]] = rows_for) -> None:
        self.behaviour: Behaviour = behaviour
        self.rows = rows
        self.delay_seconds = 0.0
        self.queries: list[str] = []
        self.parameters: list[dict[str, str]] = []
        self.num_pages = 0
        self.num_searches = 0
        self.num_connections = 0
        self.refused: list[str] = []
        self.is_stalled = threading.Event()
        self._directory = tempfile.TemporaryDirectory(prefix="fake-duckduckgo-")
        self.ca_path = str(Path(self._directory.name) / "ca.pem")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_path)
        self._ssl_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(_HOST).configure_cert(self._ssl_context)
        self._proxy_port = 0
        self._tls_port = 0
        self._client_sockets: dict[int, socket.socket] = {}  # by the port the TLS server sees
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-duckduckgo", daemon=True)

    @property
    def proxy_url(self) -> str:
        return f"http://127.0.0.1:{self._proxy_port}"

    def __enter__(self) -> FakeDuckDuckGo:
        self._thread.start()
        if not self._is_ready.wait(timeout=10):
            raise RuntimeError("the fake DuckDuckGo does not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)
        self._directory.cleanup()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._handlers: set[asyncio.Task[None]] = set()
        tls = await asyncio.start_server(self._tracked(self._answer), "127.0.0.1", 0, ssl=self._ssl_context)
        proxy = await asyncio.start_server(self._tracked(self._tunnel), "127.0.0.1", 0)
        self._tls_port = tls.sockets[0].getsockname()[1]
        self._proxy_port = proxy.sockets[0].getsockname()[1]
        self._is_ready.set()
        await self._stop.wait()
        tls.close()
        proxy.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def _tracked(
        self, handler: Callable[..., Coroutine[Any, Any, None]]
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
        """Wrap a handler so that it ends with the server, and ignores clients that close their connections."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._handlers.add(task)
            try:
                await handler(reader, writer)
            except (OSError, EOFError, asyncio.CancelledError):
                # Only this server cancels handlers, at its end.
                pass
            finally:
                self._handlers.discard(task)
                writer.transport.abort()

        return handle

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.num_connections += 1
        asked = head.split(b" ")[1].decode("ascii")
        if asked != f"{_HOST}:443" or self.behaviour == "refuse_connect":
            self.refused.append(asked)
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        tls_reader, tls_writer = await asyncio.open_connection("127.0.0.1", self._tls_port)
        port = tls_writer.get_extra_info("sockname")[1]
        client = writer.get_extra_info("socket")
        self._client_sockets[port] = client
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ways = [
                asyncio.create_task(_pump(reader, tls_writer)),
                asyncio.create_task(_pump(tls_reader, writer)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            del self._client_sockets[port]
            tls_writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            target = urlsplit(head.split(b" ", 2)[1].decode("ascii"))
            parameters = {key: values[0] for key, values in parse_qs(target.query).items()}
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if target.path == "/i.js":
                self.num_searches += 1
                self.queries.append(parameters.get("q", ""))
                self.parameters.append(parameters)
                await self._answer_search(parameters, writer)
            elif target.path == "/":
                self.num_pages += 1
                await self._answer_page(parameters, writer)
            else:
                _write(writer, b"not found", status="404 Not Found")
            await writer.drain()

    async def _answer_page(self, parameters: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if self.behaviour == "stall_page":
            await self._stall()
        if self.behaviour == "forbidden_page":
            _write(writer, b"<html>Forbidden</html>", status="403 Forbidden")
        else:
            query = json.dumps(parameters.get("q", "")).encode()
            _write(writer, b'<html><script>q=%s;vqd="%s";</script>' % (query, _VQD.encode()))

    async def _answer_search(self, parameters: dict[str, str], writer: asyncio.StreamWriter) -> None:
        query = parameters.get("q", "")
        if parameters.get("vqd") != _VQD or self.behaviour == "forbidden":
            _write(writer, b"", status="403 Forbidden")
        elif self.behaviour == "limited":
            _write(writer, b"", status="202 Accepted")
        elif self.behaviour == "stall":
            await self._stall()
        elif self.behaviour == "reset":
            self._reset(writer)
        elif self.behaviour == "huge":
            _write(writer, b'{"results": [', announced_bytes=10**12)
            while not writer.transport.is_closing():
                writer.write(b"{}," * 20_000)
                await writer.drain()
            raise EOFError
        elif self.behaviour == "bomb":
            body = gzip.compress(bytes(64 * 2**20), 1)
            _write(writer, body, status="200 OK\r\nContent-Encoding: gzip")
        elif self.behaviour == "no_redirect_end":
            _write(writer, b"", status=f"302 Found\r\nLocation: /i.js?{urlencode(parameters)}")
        elif self.behaviour == "cut":
            _write(writer, b'{"results":[{"ti', announced_bytes=10_000)
            await writer.drain()
            raise EOFError
        elif self.behaviour == "drip":
            _write(writer, b"", announced_bytes=10_000)
            self.is_stalled.set()
            while not writer.transport.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(_DRIP_SECONDS)
            raise EOFError
        else:
            _write(writer, self._body_for(query))

    def _body_for(self, query: str) -> bytes:
        match self.behaviour:
            case "empty":
                return _answer_of([])
            case "garbage":
                return b"<html>If this error persists, please email us</html>"
            case "nested":
                return b'{"results": ' + b"[" * 100_000
            case "no_list":
                return b'{"results": 7}'
            case "null_titles":
                return _answer_of([{**row, "title": None} for row in self.rows(query)])
            case "number_titles":
                return _answer_of([{**row, "title": 7} for row in self.rows(query)])
            case "hostile":
                return _answer_of(hostile_rows_for(query))
            case _:
                return _answer_of(self.rows(query))

    async def _stall(self) -> None:
        self.is_stalled.set()
        await asyncio.Event().wait()

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        client = self._client_sockets[writer.get_extra_info("peername")[1]]
        # Lingering for no time makes closing a reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise EOFError


def _answer_of(rows: list[Row]) -> bytes:
    return json.dumps({"ads": None, "next": "i.js?q=next", "results": rows}).encode()


def _write(
    writer: asyncio.StreamWriter,
    body: bytes,
    *,
    status: str = "200 OK",
    announced_bytes: int | None = None,
) -> None:
    length = len(body) if announced_bytes is None else announced_bytes
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n".encode() + body)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
