"""Measures what folding saves. The module compares the unfolded and the folded reference topology in ONNX Runtime on
the CPU: nodes, parameters, latency and memory.

The module does not draw plots.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch

from foldserve.service.bundle import Task
from foldserve.service.figures import format_difference
from foldserve.service.runtime.session import CPU, open_cpu, open_session
from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import OnProgress, Sample, train_sgd
from foldserve.training.errors import FoldError
from foldserve.training.fold.export import to_onnx
from foldserve.training.fold.fold import fold
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture, Placement

PLACEMENTS: tuple[Placement, ...] = ("pre", "post")
_RATE = 0.1
_BATCH = 60
_STEPS = 200  # after these steps, the running statistics are far from their initial values
_FLOAT_BYTES = 4
# Two latencies count as equal if their relative difference is at most this number, because smaller differences are
# noise.
_NOISE = 0.03

# The key of a model: the placement of the batch norm, and whether the model is folded.
_Key = tuple[Placement, bool]
_Name = TypeVar("_Name")


@dataclass(frozen=True)
class Model:
    """The figures of one ONNX graph. parameters: the number of values in the initialisers. size: the size of the file
    in bytes.

    nodes: the number of nodes in the file. run: the operators that ONNX Runtime runs after it has optimised the graph,
    including the Softmax. written: the number of bytes per row that all operators together write, including the output
    of the model. peak: the number of bytes per row that the largest operator reads and writes, if every operator writes
    its output into new memory. latency: the median latency in seconds. For example, `latency[True][64]` is the latency
    for 64 rows with the graph optimisations of ONNX Runtime, and `latency[False][64]` is the latency for 64 rows
    without these optimisations.
    """

    placement: Placement
    folded: bool
    nodes: int
    run: tuple[str, ...]
    parameters: int
    size: int
    written: int
    peak: int
    latency: dict[bool, dict[int, float]]


@dataclass(frozen=True)
class Saving:
    """The measurements of the unfolded and the folded model, for each placement of the batch norm.

    apart: the largest difference between the outputs of the two models on the held-out rows.
    """

    models: tuple[Model, ...]
    apart: float

    def pair(self, placement: Placement) -> tuple[Model, Model]:
        """Return the unfolded and the folded model with this placement of the batch norm."""
        unfolded, folded = (
            next(m for m in self.models if m.placement == placement and m.folded == f) for f in (False, True)
        )
        return unfolded, folded


def measure(sample: Sample, plan: DiagnosisPlan, on_progress: OnProgress) -> Saving | None:
    """Train the reference topology for a few steps with each placement of the batch norm. Measure each network before
    and after folding.

    Return None if a training diverged.
    """
    contents: dict[_Key, bytes] = {}
    for placement in PLACEMENTS:
        on_progress("folding", 0, plan.rounds)
        torch.manual_seed(plan.seed)
        network = build_mlp(sample.features, sample.outputs, Architecture(placement=placement, dropout=0))
        for _ in train_sgd(network, sample, batch=_BATCH, rate=_RATE, steps=_STEPS, seed=plan.seed):
            pass
        task: Task = "classification" if sample.classification else "regression"
        try:
            folded = fold(network.eval()).network
        except FoldError:  # raised if a weight is not finite
            return None
        for chain in (network, folded):
            content = to_onnx(chain, sample.features, sample.outputs, task, unfolded=chain is network)
            contents[placement, chain is folded] = content
    rows = sample.held_out.x.numpy()
    with tempfile.TemporaryDirectory() as folder:
        optimised = {key: _optimise(content, Path(folder) / "model.onnx") for key, content in contents.items()}
    apart = max(float(np.abs(_run(contents[p, False], rows) - _run(contents[p, True], rows)).max()) for p in PLACEMENTS)
    latency = time_models(contents, rows, plan, on_progress, "folding")
    models = tuple(_describe_model(key, contents[key], optimised[key], latency[key]) for key in contents)
    return Saving(models, apart)


def _run(content: bytes, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = open_cpu(content)
    output: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: rows})[0]
    return output


def _optimise(content: bytes, path: Path) -> onnx.ModelProto:
    open_session(content, CPU, optimised_file=path)
    return onnx.load_model(path)


def time_models(
    contents: dict[_Name, bytes],
    rows: npt.NDArray[np.float32],
    plan: DiagnosisPlan,
    on_progress: OnProgress,
    stage: str,
) -> dict[_Name, dict[bool, dict[int, float]]]:
    """Return the median time of a run, in seconds. The result has three levels of keys: the name of the model, whether
    ONNX Runtime optimises the graph, and the number of rows.

    In each round, every model runs once for each number of rows, so that other work on the machine affects all models
    in the same way. contents: ONNX files by name. rows: float32 [rows, features]; if there are too few rows, they are
    repeated. stage: the name of the experiment that is passed to on_progress.
    """
    sessions: dict[tuple[_Name, bool], ort.InferenceSession] = {
        (key, optimise): open_session(content, CPU, optimise=optimise)
        for key, content in contents.items()
        for optimise in (False, True)
    }
    batches = {n: np.resize(rows, (n, rows.shape[1])) for n in plan.latency_batches}
    seconds: dict[tuple[_Name, bool, int], list[float]] = {}
    for i in range(plan.rounds):
        on_progress(stage, i, plan.rounds)
        for (key, optimise), session in sessions.items():
            for n, batch in batches.items():
                feed = {session.get_inputs()[0].name: batch}
                started = time.perf_counter()
                session.run(None, feed)
                seconds.setdefault((key, optimise, n), []).append(time.perf_counter() - started)
    on_progress(stage, plan.rounds, plan.rounds)
    return {
        key: {optimise: {n: median(seconds[key, optimise, n]) for n in batches} for optimise in (False, True)}
        for key in contents
    }


def _describe_model(
    key: _Key, content: bytes, optimised: onnx.ModelProto, latency: dict[bool, dict[int, float]]
) -> Model:
    graph = onnx.load_model_from_string(content).graph
    width = _widths(graph)
    reads_writes = [
        (sum(width[v] for v in node.input if v in width), sum(width[v] for v in node.output if v in width))
        for node in optimised.graph.node
    ]
    return Model(
        *key,
        nodes=len(graph.node),
        run=tuple(node.op_type for node in optimised.graph.node),
        parameters=sum(prod(tensor.dims) for tensor in graph.initializer),
        size=len(content),
        written=_FLOAT_BYTES * sum(writes for _, writes in reads_writes),
        peak=_FLOAT_BYTES * max(reads + writes for reads, writes in reads_writes),
        latency=latency,
    )


def _widths(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the number of columns of every tensor in the unoptimised graph. The keys are the names of the tensors.

    The names are also valid in the optimised graph, because the output of a fused operator keeps its name.
    """
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    width = {graph.input[0].name: graph.input[0].type.tensor_type.shape.dim[1].dim_value}
    for node in graph.node:
        width[node.output[0]] = shapes[node.input[1]][0] if node.op_type == "Gemm" else width[node.input[0]]
    return width


def describe_size(saving: Saving | None) -> str:
    """Say by how much folding reduces the graph."""
    if saving is None:
        return "Training diverged, so there was nothing to fold."
    unfolded, folded = saving.pair("pre")
    return (
        f"In placement pre, folding reduces {unfolded.nodes} nodes to {folded.nodes}, and the outputs differ by at "
        f"most {format_difference(saving.apart)}."
    )


def describe_latency(saving: Saving | None) -> str:
    """Say whether the folded models are faster than the unfolded models if the graph optimisations of ONNX Runtime are
    on.
    """
    if saving is None:
        return "Training diverged, so there was nothing to time."
    ratios = [
        folded.latency[True][n] / unfolded.latency[True][n] - 1
        for unfolded, folded in map(saving.pair, PLACEMENTS)
        for n in folded.latency[True]
    ]
    if max(ratios) < -_NOISE:
        verdict = "every one of these models faster"
    elif min(ratios) < -_NOISE:
        verdict = "some of these models faster, not all"
    else:
        verdict = "none of these models faster"
    return f"With ONNX Runtime's optimisations on, folding makes {verdict}."
