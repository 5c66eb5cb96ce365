# SPDX-License-Identifier: Apache-2.0
"""Photos decoded in processes that may be killed: who is served, who fails alone, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.robustness.hostile_photos import BOMBS, odd_photos
from captioner.image_error import ImageError, ImageReason
from captioner.model_contract import Fit, ModelContract
from captioner.preprocessing import ImageLimits, Region, decode_photo
from search_gateway.deadline import Deadline
from search_gateway.errors import (
    DeadlineError,
    InferenceError,
    SearchError,
)
from search_gateway.fair_share import current_caller
from search_gateway.imaging import decoder_pool, worker_process
from search_gateway.imaging.decoder_pool import DecoderPool
from search_gateway.imaging.worker_process import WORKER_COMMAND, WorkerProcess
from tests.fakes.event_loop import on_event_loop
from tests.search_gateway.imaging.test_worker_main import MISBEHAVING
from tests.search_gateway.imaging.test_worker_process import is_there

SMALL_LIMITS = ImageLimits(max_bytes=2000, max_pixels=400)
HUGE = ImageLimits(max_bytes=16 * 2**20)


def contract(fit: Fit) -> ModelContract:
    return ModelContract(
        model="toy", image_height=20, image_width=16, fit=fit, num_positions=21, hidden_size=8, num_layers=1,
        num_heads=1, head_size=8, max_tokens=4, num_candidates=4, max_beams=2, tokens_per_call=2,
        vocab_size=50, bos_token_id=0,
        eos_token_id=1, pad_token_id=2,
    )  # fmt: skip


def picture(width: int = 12, height: int = 9, seed: int = 1) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def expected(data: bytes, fit: Fit = "pad") -> np.ndarray[Any, Any]:
    return decode_photo(data, height=20, width=16, fit=fit)


def late(seconds: float, data: bytes) -> bytes:
    """For the misbehaving worker: a picture that takes so long."""
    return b"LATE" + f"{seconds:8.3f}".encode() + data


@contextlib.asynccontextmanager
async def decoding(
    command: Sequence[str] = MISBEHAVING,
    limits: ImageLimits = HUGE,
    fit: Fit = "pad",
    num_workers: int = 2,
    must_start: bool = True,
    is_for_catalogue: bool = False,
) -> AsyncIterator[DecoderPool]:
    """A decoder whose workers are ready; none of them is there afterwards."""
    decoder = DecoderPool(
        contract(fit), limits, num_workers=num_workers, command=command, is_for_catalogue=is_for_catalogue
    )
    try:
        if must_start:
            await until(lambda: len(decoder._idle) == num_workers)
        yield decoder
    finally:
        pids = decoder.pids
        await decoder.close()
        assert not any(is_there(pid) for pid in pids)


async def until(is_true: Callable[[], bool], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.01)


async def is_right(decoder: DecoderPool, seed: int, seconds: float = 60) -> bool:
    data = picture(seed=seed)
    return np.array_equal(await decoder.decode(data, Deadline(seconds)), expected(data))


async def outcome(work: Awaitable[Any]) -> Any:
    try:
        return await work
    except (SearchError, ImageError) as error:
        return error


# As if it were done here


@pytest.mark.parametrize("fit", ["pad", "trim", "squash"])
@on_event_loop
async def test_photo_becomes_what_the_encoder_sees(fit: Fit) -> None:
    async with decoding(WORKER_COMMAND, fit=fit) as decoder:
        pixels = await decoder.decode(picture(), Deadline(60))
    assert pixels.shape == (20, 16, 3)
    assert pixels.flags.writeable
    assert np.array_equal(pixels, expected(picture(), fit))


@on_event_loop
async def test_region_reaches_the_worker() -> None:
    region = Region(0.25, 0.5, 0.5, 0.375)
    async with decoding(WORKER_COMMAND) as decoder:
        pixels = await decoder.decode(picture(64, 64), Deadline(60), region)
        whole = await decoder.decode(picture(64, 64), Deadline(60))
        error = await outcome(decoder.decode(picture(64, 64), Deadline(60), Region(0, 0, 0.1, 0.1)))
    assert np.array_equal(pixels, decode_photo(picture(64, 64), height=20, width=16, fit="pad", region=region))
    assert np.array_equal(whole, expected(picture(64, 64)))
    assert error.reason is ImageReason.REGION


@on_event_loop
async def test_image_errors_are_those_of_decode_photo() -> None:
    cases: list[tuple[bytes, ImageReason]] = [
        (b"", ImageReason.UNREADABLE),
        (b"hello", ImageReason.UNREADABLE),
        (picture()[:60], ImageReason.UNREADABLE),
        (picture() + bytes(2000), ImageReason.TOO_LARGE),
        (picture(21, 20), ImageReason.TOO_LARGE),
    ]
    async with decoding(WORKER_COMMAND, SMALL_LIMITS) as decoder:
        for data, reason in cases:
            error = await outcome(decoder.decode(data, Deadline(60)))
            with pytest.raises(ImageError) as here:
                decode_photo(data, height=20, width=16, fit="pad", limits=SMALL_LIMITS)
            assert error.reason is reason
            assert error.args == here.value.args


@on_event_loop
async def test_photos_decoded_at_once_do_not_mix() -> None:
    files = [b"broken" if seed % 4 == 0 else picture(seed=seed) for seed in range(60)]
    async with decoding(WORKER_COMMAND) as decoder:
        results = await asyncio.gather(*(outcome(decoder.decode(file, Deadline(60))) for file in files))
    for file, result in zip(files, results, strict=True):
        if file == b"broken":
            assert isinstance(result, ImageError)
        else:
            assert np.array_equal(result, expected(file))


@on_event_loop
async def test_every_odd_or_hostile_photo_is_pixels_or_a_bad_request() -> None:
    async with decoding(WORKER_COMMAND, ImageLimits()) as decoder:
        # One that is ended, one that takes long, one too large, one of many parts; the worker's tests have them all.
        bombs = ("scans 600", "png of 25 MP, grey", "webp of 169 MP", "gif of 1.5 million extensions")
        files = dict(odd_photos()) | {name: BOMBS[name]() for name in bombs}
        results = await asyncio.gather(*(outcome(decoder.decode(file, Deadline(200))) for file in files.values()))
        for name, result in zip(files, results, strict=True):
            if isinstance(result, ImageError):
                assert not re.search(r"[/\\]|PIL|Pillow|Error|worker", str(result)), name
            else:
                assert result.shape == (20, 16, 3), name
        assert await is_right(decoder, 1)


@on_event_loop
async def test_event_loop_goes_on_while_a_photo_is_decoded() -> None:
    async with decoding() as decoder:
        work = asyncio.create_task(outcome(decoder.decode(b"HANG", Deadline(60))))
        await until(lambda: bool(decoder._at_work))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not work.done()
        work.cancel()


# Order of the pictures


@on_event_loop
async def test_photos_are_decoded_in_the_order_they_came() -> None:
    done: list[int] = []

    async def one(decoder: DecoderPool, number: int) -> None:
        await decoder.decode(late(0.02, picture(seed=number)), Deadline(60))
        done.append(number)

    async with decoding(num_workers=1) as decoder:
        await asyncio.gather(*(one(decoder, number) for number in range(10)))
    assert done == list(range(10))


@on_event_loop
async def test_photos_of_a_caller_who_sends_few_do_not_wait_for_those_of_one_who_sends_many() -> None:
    done: list[str] = []

    async def one(decoder: DecoderPool, caller: str) -> None:
        current_caller.set(caller)
        await decoder.decode(late(0.02, picture()), Deadline(60))
        done.append(caller)

    async with decoding(num_workers=1) as decoder:
        await asyncio.gather(*(one(decoder, caller) for caller in [*["many"] * 10, "few", "few"]))
    assert [number for number, caller in enumerate(done) if caller == "few"] == [1, 3]


@on_event_loop
async def test_photos_that_take_long_leave_one_worker_to_the_others() -> None:
    """Small ones that come after many large ones do not wait for them; large ones are all served nevertheless."""
    large = late(2, picture() + bytes(2 * 2**20))
    async with decoding() as decoder:
        slow = [asyncio.create_task(decoder.decode(large, Deadline(60))) for _ in range(3)]
        await asyncio.sleep(0)
        assert all(await asyncio.gather(*(is_right(decoder, seed) for seed in range(20))))
        assert not any(task.done() for task in slow)
        for pixels in await asyncio.gather(*slow):
            assert pixels.shape == (20, 16, 3)


@on_event_loop
async def test_photo_of_few_bytes_and_many_pixels_is_one_that_takes_long() -> None:
    async with decoding(WORKER_COMMAND) as decoder:
        flat = BOMBS["png of 25 MP, grey"]()
        assert len(flat) < 2**20
        assert (await decoder.decode(flat, Deadline(60))).shape == (20, 16, 3)


@on_event_loop
async def test_one_worker_serves_everybody_where_there_is_only_one() -> None:
    async with decoding(num_workers=1) as decoder:
        large = picture() + bytes(2 * 2**20)
        assert (await decoder.decode(large, Deadline(60))).shape == (20, 16, 3)
        assert await is_right(decoder, 3)


# Failures of one picture

LONG_BURN = b"BURN" + bytes(2 * 2**20)


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (
            b"BURN",
            ImageReason.TOO_SLOW,
            "takes too long to decode; the limit is 0.5 s of processor time",
        ),
        (
            LONG_BURN,
            ImageReason.TOO_SLOW,
            "takes too long to decode; the limit is 1.6 s of processor time",
        ),
        (b"HANG", ImageReason.TOO_SLOW, "takes too long to decode; the limit is 2 s"),
        (
            b"EATS",
            ImageReason.OUT_OF_MEMORY,
            "takes too much memory to decode; the limit is 731 MiB",
        ),
        (b"CRSH", ImageReason.CRASHED, r"\(4 bytes\) ended the process that decoded it"),
        (b"QUIT", ImageReason.CRASHED, r"\(4 bytes\) ended the process that decoded it"),
        (b"LIES", ImageReason.CRASHED, r"\(4 bytes\) ended the process that decoded it"),
    ],
)
@on_event_loop
async def test_picture_that_breaks_its_worker_fails_alone(
    data: bytes, reason: ImageReason, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_pool, "_WORK_SECONDS", 2 if data == b"HANG" else 3600)
    async with decoding() as decoder:
        bad = [asyncio.create_task(outcome(decoder.decode(data, Deadline(600)))) for _ in range(3)]
        good = await asyncio.gather(*(is_right(decoder, seed) for seed in range(20)))
        assert all(good)
        for error in await asyncio.gather(*bad):
            assert error.reason is reason
            assert re.search(words, str(error))
        # And all workers are back.
        await until(lambda: len(decoder.pids) == 2)
        assert all(await asyncio.gather(*(is_right(decoder, seed) for seed in range(20))))
        assert decoder.num_replaced == (0 if data == b"EATS" else 3)


@on_event_loop
async def test_worker_killed_from_outside_costs_no_picture() -> None:
    """It was not the picture's fault: it is decoded by another one."""
    async with decoding() as decoder:
        for seed in range(10):
            await until(lambda: len(decoder._idle) == 2)
            work = asyncio.create_task(decoder.decode(late(0.1, picture(seed=seed)), Deadline(60)))
            others = [asyncio.create_task(is_right(decoder, other)) for other in range(100, 110)]
            await until(lambda: bool(decoder._at_work))
            for pid in decoder.pids[:1] if seed % 2 else decoder.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert np.array_equal(await work, expected(picture(seed=seed)))
            assert all(await asyncio.gather(*others))
        await until(lambda: len(decoder.pids) == 2)
        assert decoder.num_replaced >= 5


@on_event_loop
async def test_picture_whose_worker_is_killed_again_and_again_is_refused() -> None:
    async with decoding(num_workers=1) as decoder:
        work = asyncio.create_task(outcome(decoder.decode(b"HANG", Deadline(60))))
        for times in range(2):
            await until(lambda: bool(decoder._at_work))
            os.kill(decoder.pids[0], signal.SIGKILL)
            await until(lambda times=times: decoder.num_replaced > times)  # type: ignore[misc]
        assert isinstance(await work, ImageError)
        assert await is_right(decoder, 1)


@on_event_loop
async def test_idle_workers_killed_from_outside_come_back() -> None:
    async with decoding() as decoder:
        before = decoder.pids
        assert len(before) == 2
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(decoder.pids) == 2 and not set(decoder.pids) & set(before))
        assert all(await asyncio.gather(*(is_right(decoder, seed) for seed in range(8))))


@on_event_loop
async def test_good_photos_do_not_wait_for_a_stream_of_bombs() -> None:
    """Four callers who send bombs without a pause, and one caller's good photos, one after the other.

    A bomb takes a worker a hundred times as long as a good photo: good photos that waited for bombs would be as few.
    `benchmarks.photo_decoding` measures how fast they are.
    """
    names = ["scans 20 of 25 MP", "png of 25 MP, colour and alpha", "gif of 1.5 million extensions", "webp of 25 MP"]
    bombs = [BOMBS[name]() for name in names]
    sent = 0

    async def attack(decoder: DecoderPool, number: int) -> None:
        nonlocal sent
        while True:
            result = await outcome(decoder.decode(bombs[(number + sent) % len(bombs)], Deadline(60)))
            assert isinstance(result, ImageError | np.ndarray)
            sent += 1

    async with decoding(WORKER_COMMAND, ImageLimits()) as decoder:
        attacks = [asyncio.create_task(attack(decoder, number)) for number in range(4)]
        num_good = 0
        while sent < 4:
            assert await is_right(decoder, num_good % 10)
            num_good += 1
        for task in attacks:
            task.cancel()
        ends = await asyncio.gather(*attacks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
    assert num_good > 10 * sent


@on_event_loop
async def test_worker_that_dies_while_no_file_can_be_opened_is_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = socket.socketpair, 0

    def no_descriptor() -> tuple[socket.socket, socket.socket]:
        nonlocal refused
        refused += 1
        if refused < 4:
            raise OSError(errno.EMFILE, "Too many open files")
        return real()

    async with decoding() as decoder:
        monkeypatch.setattr(worker_process, "socket", SimpleNamespace(**{**vars(socket), "socketpair": no_descriptor}))
        os.kill(decoder.pids[0], signal.SIGKILL)
        await until(lambda: decoder.num_replaced == 1 and len(decoder._idle) == 2)
        assert refused == 4
        assert await is_right(decoder, 1)


# Callers that leave


@on_event_loop
async def test_deadline_ends_the_wait_and_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_pool, "_WORK_SECONDS", 3600)  # not by this limit
    async with decoding() as decoder:
        hanging = [outcome(decoder.decode(b"HANG", Deadline(0.2))) for _ in range(2)]
        waiting = decoder.decode(picture(), Deadline(60))
        *errors, pixels = await asyncio.gather(*hanging, waiting)
        for error in errors:
            assert isinstance(error, DeadlineError)
            assert str(error) == "the deadline passed before the photo was decoded: allow more time"
        assert np.array_equal(pixels, expected(picture()))
        await until(lambda: decoder.num_replaced == 2)


@on_event_loop
async def test_time_that_is_over_is_told_at_once() -> None:
    async with decoding() as decoder:
        with pytest.raises(DeadlineError):
            await decoder.decode(picture(), Deadline(0))
        assert await is_right(decoder, 1)


@on_event_loop
async def test_picture_whose_caller_left_is_ended_or_never_begun() -> None:
    async with decoding(num_workers=1) as decoder:
        at_work = asyncio.create_task(decoder.decode(b"HANG", Deadline(60)))
        waiting = [asyncio.create_task(decoder.decode(b"HANG", Deadline(60))) for _ in range(5)]
        await until(lambda: bool(decoder._at_work))
        for task in (at_work, *waiting):
            task.cancel()
        results = await asyncio.gather(at_work, *waiting, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert await is_right(decoder, 1)
        assert decoder.num_replaced == 1


@on_event_loop
async def test_callers_who_leave_early_cost_no_worker_where_the_picture_is_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoder_pool, "_GRACE_SECONDS", 30)  # a busy machine may be slow with a quick picture
    async with decoding() as decoder:
        for seed in range(50):
            work = asyncio.create_task(decoder.decode(picture(seed=seed), Deadline(60)))
            await asyncio.sleep(0)
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            assert await is_right(decoder, seed)
        assert decoder.num_replaced == 0


# Start and end


@on_event_loop
async def test_workers_that_cannot_start_are_told_and_tried_with_growing_pauses(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(decoder_pool, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": pause}))
    async with decoding(("/bin/true",), must_start=False) as decoder:
        for _ in range(2):  # the first one waits for the attempt, the second one is told at once
            error = await outcome(decoder.decode(picture(), Deadline(60)))
            assert type(error) is InferenceError
            assert str(error) == "photos cannot be decoded at the moment: try again shortly"
        await until(lambda: len(pauses) >= 8)
        assert pauses[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert "a photo worker cannot be started (attempt 1): it ended before it was ready, status 0" in caplog.text


@on_event_loop
async def test_workers_that_become_startable_serve_again(tmp_path: Path) -> None:
    flag = tmp_path / "may start"
    program = f"import os, sys; os.path.exists({str(flag)!r}) or sys.exit(1); os.execv(sys.argv[1], sys.argv[1:])"
    async with decoding((sys.executable, "-c", program, *WORKER_COMMAND), must_start=False) as decoder:
        assert isinstance(await outcome(decoder.decode(picture(), Deadline(60))), InferenceError)
        flag.touch()
        await until(lambda: len(decoder._idle) == 2)
        assert await is_right(decoder, 1)


@on_event_loop
async def test_closing_leaves_no_process_and_answers_everybody() -> None:
    decoder = DecoderPool(contract("pad"), HUGE, command=MISBEHAVING)
    await until(lambda: len(decoder._idle) == 2)
    work = [asyncio.create_task(outcome(decoder.decode(b"HANG", Deadline(60)))) for _ in range(4)]
    await until(lambda: len(decoder._at_work) == 2)
    pids = decoder.pids
    assert len(pids) == 2
    await decoder.close()
    assert not any(is_there(pid) for pid in pids)
    for error in await asyncio.wait_for(asyncio.gather(*work), 60):
        assert str(error) == "the server is stopping: try another one"
    assert isinstance(await outcome(decoder.decode(picture(), Deadline(60))), InferenceError)
    await decoder.close()


@on_event_loop
async def test_closing_while_workers_start_leaves_no_process() -> None:
    moments: list[Callable[[DecoderPool], object]] = [
        lambda decoder: True,
        lambda decoder: decoder.pids,
        lambda decoder: decoder._idle,
        lambda decoder: len(decoder.pids) == 2,
    ]
    for moment in moments:
        decoder = DecoderPool(contract("pad"), HUGE)
        await until(lambda: bool(moment(decoder)))  # noqa: B023
        pids = decoder.pids
        await decoder.close()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not any(is_there(pid) for pid in pids)
        assert not decoder.pids


@on_event_loop
async def test_worker_that_is_about_to_end_gets_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is gone, but it lives until it is killed."""
    monkeypatch.setattr(worker_process, "_END_SECONDS", 3600.0)
    async with decoding() as decoder:
        dying = decoder._idle[-1]
        os.kill(dying.pid, signal.SIGSTOP)
        assert dying._transport is not None
        dying._transport.abort()
        await until(lambda: len(decoder._idle) == 1)
        for seed in range(3):
            assert await is_right(decoder, seed)
        assert decoder.num_replaced == 0
        dying.kill()
        await until(lambda: len(decoder._idle) == 2)
        assert decoder.num_replaced == 1
        assert all([await is_right(decoder, seed) for seed in range(3)])


@on_event_loop
async def test_defect_in_starting_a_worker_does_not_cost_it_for_good(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    defects = [KeyError("a defect")]
    connect = WorkerProcess.connect

    async def connect_at_the_second_attempt(self: WorkerProcess, timeout_seconds: float) -> None:
        if defects:
            raise defects.pop()
        await connect(self, timeout_seconds)

    monkeypatch.setattr(WorkerProcess, "connect", connect_at_the_second_attempt)
    async with decoding() as decoder:  # both are ready
        assert await is_right(decoder, 1)
    assert "cannot be started (attempt 1): 'a defect'" in caplog.text


@on_event_loop
async def test_nothing_waits_for_a_process_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: Any) -> int:
        raise AssertionError("this blocks the event loop")

    async with decoding() as decoder:
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        assert isinstance(await outcome(decoder.decode(b"CRSH", Deadline(60))), ImageError)
        assert isinstance(await outcome(decoder.decode(b"LIES", Deadline(60))), ImageError)
        await until(lambda: len(decoder._idle) == 2)


@on_event_loop
async def test_error_frees_its_picture_without_the_garbage_collector(without_collector: None) -> None:
    async with decoding(WORKER_COMMAND) as decoder:
        try:
            await decoder.decode(b"no picture", Deadline(60))
        except ImageError as error:
            kept = weakref.ref(error)  # its frames hold the bytes
        await asyncio.sleep(0)  # the loop forgets the future that woke this task
        assert kept() is None


@on_event_loop
async def test_for_a_catalogue_workers_also_make_the_small_copy_and_the_size() -> None:
    """Hostile files must not reach a decoder in the process that indexes them, not even for their thumbnails."""
    data = picture(400, 200)
    async with decoding(is_for_catalogue=True) as decoder:
        pixels, small = await decoder.decode_for_catalogue(data, Deadline(60))
        with pytest.raises(ImageError):
            await decoder.decode_for_catalogue(b"CRSH" + data, Deadline(60))
        with pytest.raises(ImageError):  # pixels alone, and fewer than there must be
            await decoder.decode_for_catalogue(b"LIES" + data, Deadline(60))
    assert np.array_equal(pixels, expected(data))
    assert (small.width, small.height) == (400, 200)
    with Image.open(io.BytesIO(small.thumbnail)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (160, 80))
