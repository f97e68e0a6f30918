"""Tests TLS on a real server: certificates of servers and clients, changed files, workers, and the health check."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.service.support import (
    PATIENCE,
    Served,
    assert_refused_in_one_line,
    foldserve,
    receive,
    request,
    serving,
    write_square_root,
)

BODY = b'{"instances": [[1, 3]]}'

OPENSSL = shutil.which("openssl") or "openssl"

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed: apt-get install openssl")


class Authority:
    """A certificate authority that OpenSSL's program makes. Each certificate has its key in the same file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        self._openssl("req", "-x509", *_KEY, "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate)

    def issue(self, name: str) -> Path:
        """Issue a certificate for 127.0.0.1, for servers and clients."""
        file, key, wish = self.folder / f"{name}.pem", self.folder / f"{name}.key", self.folder / f"{name}.csr"
        extensions = self.folder / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1\n")
        self._openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", wish)
        signed = ("-CA", self.certificate, "-CAkey", self._key, "-days", "1", "-extfile", extensions, "-out", file)
        self._openssl("x509", "-req", "-in", wish, *signed)
        file.write_text(file.read_text() + key.read_text())
        return file

    def _openssl(self, *arguments: object) -> None:
        subprocess.run([OPENSSL, *map(str, arguments)], check=True, capture_output=True)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_square_root(models)
    return models


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "first")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Path:
    return authority.issue("server")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Path:
    return authority.issue("client")


@contextmanager
def connect(port: int, trusted: Authority, certificate: Path | None = None) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=trusted.certificate)
    if certificate:
        context.load_cert_chain(certificate)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        yield wrapped


def predict(port: int, trusted: Authority, certificate: Path | None = None) -> str:
    """Send a prediction, and return the name in the server's certificate."""
    with connect(port, trusted, certificate) as connection:
        connection.sendall(request("POST", "/predict", body=BODY))
        assert receive(connection).json()["predictions"] == [2]
        return name(connection)


def name(connection: ssl.SSLSocket) -> str:
    certificate = connection.getpeercert()
    assert certificate
    return str(certificate["subject"][0][0][1])  # type: ignore[index]


def refused(port: int, trusted: Authority, certificate: Path | None = None) -> bool:
    try:
        predict(port, trusted, certificate)
    except (ssl.SSLError, ConnectionError):
        return True
    return False


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return int(free.getsockname()[1])


def health(served: Served, **variables: object) -> subprocess.CompletedProcess[str]:
    env = {f"FOLDSERVE_{key.upper()}": str(value) for key, value in variables.items()}
    return foldserve("health", env={"FOLDSERVE_PORT": str(served.port)} | env)


@pytest.mark.parametrize("workers", [1, 2])
def test_both_paths_of_a_request_answer_over_tls(
    workers: int, folder: Path, tmp_path: Path, authority: Authority, certificate: Path
) -> None:
    flags = ("--device", "cpu", "--tls-cert", certificate, "--workers", workers)
    with serving(folder, tmp_path / "log", *flags) as served:
        assert f" on https://127.0.0.1:{served.port}," in served.announcement
        with connect(served.port, authority) as connection:
            assert name(connection) == "server"
            assert connection.version() in {"TLSv1.2", "TLSv1.3"}
            for _ in range(3):  # the fast path and the app answer on one connection
                connection.sendall(request("POST", "/predict", body=BODY))
                assert receive(connection).json()["predictions"] == [2]
                connection.sendall(request("GET", "/v2/models/roots"))
                assert receive(connection).json()["name"] == "roots"
                whole = request("POST", "/v1/models/roots:predict", body=BODY)
                connection.sendall(whole[:-5])
                connection.sendall(whole[-5:])
                assert receive(connection).status == 200
            connection.sendall(request("POST", "/predict", body=b"{"))
            assert receive(connection).status == 400
        with served.connect() as plain:  # the client `plain` does not use TLS
            plain.sendall(request("GET", "/v2/health/live"))
            with suppress(ConnectionError):
                assert b"HTTP" not in plain.recv(1000)
        assert health(served, tls_cert=certificate).stdout == f"ready: 127.0.0.1:{served.port}\n"
        assert_refused_in_one_line(health(served), "does not answer")


def test_an_old_version_of_tls_is_refused(
    folder: Path, tmp_path: Path, authority: Authority, certificate: Path
) -> None:
    with serving(folder, tmp_path / "log", "--device", "cpu", "--tls-cert", certificate) as served:
        done = subprocess.run(
            [OPENSSL, "s_client", "-connect", f"127.0.0.1:{served.port}", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
            input=b"",
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode != 0
        assert predict(served.port, authority) == "server"


def test_with_client_authorities_only_their_clients_can_connect(
    folder: Path, tmp_path: Path, authority: Authority, certificate: Path, client: Path
) -> None:
    stranger = Authority(tmp_path, "stranger").issue("client")
    flags = ("--device", "cpu", "--tls-cert", certificate, "--tls-client-ca", authority.certificate)
    with serving(folder, tmp_path / "log", *flags) as served:
        assert predict(served.port, authority, client) == "server"
        assert refused(served.port, authority)
        assert refused(served.port, authority, stranger)
        settings = {"tls_cert": certificate, "tls_client_ca": authority.certificate}
        # The authority of the clients has also signed the server's certificate.
        assert health(served, **settings).returncode == 0
        assert_refused_in_one_line(health(served, tls_cert=certificate), "does not answer")


def test_on_loopback_the_port_of_administration_asks_for_no_certificate(
    folder: Path, tmp_path: Path, authority: Authority, certificate: Path
) -> None:
    other, port = Authority(tmp_path, "clients"), free_port()
    flags = ("--device", "cpu", "--tls-cert", certificate, "--tls-client-ca", other.certificate, "--admin-port", port)
    with serving(folder, tmp_path / "log", *flags) as served:
        assert refused(served.port, authority)
        with connect(port, authority) as connection:
            connection.sendall(request("GET", "/metrics"))
            assert receive(connection).status == 200
        settings = {"tls_cert": certificate, "tls_client_ca": other.certificate}
        assert_refused_in_one_line(health(served, **settings), "does not answer")
        assert health(served, **settings, admin_port=port).stdout == f"ready: 127.0.0.1:{port}\n"


@pytest.mark.parametrize("path", ["/predict", "/v1/models/roots%3Apredict"])
def test_a_client_that_closes_its_side_over_tls_is_logged_as_disconnected(
    path: str, folder: Path, tmp_path: Path, authority: Authority, certificate: Path
) -> None:
    """The log must not say that the client got a response, because with TLS the event loop can't keep one side of a
    connection open.
    """
    with serving(folder, tmp_path / "log", "--device", "cpu", "--tls-cert", certificate, "--access-log") as served:
        context = ssl.create_default_context(cafile=authority.certificate)
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(received, sent, server_hostname="127.0.0.1")
        with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE) as plain:
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    plain.sendall(sent.read())
                    received.write(plain.recv(65536))
            client.write(request("POST", path, body=BODY))
            with suppress(ssl.SSLWantReadError):
                client.unwrap()
            plain.sendall(sent.read())  # the request and `close_notify` arrive together
            while plain.recv(65536):
                pass
    lines = [line for line in served.log.read_text().splitlines() if "foldserve.access" in line]
    assert len(lines) == 1
    assert f'"POST {path}" 499 ' in lines[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_changed_files_are_used_for_new_connections(
    workers: int, folder: Path, tmp_path: Path, authority: Authority, certificate: Path, client: Path
) -> None:
    second = Authority(tmp_path, "second")
    renewed, newcomer = second.issue("renewed"), second.issue("newcomer")
    cert, ca = tmp_path / "cert", tmp_path / "ca"
    shutil.copy(certificate, cert)
    shutil.copy(authority.certificate, ca)
    flags = ("--device", "cpu", "--tls-cert", cert, "--tls-client-ca", ca, "--workers", workers)
    with (
        serving(folder, tmp_path / "log", *flags) as served,
        connect(served.port, authority, client) as kept,
    ):
        for source, target in ((renewed, cert), (second.certificate, ca)):
            shutil.copy(source, tmp_path / "next")
            (tmp_path / "next").replace(target)
        deadline, row = time.monotonic() + PATIENCE, 0
        while row < 10 and time.monotonic() < deadline:  # the loop ends when every worker has loaded the files
            row = row + 1 if not refused(served.port, second, newcomer) else 0
        assert row == 10
        assert predict(served.port, second, newcomer) == "renewed"
        assert refused(served.port, second, client)  # the client's authority is no longer trusted
        assert refused(served.port, second)
        kept.sendall(request("POST", "/predict", body=BODY))
        assert receive(kept).status == 200

        cert.write_text("nonsense")
        while "the TLS certificate stays as it was" not in served.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert predict(served.port, second, newcomer) == "renewed"


def test_files_that_can_not_be_used_are_a_refusal_to_start(
    folder: Path, tmp_path: Path, authority: Authority, certificate: Path
) -> None:
    encrypted, other = tmp_path / "encrypted", authority.issue("other")
    subprocess.run(
        [OPENSSL, "ec", "-in", certificate, "-aes128", "-passout", "pass:x", "-out", encrypted],
        check=True,
        capture_output=True,
    )
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    for flags, reason in (
        (("--tls-cert", tmp_path / "none"), "No such file"),
        (("--tls-cert", nonsense), "can't use the TLS certificate"),
        (("--tls-cert", authority.certificate), "can't use the TLS certificate"),  # the file has no private key
        (("--tls-cert", certificate, "--tls-key", other), "key values mismatch"),
        (("--tls-cert", certificate, "--tls-key", encrypted), "its key is encrypted"),
        (("--tls-cert", certificate, "--tls-client-ca", nonsense), "can't use the authorities"),
        (("--tls-key", certificate), "TLS needs --tls-cert"),
        (("--tls-client-ca", certificate), "TLS needs --tls-cert"),
    ):
        done = foldserve("serve", "--models", folder, "--device", "cpu", "--port", 0, *flags)
        assert_refused_in_one_line(done, reason)


def test_the_announced_command_works(folder: Path, tmp_path: Path, certificate: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed: apt-get install curl")
    with serving(folder, tmp_path / "log", "--device", "cpu", "--tls-cert", certificate) as served:
        assert served.process.stdout
        assert served.process.stdout.readline() == "try:\n"
        command = served.process.stdout.readline()
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True, timeout=PATIENCE)
        assert json.loads(done.stdout)["model"] == "roots"
