# SPDX-License-Identifier: Apache-2.0
"""A gateway for a benchmark: why it does not start, and that nothing of it is left. Asleep: test_captioning_systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.common.gateway_process import GatewayProcess
from benchmarks.common.process_usage import process_tree


def test_gateway_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTRIEVE_PROVIDERS", "of another gateway")
    before = process_tree(os.getpid())
    with pytest.raises(RuntimeError, match=r"the gateway did not start: captrieve: .*model_contract\.json is missing"):
        GatewayProcess(tmp_path)
    assert set(process_tree(os.getpid())) <= set(before)
