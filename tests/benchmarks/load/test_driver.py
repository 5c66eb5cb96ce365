# SPDX-License-Identifier: Apache-2.0
"""Load by the clock, against servers made by hand and in virtual time: nothing a server does may move the schedule."""

from __future__ import annotations

import asyncio
from statistics import fmean

import pytest

from benchmarks.load.driver import closed_loop, one_at_a_time, open_loop, poisson_arrivals, watched_health
from benchmarks.load.outcomes import LoadTurn, Outcome, figures_of
from tests.fakes.virtual_time import run_virtually

OK = Outcome("ok")


class Server:
    """Answers after `seconds`; while it stalls, not before the stall ends."""

    def __init__(self, seconds: float, stall: tuple[float, float] = (0.0, 0.0)):
        self.seconds, self.stall = seconds, stall
        self.received: list[tuple[int, float]] = []
        self.inside = self.most_inside = 0

    async def call(self, number: int) -> Outcome:
        now = asyncio.get_running_loop().time()
        self.received.append((number, now))
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        begin, end = self.stall
        await asyncio.sleep(self.seconds + (end - now if begin <= now < end else 0.0))
        self.inside -= 1
        return OK


def test_arrivals_do_not_wait_for_a_server_that_stalls() -> None:
    server = Server(0.5, stall=(2.0, 6.0))
    turn = run_virtually(open_loop(server.call, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], seconds=10.0))
    assert server.received == [(number, pytest.approx(number)) for number in range(7)]
    seconds = {round(sample.scheduled): sample.seconds for sample in turn.samples}
    assert seconds == pytest.approx({0: 0.5, 1: 0.5, 2: 4.5, 3: 3.5, 4: 2.5, 5: 1.5, 6: 0.5})


def test_latency_counts_from_when_a_request_was_due_even_if_the_driver_was_late() -> None:
    async def run() -> LoadTurn:
        loop = asyncio.get_running_loop()

        async def call(number: int) -> Outcome:
            if number == 0:
                loop._clock.now += 3.0  # type: ignore[attr-defined]  # the driver's own thread is held up
            await asyncio.sleep(0.25)
            return OK

        return await open_loop(call, [0.0, 1.0, 2.0], seconds=10.0)

    turn = run_virtually(run())
    assert sorted(sample.seconds for sample in turn.samples) == pytest.approx([1.25, 2.25, 3.25])
    assert figures_of(turn).late_ms == pytest.approx(2000.0)


def test_poisson_arrivals_are_those_of_their_seed() -> None:
    arrivals = poisson_arrivals(50.0, 200.0, seed=3)
    assert arrivals == poisson_arrivals(50.0, 200.0, seed=3)
    assert arrivals != poisson_arrivals(50.0, 200.0, seed=4)
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] < 200.0
    gaps = [later - earlier for earlier, later in zip(arrivals, arrivals[1:], strict=False)]
    assert fmean(gaps) == pytest.approx(1 / 50, rel=0.05)
    # Of an exponential distribution 1/e is longer than the mean; evenly spaced arrivals would have about half.
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def test_callers_wait_for_their_answer_and_keep_the_order_of_photos() -> None:
    server = Server(0.5)
    turn = run_virtually(closed_loop(server.call, callers=3, warm_seconds=1.0, seconds=10.0, first=100))
    assert server.most_inside == 3
    assert [number for number, _ in server.received] == list(range(100, 100 + turn.sent))
    assert (turn.begin, turn.end) == pytest.approx((1.0, 11.0))
    assert figures_of(turn).throughput == pytest.approx(6.0, rel=0.06)  # 3 callers, 2 answers a second each
    assert figures_of(turn).latency.p50 == pytest.approx(500.0)  # type: ignore[union-attr]


def test_window_begins_when_every_caller_has_had_an_answer() -> None:
    server = Server(4.0)
    turn = run_virtually(closed_loop(one_at_a_time(server.call), callers=3, warm_seconds=1.0, seconds=12.0))
    assert server.most_inside == 1
    assert turn.begin == pytest.approx(12.0)
    # Latency is the caller's: it waits for two others before its own turn.
    assert figures_of(turn).latency.p50 == pytest.approx(12_000.0)  # type: ignore[union-attr]


def test_closed_loop_of_so_many_requests_ends_with_the_last_answer() -> None:
    turn = run_virtually(closed_loop(Server(0.5).call, callers=4, requests=10, give_up_seconds=5.0))
    assert (turn.sent, len(turn.samples)) == (10, 10)
    assert turn.end == pytest.approx(1.5)


@pytest.mark.parametrize("is_open", [True, False])
def test_request_that_is_never_answered_is_lost(is_open: bool) -> None:
    async def call(number: int) -> Outcome:
        if number == 2:
            await asyncio.Event().wait()
        await asyncio.sleep(0.1)
        return OK

    if is_open:
        turn = run_virtually(open_loop(call, [0.0, 1.0, 2.0, 3.0], seconds=4.0, give_up_seconds=7.0))
    else:
        turn = run_virtually(closed_loop(call, callers=1, requests=4, give_up_seconds=7.0))
    figures = figures_of(turn)
    assert (figures.sent, figures.answered, figures.lost) == (4, 3, 1)


def test_refused_caller_comes_back_when_it_was_told_to() -> None:
    times: list[float] = []

    async def call(number: int) -> Outcome:
        times.append(asyncio.get_running_loop().time())
        return (Outcome("shed", retry_seconds=0.7), Outcome("shed"), Outcome("shed", retry_seconds=9.0), OK)[number]

    run_virtually(closed_loop(call, callers=1, requests=4))
    assert times == pytest.approx([0.0, 0.7, 0.8, 1.8])  # at most a second, or it would sit out the turn


def test_mistake_in_a_call_ends_the_turn() -> None:
    async def call(number: int) -> Outcome:
        raise ValueError("mine")

    with pytest.raises(ExceptionGroup):
        run_virtually(closed_loop(call, callers=2, requests=4))


def test_health_is_asked_by_the_clock_whatever_the_answers_do() -> None:
    async def run() -> list[tuple[float, bool]]:
        asked: list[float] = []

        async def check() -> bool:
            asked.append(asyncio.get_running_loop().time())
            await asyncio.sleep(3.0 if len(asked) == 2 else 0.01)
            return len(asked) != 4

        async with watched_health(check, interval_seconds=0.5) as checks:
            await asyncio.sleep(1.9)
        assert asked == pytest.approx([0.0, 0.5, 1.0, 1.5])
        return sorted((round(check.seconds, 6), check.is_serving) for check in checks)

    # The fourth found it not serving; the second, answered last, sees the same count of four.
    assert run_virtually(run()) == [(0.01, False), (0.01, True), (0.01, True), (3.0, False)]
