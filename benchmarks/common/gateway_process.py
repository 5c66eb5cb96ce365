# SPDX-License-Identifier: Apache-2.0
"""A gateway with its embedded Triton, started for a benchmark and paused between the turns that measure it."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.common.process_usage import signal_tree
from search_gateway.healthcheck import is_serving

CALL_SECONDS = 120  # time limit of a call: far more than any call takes
# Settings under which no request fails because it is slow or because there are many.
PATIENT = {"CAPTRIEVE_MAX_DEADLINE_SECONDS": str(CALL_SECONDS), "CAPTRIEVE_MAX_IN_FLIGHT": "1024"}
_START_SECONDS = 180.0
_ADMIN_PORT = r"admin port on ([\w.]+:\d+)"
_SETTLE_SECONDS = 0.5  # a gateway that was paused first does the health check that was due meanwhile


def gateway_environ(model_repository: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these `CAPTRIEVE_` variables and no others."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CAPTRIEVE_")}
    return environ | {"CAPTRIEVE_MODEL_REPOSITORY": str(model_repository), **settings}


class GatewayProcess:
    """`python -m search_gateway` on a free port of loopback; paused except within `awake`.

    Args:
        model_repository: the models to serve.
        settings: further `CAPTRIEVE_` variables; without any the gateway has its own defaults.

    Raises:
        RuntimeError: the gateway does not start; the message has the last line of its log.
    """

    def __init__(self, model_repository: Path, settings: Mapping[str, str] = PATIENT):
        free_ports = {"CAPTRIEVE_LISTEN_ADDRESS": "127.0.0.1:0", "CAPTRIEVE_ADMIN_ADDRESS": "127.0.0.1:0"}
        environ = gateway_environ(model_repository, free_ports | dict(settings))
        self._log = tempfile.NamedTemporaryFile(prefix="benchmark-gateway-", suffix=".log")  # noqa: SIM115  # see close
        self._process = subprocess.Popen(
            # setpriv lets Linux send SIGTERM to the gateway when this process dies, even by SIGKILL. The same in a
            # preexec_fn would fork, which may crash while this process has calls of gRPC in flight.
            ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "search_gateway"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            self.address = self._wait_until_ready(environ["CAPTRIEVE_LISTEN_ADDRESS"])
        except BaseException:
            self.close()
            raise
        self.is_awake = False
        signal_tree(self.pid, signal.SIGSTOP)

    @property
    def pid(self) -> int:
        """The gateway's process id; Triton's processes are its descendants."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What the gateway has logged so far."""
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")

    def handled(self, method: str) -> Counter[str]:
        """Return the calls of a method that the gateway has counted, by code; it must be awake."""
        return _handled(self._admin, method) if self._admin else Counter()

    def ask_admin(self, path: str, method: str = "GET") -> str:
        """Return what the admin port answers; the gateway must be awake."""
        request = urllib.request.Request(f"http://{self._admin}{path}", method=method)
        with urllib.request.urlopen(request, timeout=CALL_SECONDS) as answer:
            return str(answer.read().decode())

    @functools.cached_property
    def _admin(self) -> str:
        """HOST:PORT of the admin port, empty without one; read once, since the log becomes long."""
        found = re.search(_ADMIN_PORT, self.log)
        return found[1] if found else ""

    def wait(self, seconds: float) -> int:
        """Wait until the process has ended; returns its exit code."""
        return self._process.wait(seconds)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let the gateway run within the block; its health check, a caption every 3 s, would disturb other systems."""
        signal_tree(self.pid, signal.SIGCONT)
        self.is_awake = True
        try:
            time.sleep(_SETTLE_SECONDS)
            yield
        finally:
            self.is_awake = False
            signal_tree(self.pid, signal.SIGSTOP)

    def close(self) -> None:
        """Stop the gateway and its Triton."""
        signal_tree(self.pid, signal.SIGCONT)
        self._process.terminate()  # its Triton goes with it
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait_until_ready(self, address: str) -> str:
        """Return HOST:PORT once the gateway serves."""
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            text = self.log
            if ready := re.search(r"ready on (\S+:\d+)", text):
                return ready[1]
            if not address.endswith(":0") and is_serving(address):  # a gateway whose log has warnings only
                return address
            if self._process.poll() is not None:
                raise RuntimeError(f"the gateway did not start: {''.join(text.strip().splitlines()[-1:])}")
            time.sleep(0.1)
        raise RuntimeError(f"the gateway did not start within {_START_SECONDS:.0f} s")


class RunningGateway:
    """A gateway that others start and stop, for example in a container; it is not paused and has no process here.

    Args:
        address: HOST:PORT of the gateway. Its admin port is CAPTRIEVE_ADMIN_ADDRESS of this process's environment.
    """

    pid: int | None = None
    log = ""
    is_awake = True

    def __init__(self, address: str):
        self.address = address
        self._admin = os.environ.get("CAPTRIEVE_ADMIN_ADDRESS", "")
        self._before = self._handled_ever("Caption")

    def handled(self, method: str) -> Counter[str]:
        """Return the calls of a method that the gateway has counted since this was made, by code."""
        return self._handled_ever(method) - self._before

    def _handled_ever(self, method: str) -> Counter[str]:
        return _handled(self._admin, method) if self._admin else Counter()

    def awake(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: it is awake."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Leave it as it is."""


def _handled(admin: str, method: str) -> Counter[str]:
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=CALL_SECONDS) as answer:
        text = answer.read().decode()
    found = re.findall(rf'grpc_server_handled_total{{grpc_code="(\w+)",grpc_method="{method}",.*}} (\S+)', text)
    return Counter({code: int(float(count)) for code, count in found if float(count)})
