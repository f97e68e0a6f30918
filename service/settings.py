"""Defines every setting: default, limits and line of help. This module also defines the order of the sources of
settings.

Flags have the highest priority, then `FOLDSERVE_*` environment variables, then a TOML file, then the defaults below. No
other module of the service reads settings from these environment variables. This module does not depend on the parts of
the service that use a setting. This module has more than 350 lines, because every setting is defined here.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import PydanticCustomError

from foldserve.service.errors import SettingsError

PREFIX = "FOLDSERVE_"
# The file with the API key that the commands for a running server send.
KEY_FILE = PREFIX + "KEY_FILE"

# Kubernetes sets variables of this form in every container, for each service of the container's namespace. The name of
# each variable begins with the name of the service. Docker's container links set the same variables.
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_LINK_NAME = re.compile(r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)")
_LINK_VALUE = re.compile(r"(?:tcp|udp|sctp)://\S+:\d+", re.IGNORECASE)


_HOST = r"^(\*|\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]+)?$"
_ORIGIN = r"^(\*|[a-z][a-z0-9+.-]*://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]+)?)$"


def _split(value: object) -> object:
    """Split the comma-separated value of a flag or a variable."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _at_least_max_body(value: int | None, info: ValidationInfo) -> int | None:
    """Refuse a memory limit that is smaller than the largest allowed body."""
    if value is not None and value < info.data.get("max_body", 0):
        raise PydanticCustomError("less_than_max_body", "Input should be at least max_body")
    return value


class Settings(BaseModel):
    """The settings of `foldserve serve`. The description of a field appears in `--help` and in the documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    models: Annotated[Path, Field(description="folder of the models, as <name>/<version>/")] = Path("models")
    model_name: Annotated[
        str | None, Field(description="name of the only model, in --model-dir; its bundle may have another name")
    ] = None
    model_dir: Annotated[
        Path | None, Field(description="folder of one bundle, or of one model's versions, in place of --models")
    ] = None
    watch: Annotated[
        bool, Field(description="follow the folder: load new versions and unload removed ones while the server runs")
    ] = True
    rescan: Annotated[
        float, Field(gt=0, le=3600, description="seconds between two looks at the folder, besides the system's notices")
    ] = 5.0
    policy: Annotated[
        Path | None, Field(description="TOML file with the versions, labels and conditions of a swap for each model")
    ] = None
    swap_policy: Annotated[
        Literal["always", "golden", "shadow"],
        Field(description="conditions of a swap, for models without their own in --policy; shadow compares live rows"),
    ] = "golden"
    live_rows: Annotated[
        int,
        Field(ge=0, le=2**20, description="last rows of each version that stay in memory, to compare a new version"),
    ] = 512
    drift: Annotated[
        bool, Field(description="compare live rows with the training rows, at /v1/models/{model}/drift")
    ] = True
    drift_window: Annotated[
        float, Field(gt=0, le=8760, description="hours of live rows and labels that the drift and the quality cover")
    ] = 24.0
    feedback_rows: Annotated[
        int,
        Field(
            ge=0,
            le=2**24,
            description="last predicted rows of each version that wait in memory for labels at "
            "/v1/models/{model}/feedback; 0 for none",
        ),
    ] = 10_000
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free port")] = 8000
    uds: Annotated[
        Path | None,
        Field(description="Unix socket to listen on instead of --host and --port, for a proxy on this machine"),
    ] = None
    grpc_port: Annotated[
        int | None,
        Field(ge=0, le=65535, description="port of the Open Inference Protocol over gRPC, on --host; off by default"),
    ] = None
    admin_port: Annotated[
        int | None,
        Field(ge=0, le=65535, description="port of metrics, statistics and administration; --port by default"),
    ] = None
    admin_host: Annotated[str, Field(description="address to listen on with --admin-port")] = "127.0.0.1"
    tls_cert: Annotated[
        Path | None, Field(description="PEM file of the certificate; with it the server speaks TLS, without it not")
    ] = None
    tls_key: Annotated[
        Path | None, Field(description="PEM file of the certificate's private key, if --tls-cert does not have it")
    ] = None
    tls_client_ca: Annotated[
        Path | None, Field(description="PEM file of the authorities of clients, which then need a certificate")
    ] = None
    allowed_hosts: Annotated[
        tuple[Annotated[str, Field(pattern=_HOST)], ...],
        BeforeValidator(_split),
        Field(
            description="names that a Host header may have besides localhost and --host; * for any, the default where "
            "--host is not loopback"
        ),
    ] = ()
    keys: Annotated[
        tuple[Path, ...],
        BeforeValidator(_split),
        Field(description="files of API keys, made by `foldserve key`; without them every client may send requests"),
    ] = ()
    cors_origins: Annotated[
        tuple[Annotated[str, Field(pattern=_ORIGIN)], ...],
        BeforeValidator(_split),
        Field(
            description="origins of other sites whose pages may send requests, such as https://app.example; * for any"
        ),
    ] = ()
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(
            description="device that runs the models; with cuda, the server refuses to start if CUDA is not available"
        ),
    ] = "auto"
    workers: Annotated[int, Field(ge=1, le=256, description="processes that serve; each loads every model")] = 1
    threads: Annotated[
        int,
        Field(
            ge=0,
            le=1024,
            description="threads of one run on the CPU; 0: 1 for a small model, else a worker's share of the cores",
        ),
    ] = 0
    precision: Annotated[
        Literal["fp32", "tf32", "fp16", "bf16"],
        Field(
            description="precision of matrix products on CUDA; below fp32, models are verified within a wider tolerance"
        ),
    ] = "fp32"
    buckets: Annotated[
        tuple[Annotated[int, Field(ge=1, le=2**20)], ...],
        BeforeValidator(_split),
        AfterValidator(lambda sizes: tuple(sorted(set(sizes)))),
        Field(max_length=16, description="batch sizes to capture as CUDA graphs, for example 1,8,64; empty for none"),
    ] = (1, 4, 16, 64, 256, 1024)
    crossover: Annotated[
        int,
        Field(ge=0, description="with --device auto, batches of fewer rows run on the CPU even if CUDA answers"),
    ] = 0
    gpu_memory: Annotated[
        int | None,
        Field(
            ge=2**20,
            description="most bytes of GPU memory for one model's weights and tensors; no limit by default",
        ),
    ] = None
    default_model: Annotated[
        str | None, Field(description="model that /predict answers for; the only model by default")
    ] = None
    max_head: Annotated[int, Field(ge=1024, description="largest request head, in bytes")] = 64 * 2**10
    max_body: Annotated[int, Field(ge=1, description="largest request body, in bytes, compressed or not")] = 64 * 2**20
    max_memory: Annotated[
        int | None,
        AfterValidator(_at_least_max_body),
        Field(description="most bytes of all large request bodies at once; more get a 503; twice max_body by default"),
    ] = None
    max_rows: Annotated[int, Field(ge=1, description="most rows in one request")] = 100_000
    max_batch: Annotated[
        int, Field(ge=1, le=2**20, description="most rows in one run of a model; a larger request is split")
    ] = 1024
    max_queue: Annotated[
        int,
        Field(
            ge=1,
            description="most rows that wait for one model; more get a 503, and the last tenth is for requests with"
            " X-Request-Priority: high",
        ),
    ] = 65_536
    max_wait: Annotated[
        float,
        Field(
            gt=0,
            description="seconds that a request may be expected to wait; more get a 503 at once if 32 wait already, and"
            " the last tenth is for requests with X-Request-Priority: high",
        ),
    ] = 0.05
    max_delay: Annotated[
        float, Field(ge=0, le=10, description="seconds that the first request of a batch may wait for others")
    ] = 0.0
    timeout: Annotated[
        float,
        Field(gt=0, description="seconds in which a request must run, or it gets a 504; a client may ask for less"),
    ] = 10.0
    run_timeout: Annotated[
        float,
        Field(gt=0, description="seconds that one run of a model may take; after that the server exits with status 1"),
    ] = 60.0
    request_timeout: Annotated[
        float, Field(gt=0, description="seconds in which a request must arrive completely, or it gets a 408")
    ] = 60.0
    idle_timeout: Annotated[float, Field(gt=0, description="seconds after which an idle connection is closed")] = 75.0
    early_port: Annotated[
        bool,
        Field(
            description="open the port before the models are loaded; requests then get a 503, but /v2/health/live a 200"
        ),
    ] = True
    drain_delay: Annotated[
        float,
        Field(ge=0, description="seconds after SIGTERM in which the server is unready and still accepts every request"),
    ] = 0.0
    drain_timeout: Annotated[
        int,
        Field(ge=0, description="seconds that accepted requests may take to finish after SIGTERM and --drain-delay"),
    ] = 20
    self_check: Annotated[
        float,
        Field(ge=0, le=3600, description="seconds between two checks of an idle model on a golden row; 0 for none"),
    ] = 5.0
    strict_readiness: Annotated[
        bool,
        Field(
            description="/v2/health/ready is 200 only if every model is ready; otherwise, if the server takes requests"
        ),
    ] = True
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="least severe level to log")
    ] = "info"
    log_format: Annotated[
        Literal["console", "json"], Field(description="format of the log: for people, or a JSON object in each line")
    ] = "console"
    compression: Annotated[bool, Field(description="compress large responses with gzip for clients that accept it")] = (
        True
    )
    page: Annotated[bool, Field(description="serve a page at / on which people try, explain and watch the models")] = (
        True
    )
    metrics: Annotated[bool, Field(description="collect Prometheus metrics and serve them at /metrics")] = True
    access_log: Annotated[bool, Field(description="log a line for each request")] = False
    access_log_rate: Annotated[
        int,
        Field(
            ge=1,
            description="most lines a second of the access log for requests without an error, in each worker; the next"
            " line has the number of the others",
        ),
    ] = 100
    prediction_log: Annotated[
        Path | None,
        Field(
            description="folder for a sample of the predictions with their inputs, as Parquet files; off by default;"
            " needs pyarrow, from the extra score"
        ),
    ] = None
    prediction_log_share: Annotated[
        float, Field(gt=0, le=1, description="share of the requests that the prediction log has, chosen at random")
    ] = 0.01
    prediction_log_size: Annotated[
        int, Field(ge=2**20, description="most bytes of all files of the prediction log; the oldest are removed")
    ] = 2**30
    prediction_log_days: Annotated[
        float, Field(gt=0, description="days after which a file of the prediction log is removed")
    ] = 30.0
    prediction_log_interval: Annotated[
        float,
        Field(
            gt=0,
            le=3600,
            description="most seconds until a logged prediction is in a file; a killed server loses those that are not",
        ),
    ] = 60.0
    prediction_log_exclude: Annotated[
        tuple[str, ...],
        BeforeValidator(_split),
        Field(description="columns that the prediction log leaves out, such as personal data"),
    ] = ()
    otel: Annotated[
        bool,
        Field(
            description="send traces and metrics to a collector of OpenTelemetry, which the OTEL_* variables name;"
            " needs the extra otel"
        ),
    ] = False
    otel_rate: Annotated[
        int,
        Field(
            ge=1,
            description="most traces a second that each worker sends; the next trace has the number of requests that"
            " were not traced",
        ),
    ] = 10


def load(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ, config: Path | None = None) -> Settings:
    """Merge flags, environment and file. If several sources have a setting, the first of these sources decides. flags:
    the flags that the user gave.

    A variable that a Kubernetes service named `foldserve` sets is ignored.
    Raises `SettingsError` with the name of the setting and its source.
    """
    variables = {
        name.lower(): environment[PREFIX + name.upper()]
        for name in Settings.model_fields
        if PREFIX + name.upper() in environment
        and not _is_service_link(PREFIX + name.upper(), environment[PREFIX + name.upper()])
    }
    sources = {"--config": _read(config), "environment": variables, "flag": dict(flags)}
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, values in sources.items():
        merged |= values
        origin |= dict.fromkeys(values, source)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise SettingsError(f"setting {name!r} ({origin.get(name, 'default')}): {first['msg']}") from error


def unused_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence for each `FOLDSERVE_*` variable that is ignored. The server logs the returned sentences.

    Variables that Kubernetes sets for a service are skipped, unless a setting has the same name.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields] + [KEY_FILE]
    sentences = []
    for name in sorted(name for name in environment if name.startswith(PREFIX)):
        if _is_service_link(name, environment[name]):
            if name in known:
                sentences.append(f"ignored {name}: a Kubernetes service link has set it to {environment[name]!r}")
        elif name not in known:
            near = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), Settings.model_fields, n=1)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
            sentences.append(f"ignored {name}: there is no such setting{hint}")
    return sentences


def _is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes has set this variable for a service, for example FOLDSERVE_PORT=tcp://10.99.0.217:80."""
    if _LINK_NAME.fullmatch(name.removeprefix(PREFIX)):
        return True
    return name.endswith("PORT") and bool(_LINK_VALUE.fullmatch(value))


def _read(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"can't read {config}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config} is not TOML: {error}") from error
