# SPDX-License-Identifier: Apache-2.0
"""Decodes many captions at a time: iteration-level ("in-flight") batching (Yu et al. 2022, "Orca").

Captions with as many beams share a lane: one call of the step model per iteration for all of them, whatever position
each is at. They join and leave between iterations, and no timer holds anybody up: a lone caption's lane runs as fast as
it would by itself. Knows nothing about words.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from search_gateway.deadline import Deadline
from search_gateway.decoding import Decoder, DecodingOptions, Hypothesis, decoder_for
from search_gateway.errors import DeadlineError, InferenceError, SearchError
from search_gateway.kv_arena import KvArena
from search_gateway.kv_cache import Floats, Ids
from search_gateway.triton_inference import StepOutput

_log = logging.getLogger(__name__)

LANE_SLOTS = 32  # captions of one lane at a time, the most Triton takes in one batch; others wait for a slot


class DecoderInference(Protocol):
    """What the scheduler needs of inference."""

    async def new_arena(self, slots: int, beams: int) -> KvArena: ...

    async def free_arena(self, arena: KvArena) -> None: ...

    async def prefill(self, hidden_states: Floats, arena: KvArena, slot: int, deadline: Deadline) -> None: ...

    async def step(self, arena: KvArena, rows: int, tokens: Ids, positions: Ids, deadline: Deadline) -> StepOutput: ...


class CaptionScheduler:
    def __init__(self, inference: DecoderInference, *, bos_token_id: int, eos_token_id: int, slots: int = LANE_SLOTS):
        self._inference = inference
        self._bos = bos_token_id
        self._eos = eos_token_id
        self._slots = slots
        self._lanes: dict[int, _Lane] = {}
        self._opening = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def admit(self, options: DecodingOptions, deadline: Deadline) -> AsyncIterator[Seat]:
        """Wait for a slot and give it back in the end, however that comes.

        Raises:
            DeadlineError: no slot became free in time.
            InferenceError: the inference server is not there.
        """
        lane = await self._lane(options.num_beams)
        slot = await lane.acquire(deadline)
        try:
            yield Seat(lane, slot, decoder_for(options, self._bos, self._eos), deadline)
        finally:
            lane.release(slot)

    async def decode(self, hidden_states: Floats, options: DecodingOptions, deadline: Deadline) -> list[Hypothesis]:
        """One photo's caption from its hidden states [S, D]; hypotheses best first. Raises as `Seat`."""
        async with self.admit(options, deadline) as seat:
            await seat.prefill(hidden_states)
            return await seat.decode()

    async def _lane(self, beams: int) -> _Lane:
        async with self._opening:
            lane = self._lanes.get(beams)
            if lane is None or lane.arena.is_stale:
                # Captions of a stale lane end by themselves: whom they ask is gone.
                lane = self._lanes[beams] = _Lane(self._inference, await self._inference.new_arena(self._slots, beams))
            return lane

    async def close(self) -> None:
        """End what still decodes and give all memory back."""
        for lane in self._lanes.values():
            await lane.close()
        self._lanes.clear()


class Seat:
    """A caption's place in a lane."""

    def __init__(self, lane: _Lane, slot: int, decoder: Decoder, deadline: Deadline):
        self._lane, self._slot, self._decoder, self._deadline = lane, slot, decoder, deadline

    async def prefill(self, hidden_states: Floats) -> None:
        """Fill the slot with the photo's cross-attention, [S, D].

        A cancelled call may still write into the slot when it is another caption's. That one's own prefill comes after
        it: the model has one instance, which answers in the order of the calls.

        Raises:
            InferenceError, OverloadedError, DeadlineError.
        """
        await self._lane.inference.prefill(hidden_states, self._lane.arena, self._slot, self._deadline)

    async def decode(self) -> list[Hypothesis]:
        """Hypotheses, best first.

        Raises:
            InferenceError, OverloadedError, DeadlineError.
        """
        return await self._lane.decode(self._slot, self._decoder, self._deadline)


@dataclass(eq=False)
class _Caption:
    decoder: Decoder
    deadline: Deadline
    done: asyncio.Future[None]


class _Lane:
    """All captions with as many beams."""

    def __init__(self, inference: DecoderInference, arena: KvArena):
        self.inference = inference
        self.arena = arena
        self._captions: dict[int, _Caption] = {}  # by slot
        self._waiting: collections.deque[asyncio.Future[int]] = collections.deque()
        self._running: asyncio.Task[None] | None = None

    async def acquire(self, deadline: Deadline) -> int:
        """The lowest free slot; first come, first served."""
        slot = self.arena.acquire() if not self._waiting else None
        if slot is not None:
            return slot
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(deadline.remaining_seconds()):
                return await turn
        except BaseException as error:
            # The slot may have been handed over in this very moment.
            if turn.done() and not turn.cancelled():
                self.release(turn.result())
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise DeadlineError("the deadline passed before decoding could begin: allow more time") from error
            raise

    def release(self, slot: int) -> None:
        """Hand the slot to who waits longest, or back to the arena."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(slot)
                return
        self.arena.release(slot)

    async def decode(self, slot: int, decoder: Decoder, deadline: Deadline) -> list[Hypothesis]:
        caption = _Caption(decoder, deadline, asyncio.get_running_loop().create_future())
        self._captions[slot] = caption
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        try:
            # Also while a call hangs: the others' deadlines may be longer.
            async with asyncio.timeout(deadline.remaining_seconds()):
                await caption.done
        except TimeoutError as error:
            raise DeadlineError("the deadline passed before decoding was done: allow more time") from error
        finally:
            del self._captions[slot]  # an iteration under way finds it gone and drops what it made
        return decoder.hypotheses()

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        for caption in self._captions.values():
            if not caption.done.done():
                caption.done.set_exception(InferenceError("the server is stopping: try another one"))
        await self.inference.free_arena(self.arena)

    async def _run(self) -> None:
        """Iterate until nobody is left."""
        while batch := {slot: one for slot, one in self._captions.items() if not one.done.done()}:
            try:
                await self._iterate(batch)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                known = isinstance(error, SearchError)
                if not known:
                    _log.exception("decoding failed in a way nobody foresaw")
                for caption in batch.values():
                    if not caption.done.done():
                        caption.done.set_exception(error if known else InferenceError("decoding failed: try again"))

    async def _iterate(self, batch: dict[int, _Caption]) -> None:
        """One token for every beam of every caption of the batch."""
        inputs = {slot: caption.decoder.next_input() for slot, caption in batch.items()}
        slots = np.fromiter(inputs, np.intp)
        positions = np.array([one.position for one in inputs.values()], np.int32)
        self.arena.cache.follow(slots, np.stack([one.parents for one in inputs.values()]), positions)
        # Rows up to the highest slot; what lies between is computed along and read by nobody.
        rows = int(slots.max()) + 1
        all_tokens = np.zeros((rows, self.arena.beams), np.int32)
        all_positions = np.zeros((rows, 1), np.int32)
        all_tokens[slots] = np.stack([one.tokens for one in inputs.values()])
        all_positions[slots, 0] = positions
        latest = max((caption.deadline for caption in batch.values()), key=Deadline.remaining_seconds)
        output = await self.inference.step(self.arena, rows, all_tokens, all_positions, latest)
        here = np.array([self._captions.get(slot) is caption for slot, caption in batch.items()])
        self.arena.cache.append(slots[here], output.new_kv[slots[here]], positions[here])
        for slot, caption in batch.items():
            if self._captions.get(slot) is not caption:
                continue  # cancelled or out of time
            caption.decoder.update(output.candidate_logprobs[slot], output.candidate_tokens[slot])
            if caption.decoder.finished and not caption.done.done():
                caption.done.set_result(None)
