"""Join the traces of OpenTelemetry that the application makes; no other file knows OpenTelemetry.

The extra `otel` brings `opentelemetry-api` alone. Without the extra, and while the application has set no tracer
provider, the pipeline is wired without traced types. A span has names, numbers and places; it never has values, nor a
database's sentence, which may quote one.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from pipeline.model import with_trace

try:
    from opentelemetry import trace as otel
except ImportError:
    otel = None

#: What the spans of the pipeline are made by.
_NAME = "pipeline"
Attributes = Mapping[str, object]


def on() -> bool:
    """Return whether the application makes traces: `opentelemetry-api` is here, and a tracer provider is set."""
    return otel is not None and not isinstance(otel.get_tracer_provider(), otel.ProxyTracerProvider)


def recording() -> bool:
    """Return whether a span is open in this thread that is recorded and exported."""
    return otel is not None and _is_exported(otel.get_current_span())


def traceparent() -> str:
    """Return the open span as W3C writes it; empty where none is recorded and exported."""
    span = otel.get_current_span()
    return parent_of(span) if _is_exported(span) else ""


def carried(payload: bytes) -> bytes:
    """Return an op as it is sent: it names the open span, where one is recorded.

    Args:
        payload: the encoded op.
    """
    parent = traceparent() if otel is not None else ""
    return with_trace(payload, parent) if parent else payload


def in_this_trace(call: Any) -> Any:
    """Return a function that does the same in another thread, within the span that is open here.

    Args:
        call: the function.
    """
    return partial(contextvars.copy_context().run, call) if otel is not None else call


@contextmanager
def open_span(name: str, kind: str, attributes: Attributes) -> Iterator[Any]:
    """Open a span for the block. An error marks it by its type; its message may quote a value.

    Args:
        name: of the span.
        kind: `PRODUCER`, `CONSUMER` or `CLIENT`.
        attributes: of the span.
    """
    options = {"record_exception": False, "set_status_on_exception": False, "attributes": attributes}
    with otel.get_tracer(_NAME).start_as_current_span(name, kind=otel.SpanKind[kind], **options) as made:
        try:
            yield made
        except BaseException as error:
            failed(made, error)
            raise


def started(
    name: str, kind: str, attributes: Attributes, *, parent: str = "", links: Iterable[str] = (), start_ns: int
) -> Any:
    """Return a span that began at a time; the caller ends it.

    Args:
        name: of the span.
        kind: as for `open_span`.
        attributes: of the span.
        parent: the span that it belongs to, as W3C writes it; empty: the open one.
        links: spans that caused it, as W3C writes them.
        start_ns: when it began, ns since 1970.
    """
    context = otel.set_span_in_context(otel.NonRecordingSpan(_context_of(parent))) if parent else None
    linked = [otel.Link(_context_of(one)) for one in links]
    tracer = otel.get_tracer(_NAME)
    return tracer.start_span(
        name, context, otel.SpanKind[kind], attributes=attributes, links=linked, start_time=start_ns
    )


def parent_of(made: Any) -> str:
    """Return a span as W3C writes it.

    Args:
        made: the span.
    """
    context = made.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def failed(made: Any, error: BaseException | None = None) -> None:
    """Mark a span as failed.

    Args:
        made: the span.
        error: gives its type, and nothing else.
    """
    if error is not None:
        made.set_attribute("error.type", type(error).__name__)
    made.set_status(otel.StatusCode.ERROR)


def _is_exported(span: Any) -> bool:
    return bool(span.is_recording() and span.get_span_context().trace_flags.sampled)


def _context_of(parent: str) -> Any:
    _, trace_id, span_id, flags = parent.split("-")
    return otel.SpanContext(int(trace_id, 16), int(span_id, 16), True, otel.TraceFlags(int(flags, 16)))
