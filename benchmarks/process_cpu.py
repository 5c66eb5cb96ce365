# SPDX-License-Identifier: Apache-2.0
"""CPU time and memory of a gateway's processes, told apart by part. Linux's /proc; knows nothing about what they do."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.process_memory import process_tree

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time of one process and its threads; 0 where it is gone."""
    try:
        # Behind the name, which may hold anything: state is field 3, utime 14, stime 15.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_seconds_by_part(pid: int) -> dict[str, float]:
    """Of a gateway: "gateway" itself, "triton", its Python "stubs", and "other" (what watches over Triton)."""
    parts = {"gateway": 0.0, "triton": 0.0, "stubs": 0.0, "other": 0.0}
    for one in process_tree(pid):
        parts["gateway" if one == pid else _part(one)] += cpu_seconds(one)
    return parts


def resident_bytes(pid: int) -> int:
    """Memory a process has now; 0 where it is gone."""
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def resident_bytes_by_part(pid: int) -> dict[str, int]:
    """As `cpu_seconds_by_part`, what they share counted in each."""
    parts = {"gateway": 0, "triton": 0, "stubs": 0, "other": 0}
    for one in process_tree(pid):
        parts["gateway" if one == pid else _part(one)] += resident_bytes(one)
    return parts


def _part(pid: int) -> str:
    try:
        name = (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "other"
    if name.startswith("triton_python"):
        return "stubs"
    return "triton" if name.startswith("tritonserver") else "other"
