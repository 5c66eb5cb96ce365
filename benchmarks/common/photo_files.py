# SPDX-License-Identifier: Apache-2.0
"""Photos of a folder, chosen the same way every time."""

from __future__ import annotations

from pathlib import Path

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read_photos(folder: Path, count: int) -> list[bytes]:
    """`count` image files, spread evenly over the folder's names, always the same ones.

    Raises:
        FileNotFoundError: there are none.
    """
    pictures = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(path for path in pictures.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{pictures} holds no {', '.join(_SUFFIXES)}")
    count = min(count, len(files))
    return [files[place * len(files) // count].read_bytes() for place in range(count)]
