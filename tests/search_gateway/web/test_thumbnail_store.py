# SPDX-License-Identifier: Apache-2.0
"""Thumbnails live for a few minutes in bounded memory, under names that nobody can guess."""

from __future__ import annotations

import pytest

from search_gateway.web.thumbnail_store import StoredThumbnail, ThumbnailStore

JPEG = b"\xff\xd8\xff\xe0 a picture"


def test_picture_is_found_until_its_life_ends() -> None:
    now = 100.0
    store = ThumbnailStore(life_seconds=300, clock=lambda: now)
    picture_id = store.add(JPEG)
    now = 399.0
    assert store.get(picture_id) == StoredThumbnail(JPEG, "image/jpeg")
    now = 400.0
    assert store.get(picture_id) is None


def test_ids_cannot_be_guessed_and_differ() -> None:
    store = ThumbnailStore()
    ids = {store.add(JPEG) for _ in range(50)}
    assert len(ids) == 50
    assert min(map(len, ids)) >= 22, "128 bits in base64"
    assert store.get("x") is None


def test_oldest_pictures_make_room() -> None:
    store = ThumbnailStore(max_bytes=3 * len(JPEG))
    ids = [store.add(JPEG) for _ in range(5)]
    assert [store.get(one) is not None for one in ids] == [False, False, True, True, True]
    assert store.add(JPEG * 4) == ""
    assert store.get(ids[-1]) is not None, "one that is too large drops no others"


def test_memory_of_old_pictures_is_free() -> None:
    now = 0.0
    store = ThumbnailStore(max_bytes=100 * len(JPEG), life_seconds=10, clock=lambda: now)
    for _ in range(60):
        store.add(JPEG)
    now = 11.0
    store.get("")
    assert store._num_bytes == 0
    assert not store._stored


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (JPEG, "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n...", "image/png"),
        (b"GIF89a...", "image/gif"),
        (b"RIFF1234WEBPVP8 ", "image/webp"),
        (b"<html><script>alert(1)</script>", ""),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", ""),
        (b"", ""),
    ],
)
def test_only_pictures_are_kept_under_their_own_type(data: bytes, media_type: str) -> None:
    store = ThumbnailStore()
    picture_id = store.add(data)
    assert bool(picture_id) == bool(media_type)
    if media_type:
        assert store.get(picture_id) == StoredThumbnail(data, media_type)
