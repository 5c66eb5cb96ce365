# SPDX-License-Identifier: Apache-2.0
"""Two processes with gloo end where one process ends that accumulates two micro-batches."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")
pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")
pytest.importorskip("torch.distributed", reason="needs a torch with torch.distributed")

from tests.conftest import ROOT  # noqa: E402
from tests.fakes.tiny_training import TINY, TINY_PAPER, drawn, new_trainer, train  # noqa: E402
from tests.fakes.tiny_training import one_thread as one_thread  # noqa: E402
from training.presets import Preset  # noqa: E402
from training.processes import Processes, processes_of_this_run  # noqa: E402
from training.trainer import STATE_FILE, Trainer  # noqa: E402

pytestmark = pytest.mark.torch

ACCUMULATING = dataclasses.replace(TINY_PAPER, name="tiny-accumulating", accumulation=2, epochs=1)
PRESETS = {preset.name: preset for preset in (TINY, TINY_PAPER, ACCUMULATING)}
# In the middle of the paper's second stage.
STOP = {"tiny": None, "tiny-paper": 9, "tiny-accumulating": None}

# Each process has a folder of its own, so that one sees which of them write; the state is read from the first's.
DRIVER = """
import gc, json, sys
from pathlib import Path
import torch
from tests.training.test_processes import PRESETS, STOP
from tests.fakes.tiny_training import drawn, new_trainer, resumed, train
from training.processes import processes_of_this_run
from training.trainer import StateError

torch.set_num_threads(1)
gc.freeze()  # each stage collects garbage, which would look through all that was imported
root = Path(sys.argv[1])

def main(processes):
    rank = processes.rank
    told = {"rank": rank, "count": processes.count, "is_main": processes.is_main}
    told["sum"] = processes.sum(rank + 1.0, 0.5)
    told["any"] = [processes.any(rank == 1), processes.any(False), processes.any(True)]
    for name, preset in PRESETS.items():
        data = drawn(preset)
        trainer = new_trainer(preset, data, processes)
        folder = root / name / f"rank{rank}"
        if STOP[name]:
            assert not train(trainer, folder, stop_after=STOP[name])
            processes.wait()  # until it is written
            trainer = resumed(preset, data, root / name / "rank0", processes)
        assert train(trainer, folder)
        torch.save({"model": trainer.model.state_dict(), "history": trainer.history}, root / f"{name}-{rank}.pt")
        processes.wait()
        try:
            trainer.load_state(folder / "state")
        except StateError as error:
            told["refused"] = str(error)
    (root / f"told-{rank}.json").write_text(json.dumps(told))

with processes_of_this_run() as processes:
    main(processes)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two processes for each tiny preset, started as `torchrun` starts them."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    environment = {
        name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}
    } | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(folder / "driver.py"), str(folder)], cwd=folder, env=environment, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def told(folder: Path, rank: int) -> dict[str, Any]:
    return dict(json.loads((folder / f"told-{rank}.json").read_text(encoding="utf-8")))


def test_processes_know_their_place_and_agree_on_sums(two: Path) -> None:
    for rank in (0, 1):
        answer = told(two, rank)
        assert (answer["rank"], answer["count"], answer["is_main"]) == (rank, 2, rank == 0)
        assert answer["sum"] == [3.0, 1.0]
        assert answer["any"] == [True, False, True]


@pytest.fixture(scope="module", params=PRESETS.values(), ids=lambda preset: preset.name)
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Preset, Trainer, Path]:
    """One process with as many micro-batches a step as the two have together, that nobody stopped."""
    preset: Preset = request.param
    folder = tmp_path_factory.mktemp("alone")
    trainer = new_trainer(dataclasses.replace(preset, accumulation=2 * preset.accumulation), drawn(preset))
    assert train(trainer, folder)
    return preset, trainer, folder


def test_two_processes_end_with_the_weights_of_one_that_accumulates(
    alone: tuple[Preset, Trainer, Path], two: Path
) -> None:
    """Through all stages of the paper, the run of two stopped and gone on from in the second."""
    preset, trainer, _ = alone
    first, second = (torch.load(two / f"{preset.name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    expected = trainer.model.state_dict()
    assert list(first["model"]) == list(expected)
    for name, value in expected.items():
        assert torch.equal(first["model"][name], second["model"][name]), name
        assert torch.allclose(first["model"][name], value, rtol=1e-5, atol=1e-6), name
    for mine, others, one in zip(first["history"], second["history"], trainer.history, strict=True):
        assert mine.keys() == one.keys()
        for key in mine.keys() - {"minutes"}:
            assert mine[key] == others[key] == pytest.approx(one[key], rel=1e-5), key


def test_only_the_first_process_writes(alone: tuple[Preset, Trainer, Path], two: Path) -> None:
    preset, _, folder = alone
    written = two / preset.name
    assert [path.name for path in written.iterdir()] == ["rank0"]
    for part in ("checkpoint", "state"):
        names = {path.name for path in (folder / part).iterdir()}
        assert {path.name for path in (written / "rank0" / part).iterdir()} == names
    record = json.loads((written / "rank0" / "checkpoint" / "training.json").read_text(encoding="utf-8"))
    assert record["processes"] == 2


def test_state_that_only_some_processes_find_is_refused_by_all(two: Path) -> None:
    """Else one would go on from it and the other begin anew."""
    for rank in (0, 1):
        refused = told(two, rank)["refused"]
        assert "only 1 of 2 processes find" in refused
        assert STATE_FILE in refused
        assert "give --state a folder that every host reads" in refused


# Alone


def test_process_alone_is_the_first_and_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = torch.nn.Linear(2, 2)
    with processes_of_this_run() as processes:
        assert processes == Processes(0, 1, torch.device("cpu"))
        assert processes.is_main
        assert processes.sum(1.5, 2.0) == [1.5, 2.0]
        assert (processes.any(True), processes.any(False)) == (True, False)
        assert processes.share_gradients_of(model) is model
        with processes.accumulating(model, last=False):
            processes.wait()
        assert not torch.distributed.is_initialized()
