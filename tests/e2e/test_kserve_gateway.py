# SPDX-License-Identifier: Apache-2.0
"""The gateway as Triton's own tools meet it: tritonclient and perf_analyzer, unchanged, with a real Triton behind."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import queue
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from tritonclient.utils import InferenceServerException

from captioner.query import Query
from search_api import search_pb2, search_pb2_grpc
from search_gateway.config import GatewayConfig
from search_gateway.kserve.model_statistics import STAGES
from search_gateway.kserve.protocol import SERVICE, service_pb2, service_pb2_grpc
from search_gateway.providers.base import Candidate
from search_gateway.server import Gateway
from tests.conftest import MODELS, ROOT, GatewayThread, jpeg
from tests.e2e.test_gateway import ScriptedProvider, candidate, rejected

pytestmark = pytest.mark.triton

StartGateway = Callable[..., str]
PERF_ANALYZER = ROOT.parent / "shared" / "tools" / "perf_analyzer"


@pytest.fixture
def photos() -> list[bytes]:
    wanted = [("Handbag", "Red"), ("Jeans", "Blue"), ("Watch", "Black")]
    return [jpeg(garment, colour, seed=5) for garment, colour in wanted]


@pytest.fixture
def address(start_gateway: StartGateway, photo: bytes) -> str:
    """A gateway whose search finds three pictures."""
    found = [
        candidate("Red handbag", photo),
        dataclasses.replace(
            candidate("Red leather handbag", jpeg("Handbag", "Red", seed=1)), url="https://shop.example/2"
        ),
        candidate("Broken handbag", b"no picture"),
    ]
    return start_gateway(providers=[ScriptedProvider(found)], min_visual_score=-1.0, min_semantic_score=0.0)


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as it:
        yield it


@pytest.fixture
def stub(address: str) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    """Without tritonclient's manners."""
    with grpc.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def image(*photos: bytes, kind: Any = triton, batch: bool = True) -> list[Any]:
    """The input of a request, as a user of tritonclient writes it."""
    array = np.array([[one] for one in photos] if batch else list(photos), dtype=object)
    tensor = kind.InferInput("IMAGE", list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array)
    return [tensor]


def texts(result: Any, name: str) -> list[str]:
    return [one.decode() for one in result.as_numpy(name).reshape(-1)]


def search_directly(address: str, request: search_pb2.SearchRequest) -> search_pb2.SearchResponse:
    with grpc.insecure_channel(address) as channel:
        return search_pb2_grpc.SearchServiceStub(channel).Search(request, timeout=30)


def caption_directly(address: str, photo: bytes, **decoding: Any) -> search_pb2.CaptionResponse:
    request = search_pb2.CaptionRequest(photo=photo, decoding=search_pb2.DecodingOptions(**decoding))
    with grpc.insecure_channel(address) as channel:
        return search_pb2_grpc.SearchServiceStub(channel).Caption(request, timeout=30)


def test_server_and_models_are_ready_and_described(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("caption")
    assert client.is_model_ready("search", "1")
    assert not client.is_model_ready("gpt2_step")
    assert client.get_server_metadata().name == "captrieve"
    assert [one.name for one in client.get_model_metadata("caption").outputs] == [
        "CAPTION", "QUERY", "LOG_PROBABILITY", "CONFIDENCE", "UNSURE_REASON",
    ]  # fmt: skip
    assert client.get_model_config("caption").config.max_batch_size == 32
    assert [one.name for one in client.get_model_repository_index().models] == ["caption", "search"]


def test_batch_of_photos_has_the_captions_of_search_service(
    client: triton.InferenceServerClient, address: str, photos: list[bytes]
) -> None:
    result = client.infer("caption", image(*photos), request_id="batch 1")
    direct = [caption_directly(address, one) for one in photos]
    assert texts(result, "CAPTION") == [one.caption.text for one in direct]
    assert texts(result, "QUERY") == [one.query for one in direct]
    assert result.as_numpy("LOG_PROBABILITY").shape == (3, 1)
    expected = [one.caption.log_probability for one in direct]
    assert result.as_numpy("LOG_PROBABILITY").reshape(-1).tolist() == pytest.approx(expected, rel=1e-5)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("batch 1", "caption", "1")


def test_search_has_the_results_of_search_service(
    client: triton.InferenceServerClient, address: str, photo: bytes
) -> None:
    result = client.infer("search", image(photo, batch=False))
    direct = search_directly(address, search_pb2.SearchRequest(photo=photo))
    assert len(direct.results) == 2
    assert texts(result, "CAPTION") == [direct.caption.text]
    assert texts(result, "QUERY") == [direct.query]
    assert texts(result, "PROVIDER") == ["scripted"]
    assert texts(result, "EMPTY_REASON") == [""]
    for output, field in (("TITLE", "title"), ("URL", "url"), ("IMAGE_URL", "image_url"),
                          ("THUMBNAIL_URL", "thumbnail_url"), ("SOURCE", "source"), ("LICENCE", "licence"),
                          ("ATTRIBUTION", "attribution")):  # fmt: skip
        assert texts(result, output) == [getattr(one, field) for one in direct.results]
    for output, field in (("SCORE", "score"), ("VISUAL_SCORE", "visual_score"), ("SEMANTIC_SCORE", "semantic_score")):
        expected = [getattr(one, field) for one in direct.results]
        assert result.as_numpy(output).tolist() == pytest.approx(expected, abs=1e-5)
    assert texts(result, "DEGRADED") == [f"{one.part}: {one.reason}" for one in direct.degraded]
    assert texts(result, "DEGRADED") == ["thumbnails: 1 of 3 thumbnails could not be used: 1 could not be read"]


def test_search_that_finds_nothing_says_why(client: triton.InferenceServerClient, photo: bytes) -> None:
    parameters = {"min_visual_score": 1.0, "query_override": "blue jeans"}
    result = client.infer("search", image(photo, batch=False), parameters={**parameters, "min_semantic_score": 1})
    assert texts(result, "TITLE") == []
    assert result.as_numpy("SCORE").shape == (0,)
    assert texts(result, "EMPTY_REASON")[0].startswith("scripted found 3 for 'blue jeans', but ")
    assert texts(result, "CAPTION") == [""], "the query was given"
    assert texts(result, "QUERY") == ["blue jeans"]


def test_every_stage_of_a_request_has_its_place_in_the_statistics(address: str, photo: bytes) -> None:
    stages = {one.stage for one in search_directly(address, search_pb2.SearchRequest(photo=photo)).timings}
    assert stages - {"total"} <= {stage for part in STAGES.values() for stage in part}


def test_parameters_are_those_of_search_proto(client: triton.InferenceServerClient, address: str, photo: bytes) -> None:
    parameters = {"num_beams": 4, "length_penalty": 0.5, "max_tokens": "12", "query_rule": "full_caption"}
    result = client.infer("caption", image(photo), parameters=parameters)
    direct = caption_directly(address, photo, num_beams=4, length_penalty=0.5, max_tokens=12)
    assert texts(result, "CAPTION") == [direct.caption.text]
    assert texts(result, "QUERY") == [direct.caption.text.lower()]
    one = client.infer("search", image(photo, batch=False), parameters={"max_results": 1, "provider": "scripted"})
    assert len(texts(one, "TITLE")) == 1


def test_only_the_outputs_asked_for_come_in_that_order(client: triton.InferenceServerClient, photo: bytes) -> None:
    outputs = [triton.InferRequestedOutput("QUERY"), triton.InferRequestedOutput("CAPTION")]
    response = client.infer("caption", image(photo), outputs=outputs).get_response()
    assert [one.name for one in response.outputs] == ["QUERY", "CAPTION"]
    assert len(response.raw_output_contents) == 2


def test_typed_contents_are_read_too(stub: Any, address: str, photo: bytes) -> None:
    request = service_pb2.ModelInferRequest(model_name="caption")
    request.inputs.add(name="IMAGE", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(photo)
    response = stub.ModelInfer(request, timeout=30)
    (length,) = struct.unpack_from("<I", response.raw_output_contents[0])
    text = response.raw_output_contents[0][4:].decode()
    assert len(text.encode()) == length
    assert text == caption_directly(address, photo).caption.text


def test_asynchronous_client_has_the_same_answer(address: str, photos: list[bytes]) -> None:
    async def run() -> list[str]:
        async with triton_aio.InferenceServerClient(address) as client:
            answers = await asyncio.gather(
                *(client.infer("caption", image(one, kind=triton_aio)) for one in photos * 4)
            )
            return [texts(answer, "CAPTION")[0] for answer in answers]

    assert asyncio.run(run()) == [caption_directly(address, one).caption.text for one in photos] * 4


def test_stream_answers_in_order_and_goes_on_after_a_bad_request(
    client: triton.InferenceServerClient, address: str, photos: list[bytes]
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    sent = [photos[0], photos[1], b"no photo", photos[2], photos[0]]
    for index, one in enumerate(sent):
        client.async_stream_infer(
            "caption", image(one), request_id=str(index), enable_empty_final_response=True,
            parameters={"num_beams": 4} if index == 0 else None,
        )  # fmt: skip
    got = [answers.get(timeout=30) for _ in sent]
    client.stop_stream()
    assert [None if error else result.get_response().id for result, error in got] == ["0", "1", None, "3", "4"]
    assert got[2][1].message().startswith("INVALID_ARGUMENT: ")
    good = [result for result, error in got if not error]
    assert all(one.get_response().parameters["triton_final_response"].bool_param for one in good)
    expected = [caption_directly(address, one).caption.text for one in (photos[1], photos[2], photos[0])]
    assert [texts(one, "CAPTION")[0] for one in good[1:]] == expected


def test_asynchronous_stream_carries_both_models(address: str, photo: bytes) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "search", "inputs": image(photo, kind=triton_aio, batch=False), "request_id": "s"}
        yield {"model_name": "caption", "inputs": image(photo, kind=triton_aio), "request_id": "c"}

    async def run() -> list[tuple[str, str]]:
        async with triton_aio.InferenceServerClient(address) as client:
            answers = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                answers.append((result.get_response().id, texts(result, "CAPTION")[0]))
            return answers

    words = caption_directly(address, photo).caption.text
    assert asyncio.run(run()) == [("s", words), ("c", words)]


def refused(call: Callable[[], Any]) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value


def test_bad_photo_of_a_batch_is_named(client: triton.InferenceServerClient, photos: list[bytes]) -> None:
    error = refused(lambda: client.infer("caption", image(photos[0], b"no photo at all", photos[1])))
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    assert error.message().startswith("photo 1 of 0 to 2: ")
    assert "is not a JPEG" in error.message()


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"num_beams": 9}, "num_beams is 9: it goes from 1 to 8"),
        ({"beams": 4}, "there is no parameter 'beams'; this model has: num_beams"),
        ({"provider": "altavista"}, "there is no provider 'altavista'; this server has: scripted"),
        ({"max_results": 1000}, "max_results is 1000: it goes from 1 to 100"),
        ({"length_penalty": 1e300}, "length_penalty is 1e+300: it goes from -2 to 4"),
        ({"query_override": " "}, "query_override is empty"),
    ],
)
def test_bad_parameter_is_an_invalid_argument(
    client: triton.InferenceServerClient, photo: bytes, parameters: dict[str, Any], says: str
) -> None:
    error = refused(lambda: client.infer("search", image(photo, batch=False), parameters=parameters))
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    assert says in error.message()


def test_photo_over_the_limit_is_an_invalid_argument(client: triton.InferenceServerClient) -> None:
    error = refused(lambda: client.infer("search", image(b"\xff\xd8" + b"x" * (8 * 2**20), batch=False)))
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    assert "8,388,610 bytes; the limit is 8,388,608" in error.message()


def test_unknown_model_is_not_found(client: triton.InferenceServerClient, photo: bytes) -> None:
    error = refused(lambda: client.infer("bert", image(photo)))
    assert error.status() == "StatusCode.NOT_FOUND"
    assert refused(lambda: client.get_model_config("bert")).status() == "StatusCode.NOT_FOUND"
    assert refused(lambda: client.infer("caption", image(photo), model_version="9")).status() == "StatusCode.NOT_FOUND"


def test_what_is_not_offered_is_unimplemented(client: triton.InferenceServerClient, photo: bytes) -> None:
    for call in (
        lambda: client.load_model("caption"),
        lambda: client.unload_model("caption"),
        lambda: client.register_system_shared_memory("mine", "/mine", 64),
        lambda: client.get_trace_settings(),
        lambda: client.update_log_settings({"log_info": True}),
        lambda: client.infer("caption", image(photo), outputs=[triton.InferRequestedOutput("CAPTION", class_count=2)]),
    ):
        assert refused(call).status() == "StatusCode.UNIMPLEMENTED"


def test_statistics_grow(client: triton.InferenceServerClient, photos: list[bytes]) -> None:
    before = client.get_inference_statistics("caption").model_stats[0]
    client.infer("caption", image(*photos))
    refused(lambda: client.infer("caption", image(b"no photo")))
    after = client.get_inference_statistics("caption").model_stats[0]
    assert after.inference_count == before.inference_count + 3
    assert after.execution_count == before.execution_count + 1
    told = after.inference_stats
    assert told.fail.count == before.inference_stats.fail.count + 1
    assert told.compute_input.ns > 0
    assert told.compute_infer.ns > 0
    parts = told.queue.ns + told.compute_input.ns + told.compute_infer.ns + told.compute_output.ns
    assert parts <= told.success.ns
    assert [one.name for one in client.get_inference_statistics().model_stats] == ["caption", "search"]


def test_timeout_of_a_request_is_told(client: triton.InferenceServerClient, photo: bytes) -> None:
    error = refused(lambda: client.infer("caption", image(photo), timeout=1))
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
    error = refused(lambda: client.infer("caption", image(photo), client_timeout=0.001))
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert client.infer("caption", image(photo), timeout=30_000_000).as_numpy("CAPTION").shape == (1, 1)


def test_full_server_refuses_with_retry_info(start_gateway: StartGateway, photo: bytes) -> None:
    entered, release = threading.Event(), threading.Event()

    class SlowProvider(ScriptedProvider):
        async def find(
            self, query: Query, max_candidates: int, timeout_seconds: float, embedding: Any = None
        ) -> list[Candidate]:
            entered.set()
            await asyncio.to_thread(release.wait, 20)
            return []

    address = start_gateway(providers=[SlowProvider()], max_in_flight=2)
    with grpc.insecure_channel(address) as channel:
        searches = search_pb2_grpc.SearchServiceStub(channel)
        first = searches.Search.future(search_pb2.SearchRequest(photo=photo), timeout=30)
        assert entered.wait(20)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="caption")
        contents = request.inputs.add(name="IMAGE", datatype="BYTES", shape=[2, 1]).contents
        contents.bytes_contents.extend([photo, photo])
        error = rejected(lambda: stub.ModelInfer(request, timeout=30))
        release.set()
        assert first.result().caption.text
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(error)
    detail = error_details_pb2.RetryInfo()
    assert status is not None
    assert status.details[0].Unpack(detail)
    assert 500 <= detail.retry_delay.ToMilliseconds() <= 1000  # spread, so that not all come back at once


def test_idle_stream_does_not_hold_up_the_end_of_the_server(triton_address: str, photo: bytes) -> None:
    config = GatewayConfig(
        listen_address="127.0.0.1:0",
        admin_address="",
        triton_address=(triton_address,),
        model_repository=MODELS,
        drain_seconds=600.0,
    )
    thread = GatewayThread(lambda: Gateway(config, providers=[ScriptedProvider()]))
    address = thread.start()
    with triton.InferenceServerClient(address) as client:
        answered = threading.Event()
        client.start_stream(lambda result, error: answered.set())
        image = triton.InferInput("IMAGE", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[photo]], np.object_))
        client.async_stream_infer("caption", [image])
        assert answered.wait(30)
        thread.stop()  # fails where it takes longer than a minute


def test_health_and_reflection_know_the_service(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        check = health_pb2.HealthCheckRequest(service=SERVICE)
        answer = health_pb2_grpc.HealthStub(channel).Check(check, timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        names, file = reflection.ServerReflectionInfo(iter(asked), timeout=5)
        assert SERVICE in [one.name for one in names.list_services_response.service]
        assert file.file_descriptor_response.file_descriptor_proto


def element(photo: bytes) -> dict[str, Any]:
    """A request of perf_analyzer's input file."""
    return {
        "IMAGE": {"content": {"b64": base64.b64encode(struct.pack("<I", len(photo)) + photo).decode()}, "shape": [1]}
    }


@pytest.fixture(scope="module")
def perf_analyzer() -> Path:
    """NVIDIA's program; where it was not used before, preparing it takes a minute, root and a package mirror."""
    if not PERF_ANALYZER.is_file():
        pytest.skip("perf_analyzer IS NOT TESTED: ../shared/tools/perf_analyzer is not there")
    if os.geteuid() != 0:
        pytest.skip("perf_analyzer IS NOT TESTED: its root directory can be entered by root only")
    try:
        done = subprocess.run([PERF_ANALYZER, "--version"], capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("perf_analyzer IS NOT TESTED: it could not be prepared within four minutes")
    if "Perf Analyzer Version" not in done.stdout + done.stderr:
        pytest.skip(f"perf_analyzer IS NOT TESTED: it cannot be prepared or run here: {done.stderr[-200:]}")
    return PERF_ANALYZER


@pytest.mark.parametrize("how", [[], ["--streaming"]], ids=["unary", "streaming"])
@pytest.mark.parametrize("model", ["caption", "search"])
def test_perf_analyzer_measures_both_models(
    perf_analyzer: Path, address: str, photos: list[bytes], tmp_path: Path, model: str, how: list[str]
) -> None:
    inputs = tmp_path / "photos.json"
    inputs.write_text(json.dumps({"data": [element(one) for one in photos]}))
    command = [str(perf_analyzer), "-m", model, "-u", address, "-i", "grpc", *how, "--input-data", f"/host{inputs}"]
    command += ["--concurrency-range", "2", "--request-count", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Request count: 12" in done.stdout
    assert "Successful request count: 12" in done.stdout, "it reads our statistics"
    assert "compute infer" in done.stdout
