# SPDX-License-Identifier: Apache-2.0
"""The catalogue stores that the tests of this folder run against."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from search_gateway.catalog.address import CatalogAddress
from tests.fakes.catalogue_servers import CatalogueServer, MilvusServer, PostgresqlServer

_numbers = itertools.count(1)


@dataclass
class Store:
    """A kind of store, and new catalogues in it."""

    kind: str
    folder: Path
    server: CatalogueServer | None = None

    def new_address(self, server: str = "") -> CatalogAddress:
        """The address of a catalogue that does not exist; through another HOST:PORT if one is given."""
        name = f"shop_{next(_numbers)}"
        if self.server is None:
            return CatalogAddress("file", self.folder / f"{name}.sqlite")
        at = server or self.server.address
        if self.kind == "milvus":
            return CatalogAddress.parse(f"milvus://{at}/{name}")
        return CatalogAddress.parse(f"postgresql://postgres:secret@{at}/postgres?catalog={name}")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[CatalogueServer]:
    with PostgresqlServer() as server:
        yield server


@pytest.fixture(scope="session")
def milvus_server() -> Iterator[CatalogueServer]:
    with MilvusServer() as server:
        yield server


@pytest.fixture
def store_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Store]:
    """A store of a kind: file, postgresql or milvus."""

    def make(kind: str) -> Store:
        server = None if kind == "file" else request.getfixturevalue(f"{kind}_server")
        return Store(kind, tmp_path, server)

    return make


@pytest.fixture(params=["file", "postgresql", "milvus"])
def store(request: pytest.FixtureRequest, store_of: Callable[[str], Store]) -> Store:
    return store_of(request.param)
