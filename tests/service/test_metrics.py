"""Tests the metrics at /metrics of a real server, and docs/metrics.md, which documents them."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from foldserve.service import bundle
from foldserve.service.access.keys import Scope, create_key
from foldserve.service.protocols.reply import STATUS
from tests.service.mixed import write_mixed
from tests.service.support import Served, edit_manifest, flip_byte, receive, request, serving, write_square_root

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"

FRIENDLY, FIRST, INFER = "/predict", "/v1/models/roots/versions/1:predict", "/v2/models/roots/infer"

DEFAULT = ("--default-model", "roots")
LIMITS = (*DEFAULT, "--max-head", 2048, "--max-body", 4096)

Sample = tuple[str, frozenset[tuple[str, str]]]


def rows(*totals: float) -> bytes:
    """A body for `roots`, which returns the square root of the sum of a row."""
    return json.dumps({"instances": [[total, 0] for total in totals]}).encode()


def tensor(*totals: float) -> bytes:
    data = [value for total in totals for value in (total, 0)]
    inputs = [{"name": "input", "shape": [len(totals), 2], "datatype": "FP32", "data": data}]
    return json.dumps({"inputs": inputs}).encode()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: roots/1 and roots/2 are the same, roots/3 is refused, and mixed/1 has categories, a constant and a
    left-out column."""
    folder = tmp_path_factory.mktemp("metrics") / "models"
    folder.mkdir()
    whole = write_square_root(folder)
    for _ in range(2):
        last = bundle.write(folder, "roots", whole.model, lambda n: whole.manifest.model_copy(update={"version": n}))
    flip_byte(last.path / "model.onnx", 10)

    def leave_out(manifest: dict[str, Any]) -> None:
        manifest["left_out"] = ["id"]
        manifest["features"][0]["range"] = [0.5, 0.5]

    edit_manifest(write_mixed(folder).path, leave_out)
    return folder


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Served]:
    with serving(models, models.parent / "log", *LIMITS) as server:
        yield server


def families(server: Served, *headers: str) -> dict[str, Metric]:
    answer = server.send("GET", "/metrics", "Connection: close", *headers)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {family.name: family for family in text_string_to_metric_families(answer.body.decode())}


def samples(server: Served) -> Counter[Sample]:
    found: Counter[Sample] = Counter()
    for family in families(server).values():
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value  # type: ignore[assignment]
    return found


def sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def of(version: str = "2", **labels: str) -> dict[str, str]:
    return {"model": "roots", "version": version, **labels}


def post(server: Served, path: str, body: bytes, *headers: str) -> int:
    return server.send("POST", path, *headers, body=body).status


# --- the document ----------------------------------------------------------------------------------------------------


def documented(first: str) -> list[list[str]]:
    """Return the cells of the table whose first column has the heading `first`."""
    _, _, behind = DOCUMENT.read_text().partition(f"\n| {first} |")
    table, _, _ = behind.partition("\n\n")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.fixture(scope="module")
def metrics(served: Served, models: Path) -> Mapping[str, Metric]:
    """All metrics, after requests that give each metric a sample.

    The metrics of API keys and of the prediction log come from a second server.
    """
    assert post(served, FRIENDLY, rows(4), "X-Request-Id: one") == 200
    mixed = {"instances": [[1, "é", True, None, 1, None, "many"]]}
    assert post(served, "/v1/models/mixed:predict", json.dumps(mixed).encode()) == 200
    labels = {"feedback": [{"request_id": "one", "labels": [2]}]}
    assert post(served, "/v1/models/roots/feedback", json.dumps(labels).encode()) == 200
    assert post(served, FRIENDLY, b"{") == 400
    key, line = create_key("prometheus", [Scope.METRICS], None)
    file = models.parent / "keys"
    file.write_text(line)
    flags = ("--keys", file, "--prediction-log", models.parent / "predictions")
    with serving(models, models.parent / "log-keys", *DEFAULT, *flags) as guarded:
        found = families(guarded, f"X-API-Key: {key}")
        names = ("foldserve_key_requests", "foldserve_prediction_log_rows")
        return families(served) | {name: found[name] for name in names}


def test_the_document_lists_exactly_the_metrics_with_type_and_labels(metrics: Mapping[str, Metric]) -> None:
    def described(family: Metric) -> tuple[str, str, frozenset[str]]:
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        return family.name + "_total" * (family.type == "counter"), family.type, frozenset(labels)

    real = {described(family) for name, family in metrics.items() if not name.startswith("process_")}
    in_document = {
        (name.strip("`"), kind, frozenset(re.findall("`(.+?)`", labels)))
        for name, kind, labels, _ in documented("metric")
    }
    assert in_document == real


def test_the_document_lists_exactly_the_reasons_with_their_status() -> None:
    real = {
        (re.sub("(?<!^)(?=[A-Z])", "_", kind.__name__).lower(), str(status)) for kind, (status, _) in STATUS.items()
    }
    assert {(reason.strip("`"), status) for reason, status, _ in documented("reason")} == real


def test_the_queries_of_the_document_use_existing_metrics(metrics: Mapping[str, Metric]) -> None:
    real = {sample.name for family in metrics.values() for sample in family.samples}
    queries = re.findall("```promql\n(.+?)```", DOCUMENT.read_text(), re.DOTALL)
    asked = {name for query in queries for name in re.findall(r"foldserve_\w+", query)}
    assert len(queries) >= 3
    assert asked <= real


def test_names_follow_the_conventions_of_prometheus(metrics: Mapping[str, Metric]) -> None:
    for name, family in metrics.items():
        assert re.fullmatch("(foldserve|process)(_[a-z]+)+", name)
        assert family.documentation
        assert not name.endswith(("_created", "_ms", "_milliseconds", "_us", "_count", "_sum", "_bucket"))
        assert not re.search("time|latency|duration", name.replace("timestamp", "").replace("runtime", "")) or (
            name == "process_start_time_seconds"
        )
        if family.type == "counter":
            assert all(sample.name == f"{name}_total" for sample in family.samples)
        else:
            assert not name.endswith("_total")


# --- counts ----------------------------------------------------------------------------------------------------------


def test_requests_and_rows_are_counted_by_model_version_protocol_and_status(served: Served) -> None:
    before = samples(served)
    assert [post(served, FRIENDLY, rows(1, 4)) for _ in range(3)] == [200] * 3
    assert post(served, "/%70redict", rows(9)) == 200  # FastAPI's route answers this request
    assert post(served, FIRST, rows(1, 4, 9, 16)) == 200
    assert [post(served, INFER, tensor(1, 4, 9)) for _ in range(2)] == [200] * 2
    assert post(served, FRIENDLY, b"{") == 400
    assert post(served, INFER, b"{}") == 400
    assert post(served, FRIENDLY, rows(1), "X-Request-Timeout-Ms: 0") == 504
    assert post(served, FRIENDLY, rows(1, -1)) == 422
    grown = samples(served) - before
    assert {key: value for key, value in grown.items() if key[0] == "foldserve_requests_total"} == {
        sample("foldserve_requests_total", **of(protocol="friendly", status="200")): 4,
        sample("foldserve_requests_total", **of("1", protocol="friendly", status="200")): 1,
        sample("foldserve_requests_total", **of(protocol="oip", status="200")): 2,
        sample("foldserve_requests_total", **of(protocol="friendly", status="400")): 1,
        sample("foldserve_requests_total", **of(protocol="oip", status="400")): 1,
        sample("foldserve_requests_total", **of(protocol="friendly", status="504")): 1,
        sample("foldserve_requests_total", **of(protocol="friendly", status="422")): 1,
    }
    assert {key: value for key, value in grown.items() if key[0] == "foldserve_request_rows_total"} == {
        sample("foldserve_request_rows_total", **of(protocol="friendly")): 7,
        sample("foldserve_request_rows_total", **of("1", protocol="friendly")): 4,
        sample("foldserve_request_rows_total", **of(protocol="oip")): 6,
    }


def test_unseen_values_of_answered_requests_are_counted_by_feature(served: Served) -> None:
    def unseen(found: Mapping[Sample, float]) -> dict[str, float]:
        return {
            dict(labels)["feature"]: value
            for (name, labels), value in found.items()
            if name == "foldserve_unseen_categories_total" and ("model", "mixed") in labels
        }

    before = samples(served)
    # The metric exists at the start, because a rate needs a first value.
    assert unseen(before).keys() == {"town", "size", "children"}
    first, second, third = (
        [1, town, True, None, size, None, "many"]
        for town, size in zip(("Oslo", "Rome", "é"), (1, None, 7), strict=True)
    )
    assert post(served, "/v1/models/mixed:predict", json.dumps({"instances": [first, second, third]}).encode()) == 200
    assert post(served, "/v1/models/mixed:predict", json.dumps({"instances": [[*first[:-1], None]]}).encode()) == 400
    late = json.dumps({"instances": [first]}).encode()
    assert post(served, "/v1/models/mixed:predict", late, "X-Request-Timeout-Ms: 0") == 504
    codes = {"name": "input", "shape": [1, 7], "datatype": "FP32", "data": [1, 6, 1, None, None, None, 3]}
    assert post(served, "/v2/models/mixed/infer", json.dumps({"inputs": [codes]}).encode()) == 200
    assert unseen(samples(served) - before) == {"town": 3, "size": 1, "children": 1}


def test_histograms_have_the_count_and_the_sum_of_the_requests(served: Served) -> None:
    started, before = time.monotonic(), samples(served)
    for count in (1, 2, 5):
        assert post(served, FRIENDLY, rows(*[4] * count)) == 200
    assert post(served, FRIENDLY, b"{") == 400
    after, took = samples(served), time.monotonic() - started
    grown = after - before
    assert grown[sample("foldserve_request_seconds_count", **of(protocol="friendly"))] == 4
    assert grown[sample("foldserve_queue_seconds_count", **of())] == 3
    assert grown[sample("foldserve_runtime_seconds_count", **of())] == 3
    assert grown[sample("foldserve_batch_rows_count", **of())] == 3
    assert grown[sample("foldserve_batch_rows_sum", **of())] == 8
    for name, labels in (
        ("request_seconds", {"protocol": "friendly"}),
        ("queue_seconds", {}),
        ("runtime_seconds", {}),
    ):
        assert 0 < grown[sample(f"foldserve_{name}_sum", **of(**labels))] < took
    # The batches have 1, 2 and 5 rows. The buckets are cumulative: 1 batch has at most 1 row, 2 batches have at most 4
    # rows, and 3 batches at most 16.
    for bound, count in ((1.0, 1), (4.0, 2), (16.0, 3)):
        assert grown[sample("foldserve_batch_rows_bucket", **of(le=str(bound)))] == count


def test_buckets_are_cumulative(served: Served) -> None:
    assert post(served, FRIENDLY, rows(4)) == 200
    for family in families(served).values():
        if family.type == "histogram":
            series: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
            counts: dict[frozenset[tuple[str, str]], float] = {}
            for found in family.samples:
                labels = frozenset((name, value) for name, value in found.labels.items() if name != "le")
                if found.name.endswith("_bucket"):
                    series.setdefault(labels, []).append((float(found.labels["le"]), found.value))
                elif found.name.endswith("_count"):
                    counts[labels] = found.value
            assert series.keys() == counts.keys()
            for labels, buckets in series.items():
                assert buckets == sorted(buckets)
                assert [value for _, value in buckets] == sorted(value for _, value in buckets)
                assert buckets[-1] == (float("inf"), counts[labels])


def test_a_scrape_or_another_page_is_not_a_prediction_request(served: Served) -> None:
    before = samples(served)
    for path in ("/metrics", "/v2/health/ready", "/v2/models/roots", "/docs", "/nowhere"):
        served.send("GET", path)
    grown = samples(served) - before
    assert not [name for name, _ in grown if name.startswith("foldserve_")]


def test_a_model_has_its_load_time_its_parity_and_its_provider(served: Served) -> None:
    began = time.time()
    assert post(served, FIRST, rows(1)) == 200
    found = samples(served)
    for version in ("1", "2"):
        assert found[sample("foldserve_model_load_seconds", **of(version))] > 0
        assert 0 <= found[sample("foldserve_model_parity_error", **of(version))] < 1e-5
        # The references of the golden rows are not negative, so the tolerance is at least its absolute part, 1e-5.
        error, ratio = (
            found[sample(f"foldserve_model_parity_{name}", **of(version))] for name in ("error", "tolerance_ratio")
        )
        assert error / (1e-5 + 1e-4 * 3) <= ratio <= error / 1e-5
        assert found[sample("foldserve_model_provider_info", **of(version, provider="CPUExecutionProvider"))] == 1
    assert sample("foldserve_model_load_seconds", **of("3")) not in found  # version 3 is refused
    assert {key for key in found if key[0] == "foldserve_model_refused"} == {
        sample("foldserve_model_refused", **of("3"))
    }
    assert found[sample("foldserve_model_refused", **of("3"))] == 1
    assert began - 1 < found[sample("foldserve_last_request_timestamp_seconds", **of("1"))] < time.time() + 1


# --- refused requests ------------------------------------------------------------------------------------------------

REFUSED = {
    "invalid_http": b"POST /predict HTTP/1.1\r\n\r\n",
    "invalid_input": request("POST", FRIENDLY, body=b"{"),
    "unknown_model": request("POST", "/v1/models/other:predict", body=rows(1)),
    "too_large": request("POST", FRIENDLY, "Content-Length: 5000"),
    "url_too_long": request("GET", "/" + "a" * 9000),
    "unsupported_media": request("POST", FRIENDLY, "Content-Type: text/plain", body=rows(1)),
    "head_too_large": request("POST", FRIENDLY, "X: " + "x" * 3000),
    "non_finite_output": request("POST", FRIENDLY, body=rows(-1)),
    "model_not_ready": request("POST", "/v1/models/roots/versions/3:predict", body=rows(1)),
    "deadline_passed": request("POST", FRIENDLY, "X-Request-Timeout-Ms: 0", body=rows(1)),
}


def rejected(server: Served) -> Counter[str]:
    return Counter(
        {dict(labels)["reason"]: value for (name, labels), value in samples(server).items() if "rejected" in name}
    )


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_request_is_counted_once_with_its_reason(reason: str, served: Served) -> None:
    before = rejected(served)
    statuses = {text.strip("`"): int(status) for text, status, _ in documented("reason")}
    with served.connect() as connection:
        connection.sendall(REFUSED[reason])
        assert receive(connection).status == statuses[reason]
    assert rejected(served) - before == {reason: 1}


@pytest.mark.parametrize("path", ["/%70redict", "/v1/models/roots:predict", "/v2/models/roots/infer"])
@pytest.mark.parametrize("reason", ["invalid_input", "too_large"])
def test_a_refused_request_is_counted_once_on_every_route(reason: str, path: str, served: Served) -> None:
    before = rejected(served)
    assert post(served, path, b"{".ljust(5000 if reason == "too_large" else 10)) in {400, 413}
    assert rejected(served) - before == {reason: 1}


def test_a_request_that_is_too_slow_is_counted(models: Path, tmp_path: Path) -> None:
    with (
        serving(models, tmp_path / "log", *DEFAULT, "--request-timeout", 0.1) as server,
        server.connect() as connection,
    ):
        connection.sendall(b"POST ")
        assert receive(connection).status == 408
        assert rejected(server) == {"too_slow": 1}


def test_the_gauges_show_waiting_requests_and_a_full_queue_is_counted(models: Path, tmp_path: Path) -> None:
    # With the flags below, requests wait until four rows have arrived.
    flags = (*DEFAULT, "--max-delay", 10, "--max-batch", 4, "--max-queue", 4)
    queued, in_flight = sample("foldserve_queued_rows", **of()), sample("foldserve_requests_in_flight")
    with serving(models, tmp_path / "log", *flags) as server, server.connect() as waits:
        assert (samples(server)[queued], samples(server)[in_flight]) == (0, 0)
        waits.sendall(request("POST", FRIENDLY, body=rows(4, 4, 4)))
        while samples(server)[queued] == 0:
            assert server.process.poll() is None
        found = samples(server)
        assert (found[queued], found[in_flight]) == (3, 1)
        refused = server.send("POST", FRIENDLY, body=rows(4, 4))
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert rejected(server) == {"queue_full": 1}
        assert post(server, INFER, tensor(4)) == 200
        assert receive(waits).json()["predictions"] == [2, 2, 2]
        found = samples(server)
        assert (found[queued], found[in_flight]) == (0, 0)
        assert found[sample("foldserve_batch_rows_count", **of())] == 1
        assert found[sample("foldserve_batch_rows_sum", **of())] == 4
        assert found[sample("foldserve_queue_seconds_count", **of())] == 2
        assert found[sample("foldserve_requests_total", **of(protocol="friendly", status="503"))] == 1


# --- without metrics -------------------------------------------------------------------------------------------------


def test_without_metrics_the_page_is_not_found_and_predictions_are_answered(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--no-metrics", *LIMITS) as server:
        assert server.send("GET", "/metrics").status == 404
        assert post(server, FRIENDLY, rows(4)) == 200
        assert post(server, "/%70redict", rows(4)) == 200
        assert post(server, INFER, tensor(4)) == 200
        for refused in REFUSED.values():
            with server.connect() as connection:
                connection.sendall(refused)
                assert receive(connection).status >= 400
        assert post(server, FRIENDLY, rows(4)) == 200
    assert "Traceback" not in server.log.read_text()
