# SPDX-License-Identifier: Apache-2.0
"""The HTTP side lets in those whom gRPC lets in: the same keys, scopes, quotas, certificates and audit log."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from captioner.model_contract import ModelContract
from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.config import GatewayConfig
from search_gateway.security.api_keys import _digest
from search_gateway.security.gateway_security import GatewaySecurity
from search_gateway.web.gateway_web import GatewayWeb
from tests.conftest import MODELS
from tests.fakes.event_loop import on_event_loop
from tests.fakes.scripted_search import HttpCaller, ScriptedSearch

CONTRACT = ModelContract.load(MODELS)
CA = trustme.CA()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("tls_certificate", "tls_key", "tls_client_ca", "api_keys", "audit_log")}
    issue(paths)
    CA.cert_pem.write_to_path(str(paths["tls_client_ca"]))
    keys = [
        {"name": "shop", "sha256": _digest("secret").hex(), "scopes": ["search", "caption"]},
        {"name": "words", "sha256": _digest("words").hex(), "scopes": ["caption"]},
        {"name": "slow", "sha256": _digest("slow").hex(), "scopes": ["search"], "rate": 0.001},
    ]
    paths["api_keys"].write_text(json.dumps({"keys": keys}))
    return paths


def issue(paths: dict[str, Path]) -> None:
    leaf = CA.issue_cert("localhost", "127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(str(paths["tls_certificate"]))
    leaf.private_key_pem.write_to_path(str(paths["tls_key"]))


@asynccontextmanager
async def secured(
    service: ScriptedSearch, files: dict[str, Path], *names: str, **settings: Any
) -> AsyncIterator[tuple[HttpCaller, GatewaySecurity]]:
    config = GatewayConfig(web_address="127.0.0.1:0", **{name: files[name] for name in names}, **settings)
    security = GatewaySecurity(config, CONTRACT)
    web = GatewayWeb(config)
    interceptors = [*security.outer_interceptors, ErrorInterceptor(config), *security.inner_interceptors]
    await web.start(service, interceptors, CONTRACT, ["catalog"], security.https())
    try:
        async with aiohttp.ClientSession() as session:
            yield HttpCaller(f"http://{web.address}", session, web), security
    finally:
        await web.close(0)
        security.close()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@on_event_loop
async def test_key_is_needed_and_its_scope_counts(files: dict[str, Path]) -> None:
    service = ScriptedSearch()
    async with secured(service, files, "api_keys") as (caller, _):
        for headers in ({}, bearer("wrong"), {"Authorization": "Basic secret"}):
            status, answer, problem = await caller.post("/v1/search", headers=headers)
            assert (status, problem["code"], answer["WWW-Authenticate"]) == (401, "UNAUTHENTICATED", "Bearer")
            assert problem["detail"] == "a valid key is needed, as the header `Authorization: Bearer KEY`"
        status, _, problem = await caller.post("/v1/search:stream", headers=bearer("words"))
        assert (status, problem["code"]) == (403, "PERMISSION_DENIED")
        assert not service.requests
        assert (await caller.post("/v1/search", headers=bearer("secret")))[0] == 200
        assert (await caller.post("/v1/caption", headers=bearer("words")))[0] == 200
        for path in ("/v1/info", "/openapi.json"):
            assert (await caller.get(path))[0] == 200, "the page needs them before it has a key"


@on_event_loop
async def test_refused_caller_is_not_read(files: dict[str, Path]) -> None:
    async with secured(ScriptedSearch(), files, "api_keys") as (caller, _):
        head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nConnection: close\r\n"
        answer = await caller.raw(f"{head}Content-Length: 5000000\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401 ")


@on_event_loop
async def test_quota_of_a_key_is_one_for_all_methods(files: dict[str, Path]) -> None:
    async with secured(ScriptedSearch(), files, "api_keys") as (caller, _):
        statuses = []
        for _ in range(5):
            status, headers, problem = await caller.post("/v1/search", headers=bearer("slow"))
            statuses.append(status)
        assert statuses[0] == 200
        assert statuses[-1] == 429
        assert problem["code"] == "RESOURCE_EXHAUSTED"
        assert int(headers["Retry-After"]) > 1


@on_event_loop
async def test_audit_log_has_a_line_for_each_call(files: dict[str, Path]) -> None:
    async with secured(ScriptedSearch(), files, "api_keys", "audit_log") as (caller, _):
        await caller.post("/v1/search", headers=bearer("secret"))
        headers = {**bearer("secret"), "Content-Type": "image/jpeg"}
        async with caller.session.post(caller.url + "/v1/search:stream", data=b"p", headers=headers) as answer:
            assert "event: summary" in await answer.text()
        await caller.post("/v1/caption", headers=bearer("wrong"))
    lines = [json.loads(line) for line in files["audit_log"].read_text().splitlines()]
    assert [(line["key"], line["method"].rpartition("/")[2], line["code"]) for line in lines] == [
        ("shop", "Search", "OK"), ("shop", "StreamSearch", "OK"), (None, "Caption", "UNAUTHENTICATED"),
    ]  # fmt: skip
    assert [line["provider"] for line in lines] == ["duckduckgo", "duckduckgo", None]
    assert lines[0]["photos"] == 1
    assert lines[0]["peer"].startswith("ipv4:127.0.0.1:")


def client_context(*, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


async def info_over_tls(caller: HttpCaller, context: ssl.SSLContext) -> tuple[int, bytes]:
    """Returns the status and the server's certificate, over a new connection."""
    _, port = caller.host_and_port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    try:
        writer.write(b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status = (await reader.read()).split(b" ", 2)[1]
        return int(status), writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()


@on_event_loop
async def test_certificate_is_that_of_grpc_and_may_be_replaced(files: dict[str, Path]) -> None:
    async with secured(ScriptedSearch(), files, "tls_certificate", "tls_key") as (caller, security):
        status, first = await info_over_tls(caller, client_context())
        assert status == 200
        with pytest.raises(aiohttp.ClientError):
            await caller.get("/v1/info")  # without TLS
        issue(files)
        status, second = await info_over_tls(caller, client_context())
        assert status == 200
        assert second != first
        files["tls_key"].write_text("no key")
        security.reload()
        assert await info_over_tls(caller, client_context()) == (200, second), "the last good one stays"


@on_event_loop
async def test_mutual_tls_needs_a_certificate_of_the_caller(files: dict[str, Path]) -> None:
    service = ScriptedSearch()
    async with secured(service, files, "tls_certificate", "tls_key", "tls_client_ca", "audit_log") as (caller, _):
        with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):
            await info_over_tls(caller, client_context())
        context = client_context(certificate=CA.issue_cert("shop.example", common_name="shop"))
        assert (await info_over_tls(caller, context))[0] == 200
        issue(files)
        with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):
            await info_over_tls(caller, client_context())
        url = caller.url.replace("http://127.0.0.1", "https://localhost") + "/v1/search"
        headers = {"Content-Type": "image/jpeg"}
        async with caller.session.post(url, data=b"p", headers=headers, ssl=context) as answer:
            assert answer.status == 200
    await asyncio.sleep(0)
    assert json.loads(files["audit_log"].read_text().splitlines()[-1])["key"] == "shop"
