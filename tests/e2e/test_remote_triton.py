# SPDX-License-Identifier: Apache-2.0
"""The gateway before a Triton that runs elsewhere, without the packages of the embedded one.

The Triton is a stand-in that answers what the gateway asks at start: whether models are ready, and what they look like.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from captioner.caption_tokenizer import TOKENIZER_FILE
from captioner.model_contract import ModelContract, TensorSpec
from search_gateway.healthcheck import is_serving
from tests.conftest import MODELS

# `python -m search_gateway` where these packages cannot be imported or found, as in an image without them.
WITHOUT_PACKAGES = """
import os, sys
from importlib.machinery import PathFinder
MISSING = {"pytriton", "onnxruntime", "onnx", "torch", "transformers"}
find = PathFinder.find_spec
def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] in MISSING else find(name, path, target)
PathFinder.find_spec = find_others
from search_gateway.__main__ import main
sys.exit(main([], os.environ))
"""


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves the contract's models in name only."""

    def __init__(self, contract: ModelContract):
        self._models = {spec.name: spec for spec in contract.models}

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.name in self._models)

    def ModelMetadata(self, request, context):
        def message(tensor: TensorSpec):
            return service_pb2.ModelMetadataResponse.TensorMetadata(
                name=tensor.name, datatype=tensor.datatype, shape=[-1, *tensor.shape]
            )

        spec = self._models[request.name]
        return service_pb2.ModelMetadataResponse(
            name=spec.name, inputs=map(message, spec.inputs), outputs=map(message, spec.outputs)
        )


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """What the gateway reads of a model repository: no models."""
    tokenizer = MODELS / TOKENIZER_FILE
    (tmp_path / TOKENIZER_FILE).write_bytes(tokenizer.read_bytes())
    contract = ModelContract(
        model="tiny", image_height=16, image_width=16, fit="pad", num_positions=5, hidden_size=8, num_layers=2,
        num_heads=2, head_size=4, max_tokens=6, num_candidates=8, max_beams=4, tokens_per_call=2, vocab_size=4096,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    contract.save(tmp_path)
    return tmp_path


@pytest.fixture
def stand_in(models: Path) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(StandIn(ModelContract.load(models)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def start(models: Path, triton_address: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPTRIEVE_")}
    environment |= {
        "CAPTRIEVE_LISTEN_ADDRESS": "127.0.0.1:0",
        "CAPTRIEVE_ADMIN_ADDRESS": "",
        "CAPTRIEVE_MODEL_REPOSITORY": str(models),
        "CAPTRIEVE_TRITON_ADDRESS": triton_address,
    }
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_PACKAGES], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_gateway_serves_without_the_packages_of_the_embedded_triton(models: Path, stand_in: str) -> None:
    gateway = start(models, stand_in)
    assert gateway.stderr is not None
    try:
        lines = []
        for line in gateway.stderr:
            lines.append(line)
            if "ready on" in line:
                break
        else:
            pytest.fail("".join(lines))
        address = line.split("ready on ")[1].split(": model")[0]
        assert is_serving(address)
    finally:
        gateway.terminate()
        gateway.communicate(timeout=100)
    assert gateway.returncode == 0


def test_without_an_address_it_says_which_package_is_missing(models: Path) -> None:
    (models / "vit_encoder").mkdir()
    (models / "vit_encoder" / "config.pbtxt").touch()
    _, text = start(models, "").communicate(timeout=200)
    assert "The embedded Triton needs pytriton: pip install 'nvidia-pytriton==" in text
    assert "Traceback" not in text
