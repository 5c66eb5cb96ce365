# SPDX-License-Identifier: Apache-2.0
"""Failed calls are repeated by gRPC as the gateway asks, and go to all addresses in turn; real servers on loopback."""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import pytest
import trustme

from captrieve_client import (
    AsyncSearchClient,
    ConnectionSettingsError,
    RequestRejectedError,
    SearchAnswer,
    SearchClient,
    SearchClientError,
    ServerOverloadedError,
    ServerUnavailableError,
    cli,
    connection,
)
from captrieve_client.connection import make_connection

from scripted_service import Failure, ScriptedService, full_answer, serving

Code = grpc.StatusCode
Search = Callable[..., SearchAnswer]


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService(full_answer())


@pytest.fixture
def address(service: ScriptedService) -> Iterator[str]:
    with serving(service) as address:
        yield address


def search_blocking(address: str, photo: bytes = b"photo", **settings: object) -> SearchAnswer:
    with SearchClient(address, **settings) as search_client:  # type: ignore[arg-type]
        return search_client.search(photo)


def search_async(address: str, photo: bytes = b"photo", **settings: object) -> SearchAnswer:
    async def run() -> SearchAnswer:
        async with AsyncSearchClient(address, **settings) as search_client:  # type: ignore[arg-type]
            return await search_client.search(photo)

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("search", [search_blocking, search_async], ids=["blocking", "async"])


def with_short_keepalive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a gateway that answers nothing be noticed after half a second."""
    options = tuple(
        (name, 400 if "timeout" in name else 100 if "keepalive" in name else value)
        for name, value in connection._CHANNEL_OPTIONS
    )
    monkeypatch.setattr(connection, "_CHANNEL_OPTIONS", options)


@contextmanager
def vanished() -> Iterator[str]:
    """A port that accepts a connection of HTTP/2 and is never heard of again, as a machine without power."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    near.sendall(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))  # empty SETTINGS
                    accepted.append(near)

        accepted: list[socket.socket] = []
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for one in accepted:
            one.close()


# Retries


@BOTH
def test_gateway_that_vanished_is_noticed_before_the_deadline(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    with_short_keepalive(monkeypatch)
    with vanished() as address, pytest.raises(ServerUnavailableError):
        search(address, max_attempts=1)


@BOTH
def test_call_of_a_gateway_that_vanished_is_repeated_at_another_one(
    address: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_short_keepalive(monkeypatch)
    with vanished() as gone:
        for _ in range(2):  # in turn; on a busy machine the other one is given up now and then
            assert search(f"{gone},{address}", max_attempts=5).query == "blue shirt"


@BOTH
@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.CANCELLED])
def test_gateway_that_recovers_is_asked_again(
    service: ScriptedService, address: str, search: Search, code: grpc.StatusCode
) -> None:
    service.next_failures = [Failure(code), Failure(code)]
    assert search(address).query == "blue shirt"
    assert len(service.requests) == 3


@BOTH
def test_photo_of_many_megabytes_is_sent_again(service: ScriptedService, address: str, search: Search) -> None:
    service.next_failures = [Failure(Code.UNAVAILABLE)]
    assert search(address, bytes(3 * 2**20)).query == "blue shirt"
    assert [len(request.photo) for request in service.requests] == [3 * 2**20] * 2


@BOTH
def test_pause_is_the_one_that_the_gateway_asks_for(service: ScriptedService, address: str, search: Search) -> None:
    service.next_failures = [Failure(Code.RESOURCE_EXHAUSTED, retry_after_seconds=1.5, pushback_ms=1500)]
    started = time.monotonic()
    assert search(address).query == "blue shirt"
    assert time.monotonic() - started >= 1.5, "gRPC's own first pause is a tenth of a second"


@BOTH
def test_long_pause_is_told_and_not_waited_for(service: ScriptedService, address: str, search: Search) -> None:
    service.next_failures = [Failure(Code.RESOURCE_EXHAUSTED, retry_after_seconds=60.0, pushback_ms=-1)]
    with pytest.raises(ServerOverloadedError) as caught:
        search(address)
    assert caught.value.retry_after_seconds == 60.0
    assert len(service.requests) == 1


@BOTH
def test_last_error_is_told_after_all_attempts(service: ScriptedService, address: str, search: Search) -> None:
    service.failure = Failure(Code.UNAVAILABLE, "the models are away")
    with pytest.raises(ServerUnavailableError, match="the models are away"):
        search(address, max_attempts=2)
    assert len(service.requests) == 2


@BOTH
@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.UNAUTHENTICATED, Code.INTERNAL])
def test_what_a_retry_cannot_mend_is_not_repeated(
    service: ScriptedService, address: str, search: Search, code: grpc.StatusCode
) -> None:
    service.failure = Failure(code)
    with pytest.raises(SearchClientError):
        search(address)
    assert len(service.requests) == 1


def test_one_attempt_is_no_retry(service: ScriptedService, address: str) -> None:
    service.next_failures = [Failure(Code.UNAVAILABLE)]
    with pytest.raises(ServerUnavailableError):
        search_blocking(address, max_attempts=1)


def test_retries_end_where_most_calls_fail(service: ScriptedService, address: str) -> None:
    """The throttle of gRPC: an outage is not multiplied by the number of attempts."""
    service.failure = Failure(Code.UNAVAILABLE)
    with SearchClient(address, max_attempts=5) as search_client:
        outcomes = list(search_client.stream_captions([b"photo"] * 200, concurrency=50))
    assert {type(outcome) for outcome in outcomes} == {ServerUnavailableError}
    assert len(service.requests) < 350


@pytest.mark.parametrize("number", [0, 6])
def test_number_of_attempts_has_limits(number: int) -> None:
    with pytest.raises(ConnectionSettingsError, match=f"the number of attempts is {number}; it goes from 1 to 5"):
        SearchClient(max_attempts=number)


def test_command_line_repeats_as_often_as_asked(
    service: ScriptedService, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "shirt.jpg"
    photo.write_bytes(b"photo")
    service.failure = Failure(Code.UNAVAILABLE)
    assert cli.main(["search", str(photo), "--address", address, "--attempts", "2", "--json"]) == cli.TROUBLE
    assert len(service.requests) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "UNAVAILABLE"


# Several addresses


@BOTH
def test_calls_go_to_all_addresses_in_turn(search: Search) -> None:
    services = [ScriptedService(full_answer()) for _ in range(3)]
    with ExitStack() as running:
        addresses = ",".join(running.enter_context(serving(service)) for service in services)
        until_all_are_connected(addresses, services)
        counts = [len(service.requests) for service in services]
        if search is search_blocking:
            with SearchClient(addresses) as search_client:
                wait_for_connections(search_client, services)
                counts = [len(service.requests) for service in services]
                for _ in range(30):
                    search_client.search(b"photo")
        else:

            async def run() -> list[int]:
                async with AsyncSearchClient(addresses) as search_client:
                    before = [0, 0, 0]
                    while not all(now > then for now, then in zip(before, counts, strict=True)):
                        await search_client.search(b"photo")
                        before = [len(service.requests) for service in services]
                    for _ in range(30):
                        await search_client.search(b"photo")
                    return before

            counts = asyncio.run(run())
        assert [len(service.requests) - before for service, before in zip(services, counts, strict=True)] == [
            10,
            10,
            10,
        ]


def wait_for_connections(search_client: SearchClient, services: list[ScriptedService]) -> None:
    before = [len(service.requests) for service in services]
    while not all(len(service.requests) > then for service, then in zip(services, before, strict=True)):
        search_client.search(b"photo")


def until_all_are_connected(addresses: str, services: list[ScriptedService]) -> None:
    with SearchClient(addresses) as search_client:
        wait_for_connections(search_client, services)


@BOTH
def test_no_call_fails_while_one_of_three_gateways_ends(search: Search) -> None:
    services = [ScriptedService(full_answer()) for _ in range(3)]
    with ExitStack() as running:
        first = ExitStack()
        addresses = [first.enter_context(serving(services[0]))]
        addresses += [running.enter_context(serving(service)) for service in services[1:]]
        if search is search_blocking:
            with SearchClient(",".join(addresses)) as search_client:
                wait_for_connections(search_client, services)
                for number in range(60):
                    if number == 20:
                        first.close()
                    assert search_client.search(b"photo").query == "blue shirt"
        else:

            async def run() -> None:
                async with AsyncSearchClient(",".join(addresses)) as search_client:
                    for number in range(60):
                        if number == 20:
                            await asyncio.to_thread(first.close)
                        assert (await search_client.search(b"photo")).query == "blue shirt"

            asyncio.run(run())
        first.close()


def test_all_calls_in_flight_on_a_gateway_that_dies_go_to_the_others() -> None:
    services = [ScriptedService(full_answer()) for _ in range(3)]
    dead = threading.Event()
    with ExitStack() as running:
        first = ExitStack()
        running.callback(first.close)
        running.callback(dead.set)
        addresses = [first.enter_context(serving(services[0]))]
        addresses += [running.enter_context(serving(service)) for service in services[1:]]
        with SearchClient(",".join(addresses)) as search_client:
            wait_for_connections(search_client, services)
            services[0].before_answer = lambda photo: dead.wait(100)
            outcomes = search_client.stream_captions([b"photo"] * 90, concurrency=90)
            threading.Timer(0.5, first.close).start()
            assert [outcome for outcome in outcomes if isinstance(outcome, SearchClientError)] == []


@contextmanager
def cutting(address: str, num_bytes: int) -> Iterator[str]:
    """Runs a proxy before a server; it cuts the first connection after some bytes from the server."""
    host, _, port = address.rpartition(":")
    limits = [num_bytes]

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            limit = limits.pop() if limits else 2**40
            with socket.create_connection((host, int(port))) as server:
                passing = threading.Thread(target=pass_on, args=(self.request, server, 2**40), daemon=True)
                passing.start()
                pass_on(server, self.request, limit)
                passing.join()

    def pass_on(source: socket.socket, target: socket.socket, limit: int) -> None:
        with suppress(OSError):
            while limit > 0 and (data := source.recv(4096)):
                target.sendall(data[:limit])
                limit -= len(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()
            thread.join()


@BOTH
@pytest.mark.parametrize(("max_attempts", "num_requests"), [(3, 2), (1, 1)])
def test_connection_that_breaks_in_the_middle_of_an_answer_is_no_error(
    service: ScriptedService, address: str, search: Search, max_attempts: int, num_requests: int
) -> None:
    """As soon as an answer has begun, gRPC itself does not send a request again."""
    service.answer.results[0].thumbnail = bytes(100_000)
    with cutting(address, 50_000) as proxy:
        if max_attempts == 1:
            with pytest.raises(ServerUnavailableError, match="was closed before the answer arrived"):
                search(proxy, max_attempts=max_attempts)
        else:
            assert search(proxy, max_attempts=max_attempts).query == "blue shirt"
    assert len(service.requests) == num_requests


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (" 10.0.0.1 , 10.0.0.2,", "ipv4:10.0.0.1:8001,10.0.0.2:8001"),
        ("[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
        ("localhost:1,127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("https://10.0.0.1,https://10.0.0.2", "ipv4:10.0.0.1:443,10.0.0.2:443"),
    ],
)
def test_several_addresses_are_one_target(address: str, target: str) -> None:
    assert make_connection(address).target == target


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.0.1:1,[::1]:2", "have no addresses, or some IPv4 and some IPv6 only"),
        ("https://10.0.0.1,10.0.0.2", "begin differently"),
        ("10.0.0.1:1,a b", "which no host is called"),
        ("no-such-host.invalid:1,10.0.0.1:1", "have no addresses"),
        ("10.0.0.1:1,unix:/run/socket", "are not all HOST:PORT"),
    ],
)
def test_addresses_that_are_no_list_are_refused(address: str, reason: str) -> None:
    with pytest.raises(ConnectionSettingsError, match=reason):
        make_connection(address)


def test_token_goes_to_several_addresses_of_this_machine_without_tls_and_nowhere_else() -> None:
    assert make_connection("127.0.0.1:1,127.0.0.1:2", token="s3cret").metadata
    with pytest.raises(ConnectionSettingsError, match="is not sent"):
        make_connection("127.0.0.1:1,10.0.0.1:2", token="s3cret")


# Mutual TLS


@pytest.fixture
def identity(tmp_path: Path) -> dict[str, str]:
    leaf = CLIENTS.issue_cert("shop.example")
    files = {"ca_file": tmp_path / "ca.pem", "certificate_file": tmp_path / "c.pem", "key_file": tmp_path / "k.pem"}
    SERVERS.cert_pem.write_to_path(files["ca_file"])
    leaf.cert_chain_pems[0].write_to_path(files["certificate_file"])
    leaf.private_key_pem.write_to_path(files["key_file"])
    return {name: str(file) for name, file in files.items()}


SERVERS, CLIENTS = trustme.CA(), trustme.CA()


@BOTH
def test_certificate_of_the_client_is_shown(service: ScriptedService, search: Search, identity: dict[str, str]) -> None:
    with serving(service, certificate=SERVERS.issue_cert("localhost"), client_ca=CLIENTS) as address:
        address = address.replace("127.0.0.1", "localhost")
        assert search(address, **identity).query == "blue shirt"
        with pytest.raises(ServerUnavailableError):
            search(address, ca_file=identity["ca_file"])


def test_several_gateways_with_tls_have_certificates_for_the_first_host(identity: dict[str, str]) -> None:
    services = [ScriptedService(full_answer()) for _ in range(2)]
    leaf = SERVERS.issue_cert("localhost")
    with ExitStack() as running:
        ports = [
            running.enter_context(serving(service, certificate=leaf, client_ca=CLIENTS)).rpartition(":")[2]
            for service in services
        ]
        with SearchClient(f"localhost:{ports[0]},127.0.0.1:{ports[1]}", **identity) as search_client:  # type: ignore[arg-type]
            wait_for_connections(search_client, services)
        with (
            SearchClient(f"127.0.0.1:{ports[0]},localhost:{ports[1]}", **identity) as search_client,  # type: ignore[arg-type]
            pytest.raises(RequestRejectedError, match="is for another host name"),
        ):
            search_client.search(b"photo")


def test_command_line_shows_its_certificate(
    service: ScriptedService, identity: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(service, certificate=SERVERS.issue_cert("localhost"), client_ca=CLIENTS) as address:
        arguments = ["health", "--address", address.replace("127.0.0.1", "localhost"), "--ca-file", identity["ca_file"]]
        files = ["--certificate", identity["certificate_file"], "--key", identity["key_file"]]
        assert cli.main([*arguments, *files]) == cli.FOUND
        assert cli.main(arguments) == cli.TROUBLE
        assert cli.main([*arguments, *files[:2]]) == cli.REJECTED
        assert "a certificate needs its key, and a key its certificate" in capsys.readouterr().err


def test_files_that_are_no_pair_are_refused(identity: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    CLIENTS.issue_cert("other.example").private_key_pem.write_to_path(other)
    with pytest.raises(ConnectionSettingsError, match=r"is not the key of .*c.pem"):
        make_connection("a", **(identity | {"key_file": str(other)}))  # type: ignore[arg-type]
    with pytest.raises(ConnectionSettingsError, match="cannot read .*none.pem: no such file"):
        make_connection("a", **(identity | {"key_file": str(tmp_path / "none.pem")}))  # type: ignore[arg-type]
    with pytest.raises(ConnectionSettingsError, match="holds no certificates"):
        make_connection("a", **(identity | {"certificate_file": identity["key_file"]}))  # type: ignore[arg-type]
