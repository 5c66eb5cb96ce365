# SPDX-License-Identifier: Apache-2.0
"""How long each stage of a request took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from search_gateway.observability.observer import Observer
from search_gateway.observability.tracing import span


class StageTimer:
    """Measures the stages of one request.

    Args:
        observer: told of each stage.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer or Observer()
        self._started = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a block, also if it raises; it has a span in the request's trace."""
        started = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        """Add the duration of a stage that was measured elsewhere."""
        self._observer.stage_ended(name, seconds)
        self._stages[name] = self._stages.get(name, 0.0) + 1000 * seconds

    def milliseconds(self) -> dict[str, float]:
        """Return the duration of each stage in the order of their first use, then "total", since the start."""
        return {**self._stages, "total": 1000 * (time.perf_counter() - self._started)}
