# SPDX-License-Identifier: Apache-2.0
"""Traces of requests. The only module that imports OpenTelemetry.

OpenTelemetry's standard variables decide: with OTEL_EXPORTER_OTLP_ENDPOINT (or ..._TRACES_ENDPOINT) spans are exported
over OTLP/HTTP, which needs the extra `tracing`. Without it there are no spans of our own, and a caller's `traceparent`
still reaches Triton.

A caption makes a call of the step for each token. One span covers the whole decode, with one span inside it for the
first step. A call of Triton that several photos share belongs to the trace of the first one; the spans of the others
are linked with it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_tracer = trace.get_tracer("captrieve")
_propagator = TraceContextTextMapPropagator()
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# Codes that are the server's fault, by OpenTelemetry's conventions for gRPC servers.
_SERVER_ERRORS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


class TracingError(RuntimeError):
    """Traces are wanted but cannot be exported; the message is one line for the terminal."""


def traces_url(environ: Mapping[str, str]) -> str | None:
    """Return the URL to which spans are exported; None if they are not."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    traces, base = (environ.get(name, "").strip() for name in _ENDPOINTS)
    return traces or (f"{base.rstrip('/')}/v1/traces" if base else None)


def start_tracing(environ: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Export spans if the environment says where to.

    Returns:
        A function that sends the last spans; it blocks.

    Raises:
        TracingError: the extra `tracing` is not installed.
    """
    if traces_url(environ) is None:
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        names = " or ".join(_ENDPOINTS)
        raise TracingError(f"{names} is set, but the extra 'tracing' is not installed: pip install it") from error
    named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "captrieve"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


@contextlib.contextmanager
def call_span(method: str, metadata: Iterable[tuple[str, Any]]) -> Iterator[Span]:
    """Make a span for a gRPC call, a child of the caller's span; it is current within the block.

    Args:
        method: /package.Service/Method.
        metadata: of the call, which may hold `traceparent`.
    """
    carrier = {key: value for key, value in metadata if isinstance(value, str)}
    if _is_off() and "traceparent" not in carrier:
        yield trace.INVALID_SPAN
        return
    service, _, name = method.removeprefix("/").rpartition("/")
    parent = _propagator.extract(carrier)
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    with _tracer.start_as_current_span(
        f"{service}/{name}",
        context=parent,
        kind=SpanKind.SERVER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def _is_off() -> bool:
    """Whether neither this program nor one that it is part of exports spans."""
    return isinstance(_tracer, trace.ProxyTracer) and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def end_call(span: Span, code: str, number: int) -> None:
    """Write a call's gRPC status into its span."""
    span.set_attribute("rpc.grpc.status_code", number)
    if code in _SERVER_ERRORS:
        span.set_status(StatusCode.ERROR, code)


def trace_id() -> str | None:
    """Return the id of the present trace as 32 hexadecimal digits; None outside of one."""
    found = trace.get_current_span().get_span_context()
    return trace.format_trace_id(found.trace_id) if found.is_valid else None


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Make a span that is current within the block, if this request is traced."""
    if not trace.get_current_span().get_span_context().is_valid:
        yield
        return
    with _tracer.start_as_current_span(name, record_exception=False):
        yield


def outgoing_headers() -> dict[str, str] | None:
    """Return the metadata that continues the present trace in a call of Triton; None if it is not sampled."""
    if not trace.get_current_span().get_span_context().trace_flags.sampled:
        return None
    headers: dict[str, str] = {}
    _propagator.inject(headers)
    return headers


class PhotoSpans:
    """The spans of one photo's stages in the engine, children of the span that is current when this is made.

    The engine computes several photos in tasks of its own, in which no request's span is current.
    """

    def __init__(self) -> None:
        is_traced = trace.get_current_span().get_span_context().is_valid
        self._parent = context.get_current() if is_traced else None
        self._open: Span | None = None

    def begin(self, stage: str, seconds_ago: float = 0.0) -> None:
        """End the stage before, and begin this one, now or some time ago."""
        if self._parent is not None:
            when = time.time_ns() - round(seconds_ago * 1e9)
            self.end(when)
            self._open = _tracer.start_span(stage, self._parent, start_time=when)

    def end(self, when: int | None = None) -> None:
        """End the last stage, now or at a time in nanoseconds since 1970. Further calls do nothing."""
        if self._open is not None:
            self._open.end(when)
            self._open = None

    def inside(self) -> context.Context | None:
        """Return the context in which the open stage is the current span; None if there is none."""
        return None if self._open is None else trace.set_span_in_context(self._open, context.Context())


@contextlib.contextmanager
def shared_call(photos: Sequence[PhotoSpans], name: str = "") -> Iterator[None]:
    """Let a call of Triton within the block belong to the open stage of the first traced photo.

    Args:
        photos: those that share the call.
        name: of a span for the call inside the stage; empty: none.
    """
    contexts = [found for one in photos if (found := one.inside()) is not None]
    if not contexts:
        yield
        return
    spans = [_tracer.start_span(name, one) if name else trace.get_current_span(one) for one in contexts]
    for other in spans[1:]:
        other.add_link(spans[0].get_span_context())
    spans[0].set_attribute("captrieve.photos", len(photos))
    token = context.attach(trace.set_span_in_context(spans[0], contexts[0]))
    try:
        yield
    finally:
        context.detach(token)
        if name:
            for one in spans:
                one.end()
