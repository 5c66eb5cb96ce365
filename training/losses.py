# SPDX-License-Identifier: Apache-2.0
"""What training minimises: the caption's cross entropy and that of the auxiliary labels. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch.nn import functional

from training.caption_dataset import IGNORED

AUXILIARY_SHARE = {"article_type": 1.0, "colour": 1.5, "gender": 1 / 3}


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


def soft_token_losses(
    logits: torch.Tensor, labels: torch.Tensor, tokens: torch.Tensor, weights: torch.Tensor, share: float
) -> torch.Tensor:
    """Nats of each token where the target is a mixture: the label, and with `share` what similar photos' names say.

    Args:
        logits: float [B, T', V].
        labels: int64 [B, T'], IGNORED where there is none.
        tokens: int64 [B, T', k], the next tokens that the names of similar photos have.
        weights: float [B, T', k], their probabilities; all 0 where they say nothing, then the label has all.
        share: of the mixture, 0 to 1.

    Returns:
        float32 [B, T'], 0 where there is no label.
    """
    log_probabilities = logits.float().log_softmax(dim=-1)
    hard = -log_probabilities.gather(2, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    soft = -(log_probabilities.gather(2, tokens) * weights).sum(dim=-1)
    known = share * (weights.sum(dim=-1) > 0)
    return ((1 - known) * hard + known * soft) * (labels != IGNORED)


def set_losses(logits: torch.Tensor, sets: torch.Tensor) -> torch.Tensor:
    """Nats of "one of these classes": float [B, C], bool [B, C] -> float32 [B], 0 where the set is empty.

    The photo's class is known only to be in the set, so the probability of the whole set is what counts (Cour, Sapp and
    Taskar 2011, "Learning from Partial Labels").
    """
    logits = logits.float()
    known = sets.any(dim=1)
    inside = logits.masked_fill(~sets, -1e9).logsumexp(dim=1)
    return (logits.logsumexp(dim=1) - inside) * known


def guided_targets(logits: torch.Tensor, weights: torch.Tensor, trust: float) -> torch.Tensor:
    """What a model that knows only how likely classes are beforehand should say: the geometric mean of that and of what
    it says itself, so that it decides what the weights leave open and cannot settle on a class they think unlikely.

    Args:
        logits: float [B, C].
        weights: float [B, C], 0 for classes that are certainly wrong; rows add up to 1, or to 0.
        trust: exponent of the model's own probability, 0 to 1; the weights have the rest.

    Returns:
        float32 [B, C] without gradient; rows add up to 1, or to 0.
    """
    own = logits.detach().float().log_softmax(dim=-1)
    guided = trust * own + (1 - trust) * weights.clamp(min=1e-12).log()
    guided = guided.masked_fill(weights <= 0, -torch.inf)
    return torch.nan_to_num(guided.softmax(dim=-1), nan=0.0)


def contrastive_loss(
    photos: torch.Tensor, titles: torch.Tensor, scale: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """Sum over both directions and all pairs of the nats of "this title belongs to this photo", halved.

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; pairs that have the
    same name are no negatives of each other.

    Args:
        photos, titles: float [B, D], L2-normalised; row i belongs to row i.
        scale: what cosines are multiplied by.
        same: bool [B, B], which pairs have the same name.
    """
    scores = (photos.float() @ titles.float().T) * scale
    others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    scores = scores.masked_fill(others, -1e9)
    right = torch.arange(len(scores), device=scores.device)
    return 0.5 * (
        functional.cross_entropy(scores, right, reduction="sum")
        + functional.cross_entropy(scores.T, right, reduction="sum")
    )
