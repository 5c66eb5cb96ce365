# SPDX-License-Identifier: Apache-2.0
"""Lists the photos in a folder, by their first bytes where the name does not tell; decodes none."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from captioner.image_formats import NUM_BYTES, format_of
from search_gateway.catalog.base import CatalogError

# Files with these names are taken for photos without a look. The build says what is wrong with those that are none.
PHOTO_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif", ".bmp", ".tif", ".tiff", ".heic", ".heif")
)

CANNOT_READ = "the file cannot be read"
TOO_LONG = "its path is too long for the system"
BAD_NAME = "the file name is not UTF-8"


class UnreadablePhoto(NamedTuple):
    """A photo that cannot be used, and why."""

    path: str  # relative to the photos folder
    reason: str  # a general reason; details of this photo follow a colon

    @property
    def kind(self) -> str:
        """The reason without the details of this photo, for counting."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class PhotoFile:
    """A file in the photos folder."""

    file: Path
    path: str  # relative to the folder
    size_bytes: int
    mtime_ns: int


class FolderContent(NamedTuple):
    """The files in a folder and its subfolders."""

    photos: list[PhotoFile]  # sorted by path
    unreadable: list[UnreadablePhoto]
    others: list[str]  # paths of files that are no pictures


def look_for_photos(folder: Path) -> FolderContent:
    """Return the files in a folder and its subfolders; skips hidden ones and those of a NAS (`@eaDir`).

    Raises:
        CatalogError: a folder cannot be listed; otherwise its products would seem deleted.
    """

    def fail(error: OSError) -> None:
        if error.errno == errno.ENAMETOOLONG:  # no product can come from there
            path = os.path.relpath(error.filename, folder)
            content.unreadable.append(UnreadablePhoto(os.fsencode(path).decode("utf-8", "replace"), TOO_LONG))
            return
        raise CatalogError(f"the folder {error.filename} cannot be read: {error.strerror}")

    content = FolderContent([], [], [])
    places = [os.fspath(folder)]
    while places:  # os.walk calls itself for each level, and fails at a thousand
        try:
            with os.scandir(places.pop()) as listed:
                entries = list(listed)
        except OSError as error:
            fail(error)
            continue
        for entry in entries:
            # Hidden: macOS stores "._shirt.jpg" beside photos on other file systems, which is not a photo.
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                _look_at(Path(entry.path), folder, content)
            elif not (entry.is_symlink() or entry.name.startswith("@eaDir")):
                places.append(entry.path)
    content.photos.sort(key=lambda photo: photo.path)
    return content


def _look_at(file: Path, folder: Path, content: FolderContent) -> None:
    path = file.relative_to(folder).as_posix()
    try:
        path.encode()
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return
        is_photo = file.suffix.lower() in PHOTO_SUFFIXES
        if not is_photo:
            with file.open("rb") as opened:
                is_photo = format_of(opened.read(NUM_BYTES)) is not None
    except UnicodeEncodeError:
        content.unreadable.append(UnreadablePhoto(os.fsencode(path).decode("utf-8", "replace"), BAD_NAME))
    except OSError as error:
        content.unreadable.append(UnreadablePhoto(path, f"{CANNOT_READ}: {error.strerror}"))
    else:
        if is_photo:
            content.photos.append(PhotoFile(file, path, status.st_size, status.st_mtime_ns))
        else:
            content.others.append(path)
