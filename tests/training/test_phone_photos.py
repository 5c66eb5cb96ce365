# SPDX-License-Identifier: Apache-2.0
"""Phone photos -> garments and pixels: what is read, what is left out, and that senders are on one side only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.preprocessing import decode_photo
from tests.conftest import SHARED_DATA
from tests.fakes.phone_samples import senders, write_phone_photos, write_rows
from training.phone_photos import GARMENTS, is_validation_sender, load_phone_photos, read_phone_rows
from training.product_files import MAX_PHOTO_BYTES, DataError

PHOTOS = SHARED_DATA / "clothing-phone-photos"
SIZE: dict[str, Any] = {"height": 32, "width": 24, "fit": "pad", "progress": False}


def row(image: str, label: str = "T-Shirt", sender: str = "1") -> dict[str, str]:
    return {"image": image, "sender_id": sender, "label": label, "kids": "True"}


def test_photos_come_in_the_order_of_the_list_with_label_and_sender(tmp_path: Path) -> None:
    rows = write_phone_photos(tmp_path)
    found = load_phone_photos(tmp_path, **SIZE)
    assert [photo.image for photo in found.photos] == [one["image"] for one in rows]
    assert [(photo.label, photo.sender) for photo in found.photos] == [(o["label"], o["sender_id"]) for o in rows]
    assert found.pixels.shape == (len(rows), 32, 24, 3)
    assert found.pixels.dtype == np.uint8
    data = (tmp_path / "images" / "photo-3.jpg").read_bytes()
    assert np.array_equal(found.pixels[3], decode_photo(data, height=32, width=24, fit="pad"))
    assert found.skipped == Counter()
    part = found.subset([3, 0])
    assert [photo.image for photo in part.photos] == ["photo-3", "photo-0"]
    assert np.array_equal(part.pixels, found.pixels[[3, 0]])


def test_sides_are_disjoint_by_sender_and_together_everything(tmp_path: Path) -> None:
    write_phone_photos(tmp_path)
    both = load_phone_photos(tmp_path, **SIZE)
    held_back = load_phone_photos(tmp_path, **SIZE, validation=True)
    training = load_phone_photos(tmp_path, **SIZE, validation=False)
    assert {one.sender for one in held_back.photos}.isdisjoint({one.sender for one in training.photos})
    assert len(held_back) + len(training) == len(both)
    assert len(load_phone_photos(tmp_path, **SIZE, validation=True, limit=3)) == 3


def test_split_is_that_of_the_sender_alone_and_never_changes() -> None:
    # A change of these moves photos from training to validation: figures of older models would no longer compare.
    assert [name for name in map(str, range(60)) if is_validation_sender(name)] == VALIDATION_OF_SIXTY
    share = np.mean([is_validation_sender(str(i)) for i in range(4000)])
    assert share == pytest.approx(0.25, abs=0.03)


VALIDATION_OF_SIXTY = ["4", "5", "9", "19", "20", "25", "27", "33", "39", "47", "49", "50", "53", "58"]


@pytest.mark.parametrize(
    "image", ["../outside", "/etc/passwd", "a/b", "a\\b", "C:x", ".hidden", "", "bell\a", "..", "zero\0byte"]
)
def test_image_that_is_no_file_name_is_counted_and_never_opened(image: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_phone_photos(folder)
    good = (folder / "images" / "photo-0.jpg").read_bytes()
    (tmp_path / "outside.jpg").write_bytes(good)
    write_rows(folder, [row(image), row("photo-0")])
    skipped: Counter[str] = Counter()
    assert [one.image for one in read_phone_rows(folder, skipped)] == ["photo-0"]
    assert skipped == {"image is no file name": 1}


def test_labels_that_are_no_garment_are_counted(tmp_path: Path) -> None:
    write_rows(tmp_path, [row("a", "Not sure"), row("b", "Skip"), row("c", "t-shirt"), row("d", ""), row("e", "Hat")])
    skipped: Counter[str] = Counter()
    assert [one.image for one in read_phone_rows(tmp_path, skipped)] == ["e"]
    assert skipped == {"label 'Not sure'": 1, "label 'Skip'": 1, "label 't-shirt'": 1, "label ''": 1}


@pytest.mark.parametrize("missing", ["image", "sender_id", "label"])
def test_missing_column_is_named(missing: str, tmp_path: Path) -> None:
    columns = [column for column in ("image", "sender_id", "label", "kids") if column != missing]
    write_rows(tmp_path, [row("a")], columns)
    with pytest.raises(DataError, match=f"lacks the columns .*{missing}"):
        list(read_phone_rows(tmp_path, Counter()))


def test_kids_may_be_missing(tmp_path: Path) -> None:
    write_rows(tmp_path, [row("a")], ["image", "sender_id", "label"])
    assert [one.kids for one in read_phone_rows(tmp_path, Counter())] == [False]
    write_rows(tmp_path, [row("a")])
    assert [one.kids for one in read_phone_rows(tmp_path, Counter())] == [True]


def test_short_row_and_empty_list(tmp_path: Path) -> None:
    write_rows(tmp_path, [])
    with pytest.raises(DataError, match="can be read"):
        load_phone_photos(tmp_path, **SIZE)
    (tmp_path / "images.csv").write_text("image,sender_id,label\nalone\n", encoding="utf-8")
    skipped: Counter[str] = Counter()
    assert list(read_phone_rows(tmp_path, skipped)) == []
    assert skipped == {"label None": 1}
    (tmp_path / "images.csv").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="lacks the columns"):
        list(read_phone_rows(tmp_path, Counter()))


def test_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not hold images/ and images\.csv"):
        load_phone_photos(tmp_path / "nothing", **SIZE)


def test_photos_that_cannot_be_read_are_counted_and_leave_no_gap(tmp_path: Path) -> None:
    rows = write_phone_photos(tmp_path)
    images = tmp_path / "images"
    expected = load_phone_photos(tmp_path, **SIZE)
    (images / "photo-0.jpg").write_bytes(b"not a photo")
    (images / "photo-1.jpg").unlink()
    (images / "photo-2.jpg").write_bytes(b"\xff" * (MAX_PHOTO_BYTES + 1))
    (images / "photo-4.jpg").write_bytes(b"")
    (images / "photo-5.jpg").unlink()
    (images / "photo-5.jpg").mkdir()
    found = load_phone_photos(tmp_path, **SIZE)
    assert [one.image for one in found.photos] == ["photo-3", *(f"photo-{i}" for i in range(6, len(rows)))]
    assert found.skipped == {"unreadable photo": 3, "no photo": 1, "photo too large": 1}
    assert np.array_equal(found.pixels, expected.pixels[[3, *range(6, len(rows))]])


def test_garments_are_named_whatever_case_hyphen_or_number() -> None:
    assert GARMENTS["T-Shirt"].is_named_by(["Blue", "Tshirts"])
    assert GARMENTS["T-Shirt"].is_named_by(["tank"])  # near
    assert not GARMENTS["T-Shirt"].is_named_by(["shirt"])
    assert not GARMENTS["Shirt"].is_named_by(["short", "Shorts"])
    assert not GARMENTS["Hat"].is_named_by([])
    assert GARMENTS["Hat"].accepts_type("Headband")
    assert not GARMENTS["Hat"].accepts_type("caps")


def test_sender_names_of_the_tests_are_on_the_side_they_are_asked_for() -> None:
    assert all(map(is_validation_sender, senders(5, validation=True)))
    assert not any(map(is_validation_sender, senders(5, validation=False)))


@pytest.mark.data
def test_shared_phone_photos_have_both_sides() -> None:
    if not PHOTOS.is_dir():
        pytest.skip("THE PHONE PHOTOS ARE NOT READ: ../shared/data/clothing-phone-photos is not there")
    skipped: Counter[str] = Counter()
    rows = list(read_phone_rows(PHOTOS, skipped))
    assert {row.label for row in rows} == set(GARMENTS)
    held_back = [row for row in rows if is_validation_sender(row.sender)]
    assert 0.1 < len(held_back) / len(rows) < 0.4
    found = load_phone_photos(PHOTOS, **SIZE, validation=True, limit=5)
    assert [one.image for one in found.photos] == [row.image for row in held_back[:5]]
