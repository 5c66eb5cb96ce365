# SPDX-License-Identifier: Apache-2.0
"""ICC profiles: colours are those that a browser shows, sRGB stays as it is, and hostile profiles change nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from benchmarks.robustness.image_files import encoded, noise
from captioner.image_colours import MAX_PROFILE_BYTES, to_srgb
from captioner.preprocessing import decode_photo, open_photo
from drawings.draw_samples import draw_sample
from tests.fakes.colour_profiles import DISPLAY_P3, PROPHOTO, SRGB, grey_profile, in_profile, profile, rgb_profile

DATA = Path(__file__).parents[3] / "shared" / "data"
PROPHOTO_PROFILE = rgb_profile(PROPHOTO, 1.8)
SRGB_OF_LCMS = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

# As many as in an artist's box; all lie well inside of sRGB, so that no gamut clips them.
COLOURS = np.array(
    [(200, 30, 30), (30, 160, 50), (40, 60, 190), (230, 210, 60), (240, 120, 180), (120, 80, 50), (128, 128, 128),
     (255, 255, 255)], np.uint8
)  # fmt: skip


def strip(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Squares of 16 pixels, side by side."""
    return np.repeat(np.repeat(colours[None], 16, axis=0), 16, axis=1)


def squares(data: bytes, **options: Any) -> npt.NDArray[np.int16]:
    """The colour in the middle of each square."""
    return np.asarray(open_photo(data, **options), np.int16)[8, 8::16]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(("primaries", "gamma"), [(PROPHOTO, 1.8), (DISPLAY_P3, 2.2), (SRGB[:, [1, 2, 0]], 2.2)])
def test_colours_are_those_that_a_browser_shows(file_format: str, primaries: Any, gamma: float) -> None:
    stored = strip(in_profile(COLOURS, primaries, gamma))
    options = {"quality": 100, "subsampling": 0} if file_format == "JPEG" else {"lossless": True}
    data = encoded(stored, file_format, icc_profile=rgb_profile(primaries, gamma), **options)
    assert np.abs(squares(data) - COLOURS).max() <= 4
    assert np.abs(squares(encoded(stored, "PNG")) - COLOURS).max() > 30, "nothing tells the colours then"


def test_red_in_prophoto_is_not_brown() -> None:
    red = Image.fromarray(in_profile(np.full((40, 40, 3), (200, 30, 30), np.uint8), PROPHOTO, 1.8))
    pixels = decode_photo(encoded(red, "PNG", icc_profile=PROPHOTO_PROFILE), height=20, width=20, fit="pad")
    assert np.abs(pixels.astype(int) - (200, 30, 30)).max() <= 3


def test_palette_and_transparent_pictures_are_converted_before_they_stand_on_white() -> None:
    stored = in_profile(COLOURS, PROPHOTO, 1.8)
    palette = Image.fromarray(np.repeat(np.repeat(np.arange(8, dtype=np.uint8)[None], 16, axis=0), 16, axis=1), "P")
    palette.putpalette(stored.tobytes())
    assert np.abs(squares(encoded(palette, "PNG", icc_profile=PROPHOTO_PROFILE)) - COLOURS).max() <= 4
    half = np.concatenate([strip(stored), np.full((16, 128, 1), 128, np.uint8)], axis=-1)
    expected = COLOURS * (128 / 255) + 127
    assert np.abs(squares(encoded(half, "PNG", icc_profile=PROPHOTO_PROFILE)) - expected).max() <= 4


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_is_converted(bits: int) -> None:
    """A gamma of 1 stores light itself: half of the light is the grey 188."""
    values = np.full((16, 16), 128, np.uint8) if bits == 8 else np.full((16, 16), 128 * 257, np.uint16)
    data = encoded(Image.fromarray(values), "PNG", icc_profile=grey_profile(1.0))
    assert np.abs(squares(data) - 188).max() <= 1


@pytest.mark.parametrize("icc_profile", [None, SRGB_OF_LCMS])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_srgb_is_not_touched(mode: str, file_format: str, icc_profile: bytes | None) -> None:
    if file_format == "JPEG" and mode in ("RGBA", "P"):
        return
    picture = draw_sample("Dress", "Red", None, 60, 80).convert(mode)
    plain = encoded(picture, file_format)
    options = {} if icc_profile is None else {"icc_profile": icc_profile}
    expected = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    assert np.array_equal(np.asarray(open_photo(encoded(picture, file_format, **options))), expected)


@pytest.mark.data
@pytest.mark.parametrize(
    "folder", ["clothing-phone-photos", "fashion-product-images-224", "fashion-product-images-small"]
)
def test_ordinary_photos_are_what_pillow_reads(folder: str) -> None:
    files = sorted((DATA / folder / "images").glob("*.jpg"))[::37][:100]
    if not files:
        pytest.skip(f"THE PHOTOS OF {folder} ARE NOT COMPARED: {DATA} is missing")
    for file in files:
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(open_photo(file.read_bytes())), np.asarray(picture.convert("RGB"))), file


# Profiles that change nothing

BAD_PROFILES = {
    "empty": b"",
    "text": b"no profile at all" * 20,
    "cut short": PROPHOTO_PROFILE[:200],
    "of grey": grey_profile(1.0),
    "of CMYK": profile(b"CMYK", {}),
    "a link between devices": PROPHOTO_PROFILE[:12] + b"link" + PROPHOTO_PROFILE[16:],
    "without tags": profile(b"RGB ", {}),
    "all black": rgb_profile(np.zeros((3, 3)), 1.8),
    "of multi-process elements": PROPHOTO_PROFILE + b"mpet",
    "too long": PROPHOTO_PROFILE + bytes(MAX_PROFILE_BYTES),
}


@pytest.mark.parametrize("name", BAD_PROFILES)
def test_profile_that_cannot_be_used_is_ignored(name: str) -> None:
    data = encoded(strip(COLOURS), "WEBP", lossless=True, icc_profile=BAD_PROFILES[name])
    assert np.array_equal(squares(data), COLOURS)


@given(st.lists(st.tuples(st.integers(0, len(PROPHOTO_PROFILE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
@settings(deadline=None)
def test_profile_with_wrong_bytes_is_used_or_ignored(changes: list[tuple[int, int]]) -> None:
    wrong = bytearray(PROPHOTO_PROFILE)
    for position, value in changes:
        wrong[position] = value
    conversion = to_srgb(bytes(wrong), "RGB")
    if conversion is not None:
        white = conversion.apply(Image.new("RGB", (1, 1), (255, 255, 255))).getpixel((0, 0))
        assert isinstance(white, tuple)
        assert min(white) > 240


@pytest.mark.parametrize("pixels", [1, 41 * 5, 41 * 36])
def test_picture_in_many_bands_equals_the_picture_in_one(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(37, 41), "PNG", icc_profile=PROPHOTO_PROFILE)
    whole = np.asarray(open_photo(data))
    monkeypatch.setattr("captioner.preprocessing._BAND_PIXELS", pixels)
    assert np.array_equal(np.asarray(open_photo(data)), whole)
