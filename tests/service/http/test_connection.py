"""Tests connections of the real server, byte for byte: limits, deadlines, pipelining and clients that misbehave."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import re
import select
import signal
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from http.client import parse_headers
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings, strategies
from prometheus_client.parser import text_string_to_metric_families

from tests.service.support import PATIENCE, Answer, Served, request, serving, write_square_root

MAX_HEAD = 16 * 2**10
MAX_BODY = 64 * 2**10
MAX_URL = 8192

# The model `roots` predicts the square root of a row's sum.
BODY = b'{"instances": [[1, 3]]}'
GOOD = request("POST", "/predict", body=BODY)
LIVE = request("GET", "/v2/health/live")

# The connection itself answers requests for the path HOT. APP is the same path, percent-encoded, and the app answers
# requests for APP. Requests for INDEX have a separate limit for their size.
HOT, APP, INDEX = "/predict", "/%70redict", "/v2/repository/index"


def rows(total: float, *headers: str, path: str = HOT, count: int = 1) -> bytes:
    return request("POST", path, *headers, body=json.dumps({"instances": [[total, 0]] * count}).encode())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wire") / "models"
    folder.mkdir()
    write_square_root(folder)
    return folder


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Served]:
    """A server with small size limits and long time limits."""
    limits = ("--max-head", MAX_HEAD, "--max-body", MAX_BODY, "--request-timeout", 600, "--idle-timeout", 600)
    with serving(models, models.parent / "served.log", *limits) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(models: Path) -> Iterator[Served]:
    """A server with short time limits."""
    limits = ("--request-timeout", 0.5, "--idle-timeout", 0.5)
    with serving(models, models.parent / "hasty.log", *limits) as server:
        yield server


# With the flags in LAZY, requests wait until four rows have arrived.
LAZY = ("--max-delay", 10, "--max-batch", 4)


@pytest.fixture(autouse=True)
def a_valid_request_still_gets_200(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"served", "hasty"} & set(request.fixturenames):
        server: Served = request.getfixturevalue(name)
        answer = server.send("POST", HOT, body=BODY)
        assert answer.status == 200
        assert answer.json()["predictions"] == [2]


class Talk:
    """A connection that sends bytes and reads one response after the other."""

    def __init__(self, server: Served) -> None:
        self.socket = server.connect()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream: BinaryIO = self.socket.makefile("rb")

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self.socket.close()

    def send(self, *packets: bytes) -> Talk:
        for packet in packets:
            self.socket.sendall(packet)
        return self

    def has_news(self) -> bool:
        """Return true if there are bytes to read, or if the stream has ended."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def answer(self, *, body: bool = True) -> Answer:
        """Read one response. body: whether the response has a body. A response to HEAD has no body."""
        line = self._stream.readline()
        found = re.fullmatch(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]+\r\n", line)
        assert found, line
        headers = {name.lower(): value for name, value in parse_headers(self._stream).items()}
        length = int(headers.get("content-length", 0)) if body else 0
        return Answer(int(found[1]), headers, self._stream.read(length))

    def prediction(self) -> float:
        answer = self.answer()
        assert answer.status == 200, answer
        (value,) = answer.json()["predictions"]
        return float(value)

    def refusal(self, status: int, *, closes: bool = True) -> str:
        answer = self.answer()
        assert answer.status == status, answer
        assert answer.headers["content-type"] == "application/json"
        (name, text), *others = answer.json().items()
        assert name == "error"
        assert isinstance(text, str)
        assert not others
        if closes:
            assert answer.headers["connection"] == "close"
            assert self.is_over()
        return text

    def is_over(self) -> bool:
        return self._stream.read(1) == b""

    def reset(self) -> None:
        """Close the connection without reading, so that the kernel resets it."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.__exit__()


@pytest.fixture
def talk(served: Served) -> Iterator[Talk]:
    with Talk(served) as talk:
        yield talk


def metric(server: Served, name: str, **labels: str) -> float:
    """Sum those samples of a metric that have these labels."""
    text = server.send("GET", "/metrics", "Connection: close").body.decode()
    return math.fsum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def until_queued(server: Served, count: int) -> None:
    while metric(server, "foldserve_queued_rows") != count:
        assert server.process.poll() is None


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [HOT, APP, INDEX])
def test_a_content_length_over_the_limit_is_refused_before_the_body(path: str, talk: Talk) -> None:
    # The client never sends the body, so the server must answer without it.
    talk.send(request("POST", path, f"Content-Length: {MAX_BODY + 1}"))
    assert talk.refusal(413, closes=path == HOT) == f"the body is larger than {MAX_BODY} bytes"


@pytest.mark.parametrize("length", [2**31, 2**32, 2**63 - 1])
def test_an_enormous_content_length_is_refused_before_the_body(length: int, talk: Talk) -> None:
    talk.send(request("POST", HOT, f"Content-Length: {length}"))
    talk.refusal(413)


@pytest.mark.parametrize("path", [HOT, APP, INDEX])
@pytest.mark.parametrize("size", [1, 1000, MAX_BODY + 1])
def test_a_chunked_body_over_the_limit_is_refused_before_its_end(size: int, path: str, talk: Talk) -> None:
    chunk = b"%x\r\n%s\r\n" % (size, b" " * size)
    talk.send(request("POST", path, "Transfer-Encoding: chunked"), chunk * (MAX_BODY // size + 1))
    assert talk.refusal(413, closes=path == HOT) == f"the body is larger than {MAX_BODY} bytes"


@pytest.mark.parametrize("path", [HOT, APP])
def test_a_body_of_exactly_the_limit_is_read(path: str, talk: Talk) -> None:
    chunks = [b"1\r\n%c\r\n" % byte for byte in BODY.ljust(MAX_BODY)]
    talk.send(rows(9, path=path), request("POST", path, body=BODY.ljust(MAX_BODY)))
    talk.send(request("POST", path, "Transfer-Encoding: chunked"), b"".join(chunks), b"0\r\n\r\n")
    assert [talk.prediction() for _ in range(3)] == [3, 2, 2]


@pytest.mark.parametrize(
    "refused",
    [
        request("POST", HOT, f"Content-Length: {2**40}"),
        request("POST", HOT, "Transfer-Encoding: chunked") + b"10001\r\n".ljust(MAX_BODY + 100),
        request("POST", HOT, "Content-Length: -1"),
        b"POST /predict HTTP/1.1\r\nX: ".ljust(MAX_HEAD + 100, b"x"),
    ],
    ids=["large", "chunked", "malformed", "head"],
)
def test_a_refused_client_that_goes_on_sending_can_read_the_response(refused: bytes, talk: Talk) -> None:
    talk.send(refused, *[b" " * 2**16] * 64)
    assert talk.answer().headers["connection"] == "close"
    assert talk.is_over()


@pytest.mark.parametrize("path", [HOT, APP])
@pytest.mark.parametrize("framing", ["Content-Length", "Transfer-Encoding"])
def test_a_body_may_arrive_byte_by_byte(framing: str, path: str, talk: Talk) -> None:
    if framing == "Content-Length":
        whole = request("POST", path, body=BODY)
    else:
        whole = request(
            "POST", path, "Transfer-Encoding: chunked"
        ) + b"5;a=b\r\n%s\r\n%x\r\n%s\r\n0\r\nA: b\r\n\r\n" % (
            BODY[:5],
            len(BODY) - 5,
            BODY[5:],
        )
    talk.send(*(whole[i : i + 1] for i in range(len(whole))))
    assert talk.prediction() == 2
    assert talk.send(GOOD).prediction() == 2


@pytest.mark.parametrize("path", [HOT, APP, "/nowhere"])
@pytest.mark.parametrize(
    "piece", [b"A: %s\r\n" % (b"b" * 100), b"b" * 100], ids=["many trailers", "a trailer without an end"]
)
def test_trailers_have_the_limit_of_a_head(piece: bytes, path: str, talk: Talk) -> None:
    talk.send(request("POST", path, "Transfer-Encoding: chunked"), b"1\r\n{\r\n0\r\nA: b")
    if path == "/nowhere":
        assert talk.answer().status == 404
    for _ in range(10 * MAX_HEAD // len(piece)):
        if talk.has_news():
            break
        talk.send(piece)
    if path == "/nowhere":
        assert talk.is_over()  # the server had answered before the trailers became too large
    else:
        talk.refusal(431)


def test_a_chunk_extension_has_the_limit_of_a_head(talk: Talk) -> None:
    talk.send(request("POST", HOT, "Transfer-Encoding: chunked"), b"1;a=")
    for _ in range(10 * MAX_HEAD // 100):
        if talk.has_news():
            break
        talk.send(b"b" * 100)
    talk.refusal(431)


# --- heads -----------------------------------------------------------------------------------------------------------

BIG_HEADS = {
    "one header": b"X: " + b"x" * MAX_HEAD,
    "one name": b"x" * MAX_HEAD + b": x",
    "many headers": b"\r\n".join(b"X-%d: %s" % (n, b"x" * 50) for n in range(MAX_HEAD // 50)),
}


@pytest.mark.parametrize("head", BIG_HEADS.values(), ids=BIG_HEADS)
@pytest.mark.parametrize("path", [HOT, APP, "/v2/health/live"])
def test_a_head_over_the_limit_is_refused(path: str, head: bytes, talk: Talk) -> None:
    method = b"GET" if "health" in path else b"POST"
    talk.send(b"%s %s HTTP/1.1\r\nHost: test\r\n%s\r\n\r\n" % (method, path.encode(), head))
    assert talk.refusal(431) == f"the headers are larger than {MAX_HEAD} bytes"


@pytest.mark.parametrize("head", BIG_HEADS.values(), ids=BIG_HEADS)
def test_a_head_over_the_limit_is_refused_before_its_end(head: bytes, talk: Talk) -> None:
    talk.send(b"POST /predict HTTP/1.1\r\nHost: test\r\n")
    for start in range(0, len(head), 100):
        if talk.has_news():
            break
        talk.send(head[start : start + 100])
    else:
        talk.send(b"x" * 1000)
    talk.refusal(431)


def test_a_head_near_the_limit_may_have_a_large_body(talk: Talk) -> None:
    body = BODY.ljust(MAX_BODY)
    talk.send(request("POST", HOT, f"X: {'x' * (MAX_HEAD - 200)}", body=body) * 2)
    assert [talk.prediction(), talk.prediction()] == [2, 2]


def test_empty_lines_before_a_request_are_skipped_up_to_a_limit(talk: Talk) -> None:
    talk.send(b"\r\n\r\n", GOOD)
    assert talk.prediction() == 2
    for _ in range(10 * MAX_HEAD // 100):
        if talk.has_news():
            break
        talk.send(b"\r\n" * 50)
    talk.refusal(431)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_long_url_is_refused(method: str, talk: Talk) -> None:
    talk.send(request(method, f"/{'a' * MAX_URL}"))
    assert talk.refusal(414) == f"the URL is longer than {MAX_URL} bytes"


def test_a_long_url_is_refused_before_its_end(talk: Talk) -> None:
    talk.send(b"GET /")
    for _ in range(2 * MAX_URL // 100):
        if talk.has_news():
            break
        talk.send(b"a" * 100)
    talk.refusal(414)


MALFORMED = {
    "Content-Length with Transfer-Encoding": request("POST", HOT, "Content-Length: 4", "Transfer-Encoding: chunked"),
    "Transfer-Encoding with Content-Length": request("POST", HOT, "Transfer-Encoding: chunked", "Content-Length: 4"),
    "two Content-Lengths": request("POST", HOT, "Content-Length: 23", "Content-Length: 24", body=BODY),
    "one Content-Length twice": request("POST", HOT, "Content-Length: 23", "Content-Length: 23", body=BODY),
    "a list of Content-Lengths": request("POST", HOT, "Content-Length: 23, 23", body=BODY),
    "a negative Content-Length": request("POST", HOT, "Content-Length: -1"),
    "a Content-Length with a sign": request("POST", HOT, "Content-Length: +23", body=BODY),
    "a hexadecimal Content-Length": request("POST", HOT, "Content-Length: 0x17", body=BODY),
    "a Content-Length of letters": request("POST", HOT, "Content-Length: x", body=BODY),
    "an empty Content-Length": request("POST", HOT, "Content-Length:", body=BODY),
    "a Content-Length past 64 bits": request("POST", HOT, f"Content-Length: {2**64}"),
    "an unknown Transfer-Encoding": request("POST", HOT, "Transfer-Encoding: gzip", body=BODY),
    "the Transfer-Encoding identity": request("POST", HOT, "Transfer-Encoding: identity", body=BODY),
    "chunked and then something else": request("POST", HOT, "Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "nearly chunked": request("POST", HOT, "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "a chunk without a length": request("POST", HOT, "Transfer-Encoding: chunked", body=b"zz\r\n"),
    "a chunk with another length": request("POST", HOT, "Transfer-Encoding: chunked", body=b"1\r\nabc\r\n0\r\n\r\n"),
    "no Host": b"POST /predict HTTP/1.1\r\nContent-Length: 23\r\n\r\n" + BODY,
    "no Host for the app": b"GET /v2/health/live HTTP/1.1\r\n\r\n",
    "a space before the colon": request("POST", HOT, "Content-Length : 23", body=BODY),
    "a folded header": request("GET", "/v2/health/live", "X: a\r\n b"),
    "a zero byte in a header": request("GET", "/v2/health/live", "X: a\0b"),
    "a header without a colon": request("GET", "/v2/health/live", "X"),
    "a CR without LF": request("POST", HOT, "X: a\rContent-Length: 23", body=BODY),
    "LF without CR in the request line": b"GET /v2/health/live HTTP/1.1\nHost: test\r\n\r\n",
    "LF without CR after a header": b"GET /v2/health/live HTTP/1.1\r\nHost: test\n\r\n",
    "LF without CR after the head": b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\n",
    "LF without CR after a chunk": request("POST", HOT, "Transfer-Encoding: chunked", body=b"1\r\n{\r\n0\r\n\n"),
    "LF without CR after a trailer": request(
        "POST", HOT, "Transfer-Encoding: chunked", body=b"1\r\n{\r\n0\r\nA: b\r\n\n"
    ),
    "no version": b"GET /v2/health/live\r\nHost: test\r\n\r\n",
    "a method for a proxy": b"CONNECT test:80 HTTP/1.1\r\nHost: test\r\n\r\n",
    "a method for a proxy and a path": b"CONNECT /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n",
    "version 2": b"POST /predict HTTP/2.0\r\nHost: test\r\n\r\n",
    "another version": b"GET /v2/health/live HTTP/3.0\r\nHost: test\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no method": b" /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n",
    "an unknown method": b"BREW /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n",
    "a malformed URL": b"GET http://[ HTTP/1.1\r\nHost: test\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "SSH": b"SSH-2.0-OpenSSH_9.7\r\n",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_or_ambiguous_request_is_refused(sent: bytes, talk: Talk) -> None:
    talk.send(sent)
    talk.refusal(400)


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_behind_others_is_refused_after_their_responses(sent: bytes, talk: Talk) -> None:
    talk.send(rows(16) + LIVE + rows(25) + sent)
    assert talk.prediction() == 4
    assert talk.answer().json() == {"live": True}
    assert talk.prediction() == 5
    talk.refusal(400)


def test_a_tls_client_is_disconnected(served: Served) -> None:
    context = ssl.create_default_context()
    with served.connect() as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(plain, server_hostname="test")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", HOT, "POST"),
        ("PUT", HOT, "POST"),
        ("POST", "/v2/health/live", "GET"),
        ("OPTIONS", "/v1/models/roots/drift", "DELETE, GET"),
    ],
)
def test_a_wrong_method_is_refused_and_the_right_methods_are_named(
    method: str, path: str, allowed: str, talk: Talk
) -> None:
    talk.send(request(method, path, body=BODY) + GOOD)
    answer = talk.answer()
    assert answer.status == 405
    assert answer.headers["allow"] == allowed
    assert list(answer.json()) == ["error"]
    assert talk.prediction() == 2


# --- several requests ------------------------------------------------------------------------------------------------

# Each case has a request, the status of its response, and a part of the response's body.
MENU = [
    *((rows(n * n), 200, b'"predictions":[%d.0]' % n) for n in (1, 2, 3)),
    (rows(4, "Expect: nothing", "Connection: keep-alive"), 200, b"[2.0]"),
    (rows(64, "Connection: upgrade", "Upgrade: websocket"), 200, b"[8.0]"),
    (request("POST", HOT, "Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)), 200, b"[2"),
    (rows(25, path="/v1/models/roots:predict"), 200, b"[5.0]"),
    (rows(36, path=APP), 200, b"[6.0]"),
    (request("POST", HOT, body=b"{"), 400, b"error"),
    (rows(-1), 422, b"not finite"),
    (rows(49, "X-Request-Timeout-Ms: 0"), 504, b"deadline"),
    (request("POST", "/v1/models/other:predict", body=BODY), 404, b"unknown model"),
    (request("GET", HOT), 405, b"Method Not Allowed"),
    (LIVE, 200, b'{"live":true}'),
    (request("GET", "/docs"), 200, b"</html>"),
    (request("GET", "/nowhere", body=b"x"), 404, b"Not Found"),
    (request("GET", "/static/swagger-ui/swagger-ui.css"), 200, b".swagger-ui"),
]


@settings(max_examples=60)
@given(
    orders=strategies.lists(strategies.sampled_from(MENU), min_size=1, max_size=12),
    cuts=strategies.lists(strategies.floats(0, 1), max_size=6),
)
def test_responses_keep_the_order_of_requests_that_are_cut_into_any_packets(
    orders: Sequence[tuple[bytes, int, bytes]], cuts: Sequence[float], served: Served
) -> None:
    sent = b"".join(order for order, _, _ in orders)
    places = [0, *sorted(int(cut * len(sent)) for cut in cuts), len(sent)]
    with Talk(served) as talk:
        talk.send(*(sent[start:end] for start, end in pairwise(places)))
        for _, status, part in orders:
            answer = talk.answer()
            assert answer.status == status
            assert part in answer.body
        talk.send(request("GET", "/v2/health/live", "Connection: close"))
        assert talk.answer().status == 200
        assert talk.is_over()


def test_each_of_many_requests_in_one_packet_gets_its_response(talk: Talk) -> None:
    talk.send(b"".join(rows(n * n) + (LIVE if n % 7 == 0 else b"") for n in range(500)))
    for n in range(500):
        assert talk.prediction() == n
        if n % 7 == 0:
            assert talk.answer().json() == {"live": True}


@pytest.mark.parametrize("path", [HOT, APP])
@pytest.mark.parametrize("body", [BODY, b"{"], ids=["good", "bad"])
def test_connection_close_ends_the_connection_after_the_response(body: bytes, path: str, talk: Talk) -> None:
    talk.send(GOOD + request("POST", path, "Connection: close", body=body) + GOOD + LIVE)
    assert talk.prediction() == 2
    answer = talk.answer()
    assert answer.status == (200 if body == BODY else 400)
    assert answer.headers["connection"] == "close"
    assert talk.is_over()


@pytest.mark.parametrize("path", [HOT, APP])
def test_http_1_0_needs_no_host_and_ends_after_the_response(path: str, talk: Talk) -> None:
    talk.send(b"POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(BODY), BODY))
    assert talk.prediction() == 2
    assert talk.is_over()


@pytest.mark.parametrize("path", [HOT, APP])
def test_a_client_that_expects_100_gets_it_before_the_response(path: str, talk: Talk) -> None:
    for _ in range(2):
        talk.send(request("POST", path, "Expect: 100-continue", f"Content-Length: {len(BODY)}"))
        assert talk.answer().status == 100
        assert talk.send(BODY).prediction() == 2


@pytest.mark.parametrize("path", [HOT, APP])
def test_a_client_that_expects_100_for_a_large_body_is_refused_instead(path: str, talk: Talk) -> None:
    talk.send(request("POST", path, "Expect: 100-continue", f"Content-Length: {MAX_BODY + 1}"))
    talk.refusal(413, closes=path == HOT)


@pytest.mark.parametrize("path", [HOT, APP])
def test_an_offered_upgrade_is_ignored(path: str, talk: Talk) -> None:
    # `curl --http2` sends these headers.
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    assert talk.send(rows(16, *offer, path=path)).prediction() == 4
    assert talk.send(GOOD).prediction() == 2


def test_a_request_that_has_its_response_before_its_body_gets_no_second_response(talk: Talk) -> None:
    talk.send(request("POST", "/nowhere", "Transfer-Encoding: chunked"))
    talk.refusal(404, closes=False)
    talk.send(b"zz\r\n")
    assert talk.is_over()


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begun",
    [
        b"P",
        b"POST /predict HTTP/1.1\r\nHost: te",
        request("POST", HOT, "Content-Length: 23", body=BODY[:-1]),
        request("POST", APP, "Content-Length: 23", body=BODY[:-1]),
        request("POST", INDEX, "Transfer-Encoding: chunked", body=b"1\r\n{\r\n"),
        GOOD + GOOD[:-1],
        LIVE + LIVE[:-1],
    ],
)
def test_an_incomplete_request_is_refused_at_its_deadline(begun: bytes, hasty: Served) -> None:
    with Talk(hasty) as talk:
        talk.send(begun)
        if begun.startswith((GOOD, LIVE)):
            assert talk.answer().status == 200
        assert talk.refusal(408) == "the request was not whole in 0.5 s"


@pytest.mark.parametrize("path", [HOT, APP])
def test_a_trickled_body_does_not_extend_the_deadline(path: str, hasty: Served) -> None:
    with Talk(hasty) as talk:
        talk.send(request("POST", path, "Content-Length: 50000000"))
        while not talk.has_news():
            talk.send(b" ")
        assert talk.refusal(408) == "the request was not whole in 0.5 s"


def test_a_trickled_head_does_not_extend_the_deadline(models: Path, tmp_path: Path) -> None:
    flags = ("--request-timeout", 0.5, "--max-head", 2**30)
    with serving(models, tmp_path / "log", *flags) as server, Talk(server) as talk:
        talk.send(b"POST /predict HTTP/1.1\r\nX: ")
        while not talk.has_news():
            talk.send(b"x")
        talk.refusal(408)


def test_hundreds_of_idle_connections_are_closed_and_delay_no_other(hasty: Served) -> None:
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Talk(hasty)) for _ in range(300)]
        for number, talk in enumerate(talks):
            if number % 3 == 0:
                assert talk.send(GOOD).prediction() == 2
            elif number % 3 == 1:
                assert talk.send(LIVE).answer().status == 200
            if number % 100 == 0:
                assert hasty.send("GET", "/v2/health/ready").status == 200
        assert all(talk.is_over() for talk in talks)


# --- clients that disconnect, and clients that do not read -----------------------------------------------------------


@pytest.mark.parametrize("path", [HOT, APP])
def test_a_client_that_disconnects_within_its_body_harms_no_other(path: str, served: Served) -> None:
    for how in (Talk.reset, Talk.__exit__):
        talk = Talk(served)
        talk.send(request("POST", path, "Content-Length: 100", body=BODY))
        how(talk)


def test_the_rows_of_a_client_that_disconnects_in_the_queue_are_not_run(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", *LAZY) as server:
        gone = Talk(server).send(rows(1))
        until_queued(server, 1)
        gone.reset()
        while not metric(server, "foldserve_requests_total", status="499"):
            assert server.process.poll() is None
        with Talk(server) as stays:
            stays.send(rows(9, count=4))
            assert stays.answer().json()["predictions"] == [3, 3, 3, 3]
        assert metric(server, "foldserve_batch_rows_sum") == 4
        assert metric(server, "foldserve_queued_rows") == metric(server, "foldserve_requests_in_flight") == 0
    assert "Traceback" not in server.log.read_text()


def test_a_client_that_disconnects_from_the_app_leaves_the_rest_of_its_batch_intact(
    models: Path, tmp_path: Path
) -> None:
    with serving(models, tmp_path / "log", *LAZY) as server, Talk(server) as stays:
        gone = Talk(server).send(rows(1, path=APP))
        stays.send(rows(4, path=APP))
        until_queued(server, 2)
        gone.reset()
        with Talk(server) as last:
            last.send(rows(9, count=4))
            assert last.answer().json()["predictions"] == [3, 3, 3, 3]
        assert stays.prediction() == 2
    assert "Traceback" not in server.log.read_text()


STATIC = request("GET", "/static/swagger-ui/swagger-ui-bundle.js")
LARGE = rows(4, count=2000)


@pytest.mark.parametrize(
    "sent", [GOOD, rows(4, path=APP), LIVE, STATIC, LARGE], ids=["hot", "app", "get", "file", "large"]
)
def test_a_client_that_closes_its_side_gets_its_responses(sent: bytes, served: Served) -> None:
    for count in (1, 1, 1, 3):
        with Talk(served) as talk:
            talk.send(sent * count)
            talk.socket.shutdown(socket.SHUT_WR)
            assert [talk.answer().status for _ in range(count)] == [200] * count
            assert talk.is_over()


@pytest.mark.parametrize("sent", [b"", b"GET", GOOD[:-1], rows(4, path=APP)[:-1]], ids=["none", "head", "hot", "app"])
def test_a_client_that_closes_its_side_too_early_is_disconnected(sent: bytes, served: Served) -> None:
    with Talk(served) as talk:
        talk.send(sent)
        talk.socket.shutdown(socket.SHUT_WR)
        assert talk.is_over()


def test_the_rows_of_a_client_that_closes_its_side_are_not_queued_for_ever(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", *LAZY) as server, Talk(server) as gone:
        gone.send(rows(1))
        until_queued(server, 1)
        gone.socket.shutdown(socket.SHUT_WR)
        assert gone.is_over()
        assert metric(server, "foldserve_requests_total", status="499") == 1


def test_clients_that_never_read_leave_no_traceback_when_the_server_stops(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--drain-timeout", 1) as server, contextlib.ExitStack() as stack:
        for sent in (STATIC * 50, LIVE * 500, GOOD * 500, rows(4, path=APP) * 500):
            stack.enter_context(Talk(server)).send(sent)
        assert server.send("GET", "/v2/health/live").status == 200
        server.process.terminate()
        assert server.process.wait(PATIENCE) == 0
    assert "Traceback" not in server.log.read_text()
    assert "Cancel" not in server.log.read_text()


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/openapi.json", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/roots"),
        *("/v1/models/roots", "/v1/models/roots/metadata", "/static/swagger-ui/swagger-ui.css", "/nowhere", HOT),
    ],
)
def test_head_gets_the_head_of_the_response_to_get(path: str, talk: Talk) -> None:
    talk.send(request("GET", path), request("HEAD", path), LIVE)
    whole = talk.answer()
    head = talk.answer(body=False)
    assert head.status == whole.status
    for name in ("content-type", "content-length", "allow"):
        if path != "/metrics" or name != "content-length":
            assert head.headers.get(name) == whole.headers.get(name)
    assert talk.answer().json() == {"live": True}


def test_a_small_compressed_request_does_not_wait_behind_large_ones(models: Path, tmp_path: Path) -> None:
    small = request("POST", HOT, "Content-Encoding: gzip", body=gzip.compress(BODY))
    large = request("POST", HOT, "Content-Encoding: gzip", body=gzip.compress(BODY.ljust(2**25)))
    with (
        serving(models, tmp_path / "log", "--max-wait", 10) as server,
        contextlib.ExitStack() as stack,
        Talk(server) as quick,
    ):
        for _ in range(100):
            stack.enter_context(Talk(server)).send(large)
        for _ in range(50):
            assert quick.send(small).prediction() == 2
    assert "Traceback" not in server.log.read_text()


def memory(server: Served) -> int:
    """Return the resident bytes of the server."""
    (kilobytes,) = re.findall(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    return int(kilobytes) * 1024


@pytest.mark.parametrize("sent", [GOOD, request("GET", "/static/swagger-ui/swagger-ui-bundle.js")], ids=["hot", "app"])
def test_a_client_that_does_not_read_fills_no_memory_and_is_disconnected(sent: bytes, hasty: Served) -> None:
    block = sent * (2**16 // len(sent))
    before, most, hung = memory(hasty), 0, time.monotonic() + PATIENCE
    with Talk(hasty) as talk, contextlib.suppress(ConnectionError):
        while True:
            assert time.monotonic() < hung, "it is never closed"
            for _ in range(100):
                talk.send(block)
            most = max(most, memory(hasty) - before)
    assert most < 50 * 2**20


# --- the log ---------------------------------------------------------------------------------------------------------


def test_without_the_flag_there_is_no_access_log(served: Served) -> None:
    # The tests above have used the same server, so their errors would be in this log too.
    assert "access" not in served.log.read_text()
    assert "Traceback" not in served.log.read_text()


# --- shutdown --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopping_server_responds_to_the_requests_it_has_and_accepts_no_connection(
    number: signal.Signals, models: Path, tmp_path: Path
) -> None:
    half, rest = (whole := rows(36, count=2))[:-10], whole[-10:]
    with serving(models, tmp_path / "log", *LAZY) as server, contextlib.ExitStack() as stack:
        idle, hot, app, late = (stack.enter_context(Talk(server)) for _ in range(4))
        assert idle.send(request("GET", "/v2/health/ready")).answer().json() == {"ready": True}
        hot.send(rows(16) + request("GET", "/v2/health/ready"))
        app.send(rows(25, path=APP))
        until_queued(server, 2)
        late.send(half)
        # After this answer, the server has also read the first half of the request on the connection `late`.
        assert server.send("GET", "/v2/health/live").status == 200
        server.process.send_signal(number)
        assert idle.is_over()  # the server has begun to stop
        with pytest.raises(ConnectionError):
            server.connect()
        late.send(rest)  # the server now has four rows
        assert late.answer().json()["predictions"] == [6, 6]
        assert hot.prediction() == 4
        unready = hot.answer()
        assert (unready.status, unready.json()) == (503, {"ready": False})
        assert app.prediction() == 5
        assert all(talk.is_over() for talk in (hot, app, late))
        assert server.process.wait(PATIENCE) == 0
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("drain", [0, 1])
def test_incomplete_requests_do_not_keep_a_stopping_server_alive(drain: int, models: Path, tmp_path: Path) -> None:
    flags = ("--drain-timeout", drain)
    with serving(models, tmp_path / "log", *flags) as server, contextlib.ExitStack() as stack:
        for begun in (b"", b"POST /pre", GOOD[:-1], request("POST", APP, "Content-Length: 9"), GOOD + GOOD[:-1]):
            talk = stack.enter_context(Talk(server)).send(begun)
            if begun.startswith(GOOD):
                assert talk.prediction() == 2
        unread = stack.enter_context(Talk(server))
        unread.send(request("GET", "/static/swagger-ui/swagger-ui-bundle.js") * 20)
        assert server.send("POST", HOT, body=BODY).status == 200
        server.process.terminate()
        assert server.process.wait(PATIENCE) == 0
