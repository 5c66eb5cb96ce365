# SPDX-License-Identifier: Apache-2.0
"""Where photos come from: folders and object stores, which are listed, or Parquet files, which name photos.

A source is cut into blocks, the unit of work. A block has an id that stays the same as long as its photos do, so that
blocks that were finished before are recognised.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pyarrow
from pyarrow import fs, parquet

from search_gateway.catalog.base import NO_ATTRIBUTES, Attributes, CatalogError
from search_gateway.catalog.build.photo_folder import (
    CANNOT_READ,
    PHOTO_SUFFIXES,
    TOO_LONG,
    UnreadablePhoto,
    look_for_photos,
)
from search_gateway.catalog.build.titles import TitleLine, TitleList, attributes_of, title_and_url

DEFAULT_BLOCK_PHOTOS = 256

_COLUMNS = ("id", "photo", "title", "url", "price", "available", "category")  # of a Parquet file
_LARGEST_BLOCK = 4  # times the usual size
_MAX_REASON_CHARACTERS = 300
_USER = re.compile(r"(?<=://)[^/\s]*@")  # a wrong secret may have an @, too


class PhotoReadError(Exception):
    """The file of a photo cannot be read.

    Args:
        message: what is wrong.
        is_final: whether another run cannot succeed either.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


@dataclass(frozen=True)
class SourcePhoto:
    """A product's photo."""

    key: str  # of the product in the catalogue
    location: str  # path in the block's file system, URI of a file in another one, or https URL
    title: str
    url: str = ""  # of the product's page
    size_bytes: int = 0  # 0: not known before it is read
    mtime_ns: int = 0
    attributes: Attributes = NO_ATTRIBUTES


@dataclass(frozen=True)
class ListedBlock:
    """Photos that were listed."""

    id: str
    system: fs.FileSystem
    listed: tuple[SourcePhoto, ...]

    def photos(self) -> Sequence[SourcePhoto]:
        """Return the photos."""
        return self.listed


@dataclass(frozen=True)
class ParquetBlock:
    """Rows of a Parquet file, which the worker reads."""

    id: str
    system: fs.FileSystem
    file: str  # path in it
    row_group: int
    start: int  # in the row group
    stop: int

    def photos(self) -> Sequence[SourcePhoto]:
        """Read the rows.

        Raises:
            OSError: the file cannot be read.
        """
        with self.system.open_input_file(self.file) as opened:
            file = parquet.ParquetFile(opened)
            names = [name for name in _COLUMNS if name in file.schema_arrow.names]
            table = file.read_row_group(self.row_group, columns=names)
        rows = _unchecked_texts(table.slice(self.start, self.stop - self.start)).to_pylist()
        return [_photo_of(row, self.file.rpartition("/")[0]) for row in rows]


Block = ListedBlock | ParquetBlock


class Source(NamedTuple):
    """What a source has."""

    blocks: list[Block]
    unreadable: list[UnreadablePhoto]  # that cannot be listed


def open_source(source: str, titles: TitleList | None = None, *, size: int = DEFAULT_BLOCK_PHOTOS) -> Source:
    """List a source and cut it into blocks.

    Args:
        source: a folder, or the URI of a folder in a file system that Arrow reads (`s3://BUCKET/FOLDER`, `gs://...`,
            `file:///...`), with photos; or a Parquet file, or a folder of them, with a row for each photo.
        titles: of the photos in a folder; None: they are called by their file names.
        size: photos in a block, about.

    Raises:
        CatalogError: there is no photo, or a Parquet file lacks a column.
        OSError: it cannot be listed.
    """
    system, root = _opened(source)
    info = system.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise CatalogError(f"{without_user(source)} does not exist")
    unreadable: list[UnreadablePhoto] = []
    photos: list[SourcePhoto] = []
    if info.type == fs.FileType.File:
        tables = [info]
    elif isinstance(system, fs.LocalFileSystem):
        content = look_for_photos(Path(root))
        unreadable = content.unreadable
        tables = system.get_file_info([f"{root}/{path}" for path in content.others if _is_table(path)])
        photos = [
            SourcePhoto(photo.path, str(photo.file), "", "", photo.size_bytes, photo.mtime_ns)
            for photo in content.photos
        ]
    else:
        found = system.get_file_info(fs.FileSelector(root, recursive=True))
        files = [one for one in found if one.type == fs.FileType.File]
        tables = [one for one in files if _is_table(one.path)]
        photos = [photo for one in files if (photo := _photo_file(one, root)) is not None]
    if tables:
        tables.sort(key=lambda one: one.path)
        blocks: list[Block] = [block for one in tables for block in _parquet_blocks(system, one, size)]
    else:
        photos.sort(key=lambda photo: photo.key)
        lines = {} if titles is None else titles.match([photo.key for photo in photos])
        blocks = list(_listed_blocks(system, (_titled(photo, lines.get(photo.key)) for photo in photos), size))
    if not blocks:
        # A folder that is not mounted looks like this.
        raise CatalogError(f"no photo in {without_user(source)}")
    return Source(blocks, unreadable)


def read_photo(system: fs.FileSystem, location: str, max_bytes: int) -> bytes:
    """Read a file, but not more of it than shows that it is too large.

    Args:
        system: of the block.
        location: path in it, or the URI of a file in another one.
        max_bytes: the limit.

    Raises:
        PhotoReadError: it cannot be read.
    """
    try:
        if "://" in location:
            system, location = fs.FileSystem.from_uri(location)
        with system.open_input_stream(location) as opened:
            return bytes(opened.read(max_bytes + 1))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise PhotoReadError(TOO_LONG, is_final=True) from error
        reason = without_user(" ".join(str(error).split()))[
            :_MAX_REASON_CHARACTERS
        ]  # it may have the path, of any length
        raise PhotoReadError(f"{CANNOT_READ}: {reason}") from error


def _opened(source: str) -> tuple[fs.FileSystem, str]:
    """Return the file system and the path in it.

    Raises:
        CatalogError: the URI is wrong.
    """
    if "://" not in source:
        return fs.LocalFileSystem(), str(Path(source).resolve())
    try:
        system, path = fs.FileSystem.from_uri(source)
    except (ValueError, pyarrow.ArrowException) as error:
        raise CatalogError(without_user(f"{source} cannot be opened: {error}")) from error
    return system, path


def without_user(text: str) -> str:
    """Return a text without the users, passwords and keys of the URIs in it (`s3://KEY:SECRET@BUCKET`)."""
    return _USER.sub("", text)


def _titled(photo: SourcePhoto, line: TitleLine | None) -> SourcePhoto:
    title, url = title_and_url(photo.key, line, None)
    return replace(photo, title=title, url=url, attributes=attributes_of(line, None))


def _is_table(path: str) -> bool:
    return path.lower().endswith((".parquet", ".pq"))


def _photo_file(info: fs.FileInfo, root: str) -> SourcePhoto | None:
    """Return the photo that a file of an object store is by its name; None if it is none, or hidden."""
    key = info.path.removeprefix(root).lstrip("/")
    is_hidden = any(part.startswith((".", "@eaDir")) for part in key.split("/"))
    if is_hidden or f".{info.extension.lower()}" not in PHOTO_SUFFIXES:
        return None
    return SourcePhoto(key, info.path, "", "", info.size or 0, info.mtime_ns or 0)


def _listed_blocks(system: fs.FileSystem, photos: Iterable[SourcePhoto], size: int) -> Iterator[ListedBlock]:
    """Cut behind keys whose checksum says so, so that a photo that comes or goes changes one block and not all."""
    block: list[SourcePhoto] = []
    for photo in photos:
        block.append(photo)
        if zlib.crc32(photo.key.encode()) % size == 0 or len(block) == _LARGEST_BLOCK * size:
            yield _listed_block(system, block)
            block = []
    if block:
        yield _listed_block(system, block)


def _listed_block(system: fs.FileSystem, photos: Sequence[SourcePhoto]) -> ListedBlock:
    return ListedBlock(_digest([astuple(photo) for photo in photos]), system, tuple(photos))


def _parquet_blocks(system: fs.FileSystem, info: fs.FileInfo, size: int) -> Iterator[ParquetBlock]:
    with system.open_input_file(info.path) as opened:
        try:
            file = parquet.ParquetFile(opened)
        except pyarrow.ArrowInvalid as error:
            raise CatalogError(f"{info.path} is no Parquet file: {error}") from error
        missing = {"photo", "title"} - set(file.schema_arrow.names)
        if missing:
            raise CatalogError(f"{info.path} lacks the column {' and '.join(sorted(missing))}")
        lengths = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    for number, length in enumerate(lengths):
        for start in range(0, length, size):
            stop = min(length, start + size)
            block_id = _digest([info.path, info.size, info.mtime_ns, number, start, stop])
            yield ParquetBlock(block_id, system, info.path, number, start, stop)


def _photo_of(row: Mapping[str, object], folder: str) -> SourcePhoto:
    key, photo, title, url = (_text(row.get(name)) for name in ("id", "photo", "title", "url"))
    location = photo if "://" in photo or not photo else f"{folder}/{photo}"
    price, available = row.get("price"), row.get("available")
    number = float(price) if isinstance(price, int | float | Decimal) else math.nan
    attributes = Attributes(
        number if 0 <= number < math.inf else None,
        available if isinstance(available, bool) else None,
        _text(row.get("category")),
    )
    return SourcePhoto(key or without_user(photo), location, title, url, attributes=attributes)


def _unchecked_texts(table: pyarrow.Table) -> pyarrow.Table:
    """Return texts as bytes, since some writers of Parquet files do not check that they are UTF-8."""
    kinds = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    fields = [field.with_type(kinds.get(field.type, field.type)) for field in table.schema]
    return table.cast(pyarrow.schema(fields))


def _text(value: object) -> str:
    """Return a value as text; empty if there is none. No store takes a NUL in a key."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if is_missing else str(value).replace("\0", " ")


def _digest(values: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]
