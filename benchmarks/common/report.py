# SPDX-License-Identifier: Apache-2.0
"""What the commands of all benchmarks share: their parser, `--json` and `--output`, and Markdown tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def make_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Make a parser whose usage line says `python -m MODULE` and whose help begins with the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_output_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options that `publish` reads."""
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of the text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the record as JSON to this file")


def publish(record: Mapping[str, Any], text: Callable[[Any], str], args: argparse.Namespace) -> None:
    """Print a record, and write it to a file with `--output`.

    Args:
        record: figures that JSON can hold; `text` gets them as JSON gives them back, with texts as keys.
        text: formats the record for people.
        args: with the options of `add_output_options`.

    Raises:
        OSError: the file cannot be written.
    """
    encoded = json.dumps(record, indent=2, ensure_ascii=False)
    print(encoded if args.json else text(json.loads(encoded)))
    if args.output is not None:
        args.output.write_text(encoded + "\n", encoding="utf-8")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Format a Markdown table.

    Args:
        head: titles of the columns.
        rows: cells of each row.
        left: number of columns that are aligned left; the others are aligned right.

    Returns:
        The lines of the table, without a final newline.
    """
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in [head, rule, *rows])
