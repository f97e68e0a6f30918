"""The server refuses several large bodies at the same time.

The refused bodies do not fill the memory, and do not block other requests. The server derives all these limits from
`--max-body`. Before the limits existed, eight large bodies took 0.4 to 3 GB of memory.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.service.support import Served, receive, request, serving

MAX_BODY = 16 * 2**20
AT_ONCE = 8
MEGABYTE = 10**6
ROW = b"[" + b"3.0," * 63 + b"3.0]"
ROWS = 40_000  # a row has 258 bytes

PREDICT = "/predict"
APP_PREDICT = "/%70redict"  # the app answers a path with an escaped character
INFER = "/v2/models/digits/infer"


def full(start: bytes, unit: bytes, end: bytes) -> bytes:
    """Return a body of the largest size that is allowed."""
    return start + unit * ((MAX_BODY - len(start) - len(end)) // len(unit)) + end


def tensor(shape: bytes, data: bytes) -> bytes:
    return b'{"inputs": [{"name": "input", "shape": %b, "datatype": "FP32", "data": %b}]}' % (shape, data)


def packed_rows() -> bytes:
    """Return compressed rows of ordinary numbers. The last row of the body is invalid."""
    rows = np.random.default_rng(0).integers(0, 17, (2000, 64)).tolist()
    rows_text = json.dumps(rows)[1:-1].encode() + b","
    return gzip.compress(START + rows_text * 20 + b'["x"]]}', 1)


def keys() -> bytes:
    return b'{"instances": [{' + b",".join(b'"%d": 0' % place for place in range(1_200_000)) + b"}]}"


GZIP = ("Content-Encoding: gzip",)
START = b'{"instances": ['
# Each case has a path, a function that makes the body, additional headers, and a status. A request that the server
# refuses for lack of memory gets 503 instead of the status of its case.
BODIES: dict[str, tuple[str, Callable[[], bytes], tuple[str, ...], int]] = {
    "strings": (PREDICT, lambda: full(START + b"[", b'"a",', b'"a"]]}'), (), 400),
    "numbers": (PREDICT, lambda: full(START + b"[", b"0,", b"0]]}"), (), 400),
    "objects": (PREDICT, lambda: full(START, b"{},", b"{}]}"), (), 400),
    "keys": (PREDICT, keys, (), 400),
    "a string": (PREDICT, lambda: full(START + '["😀'.encode(), b"a", b'"]]}'), (), 400),
    "more rows than allowed": (PREDICT, lambda: full(START, b"[0],", b"[0]]}"), (), 400),
    "a bad last cell": (PREDICT, lambda: START + (ROW + b",") * ROWS + ROW.replace(b"3.0]", b'"x"]') + b"]}", (), 400),
    "a tensor of strings": (INFER, lambda: tensor(b"[1, 64]", full(b"[", b'"a",', b'"a"]')[200:]), (), 400),
    "a long shape": (INFER, lambda: tensor(full(b"[", b"1,", b"1]")[200:], b"[0]"), (), 400),
    "compressed strings": (PREDICT, lambda: gzip.compress(full(START + b"[", b'"a",', b'"a"]]}'), 9), GZIP, 413),
    "compressed rows": (PREDICT, packed_rows, GZIP, 400),
}


# `make test` sends only the bodies in QUICK. `make test-slow` sends the bodies that are not in QUICK.
QUICK = ("strings", "a bad last cell", "compressed strings")


@pytest.fixture(scope="module")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("large")
    models = folder / "models"
    shutil.copytree(trained / "digits", models / "digits")
    flags = ("--device", "cpu", "--max-body", MAX_BODY, "--timeout", 60)
    with serving(models, folder / "log", *flags) as server:
        yield server


def memory(served: Served, field: str) -> int:
    """Return a memory figure in bytes. field: VmRSS, the resident memory, or VmHWM, the peak of the resident memory."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) * 1024


def reset_peak(served: Served) -> None:
    Path(f"/proc/{served.process.pid}/clear_refs").write_text("5")


def send_all(served: Served, path: str, headers: tuple[str, ...], body: bytes) -> Counter[int]:
    """Send a body on several connections at once, and count the statuses."""
    whole = request("POST", path, *headers, body=body)
    together = threading.Barrier(AT_ONCE)

    def send(_: int) -> int:
        with served.connect() as connection:
            together.wait()
            with suppress(ConnectionError):  # the server may respond before it has the whole body
                connection.sendall(whole)
            return receive(connection).status

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return Counter(pool.map(send, range(AT_ONCE)))


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BODIES]
)
def test_bodies_that_are_refused_do_not_fill_the_memory(case: str, served: Served) -> None:
    path, make, headers, status = BODIES[case]
    body = make()
    assert len(body) <= MAX_BODY
    before = memory(served, "VmRSS")
    reset_peak(served)
    statuses = send_all(served, path, headers, body)
    assert set(statuses) <= {status, 503}
    assert statuses[status] > 0
    # All bodies together may take 2 x MAX_BODY bytes of memory. The rows that are read from the bodies take some more
    # memory.
    assert memory(served, "VmHWM") - before < 150 * MEGABYTE
    good = json.dumps({"instances": [[0.0] * 64]}).encode()
    assert served.send("POST", PREDICT, body=good).status == 200
    if "glibc" in os.confstr("CS_GNU_LIBC_VERSION"):
        assert memory(served, "VmRSS") - before < 50 * MEGABYTE


def test_other_requests_are_answered_while_a_large_body_is_read(served: Served) -> None:
    path, make, headers, status = BODIES["a bad last cell"]
    with served.connect() as large, served.connect() as small:
        large.sendall(request("POST", path, *headers, body=make()))
        small.sendall(request("GET", "/v2/health/live"))
        assert receive(small).status == 200
        assert receive(large).status == status


def test_a_body_is_refused_while_other_bodies_fill_the_memory(served: Served) -> None:
    body = b" " * 100_000
    with served.connect() as first, served.connect() as second:
        for connection in (first, second):
            connection.sendall(request("POST", PREDICT, f"Content-Length: {MAX_BODY}") + bytes(MAX_BODY - 1))
        # The server may not have read all bytes of both connections yet.
        while (answer := served.send("POST", PREDICT, body=body)).status == 400:
            pass
        assert answer.status == 503
        assert answer.json() == {"error": "the bodies of other requests fill the memory that is set aside for them"}
        assert int(answer.headers["retry-after"]) >= 1
        # FastAPI's route also refuses the body. The server still reads a small body.
        assert served.send("POST", APP_PREDICT, body=body).status == 503
        assert served.send("POST", PREDICT, body=b'{"instances": [%b]}' % ROW).status == 200
    while (answer := served.send("POST", PREDICT, body=body)).status == 503:
        pass
    assert answer.status == 400


def leave_in_the_middle(served: Served, path: str) -> None:
    with served.connect() as connection:
        connection.sendall(request("POST", path, f"Content-Length: {MAX_BODY}") + bytes(MAX_BODY - 1))


def send_too_many_chunks(served: Served, path: str) -> None:
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    with served.connect() as connection:
        connection.sendall(request("POST", path, "Transfer-Encoding: chunked"))
        with suppress(ConnectionError):
            connection.sendall(chunk * (MAX_BODY // 2**20 + 1))
        assert receive(connection).status == 413


def send_what_is_no_json(served: Served, path: str) -> None:
    assert served.send("POST", path, body=b"x" * MAX_BODY).status == 400


def send_what_is_not_gzip(served: Served, path: str) -> None:
    assert served.send("POST", path, *GZIP, body=b"x" * MAX_BODY).status == 400


@pytest.mark.parametrize("path", [PREDICT, APP_PREDICT, pytest.param(INFER, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "refuse", [leave_in_the_middle, send_too_many_chunks, send_what_is_no_json, send_what_is_not_gzip]
)
def test_a_refused_body_frees_its_memory_for_other_bodies(
    refuse: Callable[[Served, str], None], path: str, served: Served
) -> None:
    for _ in range(4):
        refuse(served, path)
    # Each of the two requests needs all the memory for bodies. The server may not have noticed yet that a client has
    # left.
    good = (b'{"instances": [%b]}' % ROW).ljust(MAX_BODY)
    for _ in range(2):
        while (answer := served.send("POST", PREDICT, body=good)).status == 503:
            pass
        assert answer.status == 200
