# SPDX-License-Identifier: Apache-2.0
"""Tests of sources: which photos they have, and which blocks keep their ids."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import fs, parquet

from indexing import sources
from indexing.sources import Block, PhotoReadError, SourcePhoto, open_source, read_photo
from search_gateway.catalog.base import NO_ATTRIBUTES, Attributes, CatalogError
from search_gateway.catalog.build.titles import TitleLine, TitleList


def folder_of(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "photos"
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return folder


def photos(blocks: list[Block]) -> list[SourcePhoto]:
    return [photo for block in blocks for photo in block.photos()]


def table(file: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), file, row_group_size=5)
    return file


def test_folder_has_its_photos_with_titles(tmp_path: Path) -> None:
    odd = "a b/50% off?#1 ü.JPG"
    folder = folder_of(tmp_path, odd, "z.png", ".hidden.jpg", ".trash/x.jpg", "@eaDir/x.jpg", "list.csv")
    titles = TitleList([TitleLine("z.png", "Red Shirt", "https://shop/z", 2, Attributes(5.0))])
    [block] = open_source(str(folder), titles).blocks
    first, second = block.photos()
    assert (first.key, first.title, first.size_bytes) == (odd, "50% off?#1 ü", len(odd.encode()))
    assert (second.key, second.title, second.url) == ("z.png", "Red Shirt", "https://shop/z")
    assert second.attributes == Attributes(5.0)
    assert first.mtime_ns == (folder / odd).stat().st_mtime_ns
    assert read_photo(block.system, first.location, 1000) == odd.encode()
    assert photos(open_source(folder.as_uri(), titles).blocks) == [first, second]
    assert photos(pickle.loads(pickle.dumps([block]))) == [first, second]


def test_files_with_odd_names_are_left_out_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "1.jpg")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).write_bytes(b"a")
    source = open_source(str(folder))
    assert [photo.key for photo in photos(source.blocks)] == ["1.jpg"]
    assert [bad.reason for bad in source.unreadable] == ["the file name is not UTF-8"]


def test_an_object_store_is_listed_by_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file system of Arrow than the local one."""
    folder_of(tmp_path, "b/2.PNG", "a.jpg", ".hidden.jpg", "b/@eaDir/x.jpg", "notes.txt")
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(sources, "_opened", lambda source: (store, "photos"))
    [block] = open_source("s3://bucket/photos").blocks
    assert [(photo.key, photo.title) for photo in block.photos()] == [("a.jpg", "a"), ("b/2.PNG", "2")]
    assert read_photo(block.system, block.photos()[1].location, 100) == b"b/2.PNG"


def test_a_new_photo_changes_one_block(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(f"{number:03}.jpg" for number in range(300)))
    before = {block.id for block in open_source(str(folder), size=10).blocks}
    assert 15 < len(before) < 60
    folder_of(tmp_path, "000a.jpg")
    after = {block.id for block in open_source(str(folder), size=10).blocks}
    assert len(before - after) == 1
    os.utime(folder / "150.jpg", ns=(1, 1))
    assert len(after - {block.id for block in open_source(str(folder), size=10).blocks}) == 1


def test_rows_of_parquet_files_are_read_by_the_worker(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(12)]
    file = table(tmp_path / "list.parquet", photo=names, title=[f"Shirt {name}" for name in names])
    blocks = open_source(str(file), size=3).blocks
    assert [len(block.photos()) for block in blocks] == [3, 2, 3, 2, 2]
    found = photos(pickle.loads(pickle.dumps(blocks)))
    assert [(one.key, one.title) for one in found] == [(name, f"Shirt {name}") for name in names]
    assert found[3].location == str(tmp_path / "3.jpg")
    assert [block.id for block in open_source(str(tmp_path), size=3).blocks] == [block.id for block in blocks]
    assert len({block.id for block in blocks}) == 5


def test_rows_may_have_ids_urls_and_nothing(tmp_path: Path) -> None:
    file = table(
        tmp_path / "list.parquet",
        id=[7, 8, None],
        photo=["https://host/1.jpg", None, "s3://key:secret@bucket/a.jpg"],
        title=["A", None, "C"],
        url=["https://shop/1", None, None],
        price=[9.5, None, float("nan")],
        available=[False, None, True],
        category=["Shirts", None, ""],
    )
    assert photos(open_source(str(file)).blocks) == [
        SourcePhoto("7", "https://host/1.jpg", "A", "https://shop/1", attributes=Attributes(9.5, False, "Shirts")),
        SourcePhoto("8", "", ""),
        SourcePhoto("s3://bucket/a.jpg", "s3://key:secret@bucket/a.jpg", "C", attributes=Attributes(None, True)),
    ]


def test_ids_that_are_zero_missing_or_odd_make_no_two_products_one(tmp_path: Path) -> None:
    nan = float("nan")
    numbers = table(
        tmp_path / "a.parquet", id=[0.0, nan, nan], photo=["1.jpg", "2.jpg", "3.jpg"], title=["A", "B", "C"]
    )
    texts = table(tmp_path / "b.parquet", id=["a\0b", ""], photo=["4.jpg", "5.jpg"], title=["D", "E"])
    keys = [one.key for file in (numbers, texts) for one in photos(open_source(str(file)).blocks)]
    assert keys == ["0.0", "2.jpg", "3.jpg", "a b", "5.jpg"]


def test_texts_that_are_not_utf_8_and_odd_prices_cost_no_row(tmp_path: Path) -> None:
    """Not every writer of Parquet files checks its texts."""
    offsets = pyarrow.py_buffer(bytes([0, 0, 0, 0, 5, 0, 0, 0, 10, 0, 0, 0]))
    wrong = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"\xff.jpg2.jpg")])
    file = table(tmp_path / "a.parquet", photo=wrong, title=pyarrow.array([b"A", b"B\xff"]), price=[-1.0, float("inf")])
    assert [(one.key, one.title, one.attributes) for one in photos(open_source(str(file)).blocks)] == [
        ("\N{REPLACEMENT CHARACTER}.jpg", "A", NO_ATTRIBUTES),
        ("2.jpg", "B\N{REPLACEMENT CHARACTER}", NO_ATTRIBUTES),
    ]


def test_what_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no photo in"):
        open_source(str(folder_of(tmp_path, "notes.txt")))
    with pytest.raises(CatalogError, match="does not exist"):
        open_source(str(tmp_path / "missing"))
    with pytest.raises(CatalogError, match="lacks the column photo and title"):
        open_source(str(table(tmp_path / "list.parquet", name=["a"])))
    (tmp_path / "list.parquet").write_bytes(b"no Parquet")
    with pytest.raises(CatalogError, match="is no Parquet file"):
        open_source(str(tmp_path / "list.parquet"))
    for source in ("nonsense://key:s3cret@host/folder", "s3://key:s3c@ret@bu_cket?x=1&", "file://key:s3cret@/nowhere"):
        with pytest.raises(CatalogError, match="cannot be opened|does not exist") as caught:
            open_source(source)
        assert "s3c" not in str(caught.value)


def test_reading_stops_behind_the_limit_and_names_what_is_missing(tmp_path: Path) -> None:
    [block] = open_source(str(folder_of(tmp_path, "1.jpg"))).blocks
    file = tmp_path / "photos" / "1.jpg"
    file.write_bytes(bytes(5000))
    assert len(read_photo(block.system, str(file), 100)) == 101
    with pytest.raises(PhotoReadError, match="cannot be read"):
        read_photo(block.system, str(tmp_path / "missing.jpg"), 100)
    with pytest.raises(PhotoReadError, match="cannot be read"):
        read_photo(block.system, "nonsense://host/1.jpg", 100)
    with pytest.raises(PhotoReadError) as caught:
        read_photo(block.system, "nonsense://key:s3cret@host/1.jpg", 100)
    assert "s3cret" not in str(caught.value)
    for location in ("/" + "a" * 300, "/" + "a/" * 3000, f"file:///{'a' * 300}", "s3://" + "a" * 3000):
        with pytest.raises(PhotoReadError) as caught:
            read_photo(block.system, location, 100)
        assert caught.value.is_final != location.startswith("s3:")
        assert len(str(caught.value)) < 400
