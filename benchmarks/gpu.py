"""foldserve on a GPU beside what else runs such a network there: `python benchmarks/gpu.py`.

In one run: the two ceilings, a bare matrix product and a copy between host and device; contenders from host memory to
host memory, checked, timed in turns and checked again; what folding saves in kernels and time; and the service over
HTTP. `--dry` goes the whole way on the CPU with tiny sizes, to see that it works: what it prints is no measurement.
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
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch  # brings CUDA's libraries into the process, and its cuDNN, which the unfolded model needs
from rig.environments import CONTENDERS as SCRIPTS
from rig.environments import ROOT
from rig.gpu import ceilings, kernels, networks, report
from rig.gpu.contenders import CONTENDERS, Contender, Device, Graphed, OrtFolded, OrtUnfolded, OursGraphs, Setting
from rig.gpu.networks import Network, Precision
from rig.gpu.report import Found
from rig.gpu.service import LOADS, Load, Service, missing
from rig.gpu.timing import Block, noted
from rig.report import keep, machine

from foldserve.service.bundle import Bundle

PACKAGES = ("foldserve", "onnxruntime-gpu", "onnxruntime", "torch", "triton", "numpy")
PROFILED: tuple[type[Contender], ...] = (OursGraphs, OrtFolded, OrtUnfolded, Graphed)
# What is kept for the two last parts, so that a slow first one does not cost them.
_KERNELS_S, _SERVICE_S = 30, 110
DRY = "DRY RUN: tiny sizes on the CPU. Nothing below is a measurement."


@dataclass(frozen=True)
class Plan:
    """How much is measured, and for how long."""

    small: tuple[int, ...]
    wide: tuple[int, ...]
    precisions: tuple[Precision, ...]  # of the wide network; the small one is float32 alone
    batches: tuple[int, ...]
    buckets: tuple[int, ...]
    between: tuple[int, ...]  # batch sizes that are no bucket's, for the bits alone
    rounds: int
    seconds: float  # of a contender in a round
    square: int
    copied: int  # bytes
    loads: tuple[Load, ...]
    served: tuple[Precision, ...]  # of the wide network over HTTP
    load_rounds: int
    load_seconds: float
    compiling: float  # seconds, of each contender that compiles


_SMALL, _WIDE = (64, 64, 64, 10), (512, 1024, 1024, 1024, 10)
_BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_BUCKETS = (1, 4, 16, 64, 256, 1024)
_ORDER: tuple[Precision, ...] = ("fp32", "bf16", "tf32", "fp16")
FULL = Plan(
    small=_SMALL,
    wide=_WIDE,
    precisions=_ORDER,
    batches=_BATCHES,
    buckets=_BUCKETS,
    between=(3, 37, 700),
    rounds=5,
    seconds=0.04,
    square=8192,
    copied=2**28,
    loads=LOADS,
    served=("fp32", "bf16"),
    load_rounds=3,
    load_seconds=0.7,
    compiling=40,
)
QUICK = replace(
    FULL,
    precisions=("fp32", "bf16"),
    batches=(1, 64, 1024, 65536),
    between=(37,),
    rounds=3,
    seconds=0.03,
    loads=LOADS[::2],
    served=(),
    load_rounds=2,
    load_seconds=0.4,
    compiling=20,
)
TINY = replace(
    FULL,
    small=(8, 16, 16, 10),
    wide=(12, 32, 32, 32, 10),
    batches=(1, 4, 24),
    buckets=(1, 4),
    between=(3,),
    rounds=2,
    seconds=0.002,
    square=64,
    copied=2**16,
    loads=(Load(1, 1), Load(4, 3), Load(24, 2)),
    served=("fp32",),
    load_rounds=2,
    load_seconds=0.1,
    compiling=0.1,
)


@dataclass
class Bench:
    """What is the same for the whole run, and what it has found."""

    plan: Plan
    device: Device
    folder: Path
    nets: tuple[Network, Network]
    wholes: dict[str, Bundle]
    until: float  # time.perf_counter() when nothing more is begun
    out: Path | None
    found: Found
    generator: np.random.Generator
    spent: dict[str, float] = field(default_factory=dict)  # seconds of compiling, by contender

    def block(self, network: Network, precision: Precision) -> Block:
        """Give one network in one precision, nobody opened yet."""
        ceilings.set_precision(precision)
        setting = Setting(self.device, network, self.wholes[network.name], precision, self.plan.buckets)
        plan = self.plan
        return Block(setting, plan.rounds, plan.seconds, self.found.note, self.generator, self.spent, plan.compiling)

    def in_time(self, what: str, left: float) -> bool:
        """Whether there is time for one more, and `left` seconds for what comes later; notes it where there is none."""
        if time.perf_counter() + left < self.until:
            return True
        self.found.note("time", f"{what}: not begun, the time given was over")
        return False

    def save(self) -> None:
        """Keep what there is so far: who is cut off has lost nothing."""
        if self.out:
            (self.out / "gpu.json").write_text(json.dumps(report.as_json(self.found), indent=1), encoding="utf-8")


def main() -> None:
    """Measure, print, and with --out and --write keep it."""
    chosen = _arguments()
    device: Device = "cpu" if chosen.dry else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu.py measures on a GPU, and torch sees none here; --dry goes the whole way on the CPU")
    if chosen.dry:
        torch.set_num_threads(1)
    heading = machine(_versions()), _gpu(device)
    plan = TINY if chosen.dry else QUICK if chosen.quick else FULL
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(plan, device, Path(folder), chosen)
        for part in (_ceilings_and_contenders, _kernels, _cudnn, _service):
            with noted(bench.found.note, "gpu.py", part.__name__.strip("_")):  # what there is by then is kept
                part(bench)
            bench.save()
    text = "\n\n".join(filter(None, (DRY if chosen.dry else "", *heading, report.summary(bench.found))))
    if chosen.out:
        everything = f"{text}\n\n## Every batch size\n\n{report.details(bench.found)}\n"
        (chosen.out / "gpu.md").write_text(everything, encoding="utf-8")
    print(text)
    if chosen.write:
        if not bench.found.figures:
            raise SystemExit("nobody was measured: benchmarks/README.md is left as it was")
        keep(text)


def _bench(plan: Plan, device: Device, folder: Path, chosen: argparse.Namespace) -> Bench:
    until = time.perf_counter() + 60 * chosen.minutes
    models = folder / "models"
    models.mkdir()
    nets = networks.make("small", plan.small, 0), networks.make("wide", plan.wide, 1)
    wholes = {network.name: networks.write_bundle(network, models) for network in nets}
    wide = nets[1]
    found = Found(wide.title, wide.flops(1), 4 * wide.widths[0], max(plan.batches), dry=chosen.dry)
    seed = np.random.SeedSequence().entropy if chosen.seed is None else chosen.seed
    return Bench(plan, device, folder, nets, wholes, until, chosen.out, found, np.random.default_rng(seed))


def _ceilings_and_contenders(bench: Bench) -> None:
    """Measure each precision's matrix products right before and after what is held against them."""
    plan, found = bench.plan, bench.found
    small, wide = bench.nets
    with noted(found.note, "copies", "host and device"):
        ceilings.peak("fp32", (plan.square,) * 3, bench.device, 1, 20 * plan.seconds)  # an idle GPU's clock is low
        found.copies += ceilings.copies(plan.copied, bench.device, plan.rounds, plan.seconds)
    for network, precision in [(small, "fp32"), *((wide, precision) for precision in plan.precisions)]:
        if not bench.in_time(f"{network.title} {precision}", _KERNELS_S + _SERVICE_S):
            continue
        if network is wide:
            _peaks(bench, precision)
        _contenders(bench, bench.block(network, precision))
        if network is wide:
            _peaks(bench, precision)
        bench.save()


def _peaks(bench: Bench, precision: Precision) -> None:
    plan, peaks = bench.plan, bench.found.peaks
    for shape in ceilings.matmul_shapes(plan.square, max(plan.batches), plan.wide):
        with noted(bench.found.note, "matrix product", f"{shape} {precision}"):
            peak = ceilings.peak(precision, shape, bench.device, plan.rounds, plan.seconds)
            before = next((x for x in peaks if (x.precision, x.shape) == (precision, shape)), None)
            if before:
                before.rates += peak.rates
            else:
                peaks.append(peak)


def _contenders(bench: Bench, block: Block) -> None:
    plan, found = bench.plan, bench.found
    block.open(CONTENDERS)
    try:
        for batch in plan.batches:
            if bench.in_time(f"{block.where}, {batch:,} rows", _KERNELS_S + _SERVICE_S):
                found.figures += block.measure(batch)
        found.sameness.append(block.same_bits([*plan.batches, *plan.between]))
    finally:
        block.close()


def _kernels(bench: Bench) -> None:
    """Count after everything is timed: a profiler that has been there may cost later runs something."""
    plan, found = bench.plan, bench.found
    small, wide = bench.nets
    some = sorted({plan.batches[0], plan.batches[len(plan.batches) // 2], plan.batches[-1]})
    cases: list[tuple[Network, Precision, list[int]]]
    cases = [(small, "fp32", some), (wide, "fp32", some), *((wide, x, some[-1:]) for x in plan.precisions[1:])]
    for network, precision, batches in cases:
        block = bench.block(network, precision)
        if not bench.in_time(f"kernels of {block.where}", _SERVICE_S):
            continue
        block.open(PROFILED)
        for batch in batches:
            with block.prepared(batch) as ready:
                for contender in ready:
                    with noted(found.note, contender.title, f"{block.where}, {batch:,} rows, profiled"):
                        sent = [block.draw(batch) for _ in range(2)]
                        counted = kernels.count(kernels.record(contender.run, sent, bench.device), kernels.RUNS)
                        found.work.append(kernels.Work(network.title, precision, batch, contender.name, *counted))
        block.close()


def _cudnn(bench: Bench) -> None:
    """Run folded and unfolded where no torch brings a cuDNN along; that one is missing is a result."""
    small = bench.nets[0]
    for (name, content), options in itertools.product(
        (("folded", small.folded_onnx), ("unfolded", small.unfolded_onnx)), ({}, {"enable_cudnn": "0"})
    ):
        file = bench.folder / f"{name}.onnx"
        file.write_bytes(content)
        program = [sys.executable, str(SCRIPTS / "without_cudnn.py"), str(file), str(small.widths[0])]
        title = f"{name}, {'enable_cudnn=0' if options else 'cuDNN not preloaded'}"
        with noted(bench.found.note, "without cuDNN", title):
            done = subprocess.run(
                [*program, json.dumps(options)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
            )
            answer = json.loads(done.stdout.splitlines()[-1])
            loaded = "a cuDNN was loaded all the same" if answer["cudnn"] else "no cuDNN was loaded"
            bench.found.cudnn.append(f"{title}: {loaded}; {answer['why'] or 'it answers'}")


def _service(bench: Bench) -> None:
    plan, found = bench.plan, bench.found
    if absent := missing():
        found.note("foldserve serve", f"not measured: {', '.join(absent)} can't be imported here")
        return
    small, wide = bench.nets
    service = Service(
        bench.folder,
        bench.folder / "models",
        bench.device,
        max(plan.batches),
        plan.load_rounds,
        plan.load_seconds,
        found.note,
        bench.generator,
    )
    for network, precision in [(small, "fp32"), *((wide, precision) for precision in plan.served)]:
        if bench.in_time(f"{network.title} {precision} over HTTP", 0):
            with noted(found.note, "foldserve serve", f"{network.title} {precision}"):
                found.served += service.measure(network, precision, plan.loads)


def _gpu(device: Device) -> str:
    if device == "cpu":
        return ""
    of_device = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        said = "unknown"
    return (
        f"{of_device.name}, {of_device.multi_processor_count} multiprocessors, {of_device.total_memory / 1e9:.0f} GB; "
        f"driver, highest clock, power limit: {said}; CUDA {torch.version.cuda} of torch, "
        f"{getattr(ort, 'cuda_version', '') or 'none'} of ONNX Runtime"
    )


def _versions() -> list[str]:
    """Name what was measured with."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, precisions and rounds")
    parser.add_argument("--dry", action="store_true", help="the whole way on the CPU with tiny sizes; no measurement")
    parser.add_argument("--minutes", type=float, default=7, help="begin nothing after so long (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the rows that are sent; by default never the same ones")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep all figures there as JSON and Markdown")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    chosen = parser.parse_args(given)
    if chosen.dry and chosen.write:
        parser.error("a dry run measures nothing: there is nothing to write")
    return chosen


if __name__ == "__main__":
    main()
