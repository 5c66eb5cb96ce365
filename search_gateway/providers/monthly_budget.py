# SPDX-License-Identifier: Apache-2.0
"""Counts the calls of paid providers per calendar month (UTC) in a small file, and refuses those beyond a limit.

    {"month": "2026-11", "calls": {"brave": 1204}}

A call is counted before it begins, so that a crash cannot make the count too low. The file is replaced as a whole.
Gateways on one host may share it: a lock beside it makes them count one after the other. If a call cannot be counted,
for example on a full disk, the provider is not asked.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from search_gateway.errors import ConfigError, ProviderNotAskedError

_log = logging.getLogger(__name__)

_MAX_FILE_BYTES = 64 * 1024
_MONTH = re.compile(r"\d{4}-\d\d", re.ASCII)
_LOCK_SECONDS = 2.0  # another program holds the lock for milliseconds
_LOCK_POLL_SECONDS = 0.02


class MonthlyBudget:
    """The `Budget` of all providers that have one.

    Args:
        path: the file; created with the first call.
        limits: provider -> calls per month.
        clock: returns Unix time.

    Raises:
        ConfigError: there is a file that cannot be read, or it cannot be written.
    """

    def __init__(self, path: Path, limits: Mapping[str, int], clock: Callable[[], float] = time.time):
        self._path = path
        self._lock_path = path.with_name(f"{path.name}.lock")
        self._limits = dict(limits)
        self._clock = clock
        self._mutex = threading.Lock()
        self._month, self._calls = "", dict[str, int]()  # as last read
        self._problem = ""
        try:
            with self._locked():
                self._write(*self._read())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"CAPTRIEVE_PROVIDER_BUDGET_FILE is {str(path)!r}: {_reason(error)}; correct it, or remove the file"
            ) from error

    def used(self, provider: str) -> int:
        """Return the calls of this month, as far as is known; does not block."""
        return self._calls.get(provider, 0) if self._month >= self._this_month() else 0

    def limit(self, provider: str) -> int | None:
        """Return the calls per month; None if the provider has no limit."""
        return self._limits.get(provider)

    def problem(self, provider: str) -> str:
        """Return why a provider is not asked; empty if it is."""
        limit = self._limits.get(provider)
        if limit is None:
            return ""
        if self.used(provider) >= limit:
            return f"its budget of {limit} calls in {max(self._month, self._this_month())} is used up"
        return self._problem

    def check(self, provider: str) -> None:
        """Refuse if no call is left, as far as is known.

        Raises:
            ProviderNotAskedError: none is left.
        """
        limit = self._limits.get(provider)
        if limit is not None and self.used(provider) >= limit:
            raise ProviderNotAskedError(f"{self.problem(provider)}: use another provider until the next month")

    def spend(self, provider: str) -> None:
        """Count a call.

        Raises:
            ProviderNotAskedError: none is left, or the file cannot be read and written.
        """
        if provider not in self._limits:
            return
        with self._mutex:
            try:
                with self._locked():
                    month, calls = self._read()
                    self._month, self._calls = month, calls
                    self.check(provider)
                    self._write(month, {**calls, provider: calls.get(provider, 0) + 1})
            except (OSError, ValueError) as error:
                if not self._problem:
                    _log.error("calls of provider %s cannot be counted: %s", provider, _reason(error))
                self._problem = "its calls cannot be counted"
                raise ProviderNotAskedError(
                    "its calls cannot be counted, so it is not asked: use another provider"
                ) from error
            self._problem = ""

    def _this_month(self) -> str:
        return time.strftime("%Y-%m", time.gmtime(self._clock()))

    def _locked(self) -> _FileLock:
        return _FileLock(self._lock_path)

    def _read(self) -> tuple[str, dict[str, int]]:
        """Return this month and its calls.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not such a file.
        """
        month = self._this_month()
        try:
            with self._path.open("rb") as file:
                text = file.read(_MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return month, {}
        try:
            value = json.loads(text)
            calls = value["calls"]
            good = bool(_MONTH.fullmatch(value["month"])) and all(type(n) is int and n >= 0 for n in calls.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            good = False
        if not good:
            raise ValueError("it is not a file of budgets")
        # A file of a later month stays: a clock that went back must not give the budget again.
        return (value["month"], dict(calls)) if value["month"] >= month else (month, {})

    def _write(self, month: str, calls: dict[str, int]) -> None:
        temporary = self._path.with_name(f"{self._path.name}.new")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            data = json.dumps({"month": month, "calls": calls}).encode("ascii")
            if os.write(file, data) < len(data):
                raise OSError("disk full")
            os.fsync(file)
        finally:
            os.close(file)
        temporary.replace(self._path)
        self._month, self._calls = month, calls


class _FileLock:
    """Holds an exclusive lock of a file; a TimeoutError if another program does not give it back."""

    def __init__(self, path: Path):
        self._path = path
        self._file = -1

    def __enter__(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= end:
                    os.close(self._file)
                    raise TimeoutError("another program holds its lock") from None
            time.sleep(_LOCK_POLL_SECONDS)

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
