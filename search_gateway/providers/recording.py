# SPDX-License-Identifier: Apache-2.0
"""Wraps a provider and records its answers for the provider `replay`.

It also fetches the pictures and passes them on with the candidates, so that they are fetched once and a replay does not
need the web. Failures of the provider are not recorded. Failures of the recording are logged and cost no answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.deadline import Deadline
from search_gateway.providers.base import Candidate, Provider, ProviderTerms
from search_gateway.providers.recorded_answers import MAX_FILE_BYTES, RecordingError, append_line, line_of
from search_gateway.tasks import all_of
from search_gateway.thumbnails.fetcher import Fetch, ThumbnailError

_log = logging.getLogger(__name__)

# Share of the time left after the provider's answer; the rest is for writing and for the callers.
_SHARE_FOR_THUMBNAILS = 0.7


class RecordingProvider:
    """A `Provider` that records another one.

    Args:
        provider: the provider to record.
        path: the file; answers are appended.
        fetch: fetches thumbnails.
        max_file_bytes: recording ends before the file becomes larger.
    """

    def __init__(
        self,
        provider: Provider,
        path: Path,
        fetch: Fetch,
        max_file_bytes: int = MAX_FILE_BYTES,
    ):
        self._provider = provider
        self._path = path
        self._fetch = fetch
        self._max_file_bytes = max_file_bytes
        self._is_full = False

    @property
    def name(self) -> str:
        """The recorded provider's name."""
        return self._provider.name

    @property
    def terms(self) -> ProviderTerms:
        """What the recorded provider declares."""
        return self._provider.terms

    async def find(
        self,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[Candidate]:
        """Return the provider's candidates, with thumbnails.

        Raises:
            ProviderError: the provider raised it.
        """
        began = time.monotonic()
        candidates = await self._provider.find(query, max_candidates, timeout_seconds, embedding)
        if self._is_full or not query.key or not candidates:
            return candidates
        seconds = _SHARE_FOR_THUMBNAILS * (timeout_seconds - (time.monotonic() - began))
        deadline = Deadline(seconds)
        candidates = await all_of(self._with_thumbnail(one, seconds, deadline) for one in candidates)
        await self._write(line_of(query.key, candidates))
        return candidates

    async def close(self) -> None:
        """Close the recorded provider."""
        await self._provider.close()

    async def _with_thumbnail(self, candidate: Candidate, seconds: float, deadline: Deadline) -> Candidate:
        if candidate.thumbnail is not None or not candidate.thumbnail_url or seconds <= 0:
            return candidate
        try:
            thumbnail = await self._fetch(candidate.thumbnail_url, seconds, deadline=deadline, search=deadline)
        except ThumbnailError:
            return candidate
        except Exception:
            _log.exception("a thumbnail of provider %s was not recorded", self.name)
            return candidate
        return dataclasses.replace(candidate, thumbnail=thumbnail)

    async def _write(self, line: bytes) -> None:
        try:
            await asyncio.to_thread(append_line, self._path, line, self._max_file_bytes)
        except RecordingError as error:
            self._is_full = True
            _log.warning("recording of provider %s stops: %s", self.name, error)
        except OSError as error:
            _log.warning("an answer of provider %s was not recorded: %s", self.name, error.strerror or "disk full")
