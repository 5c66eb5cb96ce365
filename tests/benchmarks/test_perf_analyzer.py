# SPDX-License-Identifier: Apache-2.0
"""What perf_analyzer is given and what is kept of it, with a script in its place."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import pytest

from benchmarks import perf_analyzer
from benchmarks.perf_analyzer import PerfAnalyzer, find_perf_analyzer, main

FAKE = """#!/usr/bin/env bash
# Fails for concurrency 8, as the real one does: with words and a code.
model= csv= inputs= concurrency=
while [[ $# -gt 0 ]]; do
  case $1 in
    -m) model=$2; shift ;;
    -f) csv=$2; shift ;;
    --input-data) inputs=$2; shift ;;
    --concurrency-range=*) concurrency=${1#*=} ;;
  esac
  shift
done
[[ $concurrency != 8 ]] || { echo "Failed to obtain stable measurement"; exit 2; }
cp "$inputs" "$(dirname "$csv")/seen.json"
echo "Concurrency: $concurrency, throughput: 12.5 infer/sec"
printf 'Concurrency,Inferences/Second\\n%s,12.5\\n' "$concurrency" > "$csv"
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.jpg", "a.JPG", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    return folder


def script(tmp_path: Path) -> Path:
    path = tmp_path / "perf_analyzer"
    path.write_text(FAKE, encoding="utf-8")
    path.chmod(0o700)
    return path


def test_reports_are_kept(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["--data", str(photos), "--address", "127.0.0.1:1", "--output", str(output)]
    arguments += ["--perf-analyzer", str(script(tmp_path)), "--caption", "1", "2", "8", "--search", "4"]
    assert main(arguments) == 1
    assert (output / "caption.csv").read_text(encoding="utf-8") == "Concurrency,Inferences/Second\n1,12.5\n2,12.5\n"
    assert (output / "search.csv").read_text(encoding="utf-8") == "Concurrency,Inferences/Second\n4,12.5\n"
    report = (output / "caption-2.txt").read_text(encoding="utf-8")
    assert "-m caption -u 127.0.0.1:1 -i grpc" in report
    assert "throughput: 12.5" in report
    captured = capsys.readouterr()
    assert "caption, concurrency 8: perf_analyzer ended with 2: Failed to obtain stable" in captured.err
    requests = json.loads((output / "seen.json").read_text(encoding="utf-8"))["data"]
    tensors = [base64.b64decode(request["IMAGE"]["content"]["b64"]) for request in requests]
    assert tensors == [struct.pack("<I", 5) + b"a.JPG", struct.pack("<I", 5) + b"b.jpg"]
    assert [request["IMAGE"]["shape"] for request in requests] == [[1], [1]]
    assert not (output / "inputs.json").exists()


def test_where_there_is_none_it_says_so(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(perf_analyzer, "SHARED", tmp_path / "missing")
    assert main(["--data", str(photos), "--output", str(tmp_path / "out")]) == 0
    assert "SKIPPED" in capsys.readouterr().out


def test_which_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        find_perf_analyzer(tmp_path / "missing")
    folder = tmp_path / "shared"
    folder.mkdir()
    shared = script(folder)
    monkeypatch.setattr(perf_analyzer, "SHARED", shared)
    monkeypatch.setenv("PATH", "")
    found = find_perf_analyzer(None)
    assert found == PerfAnalyzer(shared, "/host")
    assert found.path(Path("/a/b.json")) == "/host/a/b.json"
    assert find_perf_analyzer(shared) == found  # also where it is named
    mine = script(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin")
    assert find_perf_analyzer(None) == PerfAnalyzer(mine)


def test_folder_without_photos_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == 2
    assert "has no file that ends in .jpg" in capsys.readouterr().err
