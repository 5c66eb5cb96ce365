# SPDX-License-Identifier: Apache-2.0
"""Searches a catalogue on a server, which may be away, hang, or change its data meanwhile.

A thread asks the server every two seconds whether the catalogue is there. While it is not, searches fail at once
instead of waiting for their deadlines. They go on by themselves as soon as an answer comes.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Protocol, TypeVar

from search_gateway.catalog.base import (
    CatalogAnswer,
    CatalogError,
    CatalogReader,
    CatalogTimeoutError,
    CatalogUnreachableError,
)

_log = logging.getLogger(__name__)

UNREACHABLE = "the catalogue's server cannot be reached"
NO_ANSWER = "the catalogue's server does not answer"
NOT_USABLE = "the catalogue cannot be used"

MAX_CONCURRENT = 8  # searches; more wait for a thread
_LOOK_SECONDS = 2.0
_ANSWER_SECONDS = 2.0  # a check that takes longer means that the server does not answer
_CLOSE_SECONDS = 5.0

_T = TypeVar("_T")


class CheckedReader(CatalogReader, Protocol):
    """The reader of a catalogue on a server."""

    def check(self, timeout_seconds: float) -> None:
        """Check that the server has a catalogue of the model in use.

        Raises:
            CatalogUnreachableError, CatalogTimeoutError: the server does not answer.
            CatalogError: it has none, or one of another model.
        """


class ServerCatalog:
    """A catalogue on a server.

    Args:
        reader: its methods may be called in several threads at once.
        shown: its address, for the log.

    Raises:
        CatalogError: the server has no such catalogue, or one of another model. An unreachable server is not an error.
    """

    def __init__(self, reader: CheckedReader, shown: str) -> None:
        self._reader = reader
        self._shown = shown
        self._problem = ""  # written for callers
        self._detail = ""  # the same for the operator
        self._check_began: float | None = None
        self._is_closed = False
        self._wake = threading.Event()
        try:
            reader.check(_ANSWER_SECONDS)
        except (CatalogUnreachableError, CatalogTimeoutError) as error:
            self._found(UNREACHABLE, error)
        except BaseException:
            reader.close()
            raise
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # Not a ThreadPoolExecutor: the end of the program would wait for a search that hangs.
        for number in range(MAX_CONCURRENT):
            threading.Thread(target=self._work, name=f"catalogue {number}", daemon=True).start()
        self._watcher = threading.Thread(target=self._watch, name="catalogue watcher", daemon=True)
        self._watcher.start()

    @property
    def problem(self) -> str:
        """Why searches fail, written for callers; empty: all is well."""
        began = self._check_began
        if not self._problem and began is not None and time.monotonic() > began + _ANSWER_SECONDS:
            return NO_ANSWER
        return self._problem

    def submit(self, search: Callable[[CatalogReader], _T]) -> Future[CatalogAnswer[_T]]:
        """Run a search in one of the threads. What it finds comes from the server and is never old.

        Raises:
            CatalogUnreachableError: the server does not answer now.
        """
        if problem := self.problem:
            error = CatalogUnreachableError(problem)
            error.told = problem
            raise error
        future: Future[CatalogAnswer[_T]] = Future()
        # In the request's context, so that what the thread logs has the request's id.
        self._jobs.put(functools.partial(contextvars.copy_context().run, self._run, search, future))
        return future

    def reload(self) -> None:
        """Ask the server again soon; does not block."""
        self._wake.set()

    def problems(self) -> list[str]:
        """Return what is wrong, for the operator; does not block."""
        return [self._detail or f"{self._shown}: {problem}"] if (problem := self.problem) else []

    def close(self) -> None:
        """Close all connections after the searches in progress; blocks for a few seconds at most."""
        self._is_closed = True
        self._wake.set()
        for _ in range(MAX_CONCURRENT):
            self._jobs.put(None)
        self._reader.close()
        self._watcher.join(_CLOSE_SECONDS)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _run(self, search: Callable[[CatalogReader], _T], future: Future[CatalogAnswer[_T]]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(CatalogAnswer(search(self._reader), ""))
        except BaseException as error:
            if isinstance(error, CatalogError) and not isinstance(error, CatalogTimeoutError):
                error.told = self.problem
                self._wake.set()  # the next searches need not find out by themselves
            future.set_exception(error)

    def _look(self) -> None:
        """Ask the server whether the catalogue is there."""
        self._check_began = time.monotonic()
        try:
            self._reader.check(_ANSWER_SECONDS)
        except CatalogTimeoutError as error:
            self._found(NO_ANSWER, error)
        except CatalogUnreachableError as error:
            self._found(UNREACHABLE, error)
        except CatalogError as error:
            self._found(NOT_USABLE, error)
        else:
            self._found("", None)
        finally:
            self._check_began = None

    def _found(self, problem: str, error: CatalogError | None) -> None:
        if problem != self._problem and not self._is_closed:
            _log.log(logging.WARNING if error else logging.INFO, "catalogue: %s", error or "usable again")
        self._problem, self._detail = problem, str(error or "")

    def _watch(self) -> None:
        while not self._is_closed:
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
            if self._is_closed:
                return
            try:
                self._look()
            except Exception:
                _log.exception("the catalogue's server cannot be asked")
