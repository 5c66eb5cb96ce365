# SPDX-License-Identifier: Apache-2.0
"""One number that makes a captioner as sure as it is right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")

from training.prepare_data import Product, ProductSet  # noqa: E402
from training.temperature import LAST_NORM, calibrate, photo_nats, write  # noqa: E402

pytestmark = pytest.mark.torch

VALUES = (0.5, 1.0, 2.0)


class OverconfidentCaptioner:
    """Says token 1 with logit 4, and is right for every other photo only."""

    def batches(self, count: int, *, progress: str | None = None) -> list[tuple[int, int]]:
        return [(0, 3), (3, count)]

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def labels(self, names: list[str]) -> torch.Tensor:
        return torch.tensor([[int(name), -100] for name in names])

    def logits(self, hidden: np.ndarray, labels: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 4.0]).expand(len(labels), 2, 2)


def photos(count: int) -> ProductSet:
    products = [Product(str(i), str(i % 2), "", "", "") for i in range(count)]
    return ProductSet(products, np.zeros((count, 2, 2, 3), np.uint8))


def test_nats_are_those_of_the_divided_logits() -> None:
    nats, tokens = photo_nats(OverconfidentCaptioner(), photos(5), VALUES)  # type: ignore[arg-type]
    assert nats.shape == (5, 3)
    assert tokens.tolist() == [1] * 5
    for column, temperature in enumerate(VALUES):
        wrong, right = -torch.log_softmax(torch.tensor([0.0, 4.0]) / temperature, dim=0)
        assert nats[0, column] == pytest.approx(float(wrong))
        assert nats[1, column] == pytest.approx(float(right))


def test_too_sure_a_model_gets_a_temperature_above_one_and_fewer_nats() -> None:
    nats, tokens = photo_nats(OverconfidentCaptioner(), photos(8), VALUES)  # type: ignore[arg-type]
    found = calibrate(nats, tokens, np.arange(8) < 4, VALUES)
    assert found.temperature == 2.0
    assert found.fitted < found.before
    assert found.before == pytest.approx(nats[:, 1].mean())
    assert found.cross_fitted == pytest.approx(found.fitted)  # both halves are alike


def test_gain_is_believed_only_as_far_as_it_carries_over_to_the_other_half() -> None:
    # What fits one half is the worst for the other.
    nats = np.array([[1.0, 2.0, 3.0]] * 4 + [[3.0, 2.0, 1.0]] * 4)
    found = calibrate(nats, np.ones(8, np.int64), np.arange(8) < 4, VALUES)
    assert found.cross_fitted == 3.0
    assert found.fitted == 2.0
    with pytest.raises(ValueError, match="all 8 photos belong to one half"):
        calibrate(nats, np.ones(8, np.int64), np.ones(8, bool), VALUES)


def test_checkpoint_is_divided_in_its_last_normalisation_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = {name: torch.tensor([1.0, -3.0], dtype=torch.float16) for name in (*LAST_NORM, "encoder.weight")}
    save_file(before, tmp_path / "model.safetensors")
    (tmp_path / "training.json").write_text(json.dumps({"step": 7}))
    write(tmp_path, 1.25)
    write(tmp_path, 1.2)
    after = load_file(tmp_path / "model.safetensors")
    assert torch.equal(after["encoder.weight"], before["encoder.weight"])
    for name in LAST_NORM:
        assert after[name].dtype == torch.float16
        assert torch.allclose(after[name].float(), torch.tensor([1.0, -3.0]) / 1.5, atol=2e-3)
    assert json.loads((tmp_path / "training.json").read_text()) == {"step": 7, "temperature": 1.5}
