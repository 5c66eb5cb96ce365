# SPDX-License-Identifier: Apache-2.0
"""A session of aiohttp is closed, whatever its connections do meanwhile."""

from __future__ import annotations

import asyncio
from asyncio.sslproto import _SSLProtocolTransport
from typing import Any
from unittest.mock import Mock

import aiohttp

from search_gateway.web_session import close_session


def test_connection_that_has_just_broken_does_not_keep_the_session_from_closing() -> None:
    async def run() -> None:
        session = aiohttp.ClientSession()
        broken: Any = _SSLProtocolTransport(asyncio.get_running_loop(), None)  # as asyncio leaves it then
        connector: Any = session.connector
        connector._acquired.add(Mock(transport=broken, closed=None))
        await close_session(session)
        assert connector.closed
        assert not connector._acquired
        await session.close()

    asyncio.run(run())
