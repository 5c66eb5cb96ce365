# SPDX-License-Identifier: Apache-2.0
"""Closes sessions of aiohttp."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Protocol

_log = logging.getLogger(__name__)


class Session(Protocol):
    """An `aiohttp.ClientSession`."""

    def close(self) -> Awaitable[None]:
        """Close all connections."""


async def close_session(session: Session) -> None:
    """Close a session, also with a TLS connection that has just broken.

    aiohttp 3.14 asks each TLS connection for its context, and asyncio's transport raises AttributeError where the other
    side has just broken the connection. aiohttp has forgotten all connections nevertheless.
    """
    try:
        await session.close()
    except AttributeError as error:
        _log.debug("a connection broke while its session was closed: %s", error)
