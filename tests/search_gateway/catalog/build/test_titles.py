# SPDX-License-Identifier: Apache-2.0
"""Tests of the titles file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from search_gateway.catalog.base import Attributes, CatalogError
from search_gateway.catalog.build.title_file import read_titles
from search_gateway.catalog.build.titles import TitleList, title_from_name

FOLDER = Path("/photos")


def titles(tmp_path: Path, text: str, encoding: str = "utf-8") -> TitleList:
    path = tmp_path / "titles.csv"
    path.write_text(text, encoding=encoding)
    return read_titles(path, FOLDER)


def title(known: TitleList, photo: str) -> str | None:
    line = known.match([photo]).get(photo)
    return line.title if line else None


def titles_of(tmp_path: Path, text: str, *photos: str) -> list[str | None]:
    matched = titles(tmp_path, text).match(photos)
    return [matched[photo].title if photo in matched else None for photo in photos]


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
    assert len(known.lines) == 3
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
    matched = known.match(["a.jpg", "b.jpg"])
    assert (matched["a.jpg"].title, matched["a.jpg"].url) == ("Red Dress", "https://shop.example/a")
    assert matched["b.jpg"].url == ""
    assert titles(tmp_path, "file,title\na.jpg,Red\n").lines[0].url is None


def test_controls_do_not_stop_it(tmp_path: Path) -> None:
    known = titles(tmp_path, "file,title\na.jpg,Café Dress\0\nb.jpg,Red\u2028Tie\n")
    assert title(known, "a.jpg") == "Café Dress"
    assert title(known, "b.jpg") == "Red Tie"


FOREIGN_TITLES = (
    "Café Dress", "CAFÉ DRESS", "Crème brûlée blouse", "Größe 40", "Straßenschuh", "Señorita skirt", "Jalapeño tee",
    "Men’s shirt", "Levi’s “Vintage” jeans", "Cotton – linen", "Jack & Jones® shirt", "Gore-Tex™ shoe", "Robe d’été",
    "À la mode", "Überzieher", "Ça va bag", "Smørrebrød apron", "Ångström cap", "Calças de praia", "Camisa São Paulo",
    "Hermès", "50 °C wash", "Shirt €20", "Niño", "Façade", "naïve tee", "Zoë top", "Ärmel", "ÄRMEL", "Hüfthose",
)  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", FOREIGN_TITLES)
def test_encodings_of_spreadsheets_are_recognised_by_one_word(tmp_path: Path, name: str, encoding: str) -> None:
    assert title(titles(tmp_path, f"file,title\na.jpg,{name}\n", encoding), "a.jpg") == name


@pytest.mark.parametrize("name", FOREIGN_TITLES)
def test_mac_roman_is_recognised_by_one_word(tmp_path: Path, name: str) -> None:
    assert title(titles(tmp_path, f"file,title\ra.jpg,{name}\r", "mac_roman"), "a.jpg") == name


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("赤いドレス、綿", "shift-jis"),
        ("Красное платье", "cp1251"),
        ("红色连衣裙", "gb18030"),
        ("Κόκκινο φόρεμα", "cp1253"),
    ],
)
def test_other_encodings_are_refused_with_the_line(tmp_path: Path, text: str, encoding: str) -> None:
    with pytest.raises(CatalogError, match=r"titles.csv are in no encoding we know \(line 3: .*save them as CSV UTF-8"):
        titles(tmp_path, f"file,title\na.jpg,Red\nb.jpg,{text}\n", encoding)


def test_damaged_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    data = "file,title\na.jpg,Café Größe Señorita\n".encode() + b"b.jpg,Caf\xe9\n"
    (tmp_path / "titles.csv").write_bytes(data)
    with pytest.raises(CatalogError, match=r"line 3: .*xe9"):
        read_titles(tmp_path / "titles.csv", FOLDER)


def test_spreadsheet_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "titles.csv").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CatalogError, match="are a spreadsheet, not a CSV file"):
        read_titles(tmp_path / "titles.csv", FOLDER)


@pytest.mark.parametrize("head", ["sep=;\n", '"sep=;"\r\n', "\n\n", "  \n;;\n", "SEP=;\n\n"])
def test_lines_before_the_header_are_skipped(tmp_path: Path, head: str) -> None:
    known = titles(tmp_path, f"{head}file;title\na.jpg;Red, Blue, Green and White\n")
    assert title(known, "a.jpg") == "Red, Blue, Green and White"
    assert known.lines[0].number == head.count("\n") + 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('id,title\n1,Red\n2,"Blue\n3,Green\n', 3),  # to the end of the file
        ('id,title\n1,"Red 5\n2,Blue\n3,"Green"\n', 2),  # to the next quote
        ('id,title\n1,"Red\n2,Blue\n3,Heel 5"\n4,Green\n', 2),  # closed as it should be, but by another product
        ('file,title\na.jpg,"Red\nb.jpg,Blue 5"\n', 2),
    ],
)
def test_quote_that_swallows_products_is_refused(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(CatalogError, match=f"in line {line} that is not closed there"):
        titles(tmp_path, text)


def test_quoted_lines_and_quotes_inside_fields_are_read(tmp_path: Path) -> None:
    known = titles(tmp_path, 'id,title\n1,"Red dress,\nwith lining, soft"\n2,5" heel\n3,"Comfy" shirt\n4,"a ""b"" c"\n')
    assert [line.title for line in known.lines] == ["Red dress, with lining, soft", '5" heel', "Comfy shirt", 'a "b" c']
    assert [line.number for line in known.lines] == [2, 4, 5, 6]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,title,url\na.jpg,Dress, red,https://shop.example/a\n", ("Dress, red", "https://shop.example/a")),
        ("file,title,url\na.jpg,Dress,/p/a,\n", ("Dress", "/p/a")),  # a separator at the end of the line
        ("title,file\nDress, red,a.jpg\n", ("Dress, red", None)),
        ("file,title,url\na.jpg,Dress,shop.example/a\n", ("Dress", "shop.example/a")),
    ],
)
def test_comma_in_a_title_is_repaired_where_it_can_only_be_there(
    tmp_path: Path, text: str, expected: tuple[str, str | None]
) -> None:
    line = titles(tmp_path, text).match(["a.jpg"])["a.jpg"]
    assert (line.title, line.url) == expected


@pytest.mark.parametrize(
    "text",
    [
        "file,title,url\nb.jpg,Tie,\na.jpg,Dress, red\n",
        "file,title,url,colour\nb.jpg,Tie,,\na.jpg,Dress, red,https://shop.example/a,red\n",
        "file,colour,title,url\nb.jpg,,Tie,\na.jpg,red, white,Dress,https://shop.example/a\n",
    ],
)
def test_shifted_fields_are_refused_with_the_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(CatalogError, match="in line 3"):
        titles(tmp_path, text)


@pytest.mark.parametrize("file_column", ["filename", "image", "Image_Path", "image path", "article_id", "SKU", "Photo"])
@pytest.mark.parametrize("title_column", ["prod_name", "Product Name", "product-title", "TITLE"])
def test_names_of_columns_are_those_of_shops(tmp_path: Path, file_column: str, title_column: str) -> None:
    assert title(titles(tmp_path, f"{title_column},x,{file_column}\nRed,1,a\n"), "a.jpg") == "Red"


def test_columns_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,title,Bild,Bezeichnung\n1,no,a.jpg,Red\n")
    known = read_titles(tmp_path / "t.csv", FOLDER, file_column="bild", title_column="Bezeichnung")
    assert title(known, "a.jpg") == "Red"
    with pytest.raises(CatalogError, match="need a column Foto; there are: id, title, Bild, Bezeichnung"):
        read_titles(tmp_path / "t.csv", FOLDER, file_column="Foto")


@pytest.mark.parametrize(
    ("key", "photo"),
    [
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("71", "00071.jpg"),
        ("00071", "71.jpg"),
        ("71.0", "0071.jpg"),
        ("1.23E+02", "123.jpg"),
        ("1.23E+02", "000123_2.jpg"),
        ("Red.JPG", "red.jpg"),
        ("RED", "summer/red.Jpg"),
        ("images/red.jpg", "red.jpg"),
        ("/Users/me/shop/images/red.jpg", "red.jpg"),
        ("C:\\Shop\\Images\\Summer\\red.jpg", "summer/red.jpg"),
        ("https://cdn.example/shop/red%20dress.jpg?v=2", "red dress.jpg"),
        ("file:///home/me/red.jpg", "red.jpg"),
        ("71", "71_1.jpg"),
        ("71", "0071-2.jpg"),
        ("71", "a/71 (3).jpg"),
        ("71", "71-front-2.jpg"),
        ("71", "71_b.png"),
        ("71", "71/1.jpg"),
        ("71.jpg", "71_2.jpg"),
        ("images/0071.jpg", "71_2.jpg"),
        ("red.jpg", "red.webp"),
    ],
)
def test_names_that_spreadsheets_and_other_machines_change_are_recognised(tmp_path: Path, key: str, photo: str) -> None:
    assert titles_of(tmp_path, f"file,title\nother,Other\n{key},Red\n", photo) == ["Red"]


@pytest.mark.parametrize(
    ("keys", "photo"),
    [
        (("71", "0071"), "071.jpg"),  # which of the two?
        (("x/a/1.jpg", "x/b/1.jpg"), "1.jpg"),
        (("1.23457E+11",), "123457000000.jpg"),  # digits are lost
        (("blue",), "blue_shirt.jpg"),
        (("10",), "010/0108775015.jpg"),  # a folder of many products
        (("a/1.jpg",), "b/1.jpg"),
        (("71",), "71_2024.jpg"),
    ],
)
def test_what_may_be_another_product_is_not_taken(tmp_path: Path, keys: tuple[str, ...], photo: str) -> None:
    text = "".join(f"{key},Title {number}\n" for number, key in enumerate(keys))
    assert titles_of(tmp_path, f"file,title\n{text}", photo) == [None]


def test_exact_names_come_first(tmp_path: Path) -> None:
    text = "file,title\n71,A\n71_1,B\n0071,C\nimages/a/1.jpg,D\nimages/1.jpg,E\n"
    photos = ("71.jpg", "71_1.jpg", "71_2.jpg", "0071.jpg", "a/1.jpg", "1.jpg")
    assert titles_of(tmp_path, text, *photos) == ["A", "B", None, "C", "D", "E"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there are: none"),
        ("dress,title\n1,Red\n", "need a column file, image or id .* there are: dress, title"),
        ("file,colour\n1,Red\n", "need a column title, name or productDisplayName .*; there are: file, colour"),
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


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("15", 15.0), ("0.5", 0.5), ("$15", 15.0), ("15.00 USD", 15.0), ("1,299.00", 1299.0), ("1.299,90 EUR", 1299.9),
        ("1 299,9 \N{EURO SIGN}", 1299.9), ("1,299", 1299.0), ("", None), ("on request", None),
    ],
)  # fmt: skip
def test_prices_are_read_as_shops_write_them(tmp_path: Path, text: str, price: float | None) -> None:
    [line] = titles(tmp_path, f'file;title;Price\n1.jpg;Shirt;"{text}"\n').lines
    assert line.attributes == Attributes(price)


@pytest.mark.parametrize("text", ["-5", "1.2.3", "5-10", "0.125", "9" * 400])
def test_a_doubtful_price_is_an_error_that_names_the_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(CatalogError, match="as price in line 3"):
        titles(tmp_path, f"file,title,price\n1.jpg,Shirt,5\n2.jpg,Shirt,{text}\n")


@pytest.mark.parametrize(
    ("text", "is_available"),
    [("in stock", True), ("TRUE", True), ("12", True), ("out_of_stock", False), ("no", False), ("0", False),
     ("perhaps", None), ("", None)],
)  # fmt: skip
def test_availability_and_category_are_read(tmp_path: Path, text: str, is_available: bool | None) -> None:
    [line] = titles(tmp_path, f"file,title,Availability,Product Type\n1.jpg,Shirt,{text}, T-Shirts \n").lines
    assert line.attributes == Attributes(None, is_available, "T-Shirts")


def test_a_list_without_such_columns_has_no_attributes(tmp_path: Path) -> None:
    assert titles(tmp_path, "file,title\n1.jpg,Shirt\n").lines[0].attributes is None
