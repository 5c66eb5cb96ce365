# SPDX-License-Identifier: Apache-2.0
"""Lets systems take turns with the same photos; a figure is the median of a system's turns.

While one system works the others are idle, and what slows the machine for minutes affects all of them alike. A system
that fails leaves with its reason, and the others continue.
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

PAUSE_SECONDS = 0.1  # threads keep spinning for some milliseconds after the last call


@dataclass
class Entrant:
    """A system that takes part, or the reason why it does not."""

    spec: SystemSpec  # the system
    process: OwnProcess | None = None  # its process; None if it does not take part (any more)
    failure: str | None = None  # the reason, if it failed
    peak_memory: int | None = None  # in bytes, if it is known

    def ask(self, method: str, *arguments: object) -> object | None:
        """Call a method of the system; returns None if it has failed."""
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
        """End the system's process."""
        if self.process is not None:
            self.process.close()
            self.process = None


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Seconds of one batch: the median, minimum and maximum of the turns' medians."""

    median: float
    least: float
    most: float
    turns: list[float]

    @classmethod
    def of(cls, turns: Sequence[Sequence[float]]) -> Seconds:
        """Summarise the seconds of each call of each turn."""
        medians = [statistics.median(seconds) for seconds in turns]
        return cls(median=statistics.median(medians), least=min(medians), most=max(medians), turns=medians)


@dataclass(frozen=True, kw_only=True)
class CaptioningFigure:
    """The speed of one system with one workload."""

    system: str  # its name
    photos: int  # photos at a time
    beams: int  # of each caption
    waves: int  # see `Workload`
    seconds: Seconds  # of a batch
    captions_per_second: float  # of the median batch
    tokens_per_second: float | None  # without EOS; None if neither system nor reference returns tokens
    equal: int  # number of tokens that equal the reference's (words, if the system returns text)
    compared: int  # number of tokens (words) that were compared; 0 without a reference


@dataclass(frozen=True, kw_only=True)
class StageFigure:
    """The speed of one of our models alone."""

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
    """Start all systems but those in `failures` (name -> reason), one after the other."""
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
    """Measure systems in rounds, after one to warm up; each round another system begins.

    The captions of all systems are compared with those of the system `reference`.

    Returns:
        The figures of all systems that did not fail; all have captioned the same photos.
    """
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
    # A system that failed has no figure, because its turns would not be those of the others.
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
    """Measure one model of each system alone, in rounds as `race`."""
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
    """Compare captions with the expected ones, token by token (word by word for text).

    Returns:
        The number of equal tokens at the same places, and the number of tokens compared.
    """
    equal = compared = 0
    for got, wanted in zip(captions, expected, strict=True):
        left: Sequence[object] = got.split() if isinstance(got, str) else got
        right: Sequence[object] = _text(wanted, tokenizer).split() if isinstance(got, str) else wanted
        equal += sum(one == other for one, other in zip(left, right, strict=False))
        compared += max(len(left), len(right))
    return equal, compared


def count_tokens(captions: Sequence[Caption], expected: Sequence[Caption] | None) -> int | None:
    """Count the tokens of all captions; for text, those of the expected captions of the same photos."""
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
    """Rotate the order, so that each comes first equally often: the one before changes the caches."""
    start = max(0, number) % len(entries) if entries else 0
    return [*entries[start:], *entries[:start]]


def _describe(progress: tqdm[Any], entrant: Entrant, photos: int, beams: int, what: str = "") -> None:
    progress.set_description(f"{entrant.spec.name}{what}, photos {photos}, beams {beams}")
