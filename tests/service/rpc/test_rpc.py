"""Tests the Open Inference Protocol over gRPC, on a real server. The oracle is the same request over HTTP.

tests/clients has the clients of Triton and KServe.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

from tests.service.support import (
    PATIENCE,
    Served,
    environment,
    foldserve,
    serving,
    write_square_root,
)

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # noqa: E402

from foldserve.service.access.keys import Scope, create_key  # noqa: E402
from foldserve.service.rpc import open_inference_pb2 as pb  # noqa: E402
from foldserve.service.rpc.servicer import NAME  # noqa: E402

ROWS = np.array([[1, 3], [4, 5]], np.float32)


class Caller:
    """Calls one server."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)

    def call(self, name: str, request: Any, metadata: Any = (), timeout: float = PATIENCE) -> Any:
        response = getattr(pb, type(request).__name__.replace("Request", "Response"))
        method = self.channel.unary_unary(f"/{NAME}/{name}", type(request).SerializeToString, response.FromString)
        return method(request, metadata=metadata, timeout=timeout, wait_for_ready=True)

    def open_stream(self, requests: Iterator[Any], metadata: Any = ()) -> Iterator[Any]:
        method = self.channel.stream_stream(
            f"/{NAME}/ModelStreamInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelStreamInferResponse.FromString,
        )
        answers: Iterator[Any] = method(requests, metadata=metadata, timeout=PATIENCE)
        return answers

    def stream(self, requests: Sequence[Any], metadata: Any = ()) -> Sequence[Any]:
        return list(self.open_stream(iter(requests), metadata))

    def refused(self, name: str, request: Any, metadata: Any = ()) -> tuple[Any, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.call(name, request, metadata)
        return caught.value.code(), caught.value.details()


def rpc_port(served: Served) -> int:
    (port,) = re.findall(r"gRPC is on \S+ port (\d+)", served.log.read_text())
    return int(port)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("rpc")
    write_square_root(folder / "models")
    with serving(folder / "models", folder / "log", "--grpc-port", 0, "--max-rows", 100) as served:
        yield served


@pytest.fixture(scope="module")
def caller(served: Served) -> Iterator[Caller]:
    caller = Caller(f"127.0.0.1:{rpc_port(served)}")
    yield caller
    caller.channel.close()


def request(rows: np.ndarray = ROWS, *, raw: bool = True, datatype: str = "FP32", **changes: Any) -> Any:
    tensor = pb.ModelInferRequest.InferInputTensor(name="input", datatype=datatype, shape=rows.shape)
    made = pb.ModelInferRequest(model_name="roots", inputs=[tensor], **changes)
    if raw:
        made.raw_input_contents.append(rows.tobytes())
    elif datatype == "FP32":
        made.inputs[0].contents.fp32_contents.extend(rows.ravel().tolist())
    else:
        made.inputs[0].contents.int_contents.extend(rows.ravel().astype(int).tolist())
    return made


@pytest.mark.parametrize(("raw", "datatype"), [(True, "FP32"), (False, "FP32"), (False, "INT8")])
def test_rows_are_answered_as_over_http(raw: bool, datatype: str, caller: Caller, served: Served) -> None:
    answer = caller.call("ModelInfer", request(raw=raw, datatype=datatype, id="7"))
    body = {"inputs": [{"name": "input", "shape": [2, 2], "datatype": "FP32", "data": ROWS.tolist()}]}
    over_http = served.send("POST", "/v2/models/roots/infer", body=json.dumps(body).encode()).json()
    (content,) = answer.raw_output_contents
    assert (answer.model_name, answer.model_version, answer.id) == ("roots", "1", "7")
    assert list(struct.unpack("<2f", content)) == over_http["outputs"][0]["data"] == [2.0, 3.0]


def test_a_stream_answers_each_request_and_survives_an_error(caller: Caller) -> None:
    wrong = request(id="b")
    wrong.model_name = "nobody"
    answers = caller.stream([request(id="a"), wrong, request(id="c")])
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c"]
    assert [answer.error_message for answer in answers] == ["", "unknown model", ""]


def test_the_server_and_its_models_describe_themselves(caller: Caller, served: Served) -> None:
    assert caller.call("ServerLive", pb.ServerLiveRequest()).live
    assert caller.call("ServerReady", pb.ServerReadyRequest()).ready
    assert caller.call("ServerMetadata", pb.ServerMetadataRequest()).name == "foldserve"
    assert caller.call("ModelReady", pb.ModelReadyRequest(name="roots", version="1")).ready
    assert not caller.call("ModelReady", pb.ModelReadyRequest(name="roots", version="9")).ready
    metadata = caller.call("ModelMetadata", pb.ModelMetadataRequest(name="roots"))
    over_http = served.send("GET", "/v2/models/roots").json()
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        (t["name"], t["datatype"], t["shape"]) for t in over_http["inputs"]
    ]
    config = caller.call("ModelConfig", pb.ModelConfigRequest(name="roots")).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (100, [2])


def test_the_statistics_count_the_calls(caller: Caller) -> None:
    def count() -> int:
        (stats,) = caller.call("ModelStatistics", pb.ModelStatisticsRequest(name="roots")).model_stats
        return stats.inference_stats.success.count

    before = count()
    caller.call("ModelInfer", request())
    assert count() == before + 1


def test_the_index_lists_the_versions(caller: Caller) -> None:
    (model,) = caller.call("RepositoryIndex", pb.RepositoryIndexRequest()).models
    assert (model.name, model.version, model.state) == ("roots", "1", "READY")


@pytest.mark.parametrize(
    ("made", "code", "text"),
    [
        (request(model_version="9"), "NOT_FOUND", "unknown version of this model"),
        (request(ROWS[:, :1]), "INVALID_ARGUMENT", "the shape of 'input' is not [rows, 2] with at least one row"),
        (request(np.full((1, 2), np.inf, np.float32)), "INVALID_ARGUMENT", "row 0, column 'a' is infinite"),
        (request(np.full((1, 2), np.inf, np.float32), raw=False), "INVALID_ARGUMENT", "row 0, column 'a' is infinite"),
        (request(np.full((1, 2), 300), raw=False, datatype="INT8"), "INVALID_ARGUMENT", "tensor number 1 holds"),
        (request(raw=False, datatype="FP16"), "INVALID_ARGUMENT", "tensor number 1 needs raw_input_contents"),
        (pb.ModelInferRequest(model_name="roots", raw_input_contents=[b"x"]), "INVALID_ARGUMENT", "raw_input_contents"),
        (pb.ModelInferRequest(model_name="roots"), "INVALID_ARGUMENT", '"inputs" is neither the one tensor'),
    ],
)
def test_a_wrong_request_gets_a_code_and_a_text(made: Any, code: str, text: str, caller: Caller) -> None:
    found, details = caller.refused("ModelInfer", made)
    assert found is grpc.StatusCode[code]
    assert details.startswith(text)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"\x2a\x00" * 600_000, "tensors and parameters"),  # empty tensors
        (b"\x2a\x80\x89\x7a\x2a\xfb\x88\x7a" + b"\x42\x00" * 1_000_000, "raw_input_contents"),  # empty texts
        (b"\x3a\xff\xff\xff\xff\x0f", "not valid protobuf"),  # the length reaches past the end of the message
        (b"\x2b", "not valid protobuf"),
    ],
    ids=["tensors", "texts", "length", "group"],
)
def test_a_message_that_would_grow_in_memory_is_refused_unread(message: bytes, text: str, caller: Caller) -> None:
    method = caller.channel.unary_unary(f"/{NAME}/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        method(message, timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in caught.value.details()


def test_without_api_keys_the_models_can_not_be_changed(caller: Caller) -> None:
    code, text = caller.refused("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="roots"))
    assert (code, text) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "without API keys (--keys) the models can't be changed",
    )


def test_health_checks_and_reflection_answer(caller: Caller) -> None:
    checked = health_pb2_grpc.HealthStub(caller.channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    assert checked.status == health_pb2.HealthCheckResponse.SERVING
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    (answer,) = stub.ServerReflectionInfo(iter([asked]), timeout=PATIENCE)
    assert NAME in [service.name for service in answer.list_services_response.service]


def test_every_call_needs_an_api_key_with_its_scope(tmp_path: Path) -> None:
    write_square_root(tmp_path / "models")
    key, line = create_key("caller", [Scope.PREDICT], None)
    (tmp_path / "keys").write_text(line)
    flags = ("--grpc-port", 0, "--keys", tmp_path / "keys")
    with serving(tmp_path / "models", tmp_path / "log", *flags) as served:
        caller = Caller(f"127.0.0.1:{rpc_port(served)}")
        good = (("authorization", f"Bearer {key}"),)
        assert caller.call("ServerLive", pb.ServerLiveRequest()).live
        for name in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name:
            if name not in ("ServerLive", "ServerReady", "ModelStreamInfer"):
                code, _ = caller.refused(name, getattr(pb, f"{name}Request")())
                assert code is grpc.StatusCode.UNAUTHENTICATED, name
        assert caller.call("ModelInfer", request(), good).raw_output_contents
        for metadata, answered in (((), False), (good, True)):
            (answer,) = caller.stream([request()], metadata)
            assert (bool(answer.infer_response.raw_output_contents), not answer.error_message) == (answered, answered)
        code, _ = caller.refused("RepositoryIndex", pb.RepositoryIndexRequest(), good)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        caller.channel.close()


def test_accepted_calls_finish_when_the_server_stops(tmp_path: Path) -> None:
    write_square_root(tmp_path / "models")
    (tmp_path / "faults").write_text(json.dumps({"slow": 1}))
    flags = ("--grpc-port", 0, "--max-batch", 1, "--faults", tmp_path / "faults")
    program = "tests.service.serve_with_faults"
    with serving(tmp_path / "models", tmp_path / "log", *flags, program=program) as served:
        caller = Caller(f"127.0.0.1:{rpc_port(served)}")
        method = caller.channel.unary_unary(
            f"/{NAME}/ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )
        assert method(request(), timeout=PATIENCE, wait_for_ready=True).raw_output_contents
        calls = [method.future(request(), timeout=PATIENCE) for _ in range(8)]
        assert calls[0].result().raw_output_contents  # the other requests are in the queue now
        served.process.send_signal(signal.SIGTERM)
        assert all(call.result().raw_output_contents for call in calls)
        assert served.process.wait(PATIENCE) == 0
        caller.channel.close()


def test_an_open_stream_does_not_delay_the_drain_of_http(tmp_path: Path) -> None:
    write_square_root(tmp_path / "models")
    flags = ("--grpc-port", 0, "--drain-timeout", 3600)
    with serving(tmp_path / "models", tmp_path / "log", *flags) as served:
        caller, asked = Caller(f"127.0.0.1:{rpc_port(served)}"), Queue[Any]()
        answers = caller.open_stream(iter(asked.get, None))
        asked.put(request())
        assert next(answers).infer_response.raw_output_contents
        with socket.create_connection((served.host, served.port), timeout=PATIENCE) as idle:
            idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
            assert idle.recv(2**16).startswith(b"HTTP/1.1 200 ")
            served.process.send_signal(signal.SIGTERM)
            while idle.recv(2**16):
                pass
        asked.put(None)
        assert list(answers) == []
        assert served.process.wait(PATIENCE) == 0
        caller.channel.close()


def test_a_port_in_use_is_refused(served: Served, tmp_path: Path) -> None:
    write_square_root(tmp_path / "models")
    done = foldserve("serve", "--models", tmp_path / "models", "--port", 0, "--grpc-port", rpc_port(served))
    assert done.returncode == 1
    assert "for gRPC: the address is in use" in done.stderr.splitlines()[-1]


def test_without_grpcio_the_server_names_the_remedy(tmp_path: Path) -> None:
    write_square_root(tmp_path / "models")
    code = "import sys; sys.modules['grpc'] = None; from foldserve.service import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", "--models", tmp_path / "models", "--port", "0", "--grpc-port", "0"]
    done = subprocess.run(
        list(map(str, command)), env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("--grpc-port needs grpcio: pip install 'foldserve[grpc]'")


def test_the_compiled_messages_are_those_of_the_definition(tmp_path: Path) -> None:
    folder = Path(pb.__file__).parent
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--python_out={tmp_path}"]
    subprocess.run([*command, str(folder / "open_inference.proto")], check=True, timeout=PATIENCE)
    assert (tmp_path / "open_inference_pb2.py").read_text() == Path(pb.__file__).read_text(), "run make proto"
