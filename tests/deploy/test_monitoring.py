"""promtool checks the files of deploy/prometheus and deploy/grafana.

A real Prometheus loads the shipped files, and scrapes a real service.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.support import ROOT, RULES, SERVICES, until
from tests.service.support import PATIENCE, Served, serving, stop, write_square_root

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
CONFIG = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
DASHBOARD = json.loads((GRAFANA / "dashboards" / "foldserve.json").read_text())

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed: apt-get install prometheus",
)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- promtool --------------------------------------------------------------------------------------------------------


@needs_prometheus
@pytest.mark.parametrize(("kind", "file"), [("config", "prometheus.yml"), ("rules", "rules.yml")])
def test_promtool_accepts_the_file(kind: str, file: str) -> None:
    done = promtool("check", kind, "--lint-fatal", PROMETHEUS / file)
    assert done.returncode == 0, done.stderr


@needs_prometheus
def test_each_alert_fires_only_when_it_should_and_has_its_text() -> None:
    cases = Path(__file__).parent / "alerts.test.yml"
    done = promtool("test", "rules", cases)
    assert done.returncode == 0, done.stdout + done.stderr
    fired = {
        case["alertname"]
        for test in yaml.safe_load(cases.read_text())["tests"]
        for case in test["alert_rule_test"]
        if "exp_alerts" in case
    }
    assert fired == {rule["alert"] for rule in RULES}


@needs_prometheus
def test_a_rollout_in_kubernetes_raises_no_alert(tmp_path: Path) -> None:
    """Each pod is a server of its own. A rollout replaces the pods, and the old pods never come back."""
    resource = yaml.safe_load((ROOT / "deploy/kubernetes/components/monitoring/prometheusrule.yaml").read_text())
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(resource["spec"]))
    series = [
        {"series": 'up{job="foldserve", server="old"}', "values": "1x20 stale _x300"},
        {"series": 'up{job="foldserve", server="new"}', "values": "_x15 1x305"},
    ]
    silent = [{"eval_time": time, "alertname": "FoldserveNotReady"} for time in ("5m", "8m", "60m")]
    case = {"interval": "15s", "input_series": series, "alert_rule_test": silent}
    cases = tmp_path / "rollout.test.yml"
    cases.write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": [case]}))
    done = promtool("test", "rules", cases)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_on_deployment_has_every_alert() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert re.findall(r"^\| `(Foldserve\w+)` \|", page, re.M) == [rule["alert"] for rule in RULES]


# --- names -----------------------------------------------------------------------------------------------------------


def panels() -> list[dict[str, Any]]:
    return DASHBOARD["panels"]


QUERIES = {f"{panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]}


def test_prometheus_scrapes_the_servers_of_compose_on_their_port() -> None:
    (scraped,) = (job for job in CONFIG["scrape_configs"] if job["job_name"] == "foldserve")
    (found,) = scraped["dns_sd_configs"]
    assert set(found["names"]) == {name for name in SERVICES if name.startswith("foldserve")}
    for name in found["names"]:
        assert SERVICES[name]["ports"][0].endswith(f":{found['port']}")
    assert all((PROMETHEUS / file).is_file() for file in CONFIG["rule_files"])
    assert f"--config.file=/etc/prometheus/{PROMETHEUS.name}.yml" in SERVICES["prometheus"]["command"]
    assert "./deploy/prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]


def test_grafana_asks_prometheus_and_finds_the_dashboard() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
    assert SERVICES[host]["ports"][0].endswith(f":{port}")
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/foldserve.yml").read_text())["providers"]
    mounted = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    for kind in ("datasources", "dashboards"):
        assert mounted[f"/etc/grafana/provisioning/{kind}"] == f"./deploy/grafana/provisioning/{kind}"
    assert mounted[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/foldserve.json"
    used = [thing["datasource"] for panel in panels() for thing in (panel, *panel["targets"])]
    used += [variable["datasource"] for variable in DASHBOARD["templating"]["list"]]
    assert all(one == {"type": source["type"], "uid": source["uid"]} for one in used)
    assert source["jsonData"]["timeInterval"] == CONFIG["global"]["scrape_interval"]


def test_panels_do_not_overlap_and_have_unique_ids() -> None:
    taken = [
        (x, y)
        for position in (panel["gridPos"] for panel in panels())
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_the_dashboard_shows_all_metrics_except_a_few() -> None:
    documented = set(re.findall(r"^\| `(foldserve_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    asked = " ".join(QUERIES.values())
    shown = {name for name in documented if re.search(rf"{name}(_bucket|_sum|_count)?\b", asked)}
    # The dashboard does not show the metrics in the set below. `foldserve_key_requests_total` exists only on a server
    # with API keys. An alert shows `foldserve_model_refused`. `foldserve_prediction_log_rows_total` exists only on a
    # server with a prediction log.
    assert documented - shown == {
        "foldserve_key_requests_total",
        "foldserve_model_refused",
        "foldserve_prediction_log_rows_total",
        "foldserve_unseen_categories_total",
        "foldserve_out_of_range_total",
        "foldserve_ignored_values_total",
        "foldserve_filled_constants_total",
        "foldserve_last_request_timestamp_seconds",
        "foldserve_drift_missing_ratio",
        "foldserve_predicted_label_ratio",
        "foldserve_prediction_confidence",
        "foldserve_prediction_mean",
        "foldserve_prediction_deviation",
        "foldserve_feedback_total",
    }
    assert set(re.findall(r"\$(\w+)", asked)) == {"__rate_interval"} | {
        variable["name"] for variable in DASHBOARD["templating"]["list"]
    }


# --- a real Prometheus -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    client: httpx.Client

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def values(self, query: str) -> list[float]:
        """Return the value of each series of an instant query, for all models and instances."""
        for name in ("model", "instance"):
            query = query.replace(f"${name}", ".*")
        found = self.ask("query", query=query.replace("$__rate_interval", "10s"))
        return [float(series["value"][1]) for series in found["result"]]


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Run Prometheus with the files of deploy/ on a free port.

    Prometheus scrapes the address `target`, and asks no name server.
    """
    config = json.loads(json.dumps(CONFIG))
    config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "500ms")
    for job in config["scrape_configs"]:
        if job.pop("dns_sd_configs", None):
            job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(PROMETHEUS / "rules.yml", folder)
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        hung = threading.Timer(PATIENCE, process.kill)
        hung.start()
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r'msg="Listening on" address=([\d.:]+)', line):
                    break
            else:
                raise AssertionError("".join(lines))
            # A full pipe would block Prometheus, so a thread reads the pipe to its end.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            hung.cancel()
            with httpx.Client(base_url=f"http://{found[1]}", timeout=PATIENCE) as client:
                until(lambda: client.get("/-/ready").status_code == 200)
                yield Prometheus(client)
        finally:
            hung.cancel()
            stop(process)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of `roots`, which fails for a negative input."""
    folder = tmp_path_factory.mktemp("monitored")
    (folder / "models").mkdir()
    write_square_root(folder / "models")
    with serving(folder / "models", folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def watching(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    target = served.url.removeprefix("http://")
    with prometheus(tmp_path_factory.mktemp("prometheus"), target) as running:
        yield running


def send(server: Served) -> dict[str, int]:
    """Send requests that succeed and requests that fail; return the count of each status."""
    good, negative = b'{"instances": [[1, 3], [4, 5]]}', b'{"instances": [[-1, 0]]}'
    for path, headers, body, status in (
        ("/predict", ("X-Request-Id: labelled",), good, 200),
        ("/v1/models/roots:predict", (), good, 200),
        ("/predict", (), b"{", 400),
        ("/predict", (), negative, 422),
        ("/predict", ("X-Request-Timeout-Ms: 0",), good, 504),
        ("/v1/models/other:predict", (), good, 404),
    ):
        assert server.send("POST", path, *headers, body=body).status == status
    labels = b'{"feedback": [{"request_id": "labelled", "labels": [2, 3]}]}'
    assert server.send("POST", "/v1/models/roots/feedback", body=labels).status == 200
    return {"200": 2, "400": 1, "422": 1, "504": 1}


@needs_prometheus
def test_prometheus_counts_the_requests(served: Served, watching: Prometheus) -> None:
    def counted() -> dict[str, float]:
        found = watching.ask("query", query="sum by (status) (foldserve_requests_total)")["result"]
        return {series["metric"]["status"]: float(series["value"][1]) for series in found}

    until(lambda: watching.values('up{job="foldserve"}') == [1])
    began = {"200": 0, "400": 0, "422": 0, "504": 0} | counted()
    sent = [send(served) for _ in range(3)]
    wanted = {status: count + sum(one[status] for one in sent) for status, count in began.items()}
    until(lambda: counted() == wanted)


@needs_prometheus
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_each_query_of_the_dashboard_returns_numbers(query: str, served: Served, watching: Prometheus) -> None:
    def numbers() -> bool:
        send(served)  # without new requests, the rate would be 0
        values = watching.values(query)
        return bool(values) and all(map(math.isfinite, values))

    until(numbers)


@needs_prometheus
def test_the_dashboard_shows_the_share_of_errors(served: Served, watching: Prometheus) -> None:
    (share,) = (target["expr"] for panel in panels() if panel["title"] == "Errors" for target in panel["targets"])
    # One of five requests fails, with 504. The panel does not count a 422, which a row gets if its output overflows.
    until(lambda: send(served) and any(abs(value - 0.2) < 0.1 for value in watching.values(share)))


@needs_prometheus
@pytest.mark.parametrize("variable", DASHBOARD["templating"]["list"], ids=lambda variable: variable["name"])
def test_the_variables_of_the_dashboard_list_the_models_and_servers(
    variable: dict[str, Any], served: Served, watching: Prometheus
) -> None:
    series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
    expected = {"model": ["roots"], "instance": [served.url.removeprefix("http://")]}
    until(lambda: watching.ask(f"label/{label}/values", **{"match[]": series}) == expected[variable["name"]])


@needs_prometheus
def test_prometheus_accepts_the_queries_of_the_metrics_page(served: Served, watching: Prometheus) -> None:
    send(served)
    page = (ROOT / "docs" / "metrics.md").read_text()
    blocks = re.findall("```promql\n(.+?)```", page, re.DOTALL)
    # A line without indentation starts a new query.
    queries = list(itertools.chain.from_iterable(re.split(r"\n(?=\S)", block.strip()) for block in blocks))
    assert len(queries) >= 5
    for query in queries:
        watching.ask("query", query=query)


@needs_prometheus
def test_each_rule_is_evaluated_and_does_not_fire_on_a_healthy_server(watching: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in watching.ask("rules")["groups"] for rule in group["rules"]]

    assert [rule["name"] for rule in rules()] == [rule["alert"] for rule in RULES]
    until(lambda: all(rule["health"] == "ok" for rule in rules()))
    until(lambda: {"FoldserveNotReady", "FoldserveParity"} <= {r["name"] for r in rules() if r["state"] == "inactive"})


@needs_prometheus
def test_a_stopped_server_makes_the_alert_pending(tmp_path: Path) -> None:
    def state() -> str:
        rules = [rule for group in watcher.ask("rules")["groups"] for rule in group["rules"]]
        return next(rule["state"] for rule in rules if rule["name"] == "FoldserveNotReady")

    (tmp_path / "models").mkdir()
    write_square_root(tmp_path / "models")
    with (
        serving(tmp_path / "models", tmp_path / "log") as server,
        prometheus(tmp_path, server.url.removeprefix("http://")) as watcher,
    ):
        until(lambda: watcher.values('up{job="foldserve"}') == [1] and state() == "inactive")
        server.process.terminate()
        until(lambda: state() == "pending")


@needs_prometheus
def test_the_health_check_of_prometheus_asks_for_an_existing_page(watching: Prometheus) -> None:
    url = SERVICES["prometheus"]["healthcheck"]["test"][-1]
    assert watching.client.head(url.removeprefix("http://127.0.0.1:9090")).status_code == 200
