# SPDX-License-Identifier: Apache-2.0
"""The measurement with hostile pictures: its arguments and order; the whole of it with a real Triton, in small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.robustness import command as hostile_photos
from benchmarks.robustness.command import ALONE, BESIDE_GOOD, BESIDE_HOSTILE, hostile_files, parse_args
from benchmarks.robustness.hostile_photos import BOMBS
from tests.conftest import MODELS, jpeg


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--data", "x", "--attackers", "0"],
        ["--data", "x", "--rounds", "0"],
        ["--data", "x", "--turn-seconds", "0"],
        ["--data", "x", "--only", "("],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(arguments)
    assert "error" in capsys.readouterr().err


def test_every_bomb_and_file_is_there_once_and_bombs_are_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile_photos, "BOMBS", dict.fromkeys(BOMBS, bytes))  # to make them takes seconds
    (tmp_path / "png").mkdir()
    for number in range(100):
        (tmp_path / "png" / f"{number}").write_bytes(b"%d" % number)
    names = [name for name, _ in hostile_files(tmp_path)]
    assert len({*names}) == len(names)
    assert {*BOMBS, *(f"png/{number}" for number in range(100))} < {*names}
    places = [place for place, name in enumerate(names) if name in BOMBS]
    assert max(later - earlier for earlier, later in zip(places, places[1:], strict=False)) < 10
    assert [name for name, _ in hostile_files(tmp_path, "^png/7")] == [
        "png/7",
        *(f"png/7{digit}" for digit in range(10)),
    ]


def test_folders_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hostile_photos.main(["--data", str(tmp_path / "none")]) == 2
    (tmp_path / "0.jpg").write_bytes(b"x")
    assert hostile_photos.main(["--data", str(tmp_path), "--bad-images", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="needs the embedded extra (nvidia-pytriton)")
def test_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (MODELS / "gpt2_step" / "1" / "model.onnx").is_file():
        pytest.skip("HOSTILE PICTURES BESIDE GOOD ONES ARE NOT TESTED: model_repository has no models")
    for number, (garment, colour) in enumerate((("Handbag", "Red"), ("Shirt", "Blue"), ("Dress", "Black"))):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(garment, colour, seed=number))
    output = tmp_path / "record.json"
    arguments = ["--rounds", "1", "--warm-seconds", "0", "--turn-seconds", "1", "--only", "scans|texts|% of a png"]
    arguments += ["--model-repository", str(MODELS), "--output", str(output)]
    assert hostile_photos.main(["--data", str(tmp_path), *arguments]) == 0
    record = json.loads(output.read_text())
    alone = record["one_by_one"]
    assert {*alone["statuses"]} == {"OK", "INVALID_ARGUMENT"}
    assert sum(alone["statuses"].values()) == alone["files"] > 20
    assert 0.1 < alone["most_cpu_seconds"] < 2
    assert "scans" in alone["most_expensive"][0]["name"]
    assert {*record["turns"]} == {ALONE, BESIDE_HOSTILE, BESIDE_GOOD}
    assert all(turn["answers"] > 0 and not turn["failures"] for turn in record["turns"].values())
    assert {*record["hostile_statuses"]} <= {"OK", "INVALID_ARGUMENT"}
    assert record["p99_ratio"] > 0
    assert "p99 beside hostile callers" in capsys.readouterr().out
