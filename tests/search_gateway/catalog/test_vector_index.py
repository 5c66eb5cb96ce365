# SPDX-License-Identifier: Apache-2.0
"""Tests of likeness: what is taken over from before a change is what a fresh look at the file gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gateway.catalog.base import SimilarRow
from search_gateway.catalog.store import CatalogStore
from search_gateway.catalog.vector_index import VectorIndex, largest
from tests.search_gateway.catalog.test_store import product, reader, writer

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
