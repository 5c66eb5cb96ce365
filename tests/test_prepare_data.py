# SPDX-License-Identifier: Apache-2.0
"""A folder in the Kaggle layout -> products and photos: what is read, what is left out and counted."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from captioner.preprocessing import decode_photo
from demo import draw_samples
from demo.draw_samples import COLUMNS, GARMENTS, write_catalogue
from training.prepare_data import (
    VALIDATION_PER_MILLE,
    DataError,
    Product,
    ProductSet,
    is_validation,
    load_products,
    read_styles,
)

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
    add_rows(folder, row("4", ""), row("5", "   "), "6,Men,Apparel", "", row("777", "Blue Shirt Without Photo"))
    data = load(folder)
    assert data.skipped == {"no photo": 2, "unreadable photo": 2, "no name": 4}
    assert [product.id for product in data.products] == [str(k) for k in range(4, 2 * len(GARMENTS) + 1)]
    assert len(data.pixels) == len(data.products)


def test_unquoted_commas_belong_to_the_name(tmp_path: Path) -> None:
    products, skipped = styles(tmp_path, row("1", "Puma Men, Pack of 2, Blue Shirt"), row("2", '"Puma, Red Cap"'))
    assert [product.name for product in products] == ["Puma Men, Pack of 2, Blue Shirt", "Puma, Red Cap"]
    assert [product.colour for product in products] == ["Blue", "Blue"]
    assert not skipped


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
    with pytest.raises(DataError, match=r"does not hold images/ and styles\.csv .*: give --data another folder"):
        load(folder)


@pytest.mark.parametrize("text", ["", "\n", "id,name\n1,x\n"])
def test_missing_columns_are_named(folder: Path, text: str) -> None:
    (folder / "styles.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"styles\.csv lacks the columns \[.*'articleType'.*'productDisplayName'\]"):
        load(folder)


def test_folder_without_one_readable_photo_is_refused_with_the_reasons(folder: Path) -> None:
    for photo in (folder / "images").iterdir():
        photo.write_bytes(b"")
    with pytest.raises(
        DataError, match=rf"not one product .* readable photo .*'unreadable photo': {2 * len(GARMENTS)}"
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


def test_set_that_is_split_may_have_nothing_to_validate_on() -> None:
    names = [f"Blue Shirt {i}" for i in range(30) if not is_validation(f"Blue Shirt {i}")]
    training, validation = products_named(*names).split()
    assert len(training) == len(names)
    assert len(validation) == 0
    assert validation.pixels.shape == (0, 2, 2, 3)
