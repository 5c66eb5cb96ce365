# SPDX-License-Identifier: Apache-2.0
"""An approximate index of embeddings in a file of its own: inverted lists (IVF).

The method is that of "Video Google" (Sivic and Zisserman, 2003), with spherical k-means. Embeddings are sorted by the
nearest of about sqrt(N) centroids. A search compares the photo with all centroids and then with the embeddings of the
nearest lists only, which it reads from the file. The file is not mapped into memory: if another program cuts a mapped
file, or its disk fails, the system ends the process that reads it. A read just fails, and is as fast (docs/scaling.md).

The file: `_MAGIC`, the length of a header and the header as JSON, up to `_DATA_AT`; then, in little-endian order, the
centroids [L, D], the first row of each list [L + 1], the ids [N] and the embeddings [N, D], sorted by list.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC = b"captrieve lists 1\n"
_LENGTH = struct.Struct("<I")
_DATA_AT = 4096  # bytes

_ROUNDS = 8  # of k-means
_SAMPLES_PER_LIST = 64
_AT_ONCE = 20_000  # rows; an array of this many rows and a column for each list takes 80 MB at a million products
_READ_AT_ONCE = 4_000  # rows; a list of a million products has about 1,000

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class ListsError(Exception):
    """The file cannot be used."""


@dataclass(frozen=True)
class ListsHeader:
    """What the file holds."""

    index_id: str  # random
    revision: int  # of the catalogue; embeddings with a later one are missing or old
    num_products: int
    num_lists: int
    size: int  # of an embedding


class InvertedLists:
    """An open index; use it in one thread, and close it.

    Raises:
        ListsError: there is no such file, or it is damaged or of another version.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        try:
            self._file = file.open("rb", buffering=0)
        except OSError as error:
            raise ListsError(f"{file} cannot be used: {error}") from error
        try:
            self.header = header = self._read_header()
            sizes = _sizes(header)
            num_bytes = os.fstat(self._file.fileno()).st_size
            if num_bytes != _DATA_AT + sum(sizes):
                raise ListsError(f"{file} has {num_bytes:,} bytes, not what its header says")
            centroids, starts, self._ids_at, self._rows_at = np.cumsum([_DATA_AT, *sizes[:3]]).tolist()
            self._centroids: Floats = np.empty((header.num_lists, header.size), "<f4")
            self._starts: Ids = np.empty(header.num_lists + 1, "<i8")
            self._read(self._centroids, centroids)
            self._read(self._starts, starts)
            if self._starts[0] != 0 or self._starts[-1] != header.num_products or np.any(np.diff(self._starts) < 0):
                raise ListsError(f"{file} is damaged")
        except BaseException:
            self._file.close()
            raise
        self._buffer: Floats = np.empty((_READ_AT_ONCE, header.size), "<f4")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def compared(self, unit: Floats, num_lists: int) -> tuple[Ids, Floats]:
        """Compare a photo with the embeddings of the nearest lists.

        Args:
            unit: the photo's embedding, float32 [D], L2-normalised.
            num_lists: how many.

        Returns:
            ids [n] and cosines [n] of all products in these lists, in no particular order.

        Raises:
            ListsError: the file cannot be read, or was cut meanwhile.
        """
        num_lists = min(num_lists, self.header.num_lists)
        nearest = np.argpartition(-(self._centroids @ unit), num_lists - 1)[:num_lists]
        starts, ends = self._starts[nearest], self._starts[nearest + 1]
        places = np.concatenate([[0], np.cumsum(ends - starts)])  # of the lists in what is returned
        ids: Ids = np.empty(places[-1], "<i8")
        cosines: Floats = np.empty(places[-1], np.float32)
        for start, end, place in zip(starts.tolist(), ends.tolist(), places.tolist(), strict=False):
            self._read(ids[place : place + end - start], self._ids_at + 8 * start)
            for first in range(start, end, _READ_AT_ONCE):
                rows = self._buffer[: min(_READ_AT_ONCE, end - first)]
                self._read(rows, self._rows_at + 4 * self.header.size * first)
                at = place + first - start
                np.dot(rows, unit, out=cosines[at : at + len(rows)])
        return ids, cosines

    def _read_header(self) -> ListsHeader:
        try:
            head = os.pread(self._file.fileno(), _DATA_AT, 0)
            if not head.startswith(_MAGIC):
                raise ListsError(f"{self._path} is not an index of this version")
            start = len(_MAGIC) + _LENGTH.size
            (length,) = _LENGTH.unpack_from(head, len(_MAGIC))
            header = ListsHeader(**json.loads(head[start : start + length]))
        except (OSError, ValueError, TypeError, RecursionError, struct.error) as error:
            raise ListsError(f"{self._path} cannot be used: {error}") from error
        numbers = (header.num_products, header.num_lists, header.size)
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ListsError(f"{self._path} has a header without products")
        return header

    def _read(self, array: npt.NDArray[Any], at: int) -> None:
        """Fill an array from the file."""
        left = array.data.cast("B")
        while left:
            try:
                num_read = os.preadv(self._file.fileno(), [left], at)
            except OSError as error:
                raise ListsError(f"{self._path} cannot be read: {error.strerror}") from error
            if num_read == 0:
                raise ListsError(f"{self._path} was cut while it was used")
            left, at = left[num_read:], at + num_read


def write_lists(
    file: Path, index_id: str, revision: int, size: int, products: Iterable[tuple[Ids, Floats]]
) -> ListsHeader:
    """Write an index; the file is complete, or not there.

    Takes a temporary file as large as the embeddings, in the same folder, and little memory.

    Args:
        file: to be written.
        index_id: see `ListsHeader`.
        revision: see `ListsHeader`.
        size: of an embedding.
        products: parts of ids [n] and L2-normalised embeddings [n, D].

    Raises:
        ValueError: there are no products.
        OSError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        unsorted = Path(folder, "unsorted")
        kept = []
        with unsorted.open("wb") as opened:
            for ids, rows in products:
                kept.append(ids)
                opened.write(np.ascontiguousarray(rows, "<f4").data)
        all_ids = np.concatenate(kept) if kept else np.empty(0, np.int64)
        if not len(all_ids):
            raise ValueError("an index needs products")
        rows = np.memmap(unsorted, "<f4", "r", shape=(len(all_ids), size)).view(np.ndarray)
        header = ListsHeader(index_id, revision, len(all_ids), max(1, round(len(all_ids) ** 0.5)), size)
        new = Path(folder, "new")
        _write_sorted(new, header, all_ids, rows)
        new.replace(file)
    return header


def _write_sorted(file: Path, header: ListsHeader, ids: Ids, rows: Floats) -> None:
    sample = np.random.default_rng(0).permutation(len(rows))[: header.num_lists * _SAMPLES_PER_LIST]
    centroids = _centroids_of(rows[np.sort(sample)], header.num_lists)
    lists = _nearest(rows, centroids)
    order = np.argsort(lists, kind="stable")
    starts = np.searchsorted(lists[order], np.arange(header.num_lists + 1))
    head = json.dumps(asdict(header)).encode()
    with file.open("wb") as opened:
        opened.write((_MAGIC + _LENGTH.pack(len(head)) + head).ljust(_DATA_AT, b"\0"))
        opened.write(centroids.astype("<f4").data)
        opened.write(starts.astype("<i8").data)
        opened.write(ids[order].astype("<i8").data)
        for start in range(0, len(order), _AT_ONCE):
            opened.write(rows[order[start : start + _AT_ONCE]].data)
        opened.flush()
        os.fsync(opened.fileno())


def _centroids_of(sample: Floats, count: int) -> Floats:
    """Return [count, D], L2-normalised, by spherical k-means; a centroid without members stays where it was."""
    centroids = sample[:: max(1, len(sample) // count)][:count].copy()
    for _ in range(_ROUNDS):
        lists = _nearest(sample, centroids)
        order = np.argsort(lists, kind="stable")
        used, first = np.unique(lists[order], return_index=True)
        sums = np.add.reduceat(sample[order], first, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids[used] = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centroids[used])
    return centroids


def _nearest(rows: Floats, centroids: Floats) -> npt.NDArray[np.intp]:
    """Return the place of the nearest centroid of each row."""
    parts = (rows[start : start + _AT_ONCE] @ centroids.T for start in range(0, len(rows), _AT_ONCE))
    return np.concatenate([part.argmax(axis=1) for part in parts])


def _sizes(header: ListsHeader) -> list[int]:
    """Return the sizes of the file's four arrays in bytes."""
    return [
        4 * header.num_lists * header.size,
        8 * (header.num_lists + 1),
        8 * header.num_products,
        4 * header.num_products * header.size,
    ]
