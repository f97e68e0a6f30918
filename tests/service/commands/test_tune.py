"""What is chosen from measurements, that they are taken, and that a server runs with what was written.

The choices are fed figures of machines that there are not; a machine of the host's memory stands in for a GPU.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import onnxruntime as ort
import pytest

from foldserve.service import bundle, settings
from foldserve.service.bundle import Bundle, BundleError, Parity
from foldserve.service.commands.tune import choose as tune
from foldserve.service.commands.tune import curves, measure
from foldserve.service.commands.tune import report as tuned
from foldserve.service.commands.tune.measure import MAX_BATCH, Curve, Latencies, Throughput
from foldserve.service.errors import DeviceError, RuntimeFailure, SettingsError
from foldserve.service.machine import cgroup
from foldserve.service.runtime.cpu import CpuRunner
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.load import Runtime
from foldserve.service.runtime.session import Options
from foldserve.service.settings import Settings
from tests.service.cuda_on_the_cpu import Machine
from tests.service.mixed import mixed_bundle
from tests.service.support import (
    PATIENCE,
    assert_refused_in_one_line,
    environment,
    foldserve,
    serving,
    write_damaged_second,
)

BATCHES = (1, 4, 16, 64, 256, 1024)
US = 1e-6

no_cuda = pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="CUDA is built in")


def curve(*microseconds: float) -> Curve:
    return {batch: value * US for batch, value in zip(BATCHES, microseconds, strict=True)}


ONE_THREAD = curve(10, 12, 20, 50, 200, 800)
GRAPHS = curve(32, 32, 33, 40, 60, 120)
PLAIN = curve(90, 90, 90, 95, 110, 160)


def chosen(timed: Latencies, rates: Throughput | None = None, device: Any = "auto") -> dict[str, Any]:
    """What is chosen; it is always a value that the setting may have, and a reason in one line."""
    choices = tune.choose(timed, rates or Throughput(), device)
    for choice in choices:
        assert choice.why
        assert choice.why.isprintable()
    values = {choice.setting: choice.value for choice in choices}
    assert len(values) == len(choices)
    assert Settings.model_validate(values).model_dump(include=set(values)) == values
    return values


# --- choosing --------------------------------------------------------------------------------------------------------


def test_without_cuda_nothing_is_said_of_it() -> None:
    assert chosen(Latencies({1: ONE_THREAD})) == {"threads": 1}


@pytest.mark.parametrize(
    ("by_threads", "threads"),
    [
        ({1: ONE_THREAD, 2: ONE_THREAD}, 1),
        ({1: ONE_THREAD, 2: curve(20, 22, 25, 45, 150, 500)}, 1),  # slower where most batches are
        ({1: curve(*[100] * 6), 2: curve(*[55] * 6)}, 2),
        ({1: curve(*[100] * 6), 2: curve(*[55] * 6), 4: curve(*[50] * 6)}, 2),
        ({1: curve(*[100] * 6), 2: curve(*[55] * 6), 4: curve(*[30] * 6)}, 4),
        ({1: curve(*[100] * 6), 2: curve(*[55] * 6), 3: curve(*[42] * 6)}, 3),  # half as many more, less is enough
    ],
)
def test_threads_are_the_fewest_from_which_more_gain_too_little(by_threads: dict[int, Curve], threads: int) -> None:
    assert chosen(Latencies(by_threads))["threads"] == threads


def test_batches_that_no_server_runs_decide_nothing_of_the_threads() -> None:
    two = {**ONE_THREAD, 4096: 1 * US, 16_384: 1 * US}
    assert chosen(Latencies({1: {**ONE_THREAD, 4096: 1, 16_384: 1}, 2: two}))["threads"] == 1


def test_where_the_gpu_is_faster_from_64_rows_on_fewer_run_on_the_cpu() -> None:
    values = chosen(Latencies({1: ONE_THREAD}, GRAPHS, PLAIN))
    assert values["crossover"] == 64
    assert "device" not in values


def test_where_the_gpu_is_always_faster_nothing_runs_on_the_cpu() -> None:
    assert chosen(Latencies({1: curve(40, 41, 50, 90, 300, 900)}, GRAPHS, PLAIN))["crossover"] == 0


def test_a_batch_at_which_the_gpu_falls_behind_again_is_below_the_crossover() -> None:
    cpu = curve(40, 30, 50, 90, 300, 900)  # the GPU wins at 1, loses at 4, wins from 16 on
    assert chosen(Latencies({1: cpu}, GRAPHS, PLAIN))["crossover"] == 16


def test_where_the_gpu_is_never_faster_the_cpu_serves() -> None:
    values = chosen(Latencies({1: curve(1, 2, 3, 4, 5, 6)}, GRAPHS, PLAIN))
    assert values == {"threads": 1, "device": "cpu"}


@pytest.mark.parametrize("cpu", [curve(1, 2, 3, 4, 5, 6), ONE_THREAD])
def test_a_device_that_was_asked_for_stays(cpu: Curve) -> None:
    assert chosen(Latencies({1: cpu}, GRAPHS, PLAIN), device="cuda")["device"] == "cuda"
    assert chosen(Latencies({1: cpu}), device="cpu")["device"] == "cpu"


def test_a_crossover_compares_with_what_the_batch_is_padded_to() -> None:
    # The graph of 1 row saves too little and goes; padded to 4, a row is slower than on the CPU.
    graphs = curve(29.5, 30.5, 50, 70, 100, 150)
    values = chosen(Latencies({1: curve(30, 60, 90, 200, 500, 900)}, graphs, PLAIN))
    assert values["buckets"][0] == 4
    assert values["crossover"] == 4


@pytest.mark.parametrize(
    ("graphs", "buckets"),
    [
        (GRAPHS, (16, 64, 256, 1024)),
        (curve(*[30] * 6), (1024,)),
        (curve(10, 20, 40, 80, 160, 150), (1, 4, 16, 64, 1024)),
        (curve(10, 20, 40, 80, 108, 159), (1, 4, 16, 64)),  # from the top, no faster than plain runs
        (curve(90, 90, 90, 95, 110, 160), ()),
        (curve(190, 190, 190, 195, 210, 260), ()),
    ],
)
def test_a_graph_is_kept_where_it_saves_time(graphs: Curve, buckets: tuple[int, ...]) -> None:
    assert chosen(Latencies({1: curve(*[900] * 6)}, graphs, PLAIN))["buckets"] == buckets


@pytest.mark.parametrize(
    ("rates", "workers"),
    [
        ({1: 100.0, 2: 200.0}, 2),
        ({1: 100.0, 2: 109.0}, 1),
        ({1: 100.0, 2: 111.0}, 2),
        ({1: 100.0, 2: 195.0, 4: 350.0, 8: 360.0, 16: 500.0}, 4),
        ({1: 100.0, 2: 60.0}, 1),
    ],
)
def test_workers_are_the_count_after_which_more_gain_less_than_a_tenth(rates: dict[int, float], workers: int) -> None:
    assert chosen(Latencies({1: ONE_THREAD}), Throughput(rates))["workers"] == workers


def test_each_reason_has_the_figures_that_decided() -> None:
    timed = Latencies({1: ONE_THREAD}, GRAPHS, PLAIN)
    whys = {choice.setting: choice.why for choice in tune.choose(timed, Throughput({1: 100.0, 2: 195.0}), "auto")}
    assert "16 rows in 33.0 µs on CUDA, 20.0 µs on the CPU; 64 rows in 40.0 µs on CUDA, 50.0 µs" in whys["crossover"]
    assert "16 rows in 33.0 µs as a graph, 90.0 µs as a plain run" in whys["buckets"]
    assert "1, 4 rows" in whys["buckets"]
    assert "100 with 1, 195 with 2" in whys["workers"]


# --- measuring -------------------------------------------------------------------------------------------------------


def on_a_fake_gpu(whole: Bundle, options: Options) -> tuple[Runtime, Parity]:
    """`runtime.load` where a GPU answers."""
    machine = Machine()
    cuda = CudaRunner(whole.model, options, machine.connect, machine.open_session) if options.device != "cpu" else None
    return Runtime(CpuRunner(whole.model, options.threads), cuda, options.crossover, "made"), _parity(whole)


def where_cuda_refuses(whole: Bundle, options: Options) -> tuple[Runtime, Parity]:
    if options.device != "cpu":
        raise DeviceError("no GPU today")
    return Runtime(CpuRunner(whole.model, options.threads), None, 0, "made"), _parity(whole)


def where_plain_runs_refuse(whole: Bundle, options: Options) -> tuple[Runtime, Parity]:
    return (on_a_fake_gpu if options.buckets else where_cuda_refuses)(whole, options)


class Short(CpuRunner):
    """A device that has room for so many rows."""

    room = 16

    def run(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) > self.room:
            raise MemoryError("no room")
        return super().run(rows)


def where_16_rows_fit(whole: Bundle, options: Options) -> tuple[Runtime, Parity]:
    return Runtime(Short(whole.model, options.threads), None, options, "made"), _parity(whole)


def _parity(whole: Bundle) -> Parity:
    return whole.manifest.certificate.measurements[0].parity


def test_a_machine_with_a_gpu_is_measured_whole(digits: Bundle, tmp_path: Path) -> None:
    found = tune.tune(digits, "auto", 0.2, on_a_fake_gpu)
    assert set(found.latencies.graphs) == set(BATCHES)
    assert {*BATCHES} <= set(found.latencies.plain)
    assert set(found.latencies.cpu) == set(measure.doublings(cgroup.threads()))
    tuned.write(found, tmp_path / "foldserve.toml")
    read = settings.load({}, {}, tmp_path / "foldserve.toml")
    assert read == Settings.model_validate({choice.setting: choice.value for choice in found.choices})


@pytest.mark.parametrize("load", [where_cuda_refuses, where_plain_runs_refuse])
def test_where_cuda_refuses_the_reason_is_kept_and_the_cpu_is_measured(load: measure.Load, digits: Bundle) -> None:
    timed = measure.latencies(digits, "auto", 0.1, load, batches=(1, 4))
    assert timed.left_out == ("CUDA: no GPU today",)
    assert (timed.graphs, timed.plain) == ({}, {})
    assert all(set(curve) == {1, 4} for curve in timed.cpu.values())
    assert all(0 < seconds < PATIENCE for curve in timed.cpu.values() for seconds in curve.values())


def test_cuda_that_was_asked_for_and_refuses_is_a_refusal(digits: Bundle) -> None:
    with pytest.raises(DeviceError, match="no GPU today"):
        measure.latencies(digits, "cuda", 0.1, where_cuda_refuses)


def test_a_batch_that_the_service_would_run_must_run(digits: Bundle) -> None:
    with pytest.raises(RuntimeFailure, match=r"CPU, 1 thread: a run of 64 rows failed: no room"):
        measure.latencies(digits, "cpu", 0.1, where_16_rows_fit, batches=(16, 64))


def test_a_larger_one_that_fails_is_left_out(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Short, "room", MAX_BATCH)
    timed = measure.latencies(digits, "cpu", 0.1, where_16_rows_fit, batches=(1024, 4096))
    assert set(timed.cpu[1]) == {1024}
    assert "CPU, 1 thread, 4,096 rows: no room" in timed.left_out


def test_processes_run_the_model_at_the_same_time(digits: Bundle) -> None:
    rates = measure.throughput(digits, Options("cpu"), (1, 2), 0.1)
    assert set(rates.rates) == {1, 2}
    assert all(rate > 0 for rate in rates.rates.values())


def test_processes_that_can_not_be_had_are_a_refusal(digits: Bundle) -> None:
    with pytest.raises(DeviceError, match="no process can run the model: no GPU today"):
        measure.throughput(digits, Options("cuda"), (1,), 0.1, where_cuda_refuses)


def test_the_rows_are_such_as_a_request_may_hold() -> None:
    manifest = mixed_bundle().manifest
    rows = measure.draw(manifest, 500, np.random.default_rng(0))
    assert (rows.dtype, rows.shape) == (np.float32, (500, len(manifest.features)))
    for feature, column in zip(manifest.features, rows.T.astype(float).tolist(), strict=True):
        assert all(map(feature.admits, column))
        assert len(set(column)) > 1
        if feature.range:
            assert feature.range[0] <= min(column) <= max(column) <= feature.range[1]


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_counts_double_up_to_the_most(most: int, counts: list[int]) -> None:
    assert measure.doublings(most) == counts


# --- the picture -----------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def drawn(found: dict[str, Curve]) -> ElementTree.Element:
    return ElementTree.fromstring(curves.draw("a <title> & more", "below", "rows", "time", found))  # noqa: S314


def test_the_picture_has_a_line_a_curve_named_beside_it() -> None:
    found = {f"way {number}": {1: 1e-5 * number, 1024: 1e-3 * number} for number in range(1, 15)}
    picture = drawn(found)
    lines = picture.findall(f"{SVG}polyline")
    assert [line.findtext(f"{SVG}title") for line in lines] == list(found)
    assert len({(line.get("stroke"), line.get("stroke-dasharray")) for line in lines}) == len(found)
    texts = {text.text for text in picture.iter(f"{SVG}text")}
    assert {"a <title> & more", "below", "rows", "time", "1", "1,024", "10 µs", "100 ms", *found} <= texts


def test_the_picture_is_logarithmic_both_ways_and_inside_its_frame() -> None:
    picture = drawn({"one": {1: 1e-5, 32: 1e-4, 1024: 1e-3}})
    points = [tuple(map(float, point.split(","))) for point in picture.find(f"{SVG}polyline").get("points").split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y2 < y0
    width, height = (float(picture.get(side)) for side in ("width", "height"))
    assert all(0 < x < width and 0 < y < height for x, y in points)


def test_a_single_point_is_drawn() -> None:
    assert len(drawn({"one": {1: 1e-5}}).findall(f"{SVG}polyline")) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.2123e-6, "4.21 µs"),
        (9.999e-6, "10.0 µs"),
        (99.96e-6, "100 µs"),
        (999.4e-6, "999 µs"),
        (999.6e-6, "1.00 ms"),
        (0.0137, "13.7 ms"),
        (0.9999, "1.00 s"),
        (75, "75.0 s"),
        (1e-9, "0.00 µs"),
    ],
)
def test_a_time_has_three_digits_and_its_unit(seconds: float, text: str) -> None:
    assert curves.duration(seconds) == text


# --- the files -------------------------------------------------------------------------------------------------------


def tuned_by_hand(digits: Bundle) -> tune.Tuned:
    timed, rates = Latencies({1: ONE_THREAD}, GRAPHS, PLAIN, ("this: that",)), Throughput({1: 1.0, 2: 2.0})
    choices = tune.choose(timed, rates, "auto")
    when = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    return tune.Tuned(digits.manifest, "a machine", "a version", when, ("busy",), timed, rates, choices)


def test_the_file_says_of_what_where_when_and_why_and_is_read_as_settings(digits: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "tuned.toml"
    found = tuned_by_hand(digits)
    assert tuned.write(found, file) == tmp_path / "tuned.svg"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "tuned.svg", file]
    text = file.read_text()
    head = text.splitlines()[:5]
    assert head == [
        f"# foldserve tune, 2026-01-02 03:04 UTC: digits/1, sha256 {digits.manifest.model.sha256}",
        "# a machine",
        "# a version",
        "# not measured: this: that",
        "# busy",
    ]
    for choice in found.choices:
        assert f"\n# {choice.why}\n{choice.setting} = " in text
    read = settings.load({}, {}, file)
    assert (read.device, read.threads, read.buckets, read.crossover, read.workers) == (
        *("auto", 1, (16, 64, 256, 1024), 64, 2),
    )


def test_what_tune_wrote_is_written_over_and_what_a_person_wrote_is_not(digits: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "foldserve.toml"
    tuned.require_place(file)
    tuned.write(tuned_by_hand(digits), file)
    tuned.require_place(file)
    file.write_text("port = 80\n")
    with pytest.raises(SettingsError, match="not written by tune"):
        tuned.require_place(file)


def test_a_file_that_can_not_be_written_leaves_nothing_behind(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tuned.svg").mkdir()
    with pytest.raises(SettingsError, match="can't write"):
        tuned.write(tuned_by_hand(digits), tmp_path / "tuned.toml")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tuned.svg"]


def test_the_newest_version_of_a_model_is_taken_and_any_when_named(models: Path) -> None:
    write_damaged_second(models, "digits")
    assert tune.find(models / "digits" / "1").manifest.version == 1
    with pytest.raises(BundleError, match=r"digits/2: model\.onnx is not the certified one"):
        tune.find(models / "digits")
    shutil.rmtree(models / "digits" / "2")
    assert tune.find(models / "digits").manifest.version == 1


def test_the_page_on_tuning_names_every_setting_that_is_chosen(digits: Bundle) -> None:
    page = (Path(__file__).parents[3] / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert all(f"`{choice.setting}`" in page for choice in tuned_by_hand(digits).choices)


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_server_runs_with_what_the_command_wrote(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "foldserve.toml"
    done = foldserve("tune", trained / "digits", "-o", file, "--device", "cpu", "--seconds", "0.5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert (said["model"], said["sha256"]) == ("digits/1", bundle.read(trained / "digits" / "1").manifest.model.sha256)
    assert set(map(int, said["latency"]["CPU, 1 thread"])) >= set(BATCHES)
    values = {name: choice["value"] for name, choice in said["chosen"].items()}
    assert values["device"] == "cpu"
    assert settings.load({}, {}, file) == Settings.model_validate(values)
    assert (said["config"], said["picture"]) == (str(file), str(tmp_path / "foldserve.svg"))
    picture = ElementTree.parse(tmp_path / "foldserve.svg")  # noqa: S314
    lines = picture.getroot().findall(f"{SVG}polyline")
    assert [line.findtext(f"{SVG}title") for line in lines] == list(said["latency"])
    with serving(trained, tmp_path / "log", "--config", file) as server:
        answer = httpx.get(f"{server.url}/v2/health/ready")
    assert answer.status_code == 200


@no_cuda
def test_the_command_shows_the_table_the_choices_and_what_it_did_not_measure(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "foldserve.toml"
    done = foldserve("tune", trained / "digits" / "1", "-o", file, "--seconds", "0.2")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^ *rows +CPU, 1 thread\b", done.stdout, re.M)
    for batch in BATCHES:
        assert re.search(rf"^ *{batch:,} +\d[\d.]* [µm]s", done.stdout, re.M)
    assert re.search(r"^threads = \d+: ", done.stdout, re.M)
    assert "crossover" not in done.stdout
    assert re.search(r"^not measured: CUDA: .*without CUDA", done.stdout, re.M)
    assert f"foldserve serve --config {file}" in done.stdout
    assert "# not measured: CUDA: " in file.read_text()


def test_what_is_no_bundle_is_refused_in_one_line(tmp_path: Path) -> None:
    output = ("-o", tmp_path / "foldserve.toml")
    assert_refused_in_one_line(foldserve("tune", tmp_path / "none", *output), "none: no such bundle")
    assert_refused_in_one_line(foldserve("tune", tmp_path, *output), "can't read manifest.json")
    assert not list(tmp_path.iterdir())


def test_an_output_that_can_not_be_is_refused_before_anything_is_measured(trained: Path, tmp_path: Path) -> None:
    model = trained / "digits"
    for output, expected in (
        (tmp_path / "none" / "foldserve.toml", "none: no such folder; make it first"),
        (tmp_path / "a.svg", "is to be TOML"),
        (tmp_path, "Is a directory"),
    ):
        assert_refused_in_one_line(foldserve("tune", model, "-o", output), expected)


@no_cuda
def test_cuda_that_is_not_there_is_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "foldserve.toml"
    done = foldserve("tune", trained / "digits", "-o", file, "--device", "cuda")
    assert_refused_in_one_line(done, "without CUDA")
    assert not file.exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "abc"])
def test_a_time_that_is_none_is_a_usage_error(seconds: str) -> None:
    done = foldserve("tune", "models/digits", "--seconds", seconds)
    assert (done.returncode, done.stdout) == (2, "")
    assert "argument --seconds" in done.stderr


def test_ctrl_c_ends_it_and_leaves_no_file(trained: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "foldserve.service",
        "tune",
        trained / "digits",
        "--seconds",
        "3600",
    ]
    with subprocess.Popen(
        [*map(str, command), "-o", str(tmp_path / "foldserve.toml")],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("measuring digits/1")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: whatever it has started gets it too
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (130, "")
    assert not list(tmp_path.iterdir())
