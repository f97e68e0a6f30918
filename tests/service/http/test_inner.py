"""Tests connections that use the tests' own inner protocol instead of uvicorn's.

The connections of the tests use TCP, a Unix socket or TLS.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from foldserve.service.errors import RequestError
from foldserve.service.http.connection import Connection
from foldserve.service.http.context import ConnectionContext, Limits
from foldserve.service.http.shares import Share
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.protocols.reply import JSON, Headers, Reply
from tests.service.support import PATIENCE, request

HOT = "/hot"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Cancelled:
    """An exchange that is already complete, so `cancel` does nothing."""

    def cancel(self) -> None:
        pass


class Echo:
    """An endpoint that replies with the body of the request."""

    def start(self, _: Headers, body: bytes, on_reply: Callable[[Reply], None]) -> Cancelled:
        on_reply(Reply(200, (JSON,), body))
        return Cancelled()


class Inner(asyncio.Protocol):
    """An inner protocol that follows a script.

    For each request of the script, the protocol checks the received bytes, then writes the parts of the response.
    """

    def __init__(self, script: list[tuple[bytes, list[bytes]]]) -> None:
        self.script = script
        self.received = b""
        self.events: list[str] = []

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        expected, response = self.script[0]
        assert expected.startswith(self.received)
        if self.received == expected:
            self.received = b""
            del self.script[0]
            for part in response:
                self.transport.write(part)

    def eof_received(self) -> None:
        self.events.append("eof")

    def connection_lost(self, _: Exception | None) -> None:
        self.events.append("lost")


class Server:
    """A listening server and its connections."""

    def __init__(self, create_inner: Callable[[], asyncio.Protocol]) -> None:
        self.endpoints: dict[bytes, Any] = {HOT.encode(): Echo()}
        self.refused: list[RequestError] = []
        self.connections: set[Connection] = set()
        self.context = ConnectionContext(
            self.endpoints, Limits(2**16, 2**20, 60, 60), BodyMemory(2**21), self.refused.append, Share([0], 0)
        )
        self.create_inner = create_inner

    def create_connection(self) -> Connection:
        return Connection(self.context, self.create_inner, self.connections)

    @asynccontextmanager
    async def client(
        self, *, path: Path | None = None, server_ssl: ssl.SSLContext | None = None, **options: Any
    ) -> AsyncIterator[Client]:
        """Listen on TCP, or on a Unix socket at `path`, and connect."""
        loop = asyncio.get_running_loop()
        if path is None:
            server = await loop.create_server(self.create_connection, "127.0.0.1", 0, ssl=server_ssl)
            streams = await asyncio.open_connection(*server.sockets[0].getsockname(), **options)
        else:
            server = await loop.create_unix_server(self.create_connection, str(path), ssl=server_ssl)
            streams = await asyncio.open_unix_connection(str(path), **options)
        try:
            yield Client(*streams)
        finally:
            server.close()
            streams[1].close()
            with suppress(ConnectionError, ssl.SSLError):
                await streams[1].wait_closed()
            for connection in tuple(self.connections):
                connection.abort()
            while self.connections:
                await asyncio.sleep(0)
            await server.wait_closed()


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes, size: int | None = None) -> None:
        """Send the data in packets of `size` bytes."""
        for start in range(0, len(data), size or len(data)):
            self.writer.write(data[start : start + (size or len(data))])
            await self.writer.drain()

    async def response(self) -> tuple[int, bytes]:
        """Read one response with a Content-Length: its status and its body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        return int(head.split()[1]), await self.reader.readexactly(int(headers[b"content-length"]))


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Awaitable[None]], None]]:
    """Return a function that runs a coroutine on an event loop of asyncio or of uvloop."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda test: runner.run(asyncio.wait_for(test, PATIENCE))


Run = Callable[[Awaitable[None]], None]

# Forwarded requests. For each request, the list has the parts of the response that the inner protocol writes.
FORWARDED: Mapping[str, tuple[bytes, list[bytes]]] = {
    "no body": (request("GET", "/a"), [OK]),
    "counted": (request("POST", "/b", body=b"\r\n\r\n" * 9), [OK[:20], OK[20:]]),
    "chunked": (
        request("POST", "/c", "Transfer-Encoding: chunked", body=b"4\r\n\r\n\r\n\r\n0\r\nA: b\r\n\r\n"),
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n", b"0\r\n\r\n"],
    ),
    "the method of no endpoint": (request("PUT", HOT, body=b"x"), [OK]),
    "HEAD": (request("HEAD", "/d"), [b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"]),
    "after HEAD": (request("GET", "/e"), [OK]),
    "not modified": (request("GET", "/f"), [b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"]),
    "continue": (request("PUT", "/g", "Expect: 100-continue", body=b"x"), [b"HTTP/1.1 100 Continue\r\n\r\n", OK]),
    "no content": (request("GET", "/h"), [b"HTTP/1.1 204 No Content\r\n\r\n"]),
    "an absolute URL": (request("GET", "http://test/i"), [OK]),
    "an endpoint's path in the wrong case, with a query": (request("POST", f"{HOT.upper()}?a", body=b"x"), [OK]),
}


@pytest.mark.parametrize("size", [1, 7, None])
def test_the_inner_protocol_gets_exactly_its_requests_unchanged(size: int | None, run: Run) -> None:
    hot = request("POST", HOT, body=b"hot")
    inner = Inner(list(FORWARDED.values()))

    async def test() -> None:
        server = Server(lambda: inner)
        async with server.client() as client:
            await client.send(hot + b"".join(sent + hot for sent, _ in FORWARDED.values()), size)
            assert await client.response() == (200, b"hot")
            for _, parts in FORWARDED.values():
                expected = b"".join(parts)
                assert await client.reader.readexactly(len(expected)) == expected
                assert await client.response() == (200, b"hot")
            assert not inner.script
            assert inner.events == ["made"]
        assert not server.refused

    run(test())


def test_the_inner_protocol_learns_that_the_client_disconnects(run: Run) -> None:
    sent = request("GET", "/")
    inner = Inner([(sent, [])])

    async def test() -> None:
        server = Server(lambda: inner)
        async with server.client() as client:
            await client.send(sent)
            while inner.script:
                await asyncio.sleep(0)
            client.writer.close()
            while server.connections:
                await asyncio.sleep(0)
        assert inner.events == ["made", "eof", "lost"]

    run(test())


def test_the_inner_protocol_loses_the_connection_of_a_refused_request(run: Run) -> None:
    begun = request("POST", "/", "Transfer-Encoding: chunked")
    inner = Inner([(begun + b"1\r\n", [])])

    async def test() -> None:
        server = Server(lambda: inner)
        async with server.client() as client:
            await client.send(begun)
            await client.send(b"x\r\n")
            assert (await client.response())[0] == 400
            assert inner.events == ["made", "lost"]
            inner.transport.write(OK)  # the client already has its response
            assert await client.reader.read() == b""
        assert len(server.refused) == 1

    run(test())


def test_an_inner_protocol_that_closes_between_two_requests_is_replaced(run: Run) -> None:
    sent = request("GET", "/")
    inners: list[Inner] = []

    def create_inner() -> Inner:
        inners.append(Inner([(sent, [OK])]))
        return inners[-1]

    async def test() -> None:
        async with Server(create_inner).client() as client:
            for number in range(3):
                await client.send(sent + request("POST", HOT, body=b"hot"))
                assert await client.response() == (200, b"ok")
                assert await client.response() == (200, b"hot")
                inners[number].transport.close()
                assert inners[number].events == ["made", "lost"]

    run(test())


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\ncut",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
    ],
)
def test_a_response_may_end_with_the_connection(response: bytes, run: Run) -> None:
    sent = request("GET", "/")

    async def test() -> None:
        inner = Inner([(sent, [response])])
        async with Server(lambda: inner).client() as client:
            await client.send(sent)
            while inner.script:
                await asyncio.sleep(0)
            inner.transport.close()
            assert await client.reader.read() == response

    run(test())


@pytest.mark.parametrize(
    "response", [b"no response", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: a\r\nconnection: upgrade\r\n\r\n"]
)
def test_nothing_follows_a_response_whose_end_is_unknown(response: bytes, run: Run) -> None:
    sent = request("GET", "/")

    async def test() -> None:
        async with Server(lambda: Inner([(sent, [response])])).client() as client:
            await client.send(sent + request("POST", HOT, body=b"hot"))
            assert await client.reader.read() == response

    run(test())


def test_a_body_waits_while_the_inner_protocol_does_not_read(run: Run) -> None:
    class Slow(asyncio.Protocol):
        received = 0

        def connection_made(self, transport: asyncio.Transport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.received += len(data)
            self.transport.pause_reading()

    async def test() -> None:
        inner, size = Slow(), 2**25
        async with Server(lambda: inner).client() as client:
            sent = request("POST", "/", f"Content-Length: {size}")
            await client.send(sent)
            while not inner.received:
                await asyncio.sleep(0)
            writing = asyncio.ensure_future(client.send(bytes(size)))
            reads = 0
            while inner.received < len(sent) + size:
                before = inner.received
                inner.transport.resume_reading()
                while inner.received == before:
                    await asyncio.sleep(0)
                reads += 1
            await writing
            assert reads > 16

    run(test())


def test_endpoints_may_change_while_the_server_runs(run: Run) -> None:
    sent = request("POST", HOT, body=b"hot")

    async def test() -> None:
        server = Server(lambda: Inner([(sent, [OK])] * 9))
        async with server.client() as client:
            for _ in range(3):
                await client.send(sent)
                assert await client.response() == (200, b"hot")
                endpoint = server.endpoints.pop(HOT.encode())
                await client.send(sent)
                assert await client.response() == (200, b"ok")
                server.endpoints[HOT.encode()] = endpoint

    run(test())


def test_a_unix_socket_serves_endpoints_and_the_inner_protocol(run: Run, tmp_path: Path) -> None:
    sent = request("GET", "/")

    async def test() -> None:
        async with Server(lambda: Inner([(sent, [OK])])).client(path=tmp_path / "socket") as client:
            await client.send(request("POST", HOT, body=b"hot") + sent)
            assert await client.response() == (200, b"hot")
            assert await client.response() == (200, b"ok")

    run(test())


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The TLS contexts of a server and of a client that trusts the server."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


def test_tls_serves_endpoints_and_the_inner_protocol_and_shows_refusals(
    run: Run, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    sent = request("GET", "/")

    async def test() -> None:
        server_ssl, client_ssl = tls
        inner = Inner([(sent, [OK])])
        server = Server(lambda: inner)
        async with server.client(server_ssl=server_ssl, ssl=client_ssl, server_hostname="localhost") as client:
            await client.send(request("POST", HOT, body=b"hot") + sent)
            assert await client.response() == (200, b"hot")
            assert await client.response() == (200, b"ok")
            assert inner.transport.get_extra_info("sslcontext") is not None
            await client.send(b"no request\r\n")
            assert (await client.response())[0] == 400
            (connection,) = server.connections
            connection.check_time(float("inf"))  # the server's time limit for the client has passed
            assert await client.reader.read() == b""

    run(test())


def test_uvicorns_other_protocol_serves_as_well(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        text = b"%s %s" % (scope["path"].encode(), body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
        await send({"type": "http.response.body", "body": text})

    async def test() -> None:
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None)
        config.load()

        def create_inner() -> asyncio.Protocol:
            return H11Protocol(config, ServerState(), {}, asyncio.get_running_loop())

        async with Server(create_inner).client() as client:
            for sent, expected in (
                (request("GET", "/a"), b"/a "),
                (request("POST", HOT, body=b"hot"), b"hot"),
                (request("POST", "/b", body=b"body"), b"/b body"),
                (request("POST", "/c", "Transfer-Encoding: chunked", body=b"4\r\nbody\r\n0\r\n\r\n"), b"/c body"),
            ) * 2:
                await client.send(sent)
                assert await client.response() == (200, expected)
            await client.send(request("GET", "/d", "Connection: close"))
            assert await client.response() == (200, b"/d ")
            assert await client.reader.read() == b""

    run(test())
