# SPDX-License-Identifier: Apache-2.0
"""The protocol of a provider, and the candidates it returns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.catalog.base import Filters


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A picture that a provider found for a query; not yet compared with the photo."""

    title: str
    url: str  # page or file of the picture; in a catalogue without URLs its path in the photos folder
    thumbnail_url: str  # of a small version; may be empty where `thumbnail` or `embedding` is given
    source: str  # the site or index it comes from
    image_url: str = ""
    width: int = 0  # pixels of the full picture; 0 where unknown
    height: int = 0
    embedding: npt.NDArray[np.float32] | None = None  # [D], L2-normalised, if the provider stores it
    thumbnail: bytes | None = None  # an image file, if the provider has it
    is_nearest_neighbour: bool = False  # found by the photo's embedding, perhaps by the words too
    provider: str = ""  # which of several providers found it; empty where only one was asked
    licence: str = ""  # its short name, as "CC BY-SA 4.0"; empty where unknown
    licence_url: str = ""
    attribution: str = ""  # the credit line that must be shown with it; empty where none is asked for


@dataclass(frozen=True, kw_only=True)
class ProviderTerms:
    """What a provider declares: its operator's terms and what its answers need.

    Attributes:
        is_official: whether its operator offers this search to programs.
        max_cache_seconds: how old a cached answer may become, also one that replaces a failure; 0: nothing may be kept;
            None: the terms set no limit.
        attribution: credit line of results that have none of their own; empty where none is asked for.
        min_interval_seconds: minimum time between two calls.
        thumbnail_hosts: hosts of its thumbnails, as regular expressions that match whole host names.
        cost_per_call: US dollars; 0 where a call is free.
        notes: one sentence for the operator, which says where the terms are.
    """

    is_official: bool = True
    max_cache_seconds: float | None = None
    attribution: str = ""
    min_interval_seconds: float = 0.0
    thumbnail_hosts: tuple[str, ...] = ()
    cost_per_call: float = 0.0
    notes: str = ""

    def __post_init__(self) -> None:
        for host in self.thumbnail_hosts:
            re.compile(host)
        numbers = (self.max_cache_seconds or 0.0, self.min_interval_seconds, self.cost_per_call)
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError("max_cache_seconds, min_interval_seconds and cost_per_call must not be negative")


class StaleCandidates(list[Candidate]):
    """Candidates of a provider that fails now, from what it had before.

    Args:
        candidates: what it found.
        remark: how old the answer is or what failed, written for the caller.
    """

    def __init__(self, candidates: Iterable[Candidate], remark: str):
        super().__init__(candidates)
        self.remark = remark


class Provider(Protocol):
    """An image search by words."""

    @property
    def name(self) -> str:
        """Its name in requests and settings."""

    @property
    def terms(self) -> ProviderTerms:
        """What it declares."""

    async def find(
        self,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[Candidate]:
        """Find pictures for a query, best first; `StaleCandidates` where a cached answer replaces a failure.

        Args:
            query: what to search for; without words nothing is found.
            max_candidates: maximum number of pictures.
            timeout_seconds: for the whole call.
            embedding: the photo's, float32 [D], L2-normalised, for providers that also search by looks; most ignore it.

        Raises:
            ProviderTimeoutError: no answer within `timeout_seconds`.
            ProviderNotAskedError: the gateway deliberately did not ask it.
            ProviderError: the provider failed or refused, or its answer does not show whether it did.
        """

    async def close(self) -> None:
        """Release the provider's resources."""


@dataclass(frozen=True, kw_only=True)
class QuotaWindow:
    """One of the limits that a provider reports with its answers, such as a number of calls per month."""

    limit: int  # calls in the window
    remaining: int
    window_seconds: float | None = None  # None where unknown
    reset_seconds: float | None = None  # until `remaining` is `limit` again; None where unknown


@runtime_checkable
class ReportsQuota(Protocol):
    """A provider whose answers say how many more calls it takes."""

    @property
    def quota(self) -> tuple[QuotaWindow, ...]:
        """The limits of the last answer; empty before it."""


@runtime_checkable
class Filtering(Protocol):
    """A provider that can leave out products by their attributes."""

    def filtered(self, filters: Filters) -> Provider:
        """Return the same provider with filters, for one request. It is not closed."""


@runtime_checkable
class Reloadable(Protocol):
    """A provider that can open its data again."""

    def reload(self) -> None:
        """Do so soon, without blocking; safe in a signal handler."""


@runtime_checkable
class Diagnosable(Protocol):
    """A provider that knows without being asked what is wrong with it."""

    def problems(self) -> list[str]:
        """Return why its answers are missing or old, for the operator; empty if all is well. Does not block."""
