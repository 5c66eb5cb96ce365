# SPDX-License-Identifier: Apache-2.0
"""Decodes photos and thumbnails in worker processes.

A picture that exceeds its time or memory, or that crashes its process, fails alone: the process is replaced in the
background while the others serve the waiting callers. Slow pictures (many bytes or pixels) never occupy the last free
process, so that a stream of them does not delay the rest. Callers take turns.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import itertools
import logging
import math
import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from captioner.image_error import ImageError, ImageReason
from captioner.model_contract import ModelContract
from captioner.preprocessing import ImageLimits, Region, check_number_of_bytes
from captioner.small_copy import SmallCopy
from search_gateway.deadline import Deadline
from search_gateway.errors import DeadlineError, InferenceError
from search_gateway.fair_share import FairTurns, current_caller
from search_gateway.imaging.worker_main import CPU_SECONDS, QUICK_CPU_SECONDS, SIZE, Kind
from search_gateway.imaging.worker_process import WORKER_COMMAND, Answer, WorkerProcess, WorkerStartError, described
from search_gateway.observability.observer import WorkerState
from search_gateway.tasks import all_of

_log = logging.getLogger(__name__)

QUICK_BYTES = 2**20  # larger files count as slow, whatever they contain
_WORK_SECONDS = 10  # wall-clock limit of one picture, for a process that hangs instead of computing
# How long a picture may continue after its caller has left; a new process takes as long to start.
_GRACE_SECONDS = 0.25
_START_SECONDS = 30
_FAILED_STARTS_UNTIL_TOLD = 2  # callers fail only after the second: the first may be an accident
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0  # between failed attempts to start a process


@dataclass(eq=False)
class _Picture:
    data: bytes
    order: tuple[int, int]  # of service: the caller's turn, and the number of its arrival
    may_take_long: bool
    region: Region | None
    pixels: asyncio.Future[bytearray]  # or the error
    timer: asyncio.TimerHandle | None = None
    was_killed: bool = False  # its process was killed from outside before
    context: contextvars.Context = field(default_factory=contextvars.copy_context)  # of the request, for the log


class DecoderPool:
    """Decodes pictures. Create and use it on the event loop; it starts its processes immediately.

    Args:
        contract: gives the encoder's height, width and fit.
        limits: of the image files.
        num_workers: number of processes, each of which decodes one picture at a time.
        is_for_catalogue: whether `decode_for_catalogue` is called instead of `decode`.
        command: the program of a process, see `WorkerProcess`.

    Attributes:
        num_replaced: processes that ended and were replaced, since the start.
    """

    def __init__(
        self,
        contract: ModelContract,
        limits: ImageLimits,
        *,
        num_workers: int = 2,
        is_for_catalogue: bool = False,
        command: Sequence[str] = WORKER_COMMAND,
    ):
        self._shape = (contract.image_height, contract.image_width, 3)
        self._limits = limits
        self._command = command
        self._is_for_catalogue = is_for_catalogue
        shape = (contract.image_height, contract.image_width, contract.fit, int(is_for_catalogue))
        self._arguments = [str(value) for value in (*shape, limits.max_bytes, limits.max_pixels, limits.max_side)]
        self._loop = asyncio.get_running_loop()
        self._num_workers = num_workers
        self._idle: list[WorkerProcess] = []
        self._at_work: dict[WorkerProcess, _Picture] = {}
        self._proven: set[WorkerProcess] = set()  # those that have answered at least once
        self._quick: deque[_Picture] = deque()
        self._long: deque[_Picture] = deque()
        self._numbers = itertools.count()
        self._turns = FairTurns()
        self._processes: set[WorkerProcess] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._one_start_at_a_time = asyncio.Lock()
        self._failed_starts = 0  # in a row
        self._is_closed = False
        self.num_replaced = 0
        for _ in range(num_workers):
            self._start_one()

    @property
    def pids(self) -> list[int]:
        """Process ids of the current workers."""
        return [process.pid for process in self._processes]

    @property
    def state(self) -> WorkerState:
        """How many workers there are, how many are busy, and how many ended since the start."""
        return WorkerState(workers=len(self._processes), busy=len(self._at_work), killed=self.num_replaced)

    async def decode(self, data: bytes, deadline: Deadline, region: Region | None = None) -> npt.NDArray[np.uint8]:
        """Decode an image file.

        Args:
            data: the file.
            deadline: of this call, including the time in the queue.
            region: the part of the upright picture that is used; None: all of it.

        Returns:
            uint8 [height, width, 3], RGB, as the encoder needs it.

        Raises:
            ImageError: the file cannot be used.
            DeadlineError: the deadline passed first.
            InferenceError: no process can be started, or the pool is closed.
        """
        pixels = await self._decoded(data, deadline, region)
        return np.frombuffer(pixels, np.uint8).reshape(self._shape)

    async def decode_for_catalogue(self, data: bytes, deadline: Deadline) -> tuple[npt.NDArray[np.uint8], SmallCopy]:
        """Decode an image file as `decode` does, and also make its small copy."""
        body = await self._decoded(data, deadline, None)
        num_bytes = math.prod(self._shape)
        width, height = SIZE.unpack_from(body, num_bytes)
        small = SmallCopy(width, height, bytes(body[num_bytes + SIZE.size :]))
        return np.frombuffer(body, np.uint8, num_bytes).reshape(self._shape), small

    async def _decoded(self, data: bytes, deadline: Deadline, region: Region | None) -> bytearray:
        check_number_of_bytes(data, self._limits)
        if self._is_closed or self._is_broken():
            raise _unavailable()
        order = (self._turns.next(current_caller.get()), next(self._numbers))
        # A region may need more pixels of a JPEG, so that a first try with low limits would be of no use.
        may_take_long = len(data) > QUICK_BYTES or region is not None
        picture = _Picture(data, order, may_take_long, region, self._loop.create_future())
        self._put(picture)
        self._serve()
        try:
            async with asyncio.timeout(deadline.remaining_seconds()):
                return await picture.pixels
        except TimeoutError as error:
            raise DeadlineError("the deadline passed before the photo was decoded: allow more time") from error
        finally:
            if picture.pixels.cancelled():
                self._leave(picture)
            elif picture.pixels.done():
                picture.pixels.exception()  # retrieved, or asyncio would log it where the caller is cancelled now
            del picture  # it holds the error, which holds this frame: a cycle

    async def close(self) -> None:
        """End all processes and wait for their end. Calls in progress fail with InferenceError."""
        self._is_closed = True
        for task in self._starting:
            task.cancel()
        processes = list(self._processes)
        for process in processes:
            process.abandon()  # all of them, before waiting for each
        for picture in [*self._at_work.values(), *self._quick, *self._long]:
            self._fail(picture, InferenceError("the server is stopping: try another one"))
        self._processes.clear()
        self._idle.clear()
        self._at_work.clear()
        self._quick.clear()
        self._long.clear()
        await all_of(process.close() for process in processes)

    # Which picture is decoded next

    def _queue_of(self, picture: _Picture) -> deque[_Picture]:
        return self._long if picture.may_take_long else self._quick

    def _serve(self) -> None:
        while self._idle and (queue := self._next_queue()):
            picture, process = queue.popleft(), self._idle.pop()
            self._at_work[process] = picture
            self._turns.served(picture.order[0])
            picture.timer = self._loop.call_later(_WORK_SECONDS, self._end_if_at, process, picture)
            process.ask(picture.data, may_take_long=picture.may_take_long, region=picture.region)

    def _next_queue(self) -> deque[_Picture] | None:
        """Return the queue whose first picture is to be served first, of those that may be served now."""
        if not self._long or not self._has_room_for_a_long_one():
            return self._quick or None
        return self._long if not self._quick or self._long[0].order < self._quick[0].order else self._quick

    def _has_room_for_a_long_one(self) -> bool:
        long_ones = sum(picture.may_take_long for picture in self._at_work.values())
        # One live process must be left for the others. Processes being replaced do not count, unless that fails.
        return self._num_workers == 1 or self._failed_starts > 0 or long_ones + 1 < len(self._at_work) + len(self._idle)

    def _leave(self, picture: _Picture) -> None:
        """Drop a picture whose caller has left: remove it from the queue, or end its process soon."""
        if picture in self._queue_of(picture):
            self._queue_of(picture).remove(picture)
        for process, current in self._at_work.items():
            if current is picture:
                self._loop.call_later(_GRACE_SECONDS, self._end_if_at, process, picture)

    def _end_if_at(self, process: WorkerProcess, picture: _Picture) -> None:
        if self._at_work.get(process) is picture:
            self._fail(picture, _takes_too_long(f"{_WORK_SECONDS} s"))
            process.kill()

    # What processes say

    def _answered(self, process: WorkerProcess, answer: Answer) -> None:
        error = None
        try:
            if answer.kind is Kind.ERROR:
                error = ImageError.from_json(answer.body)
            elif answer.kind is Kind.PIXELS and not self._has_size_of_pixels(answer.body):
                raise ValueError("pixels of another shape")
        except ValueError:
            self._fail(self._at_work[process], _cannot_be_decoded(self._at_work[process]))
            process.kill()  # a hostile file controls it
            return
        picture = self._finished(process)
        self._proven.add(process)
        self._idle.append(process)
        if answer.kind is Kind.TAKES_LONG:
            if not picture.pixels.done():
                picture.may_take_long = True
                self._put(picture)
        elif error is not None:
            self._fail(picture, error)
        elif not picture.pixels.done():
            picture.pixels.set_result(answer.body)
        self._serve()

    def _has_size_of_pixels(self, body: bytearray) -> bool:
        num_more = len(body) - math.prod(self._shape)
        return num_more > SIZE.size if self._is_for_catalogue else num_more == 0

    def _lost(self, process: WorkerProcess) -> None:
        """Give no picture to a process that is about to end."""
        if process in self._idle:
            self._idle.remove(process)

    def _ended(self, process: WorkerProcess, exit_code: int) -> None:
        """Replace an ended process. Its picture fails, unless someone killed the process and this is the first time."""
        self._processes.discard(process)
        is_proven = process in self._proven
        self._proven.discard(process)
        if process in self._at_work:
            picture = self._finished(process)
            self._log_end(process, exit_code, picture)
            if picture.pixels.done():
                pass  # we ended it, or its caller has left
            elif exit_code == -signal.SIGPROF:
                seconds = CPU_SECONDS if picture.may_take_long else QUICK_CPU_SECONDS
                self._fail(picture, _takes_too_long(f"{seconds} s of processor time"))
            elif exit_code == -signal.SIGKILL and not picture.was_killed:
                picture.was_killed = True
                self._put(picture)
            else:
                self._fail(picture, _cannot_be_decoded(picture))
        else:
            self._log_end(process, exit_code, None)
            if not is_proven:
                self._failed_starts += 1
        self.num_replaced += 1
        self._start_one()

    def _finished(self, process: WorkerProcess) -> _Picture:
        picture = self._at_work.pop(process)
        if picture.timer is not None:
            picture.timer.cancel()
        self._failed_starts = 0
        return picture

    def _put(self, picture: _Picture) -> None:
        """Queue a picture, or queue it again, at its place in the order of service."""
        queue = self._queue_of(picture)
        if not queue or queue[-1].order < picture.order:
            queue.append(picture)
        else:
            queue.insert(sum(other.order < picture.order for other in queue), picture)

    def _fail(self, picture: _Picture, error: ImageError | InferenceError) -> None:
        if not picture.pixels.done():
            picture.pixels.set_exception(error)

    def _log_end(self, process: WorkerProcess, exit_code: int, picture: _Picture | None) -> None:
        # The hash helps to identify the picture among those that a caller has sent; the picture is not stored.
        work = "idle" if picture is None else (
            f"decoding a picture of {len(picture.data):,} bytes, sha256 {hashlib.sha256(picture.data).hexdigest()}"
        )  # fmt: skip
        context = contextvars.Context() if picture is None else picture.context
        context.run(_log.warning, "photo worker %d ended %s: %s", process.pid, work, described(exit_code))

    # Starting and replacing

    def _start_one(self) -> None:
        if not self._is_closed:
            task = self._loop.create_task(self._keep_starting())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _keep_starting(self) -> None:
        """Try until a process is ready. Only one starts at a time, to limit the load to one processor."""
        async with self._one_start_at_a_time:
            while True:
                if self._failed_starts:
                    pause = _FIRST_PAUSE_SECONDS * 2 ** min(self._failed_starts - 1, 10)
                    await asyncio.sleep(min(pause, _LONGEST_PAUSE_SECONDS))
                try:
                    process = await self._start()
                except Exception as error:  # also a defect must not cost the worker for good
                    self._failed_starts += 1
                    cause = None if isinstance(error, WorkerStartError) else error
                    number = self._failed_starts
                    _log.error("a photo worker cannot be started (attempt %d): %s", number, error, exc_info=cause)
                    if self._is_broken():
                        self._fail_all_waiting()
                else:
                    self._idle.append(process)
                    self._serve()
                    return

    async def _start(self) -> WorkerProcess:
        """Start one process.

        Raises:
            WorkerStartError: it did not become ready.
        """
        process = WorkerProcess(self._command, self._arguments, self._answered, self._lost, self._ended)
        self._processes.add(process)
        try:
            await process.connect(_START_SECONDS)
        except Exception:
            await process.close()
            self._processes.discard(process)
            raise
        return process

    def _is_broken(self) -> bool:
        return self._failed_starts >= _FAILED_STARTS_UNTIL_TOLD and not self._idle and not self._at_work

    def _fail_all_waiting(self) -> None:
        for picture in (*self._quick, *self._long):
            self._fail(picture, _unavailable())
        self._quick.clear()
        self._long.clear()


def _unavailable() -> InferenceError:
    return InferenceError("photos cannot be decoded at the moment: try again shortly")


def _takes_too_long(limit: str) -> ImageError:
    remedy = "save it again or send a smaller one"
    return ImageError(ImageReason.TOO_SLOW, "takes too long to decode", "", limit, remedy)


def _cannot_be_decoded(picture: _Picture) -> ImageError:
    what = "({} bytes) ended the process that decoded it, most likely because of too little memory"
    return ImageError(ImageReason.CRASHED, what, len(picture.data), None, "save it again or send a smaller one")
