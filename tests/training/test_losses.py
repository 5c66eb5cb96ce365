# SPDX-License-Identifier: Apache-2.0
"""Cross entropies by hand: of tokens, of the query's tokens, of labels that not every product has."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")

from training.caption_dataset import AUXILIARY_LABELS, IGNORED  # noqa: E402
from training.losses import AUXILIARY_SHARE, label_loss, token_losses, token_weights  # noqa: E402

pytestmark = pytest.mark.torch

LABELS = torch.tensor([[1, 2, 0], [3, IGNORED, IGNORED]])


def test_each_token_has_its_nats_and_what_is_none_has_nothing() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 1] = 5.0
    first = -float(torch.log_softmax(logits[0, 0], dim=0)[1])
    losses = token_losses(logits, LABELS)
    assert losses.shape == LABELS.shape
    assert losses.flatten().tolist() == pytest.approx([first, math.log(4), math.log(4), math.log(4), 0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nats_are_counted_in_fp32_whatever_the_logits_are(dtype: Any) -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    losses = token_losses(logits, LABELS)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, token_losses(logits.float(), LABELS))
    assert label_loss(logits[:, 0], torch.tensor([0, 2])).dtype == torch.float32


def test_tokens_of_the_query_weigh_more_and_what_is_none_weighs_nothing() -> None:
    in_query = torch.tensor([[False, True, True], [True, False, False]])
    assert token_weights(LABELS, in_query, 1.5).tolist() == [[1.0, 1.5, 1.5], [1.5, 0.0, 0.0]]
    assert token_weights(LABELS, in_query, 1.0).tolist() == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]


def test_label_loss_is_the_sum_over_the_products_that_have_the_label() -> None:
    logits = torch.tensor([[2.0, 0.0], [9.0, 9.0], [0.0, 1.0]])
    nats = math.log1p(math.exp(-2)) + math.log1p(math.exp(1))
    assert float(label_loss(logits, torch.tensor([0, IGNORED, 0]))) == pytest.approx(nats)
    assert float(label_loss(logits, torch.full((3,), IGNORED))) == 0


def test_every_label_has_its_share() -> None:
    assert set(AUXILIARY_SHARE) == set(AUXILIARY_LABELS)
    assert AUXILIARY_SHARE["gender"] == pytest.approx(AUXILIARY_SHARE["article_type"] / 3)
