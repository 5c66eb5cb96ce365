# SPDX-License-Identifier: Apache-2.0
"""Can one greedy key delay another? `python -m benchmarks.fair_share [--samples N] [--flood N]`.

A modest key captions one photo after the other: alone, and beside another key whose calls are as many as `--flood` at a
time. The phases take turns, so that what else the machine does affects all of them. The flood comes from a key with
limits, from one without, and from the modest key itself, in whose queue it then stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.common.gateway_process import PATIENT, GatewayProcess
from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, publish
from drawings.draw_samples import draw_sample
from search_api import search_pb2, search_pb2_grpc
from search_gateway.__main__ import main as gateway_main
from search_gateway.config import default_model_repository

PHASES = {"alone": None, "limited flood": "limited", "unlimited flood": "unlimited", "flood of the same key": "modest"}
_SAMPLES_PER_TURN = 10
_WARM_UP_SECONDS = 1.0  # until a flood has filled what it can
_CALL_SECONDS = 60.0
_LONG_PAUSE_SECONDS = 5.0
_NUM_PHOTOS = 32


def add_keys(file: Path, rate: float, concurrency: float) -> dict[str, str]:
    """Make the keys with the gateway's own command; returns name -> key."""
    limits = ["--rate", str(rate), "--concurrency", str(concurrency)]
    keys = {}
    for name, options in (("modest", []), ("limited", limits), ("unlimited", [])):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            gateway_main(["keys", "add", name, "--file", str(file), *options], {})
        keys[name] = printed.getvalue().strip()
    return keys


class Caller:
    """Captions photos with one key, over a connection of its own.

    Args:
        address: HOST:PORT.
        key: the API key.
        photos: image files, sent in turn.
    """

    def __init__(self, address: str, key: str, photos: Sequence[bytes]):
        # A pool of its own, or the callers of this process would share a connection.
        self._channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._stub: Any = search_pb2_grpc.SearchServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._photos = photos
        self._next = 0
        self.num_answered = self.num_refused = 0

    async def caption(self) -> None:
        """Caption the next photo.

        Raises:
            grpc.aio.AioRpcError: the gateway refused it.
        """
        self._next = (self._next + 1) % len(self._photos)
        request = search_pb2.CaptionRequest(photo=self._photos[self._next])
        await self._stub.Caption(request, metadata=self._metadata, timeout=_CALL_SECONDS)

    async def flood(self) -> None:
        """Caption without end; after a refusal, pause as the gateway asks, as gRPC's retry policy does."""
        while True:
            try:
                await self.caption()
                self.num_answered += 1
            except grpc.aio.AioRpcError as error:
                self.num_refused += 1
                trailer: Any = error.trailing_metadata()
                pause = next((int(value) for key, value in trailer or () if key == "grpc-retry-pushback-ms"), -1)
                await asyncio.sleep(pause / 1000 if pause >= 0 else _LONG_PAUSE_SECONDS)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(None)


async def measured(
    address: str, keys: Mapping[str, str], samples: int, num_flooding: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, int]]]:
    """Measure all phases in turn.

    Returns:
        The modest caller's seconds for each phase, and the flood's answered and refused calls.
    """
    rng = np.random.default_rng(7)
    photos = []
    for _ in range(_NUM_PHOTOS):
        file = io.BytesIO()
        draw_sample("Shirt", "Red", rng).save(file, "JPEG", quality=90)
        photos.append(file.getvalue())
    modest = Caller(address, keys["modest"], photos)
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
    floods = {phase: {"answered": 0, "refused": 0} for phase, key in PHASES.items() if key is not None}
    for _ in range(5):
        await modest.caption()
    while len(seconds["alone"]) < samples:
        for phase, key in PHASES.items():
            tasks: list[asyncio.Task[None]] = []
            greedy = None
            if key is not None:
                greedy = Caller(address, keys[key], photos)
                tasks = [asyncio.create_task(greedy.flood()) for _ in range(num_flooding)]
                await asyncio.sleep(_WARM_UP_SECONDS)
            for _ in range(_SAMPLES_PER_TURN):
                started = time.perf_counter()
                await modest.caption()
                seconds[phase].append(time.perf_counter() - started)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if greedy is not None:
                floods[phase]["answered"] += greedy.num_answered
                floods[phase]["refused"] += greedy.num_refused
                await greedy.close()
                await asyncio.sleep(_WARM_UP_SECONDS)  # what was cancelled leaves the gateway
    await modest.close()
    return seconds, floods


def fair_share_text(record: Mapping[str, Any]) -> str:
    """Format a record as lines of text."""
    lines = []
    for phase, values in record["milliseconds"].items():
        flood = record["flood_calls"].get(phase)
        calls = "" if flood is None else f"   flood: {flood['answered']} answered, {flood['refused']} refused"
        ratio = values["p99"] / record["milliseconds"]["alone"]["p99"]
        lines.append(f"{phase:<22} p50 {values['p50']:7.1f} ms   p99 {values['p99']:7.1f} ms ({ratio:.2f} x){calls}")
    lines.append(f"{record['commit']}, {record['machine']}, load {record['load_average']:.1f}")
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.fair_share", __doc__)
    parser.add_argument("--model-repository", type=Path, default=default_model_repository(), metavar="FOLDER")
    parser.add_argument("--samples", type=int, default=100, metavar="N", help="calls in each phase (default 100)")
    parser.add_argument("--flood", type=int, default=64, metavar="N", help="calls at a time (default 64)")
    parser.add_argument("--rate", type=float, default=5.0, help="of the limited key, per second (default 5)")
    parser.add_argument("--concurrency", type=float, default=1.0, help="of the limited key (default 1)")
    add_output_options(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.json"
        keys = add_keys(file, args.rate, args.concurrency)
        gateway = GatewayProcess(args.model_repository, {**PATIENT, "CAPTRIEVE_API_KEYS": str(file)})
        try:
            with gateway.awake():
                seconds, floods = asyncio.run(measured(gateway.address, keys, args.samples, args.flood))
        finally:
            gateway.close()
    record = {
        "samples": len(seconds["alone"]),
        "flood": args.flood,
        "rate": args.rate,
        "concurrency": args.concurrency,
        "milliseconds": {
            phase: {f"p{q}": round(1000 * float(np.percentile(values, q)), 1) for q in (50, 90, 99)}
            for phase, values in seconds.items()
        },
        "flood_calls": floods,
        **provenance("grpcio"),
    }
    publish(json.loads(json.dumps(record)), fair_share_text, args)


if __name__ == "__main__":
    main()
