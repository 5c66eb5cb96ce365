# SPDX-License-Identifier: Apache-2.0
"""What captioning must compute and read, from a checkpoint's config alone: FLOPs and bytes of each stage.

A multiplication and the addition after it are two FLOPs. Counted are matrix products and convolutions; norms, softmax
and GELU are not, nor are biases. Bytes are weights, caches and activations that have to be read, once each. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from training import lite0_shapes

WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
CACHE_BYTES = {"fp32": 4, "fp16": 2, "int8": 4}  # INT8 models are so inside only


@dataclass(frozen=True, kw_only=True)
class CaptionerShape:
    """Sizes of encoder and decoder that decide the cost."""

    image_height: int  # pixels
    image_width: int
    patch_size: int
    channels: int
    stem_channels: tuple[int, ...]  # none: a plain ViT
    has_trunk: bool = False  # EfficientNet-Lite0 before the ViT, the stem beside it at half the size
    encoder_width: int
    encoder_layers: int
    encoder_inner: int  # of the MLP
    width: int  # of the decoder
    layers: int
    inner: int
    vocab_size: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From the config.json of a `VisionEncoderDecoderModel` of ViT and GPT-2."""
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
        if self.has_trunk:
            rows, columns = (-(-side // lite0_shapes.STRIDE) for side in (self.image_height, self.image_width))
            return rows * columns
        patch = 2 ** len(self.stem_channels) if self.stem_channels else self.patch_size
        return (self.image_height // patch) * (self.image_width // patch)

    @property
    def positions(self) -> int:
        """S: the patches and [CLS]."""
        return self.patches + 1


@dataclass(frozen=True)
class Cost:
    flops: int
    bytes_read: int


def encoder_cost(shape: CaptionerShape, photos: int, precision: str) -> Cost:
    """The encoder for `photos` at once."""
    positions, width = shape.positions, shape.encoder_width
    stem, stem_weights = _stem(shape)
    layer_weights = 4 * width**2 + 2 * width * shape.encoder_inner
    attention = 2 * 2 * positions**2 * width  # scores, and values weighted by them
    flops = stem + shape.encoder_layers * (2 * positions * layer_weights + attention)
    weights = stem_weights + shape.encoder_layers * layer_weights
    pixels = photos * shape.image_height * shape.image_width * shape.channels
    return Cost(photos * flops, weights * WEIGHT_BYTES[precision] + pixels)


def prefill_cost(shape: CaptionerShape, photos: int, precision: str) -> Cost:
    """Keys and values of the cross-attention of all layers."""
    weights = shape.layers * 2 * shape.encoder_width * shape.width
    hidden = photos * shape.positions * shape.encoder_width
    return Cost(
        photos * 2 * shape.positions * weights,
        weights * WEIGHT_BYTES[precision] + hidden * CACHE_BYTES[precision],
    )


def step_cost(shape: CaptionerShape, photos: int, beams: int, position: int, precision: str) -> Cost:
    """One token of every beam of `photos`, with `position` tokens before it."""
    width, rows = shape.width, photos * beams
    # Self-attention 4 (query, key, value, output), cross-attention 2 (query, output; the rest is prefill's).
    weights = shape.layers * (6 * width**2 + 2 * width * shape.inner) + width * shape.vocab_size
    attention = shape.layers * 2 * 2 * width * (position + 1 + shape.positions)
    # The beams of a photo share its cross-attention's keys and values.
    caches = shape.layers * 2 * width * (rows * position + photos * shape.positions)
    return Cost(
        rows * (2 * weights + attention),
        weights * WEIGHT_BYTES[precision] + caches * CACHE_BYTES[precision],
    )


def _stem(shape: CaptionerShape) -> tuple[int, int]:
    """FLOPs per photo and weights of what turns pixels into patches."""
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
    """The roofline: no machine of these limits is faster. Also which limit it is, "compute" or "memory"."""
    compute, memory = cost.flops / operations_per_second, cost.bytes_read / bytes_per_second
    return (compute, "compute") if compute >= memory else (memory, "memory")
