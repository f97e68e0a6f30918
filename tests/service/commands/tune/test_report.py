"""Tests the settings file that `foldserve tune` writes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from foldserve.service import settings
from foldserve.service.bundle import Bundle
from foldserve.service.commands.tune import report
from foldserve.service.commands.tune.choose import choose
from foldserve.service.commands.tune.latency import Latencies
from foldserve.service.commands.tune.report import Tuning
from foldserve.service.commands.tune.throughput import Throughput
from foldserve.service.errors import SettingsError
from foldserve.service.figures import format_duration
from tests.service.commands.tune.support import GRAPHS, ONE_THREAD, PLAIN


def tuning_of(digits: Bundle) -> Tuning:
    latencies = Latencies({1: ONE_THREAD}, GRAPHS, PLAIN, ("this: that",))
    throughput = Throughput({1: 1.0, 2: 2.0})
    choices = choose(latencies, throughput, "auto")
    when = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    return Tuning(digits.manifest, "a machine", "a version", when, "busy", latencies, throughput, choices)


def test_the_file_has_the_model_the_machine_the_reasons_and_valid_settings(digits: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "tuned.toml"
    tuning = tuning_of(digits)
    report.write(tuning, file)
    assert list(tmp_path.iterdir()) == [file]
    text = file.read_text()
    head = text.splitlines()[:5]
    assert head == [
        f"# foldserve tune, 2026-01-02 03:04 UTC: digits/1, sha256 {digits.manifest.model.sha256}",
        "# a machine",
        "# a version",
        "# not measured: this: that",
        "# busy",
    ]
    for choice in tuning.choices:
        assert f"\n# {choice.why}\n{choice.setting} = " in text
    read = settings.load({}, {}, file)
    assert (read.device, read.threads, read.buckets, read.crossover, read.workers) == (
        *("auto", 1, (16, 64, 256, 1024), 64, 2),
    )


def test_a_file_of_tune_is_overwritten_and_any_other_file_is_not(digits: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "foldserve.toml"
    report.require_writable(file)
    report.write(tuning_of(digits), file)
    report.require_writable(file)
    file.write_text("port = 80\n")
    with pytest.raises(SettingsError, match="was not written by tune"):
        report.require_writable(file)


def test_a_file_that_can_not_be_written_leaves_nothing_behind(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tuned.toml").mkdir()
    with pytest.raises(SettingsError, match="can't write"):
        report.write(tuning_of(digits), tmp_path / "tuned.toml")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tuned.toml"]


def test_the_page_on_tuning_explains_every_setting_that_is_chosen(digits: Bundle) -> None:
    page = (Path(__file__).parents[4] / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert all(f"`{choice.setting}`" in page for choice in tuning_of(digits).choices)


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
def test_a_duration_has_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
