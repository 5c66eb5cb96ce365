# SPDX-License-Identifier: Apache-2.0
"""Draws pictures of fashion products, in varied colours and proportions.

The garments themselves are in `clothes` and `accessories`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from drawings import accessories, clothes
from drawings.pen import RGB, Pen, Whim

COLOURS: dict[str, RGB] = {
    "Black": (30, 30, 34),
    "White": (242, 242, 240),
    "Grey": (146, 148, 152),
    "Blue": (38, 88, 186),
    "Red": (206, 32, 42),
    "Green": (36, 138, 70),
    "Yellow": (250, 212, 46),
    "Pink": (246, 146, 186),
    "Purple": (116, 54, 156),
    "Brown": (112, 70, 40),
    "Orange": (244, 126, 28),
}

SKETCH_BRAND = "Sketch"  # of the demo's shop, in its catalogue's titles

COLUMNS = (
    "id", "gender", "masterCategory", "subCategory", "articleType", "baseColour", "season",
    "year", "usage", "productDisplayName",
)  # fmt: skip
# Garment: master category, sub-category, article type, in the words of the Kaggle data set.
_KAGGLE = {
    "T-shirt": ("Apparel", "Topwear", "Tshirts"),
    "Shirt": ("Apparel", "Topwear", "Shirts"),
    "Dress": ("Apparel", "Dress", "Dresses"),
    "Jeans": ("Apparel", "Bottomwear", "Jeans"),
    "Shorts": ("Apparel", "Bottomwear", "Shorts"),
    "Skirt": ("Apparel", "Bottomwear", "Skirts"),
    "Handbag": ("Accessories", "Bags", "Handbags"),
    "Backpack": ("Accessories", "Bags", "Backpacks"),
    "Shoes": ("Footwear", "Shoes", "Casual Shoes"),
    "Cap": ("Accessories", "Headwear", "Caps"),
    "Watch": ("Accessories", "Watches", "Watches"),
    "Sunglasses": ("Accessories", "Eyewear", "Sunglasses"),
    "Tie": ("Accessories", "Ties", "Ties"),
    "Socks": ("Apparel", "Socks", "Socks"),
}

GARMENTS: dict[str, Callable[[Pen, Whim], None]] = {
    "T-shirt": clothes.draw_t_shirt,
    "Shirt": clothes.draw_shirt,
    "Dress": clothes.draw_dress,
    "Jeans": clothes.draw_jeans,
    "Shorts": clothes.draw_shorts,
    "Skirt": clothes.draw_skirt,
    "Handbag": accessories.draw_handbag,
    "Backpack": accessories.draw_backpack,
    "Shoes": accessories.draw_shoes,
    "Cap": accessories.draw_cap,
    "Watch": accessories.draw_watch,
    "Sunglasses": accessories.draw_sunglasses,
    "Tie": accessories.draw_tie,
    "Socks": clothes.draw_socks,
}


def nearest_colour(rgb: Sequence[float]) -> str:
    """Returns the name of the colour nearest to these red, green and blue values."""
    return min(COLOURS, key=lambda name: float(np.sum((np.subtract(COLOURS[name], rgb)) ** 2)))


def _shade(colour: str, rng: np.random.Generator | None) -> RGB:
    """Returns the colour, or with `rng` a shade that is clearly nearer to it than to the others."""
    base = COLOURS[colour]
    if rng is None:
        return base
    for _ in range(8):
        shade = np.array(base) * rng.uniform(0.82, 1.16)
        shade = np.clip(shade + rng.uniform(-8, 8, 3), 8, 250)
        if colour in ("Black", "White", "Grey"):
            shade = shade.mean() + (shade - shade.mean()) * 0.2
        # The shading of the picture makes the shade darker, so a darker one is tested, too.
        if nearest_colour(shade.tolist()) == colour == nearest_colour((shade * 0.86).tolist()):
            return round(shade[0]), round(shade[1]), round(shade[2])
    return base


def draw_sample(
    garment: str,
    colour: str,
    rng: np.random.Generator | None = None,
    width: int = 240,
    height: int = 320,
) -> Image.Image:
    """Draws a garment.

    Args:
        garment: one of `GARMENTS`.
        colour: one of `COLOURS`.
        rng: varies the drawing; without it the drawing is always the same.
        width: in pixels.
        height: in pixels.

    Returns:
        An RGB picture.

    Raises:
        ValueError: the garment or the colour is not one of those that can be drawn.
    """
    if garment not in GARMENTS:
        raise ValueError(f"unknown garment {garment!r}; choose one of: {', '.join(GARMENTS)}")
    if colour not in COLOURS:
        raise ValueError(f"unknown colour {colour!r}; choose one of: {', '.join(COLOURS)}")
    whim = Whim(rng)
    pen = Pen(_shade(colour, rng), whim, width, height)
    GARMENTS[garment](pen, whim)
    return pen.finish()


def sample_name(garment: str, colour: str) -> str:
    """Returns the product's name."""
    return f"{SKETCH_BRAND} {colour} {garment}"


def _row(sample_id: int, garment: str, colour: str) -> dict[str, str]:
    master, sub, article = _KAGGLE[garment]
    values = (str(sample_id), "Unisex", master, sub, article, colour, "Summer", "2026", "Casual",
              sample_name(garment, colour))  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _pairs() -> list[tuple[str, str]]:
    return [(garment, colour) for garment in GARMENTS for colour in COLOURS]


def write_catalogue(folder: Path) -> int:
    """Writes a varied picture of each garment in each colour, and styles.csv; returns the number of pictures."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for sample_id, (garment, colour) in enumerate(_pairs(), start=1):
        picture = draw_sample(garment, colour, np.random.default_rng(sample_id))
        picture.save(images / f"{sample_id}.jpg", quality=88)
        rows.append(_row(sample_id, garment, colour))
    with (folder / "styles.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def training_samples(count: int, seed: int, width: int, height: int) -> Iterator[tuple[Image.Image, dict[str, str]]]:
    """Yields varied pictures with their rows of styles.csv, every garment in every colour equally often, shuffled."""
    rng = np.random.default_rng(seed)
    pairs = _pairs()
    sample_id = 0
    while sample_id < count:
        for which in rng.permutation(len(pairs))[: count - sample_id]:
            sample_id += 1
            garment, colour = pairs[which]
            picture = draw_sample(garment, colour, rng, width, height)
            yield picture, _row(sample_id, garment, colour)


def contact_sheet(varied: bool = False, width: int = 120, height: int = 160) -> Image.Image:
    """Draws all garments (rows) in all colours (columns) on one picture."""
    sheet = Image.new("RGB", (width * len(COLOURS), height * len(GARMENTS)), "white")
    for index, (garment, colour) in enumerate(_pairs()):
        row, column = divmod(index, len(COLOURS))
        rng = np.random.default_rng(index + 1) if varied else None
        sample = draw_sample(garment, colour, rng, width, height)
        sheet.paste(sample, (column * width, row * height))
    return sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m drawings", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="folder for a catalogue: images/ and styles.csv")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE.png", help="draw all garments on one picture")
    parser.add_argument("--varied", action="store_true", help="vary the drawings on the sheet")
    options = parser.parse_args(arguments)
    if options.folder is None and options.contact_sheet is None:
        parser.error("give a folder for the catalogue, --contact-sheet, or both")
    if options.folder is not None:
        print(f"{write_catalogue(options.folder)} pictures in {options.folder}")
    if options.contact_sheet is not None:
        contact_sheet(options.varied).save(options.contact_sheet)
