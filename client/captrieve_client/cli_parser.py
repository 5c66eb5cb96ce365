# SPDX-License-Identifier: Apache-2.0
"""The arguments of the command `captrieve`, and the completion scripts that shells need for them."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import NoReturn

from captrieve_client import __version__
from captrieve_client.caption_batch import DEFAULT_CONCURRENCY
from captrieve_client.connection import (
    DEFAULT_ADDRESS,
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_TIMEOUT_SECONDS,
    HEALTH_TIMEOUT_SECONDS,
)

COMMAND = "captrieve"
SHELLS = ("bash", "zsh", "fish")

_QUERY_RULES = ("likeliest-words", "last-two-words", "full-caption", "salient")
_SHEET_SUFFIXES = (".png", ".jpg", ".jpeg")


class UsageError(Exception):
    """The arguments are wrong; the message is one sentence."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises the message, where argparse prints the whole usage.

        Args:
            message: what is wrong with which argument.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message} (see {self.prog} --help)")


def program_name() -> str:
    """The command as it was called: `captrieve`, or `python -m captrieve_client` (`client` in a checkout)."""
    called = Path(sys.argv[0])
    is_module = called.name == "__main__.py" and called.parent.name in ("captrieve_client", "client")
    return f"python -m {called.parent.name}" if is_module else COMMAND


def make_parser(program: str) -> argparse.ArgumentParser:
    """Makes the parser of all subcommands.

    Args:
        program: the command's name in usage and error messages.

    Returns:
        A parser whose `parse_args` raises `UsageError`.
    """
    parser = _Parser(
        prog=program,
        description="Search for pictures with a photo, through a Captrieve gateway.",
        epilog=f"""Exit codes:
  0  results were found, captions were written, or the gateway is ready
  1  the search found nothing
  2  wrong usage, an unreadable photo or a rejected request
  3  the gateway did not answer, is overloaded or failed

`{program} COMMAND --help` explains each command.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{COMMAND} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_search(
        _add_command(
            commands,
            "search",
            "find pictures that look like a photo",
            "Find pictures that look like a photo and whose titles agree with its description.",
            f"""Examples:
  {program} search shirt.jpg
  {program} search shirt.jpg --colour red --max-results 20
  {program} search shirt.jpg --provider catalog --contact-sheet results.png""",
        )
    )
    _add_caption(
        _add_command(
            commands,
            "caption",
            "describe photos, one line each, in order",
            "Describe photos, one line each, in the order given.",
            f"""Example:
  {program} caption *.jpg --json""",
        )
    )
    health = _add_command(
        commands, "health", "ask whether the gateway is ready", "Ask whether the gateway is ready for requests."
    )
    _add_common(health, HEALTH_TIMEOUT_SECONDS)
    completion = _add_command(
        commands,
        "completion",
        "print a completion script for a shell",
        f"Print the script that completes `{COMMAND}` in a shell.",
        f"""Examples:
  {COMMAND} completion bash > ~/.local/share/bash-completion/completions/{COMMAND}
  {COMMAND} completion zsh > ~/.zfunc/_{COMMAND}       # a folder in $fpath, before compinit runs
  {COMMAND} completion fish > ~/.config/fish/completions/{COMMAND}.fish""",
    )
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")
    completion.set_defaults(json=False)
    return parser


def _add_command(
    commands: argparse._SubParsersAction[_Parser], name: str, summary: str, description: str, examples: str = ""
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def completion_script(shell: str) -> str:
    """Writes the script that completes `captrieve` in a shell.

    Args:
        shell: one of `SHELLS`.

    Returns:
        The script.
    """
    import shtab

    parser = make_parser(COMMAND)
    for action in _all_actions(parser):
        if action.dest in ("photo", "photos", "contact_sheet", "ca_file", "certificate", "key", "token_file"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script


def _all_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += _all_actions(command)
    return found


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", metavar="PHOTO", help="image file, https:// address, or - for standard input")
    query = parser.add_argument_group("query")
    query.add_argument("--words", type=_text, metavar="WORDS", help="the query; the photo is not captioned")
    query.add_argument("--colour", type=_text, metavar="WORD", help="the colour in the query, instead of the caption's")
    query.add_argument(
        "--thing", type=_text, metavar="WORD", help="the product type in the query, instead of the caption's"
    )
    query.add_argument(
        "--exclude",
        type=_text,
        action="append",
        default=[],
        metavar="WORD",
        help="leave out results whose title has this word, or one of several with commas between them; "
        "may be repeated; --words 'shirt -striped' does the same",
    )
    rule = _add_query_rule(query)
    rule.add_argument(
        "--full-caption",
        action="store_const",
        const="full-caption",
        dest="query_rule",
        help="the same as --query-rule full-caption",
    )
    _add_beams(query)
    _add_region(query)
    results = parser.add_argument_group("results")
    results.add_argument(
        "--provider",
        type=_text,
        metavar="NAME",
        help="the only one of the gateway's providers to ask, such as catalog or brave (default: all, in their order)",
    )
    results.add_argument("--max-results", type=_whole, metavar="N", help="number of results, 1 to 100 (default 10)")
    results.add_argument(
        "--min-visual",
        type=float,
        metavar="COSINE",
        help="lowest visual score, -1 to 1 (default: the gateway's)",
    )
    results.add_argument(
        "--min-semantic",
        type=float,
        metavar="SHARE",
        help="lowest agreement of the title with the query, 0 to 1 (default: the gateway's)",
    )
    for name, which in (("--min-price", "lowest"), ("--max-price", "highest")):
        results.add_argument(
            name, type=float, metavar="PRICE", help=f"{which} price of a product; only a catalogue can filter"
        )
    results.add_argument("--available", action="store_true", help="only products that are in stock")
    results.add_argument(
        "--category",
        action="append",
        default=[],
        metavar="NAME",
        help="only products of this category, exactly as the catalogue has it; may be given several times",
    )
    results.add_argument(
        "--explain",
        action="store_true",
        help="also list the dropped candidates with their reasons, and what each score consists of",
    )
    results.add_argument(
        "--contact-sheet",
        type=_sheet_path,
        metavar="FILE.png",
        help="also write a picture of the photo and the results (.png or .jpg)",
    )
    _add_common(parser, DEFAULT_TIMEOUT_SECONDS)


def _add_caption(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image files, folders, https:// addresses, or -")
    captions = parser.add_argument_group("captions")
    _add_query_rule(captions)
    _add_beams(captions)
    _add_region(captions)
    captions.add_argument(
        "--concurrency",
        type=_whole,
        default=DEFAULT_CONCURRENCY,
        metavar="N",
        help="number of requests in flight at once (default %(default)s)",
    )
    _add_common(parser, DEFAULT_TIMEOUT_SECONDS)


def _add_common(parser: argparse.ArgumentParser, timeout_seconds: float) -> None:
    common = parser.add_argument_group("gateway and output")
    common.add_argument(
        "--address",
        default=os.environ.get("CAPTRIEVE_ADDRESS") or DEFAULT_ADDRESS,
        metavar="ADDRESS",
        help="the gateway, as HOST:PORT or https://HOST; several, separated by commas, are called in turn"
        f" (default: the variable CAPTRIEVE_ADDRESS, otherwise {DEFAULT_ADDRESS})",
    )
    common.add_argument("--tls", action="store_true", help="use TLS; an address with https:// implies it")
    common.add_argument("--ca-file", metavar="FILE", help="trust the certificates in this PEM file; implies --tls")
    common.add_argument(
        "--certificate", metavar="FILE", help="show this certificate (PEM), for mutual TLS; needs --key"
    )
    common.add_argument("--key", metavar="FILE", help="the private key of --certificate (PEM)")
    common.add_argument(
        "--token-file",
        metavar="FILE",
        help="send the token in this file with each request (default: the variable CAPTRIEVE_TOKEN)",
    )
    common.add_argument(
        "--timeout",
        type=_seconds,
        default=timeout_seconds,
        metavar="SECONDS",
        help="deadline of each request (default %(default)g)",
    )
    common.add_argument(
        "--attempts",
        type=_whole,
        default=DEFAULT_MAX_ATTEMPTS,
        metavar="N",
        help="send a request up to N times, 1 to 5, if the gateway is unavailable or overloaded (default %(default)s)",
    )
    common.add_argument("--json", action="store_true", help="print one JSON object per line, also for errors")


def _add_beams(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--beams", type=_whole, default=1, metavar="N", help="beams of the caption's beam search (default 1: greedy)"
    )


def _add_region(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--region",
        type=_fractions,
        metavar="X,Y,W,H",
        help="use this part of the upright photo: left edge, top edge, width and height, as fractions of its width and"
        " height, such as 0.5,0,0.5,1 for the right half",
    )


def _add_query_rule(group: argparse._ArgumentGroup) -> argparse._MutuallyExclusiveGroup:
    rule = group.add_mutually_exclusive_group()
    rule.add_argument(
        "--query-rule",
        choices=_QUERY_RULES,
        help="how the query is derived (default: the gateway's, usually the first of these that its model supports)",
    )
    return rule


def _text(text: str) -> str:
    if not text.isascii() and text != text.encode("utf-8", "replace").decode():
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8")
    return text


def _fractions(text: str) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not X,Y,W,H: left edge, top edge, width and height as fractions, such as 0.5,0,0.5,1"
        ) from None
    if max(x, y, width, height) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} has a number above 1: give fractions of the photo, not pixels")
    return x, y, width, height


def _whole(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 999999999")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and up to 86400")
    return number


def _sheet_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _SHEET_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(_SHEET_SUFFIXES)}")
    return path
