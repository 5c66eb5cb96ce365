# SPDX-License-Identifier: Apache-2.0
"""A gateway with its embedded Triton as a process of its own, callers that know the right answers, and its health."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from search_api import search_pb2, search_pb2_grpc
from search_gateway.healthcheck import SERVICE
from tests.conftest import MODELS, ROOT, jpeg

MODEL_NAMES = ("vit_encoder", "gpt2_prefill", "gpt2_step")
CALL_SECONDS = 30.0
PATIENCE_SECONDS = 150.0  # for what comes by itself
PAUSE_SECONDS = 0.1  # of a caller after an error, and between looks at what has no event
OK, UNAVAILABLE, DEADLINE_EXCEEDED = (
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
_PHOTOS = (
    ("Handbag", "Red"),
    ("Jeans", "Blue"),
    ("T-shirt", "Green"),
    ("Watch", "Black"),
    ("Skirt", "Yellow"),
    ("Dress", "Red"),
    ("Cap", "Blue"),
    ("Shirt", "White"),
)


def wait_until(is_so: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Return when it is so.

    Raises:
        AssertionError: it is not, after all this time.
    """
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(PAUSE_SECONDS)


def open_channel(address: str) -> grpc.Channel:
    """A channel with a connection of its own, which comes back soon when it is lost."""
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    return grpc.insecure_channel(address, options=options)


class AttackedGateway:
    """`python -m search_gateway` with a temporary folder of its own.

    Args:
        settings: `CAPTRIEVE_` variables without this prefix, in small letters.
        first: shell commands that run before it, in its process: limits and mounts.
        has_own_mounts: it has a mount namespace of its own, which only root can make.
    """

    def __init__(self, *, first: str = "", has_own_mounts: bool = False, **settings: object):
        # Triton takes plain short paths only, else it uses /tmp itself.
        self._temporary = tempfile.TemporaryDirectory(prefix="faults-", dir="/tmp", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self._log = self.folder / "log"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPTRIEVE_")}
        self._environment |= {
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(ROOT),
            "CAPTRIEVE_LISTEN_ADDRESS": "127.0.0.1:0",
            "CAPTRIEVE_MODEL_REPOSITORY": str(MODELS),
            "CAPTRIEVE_ADMIN_ADDRESS": "127.0.0.1:0",
            "CAPTRIEVE_PROVIDERS": "catalog",
            "CAPTRIEVE_DRAIN_SECONDS": "1",
            **{f"CAPTRIEVE_{name.upper()}": str(value) for name, value in settings.items()},
        }
        first = first.format(tmp=shlex.quote(str(self.temporary)))
        program = f"{first}\nexec {shlex.quote(sys.executable)} -m search_gateway"
        own_mounts = ("unshare", "--mount", "--propagation", "private") if has_own_mounts else ()
        self._command = [*own_mounts, "sh", "-ec", program]
        self.address = ""
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start it, for the second time on the same port.

        Raises:
            RuntimeError: it did not start; the message has its log.
        """
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                self._command, env=self._environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.process = psutil.Process(self._popen.pid)
        wait_until(lambda: "ready on" in self.log or self._popen.poll() is not None)
        ready = re.search(r"ready on (\S+:\d+)", self.log)
        if ready is None:
            raise RuntimeError(self.log)
        self.address = self._environment["CAPTRIEVE_LISTEN_ADDRESS"] = ready[1]

    @property
    def log(self) -> str:
        """What it has logged since its start."""
        return self._log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._popen.poll() is None

    @property
    def memory(self) -> int:
        """Resident bytes of its own process."""
        return int(self.process.memory_info().rss)

    @property
    def num_files(self) -> int:
        """Number of open files of its own process."""
        return int(self.process.num_fds())

    def inside(self, path: str | Path) -> Path:
        """A path as the gateway sees it."""
        return Path(f"/proc/{self._popen.pid}/root") / str(path).lstrip("/")

    def processes(self) -> list[psutil.Process]:
        """All its living processes, itself first."""
        return [self.process, *(one for one in self.process.children(recursive=True) if _command_line(one))]

    def processes_of(self, part: str) -> list[psutil.Process]:
        """Those whose command line has this text: "worker_main", "supervisor.py", "tritonserver" or a model's name."""
        found = []
        for one in self.processes()[1:]:
            line = _command_line(one)
            if part == "tritonserver":
                line = line[:1]
            elif part in MODEL_NAMES:
                line = line if "triton_python_backend_stub" in "".join(line[:1]) else []
            if any(part in argument for argument in line):
                found.append(one)
        return found

    def process_of(self, part: str) -> psutil.Process:
        """The only one of these processes, when there is one."""
        wait_until(lambda: len(self.processes_of(part)) == 1)
        [process] = self.processes_of(part)
        return process

    def regions(self) -> list[Path]:
        """Its regions in /dev/shm."""
        return sorted(self.inside("/dev/shm").glob(f"captrieve_{self._popen.pid}_*"))

    def kill(self) -> None:
        """kill -9."""
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        """Stop it and remove its files."""
        for one in (self.process, *self.process.children(recursive=True)) if self.is_running else ():
            with contextlib.suppress(psutil.Error):
                one.send_signal(signal.SIGCONT)
        self._popen.terminate()
        try:
            self._popen.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self._temporary.cleanup()


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@dataclass(frozen=True)
class Question:
    """A call with its right answer."""

    name: str
    call: Callable[[search_pb2_grpc.SearchServiceStub], tuple[str, ...]]
    answer: tuple[str, ...]


Ask = Callable[[search_pb2_grpc.SearchServiceStub], tuple[str, ...]]


def _caption(photo: bytes, beams: int) -> Ask:
    request = search_pb2.CaptionRequest(photo=photo, decoding=search_pb2.DecodingOptions(num_beams=beams))

    def ask(stub: Any) -> tuple[str, ...]:
        answer = stub.Caption(request, timeout=CALL_SECONDS)
        return (answer.caption.text, answer.query)

    return ask


def _search(photo: bytes) -> Ask:
    request = search_pb2.SearchRequest(photo=photo)

    def ask(stub: Any) -> tuple[str, ...]:
        answer = stub.Search(request, timeout=CALL_SECONDS)
        return (answer.caption.text, answer.query)

    return ask


def make_questions(address: str, *, with_search: bool = True, beams: Sequence[int] = (1, 3)) -> list[Question]:
    """Questions whose answers differ by photo, asked one at a time of a gateway that is well."""
    photos = [(f"{colour} {garment}", jpeg(garment, colour, seed=5)) for garment, colour in _PHOTOS]
    calls = [(f"{name}, {count} beams", _caption(photo, count)) for name, photo in photos for count in beams]
    if with_search:
        calls += [(f"{name}, search", _search(photo)) for name, photo in photos]
    with open_channel(address) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
        questions = [Question(name, call, call(stub)) for name, call in calls]
    assert len({question.answer for question in questions}) >= len(photos) - 1
    return questions


class Callers:
    """Callers in threads that ask without a pause, and compare each answer with the right one.

    Usage:
        with Callers(address, questions) as callers:
            attack()
            callers.wait_for_answers(10)
        callers.check()
    """

    def __init__(self, address: str, questions: Sequence[Question], count: int = 6):
        self._address, self._questions = address, questions
        self._numbers = itertools.count()
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(count)]
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.errors: set[tuple[grpc.StatusCode, str]] = set()
        self.wrong: list[str] = []
        self.answered: list[tuple[float, float]] = []  # time.monotonic() of question and right answer
        self.failed: list[float] = []  # the same of errors
        self.broken: list[BaseException] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for_answers(len(self._threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * CALL_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a call did not end"

    def wait_for_answers(self, count: int) -> None:
        """Return when so many more questions, asked from now on, have the right answer."""
        begin = time.monotonic()
        wait_until(lambda: self.wrong or self.broken or self._num_answered_since(begin) >= count)

    def first_answer_since(self, moment: float) -> float:
        """Return after how many seconds a question that was asked after this moment was answered."""
        return min(end for begin, end in self.answered if begin >= moment) - moment

    def check(self, *allowed: grpc.StatusCode) -> None:
        """Every call ended with its own photo's words or with one of these codes and a sentence for callers."""
        assert not self.broken, self.broken
        assert not self.wrong, self.wrong
        assert set(self.codes) <= {OK, *allowed}, self.errors
        for _, text in self.errors:
            assert text, "an error without a word"
            assert not _INTERNAL_TEXT.search(text), text

    def _num_answered_since(self, moment: float) -> int:
        return sum(begin >= moment for begin, _ in tuple(self.answered))

    def _ask_on(self) -> None:
        try:
            with open_channel(self._address) as channel:
                stub = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
                while not self._is_over.is_set():
                    self._ask(stub, self._questions[next(self._numbers) % len(self._questions)])
        except BaseException as error:
            self.broken.append(error)

    def _ask(self, stub: search_pb2_grpc.SearchServiceStub, question: Question) -> None:
        begin = time.monotonic()
        try:
            answer = question.call(stub)
        except grpc.RpcError as error:
            code, text = error.code(), error.details()
            with self._lock:
                self.codes[code] += 1
                self.failed.append(time.monotonic())
                self.errors.add((code, text or ""))
            self._is_over.wait(PAUSE_SECONDS)
            return
        with self._lock:
            self.codes[OK] += 1
            if answer == question.answer:
                self.answered.append((begin, time.monotonic()))
            else:
                self.wrong.append(f"{question.name}: {answer} instead of {question.answer}")


# What must never reach a caller. The client's own words for a lost connection have an address.
_INTERNAL_TEXT = re.compile(r"Traceback|Exception|0x[0-9a-f]{4}|/(?:work|home|tmp|usr|dev|proc)/|tritonserver|\.py\b")


class HealthDiary:
    """What `Health.Watch` says of the gateway, with times. Use it in a `with` block."""

    def __init__(self, address: str):
        self._address = address
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.entries: list[tuple[float, bool]] = []  # time.monotonic(), whether it serves

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.entries)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._channel.close()
        self._thread.join(10)

    def wait_for(self, serves: bool, since: float) -> float:
        """Return after how many seconds it said so."""
        wait_until(lambda: any(moment >= since and one is serves for moment, one in tuple(self.entries)))
        return next(moment for moment, one in self.entries if moment >= since and one is serves) - since

    @property
    def serves(self) -> bool:
        """What it said last."""
        return self.entries[-1][1]

    def _watch(self) -> None:
        while not self._is_over.is_set():
            self._channel = open_channel(self._address)
            with contextlib.suppress(grpc.RpcError, ValueError):  # lost, or closed meanwhile
                stub = health_pb2_grpc.HealthStub(self._channel)
                for answer in stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE)):
                    serves = answer.status == health_pb2.HealthCheckResponse.SERVING
                    self.entries.append((time.monotonic(), serves))
            self._channel.close()
            if not self._is_over.wait(PAUSE_SECONDS):
                self.entries.append((time.monotonic(), False))


@contextlib.contextmanager
def stopped(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT to those that live at the end."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in reversed(processes):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)


def fill(folder: Path) -> Path:
    """Write a file that takes all of the file system's room."""
    path = folder / "filling"
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path
