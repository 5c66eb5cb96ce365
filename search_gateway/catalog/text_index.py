# SPDX-License-Identifier: Apache-2.0
"""Which titles have the words of a query: more of the words before fewer, then by BM25, then the older ones first.

Belongs to the thread that opened the file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search_gateway.catalog.database import CatalogDatabase
from search_gateway.catalog.vector_index import largest

# A title costs SQLite about a microsecond to score, "black" in 40,000 products ten milliseconds. Colours and product
# types come again in most queries, so what it says of a word is remembered until the file changes.
MAX_REMEMBERED = 500_000  # titles, of all words together: 16 bytes each

# BM25 as FTS5 has it: the smaller, the better.
_HITS = "SELECT rowid, rank FROM titles WHERE titles MATCH ?"
_BEST = "SELECT rowid FROM titles WHERE titles MATCH ? ORDER BY rank, rowid LIMIT ?"

_Hits = npt.NDArray[np.void]  # [n] of _HIT
_HIT = np.dtype([("id", np.int64), ("score", np.float64)])


class TextIndex:
    """The word index of an open catalogue."""

    def __init__(self, file: CatalogDatabase) -> None:
        self._file = file
        self._remembered: dict[str, _Hits] = {}  # the word used last stands last
        self._num_remembered = 0
        self._version = -1  # SQLite's count of changes by others

    def changed(self) -> None:
        """This connection writes: SQLite's count of changes leaves those out."""
        self._remembered.clear()
        self._num_remembered = 0

    def best(self, phrases: Sequence[str], limit: int) -> list[int]:
        """Ids of at most `limit` products for FTS5 expressions, one a word; inside `CatalogDatabase.reading`."""
        version = self._file.integer("PRAGMA data_version")
        if version != self._version:
            self.changed()
            self._version = version
        if len(phrases) > 1:
            # Mostly enough, and faster: only those are scored. It is the head of what follows.
            every = " AND ".join(f"({phrase})" for phrase in phrases)
            ids = [found for (found,) in self._file.connection.execute(_BEST, (every, limit))]
            if len(ids) == limit:
                return ids
        return self._with_any(phrases, limit)

    def _with_any(self, phrases: Sequence[str], limit: int) -> list[int]:
        """BM25 is a sum over words, so each alone gives the count and, added in their order, the score."""
        hits = np.concatenate([self._hits(phrase) for phrase in phrases])
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
        """All titles with a word, and how well it fits them."""
        hits = self._remembered.pop(phrase, None)
        if hits is None:
            hits = np.fromiter(self._file.connection.execute(_HITS, (phrase,)), _HIT)
            self._num_remembered += len(hits)
        self._remembered[phrase] = hits
        while self._num_remembered > MAX_REMEMBERED:
            oldest = next(iter(self._remembered))
            self._num_remembered -= len(self._remembered.pop(oldest))
        return hits
