# SPDX-License-Identifier: Apache-2.0
"""Tests of what becomes of one photo before it is embedded."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from captioner.preprocessing import decode_photo
from search_gateway.catalog.build.photo import (
    NOT_A_PHOTO,
    DecodedPhoto,
    KnownPhoto,
    LeftOutPhoto,
    PhotoJob,
    PreparedPhoto,
    prepare_photo,
)
from search_gateway.catalog.build.photo_folder import CANNOT_READ, PhotoFile
from search_gateway.catalog.store import CatalogEntry, PhotoStamp


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    return decode_photo(data, height=8, width=8, fit="pad")


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(file, "JPEG")
    return file.getvalue()


def entry(path: str, data: bytes) -> CatalogEntry:
    return CatalogEntry(path=path, title="old", stamp=PhotoStamp(len(data), 1, hashlib.sha256(data).hexdigest()))


def prepared(file: Path, old: CatalogEntry | None = None, gone: CatalogEntry | None = None) -> PreparedPhoto:
    job = PhotoJob(PhotoFile(file, file.name, 10, 20), "new", "", old)
    return prepare_photo(job, decode, lambda sha256: gone if gone and gone.stamp.sha256 == sha256 else None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a.jpg"
    file.write_bytes(jpeg(30, 20))
    return file


def test_a_new_photo_is_decoded_for_the_model_and_made_small(file: Path) -> None:
    photo = prepared(file)
    assert isinstance(photo, DecodedPhoto)
    assert photo.pixels.shape == (8, 8, 3)
    assert (photo.width, photo.height) == (30, 20)
    assert Image.open(io.BytesIO(photo.thumbnail)).size == (30, 20)
    # As the file is now, not as the look at the folder saw it.
    assert photo.entry.stamp.size_bytes == file.stat().st_size
    assert photo.entry.stamp.mtime_ns == file.stat().st_mtime_ns


def test_the_same_bytes_are_known_by_their_path_or_by_that_of_a_photo_that_is_gone(file: Path) -> None:
    data = file.read_bytes()
    touched = prepared(file, old=entry("a.jpg", data))
    assert isinstance(touched, KnownPhoto)
    renamed = prepared(file, gone=entry("b.jpg", data))
    assert isinstance(renamed, KnownPhoto)
    assert (renamed.old.path, renamed.entry.path, renamed.entry.title) == ("b.jpg", "a.jpg", "new")


def test_a_changed_photo_is_decoded_even_if_another_had_its_bytes(file: Path) -> None:
    photo = prepared(file, old=entry("a.jpg", b"other"), gone=entry("b.jpg", file.read_bytes()))
    assert isinstance(photo, DecodedPhoto)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 40])  # small, and so large that a JPEG is decoded at a fraction
def test_size_is_that_of_the_whole_upright_photo(file: Path, orientation: int, scale: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30 * scale, 20 * scale), "navy").save(file, exif=exif)
    photo = prepared(file)
    assert isinstance(photo, DecodedPhoto)
    expected = (30 * scale, 20 * scale)
    assert (photo.width, photo.height) == (expected if orientation < 5 else expected[::-1])


def test_what_cannot_be_used_is_left_out_with_the_reason(file: Path) -> None:
    file.write_bytes(b"")
    empty = prepared(file)
    assert isinstance(empty, LeftOutPhoto)
    assert empty.unreadable.kind == NOT_A_PHOTO
    file.unlink()
    missing = prepared(file)
    assert isinstance(missing, LeftOutPhoto)
    assert missing.unreadable == ("a.jpg", f"{CANNOT_READ}: No such file or directory")
