# SPDX-License-Identifier: Apache-2.0
"""Where the gateway listens, and what all settings do together, with real connections."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from captioner.model_contract import ModelContract
from search_api import search_pb2, search_pb2_grpc
from search_gateway.__main__ import main
from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.config import GatewayConfig, is_loopback
from search_gateway.errors import ConfigError
from search_gateway.security.api_keys import _digest
from search_gateway.security.gateway_security import GatewaySecurity
from tests.conftest import MODELS
from tests.search_gateway.security.test_auth_interceptor import Service

CONTRACT = ModelContract.load(MODELS)
CA = trustme.CA()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    leaf = CA.issue_cert("localhost")
    paths = {name: tmp_path / name for name in ("tls_certificate", "tls_key", "tls_client_ca", "api_keys", "audit_log")}
    leaf.cert_chain_pems[0].write_to_path(paths["tls_certificate"])
    leaf.private_key_pem.write_to_path(paths["tls_key"])
    CA.cert_pem.write_to_path(paths["tls_client_ca"])
    key = {"name": "shop", "sha256": _digest("secret").hex(), "scopes": ["caption"]}
    paths["api_keys"].write_text(json.dumps({"keys": [key]}))
    return paths


def security(files: dict[str, Path], *names: str, address: str = "127.0.0.1:0", **more: Any) -> GatewaySecurity:
    config = GatewayConfig(listen_address=address, **{name: files[name] for name in names}, **more)
    return GatewaySecurity(config, CONTRACT)


def test_page_that_others_reach_needs_tls_and_keys_too(files: dict[str, Path]) -> None:
    with pytest.raises(
        ConfigError, match="0.0.0.0:8080 can be reached from other machines, and the gateway has no TLS"
    ):
        security(files, web_address="0.0.0.0:8080")
    security(files, "tls_certificate", "tls_key", "api_keys", web_address="0.0.0.0:8080").close()
    security(files, web_address="127.0.0.1:8080").close()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:8001", True), ("127.8.0.1:1", True), ("[::1]:8001", True), ("localhost:8001", True),
        ("unix:/run/captrieve.sock", True),
        ("0.0.0.0:8001", False), ("[::]:8001", False), ("10.0.0.1:8001", False), ("shop.example:8001", False),
        ("[::ffff:10.0.0.1]:1", False), ("localhost.example:8001", False), ("unix.example:8001", False),
    ],
)  # fmt: skip
def test_loopback_is_what_no_other_machine_reaches(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


TLS = ("tls_certificate", "tls_key")


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ((), r"no TLS \(.*\) and no keys \("),
        (TLS, "the gateway has no keys "),
        (("api_keys",), r"the gateway has no TLS \(CAPTRIEVE_TLS_CERTIFICATE and CAPTRIEVE_TLS_KEY\): set"),
    ],
)
def test_gateway_refuses_to_be_reached_without_tls_and_keys(
    files: dict[str, Path], names: tuple[str, ...], missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=missing):
        security(files, *names, address="0.0.0.0:8001")
    security(files, *names, address="0.0.0.0:8001", insecure=True)
    assert "CAPTRIEVE_INSECURE allows it" in caplog.text
    caplog.clear()
    security(files, *names)
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize("names", [(*TLS, "api_keys"), (*TLS, "tls_client_ca")])
def test_tls_and_keys_or_certificates_open_the_network(files: dict[str, Path], names: tuple[str, ...]) -> None:
    security(files, *names, address="0.0.0.0:8001")


def test_program_refuses_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"CAPTRIEVE_LISTEN_ADDRESS": "0.0.0.0:0", "CAPTRIEVE_MODEL_REPOSITORY": str(MODELS)}
    assert main([], environ) == 2
    assert capsys.readouterr().err.rstrip().endswith("listen on 127.0.0.1, or set CAPTRIEVE_INSECURE=true")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tls_certificate": "a"}, "CAPTRIEVE_TLS_KEY is not set, but must be"),
        ({"tls_client_ca": "a"}, "CAPTRIEVE_TLS_CLIENT_CA needs CAPTRIEVE_TLS_CERTIFICATE"),
        ({"jwt_keys": "a", "jwt_issuer": "b"}, "CAPTRIEVE_JWT_AUDIENCE is not set, but must be"),
        ({"api_keys": "none.json"}, "none.json cannot be read"),
    ],
)
def test_incomplete_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GatewaySecurity(GatewayConfig(**settings), CONTRACT)


def test_all_of_it_together(files: dict[str, Path], tmp_path: Path) -> None:
    """Mutual TLS, a key, a Unix socket, the audit log, and a reload that refuses the key."""

    async def run() -> None:
        gateway = security(files, *TLS, "tls_client_ca", "api_keys", "audit_log", address=f"unix:{tmp_path}/socket")
        server = grpc.aio.server(
            interceptors=[*gateway.outer_interceptors, ErrorInterceptor(), *gateway.inner_interceptors]
        )
        search_pb2_grpc.add_SearchServiceServicer_to_server(Service(), server)  # type: ignore[no-untyped-call]
        gateway.bind(server, f"unix:{tmp_path}/socket")
        await server.start()
        leaf = CA.issue_cert("client.example")
        credentials = grpc.ssl_channel_credentials(
            CA.cert_pem.bytes(), leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes()
        )
        options = [("grpc.ssl_target_name_override", "localhost")]
        try:
            async with grpc.aio.secure_channel(f"unix:{tmp_path}/socket", credentials, options) as channel:
                stub: Any = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
                metadata = (("authorization", "Bearer secret"),)
                answer = await stub.Caption(search_pb2.CaptionRequest(), metadata=metadata, timeout=20)
                assert answer.query == "shop"
                files["api_keys"].write_text('{"keys": []}')
                gateway.reload()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Caption(search_pb2.CaptionRequest(), metadata=metadata, timeout=20)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        finally:
            await server.stop(20)
            gateway.close()

    asyncio.run(run())
    written = [json.loads(line) for line in files["audit_log"].read_text().splitlines()]
    assert [(one["key"], one["code"]) for one in written] == [("shop", "OK"), (None, "UNAUTHENTICATED")]


def test_callers_of_mutual_tls_alone_have_their_certificates_name(files: dict[str, Path]) -> None:
    async def run() -> str:
        gateway = security(files, *TLS, "tls_client_ca")
        server = grpc.aio.server(interceptors=[ErrorInterceptor(), *gateway.inner_interceptors])
        search_pb2_grpc.add_SearchServiceServicer_to_server(Service(), server)  # type: ignore[no-untyped-call]
        port = gateway.bind(server, "127.0.0.1:0")
        await server.start()
        leaf = CA.issue_cert("client.example", common_name="shop")
        credentials = grpc.ssl_channel_credentials(
            CA.cert_pem.bytes(), leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes()
        )
        try:
            async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
                stub: Any = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
                return str((await stub.Caption(search_pb2.CaptionRequest(), timeout=20)).query)
        finally:
            await server.stop(None)

    assert asyncio.run(run()) == "shop"
