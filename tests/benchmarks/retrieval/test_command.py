# SPDX-License-Identifier: Apache-2.0
"""The whole benchmark on a small set of drawings: a run, a calibration, and what is left of them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("ir_measures", reason="needs the development group")

from benchmarks.retrieval import command
from benchmarks.retrieval.baselines import CAPTIONS, CONTENT, BaselineChoice
from benchmarks.retrieval.calibration import BY_WORDS
from benchmarks.retrieval.style_table import STYLE_SYSTEMS
from benchmarks.retrieval.systems import OURS
from captioner.model_contract import ModelContract
from drawings.draw_samples import training_samples
from search_gateway.ranking.calibration import RefinementCalibration
from tests.conftest import MODELS
from training.prepare_data import STYLE_COLUMNS

pytestmark = pytest.mark.slow

PRODUCTS = 240


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    (folder / "images").mkdir()
    with (folder / "styles.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, STYLE_COLUMNS)
        writer.writeheader()
        for picture, row in training_samples(PRODUCTS, seed=3, width=60, height=80):
            picture.save(folder / "images" / f"{row['id']}.jpg")
            # Names of their own, or all products that are alike would be on one side of the split.
            writer.writerow({**row, "productDisplayName": f"{row['id']} {row['productDisplayName']}"})
    return folder


def retrieval(data: Path, run: Path, *arguments: str | Path) -> str:
    """What the command prints; in this process, since to start another one takes longer than all else."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        flags = [
            "--pretrained",
            "missing",
            "--data",
            data,
            "--models",
            MODELS,
            "--run",
            run,
            "--threads",
            "1",
            *arguments,
        ]
        patch.setattr(sys, "argv", ["benchmarks.retrieval", *map(str, flags)])
        assert command.main() == 0
    return printed.getvalue()


def test_run_compares_all_systems_and_is_the_same_again(data: Path, tmp_path: Path) -> None:
    files = {
        name: tmp_path / f"{name}.{kind}" for name, kind in (("sheet", "png"), ("plot", "png"), ("output", "json"))
    }
    flags = [part for name, path in files.items() for part in (f"--{name}", path)]
    record = json.loads(retrieval(data, tmp_path / "run", "--json", *flags))
    assert all(path.stat().st_size > 0 for path in files.values())
    assert json.loads(files["output"].read_text(encoding="utf-8")) == record
    asked = record["queries"] + record["queries without a relevant product"]
    assert 0 < asked < PRODUCTS - record["gallery"], "the others of those held back are there to calibrate"
    assert len(record["systems"]) == 22
    assert {CONTENT, CAPTIONS} < set(record["systems"])
    for row in record["systems"].values():
        assert 0 <= row["nDCG@10"]["low"] <= row["nDCG@10"]["mean"] <= row["nDCG@10"]["high"] <= 1
    # The same questions again, from the kept hypotheses.
    again = json.loads(retrieval(data, tmp_path / "run", "--json"))
    for name, row in record["systems"].items():
        assert {**row, "ms per query": 0} == {**again["systems"][name], "ms per query": 0}
    assert "| ours: words and looks |" in retrieval(data, tmp_path / "run")
    _styles_are_compared_with_unchanged_titles(data, tmp_path / "run")
    _baselines_are_chosen(data, tmp_path / "run")


def _styles_are_compared_with_unchanged_titles(data: Path, run: Path) -> None:
    record = json.loads(retrieval(data, run, "--json", "--half", "calibration", "--title-style", "slug"))
    assert list(record["styles"]) == ["unchanged", "slug"]
    assert set(record["styles"]["slug"]) == set(STYLE_SYSTEMS)
    losses = record["styles"]["unchanged"][OURS]["minus unchanged"]
    assert all(loss["low"] == loss["high"] == 0 for loss in losses.values())


def _baselines_are_chosen(data: Path, run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "BASELINES", run / "baselines.json")
        retrieval(data, run, "--choose-baselines")
    record = json.loads((run / "baselines.json").read_text(encoding="utf-8"))
    assert sum(BaselineChoice.of_record(record["choice"]).weights.values()) == pytest.approx(1)
    assert set(record["tried"]) == {CONTENT, CAPTIONS}


def test_calibration_is_stored_with_the_checkpoint(data: Path, tmp_path: Path) -> None:
    retrieval(data, tmp_path / "run", "--calibrate", "--checkpoint", tmp_path)
    found = RefinementCalibration.load(tmp_path)
    assert found is not None
    assert found.weights == ModelContract.load(MODELS).weights
    assert 0 <= found.settings["visual_weight"] <= 1
    assert set(found.calibration["curves"]) == {*found.settings, BY_WORDS}
    # A run with these models takes over what was found.
    models = Path(shutil.copytree(MODELS, tmp_path / "models"))
    found.save(models)
    record = json.loads(retrieval(data, tmp_path / "run", "--json", "--models", models))
    assert record["settings"]["visual_weight"] == found.settings["visual_weight"]
