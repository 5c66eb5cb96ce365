# SPDX-License-Identifier: Apache-2.0
"""Where the health check asks, with a real health service on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from search_gateway import healthcheck


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CAPTRIEVE_LISTEN_ADDRESS", "CAPTRIEVE_SETTINGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def port() -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    servicer.set(healthcheck.SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_asks_where_the_gateway_listens(
    port: int, host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAPTRIEVE_LISTEN_ADDRESS", f"{host}:{port}")
    assert healthcheck.main([]) == 0
    assert capsys.readouterr().out == f"serving: {host.replace('0.0.0.0', '127.0.0.1')}:{port}\n"


def test_asks_at_the_address_of_the_settings_file(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.toml").write_text(f'listen_address = "127.0.0.1:{port}"\n')
    monkeypatch.setenv("CAPTRIEVE_SETTINGS", str(tmp_path / "settings.toml"))
    assert healthcheck.main([]) == 0


def test_option_has_priority(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTRIEVE_LISTEN_ADDRESS", "wrong")
    assert healthcheck.main(["--address", f"127.0.0.1:{port}"]) == 0


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        (None, "127.0.0.1:8001"),
        ("[::]:9000", "[::1]:9000"),
        (":::9000", "[::1]:9000"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("10.0.0.5:9000", "10.0.0.5:9000"),
    ],
)
def test_wildcard_is_asked_on_loopback(address: str | None, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if address is not None:
        monkeypatch.setenv("CAPTRIEVE_LISTEN_ADDRESS", address)
    assert healthcheck.configured_address() == asked


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("localhost", "CAPTRIEVE_LISTEN_ADDRESS is 'localhost', but must be HOST:PORT"),
        ("127.0.0.1:0", "the gateway listens on a port that it chooses (127.0.0.1:0); name it with --address"),
    ],
)
def test_address_that_cannot_be_asked_says_why(
    address: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAPTRIEVE_LISTEN_ADDRESS", address)
    assert healthcheck.main(["--wait", "60"]) == 1
    assert capsys.readouterr().err.startswith(f"cannot ask: {reason}")
