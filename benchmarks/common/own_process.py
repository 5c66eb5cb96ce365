# SPDX-License-Identifier: Apache-2.0
"""An object in a process of its own, whose methods are called through a pipe.

In one process the thread pools of PyTorch and ONNX Runtime would compete, their memory could not be told apart, and a
crash of one system would end the others.
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

_CLOSE_SECONDS = 40.0  # a gateway finishes its requests and then waits for its Triton


class OwnProcessError(Exception):
    """The object could not be made, a call failed, or the process died; the message is one line."""


class OwnProcess:
    """The object that `make(*arguments)` returns in a new process; its methods are called by name.

    Usage:
        with OwnProcess(make_system, spec) as process:
            answer = process.ask("caption", 3)

    If the object has a method `close`, it is called at the end. `make`, arguments and answers must be picklable.

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
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, method: str, *arguments: Any, timeout_seconds: float = 600.0) -> Any:
        """Call a method of the object and wait for its answer.

        Returns:
            What the method returned.

        Raises:
            OwnProcessError: the method failed or took too long, or the process died.
        """
        try:
            self._pipe.send((method, arguments))
        except OSError:
            raise OwnProcessError(self._death()) from None
        return self._answer(timeout_seconds)

    def close(self) -> None:
        """Ask the process to end, and kill it if it does not; may be called again."""
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
                self._process.kill()  # a late answer would be taken for that of the next call
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
    """Call a function in a new process, which leaves neither memory nor threads behind.

    Returns:
        What the function returned.

    Raises:
        OwnProcessError: the function failed or took too long, or the process died.
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
    """Return the type and message of an error in one line of at most `most` characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else text[: most - 1] + "…"
