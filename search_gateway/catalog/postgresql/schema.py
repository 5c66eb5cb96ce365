# SPDX-License-Identifier: Apache-2.0
"""What is on the server: names, tables, indexes, and the generations of a catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql

from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogModel
from search_gateway.catalog.generations import Generation, model_key

REGISTRY = """
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
PRODUCTS = """
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
INDEXES: tuple[tuple[str, LiteralString], ...] = (
    ("words", "CREATE INDEX IF NOT EXISTS {index} ON {table} USING gin (words)"),
    ("price", "CREATE INDEX IF NOT EXISTS {index} ON {table} (price)"),
    ("category", "CREATE INDEX IF NOT EXISTS {index} ON {table} USING hash (category)"),  # of any length
    ("embedding", "CREATE INDEX IF NOT EXISTS {index} ON {table} USING hnsw (embedding vector_cosine_ops)"),
)


@dataclass(frozen=True)
class ProductTable(Generation):
    """A generation as a table."""

    table: str  # its name

    def index(self, of: str) -> sql.Identifier:
        """Return the name of an index."""
        return sql.Identifier(f"{self.table}_{of}")


class Names:
    """The names of a catalogue on the server."""

    def __init__(self, address: CatalogAddress, model: CatalogModel) -> None:
        self.table_prefix = f"{address.name}$"  # no catalogue's name has a $
        self.former_table_prefix = f"{address.name}_"  # another catalogue can have such a name
        self.registry = sql.Identifier(address.name)
        self.view = sql.Identifier(f"{address.name}_m{model_key(model.fingerprint)}")

    def table(self, generation: int) -> str:
        """Return the name of a new table."""
        return f"{self.table_prefix}{generation}"


def generations_of(connection: psycopg.Connection[Any], names: Names) -> list[ProductTable]:
    """Return the generations, the oldest first; none if there is no such catalogue."""
    if connection.execute("SELECT to_regclass(%s)", (names.registry.as_string(connection),)).fetchone() == (None,):
        return []
    statement = sql.SQL(
        "SELECT generation, fingerprint, model_name, schema_version, embedding_size, is_live, "
        "CASE WHEN to_regclass(quote_ident(%(prefix)s || generation)) IS NULL THEN %(former)s ELSE %(prefix)s END "
        "|| generation FROM {} ORDER BY generation"
    ).format(names.registry)
    prefixes = {"prefix": names.table_prefix, "former": names.former_table_prefix}
    return [ProductTable(*row) for row in connection.execute(statement, prefixes)]


def vector_text(embedding: npt.NDArray[np.float32]) -> str:
    """Return an embedding as pgvector reads it."""
    return str(embedding.tolist())
