"""A client in a separate process sends prediction requests at a constant rate, and checks each answer.

    python -m tests.fleet.load URL CERTIFICATE RATE ROWS

Every twentieth request has ROWS rows, and all other requests have one row. A request starts on time even if earlier
requests have no answer yet. The process writes one line of JSON for each answer. After SIGTERM, the process stops when
each request has an answer.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import signal
import ssl
import sys
import time
from typing import Any

import httpx

# The function that each version of the model computes. The argument of the function is the sum of a row.
ANSWERS = {1: math.sqrt, 2: float}


async def main(url: str, certificate: str, rate: float, rows: int) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    trusted = ssl.create_default_context(cafile=certificate)
    headers = {"Host": "foldserve.example"}
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, verify=trusted, timeout=120, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        begin, number = time.monotonic(), 0
        while not stopped.is_set():
            group.create_task(send(client, number, 1 if number % 20 else rows))
            number += 1
            await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))


async def send(client: httpx.AsyncClient, number: int, rows: int) -> None:
    instances = [random.choices(range(1000), k=2) for _ in range(rows)]  # noqa: S311 (any numbers)
    start = time.monotonic()
    record: dict[str, Any] = {"number": number, "start": start}
    try:
        answer = await client.post("/predict", json={"instances": instances})
        record |= {"status": answer.status_code, "tried": answer.headers.get("X-Tried", "")}
        if answer.status_code == 200:
            version, values = answer.json()["version"], answer.json()["predictions"]
            expected = [ANSWERS[version](a + b) for a, b in instances]
            right = all(math.isclose(*pair, rel_tol=1e-5) for pair in zip(values, expected, strict=True))
            record |= {"version": version, "right": right}
    except httpx.HTTPError as error:
        record |= {"error": repr(error)}
    print(json.dumps(record | {"seconds": time.monotonic() - start}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])))
