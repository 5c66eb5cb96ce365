# SPDX-License-Identifier: Apache-2.0
"""The catalogue: products with embeddings and thumbnails, searched by words or by looks.

Use an open store only in the thread that opened it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from search_gateway.catalog.database import (
    CatalogDatabase,
    CatalogError,
    CatalogOutdatedError,
    CatalogTimeoutError,
)
from search_gateway.catalog.text_analysis import index_words, one_line, query_phrases
from search_gateway.catalog.text_index import TextIndex
from search_gateway.catalog.vector_index import VectorIndex, check_size

__all__ = [
    "CatalogEntry",
    "CatalogError",
    "CatalogOutdatedError",
    "CatalogProduct",
    "CatalogRow",
    "CatalogStore",
    "CatalogTimeoutError",
    "PhotoStamp",
    "SimilarRow",
]

DEFAULT_TIMEOUT_SECONDS = 10.0

_ROW = "SELECT id, path, title, url, width, height, embedding, thumbnail FROM products WHERE id = ?"
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


@dataclass(frozen=True)
class PhotoStamp:
    """Size, time and hash of a photo's file, which show whether it has changed."""

    size_bytes: int
    mtime_ns: int
    sha256: str  # hexadecimal


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """A product without the data computed from its photo."""

    path: str  # of the photo, with "/", absolute or relative to the catalogue's photos folder
    title: str
    url: str = ""  # of the product's page, if it has one
    stamp: PhotoStamp


@dataclass(frozen=True, kw_only=True, eq=False)
class CatalogProduct:
    """A product to be stored."""

    entry: CatalogEntry
    width: int  # pixels of the photo
    height: int
    embedding: npt.NDArray[np.float32]  # [D]
    thumbnail: bytes  # a JPEG file


@dataclass(frozen=True, kw_only=True, eq=False)
class CatalogRow:
    """A product that was found."""

    id: int
    title: str
    url: str
    path: str  # of the photo, relative to the photos folder
    photo: Path  # absolute
    width: int
    height: int
    embedding: npt.NDArray[np.float32]  # [D], L2-normalised
    thumbnail: bytes


@dataclass(frozen=True, eq=False)
class SimilarRow:
    """A product that was found by looks."""

    row: CatalogRow
    cosine: float


class CatalogStore:
    """An open catalogue. Close it, or use it in a `with`."""

    def __init__(self, file: CatalogDatabase) -> None:
        self._file = file
        self._ranking = TextIndex(file)
        self._vectors = VectorIndex(file)

    @classmethod
    def open_for_reading(cls, path: Path, *, model_fingerprint: str) -> CatalogStore:
        """Open a catalogue to search it, while another program may be writing it.

        Raises:
            CatalogOutdatedError: its embeddings are of another model, or it is of another version.
            CatalogError: no such file, or not a catalogue.
        """
        return cls(CatalogDatabase.open_for_reading(path, model_fingerprint=model_fingerprint))

    @classmethod
    def open_for_writing(
        cls, path: Path, *, photos_folder: Path, model_fingerprint: str, model_name: str = ""
    ) -> CatalogStore:
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
            )
        )

    @classmethod
    def outdated_entries(cls, path: Path) -> list[CatalogEntry]:
        """Return the products of a catalogue of any model, without embeddings and thumbnails.

        Raises:
            CatalogError: the file cannot be read.
        """
        with cls(CatalogDatabase.open_for_reading(path, model_fingerprint=None)) as store:
            return store.entries()

    def __enter__(self) -> CatalogStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
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
            rows = self._file.connection.execute(f"SELECT {columns} FROM products")
            return [
                CatalogEntry(path=path, title=title, url=url, stamp=PhotoStamp(*stamp))
                for path, title, url, *stamp in rows
            ]

    def add(self, products: Sequence[CatalogProduct]) -> None:
        """Store products, all or none. A product replaces an older one with the same path.

        Raises:
            CatalogError: the file cannot be written.
            ValueError: an embedding is zero or not finite, or their sizes differ.
        """
        units = [_unit(product.embedding) for product in products]
        with self._writing():
            self._check_sizes(units)
            revision = int(self._file.meta("revision", "0")) + 1
            self._file.set_meta("revision", str(revision))
            for product, unit in zip(products, units, strict=True):
                values = (
                    product.entry.path,
                    *_described(product.entry),
                    product.width,
                    product.height,
                    revision,
                    unit.astype("<f4").tobytes(),
                    product.thumbnail,
                )
                for (product_id,) in self._file.connection.execute(_UPSERT, values).fetchall():
                    self._index(product_id, product.entry.title)

    def refresh(self, entries: Iterable[CatalogEntry]) -> None:
        """Update titles, URLs and stamps, all or none; the data computed from the photos stays.

        Raises:
            CatalogError: the file cannot be written.
        """
        self.move((entry.path, entry) for entry in entries)

    def move(self, moves: Iterable[tuple[str, CatalogEntry]]) -> None:
        """Update products by their old paths, all or none; the data computed from the photos stays.

        Raises:
            CatalogError: the file cannot be written, or a new path belongs to another product.
        """
        with self._writing():
            for old_path, entry in moves:
                values = (entry.path, *_described(entry), old_path)
                for (product_id,) in self._file.connection.execute(_MOVE, values).fetchall():
                    self._index(product_id, entry.title)

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

    def optimize(self) -> None:
        """Merge the parts of the word index that many small transactions left; this makes `find` faster.

        Raises:
            CatalogError: the file cannot be written.
        """
        with self._writing():
            self._file.connection.execute("INSERT INTO titles (titles) VALUES ('optimize')")

    def find(
        self, words: Sequence[str], limit: int, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
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
            return self._rows(self._ranking.best(phrases, limit))

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
    ) -> list[SimilarRow]:
        """Find the products whose photos are most like the one with this embedding, float32 [D], by cosine.

        This compares all N products. The first call reads all embeddings, later calls only new ones. They stay in
        memory: N x D x 4 bytes.

        Raises:
            CatalogTimeoutError: the embeddings could not be read within `timeout_seconds`.
            CatalogError: the file cannot be read.
            ValueError: the embedding is zero or not finite, or its size differs from the stored ones.
        """
        query = _unit(embedding)
        if limit < 1:
            return []
        with self._file.reading(timeout_seconds):
            found = self._vectors.nearest(query, limit)
            rows = self._rows(found.ids)
        return [SimilarRow(row, cosine) for row, cosine in zip(rows, found.cosines, strict=True)]

    def _rows(self, ids: Iterable[int]) -> list[CatalogRow]:
        folder = self._file.photos_folder
        execute = self._file.connection.execute
        rows = (execute(_ROW, (product_id,)).fetchone() for product_id in ids)
        return [
            CatalogRow(
                id=product_id,
                title=title,
                url=url,
                path=path,
                photo=folder / path,
                width=width,
                height=height,
                embedding=np.frombuffer(embedding, "<f4").astype(np.float32),
                thumbnail=thumbnail,
            )
            for product_id, path, title, url, width, height, embedding, thumbnail in rows
        ]

    def _index(self, product_id: int, title: str) -> None:
        execute = self._file.connection.execute
        execute("DELETE FROM titles WHERE rowid = ?", (product_id,))
        words = (product_id, index_words(title))
        execute("INSERT INTO titles (rowid, words) VALUES (?, ?)", words)

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


def _unit(embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the embedding [D], L2-normalised; ValueError if it is zero or not finite."""
    length = float(np.linalg.norm(embedding))
    if embedding.ndim != 1 or not np.isfinite(length) or length == 0.0:
        raise ValueError(f"an embedding {embedding.shape} of length {length} has no direction")
    return (embedding / length).astype(np.float32)
