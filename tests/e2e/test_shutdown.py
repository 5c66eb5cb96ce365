# SPDX-License-Identifier: Apache-2.0
"""A gateway whose clients do all they can to keep it from ending."""

from __future__ import annotations

import contextlib
import socket
import threading

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from search_api import search_pb2
from search_gateway.config import GatewayConfig
from search_gateway.server import SERVICE, Gateway
from tests.conftest import MODELS, GatewayThread
from tests.e2e.test_gateway import ScriptedProvider, candidate
from tests.fakes.unread_call import UnreadCall

pytestmark = pytest.mark.triton

STATUS = health_pb2.HealthCheckResponse
KEEPALIVE = [("grpc.keepalive_time_ms", 1000), ("grpc.keepalive_permit_without_calls", 1)]


def test_no_client_keeps_the_gateway_from_ending(triton_address: str, photo: bytes) -> None:
    config = GatewayConfig(
        listen_address="127.0.0.1:0",
        admin_address="",
        triton_address=(triton_address,),
        model_repository=MODELS,
        drain_seconds=1.0,
    )
    thread = GatewayThread(lambda: Gateway(config, providers=[ScriptedProvider([candidate("Red handbag", photo)])]))
    address = thread.start()
    search = search_pb2.SearchRequest(photo=photo).SerializeToString()
    named = health_pb2.HealthCheckRequest(service=SERVICE)
    with contextlib.ExitStack() as clients:
        for method, request, missing in (
            ("/grpc.health.v1.Health/Watch", b"", 0),
            ("/grpc.health.v1.Health/Watch", named.SerializeToString(), 0),
            (f"/{SERVICE}/StreamSearch", search, 0),
            (f"/{SERVICE}/Search", search, 1),
            ("/inference.GRPCInferenceService/ModelStreamInfer", b"", 10),
        ):
            call = clients.enter_context(UnreadCall(address, method, request, missing=missing))
            if not missing:
                call.wait_until_answered()
        host, _, port = address.rpartition(":")
        clients.enter_context(socket.create_connection((host, int(port))))  # which never says a word
        channel = clients.enter_context(grpc.insecure_channel(address, options=KEEPALIVE))
        watch = health_pb2_grpc.HealthStub(channel).Watch(named)
        assert next(watch).status == STATUS.SERVING
        client = clients.enter_context(triton.InferenceServerClient(address))
        answered = threading.Event()
        client.start_stream(lambda result, error: answered.set())
        image = triton.InferInput("IMAGE", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[photo]], np.object_))
        client.async_stream_infer("caption", [image])
        assert answered.wait(30)

        thread.stop()  # fails where it takes longer than a minute

        assert next(watch).status == STATUS.NOT_SERVING
        assert list(watch) == []
