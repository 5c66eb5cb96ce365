# SPDX-License-Identifier: Apache-2.0
"""The provider `replay`: returns recorded answers, so that load tests and demonstrations do not call the web.

- A query that was not recorded is a failure, not an empty answer: what it would find is unknown, and the chain must
  continue with the next provider.
- Pictures are recorded too. A candidate without one loses its thumbnail URL, so that nothing is fetched from the web.
- It can imitate the latency and the failures of a real provider. A fixed seed decides which calls fail, so that runs
  are comparable.
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
from search_gateway.providers.base import Candidate, ProviderTerms
from search_gateway.providers.recorded_answers import load_answers

_SEED = 0


class ReplayProvider:
    """A `Provider`.

    Args:
        path: the recording.
        latency_seconds: duration of every answer and failure.
        failure_ratio: share of the calls that fail, 0 to 1.

    Raises:
        RecordingError: the file cannot be read as a recording.
    """

    name = "replay"
    terms = ProviderTerms(notes="a file of recorded answers")

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
        """Return what was recorded for the query. `embedding` is not used.

        Raises:
            ProviderTimeoutError: the imitated latency is longer than `timeout_seconds`.
            ProviderError: the query was not recorded, or this call imitates a failure.
        """
        fails = self._random.random() < self._failure_ratio
        if self._latency_seconds:
            await asyncio.sleep(max(0.0, min(self._latency_seconds, timeout_seconds)))
        if self._latency_seconds > timeout_seconds:
            raise ProviderTimeoutError(f"no answer within {timeout_seconds:.3g} s")
        if fails:
            raise ProviderError("an imitated failure, which the server's settings demand")
        answer = self._answers.get(query.key)
        if answer is None:
            raise ProviderError("no answer was recorded for this query: record one or use another provider")
        return list(answer[:max_candidates])

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _offline(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    return tuple(
        candidate if candidate.thumbnail is not None else dataclasses.replace(candidate, thumbnail_url="")
        for candidate in candidates
    )
