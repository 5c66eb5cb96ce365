# SPDX-License-Identifier: Apache-2.0
"""Tests that what is remembered and left out of ranking changes no answer: compared with one plain SQL statement."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from search_gateway.catalog import text_index
from search_gateway.catalog.base import CatalogEntry
from search_gateway.catalog.database import CatalogDatabase
from search_gateway.catalog.store import CatalogStore
from search_gateway.catalog.text_analysis import query_phrases
from search_gateway.catalog.text_index import TextIndex
from tests.search_gateway.catalog.test_store import MODEL, product, writer

NUM_PRODUCTS = 1500
# Few words and a seldom one, so that equal scores, short answers and words that nobody has all come up.
COMMON = ("Black", "Blue", "White", "Shirt", "Shoes", "T-shirt", "Off-White", "Men", "Women")
SELDOM = ("Zebra", "Leggings", "Sari")
UNKNOWN = ("Unicorn",)


def titles(seed: int) -> Iterator[str]:
    choose = random.Random(seed)
    while True:
        words = choose.choices(COMMON, k=choose.randint(1, 6))
        yield " ".join([*words, choose.choice(SELDOM)] if choose.random() < 0.02 else words)


def queries(seed: int, num_queries: int) -> Iterator[list[str]]:
    choose = random.Random(seed)
    for _ in range(num_queries):
        yield choose.sample(COMMON + SELDOM + UNKNOWN, k=choose.choice((1, 2, 2, 2, 3, 5)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranking") / "catalogue.sqlite"
    named = zip(range(NUM_PRODUCTS), titles(seed=1), strict=False)
    with writer(path) as store:
        store.add([product(title, f"{number}.jpg") for number, title in named])
    return path


def plainly_best(file: CatalogDatabase, phrases: Sequence[str], limit: int) -> list[int]:
    """Every title with any of the words, by how many, then by the sum of their BM25, then by id."""
    hits = " UNION ALL ".join("SELECT rowid AS id, rank AS score FROM titles WHERE titles MATCH ?" for _ in phrases)
    found = file.connection.execute(
        f"SELECT id FROM ({hits}) GROUP BY id ORDER BY count(*) DESC, sum(score), id LIMIT ?", (*phrases, limit)
    )
    return [product_id for (product_id,) in found]


def compare(file: CatalogDatabase, ranking: TextIndex, seed: int, num_queries: int) -> int:
    """Ask both ways; returns how many answers there were."""
    num_answers = 0
    for words in queries(seed, num_queries):
        for limit in (1, 7, 40, 2 * NUM_PRODUCTS):
            phrases = query_phrases(words)
            with file.reading():
                best = ranking.best(phrases, limit)
                assert best == plainly_best(file, phrases, limit), (words, limit)
            num_answers += bool(best)
    return num_answers


def test_answers_are_those_of_the_plain_statement(path: Path) -> None:
    file = CatalogDatabase.open_for_reading(path, model_fingerprint=MODEL)
    assert compare(file, TextIndex(file), seed=2, num_queries=150) > 500
    file.close()


def test_answers_follow_changes_of_others_and_of_its_own(path: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.sqlite"
    own.write_bytes(path.read_bytes())
    file = CatalogDatabase.open_for_reading(own, model_fingerprint=MODEL)
    ranking = TextIndex(file)
    more = titles(seed=3)
    with writer(own) as other:
        for number in range(5):
            other.add([product(next(more), f"new {number}-{place}.jpg") for place in range(50)])
            other.remove(f"{number}-{place}.jpg" for place in range(50))
            path = f"{number}.jpg"
            other.move([(path, CatalogEntry(path=path, title="Zebra", stamp=product("").entry.stamp))])
            assert compare(file, ranking, seed=number, num_queries=20)
            assert [row.title for row in other.find(["zebra"], 1)] == ["Zebra"]
        num_zebras = len(other.find(["zebra"], 10_000))
        other.remove(["0.jpg"])
        assert len(other.find(["zebra"], 10_000)) == num_zebras - 1
    file.close()


def test_what_is_remembered_has_a_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_index, "MAX_REMEMBERED_BYTES", 50_000)
    file = CatalogDatabase.open_for_reading(path, model_fingerprint=MODEL)
    ranking = TextIndex(file)
    assert compare(file, ranking, seed=4, num_queries=50)
    kept = sum(text_index._size_in_bytes(*entry) for entry in ranking._remembered.items())
    assert 0 < kept == ranking._remembered_bytes <= 50_000
    file.close()


def test_words_that_no_title_has_are_forgotten_as_well(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_index, "MAX_REMEMBERED_BYTES", 200_000)
    file = CatalogDatabase.open_for_reading(path, model_fingerprint=MODEL)
    ranking = TextIndex(file)
    with file.reading():
        for number in range(5000):
            ranking.best([f'"unicorn{number}"'], 1)
    kept = list(ranking._remembered)
    assert 500 < len(kept) < 1000  # about 300 bytes each
    assert kept[-1] == '"unicorn4999"'
    file.close()


def test_a_word_is_scored_once(path: Path) -> None:
    with CatalogStore.open_for_reading(path, model_fingerprint=MODEL) as store:
        statements: list[str] = []
        store.find(["black", "unicorn"], 40)
        store._file.connection.set_trace_callback(statements.append)
        assert store.find(["unicorn", "black"], 40)
        scored = [statement for statement in statements if "rank" in statement and "AND" not in statement]
        assert not scored
