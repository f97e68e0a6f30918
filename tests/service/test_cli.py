"""Tests the command line as a person uses it: help texts, settings, exit statuses, and refusals in one line."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import suppress
from importlib.metadata import entry_points, version
from pathlib import Path

import httpx
import onnxruntime as ort
import pytest

from foldserve.service.settings import Settings
from tests.service.support import (
    PATIENCE,
    assert_refused_in_one_line,
    command_line,
    environment,
    flip_byte,
    foldserve,
    serving,
    write_square_root,
)


@pytest.fixture
def digits_folder(models: Path) -> Path:
    return models / "digits" / "1"


# --- help ------------------------------------------------------------------------------------------------------------


def test_the_installed_command_is_this_module() -> None:
    (command,) = entry_points(group="console_scripts", name="foldserve")
    assert command.value == "foldserve.service.cli:main"


def test_the_version_is_the_installed_one() -> None:
    done = foldserve("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"foldserve {version('foldserve')}\n", "")


def test_help_names_every_command() -> None:
    done = foldserve("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("serve", "health", "verify", "inspect", "key", "doctor", "tune"):
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


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "x" * 64], ids=len)
def test_an_invalid_host_is_refused_in_one_line(host: str, trained: Path) -> None:
    done = foldserve("serve", "--models", trained, "--host", host, "--port", "0")
    assert_refused_in_one_line(done, f"can't listen on {host} port 0")


def test_a_missing_models_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    done = foldserve("serve", "--models", tmp_path / "none", "--port", "0")
    assert_refused_in_one_line(done, f"no models to serve: {tmp_path / 'none'} is not a directory")


def test_an_empty_models_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    assert_refused_in_one_line(
        foldserve("serve", "--models", tmp_path, "--port", "0", "--no-watch"), "no models to serve"
    )


def test_a_damaged_model_is_refused_in_one_line(models: Path) -> None:
    shutil.rmtree(models / "diabetes")
    flip_byte(models / "digits" / "1" / "model.onnx", 100)
    done = foldserve("serve", "--models", models, "--port", "0")
    assert_refused_in_one_line(done, "no version of digits may be served: model.onnx is not the certified one")


def test_an_invalid_flag_is_refused_in_one_line(trained: Path) -> None:
    done = foldserve("serve", "--models", trained, "--port", "abc")
    assert_refused_in_one_line(done, "setting 'port' (flag): ")


def test_an_invalid_variable_is_refused_in_one_line(trained: Path) -> None:
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
def test_an_invalid_config_file_is_refused_in_one_line(text: str, expected: str, trained: Path, tmp_path: Path) -> None:
    config = tmp_path / "foldserve.toml"
    config.write_text(text)
    assert_refused_in_one_line(foldserve("serve", "--models", trained, "--config", config), expected)


def test_a_missing_config_file_is_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    done = foldserve("serve", "--models", trained, "--config", tmp_path / "none.toml")
    assert_refused_in_one_line(done, f"can't read {tmp_path / 'none.toml'}: No such file or directory")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this ONNX Runtime is built with CUDA"
)
def test_cuda_without_a_gpu_is_refused_in_one_line(trained: Path) -> None:
    done = foldserve("serve", "--models", trained, "--port", "0", "--device", "cuda")
    assert_refused_in_one_line(done, "CUDA")


# --- serve: settings -------------------------------------------------------------------------------------------------


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_file(models: Path, tmp_path: Path) -> None:
    write_square_root(models)
    config = tmp_path / "foldserve.toml"
    config.write_text('default_model = "digits"\nmax_rows = 1\nmax_body = 4096\nport = 1\n')
    environment = {"FOLDSERVE_DEFAULT_MODEL": "diabetes", "FOLDSERVE_MAX_ROWS": "2"}
    flags = ("--default-model", "roots", "--config", config)
    with serving(models, tmp_path / "log", *flags, env=environment) as served:
        answer = httpx.post(f"{served.url}/predict", json={"instances": [[1, 3], [4, 5]]})
        assert answer.json() == {"model": "roots", "version": 1, "predictions": [2, 3]}  # from the flag
        answer = httpx.post(f"{served.url}/predict", json={"instances": [[1, 3]] * 3})
        assert "more rows than the 2 that are allowed" in answer.json()["error"]  # from the environment
        answer = httpx.post(f"{served.url}/predict", content=b" " * 4097)
        assert answer.json() == {"error": "the body is larger than 4096 bytes"}  # from the file


def test_a_full_disk_under_its_output_does_not_stop_the_server(trained: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = command_line("serve", "--models", trained, "--port", port)
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(command, env=environment(), stdout=full, stderr=full) as server,
    ):
        try:
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until and server.poll() is None:
                with suppress(httpx.TransportError):
                    ready = httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=PATIENCE)
                    if ready.status_code == 200:
                        break
            assert ready.status_code == 200
            assert server.poll() is None
        finally:
            server.terminate()
