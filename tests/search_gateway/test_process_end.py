# SPDX-License-Identifier: Apache-2.0
"""A gateway whose providers keep tasks and threads for ever ends all the same, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PROGRAM = textwrap.dedent(
    """
    import asyncio, contextlib, os, signal, sys, threading, time
    from search_gateway import __main__ as program, server

    class Gateway:
        def __init__(self, config):
            self.stopped = asyncio.Event()

        async def __aenter__(self):
            asyncio.create_task(self.ignore_cancellation(), name="search at provider stubborn")
            threading.Thread(target=self.block_a_thread, name="of a provider").start()
            asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
            return self

        async def __aexit__(self, *_):
            print("closed", flush=True)
            if sys.argv[1:] == ["close"]:
                await asyncio.sleep(600)

        async def ignore_cancellation(self):
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(600)

        def block_a_thread(self):
            time.sleep(600)

        async def wait(self):
            await self.stopped.wait()

        def stop(self):
            self.stopped.set()

    def send_spans_to_nobody():
        time.sleep(600)

    server.Gateway = Gateway
    server.start_tracing = lambda: send_spans_to_nobody
    if sys.argv[1:] == ["close"]:
        server._CLOSING_SECONDS = 1.0
    sys.exit(program.main(["serve"], {"CAPTRIEVE_DRAIN_SECONDS": "0"}))
    """
)


def ended(*arguments: str) -> list[str]:
    """Runs the program until its provider's work should have kept it; returns the lines of its log."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
    return done.stderr.splitlines()


def test_tasks_and_threads_of_providers_do_not_keep_the_process_and_are_named() -> None:
    *_, task, thread, spans = ended()
    assert "the gateway ends while this is still running: task search at provider stubborn, sleep at " in task
    assert "the gateway ends while this is still running: thread of a provider, block_a_thread at " in thread
    assert "send_spans_to_nobody at " in spans


def test_process_ends_though_a_part_does_not_close() -> None:
    lines = ended("close")
    assert any("still running: task Task-1, sleep at " in line for line in lines)  # where it hangs
    assert "the gateway ends while this is still running: thread of a provider" in lines[-1]
