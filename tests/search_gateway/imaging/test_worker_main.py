# SPDX-License-Identifier: Apache-2.0
"""The real worker program, talked to without a gateway: what it answers, and what no picture can make it do."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.robustness.hostile_photos import BOMBS, legal_25_megapixels, odd_photos
from benchmarks.robustness.image_files import encoded, noise, png, webp_header
from captioner.image_error import ImageError, ImageReason
from captioner.preprocessing import ImageLimits, decode_photo
from search_gateway.imaging.decoder_pool import QUICK_BYTES
from search_gateway.imaging.worker_main import ANSWER, CPU_SECONDS, QUICK_CPU_SECONDS, REQUEST, Kind, memory_limit_bytes
from search_gateway.imaging.worker_process import WORKER_COMMAND
from tests.captioner.test_preprocessing import BAD_IMAGES
from tests.conftest import ROOT

HEIGHT, WIDTH = 80, 64
MISBEHAVING = (sys.executable, "-I", str(ROOT / "tests" / "fakes" / "misbehaving_worker.py"))
PROMISED_CPU_SECONDS = 2.0


class Worker:
    def __init__(self, limits: ImageLimits, command: tuple[str, ...] = WORKER_COMMAND):
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(60)
        arguments = [os.getpid(), HEIGHT, WIDTH, "pad", 0, limits.max_bytes, limits.max_pixels, limits.max_side]
        with theirs:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)], stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        self._answers = self._socket.makefile("rb")
        kind, body = self.answer()
        assert (kind, body) == (Kind.READY, b"")
        assert self.process.stderr is not None
        self.errors = self.process.stderr

    def answer(self) -> tuple[Kind, bytes]:
        """Raises EOFError: it has ended."""
        header = self._answers.read(ANSWER.size)
        if len(header) < ANSWER.size:
            raise EOFError
        kind, num_bytes = ANSWER.unpack(header)
        return Kind(kind), self._answers.read(num_bytes)

    def ask(self, data: bytes, may_take_long: bool = True) -> tuple[Kind, bytes]:
        self._socket.sendall(REQUEST.pack(len(data), may_take_long, 0, 0, 0, 0) + data)
        return self.answer()

    def cpu_seconds(self) -> float:
        """Of its whole life, to the nanosecond; a process's clock has the number ~pid << 3 | 2."""
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def hang_up(self) -> None:
        self._answers.close()
        self._socket.close()

    def close(self) -> None:
        self.hang_up()
        self.process.kill()
        self.process.wait()
        self.errors.close()


def cpu_seconds_of_the_dead() -> float:
    """Of all children that have been waited for, so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(ImageLimits())
    yield worker
    worker.close()


@pytest.fixture
def misbehaving() -> Iterator[Worker]:
    worker = Worker(ImageLimits(), MISBEHAVING)
    yield worker
    worker.close()


@pytest.fixture(autouse=True)
def pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the worker has it, so that both say the same of the same file."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", ImageLimits().max_pixels // 2)


def check_like_here(worker: Worker, data: bytes, *, pixels_needed: bool = False) -> float:
    """The worker says of a file what `decode_photo` says in this process. Returns the CPU seconds it took."""
    before = worker.cpu_seconds()
    kind, body = worker.ask(data)
    seconds = worker.cpu_seconds() - before
    assert kind is Kind.PIXELS or not pixels_needed
    assert (kind, body) == said_here(data)
    return seconds


def said_here(data: bytes) -> tuple[Kind, bytes]:
    try:
        return Kind.PIXELS, decode_photo(data, height=HEIGHT, width=WIDTH, fit="pad").tobytes()
    except ImageError as error:
        return Kind.ERROR, error.to_json()


def test_photos_and_errors_are_those_of_decode_photo(worker: Worker) -> None:
    large = png(9000, 9000, 8, 2), webp_header(13_000, 13_000), webp_header(5001, 5000), webp_header(16_384, 1)
    for data in (encoded(noise(80, 60), "JPEG"), b"hello", encoded(noise(30, 20), "PNG"), *large):
        check_like_here(worker, data)


def test_odd_photos_and_files_cut_short(worker: Worker) -> None:
    for name, data in odd_photos():
        assert check_like_here(worker, data) < 1, name


@pytest.mark.parametrize("name", BOMBS)
def test_no_bomb_costs_more_than_promised(worker: Worker, name: str) -> None:
    """Asked as the gateway asks: first whether it is quick, where its bytes do not tell. A death is paid for, too."""
    data = BOMBS[name]()
    idle, before = worker.cpu_seconds(), cpu_seconds_of_the_dead()
    try:
        kind = Kind.TAKES_LONG
        if len(data) <= QUICK_BYTES:
            kind, message = worker.ask(data, may_take_long=False)
            assert worker.cpu_seconds() - idle < QUICK_CPU_SECONDS / 2, "it keeps those waiting who are quick"
        if kind is Kind.TAKES_LONG:
            kind, message = worker.ask(data)
    except EOFError:
        assert worker.process.wait(100) == -signal.SIGPROF
        assert cpu_seconds_of_the_dead() - before < PROMISED_CPU_SECONDS  # with its start, which is the next one's too
    else:
        assert kind in (Kind.PIXELS, Kind.ERROR)
        if kind is Kind.ERROR:
            assert not re.search(r"[/\\]|PIL|Pillow|Error|worker", str(ImageError.from_json(message)))
        assert worker.cpu_seconds() - idle < PROMISED_CPU_SECONDS


@pytest.mark.slow
def test_largest_legal_photos_fit_into_the_limits(worker: Worker) -> None:
    for name, data in legal_25_megapixels():
        assert check_like_here(worker, data, pixels_needed=True) < CPU_SECONDS, name


@pytest.mark.data
def test_no_bad_image_of_the_fuzzers_costs_much(worker: Worker) -> None:
    if not BAD_IMAGES.is_dir():
        pytest.skip(f"THE FUZZERS' 1,036 BAD IMAGES ARE NOT TESTED: {BAD_IMAGES} is missing")
    files = [path for path in sorted(BAD_IMAGES.rglob("*")) if path.is_file()]
    assert len(files) > 1000
    slowest = max(check_like_here(worker, path.read_bytes()) for path in files)
    assert slowest < 1


def test_photo_that_may_take_long_is_left_for_later(worker: Worker) -> None:
    large = BOMBS["png of 25 MP, grey"]()
    before = worker.cpu_seconds()
    assert worker.ask(large, may_take_long=False) == (Kind.TAKES_LONG, b"")
    assert worker.cpu_seconds() - before < 0.1
    assert worker.ask(large)[0] is Kind.PIXELS
    assert worker.ask(encoded(noise(80, 60), "PNG"), may_take_long=False)[0] is Kind.PIXELS


def test_nothing_takes_long_where_the_limits_are_small() -> None:
    worker = Worker(ImageLimits(max_pixels=1000))
    try:
        kind, message = worker.ask(encoded(noise(80, 60), "PNG"), may_take_long=False)
    finally:
        worker.close()
    assert kind is Kind.ERROR
    assert str(ImageError.from_json(message)) == "the photo has 4,800 pixels; the limit is 1,000: send a smaller one"


@pytest.mark.parametrize(("may_take_long", "least", "most"), [(True, 1.2, PROMISED_CPU_SECONDS), (False, 0.3, 1.0)])
def test_processor_time_is_limited_by_the_kernel(
    misbehaving: Worker, may_take_long: bool, least: float, most: float
) -> None:
    idle, before = misbehaving.cpu_seconds(), cpu_seconds_of_the_dead()
    with pytest.raises(EOFError):
        misbehaving.ask(b"BURN", may_take_long)
    assert misbehaving.process.wait(100) == -signal.SIGPROF
    assert least < cpu_seconds_of_the_dead() - before - idle < most


def test_processor_time_is_of_each_photo_and_not_of_all(misbehaving: Worker) -> None:
    photo = encoded(noise(1400, 1400), "PNG", compress_level=1)
    while misbehaving.cpu_seconds() < CPU_SECONDS + 0.5:
        assert misbehaving.ask(photo)[0] is Kind.PIXELS


def test_memory_is_limited_and_the_worker_goes_on(misbehaving: Worker) -> None:
    for _ in range(3):
        kind, message = misbehaving.ask(b"EATS")
        assert kind is Kind.ERROR
        error = ImageError.from_json(message)
        assert error.reason is ImageReason.OUT_OF_MEMORY
        assert str(error) == (
            "the photo (4 bytes) takes too much memory to decode; the limit is 731 MiB: send a smaller one"
        )
        assert misbehaving.ask(encoded(noise(80, 60), "PNG"))[0] is Kind.PIXELS


def test_memory_limit_follows_the_pixels_allowed() -> None:
    assert 2**30 * 0.6 < memory_limit_bytes(ImageLimits()) < 2**30 * 0.8
    assert memory_limit_bytes(ImageLimits(max_pixels=50_000_000)) > 1.8 * memory_limit_bytes(ImageLimits())


def test_it_cannot_write_into_files(misbehaving: Worker, tmp_path: Path) -> None:
    file = tmp_path / "written"
    with pytest.raises(EOFError):
        misbehaving.ask(b"FILE" + str(file).encode())
    assert misbehaving.process.wait(100) == 1
    assert file.stat().st_size == 0


def test_it_leaves_no_core_and_opens_few_files(worker: Worker) -> None:
    limits = Path(f"/proc/{worker.process.pid}/limits").read_text(encoding="ascii")
    of = {line[:25].strip(): line[26:].split()[0] for line in limits.splitlines()[1:]}
    assert of["Max core file size"] == "0"
    assert int(of["Max open files"]) <= 16
    assert of["Max address space"] != "unlimited"


def test_ctrl_c_does_not_end_it(worker: Worker) -> None:
    worker.process.send_signal(signal.SIGINT)
    assert worker.ask(encoded(noise(8, 8), "PNG"))[0] is Kind.PIXELS


def test_it_ends_when_nobody_listens(worker: Worker) -> None:
    worker.hang_up()
    assert worker.process.wait(100) == 0
    assert worker.errors.read() == b""


def test_it_does_not_start_for_an_owner_that_is_gone() -> None:
    arguments = ["1", "8", "8", "pad", "0", "100", "100", "100"]
    done = subprocess.run([*WORKER_COMMAND, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=100)
    assert done.returncode == 1


def test_it_imports_little() -> None:
    """No gRPC, no network library, no other part of the gateway: little to take over and quickly started."""
    program = (
        "import sys, search_gateway.imaging.worker_main\n"
        "print(sorted({name for name in sys.modules if name.startswith(('grpc', 'asyncio', 'search_', 'captioner'))}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(
        [
            "captioner",
            "captioner.image_colours",
            "captioner.image_error",
            "captioner.image_formats",
            "captioner.model_contract",
            "captioner.preprocessing",
            "captioner.small_copy",
            "captioner.trimming",
            "search_gateway",
            "search_gateway.imaging",
            "search_gateway.imaging.worker_main",
        ]
    )
