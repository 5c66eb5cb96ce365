# SPDX-License-Identifier: Apache-2.0
"""Tests of the signals that a running gateway understands; the rest of it is tested from outside, in tests/e2e."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from search_gateway import server
from search_gateway.config import GatewayConfig


class ScriptedGateway:
    """Has itself reloaded and then stopped, by signals to this process."""

    def __init__(self, _: GatewayConfig) -> None:
        self.events: list[str] = []
        self._stopped = asyncio.Event()
        GATEWAYS.append(self)

    async def __aenter__(self) -> ScriptedGateway:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGHUP)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.events.append("closed")

    async def wait(self) -> None:
        await self._stopped.wait()

    def reload(self) -> None:
        self.events.append("reloaded")
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> None:
        self.events.append("stopped")
        self._stopped.set()


GATEWAYS: list[ScriptedGateway] = []


def test_sighup_reloads_and_sigterm_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "Gateway", ScriptedGateway)
    asyncio.run(server.serve(GatewayConfig.from_env({})))
    assert GATEWAYS.pop().events == ["reloaded", "stopped", "closed"]


def test_number_of_parallel_fetches_is_the_set_one() -> None:
    gateway = server.Gateway(GatewayConfig(thumbnail_fetches=3))
    assert gateway._make_thumbnails()._parallel_fetches == 3
