# SPDX-License-Identifier: Apache-2.0
"""A product set in one file: what goes in comes out, the same bytes every time, and damage is told."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from drawings import draw_samples
from drawings.draw_samples import write_catalogue
from training.packed_data import main, pack
from training.prepare_data import STYLE_COLUMNS, ProductSet, load_products, read_styles
from training.product_files import MAX_PHOTO_BYTES, DataError

HEIGHT, WIDTH = 40, 32


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every garment once; not to be changed."""
    folder = tmp_path_factory.mktemp("catalogue")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw_samples, "COLOURS", {"Red": draw_samples.COLOURS["Red"]})
        write_catalogue(folder)
    return folder


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(drawn, tmp_path / "catalogue"))


def load(path: Path, **options: object) -> ProductSet:
    return load_products(path, height=HEIGHT, width=WIDTH, fit="pad", progress=False, **options)  # type: ignore[arg-type]


def test_packed_set_is_loaded_as_its_folder(drawn: Path, tmp_path: Path) -> None:
    report = pack(drawn, tmp_path / "set.zip")
    expected, packed = load(drawn), load(tmp_path / "set.zip")
    assert packed.products == expected.products
    assert np.array_equal(packed.pixels, expected.pixels)
    assert packed.skipped == expected.skipped == Counter()
    assert report.num_products == len(expected)
    assert report.num_bytes == (tmp_path / "set.zip").stat().st_size
    assert list(read_styles(tmp_path / "set.zip", Counter())) == expected.products


def test_limit_and_choice_work_on_a_packed_set(drawn: Path, tmp_path: Path) -> None:
    pack(drawn, tmp_path / "set.zip")
    for options in ({"limit": 3}, {"only": lambda product: product.id in "246"}):
        assert load(tmp_path / "set.zip", **options).products == load(drawn, **options).products


def test_same_set_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "first.zip")
    for photo in (folder / "images").iterdir():
        photo.touch()
    (folder / "images" / "stray.jpg").write_bytes(b"of no product")
    pack(folder, tmp_path / "second.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    pack(tmp_path / "first.zip", tmp_path / "third.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "third.zip").read_bytes()


def test_any_tool_unpacks_it_to_the_folder_layout(drawn: Path, tmp_path: Path) -> None:
    pack(drawn, tmp_path / "set.zip")
    shutil.unpack_archive(tmp_path / "set.zip", tmp_path / "unpacked")
    assert load(tmp_path / "unpacked").products == load(drawn).products
    assert (tmp_path / "unpacked" / "styles.csv").read_text().splitlines()[0] == ",".join(STYLE_COLUMNS)
    for photo in (drawn / "images").iterdir():
        assert (tmp_path / "unpacked" / "images" / photo.name).read_bytes() == photo.read_bytes()


def test_all_columns_are_kept_and_commas_quoted(folder: Path, tmp_path: Path) -> None:
    row = "1,Men,Apparel,Topwear,Shirts,Blue,Summer,2012,Casual,Puma, Red Shirt"
    (folder / "styles.csv").write_text(",".join(STYLE_COLUMNS) + f"\n{row}\n")
    pack(folder, tmp_path / "set.zip")
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        assert archive.namelist() == ["images/1.jpg", "styles.csv"]
        assert archive.read("styles.csv").decode().splitlines()[1] == row.replace(
            "Puma, Red Shirt", '"Puma, Red Shirt"'
        )


def test_set_of_json_files_becomes_a_csv(folder: Path, tmp_path: Path) -> None:
    (folder / "styles.csv").unlink()
    (folder / "styles").mkdir()
    product = {"id": 1, "productDisplayName": 'Nike 3.5" Short', "year": "2012", "articleType": {"typeName": "Shorts"}}
    (folder / "styles" / "1.json").write_text(json.dumps({"data": product}))
    pack(folder, tmp_path / "set.zip")
    assert load(tmp_path / "set.zip").products == load(folder).products
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        assert archive.read("styles.csv").decode().splitlines()[1] == '1,,,,Shorts,,,2012,,"Nike 3.5"" Short"'


def test_rows_without_a_photo_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "1.jpg").unlink()
    (folder / "images" / "2.jpg").unlink()
    (folder / "images" / "2.jpg").mkdir()
    (folder / "images" / "3.jpg").write_bytes(bytes(MAX_PHOTO_BYTES + 1))
    with (folder / "styles.csv").open("a") as file:
        file.write("4,Men,short row\n")
    report = pack(folder, tmp_path / "set.zip", limit=2)
    assert report.skipped == {
        "no photo": 1,
        "unreadable photo": 1,
        "photo too large": 1,
        "too few columns": 1,
    }
    assert [product.id for product in load(tmp_path / "set.zip").products] == ["4", "5"]


def test_packed_file_without_styles_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("images/1.jpg", b"")
    with pytest.raises(DataError, match=r"set\.zip does not hold images/ and styles\.csv .*: give --data another"):
        load(tmp_path / "set.zip")


def test_packed_file_with_damaged_styles_is_refused_with_a_remedy(drawn: Path, tmp_path: Path) -> None:
    pack(drawn, tmp_path / "set.zip")
    data = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(data.replace(b"Sketch Red Tie", b"Sketch Red Pie"))
    with pytest.raises(DataError, match=r"set\.zip has a damaged styles\.csv .*: copy it again"):
        load(tmp_path / "set.zip")


def test_damage_anywhere_is_counted_or_told_and_never_believed(drawn: Path, tmp_path: Path) -> None:
    """Any byte changed, any end cut off: the products that are read are true, and nothing else than DataError comes."""
    path = tmp_path / "set.zip"
    pack(drawn, path)
    whole = path.read_bytes()
    expected = load(path)
    true = dict(zip(expected.products, map(np.ndarray.tobytes, expected.pixels), strict=True))
    choose = random.Random(17)
    directory = whole.index(b"PK\x01\x02")
    refused = 0
    for trial in range(120):
        damaged = bytearray(whole)
        # Half in the directory, which is the smaller part and the one that decides.
        damaged[choose.randrange(directory if trial % 2 else 0, len(whole))] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged[: choose.randrange(len(whole))] if trial % 10 == 0 else damaged)
        try:
            found = load(path)
        except DataError:
            refused += 1
            continue
        assert len(found) + found.skipped.total() == len(expected)
        for product, pixels in zip(found.products, found.pixels, strict=True):
            assert true[product] == pixels.tobytes()
    assert 12 <= refused < 120


# The command


def test_command_packs_and_reports(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images" / "1.jpg").unlink()
    assert main(["--data", str(folder), "--output", str(tmp_path / "set.zip"), "--limit", "4"]) == 0
    assert len(load(tmp_path / "set.zip")) == 4
    assert capsys.readouterr().out == f"{tmp_path / 'set.zip'}: 4 products, 0.0 MB\n  left out: 1 rows, no photo\n"


def test_command_shows_a_progress_bar_if_asked(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--data", str(drawn), "--output", str(tmp_path / "quiet.zip")])
    assert capsys.readouterr().err == ""
    main(["--data", str(drawn), "--output", str(tmp_path / "set.zip"), "--progress"])
    assert "packing: 100%" in capsys.readouterr().err


def test_command_replaces_a_file_only_if_told_to(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set.zip").write_bytes(b"precious")
    arguments = ["--data", str(drawn), "--output", str(tmp_path / "set.zip")]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "set.zip already exists: name another file, or give --force" in capsys.readouterr().err
    assert (tmp_path / "set.zip").read_bytes() == b"precious"
    assert main([*arguments, "--force"]) == 0
    assert len(load(tmp_path / "set.zip")) == len(load(drawn))


@pytest.mark.parametrize("extra", [["--limit", "0"], ["--limit", "-1"], ["--output", "."]])
def test_command_refuses_what_makes_no_sense(drawn: Path, tmp_path: Path, extra: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--data", str(drawn), "--output", str(tmp_path / "set.zip"), *extra])
    assert stopped.value.code == 2
    assert not list(tmp_path.iterdir())


def test_failed_packing_leaves_nothing_and_the_old_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    (tmp_path / "set.zip").write_bytes(b"precious")
    assert main(["--data", str(folder), "--output", str(tmp_path / "set.zip"), "--force"]) == 1
    assert "no product of" in capsys.readouterr().err
    assert (tmp_path / "set.zip").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalogue", "set.zip"]


def test_output_that_cannot_be_written_is_told_without_a_traceback(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(drawn), "--output", str(tmp_path / "nowhere" / "set.zip")]) == 1
    assert "No such file or directory" in capsys.readouterr().err
