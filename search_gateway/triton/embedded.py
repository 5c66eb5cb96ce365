# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the real `tritonserver` from the nvidia-pytriton wheel: no Docker, GPU or root.

`supervisor.py` stands between this process and Triton, so that nothing is left running, in /dev/shm or in /tmp however
this process ends, kill -9 included. So any thread may call `start` too (a parent death signal would follow the thread
instead).

Triton is in a session of its own: Ctrl-C reaches the gateway alone, which first finishes what it
has begun. Under systemd set KillMode=mixed for the same reason.
"""

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from search_gateway.triton import supervisor
from search_gateway.triton.installation import TritonInstallation, TritonStartError, find_installation
from search_gateway.triton.startup_log import read_from, reason_in

__all__ = ["EmbeddedTriton", "TritonStartError"]

_LOOPBACK = "127.0.0.1"
_PORT_ATTEMPTS = 4
_POLL_SECONDS = 0.05
# How long Triton may finish requests in flight at `stop`. The gateway stops it last, so there are
# none unless something hangs. A normal stop takes 1-2 s: Triton looks once a second.
_GRACE_SECONDS = 10
_BACKENDS = Path(__file__).parent / "backend"


class EmbeddedTriton:
    """A Triton Inference Server on loopback that lives no longer than this process.

    Usage:

        with EmbeddedTriton(Path("model_repository")) as triton:
            connect(triton.grpc_address)

    Args:
        model_repository: Every folder in it must be a model that loads, or `start` fails.
        log_file: Appended to. Without it the log is a temporary file, which a clean `stop` removes
            and a failure leaves.
        start_timeout_seconds: For all models together.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        log_file: Path | None = None,
        start_timeout_seconds: float = 120,
    ) -> None:
        self._model_repository = model_repository
        self._start_timeout_seconds = start_timeout_seconds
        self._is_log_ours = log_file is None
        self._log_file = log_file or Path(tempfile.gettempdir(), f"captrieve-triton-{secrets.token_hex(8)}.log")
        self._run: _Run | None = None

    @property
    def grpc_address(self) -> str:
        """`127.0.0.1:PORT` of the KServe v2 gRPC service."""
        return f"{_LOOPBACK}:{self._running().grpc_port}"

    @property
    def metrics_address(self) -> str:
        """`127.0.0.1:PORT` of the Prometheus metrics, path /metrics."""
        return f"{_LOOPBACK}:{self._running().metrics_port}"

    @property
    def shm_prefix(self) -> str:
        """Regions in /dev/shm whose name starts so are removed when Triton ends.

        A caller that names its own regions like this leaks none, even when it is killed.
        """
        return self._running().instance_id

    @property
    def pid(self) -> int:
        """Process id of tritonserver itself."""
        return self._running().triton_pid

    @property
    def log_file(self) -> Path:
        return self._log_file

    def is_running(self) -> bool:
        return self._run is not None and self._run.supervisor.poll() is None

    def start(self) -> None:
        """Start Triton and return when every model is ready.

        Raises:
            TritonStartError: something is missing, a model does not load, or it takes too long.
        """
        if self._run is not None:
            raise RuntimeError("EmbeddedTriton.start was called twice")
        _check_model_repository(self._model_repository)
        installation = find_installation()
        deadline = time.monotonic() + self._start_timeout_seconds
        for _ in range(_PORT_ATTEMPTS):
            log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
            try:
                self._run = _launch(installation, self._model_repository, self._log_file)
                problem = self._wait_until_ready(self._run, deadline)
            except OSError as error:  # the log or the temporary folder cannot be written
                self._discard()
                raise TritonStartError(f"Triton could not be started: {error}") from error
            except BaseException:  # Ctrl-C must not leave a half-started Triton
                self._discard()
                raise
            if problem is None:
                return
            log = read_from(self._log_file, log_start)
            self._discard()
            # Between finding a free port and Triton binding it, anybody can take it.
            if "already in use" not in log:
                raise TritonStartError(self._explain(problem, log))
        raise TritonStartError(self._explain("found no free port on 127.0.0.1", log))

    def stop(self) -> None:
        """Stop Triton, gracefully if it lets us, and remove what it used. May be repeated."""
        run, self._run = self._run, None
        if run is None:
            return
        exit_code = _end(run, is_graceful=True)
        if self._is_log_ours and exit_code == 0:
            self._log_file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _discard(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            _end(run, is_graceful=False)

    def _running(self) -> "_Run":
        if self._run is None:
            raise RuntimeError("EmbeddedTriton is not started")
        return self._run

    def _wait_until_ready(self, run: "_Run", deadline: float) -> str | None:
        """Wait; the answer is None when Triton is ready, else what went wrong."""
        with grpc.insecure_channel(
            f"{_LOOPBACK}:{run.grpc_port}",
            options=[
                ("grpc.enable_http_proxy", 0),  # an http_proxy variable applies to loopback too
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        ) as channel:
            while time.monotonic() < deadline:
                if (exit_code := run.supervisor.poll()) is not None:
                    return f"tritonserver exited with status {exit_code}"
                if _is_ready(channel, run):
                    return None
                time.sleep(_POLL_SECONDS)
        return f"was not ready after {self._start_timeout_seconds:g} s (start_timeout_seconds)"

    def _explain(self, problem: str, log: str) -> str:
        return f"Triton {reason_in(log) or problem}. Log: {self._log_file}"


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One started Triton."""

    instance_id: str  # unique: in the command line of all its processes, first part of its /dev/shm names
    workspace: Path
    grpc_port: int
    metrics_port: int
    supervisor: subprocess.Popen[bytes]
    triton_pid: int


def _check_model_repository(folder: Path) -> None:
    # Triton itself would start with no model at all, and call that ready.
    if not any(folder.glob("*/config.pbtxt")):
        raise TritonStartError(f"{folder} holds no model (no */config.pbtxt)")


def _launch(installation: TritonInstallation, model_repository: Path, log_file: Path) -> _Run:
    instance_id = f"captrieve_{os.getpid()}_{secrets.token_hex(6)}_"
    workspace = Path(tempfile.mkdtemp(prefix="captrieve-triton-"))
    try:
        backends = _lay_out_backends(installation, workspace)
        grpc_port, metrics_port = _free_ports(2)
        log_descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", supervisor.__file__),
                    f"--owner-pid={os.getpid()}",
                    f"--grace-seconds={_GRACE_SECONDS}",
                    f"--workspace={workspace}",
                    f"--shm-prefix={instance_id}",
                    "--",
                    str(installation.server),
                    *_flags(model_repository, backends, grpc_port, metrics_port, instance_id),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_descriptor,
                env=_environment(installation),
                bufsize=0,
                start_new_session=True,
            )
        finally:
            os.close(log_descriptor)
        assert process.stdout is not None
        with process.stdout as first_line:
            triton_pid = int(first_line.readline() or 0)  # no line: it failed, and `poll` tells so
    except BaseException:
        shutil.rmtree(workspace, ignore_errors=True)
        raise
    return _Run(
        instance_id=instance_id,
        workspace=workspace,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        supervisor=process,
        triton_pid=triton_pid,
    )


def _lay_out_backends(installation: TritonInstallation, workspace: Path) -> Path:
    """Build the one backend directory Triton takes. Copies: it refuses links that lead outside."""
    backends = workspace / "backends"
    shutil.copytree(_BACKENDS, backends, ignore=shutil.ignore_patterns("__pycache__", "__init__.py"))
    python_backend = backends / "python"
    python_backend.mkdir()
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copyfile(installation.python_backend / name, python_backend / name)
    stub = shutil.copyfile(installation.stub, python_backend / installation.stub.name)
    stub.chmod(0o700)
    return backends


def _flags(model_repository: Path, backends: Path, grpc_port: int, metrics_port: int, instance_id: str) -> list[str]:
    return [
        f"--id={instance_id}",  # distinguishes our server from another one on the same port
        f"--model-repository={model_repository.resolve()}",
        "--model-config-name=embedded",  # configs/embedded.pbtxt where a model has one, else its config.pbtxt
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={instance_id}",
        f"--grpc-address={_LOOPBACK}",
        f"--grpc-port={grpc_port}",
        "--reuse-grpc-port=false",  # else two servers share a port and each gets half the calls
        "--allow-http=false",
        f"--http-address={_LOOPBACK}",
        f"--metrics-address={_LOOPBACK}",
        f"--metrics-port={metrics_port}",
        "--allow-gpu-metrics=false",
        "--allow-cpu-metrics=false",
        "--model-control-mode=none",
        "--exit-on-error=true",
        "--strict-readiness=true",
        "--disable-auto-complete-config",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--pinned-memory-pool-byte-size=0",  # pinned memory is for GPUs
        f"--exit-timeout-secs={_GRACE_SECONDS}",
    ]


def _environment(installation: TritonInstallation) -> dict[str, str]:
    """Ours, less the gateway's own settings and secrets, plus what Triton needs to find Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPTRIEVE_")}
    # The stub asks PATH for `python3` and takes that one's virtual environment, so numpy and
    # onnxruntime are the ones installed beside this interpreter.
    _prepend(environment, "PATH", Path(sys.executable).parent)
    _prepend(environment, "LD_LIBRARY_PATH", *installation.libraries)
    # The embedded server is for the CPU; looking at a GPU costs start time and GPU memory.
    environment["CUDA_VISIBLE_DEVICES"] = ""
    # ONNX Runtime gets its threads from config.pbtxt; numpy only joins and splits rows.
    environment["OMP_NUM_THREADS"] = "1"
    environment["OPENBLAS_NUM_THREADS"] = "1"
    return environment


def _prepend(environment: dict[str, str], name: str, *folders: Path) -> None:
    before = [environment[name]] if environment.get(name) else []
    environment[name] = os.pathsep.join([*map(str, folders), *before])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        # All bound at once, so that they differ.
        for free in sockets:
            free.bind((_LOOPBACK, 0))
        return [int(free.getsockname()[1]) for free in sockets]
    finally:
        for free in sockets:
            free.close()


def _is_ready(channel: grpc.Channel, run: _Run) -> bool:
    """Whether this very server answers and has all models.

    With --exit-on-error Triton serves gRPC only after every model has loaded, and with
    --strict-readiness ServerReady is true only if all are ready, so nothing is asked per model. The
    messages are so small that they are read as bytes: {1: true} is 08 01, and ServerMetadata holds
    the server's name. (only client.py imports tritonclient.)
    """
    service = "/inference.GRPCInferenceService/"
    try:
        metadata = channel.unary_unary(f"{service}ServerMetadata", bytes, bytes)(b"", timeout=1)
        ready = channel.unary_unary(f"{service}ServerReady", bytes, bytes)(b"", timeout=1)
    except grpc.RpcError:
        return False
    return run.instance_id.encode() in metadata and ready == b"\x08\x01" and _has_metrics(run.metrics_port)


def _has_metrics(port: int) -> bool:
    # Triton binds this port last and exits when it cannot: before that, ready may not last.
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=1)
    try:
        connection.request("GET", "/metrics")
        return b"nv_inference" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(run: _Run, *, is_graceful: bool) -> int:
    """Stop, wait until nothing is left, and return the exit status (negative: unclean)."""
    process = run.supervisor
    assert process.stdin is not None
    if is_graceful:
        with contextlib.suppress(BrokenPipeError):  # it may have ended just now
            process.stdin.write(b"s")
    process.stdin.close()  # without the byte before it, this means: kill
    try:
        # Its end means that all processes are gone and everything is cleaned up.
        exit_code = process.wait(timeout=_GRACE_SECONDS + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        exit_code = process.wait()
    if exit_code < 0:  # the supervisor was killed: do its work
        _kill_instance(run.instance_id)
        supervisor.remove_leftovers(run.workspace, run.instance_id)
    return exit_code


def _kill_instance(instance_id: str) -> None:
    """Kill the processes with the id in their command line: unlike a stored pid, it is never reused."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if instance_id.encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or not ours
