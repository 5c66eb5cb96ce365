# SPDX-License-Identifier: Apache-2.0
"""How a connection behaves, with a real gRPC server on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2

from captrieve_client import (
    AsyncSearchClient,
    ConnectionSettingsError,
    RequestRejectedError,
    SearchClient,
    ServerUnavailableError,
    cli,
)
from captrieve_client.connection import make_connection
from captrieve_client.messages import health_name

from scripted_service import ScriptedService, full_answer, photo_bytes, serving


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService(full_answer())


def test_answer_above_grpcs_own_limit_arrives(service: ScriptedService) -> None:
    service.answer.results[0].thumbnail = bytes(8 * 2**20)
    with serving(service) as address, SearchClient(address) as search_client:
        assert len(search_client.search(b"photo").results[0].thumbnail) == 8 * 2**20


def test_client_finds_a_restarted_server(service: ScriptedService) -> None:
    with serving(service) as address:
        search_client = SearchClient(address)
        search_client.search(b"photo")
    with search_client:
        with pytest.raises(ServerUnavailableError):
            search_client.search(b"photo")
        with serving(service, port=int(address.split(":")[1])):
            give_up = time.monotonic() + 60
            while True:
                try:
                    assert search_client.search(b"photo").query == "blue shirt"
                    break
                except ServerUnavailableError:
                    assert time.monotonic() < give_up
                    time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "unknown"), (1, "serving"), (2, "not_serving"), (3, "service_unknown"), (4, "unknown"), (-1, "unknown")],
)
def test_health_has_a_name_for_every_number(number: int, name: str) -> None:
    assert health_name(health_pb2.HealthCheckResponse(status=number)) == name


# Addresses


@pytest.mark.parametrize(
    ("address", "target", "uses_tls"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001", False),
        ("shop.example", "shop.example:8001", False),
        (" shop.example:9000/ ", "shop.example:9000", False),
        ("http://shop.example", "shop.example:80", False),
        ("http://shop.example:8001/", "shop.example:8001", False),
        ("https://shop.example", "shop.example:443", True),
        ("HTTPS://shop.example/", "shop.example:443", True),
        ("https://shop.example:8443//", "shop.example:8443", True),
        ("https://[2001:db8::1]:8443", "[2001:db8::1]:8443", True),
        ("https://[2001:db8::1]", "[2001:db8::1]:443", True),
        ("::1", "[::1]:8001", False),
        ("[::1]:8001", "[::1]:8001", False),
        ("unix:/run/captrieve.sock", "unix:/run/captrieve.sock", False),
        ("dns:///shop.example:8001", "dns:///shop.example:8001", False),
    ],
)
def test_address_is_understood(address: str, target: str, uses_tls: bool) -> None:
    connection = make_connection(address)
    assert (connection.target, connection.credentials is not None) == (target, uses_tls)


def test_tls_changes_the_port_that_is_not_given() -> None:
    assert make_connection("shop.example", tls=True).target == "shop.example:443"
    assert make_connection("shop.example:8001", tls=True).target == "shop.example:8001"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "has no host"),
        ("https://", "has no host"),
        (":8001", "has no host"),
        ("ftp://shop.example", "begins with ftp://, which is neither https:// nor http://"),
        ("https://shop.example/v1/search", r"has a path \(/v1/search\), but the gateway has none"),
        ("shop.example?x=1", r"has a path \(\?x=1\)"),
        ("shop.example:", "has '' as port, which is not a number from 1 to 65535"),
        ("shop.example:http", "has 'http' as port"),
        ("shop.example:0", "has '0' as port"),
        ("shop.example:65536", "has '65536' as port"),
        ("a:b:c", "has 'b:c' as port"),
        ("my shop:8001", "has 'my shop' as host, which no host is called"),
        ("[shop.example]:8001", "has 'shop.example' in brackets, which is not an IPv6 address"),
        ("[::1]8001", "has '8001' as port"),
    ],
)
def test_address_is_refused_by_what_is_wrong_with_it(address: str, reason: str) -> None:
    with pytest.raises(ConnectionSettingsError, match=f"^the address .* {reason}.*; write HOST:PORT or https://HOST$"):
        SearchClient(address)
    with pytest.raises(ConnectionSettingsError, match=reason):
        AsyncSearchClient(address)


def test_address_contradicts_tls_or_holds_a_password() -> None:
    with pytest.raises(ConnectionSettingsError, match="begins with http://, which contradicts TLS"):
        SearchClient("http://shop.example", tls=True)
    with pytest.raises(ConnectionSettingsError) as caught:
        SearchClient("https://me:secret@shop.example")
    assert str(caught.value) == "the address contains a user or a password; use a token instead"


# TLS and tokens


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.cert_pem.bytes())
    return str(path)


@pytest.fixture
def tls_port(service: ScriptedService, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("CAPTRIEVE_TOKEN", raising=False)
    with serving(service, certificate=authority.issue_cert("localhost")) as address:
        yield address.rpartition(":")[2]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "shirt.jpg"
    path.write_bytes(photo_bytes())
    return str(path)


def test_library_sends_its_token_through_tls(service: ScriptedService, tls_port: str, ca_file: str) -> None:
    async def search_async() -> None:
        async with AsyncSearchClient(f"localhost:{tls_port}", ca_file=ca_file, token="s3cret") as search_client:
            await search_client.search(b"photo")
            await search_client.captions([b"photo"])

    with SearchClient(f"https://localhost:{tls_port}/", ca_file=ca_file, token="s3cret") as search_client:
        search_client.search(b"photo")
        list(search_client.stream_search(b"photo"))
        search_client.captions([b"photo"])
        assert search_client.health() == "serving"
    asyncio.run(search_async())
    assert service.tokens == ["Bearer s3cret"] * 5


def test_command_line_takes_token_from_a_file_or_the_environment(
    service: ScriptedService, tls_port: str, ca_file: str, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("\ufefffrom-file\n", encoding="utf-8")
    command = ["search", photo, "--address", f"localhost:{tls_port}", "--tls", "--ca-file", ca_file]
    assert cli.main(command) == 0
    monkeypatch.setenv("CAPTRIEVE_TOKEN", "from-environment")
    assert cli.main(command) == 0
    assert cli.main([*command, "--token-file", str(tmp_path / "token")]) == 0
    assert service.tokens == [None, "Bearer from-environment", "Bearer from-file"]


def test_certificate_of_an_unknown_authority_is_named(tls_port: str, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().cert_pem.bytes())
    for ca_file in (None, other):
        # Not localhost, which may have two addresses; the error is that of the one that was tried last.
        with SearchClient(f"https://127.0.0.1:{tls_port}", ca_file=ca_file) as search_client:
            with pytest.raises(RequestRejectedError, match="is not from a known authority.*--ca-file") as caught:
                search_client.search(b"photo")
            assert not caught.value.retryable


def test_command_prints_one_line_about_a_certificate(tls_port: str, tmp_path: Path) -> None:
    """In a process of its own: gRPC prints its lines past Python."""
    (tmp_path / "shirt.jpg").write_bytes(b"photo")
    command = [sys.executable, "-m", "captrieve_client", "caption", "shirt.jpg", "--address", f"127.0.0.1:{tls_port}"]
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    done = subprocess.run(
        [*command, "--tls"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "is not from a known authority" in line


def test_certificate_for_another_name_is_named(tls_port: str, ca_file: str) -> None:
    with (
        SearchClient(f"https://127.0.0.1:{tls_port}", ca_file=ca_file) as search_client,
        pytest.raises(RequestRejectedError, match=f"the certificate of 127.0.0.1:{tls_port} is for another host name"),
    ):
        search_client.search(b"photo")


def test_tls_on_one_side_only_is_named(service: ScriptedService, tls_port: str) -> None:
    with (
        SearchClient(f"127.0.0.1:{tls_port}") as search_client,
        pytest.raises(ServerUnavailableError, match="if it expects TLS, use https:// or TLS"),
    ):
        search_client.search(b"photo")
    with (
        serving(service) as plain,
        SearchClient(f"https://{plain}") as search_client,
        pytest.raises(RequestRejectedError, match=f"the server at {plain} does not speak TLS"),
    ):
        search_client.search(b"photo")


def test_token_stays_on_this_machine_without_tls(service: ScriptedService) -> None:
    with serving(service) as address, SearchClient(address, token="s3cret") as search_client:
        search_client.search(b"photo")
    assert service.tokens == ["Bearer s3cret"]
    for host in ("shop.example", "unixshop.example", "localhost.example", "127.0.0.1.example"):
        with pytest.raises(ConnectionSettingsError, match=f"the token is not sent to {host}:8001 without TLS"):
            SearchClient(host, token="s3cret")


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "schlüssel"])
def test_bad_token_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(ConnectionSettingsError, match=r"^the token is empty, or has spaces or characters that are not"):
        SearchClient("https://shop.example", token=token)


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--ca-file", None, "cannot read {}: no such file or directory"),
        ("--ca-file", b"not a certificate", "{} holds no certificates in PEM format"),
        ("--ca-file", b"\xff\xfe", "'{}' holds no certificates in PEM format"),
        ("--token-file", None, "cannot read {}: no such file or directory"),
        ("--token-file", b"\n", "the token is empty, or has spaces or characters that are not ASCII"),
        ("--token-file", b"\xff\xfe", "'{}' is not a text file with a token"),
        ("--token-file", bytes(20_000), "{} is too large for a token"),
    ],
)
def test_bad_file_is_one_line_and_bad_use(
    option: str, content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    command = ["health", "--address", "https://shop.example", option, str(path)]
    assert cli.main(command) == 2
    assert capsys.readouterr().err == f"error: {message.format(path)}\n"
    assert cli.main([*command, "--json"]) == 2
    out, err = capsys.readouterr()
    assert (json.loads(out)["error"]["message"], err) == (message.format(path), "")


def test_credentials_and_ca_file_exclude_each_other(ca_file: str) -> None:
    with pytest.raises(ConnectionSettingsError, match="both credentials and certificate files are given"):
        SearchClient("shop.example", credentials=grpc.ssl_channel_credentials(), ca_file=ca_file)
