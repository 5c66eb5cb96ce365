# SPDX-License-Identifier: Apache-2.0
"""The participants of a load test; each runs in a process of its own (`benchmarks.common.own_process`).

`LoadDriver` calls a gateway. `PlainLoop` and `InProcess` caption the same photos without one: with a loop for each
request on a Triton of its own, and with our ONNX models in batches.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.common.process_usage import signal_tree
from benchmarks.load.caller import Mixture, Plan, Words, connected, health_check
from benchmarks.load.driver import Call, closed_loop, one_at_a_time, open_loop, poisson_arrivals, watched_health
from benchmarks.load.outcomes import LoadFigures, LoadTurn, Outcome, Sample, figures_of
from captioner.caption_tokenizer import CaptionTokenizer
from captioner.decoding import DecodingOptions
from captioner.model_contract import ModelContract
from captioner.preprocessing import decode_photo

CLOSED_TIMEOUT_SECONDS = 30.0  # deadline in the closed loop: the gateway's maximum
_PLAIN_SECONDS = 60.0  # deadline of the plain loop, which must not fail because it is slow
_GIVE_UP_AFTER_SECONDS = 10.0  # a request without an answer this long after its deadline is lost

_Load = Callable[[Call], Awaitable[LoadTurn]]


class LoadDriver:
    """Calls a gateway with photos, and compares the captions with those it has learned."""

    def __init__(self, address: str, photos: Sequence[bytes]):
        self._address = address
        self._photos = photos
        self._words: Words = {}
        self._runner = asyncio.Runner()

    def learn(self, beams: int, first: int, count: int) -> list[str]:
        """Caption `count` photos from number `first` on, one at a time, and expect these captions from now on."""

        async def ask() -> list[str]:
            async with connected(self._address, self._photos, {}) as caller:
                return [await caller.words(photo, beams) for photo in range(first, first + count)]

        captions = self._runner.run(ask())
        self._words |= {(first + place, beams): caption for place, caption in enumerate(captions)}
        return captions

    def closed(self, callers: int, warm_seconds: float, seconds: float, locked: bool = False) -> LoadFigures:
        """Run a closed loop of greedy captions; if `locked`, the callers together send one request at a time."""

        async def load(call: Call) -> LoadTurn:
            call = one_at_a_time(call) if locked else call
            return await closed_loop(call, callers=callers, warm_seconds=warm_seconds, seconds=seconds)

        return self._greedy_figures(load, CLOSED_TIMEOUT_SECONDS)

    def open(self, rate: float, warm_seconds: float, seconds: float, deadline_seconds: float, seed: int) -> LoadFigures:
        """Run an open loop of greedy captions with Poisson arrivals, `rate` per second."""
        arrivals = poisson_arrivals(rate, warm_seconds + seconds, seed)

        async def load(call: Call) -> LoadTurn:
            give_up = deadline_seconds + _GIVE_UP_AFTER_SECONDS
            return await open_loop(call, arrivals, warm_seconds=warm_seconds, seconds=seconds, give_up_seconds=give_up)

        return self._greedy_figures(load, deadline_seconds)

    def mixed(self, callers: int, mixture: Mixture, first: int, requests: int) -> LoadFigures:
        """Run a closed loop of requests `first` to `first + requests` of a mixture."""

        async def load(call: Call) -> LoadTurn:
            give_up = mixture.timeout_seconds + _GIVE_UP_AFTER_SECONDS
            return await closed_loop(call, callers=callers, requests=requests, first=first, give_up_seconds=give_up)

        def plan(number: int) -> Plan:
            return mixture.plan(number, len(self._photos))

        return self._figures(load, mixture.timeout_seconds, plan, [1, *mixture.beams])

    def close(self) -> None:
        """Close the event loop."""
        self._runner.close()

    def _greedy_figures(self, load: _Load, timeout_seconds: float) -> LoadFigures:
        def plan(number: int) -> Plan:
            return Plan(number % len(self._photos), 1, timeout_seconds)

        return self._figures(load, timeout_seconds, plan, [1])

    def _figures(
        self, load: _Load, timeout_seconds: float, plan: Callable[[int], Plan], beams: Sequence[int]
    ) -> LoadFigures:
        """Run a load of planned requests, with health checks beside it."""

        async def run() -> LoadTurn:
            async with (
                connected(self._address, self._photos, self._words) as caller,
                health_check(self._address) as check,
            ):
                caller.serialise(beams)
                async with watched_health(check) as checks:
                    turn = await load(lambda number: caller.call(plan(number)))
                return dataclasses.replace(turn, health=checks)

        return figures_of(self._runner.run(run()), deadline_seconds=timeout_seconds)


class PlainLoop:
    """`plain_loop.plain_caption` for many callers in one process, on its own Triton, which is paused between turns."""

    def __init__(self, repository: Path, photos: Sequence[bytes], words: Words):
        from search_gateway.triton.embedded import EmbeddedTriton

        self._photos, self._words = photos, words
        self._contract = ModelContract.load(repository)
        self._tokenizer = CaptionTokenizer(repository)
        self._options = DecodingOptions(max_tokens=self._contract.max_tokens)
        self._runner = asyncio.Runner()
        self._triton = EmbeddedTriton(repository)
        self._triton.start()
        signal_tree(self._triton.pid, signal.SIGSTOP)

    def closed(self, callers: int, warm_seconds: float, seconds: float) -> LoadFigures:
        """Run a closed loop of greedy captions, as `LoadDriver.closed`."""
        signal_tree(self._triton.pid, signal.SIGCONT)
        try:
            return figures_of(self._runner.run(self._load(callers, warm_seconds, seconds)))
        finally:
            signal_tree(self._triton.pid, signal.SIGSTOP)

    async def _load(self, callers: int, warm_seconds: float, seconds: float) -> LoadTurn:
        from benchmarks.load.plain_loop import plain_caption
        from search_gateway.deadline import Deadline
        from search_gateway.triton.client import TritonClient

        contract = self._contract
        inference = TritonClient(self._triton.grpc_address, contract)

        async def call(number: int) -> Outcome:
            photo = number % len(self._photos)
            pixels = decode_photo(self._photos[photo], **contract.photo_shape)
            tokens = await plain_caption(inference, contract, pixels, self._options, Deadline(_PLAIN_SECONDS))
            return checked(photo, self._tokenizer.text(tokens), self._words)

        try:
            return await closed_loop(call, callers=callers, warm_seconds=warm_seconds, seconds=seconds)
        finally:
            await inference.close()

    def close(self) -> None:
        """Stop Triton."""
        signal_tree(self._triton.pid, signal.SIGCONT)
        self._triton.stop()
        self._runner.close()


class InProcess:
    """Our ONNX models in batches; image files are decoded as in the gateway."""

    def __init__(self, repository: Path, photos: Sequence[bytes], words: Words):
        from export.onnx_captioner import OnnxCaptioner

        self._photos, self._words = photos, words
        self._captioner = OnnxCaptioner(repository)
        self._tokenizer = CaptionTokenizer(repository)

    def captions(self, first: int, count: int) -> list[str]:
        """Caption `count` photos from number `first` on, greedily and one at a time."""
        return [self._caption([photo])[0] for photo in range(first, first + count)]

    def learn(self, words: Words) -> None:
        """Expect these captions from now on."""
        self._words = words

    def closed(self, batch: int, warm_seconds: float, seconds: float) -> LoadFigures:
        """Caption batch after batch; the window ends with the batch in which its time ends."""
        clock = time.perf_counter
        start = clock()
        begin: float | None = None
        first = sent = 0
        samples: list[Sample] = []
        while begin is None or clock() < begin + seconds:
            started = clock()
            if begin is None and started - start >= warm_seconds:
                begin, samples, sent, first = started, [], 0, 0
            photos = [(first + place) % len(self._photos) for place in range(batch)]
            captions = self._caption(photos)
            done = clock()
            samples += [
                Sample(started, started, done, checked(photo, caption, self._words))
                for photo, caption in zip(photos, captions, strict=True)
            ]
            first, sent = first + batch, sent + batch
        return figures_of(LoadTurn(sent, begin, clock(), samples))

    def _caption(self, photos: Sequence[int]) -> list[str]:
        contract = self._captioner.contract
        pixels = [decode_photo(self._photos[photo], **contract.photo_shape) for photo in photos]
        answers = self._captioner.caption(np.stack(pixels), DecodingOptions(max_tokens=contract.max_tokens))
        return [self._tokenizer.text([token.token for token in answer[0].tokens]) for answer in answers]


def checked(photo: int, caption: str, words: Words) -> Outcome:
    """Compare a greedy caption with the expected one; without an expected caption it counts as right."""
    expected = words.get((photo, 1), caption)
    if caption == expected:
        return Outcome("ok")
    return Outcome("wrong", detail=f"photo {photo}: {caption!r}, alone {expected!r}")
