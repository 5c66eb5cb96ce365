# SPDX-License-Identifier: Apache-2.0
"""The files of a product set, in a folder or in one ZIP file of the same layout."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from captioner.image_error import ImageError
from captioner.preprocessing import ImageLimits

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_PHOTO_BYTES = ImageLimits().max_bytes


Row = TypeVar("Row")


class DataError(ValueError):
    """The set is not in a known layout. The message says what was looked for and where."""


class UnreadableFileError(Exception):
    """One file of the set exists and cannot be read."""


class ProductFiles(AbstractContextManager["ProductFiles"], Protocol):
    """The files of a set, in a folder or in an archive. Names are relative and have slashes."""

    def names(self, folder: str) -> list[str] | None:
        """The names directly in `folder`, in no order; None if there is no such folder."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read a file, at most its first `max_bytes` + 1 bytes: a longer result means that the file is too large.

        Raises:
            FileNotFoundError: there is no such file.
            UnreadableFileError: the file cannot be read.
        """


class FolderFiles:
    """The files of a folder, see `ProductFiles`."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> FolderFiles:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def names(self, folder: str) -> list[str] | None:
        """See `ProductFiles`."""
        path = self._folder / folder
        return [entry.name for entry in path.iterdir()] if path.is_dir() else None

    def read(self, name: str, max_bytes: int) -> bytes:
        """See `ProductFiles`."""
        try:
            with (self._folder / name).open("rb") as file:
                return file.read(max_bytes + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnreadableFileError(f"{name}: {error.strerror}") from error


class ZipFiles:
    """The members of a ZIP file, see `ProductFiles`; nothing is unpacked to disk, where a member's name could do harm.

    Raises:
        DataError: the file is not a complete ZIP file.
    """

    def __init__(self, path: Path):
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(
                f"{path} is not a complete ZIP file ({error}): copy it again, or pack it with training.packed_data"
            ) from None
        self._members = {info.filename: info for info in self._archive.infolist()}

    def __enter__(self) -> ZipFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._archive.close()

    def names(self, folder: str) -> list[str] | None:
        """See `ProductFiles`."""
        prefix = f"{folder}/"
        inside = [name.removeprefix(prefix) for name in self._members if name.startswith(prefix)]
        return [name for name in inside if name and "/" not in name] if inside else None

    def read(self, name: str, max_bytes: int) -> bytes:
        """See `ProductFiles`."""
        if name not in self._members:
            raise FileNotFoundError(name)
        try:
            # The limit is for the unpacked bytes, since the size in the directory may be wrong.
            with self._archive.open(self._members[name]) as file:
                return file.read(max_bytes + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            # Wrong checksum, truncated, encrypted (a RuntimeError), or an unknown compression.
            raise UnreadableFileError(f"{name}: {error}") from error


def open_files(path: Path) -> ProductFiles:
    """Open the set at `path`, a folder or a ZIP file, as a context manager.

    Raises:
        DataError: `path` does not exist or is not a ZIP file.
    """
    if path.is_dir():
        return FolderFiles(path)
    if path.exists():
        return ZipFiles(path)
    raise DataError(f"{path} is neither a folder nor a file: give --data the folder or packed file of a product set")


def read_photo(files: ProductFiles, product_id: str) -> tuple[str, bytes]:
    """Read a product's photo, at most MAX_PHOTO_BYTES + 1 bytes of it.

    Returns:
        The name in the set, and the bytes.

    Raises:
        FileNotFoundError: there is no photo.
        UnreadableFileError: the photo's file cannot be read.
    """
    for suffix in PHOTO_SUFFIXES:
        name = f"images/{product_id}{suffix}"
        try:
            return name, files.read(name, MAX_PHOTO_BYTES)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(f"images/{product_id}.jpg")


def is_file_name(name: str) -> bool:
    """Whether a name from a table can be a file's: printable, not hidden, and unable to lead out of its folder."""
    return bool(name) and name.isprintable() and not name.startswith(".") and not set(name) & set("/\\:")


def decode_photos(
    rows: Iterable[Row],
    picture_of: Callable[[Row], npt.NDArray[np.uint8]],
    shape: tuple[int, int, int, int],
    skipped: Counter[str],
) -> tuple[list[Row], npt.NDArray[np.uint8]]:
    """Read and decode the photos of rows until the array is full; rows without a readable photo are counted.

    Args:
        rows: in order.
        picture_of: reads and decodes a row's photo, uint8 [height, width, 3].
        shape: (most photos, height, width, 3).
        skipped: reason -> number of rows, which is increased.

    Returns:
        The n rows that have a photo, and the photos, uint8 [n, height, width, 3].
    """
    kept: list[Row] = []
    pixels = np.empty(shape, dtype=np.uint8)  # filled in place: a list of photos would need the memory twice
    for row in rows:
        if len(kept) == shape[0]:
            break
        try:
            pixels[len(kept)] = picture_of(row)
        except FileNotFoundError:
            skipped["no photo"] += 1
        except ImageError as error:
            skipped["photo too large" if error.reason.is_size else "unreadable photo"] += 1
        except (UnreadableFileError, OSError):
            skipped["unreadable photo"] += 1
        else:
            kept.append(row)
    return kept, pixels[: len(kept)]
