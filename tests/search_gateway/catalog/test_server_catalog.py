# SPDX-License-Identifier: Apache-2.0
"""A gateway's catalogue on a server that dies, hangs and comes back, as the chain of providers sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from captioner.query import Query
from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.server_catalog import NO_ANSWER, UNREACHABLE
from search_gateway.deadline import Deadline
from search_gateway.providers.catalog import CatalogProvider
from search_gateway.providers.chain import ProviderChain, ProviderResult
from tests.fakes.catalogue_servers import CatalogueServer
from tests.search_gateway.catalog.conftest import Store
from tests.search_gateway.catalog.test_stores import MODEL, built, direction, product

FAST_SECONDS = 1.0  # on a loaded machine; the provider's timeout is longer


@pytest.fixture(params=["postgresql", "milvus"])
def store(request: pytest.FixtureRequest, store_of: Callable[[str], Store]) -> Store:
    return store_of(request.param)


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
        before = await search(chain)
        assert ([one.title for one in before.candidates], before.degraded) == (["Blue Shirt", "Red Dress"], [])
        await asyncio.to_thread(stop)
        try:
            began = time.monotonic()
            broken = await until(chain, lambda result: bool(result.degraded), 10)
            assert broken.candidates == []
            assert reasons(broken)[0].startswith("catalog: the catalogue")
            known = {f"catalog: {UNREACHABLE}", f"catalog: {NO_ANSWER}"}
            await until(chain, lambda result: set(reasons(result)) <= known, 20)
            asked = time.monotonic()
            assert set(reasons(await search(chain))) <= known
            assert time.monotonic() - asked < FAST_SECONDS, (
                "searches need not wait for a server that is known to be away"
            )
            [problem] = chain.problems()
            assert "secret" not in problem
            async with chain_of(address) as started_meanwhile:
                assert (await search(started_meanwhile)).degraded
                await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
                await asyncio.to_thread(go_on)
                await until(started_meanwhile, lambda result: not result.degraded, 30)
        except BaseException:
            await asyncio.to_thread(go_on)
            raise
        after = await until(chain, lambda result: not result.degraded, 30)
        assert [one.url for one in after.candidates] == [one.url for one in before.candidates]
        assert chain.problems() == []


@pytest.fixture
def shop(store: Store) -> CatalogAddress:
    return built(store.new_address(), [product("Blue Shirt"), product("Red Dress", angle=1)])


@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.campaign)])
def test_a_server_that_dies_degrades_answers_until_it_is_back(
    store: Store, shop: CatalogAddress, seconds: float
) -> None:
    server = store.server
    assert server is not None

    def go_on() -> None:
        server.kill()
        server.start()

    asyncio.run(outage(server, shop, server.kill, go_on, seconds))


@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.campaign)])
def test_a_server_that_hangs_degrades_answers_until_it_goes_on(
    store: Store, shop: CatalogAddress, seconds: float
) -> None:
    server = store.server
    assert server is not None
    asyncio.run(outage(server, shop, server.pause, server.resume, seconds))


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
