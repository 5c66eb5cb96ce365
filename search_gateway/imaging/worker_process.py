# SPDX-License-Identifier: Apache-2.0
"""One process of `worker_main.py`: starts it, sends it one request at a time, kills it.

A request is a write and a read on a socket, without threads or pickling.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.preprocessing import Region
from search_gateway.imaging.worker_main import ANSWER, REQUEST, Kind

# In isolated mode (-I: no PYTHON* variables, no working directory) the package is found by its folder.
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from search_gateway.imaging.worker_main import main; main()"
)
WORKER_COMMAND = (sys.executable, "-I", "-c", _PROGRAM, str(Path(__file__).parents[2]))

# A decoder does not get the gateway's settings and secrets.
_VARIABLES = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "PATH")
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # The memory of a large photo is returned to the system, so that it does not count against the next photo's limit.
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
}

_BUFFER_BYTES = 2**20  # of the socket: most photos and all pixels pass in one piece
_MAX_ANSWER_BYTES = 64 * 2**20
_END_SECONDS = 0.1
_LOOK_SECONDS = 0.005  # between looks at a process that is about to end


class WorkerStartError(Exception):
    """The worker did not become ready. The message is for the log, not for a caller."""


@dataclass(frozen=True)
class Answer:
    """What a worker answered."""

    kind: Kind
    body: bytearray  # pixels, or an ImageError as JSON


class WorkerProcess(asyncio.Protocol):
    """A started worker. Call `connect` next. It may be killed at any time.

    The process ends with the thread that creates this object (the event loop's), or at the latest with this process.

    Args:
        command: a program that follows the protocol of `worker_main.py`.
        arguments: appended to the command.
        answered: called with each answer, on the event loop.
        lost: called when the process can answer no more, shortly before `ended`.
        ended: called once when the process has ended, with its exit status (negative: the signal), but not before
            `connect` has returned.

    Raises:
        WorkerStartError: it cannot be executed.
    """

    def __init__(
        self,
        command: Sequence[str],
        arguments: Sequence[str],
        answered: Callable[[WorkerProcess, Answer], None],
        lost: Callable[[WorkerProcess], None],
        ended: Callable[[WorkerProcess, int], None],
    ):
        self._answered = answered
        self._lost = lost
        self._ended = ended
        self._received = bytearray()
        self._is_expected = True  # an answer; a worker that sends anything else is under foreign control
        self._ready: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        try:
            self._socket, theirs = socket.socketpair()
        except OSError as error:  # too many open files
            raise WorkerStartError(f"it cannot be connected: {error}") from error
        with theirs:
            for end in (self._socket, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            try:
                self._process = subprocess.Popen(
                    [*command, str(os.getpid()), *arguments],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=_environment(),
                    start_new_session=True,  # so that the terminal's Ctrl-C does not reach it
                )
            except OSError as error:
                self._socket.close()
                raise WorkerStartError(f"it cannot be executed: {error}") from error

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def connect(self, timeout_seconds: float) -> None:
        """Wait until the worker is ready.

        Raises:
            WorkerStartError: it ended, or was not ready in time and was killed.
        """
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        try:
            async with asyncio.timeout(timeout_seconds):
                await loop.create_unix_connection(lambda: self, sock=self._socket)
                await self._ready
        except TimeoutError as error:
            self.kill()
            raise WorkerStartError(f"it was not ready after {timeout_seconds:g} s") from error
        except OSError as error:
            self.kill()
            raise WorkerStartError(f"it cannot be connected: {error}") from error
        finally:
            self._ready.cancel()  # no effect where it has a result

    def ask(self, data: bytes, *, may_take_long: bool, region: Region | None = None) -> None:
        """Send a file to decode. Call this only after the answer to the last file.

        Args:
            data: the file.
            may_take_long: whether the long limit of processor time applies.
            region: the part of the picture that is used; None: all of it.
        """
        assert self._transport is not None
        assert not self._is_expected
        self._is_expected = True
        place = (0.0,) * 4 if region is None else dataclasses.astuple(region)
        self._transport.write(REQUEST.pack(len(data), may_take_long, *place))
        self._transport.write(data)

    def kill(self) -> None:
        """End the process immediately; `ended` is called as usual."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def abandon(self) -> None:
        """Kill the process. The callbacks are not called any more."""
        self._answered = self._lost = self._ended = _ignore
        self.kill()
        if self._transport is None:
            self._socket.close()
        else:
            self._transport.abort()

    async def close(self) -> None:
        """Kill the process and wait for its end. The callbacks are not called any more."""
        self.abandon()
        while self._process.poll() is None:  # noqa: ASYNC110  # nothing tells when a process ends
            await asyncio.sleep(_LOOK_SECONDS)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # The buffer holds whole requests, so there is no writer to pause.
        transport.set_write_buffer_limits(high=2**31)

    def data_received(self, data: bytes) -> None:
        """Collect the bytes of an answer."""
        self._received += data
        if len(self._received) < ANSWER.size:
            return
        kind, num_bytes = ANSWER.unpack_from(self._received)
        expected = ANSWER.size + num_bytes
        if not self._is_expected or num_bytes > _MAX_ANSWER_BYTES or len(self._received) > expected:
            self.kill()  # a hostile file controls it
        elif len(self._received) == expected:
            body, self._received = self._received, bytearray()
            del body[: ANSWER.size]
            self._is_expected = False
            self._take(kind, body)

    def _take(self, kind: int, body: bytearray) -> None:
        assert self._ready is not None
        if not self._ready.done():
            self._ready.set_result(None)
        elif kind in _ANSWERS:
            self._answered(self, Answer(Kind(kind), body))
        else:
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the process."""
        self._lost(self)
        self._report_end(_END_SECONDS)  # short: the kernel closes a process's files last

    def _report_end(self, patience_seconds: float) -> None:
        """Report the end, or look again soon: to wait for it would block the event loop."""
        exit_code = self._process.poll()
        if exit_code is None:
            if patience_seconds <= 0:
                self._process.kill()
            loop = asyncio.get_running_loop()
            loop.call_later(_LOOK_SECONDS, self._report_end, patience_seconds - _LOOK_SECONDS)
            return
        assert self._ready is not None
        if not self._ready.done():
            self._ready.set_exception(WorkerStartError(f"it ended before it was ready, {described(exit_code)}"))
        elif not self._ready.cancelled() and self._ready.exception() is None:
            self._ended(self, exit_code)


_ANSWERS = frozenset(Kind) - {Kind.READY}


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ} | _ENVIRONMENT


def described(exit_code: int) -> str:
    """Return an exit status in words, for the log."""
    if exit_code >= 0:
        return f"status {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def _ignore(*_: object) -> None:
    """Replaces the callbacks after `close`."""
