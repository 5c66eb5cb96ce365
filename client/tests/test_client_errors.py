# SPDX-License-Identifier: Apache-2.0
"""What a call can fail with, from a real gRPC server on loopback, for the sync and the async client."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest

from captrieve_client import (
    AsyncSearchClient,
    RequestRejectedError,
    RequestTimeoutError,
    SearchAnswer,
    SearchClient,
    SearchClientError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from captrieve_client.client_errors import _CLASS_OF, translated_errors

from scripted_service import Failure, ScriptedService, full_answer, serving

Code = grpc.StatusCode
CLASS_BY_CODE = {
    Code.INVALID_ARGUMENT: RequestRejectedError,
    Code.UNAUTHENTICATED: RequestRejectedError,
    Code.PERMISSION_DENIED: RequestRejectedError,
    Code.NOT_FOUND: RequestRejectedError,
    Code.ALREADY_EXISTS: RequestRejectedError,
    Code.FAILED_PRECONDITION: RequestRejectedError,
    Code.OUT_OF_RANGE: RequestRejectedError,
    Code.UNIMPLEMENTED: RequestRejectedError,
    Code.RESOURCE_EXHAUSTED: ServerOverloadedError,
    Code.UNAVAILABLE: ServerUnavailableError,
    Code.ABORTED: ServerUnavailableError,
    Code.CANCELLED: ServerUnavailableError,
    Code.INTERNAL: ServerUnavailableError,
    Code.UNKNOWN: ServerUnavailableError,
    Code.DATA_LOSS: ServerUnavailableError,
    Code.DEADLINE_EXCEEDED: RequestTimeoutError,
}
RETRYABLE = {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.ABORTED, Code.DEADLINE_EXCEEDED}


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService(full_answer())


@pytest.fixture
def address(service: ScriptedService) -> Iterator[str]:
    with serving(service) as address:
        yield address


@pytest.fixture
def search_client(address: str) -> Iterator[SearchClient]:
    with SearchClient(address) as search_client:
        yield search_client


@pytest.fixture
def dead_address() -> Iterator[str]:
    """An address that is taken, so nobody else gets it, but where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


async def search_async(address: str) -> SearchAnswer:
    async with AsyncSearchClient(address) as search_client:
        return await search_client.search(b"photo")


async def stream_async(address: str) -> list[object]:
    async with AsyncSearchClient(address) as search_client:
        return [event async for event in search_client.stream_search(b"photo")]


def test_every_code_has_an_error_class() -> None:
    assert set(_CLASS_OF) == set(Code) - {Code.OK} == set(CLASS_BY_CODE)


@pytest.mark.parametrize("code", CLASS_BY_CODE, ids=lambda code: code.name)
def test_code_arrives_as_its_error(service: ScriptedService, address: str, code: grpc.StatusCode) -> None:
    service.failure = Failure(code, "photo is 12 MB; the limit is 8 MB")

    with SearchClient(address) as search_client:
        calls: list[Callable[[], object]] = [
            lambda: search_client.search(b"photo"),
            lambda: search_client.caption(b"photo"),
            lambda: list(search_client.stream_search(b"photo")),
            lambda: search_client.captions([b"photo"]),
            lambda: asyncio.run(search_async(address)),
            lambda: asyncio.run(stream_async(address)),
        ]
        for call in calls:
            with pytest.raises(SearchClientError) as caught:
                call()
            error = caught.value
            assert type(error) is CLASS_BY_CODE[code]
            assert (error.code, error.retryable) == (code, code in RETRYABLE)
            assert error.retry_after_seconds is None
            if code is Code.UNIMPLEMENTED:
                assert f"the server at {address} is not a Captrieve gateway" in str(error)
            else:
                assert str(error) == "photo is 12 MB; the limit is 8 MB"


def test_error_without_a_message_still_says_something(service: ScriptedService, search_client: SearchClient) -> None:
    service.failure = Failure(Code.INTERNAL, "")
    with pytest.raises(ServerUnavailableError, match="answered INTERNAL without a message"):
        search_client.search(b"photo")


def test_full_server_says_when_to_come_back(service: ScriptedService, address: str) -> None:
    service.failure = Failure(Code.RESOURCE_EXHAUSTED, "64 requests wait already", 2.5)

    with SearchClient(address) as search_client:
        for call in (lambda: search_client.search(b"photo"), lambda: asyncio.run(search_async(address))):
            with pytest.raises(ServerOverloadedError, match="64 requests wait already") as caught:
                call()
            assert caught.value.retry_after_seconds == 2.5
            assert caught.value.retryable


def test_damaged_status_details_do_not_hide_the_error() -> None:
    error = grpc.aio.AioRpcError(
        Code.RESOURCE_EXHAUSTED,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff")),
        "full",
    )
    with pytest.raises(ServerOverloadedError, match="full"), translated_errors("here", 1):
        raise error


def test_photo_larger_than_the_server_takes_is_rejected_for_good(search_client: SearchClient) -> None:
    with pytest.raises(
        RequestRejectedError, match=r"too large for the gateway \(5\.2 MB, the limit is 4\.2 MB\); send a smaller photo"
    ) as caught:
        search_client.search(bytes(5 * 2**20))  # the scripted server has gRPC's own limit of 4 MiB
    assert (caught.value.code, caught.value.retryable) == (Code.RESOURCE_EXHAUSTED, False)


def test_nothing_listening_says_how_to_start_a_server(dead_address: str) -> None:
    with SearchClient(dead_address) as search_client:
        for call in (lambda: search_client.search(b"photo"), lambda: asyncio.run(search_async(dead_address))):
            with pytest.raises(ServerUnavailableError) as caught:
                call()
            assert str(caught.value) == f"no gateway answers at {dead_address}; start it, or check host and port"
            assert caught.value.retryable


def test_unknown_host_is_a_server_that_does_not_answer() -> None:
    with (
        SearchClient("no-host.invalid") as search_client,
        pytest.raises(ServerUnavailableError, match="no gateway answers at no-host.invalid:8001"),
    ):
        search_client.search(b"photo")


def test_server_that_is_no_captrieve_server_is_named() -> None:
    """Triton's gRPC port, say, which is 8001 too."""
    with serving(None) as address, SearchClient(address) as search_client:
        assert search_client.health() == "serving"
        with pytest.raises(RequestRejectedError, match="is not a Captrieve gateway") as caught:
            search_client.search(b"photo")
    assert not caught.value.retryable


@pytest.mark.parametrize("code", [Code.UNKNOWN, Code.UNAVAILABLE, Code.UNIMPLEMENTED])
def test_web_server_is_no_captrieve_server(code: grpc.StatusCode) -> None:
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(code, nothing, nothing, "Received http2 header with status: 404")
    with pytest.raises(RequestRejectedError, match="the server at here:80 is not"), translated_errors("here:80", 1):
        raise error


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "text"),
    [
        (
            401,
            RequestRejectedError,
            False,
            r"the server at here:443 wants a valid token \(--token-file, CAPTRIEVE_TOKEN",
        ),
        (403, RequestRejectedError, False, "wants a valid token"),
        (429, ServerOverloadedError, True, "the proxy at here:443 is asked too often"),
        (502, ServerUnavailableError, True, "the proxy at here:443 does not reach the gateway: HTTP 502"),
        (503, ServerUnavailableError, True, "does not reach the gateway"),
        (504, ServerUnavailableError, True, "does not reach the gateway"),
    ],
)
def test_answer_of_a_proxy_says_what_is_wrong(
    status: int, kind: type[SearchClientError], retryable: bool, text: str
) -> None:
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(Code.UNAVAILABLE, nothing, nothing, f"Received http2 header with status: {status}")
    with pytest.raises(kind, match=text) as caught, translated_errors("here:443", 1):
        raise error
    assert caught.value.retryable is retryable


def test_no_answer_in_time_is_a_timeout(service: ScriptedService, search_client: SearchClient) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: hold.wait(100)
    try:
        with pytest.raises(RequestTimeoutError, match=r"no answer from 127.* within 0\.2 s; allow more time") as caught:
            search_client.search(b"photo", timeout_seconds=0.2)
    finally:
        hold.set()
    assert caught.value.retryable


def test_call_that_a_stopping_gateway_reset_may_be_sent_again(service: ScriptedService, address: str) -> None:
    service.failure = Failure(Code.CANCELLED, "CANCELLED")
    with SearchClient(address, max_attempts=1) as search_client:
        with pytest.raises(ServerUnavailableError, match="is stopping; try again") as caught:
            search_client.search(b"photo")
        assert caught.value.retryable
        service.failure = Failure(Code.CANCELLED, "for another reason")
        with pytest.raises(ServerUnavailableError, match="another reason") as caught:
            search_client.search(b"photo")
        assert not caught.value.retryable
