"""A collector of OpenTelemetry in this process: an HTTP server that parses OTLP with the published messages."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.service.support import PATIENCE


def values(attributes: Any) -> dict[str, Any]:
    """Return the attributes of a message as a dictionary."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@dataclass(frozen=True)
class ReceivedSpan:
    """A span with the attributes of its resource."""

    span: Any
    resource: dict[str, Any]

    @property
    def attributes(self) -> dict[str, Any]:
        return values(self.span.attributes)


@dataclass
class Collector:
    """The spans and metrics that the collector has received."""

    port: int
    spans: list[ReceivedSpan] = field(default_factory=list)
    metrics: list[tuple[dict[str, Any], Any]] = field(default_factory=list)  # resource, metric
    arrived: threading.Condition = field(default_factory=threading.Condition)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a server that sends to this collector without delay."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "10",
            "OTEL_METRIC_EXPORT_INTERVAL": "50",
            "NO_PROXY": "127.0.0.1",
        }

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until `condition` is true, and return its value."""
        with self.arrived:
            assert self.arrived.wait_for(condition, PATIENCE), "it does not arrive"
            return condition()

    def trace(self, name: str, **attributes: Any) -> tuple[ReceivedSpan, dict[str, ReceivedSpan]]:
        """Wait for a request's span that has the given attributes. Return the span, and the children of the span by
        name.

        A span processor sends the child spans of a request before the request's own span.
        """

        def find() -> ReceivedSpan | None:
            return next(
                (
                    each
                    for each in self.spans
                    if each.span.name == name and attributes.items() <= each.attributes.items()
                ),
                None,
            )

        server: ReceivedSpan = self.wait(find)
        children = [each for each in self.spans if each.span.parent_span_id == server.span.span_id]
        return server, {child.span.name: child for child in children}

    def take(self, path: str, body: bytes) -> None:
        with self.arrived:
            if path == "/v1/traces":
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    resource = values(group.resource.attributes)
                    self.spans += [ReceivedSpan(span, resource) for scope in group.scope_spans for span in scope.spans]
            else:
                assert path == "/v1/metrics"
                for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    resource = values(group.resource.attributes)
                    self.metrics += [(resource, metric) for scope in group.scope_metrics for metric in scope.metrics]
            self.arrived.notify_all()


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(self.path, body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # the client has left

    with Server(("127.0.0.1", 0), Handler) as server:
        collector = Collector(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
