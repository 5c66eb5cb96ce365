# SPDX-License-Identifier: Apache-2.0
"""All captions with as many beams, decoded together: one call of the step model per iteration for all of them.

They join and leave between iterations, whatever position each is at. Knows nothing about photos or words.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from captioner.decoding import Decoder
from search_gateway.deadline import Deadline
from search_gateway.engine.inference import StepInference
from search_gateway.engine.kv_slots import KvArena
from search_gateway.errors import InferenceError, SearchError

_log = logging.getLogger(__name__)


@dataclass
class StepCalls:
    """How often the step model was called for so many captions at a time, and how long that took together."""

    count: int = 0
    nanoseconds: int = 0


@dataclass(eq=False)
class _Caption:
    decoder: Decoder
    deadline: Deadline
    done: asyncio.Future[None]


class CaptionLane:
    """Args:
        calls: is kept up to date, by the number of captions in a call.

    Attributes:
        places: how many more may be on their way here; whoever lets one in counts it. Never more than free slots.
    """

    def __init__(self, inference: StepInference, arena: KvArena, calls: defaultdict[int, StepCalls]):
        self.arena = arena
        self.places = arena.slots
        self._inference = inference
        self._calls = calls
        self._captions: dict[int, _Caption] = {}  # by slot
        self._running: asyncio.Task[None] | None = None

    def join(self, slot: int, decoder: Decoder, deadline: Deadline, done: asyncio.Future[None]) -> None:
        """Decode from the next iteration on; `done` tells the end, or what went wrong. The slot has been prefilled."""
        self._captions[slot] = _Caption(decoder, deadline, done)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())

    def leave(self, slot: int) -> None:
        """Give the slot back, whether its caption is done or not."""
        self._captions.pop(slot, None)  # an iteration under way finds it gone and drops what it made
        self.arena.release(slot)

    async def close(self) -> None:
        """End what still decodes."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        for caption in self._captions.values():
            if not caption.done.done():
                caption.done.set_exception(InferenceError("the server is stopping: try another one"))

    async def _run(self) -> None:
        """Iterate until nobody is left."""
        while batch := {slot: one for slot, one in self._captions.items() if not one.done.done()}:
            try:
                await self._iterate(batch)
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
        started = time.perf_counter_ns()
        output = await self._inference.step(self.arena, rows, all_tokens, all_positions, latest)
        calls = self._calls[len(batch)]
        calls.count += 1
        calls.nanoseconds += time.perf_counter_ns() - started
        here = np.array([self._captions.get(slot) is caption for slot, caption in batch.items()])
        self.arena.cache.append(slots[here], output.new_kv[slots[here]], positions[here])
        for slot, caption in batch.items():
            if self._captions.get(slot) is not caption:
                continue  # cancelled or out of time
            caption.decoder.update(output.candidate_logprobs[slot], output.candidate_tokens[slot])
            if caption.decoder.finished and not caption.done.done():
                caption.done.set_result(None)
