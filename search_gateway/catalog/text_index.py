# SPDX-License-Identifier: Apache-2.0
"""Finds titles with words of a query: those with more of them first, then by BM25, then the older ones first.

Use it only in the thread that opened the file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search_gateway.catalog.database import CatalogDatabase
from search_gateway.catalog.vector_index import largest

# SQLite takes about a microsecond to score a title, and ten milliseconds for "black" in 40,000 products. Most queries
# repeat colours and product types, so the titles of a word are cached until the file changes.
MAX_REMEMBERED_BYTES = 8_000_000  # of all cached words, also those that no title has
_ENTRY_BYTES = 120  # of a dictionary, in addition to its key and value

# FTS5's BM25: smaller is better.
_HITS = "SELECT rowid, rank FROM titles WHERE titles MATCH ?"
_BEST = "SELECT rowid FROM titles WHERE titles MATCH ? ORDER BY rank, rowid LIMIT ?"

_Hits = npt.NDArray[np.void]  # [n] of _HIT
_HIT = np.dtype([("id", np.int64), ("score", np.float64)])


class TextIndex:
    """The word index of an open catalogue."""

    def __init__(self, file: CatalogDatabase) -> None:
        self._file = file
        self._remembered: dict[str, _Hits] = {}  # least recently used first
        self._remembered_bytes = 0
        self._version = -1  # SQLite's counter of changes by other connections

    def changed(self) -> None:
        """Clear the cache. Call this when this connection writes; SQLite's counter excludes that."""
        self._remembered.clear()
        self._remembered_bytes = 0

    def best(self, phrases: Sequence[str], limit: int, allowed: npt.NDArray[np.int64] | None = None) -> list[int]:
        """Return ids of at most `limit` products, best first. Call this inside `CatalogDatabase.reading`.

        Args:
            phrases: an FTS5 expression for each word.
            limit: maximum number of products.
            allowed: ids of the products that may be found; None: all.
        """
        version = self._file.integer("PRAGMA data_version")
        if version != self._version:
            self.changed()
            self._version = version
        if len(phrases) > 1 and allowed is None:
            # Usually this finds enough titles, and is faster. They are the first of what `_with_any` would return.
            every = " AND ".join(f"({phrase})" for phrase in phrases)
            ids = [found for (found,) in self._file.connection.execute(_BEST, (every, limit))]
            if len(ids) == limit:
                return ids
        return self._with_any(phrases, limit, allowed)

    def _with_any(self, phrases: Sequence[str], limit: int, allowed: npt.NDArray[np.int64] | None) -> list[int]:
        """Count and score titles word by word: BM25 is a sum over words."""
        hits = np.concatenate([self._hits(phrase) for phrase in phrases])
        if allowed is not None:
            hits = hits[np.isin(hits["id"], allowed)]
        counts = np.bincount(hits["id"])  # [ids]
        scores = np.bincount(hits["id"], weights=hits["score"]).astype(np.float64)
        best: list[int] = []
        for count in range(len(phrases), 0, -1):
            ids = np.flatnonzero(counts == count)
            best += ids[largest(-scores[ids], limit - len(best))].tolist()
            if len(best) == limit:
                break
        return best

    def _hits(self, phrase: str) -> _Hits:
        """Return all titles with a word, and their scores."""
        hits = self._remembered.pop(phrase, None)
        if hits is None:
            hits = np.fromiter(self._file.connection.execute(_HITS, (phrase,)), _HIT)
            self._remembered_bytes += _size_in_bytes(phrase, hits)
        self._remembered[phrase] = hits
        while self._remembered_bytes > MAX_REMEMBERED_BYTES:
            oldest = next(iter(self._remembered))
            self._remembered_bytes -= _size_in_bytes(oldest, self._remembered.pop(oldest))
        return hits


def _size_in_bytes(phrase: str, hits: _Hits) -> int:
    """Return the memory that a cached word takes."""
    return sys.getsizeof(phrase) + sys.getsizeof(hits) + _ENTRY_BYTES
