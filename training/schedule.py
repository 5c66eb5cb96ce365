# SPDX-License-Identifier: Apache-2.0
"""What moves at each point of a run, and how fast: the stages of the paper and the one-cycle learning rate.

Pure functions of (preset, step or epoch), so that a resumed run needs no memory of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import get_args

from torch import nn

from training.presets import Part, Preset


def learning_rate(step: int, total_steps: int, preset: Preset) -> float:
    """One cycle (Smith and Topin 2018, "Super-Convergence"): a linear rise to the peak, then a cosine to zero."""
    warmup = max(1, int(total_steps * preset.warmup_share))
    if step < warmup:
        return preset.peak_learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return preset.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def parts_that_move(preset: Preset, epoch: int) -> frozenset[Part]:
    """The parts that are trained in an epoch, counted from 0; the preset's last stage goes on to the end."""
    return frozenset(preset.stages[min(epoch, len(preset.stages) - 1)])


def part_of(name: str) -> Part | None:
    """Which part a parameter of `CaptionerInTraining` belongs to, by its name; None for what is never trained.

    The projection between encoder and decoder, where there is one, belongs to the cross-attention that reads it. The
    heads and the title encoder belong to the encoder they teach. The encoder's pooler is no part of a caption.
    """
    if ".pooler." in name:
        return None
    if ".trunk." in name:
        return "trunk"
    if ".crossattention." in name or ".ln_cross_attn." in name or ".enc_to_dec_proj." in name:
        return "cross_attention"
    return "decoder" if ".decoder." in name else "encoder"


def apply_stage(model: nn.Module, moving: Iterable[Part]) -> list[nn.Parameter]:
    """Let only these parts of a `CaptionerInTraining` be trained; returns their parameters.

    Raises:
        ValueError: not a part.
    """
    wanted = set(moving)
    if unknown := wanted - set(get_args(Part)):
        raise ValueError(f"no such part: {sorted(unknown)}; there are {', '.join(get_args(Part))}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in wanted)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
