# SPDX-License-Identifier: Apache-2.0
"""The admin port: an HTTP server for operators and their tools, not for callers. It has no authentication.

GET  /livez            the process runs
GET  /readyz           200 or 503, with the reasons
GET  /metrics          Prometheus's text format; /metrics/triton has the statistics of the Tritons

Only from this machine (in a container: from the container or its pod):

GET  /config           the settings, secrets redacted
POST /drain            take no new requests, finish those in flight
GET, PUT /log-level    {"level": "debug"}
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from search_gateway.observability import logs

_MAX_BODY_BYTES = 1024
_SECRET_NAME = re.compile(r"password|secret|token|credential|api_key$", re.I)  # of fields
_URL_SECRETS = re.compile(r"([?&][^=&\s]*(?:password|secret|token|credential)[^=&\s]*=)[^&\s]*", re.I)
_URL_CREDENTIALS = re.compile(r"(\w+://)[^/@\s]*@")
_REDACTED = "***"
_FOR_OTHER_MACHINES = ("/livez", "/readyz", "/metrics", "/metrics/triton")  # probes and Prometheus


@dataclass(frozen=True, kw_only=True)
class AdminState:
    """What the admin port tells and does.

    Attributes:
        metrics: returns the gateway's metrics.
        metrics_type: their content type.
        triton_metrics: returns those of the Tritons.
        problems: returns why the gateway takes no requests; empty if it does.
        warnings: returns what is wrong although it takes requests.
        settings: name -> value.
        drain: stops taking requests; returns when those in flight are finished.
    """

    metrics: Callable[[], bytes]
    metrics_type: str
    triton_metrics: Callable[[], Awaitable[bytes]]
    problems: Callable[[], Sequence[str]]
    warnings: Callable[[], Sequence[str]]
    settings: Mapping[str, Any]
    drain: Callable[[], Awaitable[None]]


class AdminServer:
    """Listens from the moment it is made, and answers after `start`.

    Args:
        address: HOST:PORT; port 0 takes a free one.

    Raises:
        OSError: the address cannot be used.
    """

    def __init__(self, address: str):
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        self._socket = socket.create_server((host, int(port)), family=family, dualstack_ipv6=both)
        self.address = f"{address.rpartition(':')[0]}:{self._socket.getsockname()[1]}"
        self._runner: web.AppRunner | None = None
        self._draining: asyncio.Task[None] | None = None

    async def start(self, state: AdminState) -> None:
        """Answer requests from now on."""
        self._state = state
        app = web.Application(middlewares=[_refuse_other_machines, _refuse_browsers], client_max_size=_MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/metrics/triton", self._triton_metrics),
                web.get("/config", self._config),
                web.post("/drain", self._drain),
                web.get("/log-level", self._log_level),
                web.put("/log-level", self._set_log_level),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def close(self) -> None:
        """Stop listening."""
        if self._draining is not None:
            self._draining.cancel()
        if self._runner is None:
            self._socket.close()
        else:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _readyz(self, _: web.Request) -> web.Response:
        problems = list(self._state.problems())
        answer = {"ready": not problems, "reasons": problems, "warnings": list(self._state.warnings())}
        return web.json_response(answer, status=503 if problems else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._state.metrics(), headers={"Content-Type": self._state.metrics_type})

    async def _triton_metrics(self, _: web.Request) -> web.Response:
        body = await self._state.triton_metrics()
        return web.Response(body=body, headers={"Content-Type": self._state.metrics_type})

    async def _config(self, _: web.Request) -> web.Response:
        return web.json_response({name: redacted(name, value) for name, value in self._state.settings.items()})

    async def _drain(self, _: web.Request) -> web.Response:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._state.drain())
        return web.json_response({"draining": True, "finished": self._draining.done()}, status=202)

    async def _log_level(self, _: web.Request) -> web.Response:
        return web.json_response({"level": logs.level()})

    async def _set_log_level(self, request: web.Request) -> web.Response:
        try:
            logs.set_level(json.loads(await request.text())["level"])
        except (ValueError, KeyError, TypeError):
            problem = f'send {{"level": LEVEL}} with one of {", ".join(logs.LEVELS)}'
            return web.json_response({"error": problem}, status=400)
        return web.json_response({"level": logs.level()})


def is_this_machine(peer: str | None) -> bool:
    """Whether the IP address of a peer is loopback."""
    try:
        ip = ipaddress.ip_address(peer or "")
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


@web.middleware
async def _refuse_other_machines(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse what changes or shows settings: where Prometheus reaches the port, others of its network do as well."""
    if request.path not in _FOR_OTHER_MACHINES and not is_this_machine(request.remote):
        raise web.HTTPForbidden(text=f"{request.path} is answered on the gateway's own machine only\n")
    return await handler(request)


@web.middleware
async def _refuse_browsers(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse what a web page sends: a page that an operator opens must not drain a gateway on loopback."""
    if "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") != "none":
        raise web.HTTPForbidden(text="the admin port answers no web pages\n")
    return await handler(request)


def redacted(name: str, value: Any) -> Any:
    """Return a setting's value as text, without secrets: those in its name, and user, password and tokens in a URL."""
    if _SECRET_NAME.search(name) and value:
        return _REDACTED
    if isinstance(value, (list, tuple)):
        return [redacted(name, one) for one in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = _URL_CREDENTIALS.sub(rf"\1{_REDACTED}@", str(value))
    return _URL_SECRETS.sub(rf"\1{_REDACTED}", text)
