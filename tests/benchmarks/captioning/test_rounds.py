# SPDX-License-Identifier: Apache-2.0
"""Turns, medians, comparison with the reference, and what becomes of the others when one fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from benchmarks.captioning import rounds
from benchmarks.captioning.rounds import Entrant, Seconds, count_tokens, equal_parts, race, race_stages
from benchmarks.captioning.systems import SystemSpec, Turn, Workload
from benchmarks.common.own_process import OwnProcessError


class Letters:
    """A tokenizer: 1 is "a", 2 is "b", ..."""

    def text(self, tokens: list[int]) -> str:
        return " ".join(chr(96 + token) for token in tokens)


class FakeProcess:
    """Takes a second longer with every turn, says the same always, and may fail."""

    def __init__(self, log: list[str], name: str, captions: Any, fails_at: int = 99):
        self.log, self.name, self.captions, self.fails_at = log, name, captions, fails_at
        self.asked = 0
        self.is_closed = False

    def ask(self, method: str, *arguments: object) -> object:
        self.log.append(self.name)
        self.asked += 1
        if self.asked > self.fails_at:
            raise OwnProcessError("out of memory")
        return Turn([float(self.asked)], self.captions) if method == "turn" else [float(self.asked), 99.0, 0.0]

    def close(self) -> None:
        self.is_closed = True


def entrant(process: FakeProcess) -> Entrant:
    return Entrant(SystemSpec(name=process.name, kind="generate", source=Path()), process)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PAUSE_SECONDS", 0)


def test_one_that_fails_leaves_and_the_others_go_on() -> None:
    log: list[str] = []
    reference = FakeProcess(log, "generate", [[1, 2], [3]])
    ours = FakeProcess(log, "ours", ["a b", "d"])
    broken = FakeProcess(log, "broken", [[1, 2], [3]], fails_at=2)
    entrants = [entrant(reference), entrant(ours), entrant(broken), Entrant(entrant(ours).spec, failure="no models")]
    workload = Workload(2, 1, 10)
    with tqdm(disable=True) as progress:
        figures = race([(one, workload) for one in entrants], 3, "generate", Letters(), progress)  # type: ignore[arg-type]
    assert [figure.system for figure in figures] == ["generate", "ours"]
    assert entrants[2].failure == "out of memory"
    assert broken.is_closed
    # The warm-up takes 1 s, the turns 2, 3 and 4.
    assert figures[0].seconds == Seconds(median=3.0, least=2.0, most=4.0, turns=[2.0, 3.0, 4.0])
    assert figures[0].captions_per_second == pytest.approx(2 / 3)
    assert figures[0].tokens_per_second == figures[1].tokens_per_second == 1.0
    assert (figures[0].equal, figures[0].compared) == (9, 9)
    assert (figures[1].equal, figures[1].compared) == (6, 9)
    assert log == [*("generate", "ours", "broken") * 2, "ours", "broken", "generate", "generate", "ours"]


def test_without_reference_nothing_is_compared() -> None:
    process = FakeProcess([], "ours", ["a"])
    with tqdm(disable=True) as progress:
        (figure,) = race([(entrant(process), Workload(1, 1, 10))], 1, "generate", Letters(), progress)  # type: ignore[arg-type]
    assert (figure.compared, figure.tokens_per_second) == (0, None)


def test_stage_takes_the_median_of_each_turn() -> None:
    process = FakeProcess([], "ours", [])
    with tqdm(disable=True) as progress:
        (figure,) = race_stages([entrant(process)], "step", 8, 4, 5, 3, progress)
    assert figure.seconds.turns == [2.0, 3.0, 4.0]
    assert (figure.stage, figure.photos, figure.beams, figure.position) == ("step", 8, 4, 5)


def test_tokens_are_compared_place_by_place() -> None:
    letters: Any = Letters()
    assert equal_parts([[1, 2, 3]], [[1, 9, 3, 4]], letters) == (2, 4)
    assert equal_parts(["a c"], [[1, 2]], letters) == (1, 2)
    assert equal_parts(["a b"], ["a b"], letters) == (2, 2)
    assert count_tokens(["a c"], [[1, 2, 3]]) == 3
    assert count_tokens(["a c"], None) is None
