# SPDX-License-Identifier: Apache-2.0
"""The captions with one number of beams that are decoded together: one call of the step model per iteration.

A call makes several tokens. Captions join and leave between calls, whatever position each is at.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from captioner.decoding import Decoder, decode, small_inputs
from search_gateway.deadline import Deadline
from search_gateway.engine.inference import StepInference
from search_gateway.engine.kv_slots import KvSlotPool
from search_gateway.errors import InferenceError, SearchError
from search_gateway.observability.observer import Observer
from search_gateway.observability.tracing import PhotoSpans, shared_call

_log = logging.getLogger(__name__)


@dataclass
class StepCalls:
    """Calls of the step model with one number of captions.

    Attributes:
        count: number of calls.
        nanoseconds: their total duration.
    """

    count: int = 0
    nanoseconds: int = 0


@dataclass(eq=False)
class _Caption:
    decoder: Decoder
    deadline: Deadline
    done: asyncio.Future[None]
    spans: PhotoSpans
    is_new: bool  # no step was computed yet


class RunningBatch:
    """Decodes all captions with one number of beams.

    Args:
        inference: computes the steps.
        slot_pool: the captions' caches.
        calls: updated with every call, by the number of captions in it.
        observer: told of each call.

    Attributes:
        num_reserved: free slots that the scheduler has promised to photos; it changes this number.
    """

    def __init__(
        self,
        inference: StepInference,
        slot_pool: KvSlotPool,
        calls: defaultdict[int, StepCalls],
        observer: Observer | None = None,
    ):
        self._observer = observer or Observer()
        self.slot_pool = slot_pool
        self.num_reserved = 0
        self._inference = inference
        self._calls = calls
        self._captions: dict[int, _Caption] = {}  # by slot
        self._running: asyncio.Task[None] | None = None

    @property
    def num_captions(self) -> int:
        """How many captions it decodes."""
        return len(self._captions)

    def join(
        self,
        slot: int,
        decoder: Decoder,
        deadline: Deadline,
        done: asyncio.Future[None],
        spans: PhotoSpans | None = None,
        *,
        is_new: bool = True,
    ) -> None:
        """Add a caption, which is decoded from the next iteration on.

        Args:
            slot: already prefilled.
            decoder: gives the tokens of each step.
            deadline: the caption's own.
            done: completes when the caption has ended, or fails with what went wrong.
            spans: of the photo's trace.
            is_new: whether no step was computed yet.
        """
        self._captions[slot] = _Caption(decoder, deadline, done, spans or PhotoSpans(), is_new)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(), context=contextvars.Context())

    def leave(self, slot: int) -> None:
        """Remove a caption, finished or not, and release its slot."""
        self._captions.pop(slot, None)  # an iteration in progress discards its result for this caption
        self.slot_pool.release(slot)

    def count_call(self, captions: int, nanoseconds: int) -> None:
        """Count a call of the step for so many captions."""
        calls = self._calls[captions]
        calls.count += 1
        calls.nanoseconds += nanoseconds
        self._observer.step_ended(captions, nanoseconds / 1e9)

    async def close(self) -> None:
        """Stop decoding; captions that are not finished fail with InferenceError."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        for caption in self._captions.values():
            if not caption.done.done():
                caption.done.set_exception(InferenceError("the server is stopping: try another one"))

    async def _run(self) -> None:
        """Iterate until no caption is left."""
        while batch := {slot: one for slot, one in self._captions.items() if not one.done.done()}:
            try:
                await self._iterate(batch)
            except Exception as error:
                known = isinstance(error, SearchError)
                if not known:
                    _log.exception("decoding failed unexpectedly")
                self._fail(batch, error if known else InferenceError("decoding failed: try again"))

    def _fail(self, batch: dict[int, _Caption], error: Exception) -> None:
        # Not in `_run`, and no caption is left in `batch`: the error holds those frames, and captions hold the error.
        while batch:
            _, caption = batch.popitem()
            if not caption.done.done():
                caption.done.set_exception(error)

    async def _iterate(self, batch: dict[int, _Caption]) -> None:
        """The next tokens for every beam of every caption of the batch."""
        inputs = {slot: caption.decoder.next_input() for slot, caption in batch.items()}
        # Rows up to the highest slot; the free ones between are computed and their output is not used.
        rows = max(inputs) + 1
        latest = max((caption.deadline for caption in batch.values()), key=Deadline.remaining_seconds)
        started = time.perf_counter_ns()
        small = small_inputs(list(inputs.values()), list(inputs), rows, self.slot_pool.tokens_per_call)
        first_steps = [caption.spans for caption in batch.values() if caption.is_new]
        with shared_call(first_steps, "first_step"):
            output = await self._inference.step(self.slot_pool, rows, small, latest)
        self.count_call(len(batch), time.perf_counter_ns() - started)
        for caption in batch.values():
            caption.is_new = False
        going_on = []
        for slot, caption in batch.items():
            if self._captions.get(slot) is not caption:
                continue  # cancelled, or its deadline passed
            decode(
                caption.decoder, output.candidate_logprobs[slot], output.candidate_tokens[slot], output.selected[slot]
            )
            if not caption.decoder.finished:
                going_on.append(slot)
            elif not caption.done.done():
                caption.done.set_result(None)
        positions = np.array([inputs[slot].position for slot in going_on], np.int32)
        self.slot_pool.append(going_on, output.new_kv[going_on], output.selected[going_on], positions)
