# SPDX-License-Identifier: Apache-2.0
"""Systems take turns on the same photos: one is busy, the others sleep; a figure is the median of a system's turns.

What warms or slows the machine over minutes so meets all alike. A system that fails leaves, with its reason; the
others go on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tqdm import tqdm

from benchmarks.captioning.models import Photos
from benchmarks.captioning.systems import Caption, MeasuredSystem, Stage, SystemSpec, Turn, Workload
from benchmarks.common.own_process import OwnProcess, OwnProcessError
from captioner.caption_tokenizer import CaptionTokenizer

_T = TypeVar("_T")

PAUSE_SECONDS = 0.1  # thread pools spin for some milliseconds after the last call before they sleep


@dataclass
class Entrant:
    """A system in the race, or why it is not in it (any more)."""

    spec: SystemSpec
    process: OwnProcess | None = None
    failure: str | None = None
    peak_memory: int | None = None  # bytes

    def ask(self, method: str, *arguments: object) -> object | None:
        """The system's answer; None once it has failed."""
        if self.process is None:
            return None
        try:
            answer: object = self.process.ask(method, *arguments)
        except OwnProcessError as error:
            self.failure = str(error)
            self.close()
            return None
        return answer

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of one batch: the median of the turns' medians, the least and the most of them."""

    median: float
    least: float
    most: float
    turns: list[float]

    @classmethod
    def of(cls, turns: Sequence[Sequence[float]]) -> Seconds:
        medians = [statistics.median(seconds) for seconds in turns]
        return cls(median=statistics.median(medians), least=min(medians), most=max(medians), turns=medians)


@dataclass(frozen=True, kw_only=True)
class CaptioningFigure:
    """One system, one workload."""

    system: str
    photos: int
    beams: int
    waves: int
    seconds: Seconds
    captions_per_second: float
    tokens_per_second: float | None  # EOS not counted; None where neither system nor reference tells tokens
    equal: int  # tokens (words, where the system gives text) as the reference says them
    compared: int  # of so many; 0: there was nothing to compare with


@dataclass(frozen=True, kw_only=True)
class StageFigure:
    """One model of ours alone."""

    system: str
    stage: Stage
    photos: int
    beams: int
    position: int
    seconds: Seconds


@dataclass
class _Turns:
    seconds: list[list[float]] = field(default_factory=list)
    tokens: list[int | None] = field(default_factory=list)
    equal: int = 0
    compared: int = 0


def enter(specs: Sequence[SystemSpec], photos: Photos, failures: dict[str, str], progress: tqdm[Any]) -> list[Entrant]:
    """Start every system, one after the other; `failures` are those whose models could not be made."""
    entrants = []
    for spec in specs:
        entrant = Entrant(spec, failure=failures.get(spec.name))
        if entrant.failure is None:
            progress.set_description(f"start {spec.name}")
            try:
                entrant.process = OwnProcess(MeasuredSystem, spec, photos)
            except OwnProcessError as error:
                entrant.failure = str(error)
        entrants.append(entrant)
        progress.update()
    return entrants


def race(
    entries: Sequence[tuple[Entrant, Workload]],
    repeats: int,
    reference: str,
    tokenizer: CaptionTokenizer,
    progress: tqdm[Any],
) -> list[CaptioningFigure]:
    """A round to warm up, then `repeats` rounds, each begun by another system. All caption the same photos."""
    results = {entrant.spec.name: _Turns() for entrant, _ in entries}
    for number in range(-1, repeats):
        turns = {}
        for entrant, workload in _in_turn(entries, number):
            _describe(progress, entrant, workload.photos, workload.beams)
            turn = entrant.ask("turn", workload, max(0, number) * workload.captions)
            if isinstance(turn, Turn):
                turns[entrant.spec.name] = turn
                time.sleep(PAUSE_SECONDS)
            progress.update()
        if number < 0:
            continue
        expected = turns[reference].captions if reference in turns else None
        for name, turn in turns.items():
            result = results[name]
            result.seconds.append(turn.seconds)
            result.tokens.append(count_tokens(turn.captions, expected))
            equal, compared = (0, 0) if expected is None else equal_parts(turn.captions, expected, tokenizer)
            result.equal += equal
            result.compared += compared
    # A system that failed midway has no figure: its turns would be others than those it is compared with.
    return [
        _figure(entrant.spec.name, workload, results[entrant.spec.name])
        for entrant, workload in entries
        if entrant.failure is None
    ]


def race_stages(
    entrants: Sequence[Entrant],
    stage: Stage,
    photos: int,
    beams: int,
    position: int,
    repeats: int,
    progress: tqdm[Any],
) -> list[StageFigure]:
    """One model of each of the systems given, alone, in rounds as `race`."""
    results: dict[str, list[list[float]]] = {entrant.spec.name: [] for entrant in entrants}
    for number in range(-1, repeats):
        for entrant in _in_turn(entrants, number):
            _describe(progress, entrant, photos, beams, f" {stage}")
            seconds = entrant.ask("stage_turn", stage, photos, beams, position)
            if isinstance(seconds, list):
                time.sleep(PAUSE_SECONDS)
                if number >= 0:
                    results[entrant.spec.name].append(seconds)
            progress.update()
    return [
        StageFigure(
            system=entrant.spec.name, stage=stage, photos=photos, beams=beams, position=position,
            seconds=Seconds.of(results[entrant.spec.name]),
        )
        for entrant in entrants
        if entrant.failure is None
    ]  # fmt: skip


def equal_parts(
    captions: Sequence[Caption], expected: Sequence[Caption], tokenizer: CaptionTokenizer
) -> tuple[int, int]:
    """How many tokens are the expected ones at the same place, and of how many; of text, words."""
    equal = compared = 0
    for got, wanted in zip(captions, expected, strict=True):
        left: Sequence[object] = got.split() if isinstance(got, str) else got
        right: Sequence[object] = _text(wanted, tokenizer).split() if isinstance(got, str) else wanted
        equal += sum(one == other for one, other in zip(left, right, strict=False))
        compared += max(len(left), len(right))
    return equal, compared


def count_tokens(captions: Sequence[Caption], expected: Sequence[Caption] | None) -> int | None:
    """Tokens of all captions; of text, those of the reference's captions of the same photos."""
    for source in (captions, expected):
        if source and not isinstance(source[0], str):
            return sum(map(len, source))
    return None


def _text(caption: Caption, tokenizer: CaptionTokenizer) -> str:
    return caption if isinstance(caption, str) else tokenizer.text(caption)


def _figure(name: str, workload: Workload, turns: _Turns) -> CaptioningFigure:
    seconds = Seconds.of(turns.seconds)
    tokens = [count for count in turns.tokens if count is not None]
    return CaptioningFigure(
        system=name,
        photos=workload.photos,
        beams=workload.beams,
        waves=workload.waves,
        seconds=seconds,
        captions_per_second=workload.captions / seconds.median,
        tokens_per_second=statistics.mean(tokens) / seconds.median if tokens else None,
        equal=turns.equal,
        compared=turns.compared,
    )


def _in_turn(entries: Sequence[_T], number: int) -> list[_T]:
    """Each comes first equally often: what runs before warms or chills the caches."""
    start = max(0, number) % len(entries) if entries else 0
    return [*entries[start:], *entries[:start]]


def _describe(progress: tqdm[Any], entrant: Entrant, photos: int, beams: int, what: str = "") -> None:
    progress.set_description(f"{entrant.spec.name}{what}, photos {photos}, beams {beams}")
