# SPDX-License-Identifier: Apache-2.0
"""A port for a server that is started later, or again, and cannot choose one itself."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")  # from it the kernel serves whoever names no port


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens, and which the kernel gives to no other program meanwhile."""
    first, last = map(int, _RANGE.read_text(encoding="ascii").split())
    ports = [port for port in range(10_000, 2**16) if not first <= port <= last] or list(range(10_000, 2**16))
    while True:
        port = random.SystemRandom().choice(ports)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue  # it is taken
