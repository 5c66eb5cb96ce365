# SPDX-License-Identifier: Apache-2.0
"""The files of the page, read once at start."""

from __future__ import annotations

import hashlib
from pathlib import Path

from aiohttp import web

from search_gateway.web.problems import HttpRequestError

_FOLDER = Path(__file__).with_name("page")
_INDEX = "index.html"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}


class PageFiles:
    """Serves the page at / and its other files at /page/NAME.

    Args:
        folder: of the files; sub-folders are not served.
    """

    def __init__(self, folder: Path = _FOLDER):
        files = [file for file in folder.glob("*") if file.suffix in _TYPES] if folder.is_dir() else []
        self._files = {file.name: (file.read_bytes(), _TYPES[file.suffix]) for file in files}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for an application."""
        return [web.get("/", self._index), web.get("/page/{name}", self._file)]

    async def _index(self, request: web.Request) -> web.Response:
        return self._response(request, _INDEX)

    async def _file(self, request: web.Request) -> web.Response:
        return self._response(request, request.match_info["name"])

    def _response(self, request: web.Request, name: str) -> web.Response:
        if name not in self._files:
            raise HttpRequestError(f"the page has no file {name[:80]!r}", 404)
        data, media_type = self._files[name]
        tag = hashlib.sha256(data).hexdigest()[:32]
        # The browser asks each time, and gets the file only where it has changed.
        headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache", "Content-Type": media_type}
        if request.if_none_match is not None and any(one.value in (tag, "*") for one in request.if_none_match):
            return web.Response(status=304, headers={"ETag": f'"{tag}"', "Cache-Control": "no-cache"})
        return web.Response(body=data, headers=headers)
