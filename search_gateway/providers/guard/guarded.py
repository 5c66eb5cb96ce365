# SPDX-License-Identifier: Apache-2.0
"""Wraps a provider on the web: cache, then circuit breaker, rate limit and budget, then the provider itself.

It is a `Provider` itself, for providers that search by words alone. Use it in one event loop.

- Concurrent callers with the same query share one call (`single_flight.py`). The call has `call_timeout_seconds`,
  whatever deadlines its callers have; each caller is released at its own deadline.
- An empty answer is returned but not cached: on the web it may be a disguised refusal.
- If the provider fails and an old answer is cached, that answer is returned, with a remark.
- A call that ended within `min_observation_seconds` because its callers left does not count: callers with short
  deadlines must not open the breaker for others. After that time it counts as a failure.
- What the provider says about its limits feeds the rate limit. A refusal that says how long it lasts is a pause, not a
  failure of the breaker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.errors import (
    ProviderError,
    ProviderLimitedError,
    ProviderNotAskedError,
    ProviderTimeoutError,
)
from search_gateway.providers.base import (
    Candidate,
    Provider,
    ProviderTerms,
    QuotaWindow,
    ReportsQuota,
    StaleCandidates,
)
from search_gateway.providers.guard.circuit_breaker import BreakerState, CircuitBreaker, Permit
from search_gateway.providers.guard.query_cache import QueryCache
from search_gateway.providers.guard.rate_limit import RateLimit, duration
from search_gateway.providers.guard.single_flight import FlightCancelledError, SingleFlight

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 10.0  # after a refusal that does not say how long it lasts
_CANCEL_SECONDS = 0.5  # for the calls in progress at the end; they have been cancelled


class Budget(Protocol):
    """Counts the calls of a provider, across restarts."""

    def check(self, provider: str) -> None:
        """Refuse if no call is left, as far as is known; does not block.

        Raises:
            ProviderNotAskedError: none is left.
        """

    def spend(self, provider: str) -> None:
        """Count a call that begins now; blocks.

        Raises:
            ProviderNotAskedError: none is left, or it cannot be counted.
        """

    def used(self, provider: str) -> int:
        """Return the calls of this month, as far as is known; does not block."""

    def limit(self, provider: str) -> int | None:
        """Return the calls per month; None if the provider has no limit."""

    def problem(self, provider: str) -> str:
        """Return why the provider is not asked, for the operator; empty if it is. Does not block."""


class GuardedProvider:
    """A `Provider` with a cache, a circuit breaker and a rate limit.

    Args:
        provider: the provider on the web.
        cache: may be shared with other providers.
        breaker: of this provider.
        spacing: of this provider.
        call_timeout_seconds: for waiting for a turn and for the answer.
        num_candidates: requested in every call, so that one answer serves callers who want more or fewer.
        min_observation_seconds: see above.
        budget: limits its calls per month; None: there is no limit.
        clock: returns seconds, as the event loop counts them.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        cache: QueryCache,
        breaker: CircuitBreaker,
        spacing: RateLimit,
        call_timeout_seconds: float,
        num_candidates: int = 100,
        min_observation_seconds: float = 2.0,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._provider = provider
        self._cache = cache
        self._breaker = breaker
        self._spacing = spacing
        self._call_timeout_seconds = call_timeout_seconds
        self._num_candidates = num_candidates
        self._min_observation_seconds = min_observation_seconds
        self._budget = budget
        self._clock = clock
        self._calls: SingleFlight[list[Candidate]] = SingleFlight(f"search at provider {provider.name}")

    @property
    def name(self) -> str:
        """The wrapped provider's name."""
        return self._provider.name

    @property
    def terms(self) -> ProviderTerms:
        """What the wrapped provider declares."""
        return self._provider.terms

    @property
    def quota(self) -> tuple[QuotaWindow, ...]:
        """The limits that the provider stated last; empty if it states none."""
        return self._provider.quota if isinstance(self._provider, ReportsQuota) else ()

    @property
    def budget(self) -> tuple[int, int] | None:
        """The calls of this month and how many there may be; None without a limit."""
        limit = None if self._budget is None else self._budget.limit(self.name)
        return None if self._budget is None or limit is None else (self._budget.used(self.name), limit)

    @property
    def breaker_state(self) -> str:
        """The state of its circuit breaker: closed, open or half-open."""
        return self._breaker.state.value

    async def find(
        self,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[Candidate]:
        """Return pictures for a query, best first, from the cache or from the provider. `embedding` is not used.

        Raises:
            ProviderTimeoutError: no answer within `timeout_seconds`.
            ProviderNotAskedError: immediately, if the breaker is open or the turn would come too late.
            ProviderError: the provider raised it.
        """
        if not query.key or max_candidates < 1:
            return []
        cached = self._cache.fresh(self.name, query.key)
        if cached is not None:
            return list(cached.candidates[:max_candidates])
        try:
            candidates = await self._find_now(query, timeout_seconds)
        except Exception as error:
            old = self._cache.stale(self.name, query.key)
            if old is None:
                raise
            age = duration(self._cache.age_seconds(old))
            return StaleCandidates(old.candidates[:max_candidates], f"answer of {age} ago: {self._told(error)}")
        return candidates[:max_candidates]

    def problems(self) -> list[str]:
        """Return whether circuit breaker, rate limit or budget keep calls back, for the operator."""
        problems = []
        if self._breaker.state is not BreakerState.CLOSED:
            seconds = self._breaker.seconds_until_probe
            problems.append(
                f"it failed too often; {f'it is not asked for {seconds:.0f} s' if seconds else 'a search tests it'}"
            )
        if paused := self._spacing.paused_seconds:
            problems.append(f"its own limit is reached; it is not asked for {duration(paused)}")
        if self._budget is not None and (problem := self._budget.problem(self.name)):
            problems.append(problem)
        return problems

    async def close(self) -> None:
        """Cancel the calls in progress and close the provider."""
        if num_calls := await self._calls.close(_CANCEL_SECONDS):
            _log.error("provider %s ignores the cancellation of %d searches: they are abandoned", self.name, num_calls)
        await self._provider.close()

    async def _find_now(self, query: Query, timeout_seconds: float) -> list[Candidate]:
        if timeout_seconds <= 0:
            raise ProviderTimeoutError("no time is left to ask it")
        if self._calls.is_under_way(query.key):
            self._cache.counters.shared += 1
        else:
            # A caller that would begin a call fails immediately.
            if not self._breaker.would_permit():
                raise self._refusal()
            if self._budget is not None:
                self._budget.check(self.name)
            self._spacing.check(timeout_seconds)
        try:
            return await self._calls.join(query.key, lambda: self._call(query), timeout_seconds)
        except TimeoutError:
            raise ProviderTimeoutError(f"no answer within {timeout_seconds:.3g} s") from None
        except FlightCancelledError:
            raise ProviderError("the search was cancelled: try again") from None

    async def _call(self, query: Query) -> list[Candidate]:
        """One call, shared by all callers that wait for it."""
        deadline = self._clock() + self._call_timeout_seconds
        try:
            async with asyncio.timeout(self._call_timeout_seconds):
                await self._spacing.turn(self._call_timeout_seconds)
                # After the wait for the turn, during which other calls may have failed.
                permit = self._breaker.permit()
                if permit is None:
                    raise self._refusal()
                candidates = await self._permitted_call(permit, query, deadline - self._clock())
        except TimeoutError:
            raise ProviderTimeoutError(f"no answer within {self._call_timeout_seconds:.3g} s") from None
        if candidates:
            self._cache.put(self.name, query.key, candidates, self.terms.max_cache_seconds)
        return candidates

    async def _permitted_call(self, permit: Permit, query: Query, timeout_seconds: float) -> list[Candidate]:
        before, known, is_answered = self._breaker.state, self.quota, False
        began = self._clock()
        try:
            if self._budget is not None:
                await asyncio.to_thread(self._budget.spend, self.name)
                timeout_seconds -= self._clock() - began
            candidates = await self._provider.find(query, self._num_candidates, timeout_seconds)
        except ProviderNotAskedError:
            permit.abandoned()
            raise
        except ProviderLimitedError as error:
            self._spacing.pause(_PAUSE_SECONDS if error.retry_after_seconds is None else error.retry_after_seconds)
            if error.retry_after_seconds is None:
                permit.failed()
            else:
                permit.abandoned()
            raise
        except (ProviderTimeoutError, TimeoutError, asyncio.CancelledError):
            if self._clock() - began >= self._min_observation_seconds:
                permit.failed()
            else:
                permit.abandoned()
            raise
        except BaseException:
            permit.failed()
            raise
        else:
            is_answered = True
            permit.succeeded()
        finally:
            # Without an answer it is what an earlier one said, whose times are over.
            if is_answered or self.quota is not known:
                self._spacing.learn(self.quota)
            self._log_change(before)
        return candidates

    def _told(self, error: Exception) -> str:
        """Log a failure, which the chain does not see, and return the message for callers."""
        if not isinstance(error, ProviderError):
            # Without its message, which may contain the query.
            _log.error("provider %s broke: %s", self.name, type(error).__name__)
            return "the provider failed unexpectedly"
        if not isinstance(error, ProviderNotAskedError):
            _log.warning("provider %s failed, an old answer is used: %s", self.name, error)
        return str(error)

    def _refusal(self) -> ProviderNotAskedError:
        seconds = self._breaker.seconds_until_probe
        if seconds > 0:
            return ProviderNotAskedError(
                f"it failed too often and is not asked again for {seconds:.0f} s: use another provider meanwhile"
            )
        return ProviderNotAskedError(
            "it failed too often, and another search is testing it: try again later or use another provider"
        )

    def _log_change(self, before: BreakerState) -> None:
        after = self._breaker.state
        if after is BreakerState.OPEN and before is not after:
            _log.warning(
                "provider %s fails too often and is not asked for %.0f s",
                self.name,
                self._breaker.seconds_until_probe,
            )
        elif after is BreakerState.CLOSED and before is not after:
            _log.info("provider %s answers again", self.name)
