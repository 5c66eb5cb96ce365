# SPDX-License-Identifier: Apache-2.0
"""Ends the process at a time limit, though foreign code (a provider of another package) keeps it from ending.

A task that ignores its cancellation, or a thread that is blocked, would keep `asyncio.run` and the interpreter waiting
for ever.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from types import FrameType
from typing import Any

from search_gateway.observability import logs

_log = logging.getLogger(__name__)


class ProcessEnd:
    """Ends the process when a time limit has passed; the log then says what was still running.

    Args:
        loop: its tasks are named.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._changed = threading.Condition()
        self._deadline = 0.0
        self._exit_code = 0
        self._thread: threading.Thread | None = None

    def within(self, seconds: float, exit_code: int) -> None:
        """End the process with this exit code after so many seconds, if it has not ended; replaces an earlier limit."""
        with self._changed:
            self._deadline, self._exit_code = time.monotonic() + seconds, exit_code
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="process end", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        with self._changed:
            while (seconds := self._deadline - time.monotonic()) > 0:
                self._changed.wait(seconds)
        try:
            for what in (*self._running_tasks(), *self._running_threads()):
                _log.error("the gateway ends while this is still running: %s", what)
            logs.flush_log()
        finally:
            os._exit(self._exit_code)

    def _running_tasks(self) -> list[str]:
        tasks = asyncio.all_tasks(self._loop)
        cancelled = [task for task in tasks if task.cancelling()]  # none, while the gateway itself does not close
        return [f"task {task.get_name()}, {_place(_innermost_frame(task.get_coro()))}" for task in cancelled or tasks]

    def _running_threads(self) -> list[str]:
        frames = sys._current_frames()
        others = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
        running = {one.name: frames[one.ident] for one in others if one.ident in frames}
        idle = [name for name, frame in running.items() if frame.f_code.co_name == "_worker"]  # of a thread pool
        return [f"thread {name}, {_place(frame)}" for name, frame in running.items() if name not in idle]


def _innermost_frame(coroutine: Any) -> FrameType | None:
    while getattr(inner := getattr(coroutine, "cr_await", None), "cr_frame", None) is not None:
        coroutine = inner
    frame: FrameType | None = getattr(coroutine, "cr_frame", None)
    return frame


def _place(frame: FrameType | None) -> str:
    return "" if frame is None else f"{frame.f_code.co_name} at {frame.f_code.co_filename}:{frame.f_lineno}"
