# SPDX-License-Identifier: Apache-2.0
"""Cache, breaker and turns in front of a provider that does as told; in virtual time, so seconds are exact."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from captioner.query import Query
from search_gateway.errors import ProviderError, ProviderLimitedError, ProviderNotAskedError, ProviderTimeoutError
from search_gateway.providers.base import Candidate, ProviderTerms, QuotaWindow, StaleCandidates
from search_gateway.providers.guard.circuit_breaker import BreakerSettings, BreakerState, CircuitBreaker
from search_gateway.providers.guard.guarded import Budget, GuardedProvider
from search_gateway.providers.guard.query_cache import CacheCounters, QueryCache
from search_gateway.providers.guard.rate_limit import RateLimit
from tests.fakes.virtual_time import run_virtually

BREAKER = BreakerSettings(min_calls=3, first_open_seconds=10, jitter=0.0)
TIMEOUT = 6.0
SECRET = "zebra"  # in every query here; must be in no log line


def candidates_for(query: str, number: int = 3) -> list[Candidate]:
    return [
        Candidate(title=f"{query} {i}", url=f"https://shop.example/{i}", thumbnail_url="", source="shop")
        for i in range(number)
    ]


@dataclass
class Web:
    """A provider on the web."""

    name: str = "web"
    failure: BaseException | None = None
    seconds: float = 0.1
    num_candidates: int = 3
    queries: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    limits: list[tuple[int, float]] = field(default_factory=list)
    num_cancelled: int = 0
    is_closed: bool = False
    terms: ProviderTerms = ProviderTerms()
    quota: tuple[QuotaWindow, ...] = ()

    async def find(
        self, query: Query, max_candidates: int, timeout_seconds: float, embedding: Any = None
    ) -> list[Candidate]:
        self.queries.append(query.text)
        self.times.append(now())
        self.limits.append((max_candidates, timeout_seconds))
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure
        return candidates_for(query.text, self.num_candidates)

    async def close(self) -> None:
        self.is_closed = True


def now() -> float:
    return asyncio.get_running_loop().time()


class Guarded:
    """A guarded provider with everything around it at hand."""

    def __init__(
        self, web: Web, *, min_seconds: float = 0.0, cache: QueryCache | None = None, budget: Budget | None = None
    ):
        clock = asyncio.get_running_loop().time
        self.web = web
        self.cache = cache or QueryCache(10**6, ttl_seconds=60, stale_seconds=600, clock=clock)
        self.breaker = CircuitBreaker(BREAKER, clock=clock, random=lambda: 0.5)
        self.provider = GuardedProvider(
            web,
            cache=self.cache,
            breaker=self.breaker,
            spacing=RateLimit(min_seconds, clock=clock, jitter=0.0),
            call_timeout_seconds=TIMEOUT,
            budget=budget,
            clock=clock,
        )

    async def find(self, query: str = f"{SECRET} shirt", timeout_seconds: float = TIMEOUT) -> list[Candidate]:
        return await self.provider.find(Query.of(query), 40, timeout_seconds)

    async def failing(self, query: str = f"{SECRET} shirt", timeout_seconds: float = TIMEOUT) -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            await self.find(query, timeout_seconds)
        return caught.value

    async def open_breaker(self) -> None:
        self.web.failure = ProviderError("it refused")
        for i in range(BREAKER.min_calls):
            await self.failing(f"{SECRET} opening {i}")
        assert self.breaker.state is BreakerState.OPEN


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def watched() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        await test()
        await asyncio.sleep(1000)
        assert not problems

    run_virtually(watched())


@pytest.fixture(autouse=True)
def no_query_in_the_log(caplog: pytest.LogCaptureFixture) -> Any:
    with caplog.at_level(logging.DEBUG):
        yield
    assert SECRET not in caplog.text.lower()


def test_second_search_makes_no_call() -> None:
    async def test() -> None:
        it = Guarded(Web())
        assert await it.find(f"{SECRET} shirt") == candidates_for(f"{SECRET} shirt")
        again = await it.find(f"  {SECRET.upper()}  Shirt ")
        assert again == candidates_for(f"{SECRET} shirt")
        assert not isinstance(again, StaleCandidates)
        assert it.web.queries == [f"{SECRET} shirt"]
        assert it.cache.counters == CacheCounters(hits=1, misses=1)

    run(test)


def test_one_answer_serves_callers_who_want_more_or_less() -> None:
    async def test() -> None:
        it = Guarded(Web(num_candidates=50))
        assert len(await it.provider.find(Query.of("shirt"), 2, TIMEOUT)) == 2
        assert len(await it.provider.find(Query.of("shirt"), 30, TIMEOUT)) == 30
        assert it.web.limits[0][0] == 100
        assert len(it.web.queries) == 1

    run(test)


def test_answer_is_asked_for_again_when_its_time_is_over() -> None:
    async def test() -> None:
        it = Guarded(Web())
        await it.find()
        await asyncio.sleep(61)
        await it.find()
        assert len(it.web.queries) == 2

    run(test)


def test_two_gateways_do_not_mix() -> None:
    async def test() -> None:
        one, other = Guarded(Web()), Guarded(Web(num_candidates=1))
        assert len(await one.find()) == 3
        assert len(await other.find()) == 1

    run(test)


def test_providers_that_share_a_cache_do_not_mix() -> None:
    async def test() -> None:
        one = Guarded(Web())
        other = Guarded(Web("other", num_candidates=1), cache=one.cache)
        assert len(await one.find()) == 3
        assert len(await other.find()) == 1
        assert len(await one.find()) == 3

    run(test)


def test_queries_side_by_side_do_not_mix() -> None:
    async def test() -> None:
        it = Guarded(Web())
        queries = [f"{SECRET} {i % 4}" for i in range(12)]
        answers = await asyncio.gather(*map(it.find, queries))
        assert answers == [candidates_for(query) for query in queries]
        assert len(it.web.queries) == 4
        assert it.cache.counters.shared == 8

    run(test)


def test_empty_answer_is_handed_on_and_not_remembered() -> None:
    async def test() -> None:
        it = Guarded(Web(num_candidates=0))
        assert await it.find() == []
        it.web.num_candidates = 3
        assert len(await it.find()) == 3

    run(test)


def test_no_words_ask_nobody() -> None:
    async def test() -> None:
        it = Guarded(Web())
        assert await it.find("  ") == []
        assert await it.provider.find(Query.of("shirt"), 0, TIMEOUT) == []
        assert not it.web.queries

    run(test)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (ProviderError("it refused"), "it refused"),
        (ProviderTimeoutError("no answer"), "no answer"),
        (RuntimeError(f"/etc/secret {SECRET}"), "the provider failed unexpectedly"),
    ],
)
def test_failure_is_answered_with_an_old_answer_that_says_so(failure: Exception, told: str) -> None:
    async def test() -> None:
        it = Guarded(Web())
        await it.find()
        await asyncio.sleep(5 * 60)
        it.web.failure = failure
        old = await it.find()
        assert isinstance(old, StaleCandidates)
        assert old == candidates_for(f"{SECRET} shirt")
        assert old.remark == f"answer of 5 minutes ago: {told}"
        assert it.cache.counters.stale == 1
        await asyncio.sleep(600)
        with pytest.raises(type(failure)):
            await it.find()

    run(test)


@pytest.mark.parametrize(
    ("seconds", "age"), [(60.5, "1 minute"), (119.5, "1 minute"), (120.5, "2 minutes"), (500, "8 minutes")]
)
def test_age_is_told_in_plain_words(seconds: float, age: str) -> None:
    async def test() -> None:
        it = Guarded(Web(seconds=0.0))
        await it.find()
        await asyncio.sleep(seconds)
        it.web.failure = ProviderError("down")
        old = await it.find()
        assert isinstance(old, StaleCandidates)
        assert old.remark == f"answer of {age} ago: down"

    run(test)


def test_old_answer_comes_at_once_while_the_breaker_is_open() -> None:
    async def test() -> None:
        it = Guarded(Web())
        await it.find()
        await asyncio.sleep(100)
        await it.open_breaker()
        began, num_calls = now(), len(it.web.queries)
        old = await it.find()
        assert isinstance(old, StaleCandidates)
        assert "it failed too often and is not asked again for 10 s" in old.remark
        assert (now(), len(it.web.queries)) == (began, num_calls)

    run(test)


def test_breaker_opens_and_refuses_at_once_then_lets_one_probe_through() -> None:
    async def test() -> None:
        it = Guarded(Web())
        assert it.provider.problems() == []
        await it.open_breaker()
        began = now()
        for i in range(10):
            assert isinstance(await it.failing(f"other {i}"), ProviderNotAskedError)
        assert (now(), len(it.web.queries)) == (began, BREAKER.min_calls)
        assert it.provider.problems() == ["it failed too often; it is not asked for 10 s"]
        await asyncio.sleep(10.01)
        assert it.provider.problems() == ["it failed too often; a search tests it"]
        it.web.failure = None
        answers = await asyncio.gather(*(it.find(f"{SECRET} {i}") for i in range(5)), return_exceptions=True)
        assert sum(isinstance(answer, list) for answer in answers) == 1
        assert sum(isinstance(answer, ProviderNotAskedError) for answer in answers) == 4
        assert len(it.web.queries) == BREAKER.min_calls + 1
        assert len(await it.find("now again")) == 3
        assert it.provider.problems() == []

    run(test)


def test_cancelled_probe_frees_its_place() -> None:
    async def test() -> None:
        it = Guarded(Web())
        await it.open_breaker()
        await asyncio.sleep(10.01)
        it.web.failure = None
        probe = asyncio.create_task(it.find("probe"))
        await asyncio.sleep(0.05)
        assert isinstance(await it.failing("other"), ProviderNotAskedError)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        await asyncio.sleep(0.001)
        assert it.breaker.state is BreakerState.HALF_OPEN
        assert len(await it.find("other")) == 3
        assert it.breaker.state is BreakerState.CLOSED

    run(test)


def test_those_who_wait_for_their_turn_are_refused_when_the_breaker_opens_meanwhile() -> None:
    async def test() -> None:
        it = Guarded(Web(failure=ProviderError("it refused")), min_seconds=1.0)
        errors = await asyncio.gather(*(it.failing(f"{SECRET} {i}") for i in range(5)))
        assert [type(error) for error in errors] == [ProviderError] * 3 + [ProviderNotAskedError] * 2
        assert len(it.web.queries) == 3

    run(test)


def test_callers_in_a_hurry_do_not_open_the_breaker() -> None:
    async def test() -> None:
        it = Guarded(Web(seconds=1.0))
        for i in range(20):
            assert isinstance(await it.failing(f"{SECRET} {i}", timeout_seconds=0.5), ProviderTimeoutError)
        assert it.breaker.state is BreakerState.CLOSED
        assert len(await it.find()) == 3

    run(test)


@pytest.mark.parametrize("leave", ["deadline", "cancelled"])
def test_long_silence_opens_the_breaker_whoever_stops_waiting(leave: str) -> None:
    async def test() -> None:
        it = Guarded(Web(seconds=1000))
        for i in range(BREAKER.min_calls):
            if leave == "deadline":
                assert isinstance(await it.failing(f"{SECRET} {i}"), ProviderTimeoutError)
            else:
                caller = asyncio.create_task(it.find(f"{SECRET} {i}"))
                await asyncio.sleep(3)
                caller.cancel()
                await asyncio.gather(caller, return_exceptions=True)
            await asyncio.sleep(0.001)  # lets the abandoned call end
        assert it.breaker.state is BreakerState.OPEN
        assert it.web.num_cancelled == BREAKER.min_calls

    run(test)


def test_provider_without_a_thread_is_no_failing_provider() -> None:
    async def test() -> None:
        it = Guarded(Web(failure=ProviderNotAskedError("no thread")))
        for i in range(20):
            await it.failing(f"{SECRET} {i}")
        assert it.breaker.state is BreakerState.CLOSED

    run(test)


def test_calls_are_kept_apart_and_who_comes_too_late_is_told_at_once() -> None:
    async def test() -> None:
        it = Guarded(Web(), min_seconds=1.0)
        began = now()
        waiting = [asyncio.create_task(it.find(f"{SECRET} {i}")) for i in range(3)]
        await asyncio.sleep(0.01)
        error = await it.failing("too late", timeout_seconds=2.5)
        assert isinstance(error, ProviderNotAskedError)
        assert "at most once every 1 s" in str(error)
        assert now() - began == pytest.approx(0.01)
        await asyncio.gather(*waiting)
        assert it.web.times == pytest.approx([began, began + 1, began + 2])
        assert len(await it.find(f"{SECRET} 1", timeout_seconds=0.01)) == 3, "what is remembered needs no turn"

    run(test)


def test_first_caller_may_leave_and_each_deadline_is_its_own() -> None:
    async def test() -> None:
        it = Guarded(Web(seconds=1.0))
        first = asyncio.create_task(it.find())
        hurried = asyncio.create_task(it.failing(timeout_seconds=0.5))
        patient = asyncio.create_task(it.find(timeout_seconds=3.0))
        await asyncio.sleep(0.25)
        first.cancel()
        error = await hurried
        assert str(error) == "no answer within 0.5 s"
        assert now() == pytest.approx(0.5)
        assert len(await patient) == 3
        assert len(it.web.queries) == 1
        assert it.web.limits == [(100, TIMEOUT)], "the call has its own time, not that of its first caller"

    run(test)


def test_no_time_is_left() -> None:
    async def test() -> None:
        it = Guarded(Web())
        assert isinstance(await it.failing(timeout_seconds=0.0), ProviderTimeoutError)
        assert not it.web.queries

    run(test)


def test_closing_ends_calls_and_closes_the_provider() -> None:
    async def test() -> None:
        it = Guarded(Web(seconds=100))
        caller = asyncio.create_task(it.failing())
        await asyncio.sleep(0.1)
        await it.provider.close()
        assert "cancelled" in str(await caller)
        assert it.web.is_closed

    run(test)


def test_provider_that_ignores_its_cancellation_is_closed_and_named(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(Web):
        async def find(self, *_: Any) -> list[Candidate]:
            while not self.is_closed:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)
            return []

    async def test() -> None:
        it = Guarded(Stubborn())
        caller = asyncio.create_task(it.provider.find(Query.of("shirt"), 40, TIMEOUT))
        await asyncio.sleep(0.1)
        await it.provider.close()
        assert it.web.is_closed
        await caller

    run(test)
    assert "provider web ignores the cancellation of 1 searches: they are abandoned" in caplog.text


def test_opening_and_closing_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        it = Guarded(Web())
        await it.open_breaker()
        for i in range(10):
            await it.failing(f"other {i}")
        await asyncio.sleep(10.01)
        it.web.failure = None
        await it.find()

    with caplog.at_level(logging.INFO):
        run(test)
    ours = [record.message for record in caplog.records if record.name == "search_gateway.providers.guard.guarded"]
    assert ours == ["provider web fails too often and is not asked for 10 s", "provider web answers again"]


def test_answer_is_kept_no_longer_than_the_terms_allow() -> None:
    async def test() -> None:
        it = Guarded(Web(terms=ProviderTerms(max_cache_seconds=0.0)))
        await it.find()
        await it.find()
        assert len(it.web.queries) == 2
        it.web.failure = ProviderError("it refused")
        assert str(await it.failing()) == "it refused"

    run(test)


def test_refusal_with_a_time_is_a_pause_and_no_failure() -> None:
    async def test() -> None:
        it = Guarded(Web(failure=ProviderLimitedError("too many", 50.0)))
        await it.failing()
        it.web.failure = None
        assert "its own limit is reached and it is not asked for 50 seconds" in str(await it.failing())
        assert it.provider.problems() == ["its own limit is reached; it is not asked for 50 seconds"]
        assert len(it.web.queries) == 1
        await asyncio.sleep(50)
        assert it.breaker.state is BreakerState.CLOSED
        assert await it.find()
        assert it.provider.problems() == []

    run(test)


def test_refusals_without_a_time_are_failures_too() -> None:
    async def test() -> None:
        it = Guarded(Web(failure=ProviderLimitedError("too many")))
        for i in range(3):
            await it.failing(f"{SECRET} {i}")
            await asyncio.sleep(10)
        assert it.breaker.state is not BreakerState.CLOSED

    run(test)


def test_used_up_window_holds_the_next_call_back() -> None:
    async def test() -> None:
        it = Guarded(Web(quota=(QuotaWindow(limit=1, remaining=0, window_seconds=1.0, reset_seconds=2.0),)))
        await it.find(f"{SECRET} one")
        await it.find(f"{SECRET} two")
        assert it.web.times == pytest.approx([0.0, 2.1])
        assert it.provider.quota == it.web.quota

    run(test)


@dataclass
class Purse:
    """A budget."""

    left: int
    spent: int = 0

    def check(self, provider: str) -> None:
        if self.spent >= self.left:
            raise ProviderNotAskedError(f"the budget of {provider} is used up")

    def spend(self, provider: str) -> None:
        self.check(provider)
        self.spent += 1

    def used(self, provider: str) -> int:
        return self.spent

    def limit(self, provider: str) -> int | None:
        return self.left

    def problem(self, provider: str) -> str:
        return "" if self.spent < self.left else "used up"


def test_calls_that_begin_are_counted_and_cached_answers_are_not() -> None:
    async def test() -> None:
        it = Guarded(Web(), budget=Purse(2))
        await it.find()
        await it.find()
        assert it.provider.budget == (1, 2)
        await it.find(f"{SECRET} other")
        assert "is used up" in str(await it.failing(f"{SECRET} third"))
        assert it.provider.problems() == ["used up"]
        assert it.breaker.state is BreakerState.CLOSED
        assert len(it.web.queries) == 2

    asyncio.run(test())  # not in virtual time, because the budget is counted in a thread


def test_a_call_without_an_answer_does_not_repeat_the_pause_of_the_one_before() -> None:
    async def test() -> None:
        it = Guarded(Web())
        find = it.web.find

        async def find_once(*args: Any) -> list[Candidate]:
            it.web.quota = it.web.quota or (QuotaWindow(limit=1, remaining=0, window_seconds=1.0, reset_seconds=2.0),)
            return await find(*args)

        it.web.find = find_once  # type: ignore[method-assign]
        await it.find("red shirt")
        it.web.failure = ProviderTimeoutError("no answer")
        await it.failing("blue shirt")
        assert it.provider.problems() == []

    run(test)
