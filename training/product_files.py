# SPDX-License-Identifier: Apache-2.0
"""The files of a product set, in a folder or in one ZIP file of the same layout. Knows nothing of what is in them."""

from __future__ import annotations

import zipfile
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol

from captioner.preprocessing import ImageLimits

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_PHOTO_BYTES = ImageLimits().max_bytes


class DataError(ValueError):
    """The set is not in a layout we read. The message says what was looked for and where."""


class UnreadableFileError(Exception):
    """One file of the set is there and cannot be read."""


class ProductFiles(AbstractContextManager["ProductFiles"], Protocol):
    """The files of a set, wherever they lie. Names are relative and have slashes."""

    def names(self, folder: str) -> list[str] | None:
        """What is directly in `folder`, in no order; None if there is no such folder."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """The file, or its first `max_bytes` + 1 bytes: whoever gets more than `max_bytes` knows that it is too large.

        Raises:
            FileNotFoundError: there is no such file.
            UnreadableFileError: there is, and it cannot be read.
        """


class FolderFiles:
    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> FolderFiles:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def names(self, folder: str) -> list[str] | None:
        path = self._folder / folder
        return [entry.name for entry in path.iterdir()] if path.is_dir() else None

    def read(self, name: str, max_bytes: int) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                return file.read(max_bytes + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnreadableFileError(f"{name}: {error.strerror}") from error


class ZipFiles:
    """Members are read one by one as they are asked for; nothing is unpacked to disk, so no name can do harm there."""

    def __init__(self, path: Path):
        """
        Raises:
            DataError: this is no complete ZIP file.
        """
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(
                f"{path} is no complete ZIP file ({error}): copy it again, or pack it with training.packed_data"
            ) from None
        self._members = {info.filename: info for info in self._archive.infolist()}

    def __enter__(self) -> ZipFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._archive.close()

    def names(self, folder: str) -> list[str] | None:
        prefix = f"{folder}/"
        inside = [name.removeprefix(prefix) for name in self._members if name.startswith(prefix)]
        return [name for name in inside if name and "/" not in name] if inside else None

    def read(self, name: str, max_bytes: int) -> bytes:
        if name not in self._members:
            raise FileNotFoundError(name)
        try:
            # The limit holds for what comes out: the size in the directory may be a lie.
            with self._archive.open(self._members[name]) as file:
                return file.read(max_bytes + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            # A wrong checksum, cut short, encrypted (a RuntimeError), or packed in a way zipfile does not know.
            raise UnreadableFileError(f"{name}: {error}") from error


def open_files(path: Path) -> ProductFiles:
    """The files of the set at `path`, a folder or a ZIP file; to be used in a `with`.

    Raises:
        DataError: there is neither.
    """
    if path.is_dir():
        return FolderFiles(path)
    if path.exists():
        return ZipFiles(path)
    raise DataError(f"{path} is neither a folder nor a file: give --data the folder or packed file of a product set")


def read_photo(files: ProductFiles, product_id: str) -> tuple[str, bytes]:
    """(name in the set, bytes) of a product's photo, the bytes as `ProductFiles.read` gives them for MAX_PHOTO_BYTES.

    Raises:
        FileNotFoundError, UnreadableFileError: as `ProductFiles.read`.
    """
    for suffix in PHOTO_SUFFIXES:
        name = f"images/{product_id}{suffix}"
        try:
            return name, files.read(name, MAX_PHOTO_BYTES)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(f"images/{product_id}.jpg")
