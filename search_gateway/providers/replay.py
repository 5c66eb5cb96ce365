# SPDX-License-Identifier: Apache-2.0
"""The provider `replay`: answers that were recorded, so that load tests and demonstrations make no calls to the web.

- A query that was not recorded is a failure, not an empty answer: what would have been found is unknown, and a chain
  must go on to the next provider.
- Pictures are recorded, too. A candidate without one has no address of one either: nothing is fetched from the web.
- Time and failures of a real provider can be imitated. Which calls fail is drawn from a fixed seed: runs compare.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.errors import ProviderError, ProviderTimeoutError
from search_gateway.providers.base import Candidate
from search_gateway.providers.recorded_answers import load_answers

_SEED = 0


class ReplayProvider:
    """A `Provider`.

    Args:
        latency_seconds: that every answer and every failure takes.
        failure_ratio: share of the calls that fail, 0 to 1.

    Raises:
        RecordingError: the file cannot be read as a recording.
    """

    name = "replay"

    def __init__(self, path: Path, *, latency_seconds: float = 0.0, failure_ratio: float = 0.0):
        self._answers = {words: _offline(candidates) for words, candidates in load_answers(path).items()}
        self._latency_seconds = latency_seconds
        self._failure_ratio = failure_ratio
        self._random = random.Random(_SEED)

    async def find(
        self,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[Candidate]:
        """What was recorded for the query's words. `embedding` is not used.

        Raises:
            ProviderTimeoutError: the imitated time is longer than `timeout_seconds`.
            ProviderError: the query was not recorded, or an imitated failure.
        """
        fails = self._random.random() < self._failure_ratio
        if self._latency_seconds:
            await asyncio.sleep(max(0.0, min(self._latency_seconds, timeout_seconds)))
        if self._latency_seconds > timeout_seconds:
            raise ProviderTimeoutError(f"no answer within {timeout_seconds:.3g} s")
        if fails:
            raise ProviderError("a failure that the server's settings imitate")
        answer = self._answers.get(query.key)
        if answer is None:
            raise ProviderError("no answer was recorded for these words: record one or use another provider")
        return list(answer[:max_candidates])

    async def close(self) -> None:
        """Nothing is held."""


def _offline(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    return tuple(
        candidate if candidate.thumbnail is not None else dataclasses.replace(candidate, thumbnail_url="")
        for candidate in candidates
    )
