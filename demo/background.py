# SPDX-License-Identifier: Apache-2.0
"""Starts and stops a gateway in the background (`make up`, `make down`); its log and process id are in one folder."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends it without a traceback

from captioner.model_contract import ContractError
from demo.sample_catalogue import sample_catalogue
from search_gateway.catalog.base import CatalogError
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError
from search_gateway.healthcheck import is_serving
from search_gateway.triton.embedded import TritonStartError

_START_SECONDS = 150.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.2


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("--address", default="127.0.0.1:8001", metavar="HOST:PORT")
    parser.add_argument("--web", metavar="HOST:PORT", help="of the page; empty: none (default: CAPTRIEVE_WEB_ADDRESS)")
    parser.add_argument("--run", type=Path, default=Path(".run"), help="folder for the log and the process id")
    args = parser.parse_args(argv)
    try:
        return up(args.address, args.run, environ, args.web) if args.action == "up" else down(args.run)
    except (CatalogError, ConfigError, ContractError, TritonStartError, OSError) as error:
        print(f"captrieve: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


def up(address: str, run: Path, environ: Mapping[str, str], web: str | None = None) -> int:
    """Start a gateway and wait until it serves.

    Args:
        address: HOST:PORT to listen on.
        run: folder for the log, the process id and the sample catalogue.
        environ: with the gateway's `CAPTRIEVE_` variables.
        web: HOST:PORT of the page; empty: none; None: as the variables say.

    Returns:
        The exit code: 0 if it serves, else 3.
    """
    run.mkdir(parents=True, exist_ok=True)
    config = GatewayConfig.from_env(environ).replace(listen_address=address)
    if web is not None:
        config = config.replace(web_address=web)
    if is_serving(address, config=config):
        print(f"a gateway already serves on {address}; run `make down` before you change settings")
        return 0
    if (pid := _running(run)) is not None:
        print(f"captrieve: process {pid} is a gateway of this folder; run `make down` first", file=sys.stderr)
        return 3
    catalogue = config.catalog or sample_catalogue(config, run)
    settings = {
        "CAPTRIEVE_LISTEN_ADDRESS": address,
        "CAPTRIEVE_WEB_ADDRESS": config.web_address,
        "CAPTRIEVE_CATALOG": str(catalogue),
        "CAPTRIEVE_TRITON_LOG": str(config.triton_log or run / "triton.log"),
    }
    log = run / "gateway.log"
    with log.open("ab") as output, _interrupts_deferred() as interrupts:
        process = subprocess.Popen(
            [sys.executable, "-m", "search_gateway"],
            env={**environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # it outlives this terminal
        )
    try:
        if interrupts:
            raise KeyboardInterrupt
        _pid_file(run).write_text(f"{process.pid}\n", encoding="utf-8")
        end = time.monotonic() + _START_SECONDS
        while not is_serving(address, config=config):
            if process.poll() is not None or time.monotonic() > end:
                last = "".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:])
                reason = last.removeprefix("captrieve: ")
                print(f"captrieve: the gateway did not start: {reason} (log: {log})", file=sys.stderr)
                _end(process, run)
                return 3
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        print("captrieve: interrupted: the gateway is stopped", file=sys.stderr)
        _end(process, run)
        raise
    scheme = "http" if config.tls_certificate is None else "https"
    page = f"page: {scheme}://{config.web_address}; " if config.web_address else ""
    print(f"serving on {address}; {page}log: {log}; stop with `make down`")
    return 0


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[list[int]]:
    """Yield a list of the Ctrl-C within the block: one that came while a process is started would lose it."""
    interrupts: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, handler)


def _end(process: subprocess.Popen[bytes], run: Path) -> None:
    """End a gateway that does not serve yet; its Triton goes with it."""
    try:
        process.terminate()
        process.wait()
    except KeyboardInterrupt:
        process.kill()
        process.wait()
        raise
    finally:
        _pid_file(run).unlink(missing_ok=True)


def down(run: Path) -> int:
    """Stop the gateway that `up` started, after the requests in flight; returns the exit code 0."""
    pid = _running(run)
    if pid is None:
        print("nothing to stop")
        return 0
    end = time.monotonic() + _STOP_SECONDS
    os.kill(pid, signal.SIGTERM)
    while _is_ours(pid):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)  # its Triton goes with it
        time.sleep(_POLL_SECONDS)
    _pid_file(run).unlink(missing_ok=True)
    print("stopped")
    return 0


def _running(run: Path) -> int | None:
    """Return the process id of the gateway that `up` started, if it still runs."""
    try:
        pid = int(_pid_file(run).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return pid if _is_ours(pid) else None


def _pid_file(run: Path) -> Path:
    return run / "gateway.pid"


def _is_ours(pid: int) -> bool:
    """Return whether a process is a gateway; after a restart of the machine its id may belong to another process."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # an ended child of this process would remain as a zombie
    try:
        return b"search_gateway" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:], os.environ))
