# SPDX-License-Identifier: Apache-2.0
"""A client below gRPC: it stops in the middle of a message, or grants no window for the answer."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import defaultdict

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4  # the name of a setting
_DEFAULT_WINDOW = 65_535


class RawConnection:
    """One HTTP/2 connection. Use `open`.

    Attributes:
        ended: an event per stream, set when the server has ended the stream.
        answer_bytes: what arrived of the messages, per stream.
        is_closed: set when the server has closed the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self._next_stream = 1
        self._window = _DEFAULT_WINDOW
        self._initial_window = _DEFAULT_WINDOW
        self._windows: dict[int, int] = {}
        self._opened = asyncio.Event()  # a window, a little more
        self.ended: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.answer_bytes: defaultdict[int, int] = defaultdict(int)
        self.is_closed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, address: str, *, answer_window: int = _DEFAULT_WINDOW) -> RawConnection:
        """Connect.

        Args:
            address: HOST:PORT.
            answer_window: bytes that the server may send on a stream, before `grant`.
        """
        host, _, port = address.rpartition(":")
        connection = cls(*await asyncio.open_connection(host, int(port)))
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, answer_window)
        connection._writer.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings))
        return connection

    async def begin(self, path: str, **metadata: str) -> int:
        """Begin a call, such as of "/captrieve.v1.SearchService/Caption"; returns the number of its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._windows[stream] = self._initial_window
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "content-type": "application/grpc",
            "te": "trailers",
            **metadata,
        }
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
        self._writer.write(_frame(_HEADERS, _END_HEADERS, stream, block))
        await self._writer.drain()
        return stream

    async def send(self, stream: int, data: bytes, *, ends: bool = False) -> None:
        """Send bytes of a stream as far as the server's windows allow; returns early where it ends the stream."""
        view = memoryview(data)
        while len(view):
            room = min(self._window, self._windows[stream], 16_384, len(view))
            if room <= 0:
                if self.ended[stream].is_set() or self.is_closed.is_set():
                    return
                self._opened.clear()
                await self._opened.wait()
                continue
            self._window -= room
            self._windows[stream] -= room
            self._writer.write(_frame(_DATA, _END_STREAM if ends and room == len(view) else 0, stream, view[:room]))
            view = view[room:]
            await self._writer.drain()

    async def grant(self, stream: int, num_bytes: int) -> None:
        """Let the server send more bytes of a stream."""
        self._writer.write(_frame(_WINDOW_UPDATE, 0, stream, num_bytes.to_bytes(4)))
        await self._writer.drain()

    async def close(self) -> None:
        """Close the connection."""
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        self._writer.close()

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                stream = int.from_bytes(head[5:]) & 0x7FFF_FFFF
                self._take(kind, flags, stream, await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.is_closed.set()
            self._opened.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == _INITIAL_WINDOW_SIZE:
                    for number in self._windows:
                        self._windows[number] += value - self._initial_window
                    self._initial_window = value
            self._writer.write(_frame(_SETTINGS, _ACK, 0, b""))
            self._opened.set()
        elif kind == _PING and not flags & _ACK:
            self._writer.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            more = int.from_bytes(payload) & 0x7FFF_FFFF
            if stream:
                self._windows[stream] = self._windows.get(stream, 0) + more
            else:
                self._window += more
            self._opened.set()
        elif kind == _DATA:
            self.answer_bytes[stream] += len(payload)
        if kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            self.ended[stream].set()
            self._opened.set()


def message(body: bytes) -> bytes:
    """Return a message as gRPC frames it: uncompressed, its length, its bytes."""
    return b"\0" + struct.pack(">I", len(body)) + body


def _frame(kind: int, flags: int, stream: int, payload: bytes | memoryview) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + bytes(payload)


def _text(value: str) -> bytes:
    """HPACK's literal of up to 126 bytes, without Huffman's code."""
    return bytes((len(value),)) + value.encode()
