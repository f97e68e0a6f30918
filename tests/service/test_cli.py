"""The command, run as a person runs it: what it prints, what it exits with, one line for what it refuses."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import entry_points, version
from pathlib import Path

import httpx
import onnxruntime as ort
import pytest

from foldserve.service import bundle
from foldserve.service.settings import Settings
from tests.service.mixed import write_mixed
from tests.service.support import (
    PATIENCE,
    assert_refused_in_one_line,
    edit_manifest,
    environment,
    flip_byte,
    foldserve,
    serving,
    until_it_speaks,
    while_it_loads,
    write_roots,
)


@pytest.fixture
def digits_folder(models: Path) -> Path:
    return models / "digits" / "1"


# --- what there is ---------------------------------------------------------------------------------------------------


def test_the_installed_command_is_this_module() -> None:
    (command,) = entry_points(group="console_scripts", name="foldserve")
    assert command.value == "foldserve.service.cli:main"


def test_the_version_is_the_installed_one() -> None:
    done = foldserve("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"foldserve {version('foldserve')}\n", "")


def test_help_names_every_command() -> None:
    done = foldserve("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("serve", "health", "verify", "inspect", "doctor", "tune"):
        assert f"\n    {command} " in done.stdout


def test_the_help_of_serve_names_every_setting_its_variable_and_its_default() -> None:
    done = foldserve("serve", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        assert f"{field.description} (default: {default}; FOLDSERVE_{name.upper()})" in text


@pytest.mark.parametrize(
    "arguments", [(), ("unheard-of",), ("serve", "--unheard-of"), ("verify",), ("inspect", "a", "b"), ("tune",)]
)
def test_a_wrong_command_line_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    done = foldserve(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: foldserve")
    assert "Traceback" not in done.stderr


# --- serve: refusals to start ----------------------------------------------------------------------------------------


def test_a_port_in_use_is_refused_in_one_line(trained: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = foldserve("serve", "--models", trained, "--port", port)
    assert_refused_in_one_line(done, f"can't listen on 127.0.0.1 port {port}: Address already in use")


def test_a_port_that_is_taken_while_the_models_load_is_refused_in_one_line(models: Path) -> None:
    with socket.socket() as other:
        # As a second foldserve that starts at the same time does: both have the port until one of them listens.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with while_it_loads(models / "diabetes" / "1", other.listen):
            done = until_it_speaks("serve", "--models", models, "--port", port, "--log-level", "error")
    assert_refused_in_one_line(done, f"can't listen on 127.0.0.1 port {port}")


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "x" * 64], ids=len)
def test_a_host_that_is_none_is_refused_in_one_line(host: str, trained: Path) -> None:
    done = foldserve("serve", "--models", trained, "--host", host, "--port", "0")
    assert_refused_in_one_line(done, f"can't listen on {host} port 0")


def test_a_missing_models_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    done = foldserve("serve", "--models", tmp_path / "none", "--port", "0")
    assert_refused_in_one_line(done, f"no models to serve: {tmp_path / 'none'} is not a directory")


def test_an_empty_models_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    assert_refused_in_one_line(foldserve("serve", "--models", tmp_path, "--port", "0"), "no models to serve")


def test_a_model_that_can_not_be_read_as_one_is_refused_without_a_traceback(models: Path) -> None:
    shutil.rmtree(models / "diabetes")
    flip_byte(models / "digits" / "1" / "model.onnx", 100)
    done = foldserve("serve", "--models", models, "--port", "0")
    assert_refused_in_one_line(done, "no version of digits may be served: model.onnx is not the certified one")


def test_a_bad_flag_is_refused_in_one_line(trained: Path) -> None:
    done = foldserve("serve", "--models", trained, "--port", "abc")
    assert_refused_in_one_line(done, "setting 'port' (flag): ")


def test_a_bad_variable_is_refused_in_one_line(trained: Path) -> None:
    done = foldserve("serve", "--models", trained, env={"FOLDSERVE_PORT": "abc"})
    assert_refused_in_one_line(done, "setting 'port' (environment): ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('port = "abc"', "setting 'port' (--config): "),
        ("unheard_of = 1", "setting 'unheard_of' (--config): "),
        ("port = ", "is not TOML: "),
    ],
)
def test_a_bad_file_of_settings_is_refused_in_one_line(text: str, expected: str, trained: Path, tmp_path: Path) -> None:
    config = tmp_path / "foldserve.toml"
    config.write_text(text)
    assert_refused_in_one_line(foldserve("serve", "--models", trained, "--config", config), expected)


def test_a_missing_file_of_settings_is_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    done = foldserve("serve", "--models", trained, "--config", tmp_path / "none.toml")
    assert_refused_in_one_line(done, f"can't read {tmp_path / 'none.toml'}: No such file or directory")


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="CUDA is built in")
def test_cuda_where_there_is_none_is_refused_in_one_line(trained: Path) -> None:
    done = foldserve("serve", "--models", trained, "--port", "0", "--device", "cuda")
    assert_refused_in_one_line(done, "CUDA")


# --- serve: settings -------------------------------------------------------------------------------------------------


def test_a_flag_wins_over_the_environment_and_that_over_the_file(models: Path, tmp_path: Path) -> None:
    write_roots(models)
    config = tmp_path / "foldserve.toml"
    config.write_text('default_model = "digits"\nmax_rows = 1\nmax_body = 4096\nport = 1\n')
    environment = {"FOLDSERVE_DEFAULT_MODEL": "diabetes", "FOLDSERVE_MAX_ROWS": "2"}
    flags = ("--default-model", "roots", "--config", config)
    with serving(models, tmp_path / "log", *flags, env=environment) as served:
        answer = httpx.post(f"{served.url}/predict", json={"instances": [[1, 3], [4, 5]]})
        assert answer.json() == {"model": "roots", "version": 1, "predictions": [2, 3]}  # the flag's model
        answer = httpx.post(f"{served.url}/predict", json={"instances": [[1, 3]] * 3})
        assert "at most 2 are allowed" in answer.json()["error"]  # the environment's
        answer = httpx.post(f"{served.url}/predict", content=b" " * 4097)
        assert answer.json() == {"error": "the body is larger than 4096 bytes"}  # the file's


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_proves_a_whole_bundle(digits: bundle.Bundle) -> None:
    done = foldserve("verify", digits.path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    checks = {line.split()[1]: line for line in lines if line.startswith("ok ")}
    assert list(checks)[:3] == ["hash", "graph", "cpu"]
    assert digits.manifest.model.sha256 in checks["hash"]
    assert "Gemm Relu Gemm Relu Gemm Softmax, opset 20" in checks["graph"]
    assert "16 golden rows" in checks["cpu"]
    assert lines[-1] == "digits/1 is the model that its manifest certifies"


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_flipped_byte_is_refused_in_one_line(command: str, digits_folder: Path) -> None:
    flip_byte(digits_folder / "model.onnx", 20_000)
    assert_refused_in_one_line(
        foldserve(command, digits_folder), f"{digits_folder}: model.onnx is not the certified one"
    )


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_missing_bundle_is_refused_in_one_line(command: str, tmp_path: Path) -> None:
    assert_refused_in_one_line(foldserve(command, tmp_path / "none"), f"{tmp_path / 'none'}: no such bundle")


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_manifest_that_is_nested_without_end_is_refused_in_one_line(command: str, digits_folder: Path) -> None:
    (digits_folder / "manifest.json").write_text("[" * 100_000)
    assert_refused_in_one_line(foldserve(command, digits_folder), "manifest.json is not JSON")


def test_verify_says_what_held_before_what_did_not(digits_folder: Path) -> None:
    edit_manifest(digits_folder, lambda content: content["golden"]["outputs"][3].__setitem__(0, 0.5))
    done = foldserve("verify", digits_folder)
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["ok", "hash"], ["ok", "graph"]]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"foldserve: error: {digits_folder}: on CPUExecutionProvider the golden rows are off by ")


# --- inspect ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_inspect_shows_what_is_in_a_bundle(name: str, trained: Path) -> None:
    manifest = bundle.read(trained / name / "1").manifest
    done = foldserve("inspect", trained / name / "1")
    assert (done.returncode, done.stderr) == (0, "")
    expected = [
        *(f"{name}/1", manifest.task, manifest.model.sha256, "metrics", "what was folded where"),
        *(part for line in manifest.folded for part in (line.layer, line.rule, line.into)),
        *(f"{value:.4f}" for values in manifest.metrics.values() for value in values.values()),
        *(metric for values in manifest.metrics.values() for metric in values),
        f"certificate, against {manifest.certificate.reference}",
        *(found.runtime for found in manifest.certificate.measurements),
        *(feature.name for feature in manifest.features[:20]),
        *(
            "provenance",
            manifest.provenance.data_sha256,
            manifest.provenance.cpu,
            f"seed         {manifest.provenance.seed}",
        ),
        *(f"{package} {number}" for package, number in manifest.provenance.versions.items()),
    ]
    for text in expected:
        assert text in done.stdout


def test_inspect_shows_the_kinds_of_features(tmp_path: Path) -> None:
    done = foldserve("inspect", write_mixed(tmp_path).path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    start = lines.index(["features"]) + 2
    assert lines[start : start + 7] == [
        ["0", "age", "numeric", "no", "0", "to", "1"],
        ["1", "town", "categorical", "no", "6", "categories"],
        ["2", "member", "boolean", "no", "0", "to", "1"],
        ["3", "income", "numeric", "25.0%", "0", "to", "1"],
        ["4", "size", "categorical", "12.5%", "3", "categories"],
        ["5", "smokes", "boolean", "0.0%", "0", "to", "1"],
        ["6", "children", "categorical", "no", "3", "categories"],
    ]


def test_inspect_shows_a_name_with_markup_as_it_is(digits_folder: Path) -> None:
    edit_manifest(digits_folder, lambda content: content["features"][0].update(name="[red]a[/red]"))
    assert "[red]a[/red]" in foldserve("inspect", digits_folder).stdout


def test_it_serves_though_its_own_output_goes_to_a_full_disk(trained: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "foldserve.service",
        "serve",
        "--models",
        str(trained),
        "--port",
        str(port),
    ]
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(command, env=environment(), stdout=full, stderr=full) as server,
    ):
        try:
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until and server.poll() is None:
                with suppress(httpx.TransportError):
                    ready = httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=PATIENCE)
                    break
            assert ready.status_code == 200
            assert server.poll() is None
        finally:
            server.terminate()
