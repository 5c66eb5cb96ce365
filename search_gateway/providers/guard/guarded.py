# SPDX-License-Identifier: Apache-2.0
"""Wraps a provider on the web: cache, then circuit breaker, then rate limit, then the provider itself.

It is a `Provider` itself, for providers that search by words alone. Use it in one event loop.

- Concurrent callers with the same query share one call (`single_flight.py`). The call has `call_timeout_seconds`,
  whatever deadlines its callers have; each caller is released at its own deadline.
- An empty answer is returned but not cached: on the web it may be a disguised refusal.
- If the provider fails and an old answer is cached, that answer is returned, with a remark.
- A call that ended within `min_observation_seconds` because its callers left does not count: callers with short
  deadlines must not open the breaker for others. After that time it counts as a failure.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.errors import ProviderError, ProviderNotAskedError, ProviderTimeoutError
from search_gateway.providers.base import Candidate, Provider, StaleCandidates
from search_gateway.providers.guard.circuit_breaker import BreakerState, CircuitBreaker, Permit
from search_gateway.providers.guard.query_cache import QueryCache
from search_gateway.providers.guard.rate_limit import RateLimit
from search_gateway.providers.guard.single_flight import FlightCancelledError, SingleFlight

_log = logging.getLogger(__name__)


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
        clock: Callable[[], float] = time.monotonic,
    ):
        self._provider = provider
        self._cache = cache
        self._breaker = breaker
        self._spacing = spacing
        self._call_timeout_seconds = call_timeout_seconds
        self._num_candidates = num_candidates
        self._min_observation_seconds = min_observation_seconds
        self._clock = clock
        self._calls: SingleFlight[list[Candidate]] = SingleFlight()

    @property
    def name(self) -> str:
        """The wrapped provider's name."""
        return self._provider.name

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
            age = _age(self._cache.age_seconds(old))
            return StaleCandidates(old.candidates[:max_candidates], f"answer of {age} ago: {self._told(error)}")
        return candidates[:max_candidates]

    def problems(self) -> list[str]:
        """Return whether the circuit breaker keeps calls back, for the operator."""
        if self._breaker.state is BreakerState.CLOSED:
            return []
        seconds = self._breaker.seconds_until_probe
        return [f"it failed too often; {f'it is not asked for {seconds:.0f} s' if seconds else 'a search tests it'}"]

    async def close(self) -> None:
        """Cancel the calls in progress and close the provider."""
        await self._calls.close()
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
            self._cache.put(self.name, query.key, candidates)
        return candidates

    async def _permitted_call(self, permit: Permit, query: Query, timeout_seconds: float) -> list[Candidate]:
        before = self._breaker.state
        began = self._clock()
        try:
            candidates = await self._provider.find(query, self._num_candidates, timeout_seconds)
        except ProviderNotAskedError:
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
            permit.succeeded()
        finally:
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


def _age(seconds: float) -> str:
    """Return a duration in words, such as "12 minutes" or "1 hour"; less than a minute in seconds."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'s' if number > 1 else ''}"
    return f"{seconds:.0f} seconds"
