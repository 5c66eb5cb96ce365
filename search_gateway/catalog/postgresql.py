# SPDX-License-Identifier: Apache-2.0
"""A catalogue in PostgreSQL with the extension pgvector, 0.8 or later.

A catalogue NAME is the table NAME, which lists its generations, and a table NAME_1, NAME_2, ... for the products of
each. The view NAME_m<model> shows the one generation that gateways with this model search. So a catalogue can be built
for another model, or anew, beside the one that is searched, and the view is replaced in one transaction. A search holds
a lock on the view until it ends; thus it never meets a table that is being dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, LiteralString, Self

import numpy as np
import numpy.typing as npt

from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import (
    DEFAULT_TIMEOUT_SECONDS,
    NO_FILTERS,
    Attributes,
    CatalogEntry,
    CatalogError,
    CatalogModel,
    CatalogProduct,
    CatalogRow,
    CatalogTimeoutError,
    CatalogUnreachableError,
    Filters,
    PhotoStamp,
    SimilarRow,
    check_size,
    unit,
)
from search_gateway.catalog.generations import (
    SCHEMA_VERSION,
    Generation,
    model_key,
    searched,
    superfluous,
    targets,
)
from search_gateway.catalog.text_analysis import one_line, query_stems, stems

try:
    import psycopg
    import psycopg_pool
    from psycopg import sql
except ImportError as _error:
    raise CatalogError(
        "a catalogue in PostgreSQL needs the extra postgresql: pip install 'captrieve[postgresql]'"
    ) from _error

# It logs every attempt to connect; `server_catalog.py` tells that the server is away, and that it is back.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

_MAX_STEMS = 10_000  # of a title; PostgreSQL counts positions up to 16,383
_CONNECT_SECONDS = 5
_MAX_IDLE_SECONDS = 300.0
_RECONNECT_SECONDS = 2.0  # a search that gets no connection for so long fails, and the next one tries again
_LOST_SECONDS = 5  # a peer that acknowledges nothing for so long is gone
_MIN_EF_SEARCH, _MAX_EF_SEARCH = 40, 1000  # pgvector's default and limit

_REGISTRY = """
    CREATE TABLE IF NOT EXISTS {name} (
        generation integer PRIMARY KEY,
        fingerprint text NOT NULL,
        model_name text NOT NULL,
        schema_version integer NOT NULL,
        embedding_size integer NOT NULL,
        is_live boolean NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
"""
_PRODUCTS = """
    CREATE TABLE {table} (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        path text NOT NULL UNIQUE,
        title text NOT NULL,
        url text NOT NULL,
        size_bytes bigint NOT NULL,
        mtime_ns bigint NOT NULL,
        sha256 text NOT NULL,
        price double precision,
        is_available boolean,
        category text NOT NULL,
        words tsvector NOT NULL,
        width integer NOT NULL,
        height integer NOT NULL,
        embedding vector({size}) NOT NULL,
        thumbnail bytea NOT NULL
    )
"""
# After the products, because loading them is faster without. Small ones serve a selective filter.
_INDEXES: tuple[tuple[str, LiteralString], ...] = (
    ("words", "CREATE INDEX IF NOT EXISTS {index} ON {table} USING gin (words)"),
    ("price", "CREATE INDEX IF NOT EXISTS {index} ON {table} (price)"),
    ("category", "CREATE INDEX IF NOT EXISTS {index} ON {table} USING hash (category)"),  # of any length
    ("embedding", "CREATE INDEX IF NOT EXISTS {index} ON {table} USING hnsw (embedding vector_cosine_ops)"),
)
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
_VECTOR_SETTINGS = (
    "SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'strict_order', true)"
)
_ROW = "path, title, url, width, height, embedding::real[], thumbnail"


class _Names:
    """The names of a catalogue's tables."""

    def __init__(self, address: CatalogAddress, model: CatalogModel) -> None:
        self._name = address.name
        self.registry = sql.Identifier(address.name)
        self.view = sql.Identifier(f"{address.name}_m{model_key(model.fingerprint)}")

    def table(self, generation: int) -> sql.Identifier:
        return sql.Identifier(f"{self._name}_{generation}")

    def index(self, generation: int, of: str) -> sql.Identifier:
        return sql.Identifier(f"{self._name}_{generation}_{of}")


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
        self._names = _Names(address, model)
        self._embedding_size = 0
        self._pool: psycopg_pool.ConnectionPool[psycopg.Connection[Any]] = psycopg_pool.ConnectionPool(
            _conninfo(address),
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
            generations = _generations(connection, self._names)
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
            values |= {"query": _vector(query), "limit": limit}
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
        with _translated(self._address), self._pool.connection(min(timeout_seconds, _RECONNECT_SECONDS)) as connection:
            left_ms = max(1, round((deadline - time.monotonic()) * 1000))
            with connection.transaction():
                connection.execute("SELECT set_config('statement_timeout', %s, true)", (str(left_ms),))
                yield connection


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
        self._names = _Names(address, model)
        self._is_anew = is_anew
        with _translated(address):
            self._connection = psycopg.connect(_conninfo(address), autocommit=True)
        try:
            with self._changing():
                self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                self._connection.execute(sql.SQL(_REGISTRY).format(name=self._names.registry))
            with _translated(address):
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
        with _translated(self._address):
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

    def add(self, products: Sequence[CatalogProduct]) -> None:
        """See `CatalogWriter`."""
        units = [unit(product.embedding) for product in products]
        if not products:
            return
        size = units[0].size if self._own is None else self._own.embedding_size
        for one in units:
            check_size(one.size, size)
        if self._own is None:
            self._own = self._created(size)
        values = [
            (*_described(product.entry), product.width, product.height, _vector(one), product.thumbnail)
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
        table = self._names.table(self._own.number)
        with self._changing():
            for of, statement in _INDEXES:
                index = self._names.index(self._own.number, of)
                self._connection.execute(sql.SQL(statement).format(index=index, table=table))
        with _translated(self._address):
            self._connection.execute(sql.SQL("ANALYZE {table}").format(table=table))

    def publish(self) -> None:
        """See `CatalogWriter`. Drops what it replaces if that is of the same model."""
        if self._own is None or self._own.is_live:
            return
        with self._changing():
            self._show(self._own)
        with self._changing():
            replaced = [
                one for one in _generations(self._connection, self._names)
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
            generations = _generations(self._connection, self._names)
            others = superfluous(str(self._address), generations, self._model)
            for one in others:
                if not one.is_of(self._model):
                    view = _Names(self._address, CatalogModel(one.fingerprint)).view
                    self._connection.execute(sql.SQL("DROP VIEW IF EXISTS {view}").format(view=view))
                self._drop(one)
        return [str(one) for one in others]

    def _targets(self) -> tuple[Generation | None, Generation | None]:
        """Return the generation that will be replaced and the one to be written, each None if there is none."""
        return targets(_generations(self._connection, self._names), self._model, is_anew=self._is_anew)

    def _created(self, size: int) -> Generation:
        """Create the generation to be written, or return that of a build that began meanwhile."""
        with self._changing():
            self._previous, own = self._targets()
            if own is not None:
                check_size(size, own.embedding_size)
                return own
            generations = _generations(self._connection, self._names)
            number = 1 + max((one.number for one in generations), default=0)
            own = Generation(number, self._model.fingerprint, self._model.name, SCHEMA_VERSION, size, False)
            statement = sql.SQL(_PRODUCTS).format(table=self._names.table(number), size=sql.Literal(size))
            self._connection.execute(statement)
            self._connection.execute(
                sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, %s, %s, false)").format(self._names.registry),
                (number, own.fingerprint, own.model_name, own.schema_version, size),
            )
            if self._previous is None:  # nothing is searched yet
                own = self._show(own)
        return own

    def _show(self, generation: Generation) -> Generation:
        """Let the view show a generation; inside a transaction."""
        names, execute = self._names, self._connection.execute
        execute(
            sql.SQL("CREATE OR REPLACE VIEW {} AS SELECT * FROM {}").format(names.view, names.table(generation.number))
        )
        execute(
            sql.SQL("UPDATE {} SET is_live = (generation = %s) WHERE fingerprint = %s AND schema_version = %s").format(
                names.registry
            ),
            (generation.number, generation.fingerprint, generation.schema_version),
        )
        return replace(generation, is_live=True)

    def _drop(self, generation: Generation) -> None:
        execute = self._connection.execute
        execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._names.table(generation.number)))
        execute(sql.SQL("DELETE FROM {} WHERE generation = %s").format(self._names.registry), (generation.number,))

    def _entries(self, generation: Generation | None) -> list[CatalogEntry]:
        if generation is None:
            return []
        statement = sql.SQL("SELECT {} FROM {}").format(sql.SQL(_ENTRY), self._names.table(generation.number))
        with _translated(self._address):
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
        filled = sql.SQL(statement).format(table=self._names.table(self._own.number))
        # Two builds that lock products in the same order cannot wait for each other.
        ordered = sorted(values, key=lambda one: str(one[0]))
        with _translated(self._address), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(filled, ordered)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Run the block as a transaction that changes tables, alone among all builds of the catalogue."""
        with _translated(self._address), self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"captrieve {self._address.name}",))
            yield


def _conninfo(address: CatalogAddress) -> str:
    """Return what libpq connects with; the address's own options have priority."""
    options: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives_idle": _LOST_SECONDS,
        "keepalives_interval": _LOST_SECONDS,
        "keepalives_count": 2,
        "tcp_user_timeout": 1000 * _LOST_SECONDS,
        "application_name": "captrieve",
    }
    given = {name for name, _ in address.options}
    added = {name: value for name, value in options.items() if name not in given}
    if address.password:
        added["password"] = address.password
    try:
        return psycopg.conninfo.make_conninfo(address.url(), **added)
    except psycopg.Error as error:
        raise CatalogError(f"{address} is no address of PostgreSQL: {_line(error)}") from None


def _generations(connection: psycopg.Connection[Any], names: _Names) -> list[Generation]:
    """Return the generations, the oldest first; none if there is no such catalogue."""
    if connection.execute("SELECT to_regclass(%s)", (names.registry.as_string(connection),)).fetchone() == (None,):
        return []
    columns = "generation, fingerprint, model_name, schema_version, embedding_size, is_live"
    statement = sql.SQL("SELECT {} FROM {} ORDER BY generation").format(sql.SQL(columns), names.registry)
    return [Generation(*row) for row in connection.execute(statement)]


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


def _vector(embedding: npt.NDArray[np.float32]) -> str:
    """Return an embedding as pgvector reads it."""
    return str(embedding.tolist())


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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def _translated(address: CatalogAddress) -> Iterator[None]:
    """Translate psycopg's errors into CatalogErrors."""
    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        raise CatalogTimeoutError(f"{address} did not answer in time") from error
    except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported) as error:
        raise CatalogError(f"{address}: the server has no pgvector ({_line(error)})") from error
    except (psycopg_pool.PoolTimeout, psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise CatalogUnreachableError(f"{address} cannot be reached: {_line(error)}") from error
    except psycopg.errors.UndefinedTable as error:
        raise CatalogError(f"{address} was dropped or replaced meanwhile: try again") from error
    except psycopg.Error as error:
        raise CatalogError(f"{address} cannot be used: {_line(error)}") from error
