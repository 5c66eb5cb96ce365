# SPDX-License-Identifier: Apache-2.0
"""All metrics of the gateway, in Prometheus's text format. The only module that imports prometheus_client.

What happens is counted by the methods of `Observer`; what is the case (queues, slots, states) is read from a `Snapshot`
at each scrape. Every gateway has a registry of its own. All label sets are bounded: they come from the code, the
settings and the methods of our services.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from search_gateway.observability.observer import ModelCounts, Observer, Snapshot

CONTENT_TYPE = CONTENT_TYPE_LATEST
disable_created_metrics()  # type: ignore[no-untyped-call]  # half of the series, which nobody needs

# A greedy caption takes some 20 ms on an idle machine, a full queue some seconds.
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 3.5, 5.0, 10.0)
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

STAGES = ("preprocess", "queue", "encode", "prefill", "decode", "query", "search", "thumbnails", "refine")
MODELS = ("vit_encoder", "gpt2_prefill", "gpt2_step")
TRITON_OUTCOMES = ("ok", "overloaded", "deadline", "failed", "cancelled")
PROVIDER_OUTCOMES = ("found", "empty", "stale", "not_asked", "timeout", "failed", "broke")
BREAKER_STATES = ("closed", "open", "half-open")
_CALL_LABELS = ("grpc_service", "grpc_method")


class GatewayMetrics(Observer):
    """The metrics of one gateway.

    Args:
        version: of this program.
        model: name of the model it serves.
        methods: full names (/package.Service/Method) of those that are exported before their first call.
    """

    def __init__(self, version: str, model: str, methods: Iterable[str] = ()):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Gauge("captrieve_build_info", "Version and model; always 1", ("version", "model"), registry=registry)
        build.labels(version, model).set(1)
        self._started = Counter("grpc_server_started", "Calls that have begun", _CALL_LABELS, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "Calls that have ended", (*_CALL_LABELS, "grpc_code"), registry=registry
        )
        self._handling = Histogram(
            "grpc_server_handling_seconds",
            "Duration of calls",
            (*_CALL_LABELS, "grpc_code"),
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._stages = self._seconds("captrieve_stage_seconds", "Duration of the stages of requests", "stage")
        self._encoder_batch = Histogram(
            "captrieve_encoder_batch_photos",
            "Photos in a call of the encoder",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self._step_batch = Histogram(
            "captrieve_step_batch_captions", "Captions in a call of the step", buckets=_BATCH_BUCKETS, registry=registry
        )
        self._step_seconds = self._seconds("captrieve_step_seconds", "Duration of a call of the step")
        self._triton = self._seconds(
            "captrieve_triton_call_seconds", "Duration of the calls of Triton's models", "model", "outcome"
        )
        self._restarts = self._counter("captrieve_triton_restarts", "Restarts of the embedded Triton", "replica")
        self._providers = self._counter(
            "captrieve_provider_answers", "Searches at providers by outcome", "provider", "outcome"
        )
        self._provider_seconds = self._seconds(
            "captrieve_provider_seconds", "Duration of the searches at providers", "provider"
        )
        self._thumbnails = self._counter("captrieve_thumbnails", "Candidates by verdict", "verdict")
        self._degraded = self._counter("captrieve_degraded", "Answers of which a part is missing or degraded", "part")
        self._refusals = self._counter("captrieve_refusals", "Requests refused with RESOURCE_EXHAUSTED", "reason")
        # Kept for each label set, of which there are few: `labels` would search for the series at each event.
        self._call_started = functools.cache(lambda method: self._started.labels(*_call_labels(method)))
        self._call_ended = functools.cache(self._series_of_end)
        self._stage = functools.cache(self._stages.labels)
        self._triton_call = functools.cache(self._triton.labels)
        # The first event of a series that did not exist before is invisible to rate().
        for method in methods:
            self._started.labels(*_call_labels(method))
            for code in ("OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "CANCELLED"):
                self._handled.labels(*_call_labels(method), code)
            self._handling.labels(*_call_labels(method), "OK")
        for stage in STAGES:
            self._stages.labels(stage)
        for model in MODELS:
            for outcome in TRITON_OUTCOMES:
                self._triton.labels(model, outcome)
        for part in ("thumbnails", "inference"):
            self._degraded.labels(part)

    def preset(self, *, providers: Iterable[str], replicas: Iterable[str], verdicts: Iterable[str]) -> None:
        """Export series of these names before their first event."""
        for provider in providers:
            self._degraded.labels(provider)
            self._provider_seconds.labels(provider)
            for outcome in PROVIDER_OUTCOMES:
                self._providers.labels(provider, outcome)
        for replica in replicas:
            self._restarts.labels(replica)
        for verdict in verdicts:
            self._thumbnails.labels(verdict)
        for reason in ("requests", "queue", "deadline", "triton", "quota"):
            self._refusals.labels(reason)

    def watch(self, snapshot: Callable[[], Snapshot]) -> None:
        """Export what this function returns, at each scrape."""
        self._registry.register(_Now(snapshot))

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    # Observer

    def call_started(self, method: str) -> None:  # noqa: D102
        self._call_started(method).inc()

    def call_ended(self, method: str, code: str, seconds: float) -> None:  # noqa: D102
        handled, handling = self._call_ended(method, code)
        handled.inc()
        handling.observe(seconds)

    def stage_ended(self, stage: str, seconds: float) -> None:  # noqa: D102
        self._stage(stage).observe(seconds)

    def photos_encoded(self, num_photos: int) -> None:  # noqa: D102
        self._encoder_batch.observe(num_photos)

    def step_ended(self, num_captions: int, seconds: float) -> None:  # noqa: D102
        self._step_batch.observe(num_captions)
        self._step_seconds.observe(seconds)

    def triton_called(self, model: str, outcome: str, seconds: float) -> None:  # noqa: D102
        self._triton_call(model, outcome).observe(seconds)

    def triton_restarted(self, replica: str) -> None:  # noqa: D102
        self._restarts.labels(replica).inc()

    def provider_answered(self, provider: str, outcome: str) -> None:  # noqa: D102
        self._providers.labels(provider, outcome).inc()

    def provider_took(self, provider: str, seconds: float) -> None:  # noqa: D102
        self._provider_seconds.labels(provider).observe(seconds)

    def results_judged(self, verdicts: Mapping[str, int]) -> None:  # noqa: D102
        for verdict, count in verdicts.items():
            self._thumbnails.labels(verdict).inc(count)

    def degraded(self, part: str) -> None:  # noqa: D102
        self._degraded.labels(part).inc()

    def refused(self, reason: str) -> None:  # noqa: D102
        self._refusals.labels(reason).inc()

    def _series_of_end(self, method: str, code: str) -> tuple[Counter, Histogram]:
        labels = (*_call_labels(method), code)
        return self._handled.labels(*labels), self._handling.labels(*labels)

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=SECONDS_BUCKETS, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)


def _call_labels(method: str) -> tuple[str, str]:
    service, _, name = method.removeprefix("/").rpartition("/")
    return service, name


class _Now(Collector):
    """Turns a `Snapshot` into metrics."""

    def __init__(self, snapshot: Callable[[], Snapshot]):
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Name the metrics without a snapshot, which does not exist yet when this is registered."""
        return self._families(Snapshot())

    def collect(self) -> Iterable[Metric]:
        """Make the metrics of the present snapshot."""
        return self._families(self._snapshot())

    def _families(self, now: Snapshot) -> Iterator[Metric]:
        captions = {str(beams): batch for beams, batch in now.batches.items() if beams}
        yield _gauge("captrieve_ready", "1 while the gateway takes requests", {"": now.is_ready})
        for name, text, attribute in (
            ("captrieve_captions_running", "Captions that are decoded", "running"),
            ("captrieve_captions_waiting", "Photos that wait to be captioned", "waiting"),
            ("captrieve_kv_slots", "KV slots of the running batch", "slots"),
            ("captrieve_kv_slots_in_use", "KV slots that are taken or reserved", "slots_in_use"),
        ):
            yield _gauge(name, text, {beams: getattr(one, attribute) for beams, one in captions.items()}, "beams")
        waiting = now.batches[0].waiting if 0 in now.batches else 0
        yield _gauge("captrieve_embeddings_waiting", "Photos that wait only to be embedded", {"": waiting})
        yield _gauge("captrieve_triton_replica_up", "1 while this Triton can be used", now.replicas, "replica")
        workers = now.workers
        yield _gauge(
            "captrieve_photo_workers", "Processes that decode", {k: v.workers for k, v in workers.items()}, "pool"
        )
        yield _gauge(
            "captrieve_photo_workers_busy", "Those that decode now", {k: v.busy for k, v in workers.items()}, "pool"
        )
        yield _counter(
            "captrieve_photo_workers_killed",
            "Processes that ended and were replaced",
            {name: one.killed for name, one in workers.items()},
            "pool",
        )
        cache = now.cache
        for name, text, count in (
            ("hits", "Searches answered from the cache", cache.hits),
            ("misses", "Searches that were not", cache.misses),
            ("shared_calls", "Misses that shared another search's call", cache.shared),
            ("stale_answers", "Misses answered with an old answer, since the provider failed", cache.stale),
        ):
            yield _counter(f"captrieve_query_cache_{name}", text, {"": count})
        yield _gauge("captrieve_query_cache_bytes", "Estimated memory of the cached answers", {"": cache.num_bytes})
        breaker = GaugeMetricFamily(
            "captrieve_provider_breaker_state", "1 for the state of the circuit breaker", labels=("provider", "state")
        )
        for provider, state in now.breakers.items():
            for one in BREAKER_STATES:
                breaker.add_metric((provider, one), one == state)
        yield breaker
        for name, text, numbers in (
            ("spent", "Calls in this month of a provider with a budget", {k: v[0] for k, v in now.budgets.items()}),
            ("budget", "Calls per month that its budget permits", {k: v[1] for k, v in now.budgets.items()}),
        ):
            yield _gauge(f"captrieve_provider_{name}_calls", text, numbers, "provider")
        yield _gauge("captrieve_provider_call_cost_dollars", "Declared cost of a call", now.costs, "provider")
        quota = GaugeMetricFamily(
            "captrieve_provider_quota_calls",
            "Calls that the provider's last answer said are left, by the seconds of the window",
            labels=("provider", "window"),
        )
        for provider, windows in now.quotas.items():
            for window, remaining in windows.items():
                quota.add_metric((provider, window), remaining)
        yield quota


def _gauge(name: str, text: str, values: Mapping[str, float], label: str = "") -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=(label,) if label else ()), values, label)


def _counter(name: str, text: str, values: Mapping[str, float], label: str = "") -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=(label,) if label else ()), values, label)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float], label: str) -> Metric:
    for value, number in values.items():
        family.add_metric((value,) if label else (), number)
    return family


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]):
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """Return the given metrics."""
        return self._families


def triton_text(statistics: Mapping[str, Sequence[ModelCounts]]) -> bytes:
    """Return Triton's statistics with the names of its own metrics, in Prometheus's text format.

    Args:
        statistics: name of each Triton -> its models.
    """
    registry = CollectorRegistry()
    registry.register(_Fixed(_triton_families(statistics)))
    return generate_latest(registry)


def _triton_families(statistics: Mapping[str, Sequence[ModelCounts]]) -> Iterator[Metric]:
    def family(name: str, text: str, value: Callable[[ModelCounts], float]) -> Metric:
        # Of no type, since the names of Triton's counters do not end in _total.
        metric = Metric(f"nv_inference_{name}", text, "unknown")
        for replica, models in statistics.items():
            for one in models:
                metric.add_sample(
                    f"nv_inference_{name}",
                    {"replica": replica, "model": one.model, "version": one.version},
                    value(one),
                )
        return metric

    yield family("request_success", "Successful requests", lambda one: one.success[0])
    yield family("request_failure", "Failed requests", lambda one: one.fail[0])
    yield family("count", "Photos or captions computed", lambda one: one.photos)
    yield family("exec_count", "Executions of the model", lambda one: one.executions)
    yield family("request_duration_us", "Duration of requests", lambda one: one.success[1] / 1000)
    yield family("queue_duration_us", "Time in Triton's queue", lambda one: one.queue[1] / 1000)
    yield family("compute_input_duration_us", "Preparing inputs", lambda one: one.compute_input[1] / 1000)
    yield family("compute_infer_duration_us", "Computing", lambda one: one.compute_infer[1] / 1000)
    yield family("compute_output_duration_us", "Preparing outputs", lambda one: one.compute_output[1] / 1000)
