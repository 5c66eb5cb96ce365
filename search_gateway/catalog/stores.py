# SPDX-License-Identifier: Apache-2.0
"""Opens catalogues by their addresses. The libraries of a server are imported only when one is used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogAnswer, CatalogError, CatalogModel, CatalogReader, CatalogWriter
from search_gateway.catalog.file_build import CatalogFileBuild
from search_gateway.catalog.live_catalog import LiveCatalog
from search_gateway.catalog.server_catalog import MAX_CONCURRENT, CheckedReader, ServerCatalog
from search_gateway.config import GatewayConfig

if TYPE_CHECKING:
    from search_gateway.catalog.milvus.writer import MilvusWriter
    from search_gateway.catalog.postgresql.writer import PostgresqlWriter

_T = TypeVar("_T")


class ServedCatalog(Protocol):
    """A catalogue that a gateway searches, and that may be replaced or away meanwhile."""

    def submit(self, search: Callable[[CatalogReader], _T]) -> Future[CatalogAnswer[_T]]:
        """Run a search in a thread.

        Raises:
            CatalogError: the catalogue cannot be searched now.
        """

    def reload(self) -> None:
        """Look at the catalogue again soon; does not block."""

    def problems(self) -> list[str]:
        """Return what is wrong, for the operator; does not block."""

    def close(self) -> None:
        """Close it; blocks for a few seconds at most."""


def address_of(text: str | Path, config: GatewayConfig) -> CatalogAddress:
    """Return a catalogue's address with the password of the settings.

    Raises:
        CatalogError: it is no address, or the file with the password cannot be read.
    """
    try:
        address = CatalogAddress.parse(text)
        password = config.catalog_password.get_secret_value() if config.catalog_password is not None else ""
        if config.catalog_password_file is not None and address.scheme != "file":
            password = password or config.catalog_password_file.read_text().strip()
    except ValueError as error:
        raise CatalogError(f"the address of the catalogue is wrong: give {error}") from None
    except OSError as error:
        raise CatalogError(f"CAPTRIEVE_CATALOG_PASSWORD_FILE cannot be read: {error.strerror}") from error
    return address.with_password(password)


def serve(address: CatalogAddress, model: CatalogModel) -> ServedCatalog:
    """Open a catalogue to search it.

    Raises:
        CatalogError: it is missing, no catalogue, of another model or version, or its library is not installed.
    """
    if address.scheme == "file":
        return LiveCatalog(address.file, model.fingerprint)
    return ServerCatalog(_reader(address, model), str(address))


def open_for_writing(
    address: CatalogAddress, model: CatalogModel, *, photos_folder: Path, is_anew: bool = False
) -> CatalogWriter:
    """Open a catalogue to build it; creates a missing one.

    Args:
        address: of the catalogue.
        model: the model of the embeddings that will be added.
        photos_folder: the folder that relative paths of photos refer to, which a file remembers.
        is_anew: build beside the present data even if they are of this model.

    Raises:
        CatalogError: it cannot be written, is no catalogue, or its library is not installed.
    """
    if address.scheme == "file":
        return CatalogFileBuild.open_for_building(address.file, model, photos_folder=photos_folder, is_anew=is_anew)
    return _writer(address, model, is_anew=is_anew)


def prune(address: CatalogAddress, model: CatalogModel) -> list[str]:
    """Drop what a server has of other models and of unfinished builds; returns what was dropped.

    Raises:
        CatalogError: the catalogue has no data of this model, or is a file, which has nothing to drop.
    """
    if address.scheme == "file":
        raise CatalogError(f"{address} is a file, which holds one model only: there is nothing to drop")
    with _writer(address, model, is_anew=False) as writer:
        return writer.prune()


def _reader(address: CatalogAddress, model: CatalogModel) -> CheckedReader:
    if address.scheme == "milvus":
        from search_gateway.catalog.milvus.reader import MilvusReader

        return MilvusReader(address, model)
    from search_gateway.catalog.postgresql.reader import PostgresqlReader

    return PostgresqlReader(address, model, MAX_CONCURRENT + 1)  # one for the check


def _writer(address: CatalogAddress, model: CatalogModel, *, is_anew: bool) -> PostgresqlWriter | MilvusWriter:
    if address.scheme == "milvus":
        from search_gateway.catalog.milvus.writer import MilvusWriter

        return MilvusWriter(address, model, is_anew=is_anew)
    from search_gateway.catalog.postgresql.writer import PostgresqlWriter

    return PostgresqlWriter(address, model, is_anew=is_anew)
