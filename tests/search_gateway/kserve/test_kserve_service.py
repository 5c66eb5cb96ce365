# SPDX-License-Identifier: Apache-2.0
"""The service over a real channel, before a pipeline that fails or waits as a test wants it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

import captioner
from captioner.captions import Caption
from captioner.image_error import ImageError, ImageReason
from captioner.model_contract import ModelContract
from captioner.query import Query
from search_gateway.api.admission import Admission
from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.config import GatewayConfig
from search_gateway.errors import OverloadedError
from search_gateway.kserve.kserve_service import InferenceService
from search_gateway.kserve.protocol import SERVICE, service_pb2, service_pb2_grpc
from search_gateway.observability.call_interceptor import CallInterceptor
from search_gateway.observability.observer import Observer
from search_gateway.pipeline import CaptionAnswer
from tests.conftest import MODELS

SECRET = "/etc/secret of class Foo"

Request = service_pb2.ModelInferRequest


class ScriptedPipeline:
    """A photo is its own caption; some photos are told apart by their bytes."""

    contract = ModelContract.load(MODELS)

    def __init__(self) -> None:
        self.begun = self.ended = 0

    async def caption(self, data: bytes, *_: object) -> CaptionAnswer:
        self.begun += 1
        try:
            if data == b"wait":
                await asyncio.Event().wait()
            if data == b"bad":
                raise ImageError(ImageReason.UNREADABLE, "is not a JPEG", 0, None, "convert it")
            if data == b"bug":
                raise KeyError(SECRET)
            return CaptionAnswer(Caption(data.decode(), (), -1.0, True, ()), Query.of("query"), {"total": 1.0})
        finally:
            self.ended += 1


class Server:
    def __init__(self) -> None:
        self.pipeline = ScriptedPipeline()
        self.admission = Admission(max_in_flight=100, max_deadline_seconds=30)
        self.is_ready = True
        self.step_batches: dict[int, tuple[int, int]] = {}
        self.charged: Callable[[Any], Any] = contextlib.nullcontext
        self.channel: Any = None
        self.stub: Any = None


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    it = Server()
    server = grpc.aio.server(
        interceptors=[CallInterceptor(Observer()), ErrorInterceptor()], options=[("grpc.so_reuseport", 0)]
    )
    service = InferenceService(
        it.pipeline,  # type: ignore[arg-type]
        it.admission,
        GatewayConfig(),
        is_ready=lambda: it.is_ready,
        step_batches=lambda: it.step_batches,
        charged=lambda request: it.charged(request),
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as it.channel:
            it.stub = service_pb2_grpc.GRPCInferenceServiceStub(it.channel)
            yield it
    finally:
        await server.stop(None)


def ask(*photos: bytes, request_id: str = "", model: str = "caption") -> Request:
    request = Request(model_name=model, id=request_id)
    request.inputs.add(name="IMAGE", datatype="BYTES", shape=[len(photos), 1]).contents.bytes_contents.extend(photos)
    return request


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def until(happened: Callable[[], bool]) -> None:
    """For what happens in the server after a call has ended."""
    async with asyncio.timeout(100):
        while not happened():  # noqa: ASYNC110  # the other side has no event to wait for
            await asyncio.sleep(0.01)


def test_server_says_what_it_is_and_whether_it_is_ready() -> None:
    async def run() -> None:
        async with serving() as it:
            assert (await it.stub.ServerLive(service_pb2.ServerLiveRequest())).live
            told = await it.stub.ServerMetadata(service_pb2.ServerMetadataRequest())
            assert (told.name, told.version) == ("captrieve", captioner.__version__)
            assert "statistics" in told.extensions
            for it.is_ready in (True, False):
                assert (await it.stub.ServerReady(service_pb2.ServerReadyRequest())).ready is it.is_ready
                answer = await it.stub.ModelReady(service_pb2.ModelReadyRequest(name="search"))
                assert answer.ready is it.is_ready
            it.is_ready = True
            assert not (await it.stub.ModelReady(service_pb2.ModelReadyRequest(name="bert"))).ready
            assert not (await it.stub.ModelReady(service_pb2.ModelReadyRequest(name="search", version="2"))).ready
            index = await it.stub.RepositoryIndex(service_pb2.RepositoryIndexRequest())
            assert [(one.name, one.version, one.state) for one in index.models] == [
                ("caption", "1", "READY"),
                ("search", "1", "READY"),
            ]

    asyncio.run(run())


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics", "ModelInfer"])
def test_unknown_model_is_not_found(method: str) -> None:
    async def run() -> None:
        async with serving() as it:
            request = getattr(service_pb2, f"{method}Request")()
            setattr(request, "model_name" if method == "ModelInfer" else "name", "bert")
            error = await refused(getattr(it.stub, method)(request))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert error.details() == "there is no model 'bert'; this server has: caption, search"

    asyncio.run(run())


def test_every_other_method_is_unimplemented_and_says_so() -> None:
    served = {
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelInfer",
        "ModelStreamInfer", "ModelStatistics", "RepositoryIndex",
    }  # fmt: skip
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    others = [method for method in methods if method.name not in served]
    assert len(others) == 10

    async def run() -> None:
        async with serving() as it:
            for method in others:
                request = getattr(service_pb2, method.input_type.name)()
                error = await refused(getattr(it.stub, method.name)(request))
                assert error.code() is grpc.StatusCode.UNIMPLEMENTED
                assert error.details() == (
                    f"{method.name} is not supported: the models and settings of this server are fixed when it starts"
                )

    asyncio.run(run())


def test_statistics_count_answers_failures_and_photos() -> None:
    async def run() -> None:
        async with serving() as it:
            await it.stub.ModelInfer(ask(b"one", b"two"))
            await refused(it.stub.ModelInfer(ask(b"bad")))
            await refused(it.stub.ModelInfer(ask(b"wait"), timeout=1.0))
            await until(lambda: it.pipeline.ended == it.pipeline.begun)
            it.step_batches = {2: (5, 1000)}
            told = (await it.stub.ModelStatistics(service_pb2.ModelStatisticsRequest())).model_stats
            assert [one.name for one in told] == ["caption", "search"]
            caption, search = told
            assert (caption.inference_count, caption.execution_count) == (2, 1)
            assert caption.inference_stats.fail.count == 2
            assert [(one.batch_size, one.compute_infer.count) for one in caption.batch_stats] == [(2, 5)]
            assert search.inference_stats.success.count == 0
            assert not search.batch_stats
            request = service_pb2.ModelStatisticsRequest(name="search", version="1")
            assert [one.name for one in (await it.stub.ModelStatistics(request)).model_stats] == ["search"]

    asyncio.run(run())


def test_batch_that_does_not_fit_is_refused_whole_with_nothing_begun() -> None:
    async def run() -> None:
        async with serving() as it:
            with it.admission.admitted(98):
                error = await refused(it.stub.ModelInfer(ask(b"one", b"two", b"three")))
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert it.pipeline.begun == 0
                assert (await it.stub.ModelInfer(ask(b"one", b"two"))).outputs

    asyncio.run(run())


def test_timeout_parameter_shortens_the_deadline() -> None:
    deadlines = []

    async def run() -> None:
        async with serving() as it:

            async def caption(data: bytes, decoding: object, rule: object, deadline: Any, _: object) -> CaptionAnswer:
                deadlines.append(deadline.remaining_seconds())
                return CaptionAnswer(Caption("x", (), -1.0, True, ()), Query.of("query"), {"total": 1.0})

            it.pipeline.caption = caption  # type: ignore[method-assign]
            request = ask(b"one")
            await it.stub.ModelInfer(request)
            request.parameters["timeout"].int64_param = 2_000_000
            await it.stub.ModelInfer(request)
            request.parameters["timeout"].int64_param = 100_000_000
            await it.stub.ModelInfer(request)

    asyncio.run(run())
    assert deadlines == pytest.approx([30, 2, 30], abs=0.5)


def test_stream_answers_in_order_and_goes_on_after_errors(caplog: pytest.LogCaptureFixture) -> None:
    asked = [
        ask(b"one", request_id="a"),
        ask(b"bad", request_id="b"),
        ask(b"two", request_id="c", model="bert"),
        ask(b"bug", request_id="d"),
        ask(b"three", request_id="e"),
    ]

    async def run() -> list[Any]:
        async with serving() as it:
            return [answer async for answer in it.stub.ModelStreamInfer(iter(asked))]

    with caplog.at_level(logging.INFO):
        answers = asyncio.run(run())
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d", "e"]
    messages = [answer.error_message for answer in answers]
    assert messages[0] == messages[4] == ""
    assert messages[1] == "INVALID_ARGUMENT: the photo is not a JPEG: convert it"
    assert messages[2] == "NOT_FOUND: there is no model 'bert'; this server has: caption, search"
    assert messages[3].startswith("INTERNAL: the server failed on this request; its operator finds why under ")
    stream_id = messages[3].rpartition(" ")[2]
    assert len(stream_id) == 32
    assert "secret" not in messages[3]
    assert SECRET in caplog.text, "the operator finds out"
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)
    lines = [one.getMessage() for one in caplog.records if "/ModelStreamInfer " in one.getMessage()]
    assert len(lines) == 1, "one line for the stream"
    assert lines[0].endswith(" OK")


def test_message_that_is_none_is_answered_and_the_stream_goes_on() -> None:
    async def run() -> list[Any]:
        async with serving() as it:
            call = it.channel.stream_stream(
                f"/{SERVICE}/ModelStreamInfer",
                response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
            )
            messages = [ask(b"one").SerializeToString(), b"\x0a\xff\xff\xff\xff", ask(b"two").SerializeToString()]
            return [answer async for answer in call(iter(messages))]

    answers = asyncio.run(run())
    assert [bool(answer.infer_response.outputs) for answer in answers] == [True, False, True]
    assert answers[1].error_message.startswith("INVALID_ARGUMENT: the request is not a message of this method")


def test_each_message_of_a_stream_is_charged_and_a_refused_one_does_not_end_it() -> None:
    charged: list[str] = []

    def charge(request: Request) -> Any:
        charged.append(request.id)
        if request.id == "1":
            raise OverloadedError("this caller has used up its rate", 1.0)
        return contextlib.nullcontext()

    async def run() -> list[str]:
        async with serving() as it:
            it.charged = charge
            requests = [ask(b"photo", request_id=str(number)) for number in range(3)]
            return [answer.error_message async for answer in it.stub.ModelStreamInfer(iter(requests))]

    assert asyncio.run(run()) == ["", "RESOURCE_EXHAUSTED: this caller has used up its rate", ""]
    assert charged == ["0", "1", "2"]


def test_cancelled_stream_ends_its_work_and_gives_its_places_back() -> None:
    async def run() -> None:
        async with serving() as it:
            call = it.stub.ModelStreamInfer()
            for _ in range(20):
                await call.write(ask(b"wait"))
            await until(lambda: it.pipeline.begun >= 20)
            call.cancel()
            await until(lambda: it.pipeline.ended >= 20)
            assert it.pipeline.ended == it.pipeline.begun
            with it.admission.admitted(100):  # refused where a place is still taken
                pass

    asyncio.run(asyncio.wait_for(run(), 200))


def test_callers_that_leave_while_they_are_answered_are_no_failures(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with serving() as it:
            for _ in range(20):
                call = it.stub.ModelStreamInfer(iter([ask(b"x" * 100_000)] * 200))
                async for _ in call:
                    break
                call.cancel()

            def is_free() -> bool:
                with contextlib.suppress(OverloadedError), it.admission.admitted(100):
                    return it.pipeline.ended == it.pipeline.begun
                return False

            await until(is_free)
            # Served as ever.
            assert (await it.stub.ModelInfer(ask(b"one"))).outputs

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_stream_reads_no_more_than_may_be_in_work() -> None:
    async def run() -> int:
        async with serving() as it:
            call = it.stub.ModelStreamInfer(iter([ask(b"wait")] * 90))
            await until(lambda: it.pipeline.begun >= 64)
            for _ in range(20):  # time enough for it to read on
                await it.stub.ServerLive(service_pb2.ServerLiveRequest())
            begun = it.pipeline.begun
            call.cancel()
            return begun

    assert asyncio.run(asyncio.wait_for(run(), 200)) == 64
