# SPDX-License-Identifier: Apache-2.0
"""Finds the reason for a failed start in Triton's log."""

import re
from pathlib import Path


def read_from(log_file: Path, start: int) -> str:
    """Return the log from a byte on."""
    with log_file.open("rb") as log:
        log.seek(start)
        return log.read().decode(errors="replace")


def reason_in(log: str) -> str | None:
    """Return what is wrong according to Triton's log, as one short sentence; None if the log does not say."""
    failed = re.findall(r"\"failed to load '([^']+)' version \d+: (?:\w+: )?(.*)\"$", log, re.M)
    if failed:
        model, message = failed[0]
        message = message.split(r"\n\nAt:")[0]  # the rest is the stub's Python traceback
        return f"could not load model '{model}': {_one_line(message)}"
    unread = re.findall(r"\"Poll failed for model directory '([^']+)': (.*)\"$", log, re.M)
    if unread:
        model, message = unread[0]
        detail = re.search(r"Error parsing text-format inference.ModelConfig: (.*)$", log, re.M)
        hint = f" ({detail[1]})" if detail else ""
        return f"could not read model '{model}': {_one_line(message + hint)}"
    errors = re.findall(r"^(?:error: |.*error while loading shared libraries: )(.*)$", log, re.M)
    return f"could not start: {_one_line(errors[-1])}" if errors else None


def _one_line(text: str, max_length: int = 300) -> str:
    line = " ".join(text.replace("\\n", " ").split()).rstrip(".")
    line = line.removeprefix("TritonModelException: ")
    return line if len(line) <= max_length else line[: max_length - 1] + "…"
