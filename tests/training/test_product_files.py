# SPDX-License-Identifier: Apache-2.0
"""A folder and a ZIP file of the same layout are read alike, within limits."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from training.product_files import MAX_PHOTO_BYTES, DataError, UnreadableFileError, open_files, read_photo

FILES = {"styles.csv": b"id\n", "images/1.jpg": b"one", "images/2.png": b"two", "images/deeper/3.jpg": b"three"}


@pytest.fixture(params=["folder", "zip"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "zip":
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in FILES.items():
                archive.writestr(name, data)
        return path
    for name, data in FILES.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    return tmp_path / "set"


def test_files_are_read_by_name(place: Path) -> None:
    with open_files(place) as files:
        assert {name: files.read(name, 100) for name in FILES} == FILES


def test_names_are_those_directly_in_a_folder(place: Path) -> None:
    with open_files(place) as files:
        names = files.names("images")
        assert names is not None
        assert set(names) - {"deeper"} == {"1.jpg", "2.png"}
        assert files.names("styles") is None


def test_no_more_is_read_than_shows_that_a_file_is_too_large(place: Path) -> None:
    with open_files(place) as files:
        assert files.read("images/deeper/3.jpg", 3) == b"thre"


@pytest.mark.parametrize("name", ["images/9.jpg", "styles", "no/such/file"])
def test_missing_files_are_not_found(place: Path, name: str) -> None:
    with open_files(place) as files, pytest.raises(FileNotFoundError):
        files.read(name, 100)


def test_photos_have_one_of_three_suffixes(place: Path) -> None:
    with open_files(place) as files:
        assert read_photo(files, "1") == ("images/1.jpg", b"one")
        assert read_photo(files, "2") == ("images/2.png", b"two")
        with pytest.raises(FileNotFoundError):
            read_photo(files, "3")


def test_folder_where_a_file_should_be_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "images" / "1.jpg").mkdir(parents=True)
    with open_files(tmp_path) as files, pytest.raises(UnreadableFileError, match=r"images/1\.jpg"):
        files.read("images/1.jpg", 100)


def test_nothing_at_the_path_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.zip is neither a folder nor a file: give --data"):
        open_files(tmp_path / "gone.zip")


@pytest.mark.parametrize("data", [b"", b"no zip at all", b"PK\x05\x06" + b"\xff" * 18])
def test_file_that_is_no_zip_is_an_error_with_a_remedy(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"set\.zip is not a complete ZIP file .*: copy it again"):
        open_files(tmp_path / "set.zip")


def test_member_with_a_wrong_checksum_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/1.jpg", b"right bytes")
    path.write_bytes(path.read_bytes().replace(b"right", b"wrong"))
    with open_files(path) as files, pytest.raises(UnreadableFileError, match=r"images/1\.jpg: Bad CRC-32"):
        files.read("images/1.jpg", 100)


def test_encrypted_member_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/1.jpg", b"secret")
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the member's own header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    path.write_bytes(data)
    with open_files(path) as files, pytest.raises(UnreadableFileError, match="encrypted"):
        files.read("images/1.jpg", 100)


def test_member_that_unpacks_to_more_than_allowed_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/1.jpg", bytes(4 * MAX_PHOTO_BYTES))
    assert path.stat().st_size < 100_000
    with open_files(path) as files:
        assert len(read_photo(files, "1")[1]) == MAX_PHOTO_BYTES + 1
