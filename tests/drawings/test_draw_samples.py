# SPDX-License-Identifier: Apache-2.0
"""Tests of the drawn product pictures; they need numpy and Pillow only."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drawings import draw_samples
from drawings.draw_samples import (
    COLOURS,
    GARMENTS,
    draw_sample,
    nearest_colour,
    sample_name,
    training_samples,
    write_catalogue,
)

HEADER = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"


def dominant_colour(picture: Image.Image, ignored: set[str]) -> str:
    """The name most pixels of the product bear, the ground and the ignored names left aside."""
    pixels = np.asarray(picture).reshape(-1, 3).astype(np.float64)
    ground = pixels[0]
    product = pixels[np.abs(pixels - ground).max(axis=1) > 5]
    distances = ((product[:, None] - np.array(list(COLOURS.values()))) ** 2).sum(axis=2)
    names = Counter(np.array(list(COLOURS))[distances.argmin(axis=1)].tolist())
    for name in ignored:
        del names[name]
    return names.most_common(1)[0][0]


@pytest.mark.parametrize("garment", GARMENTS)
def test_colour_of_the_drawing_is_the_one_it_is_named_after(garment: str) -> None:
    # The lenses, their gloss and the shadow take more room than the frame and have no colour.
    neutral = {"Black", "White", "Grey"} if garment == "Sunglasses" else set()
    for colour in COLOURS:
        for rng in (None, np.random.default_rng(3), np.random.default_rng(4)):
            picture = draw_sample(garment, colour, rng, 60, 80)
            assert dominant_colour(picture, neutral - {colour}) == colour


def test_every_colour_is_nearest_to_itself() -> None:
    assert [nearest_colour(rgb) for rgb in COLOURS.values()] == list(COLOURS)


def test_canonical_drawing_is_always_the_same() -> None:
    first = draw_sample("Dress", "Red")
    assert first.mode == "RGB"
    assert first.size == (240, 320)
    assert first.tobytes() == draw_sample("Dress", "Red").tobytes()


def test_same_seed_draws_the_same_and_another_seed_something_else() -> None:
    def drawn(seed: int) -> bytes:
        return draw_sample("Shoes", "Blue", np.random.default_rng(seed), 60, 80).tobytes()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_every_drawing_keeps_clear_of_the_edge_and_differs_from_the_others() -> None:
    seen = set()
    for garment in GARMENTS:
        pixels = np.asarray(draw_sample(garment, "Blue", None, 60, 80))
        assert pixels[0].min() > 225
        assert pixels[:, 0].min() > 225
        seen.add(pixels.tobytes())
    assert len(seen) == len(GARMENTS)


def test_unknown_garment_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'Sari'.*T-shirt, Shirt.*Socks"):
        draw_sample("Sari", "Red")


def test_unknown_colour_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'Teal'.*Black, White.*Orange"):
        draw_sample("Tie", "Teal")


def test_name_ends_in_colour_and_garment() -> None:
    assert sample_name("T-shirt", "Navy") == "Sketch Navy T-shirt"


def test_catalogue_has_the_kaggle_layout_and_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_samples, "COLOURS", {"Red": COLOURS["Red"]})
    for run in ("first", "second"):
        assert write_catalogue(tmp_path / run) == len(GARMENTS)
    text = (tmp_path / "first" / "styles.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == HEADER
    rows = list(csv.DictReader(text.splitlines()))
    assert rows[0]["articleType"] == "Tshirts"
    assert rows[0]["productDisplayName"] == "Sketch Red T-shirt"
    assert [row["id"] for row in rows] == [str(k + 1) for k in range(len(GARMENTS))]
    for row in rows:
        image = Path("images", f"{row['id']}.jpg")
        first = (tmp_path / "first" / image).read_bytes()
        assert first == (tmp_path / "second" / image).read_bytes()
        with Image.open(tmp_path / "first" / image) as picture:
            assert (picture.format, picture.size) == ("JPEG", (240, 320))


def test_training_samples_are_balanced_and_repeatable() -> None:
    total = 2 * len(GARMENTS) * len(COLOURS)
    samples = list(training_samples(total, 7, 30, 40))
    names = Counter(row["productDisplayName"] for _, row in samples)
    assert len(names) == len(GARMENTS) * len(COLOURS)
    assert set(names.values()) == {2}
    assert ",".join(samples[0][1]) == HEADER
    assert samples[0][0].size == (30, 40)
    again = next(iter(training_samples(1, 7, 30, 40)))
    assert again[0].tobytes() == samples[0][0].tobytes()
    assert len({picture.tobytes() for picture, _ in samples}) == total
