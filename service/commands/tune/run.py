"""Runs `foldserve tune`: finds the bundle, measures, chooses, writes the settings, and prints the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from foldserve.service.bundle import Bundle, find_bundle
from foldserve.service.commands.tune import host, report
from foldserve.service.commands.tune.choose import choose
from foldserve.service.commands.tune.latency import Latencies, measure_latencies
from foldserve.service.commands.tune.report import Tuning
from foldserve.service.commands.tune.throughput import Throughput, measure_throughput
from foldserve.service.commands.tune.workload import Load, doublings
from foldserve.service.machine import cgroup
from foldserve.service.runtime.load import load as load_bundle
from foldserve.service.runtime.session import Device, Options

# The largest number of processes to measure. Each process has a copy of the model. On CUDA, each process also has a
# context of several hundred MiB.
_MAX_WORKERS = {"cpu": 64, "cuda": 16}
# This share of the measuring time is spent on the latency, and the rest on the throughput.
_LATENCY_SHARE = 0.65


def run(model: Path, output: Path, device: Device, seconds: float, as_json: bool) -> None:
    """Measure the model in the folder `model` for about `seconds`, and write the settings to `output`.

    Also prints the measurements and the settings. Raises `BundleError`, `DeviceError`, `RuntimeFailure` or
    `SettingsError`. After an error, no file is written.
    """
    report.require_writable(output)
    bundle = find_bundle(model)

    def announce() -> None:
        if not as_json:
            name = f"{bundle.manifest.name}/{bundle.manifest.version}"
            print(f"measuring {name} for about {seconds:g} s: median latency by batch size\n", flush=True)

    tuning = tune(bundle, device, seconds, on_open=announce)
    report.write(tuning, output)
    if as_json:
        print(json.dumps(report.as_json(tuning) | {"config": str(output)}, indent=2))
        return
    print(report.table(tuning.latencies), end="\n\n")
    for choice in tuning.choices:
        print(f"{choice.setting} = {json.dumps(choice.value)}: {choice.why}")
    for note in tuning.notes:
        print(note)
    print(f"\nwrote {output}; serve with it: foldserve serve --config {output}")


def tune(
    bundle: Bundle,
    device: Device,
    seconds: float,
    load: Load = load_bundle,
    on_open: Callable[[], object] = lambda: None,
) -> Tuning:
    """Measure the model for about `seconds`, and choose the settings.

    load: opens and checks a model. load must be defined at the top level of a module, because other processes import it
    by its name. on_open: called when every session is open. Raises the exceptions of `measure_latencies` and
    `measure_throughput`.
    """
    busy = host.busy()
    latencies = measure_latencies(bundle, device, _LATENCY_SHARE * seconds, load, on_open=on_open)
    throughput = _measure_processes(bundle, latencies, device, (1 - _LATENCY_SHARE) * seconds, load)
    return Tuning(
        bundle.manifest,
        host.describe(with_gpu=bool(latencies.plain)),
        host.versions(),
        datetime.now(UTC),
        busy,
        latencies,
        throughput,
        choose(latencies, throughput, device),
    )


def _measure_processes(bundle: Bundle, latencies: Latencies, device: Device, seconds: float, load: Load) -> Throughput:
    """Choose settings from the latencies, and measure the throughput of several processes with these settings.

    The threads of all processes together use all cores.
    """
    chosen = {choice.setting: choice.value for choice in choose(latencies, Throughput(), device)}
    options = Options(**{"device": "cuda" if latencies.plain else "cpu"} | chosen)  # type: ignore[arg-type]
    cores = cgroup.threads()
    # While CUDA runs the batches, the threads of the CPU are idle.
    workers = cores if options.device == "cuda" else max(1, cores // options.threads)
    if workers == 1:
        return Throughput(
            skipped=(f"workers: one process already uses all that is granted, {host.granted_processors()}",)
        )
    counts = doublings(min(workers, _MAX_WORKERS[options.device]))
    return measure_throughput(bundle, options, counts, seconds, load)
