# SPDX-License-Identifier: Apache-2.0
"""Photos as users would take them: what changes, how often, and what may never change."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from training.augmentation import (  # noqa: E402
    NEARLY_WHITE,
    augment,
    blur,
    change_light,
    ground_mask,
    move,
    replace_ground,
)

pytestmark = pytest.mark.torch

HEIGHT, WIDTH = 40, 32


def of_one_colour(colour: tuple[int, int, int], count: int = 4, height: int = HEIGHT, width: int = WIDTH) -> Any:
    return torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(count, 3, height, width).clone()


def garment(colour: tuple[int, int, int], count: int = 4) -> Any:
    """A rectangle of one colour on white studio ground."""
    photos = of_one_colour((255, 255, 255), count)
    photos[:, :, 10:-10, 8:-8] = torch.tensor(colour, dtype=torch.float32).view(3, 1, 1)
    return photos


def generator(seed: int = 1) -> Any:
    return torch.Generator().manual_seed(seed)


def noise(count: int, height: int = HEIGHT, width: int = WIDTH) -> Any:
    return torch.rand(count, 3, height, width, generator=generator(5)) * 255


def changed(photos: Any, before: Any) -> Any:
    """Which photos of a batch are not as they were, bool [B]."""
    return (photos != before).flatten(1).any(dim=1)


# All together


def test_augmentation_depends_on_its_generator_alone() -> None:
    photos = noise(4)
    first = augment(photos, generator(1))
    torch.manual_seed(99)
    assert torch.equal(augment(photos, generator(1)), first)
    assert not torch.equal(augment(photos, generator(2)), first)


def test_augmentation_changes_each_photo_and_not_the_original() -> None:
    photos = noise(1).expand(6, -1, -1, -1).clone()
    before = photos.clone()
    result = augment(photos, generator())
    assert torch.equal(photos, before)
    assert result.shape == photos.shape
    assert result.dtype == torch.float32
    assert len({one.numpy().tobytes() for one in result}) == 6


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (32, 24), (80, 64)])
@pytest.mark.parametrize("count", [1, 9])
def test_photos_of_any_size_stay_photos(size: tuple[int, int], count: int) -> None:
    for seed in range(12):  # enough that each step is chosen in a batch of one
        result = augment(noise(count, *size), generator(seed))
        assert result.shape == (count, 3, *size)
        assert torch.isfinite(result).all()
        assert result.min() >= 0
        assert result.max() <= 255


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (206, 32, 42)])
def test_photos_of_one_colour_stay_in_range(colour: tuple[int, int, int]) -> None:
    result = augment(of_one_colour(colour, 64), generator())
    assert torch.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 255


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_garment_keeps_its_colour(channel: int) -> None:
    """The middle of a red, a green and a blue garment stays red, green and blue by far."""
    colour = [42, 42, 42]
    colour[channel] = 206
    middle = augment(garment((colour[0], colour[1], colour[2]), 200), generator())[:, :, HEIGHT // 2, WIDTH // 2]
    others = [other for other in range(3) if other != channel]
    for other in others:
        assert (middle[:, channel] > 2 * middle[:, other]).all()
    # Light and contrast act on all channels alike: equal ones stay equal, so no hue is turned.
    assert (middle[:, others[0]] - middle[:, others[1]]).abs().max() < 0.01


def test_a_grey_garment_stays_grey() -> None:
    middle = augment(garment((120, 120, 120), 200), generator())[:, :, HEIGHT // 2, WIDTH // 2]
    assert (middle.amax(dim=1) - middle.amin(dim=1)).max() < 0.01


# Moving


def test_white_ground_moves_in_from_the_edges() -> None:
    """What a moved photo uncovers must not be black."""
    result = move(of_one_colour((255, 255, 255), 64), generator())
    assert torch.allclose(result, torch.full_like(result, 255), atol=1e-3)
    dark = move(of_one_colour((0, 0, 0), 64), generator())
    assert (dark > 250).flatten(1).any(dim=1).sum() > 20  # something was uncovered in many, and it is white


def test_half_of_the_photos_are_mirrored() -> None:
    photos = of_one_colour((255, 255, 255), 200)
    photos[:, :, :, : WIDTH // 3] = 0
    result = move(photos, generator())
    left = result[:, :, :, : WIDTH // 2].mean(dim=(1, 2, 3)) < result[:, :, :, WIDTH // 2 :].mean(dim=(1, 2, 3))
    assert 70 < int(left.sum()) < 130


def test_photos_move_by_little() -> None:
    """A dot in the middle stays within 4 % of the photo's sides (and half a pixel) of the middle."""
    photos = of_one_colour((255, 255, 255), 200, 81, 61)
    photos[:, :, 39:42, 29:32] = 0
    weight = 255 - move(photos, generator())[:, 0]
    rows = torch.arange(81.0).view(1, -1, 1)
    columns = torch.arange(61.0).view(1, 1, -1)
    down = (weight * rows).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)) - 40
    across = (weight * columns).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)) - 30
    # The shift is in the turned and scaled frame: up to 1 / 0.8 of it, and both parts of it may add up.
    assert 1 < down.abs().max() < 81 * 0.04 / 0.8 * 1.3 + 0.5
    assert 1 < across.abs().max() < 61 * 0.04 / 0.8 / 0.93 * 1.4 + 0.5


def test_turning_keeps_shapes_on_photos_that_are_not_square() -> None:
    """A disc stays a disc but for the 7 % of the stretch, whichever way it is turned."""
    rows, columns = torch.meshgrid(torch.arange(80.0) - 39.5, torch.arange(48.0) - 23.5, indexing="ij")
    disc = ((rows**2 + columns**2).sqrt() > 15).float() * 255
    weight = (255 - move(disc.expand(100, 3, 80, 48).clone(), generator())[:, 0]) / 255
    total = weight.sum(dim=(1, 2))
    middle = torch.stack([(weight * axis).sum(dim=(1, 2)) / total for axis in (rows, columns)], dim=1)
    y = rows - middle[:, 0].view(-1, 1, 1)
    x = columns - middle[:, 1].view(-1, 1, 1)
    moments = torch.stack([(weight * one).sum(dim=(1, 2)) / total for one in (y * y, x * y, x * y, x * x)], dim=1)
    widths = torch.linalg.eigvalsh(moments.view(-1, 2, 2)).sqrt()
    assert (widths[:, 1] / widths[:, 0]).max() < 1.1


# Ground


def test_ground_is_the_white_that_is_joined_to_the_border() -> None:
    photos = garment((20, 20, 20), 2)
    mask = ground_mask(photos)
    assert mask.shape == (2, 1, HEIGHT, WIDTH)
    assert torch.equal(mask[:, 0], (photos[:, 0] == 255).float())


def test_white_inside_a_dark_outline_is_no_ground() -> None:
    """A white shirt must not become a hole in the wall."""
    photos = garment((20, 20, 20), 1)
    photos[:, :, 11:-11, 9:-9] = 255
    mask = ground_mask(photos)[0, 0]
    assert (mask[10:-10, 8:-8] == 0).all()
    assert (mask[:10] == 1).all()


def test_ground_reaches_round_corners() -> None:
    """Two corridors, joined at the right; the only way in is at the top left."""
    photos = of_one_colour((0, 0, 0), 1)
    photos[:, :, (1, 3), 1:-1] = 255
    photos[:, :, 2, -2] = 255
    assert not ground_mask(photos).any()
    photos[:, :, 0, 1] = 255
    assert torch.equal(ground_mask(photos)[0, 0], (photos[0, 0] == 255).float())


def test_ground_has_a_limit_of_darkness_in_every_channel() -> None:
    limit = int(NEARLY_WHITE)
    assert ground_mask(of_one_colour((limit + 1, limit + 1, limit + 1))).all()
    assert not ground_mask(of_one_colour((255, 255, limit))).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2)])
def test_photo_that_is_all_border_has_ground(size: tuple[int, int]) -> None:
    assert ground_mask(of_one_colour((255, 255, 255), 2, *size)).all()


def test_only_ground_is_replaced() -> None:
    photos = garment((206, 32, 42), 64)
    photos += generator_noise_on_garment(photos)
    result = replace_ground(photos, generator(), share=1.0)
    # All but the soft edge: one pixel.
    assert torch.equal(result[:, :, 11:-11, 9:-9], photos[:, :, 11:-11, 9:-9])
    away = result[:, :, :9]
    assert (away < NEARLY_WHITE).flatten(1).any(dim=1).float().mean() > 0.8
    assert result.min() >= 0
    assert result.max() <= 255


def generator_noise_on_garment(photos: Any) -> Any:
    """Some texture on what is not white, so that a change of it would show."""
    return (torch.rand(photos.shape, generator=generator(3)) * 20) * (photos < 230).all(dim=1, keepdim=True)


def test_grounds_differ() -> None:
    result = replace_ground(garment((206, 32, 42), 32), generator(), share=1.0)
    assert len({one.numpy().tobytes() for one in result}) == 32


def test_photo_without_ground_is_left_as_it_is() -> None:
    photos = noise(8) * 0.8
    assert torch.equal(replace_ground(photos, generator(), share=1.0), photos)


@pytest.mark.parametrize("step", [replace_ground, blur])
def test_share_of_none_of_some_and_of_all(step: Any) -> None:
    photos = garment((206, 32, 42), 400)
    before = photos.clone()
    assert torch.equal(step(photos, generator(), 0.0), before)
    assert changed(step(photos, generator(), 1.0), before).all()
    some = changed(step(photos, generator(), 0.25), before)
    assert 70 < int(some.sum()) < 130
    assert torch.equal(photos, before)


# Blur


def test_blur_softens_edges_and_keeps_the_mean_and_flat_parts() -> None:
    photos = garment((0, 0, 0), 16)
    result = blur(photos, generator(), 1.0)
    edge = result[:, 0, 10, WIDTH // 2]
    assert (edge > 255 * 0.5 * 0.25 - 1).all()  # half of a quarter at least,
    assert (edge < 255 * 0.25 + 1).all()  # a quarter at most
    assert torch.equal(result[:, :, 12:-12, 10:-10], photos[:, :, 12:-12, 10:-10])
    assert torch.allclose(result.mean(dim=(1, 2, 3)), photos.mean(dim=(1, 2, 3)), atol=0.01)
    assert torch.allclose(blur(of_one_colour((9, 99, 199)), generator(), 1.0), of_one_colour((9, 99, 199)), atol=1e-3)


# Light


def test_light_stays_within_what_a_photo_can_hold() -> None:
    photos = torch.cat([noise(100), of_one_colour((255, 255, 255), 50), of_one_colour((0, 0, 0), 50)])
    result = change_light(photos, generator())
    assert result.min() >= 0
    assert result.max() <= 255


def test_light_of_a_grey_photo_changes_by_as_much_as_it_says() -> None:
    """Without contrast, only brightness is left: 0.88 to 1.06."""
    factor = change_light(of_one_colour((100, 100, 100), 300), generator())[:, 0, 0, 0] / 100
    assert 0.88 <= factor.min() < 0.9
    assert 1.04 < factor.max() <= 1.0601
