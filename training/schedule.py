# SPDX-License-Identifier: Apache-2.0
"""The learning rate and the trained parts at each point of a run.

All functions depend only on the preset and on the step or epoch, so a resumed run needs no saved state for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import get_args

from torch import nn

from training.presets import Part, Preset


def learning_rate(step: int, total_steps: int, preset: Preset) -> float:
    """One-cycle rate (Smith and Topin 2018, "Super-Convergence"): a linear rise to the peak, then a cosine to zero.

    Args:
        step: counted from 0.
        total_steps: of the run.
        preset: has the peak and the share of the rise.
    """
    warmup = max(1, int(total_steps * preset.warmup_share))
    if step < warmup:
        return preset.peak_learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return preset.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def parts_that_move(preset: Preset, epoch: int) -> frozenset[Part]:
    """The parts that are trained in an epoch, counted from 0; the preset's last stage lasts to the end."""
    return frozenset(preset.stages[min(epoch, len(preset.stages) - 1)])


def part_of(name: str) -> Part | None:
    """The part that a parameter of `CaptionerInTraining` belongs to, by its name; None for parameters never trained.

    The projection between encoder and decoder, where there is one, belongs to the cross-attention, which reads it. The
    heads and the title encoder belong to the encoder. The encoder's pooler has no influence on a caption.
    """
    if ".pooler." in name:
        return None
    if ".trunk." in name:
        return "trunk"
    if ".crossattention." in name or ".ln_cross_attn." in name or ".enc_to_dec_proj." in name:
        return "cross_attention"
    return "decoder" if ".decoder." in name else "encoder"


def apply_stage(model: nn.Module, moving: Iterable[Part]) -> list[nn.Parameter]:
    """Freeze all parts of a `CaptionerInTraining` except some.

    Args:
        model: is changed.
        moving: the parts to train.

    Returns:
        The parameters that are trained.

    Raises:
        ValueError: a part does not exist.
    """
    wanted = set(moving)
    if unknown := wanted - set(get_args(Part)):
        raise ValueError(f"unknown parts {sorted(unknown)}: the parts are {', '.join(get_args(Part))}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in wanted)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
