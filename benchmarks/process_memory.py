# SPDX-License-Identifier: Apache-2.0
"""Memory of a process and all its descendants, as Linux tells it in /proc. Knows nothing about what they do."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

_PROC = Path("/proc")
# "7f0c...-7f0d... r-xp 00000000 fe:00 1234   /usr/lib/x.so": an inode of 0 is memory without a file.
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ (\S+ \d+)")


def process_tree(pid: int) -> list[int]:
    """The process and all its living descendants."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                # "pid (name) state parent ...": the name may hold anything, brackets and spaces included.
                parent = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            except OSError:
                continue  # ended meanwhile
            children.setdefault(parent, []).append(int(folder.name))
    tree = [pid]
    for one in tree:  # grows while it is walked
        tree += children.get(one, [])
    return tree


def peak_bytes(pid: int) -> int:
    """Most memory the process and its descendants have taken; what they share (libraries, /dev/shm) counts once.

    What is taken now, plus what each had more at its own peak: exact for a lone process, else an upper bound. Linux's
    own proportional size would depend on which other programs have the same libraries loaded.
    """
    own, files = 0, Counter[str]()
    for one in process_tree(pid):
        try:
            status = (_PROC / str(one) / "status").read_text(errors="replace")
            mappings = (_PROC / str(one) / "smaps").read_text(errors="replace")
        except OSError:
            continue  # ended meanwhile
        anonymous, backed = _resident(mappings)
        own += anonymous + max(0, _kilobytes(status, "VmHWM") - _kilobytes(status, "VmRSS"))
        files |= backed  # of each file the largest part that any of them has in memory
    return 1024 * (own + files.total())


def _resident(mappings: str) -> tuple[int, Counter[str]]:
    """Kilobytes that are the process' own, and by file those that are of files."""
    own, files, current = 0, Counter[str](), ""
    resident = 0
    for line in mappings.splitlines():
        if found := _MAPPING.match(line):
            current = found[1]
        elif line.startswith("Rss:"):
            resident = int(line.split()[1])
        elif line.startswith("Anonymous:"):
            anonymous = int(line.split()[1])
            own += anonymous
            files[current] += resident - anonymous
    return own, files


def _kilobytes(status: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) if found else 0  # a zombie has none
