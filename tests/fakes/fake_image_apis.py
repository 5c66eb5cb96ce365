# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Brave, SearXNG and Openverse: TLS on loopback, answers written by hand from their documentation."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import trustme
from aiohttp import web

KEY = "BSA-a-secret-key"

# api-dashboard.search.brave.com/app/documentation/image-search/responses
BRAVE = {
    "type": "images",
    "query": {"original": "blue shirt", "altered": None, "spellcheck_off": True, "show_strict_warning": False},
    "results": [
        {
            "type": "image_result",
            "title": f"Blue shirt {number}",
            "url": f"https://shop.example/shirts/{number}",
            "source": "shop.example",
            "page_fetched": "2026-03-04T05:06:07Z",
            "thumbnail": {"src": f"https://imgs.search.brave.com/small/{number}", "width": 500, "height": 400},
            "properties": {
                "url": f"https://shop.example/pictures/{number}.jpg",
                "placeholder": f"https://imgs.search.brave.com/tiny/{number}",
                "width": 1500,
                "height": 1200,
            },
            "meta_url": {"scheme": "https", "netloc": "shop.example", "hostname": "shop.example", "path": "/"},
            "confidence": "high",
        }
        for number in range(3)
    ],
    "extra": {"might_be_offensive": False},
}

# docs.searxng.org/dev/search_api.html; fields of images: docs.searxng.org/dev/templates.html
SEARXNG = {
    "query": "blue shirt",
    "number_of_results": 0,
    "results": [
        {
            "url": f"https://shop.example/shirts/{number}",
            "title": f"Blue shirt {number}",
            "content": "",
            "img_src": f"https://shop.example/pictures/{number}.jpg",
            "thumbnail_src": f"https://tse1.mm.bing.net/th?id=OIP.{number}",
            "resolution": "1500 x 1200",
            "source": "shop.example",
            "engine": "bing images",
            "template": "images.html",
            "parsed_url": ["https", "shop.example", f"/shirts/{number}", "", "", ""],
            "engines": ["bing images"],
            "positions": [number + 1],
            "score": 1.0,
            "category": "images",
        }
        for number in range(3)
    ],
    "answers": [],
    "corrections": [],
    "infoboxes": [],
    "suggestions": [],
    "unresponsive_engines": [],
}

# api.openverse.org/v1/ (operation images_search)
OPENVERSE = {
    "result_count": 3,
    "page_count": 1,
    "page_size": 20,
    "page": 1,
    "results": [
        {
            "id": f"36537842-b067-4ca0-ad67-e00ff2e06b2{number}",
            "title": f"Blue shirt {number}",
            "indexed_on": "2023-01-01T00:00:00.000000Z",
            "foreign_landing_url": f"https://www.flickr.com/photos/someone/{number}",
            "url": f"https://live.staticflickr.com/{number}_b.jpg",
            "creator": "Someone",
            "creator_url": "https://www.flickr.com/photos/someone",
            "license": "by-sa",
            "license_version": "2.0",
            "license_url": "https://creativecommons.org/licenses/by-sa/2.0/",
            "provider": "flickr",
            "source": "flickr",
            "category": None,
            "filesize": None,
            "filetype": None,
            "tags": [],
            "attribution": f'"Blue shirt {number}" by Someone is licensed under CC BY-SA 2.0.',
            "fields_matched": ["title"],
            "mature": False,
            "height": 1200,
            "width": 1500,
            "thumbnail": f"https://api.openverse.org/v1/images/36537842-b067-4ca0-ad67-e00ff2e06b2{number}/thumb/",
            "detail_url": "https://api.openverse.org/v1/images/36537842/",
            "related_url": "https://api.openverse.org/v1/images/36537842/related/",
            "unstable__sensitivity": [],
        }
        for number in range(3)
    ],
}

ANSWERS: Mapping[str, Any] = {"brave": BRAVE, "searxng": SEARXNG, "openverse": OPENVERSE}
_PATHS = {"brave": "/res/v1/images/search", "searxng": "/search", "openverse": "/v1/images/"}


def answer_of(name: str) -> Any:
    """An answer that a test may change."""
    return copy.deepcopy(ANSWERS[name])


@dataclass
class Reply:
    """What the server does with a request.

    Attributes:
        raw: parts of what is sent instead of a proper answer, before the connection ends.
        drip_seconds: before each of these parts.
        body: of the answer; a record is sent as JSON, None is what the documentation shows.
        wait_seconds: before the answer.
        cut_at: number of bytes after which the connection breaks.
    """

    body: Any = None
    status: int = 200
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_seconds: float = 0.0
    cut_at: int | None = None
    is_gzip: bool = False
    raw: Iterable[bytes] | None = None
    drip_seconds: float = 0.0


class FakeImageApis:
    """All three APIs on one address; `reply` and `replies` say what they do."""

    def __init__(self) -> None:
        self.reply = Reply()  # of every API without one of its own
        self.replies: dict[str, Reply] = {}
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []  # API, parameters, headers
        self._authority = trustme.CA()
        self._folder = tempfile.TemporaryDirectory()
        self.ca_file = str(Path(self._folder.name) / "ca.pem")
        self._authority.cert_pem.write_to_path(self.ca_file)
        self.url = ""

    def __enter__(self) -> FakeImageApis:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._folder.cleanup()

    def reset(self) -> None:
        """Forget requests, and answer as documented."""
        self.reply, self.replies, self.requests = Reply(), {}, []

    def settings(self, *names: str) -> dict[str, Any]:
        """The gateway's settings for these providers."""
        return {
            "providers": names,
            "provider_ca_file": self.ca_file,
            "brave_url": self.url,
            "brave_api_key": KEY,
            "brave_min_interval_seconds": 0.0,
            "searxng_url": self.url,
            "openverse_url": self.url,
        }

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{listening.getsockname()[1]}"
        app = web.Application()
        for name, path in _PATHS.items():
            app.router.add_get(path, self._handler(name))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listening, ssl_context=context).start()
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    def _handler(self, name: str) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.requests.append((name, dict(request.query), dict(request.headers)))
            reply = self.replies.get(name, self.reply)
            if reply.wait_seconds:
                await asyncio.sleep(reply.wait_seconds)
            if reply.raw is not None:
                return await _sent_raw(request, reply)
            value = ANSWERS[name] if reply.body is None else reply.body
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            headers = {"Content-Type": reply.kind, **reply.headers}
            if reply.is_gzip:
                data, headers["Content-Encoding"] = gzip.compress(data), "gzip"
            if reply.cut_at is None:
                return web.Response(body=data, status=reply.status, headers=headers)
            response = web.StreamResponse(status=reply.status, headers={**headers, "Content-Length": str(len(data))})
            await response.prepare(request)
            await response.write(data[: reply.cut_at])
            assert request.transport is not None
            request.transport.abort()
            return response

        return handle


async def _sent_raw(request: web.Request, reply: Reply) -> web.StreamResponse:
    transport = request.transport
    assert transport is not None
    for part in reply.raw or ():
        await asyncio.sleep(reply.drip_seconds)
        if transport.is_closing():
            break
        transport.write(part)
    transport.close()
    return web.Response()
