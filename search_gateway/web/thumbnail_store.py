# SPDX-License-Identifier: Apache-2.0
"""Keeps the thumbnails of answers for a few minutes, so that a page can show them without bytes in the JSON."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

LIFE_SECONDS = 300.0
MAX_BYTES = 64 * 2**20

_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"GIF8": "image/gif"}


@dataclass(frozen=True)
class StoredThumbnail:
    """A picture file and its media type."""

    data: bytes
    media_type: str


class ThumbnailStore:
    """Bounded memory for thumbnails; the oldest make room for new ones.

    Args:
        max_bytes: of all pictures.
        life_seconds: after which a picture is forgotten.
        clock: returns seconds and never goes back.
    """

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        life_seconds: float = LIFE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._max_bytes = max_bytes
        self._life_seconds = life_seconds
        self._clock = clock
        self._stored: dict[str, tuple[float, StoredThumbnail]] = {}  # the oldest first
        self._num_bytes = 0

    def add(self, data: bytes) -> str:
        """Keep a picture; returns its id, which nobody can guess, or "" if it is none that browsers show."""
        media_type = media_type_of(data)
        if not media_type or len(data) > self._max_bytes:
            return ""
        self._forget_old(len(data))
        picture_id = secrets.token_urlsafe(16)
        self._stored[picture_id] = (self._clock() + self._life_seconds, StoredThumbnail(data, media_type))
        self._num_bytes += len(data)
        return picture_id

    def get(self, picture_id: str) -> StoredThumbnail | None:
        """Return a picture; None if there is none, or it is forgotten."""
        self._forget_old(0)
        stored = self._stored.get(picture_id)
        return None if stored is None else stored[1]

    def _forget_old(self, wanted_bytes: int) -> None:
        """Forget what is too old, and as many others as the wanted bytes need."""
        now = self._clock()
        for picture_id, (end, picture) in list(self._stored.items()):
            if end > now and self._num_bytes + wanted_bytes <= self._max_bytes:
                break
            del self._stored[picture_id]
            self._num_bytes -= len(picture.data)


def media_type_of(data: bytes) -> str:
    """Return the media type of a picture file by its first bytes; "" if it is none of those that providers send."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for start, name in _TYPES.items() if data.startswith(start)), "")
