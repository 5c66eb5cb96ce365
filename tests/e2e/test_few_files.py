# SPDX-License-Identifier: Apache-2.0
"""A gateway that may open few files, and callers who hold more connections than that."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from search_api import search_pb2, search_pb2_grpc
from tests.e2e.test_observability import running

pytestmark = pytest.mark.triton

MAX_FILES = 128
CONNECTIONS = 200


@pytest.fixture
def gateway(triton_address: str, tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    command = ["sh", "-c", f"ulimit -n {MAX_FILES}; exec '{sys.executable}' -m search_gateway"]
    settings = {"CAPTRIEVE_ADMIN_ADDRESS": "", "CAPTRIEVE_DRAIN_SECONDS": "1"}
    with running(tmp_path, command, CAPTRIEVE_TRITON_ADDRESS=triton_address, **settings) as gateway:
        yield gateway.address, psutil.Process(gateway.process.pid)
        assert gateway.process.poll() is None, "\n".join(gateway.log[-30:])


def caption(channel: grpc.Channel, photo: bytes) -> str:
    stub = search_pb2_grpc.SearchServiceStub(channel)
    return str(stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=100, wait_for_ready=True).caption.text)


def test_idle_connections_take_no_files_from_those_who_are_served(
    gateway: tuple[str, psutil.Process], photo: bytes
) -> None:
    address, process = gateway
    with grpc.insecure_channel(address) as channel:
        expected = caption(channel, photo)
        host, _, port = address.rpartition(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(CONNECTIONS)]
        workers = [child for child in process.children() if "worker_main" in " ".join(child.cmdline())]
        assert workers
        for worker in workers:
            worker.kill()  # each new one needs files of the gateway
        assert caption(channel, photo) == expected
        for connection in idle:
            connection.close()
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as another:
            assert caption(another, photo) == expected
