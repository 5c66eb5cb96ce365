# SPDX-License-Identifier: Apache-2.0
"""Turns the bytes of an image file into the encoder's pixels, for photos and thumbnails alike.

Files may be hostile. The format must be on an allow-list, and size and number of scans are checked before anything is
decoded (see Pillow's threat model, and libjpeg-turbo's "Two Issues with the JPEG Standard" for the scans). The encoder
normalises the pixels itself.
"""

from __future__ import annotations

import io
import math
import random
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from captioner.image_colours import ToSrgb, to_srgb
from captioner.image_error import ImageError, ImageReason
from captioner.image_formats import format_of
from captioner.model_contract import Fit
from captioner.trimming import Content, find_content

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

# A JPEG may have any number of scans, and each costs a pass over all pixels: 81 KB can cost 6 seconds. Real files have
# a dozen at most. The time grows with scans times pixels, so the largest photos may have fewer scans.
MAX_JPEG_SCANS = 100
MAX_JPEG_SCANS_OF_LARGEST = 20  # of 25 megapixels: 0.3 s

# A JPEG of one scan that is decoded at a fraction of its size takes little memory. Of several scans libjpeg keeps up
# to 8 bytes a pixel.
_LARGER_JPEG, _LARGER_JPEG_OF_SCANS = 8, 3  # times the limit of pixels

# How much of a JPEG without an end marker may be missing at its bottom, as a share of its rows.
_MISSING_SHARE = 0.01
# Decoded in the place of missing data, to find where it begins; no 0xFF, which would be a marker.
_FILLER = bytes(random.Random(1).randrange(255) for _ in range(512))

# Pillow and `_read_scans` loop over the segments, two million of which fit into 8 MB. Real files have hundreds.
MAX_JPEG_SEGMENTS = 5_000

# By the standard, Exif fits into one segment of 64 KiB. Pillow joins any number of them and interprets each tag.
MAX_EXIF_BYTES = 128 * 1024

# Each chunk of a PNG, extension of a GIF and fill byte of a JPEG costs Pillow a few reads, and a megabyte can have a
# million of them. A PNG of 8 MB with libpng's chunks takes 4,000 reads, other real files far fewer.
MAX_READS = 40_000

# Pillow decompresses the texts of a PNG, which are not used here; its own limit is 64 MB.
PngImagePlugin.MAX_TEXT_MEMORY = 8 * 2**20

# The markers that libjpeg skips together with their data. Of other markers (below 0xC0) in a damaged scan it skips only
# the marker itself: if their "length" was skipped here, a thousand scans could hide behind one.
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_END_OF_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # any marker but that of a restart
_START_OF_SCAN, _START_OF_IMAGE, _END_OF_IMAGE, _APP1 = 0xDA, 0xD8, 0xD9, 0xE1
_SEQUENTIAL_FRAMES, _PROGRESSIVE_FRAMES = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
_ALL_COEFFICIENTS = 2**64 - 1

# How much of the Exif is searched for the orientation, which is at its beginning: the size of a JPEG's segment.
_EXIF_BYTES_READ = 2**16
_EXIF_AS_TEXT = "Raw profile type exif"  # of old PNGs, in hexadecimal
_NEW_SUBFILE_TYPE = 254  # tag of TIFF; bit 0 says that the page is a smaller copy of another one

_NOT_READ, _CONVERT = "not a JPEG, PNG, WebP or GIF file", "convert it to one of these"

# Size of the bands of rows in which a picture is converted to RGB, so that only the result is as large as the picture.
_BAND_PIXELS = 2**18

MIN_REGION_SIDE = 16  # pixels of the picture in the file; fewer show nothing

_SAVE_AGAIN, _SEND_SMALLER = "save it again", "send a smaller one"

_WHITE = (255, 255, 255)

Box = tuple[float, float, float, float]  # left, top, right, bottom

# EXIF orientation -> the transposition that turns the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _CountedFile(io.BytesIO):
    """A file that limits Pillow's reads, because a hostile file may consist of very many small parts."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            what = "takes at least {} reads for its many parts"
            raise ImageError(ImageReason.UNREADABLE, what, self._reads, MAX_READS, _SAVE_AGAIN)
        return super().read(size)


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Limits of image files and pictures.

    Attributes:
        max_bytes: of the file.
        max_pixels: that are decoded. A JPEG decoded at a fraction of its size may have 8 times as many, or 3 times as
            many in several scans.
        max_side: of the picture in the file, in pixels.
    """

    max_bytes: int = 8 * 2**20
    max_pixels: int = 25_000_000
    max_side: int = 16_384


@dataclass(frozen=True)
class Region:
    """A part of an upright picture, in fractions of its width and height; it lies within the picture."""

    x: float  # left edge
    y: float  # top edge
    width: float
    height: float


def decode_photo(
    data: bytes,
    *,
    height: int,
    width: int,
    fit: Fit,
    limits: ImageLimits | None = None,
    formats: tuple[str, ...] = FORMATS,
    region: Region | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode an image file and bring it to the encoder's size.

    Args:
        data: bytes of the image file.
        height: of the result, in pixels.
        width: of the result, in pixels.
        fit: how a picture of another shape is fitted, see `fit_photo`.
        limits: of file and picture; None: the defaults.
        formats: Pillow's names of those that are read.
        region: the part of the upright picture that is used; None: all of it.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageError: it is not a readable file of these formats, has more bytes or pixels than `limits` allow, or the
            region has too few pixels.
    """
    # A JPEG is decoded at a fraction of its size before its margins are known. At twice the size, content that fills
    # half of a side has the quality of "pad", and content that fills a quarter is not enlarged.
    scale = 2 if fit == "trim" else 1
    picture, box = _open(data, limits, (scale * width, scale * height), formats, region)
    return fit_photo(picture, height=height, width=width, fit=fit, box=box)


def check_number_of_bytes(data: bytes, limits: ImageLimits) -> None:
    """Check the size of a file, before its bytes are sent to another process.

    Raises:
        ImageError: the file is empty, or has more bytes than `limits` allow.
    """
    if not data:
        remedy = "send the bytes of a JPEG, PNG, WebP or GIF file"
        raise ImageError(ImageReason.UNREADABLE, "is empty ({} bytes)", 0, None, remedy)
    if len(data) > limits.max_bytes:
        raise ImageError(ImageReason.TOO_LARGE, "has {} bytes", len(data), limits.max_bytes, "send a smaller file")


def open_photo(
    data: bytes,
    *,
    limits: ImageLimits | None = None,
    target: tuple[int, int] | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> Image.Image:
    """Decode an image file into an upright RGB picture in sRGB; transparent parts become white.

    Args:
        data: bytes of the image file.
        limits: of file and picture; None: the defaults.
        target: (width, height) in pixels to which the caller will reduce the picture; with it a JPEG is decoded at a
            fraction of its size.
        formats: Pillow's names of those that are read.

    Raises:
        ImageError: it is not a readable file of these formats, or has more bytes or pixels than `limits` allow.
    """
    picture, _ = _open(data, limits, target, formats)
    return picture


def _open(
    data: bytes,
    limits: ImageLimits | None,
    target: tuple[int, int] | None,
    formats: tuple[str, ...],
    region: Region | None = None,
) -> tuple[Image.Image, Box]:
    """Do the work of `open_photo`; also return the part of the picture that the photo, or the region, fills."""
    limits = limits or ImageLimits()
    check_number_of_bytes(data, limits)
    try:
        return _decode(data, limits, target, formats, region)
    except ImageError:
        raise
    except MemoryError as error:
        what = "({} bytes) takes more memory to decode than there is"
        raise ImageError(ImageReason.OUT_OF_MEMORY, what, len(data), None, _SEND_SMALLER) from error
    except Image.DecompressionBombError as error:
        # Pillow checks its own, much higher limit before it returns the size; its message begins with the pixels.
        found = re.search(r"\d+", str(error))
        pixels = int(found[0]) if found else "too many"
        raise _too_many_pixels(pixels, limits.max_pixels) from None
    except Exception as error:
        # For damaged files decoders raise many types (OSError, SyntaxError, ValueError, struct.error, EOFError, ...).
        remedy = "send a complete JPEG, PNG, WebP or GIF file"
        raise ImageError(
            ImageReason.UNREADABLE, "({} bytes) is damaged or cut short", len(data), None, remedy
        ) from error


def _decode(
    data: bytes,
    limits: ImageLimits,
    target: tuple[int, int] | None,
    formats: tuple[str, ...],
    region: Region | None,
) -> tuple[Image.Image, Box]:
    scans, end = _read_scans(data) if data.startswith(b"\xff\xd8") else (0, None)  # before Pillow reads all segments
    try:
        picture = open_header(data, formats)
    except UnidentifiedImageError:
        name = format_of(data)
        if name is None:
            what = f"({{}} bytes) is {_NOT_READ}"
            raise ImageError(ImageReason.UNREADABLE, what, len(data), None, _CONVERT) from None
        if name.upper().replace("HEIC", "HEIF") not in formats:
            raise _other_format(name) from None
        raise  # damaged at its beginning
    # The first page of a camera's raw file, a TIFF by its content, is a small preview.
    if getattr(picture, "tag_v2", {}).get(_NEW_SUBFILE_TYPE, 0) & 1:
        raise _other_format("camera raw")
    width, height = picture.size
    extent: tuple[float, float] = picture.size  # of the photo, in pixels of the smaller picture
    if width < 1 or height < 1:
        size = f"{width} x {height}"
        raise ImageError(ImageReason.UNREADABLE, "has {} pixels", size, None, "it needs at least one")
    if max(width, height) > limits.max_side:
        size, limit = f"{width:,} x {height:,}", f"{limits.max_side:,} a side"
        raise ImageError(ImageReason.TOO_LARGE, "is {} pixels", size, limit, _SEND_SMALLER)
    if isinstance(picture, JpegImagePlugin.JpegImageFile):  # its format may be "MPO" (depth photos of phones)
        if scans > MAX_JPEG_SCANS:
            raise ImageError(ImageReason.UNREADABLE, "is a JPEG of {} scans", scans, MAX_JPEG_SCANS, _SAVE_AGAIN)
        most_scans = MAX_JPEG_SCANS_OF_LARGEST * limits.max_pixels // (width * height)
        if scans > most_scans:
            what = f"is a JPEG of {{}} scans of {width * height:,} pixels"
            raise ImageError(ImageReason.TOO_LARGE, what, scans, f"{most_scans} scans at this size", _SAVE_AGAIN)
        if target is not None:
            most_pixels = limits.max_pixels * (_LARGER_JPEG if scans < 2 else _LARGER_JPEG_OF_SCANS)
            if width * height > most_pixels:
                raise _too_many_pixels(width * height, most_pixels)
            if region is not None:
                target = _target_of_region(target, region, picture.size, limits.max_pixels)
            extent = _set_fraction(picture, target)
    if picture.width * picture.height > limits.max_pixels:
        raise _too_many_pixels(picture.width * picture.height, limits.max_pixels)
    if picture.mode == "F":
        remedy = "save it with 8 or 16 bits"
        raise ImageError(ImageReason.UNREADABLE, "has {} pixels", "floating-point", None, remedy)
    key = _transparent_colour(picture)  # before loading, which loses the file's bit depth
    try:
        picture.load()
    except OSError:
        if end is None:
            raise
        picture = _decode_without_end(data[:end].rstrip(b"\xff"), target)
    if key is not None:
        picture.info["transparency"] = key
    conversion = to_srgb(picture.info.get("icc_profile") or b"", picture.mode)
    upright, box = _upright(picture, picture.width - extent[0], picture.height - extent[1])
    if region is not None:
        upright, box = _cropped(upright, box, region, width / extent[0])
    return _to_rgb(upright, conversion), box


def _other_format(name: str) -> ImageError:
    return ImageError(ImageReason.OTHER_FORMAT, f"is in the format {{}}, {_NOT_READ}", name, None, _CONVERT)


def _too_many_pixels(pixels: int | str, most: int) -> ImageError:
    return ImageError(ImageReason.TOO_LARGE, "has {} pixels", pixels, most, _SEND_SMALLER)


def open_header(data: bytes, formats: tuple[str, ...]) -> ImageFile.ImageFile:
    """Read the header of an image file with Pillow, whose own limit of pixels does not apply to JPEGs.

    Args:
        data: bytes of the image file.
        formats: Pillow's names of those that are read.

    Raises:
        UnidentifiedImageError: the file is damaged at its beginning, or has another format.
        Exception: what Pillow raises for a damaged file.
    """
    if "JPEG" in formats and data.startswith(b"\xff\xd8\xff"):
        # Its pixels take no memory before they are decoded, at a fraction of its size.
        return JpegImagePlugin.jpeg_factory(_CountedFile(data))
    return Image.open(_CountedFile(data), formats=formats)


def _set_fraction(jpeg: JpegImagePlugin.JpegImageFile, target: tuple[int, int]) -> tuple[float, float]:
    """Make Pillow decode a JPEG at a fraction of its size; return its width and height, not rounded to whole pixels."""
    # Only 1/2, 1/4 and 1/8 are possible; twice the target keeps the quality of the final reduction.
    drafted = jpeg.draft("RGB", (2 * target[0], 2 * target[1]))
    return jpeg.size if drafted is None else drafted[1][2:]


def _decode_without_end(jpeg: bytes, target: tuple[int, int] | None) -> JpegImagePlugin.JpegImageFile:
    """Decode a JPEG that has all its scans and no end marker, as browsers do.

    libjpeg fills what is missing with grey and does not tell where. So the file is decoded twice, with and without
    other bytes at its end: the pictures differ from the first missing row on.

    Raises:
        OSError: more than a few rows are missing.
    """
    pictures = []
    for tail in (b"", _FILLER):
        picture = JpegImagePlugin.JpegImageFile(_CountedFile(jpeg + tail + bytes([0xFF, _END_OF_IMAGE])))
        if target is not None:
            _set_fraction(picture, target)
        picture.load()
        pictures.append(picture)
    differ = (np.asarray(pictures[0]) != np.asarray(pictures[1])).reshape(pictures[0].height, -1).any(axis=1)
    if differ[: len(differ) - int(_MISSING_SHARE * len(differ))].any():
        raise OSError("the rows at the bottom are missing")
    return pictures[0]


def _read_scans(jpeg: bytes) -> tuple[int, int | None]:
    """Count the scans up to the end of the image, as libjpeg finds them, and find where the last needed one ends.

    Segments are skipped by their length, and bytes after the end are ignored: the video in a phone's motion photo may
    contain the marker's bytes a hundred times.

    Returns:
        Number of scans; number of bytes up to the end of the scan that completes the picture, None: it is incomplete.

    Raises:
        ImageError: it has more segments or Exif than allowed.
    """
    scans, segments, exif_bytes, position = 0, 0, 0, 2
    missing: dict[int, int] | None = None  # component -> bit mask of the coefficients that are still to come
    is_progressive, end = False, None
    # libjpeg does not go beyond another start of image, either: a panorama without an end may be followed by pictures.
    while (found := _JPEG_MARKER.search(jpeg, position)) and found[0][1] not in (_START_OF_IMAGE, _END_OF_IMAGE):
        num_bytes = int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
        position = found.end() + num_bytes
        body = jpeg[found.end() + 2 : position]
        marker = found[0][1]
        segments += 1
        if segments > MAX_JPEG_SEGMENTS:
            what = "is a JPEG of at least {} segments"
            raise ImageError(ImageReason.UNREADABLE, what, segments, MAX_JPEG_SEGMENTS, _SAVE_AGAIN)
        if marker == _APP1 and body.startswith(b"Exif"):
            exif_bytes += num_bytes
        if exif_bytes > MAX_EXIF_BYTES:
            what = "is a JPEG with {} bytes of Exif or more"
            raise ImageError(ImageReason.UNREADABLE, what, exif_bytes, MAX_EXIF_BYTES, _SAVE_AGAIN)
        if marker in (*_SEQUENTIAL_FRAMES, *_PROGRESSIVE_FRAMES):
            is_progressive = marker in _PROGRESSIVE_FRAMES
            missing = dict.fromkeys(body[6::3], _ALL_COEFFICIENTS)
        if marker == _START_OF_SCAN:
            scans += 1
            if missing is not None and len(body) >= 4:
                _remove_scan(missing, body, is_progressive)
                if end is None and not any(missing.values()):
                    stop = _END_OF_SCAN.search(jpeg, position)
                    end = stop.start() if stop else len(jpeg)
    return scans, end


def _remove_scan(missing: dict[int, int], scan: bytes, is_progressive: bool) -> None:
    """Remove the coefficients of a scan, given by its header, from those that are missing."""
    first, last, bits = scan[-3:]
    if is_progressive and bits & 15:
        return  # their lower bits are still to come
    mask = (2 << min(last, 63)) - (1 << min(first, 63)) if is_progressive else _ALL_COEFFICIENTS
    for component in scan[1:-3:2]:
        if component in missing:
            missing[component] &= ~mask


def _target_of_region(
    target: tuple[int, int], region: Region, size: tuple[int, int], max_pixels: int
) -> tuple[int, int]:
    """Return to which size a JPEG may be reduced so that a region of it keeps the quality of a whole picture.

    It is smaller where the JPEG has more pixels than may be decoded.
    """
    divisor = next((one for one in (1, 2, 4) if size[0] * size[1] <= one * one * max_pixels), 8)
    enlarged = (side / min(region.width, region.height) for side in target)
    across, down = (
        max(1, min(math.ceil(wanted), whole // (2 * divisor))) for wanted, whole in zip(enlarged, size, strict=True)
    )
    return across, down


def _cropped(picture: Image.Image, box: Box, region: Region, scale: float) -> tuple[Image.Image, Box]:
    """Cut a region out of an upright picture.

    Args:
        picture: upright.
        box: the part of it that the photo fills.
        region: of the photo.
        scale: pixels of the file for one of the picture's.

    Returns:
        The whole pixels of the region, and the region's box in them.

    Raises:
        ImageError: it has too few pixels.
    """
    across, down = box[2] - box[0], box[3] - box[1]
    sides = tuple(round(scale * side) for side in (region.width * across, region.height * down))
    if min(sides) < MIN_REGION_SIDE:
        shown, least = f"{sides[0]} x {sides[1]}", f"{MIN_REGION_SIDE} x {MIN_REGION_SIDE}"
        raise ImageError(
            ImageReason.REGION, "has a region of {} pixels", shown, None, f"choose one of at least {least}"
        )
    left, top = box[0] + region.x * across, box[1] + region.y * down
    right, bottom = min(box[2], left + region.width * across), min(box[3], top + region.height * down)
    whole = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
    return picture.crop(whole), (left - whole[0], top - whole[1], right - whole[0], bottom - whole[1])


def _transparent_colour(picture: Image.Image) -> int | tuple[int, ...] | None:
    """Return the transparent colour of a PNG with 2, 4 or 16 bits per sample, scaled to 8 bits.

    Pillow scales the samples when it loads them, but not this colour. None: it needs no scaling, or there is none.
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
            return tuple(part >> 8 for part in key)  # Pillow drops the low bytes of the pixels
    return None


def _upright(picture: Image.Image, spare_right: float, spare_bottom: float) -> tuple[Image.Image, Box]:
    """Turn a picture upright by its EXIF orientation; also return its box without the spare parts of pixels.

    `ImageOps.exif_transpose` would also rewrite the other tags, and fails on invalid ones, which some cameras write.
    """
    if "exif" in picture.info:
        picture.info["exif"] = picture.info["exif"][:_EXIF_BYTES_READ]
    if _EXIF_AS_TEXT in picture.info:
        picture.info[_EXIF_AS_TEXT] = picture.info[_EXIF_AS_TEXT][: 2 * _EXIF_BYTES_READ]
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        turn = _TURNS.get(orientation)
    except Exception:
        turn = None  # the tags cannot be read
    if turn is None:
        return picture, (0, 0, picture.width - spare_right, picture.height - spare_bottom)
    picture = picture.transpose(turn)
    across, down = (spare_right, spare_bottom) if orientation < 5 else (spare_bottom, spare_right)
    left = across if orientation in (2, 3, 6, 7) else 0
    top = down if orientation in (3, 4, 7, 8) else 0
    return picture, (left, top, picture.width - across + left, picture.height - down + top)


def _to_rgb(picture: Image.Image, conversion: ToSrgb | None) -> Image.Image:
    rows = max(1, _BAND_PIXELS // picture.width)
    is_rgb = picture.mode == "RGB" and conversion is None and not _has_alpha(picture)
    if picture.height <= rows or is_rgb:
        return _band_to_rgb(picture, conversion)
    # A band fits into the processor's cache: it takes half the time, and no step needs memory for a whole picture.
    result = Image.new("RGB", picture.size, color=None)
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        result.paste(_band_to_rgb(band, conversion), (0, top))
    return result


def _band_to_rgb(picture: Image.Image, conversion: ToSrgb | None) -> Image.Image:
    if picture.mode.startswith("I"):
        # 16-bit grey: convert("RGB") would clip all values above 255 to white. Integers need 8 bytes a pixel less.
        values = np.clip(np.asarray(picture), 0, 65535)
        grey = (values // 257).astype(np.uint8)
        grey[values == picture.info.get("transparency", -1)] = _WHITE[0]
        return _colours_of(Image.fromarray(grey, mode="L"), conversion)
    if _has_alpha(picture):
        # convert("RGB") would make transparent parts black; product photos have a white ground.
        with_alpha = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        colours = with_alpha if conversion is None else _colours_of(with_alpha, conversion)
        ground = Image.new("RGB", picture.size, _WHITE)
        ground.paste(colours, mask=with_alpha)  # the same as alpha_composite, without another conversion
        return ground
    return _colours_of(picture, conversion)


def _colours_of(picture: Image.Image, conversion: ToSrgb | None) -> Image.Image:
    if conversion is not None:
        return conversion.apply(picture if picture.mode == conversion.mode else picture.convert(conversion.mode))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def fit_photo(
    picture: Image.Image, *, height: int, width: int, fit: Fit, box: Box | None = None
) -> npt.NDArray[np.uint8]:
    """Bring an RGB picture to the encoder's size.

    Args:
        picture: mode "RGB".
        height: of the result, in pixels.
        width: of the result, in pixels.
        fit: "pad" keeps the picture's proportions and fills with white, the ground of product photos. "trim" first
            removes margins of one colour (`captioner.trimming`) and fills with the remaining margin's colour. "squash"
            changes the proportions, as `ViTImageProcessor` does.
        box: the part of the picture that is used; its ends lie less than a pixel within the picture's. None: all.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    box = box or (0, 0, *picture.size)
    if fit == "squash":
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box), dtype=np.uint8)
    content = find_content(picture) if fit == "trim" else Content((0, 0, *picture.size), _WHITE)
    (left, top), (right, bottom) = map(max, box[:2], content.box[:2]), map(min, box[2:], content.box[2:])
    size = (right - left, bottom - top)
    scale = min(width / size[0], height / size[1])
    inner = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    if inner != size:
        picture = picture.resize(inner, Image.Resampling.BICUBIC, box=(left, top, right, bottom), reducing_gap=3.0)
    elif size != picture.size:
        picture = picture.crop((round(left), round(top), round(right), round(bottom)))
    # Row by row: numpy would fill pixel by pixel, which takes longer than reading a small JPEG.
    canvas = np.empty((height, width, 3), np.uint8)
    canvas.reshape(height, -1)[:] = np.tile(np.array(content.ground, np.uint8), width)
    above, beside = (height - inner[1]) // 2, (width - inner[0]) // 2
    canvas[above : above + inner[1], beside : beside + inner[0]] = np.asarray(picture, dtype=np.uint8)
    return canvas
