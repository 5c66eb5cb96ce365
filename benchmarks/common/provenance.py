# SPDX-License-Identifier: Apache-2.0
"""Where and with what a figure was measured: commit, machine, versions and time."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("onnxruntime", "nvidia-pytriton", "tritonclient", "grpcio", "numpy", "torch", "transformers")


def provenance(*more_packages: str) -> dict[str, Any]:
    """Return the fields that every record of a benchmark has.

    Args:
        more_packages: distributions whose versions belong to this record, too.

    Returns:
        "commit", "measured" (UTC), "machine", "load_average" (1 minute) and "versions" (package -> version).
    """
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain") else ""),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "versions": installed_versions(*_PACKAGES, *more_packages),
    }


def installed_versions(*names: str) -> dict[str, str]:
    """Return package -> version of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
