"""Compares functions that turn a JSON body with rows of 64 features into float32 rows: `python -m
benchmarks.json_parsers`.

Each function checks that every value is a number and that every row has 64 values. Large bodies are cut into pieces by
json_text, as in the service. msgspec is measured only if it is installed. docs/json.md has the results.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import orjson

from foldserve.service.protocols.json_text import LongArray, cut, in_brackets
from foldserve.service.protocols.simdjson_numbers import read_numbers

WIDTH = 64
ROWS = (1, 32, 1024, 100_000)
SECONDS = 0.3  # the shortest duration of one measurement
REPEATS = 7
ARRAY = LongArray(("instances",), "rows", 10**6)


def to_rows(rows: list[list[Any]]) -> np.ndarray:
    """Check parsed rows and return them as float32 [rows, 64]."""
    if any(type(row) is not list or len(row) != WIDTH for row in rows):
        raise ValueError
    values = list(chain.from_iterable(rows))
    if not set(map(type, values)) <= {int, float}:
        raise ValueError
    return np.array(values, np.float64).reshape(-1, WIDTH).astype(np.float32)


def at_once(loads: Callable[[bytes], Any]) -> Callable[[bytes], np.ndarray]:
    """Return the function that parses the whole body in one call."""
    return lambda body: to_rows(loads(body)["instances"])


def in_pieces(loads: Callable[[bytes], Any]) -> Callable[[bytes], np.ndarray]:
    """Return the function that cuts the body into pieces and parses each piece."""
    return lambda body: np.concatenate([to_rows(loads(in_brackets(body, p))) for p in cut(body, ARRAY).pieces])


def by_simdjson(body: bytes) -> np.ndarray:
    """Read the rows as the service reads large bodies of numbers."""
    pieces = [read_numbers(body, piece, WIDTH) for piece in cut(body, ARRAY).pieces]
    return np.concatenate([p for p in pieces if p is not None]).reshape(-1, WIDTH).astype(np.float32)


def ways() -> dict[str, Callable[[bytes], np.ndarray]]:
    """Return the functions by name, for the table."""
    found = {
        "orjson, at once": at_once(orjson.loads),
        "orjson, in pieces": in_pieces(orjson.loads),
        "simdjson, in pieces": by_simdjson,
    }
    try:
        from msgspec import json
    except ImportError:
        return found
    return {
        **found,
        "msgspec, at once": at_once(json.Decoder(dict[str, list[list[float]]]).decode),
        "msgspec, in pieces": in_pieces(json.Decoder(list[list[float]]).decode),
    }


def milliseconds(work: Callable[[], Any]) -> float:
    """Return the median of several measurements, each of many calls."""
    work()
    started = time.perf_counter()
    work()
    calls = max(1, int(SECONDS / REPEATS / (time.perf_counter() - started)))
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times) * 1e3


def main() -> None:
    """Print the results as a table in Markdown."""
    print("| rows | bytes |", " | ".join(ways()), "|")
    print("| --- | --- |" + " --- |" * len(ways()))
    for count in ROWS:
        table = np.random.default_rng(0).integers(0, 17, (count, WIDTH)).astype(float)
        body = orjson.dumps({"instances": table.tolist()})
        for way in ways().values():
            np.testing.assert_array_equal(way(body), table.astype(np.float32))
        found = [milliseconds(partial(way, body)) for way in ways().values()]
        print(f"| {count:,} | {len(body):,} |", " | ".join(f"{ms:.3g}" for ms in found), "|", flush=True)


if __name__ == "__main__":
    main()
