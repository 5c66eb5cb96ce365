# SPDX-License-Identifier: Apache-2.0
"""Tests of the record: what it forgets, and what it must never remember."""

from __future__ import annotations

from pathlib import Path

from indexing.finished_blocks import FinishedBlocks


def known(file: Path, catalogue: str = "shop") -> set[str]:
    with FinishedBlocks(file, lambda: catalogue) as finished:
        return {name for name in ("a", "b", "ab", "") if name in finished}


def test_finished_blocks_are_known_to_the_next_run(tmp_path: Path) -> None:
    file = tmp_path / "record"
    with FinishedBlocks(file, lambda: "shop") as finished:
        finished.add("a")
        assert "a" in finished
    assert known(file) == {"a"}


def test_another_catalogue_or_model_has_finished_nothing(tmp_path: Path) -> None:
    file = tmp_path / "record"
    with FinishedBlocks(file, lambda: "shop") as finished:
        finished.add("a")
    assert known(file, "other shop") == set()
    assert known(file, "") == set()  # nothing was written, or all was deleted
    with FinishedBlocks(file, lambda: "other shop") as finished:
        finished.add("b")
    assert known(file, "other shop") == {"b"}
    assert known(file) == set()


def test_a_line_cut_short_by_a_kill_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "record"
    with FinishedBlocks(file, lambda: "shop") as finished:
        finished.add("a")
        finished.add("ab")
    file.write_bytes(file.read_bytes()[:-2])  # "a" of "ab"
    with FinishedBlocks(file, lambda: "shop") as finished:
        finished.add("b")
    assert known(file) == {"a", "b"}
    file.write_text("", encoding="utf-8")
    assert known(file) == set()
