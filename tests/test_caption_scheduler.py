# SPDX-License-Identifier: Apache-2.0
"""Captions decoded together equal those decoded alone, on a step model that is a function of its inputs only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from captioner.model_contract import ModelContract
from search_gateway.caption_scheduler import CaptionScheduler
from search_gateway.deadline import Deadline
from search_gateway.decoding import DecodingOptions, Hypothesis
from search_gateway.errors import DeadlineError, InferenceError, SearchError
from search_gateway.kv_cache import KvCache
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
class FakeStep:
    """What comes next is drawn from the photo and the beam's own tokens, found in the cache by its ancestors."""

    failures: dict[float, SearchError] = field(default_factory=dict)  # of photos, at their third step
    clock: Clock = field(default_factory=Clock)
    seconds_per_step: float = 0.0
    num_running: int = 0
    most_running: int = 0
    steps: dict[float, int] = field(default_factory=dict)  # taken, by photo
    two_steps_taken: asyncio.Event = field(default_factory=asyncio.Event)

    async def step(
        self, tokens: npt.NDArray[np.int32], position: int, cache: KvCache, cross: Sequence[Floats], deadline: Deadline
    ) -> StepOutput:
        photo = float(cross[0][0])
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            # Others take their turn; how many depends on the photo, so that captions overtake each other.
            for _ in range(int(photo) % 4 + position % 3):
                await asyncio.sleep(0)
            self.clock.now += self.seconds_per_step
            deadline.check("decoding")
            if position == 2 and photo in self.failures:
                raise self.failures[photo]
        finally:
            self.num_running -= 1
        self.steps[photo] = self.steps.get(photo, 0) + 1
        if self.steps[photo] == 2:
            self.two_steps_taken.set()
        times = np.arange(position)
        written = cache.tensors[0][0, 0, times, cache.ancestors[0][:, :position], 0]  # [K, position]
        rows = [self._logprobs(photo, np.append(before, token)) for before, token in zip(written, tokens, strict=True)]
        order = np.argsort(-np.stack(rows), axis=1, kind="stable")[:, :NUM_CANDIDATES]
        logprobs = np.take_along_axis(np.stack(rows), order, axis=1)
        return StepOutput(logprobs, order.astype(np.int32), np.tile(tokens[:, None, None, None, None], (1, 1, 2, 1, 1)))

    def _logprobs(self, photo: float, tokens: Floats) -> npt.NDArray[np.float32]:
        generator = np.random.default_rng([int(photo), *tokens.astype(int).tolist()])
        logits = 2 * generator.standard_normal(NUM_WORDS)
        logits[EOS] += 1
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    def empty_cache(self, num_beams: int) -> KvCache:
        return KvCache(CONTRACT, photos=1, beams=num_beams)


def photo(number: int) -> list[Floats]:
    return [np.array([number], np.float32)]


def scheduler(steps: FakeStep) -> CaptionScheduler:
    return CaptionScheduler(steps, bos_token_id=BOS, eos_token_id=EOS)


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
    return asyncio.run(scheduler(FakeStep()).decode(photo(number), options, Deadline(30.0)))


ALONE = {number: shown(decoded_alone(number, options)) for number, options in REQUESTS}


def test_captions_of_the_fake_vary() -> None:
    assert len({str(captions) for captions in ALONE.values()}) == len(REQUESTS)
    assert len({len(captions[0][0]) for captions in ALONE.values()}) > 3


def test_batched_captions_equal_captions_decoded_alone() -> None:
    async def together() -> list[list[Hypothesis]]:
        return await asyncio.gather(
            *(captions.decode(photo(number), options, Deadline(30.0)) for number, options in REQUESTS)
        )

    steps = FakeStep()
    captions = scheduler(steps)
    results = asyncio.run(together())
    assert steps.most_running > 10, "the captions were decoded one after the other: the test shows nothing"
    assert {number: shown(result) for (number, _), result in zip(REQUESTS, results, strict=True)} == ALONE


def test_captions_that_come_later_equal_captions_decoded_alone() -> None:
    async def one_after_the_other() -> list[list[Hypothesis]]:
        tasks = []
        for number, options in REQUESTS:
            tasks.append(asyncio.create_task(captions.decode(photo(number), options, Deadline(30.0))))
            for _ in range(number % 5):
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    captions = scheduler(FakeStep())
    results = asyncio.run(one_after_the_other())
    assert {number: shown(result) for (number, _), result in zip(REQUESTS, results, strict=True)} == ALONE


def test_same_photo_and_options_give_the_same_caption_whatever_else_is_decoded() -> None:
    async def many_of_one() -> list[list[Hypothesis]]:
        number, options = REQUESTS[1]
        return await asyncio.gather(
            *(captions.decode(photo(number), options, Deadline(30.0)) for _ in range(5)),
            *(captions.decode(photo(other), different, Deadline(30.0)) for other, different in REQUESTS),
        )

    captions = scheduler(FakeStep())
    assert [shown(result) for result in asyncio.run(many_of_one())[:5]] == [ALONE[1]] * 5


def test_cancelling_captions_leaves_the_others_unharmed() -> None:
    cancelled = {number for number, _ in REQUESTS[::3]}

    async def some_cancelled() -> dict[int, Any]:
        tasks = {
            number: asyncio.create_task(captions.decode(photo(number), options, Deadline(30.0)))
            for number, options in REQUESTS
        }
        for _ in range(4):  # in the middle of their first steps
            await asyncio.sleep(0)
        for number in cancelled:
            tasks[number].cancel()
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        return dict(zip(tasks, results, strict=True))

    steps = FakeStep()
    captions = scheduler(steps)
    results = asyncio.run(some_cancelled())
    ended = {number for number, result in results.items() if isinstance(result, asyncio.CancelledError)}
    # A caption of one token may have been there already.
    assert ended <= cancelled
    assert len(ended) > len(cancelled) // 2
    assert steps.num_running == 0
    whole = {number: shown(result) for number, result in results.items() if number not in ended}
    assert whole == {number: caption for number, caption in ALONE.items() if number not in ended}


def test_cancelled_caption_takes_no_further_step() -> None:
    async def cancel_after_the_second_step() -> None:
        task = asyncio.create_task(captions.decode(photo(1), REQUESTS[1][1], Deadline(30.0)))
        await steps.two_steps_taken.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(50):
            await asyncio.sleep(0)

    steps = FakeStep()
    captions = scheduler(steps)
    asyncio.run(cancel_after_the_second_step())
    assert steps.steps == {1.0: 2}
    assert steps.num_running == 0


def test_a_failing_caption_fails_alone() -> None:
    async def together() -> list[Any]:
        return await asyncio.gather(
            *(captions.decode(photo(number), options, Deadline(30.0)) for number, options in REQUESTS),
            return_exceptions=True,
        )

    failure = InferenceError("the inference server failed")
    captions = scheduler(FakeStep(failures={4.0: failure}))
    for (number, _), result in zip(REQUESTS, asyncio.run(together()), strict=True):
        if number == 4:
            assert result is failure
        else:
            assert shown(result) == ALONE[number]


def test_deadline_ends_a_caption_between_its_steps() -> None:
    steps = FakeStep(seconds_per_step=1.0)
    number, options = REQUESTS[1]
    assert max(len(tokens) for tokens, _, _ in ALONE[number]) > 3
    with pytest.raises(DeadlineError, match="decoding"):
        asyncio.run(scheduler(steps).decode(photo(number), options, Deadline(2.5, steps.clock)))
    assert steps.steps == {float(number): 2}


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_model_is_asked_once_per_token_and_never_after_the_end(num_beams: int) -> None:
    for number in range(20):
        steps = FakeStep()
        options = DecodingOptions(num_beams=num_beams, max_tokens=MAX_TOKENS)
        hypotheses = asyncio.run(scheduler(steps).decode(photo(number), options, Deadline(30.0)))
        longest = max(len(one.tokens) + one.complete for one in hypotheses)
        assert longest <= steps.steps[float(number)] <= MAX_TOKENS
        if num_beams == 1:
            assert steps.steps[float(number)] == longest
