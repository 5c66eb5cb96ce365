# SPDX-License-Identifier: Apache-2.0
"""A model with a query head before a real Triton: from the encoder's third output to the answer's query."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from captioner.decoding import DecodingOptions
from captioner.model_contract import ContractError, ModelContract
from captioner.query import Query, words_of
from captioner.query_classes import QUERY_CLASSES_FILE
from search_api import search_pb2, search_pb2_grpc
from search_gateway.config import GatewayConfig
from search_gateway.deadline import Deadline
from search_gateway.engine.scheduler import CaptionScheduler
from search_gateway.providers.base import Candidate, ProviderTerms
from search_gateway.server import Gateway
from search_gateway.triton.client import TritonClient
from search_gateway.triton.embedded import EmbeddedTriton
from tests.conftest import MODELS, jpeg, running_triton
from tests.fakes.query_head_repository import CLASSES, expected_logprobs, write_repository_with_head

pytestmark = pytest.mark.triton

GARMENTS = [("Handbag", "Red"), ("Shirt", "Blue"), ("Tie", "Black"), ("Dress", "Green"), ("Shirt", "White")]


class Provider:
    """Finds one leather wallet, and notes for which queries."""

    name = "scripted"
    terms = ProviderTerms()

    def __init__(self, picture: bytes):
        self.picture = picture
        self.queries: list[str] = []

    async def find(
        self, query: Query, max_candidates: int, timeout_seconds: float, embedding: Any = None
    ) -> list[Candidate]:
        self.queries.append(query.text)
        return [Candidate(title="Wallet", url="", thumbnail_url="", source="shop", thumbnail=self.picture)]

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="needs the export extra (onnx)")
    folder = tmp_path_factory.mktemp("models")
    write_repository_with_head(folder)
    return folder


@pytest.fixture(scope="module")
def address(models: Path) -> Iterator[str]:
    """Of a Triton."""
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("THE REAL TRITON IS NOT TESTED: install the embedded extra (nvidia-pytriton)")
    with running_triton(EmbeddedTriton(models)) as server:
        yield server.grpc_address


@pytest.fixture
def provider(photo: bytes) -> Provider:
    return Provider(photo)


@pytest.fixture
def gateway(start_gateway: Callable[..., str], models: Path, address: str, provider: Provider) -> str:
    """HOST:PORT of a gateway."""
    return start_gateway(providers=[provider], model_repository=models, triton_address=(address,))


@pytest.fixture
def stub(gateway: str) -> Iterator[search_pb2_grpc.SearchServiceStub]:
    with grpc.insecure_channel(gateway) as channel:
        yield search_pb2_grpc.SearchServiceStub(channel)


def caption(stub: Any, data: bytes, **fields: Any) -> search_pb2.CaptionResponse:
    answer: search_pb2.CaptionResponse = stub.Caption(search_pb2.CaptionRequest(photo=data, **fields), timeout=30)
    return answer


def ends_with(text: str, query: str) -> bool:
    return " ".join(words_of(text)).lower().endswith(query)


def test_encoder_says_how_likely_each_query_is_where_it_is_asked(models: Path, address: str) -> None:
    contract = ModelContract.load(models)
    shape = (4, contract.image_height, contract.image_width, 3)
    pixels = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)

    async def use() -> None:
        inference = TritonClient(address, contract)
        scheduler = CaptionScheduler(inference, bos_token_id=contract.bos_token_id, eos_token_id=contract.eos_token_id)
        try:
            await inference.check_contract()
            encoded = await inference.encode(pixels, Deadline(30))
            assert encoded.query_logprobs is not None
            expected = expected_logprobs(encoded.embeddings)
            np.testing.assert_allclose(encoded.query_logprobs, expected, atol=1e-4)
            alone = await inference.encode(pixels, Deadline(30), embeddings_only=True)
            assert alone.query_logprobs is None
            assert alone.hidden_states is None
            np.testing.assert_allclose(alone.embeddings, encoded.embeddings, atol=1e-5)
            # Photos with and without captions share a call, and each has its own.
            first, embedding, last = await asyncio.gather(
                scheduler.caption(pixels[0], DecodingOptions(), Deadline(30)),
                scheduler.embed(pixels[1], Deadline(30)),
                scheduler.caption(pixels[2], DecodingOptions(num_beams=2), Deadline(30)),
            )
            np.testing.assert_allclose(first.query_logprobs, expected[0], atol=1e-4)
            np.testing.assert_allclose(last.query_logprobs, expected[2], atol=1e-4)
            np.testing.assert_allclose(embedding, encoded.embeddings[1], atol=1e-5)
        finally:
            await scheduler.close()
            await inference.close()

    asyncio.run(use())


def test_models_and_contract_must_agree_on_the_head(address: str) -> None:
    async def check() -> None:
        without = dataclasses.replace(ModelContract.load(MODELS), num_queries=0)
        inference = TritonClient(address, without)
        try:
            await inference.check_contract()
        finally:
            await inference.close()

    with pytest.raises(ContractError, match="query_logprobs: served .*, contract None"):
        asyncio.run(check())


@pytest.mark.parametrize("beams", [1, 4])
def test_caption_ends_with_the_likeliest_query(stub: Any, beams: int) -> None:
    queries = set()
    for garment, colour in GARMENTS:
        decoding = search_pb2.DecodingOptions(num_beams=beams)
        answer = caption(stub, jpeg(garment, colour, seed=5), decoding=decoding)
        assert answer.query_rule == search_pb2.QUERY_RULE_LIKELIEST_WORDS
        assert ends_with(answer.caption.text, answer.query)
        assert 0 < answer.no_product_probability < 1
        assert [word.text for word in answer.caption.words] == answer.caption.text.split()
        if beams == 1:
            assert answer.query in CLASSES[1:]
        queries.add(answer.query)
    assert len(queries) > 1, "all photos are named the same: the test shows little"


def test_other_rules_are_there_for_who_asks(stub: Any, photo: bytes) -> None:
    two = caption(stub, photo, query_rule=search_pb2.QUERY_RULE_LAST_TWO_WORDS)
    assert two.query_rule == search_pb2.QUERY_RULE_LAST_TWO_WORDS
    assert two.query == " ".join(words_of(two.caption.text)[-2:]).lower()
    full = caption(stub, photo, query_rule=search_pb2.QUERY_RULE_FULL_CAPTION)
    assert full.query_rule == search_pb2.QUERY_RULE_FULL_CAPTION
    assert [word.text for word in full.caption.words] == [word.text for word in two.caption.words]
    assert full.caption.log_probability == pytest.approx(two.caption.log_probability, rel=1e-4)


def test_search_looks_for_the_likeliest_query_and_reads_the_photo_as_the_head_does(
    stub: Any, provider: Provider, photo: bytes
) -> None:
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, max_results=3), timeout=30)
    assert provider.queries == [answer.query]
    assert answer.query_rule == search_pb2.QUERY_RULE_LIKELIEST_WORDS
    assert answer.readings[0].query == answer.query
    assert {one.query for one in answer.readings} == set(CLASSES[1:])
    assert sum(one.probability for one in answer.readings) == pytest.approx(1)
    last = answer.caption.words[-1]
    same = sum(
        one.probability for one in answer.readings if one.query.split()[-1] == answer.query.split()[-1]
    ) * (1 - answer.no_product_probability)  # fmt: skip
    assert last.probability == pytest.approx(same, rel=1e-4)
    assert ends_with(answer.caption.text, answer.query)


def test_given_words_have_no_rule(stub: Any, provider: Provider, photo: bytes) -> None:
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, query_override="leather wallet"), timeout=30)
    assert provider.queries == ["leather wallet"]
    assert answer.query_rule == search_pb2.QUERY_RULE_UNSPECIFIED
    assert answer.no_product_probability == 0
    assert not answer.HasField("word_override")
    assert [(one.query, one.probability) for one in answer.readings] == [("leather wallet", 1.0)]


def test_word_override_changes_the_likeliest_query(stub: Any, provider: Provider, photo: bytes) -> None:
    override = search_pb2.WordOverride(colour="green", thing="socks")
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, word_override=override), timeout=30)
    assert answer.query == provider.queries[0] == "green socks"
    assert answer.query_rule == search_pb2.QUERY_RULE_LIKELIEST_WORDS
    assert answer.word_override == override
    assert all({"green", "socks"} <= set(one.query.split()) for one in answer.readings)


def test_kserve_knows_the_rule(gateway: str, stub: Any, photo: bytes) -> None:
    image = triton.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[photo]], dtype=object))
    with triton.InferenceServerClient(gateway) as client:
        results = [
            client.infer("caption", [image], parameters=parameters).as_numpy("QUERY")[0, 0].decode()
            for parameters in ({}, {"query_rule": "likeliest_words"}, {"query_rule": "last_two_words"})
        ]
    own = caption(stub, photo)
    assert results[:2] == [own.query, own.query]
    two = caption(stub, photo, query_rule=search_pb2.QUERY_RULE_LAST_TWO_WORDS)
    assert results[2] == two.query


def test_gateway_does_not_start_with_a_list_that_does_not_fit(tmp_path: Path) -> None:
    write_repository_with_head(tmp_path)
    (tmp_path / QUERY_CLASSES_FILE).write_text('["", "shirt"]', encoding="utf-8")
    config = GatewayConfig(listen_address="127.0.0.1:0", admin_address="", model_repository=tmp_path)

    async def start() -> None:
        async with Gateway(config, providers=[Provider(b"")]):
            pass

    with pytest.raises(ContractError, match="has 2 queries, the model 7 by model_contract.json: export it again"):
        asyncio.run(start())
