# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the real `tritonserver` from the nvidia-pytriton wheel: no Docker, GPU or root.

Triton listens on a Unix socket in a folder that only this user can enter, and on no port: other users of the host can
neither call it nor read its memory.

`supervisor.py` runs Triton, so that no process and no file in /dev/shm or /tmp is left behind however this process
ends, including kill -9. So any thread may call `start` (a parent death signal would depend on the calling thread).

Triton has its own session: Ctrl-C reaches only the gateway, which first finishes the requests in flight. Under systemd
set KillMode=mixed for the same reason.
"""

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from search_gateway.triton import supervisor
from search_gateway.triton.installation import TritonInstallation, TritonStartError, find_installation
from search_gateway.triton.startup_log import read_from, reason_in

__all__ = ["EmbeddedTriton", "TritonStartError"]

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_ABORTED = {128 + signal.SIGABRT, 128 + signal.SIGSEGV}  # exit statuses of the supervisor
_LOCK_FAILURE = "boost::interprocess::lock_exception"  # in the log of Triton, where a model's process has it
_SLOW_START_SECONDS = 5.0  # a start that takes longer is told
# Triton's address is that of the socket with this number behind it.
_SOCKET, _PORT = "grpc", 1
# Triton puts paths into a shell command without quoting them, and a socket's path has at most 107 bytes.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+-]{1,60}")
_COMMAND_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin")
# How long Triton may finish requests in flight at `stop`. The gateway stops it last, so there are
# none unless something hangs. A normal stop takes 1-2 s, since Triton checks once a second.
_GRACE_SECONDS = 10
_END_SECONDS = 5  # how long the supervisor may take to kill and remove what is left
_BACKENDS = Path(__file__).parent / "backend"
_LOG_PREFIX, _LOG_SUFFIX = "captrieve-triton-", ".log"
_ORPHANED_LOG_SECONDS = 3600.0  # somebody may still read why a start failed


class _TritonAbortedError(TritonStartError):
    """It may start when it is tried again."""


class EmbeddedTriton:
    """A Triton Inference Server on a private Unix socket that lives no longer than this process.

    Usage:

        with EmbeddedTriton(Path("model_repository")) as triton:
            connect(triton.grpc_address)

    Args:
        model_repository: every folder in it must be a model that loads, or `start` fails.
        log_file: the log is appended to it; None: a temporary file, which remains only after a failure.
        start_timeout_seconds: for loading all models.
        traces_url: where Triton sends the spans of calls with a `traceparent`, over OTLP/HTTP; None: it makes none.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        log_file: Path | None = None,
        start_timeout_seconds: float = 120,
        traces_url: str | None = None,
    ) -> None:
        self._traces_url = traces_url
        self._model_repository = model_repository
        self._start_timeout_seconds = start_timeout_seconds
        self._is_log_ours = log_file is None
        self._log_file = log_file or Path(tempfile.gettempdir(), f"{_LOG_PREFIX}{secrets.token_hex(8)}{_LOG_SUFFIX}")
        self._run: _Run | None = None
        self._num_stops = 0

    @property
    def grpc_address(self) -> str:
        """`unix:PATH` of the KServe v2 gRPC service."""
        return self._running().grpc_address

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
        """Whether Triton and the processes of all its models run."""
        run = self._run
        if run is None or run.supervisor.poll() is not None:
            return False
        # The supervisor may be stopped or slow, so Triton itself is looked at, too.
        return all(map(_is_alive, {run.triton_pid, *run.model_pids}))

    def start(self) -> None:
        """Start Triton and return when every model is ready.

        Raises:
            TritonStartError: something is missing, a model does not load, or it takes too long.
        """
        if self._run is not None:
            raise RuntimeError("EmbeddedTriton.start was called twice")
        _check_model_repository(self._model_repository)
        installation = find_installation()
        num_stops = self._num_stops
        _remove_orphaned_logs()
        try:
            self._start_once(installation, num_stops)
        except _TritonAbortedError as error:
            # Its python backend does so now and then on a machine with far too much to do: a model's process was not
            # quick enough to lock the memory that both share.
            _log.warning("started once more: %s", error)
            self._start_once(installation, num_stops)

    def _start_once(self, installation: TritonInstallation, num_stops: int) -> None:
        log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
        try:
            run = self._run = _launch(installation, self._model_repository, self._log_file, self._traces_url)
            if self._num_stops > num_stops:  # by another thread, which found nothing to stop yet
                raise TritonStartError("Triton was stopped while it started")
            problem = self._wait_until_ready(run)
            if problem is None:
                _make_private(run.instance_id)
                run.model_pids = _model_processes(run.triton_pid)
                return
        except OSError as error:  # the log or the temporary folder cannot be written
            self._discard()
            raise TritonStartError(f"Triton could not be started: {error}") from error
        except BaseException:  # Ctrl-C must not leave a half-started Triton
            self._discard()
            raise
        log = read_from(self._log_file, log_start)
        has_aborted = run.supervisor.poll() in _ABORTED or _LOCK_FAILURE in log
        self._discard()
        # Its log names the link to the model repository.
        reason = (reason_in(log) or problem).replace(str(run.models), str(self._model_repository))
        message = f"Triton {reason}. Log: {self._log_file}"
        raise _TritonAbortedError(message) if has_aborted else TritonStartError(message)

    def stop(self, *, is_graceful: bool = True, has_failed: bool = False) -> None:
        """Stop Triton and remove what it used. Further calls do nothing.

        Args:
            is_graceful: let Triton finish its requests and unload its models, if all of them run; this takes 1-2 s.
            has_failed: keep its temporary log, as if one of its processes had died.
        """
        self._num_stops += 1
        run = self._run
        if run is None:
            return
        is_running = self.is_running()  # a model without its process does not unload
        self._run = None
        exit_code = _end(run, is_graceful=is_graceful and is_running)
        if self._is_log_ours and is_running and not has_failed and not (is_graceful and exit_code):
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

    def _wait_until_ready(self, run: "_Run") -> str | None:
        """Wait until Triton is ready; returns what went wrong, or None."""
        started = time.monotonic()
        is_slow = False
        with grpc.insecure_channel(
            run.grpc_address,
            options=[("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)],
        ) as channel:
            while (seconds := time.monotonic() - started) < self._start_timeout_seconds:
                if (exit_code := run.supervisor.poll()) is not None:
                    return f"exited with status {exit_code}"
                if _is_ready(channel):
                    return None
                if not is_slow and seconds > _SLOW_START_SECONDS:
                    is_slow = True
                    _log.warning("Triton is still starting after %.0f s. Log: %s", seconds, self._log_file)
                time.sleep(_POLL_SECONDS)
        return f"was not ready after {self._start_timeout_seconds:g} s (start_timeout_seconds)"


@dataclass(kw_only=True)
class _Run:
    """One started Triton."""

    instance_id: str  # unique: in the command line of all its processes, first part of its /dev/shm names
    workspace: Path
    supervisor: subprocess.Popen[bytes]
    triton_pid: int
    model_pids: frozenset[int] = frozenset()  # known when it is ready

    @property
    def grpc_address(self) -> str:
        return f"unix:{self.workspace / _SOCKET}:{_PORT}"

    @property
    def models(self) -> Path:
        """A link to the model repository."""
        return self.workspace / "models"


def _check_model_repository(folder: Path) -> None:
    # Triton itself would start without a model and report ready.
    if not any(folder.glob("*/config.pbtxt")):
        raise TritonStartError(f"{folder} holds no model (no */config.pbtxt)")


def _launch(installation: TritonInstallation, model_repository: Path, log_file: Path, traces_url: str | None) -> _Run:
    instance_id = f"captrieve_{os.getpid()}_{secrets.token_hex(6)}_"
    workspace = _new_workspace()
    try:
        (workspace / "models").symlink_to(model_repository.resolve())
        _lay_out_python(installation, workspace / "python")
        backends = _lay_out_backends(installation, workspace)
        log_descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(log_descriptor, fcntl.LOCK_SH)  # until the supervisor and Triton have ended
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", supervisor.__file__),
                    f"--owner-pid={os.getpid()}",
                    f"--grace-seconds={_GRACE_SECONDS}",
                    f"--workspace={workspace}",
                    f"--shm-prefix={instance_id}",
                    "--",
                    str(installation.server),
                    *_flags(workspace, backends, instance_id),
                    *([] if traces_url is None else _trace_flags(traces_url)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_descriptor,
                env=_environment(installation, workspace / "python"),
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
        supervisor=process,
        triton_pid=triton_pid,
    )


def _remove_orphaned_logs() -> None:
    """Remove temporary logs that gateways left that were killed or did not start."""
    for log in Path(tempfile.gettempdir()).glob(f"{_LOG_PREFIX}*{_LOG_SUFFIX}"):
        with contextlib.suppress(OSError):  # in use, another user's, or already removed
            descriptor = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(descriptor).st_mtime > _ORPHANED_LOG_SECONDS:
                    log.unlink()
            finally:
                os.close(descriptor)


def _new_workspace() -> Path:
    """A folder that only this user can enter and whose path Triton can work with.

    Raises:
        OSError: there is none.
    """
    folders = [folder for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp") if _PLAIN_PATH.fullmatch(folder)]
    writable = [folder for folder in folders if os.access(folder, os.W_OK | os.X_OK)]
    return Path(tempfile.mkdtemp(prefix="captrieve-triton-", dir=(writable or folders)[0]))


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


def _lay_out_python(installation: TritonInstallation, folder: Path) -> None:
    """Make the virtual environment of the models' processes, with the packages of this one.

    Their interpreter ignores the locale and every variable, and dies when a .pth file has letters beyond ASCII. So it
    gets an environment with one such file, and there the bytes of a path are written as Python's escapes.
    """
    venv.create(folder, symlinks=True)
    paths = [os.fsencode(path).decode("ascii", "surrogateescape") for path in installation.packages]
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "packages.pth").write_text(f"import sys; sys.path.extend({paths!a})\n")


def _flags(workspace: Path, backends: Path, instance_id: str) -> list[str]:
    return [
        f"--id={instance_id}",
        f"--model-repository={workspace / 'models'}",
        "--model-config-name=embedded",  # configs/embedded.pbtxt where a model has one, else its config.pbtxt
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={instance_id}",
        f"--grpc-address=unix:{workspace / _SOCKET}",
        f"--grpc-port={_PORT}",
        "--allow-http=false",
        "--allow-metrics=false",
        "--model-control-mode=none",
        "--exit-on-error=true",
        "--strict-readiness=true",
        "--disable-auto-complete-config",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--pinned-memory-pool-byte-size=0",  # pinned memory is for GPUs
        f"--exit-timeout-secs={_GRACE_SECONDS}",
    ]


def _trace_flags(url: str) -> list[str]:
    """Trace only calls that belong to a trace: a rate of 0 starts none."""
    values = ("mode=opentelemetry", "rate=0", "level=TIMESTAMPS", f"opentelemetry,url={url}")
    resource = "opentelemetry,resource=service.name=captrieve-triton"
    return [f"--trace-config={value}" for value in (*values, resource)]


def _environment(installation: TritonInstallation, python: Path) -> dict[str, str]:
    """Return our environment without the gateway's settings and secrets, and with what Triton needs to find Python.

    `python` is the virtual environment of the models' processes, which use the first `python3` in PATH.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPTRIEVE_")}
    # They need a shell as well, which an empty PATH does not have.
    for name, folders, after in (
        ("PATH", (python / "bin",), _COMMAND_FOLDERS),
        ("LD_LIBRARY_PATH", installation.libraries, ()),
    ):
        environment[name] = os.pathsep.join(filter(None, (*map(str, folders), environment.get(name), *after)))
    # The embedded server uses the CPU only; initialising a GPU would cost start time and GPU memory.
    environment["CUDA_VISIBLE_DEVICES"] = ""
    # config.pbtxt sets ONNX Runtime's threads; numpy only joins and splits rows.
    environment["OMP_NUM_THREADS"] = "1"
    environment["OPENBLAS_NUM_THREADS"] = "1"
    environment["ORT_DISABLE_TELEMETRY"] = "1"  # or it reports to Microsoft and leaves the file .ses
    return environment


def _is_ready(channel: grpc.Channel) -> bool:
    """Whether Triton answers and has all models.

    With --exit-on-error Triton serves gRPC only after every model has loaded, and with --strict-readiness ServerReady
    is true only if all are ready, so no model is asked individually. The answer is small enough to be read as bytes,
    since only client.py imports tritonclient: {1: true} is 08 01.
    """
    try:
        answer = channel.unary_unary("/inference.GRPCInferenceService/ServerReady", bytes, bytes)(b"", timeout=1)
    except grpc.RpcError:
        return False
    return bool(answer == b"\x08\x01")


def _model_processes(triton_pid: int) -> frozenset[int]:
    """The living children of Triton: one process for each model. Empty if the kernel does not list children."""
    pids: set[int] = set()
    for thread in Path(f"/proc/{triton_pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            pids.update(map(int, thread.read_text().split()))
    return frozenset(filter(_is_alive, pids))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _make_private(prefix: str) -> None:
    """Take Triton's regions in /dev/shm away from other users, where the supervisor could not do so from the start.

    Raises:
        TritonStartError: other users can still open one.
    """
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.chmod(0o600)
        if region.stat().st_mode & 0o077:
            raise TritonStartError(f"{region} cannot be made private: other users could read photos in it")


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
        exit_code = process.wait(timeout=_END_SECONDS + (_GRACE_SECONDS if is_graceful else 0))
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
