# SPDX-License-Identifier: Apache-2.0
"""The convolutional part of EfficientNet-Lite0 as a torch module.

Architecture: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", in the Lite
variant that Google published in 2020: no squeeze-and-excitation, ReLU6 as the only activation, a stem and a last stage
of fixed width. The published weights were trained with TensorFlow's "SAME" padding, so it is used here.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from training.depthwise_convolution import depthwise_conv2d
from training.lite0_shapes import LITE0_BLOCKS, STEM_CHANNELS, BlockShape

_EPSILON = 1e-3  # of every BatchNorm, as in TensorFlow


class FrozenNormConv2d(nn.Module):
    """A convolution and the BatchNorm behind it, which keeps the statistics of ImageNet.

    A BatchNorm with fixed statistics multiplies each channel by one number and adds another. So `scale` multiplies the
    kernels instead of the features, which saves a pass over them. All three tensors are trained.

    The padding is TensorFlow's "SAME": ceil(size / stride) positions, the odd pixel at the bottom and at the right. It
    depends on the input's size; an exported graph contains it as a constant.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.scale = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def folded_weight(self) -> torch.Tensor:
        """The kernels multiplied by the scale, float [C', C / groups, k, k]."""
        return self.weight * self.scale.view(-1, 1, 1, 1)

    def padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(left, right, top, bottom) in pixels for an input of this size, the order of `functional.pad`."""
        kernel = self.weight.shape[-1]
        sides = []
        for size in (width, height):
            missing = max(0, (-(-size // self.stride) - 1) * self.stride + kernel - size)
            sides += [missing // 2, missing - missing // 2]
        return sides[0], sides[1], sides[2], sides[3]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map float [B, C, height, width] to float [B, C', ceil(height / stride), ceil(width / stride)]."""
        weight = self.folded_weight()
        left, right, top, bottom = self.padding(pixels.shape[-2], pixels.shape[-1])
        if self.groups == weight.shape[0] and self.training and torch.is_autocast_enabled(pixels.device.type):
            dtype = torch.get_autocast_dtype(pixels.device.type)
            padded = functional.pad(pixels.to(dtype), (left, right, top, bottom))
            return depthwise_conv2d(padded, weight.to(dtype), self.stride) + self.bias.to(dtype).view(1, -1, 1, 1)
        if left == right and top == bottom:
            return functional.conv2d(pixels, weight, self.bias, self.stride, (top, left), 1, self.groups)
        padded = functional.pad(pixels, (left, right, top, bottom))
        return functional.conv2d(padded, weight, self.bias, self.stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """Expand with 1x1, filter each channel with k x k, project with 1x1; add the input where shapes allow it."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        wide = shape.inputs * shape.expansion
        layers: list[nn.Module] = []
        if shape.expansion != 1:
            layers += [FrozenNormConv2d(shape.inputs, wide, 1), nn.ReLU6()]
        layers += [FrozenNormConv2d(wide, wide, shape.kernel, shape.stride, groups=wide), nn.ReLU6()]
        layers.append(FrozenNormConv2d(wide, shape.outputs, 1))
        self.layers = nn.Sequential(*layers)
        self.is_residual = shape.stride == 1 and shape.inputs == shape.outputs

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map float [B, inputs, h, w] to float [B, outputs, ceil(h / stride), ceil(w / stride)]."""
        projected: torch.Tensor = self.layers(features)
        return features + projected if self.is_residual else projected


class EfficientNetLite0(nn.Module):
    """Stem and blocks of EfficientNet-Lite0, without the classifier and the 1x1 convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(FrozenNormConv2d(3, STEM_CHANNELS, 3, stride=2), nn.ReLU6())
        self.blocks = nn.ModuleList(InvertedResidual(shape) for shape in LITE0_BLOCKS)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the features of photos.

        Args:
            pixels: float [B, 3, height, width], RGB, normalised to -1 to 1.

        Returns:
            float [B, 320, ceil(height / 32), ceil(width / 32)].
        """
        features: torch.Tensor = self.stem(pixels)
        for block in self.blocks:
            features = block(features)
        return features


def converted_state(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate the published weights to the names and tensors of `EfficientNetLite0`.

    Args:
        published: state dictionary of the .pth file, with the names of the package `efficientnet-lite-pytorch`.

    Returns:
        State dictionary for `EfficientNetLite0.load_state_dict`, float32.

    Raises:
        KeyError: a tensor is missing.
    """
    converted = {}
    for path, module in EfficientNetLite0().named_modules():
        if isinstance(module, FrozenNormConv2d):
            convolution, norm = _published_names(path)
            scale = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + _EPSILON)
            converted[f"{path}.weight"] = published[f"{convolution}.weight"]
            converted[f"{path}.scale"] = scale
            converted[f"{path}.bias"] = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
    return converted


def _published_names(path: str) -> tuple[str, str]:
    """The published names of a layer's convolution and norm, e.g. `_blocks.3._depthwise_conv`, `_blocks.3._bn1`."""
    if path.startswith("stem"):
        return "_conv_stem", "_bn0"
    _, block, _, layer = path.split(".")
    names = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
    if LITE0_BLOCKS[int(block)].expansion == 1:
        names = names[1:]
    convolution, norm = names[int(layer) // 2]
    return f"_blocks.{block}.{convolution}", f"_blocks.{block}.{norm}"
