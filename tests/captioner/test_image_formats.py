# SPDX-License-Identifier: Apache-2.0
"""Tests of telling formats by their first bytes, on files that Pillow writes and on headers from the specifications."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from captioner.image_formats import format_of

FTYP = b"\0\0\0\x20ftyp"


@pytest.mark.parametrize(
    ("pillow_name", "name"),
    [
        ("JPEG", "JPEG"), ("PNG", "PNG"), ("GIF", "GIF"), ("WEBP", "WebP"), ("AVIF", "AVIF"), ("BMP", "BMP"),
        ("TIFF", "TIFF"), ("JPEG2000", "JPEG 2000"), ("ICO", "icon"), ("PPM", "Netpbm"), ("DDS", "DDS"), ("PDF", "PDF"),
        ("EPS", "EPS"), ("QOI", "QOI"), ("MPO", "JPEG"),
    ],
)  # fmt: skip
def test_format_of_what_pillow_writes_is_told(pillow_name: str, name: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (20, 30), "navy").save(file, pillow_name)
    assert format_of(file.getvalue()) == name


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (FTYP + b"heic\0\0\0\0mif1heic", "HEIC"),
        (FTYP + b"mif1\0\0\0\0mif1heic", "HEIC"),
        (FTYP + b"mif1\0\0\0\0miafavif", "AVIF"),
        (FTYP + b"crx \0\0\0\x01crx isom", "camera raw"),
        (b"II*\0\x10\0\0\0CR\x02\0", "camera raw"),
        (b"\xff\x0a\xfa", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\x01", "Photoshop"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="x">', "SVG"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"P6 # by hand\n3 4", "Netpbm"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
    ],
)
def test_format_of_a_header_is_told(head: bytes, name: str) -> None:
    assert format_of(head + bytes(100)) == name


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 600,
        b"BMW shirt,12\n" * 9,
        b"id,title\n1,Red\n",
        b"P1 is a product",
        b"SQLite format 3\0",
        FTYP + b"isom\0\0\2\0isomiso2avc1mp41",  # a video
        b"RIFF\0\0\0\0WAVE",
        b"<?xml version='1.0'?><note/>",
    ],
)
def test_what_is_no_picture_has_no_format(data: bytes) -> None:
    assert format_of(data) is None
