# SPDX-License-Identifier: Apache-2.0
"""CPU time and memory by part: this process stands for the gateway."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.process_cpu import cpu_seconds, cpu_seconds_by_part, resident_bytes, resident_bytes_by_part

GONE = 2**22 + 1  # more than Linux gives


def test_time_of_this_process_is_that_of_the_clock() -> None:
    before, clock = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() < clock + 0.3:
        pass
    assert cpu_seconds(os.getpid()) - before == pytest.approx(0.3, abs=0.1)
    assert cpu_seconds(GONE) == 0


@pytest.mark.parametrize(
    ("name", "part"), [("tritonserver", "triton"), ("triton_python_b", "stubs"), ("something", "other")]
)
def test_parts_are_told_by_the_name_of_the_program(name: str, part: str, tmp_path: Path) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/cat")
    before = resident_bytes_by_part(os.getpid())[part]
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x\n")
        process.stdin.flush()
        process.stdout.readline()  # it runs now
        memory = resident_bytes_by_part(os.getpid())
        assert memory[part] - before == resident_bytes(process.pid) > 0
        assert memory["gateway"] > 2**20
        assert cpu_seconds_by_part(os.getpid())["gateway"] > 0
    assert resident_bytes(GONE) == 0
