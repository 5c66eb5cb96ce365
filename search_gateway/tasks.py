# SPDX-License-Identifier: Apache-2.0
"""Tasks that nobody loses: those of a request end with it, and those in the background go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0  # so that work that fails immediately does not occupy the event loop and the log

T = TypeVar("T")


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently, as `asyncio.gather` does, but leave none of them running behind.

    Returns:
        Their results, in the order of the coroutines.

    Raises:
        Exception: the first one that a coroutine raised; the other coroutines were cancelled and have ended.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coroutines]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        failures.__traceback__ = None  # a frame in it refers to `failures`
    else:
        return [task.result() for task in tasks]
    # Nothing that its traceback leads to may refer to it, or it would keep photos alive until the next collection.
    del tasks
    try:
        raise first
    finally:
        del first


async def kept_running(name: str, work: Callable[[], Awaitable[object]]) -> None:
    """Run work that should never end, until cancelled. If it ends, log that and start it again.

    Args:
        name: of the work, for the log.
        work: begins it.
    """
    while True:
        try:
            await work()
            _log.error("%s ended: it is started again", name)
        except Exception:
            _log.exception("%s failed unexpectedly: it is started again", name)
        await asyncio.sleep(_PAUSE_SECONDS)
