# SPDX-License-Identifier: Apache-2.0
"""Spans of requests and of what photos share; tests/e2e/test_observability.py has a whole trace with a real Triton."""

from __future__ import annotations

import contextvars
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from search_gateway.observability import tracing
from search_gateway.observability.tracing import PhotoSpans, call_span, outgoing_headers, shared_call, span, traces_url

METHOD = "/captrieve.v1.SearchService/Caption"
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLED = (("traceparent", f"00-{TRACE}-{CALLER}-01"),)


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {one.name: one for one in exporter.get_finished_spans()}


def parent_of(one: ReadableSpan) -> str:
    return trace.format_span_id(one.parent.span_id) if one.parent else ""


def id_of(one: ReadableSpan) -> str:
    return trace.format_span_id(one.context.span_id)


def test_a_call_continues_the_callers_trace_and_stages_are_its_children(exporter: InMemorySpanExporter) -> None:
    with call_span(METHOD, CALLED) as call:
        assert tracing.trace_id() == TRACE
        with span("query"):
            pass
        tracing.end_call(call, "UNAVAILABLE", 14)
    spans = by_name(exporter)
    called = spans["captrieve.v1.SearchService/Caption"]
    assert parent_of(called) == CALLER
    assert parent_of(spans["query"]) == id_of(called)
    assert called.attributes is not None
    assert called.attributes["rpc.grpc.status_code"] == 14
    assert not called.status.is_ok


def test_stages_outside_of_a_call_make_no_spans(exporter: InMemorySpanExporter) -> None:
    with span("query"):
        pass
    photo = PhotoSpans()
    photo.begin("queue")
    with shared_call([photo]):
        assert outgoing_headers() is None
    photo.end()
    assert not exporter.get_finished_spans()


def test_a_call_that_photos_share_is_in_the_trace_of_the_first_and_linked_with_the_others(
    exporter: InMemorySpanExporter,
) -> None:
    photos = []
    for _ in range(2):
        with call_span(METHOD, ()):
            photos.append(PhotoSpans())
    untraced = contextvars.Context().run(PhotoSpans)

    def engine() -> Mapping[str, str] | None:
        for photo in photos:
            photo.begin("encode")
        with shared_call([untraced, *photos]):
            headers = outgoing_headers()
        assert outgoing_headers() is None
        for photo in photos:
            photo.end()
        return headers

    headers = contextvars.Context().run(engine)
    first, second = [one for one in exporter.get_finished_spans() if one.name == "encode"]
    assert headers is not None
    assert headers["traceparent"].split("-")[1:3] == [trace.format_trace_id(first.context.trace_id), id_of(first)]
    assert first.context.trace_id != second.context.trace_id
    assert [link.context.span_id for link in second.links] == [first.context.span_id]


def test_one_span_covers_the_decode_with_the_first_step_inside(exporter: InMemorySpanExporter) -> None:
    with call_span(METHOD, ()):
        photo = PhotoSpans()
    photo.begin("decode")
    with shared_call([photo], "first_step"):
        assert outgoing_headers() is not None
    photo.end()
    spans = by_name(exporter)
    assert parent_of(spans["first_step"]) == id_of(spans["decode"])
    assert parent_of(spans["decode"]) == id_of(spans["captrieve.v1.SearchService/Caption"])


def test_without_an_exporter_the_callers_trace_still_reaches_triton() -> None:
    with call_span(METHOD, CALLED), span("encode"):
        headers = outgoing_headers()
    assert headers is not None
    assert headers["traceparent"].split("-")[1] == TRACE


def test_a_call_that_its_caller_does_not_sample_is_not_traced_in_triton() -> None:
    with call_span(METHOD, (("traceparent", f"00-{TRACE}-{CALLER}-00"),)):
        assert outgoing_headers() is None


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://host:4318/"}, "http://host:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://host/x"}, "http://host/x"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://host:4318", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://host:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_where_spans_go(environ: dict[str, str], url: str | None) -> None:
    assert traces_url(environ) == url


def test_a_missing_extra_is_told() -> None:
    program = (
        "import sys; sys.modules['opentelemetry.sdk.resources'] = None\n"
        "from search_gateway.observability.tracing import TracingError, start_tracing\n"
        "start_tracing({})()\n"
        "try: start_tracing({'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:9'})\n"
        "except TracingError as error: print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "the extra 'tracing' is not installed" in answer.stdout
