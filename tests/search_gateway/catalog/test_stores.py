# SPDX-License-Identifier: Apache-2.0
"""What every catalogue store does alike: a file, PostgreSQL with pgvector, and Milvus."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

from search_gateway.catalog import stores
from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import (
    NO_ATTRIBUTES,
    NO_FILTERS,
    Attributes,
    CatalogEntry,
    CatalogError,
    CatalogModel,
    CatalogOutdatedError,
    CatalogProduct,
    CatalogReader,
    CatalogRow,
    CatalogWriter,
    Filters,
    PhotoStamp,
)
from search_gateway.catalog.stores import ServedCatalog
from tests.search_gateway.catalog.conftest import Store

MODEL = CatalogModel("fashion-small/1234/64x64/pad", "fashion-small")
OTHER_MODEL = CatalogModel("fashion-large/5678/64x64/pad", "fashion-large")
TITLES = (
    "Turtle Check Men Navy Blue Shirt",
    "Puma Men Blue T-shirt",
    "Nike Women Red Tshirt",
    "Mango Women Blue Dress",
    "Ray-Ban Unisex Black Sunglasses",
    "Levi's Men's Off-White Jeans",
    "Peter England Men Blue and Red Ties",
    "Café Crème Women Sandals",
)
T = TypeVar("T")


def entry(title: str, path: str = "", sha256: str = "ab" * 32, attributes: Attributes = NO_ATTRIBUTES) -> CatalogEntry:
    stamp = PhotoStamp(10, 1_700_000_000_123_456_789, sha256)
    return CatalogEntry(path=path or f"{title}.jpg", title=title, stamp=stamp, attributes=attributes)


def product(title: str, path: str = "", angle: float = 0.0, attributes: Attributes = NO_ATTRIBUTES) -> CatalogProduct:
    """A product whose embedding points into a direction in the plane; its length is 5."""
    return CatalogProduct(
        entry=entry(title, path, attributes=attributes),
        width=60,
        height=80,
        embedding=direction(angle) * 5,
        thumbnail=b"\xff\xd8\0small " + title.encode("utf-8", "replace"),
    )


def direction(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle), 0, 0], np.float32)


def writer(address: CatalogAddress, model: CatalogModel = MODEL, *, is_anew: bool = False) -> CatalogWriter:
    return stores.open_for_writing(address, model, photos_folder=address.file.parent, is_anew=is_anew)


def built(address: CatalogAddress, products: Sequence[CatalogProduct], model: CatalogModel = MODEL) -> CatalogAddress:
    with writer(address, model) as store:
        store.add(products)
        store.optimize()
        store.publish()
    return address


@contextlib.contextmanager
def served(address: CatalogAddress, model: CatalogModel = MODEL) -> Iterator[ServedCatalog]:
    catalog = stores.serve(address, model)
    try:
        yield catalog
    finally:
        catalog.close()


def ask(address: CatalogAddress, search: Callable[[CatalogReader], T], model: CatalogModel = MODEL) -> T:
    with served(address, model) as catalog:
        return catalog.submit(search).result(30).found


def find(address: CatalogAddress, query: str, filters: Filters = NO_FILTERS, limit: int = 20) -> list[CatalogRow]:
    return ask(address, lambda reader: reader.find(query.split(), limit, 30.0, filters))


def titles(
    address: CatalogAddress, query: str, filters: Filters = NO_FILTERS, model: CatalogModel = MODEL
) -> list[str]:
    return [row.title for row in ask(address, lambda reader: reader.find(query.split(), 20, 30.0, filters), model)]


def nearest(
    address: CatalogAddress, angle: float, limit: int = 20, filters: Filters = NO_FILTERS, model: CatalogModel = MODEL
) -> list[tuple[str, float]]:
    found = ask(address, lambda reader: reader.similar(direction(angle), limit, 30.0, filters), model)
    return [(one.row.title, round(one.cosine, 3)) for one in found]


def paths(address: CatalogAddress, model: CatalogModel = MODEL) -> dict[str, str]:
    with writer(address, model) as store:
        return {one.path: one.title for one in store.entries()}


@pytest.fixture
def shop(store: Store) -> CatalogAddress:
    """A catalogue of the titles above."""
    return built(store.new_address(), [product(title, angle=i / 4) for i, title in enumerate(TITLES)])


def test_all_that_was_stored_comes_back(store: Store) -> None:
    attributes = Attributes(19.95, False, "Bücher & Töne")
    title = "Größe \N{SNOWMAN} 'quoted' \"twice\" %s {brace} \\ 100%"
    stored = product(title, "Ordner/ä b's.jpg", attributes=attributes)
    address = built(store.new_address(), [stored])
    with writer(address) as opened:
        assert opened.entries() == [stored.entry]
        assert opened.previous_entries() == []
    [row] = find(address, "grosse")
    assert (row.title, row.url, row.path, row.width, row.height) == (title, "", "Ordner/ä b's.jpg", 60, 80)
    assert row.thumbnail == stored.thumbnail
    assert row.embedding.dtype == np.float32
    assert row.embedding == pytest.approx([1, 0, 0, 0])  # normalised


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("t-shirt", {TITLES[1], TITLES[2]}),
        ("TEES", {TITLES[1], TITLES[2]}),
        ("shirts", {TITLES[0]}),
        ("dresses", {TITLES[3]}),
        ("tie", {TITLES[6]}),
        ("jean", {TITLES[5]}),
        ("rayban", {TITLES[4]}),
        ("ban sunglass", {TITLES[4]}),
        ("off-white", {TITLES[5]}),
        ("white", {TITLES[5]}),
        ("cafe", {TITLES[7]}),
        ("CAFÉ", {TITLES[7]}),
        ("zebra", set()),
        ("", set()),
        ("' | & ! <-> \\ \0 %s $1 --", set()),
        ("\ud800 " + "x" * 10_000, set()),
    ],
)  # fmt: skip
def test_words_are_found_in_all_their_forms(shared_shop: CatalogAddress, query: str, expected: set[str]) -> None:
    assert set(titles(shared_shop, query)) == expected


@pytest.fixture(scope="module")
def shops() -> dict[str, CatalogAddress]:
    return {}


@pytest.fixture
def shared_shop(
    store: Store, shops: dict[str, CatalogAddress], tmp_path_factory: pytest.TempPathFactory
) -> CatalogAddress:
    """The same for tests that leave it as it is."""
    if store.kind not in shops:
        store.folder = tmp_path_factory.mktemp("shop")
        shops[store.kind] = built(store.new_address(), [product(title, angle=i / 4) for i, title in enumerate(TITLES)])
    return shops[store.kind]


def test_titles_with_more_of_the_words_come_first(shared_shop: CatalogAddress) -> None:
    found = titles(shared_shop, "blue dress")
    assert found[0] == TITLES[3]
    assert set(found[1:]) == {TITLES[0], TITLES[1], TITLES[6]}
    assert [row.title for row in find(shared_shop, "blue dress", limit=1)] == found[:1]
    assert find(shared_shop, "blue", limit=0) == []


def test_nearest_embeddings_come_first(shared_shop: CatalogAddress) -> None:
    assert nearest(shared_shop, 0.5, 3)[0] == (TITLES[2], 1.0)
    assert {title for title, _ in nearest(shared_shop, 0.5, 3)} == {TITLES[1], TITLES[2], TITLES[3]}
    assert len(nearest(shared_shop, 0.5, 100)) == len(TITLES)
    with pytest.raises(ValueError, match="stored ones have 4"):
        ask(shared_shop, lambda reader: reader.similar(np.ones(3, np.float32), 3))
    with pytest.raises(ValueError, match="no direction"):
        ask(shared_shop, lambda reader: reader.similar(np.zeros(4, np.float32), 3))


def test_filters_hold_for_words_and_looks(store: Store) -> None:
    known = {
        "cheap": Attributes(5.0, True, "shirts"),
        "dear": Attributes(500.0, True, "shirts"),
        "sold out": Attributes(5.0, False, "ties"),
        "unknown": NO_ATTRIBUTES,
    }
    products = [product(f"blue {name}", angle=i, attributes=one) for i, (name, one) in enumerate(known.items())]
    address = built(store.new_address(), products)
    cases = {
        NO_FILTERS: {"cheap", "dear", "sold out", "unknown"},
        Filters(max_price=5.0): {"cheap", "sold out"},
        Filters(min_price=5.01): {"dear"},
        Filters(is_available=True): {"cheap", "dear"},
        Filters(is_available=False): {"sold out"},
        Filters(categories=("ties", "hats")): {"sold out"},
        Filters(categories=("' OR true --", 'a"b\\')): set(),
        Filters(min_price=1, max_price=10, is_available=True, categories=("shirts",)): {"cheap"},
    }
    for filters, names in cases.items():
        expected = {f"blue {name}" for name in names}
        assert set(titles(address, "blue", filters)) == expected, filters
        assert {title for title, _ in nearest(address, 0, filters=filters)} == expected, filters


def test_products_are_updated_moved_and_removed(shop: CatalogAddress) -> None:
    with writer(shop) as store:
        store.add([product("Green Hat", f"{TITLES[0]}.jpg", angle=1.5, attributes=Attributes(1.0))])
        store.move([(f"{TITLES[1]}.jpg", entry("Yellow Scarf", "new/place.jpg", "cd" * 32, Attributes(2.0)))])
        store.move([("unknown.jpg", entry("Nothing", "nothing.jpg"))])
        store.remove([f"{TITLES[2]}.jpg", "unknown.jpg"])
        stored = {one.path: one for one in store.entries()}
    assert len(stored) == len(TITLES) - 1
    assert stored["new/place.jpg"] == entry("Yellow Scarf", "new/place.jpg", "cd" * 32, Attributes(2.0))
    assert titles(shop, "navy") == titles(shop, "puma") == titles(shop, "nike") == []
    assert titles(shop, "hats", Filters(max_price=1)) == ["Green Hat"]
    assert titles(shop, "scarves", Filters(min_price=2)) == ["Yellow Scarf"]
    assert nearest(shop, 1.5, 2)[0][1] == 1.0
    [scarf] = find(shop, "scarf")
    assert scarf.thumbnail.endswith(TITLES[1].encode()), "its photo did not change"
    assert (TITLES[2], 1.0) not in nearest(shop, 0.5)


def test_a_path_belongs_to_one_product(shop: CatalogAddress) -> None:
    with writer(shop) as store, pytest.raises(CatalogError, match="cannot be used|belongs to another"):
        store.move([(f"{TITLES[0]}.jpg", entry("Twice", f"{TITLES[1]}.jpg"))])
    assert len(paths(shop)) == len(TITLES)


@pytest.mark.parametrize("bad", [np.zeros(4, np.float32), np.full(4, np.nan, np.float32), np.ones(3, np.float32)])
def test_bad_embeddings_are_refused_with_all_of_their_batch(shop: CatalogAddress, bad: np.ndarray) -> None:
    with writer(shop) as store:
        good = product("Good")
        wrong = CatalogProduct(entry=entry("Bad"), width=1, height=1, embedding=bad, thumbnail=b"")
        with pytest.raises(ValueError, match=r"no direction|stored ones have 4"):
            store.add([good, wrong])
        assert len(store.entries()) == len(TITLES)


def test_a_catalogue_that_does_not_exist_is_an_error(store: Store) -> None:
    with pytest.raises(CatalogError, match="does not exist: build it"):
        stores.serve(store.new_address(), MODEL)


def test_a_catalogue_of_another_model_is_refused(shop: CatalogAddress) -> None:
    with pytest.raises(CatalogOutdatedError, match="holds embeddings of fashion-small"):
        stores.serve(shop, OTHER_MODEL)
    with pytest.raises(CatalogOutdatedError, match="correct the contract"):
        stores.serve(shop, CatalogModel("fashion-small/1234/64x64/squash"))


def test_an_interrupted_build_goes_on(store: Store) -> None:
    address = store.new_address()
    with writer(address) as first:
        first.add([product(TITLES[0])])
    assert titles(address, "shirt") == [TITLES[0]], "a first build is searched while it goes on"
    with writer(address) as second:
        assert [one.title for one in second.entries()] == [TITLES[0]]
        second.add([product(TITLES[1])])
        second.optimize()
        second.publish()
    assert len(paths(address)) == 2


def test_two_builds_at_once_store_every_product_once(store: Store) -> None:
    """Both have the same work, as after a double click; they meet in most batches."""
    address = store.new_address()
    products = [product(f"Blue thing {i}", angle=i) for i in range(40)]
    start = threading.Barrier(2)

    def build(order: int) -> None:
        with writer(address) as opened:
            start.wait(30)
            for at in range(0, len(products), 10):
                opened.add(products[at : at + 10][::order])
            opened.remove(["Blue thing 0.jpg"])
            opened.optimize()
            opened.publish()

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(build, order) for order in (1, -1)]:
            done.result(120)
    assert paths(address) == {f"Blue thing {i}.jpg": f"Blue thing {i}" for i in range(1, 40)}
    assert len(nearest(address, 1, 100)) == len(find(address, "thing", limit=100)) == 39


def test_another_model_is_built_beside_and_an_interrupted_build_of_it_goes_on(shop: CatalogAddress) -> None:
    with served(shop) as old:
        with writer(shop, OTHER_MODEL) as first:
            assert first.entries() == []
            assert len(first.previous_entries()) == len(TITLES)
            first.add([product("Half", angle=1)])
        with pytest.raises(CatalogOutdatedError):
            stores.serve(shop, OTHER_MODEL)  # not yet
        assert titles(shop, "half") == []
        with writer(shop, OTHER_MODEL) as second:
            assert [one.title for one in second.entries()] == ["Half"]
            second.add([product("Whole", angle=2)])
            second.optimize()
            second.publish()
        found = ask(shop, lambda reader: reader.find(["whole"], 5), OTHER_MODEL)
        assert [row.title for row in found] == ["Whole"]
        # A gateway of the former model goes on until it is replaced, too.
        assert len(old.submit(lambda reader: reader.similar(direction(0), 20, 30.0)).result(30).found) == len(TITLES)


def test_a_catalogue_is_replaced_under_load_without_a_failed_search(shop: CatalogAddress) -> None:
    failures: list[BaseException] = []
    counts = {"old": 0, "new": 0}
    is_over = threading.Event()

    def search(catalog: ServedCatalog) -> None:
        while not is_over.is_set():
            try:
                found = catalog.submit(lambda reader: reader.similar(direction(0), 1, 30.0)).result(60).found
                words = catalog.submit(lambda reader: reader.find(["blue"], 1, 30.0)).result(60).found
                assert len(words) == 1
                counts["new" if found[0].row.title.startswith("New") else "old"] += 1
            except BaseException as failure:
                failures.append(failure)

    with served(shop) as catalog, ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            threads.submit(search, catalog)
        try:
            for generation in range(3):
                with writer(shop, is_anew=True) as store:
                    store.add([product(f"New {generation} blue {title}", f"{title}.jpg") for title in TITLES])
                    store.optimize()
                    store.publish()
            deadline = time.monotonic() + 30
            while not counts["new"] and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            is_over.set()
    assert not failures, failures[:3]
    assert min(counts.values()) > 0, counts
    assert paths(shop) == {f"{title}.jpg": f"New 2 blue {title}" for title in TITLES}


def test_only_data_that_are_built_anew_have_another_id(shop: CatalogAddress) -> None:
    """The record of finished blocks of a distributed build depends on it."""

    def build_id() -> str:
        with writer(shop) as store:
            return store.build_id()

    first = build_id()
    assert first != ""
    with writer(shop) as store:
        store.add([product("Another")])
        assert store.build_id() == first == build_id()
    with writer(shop, is_anew=True) as store:
        store.add([product("Another")])
        second = store.build_id()
        assert second not in ("", first)
        store.publish()
    assert build_id() == second


def test_a_category_may_be_long(shop: CatalogAddress) -> None:
    """A list of titles may have another column in its place."""
    words = np.random.default_rng(0).integers(10**9, size=1000)
    described = Attributes(category=" ".join(map(str, words)))
    with writer(shop) as store:
        store.add([product("Described blue shirt", attributes=described)])
        store.optimize()
    assert "Described blue shirt" in titles(shop, "described")


def test_moves_that_follow_each_other_lose_no_product(shop: CatalogAddress) -> None:
    one, other = (f"{title}.jpg" for title in TITLES[:2])
    before = paths(shop)
    with writer(shop) as store, contextlib.suppress(CatalogError):
        store.move([(one, entry("First", "spare.jpg")), (other, entry("Second", one))])
    done = {"spare.jpg": "First", one: "Second", **{f"{title}.jpg": title for title in TITLES[2:]}}
    assert paths(shop) in (before, done)


def test_categories_may_have_any_characters(store: Store) -> None:
    odd = ['a"b\\', "\\", r"\n", r"\u0041", "'", "\x1b", "\x7f", "\ufeff", "{a} %s $1", "😀", "a' or '1'=='1"]
    shop = built(
        store.new_address(),
        [product(f"Blue {place}", attributes=Attributes(category=one)) for place, one in enumerate(odd)],
    )
    with served(shop) as catalog:
        for place, one in enumerate(odd):
            filters = Filters(categories=(one, "none\n"))
            found = catalog.submit(lambda reader: reader.find(["blue"], 20, 30.0, filters)).result(30).found  # noqa: B023
            assert [row.title for row in found] == [f"Blue {place}"], one


def test_what_a_store_cannot_hold_is_known_before(store: Store) -> None:
    """One product must not cost the others of its batch. Random texts, since PostgreSQL compresses others."""
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), 70_000)
    text = "".join(letters)
    entries = [entry(f"Blue {number}", text[: 1300 * number]) for number in range(1, 5)]
    entries += [entry("Blue ü", "ü" * 1300), entry("Blue 4,096", text[:4096])]
    entries += [entry("Blue surrogate", "\ud800.jpg"), entry(f"Blue {text}", "title.jpg")]
    entries += [replace(entry("Blue address", "address.jpg"), url=f"https://a.example/{text[:65_517]}")]
    address = store.new_address()
    with writer(address) as opened:
        reasons = {one.title[:12]: opened.refusal(one) for one in entries}
        good = [one for one in entries if not opened.refusal(one)]
        opened.add([replace(product("Blue"), entry=one) for one in good])
        opened.optimize()
        assert {one.path for one in opened.entries()} == {one.path for one in good}
    assert len(find(address, "blue", limit=30)) == len(good)
    refused = {title for title, reason in reasons.items() if reason}
    assert (
        refused
        == {"Blue surrogate"[:12]}
        | {
            "file": set(),
            "postgresql": {"Blue 3", "Blue 4", "Blue 4,096"},
            "milvus": {"Blue 4", f"Blue {text}"[:12]},
        }[store.kind]
    )
