# SPDX-License-Identifier: Apache-2.0
"""All Tritons of a gateway as one: each photo goes to the one with the least to do, and to another where that fails.

A photo stays with one Triton from the encoder to the last word, since its caches lie there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from captioner.decoding import DecodingOptions
from search_gateway.deadline import Deadline
from search_gateway.engine.inference import Pixels
from search_gateway.engine.scheduler import CaptionScheduler, DecodedPhoto
from search_gateway.errors import InferenceError, OverloadedError

_log = logging.getLogger(__name__)

# A replica that has just failed is chosen last, until its next health check.
_SUSPECT_SECONDS = 1.0

Answer = TypeVar("Answer")


class Replica(Protocol):
    """What the pool needs of a Triton."""

    @property
    def name(self) -> str: ...

    @property
    def captions(self) -> CaptionScheduler: ...

    @property
    def is_serving(self) -> bool: ...

    async def watch(self, changed: Callable[[], object]) -> None: ...

    async def close(self) -> None: ...


class TritonPool:
    """Args:
    replicas: at least one, started.
    """

    def __init__(self, replicas: Sequence[Replica]):
        self._replicas = replicas
        self._failures: dict[Replica, float] = {}  # time.monotonic()
        self._watching: list[asyncio.Task[None]] = []

    @property
    def is_serving(self) -> bool:
        return any(replica.is_serving for replica in self._replicas)

    @property
    def step_calls(self) -> dict[int, tuple[int, int]]:
        """Captions in a call of the step model -> number of calls, nanoseconds; of all Tritons together."""
        total: dict[int, tuple[int, int]] = {}
        for replica in self._replicas:
            for size, calls in replica.captions.step_calls.items():
                count, nanoseconds = total.get(size, (0, 0))
                total[size] = (count + calls.count, nanoseconds + calls.nanoseconds)
        return total

    def watch(self, changed: Callable[[], object]) -> None:
        """Start watching the replicas; `changed` is called after each health check."""

        def look(replica: Replica) -> None:
            self._failures.pop(replica, None)
            if not replica.is_serving and self.is_serving:
                # It may be silent rather than dead: another one can still answer in time.
                replica.captions.fail_all(InferenceError("the inference server does not answer: try again shortly"))
            changed()

        self._watching = [
            asyncio.create_task(replica.watch(functools.partial(look, replica))) for replica in self._replicas
        ]

    async def close(self) -> None:
        """Stop watching; the replicas are their maker's."""
        for task in self._watching:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def check_capacity(self, options: DecodingOptions) -> None:
        """As `CaptionScheduler.check_capacity`, of the Triton with the most room.

        Raises:
            OverloadedError: not one has room.
        """
        replicas = sorted(self._replicas, key=self._rank)
        serving = [replica for replica in replicas if replica.is_serving] or replicas
        refusals = []
        for replica in serving:
            try:
                replica.captions.check_capacity(options)
                return
            except OverloadedError as error:
                refusals.append(error)
        raise refusals[0]

    async def caption(self, pixels: Pixels, options: DecodingOptions, deadline: Deadline) -> DecodedPhoto:
        """As `CaptionScheduler.caption`; an InferenceError only where every Triton failed."""
        return await self._ask(lambda captions: captions.caption(pixels, options, deadline), deadline)

    async def embed(self, pixels: Pixels, deadline: Deadline) -> npt.NDArray[np.float32]:
        """As `CaptionScheduler.embed`; an InferenceError only where every Triton failed."""
        return await self._ask(lambda captions: captions.embed(pixels, deadline), deadline)

    async def _ask(self, ask: Callable[[CaptionScheduler], Awaitable[Answer]], deadline: Deadline) -> Answer:
        left = list(self._replicas)
        while True:
            replica = min(left, key=self._rank)
            left.remove(replica)
            try:
                return await ask(replica.captions)
            except InferenceError as error:
                self._failures[replica] = time.monotonic()
                if not left or deadline.remaining_seconds() <= 0:
                    raise
                _log.warning("Triton %s failed on a photo, another one is asked: %s", replica.name, error)
            except OverloadedError:
                if not left:
                    raise

    def _rank(self, replica: Replica) -> tuple[bool, bool, int]:
        failed = self._failures.get(replica)
        is_suspect = failed is not None and time.monotonic() - failed < _SUSPECT_SECONDS
        return not replica.is_serving, is_suspect, replica.captions.num_in_flight
