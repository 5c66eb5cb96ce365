# SPDX-License-Identifier: Apache-2.0
"""A catalogue in an SQLite file: its products, searched by words or by looks, and changed.

Use an open store only in the thread that opened it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from search_gateway.catalog.base import (
    DEFAULT_TIMEOUT_SECONDS,
    NO_ATTRIBUTES,
    NO_FILTERS,
    Attributes,
    CatalogEntry,
    CatalogProduct,
    CatalogRow,
    Filters,
    PhotoStamp,
    SimilarRow,
    check_size,
    unit,
)
from search_gateway.catalog.database import CatalogDatabase
from search_gateway.catalog.text_analysis import index_words, one_line, query_phrases
from search_gateway.catalog.text_index import TextIndex
from search_gateway.catalog.vector_index import VectorIndex

_ROW = "SELECT path, title, url, width, height, embedding, thumbnail FROM products WHERE id = ?"
_UPSERT = """
    INSERT INTO products
        (path, title, url, size_bytes, mtime_ns, sha256, width, height, revision, embedding, thumbnail)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (path) DO UPDATE SET
        title = excluded.title, url = excluded.url, size_bytes = excluded.size_bytes,
        mtime_ns = excluded.mtime_ns, sha256 = excluded.sha256, width = excluded.width,
        height = excluded.height, revision = excluded.revision, embedding = excluded.embedding,
        thumbnail = excluded.thumbnail
    RETURNING id
"""
_MOVE = """
    UPDATE products SET path = ?, title = ?, url = ?, size_bytes = ?, mtime_ns = ?, sha256 = ?
    WHERE path = ? RETURNING id
"""


class CatalogStore:
    """An open catalogue. Close it, or use it in a `with`."""

    def __init__(self, file: CatalogDatabase, path: Path) -> None:
        self._file = file
        self._ranking = TextIndex(file)
        self._vectors = VectorIndex(file, path)

    @classmethod
    def open_for_reading(cls, path: Path, *, model_fingerprint: str | None) -> Self:
        """Open a catalogue to search it, while another program may be writing it; None: of any model and version.

        Raises:
            CatalogOutdatedError: its embeddings are of another model, or it is of another version.
            CatalogError: no such file, or not a catalogue.
        """
        return cls(CatalogDatabase.open_for_reading(path, model_fingerprint=model_fingerprint), path)

    @classmethod
    def open_for_writing(cls, path: Path, *, photos_folder: Path, model_fingerprint: str, model_name: str = "") -> Self:
        """Open a catalogue to change it; creates a missing one.

        Args:
            path: the file.
            photos_folder: the folder that relative paths of photos refer to from now on.
            model_fingerprint: of the model that computes the embeddings.
            model_name: of the same model, for messages.

        Raises:
            CatalogOutdatedError: its embeddings are of another model, or it is of another version.
            CatalogError: the file cannot be written, or is not a catalogue.
        """
        return cls(
            CatalogDatabase.open_for_writing(
                path,
                photos_folder=photos_folder,
                model_fingerprint=model_fingerprint,
                model_name=model_name,
            ),
            path,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._vectors.close()
        self._file.close()

    def __len__(self) -> int:
        """Return the number of products.

        Raises:
            CatalogError: the file cannot be read.
        """
        with self._file.reading():
            return self._file.integer("SELECT count(*) FROM products")

    def identity(self) -> tuple[str, int]:
        """Return the catalogue's id and the number of its last change of embeddings.

        Raises:
            CatalogError: the file cannot be read.
        """
        with self._file.reading():
            return self._file.meta("catalogue_id"), int(self._file.meta("revision", "0"))

    def entries(self) -> list[CatalogEntry]:
        """Return all products in no particular order, without the data computed from their photos.

        Raises:
            CatalogError: the file cannot be read.
        """
        columns = "path, title, url, size_bytes, mtime_ns, sha256"
        with self._file.reading():
            if self._file.has_attributes:
                known = "price, is_available, ifnull(category, '') FROM products LEFT JOIN attributes USING (id)"
            else:
                known = "NULL, NULL, '' FROM products"
            rows = self._file.connection.execute(f"SELECT {columns}, {known}")
            return [
                CatalogEntry(
                    path=path,
                    title=title,
                    url=url,
                    stamp=PhotoStamp(size_bytes, mtime_ns, sha256),
                    attributes=Attributes(price, None if available is None else bool(available), category),
                )
                for path, title, url, size_bytes, mtime_ns, sha256, price, available, category in rows
            ]

    def add(self, products: Sequence[CatalogProduct]) -> None:
        """Store products, all or none. A product replaces an older one with the same path.

        Raises:
            CatalogError: the file cannot be written.
            ValueError: an embedding is zero or not finite, or their sizes differ.
        """
        units = [unit(product.embedding) for product in products]
        with self._writing():
            self._check_sizes(units)
            revision = int(self._file.meta("revision", "0")) + 1
            self._file.set_meta("revision", str(revision))
            for product, one in zip(products, units, strict=True):
                values = (
                    product.entry.path,
                    *_described(product.entry),
                    product.width,
                    product.height,
                    revision,
                    one.astype("<f4").tobytes(),
                    product.thumbnail,
                )
                for (product_id,) in self._file.connection.execute(_UPSERT, values).fetchall():
                    self._index(product_id, product.entry)

    def move(self, moves: Iterable[tuple[str, CatalogEntry]]) -> None:
        """Update products by their old paths, all or none; the data computed from the photos stays.

        Raises:
            CatalogError: the file cannot be written, or a new path belongs to another product.
        """
        with self._writing():
            for old_path, entry in moves:
                values = (entry.path, *_described(entry), old_path)
                for (product_id,) in self._file.connection.execute(_MOVE, values).fetchall():
                    self._index(product_id, entry)

    def remove(self, paths: Iterable[str]) -> None:
        """Delete the products with these photos, all or none; ignores unknown paths.

        Raises:
            CatalogError: the file cannot be written.
        """
        execute = self._file.connection.execute
        with self._writing():
            for path in paths:
                deleted = execute("DELETE FROM products WHERE path = ? RETURNING id", (path,))
                for (product_id,) in deleted.fetchall():
                    execute("DELETE FROM titles WHERE rowid = ?", (product_id,))
                    if self._file.has_attributes:
                        execute("DELETE FROM attributes WHERE id = ?", (product_id,))

    def optimize(self) -> None:
        """Merge the parts of the word index that many small transactions left; this makes `find` faster.

        Raises:
            CatalogError: the file cannot be written.
        """
        with self._writing():
            self._file.connection.execute("INSERT INTO titles (titles) VALUES ('optimize')")

    def find(
        self,
        words: Sequence[str],
        limit: int,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        filters: Filters = NO_FILTERS,
    ) -> list[CatalogRow]:
        """Find products whose title has some of the words: those with more of them first, then by BM25.

        Raises:
            CatalogTimeoutError: no answer within `timeout_seconds`.
            CatalogError: the file cannot be read.
        """
        phrases = query_phrases(words)
        if not phrases or limit < 1:
            return []
        with self._file.reading(timeout_seconds):
            return self._rows(self._ranking.best(phrases, limit, self._allowed(filters)))

    def load(self, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Read the embeddings now, so that the first `similar` does not wait for them.

        Raises:
            CatalogTimeoutError: they could not be read within `timeout_seconds`.
            CatalogError: the file cannot be read.
        """
        with self._file.reading(timeout_seconds):
            self._vectors.load()

    def similar(
        self,
        embedding: npt.NDArray[np.float32],
        limit: int,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        filters: Filters = NO_FILTERS,
    ) -> list[SimilarRow]:
        """Find the products whose photos are most like the one with this embedding, float32 [D], by cosine.

        This compares all N products. The first call reads all embeddings, later calls only new ones. They stay in
        memory: N x D x 4 bytes.

        Raises:
            CatalogTimeoutError: the embeddings could not be read within `timeout_seconds`.
            CatalogError: the file cannot be read.
            ValueError: the embedding is zero or not finite, or its size differs from the stored ones.
        """
        query = unit(embedding)
        if limit < 1:
            return []
        with self._file.reading(timeout_seconds):
            found = self._vectors.nearest(query, limit, self._allowed(filters))
            rows = self._rows(found.ids)
        return [SimilarRow(row, cosine) for row, cosine in zip(rows, found.cosines, strict=True)]

    def _rows(self, ids: Iterable[int]) -> list[CatalogRow]:
        execute = self._file.connection.execute
        rows = (execute(_ROW, (product_id,)).fetchone() for product_id in ids)
        return [
            CatalogRow(
                title=title,
                url=url,
                path=path,
                width=width,
                height=height,
                embedding=np.frombuffer(embedding, "<f4").astype(np.float32),
                thumbnail=thumbnail,
            )
            for path, title, url, width, height, embedding, thumbnail in rows
        ]

    def _index(self, product_id: int, entry: CatalogEntry) -> None:
        """Store what searches need besides the row."""
        execute = self._file.connection.execute
        execute("DELETE FROM titles WHERE rowid = ?", (product_id,))
        words = (product_id, index_words(entry.title))
        execute("INSERT INTO titles (rowid, words) VALUES (?, ?)", words)
        attributes = entry.attributes
        if attributes != NO_ATTRIBUTES:
            self._file.create_attributes()
        if self._file.has_attributes:
            known = (product_id, attributes.price, attributes.is_available, one_line(attributes.category))
            execute("INSERT OR REPLACE INTO attributes VALUES (?, ?, ?, ?)", known)

    def _allowed(self, filters: Filters) -> npt.NDArray[np.int64] | None:
        """Return the ids of the products that pass the filters, ascending; None if there are no filters."""
        if not filters:
            return None
        if not self._file.has_attributes:
            return np.empty(0, np.int64)
        values = [filters.min_price, filters.max_price, filters.is_available, *filters.categories]
        conditions = [
            "price >= ?" * (filters.min_price is not None),
            "price <= ?" * (filters.max_price is not None),
            "is_available = ?" * (filters.is_available is not None),
            f"category IN ({', '.join('?' * len(filters.categories))})" * bool(filters.categories),
        ]
        statement = f"SELECT id FROM attributes WHERE {' AND '.join(filter(None, conditions))} ORDER BY id"
        given = [value for value in values if value is not None]
        return np.fromiter((found for (found,) in self._file.connection.execute(statement, given)), np.int64)

    def _check_sizes(self, embeddings: Sequence[npt.NDArray[np.float32]]) -> None:
        """Check that all embeddings have the same size, which the first ones set."""
        if not embeddings:
            return
        stored = int(self._file.meta("embedding_size", str(embeddings[0].size)))
        for embedding in embeddings:
            check_size(embedding.size, stored)
        self._file.set_meta("embedding_size", str(stored))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._ranking.changed()
        self._vectors.changed()
        with self._file.writing():
            yield


def _described(entry: CatalogEntry) -> tuple[str, str, int, int, str]:
    """Return the columns title, url, size_bytes, mtime_ns and sha256."""
    stamp = entry.stamp
    title, url = one_line(entry.title), one_line(entry.url)
    return title, url, stamp.size_bytes, stamp.mtime_ns, stamp.sha256
