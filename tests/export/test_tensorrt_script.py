# SPDX-License-Identifier: Apache-2.0
"""What --dry-run prints is a shell script that does what the program does, whatever folders are called."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from export.tensorrt_plan import IMAGE, build_arguments
from export.tensorrt_script import script
from tests.fakes.tiny_onnx_models import tiny_contract

CONTRACT = tiny_contract("fp16")


def test_script_says_the_shapes_of_every_input() -> None:
    text = script(CONTRACT, Path("models"), Path("scratch"))
    for spec in CONTRACT.models:
        for tensor in spec.inputs:
            assert f"#   {tensor.name} " in text
    assert "1x4x4x3 8x4x4x3 32x4x4x3" in text
    assert IMAGE in text


def test_every_engine_is_built() -> None:
    lines = script(CONTRACT, Path("models"), Path("scratch")).splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("trtexec")]
    assert len(commands) == 3
    for command, spec in zip(commands, CONTRACT.models, strict=True):
        assert tuple(command[1:]) == build_arguments(spec, CONTRACT)


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_script_runs_with_folders_of_any_name(tmp_path: Path) -> None:
    models = tmp_path / 'it\'s a folder; $(touch broken),\ntouch broken\n "really"'
    for spec in CONTRACT.models:
        (models / spec.name / "1").mkdir(parents=True)
        (models / spec.name / "1" / "model.onnx").write_text(spec.name)
    tools = tmp_path / "tools"
    tools.mkdir()
    trtexec = tools / "trtexec"
    trtexec.write_text('#!/bin/sh\nfor word; do case $word in --onnx=*) cat "${word#--onnx=}"; echo;; esac; done\n')
    trtexec.chmod(0o755)
    text = script(CONTRACT, models, tmp_path / "scratch folder")
    answer = subprocess.run(
        ["sh"], input=text, text=True, capture_output=True, cwd=tmp_path, timeout=30,
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert answer.stderr == ""
    assert answer.stdout.split() == [spec.name for spec in CONTRACT.models]
    assert not list(tmp_path.rglob("broken"))
