# SPDX-License-Identifier: Apache-2.0
"""The FLOPs and bytes of each stage of captioning, computed from a checkpoint's config.

FLOPs are those of matrix products and convolutions, a multiplication and an addition counting as two; norms, softmax,
GELU and biases are left out. Bytes are the weights, caches and activations that must be read, each counted once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from training import lite0_shapes

WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
CACHE_BYTES = {"fp32": 4, "fp16": 2, "int8": 4}  # the inputs and outputs of INT8 models are FP32


@dataclass(frozen=True, kw_only=True)
class CaptionerShape:
    """Sizes of encoder and decoder on which the cost depends."""

    image_height: int  # pixels
    image_width: int
    patch_size: int
    channels: int
    stem_channels: tuple[int, ...]  # empty for a plain ViT
    has_trunk: bool = False  # whether EfficientNet-Lite0 precedes the ViT, with the stem beside it at half the size
    encoder_width: int
    encoder_layers: int
    encoder_inner: int  # of the MLP
    width: int  # of the decoder
    layers: int
    inner: int
    vocab_size: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read the config.json of a `VisionEncoderDecoderModel` of ViT and GPT-2."""
        encoder, decoder = config["encoder"], config["decoder"]
        size = encoder["image_size"]
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return cls(
            image_height=height,
            image_width=width,
            patch_size=encoder["patch_size"],
            channels=encoder.get("num_channels", 3),
            stem_channels=tuple(encoder.get("stem_channels", ())),
            has_trunk=encoder.get("model_type") == "hybrid-vit",
            encoder_width=encoder["hidden_size"],
            encoder_layers=encoder["num_hidden_layers"],
            encoder_inner=encoder["intermediate_size"],
            width=decoder["n_embd"],
            layers=decoder["n_layer"],
            inner=decoder.get("n_inner") or 4 * decoder["n_embd"],
            vocab_size=decoder["vocab_size"],
        )

    @property
    def patches(self) -> int:
        """The number of patches of a photo."""
        if self.has_trunk:
            rows, columns = (-(-side // lite0_shapes.STRIDE) for side in (self.image_height, self.image_width))
            return rows * columns
        patch = 2 ** len(self.stem_channels) if self.stem_channels else self.patch_size
        return (self.image_height // patch) * (self.image_width // patch)

    @property
    def positions(self) -> int:
        """The number S of encoder positions: the patches and [CLS]."""
        return self.patches + 1


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes read of one call."""

    flops: int
    bytes_read: int


def encoder_cost(shape: CaptionerShape, photos: int, precision: str) -> Cost:
    """Return the cost of the encoder for a batch of photos."""
    positions, width = shape.positions, shape.encoder_width
    stem, stem_weights = _stem(shape)
    layer_weights = 4 * width**2 + 2 * width * shape.encoder_inner
    attention = 2 * 2 * positions**2 * width  # scores, and values weighted by them
    flops = stem + shape.encoder_layers * (2 * positions * layer_weights + attention)
    weights = stem_weights + shape.encoder_layers * layer_weights
    pixels = photos * shape.image_height * shape.image_width * shape.channels
    return Cost(photos * flops, weights * WEIGHT_BYTES[precision] + pixels)


def prefill_cost(shape: CaptionerShape, photos: int, precision: str) -> Cost:
    """Return the cost of prefill: the keys and values of the cross-attention of all layers."""
    weights = shape.layers * 2 * shape.encoder_width * shape.width
    hidden = photos * shape.positions * shape.encoder_width
    return Cost(
        photos * 2 * shape.positions * weights,
        weights * WEIGHT_BYTES[precision] + hidden * CACHE_BYTES[precision],
    )


def step_cost(shape: CaptionerShape, photos: int, beams: int, position: int, precision: str) -> Cost:
    """Return the cost of a step: one token of every beam of `photos`, with `position` tokens before it."""
    width, rows = shape.width, photos * beams
    # 4 matrices of self-attention (query, key, value, output), 2 of cross-attention (query, output).
    weights = shape.layers * (6 * width**2 + 2 * width * shape.inner) + width * shape.vocab_size
    attention = shape.layers * 2 * 2 * width * (position + 1 + shape.positions)
    # The beams of a photo share the keys and values of its cross-attention.
    caches = shape.layers * 2 * width * (rows * position + photos * shape.positions)
    return Cost(
        rows * (2 * weights + attention),
        weights * WEIGHT_BYTES[precision] + caches * CACHE_BYTES[precision],
    )


def _stem(shape: CaptionerShape) -> tuple[int, int]:
    """Return the FLOPs per photo and the number of weights of the layers that turn pixels into patches."""
    if not shape.stem_channels:
        weights = shape.channels * shape.patch_size**2 * shape.encoder_width
        return 2 * shape.patches * weights, weights
    flops, weights, channels = 0, 0, shape.channels
    height, width = shape.image_height, shape.image_width
    if shape.has_trunk:
        for outputs, products, positions in lite0_shapes.convolutions(height, width):
            flops += 2 * outputs * products * positions
            weights += outputs * products
        height, width = height // 2, width // 2
        for outputs in shape.stem_channels:  # one convolution of stride 2 each
            height, width = -(-height // 2), -(-width // 2)
            flops += 2 * height * width * 9 * channels * outputs
            weights += 9 * channels * outputs
            channels = outputs
        projection = (lite0_shapes.FEATURE_CHANNELS + channels) * shape.encoder_width
        return flops + 2 * shape.patches * projection, weights + projection
    for outputs in shape.stem_channels:
        height, width = height // 2, width // 2  # the first convolution of a stage has stride 2, the second 1
        stage = 9 * channels * outputs + 9 * outputs * outputs
        flops += 2 * height * width * stage
        weights += stage
        channels = outputs
    projection = channels * shape.encoder_width
    return flops + 2 * shape.patches * projection, weights + projection


def least_seconds(cost: Cost, operations_per_second: float, bytes_per_second: float) -> tuple[float, str]:
    """Return the least time of a call by the roofline model (Williams, Waterman, Patterson 2009).

    Returns:
        Seconds, and the limit that decides: "compute" or "memory".
    """
    compute, memory = cost.flops / operations_per_second, cost.bytes_read / bytes_per_second
    return (compute, "compute") if compute >= memory else (memory, "memory")
