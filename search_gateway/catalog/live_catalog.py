# SPDX-License-Identifier: Apache-2.0
"""Searches a catalogue file that may be replaced, emptied or damaged meanwhile.

A thread looks at the file every two seconds. A new file is checked and opened beside the old one and then serves the
next searches. A file that cannot be used is refused, and the old one is searched as long as it can be read.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from search_gateway.catalog.base import CatalogAnswer, CatalogDamagedError, CatalogError, CatalogTimeoutError
from search_gateway.catalog.database import FileStamp, check_file
from search_gateway.catalog.store import CatalogStore

_log = logging.getLogger(__name__)

MISSING = "the catalogue's file is missing"
NOT_USABLE = "the catalogue's file cannot be used"
DAMAGED = "the catalogue is damaged"

_LOOK_SECONDS = 2.0
_RETRY_SECONDS = 30.0  # a file that failed and has not changed is opened again after this time
_LOAD_SECONDS = 120.0  # limit for reading the embeddings of a new file, in the background
_CLOSE_SECONDS = 5.0

_T = TypeVar("_T")


class LiveCatalog:
    """The catalogue at a path.

    Args:
        path: of the file.
        model_fingerprint: the model in use.

    Raises:
        CatalogError: the file is missing, not a catalogue, or of another model or version.
    """

    def __init__(self, path: Path, model_fingerprint: str) -> None:
        self._path = path
        self._model_fingerprint = model_fingerprint
        self._serving = _OpenCatalog(path, model_fingerprint)
        # Loaded now, so that the first photo does not wait. A search that needs the embeddings reports a failure.
        self._serving.submit(CatalogStore.load)
        self._swap = threading.Lock()
        self._one_look = threading.Lock()
        self._seen: FileStamp | None = None
        self._is_first_look = True
        self._retry_at = 0.0
        self._is_forced = False
        self._is_closed = False
        self._wake = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="catalogue watcher", daemon=True)
        self._watcher.start()

    @property
    def problem(self) -> str:
        """Why answers may be old or missing, written for callers; empty: all is well."""
        return self._serving.problem

    def submit(self, search: Callable[[CatalogStore], _T]) -> Future[CatalogAnswer[_T]]:
        """Run a search in the thread of the open file. The answer tells the state of that file, not of a later one."""
        with self._swap:  # the thread of a replaced file accepts no more searches
            return self._serving.submit(search)

    def reload(self) -> None:
        """Open the file again soon, even if it has not changed; does not block."""
        self._is_forced = True
        self._wake.set()

    def look(self) -> None:
        """Look at the file now, and open it if it was replaced; blocks while it is checked and opened."""
        with self._one_look:
            is_forced, self._is_forced = self._is_forced, False
            stamp = FileStamp.of(self._path)
            has_failed = self._serving.has_failed and time.monotonic() >= self._retry_at
            if not (is_forced or has_failed or self._is_first_look or stamp != self._seen):
                return
            self._seen, self._retry_at = stamp, time.monotonic() + _RETRY_SECONDS
            before = self.problem
            try:
                problem = self._taken(stamp, is_forced=is_forced)
                detail = problem and f"{self._path} is missing"
            except CatalogTimeoutError:
                self._seen = None  # locked by a build: again at the next look
                return
            except CatalogDamagedError as error:
                problem, detail = DAMAGED, str(error)
            except CatalogError as error:
                problem, detail = NOT_USABLE, str(error)
            self._is_first_look = False
            if problem != before:
                _log.log(logging.WARNING if problem else logging.INFO, "catalogue: %s", detail or "usable again")
            self._serving.problem, self._serving.detail = problem, detail

    def problems(self) -> list[str]:
        """Return what is wrong with the file, for the operator; does not block."""
        serving = self._serving
        if not serving.detail and serving.has_failed:
            return [f"{self._path} could not be read by the last searches"]
        return [serving.detail] if serving.detail else []

    def close(self) -> None:
        """Close the file after what is being searched; blocks until then."""
        self._is_closed = True
        self._wake.set()
        self._watcher.join(_CLOSE_SECONDS)  # it may wait for the lock of a build
        self._serving.close()

    def _taken(self, stamp: FileStamp | None, *, is_forced: bool) -> str:
        """Open the file if it was replaced or could not be used; return what is wrong with it.

        Raises:
            CatalogError: it cannot be used.
        """
        if stamp is None:
            return MISSING
        old = self._serving
        with CatalogStore.open_for_reading(self._path, model_fingerprint=self._model_fingerprint) as store:
            identity, revision = store.identity()
        is_same = (stamp.file, identity) == (old.stamp.file, old.identity) and revision >= old.revision
        is_good = not (is_forced or old.has_failed or self.problem)
        if is_same and is_good and not self._is_first_look:
            return ""  # a build has added to it
        check_file(self._path, lambda: self._is_closed)
        if is_same and is_good:
            return ""
        new = _OpenCatalog(self._path, self._model_fingerprint)
        try:
            new.submit(lambda store: store.load(_LOAD_SECONDS)).result()
        except BaseException:
            new.close()
            raise
        with self._swap:
            self._serving = new
        old.close(wait=False)
        _log.info("catalogue: %s is opened anew", self._path)
        return ""

    def _watch(self) -> None:
        while not self._is_closed:
            try:
                self.look()
            except Exception:
                _log.exception("the catalogue's file cannot be looked at")
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()


class _OpenCatalog:
    """An open file and its thread, since SQLite's calls block and a connection belongs to a thread.

    Raises:
        CatalogError: it cannot be used.
    """

    def __init__(self, path: Path, model_fingerprint: str) -> None:
        # Taken before the file is opened, so that the next look notices a replacement in between.
        self.stamp = FileStamp.of(path) or FileStamp(0, 0, 0, 0, 0)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="catalogue")
        try:
            self._store = self._thread.submit(
                CatalogStore.open_for_reading, path, model_fingerprint=model_fingerprint
            ).result()
            self.identity, self.revision = self._thread.submit(self._store.identity).result()
        except CatalogError:
            self._thread.shutdown()
            raise
        self.has_failed = False
        self.problem = ""  # why answers from this file may be old or missing, written for callers; empty: all is well
        self.detail = ""  # the same for the operator

    def submit(self, search: Callable[[CatalogStore], _T]) -> Future[CatalogAnswer[_T]]:
        # In the request's context, so that what the thread logs has the request's id.
        return self._thread.submit(contextvars.copy_context().run, self._run, search)

    def _run(self, search: Callable[[CatalogStore], _T]) -> CatalogAnswer[_T]:
        try:
            return CatalogAnswer(search(self._store), self.problem)
        except CatalogTimeoutError:
            raise
        except CatalogError as error:
            self.has_failed = True
            error.told = self.problem
            raise

    def close(self, *, wait: bool = True) -> None:
        """Close the file after the searches that were submitted before."""
        self._thread.submit(self._store.close)
        self._thread.shutdown(wait=wait)
