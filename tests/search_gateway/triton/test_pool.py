# SPDX-License-Identifier: Apache-2.0
"""Which Triton is asked, and who is asked next when it fails. The Tritons are fakes; the tests say what they answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from captioner.decoding import DecodingOptions
from search_gateway.deadline import Deadline
from search_gateway.engine.running_batch import StepCalls
from search_gateway.errors import (
    BadRequestError,
    DeadlineError,
    InferenceError,
    NotFoundError,
    OverloadedError,
    SearchError,
)
from search_gateway.triton import pool
from search_gateway.triton.pool import TritonPool
from tests.fakes.virtual_time import run_virtually

PIXELS = np.zeros((1, 1, 3), np.uint8)
OPTIONS = DecodingOptions()


class FakeCaptions:
    """Answers with its Triton's name, or fails as the test says."""

    def __init__(self, name: str, asked: list[str]):
        self.name = name
        self.asked = asked  # of all Tritons together, in the order they were asked
        self.num_in_flight = 0
        self.error: Exception | None = None
        self.told: list[str] = []
        self.step_calls: dict[int, StepCalls] = {}

    async def caption(self, pixels: Any, options: DecodingOptions, deadline: Deadline) -> Any:
        assert (pixels is PIXELS, options is OPTIONS) == (True, True)
        return self._answer()

    async def embed(self, pixels: Any, deadline: Deadline) -> Any:
        assert pixels is PIXELS
        return self._answer()

    def fail_all(self, error: InferenceError) -> None:
        self.told.append(str(error))

    def place(self, options: Any, deadline: Deadline) -> str:
        if isinstance(self.error, OverloadedError):
            raise self.error
        return f"a place at {self.name}"

    def _answer(self) -> str:
        self.asked.append(self.name)
        if self.error is not None:
            raise self.error
        return self.name


class FakeHost:
    def __init__(self, name: str, asked: list[str]):
        self.name = name
        self.captions: Any = FakeCaptions(name, asked)
        self.is_serving = True
        self.problem = ""
        self.look: Callable[[], object] = lambda: None  # what the pool wants called when it was looked at
        self.is_watched = self.is_closed = False

    async def watch(self, changed: Callable[[], object]) -> None:
        self.look, self.is_watched = changed, True
        try:
            await asyncio.Event().wait()
        finally:
            self.is_watched = False

    async def close(self) -> None:
        self.is_closed = True


class Tritons:
    """Of the names a, b and c."""

    def __init__(self, names: str = "abc"):
        self.asked: list[str] = []
        self.hosts = {name: FakeHost(name, self.asked) for name in names}
        self.pool = TritonPool(list(self.hosts.values()))

    def __getitem__(self, name: str) -> FakeHost:
        return self.hosts[name]

    def fail(self, **errors: Exception | None) -> None:
        for name, error in errors.items():
            self.hosts[name].captions.error = error

    def ask(self, method: str = "caption", deadline: Deadline | None = None) -> Any:
        deadline = deadline or Deadline(30.0)
        arguments = (PIXELS, OPTIONS, deadline) if method == "caption" else (PIXELS, deadline)
        return asyncio.run(getattr(self.pool, method)(*arguments))


@pytest.fixture
def tritons() -> Tritons:
    return Tritons()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the pool's clock."""
    times = [1000.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return times[0]

    monkeypatch.setattr(pool, "time", Clock)

    def set_time(seconds: float) -> None:
        times[0] = 1000.0 + seconds

    return set_time


METHODS = pytest.mark.parametrize("method", ["caption", "embed"])


@METHODS
def test_who_has_the_least_to_do_is_asked(tritons: Tritons, method: str) -> None:
    for loads, expected in (((3, 2, 4), "b"), ((0, 2, 4), "a"), ((3, 2, 1), "c"), ((1, 1, 1), "a")):
        for host, load in zip(tritons.hosts.values(), loads, strict=True):
            host.captions.num_in_flight = load
        assert tritons.ask(method) == expected
    assert tritons.asked == ["b", "a", "c", "a"]


def test_who_does_not_serve_is_asked_last(tritons: Tritons) -> None:
    tritons["a"].is_serving = False
    for name in "bc":
        tritons[name].captions.num_in_flight = 50
    assert tritons.ask() == "b"
    tritons.fail(b=InferenceError("b"))
    tritons["c"].is_serving = False
    tritons["c"].captions.num_in_flight = 60
    assert tritons.ask() == "a"  # it may have come back since it was watched


def test_who_failed_is_asked_last_until_it_is_watched_again(tritons: Tritons) -> None:
    async def run() -> None:
        tritons.pool.watch(lambda: None)
        await asyncio.sleep(0)
        tritons.fail(a=InferenceError("a"))
        tritons["b"].captions.num_in_flight = 50
        tritons["c"].captions.num_in_flight = 60
        for _ in range(2):
            assert await tritons.pool.embed(PIXELS, Deadline(30.0)) == "b"  # type: ignore[comparison-overlap]
        assert tritons.asked == ["a", "b", "b"]
        tritons["b"].look()  # another one's look tells nothing
        await tritons.pool.embed(PIXELS, Deadline(30.0))
        assert tritons.asked[3:] == ["b"]
        tritons.fail(a=None)
        tritons["a"].look()
        assert await tritons.pool.embed(PIXELS, Deadline(30.0)) == "a"  # type: ignore[comparison-overlap]
        await tritons.pool.close()

    asyncio.run(run())


def test_who_failed_is_asked_again_after_a_while_even_unwatched(tritons: Tritons, now: Callable[[float], None]) -> None:
    tritons.fail(a=InferenceError("a"))
    assert tritons.ask() == "b"
    tritons.fail(a=None)
    now(0.9)
    assert tritons.ask() == "b"
    now(1.1)
    assert tritons.ask() == "a"


def test_who_failed_is_asked_before_who_does_not_serve(tritons: Tritons) -> None:
    tritons.fail(a=InferenceError("a"))
    assert tritons.ask() == "b"
    tritons.fail(a=None)
    tritons["b"].is_serving = tritons["c"].is_serving = False
    assert tritons.ask() == "a"


@METHODS
@pytest.mark.parametrize("error", [InferenceError("it is gone"), OverloadedError("it is full", 1.0)])
def test_another_one_is_asked_where_one_fails_or_is_full(tritons: Tritons, method: str, error: SearchError) -> None:
    tritons.fail(a=OverloadedError("it is full", 1.0), b=error)
    assert tritons.ask(method) == "c"
    assert tritons.asked == ["a", "b", "c"]


@METHODS
def test_a_photo_that_breaks_triton_is_tried_once_more_and_its_hash_is_logged(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    tritons = Tritons("abcde")
    tritons.fail(**{name: InferenceError(f"{name} is gone") for name in "abcde"})
    with pytest.raises(InferenceError, match="b is gone"):
        tritons.ask(method)
    assert tritons.asked == ["a", "b"]
    digest = hashlib.sha256(PIXELS.tobytes()).hexdigest()
    assert [record.message.count(digest) for record in caplog.records] == [1, 1]


def test_a_triton_that_is_known_to_be_down_tells_nothing_of_the_photo(caplog: pytest.LogCaptureFixture) -> None:
    tritons = Tritons("a")
    tritons.fail(a=InferenceError("a is gone"))
    tritons["a"].is_serving = False
    with pytest.raises(InferenceError):
        tritons.ask()
    assert caplog.records == []


def test_who_is_full_is_no_suspect(tritons: Tritons) -> None:
    tritons.fail(a=OverloadedError("it is full", 1.0))
    assert tritons.ask() == "b"
    tritons.fail(a=None)
    assert tritons.ask() == "a"


@METHODS
@pytest.mark.parametrize("kind", ["gone", "full"])
def test_the_last_error_is_told_where_all_fail(tritons: Tritons, method: str, kind: str) -> None:
    errors = {name: InferenceError(name) if kind == "gone" else OverloadedError(name, 2.0) for name in "abc"}
    tritons.fail(**errors)
    asked = ["a", "b"] if kind == "gone" else ["a", "b", "c"]
    with pytest.raises(type(errors["c"])) as told:
        tritons.ask(method)
    assert told.value is errors[asked[-1]]
    assert tritons.asked == asked, "each once"


@METHODS
def test_nobody_else_is_asked_when_the_time_is_over(tritons: Tritons, method: str) -> None:
    tritons.fail(a=InferenceError("a"))
    with pytest.raises(InferenceError, match="^a$"):
        tritons.ask(method, Deadline(0.0))
    assert tritons.asked == ["a"]


@METHODS
@pytest.mark.parametrize(
    "error",
    [DeadlineError("late"), BadRequestError("bad"), NotFoundError("none"), ZeroDivisionError(), TimeoutError()],
    ids=lambda error: type(error).__name__,
)
def test_what_another_one_would_not_do_better_is_not_tried_again(
    tritons: Tritons, method: str, error: Exception
) -> None:
    tritons.fail(a=error)
    with pytest.raises(type(error)) as told:
        tritons.ask(method)
    assert told.value is error
    assert tritons.asked == ["a"]
    tritons.fail(a=None)
    assert tritons.ask(method) == "a", "it is no suspect: the error was not its fault"


def test_a_caller_who_goes_away_ends_the_question(tritons: Tritons) -> None:
    async def run() -> None:
        async def hang(*_: Any) -> Any:
            tritons.asked.append("a")
            await asyncio.Event().wait()

        tritons["a"].captions.caption = hang
        task = asyncio.create_task(tritons.pool.caption(PIXELS, OPTIONS, Deadline(30.0)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tritons.asked == ["a"]

    asyncio.run(run())


def test_those_inside_a_silent_triton_go_to_another_one() -> None:
    async def run() -> None:
        tritons = Tritons("ab")
        seen: list[bool] = []
        tritons.pool.watch(lambda: seen.append(tritons.pool.is_serving))
        await asyncio.sleep(0)
        tritons["a"].look()
        assert tritons["a"].captions.told == [], "it serves"
        tritons["a"].is_serving = False
        tritons["b"].look()
        assert tritons["a"].captions.told == tritons["b"].captions.told == []
        tritons["a"].look()
        assert len(tritons["a"].captions.told) == 1
        assert "try again" in tritons["a"].captions.told[0]
        assert tritons["b"].captions.told == []
        # Without another one, those inside may wait: it may be slow rather than dead.
        tritons["b"].is_serving = False
        tritons["a"].look()
        tritons["b"].look()
        assert len(tritons["a"].captions.told) == 1
        assert tritons["b"].captions.told == []
        assert seen == [True, True, True, False, False]
        await tritons.pool.close()

    asyncio.run(run())


def test_the_pool_serves_as_long_as_one_does(tritons: Tritons) -> None:
    for name in "abc":
        assert tritons.pool.is_serving
        tritons[name].is_serving = False
    assert not tritons.pool.is_serving
    tritons["b"].is_serving = True
    assert tritons.pool.is_serving


def test_problems_name_the_tritons_that_cannot_be_used_and_why(tritons: Tritons) -> None:
    assert tritons.pool.problems() == []
    tritons["b"].problem = "it does not answer"
    assert tritons.pool.problems() == ["Triton b: it does not answer"]


def test_calls_of_the_step_are_summed_over_all(tritons: Tritons) -> None:
    assert tritons.pool.step_calls == {}
    tritons["a"].captions.step_calls = {1: StepCalls(2, 20), 4: StepCalls(1, 15)}
    tritons["c"].captions.step_calls = {4: StepCalls(3, 60), 9: StepCalls(1, 7)}
    assert tritons.pool.step_calls == {1: (2, 20), 4: (4, 75), 9: (1, 7)}
    assert tritons["a"].captions.step_calls[4].count == 1, "summing changed what it sums"


def test_close_ends_watching_and_leaves_the_tritons_to_their_maker(tritons: Tritons) -> None:
    async def run() -> None:
        tritons.pool.watch(lambda: None)
        await asyncio.sleep(0)
        assert all(host.is_watched for host in tritons.hosts.values())
        await tritons.pool.close()
        assert not any(host.is_watched or host.is_closed for host in tritons.hosts.values())

    asyncio.run(run())
    asyncio.run(TritonPool([FakeHost("d", [])]).close())  # one that never watched


def test_watch_that_fails_is_logged_and_goes_on(tritons: Tritons, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        seen: list[str] = []

        async def watch(changed: Callable[[], object]) -> None:
            seen.append("watched")
            await asyncio.sleep(0.5)
            changed()

        def changed() -> None:
            if seen == ["watched"]:
                raise KeyError("a defect")
            seen.append("changed")

        tritons["b"].watch = watch  # type: ignore[method-assign]
        tritons.pool.watch(changed)
        await asyncio.sleep(2.2)
        await tritons.pool.close()
        assert seen == ["watched", "watched", "changed"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtually(run())
    assert "the watch of Triton b failed unexpectedly" in caplog.text


def test_there_is_room_as_long_as_one_that_serves_has_some(tritons: Tritons) -> None:
    full = OverloadedError("full", retry_after_seconds=1.0)
    tritons.fail(a=full, b=full)
    assert tritons.pool.place(OPTIONS, Deadline(30.0)) == "a place at c"
    tritons["c"].is_serving = False
    with pytest.raises(OverloadedError, match="full"):
        tritons.pool.place(OPTIONS, Deadline(30.0))
    tritons.fail(a=None)
    assert tritons.pool.place(OPTIONS, Deadline(30.0)) == "a place at a"
    assert tritons.asked == [], "asking for room is no work"
