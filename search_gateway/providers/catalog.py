# SPDX-License-Identifier: Apache-2.0
"""The provider `catalog`: the user's own products, offline.

SQLite blocks and binds a connection to its thread, so the store lives in a thread of its own.
"""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.catalog.store import (
    CatalogError,
    CatalogRow,
    CatalogStore,
    CatalogTimeoutError,
)
from search_gateway.errors import ProviderError, ProviderTimeoutError
from search_gateway.providers.base import Candidate

NAME = "catalog"

# Of the candidates, where a photo is given. Looks help words out: a shop may use another word for the product, or have
# more blue shirts than are asked for. docs/evaluation.md has what a half gives.
NEIGHBOUR_SHARE = 0.5


class CatalogProvider:
    """Searches one catalogue file; what a build adds meanwhile is found at once."""

    def __init__(self, path: Path, model_fingerprint: str) -> None:
        """Open the catalogue; blocks for some milliseconds.

        Raises:
            CatalogError: the file is missing, not a catalogue, or of another model or version.
        """
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=NAME)
        self._closed = False
        try:
            self._store = self._thread.submit(
                CatalogStore.open_for_reading, path, model_fingerprint=model_fingerprint
            ).result()
        except CatalogError:
            self._thread.shutdown()
            raise
        # The first photo need not wait for the embeddings. A failure here is reported by the search that needs them.
        self._thread.submit(self._store.load)

    @property
    def name(self) -> str:
        return NAME

    async def find(
        self,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[Candidate]:
        """Products whose title has the words of the query, best first; none is not an error.

        Where the photo's embedding is given, the products that look most like it are among them, NEIGHBOUR_SHARE of
        `max_candidates`, and come last but for those that the words found, too. All of them are marked.

        Raises:
            ProviderTimeoutError: no answer within `timeout_seconds`.
            ProviderError: the catalogue cannot be read.
        """
        if self._closed:
            raise ProviderError("the catalogue is closed")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds

        def search() -> list[Candidate]:
            # The time spent waiting for the thread counts; loop.time() may be read from any thread.
            rows = self._store.find(query.words, max_candidates, deadline - loop.time())
            if embedding is None:
                return [_candidate(row) for row in rows]
            count = math.ceil(NEIGHBOUR_SHARE * max_candidates)
            similar = [one.row for one in self._store.similar(embedding, count, deadline - loop.time())]
            neighbours = {row.id for row in similar}
            # What was found twice keeps its place among the words, however far back: its place is one by looks, too.
            named, places = [], max_candidates - len(neighbours)
            for row in rows:
                if row.id in neighbours or places > 0:
                    named.append(row)
                    places -= row.id not in neighbours
            by_words = {row.id for row in named}
            chosen = named + [row for row in similar if row.id not in by_words]
            return [_candidate(row, is_nearest_neighbour=row.id in neighbours) for row in chosen]

        try:
            async with asyncio.timeout_at(deadline):
                return await loop.run_in_executor(self._thread, search)
        except (TimeoutError, CatalogTimeoutError) as error:
            raise ProviderTimeoutError(f"the catalogue gave no answer within {timeout_seconds:.3g} s") from error
        except CatalogError as error:
            raise ProviderError("the catalogue cannot be read") from error

    async def close(self) -> None:
        """Close the file, after what is being searched; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown(wait=False)


def _candidate(row: CatalogRow, *, is_nearest_neighbour: bool = False) -> Candidate:
    return Candidate(
        title=row.title,
        # Callers are not to learn where the folder is on the server.
        url=row.url or row.path,
        thumbnail_url="",
        source=NAME,
        width=row.width,
        height=row.height,
        embedding=row.embedding,
        thumbnail=row.thumbnail,
        is_nearest_neighbour=is_nearest_neighbour,
    )
