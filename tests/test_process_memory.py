# SPDX-License-Identifier: Apache-2.0
"""Memory of process trees: the peak, not what is left; children count, what is shared counts once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.process_memory import peak_bytes, process_tree

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
