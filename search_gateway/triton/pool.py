# SPDX-License-Identifier: Apache-2.0
"""Distributes photos over the gateway's Tritons: each goes to the least busy one, and once to another if that fails.

A photo stays with one Triton from the encoder to the last word, since its caches are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
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
from search_gateway.observability.observer import ModelCounts
from search_gateway.tasks import kept_running

_log = logging.getLogger(__name__)

# How long a replica that failed is chosen last, unless a health check comes first.
_SUSPECT_SECONDS = 1.0
_MAX_RETRIES = 1

Answer = TypeVar("Answer")


class Replica(Protocol):
    """What the pool needs of a Triton."""

    @property
    def name(self) -> str:
        """Its name, for the log."""

    @property
    def captions(self) -> CaptionScheduler:
        """Its scheduler."""

    @property
    def is_serving(self) -> bool:
        """Whether it answered its last health check."""

    @property
    def problem(self) -> str:
        """Why it is not serving, for the operator; empty if it is."""

    async def watch(self, changed: Callable[[], object]) -> None:
        """Check its health until cancelled; `changed` is called after each check."""

    async def statistics(self) -> list[ModelCounts]:
        """Return what it counts of each model; nothing if it does not answer."""

    async def close(self) -> None:
        """End all its work."""


class TritonPool:
    """All Tritons of a gateway, used like one `CaptionScheduler`.

    Args:
        replicas: at least one; started. The caller closes them.
    """

    def __init__(self, replicas: Sequence[Replica]):
        self._replicas = replicas
        self._failures: dict[Replica, float] = {}  # time.monotonic()
        self._watching: list[asyncio.Task[None]] = []

    @property
    def is_serving(self) -> bool:
        """Whether at least one Triton can be used."""
        return any(replica.is_serving for replica in self._replicas)

    def problems(self) -> list[str]:
        """Return why Tritons cannot be used, each as "Triton NAME: reason" for the operator; does not block."""
        return [f"Triton {replica.name}: {replica.problem}" for replica in self._replicas if replica.problem]

    @property
    def replicas(self) -> Sequence[Replica]:
        """The Tritons."""
        return self._replicas

    @property
    def step_calls(self) -> dict[int, tuple[int, int]]:
        """Calls of the step model on all Tritons: captions in a call -> (number of calls, total nanoseconds)."""
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
                # It may hang rather than be dead: fail its photos, so that another Triton answers them in time.
                replica.captions.fail_all(InferenceError("the inference server does not answer: try again shortly"))
            changed()

        for replica in self._replicas:
            watch = functools.partial(replica.watch, functools.partial(look, replica))
            self._watching.append(asyncio.create_task(kept_running(f"the watch of Triton {replica.name}", watch)))

    async def close(self) -> None:
        """Stop watching."""
        for task in self._watching:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def place(self, options: DecodingOptions, deadline: Deadline) -> contextlib.AbstractContextManager[None]:
        """Keep a place in the queue of one Triton, as `CaptionScheduler.place`.

        Raises:
            OverloadedError: none has a free one.
        """
        replicas = sorted(self._replicas, key=self._rank)
        refusals = []
        for replica in [replica for replica in replicas if replica.is_serving] or replicas:
            try:
                return replica.captions.place(options, deadline)
            except OverloadedError as error:
                refusals.append(error)
        raise refusals[0]

    async def caption(self, pixels: Pixels, options: DecodingOptions, deadline: Deadline) -> DecodedPhoto:
        """Caption a photo as `CaptionScheduler.caption`; InferenceError if two Tritons failed, or the only one."""
        return await self._ask(pixels, lambda captions: captions.caption(pixels, options, deadline), deadline)

    async def embed(self, pixels: Pixels, deadline: Deadline) -> npt.NDArray[np.float32]:
        """Embed a photo as `CaptionScheduler.embed`; InferenceError if two Tritons failed, or the only one."""
        return await self._ask(pixels, lambda captions: captions.embed(pixels, deadline), deadline)

    async def _ask(
        self, pixels: Pixels, ask: Callable[[CaptionScheduler], Awaitable[Answer]], deadline: Deadline
    ) -> Answer:
        left = list(self._replicas)
        num_failures = 0
        while True:
            replica = min(left, key=self._rank)
            left.remove(replica)
            try:
                return await ask(replica.captions)
            except InferenceError as error:
                self._failures[replica] = time.monotonic()
                num_failures += 1
                if replica.is_serving:  # else it is known to be down, whatever the photo
                    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
                    _log.warning(
                        "Triton %s failed on a photo (SHA-256 of its pixels %s): %s", replica.name, digest, error
                    )
                # A photo that breaks Triton must not break all of them.
                if not left or num_failures > _MAX_RETRIES or deadline.remaining_seconds() <= 0:
                    raise
            except OverloadedError:
                if not left:
                    raise

    def _rank(self, replica: Replica) -> tuple[bool, bool, int]:
        failed = self._failures.get(replica)
        is_suspect = failed is not None and time.monotonic() - failed < _SUSPECT_SECONDS
        return not replica.is_serving, is_suspect, replica.captions.num_in_flight
