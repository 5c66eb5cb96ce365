# SPDX-License-Identifier: Apache-2.0
"""A set in a Kaggle layout -> products and photos: what is read, what is left out and counted."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.preprocessing import decode_photo
from drawings import draw_samples
from drawings.draw_samples import COLUMNS, GARMENTS, write_catalogue
from training.prepare_data import (
    MAX_ID_CHARACTERS,
    VALIDATION_PER_MILLE,
    Product,
    ProductSet,
    is_validation,
    load_products,
    read_styles,
    split_share,
)
from training.product_files import MAX_PHOTO_BYTES, DataError
from training.product_names import clean_name

HEIGHT, WIDTH = 40, 32
HEADER = ",".join(COLUMNS)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every garment in two colours, as `write_catalogue` leaves them; not to be changed."""
    folder = tmp_path_factory.mktemp("catalogue")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw_samples, "COLOURS", {name: draw_samples.COLOURS[name] for name in ("Red", "Blue")})
        assert write_catalogue(folder) == 2 * len(GARMENTS)
    return folder


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(drawn, tmp_path / "catalogue"))


def load(folder: Path, **options: object) -> ProductSet:
    return load_products(folder, height=HEIGHT, width=WIDTH, fit="pad", progress=False, **options)  # type: ignore[arg-type]


def add_rows(folder: Path, *rows: str) -> None:
    with (folder / "styles.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"{row}\n" for row in rows)


def row(product_id: str, name: str) -> str:
    return f"{product_id},Men,Apparel,Topwear,Shirts,Blue,Summer,2012,Casual,{name}"


def styles(tmp_path: Path, *rows: str, header: str = HEADER) -> tuple[list[Product], Counter[str]]:
    """What is read of a `styles.csv` of these lines, without any photos."""
    (tmp_path / "images").mkdir()
    (tmp_path / "styles.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    skipped: Counter[str] = Counter()
    return list(read_styles(tmp_path, skipped)), skipped


def test_every_drawn_sample_is_read_with_its_words(drawn: Path) -> None:
    data = load(drawn)
    assert len(data) == 2 * len(GARMENTS)
    assert data.products[0] == Product("1", "Sketch Red T-shirt", "Tshirts", "Red", "Unisex")
    assert data.products[-1].name == "Sketch Blue Socks"
    assert not data.skipped


def test_photos_are_those_of_their_products_at_the_encoders_size(drawn: Path) -> None:
    data = load(drawn)
    assert data.pixels.shape == (len(data), HEIGHT, WIDTH, 3)
    assert data.pixels.dtype == np.uint8
    for product, pixels in zip(data.products, data.pixels, strict=True):
        photo = (drawn / "images" / f"{product.id}.jpg").read_bytes()
        assert np.array_equal(pixels, decode_photo(photo, height=HEIGHT, width=WIDTH, fit="pad"))


def test_rows_that_cannot_be_used_are_counted_by_reason(folder: Path) -> None:
    (folder / "images" / "1.jpg").unlink()
    (folder / "images" / "2.jpg").write_bytes(b"no photo at all")
    whole = (folder / "images" / "3.jpg").read_bytes()
    (folder / "images" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "images" / "4.jpg").write_bytes(bytes(MAX_PHOTO_BYTES + 1))
    (folder / "images" / "5.jpg").unlink()
    (folder / "images" / "5.jpg").mkdir()
    add_rows(folder, row("104", ""), row("105", "   "), "106,Men,Apparel", "", row("777", "Blue Shirt Without Photo"))
    add_rows(folder, row("7", "Blue Shirt Again"), row("", "Blue Shirt"), row("../7", "Blue Shirt"))
    data = load(folder)
    assert data.skipped == {
        "no photo": 2,
        "unreadable photo": 3,
        "photo too large": 1,
        "no name": 2,
        "too few columns": 1,
        "id is there twice": 1,
        "no id": 1,
        "id is no file name": 1,
    }
    assert [product.id for product in data.products] == [str(k) for k in range(6, 2 * len(GARMENTS) + 1)]
    assert len(data.pixels) == len(data.products)


def test_unquoted_commas_belong_to_the_name(tmp_path: Path) -> None:
    products, skipped = styles(tmp_path, row("1", "Puma Men, Pack of 2, Blue Shirt"), row("2", '"Puma, Red Cap"'))
    assert [product.name for product in products] == ["Puma Men, Pack of 2, Blue Shirt", "Puma, Red Cap"]
    assert [product.colour for product in products] == ["Blue", "Blue"]
    assert not skipped


def test_row_that_is_too_long_is_counted_where_the_name_is_not_last(tmp_path: Path) -> None:
    header = "id,productDisplayName,articleType,baseColour,gender"
    products, skipped = styles(tmp_path, "1,Puma, Red Cap,Caps,Red,Men", "2,Blue Cap,Caps,Blue,Men", header=header)
    assert products == [Product("2", "Blue Cap", "Caps", "Blue", "Men")]
    assert skipped == {"too many columns": 1}


def test_quote_that_is_never_closed_costs_no_other_row(tmp_path: Path) -> None:
    products, skipped = styles(tmp_path, row("1", '"Nike Short'), row("2", "Red Cap"), row("3", '"Puma" Blue Cap'))
    assert [product.id for product in products] == ["1", "2", "3"]
    assert [product.name for product in products][:2] == ["Nike Short", "Red Cap"]
    assert not skipped


def test_row_that_is_no_csv_is_counted(tmp_path: Path) -> None:
    products, skipped = styles(tmp_path, row("1", "x" * 200_000), row("2", "Red Cap"))
    assert [product.id for product in products] == ["2"]
    assert skipped == {"row cannot be read": 1}


def test_first_of_two_rows_with_one_id_is_kept(tmp_path: Path) -> None:
    products, skipped = styles(tmp_path, row("1", "Red Cap"), row(" 1 ", "Blue Cap"), row("2", "Blue Cap"))
    assert [(product.id, product.name) for product in products] == [("1", "Red Cap"), ("2", "Blue Cap")]
    assert skipped == {"id is there twice": 1}


@pytest.mark.parametrize(
    "product_id", ["../x", "a/b", "/etc/x", "..", ".", ".x", "a\\b", "c:x", "a\x00b", "x" * (MAX_ID_CHARACTERS + 1)]
)
def test_id_that_is_no_plain_file_name_is_counted(tmp_path: Path, product_id: str) -> None:
    products, skipped = styles(tmp_path, row(product_id, "Red Cap"), row("x" * MAX_ID_CHARACTERS, "Red Cap"))
    assert len(products) == 1
    assert skipped == {"id is no file name": 1}


@pytest.mark.parametrize(("suffix", "kind"), [("jpeg", "JPEG"), ("png", "PNG")])
def test_photos_may_have_other_suffixes(folder: Path, suffix: str, kind: str) -> None:
    photo = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (10, 20, 30)).save(photo, kind, quality=100)
    (folder / "images" / "1.jpg").unlink()
    (folder / "images" / f"1.{suffix}").write_bytes(photo.getvalue())
    data = load(folder)
    assert not data.skipped
    assert np.abs(data.pixels[0].astype(int) - (10, 20, 30)).max() <= 3


# The full set, where there is no styles.csv


def full_set(tmp_path: Path, **contents: object) -> Path:
    """`styles/<name>.json` of these contents, as they are if bytes, and `images/`."""
    (tmp_path / "images").mkdir()
    (tmp_path / "styles").mkdir()
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "styles" / f"{name.removeprefix('id')}.json").write_bytes(data)
    return tmp_path


def style(**values: object) -> dict[str, object]:
    """What `styles/<id>.json` holds, as far as we look; the real ones have some sixty values more."""
    product = {
        "id": 15970,
        "productDisplayName": "Turtle Check Men Navy Blue Shirt",
        "gender": "Men",
        "baseColour": "Navy Blue",
        "year": "2011",
        "articleType": {"id": 90, "typeName": "Shirts", "active": True},
        "masterCategory": {"id": 9, "typeName": "Apparel"},
        "brandName": "Turtle",
    }
    return {"notification": {}, "meta": {"code": 200}, "data": {**product, **values}}


def test_json_files_are_read_where_styles_csv_is_missing(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    folder = full_set(tmp_path, id15970=style())
    expected = Product("15970", "Turtle Check Men Navy Blue Shirt", "Shirts", "Navy Blue", "Men")
    assert list(read_styles(folder, skipped)) == [expected]
    assert not skipped


def test_csv_is_read_where_both_are_there(folder: Path) -> None:
    expected = load(folder).products
    (folder / "styles").mkdir()
    (folder / "styles" / "1.json").write_text(json.dumps(style(id=1)), encoding="utf-8")
    assert load(folder).products == expected


def test_json_set_is_loaded_as_its_csv_would_be(folder: Path) -> None:
    expected = load(folder)
    (folder / "styles.csv").unlink()
    (folder / "styles").mkdir()
    for product in expected.products:
        content = style(
            id=int(product.id),
            productDisplayName=product.name,
            gender=product.gender,
            baseColour=product.colour,
            articleType={"typeName": product.article_type},
        )
        (folder / "styles" / f"{product.id}.json").write_text(json.dumps(content), encoding="utf-8")
    data = load(folder)
    assert data.products == expected.products  # also in this order, 2 before 10
    assert np.array_equal(data.pixels, expected.pixels)


def test_json_files_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    folder = full_set(
        tmp_path,
        id1=b"",
        id2=b'{"data": {"id": 2,',
        id3=b"[" * 100_000,
        id4=[1, 2],
        id5={"data": "x"},
        id6={"meta": {}},
        id7=style(id=7, productDisplayName=None),
        id8=style(id=8, productDisplayName=["x"]),
        id9=style(id=None),
        id10=style(id=True),
        id11=style(id="../11"),
        id12=style(id=12),
        id13=style(id=12, productDisplayName="Again"),
    )
    (folder / "styles" / "._12.json").write_bytes(b"what macOS leaves on foreign disks")
    skipped: Counter[str] = Counter()
    (product,) = read_styles(folder, skipped)
    assert (product.id, product.name) == ("12", "Turtle Check Men Navy Blue Shirt")
    assert skipped == {
        "broken JSON": 3,
        "JSON without a product": 3,
        "no name": 2,
        "no id": 2,
        "id is no file name": 1,
        "id is there twice": 1,
    }


def test_json_values_may_be_missing_or_half_characters(tmp_path: Path) -> None:
    content = b'{"data": {"id": "7", "productDisplayName": "Caf\\ud800  Shirt", "articleType": "Shirts"}}'
    (product,) = read_styles(full_set(tmp_path, id7=content), Counter())
    assert product == Product("7", "Caf? Shirt", "Shirts", "", "")
    assert not is_validation(product.name)


def test_space_in_names_is_one_space(tmp_path: Path) -> None:
    products, _ = styles(tmp_path, row("1", "  Puma \t Men   Blue Shirt "))
    assert products[0].name == "Puma Men Blue Shirt"


def test_quotes_inside_names_stay(tmp_path: Path) -> None:
    products, _ = styles(tmp_path, row("1", '"Nike 3.5"" Pink Short"'), row("2", 'Nike 3.5" Short'))
    assert [product.name for product in products] == ['Nike 3.5" Pink Short', 'Nike 3.5" Short']


def test_columns_are_found_by_name_and_others_left_alone(tmp_path: Path) -> None:
    products, _ = styles(
        tmp_path, "Red,9,Women,x,Dresses,Red Dress", header="baseColour,id,gender,other,articleType,productDisplayName"
    )
    assert products == [Product("9", "Red Dress", "Dresses", "Red", "Women")]


def test_mark_that_spreadsheets_put_before_the_header_is_no_part_of_it(tmp_path: Path) -> None:
    products, _ = styles(tmp_path, row("1", "Blue Shirt"), header="\ufeff" + HEADER)
    assert products[0].id == "1"


def test_bytes_that_are_no_utf8_cost_only_themselves(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "styles.csv").write_bytes(f"{HEADER}\n{row('1', 'Caf@ Blue Shirt')}\n".encode().replace(b"@", b"\xe9"))
    (product,) = read_styles(tmp_path, Counter())
    assert product.name == "Caf\ufffd Blue Shirt"


def test_limit_counts_usable_rows(folder: Path) -> None:
    (folder / "images" / "2.jpg").unlink()
    data = load(folder, limit=3)
    assert [product.id for product in data.products] == ["1", "3", "4"]
    assert data.skipped == {"no photo": 1}


def test_only_chooses_which_products_are_read(drawn: Path) -> None:
    data = load(drawn, only=lambda product: product.colour == "Blue")
    assert len(data) == len(GARMENTS)
    assert {product.colour for product in data.products} == {"Blue"}


@pytest.mark.parametrize("missing", ["images", "styles.csv"])
def test_folder_of_another_layout_is_refused_with_what_was_looked_for(folder: Path, missing: str) -> None:
    if missing == "images":
        shutil.rmtree(folder / missing)
    else:
        (folder / missing).unlink()
    with pytest.raises(
        DataError, match=r"does not hold images/ and styles\.csv or styles/\*\.json .*: give --data another"
    ):
        load(folder)


@pytest.mark.parametrize("text", ["", "\n", "id,name\n1,x\n"])
def test_missing_columns_are_named(folder: Path, text: str) -> None:
    (folder / "styles.csv").write_text(text, encoding="utf-8")
    with pytest.raises(
        DataError, match=r"styles\.csv of .* lacks the columns \[.*'articleType'.*'productDisplayName'\]"
    ):
        load(folder)


def test_folder_without_one_readable_photo_is_refused_with_the_reasons(folder: Path) -> None:
    for photo in (folder / "images").iterdir():
        photo.write_bytes(b"")
    with pytest.raises(
        DataError, match=rf"none of the requested products .* readable photo .*'unreadable photo': {2 * len(GARMENTS)}"
    ):
        load(folder)


def products_named(*names: str) -> ProductSet:
    products = [Product(str(i), name, "Shirts", "Blue", "Men") for i, name in enumerate(names)]
    return ProductSet(products, np.arange(len(names) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3))


def test_every_product_is_on_one_side_with_its_photo() -> None:
    data = products_named(*(f"Blue Shirt {i % 150}" for i in range(300)))
    training, validation = data.split()
    assert len(training) + len(validation) == len(data)
    assert 0 < len(validation) < len(training)
    for part in (training, validation):
        for product, pixels in zip(part.products, part.pixels, strict=True):
            assert np.array_equal(pixels, data.pixels[int(product.id)])


def test_products_of_one_name_are_on_one_side() -> None:
    data = products_named(*(f"Blue Shirt {i % 150}" for i in range(300)))
    training, validation = data.split()
    assert not {product.name for product in training.products} & {product.name for product in validation.products}


def test_case_and_space_do_not_change_the_side() -> None:
    for i in range(200):
        assert is_validation(f"Blue Shirt {i}") == is_validation(f"  BLUE  shirt {i} ")


def test_side_depends_on_the_name_alone_and_never_changes() -> None:
    """A checkpoint's validation set must be the same next year."""
    held_back = [i for i in range(100) if is_validation(f"Blue Shirt {i}")]
    assert held_back == [42, 58, 91, 93]
    share = sum(is_validation(f"Product {i}") for i in range(20_000)) / 20
    assert abs(share - VALIDATION_PER_MILLE) < 6


def test_renaming_changes_captions_and_not_the_split() -> None:
    data = products_named(*(f"Blue Shirt {i}" for i in range(300)))
    renamed = data.renamed(clean_name)
    assert {product.name for product in renamed.products} == {"Blue Shirt"}
    assert data.products[7].name == "Blue Shirt 7"
    for raw, cleaned in zip(data.split(), renamed.split(), strict=True):
        assert [product.id for product in cleaned.products] == [product.id for product in raw.products]
        assert np.array_equal(cleaned.pixels, raw.pixels)
        assert raw.renamed(clean_name).products == cleaned.products


def test_renaming_starts_from_the_listed_name() -> None:
    data = products_named("Blue Shirt 7", "Red Cap")
    assert data.renamed(clean_name).renamed(lambda name: name).products == data.products
    assert data.renamed(clean_name).products[1] == data.products[1]


def test_set_of_nothing_can_be_split() -> None:
    training, validation = ProductSet([], np.zeros((0, 2, 2, 3), np.uint8)).split()
    assert (len(training), len(validation)) == (0, 0)


def test_small_set_without_a_name_that_is_held_back_holds_one_back() -> None:
    names = [name for name in (f"Blue Shirt {i}" for i in range(60)) if not is_validation(name)][:20]
    names += names[:5]  # near-twins
    products = [Product(str(i), name, "", "", "") for i, name in enumerate(names)]
    training, validation = ProductSet(products, np.zeros((len(names), 2, 2, 3), np.uint8)).split()
    assert {product.name for product in validation.products} == {min(names, key=split_share)}
    assert len(training) + len(validation) == len(names)
    assert not {product.name for product in training.products} & {product.name for product in validation.products}
