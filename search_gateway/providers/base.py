# SPDX-License-Identifier: Apache-2.0
"""What a provider is and what it returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from captioner.query import Query


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A picture that a provider found for a query; not yet compared with the photo."""

    title: str
    url: str  # page or file the picture belongs to; in a catalogue without URLs its path in the photos folder
    thumbnail_url: (
        str  # where a small version can be fetched; empty where `thumbnail` or `embedding` makes that needless
    )
    source: str  # the site or index it comes from
    image_url: str = ""
    width: int = 0  # pixels of the full picture; 0 where unknown
    height: int = 0
    embedding: npt.NDArray[np.float32] | None = None  # [D], L2-normalised, where the provider has stored it
    thumbnail: bytes | None = None  # an image file, where the provider has it at hand
    is_nearest_neighbour: bool = False  # found by the photo's embedding, whether or not the words found it too


class StaleCandidates(list[Candidate]):
    """Cached candidates of a provider that fails now.

    Args:
        candidates: what it found for the same words before.
        remark: how old the answer is and what failed; fit for the caller.
    """

    def __init__(self, candidates: Iterable[Candidate], remark: str):
        super().__init__(candidates)
        self.remark = remark


class Provider(Protocol):
    """An image search by words."""

    @property
    def name(self) -> str:
        """Its name in requests and settings."""

    async def find(
        self,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[Candidate]:
        """Find pictures for a query, best first; `StaleCandidates` where a cached answer replaces a failure.

        Args:
            embedding: the photo's, [D], L2-normalised; for providers that can also look. Most cannot.

        Raises:
            ProviderTimeoutError: no answer within `timeout_seconds`.
            ProviderNotAskedError: it was not asked, on purpose.
            ProviderError: the provider failed, refused, or cannot be distinguished from one that did.
        """

    async def close(self) -> None:
        """Release the provider's resources."""
