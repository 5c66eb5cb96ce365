# SPDX-License-Identifier: Apache-2.0
"""The admin port as curl sees it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from search_gateway.observability.admin_server import AdminServer, AdminState, is_this_machine, redacted

Ask = Callable[..., tuple[int, str]]


def ask(address: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Returns status and text of the answer."""
    request = urllib.request.Request(f"http://{address}{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def served(
    talk: Callable[[str], Any], problems: list[str] | None = None, listen: str = "127.0.0.1:0"
) -> tuple[Any, list[str]]:
    """Run `talk` in a thread beside an admin server; returns its result and what happened."""
    happened: list[str] = []

    async def drain() -> None:
        happened.append("drained")

    async def triton() -> bytes:
        return b"nv_inference_count 1\n"

    async def run() -> Any:
        server = AdminServer(listen)
        state = AdminState(
            metrics=lambda: b"a_total 1\n",
            metrics_type="text/plain; version=0.0.4; charset=utf-8",
            triton_metrics=triton,
            problems=lambda: problems or [],
            warnings=lambda: ["catalog: the file is missing"],
            settings={
                "max_waiting": 64,
                "catalog": None,
                "duckduckgo_proxy": "http://me:pass@proxy:80",
                "token": "x",
                "url": "milvus://h:1/a?Token=x&b=c",
            },
            drain=drain,
        )
        await server.start(state)
        try:
            return await asyncio.to_thread(talk, server.address)
        finally:
            await server.close()

    return asyncio.run(run()), happened


def test_alive_and_ready() -> None:
    assert served(lambda address: ask(address, "/livez"), ["Triton is gone"])[0][0] == 200
    assert served(lambda address: ask(address, "/readyz"))[0] == (
        200,
        '{"ready": true, "reasons": [], "warnings": ["catalog: the file is missing"]}',
    )
    (status, text), _ = served(lambda address: ask(address, "/readyz"), ["Triton is gone"])
    assert status == 503
    assert json.loads(text)["reasons"] == ["Triton is gone"]


def test_metrics_of_the_gateway_and_of_triton() -> None:
    assert served(lambda address: ask(address, "/metrics"))[0] == (200, "a_total 1\n")
    assert served(lambda address: ask(address, "/metrics/triton"))[0] == (200, "nv_inference_count 1\n")


def test_settings_without_secrets() -> None:
    (status, text), _ = served(lambda address: ask(address, "/config"))
    assert (status, json.loads(text)) == (
        200,
        {
            "max_waiting": 64,
            "catalog": None,
            "duckduckgo_proxy": "http://***@proxy:80",
            "token": "***",
            "url": "milvus://h:1/a?Token=***&b=c",
        },
    )


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("api_token", "abc", "***"),
        ("api_token", "", ""),
        ("brave_api_key", SecretStr("abc"), "***"),
        ("api_keys", Path("keys.json"), "keys.json"),
        ("brave_api_key_file", Path("/run/secrets/brave"), "/run/secrets/brave"),
        ("addresses", ("http://a:b@c", "d:1"), ["http://***@c", "d:1"]),
        ("max_tokens_x", 3, "***"),
        ("reflection", True, True),
    ],
)
def test_redaction(name: str, value: Any, shown: Any) -> None:
    assert redacted(name, value) == shown


def test_drain_is_a_post_and_happens_once() -> None:
    def talk(address: str) -> list[int]:
        return [ask(address, "/drain")[0], *(ask(address, "/drain", "POST")[0] for _ in range(2))]

    assert served(talk) == ([405, 202, 202], ["drained"])


def test_log_level_can_be_read_and_changed() -> None:
    loggers = [logging.getLogger(), logging.getLogger("search_gateway")]
    before = [logger.level for logger in loggers]

    def talk(address: str) -> list[tuple[int, str]]:
        return [
            ask(address, "/log-level", "PUT", b'{"level": "error"}'),
            ask(address, "/log-level"),
            *(ask(address, "/log-level", "PUT", body) for body in (b'{"level": "loud"}', b"debug", b"[]", b"x" * 5000)),
        ]

    try:
        answers, _ = served(talk)
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
    assert answers[:2] == 2 * [(200, '{"level": "error"}')]
    assert [status for status, _ in answers[2:]] == [400, 400, 400, 413]
    assert "debug, info, warning, error" in answers[2][1]


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "same-origin"}])
def test_web_pages_are_refused(headers: dict[str, str]) -> None:
    (status, _), happened = served(lambda address: ask(address, "/drain", "POST", **headers))
    assert (status, happened) == (403, [])


@pytest.mark.parametrize(
    ("peer", "is_local"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.7", False),
        ("::ffff:10.0.0.7", False), ("2001:db8::1", False), ("", False), (None, False),
    ],
)  # fmt: skip
def test_loopback_is_this_machine(peer: str | None, is_local: bool) -> None:
    assert is_this_machine(peer) == is_local


def test_other_machines_get_health_and_metrics_only() -> None:
    own = own_address()

    def talk(address: str) -> dict[str, int]:
        address = f"{own}:{address.rpartition(':')[2]}"
        asked = [("GET", path) for path in ("/livez", "/readyz", "/metrics", "/metrics/triton", "/config", "/drain")]
        asked += [("GET", "/log-level"), ("PUT", "/log-level"), ("POST", "/drain"), ("POST", "/%64rain")]
        return {f"{method} {path}": ask(address, path, method)[0] for method, path in asked}

    answers, happened = served(talk, listen="0.0.0.0:0")
    assert happened == []
    assert {name for name, status in answers.items() if status == 200} == {
        "GET /livez", "GET /readyz", "GET /metrics", "GET /metrics/triton",
    }  # fmt: skip
    assert {status for status in answers.values() if status != 200} == {403}


def own_address() -> str:
    """An address of this machine that is not loopback: what connects to it from here comes from it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("OTHER MACHINES ARE NOT TESTED: this one has loopback only")
        return str(unsent.getsockname()[0])


def test_all_interfaces_are_those_of_both_kinds() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("IPv6 IS NOT TESTED: this machine has none")

    def talk(address: str) -> list[int]:
        port = address.rpartition(":")[2]
        return [ask(f"{host}:{port}", "/config")[0] for host in ("127.0.0.1", "[::1]")]

    assert served(talk, listen="[::]:0")[0] == [200, 200]


def test_a_port_in_use_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        AdminServer(f"127.0.0.1:{taken.getsockname()[1]}")
