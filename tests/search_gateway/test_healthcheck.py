# SPDX-License-Identifier: Apache-2.0
"""Where the health check asks, with a real health service on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from search_gateway import healthcheck
from search_gateway.config import GatewayConfig
from search_gateway.security.tls import ServerCertificate


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
        ("unix:/run/captrieve.sock", "unix:/run/captrieve.sock"),
    ],
)
def test_wildcard_is_asked_on_loopback(address: str | None, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if address is not None:
        monkeypatch.setenv("CAPTRIEVE_LISTEN_ADDRESS", address)
    assert healthcheck.configured_address(GatewayConfig.from_env(os.environ)) == asked


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


@pytest.mark.parametrize("is_mutual", [False, True])
def test_speaks_tls_where_the_gateway_does_whatever_the_authority(
    tmp_path: Path, is_mutual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("shop.example")
    files = {name: tmp_path / name.lower() for name in ("TLS_CERTIFICATE", "TLS_KEY", "TLS_CLIENT_CA")}
    leaf.cert_chain_pems[0].write_to_path(files["TLS_CERTIFICATE"])
    leaf.private_key_pem.write_to_path(files["TLS_KEY"])
    authority.cert_pem.write_to_path(files["TLS_CLIENT_CA"])
    if not is_mutual:
        del files["TLS_CLIENT_CA"]
    certificate = ServerCertificate(files["TLS_CERTIFICATE"], files["TLS_KEY"], files.get("TLS_CLIENT_CA"))
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    servicer.set(healthcheck.SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", certificate.credentials())
    server.start()
    try:
        assert healthcheck.main(["--address", f"127.0.0.1:{port}"]) == 1, "without TLS it is told nothing"
        for name, file in files.items():
            monkeypatch.setenv(f"CAPTRIEVE_{name}", str(file))
        monkeypatch.setenv("CAPTRIEVE_LISTEN_ADDRESS", f"0.0.0.0:{port}")
        assert healthcheck.main([]) == 0
        files["TLS_CERTIFICATE"].unlink()
        assert healthcheck.main([]) == 1
    finally:
        server.stop(None).wait()
