# SPDX-License-Identifier: Apache-2.0
"""Asks one provider after the other until one answers, or several together, and reports those that failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.catalog.base import NO_FILTERS, Filters
from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError, ProviderError, ProviderNotAskedError, ProviderTimeoutError
from search_gateway.observability.observer import Observer
from search_gateway.providers.base import Candidate, Diagnosable, Filtering, Provider, Reloadable, StaleCandidates
from search_gateway.providers.guard.guarded import GuardedProvider

_log = logging.getLogger(__name__)

_CLOSE_SECONDS = 2.0  # of each provider

CANNOT_FILTER = "it cannot filter by price, availability or category"


@dataclass(frozen=True)
class Degradation:
    """A part of the answer that is missing or degraded, and the reason, written for the caller."""

    part: str
    reason: str


@dataclass(frozen=True)
class ProviderResult:
    """The candidates of the first step that answered, and what failed before and in it."""

    provider: str  # with + between several that were asked together; empty where none answered
    candidates: list[Candidate]
    degraded: list[Degradation] = field(default_factory=list)


@dataclass(frozen=True)
class _Answer:
    provider: str
    candidates: list[Candidate] | None  # None where it failed
    degradation: Degradation | None = None


Step = Provider | Sequence[Provider]


class ProviderChain:
    """The providers in the order in which they are asked; those of one step are asked together.

    Args:
        steps: each a provider, or several whose candidates are merged; may be empty.
        timeout_seconds: for one provider's answer.
        observer: told of each answer and failure.
        wait_seconds: how long the others of a step are waited for once one has found something.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        timeout_seconds: float,
        observer: Observer | None = None,
        *,
        wait_seconds: float = 2.0,
    ):
        self._observer = observer or Observer()
        self._steps: list[list[Provider]] = [list(step) if isinstance(step, Sequence) else [step] for step in steps]
        self._providers = [provider for step in self._steps for provider in step]
        self._timeout_seconds = timeout_seconds
        self._wait_seconds = wait_seconds
        self._left_behind: set[asyncio.Task[object]] = set()  # cancelled, and not waited for

    @property
    def guarded(self) -> list[GuardedProvider]:
        """The providers on the web, which have a breaker, a quota and perhaps a budget."""
        return [one for one in self._providers if isinstance(one, GuardedProvider)]

    @property
    def names(self) -> list[str]:
        """The names of the providers."""
        return [provider.name for provider in self._providers]

    @property
    def thumbnail_hosts(self) -> list[str]:
        """The hosts that the providers declare, as regular expressions."""
        return [host for provider in self._providers for host in provider.terms.thumbnail_hosts]

    def check(self, name: str | None) -> None:
        """Check the name of a provider; None stands for the chain.

        Raises:
            BadRequestError: no provider has this name.
        """
        if name is not None and name not in self.names:
            raise BadRequestError(
                f"there is no provider {_shown(name)}; this server has: {', '.join(self.names) or 'none'}"
            )

    async def find(
        self,
        query: Query,
        name: str | None,
        max_candidates: int,
        deadline: Deadline,
        embedding: npt.NDArray[np.float32] | None = None,
        *,
        after: str | None = None,
        filters: Filters = NO_FILTERS,
    ) -> ProviderResult:
        """Return the candidates of the named provider, or of the first step that answers. Failures are not raised.

        Args:
            query: what to search for.
            name: the only provider to ask; None: all in turn.
            max_candidates: maximum number of candidates.
            deadline: of the request; a step that is not the last gets half of the remaining time at most.
            embedding: the photo's, [D], for providers that also search by looks.
            after: `ProviderResult.provider` of the step that was asked last; None: begin with the first one.
            filters: of the products; providers that cannot filter are not asked.

        Raises:
            BadRequestError: no provider has this name.
        """
        self.check(name)
        start = 0 if after is None else self._step_of(after.split("+")[0]) + 1
        chosen = [[one for one in step if name in (None, one.name)] for step in self._steps[start:]]
        asked = [step for step in chosen if step]
        degraded: list[Degradation] = []
        if filters:
            unable = [one.name for step in asked for one in step if not isinstance(one, Filtering)]
            degraded = [Degradation(one, CANNOT_FILTER) for one in unable]
            able = [[one.filtered(filters) for one in step if isinstance(one, Filtering)] for step in asked]
            asked = [step for step in able if step]
        for i, step in enumerate(asked):
            # A step that is not the last leaves time for the next ones.
            share = deadline.remaining_seconds() / (2 if i + 1 < len(asked) else 1.1)
            timeout_seconds = min(self._timeout_seconds, share)
            if len(step) == 1:
                answers = [await self._ask(step[0], query, max_candidates, timeout_seconds, embedding)]
            else:
                answers = await self._ask_together(step, query, max_candidates, timeout_seconds, embedding)
            degraded += [answer.degradation for answer in answers if answer.degradation is not None]
            found = {answer.provider: answer.candidates for answer in answers if answer.candidates is not None}
            if found:
                names = [name for name, candidates in found.items() if candidates] or list(found)
                candidates = next(iter(found.values())) if len(step) == 1 else _merged(found, max_candidates)
                return ProviderResult("+".join(names), candidates, degraded)
        return ProviderResult("", [], degraded)

    async def _ask_together(
        self,
        step: Sequence[Provider],
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None,
    ) -> list[_Answer]:
        """Ask several providers at the same time; returns their answers in their order."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_seconds
        tasks = {
            provider.name: asyncio.create_task(self._ask(provider, query, max_candidates, timeout_seconds, embedding))
            for provider in step
        }
        pending = set(tasks.values())
        try:
            while pending and (seconds := end - loop.time()) > 0:
                done, pending = await asyncio.wait(pending, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if any(task.result().candidates for task in done):
                    end = min(end, loop.time() + self._wait_seconds)
        finally:
            # Not awaited: one that ignores its cancellation must not hold up the answer.
            for task in pending:
                task.cancel()
                self._left_behind.add(task)
                task.add_done_callback(self._forget)
        answers = []
        for name, task in tasks.items():
            if task in pending:
                reason = "it was slower than the other providers, whose results are shown"
                answers.append(_Answer(name, None, Degradation(name, reason)))
                self._observer.provider_answered(name, "timeout")
            else:
                answers.append(task.result())
        return answers

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._left_behind.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it

    async def _ask(
        self,
        provider: Provider,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None,
    ) -> _Answer:
        """Ask one provider. What it raises becomes part of the answer."""
        name = provider.name
        began = time.monotonic()
        try:
            candidates = await provider.find(query, max_candidates, timeout_seconds, embedding)
        except ProviderNotAskedError as error:
            # Many such errors come while the breaker is open, which was logged when it opened.
            _log.debug("provider %s was not asked: %s", name, error)
            degradation, outcome = Degradation(name, str(error)), "not_asked"
        except ProviderError as error:
            # Without the cause's text: it may hold the URL, and with it the query.
            _log.warning("provider %s failed: %s (%s)", name, error, type(error.__cause__).__name__)
            degradation = Degradation(name, str(error))
            outcome = "timeout" if isinstance(error, ProviderTimeoutError) else "failed"
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise  # the search itself was cancelled
            # A provider depends on foreign code and web pages; their defects must not fail the request.
            _log.exception("provider %s broke", name)
            degradation, outcome = Degradation(name, "the provider failed unexpectedly"), "broke"
        else:
            is_stale = isinstance(candidates, StaleCandidates)
            self._observer.provider_answered(name, "stale" if is_stale else "found" if candidates else "empty")
            self._observer.provider_took(name, time.monotonic() - began)
            remark = Degradation(name, candidates.remark) if isinstance(candidates, StaleCandidates) else None
            return _Answer(name, _credited(candidates, provider.terms.attribution), remark)
        self._observer.provider_answered(name, outcome)
        self._observer.provider_took(name, time.monotonic() - began)
        return _Answer(name, None, degradation)

    def _step_of(self, name: str) -> int:
        return next(i for i, step in enumerate(self._steps) if any(one.name == name for one in step))

    def problems(self) -> list[str]:
        """Return what the providers know to be wrong, each as "provider: reason" for the operator; does not block."""
        return [
            f"{provider.name}: {problem}"
            for provider in self._providers
            if isinstance(provider, Diagnosable)
            for problem in provider.problems()
        ]

    def reload(self) -> None:
        """Make the providers open their data again, if they can."""
        for provider in self._providers:
            if isinstance(provider, Reloadable):
                provider.reload()

    async def close(self) -> None:
        """Close all providers at once. The log names those that fail, or take so long that they are abandoned."""
        closing = {asyncio.create_task(one.close(), name=f"close provider {one.name}"): one for one in self._providers}
        if not closing:
            return
        done, unfinished = await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("provider %s was not closed", closing[task].name, exc_info=error)
        for task in unfinished:
            _log.error("provider %s does not close within %g s: it is abandoned", closing[task].name, _CLOSE_SECONDS)
            task.cancel()


def _shown(name: str) -> str:
    """Return a name from a request, short and printable."""
    return repr(name if len(name) <= 40 else name[:40] + "…")


def _credited(candidates: list[Candidate], attribution: str) -> list[Candidate]:
    """Give candidates without a credit line that of their provider."""
    if not attribution:
        return candidates
    return [one if one.attribution else replace(one, attribution=attribution) for one in candidates]


def _merged(found: Mapping[str, Sequence[Candidate]], max_candidates: int) -> list[Candidate]:
    """Take the candidates of several providers in turns, so that each has its share, and merge equal ones.

    `max_candidates` limits those whose thumbnail must be looked at. One that brings its embedding costs nothing, and a
    catalogue's nearest neighbours come last in its list.

    Equal are those with the same thumbnail, and those with the same picture on the same page. Refinement recognises
    other copies of a picture.
    """
    merged: list[Candidate] = []
    num_to_see = 0
    places: dict[tuple[str, ...], int] = {}
    names = list(found)
    for row in zip_longest(*found.values()):
        for name, candidate in zip(names, row, strict=True):
            if candidate is None:
                continue
            keys: list[tuple[str, ...]] = []
            if candidate.thumbnail_url:
                keys.append((candidate.thumbnail_url,))
            if candidate.image_url:
                keys.append((candidate.image_url, candidate.url))
            place = next((places[key] for key in keys if key in places), None)
            if place is None:
                if candidate.embedding is None:
                    if num_to_see >= max_candidates:
                        continue
                    num_to_see += 1
                place = len(merged)
                merged.append(replace(candidate, provider=name))
            elif candidate.licence and not merged[place].licence:
                # What must be shown with a picture must not be lost.
                merged[place] = replace(
                    merged[place],
                    licence=candidate.licence,
                    licence_url=candidate.licence_url,
                    attribution=candidate.attribution,
                )
            places |= dict.fromkeys(keys, place)
    return merged
