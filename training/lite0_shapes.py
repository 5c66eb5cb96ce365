# SPDX-License-Identifier: Apache-2.0
"""The shapes of EfficientNet-Lite0's layers, without torch."""

from __future__ import annotations

from dataclasses import dataclass

STEM_CHANNELS = 32
FEATURE_CHANNELS = 320  # of the last block
STRIDE = 32  # pixels per position of the features, in each direction


@dataclass(frozen=True)
class BlockShape:
    """One inverted residual block."""

    kernel: int
    stride: int
    expansion: int
    inputs: int
    outputs: int


def _stage(repeats: int, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> list[BlockShape]:
    first = BlockShape(kernel, stride, expansion, inputs, outputs)
    return [first, *[BlockShape(kernel, 1, expansion, outputs, outputs)] * (repeats - 1)]


LITE0_BLOCKS: tuple[BlockShape, ...] = (
    *_stage(1, 3, 1, 1, 32, 16),
    *_stage(2, 3, 2, 6, 16, 24),
    *_stage(2, 5, 2, 6, 24, 40),
    *_stage(3, 3, 2, 6, 40, 80),
    *_stage(3, 5, 1, 6, 80, 112),
    *_stage(4, 5, 2, 6, 112, 192),
    *_stage(1, 3, 1, 6, 192, FEATURE_CHANNELS),
)
