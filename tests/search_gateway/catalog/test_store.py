# SPDX-License-Identifier: Apache-2.0
"""Tests of the catalogue file: what is found, what is refused, what a crash leaves behind."""

from __future__ import annotations

import itertools
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from search_gateway.catalog import database
from search_gateway.catalog.base import (
    CatalogEntry,
    CatalogError,
    CatalogModel,
    CatalogOutdatedError,
    CatalogProduct,
    CatalogTimeoutError,
    PhotoStamp,
)
from search_gateway.catalog.file_build import CatalogFileBuild
from search_gateway.catalog.store import CatalogStore

ROOT = Path(__file__).parents[3]
MODEL = "fashion-small:1234"
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


def product(title: str, path: str = "", embedding: npt.NDArray[np.float32] | None = None) -> CatalogProduct:
    return CatalogProduct(
        entry=CatalogEntry(path=path or f"{title}.jpg", title=title, stamp=PhotoStamp(10, 20, "ab" * 32)),
        width=60,
        height=80,
        embedding=np.array([3, 4], np.float32) if embedding is None else embedding,
        thumbnail=b"small " + title.encode("utf-8", "replace"),
    )


def writer(path: Path, model: str = MODEL) -> CatalogStore:
    return CatalogStore.open_for_writing(
        path, photos_folder=path.parent, model_fingerprint=model, model_name="fashion-small"
    )


def reader(path: Path, model: str = MODEL) -> CatalogStore:
    return CatalogStore.open_for_reading(path, model_fingerprint=model)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of the titles above; the tests that get it leave it as it is."""
    path = tmp_path_factory.mktemp("catalogue") / "catalogue.sqlite"
    with writer(path) as store:
        store.add([product(title) for title in TITLES])
    return path


@pytest.fixture
def store(path: Path) -> Iterator[CatalogStore]:
    with reader(path) as store:
        yield store


@pytest.fixture
def own_path(tmp_path: Path) -> Path:
    path = tmp_path / "own.sqlite"
    with writer(path) as store:
        store.add([product(title) for title in TITLES])
    return path


def found(store: CatalogStore, query: str, limit: int = 20) -> list[str]:
    return [row.title for row in store.find(query.split(), limit)]


def test_row_holds_what_was_stored(store: CatalogStore, path: Path) -> None:
    [row] = store.find(["navy"], 5)
    assert row.title == TITLES[0]
    assert row.path == f"{TITLES[0]}.jpg"
    assert (row.url, row.width, row.height) == ("", 60, 80)
    assert row.thumbnail == b"small " + TITLES[0].encode()
    assert row.embedding.dtype == np.float32
    assert row.embedding == pytest.approx([0.6, 0.8])  # normalised


def test_rows_with_both_words_come_before_rows_with_one(store: CatalogStore) -> None:
    titles = found(store, "blue dress")
    assert titles[0] == "Mango Women Blue Dress"
    assert set(titles[1:]) == {TITLES[0], TITLES[1], TITLES[6]}


def test_more_words_of_a_long_query_come_first(own_path: Path) -> None:
    with writer(own_path) as store:
        # BM25 alone prefers the rare word, and the short title.
        store.add([product("Zebra"), product("Blue Men Shirt of a very long name indeed")])
        titles = found(store, "zebra blue men shirt unknown")
        assert titles[:2] == [TITLES[0], "Blue Men Shirt of a very long name indeed"]
        assert titles.index("Zebra") > titles.index(TITLES[1])  # blue, men


def test_rows_fill_up_only_to_the_limit_and_in_the_same_order(store: CatalogStore) -> None:
    whole = found(store, "blue men shirt")
    assert len(whole) > 3
    for limit in range(len(whole) + 1):
        assert found(store, "blue men shirt", limit) == whole[:limit]
    assert found(store, "blue", -1) == []


@pytest.mark.parametrize("spelling", ["t-shirt", "Tshirts", "TEE", "t shirt", "T-Shirts"])
def test_t_shirts_are_found_by_any_spelling(store: CatalogStore, spelling: str) -> None:
    assert set(found(store, spelling)) == {TITLES[1], TITLES[2]}


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("shirts", TITLES[0]),
        ("dresses", TITLES[3]),
        ("tie", TITLES[6]),
        ("jean", TITLES[5]),
        ("rayban", TITLES[4]),
        ("ray-ban", TITLES[4]),
        ("ban sunglass", TITLES[4]),
        ("off-white", TITLES[5]),
        ("white", TITLES[5]),
        ("levis", TITLES[5]),
        ("cafe", TITLES[7]),
        ("CAFÉ", TITLES[7]),
    ],
)
def test_a_word_is_found_in_its_other_forms(store: CatalogStore, query: str, title: str) -> None:
    assert found(store, query) == [title]


def test_a_shorter_title_with_the_same_words_is_better(own_path: Path) -> None:
    with writer(own_path) as store:
        store.add([product("Pink Sari with Gold Border and Blouse Piece"), product("Pink Sari")])
        assert found(store, "pink sari")[0] == "Pink Sari"


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(), max_size=5))
@example(words=['"'])
@example(words=['""" OR "blue'])
@example(words=["*", "b*"])
@example(words=["NEAR(blue", "shirt,", "5)"])
@example(words=["-blue"])
@example(words=["words", ":", "blue"])
@example(words=["{words} : blue", "^blue", "+"])
@example(words=["AND", "OR", "NOT"])
@example(words=["\0", "bl\0ue"])
@example(words=["\ud800", "\U0001df00", "शर्ट"])
@example(words=["'; DROP TABLE products; --"])
@example(words=["x" * 10_000])
@example(words=["a-" * 5_000])
@example(words=["(" * 10_000])
@example(words=['"' * 9_999])
@example(words=[""])
@example(words=[])
def test_no_query_is_an_error(store: CatalogStore, words: list[str]) -> None:
    assert len(store.find(words, 20)) <= len(TITLES)


@pytest.mark.parametrize(
    "query",
    ["NOT blue", "blu*", "words:zebra OR zebra", "-zebra", "^zebra", "NEAR(zebra sock)", '"zebra'],
)
def test_operators_are_only_words(store: CatalogStore, query: str) -> None:
    expected = found(store, "blue") if query == "NOT blue" else []
    assert found(store, query) == expected


def test_odd_titles_are_stored_and_found(own_path: Path) -> None:
    with writer(own_path) as store:
        store.add([product("Zebra\0 \ud800\nPrint", "odd.jpg"), product("", "none.jpg")])
    with reader(own_path) as store:
        assert found(store, "zebra print") == ["Zebra ? Print"]
        assert len(store) == len(TITLES) + 2


def test_a_product_of_the_same_photo_takes_the_place_of_the_old_one(own_path: Path) -> None:
    with writer(own_path) as store:
        store.add([product("Green Scarf", f"{TITLES[0]}.jpg")])
        assert len(store) == len(TITLES)
        assert found(store, "navy") == []
        assert found(store, "scarves") == ["Green Scarf"]


def test_move_in_place_changes_title_and_stamp_and_keeps_the_embedding(own_path: Path) -> None:
    stamp = PhotoStamp(11, 22, "cd" * 32)
    changed = CatalogEntry(path=f"{TITLES[0]}.jpg", title="Green Scarf", url="https://shop.example/1", stamp=stamp)
    with writer(own_path) as store:
        store.move([(changed.path, changed)])
        assert changed in store.entries()
        assert found(store, "navy") == []
        [row] = store.find(["green"], 5)
        assert row.url == "https://shop.example/1"
        assert row.embedding == pytest.approx([0.6, 0.8])


def test_removed_products_are_not_found(own_path: Path) -> None:
    with writer(own_path) as store:
        store.remove([f"{TITLES[0]}.jpg", "never there.jpg"])
        store.optimize()
        assert found(store, "navy") == []
        assert len(store) == len(store.entries()) == len(TITLES) - 1


def test_add_stores_all_or_nothing(own_path: Path) -> None:
    with writer(own_path) as store:
        with pytest.raises(ValueError, match="3 numbers, but the stored ones have 2"):
            store.add([product("Zebra One"), product("Zebra Two", "", np.ones(3, np.float32))])
        for useless in ([0, 0], [np.nan, 1], [np.inf, 1]):
            with pytest.raises(ValueError, match="no direction"):
                store.add([product("Zebra", "", np.array(useless, np.float32))])
        assert found(store, "zebra") == []
        store.add([product("Zebra Three")])
        assert found(store, "zebra") == ["Zebra Three"]


def test_similar_orders_by_cosine_and_sees_changes_of_others(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    photo = rng.normal(size=8).astype(np.float32)
    with writer(path) as writing, reader(path) as reading:
        assert reading.similar(photo, 3) == []
        writing.add([product(f"item {n}", "", vector) for n, vector in enumerate(vectors)])
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(photo)
        cosines = vectors @ photo / lengths
        order = np.argsort(-cosines)[:10]
        for store in (writing, reading):
            hits = store.similar(photo, 10)
            assert [hit.row.title for hit in hits] == [f"item {n}" for n in order]
            assert [hit.cosine for hit in hits] == pytest.approx(cosines[order], abs=1e-6)
            assert store.similar(photo, 0) == []
        writing.add([product("the photo itself", "", photo)])
        writing.remove([f"item {order[0]}.jpg"])
        for store in (writing, reading):
            titles = [hit.row.title for hit in store.similar(photo, 2)]
            assert titles == ["the photo itself", f"item {order[1]}"]
            assert len(store.similar(photo, 1000)) == 50
        with pytest.raises(ValueError, match="3 numbers, but the stored ones have 8"):
            reading.similar(np.ones(3, np.float32), 5)


def test_missing_file_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"none.sqlite does not exist: build it with `python -m"):
        reader(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()


@pytest.mark.parametrize("opened", [reader, writer])
def test_other_files_are_refused_and_left_alone(tmp_path: Path, opened: object) -> None:
    assert callable(opened)
    text = tmp_path / "notes.txt"
    text.write_text("no database at all, but long enough to have a header" * 10)
    with pytest.raises(CatalogError, match="notes.txt is not an SQLite file, so it is not a catalogue"):
        opened(text)
    assert text.read_text().startswith("no database")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE meta (key, value)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(CatalogError, match="is an SQLite file but not a catalogue"):
        opened(other)
    assert other.read_bytes() == before


def test_empty_file_is_refused_by_the_reader_and_filled_by_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "empty ?#%.sqlite"  # characters that mean something in a URI
    path.touch()
    with pytest.raises(CatalogError, match="is empty: build it"):
        reader(path)
    with writer(path) as store:
        store.add([product("Zebra")])
    with reader(path) as store:
        assert found(store, "zebra") == ["Zebra"]


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be used: unable to open database file"):
        writer(tmp_path / "no folder" / "catalogue.sqlite")
    for opened in (reader, writer):
        with pytest.raises(CatalogError, match="is a folder, not a catalogue"):
            opened(tmp_path)


@pytest.mark.parametrize("opened", [reader, writer])
def test_another_model_is_refused_with_both_names(path: Path, opened: object) -> None:
    assert callable(opened)
    with pytest.raises(CatalogOutdatedError, match="fashion-small:1234.*not.*new:1.*build it"):
        opened(path, "new:1")


def test_another_schema_is_refused(own_path: Path) -> None:
    connection = sqlite3.connect(own_path, isolation_level=None)
    connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    with pytest.raises(CatalogOutdatedError, match="has version 99, but this program reads version 2: build"):
        reader(own_path)


def test_damaged_file_is_a_catalog_error(own_path: Path) -> None:
    data = bytearray(own_path.read_bytes())
    data[4096:] = b"\x55" * (len(data) - 4096)
    own_path.write_bytes(data)
    with pytest.raises(CatalogError, match="own.sqlite is damaged: delete it and build it again"):
        reader(own_path)


def test_reader_cannot_write(store: CatalogStore) -> None:
    with pytest.raises(CatalogError, match="cannot be used"):
        store.add([product("Zebra")])


def test_no_second_file_is_left_beside_the_catalogue(own_path: Path) -> None:
    with reader(own_path) as store:
        assert found(store, "navy")
        assert [file.name for file in own_path.parent.iterdir()] == [own_path.name]


def test_reader_waits_for_a_writer_no_longer_than_it_may(own_path: Path) -> None:
    blocking = sqlite3.connect(own_path, isolation_level=None)
    with reader(own_path) as store:
        blocking.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CatalogTimeoutError, match="locked by another program"):
            store.find(["blue"], 5, timeout_seconds=0.05)
        assert store._file.integer("PRAGMA busy_timeout") == 50
        blocking.execute("ROLLBACK")
        blocking.close()
        assert store.find(["blue"], 5, timeout_seconds=5)


def test_reader_goes_on_after_a_writer_was_killed_in_a_transaction(own_path: Path) -> None:
    """kill -9 with half a transaction in the file: the journal must bring the old state back."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.search_gateway.catalog.test_store import TITLES, product, writer

store = writer(Path(sys.argv[1]))
store._file.connection.execute("PRAGMA cache_size = 1")  # changed pages go to the file at once
with store._writing():
    store._file.connection.execute("DELETE FROM products")
    store._file.connection.execute("DELETE FROM titles")
    store._file.connection.execute(
        "UPDATE meta SET value = hex(zeroblob(1000000)) WHERE key = 'photos_folder'"
    )
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with reader(own_path) as opened_before:
        before = found(opened_before, "blue shirt")
        size = own_path.stat().st_size
        killed = subprocess.run([sys.executable, "-c", script, own_path], cwd=ROOT, check=False)
        assert killed.returncode == -signal.SIGKILL
        journal = own_path.with_name(f"{own_path.name}-journal")
        assert journal.stat().st_size > 0
        assert own_path.stat().st_size > size
        assert found(opened_before, "blue shirt") == before
        assert not journal.exists()
    with reader(own_path) as opened_after:
        assert found(opened_after, "blue shirt") == before
        assert len(opened_after) == len(TITLES)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40,000 products with titles of six words, as common as in the Kaggle set."""
    path = tmp_path_factory.mktemp("large") / "catalogue.sqlite"
    choose = random.Random(40_000).choice
    colours = ["Black", "White", "Blue", "Navy Blue", "Brown", "Grey", "Red", "Green", "Pink"]
    things = ["T-shirt", "Shirt", "Shoes", "Watch", "Top", "Kurta", "Handbag", "Jeans", "Dress"]
    embeddings = np.random.default_rng(1).normal(size=(40_000, 64)).astype(np.float32)
    titles = [
        f"Brand{number % 300} {choose(['Men', 'Women'])} Style {number} {choose(colours)} {choose(things)}"
        for number in range(40_000)
    ]
    with writer(path) as store:
        store.add([product(title, f"{number}.jpg", embeddings[number]) for number, title in enumerate(titles)])
        store.optimize()
    return path


def test_find_among_40000_products_is_little_work(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in tens of thousands of instructions of SQLite's machine; `benchmarks.catalog_speed` measures seconds."""
    looks = itertools.count()
    monkeypatch.setattr(database, "time", SimpleNamespace(monotonic=lambda: next(looks) and 0.0))

    def work(store: CatalogStore, query: str) -> int:
        before = next(looks)
        assert len(store.find(query.split(), 50)) == 50
        return next(looks) - before - 2

    with reader(large) as store:
        queries = ["blue shirt", "black shoes", "pink dress", "men t-shirt"]
        both = [work(store, query) for query in queries]
        one = work(store, "women zebra")  # half of all rows have to be ranked
        store.load()
        before = next(looks)
        store.similar(np.random.default_rng(0).normal(size=64).astype(np.float32), 50)
        similar = next(looks) - before - 2
    assert max(both) <= 8
    assert one <= 40
    assert similar <= 2


def test_find_gives_up_when_its_time_is_over(large: Path) -> None:
    with reader(large) as store:
        with pytest.raises(CatalogTimeoutError, match="did not answer in time"):
            store.find(["women", "men", "style", "zebra"], 50, timeout_seconds=0.0)
        assert store.find(["women", "blue"], 50)


def test_builds_of_a_file_do_not_replace_it_under_each_other(own_path: Path) -> None:
    model = CatalogModel(MODEL)

    def building(*, is_anew: bool) -> CatalogStore:
        return CatalogFileBuild.open_for_building(own_path, model, photos_folder=own_path.parent, is_anew=is_anew)

    with building(is_anew=False) as first, building(is_anew=False), building(is_anew=True) as anew:
        anew.add([product("New")])
        with pytest.raises(CatalogError, match="another build is changing"):
            building(is_anew=True)
        with pytest.raises(CatalogError, match="another build is changing"):
            anew.publish()
        first.add([product("Not lost")])
    with building(is_anew=True) as anew:
        assert [one.title for one in anew.entries()] == ["New"], "it goes on"
        anew.publish()
    with building(is_anew=False) as store:
        assert [one.title for one in store.entries()] == ["New"]
