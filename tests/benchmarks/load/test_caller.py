# SPDX-License-Identifier: Apache-2.0
"""What a caller says of answers, against a server made by hand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from benchmarks.load.caller import Mixture, Plan, connected, health_check
from benchmarks.load.outcomes import Outcome
from search_api import search_pb2

PHOTOS = [b"shirt", b"shoe", b"full", b"full, without a hint", b"gone", b"slow", b"broken"]
WORDS = {(0, 1): "Red Shirt", (1, 1): "Blue Shoe", (1, 4): "Blue Shoe of 4"}


async def answer(request: Any, context: Any) -> Any:
    photo = request.photo
    if photo.startswith(b"full"):
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)))
        status = status_pb2.Status(code=8, message="full", details=[detail] if photo == b"full" else [])
        await context.abort_with_status(rpc_status.to_status(status))
    if photo == b"gone":
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Triton is away")
    if photo == b"broken":
        await context.abort(grpc.StatusCode.INTERNAL, "broken")
    if photo == b"slow":
        await asyncio.sleep(30)
    beams = request.decoding.num_beams
    text = "Red Shirt" if photo == b"shirt" else "Blue Shoe" + (f" of {beams}" if beams > 1 else "")
    return search_pb2.CaptionResponse(
        caption=search_pb2.Caption(text=text), timings=[search_pb2.StageTime(stage="encode", milliseconds=7)]
    )


async def healthy(request: Any, context: Any) -> Any:
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def with_server(use: Callable[[str], Any]) -> Any:
    """What `use` returns for the address of a server."""

    async def run() -> Any:
        server = grpc.aio.server()
        handlers = {
            "captrieve.v1.SearchService": ("Caption", answer, search_pb2.CaptionRequest),
            "grpc.health.v1.Health": ("Check", healthy, health_pb2.HealthCheckRequest),
        }
        for service, (name, behaviour, request) in handlers.items():
            method = grpc.unary_unary_rpc_method_handler(
                behaviour, request.FromString, lambda message: message.SerializeToString()
            )
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: method})])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            return await use(f"127.0.0.1:{port}")
        finally:
            await server.stop(None)

    return asyncio.run(run())


def outcome_of(plan: Plan, words: dict[tuple[int, int], str] = WORDS) -> Outcome:
    async def use(address: str) -> Outcome:
        async with connected(address, PHOTOS, words) as caller:
            return await caller.call(plan)

    outcome: Outcome = with_server(use)
    return outcome


def test_right_and_wrong_words() -> None:
    assert outcome_of(Plan(0)) == Outcome("ok", stages_ms={"encode": 7.0})
    assert outcome_of(Plan(1, beams=4)).kind == "ok"
    wrong = outcome_of(Plan(0), {(0, 1): "Green Shirt"})
    assert wrong.kind == "wrong"
    assert wrong.detail == "photo 0, 1 beams: 'Red Shirt', alone 'Green Shirt'"


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        (2, Outcome("shed", retry_seconds=1.5, detail="RESOURCE_EXHAUSTED: full")),
        (3, Outcome("shed", detail="RESOURCE_EXHAUSTED: full")),
        (4, Outcome("unavailable", detail="UNAVAILABLE: Triton is away")),
        (6, Outcome("other", detail="INTERNAL: broken")),
    ],
)
def test_errors_are_told_apart(photo: int, expected: Outcome) -> None:
    assert outcome_of(Plan(photo)) == expected


def test_deadline_and_cancellation() -> None:
    late = outcome_of(Plan(5, timeout_seconds=0.1))
    assert (late.kind, late.intended) == ("deadline", False)
    assert outcome_of(Plan(5, timeout_seconds=0.1, intended=True)) == Outcome("deadline", intended=True)
    assert outcome_of(Plan(5, cancel_seconds=0.05, intended=True)) == Outcome("cancelled", intended=True)
    # One that is answered before its caller takes it back is checked as any other.
    assert outcome_of(Plan(0, cancel_seconds=20.0, intended=True)).kind == "ok"


def test_words_and_health() -> None:
    async def use(address: str) -> tuple[str, bool]:
        async with connected(address, PHOTOS, {}) as caller, health_check(address) as check:
            return await caller.words(1, 4), await check()

    assert with_server(use) == ("Blue Shoe of 4", True)


def test_health_of_a_server_that_went_away_is_a_failure() -> None:
    async def run() -> bool:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with health_check(f"127.0.0.1:{port}") as check:
            await server.stop(None)
            return bool(await check())

    assert asyncio.run(run()) is False


def test_mixture_has_its_shares_and_is_always_the_same() -> None:
    mixture = Mixture(beams={2: 0.05, 4: 0.1}, cancelled=0.02, hurried=0.03, timeout_seconds=9.0)
    plans = [mixture.plan(number, 50) for number in range(20_000)]
    assert plans[:100] == [mixture.plan(number, 50) for number in range(100)]
    assert [plan.photo for plan in plans[:60]] == [*range(50), *range(10)]
    beams = Counter(plan.beams for plan in plans)
    assert (beams[2] / 20_000, beams[4] / 20_000) == pytest.approx((0.05, 0.1), abs=0.01)
    cancelled = [plan for plan in plans if plan.cancel_seconds is not None]
    hurried = [plan for plan in plans if plan.timeout_seconds < 9.0]
    assert (len(cancelled) / 20_000, len(hurried) / 20_000) == pytest.approx((0.02, 0.03), abs=0.005)
    assert sum(plan.intended for plan in plans) == len(cancelled) + len(hurried)
