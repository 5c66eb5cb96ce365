# SPDX-License-Identifier: Apache-2.0
"""What a photo alone says, for stand-ins of the pipeline."""

from __future__ import annotations

from captioner.query import Query
from search_gateway.pipeline import PhotoQuery
from search_gateway.ranking.query_hypotheses import QueryHypotheses


def photo_query(text: str) -> PhotoQuery:
    """Return a certain query."""
    query = Query.of(text)
    return PhotoQuery(query, QueryHypotheses.certain(query), None, None)
