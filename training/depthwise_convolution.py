# SPDX-License-Identifier: Apache-2.0
"""A depthwise convolution whose backward pass is fast on a CPU in bfloat16.

torch 2.13 (oneDNN) has slow paths for some shapes. Measured one call at a time with 64 photos, channels last, on 2
cores of an AMD EPYC: the gradient of a 5x5 kernel takes 42 to 59 ms, that of a 3x3 kernel 0.6 ms; the gradient of the
input takes 67 to 83 ms with stride 2 and 1 to 3 ms with stride 1. So the gradient of a 5x5 kernel is computed as four
overlapping 3x3 ones, and stride 2 as stride 1 over an output gradient with zeros in between. The sums are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

_FAST_KERNEL = 3


class _Depthwise(torch.autograd.Function):
    """`conv2d` without padding, one kernel per channel."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        ctx.save_for_backward(padded, weight)
        ctx.stride = stride
        return functional.conv2d(padded, weight, None, stride, 0, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        padded, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_input = _input_gradient(gradient, padded, weight, ctx.stride) if ctx.needs_input_grad[0] else None
        of_weight = _weight_gradient(gradient, padded, weight, ctx.stride) if ctx.needs_input_grad[1] else None
        return of_input, of_weight, None


def depthwise_conv2d(padded: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """Convolve each channel with a kernel of its own.

    Args:
        padded: float [B, C, height, width], channels last, with its padding.
        weight: float [C, 1, k, k], k odd.
        stride: 1 or 2.

    Returns:
        float [B, C, (height - k) // stride + 1, (width - k) // stride + 1].
    """
    convolved: torch.Tensor = _Depthwise.apply(padded, weight, stride)  # type: ignore[no-untyped-call]  # by torch
    return convolved


def _backward(
    gradient: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor, stride: int, mask: list[bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.aten.convolution_backward(
        gradient, inputs, weight, None, [stride, stride], [0, 0], [1, 1], False, [0, 0], weight.shape[0], mask
    )
    return gradients


def _input_gradient(gradient: torch.Tensor, padded: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    if stride != 1:
        batch, channels, height, width = gradient.shape
        spread = gradient.new_zeros(
            (batch, channels, (height - 1) * stride + 1, (width - 1) * stride + 1),
        ).contiguous(memory_format=torch.channels_last)
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    kernel = weight.shape[-1]
    read_height, read_width = gradient.shape[-2] + kernel - 1, gradient.shape[-1] + kernel - 1
    read = padded[:, :, :read_height, :read_width]
    of_read = _backward(gradient, read, weight, 1, [True, False, False])[0]
    unread = (0, padded.shape[-1] - read_width, 0, padded.shape[-2] - read_height)
    return functional.pad(of_read, unread) if any(unread) else of_read


def _weight_gradient(gradient: torch.Tensor, padded: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    kernel = weight.shape[-1]
    if kernel <= _FAST_KERNEL:
        return _backward(gradient, padded, weight, stride, [False, True, False])[1]
    result = torch.empty_like(weight)
    last = kernel - _FAST_KERNEL
    offsets = sorted({*range(0, last, _FAST_KERNEL), last})
    height = (gradient.shape[-2] - 1) * stride + _FAST_KERNEL
    width = (gradient.shape[-1] - 1) * stride + _FAST_KERNEL
    for top in offsets:
        for left in offsets:
            window = padded[:, :, top : top + height, left : left + width]
            window = window.contiguous(memory_format=torch.channels_last)
            part = weight[:, :, top : top + _FAST_KERNEL, left : left + _FAST_KERNEL].contiguous()
            found = _backward(gradient, window, part, stride, [False, True, False])[1]
            result[:, :, top : top + _FAST_KERNEL, left : left + _FAST_KERNEL] = found
    return result
