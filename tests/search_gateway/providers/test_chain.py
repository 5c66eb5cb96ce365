# SPDX-License-Identifier: Apache-2.0
"""One provider after the other, with plain providers that answer, fail, break or hang as told."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from captioner.query import Query
from search_gateway.catalog.base import NO_FILTERS, Filters
from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError, ProviderError, ProviderNotAskedError, ProviderTimeoutError
from search_gateway.providers.base import Candidate, ProviderTerms, StaleCandidates
from search_gateway.providers.chain import CANNOT_FILTER, Degradation, ProviderChain, ProviderResult
from tests.fakes.virtual_time import run_virtually

BLUE_SHIRT = Query.of("blue shirt")
SHIRT = Candidate(title="Blue Shirt", url="https://shop.example/1", thumbnail_url="", source="shop")


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeProvider:
    name: str
    answer: list[Candidate] | BaseException = field(default_factory=list)
    before_answer: Callable[[], object] = lambda: None
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    num_closed: int = 0
    terms: ProviderTerms = ProviderTerms()

    async def find(
        self, query: Query, max_candidates: int, timeout_seconds: float, embedding: Any = None
    ) -> list[Candidate]:
        self.asked.append((query, max_candidates, timeout_seconds, embedding))
        self.before_answer()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    async def close(self) -> None:
        self.num_closed += 1


def find(
    providers: list[FakeProvider],
    name: str | None = None,
    *,
    timeout_seconds: float = 6.0,
    deadline: Deadline | None = None,
) -> ProviderResult:
    chain = ProviderChain(providers, timeout_seconds)
    return asyncio.run(chain.find(BLUE_SHIRT, name, 40, deadline or Deadline(30.0)))


def test_first_provider_that_answers_is_enough() -> None:
    first, second = FakeProvider("first", [SHIRT]), FakeProvider("second", [SHIRT])
    assert find([first, second]) == ProviderResult("first", [SHIRT], [])
    assert [asked[:2] for asked in first.asked] == [(BLUE_SHIRT, 40)]
    assert not second.asked


def test_finding_nothing_is_an_answer() -> None:
    first, second = FakeProvider("first", []), FakeProvider("second", [SHIRT])
    assert find([first, second]) == ProviderResult("first", [], [])
    assert not second.asked


@pytest.mark.parametrize("failure", [ProviderError("it refused"), ProviderTimeoutError("it refused")])
def test_next_provider_is_asked_where_one_fails(failure: ProviderError) -> None:
    found = find([FakeProvider("first", failure), FakeProvider("second", [SHIRT])])
    assert found == ProviderResult("second", [SHIRT], [Degradation("first", "it refused")])


def test_old_answer_is_an_answer_that_says_so() -> None:
    first = FakeProvider("first", StaleCandidates([SHIRT], "answer of 2 minutes ago: it is down"))
    second = FakeProvider("second", [SHIRT])
    assert find([first, second]) == ProviderResult(
        "first", [SHIRT], [Degradation("first", "answer of 2 minutes ago: it is down")]
    )
    assert not second.asked


def test_provider_left_alone_is_no_warning_for_every_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = find([FakeProvider("first", ProviderNotAskedError("later")), FakeProvider("second", [SHIRT])])
    assert found == ProviderResult("second", [SHIRT], [Degradation("first", "later")])
    assert not caplog.records


@pytest.mark.parametrize("failure", [RuntimeError("/etc/secret"), TimeoutError(), KeyError("x"), MemoryError()])
def test_provider_that_breaks_is_one_that_fails_and_tells_nothing(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        found = find([FakeProvider("first", failure), FakeProvider("second", [SHIRT])])
    assert found == ProviderResult("second", [SHIRT], [Degradation("first", "the provider failed unexpectedly")])
    assert any(record.exc_info and record.exc_info[1] is failure for record in caplog.records)


def test_all_failing_is_an_empty_answer_that_names_everyone() -> None:
    providers = [FakeProvider(name, ProviderError(f"{name} is down")) for name in ("first", "second", "third")]
    degraded = [Degradation(name, f"{name} is down") for name in ("first", "second", "third")]
    assert find(providers) == ProviderResult("", [], degraded)


def test_no_providers_find_nothing() -> None:
    assert find([]) == ProviderResult("", [], [])


def test_named_provider_is_the_only_one_asked() -> None:
    first, second = FakeProvider("first", [SHIRT]), FakeProvider("second", ProviderError("it refused"))
    assert find([first, second], "second") == ProviderResult("", [], [Degradation("second", "it refused")])
    assert not first.asked


@pytest.mark.parametrize("name", ["", "bing", "First", "first "])
def test_unknown_name_is_refused_with_the_choices(name: str) -> None:
    provider = FakeProvider("first", [SHIRT])
    with pytest.raises(BadRequestError) as caught:
        find([provider, FakeProvider("second")], name)
    assert str(caught.value) == f"there is no provider {name!r}; this server has: first, second"
    assert not provider.asked


def test_hostile_name_is_shown_short_and_on_one_line() -> None:
    chain = ProviderChain([], 6.0)
    with pytest.raises(BadRequestError, match="this server has: none") as caught:
        chain.check("a\nb\x1b[2J" + "x" * 10_000)
    assert len(str(caught.value)) < 120
    assert str(caught.value).isprintable()


def test_known_name_and_no_name_pass_the_check() -> None:
    chain = ProviderChain([FakeProvider("first")], 6.0)
    chain.check("first")
    chain.check(None)
    assert chain.names == ["first"]


def test_each_provider_leaves_time_for_those_after_it() -> None:
    clock = Clock()

    def take(seconds: float) -> Callable[[], None]:
        def passes() -> None:
            clock.now += seconds

        return passes

    first = FakeProvider("first", ProviderError("down"), take(4.0))
    second = FakeProvider("second", ProviderError("down"), take(2.0))
    third = FakeProvider("third", [SHIRT])
    find([first, second, third], deadline=Deadline(8.0, clock))
    timeouts = [provider.asked[0][2] for provider in (first, second, third)]
    assert timeouts == [4.0, 2.0, pytest.approx(2.0 / 1.1)]


def test_no_provider_gets_more_than_its_own_timeout() -> None:
    first, second = FakeProvider("first", ProviderError("down")), FakeProvider("second", [SHIRT])
    find([first, second], timeout_seconds=6.0, deadline=Deadline(1000.0, Clock()))
    assert [provider.asked[0][2] for provider in (first, second)] == [6.0, 6.0]


def test_named_provider_gets_nearly_all_the_time() -> None:
    first, second = FakeProvider("first", [SHIRT]), FakeProvider("second")
    find([first, second], "first", deadline=Deadline(1.1, Clock()))
    assert first.asked[0][2] == pytest.approx(1.0)


def test_nobody_gets_negative_time() -> None:
    provider = FakeProvider("first", ProviderTimeoutError("no time is left"))
    find([provider], deadline=Deadline(-5.0, Clock()))
    assert provider.asked[0][2] == 0.0


def test_cancelling_a_search_is_no_failure_of_the_provider() -> None:
    def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    second = FakeProvider("second", [SHIRT])
    with pytest.raises(asyncio.CancelledError):
        find([FakeProvider("first", asyncio.CancelledError(), cancel), second])
    assert not second.asked


@pytest.mark.parametrize("num_together", [1, 2])
def test_a_provider_that_cancels_itself_is_a_broken_provider(num_together: int) -> None:
    providers = [FakeProvider(f"p{number}", asyncio.CancelledError()) for number in range(num_together)]
    chain = ProviderChain([providers, FakeProvider("next", [SHIRT])], 1.0)
    found = asyncio.run(chain.find(BLUE_SHIRT, None, 10, Deadline(5.0)))
    assert found.provider == "next"
    assert {one.reason for one in found.degraded} == {"the provider failed unexpectedly"}


def test_closing_closes_every_provider() -> None:
    providers = [FakeProvider("first"), FakeProvider("second")]
    asyncio.run(ProviderChain(providers, 6.0).close())
    assert [provider.num_closed for provider in providers] == [1, 1]


class Unclosable(FakeProvider):
    async def close(self) -> None:
        if self.name == "fails":
            raise OSError("disk")
        await asyncio.sleep(3600)


def test_provider_that_does_not_close_is_named_and_keeps_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def close() -> float:
        last = FakeProvider("last")
        await ProviderChain([Unclosable("fails"), Unclosable("hangs"), last], 6.0).close()
        assert last.num_closed == 1
        return asyncio.get_running_loop().time()

    assert run_virtually(close()) == 2
    assert "provider fails was not closed" in caplog.text
    assert "provider hangs does not close within 2 s: it is abandoned" in caplog.text


def test_reload_reaches_the_providers_that_can() -> None:
    class ReloadableProvider(FakeProvider):
        num_reloads = 0

        def reload(self) -> None:
            self.num_reloads += 1

    local = ReloadableProvider("catalog")
    ProviderChain([FakeProvider("web"), local], 6.0).reload()
    assert local.num_reloads == 1


def test_problems_are_those_of_the_providers_that_know_theirs() -> None:
    class DiagnosableProvider(FakeProvider):
        def problems(self) -> list[str]:
            return ["the file is damaged"]

    chain = ProviderChain([FakeProvider("web"), DiagnosableProvider("catalog")], 6.0)
    assert chain.problems() == ["catalog: the file is damaged"]


# Several together


@dataclass
class Slow(FakeProvider):
    """Takes its time, and may refuse to be cancelled."""

    seconds: float = 0.0
    is_stubborn: bool = False

    async def find(
        self, query: Query, max_candidates: int, timeout_seconds: float, embedding: Any = None
    ) -> list[Candidate]:
        candidates = await super().find(query, max_candidates, timeout_seconds, embedding)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            if not self.is_stubborn:
                raise
            await asyncio.sleep(5.0)
        return candidates


def shirts(shop: str, number: int, **fields: Any) -> list[Candidate]:
    return [
        Candidate(
            title=f"{shop} {i}",
            url=f"https://{shop}.example/{i}",
            thumbnail_url=f"https://{shop}.example/t{i}",
            source=shop,
            **fields,
        )
        for i in range(number)
    ]


def together(
    *steps: Any, count: int = 40, wait_seconds: float = 2.0, timeout_seconds: float = 6.0
) -> tuple[ProviderResult, float]:
    """The answer and the seconds it took."""

    async def run() -> tuple[ProviderResult, float]:
        loop = asyncio.get_running_loop()
        problems: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        chain = ProviderChain(steps, timeout_seconds, wait_seconds=wait_seconds)
        began = loop.time()
        found = await chain.find(BLUE_SHIRT, None, count, Deadline(30.0))
        seconds = loop.time() - began
        await asyncio.sleep(20)
        assert not problems
        return found, seconds

    return run_virtually(run())


def test_candidates_of_several_take_turns() -> None:
    found, _ = together([FakeProvider("one", shirts("one", 9)), FakeProvider("two", shirts("two", 2))], count=6)
    assert found.provider == "one+two"
    assert [one.title for one in found.candidates] == ["one 0", "two 0", "one 1", "two 1", "one 2", "one 3"]
    assert [one.provider for one in found.candidates] == ["one", "two", "one", "two", "one", "one"]
    assert found.degraded == []


def test_candidates_that_bring_their_embedding_take_no_places() -> None:
    local = shirts("one", 5, embedding=np.zeros(2, np.float32))
    found, _ = together([FakeProvider("one", local), FakeProvider("two", shirts("two", 9))], count=4)
    assert Counter(one.provider for one in found.candidates) == {"one": 5, "two": 4}


def test_equal_candidates_are_merged_and_keep_their_licence() -> None:
    plain, licensed = shirts("one", 1), shirts("one", 1, licence="CC BY 4.0", attribution="by Someone")
    found, _ = together([FakeProvider("one", plain), FakeProvider("two", licensed)])
    (candidate,) = found.candidates
    assert (candidate.provider, candidate.licence, candidate.attribution) == ("one", "CC BY 4.0", "by Someone")


def test_several_are_asked_at_the_same_time() -> None:
    _, seconds = together([Slow("one", [SHIRT], seconds=1.0), Slow("two", [SHIRT], seconds=1.0)])
    assert seconds == pytest.approx(1.0)


@pytest.mark.parametrize("is_stubborn", [False, True])
def test_slow_one_is_left_behind_and_named(is_stubborn: bool) -> None:
    slow = Slow("slow", [SHIRT], seconds=100.0, is_stubborn=is_stubborn)
    found, seconds = together([FakeProvider("fast", shirts("fast", 1)), slow], wait_seconds=0.5)
    assert seconds == pytest.approx(0.5)
    assert (found.provider, len(found.candidates)) == ("fast", 1)
    assert found.degraded == [Degradation("slow", "it was slower than the other providers, whose results are shown")]


def test_nobody_is_left_behind_for_an_empty_answer() -> None:
    found, seconds = together(
        [FakeProvider("fast", []), Slow("slow", shirts("slow", 1), seconds=5.0)], wait_seconds=0.5
    )
    assert seconds == pytest.approx(5.0)
    assert (found.provider, len(found.candidates)) == ("slow", 1)


def test_several_have_the_time_of_one() -> None:
    found, seconds = together(
        [Slow("one", [SHIRT], seconds=100.0), Slow("two", [SHIRT], seconds=100.0)], [FakeProvider("last", [SHIRT])]
    )
    assert seconds == pytest.approx(6.0)
    assert found.provider == "last"
    assert [one.part for one in found.degraded] == ["one", "two"]


def test_failed_one_is_named_beside_the_answer_of_the_others() -> None:
    found, _ = together(
        [
            FakeProvider("one", ProviderError("it refused")),
            FakeProvider("two", shirts("two", 1)),
            FakeProvider("three", RuntimeError("/etc")),
        ]
    )
    assert found.provider == "two"
    assert found.degraded == [
        Degradation("one", "it refused"),
        Degradation("three", "the provider failed unexpectedly"),
    ]


def test_next_step_follows_where_all_of_one_fail() -> None:
    first = [FakeProvider("one", ProviderError("a")), FakeProvider("two", ProviderError("b"))]
    found, _ = together(first, FakeProvider("last", [SHIRT]))
    assert found == ProviderResult("last", [SHIRT], [Degradation("one", "a"), Degradation("two", "b")])


def test_step_after_several_is_found_by_their_name() -> None:
    async def run() -> ProviderResult:
        chain = ProviderChain(
            [[FakeProvider("one", [SHIRT]), FakeProvider("two", [SHIRT])], FakeProvider("last", [SHIRT])], 6.0
        )
        return await chain.find(BLUE_SHIRT, None, 40, Deadline(30.0), after="one+two")

    assert asyncio.run(run()).provider == "last"


def test_cancelled_search_leaves_nobody_running() -> None:
    ends: list[str] = []

    class Watched(Slow):
        async def find(self, *arguments: Any) -> list[Candidate]:
            try:
                return await super().find(*arguments)
            finally:
                ends.append(self.name)

    async def run() -> None:
        chain = ProviderChain([[Watched("one", seconds=50.0), Watched("two", seconds=50.0)]], 60.0)
        search = asyncio.create_task(chain.find(BLUE_SHIRT, None, 40, Deadline(60.0)))
        await asyncio.sleep(1)
        search.cancel()
        await asyncio.wait([search])
        await asyncio.sleep(0)
        assert sorted(ends) == ["one", "two"]

    run_virtually(run())


def test_credit_line_of_the_provider_stands_where_a_picture_has_none() -> None:
    candidates = [*shirts("one", 1), *shirts("two", 1, attribution="by Someone")]
    provider = FakeProvider("one", candidates, terms=ProviderTerms(attribution="One Search"))
    assert [one.attribution for one in find([provider]).candidates] == ["One Search", "by Someone"]


@dataclass
class FilteringProvider(FakeProvider):
    filters: Filters = NO_FILTERS

    def filtered(self, filters: Filters) -> FilteringProvider:
        self.filters = filters
        return self


def test_only_providers_that_can_filter_are_asked_with_a_filter() -> None:
    web, catalog = FakeProvider("web", [SHIRT]), FilteringProvider("catalog", [SHIRT])
    cheap = Filters(max_price=5.0)
    chain = ProviderChain([web, catalog], 6.0)
    found = asyncio.run(chain.find(BLUE_SHIRT, None, 10, Deadline(10.0), filters=cheap))
    assert found == ProviderResult("catalog", [SHIRT], [Degradation("web", CANNOT_FILTER)])
    assert (web.asked, catalog.filters) == ([], cheap)
    asyncio.run(chain.find(BLUE_SHIRT, None, 10, Deadline(10.0)))
    assert len(web.asked) == 1
