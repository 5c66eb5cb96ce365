# SPDX-License-Identifier: Apache-2.0
"""The shapes of EfficientNet-Lite0's layers, in a module that does not need torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STEM_CHANNELS = 32
FEATURE_CHANNELS = 320  # of the last block
STRIDE = 32  # pixels between neighbouring positions of the features, in both directions


@dataclass(frozen=True)
class BlockShape:
    """One inverted residual block: channels in and out, the expansion in between, kernel and stride of the filter."""

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


def convolutions(
    height: int, width: int, blocks: Sequence[BlockShape] = LITE0_BLOCKS
) -> Iterator[tuple[int, int, int]]:
    """Each convolution's (outputs, products per output and position, positions) for photos of a size in pixels."""
    height, width = -(-height // 2), -(-width // 2)
    yield STEM_CHANNELS, 9 * 3, height * width
    for block in blocks:
        wide = block.inputs * block.expansion
        if block.expansion != 1:
            yield wide, block.inputs, height * width
        height, width = -(-height // block.stride), -(-width // block.stride)
        yield wide, block.kernel**2, height * width
        yield block.outputs, wide, height * width
