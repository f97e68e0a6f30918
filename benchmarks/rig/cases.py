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
    """One protocol of a contender.

    In `path`, {index} is replaced by the position in `bodies.COUNTS` of the number of rows.
    """

    protocol: Literal["json", "oip", "binary"]
    path: str
    loads: tuple[Load, ...] = JSON_LOADS
    predicts: bool = True  # False: a server of constant responses, which has no model


@dataclass(frozen=True)
class Contender:
    """A server.

    In `command`, {python} is replaced by the Python of its environment, and {port} and {spare} by free ports.
    """

    name: str
    title: str
    command: tuple[str, ...]
    ready: str
    endpoints: tuple[Endpoint, ...]
    requirements: str | None = None  # None: it runs in the environment of foldserve


OIP = "/v2/models/digits/infer"
OIP_ENDPOINTS = (Endpoint("oip", OIP), Endpoint("binary", OIP, (TABLE,)))
PREDICT = Endpoint("json", "/predict")
INFERENCE = Endpoint("json", "/inference")
FOLDSERVE = ("{python}", "-m", "foldserve.service", "serve", "--models", "models", "--port", "{port}")
CONSTANT = ("{python}", "benchmarks/contenders/serve_constant.py", "{port}", "{sizes}")


def _other(name: str, title: str, ready: str, endpoints: tuple[Endpoint, ...], *arguments: str) -> Contender:
    """Return a server of another project.

    Its script is contenders/serve_X.py, where X is the name up to its first hyphen.
    """
    project = name.partition("-")[0]
    command = ("{python}", f"benchmarks/contenders/serve_{project}.py", "{port}", MODEL, *arguments)
    return Contender(name, title, command, ready, endpoints, requirements=project)


CONTENDERS = (
    Contender("foldserve", "foldserve", FOLDSERVE, "/v2/health/ready", (PREDICT, *OIP_ENDPOINTS)),
    Contender(
        "constant", "uvicorn, constant response", CONSTANT, "/0", (Endpoint("json", "/{index}", predicts=False),)
    ),
    _other("fastapi", "plain FastAPI", "/health", (PREDICT,)),
    _other("litserve", "LitServe", "/health", (PREDICT,)),
    _other("mosec", "mosec", "/", (INFERENCE,), "json"),
    _other("mosec-single", "mosec, no batching", "/", (INFERENCE,), "single"),
    _other("mosec-msgspec", "mosec, JSON with msgspec", "/", (INFERENCE,), "msgspec"),
    _other("bentoml", "BentoML", "/readyz", (PREDICT,)),
    _other("mlserver", "MLServer", "/v2/models/digits/ready", (Endpoint("oip", OIP),), "{spare}"),
    _other("triton", "Triton (pytriton)", "/v2/models/digits/ready", OIP_ENDPOINTS),
)
BARE = "bare"  # a session without a server, which is therefore not a `Contender`
BARE_TITLE = "ONNX Runtime alone"
NAMES = (*(contender.name for contender in CONTENDERS), BARE)


@dataclass(frozen=True)
class Target:
    """The ratio of the same figure in two cases, and the target for this ratio."""

    text: str
    ours: str
    theirs: str
    bound: float
    figure: Literal["rows_per_second", "p50_ms"] = "rows_per_second"
    at_least: bool = True


def case(contender: str, protocol: str, load: Load) -> str:
    """Return the name of one case."""
    return f"{contender}/{protocol}/{load.name}"


OURS = {load: case("foldserve", "json", load) for load in JSON_LOADS}
OURS_OIP = case("foldserve", "oip", TABLE)
OURS_BINARY = case("foldserve", "binary", TABLE)

TARGETS = (
    Target("1 row, 32 connections: rows/s ÷ uvicorn, constant response", OURS[ROW], case("constant", "json", ROW), 0.5),
    Target("1 row, 32 connections: rows/s ÷ plain FastAPI", OURS[ROW], case("fastapi", "json", ROW), 5),
    Target("1 row, 32 connections: rows/s ÷ mosec", OURS[ROW], case("mosec", "json", ROW), 4),
    Target("1 row, 32 connections: rows/s ÷ LitServe", OURS[ROW], case("litserve", "json", ROW), 15),
    Target(
        "1 row, 1 connection: p50 ÷ uvicorn, constant response",
        OURS[SINGLE],
        case("constant", "json", SINGLE),
        1.6,
        figure="p50_ms",
        at_least=False,
    ),
    Target("1,024 rows of JSON: rows/s ÷ plain FastAPI", OURS[TABLE], case("fastapi", "json", TABLE), 7),
    Target("1,024 rows of JSON: rows/s ÷ MLServer", OURS[TABLE], case("mlserver", "oip", TABLE), 2),
    Target("1,024 rows, both with OIP: rows/s ÷ MLServer", OURS_OIP, case("mlserver", "oip", TABLE), 2),
    Target("1,024 rows, binary: rows/s ÷ ONNX Runtime alone", OURS_BINARY, case(BARE, "none", TABLE), 1 / 3),
)
