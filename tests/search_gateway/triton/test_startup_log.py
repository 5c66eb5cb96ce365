# SPDX-License-Identifier: Apache-2.0
"""What is read from Triton's log; real logs of failed starts are in `test_embedded_triton`."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_gateway.triton.startup_log import read_from, reason_in

FAILED = (
    "E1204 10:00:00.000000 1 model_lifecycle.cc:654] \"failed to load 'double' version 1: Internal: "
    'TritonModelException: cannot load model.onnx:\\n  bad file.\\n\\nAt:\\n  model.py(40): initialize"\n'
)
UNREAD = (
    "E1204 10:00:00.000000 1 text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:16: no field x\n"
    "E1204 10:00:00.000000 1 model_repository_manager.cc:1460] \"Poll failed for model directory 'double': "
    'failed to read text proto from config.pbtxt"\n'
)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (FAILED, "could not load model 'double': cannot load model.onnx: bad file"),
        (
            UNREAD,
            "could not read model 'double': failed to read text proto from config.pbtxt (1:16: no field x)",
        ),
        (
            "I1204 all is well\nerror: creating server: no such folder.\n",
            "could not start: creating server: no such folder",
        ),
        (
            "tritonserver: error while loading shared libraries: libfoo.so: cannot open\n",
            "could not start: libfoo.so: cannot open",
        ),
        ("I1204 all is well\n", None),
        ("", None),
    ],
    ids=["failed", "unread", "error", "libraries", "well", "empty"],
)
def test_reason_is_one_sentence_for_a_person(log: str, reason: str | None) -> None:
    assert reason_in(log) == reason


def test_model_that_failed_counts_more_than_the_error_it_led_to() -> None:
    assert str(reason_in(FAILED + "error: creating server: Internal - failed to load all models\n")).startswith(
        "could not load model 'double'"
    )


def test_long_reason_is_cut() -> None:
    reason = reason_in("error: " + "word " * 200)
    assert reason is not None
    assert reason.endswith("…")
    assert len(reason) == len("could not start: ") + 300


def test_log_is_read_from_where_this_start_began(tmp_path: Path) -> None:
    log_file = tmp_path / "triton.log"
    log_file.write_bytes(b"of yesterday\nof today \xff\n")
    assert read_from(log_file, len(b"of yesterday\n")) == "of today \N{REPLACEMENT CHARACTER}\n"
