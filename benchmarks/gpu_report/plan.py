# SPDX-License-Identifier: Apache-2.0
"""The steps of a GPU report: which commands run, in which environment, and what they write."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.captioning.models import ROOT, SMALL_CHECKPOINT
from export.tensorrt_plan import IMAGE

Size = Literal["small", "full"]
# The table that the report makes of what a step writes; "": none.
Kind = Literal["", "engines", "captioning", "load", "perf_analyzer"]
SIZES: tuple[Size, ...] = ("small", "full")
CHECKPOINTS = {"small": SMALL_CHECKPOINT.name, "full": "vit-base-gpt2"}  # names in the folder of the models

TENSORRT = "tensorrt"
CONFIGS = (TENSORRT, "onnxruntime_cuda", "onnxruntime_tensorrt")  # of Triton, see export.triton_config

_RESULTS = ROOT / "benchmarks" / "results"
_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and where files lie."""

    output: Path  # folder of the report and of all records
    work: Path  # folder of the exported models
    data: Path  # folder of photos
    products: Path | None = None  # folder with images/ and styles.csv; None: parity is checked on drawn samples
    sizes: tuple[Size, ...] = SIZES
    configs: tuple[str, ...] = CONFIGS
    port: int = 8001  # of the gateway, on loopback


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        title: in the report.
        command: program and arguments.
        kind: of its record.
        size: of the models.
        config: of Triton, where the command measures it.
        record: the file that the command writes; None: its output is the record.
        stand_in: the file of an earlier run on a CPU that a dry run takes for the record.
        environ: further variables.
        timeout_seconds: after which the command is ended.
        is_shown: whether the report shows the output of a step that succeeds.
    """

    title: str
    command: tuple[str, ...]
    kind: Kind = ""
    size: Size = "small"
    config: str = ""
    record: Path | None = None
    stand_in: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float = _HOUR
    is_shown: bool = False


def plan(settings: Settings) -> Iterator[Step]:
    """All steps in their order; each may fail without those that follow."""
    yield _compose("build the images", {}, "build", "engines", "gateway")
    for size in settings.sizes:
        yield from _size_steps(settings, size)


def _size_steps(settings: Settings, size: Size) -> Iterator[Step]:
    work, output = settings.work.resolve(), settings.output.resolve()
    models, reference = (work / f"{CHECKPOINTS[size]}-{precision}" for precision in ("fp16", "fp32"))
    environ = {
        "MODEL_REPOSITORY": str(models),
        "REFERENCE_REPOSITORY": str(reference),
        "MODEL_OWNER": f"{os.getuid()}:{os.getgid()}",
        "GATEWAY_PORT": str(settings.port),
    }
    data = () if settings.products is None else ("--data", str(settings.products))
    captioning = ("--size", size, "--work", str(work), *data)
    yield _module(
        f"{size}: export",
        "benchmarks.captioning",
        *captioning,
        "--precisions",
        "fp32",
        "fp16",
        "--export-only",
        size=size,
    )
    yield _compose(
        f"{size}: build and compare the engines", environ, "run", "--rm", "engines",
        "python3", "-m", "export.to_tensorrt", "--rebuild", kind="engines", size=size, shown=True,
    )  # fmt: skip
    if size == "small":  # captions of the full size have no end, unlike those of generate()
        checkpoint = ("--checkpoint", str(SMALL_CHECKPOINT), "--models", str(reference), str(models))
        for host, more in (("onnxruntime", ("--peers",)), ("cuda", ())):
            yield _module(
                f"{size}: parity, {host}", "export.check_parity", *checkpoint, "--hosts", host, *data, *more,
                size=size, shown=True,
            )  # fmt: skip
    address = f"127.0.0.1:{settings.port}"
    for config in settings.configs:
        served = {**environ, "TRITON_CONFIG": config}
        name = f"{size}, {config}"
        yield _compose(
            f"{name}: start",
            served,
            "up",
            "--detach",
            "--wait",
            "--wait-timeout",
            "1800",
            "triton",
            "gateway",
            size=size,
        )
        record = output / f"captioning-{size}-{config}.json"
        yield _module(
            f"{name}: captioning", "benchmarks.captioning", *captioning, "--precisions", "fp16", "--address", address,
            "--photos", "1", "8", "32", "--json", str(record),
            kind="captioning", size=size, config=config, record=record, stand_in=_RESULTS / f"captioning-{size}.json",
        )  # fmt: skip
        if config == TENSORRT:
            yield from _load_steps(settings, size, config, models, address)
        yield _compose(f"{name}: log of Triton", served, "logs", "--no-color", "--tail=100", "triton", size=size)
        yield _compose(f"{name}: stop", served, "down", size=size)


def _load_steps(settings: Settings, size: Size, config: str, models: Path, address: str) -> Iterator[Step]:
    output = settings.output.resolve()
    record = output / f"load-{size}.json"
    yield _module(
        f"{size}, {config}: load", "benchmarks.load", "--data", str(settings.data), "--address", address,
        "--model-repository", str(models), "--phases", "curve,open", "--output", str(record),
        kind="load", size=size, config=config, record=record, stand_in=_RESULTS / "load.json",
    )  # fmt: skip
    folder = output / f"perf_analyzer-{size}"
    yield _module(
        f"{size}, {config}: perf_analyzer", "benchmarks.perf_analyzer", "--data", str(settings.data),
        "--address", address, "--perf-analyzer", str(perf_analyzer(settings)), "--search", "--output", str(folder),
        kind="perf_analyzer", size=size, config=config, record=folder / "caption.csv",
        stand_in=_RESULTS / "perf_analyzer-caption.csv",
    )  # fmt: skip


def perf_analyzer(settings: Settings) -> Path:
    """The file of the program that `perf_analyzer_script` is."""
    return settings.output.resolve() / "perf_analyzer"


def perf_analyzer_script(settings: Settings) -> str:
    """A program that runs perf_analyzer in NVIDIA's image of the clients; it sees the report's folder only."""
    folder = settings.output.resolve()
    return (
        "#!/bin/sh\n"
        f'exec docker run --rm --network=host --user={os.getuid()}:{os.getgid()} --volume="{folder}:{folder}" '
        f'{IMAGE}-sdk perf_analyzer "$@"\n'
    )


def _compose(
    title: str,
    environ: Mapping[str, str],
    *arguments: str,
    kind: Kind = "",
    size: Size = "small",
    shown: bool = False,
) -> Step:
    command = ("docker", "compose", "--file", str(ROOT / "docker-compose.yml"), *arguments)
    return Step(title=title, command=command, kind=kind, environ=environ, size=size, is_shown=shown)


def _module(
    title: str,
    module: str,
    *arguments: str,
    size: Size,
    kind: Kind = "",
    config: str = "",
    record: Path | None = None,
    stand_in: Path | None = None,
    shown: bool = False,
) -> Step:
    return Step(
        title=title, command=(sys.executable, "-m", module, *arguments), kind=kind, size=size, config=config,
        record=record, stand_in=stand_in, timeout_seconds=2 * _HOUR, is_shown=shown,
    )  # fmt: skip
