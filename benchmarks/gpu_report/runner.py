# SPDX-License-Identifier: Apache-2.0
"""Runs the steps of a report and logs the GPU's clocks meanwhile; a failed step is a result like any other."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.captioning.models import ROOT
from benchmarks.gpu_report.plan import Step
from export.to_tensorrt import TIMED

# Queried once, and once a second.
FACTS = (
    "name", "driver_version", "compute_cap", "memory.total", "clocks.max.sm", "clocks.max.mem", "power.limit",
    "persistence_mode",
)  # fmt: skip
CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
_BUSY = 10.0  # percent of utilisation from which on a clock counts: an idle GPU is clocked down
_STOP_SECONDS = 10.0

# Programs of a dry run. The text of the report says so, too.
STAND_INS = {
    "docker": (
        '#!/bin/sh\necho "stand-in for docker: $*"\n'
        f'case "$*" in *export.to_tensorrt*) echo "{TIMED} gpt2_step, 8 x 4: 1.234 ms";; esac\n'
    ),
    "nvidia-smi": (
        "#!/bin/sh\ncase \"$*\" in\n*--loop*) echo '1590, 5000, 68.5, 71, 99'; exec sleep 3600;;\n"
        "*) echo 'stand-in for a GPU, 0, 7.5, 0, 0, 0, 0, 0';;\nesac\n"
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a step."""

    step: Step
    failure: str  # "" if it succeeded
    output: str  # of the command, both streams
    seconds: float
    clocks: str  # of the GPU meanwhile; "" where they are not known


def run_step(step: Step, environ: Mapping[str, str], log: Path, *, is_dry: bool = False) -> Outcome:
    """Run one step.

    Args:
        step: to run.
        environ: the variables of the command, to which the step's own are added.
        log: file for the GPU's clocks, which is replaced.
        is_dry: take the step's stand-in for its record, and run nothing but docker.
    """
    if step.record is not None:
        step.record.unlink(missing_ok=True)  # that of an earlier report
    started = time.monotonic()
    with _logged_clocks(environ, log):
        if is_dry and step.command[0] != "docker":
            failure, output = "", f"dry run: {' '.join(step.command)}\n"
            if step.record is not None and step.stand_in is not None:
                step.record.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(step.stand_in, step.record)
        else:
            failure, output = _run(step.command, {**environ, **step.environ}, step.timeout_seconds)
    if not failure and step.record is not None and not step.record.is_file():
        failure = f"wrote no {step.record.name}"
    return Outcome(step, failure, output, time.monotonic() - started, clocks_text(log))


def answer_of(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """What a command prints, or why it does not."""
    failure, output = _run(command, environ, 60.0)
    return f"{output.strip()} ({failure})".strip() if failure else output.strip()


@contextlib.contextmanager
def stand_ins(folder: Path) -> Iterator[dict[str, str]]:
    """Write the programs of a dry run into a folder; yields an environment whose PATH begins with it."""
    for name, text in STAND_INS.items():
        program = folder / name
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
    yield {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}


def clocks_text(log: Path) -> str:
    """Sum up lines of `CLOCKS`; "" where there are none."""
    rows = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        with contextlib.suppress(ValueError):
            values = [float(value) for value in line.split(",")]
            if len(values) == len(CLOCKS):
                rows.append(values)
    busy = [row for row in rows if row[-1] >= _BUSY] or rows
    if not busy:
        return ""
    sm, memory, watts, degrees, _ = zip(*busy, strict=True)
    return (
        f"SM {statistics.median(sm):.0f} MHz ({min(sm):.0f} to {max(sm):.0f}), "
        f"memory {statistics.median(memory):.0f} MHz, up to {max(watts):.0f} W and {max(degrees):.0f} °C"
    )


@contextlib.contextmanager
def _logged_clocks(environ: Mapping[str, str], log: Path) -> Iterator[None]:
    """Log the clocks every second within the block, where there is a GPU."""
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader,nounits", "--loop=1"]
    with log.open("w", encoding="utf-8") as file:
        try:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL, env=environ)
        except OSError:
            yield
            return
        try:
            yield
        finally:
            process.terminate()
            process.wait(_STOP_SECONDS)


def _run(command: Sequence[str], environ: Mapping[str, str], timeout_seconds: float) -> tuple[str, str]:
    """Run a command in the root of this checkout; returns why it failed ("" if it did not), and its output."""
    # Popen looks for the program on the caller's PATH, not on that of `env`.
    program = shutil.which(command[0], path=environ.get("PATH"))
    if program is None:
        return f"{command[0]} is not installed", ""
    try:
        answer = subprocess.run(
            [program, *command[1:]],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return f"took more than {timeout_seconds:g} s", _text(error.output)
    except OSError as error:
        return f"cannot be run: {error}", ""
    return f"exit code {answer.returncode}" if answer.returncode else "", _text(answer.stdout)


def _text(output: bytes | IO[bytes] | None) -> str:
    """Decode output; of a progress bar only its last state is left."""
    text = output.decode("utf-8", errors="replace") if isinstance(output, bytes) else ""
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n"))
