# SPDX-License-Identifier: Apache-2.0
"""Makes the small copy of a photo that a catalogue stores."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image

from captioner.preprocessing import FORMATS, ImageLimits, open_header, open_photo

THUMBNAIL_SIDE = 160  # pixels, at most


class SmallCopy(NamedTuple):
    """A photo's thumbnail, and the photo's own size."""

    width: int  # pixels of the photo, upright
    height: int
    thumbnail: bytes  # a JPEG file


def small_copy_of(data: bytes, *, limits: ImageLimits, formats: tuple[str, ...] = FORMATS) -> SmallCopy:
    """Make the small copy of an image file.

    Raises:
        ImageError: the file cannot be used, see `open_photo`.
    """
    small = open_photo(data, limits=limits, target=(THUMBNAIL_SIDE, THUMBNAIL_SIDE), formats=formats)
    width, height = _upright_size(data, small, formats)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    thumbnail = io.BytesIO()
    small.save(thumbnail, "JPEG", quality=85)
    return SmallCopy(width, height, thumbnail.getvalue())


def _upright_size(data: bytes, upright: Image.Image, formats: tuple[str, ...]) -> tuple[int, int]:
    """Return width and height of a photo, upright; reads only the file's head.

    `upright` may be a fraction of the size. It shows whether the photo was rotated, so Exif is not read again.
    """
    with open_header(data, formats) as picture:
        width, height = picture.size
    is_turned = (width - height) * (upright.width - upright.height) < 0
    return (height, width) if is_turned else (width, height)
