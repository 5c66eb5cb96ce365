# SPDX-License-Identifier: Apache-2.0
"""A catalogue in PostgreSQL that is searched."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
import psycopg
import psycopg_pool
from psycopg import sql

from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import (
    DEFAULT_TIMEOUT_SECONDS,
    NO_FILTERS,
    CatalogModel,
    CatalogRow,
    CatalogTimeoutError,
    Filters,
    SimilarRow,
    check_size,
    unit,
)
from search_gateway.catalog.generations import searched
from search_gateway.catalog.postgresql.connection import conninfo_of, translated
from search_gateway.catalog.postgresql.schema import Names, generations_of, vector_text
from search_gateway.catalog.text_analysis import query_stems

# It logs every attempt to connect; `server_catalog.py` tells that the server is away, and that it is back.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

_MAX_IDLE_SECONDS = 300.0
_RECONNECT_SECONDS = 2.0  # a search that gets no connection for so long fails, and the next one tries again
_MIN_EF_SEARCH, _MAX_EF_SEARCH = 40, 1000  # pgvector's default and limit

_VECTOR_SETTINGS = (
    "SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'strict_order', true)"
)
_ROW = "path, title, url, width, height, embedding::real[], thumbnail"


class PostgresqlReader:
    """A catalogue that is searched, through a pool of connections.

    Args:
        address: of the catalogue.
        model: the model in use.
        max_connections: searches at the same time.
    """

    def __init__(self, address: CatalogAddress, model: CatalogModel, max_connections: int) -> None:
        self._address = address
        self._model = model
        self._names = Names(address, model)
        self._embedding_size = 0
        self._pool: psycopg_pool.ConnectionPool[psycopg.Connection[Any]] = psycopg_pool.ConnectionPool(
            conninfo_of(address),
            kwargs={"autocommit": True},
            min_size=0,
            max_size=max_connections,
            max_idle=_MAX_IDLE_SECONDS,
            reconnect_timeout=_RECONNECT_SECONDS,
            check=psycopg_pool.ConnectionPool.check_connection,
            open=True,
        )

    def check(self, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Check that there is a catalogue of the model in use.

        Raises:
            CatalogOutdatedError: its embeddings are of another model, or it is of another version.
            CatalogUnreachableError, CatalogTimeoutError: the server does not answer.
            CatalogError: no such catalogue.
        """
        with self._reading(timeout_seconds) as connection:
            generations = generations_of(connection, self._names)
        self._embedding_size = searched(str(self._address), generations, self._model).embedding_size

    def find(
        self,
        words: Sequence[str],
        limit: int,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        filters: Filters = NO_FILTERS,
    ) -> list[CatalogRow]:
        """See `CatalogReader`. Products with equally many words are in the order of `ts_rank`."""
        queries = [_tsquery(one) for one in query_stems(words)]
        if not queries or limit < 1:
            return []
        # Usually enough titles have all words; they are the first of what the second statement would return.
        every, some = " & ".join(queries), " | ".join(queries)
        condition, values = _condition(filters)
        statement = sql.SQL(
            "SELECT {row} FROM {view} WHERE words @@ {query}::tsquery {condition} "
            "ORDER BY {count} ts_rank(words, {query}::tsquery, 1) DESC, id LIMIT %(limit)s"
        )
        count = sql.SQL("").join(
            [sql.SQL("("), sql.SQL(" + ").join(sql.SQL("(words @@ {}::tsquery)::int").format(one) for one in queries)]
            + [sql.SQL(") DESC, ")]
        )
        with self._reading(timeout_seconds) as connection, connection.cursor(binary=True) as cursor:
            for query, order in ((every, sql.SQL("")), (some, count))[len(queries) == 1 :]:
                filled = statement.format(
                    row=sql.SQL(_ROW),
                    view=self._names.view,
                    query=sql.Literal(query),
                    condition=condition,
                    count=order,
                )
                rows = cursor.execute(filled, {**values, "limit": limit}).fetchall()
                if len(rows) == limit:
                    break
        return [_row(row) for row in rows]

    def similar(
        self,
        embedding: npt.NDArray[np.float32],
        limit: int,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        filters: Filters = NO_FILTERS,
    ) -> list[SimilarRow]:
        """See `CatalogReader`. Once the catalogue has its index, HNSW, this finds nearly all of the nearest ones."""
        query = unit(embedding)
        if limit < 1:
            return []
        if self._embedding_size:
            check_size(query.size, self._embedding_size)
        condition, values = _condition(filters)
        statement = sql.SQL(
            "SELECT {row}, 1 - (embedding <=> %(query)s::vector) FROM {view} WHERE true {condition} "
            "ORDER BY embedding <=> %(query)s::vector LIMIT %(limit)s"
        ).format(row=sql.SQL(_ROW), view=self._names.view, condition=condition)
        with self._reading(timeout_seconds) as connection, connection.cursor(binary=True) as cursor:
            width = str(min(_MAX_EF_SEARCH, max(_MIN_EF_SEARCH, 2 * limit)))
            cursor.execute(_VECTOR_SETTINGS, (width,))
            values |= {"query": vector_text(query), "limit": limit}
            rows = cursor.execute(statement, values).fetchall()
            if filters and len(rows) < limit:
                # The index gives up where few of the nearest products pass; then all that pass are compared.
                cursor.execute("SELECT set_config('enable_indexscan', 'off', true)")
                rows = cursor.execute(statement, values).fetchall()
        return [SimilarRow(_row(row[:-1]), float(row[-1])) for row in rows]

    def close(self) -> None:
        """Close all connections."""
        self._pool.close(timeout=1.0)

    @contextmanager
    def _reading(self, timeout_seconds: float) -> Iterator[psycopg.Connection[Any]]:
        """Run the block in a transaction with a time limit."""
        deadline = time.monotonic() + timeout_seconds
        if timeout_seconds <= 0:
            raise CatalogTimeoutError(f"{self._address} did not answer in time")
        with translated(self._address), self._pool.connection(min(timeout_seconds, _RECONNECT_SECONDS)) as connection:
            left_ms = max(1, round((deadline - time.monotonic()) * 1000))
            with connection.transaction():
                connection.execute("SELECT set_config('statement_timeout', %s, true)", (str(left_ms),))
                yield connection


def _row(columns: Sequence[Any]) -> CatalogRow:
    path, title, url, width, height, embedding, thumbnail = columns
    return CatalogRow(
        path=path,
        title=title,
        url=url,
        width=width,
        height=height,
        embedding=np.array(embedding, np.float32),
        thumbnail=bytes(thumbnail),
    )


def _tsquery(word: tuple[str, ...]) -> str:
    """Return the expression for a word: as one word, or its parts in sequence."""
    joined, *parts = (f"'{part}'" for part in word)
    return f"({joined} | ({' <-> '.join(parts)}))" if parts else joined


def _condition(filters: Filters) -> tuple[sql.Composable, dict[str, Any]]:
    """Return what follows WHERE ..., and its values."""
    given: dict[str, tuple[LiteralString, Any]] = {
        "min_price": ("AND price >= %(min_price)s", filters.min_price),
        "max_price": ("AND price <= %(max_price)s", filters.max_price),
        "is_available": ("AND is_available = %(is_available)s", filters.is_available),
        "categories": ("AND category = ANY(%(categories)s)", list(filters.categories) or None),
    }
    used = {name: pair for name, pair in given.items() if pair[1] is not None}
    conditions = sql.SQL(" ").join(sql.SQL(text) for text, _ in used.values())
    return conditions, {name: value for name, (_, value) in used.items()}
