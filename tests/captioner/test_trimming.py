# SPDX-License-Identifier: Apache-2.0
"""The fit "trim": margins of one colour go, content stays."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from captioner.preprocessing import decode_photo, fit_photo
from captioner.trimming import find_content
from drawings.draw_samples import draw_sample

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom

HEIGHT, WIDTH = 80, 64
WHITE, GREY, BLACK = (255, 255, 255), (120, 121, 119), (0, 0, 0)


def content(width: int, height: int, seed: int = 1) -> Image.Image:
    """A picture in which no row or column is of one colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(10, axis=0).repeat(10, axis=1)[:height, :width])


def framed(inner: Image.Image, size: tuple[int, int], at: tuple[int, int], ground: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("RGB", size, ground)
    picture.paste(inner, at)
    return picture


def encoded(picture: Image.Image, file_format: str, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def is_near(box: Box, expected: Box, pixels: float) -> bool:
    return all(abs(one - other) <= pixels for one, other in zip(box, expected, strict=True))


@pytest.mark.parametrize("ground", [WHITE, GREY, BLACK])
def test_margin_is_trimmed_to_four_percent_of_the_content(ground: tuple[int, int, int]) -> None:
    found = find_content(framed(content(50, 100), (150, 150), (20, 30), ground))
    assert found.box == (20 - 2, 30 - 4, 70 + 2, 130 + 4)
    assert found.ground == ground


def test_margins_of_one_side_are_trimmed_where_the_content_reaches_the_others() -> None:
    found = find_content(framed(content(100, 100), (100, 160), (0, 60), BLACK))
    assert found.box == (0, 56, 100, 160)
    assert found.ground == WHITE  # its border has many colours


def test_margins_narrower_than_four_percent_stay_as_they_are() -> None:
    assert find_content(framed(content(140, 140), (146, 148), (3, 4), GREY)).box == (0, 0, 146, 148)


def test_noise_of_jpeg_does_not_hide_a_margin() -> None:
    picture = framed(content(300, 400), (1000, 1200), (400, 500), GREY)
    read = Image.open(io.BytesIO(encoded(picture, "JPEG", quality=50)))
    read.load()
    assert is_near(find_content(read).box, (388, 484, 712, 916), 10)


def test_thing_in_a_margin_ends_it() -> None:
    picture = framed(content(50, 50), (150, 150), (50, 50), WHITE)
    picture.paste(BLACK, (140, 10, 142, 12))
    left, top, right, bottom = find_content(picture).box
    assert right >= 142
    assert top <= 10
    assert (left, bottom) == (50 - 4, 100 + 4)


def test_two_nested_margins_of_a_screenshot_are_trimmed() -> None:
    page = framed(content(50, 60), (100, 100), (25, 20), WHITE)
    found = find_content(framed(page, (140, 150), (20, 30), (40, 40, 60)))
    assert found.box == (20 + 25 - 2, 30 + 20 - 2, 20 + 75 + 2, 30 + 80 + 2)
    assert found.ground == WHITE


def test_content_keeps_no_more_than_the_innermost_margin() -> None:
    page = framed(content(100, 100), (102, 102), (1, 1), WHITE)
    found = find_content(framed(page, (150, 150), (20, 30), BLACK))
    assert found.box == (20, 30, 122, 132)


@pytest.mark.parametrize("colour", [WHITE, GREY, BLACK])
def test_picture_of_one_colour_stays_as_it_is(colour: tuple[int, int, int]) -> None:
    found = find_content(Image.new("RGB", (120, 90), colour))
    assert found.box == (0, 0, 120, 90)
    assert found.ground == colour


def test_thing_of_one_colour_is_content() -> None:
    found = find_content(framed(Image.new("RGB", (50, 50), (200, 30, 30)), (150, 150), (60, 20), WHITE))
    assert found.box == (58, 18, 112, 72)


def test_a_tenth_of_each_side_is_left_at_least() -> None:
    found = find_content(framed(Image.new("RGB", (2, 40), BLACK), (150, 100), (148, 0), WHITE))
    left, top, right, bottom = found.box
    assert right - left == 15
    assert right <= 150
    assert (top, bottom) == (0, 42)


@pytest.mark.parametrize("size", [(1, 1), (1, 16384), (16384, 1), (3, 4), (5000, 7)])
def test_any_size_has_content(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    for pixels in (np.full((size[1], size[0], 3), 9), rng.integers(0, 256, (size[1], size[0], 3))):
        picture = Image.fromarray(pixels.astype(np.uint8))
        left, top, right, bottom = find_content(picture).box
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert fit_photo(picture, height=HEIGHT, width=WIDTH, fit="trim").shape == (HEIGHT, WIDTH, 3)


def test_content_fills_the_encoders_size_and_its_margin_continues() -> None:
    inner = content(100, 100)
    pixels = fit_photo(framed(inner, (150, 150), (10, 40), GREY), height=HEIGHT, width=WIDTH, fit="trim")
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert (pixels[:8] == GREY).all()  # what fills it
    assert (pixels[-8:] == GREY).all()
    expected = np.asarray(inner.resize((60, 60), Image.Resampling.BICUBIC), int)  # 64 pixels for 108
    got = pixels[10:70, 2:62].astype(int)
    assert np.abs(got - expected)[2:-2, 2:-2].mean() < 12


def test_photo_without_margins_is_fitted_as_pad_does() -> None:
    picture = content(300, 200)
    trimmed, padded = (fit_photo(picture, height=HEIGHT, width=WIDTH, fit=fit) for fit in ("trim", "pad"))
    assert np.array_equal(trimmed, padded)


def test_large_jpeg_looks_the_same_although_it_is_decoded_at_a_fraction() -> None:
    picture = framed(draw_sample("Dress", "Red", None, 600, 800), (2400, 3000), (700, 900), WHITE)
    fast = decode_photo(encoded(picture, "JPEG", quality=95), height=HEIGHT, width=WIDTH, fit="trim")
    exact = fit_photo(picture, height=HEIGHT, width=WIDTH, fit="trim")
    assert np.abs(fast.astype(int) - exact.astype(int)).mean() < 5


def test_of_a_large_picture_a_part_of_the_pixels_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = framed(content(2000, 2000), (5000, 5000), (500, 1500), WHITE)
    resize = Image.Image.resize
    averaged: list[tuple[int, int]] = []

    def resized(self: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
        if resampling is not Image.Resampling.NEAREST:
            averaged.append(self.size)
        return resize(self, size, resampling)

    monkeypatch.setattr(Image.Image, "resize", resized)
    find_content(picture)
    assert averaged == [(640, 640)]
