# SPDX-License-Identifier: Apache-2.0
"""Runs one command until its owner stops it or ends, then removes everything that the command used.

This is a separate program because only another process survives the owner's kill -9. It owns the command's process
group, shared memory and folder. It uses only the standard library, so that `python -I -S` starts it in some 20 ms.

Protocol: the first line on stdout is the command's pid. On stdin one byte asks for a graceful stop;
the end of stdin means that the owner is gone. The exit status is the command's.
"""

import argparse
import contextlib
import ctypes
import os
import platform
import select
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
# machine -> (architecture, fchmod) in the kernel's numbers
_FCHMOD = {"x86_64": (0xC000003E, 91), "aarch64": (0xC00000B7, 52)}
_SHARED_MEMORY = Path("/dev/shm")
_NICENESS = 5  # of the models: the gateway needs little time, but at once, or it cannot even refuse requests in a flood


def remove_leftovers(workspace: Path, shm_prefix: str) -> None:
    """Delete the folder and the shared memory regions of the ended command."""
    shutil.rmtree(workspace, ignore_errors=True)
    if shm_prefix and _SHARED_MEMORY.is_dir():  # an empty prefix would match every region
        for region in _SHARED_MEMORY.iterdir():
            if region.name.startswith(shm_prefix):
                region.unlink(missing_ok=True)


class _Command:
    """The command, and every process it started: they share its process group."""

    def __init__(self, arguments: list[str], prctl: Callable[..., int]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            _become(arguments, prctl)
        self.exit_code: int | None = None

    def is_running(self) -> bool:
        """Reap ended processes, also adopted ones, and return whether the command itself runs."""
        while self.exit_code is None and self._reap(os.WNOHANG):
            pass
        return self.exit_code is None

    def terminate(self, grace_seconds: float) -> None:
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 4)

    def kill_group(self) -> None:
        """Kill the remaining processes, and return when all have ended."""
        with contextlib.suppress(ProcessLookupError):  # nothing left: normal after a graceful stop
            os.killpg(self.pid, signal.SIGKILL)
        # A subreaper inherits orphans, so without children all are gone.
        while self._reap(0):
            pass

    def _reap(self, options: int) -> bool:
        try:
            pid, status = os.waitpid(-1, options)
        except ChildProcessError:
            return False
        if pid == self.pid:
            self.exit_code = os.waitstatus_to_exitcode(status)
        return pid != 0


def _become(arguments: list[str], prctl: Callable[..., int]) -> None:
    """Replace the forked child by the command. Never returns."""
    try:
        os.setpgid(0, 0)
        # If this supervisor is killed, the command must not outlive it. The signal is sent when the
        # forking thread ends, which is the only thread here.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Python ignores SIGPIPE, and exec would pass that on.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.umask(0o077)
        os.nice(_NICENESS)
        with contextlib.suppress(
            OSError
        ):  # where Linux groups processes by session, groups have a niceness of their own
            Path("/proc/self/autogroup").write_text(str(_NICENESS), encoding="ascii")
        _ignore_fchmod(prctl)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.execv(arguments[0], arguments)
    except OSError as error:
        os.write(2, f"error: cannot run {arguments[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _ignore_fchmod(prctl: Callable[..., int]) -> None:
    """Keep this process's files private: let fchmod succeed without an effect.

    Triton makes its regions in /dev/shm readable for everybody with fchmod, whatever the umask. A stranger who opens
    one before it is changed back can read photos for as long as Triton lives. Where the kernel has no such filter, the
    owner's chmod remains.
    """
    if platform.machine() not in _FCHMOD:
        return
    architecture, fchmod = _FCHMOD[platform.machine()]
    load, equal, answer = 0x20, 0x15, 0x06  # instructions of BPF
    allow, succeed = 0x7FFF0000, 0x00050000  # the latter: do nothing and return error 0
    code = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in [
            (load, 0, 0, 4),  # seccomp_data.arch
            (equal, 0, 3, architecture),
            (load, 0, 0, 0),  # seccomp_data.nr
            (equal, 0, 1, fchmod),
            (answer, 0, 0, succeed),
            (answer, 0, 0, allow),
        ]
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    zero = ctypes.c_ulong(0)
    if prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) == 0:
        prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), program, zero, zero)


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--owner-pid", type=int, required=True, help="process that started this")
    parser.add_argument("--grace-seconds", type=float, required=True, help="SIGTERM to SIGKILL")
    parser.add_argument("--workspace", type=Path, required=True, help="folder removed at the end")
    parser.add_argument("--shm-prefix", required=True, help="/dev/shm files removed at the end")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def main() -> int:
    """Run the command; returns its exit status."""
    options = _parse_args()
    is_stop_asked = False

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_stop_asked
        is_stop_asked = True

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    command = _Command(options.command, prctl)
    os.write(1, f"{command.pid}\n".encode())

    while command.is_running():
        # The end of stdin is not enough: a fork of the owner would hold the pipe open.
        is_owner_gone = os.getppid() != options.owner_pid
        if select.select([0], [], [], 0 if is_owner_gone or is_stop_asked else _POLL_SECONDS)[0]:
            is_stop_asked = os.read(0, 1) != b""
            is_owner_gone = not is_stop_asked
        if is_owner_gone:
            break  # no caller waits for answers any more: no grace period
        if is_stop_asked:
            command.terminate(options.grace_seconds)
            break
    command.kill_group()
    remove_leftovers(options.workspace, options.shm_prefix)
    code = command.exit_code
    return 1 if code is None else code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
