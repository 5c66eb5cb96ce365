# SPDX-License-Identifier: Apache-2.0
"""The command `captrieve`: `search` with one photo, `caption` many, ask for the gateway's `health`.

Exit codes: 0 found, 1 nothing found, 2 wrong usage or rejected request, 3 gateway unavailable or
failed. An error is one sentence on standard error, or with `--json` one object on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

from captrieve_client.cli_parser import UsageError, completion_script, make_parser, program_name
from captrieve_client.client_errors import (
    ConnectionSettingsError,
    PhotoFileError,
    RequestRejectedError,
    SearchClientError,
)
from captrieve_client.connection import read_token
from captrieve_client.messages import QueryRuleName, SearchAnswer, SearchOptions
from captrieve_client.photos import Photo, photo_files, read_photo
from captrieve_client.reports import (
    TextStyle,
    caption_record,
    caption_text,
    error_record,
    printable,
    search_record,
    search_text,
    unsure_text,
    usage_error_record,
)
from captrieve_client.search_client import SearchClient

FOUND, NOTHING_FOUND, REJECTED, TROUBLE = 0, 1, 2, 3
STANDARD_INPUT = "-"
INTERRUPTED = 130  # 128 + SIGINT, the shells' convention
PIPE_CLOSED = 141  # 128 + SIGPIPE

_OPTIONS = {  # by the fields of a request, which the gateway's messages name
    "decoding.num_beams": "--beams",
    "refinement.min_visual_score": "--min-visual",
    "refinement.min_semantic_score": "--min-semantic",
    "word_override.colour": "--colour",
    "word_override.thing": "--thing",
    "exclude": "--exclude",
    "filters.min_price": "--min-price",
    "filters.max_price": "--max-price",
    "filters.categories": "--category",
    "max_results": "--max-results",
    "query_override": "--words",
    "query_rule": "--query-rule",
}
_FIELD = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, _OPTIONS))})(?![\w.])")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: those of the command line; None takes them from `sys.argv`.

    Returns:
        The exit code.

    Raises:
        SystemExit: for `--help` and `--version` (code 0) and for wrong usage (code 2).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A title with letters that the terminal's encoding lacks must not end the listing.
        sys.stdout.reconfigure(errors="replace")
    if arguments is None:
        arguments = sys.argv[1:]
    try:
        code = _run(_parsed(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left (`| head`). Python flushes once more at exit, which must not fail again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    try:
        return make_parser(program_name()).parse_args(arguments)
    except UsageError as error:
        before_paths = list(arguments)[: list(arguments).index("--")] if "--" in arguments else arguments
        if any(len(one) > 2 and "--json".startswith(one) for one in before_paths):  # argparse takes "--js" too
            print(json.dumps(usage_error_record(str(error))), flush=True)
        else:
            _print_error(str(error))
        raise SystemExit(REJECTED) from error


def _run(options: argparse.Namespace) -> int:
    command: str = options.command
    if command == "completion":
        print(completion_script(options.shell))
        return FOUND
    run = {"search": _search, "caption": _caption, "health": _health}[command]
    try:
        with _client(options) as search_client:
            return run(search_client, options)
    except SearchClientError as error:
        _name_options(error)
        if options.json:
            subject = {"photo": options.photo} if command == "search" else {"address": options.address}
            print(json.dumps(error_record(error, **subject)), flush=True)
        else:
            _print_error(str(error))
        return _exit_code(error)


def _client(options: argparse.Namespace) -> SearchClient:
    token = read_token(options.token_file) if options.token_file else os.environ.get("CAPTRIEVE_TOKEN") or None
    return SearchClient(
        options.address,
        tls=options.tls,
        ca_file=options.ca_file,
        certificate_file=options.certificate,
        key_file=options.key,
        token=token,
        max_attempts=options.attempts,
    )


def _search(search_client: SearchClient, options: argparse.Namespace) -> int:
    sheet: Path | None = options.contact_sheet
    if sheet is not None:
        _import_contact_sheet()  # fails before the search instead of after it
    photo = read_photo(_photo_named(options.photo))
    search_options: SearchOptions = {
        "num_beams": options.beams,
        "query_rule": _rule_name(options),
        "region": options.region,
        "query_override": options.words,
        "override_colour": options.colour,
        "override_thing": options.thing,
        "provider": options.provider,
        "max_results": options.max_results,
        "min_visual_score": options.min_visual,
        "min_semantic_score": options.min_semantic,
        "exclude": options.exclude,
        "min_price": options.min_price,
        "max_price": options.max_price,
        "available": options.available or None,
        "categories": options.category,
        "explain": options.explain,
    }
    answer = search_client.search(photo, timeout_seconds=options.timeout, **search_options)
    if options.json:
        print(json.dumps(search_record(options.photo, answer, explain=options.explain)))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        print(search_text(answer, width=width, style=_style(sys.stdout)))
    if sheet is not None:
        _save_contact_sheet(sheet, photo, answer, options.region)
        if not options.json:
            print(f"contact sheet: {printable(str(sheet))}")
    return FOUND if answer.results else NOTHING_FOUND


def _caption(search_client: SearchClient, options: argparse.Namespace) -> int:
    photos = _photo_names(options.photos)
    code = FOUND
    outcomes = search_client.stream_captions(
        map(_photo_named, photos),
        concurrency=options.concurrency,
        timeout_seconds=options.timeout,
        num_beams=options.beams,
        query_rule=_rule_name(options),
        region=options.region,
    )
    with contextlib.closing(outcomes):
        for photo, outcome in zip(photos, outcomes, strict=True):
            if isinstance(outcome, SearchClientError):
                _name_options(outcome)
                code = max(code, _exit_code(outcome))
                if options.json:
                    print(json.dumps(error_record(outcome, photo=photo)), flush=True)
                else:
                    _print_error(_with_photo(photo, outcome))
            elif options.json:
                print(json.dumps(caption_record(photo, outcome)), flush=True)
            else:
                caption = caption_text(outcome.caption, outcome.query, _style(sys.stdout))
                note = unsure_text(outcome)
                print(f"{printable(photo)}: {caption}" + (f" ({note})" if note else ""), flush=True)
    return code


def _photo_names(arguments: Sequence[str]) -> list[str]:
    """The arguments, with each folder replaced by its photos."""
    if arguments.count(STANDARD_INPUT) > 1:
        raise PhotoFileError("standard input (-) holds one photo; name it once")
    names: list[str] = []
    for argument in arguments:
        found = [str(path) for path in photo_files(argument)] if os.path.isdir(argument) else [argument]
        if not found:
            raise PhotoFileError(f"there is no photo in the folder {argument}")
        names += found
    return names


def _photo_named(argument: str) -> Photo:
    if argument != STANDARD_INPUT:
        return argument
    if sys.stdin.isatty():
        raise PhotoFileError("standard input (-) is a terminal; pipe a photo into it")
    return sys.stdin.buffer


def _health(search_client: SearchClient, options: argparse.Namespace) -> int:
    started = time.monotonic()
    status = search_client.health(timeout_seconds=options.timeout)
    elapsed_ms = (time.monotonic() - started) * 1e3
    if options.json:
        print(json.dumps({"address": options.address, "status": status}))
    else:
        print(f"{options.address}: {status.replace('_', ' ')} ({elapsed_ms:.0f} ms)")
    return FOUND if status == "serving" else TROUBLE


def _rule_name(options: argparse.Namespace) -> QueryRuleName | None:
    rule: str | None = options.query_rule
    return None if rule is None else cast("QueryRuleName", rule.replace("-", "_"))


def _import_contact_sheet() -> None:
    try:
        import captrieve_client.contact_sheet  # noqa: F401  (only the picture needs Pillow)
    except ImportError as error:
        raise PhotoFileError(
            '--contact-sheet needs Pillow; install it with: pip install "captrieve-client[contact-sheet]"'
        ) from error


def _save_contact_sheet(
    path: Path, photo: bytes, answer: SearchAnswer, region: tuple[float, float, float, float] | None
) -> None:
    from captrieve_client.contact_sheet import draw_contact_sheet

    try:
        draw_contact_sheet(photo, answer, region).save(path, quality=92)
    except OSError as error:
        reason = (error.strerror or "it cannot be written").lower()
        raise PhotoFileError(f"cannot write {path}: {reason}") from error


def _name_options(error: SearchClientError) -> None:
    """Makes a rejection name the options that were typed instead of the request's fields."""
    if isinstance(error, RequestRejectedError):
        error.args = (_FIELD.sub(lambda field: _OPTIONS[field[0]], str(error)),)


def _exit_code(error: SearchClientError) -> int:
    rejected = (RequestRejectedError, PhotoFileError, ConnectionSettingsError)
    return REJECTED if isinstance(error, rejected) else TROUBLE


def _with_photo(photo: str, error: SearchClientError) -> str:
    # The message of a file error contains the path.
    has_path = isinstance(error, PhotoFileError) or str(error).startswith(photo)
    return str(error) if has_path else f"{photo}: {error}"


def _print_error(message: str) -> None:
    print(f"error: {printable(message)}", file=sys.stderr, flush=True)


def _style(stream: TextIO) -> TextStyle:
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return TextStyle(coloured=stream.isatty() and not plain)
