# SPDX-License-Identifier: Apache-2.0
"""One worker process as the event loop has it: what it is given, how it ends, and what a liar gets."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.robustness.image_files import encoded, noise
from search_gateway.imaging.worker_main import Kind
from search_gateway.imaging.worker_process import WORKER_COMMAND, Answer, WorkerProcess, WorkerStartError, described
from tests.conftest import ROOT
from tests.fakes.event_loop import on_event_loop
from tests.search_gateway.imaging.test_worker_main import MISBEHAVING

ARGUMENTS = ["20", "16", "pad", "0", str(8 * 2**20), "25000000", "16384"]


class Watched:
    """A worker and what was heard from it."""

    def __init__(self, command: Sequence[str] = WORKER_COMMAND):
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()
        self.losses: asyncio.Queue[bool] = asyncio.Queue()  # whether each came before the end
        self.ends: asyncio.Queue[int] = asyncio.Queue()
        self.process = WorkerProcess(
            command,
            ARGUMENTS,
            lambda _, answer: self.answers.put_nowait(answer),
            lambda _: self.losses.put_nowait(self.ends.empty()),
            lambda _, end: self.ends.put_nowait(end),
        )

    async def answer(self, data: bytes, *, may_take_long: bool = True) -> Answer:
        self.process.ask(data, may_take_long=may_take_long)
        return await asyncio.wait_for(self.answers.get(), 60)

    async def end(self) -> int:
        return await asyncio.wait_for(self.ends.get(), 60)


def contents(file: Path) -> bytes:
    return file.read_bytes()


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_until_gone(pid: int, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    # The process that adopts orphans may be slow to reap them; a zombie (state Z) has ended.
    while is_there(pid) and contents(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()[0] != b"Z":
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.01)


@on_event_loop
async def test_file_of_many_megabytes_and_its_answer() -> None:
    watched = Watched()
    await watched.process.connect(60)
    photo = encoded(noise(80, 60), "JPEG")
    for data in (photo, photo + bytes(8 * 2**20 - len(photo)), photo):
        answer = await watched.answer(data)
        assert answer.kind is Kind.PIXELS
        assert len(answer.body) == 20 * 16 * 3
    await watched.process.close()
    assert not is_there(watched.process.pid)
    await asyncio.sleep(0)
    assert watched.ends.empty()


@on_event_loop
async def test_it_has_its_own_session_and_none_of_our_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTRIEVE_DUCKDUCKGO_PROXY", "http://user:secret@proxy")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    watched = Watched()
    await watched.process.connect(60)
    try:
        process = Path(f"/proc/{watched.process.pid}")
        assert b"secret" not in contents(process / "environ")
        assert os.getsid(watched.process.pid) == watched.process.pid
        open_files = [os.readlink(process / "fd" / name) for name in os.listdir(process / "fd")]
        assert len(open_files) == 3
        assert sum(name == "/dev/null" for name in open_files) == 2
    finally:
        await watched.process.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
@on_event_loop
async def test_its_end_is_told_once(number: signal.Signals) -> None:
    watched = Watched()
    await watched.process.connect(60)
    os.kill(watched.process.pid, number)
    assert await watched.end() == -number
    assert watched.losses.qsize() == 1
    assert watched.losses.get_nowait()
    assert not is_there(watched.process.pid)
    watched.process.kill()
    await watched.process.close()
    await asyncio.sleep(0)
    assert watched.ends.empty()


@pytest.mark.parametrize(
    ("command", "seconds", "reason"),
    [
        (("/bin/true",), 60, "ended before it was ready, status 0"),
        (("/bin/sh", "-c", "exit 3"), 60, "status 3"),
        (("/bin/sh", "-c", "kill -9 $$"), 60, "SIGKILL"),
        (("/bin/sh", "-c", "exec sleep 3600"), 1, "not ready after 1 s"),
    ],
)
@on_event_loop
async def test_worker_that_does_not_become_ready(command: tuple[str, ...], seconds: float, reason: str) -> None:
    watched = Watched(command)
    with pytest.raises(WorkerStartError, match=reason):
        await watched.process.connect(seconds)
    await watched.process.close()
    assert not is_there(watched.process.pid)
    assert watched.ends.empty()


@on_event_loop
async def test_program_that_does_not_exist() -> None:
    with pytest.raises(WorkerStartError, match="cannot be executed"):
        Watched(("/does/not/exist",))


@pytest.mark.parametrize(
    "words", ["bytes([9, 0, 0, 0, 0])", "bytes([1, 0, 0, 0, 255])", "bytes([1, 0, 0, 0, 0]) * 2", "bytes(5)"]
)
@on_event_loop
async def test_worker_that_lies_is_killed(words: str) -> None:
    program = f"import os, time; os.write(0, bytes(5)); os.read(0, 100); os.write(0, {words}); time.sleep(3600)"
    watched = Watched((sys.executable, "-c", program))
    await watched.process.connect(60)
    watched.process.ask(b"photo", may_take_long=True)
    assert await watched.end() == -signal.SIGKILL
    assert watched.answers.empty()
    await watched.process.close()


@on_event_loop
async def test_worker_that_speaks_unasked_is_killed(tmp_path: Path) -> None:
    os.mkfifo(now := tmp_path / "now")
    program = (
        f"import os, time; os.write(0, bytes(5)); open({str(now)!r}).read(); "
        "os.write(0, bytes([1, 0, 0, 0, 0])); time.sleep(3600)"
    )
    watched = Watched((sys.executable, "-c", program))
    await watched.process.connect(60)
    await asyncio.to_thread(now.write_text, "")
    assert await watched.end() == -signal.SIGKILL
    await watched.process.close()


@on_event_loop
async def test_worker_that_ends_its_connection_and_lives_on_is_killed_and_the_loop_goes_on_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wait(*_: object) -> int:
        raise AssertionError("this blocks the event loop")

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    program = "import os, time; os.write(0, bytes(5)); os.read(0, 1); os.close(0); time.sleep(3600)"
    watched = Watched((sys.executable, "-c", program))
    await watched.process.connect(60)
    watched.process.ask(b"photo", may_take_long=True)
    assert await watched.losses.get()
    assert watched.ends.empty()
    assert await watched.end() == -signal.SIGKILL
    await watched.process.close()


@pytest.mark.parametrize("work", ["", "HANG"])
def test_it_dies_with_a_parent_that_is_killed(work: str) -> None:
    """Idle or in the middle of a picture that never ends."""
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(ROOT)!r})
from search_gateway.imaging.worker_process import WorkerProcess
async def live():
    process = WorkerProcess({MISBEHAVING!r}, {ARGUMENTS!r}, print, print, print)
    await process.connect(60)
    if {work!r}:
        process.ask({work.encode()!r}, may_take_long=True)
    print(process.pid, flush=True)
    await asyncio.sleep(3600)
asyncio.run(live())
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout as lines:
        pid = int(lines.readline())
    assert is_there(pid)
    parent.kill()
    parent.wait()
    wait_until_gone(pid)


@pytest.mark.parametrize(("code", "words"), [(0, "status 0"), (1, "status 1"), (-9, "SIGKILL"), (-99, "signal 99")])
def test_exit_status_in_words(code: int, words: str) -> None:
    assert described(code) == words
