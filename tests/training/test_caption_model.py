# SPDX-License-Identifier: Apache-2.0
"""The encoder behind its stem: what training leaves out, what evaluation sees, and BatchNorm's statistics."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")

from torch import nn  # noqa: E402

from tests.fakes.tiny_training import one_thread as one_thread  # noqa: E402
from training.caption_model import (  # noqa: E402
    ConvStem,
    ConvStemViTConfig,
    ConvStemViTModel,
    embedding_of,
    normalise,
    refresh_batch_statistics,
)

pytestmark = pytest.mark.torch

HEIGHT, WIDTH, PATCHES = 32, 24, 12


def config(patch_dropout: float = 0.0) -> ConvStemViTConfig:
    return ConvStemViTConfig(
        stem_channels=(4, 8, 8), patch_dropout=patch_dropout, image_size=(HEIGHT, WIDTH), patch_size=8, hidden_size=16,
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def photos(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) * 255


def test_stem_makes_one_position_of_each_patch() -> None:
    stem = ConvStem(config()).eval()
    assert stem.num_patches == PATCHES
    assert stem(normalise(photos())).shape == (3, PATCHES, 16)


def test_photo_that_is_no_multiple_of_the_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size 30x24 is not a multiple of the stem's stride 8"):
        ConvStem(ConvStemViTConfig(stem_channels=(4, 8, 8), image_size=(30, 24)))


def test_training_leaves_out_the_share_of_patches_and_never_the_class_position() -> None:
    torch.manual_seed(0)
    embeddings = ConvStemViTModel(config(patch_dropout=0.5)).embeddings
    embeddings.eval()
    whole = embeddings(normalise(photos()))
    embeddings.train()
    for module in embeddings.modules():  # the same statistics in both modes, to compare positions
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    first, second = embeddings(normalise(photos())), embeddings(normalise(photos()))
    assert whole.shape == (3, 1 + PATCHES, 16)
    assert first.shape == second.shape == (3, 1 + PATCHES // 2, 16)
    assert torch.equal(first[:, 0], whole[:, 0])
    for photo, kept in zip(whole, first, strict=True):
        positions = [int((photo == row).all(dim=1).nonzero()) for row in kept]
        assert len(set(positions)) == len(positions)
    assert not torch.equal(first, second)


def test_patch_dropout_is_off_in_evaluation_and_kept_in_the_config() -> None:
    torch.manual_seed(0)
    model = ConvStemViTModel(config(patch_dropout=0.9)).eval()
    assert model(pixel_values=normalise(photos())).last_hidden_state.shape == (3, 1 + PATCHES, 16)
    assert ConvStemViTConfig(**model.config.to_dict()).patch_dropout == 0.9


def test_at_least_one_patch_is_seen() -> None:
    embeddings = ConvStemViTModel(config(patch_dropout=0.99)).embeddings.train()
    assert embeddings(normalise(photos())).shape[1] == 2


def test_statistics_become_those_of_the_photos_and_the_settings_stay() -> None:
    torch.manual_seed(0)
    stem = ConvStem(config()).eval()
    first = stem.stages[0]
    convolution, norm = first[0], first[1]
    batches = [photos(8), 255 - photos(8)]
    refresh_batch_statistics(stem, batches)
    with torch.no_grad():
        outputs = [convolution(normalise(batch)).transpose(0, 1).flatten(1).numpy() for batch in batches]
    # An average over batches of each batch's own moments (the variance unbiased), as PreciseBN takes it.
    assert np.allclose(norm.running_mean, np.mean([one.mean(axis=1) for one in outputs], axis=0), atol=1e-5)
    assert np.allclose(norm.running_var, np.mean([one.var(axis=1, ddof=1) for one in outputs], axis=0), rtol=1e-4)
    assert norm.momentum == 0.1
    assert not stem.training


def test_embedding_is_the_mean_of_all_positions() -> None:
    hidden = torch.arange(12.0).view(1, 3, 4)
    assert embedding_of(hidden).tolist() == [[4.0, 5.0, 6.0, 7.0]]
