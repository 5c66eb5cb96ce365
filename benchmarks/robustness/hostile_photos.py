# SPDX-License-Identifier: Apache-2.0
"""Image files that cost a decoder much time or memory, and unusual files that are legal."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from benchmarks.robustness.image_files import (
    ORIENTATION,
    chunk,
    encoded,
    exif_of_many_tags,
    noise,
    png,
    webp_header,
    with_hidden_scans,
    with_many_tags,
    with_scans,
    with_segment,
)


def _flat_png(side: int, bits: int, colour_type: int, samples: int) -> bytes:
    """Make a file of a few kilobytes with side x side pixels."""
    row = b"\0" * (1 + side * samples * bits // 8)
    return png(side, side, bits, colour_type, row * side)


def _png_with(*chunks: bytes) -> bytes:
    small = encoded(noise(8, 8), "PNG")
    return small[:33] + b"".join(chunks) + small[33:]


def _with_inside(file: bytes, position: int, more: bytes) -> bytes:
    return file[:position] + more + file[position:]


def _text(num_bytes: int) -> bytes:
    return chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * num_bytes, 9))


def _scan_bomb(side: int, scans: int) -> bytes:
    return with_scans(
        encoded(Image.new("RGB", (side, side), (90, 120, 20)), "JPEG", progressive=True, quality=50), scans
    )


def _jpeg_of_segments(count: int) -> bytes:
    jpeg = encoded(noise(8, 8), "JPEG")
    return jpeg[:2] + b"\xff\xe5\0\2" * count + jpeg[2:]


def _gif_of_extensions(count: int) -> bytes:
    gif = encoded(noise(8, 8, 1), "GIF")
    start = gif.index(b"\x21\xf9") if b"\x21\xf9" in gif else gif.index(b"\x2c")
    return gif[:start] + b"\x21\xfe\x01x\x00" * count + gif[start:]


def _jpeg_with_many_tags() -> bytes:
    """Make a JPEG without a JFIF segment, for which Pillow looks for the resolution among the tags."""
    jpeg = encoded(noise(8, 8), "JPEG")
    return with_many_tags(jpeg[:2] + jpeg[20:], 65_535)


def _animation(file_format: str, side: int, frames: int) -> bytes:
    pictures = [Image.new("RGB", (side, side), (shade % 256, 0, 0)) for shade in range(frames)]
    return encoded(pictures[0], file_format, save_all=True, append_images=pictures[1:], duration=10)


BOMBS: dict[str, Callable[[], bytes]] = {
    "scans 200": lambda: _scan_bomb(2000, 200),
    "scans 600": lambda: _scan_bomb(4000, 600),
    "scans 5000": lambda: _scan_bomb(1000, 5000),
    "scans 100 of 1 MP": lambda: _scan_bomb(1000, 100),
    "scans 100 of 4 MP": lambda: _scan_bomb(2000, 100),
    "scans 100 of 25 MP": lambda: _scan_bomb(5000, 100),
    "scans 20 of 25 MP": lambda: _scan_bomb(5000, 20),
    "jpeg of 1.9 million segments": lambda: _jpeg_of_segments(1_900_000),
    "jpeg of 4,900 segments": lambda: _jpeg_of_segments(4_900),
    "jpeg of 7.9 million fill bytes": lambda: _with_inside(encoded(noise(8, 8), "JPEG"), 2, b"\xff" * 7_900_000),
    "jpeg of 1 million fill bytes": lambda: _with_inside(encoded(noise(8, 8), "JPEG"), 2, b"\xff" * 1_000_000),
    "jpeg with 65,535 tags": _jpeg_with_many_tags,
    "scans 1,500 behind an invalid marker": lambda: with_hidden_scans(2000, 1500),
    "scans 6,000 behind an invalid marker": lambda: with_hidden_scans(5000, 6000),
    "png of 90 gigapixels": lambda: png(300_000, 300_000, 8, 2),
    "png of 25 MP without pixels": lambda: png(5000, 5000, 8, 2),
    "png of 25 MP, grey": lambda: _flat_png(5000, 8, 0, 1),
    "png of 25 MP, 16-bit grey": lambda: _flat_png(5000, 16, 0, 1),
    "png of 25 MP, colour and alpha": lambda: _flat_png(5000, 8, 6, 4),
    "png of 25 MP, 16-bit colour and alpha": lambda: _flat_png(5000, 16, 6, 4),
    "png with 1 text of 60 MB": lambda: _png_with(_text(60_000_000)),
    "png with 60 texts of 1 MB": lambda: _png_with(*[_text(1_000_000)] * 60),
    "png with 6,000 texts of 1 MB": lambda: _png_with(*[_text(1_000_000)] * 6000),
    "png with a profile of 60 MB": lambda: _png_with(chunk(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * 60_000_000, 9))),
    "png of 600,000 chunks": lambda: _png_with(chunk(b"quUx", b"") * 600_000),
    "png of 80,000 chunks behind the pixels": lambda: _with_inside(
        encoded(noise(8, 8), "PNG"), -12, chunk(b"quUx", b"") * 80_000
    ),
    "png with 65,535 tags": lambda: _png_with(chunk(b"eXIf", exif_of_many_tags(65_535))),
    "png of more data than pixels": lambda: png(8, 8, 8, 2, b"\0" * 60_000_000),
    "gif of 25 MP": lambda: encoded(Image.new("P", (5000, 5000)), "GIF"),
    "gif of 1.5 million extensions": lambda: _gif_of_extensions(1_500_000),
    "gif of 7.9 million zeros": lambda: _with_inside(encoded(noise(8, 8, 1), "GIF"), 13 + 3 * 256, bytes(7_900_000)),
    "webp of 169 MP": lambda: webp_header(13_000, 13_000),
    "webp of 25 MP": lambda: encoded(Image.new("RGBA", (5000, 5000)), "WEBP", lossless=True, quality=0, method=0),
    "animated webp": lambda: _animation("WEBP", 500, 30),
    "animated gif": lambda: _animation("GIF", 500, 100),
    "apng": lambda: _animation("PNG", 500, 100),
    "side of 65,535": lambda: encoded(Image.new("L", (65_500, 10)), "JPEG"),
    "zeros": lambda: b"\0" * 8_000_000,
    "jpeg and 8 MB of markers": lambda: encoded(noise(8, 8), "JPEG")[:-2] + b"\xff\xda\0\2" * 1_900_000,
}


def odd_photos() -> Iterator[tuple[str, bytes]]:
    """Make files that are legal but that decoders often get wrong, and files that are cut at every twentieth.

    Yields:
        Name and bytes of each file.
    """
    grey16 = Image.fromarray(np.linspace(0, 65535, 80 * 60).astype(np.uint16).reshape(80, 60))
    yield "16-bit grey", encoded(grey16, "PNG")
    rows = b"".join(b"\0" + row.tobytes() for row in noise(9, 8 * 6, 1))
    yield "16-bit colour", png(8, 9, 16, 2, rows)
    yield "cmyk", encoded(Image.new("CMYK", (60, 80), (10, 200, 30, 60)), "JPEG")
    palette = Image.fromarray(noise(80, 60)).quantize(16)
    yield "palette and alpha", encoded(palette, "PNG", transparency=bytes(range(0, 256, 16)))
    yield "16-bit grey and a transparent one", png(8, 1, 16, 0, bytes(17), transparency=bytes(2))
    yield "2-bit grey and a transparent one", png(4, 1, 2, 0, b"\0\x1b", transparency=b"\0\1")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        yield f"orientation {orientation}", encoded(noise(80, 60), "JPEG", exif=exif)
    yield "exif that ends too early", with_segment(encoded(noise(8, 8), "JPEG"), 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x05")
    yield "png header only", b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR"
    whole = {
        "jpeg": encoded(noise(160, 120), "JPEG"),
        "progressive jpeg": encoded(noise(160, 120), "JPEG", progressive=True),
        "png": encoded(noise(80, 60), "PNG"),
        "interlaced gif": encoded(Image.fromarray(noise(80, 60)).quantize(64), "GIF", interlace=True),
        "webp": encoded(noise(80, 60), "WEBP"),
        "lossless webp": encoded(noise(80, 60), "WEBP", lossless=True),
    }
    for name, data in whole.items():
        for percent in range(0, 105, 5):
            yield f"{percent} % of a {name}", data[: len(data) * percent // 100]


def legal_25_megapixels() -> Iterator[tuple[str, bytes]]:
    """Make the largest photos of cameras and designers that the default limits allow.

    Yields:
        Name and bytes of each file.
    """
    rows, columns = np.mgrid[0:5000, 0:5000]
    shades = [rows * 255 // 5000, columns * 255 // 5000, (rows + columns) % 256, 255 - columns * 200 // 5000]
    picture = Image.fromarray(np.stack(shades, axis=-1).astype(np.uint8))
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    yield "jpeg", encoded(picture.convert("RGB"), "JPEG", quality=90, exif=turned)
    yield "progressive jpeg", encoded(picture.convert("RGB"), "JPEG", quality=90, progressive=True)
    yield "cmyk jpeg", encoded(picture.convert("CMYK"), "JPEG", quality=90)
    yield "png", encoded(picture, "PNG", compress_level=1, exif=turned)
    yield "16-bit png", encoded(Image.fromarray((rows * 13).astype(np.uint16)), "PNG", compress_level=1)
    yield "palette png", encoded(picture.convert("L").convert("P"), "PNG", compress_level=1, transparency=3)
    yield "webp", encoded(picture.convert("RGB"), "WEBP", quality=80, method=0, exif=turned)
    yield "transparent webp", encoded(picture, "WEBP", lossless=True, quality=0, method=0, exif=turned)
    yield "gif", encoded(picture.convert("L").convert("P"), "GIF", transparency=3)
