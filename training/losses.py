# SPDX-License-Identifier: Apache-2.0
"""What training minimises: the caption's cross entropy and that of the auxiliary labels. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch.nn import functional

from training.caption_dataset import IGNORED

AUXILIARY_SHARE = {"article_type": 1.0, "colour": 1.0, "gender": 1 / 3}


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats of each token, 0 where there is none; logits [B, T', V], labels int64 [B, T'] -> float32 [B, T']."""
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(labels)


def token_weights(labels: torch.Tensor, in_query: torch.Tensor, query_weight: float) -> torch.Tensor:
    """How much each token counts: `query_weight` for those of the query, 1 for the others, 0 where there is none."""
    return torch.where(in_query, query_weight, 1.0) * (labels != IGNORED)


def label_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Sum of the nats of one label over the products that have it; logits [B, classes], int64 [B] -> scalar."""
    return functional.cross_entropy(logits.float(), classes, ignore_index=IGNORED, reduction="sum")
