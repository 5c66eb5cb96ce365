# SPDX-License-Identifier: Apache-2.0
"""A provider in front of another that writes down what that one answers, for the provider `replay`.

It fetches the pictures as well and hands them on with the candidates, so that they are fetched once and a replay needs
no web. Failures are not recorded. Recording must not cost anybody an answer: what goes wrong here is logged.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.providers.base import Candidate, Provider
from search_gateway.providers.recorded_answers import MAX_FILE_BYTES, RecordingError, append_line, line_of
from search_gateway.thumbnails.fetcher import ThumbnailError

_log = logging.getLogger(__name__)

# Of the time that is left when the provider has answered; the rest is for writing and for those who wait.
_SHARE_FOR_THUMBNAILS = 0.7


class RecordingProvider:
    """Args:
    fetch: a thumbnail's bytes by its URL and the seconds it may take; raises ThumbnailError.
    """

    def __init__(
        self,
        provider: Provider,
        path: Path,
        fetch: Callable[[str, float], Awaitable[bytes]],
        max_file_bytes: int = MAX_FILE_BYTES,
    ):
        self._provider = provider
        self._path = path
        self._fetch = fetch
        self._max_file_bytes = max_file_bytes
        self._is_full = False

    @property
    def name(self) -> str:
        return self._provider.name

    async def find(
        self,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[Candidate]:
        """As the provider's own, with thumbnails.

        Raises:
            ProviderError: as the provider's own.
        """
        began = time.monotonic()
        candidates = await self._provider.find(query, max_candidates, timeout_seconds, embedding)
        if self._is_full or not query.key or not candidates:
            return candidates
        seconds = _SHARE_FOR_THUMBNAILS * (timeout_seconds - (time.monotonic() - began))
        candidates = await asyncio.gather(*(self._with_thumbnail(one, seconds) for one in candidates))
        await self._write(line_of(query.key, candidates))
        return candidates

    async def close(self) -> None:
        await self._provider.close()

    async def _with_thumbnail(self, candidate: Candidate, seconds: float) -> Candidate:
        if candidate.thumbnail is not None or not candidate.thumbnail_url or seconds <= 0:
            return candidate
        try:
            # The fetcher may queue before it counts its time.
            async with asyncio.timeout(seconds):
                thumbnail = await self._fetch(candidate.thumbnail_url, seconds)
        except (ThumbnailError, TimeoutError):
            return candidate
        return dataclasses.replace(candidate, thumbnail=thumbnail)

    async def _write(self, line: bytes) -> None:
        try:
            await asyncio.to_thread(append_line, self._path, line, self._max_file_bytes)
        except RecordingError as error:
            self._is_full = True
            _log.warning("recording of provider %s ends: %s", self.name, error)
        except OSError as error:
            _log.warning("an answer of provider %s was not recorded: %s", self.name, error.strerror or "disk full")
