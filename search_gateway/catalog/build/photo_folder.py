# SPDX-License-Identifier: Apache-2.0
"""Lists the photos in a folder by names, sizes and times, without opening them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from search_gateway.catalog.store import CatalogError

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"})

CANNOT_READ = "the file cannot be read"
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


def look_for_photos(folder: Path) -> tuple[list[PhotoFile], list[UnreadablePhoto]]:
    """Return the photos and the unreadable files in a folder and its subfolders, sorted by path; skips hidden ones.

    Raises:
        CatalogError: a folder cannot be listed; otherwise its products would seem deleted.
    """

    def fail(error: OSError) -> None:
        raise CatalogError(f"the folder {error.filename} cannot be read: {error.strerror}")

    photos: list[PhotoFile] = []
    unreadable: list[UnreadablePhoto] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(place, name)
            # Hidden: macOS stores "._shirt.jpg" beside photos on other file systems, which is not a photo.
            if name.startswith(".") or file.suffix.lower() not in PHOTO_SUFFIXES:
                continue
            path = file.relative_to(folder).as_posix()
            try:
                path.encode()
                status = file.stat()
            except UnicodeEncodeError:
                shown = os.fsencode(path).decode("utf-8", "replace")
                unreadable.append(UnreadablePhoto(shown, BAD_NAME))
            except OSError as error:
                unreadable.append(UnreadablePhoto(path, f"{CANNOT_READ}: {error.strerror}"))
            else:
                if stat.S_ISREG(status.st_mode):
                    photos.append(PhotoFile(file, path, status.st_size, status.st_mtime_ns))
    return sorted(photos, key=lambda photo: photo.path), unreadable
