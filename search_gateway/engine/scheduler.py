# SPDX-License-Identifier: Apache-2.0
"""Captions many photos at a time: iteration-level ("in-flight") batching (Yu et al. 2022, "Orca").

    waiting room ─▶ admission: slot, encoder, prefill, a few photos per call ─▶ lane: one call of the step per token
                    (the next photos are encoded while others decode)           for all captions with as many beams

No timer holds anybody up: a lone photo goes through as fast as it would by itself, and what comes while a call is under
way goes together into the next one. Greedy and beam callers, and thumbnails, take turns at the encoder, each kind with
waiting room of its own. Knows nothing about words.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from captioner.decoding import Decoder, DecodingOptions, Hypothesis, decoder_for
from captioner.kv_cache import Floats
from search_gateway.deadline import Deadline
from search_gateway.engine.inference import CaptionInference, Pixels
from search_gateway.engine.request_queue import WaitingRoom
from search_gateway.engine.running_batch import CaptionLane, StepCalls
from search_gateway.errors import DeadlineError, InferenceError, OverloadedError, SearchError

_log = logging.getLogger(__name__)

SLOTS = 32  # captions of one lane at a time, the most Triton takes in one batch
WAITING = 64  # photos of one kind that wait for a slot

# Photos of one call of the encoder. More would hardly be faster per photo, and whoever comes next would wait longer.
_ENCODER_BATCH = 8
# One call computes while the next one's photos are put together.
_ADMISSIONS = 2

_EMBEDDING_ONLY = 0  # the kind of photos that are not captioned; the others' kind is their number of beams

# What a caller who is refused is told to wait: as long as those inside will take, within these bounds.
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.1, 5.0
_RATE_WINDOW = 64  # captions


@dataclass(frozen=True)
class DecodedPhoto:
    embedding: npt.NDArray[np.float32]  # [D], L2-normalised
    hypotheses: list[Hypothesis]  # best first
    seconds: dict[str, float]  # of queue, encode, prefill and decode
    query_logprobs: npt.NDArray[np.float32] | None = None  # [Q]; None where the model has no query head


class CaptionScheduler:
    """Args:
    slots: captions with as many beams that are decoded together.
    waiting: photos of a kind that may wait; who comes when as many do is refused.
    """

    def __init__(
        self,
        inference: CaptionInference,
        *,
        bos_token_id: int,
        eos_token_id: int,
        slots: int = SLOTS,
        waiting: int = WAITING,
    ):
        self._inference = inference
        self._bos = bos_token_id
        self._eos = eos_token_id
        self._slots = slots
        self._lanes: dict[int, CaptionLane] = {}
        self._opening = asyncio.Lock()
        self._room: WaitingRoom[_Photo] = WaitingRoom(waiting, frozenset({_EMBEDDING_ONLY}))
        self._admissions: set[asyncio.Task[None]] = set()
        self._finished: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._calls: defaultdict[int, StepCalls] = defaultdict(StepCalls)
        self._photos: set[_Photo] = set()  # that wait or are worked on

    @property
    def inside(self) -> int:
        """Photos that wait or are worked on."""
        return len(self._photos)

    @property
    def step_calls(self) -> Mapping[int, StepCalls]:
        """Calls of the step model by the number of captions in them."""
        return self._calls

    async def caption(self, pixels: Pixels, options: DecodingOptions, deadline: Deadline) -> DecodedPhoto:
        """A photo's embedding and caption from its pixels, uint8 [height, width, 3].

        Raises:
            OverloadedError: as many of the kind wait as may.
            DeadlineError, InferenceError.
        """
        await self._open_lane(options.num_beams)
        photo = _Photo(pixels, options.num_beams, deadline, decoder_for(options, self._bos, self._eos))
        await self._pass(photo)
        assert photo.decoder is not None
        return DecodedPhoto(photo.embedding, photo.decoder.hypotheses(), photo.seconds, photo.query_logprobs)

    def check_room(self, options: DecodingOptions) -> None:
        """To be asked before a photo is decoded: under a flood that alone would take as long as the captions.

        Raises:
            OverloadedError: as `caption` would.
        """
        self._refuse_if_full(options.num_beams)

    async def embed(self, pixels: Pixels, deadline: Deadline) -> npt.NDArray[np.float32]:
        """Its embedding [D] alone. Never refused: whoever asks bounds how many there are.

        Raises:
            DeadlineError, InferenceError, OverloadedError.
        """
        photo = _Photo(pixels, _EMBEDDING_ONLY, deadline, None)
        await self._pass(photo)
        return photo.embedding

    def fail_all(self, error: InferenceError) -> None:
        """Whoever waits or is worked on gets this error now."""
        self._fail(list(self._photos), error)

    async def close(self) -> None:
        """End what is under way and give all memory back."""
        admissions = list(self._admissions)
        for task in admissions:
            task.cancel()
        await asyncio.gather(*admissions, return_exceptions=True)
        self.fail_all(InferenceError("the server is stopping: try another one"))
        for lane in self._lanes.values():
            await lane.close()
            await self._inference.free_arena(lane.arena)
        self._lanes.clear()

    async def _open_lane(self, beams: int) -> None:
        if self._is_open(beams):
            return
        async with self._opening:
            if not self._is_open(beams):
                # Captions of a stale lane end by themselves: whom they ask is gone.
                arena = await self._inference.new_arena(self._slots, beams)
                self._lanes[beams] = CaptionLane(self._inference, arena, self._calls)

    def _is_open(self, beams: int) -> bool:
        lane = self._lanes.get(beams)
        return lane is not None and not lane.arena.is_stale

    async def _pass(self, photo: _Photo) -> None:
        """From the waiting room to the end."""
        self._refuse_if_full(photo.kind)
        self._room.enter(photo.kind, photo)
        self._photos.add(photo)
        self._admit()
        try:
            # Also while a call hangs: the others' deadlines may be longer.
            async with asyncio.timeout(photo.deadline.remaining_seconds()):
                await photo.done
            self._finished.append(time.monotonic())
        except TimeoutError as error:
            stage = "decoding was done" if photo.is_decoding else "decoding could begin"
            raise DeadlineError(f"the deadline passed before {stage}: allow more time") from error
        finally:
            self._photos.discard(photo)
            photo.is_gone = True
            self._room.leave(photo.kind, photo)
            if photo.is_decoding:
                self._release(photo)

    def _refuse_if_full(self, kind: int) -> None:
        if self._room.is_full(kind):
            raise OverloadedError(
                f"{self._room.waiting(kind)} photos wait to be captioned, the limit: try again shortly",
                retry_after_seconds=self._retry_seconds(),
            )

    def _release(self, photo: _Photo) -> None:
        """Give its place and its slot back, if it has them, and let the next one in."""
        if photo.lane is not None:
            if photo.slot is not None:
                photo.lane.leave(photo.slot)
            photo.lane.places += 1
            photo.lane = photo.slot = None
            self._admit()

    def _admit(self) -> None:
        """See to it that somebody takes photos out of the waiting room."""
        if len(self._room) and len(self._admissions) < _ADMISSIONS:
            self._admissions.add(asyncio.create_task(self._admit_until_none_is_left()))

    async def _admit_until_none_is_left(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._admit_more()
        finally:
            # Now, not in a callback a turn later: who came or gave a place back meanwhile would wake nobody.
            self._admissions.discard(task)

    async def _admit_more(self) -> None:
        while photos := self._room.take(_ENCODER_BATCH, self._claim):
            try:
                await self._encode_and_prefill(photos)
            except Exception as error:
                self._fail(photos, error)
            finally:
                for photo in photos:
                    if not photo.is_decoding:
                        self._release(photo)

    def _claim(self, photo: _Photo) -> bool:
        """Whether there will be a slot for it, to be taken when it is needed.

        Not now: what is still with the encoder would spread those that decode over all slots, and a step computes all
        rows up to the highest.
        """
        if photo.kind == _EMBEDDING_ONLY:
            return True
        lane = self._lanes[photo.kind]
        if lane.places == 0:
            return False
        lane.places -= 1
        photo.lane = lane
        return True

    async def _encode_and_prefill(self, photos: list[_Photo]) -> None:
        for photo in photos:
            photo.end_stage("queue")
        captioned = [photo for photo in photos if photo.lane is not None]
        encoded = await self._inference.encode(
            np.stack([photo.pixels for photo in photos]), _latest(photos), embeddings_only=not captioned
        )
        lanes: defaultdict[CaptionLane, list[int]] = defaultdict(list)
        for number, photo in enumerate(photos):
            photo.embedding = encoded.embeddings[number]
            if photo.kind != _EMBEDDING_ONLY and encoded.query_logprobs is not None:
                photo.query_logprobs = encoded.query_logprobs[number]
            photo.end_stage("encode")
            if photo.lane is not None and not photo.is_gone:
                lanes[photo.lane].append(number)
            elif not photo.done.done():
                photo.done.set_result(None)
        for lane, numbers in lanes.items():
            assert encoded.hidden_states is not None
            try:
                await self._prefill(lane, encoded.hidden_states[numbers], [photos[number] for number in numbers])
            except SearchError as error:
                self._fail([photos[number] for number in numbers], error)

    async def _prefill(self, lane: CaptionLane, hidden_states: Floats, photos: list[_Photo]) -> None:
        slots = [lane.arena.acquire() for _ in photos]
        for photo, slot in zip(photos, slots, strict=True):
            photo.slot = slot
        await self._inference.prefill(hidden_states, lane.arena, slots, _latest(photos))
        for photo, slot in zip(photos, slots, strict=True):
            # Who is gone has left the slot to us: what was written into it must not be another one's.
            if not photo.is_gone and photo.decoder is not None:
                photo.end_stage("prefill")
                photo.is_decoding = True
                lane.join(slot, photo.decoder, photo.deadline, photo.done)

    def _fail(self, photos: Sequence[_Photo], error: Exception) -> None:
        if not isinstance(error, SearchError):
            _log.error("captioning failed in a way nobody foresaw", exc_info=error)
            error = InferenceError("captioning failed: try again")
        for photo in photos:
            if not photo.is_gone and not photo.done.done():
                photo.done.set_exception(error)

    def _retry_seconds(self) -> float:
        """How long those who wait will take, at the rate of the last captions."""
        if len(self._finished) < 2:
            return _MAX_RETRY_SECONDS / 5
        rate = (len(self._finished) - 1) / max(time.monotonic() - self._finished[0], 1e-3)
        return min(max(len(self._room) / rate, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)


@dataclass(eq=False)
class _Photo:
    """On its way through."""

    pixels: Pixels
    kind: int
    deadline: Deadline
    decoder: Decoder | None
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    lane: CaptionLane | None = None
    slot: int | None = None
    embedding: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    query_logprobs: npt.NDArray[np.float32] | None = None
    is_decoding: bool = False
    is_gone: bool = False  # nobody waits for it any more
    _times: list[tuple[str, float]] = field(default_factory=lambda: [("", time.perf_counter())])

    def end_stage(self, name: str) -> None:
        self._times.append((name, time.perf_counter()))

    @property
    def seconds(self) -> dict[str, float]:
        """Of each stage; the last one, decoding, ends now."""
        times = [*self._times, ("decode", time.perf_counter())]
        return {name: end - start for (_, start), (name, end) in zip(times, times[1:], strict=False)}


def _latest(photos: Sequence[_Photo]) -> Deadline:
    return max((photo.deadline for photo in photos), key=Deadline.remaining_seconds)
