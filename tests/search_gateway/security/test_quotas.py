# SPDX-License-Identifier: Apache-2.0
"""What callers may use, on a clock of the test."""

from __future__ import annotations

from typing import Any

import pytest

from search_api import search_pb2
from search_gateway.errors import OverloadedError
from search_gateway.kserve.protocol import service_pb2
from search_gateway.security.quotas import CostWeights, Limits, Quotas

MAX_BEAMS, MAX_TOKENS = 8, 20
CAPTION = search_pb2.CaptionRequest(photo=b"x")  # costs 1


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(MAX_BEAMS, MAX_TOKENS, clock)


def num_admitted(quotas: Quotas, name: str, limits: Limits, request: Any = CAPTION, tries: int = 100) -> int:
    """How many calls, one after the other, are let in now."""
    for number in range(tries):
        try:
            with quotas.charged(name, limits, request):
                pass
        except OverloadedError:
            return number
    return tries


def model_infer(model: str = "caption", photos: int = 1, **parameters: int) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="IMAGE", datatype="BYTES", shape=[photos, 1])
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    return request


def decoding(**values: int) -> dict[str, Any]:
    return {"decoding": search_pb2.DecodingOptions(**values)}


@pytest.mark.parametrize(
    ("request_", "cost"),
    [
        (CAPTION, 1.0),
        (search_pb2.CaptionRequest(**decoding(max_tokens=10)), 0.75),
        (search_pb2.CaptionRequest(**decoding(num_beams=4)), 2.5),
        (search_pb2.CaptionRequest(**decoding(num_beams=4, max_tokens=5)), 1.0),
        (search_pb2.CaptionRequest(**decoding(num_beams=4_000_000_000)), 4.5),  # refused later
        (search_pb2.SearchRequest(), 2.0),
        (search_pb2.SearchRequest(query_override="red shirt"), 1.5),
        (model_infer(), 1.0),
        (model_infer(photos=32), 32.0),
        (model_infer(photos=2**40), 32.0),
        (model_infer(photos=4, num_beams=4), 10.0),
        (model_infer(colour=4), 1.0),  # unknown: refused later
        (model_infer("search"), 2.0),
        (service_pb2.ModelMetadataRequest(name="search"), 0.1),
    ],
)
def test_cost_grows_with_photos_beams_tokens_and_searches(quotas: Quotas, request_: Any, cost: float) -> None:
    assert quotas.cost(request_, CostWeights()) == pytest.approx(cost)


def test_weights_of_a_key_change_its_costs(quotas: Quotas) -> None:
    weights = CostWeights(photo=1, beam=2, search=5)
    request = search_pb2.SearchRequest(**decoding(num_beams=3))
    assert quotas.cost(request, weights) == 1 + 2 * 3 + 5


def test_rate_is_kept_in_the_long_run_and_a_burst_is_let_in(quotas: Quotas, clock: Clock) -> None:
    limits = Limits(rate=2.0, burst=5.0)
    assert num_admitted(quotas, "shop", limits) == 5
    clock.now += 1.5
    assert num_admitted(quotas, "shop", limits) == 3
    clock.now += 1000
    assert num_admitted(quotas, "shop", limits) == 5
    assert num_admitted(quotas, "other", limits) == 5


def test_large_request_is_let_in_and_paid_for_later(quotas: Quotas, clock: Clock) -> None:
    limits = Limits(rate=2.0)
    with quotas.charged("shop", limits, model_infer(photos=32)):
        pass
    with pytest.raises(OverloadedError) as caught:
        quotas.check("shop", limits)
    assert caught.value.retry_after_seconds == pytest.approx(15.0)
    clock.now += 15.4
    assert num_admitted(quotas, "shop", limits) == 0
    clock.now += 0.2
    assert num_admitted(quotas, "shop", limits) == 1
    # It waits until the bucket is full, not for what it can never hold.
    clock.now += 0.8
    assert num_admitted(quotas, "shop", limits, model_infer(photos=32), tries=1) == 0
    clock.now += 0.2
    assert num_admitted(quotas, "shop", limits, model_infer(photos=32), tries=1) == 1


def test_retry_info_is_when_the_next_call_is_let_in(quotas: Quotas, clock: Clock) -> None:
    limits = Limits(rate=0.5, burst=1.5)
    assert num_admitted(quotas, "shop", limits, tries=1) == 1
    with pytest.raises(OverloadedError, match="rate of 0.5 per second") as caught:
        quotas.check("shop", limits, 1.0)
    assert caught.value.retry_after_seconds == pytest.approx(1.0)
    clock.now += caught.value.retry_after_seconds + 0.001
    assert num_admitted(quotas, "shop", limits) == 1


def test_calls_of_a_flood_are_told_to_come_again_one_after_the_other(quotas: Quotas, clock: Clock) -> None:
    limits = Limits(rate=2.0, burst=1.0)
    assert num_admitted(quotas, "shop", limits, tries=1) == 1

    def pause() -> float:
        with pytest.raises(OverloadedError) as caught:
            quotas.check("shop", limits, 1.0)
        return caught.value.retry_after_seconds

    assert [pause() for _ in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert [pause() for _ in range(50)][-1] == pytest.approx(5.0), "gRPC's own retries wait no longer"
    clock.now += 100
    assert num_admitted(quotas, "shop", limits, tries=1) == 1
    assert pause() == pytest.approx(0.5), "the flood of earlier is forgotten"


def test_concurrency_counts_costs_and_one_call_may_always_run(quotas: Quotas) -> None:
    limits = Limits(concurrency=2.5)
    beams = search_pb2.CaptionRequest(**decoding(num_beams=8))  # costs 4.5
    with quotas.charged("shop", limits, CAPTION), quotas.charged("shop", limits, CAPTION):
        with pytest.raises(OverloadedError, match="work of 2 in progress, and its limit is 2.5"):
            quotas.charged("shop", limits, CAPTION).__enter__()
        with quotas.charged("other", limits, CAPTION):
            pass
    with quotas.charged("shop", limits, beams), pytest.raises(OverloadedError):
        quotas.check("shop", limits)
    quotas.check("shop", limits)


def test_refused_call_costs_nothing(quotas: Quotas, clock: Clock) -> None:
    limits = Limits(rate=1.0, concurrency=1.0)
    with quotas.charged("shop", limits, CAPTION):
        assert num_admitted(quotas, "shop", limits) == 0
        clock.now += 1.0
        with pytest.raises(OverloadedError, match="in progress"):
            quotas.check("shop", limits, 1.0)
    assert num_admitted(quotas, "shop", limits) == 1


def test_failed_call_ends_and_is_paid_for(quotas: Quotas) -> None:
    limits = Limits(rate=1.0, concurrency=1.0)
    with pytest.raises(ValueError, match="it failed"), quotas.charged("shop", limits, CAPTION):
        raise ValueError("it failed")
    with pytest.raises(OverloadedError, match="used up its rate"):
        quotas.check("shop", limits, 1.0)


def test_memory_is_bounded_and_calls_in_progress_are_not_forgotten(clock: Clock) -> None:
    quotas = Quotas(MAX_BEAMS, MAX_TOKENS, clock, max_callers=10)
    limits = Limits(rate=1.0, concurrency=1.0)
    with quotas.charged("busy", limits, CAPTION):
        for number in range(1000):
            assert num_admitted(quotas, f"caller {number}", limits) == 1
        assert len(quotas._uses) <= 11
        with pytest.raises(OverloadedError):
            quotas.check("busy", limits)
