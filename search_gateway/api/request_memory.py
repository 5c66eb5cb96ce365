# SPDX-License-Identifier: Apache-2.0
"""Bounds the memory of requests: of messages that are being received, and of those that are not answered yet.

gRPC tells the size of a message only when it has all of it, so room for the largest message is reserved before a
message is read. Until then gRPC keeps no more of it than its flow-control window. No caller can keep the others out:
one that has more than an equal share leaves some room to them, and callers who wait take turns.
"""

from __future__ import annotations

import asyncio
import bisect
import ctypes
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from search_gateway.config import GatewayConfig
from search_gateway.errors import BadRequestError, DeadlineError, OverloadedError
from search_gateway.fair_share import FairTurns, is_refused, spread

_RETRY_SECONDS = 1.0
_MAX_WAITING = 256  # calls that wait for room; further ones are refused, but for those of callers with few
_SPARE_SHARE = 8  # a caller with more than an equal share leaves one of so many parts free
_FAIR_SECONDS = 1.0  # how long a message may keep its room while others wait for it
_TRIM_BYTES, _TRIM_SECONDS = 8 * 2**20, (0.5, 3.0)  # the second time for what gRPC freed later

_M_ARENA_MAX = -8  # of glibc's malloc.h

_PHOTO_METHODS = (
    "/captrieve.v1.SearchService/",
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
)
_MAX_SMALL_MESSAGES, _SMALL_MESSAGE_SECONDS = 8, 2.0  # of the other methods


@dataclass(frozen=True)
class Message:
    """A message of a caller and its size on the wire."""

    value: Any
    num_bytes: int


class Share:
    """Bytes of a budget that belong to one message of a caller, until `release`."""

    def __init__(self, budget: MemoryBudget, caller: str, num_bytes: int):
        self._budget = budget
        self._caller = caller
        self.num_bytes = num_bytes

    def shrink(self, num_bytes: int) -> None:
        """Keep so many bytes; the others were not used."""
        self._budget.give_back(self._caller, self.num_bytes - num_bytes, were_used=False)
        self.num_bytes = num_bytes

    def release(self) -> None:
        """Give back all bytes; a second call does nothing."""
        self._budget.give_back(self._caller, self.num_bytes, were_used=True)
        self.num_bytes = 0


@dataclass(eq=False)
class _Reading:
    """A message that is being received; it may be ended for the sake of others."""

    caller: str
    limit: asyncio.Timeout
    since: float
    end: float | None  # of its own time limit
    is_ended: bool = False


@dataclass(order=True)
class _Waiting:
    """A call that waits for the room of the largest message; sorted by its turn."""

    turn: int
    number: int
    caller: str = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


class MemoryBudget:
    """A number of bytes that messages share.

    Args:
        max_bytes: of all messages; at least one of the largest size fits.
        max_message_bytes: the largest message that gRPC accepts.
        receive_seconds: time limit for the arrival of a call's message, and for the wait for its room.
    """

    def __init__(self, max_bytes: int, max_message_bytes: int, receive_seconds: float):
        self._max_bytes = max(max_bytes, max_message_bytes)
        self._max_message_bytes = max_message_bytes
        self._receive_seconds = receive_seconds
        self._spare_bytes = min(
            max(max_message_bytes, self._max_bytes // _SPARE_SHARE), self._max_bytes - max_message_bytes
        )
        self._of_caller: Counter[str] = Counter()  # bytes
        self._waiting: list[_Waiting] = []
        self._turns = FairTurns()
        self._numbers = itertools.count()
        self._readings: dict[_Reading, None] = {}  # the earliest first
        self._heap = _Heap()
        self.num_bytes = 0

    async def receive(self, messages: AsyncIterator[Message], caller: str = "") -> tuple[Any, Share]:
        """Read the one message of a call.

        Args:
            messages: the call's.
            caller: whose share of the budget it takes.

        Returns:
            The message, and its share, which the caller releases.

        Raises:
            OverloadedError: there was no room, or others waited for the room of a message that came slowly.
            DeadlineError: it did not arrive in time.
            BadRequestError: there is none.
        """
        share = await self._reserve(caller, self._receive_seconds)
        try:
            message = await self._read(messages, caller, self._receive_seconds)
        except BaseException:
            share.release()
            raise
        if message is None:
            share.shrink(0)
            raise BadRequestError("the request has no message: send one")
        share.shrink(min(message.num_bytes, share.num_bytes))
        return message.value, share

    async def receive_next(
        self, messages: AsyncIterator[Message], counted_in: MemoryBudget, caller: str = ""
    ) -> tuple[Any, Share]:
        """Read the next message of a stream, however long it takes to come.

        Room for it is taken from this budget while it comes; afterwards it counts in `counted_in`.

        Raises:
            StopAsyncIteration: there is none.
            DeadlineError: others waited to be read, so that the stream must end.
            OverloadedError: too many calls wait for room.
        """
        (await counted_in._reserve(caller, None)).shrink(0)  # no message is read before one could be kept
        share = await self._reserve(caller, None)
        try:
            message = await self._read(messages, caller, None)
        except OverloadedError as error:
            raise DeadlineError(
                "the stream sent nothing for a while and others wait: open it again to go on"
            ) from error
        finally:
            share.shrink(0)
        if message is None:
            raise StopAsyncIteration
        return message.value, counted_in.count(message.num_bytes, caller)

    def count(self, num_bytes: int, caller: str = "") -> Share:
        """Count bytes that are there already, even beyond the limit: nothing more is read until there is room again."""
        self.num_bytes += num_bytes
        self._of_caller[caller] += num_bytes
        return Share(self, caller, num_bytes)

    def give_back(self, caller: str, num_bytes: int, *, were_used: bool) -> None:
        """Make room for those who wait. Used by `Share`."""
        self.num_bytes -= num_bytes
        self._of_caller[caller] -= num_bytes
        if not self._of_caller[caller]:
            del self._of_caller[caller]
        if were_used:
            self._heap.freed(num_bytes)
        self._admit()

    async def _reserve(self, caller: str, seconds: float | None) -> Share:
        """Wait for the room of the largest message.

        Raises:
            OverloadedError: there is none after so many seconds, or too many wait already.
        """
        if self._has_room(caller):
            return self.count(self._max_message_bytes, caller)
        waits = Counter(one.caller for one in self._waiting)
        is_over = is_refused(waits[caller], len(self._waiting), len(waits.keys() | {caller}), _MAX_WAITING)
        if is_over or len(self._waiting) >= 2 * _MAX_WAITING:
            raise self._overloaded()
        self._end_earliest(caller)
        turn = self._turns.next(caller)
        waiting = _Waiting(turn, next(self._numbers), caller, asyncio.get_running_loop().create_future())
        bisect.insort(self._waiting, waiting)
        try:
            async with asyncio.timeout(seconds):
                await waiting.admitted
        except BaseException as error:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._spare()
            else:
                Share(self, caller, self._max_message_bytes).shrink(0)
            if isinstance(error, TimeoutError):
                raise self._overloaded() from None
            raise
        return Share(self, caller, self._max_message_bytes)

    def _has_room(self, caller: str) -> bool:
        """Whether a caller may take the room of the largest message now."""
        if self.num_bytes + self._max_message_bytes + self._spare_bytes <= self._max_bytes:
            return True
        # Answers that a caller does not read may exceed its limit; they take nothing from what is left to others.
        most = self._max_bytes - self._spare_bytes
        others = sum(min(num_bytes, most) for one, num_bytes in self._of_caller.items() if one != caller)
        own = self._of_caller[caller]
        left = self._max_bytes - others - own - self._max_message_bytes
        num_callers = max(2 if caller else 1, len(self._of_caller.keys() | {caller}))  # another one may come
        is_large = own > 0 and own + self._max_message_bytes > self._max_bytes // num_callers
        return left >= (self._spare_bytes if is_large else 0)

    def _admit(self) -> None:
        without_room: set[str] = set()
        for waiting in tuple(self._waiting):
            if waiting.caller in without_room or waiting.admitted.done():  # it was cancelled just now
                continue
            if self._has_room(waiting.caller):
                self._waiting.remove(waiting)
                self._turns.served(waiting.turn)
                self.count(self._max_message_bytes, waiting.caller)
                waiting.admitted.set_result(None)
            else:
                without_room.add(waiting.caller)
        self._spare()

    def _end_earliest(self, caller: str) -> None:
        """End the reading that has lasted longest, as soon as it has had a fair time.

        It is one of the caller that has most, of the one who waits among equals, and of none that has less.
        """
        readings = [one for one in self._readings if not one.is_ended]
        reading = max(  # the earliest of equals
            readings, key=lambda one: (self._of_caller[one.caller], one.caller == caller), default=None
        )
        if reading is not None and self._of_caller[reading.caller] >= self._of_caller[caller]:
            reading.is_ended = True
            reading.limit.reschedule(max(asyncio.get_running_loop().time(), reading.since + _FAIR_SECONDS))

    def _spare(self) -> None:
        """Let readings go on that were to be ended for calls which no longer wait, the latest ones."""
        ended = [one for one in self._readings if one.is_ended and not one.limit.expired()]
        for reading in ended[len(self._waiting) :]:
            reading.is_ended = False
            reading.limit.reschedule(reading.end)

    async def _read(self, messages: AsyncIterator[Message], caller: str, seconds: float | None) -> Message | None:
        """Return the next message; None where there is none.

        Raises:
            OverloadedError: it was ended for the sake of others.
            DeadlineError: it took too long.
        """
        try:
            async with asyncio.timeout(seconds) as limit:
                reading = _Reading(caller, limit, asyncio.get_running_loop().time(), limit.when())
                self._readings[reading] = None
                try:
                    return await anext(messages, None)
                finally:
                    del self._readings[reading]
        except TimeoutError:
            if reading.is_ended:
                raise self._overloaded() from None
            raise DeadlineError(
                f"the request did not arrive within {seconds:g} s: send it faster, or a smaller photo"
            ) from None

    def _overloaded(self) -> OverloadedError:
        return OverloadedError(
            f"the requests of all callers have {self._max_bytes:,} bytes, the limit: try again shortly",
            retry_after_seconds=spread(_RETRY_SECONDS),
        )


def limit_arenas() -> None:
    """Let all threads share two heaps of the C library. Call this before there are threads.

    gRPC frees on one thread what it allocated on another, and of many heaps each keeps a rest.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in every C library
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


class _Heap:
    """Returns freed memory to the system; the C library would keep it for later."""

    def __init__(self) -> None:
        self._trim: Callable[[int], object] | None = getattr(
            ctypes.CDLL(None), "malloc_trim", None
        )  # not in every C library
        self._freed = 0
        self._is_planned = False

    def freed(self, num_bytes: int) -> None:
        """Count free bytes; when they are many, memory is returned soon."""
        self._freed += num_bytes
        if self._freed >= _TRIM_BYTES and not self._is_planned:
            self._is_planned = True
            self._freed = 0
            loop = asyncio.get_running_loop()
            for seconds in _TRIM_SECONDS:
                loop.call_later(seconds, self._return, seconds == _TRIM_SECONDS[-1])

    def _return(self, is_last: bool) -> None:
        if self._trim is not None:
            asyncio.get_running_loop().run_in_executor(None, self._trim, 0)
        if is_last:
            self._is_planned = False
            self.freed(0)


class RequestMemory:
    """The budgets of a gateway, by what a method receives."""

    def __init__(self, config: GatewayConfig):
        largest = max_message_bytes(config)
        self.photos = MemoryBudget(config.max_bytes_in_flight, largest, config.receive_timeout_seconds)
        # Health checks and the like: a few bytes, which photos must not delay.
        self._others = MemoryBudget(_MAX_SMALL_MESSAGES * largest, largest, _SMALL_MESSAGE_SECONDS)
        self.streams = MemoryBudget(config.max_bytes_in_flight, largest, config.receive_timeout_seconds)

    def budget_of(self, method: str) -> MemoryBudget:
        """Return the budget for the messages of a method, given by its path."""
        return self.photos if method.startswith(_PHOTO_METHODS) else self._others


def max_message_bytes(config: GatewayConfig) -> int:
    """Return the size of the largest message that gRPC shall accept.

    It is more than a photo's limit, so that a photo slightly over that gets our own message with both numbers.
    """
    return 4 * config.max_photo_bytes + 2**20
