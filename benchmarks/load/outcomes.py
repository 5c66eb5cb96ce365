# SPDX-License-Identifier: Apache-2.0
"""The outcomes of a load's requests, and their counts, percentiles and rates."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Literal

# ok: the expected caption. wrong: another caption. shed: refused because the server is full. cancelled: by the caller.
Kind = Literal["ok", "wrong", "shed", "deadline", "unavailable", "cancelled", "other"]
# The gRPC code of each; others are not told apart.
CODES: dict[Kind, str] = {
    "ok": "OK", "wrong": "OK", "shed": "RESOURCE_EXHAUSTED", "deadline": "DEADLINE_EXCEEDED",
    "unavailable": "UNAVAILABLE", "cancelled": "CANCELLED", "other": "other",
}  # fmt: skip
KINDS: tuple[Kind, ...] = ("ok", "wrong", "shed", "deadline", "unavailable", "cancelled", "other")
_MAX_DETAILS = 12  # number of different messages that are kept


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended."""

    kind: Kind  # what the answer was
    intended: bool = False  # whether the caller made the request fail, by cancellation or by a short deadline
    stages_ms: Mapping[str, float] = field(default_factory=dict)  # stage -> milliseconds, as the response says
    retry_seconds: float | None = None  # the pause that a refusal asks for, if any
    detail: str = ""  # what went wrong, in one line


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request; times are seconds of one clock, and `scheduled` is when the request was due."""

    scheduled: float
    sent: float
    done: float
    outcome: Outcome

    @property
    def seconds(self) -> float:
        """The latency from when the request was due, so that a late driver does not shorten it."""
        return self.done - self.scheduled


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One health check; `seconds` is the time from when it was due to its answer."""

    seconds: float
    is_serving: bool


@dataclass(frozen=True)
class LoadTurn:
    """What a driver saw; rates are those of the window from `begin` to `end`."""

    sent: int
    begin: float
    end: float
    samples: Sequence[Sample]
    health: Sequence[HealthCheck] = ()


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles of latencies in milliseconds."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency | None:
        """Compute the percentiles of latencies in seconds; None if there are no latencies."""
        values = sorted(1000 * value for value in seconds)
        if not values:
            return None
        return cls(
            count=len(values),
            p50=percentile(values, 50),
            p95=percentile(values, 95),
            p99=percentile(values, 99),
            max=values[-1],
        )


@dataclass(frozen=True, kw_only=True)
class LoadFigures:
    """The figures of a turn."""

    sent: int  # number of requests
    answered: int  # requests with an outcome
    lost: int  # requests without an outcome
    counts: dict[str, int]  # kind -> number of outcomes that were not intended to fail
    intended: dict[str, int]  # kind -> number of outcomes that were intended to fail
    throughput: float  # right answers per second
    goodput: float  # right answers per second within the deadline, counted from when the requests were due
    shed_rate: float  # refusals per second
    latency: Latency | None  # of right answers
    shed_latency: Latency | None  # of refusals
    sheds_with_retry: int  # number of refusals that say when to retry
    late_ms: float  # longest time from when a request was due to when the driver sent it
    stages_ms: dict[str, float]  # stage -> mean of the responses' timings
    health_latency: Latency | None  # of the health checks
    health_failures: int  # number of health checks that failed
    details: dict[str, int]  # what went wrong -> how often

    @property
    def codes(self) -> Counter[str]:
        """The number of answers by gRPC code."""
        codes: Counter[str] = Counter()
        for kind, code in CODES.items():
            codes[code] += self.counts.get(kind, 0) + self.intended.get(kind, 0)
        return +codes

    @property
    def wrong_words(self) -> int:
        """The number of answers with another caption than expected, whether or not they were intended to fail."""
        return self.counts["wrong"] + self.intended.get("wrong", 0)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the percentile by the nearest-rank method.

    Returns:
        The smallest value that at least `percent` % of the values do not exceed.
    """
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def figures_of(turn: LoadTurn, *, deadline_seconds: float = math.inf) -> LoadFigures:
    """Compute the figures of a turn: latencies of the requests due in the window, counts of all requests."""
    plain = [sample for sample in turn.samples if not sample.outcome.intended]
    in_window = [sample for sample in plain if turn.begin <= sample.scheduled <= turn.end]
    done = [sample for sample in plain if turn.begin <= sample.done <= turn.end]
    right = [sample for sample in done if sample.outcome.kind == "ok"]
    seconds = turn.end - turn.begin
    counts = Counter(sample.outcome.kind for sample in plain)
    details = Counter(sample.outcome.detail for sample in turn.samples if sample.outcome.detail)
    answered = [sample.outcome.stages_ms for sample in in_window if sample.outcome.stages_ms]
    stages = dict.fromkeys(stage for one in answered for stage in one)
    return LoadFigures(
        sent=turn.sent,
        answered=len(turn.samples),
        lost=turn.sent - len(turn.samples),
        counts={kind: counts[kind] for kind in KINDS},
        intended=dict(Counter(sample.outcome.kind for sample in turn.samples if sample.outcome.intended)),
        throughput=len(right) / seconds,
        goodput=sum(sample.seconds <= deadline_seconds for sample in right) / seconds,
        shed_rate=sum(sample.outcome.kind == "shed" for sample in done) / seconds,
        latency=Latency.of(sample.seconds for sample in in_window if sample.outcome.kind == "ok"),
        shed_latency=Latency.of(sample.seconds for sample in plain if sample.outcome.kind == "shed"),
        sheds_with_retry=sum(sample.outcome.retry_seconds is not None for sample in plain),
        late_ms=1000 * max((sample.sent - sample.scheduled for sample in turn.samples), default=0.0),
        stages_ms={stage: fmean(one.get(stage, 0.0) for one in answered) for stage in stages},
        health_latency=Latency.of(check.seconds for check in turn.health),
        health_failures=sum(not check.is_serving for check in turn.health),
        details=dict(details.most_common(_MAX_DETAILS)),
    )


def combined(rounds: Sequence[LoadFigures]) -> LoadFigures:
    """Combine the turns of several rounds: medians of rates and percentiles, sums of counts, maxima of maxima."""
    return LoadFigures(
        sent=sum(one.sent for one in rounds),
        answered=sum(one.answered for one in rounds),
        lost=sum(one.lost for one in rounds),
        counts=_sums(one.counts for one in rounds),
        intended=_sums(one.intended for one in rounds),
        throughput=median(one.throughput for one in rounds),
        goodput=median(one.goodput for one in rounds),
        shed_rate=median(one.shed_rate for one in rounds),
        latency=_combined_latency([one.latency for one in rounds]),
        shed_latency=_combined_latency([one.shed_latency for one in rounds]),
        sheds_with_retry=sum(one.sheds_with_retry for one in rounds),
        late_ms=max(one.late_ms for one in rounds),
        stages_ms=medians([one.stages_ms for one in rounds]),
        health_latency=_combined_latency([one.health_latency for one in rounds]),
        health_failures=sum(one.health_failures for one in rounds),
        details=dict(Counter(_sums(one.details for one in rounds)).most_common(_MAX_DETAILS)),
    )


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each name over the rounds that have it."""
    names = dict.fromkeys(name for one in rounds for name in one)
    return {name: median(one[name] for one in rounds if name in one) for name in names}


def stage_shares(stages_ms: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each stage in the total time; "other" is what no stage covers."""
    total = stages_ms.get("total", 0.0)
    if total <= 0:
        return {}
    shares = {stage: milliseconds / total for stage, milliseconds in stages_ms.items() if stage != "total"}
    return {**shares, "other": max(0.0, 1 - sum(shares.values()))}


def _sums(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def _combined_latency(rounds: Sequence[Latency | None]) -> Latency | None:
    told = [one for one in rounds if one is not None]
    if not told:
        return None
    values: dict[str, Any] = {
        each.name: median(getattr(one, each.name) for one in told) for each in dataclasses.fields(Latency)
    }
    return Latency(**{**values, "count": sum(one.count for one in told), "max": max(one.max for one in told)})
