# SPDX-License-Identifier: Apache-2.0
"""Lines of the log: readable or JSON, with the request's id, and not to be forged by what callers send."""

from __future__ import annotations

import asyncio
import contextvars
import io
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TextIO

import numpy as np
import pytest

from captioner.model_contract import ModelContract
from captioner.preprocessing import ImageLimits
from search_gateway.deadline import Deadline
from search_gateway.engine.inference import EncodedPhotos
from search_gateway.engine.scheduler import CaptionScheduler
from search_gateway.errors import DeadlineError, InferenceError
from search_gateway.imaging.decoder_pool import DecoderPool
from search_gateway.observability import logs
from tests.conftest import MODELS, jpeg

LOG = logging.getLogger("search_gateway.test")
Lines = Callable[[], list[str]]


@pytest.fixture
def written() -> Callable[..., io.StringIO]:
    """Sets up the log; returns the stream it is written to."""

    def set_up(log_format: logs.LogFormat = "console", level: str = "info") -> io.StringIO:
        stream = io.StringIO()
        logs.set_up_logging(log_format, level, stream)
        return stream

    return set_up


def test_a_line_has_time_level_logger_message_and_what_is_bound(written: Callable[..., io.StringIO]) -> None:
    stream = written()
    with logs.bound(request_id="abc", trace_id=None):
        LOG.info("%s of %d", "one", 2)
    LOG.info("later")
    first, later = stream.getvalue().splitlines()
    assert first[23:] == " INFO search_gateway.test: one of 2 request_id=abc"
    assert later.endswith("INFO search_gateway.test: later")


def test_json_lines_have_the_fields_of_an_access_line(written: Callable[..., io.StringIO]) -> None:
    stream = written("json")
    with logs.bound(request_id="abc", trace_id="f" * 32):
        LOG.info("call", extra={"method": "/a.B/C", "code": "OK", "milliseconds": 1.5, "photo": b"bytes"})
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "call",
        "level": "info",
        "logger": "search_gateway.test",
        "request_id": "abc",
        "trace_id": "f" * 32,
        "method": "/a.B/C",
        "code": "OK",
        "milliseconds": 1.5,
    }


FORGED = "shirt\n2026-11-29 12:00:00.000 INFO search_gateway.server: ready\r\x1b[31m\u2028end"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_user_input_forges_no_line(written: Callable[..., io.StringIO], log_format: logs.LogFormat) -> None:
    stream = written(log_format)
    LOG.info("the query is %s", FORGED)
    with logs.bound(request_id=FORGED):
        LOG.info("bound")
    try:
        raise ValueError(FORGED)
    except ValueError:
        LOG.exception("failed")
    lines = stream.getvalue().splitlines()
    assert not [line for line in lines if line.startswith("2026-11-29 12:00:00.000")]
    assert "\x1b" not in stream.getvalue()
    if log_format == "json":
        assert len([json.loads(line) for line in lines]) == 3
    else:
        ours = [line for line in lines if not line.startswith("  ")]
        assert [line.split(": ", 1)[1].split()[0] for line in ours] == ["the", "bound", "failed"]


def test_the_level_can_be_changed_while_it_runs(written: Callable[..., io.StringIO]) -> None:
    stream = written(level="warning")
    LOG.info("not yet")
    logs.set_level("debug")
    LOG.debug("now")
    logging.getLogger("aiohttp").debug("never: it may show what callers send")
    assert logs.level() == "debug"
    logs.set_level("error")
    LOG.warning("no more")
    assert [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()] == ["now"]
    with pytest.raises(ValueError, match="loud"):
        logs.set_level("loud")


def test_libraries_that_log_queries_are_silent_at_any_level(written: Callable[..., io.StringIO]) -> None:
    stream = written(level="debug")
    logging.getLogger("ddgs").info("query red shirt")
    logging.getLogger("primp").warning("response: red shirt")
    assert stream.getvalue() == ""


def test_threads_and_tasks_of_a_request_have_its_id(written: Callable[..., io.StringIO]) -> None:
    stream = written()

    async def request(name: str) -> None:
        with logs.bound(request_id=name):
            await asyncio.create_task(log_soon())
            await asyncio.to_thread(LOG.info, "thread")
            with ThreadPoolExecutor(1) as pool:
                job = pool.submit(contextvars.copy_context().run, LOG.info, "pool")
                await asyncio.wrap_future(job)

    async def log_soon() -> None:
        await asyncio.sleep(0)
        LOG.info("task")

    async def both() -> None:
        await asyncio.gather(request("a"), request("b"))

    asyncio.run(both())
    seen = sorted(tuple(line.split(": ")[1].split()) for line in stream.getvalue().splitlines())
    assert seen == [(what, f"request_id={name}") for what in ("pool", "task", "thread") for name in "ab"]


def test_what_requests_share_is_logged_without_the_id_of_the_one_that_began_it(
    written: Callable[..., io.StringIO],
) -> None:
    """A running batch outlives the request that opened it."""
    stream = written()

    class FailingInference:
        makes_first_tokens = False
        encoder_calls = 2

        async def encode(self, *_: object, **__: object) -> EncodedPhotos:
            raise ZeroDivisionError("a defect")

    async def caption() -> None:
        scheduler = CaptionScheduler(FailingInference(), bos_token_id=0, eos_token_id=0)
        with logs.bound(request_id="the first one's"), pytest.raises(InferenceError):
            await scheduler.embed(np.zeros((1, 1, 3), np.uint8), Deadline(5))
        await scheduler.close()

    asyncio.run(caption())
    (line,) = [line for line in stream.getvalue().splitlines() if "captioning failed unexpectedly" in line]
    assert "request_id" not in line


def test_the_end_of_a_photo_worker_is_logged_with_the_id_of_its_photo(written: Callable[..., io.StringIO]) -> None:
    stream = written()

    async def decode() -> None:
        contract = ModelContract.load(MODELS)
        pool = DecoderPool(contract, ImageLimits(), num_workers=1)
        try:
            with logs.bound(request_id="mine"):
                await pool.decode(jpeg("Shirt", "Red"), Deadline(30))  # the worker is there
                os.kill(pool.pids[0], signal.SIGSTOP)
                with pytest.raises(DeadlineError):
                    await pool.decode(jpeg("Shirt", "Red"), Deadline(0.1))
            async with asyncio.timeout(60):  # the worker is given 0.25 s more, then it is killed
                while not pool.state.killed:  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0.02)
        finally:
            await pool.close()

    asyncio.run(decode())
    (line,) = [line for line in stream.getvalue().splitlines() if "photo worker" in line]
    assert line.endswith("SIGKILL request_id=mine")


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """Yields the end to read, and a stream of the other one."""
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as stream:
        yield reading, stream
        os.close(reading)  # first, or a blocked write would keep the stream from closing


def test_log_that_nobody_reads_does_not_stop_the_gateway(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, stream = pipe
    monkeypatch.setattr(logs, "_MAX_QUEUED_LINES", 1000)
    logs.set_up_logging("console", "info", stream, is_queued=True)
    for number in range(3000):  # 300 KB, where a pipe takes 64
        LOG.info("%d %s", number, "x" * 100)
    written = ""
    while "dropped" not in written:
        written += os.read(reading, 2**16).decode()
        LOG.info("still here")
    numbers = [int(line.split()[4]) for line in written.splitlines() if "xxx" in line]
    assert numbers == list(range(len(numbers)))  # none is missing before those at the end
    [told] = [line for line in written.splitlines() if "dropped" in line]
    assert 0 < int(told.split()[4]) < 3000
    assert "nobody read it, or its disk is slow" in told


def test_flushing_writes_what_is_queued(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    logs.set_up_logging("console", "info", stream, is_queued=True)
    LOG.info("last line")
    logs.flush_log()
    os.set_blocking(reading, False)
    assert "last line" in os.read(reading, 1000).decode()
