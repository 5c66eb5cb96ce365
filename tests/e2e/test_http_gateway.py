# SPDX-License-Identifier: Apache-2.0
"""The gateway over HTTP: a real Triton behind, curl and a generated campaign against its own description in front."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captrieve_client import SearchClient
from captrieve_client.reports import caption_record, search_record
from search_gateway.providers.base import ProviderTerms
from search_gateway.server import StartError
from tests.conftest import GatewayThread, jpeg

pytestmark = pytest.mark.triton

StartGateway = Callable[..., str]

# What differs between two answers to the same photo.
_CHANGING = ("timings_ms", "thumbnail_url")


@pytest.fixture
def start_web(start_gateway: StartGateway, catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Starts a gateway with an HTTP server; returns the addresses of gRPC and of HTTP."""
    started: list[GatewayThread] = []
    start = GatewayThread.start

    def noted(self: GatewayThread) -> str:
        started.append(self)
        return start(self)

    monkeypatch.setattr(GatewayThread, "start", noted)

    def make(**settings: Any) -> tuple[str, str]:
        defaults = {"web_address": "127.0.0.1:0", "catalog": catalogue, "provider_names": ("catalog",)}
        address = start_gateway(**{**defaults, **settings})
        return address, f"http://{started[-1].gateway.web_address}"

    return make


@pytest.fixture
def web(start_web: Callable[..., Any]) -> str:
    return str(start_web(min_visual_score=-1.0)[1])


class SlowProvider:
    """Finds nothing, after so long that every test is over."""

    name = "slow"
    terms = ProviderTerms()

    async def find(self, *_: Any, **__: Any) -> list[Any]:
        await asyncio.sleep(100)
        return []

    async def close(self) -> None:
        pass


def post(url: str, photo: bytes, content_type: str = "image/jpeg") -> tuple[int, Any]:
    request = urllib.request.Request(url, photo, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def without_changing(record: Any) -> Any:
    if isinstance(record, list):
        return [without_changing(one) for one in record]
    if isinstance(record, dict):
        return {name: without_changing(value) for name, value in record.items() if name not in _CHANGING}
    # Two runs may batch the photo differently, which changes the last bits.
    return pytest.approx(record, rel=1e-3, abs=2e-4) if isinstance(record, float) else record


def test_answers_are_those_of_grpc(start_web: Callable[..., Any], photo: bytes) -> None:
    address, url = start_web(min_visual_score=-1.0, min_semantic_score=0.2)
    with SearchClient(address) as client:
        answer = client.search(photo, max_results=3, num_beams=2, explain=True)
        caption = client.caption(photo)
    status, record = post(f"{url}/v1/search?max_results=3&num_beams=2&include_dropped=true", photo)
    assert status == 200
    assert record["results"]
    assert record["dropped"]
    of_client = json.loads(json.dumps(search_record("", answer, explain=True)))
    assert without_changing(record) == without_changing(of_client)
    status, record = post(f"{url}/v1/caption", photo)
    assert status == 200
    assert without_changing(record) == without_changing(json.loads(json.dumps(caption_record("", caption))))


def test_thumbnails_of_an_answer_are_pictures(web: str, photo: bytes) -> None:
    _, record = post(f"{web}/v1/search", photo)
    with urllib.request.urlopen(web + record["results"][0]["thumbnail_url"], timeout=30) as answer:
        picture = Image.open(io.BytesIO(answer.read()))
    assert picture.size[0] > 50


def test_region_is_what_is_searched(start_web: Callable[..., Any], photo: bytes) -> None:
    """Two garments in a photo: each half is captioned as if it were alone, over HTTP and gRPC."""
    address, url = start_web()
    halves = [Image.open(io.BytesIO(data)) for data in (photo, jpeg("Jeans", "Blue", seed=5))]
    both = Image.new("RGB", (halves[0].width * 2, halves[0].height))
    both.paste(halves[0], (0, 0))
    both.paste(halves[1].resize(halves[0].size), (halves[0].width, 0))
    file = io.BytesIO()
    both.save(file, "PNG")
    regions = ("0,0,0.5,1", "0.5,0,0.5,1")
    words = [post(f"{url}/v1/caption?region={region}", file.getvalue(), "image/png")[1]["query"] for region in regions]
    assert words[0] != words[1]
    assert "handbag" in words[0]
    with SearchClient(address) as client:
        assert client.caption(file.getvalue(), region=(0, 0, 0.5, 1)).query == words[0]
        assert client.search(file.getvalue(), region=(0.5, 0, 0.5, 1)).query == words[1]
    status, problem = post(f"{url}/v1/caption?region=0.5,0,0.6,1", file.getvalue(), "image/png")
    assert (status, problem["code"]) == (400, "INVALID_ARGUMENT")
    assert (
        problem["detail"] == "region ends at 0.5 + 0.6 = 1.1 of the photo's width: it must end within the photo, at 1"
    )
    status, problem = post(f"{url}/v1/caption?region=0,0,0.01,1", file.getvalue(), "image/png")
    assert (status, problem["detail"][:30]) == (400, "the photo has a region of 5 x ")


def test_edited_words_are_searched_without_captioning(web: str, photo: bytes) -> None:
    status, record = post(f"{web}/v1/search?query_override=blue+jeans", photo)
    assert (status, record["caption"], record["query"]) == (200, None, "blue jeans")
    assert "decode" not in record["timings_ms"]


def test_curl_searches_streams_and_is_refused(web: str, photo: bytes, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    file = tmp_path / "photo.jpg"
    file.write_bytes(photo)

    def run(*arguments: str, data: bytes | None = None) -> str:
        command = [curl, "--silent", "--show-error", "--max-time", "60", *arguments]
        return subprocess.run(command, input=data, capture_output=True, check=True, timeout=90).stdout.decode()

    form = json.loads(run("-F", f"photo=@{file}", "-F", "max_results=2", f"{web}/v1/search"))
    raw = json.loads(
        run("-H", "Content-Type: image/jpeg", "--data-binary", f"@{file}", f"{web}/v1/search?max_results=2")
    )
    assert form["photo"] == "photo.jpg"
    assert without_changing({**form, "photo": ""}) == without_changing(raw)
    chunked = ("-H", "Transfer-Encoding: chunked", "-H", "Content-Type: image/jpeg", "--data-binary", "@-")
    assert json.loads(run(*chunked, f"{web}/v1/search?max_results=2", data=photo))["query"] == raw["query"]
    events = run("-N", "-F", f"photo=@{file}", f"{web}/v1/search:stream").split("\n\n")
    assert [event.split("\n")[0] for event in events[:2]] == ["event: caption", "event: result"]
    assert events[-2].startswith("event: summary\n")
    # A body of more than a megabyte: curl asks before it sends it.
    large = run(
        "-D", "-", "-H", "Content-Type: image/jpeg", "--data-binary", "@-", f"{web}/v1/search", data=bytes(9_000_000)
    )
    assert "HTTP/1.1 413" in large
    assert "100 Continue" not in large
    assert '"code": "INVALID_ARGUMENT"' in large


def test_every_hostile_photo_is_a_problem(web: str, photo: bytes) -> None:
    for data, says in (
        (b"hello", "the photo (5 bytes) is not a JPEG, PNG, WebP or GIF file: convert it to one of these"),
        (b"", "the photo is empty (0 bytes): send the bytes of a JPEG, PNG, WebP or GIF file"),
        (photo[:300], "the photo (300 bytes) is damaged or cut short: send a complete JPEG, PNG, WebP or GIF file"),
    ):
        status, problem = post(f"{web}/v1/search", data)
        assert (status, problem["detail"], problem["code"]) == (400, says, "INVALID_ARGUMENT")


def test_full_server_says_when_to_come_back(start_web: Callable[..., Any], photo: bytes) -> None:
    """The same admission as gRPC: a request over gRPC takes the only place."""
    address, url = start_web(max_in_flight=1, providers=[SlowProvider()], catalog=None)
    with SearchClient(address) as client:
        events = client.stream_search(photo)
        next(events)
        request = urllib.request.Request(f"{url}/v1/search", photo, {"Content-Type": "image/jpeg"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        events.close()
    assert caught.value.code == 429
    assert int(caught.value.headers["Retry-After"]) >= 1
    assert json.load(caught.value)["code"] == "RESOURCE_EXHAUSTED"


def test_port_in_use_is_a_clear_sentence(start_web: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match=f"cannot listen on {address} for the page"):
            start_web(web_address=address)


def test_its_own_description_holds(web: str, photo: bytes) -> None:
    """schemathesis makes requests from the OpenAPI document, good ones and bad ones, and checks each answer."""
    schemathesis = pytest.importorskip("schemathesis", reason="THE DESCRIPTION IS NOT TESTED: install schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    photos = itertools.cycle([photo, None])  # None: what was generated
    statuses: dict[str, set[int]] = {}

    def called(case: Any) -> None:
        if (real := next(photos)) is not None and isinstance(case.body, dict) and "photo" in case.body:
            case.body["photo"] = real
        case.headers.pop("X-Timeout-Seconds", None)  # a short deadline passes
        response = case.call_and_validate(checks=checks, timeout=60)
        statuses.setdefault(case.operation.label, set()).add(response.status_code)

    limits = settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    for found in schemathesis.openapi.from_url(f"{web}/openapi.json").get_all_operations():
        modes = set(schemathesis.GenerationMode)
        if found.ok().method.upper() == "GET":
            modes.remove(schemathesis.GenerationMode.NEGATIVE)  # nothing of it can be wrong
        for mode in modes:
            limits(given(case=found.ok().as_strategy(generation_mode=mode))(called))()
    assert len(statuses) == 5
    assert statuses["POST /v1/search"] >= {200, 400}
    assert max(set().union(*statuses.values())) < 500
