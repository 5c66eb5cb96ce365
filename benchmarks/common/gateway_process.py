# SPDX-License-Identifier: Apache-2.0
"""A gateway and its embedded Triton, started for a benchmark and stopped like a clock between its turns."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.common.process_usage import process_tree

CALL_SECONDS = 120  # a call may take so long; generous, since nothing here is to fail for slowness
# Settings under which no request fails for slowness or because there are many.
PATIENT = {"CAPTRIEVE_MAX_DEADLINE_SECONDS": str(CALL_SECONDS), "CAPTRIEVE_MAX_IN_FLIGHT": "1024"}
_START_SECONDS = 180.0
_SETTLE_SECONDS = 0.5  # a server that was stopped first does the health check it has missed


class GatewayProcess:
    """`python -m search_gateway` with a model repository, on a free port of loopback. Asleep outside `awake`.

    Args:
        settings: `CAPTRIEVE_` variables beside address and models; empty: the gateway's own defaults.

    Raises:
        RuntimeError: it does not start; the message has the last line of its log.
    """

    def __init__(self, model_repository: Path, settings: Mapping[str, str] = PATIENT):
        # What the user has set for another gateway is not for this one.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CAPTRIEVE_")}
        environ |= {
            "CAPTRIEVE_LISTEN_ADDRESS": "127.0.0.1:0",
            "CAPTRIEVE_MODEL_REPOSITORY": str(model_repository),
            **settings,
        }
        self._log = tempfile.NamedTemporaryFile(prefix="benchmark-gateway-", suffix=".log")  # noqa: SIM115  # see close
        self._process = subprocess.Popen(
            [sys.executable, "-m", "search_gateway"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=_end_with_parent,
        )
        try:
            self.address = self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        self.is_awake = False
        self._signal(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        """Of the gateway; Triton is among its descendants."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written so far."""
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """It runs only meanwhile: its health check, which captions a photo every 3 s, would disturb other systems."""
        self._signal(signal.SIGCONT)
        self.is_awake = True
        try:
            time.sleep(_SETTLE_SECONDS)
            yield
        finally:
            self.is_awake = False
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self._process.terminate()  # its Triton goes with it
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        tree = process_tree(self.pid)
        # Nobody may find another asleep while awake: parents, which watch their children, sleep first and wake last.
        for pid in tree if number == signal.SIGSTOP else reversed(tree):
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile
                os.kill(pid, number)

    def _wait_until_ready(self) -> str:
        """HOST:PORT once it serves."""
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            text = self.log
            if ready := re.search(r"ready on (\S+:\d+)", text):
                return ready[1]
            if self._process.poll() is not None:
                raise RuntimeError(f"the gateway did not start: {''.join(text.strip().splitlines()[-1:])}")
            time.sleep(0.1)
        raise RuntimeError(f"the gateway did not start within {_START_SECONDS:.0f} s")


def _end_with_parent() -> None:
    """Linux sends SIGTERM when the parent dies, kill -9 included."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
