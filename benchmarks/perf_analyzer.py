# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's perf_analyzer on the gateway: `python -m benchmarks.perf_analyzer --data FOLDER [--output FOLDER]`.

It speaks KServe v2, as the gateway does beside its own service. Starts a gateway unless --address names one, asks with
real photos at several concurrencies, and keeps what perf_analyzer prints (MODEL-CONCURRENCY.txt) and its CSV, all
concurrencies of a model in one (MODEL.csv). Where there is no perf_analyzer it says so and succeeds.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.common.gateway_process import GatewayProcess
from benchmarks.common.photo_files import read_photos

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "tools" / "perf_analyzer"
CAPTION, SEARCH = "caption", "search"
_SHARED_SEES_ROOT_AS = "/host"  # that script runs it in another root directory
_INPUT = "IMAGE"
_RUN_LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class PerfAnalyzer:
    """Where it is, and what it calls the root directory of this machine ("" where it is the same)."""

    program: Path
    root: str = ""

    def path(self, path: Path) -> str:
        """A path as perf_analyzer sees it."""
        return f"{self.root}{path.resolve()}"


def find_perf_analyzer(given: Path | None) -> PerfAnalyzer | None:
    """The given one, else the one on PATH, else the shared script; None where there is none.

    Raises:
        FileNotFoundError: the given one does not exist.
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
    """JSON of one request per photo. The length before each is part of the tensor: KServe writes BYTES so."""
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
    """One concurrency; its report and CSV are in `output` afterwards. Returns why, where it fails."""
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
    """One CSV of several with the same first line; the parts go."""
    rows: list[str] = []
    for part in parts:
        head, *body = part.read_text(encoding="utf-8").splitlines() or [""]
        rows += body if rows else [head, *body]
        part.unlink()
    target.write_text("\n".join([*rows, ""]), encoding="utf-8")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, or with a folder images/ of them")
    parser.add_argument("--output", type=Path, default=Path(".run/load-test/perf_analyzer"), metavar="FOLDER")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a running gateway; else one is started")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), help="of the one started")
    parser.add_argument("--perf-analyzer", type=Path, metavar="FILE", help="default: the one on PATH, or shared")
    parser.add_argument("--caption", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32], help="concurrencies")
    parser.add_argument("--search", type=int, nargs="*", default=[1, 8], help="concurrencies")
    parser.add_argument("--photos", type=int, default=100, help="different ones")
    parser.add_argument("--window-seconds", type=float, default=4.0, help="of one measurement; it takes 3 to 6")
    return parser.parse_args(argv)


@contextlib.contextmanager
def gateway_at(address: str | None, repository: Path, photos: Sequence[bytes]) -> Iterator[str]:
    """HOST:PORT of the given gateway, or of one that lives as long as the block and searches among the photos.

    Raises:
        RuntimeError: it does not start, or the photos cannot be made a catalogue.
    """
    if address is not None:
        yield address
        return
    with tempfile.TemporaryDirectory(prefix="perf-analyzer-") as folder:
        # Searches stay on this machine: DuckDuckGo is not to be asked hundreds of times.
        catalogue = make_catalogue(Path(folder), repository, photos)
        settings = {"CAPTRIEVE_PROVIDERS": "catalog", "CAPTRIEVE_CATALOG": str(catalogue)}
        with contextlib.closing(GatewayProcess(repository, settings)) as gateway, gateway.awake():
            yield gateway.address


def make_catalogue(folder: Path, repository: Path, photos: Sequence[bytes]) -> Path:
    """A catalogue of the photos, in the folder.

    Raises:
        RuntimeError: it cannot be made; the message has the last line of why.
    """
    pictures, catalogue = folder / "photos", folder / "catalogue.sqlite"
    pictures.mkdir()
    for number, photo in enumerate(photos):
        (pictures / f"{number}.jpg").write_bytes(photo)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CAPTRIEVE_")}
    answer = subprocess.run(
        [sys.executable, "-m", "search_gateway", "catalog", "build", str(pictures), "--out", str(catalogue)],
        env=environ | {"CAPTRIEVE_MODEL_REPOSITORY": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise RuntimeError(f"no catalogue: {''.join(answer.stderr.strip().splitlines()[-1:])}")
    return catalogue


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        analyzer = find_perf_analyzer(args.perf_analyzer)
        photos = read_photos(args.data, args.photos)
    except OSError as error:
        print(f"benchmarks.perf_analyzer: {error}", file=sys.stderr)
        return 2
    if analyzer is None:
        print(f"perf_analyzer is SKIPPED: it is neither on PATH nor at {SHARED}; name it with --perf-analyzer")
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
    inputs.unlink()  # the photos are not ours to keep
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
