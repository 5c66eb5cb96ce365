# SPDX-License-Identifier: Apache-2.0
"""How fast is captioning, compared with other libraries? `python -m benchmarks.captioning --size full|small [--peers]`.

Compares Hugging Face's `generate()`, optimum's ONNX Runtime models (--peers), our models in-process, and our models
through gRPC, gateway and Triton, all with the same weights, photos and number of tokens. Each system runs in a process
of its own; the systems take turns, and their tokens are compared with those of `generate()`. The command also measures
the limits of this machine, and prints the tables of the README.

--size full is ViT-B/16 and GPT-2 with cross-attention (239 M parameters) and random weights; its captions have a fixed
length. --size small is checkpoints/fashion-small, whose captions end with its end token.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.captioning.costs import CaptionerShape, encoder_cost, least_seconds, prefill_cost, step_cost
from benchmarks.captioning.models import (
    SMALL_CHECKPOINT,
    checkpoint_config,
    count_parameters,
    full_size_checkpoint,
    make_photos,
    optimum_models,
    our_models,
)
from benchmarks.captioning.rounds import CaptioningFigure, Entrant, StageFigure, enter, race, race_stages
from benchmarks.captioning.systems import Kind, Stage, SystemSpec, Workload
from benchmarks.captioning.table import captioning_table
from benchmarks.common.machine_limits import MachineLimits, measure_limits
from benchmarks.common.own_process import OwnProcessError, in_own_process
from benchmarks.common.provenance import provenance
from benchmarks.common.report import Record, make_parser
from captioner.caption_tokenizer import CaptionTokenizer
from captioner.model_contract import PRECISIONS

REFERENCE = "generate"
LIMITS_SECONDS = 300.0  # more than ten times what measuring them takes
CALLERS = 32  # of the small model through gRPC, at the same time
CALLER_WAVES = 4  # number of photos of each caller
TOKENS = {"full": 10, "small": 24}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("benchmarks.captioning", __doc__)
    parser.add_argument("--size", choices=("full", "small"), required=True)
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint than that of the size")
    parser.add_argument("--data", type=Path, help="folder with images/ and styles.csv (default: drawn samples)")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="folder of the exported models")
    parser.add_argument("--peers", action="store_true", help="also measure optimum's ORTModelForVision2Seq")
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, help="of our models (default: fp32, int8, on a GPU also fp16)"
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", default="", help="a running gateway with the models of the one --precisions"
    )
    parser.add_argument("--export-only", action="store_true", help="make the models in --work and measure nothing")
    parser.add_argument("--photos", type=int, nargs="+", default=[1, 8], help="photos at a time (default 1 8)")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], help="beams (default 1 4)")
    parser.add_argument("--tokens", type=int, help="length of a caption (default: full 10, small at most 24)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each system, after a warm-up (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record as JSON to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot of the captions per second, as PNG")
    args = parser.parse_args(argv)
    if min(*args.photos, *args.beams, args.repeats, args.tokens or 1) < 1:
        parser.error("--photos, --beams, --tokens and --repeats must be at least 1")
    if args.address and len(args.precisions or ()) != 1:
        parser.error("--address needs the one precision of its gateway's models: --precisions fp16")
    args.tokens = args.tokens or TOKENS[args.size]
    return args


def has_cuda() -> bool:
    """Return whether both PyTorch and ONNX Runtime find a CUDA GPU."""
    import onnxruntime
    import torch

    return torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def systems_of(args: argparse.Namespace, checkpoint: Path, *, on_gpu: bool) -> list[SystemSpec]:
    """Return all systems, the reference first."""
    device = "cuda" if on_gpu else "cpu"
    precisions = args.precisions or (["fp32", "fp16", "int8"] if on_gpu else ["fp32", "int8"])
    common: dict[str, Any] = {"device": device, "endless": args.size == "full"}
    systems = [SystemSpec(name=REFERENCE, kind="generate", source=checkpoint, is_peer=True, **common)]
    if on_gpu:
        systems.append(
            SystemSpec(
                name=f"{REFERENCE} fp16", kind="generate", source=checkpoint, precision="fp16", is_peer=True, **common
            )
        )
    if args.peers:
        source = args.work / f"{checkpoint.name}-optimum"
        systems.append(SystemSpec(name="optimum", kind="optimum", source=source, is_peer=True, **common))
    ways: tuple[tuple[Kind, str], ...] = (("in-process", "in-process"), ("gateway", "gRPC"))
    for kind, title in ways:
        systems += [
            SystemSpec(
                name=f"{title} {precision}", kind=kind, source=args.work / f"{checkpoint.name}-{precision}",
                precision=precision, address=args.address if kind == "gateway" else "", **common,
            )
            for precision in precisions
        ]  # fmt: skip
    return systems


def make_models(args: argparse.Namespace, checkpoint: Path, systems: Sequence[SystemSpec]) -> dict[str, str]:
    """Make the models of the systems; returns system -> reason for those whose models cannot be made."""
    failures: dict[str, str] = {}
    reasons: dict[Path, str | None] = {checkpoint: None}
    progress = tqdm(systems, desc="models", unit="system")
    for spec in progress:
        progress.set_description(f"models of {spec.name}")
        if spec.source not in reasons:
            try:
                if spec.kind == "optimum":
                    in_own_process(optimum_models, checkpoint, spec.source)
                else:
                    in_own_process(our_models, checkpoint, spec.source, spec.precision, args.data, spec.endless)
                reasons[spec.source] = None
            except OwnProcessError as error:
                reasons[spec.source] = f"cannot export: {error}"
        if (reason := reasons[spec.source]) is not None:
            failures[spec.name] = reason
    return failures


def measure(
    args: argparse.Namespace,
    checkpoint: Path,
    systems: Sequence[SystemSpec],
    find_limits: Callable[[], MachineLimits] = lambda: in_own_process(measure_limits, timeout_seconds=LIMITS_SECONDS),
) -> Record:
    """Run the benchmark.

    Returns:
        The record, from which tables and plot are made.
    """
    record: Record = {
        "size": args.size,
        "tokens": args.tokens,
        "repeats": args.repeats,
        "parameters": count_parameters(checkpoint),
        # Before the run, so that its load average is without the benchmark's own load.
        **provenance("optimum", "optimum-onnx"),
    }
    failures = make_models(args, checkpoint, systems)
    callers = CALLERS if args.size == "small" else 0
    photos = in_own_process(make_photos, checkpoint, max(*args.photos, callers), args.data)
    limits = find_limits()
    tokenizer = CaptionTokenizer(checkpoint)
    workloads = [Workload(photos, beams, args.tokens) for beams in args.beams for photos in args.photos]
    total = len(systems) * (1 + len(workloads) * (args.repeats + 1))
    with tqdm(total=total, unit="turn") as progress:
        entrants = enter(systems, photos, failures, progress)
        try:
            figures = [
                figure
                for workload in workloads
                for figure in race(
                    [(entrant, workload) for entrant in entrants], args.repeats, REFERENCE, tokenizer, progress
                )
            ]
            calls: list[CaptioningFigure] = []
            if callers:
                entries = _caller_entries(entrants, callers, args.tokens)
                progress.total += len(entries) * (args.repeats + 1)
                calls = race(entries, args.repeats, REFERENCE, tokenizer, progress)
            for entrant in entrants:
                memory = entrant.ask("peak_memory")
                entrant.peak_memory = memory if isinstance(memory, int) else None
            stages = _stages(args, entrants, progress)
        finally:
            for entrant in entrants:
                entrant.close()
    # Once more at the end: other load during one measurement would make our models look nearer to the limits.
    try:
        limits = limits.or_better(find_limits())
    except OwnProcessError as error:
        print(f"the limits were measured only before the run: {error}", file=sys.stderr)
    return {
        **record,
        "limits": dataclasses.asdict(limits),
        "systems": [_system_record(entrant) for entrant in entrants],
        "captioning": [dataclasses.asdict(figure) for figure in figures],
        "callers": [dataclasses.asdict(figure) for figure in calls],
        "stages": [_stage_record(figure, systems, checkpoint, limits) for figure in stages],
    }


def _caller_entries(entrants: Sequence[Entrant], callers: int, tokens: int) -> list[tuple[Entrant, Workload]]:
    """Return many simultaneous callers of the gateways, and `generate()` for the same photos one by one."""
    many = Workload(callers, 1, tokens, waves=CALLER_WAVES)
    alone = Workload(1, 1, tokens, waves=many.captions)
    return [
        (entrant, many if entrant.spec.kind == "gateway" else alone)
        for entrant in entrants
        if entrant.spec.kind in ("gateway", "generate")
    ]


def _stages(args: argparse.Namespace, entrants: Sequence[Entrant], progress: tqdm[Any]) -> list[StageFigure]:
    """Measure each of our models alone; encoder and prefill do not depend on the beams."""
    ours = [entrant for entrant in entrants if entrant.spec.kind == "in-process"]
    alike: tuple[Stage, ...] = ("encoder", "prefill")
    runs: list[tuple[Stage, int, int]] = [(stage, photos, 1) for stage in alike for photos in args.photos]
    runs += [("step", photos, beams) for beams in args.beams for photos in args.photos]
    progress.total += len(ours) * len(runs) * (args.repeats + 1)
    return [
        figure
        for stage, photos, beams in runs
        for figure in race_stages(ours, stage, photos, beams, args.tokens // 2, args.repeats, progress)
    ]


def _stage_record(
    figure: StageFigure, systems: Sequence[SystemSpec], checkpoint: Path, limits: MachineLimits
) -> Record:
    precision = next(spec.precision for spec in systems if spec.name == figure.system)
    shape = CaptionerShape.of(checkpoint_config(checkpoint))
    if figure.stage == "encoder":
        cost = encoder_cost(shape, figure.photos, precision)
    elif figure.stage == "prefill":
        cost = prefill_cost(shape, figure.photos, precision)
    else:
        cost = step_cost(shape, figure.photos, figure.beams, figure.position, precision)
    peak = limits.peak(precision)
    least, bound = (None, None) if peak is None else least_seconds(cost, peak, limits.read_bandwidth)
    return {
        **dataclasses.asdict(figure),
        "precision": precision,
        **dataclasses.asdict(cost),
        "least_seconds": least,
        "bound": bound,
        "share_of_limit": None if least is None else least / figure.seconds.median,
    }


def _system_record(entrant: Entrant) -> Record:
    names = ("name", "kind", "precision", "device", "is_peer")
    record = {name: getattr(entrant.spec, name) for name in names}
    return {**record, "peak_memory_bytes": entrant.peak_memory, "failure": entrant.failure}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = args.checkpoint or (SMALL_CHECKPOINT if args.size == "small" else args.work / "vit-base-gpt2")
    if args.checkpoint is None and args.size == "full":
        in_own_process(full_size_checkpoint, checkpoint)
    systems = systems_of(args, checkpoint, on_gpu=in_own_process(has_cuda))
    if args.export_only:
        failures = make_models(args, checkpoint, systems)
        print("\n".join(f"{name}: {reason}" for name, reason in failures.items()) or f"the models are in {args.work}")
        return 1 if failures else 0
    record = measure(args, checkpoint, systems)
    print(captioning_table(record))
    if args.json is not None:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None:
        from benchmarks.captioning.plot import plot_captioning

        plot_captioning(record, args.plot)
    # A peer that fails is a result; one of our systems that fails is a defect.
    return 1 if any(system["failure"] and not system["is_peer"] for system in record["systems"]) else 0
