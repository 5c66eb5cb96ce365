# SPDX-License-Identifier: Apache-2.0
"""One photo of a catalogue: read, compared with what the catalogue knows of it, decoded, made small.

All of it may run in several threads at once.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from captioner.image_error import ImageError
from captioner.preprocessing import FORMATS, ImageLimits, open_photo
from search_gateway.catalog.build.photo_folder import CANNOT_READ, PhotoFile, UnreadablePhoto
from search_gateway.catalog.store import CatalogEntry, PhotoStamp

THUMBNAIL_SIDE = 160  # pixels, at most

# The user's own photos come from cameras, not from strangers: more is allowed than in a request.
# Pillow itself warns from 89 million pixels on.
PHOTO_LIMITS = ImageLimits(max_bytes=64 * 2**20, max_pixels=80_000_000, max_side=30_000)

# Kinds of unreadable photos, beside those of `photo_folder`.
TOO_LARGE = "too large"
NOT_A_PHOTO = "not a readable photo"

# An image file -> pixels [H, W, 3]; raises ImageError for what is none
Decode = Callable[[bytes], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class PhotoJob:
    """A photo that must be read."""

    photo: PhotoFile
    title: str
    url: str
    old: CatalogEntry | None  # what the catalogue knows of a photo of this path


@dataclass(frozen=True, eq=False)
class DecodedPhoto:
    """A photo to be embedded."""

    job: PhotoJob
    entry: CatalogEntry
    pixels: npt.NDArray[np.uint8]  # [H, W, 3]
    width: int
    height: int
    thumbnail: bytes


@dataclass(frozen=True)
class KnownPhoto:
    """A photo that has only another time, or another path."""

    job: PhotoJob
    entry: CatalogEntry
    old: CatalogEntry


@dataclass(frozen=True)
class LeftOutPhoto:
    job: PhotoJob
    unreadable: UnreadablePhoto


PreparedPhoto = DecodedPhoto | KnownPhoto | LeftOutPhoto


def prepare_photo(job: PhotoJob, decode: Decode, renamed_from: Callable[[str], CatalogEntry | None]) -> PreparedPhoto:
    """Everything of a photo but its embedding; what is wrong with it is in the answer.

    Args:
        renamed_from: by a file's SHA-256, a product whose photo is no longer where it was; no product twice.
    """
    if job.photo.size_bytes > PHOTO_LIMITS.max_bytes:
        limit = f"the limit is {PHOTO_LIMITS.max_bytes:,}"
        return left_out(job, f"{TOO_LARGE}: {job.photo.size_bytes:,} bytes; {limit}")
    try:
        # Not as the look at the folder saw it: the file may have changed since.
        with job.photo.file.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except OSError as error:
        return left_out(job, f"{CANNOT_READ}: {error.strerror}")
    stamp = PhotoStamp(len(data), status.st_mtime_ns, hashlib.sha256(data).hexdigest())
    entry = entry_of(job, stamp)
    old = renamed_from(stamp.sha256) if job.old is None else job.old
    if old is not None and old.stamp.sha256 == stamp.sha256:
        return KnownPhoto(job, entry, old)
    try:
        small = open_photo(data, limits=PHOTO_LIMITS, target=(THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        pixels = decode(data)
    except ImageError as error:
        return left_out(job, f"{TOO_LARGE if error.reason.is_size else NOT_A_PHOTO}: {error}")
    width, height = _upright_size(data, small)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    thumbnail = io.BytesIO()
    small.save(thumbnail, "JPEG", quality=85)
    return DecodedPhoto(job, entry, pixels, width, height, thumbnail.getvalue())


def entry_of(job: PhotoJob, stamp: PhotoStamp) -> CatalogEntry:
    return CatalogEntry(path=job.photo.path, title=job.title, url=job.url, stamp=stamp)


def left_out(job: PhotoJob, reason: str) -> LeftOutPhoto:
    return LeftOutPhoto(job, UnreadablePhoto(job.photo.path, reason))


def _upright_size(data: bytes, upright: Image.Image) -> tuple[int, int]:
    """Width and height of a photo, of which the upright picture may be a fraction; reads its head only.

    What the picture looks like tells whether it was turned: Exif that strangers wrote is not read a second time.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        width, height = picture.size
    is_turned = (width - height) * (upright.width - upright.height) < 0
    return (height, width) if is_turned else (width, height)
