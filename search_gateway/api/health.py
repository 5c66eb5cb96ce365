# SPDX-License-Identifier: Apache-2.0
"""`grpc.health.v1.Health`: the empty name means that the process lives, the names of services that they are ready.

The servicer of grpcio-health-checking writes to its watchers while it holds the lock that a change of the status needs,
so a watcher that does not read stops it. Here a change only wakes the watchers; each writes in its own call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from search_gateway.errors import NotFoundError

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_Status = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # its stubs are Any
    """The health service; not ready until `set_ready` says so.

    Args:
        services: full names of the services whose status is readiness.
    """

    def __init__(self, services: Collection[str]):
        self._services = services
        self._is_ready = False
        self._is_finishing = False
        self._watchers: set[asyncio.Event] = set()  # set when the status may have changed

    @property
    def is_ready(self) -> bool:
        """Whether the services are ready."""
        return self._is_ready

    def set_ready(self, is_ready: bool) -> None:
        """Set the status of all services. Does nothing after `finish`."""
        if not self._is_finishing:
            self._is_ready = is_ready
            self._wake_watchers()

    def finish(self) -> None:
        """Report for good that the services are not ready, and end all watches as soon as they have told so."""
        self.set_ready(False)
        self._is_finishing = True
        self._wake_watchers()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Return a status.

        Raises:
            NotFoundError: there is no such service.
        """
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            raise NotFoundError(f"there is no service of this name: ask for {', '.join(self._services)}, or for none")
        return _Status(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Write a status, and again whenever it changes."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            last = None
            while True:
                changed.clear()
                is_last = self._is_finishing
                if (status := self._status(request.service)) != last:
                    await context.write(_Status(status=status))
                    last = status
                if is_last:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _status(self, service: str) -> int:
        if service and service not in self._services:
            return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if self._is_ready or not service else _Status.NOT_SERVING)

    def _wake_watchers(self) -> None:
        for changed in self._watchers:
            changed.set()
