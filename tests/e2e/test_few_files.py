# SPDX-License-Identifier: Apache-2.0
"""A gateway that may open few files, and callers who hold more connections than that."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from search_api import search_pb2, search_pb2_grpc
from search_gateway.healthcheck import is_serving
from tests.conftest import MODELS, ROOT

pytestmark = pytest.mark.triton

MAX_FILES = 128
CONNECTIONS = 200


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def gateway(triton_address: str, tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "CAPTRIEVE_LISTEN_ADDRESS": address,
        "CAPTRIEVE_ADMIN_ADDRESS": "",
        "CAPTRIEVE_TRITON_ADDRESS": triton_address,
        "CAPTRIEVE_MODEL_REPOSITORY": str(MODELS),
        "CAPTRIEVE_DRAIN_SECONDS": "1",
    }
    with (tmp_path / "log").open("wb") as log:
        gateway = subprocess.Popen(
            ["sh", "-c", f"ulimit -n {MAX_FILES}; exec '{sys.executable}' -m search_gateway"],
            env={**os.environ, **settings},
            cwd=ROOT,
            stderr=log,
        )
        try:
            wait_until(lambda: is_serving(address) or gateway.poll() is not None)
            yield address, psutil.Process(gateway.pid)
            assert gateway.poll() is None, (tmp_path / "log").read_text()[-3000:]
        finally:
            gateway.terminate()
            gateway.wait(60)


def caption(channel: grpc.Channel, photo: bytes) -> str:
    stub = search_pb2_grpc.SearchServiceStub(channel)
    return str(stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=30, wait_for_ready=True).caption)


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
