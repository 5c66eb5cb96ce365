# SPDX-License-Identifier: Apache-2.0
"""Forwards a port to a server that a test can change, take away or silence."""

from __future__ import annotations

import contextlib
import socket
import threading


class TcpForwarder:
    """A port on loopback.

    Usage:
        with TcpForwarder() as forwarder:
            forwarder.target = "127.0.0.1:8001"
            connect(forwarder.address)
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target: str | None = None
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._speaks = threading.Event()
        self._speaks.set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def target(self) -> str | None:
        """HOST:PORT or unix:PATH of new connections; None refuses them. Setting it closes the existing connections."""
        return self._target

    @target.setter
    def target(self, address: str | None) -> None:
        self._target = address
        self._cut()

    def fall_silent(self) -> None:
        """Keep and accept connections, but forward nothing until `speak`."""
        self._speaks.clear()

    def speak(self) -> None:
        self._speaks.set()

    def __enter__(self) -> TcpForwarder:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._speaks.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()

    def _cut(self) -> None:
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            target = self._target
            try:
                if target is None:
                    raise ConnectionRefusedError
                far = _connection(target)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._sockets |= {near, far}
            for source, sink in ((near, far), (far, near)):
                if source.family is not socket.AF_UNIX:
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._speaks.wait()
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _connection(target: str) -> socket.socket:
    if target.startswith("unix:"):
        far = socket.socket(socket.AF_UNIX)
        far.connect(target.removeprefix("unix:"))
        return far
    host, _, port = target.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)
