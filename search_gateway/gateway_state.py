# SPDX-License-Identifier: Apache-2.0
"""What a running gateway tells its operators: the state of its parts, its methods, and the admin port."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict

import captioner
from captioner.model_contract import ModelContract
from search_api import search_pb2
from search_gateway.config import GatewayConfig
from search_gateway.kserve import protocol
from search_gateway.observability.admin_server import AdminServer, AdminState
from search_gateway.observability.metrics import CONTENT_TYPE, GatewayMetrics, triton_text
from search_gateway.observability.observer import BatchState, CacheState, Observer, Snapshot
from search_gateway.pipeline import Pipeline
from search_gateway.providers.base import QuotaWindow
from search_gateway.providers.guard.query_cache import QueryCache
from search_gateway.ranking.rerank import Verdict
from search_gateway.triton.pool import TritonPool


def make_observer(config: GatewayConfig, contract: ModelContract) -> Observer:
    """Return what counts the gateway's events: its metrics, or nothing where there is no admin port."""
    if not config.admin_address:
        return Observer()
    return GatewayMetrics(captioner.__version__, contract.model, _methods())


async def start_admin(
    admin: AdminServer,
    config: GatewayConfig,
    observer: Observer,
    pipeline: Pipeline,
    cache: QueryCache,
    problems: Callable[[], list[str]],
    drain: Callable[[], Awaitable[None]],
) -> None:
    """Let the admin port answer.

    Args:
        admin: the port.
        config: the settings, which it shows.
        observer: made by `make_observer`.
        pipeline: its parts are what the metrics are about.
        cache: of providers' answers.
        problems: returns why the gateway takes no requests.
        drain: stops taking requests.
    """
    assert isinstance(observer, GatewayMetrics)
    tritons = pipeline.tritons
    observer.preset(
        providers=pipeline.providers.names,
        replicas=[replica.name for replica in tritons.replicas],
        verdicts=[verdict.value for verdict in Verdict],
    )
    observer.watch(lambda: _snapshot(pipeline, cache, is_ready=not problems()))

    async def triton_metrics() -> bytes:
        replicas = tritons.replicas
        statistics = await asyncio.gather(*(replica.statistics() for replica in replicas))
        return triton_text({replica.name: one for replica, one in zip(replicas, statistics, strict=True)})

    await admin.start(
        AdminState(
            metrics=observer.text,
            metrics_type=CONTENT_TYPE,
            triton_metrics=triton_metrics,
            problems=problems,
            warnings=lambda: [*tritons.problems(), *pipeline.providers.problems()],
            settings=config.model_dump(),
            drain=drain,
        )
    )


def problems_of(tritons: TritonPool, *, is_draining: bool) -> list[str]:
    """Return why the gateway takes no requests; empty if it does."""
    if is_draining:
        return ["the gateway is draining"]
    return [] if tritons.is_serving else tritons.problems() or ["no Triton serves"]


def _methods() -> list[str]:
    services = search_pb2.DESCRIPTOR.services_by_name.values()
    ours = [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]
    return [*ours, *(f"/{protocol.SERVICE}/{name}" for name in ("ModelInfer", "ModelStreamInfer"))]


def _snapshot(pipeline: Pipeline, cache: QueryCache, *, is_ready: bool) -> Snapshot:
    web = pipeline.providers.guarded
    return Snapshot(
        batches=_batches(pipeline.tritons),
        replicas={replica.name: replica.is_serving for replica in pipeline.tritons.replicas},
        workers={"photos": pipeline.photos.state, "thumbnails": pipeline.small_photos.state},
        cache=CacheState(**asdict(cache.counters), num_bytes=cache.num_bytes),
        breakers={one.name: one.breaker_state for one in web},
        budgets={one.name: one.budget for one in web if one.budget is not None},
        quotas={one.name: {_window(window): window.remaining for window in one.quota} for one in web},
        costs={one.name: one.terms.cost_per_call for one in web},
        is_ready=is_ready,
    )


def _window(window: QuotaWindow) -> str:
    return "unknown" if window.window_seconds is None else f"{window.window_seconds:.0f}"


def _batches(tritons: TritonPool) -> dict[int, BatchState]:
    """Add up the batches of all Tritons; greedy captions are there even before the first one."""
    sums: dict[int, Counter[str]] = {1: Counter()}
    for replica in tritons.replicas:
        for beams, batch in replica.captions.batches.items():
            sums.setdefault(beams, Counter()).update(asdict(batch))
    return {beams: BatchState(**{str(name): count for name, count in one.items()}) for beams, one in sums.items()}
