# SPDX-License-Identifier: Apache-2.0
"""Measures a gateway with NVIDIA's perf_analyzer: `python -m benchmarks.perf_analyzer --data FOLDER [--output FOLDER]`.

perf_analyzer speaks KServe v2, which the gateway offers beside its own service. The command starts a gateway unless
--address names one, and sends photos at several concurrencies. It keeps perf_analyzer's reports (MODEL-CONCURRENCY.txt)
and one CSV file for each model (MODEL.csv). Without perf_analyzer it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.common.gateway_process import GatewayProcess, gateway_environ
from benchmarks.common.photo_files import read_photos
from benchmarks.common.report import make_parser

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "tools" / "perf_analyzer"
CAPTION, SEARCH = "caption", "search"
_SHARED_SEES_ROOT_AS = "/host"  # the script at SHARED runs perf_analyzer in another root directory
_INPUT = "IMAGE"
_RUN_LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer."""

    program: Path  # the file to run
    root: str = ""  # where it sees the root directory of this machine; "" for the same place

    def path(self, path: Path) -> str:
        """Return the path as perf_analyzer sees it."""
        return f"{self.root}{path.resolve()}"


def find_perf_analyzer(given: Path | None) -> PerfAnalyzer | None:
    """Find perf_analyzer: the given file, else the one on PATH, else the one at `SHARED`.

    Returns:
        None if there is none.

    Raises:
        FileNotFoundError: the given file does not exist.
    """
    if given is not None:
        if not given.is_file():
            raise FileNotFoundError(f"{given} does not exist")
        is_shared = SHARED.is_file() and given.samefile(SHARED)
        return PerfAnalyzer(given.resolve(), _SHARED_SEES_ROOT_AS if is_shared else "")
    if found := shutil.which("perf_analyzer"):
        return PerfAnalyzer(Path(found))
    return PerfAnalyzer(SHARED, _SHARED_SEES_ROOT_AS) if SHARED.is_file() else None


def input_data(photos: Sequence[bytes]) -> str:
    """Return JSON with a request for each photo; a BYTES tensor of KServe begins with the length of the bytes."""
    return json.dumps(
        {
            "data": [
                {_INPUT: {"content": {"b64": base64.b64encode(struct.pack("<I", len(photo)) + photo).decode()},
                          "shape": [1]}}
                for photo in photos
            ]
        }
    )  # fmt: skip


def run_perf_analyzer(
    analyzer: PerfAnalyzer,
    address: str,
    model: str,
    concurrency: int,
    inputs: Path,
    output: Path,
    *,
    window_seconds: float,
) -> str | None:
    """Measure with one concurrency; the report and the CSV are in `output` afterwards.

    Returns:
        The reason if the run failed, else None.
    """
    csv = output / f"{model}-{concurrency}.csv"
    command = [
        str(analyzer.program),
        *("-m", model, "-u", address, "-i", "grpc", "-b", "1"),
        *("--input-data", analyzer.path(inputs)),
        f"--concurrency-range={concurrency}",
        f"--measurement-interval={int(1000 * window_seconds)}",
        "--stability-percentage=15",
        "--max-trials=6",
        *("-f", analyzer.path(csv)),
    ]
    try:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_RUN_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"took more than {_RUN_LIMIT_SECONDS:.0f} s"
    except OSError as error:
        return f"cannot be run: {error}"
    report = output / f"{model}-{concurrency}.txt"
    report.write_text(f"$ {' '.join(command)}\n{answer.stdout}", encoding="utf-8")
    if answer.returncode:
        last = "".join(answer.stdout.strip().splitlines()[-1:])
        return f"ended with {answer.returncode}: {last or 'it printed nothing'} ({report})"
    return None if csv.is_file() else f"wrote no CSV ({report})"


def join_tables(parts: Sequence[Path], target: Path) -> None:
    """Join CSV files with the same first line into one, and delete them."""
    rows: list[str] = []
    for part in parts:
        head, *body = part.read_text(encoding="utf-8").splitlines() or [""]
        rows += body if rows else [head, *body]
        part.unlink()
    target.write_text("\n".join([*rows, ""]), encoding="utf-8")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("benchmarks.perf_analyzer", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, or one with a folder images/")
    parser.add_argument("--output", type=Path, default=Path(".run/load-test/perf_analyzer"), metavar="FOLDER")
    parser.add_argument("--address", metavar="HOST:PORT", help="a running gateway (default: start one)")
    parser.add_argument(
        "--model-repository", type=Path, default=Path("model_repository"), help="models of the gateway that is started"
    )
    parser.add_argument(
        "--perf-analyzer", type=Path, metavar="FILE", help="the program (default: the one on PATH, else a shared one)"
    )
    parser.add_argument(
        "--caption", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32], help="concurrencies for the model caption"
    )
    parser.add_argument("--search", type=int, nargs="*", default=[1, 8], help="concurrencies for the model search")
    parser.add_argument("--photos", type=int, default=100, help="number of different photos (default 100)")
    parser.add_argument(
        "--window-seconds", type=float, default=4.0, help="length of a window; a measurement takes 3 to 6 windows"
    )
    return parser.parse_args(argv)


@contextlib.contextmanager
def gateway_at(address: str | None, repository: Path, photos: Sequence[bytes]) -> Iterator[str]:
    """Start a gateway with a catalogue of the photos, unless an address is given; it stops after the block.

    Yields:
        HOST:PORT of the gateway.

    Raises:
        RuntimeError: the gateway does not start, or the catalogue cannot be built.
    """
    if address is not None:
        yield address
        return
    with tempfile.TemporaryDirectory(prefix="perf-analyzer-") as folder:
        # Searches use the catalogue only, because DuckDuckGo must not get hundreds of them.
        catalogue = make_catalogue(Path(folder), repository, photos)
        settings = {"CAPTRIEVE_PROVIDERS": "catalog", "CAPTRIEVE_CATALOG": str(catalogue)}
        with contextlib.closing(GatewayProcess(repository, settings)) as gateway, gateway.awake():
            yield gateway.address


def make_catalogue(folder: Path, repository: Path, photos: Sequence[bytes]) -> Path:
    """Build a catalogue of the photos in a folder.

    Returns:
        The catalogue file.

    Raises:
        RuntimeError: it cannot be built; the message has the last line of the error.
    """
    pictures, catalogue = folder / "photos", folder / "catalogue.sqlite"
    pictures.mkdir()
    for number, photo in enumerate(photos):
        (pictures / f"{number}.jpg").write_bytes(photo)
    answer = subprocess.run(
        [sys.executable, "-m", "search_gateway", "catalog", "build", str(pictures), "--out", str(catalogue)],
        env=gateway_environ(repository, {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise RuntimeError(f"no catalogue: {''.join(answer.stderr.strip().splitlines()[-1:])}")
    return catalogue


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_args(argv)
    try:
        analyzer = find_perf_analyzer(args.perf_analyzer)
        photos = read_photos(args.data, args.photos)
    except OSError as error:
        print(f"benchmarks.perf_analyzer: {error}", file=sys.stderr)
        return 2
    if analyzer is None:
        print(f"perf_analyzer is SKIPPED: it is neither on PATH nor at {SHARED}; give its path with --perf-analyzer")
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    inputs = args.output / "inputs.json"
    inputs.write_text(input_data(photos), encoding="utf-8")
    runs = [(CAPTION, concurrency) for concurrency in args.caption]
    runs += [(SEARCH, concurrency) for concurrency in args.search]
    failures = []
    with gateway_at(args.address, args.model_repository, photos) as address:
        for model, concurrency in tqdm(runs, unit="run", desc="perf_analyzer"):
            failure = run_perf_analyzer(
                analyzer, address, model, concurrency, inputs, args.output, window_seconds=args.window_seconds
            )
            if failure is not None:
                failures.append(f"{model}, concurrency {concurrency}: perf_analyzer {failure}")
    inputs.unlink()  # it holds the photos, which must not be kept
    for model in dict.fromkeys(model for model, _ in runs):
        parts = [args.output / f"{model}-{concurrency}.csv" for one, concurrency in runs if one == model]
        if parts := [part for part in parts if part.is_file()]:
            target = args.output / f"{model}.csv"
            join_tables(parts, target)
            print(f"{target}:\n{target.read_text(encoding='utf-8').rstrip()}")
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
