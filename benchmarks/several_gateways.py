# SPDX-License-Identifier: Apache-2.0
"""Do calls fail while gateways come and go? `python -m benchmarks.several_gateways [--seconds S] [--callers N]`.

Up to four gateways share one Triton and one catalogue file. One client calls all of them in turn, as its retry policy
says, from several threads, while one gateway is killed, one added, one drained, one started again, and the catalogue
replaced by another file. Every answer is compared with the one that the photo got before.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.free_port import free_port
from benchmarks.common.gateway_process import PATIENT, GatewayProcess
from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, markdown_table, publish
from captrieve_client import SearchAnswer, SearchClient, SearchClientError
from drawings.draw_samples import COLUMNS, draw_sample
from search_gateway.__main__ import main as gateway_main
from search_gateway.config import default_model_repository
from search_gateway.triton.embedded import EmbeddedTriton

PRODUCTS = [(garment, colour) for garment in ("Handbag", "Jeans", "Watch") for colour in ("Red", "Blue", "Black")]
EDITIONS = ("first edition", "second edition")  # which catalogue an answer comes from is in the title

_CALL_SECONDS = 30.0
_CONNECTION_AGE_SECONDS = 5.0
_POLL_SECONDS = 0.25
_DRAIN_SECONDS = 60.0
_CALLS_OF_A_PHASE = 60  # at least
_FAIR = 0.5  # of an equal share of the calls: what a gateway must get to count as used
_METHOD = "Search"


def drawing(garment: str, colour: str, seed: int) -> bytes:
    """Draw a product; returns an image file."""
    file = io.BytesIO()
    draw_sample(garment, colour, np.random.default_rng(seed)).save(file, "JPEG", quality=90)
    return file.getvalue()


def build_catalogues(folder: Path, triton_address: str, model_repository: Path) -> list[Path]:
    """Build a catalogue of each edition with the gateway's own command; the pictures are the same."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, (garment, colour) in enumerate(PRODUCTS):
        (pictures / f"{number}.jpg").write_bytes(drawing(garment, colour, seed=100 + number))
    catalogues = []
    settings = {"CAPTRIEVE_TRITON_ADDRESS": triton_address, "CAPTRIEVE_MODEL_REPOSITORY": str(model_repository)}
    for edition in EDITIONS:
        titles, catalogue = folder / f"{edition}.csv", folder / f"{edition}.sqlite"
        with titles.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for number, (garment, colour) in enumerate(PRODUCTS):
                writer.writerow({"id": number, "productDisplayName": f"{colour} {garment} ({edition})"})
        arguments = ["catalog", "build", str(pictures), "--titles", str(titles), "--out", str(catalogue)]
        with contextlib.redirect_stdout(io.StringIO()):
            if gateway_main(arguments, settings) != 0:
                raise RuntimeError("the catalogue was not built")
        catalogues.append(catalogue)
    return catalogues


@dataclass
class Counts:
    """The calls of one phase.

    Attributes:
        calls: all that have ended.
        failed: the client's messages.
        wrong: answers that differ from those before.
        seconds: duration of each call.
        editions: title of the edition -> answers from it.
    """

    calls: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    editions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(EDITIONS, 0))


class Callers:
    """Threads that search without a pause through one client.

    Args:
        addresses: of all gateways, separated by commas.
        photos: sent in turn.
        right: caption and title of each photo, without the edition.
    """

    def __init__(self, addresses: str, photos: Sequence[bytes], right: Sequence[tuple[str, str]]):
        self.counts = Counts()
        self._client = SearchClient(addresses)
        self._photos = photos
        self._right = right
        self._is_over = threading.Event()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def calling(self, num_threads: int) -> Iterator[None]:
        """Call within the block."""
        threads = [threading.Thread(target=self._call, args=(number,)) for number in range(num_threads)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()
            self._client.close()

    def take(self) -> Counts:
        """Return the counts, and begin new ones."""
        with self._lock:
            taken, self.counts = self.counts, Counts()
        return taken

    def _call(self, number: int) -> None:
        while not self._is_over.is_set():
            number = (number + 1) % len(self._photos)
            started = time.perf_counter()
            answer = error = None
            try:
                answer = self._client.search(self._photos[number], timeout_seconds=_CALL_SECONDS)
            except SearchClientError as caught:
                error = f"{caught.code.name}: {caught}"
            with self._lock:
                counts = self.counts
                counts.calls += 1
                counts.seconds.append(time.perf_counter() - started)
                if answer is None:
                    counts.failed.append(str(error))
                    continue
                *words, edition = gist(answer)
                counts.editions[edition] = counts.editions.get(edition, 0) + 1
                if tuple(words) != self._right[number]:
                    counts.wrong.append(f"{words} instead of {self._right[number]}")


def gist(answer: SearchAnswer) -> tuple[str, str, str]:
    """Return the caption, the title of the best result without its edition, and the edition."""
    title = answer.results[0].title if answer.results else ""
    name, _, edition = title.partition(" (")
    return answer.caption.text if answer.caption else "", name, edition.rstrip(")")


class Rehearsal:
    """The gateways and what happens to them.

    Args:
        triton_address: of the Triton that they share.
        model_repository: its models.
        folder: for the catalogues.
        seconds: length of each phase.
        num_callers: number of threads.
    """

    def __init__(self, triton_address: str, model_repository: Path, folder: Path, seconds: float, num_callers: int):
        self._seconds = seconds
        self._num_callers = num_callers
        self._model_repository = model_repository
        self._first, self._second = build_catalogues(folder, triton_address, model_repository)
        self._catalogue = folder / "catalogue.sqlite"
        self._settings = {
            **PATIENT,
            "CAPTRIEVE_TRITON_ADDRESS": triton_address,
            "CAPTRIEVE_PROVIDERS": "catalog",
            "CAPTRIEVE_CATALOG": str(self._catalogue),
            "CAPTRIEVE_MIN_VISUAL_SCORE": "-1",
            "CAPTRIEVE_MAX_CONNECTION_AGE_SECONDS": str(_CONNECTION_AGE_SECONDS),
        }
        self._addresses = [f"127.0.0.1:{free_port()}" for _ in range(4)]
        self._running = contextlib.ExitStack()
        self._gateways: dict[str, GatewayProcess] = {}  # name -> those that serve
        self._phases: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Let everything happen; returns the phases and the times."""
        self._catalogue.write_bytes(self._first.read_bytes())
        with self._running:
            for name in "abc":
                self._start(name)
            photos = [drawing(garment, colour, seed=7) for garment, colour in PRODUCTS]
            with SearchClient(self._gateways["a"].address) as client:
                right = [gist(client.search(photo))[:2] for photo in photos]
            self._callers = Callers(",".join(self._addresses), photos, right)
            with self._callers.calling(self._num_callers):
                times = self._happenings()
        return {
            "callers": self._num_callers,
            "connection_age_seconds": _CONNECTION_AGE_SECONDS,
            "different_answers": len(set(right)),
            "phases": self._phases,
            **times,
        }

    def _happenings(self) -> dict[str, float]:
        times = {}
        self._until_used("c", time.perf_counter())
        with self._phase("a, b and c serve"):
            pass
        with self._phase("a is killed"):
            os.kill(self._gateways.pop("a").pid, signal.SIGKILL)
        with self._phase("d is added"):
            started = self._start("d")
            times["added_gets_share_seconds"] = self._until_used("d", started)
        with self._phase("b is drained and ended"):
            times["drain_seconds"] = self._drain(self._gateways.pop("b"))
        with self._phase("a comes back"):
            started = self._start("a")
            times["returned_gets_share_seconds"] = self._until_used("a", started)
        with self._phase("the catalogue is replaced"):
            times["catalogue_seconds"] = self._replace_catalogue()
        with self._phase("a, c and d serve"):
            pass
        return times

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Note what was called during the block and for some seconds after it, and which gateways answered then.

        On a busy machine it takes longer, since the shares of a few calls say nothing.
        """
        yield
        before, began = self._handled(), time.perf_counter()
        while True:
            time.sleep(_POLL_SECONDS)
            after = self._handled()
            seconds, calls = time.perf_counter() - began, sum(after.values()) - sum(before.values())
            if seconds >= self._seconds and calls >= _CALLS_OF_A_PHASE or seconds > _DRAIN_SECONDS:
                break
        counts = self._callers.take()
        answered = {name: after[name] - before[name] for name in sorted(after)}
        self._phases.append(
            {
                "name": name,
                "calls": counts.calls,
                "failed": counts.failed,
                "wrong": counts.wrong,
                "editions": counts.editions,
                "p50_ms": round(1000 * float(np.percentile(counts.seconds, 50)), 1),
                "slowest_ms": round(1000 * max(counts.seconds), 1),
                "share": {name: round(count / max(1, sum(answered.values())), 3) for name, count in answered.items()},
            }
        )

    def _start(self, name: str) -> float:
        """Start a gateway at its address; returns the time at which it was ready."""
        address = self._addresses["abcd".index(name)]
        gateway = GatewayProcess(self._model_repository, self._settings | {"CAPTRIEVE_LISTEN_ADDRESS": address})
        started = time.perf_counter()
        self._running.callback(gateway.close)
        self._running.enter_context(gateway.awake())
        self._gateways[name] = gateway
        return started

    def _handled(self) -> dict[str, int]:
        return {name: gateway.handled(_METHOD)["OK"] for name, gateway in self._gateways.items()}

    def _until_used(self, name: str, started: float) -> float:
        """Wait until a gateway gets half of an equal share of the calls; returns the seconds since it was ready."""

        def is_used() -> bool:
            before = self._handled()
            time.sleep(4 * _POLL_SECONDS)
            counts = {name: count - before[name] for name, count in self._handled().items()}
            return counts[name] > _FAIR * sum(counts.values()) / len(counts)

        return _seconds_until(is_used, started)

    def _drain(self, gateway: GatewayProcess) -> float:
        """Drain and end a gateway; returns the seconds until nothing was in flight."""
        started = time.perf_counter()
        seconds = _seconds_until(lambda: bool(json.loads(gateway.ask_admin("/drain", "POST"))["finished"]), started)
        os.kill(gateway.pid, signal.SIGTERM)
        if code := gateway.wait(_DRAIN_SECONDS):
            raise RuntimeError(f"the gateway ended with {code} after its drain")
        return seconds

    def _replace_catalogue(self) -> float:
        """Replace the file by another one; returns the seconds until every gateway answers from the new one."""
        os.replace(self._second, self._catalogue)
        started = time.perf_counter()
        photo = drawing(*PRODUCTS[0], seed=7)
        seconds = []
        for gateway in self._gateways.values():
            with SearchClient(gateway.address) as client:
                seconds.append(_seconds_until(lambda: gist(client.search(photo))[2] == EDITIONS[1], started))
        return max(seconds)


def _seconds_until(condition: Callable[[], bool], started: float) -> float:
    while not condition():
        if time.perf_counter() - started > _DRAIN_SECONDS:
            raise RuntimeError(f"it did not happen within {_DRAIN_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
    return round(time.perf_counter() - started, 2)


def report_text(record: Mapping[str, Any]) -> str:
    """Format a record as Markdown."""
    head = ["", "calls", "failed", "wrong", "p50", "slowest", "share of each gateway"]
    rows = [
        [
            phase["name"],
            str(phase["calls"]),
            str(len(phase["failed"])),
            str(len(phase["wrong"])),
            f"{phase['p50_ms']:.0f} ms",
            f"{phase['slowest_ms']:.0f} ms",
            ", ".join(f"{name} {100 * share:.0f} %" for name, share in phase["share"].items()),
        ]
        for phase in record["phases"]
    ]
    times = [
        f"{record[name]:5.1f} s  {text}"
        for name, text in (
            ("added_gets_share_seconds", "from ready to its share: the gateway that was added"),
            ("returned_gets_share_seconds", "the same: the gateway that came back"),
            ("drain_seconds", "until a drained gateway has nothing in flight"),
            ("catalogue_seconds", "until every gateway answers from the new catalogue"),
        )
    ]
    where = f"{record['commit']}, {record['machine']}, load {record['load_average']:.1f}, {record['callers']} callers"
    return "\n".join([markdown_table(head, rows), "", *times, where])


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.several_gateways", __doc__)
    parser.add_argument("--model-repository", type=Path, default=default_model_repository(), metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each phase (default 10)")
    parser.add_argument("--callers", type=int, default=12, metavar="N", help="threads that call (default 12)")
    add_output_options(parser)
    args: argparse.Namespace = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedTriton(args.model_repository) as triton:
        rehearsal = Rehearsal(triton.grpc_address, args.model_repository, Path(folder), args.seconds, args.callers)
        record = rehearsal.run() | provenance("grpcio")
    publish(record, report_text, args)
    if any(phase["failed"] or phase["wrong"] for phase in record["phases"]):
        sys.exit("calls failed, or answers were wrong")


if __name__ == "__main__":
    main()
