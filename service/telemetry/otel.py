"""Sends traces and metrics to a collector, with the OpenTelemetry SDK and OTLP over HTTP.

A trace has one span for the request, and one span for each step of the request. This module makes the spans from the
record of the request when the response is complete. The standard environment variables OTEL_* choose the collector, the
name of the service and the sampler. Only this module and `otel_metrics.py` import OpenTelemetry. Each process creates
its own exporters. The threads of the exporters never block the process.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from urllib.parse import unquote_to_bytes

from foldserve.service.errors import StartError
from foldserve.service.metrics import Metrics
from foldserve.service.telemetry.log_format import safe_url
from foldserve.service.telemetry.rate import RateLimit
from foldserve.service.telemetry.record import Batch, Record

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import Decision
    from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context
    from opentelemetry.trace.span import TraceState
    from opentelemetry.trace.status import Status, StatusCode

    from foldserve.service.telemetry.otel_metrics import MetricsExport, Report
except ImportError as error:
    raise StartError(f"--otel needs OpenTelemetry: pip install 'foldserve[otel]' ({error})") from error

log = logging.getLogger("foldserve")

# When the server stops, it waits at most this number of seconds until the last spans and metrics are sent.
_FLUSH_SECONDS = 3.0
# The largest number of traces that may be sent in one burst. Further traces are spread evenly over time.
_BURST = 10
# Twenty requests that the sampler rejects count as much as one trace, because rejecting a request takes much less time
# than sending a trace.
_UNSAMPLED_SHARE = 0.95
_PROTOCOL = "http/protobuf"


@dataclass(frozen=True)
class Exporters:
    """The exporters of one process. An exporter is None if the variables OTEL_* turn this exporter off."""

    traces: Traces | None = None
    metrics: MetricsExport | None = None

    def close(self) -> None:
        """Send all spans and metrics that are not sent yet. This call may block for some seconds."""
        _close([part.send_rest for part in (self.traces, self.metrics) if part is not None])


def start_exporters(rate: int, metrics: Metrics) -> Exporters:
    """Start the exporters that the variables OTEL_* ask for. rate: the largest number of traces per second.

    Raises `StartError` if a variable has a value that can't be used.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        log.warning("--otel has no effect: OTEL_SDK_DISABLED is true")
        return Exporters()
    try:
        resource = _resource()
        traces = Traces(rate, resource) if _wanted("TRACES") else None
        families = metrics.families()
        measured = MetricsExport(families, resource) if families is not None and _wanted("METRICS") else None
    except (ValueError, RuntimeError, OSError) as error:
        raise StartError(f"OpenTelemetry can't be set up: {error}") from error
    return Exporters(traces, measured)


def _wanted(signal: str) -> bool:
    """Return whether the variables OTEL_* ask for a signal. signal: TRACES or METRICS."""
    name = f"OTEL_{signal}_EXPORTER"
    exporter = os.environ.get(name, "").strip() or "otlp"
    if exporter == "none":
        return False
    if exporter != "otlp":
        raise ValueError(f"{name} is neither otlp nor none")
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := os.environ.get(name, "").strip():
            if protocol != _PROTOCOL:
                raise ValueError(f"{name} is not {_PROTOCOL}, whose usual port is 4318")
            break
    return True


def _resource() -> Resource:
    found = Resource.create({SERVICE_VERSION: installed_version("foldserve")})
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: "foldserve"}))
    return found


def _close(closes: Sequence[Callable[[], object]]) -> None:
    """Call all functions on separate threads, and wait for at most `_FLUSH_SECONDS`."""
    threads = [threading.Thread(target=close, daemon=True) for close in closes]
    for thread in threads:
        thread.start()
    end = time.monotonic() + _FLUSH_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        log.warning("the collector did not answer in time, so the last spans or metrics are lost")


class Traces:
    """Turns records into spans. `Traces` is a sink of records. rate: the largest number of traces per second."""

    keeps_errors = False

    def __init__(self, rate: int, resource: Resource) -> None:
        self._ids = _Ids()
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_Reporting(OTLPSpanExporter())))
        self._tracer = self._provider.get_tracer("foldserve", installed_version("foldserve"))
        self.limit = RateLimit(rate, _BURST)
        self._skipped = 0
        self._batch: Batch | None = None
        self._run: SpanContext | None = None  # the `run` span of the first trace that contains `_batch`

    def add(self, record: Record) -> None:
        """Send the spans of a request, if the request has reached a model and the sampler selects it."""
        if not record.model:
            self.limit.give_back(1)
            return
        context = _parent_context(record)
        route = _route(record)
        attributes = _attributes(record, route)
        name = f"{record.method.decode()} {route}"
        sampled = self._provider.sampler.should_sample(context, record.trace_id, name, SpanKind.SERVER, attributes)
        if sampled.decision is not Decision.RECORD_AND_SAMPLE:
            self.limit.give_back(_UNSAMPLED_SHARE)
            return
        if self._skipped:
            attributes["foldserve.skipped_traces"] = self._skipped
            self._skipped = 0
        offset = time.time_ns() - time.monotonic_ns()
        self._ids.use(record.trace_id, record.span_id)
        start = _nanoseconds(record.began, offset)
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes, start_time=start)
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        self._add_steps(record, set_span_in_context(span, context), offset)
        span.end(_nanoseconds(record.ended or record.began, offset))

    def skip(self, count: int) -> None:
        """Count requests for which no trace is sent, so that the next trace can contain their number."""
        self._skipped += count

    def report(self) -> None:
        """Do nothing, because the next trace contains the number of skipped requests."""

    def close(self) -> None:
        """Do nothing, because `Exporters.close` sends the spans that are still waiting."""

    def _add_steps(self, record: Record, context: Context, offset: int) -> None:
        for name, start, end in _steps(record):
            attributes: dict[str, int] = {}
            links: tuple[Link, ...] = ()
            if name == "run" and record.batch is not None:
                attributes["foldserve.batch.rows"] = record.batch.rows
                if record.batch == self._batch and self._run is not None:
                    links = (Link(self._run),)
            began = _nanoseconds(start, offset)
            step = self._tracer.start_span(name, context, SpanKind.INTERNAL, attributes, links, start_time=began)
            if name == "run" and not links:
                self._batch, self._run = record.batch, step.get_span_context()
            step.end(_nanoseconds(end, offset))

    def send_rest(self) -> None:
        """Send all spans that wait. This call may block."""
        if self._skipped:
            log.info("the last %d requests have no trace, because of --otel-rate", self._skipped)
        self._provider.shutdown()


def _steps(record: Record) -> Iterator[tuple[str, float, float]]:
    """Yield the name, the start and the end of each step that the request has reached."""
    times = (record.decoding, record.decoded, record.ran_from, record.ran_to, record.ended)
    for name, start, end in zip(("parse", "queue", "run", "encode"), times, times[1:], strict=False):
        if start is not None:
            yield name, start, end or record.ended or start


def _parent_context(record: Record) -> Context:
    """Return an OpenTelemetry context with the client's span, or an empty context if the client sent no span."""
    parent = record.parent
    if parent is None:
        return Context()
    state = TraceState.from_header(list(parent.state))
    flags = TraceFlags(parent.flags)
    span = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags, trace_state=state)
    return set_span_in_context(NonRecordingSpan(span), Context())


def _route(record: Record) -> str:
    """Return the path of the request, with placeholders for the model and the version."""
    path = safe_url(unquote_to_bytes(record.url.partition(b"?")[0]))
    path = re.sub(r"(?<=/models/)[^/:]+", "{model}", path)
    return re.sub(r"(?<=/versions/)[^/:]+", "{version}", path)


def _attributes(record: Record, route: str) -> dict[str, str | int]:
    """Return the attributes of a request's span: attributes of OpenTelemetry for HTTP servers, and foldserve's own.

    https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server
    """
    path, _, query = record.url.partition(b"?")
    client, _, port = record.client.rpartition(":")
    attributes: dict[str, str | int] = {
        "http.request.method": record.method.decode(),
        "http.response.status_code": record.status,
        "http.route": route,
        "url.path": safe_url(path),
        "url.scheme": "https" if record.secure else "http",
        "foldserve.model": record.model,
        "foldserve.version": record.version,
        "foldserve.protocol": record.protocol,
        "foldserve.rows": record.rows or 0,
        "foldserve.request_id": record.request_id.decode(),
    }
    if record.body_id:
        attributes["foldserve.id"] = record.body_id
    if query:
        attributes["url.query"] = safe_url(query)
    if port:
        attributes |= {"client.address": client.strip("[]"), "client.port": int(port)}
    if agent := record.headers.get(b"user-agent"):
        attributes["user_agent.original"] = safe_url(agent)
    if host := re.fullmatch(rb"(\[.+\]|[^:]+)(?::(\d+))?", record.headers.get(b"host", b"")):
        attributes["server.address"] = safe_url(host[1]).strip("[]")
        if host[2]:
            attributes["server.port"] = int(host[2])
    if record.reason:
        attributes["error.type"] = record.reason
    return attributes


def _nanoseconds(seconds: float, offset: int) -> int:
    """Convert a monotonic time in seconds to a Unix time in nanoseconds, by adding `offset` nanoseconds."""
    return int(seconds * 1e9) + offset


class _Ids(IdGenerator):
    """Generates identifiers of spans.

    After a call of `use`, the next span gets the identifiers of a record; other spans get random identifiers.
    """

    def __init__(self) -> None:
        self._trace_id = self._span_id = 0

    def use(self, trace_id: int, span_id: int) -> None:
        """Set the identifiers for the next span."""
        self._trace_id, self._span_id = trace_id, span_id

    def generate_trace_id(self) -> int:
        """Return the trace identifier of the record."""
        return self._trace_id

    def generate_span_id(self) -> int:
        """Return the span identifier of the record in the first call after `use`, and a random one in later calls."""
        span_id, self._span_id = self._span_id, 0
        return span_id or random.getrandbits(64) or 1  # nosec B311

    def is_trace_id_random(self) -> bool:
        """Return True.

        The SDK calls this method only for traces without a parent, and `Record.trace_id` makes random identifiers for
        such traces.
        """
        return True


class _Reporting(SpanExporter):
    """An exporter that writes to the log when the collector stops answering, and when the collector answers again."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self._exporter = exporter
        self._report = Report("spans", "opentelemetry.exporter.otlp.proto.http.trace_exporter")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans. OpenTelemetry's span processor calls this method on its own thread."""
        result = self._exporter.export(spans)
        self._report.note(len(spans), success=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Close the connection to the collector."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK does not annotate it

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Return whether all spans were sent. The exporter itself stores no spans."""
        return self._exporter.force_flush(timeout_millis)
