# SPDX-License-Identifier: Apache-2.0
"""Photos are spoiled at their own size, each the same way every time, and judged like clean ones."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from training.photo_degradations import DEGRADATIONS  # noqa: E402
from training.prepare_data import Product  # noqa: E402
from training.robustness import CLEAN, degraded_pixels, generator_of, measure_robustness  # noqa: E402

pytestmark = pytest.mark.torch

PRODUCTS = [Product("7", "Nike Red Shirt", "Shirts", "Red", "Men"), Product("8", "Puma Red Cap", "Caps", "Red", "")]


class RedOrNot:
    """A captioner that knows two captions: the true ones of red photos, nonsense for others."""

    height, width, fit = 20, 10, "pad"
    photo_shape = {"height": height, "width": width, "fit": fit}

    def describe(self, pixels: Any, *, progress: str | None = None) -> Any:
        return pixels

    def served_captions(self, pixels: Any) -> list[str]:
        true = [product.name for product in PRODUCTS]
        reds = (pixels[:, 10, 5, 0] > 128) & (pixels[:, 10, 5, 1] < 128)
        return [name if red else "Green Tie" for name, red in zip(true, reds, strict=True)]


CAPTIONER: Any = RedOrNot()


def red_file(product: Product) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 80), (220, 10, 10)).save(file, "PNG")
    return file.getvalue()


def green(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", picture.size, (10, 220, 10))


def grey_noise(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A grey of the generator's choice."""
    return Image.new("RGB", picture.size, (int(rng.integers(256)),) * 3)


def test_clean_comes_first_and_each_degradation_is_judged() -> None:
    results = measure_robustness(CAPTIONER, PRODUCTS, red_file, degradations={"green": green}, progress=False)
    assert list(results) == [CLEAN, "green"]
    figures = ("last_word_accuracy", "last_two_normalised", "type_accuracy", "colour_accuracy")
    assert tuple(results[CLEAN]) == tuple(results["green"]) == figures
    assert results[CLEAN]["last_two_normalised"] == results[CLEAN]["colour_accuracy"] == 1
    assert set(results["green"].values()) == {0}


def test_all_published_degradations_are_the_default() -> None:
    results = measure_robustness(CAPTIONER, PRODUCTS, red_file, progress=False)
    assert DEGRADATIONS
    assert list(results) == [CLEAN, *DEGRADATIONS]


def test_picture_is_degraded_at_its_own_size_and_then_fitted() -> None:
    seen = []

    def look(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        seen.append(picture.size)
        return picture

    pixels = degraded_pixels(CAPTIONER, PRODUCTS, red_file, "look", look, progress=False)
    assert seen == [(60, 80)] * 2
    assert pixels.shape == (2, 20, 10, 3)
    assert (pixels[:, 0] == 255).all()  # padded with white above


def test_random_numbers_are_those_of_the_product_and_the_degradation() -> None:
    def greys(products: list[Product], name: str) -> list[int]:
        pixels = degraded_pixels(CAPTIONER, products, red_file, name, grey_noise, progress=False)
        return [int(value) for value in pixels[:, 10, 5, 0]]

    first, second = greys(PRODUCTS, "noise")
    assert greys(PRODUCTS[::-1], "noise") == [second, first]
    assert greys(PRODUCTS, "other noise") != [first, second]
    # sha256("noise/7") begins so; Python's own hash() of a text is another one in every process.
    expected = np.random.default_rng(0x7FF6FE6417516117)
    assert generator_of("noise", "7").random() == expected.random()
