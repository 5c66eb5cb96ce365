# SPDX-License-Identifier: Apache-2.0
"""Counting a load: percentiles, windows, and what is counted apart."""

from __future__ import annotations

import pytest

from benchmarks.load.outcomes import (  # fmt: skip
    HealthCheck,
    Kind,
    Latency,
    LoadTurn,
    Outcome,
    Sample,
    combined,
    figures_of,
    percentile,
    stage_shares,
)


def sample(scheduled: float, seconds: float, kind: Kind = "ok", **outcome: object) -> Sample:
    return Sample(scheduled, scheduled, scheduled + seconds, Outcome(kind, **outcome))  # type: ignore[arg-type]


def test_percentiles_are_values_that_occurred() -> None:
    hundred = [float(value) for value in range(1, 101)]
    assert [percentile(hundred, q) for q in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert [percentile([3.0, 8.0], q) for q in (0, 50, 51, 99)] == [3, 3, 8, 8]
    assert Latency.of([0.004, 0.001, 0.002]) == Latency(count=3, p50=2, p95=4, p99=4, max=4)
    assert Latency.of([]) is None


def test_rates_are_of_the_window_and_counts_of_all() -> None:
    samples = [
        sample(0.0, 0.5),  # done before the window
        sample(0.9, 0.3),  # done in it
        sample(2.0, 1.0),
        sample(2.5, 2.5),  # right, but past the deadline
        sample(3.0, 0.01, "shed", retry_seconds=1.0),
        sample(3.0, 0.02, "shed"),
        sample(10.5, 1.0),  # done after it
    ]
    health = [HealthCheck(0.003, True), HealthCheck(0.150, False)]
    figures = figures_of(LoadTurn(8, 1.0, 11.0, samples, health), deadline_seconds=2.0)
    assert (figures.sent, figures.answered, figures.lost) == (8, 7, 1)
    assert figures.counts["ok"] == 5
    assert figures.throughput == pytest.approx(3 / 10)
    assert figures.goodput == pytest.approx(2 / 10)
    assert figures.shed_rate == pytest.approx(2 / 10)
    assert figures.latency is not None
    assert (figures.latency.count, figures.latency.max) == (3, pytest.approx(2500))
    assert figures.shed_latency is not None
    assert (figures.shed_latency.p99, figures.sheds_with_retry) == (pytest.approx(20), 1)
    assert figures.health_latency is not None
    assert (figures.health_latency.max, figures.health_failures) == (150, 1)


def test_wrong_words_are_no_right_answers() -> None:
    samples = [sample(0.0, 1.0), sample(0.0, 1.0, "wrong", detail="photo 3: 'Shoe', alone 'Shirt'")]
    figures = figures_of(LoadTurn(2, 0.0, 2.0, samples))
    assert (figures.wrong_words, figures.throughput) == (1, 0.5)
    assert figures.details == {"photo 3: 'Shoe', alone 'Shirt'": 1}


def test_what_was_meant_to_fail_is_counted_apart_but_its_words_are_checked() -> None:
    samples = [
        sample(0.0, 1.0),
        sample(0.0, 0.1, "cancelled", intended=True),
        sample(0.0, 0.1, "deadline", intended=True),
        sample(0.0, 0.2, "deadline", intended=True),
        sample(0.0, 9.0, "wrong", intended=True),
        sample(0.0, 1.5, "deadline"),
    ]
    figures = figures_of(LoadTurn(7, 0.0, 10.0, samples))
    assert figures.intended == {"cancelled": 1, "deadline": 2, "wrong": 1}
    assert (figures.counts["deadline"], figures.counts["cancelled"], figures.counts["ok"]) == (1, 0, 1)
    assert (figures.lost, figures.wrong_words) == (1, 1)
    assert figures.latency is not None
    assert figures.latency.max == 1000


def test_rounds_become_one() -> None:
    rounds = [figures_of(LoadTurn(count + 1, 0.0, 1.0, [sample(0.0, 0.1 * count)] * count)) for count in (1, 2, 6)]
    one = combined(rounds)
    assert (one.sent, one.answered, one.lost, one.counts["ok"]) == (12, 9, 3, 9)
    assert one.throughput == 2
    assert one.latency is not None
    assert (one.latency.count, one.latency.p50, one.latency.max) == (9, pytest.approx(200), pytest.approx(600))
    assert one.shed_latency is None


def test_stages_are_means_and_shares_of_the_total() -> None:
    samples = [
        sample(0.0, 1.0, stages_ms={"encode": 10.0, "decode": 60.0, "total": 100.0}),
        sample(0.0, 1.0, stages_ms={"encode": 30.0, "decode": 60.0, "total": 100.0}),
    ]
    stages = figures_of(LoadTurn(2, 0.0, 2.0, samples)).stages_ms
    assert stages == {"encode": 20.0, "decode": 60.0, "total": 100.0}
    assert stage_shares(stages) == pytest.approx({"encode": 0.2, "decode": 0.6, "other": 0.2})
    assert stage_shares({}) == {}
