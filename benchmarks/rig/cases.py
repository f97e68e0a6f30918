"""Lists the parts of the comparison of servers: contenders, their protocols, loads, and targets for foldserve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MODEL = "models/digits/1/model.onnx"


@dataclass(frozen=True)
class Load:
    """A load: the rows of each request, and the number of connections."""

    name: str
    rows: int
    connections: int


ROW = Load("row", 1, 32)
SINGLE = Load("alone", 1, 1)
TABLE = Load("table", 1024, 4)
JSON_LOADS = (ROW, SINGLE, TABLE)


@dataclass(frozen=True)
class Endpoint:
    """One protocol of a contender, as the benchmark measures it.

    In `path`, {index} stands for the position of the load's number of rows in `bodies.COUNTS`.
    """

    protocol: Literal["json", "oip", "binary"]
    path: str
    loads: tuple[Load, ...] = JSON_LOADS
    predicts: bool = True  # False for a server of constant responses, which has no model


@dataclass(frozen=True)
class Contender:
    """A server.

    In `command`, {python} stands for the Python of the server's environment, and {modules} for the folder of its npm
    packages. {port} and {spare} stand for free ports.
    """

    name: str
    title: str
    command: tuple[str, ...]
    ready: str
    endpoints: tuple[Endpoint, ...]
    requirements: str | None = None  # None if the server runs in the environment of foldserve
    modules: str | None = None  # the folder in contenders/ whose package.json names the npm packages of the contender


OIP = "/v2/models/digits/infer"
OIP_ENDPOINTS = (Endpoint("oip", OIP), Endpoint("binary", OIP, (ROW, TABLE)))
PREDICT = Endpoint("json", "/predict")
INFERENCE = Endpoint("json", "/inference")
FOLDSERVE = ("{python}", "-m", "foldserve.service", "serve", "--models", "models", "--port", "{port}")
FASTIFY = ("node", "benchmarks/contenders/serve_fastify.mjs", "{port}", MODEL, "{modules}")


def _constant(name: str, title: str, script: str) -> Contender:
    """Return a server of constant responses. A server that also runs the model can't reach a higher rate than this
    server.
    """
    command = ("{python}", f"benchmarks/contenders/{script}.py", "{port}", "{sizes}")
    return Contender(name, title, command, "/0", (Endpoint("json", "/{index}", predicts=False),))


def _other(name: str, title: str, ready: str, endpoints: tuple[Endpoint, ...], *arguments: str) -> Contender:
    """Return a server of another project.

    The script of the contender is contenders/serve_X.py, where X is the contender's name up to its first hyphen.
    """
    project = name.partition("-")[0]
    command = ("{python}", f"benchmarks/contenders/serve_{project}.py", "{port}", MODEL, *arguments)
    return Contender(name, title, command, ready, endpoints, requirements=project)


CONTENDERS = (
    Contender("foldserve", "foldserve", FOLDSERVE, "/v2/health/ready", (PREDICT, *OIP_ENDPOINTS)),
    _constant("protocol", "asyncio protocol, constant response", "serve_protocol"),
    _constant("nginx", "nginx, constant response", "serve_nginx"),
    _constant("constant", "uvicorn, constant response", "serve_constant"),
    _other("fastapi", "plain FastAPI", "/health", (PREDICT,)),
    _other("litserve", "LitServe", "/health", (PREDICT,)),
    _other("mosec", "mosec", "/", (INFERENCE,), "json"),
    _other("mosec-single", "mosec, no batching", "/", (INFERENCE,), "single"),
    _other("mosec-msgspec", "mosec, JSON with msgspec", "/", (INFERENCE,), "msgspec"),
    _other("granian", "FastAPI on granian", "/health", (PREDICT,), "fastapi"),
    _other("granian-rsgi", "granian, RSGI", "/health", (PREDICT,), "rsgi"),
    _other("robyn", "Robyn", "/health", (PREDICT,)),
    Contender("fastify", "Fastify, onnxruntime-node", FASTIFY, "/health", (PREDICT,), modules="fastify"),
    _other("bentoml", "BentoML", "/readyz", (PREDICT,)),
    _other("mlserver", "MLServer", "/v2/models/digits/ready", (Endpoint("oip", OIP),), "{spare}"),
    _other("triton", "Triton (pytriton)", "/v2/models/digits/ready", OIP_ENDPOINTS),
)
BARE = "bare"  # `bare` is not a `Contender`, because it is a session without a server
BARE_TITLE = "ONNX Runtime alone"
NAMES = (*(contender.name for contender in CONTENDERS), BARE)


@dataclass(frozen=True)
class Target:
    """A target for the ratio of one figure between two cases."""

    text: str
    ours: str
    theirs: str
    bound: float
    figure: Literal["rows_per_second", "p50_ms"] = "rows_per_second"
    at_least: bool = True


def case(contender: str, protocol: str, load: Load) -> str:
    """Return the name of a case: a contender, a protocol and a load."""
    return f"{contender}/{protocol}/{load.name}"


OURS = {load: case("foldserve", "json", load) for load in JSON_LOADS}
OURS_OIP_ROW, OURS_OIP = case("foldserve", "oip", ROW), case("foldserve", "oip", TABLE)
OURS_BINARY_ROW, OURS_BINARY = case("foldserve", "binary", ROW), case("foldserve", "binary", TABLE)


def _ahead(name: str, title: str) -> tuple[Target, Target]:
    """Return two targets in comparison with another server: foldserve has a higher rate and a lower latency."""
    return (
        Target(f"1 row, 32 connections: rows/s ÷ {title}", OURS[ROW], case(name, "json", ROW), 1),
        Target(
            f"1 row, 1 connection: p50 ÷ {title}",
            OURS[SINGLE],
            case(name, "json", SINGLE),
            1,
            figure="p50_ms",
            at_least=False,
        ),
    )


TARGETS = (
    Target(
        "1 row, 32 connections: rows/s ÷ asyncio protocol, constant response",
        OURS[ROW],
        case("protocol", "json", ROW),
        0.35,
    ),
    Target(
        "1 row, 1 connection: p50 ÷ asyncio protocol, constant response",
        OURS[SINGLE],
        case("protocol", "json", SINGLE),
        3.5,
        figure="p50_ms",
        at_least=False,
    ),
    Target("1 row, 32 connections: OIP's rows/s ÷ friendly", OURS_OIP_ROW, OURS[ROW], 0.85),
    Target("1 row, 32 connections: rows/s, binary ÷ JSON", OURS_BINARY_ROW, OURS[ROW], 1.3),
    Target("1,024 rows: rows/s, binary ÷ JSON", OURS_BINARY, OURS[TABLE], 1.3),
    Target("1,024 rows, binary: rows/s ÷ ONNX Runtime alone", OURS_BINARY, case(BARE, "none", TABLE), 0.5),
    *_ahead("mosec-msgspec", "mosec, JSON with msgspec"),
    *_ahead("granian", "FastAPI on granian"),
    *_ahead("fastify", "Fastify, onnxruntime-node"),
    Target("1 row, 32 connections: rows/s ÷ plain FastAPI", OURS[ROW], case("fastapi", "json", ROW), 5),
    Target("1 row, 32 connections: rows/s ÷ LitServe", OURS[ROW], case("litserve", "json", ROW), 15),
    Target("1 row, 32 connections: rows/s ÷ mosec", OURS[ROW], case("mosec", "json", ROW), 4),
    Target("1,024 rows of JSON: rows/s ÷ plain FastAPI", OURS[TABLE], case("fastapi", "json", TABLE), 7),
    Target("1,024 rows of JSON: rows/s ÷ MLServer", OURS[TABLE], case("mlserver", "oip", TABLE), 2),
    Target("1,024 rows, both with OIP: rows/s ÷ MLServer", OURS_OIP, case("mlserver", "oip", TABLE), 2),
)
