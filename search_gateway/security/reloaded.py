# SPDX-License-Identifier: Apache-2.0
"""A value that is read from files, and read again when one of them changes."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from search_gateway.errors import ConfigError

_log = logging.getLogger(__name__)

Value = TypeVar("Value")


class Reloaded(Generic[Value]):
    """The last good value of some files. Threads may share it.

    Args:
        what: what the files are, for the log.
        files: those whose change makes the value be read again.
        load: reads the value. It raises ConfigError where the files cannot be used.

    Attributes:
        value: the last good one.

    Raises:
        ConfigError: the files cannot be used now.
    """

    def __init__(self, what: str, files: Sequence[Path], load: Callable[[], Value]):
        self._what = what
        self._files = files
        self._load = load
        self._lock = threading.Lock()
        self._stamp = self._stamps()  # before the files are read, so that a change in between is seen later
        self.value = load()

    def refresh(self, *, is_forced: bool = False) -> bool:
        """Read the files if one has changed, or in any case if forced. An error is logged, and the value stays.

        Returns:
            Whether there is a new value.
        """
        with self._lock:
            stamp = self._stamps()
            if stamp == self._stamp and not is_forced:
                return False
            self._stamp = stamp
            try:
                self.value = self._load()
            except ConfigError as error:
                _log.error("%s: %s; the last good version stays in use", self._what, error)
                return False
            _log.info("%s: read again", self._what)
            return True

    def _stamps(self) -> list[tuple[int, ...] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Return what differs when a file was changed or replaced; None if there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)


def read_file(file: Path, max_bytes: int = 4 * 2**20) -> bytes:
    """Read a small file.

    Raises:
        ConfigError: it cannot be read, or is larger.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({(error.strerror or 'unknown').lower()})") from error
    if len(data) > max_bytes:
        raise ConfigError(f"{file} has more than {max_bytes:,} bytes")
    return data
