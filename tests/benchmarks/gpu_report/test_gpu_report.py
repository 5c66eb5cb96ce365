# SPDX-License-Identifier: Apache-2.0
"""The GPU report: its dry run goes through every step, its commands exist, and failures are part of it."""

from __future__ import annotations

import csv
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.captioning.models import ROOT
from benchmarks.gpu_report import runner
from benchmarks.gpu_report.command import main
from benchmarks.gpu_report.page import DRY_RUN, captioning_part, load_part, perf_analyzer_part, report_page
from benchmarks.gpu_report.plan import CONFIGS, Settings, Step, perf_analyzer_script, plan
from benchmarks.gpu_report.runner import CLOCKS, FACTS, Outcome, clocks_text, run_step
from export.roofline import SIZES, T4, Attainment, project, step_work
from export.triton_config import GPU_PROVIDERS, TENSORRT_CONFIG, onnx_gpu_config_file

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(output=tmp_path, work=tmp_path / "work", data=tmp_path / "photos")


def command(text: str, **fields: Any) -> Step:
    return Step(title="a step", command=("sh", "-c", text), **fields)


def test_dry_run_writes_the_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert page.splitlines()[2] == DRY_RUN
    for title in ("small, tensorrt", "small, onnxruntime_cuda", "full, tensorrt", "full, onnxruntime_tensorrt"):
        assert f"## Captions in batches: {title}\n" in page
    projected = step_work(SIZES["small"], 8, 4).seconds(T4, Attainment(launch_seconds=0.0))
    assert "## Engines alone: small\n" in page
    assert f"| gpt2_step | 8 photos, 4 beams | 1.234 | {1000 * projected:.3f} |" in page
    for kind in ("Load", "perf_analyzer"):
        assert f"## {kind}, greedy captions: small, tensorrt\n" in page
    assert "stand-in for docker: compose" in page
    assert "SM 1590 MHz (1590 to 1590), memory 5000 MHz, up to 68 W and 71 °C" in page
    assert "| 7.5 |" not in page
    assert "steps succeeded" in capsys.readouterr().out


def test_step_that_fails_is_in_the_report_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docker = '#!/bin/sh\necho "said: $*"\ncase "$*" in *" run "*) echo "no kernel image" >&2; exit 3;; esac\n'
    monkeypatch.setitem(runner.STAND_INS, "docker", docker)
    assert main(["--dry-run", "--output", str(tmp_path), "--sizes", "small"]) == 1
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    title = "small: build and compare the engines"
    assert f"| {title} | exit code 3 |" in page
    block = page.partition(f"### {title}: exit code 3\n")[2].partition("\n###")[0]
    assert "no kernel image" in block
    assert "## Captions in batches: small, tensorrt" in page
    assert capsys.readouterr().err.rstrip().endswith(f"failed: {title}")


@pytest.mark.parametrize(
    ("step", "failure", "output"),
    [
        (command("echo fine; echo worse >&2"), "", "fine\nworse\n"),
        (command("echo half; exit 7"), "exit code 7", "half\n"),
        (command("echo begun; exec sleep 60", timeout_seconds=1), "took more than 1 s", "begun\n"),
        (command("true", record=Path("nothing.json")), "wrote no nothing.json", ""),
        (command('echo "$TRITON_CONFIG"', environ={"TRITON_CONFIG": "some"}), "", "some\n"),
        (command("printf '10%%\\r50%%\\r100%%\\n'"), "", "100%\n"),
        (Step(title="a step", command=("no-such-program",)), "no-such-program is not installed", ""),
    ],
    ids=["good", "bad", "slow", "without its record", "environment", "progress", "missing program"],
)
def test_what_comes_of_a_step(step: Step, failure: str, output: str, tmp_path: Path) -> None:
    outcome = run_step(step, {"PATH": os.environ["PATH"]}, tmp_path / "clocks.csv")
    assert (outcome.failure, outcome.output) == (failure, output)
    assert outcome.clocks == "", "no GPU here"


def test_record_of_an_earlier_report_does_not_count(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text("old")
    assert run_step(command("exit 1", record=record), {"PATH": os.environ["PATH"]}, tmp_path / "log").failure
    assert not record.exists()


def test_clocks_are_those_of_the_busy_gpu(tmp_path: Path) -> None:
    log = tmp_path / "clocks.csv"
    log.write_text(
        "300, 405, 10.0, 40, 0\n1590, 5000, 69.5, 60, 98\n900, 5000, 70.1, 80, 99\n1005, 5000, [N/A], 1, 9\n"
    )
    assert clocks_text(log) == "SM 1245 MHz (900 to 1590), memory 5000 MHz, up to 70 W and 80 °C"
    log.write_text("300, 405, 10.0, 40, 0\n")
    assert clocks_text(log).startswith("SM 300 MHz")
    log.write_text("no devices were found\n")
    assert clocks_text(log) == ""
    assert len(CLOCKS) == 5
    assert "driver_version" in FACTS


@pytest.mark.torch
def test_every_command_is_one_that_its_program_understands(settings: Settings) -> None:
    """argparse ends the test if it does not."""
    parsers: dict[str, Callable[[Sequence[str]], Any]] = {}
    modules = {"benchmarks.captioning": "benchmarks.captioning.command", "benchmarks.load": "benchmarks.load.command"}
    for step in plan(settings):
        if step.command[0] != sys.executable:
            assert step.command[:2] == ("docker", "compose")
            continue
        module = step.command[2]
        if module == "export.check_parity":
            pytest.importorskip("torch", reason="needs the export extra (torch)")
        if module not in parsers:
            parsers[module] = importlib.import_module(modules.get(module, module)).parse_args
        parsers[module](step.command[3:])


def test_steps_set_variables_that_compose_reads_and_name_services_that_it_has(settings: Settings) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    services = {name for name, one in yaml.safe_load(text)["services"].items() if "profiles" not in one}
    named = set()
    for step in plan(settings):
        assert all(f"${{{name}:-" in text for name in step.environ), step.title
        if "up" in step.command or "build" in step.command:
            named |= services & set(step.command)
    assert named == services


def test_every_configuration_of_triton_is_one_that_the_export_writes() -> None:
    files = [TENSORRT_CONFIG, *map(onnx_gpu_config_file, GPU_PROVIDERS)]
    assert [f"configs/{config}.pbtxt" for config in CONFIGS] == files


def test_containers_are_stopped_after_each_configuration(settings: Settings) -> None:
    steps = [step for step in plan(settings) if step.command[0] == "docker"]
    order = [word for step in steps for word in step.command if word in ("up", "down")]
    assert order == ["up", "down"] * (2 * len(CONFIGS))


def test_perf_analyzer_runs_in_nvidias_image_and_sees_the_reports_folder(tmp_path: Path) -> None:
    """What it is given are paths in that folder."""
    settings = Settings(output=tmp_path / "a folder", work=tmp_path, data=tmp_path)
    settings.output.mkdir()
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    docker.chmod(0o755)
    script = settings.output / "perf_analyzer"
    script.write_text(perf_analyzer_script(settings))
    step = Step(title="", command=("sh", str(script), "-m", "caption"))
    words = run_step(step, {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, tmp_path / "log").output.splitlines()
    assert f"--volume={settings.output}:{settings.output}" in words
    assert words[-4].startswith("nvcr.io/nvidia/tritonserver:")
    assert words[-3:] == ["perf_analyzer", "-m", "caption"]


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_captions_stand_beside_their_projection() -> None:
    text = (RESULTS / "captioning-full.json").read_text(encoding="utf-8")
    record = json.loads(text)
    first = record["captioning"][0]
    steps = round(first["tokens_per_second"] / first["captions_per_second"]) + 1
    expected = project(SIZES["full"], first["photos"], first["beams"], steps).captions_per_second
    rows = rows_of(captioning_part(Step(title="", command=(), size="full", config="tensorrt"), text))
    row = rows[2]
    assert row[0] == "generate"
    assert float(row[4]) == pytest.approx(expected, rel=0.01)
    assert row[5] == f"{first['captions_per_second'] / expected:.0%}"
    assert sum(row[0] == one["system"] for row in rows for one in [record["stages"][0]]) > 1


def test_graphs_are_projected_for_engines_only() -> None:
    text = (RESULTS / "captioning-small.json").read_text(encoding="utf-8")
    by_config = {}
    for config in ("tensorrt", "onnxruntime_cuda"):
        rows = rows_of(captioning_part(Step(title="", command=(), config=config), text))
        by_config[config] = {row[0]: row[4] for row in rows if row[2] == "1 photo, greedy" and row[1].count(",")}
    one, other = by_config.values()
    assert one["generate"] == other["generate"]
    assert one["gRPC fp32"] != other["gRPC fp32"]


def test_load_and_perf_analyzer_stand_beside_the_projection_of_full_batches_at_most() -> None:
    size = SIZES["small"]
    full = project(size, 32, 1, size.max_tokens, attained=Attainment(launch_seconds=0.0)).captions_per_second
    step = Step(title="", command=(), config="tensorrt")
    load = rows_of(load_part(step, (RESULTS / "load.json").read_text(encoding="utf-8")))
    assert {row[2] for row in load if row[0] in ("32", "64")} == {f"{full:,.0f}"}
    table = (RESULTS / "perf_analyzer-caption.csv").read_text(encoding="utf-8")
    analysed = rows_of(perf_analyzer_part(step, table))[2:]
    assert [row[0] for row in analysed] == [row["Concurrency"] for row in csv.DictReader(table.splitlines())]
    assert analysed[-1][2] == f"{full:,.0f}"


def test_record_that_cannot_be_read_is_said_and_the_page_is_written(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text("{}")
    step = Step(title="a step", command=("x",), kind="load", record=record)
    page = report_page({"GPU": "a | b"}, [Outcome(step, "", "", 1.0, "")], is_dry=False)
    assert "The record cannot be read: KeyError" in page
    assert DRY_RUN not in page
    assert "| GPU | a \\| b |" in page
