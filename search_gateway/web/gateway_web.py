# SPDX-License-Identifier: Apache-2.0
"""All that a gateway has over HTTP: the API, what describes it, and the page."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any

from aiohttp import web

import captioner
from captioner.model_contract import ModelContract
from search_api import search_pb2_grpc
from search_gateway.config import GatewayConfig, is_loopback
from search_gateway.web.http_server import HttpServer
from search_gateway.web.local_calls import LocalCalls
from search_gateway.web.openapi import document
from search_gateway.web.page_files import PageFiles
from search_gateway.web.responses import json_response
from search_gateway.web.routes import SearchRoutes


class GatewayWeb:
    """The HTTP side of a gateway. It listens from the moment it is made, and answers after `start`.

    Args:
        config: the settings.

    Raises:
        OSError: the address cannot be used.
    """

    def __init__(self, config: GatewayConfig):
        self._config = config
        self._server = HttpServer(config.web_address)
        self.address = self._server.address

    async def start(
        self,
        search: Any,
        interceptors: Sequence[Any],
        contract: ModelContract,
        providers: Sequence[str],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Answer requests from now on.

        Args:
            search: the search service.
            interceptors: of the gRPC server.
            contract: of the model.
            providers: their names.
            tls: for HTTPS; None: HTTP.
        """
        config = self._config
        calls = LocalCalls(interceptors)
        search_pb2_grpc.add_SearchServiceServicer_to_server(search, calls)  # type: ignore[no-untyped-call]
        info = {
            "model": contract.model,
            "providers": list(providers),
            "max_photo_bytes": config.max_photo_bytes,
            "max_photo_pixels": config.max_photo_pixels,
            "defaults": {
                "min_visual_score": config.min_visual_score,
                "min_semantic_score": config.min_semantic_score,
                "max_results": config.default_max_results,
            },
            "version": captioner.__version__,
        }

        async def tell(_: web.Request) -> web.Response:
            return json_response(info)

        openapi = document(config, contract)

        async def describe(_: web.Request) -> web.Response:
            return json_response(openapi)

        search_routes = SearchRoutes(calls, config.max_photo_bytes)
        routes = [
            *search_routes.routes(),
            *PageFiles().routes(),
            web.get("/v1/info", tell),
            web.get("/openapi.json", describe),
        ]
        hosts = ("localhost", *config.web_hosts) if is_loopback(self.address) else None
        await self._server.start(routes, hosts, tls)

    async def close(self, drain_seconds: float) -> None:
        """Take no new requests, let those in progress finish for so long, and end the others."""
        await self._server.close(drain_seconds)
