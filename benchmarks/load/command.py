# SPDX-License-Identifier: Apache-2.0
"""The gateway under load: `python -m benchmarks.load --data FOLDER [--json] [--plot FILE] [--output FILE]`.

Starts a gateway with its own defaults and calls it from another process: with ever more callers (closed loop), beside
one request at a time, a plain loop on Triton and our models in-process, with Poisson arrivals up to four times what it
can do (open loop, latency counted from when each was due), and for long with a mixture. Every answer is compared with
what the gateway says of that photo when it is asked alone. Prints tables, and which aims were reached.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.photo_files import read_photos
from benchmarks.common.provenance import provenance
from benchmarks.load.aims import load_aims, missed
from benchmarks.load.phases import MANY, PHASES, LoadSettings, LoadTest
from benchmarks.load.table import load_table

PHOTOS = 200
# A smoke run: everything happens, nothing is measured well.
_QUICK: dict[str, Any] = {
    "photos": 20, "rounds": 1, "callers": [1, 8, 32], "warm_seconds": 0.3, "turn_seconds": 1.5,
    "rates": [0.3, 0.6, 4.0], "open_seconds": 2.0, "requests": 200,
}  # fmt: skip
Record = dict[str, Any]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    defaults = LoadSettings(repository=Path("model_repository"))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, or with a folder images/ of them")
    parser.add_argument("--model-repository", type=Path, default=defaults.repository)
    # what is measured
    parser.add_argument("--phases", default=",".join(PHASES), help="of curve,compare,open,soak; default all")
    parser.add_argument("--quick", action="store_true", help="a smoke run of less than a minute")
    parser.add_argument("--photos", type=int, help=f"different ones, default {PHOTOS}")
    parser.add_argument("--rounds", type=int, help=f"of all turns but the soak, default {defaults.rounds}")
    parser.add_argument("--callers", type=int, nargs="+", help="of the curve, default 1 to 64 in powers of 2")
    parser.add_argument("--warm-seconds", type=float, help=f"before each window, default {defaults.warm_seconds}")
    parser.add_argument("--turn-seconds", type=float, help=f"closed loop, default {defaults.turn_seconds}")
    parser.add_argument("--rates", type=float, nargs="+", help="open loop: shares of the capacity, default 0.1 to 4")
    parser.add_argument("--open-seconds", type=float, help=f"open loop, default {defaults.open_seconds}")
    parser.add_argument("--deadline-seconds", type=float, default=defaults.deadline_seconds, help="open loop")
    parser.add_argument("--requests", type=int, help=f"of the soak, default {defaults.soak_requests}")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    # what is written
    parser.add_argument("--json", action="store_true", help="print the record instead of tables")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the record there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG")
    args = parser.parse_args(argv)
    args.phases = [phase for phase in args.phases.split(",") if phase]
    if unknown := [phase for phase in args.phases if phase not in PHASES]:
        parser.error(f"--phases has {', '.join(unknown)}: choose from {', '.join(PHASES)}")
    usual = {
        "photos": PHOTOS, "rounds": defaults.rounds, "callers": list(defaults.callers),
        "warm_seconds": defaults.warm_seconds, "turn_seconds": defaults.turn_seconds, "rates": list(defaults.rates),
        "open_seconds": defaults.open_seconds, "requests": defaults.soak_requests,
    }  # fmt: skip
    for name, value in (usual | _QUICK if args.quick else usual).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(args.photos, args.rounds, args.requests, *args.callers) < 1 or args.warm_seconds < 0:
        parser.error("--photos, --rounds, --requests and --callers begin at 1, --warm-seconds at 0")
    if min(*args.rates, args.turn_seconds, args.open_seconds, args.deadline_seconds) <= 0:
        parser.error("--rates, --turn-seconds, --open-seconds and --deadline-seconds must be more than 0")
    return args


def measure(args: argparse.Namespace, photos: Sequence[bytes]) -> Record:
    """The whole run; the record is what --json writes and table, aims and plot are made of."""
    settings = LoadSettings(
        repository=args.model_repository,
        rounds=args.rounds,
        callers=tuple(args.callers),
        warm_seconds=args.warm_seconds,
        turn_seconds=args.turn_seconds,
        rates=tuple(args.rates),
        open_seconds=args.open_seconds,
        deadline_seconds=args.deadline_seconds,
        soak_requests=args.requests,
        seed=args.seed,
    )
    record: Record = {
        "settings": dataclasses.asdict(settings) | {"repository": str(settings.repository)},
        **provenance(),  # now, so that the load is not our own
    }
    callers = list(settings.callers) if "curve" in args.phases else []
    if "open" in args.phases:  # what it is measured by
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
        record["complaints"] = test.complaints()
        progress.set_description_str("done")
    record["aims"] = [dataclasses.asdict(aim) for aim in load_aims(record)]
    return record


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        photos = read_photos(args.data, args.photos)
    except OSError as error:
        print(f"benchmarks.load: {error}", file=sys.stderr)
        return 2
    record = measure(args, photos)
    text = json.dumps(record, indent=2, ensure_ascii=False)
    print(text if args.json else load_table(json.loads(text)))
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    if args.plot is not None:
        from benchmarks.load.plot import plot_load

        plot_load(json.loads(text), args.plot)
    # Slowness is a result; an answer that is lost or wrong is a defect.
    broken = [aim for aim in load_aims(record) if aim.name in ("lost requests", "wrong words")]
    return 1 if missed(broken) else 0
