# SPDX-License-Identifier: Apache-2.0
"""The file of answers: what is written is read, whole lines only, and nothing else passes for an answer."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.query import Query
from search_gateway.providers import recorded_answers
from search_gateway.providers.base import Candidate
from search_gateway.providers.recorded_answers import RecordingError, answer_of, append_line, line_of, load_answers

SHIRT = Candidate(
    title="Blue Shirt",
    url="https://shop.example/1",
    thumbnail_url="https://tse1.mm.bing.net/1",
    source="Bing",
    image_url="https://shop.example/1.jpg",
    width=600,
    height=800,
    thumbnail=b"\xff\xd8 a picture",
)
LINE = line_of(("blue", "shirt"), [SHIRT])


def changed(**fields: Any) -> bytes:
    row = {**json.loads(LINE)["candidates"][0], **fields}
    return json.dumps({"words": ["blue", "shirt"], "candidates": [row]}).encode() + b"\n"


@given(
    query=st.text(min_size=1).filter(lambda text: Query.of(text).key),
    titles=st.lists(st.text(max_size=50), max_size=5),
    thumbnail=st.none() | st.binary(max_size=100),
)
def test_what_is_written_is_read(query: str, titles: list[str], thumbnail: bytes | None) -> None:
    candidates = [
        Candidate(title=title, url="https://x", thumbnail_url="", source="", thumbnail=thumbnail) for title in titles
    ]
    line = line_of(Query.of(query).key, candidates)
    assert line.count(b"\n") == 1
    assert answer_of(line) == (Query.of(query).key, tuple(candidates))


def test_lines_are_added_and_the_later_answer_counts(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    append_line(path, LINE)
    append_line(path, line_of(("red", "shoe"), []))
    append_line(path, line_of(("blue", "shirt"), [SHIRT, SHIRT]))
    assert load_answers(path) == {("blue", "shirt"): (SHIRT, SHIRT), ("red", "shoe"): ()}


def test_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    append_line(path, LINE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_file_does_not_grow_over_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    append_line(path, LINE, 2 * len(LINE))
    append_line(path, LINE, 2 * len(LINE))
    with pytest.raises(RecordingError, match="must not have more than"):
        append_line(path, LINE, 2 * len(LINE))
    assert path.read_bytes() == LINE * 2
    with pytest.raises(RecordingError, match="the limit is"):
        load_answers(path, 2 * len(LINE) - 1)


@pytest.mark.parametrize("rest", [b'{"words": ["re', b"x" * 200_000])
def test_line_that_a_crash_cut_off_is_not_read_and_goes_with_the_next_one(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    for whole in (b"", LINE):
        path.write_bytes(whole + rest)
        assert len(load_answers(path)) == bool(whole)
        append_line(path, LINE)
        assert path.read_bytes() == whole + LINE


def test_disk_that_takes_half_a_line_has_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    append_line(path, LINE)
    write = os.write
    monkeypatch.setattr(recorded_answers.os, "write", lambda file, data: write(file, data[: len(data) // 2]))
    with pytest.raises(OSError, match="could be written"):
        append_line(path, LINE)
    assert path.read_bytes() == LINE


def _append_many(path: Path, number: int) -> None:
    line = line_of((f"word{number}",), [SHIRT] * 50)
    for _ in range(50):
        append_line(path, line)


def test_several_processes_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_many, args=(path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert path.read_bytes().count(b"\n") == 150
    assert load_answers(path) == {(f"word{number}",): (SHIRT,) * 50 for number in range(3)}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\n", "not JSON"),
        (b"{\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"7\n", "not an object"),
        (b"{}\n", "`words`"),
        (b'{"words": "blue shirt", "candidates": []}\n', "`words`"),
        (b'{"words": [], "candidates": []}\n', "`words`"),
        (b'{"words": [7], "candidates": []}\n', "`words`"),
        (b'{"words": [" "], "candidates": []}\n', "no word"),
        (b'{"words": ["blue"]}\n', "`candidates`"),
        (b'{"words": ["blue"], "candidates": [7]}\n', "candidate is not an object"),
        (changed(title=7), "`title`"),
        (changed(title="x" * 1001), "`title`"),
        (changed(url=None), "`url`"),
        (changed(thumbnail_url="x" * 5000), "`thumbnail_url`"),
        (changed(width=-1), "`width`"),
        (changed(width=True), "`width`"),
        (changed(height=1.5), "`height`"),
        (changed(height=10**9), "`height`"),
        (changed(thumbnail="not base64!"), "`thumbnail`"),
        (changed(thumbnail=7), "`thumbnail`"),
        (changed(thumbnail="A" * (4 * 2**20)), "`thumbnail`"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else value,
)
def test_what_is_no_answer_is_refused_with_its_line(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(LINE + line)
    with pytest.raises(RecordingError, match="line 2: ") as caught:
        load_answers(path)
    assert words in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(RecordingError, match="cannot be read"):
            load_answers(path)
