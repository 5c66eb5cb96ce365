# SPDX-License-Identifier: Apache-2.0
"""A name server on loopback. It answers every question for an IPv4 address with one list, which a test may change."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_A, _IN = 1, 1


class DnsServer:
    """What is answered, over UDP.

    Attributes:
        addresses: of every name; may be changed at any time.
        num_questions: how often they were asked for.
        address: HOST:PORT of the server.
    """

    def __init__(self, addresses: list[str]):
        self.addresses = addresses
        self.num_questions = 0
        self.address = ""

    def answer(self, question: bytes) -> bytes:
        """Return the message that answers a message with one question (RFC 1035, section 4)."""
        end = question.index(b"\0", 12) + 5
        (kind,) = struct.unpack("!H", question[end - 4 : end - 2])
        addresses = list(self.addresses) if kind == _A else []
        self.num_questions += kind == _A
        head = question[:2] + struct.pack("!5H", 0x8580, 1, len(addresses), 0, 0)
        records = [struct.pack("!3HIH", 0xC00C, _A, _IN, 0, 4) + socket.inet_aton(one) for one in addresses]
        return head + question[12:end] + b"".join(records)


@contextmanager
def running_dns(addresses: list[str]) -> Iterator[DnsServer]:
    """Run a name server within the block."""
    dns = DnsServer(addresses)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            message, reply = self.request
            reply.sendto(dns.answer(message), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler) as server:
        dns.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield dns
        finally:
            server.shutdown()
            thread.join()
