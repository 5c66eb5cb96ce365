# SPDX-License-Identifier: Apache-2.0
"""A catalogue in Milvus, 2.5 or later: the server ranks titles by BM25 and embeddings by an HNSW index.

A catalogue NAME is a collection NAME__<model>__1, __2, ... for each generation, and an alias NAME__<model> for the one
that gateways with this model search. So a catalogue can be built for another model, or anew, beside the one that is
searched, and the alias is moved in one step. A collection tells its model in its properties and in its description,
since not every server keeps both.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import grpc
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
    import pymilvus
except ImportError as _error:
    raise CatalogError("a catalogue in Milvus needs the extra milvus: pip install 'captrieve[milvus]'") from _error

# It logs every failed call with a traceback; the callers of this module tell what matters.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)

_PROPERTY = "captrieve.catalogue"
_CALL_SECONDS = 60.0  # of one call of a build
_MAX_BYTES = 65_535  # of a text in Milvus
_MAX_PATH_BYTES = 4096
_BATCH = 1000  # products of one call that reads or deletes
_MIN_EF, _MAX_EF = 64, 1000
_OVERFETCH = 2  # BM25 may prefer one rare word to two common ones; more titles are asked for and put into our order
_CHANNEL = {"grpc.initial_reconnect_backoff_ms": 200, "grpc.max_reconnect_backoff_ms": 1000}
_TLS_OPTIONS = ("server_pem_path", "ca_pem_path", "client_pem_path", "client_key_path", "server_name")

_ENTRY = ["path", "title", "url", "size_bytes", "mtime_ns", "sha256", "price", "is_available", "category"]
_ROW = ["path", "title", "url", "width", "height", "embedding", "thumbnail"]
_WRITTEN = [*_ENTRY, "words", "width", "height", "embedding", "thumbnail"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Collection(Generation):
    """A generation as a collection."""

    name: str
    alias: str


class _Server:
    """A connection to Milvus, made when it is needed.

    Args:
        address: of the catalogue.
        model: of the embeddings.
    """

    def __init__(self, address: CatalogAddress, model: CatalogModel) -> None:
        self._address = address
        self.alias = f"{address.name}__{model_key(model.fingerprint)}"
        self._collection = re.compile(rf"({address.name}__[0-9a-f]{{8}})__(\d+)")
        self._client: Any = None
        self._one_connection = threading.Lock()

    def client(self, timeout_seconds: float) -> Any:
        """Return the connected client; inside `translated`."""
        with self._one_connection:
            if self._client is None:
                address, options = self._address, dict(self._address.options)
                user, _, host = address.server.rpartition("@")
                is_secure = options.pop("secure", "false") == "true" or any(name in options for name in _TLS_OPTIONS)
                self._client = pymilvus.MilvusClient(
                    uri=f"{'https' if is_secure else 'http'}://{host}",
                    token=f"{user}:{address.password}" if user else address.password,
                    db_name=address.database,
                    timeout=timeout_seconds,
                    dedicated=True,
                    grpc_options=_CHANNEL,
                    **options,
                )
            return self._client

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        with self._one_connection:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def generations(self, timeout_seconds: float) -> list[_Collection]:
        """Return the collections of the catalogue, the oldest of each model first."""
        client = self.client(timeout_seconds)
        found = []
        for name in client.list_collections(timeout=timeout_seconds):
            match = self._collection.fullmatch(name)
            if match is None:
                continue
            described = client.describe_collection(name, timeout=timeout_seconds)
            known = json.loads(described["properties"].get(_PROPERTY) or described["description"])
            found.append(
                _Collection(
                    int(match[2]),
                    known["fingerprint"],
                    known["model"],
                    known["version"],
                    known["embedding_size"],
                    match[1] in client.list_aliases(name, timeout=timeout_seconds)["aliases"],
                    name,
                    match[1],
                )
            )
        return sorted(found, key=lambda one: one.number)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate Milvus' errors into CatalogErrors."""
        address = self._address
        try:
            yield
        except grpc.RpcError as error:
            is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if is_late:
                raise CatalogTimeoutError(f"{address} did not answer in time") from error
            raise CatalogUnreachableError(f"{address} cannot be reached: {error.code().name}") from error
        except pymilvus.MilvusException as error:
            text = " ".join(str(error.message).split())[:300]
            if isinstance(error.code, grpc.StatusCode) or error.code == pymilvus.client.types.Status.CONNECT_FAILED:
                raise CatalogUnreachableError(f"{address} cannot be reached: {text}") from error
            raise CatalogError(f"{address} cannot be used: {text}") from error
        except OSError as error:
            raise CatalogError(f"{address} cannot be used: {error}") from error


class MilvusReader:
    """A catalogue that is searched.

    Args:
        address: of the catalogue.
        model: the model in use.
    """

    def __init__(self, address: CatalogAddress, model: CatalogModel) -> None:
        self._address = address
        self._model = model
        self._server = _Server(address, model)
        self._embedding_size = 0

    def check(self, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Check that there is a catalogue of the model in use.

        Raises:
            CatalogOutdatedError: its embeddings are of another model, or it is of another version.
            CatalogUnreachableError, CatalogTimeoutError: the server does not answer.
            CatalogError: no such catalogue.
        """
        try:
            with self._server.translated():
                generations = self._server.generations(timeout_seconds)
        except CatalogError:
            self._server.close()  # pymilvus gives up a connection that was lost for some time; the next call makes one
            raise
        self._embedding_size = searched(str(self._address), generations, self._model).embedding_size

    def find(
        self,
        words: Sequence[str],
        limit: int,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        filters: Filters = NO_FILTERS,
    ) -> list[CatalogRow]:
        """See `CatalogReader`. Products with equally many words are in the order of BM25."""
        queries = query_stems(words)
        if not queries or limit < 1:
            return []
        text = " ".join(dict.fromkeys(part for query in queries for part in query))
        found = self._search(text, "bm25", _OVERFETCH * limit, timeout_seconds, filters, {"metric_type": "BM25"})

        def count(hit: Mapping[str, Any]) -> int:
            indexed = f" {hit['entity']['words']} "
            return sum(f" {joined} " in indexed or f" {' '.join(parts)} " in indexed for joined, *parts in queries)

        counted = [(count(hit), hit) for hit in found]
        # A word of which only a part is in the title does not count.
        best = sorted((one for one in counted if one[0]), key=lambda one: -one[0])
        return [_row(hit["entity"]) for _, hit in best[:limit]]

    def similar(
        self,
        embedding: npt.NDArray[np.float32],
        limit: int,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        filters: Filters = NO_FILTERS,
    ) -> list[SimilarRow]:
        """See `CatalogReader`. The index HNSW finds nearly all of the nearest ones."""
        query = unit(embedding)
        if limit < 1:
            return []
        if self._embedding_size:
            check_size(query.size, self._embedding_size)
        parameters = {"metric_type": "COSINE", "params": {"ef": min(_MAX_EF, max(_MIN_EF, 2 * limit))}}
        found = self._search(query.tolist(), "embedding", limit, timeout_seconds, filters, parameters)
        return [SimilarRow(_row(hit["entity"]), float(hit["distance"])) for hit in found]

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    def _search(
        self, query: Any, field: str, limit: int, timeout_seconds: float, filters: Filters, parameters: dict[str, Any]
    ) -> list[Any]:
        """Return the hits of one query, best first."""
        deadline = time.monotonic() + timeout_seconds

        def search() -> list[Any]:
            left = deadline - time.monotonic()
            if left <= 0:
                raise CatalogTimeoutError(f"{self._address} did not answer in time")
            with self._server.translated():
                [hits] = self._server.client(left).search(
                    self._server.alias,
                    data=[query],
                    anns_field=field,
                    limit=limit,
                    filter=_expression(filters),
                    output_fields=[*_ROW, "words"],
                    search_params=parameters,
                    timeout=left,
                )
                return list(hits)

        try:
            return search()
        except (CatalogTimeoutError, CatalogUnreachableError):
            raise
        except CatalogError:
            # The alias may have moved and its former collection be gone, or the server may have been started anew.
            with self._server.translated():
                left = max(0.1, deadline - time.monotonic())
                self._server.client(left).load_collection(self._server.alias, timeout=left)
            return search()


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
        self._server = _Server(address, model)
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
        rows = {
            product.entry.path: {
                **_described(product.entry),
                "width": product.width,
                "height": product.height,
                "embedding": one.tolist(),
                "thumbnail": _bounded(base64.b64encode(product.thumbnail).decode(), product.entry.path, "thumbnail"),
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

    def _targets(self) -> tuple[_Collection | None, _Collection | None]:
        """Return the generation that will be replaced and the one to be written, each None if there is none."""
        return targets(self._server.generations(_CALL_SECONDS), self._model, is_anew=self._is_anew)

    def _created(self, size: int) -> _Collection:
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
                        schema=_schema(size, description),
                        index_params=_indexes(),
                        properties={_PROPERTY: description},
                        timeout=_CALL_SECONDS,
                    )
                except pymilvus.MilvusException:
                    if not self._client.has_collection(name, timeout=_CALL_SECONDS):
                        raise
                own = _Collection(number, model.fingerprint, model.name, SCHEMA_VERSION, size, False, name, alias)
            check_size(size, own.embedding_size)
            if self._previous is None and not own.is_live:  # nothing is searched yet
                own = self._show(own)
        return own

    def _show(self, generation: _Collection) -> _Collection:
        """Let the alias show a generation."""
        client = self._client
        client.load_collection(generation.name, timeout=_CALL_SECONDS)
        try:
            client.create_alias(generation.name, generation.alias, timeout=_CALL_SECONDS)
        except pymilvus.MilvusException:  # there is one
            client.alter_alias(generation.name, generation.alias, timeout=_CALL_SECONDS)
        return replace(generation, is_live=True)

    def _entries(self, generation: _Collection | None) -> list[CatalogEntry]:
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

    def _all(self, generation: _Collection) -> Iterator[dict[str, Any]]:
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


def _schema(size: int, description: str) -> Any:
    types = pymilvus.DataType
    schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
    schema.add_field("path", types.VARCHAR, is_primary=True, max_length=_MAX_PATH_BYTES)
    for name in ("title", "url", "sha256", "category", "thumbnail"):
        schema.add_field(name, types.VARCHAR, max_length=_MAX_BYTES)
    for name in ("size_bytes", "mtime_ns", "width", "height"):
        schema.add_field(name, types.INT64)
    schema.add_field("price", types.DOUBLE, nullable=True)
    schema.add_field("is_available", types.BOOL, nullable=True)
    # The words are stems already: the server only splits them.
    analyzer = {"tokenizer": "standard"}
    schema.add_field("words", types.VARCHAR, max_length=_MAX_BYTES, enable_analyzer=True, analyzer_params=analyzer)
    schema.add_field("embedding", types.FLOAT_VECTOR, dim=size)
    schema.add_field("bm25", types.SPARSE_FLOAT_VECTOR)
    schema.add_function(
        pymilvus.Function(
            name="bm25",
            function_type=pymilvus.FunctionType.BM25,
            input_field_names=["words"],
            output_field_names=["bm25"],
        )
    )
    return schema


def _indexes() -> Any:
    indexes = pymilvus.MilvusClient.prepare_index_params()
    build = {"M": 16, "efConstruction": 200}
    indexes.add_index("embedding", index_type="HNSW", metric_type="COSINE", params=build)
    indexes.add_index("bm25", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25", params={})
    return indexes


def _described(entry: CatalogEntry) -> dict[str, Any]:
    stamp, attributes = entry.stamp, entry.attributes
    if len(entry.path.encode("utf-8", "replace")) > _MAX_PATH_BYTES:
        raise CatalogError(f"the path {entry.path[:60]!r}... is longer than {_MAX_PATH_BYTES:,} bytes")
    return {
        "path": entry.path,
        "title": _bounded(one_line(entry.title), entry.path, "title"),
        "url": _bounded(one_line(entry.url), entry.path, "URL"),
        "size_bytes": stamp.size_bytes,
        "mtime_ns": stamp.mtime_ns,
        "sha256": stamp.sha256,
        "price": attributes.price,
        "is_available": attributes.is_available,
        "category": _bounded(one_line(attributes.category), entry.path, "category"),
        "words": " ".join(stems(entry.title))[: _MAX_BYTES // 4],
    }


def _bounded(text: str, path: str, what: str) -> str:
    if len(text.encode()) > _MAX_BYTES:
        raise CatalogError(f"the {what} of {path} is longer than Milvus can store, {_MAX_BYTES:,} bytes")
    return text


def _row(entity: Mapping[str, Any]) -> CatalogRow:
    return CatalogRow(
        path=entity["path"],
        title=entity["title"],
        url=entity["url"],
        width=entity["width"],
        height=entity["height"],
        embedding=np.array(entity["embedding"], np.float32),
        thumbnail=base64.b64decode(entity["thumbnail"]),
    )


def _expression(filters: Filters) -> str:
    """Return the filters in Milvus' language; empty for none."""
    conditions = [
        f"price >= {filters.min_price!r}" if filters.min_price is not None else "",
        f"price <= {filters.max_price!r}" if filters.max_price is not None else "",
        f"is_available == {str(filters.is_available).lower()}" if filters.is_available is not None else "",
        f"category in [{', '.join(map(_quoted, filters.categories))}]" if filters.categories else "",
    ]
    return " and ".join(filter(None, conditions))


def _quoted(text: str) -> str:
    """Return a text as Milvus writes it: unlike JSON, with control characters as they are."""
    return '"' + one_line(text).replace("\\", r"\\").replace('"', r"\"") + '"'
