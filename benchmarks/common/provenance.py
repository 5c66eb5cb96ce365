# SPDX-License-Identifier: Apache-2.0
"""Where and of what a figure was measured: commit, machine, versions, time."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("onnxruntime", "nvidia-pytriton", "tritonclient", "grpcio", "numpy", "torch", "transformers")


def provenance() -> dict[str, object]:
    """A record to be stored beside every figure."""
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain") else ""),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
