# SPDX-License-Identifier: Apache-2.0
"""A reproducible choice of photos from a folder."""

from __future__ import annotations

from pathlib import Path

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read_photos(folder: Path, count: int) -> list[bytes]:
    """Read image files, spread evenly over the sorted names of a folder; always the same ones.

    Args:
        folder: a folder of photos, or one with a folder `images` of photos.
        count: number of photos; all of them where there are fewer.

    Returns:
        The bytes of the files.

    Raises:
        FileNotFoundError: the folder has no photo.
    """
    pictures = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(path for path in pictures.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{pictures} has no file that ends in {', '.join(_SUFFIXES)}")
    count = min(count, len(files))
    return [files[place * len(files) // count].read_bytes() for place in range(count)]
