# SPDX-License-Identifier: Apache-2.0
"""The command line against a real gRPC server on loopback: in this process, and as a process."""

from __future__ import annotations

import io
import json
import os
import pty
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from captrieve_client import __version__, cli, reports
from captrieve_client._generated import search_pb2
from captrieve_client.messages import Contribution, Result
from captrieve_client.reports import contributions_text, fitted, printable, split_caption, text_width

from scripted_service import (
    CLIENT,
    Failure,
    ScriptedService,
    client_environment,
    empty_answer,
    full_answer,
    photo_bytes,
    result,
    serving,
)

Code = grpc.StatusCode
SEARCH_KEYS = [
    "photo", "caption", "words", "query", "query_rule", "paper_query", "word_override", "excluded",
    "no_product_probability", "confidence", "unsure_reason", "readings", "provider", "results", "counts",
    "nearest_miss", "empty_reason", "timings_ms", "degraded", "model",
]  # fmt: skip
RESULT_KEYS = [
    "title", "url", "image_url", "thumbnail_url", "source", "width", "height", "visual_score", "semantic_score",
    "score", "reason", "duplicates", "picture_words",
    "licence", "licence_url", "attribution", "provider", "findings",
]  # fmt: skip
CAPTION_KEYS = [
    "photo", "caption", "words", "query", "query_rule", "paper_query", "no_product_probability", "confidence",
    "unsure_reason",
    "log_probability", "complete", "timings_ms", "model",
]  # fmt: skip


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService(full_answer())


@pytest.fixture
def address(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server's address, which the command line takes from its environment."""
    monkeypatch.setenv("COLUMNS", "100")
    with serving(service) as address:
        monkeypatch.setenv("CAPTRIEVE_ADDRESS", address)
        yield address


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "shirt.jpg"
    path.write_bytes(photo_bytes())
    return str(path)


def named_photos(folder: Path, *names: str) -> list[str]:
    """Files that hold no more than their name, which the scripted caption repeats."""
    for name in names:
        (folder / name).write_text(name)
    return [str(folder / name) for name in names]


# What a script starts in the background ignores Ctrl-C and passes that on to its children; this restores the default.
# (Not with preexec_fn: a fork() beside the threads of the gRPC server may hang.)
RUN_COMMAND = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("captrieve_client", run_name="__main__", alter_sys=True)
"""


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Starts the command as a process; the caller says where its output goes."""
    command = [sys.executable, "-W", "error", "-c", RUN_COMMAND, *arguments]
    environment = client_environment(**options.pop("variables", {}))
    return subprocess.Popen(command, cwd=CLIENT, env=environment, text=True, **options)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that is bad use; gives the one line it printed."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


# search, for people


def test_search_prints_caption_table_counts_times_and_degradation(
    service: ScriptedService, address: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["search", photo]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "caption: Turtle Check Men Blue Shirt",
        "query:   blue shirt  (likeliest words, duckduckgo, fashion-small)",
        "may be:  blue shirt 62%, navy shirt 38%",
        "",
        "  #  score  visual  words  title              source",
        "  1   0.95    0.80   1.00  Men's Blue Shirt   bing",
        "                           https://shop.example/item",
        "  2   0.85    0.80   1.00  Blue Oxford Shirt  bing",
        "                           https://shop.example/item",
        "",
        "counts:  9 found, 8 fetched, 2 kept; dropped: 3 failed the visual match, 2 failed the word match, 1",
        "         unfetchable, 1 undecodable",
        "time:    100 ms: preprocess 2 ms (2%), encode 20 ms (20%), search 50 ms (50%)",
        "degraded: thumbnails: 1 of 9 did not arrive in time",
    ]


def test_search_sends_what_its_flags_say(service: ScriptedService, address: str, photo: str) -> None:
    flags = "--beams 4 --provider acme --max-results 7 --explain --full-caption --timeout 5"
    assert cli.main(["search", photo, *flags.split(), "--words", "leather bag"]) == 0
    (request,) = service.requests
    assert request == search_pb2.SearchRequest(
        photo=Path(photo).read_bytes(),
        decoding=search_pb2.DecodingOptions(num_beams=4),
        query_rule=search_pb2.QUERY_RULE_FULL_CAPTION,
        query_override="leather bag",
        provider="acme",
        max_results=7,
        refinement=search_pb2.RefinementOptions(),
        explain=True,
    )


@pytest.mark.parametrize("rule", ["likeliest-words", "last-two-words", "full-caption", "salient"])
def test_query_rule_is_sent(service: ScriptedService, address: str, photo: str, rule: str) -> None:
    assert cli.main(["search", photo, "--query-rule", rule]) == 0
    assert cli.main(["caption", photo, "--query-rule", rule]) == 0
    wanted = search_pb2.QueryRule.Value(f"QUERY_RULE_{rule.replace('-', '_').upper()}")
    assert [request.query_rule for request in service.requests] == [wanted, wanted]


def test_filters_are_sent(service: ScriptedService, address: str, photo: str) -> None:
    given = ["--min-price", "1.5", "--max-price", "20", "--available", "--category", "Ties", "--category", "a,b"]
    assert cli.main(["search", photo, *given]) == 0
    sent = service.requests[-1].filters
    assert sent == search_pb2.Filters(min_price=1.5, max_price=20, available=True, categories=["Ties", "a,b"])
    assert cli.main(["search", photo]) == 0
    assert not service.requests[-1].HasField("filters")


def test_region_is_sent(service: ScriptedService, address: str, photo: str) -> None:
    assert cli.main(["search", photo, "--region", "0.5,0,0.5,1"]) == 0
    assert cli.main(["caption", photo, "--region", " 0, .25,1 ,0.5"]) == 0
    wanted = [search_pb2.Region(x=0.5, width=0.5, height=1), search_pb2.Region(y=0.25, width=1, height=0.5)]
    assert [request.region for request in service.requests] == wanted
    assert cli.main(["search", photo]) == 0
    assert not service.requests[-1].HasField("region")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.5,0,0.5", "'0.5,0,0.5' is not X,Y,W,H: left edge, top edge, width and height as fractions"),
        ("a,b,c,d", "'a,b,c,d' is not X,Y,W,H"),
        ("100,20,300,400", "'100,20,300,400' has a number above 1: give fractions of the photo, not pixels"),
    ],
)
def test_region_that_is_none_is_bad_use(text: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(["search", "x.jpg", "--region", text], capsys)


def test_unknown_query_rule_is_bad_use(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["search", "x.jpg", "--query-rule", "first-word"], capsys)
    assert line.startswith("error: argument --query-rule: invalid choice: 'first-word' (choose from ")
    assert all(rule in line for rule in ("likeliest-words", "last-two-words", "full-caption", "salient"))
    assert "not allowed with" in refused(["search", "x", "--query-rule", "last-two-words", "--full-caption"], capsys)


def test_photo_of_no_product_is_told(
    service: ScriptedService, address: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer.confidence, service.answer.unsure_reason = 0.12, "the photo may show no product"
    told = "unsure: the photo may show no product (confidence 12%)"
    assert cli.main(["search", photo]) == 0
    assert f"\n{told}\n" in capsys.readouterr().out
    assert cli.main(["caption", photo]) == 0
    assert capsys.readouterr().out.endswith(f" ({told})\n")
    for command in ("search", "caption"):
        assert cli.main([command, photo, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert (record["confidence"], record["unsure_reason"]) == (0.12, "the photo may show no product")


def test_photo_of_no_product_is_told_by_an_older_gateway_too(
    service: ScriptedService, address: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer.ClearField("confidence")
    assert cli.main(["search", photo]) == 0
    assert "unsure" not in capsys.readouterr().out
    service.answer.no_product_probability = 0.83
    assert cli.main(["search", photo]) == 0
    assert "\nunsure: the photo may show no product (confidence 17%)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (search_pb2.WordOverride(colour="red"), "colour given"),
        (search_pb2.WordOverride(thing="socks"), "thing given"),
        (search_pb2.WordOverride(colour="red", thing="socks"), "colour and thing given"),
    ],
)
def test_words_that_the_caller_gave_are_not_told_as_the_models(
    service: ScriptedService,
    address: str,
    photo: str,
    capsys: pytest.CaptureFixture[str],
    override: search_pb2.WordOverride,
    told: str,
) -> None:
    service.answer.word_override.CopyFrom(override)
    assert cli.main(["search", photo]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(f"  (likeliest words, {told}, duckduckgo, fashion-small)")
    assert lines[2] == f"may be:  blue shirt 62%, navy shirt 38% ({told})"
    assert cli.main(["search", photo, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["word_override"] == {"colour": override.colour or None, "thing": override.thing or None}


def test_flags_override_one_word_of_the_query(service: ScriptedService, address: str, photo: str) -> None:
    assert cli.main(["search", photo, "--colour", "red"]) == 0
    assert cli.main(["search", photo, "--colour", "navy blue", "--thing", "jeans"]) == 0
    assert [request.word_override for request in service.requests] == [
        search_pb2.WordOverride(colour="red"),
        search_pb2.WordOverride(colour="navy blue", thing="jeans"),
    ]


@pytest.mark.parametrize(
    ("probabilities", "shown"),
    [
        ([], None),
        ([1.0], None),
        ([0.997, 0.003], None),
        ([0.9, 0.096, 0.004], "may be:  red 90%, blue 10%"),
        ([0.4, 0.2, 0.2, 0.1, 0.06, 0.04], "may be:  red 40%, blue 20%, green 20%, white 10%, others 10%"),
        ([0.9] + [0.01] * 10, "may be:  red 90%, blue 1%, green 1%, white 1%, others 7%"),
    ],
)
def test_what_a_photo_may_be_called_is_told_where_that_is_not_sure(
    service: ScriptedService,
    address: str,
    photo: str,
    capsys: pytest.CaptureFixture[str],
    probabilities: list[float],
    shown: str | None,
) -> None:
    del service.answer.readings[:]
    names = ["red", "blue", "green", "white", *(str(number) for number in range(20))]
    for name, probability in zip(names, probabilities, strict=False):
        service.answer.readings.add(query=name, probability=probability)
    assert cli.main(["search", photo]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("may be:")]
    assert lines == ([] if shown is None else [shown])


def test_duplicates_are_listed_under_their_result(
    service: ScriptedService, address: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer.results[0].duplicates.add(source="bing", url="https://other.example/\x1b[2J1")
    service.answer.results[0].duplicates.add(source="catalog")
    service.answer.counts.duplicates = 2
    assert cli.main(["search", photo]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    place = lines.index("also: https://other.example/ [2J1")
    assert lines[place - 1 : place + 2] == ["https://shop.example/item", lines[place], "also: catalog"]
    assert "2 duplicates" in " ".join(lines)
    assert cli.main(["search", photo, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [other["source"] for other in record["results"][0]["duplicates"]] == ["bing", "catalog"]
    assert record["counts"]["duplicates"] == 2


@pytest.mark.parametrize(
    ("licence", "attribution", "shown"),
    [
        ("CC BY 4.0", "Photo by Some\x1b[2Jone", "Photo by Some [2Jone · CC BY 4.0"),
        ("CC BY 4.0", '"Bag" by Someone is licensed under CC BY 4.0.', '"Bag" by Someone is licensed under CC BY 4.0.'),
        ("CC0 1.0", "", "CC0 1.0"),
        ("", "Brave Search", "Brave Search"),
    ],
)
def test_credit_line_stands_under_its_result(
    service: ScriptedService,
    address: str,
    photo: str,
    capsys: pytest.CaptureFixture[str],
    licence: str,
    attribution: str,
    shown: str,
) -> None:
    result = service.answer.results[0]
    result.licence, result.attribution, result.provider = licence, attribution, "openverse"
    result.licence_url = "https://creativecommons.org/licenses/by/4.0/"
    assert cli.main(["search", photo]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[lines.index("https://shop.example/item") + 1] == shown
    assert cli.main(["search", photo, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["results"][0]
    assert (record["licence"], record["attribution"], record["provider"]) == (licence, attribution, "openverse")
    assert record["licence_url"].startswith("https://creativecommons.org")


def test_nothing_found_is_explained(
    service: ScriptedService, address: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer = empty_answer()
    assert cli.main(["search", photo]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[4:8] == [
        "nothing found: all 9 candidates were dropped",
        "nearest miss:",
        "      0.40    0.80   1.00  Red Shirt",
        "                           visual score 0.40 is below 0.55",
    ]


def test_explain_lists_what_was_dropped(
    service: ScriptedService, address: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer.dropped.append(empty_answer().nearest_miss)
    assert cli.main(["search", photo, "--explain"]) == 0
    assert "dropped (1):\n      0.40    0.80   1.00  Red Shirt\n" in capsys.readouterr().out


def test_table_fits_the_terminal(
    service: ScriptedService,
    address: str,
    photo: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service.answer.results.extend([result("Blue Shirt " * 30), result("青いシャツ" * 30), result("")])
    for result_ in service.answer.results:
        result_.url = ""
    for width in (70, 100, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        assert cli.main(["search", photo]) == 0
        lines = capsys.readouterr().out.splitlines()
        widths = {text_width(line) for line in lines[4:10]}
        assert max(map(text_width, lines[:-1])) <= width
        assert widths == {max(widths), max(widths) - 2}  # the heading's "source" is two longer than "bing"
        assert "(no title)" in lines[9]


def test_hostile_title_cannot_reach_the_terminal(
    service: ScriptedService, address: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer.results[0].title = "\x1b[2J\x1b]0;owned\x07Blue\nShirt\u202e"
    service.answer.results[0].url = "https://x.example/\r\n\x1b[1m"
    service.answer.degraded[0].reason = "a\nb\x9b1m"
    assert cli.main(["search", photo]) == 0
    out = capsys.readouterr().out
    assert [c for c in out if not c.isprintable() and c != "\n"] == []
    assert "[2J ]0;owned Blue Shirt" in out
    assert out.endswith("degraded: thumbnails: a b 1m\n")


def test_colours_are_for_terminals_only(address: str, photo: str) -> None:
    for variables, coloured in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)):
        ours, its = pty.openpty()
        process = start("search", photo, stdout=its, variables={**variables, "CAPTRIEVE_ADDRESS": address})
        assert process.wait(100) == 0
        os.close(its)
        shown = os.read(ours, 100_000).decode()
        os.close(ours)
        assert ("\x1b[1mBlue Shirt\x1b[0m" in shown) == coloured
        assert ("\x1b" in shown) == coloured


# search, for programs


def test_search_json_has_exactly_its_keys(
    service: ScriptedService, address: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["search", photo, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record) == SEARCH_KEYS
    assert [list(found) for found in record["results"]] == [RESULT_KEYS] * 2
    assert record["photo"] == photo
    assert record["caption"] == "Turtle Check Men Blue Shirt"
    assert record["words"] == [
        {"text": "Blue", "probability": 0.7, "alternatives": [{"text": "Navy", "probability": 0.125}]},
        {"text": "Shirt", "probability": 0.9, "alternatives": []},
    ]
    assert (record["results"][0]["score"], record["results"][0]["visual_score"]) == (0.95, 0.8)
    assert record["counts"]["dropped_visual"] == 3
    assert (record["nearest_miss"], record["empty_reason"]) == (None, "")
    assert record["timings_ms"] == {"preprocess": 2, "encode": 20, "search": 50, "total": 100}
    assert record["degraded"] == [{"part": "thumbnails", "reason": "1 of 9 did not arrive in time"}]
    assert (record["query_rule"], record["no_product_probability"]) == ("likeliest_words", 0.1)
    assert (record["confidence"], record["unsure_reason"]) == (0.95, "")
    assert record["readings"] == [
        {"query": "blue shirt", "probability": 0.625},
        {"query": "navy shirt", "probability": 0.375},
    ]


def test_search_json_of_an_empty_answer_with_other_words(
    service: ScriptedService, address: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer = empty_answer()
    service.answer.ClearField("caption")
    service.answer.dropped.append(service.answer.nearest_miss)
    assert cli.main(["search", photo, "--json", "--explain", "--words", "leather"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert list(record) == [*SEARCH_KEYS, "dropped"]
    assert (record["caption"], record["words"], record["results"]) == (None, [], [])
    assert record["empty_reason"] == "all 9 candidates were dropped"
    assert list(record["nearest_miss"]) == RESULT_KEYS
    assert record["dropped"] == [{**record["nearest_miss"], "verdict": "dropped_visual"}]


# contact sheet


def test_contact_sheet_is_a_picture(
    address: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kind in (("sheet.png", "PNG"), ("sheet.JPG", "JPEG")):
        assert cli.main(["search", photo, "--contact-sheet", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.endswith(f"contact sheet: {tmp_path / name}\n")
        with Image.open(tmp_path / name) as sheet:
            assert (sheet.format, sheet.width) == (kind, 1600)
    assert cli.main(["search", photo, "--json", "--contact-sheet", str(tmp_path / "again.png")]) == 0
    json.loads(capsys.readouterr().out)


def test_contact_sheet_that_cannot_be_written_is_one_line(
    address: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none" / "sheet.png"
    assert cli.main(["search", photo, "--contact-sheet", str(path)]) == 2
    assert capsys.readouterr().err == f"error: cannot write {path}: no such file or directory\n"


def test_without_pillow_the_contact_sheet_is_refused_before_the_search(
    service: ScriptedService,
    address: str,
    photo: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "captrieve_client.contact_sheet", None)  # type: ignore[arg-type]
    assert cli.main(["search", photo, "--contact-sheet", "sheet.png"]) == 2
    assert capsys.readouterr().err == (
        'error: --contact-sheet needs Pillow; install it with: pip install "captrieve-client[contact-sheet]"\n'
    )
    assert service.requests == []


# caption


def test_captions_are_one_line_each_in_order(
    service: ScriptedService, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first photo is answered last."""
    first, *others = photos = named_photos(tmp_path, "d.jpg", "a.jpg", "c.jpg", "b.jpg")
    answered = threading.Semaphore(0)

    def first_waits_for_the_others(photo: bytes) -> None:
        if photo == b"d.jpg":
            assert all(answered.acquire(timeout=100) for _ in others)
        else:
            answered.release()

    service.before_answer = first_waits_for_the_others
    assert cli.main(["caption", *photos, "--beams", "2"]) == 0
    expected = [f"{photo}: Caption of {Path(photo).name}" for photo in photos]
    assert capsys.readouterr().out.splitlines() == expected
    assert {request.decoding.num_beams for request in service.requests} == {2}

    assert cli.main(["caption", "--json", *photos]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(record) for record in records] == [CAPTION_KEYS] * 4
    assert [record["photo"] for record in records] == photos
    assert records[0]["caption"] == f"Caption of {Path(first).name}"
    assert (records[0]["log_probability"], records[0]["complete"]) == (-1.25, True)


def test_bad_photo_among_many_costs_the_others_nothing(
    service: ScriptedService, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, last = named_photos(tmp_path, "good.jpg", "bad.jpg", "last.jpg")
    missing = str(tmp_path / "missing.jpg")
    service.failures[b"bad.jpg"] = Failure(Code.INVALID_ARGUMENT, "not a readable photo")
    assert cli.main(["caption", good, bad, missing, last]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{good}: Caption of good.jpg", f"{last}: Caption of last.jpg"]
    assert err.splitlines() == [
        f"error: {bad}: not a readable photo",
        f"error: cannot read {missing}: no such file or directory",
    ]

    assert cli.main(["caption", "--json", good, bad, missing, last]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["photo"] for record in records] == [good, bad, missing, last]
    assert records[1] == {
        "photo": bad,
        "error": {
            "code": "INVALID_ARGUMENT",
            "message": "not a readable photo",
            "retryable": False,
            "retry_after_seconds": None,
        },
    }


def test_folder_is_captioned(address: str, tmp_path: Path, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "empty").mkdir()
    other = tmp_path / "more" / "other.jpg"
    other.write_bytes(photo_bytes())
    assert cli.main(["caption", str(tmp_path), "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["photo"] for record in records] == [photo, str(other)]
    assert cli.main(["caption", photo, str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err == f"error: there is no photo in the folder {tmp_path / 'empty'}\n"


def test_photo_comes_from_standard_input(
    service: ScriptedService, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("search", "caption"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo_bytes())))
        assert cli.main([command, "-", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["photo"] == "-"
    assert [request.photo for request in service.requests] == [photo_bytes()] * 2
    assert cli.main(["caption", "-", "-"]) == 2
    assert capsys.readouterr().err == "error: standard input (-) holds one photo; name it once\n"
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert cli.main(["search", "-"]) == 2
    assert "is a terminal; pipe a photo into it" in capsys.readouterr().err


def test_trouble_outweighs_a_bad_photo(service: ScriptedService, address: str, tmp_path: Path) -> None:
    photos = named_photos(tmp_path, "full.jpg", "bad.jpg")
    service.failures[b"full.jpg"] = Failure(Code.RESOURCE_EXHAUSTED, "full", 1.5)
    service.failures[b"bad.jpg"] = Failure(Code.INVALID_ARGUMENT)
    assert cli.main(["caption", *photos]) == 3


# health


@pytest.mark.parametrize(("ready", "words", "code"), [(True, "serving", 0), (False, "not serving", 3)])
def test_health_is_one_line(
    service: ScriptedService, ready: bool, words: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(service, ready=ready) as address:
        assert cli.main(["health", "--address", address]) == code
        assert capsys.readouterr().out.startswith(f"{address}: {words} (")
        assert cli.main(["health", "--address", address, "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"address": address, "status": words.replace(" ", "_")}


# errors and exit codes


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (Failure(Code.INVALID_ARGUMENT, "max_results is 500; the limit is 100"), 2, "--max-results is 500"),
        (Failure(Code.INVALID_ARGUMENT, "decoding.num_beams is 99: it goes from 1 to 8"), 2, "--beams is 99: it goes"),
        (Failure(Code.INVALID_ARGUMENT, "my_max_results and max_results.x"), 2, "my_max_results and max_results.x"),
        (Failure(Code.UNAVAILABLE, "max_results"), 3, "max_results"),
        (Failure(Code.UNAUTHENTICATED, "no token"), 2, "no token"),
        (Failure(Code.RESOURCE_EXHAUSTED, "the server is full", 1), 3, "the server is full"),
        (Failure(Code.UNAVAILABLE, "every provider\nis down"), 3, "every provider is down"),
        (Failure(Code.DEADLINE_EXCEEDED, "no time left"), 3, "no time left"),
        (Failure(Code.INTERNAL, "the server failed"), 3, "the server failed"),
    ],
)
def test_error_is_one_line_and_an_exit_code(
    service: ScriptedService,
    address: str,
    photo: str,
    capsys: pytest.CaptureFixture[str],
    failure: Failure,
    code: int,
    line: str,
) -> None:
    service.failure = failure
    assert cli.main(["search", photo]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_missing_photo_is_bad_use(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "none.jpg"]) == 2
    assert capsys.readouterr().err == "error: cannot read none.jpg: no such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: the following arguments are required: COMMAND"),
        (["find", "a.jpg"], "error: argument COMMAND: invalid choice: 'find'"),
        (["search"], "error: the following arguments are required: PHOTO"),
        (["search", "a.jpg", "--beams", "0"], "error: argument --beams: '0' is not a whole number from 1 to"),
        (["search", "a.jpg", "--max-results", "x"], "error: argument --max-results: 'x' is not a whole"),
        (["search", "a.jpg", "--timeout", "nan"], "error: argument --timeout: 'nan' is not a number of seconds"),
        (["search", "a.jpg", "--timeout", "soon"], "error: argument --timeout: 'soon' is not a number"),
        (["search", "a.jpg", "--query-rule", "x"], "error: argument --query-rule: invalid choice: 'x'"),
        (["search", "a.jpg", "--contact-sheet", "a.gif"], "error: argument --contact-sheet: 'a.gif' does not end"),
        (["caption", "a.jpg", "--concurrency", "-1"], "error: argument --concurrency: '-1' is not a whole"),
    ],
)
def test_bad_use_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(arguments, capsys).startswith(line)


def test_usage_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["search"], capsys).endswith("(see captrieve search --help)")
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"captrieve {__version__}\n"


# errors for programs


def test_json_error_of_a_search_is_one_object(
    service: ScriptedService, address: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.failure = Failure(Code.RESOURCE_EXHAUSTED, "the queue is full", 2.5)
    assert cli.main(["search", photo, "--json"]) == 3
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "photo": photo,
        "error": {
            "code": "RESOURCE_EXHAUSTED",
            "message": "the queue is full",
            "retryable": True,
            "retry_after_seconds": 2.5,
        },
    }
    assert cli.main(["search", "none.jpg", "--json"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert (record["photo"], record["error"]["code"]) == ("none.jpg", "INVALID_ARGUMENT")


def test_json_error_of_a_health_check_names_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert cli.main(["health", "--json", "--address", address]) == 3
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert (err, record["address"], record["error"]["code"]) == ("", address, "UNAVAILABLE")


def test_json_error_of_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["search", "--json", "a.jpg", "--beams", "0"])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert err == ""
    error = json.loads(out)["error"]
    assert list(error) == ["code", "message", "retryable", "retry_after_seconds"]
    assert error["message"].startswith("argument --beams: '0' is not a whole number")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "none.jpg", "--json"], "cannot read none.jpg: no such file or directory"),
        (["search", ".", "--json"], "cannot read .: is a directory"),
        (["search", "--js", "a.jpg", "--beams", "0"], "argument --beams: '0' is not a whole number"),
        (["search", "--json", "a.jpg", "--words", "\udcff"], "argument --words: '\\udcff' is not UTF-8"),
        (["search", "--json", "a.jpg", "--address", "shop.example/v1"], "the address 'shop.example/v1' has a path"),
        (["caption", "--json", "none/", "-", "-"], "standard input (-) holds one photo"),
    ],
)
def test_error_of_every_kind_is_json(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        sys.exit(cli.main(arguments))
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["error"]["message"].startswith(message)


# completion


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["captrieve", ""], {"search", "caption", "health", "completion"}),
        (["captrieve", "se"], {"search"}),
        (["captrieve", "search", "--con"], {"--contact-sheet"}),
        (["captrieve", "search", "--query-rule", ""], {"salient", "full-caption"}),
        (["captrieve", "caption", "--query-rule", "l"], {"likeliest-words", "last-two-words"}),
        (["captrieve", "search", "sh"], {"shirt.jpg"}),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else None,  # sets have no order
)
def test_bash_completes(
    words: list[str], expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab", reason="COMPLETION IS NOT TESTED: install the client's dependencies")
    if shutil.which("bash") is None:
        pytest.skip("COMPLETION IS NOT TESTED: there is no bash")
    (tmp_path / "shirt.jpg").touch()
    assert cli.main(["completion", "bash"]) == 0
    script = f"""
        {capsys.readouterr().out}
        COMP_WORDS=({shlex.join(words)})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        completer=$(complete -p captrieve | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        $completer captrieve "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    assert set(done.stdout.split()) >= expected, done.stderr
    assert {word for word in done.stdout.split() if not word.startswith(words[-1])} == set()


@pytest.mark.parametrize(("shell", "line"), [("zsh", "#compdef captrieve"), ("fish", "complete -c captrieve ")])
def test_other_shells_have_a_script(shell: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="COMPLETION IS NOT TESTED: install the client's dependencies")
    assert cli.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert line in out
    assert all(word in out for word in ("search", "contact-sheet", "likeliest-words"))
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=out, text=True, timeout=30, check=True)


# as a process


def test_command_runs_as_a_process(address: str, photo: str) -> None:
    process = start("search", photo, "--json", "--address", address, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    assert list(json.loads(out)) == SEARCH_KEYS


def test_nothing_listening_is_service_trouble(photo: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start("search", photo, "--address", address, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (3, "")
    assert err == f"error: no gateway answers at {address}; start it, or check host and port\n"


def test_gateway_that_stops_is_one_line(service: ScriptedService, photo: str) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: hold.wait(100)
    try:
        with serving(service) as address:
            process = start(
                "search", photo, "--address", address, "--attempts", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert service.asked.wait(100)
    finally:
        hold.set()
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (3, "")
    assert err == f"error: the connection to {address} was closed before the answer arrived; try again\n"


@pytest.mark.parametrize("command", ["search", "caption"])
def test_interrupt_ends_quietly(service: ScriptedService, address: str, photo: str, command: str) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: hold.wait(100)
    process = start(command, photo, "--address", address, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert service.asked.wait(100)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    finally:
        hold.set()
        process.kill()
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize("command", ["search", "caption"])
def test_reader_that_leaves_ends_it_quietly(service: ScriptedService, address: str, photo: str, command: str) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: hold.wait(100)
    process = start(command, photo, "--address", address, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stderr:
        assert service.asked.wait(100)
        process.stdout.close()
        hold.set()
        assert process.stderr.read() == ""
    assert process.wait(100) == 141


def test_narrow_encoding_does_not_end_the_listing(service: ScriptedService, address: str, photo: str) -> None:
    service.answer.results[0].title = "Hemd für Herren 青"
    process = start(
        "search", photo, "--address", address, stdout=subprocess.PIPE, variables={"PYTHONIOENCODING": "ascii"}
    )
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert "Hemd f?r Herren ?" in out


# texts


@pytest.mark.parametrize(
    ("caption", "query", "parts"),
    [
        ("Turtle Check Men Blue Shirt", "blue shirt", ("Turtle Check Men", "Blue Shirt", "")),
        ("Men Blue Shirt, Blue Shirt.", "blue shirt", ("Men Blue Shirt,", "Blue Shirt.", "")),
        ("Blue Shirt for Men", "blue shirt", ("", "Blue Shirt", "for Men")),
        ("Navy Shirt", "leather bag", ("Navy Shirt", "", "")),
        ("Shirt", "shirt", ("", "Shirt", "")),
        ("", "", ("", "", "")),
    ],
)
def test_words_of_the_query_are_found_in_the_caption(caption: str, query: str, parts: tuple[str, str, str]) -> None:
    assert split_caption(caption, query) == parts


def test_text_is_fitted_to_columns() -> None:
    assert fitted("Blue Shirt", 12) == "Blue Shirt  "
    assert fitted("Blue Shirt", 6) == "Blue… "
    assert fitted("青いシャツ", 6) == "青い… "
    assert text_width(fitted("青いシャツ", 7)) == 7
    assert text_width("e\u0301") == 1
    assert printable("a\tb\u2028c \x00 d") == "a b c d"


def test_a_value_near_zero_has_no_sign() -> None:
    result = Result(
        title="", url="", image_url="", thumbnail_url="", source="", width=1, height=1, visual_score=0,
        semantic_score=0, score=0, reason="", verdict="", contributions=(Contribution("looks", -0.001),),
    )  # fmt: skip
    assert contributions_text(result) == "0.00 looks"


def test_times_without_any_time_have_no_shares() -> None:
    assert reports.timings_text({}) == "0 ms"
    assert reports.timings_text({"encode": 0.0}) == "0 ms: encode 0 ms"
    assert reports.timings_text({"encode": 30.0, "search": 10.0}) == "40 ms: encode 30 ms (75%), search 10 ms (25%)"
