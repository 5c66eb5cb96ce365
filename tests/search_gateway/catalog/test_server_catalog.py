# SPDX-License-Identifier: Apache-2.0
"""A gateway's catalogue on a server that dies, hangs and comes back, as the chain of providers sees it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.model_contract import ModelContract, model_fingerprint
from captioner.query import Query
from search_gateway import __main__ as program
from search_gateway.catalog import server_catalog, stores
from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogError, CatalogModel, CatalogUnreachableError
from search_gateway.catalog.generations import model_key
from search_gateway.catalog.postgresql import schema
from search_gateway.catalog.server_catalog import NO_ANSWER, UNREACHABLE
from search_gateway.catalog_command import Embedder
from search_gateway.deadline import Deadline
from search_gateway.providers.catalog import CatalogProvider
from search_gateway.providers.chain import ProviderChain, ProviderResult
from tests.conftest import MODELS
from tests.fakes.catalogue_servers import CatalogueServer
from tests.search_gateway.catalog.conftest import Store
from tests.search_gateway.catalog.test_stores import MODEL, OTHER_MODEL, built, direction, product, titles, writer

FAST_SECONDS = 2.5  # on a loaded machine; the provider's timeout is longer


@pytest.fixture(params=["postgresql", "milvus"])
def store(request: pytest.FixtureRequest, store_of: Callable[[str], Store]) -> Store:
    return store_of(request.param)


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_catalog, "_LOOK_SECONDS", 0.5)
    monkeypatch.setattr(server_catalog, "_ANSWER_SECONDS", 1.0)


@asynccontextmanager
async def chain_of(address: CatalogAddress) -> AsyncIterator[ProviderChain]:
    provider = await asyncio.to_thread(CatalogProvider, address, MODEL.fingerprint)
    chain = ProviderChain([provider], timeout_seconds=3.0)
    try:
        yield chain
    finally:
        await chain.close()


async def search(chain: ProviderChain) -> ProviderResult:
    return await chain.find(Query.of("blue shirt"), None, 10, Deadline(20.0), direction(0))


def reasons(result: ProviderResult) -> list[str]:
    return [f"{one.part}: {one.reason}" for one in result.degraded]


async def until(chain: ProviderChain, condition: Callable[[ProviderResult], bool], seconds: float) -> ProviderResult:
    """Search until an answer is as expected; every search must have an answer."""
    deadline = time.monotonic() + seconds
    while not condition(result := await search(chain)):
        assert time.monotonic() < deadline, (result, chain.problems())
        await asyncio.sleep(0.05)
    return result


async def outage(
    server: CatalogueServer,
    address: CatalogAddress,
    stop: Callable[[], None],
    go_on: Callable[[], None],
    seconds: float,
) -> None:
    async with chain_of(address) as chain:
        before = await until(chain, lambda result: not result.degraded, 60)
        assert [one.title for one in before.candidates] == ["Blue Shirt", "Red Dress"]
        await asyncio.to_thread(stop)
        try:
            began = time.monotonic()
            broken = await until(chain, lambda result: bool(result.degraded), 60)
            assert broken.candidates == []
            assert reasons(broken)[0].startswith("catalog: the catalogue")
            known = {f"catalog: {UNREACHABLE}", f"catalog: {NO_ANSWER}"}
            await until(chain, lambda result: set(reasons(result)) <= known, 60)
            asked = time.monotonic()
            assert set(reasons(await search(chain))) <= known
            assert time.monotonic() - asked < FAST_SECONDS, (
                "searches need not wait for a server that is known to be away"
            )
            await until(chain, lambda _: bool(chain.problems()), 60)  # the next check of the server finds it
            [problem] = chain.problems()
            assert "secret" not in problem
            async with chain_of(address):
                asked = time.monotonic()
            assert time.monotonic() - asked < 10, "closing does not wait for the server"
            async with chain_of(address) as started_meanwhile:
                assert (await search(started_meanwhile)).degraded
                await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
                await asyncio.to_thread(go_on)
                await until(started_meanwhile, lambda result: not result.degraded, 100)
        except BaseException:
            await asyncio.to_thread(go_on)
            raise
        after = await until(chain, lambda result: not result.degraded, 100)
        assert [one.url for one in after.candidates] == [one.url for one in before.candidates]
        await until(chain, lambda _: not chain.problems(), 60)


@pytest.fixture
def shop(store: Store) -> CatalogAddress:
    return built(store.new_address(), [product("Blue Shirt"), product("Red Dress", angle=1)])


@pytest.mark.parametrize("seconds", [1, pytest.param(10, marks=pytest.mark.campaign)])
def test_a_server_that_dies_degrades_answers_until_it_is_back(
    store: Store, shop: CatalogAddress, seconds: float
) -> None:
    server = store.server
    assert server is not None

    def go_on() -> None:
        server.kill()
        server.start()

    asyncio.run(outage(server, shop, server.kill, go_on, seconds))


@pytest.mark.parametrize("seconds", [1, pytest.param(10, marks=pytest.mark.campaign)])
def test_a_server_that_hangs_degrades_answers_until_it_goes_on(
    store: Store, shop: CatalogAddress, seconds: float
) -> None:
    server = store.server
    assert server is not None
    asyncio.run(outage(server, shop, server.pause, server.resume, seconds))


class AwayReader:
    """A server that goes away while it is searched."""

    is_away = False

    def check(self, timeout_seconds: float) -> None:
        if self.is_away:
            raise CatalogUnreachableError("10.0.0.1 refuses")

    def close(self) -> None:
        pass


def test_answer_of_a_server_that_is_away_since_is_not_called_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_catalog, "_LOOK_SECONDS", 3600)
    reader: Any = AwayReader()
    catalog = server_catalog.ServerCatalog(reader, "shop")
    is_started, may_go_on = threading.Event(), threading.Event()

    def slow(_: object) -> str:
        is_started.set()
        may_go_on.wait(60)
        return "a shirt"

    running = catalog.submit(slow)
    assert is_started.wait(60)
    reader.is_away = True
    catalog._look()
    with pytest.raises(CatalogUnreachableError) as raised:
        catalog.submit(slow)
    assert raised.value.told == UNREACHABLE
    may_go_on.set()
    assert running.result(60) == ("a shirt", "")
    catalog.close()


def test_the_wrong_password_is_told_without_the_right_one(store_of: Callable[[str], Store]) -> None:
    store = store_of("postgresql")
    assert store.server is not None
    address = CatalogAddress.parse(f"postgresql://postgres:wr0ng@{store.server.address}/postgres?catalog=shop")
    provider = CatalogProvider(address, MODEL.fingerprint)
    try:
        [problem] = provider.problems()
        assert "cannot be reached" in problem
        assert "wr0ng" not in problem
    finally:
        asyncio.run(provider.close())


def test_the_command_builds_replaces_and_prunes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = store.new_address()
    assert store.server is not None
    if store.kind == "postgresql":
        text = f"postgresql://postgres@{store.server.address}/postgres?catalog={address.name}"
    else:
        text = str(address)
    environ = {"CAPTRIEVE_MODEL_REPOSITORY": str(MODELS), "CAPTRIEVE_CATALOG_PASSWORD": "secret"}
    model = CatalogModel(model_fingerprint(ModelContract.load(MODELS)))
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("blue hat", "red hat"):
        Image.new("RGB", (6, 8), name.split()[0]).save(photos / f"{name}.png")
    monkeypatch.setattr(Embedder, "embed", lambda self, pixels: np.ones((len(pixels), 256), np.float32))
    built(address, [product("Old")], OTHER_MODEL)
    assert program.main(["catalog", "build", str(photos), "--out", text], environ) == 0
    assert "2 added" in capsys.readouterr().out
    (photos / "red hat.png").unlink()
    assert program.main(["catalog", "build", str(photos), "--out", text], environ) == 0
    assert "1 unchanged, 1 removed" in capsys.readouterr().out
    assert program.main(["catalog", "build", str(photos), "--out", text, "--replace"], environ) == 0
    assert "1 added" in capsys.readouterr().out
    assert titles(address, "hat", model=model) == ["blue hat"]
    stores.serve(address, OTHER_MODEL).close()  # gateways of the other model go on
    with writer(address, CatalogModel("unfinished")) as unfinished:
        unfinished.add([product("Half")])
    assert program.main(["catalog", "prune", text], environ) == 0
    shown = capsys.readouterr().out
    assert "fashion-large" in shown
    assert "unfinished" in shown
    assert "secret" not in shown
    with pytest.raises(CatalogError, match="holds embeddings of fashion-small"):
        stores.serve(address, OTHER_MODEL)
    assert titles(address, "hat", model=model) == ["blue hat"]


def test_prune_needs_data_of_the_model_in_use(store: Store, shop: CatalogAddress) -> None:
    with pytest.raises(CatalogError, match="no data of the model in use"):
        stores.prune(shop, OTHER_MODEL)
    assert titles(shop, "blue") == ["Blue Shirt"]


def test_catalogues_whose_names_look_like_parts_of_others_are_apart(store: Store) -> None:
    one = store.new_address()
    key = model_key(MODEL.fingerprint)
    endings = ("", "_1", "_2", "_1_words", "_1_path_key", f"__{key}", f"__{key}__1")
    addresses = [replace(one, name=f"{one.name}{ending}") for ending in endings]
    for address in addresses:
        built(address, [product(f"Blue {address.name}")])
    with writer(one, is_anew=True) as anew:
        anew.add([product("Blue again")])
        anew.optimize()
        anew.publish()
    built(one, [product("Half")], OTHER_MODEL)
    stores.prune(one, MODEL)
    assert titles(one, "blue") == ["Blue again"]
    for address in addresses[1:]:
        assert titles(address, "blue") == [f"Blue {address.name}"]
        assert stores.prune(address, MODEL) == []


def test_catalogues_with_the_former_names_of_tables_go_on(
    store_of: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their tables were called NAME_1, NAME_2, ..., as another catalogue may be."""
    one = store_of("postgresql").new_address()
    with monkeypatch.context() as former:
        former.setattr(schema.Names, "table", lambda names, number: f"{names.former_table_prefix}{number}")
        built(one, [product("Blue Shirt")])
    built(one, [product("Blue Hat")])
    assert set(titles(one, "blue")) == {"Blue Shirt", "Blue Hat"}
    taken = replace(one, name=f"{one.name}_1")
    for use in (writer, lambda address: stores.serve(address, MODEL)):
        with pytest.raises(CatalogError, match="no catalogue, but perhaps the data of another one: choose another"):
            use(taken)
    with writer(one, is_anew=True) as anew:
        anew.add([product("Blue Dress")])
        anew.publish()
    assert titles(one, "blue") == ["Blue Dress"]
    built(taken, [product("Blue Sock")])
    assert titles(taken, "blue") == ["Blue Sock"]


def test_a_name_that_a_view_has_is_refused(store_of: Callable[[str], Store]) -> None:
    one = store_of("postgresql").new_address()
    view = replace(one, name=f"{one.name}_m{model_key(MODEL.fingerprint)}")
    built(view, [product("Blue Shirt")])
    with pytest.raises(CatalogError, match="choose another name"):
        built(one, [product("Blue Hat")])
    assert titles(view, "blue") == ["Blue Shirt"]
