# SPDX-License-Identifier: Apache-2.0
"""Formats a GPU report as Markdown, with the roofline's projection beside each figure."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.captioning.table import column_title, number
from benchmarks.common.report import Record, markdown_table
from benchmarks.gpu_report.plan import TENSORRT, Size, Step
from benchmarks.gpu_report.runner import Outcome
from captioner.model_contract import ENCODER, PREFILL, STEP
from export.roofline import SIZES, T4, Attainment, encoder_work, prefill_work, project, step_work
from export.to_tensorrt import TIMED
from export.triton_config import MAX_BATCH_SIZE

DRY_RUN = (
    "**DRY RUN: no figure on this page was measured on a GPU.** docker and nvidia-smi were stand-ins, and the tables "
    "show records of earlier runs on a CPU."
)
_TAIL_LINES = 60
_TIMED = re.compile(rf"^{re.escape(TIMED)} (\w+), (\d+) x (\d+): ([\d.]+) ms$", re.MULTILINE)
_HEADS = {
    "engines": "Engines alone",
    "captioning": "Captions in batches",
    "load": "Load, greedy captions",
    "perf_analyzer": "perf_analyzer, greedy captions",
}


def report_page(facts: Mapping[str, str], outcomes: Sequence[Outcome], *, is_dry: bool) -> str:
    """Format a report.

    Args:
        facts: about the host, in the order in which they are shown.
        outcomes: of all steps that were run.
        is_dry: whether this is a dry run.
    """
    parts = ["# GPU report", *([DRY_RUN] if is_dry else [])]
    parts.append(markdown_table(["", ""], [[name, _cell(value)] for name, value in facts.items()], left=2))
    parts.append(
        f"The projection is that of docs/t4-roofline.md for a {T4.name} with the attained shares it assumes, not a "
        "measurement; for another GPU it says nothing. It leaves out gRPC, the gateway and the copies to the GPU."
    )
    for outcome in outcomes:
        step = outcome.step
        if step.kind and not outcome.failure:
            try:
                record = outcome.output if step.record is None else step.record.read_text(encoding="utf-8")
                text = _TABLES[step.kind](step, record)
            except (OSError, ValueError, KeyError, TypeError) as error:
                text = f"The record cannot be read: {type(error).__name__}: {error}"
            parts += [f"## {_HEADS[step.kind]}: {', '.join(filter(None, (step.size, step.config)))}", text]
    parts += ["## Steps", _steps_table(outcomes)]
    for outcome in outcomes:
        if outcome.failure or outcome.step.is_shown or outcome.step.command[0] == "docker":
            parts += [f"### {outcome.step.title}: {outcome.failure or 'done'}", _block(outcome)]
    return "\n\n".join(parts) + "\n"


def engines_part(step: Step, text: str) -> str:
    """Return the table of the times that `export.to_tensorrt` printed."""
    rows = []
    for model, photos, beams, milliseconds in _TIMED.findall(text):
        projected = 1000 * _stage_seconds(step.size, model, int(photos), int(beams), has_graphs=True)
        title = column_title(int(photos), int(beams))
        rows.append([model, title, milliseconds, f"{projected:.3f}", _share(projected, float(milliseconds))])
    return markdown_table(["engine", "at a time", "ms", "projected", "share"], rows, left=2) if rows else "Not timed."


def captioning_part(step: Step, text: str) -> str:
    """Return the tables of a captioning record: whole captions, many callers, and each model alone."""
    record: Record = json.loads(text)
    systems = {system["name"]: system for system in record["systems"]}
    rows = []
    for one in [*record["captioning"], *record["callers"]]:
        system, steps = systems[one["system"]], _steps_of(one)
        has_graphs = step.config == TENSORRT and system["kind"] == "gateway"
        projected = _captions_per_second(step.size, one["photos"], one["beams"], steps, has_graphs=has_graphs)
        rows.append(
            [
                one["system"], f"{system['precision'].upper()}, {system['device']}",
                column_title(one["photos"], one["beams"]) + (f", {one['waves']} times" if one["waves"] > 1 else ""),
                number(one["captions_per_second"]), number(projected), _share(one["captions_per_second"], projected),
                _ratio(one["captions_per_second"], _reference(record, one)),
                f"{one['equal'] / one['compared']:.1%}",
            ]
        )  # fmt: skip
    head = ["system", "models", "at a time", "captions/s", "projected", "share", "× `generate`", "equal"]
    parts = [markdown_table(head, rows, left=3)]
    parts += [f"{name}: {system['failure']}" for name, system in systems.items() if system["failure"]]
    alone = []
    for one in record["stages"]:
        measured, model = one["seconds"]["median"], _MODELS[one["stage"]]
        projected = _stage_seconds(step.size, model, one["photos"], one["beams"], has_graphs=False)
        title = column_title(one["photos"], one["beams"])
        times = (f"{1000 * measured:.2f}", f"{1000 * projected:.2f}", _share(projected, measured))
        alone.append([one["system"], one["stage"], title, *times])
    if alone:
        parts.append(markdown_table(["system", "model alone", "at a time", "ms", "projected", "share"], alone, left=3))
    where = {system["device"] for system in record["systems"]}
    parts.append(
        f"{record['commit']}, {record['machine']}, {record['measured']}; `generate` and the in-process models ran on "
        f"{' and '.join(sorted(where))}. {_versions(record)}"
    )
    return "\n\n".join(parts)


def load_part(step: Step, text: str) -> str:
    """Return the tables of a load record: closed loop and open loop."""
    record: Record = json.loads(text)
    steps = SIZES[step.size].max_tokens
    rows = []
    for one in record["curve"]:
        projected = _captions_per_second(step.size, one["callers"], 1, steps)
        rows.append([f"{one['callers']}", *_load_cells(one, projected)])
    parts = [
        f"Projected with {steps} steps, the most of a caption.",
        markdown_table(["callers", *_LOAD_HEAD], rows),
    ]
    if "open" in record:
        projected = _captions_per_second(step.size, MAX_BATCH_SIZE, 1, steps)
        rows = [[f"{one['offered']:.1f}/s", *_load_cells(one, projected)] for one in record["open"]["points"]]
        parts.append(markdown_table(["arrivals", *_LOAD_HEAD], rows))
    oracle = record["oracle"]
    parts.append(
        f"{oracle['differ_from_in_process']} of {oracle['photos']} captions differ from those of the same ONNX models "
        f"on the CPU. {record['commit']}, {record['measured']}. {_versions(record)}"
    )
    return "\n\n".join(parts)


def perf_analyzer_part(step: Step, text: str) -> str:
    """Return the table of perf_analyzer's CSV, whose times are in microseconds."""
    steps = SIZES[step.size].max_tokens
    rows = []
    for one in csv.DictReader(text.splitlines()):
        measured = float(one["Inferences/Second"])
        projected = _captions_per_second(step.size, int(one["Concurrency"]), 1, steps)
        latencies = (f"{float(one[f'{which} latency']) / 1000:.1f}" for which in ("p50", "p99"))
        rows.append([one["Concurrency"], number(measured), number(projected), _share(measured, projected), *latencies])
    head = ["concurrency", "captions/s", "projected", "share", "p50 ms", "p99 ms"]
    return f"Projected with {steps} steps, the most of a caption.\n\n{markdown_table(head, rows)}"


_LOAD_HEAD = ["captions/s", "projected", "share", "p50 ms", "p99 ms"]
_MODELS = {"encoder": ENCODER, "prefill": PREFILL, "step": STEP}  # stage of the captioning benchmark -> model
_TABLES: dict[str, Callable[[Step, str], str]] = {
    "engines": engines_part, "captioning": captioning_part, "load": load_part, "perf_analyzer": perf_analyzer_part,
}  # fmt: skip


def _load_cells(one: Mapping[str, Any], projected: float) -> list[str]:
    latency = one["latency"] or {}
    times = [f"{latency[which]:.1f}" if which in latency else "–" for which in ("p50", "p99")]
    return [number(one["throughput"]), number(projected), _share(one["throughput"], projected), *times]


def _captions_per_second(size: Size, photos: int, beams: int, steps: int, *, has_graphs: bool = True) -> float:
    """The projection for photos at a time; CUDA graphs, which only the TensorRT backend has, save the launches."""
    attained = Attainment(launch_seconds=0.0) if has_graphs else Attainment()
    steps = min(steps, SIZES[size].max_tokens)
    return project(SIZES[size], min(photos, MAX_BATCH_SIZE), beams, steps, attained=attained).captions_per_second


def _stage_seconds(size: Size, model: str, photos: int, beams: int, *, has_graphs: bool) -> float:
    """The projection for one model; ONNX Runtime launches every kernel."""
    if model == ENCODER:
        work = encoder_work(SIZES[size], photos)
    elif model == PREFILL:
        work = prefill_work(SIZES[size], photos)
    else:
        work = step_work(SIZES[size], photos, beams)
    return work.seconds(T4, Attainment(launch_seconds=0.0) if has_graphs else Attainment())


def _steps_of(one: Mapping[str, Any]) -> int:
    """The steps of the mean caption of a record, that of its end included."""
    tokens: float = one["tokens_per_second"] / one["captions_per_second"]
    return round(tokens) + 1


def _reference(record: Record, one: Mapping[str, Any]) -> float | None:
    """The captions per second of `generate` for the same photos."""
    for other in record["captioning"] if one["waves"] == 1 else record["callers"]:
        same = one["waves"] > 1 or (other["photos"], other["beams"]) == (one["photos"], one["beams"])
        if other["system"] == "generate" and same:
            speed: float = other["captions_per_second"]
            return speed
    return None


def _ratio(measured: float, reference: float | None) -> str:
    return "–" if not reference else f"{measured / reference:.2f}"


def _share(measured: float, projected: float) -> str:
    return f"{measured / projected:.0%}"


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def _steps_table(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [one.step.title, _cell(one.failure or "done"), f"{one.seconds:.0f} s", one.clocks or "–"] for one in outcomes
    ]
    return markdown_table(["step", "result", "time", "clocks while the GPU was busy"], rows, left=2)


def _block(outcome: Outcome) -> str:
    lines = outcome.output.rstrip().splitlines()[-_TAIL_LINES:] or ["(no output)"]
    return "\n".join(["````", f"$ {' '.join(outcome.step.command)}", *lines, "````"])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
