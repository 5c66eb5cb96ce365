# SPDX-License-Identifier: Apache-2.0
"""The log: lines for people or JSON; those of a request have its id and its trace. The only module with structlog.

All modules log with the standard library, whose records are rendered here. `bound` adds values to all lines of a
request; tasks and threads that work for a request inherit them.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["console", "json"]
LEVELS = ("debug", "info", "warning", "error")

_FIELDS = ("method", "code", "milliseconds", "peer")  # of access lines, as fields in JSON
# They log the words of the query at INFO.
_QUIET = ("ddgs", "primp")


def set_up_logging(log_format: LogFormat = "console", level: str = "info", stream: TextIO | None = None) -> None:
    """Render all log records to a stream; further calls replace the former ones.

    Args:
        log_format: console or json.
        level: one of `LEVELS`.
        stream: stderr if None.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
    ]
    if log_format == "json":
        shared += [
            structlog.stdlib.ExtraAdder(allow=_FIELDS),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
        ]
        render: Any = structlog.processors.JSONRenderer(serializer=json.dumps)
    else:
        shared.append(structlog.processors.format_exc_info)
        render = _console_line
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, structlog.stdlib.ProcessorFormatter):
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


def bound(**values: str | None) -> AbstractContextManager[None]:
    """Add these values, those that are not None, to all lines within the block."""
    return structlog.contextvars.bound_contextvars(**{name: one for name, one in values.items() if one is not None})


def _console_line(_: object, __: str, event: dict[str, Any]) -> str:
    """`time LEVEL logger: message name=value`; the lines of a traceback follow, indented.

    User input in a message cannot begin a line of its own, and cannot send codes to a terminal.
    """
    trace = event.pop("exception", "")
    now = datetime.now().isoformat(" ", "milliseconds")
    head = f"{now} {event.pop('level').upper()} {event.pop('logger')}: {_escaped(event.pop('event'))}"
    values = "".join(f" {name}={_escaped(str(value))}" for name, value in event.items())
    return head + values + "".join(f"\n  {_escaped(line)}" for line in trace.splitlines())


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
