# SPDX-License-Identifier: Apache-2.0
"""The log: lines for people or JSON; those of a request have its id and its trace. The only module with structlog.

All modules log with the standard library, whose records are rendered here. `bound` adds values to all lines of a
request; tasks and threads that work for a request inherit them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Literal, TextIO

import structlog

LogFormat = Literal["console", "json"]
LEVELS = ("debug", "info", "warning", "error")

_FIELDS = ("method", "code", "milliseconds", "peer")  # of access lines, as fields in JSON
# They log the words of the query at INFO.
_QUIET = ("ddgs", "primp")
# structlog's own contextvars would be searched for among all others at each line.
_bound: ContextVar[Mapping[str, str]] = ContextVar("bound", default={})  # noqa: B039  # it is never changed
_JSON = json.JSONEncoder(default=repr)  # json.dumps would make one for each line


_MAX_QUEUED_LINES = 10_000
_FLUSH_SECONDS = 1.0


def set_up_logging(
    log_format: LogFormat = "console", level: str = "info", stream: TextIO | None = None, *, is_queued: bool = False
) -> None:
    """Render all log records to a stream; further calls replace the former ones.

    Args:
        log_format: console or json.
        level: one of `LEVELS`.
        stream: stderr if None.
        is_queued: whether a thread writes the lines, so that nothing waits for a stream that is not read.
    """
    stream = stream or sys.stderr
    try:
        handler = QueuedHandler(stream) if is_queued else Handler(stream)
    except (AttributeError, OSError):  # stderr was closed before the start, or is no file
        handler = Handler(stream)
    handler.setFormatter(_json_formatter() if log_format == "json" else _ConsoleFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, Handler):
            root.removeHandler(old)
    root.addHandler(handler)
    set_level(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)


def flush_log() -> None:
    """Write all lines that are queued, if it takes no longer than a second."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def set_level(level: str) -> None:
    """Log from this level on; it may be changed at any time.

    Raises:
        ValueError: there is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"{level!r} is no level: {', '.join(LEVELS)}")
    logging.getLogger("search_gateway").setLevel(level.upper())
    # Other libraries at debug would write bytes of requests into the log.
    logging.getLogger().setLevel(max(logging.INFO, logging.getLevelName(level.upper())))


def level() -> str:
    """Return the present level."""
    return logging.getLevelName(logging.getLogger("search_gateway").getEffectiveLevel()).lower()


@contextmanager
def bound(**values: str | None) -> Iterator[None]:
    """Add these values, those that are not None, to all lines within the block."""
    token = _bound.set({**_bound.get(), **{name: one for name, one in values.items() if one is not None}})
    try:
        yield
    finally:
        _bound.reset(token)


class Handler(logging.StreamHandler[TextIO]):
    """The one that `set_up_logging` adds."""


class QueuedHandler(Handler):
    """Renders records at once and lets a thread write them; a stream that blocks must not block the event loop.

    If 10,000 lines wait, further ones are dropped, and a line tells their number when there is room again.
    """

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        stream.flush()
        self._descriptor = stream.fileno()  # the stream's own lock would be held while a write blocks
        self._lines: deque[str] = deque()
        self._num_dropped = 0
        self._is_writing = False
        self._changed = threading.Condition()
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the text of a record."""
        try:
            line = self.format(record) + self.terminator
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) < _MAX_QUEUED_LINES:
                self._lines.append(line)
                self._changed.notify_all()
            else:
                self._num_dropped += 1

    def flush(self) -> None:
        """Wait until all lines are written, a second at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._is_writing, _FLUSH_SECONDS)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                text = "".join(self._lines)
                self._lines.clear()
                num_dropped, self._num_dropped = self._num_dropped, 0
                self._is_writing = True
            if num_dropped:
                dropped = f"{num_dropped} lines of the log were dropped: nobody read it, or its disk is slow"
                record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, dropped, None, None)
                text += self.format(record) + self.terminator
            data = memoryview(text.encode("utf-8", "backslashreplace"))
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                continue  # the reader is gone, or the disk is full: there is nowhere to tell it


class _ConsoleFormatter(logging.Formatter):
    """Writes `time LEVEL logger: message name=value`; the lines of a traceback follow, indented.

    User input in a message cannot begin a line of its own, and cannot send codes to a terminal. An access line is most
    of what observing a call costs, so this does not go through structlog's processors.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        time = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        head = f"{time} {record.levelname} {record.name}: {_escaped(record.getMessage())}"
        values = "".join([f" {name}={_escaped(value)}" for name, value in _bound.get().items()])
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return head + values + "".join([f"\n  {_escaped(line)}" for line in trace.splitlines()])


def _json_formatter() -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            lambda _, __, event: {**event, **_bound.get()},
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(allow=_FIELDS),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(serializer=lambda event, **_: _JSON.encode(event)),
        ],
    )


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
