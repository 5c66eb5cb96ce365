# SPDX-License-Identifier: Apache-2.0
"""How does a gateway bear hostile pictures? `python -m benchmarks.robustness --data FOLDER [--bad-images FOLDER]`.

Starts a gateway with its default settings. First it sends each hostile picture (the bombs and odd files of
`hostile_photos`, and the files of --bad-images) alone, and records its status and the CPU time of the gateway and its
photo workers, including the replacement of a worker. Triton's time for captions does not count. Then it measures a
closed loop of good callers in alternating turns: alone, beside callers that send hostile pictures without a pause, and
beside the same number of additional good callers, whose cost is the baseline. The callers run in processes of their
own on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from tqdm import tqdm

from benchmarks.common.gateway_process import GatewayProcess
from benchmarks.common.own_process import OwnProcess
from benchmarks.common.photo_files import read_photos
from benchmarks.common.process_usage import cpu_seconds, cpu_seconds_of_ended_children, processes_with
from benchmarks.common.provenance import provenance
from benchmarks.common.report import Record, add_output_options, make_parser, publish
from benchmarks.load.outcomes import Latency, LoadFigures
from benchmarks.load.systems import LoadDriver
from benchmarks.robustness.hostile_photos import BOMBS, odd_photos
from search_api import search_pb2, search_pb2_grpc

PHOTOS = 50
MAX_CPU_SECONDS = 2.0
MAX_P99_RATIO = 2.0
ALONE, BESIDE_HOSTILE, BESIDE_GOOD = "alone", "beside hostile callers", "beside as many good ones"
EXPECTED = ("OK", "INVALID_ARGUMENT")
_TIMEOUT_SECONDS = 30.0
_QUIET_SECONDS = 0.15  # the replacement of a worker is over when no CPU time was used for this long
_MAX_EXPENSIVE = 8  # number of pictures that the record names


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("benchmarks.robustness", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of good photos, or one with a folder images/")
    parser.add_argument("--bad-images", type=Path, metavar="FOLDER", help="more hostile files, also in its subfolders")
    parser.add_argument("--only", default="", metavar="REGEX", help="use only hostile files whose names match")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--callers", type=int, default=4, help="number of good callers (default 4)")
    parser.add_argument("--attackers", type=int, default=2, help="number of hostile callers (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds of three turns (default 3)")
    parser.add_argument("--turn-seconds", type=float, default=6.0, help="length of a turn (default 6)")
    parser.add_argument("--warm-seconds", type=float, default=1.0, help="least time before each turn (default 1)")
    add_output_options(parser)
    args = parser.parse_args(argv)
    if min(args.callers, args.attackers, args.rounds) < 1:
        parser.error("--callers, --attackers and --rounds must be at least 1")
    try:
        re.compile(args.only)
    except re.error as error:
        parser.error(f"--only is not a regular expression: {error}")
    if args.turn_seconds <= 0 or args.warm_seconds < 0:
        parser.error("--turn-seconds must be above 0, --warm-seconds at least 0")
    return args


def hostile_files(bad_images: Path | None, only: str = "") -> Iterator[tuple[str, bytes]]:
    """Make or read the hostile files, the bombs spread evenly among the others.

    Yields:
        Name and bytes of each file.

    Raises:
        OSError: a file of the folder cannot be read.
    """
    bombs = [(name, make()) for name, make in BOMBS.items() if re.search(only, name)]
    others = [(name, data) for name, data in odd_photos() if re.search(only, name)]
    if bad_images is not None:
        for path in sorted(bad_images.rglob("*")):
            name = path.relative_to(bad_images).as_posix()
            if path.is_file() and re.search(only, name):
                others.append((name, path.read_bytes()))
    apart = len(others) / max(1, len(bombs))
    for place, bomb in enumerate(bombs):
        yield bomb
        yield from others[round(place * apart) : round((place + 1) * apart)]
    if not bombs:
        yield from others


class Attacker:
    """Callers that send hostile pictures; runs in a process of its own.

    Raises:
        ValueError: no hostile file has such a name.
    """

    def __init__(self, address: str, bad_images: Path | None, only: str = ""):
        self._address = address
        self._files = list(hostile_files(bad_images, only))
        if not self._files:
            raise ValueError(f"no hostile file has a name that matches {only!r}")
        kinds = [[data for name, data in self._files if (name in BOMBS) == is_bomb] for is_bomb in (True, False)]
        self._kinds = [files for files in kinds if files]
        self._next = itertools.count()

    def names(self) -> list[str]:
        """Return the names of all files."""
        return [name for name, _ in self._files]

    def send(self, place: int) -> str:
        """Send one file, and return its gRPC status."""
        return asyncio.run(self._send_one(self._files[place][1]))

    def stream(self, attackers: int, seconds: float) -> dict[str, int]:
        """Send files without a pause for some seconds; every second file is a bomb, because bombs are few.

        Returns:
            gRPC status -> number of answers.
        """
        return dict(asyncio.run(self._stream(attackers, time.monotonic() + seconds)))

    async def _send_one(self, data: bytes) -> str:
        async with self._stub() as stub:
            return await _status_of(stub, data)

    async def _stream(self, attackers: int, end: float) -> Counter[str]:
        statuses: Counter[str] = Counter()

        async def attack() -> None:
            async with self._stub() as stub:
                while time.monotonic() < end:
                    number = next(self._next)
                    files = self._kinds[number % len(self._kinds)]
                    statuses[await _status_of(stub, files[number // len(self._kinds) % len(files)])] += 1

        await asyncio.gather(*(attack() for _ in range(attackers)))
        return statuses

    @contextlib.asynccontextmanager
    async def _stub(self) -> AsyncIterator[search_pb2_grpc.SearchServiceStub]:
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            yield search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]  # generated


async def _status_of(stub: Any, data: bytes) -> str:
    try:
        await stub.Caption(search_pb2.CaptionRequest(photo=data), timeout=_TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


def one_by_one(gateway: GatewayProcess, attacker: OwnProcess) -> Record:
    """Send each hostile file alone; returns the statuses and CPU times."""
    names = attacker.ask("names")
    statuses: Counter[str] = Counter()
    costs: list[tuple[float, str, str]] = []
    for place, name in enumerate(tqdm(names, desc="one by one", unit="file")):
        workers, before = photo_worker_pids(gateway.pid), photo_cpu_seconds(gateway.pid)
        status = attacker.ask("send", place)
        if photo_worker_pids(gateway.pid) != workers:
            _wait_until_quiet(gateway.pid)
        costs.append((round(photo_cpu_seconds(gateway.pid) - before, 2), name, status))
        statuses[status] += 1
    costs.sort(reverse=True)
    return {
        "files": len(names),
        "statuses": dict(statuses),
        "unexpected": sorted(name for _, name, status in costs if status not in EXPECTED),
        "most_cpu_seconds": costs[0][0],
        "most_expensive": [
            {"cpu_seconds": seconds, "name": name, "status": status} for seconds, name, status in costs[:_MAX_EXPENSIVE]
        ],
    }


def photo_worker_pids(pid: int) -> set[int]:
    """Return the process ids of a gateway's photo workers."""
    return processes_with(pid, "imaging.worker_main")


def photo_cpu_seconds(pid: int) -> float:
    """Return the CPU seconds so far of a gateway itself, its photo workers and the workers that were replaced."""
    replaced = cpu_seconds_of_ended_children(pid)
    return replaced + cpu_seconds(pid) + sum(cpu_seconds(worker) for worker in photo_worker_pids(pid))


def _wait_until_quiet(pid: int) -> None:
    last = -1.0
    while (now := photo_cpu_seconds(pid)) != last:
        last = now
        time.sleep(_QUIET_SECONDS)


def in_turns(args: argparse.Namespace, driver: OwnProcess, attacker: OwnProcess) -> Record:
    """Measure the good callers in all three situations."""
    figures: dict[str, list[LoadFigures]] = defaultdict(list)
    statuses: Counter[str] = Counter()
    callers = {ALONE: args.callers, BESIDE_HOSTILE: args.callers, BESIDE_GOOD: args.callers + args.attackers}
    times = args.warm_seconds, args.turn_seconds
    with ThreadPoolExecutor(1) as background, tqdm(total=3 * args.rounds, unit="turn") as progress:
        for number in range(args.rounds):
            order = [ALONE, BESIDE_HOSTILE, BESIDE_GOOD]
            # Each comes first, second and last equally often, because the speed of the machine changes over time.
            for name in order[number % 3 :] + order[: number % 3]:
                progress.set_description_str(name)
                attack = None
                if name == BESIDE_HOSTILE:
                    attack = background.submit(attacker.ask, "stream", args.attackers, sum(times))
                figures[name].append(driver.ask("closed", callers[name], *times))
                if attack is not None:
                    statuses.update(attack.result())
                progress.update()
    return {
        "turns": {name: _turns_record(rounds) for name, rounds in figures.items()},
        "p99_ratio": _p99(figures[BESIDE_HOSTILE]) / _p99(figures[ALONE]),
        "hostile_statuses": dict(statuses),
    }


def _turns_record(rounds: Sequence[LoadFigures]) -> Record:
    latencies = [_latency(one) for one in rounds]
    return {
        "answers": sum(one.count for one in latencies),
        "throughput": median(one.throughput for one in rounds),
        "p50_ms": median(one.p50 for one in latencies),
        "p99_ms": median(one.p99 for one in latencies),
        "p99_ms_of_rounds": [one.p99 for one in latencies],
        "failures": {
            kind: count
            for kind in rounds[0].counts
            if kind != "ok" and (count := sum(one.counts[kind] for one in rounds))
        },
    }


def _latency(figures: LoadFigures) -> Latency:
    if figures.latency is None:
        raise RuntimeError(f"the gateway answered no good caller: {figures.details}")
    return figures.latency


def _p99(rounds: Sequence[LoadFigures]) -> float:
    return median(_latency(one).p99 for one in rounds)


def measure(args: argparse.Namespace, photos: Sequence[bytes]) -> Record:
    """Run the benchmark.

    Raises:
        RuntimeError: the gateway does not start, or no good caller gets an answer.
        OwnProcessError: a caller's process fails.
    """
    names = ("callers", "attackers", "only", "rounds", "turn_seconds", "warm_seconds")
    record: Record = {"settings": {name: getattr(args, name) for name in names}, **provenance()}
    with (
        contextlib.closing(GatewayProcess(args.model_repository, {})) as gateway,
        OwnProcess(LoadDriver, gateway.address, photos) as driver,
        OwnProcess(Attacker, gateway.address, args.bad_images, args.only) as attacker,
        gateway.awake(),
    ):
        driver.ask("learn", 1, 0, len(photos))
        return {**record, "one_by_one": one_by_one(gateway, attacker), **in_turns(args, driver, attacker)}


def table(record: Record) -> str:
    """Format a record as text."""
    alone, settings = record["one_by_one"], record["settings"]
    rows = [
        f"{name:<26}{turn['answers']:>8}{turn['throughput']:>12.1f}{turn['p50_ms']:>9.1f}{turn['p99_ms']:>9.1f}"
        + (f"  {_counts(turn['failures'])}" if turn["failures"] else "")
        for name, turn in record["turns"].items()
    ]
    return "\n".join(
        [
            f"{alone['files']:,} hostile files, one by one: {_counts(alone['statuses'])}",
            f"highest CPU time: {alone['most_cpu_seconds']:.2f} s (limit {MAX_CPU_SECONDS:g} s); most expensive:",
            *(f"  {one['cpu_seconds']:5.2f} s  {one['status']:<17} {one['name']}" for one in alone["most_expensive"]),
            "",
            f"{settings['callers']} good callers, {settings['attackers']} others; {settings['rounds']} rounds, medians",
            f"{'':<26}{'answers':>8}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}",
            *rows,
            f"p99 beside hostile callers ÷ p99 alone: {record['p99_ratio']:.2f} (aim: at most {MAX_P99_RATIO:g})",
            f"statuses of the hostile callers: {_counts(record['hostile_statuses'])}",
            f"{record['commit']}, {record['machine']}, load {record['load_average']:.1f}",
        ]
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_args(argv)
    try:
        photos = read_photos(args.data, PHOTOS)
        if args.bad_images is not None and not args.bad_images.is_dir():
            raise NotADirectoryError(f"{args.bad_images} is not a folder")
    except OSError as error:
        print(f"benchmarks.robustness: {error}", file=sys.stderr)
        return 2
    record = measure(args, photos)
    publish(record, table, args)
    # A slow gateway is a result; a wrong status or a too expensive picture is a defect.
    alone = record["one_by_one"]
    unexpected = [*alone["unexpected"], *({*record["hostile_statuses"]} - {*EXPECTED})]
    return 1 if unexpected or alone["most_cpu_seconds"] > MAX_CPU_SECONDS else 0
