# SPDX-License-Identifier: Apache-2.0
"""Calls of a gateway with little overhead: raw gRPC calls with requests that were serialised before.

A caller compares each caption with the expected one and classifies every answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from benchmarks.load.outcomes import Kind, Outcome
from search_api import search_pb2

CONNECTIONS = 4  # one connection might limit the load before the server does
_SERVICE = "captrieve.v1.SearchService"
_CAPTION = f"/{_SERVICE}/Caption"
_HEALTH = "/grpc.health.v1.Health/Check"
_HEALTH_SECONDS = 5.0  # a later answer counts as a failure
_CONNECT_SECONDS = 20.0
_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # else channels to the same address share one connection
    ("grpc.max_receive_message_length", -1),
]
_KINDS: dict[grpc.StatusCode, Kind] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: "shed",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
}
Words = dict[tuple[int, int], str]  # (number of the photo, beams) -> caption


@dataclass(frozen=True)
class Plan:
    """One request."""

    photo: int  # number of the photo
    beams: int = 1  # beams of the caption
    timeout_seconds: float = 30.0  # deadline of the request
    cancel_seconds: float | None = None  # when the caller cancels the request; None: never
    intended: bool = False  # whether the plan makes the request fail, by cancellation or by a short deadline


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixed load; the requests in none of the shares are greedy captions."""

    beams: Mapping[int, float]  # beams -> share of the requests
    cancelled: float  # share of the requests that their caller cancels
    hurried: float  # share of the requests with a deadline of 2 to 200 ms
    timeout_seconds: float  # deadline of all others
    seed: int = 1  # of the random choice

    def plan(self, number: int, photos: int) -> Plan:
        """Return the plan of request `number` of a load with so many photos; always the same."""
        generator = random.Random(self.seed * 1_000_003 + number)
        photo, lot = number % photos, generator.random()
        for beams, share in self.beams.items():
            if lot < share:
                return Plan(photo, beams, self.timeout_seconds)
            lot -= share
        if lot < self.cancelled:
            # Between before the request arrives and shortly before its answer.
            return Plan(photo, 1, self.timeout_seconds, cancel_seconds=generator.uniform(0.0, 0.4), intended=True)
        lot -= self.cancelled
        if lot < self.hurried:
            return Plan(photo, 1, generator.uniform(0.002, 0.2), intended=True)
        return Plan(photo, 1, self.timeout_seconds)


class GatewayCaller:
    """Calls of one gateway over several connections; `connected` makes it."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], photos: Sequence[bytes], words: Words):
        self._methods = itertools.cycle([channel.unary_unary(_CAPTION, None, None) for channel in channels])
        self._photos = photos
        self._words = words
        self._requests: dict[tuple[int, int], bytes] = {}

    async def call(self, plan: Plan) -> Outcome:
        """Send a request, and return how it ended; errors of the server are outcomes, too."""
        call = next(self._methods)(self._request(plan.photo, plan.beams), timeout=plan.timeout_seconds)
        timer = None
        if plan.cancel_seconds is not None:
            timer = asyncio.get_running_loop().call_later(plan.cancel_seconds, call.cancel)
        try:
            answer = search_pb2.CaptionResponse.FromString(await call)
        except grpc.aio.AioRpcError as error:
            return failure(error, intended=plan.intended)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # this task was cancelled, not the request
                call.cancel()
                raise
            return Outcome("cancelled", plan.intended)
        finally:
            if timer is not None:
                timer.cancel()
        stages = {time.stage: time.milliseconds for time in answer.timings}
        expected = self._words.get((plan.photo, plan.beams))
        if expected is not None and answer.caption.text != expected:
            detail = f"photo {plan.photo}, {plan.beams} beams: {answer.caption.text!r}, alone {expected!r}"
            return Outcome("wrong", plan.intended, stages, detail=detail)
        return Outcome("ok", plan.intended, stages)

    async def words(self, photo: int, beams: int, timeout_seconds: float = 30.0) -> str:
        """Return the caption of one photo.

        Raises:
            grpc.aio.AioRpcError: the gateway gave no caption.
        """
        request = self._request(photo, beams)
        answer = await next(self._methods)(request, timeout=timeout_seconds)
        return str(search_pb2.CaptionResponse.FromString(answer).caption.text)

    def _request(self, photo: int, beams: int) -> bytes:
        key = photo, beams
        if key not in self._requests:
            options = search_pb2.DecodingOptions(num_beams=beams)
            # The caption as it was decoded, so that it can be compared with that of the models in one process.
            rule = search_pb2.QUERY_RULE_LAST_TWO_WORDS
            message = search_pb2.CaptionRequest(photo=self._photos[photo], decoding=options, query_rule=rule)
            self._requests[key] = message.SerializeToString()
        return self._requests[key]

    def serialise(self, beams: Sequence[int]) -> None:
        """Serialise the requests of all photos with these beams, so that the load does not include it."""
        for one in beams:
            for photo in range(len(self._photos)):
                self._request(photo, one)


@contextlib.asynccontextmanager
async def connected(address: str, photos: Sequence[bytes], words: Words) -> AsyncIterator[GatewayCaller]:
    """Connect to a gateway at HOST:PORT."""
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_OPTIONS))
            for _ in range(CONNECTIONS)
        ]
        async with asyncio.timeout(_CONNECT_SECONDS):
            for channel in channels:
                await channel.channel_ready()
        yield GatewayCaller(channels, photos, words)


@contextlib.asynccontextmanager
async def health_check(address: str) -> AsyncIterator[Any]:
    """Connect to the health service at HOST:PORT; yields a coroutine function that returns whether it is serving."""
    request = health_pb2.HealthCheckRequest(service=_SERVICE).SerializeToString()
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await channel.channel_ready()
        method = channel.unary_unary(_HEALTH, None, health_pb2.HealthCheckResponse.FromString)

        async def check() -> bool:
            try:
                answer = await method(request, timeout=_HEALTH_SECONDS)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        yield check


def failure(error: grpc.aio.AioRpcError, *, intended: bool = False) -> Outcome:
    """Classify an error of the server."""
    kind = _KINDS.get(error.code(), "other")
    detail = "" if intended else " ".join(f"{error.code().name}: {error.details()}".split())
    return Outcome(kind, intended, retry_seconds=_retry_seconds(error) if kind == "shed" else None, detail=detail)


def _retry_seconds(error: grpc.aio.AioRpcError) -> float | None:
    trailer: Any = error.trailing_metadata()  # pairs; grpc-stubs types them as single values
    for name, value in trailer or ():
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                retry = error_details_pb2.RetryInfo()
                if detail.Unpack(retry):
                    return float(retry.retry_delay.ToTimedelta().total_seconds())
    return None
