"""A real server sends traces and metrics to a real receiver of OTLP."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.parser import text_string_to_metric_families

from tests.service.support import (
    PATIENCE,
    Served,
    assert_refused_in_one_line,
    command_line,
    environment,
    foldserve,
    receive,
    request,
    serving,
    stop,
    write_square_root,
)
from tests.service.telemetry.collector import Collector, ReceivedSpan, collecting, values

HOT, APP, INFER = "/predict", "/%70redict", "/v2/models/roots/infer"
ROWS = b'{"instances": [[1, 3], [4, 5]]}'
TENSOR = b'{"id": "t", "inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 3]}]}'
STEPS = ["parse", "queue", "run", "encode"]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # pragma: allowlist secret


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced") / "models"
    folder.mkdir()
    write_square_root(folder)
    return folder


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def served(models: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("otel")
    flags = ("--otel", "--access-log", "--log-format", "json", "--max-body", 4096)
    with serving(models, folder / "log", *flags, env=collector.env) as server:
        yield server
    assert "internal error" not in (folder / "log").read_text()


def children_in_order(found: dict[str, ReceivedSpan]) -> list[str]:
    return sorted(found, key=lambda name: found[name].span.start_time_unix_nano)


@pytest.mark.parametrize(
    ("path", "body", "route", "protocol", "rows"),
    [
        (HOT, ROWS, "/predict", "friendly", 2),
        (APP, ROWS, "/predict", "friendly", 2),
        ("/v1/models/roots/versions/1:predict?warnings=true", ROWS, "/v1/models/{model}/versions/{version}:predict",
         "friendly", 2),
        (INFER, TENSOR, "/v2/models/{model}/infer", "oip", 1),
    ],
)  # fmt: skip
def test_a_prediction_has_a_span_with_its_steps_below_the_span_of_the_client(
    path: str, body: bytes, route: str, protocol: str, rows: int, served: Served, collector: Collector
) -> None:
    identity = f"span-{re.sub('[^a-z]', '', path)}-{path == APP}"
    headers = (
        f"traceparent: 00-{TRACE}-{PARENT}-01",
        "tracestate: congo=t61rcWkgMzE",
        "Tracestate: rojo=00f067aa0ba902b7",
        "User-Agent: tester",
        f"X-Request-Id: {identity}",
    )
    assert served.send("POST", path, *headers, body=body).status == 200
    server, steps = collector.trace(f"POST {route}", **{"foldserve.request_id": identity})
    span = server.span
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == PARENT
    assert span.trace_state == "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert server.resource["service.name"] == "foldserve"
    assert (
        server.attributes.items()
        >= {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "http.route": route,
            "url.path": path.partition("?")[0],
            "url.scheme": "http",
            "client.address": "127.0.0.1",
            "server.address": "test",
            "user_agent.original": "tester",
            "foldserve.model": "roots",
            "foldserve.version": "1",
            "foldserve.protocol": protocol,
            "foldserve.rows": rows,
        }.items()
    )
    assert children_in_order(steps) == STEPS
    ordered = [steps[name].span for name in STEPS]
    assert all(step.trace_id == span.trace_id and step.kind == Span.SPAN_KIND_INTERNAL for step in ordered)
    edges = [span.start_time_unix_nano]
    edges += [edge for step in ordered for edge in (step.start_time_unix_nano, step.end_time_unix_nano)]
    assert edges == sorted(edges)
    assert edges[-1] <= span.end_time_unix_nano
    assert steps["run"].attributes == {"foldserve.batch.rows": rows}


def line_of(server: Served, identity: str) -> dict[str, Any]:
    while True:
        for line in map(json.loads, server.log.read_text().splitlines()):
            if line.get("request_id") == identity and "status" in line:
                return line
        assert server.process.poll() is None


def test_the_log_names_the_span_and_a_new_trace_begins_without_a_valid_parent(
    served: Served, collector: Collector
) -> None:
    headers = ("traceparent: 00-invalid", "tracestate: congo=1", "X-Request-Id: rootless")
    assert served.send("POST", HOT, *headers, body=ROWS).status == 200
    server, _ = collector.trace("POST /predict", **{"foldserve.request_id": "rootless"})
    assert server.span.parent_span_id == b""
    assert server.span.trace_state == ""
    line = line_of(served, "rootless")
    assert (line["trace_id"], line["span_id"]) == (server.span.trace_id.hex(), server.span.span_id.hex())


@pytest.mark.parametrize(
    ("identity", "headers", "body", "status", "reason", "steps"),
    [
        ("bad", (), b"{", 400, "invalid_input", ["parse"]),
        ("late", ("X-Request-Timeout-Ms: 0",), ROWS, 504, "deadline_passed", ["parse", "queue"]),
    ],
)
def test_a_failed_request_has_its_status_its_reason_and_the_steps_that_it_began(
    identity: str, headers: tuple[str, ...], body: bytes, status: int, reason: str, steps: list[str],
    served: Served, collector: Collector,
) -> None:  # fmt: skip
    assert served.send("POST", HOT, *headers, f"X-Request-Id: {identity}", body=body).status == status
    server, found = collector.trace("POST /predict", **{"foldserve.request_id": identity})
    assert server.attributes["http.response.status_code"] == status
    assert server.attributes["error.type"] == reason
    # OpenTelemetry requires this code for the spans of servers.
    code = Status.STATUS_CODE_ERROR if status >= 500 else Status.STATUS_CODE_UNSET
    assert server.span.status.code == code
    assert children_in_order(found) == steps


def test_requests_without_a_prediction_and_traces_that_the_client_does_not_record_are_not_sent(
    served: Served, collector: Collector
) -> None:
    unsampled = f"traceparent: 00-{'1' * 32}-{PARENT}-00"
    assert served.send("POST", HOT, unsampled, body=ROWS).status == 200
    assert served.send("GET", "/v2/health/live").status == 200
    assert served.send("POST", HOT, "X-Request-Id: last", body=ROWS).status == 200
    collector.trace("POST /predict", **{"foldserve.request_id": "last"})
    assert "1" * 32 not in {each.span.trace_id.hex() for each in collector.spans}
    assert {each.span.name for each in collector.spans if each.span.kind == Span.SPAN_KIND_SERVER} <= {
        "POST /predict",
        "POST /v1/models/{model}/versions/{version}:predict",
        "POST /v2/models/{model}/infer",
    }


def test_requests_of_one_batch_are_linked(models: Path, tmp_path: Path, collector: Collector) -> None:
    flags = ("--otel", "--max-delay", 10, "--max-batch", 2)
    with (
        serving(models, tmp_path / "log", *flags, env=collector.env) as server,
        server.connect() as first,
        server.connect() as second,
    ):
        for connection, identity in (first, "one"), (second, "two"):
            connection.sendall(request("POST", HOT, f"X-Request-Id: {identity}", body=b'{"instances": [[1, 3]]}'))
        for connection in (first, second):
            assert receive(connection).status == 200
        runs = [collector.trace("POST /predict", **{"foldserve.request_id": name})[1]["run"] for name in ("one", "two")]
    assert [run.attributes for run in runs] == [{"foldserve.batch.rows": 2}] * 2
    linked = [link.span_id for run in runs for link in run.span.links]
    assert linked in ([run.span.span_id] for run in runs)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_the_collector_gets_the_metrics_of_the_page(served: Served, collector: Collector) -> None:
    for body in (ROWS, ROWS, b"{"):
        served.send("POST", HOT, body=body)
    text = served.send("GET", "/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    wanted = {
        tuple(sorted(sample.labels.items())): sample.value
        for sample in families["foldserve_requests"].samples
    }  # fmt: skip

    def labels(point: Any) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(values(point.attributes).items()))

    def received() -> Any:
        return next(
            (
                metric
                for _, metric in reversed(collector.metrics)
                if metric.name == "foldserve_requests_total"
                and {
                    tuple(sorted(values(point.attributes).items())): point.as_double for point in metric.sum.data_points
                }
                == wanted
            ),
            None,
        )

    counter = collector.wait(received)
    assert counter.sum.is_monotonic
    assert counter.sum.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    latest = {metric.name: metric for _, metric in collector.metrics}
    histogram = latest["foldserve_request_seconds"]
    assert histogram.unit == "s"
    point = next(p for p in histogram.histogram.data_points if values(p.attributes)["protocol"] == "friendly")
    count = sum(value for labels, value in wanted.items() if ("protocol", "friendly") in labels)
    assert point.count == sum(point.bucket_counts) == count
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert point.sum > 0
    assert not point.HasField("max")
    gauge = latest["foldserve_model_provider_info"].gauge.data_points[0]
    assert (values(gauge.attributes)["provider"], gauge.as_double) == ("CPUExecutionProvider", 1)
    exported = {name.removesuffix("_total") for name in latest}
    assert {name for name, family in families.items() if family.samples} <= exported | {"python_info"}


def test_each_worker_sends_its_own_metrics(models: Path, tmp_path: Path) -> None:
    with collecting() as collector:
        with serving(models, tmp_path / "log", "--otel", "--workers", 2, env=collector.env) as server:
            for _ in range(20):
                assert server.send("POST", HOT, "Connection: close", body=ROWS).status == 200
            stop(server.process)
        latest = {
            resource["service.instance.id"]: metric
            for resource, metric in collector.metrics
            if metric.name == "foldserve_request_rows_total"
        }
        loaded = {
            resource["service.instance.id"]
            for resource, metric in collector.metrics
            if metric.name == "foldserve_model_load_seconds"
        }
    assert len(loaded) == 2
    assert sum(point.as_double for metric in latest.values() for point in metric.sum.data_points) == 40


# --- limits and settings ---------------------------------------------------------------------------------------------


def test_while_busy_the_next_trace_has_the_number_of_requests_without_one(models: Path, tmp_path: Path) -> None:
    def traced() -> list[ReceivedSpan]:
        return [each for each in collector.spans if each.span.kind == Span.SPAN_KIND_SERVER]

    def skipped() -> int:
        return sum(each.attributes.get("foldserve.skipped_traces", 0) for each in traced())

    with collecting() as collector:
        with (
            serving(models, tmp_path / "log", "--otel", "--otel-rate", 20, env=collector.env) as server,
            server.connect() as connection,
        ):
            sent = 0
            while sent < 40 or not skipped():
                connection.sendall(request("POST", HOT, body=ROWS))
                assert receive(connection).status == 200
                sent += 1
            stop(server.process)
        rest = re.search(r"the last (\d+) requests have no trace", server.log.read_text())
        assert len(traced()) + skipped() + (int(rest[1]) if rest else 0) == sent


def test_the_standard_variables_choose_the_sampler_the_name_and_the_signals(models: Path, tmp_path: Path) -> None:
    changes = {
        "OTEL_SERVICE_NAME": "scorer",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    }
    with collecting() as collector:
        with serving(models, tmp_path / "log", "--otel", env=collector.env | changes) as server:
            assert server.send("POST", HOT, body=ROWS).status == 200
            assert server.send("POST", HOT, f"traceparent: 00-{TRACE}-{PARENT}-01", body=ROWS).status == 200
            stop(server.process)
        (span,) = [each for each in collector.spans if each.span.kind == Span.SPAN_KIND_SERVER]
        assert collector.metrics == []
    assert span.span.trace_id.hex() == TRACE
    assert span.resource["service.name"] == "scorer"
    assert span.resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
def test_a_collector_that_does_not_answer_is_reported_once_and_stops_nothing(
    hangs: bool, models: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        env = Collector(listener.getsockname()[1]).env | {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        if not hangs:
            listener.close()
        with serving(models, tmp_path / "log", "--otel", env=env) as server:
            for _ in range(20):
                assert server.send("POST", HOT, body=ROWS).status == 200
            while "the collector gets no spans: " not in server.log.read_text():
                assert server.send("POST", HOT, body=ROWS).status == 200
            server.process.terminate()
            assert server.process.wait(PATIENCE) == 0
    log = server.log.read_text()
    assert log.count("the collector gets no spans") == 1
    assert "Traceback" not in log


def test_without_the_extra_the_start_is_refused_with_the_remedy(models: Path) -> None:
    done = subprocess.run(
        command_line("serve", "--models", models, "--port", 0, "--otel", program="tests.service.serve_without_otel"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert_refused_in_one_line(done, "--otel needs OpenTelemetry: pip install 'foldserve[otel]'")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL is not http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER is neither otlp nor none"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "often", "OTEL_METRIC_EXPORT_INTERVAL is not a number of milliseconds"),
    ],
)
def test_a_variable_that_can_not_be_used_refuses_the_start(name: str, value: str, text: str, models: Path) -> None:
    done = foldserve("serve", "--models", models, "--port", 0, "--otel", env={name: value})
    assert_refused_in_one_line(done, "OpenTelemetry can't be set up", text)
