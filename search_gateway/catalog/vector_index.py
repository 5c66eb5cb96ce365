# SPDX-License-Identifier: Apache-2.0
"""Keeps the embeddings of a catalogue in memory and finds those nearest to a photo's, by comparing all of them.

Use it only in the thread that opened the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gateway.catalog.base import check_size
from search_gateway.catalog.database import CatalogDatabase

# Reading `products` itself would read every thumbnail of the file for 8 bytes per row.
_IDS = "SELECT id FROM products INDEXED BY products_by_revision"
_CHANGED = "SELECT id, embedding FROM products WHERE revision > ?"
_COPIED_AT_ONCE = 4096  # rows; copying all at once would double the memory


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The products most like a photo, the most similar first, equal ones in the order of their ids."""

    ids: list[int]
    cosines: list[float]  # -1 to 1


@dataclass(frozen=True, eq=False)
class _State:
    """The embeddings in memory, and the state of the file that they come from."""

    version: int  # SQLite's counter of changes by other connections
    revision: int  # our counter, of the newest embeddings in memory
    ids: npt.NDArray[np.int64]  # [N], ascending
    matrix: npt.NDArray[np.float32]  # [N, D], each L2-normalised


class VectorIndex:
    """The embeddings of an open catalogue: N x D x 4 bytes, briefly twice that when products are added or removed."""

    def __init__(self, file: CatalogDatabase) -> None:
        self._file = file
        self._state: _State | None = None
        self._is_stale = False

    def changed(self) -> None:
        """Mark the embeddings as outdated. Call this when this connection writes; SQLite's counter excludes that."""
        self._is_stale = True

    def load(self) -> None:
        """Read what is not in memory yet. Call this inside `CatalogDatabase.reading`."""
        self._current()

    def nearest(
        self, unit: npt.NDArray[np.float32], limit: int, allowed: npt.NDArray[np.int64] | None = None
    ) -> Neighbours:
        """Find the products with the largest cosine. Call this inside `CatalogDatabase.reading`.

        Args:
            unit: the photo's embedding, float32 [D], L2-normalised.
            limit: maximum number of products.
            allowed: ids of the products that may be found; None: all.

        Raises:
            ValueError: the embedding's size differs from the stored ones.
        """
        state = self._current()
        if not len(state.ids):
            return Neighbours([], [])
        check_size(unit.size, state.matrix.shape[1])
        cosines, ids = state.matrix @ unit, state.ids
        if allowed is not None:
            is_allowed = np.isin(ids, allowed)
            cosines, ids = cosines[is_allowed], ids[is_allowed]
        best = largest(cosines, limit)
        return Neighbours(ids[best].tolist(), cosines[best].tolist())

    def _current(self) -> _State:
        version = self._file.integer("PRAGMA data_version")
        if self._state is None or self._is_stale or self._state.version != version:
            self._state = self._read(self._state, version)
            self._is_stale = False
        return self._state

    def _read(self, old: _State | None, version: int) -> _State:
        file = self._file
        revision, size = int(file.meta("revision", "0")), int(file.meta("embedding_size", "0"))
        ids = np.fromiter((found for (found,) in file.connection.execute(_IDS)), np.int64)
        ids.sort()
        if old is not None and np.array_equal(ids, old.ids):
            matrix = old.matrix
        else:
            matrix = np.empty((len(ids), size), np.float32)
            if old is not None:
                _, here, there = np.intersect1d(ids, old.ids, assume_unique=True, return_indices=True)
                for start in range(0, len(here), _COPIED_AT_ONCE):
                    end = start + _COPIED_AT_ONCE
                    matrix[here[start:end]] = old.matrix[there[start:end]]
        for product_id, embedding in file.connection.execute(_CHANGED, (0 if old is None else old.revision,)):
            matrix[ids.searchsorted(product_id)] = np.frombuffer(embedding, "<f4")
        return _State(version, revision, ids, matrix)


def largest(values: npt.NDArray[np.floating[Any]], limit: int) -> npt.NDArray[np.intp]:
    """Return the places of the `limit` largest of the values [N], largest first; of equals the first comes first.

    These are the first places of a stable sort, but not all values are sorted.
    """
    if 0 < limit < len(values):
        least = np.partition(values, -limit)[-limit]
        at = np.flatnonzero(values >= least)
    else:
        at = np.arange(len(values))
    return at[np.argsort(-values[at], kind="stable")][:limit]
