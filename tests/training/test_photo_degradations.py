# SPDX-License-Identifier: Apache-2.0
"""Each fault does what its name says, to pictures of any size, and the same again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from training.photo_degradations import DEGRADATIONS, NEARLY_WHITE, ground_mask

DRAWN_BY_CHANCE = {"rotation_15", "crop", "textured_ground", "screenshot", "plot_axes"}
FRAMES = {"screenshot", "plot_axes"}
SIZES = [(60, 80), (80, 60), (224, 224), (301, 97)]


def studio_photo(width: int = 60, height: int = 80, fill: tuple[int, int, int] = (200, 20, 40)) -> Image.Image:
    """A coloured garment with a white print and stripes, on white ground."""
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=fill)
    pen.rectangle((width * 4 // 10, height * 4 // 10, width * 6 // 10, height * 6 // 10), fill=(255, 255, 255))
    pen.line((width // 3, height // 4, width // 3, height * 3 // 4), fill=(20, 20, 90), width=2)
    return picture


def degraded(name: str, picture: Image.Image, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.asarray(DEGRADATIONS[name](picture, np.random.default_rng(seed))).astype(np.int64)


def test_all_faults_of_the_report_are_there() -> None:
    assert list(DEGRADATIONS) == [
        "jpeg_quality_20",
        "blur",
        "rotation_15",
        "crop",
        "grey_ground",
        "textured_ground",
        "screenshot",
        "plot_axes",
    ]


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_size_and_mode_stay_and_the_input_is_left_alone(name: str, size: tuple[int, int]) -> None:
    picture = studio_photo(*size)
    before = picture.tobytes()
    result = DEGRADATIONS[name](picture, np.random.default_rng(3))
    assert result.mode == "RGB"
    assert (result.size == size) == (name not in FRAMES)
    assert picture.tobytes() == before
    assert result.tobytes() != before


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_generator_alone_decides(name: str) -> None:
    picture = studio_photo()
    assert np.array_equal(degraded(name, picture, seed=1), degraded(name, picture, seed=1))
    others = [degraded(name, picture, seed) for seed in range(2, 6)]
    assert all(np.array_equal(degraded(name, picture, 1), one) for one in others) == (name not in DRAWN_BY_CHANCE)


def test_jpeg_ruins_noise_and_leaves_even_areas() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    error = np.abs(degraded("jpeg_quality_20", Image.fromarray(noise)) - noise).mean()
    assert error > 20
    assert np.abs(degraded("jpeg_quality_20", studio_photo()) - np.asarray(studio_photo())).mean() < 10


@pytest.mark.parametrize("scale", [1, 4])
def test_blur_grows_with_the_picture(scale: int) -> None:
    """An edge becomes the sum of the blur; its standard deviation is 1/60 of the shorter side."""
    width = 60 * scale
    edge = np.zeros((80 * scale, width, 3), dtype=np.uint8)
    edge[:, width // 2 :] = 255
    row = degraded("blur", Image.fromarray(edge))[40 * scale, :, 0] / 255
    steps = np.diff(row)
    positions = np.arange(1, width)
    mean = (steps * positions).sum()
    deviation = np.sqrt((steps * (positions - mean) ** 2).sum())
    assert deviation == pytest.approx(scale, rel=0.15)


def test_rotation_is_within_fifteen_degrees_both_ways_and_uncovers_white() -> None:
    bar = Image.new("RGB", (121, 121), (0, 0, 0))
    ImageDraw.Draw(bar).line((60, 0, 60, 120), fill=(255, 0, 0), width=3)
    angles = []
    for seed in range(40):
        result = degraded("rotation_15", bar, seed)
        red = (result[:, :, 0] > 128) & (result[:, :, 1] < 100)
        rows, columns = np.nonzero(red)
        inner = (rows > 20) & (rows < 100)
        angles.append(np.degrees(np.arctan(np.polyfit(rows[inner], columns[inner], 1)[0])))
        if abs(angles[-1]) > 2:
            assert result[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 200
    assert max(np.abs(angles)) < 15.5
    assert min(angles) < -10
    assert max(angles) > 10


def test_crop_shows_four_fifths_of_each_side_at_the_old_size() -> None:
    # Red counts the columns and green the rows, so that a pixel tells where it comes from.
    ramp = np.zeros((200, 200, 3), dtype=np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(200), np.arange(200)[:, None]
    corners = []
    for seed in range(30):
        result = degraded("crop", Image.fromarray(ramp), seed)
        assert result[100, -1, 0] - result[100, 0, 0] == pytest.approx(160, abs=3)
        assert result[-1, 100, 1] - result[0, 100, 1] == pytest.approx(160, abs=3)
        corners.append((result[0, 0, 0], result[0, 0, 1]))
    assert np.min(corners) < 5
    assert np.max(corners) > 35


def test_ground_is_what_is_nearly_white_and_joined_to_the_border() -> None:
    picture = studio_photo()
    mask = ground_mask(picture)
    assert mask.shape == (80, 60)
    assert mask[0, 0]
    assert mask[79, 59]
    assert not mask[40, 30]  # the white print stays
    expected = np.ones((80, 60), dtype=bool)
    expected[20:61, 15:46] = False
    assert np.array_equal(mask, expected)


def test_ground_is_followed_round_corners_but_not_across_them() -> None:
    rows = [
        "#########",
        "..#.....#",
        "#.#.###.#",
        "#...#.#.#",
        "#####.#.#",
        "#.###...#",
        "#.#######",
        "##.######",
        "#########",
    ]
    white = np.array([[character == "." for character in row] for row in rows])
    pixels = np.where(white, 255, 0).astype(np.uint8)
    mask = ground_mask(Image.fromarray(pixels).convert("RGB"))
    expected = white.copy()
    expected[5:8, 1:3] = False
    expected[5, 5] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(("shade", "is_ground"), [(NEARLY_WHITE, True), (NEARLY_WHITE - 1, False)])
def test_darkest_channel_decides_what_is_nearly_white(shade: int, is_ground: bool) -> None:
    assert ground_mask(Image.new("RGB", (60, 80), (255, shade, 255))).all() == is_ground


def test_grey_ground_is_even_and_the_garment_stays() -> None:
    result = degraded("grey_ground", studio_photo())
    assert (result[ground_mask(studio_photo())] == 128).all()
    assert np.array_equal(result[20:61, 15:46], np.asarray(studio_photo())[20:61, 15:46])


def test_share_of_white_in_edge_pixels_becomes_a_share_of_the_new_ground() -> None:
    large = studio_photo(240, 320, fill=(10, 10, 10))
    picture = large.resize((61, 80), resample=Image.Resampling.BILINEAR)
    result = degraded("grey_ground", picture)
    outline = result[40, :16]
    assert (np.diff(outline.max(axis=1)) <= 0).all()  # from grey down to black, without a white rim
    assert outline.max() == 128


@pytest.mark.parametrize("name", ["grey_ground", "textured_ground"])
def test_picture_without_studio_ground_stays_as_it_is(name: str) -> None:
    picture = Image.new("RGB", (60, 80), (120, 90, 60))
    ImageDraw.Draw(picture).rectangle((20, 20, 40, 40), fill=(255, 255, 255))
    assert np.array_equal(degraded(name, picture), np.asarray(picture))


def test_textured_ground_is_uneven_tinted_and_never_the_same() -> None:
    mask = ground_mask(studio_photo())
    means = []
    for seed in range(20):
        ground = degraded("textured_ground", studio_photo(), seed)[mask]
        assert ground.mean(axis=1).std() > 2
        means.append(ground.mean(axis=0))
    assert np.std(means, axis=0).min() > 10
    assert np.ptp(means, axis=1).max() > 20
    assert 30 < np.mean(means) < 200
