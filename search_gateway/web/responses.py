# SPDX-License-Identifier: Apache-2.0
"""What all answers over HTTP have in common: headers for browsers, the request's id, and errors as problem details."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from aiohttp import web

from search_gateway.web.local_calls import Status
from search_gateway.web.problems import CONTENT_TYPE, HttpRequestError, problem, problem_headers

_log = logging.getLogger(__name__)

REQUEST_ID_KEY = web.RequestKey("request_id", str)
_REQUEST_ID_HEADER = "X-Request-Id"
_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Scripts, styles and pictures of this server only; `blob:` and `data:` are photos that the page reads and draws itself.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def json_response(record: dict[str, Any]) -> web.Response:
    """Return an answer in JSON."""
    headers = {"Cache-Control": "no-store"}
    return web.Response(
        body=json.dumps(record, allow_nan=False).encode(), content_type="application/json", headers=headers
    )


def problem_response(details: dict[str, Any], headers: dict[str, str]) -> web.Response:
    """Return an error as problem details."""
    return web.Response(
        status=details["status"],
        body=json.dumps(details).encode(),
        headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store", **headers},
    )


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Add what every answer has; the signal `on_response_prepare` calls this."""
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "captrieve"


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, and turn what is raised into problem details."""
    given = request.headers.getall(_REQUEST_ID_HEADER, [])
    is_fit = len(given) == 1 and _WELL_FORMED_ID.fullmatch(given[0])
    request_id = request[REQUEST_ID_KEY] = given[0] if is_fit else uuid.uuid4().hex
    response: web.StreamResponse
    try:
        response = await handler(request)
    except HttpRequestError as error:
        details = problem(error.status, request_id, error.http_status)
        response = problem_response(details, {**problem_headers(error.status), **error.headers})
    except web.HTTPException as error:
        response = _of_exception(request, error, request_id)
    except Exception as error:
        _log.error("%s %s", request_id, request.path, exc_info=error)
        text = f"the server failed on this request; its operator finds why under {request_id}"
        response = problem_response(problem(Status(grpc.StatusCode.INTERNAL, text), request_id), {})
    if not response.prepared:
        response.headers[_REQUEST_ID_HEADER] = request_id
    return response


def _of_exception(request: web.Request, error: web.HTTPException, request_id: str) -> web.Response:
    """Return the answer where aiohttp refuses a request."""
    texts = {
        404: f"there is nothing at {request.path[:80]}: /openapi.json lists what there is",
        405: f"{request.method[:20]} is not possible here: use {error.headers.get('Allow', '')}",
        417: "Expect may only be 100-continue",
    }
    refusal = HttpRequestError(texts.get(error.status, error.reason), error.status)
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return problem_response(problem(refusal.status, request_id, error.status), headers)


def only_own_pages(allowed_hosts: Sequence[str] | None) -> Any:
    """Return a middleware that refuses what pages of other servers send.

    A page of any server may send a form to this one, which costs work, and by "DNS rebinding" one can make a browser
    believe that it comes from this server.

    Args:
        allowed_hosts: names under which browsers may call this server, beside addresses; None: any.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise HttpRequestError(f"pages of {origin[:80]} may not use this server", 403)
        if request.headers.get("Sec-Fetch-Site") == "cross-site" and request.method != "GET":
            raise HttpRequestError("pages of other servers may not use this one", 403)
        name = _host_name(host)
        if allowed_hosts is not None and name not in allowed_hosts and not _is_address(name):
            raise HttpRequestError(
                f"this server is not called {name[:80]!r}: use its address, or name it in CAPTRIEVE_WEB_HOSTS", 403
            )
        return await handler(request)

    return check


def _host_name(host: str) -> str:
    """Return the host of a Host header without its port."""
    return re.sub(r":\d*$", "", host).strip("[]").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
