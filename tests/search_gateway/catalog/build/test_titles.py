# SPDX-License-Identifier: Apache-2.0
"""Tests of the titles file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from search_gateway.catalog.build.titles import TitleList, read_titles, title_from_name
from search_gateway.catalog.store import CatalogError

FOLDER = Path("/photos")


def titles(tmp_path: Path, text: str, encoding: str = "utf-8") -> TitleList:
    path = tmp_path / "titles.csv"
    path.write_text(text, encoding=encoding)
    return read_titles(path, FOLDER)


def title(known: TitleList, photo: str) -> str | None:
    line = known.line_of(PurePosixPath(photo))
    return line.title if line else None


def test_kaggle_layout_is_known_by_id_and_keeps_unquoted_commas(tmp_path: Path) -> None:
    known = titles(
        tmp_path,
        "id,gender,articleType,productDisplayName\n"
        "15970,Men,Shirts,Turtle Check Men Navy Blue Shirt\n"
        "7,Men,Shirts,Black, White  and Red Shirt\n"
        '8,Men,Shirts,"Quoted, Shirt"\n'
        "9,Men,Shirts,\n"
        "10,Men\n",
    )
    assert title(known, "images/15970.jpg") == "Turtle Check Men Navy Blue Shirt"
    assert title(known, "7.png") == "Black, White and Red Shirt"
    assert title(known, "8.jpg") == "Quoted, Shirt"
    assert len(known) == 3
    assert title(known, "9.jpg") is title(known, "10.jpg") is None


@pytest.mark.parametrize("photo", ["a/red.jpg", "./a/red.jpg", "a\\red.jpg", "/photos/a/red.jpg", "red.jpg", "red"])
@pytest.mark.parametrize("header", ["File;Title", "PATH;name", " id ;NAME"])
def test_photo_is_known_by_path_name_or_stem(tmp_path: Path, header: str, photo: str) -> None:
    known = titles(tmp_path, f"{header}\n{photo};Red Dress\n")
    assert title(known, "a/red.jpg") == "Red Dress"
    assert title(known, "b/blue.jpg") is None


def test_path_is_preferred_to_name_and_stem(tmp_path: Path) -> None:
    known = titles(tmp_path, "file,title\n1,stem\n1.jpg,name\na/1.jpg,path\n")
    photos = ("a/1.jpg", "b/1.jpg", "b/1.png")
    assert [title(known, photo) for photo in photos] == ["path", "name", "stem"]


def test_url_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    known = titles(
        tmp_path,
        "file\ttitle\tURL\r\na.jpg\tRed Dress\thttps://shop.example/a\r\nb.jpg\tTie\r\n",
        "utf-8-sig",
    )
    line = known.line_of(PurePosixPath("a.jpg"))
    assert line is not None
    assert (line.title, line.url) == ("Red Dress", "https://shop.example/a")
    other = known.line_of(PurePosixPath("b.jpg"))
    assert other is not None
    assert other.url == ""


def test_other_encodings_and_controls_do_not_stop_it(tmp_path: Path) -> None:
    known = titles(tmp_path, "file,title\na.jpg,Café Dress\0\nb.jpg,Red\u2028Tie\n")
    assert title(known, "a.jpg") == "Café Dress"
    assert title(known, "b.jpg") == "Red Tie"
    (tmp_path / "latin.csv").write_bytes(b"file,title\na.jpg,Caf\xe9 Dress\n")
    assert title(read_titles(tmp_path / "latin.csv", FOLDER), "a.jpg") == "Caf\ufffd Dress"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there are: none"),
        ("sku,title\n1,Red\n", "need a column file, path or id .* there are: sku, title"),
        ("file,colour\n1,Red\n", "productDisplayName, title or name; there are: file, colour"),
    ],
)
def test_missing_column_is_told_with_those_there_are(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        titles(tmp_path, text)


def test_missing_or_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"none.csv cannot be read: No such file"):
        read_titles(tmp_path / "none.csv", FOLDER)
    with pytest.raises(CatalogError, match="not a CSV file: field larger"):
        titles(tmp_path, f"file,title\n{'x' * 200_000},y\n")


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ("blue_shirt-01.jpg", "blue shirt 01"),
        ("a/b/Red  Dress.final.PNG", "Red Dress final"),
        ("t-shirt.jpg", "t shirt"),
        ("---.jpg", "---"),
    ],
)
def test_file_name_becomes_readable(photo: str, expected: str) -> None:
    assert title_from_name(PurePosixPath(photo)) == expected
