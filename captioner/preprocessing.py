# SPDX-License-Identifier: Apache-2.0
"""Bytes of an image file -> the uint8 pixels the encoder sees. The one way in for photos and thumbnails alike.

What arrives is hostile: the format is checked against an allow-list, size and scan count before anything is decoded
(Pillow's own threat model; libjpeg-turbo's "Two Issues with the JPEG Standard" for the scans). Normalisation is not
done here: it is part of the encoder graph.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from captioner.model_contract import Fit
from captioner.trimming import Content, find_content

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

# A JPEG may carry any number of scans, each of which costs a pass over all pixels: 81 KB can cost 6 seconds. Real files
# have a dozen at most. What costs time is the product with the pixels, so the largest photos may have fewer.
MAX_JPEG_SCANS = 100
MAX_JPEG_SCANS_OF_LARGEST = 20  # of 25 megapixels: 0.3 s

# Each segment is a round of Pillow's loop and of ours; two million of them fit into 8 MB. Real files have hundreds.
MAX_JPEG_SEGMENTS = 5_000

# By its standard Exif fits into one segment of 64 KiB. Pillow joins any number, and interprets each of their tags.
MAX_EXIF_BYTES = 128 * 1024

# A chunk of a PNG, an extension of a GIF, a fill byte of a JPEG: each costs Pillow a few reads, and a million of them
# fit into a megabyte. A PNG of 8 MB in libpng's chunks takes 4,000, other real files far fewer.
MAX_READS = 40_000

# Pillow inflates a PNG's texts, which are not used here; it would accept 64 MB of them.
PngImagePlugin.MAX_TEXT_MEMORY = 8 * 2**20

# The markers that libjpeg skips with what follows them. At a damaged place inside a scan it steps over any other (those
# below 0xC0) alone: were their "length" skipped, a thousand scans could hide behind one.
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1

# What of the Exif is searched for the orientation, which stands at its beginning: as much as a JPEG's segment holds.
_EXIF_BYTES_READ = 2**16
_EXIF_AS_TEXT = "Raw profile type exif"  # of old PNGs, in hexadecimal

# Of a picture that is brought to RGB in bands of rows, so that only the result is as large as the picture.
_BAND_PIXELS = 2**18

_WHITE = (255, 255, 255)

# EXIF orientation -> what brings the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """This is not a photo we can read. The message is fit for the caller: it tells what, the value and the limit."""


class ImageTooLargeError(ImageError):
    """The photo has more bytes or pixels than allowed."""


class ImageMemoryError(ImageTooLargeError):
    """The process may not have the memory that this photo takes."""


class _CountedFile(io.BytesIO):
    """Tells a file of countless tiny parts by how often Pillow comes back for more."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ImageError(f"the photo takes over {MAX_READS:,} reads, the limit, for its many parts: save it again")
        return super().read(size)


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    max_bytes: int = 8 * 2**20
    max_pixels: int = 25_000_000
    max_side: int = 16_384  # pixels


def decode_photo(
    data: bytes, *, height: int, width: int, fit: Fit, limits: ImageLimits | None = None
) -> npt.NDArray[np.uint8]:
    """Decode an image file and bring it to the encoder's size.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageTooLargeError: more bytes or pixels than `limits` allow.
        ImageError: not a readable JPEG, PNG, WebP or GIF.
    """
    # A JPEG is decoded at a fraction of its size, and how much of it will be trimmed is known only afterwards. With
    # twice the size content of half a side keeps the quality of "pad", and content of a quarter is not enlarged.
    scale = 2 if fit == "trim" else 1
    picture = open_photo(data, limits=limits, target=(scale * width, scale * height))
    return fit_photo(picture, height=height, width=width, fit=fit)


def check_number_of_bytes(data: bytes, limits: ImageLimits) -> None:
    """The first check of `decode_photo`, before the bytes are sent to another process.

    Raises:
        ImageError: there are none.
        ImageTooLargeError: more than `limits` allow.
    """
    if not data:
        raise ImageError("the photo is empty (0 bytes): send the bytes of a JPEG, PNG, WebP or GIF file")
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(
            f"the photo has {len(data):,} bytes; the limit is {limits.max_bytes:,}: send a smaller file"
        )


def open_photo(data: bytes, *, limits: ImageLimits | None = None, target: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file into an upright RGB picture; transparent parts become white.

    Args:
        target: (width, height) in pixels the caller will reduce to; lets a JPEG be decoded at a fraction of its size.

    Raises:
        ImageTooLargeError, ImageError: as `decode_photo`.
    """
    limits = limits or ImageLimits()
    check_number_of_bytes(data, limits)
    try:
        return _decode(data, limits, target)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageMemoryError(
            f"the photo ({len(data):,} bytes) takes more memory to decode than there is: send a smaller one"
        ) from error
    except Image.DecompressionBombError as error:
        # Pillow's own limit, far above ours, comes before we are told the size; its message begins with it.
        found = re.search(r"\d+", str(error))
        pixels = f"{int(found[0]):,}" if found else "too many"
        raise ImageTooLargeError(
            f"the photo has {pixels} pixels; the limit is {limits.max_pixels:,}: send a smaller one"
        ) from None
    except Exception as error:
        # Decoders of hostile files raise nearly anything (OSError, SyntaxError, ValueError, struct.error, EOFError,
        # MemoryError, ...): whatever it is, this file is not a readable photo.
        raise ImageError(
            f"the photo ({len(data):,} bytes) is damaged or cut short: send a complete JPEG, PNG, WebP or GIF file"
        ) from error


def _decode(data: bytes, limits: ImageLimits, target: tuple[int, int] | None) -> Image.Image:
    scans = _count_scans(data) if data.startswith(b"\xff\xd8") else 0  # before Pillow reads segment by segment
    try:
        picture = Image.open(_CountedFile(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(
            f"the photo ({len(data):,} bytes) is not a JPEG, PNG, WebP or GIF file: convert it to one of these"
        ) from None
    width, height = picture.size
    if width < 1 or height < 1:
        raise ImageError(f"the photo has {width} x {height} pixels: it needs at least one")
    if max(width, height) > limits.max_side:
        raise ImageTooLargeError(
            f"the photo is {width:,} x {height:,} pixels; the limit is {limits.max_side:,} a side: send a smaller one"
        )
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"the photo has {width * height:,} pixels; the limit is {limits.max_pixels:,}: send a smaller one"
        )
    if isinstance(picture, JpegImagePlugin.JpegImageFile):  # whose format may also be "MPO", a phone's depth photo
        if scans > MAX_JPEG_SCANS:
            raise ImageError(f"the photo is a JPEG of {scans} scans; the limit is {MAX_JPEG_SCANS}: save it again")
        most_scans = MAX_JPEG_SCANS_OF_LARGEST * limits.max_pixels // (width * height)
        if scans > most_scans:
            raise ImageTooLargeError(
                f"the photo is a JPEG of {scans} scans of {width * height:,} pixels; the limit at this size is "
                f"{most_scans} scans: save it again"
            )
        if target is not None:
            # Twice the target keeps the reduction's quality; only JPEGs can be decoded at 1/2, 1/4 or 1/8.
            picture.draft("RGB", (2 * target[0], 2 * target[1]))
    key = _transparent_colour(picture)  # of the file's own depth, which is known until it is loaded
    picture.load()
    if key is not None:
        picture.info["transparency"] = key
    return _to_rgb(_upright(picture))


def _count_scans(jpeg: bytes) -> int:
    """Scans up to the end of the image, found as libjpeg finds them.

    Segments are skipped by their length and what follows the end is not looked at: the video behind a phone's motion
    photo has the bytes of the marker a hundred times.

    Raises:
        ImageError: it has more segments or more Exif than any real file.
    """
    scans, segments, exif_bytes, position = 0, 0, 0, 2
    while (found := _JPEG_MARKER.search(jpeg, position)) and found[0][1] != _END_OF_IMAGE:
        num_bytes = int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
        scans += found[0][1] == _START_OF_SCAN
        segments += 1
        if segments > MAX_JPEG_SEGMENTS:
            raise ImageError(f"the photo is a JPEG of over {MAX_JPEG_SEGMENTS:,} segments, the limit: save it again")
        if found[0][1] == _APP1 and jpeg.startswith(b"Exif", found.end() + 2):
            exif_bytes += num_bytes
        if exif_bytes > MAX_EXIF_BYTES:
            raise ImageError(f"the photo is a JPEG of over {MAX_EXIF_BYTES:,} bytes of Exif, the limit: save it again")
        position = found.end() + num_bytes
    return scans


def _transparent_colour(picture: Image.Image) -> int | tuple[int, ...] | None:
    """The one transparent colour of a PNG whose samples have fewer or more than 8 bits, as Pillow's pixels have it.

    Pillow scales such samples when it loads them, but not the colour. None: it is right as it is, or there is none.
    """
    key = picture.info.get("transparency")
    if not isinstance(picture, PngImagePlugin.PngImageFile) or not picture.tile:
        return None
    match picture.tile[0].args, key:
        case "L;2", int():
            return (key & 3) * 85
        case "L;4", int():
            return (key & 15) * 17
        case "RGB;16B", (int(), int(), int()):
            return tuple(part >> 8 for part in key)  # the low bytes of the pixels are lost
    return None


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says.

    `ImageOps.exif_transpose` also writes the other tags anew, and fails on those that cameras get wrong.
    """
    if "exif" in picture.info:
        picture.info["exif"] = picture.info["exif"][:_EXIF_BYTES_READ]
    if _EXIF_AS_TEXT in picture.info:
        picture.info[_EXIF_AS_TEXT] = picture.info[_EXIF_AS_TEXT][: 2 * _EXIF_BYTES_READ]
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        turn = None  # the tags cannot be read; the pixels can
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    rows = max(1, _BAND_PIXELS // picture.width)
    if picture.height <= rows or (picture.mode == "RGB" and not _has_alpha(picture)):
        return _band_to_rgb(picture)
    # The steps of a band stay in the processor's cache: half the time, and no picture of 4 bytes a pixel for each step.
    result = Image.new("RGB", picture.size, color=None)
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        result.paste(_band_to_rgb(band), (0, top))
    return result


def _band_to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # 16-bit grey: convert("RGB") would clip everything above 255 to white. Whole numbers: 8 bytes a pixel less.
        values = np.clip(np.asarray(picture), 0, 65535)
        grey = (values // 257).astype(np.uint8)
        grey[values == picture.info.get("transparency", -1)] = _WHITE[0]
        return Image.fromarray(grey, mode="L").convert("RGB")
    if _has_alpha(picture):
        # convert("RGB") would turn transparent ground black; product photos stand on white.
        with_alpha = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        ground = Image.new("RGB", picture.size, _WHITE)
        ground.paste(with_alpha, mask=with_alpha)  # equals alpha_composite, whose result would have to be converted
        return ground
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def fit_photo(picture: Image.Image, *, height: int, width: int, fit: Fit) -> npt.NDArray[np.uint8]:
    """Bring an RGB picture to the encoder's size.

    Args:
        fit: "pad" keeps the picture's proportions and fills with white, the ground of product photos; "trim" first
            removes margins of one colour (`captioner.trimming`) and fills with the colour of what is left of them;
            "squash" is what `ViTImageProcessor` does.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    if fit == "squash":
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), dtype=np.uint8)
    content = find_content(picture) if fit == "trim" else Content((0, 0, *picture.size), _WHITE)
    left, top, right, bottom = content.box
    size = (right - left, bottom - top)
    scale = min(width / size[0], height / size[1])
    inner = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    if inner != size:
        picture = picture.resize(inner, Image.Resampling.BICUBIC, box=content.box, reducing_gap=3.0)
    elif size != picture.size:
        picture = picture.crop(content.box)
    canvas = np.full((height, width, 3), content.ground, dtype=np.uint8)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = np.asarray(picture, dtype=np.uint8)
    return canvas
