# SPDX-License-Identifier: Apache-2.0
"""The provider `catalog`: the user's own products, in a file or on a server."""

from __future__ import annotations

import asyncio
import copy
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import (
    NO_FILTERS,
    CatalogError,
    CatalogModel,
    CatalogReader,
    CatalogRow,
    CatalogTimeoutError,
    CatalogUnreachableError,
    Filters,
)
from search_gateway.catalog.server_catalog import UNREACHABLE
from search_gateway.catalog.stores import serve
from search_gateway.errors import ProviderError, ProviderTimeoutError
from search_gateway.providers.base import Candidate, ProviderTerms, StaleCandidates

NAME = "catalog"

# Share of the candidates that are found by looks if a photo is given. A shop may use another word for the product, or
# have more blue shirts than are asked for. docs/evaluation.md shows what a half gives.
NEIGHBOUR_SHARE = 0.5


class CatalogProvider:
    """Searches a catalogue, including what a build adds meanwhile and what replaces it."""

    terms = ProviderTerms(notes="your own products")

    def __init__(self, address: CatalogAddress | Path, model_fingerprint: str, least_candidates: int = 0) -> None:
        """Open the catalogue. This blocks for some milliseconds, and for seconds while its server does not answer.

        Args:
            address: of the catalogue.
            model_fingerprint: of the model whose embeddings it must have.
            least_candidates: looks for at least as many products: nothing has to be fetched for one more.

        Raises:
            CatalogError: it is missing, not a catalogue, or of another model or version.
        """
        if isinstance(address, Path):
            address = CatalogAddress("file", address)
        self._catalog = serve(address, CatalogModel(model_fingerprint))
        self._least_candidates = least_candidates
        self._closed = False
        self._filters = NO_FILTERS

    @property
    def name(self) -> str:
        """Its name in requests and settings."""
        return NAME

    async def find(
        self,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[Candidate]:
        """Find products whose title has words of the query, best first. To find none is not an error.

        If the photo's embedding is given, NEIGHBOUR_SHARE of them are the products that look most like it.
        They are marked, and those that the words did not find come last. All pass the filters.

        Returns:
            `StaleCandidates` if something is wrong with the catalogue.

        Raises:
            ProviderTimeoutError: no answer within `timeout_seconds`.
            ProviderError: the catalogue cannot be read.
        """
        if self._closed:
            raise ProviderError("the catalogue is closed")
        max_candidates = max(max_candidates, self._least_candidates)
        filters = self._filters
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds

        def search(store: CatalogReader) -> list[Candidate]:
            # Waiting for the thread counts too; any thread may call loop.time().
            rows = store.find(query.words, max_candidates, deadline - loop.time(), filters)
            if embedding is None:
                return [_candidate(row) for row in rows]
            count = math.ceil(NEIGHBOUR_SHARE * max_candidates)
            similar = [one.row for one in store.similar(embedding, count, deadline - loop.time(), filters)]
            neighbours = {row.path for row in similar}
            # A product that was found both ways stays in its place among the words and uses no place of theirs.
            named, places = [], max_candidates - len(neighbours)
            for row in rows:
                if row.path in neighbours or places > 0:
                    named.append(row)
                    places -= row.path not in neighbours
            by_words = {row.path for row in named}
            chosen = named + [row for row in similar if row.path not in by_words]
            return [_candidate(row, is_nearest_neighbour=row.path in neighbours) for row in chosen]

        try:
            async with asyncio.timeout_at(deadline):
                answer = await asyncio.wrap_future(self._catalog.submit(search))
        except (TimeoutError, CatalogTimeoutError) as error:
            raise ProviderTimeoutError(f"the catalogue gave no answer within {timeout_seconds:.3g} s") from error
        except CatalogError as error:
            reason = UNREACHABLE if isinstance(error, CatalogUnreachableError) else "the catalogue cannot be read"
            raise ProviderError(error.told or reason) from error
        if answer.problem:
            return StaleCandidates(answer.found, f"{answer.problem}; what was opened before is searched")
        return answer.found

    def filtered(self, filters: Filters) -> CatalogProvider:
        """Return the same provider with filters, for one request. It is not closed."""
        view = copy.copy(self)
        view._filters = filters
        return view

    def problems(self) -> list[str]:
        """Return what is wrong with the catalogue, for the operator."""
        return self._catalog.problems()

    def reload(self) -> None:
        """Look at the catalogue again soon; safe in a signal handler."""
        self._catalog.reload()

    async def close(self) -> None:
        """Close the catalogue after the searches in progress. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._catalog.close)


def _candidate(row: CatalogRow, *, is_nearest_neighbour: bool = False) -> Candidate:
    return Candidate(
        title=row.title,
        # The path is relative: callers must not learn where the folder is on the server.
        url=row.url or row.path,
        thumbnail_url="",
        source=NAME,
        width=row.width,
        height=row.height,
        embedding=row.embedding,
        thumbnail=row.thumbnail,
        is_nearest_neighbour=is_nearest_neighbour,
    )
