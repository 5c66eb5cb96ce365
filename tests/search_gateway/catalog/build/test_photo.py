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

from captioner.preprocessing import FORMATS, decode_photo
from search_gateway.catalog.base import CatalogEntry, PhotoStamp
from search_gateway.catalog.build import photo
from search_gateway.catalog.build.photo import (
    NOT_A_PHOTO,
    OTHER_FORMAT,
    DecodedPhoto,
    KnownPhoto,
    LeftOutPhoto,
    PhotoJob,
    PreparedPhoto,
    prepare_photo,
    readable_formats,
)
from search_gateway.catalog.build.photo_folder import CANNOT_READ, PhotoFile
from search_gateway.catalog.build.titles import TitleLine


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    return decode_photo(data, height=8, width=8, fit="pad", formats=readable_formats())


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(file, "JPEG")
    return file.getvalue()


def entry(path: str, data: bytes) -> CatalogEntry:
    return CatalogEntry(path=path, title="old", stamp=PhotoStamp(len(data), 1, hashlib.sha256(data).hexdigest()))


def prepared(file: Path, old: CatalogEntry | None = None, gone: CatalogEntry | None = None) -> PreparedPhoto:
    job = PhotoJob(PhotoFile(file, file.name, 10, 20), TitleLine("a", "new", None, 2), old)
    return prepare_photo(job, decode, lambda sha256: gone if gone and gone.stamp.sha256 == sha256 else None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a.jpg"
    file.write_bytes(jpeg(30, 20))
    return file


def test_a_new_photo_is_decoded_for_the_model_and_made_small(file: Path) -> None:
    decoded = prepared(file)
    assert isinstance(decoded, DecodedPhoto)
    assert decoded.pixels.shape == (8, 8, 3)
    assert (decoded.width, decoded.height) == (30, 20)
    assert Image.open(io.BytesIO(decoded.thumbnail)).size == (30, 20)
    # As the file is now, not as the look at the folder saw it.
    assert decoded.entry.stamp.size_bytes == file.stat().st_size
    assert decoded.entry.stamp.mtime_ns == file.stat().st_mtime_ns


def test_the_same_bytes_are_known_by_their_path_or_by_that_of_a_photo_that_is_gone(file: Path) -> None:
    data = file.read_bytes()
    touched = prepared(file, old=entry("a.jpg", data))
    assert isinstance(touched, KnownPhoto)
    renamed = prepared(file, gone=entry("b.jpg", data))
    assert isinstance(renamed, KnownPhoto)
    assert (renamed.old.path, renamed.entry.path, renamed.entry.title) == ("b.jpg", "a.jpg", "new")


def test_a_changed_photo_is_decoded_even_if_another_had_its_bytes(file: Path) -> None:
    decoded = prepared(file, old=entry("a.jpg", b"other"), gone=entry("b.jpg", file.read_bytes()))
    assert isinstance(decoded, DecodedPhoto)


@pytest.mark.parametrize("file_format", ["AVIF", "BMP", "TIFF"])
def test_photos_of_more_formats_are_read_whatever_their_names(file: Path, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200), "navy").save(file, file_format, exif=exif)
    decoded = prepared(file)
    assert isinstance(decoded, DecodedPhoto)
    assert (decoded.width, decoded.height) == ((300, 200) if file_format == "BMP" else (200, 300))
    assert Image.open(io.BytesIO(decoded.thumbnail)).size == ((160, 107) if file_format == "BMP" else (107, 160))


def test_heic_photos_are_read_with_the_extra(file: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    readable_formats()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200), "navy").save(file, "HEIF", exif=exif)
    decoded = prepared(file)
    assert isinstance(decoded, DecodedPhoto)
    assert sorted((decoded.width, decoded.height)) == [200, 300]
    assert pillow_heif.is_supported(file)
    file.write_bytes(file.read_bytes()[:300])
    cut_short = prepared(file)
    assert isinstance(cut_short, LeftOutPhoto)
    assert cut_short.unreadable.kind == NOT_A_PHOTO


def test_other_formats_are_left_out_by_name_with_what_to_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo, "readable_formats", lambda: FORMATS)  # the extra is not installed
    file.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
    heic = prepared(file)
    assert isinstance(heic, LeftOutPhoto)
    assert heic.unreadable.kind == f"{OTHER_FORMAT}, HEIC"
    assert heic.unreadable.reason.endswith(": install captrieve[heic], or convert it to JPEG")
    file.write_bytes(b"8BPS\0\1")
    drawing = prepared(file)
    assert isinstance(drawing, LeftOutPhoto)
    assert drawing.unreadable.reason == f"{OTHER_FORMAT}, Photoshop: convert it to JPEG"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 40])  # small, and so large that a JPEG is decoded at a fraction
def test_size_is_that_of_the_whole_upright_photo(file: Path, orientation: int, scale: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30 * scale, 20 * scale), "navy").save(file, exif=exif)
    decoded = prepared(file)
    assert isinstance(decoded, DecodedPhoto)
    expected = (30 * scale, 20 * scale)
    assert (decoded.width, decoded.height) == (expected if orientation < 5 else expected[::-1])


def test_what_cannot_be_used_is_left_out_with_the_reason(file: Path) -> None:
    file.write_bytes(b"")
    empty = prepared(file)
    assert isinstance(empty, LeftOutPhoto)
    assert empty.unreadable.kind == NOT_A_PHOTO
    file.unlink()
    missing = prepared(file)
    assert isinstance(missing, LeftOutPhoto)
    assert missing.unreadable == ("a.jpg", f"{CANNOT_READ}: No such file or directory")
