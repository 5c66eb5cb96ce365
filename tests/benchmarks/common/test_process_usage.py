# SPDX-License-Identifier: Apache-2.0
"""CPU time and memory of process trees; by part, this process stands for the gateway."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.common.process_usage import (
    cpu_seconds,
    cpu_seconds_by_part,
    peak_bytes,
    process_tree,
    resident_bytes,
    resident_bytes_by_part,
)

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


MIB = 2**20


@contextmanager
def running(program: str) -> Iterator[int]:
    """A Python that has run `program` and waits."""
    program += "\nprint('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.stdin.close()


def test_peak_outlives_what_was_taken() -> None:
    with running("pass") as pid:
        bare = peak_bytes(pid)
    with running("bytearray(b'x') * (64 * 2**20)") as pid:
        assert 60 * MIB < peak_bytes(pid) - bare < 80 * MIB


def test_children_count_and_shared_memory_counts_once() -> None:
    program = (
        "import mmap, os, time\n"
        "shared = mmap.mmap(-1, 64 * 2**20)\n"
        "shared[:] = bytes(len(shared))\n"
        "if os.fork() == 0:\n"
        "    own = bytearray(b'x') * (32 * 2**20)\n"
        "    assert shared[:] == bytes(len(shared))\n"
        "    print('ready', flush=True); input(); os._exit(0)\n"
        "import sys; sys.stdin.readline(); os.wait(); os._exit(0)"
    )
    with running("pass") as pid:
        bare = peak_bytes(pid)
    with running(program) as pid:
        assert len(process_tree(pid)) == 2
        # The shared 64 once, the child's 32 and the copies it made for the comparison, two Pythons.
        assert 96 * MIB < peak_bytes(pid) - bare < (96 + 2 * 64 + 20) * MIB


def test_process_that_is_gone_takes_nothing() -> None:
    assert peak_bytes(2**22 + 1) == 0
    assert process_tree(os.getpid())[0] == os.getpid()
