# SPDX-License-Identifier: Apache-2.0
"""A gRPC client that never reads: its HTTP/2 window is 0, so the server cannot send it a single message."""

from __future__ import annotations

import socket
import struct
from typing import Self

_DATA, _HEADERS, _SETTINGS = 0, 1, 4  # frame types
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4  # flags
_INITIAL_WINDOW_SIZE = 4


class UnreadCall:
    """One call on a connection of its own: `with UnreadCall(address, "/package.Service/Method", request):`.

    Args:
        address: HOST:PORT.
        method: the path of the method.
        request: the serialized message.
        missing: number of bytes of the message that are announced, but never sent.
    """

    def __init__(self, address: str, method: str, request: bytes = b"", *, missing: int = 0):
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": address,
            "content-type": "application/grpc",
            "te": "trailers",
        }
        header = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        message = b"\0" + struct.pack(">I", len(request) + missing) + request
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0))
            + _frame(_SETTINGS, _ACK, 0)
            + _frame(_HEADERS, _END_HEADERS, 1, header)
            + _frame(_DATA, 0 if missing else _END_STREAM, 1, message)
        )

    def wait_until_answered(self) -> None:
        """Return when the server has begun to answer: headers are not subject to the window.

        Raises:
            TimeoutError: it does not within 20 seconds.
        """
        self._socket.settimeout(20)
        with self._socket.makefile("rb") as file:
            while True:
                header = file.read(9)
                if header[3] == _HEADERS:
                    return
                file.read(int.from_bytes(header[:3], "big"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()  # HPACK, without Huffman's code


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
