# SPDX-License-Identifier: Apache-2.0
"""The page in front of a stand-in for the HTTP API, whose answers a test sets: rare states need no gateway.

The server, its headers and the files of the page are the real ones.
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from aiohttp import web

from drawings.draw_samples import draw_sample
from search_gateway.web.http_server import HttpServer
from search_gateway.web.page_files import PageFiles

Record: TypeAlias = dict[str, Any]

CAPTION: Record = {
    "caption": "Red Handbag",
    "words": [
        {
            "text": "Red",
            "probability": 0.77,
            "alternatives": [{"text": "Maroon", "probability": 0.04}, {"text": "Pink", "probability": 0.03}],
        },
        {"text": "Handbag", "probability": 0.85, "alternatives": [{"text": "Backpack", "probability": 0.02}]},
    ],
    "log_probability": -0.54,
    "complete": True,
    "query": "red handbag",
    "query_rule": "likeliest_words",
    "paper_query": "",
    "readings": [
        {"query": "red handbag", "probability": 0.9},
        {"query": "maroon handbag", "probability": 0.05},
        {"query": "pink handbag", "probability": 0.04},
    ],
    "confidence": 0.95,
    "unsure_reason": "",
}


def finding(kind: str, *words: str, probability: float = 0.0) -> Record:
    """What a result's reason says, for programs."""
    return {"kind": kind, "words": list(words), "probability": probability}


def result(title: str, visual_score: float, semantic_score: float, **more: Any) -> Record:
    """A result as the API sends it; its picture is drawn by its title, "Red Handbag"."""
    colour, _, garment = title.partition(" ")
    return {
        "title": f"Sketch {title}",
        "url": f"https://shop.example/{colour}-{garment}".lower(),
        "image_url": "",
        "thumbnail_url": f"/v1/thumbnails/{colour}-{garment}",
        "source": "catalog",
        "width": 240,
        "height": 320,
        "visual_score": visual_score,
        "semantic_score": semantic_score,
        "score": (visual_score + semantic_score) / 2,
        "reason": f"looks like the photo ({visual_score:.2f}) and its title says {colour.lower()}, not red",
        "findings": [finding("every_word")]
        if colour == "Red"
        else [finding("other_colours", colour.lower()), finding("instead_of", "red")],
        "duplicates": [],
        "picture_words": "",
        "provider": "",
        "licence": "",
        "licence_url": "",
        "attribution": "",
        **more,
    }


_LACKS = {
    "reason": "looks like the photo (0.50) and its title lacks 'handbag'", "findings": [finding("missing", "handbag")],
}  # fmt: skip
# By the usual thresholds 0.40 and 0.50: three are shown, eight hidden by words, four by looks.
RESULTS = [
    result(
        "Red Handbag",
        0.97,
        1.0,
        reason="looks like the photo (0.97) and its title has every word; the same picture was found once more (shop)",
        duplicates=[{"source": "shop", "url": "https://other.example/bag", "title": "The same bag"}],
    ),
    result("Pink Handbag", 0.59, 0.63),
    result("Blue Handbag", 0.46, 0.62),
    *(result(f"Red {garment}", 0.55 - 0.01 * place, 0.38, **_LACKS)
      for place, garment in enumerate(("Cap", "Backpack", "Shorts", "Shoes", "Shirt", "Watch", "Socks", "Tie"))),
    *(result(f"Blue {garment}", 0.2 - 0.01 * place, 0.6)
      for place, garment in enumerate(("Cap", "Backpack", "Shorts", "Shoes"))),
]  # fmt: skip


@dataclass
class Received:
    """A search that the page asked for."""

    options: Mapping[str, str]
    photo: bytes
    content_type: str
    key: str | None


@dataclass
class FakeSearchSite:
    """Serves until `stop`; its fields may be changed at any time."""

    caption: Record = field(default_factory=lambda: dict(CAPTION))
    results: list[Record] = field(default_factory=lambda: [dict(one) for one in RESULTS])
    summary: Record = field(default_factory=dict)  # what differs from the usual summary
    info: Record = field(default_factory=dict)  # what differs from the usual information
    refusal: tuple[int, str, dict[str, str]] | None = None  # status, sentence, headers: instead of an answer
    key: str | None = None  # without it, searches are refused
    late_error: str | None = None  # after the first result
    is_cut: bool = False  # the connection breaks after the first result
    searches: list[Received] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_answer = threading.Event()  # the caption waits for it
        self.may_answer.set()
        self.may_finish = threading.Event()  # the results after the first wait for it
        self.may_finish.set()

    def start(self) -> str:
        """Start; returns the page's address."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = HttpServer("127.0.0.1:0")
        routes = [
            *PageFiles().routes(),
            web.get("/v1/info", self._info),
            web.get("/v1/thumbnails/{name}", self._thumbnail),
            web.post("/v1/search:stream", self._search),
        ]
        asyncio.run_coroutine_threadsafe(self._server.start(routes, ("localhost",)), self._loop).result(10)
        return f"http://{self._server.address}/"

    def stop(self) -> None:
        """Stop; searches that wait end."""
        self.may_answer.set()
        self.may_finish.set()
        asyncio.run_coroutine_threadsafe(self._server.close(0), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _info(self, _: web.Request) -> web.Response:
        info = {
            "model": "fashion-small",
            "providers": ["duckduckgo", "catalog"],
            "max_photo_bytes": 8 * 2**20,
            "max_photo_pixels": 25_000_000,
            "defaults": {"min_visual_score": 0.4, "min_semantic_score": 0.5, "max_results": 10},
            "version": "0.1.0",
        }
        return web.json_response(info | self.info)

    async def _thumbnail(self, request: web.Request) -> web.Response:
        colour, _, garment = request.match_info["name"].partition("-")
        file = io.BytesIO()
        draw_sample(garment, colour, np.random.default_rng(3)).save(file, "JPEG", quality=85)
        return web.Response(body=file.getvalue(), content_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def _search(self, request: web.Request) -> web.StreamResponse:
        options = dict(request.query)
        key = request.headers.get("Authorization")
        self.searches.append(Received(options, await request.read(), request.content_type, key))
        await _until(self.may_answer)
        if self.key is not None and key != f"Bearer {self.key}":
            return _problem(401, "the request has no key that is known here: send one", {})
        if self.refusal is not None:
            return _problem(*self.refusal)
        given = options.get("query_override")
        caption = self.caption
        if given is not None:
            nothing: Record = {"caption": None, "words": [], "readings": [{"query": given, "probability": 1.0}]}
            caption = {**caption, **nothing, "query": given, "query_rule": ""}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(b": hello\n\n" + _event("caption", caption))
        for place, one in enumerate(self.results):
            if place == 1:
                await _until(self.may_finish)
                if self.is_cut:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                if self.late_error is not None:
                    await response.write(_event("error", {"status": 503, "detail": self.late_error}))
                    return response
            await response.write(_event("result", one))
        num_duplicates = sum(len(one["duplicates"]) for one in self.results)
        found = len(self.results) + num_duplicates
        counts = {"found": found, "fetched": found, "kept": len(self.results), "duplicates": num_duplicates}
        nothing = dict.fromkeys(
            ("unfetchable", "undecodable", "dropped_visual", "dropped_semantic", "over_limit"), 0
        )  # fmt: skip
        summary = {
            **{name: value for name, value in caption.items() if name not in ("log_probability", "complete")},
            "photo": "",
            "word_override": {"colour": None, "thing": None},
            "no_product_probability": 0.05,
            "provider": "catalog",
            "counts": nothing | counts,
            "nearest_miss": None,
            "empty_reason": "",
            "timings_ms": {
                "preprocess": 7.2, "queue": 0.1, "encode": 24.0, "prefill": 2.4, "decode": 11.0, "query": 0.9,
                "search": 61.0, "thumbnails": 0.2, "refine": 7.0, "total": 118.0,
            },
            "degraded": [],
            "model": "fashion-small",
            "dropped": [],
            **self.summary,
        }  # fmt: skip
        await response.write(_event("summary", summary))
        return response


async def _until(event: threading.Event) -> None:
    await asyncio.to_thread(event.wait)


def _event(name: str, record: Record) -> bytes:
    return f"event: {name}\ndata: {json.dumps(record)}\n\n".encode()


def _problem(status: int, detail: str, headers: dict[str, str]) -> web.Response:
    details = {
        "type": "about:blank",
        "title": "Refused",
        "status": status,
        "detail": detail,
        "code": "",
        "request_id": "",
    }
    return web.Response(
        status=status, text=json.dumps(details), content_type="application/problem+json", headers=headers
    )
