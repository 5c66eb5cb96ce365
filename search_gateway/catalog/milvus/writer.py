# SPDX-License-Identifier: Apache-2.0
"""A catalogue in Milvus that is built."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

import pymilvus

from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import (
    DEFAULT_TIMEOUT_SECONDS,
    Attributes,
    CatalogEntry,
    CatalogError,
    CatalogModel,
    CatalogProduct,
    PhotoStamp,
    check_size,
    refusal_of,
    units_of,
)
from search_gateway.catalog.generations import SCHEMA_VERSION, superfluous, targets
from search_gateway.catalog.milvus.schema import MAX_PATH_BYTES, MAX_TEXT_BYTES, indexes, schema_of
from search_gateway.catalog.milvus.server import PROPERTY, Collection, Server
from search_gateway.catalog.text_analysis import one_line, stems

_CALL_SECONDS = 60.0  # of one call of a build
_BATCH = 1000  # products of one call that reads or deletes
_ENTRY = ["path", "title", "url", "size_bytes", "mtime_ns", "sha256", "price", "is_available", "category"]
_WRITTEN = [*_ENTRY, "words", "width", "height", "embedding", "thumbnail"]


class MilvusWriter:
    """A catalogue that is built.

    Args:
        address: of the catalogue.
        model: the model of the embeddings that will be added.
        is_anew: build beside the present data even if they are of this model.

    Raises:
        CatalogError: the server cannot be reached, or refuses.
    """

    def __init__(self, address: CatalogAddress, model: CatalogModel, *, is_anew: bool = False) -> None:
        self._address = address
        self._model = model
        self._is_anew = is_anew
        self._server = Server(address, model)
        try:
            with self._server.translated():
                self._client = self._server.client(DEFAULT_TIMEOUT_SECONDS)
                self._previous, self._own = self._targets()
        except BaseException:
            self._server.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    def build_id(self) -> str:
        """See `CatalogWriter`."""
        with self._server.translated():
            own = self._targets()[1] if self._own is None else self._own
            if own is None:
                return ""
            described = self._client.describe_collection(own.name, timeout=_CALL_SECONDS)
        return f"{own.name} {described.get('collection_id', '')} {described.get('created_timestamp', '')}"

    def entries(self) -> list[CatalogEntry]:
        """See `CatalogWriter`."""
        return self._entries(self._own)

    def previous_entries(self) -> list[CatalogEntry]:
        """See `CatalogWriter`."""
        return self._entries(self._previous)

    def refusal(self, entry: CatalogEntry) -> str:
        """See `CatalogWriter`."""
        return refusal_of(entry, max_path_bytes=MAX_PATH_BYTES, max_text_bytes=MAX_TEXT_BYTES)

    def add(self, products: Sequence[CatalogProduct]) -> None:
        """See `CatalogWriter`."""
        if not products:
            return
        units = units_of(products, None if self._own is None else self._own.embedding_size)
        if self._own is None:
            self._own = self._created(units[0].size)
        rows = {
            product.entry.path: {
                **_described(product.entry),
                "width": product.width,
                "height": product.height,
                "embedding": one.tolist(),
                "thumbnail": base64.b64encode(product.thumbnail).decode(),
            }
            for product, one in zip(products, units, strict=True)
        }
        self._upsert(list(rows.values()))

    def move(self, moves: Iterable[tuple[str, CatalogEntry]]) -> None:
        """See `CatalogWriter`."""
        entries = dict(moves)
        if self._own is None or not entries:
            return
        taken = [entry.path for path, entry in entries.items() if entry.path != path]
        if any(row["path"] not in entries for row in self._rows(taken, ["path"])):
            raise CatalogError(f"{self._address} cannot be used: a path belongs to another product")
        rows = self._rows(list(entries), _WRITTEN)
        self._upsert([{**row, **_described(entries[row["path"]])} for row in rows])
        self.remove(entries.keys() - {entry.path for entry in entries.values()})

    def remove(self, paths: Iterable[str]) -> None:
        """See `CatalogWriter`."""
        removed = list(paths)
        if self._own is None:
            return
        for at in range(0, len(removed), _BATCH):
            with self._server.translated():
                self._client.delete(self._own.name, ids=removed[at : at + _BATCH], timeout=_CALL_SECONDS)

    def optimize(self) -> None:
        """See `CatalogWriter`. Milvus builds and merges its indexes by itself."""

    def publish(self) -> None:
        """See `CatalogWriter`. Drops what it replaces if that is of the same model."""
        if self._own is None or self._own.is_live:
            return
        with self._server.translated():
            self._show(self._own)
            for one in self._server.generations(_CALL_SECONDS):
                if one.is_of(self._model) and one.name != self._own.name:
                    self._client.drop_collection(one.name, timeout=_CALL_SECONDS)

    def prune(self) -> list[str]:
        """Drop the data of all other models and unfinished builds; returns what was dropped.

        Raises:
            CatalogError: no data of this model are searched, or the server refuses.
        """
        with self._server.translated():
            generations = self._server.generations(_CALL_SECONDS)
            others = superfluous(str(self._address), generations, self._model)
            for one in others:
                if one.is_live:
                    self._client.drop_alias(one.alias, timeout=_CALL_SECONDS)
                self._client.drop_collection(one.name, timeout=_CALL_SECONDS)
        return [str(one) for one in others]

    def _targets(self) -> tuple[Collection | None, Collection | None]:
        """Return the generation that will be replaced and the one to be written, each None if there is none."""
        return targets(self._server.generations(_CALL_SECONDS), self._model, is_anew=self._is_anew)

    def _created(self, size: int) -> Collection:
        """Create the generation to be written, or return that of a build that began meanwhile."""
        model, alias = self._model, self._server.alias
        with self._server.translated():
            self._previous, own = self._targets()
            if own is None:
                number = 1 + max(
                    (one.number for one in self._server.generations(_CALL_SECONDS) if one.is_of(model)), default=0
                )
                name = f"{alias}__{number}"
                description = json.dumps(
                    {
                        "fingerprint": model.fingerprint,
                        "model": model.name,
                        "version": SCHEMA_VERSION,
                        "embedding_size": size,
                    }
                )
                try:
                    self._client.create_collection(
                        name,
                        schema=schema_of(size, description),
                        index_params=indexes(),
                        properties={PROPERTY: description},
                        timeout=_CALL_SECONDS,
                    )
                except pymilvus.MilvusException:
                    if not self._client.has_collection(name, timeout=_CALL_SECONDS):
                        raise
                own = Collection(number, model.fingerprint, model.name, SCHEMA_VERSION, size, False, name, alias)
            check_size(size, own.embedding_size)
            if self._previous is None and not own.is_live:  # nothing is searched yet
                own = self._show(own)
        return own

    def _show(self, generation: Collection) -> Collection:
        """Let the alias show a generation."""
        client = self._client
        client.load_collection(generation.name, timeout=_CALL_SECONDS)
        try:
            client.create_alias(generation.name, generation.alias, timeout=_CALL_SECONDS)
        except pymilvus.MilvusException:  # there is one
            client.alter_alias(generation.name, generation.alias, timeout=_CALL_SECONDS)
        return replace(generation, is_live=True)

    def _entries(self, generation: Collection | None) -> list[CatalogEntry]:
        if generation is None:
            return []
        return [
            CatalogEntry(
                path=row["path"],
                title=row["title"],
                url=row["url"],
                stamp=PhotoStamp(row["size_bytes"], row["mtime_ns"], row["sha256"]),
                attributes=Attributes(row["price"], row["is_available"], row["category"]),
            )
            for row in self._all(generation)
        ]

    def _all(self, generation: Collection) -> Iterator[dict[str, Any]]:
        with self._server.translated():
            self._client.load_collection(generation.name, timeout=_CALL_SECONDS)
            iterator = self._client.query_iterator(
                generation.name,
                batch_size=_BATCH,
                filter="",
                output_fields=_ENTRY,
                consistency_level="Strong",
                timeout=_CALL_SECONDS,
            )
            try:
                while batch := iterator.next():
                    yield from batch
            finally:
                iterator.close()

    def _rows(self, paths: Sequence[str], fields: list[str]) -> list[dict[str, Any]]:
        assert self._own is not None
        rows: list[dict[str, Any]] = []
        for at in range(0, len(paths), _BATCH):
            with self._server.translated():
                rows += self._client.query(
                    self._own.name,
                    ids=list(paths[at : at + _BATCH]),
                    output_fields=fields,
                    consistency_level="Strong",
                    timeout=_CALL_SECONDS,
                )
        return rows

    def _upsert(self, rows: list[dict[str, Any]]) -> None:
        assert self._own is not None
        for at in range(0, len(rows), _BATCH):
            with self._server.translated():
                self._client.upsert(self._own.name, rows[at : at + _BATCH], timeout=_CALL_SECONDS)


def _described(entry: CatalogEntry) -> dict[str, Any]:
    stamp, attributes = entry.stamp, entry.attributes
    return {
        "path": entry.path,
        "title": one_line(entry.title),
        "url": one_line(entry.url),
        "size_bytes": stamp.size_bytes,
        "mtime_ns": stamp.mtime_ns,
        "sha256": stamp.sha256,
        "price": attributes.price,
        "is_available": attributes.is_available,
        "category": one_line(attributes.category),
        "words": " ".join(stems(entry.title))[: MAX_TEXT_BYTES // 4],
    }
