# SPDX-License-Identifier: Apache-2.0
"""Writes programs that make this machine look like a host with a T4: trtexec and nvidia-smi."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

FAKE_TRTEXEC = Path(__file__).with_name("fake_trtexec.py")


def write_tools(folder: Path, *, gpu: str = "Tesla T4") -> str:
    """Write the programs, and return a PATH with them and a shell."""
    folder.mkdir()
    _write(folder / "trtexec", f'exec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE_TRTEXEC))} "$@"')
    if gpu:
        _write(folder / "nvidia-smi", f"echo {shlex.quote(gpu)}")
    return f"{folder}:/usr/bin:/bin"


def _write(program: Path, line: str) -> None:
    program.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    program.chmod(0o755)
