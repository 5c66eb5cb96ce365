# SPDX-License-Identifier: Apache-2.0
"""An object in a process of its own: answers, failures and deaths come back as one line."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.common.own_process import OwnProcess, OwnProcessError, in_own_process


class Living:
    def __init__(self, farewell: Path | None = None):
        if farewell is not None and not farewell.parent.is_dir():
            raise FileNotFoundError(f"{farewell.parent} is missing")
        self._farewell = farewell

    def double(self, value: int) -> int:
        return 2 * value

    def fail(self) -> None:
        raise ValueError("no\nway " + "x" * 300)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep(self) -> None:
        time.sleep(60)

    def close(self) -> None:
        if self._farewell is not None:
            self._farewell.write_text("closed", encoding="utf-8")


def test_answers_goes_on_after_a_failure_and_is_closed(tmp_path: Path) -> None:
    with OwnProcess(Living, tmp_path / "farewell") as process:
        assert process.pid != os.getpid()
        with pytest.raises(OwnProcessError, match=r"^ValueError: no way x+…$") as caught:
            process.ask("fail")
        assert len(str(caught.value)) == 160
        assert process.ask("double", 21) == 42
    assert (tmp_path / "farewell").read_text(encoding="utf-8") == "closed"


def test_what_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(OwnProcessError, match="FileNotFoundError: .*gone is missing"):
        OwnProcess(Living, tmp_path / "gone" / "farewell")


def test_death_and_silence_are_errors() -> None:
    with OwnProcess(Living) as process:
        with pytest.raises(OwnProcessError, match="ended with exit code -9"):
            process.ask("die")
        with pytest.raises(OwnProcessError, match="ended with exit code -9"):
            process.ask("double", 1)
    with OwnProcess(Living) as process, pytest.raises(OwnProcessError, match="no answer within 0 s"):
        process.ask("sleep", timeout_seconds=0.2)


def test_one_call() -> None:
    assert in_own_process(os.path.basename, "a/b") == "b"
    with pytest.raises(OwnProcessError, match="TypeError"):
        in_own_process(os.path.basename, 3)
