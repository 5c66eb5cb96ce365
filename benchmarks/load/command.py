# SPDX-License-Identifier: Apache-2.0
"""How does a gateway behave under load? `python -m benchmarks.load --data FOLDER [--plot FILE] [--output FILE]`.

Starts a gateway with its default settings and calls it from another process. The closed loop has a growing number of
callers, and compares the gateway with one request at a time, a plain loop on Triton and our models in-process. The open
loop has Poisson arrivals up to four times the capacity; its latencies count from when requests were due. The soak is a
long run of mixed requests. Each caption is compared with the one that the gateway gives for the photo alone. Prints
tables, and the aims with their results.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.photo_files import read_photos
from benchmarks.common.provenance import provenance
from benchmarks.common.report import Record, add_output_options, make_parser, publish
from benchmarks.load.aims import load_aims, missed
from benchmarks.load.phases import MANY, PHASES, LoadSettings, LoadTest
from benchmarks.load.table import load_table

PHOTOS = 200
# Defaults of a run that does everything once, and measures nothing well.
_QUICK: dict[str, Any] = {
    "photos": 20, "rounds": 1, "callers": [1, 8, 32], "warm_seconds": 0.3, "turn_seconds": 1.5,
    "rates": [0.3, 0.6, 4.0], "open_seconds": 2.0, "requests": 200,
}  # fmt: skip


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `--quick` changes the defaults of the other options."""
    defaults = LoadSettings(repository=Path("model_repository"))
    parser = make_parser("benchmarks.load", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, or one with a folder images/")
    parser.add_argument("--model-repository", type=Path, default=defaults.repository)
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        default="",
        help="a running gateway with these models, for --phases curve,open",
    )
    measured = parser.add_argument_group("what is measured")
    measured.add_argument("--phases", default=",".join(PHASES), help="some of %(default)s (default: all)")
    measured.add_argument(
        "--quick", action="store_true", help="a trial run of less than a minute; its figures are poor"
    )
    for option, kind, default, text in (
        ("--photos", int, PHOTOS, "number of different photos"),
        ("--rounds", int, defaults.rounds, "rounds of all phases but the soak"),
        ("--warm-seconds", float, defaults.warm_seconds, "least time before each window"),
        ("--turn-seconds", float, defaults.turn_seconds, "window of the closed loop"),
        ("--open-seconds", float, defaults.open_seconds, "window of the open loop"),
        ("--requests", int, defaults.soak_requests, "number of requests of the soak"),
    ):
        measured.add_argument(option, type=kind, default=default, metavar="N", help=f"{text} (default {default:g})")
    for option, kind, values, text in (
        ("--callers", int, defaults.callers, "numbers of callers of the curve (default: powers of 2 up to 64)"),
        ("--rates", float, defaults.rates, "arrivals of the open loop, as shares of the capacity (default: 0.1 to 4)"),
    ):
        measured.add_argument(option, type=kind, nargs="+", default=values, metavar="N", help=text)
    add_output_options(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also write a plot of the record, as PNG")
    args = parser.parse_args(argv)
    if args.quick:
        parser.set_defaults(**_QUICK)
        args = parser.parse_args(argv)
    args.phases = [phase for phase in args.phases.split(",") if phase]
    if unknown := [phase for phase in args.phases if phase not in PHASES]:
        parser.error(f"--phases has {', '.join(unknown)}: choose from {', '.join(PHASES)}")
    if args.address and {"compare", "soak"} & set(args.phases):
        parser.error("--address: the phases compare and soak need processes of this machine; give --phases curve,open")
    if min(args.photos, args.rounds, args.requests, *args.callers) < 1:
        parser.error("--photos, --rounds, --requests and --callers must be at least 1")
    if args.warm_seconds < 0:
        parser.error("--warm-seconds must be at least 0")
    if min(*args.rates, args.turn_seconds, args.open_seconds) <= 0:
        parser.error("--rates, --turn-seconds and --open-seconds must be above 0")
    return args


def measure(args: argparse.Namespace, photos: Sequence[bytes]) -> Record:
    """Run the test.

    Returns:
        The record, from which tables, aims and plot are made.

    Raises:
        RuntimeError: the gateway does not start or gives no answer.
        OwnProcessError: another system does not start or fails.
    """
    settings = LoadSettings(
        repository=args.model_repository,
        address=args.address,
        rounds=args.rounds,
        callers=tuple(args.callers),
        warm_seconds=args.warm_seconds,
        turn_seconds=args.turn_seconds,
        rates=tuple(args.rates),
        open_seconds=args.open_seconds,
        soak_requests=args.requests,
    )
    record: Record = {
        "settings": dataclasses.asdict(settings) | {"repository": str(settings.repository)},
        **provenance(),  # before the test, so that its load average is without the test's own load
    }
    callers = list(settings.callers) if "curve" in args.phases else []
    if "open" in args.phases:  # it needs the capacity and the latency of one caller
        callers = sorted({*callers, 1, MANY})
    with (
        tqdm(unit="turn") as progress,
        LoadTest(settings, photos, compares="compare" in args.phases, progress=progress) as test,
    ):
        progress.reset(total=test.turns(args.phases, callers))
        record["oracle"] = test.oracle
        if callers or "compare" in args.phases:
            curve, compared = test.curve_and_compare(callers)
            record |= {"curve": curve, "compare": compared}
        if "open" in args.phases:
            by_callers = {point["callers"]: point for point in record["curve"]}
            capacity, alone = by_callers[MANY]["throughput"], by_callers[1]["latency"]
            if not capacity or not alone:
                raise RuntimeError(f"the gateway answered nothing: {by_callers[MANY]['details']}")
            record["open"] = {
                "capacity": capacity,
                "unloaded_p50_ms": alone["p50"],
                "deadline_seconds": settings.deadline_seconds,
                "points": test.open(capacity),
            }
        if "soak" in args.phases:
            test.learn_beams()
            record["soak"] = test.soak()
        record["peak_memory_bytes"] = test.peak_memory()
        if (counters := test.counters())["gateway"]:
            record["counters"] = counters
        record["complaints"] = test.complaints()
        progress.set_description_str("done")
    record["aims"] = [dataclasses.asdict(aim) for aim in load_aims(record)]
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_args(argv)
    try:
        photos = read_photos(args.data, args.photos)
    except OSError as error:
        print(f"benchmarks.load: {error}", file=sys.stderr)
        return 2
    record = measure(args, photos)
    publish(record, load_table, args)
    if args.plot is not None:
        from benchmarks.load.plot import plot_load

        plot_load(record, args.plot)
    # A missed aim of speed is a result; a lost or wrong answer is a defect.
    broken = [aim for aim in load_aims(record) if aim.name in ("lost requests", "wrong words")]
    return 1 if missed(broken) else 0
