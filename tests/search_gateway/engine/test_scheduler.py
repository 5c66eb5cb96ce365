# SPDX-License-Identifier: Apache-2.0
"""Captions decoded together equal those decoded alone, on a step model that is a function of its inputs only."""

from __future__ import annotations

import asyncio
import functools
import math
import random
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.decoding import DecodingOptions
from captioner.model_contract import ModelContract
from search_gateway.deadline import Deadline
from search_gateway.engine.inference import EncodedPhotos, StepOutput
from search_gateway.engine.kv_slots import KvSlotPool
from search_gateway.engine.scheduler import CaptionScheduler, DecodedPhoto
from search_gateway.engine.service_times import ServiceTimes
from search_gateway.errors import DeadlineError, InferenceError, OverloadedError
from search_gateway.fair_share import current_caller
from tests.fakes.beam_choice import tokens_of_a_call
from tests.fakes.virtual_time import run_virtually

BOS, EOS = 0, 1
NUM_WORDS, NUM_CANDIDATES, MAX_TOKENS = 12, 10, 8

# A key and a value of one number each: the token itself.
CONTRACT = ModelContract(
    model="fake", image_height=1, image_width=1, fit="pad", num_positions=1, hidden_size=1, num_layers=1, num_heads=1,
    head_size=1, max_tokens=MAX_TOKENS, num_candidates=NUM_CANDIDATES, max_beams=5, tokens_per_call=3,
    vocab_size=NUM_WORDS,
    bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS,
)  # fmt: skip

Floats = npt.NDArray[np.floating[Any]]


@dataclass
class FakeInference:
    """What comes next is drawn from the photo and the beam's own tokens, found in the cache by its ancestors."""

    failing_calls: set[int] = field(default_factory=set)  # numbers of calls of `step`, from 0
    failure: Exception = field(default_factory=lambda: InferenceError("the inference server failed"))
    rows: list[int] = field(default_factory=list)
    slot_pools: list[KvSlotPool] = field(default_factory=list)
    is_running: dict[int, bool] = field(default_factory=dict)  # by beams
    hangs: asyncio.Event | None = None  # set: steps wait for it
    encoder_hangs: asyncio.Event | None = None
    encoded: list[int] = field(default_factory=list)  # photos in each call of the encoder
    makes_first_tokens: bool = False
    encoder_calls: int = 2
    released: int = 0

    async def new_slot_pool(self, slots: int, beams: int) -> KvSlotPool:
        await asyncio.sleep(0)
        self.slot_pools.append(KvSlotPool(CONTRACT, slots=slots, beams=beams))
        return self.slot_pools[-1]

    async def free_slot_pool(self, slot_pool: KvSlotPool) -> None:
        self.slot_pools.remove(slot_pool)

    async def encode(
        self, pixels: npt.NDArray[np.uint8], deadline: Deadline, *, embeddings_only: bool = False,
        first_inputs: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> EncodedPhotos:  # fmt: skip
        self.encoded.append(len(pixels))
        numbers = pixels[:, 0, 0, 0].astype(np.float32)
        # How long it takes depends on the photos, so that calls overtake each other.
        for _ in range(int(numbers[0]) % 4):
            await asyncio.sleep(0)
        if self.encoder_hangs is not None:
            await self.encoder_hangs.wait()
        if first_inputs is None:
            return EncodedPhotos(None if embeddings_only else numbers[:, None, None], numbers[:, None])
        assert self.makes_first_tokens
        assert not embeddings_only
        new = KvSlotPool(CONTRACT, slots=len(pixels), beams=first_inputs["tokens"].shape[1])
        new.cross[0][:, 0, 0, 0] = numbers
        first_step = self._answer(new, len(pixels), first_inputs)
        seconds = (0.0, 0.0, 0.0)
        return EncodedPhotos(numbers[:, None, None], numbers[:, None], first_step=first_step, chain_seconds=seconds)

    async def prefill(
        self, encoded: EncodedPhotos, photos: Sequence[int], slot_pool: KvSlotPool, slots: Sequence[int],
        deadline: Deadline,
    ) -> None:  # fmt: skip
        assert encoded.hidden_states is not None
        hidden_states = encoded.hidden_states[list(photos)]
        for _ in range(int(hidden_states[0, 0, 0]) % 3):
            await asyncio.sleep(0)
        slot_pool.cross[0][list(slots)] = hidden_states[:, 0, :, None, None]

    def release(self, encoded: EncodedPhotos) -> None:
        self.released += 1

    async def step(
        self, slot_pool: KvSlotPool, rows: int, inputs: Mapping[str, npt.NDArray[Any]], deadline: Deadline
    ) -> StepOutput:
        assert not self.is_running.get(slot_pool.beams), "two calls in one batch at a time"
        self.is_running[slot_pool.beams] = True
        call = len(self.rows)
        self.rows.append(rows)
        try:
            for _ in range(5):  # others take their turn
                await asyncio.sleep(0)
            if self.hangs is not None:
                await self.hangs.wait()
            if call in self.failing_calls:
                raise self.failure
            return self._answer(slot_pool, rows, inputs)
        finally:
            self.is_running[slot_pool.beams] = False

    def _answer(self, slot_pool: KvSlotPool, rows: int, inputs: Mapping[str, npt.NDArray[Any]]) -> StepOutput:
        # As the loop of the real step: as many tokens as somebody wants, and what lies behind them is of no use.
        assert inputs["limits"][:, 0].max() in range(1, CONTRACT.tokens_per_call + 1)
        count = max(1, int(inputs["limits"][:, 0].max()))
        answers = [self._tokens(slot_pool, row, count, inputs) for row in range(rows)]
        logprobs, candidates, selected, made = (
            np.stack([answer[name] for answer in answers])
            for name in ("candidate_logprobs", "candidate_tokens", "selected", "inputs")
        )
        new_kv = np.tile(made[:, None, None, None, :, :, None], (1, 1, 2, 1, 1, 1, 1)).astype(np.float32)
        return StepOutput(logprobs, candidates, selected, new_kv)

    def _tokens(
        self, slot_pool: KvSlotPool, row: int, count: int, inputs: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        position = int(inputs["position"][row, 0])
        histories = []
        for k in range(slot_pool.beams):
            times = np.arange(position)
            before = slot_pool.cache.tensors[0][row, 0, times, slot_pool.cache.ancestors[row, k, :position], 0]
            histories.append(tuple(np.append(before, inputs["tokens"][row, k]).astype(int).tolist()))
        number = int(slot_pool.cross[0][row, 0, 0, 0])
        return tokens_of_a_call(
            histories, inputs["scores"][row], count, functools.partial(what_comes_next, number), EOS
        )


@functools.cache
def what_comes_next(number: int, history: tuple[int, ...]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Log-probabilities and tokens [C], best first."""
    generator = np.random.default_rng([number, *history])
    logits = 2 * generator.standard_normal(NUM_WORDS)
    logits[EOS] += 1
    values = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
    order = np.argsort(-values, kind="stable")[:NUM_CANDIDATES]
    return values[order], order.astype(np.int32)


def photo(number: int) -> npt.NDArray[np.uint8]:
    """Its pixels [height, width, 3]."""
    return np.full((1, 1, 3), number, np.uint8)


def scheduler(inference: FakeInference, slots: int = 32, waiting: int = 1000) -> CaptionScheduler:
    return CaptionScheduler(inference, bos_token_id=BOS, eos_token_id=EOS, slots=slots, waiting=waiting)


def shown(decoded: DecodedPhoto) -> list[tuple[list[int], float, bool]]:
    """What a test can compare: arrays have no equality of their own."""
    return [([token.token for token in one.tokens], one.log_probability, one.complete) for one in decoded.hypotheses]


# Of every kind: greedy and beams, long and short, as requests come.
REQUESTS = [
    (number, DecodingOptions(num_beams=beams, length_penalty=penalty, max_tokens=max_tokens))
    for number, (beams, penalty, max_tokens) in enumerate(
        [(1, 1.0, 8), (4, 1.0, 8), (2, 0.0, 5), (1, 1.0, 3), (5, 2.0, 8), (3, -1.0, 6), (4, 0.6, 8), (1, 1.0, 1)] * 5
    )
]


def decoded_alone(number: int, options: DecodingOptions) -> DecodedPhoto:
    return asyncio.run(scheduler(FakeInference()).caption(photo(number), options, Deadline(30.0)))


ALONE = {number: shown(decoded_alone(number, options)) for number, options in REQUESTS}


def test_captions_of_the_fake_vary() -> None:
    assert len({str(captions) for captions in ALONE.values()}) == len(REQUESTS)
    assert len({len(captions[0][0]) for captions in ALONE.values()}) > 3


@pytest.mark.parametrize("makes_first_tokens", [False, True])
def test_captions_decoded_together_equal_those_decoded_alone(makes_first_tokens: bool) -> None:
    async def together() -> list[DecodedPhoto]:
        captions = scheduler(inference)
        return await asyncio.gather(
            *(captions.caption(photo(number), options, Deadline(30.0)) for number, options in REQUESTS)
        )

    inference = FakeInference(makes_first_tokens=makes_first_tokens)
    results = asyncio.run(together())
    assert max(inference.rows) >= (4 if makes_first_tokens else 8), (
        "the captions were decoded one after the other: the test shows nothing"
    )
    assert {number: shown(result) for (number, _), result in zip(REQUESTS, results, strict=True)} == ALONE


def test_captions_with_as_many_beams_share_their_calls() -> None:
    async def together() -> None:
        captions = scheduler(inference)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        await asyncio.gather(*(captions.caption(photo(number), options, Deadline(30.0)) for number in range(20)))

    inference = FakeInference()
    asyncio.run(together())
    # Prefills end at four different times; without sharing there would be a call for each token of each caption.
    assert len(inference.rows) <= MAX_TOKENS // CONTRACT.tokens_per_call + 1 + 4


@dataclass(frozen=True)
class Arrival:
    """One caller of a schedule; counted in turns of the event loop, since nothing here takes time."""

    request: int | None  # of REQUESTS; None: the embedding only
    pause: int  # turns before the next one comes
    cancel: int | None  # turns after which the caller goes away
    is_expired: bool


def check_schedule(
    arrivals: Sequence[Arrival], slots: int, waiting: int, *, makes_first_tokens: bool = False
) -> tuple[int, int]:
    """Everybody gets the words they get alone or the error they asked for, and every slot comes back.

    Returns:
        How many got words, and how many were refused.
    """
    inference = FakeInference(makes_first_tokens=makes_first_tokens)

    async def one(captions: CaptionScheduler, arrival: Arrival) -> DecodedPhoto | npt.NDArray[np.float32]:
        deadline = Deadline(0.0 if arrival.is_expired else 30.0)
        if arrival.request is None:
            return await captions.embed(photo(7), deadline)
        number, options = REQUESTS[arrival.request]
        return await captions.caption(photo(number), options, deadline)

    async def cancel(task: asyncio.Task[Any], after: int) -> None:
        for _ in range(after):
            await asyncio.sleep(0)
        task.cancel()

    results: list[DecodedPhoto | npt.NDArray[np.float32] | BaseException] = []

    async def run() -> None:  # asyncio.run makes a text of what it returns, which takes longer than the schedule
        captions = scheduler(inference, slots, waiting)
        tasks, cancelling = [], []
        for arrival in arrivals:
            tasks.append(asyncio.create_task(one(captions, arrival)))
            if arrival.cancel is not None:
                cancelling.append(asyncio.create_task(cancel(tasks[-1], arrival.cancel)))
            for _ in range(arrival.pause):
                await asyncio.sleep(0)
        results.extend(await asyncio.gather(*tasks, return_exceptions=True))
        await asyncio.gather(*cancelling)
        for _ in range(50):  # what was given up ends by itself
            await asyncio.sleep(0)
        assert captions.num_in_flight == 0
        assert inference.released == len(inference.encoded), "the memory of encoded photos was not given back"

    asyncio.run(run())
    words = refused = 0
    for arrival, result in zip(arrivals, results, strict=True):
        if isinstance(result, asyncio.CancelledError):
            assert arrival.cancel is not None
        elif isinstance(result, DeadlineError):
            assert arrival.is_expired
        elif isinstance(result, OverloadedError):
            assert arrival.request is not None
            assert result.retry_after_seconds > 0
            refused += 1
        elif isinstance(result, DecodedPhoto):
            assert arrival.request is not None
            assert shown(result) == ALONE[arrival.request]
            assert result.embedding.tolist() == [arrival.request]
            words += 1
        else:
            assert not isinstance(result, BaseException), result
            assert result.tolist() == [7]
    for slot_pool in inference.slot_pools:
        free = [slot_pool.acquire() for _ in range(slots)]
        assert free == list(range(slots)), "a slot was lost or given twice"
    return words, refused


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    arrivals=st.lists(
        st.builds(
            Arrival,
            request=st.one_of(st.none(), st.integers(0, len(REQUESTS) - 1)),
            pause=st.integers(0, 6),
            cancel=st.sampled_from([None, 0, 1, 3, 8, 20]),
            is_expired=st.booleans(),
        ),
        min_size=1,
        max_size=14,
    ),
    slots=st.integers(1, 6),
    waiting=st.integers(1, 14),
)
def test_any_schedule_gives_each_caption_its_own_words(arrivals: list[Arrival], slots: int, waiting: int) -> None:
    check_schedule(arrivals, slots, waiting)


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=[pytest.mark.slow, pytest.mark.campaign]) for part in range(1, 10))]
)
def test_thousands_of_random_schedules_give_each_caption_its_own_words(part: int) -> None:
    """A thousand in each part. Hypothesis shrinks better; this is fast enough to try many."""
    words = refused = 0
    for seed in range(1000 * part, 1000 * (part + 1)):
        chance = random.Random(seed)
        arrivals = [
            Arrival(
                request=chance.choice([None, *range(len(REQUESTS))]),
                pause=chance.choice([0, 0, 0, 1, 2, 6, 15]),
                cancel=chance.choice([None, None, None, 0, 1, 3, 8, 20]),
                is_expired=chance.random() < 0.1,
            )
            for _ in range(chance.randint(1, 12))
        ]
        some_words, some_refused = check_schedule(
            arrivals, chance.randint(1, 6), chance.randint(1, 6), makes_first_tokens=bool(seed % 2)
        )
        words, refused = words + some_words, refused + some_refused
    assert words > 2000, "too few got as far as words: the test shows little"
    assert refused > 20


def test_lowest_slots_are_used_first_so_that_batches_stay_small() -> None:
    async def one_after_the_other() -> None:
        captions = scheduler(inference)
        for number in range(5):
            await captions.caption(photo(number), DecodingOptions(max_tokens=MAX_TOKENS), Deadline(30.0))

    inference = FakeInference()
    asyncio.run(one_after_the_other())
    assert set(inference.rows) == {1}


def test_who_finds_no_slot_waits_for_one_in_order() -> None:
    async def run() -> list[int]:
        captions = scheduler(FakeInference(), slots=1)
        order: list[int] = []

        async def one(number: int) -> None:
            await captions.caption(photo(4 * number), DecodingOptions(max_tokens=MAX_TOKENS), Deadline(30.0))
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(6)))
        return order

    assert asyncio.run(run()) == list(range(6))


def test_who_finds_no_slot_in_time_is_told_so_and_the_slot_is_not_lost() -> None:
    async def run() -> None:
        inference = FakeInference(hangs=asyncio.Event())
        captions = scheduler(inference, slots=1)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        first = asyncio.create_task(captions.caption(photo(0), options, Deadline(30.0)))
        await asyncio.sleep(0.5)
        with pytest.raises(DeadlineError, match="before decoding could begin"):
            await captions.caption(photo(1), options, Deadline(1.0))
        assert inference.hangs is not None
        inference.hangs.set()
        assert shown(await first)
        assert await captions.caption(photo(2), options, Deadline(30.0))

    run_virtually(run())


def test_deadline_ends_a_caption_while_a_call_hangs_and_the_others_go_on() -> None:
    async def run() -> None:
        inference = FakeInference(hangs=asyncio.Event())
        captions = scheduler(inference)
        number, options = REQUESTS[0]
        patient = asyncio.create_task(captions.caption(photo(number), options, Deadline(30.0)))
        with pytest.raises(DeadlineError, match="before decoding was done"):
            await captions.caption(photo(8), options, Deadline(1.0))
        assert inference.hangs is not None
        inference.hangs.set()
        assert shown(await patient) == ALONE[number]

    run_virtually(run())


def test_cancelled_caption_takes_no_further_step() -> None:
    async def run() -> None:
        inference = FakeInference(hangs=asyncio.Event())
        task = asyncio.create_task(scheduler(inference).caption(photo(0), REQUESTS[1][1], Deadline(30.0)))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inference.hangs is not None
        inference.hangs.set()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(inference.rows) == 1

    run_virtually(run())


def test_failing_call_fails_the_captions_in_it_and_nobody_after_them() -> None:
    async def run() -> None:
        captions = scheduler(inference)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        results = await asyncio.gather(
            *(captions.caption(photo(number), options, Deadline(30.0)) for number in (0, 4)),
            captions.caption(photo(1), REQUESTS[1][1], Deadline(30.0)),  # another batch
            return_exceptions=True,
        )
        assert results[:2] == [inference.failure] * 2
        assert shown(results[2]) == ALONE[1]  # type: ignore[arg-type]
        inference.failing_calls = set()
        assert await captions.caption(photo(0), options, Deadline(30.0))

    inference = FakeInference(failing_calls={0})
    asyncio.run(run())


def test_what_no_one_foresaw_is_told_without_its_text() -> None:
    async def run() -> None:
        with pytest.raises(InferenceError, match="^decoding failed: try again$"):
            await captions.caption(photo(0), REQUESTS[0][1], Deadline(30.0))

    captions = scheduler(FakeInference(failing_calls={0}, failure=RuntimeError("/secret/path")))
    asyncio.run(run())


def test_stale_slot_pool_takes_no_new_caption() -> None:
    async def run() -> None:
        captions = scheduler(inference)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        await captions.caption(photo(0), options, Deadline(30.0))
        inference.slot_pools[0].is_stale = True
        await captions.caption(photo(0), options, Deadline(30.0))
        assert len(inference.slot_pools) == 2

    inference = FakeInference()
    asyncio.run(run())


def test_closing_ends_captions_and_gives_the_slot_pools_back() -> None:
    async def run() -> None:
        inference = FakeInference(hangs=asyncio.Event())
        captions = scheduler(inference)
        task = asyncio.create_task(captions.caption(photo(0), REQUESTS[0][1], Deadline(30.0)))
        await asyncio.sleep(0.5)
        await captions.close()
        with pytest.raises(InferenceError, match="stopping"):
            await task
        assert inference.slot_pools == []

    run_virtually(run())


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_model_is_asked_once_for_some_tokens_and_never_after_the_end(num_beams: int) -> None:
    for number in range(20):
        inference = FakeInference()
        options = DecodingOptions(num_beams=num_beams, max_tokens=MAX_TOKENS)
        decoded = asyncio.run(scheduler(inference).caption(photo(number), options, Deadline(30.0)))
        longest = max(len(one.tokens) + one.complete for one in decoded.hypotheses)
        calls = -(-longest // CONTRACT.tokens_per_call)
        assert calls <= len(inference.rows) <= -(-MAX_TOKENS // CONTRACT.tokens_per_call)
        if num_beams == 1:
            assert len(inference.rows) == calls


def test_full_request_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def run() -> None:
        inference = FakeInference(encoder_hangs=asyncio.Event())
        captions = scheduler(inference, slots=2, waiting=3)
        greedy, beams = DecodingOptions(max_tokens=MAX_TOKENS), DecodingOptions(num_beams=4, max_tokens=MAX_TOKENS)
        tasks = [asyncio.create_task(captions.caption(photo(4 * n), greedy, Deadline(30.0))) for n in range(5)]
        await asyncio.sleep(0.5)
        with pytest.raises(OverloadedError, match="3 photos wait to be captioned, the limit") as refusal:
            await captions.caption(photo(1), greedy, Deadline(30.0))
        with pytest.raises(OverloadedError, match="3 photos wait to be captioned, the limit"):
            captions.place(greedy, Deadline(30.0))
        captions.place(beams, Deadline(30.0))
        assert 0 < refusal.value.retry_after_seconds <= 5
        # Greedy callers fill the queue of greedy callers only.
        tasks.append(asyncio.create_task(captions.caption(photo(1), beams, Deadline(30.0))))
        tasks.append(asyncio.create_task(captions.embed(photo(2), Deadline(30.0))))
        assert inference.encoder_hangs is not None
        inference.encoder_hangs.set()
        assert all(await asyncio.gather(*tasks[:-1]))
        assert (await tasks[-1]).tolist() == [2]
        assert await captions.caption(photo(1), greedy, Deadline(30.0))

    run_virtually(run())


def test_place_is_kept_while_a_photo_is_decoded() -> None:
    async def run() -> None:
        captions = scheduler(FakeInference(encoder_hangs=asyncio.Event()), slots=1, waiting=2)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        task = asyncio.create_task(captions.caption(photo(4), options, Deadline(30.0)))
        await asyncio.sleep(0.5)
        with captions.place(options, Deadline(30.0)), captions.place(options, Deadline(30.0)):
            with pytest.raises(OverloadedError, match="2 photos wait"):
                captions.place(options, Deadline(30.0))
            assert captions.batches[1].waiting == 0, "they come later"
        captions.place(options, Deadline(30.0))
        await captions.close()
        await asyncio.gather(task, return_exceptions=True)

    run_virtually(run())


@pytest.fixture
def slow_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos have waited 0.1 s for each one ahead, and have then taken 1 s."""
    times = ServiceTimes()
    for _ in range(20):
        times.waited(10, 1.0)
        times.served(1.0)
    monkeypatch.setattr("search_gateway.engine.scheduler.ServiceTimes", lambda: times)


@pytest.mark.usefixtures("slow_times")
def test_photo_whose_deadline_the_queue_exceeds_is_refused_before_it_is_decoded() -> None:
    async def run() -> None:
        captions = scheduler(FakeInference(encoder_hangs=asyncio.Event()), slots=1)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        captions.place(options, Deadline(0.1))  # nothing waits: it may try
        tasks = [asyncio.create_task(captions.caption(photo(4), options, Deadline(30.0))) for _ in range(11)]
        await asyncio.sleep(0.1)
        captions.place(options, Deadline(2.3))
        with pytest.raises(OverloadedError, match="10 photos wait to be captioned, too many for this deadline") as told:
            captions.place(options, Deadline(1.8))
        assert told.value.reason == "deadline"
        await captions.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtually(run())


@pytest.mark.usefixtures("slow_times")
def test_photo_that_cannot_be_done_in_time_is_not_encoded_while_others_wait() -> None:
    async def run() -> None:
        captions = scheduler(inference, slots=1)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        first, late, last = (
            asyncio.create_task(captions.caption(photo(4), options, Deadline(seconds))) for seconds in (30.0, 0.9, 30.0)
        )
        await asyncio.sleep(0.1)
        hangs.set()
        with pytest.raises(DeadlineError, match="came too late for the deadline"):
            await late
        assert await first
        assert await last
        assert inference.encoded == [1, 1]
        assert await captions.caption(photo(4), options, Deadline(0.9)), "nobody else waits"
        assert captions.num_in_flight == 0

    hangs = asyncio.Event()
    inference = FakeInference(encoder_hangs=hangs)
    run_virtually(run())


def test_photos_whose_turn_never_came_tell_how_slow_the_queue_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        captions = scheduler(FakeInference(encoder_hangs=asyncio.Event()), slots=1)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        tasks = [asyncio.create_task(captions.caption(photo(4), options, Deadline(0.2))) for _ in range(4)]
        await asyncio.gather(*tasks, return_exceptions=True)
        await captions.close()

    waited: list[int] = []
    monkeypatch.setattr(ServiceTimes, "waited", lambda _, num_ahead, __: waited.append(num_ahead))
    run_virtually(run())
    assert sorted(waited) == [0, 1, 2, 3], "the first one was taken"


def test_beam_callers_who_fill_their_queue_do_not_keep_a_greedy_caller_waiting() -> None:
    """The greedy caption is done after about as many steps as it has tokens, whatever the queue of the others."""

    async def run() -> tuple[int, int]:
        captions = scheduler(FakeInference(), slots=2)
        beams = DecodingOptions(num_beams=4, max_tokens=MAX_TOKENS)
        others = [asyncio.create_task(captions.caption(photo(4 * n + 1), beams, Deadline(30.0))) for n in range(10)]
        await asyncio.sleep(0)
        await captions.caption(photo(0), DecodingOptions(max_tokens=MAX_TOKENS), Deadline(30.0))
        done = sum(task.done() for task in others)
        await asyncio.gather(*others)
        return done, len(others)

    done, all_of_them = asyncio.run(run())
    assert done <= 4, f"{done} of {all_of_them} beam captions came first"


class TimedInference(FakeInference):
    """Calls take as long as their photos and rows say, on the clock of the event loop."""

    async def encode(
        self, pixels: npt.NDArray[np.uint8], deadline: Deadline, *, embeddings_only: bool = False,
        first_inputs: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> EncodedPhotos:  # fmt: skip
        await asyncio.sleep(0.010 * len(pixels))
        return await super().encode(pixels, deadline, embeddings_only=embeddings_only, first_inputs=first_inputs)

    async def step(
        self, slot_pool: KvSlotPool, rows: int, inputs: Mapping[str, npt.NDArray[Any]], deadline: Deadline
    ) -> StepOutput:
        await asyncio.sleep((0.002 + 0.0005 * rows) * inputs["limits"][:, 0].max())
        return await super().step(slot_pool, rows, inputs, deadline)


@pytest.mark.parametrize(("modest", "longest"), [("modest", 0.5), ("greedy", math.inf)])
def test_flood_of_one_caller_delays_another_by_no_more_than_the_calls_in_progress(modest: str, longest: float) -> None:
    """With the same name for both the modest caller waits behind the whole queue."""

    async def run() -> float:
        captions = scheduler(TimedInference(), slots=8, waiting=200)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        clock = asyncio.get_running_loop().time

        async def keep_asking() -> None:
            current_caller.set("greedy")
            while True:
                await captions.caption(photo(4), options, Deadline(1000.0))

        async with asyncio.TaskGroup() as group:
            flood = [group.create_task(keep_asking()) for _ in range(100)]
            await asyncio.sleep(1.0)
            current_caller.set(modest)
            seconds = []
            for _ in range(20):
                started = clock()
                await captions.caption(photo(8), options, Deadline(1000.0))
                seconds.append(clock() - started)
            for task in flood:
                task.cancel()
        return max(seconds)

    slowest = run_virtually(run())
    if modest == "greedy":
        assert slowest > 1.0, "the flood is too small for the other case to show anything"
    assert slowest <= longest


def test_full_queue_still_takes_photos_of_callers_that_have_few_in_it() -> None:
    async def run() -> None:
        captions = scheduler(FakeInference(encoder_hangs=asyncio.Event()), slots=2, waiting=4)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        current_caller.set("greedy")
        tasks = [asyncio.create_task(captions.caption(photo(4), options, Deadline(30.0))) for _ in range(6)]
        await asyncio.sleep(0.5)
        with pytest.raises(OverloadedError):
            captions.place(options, Deadline(30.0))
        current_caller.set("modest")
        captions.place(options, Deadline(30.0))
        tasks += [asyncio.create_task(captions.caption(photo(4), options, Deadline(30.0))) for _ in range(2)]
        await asyncio.sleep(0.5)
        with pytest.raises(OverloadedError):
            captions.place(options, Deadline(30.0))
        assert not any(task.done() for task in tasks)
        await captions.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtually(run())


def test_photos_that_come_while_the_encoder_works_share_its_next_call() -> None:
    async def together() -> None:
        captions = scheduler(inference)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        await captions.caption(photo(0), options, Deadline(30.0))  # opens the batch
        await asyncio.gather(*(captions.caption(photo(number), options, Deadline(30.0)) for number in range(20)))

    inference = FakeInference()
    asyncio.run(together())
    assert inference.encoded == [1, 8, 8, 4]


def test_callers_that_come_together_share_a_call_where_only_one_is_computed_at_a_time() -> None:
    """The photos of a wave come a millisecond apart; a call of one photo takes ten, so the next wave is waited for."""

    async def run() -> None:
        captions = scheduler(inference)
        options = DecodingOptions(max_tokens=MAX_TOKENS)

        async def one(number: int) -> None:
            await asyncio.sleep(0.0009 * number)
            await captions.caption(photo(0), options, Deadline(30.0))

        for _ in range(3):
            await asyncio.gather(*(one(number) for number in range(6)))

    inference = TimedInference(encoder_calls=1)
    run_virtually(run())
    # Nobody is expected in the first wave, whose first photo goes alone.
    assert inference.encoded == [1, 5, 6, 6]


def test_defect_between_queue_and_encoder_fails_the_photos_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        captions = scheduler(FakeInference())
        await captions.caption(photo(0), DecodingOptions(), Deadline(30.0))
        with monkeypatch.context() as patch:
            patch.setattr(captions, "_take", lambda: 1 / 0)
            with pytest.raises(InferenceError, match="captioning failed: try again"):
                await captions.caption(photo(1), DecodingOptions(), Deadline(30.0))
        await captions.caption(photo(2), DecodingOptions(), Deadline(30.0))
        assert captions.num_in_flight == 0

    run_virtually(run())


def test_lone_caller_waits_for_nobody_and_shortly_where_others_were_there_a_moment_ago() -> None:
    async def run() -> tuple[float, float, float]:
        captions = scheduler(TimedInference(encoder_calls=1))
        options = DecodingOptions(max_tokens=1)
        clock = asyncio.get_running_loop().time

        async def seconds() -> float:
            begun = clock()
            await captions.caption(photo(0), options, Deadline(30.0))
            return clock() - begun

        alone = [await seconds() for _ in range(3)]
        await asyncio.gather(*(seconds() for _ in range(4)))
        after_others = await seconds()
        for _ in range(20):
            await seconds()
        return alone[-1], after_others, await seconds()

    alone, after_others, alone_again = run_virtually(run())
    assert alone == pytest.approx(0.0125)  # encoder 10 ms, one token 2.5 ms
    assert after_others == pytest.approx(0.0125 + 0.001)
    assert alone_again == pytest.approx(0.0125)


def test_photos_of_one_kind_share_a_call_that_makes_their_first_tokens_and_two_calls_share_the_queue() -> None:
    async def together() -> None:
        captions = scheduler(inference)
        greedy, beams = DecodingOptions(max_tokens=3), DecodingOptions(num_beams=2, max_tokens=3)
        for options in (greedy, beams):
            await captions.caption(photo(0), options, Deadline(30.0))  # opens the batch
        inference.encoder_hangs = asyncio.Event()
        tasks = [asyncio.create_task(captions.caption(photo(4), greedy, Deadline(30.0))) for _ in range(2)]
        await asyncio.sleep(0.1)  # each has a call of its own
        tasks += [asyncio.create_task(captions.caption(photo(4), greedy, Deadline(30.0))) for _ in range(10)]
        tasks += [asyncio.create_task(captions.caption(photo(4), beams, Deadline(30.0))) for _ in range(2)]
        embeddings = [asyncio.create_task(captions.embed(photo(4), Deadline(30.0))) for _ in range(3)]
        await asyncio.sleep(0.1)
        inference.encoder_hangs.set()
        await asyncio.gather(*tasks, *embeddings)
        assert captions.num_in_flight == 0
        assert {size: calls.count for size, calls in captions.step_calls.items()} == {1: 6, 2: 1, 8: 1}
        for batch in captions._batches.values():
            assert (batch.num_reserved, batch.slot_pool.num_free) == (0, 32)

    inference = FakeInference(makes_first_tokens=True)
    run_virtually(together())
    assert inference.rows == [], "three tokens are made in the first call"
    # 15 wait: half of them go with the first call, all of one kind; then come half of what is left, and so on.
    assert sorted(inference.encoded[4:]) == [1, 1, 2, 3, 8]


def test_caption_that_goes_on_after_its_first_call_needs_fewer_calls_of_the_step() -> None:
    async def calls(inference: FakeInference) -> list[str]:
        captions = scheduler(inference)
        found = [await captions.caption(photo(number), options, Deadline(30.0)) for number, options in REQUESTS]
        assert sum(len(one.seconds) for one in found) == 4 * len(found)
        assert all(seconds >= 0 for one in found for seconds in one.seconds.values())
        return [str(shown(one)) for one in found]

    one_by_one, with_first = FakeInference(), FakeInference(makes_first_tokens=True)
    assert asyncio.run(calls(one_by_one)) == asyncio.run(calls(with_first))
    assert len(with_first.rows) == len(one_by_one.rows) - len(REQUESTS)


def test_caller_who_leaves_during_the_first_call_leaves_no_slot_behind() -> None:
    async def run() -> None:
        inference = FakeInference(makes_first_tokens=True, encoder_hangs=asyncio.Event())
        captions = scheduler(inference)
        for max_tokens in (3, MAX_TOKENS):  # one call, and more
            options = DecodingOptions(max_tokens=max_tokens)
            task = asyncio.create_task(captions.caption(photo(4), options, Deadline(30.0)))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert inference.encoder_hangs is not None
        inference.encoder_hangs.set()
        await asyncio.sleep(0.1)
        assert captions._batches[1].num_reserved == 0
        assert captions._batches[1].slot_pool.num_free == 32
        assert inference.released == 2
        assert inference.rows == []

    run_virtually(run())


def test_steps_compute_few_rows_that_nobody_reads() -> None:
    """Slots are taken only when decoding begins: photos that wait for the encoder must not spread the others."""

    async def run() -> None:
        inference = FakeInference()
        captions = scheduler(inference, slots=16)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        await asyncio.gather(*(captions.caption(photo(number % 40), options, Deadline(30.0)) for number in range(64)))
        computed = sum(inference.rows)
        wanted = sum(size * calls.count for size, calls in captions.step_calls.items())
        assert computed < 1.75 * wanted  # a caption takes few calls

    asyncio.run(run())


def test_calls_of_the_step_are_counted_by_their_captions() -> None:
    async def run() -> None:
        inference = FakeInference()
        captions = scheduler(inference)
        await captions.caption(photo(0), DecodingOptions(max_tokens=MAX_TOKENS), Deadline(30.0))
        assert set(captions.step_calls) == {1}
        assert captions.step_calls[1].count == len(inference.rows)
        assert captions.step_calls[1].nanoseconds > 0

    asyncio.run(run())


@dataclass
class SlowOpening(FakeInference):
    """A batch opens when the test says so, or with its error."""

    may_open: asyncio.Event = field(default_factory=asyncio.Event)
    error: InferenceError | None = None
    openings: int = 0

    async def new_slot_pool(self, slots: int, beams: int) -> KvSlotPool:
        self.openings += 1
        await self.may_open.wait()
        if self.error is not None:
            raise self.error
        return await super().new_slot_pool(slots, beams)


def test_callers_wait_for_one_opening_of_a_batch_each_until_its_own_deadline() -> None:
    async def run() -> None:
        inference = SlowOpening()
        captions = scheduler(inference)
        number, options = REQUESTS[0]
        hurried = [captions.caption(photo(number), options, Deadline(0.01)) for _ in range(20)]
        patient = asyncio.create_task(captions.caption(photo(number), options, Deadline(30.0)))
        other = asyncio.create_task(captions.caption(photo(1), REQUESTS[1][1], Deadline(30.0)))
        results = await asyncio.gather(*hurried, return_exceptions=True)
        assert [type(result) for result in results] == [DeadlineError] * 20
        assert inference.openings == 2, "one for each number of beams, and both at the same time"
        inference.may_open.set()
        assert shown(await patient) == ALONE[number]
        assert shown(await other) == ALONE[1]
        assert inference.openings == 2

    asyncio.run(run())


def test_an_opening_that_fails_is_told_to_all_who_wait_and_tried_again_for_the_next() -> None:
    async def run() -> None:
        inference = SlowOpening(error=InferenceError("cannot be reached"))
        captions = scheduler(inference)
        number, options = REQUESTS[0]
        tasks = [asyncio.create_task(captions.caption(photo(number), options, Deadline(30.0))) for _ in range(20)]
        await asyncio.sleep(0)
        inference.may_open.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results == [inference.error] * 20
        assert inference.openings == 1
        inference.error = None
        assert shown(await captions.caption(photo(number), options, Deadline(30.0))) == ALONE[number]

    asyncio.run(run())


def test_caches_that_cannot_be_released_keep_no_others(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(FakeInference):
        async def free_slot_pool(self, slot_pool: KvSlotPool) -> None:
            if slot_pool.beams == 2:
                raise KeyError("a defect")
            await asyncio.sleep(1)
            await super().free_slot_pool(slot_pool)

    async def run() -> None:
        inference = Stuck()
        captions = scheduler(inference)
        for beams in (2, 1, 4):
            await captions.caption(photo(0), DecodingOptions(num_beams=beams, max_tokens=MAX_TOKENS), Deadline(30.0))
        await captions.close()
        assert [slot_pool.beams for slot_pool in inference.slot_pools] == [2]

    run_virtually(run())
    assert "a defect" in caplog.text


def test_nothing_begins_after_closing() -> None:
    async def run() -> None:
        inference = SlowOpening()
        captions = scheduler(inference)
        number, options = REQUESTS[0]
        opening = asyncio.create_task(captions.caption(photo(number), options, Deadline(30.0)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(captions.close())
        await asyncio.sleep(0)
        inference.may_open.set()
        await closing
        late = [captions.caption(photo(number), options, Deadline(30.0)), captions.embed(photo(1), Deadline(30.0))]
        results = await asyncio.gather(opening, *late, return_exceptions=True)
        assert [str(result) for result in results] == ["the server is stopping: try another one"] * 3
        assert inference.slot_pools == inference.encoded == []

    asyncio.run(run())


@dataclass
class LateWriter(FakeInference):
    """Prefill of photo 99 fails at its deadline, and its call writes to the slot when `writes_now` is set."""

    writes_now: asyncio.Event = field(default_factory=asyncio.Event)
    late: asyncio.Task[None] | None = None

    async def prefill(
        self, encoded: EncodedPhotos, photos: Sequence[int], slot_pool: KvSlotPool, slots: Sequence[int],
        deadline: Deadline,
    ) -> None:  # fmt: skip
        assert encoded.hidden_states is not None
        if encoded.hidden_states[0, 0, 0] != 99:
            return await super().prefill(encoded, photos, slot_pool, slots, deadline)

        async def write() -> None:
            await self.writes_now.wait()
            slot_pool.cross[0][list(slots)] = 99
            slot_pool.end_write(slots)

        slot_pool.begin_write(slots)
        self.late = asyncio.create_task(write())
        raise DeadlineError("late")


def test_a_late_write_of_prefill_reaches_no_other_photo() -> None:
    async def run() -> None:
        inference = LateWriter()
        inference.hangs = asyncio.Event()
        captions = scheduler(inference, slots=2)
        number, options = REQUESTS[0]
        with pytest.raises(DeadlineError, match="late"):
            await captions.caption(photo(99), options, Deadline(30.0))
        others = [asyncio.create_task(captions.caption(photo(number), options, Deadline(30.0))) for _ in range(2)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert inference.rows == [2], "the first slot, which is still written to, is computed and belongs to nobody"
        inference.writes_now.set()
        for _ in range(20):
            await asyncio.sleep(0)
        inference.hangs.set()
        assert [shown(await other) for other in others] == [ALONE[number]] * 2, "another photo's words"
        assert inference.slot_pools[0].num_free == 2

    asyncio.run(run())


def test_a_slot_whose_late_write_has_ended_goes_to_the_next_photo_that_waits() -> None:
    async def run() -> None:
        inference = LateWriter()
        captions = scheduler(inference, slots=1)
        number, options = REQUESTS[0]
        with pytest.raises(DeadlineError, match="late"):
            await captions.caption(photo(99), options, Deadline(30.0))
        other = asyncio.create_task(captions.caption(photo(number), options, Deadline(30.0)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert inference.rows == []
        inference.writes_now.set()
        assert shown(await other) == ALONE[number]

    asyncio.run(run())


def test_everybody_inside_can_be_told_that_triton_is_gone() -> None:
    async def run() -> None:
        inference = FakeInference(hangs=asyncio.Event())
        captions = scheduler(inference, slots=1)
        options = DecodingOptions(max_tokens=MAX_TOKENS)
        tasks = [asyncio.create_task(captions.caption(photo(0), options, Deadline(30.0))) for _ in range(3)]
        await asyncio.sleep(0.5)
        captions.fail_all(InferenceError("gone"))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["gone"] * 3
        assert captions.num_in_flight == 0
        assert inference.hangs is not None
        inference.hangs.set()
        assert await captions.caption(photo(1), options, Deadline(30.0))

    run_virtually(run())


def test_error_frees_its_photo_without_the_garbage_collector(without_collector: None) -> None:
    async def run() -> None:
        captions = scheduler(FakeInference(failing_calls={0}, failure=InferenceError))  # type: ignore[arg-type]  # a new one
        try:
            await captions.caption(photo(1), DecodingOptions(max_tokens=MAX_TOKENS), Deadline(10.0))
        except InferenceError as error:
            kept = weakref.ref(error)  # its frames hold the pixels
        await captions.close()
        await asyncio.sleep(0)  # the loop forgets the future that woke this task
        assert kept() is None

    asyncio.run(run())
