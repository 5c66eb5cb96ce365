# SPDX-License-Identifier: Apache-2.0
"""Writes programs that make this machine look like a host with a T4: trtexec or docker, and nvidia-smi."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

FAKE_TRTEXEC = Path(__file__).with_name("fake_trtexec.py")

# The part of `docker run` that is used: it runs what follows the image in the mounted folder, with trtexec on PATH.
_DOCKER = """
import csv, os, subprocess, sys
words = sys.argv[1:]
image = next(i for i, word in enumerate(words) if word.startswith("nvcr.io/"))
(mount,) = (word for word in words if word.startswith("--mount="))
(fields,) = csv.reader([mount.removeprefix("--mount=")])
source = dict(field.split("=", 1) for field in fields)["source"]
path = os.path.dirname(os.path.abspath(__file__)) + "/inside"
environment = {**os.environ, "PATH": path + os.pathsep + os.environ["PATH"]}
sys.exit(subprocess.run(words[image + 1:], cwd=source, env=environment).returncode)
"""


def write_tools(folder: Path, *, trtexec: bool = True, docker: bool = False, gpu: str = "Tesla T4") -> str:
    """Write the programs, and return a PATH with them and a shell."""
    folder.mkdir()
    if trtexec:
        _write(folder / "trtexec", _python(FAKE_TRTEXEC))
    if docker:
        (folder / "inside").mkdir()
        _write(folder / "inside" / "trtexec", _python(FAKE_TRTEXEC))
        program = folder / "docker.py"
        program.write_text(_DOCKER, encoding="utf-8")
        _write(folder / "docker", _python(program))
    if gpu:
        _write(folder / "nvidia-smi", f"echo {shlex.quote(gpu)}")
    return f"{folder}:/usr/bin:/bin"


def _python(program: Path) -> str:
    return f'exec {shlex.quote(sys.executable)} {shlex.quote(str(program))} "$@"'


def _write(program: Path, line: str) -> None:
    program.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    program.chmod(0o755)
