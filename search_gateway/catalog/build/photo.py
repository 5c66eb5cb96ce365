# SPDX-License-Identifier: Apache-2.0
"""Reads one photo of a catalogue, compares it with its stored entry, decodes it, and makes its thumbnail.

All functions are thread-safe.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captioner.image_error import ImageError, ImageReason
from captioner.preprocessing import FORMATS, ImageLimits
from captioner.small_copy import small_copy_of
from search_gateway.catalog.base import CatalogEntry, PhotoStamp
from search_gateway.catalog.build.photo_folder import CANNOT_READ, PhotoFile, UnreadablePhoto
from search_gateway.catalog.build.titles import TitleLine, attributes_of, title_and_url

# Higher limits than for requests, since the user's own photos are trusted and come from cameras.
# Pillow itself warns above 89 million pixels.
PHOTO_LIMITS = ImageLimits(max_bytes=64 * 2**20, max_pixels=80_000_000, max_side=30_000)

# Reasons for unreadable photos, in addition to those of `photo_folder`.
TOO_LARGE = "too large"
NOT_A_PHOTO = "not a readable photo"
OTHER_FORMAT = "in a format that is not read"

# Decodes an image file to pixels, uint8 [H, W, 3]; raises ImageError.
Decode = Callable[[bytes], npt.NDArray[np.uint8]]


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that a catalogue reads, which are more than callers may send."""
    try:
        import pillow_heif
    except ImportError:
        return (*FORMATS, "AVIF", "BMP", "TIFF")
    pillow_heif.register_heif_opener(thumbnails=False)
    return (*FORMATS, "AVIF", "BMP", "TIFF", "HEIF")


@dataclass(frozen=True)
class PhotoJob:
    """A photo that must be read."""

    photo: PhotoFile
    line: TitleLine | None  # of the titles list
    old: CatalogEntry | None  # the stored entry of this path
    before: CatalogEntry | None = None  # that of an outdated catalogue


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
    """An unchanged photo with another time or another path."""

    job: PhotoJob
    entry: CatalogEntry
    old: CatalogEntry


@dataclass(frozen=True)
class LeftOutPhoto:
    """A photo that cannot be used."""

    job: PhotoJob
    unreadable: UnreadablePhoto


PreparedPhoto = DecodedPhoto | KnownPhoto | LeftOutPhoto


def prepare_photo(
    job: PhotoJob,
    decode: Decode,
    renamed_from: Callable[[str], CatalogEntry | None],
    refusal: Callable[[CatalogEntry], str] = lambda entry: "",
) -> PreparedPhoto:
    """Do everything for a photo except its embedding. Does not raise for a bad photo.

    Args:
        job: the photo.
        decode: decodes it for the model.
        renamed_from: given a file's SHA-256, returns a product whose photo has disappeared; each product once.
        refusal: says why the store cannot hold a product, see `CatalogWriter`.
    """
    if job.photo.size_bytes > PHOTO_LIMITS.max_bytes:
        limit = f"the limit is {PHOTO_LIMITS.max_bytes:,}"
        return left_out(job, f"{TOO_LARGE}: {job.photo.size_bytes:,} bytes; {limit}")
    try:
        # Size and time are read again, since the file may have changed.
        with job.photo.file.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except OSError as error:
        return left_out(job, f"{CANNOT_READ}: {error.strerror}")
    stamp = PhotoStamp(len(data), status.st_mtime_ns, hashlib.sha256(data).hexdigest())
    if reason := refusal(entry_of(job, stamp, job.old)):
        return left_out(job, reason)
    old = renamed_from(stamp.sha256) if job.old is None else job.old
    entry = entry_of(job, stamp, old)
    if old is not None and old.stamp.sha256 == stamp.sha256:
        return KnownPhoto(job, entry, old)
    try:
        small = small_copy_of(data, limits=PHOTO_LIMITS, formats=readable_formats())
        pixels = decode(data)
    except ImageError as error:
        if error.reason is ImageReason.OTHER_FORMAT:
            remedy = "install captrieve[heic], or convert it" if error.value == "HEIC" else "convert it"
            return left_out(job, f"{OTHER_FORMAT}, {error.value}: {remedy} to JPEG")
        return left_out(job, f"{TOO_LARGE if error.reason.is_size else NOT_A_PHOTO}: {error}")
    return DecodedPhoto(job, entry, pixels, *small)


def entry_of(job: PhotoJob, stamp: PhotoStamp, old: CatalogEntry | None) -> CatalogEntry:
    """Return the entry of a photo, which keeps what its old entry has and the list has not."""
    before = old or job.before
    title, url = title_and_url(job.photo.path, job.line, before)
    attributes = attributes_of(job.line, before)
    return CatalogEntry(path=job.photo.path, title=title, url=url, stamp=stamp, attributes=attributes)


def left_out(job: PhotoJob, reason: str) -> LeftOutPhoto:
    """Return the result for a photo that cannot be used."""
    return LeftOutPhoto(job, UnreadablePhoto(job.photo.path, reason))
