# SPDX-License-Identifier: Apache-2.0
"""The captioning benchmark from its arguments to the record, with a tiny model; a peer that cannot take part."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.captioning import command as captioning
from benchmarks.captioning.systems import SystemSpec
from benchmarks.captioning.table import captioning_table
from benchmarks.common.machine_limits import MachineLimits

LIMITS = MachineLimits(gemm={"fp32": {"PyTorch": 2e11}}, bandwidth={"read": 3e10})


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--size", "large"],
        ["--size", "full", "--repeats", "0"],
        ["--size", "full", "--tokens", "-1"],
        ["--size", "full", "--address", "one:1"],
        ["--size", "full", "--address", "one:1", "--precisions", "fp16", "fp32"],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        captioning.parse_args(arguments)
    assert "error" in capsys.readouterr().err


def test_what_takes_part() -> None:
    def names(arguments: list[str], *, on_gpu: bool = False) -> list[str]:
        args = captioning.parse_args(arguments)
        return [spec.name for spec in captioning.systems_of(args, Path("mine"), on_gpu=on_gpu)]

    ours = ["in-process fp32", "in-process int8", "gRPC fp32", "gRPC int8"]
    assert names(["--size", "full"]) == ["generate", *ours]
    assert names(["--size", "small", "--peers"]) == ["generate", "optimum", *ours]
    assert names(["--size", "full", "--precisions", "fp16"]) == ["generate", "in-process fp16", "gRPC fp16"]
    on_gpu = names(["--size", "full"], on_gpu=True)
    assert on_gpu[:3] == ["generate", "generate fp16", "in-process fp32"]
    assert captioning.parse_args(["--size", "full"]).tokens == 10
    assert captioning.parse_args(["--size", "small", "--tokens", "5"]).tokens == 5


def test_running_gateway_is_called_where_it_is() -> None:
    args = captioning.parse_args(["--size", "small", "--precisions", "fp16", "--address", "one:1"])
    systems = captioning.systems_of(args, Path("mine"), on_gpu=False)
    assert {spec.name: spec.address for spec in systems} == {
        "generate": "", "in-process fp16": "", "gRPC fp16": "one:1",
    }  # fmt: skip


@pytest.mark.torch
@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="needs the embedded extra (nvidia-pytriton)")
def test_whole_run_with_a_peer_that_cannot(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="needs the export extra (torch)")
    from benchmarks.captioning.models import our_models
    from tests.fakes.exported_captioner import export_graphs_once, tiny_checkpoint

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(captioning, "CALLERS", 3)
    checkpoint = tiny_checkpoint(tmp_path_factory)
    export_graphs_once(tmp_path_factory, monkeypatch)
    # As an earlier run would have: the run itself exports in a process in which nothing can be reused.
    our_models(checkpoint, tmp_path / f"{checkpoint.name}-fp32", "fp32", None, endless=False)
    args = captioning.parse_args(
        ["--size", "small", "--peers", "--precisions", "fp32", "--photos", "2", "--beams", "1", "--repeats", "1",
         "--tokens", "7", "--work", str(tmp_path)]
    )  # fmt: skip
    systems: list[SystemSpec] = captioning.systems_of(args, checkpoint, on_gpu=False)
    record = json.loads(json.dumps(captioning.measure(args, checkpoint, systems, lambda: LIMITS)))
    failures = {system["name"]: system["failure"] for system in record["systems"]}
    # Without optimum it cannot either: for another reason.
    assert failures.pop("optimum").startswith("cannot export: ")
    assert failures == {"generate": None, "in-process fp32": None, "gRPC fp32": None}
    assert {figure["system"] for figure in record["captioning"]} == set(failures)
    assert all(figure["equal"] == figure["compared"] > 0 for figure in record["captioning"] + record["callers"])
    assert {(figure["system"], figure["photos"], figure["waves"]) for figure in record["callers"]} == {
        ("generate", 1, 12),
        ("gRPC fp32", 3, 4),
    }
    assert [figure["stage"] for figure in record["stages"]] == ["encoder", "prefill", "step"]
    assert all(0 < figure["share_of_limit"] < 1 for figure in record["stages"])
    memory = {system["name"]: system["peak_memory_bytes"] for system in record["systems"]}
    assert memory["optimum"] is None
    assert memory["in-process fp32"] < memory["generate"]  # no PyTorch in it
    assert "| ours, gRPC → gateway → Triton | FP32 |" in captioning_table(record)
