# SPDX-License-Identifier: Apache-2.0
"""A catalogue in Milvus that is searched."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import (
    DEFAULT_TIMEOUT_SECONDS,
    NO_FILTERS,
    CatalogError,
    CatalogModel,
    CatalogRow,
    CatalogTimeoutError,
    CatalogUnreachableError,
    Filters,
    SimilarRow,
    check_size,
    unit,
)
from search_gateway.catalog.generations import searched
from search_gateway.catalog.milvus.server import Server
from search_gateway.catalog.text_analysis import one_line, query_stems

_MIN_EF, _MAX_EF = 64, 1000
_OVERFETCH = 2  # BM25 may prefer one rare word to two common ones; more titles are asked for and put into our order
_ROW = ["path", "title", "url", "width", "height", "embedding", "thumbnail"]


class MilvusReader:
    """A catalogue that is searched.

    Args:
        address: of the catalogue.
        model: the model in use.
    """

    def __init__(self, address: CatalogAddress, model: CatalogModel) -> None:
        self._address = address
        self._model = model
        self._server = Server(address, model)
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
