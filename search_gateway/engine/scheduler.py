# SPDX-License-Identifier: Apache-2.0
"""Captions many photos at a time: iteration-level ("in-flight") batching (Yu et al. 2022, "Orca").

    request queue ─▶ admission: encoder, prefill, slot,  ─▶ running batch: calls of the step, of some tokens each,
                     a few photos per call                  for all captions with as many beams

The next photos are encoded while others decode. A single photo takes as long as it would alone, and photos that
arrive during a call share the next one. Greedy captions, each number of beams, and thumbnails
have queues of their own, which take turns at the encoder; so do the callers within a queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from captioner.decoding import Decoder, DecodingOptions, Hypothesis, decode, decoder_for, small_inputs
from search_gateway.deadline import Deadline
from search_gateway.engine.inference import CaptionInference, EncodedPhotos, Pixels
from search_gateway.engine.request_queue import RequestQueue
from search_gateway.engine.running_batch import RunningBatch, StepCalls
from search_gateway.engine.service_times import RecentPeak, ServiceTimes
from search_gateway.errors import DeadlineError, InferenceError, OverloadedError, SearchError
from search_gateway.fair_share import current_caller, spread
from search_gateway.observability.observer import BatchState, Observer
from search_gateway.observability.tracing import PhotoSpans, shared_call

_log = logging.getLogger(__name__)

SLOTS = 32  # captions of one running batch; Triton's maximum batch size
WAITING = 64  # queued photos of one kind

# Photos per call of the encoder. More would hardly be faster per photo, and the next photo would wait longer.
_ENCODER_BATCH = 8
# An encoder that is free waits for the next photo that is expected, see `_gather`, for this share of its shortest call.
_GATHERING_SHARE = 0.1

_EMBEDDING_ONLY = 0  # the kind of photos that are not captioned; the others' kind is their number of beams

# The retry delay that a refused caller gets is the expected duration of the queue, within these bounds.
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.1, 5.0
_RATE_WINDOW = 64  # captions

_TOO_LATE = "the turn of the photo came too late for the deadline: allow more time"
_STOPPING = "the server is stopping: try another one"


@dataclass(frozen=True)
class DecodedPhoto:
    """What the models computed for one photo.

    Attributes:
        embedding: float32 [D], L2-normalised.
        hypotheses: the captions, best first.
        seconds: duration of the stages queue, encode, prefill and decode.
        query_logprobs: float32 [Q]; None for a model without a query head.
    """

    embedding: npt.NDArray[np.float32]
    hypotheses: list[Hypothesis]
    seconds: dict[str, float]
    query_logprobs: npt.NDArray[np.float32] | None = None


class CaptionScheduler:
    """Queues photos and decodes them in running batches, one for each number of beams.

    Args:
        inference: computes the models.
        bos_token_id: the token that begins a caption.
        eos_token_id: the token that ends a caption.
        slots: maximum number of captions in one running batch.
        waiting: maximum number of queued photos of one kind; further ones are refused.
        observer: told of the batches.
    """

    def __init__(
        self,
        inference: CaptionInference,
        *,
        bos_token_id: int,
        eos_token_id: int,
        slots: int = SLOTS,
        waiting: int = WAITING,
        observer: Observer | None = None,
    ):
        self._observer = observer or Observer()
        self._inference = inference
        self._bos = bos_token_id
        self._eos = eos_token_id
        self._slots = slots
        self._batches: dict[int, RunningBatch] = {}
        self._openings: dict[int, asyncio.Task[SearchError | None]] = {}  # of batches, by their number of beams
        self._is_closed = False
        self._queue: RequestQueue[_Photo] = RequestQueue(waiting, frozenset({_EMBEDDING_ONLY}))
        self._admissions: set[asyncio.Task[None]] = set()
        self._finished: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._times: defaultdict[int, ServiceTimes] = defaultdict(ServiceTimes)  # by kind
        self._calls: defaultdict[int, StepCalls] = defaultdict(StepCalls)
        self._photos: set[_Photo] = set()  # queued or in progress
        self._concurrency = RecentPeak()
        self._has_new = asyncio.Event()  # a photo was queued
        self._shortest_call = 0.0  # of the encoder, in seconds

    @property
    def num_in_flight(self) -> int:
        """Number of photos that are queued or in progress."""
        return len(self._photos)

    @property
    def step_calls(self) -> Mapping[int, StepCalls]:
        """Calls of the step model, by the number of captions in a call."""
        return self._calls

    @property
    def batches(self) -> dict[int, BatchState]:
        """What is running and waiting, by number of beams; 0 stands for photos that are only embedded."""
        waiting = self._queue.kinds_waiting()
        states = {
            beams: BatchState(
                running=batch.num_captions,
                waiting=waiting.pop(beams, 0),
                slots=batch.slot_pool.slots,
                slots_in_use=batch.slot_pool.slots - batch.slot_pool.num_free + batch.num_reserved,
            )
            for beams, batch in self._batches.items()
        }
        return states | {kind: BatchState(waiting=count) for kind, count in waiting.items()}

    async def caption(self, pixels: Pixels, options: DecodingOptions, deadline: Deadline) -> DecodedPhoto:
        """Compute a photo's embedding and caption.

        Args:
            pixels: uint8 [height, width, 3].
            options: greedy or beam search, and its limits.
            deadline: of the whole call, including the time in the queue.

        Raises:
            OverloadedError: the queue of this number of beams is full, or Triton's is.
            DeadlineError: the deadline passed first.
            InferenceError: a model call failed.
        """
        await self._open_batch(options.num_beams, deadline)
        photo = _Photo(pixels, options.num_beams, deadline, decoder_for(options, self._bos, self._eos))
        await self._pass(photo)
        assert photo.decoder is not None
        return DecodedPhoto(photo.embedding, photo.decoder.hypotheses(), photo.seconds, photo.query_logprobs)

    def place(self, options: DecodingOptions, deadline: Deadline) -> AbstractContextManager[None]:
        """Keep a place in the queue while the photo's image file is decoded, for `caption` immediately afterwards.

        Under overload, decoding the files of refused photos would take as long as captioning.

        Args:
            options: of the caption.
            deadline: as well.

        Raises:
            OverloadedError: the queue is full, or so long that the caption would come too late.
        """
        kind, caller = options.num_beams, current_caller.get()
        self._refuse_if_full(kind)
        times, num_ahead = self._times[kind], self._queue.num_ahead(kind, caller)
        wait = times.wait(num_ahead)
        if wait and wait + times.service() > deadline.remaining_seconds():
            raise OverloadedError(
                f"{num_ahead} photos wait to be captioned, too many for this deadline: try again shortly, or allow "
                "more time",
                retry_after_seconds=self._retry_seconds(),
                reason="deadline",
            )
        return self._queue.place(kind, caller)

    async def embed(self, pixels: Pixels, deadline: Deadline) -> npt.NDArray[np.float32]:
        """Compute a photo's embedding alone, float32 [D]. This queue has no limit; callers bound their number.

        Raises:
            OverloadedError: Triton's queue is full.
            DeadlineError: the deadline passed first.
            InferenceError: the model call failed.
        """
        photo = _Photo(pixels, _EMBEDDING_ONLY, deadline, None)
        await self._pass(photo)
        return photo.embedding

    def fail_all(self, error: InferenceError) -> None:
        """Fail all photos that are queued or in progress with this error."""
        self._fail(list(self._photos), error)

    async def close(self) -> None:
        """Stop, fail what is not finished, and release all memory."""
        self._is_closed = True
        await asyncio.gather(*self._openings.values(), return_exceptions=True)
        admissions = list(self._admissions)
        for task in admissions:
            task.cancel()
        await asyncio.gather(*admissions, return_exceptions=True)
        self.fail_all(InferenceError(_STOPPING))
        for batch in self._batches.values():
            await batch.close()
        freed = (self._inference.free_slot_pool(batch.slot_pool) for batch in self._batches.values())
        for failure in await asyncio.gather(*freed, return_exceptions=True):  # one must not keep the others from it
            if failure is not None:
                _log.error("caches were not released", exc_info=failure)
        self._batches.clear()

    # Tasks that work for many requests get a context of their own: the log must not name the request that began them.

    async def _open_batch(self, beams: int, deadline: Deadline) -> None:
        """Wait for a batch of this number of beams; all callers wait for one opening, each until its own deadline."""
        if self._has_current_batch(beams):
            return
        if self._is_closed:
            raise InferenceError(_STOPPING)
        opening = self._openings.get(beams)
        if opening is None:
            opening = self._openings[beams] = asyncio.create_task(self._new_batch(beams), context=contextvars.Context())
        await asyncio.wait((opening,), timeout=deadline.remaining_seconds())
        if not opening.done():
            raise DeadlineError("the deadline passed before decoding could begin: allow more time")
        if (error := opening.result()) is not None:
            raise error

    async def _new_batch(self, beams: int) -> SearchError | None:
        """Open a batch; the error is returned, since by then nobody may wait for it."""
        try:
            slot_pool = await self._inference.new_slot_pool(self._slots, beams)
        except SearchError as error:
            return error
        finally:
            del self._openings[beams]
        slot_pool.freed = self._admit
        # Captions of a stale batch fail by themselves: their Triton is gone.
        self._batches[beams] = RunningBatch(self._inference, slot_pool, self._calls, self._observer)
        return None

    def _has_current_batch(self, beams: int) -> bool:
        batch = self._batches.get(beams)
        return batch is not None and not batch.slot_pool.is_stale

    async def _pass(self, photo: _Photo) -> None:
        """Take a photo through all stages."""
        if self._is_closed:
            raise InferenceError(_STOPPING)
        if self._queue.is_full(photo.kind, photo.caller):
            await asyncio.sleep(0)  # of those that came at the same time, some leave the queue at once
        self._refuse_if_full(photo.kind)
        photo.num_ahead = self._queue.num_ahead(photo.kind, photo.caller)
        self._queue.add(photo.kind, photo, photo.caller)
        self._photos.add(photo)
        self._concurrency.note(len(self._photos))
        self._has_new.set()
        self._admit()
        try:
            # Applies during a call too: other photos in it may have longer deadlines.
            async with asyncio.timeout(photo.deadline.remaining_seconds()):
                await photo.done
            self._finished.append(time.monotonic())
            self._times[photo.kind].served(photo.seconds_since_queue)
        except TimeoutError as error:
            if not photo.is_taken:
                self._times[photo.kind].waited(photo.num_ahead, photo.seconds["decode"])
            stage = "decoding was done" if photo.is_decoding else "decoding could begin"
            raise DeadlineError(f"the deadline passed before {stage}: allow more time") from error
        finally:
            self._photos.discard(photo)
            photo.is_gone = True
            photo.forget_outcome()
            self._queue.remove(photo.kind, photo, photo.caller)
            photo.spans.end()
            if photo.is_decoding:
                self._release(photo)

    def _refuse_if_full(self, kind: int) -> None:
        if self._queue.is_full(kind, current_caller.get()):
            raise OverloadedError(
                f"{self._queue.num_taken(kind)} photos wait to be captioned, the limit: try again shortly",
                retry_after_seconds=self._retry_seconds(),
                reason="queue",
            )

    def _release(self, photo: _Photo) -> None:
        """Release the photo's reservation and slot, if it has them, and admit the next photo."""
        if photo.batch is not None:
            if photo.slot is not None:
                photo.batch.leave(photo.slot)
            else:
                photo.batch.num_reserved -= 1
                self._admit()
            photo.batch = photo.slot = None

    def _admit(self) -> None:
        """Start a task that takes photos out of the queue, where one is needed."""
        if not self._is_closed and len(self._queue) and len(self._admissions) < self._inference.encoder_calls:
            self._admissions.add(asyncio.create_task(self._admit_until_none_is_left(), context=contextvars.Context()))

    async def _admit_until_none_is_left(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._admit_more()
        except Exception as error:  # a defect; nobody else would tell the photos that wait
            self._fail([photo for photo in self._photos if not photo.is_taken], error)
        finally:
            # Now, not in a later callback: until then a new photo or a released slot would start no task.
            self._admissions.discard(task)

    async def _admit_more(self) -> None:
        await self._gather()
        while photos := self._take():
            for photo in photos:
                photo.end_stage("queue", "encode")
                self._times[photo.kind].waited(photo.num_ahead, photo.seconds["queue"])
            # While others wait, the models have better work than a caption that would come too late.
            late = [photo for photo in photos if len(self._queue) and self._is_late(photo)]
            self._fail(late, DeadlineError(_TOO_LATE))
            try:
                if in_time := [photo for photo in photos if photo not in late]:
                    await self._encode_and_prefill(in_time)
            except Exception as error:
                self._fail(photos, error)
            finally:
                for photo in photos:
                    if not photo.is_decoding:
                        self._release(photo)

    async def _gather(self) -> None:
        """Where only one call can be computed at a time, let photos that come together share it.

        Otherwise the first of several callers would be encoded and decoded alone, and the others after it. As many
        photos are expected as were in progress lately, so a lone caller does not wait.
        """
        if self._inference.encoder_calls > 1:
            return
        with contextlib.suppress(TimeoutError):
            while len(self._photos) < self._concurrency.peak() and len(self._queue) < _ENCODER_BATCH:
                self._has_new.clear()
                async with asyncio.timeout(_GATHERING_SHARE * self._shortest_call):
                    await self._has_new.wait()

    def _take(self) -> list[_Photo]:
        """Take the photos of the next call out of the queue, with reservations."""
        if not self._inference.makes_first_tokens:
            return self._queue.take(_ENCODER_BATCH, self._reserve)
        # They must be of one kind, and the other call takes its share. So neither waits long, and both cores are used.
        kinds: set[int] = set()

        def reserve(photo: _Photo) -> bool:
            if kinds - {photo.kind} or not self._reserve(photo):
                return False
            kinds.add(photo.kind)
            return True

        share = -(-len(self._queue) // self._inference.encoder_calls)
        photos = self._queue.take(min(share, _ENCODER_BATCH), reserve)
        self._admit()
        return photos

    def _is_late(self, photo: _Photo) -> bool:
        return photo.deadline.remaining_seconds() < self._times[photo.kind].service()

    def _reserve(self, photo: _Photo) -> bool:
        """Reserve a slot for a photo; False where all are in use or reserved.

        The slot itself is acquired at prefill. Otherwise photos in the encoder would hold low slots, and a step
        computes all rows up to the highest slot in use.
        """
        if photo.kind == _EMBEDDING_ONLY:
            return True
        batch = self._batches[photo.kind]
        if batch.num_reserved >= batch.slot_pool.num_free:
            return False
        batch.num_reserved += 1
        photo.batch = batch
        return True

    async def _encode_and_prefill(self, photos: list[_Photo]) -> None:
        self._observer.photos_encoded(len(photos))
        captioned = [photo for photo in photos if photo.batch is not None]
        first_inputs = None
        if self._inference.makes_first_tokens and len(captioned) == len(photos):
            first_inputs = _first_inputs(photos)
        clock = asyncio.get_running_loop().time
        begun = clock()
        with shared_call([photo.spans for photo in photos]):
            encoded = await self._inference.encode(
                np.stack([photo.pixels for photo in photos]),
                _latest(photos),
                embeddings_only=not captioned,
                first_inputs=first_inputs,
            )
        seconds = clock() - begun
        self._shortest_call = min(self._shortest_call or seconds, seconds)
        try:
            await self._prefill_all(photos, encoded)
        finally:
            self._inference.release(encoded)

    async def _prefill_all(self, photos: list[_Photo], encoded: EncodedPhotos) -> None:
        batches: defaultdict[RunningBatch, list[int]] = defaultdict(list)
        first, seconds, now = encoded.first_step, encoded.chain_seconds, time.perf_counter()
        if first is not None and photos[0].batch is not None:
            photos[0].batch.count_call(len(photos), round(seconds[-1] * 1e9))
        for number, photo in enumerate(photos):
            if photo.is_gone:
                continue
            photo.embedding = encoded.embeddings[number]
            if photo.kind != _EMBEDDING_ONLY and encoded.query_logprobs is not None:
                photo.query_logprobs = encoded.query_logprobs[number]
            photo.end_stage("encode", "prefill", now - sum(seconds[1:]))
            if first is not None and photo.decoder is not None:
                photo.end_stage("prefill", "decode", now - sum(seconds[2:]))
                decode(
                    photo.decoder,
                    first.candidate_logprobs[number],
                    first.candidate_tokens[number],
                    first.selected[number],
                )
            is_finished = photo.decoder is not None and photo.decoder.finished
            if photo.batch is not None and not is_finished:
                batches[photo.batch].append(number)
            elif not photo.done.done():
                photo.is_decoding = is_finished  # then its caller releases the reservation, too
                photo.done.set_result(None)
        for batch, numbers in batches.items():
            try:
                await self._prefill(batch, encoded, numbers, [photos[number] for number in numbers])
            except SearchError as error:
                self._fail([photos[number] for number in numbers], error)

    async def _prefill(
        self, batch: RunningBatch, encoded: EncodedPhotos, numbers: list[int], photos: list[_Photo]
    ) -> None:
        batch.num_reserved -= len(photos)
        slots = [batch.slot_pool.acquire() for _ in photos]
        for photo, slot in zip(photos, slots, strict=True):
            photo.slot = slot
        with shared_call([photo.spans for photo in photos]):
            await self._inference.prefill(encoded, numbers, batch.slot_pool, slots, _latest(photos))
        if (first := encoded.first_step) is not None:
            positions = np.zeros(len(slots), np.int32)
            batch.slot_pool.append(slots, first.new_kv[numbers], first.selected[numbers], positions)
        for photo, slot in zip(photos, slots, strict=True):
            # The slot of a photo whose caller is gone is released only now, after prefill has written to it.
            if not photo.is_gone and photo.decoder is not None:
                if first is None:
                    photo.end_stage("prefill", "decode")
                photo.is_decoding = True
                batch.join(slot, photo.decoder, photo.deadline, photo.done, photo.spans, is_new=first is None)

    def _fail(self, photos: Sequence[_Photo], error: Exception) -> None:
        if not isinstance(error, SearchError):
            _log.error("captioning failed unexpectedly", exc_info=error)
            error = InferenceError("captioning failed: try again")
        for photo in photos:
            if not photo.is_gone and not photo.done.done():
                photo.done.set_exception(error)

    def _retry_seconds(self) -> float:
        """Expected duration of the queue at the rate of the last captions."""
        if len(self._finished) < 2:
            return spread(_MAX_RETRY_SECONDS / 5)
        rate = (len(self._finished) - 1) / max(time.monotonic() - self._finished[0], 1e-3)
        return min(spread(max(len(self._queue) / rate, _MIN_RETRY_SECONDS)), _MAX_RETRY_SECONDS)


@dataclass(eq=False)
class _Photo:
    """A photo that is queued or in progress."""

    pixels: Pixels
    kind: int
    deadline: Deadline
    decoder: Decoder | None
    caller: str = field(default_factory=current_caller.get)
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    batch: RunningBatch | None = None
    slot: int | None = None
    num_ahead: int = 0  # photos that were to be served before it when it was queued
    embedding: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    query_logprobs: npt.NDArray[np.float32] | None = None
    is_decoding: bool = False
    is_gone: bool = False  # its caller has left
    spans: PhotoSpans = field(default_factory=PhotoSpans)
    _times: list[tuple[str, float]] = field(default_factory=lambda: [("", time.perf_counter())])

    def __post_init__(self) -> None:
        if self.decoder is not None:  # a search embeds many thumbnails; one span covers them all
            self.spans.begin("queue")

    def end_stage(self, name: str, next_name: str, at: float = 0.0) -> None:
        """A stage has ended, now or at a time of `time.perf_counter`, and the next one begins."""
        now = time.perf_counter()
        self._times.append((name, at or now))
        if self.decoder is not None:
            self.spans.begin(next_name, now - at if at else 0.0)

    @property
    def is_taken(self) -> bool:
        """Whether it has left the queue for the encoder."""
        return len(self._times) > 1

    def forget_outcome(self) -> None:
        """Drop the error that it may have ended with: it holds its caller's frames, which hold this photo, a cycle."""
        self.done = asyncio.get_running_loop().create_future()
        self.done.cancel()

    @property
    def seconds_since_queue(self) -> float:
        """Duration of all stages after the queue."""
        return time.perf_counter() - self._times[1][1]

    @property
    def seconds(self) -> dict[str, float]:
        """Duration of each stage; the last one, decode, ends now."""
        times = [*self._times, ("decode", time.perf_counter())]
        return {name: end - start for (_, start), (name, end) in zip(times, times[1:], strict=False)}


def _first_inputs(photos: Sequence[_Photo]) -> dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int32]]:
    """The step's inputs for captions with the same number of beams that have no tokens yet."""
    inputs = [photo.decoder.next_input() for photo in photos if photo.decoder is not None]
    batch = photos[0].batch
    assert batch is not None
    return small_inputs(inputs, range(len(inputs)), len(inputs), batch.slot_pool.tokens_per_call)


def _latest(photos: Sequence[_Photo]) -> Deadline:
    return max((photo.deadline for photo in photos), key=Deadline.remaining_seconds)
