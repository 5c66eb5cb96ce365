# SPDX-License-Identifier: Apache-2.0
"""What is served by default: the fastest variant that passes, and never one that does not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from captioner.model_contract import ModelContract, Precision  # noqa: E402
from export import install_models  # noqa: E402
from export.check_parity import Reference  # noqa: E402
from export.install_models import fastest, main, seconds_per_caption  # noqa: E402
from export.parity import Parity  # noqa: E402
from tests.fakes.exported_captioner import (  # noqa: E402
    export_graphs_once,
    files_of,
    random_photos,
    tiny_captioner,
    tiny_checkpoint,
    tiny_repository,
)

pytestmark = pytest.mark.torch


def rows(**equal: float) -> dict[Precision, Parity]:
    return {precision: Parity(precision, "onnxruntime", 10, equal={1: share})
            for precision, share in equal.items()}  # type: ignore[arg-type, misc]  # fmt: skip


def test_fastest_that_passes_wins() -> None:
    seconds: dict[Precision, float] = {"fp32": 0.02, "int8": 0.01}
    assert fastest(rows(fp32=1.0, int8=1.0), seconds) == "int8"
    assert fastest(rows(fp32=1.0, int8=0.9), seconds) == "fp32"
    assert fastest(rows(fp32=0.9, int8=1.0), {"fp32": 0.01, "int8": 0.02}) == "int8"
    assert fastest(rows(fp32=1.0, int8=1.0), {"fp32": 0.01, "int8": 0.02}) == "fp32"
    assert fastest(rows(fp32=0.9, int8=0.9), seconds) is None


def test_seconds_are_of_every_variant_and_positive(tmp_path_factory: pytest.TempPathFactory) -> None:
    captioners = {one: tiny_captioner(tmp_path_factory, one) for one in ("fp32", "int8")}
    seconds = seconds_per_caption(captioners, random_photos(9, 1))  # type: ignore[arg-type]
    assert seconds.keys() == captioners.keys()
    assert all(0 < value < 1 for value in seconds.values())


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Sequence[str]:
    """Arguments for `main`, which installs in tmp_path / "served"."""
    export_graphs_once(tmp_path_factory, monkeypatch)
    checkpoint = tiny_checkpoint(tmp_path_factory)
    arguments = ["install_models", "--checkpoint", checkpoint, "--output", tmp_path / "served", "--name", "tiny"]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--photos", "20"])
    return sys.argv


def test_without_photos_fp32_is_installed_and_it_says_so(
    run: Sequence[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    why = "the only variant that can be judged without --data"
    assert lines[-1] == f"fp32 is {why}: installed in {tmp_path / 'served'}"
    assert lines[1].startswith("fp32")
    assert lines[1].endswith("passes")
    assert any(line.startswith("fp32: ") and line.endswith(" ms per caption") for line in lines)
    assert files_of(tmp_path / "served") == files_of(tiny_repository(tmp_path_factory, "fp32"))
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def judge(monkeypatch: pytest.MonkeyPatch, **equal: float) -> None:
    """As if the variants had said so often what the checkpoint says; INT8 is the faster one."""

    def measure(repository: Path, reference: Reference, hosts: Sequence[str]) -> list[Parity]:
        assert hosts == ["onnxruntime"]
        precision = ModelContract.load(repository).precision
        return [rows(**equal)[precision]]

    monkeypatch.setattr(install_models, "measure", measure)
    monkeypatch.setattr(install_models, "seconds_per_caption", lambda *_: {"fp32": 0.02, "int8": 0.01})


def test_nothing_that_passes_leaves_the_old_repository(
    run: Sequence[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(tiny_repository(tmp_path_factory, "int8"), tmp_path / "served")
    before = files_of(tmp_path / "served")
    judge(monkeypatch, fp32=0.9, int8=0.9)
    assert main() == 1
    captured = capsys.readouterr()
    assert f"no variant passes: {tmp_path / 'served'} is left as it is" in captured.err
    assert "wanted 100%" in captured.out
    assert files_of(tmp_path / "served") == before
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_int8_is_not_installed_on_the_word_of_drawn_samples(
    run: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(monkeypatch, fp32=1.0, int8=1.0)
    assert main() == 0
    assert ModelContract.load(tmp_path / "served").precision == "fp32"
