# SPDX-License-Identifier: Apache-2.0
"""Finds the embeddings of a catalogue that are nearest to a photo's.

A catalogue of up to `MIN_LISTED_NUMBERS` is kept in memory and compared completely. A larger one has an index beside
its file, which `write_index` makes and the table `meta` names. What the index says is never taken for granted: each
product that it finds is looked up in the catalogue, and what was added or changed since then is compared completely.

Use it only in the thread that opened the file.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gateway.catalog.base import check_size
from search_gateway.catalog.database import CatalogDatabase
from search_gateway.catalog.inverted_lists import InvertedLists, ListsError, write_lists

_log = logging.getLogger(__name__)

# Products x width of an embedding: comparing more takes over 20 ms of one core (docs/scaling.md).
MIN_LISTED_NUMBERS = 40_000_000
NUM_COMPARED_LISTS = 32  # at first; docs/scaling.md has what is found with others
_MAX_CHANGED_SHARE = 0.1  # new, changed and deleted products, a changed one counted twice; then it is written anew

_MAX_WRITE_SECONDS = 86_400.0  # for an index; what an older build left is deleted
_META_KEY = "vector_index"
_SPARE = 32  # candidates that are looked up beyond those wanted, as some may be old
_READ_AT_ONCE = 10_000  # rows
_ROUNDING = 1e-4  # two computations of the cosine of two embeddings of up to 800 float32 numbers differ by less

# Reading `products` itself would read every thumbnail of the file for 8 bytes per row.
_IDS = "SELECT id FROM products INDEXED BY products_by_revision"
_CHANGED = "SELECT id, embedding FROM products WHERE revision > ?"
_NEW = "SELECT id, revision, embedding FROM products INDEXED BY products_by_revision WHERE revision > ?"
_NUM_NEW = "SELECT count(*) FROM products INDEXED BY products_by_revision WHERE revision > {}"
_REVISION = "SELECT revision, embedding FROM products WHERE id = ?"
_PART = "SELECT id, revision, embedding FROM products WHERE id > ? ORDER BY id LIMIT ?"
_COPIED_AT_ONCE = 4096  # rows; copying all at once would double the memory

_Ids = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The products most like a photo, the most similar first, equal ones in the order of their ids."""

    ids: list[int]
    cosines: list[float]  # -1 to 1


@dataclass(frozen=True, eq=False)
class _AllRows:
    """All embeddings of the file, in memory."""

    revision: int  # our counter, of the newest embeddings in memory
    ids: _Ids  # [N], ascending
    # [N, D], each L2-normalised. By columns: BLAS multiplies it with a vector in half the time that it takes by rows.
    matrix: _Floats

    def nearest(self, file: CatalogDatabase, unit: _Floats, limit: int, allowed: _Ids | None) -> Neighbours:
        """Compare all of them."""
        if not len(self.ids):
            return Neighbours([], [])
        check_size(unit.size, self.matrix.shape[1])
        cosines, at = self.matrix @ unit, np.arange(len(self.ids))
        if allowed is not None:
            at = np.flatnonzero(np.isin(self.ids, allowed))
            cosines = cosines[at]
        if limit < len(at):
            at = at[cosines >= np.partition(cosines, -limit)[-limit] - _ROUNDING]
        return _sorted(self.ids[at], self.matrix[at], unit, limit)


@dataclass(frozen=True, eq=False)
class _ListedRows:
    """The index of most products, and in memory the embeddings of those that came or changed since it was written."""

    revision: int
    lists: InvertedLists
    ids: _Ids  # [n], of the new ones
    revisions: _Ids  # [n]
    matrix: _Floats  # [n, D]

    def nearest(self, file: CatalogDatabase, unit: _Floats, limit: int, allowed: _Ids | None) -> Neighbours:
        """Compare the nearest lists and all new ones; more lists as long as too few of their products are current."""
        header = self.lists.header
        check_size(unit.size, header.size)
        num_lists = NUM_COMPARED_LISTS
        while True:
            listed, cosines = self.lists.compared(unit, num_lists)
            ids = np.concatenate([listed, self.ids])
            cosines = np.concatenate([cosines, self.matrix @ unit])
            # The least and the greatest revision that a product may have to be the one that was compared.
            least = np.concatenate([np.zeros_like(listed), self.revisions])
            most = np.concatenate([np.full_like(listed, header.revision), self.revisions])
            if allowed is not None:
                kept = np.isin(ids, allowed)
                ids, cosines, least, most = ids[kept], cosines[kept], least[kept], most[kept]
            found = _current_ones(file, unit, ids, cosines, least, most, limit)
            if len(found.ids) == limit or num_lists >= header.num_lists:
                return found
            num_lists *= 4


class VectorIndex:
    """The embeddings of an open catalogue.

    Without an index: N x D x 4 bytes, briefly twice that when products are added or removed. With one, the same for the
    products that are not in it.

    Args:
        file: the catalogue.
        path: of the catalogue, beside which its index is; of one that will replace another one, that one's path.
    """

    def __init__(self, file: CatalogDatabase, path: Path) -> None:
        self._file = file
        self.path = path
        self._rows: _AllRows | _ListedRows | None = None
        self._version = -1  # SQLite's counter of changes by other connections, of the state in memory
        self._is_stale = False
        self._superseded: set[str] = set()  # ids of indexes that the catalogue named before

    def changed(self) -> None:
        """Mark the embeddings as outdated. Call this when this connection writes; SQLite's counter excludes that."""
        self._is_stale = True

    def load(self) -> None:
        """Read what is not in memory yet. Call this inside `CatalogDatabase.reading`."""
        self._current()

    def nearest(self, unit: _Floats, limit: int, allowed: _Ids | None = None) -> Neighbours:
        """Find the products with the largest cosine. Call this inside `CatalogDatabase.reading`.

        Args:
            unit: the photo's embedding, float32 [D], L2-normalised.
            limit: maximum number of products.
            allowed: ids of the products that may be found; None: all.

        Raises:
            ValueError: the embedding's size differs from the stored ones.
        """
        try:
            return self._current().nearest(self._file, unit, limit, allowed)
        except ListsError as error:
            _log.warning("catalogue: compared completely until the file changes, since its index failed: %s", error)
            self._drop_lists()
            self._rows = self._read_all(None)
            return self._rows.nearest(self._file, unit, limit, allowed)

    def close(self) -> None:
        """Close the index."""
        self._drop_lists()

    def write_index(self, *, min_numbers: int) -> str:
        """Write the index, if the catalogue is large enough and has none, or one that too many changes made old.

        Others may read and write the catalogue meanwhile. What they change is not in the index.

        Args:
            min_numbers: products x width from which a catalogue gets one.

        Returns:
            The id of the index that the catalogue names now; "" if it needs none.

        Raises:
            CatalogError: the catalogue cannot be read or written.
            OSError: the index cannot be written.
        """
        file = self._file
        with file.reading():
            revision, size = int(file.meta("revision", "0")), int(file.meta("embedding_size", "0"))
            num_products = file.integer(_NUM_NEW.format(-1))
            old = self._opened_lists()
            num_new = 0 if old is None else file.integer(_NUM_NEW.format(old.header.revision))
        if old is not None:
            old.close()
        if num_products * size < max(1, min_numbers):
            return self._name("")
        if old is not None:
            num_gone = old.header.num_products - (num_products - num_new)
            if num_new + num_gone <= _MAX_CHANGED_SHARE * old.header.num_products:
                return old.header.index_id
        index_id = uuid.uuid4().hex[:16]
        write_lists(self._file_of(index_id), index_id, revision, size, self._parts(revision))
        return self._name(index_id)

    def delete_others(self, index_id: str, *, is_alone: bool) -> None:
        """Delete indexes but this one, and what builds left that were killed while writing one.

        Args:
            index_id: of the one to keep.
            is_alone: whether no other build can be at work; else only those go that this build replaced, and old ones.
        """
        name = glob.escape(self.path.name)
        for other in self.path.parent.glob(f"{name}.vectors-*"):
            other_id = other.name.rpartition("-")[2]
            with contextlib.suppress(OSError):
                if other_id != index_id and (is_alone or other_id in self._superseded or _is_old(other)):
                    other.unlink()
        for folder in self.path.parent.glob(f".{name}.vectors-*"):
            with contextlib.suppress(OSError):
                if _is_old(folder):
                    shutil.rmtree(folder)

    def _parts(self, revision: int) -> Iterator[tuple[_Ids, _Floats]]:
        """Read the embeddings up to a revision, in many short transactions, so that others can write between them."""
        last = -1
        while True:
            with self._file.reading():
                rows = self._file.connection.execute(_PART, (last, _READ_AT_ONCE)).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            kept = [(product_id, embedding) for product_id, changed, embedding in rows if changed <= revision]
            if kept:
                ids = np.array([product_id for product_id, _ in kept], np.int64)
                yield ids, np.frombuffer(b"".join(embedding for _, embedding in kept), "<f4").reshape(len(kept), -1)

    def _name(self, index_id: str) -> str:
        with self._file.writing():
            before = self._file.meta(_META_KEY)
            self._file.set_meta(_META_KEY, index_id)
        self._superseded |= {before} - {index_id}
        self.changed()
        return index_id

    def _file_of(self, index_id: str) -> Path:
        return self.path.with_name(f"{self.path.name}.vectors-{index_id}")

    def _opened_lists(self) -> InvertedLists | None:
        """Open the index that the catalogue names; None if there is none that can be used."""
        index_id = self._file.meta(_META_KEY)
        if not index_id:
            return None
        try:
            lists = InvertedLists(self._file_of(index_id))
        except ListsError as error:
            _log.warning("catalogue: compared completely, since its index is missing: %s", error)
            return None
        if (lists.header.index_id, str(lists.header.size)) == (index_id, self._file.meta("embedding_size")):
            return lists
        lists.close()
        return None

    def _current(self) -> _AllRows | _ListedRows:
        version = self._file.integer("PRAGMA data_version")
        if self._rows is None or self._is_stale or self._version != version:
            self._rows = self._read(self._rows)
            self._version, self._is_stale = version, False
        return self._rows

    def _read(self, old: _AllRows | _ListedRows | None) -> _AllRows | _ListedRows:
        if isinstance(old, _ListedRows):
            if old.lists.header.index_id == self._file.meta(_META_KEY):
                return self._read_new(old.lists, old)
            self._drop_lists()
            old = None
        lists = self._opened_lists()
        return self._read_all(old) if lists is None else self._read_new(lists, None)

    def _drop_lists(self) -> None:
        if isinstance(self._rows, _ListedRows):
            self._rows.lists.close()
            self._rows = None

    def _read_new(self, lists: InvertedLists, old: _ListedRows | None) -> _ListedRows:
        file = self._file
        revision = int(file.meta("revision", "0"))
        since = lists.header.revision if old is None else old.revision
        new = file.connection.execute(_NEW, (since,)).fetchall()
        ids = np.array([product_id for product_id, _, _ in new], np.int64)
        revisions = np.array([changed for _, changed, _ in new], np.int64)
        embeddings = b"".join(embedding for _, _, embedding in new)
        matrix = np.frombuffer(embeddings, "<f4").reshape(len(new), lists.header.size).astype(np.float32)
        if old is not None:
            kept = ~np.isin(old.ids, ids)
            ids, revisions = np.concatenate([old.ids[kept], ids]), np.concatenate([old.revisions[kept], revisions])
            matrix = np.concatenate([old.matrix[kept], matrix])
        return _ListedRows(revision, lists, ids, revisions, matrix)

    def _read_all(self, old: _AllRows | None) -> _AllRows:
        file = self._file
        revision, size = int(file.meta("revision", "0")), int(file.meta("embedding_size", "0"))
        ids = np.fromiter((found for (found,) in file.connection.execute(_IDS)), np.int64)
        ids.sort()
        if old is not None and np.array_equal(ids, old.ids):
            matrix = old.matrix
        else:
            matrix = np.empty((len(ids), size), np.float32, order="F")
            if old is not None:
                _, here, there = np.intersect1d(ids, old.ids, assume_unique=True, return_indices=True)
                for start in range(0, len(here), _COPIED_AT_ONCE):
                    end = start + _COPIED_AT_ONCE
                    matrix[here[start:end]] = old.matrix[there[start:end]]
        changed = file.connection.execute(_CHANGED, (0 if old is None else old.revision,))
        while rows := changed.fetchmany(_COPIED_AT_ONCE):
            embeddings = np.frombuffer(b"".join(embedding for _, embedding in rows), "<f4").reshape(len(rows), size)
            matrix[ids.searchsorted([product_id for product_id, _ in rows])] = embeddings
        return _AllRows(revision, ids, matrix)


def _is_old(file: Path) -> bool:
    """Whether a file or folder is so old that no build works on it."""
    return time.time() - file.stat().st_mtime > _MAX_WRITE_SECONDS


def _current_ones(
    file: CatalogDatabase, unit: _Floats, ids: _Ids, cosines: _Floats, least: _Ids, most: _Ids, limit: int
) -> Neighbours:
    """Return the best of those that the catalogue still has with a revision from `least` to `most`.

    The cosines are those of the embeddings in the catalogue.
    """
    num_candidates = limit + _SPARE
    while True:
        at = largest(cosines, num_candidates)
        found, embeddings = [], []
        for one in at.tolist():
            row = file.connection.execute(_REVISION, (int(ids[one]),)).fetchone()
            if row is not None and least[one] <= row[0] <= most[one]:
                found.append(int(ids[one]))
                embeddings.append(row[1])
                if len(found) == limit:
                    break
        if len(found) == limit or len(at) == len(ids):
            break
        num_candidates *= 4
    embeddings_found = np.frombuffer(b"".join(embeddings), "<f4").reshape(len(found), unit.size)
    return _sorted(np.array(found, np.int64), embeddings_found, unit, limit)


def _sorted(ids: _Ids, embeddings: _Floats, unit: _Floats, limit: int) -> Neighbours:
    """Return the best of n products, with embeddings [n, D].

    BLAS adds the products of a row in another order where the row has another place, so the cosines of two equal
    embeddings may differ in the last bit. `einsum` treats all rows alike.
    """
    cosines = np.einsum("nd,d->n", np.ascontiguousarray(embeddings), unit)
    best = np.lexsort((ids, -cosines))[:limit]
    return Neighbours(ids[best].tolist(), cosines[best].tolist())


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
