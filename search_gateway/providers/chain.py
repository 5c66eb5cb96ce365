# SPDX-License-Identifier: Apache-2.0
"""Asks one provider after the other until one answers, and reports those that failed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError, ProviderError, ProviderNotAskedError, ProviderTimeoutError
from search_gateway.observability.observer import Observer
from search_gateway.providers.base import Candidate, Diagnosable, Provider, Reloadable, StaleCandidates
from search_gateway.providers.guard.guarded import GuardedProvider

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Degradation:
    """A part of the answer that is missing or degraded, and the reason, written for the caller."""

    part: str
    reason: str


@dataclass(frozen=True)
class ProviderResult:
    """The candidates of the first provider that answered, and what failed before it."""

    provider: str  # empty where none answered
    candidates: list[Candidate]
    degraded: list[Degradation] = field(default_factory=list)


class ProviderChain:
    """The providers in the order in which they are asked.

    Args:
        providers: may be empty.
        timeout_seconds: for one provider's answer.
        observer: told of each answer and failure.
    """

    def __init__(self, providers: Sequence[Provider], timeout_seconds: float, observer: Observer | None = None):
        self._observer = observer or Observer()
        self._providers = list(providers)
        self._timeout_seconds = timeout_seconds

    @property
    def breakers(self) -> dict[str, str]:
        """The state of each provider's circuit breaker; local providers have none."""
        return {one.name: one.breaker_state for one in self._providers if isinstance(one, GuardedProvider)}

    @property
    def names(self) -> list[str]:
        """The names of the providers."""
        return [provider.name for provider in self._providers]

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
    ) -> ProviderResult:
        """Return the candidates of the named provider, or of the first that answers. Failures are not raised.

        Args:
            query: what to search for.
            name: the only provider to ask; None: all in turn.
            max_candidates: maximum number of candidates.
            deadline: of the request; a provider that is not the last gets half of the remaining time at most.
            embedding: the photo's, [D], for providers that also search by looks.
            after: ask only the providers after this one.

        Raises:
            BadRequestError: no provider has this name.
        """
        self.check(name)
        start = 0 if after is None else self.names.index(after) + 1
        asked = [provider for provider in self._providers[start:] if name in (None, provider.name)]
        degraded = []
        for i, provider in enumerate(asked):
            # A provider that is not the last leaves time for the next ones.
            share = deadline.remaining_seconds() / (2 if i + 1 < len(asked) else 1.1)
            timeout_seconds = min(self._timeout_seconds, share)
            try:
                candidates = await provider.find(query, max_candidates, timeout_seconds, embedding)
            except ProviderNotAskedError as error:
                # Many such errors come while the breaker is open, which was logged when it opened.
                _log.debug("provider %s was not asked: %s", provider.name, error)
                degraded.append(Degradation(provider.name, str(error)))
                self._observer.provider_answered(provider.name, "not_asked")
            except ProviderError as error:
                # Without the cause's text: it may hold the URL, and with it the query.
                _log.warning("provider %s failed: %s (%s)", provider.name, error, type(error.__cause__).__name__)
                degraded.append(Degradation(provider.name, str(error)))
                outcome = "timeout" if isinstance(error, ProviderTimeoutError) else "failed"
                self._observer.provider_answered(provider.name, outcome)
            except Exception:
                # A provider depends on foreign code and web pages; their defects must not fail the request.
                _log.exception("provider %s broke", provider.name)
                degraded.append(Degradation(provider.name, "the provider failed unexpectedly"))
                self._observer.provider_answered(provider.name, "broke")
            else:
                is_stale = isinstance(candidates, StaleCandidates)
                outcome = "stale" if is_stale else "found" if candidates else "empty"
                self._observer.provider_answered(provider.name, outcome)
                if isinstance(candidates, StaleCandidates):
                    degraded.append(Degradation(provider.name, candidates.remark))
                return ProviderResult(provider.name, candidates, degraded)
        return ProviderResult("", [], degraded)

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
        """Close all providers."""
        for provider in self._providers:
            await provider.close()


def _shown(name: str) -> str:
    """Return a name from a request, short and printable."""
    return repr(name if len(name) <= 40 else name[:40] + "…")
