"""`foldserve models`, `load`, `unload`, `rollback` and `promote`: shows and changes the models of a running server.

This module sends requests to the HTTP API of the server. The settings give the address of the server, and the file with
the API key. This module does not depend on the modules of the server.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

from foldserve.service.commands.http_client import Address, Response, send
from foldserve.service.errors import CommandRefused, SettingsError
from foldserve.service.settings import Settings

_SECONDS = 1.0  # seconds between the two scrapes from which rates are computed
_COMMAND_TIMEOUT = 600.0  # seconds; loading a model may take a long time
_SAMPLE = re.compile(r"^(foldserve_\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

# Maps (metric, model, version) to the sums of the samples, by the value of the label `le`.
Metrics = Mapping[tuple[str, str, str], Mapping[str, float]]


@dataclass(frozen=True)
class Server:
    """A running server. main: answers predictions. admin: answers requests for metrics, and executes commands. key: the
    API key.
    """

    main: Address
    admin: Address
    key: str | None

    def ask(self, address: Address, method: str, path: str, body: Mapping[str, Any] | None = None) -> Response:
        """Send a request with the API key."""
        headers = {} if self.key is None else {"X-API-Key": self.key}
        content = None if body is None else json.dumps(body).encode()
        return send(address, method, path, content, headers)

    def get(self, address: Address, method: str, path: str) -> Any:
        """Return the parsed answer to a request. Raises `CommandRefused` if the server answers with an error."""
        return json.loads(_require_success(self.ask(address, method, path)).body)


def find_server(settings: Settings, url: str | None, key_file: Path | None, timeout: float = 10.0) -> Server:
    """Return the server at `url`. Without a URL, return the server at the address in the settings.

    Raises `SettingsError` if the URL is not usable, or if the file of the key can't be read.
    """
    key = None if key_file is None else _read_key(key_file)
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError("the URL is not http://HOST:PORT or https://HOST:PORT")
        secure = parts.scheme == "https"
        tls = ssl.create_default_context() if secure else None
        address = Address(parts.hostname, parts.port or (443 if secure else 80), tls, timeout=timeout)
        return Server(address, address, key)
    tls = None if settings.tls_cert is None else _trusting(settings.tls_cert, settings)
    main = Address(settings.host, settings.port, tls, settings.uds, timeout)
    if settings.admin_port is None:
        return Server(main, main, key)
    return Server(main, Address(settings.admin_host, settings.admin_port, tls, timeout=timeout), key)


def _trusting(certificate: Path, settings: Settings) -> ssl.SSLContext:
    """Create a TLS context that trusts only the server's own certificate, because the client sends its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(certificate)
        if settings.tls_client_ca is not None:
            context.load_cert_chain(certificate, settings.tls_key, password="")  # nosec B106
    except OSError as error:
        raise SettingsError(f"can't use the TLS certificate {certificate}: {error.strerror}") from error
    return context


def _read_key(file: Path) -> str:
    try:
        lines = file.read_text(encoding="ascii").split()
    except OSError as error:
        raise SettingsError(f"can't read the API key in {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} has no API key") from error
    if len(lines) != 1:
        raise SettingsError(f"{file} must hold one API key and nothing else")
    return lines[0]


# --- commands --------------------------------------------------------------------------------------------------------


def change(server: Server, kind: str, name: str, version: int | None) -> None:
    """Let the server execute a command, and print the version that answers now. Raises `CommandRefused`."""
    body = {"parameters": {"version": version}} if version is not None else {}
    path = f"/v2/repository/models/{quote(name, safe='')}/{kind}"
    patient = Address(server.admin.host, server.admin.port, server.admin.tls, server.admin.uds, _COMMAND_TIMEOUT)
    _require_success(server.ask(patient, "POST", path, body))
    status = server.get(server.main, "GET", f"/v1/models/{quote(name, safe='')}")
    current = status["current"]
    print(f"{name}: " + ("no version answers" if current is None else f"version {current} answers"))
    if kind in ("rollback", "promote"):
        print(
            "The server forgets this when it restarts: also remove the other folder, or name the version in its policy."
        )


def _require_success(response: Response) -> Response:
    if response.status == 200:
        return response
    try:
        text = str(json.loads(response.body)["error"])
    except (ValueError, KeyError, TypeError):
        text = "no reason"
    raise CommandRefused(f"the server answers {response.status}: {text}")


# --- the list --------------------------------------------------------------------------------------------------------


def show(server: Server, *, as_json: bool) -> None:
    """Print every version of every model. Raises `CommandRefused`.

    Rates and latencies come from two scrapes of the metrics. Rates and latencies are left out if the server has no
    metrics, or if the key does not allow reading the metrics.
    """
    index = server.get(server.admin, "POST", "/v2/repository/index")
    before, began = _scrape(server), time.monotonic()
    rows = []
    time.sleep(_SECONDS if before else 0)
    after, seconds = _scrape(server), time.monotonic() - began
    for name in dict.fromkeys(entry["name"] for entry in index):
        status = server.get(server.main, "GET", f"/v1/models/{quote(name, safe='')}")
        rows += [_row(status, version, before, after, seconds) for version in status["versions"]]
        if not status["versions"]:
            reason = next(entry["reason"] for entry in index if entry["name"] == name)
            rows.append({"model": name, "version": None, "state": "unreadable", "why": reason})
    if as_json:
        print(json.dumps({"models": rows}, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("model", "version", "state", "provider", "rows/s", "p99 ms", "parity", ""):
        table.add_column(title, justify="right" if title in ("version", "rows/s", "p99 ms", "parity") else "left")
    for row in rows:
        table.add_row(*map(Text, _cells(row)))
    Console(highlight=False, soft_wrap=True).print(table)


def _row(
    status: Mapping[str, Any], version: Mapping[str, Any], before: Metrics, after: Metrics, seconds: float
) -> dict[str, Any]:
    key = (status["name"], str(version["version"]))
    names = [label for label, number in status["labels"].items() if number == version["version"]]
    row: dict[str, Any] = {
        "model": status["name"],
        "version": version["version"],
        "state": version["state"],
        "current": status["current"] == version["version"],
        "labels": names,
        "provider": version["provider"],
        "why": version["note"] if version["state"] == "ready" else version["why"],
    }
    if after and version["state"] == "ready":
        done = sum(after["foldserve_request_rows_total", *key].values())
        done -= sum(before["foldserve_request_rows_total", *key].values())
        row["rows_per_second"] = done / seconds
        row["p99_seconds"] = _p99(
            before["foldserve_request_seconds_bucket", *key], after["foldserve_request_seconds_bucket", *key]
        )
        row["parity"] = max(after["foldserve_model_parity_tolerance_ratio", *key].values(), default=None)
    return row


def _cells(row: Mapping[str, Any]) -> list[str]:
    def number(name: str, scale: float, form: str) -> str:
        value = row.get(name)
        return "-" if value is None else format(value * scale, form)

    marks = [*(["answers"] if row.get("current") else []), *row.get("labels", ())]
    return [
        row["model"],
        "-" if row["version"] is None else str(row["version"]),
        row["state"],
        (row.get("provider") or "-").removesuffix("ExecutionProvider"),
        number("rows_per_second", 1, ",.0f"),
        number("p99_seconds", 1e3, ".3g"),
        number("parity", 1, ".2g"),
        "; ".join([*([", ".join(marks)] if marks else []), *([row["why"]] if row.get("why") else [])]),
    ]


def _scrape(server: Server) -> Metrics:
    """Return the sums of the metrics of each model. Return an empty dict if the metrics can't be read."""
    response = server.ask(server.admin, "GET", "/metrics")
    found: defaultdict[tuple[str, str, str], defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    if response.status != 200:
        return {}
    for name, labels, value in _SAMPLE.findall(response.body.decode()):
        named = dict(_LABEL.findall(labels))
        found[name, named.get("model", ""), named.get("version", "")][named.get("le", "")] += float(value)
    return found


def _p99(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Return an upper bound of the 99th percentile of the response time, in seconds.

    The result is the smallest bucket bound that at least 99% of the requests do not exceed.

    Only the requests between the two scrapes are counted. If no request came between the scrapes, all requests since
    the start of the server are counted. Returns None if the server has received no request at all, or if the smallest
    bound is infinite.
    """
    bounds = sorted(after, key=float)
    counts = [after[bound] - before.get(bound, 0) for bound in bounds]
    if not counts or not counts[-1]:
        counts = [after[bound] for bound in bounds]
    if not counts or not counts[-1]:
        return None
    bound = next(float(b) for b, count in zip(bounds, counts, strict=True) if count >= 0.99 * counts[-1])
    return bound if bound != float("inf") else None
