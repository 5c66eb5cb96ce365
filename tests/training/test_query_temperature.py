# SPDX-License-Identifier: Apache-2.0
"""One temperature for the query head, fitted on two domains of equal weight."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")

from safetensors.torch import load_file  # noqa: E402

from tests.conftest import jpeg  # noqa: E402
from tests.fakes.phone_samples import phone_photo, write_phone_photos  # noqa: E402
from tests.training.test_captioning import add_query_head, checkpoint  # noqa: E402
from training import query_temperature  # noqa: E402
from training.captioning import (  # noqa: E402
    QUERY_HEAD_BIAS,
    QUERY_HEAD_WEIGHT,
    WEIGHTS_FILE,
    CheckpointCaptioner,
    CheckpointError,
)
from training.prepare_data import is_validation  # noqa: E402
from training.query_temperature import (  # noqa: E402
    TEMPERATURES,
    Domain,
    calibrate,
    is_of_first_half,
    no_product_offset,
    phone_nats,
    studio_nats,
    word_nats,
    write,
)

pytestmark = pytest.mark.torch

VALUES = (0.5, 1.0, 2.0)
CLASSES = ["", "blue shirt", "red t-shirt", "tank"]


def log_softmax(*rows: list[float]) -> npt.NDArray[np.float32]:
    logs: npt.NDArray[np.float32] = torch.tensor(rows).log_softmax(dim=1).numpy()
    return logs


def test_nats_are_those_of_the_word_being_right_or_wrong() -> None:
    logits = [0.0, 1.0, 2.0]
    shares = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]])
    nats = word_nats(log_softmax(logits, logits), shares, np.array([True, False]), VALUES)
    for column, temperature in enumerate(VALUES):
        odds = np.exp(np.array(logits) / temperature)
        odds /= odds.sum()
        assert nats[0, column] == pytest.approx(-np.log(odds[1] + odds[2] / 2), abs=1e-5)
        assert nats[1, column] == pytest.approx(-np.log(1 - odds[0]), abs=1e-5)


def test_nats_of_a_studio_photo_are_those_of_its_querys_words() -> None:
    logs = log_softmax([0.0, 3.0, 1.0, 0.0], [0.0, 0.0, 0.0, 3.0])
    nats = studio_nats(logs, ["Lee Men Green Shirts", "Nike Tank"], CLASSES, (1.0,))
    odds = np.exp(logs.astype(np.float64))
    wrong_first, right_last = -np.log(1 - odds[0, 1]), -np.log(odds[0, 1])
    assert nats[0, 0] == pytest.approx((wrong_first + right_last) / 2, abs=1e-5)
    assert nats[1, 0] == pytest.approx(-np.log(odds[1, 3]), abs=1e-5)  # a query of one word


def test_nats_of_a_phone_photo_are_those_of_the_garment_by_whatever_word() -> None:
    classes = ["", "blue tee", "blue t-shirt", "black watch"]
    logs = log_softmax([0.0, 1.0, 0.5, 0.0], [0.0, 1.0, 0.5, 0.0])
    nats = phone_nats(logs, [phone_photo("T-Shirt"), phone_photo("Shoes")], classes, (1.0,))
    odds = np.exp(logs[0].astype(np.float64))
    assert nats[:, 0].tolist() == pytest.approx([-np.log(odds[1] + odds[2]), -np.log(1 - odds[1] - odds[2])], abs=1e-5)


def nats(*row: float, count: int = 4) -> np.ndarray:
    return np.array([row] * count)


def halves(count: int) -> np.ndarray:
    return np.arange(count) % 2 == 0


def test_domains_weigh_the_same_however_many_photos_they_have() -> None:
    many, few = Domain(nats(1.0, 2.0, 3.0, count=100), halves(100)), Domain(nats(9.0, 5.0, 2.0, count=2), halves(2))
    found = calibrate({"many": many, "few": few}, VALUES)
    assert found.temperature == 2.0
    assert (found.before, found.fitted) == (3.5, 2.5)
    assert found.domains == {"many": (2.0, 3.0, 3.0), "few": (5.0, 2.0, 2.0)}


def test_gain_is_believed_only_as_far_as_it_carries_over_to_the_other_half() -> None:
    domain = Domain(np.concatenate([nats(1.0, 2.0, 3.0), nats(3.0, 2.0, 1.0)]), np.arange(8) < 4)
    found = calibrate({"one": domain}, VALUES)
    assert found.cross_fitted == 3.0
    assert found.fitted == 2.0
    with pytest.raises(ValueError, match="all 4 photos of one belong to one half"):
        calibrate({"one": Domain(nats(1.0, 2.0, 3.0), np.ones(4, bool))}, VALUES)


def test_too_sure_a_head_gets_a_temperature_above_one() -> None:
    generator = np.random.default_rng(2)
    logits = 6 * generator.normal(size=(400, 5)).astype(np.float32)
    truth = [generator.choice(5, p=np.exp(row / 3) / np.exp(row / 3).sum()) for row in logits.astype(np.float64)]
    logs = torch.from_numpy(logits).log_softmax(dim=1).numpy()
    said = logs.argmax(axis=1)
    nats = word_nats(logs, np.eye(5)[said], said == np.array(truth), TEMPERATURES)
    found = calibrate({"one": Domain(nats, halves(400))}, TEMPERATURES)
    assert found.temperature == pytest.approx(3.0, rel=0.25)
    assert found.fitted <= found.cross_fitted < found.before


def test_halves_of_senders_do_not_depend_on_the_split() -> None:
    assert 0.4 < np.mean([is_of_first_half(str(i)) for i in range(1000)]) < 0.6
    assert is_of_first_half("4") == is_of_first_half("4")


def test_head_is_divided_and_nothing_else(tmp_path: Path) -> None:
    add_query_head(checkpoint(tmp_path))
    before = load_file(tmp_path / WEIGHTS_FILE)
    (tmp_path / "training.json").write_text(json.dumps({"step": 7}))
    write(tmp_path, 1.25)
    write(tmp_path, 1.6)
    after = load_file(tmp_path / WEIGHTS_FILE)
    for name, value in before.items():
        if name in (QUERY_HEAD_WEIGHT, QUERY_HEAD_BIAS):
            assert after[name].dtype == value.dtype == torch.float16
            assert torch.allclose(after[name].float(), value.float() / 2, atol=2e-3)
        else:
            assert torch.equal(after[name], value)
    assert json.loads((tmp_path / "training.json").read_text()) == {
        "step": 7,
        "query_temperature": 2.0,
        "no_product_offset": 0.0,
    }
    CheckpointCaptioner.load(tmp_path)


def test_checkpoint_without_a_head_gets_none(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    before = (tmp_path / WEIGHTS_FILE).read_bytes()
    with pytest.raises(CheckpointError, match=r"has no encoder\.query_head"):
        write(tmp_path, 2.0)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == before


def test_command_fits_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = ["", "blue t-shirt", "blue shirt", "blue dress", "blue jeans", "blue shorts", "blue skirt", "blue shoes"]
    add_query_head(checkpoint(tmp_path / "checkpoint"), classes, len(classes), scale=4.0)
    write_phone_photos(tmp_path / "phone", validation_senders=8)
    names = [name for i in range(1000) if is_validation(name := f"Puma {i} Blue Shirt")][:8]
    write_studio(tmp_path / "studio", names)
    arguments = ["--checkpoint", "checkpoint", "--data", "studio", "--phone", "phone", "--write"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["query_temperature", *arguments])
    query_temperature.main()
    printed = capsys.readouterr().out
    temperature = float(next(line for line in printed.splitlines() if line.startswith("temperature")).split()[1])
    assert ("end of the range" in printed) == (temperature in (TEMPERATURES[0], TEMPERATURES[-1]))
    record = json.loads((tmp_path / "checkpoint" / "training.json").read_text())
    assert record["query_temperature"] == pytest.approx(temperature, abs=1e-3)


def test_command_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path)
    arguments = ["--checkpoint", str(tmp_path), "--data", str(tmp_path), "--phone", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["query_temperature", *arguments])
    with pytest.raises(SystemExit, match="has no query head"):
        query_temperature.main()


def write_studio(folder: Path, names: list[str]) -> None:
    """A set in a Kaggle layout of drawings under these names."""
    (folder / "images").mkdir(parents=True)
    lines = ["id,gender,articleType,baseColour,productDisplayName"]
    for i, name in enumerate(names):
        (folder / "images" / f"p{i}.jpg").write_bytes(jpeg("Shirt", "Blue", seed=i))
        lines.append(f"p{i},Men,Shirts,Blue,{name}")
    (folder / "styles.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_offset_lets_one_photo_in_a_hundred_of_the_worse_domain_be_nothing() -> None:
    random = np.random.default_rng(2)

    def domain(mean: float) -> npt.NDArray[np.float64]:
        logits = np.concatenate([random.normal(mean, 1.0, (1000, 1)), np.zeros((1000, 1))], axis=1)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    domains = [domain(-9.0), domain(-6.0)]
    offset = no_product_offset(domains)
    shares = []
    for one in domains:
        moved = one.copy()
        moved[:, 0] += offset
        shares.append(float((moved[:, 0] > moved[:, 1]).mean()))
    assert shares[1] == pytest.approx(0.01, abs=0.002)
    assert shares[0] <= shares[1]
