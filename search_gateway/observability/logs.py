# SPDX-License-Identifier: Apache-2.0
"""The log: lines for people or JSON; those of a request have its id and its trace. The only module with structlog.

All modules log with the standard library, whose records are rendered here. `bound` adds values to all lines of a
request; tasks and threads that work for a request inherit them.
"""

from __future__ import annotations

import json
import logging
import sys
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


def set_up_logging(log_format: LogFormat = "console", level: str = "info", stream: TextIO | None = None) -> None:
    """Render all log records to a stream; further calls replace the former ones.

    Args:
        log_format: console or json.
        level: one of `LEVELS`.
        stream: stderr if None.
    """
    handler = Handler(stream or sys.stderr)
    handler.setFormatter(_json_formatter() if log_format == "json" else _ConsoleFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, Handler):
            root.removeHandler(old)
    root.addHandler(handler)
    set_level(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)


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
