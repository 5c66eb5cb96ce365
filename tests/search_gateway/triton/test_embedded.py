# SPDX-License-Identifier: Apache-2.0
"""Stopping the embedded Triton while another thread starts it; the real one is tested in tests/e2e."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search_gateway.triton import embedded
from search_gateway.triton.embedded import EmbeddedTriton, TritonStartError


def test_stop_while_it_is_launched_leaves_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []

    def launch(*_: Any) -> str:
        triton.stop()  # as another thread would now
        return "the launched one"

    def end(run: Any, *, is_graceful: bool) -> int:
        ended.append(run)
        return 0

    monkeypatch.setattr(embedded, "_check_model_repository", lambda _: None)
    monkeypatch.setattr(embedded, "find_installation", lambda: None)
    monkeypatch.setattr(embedded, "_launch", launch)
    monkeypatch.setattr(embedded, "_end", end)
    triton = EmbeddedTriton(tmp_path, log_file=tmp_path / "log")
    with pytest.raises(TritonStartError, match="stopped while it started"):
        triton.start()
    assert ended == ["the launched one"]
    assert not triton.is_running()
