# SPDX-License-Identifier: Apache-2.0
"""What a phone photo's query may be: the label's garments, weighted by how often they are named and by colour."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")
cv2 = pytest.importorskip("cv2", reason="needs the training extra (OpenCV)")

from training.cutouts import cut_out, foreground_mask  # noqa: E402
from training.losses import guided_targets, set_losses, soft_token_losses  # noqa: E402
from training.phone_photos import PhonePhoto, PhonePhotoSet  # noqa: E402
from training.phone_queries import MAX_RATIO, MIN_RATIO, colour_ratios, query_weights  # noqa: E402
from training.prepare_data import Product  # noqa: E402
from training.query_classes import QueryClasses  # noqa: E402

pytestmark = pytest.mark.torch

NAMES = ["A Blue T-shirt"] * 6 + ["B Red T-shirt"] * 3 + ["C Casual T-shirt"] + ["D Black Cap"] * 4


def phone(*labels: str) -> PhonePhotoSet:
    photos = [PhonePhoto(str(i), "s", label, False) for i, label in enumerate(labels)]
    return PhonePhotoSet(photos, np.zeros((len(labels), 32, 24, 3), np.uint8))


def classes() -> QueryClasses:
    return QueryClasses.from_names(NAMES, min_count=1)


def test_without_colours_queries_weigh_as_often_as_they_are_named() -> None:
    weights = query_weights(phone("T-Shirt", "Hat", "Skirt"), classes(), NAMES, None)
    by_caption = dict(zip(classes().captions, weights[0].tolist(), strict=True))
    assert by_caption == pytest.approx(
        {"": 0.0, "Blue T-shirt": 0.6, "Red T-shirt": 0.3, "Casual T-shirt": 0.1, "Black Cap": 0.0}
    )
    assert weights[1].max() == pytest.approx(1.0)
    assert not weights[2].any(), "no query names a skirt"


def test_a_colour_that_is_seen_outweighs_the_frequent_one() -> None:
    products = [Product(str(i), name, "Tshirts", name.split()[1], "Men") for i, name in enumerate(NAMES)]
    values = ["Blue", "Red", "Black"]
    ratios = colour_ratios(values, np.array([[0.1, 0.9, 0.0]], np.float32), products)
    # Of 13 products of these colours 6 are blue, 3 red and 4 black.
    assert ratios["red"][0] == pytest.approx(0.9 / (3 / 13), rel=1e-5)
    assert ratios["black"][0] == pytest.approx(MIN_RATIO)
    weights = dict(zip(classes().captions, query_weights(phone("T-Shirt"), classes(), NAMES, ratios)[0], strict=True))
    assert weights["Red T-shirt"] > 5 * weights["Blue T-shirt"]
    assert weights["Casual T-shirt"] > 0, "a word that is no colour says nothing against it"


def test_every_word_of_a_colours_name_counts_and_ratios_are_bounded() -> None:
    products = [Product("1", "x", "Tshirts", "Navy Blue", "Men")] * 999 + [
        Product("2", "x", "Tshirts", "Off White", "")
    ]
    ratios = colour_ratios(["Navy Blue", "Off White"], np.array([[0.0, 1.0]], np.float32), products)
    assert set(ratios) == {"navy", "blue", "off", "white"}
    assert (ratios["white"][0], ratios["navy"][0]) == pytest.approx((MAX_RATIO, MIN_RATIO))


def test_thing_in_the_middle_is_cut_out() -> None:
    photo = np.full((96, 72, 3), (120, 150, 90), np.uint8)
    photo[30:70, 20:52] = (200, 30, 40)
    noise = np.random.default_rng(1).integers(-8, 9, photo.shape)
    photo = np.clip(photo.astype(int) + noise, 0, 255).astype(np.uint8)
    mask = foreground_mask(photo)
    assert mask[32:68, 22:50].mean() > 0.95
    assert mask[:20].mean() < 0.05
    cut = cut_out(photo)
    assert (cut[:20] == 255).mean() > 0.95
    assert (photo[:20] != 255).all(), "the photo itself stays"


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_photo_of_one_colour_keeps_an_ellipse(colour: int) -> None:
    mask = foreground_mask(np.full((40, 30, 3), colour, np.uint8))
    assert mask[20, 15]
    assert not mask[0, 0]
    assert 0.1 < mask.mean() < 0.9


# Losses


def test_guided_targets_stay_within_the_weights_and_between_both_opinions() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]))
    weights = torch.tensor([[0.0, 0.25, 0.75], [0.0, 0.0, 0.0]])
    found = guided_targets(logits, weights, 0.5)
    raw = torch.tensor([0.0, (0.2 * 0.25) ** 0.5, (0.1 * 0.75) ** 0.5])
    assert torch.allclose(found[0], raw / raw.sum(), atol=1e-6)
    assert not found[1].any(), "a photo without weights has no target"
    assert torch.allclose(guided_targets(logits, weights, 0.0)[0], weights[0], atol=1e-6)


def test_set_losses_are_the_nats_of_the_whole_set() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    sets = torch.tensor([[True, False, True]])
    assert float(set_losses(logits, sets)) == pytest.approx(-np.log(0.7), rel=1e-5)
    assert float(set_losses(logits, torch.zeros_like(sets))) == 0.0


def test_soft_token_losses_mix_label_and_neighbours() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    labels = torch.tensor([[0, 1, -100]])
    tokens = torch.tensor([[[1, 2], [0, 0], [0, 0]]])
    weights = torch.tensor([[[0.5, 0.5], [0.0, 0.0], [1.0, 0.0]]])
    found = soft_token_losses(logits, labels, tokens, weights, 0.4)
    expected = [0.6 * -np.log(0.5) + 0.4 * -np.log(0.25), -np.log(0.25), 0.0]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-5)
