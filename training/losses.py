# SPDX-License-Identifier: Apache-2.0
"""The losses of training: captions, auxiliary labels, queries, and the similarity of photos and titles."""

from __future__ import annotations

import torch
from torch.nn import functional

from training.caption_dataset import IGNORED

AUXILIARY_SHARE = {"article_type": 1.0, "colour": 1.5, "gender": 1 / 3}


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each token in nats, float32 [B, T'], 0 where `labels` is IGNORED.

    Args:
        logits: float [B, T', V].
        labels: int64 [B, T'].
    """
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(labels)


def token_weights(labels: torch.Tensor, in_query: torch.Tensor, query_weight: float) -> torch.Tensor:
    """The weight of each token, float [B, T']: `query_weight` in the query, 1 elsewhere, 0 where there is no label."""
    return torch.where(in_query, query_weight, 1.0) * (labels != IGNORED)


def label_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Sum of the nats over the photos that have a class; logits float [B, C], classes int64 [B] -> scalar."""
    return functional.cross_entropy(logits.float(), classes, ignore_index=IGNORED, reduction="sum")


def soft_token_losses(
    logits: torch.Tensor, labels: torch.Tensor, tokens: torch.Tensor, weights: torch.Tensor, share: float
) -> torch.Tensor:
    """Nats of each token against a mixture of its label and the next tokens in the names of similar photos.

    Args:
        logits: float [B, T', V].
        labels: int64 [B, T'], IGNORED where there is none.
        tokens: int64 [B, T', k], next tokens in the names of similar photos.
        weights: float [B, T', k], their probabilities; where all are 0, the label is the whole target.
        share: of `tokens` in the mixture, 0 to 1.

    Returns:
        float32 [B, T'], 0 where there is no label.
    """
    log_probabilities = logits.float().log_softmax(dim=-1)
    hard = -log_probabilities.gather(2, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    soft = -(log_probabilities.gather(2, tokens) * weights).sum(dim=-1)
    known = share * (weights.sum(dim=-1) > 0)
    return ((1 - known) * hard + known * soft) * (labels != IGNORED)


def set_losses(logits: torch.Tensor, sets: torch.Tensor) -> torch.Tensor:
    """Nats of a set of classes, one of which is right (Cour, Sapp and Taskar 2011, "Learning from Partial Labels").

    Args:
        logits: float [B, C].
        sets: bool [B, C].

    Returns:
        Minus the logarithm of the whole set's probability, float32 [B]; 0 where the set is empty.
    """
    logits = logits.float()
    known = sets.any(dim=1)
    inside = logits.masked_fill(~sets, -1e9).logsumexp(dim=1)
    return (logits.logsumexp(dim=1) - inside) * known


def guided_targets(logits: torch.Tensor, weights: torch.Tensor, trust: float) -> torch.Tensor:
    """Targets for photos whose class is known only as a prior: the geometric mean of the prior and the model's output.

    So the model decides between classes that are likely a priori, and cannot settle on an unlikely one.

    Args:
        logits: float [B, C].
        weights: float [B, C], the prior, 0 for classes that are certainly wrong; rows sum to 1, or to 0.
        trust: exponent of the model's probability, 0 to 1; that of the prior is 1 - `trust`.

    Returns:
        float32 [B, C] without gradient; rows sum to 1, or to 0.
    """
    own = logits.detach().float().log_softmax(dim=-1)
    guided = trust * own + (1 - trust) * weights.clamp(min=1e-12).log()
    guided = guided.masked_fill(weights <= 0, -torch.inf)
    return torch.nan_to_num(guided.softmax(dim=-1), nan=0.0)


def contrastive_loss(
    photos: torch.Tensor, titles: torch.Tensor, scale: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """Nats of finding each photo's title and each title's photo in the batch, summed over the pairs, halved.

    The loss of Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". Here pairs
    with the same name are not negatives of each other.

    Args:
        photos: float [B, D], L2-normalised.
        titles: float [B, D], L2-normalised; row i belongs to photo i.
        scale: factor of the cosines.
        same: bool [B, B], which pairs have the same name.

    Returns:
        A scalar.
    """
    scores = (photos.float() @ titles.float().T) * scale
    others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    scores = scores.masked_fill(others, -1e9)
    right = torch.arange(len(scores), device=scores.device)
    return 0.5 * (
        functional.cross_entropy(scores, right, reduction="sum")
        + functional.cross_entropy(scores.T, right, reduction="sum")
    )
