# SPDX-License-Identifier: Apache-2.0
"""When two candidates are one picture."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from drawings.draw_samples import draw_sample
from search_gateway.ranking.duplicates import Picture, colour_grid, is_same_picture, normalised_url


def same(one: Picture, other: Picture) -> bool:
    return is_same_picture(one, other, min_cosine=0.96, max_difference=10)


def embedding(cosine: float = 1.0) -> npt.NDArray[np.float32]:
    return np.array([cosine, np.sqrt(1 - cosine**2)], np.float32)


def pixels(image: Image.Image, quality: int = 95) -> npt.NDArray[np.uint8]:
    """What is decoded of a JPEG of the picture, in the size of the small model."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB").resize((64, 80)), np.uint8)


def look(image: Image.Image, quality: int = 95, cosine: float = 1.0) -> Picture:
    return Picture(embedding=embedding(cosine), colour_grid=colour_grid(pixels(image, quality)))


SHIRT = draw_sample("Shirt", "Blue", width=240, height=320)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://shop.example/a.jpg", "HTTP://Shop.Example:80/a.jpg#top"),
        ("https://shop.example/a/", "https://shop.example:443/a"),
        (" https://shop.example/a?id=1 ", "https://shop.example/a?id=1"),
        ("photos/71.jpg", "photos/71.jpg"),
        ("", " "),
    ],
)
def test_spellings_of_one_address(one: str, other: str) -> None:
    assert normalised_url(one) == normalised_url(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://shop.example/a.jpg?id=1", "https://shop.example/a.jpg?id=2"),
        ("https://shop.example/A.jpg", "https://shop.example/a.jpg"),
        ("https://shop.example/a", "https://other.example/a"),
        ("https://shop.example:8443/a", "https://shop.example/a"),
        ("https://user@shop.example/a", "https://shop.example/a"),
    ],
)
def test_different_addresses_stay_different(one: str, other: str) -> None:
    assert normalised_url(one) != normalised_url(other)


def test_no_address_is_none() -> None:
    assert normalised_url("") == ""
    assert normalised_url("photos/71.jpg") == "photos/71.jpg"


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_may_pose_as_an_address(text: str) -> None:
    for url in (text, f"https://{text}", f"https://[{text}"):
        assert normalised_url(url) == normalised_url(url.strip())


def test_one_image_file_is_one_picture_whatever_it_looks_like() -> None:
    one = Picture(image_url="shop.example/a.jpg", embedding=embedding(0.1))
    assert same(one, Picture(image_url="shop.example/a.jpg", embedding=embedding()))
    assert not same(one, Picture(image_url="shop.example/b.jpg", embedding=embedding()))


def test_equal_thumbnail_files_are_one_picture() -> None:
    assert same(Picture(thumbnail=b"jpeg"), Picture(thumbnail=b"jpeg"))
    assert not same(Picture(thumbnail=b"jpeg"), Picture(thumbnail=b"other"))


def test_nothing_known_is_nothing_in_common() -> None:
    assert not same(Picture(), Picture())
    assert not same(Picture(thumbnail=b""), Picture(thumbnail=b""))
    assert not same(Picture(embedding=embedding()), Picture(embedding=embedding()))


def test_one_page_is_one_picture_only_where_it_looks_alike() -> None:
    page = Picture(page_url="shop.example/shirts", embedding=embedding())
    assert same(page, Picture(page_url="shop.example/shirts", embedding=embedding(0.97)))
    assert not same(page, Picture(page_url="shop.example/shirts", embedding=embedding(0.9)))
    assert not same(page, Picture(page_url="shop.example/shirts"))
    listing = [
        Picture(page_url="shop.example/shirts", image_url=f"shop.example/{i}.jpg", embedding=embedding())
        for i in (1, 2)
    ]
    assert not same(*listing), "a page that lists two products"


@pytest.mark.parametrize("quality", [95, 75, 50])
@pytest.mark.parametrize("scale", [0.5, 1, 2])
def test_a_picture_scaled_and_compressed_again_is_the_same(quality: int, scale: float) -> None:
    again = SHIRT.resize((int(240 * scale), int(320 * scale)), Image.Resampling.BICUBIC)
    assert same(look(SHIRT), look(again, quality, cosine=0.97))


@pytest.mark.parametrize(
    "other",
    [
        draw_sample("Shirt", "Green", width=240, height=320),
        draw_sample("T-shirt", "Blue", width=240, height=320),
        draw_sample("Dress", "Blue", width=240, height=320),
        SHIRT.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(10),
    ],
    ids=["another colour", "another cut", "another thing", "another pose"],
)
def test_embeddings_alone_do_not_make_one_picture(other: Image.Image) -> None:
    assert not same(look(SHIRT), look(other))


def test_pixels_alone_do_not_make_one_picture() -> None:
    assert not same(look(SHIRT), look(SHIRT.filter(ImageFilter.BLUR), cosine=0.5))


@pytest.mark.parametrize("shape", [(80, 64), (10, 8), (7, 5), (1, 1), (224, 224), (83, 61)])
def test_small_copy_of_any_size_is_the_mean_of_its_cells(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    copy = colour_grid(image)
    assert (copy.shape, copy.dtype) == ((10, 8, 3), np.uint8)
    if shape == (80, 64):
        assert copy[1, 2].tolist() == np.rint(image[8:16, 16:24].reshape(-1, 3).mean(0)).tolist()
    assert (colour_grid(np.full((*shape, 3), 200, np.uint8)) == 200).all()
