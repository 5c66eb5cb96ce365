# SPDX-License-Identifier: Apache-2.0
"""What do metrics and access log cost? `python -m benchmarks.observability --data FOLDER [--rounds N]`.

Starts three gateways with an embedded Triton each: one with its defaults, and two without admin port and with warnings
only in their log. In each round they take turns, in changing order, at captioning photos for as many callers; the
others are paused meanwhile. The metrics are scraped once in each turn, several times as often as Prometheus would. The
rounds are paired: each gateway is compared with the first bare one in the same round, and the second bare one says how
much of a difference is chance. Also compares the counters of the observed one with those of the driver.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.common.free_port import free_port
from benchmarks.common.gateway_process import PATIENT, GatewayProcess
from benchmarks.common.own_process import OwnProcess
from benchmarks.common.photo_files import read_photos
from benchmarks.common.process_usage import cpu_seconds_by_part
from benchmarks.common.provenance import provenance
from benchmarks.common.report import Record, add_output_options, make_parser, publish
from benchmarks.load.systems import LoadDriver

_WITH, _BARE, _AGAIN = "with metrics and access log", "without", "without, a second one"
_MEASURES = (
    ("rates", "captions per second"),
    ("gateway_ms", "processor time of the gateway's process per caption, ms"),
    ("all_ms", "processor time of all processes per caption, ms"),
)


def measure(repository: Path, photos: Sequence[bytes], callers: int, seconds: float, rounds: int) -> Record:
    """Let the gateways take turns; returns the measures of each turn by gateway, and the counts."""
    found: dict[str, dict[str, list[float]]] = {
        measure: {name: [] for name in (_WITH, _BARE, _AGAIN)} for measure, _ in _MEASURES
    }
    answers: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        gateways = {
            name: stack.enter_context(contextlib.closing(GatewayProcess(repository, PATIENT | settings)))
            for name, settings in ((_WITH, {}), (_BARE, _bare_settings()), (_AGAIN, _bare_settings()))
        }
        drivers = {
            name: stack.enter_context(OwnProcess(LoadDriver, gateway.address, photos))
            for name, gateway in gateways.items()
        }
        names = list(gateways)
        for number in tqdm(range(rounds)):
            for name in names if number % 2 else names[::-1]:
                gateway = gateways[name]
                with gateway.awake(), _scraped(gateway, seconds):
                    before = cpu_seconds_by_part(gateway.pid)
                    figures = drivers[name].ask("closed", callers, 1.0, seconds)
                    after = cpu_seconds_by_part(gateway.pid)
                used = {part: 1000 * (after[part] - before[part]) / figures.codes.total() for part in after}
                found["rates"][name].append(figures.throughput)
                found["gateway_ms"][name].append(used["gateway"])
                found["all_ms"][name].append(sum(used.values()))
                if name == _WITH:
                    answers += figures.codes
            names = [*names[1:], names[0]]
        with gateways[_WITH].awake():
            counted = gateways[_WITH].handled("Caption")
    return {**found, "counters": {"driver": dict(answers), "gateway": dict(counted)}}


def _bare_settings() -> dict[str, str]:
    address = f"127.0.0.1:{free_port()}"  # its log does not say which port it took
    return {"CAPTRIEVE_LISTEN_ADDRESS": address, "CAPTRIEVE_ADMIN_ADDRESS": "", "CAPTRIEVE_LOG_LEVEL": "warning"}


@contextlib.contextmanager
def _scraped(gateway: GatewayProcess, seconds: float) -> Iterator[None]:
    """Read the metrics once within the block."""
    timer = threading.Timer(seconds / 2, gateway.handled, ("Caption",))
    timer.start()
    try:
        yield
    finally:
        timer.join()


def difference(
    values: Sequence[float], others: Sequence[float], whole: Sequence[float] | None = None
) -> tuple[float, float, float]:
    """Return the median of the paired differences as shares, and its 95 % interval by resampling the pairs.

    Args:
        values: of one gateway, by round.
        others: of the one it is compared with.
        whole: what the differences are shares of; `others` if None.
    """
    ratios = (np.array(values) - np.array(others)) / np.array(others if whole is None else whole)
    samples = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(samples, axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def table(record: Record) -> str:
    """Return the text of a record."""
    lines = [f"{record['commit']}, {record['machine']}, load {record['load_average']:.1f}"]
    for measure, text in _MEASURES:
        turns = record[measure]
        lines.append(f"{text}, median of {len(turns[_BARE])} turns; beside the first bare gateway (95 % interval)")
        for name, values in turns.items():
            line = f"  {name}: {median(values):.2f}"
            if name != _BARE:
                change, low, high = difference(values, turns[_BARE])
                line += f", {change:+.1%} ({low:+.1%} to {high:+.1%})"
            lines.append(line)
    own, whole = record["gateway_ms"], record["all_ms"][_BARE]
    lines.append("what the gateway's process uses more, as a share of the processor time of all processes")
    for name in (_WITH, _AGAIN):
        change, low, high = difference(own[name], own[_BARE], whole)
        lines.append(f"  {name}: {change:+.1%} ({low:+.1%} to {high:+.1%})")
    counters = record["counters"]
    lines.append(f"calls by code: driver {counters['driver']}, metrics {counters['gateway']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 1 if the counters differ."""
    parser = make_parser("benchmarks.observability", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, or one with a folder images/")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    for option, kind, default, text in (
        ("--photos", int, 100, "number of different photos"),
        ("--callers", int, 32, "callers at a time"),
        ("--seconds", float, 3.0, "length of a turn"),
        ("--rounds", int, 24, "turns of each gateway"),
    ):
        parser.add_argument(option, type=kind, default=default, metavar="N", help=f"{text} (default {default:g})")
    add_output_options(parser)
    args = parser.parse_args(argv)
    record: dict[str, Any] = {**provenance(), "started": time.time()}
    photos = read_photos(args.data, args.photos)
    record |= measure(args.model_repository, photos, args.callers, args.seconds, args.rounds)
    publish(record, table, args)
    return 0 if record["counters"]["driver"] == record["counters"]["gateway"] else 1


if __name__ == "__main__":
    sys.exit(main())
