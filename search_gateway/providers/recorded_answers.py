# SPDX-License-Identifier: Apache-2.0
"""A file of image search answers as JSON lines, written by `recording` and read by `replay`.

    {"words": ["red", "handbag"], "candidates": [{"title": ..., "url": ..., "thumbnail": <base64>, ...}, ...]}

A line is appended completely or not at all. Of two lines with the same words the later one counts. All calls block.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioner.query import Query
from search_gateway.providers.base import Candidate

MAX_FILE_BYTES = 256 * 2**20

_TEXTS = {"title": 1000, "url": 4096, "thumbnail_url": 4096, "source": 1000, "image_url": 4096}  # most characters
_TEXTS |= {"licence": 1000, "licence_url": 4096, "attribution": 4096}
_NUMBERS = {"width": 10**6, "height": 10**6}  # most pixels
_MAX_CANDIDATES = 1000
_MAX_THUMBNAIL_BYTES = 2 * 2**20
_MAX_WORDS = 1000


class RecordingError(Exception):
    """The file cannot be used. The message is for the operator, not for callers."""


def line_of(words: Sequence[str], candidates: Sequence[Candidate]) -> bytes:
    """Return the line of an answer, without the embeddings, which belong to one model."""
    rows = []
    for candidate in candidates:
        row: dict[str, Any] = {name: getattr(candidate, name) for name in (*_TEXTS, *_NUMBERS)}
        if candidate.thumbnail is not None:
            row["thumbnail"] = base64.b64encode(candidate.thumbnail).decode("ascii")
        rows.append(row)
    # Escaped to ASCII, so that no surrogate and no line separator can break the file.
    return json.dumps({"words": list(words), "candidates": rows}).encode("ascii") + b"\n"


def append_line(path: Path, line: bytes, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Append one line. Several processes may do so. A line that a crash cut off before is removed.

    Args:
        path: created if it does not exist.
        line: with its line end.
        max_file_bytes: maximum size of the file.

    Raises:
        RecordingError: the file would become larger than `max_file_bytes`.
        OSError: it cannot be written; its content has not changed.
    """
    # Readable by its owner only, since queries describe private photos.
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = _end_of_last_line(file)
        if size + len(line) > max_file_bytes:
            raise RecordingError(f"the recording has {size} bytes and must not have more than {max_file_bytes}")
        os.ftruncate(file, size)
        try:
            written = os.write(file, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes could be written")
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def load_answers(path: Path, max_file_bytes: int = MAX_FILE_BYTES) -> dict[tuple[str, ...], tuple[Candidate, ...]]:
    """Read the file; returns its answers by the words of their queries, `Query.key`.

    Raises:
        RecordingError: there is no such file, it is too large, or a line is not an answer; the message names the line.
    """
    answers: dict[tuple[str, ...], tuple[Candidate, ...]] = {}
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_file_bytes:
                raise RecordingError(f"it has {size} bytes; the limit is {max_file_bytes}")
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # it was cut off while it was written
                try:
                    words, candidates = answer_of(line)
                except RecordingError as error:
                    raise RecordingError(f"line {number}: {error}") from error
                answers[words] = candidates
    except OSError as error:
        raise RecordingError(f"it cannot be read: {error.strerror}") from error
    return answers


def answer_of(line: bytes) -> tuple[tuple[str, ...], tuple[Candidate, ...]]:
    """Read one line and check every type and size; returns `Query.key` and the candidates.

    Raises:
        RecordingError: the line is not an answer.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise RecordingError("it is not JSON") from None
    if not isinstance(value, dict):
        raise RecordingError("it is not an object")
    words, rows = value.get("words"), value.get("candidates")
    if not isinstance(words, list) or not 0 < len(words) <= _MAX_WORDS or not all(isinstance(w, str) for w in words):
        raise RecordingError(f"`words` must be a list of 1 to {_MAX_WORDS} texts")
    if not isinstance(rows, list) or len(rows) > _MAX_CANDIDATES:
        raise RecordingError(f"`candidates` must be a list of at most {_MAX_CANDIDATES}")
    key = Query.of(" ".join(words)).key
    if not key:
        raise RecordingError("`words` has no word")
    return key, tuple(_candidate(row) for row in rows)


def _candidate(row: object) -> Candidate:
    if not isinstance(row, dict):
        raise RecordingError("a candidate is not an object")
    fields: dict[str, Any] = {}
    for name, most in _TEXTS.items():
        value = row.get(name, "")
        if not isinstance(value, str) or len(value) > most:
            raise RecordingError(f"`{name}` must be a text of at most {most} characters")
        fields[name] = value
    for name, most in _NUMBERS.items():
        value = row.get(name, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise RecordingError(f"`{name}` must be a whole number from 0 to {most}")
        fields[name] = value
    thumbnail = row.get("thumbnail")
    if thumbnail is not None:
        try:
            fields["thumbnail"] = base64.b64decode(thumbnail, validate=True)
        except (TypeError, ValueError):
            raise RecordingError("`thumbnail` must be base64") from None
        if len(fields["thumbnail"]) > _MAX_THUMBNAIL_BYTES:
            raise RecordingError(f"`thumbnail` must have at most {_MAX_THUMBNAIL_BYTES} bytes")
    return Candidate(**fields)


def _end_of_last_line(file: int) -> int:
    """Return the offset of the end of the last complete line."""
    end = os.fstat(file).st_size
    while end:
        begin = max(0, end - 65536)
        newline = os.pread(file, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
