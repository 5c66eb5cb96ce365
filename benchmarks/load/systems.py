# SPDX-License-Identifier: Apache-2.0
"""What takes part in a load test, each to live in a process of its own (own_process.py).

LoadDriver calls a gateway. PlainLoop and InProcess caption the same photos without one: a loop per request on a Triton
of its own, and our ONNX models in batches.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.common.process_usage import process_tree
from benchmarks.load.caller import GatewayCaller, Mixture, Plan, Words, connected, health_check
from benchmarks.load.driver import Call, closed_loop, one_at_a_time, open_loop, poisson_arrivals, watched_health
from benchmarks.load.outcomes import LoadFigures, LoadTurn, Outcome, Sample, figures_of
from captioner.caption_tokenizer import CaptionTokenizer
from captioner.decoding import DecodingOptions
from captioner.model_contract import ModelContract
from captioner.preprocessing import decode_photo

CLOSED_TIMEOUT_SECONDS = 30.0  # of a caller in a closed loop: the gateway's own maximum
_PLAIN_SECONDS = 60.0  # the plain loop is not to fail for slowness
_GIVE_UP_AFTER_SECONDS = 10.0  # beyond the deadline: then a request is lost

_Load = Callable[[Call], Awaitable[LoadTurn]]


class LoadDriver:
    """Calls the gateway at `address` with these photos; knows what each of them is to be called once it has learned."""

    def __init__(self, address: str, photos: Sequence[bytes]):
        self._address = address
        self._photos = photos
        self._words: Words = {}
        self._runner = asyncio.Runner()

    def learn(self, beams: int, first: int, count: int) -> list[str]:
        """Ask for photos one at a time; the answers are what every later one is checked against."""

        async def ask() -> list[str]:
            async with connected(self._address, self._photos, {}) as caller:
                return [await caller.words(photo, beams) for photo in range(first, first + count)]

        captions = self._runner.run(ask())
        self._words |= {(first + place, beams): caption for place, caption in enumerate(captions)}
        return captions

    def closed(self, callers: int, warm_seconds: float, seconds: float, locked: bool = False) -> LoadFigures:
        """Closed loop of greedy captions; `locked`: the callers let only one request at a time into the gateway."""

        async def load(call: Call) -> LoadTurn:
            call = one_at_a_time(call) if locked else call
            return await closed_loop(call, callers=callers, warm_seconds=warm_seconds, seconds=seconds)

        return figures_of(self._loaded(load, CLOSED_TIMEOUT_SECONDS), deadline_seconds=CLOSED_TIMEOUT_SECONDS)

    def open(self, rate: float, warm_seconds: float, seconds: float, deadline_seconds: float, seed: int) -> LoadFigures:
        """Poisson arrivals, `rate` a second, each with the deadline."""
        arrivals = poisson_arrivals(rate, warm_seconds + seconds, seed)

        async def load(call: Call) -> LoadTurn:
            give_up = deadline_seconds + _GIVE_UP_AFTER_SECONDS
            return await open_loop(call, arrivals, warm_seconds=warm_seconds, seconds=seconds, give_up_seconds=give_up)

        return figures_of(self._loaded(load, deadline_seconds), deadline_seconds=deadline_seconds)

    def mixed(self, callers: int, mixture: Mixture, first: int, requests: int) -> LoadFigures:
        """Closed loop of requests `first` to `first + requests` of a mixture."""

        async def run() -> LoadTurn:
            async with (
                connected(self._address, self._photos, self._words) as caller,
                health_check(self._address) as check,
            ):
                caller.serialise([1, *mixture.beams])
                async with watched_health(check) as checks:
                    turn = await closed_loop(
                        lambda number: caller.call(mixture.plan(number, len(self._photos))),
                        callers=callers,
                        requests=requests,
                        first=first,
                        give_up_seconds=mixture.timeout_seconds + _GIVE_UP_AFTER_SECONDS,
                    )
                return LoadTurn(turn.sent, turn.begin, turn.end, turn.samples, checks)

        return figures_of(self._runner.run(run()), deadline_seconds=mixture.timeout_seconds)

    def close(self) -> None:
        self._runner.close()

    def _loaded(self, load: _Load, timeout_seconds: float) -> LoadTurn:
        async def run() -> LoadTurn:
            async with (
                connected(self._address, self._photos, self._words) as caller,
                health_check(self._address) as check,
            ):
                caller.serialise([1])
                async with watched_health(check) as checks:
                    turn = await load(self._greedy(caller, timeout_seconds))
                return LoadTurn(turn.sent, turn.begin, turn.end, turn.samples, checks)

        return self._runner.run(run())

    def _greedy(self, caller: GatewayCaller, timeout_seconds: float) -> Call:
        photos = len(self._photos)
        return lambda number: caller.call(Plan(number % photos, 1, timeout_seconds))


class PlainLoop:
    """`plain_loop.plain_caption` for many callers in one process, before a Triton of its own that sleeps in between."""

    def __init__(self, repository: Path, photos: Sequence[bytes], words: Words):
        from search_gateway.triton.embedded import EmbeddedTriton

        self._photos, self._words = photos, words
        self._contract = ModelContract.load(repository)
        self._tokenizer = CaptionTokenizer(repository)
        self._options = DecodingOptions(max_tokens=self._contract.max_tokens)
        self._runner = asyncio.Runner()
        self._triton = EmbeddedTriton(repository)
        self._triton.start()
        self._signal(signal.SIGSTOP)

    def closed(self, callers: int, warm_seconds: float, seconds: float) -> LoadFigures:
        """As LoadDriver's."""
        with self._awake():
            return figures_of(self._runner.run(self._load(callers, warm_seconds, seconds)))

    async def _load(self, callers: int, warm_seconds: float, seconds: float) -> LoadTurn:
        from benchmarks.load.plain_loop import plain_caption
        from search_gateway.deadline import Deadline
        from search_gateway.triton.client import TritonClient

        contract = self._contract
        inference = TritonClient(self._triton.grpc_address, contract)

        async def call(number: int) -> Outcome:
            photo = number % len(self._photos)
            pixels = decode_photo(
                self._photos[photo], height=contract.image_height, width=contract.image_width, fit=contract.fit
            )
            tokens = await plain_caption(inference, contract, pixels, self._options, Deadline(_PLAIN_SECONDS))
            return judged(photo, self._tokenizer.text(tokens), self._words)

        try:
            return await closed_loop(call, callers=callers, warm_seconds=warm_seconds, seconds=seconds)
        finally:
            await inference.close()

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self._triton.stop()
        self._runner.close()

    @contextmanager
    def _awake(self) -> Iterator[None]:
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        """To all processes of Triton, but not to its supervisor, which is idle anyway."""
        for pid in process_tree(self._triton.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # ended meanwhile


class InProcess:
    """Our ONNX models in batches, image files decoded as the gateway does."""

    def __init__(self, repository: Path, photos: Sequence[bytes], words: Words):
        from export.onnx_captioner import OnnxCaptioner

        self._photos, self._words = photos, words
        self._captioner = OnnxCaptioner(repository)
        self._tokenizer = CaptionTokenizer(repository)

    def captions(self, first: int, count: int) -> list[str]:
        """Greedy, each photo by itself."""
        return [self._caption([photo])[0] for photo in range(first, first + count)]

    def learn(self, words: Words) -> None:
        """The captions that are right."""
        self._words = words

    def closed(self, batch: int, warm_seconds: float, seconds: float) -> LoadFigures:
        """Batch after batch, whole ones: the window ends with the batch in which its time is over."""
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
                Sample(started, started, done, judged(photo, caption, self._words))
                for photo, caption in zip(photos, captions, strict=True)
            ]
            first, sent = first + batch, sent + batch
        return figures_of(LoadTurn(sent, begin, clock(), samples))

    def _caption(self, photos: Sequence[int]) -> list[str]:
        contract = self._captioner.contract
        pixels = [
            decode_photo(
                self._photos[photo], height=contract.image_height, width=contract.image_width, fit=contract.fit
            )
            for photo in photos
        ]
        answers = self._captioner.caption(np.stack(pixels), DecodingOptions(max_tokens=contract.max_tokens))
        return [self._tokenizer.text([token.token for token in answer[0].tokens]) for answer in answers]


def judged(photo: int, caption: str, words: Words) -> Outcome:
    """Whether a greedy caption is the one the photo is to have; right where nothing is known."""
    expected = words.get((photo, 1), caption)
    if caption == expected:
        return Outcome("ok")
    return Outcome("wrong", detail=f"photo {photo}: {caption!r}, alone {expected!r}")
