# SPDX-License-Identifier: Apache-2.0
"""The load test from its arguments to the record; the whole of it with a real Triton, as short as can be."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.common.photo_files import read_photos
from benchmarks.load import command as load
from benchmarks.load import phases
from benchmarks.load.command import parse_args
from benchmarks.load.phases import complaints_in
from benchmarks.load.table import load_table
from tests.conftest import MODELS, jpeg


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--data", "x", "--phases", "curve,other"],
        ["--data", "x", "--callers", "0"],
        ["--data", "x", "--rates", "0.5", "0"],
        ["--data", "x", "--rounds", "0"],
        ["--data", "x", "--address", "one:1"],
        ["--data", "x", "--address", "one:1", "--phases", "curve,soak"],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(arguments)
    assert "error" in capsys.readouterr().err


def test_quick_is_overruled_by_what_is_said() -> None:
    assert parse_args(["--data", "x"]).requests == 30_000
    quick = parse_args(["--data", "x", "--quick", "--rounds", "2", "--phases", "open,soak"])
    assert (quick.rounds, quick.requests, quick.callers) == (2, 200, [1, 8, 32])
    assert quick.phases == ["open", "soak"]


def test_photos_are_spread_over_the_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(10):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(b"%d" % number)
    (tmp_path / "images" / "styles.csv").write_bytes(b"")
    assert read_photos(tmp_path, 5) == [b"0", b"2", b"4", b"6", b"8"]
    assert len(read_photos(tmp_path / "images", 99)) == 10


def test_folder_without_photos_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load.main(["--data", str(tmp_path)]) == 2
    assert "has no file that ends in .jpg" in capsys.readouterr().err


def test_complaints_are_one_line_each() -> None:
    log = "\n".join(
        [
            "2026-11-24 12:00:00,000 INFO gateway: ready",
            "2026-11-24 12:00:01,000 WARNING triton: slow",
            "  Traceback (most recent call last):",
            '    File "x.py", line 1, in f',
            "      raise ValueError",
            "  ValueError: mine",
            "2026-11-24 12:00:02,000 INFO gateway: going on",
        ]
    )
    assert complaints_in(log) == ["2026-11-24 12:00:01,000 WARNING triton: slow", "ValueError: mine"]


@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="needs the embedded extra (nvidia-pytriton)")
def test_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not (MODELS / "gpt2_step" / "1" / "model.onnx").is_file():
        pytest.skip("THE LOAD TEST IS NOT TESTED: model_repository has no models, run export.install_models")
    monkeypatch.setattr(phases, "MANY", 4)
    monkeypatch.setattr(load, "MANY", 4)
    monkeypatch.setattr(phases, "_SOAK_PARTS", 2)
    for number, (garment, colour) in enumerate((("Handbag", "Red"), ("Shirt", "Blue"), ("Dress", "Black"))):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(garment, colour, seed=number))
    arguments = ["--data", str(tmp_path), "--model-repository", str(MODELS), "--quick", "--photos", "3"]
    arguments += ["--callers", "2", "--warm-seconds", "0", "--turn-seconds", "0.4", "--rates", "0.6", "4"]
    arguments += ["--open-seconds", "0.6", "--requests", "40", "--output", str(tmp_path / "load.json")]
    assert load.main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    assert record["oracle"]["photos"] == 3
    assert [point["callers"] for point in record["curve"]] == [1, 2, 4]
    assert len(record["compare"]) == 5
    assert [point["share"] for point in record["open"]["points"]] == [0.6, 4.0]
    everything = [*record["curve"], *record["compare"], *record["open"]["points"], record["soak"]]
    for point in everything:
        assert (point["lost"], point["wrong_words"]) == (0, 0), point
        assert point["answered"] == point["sent"] > 0
        assert sum(point["counts"].values()) + sum(point["intended"].values()) == point["sent"]
    assert all(point["throughput"] > 0 for point in [*record["curve"], *record["compare"]])
    assert record["soak"]["sent"] == 40
    assert [one["requests"] for one in record["soak"]["resident_bytes"]] == [0, 20, 40]
    assert all(point["health_latency"]["count"] > 3 for point in [*record["curve"], record["soak"]])
    assert record["curve"][-1]["cores"]["stubs"] > 0
    assert record["peak_memory_bytes"] > 2**26
    assert "lost requests" in load_table(record)
