# SPDX-License-Identifier: Apache-2.0
"""A catalogue in PostgreSQL that is built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, LiteralString, Self

import psycopg
from psycopg import sql

from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import (
    Attributes,
    CatalogEntry,
    CatalogModel,
    CatalogProduct,
    PhotoStamp,
    check_size,
    refusal_of,
    units_of,
)
from search_gateway.catalog.generations import SCHEMA_VERSION, superfluous, targets
from search_gateway.catalog.postgresql.connection import conninfo_of, translated
from search_gateway.catalog.postgresql.schema import (
    INDEXES,
    PRODUCTS,
    REGISTRY,
    Names,
    ProductTable,
    generations_of,
    vector_text,
)
from search_gateway.catalog.text_analysis import one_line, stems

_MAX_STEMS = 10_000  # of a title; PostgreSQL counts positions up to 16,383
_MAX_PATH_BYTES = 2_600  # an entry of its index has at most 2,704

_ENTRY = "path, title, url, size_bytes, mtime_ns, sha256, price, is_available, category"
_UPSERT = """
    INSERT INTO {table} (path, title, url, size_bytes, mtime_ns, sha256, price, is_available, category, words,
        width, height, embedding, thumbnail)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s::tsvector, %s, %s, %s::vector, %s)
    ON CONFLICT (path) DO UPDATE SET
        title = excluded.title, url = excluded.url, size_bytes = excluded.size_bytes, mtime_ns = excluded.mtime_ns,
        sha256 = excluded.sha256, price = excluded.price, is_available = excluded.is_available,
        category = excluded.category, words = excluded.words, width = excluded.width, height = excluded.height,
        embedding = excluded.embedding, thumbnail = excluded.thumbnail
"""
_MOVE = """
    UPDATE {table} SET path = %s, title = %s, url = %s, size_bytes = %s, mtime_ns = %s, sha256 = %s, price = %s,
        is_available = %s, category = %s, words = %s::tsvector
    WHERE path = %s
"""


class PostgresqlWriter:
    """A catalogue that is built.

    Args:
        address: of the catalogue.
        model: the model of the embeddings that will be added.
        is_anew: build beside the present data even if they are of this model.

    Raises:
        CatalogError: the server cannot be reached, lacks pgvector, or refuses.
    """

    def __init__(self, address: CatalogAddress, model: CatalogModel, *, is_anew: bool = False) -> None:
        self._address = address
        self._model = model
        self._names = Names(address, model)
        self._is_anew = is_anew
        with translated(address):
            self._connection = psycopg.connect(conninfo_of(address), autocommit=True)
        try:
            with self._changing():
                self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                self._connection.execute(sql.SQL(REGISTRY).format(name=self._names.registry))
            with translated(address):
                self._previous, self._own = self._targets()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def build_id(self) -> str:
        """See `CatalogWriter`."""
        with translated(self._address):
            own = self._targets()[1] if self._own is None else self._own
            if own is None:
                return ""
            statement = sql.SQL("SELECT created_at::text FROM {} WHERE generation = %s").format(self._names.registry)
            row = self._connection.execute(statement, (own.number,)).fetchone()
        return "" if row is None else f"{own.number} {row[0]}"

    def entries(self) -> list[CatalogEntry]:
        """See `CatalogWriter`."""
        return self._entries(self._own)

    def previous_entries(self) -> list[CatalogEntry]:
        """See `CatalogWriter`."""
        return self._entries(self._previous)

    def refusal(self, entry: CatalogEntry) -> str:
        """See `CatalogWriter`."""
        return refusal_of(entry, max_path_bytes=_MAX_PATH_BYTES)

    def add(self, products: Sequence[CatalogProduct]) -> None:
        """See `CatalogWriter`."""
        if not products:
            return
        units = units_of(products, None if self._own is None else self._own.embedding_size)
        if self._own is None:
            self._own = self._created(units[0].size)
        values = [
            (*_described(product.entry), product.width, product.height, vector_text(one), product.thumbnail)
            for product, one in zip(products, units, strict=True)
        ]
        self._execute_many(_UPSERT, values)

    def move(self, moves: Iterable[tuple[str, CatalogEntry]]) -> None:
        """See `CatalogWriter`."""
        self._execute_many(_MOVE, [(*_described(entry), old_path) for old_path, entry in moves])

    def remove(self, paths: Iterable[str]) -> None:
        """See `CatalogWriter`."""
        self._execute_many("DELETE FROM {table} WHERE path = %s", [(path,) for path in paths])

    def optimize(self) -> None:
        """See `CatalogWriter`. The first call builds the indexes."""
        if self._own is None:
            return
        table = sql.Identifier(self._own.table)
        with self._changing():
            for of, statement in INDEXES:
                index = self._own.index(of)
                self._connection.execute(sql.SQL(statement).format(index=index, table=table))
        with translated(self._address):
            self._connection.execute(sql.SQL("ANALYZE {table}").format(table=table))

    def publish(self) -> None:
        """See `CatalogWriter`. Drops what it replaces if that is of the same model."""
        if self._own is None or self._own.is_live:
            return
        with self._changing():
            self._show(self._own)
        with self._changing():
            replaced = [
                one for one in generations_of(self._connection, self._names)
                if one.is_of(self._model) and one.number != self._own.number
            ]  # fmt: skip
            for one in replaced:
                self._drop(one)

    def prune(self) -> list[str]:
        """Drop the data of all other models and unfinished builds; returns what was dropped.

        Raises:
            CatalogError: no data of this model are searched, or the server refuses.
        """
        with self._changing():
            generations = generations_of(self._connection, self._names)
            others = superfluous(str(self._address), generations, self._model)
            for one in others:
                if not one.is_of(self._model):
                    view = Names(self._address, CatalogModel(one.fingerprint)).view
                    self._connection.execute(sql.SQL("DROP VIEW IF EXISTS {view}").format(view=view))
                self._drop(one)
        return [str(one) for one in others]

    def _targets(self) -> tuple[ProductTable | None, ProductTable | None]:
        """Return the generation that will be replaced and the one to be written, each None if there is none."""
        return targets(generations_of(self._connection, self._names), self._model, is_anew=self._is_anew)

    def _created(self, size: int) -> ProductTable:
        """Create the generation to be written, or return that of a build that began meanwhile."""
        with self._changing():
            self._previous, own = self._targets()
            if own is not None:
                check_size(size, own.embedding_size)
                return own
            generations = generations_of(self._connection, self._names)
            number = 1 + max((one.number for one in generations), default=0)
            name = self._names.table(number)
            own = ProductTable(number, self._model.fingerprint, self._model.name, SCHEMA_VERSION, size, False, name)
            statement = sql.SQL(PRODUCTS).format(table=sql.Identifier(name), size=sql.Literal(size))
            self._connection.execute(statement)
            self._connection.execute(
                sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, %s, %s, false)").format(self._names.registry),
                (number, own.fingerprint, own.model_name, own.schema_version, size),
            )
            if self._previous is None:  # nothing is searched yet
                own = self._show(own)
        return own

    def _show(self, generation: ProductTable) -> ProductTable:
        """Let the view show a generation; inside a transaction."""
        names, execute = self._names, self._connection.execute
        execute(
            sql.SQL("CREATE OR REPLACE VIEW {} AS SELECT * FROM {}").format(
                names.view, sql.Identifier(generation.table)
            )
        )
        execute(
            sql.SQL("UPDATE {} SET is_live = (generation = %s) WHERE fingerprint = %s AND schema_version = %s").format(
                names.registry
            ),
            (generation.number, generation.fingerprint, generation.schema_version),
        )
        return replace(generation, is_live=True)

    def _drop(self, generation: ProductTable) -> None:
        execute = self._connection.execute
        execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(generation.table)))
        execute(sql.SQL("DELETE FROM {} WHERE generation = %s").format(self._names.registry), (generation.number,))

    def _entries(self, generation: ProductTable | None) -> list[CatalogEntry]:
        if generation is None:
            return []
        statement = sql.SQL("SELECT {} FROM {}").format(sql.SQL(_ENTRY), sql.Identifier(generation.table))
        with translated(self._address):
            rows = self._connection.execute(statement)
            return [
                CatalogEntry(
                    path=path,
                    title=title,
                    url=url,
                    stamp=PhotoStamp(size_bytes, mtime_ns, sha256),
                    attributes=Attributes(price, is_available, category),
                )
                for path, title, url, size_bytes, mtime_ns, sha256, price, is_available, category in rows
            ]

    def _execute_many(self, statement: LiteralString, values: Sequence[tuple[Any, ...]]) -> None:
        """Run a statement for each of the values, all or none."""
        if self._own is None or not values:
            return
        filled = sql.SQL(statement).format(table=sql.Identifier(self._own.table))
        # Two builds that lock products in the same order cannot wait for each other.
        ordered = sorted(values, key=lambda one: str(one[0]))
        with translated(self._address), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(filled, ordered)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Run the block as a transaction that changes tables, alone among all builds of the catalogue."""
        with translated(self._address), self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"captrieve {self._address.name}",))
            yield


def _described(entry: CatalogEntry) -> tuple[Any, ...]:
    """Return the columns from path to words."""
    stamp, attributes = entry.stamp, entry.attributes
    words = " ".join(f"'{word}':{at}" for at, word in enumerate(stems(entry.title)[:_MAX_STEMS], 1))
    return (
        entry.path,
        one_line(entry.title),
        one_line(entry.url),
        stamp.size_bytes,
        stamp.mtime_ns,
        stamp.sha256,
        attributes.price,
        attributes.is_available,
        one_line(attributes.category),
        words,
    )
