# SPDX-License-Identifier: Apache-2.0
"""Tests of the provider `catalog`, on a real catalogue file."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from captioner.query import Query
from search_gateway.catalog.base import (
    Attributes,
    CatalogEntry,
    CatalogError,
    CatalogOutdatedError,
    CatalogProduct,
    Filters,
    PhotoStamp,
)
from search_gateway.catalog.store import CatalogStore
from search_gateway.catalog.vector_index import VectorIndex
from search_gateway.errors import ProviderError, ProviderTimeoutError
from search_gateway.providers.base import Candidate, Filtering, Provider, Reloadable, StaleCandidates
from search_gateway.providers.catalog import CatalogProvider

MODEL = "fashion-small:1234"


def product(title: str, url: str = "") -> CatalogProduct:
    stamp = PhotoStamp(10, 20, "ab" * 32)
    return CatalogProduct(
        entry=CatalogEntry(path=f"shop/{title}.jpg", title=title, url=url, stamp=stamp),
        width=60,
        height=80,
        embedding=np.array([3, 4], np.float32),
        thumbnail=b"a small picture",
    )


def write(path: Path, *products: CatalogProduct) -> None:
    with CatalogStore.open_for_writing(path, photos_folder=path.parent, model_fingerprint=MODEL) as store:
        store.add(products)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "catalogue.sqlite"
    write(
        path,
        product("Turtle Men Navy Blue Shirt"),
        product("Puma Men Blue T-shirt", "https://shop.example/2"),
        product("Nike Women Red Dress"),
    )
    return path


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[CatalogProvider]:
    provider = CatalogProvider(path, MODEL)
    try:
        yield provider
    finally:
        await provider.close()


def find(path: Path, query: str, max_candidates: int = 10) -> list[Candidate]:
    async def run() -> list[Candidate]:
        async with opened(path) as provider:
            return await provider.find(Query.of(query), max_candidates, 10.0)

    return asyncio.run(run())


def test_candidate_has_all_that_is_stored(path: Path) -> None:
    [first, *_] = find(path, "navy shirt")
    assert first.title == "Turtle Men Navy Blue Shirt"
    assert first.url == "shop/Turtle Men Navy Blue Shirt.jpg", "the server's folders are nobody's business"
    assert first.source == "catalog"
    assert first.thumbnail_url == first.image_url == ""
    assert (first.width, first.height) == (60, 80)
    assert first.thumbnail == b"a small picture"
    assert first.embedding == pytest.approx([0.6, 0.8])


def test_stored_url_is_preferred_to_the_file(path: Path) -> None:
    assert [found.url for found in find(path, "tee")] == ["https://shop.example/2"]


def test_best_candidates_come_first_and_no_more_than_asked_for(path: Path) -> None:
    titles = [found.title for found in find(path, "blue, t-shirt!")]
    assert titles == ["Puma Men Blue T-shirt", "Turtle Men Navy Blue Shirt"]
    assert [found.title for found in find(path, "blue t-shirt", 1)] == titles[:1]
    assert find(path, "blue t-shirt", 0) == []


@pytest.mark.parametrize("query", ["", "  ", "zebra", '"', "\0", "x" * 10_000, 'blue" NOT "shirt \ud800'])
def test_any_query_has_an_answer(path: Path, query: str) -> None:
    assert len(find(path, query)) <= 2


def test_empty_catalogue_finds_nothing(tmp_path: Path) -> None:
    write(tmp_path / "empty.sqlite")
    assert find(tmp_path / "empty.sqlite", "blue shirt") == []


def test_provider_keeps_the_protocol(path: Path) -> None:
    async def run() -> None:
        async with opened(path) as catalog:
            provider: Provider = catalog
            assert provider.name == "catalog"

    asyncio.run(run())


def test_what_is_added_meanwhile_is_found(path: Path) -> None:
    async def run() -> None:
        async with opened(path) as provider:
            assert await provider.find(Query.of("zebra"), 5, 10.0) == []
            write(path, product("Zebra Print Scarf"))
            assert len(await provider.find(Query.of("zebra"), 5, 10.0)) == 1

    asyncio.run(run())


def test_many_searches_at_once_get_their_own_answers(path: Path) -> None:
    async def run() -> None:
        async with opened(path) as provider:
            queries = ["navy", "tshirt", "dress", "zebra"] * 25
            answers = await asyncio.gather(*(provider.find(Query.of(query), 5, 10.0) for query in queries))
        assert [len(answer) for answer in answers] == [1, 1, 1, 0] * 25
        assert all("Dress" in answer[0].title for answer in answers[2::4])

    asyncio.run(run())


def test_unusable_catalogue_is_refused_at_start(path: Path, tmp_path: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(CatalogError, match="does not exist: build it"):
        CatalogProvider(tmp_path / "none.sqlite", MODEL)
    with pytest.raises(CatalogOutdatedError, match="not of the model in use"):
        CatalogProvider(path, "new:1")
    assert threading.active_count() == threads


def test_timeout_is_kept_and_the_provider_goes_on(path: Path) -> None:
    async def run() -> None:
        blocking = sqlite3.connect(path, isolation_level=None)
        async with opened(path) as provider:
            blocking.execute("BEGIN EXCLUSIVE")
            with pytest.raises(ProviderTimeoutError, match="no answer within 0.05 s") as raised:
                await provider.find(Query.of("blue shirt"), 5, 0.05)
            assert str(path.parent) not in str(raised.value)
            with pytest.raises(ProviderTimeoutError):
                await provider.find(Query.of("blue shirt"), 5, 0.0)
            blocking.execute("ROLLBACK")
            blocking.close()
            assert await provider.find(Query.of("blue shirt"), 5, 10.0)

    asyncio.run(run())


def test_cancelled_search_leaves_the_provider_usable(path: Path) -> None:
    async def run() -> None:
        async with opened(path) as provider:
            search = asyncio.create_task(provider.find(Query.of("blue shirt"), 5, 10.0))
            await asyncio.sleep(0)
            search.cancel()
            with pytest.raises(asyncio.CancelledError):
                await search
            assert await provider.find(Query.of("blue shirt"), 5, 10.0)

    asyncio.run(run())


def test_damage_is_told_without_paths(path: Path) -> None:
    def damage() -> None:
        data = bytearray(path.read_bytes())
        data[4096:] = b"\x55" * (len(data) - 4096)
        data[24:28] = b"\xff" * 4  # the change counter, else SQLite trusts what it has read
        path.write_bytes(data)

    async def run() -> None:
        async with opened(path) as provider:
            damage()
            # Whichever finds it first: the query, or the regular look at the file.
            told = "^the catalogue (cannot be read|is damaged)$|^the catalogue's file cannot be used$"
            with pytest.raises(ProviderError, match=told) as raised:
                await provider.find(Query.of("blue shirt"), 5, 10.0)
            assert isinstance(raised.value.__cause__, CatalogError)
            assert not isinstance(raised.value, ProviderTimeoutError)

    asyncio.run(run())


def test_closed_provider_says_so(path: Path) -> None:
    async def run() -> None:
        async with opened(path) as provider:
            await provider.close()
            with pytest.raises(ProviderError, match="the catalogue is closed"):
                await provider.find(Query.of("blue shirt"), 5, 10.0)

    asyncio.run(run())


def test_what_looks_like_the_photo_is_found_among_many_of_the_same_words(tmp_path: Path) -> None:
    """BM25 prefers short titles: without looking, the very product would not be among the candidates."""
    path = tmp_path / "shop.sqlite"
    rng = np.random.default_rng(1)
    wanted = np.array([1.0, 0.0], np.float32)
    others = [
        dataclasses.replace(product(f"Puma Blue Shirt {i}"), embedding=rng.normal(size=2).astype(np.float32))
        for i in range(60)
    ]
    title = "Turtle Check Men Navy Blue Shirt With Many More Words"
    write(path, *others, dataclasses.replace(product(title), embedding=wanted))

    async def run() -> list[Candidate]:
        async with opened(path) as provider:
            return await provider.find(Query.of("blue shirt"), 40, 10.0, wanted)

    found = asyncio.run(run())
    assert len(found) == 40
    assert title in [one.title for one in found]


def directions(cosines: list[float]) -> list[npt.NDArray[np.float32]]:
    return [np.array([cosine, np.sqrt(1 - cosine**2)], np.float32) for cosine in cosines]


def found_with_photo(path: Path, query: str, max_candidates: int) -> list[Candidate]:
    async def run() -> list[Candidate]:
        async with opened(path) as provider:
            return await provider.find(Query.of(query), max_candidates, 10.0, np.array([1.0, 0.0], np.float32))

    return asyncio.run(run())


@pytest.mark.parametrize("max_candidates", [1, 2, 5, 9, 20, 50])
def test_half_of_the_candidates_look_like_the_photo_and_say_so(tmp_path: Path, max_candidates: int) -> None:
    """Even places are shirts, and the later the more alike: those found twice are the last ones by words."""
    cosines = directions([place / 30 for place in range(30)])
    products = [
        dataclasses.replace(product(f"{'Shirt' if place % 2 == 0 else 'Bag'} {place}"), embedding=cosine)
        for place, cosine in enumerate(cosines)
    ]
    write(tmp_path / "shop.sqlite", *products)
    found = found_with_photo(tmp_path / "shop.sqlite", "shirt", max_candidates)
    titles = [one.title for one in found]
    assert len(set(titles)) == len(titles)
    most_alike = {one.entry.title for one in products[30 - min(30, math.ceil(max_candidates / 2)) :]}
    assert {one.title for one in found if one.is_nearest_neighbour} == most_alike
    named = [one.title for one in find(tmp_path / "shop.sqlite", "shirt", max_candidates)]
    assert len(titles) == min(max_candidates, len({*named, *most_alike})), "as many as asked for, where there are"
    by_words = [title for title in named if title in titles]
    assert titles[: len(by_words)] == by_words, "those of the words come first, wherever else they were found"
    assert titles[len(by_words) :] == sorted(titles[len(by_words) :], key=lambda one: -int(one.split()[1]))


def test_without_a_photo_nothing_is_a_nearest_neighbour(path: Path) -> None:
    assert not any(one.is_nearest_neighbour for one in find(path, "blue shirt"))
    assert all(one.is_nearest_neighbour for one in found_with_photo(path, "blue shirt", 10))


def test_embeddings_are_read_before_anybody_asks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = threading.Event()
    load = CatalogStore.load
    monkeypatch.setattr(CatalogStore, "load", lambda store: (load(store), read.set()))

    async def run() -> None:
        async with opened(path):
            assert await asyncio.to_thread(read.wait, 60)

    asyncio.run(run())


def test_embeddings_that_cannot_be_read_are_told_by_the_search(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise CatalogError("broken")

    monkeypatch.setattr(VectorIndex, "_read", fail)
    assert find(path, "navy shirt"), "words need none"
    with pytest.raises(ProviderError, match="^the catalogue(| is damaged|'s file) cannot be (read|used)$"):
        found_with_photo(path, "navy shirt", 5)


def test_answer_says_that_the_file_is_missing_and_reload_takes_another(path: Path, tmp_path: Path) -> None:
    write(tmp_path / "other.sqlite", product("Zebra Print Scarf"))

    async def run() -> None:
        async with opened(path) as provider:
            assert not isinstance(await provider.find(Query.of("blue shirt"), 5, 10.0), StaleCandidates)
            await asyncio.to_thread(path.unlink)
            provider._catalog.look()
            answer = await provider.find(Query.of("blue shirt"), 5, 10.0)
            assert isinstance(answer, StaleCandidates)
            assert len(answer) == 2
            assert answer.remark == "the catalogue's file is missing; what was opened before is searched"
            await asyncio.to_thread(os.replace, tmp_path / "other.sqlite", path)
            assert isinstance(provider, Reloadable)
            provider._catalog.look()
            answer = await provider.find(Query.of("zebra"), 5, 10.0)
            assert not isinstance(answer, StaleCandidates)
            assert [found.title for found in answer] == ["Zebra Print Scarf"]

    asyncio.run(run())


def test_filters_hold_for_one_request(tmp_path: Path) -> None:
    path = tmp_path / "priced.sqlite"
    entry = dataclasses.replace(product("Blue Hat").entry, attributes=Attributes(5.0))
    write(path, product("Blue Shirt"), dataclasses.replace(product("Blue Hat"), entry=entry))

    async def run() -> None:
        async with opened(path) as provider:
            assert isinstance(provider, Filtering)
            cheap = provider.filtered(Filters(max_price=9.0))
            photo = np.array([0.6, 0.8], np.float32)
            found = await cheap.find(Query.of("blue shirt"), 10, 10.0, photo)
            assert [one.title for one in found] == ["Blue Hat"]
            assert len(await provider.find(Query.of("blue shirt"), 10, 10.0, photo)) == 2

    asyncio.run(run())
