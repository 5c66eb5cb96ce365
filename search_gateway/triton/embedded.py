# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the real `tritonserver` from the nvidia-pytriton wheel: no Docker, GPU or root.

`supervisor.py` runs Triton, so that no process and no file in /dev/shm or /tmp is left behind however this process
ends, including kill -9. So any thread may call `start` (a parent death signal would depend on the calling thread).

Triton has its own session: Ctrl-C reaches only the gateway, which first finishes the requests in flight. Under systemd
set KillMode=mixed for the same reason.
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
# none unless something hangs. A normal stop takes 1-2 s, since Triton checks once a second.
_GRACE_SECONDS = 10
_BACKENDS = Path(__file__).parent / "backend"


class EmbeddedTriton:
    """A Triton Inference Server on loopback that lives no longer than this process.

    Usage:

        with EmbeddedTriton(Path("model_repository")) as triton:
            connect(triton.grpc_address)

    Args:
        model_repository: every folder in it must be a model that loads, or `start` fails.
        log_file: the log is appended to it; None: a temporary file, which remains only after a failure.
        start_timeout_seconds: for loading all models.
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
        """Prefix of the regions in /dev/shm that are removed when Triton ends.

        A caller whose own regions have this prefix leaks none, even if it is killed.
        """
        return self._running().instance_id

    @property
    def pid(self) -> int:
        """Process id of tritonserver itself."""
        return self._running().triton_pid

    @property
    def log_file(self) -> Path:
        """Triton's log."""
        return self._log_file

    def is_running(self) -> bool:
        """Whether Triton was started and has not ended."""
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
            # Another program may take a free port before Triton binds it.
            if "already in use" not in log:
                raise TritonStartError(self._explain(problem, log))
        raise TritonStartError(self._explain("found no free port on 127.0.0.1", log))

    def stop(self) -> None:
        """Stop Triton, gracefully if possible, and remove what it used. Further calls do nothing."""
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
        """Wait until Triton is ready; returns what went wrong, or None."""
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
    # Triton itself would start without a model and report ready.
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
            triton_pid = int(first_line.readline() or 0)  # no line: it failed, which `poll` reports
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
    """Build the backend directory. It holds copies, since Triton refuses links that lead outside."""
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
    """Return our environment without the gateway's settings and secrets, and with what Triton needs to find Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPTRIEVE_")}
    # The stub uses the virtual environment of the first `python3` in PATH, so numpy and onnxruntime
    # are those of this interpreter.
    _prepend(environment, "PATH", Path(sys.executable).parent)
    _prepend(environment, "LD_LIBRARY_PATH", *installation.libraries)
    # The embedded server uses the CPU only; initialising a GPU would cost start time and GPU memory.
    environment["CUDA_VISIBLE_DEVICES"] = ""
    # config.pbtxt sets ONNX Runtime's threads; numpy only joins and splits rows.
    environment["OMP_NUM_THREADS"] = "1"
    environment["OPENBLAS_NUM_THREADS"] = "1"
    return environment


def _prepend(environment: dict[str, str], name: str, *folders: Path) -> None:
    before = [environment[name]] if environment.get(name) else []
    environment[name] = os.pathsep.join([*map(str, folders), *before])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        # All are bound at the same time, so that they differ.
        for free in sockets:
            free.bind((_LOOPBACK, 0))
        return [int(free.getsockname()[1]) for free in sockets]
    finally:
        for free in sockets:
            free.close()


def _is_ready(channel: grpc.Channel, run: _Run) -> bool:
    """Whether the server that was started answers and has all models.

    With --exit-on-error Triton serves gRPC only after every model has loaded, and with --strict-readiness ServerReady
    is true only if all are ready, so no model is asked individually. The messages are small enough to be read as bytes,
    since only client.py imports tritonclient: {1: true} is 08 01, and ServerMetadata contains the server's name.
    """
    service = "/inference.GRPCInferenceService/"
    try:
        metadata = channel.unary_unary(f"{service}ServerMetadata", bytes, bytes)(b"", timeout=1)
        ready = channel.unary_unary(f"{service}ServerReady", bytes, bytes)(b"", timeout=1)
    except grpc.RpcError:
        return False
    return run.instance_id.encode() in metadata and ready == b"\x08\x01" and _has_metrics(run.metrics_port)


def _has_metrics(port: int) -> bool:
    # Triton binds this port last, and exits if it cannot. It counts as ready only after that.
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=1)
    try:
        connection.request("GET", "/metrics")
        return b"nv_inference" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(run: _Run, *, is_graceful: bool) -> int:
    """Stop Triton, wait until all its processes have ended, and return the exit status (negative: killed)."""
    process = run.supervisor
    assert process.stdin is not None
    if is_graceful:
        with contextlib.suppress(BrokenPipeError):  # it may have ended just now
            process.stdin.write(b"s")
    process.stdin.close()  # without the byte before it, this means: kill
    try:
        # The supervisor ends after all processes have ended and everything is removed.
        exit_code = process.wait(timeout=_GRACE_SECONDS + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        exit_code = process.wait()
    if exit_code < 0:  # the supervisor was killed: do its work
        _kill_instance(run.instance_id)
        supervisor.remove_leftovers(run.workspace, run.instance_id)
    return exit_code


def _kill_instance(instance_id: str) -> None:
    """Kill the processes with the id in their command line. Unlike a pid, the id is never reused."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if instance_id.encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or not ours
