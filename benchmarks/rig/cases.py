"""Who is compared, by which protocol, under which load, and what is asked of foldserve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MODEL = "models/digits/1/model.onnx"


@dataclass(frozen=True)
class Load:
    """So many rows in each request, over so many connections."""

    name: str
    rows: int
    connections: int


ROW = Load("row", 1, 32)
ALONE = Load("alone", 1, 1)
TABLE = Load("table", 1024, 4)
JSON_LOADS = (ROW, ALONE, TABLE)


@dataclass(frozen=True)
class Door:
    """One protocol of a contender. `{index}` in the path is that of the count of rows, in `bodies.COUNTS`."""

    protocol: Literal["json", "oip", "binary"]
    path: str
    loads: tuple[Load, ...] = JSON_LOADS
    answers: bool = True  # False: the ceiling, which knows no model


@dataclass(frozen=True)
class Contender:
    """A server. In its command {python} is its own one's, {port} and {spare} are free ports."""

    name: str
    title: str
    command: tuple[str, ...]
    ready: str
    doors: tuple[Door, ...]
    requirements: str | None = None  # None: runs in foldserve's own environment


OIP = "/v2/models/digits/infer"
OIP_DOORS = (Door("oip", OIP), Door("binary", OIP, (TABLE,)))
FOLDSERVE = ("{python}", "-m", "foldserve.service", "serve", "--models", "models", "--port", "{port}")


def _script(name: str, *more: str) -> tuple[str, ...]:
    return ("{python}", f"benchmarks/contenders/serve_{name}.py", "{port}", MODEL, *more)


CONTENDERS = (
    Contender("foldserve", "foldserve", FOLDSERVE, "/v2/health/ready", (Door("json", "/predict"), *OIP_DOORS)),
    Contender(
        "constant",
        "uvicorn's constant answer",
        ("{python}", "benchmarks/contenders/serve_constant.py", "{port}", "{sizes}"),
        "/0",
        (Door("json", "/{index}", answers=False),),
    ),
    Contender(
        "fastapi", "plain FastAPI", _script("fastapi"), "/health", (Door("json", "/predict"),), requirements="fastapi"
    ),
    Contender(
        "litserve", "LitServe", _script("litserve"), "/health", (Door("json", "/predict"),), requirements="litserve"
    ),
    Contender("mosec", "mosec", _script("mosec", "json"), "/", (Door("json", "/inference"),), requirements="mosec"),
    Contender(
        "mosec-single",
        "mosec, no batching",
        _script("mosec", "single"),
        "/",
        (Door("json", "/inference"),),
        requirements="mosec",
    ),
    Contender(
        "mosec-msgspec",
        "mosec, JSON by msgspec",
        _script("mosec", "msgspec"),
        "/",
        (Door("json", "/inference"),),
        requirements="mosec",
    ),
    Contender("bentoml", "BentoML", _script("bentoml"), "/readyz", (Door("json", "/predict"),), requirements="bentoml"),
    Contender(
        "mlserver",
        "MLServer",
        _script("mlserver", "{spare}"),
        "/v2/models/digits/ready",
        (Door("oip", OIP),),
        requirements="mlserver",
    ),
    Contender(
        "triton", "Triton (pytriton)", _script("triton"), "/v2/models/digits/ready", OIP_DOORS, requirements="triton"
    ),
)
BARE = "bare"  # the floor: no server, so no Contender
BARE_TITLE = "ONNX Runtime alone"
NAMES = (*(contender.name for contender in CONTENDERS), BARE)


@dataclass(frozen=True)
class Target:
    """A ratio of two cases' figures, and the bound that foldserve is to keep."""

    text: str
    ours: str
    theirs: str
    bound: float
    figure: Literal["rows_per_second", "p50_ms"] = "rows_per_second"
    at_least: bool = True


def case(contender: str, protocol: str, load: Load) -> str:
    """Name one measured figure."""
    return f"{contender}/{protocol}/{load.name}"


OURS = {load: case("foldserve", "json", load) for load in JSON_LOADS}
OURS_OIP = case("foldserve", "oip", TABLE)
OURS_BINARY = case("foldserve", "binary", TABLE)

TARGETS = (
    Target("1 row, 32 connections: rows/s of uvicorn's constant", OURS[ROW], case("constant", "json", ROW), 0.5),
    Target("1 row, 32 connections: rows/s of plain FastAPI", OURS[ROW], case("fastapi", "json", ROW), 5),
    Target("1 row, 32 connections: rows/s of mosec", OURS[ROW], case("mosec", "json", ROW), 4),
    Target("1 row, 32 connections: rows/s of LitServe", OURS[ROW], case("litserve", "json", ROW), 15),
    Target(
        "1 row, 1 connection: p50 of uvicorn's constant",
        OURS[ALONE],
        case("constant", "json", ALONE),
        1.6,
        figure="p50_ms",
        at_least=False,
    ),
    Target("1,024 rows of JSON: rows/s of plain FastAPI", OURS[TABLE], case("fastapi", "json", TABLE), 7),
    Target("1,024 rows of JSON: rows/s of MLServer", OURS[TABLE], case("mlserver", "oip", TABLE), 2),
    Target("1,024 rows, both by OIP: rows/s of MLServer", OURS_OIP, case("mlserver", "oip", TABLE), 2),
    Target("1,024 rows, binary: rows/s of ONNX Runtime alone", OURS_BINARY, case(BARE, "none", TABLE), 1 / 3),
)
