# SPDX-License-Identifier: Apache-2.0
"""A sheet shows photos that were drawn at random, with marks that say what is right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the training extra (torch)")

from tests.conftest import jpeg
from tests.fakes.phone_samples import write_phone_photos
from tests.training.test_captioning import add_query_head, checkpoint
from training import caption_sheet
from training.caption_sheet import RIGHT, WRONG, Card, cards_of, draw, draw_sheet, names_type, phone_cards
from training.captioning import CheckpointCaptioner
from training.label_words import LabelWords
from training.phone_photos import is_validation_sender
from training.prepare_data import is_validation

pytestmark = pytest.mark.torch

GREY = np.full((60, 40, 3), 128, np.uint8)


def card(*, caption_is_right: bool = True, query_is_right: bool = True, text: str = "Nike Blue Shirt") -> Card:
    return Card(GREY, "Shirt", text, "blue shirt", 0.5, caption_is_right, query_is_right)


def marks(sheet: Image.Image) -> tuple[int, int]:
    """How many right and wrong marks there are, by their pixels."""
    pixels = np.asarray(sheet)
    return tuple(int((pixels == colour).all(axis=2).sum()) // 81 for colour in (RIGHT, WRONG))  # type: ignore[return-value]


def test_each_line_has_its_own_mark() -> None:
    assert marks(draw_sheet([card()], "title")) == (2, 0)
    assert marks(draw_sheet([card(query_is_right=False), card(caption_is_right=False, query_is_right=False)], "")) == (
        1,
        3,
    )
    with pytest.raises(ValueError, match="no photos"):
        draw_sheet([], "title")


def test_sheet_grows_by_rows_and_takes_texts_of_any_length() -> None:
    one_row, two_rows = (draw_sheet([card()] * count, "title") for count in (8, 9))
    assert one_row.width == two_rows.width
    assert one_row.height < two_rows.height
    for text in ("", "word " * 80, "x" * 500, "café ßø 漢字"):
        assert draw_sheet([card(text=text)] * 2, "t" * 300).size == draw_sheet([card()] * 2, "title").size


def test_draw_is_random_without_repetition_and_the_same_again() -> None:
    chosen = draw(10, 100, 17)
    assert chosen == draw(10, 100, 17) == sorted(set(chosen))
    assert chosen != draw(10, 100, 18)
    assert chosen != list(range(10))
    assert draw(10, 3, 17) == [0, 1, 2]


def test_type_is_named_by_the_list_or_by_its_own_last_word() -> None:
    names = names_type("Casual Shoes", LabelWords.load())
    assert names("Puma Men Black Casual Shoes")
    assert names("black shoe")
    assert not names("Shoes and a Blue Shirt")


@pytest.mark.parametrize("with_head", [False, True])
def test_cards_say_what_the_captioner_says(with_head: bool, tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint")
    if with_head:
        add_query_head(tmp_path / "checkpoint")
    captioner = CheckpointCaptioner.load(tmp_path / "checkpoint")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 24, 3), dtype=np.uint8)
    asked: list[str] = []

    def is_named(text: str) -> bool:
        asked.append(text)
        return len(asked) % 2 == 1

    cards = cards_of(captioner, pixels, list(pixels), ["a", "b", "c"], [is_named] * 3)
    assert [one.caption for one in cards] == captioner.describe(pixels).captions
    assert [one.label for one in cards] == ["a", "b", "c"]
    assert [(one.caption_is_right, one.query_is_right) for one in cards] == [(True, False)] * 3
    assert all(0 <= one.probability <= 1 for one in cards)
    if with_head:
        assert {one.query for one in cards} <= set(captioner.query_classes[1:])


def test_phone_photos_are_of_validation_senders_and_shown_as_they_are(tmp_path: Path) -> None:
    rows = write_phone_photos(tmp_path / "phone")
    captioner = CheckpointCaptioner.load(checkpoint(tmp_path / "checkpoint"))
    cards = phone_cards(captioner, tmp_path / "phone", 50, 17)
    assert [one.label for one in cards] == [row["label"] for row in rows if is_validation_sender(row["sender_id"])]
    with Image.open(tmp_path / "phone" / "images" / f"{rows[0]['image']}.jpg") as picture:
        assert np.array_equal(cards[0].picture, np.asarray(picture.convert("RGB")))


def test_command_writes_the_sheet_of_either_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(Path("checkpoint"))
    write_phone_photos(Path("phone"))
    Path("studio/images").mkdir(parents=True)
    name = next(name for i in range(1000) if is_validation(name := f"Puma {i} Blue Shirt"))
    Path("studio/images/1.jpg").write_bytes(jpeg("Shirt", "Blue", seed=1))
    Path("studio/styles.csv").write_text(
        f"id,gender,articleType,baseColour,productDisplayName\n1,Men,Shirts,Blue,{name}\n", encoding="utf-8"
    )
    for source, count in (("phone", 3), ("data", 1)):
        folder = "phone" if source == "phone" else "studio"
        arguments = [
            "--checkpoint",
            "checkpoint",
            f"--{source}",
            folder,
            "--output",
            f"new/{source}.png",
            "--count",
            "3",
        ]
        monkeypatch.setattr(sys, "argv", ["caption_sheet", *arguments])
        caption_sheet.main()
        assert f"{count} photos" in capsys.readouterr().out
        with Image.open(f"new/{source}.png") as picture:
            assert picture.format == "PNG"


@pytest.mark.parametrize("flags", [[], ["--phone", "a", "--data", "b"], ["--phone", "a", "--count", "0"]])
def test_command_without_one_source_or_photos_is_refused(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["caption_sheet", "--output", "x.png", *flags])
    with pytest.raises(SystemExit):
        caption_sheet.main()
