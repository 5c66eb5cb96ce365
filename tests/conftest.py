# SPDX-License-Identifier: Apache-2.0
"""What many tests share: one real Triton with the models of the repository, and gateways in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest

from drawings.draw_samples import draw_sample
from search_gateway.observability import logs

if TYPE_CHECKING:
    from search_gateway.triton.embedded import EmbeddedTriton

hypothesis.settings.register_profile("captrieve", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("captrieve")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for tests that import onnxruntime themselves

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "model_repository"
SHARED_DATA = ROOT.parent / "shared" / "data"


def jpeg(garment: str, colour: str, seed: int | None = None) -> bytes:
    """A drawing of ours as an image file; with a seed, one that nobody has seen."""
    rng = None if seed is None else np.random.default_rng(seed)
    file = io.BytesIO()
    draw_sample(garment, colour, rng).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is in a cycle stays in memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def pytest_collectstart() -> None:
    """Collect no garbage while tests are collected: nearly all that is made then stays."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Keep what the collection made out of each later garbage collection: it is most of a test process's memory."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Undo what the program's `main` does to the log: its handler would write to the closed stderr of this test."""
    loggers = logging.getLogger(), logging.getLogger("search_gateway")
    handlers, levels = set(loggers[0].handlers), [one.level for one in loggers]
    yield
    for handler in set(loggers[0].handlers) - handlers:
        if isinstance(handler, logs.Handler):
            loggers[0].removeHandler(handler)
    for one, level in zip(loggers, levels, strict=True):
        one.setLevel(level)


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A red handbag, drawn as no training sample was."""
    return jpeg("Handbag", "Red", seed=99)


@pytest.fixture(scope="session")
def triton_address() -> Iterator[str]:
    """HOST:PORT of an embedded Triton that serves the repository's own models to all tests that only ask."""
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("THE REAL TRITON IS NOT TESTED: install the embedded extra (nvidia-pytriton)")
    if not (MODELS / "gpt2_step" / "1" / "model.onnx").is_file():
        pytest.skip("THE REAL TRITON IS NOT TESTED: model_repository has no models, run export.install_models")
    from search_gateway.triton.embedded import EmbeddedTriton

    with running_triton(EmbeddedTriton(MODELS)) as triton:
        yield triton.grpc_address


@contextlib.contextmanager
def running_triton(triton: EmbeddedTriton) -> Iterator[EmbeddedTriton]:
    """Run a Triton that many tests share within the block.

    On a machine with far too much to do, Triton's python backend now and then hangs while it starts. Then it is started
    once more.
    """
    from search_gateway.triton.embedded import TritonStartError

    try:
        triton.start()
    except TritonStartError as error:
        warnings.warn(f"Triton is started once more: {error}", stacklevel=2)
        triton.start()
    try:
        yield triton
    finally:
        triton.stop()


class GatewayThread:
    """A gateway on its own event loop in its own thread, as callers meet it: through a port."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._problem: BaseException | None = None
        self.gateway: Any = None

    def start(self) -> str:
        """Returns HOST:PORT; raises what kept the gateway from starting."""
        self._thread.start()
        self._started.wait(150)
        if self._problem is not None:
            raise self._problem
        return str(self.gateway.address)

    def stop(self) -> None:
        """As SIGTERM does; returns when everything is down."""
        if self._thread.is_alive():
            # One that could not start closes its loop by itself, perhaps between these two lines.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.gateway.stop)
            self._thread.join(60)
            assert not self._thread.is_alive(), "the gateway did not stop within a minute"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as problem:
            self._problem = problem
            self._started.set()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _live(self) -> None:
        self.gateway = self._make()
        async with self.gateway:
            self._started.set()
            await self.gateway.wait()


class ProviderSeat:
    """Stands in a shared gateway for the provider that the current test has put there."""

    provider: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.provider, name)


class SharedGateway:
    """A gateway for all tests that want the same settings and as many providers of their own."""

    def __init__(self, make: Callable[[list[Any]], Any], num_providers: int):
        self.seats = [ProviderSeat() for _ in range(num_providers)]
        self.thread = GatewayThread(lambda: make(self.seats))

    def take(self, providers: list[Any]) -> str:
        """Returns HOST:PORT."""
        for seat, provider in zip(self.seats, providers, strict=True):
            seat.provider = provider
        return str(self.thread.gateway.address) if self.thread.gateway else self.thread.start()


@pytest.fixture(scope="session")
def shared_gateways(triton_address: str) -> Iterator[dict[str, SharedGateway]]:
    """By their settings; they end before Triton does."""
    gateways: dict[str, SharedGateway] = {}
    yield gateways
    for gateway in gateways.values():
        gateway.thread.stop()


@pytest.fixture
def start_gateway(triton_address: str, shared_gateways: dict[str, SharedGateway]) -> Iterator[Callable[..., str]]:
    """Starts gateways before the shared Triton; returns HOST:PORT. Keyword arguments are settings.

    One for `providers` is shared with other tests, unless it limits requests in flight or this test has it already.
    """
    from search_gateway.config import GatewayConfig
    from search_gateway.server import Gateway

    running: list[GatewayThread] = []
    taken: set[str] = set()

    def start(
        *,
        providers: list[Any] | None = None,
        provider_names: tuple[str, ...] = ("duckduckgo", "catalog"),
        thumbnails: Callable[[], Any] | None = None,
        **settings: Any,
    ) -> str:
        own = {"max_in_flight", "model_repository", "triton_address"} & settings.keys()
        key = f"{len(providers or ())} {settings}"
        settings = {
            "listen_address": "127.0.0.1:0",
            "admin_address": "",
            "triton_address": (triton_address,),
            "model_repository": MODELS,
            "providers": provider_names,
            **settings,
        }
        extra = {} if thumbnails is None else {"thumbnails": thumbnails}

        def make(providers: list[Any] | None) -> Gateway:
            return Gateway(GatewayConfig(**settings), providers=providers, **extra)

        if providers and not own and not extra and key not in taken:
            taken.add(key)
            if key not in shared_gateways:
                shared_gateways[key] = SharedGateway(make, len(providers))
            return shared_gateways[key].take(providers)
        running.append(GatewayThread(lambda: make(providers)))
        return running[-1].start()

    yield start
    for thread in running:
        thread.stop()
