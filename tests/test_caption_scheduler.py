# SPDX-License-Identifier: Apache-2.0
"""Captions decoded together equal those decoded alone, on a step model that is a function of its inputs only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.model_contract import ModelContract
from search_gateway.caption_scheduler import CaptionScheduler
from search_gateway.deadline import Deadline
from search_gateway.decoding import DecodingOptions, Hypothesis
from search_gateway.errors import DeadlineError, InferenceError
from search_gateway.kv_arena import KvArena
from search_gateway.triton_inference import StepOutput

BOS, EOS = 0, 1
NUM_WORDS, NUM_CANDIDATES, MAX_TOKENS = 12, 10, 8

# A key and a value of one number each: the token itself.
CONTRACT = ModelContract(
    model="fake", image_height=1, image_width=1, fit="pad", num_positions=1, hidden_size=1, num_layers=1, num_heads=1,
    head_size=1, max_tokens=MAX_TOKENS, num_candidates=NUM_CANDIDATES, max_beams=5, vocab_size=NUM_WORDS,
    bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS,
)  # fmt: skip

Floats = npt.NDArray[np.floating[Any]]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeInference:
    """What comes next is drawn from the photo and the beam's own tokens, found in the cache by its ancestors."""

    failing_calls: set[int] = field(default_factory=set)  # numbers of calls of `step`, from 0
    failure: Exception = field(default_factory=lambda: InferenceError("the inference server failed"))
    clock: Clock = field(default_factory=Clock)
    seconds_per_step: float = 0.0
    batches: list[int] = field(default_factory=list)  # captions in each call, by what their rows hold
    rows: list[int] = field(default_factory=list)
    arenas: list[KvArena] = field(default_factory=list)
    is_running: dict[int, bool] = field(default_factory=dict)  # by beams
    hangs: asyncio.Event | None = None  # set: steps wait for it

    async def new_arena(self, slots: int, beams: int) -> KvArena:
        await asyncio.sleep(0)
        self.arenas.append(KvArena(CONTRACT, slots=slots, beams=beams))
        return self.arenas[-1]

    async def free_arena(self, arena: KvArena) -> None:
        self.arenas.remove(arena)

    async def prefill(self, hidden_states: Floats, arena: KvArena, slot: int, deadline: Deadline) -> None:
        # How long it takes depends on the photo, so that captions overtake each other.
        for _ in range(int(hidden_states[0, 0]) % 4):
            await asyncio.sleep(0)
        arena.cross[0][slot] = hidden_states[0, 0]

    async def step(
        self, arena: KvArena, rows: int, tokens: npt.NDArray[np.int32], positions: npt.NDArray[np.int32],
        deadline: Deadline,
    ) -> StepOutput:  # fmt: skip
        assert not self.is_running.get(arena.beams), "two calls in one lane at a time"
        self.is_running[arena.beams] = True
        call = len(self.rows)
        self.rows.append(rows)
        try:
            for _ in range(5):  # others take their turn
                await asyncio.sleep(0)
            if self.hangs is not None:
                await self.hangs.wait()
            self.clock.now += self.seconds_per_step
            if call in self.failing_calls:
                raise self.failure
            shape = (rows, arena.beams, NUM_CANDIDATES)
            logprobs, candidates = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
            for row, k in np.ndindex(rows, arena.beams):
                position = int(positions[row, 0])
                times = np.arange(position)
                before = arena.cache.tensors[0][row, 0, times, arena.cache.ancestors[row, k, :position], 0]
                values = self._logprobs(float(arena.cross[0][row, 0, 0, 0]), np.append(before, tokens[row, k]))
                order = np.argsort(-values, kind="stable")[:NUM_CANDIDATES]
                logprobs[row, k], candidates[row, k] = values[order], order
            return StepOutput(logprobs, candidates, np.tile(tokens[:, :, None, None, None, None], (1, 1, 1, 2, 1, 1)))
        finally:
            self.is_running[arena.beams] = False

    def _logprobs(self, photo: float, tokens: Floats) -> npt.NDArray[np.float32]:
        generator = np.random.default_rng([int(photo), *tokens.astype(int).tolist()])
        logits = 2 * generator.standard_normal(NUM_WORDS)
        logits[EOS] += 1
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)


def photo(number: int) -> Floats:
    """Its hidden states [S, D]."""
    return np.full((1, 1), number, np.float32)


def scheduler(inference: FakeInference, slots: int = 32) -> CaptionScheduler:
    return CaptionScheduler(inference, bos_token_id=BOS, eos_token_id=EOS, slots=slots)


def shown(hypotheses: list[Hypothesis]) -> list[tuple[list[int], float, bool]]:
    """What a test can compare: arrays have no equality of their own."""
    return [([token.token for token in one.tokens], one.log_probability, one.complete) for one in hypotheses]


# Of every kind: greedy and beams, long and short, as requests come.
REQUESTS = [
    (number, DecodingOptions(num_beams=beams, length_penalty=penalty, max_tokens=max_tokens))
    for number, (beams, penalty, max_tokens) in enumerate(
        [(1, 1.0, 8), (4, 1.0, 8), (2, 0.0, 5), (1, 1.0, 3), (5, 2.0, 8), (3, -1.0, 6), (4, 0.6, 8), (1, 1.0, 1)] * 5
    )
]


def decoded_alone(number: int, options: DecodingOptions) -> list[Hypothesis]:
    return asyncio.run(scheduler(FakeInference()).decode(photo(number), options, Deadline(30.0)))


ALONE = {number: shown(decoded_alone(number, options)) for number, options in REQUESTS}


def test_captions_of_the_fake_vary() -> None:
    assert len({str(captions) for captions in ALONE.values()}) == len(REQUESTS)
    assert len({len(captions[0][0]) for captions in ALONE.values()}) > 3


def test_captions_decoded_together_equal_those_decoded_alone() -> None:
    async def together() -> list[list[Hypothesis]]:
        captions = scheduler(inference)
        return await asyncio.gather(
            *(captions.decode(photo(number), options, Deadline(30.0)) for number, options in REQUESTS)
        )

    inference = FakeInference()
    results = asyncio.run(together())
    assert max(inference.rows) >= 8, "the captions were decoded one after the other: the test shows nothing"
    assert {number: shown(result) for (number, _), result in zip(REQUESTS, results, strict=True)} == ALONE


def test_captions_with_as_many_beams_share_their_calls() -> None:
    async def together() -> None:
        captions = scheduler(inference)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        await asyncio.gather(*(captions.decode(photo(number), options, Deadline(30.0)) for number in range(20)))

    inference = FakeInference()
    asyncio.run(together())
    # Prefills end at four different times; without sharing there would be a call for each token of each caption.
    assert len(inference.rows) <= MAX_TOKENS + 4


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_schedule_gives_each_caption_its_own_words_and_every_slot_back(data: st.DataObject) -> None:
    """Arrivals, cancellations and deadlines in any order, with fewer slots than captions."""
    slots = data.draw(st.integers(1, 6), label="slots")
    chosen = data.draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=14), label="requests")
    pauses = data.draw(st.lists(st.integers(0, 6), min_size=len(chosen), max_size=len(chosen)), label="pauses")
    cancels = data.draw(st.lists(st.sampled_from([None, 0, 1, 3, 8, 20]), min_size=len(chosen), max_size=len(chosen)))
    expires = data.draw(st.lists(st.booleans(), min_size=len(chosen), max_size=len(chosen)), label="expires")

    async def run() -> None:
        inference = FakeInference()
        captions = scheduler(inference, slots)

        async def one(number: int, options: DecodingOptions, expired: bool) -> list[Hypothesis]:
            return await captions.decode(photo(number), options, Deadline(0.0 if expired else 30.0))

        async def cancel(task: asyncio.Task[Any], after: int) -> None:
            for _ in range(after):
                await asyncio.sleep(0)
            task.cancel()

        tasks, cancelling = [], []
        for (number, options), pause, after, expired in zip(chosen, pauses, cancels, expires, strict=True):
            tasks.append(asyncio.create_task(one(number, options, expired)))
            if after is not None:
                cancelling.append(asyncio.create_task(cancel(tasks[-1], after)))
            for _ in range(pause):
                await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*cancelling)
        for (number, _), after, expired, result in zip(chosen, cancels, expires, results, strict=True):
            if isinstance(result, asyncio.CancelledError):
                assert after is not None
            elif isinstance(result, DeadlineError):
                assert expired
            else:
                assert not isinstance(result, BaseException), result
                assert shown(result) == ALONE[number]
        for arena in inference.arenas:
            assert [arena.acquire() for _ in range(slots)] == list(range(slots)), "a slot was lost or given twice"
            assert arena.acquire() is None

    asyncio.run(run())


def test_lowest_slots_are_used_first_so_that_batches_stay_small() -> None:
    async def one_after_the_other() -> None:
        captions = scheduler(inference)
        for number in range(5):
            await captions.decode(photo(number), DecodingOptions(max_tokens=MAX_TOKENS), Deadline(30.0))

    inference = FakeInference()
    asyncio.run(one_after_the_other())
    assert set(inference.rows) == {1}


def test_who_finds_no_slot_waits_for_one_in_order() -> None:
    async def run() -> list[int]:
        captions = scheduler(FakeInference(), slots=1)
        order: list[int] = []

        async def one(number: int) -> None:
            await captions.decode(photo(4 * number), DecodingOptions(max_tokens=MAX_TOKENS), Deadline(30.0))
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(6)))
        return order

    assert asyncio.run(run()) == list(range(6))


def test_who_finds_no_slot_in_time_is_told_so_and_the_slot_is_not_lost() -> None:
    async def run() -> None:
        inference = FakeInference(hangs=asyncio.Event())
        captions = scheduler(inference, slots=1)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        first = asyncio.create_task(captions.decode(photo(0), options, Deadline(30.0)))
        await asyncio.sleep(0.01)
        with pytest.raises(DeadlineError, match="before decoding could begin"):
            await captions.decode(photo(1), options, Deadline(0.02))
        assert inference.hangs is not None
        inference.hangs.set()
        assert shown(await first)
        assert await captions.decode(photo(2), options, Deadline(30.0))

    asyncio.run(run())


def test_deadline_ends_a_caption_while_a_call_hangs_and_the_others_go_on() -> None:
    async def run() -> None:
        inference = FakeInference(hangs=asyncio.Event())
        captions = scheduler(inference)
        number, options = REQUESTS[0]
        patient = asyncio.create_task(captions.decode(photo(number), options, Deadline(30.0)))
        with pytest.raises(DeadlineError, match="before decoding was done"):
            await captions.decode(photo(8), options, Deadline(0.02))
        assert inference.hangs is not None
        inference.hangs.set()
        assert shown(await patient) == ALONE[number]

    asyncio.run(run())


def test_cancelled_caption_takes_no_further_step() -> None:
    async def run() -> None:
        inference = FakeInference(hangs=asyncio.Event())
        task = asyncio.create_task(scheduler(inference).decode(photo(0), REQUESTS[1][1], Deadline(30.0)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inference.hangs is not None
        inference.hangs.set()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(inference.rows) == 1

    asyncio.run(run())


def test_failing_call_fails_the_captions_in_it_and_nobody_after_them() -> None:
    async def run() -> None:
        captions = scheduler(inference)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        results = await asyncio.gather(
            *(captions.decode(photo(number), options, Deadline(30.0)) for number in (0, 4)),
            captions.decode(photo(1), REQUESTS[1][1], Deadline(30.0)),  # another lane
            return_exceptions=True,
        )
        assert results[:2] == [inference.failure] * 2
        assert shown(results[2]) == ALONE[1]  # type: ignore[arg-type]
        inference.failing_calls = set()
        assert await captions.decode(photo(0), options, Deadline(30.0))

    inference = FakeInference(failing_calls={0})
    asyncio.run(run())


def test_what_no_one_foresaw_is_told_without_its_text() -> None:
    async def run() -> None:
        with pytest.raises(InferenceError, match="^decoding failed: try again$"):
            await captions.decode(photo(0), REQUESTS[0][1], Deadline(30.0))

    captions = scheduler(FakeInference(failing_calls={0}, failure=RuntimeError("/secret/path")))
    asyncio.run(run())


def test_stale_arena_takes_no_new_caption() -> None:
    async def run() -> None:
        captions = scheduler(inference)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        await captions.decode(photo(0), options, Deadline(30.0))
        inference.arenas[0].is_stale = True
        await captions.decode(photo(0), options, Deadline(30.0))
        assert len(inference.arenas) == 2

    inference = FakeInference()
    asyncio.run(run())


def test_closing_ends_captions_and_gives_the_arenas_back() -> None:
    async def run() -> None:
        inference = FakeInference(hangs=asyncio.Event())
        captions = scheduler(inference)
        task = asyncio.create_task(captions.decode(photo(0), REQUESTS[0][1], Deadline(30.0)))
        await asyncio.sleep(0.01)
        await captions.close()
        with pytest.raises(InferenceError, match="stopping"):
            await task
        assert inference.arenas == []

    asyncio.run(run())


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_model_is_asked_once_per_token_and_never_after_the_end(num_beams: int) -> None:
    for number in range(20):
        inference = FakeInference()
        options = DecodingOptions(num_beams=num_beams, max_tokens=MAX_TOKENS)
        hypotheses = asyncio.run(scheduler(inference).decode(photo(number), options, Deadline(30.0)))
        longest = max(len(one.tokens) + one.complete for one in hypotheses)
        assert longest <= len(inference.rows) <= MAX_TOKENS
        if num_beams == 1:
            assert len(inference.rows) == longest
