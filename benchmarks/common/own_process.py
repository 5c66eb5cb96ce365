# SPDX-License-Identifier: Apache-2.0
"""An object that lives in a process of its own: asked through a pipe, asleep between questions.

Thread pools of PyTorch and ONNX Runtime in one process spin against each other, and their memory cannot be told apart;
a crash of one system must not end the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

_CLOSE_SECONDS = 40.0  # a gateway first drains and then waits for its Triton


class OwnProcessError(Exception):
    """The object could not be made, a question failed, or its process died. One line, fit for a table."""


class OwnProcess:
    """`make(*arguments)` in a new process; its methods are called by name.

    Usage:

        with OwnProcess(make_system, spec) as process:
            answer = process.ask("caption", 3)

    A `close` method of the object is called at the end. `make`, arguments and answers must be picklable.

    Raises:
        OwnProcessError: `make` failed or took too long.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, start_seconds: float = 600.0):
        context = multiprocessing.get_context("spawn")  # fork would copy this process's thread pools and memory
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer(start_seconds)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, method: str, *arguments: Any, timeout_seconds: float = 600.0) -> Any:
        """Call a method of the object and wait for its answer.

        Raises:
            OwnProcessError: it raised, died or took too long.
        """
        try:
            self._pipe.send((method, arguments))
        except OSError:
            raise OwnProcessError(self._death()) from None
        return self._answer(timeout_seconds)

    def close(self) -> None:
        """End the process, gently if it lets us. May be repeated."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(_CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, timeout_seconds: float) -> Any:
        try:
            if not self._pipe.poll(timeout_seconds):
                self._process.kill()  # whatever comes later would be taken for the answer to the next question
                raise OwnProcessError(f"no answer within {timeout_seconds:.0f} s")
            is_error, value = self._pipe.recv()
        except (EOFError, OSError):
            raise OwnProcessError(self._death()) from None
        if is_error:
            raise OwnProcessError(value)
        return value

    def _death(self) -> str:
        self._process.join(5)
        return f"the process ended with exit code {self._process.exitcode}"


def in_own_process(function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 3600.0) -> Any:
    """The result of one call in a new process, which leaves neither memory nor threads behind.

    Raises:
        OwnProcessError: it raised, died or took too long.
    """
    with OwnProcess(_Call, function, start_seconds=timeout_seconds) as process:
        return process.ask("__call__", *arguments, timeout_seconds=timeout_seconds)


class _Call:
    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _live(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `close` is reached
    living: Any = None
    try:
        living = make(*arguments)
        pipe.send((False, None))
        while (question := pipe.recv()) is not None:
            method, values = question
            try:
                answer = (False, getattr(living, method)(*values))
            except Exception as error:
                answer = (True, first_line(error))
            pipe.send(answer)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # the parent has ended
    except Exception as error:
        with contextlib.suppress(OSError):
            pipe.send((True, first_line(error)))
    finally:
        if hasattr(living, "close"):
            living.close()


def first_line(error: BaseException, most: int = 160) -> str:
    """Kind and message of an error in one line of at most `most` characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else text[: most - 1] + "…"
