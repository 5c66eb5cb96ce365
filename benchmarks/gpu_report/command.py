# SPDX-License-Identifier: Apache-2.0
"""Measure the containers on a host with a GPU and write a report: `python -m benchmarks.gpu_report [--data FOLDER]`.

Builds the engines in Triton's image, checks parity, and runs the captioning and the load benchmark and perf_analyzer
against the containers and `generate()`, for both sizes of the models, with TensorRT and with ONNX Runtime's CUDA and
TensorRT providers. The report has versions, the GPU's clocks, and the projection of export.roofline beside each figure.
A step that fails is in the report with its output, and the others go on. It takes some hours.

--dry-run goes through all steps without a GPU and without Docker: stand-ins replace both, and the tables show records
of earlier runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.common.provenance import provenance
from benchmarks.common.report import make_parser
from benchmarks.gpu_report.page import report_page
from benchmarks.gpu_report.plan import CONFIGS, SIZES, Settings, perf_analyzer, perf_analyzer_script, plan
from benchmarks.gpu_report.runner import FACTS, Outcome, answer_of, run_step, stand_ins
from drawings.draw_samples import training_samples
from export.engine_record import EngineRecord
from export.tensorrt_plan import IMAGE
from export.triton_config import PLAN_FILE

_DRAWN_PHOTOS = 200
_DRAWN_SIZE = (240, 320)  # width and height, in pixels


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("benchmarks.gpu_report", __doc__)
    parser.add_argument("--output", type=Path, default=Path(".run/gpu-report"), help="folder (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="folder of the exported models")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="photos, also with styles.csv (default: drawn ones)"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="of Triton")
    parser.add_argument("--port", type=int, default=8001, help="of the gateway, on loopback (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="go through all steps without a GPU and without Docker")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a step failed."""
    args = parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    data = args.data or draw_photos(args.output / "photos", 1 if args.dry_run else _DRAWN_PHOTOS)
    settings = Settings(
        output=args.output, work=args.work, data=data.resolve(),
        products=data.resolve() if (data / "styles.csv").is_file() else None,
        sizes=tuple(args.sizes), configs=tuple(args.configs), port=args.port,
    )  # fmt: skip
    perf_analyzer(settings).write_text(perf_analyzer_script(settings), encoding="utf-8")
    perf_analyzer(settings).chmod(0o755)
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as folder:
        if args.dry_run:
            with stand_ins(Path(folder)) as environ:
                outcomes = run_all(settings, environ, is_dry=True)
        else:
            environ = dict(os.environ)
            outcomes = run_all(settings, environ, is_dry=False)
        page = report_page(facts(environ, settings), outcomes, is_dry=args.dry_run)
    report = args.output / "report.md"
    report.write_text(page, encoding="utf-8")
    failed = [outcome.step.title for outcome in outcomes if outcome.failure]
    print(f"{report}: {len(outcomes) - len(failed)} of {len(outcomes)} steps succeeded")
    for title in failed:
        print(f"failed: {title}", file=sys.stderr)
    return 1 if failed else 0


def run_all(settings: Settings, environ: Mapping[str, str], *, is_dry: bool) -> list[Outcome]:
    """Run all steps of the plan, whether or not one fails."""
    outcomes = []
    with tqdm(list(plan(settings)), unit="step") as steps:
        for step in steps:
            steps.set_description_str(step.title)
            log = settings.output / "clocks.csv"
            outcomes.append(run_step(step, environ, log, is_dry=is_dry))
            log.unlink(missing_ok=True)
    return outcomes


def facts(environ: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """What the report says about the host."""
    query = ("nvidia-smi", f"--query-gpu={','.join(FACTS)}", "--format=csv,noheader")
    digest = ("docker", "image", "inspect", '--format={{join .RepoDigests " "}}', IMAGE)
    known = provenance("onnxruntime-gpu", "optimum", "optimum-onnx")
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    records = (EngineRecord.load(plan) for plan in sorted(settings.work.glob(f"*-fp16/*/1/{PLAN_FILE}")))
    engines = {f"TensorRT {one.tensorrt} on {one.gpu}" for one in records if one is not None}
    return {
        "commit": known["commit"],
        "measured": known["measured"],
        "machine": known["machine"],
        "packages": versions,
        f"GPU ({', '.join(FACTS)})": answer_of(query, environ),
        "Docker": answer_of(("docker", "version", "--format={{.Server.Version}}"), environ),
        "Compose": answer_of(("docker", "compose", "version", "--short"), environ),
        "image": f"{IMAGE}: {answer_of(digest, environ)}",
        "engines": ", ".join(sorted(engines)) or "none",
        "photos": "drawn" if settings.data.parent == settings.output.resolve() else settings.data.name,
    }


def draw_photos(folder: Path, count: int) -> Path:
    """Draw `count` photos, where there are no others; returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (picture, _) in enumerate(training_samples(count, 2, *_DRAWN_SIZE)):
        picture.save(folder / f"{number:03}.jpg")
    return folder
