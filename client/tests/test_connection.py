# SPDX-License-Identifier: Apache-2.0
"""How a connection behaves, with a real gRPC server on loopback."""

from __future__ import annotations

import time

import pytest
from grpc_health.v1 import health_pb2

from captrieve_client import SearchClient, ServerUnavailableError
from captrieve_client.messages import health_name

from scripted_service import ScriptedService, full_answer, serving


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
