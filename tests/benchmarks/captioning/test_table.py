# SPDX-License-Identifier: Apache-2.0
"""The text of the tables, from a record made by hand; the plot of the same record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.captioning.table import captioning_table, number, speed_table


def system(name: str, kind: str, precision: str = "fp32", failure: str | None = None) -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "precision": precision, "device": "cpu",
        "is_peer": kind in ("generate", "optimum"), "peak_memory_bytes": 1_234_000_000, "failure": failure,
    }  # fmt: skip


def figure(name: str, speed: float, photos: int = 1, beams: int = 1, equal: int = 100) -> dict[str, Any]:
    seconds = {"median": photos / speed, "least": 0.1, "most": 9.0, "turns": [0.1, 1.0, 9.0]}
    return {
        "system": name, "photos": photos, "beams": beams, "waves": 1, "seconds": seconds,
        "captions_per_second": speed, "tokens_per_second": 10 * speed, "equal": equal, "compared": 100,
    }  # fmt: skip


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "size": "full", "tokens": 10, "repeats": 5, "parameters": 239_195_904,
        "commit": "abc1234", "measured": "2026-01-01T00:00:00+00:00", "machine": "a CPU, 2 cores, Python 3.11.7",
        "load_average": 0.04, "versions": {"torch": "2.13.0"},
        "limits": {"gemm": {"fp32": {"PyTorch": 2e11}}, "bandwidth": {"read": 3e10, "copy": 2e10}},
        "systems": [
            system("generate", "generate"),
            system("optimum", "optimum"),
            system("in-process int8", "in-process", "int8"),
            system("gRPC fp32", "gateway", failure="the gateway did not start: a | b"),
        ],
        "captioning": [
            figure("generate", 1.2), figure("optimum", 0.6), figure("in-process int8", 6.0, equal=99),
            figure("generate", 2.0, 8, 4), figure("in-process int8", 16.04, 8, 4, equal=98),
        ],
        "callers": [],
        "stages": [
            {
                "system": "in-process int8", "stage": "step", "photos": 8, "beams": 4, "position": 5,
                "seconds": {"median": 0.05, "least": 0.05, "most": 0.05, "turns": [0.05]}, "precision": "int8",
                "flops": 4_000_000_000, "bytes_read": 600_000_000, "least_seconds": 0.02, "bound": "memory",
                "share_of_limit": 0.4,
            },
            {
                "system": "in-process int8", "stage": "encoder", "photos": 8, "beams": 1, "position": 5,
                "seconds": {"median": 0.5, "least": 0.5, "most": 0.5, "turns": [0.5]}, "precision": "int8",
                "flops": 1000, "bytes_read": 1000, "least_seconds": None, "bound": None, "share_of_limit": None,
            },
        ],
    }  # fmt: skip


def test_whole_text(record: dict[str, Any]) -> None:
    assert (
        captioning_table(record)
        == """\
239 M parameters, exactly 10 tokens a caption, medians of 5 turns; in brackets: ratio to `generate`, ratio to optimum; \
equal: share of tokens (gRPC: words) that equal those of `generate` at the same place.

| captions per second | | 1 photo, greedy | 8 photos, 4 beams | equal | peak memory |
| --- | --- | ---: | ---: | ---: | ---: |
| Hugging Face `generate` | FP32 | 1.20 | 2.00 | – | 1,234 MB |
| optimum `ORTModelForVision2Seq` | FP32 | 0.60 (0.5×) | – | 100 % | 1,234 MB |
| ours, in-process | INT8 | 6.00 (5.0×, 10.0×) | 16.0 (8.0×) | 98.5 % | 1,234 MB |
| ours, gRPC → gateway → Triton | FP32 | the gateway did not start: a \\| b | | | |

| model alone | | photos × beams | ms | GFLOP/s | GB/s | least ms possible (bound by) | share |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| step | INT8 | 8 × 4 | 50.00 | 80.0 | 12.0 | 20.00 (memory) | 40 % |
| encoder | INT8 | 8 | 500.00 | 0.00 | 0.00 | – | – |

Best of this machine in the same run: FP32 200 GFLOP/s (PyTorch), read 30.0 GB/s, copy 20.0 GB/s.
Commit abc1234, 2026-01-01T00:00:00+00:00, a CPU, 2 cores, Python 3.11.7, load before the run 0.0; torch 2.13.0."""
    )


def test_many_callers_stand_beside_generate_one_by_one(record: dict[str, Any]) -> None:
    record |= {"size": "small", "callers": [figure("generate", 20.0), figure("in-process int8", 130.0, 32)]}
    text = captioning_table(record)
    assert "at most 10 tokens" in text
    assert "| Hugging Face `generate` | FP32 | 1 | 20.0 | 1.0× | – |" in text
    assert "| ours, in-process | INT8 | 32 | 130 | 6.5× | 100 % |" in text


def test_without_the_reference_there_are_no_ratios_to_it(record: dict[str, Any]) -> None:
    record["captioning"] = [one for one in record["captioning"] if one["system"] != "generate"]
    record["systems"][0]["failure"] = "out of memory"
    assert "| ours, in-process | INT8 | 6.00 (10.0×) | 16.0 |" in speed_table(record)


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1,234")])
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_plot_is_a_png_also_without_any_figure(record: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")
    from benchmarks.captioning.plot import plot_captioning

    plot_captioning(record, tmp_path / "a.png")
    record["captioning"], record["systems"] = [], []
    plot_captioning(record, tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
