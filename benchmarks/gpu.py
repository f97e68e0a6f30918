"""Compares foldserve on a GPU with ONNX Runtime and PyTorch: `python benchmarks/gpu.py`.

One run has four parts. The first part of the run measures the limits of the hardware, with matrix products and with
copies between host and device. The second part of the run checks the contenders, times them in turns from host memory
to host memory, and checks them again. The third part of the run measures the kernels and the time that folding saves.
The last part of the run measures the service over HTTP. `--part service` runs only the last part, and `--part runtime`
runs only the other three parts. `--dry` runs everything on the CPU with tiny sizes. A run with `--dry` tests the
program and measures nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    import numpy as np
    import onnxruntime as ort
    import torch  # torch loads CUDA's libraries and cuDNN, which the unfolded model needs
except ImportError as error:
    raise SystemExit(f"gpu.py needs a GPU and the packages of foldserve[gpu,train]: {error}") from error
from rig.environments import CONTENDERS as SCRIPTS
from rig.environments import ROOT
from rig.gpu import ceilings, kernels, networks, report
from rig.gpu.contender import Contender, Device, Setting
from rig.gpu.contenders import CONTENDERS
from rig.gpu.networks import Network
from rig.gpu.onnx_contenders import OrtFolded, OrtUnfolded, OursGraphs
from rig.gpu.plan import FULL, QUICK, TINY, Plan
from rig.gpu.report import Results
from rig.gpu.service import Service, missing
from rig.gpu.timing import Block, note_failure
from rig.gpu.torch_contenders import Graphed
from rig.report import machine, write_section

from foldserve.service.bundle import Bundle
from foldserve.service.runtime.session import Precision

PACKAGES = ("foldserve", "onnxruntime-gpu", "onnxruntime", "torch", "triton", "numpy")
PROFILED: tuple[type[Contender], ...] = (OursGraphs, OrtFolded, OrtUnfolded, Graphed)
# The seconds that are reserved for the last two parts of the benchmark. Without this reserve, slow earlier parts could
# use up the whole time.
_KERNELS_S, _SERVICE_S = 30, 110
_PARTS = ("runtime", "service")
DRY = "DRY RUN: tiny sizes on the CPU. Nothing below is a measurement."


@dataclass
class Bench:
    """The conditions of the whole run, and its results so far.

    until: the value of `time.perf_counter` after which no measurement begins. reserve: the seconds that the last part
    needs. spent: the seconds that each contender has spent on compiling so far.
    """

    plan: Plan
    device: Device
    folder: Path
    nets: tuple[Network, Network]
    bundles: dict[str, Bundle]
    until: float
    reserve: float
    out: Path | None
    results: Results
    generator: np.random.Generator
    spent: dict[str, float] = field(default_factory=dict)

    def block(self, network: Network, precision: Precision) -> Block:
        """Return a `Block` for one network in one precision. The block has no open contenders yet."""
        ceilings.set_precision(precision)
        setting = Setting(self.device, network, self.bundles[network.name], precision, self.plan.buckets)
        plan = self.plan
        return Block(setting, plan.rounds, plan.seconds, self.results.note, self.generator, self.spent, plan.compiling)

    def has_time(self, what: str, reserve: float) -> bool:
        """Return whether the measurement `what` may begin. The later parts need `reserve` seconds.

        If the measurement may not begin, note that it is skipped.
        """
        if time.perf_counter() + reserve < self.until:
            return True
        self.results.note("time", f"{what}: skipped, since the time was over")
        return False

    def save(self) -> None:
        """Save the results so far, so that an interrupted run keeps them."""
        if self.out:
            (self.out / "gpu.json").write_text(json.dumps(report.as_json(self.results), indent=1), encoding="utf-8")


def main() -> None:
    """Measure and print the tables. With --out or --write, also save the tables."""
    chosen = _arguments()
    device: Device = "cpu" if chosen.dry else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu.py needs a GPU, and torch sees none; --dry runs everything on the CPU")
    if chosen.dry:
        torch.set_num_threads(1)
    heading = machine(_versions()), _gpu(device)
    plan = TINY if chosen.dry else QUICK if chosen.quick else FULL
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(plan, device, Path(folder), chosen)
        runtime, service = (part in (chosen.part or part) for part in _PARTS)
        for part in ([_ceilings_and_contenders, _kernels, _cudnn] if runtime else []) + ([_service] if service else []):
            with note_failure(bench.results.note, "gpu.py", part.__name__.strip("_")):  # keeps other results
                part(bench)
            bench.save()
    text = "\n\n".join(filter(None, (DRY if chosen.dry else "", *heading, report.summary(bench.results))))
    if chosen.out:
        everything = f"{text}\n\n## Every batch size\n\n{report.details(bench.results)}\n"
        (chosen.out / "gpu.md").write_text(everything, encoding="utf-8")
    print(text)
    if chosen.write:
        if not bench.results.figures:
            raise SystemExit("no contender was measured: benchmarks/README.md is unchanged")
        write_section(text)


def _bench(plan: Plan, device: Device, folder: Path, chosen: argparse.Namespace) -> Bench:
    until = time.perf_counter() + 60 * chosen.minutes
    models = folder / "models"
    models.mkdir()
    nets = networks.make("small", plan.small, 0), networks.make("wide", plan.wide, 1)
    bundles = {network.name: networks.write_bundle(network, models) for network in nets}
    wide = nets[1]
    results = Results(wide.title, wide.flops(1), 4 * wide.widths[0], max(plan.batches), dry=chosen.dry)
    seed = np.random.SeedSequence().entropy if chosen.seed is None else chosen.seed
    reserve = 0 if chosen.part == "runtime" else _SERVICE_S
    return Bench(plan, device, folder, nets, bundles, until, reserve, chosen.out, results, np.random.default_rng(seed))


def _ceilings_and_contenders(bench: Bench) -> None:
    """Measure the contenders in each precision.

    Matrix products are measured right before and right after the contenders.
    """
    plan, results = bench.plan, bench.results
    small, wide = bench.nets
    with note_failure(results.note, "copies", "host and device"):
        ceilings.peak(
            "fp32", (plan.square,) * 3, bench.device, 1, 20 * plan.seconds
        )  # warm up first, because an idle GPU has a low clock rate
        results.copies += ceilings.copies(plan.copied, bench.device, plan.rounds, plan.seconds)
    for network, precision in [(small, "fp32"), *((wide, precision) for precision in plan.precisions)]:
        if not bench.has_time(f"{network.title} {precision}", _KERNELS_S + bench.reserve):
            continue
        if network is wide:
            _peaks(bench, precision)
        _contenders(bench, bench.block(network, precision))
        if network is wide:
            _peaks(bench, precision)
        bench.save()


def _peaks(bench: Bench, precision: Precision) -> None:
    plan, peaks = bench.plan, bench.results.peaks
    for shape in ceilings.matmul_shapes(plan.square, max(plan.batches), plan.wide):
        with note_failure(bench.results.note, "matrix product", f"{shape} {precision}"):
            peak = ceilings.peak(precision, shape, bench.device, plan.rounds, plan.seconds)
            before = next((x for x in peaks if (x.precision, x.shape) == (precision, shape)), None)
            if before:
                before.rates += peak.rates
            else:
                peaks.append(peak)


def _contenders(bench: Bench, block: Block) -> None:
    plan, results = bench.plan, bench.results
    block.open(CONTENDERS)
    try:
        for batch in plan.batches:
            if bench.has_time(f"{block.where}, {batch:,} rows", _KERNELS_S + bench.reserve):
                results.figures += block.measure(batch)
        results.bit_comparisons.append(block.compare_bits([*plan.batches, *plan.between]))
    finally:
        block.close()


def _kernels(bench: Bench) -> None:
    """Count kernels and copies after all timings, because a profiler may slow down later runs."""
    plan, results = bench.plan, bench.results
    small, wide = bench.nets
    some = sorted({plan.batches[0], plan.batches[len(plan.batches) // 2], plan.batches[-1]})
    cases: list[tuple[Network, Precision, list[int]]]
    cases = [(small, "fp32", some), (wide, "fp32", some), *((wide, x, some[-1:]) for x in plan.precisions[1:])]
    for network, precision, batches in cases:
        block = bench.block(network, precision)
        if not bench.has_time(f"kernels of {block.where}", bench.reserve):
            continue
        block.open(PROFILED)
        for batch in batches:
            with block.prepared(batch) as ready:
                for contender in ready:
                    with note_failure(results.note, contender.title, f"{block.where}, {batch:,} rows, profiled"):
                        inputs = [block.draw(batch) for _ in range(2)]
                        counted = kernels.count(kernels.record(contender.run, inputs, bench.device), kernels.RUNS)
                        results.profiles.append(
                            kernels.Profile(network.title, precision, batch, contender.name, *counted)
                        )
        block.close()


def _cudnn(bench: Bench) -> None:
    """Run both models in a process that loads neither torch nor torch's cuDNN.

    If a model fails, the report shows the reason.
    """
    small = bench.nets[0]
    for (name, content), options in itertools.product(
        (("folded", small.folded_onnx), ("unfolded", small.unfolded_onnx)), ({}, {"enable_cudnn": "0"})
    ):
        file = bench.folder / f"{name}.onnx"
        file.write_bytes(content)
        program = [sys.executable, str(SCRIPTS / "without_cudnn.py"), str(file), str(small.widths[0])]
        title = f"{name}, {'enable_cudnn=0' if options else 'cuDNN not preloaded'}"
        with note_failure(bench.results.note, "without cuDNN", title):
            done = subprocess.run(
                [*program, json.dumps(options)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
            )
            outcome = json.loads(done.stdout.splitlines()[-1])
            loaded = "a cuDNN was loaded nevertheless" if outcome["cudnn"] else "no cuDNN was loaded"
            bench.results.cudnn.append(f"{title}: {loaded}; {outcome['why'] or 'the model runs'}")


def _service(bench: Bench) -> None:
    plan, results = bench.plan, bench.results
    if absent := missing():
        results.note("foldserve serve", f"not measured: {', '.join(absent)} can't be imported")
        return
    small, wide = bench.nets
    service = Service(
        bench.folder,
        bench.folder / "models",
        bench.device,
        max(plan.batches),
        plan.load_rounds,
        plan.load_seconds,
        results.note,
        bench.generator,
    )
    for network, precision in [(small, "fp32"), *((wide, precision) for precision in plan.served)]:
        if bench.has_time(f"{network.title} {precision} over HTTP", 0):
            with note_failure(results.note, "foldserve serve", f"{network.title} {precision}"):
                results.served += service.measure(network, precision, plan.loads)


def _gpu(device: Device) -> str:
    if device == "cpu":
        return ""
    gpu = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        reported = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        reported = "unknown"
    return (
        f"{gpu.name}, {gpu.multi_processor_count} multiprocessors, {gpu.total_memory / 1e9:.0f} GB; "
        f"driver, highest clock, power limit: {reported}; CUDA {torch.version.cuda} of torch, "
        f"{getattr(ort, 'cuda_version', '') or 'none'} of ONNX Runtime"
    )


def _versions() -> list[str]:
    """List the versions of foldserve and of the libraries that it is compared with."""
    results = []
    for package in PACKAGES:
        try:
            results.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return results


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, precisions and rounds")
    parser.add_argument(
        "--dry", action="store_true", help="run everything on the CPU with tiny sizes; measures nothing"
    )
    parser.add_argument("--part", choices=_PARTS, help="measure the runtime or the service alone")
    parser.add_argument("--minutes", type=float, default=7, help="begin nothing after this time (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="seed of the random rows (default: a new one)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="save all figures in DIR as JSON and Markdown")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    chosen = parser.parse_args(given)
    if chosen.dry and chosen.write:
        parser.error("a dry run measures nothing: there is nothing to write")
    return chosen


if __name__ == "__main__":
    main()
