# SPDX-License-Identifier: Apache-2.0
"""Image files made byte by byte, with parts of PNG, JPEG, WebP and Exif that no encoder writes."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
ORIENTATION = 0x0112  # Exif tag


def noise(height: int, width: int, channels: int = 3, seed: int = 1) -> Pixels:
    """Return random pixels, uint8 [height, width, channels]; without the last axis for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture: Image.Image | Pixels, file_format: str, **options: Any) -> bytes:
    """Encode a picture with Pillow; `options` are those of the format."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(np.ascontiguousarray(picture))
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG: length, type, body and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, bits: int, colour_type: int, rows: bytes = b"", transparency: bytes | None = None
) -> bytes:
    """Return a PNG with this header."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header)
    if transparency is not None:
        body += chunk(b"tRNS", transparency)
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def webp_header(width: int, height: int) -> bytes:
    """Return a lossless WebP that has a header of this size and no pixels."""
    body = b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14) + bytes(11)
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """Return the JPEG with one more segment after its first two bytes."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def with_scans(jpeg: bytes, count: int) -> bytes:
    """Return the progressive JPEG with its last scan repeated until there are `count` scans."""
    end = jpeg.index(b"\xff\xd9")
    last = jpeg.rindex(b"\xff\xda", 0, end)
    more = count - jpeg.count(b"\xff\xda", 0, end)
    return jpeg[:end] + jpeg[last:end] * more + jpeg[end:]


def with_hidden_scans(side: int, count: int, marker: int = 0x02) -> bytes:
    """Return a progressive JPEG of side x side pixels with scans inside a scan, behind a marker that is invalid there.

    A parser that skips as many bytes as the marker's "length" says does not see these scans. libjpeg looks for a
    restart marker instead, and decodes them.
    """
    colour = Image.new("RGB", (side, side), (90, 120, 20))
    jpeg = encoded(colour, "JPEG", progressive=True, quality=50, restart_marker_rows=1)
    end = jpeg.index(b"\xff\xd9")
    last = jpeg.rindex(b"\xff\xda", 0, end)
    empty_scan = jpeg[last : last + 2 + int.from_bytes(jpeg[last + 2 : last + 4], "big")]
    restart = re.compile(rb"\xff[\xd0-\xd7]").search(jpeg, last)
    assert restart is not None
    return jpeg[: restart.start()] + bytes([0xFF, marker, 0xFF, 0xFF]) + empty_scan * count + bytes(65_533) + jpeg[end:]


def exif_of_many_tags(count: int, orientation: int = 1) -> bytes:
    """Return TIFF data of Exif with `count` tags, the first of which is the orientation."""
    others = b"".join(struct.pack("<HHII", 0x200 + place & 0xFFFF, 3, 1, 8) for place in range(count - 1))
    tags = struct.pack("<HHII", ORIENTATION, 3, 1, orientation) + others
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + tags + bytes(8)


def with_many_tags(jpeg: bytes, count: int, orientation: int = 1) -> bytes:
    """Return the JPEG with Exif of `count` tags, in as many segments as it needs."""
    exif = exif_of_many_tags(count, orientation)
    for start in reversed(range(0, len(exif), 65_000)):
        jpeg = with_segment(jpeg, 0xE1, b"Exif\0\0" + exif[start : start + 65_000])
    return jpeg
