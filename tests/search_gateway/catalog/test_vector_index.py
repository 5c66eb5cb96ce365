# SPDX-License-Identifier: Apache-2.0
"""Tests of likeness: what is taken over from before a change is what a fresh look at the file gives."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gateway.catalog import file_build, inverted_lists, vector_index
from search_gateway.catalog.base import CatalogModel, SimilarRow
from search_gateway.catalog.file_build import CatalogFileBuild
from search_gateway.catalog.store import CatalogStore
from search_gateway.catalog.vector_index import VectorIndex, largest
from tests.search_gateway.catalog.test_store import MODEL, product, reader, writer

SIZE = 8


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(1, 45))
def test_largest_is_the_head_of_a_stable_sort(values: list[int], limit: int) -> None:
    array = np.array(values, np.float32)
    assert largest(array, limit).tolist() == np.argsort(-array, kind="stable")[:limit].tolist()


def test_equal_products_come_in_the_order_they_were_stored(tmp_path: Path) -> None:
    same = np.ones(SIZE, np.float32)
    with writer(tmp_path / "c.sqlite") as store:
        store.add([product("item", f"{number}.jpg", same) for number in range(20)])
        for limit in (1, 5, 20, 100):
            assert [hit.row.path for hit in store.similar(same, limit)] == [f"{n}.jpg" for n in range(20)][:limit]


@pytest.mark.parametrize("count", [5, 37, 66, 150])
def test_equal_embeddings_have_equal_cosines_wherever_they_stand(tmp_path: Path, count: int) -> None:
    """BLAS computes the last rows of a matrix in another way, in which the last bit of a cosine may differ."""
    same, photo = np.random.default_rng(count).normal(size=(2, 256)).astype(np.float32)
    with writer(tmp_path / "c.sqlite") as store:
        store.add([product("item", f"{number}.jpg", same) for number in range(count)])
        hits = store.similar(photo, count)
        assert [hit.row.path for hit in hits] == [f"{number}.jpg" for number in range(count)]
        assert len({hit.cosine for hit in hits}) == 1
        assert [hit.row.path for hit in store.similar(photo, 3)] == [f"{number}.jpg" for number in range(3)]


def shown(hits: list[SimilarRow]) -> list[tuple[str, float]]:
    return [(hit.row.path, pytest.approx(hit.cosine, abs=1e-6)) for hit in hits]


@pytest.mark.parametrize("seed", range(5))
def test_changes_are_taken_over_like_a_fresh_look(tmp_path: Path, seed: int) -> None:
    """Products come, go, change and get the ids of those that went, in any order, from elsewhere and from here."""
    rng = np.random.default_rng(seed)
    path = tmp_path / "c.sqlite"
    with writer(path) as writing, reader(path) as reading:
        for _ in range(30):
            for _ in range(rng.integers(0, 3)):
                paths = [f"{number}.jpg" for number in rng.choice(40, rng.integers(0, 8), replace=False)]
                if rng.random() < 0.4:
                    writing.remove(paths)
                else:
                    writing.add([product("item", one, rng.normal(size=SIZE).astype(np.float32)) for one in paths])
            photo = rng.normal(size=SIZE).astype(np.float32)
            with reader(path) as fresh:
                expected = shown(fresh.similar(photo, 100))
            assert [(hit.row.path, hit.cosine) for hit in reading.similar(photo, 100)] == expected
            assert [(hit.row.path, hit.cosine) for hit in writing.similar(photo, 100)] == expected


@pytest.mark.parametrize("seed", range(5))
def test_an_index_says_nothing_that_the_catalogue_does_not(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products come, go, change and get the ids of those that went, after an index was written and between two."""
    monkeypatch.setattr(vector_index, "NUM_COMPARED_LISTS", 1)
    rng = np.random.default_rng(seed)
    path = tmp_path / "c.sqlite"
    with writer(path) as writing, reader(path) as reading:
        for turn in range(30):
            paths = [f"{number}.jpg" for number in rng.choice(60, rng.integers(1, 30), replace=False)]
            if rng.random() < 0.4:
                writing.remove(paths)
            else:
                writing.add([product("item", one, rng.normal(size=SIZE).astype(np.float32)) for one in paths])
            photo = rng.normal(size=SIZE).astype(np.float32)
            with monkeypatch.context() as without_index:
                without_index.setattr(VectorIndex, "_opened_lists", lambda self: None)
                with reader(path) as fresh:
                    expected = shown(fresh.similar(photo, 100))
            assert [(hit.row.path, hit.cosine) for hit in reading.similar(photo, 100)] == expected
            assert [(hit.row.path, hit.cosine) for hit in writing.similar(photo, 100)] == expected
            assert len(reading.similar(photo, 3)) == min(3, len(expected))
            if turn % 5 == 0:
                write_index(writing)


def write_index(store: CatalogStore, min_numbers: int = 1) -> None:
    """As a build that is published does."""
    store._vectors.delete_others(store._vectors.write_index(min_numbers=min_numbers), is_alone=False)


def indexed(path: Path, count: int) -> npt.NDArray[np.float32]:
    """A catalogue with an index; returns its embeddings."""
    vectors = np.random.default_rng(0).normal(size=(count, SIZE)).astype(np.float32)
    with writer(path) as store:
        store.add([product("item", f"{number}.jpg", vector) for number, vector in enumerate(vectors)])
        write_index(store)
    return vectors


def index_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.vectors-*"))


def test_a_large_catalogue_gets_its_index_when_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is built beside an older one and takes its place."""
    monkeypatch.setattr(file_build, "MIN_LISTED_NUMBERS", 100 * SIZE)
    path = tmp_path / "c.sqlite"
    vectors = np.random.default_rng(0).normal(size=(100, SIZE)).astype(np.float32)
    for number, is_anew in enumerate((False, True, False)):
        with CatalogFileBuild.open_for_building(
            path, CatalogModel(MODEL), photos_folder=tmp_path, is_anew=is_anew
        ) as writing:
            writing.add([product("item", f"{number}.jpg", vectors[number]) for number in range(99 + min(number, 1))])
            writing.publish()
        assert len(index_files(path)) == min(number, 1)  # 99 products are too few
    with reader(path) as reading:
        reading.load()
        assert isinstance(reading._vectors._rows, vector_index._ListedRows)
        assert [hit.row.path for hit in reading.similar(vectors[7], 1)] == ["7.jpg"]
    assert {one.name for one in tmp_path.iterdir()} == {"c.sqlite", index_files(path)[0].name}


def test_an_index_finds_most_of_the_nearest_in_few_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.sqlite"
    vectors = indexed(path, 2000)
    monkeypatch.setattr(vector_index, "NUM_COMPARED_LISTS", 12)  # of 45
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = 0
    with reader(path) as store:
        for photo in units[:50]:
            best = {f"{number}.jpg" for number in np.argsort(-(units @ photo))[:10]}
            found += len(best & {hit.row.path for hit in store.similar(photo, 10)})
    assert found > 0.9 * 500


def test_an_index_is_written_anew_only_when_much_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    vectors = indexed(path, 100)
    [first] = index_files(path)
    with writer(path) as store:
        store.remove(["1.jpg", "2.jpg", "3.jpg"])
        store.add([product("item", f"{number}.jpg", vectors[number]) for number in range(10, 13)])
        write_index(store)
        assert index_files(path) == [first]  # 3 + 2 * 3 of 100
        store.add([product("item", f"new{number}.jpg", vectors[number]) for number in range(2)])
        write_index(store)
        [second] = index_files(path)
        assert second != first
        write_index(store, 10**6)  # too few products for an index
        assert index_files(path) == []
        assert len(store.similar(vectors[5], 200)) == 99


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "of another", "header", "no width", "deep"])
def test_an_index_that_cannot_be_used_is_not(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c.sqlite"
    vectors = indexed(path, 50)
    [file] = index_files(path)
    data = file.read_bytes()
    match damage:
        case "missing":
            file.unlink()
        case "cut":
            file.write_bytes(data[:-4])
        case "empty":
            file.write_bytes(b"")
        case "of another":
            file.write_bytes(data.replace(file.name[-16:].encode(), b"0123456789abcdef"))
        case "header":
            file.write_bytes(data.replace(b'"num_products": 50', b'"num_products": -1'))
        case "no width":  # as long as such a header says
            header = data[:4096].replace(f'"size": {SIZE}'.encode(), b'"size": 0')
            file.write_bytes(header + bytes(8 * 8 + 8 * 50))
        case "deep":
            file.write_bytes(data[:18] + (4000).to_bytes(4, "little") + b"[" * 4074)
    with reader(path) as store:
        assert [hit.row.path for hit in store.similar(vectors[7], 1)] == ["7.jpg"]
    assert (damage == "of another") != bool(caplog.messages)
    with writer(path) as store:
        write_index(store)
    assert index_files(path) != [file] or file.read_bytes() != data


@pytest.mark.parametrize("num_bytes", [0, 4096, 10_000])
def test_an_index_that_is_cut_while_it_is_searched_costs_no_answer(
    tmp_path: Path, num_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As by `cp` of the same files a second time. If the file were mapped, the process would get SIGBUS."""
    path = tmp_path / "c.sqlite"
    vectors = indexed(path, 2000)
    [file] = index_files(path)
    with reader(path) as store:
        assert [hit.row.path for hit in store.similar(vectors[7], 1)] == ["7.jpg"]
        data = file.read_bytes()
        os.truncate(file, num_bytes)
        for number in (7, 8):
            assert [hit.row.path for hit in store.similar(vectors[number], 1)] == [f"{number}.jpg"]
        assert len([one for one in caplog.messages if "was cut while it was used" in one]) == 1
        file.write_bytes(data)
        with writer(path) as other:
            other.remove(["9.jpg"])
        assert [hit.row.path for hit in store.similar(vectors[7], 1)] == ["7.jpg"]
        assert isinstance(store._vectors._rows, vector_index._ListedRows)


def test_a_closed_catalogue_keeps_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    vectors = indexed(path, 50)

    def num_open() -> int:
        links = [one for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
        return sum(str(tmp_path) in os.readlink(one) for one in links)

    with reader(path) as store:
        for _ in range(3):
            store.similar(vectors[7], 1)
            with writer(path) as other:
                other.add([product("item", f"{number}.jpg", vectors[number]) for number in range(20)])
                write_index(other)
        store.similar(vectors[7], 1)
        assert num_open() == 2  # the catalogue and its index
    assert num_open() == 0


def test_a_full_disk_leaves_the_former_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.sqlite"
    vectors = indexed(path, 50)
    before = index_files(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inverted_lists, "_write_sorted", full)
    with writer(path) as store:
        store.add([product("item", f"new{number}.jpg", vectors[number]) for number in range(30)])
        with pytest.raises(OSError, match="No space"):
            write_index(store)
        assert len(store.similar(vectors[0], 200)) == 80
    assert index_files(path) == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.sqlite", before[0].name]


def test_what_a_killed_build_left_is_deleted_when_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    old, new = (tmp_path / f".c.sqlite.vectors-{number}.tmp" for number in (1, 2))
    for folder in (old, new):
        folder.mkdir()
        (folder / "unsorted").write_bytes(b"a")
    os.utime(old, (1, 1))
    indexed(path, 50)
    assert not old.exists()
    assert new.exists()  # another build may be writing it


def test_a_build_keeps_the_index_that_another_one_wrote_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_build, "MIN_LISTED_NUMBERS", 50 * SIZE)
    path = tmp_path / "c.sqlite"
    vectors = np.random.default_rng(0).normal(size=(100, SIZE)).astype(np.float32)
    model = CatalogModel(MODEL)
    with CatalogFileBuild.open_for_building(path, model, photos_folder=tmp_path) as first:
        first.add([product("item", f"{number}.jpg", vectors[number]) for number in range(50)])
        close = first._file.close

        def close_late() -> None:
            """Close after the index was named, while another build writes and names one."""
            monkeypatch.setattr(first._file, "close", close)
            with CatalogFileBuild.open_for_building(path, model, photos_folder=tmp_path) as second:
                second.add([product("item", f"{number}.jpg", vectors[number]) for number in range(50, 100)])
                second.publish()
            close()

        monkeypatch.setattr(first._file, "close", close_late)
        first.publish()
    assert len(index_files(path)) == 1
    with reader(path) as store:
        store.load()
        assert isinstance(store._vectors._rows, vector_index._ListedRows)


def test_equal_products_in_an_index_come_in_the_order_they_were_stored(tmp_path: Path) -> None:
    same = np.ones(SIZE, np.float32)
    path = tmp_path / "c.sqlite"
    with writer(path) as store:
        store.add([product("item", f"{number}.jpg", same) for number in range(20)])
        write_index(store)
        store.add([product("item", "20.jpg", same)])
        for limit in (21, 100):
            assert [hit.row.path for hit in store.similar(same, limit)] == [f"{n}.jpg" for n in range(21)][:limit]


def test_only_new_embeddings_are_read_after_a_change(tmp_path: Path) -> None:
    """Reading all of 40,000 takes a fifth of a second, and a build changes the file every second."""
    rng = np.random.default_rng(1)
    path = tmp_path / "c.sqlite"

    def some(first: int, last: int) -> None:
        vectors = rng.normal(size=(last - first, SIZE)).astype(np.float32)
        with writer(path) as store:
            numbered = zip(range(first, last), vectors, strict=True)
            store.add([product("item", f"{number}.jpg", vector) for number, vector in numbered])

    def num_read(store: CatalogStore) -> int:
        """Of a search, seen from what numpy is given."""
        statements: list[str] = []
        store._file.connection.set_trace_callback(statements.append)
        store.similar(np.ones(SIZE, np.float32), 1)
        store._file.connection.set_trace_callback(None)
        [bound] = [text for text in statements if "revision >" in text] or [""]
        return store._file.connection.execute(bound.replace("id, embedding", "count(*)")).fetchone()[0] if bound else 0

    some(0, 30)
    with reader(path) as store:
        assert num_read(store) == 30
        assert num_read(store) == 0
        some(30, 34)
        assert num_read(store) == 4
        some(2, 3)
        assert num_read(store) == 1


def test_a_search_after_loading_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.ones(SIZE, np.float32)
    with writer(tmp_path / "c.sqlite") as store:
        store.add([product("item", "1.jpg", photo)])
    with reader(tmp_path / "c.sqlite") as store:
        store.load()

        def refuse(*_: object) -> None:
            raise AssertionError("read again")

        monkeypatch.setattr(VectorIndex, "_read", refuse)
        assert len(store.similar(photo, 5)) == 1
