# SPDX-License-Identifier: Apache-2.0
"""CPU time and memory of a process and its descendants, of a gateway's processes by part, and signals to all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

PARTS = ("gateway", "triton", "stubs", "other")
_Number = TypeVar("_Number", int, float)


def process_tree(pid: int) -> list[int]:
    """Return the process and all its living descendants, every parent before its children."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return [pid]


def signal_tree(pid: int, number: signal.Signals) -> None:
    """Pause (SIGSTOP) or continue (SIGCONT) a process and its descendants."""
    tree = process_tree(pid)
    # A parent that watches its children must never see them paused: parents are paused first and continue last.
    for one in tree if number == signal.SIGSTOP else reversed(tree):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(one, number)


def processes_with(pid: int, part_of_command: str) -> set[int]:
    """Return the processes of the tree whose command line contains this text."""
    found = set()
    for one in process_tree(pid):
        with contextlib.suppress(psutil.Error):
            if any(part_of_command in argument for argument in psutil.Process(one).cmdline()):
                found.add(one)
    return found


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of one process and its threads; 0 if it has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def cpu_seconds_of_ended_children(pid: int) -> float:
    """Return the user and system time of the children that have ended; 0 if the process itself has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.children_user + times.children_system)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 if it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def cpu_seconds_by_part(pid: int) -> dict[str, float]:
    """Return a gateway's CPU time by part.

    Returns:
        Seconds of "gateway" itself, "triton", its Python "stubs", and "other" (supervisor and photo workers).
    """
    return _by_part(pid, cpu_seconds, 0.0)


def resident_bytes_by_part(pid: int) -> dict[str, int]:
    """Return a gateway's resident memory by the parts of `cpu_seconds_by_part`; shared memory counts in each part."""
    return _by_part(pid, resident_bytes, 0)


def peak_bytes(pid: int) -> int:
    """Return the peak memory of a process and its descendants; shared memory (libraries, /dev/shm) counts once.

    It is the memory that is resident now plus how much more each process had at its own peak: exact for one process,
    an upper bound for several. Linux's proportional set size would depend on other programs with the same libraries.
    """
    own, files = 0, Counter[str]()
    for one in process_tree(pid):
        try:
            process = psutil.Process(one)
            resident = process.memory_info().rss
            mappings = process.memory_maps(grouped=False)
        except (psutil.Error, OSError):
            continue  # it ended meanwhile
        backed = Counter[str]()  # memory of each mapped file
        for mapping in mappings:
            own += mapping.anonymous
            backed[mapping.path] += mapping.rss - mapping.anonymous
        files |= backed  # for each file the largest part that any process has in memory
        own += max(0, _peak_resident_bytes(one) - resident)
    return own + files.total()


def _by_part(pid: int, measure: Callable[[int], _Number], zero: _Number) -> dict[str, _Number]:
    parts = dict.fromkeys(PARTS, zero)
    for one in process_tree(pid):
        parts["gateway" if one == pid else _part(one)] += measure(one)
    return parts


def _part(pid: int) -> str:
    try:
        name = psutil.Process(pid).name()
    except psutil.Error:
        return "other"
    if name.startswith("triton_python"):
        return "stubs"
    return "triton" if name.startswith("tritonserver") else "other"


def _peak_resident_bytes(pid: int) -> int:
    """Return the kernel's peak of a process's resident memory, which psutil does not report."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0  # a zombie has none
