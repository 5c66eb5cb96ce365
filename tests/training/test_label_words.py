# SPDX-License-Identifier: Apache-2.0
"""The published list of words, how it is read, and how it is counted."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from captioner.word_folding import fold
from tests.conftest import SHARED_DATA
from training import label_words
from training.label_words import LABEL_WORDS_FILE, LabelWords, derive_types, label_accuracy
from training.prepare_data import Product, is_validation, read_styles

LIST = LabelWords.load()
DATA = SHARED_DATA / "fashion-product-images-small"


def product(name: str, article_type: str = "Shirts", colour: str = "Blue") -> Product:
    return Product("1", name, article_type, colour, "Men")


@pytest.mark.parametrize(
    ("caption", "colour"),
    [
        ("Turtle Check Men Navy Blue Shirt", "Navy Blue"),
        ("Puma Men BLUE T-shirt", "Blue"),
        ("Nike Navy Shoe", "Navy Blue"),
        ("Catwalk Women Golden Heels", "Gold"),
        ("Fabindia Off White Kurta", "Off White"),
        ("Fabindia Off-White Kurta", "Off White"),
        ("Titan Women Silver-Toned Dial Watch", "Silver"),
        ("Aneri Women Sea Green Salwar", "Sea Green"),
        ("Enamor Skin Bra", "Skin"),
        ("Puma Maroon Cap", "Maroon"),
        ("Red Tape Men Black Shoes", "Black"),
        ("Red Tape Men Casual Shoes", None),
        ("Nike Men White & Black Shoes", "White"),
        ("Nike Men White and Black Shoes", "White"),
        ("Proline Men Grey Melange T-shirt", "Grey Melange"),
        ("ADIDAS Men Redstone Cap", None),
        ("", None),
    ],
)
def test_the_colour_a_caption_names(caption: str, colour: str | None) -> None:
    assert LIST.colour_of(caption) == colour


def test_colours_in_a_row_are_one_group_and_other_words_part_groups() -> None:
    assert LIST.colour_groups("Blue Lady White & Black, Red and Pink Shoes") == [
        ["Blue"],
        ["White", "Black", "Red", "Pink"],
    ]
    assert LIST.colour_groups("Red and Shiny Blue") == [["Red"], ["Blue"]]
    assert LIST.colour_groups("Black Red Tape White") == [["Black"], ["White"]]


@pytest.mark.parametrize(
    ("caption", "article_type"),
    [
        ("Turtle Check Men Navy Blue Shirt", "Shirts"),
        ("Puma Men Blue T-Shirts", "Tshirts"),
        ("Puma Women Sports Shoes", "Sports Shoes"),
        ("Puma Women Blue Shoes", "Casual Shoes"),
        ("Fabindia Cotton Laptop Bag", "Laptop Bag"),
        ("Quechua Laptop Backpack", "Backpacks"),
        ("Colorbar Blue Lagoon Nail Lacquer 05", "Nail Polish"),
        ("Titan Watch MTP-1239D", "Watches"),
        ("Reebok Men T-shirt Red", "Tshirts"),
        ("Puma Men Blue", None),
        ("", None),
    ],
)
def test_the_type_a_caption_names(caption: str, article_type: str | None) -> None:
    assert LIST.type_of(caption) == article_type


def test_phrase_that_ends_last_wins_then_the_longer_one() -> None:
    words = LabelWords({}, {"bag": "Handbags", "laptop bag": "Laptop Bag", "shoe": "Shoes"})
    assert words.type_of("Laptop Bag") == "Laptop Bag"
    assert words.type_of("Laptop Bag for Shoes") == "Shoes"
    assert words.type_of("Laptop Blue Bag 2011") == "Handbags"


def test_list_is_folded_sorted_and_small() -> None:
    content = json.loads(LABEL_WORDS_FILE.read_text(encoding="utf-8"))
    assert list(content) == ["colours", "types"]
    for phrases in content.values():
        assert list(phrases) == sorted(phrases)
        for phrase in phrases:
            assert 1 <= len(phrase.split()) <= label_words.PHRASE_WORDS
            assert " ".join(fold(word) for word in phrase.split()) == phrase
    assert LABEL_WORDS_FILE.stat().st_size < 60_000


def test_every_colour_is_listed_under_its_own_name() -> None:
    for colour in LIST.colours.values():
        assert colour is None or LIST.colour_of(colour) == colour


def test_accuracy_is_a_share_of_all_products() -> None:
    products = [
        product("Nike Blue Shirt"),
        product("Nike Men Shirt"),
        product("Nike Red Cap", "Caps", "Red"),
        product("Nike Black Cap", "Caps", "Black"),
    ]
    result = label_accuracy(["Blue Shirt", "Blue Shirt", "Red Shirt", "Puma Cap"], products)
    assert result.type_accuracy == 3 / 4
    assert result.colour_accuracy == 3 / 4
    assert result.colour_accuracy_where_named == 2 / 3
    assert result.named_type == 1
    assert result.named_colour == 3 / 4


def test_labels_must_be_equal_and_not_merely_alike() -> None:
    products = [product("Nike Shoes", "Sports Shoes", "Navy Blue")]
    result = label_accuracy(["Nike Blue Shoes"], products)
    assert (result.type_accuracy, result.colour_accuracy) == (0, 0)
    assert result.colour_accuracy_where_named is None


def test_nothing_to_compare_is_an_error_and_not_a_perfect_score() -> None:
    with pytest.raises(ValueError, match="no captions"):
        label_accuracy([], [])


@pytest.mark.parametrize(("captions", "count"), [(1, 2), (2, 1)])
def test_lists_of_different_lengths_are_an_error(captions: int, count: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        label_accuracy(["Blue Shirt"] * captions, [product("Blue Shirt")] * count)


COLOURS = {"red": "Red", "blue": "Blue", "day cream": None, "cream": "Cream"}


def test_types_are_counted_from_the_last_words_of_enough_names() -> None:
    names = ["Puma Blue Shirt", "Nike Shirts", "Slim SHIRT", "One Kaftan", "Two Kaftan"]
    assert derive_types([product(name) for name in names], COLOURS) == {"shirt": "Shirts"}


def test_phrase_of_many_types_names_none() -> None:
    types = ["Shirts", "Caps", "Ties", "Ties", "Belts"]
    assert derive_types([product("Nike Gear", article_type) for article_type in types], COLOURS) == {}
    assert derive_types([product("Nike Gear", article_type) for article_type in types[1:4]], COLOURS) == {
        "gear": "Ties"
    }


def test_two_words_are_listed_only_if_they_change_the_type() -> None:
    products = [
        *[product("Nike Plain Bag", "Handbags")] * 5,
        *[product("Nike Laptop Bag", "Laptop Bag")] * 3,
    ]
    assert derive_types(products, COLOURS) == {"bag": "Handbags", "laptop bag": "Laptop Bag"}


def test_codes_sizes_and_colours_name_no_type() -> None:
    products = [
        *[product("Colorbar Lipstick 529", "Lipstick")] * 3,
        *[product("Nike Water 90 ml", "Perfume and Body Mist")] * 3,
        *[product("Nike Pegasus Red", "Sports Shoes")] * 3,
        *[product("Pond Day Cream", "Face Moisturisers")] * 3,
    ]
    assert derive_types(products, COLOURS) == {
        "day cream": "Face Moisturisers",
        "lipstick": "Lipstick",
        "water": "Perfume and Body Mist",
    }


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["label_words", *arguments])
    label_words.main()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty shirts: the ones to train on are labelled ties, the ones to validate with (one in twenty) caps."""
    (tmp_path / "images").mkdir()
    rows = ["id,gender,articleType,baseColour,productDisplayName"]
    for k in range(60):
        name = f"Make{k} Blue Shirt"
        rows.append(f"{k},Men,{'Caps' if is_validation(name) else 'Ties'},Blue,{name}")
    (tmp_path / "styles.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert any(is_validation(f"Make{k} Blue Shirt") for k in range(60))
    return tmp_path


def test_command_counts_training_names_only_and_keeps_the_colours(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = folder / "label_words.json"
    copy.write_bytes(LABEL_WORDS_FILE.read_bytes())
    monkeypatch.setattr(label_words, "LABEL_WORDS_FILE", copy)
    run_main(monkeypatch, "--data", str(folder))
    assert copy.read_bytes() == LABEL_WORDS_FILE.read_bytes()
    capsys.readouterr()
    run_main(monkeypatch, "--data", str(folder), "--write")
    assert json.loads(copy.read_text(encoding="utf-8")) == {"colours": LIST.colours, "types": {"shirt": "Ties"}}
    training, validation = capsys.readouterr().out.split("validation")
    assert "type_accuracy                 1.0000" in training
    assert "type_accuracy                 0.0000" in validation


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data/fashion-product-images-small")
def test_published_types_are_those_counted_from_the_training_names() -> None:
    training = [item for item in read_styles(DATA, Counter()) if not is_validation(item.name)]
    assert derive_types(training, LIST.colours) == LIST.types
    assert set(LIST.types.values()) <= {item.article_type for item in training}
    assert {item.colour for item in training} == set(LIST.colours.values()) - {None}
