# SPDX-License-Identifier: Apache-2.0
"""Stands for an OpenTelemetry collector: receives spans over OTLP/HTTP and keeps them."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it arrived; ids are hexadecimal, `parent` is empty for a root, times are nanoseconds."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int


class OtlpCollector:
    """An HTTP server on a free port of loopback."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[ReceivedSpan] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                is_json = "json" in self.headers.get("Content-Type", "")
                collector.add(from_json(json.loads(body)) if is_json else from_protobuf(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, spans: list[ReceivedSpan]) -> None:
        """Keep spans."""
        with self._lock:
            self._spans += spans

    def spans(self, trace: str) -> list[ReceivedSpan]:
        """Return the spans of a trace that have arrived."""
        with self._lock:
            return [span for span in self._spans if span.trace == trace]

    def traces(self) -> set[str]:
        """Return the ids of all traces."""
        with self._lock:
            return {span.trace for span in self._spans}

    def wait(self, trace: str, is_complete: Callable[[list[ReceivedSpan]], bool], seconds: float) -> list[ReceivedSpan]:
        """Return the spans of a trace as soon as they are complete, or after some seconds."""
        end = time.monotonic() + seconds
        while not is_complete(self.spans(trace)) and time.monotonic() < end:
            time.sleep(0.1)
        return self.spans(trace)


def from_protobuf(body: bytes) -> list[ReceivedSpan]:
    """Read the binary encoding."""
    return [
        ReceivedSpan(
            next((one.value.string_value for one in resource.resource.attributes if one.key == "service.name"), ""),
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano,
            span.end_time_unix_nano,
        )
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def from_json(message: Any) -> list[ReceivedSpan]:
    """Read the JSON encoding, whose ids are hexadecimal."""
    return [
        ReceivedSpan(
            next(
                (
                    one["value"]["stringValue"]
                    for one in resource["resource"]["attributes"]
                    if one["key"] == "service.name"
                ),
                "",
            ),
            span["name"],
            span["traceId"].lower(),
            span["spanId"].lower(),
            span.get("parentSpanId", "").lower(),
            int(span["startTimeUnixNano"]),
            int(span["endTimeUnixNano"]),
        )
        for resource in message["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


@contextmanager
def running_collector() -> Iterator[OtlpCollector]:
    """Run a collector within the block."""
    collector = OtlpCollector()
    thread = threading.Thread(target=collector._server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector._server.shutdown()
        collector._server.server_close()
        thread.join()
