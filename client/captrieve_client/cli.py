# SPDX-License-Identifier: Apache-2.0
"""The command line: `search` one photo, `caption` many, ask for the server's `health`.

Exit codes: 0 found, 1 nothing found, 2 bad use or rejected request, 3 service trouble.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from captrieve_client.caption_batch import DEFAULT_CONCURRENCY
from captrieve_client.client_errors import PhotoFileError, RequestRejectedError, SearchClientError
from captrieve_client.connection import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_SECONDS, HEALTH_TIMEOUT_SECONDS
from captrieve_client.messages import SearchAnswer, SearchOptions, read_photo
from captrieve_client.reports import (
    TextStyle,
    caption_record,
    caption_text,
    error_record,
    no_product_text,
    printable,
    search_record,
    search_text,
)
from captrieve_client.search_client import SearchClient

FOUND, NOTHING_FOUND, REJECTED, TROUBLE = 0, 1, 2, 3
INTERRUPTED = 130  # 128 + SIGINT, as shells count
PIPE_CLOSED = 141  # 128 + SIGPIPE

_QUERY_RULES = ("likeliest-words", "last-two-words", "full-caption")
_SHEET_SUFFIXES = (".png", ".jpg", ".jpeg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Raises:
        SystemExit: for `--help` (code 0) and for bad use (code 2).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A title in a script that the terminal's encoding lacks must not end the listing.
        sys.stdout.reconfigure(errors="replace")
    try:
        options = _parser().parse_args(arguments)
        code = _run(options)
        sys.stdout.flush()
    except SearchClientError as error:
        _print_error(str(error))
        return _exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on (`| head`). Python flushes once more at exit: into nothing, then.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


def _run(options: argparse.Namespace) -> int:
    command: str = options.command
    with SearchClient(options.address) as search_client:
        if command == "search":
            return _search(search_client, options)
        if command == "caption":
            return _caption(search_client, options)
        return _health(search_client, options)


def _search(search_client: SearchClient, options: argparse.Namespace) -> int:
    sheet: Path | None = options.contact_sheet
    if sheet is not None:
        _import_contact_sheet()  # before the search, not after it
    photo = read_photo(options.photo)
    wanted: SearchOptions = {
        "num_beams": options.beams,
        "query_rule": options.query_rule,
        "query_override": options.words,
        "override_colour": options.colour,
        "override_thing": options.thing,
        "provider": options.provider,
        "max_results": options.max_results,
        "min_visual_score": options.min_visual,
        "min_semantic_score": options.min_semantic,
        "explain": options.explain,
    }
    answer = search_client.search(photo, timeout_seconds=options.timeout, **wanted)
    if options.json:
        print(json.dumps(search_record(options.photo, answer, explain=options.explain)))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        print(search_text(answer, width=width, style=_style(sys.stdout)))
    if sheet is not None:
        _save_contact_sheet(sheet, photo, answer)
        if not options.json:
            print(f"contact sheet: {printable(str(sheet))}")
    return FOUND if answer.results else NOTHING_FOUND


def _caption(search_client: SearchClient, options: argparse.Namespace) -> int:
    photos: list[str] = options.photos
    code = FOUND
    outcomes = search_client.stream_captions(
        photos,
        concurrency=options.concurrency,
        timeout_seconds=options.timeout,
        num_beams=options.beams,
        query_rule=options.query_rule,
    )
    with contextlib.closing(outcomes):
        for photo, outcome in zip(photos, outcomes, strict=True):
            if isinstance(outcome, SearchClientError):
                code = max(code, _exit_code(outcome))
                if options.json:
                    print(json.dumps(error_record(photo, outcome)), flush=True)
                else:
                    _print_error(_with_photo(photo, outcome))
            elif options.json:
                print(json.dumps(caption_record(photo, outcome)), flush=True)
            else:
                caption = caption_text(outcome.caption, outcome.query, _style(sys.stdout))
                note = no_product_text(outcome.no_product_probability)
                print(f"{printable(photo)}: {caption}" + (f" ({note})" if note else ""), flush=True)
    return code


def _health(search_client: SearchClient, options: argparse.Namespace) -> int:
    started = time.monotonic()
    status = search_client.health(timeout_seconds=options.timeout)
    elapsed_ms = (time.monotonic() - started) * 1e3
    if options.json:
        print(json.dumps({"address": options.address, "status": status}))
    else:
        print(f"{options.address}: {status.replace('_', ' ')} ({elapsed_ms:.0f} ms)")
    return FOUND if status == "serving" else TROUBLE


def _import_contact_sheet() -> None:
    try:
        import captrieve_client.contact_sheet  # noqa: F401  (Pillow is needed for the picture only)
    except ImportError as error:
        raise PhotoFileError("--contact-sheet needs Pillow: pip install pillow") from error


def _save_contact_sheet(path: Path, photo: bytes, answer: SearchAnswer) -> None:
    from captrieve_client.contact_sheet import draw_contact_sheet

    try:
        draw_contact_sheet(photo, answer).save(path, quality=92)
    except OSError as error:
        reason = (error.strerror or "it cannot be written").lower()
        raise PhotoFileError(f"cannot write {path}: {reason}") from error


def _exit_code(error: SearchClientError) -> int:
    return REJECTED if isinstance(error, (RequestRejectedError, PhotoFileError)) else TROUBLE


def _with_photo(photo: str, error: SearchClientError) -> str:
    # An error of the file names it already.
    names_it = isinstance(error, PhotoFileError) or str(error).startswith(photo)
    return str(error) if names_it else f"{photo}: {error}"


def _print_error(message: str) -> None:
    print(f"error: {printable(message)}", file=sys.stderr, flush=True)


def _style(stream: TextIO) -> TextStyle:
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return TextStyle(coloured=stream.isatty() and not plain)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        self.exit(REJECTED, f"error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    called = Path(sys.argv[0]).name
    parser = _Parser(
        prog="python -m client" if called in ("__main__.py", "", "-c", "pytest") else called,
        description="Reverse image search through words.",
        epilog="Exit codes: 0 found, 1 nothing found, 2 bad use or rejected, 3 service trouble.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    search = commands.add_parser("search", help="find pictures that look like a photo")
    search.add_argument("photo", metavar="PHOTO", help="JPEG, PNG, WebP or GIF file")
    _add_common(search, DEFAULT_TIMEOUT_SECONDS)
    _add_beams(search)
    rule = _add_query_rule(search)
    rule.add_argument(
        "--full-caption",
        action="store_const",
        const="full_caption",
        dest="query_rule",
        help="short for --query-rule full-caption",
    )
    search.add_argument(
        "--provider",
        choices=("duckduckgo", "catalog"),
        help="ask this one (default: the server's chain)",
    )
    search.add_argument("--max-results", type=_whole, metavar="N", help="1 to 100 (default 10)")
    search.add_argument("--min-visual", type=float, metavar="COSINE", help="least visual score, -1 to 1")
    search.add_argument("--min-semantic", type=float, metavar="SHARE", help="least agreement with the words, 0 to 1")
    search.add_argument("--words", metavar="WORDS", help="search for these, not for the caption's")
    search.add_argument("--colour", metavar="WORD", help="search for this colour, not for the caption's")
    search.add_argument("--thing", metavar="WORD", help="search for this thing, not for the caption's")
    search.add_argument("--explain", action="store_true", help="also list what was dropped, and why")
    search.add_argument(
        "--contact-sheet",
        type=_sheet_path,
        metavar="FILE.png",
        help="draw photo and results (.png or .jpg)",
    )

    caption = commands.add_parser("caption", help="say what photos show; one line each, in order")
    caption.add_argument("photos", nargs="+", metavar="PHOTO", help="JPEG, PNG, WebP or GIF file")
    _add_common(caption, DEFAULT_TIMEOUT_SECONDS)
    _add_beams(caption)
    _add_query_rule(caption)
    caption.add_argument(
        "--concurrency",
        type=_whole,
        default=DEFAULT_CONCURRENCY,
        metavar="N",
        help="most photos under way at once (default %(default)s)",
    )

    health = commands.add_parser("health", help="ask whether the server is ready")
    _add_common(health, HEALTH_TIMEOUT_SECONDS)
    return parser


def _add_common(parser: argparse.ArgumentParser, timeout_seconds: float) -> None:
    parser.add_argument(
        "--address",
        default=os.environ.get("CAPTRIEVE_ADDRESS") or DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help=f"the server (default: CAPTRIEVE_ADDRESS, else {DEFAULT_ADDRESS})",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=timeout_seconds,
        metavar="SECONDS",
        help="of each request (default %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")


def _add_beams(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beams", type=_whole, default=1, metavar="N", help="1 is greedy decoding (default 1)")


def _add_query_rule(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--query-rule",
        type=_query_rule,
        metavar="RULE",
        help="what the query is: likeliest-words, last-two-words or full-caption (default: the first that the server's "
        "model can)",
    )
    return group


def _query_rule(text: str) -> str:
    if text not in _QUERY_RULES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(_QUERY_RULES)}")
    return text.replace("-", "_")


def _whole(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 86400")
    return number


def _sheet_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _SHEET_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(_SHEET_SUFFIXES)}")
    return path
