# SPDX-License-Identifier: Apache-2.0
"""Files that take long to make, made once for all tests of a run, whichever of its processes they run in."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder of the run's temporary folder. Not to be written into.

    Args:
        factory: pytest's `tmp_path_factory`.
        name: the same for all who want the same; may have slashes.
        make: writes it, the first time.
    """
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # each worker has a folder in this one
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            try:
                make(path)
            except BaseException:
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
                raise
    return path
