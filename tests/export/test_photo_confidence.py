# SPDX-License-Identifier: Apache-2.0
"""Fitting the confidence that a photo shows a product, on made embeddings."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the training extra (torch)")
pytest.importorskip("onnxruntime", reason="needs the export extra (onnxruntime)")

from captioner.photo_confidence import ConfidenceModel
from export.photo_confidence import (
    NO_PRODUCT_SHARE,
    EncodedSet,
    cross_fitted,
    figures,
    fitted,
    gaussian,
    logistic,
    table,
)

pytestmark = pytest.mark.torch

RNG = np.random.default_rng(5)
SPREAD = np.array([3.0, 1.0, 0.3, 0.1])


def unit(points: np.ndarray) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def photos(count: int, offset: float, odds: float) -> EncodedSet:
    """Photos whose embeddings lie `offset` away along the narrowest axis, with these log-odds of "no product"."""
    points = RNG.normal(size=(count, 4)) * SPREAD + np.array([5.0, 0, 0, offset])
    said = RNG.normal(odds, 1.5, count)
    return EncodedSet(1 / (1 + np.exp(-said)), unit(points), np.arange(count) % 2 == 0)


def start() -> ConfidenceModel:
    mean, whitening = gaussian([photos(2000, 0.0, 0.0).embeddings])
    return ConfidenceModel(
        weights="abc", mean=mean, whitening=whitening, bias=0.0, head_weight=1.0, distance_weight=0.0
    )


def test_gaussian_whitens_and_counts_its_sets_alike() -> None:
    first, second = photos(4000, 0.0, 0.0).embeddings, photos(40, 2.0, 0.0).embeddings
    mean, whitening = gaussian([first, second])
    assert mean == pytest.approx((first.mean(axis=0) + second.mean(axis=0)) / 2, abs=1e-5)
    alone_mean, alone = gaussian([first])
    white = (first - alone_mean) @ alone
    assert np.cov(white.T) == pytest.approx(np.eye(4), abs=0.1)
    assert np.allclose(whitening, np.tril(whitening))


def test_logistic_finds_the_true_odds() -> None:
    features = RNG.normal(size=(40_000, 2)) * np.array([1.0, 20.0]) + np.array([0.0, 300.0])
    odds = -1.0 + 2.0 * features[:, 0] + 0.1 * (features[:, 1] - 300)
    labels = (RNG.random(len(odds)) < 1 / (1 + np.exp(-odds))).astype(float)
    bias, first, second = logistic(features, labels, np.full(len(odds), 1 / len(odds)))
    assert (first, second) == pytest.approx((2.0, 0.1), rel=0.1)
    assert bias + 300 * second == pytest.approx(-1.0, abs=0.1)


def test_logistic_of_separable_photos_stays_finite() -> None:
    features = np.concatenate([np.zeros((50, 1)), np.ones((50, 1))])
    found = logistic(features, np.repeat([0.0, 1.0], 50), np.full(100, 0.01))
    assert np.isfinite(found).all()
    assert found[1] > 0


def test_confidence_is_calibrated_for_the_assumed_share() -> None:
    products, without = photos(4000, 0.0, -3.0), photos(4000, 0.6, 0.0)
    model = fitted(start(), [products], without)
    of_products = model.confidences(products.no_product, products.embeddings)
    of_others = model.confidences(without.no_product, without.embeddings)
    mean = (1 - NO_PRODUCT_SHARE) * of_products.mean() + NO_PRODUCT_SHARE * of_others.mean()
    assert mean == pytest.approx(1 - NO_PRODUCT_SHARE, abs=0.01)
    assert model.head_weight > 0
    assert model.distance_weight > 0


def test_figures_tell_what_the_distance_adds() -> None:
    products = {"studio": photos(400, 0.0, -3.0), "phone": photos(400, 0.1, -3.0)}
    without = {"textures": photos(100, 0.6, -1.0)}
    model = fitted(start(), list(products.values()), without["textures"])
    found = figures(model, products, without, {"landscapes": photos(200, 0.6, -1.0)})
    assert found["unsure"]["landscapes"]["photos"] == 200
    for name in ("textures", "landscapes"):
        assert found["unsure"][name]["both"] > found["unsure"][name]["head"]
        assert found["auroc"][name]["studio"]["both"] > found["auroc"][name]["studio"]["head"]
    assert "landscapes, phone" in table(found)


def test_no_photo_judges_itself() -> None:
    """The confidences of one half do not change with its own photos."""
    products, without = photos(200, 0.0, -3.0), photos(100, 0.6, -1.0)
    other = photos(100, 0.6, 4.0)
    second = ~without.first_half
    mixed = EncodedSet(
        np.where(second, other.no_product, without.no_product),
        np.where(second[:, None], other.embeddings, without.embeddings),
        without.first_half,
    )
    model = start()
    before = cross_fitted(model, {"studio": products}, {"others": without})
    after = cross_fitted(model, {"studio": products}, {"others": mixed})
    # The second half is judged by the first, which is the same.
    assert after["studio"][~products.first_half] == pytest.approx(before["studio"][~products.first_half])
    assert after["studio"][products.first_half] != pytest.approx(before["studio"][products.first_half])
