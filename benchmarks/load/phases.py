# SPDX-License-Identifier: Apache-2.0
"""The phases of a load test, and what they cost the gateway's processes.

curve    closed loop with a growing number of callers
compare  32 callers in flight, the same callers one at a time, a plain loop on Triton, our models in-process
open     Poisson arrivals, from a tenth of the capacity to four times the capacity
soak     many mixed requests; none may be lost or get a wrong caption

In each round all compared systems take turns, because the speed of the machine changes over time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tqdm import tqdm

from benchmarks.common.gateway_process import GatewayProcess, RunningGateway
from benchmarks.common.gateway_statistics import BatchSizes, batch_sizes, mean_batch, since, total
from benchmarks.common.own_process import OwnProcess
from benchmarks.common.process_usage import cpu_seconds, cpu_seconds_by_part, peak_bytes, resident_bytes_by_part
from benchmarks.common.report import Record
from benchmarks.load.caller import Mixture
from benchmarks.load.outcomes import LoadFigures, combined, medians, stage_shares
from benchmarks.load.systems import InProcess, LoadDriver, PlainLoop

Phase = Literal["curve", "compare", "open", "soak"]
PHASES: tuple[Phase, ...] = ("curve", "compare", "open", "soak")

MANY = 32  # number of callers of comparisons and of the capacity, and size of the in-process batch
IN_FLIGHT, ONE_AT_A_TIME, PLAIN_LOOP = "in flight", "one at a time", "plain loop on Triton"
BATCHED, SINGLE = f"in-process, batch {MANY}", "in-process, batch 1"
_LEARNED_AT_ONCE = 20  # photos between two updates of the progress bar
_SOAK_BEAMS = {2: 0.05, 4: 0.05}
_SOAK_CANCELLED = 0.02
_SOAK_HURRIED = 0.02
_SOAK_PARTS = 20  # of the soak; memory is read after each
_TURN_LIMIT_SECONDS = 3600.0
_COMPLAINT = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Settings of a load test."""

    repository: Path  # folder of the models
    address: str = ""  # of a running gateway with these models; "": one is started
    rounds: int = 3  # of all phases but the soak
    callers: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)  # of the curve
    warm_seconds: float = 1.0  # least time before each window
    turn_seconds: float = 6.0  # window of the closed loop
    rates: tuple[float, ...] = (0.1, 0.3, 0.6, 0.8, 0.9, 1.0, 1.5, 2.0, 4.0)  # of the open loop, shares of the capacity
    open_seconds: float = 8.0  # window of the open loop
    deadline_seconds: float = 2.0  # of the open loop
    soak_requests: int = 30_000
    seed: int = 1  # of the arrivals and the mixture


@dataclass(frozen=True)
class TurnCost:
    """The cost of a turn with connecting and warming up: CPU seconds by part, and executions by batch size."""

    wall_seconds: float
    cpu_seconds: dict[str, float]
    batches: BatchSizes | None


Turns = dict[str, list[tuple[LoadFigures, TurnCost]]]  # by name, one for each round


class LoadTest:
    """A running gateway, its driver and the systems it is compared with; the phases are methods. Use it in a `with`.

    Attributes:
        oracle: how the captions of gateway and in-process models compare, each photo captioned alone.

    Raises:
        RuntimeError: the gateway does not start.
        OwnProcessError: another system does not start.
    """

    def __init__(self, settings: LoadSettings, photos: Sequence[bytes], *, compares: bool, progress: tqdm[Any]):
        self._settings, self._photos, self._progress = settings, photos, progress
        self._compares = compares
        self._answers: Counter[str] = Counter()  # of the gateway, by code
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            progress.set_description_str("starting")
            self._in_process = stack.enter_context(OwnProcess(InProcess, settings.repository, photos, {}))
            self._gateway = stack.enter_context(
                contextlib.closing(
                    RunningGateway(settings.address) if settings.address else GatewayProcess(settings.repository, {})
                )
            )
            self._driver = stack.enter_context(OwnProcess(LoadDriver, self._gateway.address, photos))
            with self._gateway.awake():
                self.oracle = self._learn()
            self._plain: OwnProcess | None = None
            if compares:
                self._plain = stack.enter_context(OwnProcess(PlainLoop, settings.repository, photos, self._words()))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def curve_and_compare(self, callers: Sequence[int]) -> tuple[list[Record], list[Record]]:
        """Run the closed loop.

        Returns:
            A record for each number of callers, and one for each compared system (none unless `compares`).
        """
        settings = self._settings
        times = settings.warm_seconds, settings.turn_seconds
        turns: Turns = defaultdict(list)

        def turn(name: str, ask: Callable[..., LoadFigures], *arguments: Any) -> None:
            self._turn(turns[name], name, ask, "closed", *arguments)

        for _ in range(settings.rounds):
            with self._gateway.awake():
                for many in callers:
                    turn(f"{many} callers", self._driver.ask, many, *times)
                if self._compares:
                    if MANY not in callers:
                        turn(IN_FLIGHT, self._driver.ask, MANY, *times)
                    turn(ONE_AT_A_TIME, self._driver.ask, MANY, *times, True)
            if self._plain is not None:
                turn(PLAIN_LOOP, self._plain.ask, MANY, *times)
                for name, batch in ((BATCHED, MANY), (SINGLE, 1)):
                    turn(name, self._in_process.ask, batch, *times)

        points = {name: _point(name, found) for name, found in turns.items()}
        curve = [{**points[f"{many} callers"], "callers": many} for many in callers]
        if not self._compares:
            return curve, []
        points.setdefault(IN_FLIGHT, {**points.get(f"{MANY} callers", {}), "name": IN_FLIGHT})
        return curve, [points[name] for name in (IN_FLIGHT, ONE_AT_A_TIME, PLAIN_LOOP, BATCHED, SINGLE)]

    def open(self, capacity: float) -> list[Record]:
        """Run the open loop; returns a record for each share of the capacity (requests per second)."""
        settings = self._settings
        turns: Turns = defaultdict(list)
        with self._gateway.awake():
            for number in range(settings.rounds):
                for place, share in enumerate(settings.rates):
                    self._turn(
                        turns[f"{share:.0%}"],
                        f"arrivals at {share:.0%} of {capacity:.0f}/s",
                        self._driver.ask,
                        "open",
                        *(share * capacity, settings.warm_seconds, settings.open_seconds, settings.deadline_seconds),
                        settings.seed + 1000 * number + place,
                    )
        return [
            {**_point(f"{share:.0%}", turns[f"{share:.0%}"]), "share": share, "offered": share * capacity}
            for share in settings.rates
        ]

    def soak(self) -> Record:
        """Run mixed requests of `MANY` callers; the record has the memory of each part of the server over time."""
        settings = self._settings
        mixture = Mixture(
            beams=_SOAK_BEAMS,
            cancelled=_SOAK_CANCELLED,
            hurried=_SOAK_HURRIED,
            timeout_seconds=30.0,
            seed=settings.seed,
        )
        turns: list[tuple[LoadFigures, TurnCost]] = []
        first = 0
        with self._gateway.awake():
            assert self._gateway.pid is not None, "the command line says so"
            memory = [{"requests": 0, **resident_bytes_by_part(self._gateway.pid)}]
            for part in range(_SOAK_PARTS):
                requests = settings.soak_requests * (part + 1) // _SOAK_PARTS - first
                if not requests:
                    continue
                self._turn(turns, "soak", self._driver.ask, "mixed", MANY, mixture, first, requests)
                first += requests
                memory.append({"requests": first, **resident_bytes_by_part(self._gateway.pid)})
        mixture_record = dataclasses.asdict(mixture) | {"beams": {str(k): v for k, v in _SOAK_BEAMS.items()}}
        return {**_point("soak", turns), "mixture": mixture_record, "resident_bytes": memory}

    def peak_memory(self) -> int | None:
        """Return the peak memory of the gateway and its descendants, in bytes; None where its process is elsewhere."""
        return None if self._gateway.pid is None else peak_bytes(self._gateway.pid)

    def counters(self) -> Record:
        """Return the gateway's calls of `Caption` by code, as the driver and as the gateway itself counted them."""
        with self._gateway.awake():
            handled = self._gateway.handled("Caption")
        return {"driver": dict(self._answers), "gateway": dict(handled)}

    def complaints(self) -> list[str]:
        """Return the warnings and errors in the gateway's log, see `complaints_in`."""
        return complaints_in(self._gateway.log)

    def turns(self, phases: Sequence[Phase], callers: Sequence[int]) -> int:
        """Return the number of turns of these phases, for the progress bar."""
        rounds = self._settings.rounds
        turns = rounds * len(callers)
        if self._compares:
            turns += rounds * (4 + (MANY not in callers))
        if "open" in phases:
            turns += rounds * len(self._settings.rates)
        return turns + (_SOAK_PARTS if "soak" in phases else 0)

    def learn_beams(self) -> None:
        """Learn the expected captions of beam search, which the soak needs."""
        with self._gateway.awake():
            for beams in _SOAK_BEAMS:
                self._learn_from_gateway(beams)

    def _learn(self) -> Record:
        """Learn the expected captions: those of the gateway, each photo alone. Returns the `oracle`."""
        self._greedy = self._learn_from_gateway(1)
        alone = self._in_parts("in-process words", functools.partial(self._in_process.ask, "captions"))
        self._in_process.ask("learn", self._words())
        differing = [photo for photo, words in enumerate(self._greedy) if alone[photo] != words]
        return {
            "photos": len(self._photos),
            "differ_from_in_process": len(differing),
            "examples": [{"gateway": self._greedy[photo], "in_process": alone[photo]} for photo in differing[:5]],
        }

    def _learn_from_gateway(self, beams: int) -> list[str]:
        return self._in_parts(f"words, {beams} beams", functools.partial(self._driver.ask, "learn", beams))

    def _in_parts(self, what: str, ask: Callable[[int, int], list[str]]) -> list[str]:
        """Ask for the captions of all photos, `_LEARNED_AT_ONCE` at a time, each part by first number and count."""
        captions: list[str] = []
        self._answers["OK"] += len(self._photos) if what.startswith("words") else 0
        for first in range(0, len(self._photos), _LEARNED_AT_ONCE):
            self._progress.set_description_str(f"{what} of photo {first}")
            captions += ask(first, min(_LEARNED_AT_ONCE, len(self._photos) - first))
        return captions

    def _words(self) -> dict[tuple[int, int], str]:
        return {(photo, 1): words for photo, words in enumerate(self._greedy)}

    def _turn(
        self,
        turns: list[tuple[LoadFigures, TurnCost]],
        what: str,
        ask: Callable[..., LoadFigures],
        method: str,
        *arguments: Any,
    ) -> None:
        """Run one turn in a participant's process, and append its figures and cost."""
        self._progress.set_description_str(what)
        sizes, before, started = self._batch_sizes(), self._cpu(), time.monotonic()
        figures = ask(method, *arguments, timeout_seconds=_TURN_LIMIT_SECONDS)
        if ask == self._driver.ask:
            self._answers += figures.codes
        seconds, after = time.monotonic() - started, self._cpu()
        spent = {part: round(after[part] - before.get(part, 0.0), 2) for part in after}
        turns.append((figures, TurnCost(seconds, spent, since(sizes, self._batch_sizes()))))
        self._progress.update()

    def _cpu(self) -> dict[str, float]:
        server = {} if self._gateway.pid is None else cpu_seconds_by_part(self._gateway.pid)
        return {**server, "driver": cpu_seconds(self._driver.pid)}

    def _batch_sizes(self) -> BatchSizes | None:
        """Return None while the gateway is paused: nothing is executed then."""
        return batch_sizes(self._gateway.address) if self._gateway.is_awake else None


def _point(name: str, turns: Sequence[tuple[LoadFigures, TurnCost]]) -> Record:
    """Combine the rounds of one turn into one record."""
    figures, costs = [one for one, _ in turns], [cost for _, cost in turns]
    one = combined(figures)
    counted = [cost.batches for cost in costs if cost.batches is not None]
    batches = total(counted) if len(counted) == len(costs) else None
    return {
        "name": name,
        **dataclasses.asdict(one),
        "wrong_words": one.wrong_words,
        "stage_shares": stage_shares(one.stages_ms),
        "throughput_rounds": [round(each.throughput, 2) for each in figures],
        "cores": medians([{part: cpu / cost.wall_seconds for part, cpu in cost.cpu_seconds.items()} for cost in costs]),
        "batches": None
        if batches is None
        else {size: dataclasses.asdict(count) for size, count in sorted(batches.items())},
        "mean_batch": mean_batch(batches),
    }


def complaints_in(log: str) -> list[str]:
    """Return the lines of a log that are warnings or errors, and the last line of each traceback."""
    complaints, is_trace = [], False
    for indented in log.splitlines():
        line = indented.removeprefix("  ")  # a traceback is indented
        if line.startswith("Traceback"):
            is_trace = True
        elif is_trace and line and not line.startswith(" "):
            is_trace = False
            complaints.append(line)
        elif _COMPLAINT.search(line):
            complaints.append(line)
    return complaints
