# SPDX-License-Identifier: Apache-2.0
"""When a Triton counts as healthy and when it is started again, on a virtual clock. Triton is a fake."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from captioner.model_contract import ModelContract
from search_gateway.deadline import Deadline
from search_gateway.errors import InferenceError
from search_gateway.triton import replica
from search_gateway.triton.client import Probe
from search_gateway.triton.embedded import TritonStartError
from search_gateway.triton.replica import TritonReplica
from tests.fakes.virtual_time import run_virtually

CONTRACT = ModelContract(
    model="fake", image_height=2, image_width=2, fit="pad", num_positions=1, hidden_size=1, num_layers=1, num_heads=1,
    head_size=1, max_tokens=4, num_candidates=4, max_beams=2, tokens_per_call=2, vocab_size=12,
    bos_token_id=0, eos_token_id=1, pad_token_id=1,
)  # fmt: skip


def now() -> float:
    return asyncio.get_running_loop().time()


class FakeInference:
    """A client of a Triton whose models answer probes after `probe_seconds` with `probe`."""

    def __init__(self) -> None:
        self.probe_result = Probe.COMPUTES
        self.probe_seconds = 0.02
        self.last_success = -math.inf  # of requests, not of probes
        self.has_failed = False
        self.probes: list[float] = []  # when each began
        self.sweeps = 0
        self.is_there = True
        self.silent_seconds = 2.0  # until `is_ready` gives up

    async def is_ready(self) -> bool:
        if not self.is_there:
            await asyncio.sleep(self.silent_seconds)
        return self.is_there

    async def probe(self, deadline: Deadline) -> Probe:
        self.probes.append(now())
        await asyncio.sleep(self.probe_seconds)
        self.has_failed |= self.probe_result is Probe.FAILS
        return self.probe_result

    def seconds_since_success(self) -> float:
        return now() - self.last_success

    def seconds_since_answer(self) -> float:
        return now() - self.last_success

    async def check_contract(self) -> None:
        pass

    def forget_slot_pools(self) -> None:
        pass

    async def unregister_orphans(self, prefix: str, *, has_any: bool = False) -> None:
        self.sweeps += 1

    async def reconnect(self, address: str, *, region_prefix: str = "") -> None:
        self.probe_result, self.probe_seconds = Probe.COMPUTES, 0.02
        self.is_there = True


class FakeEmbedded:
    grpc_address, shm_prefix = "unix:/nowhere:1", "fake_"

    def __init__(self) -> None:
        self.runs = True
        self.stops: list[bool] = []  # whether each was graceful
        self.starts: list[float] = []

    def is_running(self) -> bool:
        return self.runs

    def stop(self, *, is_graceful: bool = True, has_failed: bool = False) -> None:
        self.stops.append(is_graceful)
        self.runs = False

    def start(self) -> None:
        self.starts.append(now())
        self.runs = True


class FakeCaptions:
    def __init__(self) -> None:
        self.told: list[str] = []

    def fail_all(self, error: InferenceError) -> None:
        self.told.append(str(error))


class Watched:
    """A replica that is watched; `seen` has the time and whether it served, of every look."""

    def __init__(self, *, is_embedded: bool) -> None:
        self.replica = TritonReplica(CONTRACT, address="far:1", model_repository=Path(), slots=4, waiting=8)
        self.inference = FakeInference()
        self.embedded = FakeEmbedded()
        self.captions = FakeCaptions()
        fakes: Any = self.replica
        fakes._inference, fakes.captions = self.inference, self.captions
        fakes._is_checked = fakes.is_serving = True
        if is_embedded:
            fakes.embedded = self.embedded
        self.seen: list[tuple[float, bool]] = []

    def note(self) -> None:
        self.seen.append((now(), self.replica.is_serving))

    def not_serving_since(self) -> float:
        return next(time for time, serves in self.seen if not serves)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a test's coroutine beside the watching."""

    async def at_once(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    monkeypatch.setattr(replica, "asyncio", SimpleNamespace(**{**vars(asyncio), "to_thread": at_once}))

    def run(test: Callable[[Watched], Awaitable[None]], *, is_embedded: bool = True) -> None:
        async def beside() -> None:
            one = Watched(is_embedded=is_embedded)
            watching = asyncio.create_task(one.replica.watch(one.note))
            try:
                await test(one)
            finally:
                watching.cancel()

        run_virtually(beside())

    return run


def test_a_triton_that_computes_is_left_alone(watched: Any) -> None:
    async def test(one: Watched) -> None:
        await asyncio.sleep(60)
        assert all(serves for _, serves in one.seen)
        assert (one.embedded.stops, one.captions.told) == ([], [])
        assert 15 <= len(one.inference.probes) <= 21

    watched(test)


@pytest.mark.parametrize("seconds", [0.02, 5.0], ids=["its queue is always full", "it is silent"])
def test_models_that_never_answer_are_a_failure(watched: Any, seconds: float) -> None:
    async def test(one: Watched) -> None:
        one.inference.probe_result, one.inference.probe_seconds = Probe.NO_ANSWER, seconds
        await asyncio.sleep(14)
        first, second = one.inference.probes[:2]
        assert one.not_serving_since() == pytest.approx(second + seconds)
        assert second - first < seconds + 1
        assert one.embedded.stops == [False]
        assert one.replica.is_serving, "it was started again"

    watched(test)


@pytest.mark.parametrize("seconds", [0.0, 2.0], ids=["its socket refuses", "it is stopped"])
def test_an_embedded_triton_that_is_not_ready_any_more_is_started_again(watched: Any, seconds: float) -> None:
    async def test(one: Watched) -> None:
        one.inference.is_there, one.inference.silent_seconds = False, seconds
        await asyncio.sleep(9)
        assert not one.replica.is_serving
        assert one.embedded.stops == [], "it may be slow"
        await asyncio.sleep(6)
        assert one.embedded.stops == [False]
        assert one.replica.is_serving
        await asyncio.sleep(60)
        assert len(one.embedded.stops) == 1

    watched(test)


def test_an_embedded_triton_that_is_not_ready_but_answers_requests_is_left_alone(watched: Any) -> None:
    async def test(one: Watched) -> None:
        one.inference.is_there = False
        for _ in range(30):
            one.inference.last_success = now()
            await asyncio.sleep(1)
        assert one.embedded.stops == []

    watched(test)


def test_a_machine_that_was_asleep_during_a_check_starts_nothing_again(watched: Any) -> None:
    async def test(one: Watched) -> None:
        one.inference.is_there, one.inference.silent_seconds = False, 3600.0
        await asyncio.sleep(3600.0)
        one.inference.silent_seconds = 2.0
        await asyncio.sleep(2.5)
        one.inference.is_there = True
        await asyncio.sleep(5.0)
        assert one.embedded.stops == []
        assert one.replica.is_serving

    watched(test, is_embedded=True)


def test_models_elsewhere_that_never_answer_are_not_used_until_they_do(watched: Any) -> None:
    async def test(one: Watched) -> None:
        one.inference.probe_result, one.inference.probe_seconds = Probe.NO_ANSWER, 5.0
        await asyncio.sleep(30)
        assert not one.replica.is_serving
        assert len([serves for _, serves in one.seen if not serves]) > 2
        one.inference.probe_result, one.inference.probe_seconds = Probe.COMPUTES, 0.02
        await asyncio.sleep(6)
        assert one.replica.is_serving

    watched(test, is_embedded=False)


def test_slow_models_that_answer_requests_between_two_probes_are_healthy(watched: Any) -> None:
    async def test(one: Watched) -> None:
        one.inference.probe_result, one.inference.probe_seconds = Probe.NO_ANSWER, 5.0
        for _ in range(15):
            await asyncio.sleep(4)  # longer than the success counts on its own
            one.inference.last_success = now()
        assert all(serves for _, serves in one.seen)
        assert len(one.inference.probes) > 3
        assert one.embedded.stops == []

    watched(test)


def test_a_dead_model_process_is_known_within_a_second_and_triton_is_killed_rather_than_stopped(watched: Any) -> None:
    async def test(one: Watched) -> None:
        await asyncio.sleep(7.3)
        one.embedded.runs = False
        one.inference.probe_result, one.inference.probe_seconds = Probe.NO_ANSWER, 5.0
        await asyncio.sleep(2)
        assert one.not_serving_since() <= 7.3 + 1
        assert one.embedded.stops == [False], "a model without its process does not unload: waiting for it is 10 s"
        assert one.embedded.starts[0] <= 7.3 + 1
        assert len(one.captions.told) == 1
        assert one.replica.is_serving

    watched(test)


def test_a_model_process_that_dies_during_a_probe_does_not_wait_for_its_end(watched: Any) -> None:
    async def test(one: Watched) -> None:
        one.inference.probe_result, one.inference.probe_seconds = Probe.NO_ANSWER, 5.0
        await asyncio.sleep(0.6)
        assert one.inference.probes, "it has not begun"
        died = now()
        one.embedded.runs = False
        await asyncio.sleep(2)
        assert one.not_serving_since() <= died + 1
        assert one.embedded.starts
        assert one.replica.is_serving

    watched(test)


def test_the_first_failure_of_a_request_is_looked_into_at_once(watched: Any) -> None:
    async def test(one: Watched) -> None:
        await asyncio.sleep(7)
        failed = one.inference.last_success = now()  # of another model's call, perhaps
        one.inference.has_failed, one.inference.probe_result = True, Probe.FAILS
        await asyncio.sleep(3)
        assert one.not_serving_since() <= failed + 1
        assert one.embedded.stops == [False]
        assert one.embedded.starts[0] <= failed + 2

    watched(test)


def test_a_failure_of_one_photo_changes_nothing_where_the_models_compute(watched: Any) -> None:
    async def test(one: Watched) -> None:
        for _ in range(10):
            await asyncio.sleep(1)
            one.inference.has_failed = True
        assert all(serves for _, serves in one.seen)
        assert one.embedded.stops == []

    watched(test)


def test_regions_are_unregistered_only_where_all_models_have_answered(watched: Any) -> None:
    async def test(one: Watched) -> None:
        await asyncio.sleep(4)
        assert one.inference.sweeps > 0
        one.inference.probe_result = Probe.NO_ANSWER
        await asyncio.sleep(4)
        before = one.inference.sweeps
        await asyncio.sleep(10)
        assert one.inference.sweeps == before

    watched(test, is_embedded=False)


@pytest.mark.parametrize("is_embedded", [False, True])
def test_problem_says_why_it_does_not_serve(watched: Any, is_embedded: bool) -> None:
    async def test(one: Watched) -> None:
        await asyncio.sleep(7)
        assert one.replica.problem == ""
        one.inference.has_failed, one.inference.probe_result = True, Probe.FAILS
        await asyncio.sleep(3)
        # The embedded one was started again.
        assert one.replica.problem == ("" if is_embedded else "its models fail or do not answer")

    watched(test, is_embedded=is_embedded)


def test_problem_of_a_triton_that_cannot_start_is_the_reason(watched: Any) -> None:
    async def test(one: Watched) -> None:
        def fail() -> None:
            raise TritonStartError("scripted")

        one.embedded.start = fail  # type: ignore[method-assign]
        one.embedded.runs = False
        await asyncio.sleep(1)
        assert one.replica.problem == "it did not start: scripted"

    watched(test)


def test_end_does_not_wait_for_triton_to_unload() -> None:
    """It takes 2 s, and the gateway's end has that much time for everything but the requests in flight."""
    one = Watched(is_embedded=True)

    def fail() -> None:
        raise TritonStartError("scripted")

    one.embedded.start = fail  # type: ignore[method-assign]
    with pytest.raises(TritonStartError):
        asyncio.run(one.replica.start())
    asyncio.run(one.replica.close())
    assert one.embedded.stops == [False]
