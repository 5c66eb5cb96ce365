# SPDX-License-Identifier: Apache-2.0
"""Several real gateways behind one client: they are killed, drained, added and given a new catalogue under load."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.common.free_port import free_port
from benchmarks.several_gateways import EDITIONS, Rehearsal, report_text
from captrieve_client import SearchClient, SearchClientError
from search_gateway.config import GatewayConfig
from search_gateway.server import Gateway
from tests.conftest import MODELS, ROOT, GatewayThread
from tests.e2e.test_several_tritons import NoProvider, until
from tests.fakes.dns_server import running_dns
from tests.search_gateway.observability.test_admin_server import ask

pytestmark = pytest.mark.triton

AGE_SECONDS = 3.0


@pytest.fixture(scope="module")
def record(triton_address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that happens to the gateways of the benchmark, with short phases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "client"))))
        folder = tmp_path_factory.mktemp("several_gateways")
        return Rehearsal(triton_address, MODELS, folder, seconds=2.0, num_callers=8).run()


def test_no_call_fails_and_every_answer_is_right(record: dict[str, Any]) -> None:
    names = [phase["name"] for phase in record["phases"]]
    for event in ("a is killed", "d is added", "b is drained and ended", "a comes back", "the catalogue is replaced"):
        assert event in names
    assert [(phase["failed"], phase["wrong"]) for phase in record["phases"]] == [([], [])] * len(names)
    assert min(phase["calls"] for phase in record["phases"]) >= 10, "so few calls show little"
    assert record["different_answers"] >= 6, "the answers are much the same: the test shows little"


def test_gateways_share_the_calls_and_a_new_one_gets_its_share_within_the_connection_age(
    record: dict[str, Any],
) -> None:
    shares = {phase["name"]: phase["share"] for phase in record["phases"]}
    assert {name: set(share) for name, share in shares.items()} == {
        "a, b and c serve": {*"abc"},
        "a is killed": {*"bc"},
        "d is added": {*"bcd"},
        "b is drained and ended": {*"cd"},
        "a comes back": {*"acd"},
        "the catalogue is replaced": {*"acd"},
        "a, c and d serve": {*"acd"},
    }
    for name, share in shares.items():
        assert min(share.values()) > 0.7 / len(share), name
    # On a busy machine, noticing it takes a second more.
    age = record["connection_age_seconds"]
    assert max(record["added_gets_share_seconds"], record["returned_gets_share_seconds"]) < age + 2


def test_all_gateways_answer_from_the_catalogue_that_replaced_the_former_one(record: dict[str, Any]) -> None:
    editions = {phase["name"]: phase["editions"] for phase in record["phases"]}
    calls = {phase["name"]: phase["calls"] for phase in record["phases"]}
    first, second = EDITIONS
    assert editions["a comes back"] == {first: calls["a comes back"], second: 0}
    assert editions["a, c and d serve"] == {first: 0, second: calls["a, c and d serve"]}
    assert record["catalogue_seconds"] < 15


def test_report_has_a_row_for_each_phase(record: dict[str, Any]) -> None:
    text = report_text(record | {"commit": "abc", "machine": "two cores", "load_average": 1.0})
    for phase in record["phases"]:
        assert f"| {phase['name']} | {phase['calls']} | 0 | 0 |" in text


@contextmanager
def calling(client: SearchClient, photo: bytes, num_threads: int = 4) -> Iterator[list[str]]:
    """Caption a photo without a pause; yields the errors, and stops at the end of the block."""
    errors: list[str] = []
    is_over = threading.Event()

    def call() -> None:
        while not is_over.is_set():
            try:
                client.caption(photo)
            except SearchClientError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def start(triton_address: str) -> Iterator[Callable[[str], GatewayThread]]:
    """Starts gateways that end connections after some seconds."""
    threads: list[GatewayThread] = []

    def start_gateway(address: str) -> GatewayThread:
        config = GatewayConfig(
            listen_address=address,
            admin_address="127.0.0.1:0",
            triton_address=(triton_address,),
            model_repository=MODELS,
            max_connection_age_seconds=AGE_SECONDS,
        )
        threads.append(GatewayThread(lambda: Gateway(config, providers=[NoProvider()])))
        threads[-1].start()
        return threads[-1]

    yield start_gateway
    for thread in threads:
        thread.stop()


def handled(thread: GatewayThread) -> int:
    text = ask(thread.gateway.admin_address, "/metrics")[1]
    lines = [line for line in text.splitlines() if line.startswith("grpc_server_handled_total{")]
    return sum(int(float(line.split()[-1])) for line in lines if '"Caption"' in line and '"OK"' in line)


def is_left_alone(thread: GatewayThread, other: GatewayThread) -> bool:
    """Whether it answers nothing while the other gateway answers twenty calls."""
    before, count = handled(thread), handled(other)
    until(lambda: handled(other) >= count + 20, "the other gateway answers")
    return handled(thread) == before


def test_a_gateway_that_is_new_in_the_dns_is_found_when_a_connection_ends(
    start: Callable[[str], GatewayThread], photo: bytes
) -> None:
    """As behind a headless service: a name whose addresses change."""
    port = free_port()
    first = start(f"127.0.0.1:{port}")
    with running_dns(["127.0.0.1"]) as dns, SearchClient(f"dns://{dns.address}/gateways.test:{port}") as client:
        client.caption(photo)
        with calling(client, photo) as errors:
            second = start(f"127.0.0.2:{port}")
            assert handled(second) == 0
            dns.addresses = ["127.0.0.1", "127.0.0.2"]
            # The client asks the DNS at most every five seconds.
            until(lambda: handled(second) > 0, "the new gateway is used")
            before = handled(first), handled(second)
            until(lambda: handled(first) + handled(second) >= sum(before) + 120, "120 calls are answered")
            counts = handled(first) - before[0], handled(second) - before[1]
            assert min(counts) > 0.35 * sum(counts)
            # All are replaced at once.
            dns.addresses = ["127.0.0.2"]
            assert ask(first.gateway.admin_address, "/drain", "POST")[0] == 202
            until(lambda: is_left_alone(first, second), "the drained gateway gets no calls any more")
            first.stop()
            last = handled(second)
            until(lambda: handled(second) >= last + 10, "the other one goes on")
    assert errors == []
    assert dns.num_questions >= 2
