# SPDX-License-Identifier: Apache-2.0
"""A batch by itself: who is in a call of the step, who hears of its failure, and how calls are counted."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from captioner.decoding import Decoder, DecodingOptions, decoder_for
from search_gateway.deadline import Deadline
from search_gateway.engine import running_batch
from search_gateway.engine.inference import StepOutput
from search_gateway.engine.kv_slots import KvSlotPool
from search_gateway.engine.running_batch import RunningBatch, StepCalls
from search_gateway.errors import InferenceError, OverloadedError
from tests.search_gateway.engine.test_scheduler import BOS, CONTRACT, EOS, MAX_TOKENS, NUM_CANDIDATES

GOING_ON = 5  # a token after which a caption goes on


class GatedStep:
    """Answers each call when the test lets it."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[int], Deadline]] = []  # tokens and positions by row
        self._gates: list[asyncio.Future[Exception | None]] = []

    async def step(
        self, slot_pool: KvSlotPool, rows: int, inputs: Mapping[str, npt.NDArray[Any]], deadline: Deadline
    ) -> StepOutput:
        """One token, whatever is wanted: a call may make fewer."""
        assert inputs["limits"][:, 0].max() <= CONTRACT.tokens_per_call
        self.calls.append((inputs["tokens"][:, 0].tolist(), inputs["position"][:, 0].tolist(), deadline))
        self._gates.append(asyncio.get_running_loop().create_future())
        error = await self._gates[-1]
        if error is not None:
            raise error
        shape = (rows, 1, slot_pool.beams, NUM_CANDIDATES)
        return StepOutput(
            np.full(shape, -1, np.float32),
            np.full(shape, GOING_ON, np.int32),
            np.zeros(shape[:3], np.int32),
            np.zeros((rows, 1, 2, 1, 1, slot_pool.beams, 1), np.float32),
        )

    async def called(self, count: int) -> None:
        """Until there were so many calls."""
        await until(lambda: len(self.calls) >= count)

    def answer(self, error: Exception | None = None) -> None:
        """The latest call."""
        self._gates[-1].set_result(error)

    async def answer_all(self, *captions: asyncio.Future[None]) -> None:
        async with asyncio.timeout(10):
            while not all(one.done() for one in captions):
                if self._gates and not self._gates[-1].done():
                    self.answer()
                await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for knows no events
            await asyncio.sleep(0)


def decoder(max_tokens: int = MAX_TOKENS) -> Decoder:
    return decoder_for(DecodingOptions(max_tokens=max_tokens), BOS, EOS)


def batch_with(step: GatedStep, slots: int = 4) -> tuple[RunningBatch, defaultdict[int, StepCalls]]:
    calls: defaultdict[int, StepCalls] = defaultdict(StepCalls)
    return RunningBatch(step, KvSlotPool(CONTRACT, slots=slots, beams=1), calls), calls


def join(batch: RunningBatch, max_tokens: int = MAX_TOKENS, seconds: float = 30.0) -> tuple[int, asyncio.Future[None]]:
    slot, done = batch.slot_pool.acquire(), asyncio.get_running_loop().create_future()
    batch.join(slot, decoder(max_tokens), Deadline(seconds), done)
    return slot, done


def test_who_joins_in_the_middle_of_a_call_is_in_the_next_one() -> None:
    async def run() -> None:
        step = GatedStep()
        batch, calls = batch_with(step)
        _, first = join(batch)
        await step.called(1)
        _, second = join(batch)
        step.answer()
        await step.called(2)
        assert [(tokens, positions) for tokens, positions, _ in step.calls] == [([BOS], [0]), ([GOING_ON, BOS], [1, 0])]
        await step.answer_all(first, second)
        # The first is done after 8 calls, the second one later.
        assert {size: one.count for size, one in calls.items()} == {1: 2, 2: MAX_TOKENS - 1}

    asyncio.run(run())


def test_who_leaves_in_the_middle_of_a_call_gets_nothing_and_the_others_go_on() -> None:
    async def run() -> None:
        step = GatedStep()
        batch, _ = batch_with(step)
        slot, gone = join(batch)
        _, stays = join(batch)
        await step.called(1)
        batch.leave(slot)
        taken = batch.slot_pool.acquire()
        assert taken == slot, "the slot did not come back"
        batch.slot_pool.cache.tensors[0][slot] = 7  # the next one's, prefilled in the middle of the call
        step.answer()
        await step.called(2)
        assert (batch.slot_pool.cache.tensors[0][slot] == 7).all(), "the call wrote into a slot that is another one's"
        await step.answer_all(stays)
        assert not gone.done()
        assert all(positions[slot] == 0 for _, positions, _ in step.calls)

    asyncio.run(run())


def test_the_latest_deadline_rules_the_call() -> None:
    async def run() -> None:
        step = GatedStep()
        batch, _ = batch_with(step)
        captions = [join(batch, seconds=seconds)[1] for seconds in (5.0, 100.0, 20.0)]
        await step.called(1)
        assert step.calls[0][2].remaining_seconds() > 90
        await step.answer_all(*captions)

    asyncio.run(run())


@pytest.mark.parametrize("error", [InferenceError("it is gone"), OverloadedError("it is full", 1.0)])
def test_a_failing_call_fails_those_in_it_and_no_others(error: Exception) -> None:
    async def run() -> None:
        step = GatedStep()
        batch, calls = batch_with(step)
        (first_slot, first), (second_slot, second) = join(batch), join(batch)
        await step.called(1)
        _, later = join(batch)
        step.answer(error)
        await until(lambda: first.done() and second.done())
        assert first.exception() is error
        assert second.exception() is error
        batch.leave(first_slot)
        batch.leave(second_slot)
        await step.called(2)
        await step.answer_all(later)
        assert later.exception() is None
        assert {size: one.count for size, one in calls.items()} == {1: MAX_TOKENS}, "a call that failed was counted"

    asyncio.run(run())


def test_an_error_nobody_foresaw_is_logged_and_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        step = GatedStep()
        batch, _ = batch_with(step)
        slot, done = join(batch)
        await step.called(1)
        step.answer(ZeroDivisionError("of /secret/path"))
        await until(done.done)
        told = done.exception()
        assert isinstance(told, InferenceError)
        assert str(told) == "decoding failed: try again"
        batch.leave(slot)
        _, after = join(batch)  # the batch still works
        await step.answer_all(after)
        assert after.exception() is None

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert "of /secret/path" in caplog.text


def test_the_batch_rests_when_nobody_is_left_and_wakes_for_the_next_one() -> None:
    async def run() -> None:
        step = GatedStep()
        batch, calls = batch_with(step)
        for number in range(1, 4):
            slot, done = join(batch, max_tokens=2)
            await step.answer_all(done)
            batch.leave(slot)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(step.calls) == 2 * number, "it calls the step for nobody"
        assert calls[1].count == 6

    asyncio.run(run())


def test_calls_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=7_000_000)
    monkeypatch.setattr(running_batch, "time", SimpleNamespace(perf_counter_ns=lambda: clock.now))

    async def run() -> None:
        step = GatedStep()
        batch, calls = batch_with(step)
        _, done = join(batch, max_tokens=1)
        await step.called(1)
        clock.now += 20_000_000
        step.answer()
        await until(done.done)
        assert calls[1].count == 1
        assert calls[1].nanoseconds == 20_000_000

    asyncio.run(run())


def test_close_ends_the_call_and_tells_everybody() -> None:
    async def run() -> None:
        step = GatedStep()
        batch, _ = batch_with(step)
        _, in_the_call = join(batch)
        await step.called(1)
        _, waits = join(batch)
        await batch.close()
        for done in (in_the_call, waits):
            assert isinstance(done.exception(), InferenceError)
            assert "stopping" in str(done.exception())
        assert len(step.calls) == 1
        await batch_with(step)[0].close()  # also one that never began

    asyncio.run(run())
