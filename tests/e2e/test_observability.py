# SPDX-License-Identifier: Apache-2.0
"""A real gateway as operators see it: counters beside a caller's own, traces, the log, a real Prometheus, a drain."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common.free_port import free_port
from search_api import search_pb2, search_pb2_grpc
from tests.conftest import MODELS, ROOT
from tests.fakes.attacked_gateway import wait_until
from tests.fakes.monitoring import expressions, used
from tests.fakes.otlp_collector import OtlpCollector, ReceivedSpan, running_collector
from tests.search_gateway.observability.test_admin_server import ask

pytestmark = pytest.mark.triton

TRACEPARENT = "00-{trace}-{span}-01"


@dataclass
class RunningGateway:
    """`python -m search_gateway` in a process of its own."""

    process: subprocess.Popen[bytes]
    address: str
    admin: str
    log_file: Path

    @property
    def log(self) -> list[str]:
        return self.log_file.read_text(encoding="utf-8").splitlines()

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Sample name and label values -> value."""
        status, text = ask(self.admin, "/metrics")
        assert status == 200
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def handled(self, method: str) -> Counter[str]:
        """Code -> number of calls of a method of the search service."""
        found = self.metrics().items()
        return Counter(
            {key[1]: int(n) for key, n in found if key[0] == "grpc_server_handled_total" and key[2] == method and n}
        )


@contextlib.contextmanager
def running(
    folder: Path, command: Sequence[str] = (sys.executable, "-m", "search_gateway"), **environ: str
) -> Iterator[RunningGateway]:
    """Run a gateway within the block; keyword arguments are environment variables."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("CAPTRIEVE_", "OTEL_"))}
    environment |= {
        "CAPTRIEVE_LISTEN_ADDRESS": "127.0.0.1:0",
        "CAPTRIEVE_ADMIN_ADDRESS": "127.0.0.1:0",
        "CAPTRIEVE_MODEL_REPOSITORY": str(MODELS),
        "CAPTRIEVE_DUCKDUCKGO_PROXY": "http://127.0.0.1:9",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
        **environ,
    }
    log_file = folder / "gateway.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or "ready on " in log_file.read_text(encoding="utf-8"), 200)
        ready = re.search(r"ready on (\S+:\d+)", log_file.read_text(encoding="utf-8"))
        assert ready is not None, log_file.read_text(encoding="utf-8")
        admin = re.search(r"admin port on ([^\s\"]+:\d+)", log_file.read_text(encoding="utf-8"))
        yield RunningGateway(process, ready[1].rstrip(":"), admin[1] if admin else "", log_file)
    finally:
        process.terminate()
        try:
            process.wait(100)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpCollector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def gateway(collector: OtlpCollector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """With a Triton of its own, which must be told where to export spans."""
    if not (MODELS / "gpt2_step" / "1" / "model.onnx").is_file():
        pytest.skip("THE REAL TRITON IS NOT TESTED: model_repository has no models, run export.install_models")
    folder = tmp_path_factory.mktemp("gateway")
    with running(
        folder,
        CAPTRIEVE_LOG_FORMAT="json",
        CAPTRIEVE_PROVIDER_MONTHLY_BUDGET="duckduckgo=1000000",
        CAPTRIEVE_PROVIDER_BUDGET_FILE=str(folder / "budget.json"),
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="200",
    ) as gateway:
        yield gateway


@pytest.fixture
def stub(gateway: RunningGateway) -> Iterator[search_pb2_grpc.SearchServiceStub]:
    with grpc.insecure_channel(gateway.address) as channel:
        yield search_pb2_grpc.SearchServiceStub(channel)


STARTED = ("grpc_server_started_total", "Caption", "captrieve.v1.SearchService")


def code_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_counters_equal_what_the_caller_counted(gateway: RunningGateway, stub: Any, photo: bytes) -> None:
    request = search_pb2.CaptionRequest(photo=photo)
    before, started = gateway.handled("Caption"), gateway.metrics()
    seen: Counter[str] = Counter()
    for _ in range(5):
        seen[code_of(lambda: stub.Caption(request, timeout=30))] += 1
    for bad in (search_pb2.CaptionRequest(photo=b"no photo"), search_pb2.CaptionRequest()):
        seen[code_of(lambda bad=bad: stub.Caption(bad, timeout=30))] += 1
    with stopped_photo_workers(gateway):
        # No photo is decoded: the deadline ends one call, its caller another one.
        seen[code_of(lambda: stub.Caption(request, timeout=1.5))] += 1
        call = stub.Caption.future(request, timeout=100)
        wait_until(lambda: gateway.metrics()[STARTED] - started[STARTED] == 9)
        call.cancel()
        seen["CANCELLED"] += call.cancelled()
    assert seen == {"OK": 5, "INVALID_ARGUMENT": 2, "DEADLINE_EXCEEDED": 1, "CANCELLED": 1}
    # It learns a little later that callers are gone.
    wait_until(lambda: (gateway.handled("Caption") - before).total() == seen.total())
    assert gateway.handled("Caption") - before == seen
    assert gateway.metrics()[STARTED] - started[STARTED] == seen.total()


@contextlib.contextmanager
def stopped_photo_workers(gateway: RunningGateway) -> Iterator[None]:
    """Stop the processes that decode photos within the block; the gateway replaces those that hold a photo."""
    workers = [line for line in processes_of(gateway.process.pid) if "imaging.worker_main" in line]
    assert len(workers) == 4
    pids = [int(line.split()[0]) for line in workers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def processes_of(parent: int) -> list[str]:
    """Process id and command line of all descendants."""
    children: dict[int, list[int]] = {}
    commands: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            owner = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(owner, []).append(int(folder.name))
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    found, pending = [], [parent]
    while pending:
        for child in children.get(pending.pop(), []):
            found.append(f"{child} {commands[child]}")
            pending.append(child)
    return found


def test_metrics_say_what_the_engine_did(gateway: RunningGateway, stub: Any, photo: bytes) -> None:
    before = gateway.metrics()
    stub.Search(search_pb2.SearchRequest(photo=photo), timeout=30)
    after = gateway.metrics()

    def grown(*key: str) -> float:
        return after[key] - before[key]

    for stage in ("preprocess", "queue", "encode", "prefill", "decode", "query", "search"):
        assert grown("captrieve_stage_seconds_count", stage) == 1, stage
    assert grown("captrieve_encoder_batch_photos_sum") == 1
    assert grown("captrieve_step_batch_captions_sum") >= 1
    assert grown("captrieve_step_seconds_count") == grown("captrieve_step_batch_captions_count")
    assert grown("captrieve_triton_call_seconds_count", "vit_encoder", "ok") >= 1
    assert (
        grown("captrieve_provider_answers_total", "failed", "duckduckgo")
        + grown("captrieve_provider_answers_total", "not_asked", "duckduckgo")
        == 1
    )
    assert grown("captrieve_degraded_total", "duckduckgo") == 1
    assert after["captrieve_kv_slots", "1"] == 32
    assert after["captrieve_captions_running", "1"] == after["captrieve_captions_waiting", "1"] == 0
    status, text = ask(gateway.admin, "/metrics/triton")
    assert status == 200
    assert 'nv_inference_request_success{model="gpt2_step",replica="embedded",version="1"}' in text


# The embedded Triton runs prefill and the first step in the call of the encoder.
MODELS_OF_STAGES = {"vit_encoder": "encode"}
OUR_SPANS = {
    "captrieve.v1.SearchService/Search", "preprocess", "queue", "encode", "prefill", "decode", "query", "search",
    "thumbnails", "refine",
}  # fmt: skip


def test_one_trace_leads_from_the_caller_through_the_gateway_into_triton(
    gateway: RunningGateway, stub: Any, photo: bytes, collector: OtlpCollector
) -> None:
    """In six attempts: Triton 2.51 loses the spans of some calls, but what it sends must have the right parents."""
    root = "b7ad6b7169203331"

    def has_ours(spans: list[ReceivedSpan]) -> bool:
        return {span.name for span in spans} >= OUR_SPANS

    def is_complete(spans: list[ReceivedSpan]) -> bool:
        has_triton = [span.name for span in spans].count("InferRequest") == len(MODELS_OF_STAGES)
        return has_ours(spans) and has_triton and {span.name for span in spans} >= set(MODELS_OF_STAGES)

    for attempt in range(6):
        trace = f"0af7651916cd43dd8448eb211c80319{attempt}"
        metadata = (("traceparent", TRACEPARENT.format(trace=trace, span=root)),)
        stub.Search(search_pb2.SearchRequest(photo=photo), timeout=30, metadata=metadata)
        collector.wait(trace, has_ours, 60)
        spans = collector.wait(trace, is_complete, 5)
        ours = {span.name: span for span in spans if span.service == "captrieve"}
        assert set(ours) == OUR_SPANS
        assert len([span for span in spans if span.service == "captrieve"]) == len(ours), "one span for each stage"
        call = ours["captrieve.v1.SearchService/Search"]
        assert call.parent == root
        stages = [ours[name] for name in ("queue", "encode", "prefill", "decode", "query")]
        assert all(one.end <= other.start for one, other in itertools.pairwise(stages)), "a stage began before its time"
        for name, span in ours.items():
            assert call.start <= span.start <= span.end <= call.end, name
            if name != call.name:
                assert span.parent == call.id, name
        ids = {span.id: span for span in spans}
        for span in spans:
            if span.service == "captrieve-triton" and span.name in MODELS_OF_STAGES:
                if span.parent not in ids and not is_complete(spans):
                    continue  # lost, or not here yet
                request = ids[span.parent]
                assert request.name == "InferRequest"
                assert ids[request.parent].name == MODELS_OF_STAGES[span.name]
        if is_complete(spans):
            break
    else:
        raise AssertionError("Triton's spans never arrived")


def test_a_call_without_a_sampled_parent_makes_no_span_in_triton_of_another_trace(
    gateway: RunningGateway, stub: Any, photo: bytes, collector: OtlpCollector
) -> None:
    trace = "0af7651916cd43dd8448eb211c803100"
    metadata = (("traceparent", f"00-{trace}-b7ad6b7169203331-00"),)  # the caller does not sample it
    stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=30, metadata=metadata)
    assert not collector.wait(trace, bool, 1.5)


def test_each_line_of_a_request_has_its_id_and_trace_and_none_shows_what_it_was_about(
    gateway: RunningGateway, stub: Any, photo: bytes
) -> None:
    trace = "11f7651916cd43dd8448eb211c80319c"
    metadata = (("traceparent", TRACEPARENT.format(trace=trace, span="b7ad6b7169203331")), ("x-request-id", "mine-1"))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo), timeout=30, metadata=metadata)
    wait_until(lambda: any("search_gateway.access" in line and "mine-1" in line for line in gateway.log))
    lines = [json.loads(line) for line in gateway.log]
    mine = [line for line in lines if line.get("request_id") == "mine-1"]
    assert {line["trace_id"] for line in mine} == {trace}
    (access,) = [line for line in mine if line["logger"] == "search_gateway.access"]
    assert (access["method"], access["code"]) == ("/captrieve.v1.SearchService/Search", "OK")
    assert access["milliseconds"] > 0
    assert access["peer"].startswith("ipv4:127.0.0.1:")
    words = answer.query.lower().split()
    assert len(words) == 2
    assert not [line for line in gateway.log if all(word in line.lower() for word in words)]


def test_query_words_are_shown_at_debug_which_can_be_switched_on_and_off(
    gateway: RunningGateway, stub: Any, photo: bytes
) -> None:
    assert ask(gateway.admin, "/log-level", "PUT", b'{"level": "debug"}')[0] == 200
    answer = stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=30, metadata=(("x-request-id", "mine-2"),))
    gateway.process.send_signal(signal.SIGHUP)  # the level of the settings again
    wait_until(lambda: json.loads(ask(gateway.admin, "/log-level")[1]) == {"level": "info"})
    wait_until(lambda: any(answer.query in line for line in gateway.log))
    shown = [json.loads(line) for line in gateway.log if answer.query in line]
    assert [line["request_id"] for line in shown] == ["mine-2"]


def test_a_port_in_use_is_told_before_triton_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = subprocess.run(
            [sys.executable, "-m", "search_gateway"],
            env={
                **os.environ,
                "CAPTRIEVE_LISTEN_ADDRESS": "127.0.0.1:0",
                "CAPTRIEVE_ADMIN_ADDRESS": address,
                "CAPTRIEVE_MODEL_REPOSITORY": str(MODELS),
            },
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert answer.returncode == 3
    assert f"cannot listen on {address} for the admin port" in answer.stderr
    assert "CAPTRIEVE_ADMIN_ADDRESS" in answer.stderr
    assert "Triton" not in answer.stderr


def test_a_real_prometheus_scrapes_the_gateway_and_loads_the_alerts(
    gateway: RunningGateway, stub: Any, photo: bytes, tmp_path: Path
) -> None:
    if (prometheus := shutil.which("prometheus")) is None:
        pytest.skip("THE REAL PROMETHEUS IS NOT TESTED: apt-get install prometheus")
    stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=30)
    folder = ROOT / "deploy" / "prometheus"
    config = (folder / "prometheus.yml").read_text(encoding="utf-8")
    assert "gateway:8002" in config
    config = config.replace("gateway:8002", gateway.admin).replace("15s", "1s").replace("10s", "1s")
    (tmp_path / "prometheus.yml").write_text(config, encoding="utf-8")
    shutil.copy(folder / "alerts.yml", tmp_path)
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                prometheus,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        handled = value_of(address, 'sum(grpc_server_handled_total{grpc_method="Caption",grpc_code="OK"})', 100)
        assert handled == gateway.handled("Caption")["OK"]
        assert value_of(address, "captrieve_ready", 100) == 1
        assert value_of(address, 'sum(nv_inference_request_success{model="gpt2_step"})', 100) > 0
        rules = json.loads(ask(address, "/api/v1/rules")[1])["data"]["groups"]
        assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
        assert sum(len(group["rules"]) for group in rules) >= 8
    finally:
        process.terminate()
        process.wait(100)


def value_of(address: str, query: str, seconds: float) -> float:
    """Ask Prometheus until it has an answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, json.JSONDecodeError):
            _, text = ask(address, f"/api/v1/query?query={urllib.parse.quote(query)}")
            if result := json.loads(text)["data"]["result"]:
                return float(result[0]["value"][1])
        time.sleep(0.3)
    raise AssertionError(f"Prometheus has no {query}")


def test_drain_finishes_what_is_in_flight_and_stays_for_metrics(
    triton_address: str, tmp_path: Path, photo: bytes
) -> None:
    with (
        running(tmp_path, CAPTRIEVE_TRITON_ADDRESS=triton_address) as gateway,
        grpc.insecure_channel(gateway.address) as channel,
    ):
        stub = search_pb2_grpc.SearchServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="captrieve.v1.SearchService")
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=30)
        assert ask(gateway.admin, "/readyz")[0] == 200
        beams = search_pb2.DecodingOptions(num_beams=4)
        in_flight = [
            stub.Caption.future(search_pb2.CaptionRequest(photo=photo, decoding=beams), timeout=100) for _ in range(20)
        ]
        wait_until(lambda: gateway.metrics()[STARTED] == 21)
        assert ask(gateway.admin, "/drain", "POST")[0] == 202
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert [call.result().caption.text != "" for call in in_flight] == 20 * [True]
        assert code_of(lambda: stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=3)) in (
            "UNAVAILABLE",
            "DEADLINE_EXCEEDED",
        )
        status, text = ask(gateway.admin, "/readyz")
        assert (status, json.loads(text)["reasons"]) == (503, ["the gateway is draining"])
        assert ask(gateway.admin, "/livez")[0] == 200
        assert gateway.metrics()["captrieve_ready",] == 0
        assert gateway.handled("Caption")["OK"] == 21
        gateway.process.terminate()
        assert gateway.process.wait(100) == 0


def test_every_metric_and_label_of_dashboard_and_alerts_is_in_a_scrape(gateway: RunningGateway) -> None:
    scraped: dict[str, list[dict[str, str]]] = {"up": [{}]}
    for path, job in (("/metrics", "captrieve"), ("/metrics/triton", "captrieve-triton")):
        for family in text_string_to_metric_families(ask(gateway.admin, path)[1]):
            for sample in family.samples:
                # What Prometheus adds to each sample.
                scraped.setdefault(sample.name, []).append(sample.labels | {"job": job, "instance": gateway.admin})
    scraped["up"] = [{"job": "captrieve", "instance": gateway.admin}]
    wrong = []
    for place, expression in expressions():
        for metric, labels, fixed in used(expression):
            samples = scraped.get(metric, [])
            if not any(labels <= set(sample) and set(fixed) <= set(sample.items()) for sample in samples):
                wrong.append(f"{place}: {metric} with {sorted(labels)}, {fixed}")
    assert not wrong, wrong


def test_every_metric_is_in_the_list_of_the_runbook(gateway: RunningGateway) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `((?:captrieve|grpc_server)_\w+)", page, re.M))
    families = text_string_to_metric_families(ask(gateway.admin, "/metrics")[1])
    served = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
    assert listed == {name for name in served if not name.startswith("process_")}
