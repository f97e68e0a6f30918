"""The project follows the rules of SECURITY.md. Each test checks one rule on the code, the real commands or the real
server.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import socket
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import foldserve as package
from foldserve.service import bundle
from foldserve.training.cli import main as foldserve_train
from tests.audited_server import AUDIT
from tests.service.support import MARKER, Answer, Served, foldserve, manifest, serving, write_square_root

ROOT = Path(__file__).parents[1]
GOOD = b'{"instances": [[1, 3]]}'

# Each library module that fetches from the network, and the modules of this project that may import it.
FETCHES = {
    "urllib.request": (),
    "http.client": ("service/commands/health.py", "service/commands/http_client.py"),
    "ftplib": (),
    "smtplib": (),
}
FETCHES |= dict.fromkeys(("requests", "httpx", "aiohttp", "urllib3", "fsspec", "huggingface_hub", "boto3"), ())
UNPICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# Functions that run code from a file, a text or a pickle.
RUNS = {"eval", "exec", "torch.load", "torch.save", "pd.read_pickle", "os.system"}


# --- the code --------------------------------------------------------------------------------------------------------


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the path and the syntax tree of each module of the package."""
    for folder in ("service", "training"):
        for file in (Path(package.__file__).parent / folder).rglob("*.py"):
            yield str(file.relative_to(Path(package.__file__).parent)), ast.parse(file.read_text(encoding="utf-8"))


MODULES = dict(modules())


def imported(tree: ast.Module) -> set[str]:
    """Return every module, or member of a module, that a module imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    return names


def called(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Yield (source text of the called function, syntax node) for each call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_module_can_fetch_from_the_network() -> None:
    for path, tree in MODULES.items():
        for name in imported(tree):
            for fetcher, allowed in FETCHES.items():
                assert name.split(".")[: fetcher.count(".") + 1] != fetcher.split(".") or path in allowed, (path, name)


def test_no_module_unpickles_or_runs_code_from_data() -> None:
    for path, tree in MODULES.items():
        names = imported(tree)
        assert not {name.split(".")[0] for name in names} & UNPICKLES, path
        for name, call in called(tree):
            if name == "torch.load":
                assert {each.arg: ast.unparse(each.value) for each in call.keywords}["weights_only"] == "True", path
            else:
                assert name not in RUNS, (path, name)
            assert not name.endswith("register_custom_ops_library"), path
            if name == "np.load":
                assert {each.arg: ast.unparse(each.value) for each in call.keywords}["allow_pickle"] == "False", path
            # `send` and `recv` of a multiprocessing connection use pickle. `Line.send` sends JSON, so it may be used.
            if "multiprocessing.connection" in names and name != "line.send":
                assert name.rpartition(".")[2] not in {"send", "recv"}, (path, name)


def test_sizes_from_a_request_are_multiplied_without_overflow() -> None:
    """A product of `np.prod` may overflow 64 bits without an error. `math.prod` never overflows."""
    for path, tree in MODULES.items():
        if path.startswith("service/"):
            allowed = {"math.prod"} | ({"prod"} if "math.prod" in imported(tree) else set())
            assert {name for name, _ in called(tree) if name.rpartition(".")[2] == "prod"} <= allowed, path


# --- the running server ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Audited:
    """A real server whose audit events are recorded."""

    server: Served
    record: Path

    def events(self) -> list[tuple[str, str]]:
        """Return the events that are recorded so far."""
        return [tuple(json.loads(line)) for line in self.record.read_text().splitlines()]

    def send(self, method: str, path: str, *headers: str, body: bytes = b"") -> Answer:
        return self.server.send(method, path, *headers, body=body)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    folder = tmp_path_factory.mktemp("audited")
    (folder / "models").mkdir()
    write_square_root(folder / "models")
    env = {AUDIT: str(folder / "audit")}
    with serving(folder / "models", folder / "log", env=env, program="tests.audited_server") as server:
        yield Audited(server, folder / "audit")


def peak(server: Served) -> int:
    """Return the peak memory of the server in bytes."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024


def test_the_record_sees_the_start_of_the_server(audited: Audited) -> None:
    """The recorder of events works: it records that the server reads its bundle."""
    assert any(event == "open" and path.endswith("model.onnx") for event, path in audited.events())


def harmless(event: str, path: str) -> bool:
    """Return true if the event only reads files for an import or for a measurement of the process."""
    readable = (sys.prefix, sys.base_prefix, str(ROOT / "service"), str(ROOT / "foldserve"), "/proc/", "/sys/")
    return event in {"open", "os.listdir", "os.scandir"} and path.startswith(readable)


@pytest.mark.parametrize("where", ["load", "uri", "torchserve", "parameters", "name", "instances", "header"])
def test_a_client_can_not_make_the_server_load_from_a_url_or_a_path(where: str, audited: Audited) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/{MARKER}.onnx"
        quoted = urllib.parse.quote(url, safe="")
        method, path, headers, body = {
            "load": ("POST", "/v2/repository/models/roots/load", (), {"parameters": {"config": url, "file:1/m": url}}),
            "uri": ("POST", f"/v2/repository/models/{quoted}/load", (), {"parameters": {"uri": url}}),
            "torchserve": ("POST", f"/models?url={quoted}", (), {}),
            "parameters": ("POST", "/v2/models/roots/infer", (), {"inputs": [], "parameters": {"url": url}}),
            "name": ("GET", f"/v1/models/{quoted}/metadata", (), None),
            "instances": ("POST", "/predict", (), {"instances": [{"a": {"b64": url}, "b": url}]}),
            "header": ("POST", "/predict", (f"X-Model-Url: {url}", f"Location: {url}"), {"instances": []}),
        }[where]
        before = len(audited.events())
        answer = audited.send(method, path, *headers, body=b"" if body is None else json.dumps(body).encode())
        assert 400 <= answer.status < 500
        assert audited.send("POST", "/predict", body=GOOD).status == 200
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert [event for event in audited.events()[before:] if not harmless(*event)] == []


NAMES = ["..%2f..%2fetc%2fpasswd", "%2e%2e", "..;", "roots%2f..%2froots", "%00", "roots%00.onnx", "%ff", "~root"]


@pytest.mark.parametrize("name", [*NAMES, "/etc/passwd", "C:%5c", "a" * 300, "file:%2f%2f%2fetc%2fpasswd"])
@pytest.mark.parametrize(
    "path", ["/v1/models/{}", "/v2/models/{}/infer", "/v1/models/roots/versions/{}", "/v2/models/{}"]
)
def test_a_name_from_a_request_is_never_a_path(path: str, name: str, audited: Audited) -> None:
    before = len(audited.events())
    for method, body in (("GET", b""), ("POST", b"{}")):
        assert audited.send(method, path.format(name), body=body).status in {400, 404, 405}
    assert [event for event in audited.events()[before:] if not harmless(*event)] == []


@pytest.mark.parametrize(
    "path", ["logging", "trace/setting", "systemsharedmemory/region/r/register", "cudasharedmemory/status"]
)
def test_a_client_can_not_change_files_or_memory_of_the_server(path: str, audited: Audited) -> None:
    before = len(audited.events())
    settings = {"log_file": f"/tmp/{MARKER}", "trace_file": f"/tmp/{MARKER}", "key": "/psm_1", "byte_size": 64}  # noqa: S108
    for method in ("GET", "POST"):
        assert audited.send(method, f"/v2/{path}", body=json.dumps(settings).encode()).status in {404, 405}
    assert [event for event in audited.events()[before:] if not harmless(*event)] == []


def tensor(shape: list[int], **fields: object) -> bytes:
    return json.dumps({"inputs": [{"name": "input", "datatype": "FP32", "shape": shape, **fields}]}).encode()


# Shapes whose number of elements or bytes wraps around to a small number in 32 or 64 bits.
SHAPES = [
    [2**61, 2],
    [2**62, 2],
    [2**63, 2],
    [2**64, 2],
    [2**31, 2],
    [2**32 + 1, 2],
    [2**32, 2**32],
    [-1, 2],
    [-(2**63), -2],
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_size_is_checked_before_memory_is_allocated(shape: list[int], audited: Audited) -> None:
    assert audited.send("POST", "/predict", body=GOOD).status == 200
    before = peak(audited.server)
    path = "/v2/models/roots/infer"
    assert audited.send("POST", path, body=tensor(shape, data=[1.0, 2.0])).status == 400
    for size in (0, 8, 2**63, 2**64):
        text = tensor(shape, parameters={"binary_data_size": size})
        header = f"Inference-Header-Content-Length: {len(text)}"
        assert audited.send("POST", path, header, body=text + b"\0" * 8).status == 400
    for length in ("99999999999", str(2**64), "-1"):
        assert audited.send("POST", path, f"Inference-Header-Content-Length: {length}", body=GOOD).status == 400
    assert audited.send("POST", path, f"Content-Length: {2**64}").status in {400, 413}
    assert peak(audited.server) - before < 32 * 2**20
    assert audited.send("POST", "/predict", body=GOOD).status == 200


REFUSED = {
    "path": ("GET", f"/{MARKER}", (), b""),
    "query": ("GET", f"/v1/models/{MARKER}?{MARKER}={MARKER}", (), b""),
    "method": (MARKER, "/predict", (), GOOD),
    "header": ("POST", "/predict", (f"{MARKER}: x", f"X-Request-Timeout-Ms: {MARKER}"), GOOD),
    "type": ("POST", "/predict", (f"Content-Type: {MARKER}/{MARKER}",), GOOD),
    "encoding": ("POST", "/predict", (f"Content-Encoding: {MARKER}",), GOOD),
    "key": ("POST", "/predict", (), json.dumps({MARKER: [[1, 3]]}).encode()),
    "column": ("POST", "/predict", (), json.dumps({"instances": [{f"<{MARKER}>": 1, "b": 2}]}).encode()),
    "value": ("POST", "/predict", (), json.dumps({"instances": [[MARKER, 3]]}).encode()),
    "tensor": ("POST", "/v2/models/roots/infer", (), json.dumps({"inputs": [{"name": MARKER}]}).encode()),
    "datatype": ("POST", "/v2/models/roots/infer", (), tensor([1, 2], data=[1, 3]).replace(b"FP32", MARKER.encode())),
    "model": ("POST", f"/v2/models/{MARKER}/infer", (), tensor([1, 2], data=[1, 3])),
    "failure": ("POST", "/predict", (), b'{"instances": [[-1, 0]]}'),
}
# Internal details that no response may show: a path, a module, an address in memory, the class of an exception.
INSIDE = re.compile(
    rb"/(?:tmp|home|root|opt|usr)/|\.py\b|0x[0-9a-f]{6}|Traceback|[A-Z]\w+(?:Error|Exception)\b|onnxruntime"
)


@pytest.mark.parametrize("what", REFUSED)
def test_an_error_never_repeats_the_request_and_shows_no_internal_details(what: str, audited: Audited) -> None:
    method, path, headers, body = REFUSED[what]
    answer = audited.send(method, path, *headers, body=body)
    assert answer.status >= 400
    assert answer.json().keys() == {"error"}
    told = answer.body + repr(sorted(answer.headers.items())).encode()
    assert MARKER.lower().encode() not in told.lower()
    assert not INSIDE.search(answer.body)


# --- files -----------------------------------------------------------------------------------------------------------


class Payload:
    """An object whose pickle makes a folder when the pickle is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The folder that a payload makes."""
    return tmp_path / "ran"


def test_a_payload_runs_where_a_pickle_is_read(ran: Path) -> None:
    """A positive control: reading the pickle runs the payload that the tests below use."""
    pickle.loads(pickle.dumps(Payload(ran)))  # noqa: S301
    assert ran.is_dir()


def test_a_model_that_is_a_pickle_is_refused_and_does_not_run(tmp_path: Path, ran: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    content = pickle.dumps(Payload(ran))
    written = bundle.write(models, "made", content, lambda version: manifest(content, version=version))
    for command in (("verify", written.path), ("inspect", written.path), ("serve", "--models", models, "--port", 0)):
        done = foldserve(*command)
        assert (done.returncode, ran.exists()) == (1, False)
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("kind", ["npz", "csv", "parquet", "pkl"])
def test_a_table_with_a_pickle_is_refused_and_does_not_run(
    kind: str, tmp_path: Path, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / f"table.{kind}"
    if kind == "npz":
        np.savez(table, x=np.array([[Payload(ran)]], dtype=object), y=np.array([1]))
    else:
        table.write_bytes(pickle.dumps(Payload(ran)))
    assert foldserve_train(["fit", str(table), "--models", str(tmp_path)]) == 1
    assert not ran.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_checkpoint_that_is_a_pickle_is_refused_and_does_not_run(
    tmp_path: Path, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "member1.safetensors").write_bytes(pickle.dumps(Payload(ran)))
    arguments = ["fit", "iris", "--models", str(tmp_path), "--checkpoint", str(folder), "--resume"]
    assert foldserve_train(arguments) == 1
    assert not ran.exists()
    assert "member1.safetensors" in capsys.readouterr().err


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_names_the_test_of_each_rule() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    _, _, table = page.partition("| rule |")
    named = set(re.findall(r"`(test_\w+)`", table))
    here = {name for name in globals() if name.startswith("test_")}
    assert named == here - {
        "test_the_page_names_the_test_of_each_rule",
        "test_the_record_sees_the_start_of_the_server",
        "test_a_payload_runs_where_a_pickle_is_read",
    }
