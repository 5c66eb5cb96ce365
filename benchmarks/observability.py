# SPDX-License-Identifier: Apache-2.0
"""What do metrics and access log cost? `python -m benchmarks.observability --data FOLDER [--rounds N]`.

Starts two gateways with an embedded Triton each: one with its defaults and a scrape of its metrics every second, one
without admin port and with warnings only in its log. In each round both take turns, in alternating order, at captioning
photos for as many callers; the other one is paused meanwhile. Also compares the counters of the first one with those
of the driver.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from benchmarks.common.gateway_process import PATIENT, GatewayProcess
from benchmarks.common.own_process import OwnProcess
from benchmarks.common.photo_files import read_photos
from benchmarks.common.provenance import provenance
from benchmarks.common.report import Record, add_output_options, make_parser, publish
from benchmarks.load.systems import LoadDriver

_WITH, _BARE = "with metrics and access log", "without"


def measure(repository: Path, photos: Sequence[bytes], callers: int, seconds: float, rounds: int) -> Record:
    """Let both gateways take turns; returns captions per second of each turn, and the counts."""
    rates: dict[str, list[float]] = {_WITH: [], _BARE: []}
    answers: Counter[str] = Counter()
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    bare = {"CAPTRIEVE_LISTEN_ADDRESS": address, "CAPTRIEVE_ADMIN_ADDRESS": "", "CAPTRIEVE_LOG_LEVEL": "warning"}
    with contextlib.ExitStack() as stack:
        gateways = {
            name: stack.enter_context(contextlib.closing(GatewayProcess(repository, {**PATIENT, **settings})))
            for name, settings in ((_WITH, {}), (_BARE, bare))
        }
        drivers = {
            name: stack.enter_context(OwnProcess(LoadDriver, gateway.address, photos))
            for name, gateway in gateways.items()
        }
        for number in tqdm(range(rounds)):
            for name in sorted(gateways, reverse=bool(number % 2)):
                with gateways[name].awake(), _scraped(gateways[name]):
                    figures = drivers[name].ask("closed", callers, 2.0, seconds)
                rates[name].append(figures.throughput)
                if name == _WITH:
                    answers += figures.codes
        with gateways[_WITH].awake():
            counted = gateways[_WITH].handled("Caption")
    return {"rates": rates, "counters": {"driver": dict(answers), "gateway": dict(counted)}}


@contextlib.contextmanager
def _scraped(gateway: GatewayProcess) -> Iterator[None]:
    """Read the metrics every second within the block, fifteen times as often as Prometheus would."""
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(1.0):
            gateway.handled("Caption")

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def table(record: Record) -> str:
    """Return the text of a record."""
    rates, counters = record["rates"], record["counters"]
    ratios = [with_ / bare for with_, bare in zip(rates[_WITH], rates[_BARE], strict=True)]
    lines = [f"{name}: {median(found):.1f} captions/s, median of {len(found)}" for name, found in rates.items()]
    lines.append(
        f"cost: {1 - median(ratios):.1%} (median of the rounds' ratios; {1 - max(ratios):.1%} to {1 - min(ratios):.1%})"
    )
    lines.append(f"calls by code: driver {counters['driver']}, metrics {counters['gateway']}")
    return f"{record['commit']}, {record['machine']}, load {record['load_average']:.1f}\n" + "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 1 if the counters differ."""
    parser = make_parser("benchmarks.observability", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, or one with a folder images/")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    for option, kind, default, text in (
        ("--photos", int, 100, "number of different photos"),
        ("--callers", int, 32, "callers at a time"),
        ("--seconds", float, 10.0, "length of a turn"),
        ("--rounds", int, 7, "turns of each gateway"),
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
