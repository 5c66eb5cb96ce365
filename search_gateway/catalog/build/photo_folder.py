# SPDX-License-Identifier: Apache-2.0
"""Which photos are in a folder. Looks at names, sizes and times only; opens no photo."""

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
    path: str  # relative to the photos folder
    reason: str  # a kind, and what is wrong with this photo after a colon

    @property
    def kind(self) -> str:
        """The reason without what is true of this photo only, to be counted."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class PhotoFile:
    """A file in the photos folder, as a look at the folder shows it."""

    file: Path
    path: str  # relative to the folder
    size_bytes: int
    mtime_ns: int


def look_for_photos(folder: Path) -> tuple[list[PhotoFile], list[UnreadablePhoto]]:
    """All photos in the folder and the folders in it, in order of their paths; hidden ones are not.

    Raises:
        CatalogError: a folder cannot be listed. (Its products would look deleted.)
    """

    def fail(error: OSError) -> None:
        raise CatalogError(f"the folder {error.filename} cannot be read: {error.strerror}")

    photos: list[PhotoFile] = []
    unreadable: list[UnreadablePhoto] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(place, name)
            # Hidden: what macOS puts beside photos on foreign disks ("._shirt.jpg") is no photo.
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
