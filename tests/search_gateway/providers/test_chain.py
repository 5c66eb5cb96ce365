# SPDX-License-Identifier: Apache-2.0
"""One provider after the other, with plain providers that answer, fail, break or hang as told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from captioner.query import Query
from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError, ProviderError, ProviderNotAskedError, ProviderTimeoutError
from search_gateway.providers.base import Candidate, ProviderTerms, StaleCandidates
from search_gateway.providers.chain import Degradation, ProviderChain, ProviderResult

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
    second = FakeProvider("second", [SHIRT])
    with pytest.raises(asyncio.CancelledError):
        find([FakeProvider("first", asyncio.CancelledError()), second])
    assert not second.asked


def test_closing_closes_every_provider() -> None:
    providers = [FakeProvider("first"), FakeProvider("second")]
    asyncio.run(ProviderChain(providers, 6.0).close())
    assert [provider.num_closed for provider in providers] == [1, 1]


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
