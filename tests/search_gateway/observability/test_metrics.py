# SPDX-License-Identifier: Apache-2.0
"""Metrics: names with units, bounded labels, and the numbers that were counted."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from search_gateway.observability.metrics import SECONDS_BUCKETS, STAGES, GatewayMetrics, triton_text
from search_gateway.observability.observer import BatchState, CacheState, ModelCounts, Snapshot, WorkerState

NOW = Snapshot(
    batches={1: BatchState(running=3, waiting=2, slots=32, slots_in_use=4), 0: BatchState(waiting=7)},
    replicas={"embedded": True, "other:8001": False},
    workers={"photos": WorkerState(workers=2, busy=1, killed=5)},
    cache=CacheState(hits=1, misses=2, shared=3, stale=4, num_bytes=5),
    breakers={"duckduckgo": "open"},
    is_ready=True,
)


def values(text: bytes) -> dict[tuple[str, ...], float]:
    """Sample name and label values -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def full() -> GatewayMetrics:
    metrics = GatewayMetrics("1.2", "small", ["/a.B/Caption"])
    metrics.preset(providers=["web"], replicas=["embedded"], verdicts=["kept"])
    metrics.watch(lambda: NOW)
    return metrics


def test_states_are_read_at_each_scrape() -> None:
    found = values(full().text())
    assert found["captrieve_captions_running", "1"] == 3
    assert found["captrieve_captions_waiting", "1"] == 2
    assert found["captrieve_embeddings_waiting",] == 7
    assert found["captrieve_kv_slots", "1"] == 32
    assert found["captrieve_kv_slots_in_use", "1"] == 4
    assert found["captrieve_triton_replica_up", "embedded"] == 1
    assert found["captrieve_triton_replica_up", "other:8001"] == 0
    assert found["captrieve_photo_workers_busy", "photos"] == 1
    assert found["captrieve_photo_workers_killed_total", "photos"] == 5
    assert found["captrieve_query_cache_stale_answers_total",] == 4
    assert found["captrieve_query_cache_bytes",] == 5
    assert found["captrieve_provider_breaker_state", "duckduckgo", "open"] == 1
    assert found["captrieve_provider_breaker_state", "duckduckgo", "closed"] == 0
    assert found["captrieve_ready",] == 1


def test_events_are_counted() -> None:
    metrics = full()
    metrics.stage_ended("encode", 0.02)
    metrics.photos_encoded(8)
    metrics.step_ended(3, 0.01)
    metrics.triton_called("gpt2_step", "ok", 0.01)
    metrics.triton_restarted("embedded")
    metrics.provider_answered("web", "stale")
    metrics.results_judged({"kept": 3})
    metrics.degraded("web")
    metrics.refused("queue")
    found = values(metrics.text())
    for expected in (
        ("captrieve_stage_seconds_count", "encode"),
        ("captrieve_encoder_batch_photos_count",),
        ("captrieve_step_batch_captions_count",),
        ("captrieve_step_seconds_count",),
        ("captrieve_triton_call_seconds_count", "gpt2_step", "ok"),
        ("captrieve_triton_restarts_total", "embedded"),
        ("captrieve_provider_answers_total", "stale", "web"),
        ("captrieve_degraded_total", "web"),
        ("captrieve_refusals_total", "queue"),
    ):
        assert found[expected] == 1, expected
    assert found["captrieve_encoder_batch_photos_sum",] == 8
    assert found["captrieve_thumbnails_total", "kept"] == 3


def test_series_exist_before_their_first_event() -> None:
    found = values(full().text())
    assert [found["captrieve_stage_seconds_count", stage] for stage in STAGES] == len(STAGES) * [0]
    assert found["grpc_server_handled_total", "INTERNAL", "Caption", "a.B"] == 0
    assert found["captrieve_build_info", "small", "1.2"] == 1


def test_buckets_resolve_five_milliseconds_to_five_seconds() -> None:
    assert {0.005, 5.0} <= set(SECONDS_BUCKETS)
    between = [bucket for bucket in SECONDS_BUCKETS if 0.005 <= bucket <= 5]
    assert all(after / before <= 2 for before, after in zip(between, between[1:], strict=False))


def test_names_have_units() -> None:
    of_no_unit = {"captrieve_build_info", "captrieve_ready", "captrieve_triton_replica_up"}
    unit = re.compile(
        r"_(seconds|bytes|total|photos|captions|fds|running|waiting|slots|slots_in_use|workers|workers_busy|state|calls|dollars)$"
    )
    for family in text_string_to_metric_families(full().text().decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name in of_no_unit or unit.search(name), name


def test_two_gateways_of_one_process_do_not_mix() -> None:
    one, other = full(), full()
    one.refused("queue")
    assert values(one.text())["captrieve_refusals_total", "queue"] == 1
    assert values(other.text())["captrieve_refusals_total", "queue"] == 0


def test_statistics_of_triton_have_its_own_names() -> None:
    counts = ModelCounts(
        model="gpt2_step", version="1", photos=9, executions=3, success=(4, 5_000), fail=(1, 0), queue=(4, 6_000),
        compute_input=(3, 1_000), compute_infer=(3, 2_000), compute_output=(3, 3_000),
    )  # fmt: skip
    found = values(triton_text({"embedded": [counts]}))
    assert found["nv_inference_request_success", "gpt2_step", "embedded", "1"] == 4
    assert found["nv_inference_count", "gpt2_step", "embedded", "1"] == 9
    assert found["nv_inference_queue_duration_us", "gpt2_step", "embedded", "1"] == 6
