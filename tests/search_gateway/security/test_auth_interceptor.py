# SPDX-License-Identifier: Apache-2.0
"""Keys, scopes and quotas of real calls to a real server, with the interceptors in the gateway's order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from search_api import search_pb2, search_pb2_grpc
from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.errors import BadRequestError
from search_gateway.fair_share import current_caller
from search_gateway.kserve.protocol import service_pb2, service_pb2_grpc
from search_gateway.security.api_keys import ApiKeys, _digest
from search_gateway.security.audit_log import AuditedMessages
from search_gateway.security.auth_interceptor import AuthInterceptor
from search_gateway.security.quotas import Quotas

Code = grpc.StatusCode
SECRETS = {"searcher": "s-1", "captioner": "c-1", "kserver": "k-1", "chief": "a-1", "old": "o-1", "slow": "r-1"}
SCOPES = {"searcher": "search", "captioner": "caption", "kserver": "kserve", "chief": "admin", "old": "admin"}


class Service(search_pb2_grpc.SearchServiceServicer):
    """Answers with the name of its caller."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.hold.set()
        self.num_calls = 0

    async def Caption(self, request: search_pb2.CaptionRequest, context: Any) -> search_pb2.CaptionResponse:
        self.num_calls += 1
        await self.hold.wait()
        if request.photo == b"bad":
            raise BadRequestError("not a photo")
        return search_pb2.CaptionResponse(query=await asyncio.create_task(self._name()))

    async def Search(self, request: search_pb2.SearchRequest, context: Any) -> search_pb2.SearchResponse:
        return search_pb2.SearchResponse(query=current_caller.get(), provider="catalog")

    async def StreamSearch(self, request: search_pb2.SearchRequest, context: Any) -> None:
        await context.write(search_pb2.SearchEvent(query=current_caller.get()))
        await self.hold.wait()
        summary = search_pb2.SearchResponse(query=current_caller.get(), provider="replay")
        await context.write(search_pb2.SearchEvent(summary=summary))

    async def _name(self) -> str:
        return current_caller.get()  # in a task of its own


class KServe(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    async def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=True)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        return service_pb2.RepositoryIndexResponse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelInferResponse(id=current_caller.get())

    async def ModelStreamInfer(self, requests: Any, context: Any) -> None:
        async for request in requests:
            answer = service_pb2.ModelStreamInferResponse()
            answer.infer_response.id = request.id
            await context.write(answer)
            requests.release(request)  # as the real service does


class Server:
    """What a test has of the server."""

    def __init__(self, address: str, channel: grpc.aio.Channel, service: Service):
        self.address = address
        self.channel = channel
        self.service = service
        self.search: Any = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
        self.kserve: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        self.reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)


@asynccontextmanager
async def serving(
    file: Path | None, outer: list[Any] | None = None, quotas: Quotas | None = None
) -> AsyncIterator[Server]:
    sources = [] if file is None else [ApiKeys(file).caller_of]
    inner = [AuditedMessages()] if outer else []
    interceptors = [*(outer or []), ErrorInterceptor(), *inner, AuthInterceptor(sources, quotas or Quotas(8, 20))]
    server = grpc.aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", 0)])
    service = Service()
    search_pb2_grpc.add_SearchServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(KServe(), server)
    status = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(("captrieve.v1.SearchService",), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Server(f"127.0.0.1:{port}", channel, service)
    finally:
        await server.stop(20)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    entries: list[dict[str, Any]] = [
        {"name": name, "sha256": _digest(SECRETS[name]).hex(), "scopes": [scope]} for name, scope in SCOPES.items()
    ]
    entries[-1]["expires"] = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    slow = {"name": "slow", "sha256": _digest("r-1").hex(), "scopes": ["caption"], "rate": 0.1, "concurrency": 1}
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [*entries, slow]}))
    return path


def token(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {SECRETS[name]}"),)


async def until(happened: Callable[[], bool]) -> None:
    """For what happens in the server while a call is in progress, or after it."""
    while not happened():  # noqa: ASYNC110  # the other side has no event to wait for
        await asyncio.sleep(0.01)


async def refusal(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def photo(data: bytes = b"photo") -> search_pb2.CaptionRequest:
    return search_pb2.CaptionRequest(photo=data)


def test_valid_key_is_let_in_and_its_name_is_known_inside(file: Path) -> None:
    async def run() -> None:
        async with serving(file) as server:
            answer = await server.search.Caption(photo(), metadata=token("captioner"), timeout=20)
            assert answer.query == "captioner"
            answer = await server.search.Search(search_pb2.SearchRequest(), metadata=token("searcher"), timeout=20)
            assert answer.query == "searcher"
            events = server.search.StreamSearch(search_pb2.SearchRequest(), metadata=token("chief"), timeout=20)
            assert [event.query or event.summary.query async for event in events] == ["chief", "chief"]
            infer = await server.kserve.ModelInfer(
                service_pb2.ModelInferRequest(), metadata=token("kserver"), timeout=20
            )
            assert infer.id == "kserver"

    asyncio.run(run())


def test_answer_does_not_say_what_is_wrong_with_a_key(file: Path) -> None:
    wrong: dict[str, Any] = {
        "none": None,
        "unknown": (("authorization", "Bearer s-2"),),
        "expired": token("old"),
        "empty": (("authorization", "Bearer "),),
        "another kind": (("authorization", f"Basic {SECRETS['chief']}"),),
        "two": (*token("chief"), *token("chief")),
        "another header": (("x-api-key", SECRETS["chief"]),),
        "looks like a JWT": (("authorization", "Bearer a.b.c"),),
    }

    async def run() -> None:
        async with serving(file) as server:
            found = {}
            for name, metadata in wrong.items():
                error = await refusal(server.search.Caption(photo(), metadata=metadata, timeout=20))
                found[name] = (error.code(), error.details())
            message = "a valid key is needed, as metadata `authorization: Bearer KEY`"
            assert found == dict.fromkeys(wrong, (Code.UNAUTHENTICATED, message))
            assert server.service.num_calls == 0

    asyncio.run(run())


def test_scopes_open_their_methods_only(file: Path) -> None:
    async def run() -> None:
        async with serving(file) as server:
            calls: dict[str, Callable[..., Any]] = {
                "caption": lambda **how: server.search.Caption(photo(), **how),
                "search": lambda **how: server.search.Search(search_pb2.SearchRequest(), **how),
                "stream": lambda **how: server.search.StreamSearch(search_pb2.SearchRequest(), **how).read(),
                "kserve": lambda **how: server.kserve.ModelReady(service_pb2.ModelReadyRequest(), **how),
                "admin": lambda **how: server.kserve.RepositoryIndex(service_pb2.RepositoryIndexRequest(), **how),
            }
            allowed: dict[str, set[str]] = {}
            refused: set[Any] = set()
            for name in ("searcher", "captioner", "kserver", "chief"):
                allowed[name] = set()
                for method, call in calls.items():
                    try:
                        await call(metadata=token(name), timeout=20)
                        allowed[name].add(method)
                    except grpc.aio.AioRpcError as error:
                        refused.add((error.code(), error.details()))
            assert refused == {(Code.PERMISSION_DENIED, "this key does not allow this method")}
            assert allowed == {
                "searcher": {"search", "stream"},
                "captioner": {"caption"},
                "kserver": {"kserve"},
                "chief": set(calls),
            }

    asyncio.run(run())


def test_health_needs_no_key_and_reflection_needs_any(file: Path) -> None:
    async def run() -> None:
        async with serving(file) as server:
            answer = await server.health.Check(health_pb2.HealthCheckRequest(), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watch = server.health.Watch(health_pb2.HealthCheckRequest(), timeout=20)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
            ask = [reflection_pb2.ServerReflectionRequest(list_services="")]
            error = await refusal(server.reflection.ServerReflectionInfo(iter(ask), timeout=20).read())
            assert error.code() is Code.UNAUTHENTICATED
            listed = await server.reflection.ServerReflectionInfo(
                iter(ask), metadata=token("captioner"), timeout=20
            ).read()
            assert listed.list_services_response.service

    asyncio.run(run())


def test_methods_that_do_not_exist_are_hidden_without_a_key(file: Path) -> None:
    async def run() -> None:
        async with serving(file) as server:
            unknown = server.channel.unary_unary("/captrieve.v1.SearchService/Nothing")
            assert (await refusal(unknown(b"", timeout=20))).code() is Code.UNAUTHENTICATED
            assert (
                await refusal(unknown(b"", metadata=token("searcher"), timeout=20))
            ).code() is Code.PERMISSION_DENIED
            assert (await refusal(unknown(b"", metadata=token("chief"), timeout=20))).code() is Code.UNIMPLEMENTED

    asyncio.run(run())


def test_call_without_a_key_is_refused_before_its_message_is_there(file: Path) -> None:
    async def run() -> None:
        async with serving(file) as server:
            never = asyncio.Event()

            async def message() -> AsyncIterator[bytes]:
                await never.wait()
                yield b""

            # The caller sends its message never; for gRPC a unary method is one with a single message.
            call = server.channel.stream_unary("/captrieve.v1.SearchService/Caption")(message(), timeout=20)
            assert (await refusal(call)).code() is Code.UNAUTHENTICATED

    asyncio.run(run())


def retry_seconds(error: grpc.aio.AioRpcError) -> float:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    return float(retry.retry_delay.ToTimedelta().total_seconds())


def test_quota_is_told_with_the_time_to_wait_and_other_keys_go_on(file: Path) -> None:
    async def run() -> None:
        async with serving(file) as server:
            await server.search.Caption(photo(), metadata=token("slow"), timeout=20)
            error = await refusal(server.search.Caption(photo(), metadata=token("slow"), timeout=20))
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert "rate of 0.1 per second" in (error.details() or "")
            assert 0 < retry_seconds(error) <= 10
            assert server.service.num_calls == 1
            assert (await server.search.Caption(photo(), metadata=token("captioner"), timeout=20)).query == "captioner"

    asyncio.run(run())


def test_concurrency_is_freed_when_a_call_ends_however_it_ends(file: Path) -> None:
    content = json.loads(file.read_text())
    content["keys"][-1]["rate"] = 1000
    file.write_text(json.dumps(content))

    async def run() -> None:
        quotas = Quotas(8, 20)
        async with serving(file, quotas=quotas) as server:

            def caption(data: bytes = b"photo") -> Any:
                return server.search.Caption(photo(data), metadata=token("slow"), timeout=20)

            server.service.hold.clear()
            first = caption()
            await until(lambda: server.service.num_calls > 0)
            error = await refusal(caption())
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert retry_seconds(error) == 0.5
            first.cancel()
            server.service.hold.set()
            await until(lambda: not quotas._uses["slow"].num_calls)  # the server learns of it a little later
            await caption()
            assert (await refusal(caption(b"bad"))).code() is Code.INVALID_ARGUMENT
            await caption()

    asyncio.run(run())


def test_revoked_key_is_refused_on_an_open_connection(file: Path) -> None:
    async def run() -> None:
        async with serving(file) as server:
            await server.search.Caption(photo(), metadata=token("captioner"), timeout=20)
            file.write_text(json.dumps({"keys": []}))  # noqa: ASYNC240
            error = await refusal(server.search.Caption(photo(), metadata=token("captioner"), timeout=20))
            assert error.code() is Code.UNAUTHENTICATED

    asyncio.run(run())


def test_streams_of_requests_pass(file: Path) -> None:
    async def run() -> None:
        async with serving(file) as server:
            requests = [service_pb2.ModelInferRequest(id=str(number)) for number in range(3)]
            answers = server.kserve.ModelStreamInfer(iter(requests), metadata=token("kserver"), timeout=20)
            assert [answer.infer_response.id async for answer in answers] == ["0", "1", "2"]

    asyncio.run(run())
