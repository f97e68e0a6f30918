"""Tests `foldserve tune` as a person runs it: its output, its file, its refusals, and a server that uses the file."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import onnxruntime as ort
import pytest

from foldserve.service import bundle, settings
from foldserve.service.bundle import Bundle, BundleError, find_bundle
from foldserve.service.commands.tune import report
from foldserve.service.commands.tune.run import tune
from foldserve.service.commands.tune.workload import doublings
from foldserve.service.machine import cgroup, nvidia
from foldserve.service.settings import Settings
from tests.service.commands.tune.support import BATCHES, load_on_fake_gpu
from tests.service.support import (
    PATIENCE,
    assert_refused_in_one_line,
    command_line,
    environment,
    foldserve,
    serving,
    write_damaged_second,
)

no_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this ONNX Runtime is built with CUDA"
)


def test_a_machine_with_a_gpu_is_measured_and_its_settings_are_valid(digits: Bundle, tmp_path: Path) -> None:
    tuning = tune(digits, "auto", 0.2, load_on_fake_gpu)
    assert set(tuning.latencies.graphs) == set(BATCHES)
    assert {*BATCHES} <= set(tuning.latencies.plain)
    assert set(tuning.latencies.cpu) == set(doublings(cgroup.threads()))
    report.write(tuning, tmp_path / "foldserve.toml")
    read = settings.load({}, {}, tmp_path / "foldserve.toml")
    assert read == Settings.model_validate({choice.setting: choice.value for choice in tuning.choices})


def test_the_newest_version_of_a_model_is_found_and_any_version_by_its_folder(models: Path) -> None:
    write_damaged_second(models, "digits")
    assert find_bundle(models / "digits" / "1").manifest.version == 1
    with pytest.raises(BundleError, match=r"digits/2: model\.onnx is not the certified one"):
        find_bundle(models / "digits")
    shutil.rmtree(models / "digits" / "2")
    assert find_bundle(models / "digits").manifest.version == 1


def test_a_server_runs_with_the_written_file(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "foldserve.toml"
    done = foldserve("tune", trained / "digits", "-o", file, "--device", "cpu", "--seconds", "0.5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    manifest = bundle.read(trained / "digits" / "1").manifest
    assert (printed["model"], printed["sha256"]) == ("digits/1", manifest.model.sha256)
    assert set(map(int, printed["latency"]["CPU, 1 thread"])) >= set(BATCHES)
    values = {name: choice["value"] for name, choice in printed["chosen"].items()}
    assert values["device"] == "cpu"
    assert settings.load({}, {}, file) == Settings.model_validate(values)
    assert printed["config"] == str(file)
    assert list(tmp_path.iterdir()) == [file]
    with serving(trained, tmp_path / "log", "--config", file) as server:
        answer = httpx.get(f"{server.url}/v2/health/ready")
    assert answer.status_code == 200


@no_cuda
def test_the_command_prints_the_table_the_choices_and_the_skipped_measurements(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "foldserve.toml"
    done = foldserve("tune", trained / "digits" / "1", "-o", file, "--seconds", "0.2")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^ *rows +CPU, 1 thread\b", done.stdout, re.M)
    for batch in BATCHES:
        assert re.search(rf"^ *{batch:,} +\d[\d.]* [µm]s", done.stdout, re.M)
    assert re.search(r"^threads = \d+: ", done.stdout, re.M)
    assert "crossover" not in done.stdout
    # On a machine without a GPU, the output has no line about CUDA.
    assert bool(re.search(r"^not measured: CUDA: .*without CUDA", done.stdout, re.M)) == nvidia.has_gpu()
    assert f"foldserve serve --config {file}" in done.stdout
    assert ("# not measured: CUDA: " in file.read_text()) == nvidia.has_gpu()


def test_a_folder_without_a_bundle_is_refused_in_one_line(tmp_path: Path) -> None:
    output = ("-o", tmp_path / "foldserve.toml")
    assert_refused_in_one_line(foldserve("tune", tmp_path / "none", *output), "none: no such bundle")
    assert_refused_in_one_line(foldserve("tune", tmp_path, *output), "can't read manifest.json")
    assert not list(tmp_path.iterdir())


def test_an_output_that_can_not_be_written_is_refused_before_the_measurement(trained: Path, tmp_path: Path) -> None:
    model = trained / "digits"
    for output, expected in (
        (tmp_path / "none" / "foldserve.toml", "none: no such folder; make it first"),
        (tmp_path, "Is a directory"),
    ):
        assert_refused_in_one_line(foldserve("tune", model, "-o", output), expected)


@no_cuda
def test_cuda_without_a_gpu_is_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "foldserve.toml"
    done = foldserve("tune", trained / "digits", "-o", file, "--device", "cuda")
    assert_refused_in_one_line(done, "without CUDA")
    assert not file.exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "abc"])
def test_an_invalid_duration_is_a_usage_error(seconds: str) -> None:
    done = foldserve("tune", "models/digits", "--seconds", seconds)
    assert (done.returncode, done.stdout) == (2, "")
    assert "argument --seconds" in done.stderr


def test_ctrl_c_ends_the_command_and_leaves_no_file(trained: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        command_line("tune", trained / "digits", "--seconds", 3600, "-o", tmp_path / "foldserve.toml"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("measuring digits/1")
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends SIGINT to the whole process group
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (130, "")
    assert not list(tmp_path.iterdir())
