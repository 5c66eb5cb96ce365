# SPDX-License-Identifier: Apache-2.0
"""Tests of looking for photos; none has to be one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from search_gateway.catalog.base import CatalogError
from search_gateway.catalog.build.photo_folder import (
    BAD_NAME,
    CANNOT_READ,
    TOO_LONG,
    UnreadablePhoto,
    look_for_photos,
)


def test_photos_are_found_in_all_folders_in_order(tmp_path: Path) -> None:
    for path in ("b/2.JPG", "b/1.webp", "a.png", "c d/e/f.gif", "g.jpeg", "b/notes.txt", "jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"12345")
    photos, unreadable, others = look_for_photos(tmp_path)
    assert [photo.path for photo in photos] == ["a.png", "b/1.webp", "b/2.JPG", "c d/e/f.gif", "g.jpeg"]
    assert unreadable == []
    assert sorted(others) == ["b/notes.txt", "jpg"]
    assert photos[1].file == tmp_path / "b" / "1.webp"
    assert photos[1].size_bytes == 5
    assert photos[1].mtime_ns == (tmp_path / "b" / "1.webp").stat().st_mtime_ns


def test_content_tells_what_is_a_photo_where_the_name_does_not(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4), "navy")
    for name, file_format in (("shirt", "JPEG"), ("tie.img", "PNG"), ("cap.dat", "AVIF"), ("raw.psd1", "TIFF")):
        picture.save(tmp_path / name, file_format)
    for name in ("a.avif", "b.TIF", "c.tiff", "d.bmp", "e.heic", "f.jfif", "g.jpe"):
        (tmp_path / name).touch()
    (tmp_path / "drawing.psd").write_bytes(b"8BPS\0\1")
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2")
    (tmp_path / "list.csv").write_text("id,title\n")
    found = look_for_photos(tmp_path)
    assert {photo.path for photo in found.photos} == {
        "shirt", "tie.img", "cap.dat", "raw.psd1", "drawing.psd",
        "a.avif", "b.TIF", "c.tiff", "d.bmp", "e.heic", "f.jfif", "g.jpe",
    }  # fmt: skip
    assert sorted(found.others) == ["film.mp4", "list.csv"]


def test_hidden_files_folders_pipes_and_linked_folders_are_no_photos(tmp_path: Path) -> None:
    (tmp_path / "._shirt.jpg").touch()
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "old.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "@eaDir" / "shirt.jpg").mkdir(parents=True)  # a NAS's own thumbnails
    (tmp_path / "@eaDir" / "shirt.jpg" / "SYNOPHOTO_THUMB_M.jpg").touch()
    assert look_for_photos(tmp_path) == ([], [], [])


def test_linked_photo_counts_and_a_dangling_link_is_listed(tmp_path: Path) -> None:
    (tmp_path / "shirt.jpg").write_bytes(b"123")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "shirt.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    photos, unreadable, _ = look_for_photos(tmp_path)
    assert [(photo.path, photo.size_bytes) for photo in photos] == [("link.jpg", 3), ("shirt.jpg", 3)]
    assert unreadable == [UnreadablePhoto("gone.jpg", f"{CANNOT_READ}: No such file or directory")]
    assert unreadable[0].kind == CANNOT_READ


def test_name_that_is_not_utf8_is_listed_so_that_it_can_be_shown(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).touch()
    assert look_for_photos(tmp_path) == ([], [UnreadablePhoto("caf\ufffd.jpg", BAD_NAME)], [])


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="none cannot be read: No such file or directory"):
        look_for_photos(tmp_path / "none")


def test_folders_that_are_too_deep_cost_no_other_photo(tmp_path: Path) -> None:
    """Deeper than Python may call itself, and in the end with a path that is too long for the system."""
    (tmp_path / "shirt.jpg").touch()
    at = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1200):
            os.mkdir("abc", dir_fd=at)
            inner = os.open("abc", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = inner
        os.close(os.open("tie.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        photos, [unreadable], _ = look_for_photos(tmp_path)
    finally:
        os.close(at)
        # pytest would remove it by a function that calls itself for each folder, and fail at a later run.
        subprocess.run(["rm", "-rf", str(tmp_path / "abc")], check=True)
    assert [photo.path for photo in photos] == ["shirt.jpg"]
    assert unreadable.path.startswith("abc/abc/")
    assert unreadable.reason == TOO_LONG
