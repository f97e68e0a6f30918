"""What folding takes off the reference topology in ONNX Runtime on the CPU: nodes, parameters, latency, memory.

It knows no plot. The unfolded graph is node for node what PyTorch's exporter writes with `optimize=False`.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from torch import nn

from foldserve.service.bundle import Task
from foldserve.service.runtime.session import CPU, open_cpu, open_session
from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import Sample, Tick, descend
from foldserve.training.errors import FoldError
from foldserve.training.fold.export import to_onnx
from foldserve.training.fold.fold import fold
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture, Placement

PLACEMENTS: tuple[Placement, ...] = ("pre", "post")
_RATE = 0.1
_BATCH = 60
_STEPS = 200  # enough for running statistics that are nobody's initial values
_FLOAT = 4  # bytes
_SAME = 0.03  # of a latency: less is noise


@dataclass(frozen=True)
class Model:
    """One graph. parameters: numbers in initialisers. size: of the file, in bytes.

    nodes: as written. run: the operators that ONNX Runtime runs once it has optimised the graph, Softmax included.
    written: bytes of intermediate results and output that these operators write for each row. peak: the most bytes a
    row that one of them holds at a time, reading and writing, when no buffer is used in place. latency: median
    seconds, by whether graph optimisations are on and by rows.
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
    """Each placement unfolded and folded; `apart` is how far their outputs are apart at most, on the held-out rows."""

    models: tuple[Model, ...]
    apart: float

    def pair(self, placement: Placement) -> tuple[Model, Model]:
        """Give this placement's models: unfolded, folded."""
        unfolded, folded = (
            next(m for m in self.models if m.placement == placement and m.folded == f) for f in (False, True)
        )
        return unfolded, folded


def measure(sample: Sample, plan: DiagnosisPlan, tick: Tick) -> Saving | None:
    """Train the reference topology shortly in both placements, fold it, and measure it; None if that diverged."""
    contents: dict[tuple[Placement, bool], bytes] = {}
    for placement in PLACEMENTS:
        tick("folding", 0, plan.rounds)
        torch.manual_seed(plan.seed)
        network = build_mlp(sample.features, sample.outputs, Architecture(placement=placement, dropout=0))
        for _ in descend(network, sample, batch=_BATCH, rate=_RATE, steps=_STEPS, seed=plan.seed):
            pass
        task: Task = "classification" if sample.classification else "regression"
        try:
            folded = to_onnx(fold(network.eval()).network, sample.features, sample.outputs, task)
        except FoldError:  # its weights are no longer finite
            return None
        contents[placement, False], contents[placement, True] = unfolded_onnx(network, folded), folded
    rows = sample.held_out.x.numpy()
    with tempfile.TemporaryDirectory() as folder:
        optimised = {key: _optimised(content, Path(folder) / "model.onnx") for key, content in contents.items()}
    apart = max(float(np.abs(_run(contents[p, False], rows) - _run(contents[p, True], rows)).max()) for p in PLACEMENTS)
    latency = _latency(contents, rows, plan, tick)
    models = tuple(
        _model(placement, content, optimised[placement, folded], latency[placement, folded], folded=folded)
        for (placement, folded), content in contents.items()
    )
    return Saving(models, apart)


def unfolded_onnx(network: nn.Sequential, folded: bytes) -> bytes:
    """Write `network`, a chain of Dense, ReLU and batch norm in eval mode, as ONNX, one node a layer.

    folded: the same network, folded and exported, from which input, output, versions and last node are taken.
    """
    model = onnx.load_model_from_string(folded)
    graph = model.graph
    softmax = any(node.op_type == "Softmax" for node in graph.node)
    value, output = graph.input[0].name, graph.output[0].name
    del graph.node[:], graph.initializer[:]
    for name, layer in network.named_children():
        inputs = [value]
        if isinstance(layer, nn.BatchNorm1d):
            tensors = {"scale": layer.weight, "B": layer.bias, "mean": layer.running_mean, "var": layer.running_var}
        else:
            tensors = dict(layer.named_parameters())
        for part, tensor in tensors.items():
            if tensor is not None:
                graph.initializer.append(numpy_helper.from_array(tensor.detach().numpy(), f"{name}.{part}"))
                inputs.append(f"{name}.{part}")
        if isinstance(layer, nn.Linear):
            graph.node.append(helper.make_node("Gemm", inputs, [name], name, transB=1))
        elif isinstance(layer, nn.BatchNorm1d):
            graph.node.append(helper.make_node("BatchNormalization", inputs, [name], name, epsilon=layer.eps))
        else:
            graph.node.append(helper.make_node("Relu", inputs, [name], name))
        value = name
    if softmax:
        graph.node.append(helper.make_node("Softmax", [value], [output], output, axis=1))
    else:
        graph.node[-1].output[0] = output
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _run(content: bytes, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = open_cpu(content)
    output: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: rows})[0]
    return output


def _optimised(content: bytes, path: Path) -> onnx.ModelProto:
    open_session(content, CPU, optimised_file=path)
    return onnx.load_model(path)


def _latency(
    contents: dict[tuple[Placement, bool], bytes], rows: npt.NDArray[np.float32], plan: DiagnosisPlan, tick: Tick
) -> dict[tuple[Placement, bool], dict[bool, dict[int, float]]]:
    """Time every model in turn, round after round, so that what else the machine does meets all of them alike."""
    sessions: dict[tuple[tuple[Placement, bool], bool], ort.InferenceSession] = {
        (key, optimise): open_session(content, CPU, optimise=optimise)
        for key, content in contents.items()
        for optimise in (False, True)
    }
    batches = {n: np.resize(rows, (n, rows.shape[1])) for n in plan.latency_batches}
    seconds: dict[tuple[tuple[Placement, bool], bool, int], list[float]] = {}
    for i in range(plan.rounds):
        tick("folding", i, plan.rounds)
        for (key, optimise), session in sessions.items():
            for n, batch in batches.items():
                feed = {session.get_inputs()[0].name: batch}
                started = time.perf_counter()
                session.run(None, feed)
                seconds.setdefault((key, optimise, n), []).append(time.perf_counter() - started)
    tick("folding", plan.rounds, plan.rounds)
    return {
        key: {optimise: {n: median(seconds[key, optimise, n]) for n in batches} for optimise in (False, True)}
        for key in contents
    }


def _model(
    placement: Placement,
    content: bytes,
    optimised: onnx.ModelProto,
    latency: dict[bool, dict[int, float]],
    *,
    folded: bool,
) -> Model:
    graph = onnx.load_model_from_string(content).graph
    width = _widths(graph)
    reads_writes = [
        (sum(width[v] for v in node.input if v in width), sum(width[v] for v in node.output if v in width))
        for node in optimised.graph.node
    ]
    return Model(
        placement,
        folded,
        nodes=len(graph.node),
        run=tuple(node.op_type for node in optimised.graph.node),
        parameters=sum(prod(tensor.dims) for tensor in graph.initializer),
        size=len(content),
        written=_FLOAT * sum(writes for _, writes in reads_writes),
        peak=_FLOAT * max(reads + writes for reads, writes in reads_writes),
        latency=latency,
    )


def _widths(graph: onnx.GraphProto) -> dict[str, int]:
    """How many columns each [batch, columns] value has. A fused operator's output keeps the name of its last part's."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    width = {graph.input[0].name: graph.input[0].type.tensor_type.shape.dim[1].dim_value}
    for node in graph.node:
        width[node.output[0]] = shapes[node.input[1]][0] if node.op_type == "Gemm" else width[node.input[0]]
    return width


def about_size(saving: Saving | None) -> str:
    """Say what folding takes off the graph and its memory."""
    if saving is None:
        return "Training diverged, so there was nothing to fold."
    unfolded, folded = saving.pair("pre")
    shares = (
        ("parameters", unfolded.parameters, folded.parameters),
        ("size of the file", unfolded.size, folded.size),
        ("bytes written a row", unfolded.written, folded.written),
        ("bytes that one operator holds at most", unfolded.peak, folded.peak),
    )
    return (
        f"In placement pre folding takes {unfolded.nodes} nodes to {folded.nodes}, and what ONNX Runtime runs after "
        f"its own optimisation {_from_to(len(unfolded.run), len(folded.run))}; "
        + ", ".join(f"{name} {_share(before, after)}" for name, before, after in shares)
        + f"; the outputs are {saving.apart:.1e} apart at most."
    )


def _from_to(before: int, after: int) -> str:
    return f"stays at {before} operators" if before == after else f"goes from {before} operators to {after}"


def _share(before: int, after: int) -> str:
    return "unchanged" if before == after else f"{after / before - 1:+.1%}"


def about_latency(saving: Saving | None) -> str:
    """Say how much faster the folded models answer, where ONNX Runtime's optimisations are on."""
    if saving is None:
        return "Training diverged, so there was nothing to time."
    parts = []
    for placement in PLACEMENTS:
        unfolded, folded = (model.latency[True] for model in saving.pair(placement))
        parts.append(f"{placement} " + ", ".join(f"{_rows(n)} {_change(unfolded[n], folded[n])}" for n in folded))
    changes = [
        folded.latency[True][n] / unfolded.latency[True][n] - 1
        for unfolded, folded in map(saving.pair, PLACEMENTS)
        for n in folded.latency[True]
    ]
    if max(changes) < -_SAME:
        verdict = "folding makes every one of these faster"
    elif min(changes) < -_SAME:
        verdict = "folding makes some of these faster, not all"
    else:
        verdict = "folding makes none of these faster"
    return f"With ONNX Runtime's optimisations on, {verdict}: {'; '.join(parts)}."


def _rows(n: int) -> str:
    return f"{n:,} row{'s' * (n != 1)}"


def _change(before: float, after: float) -> str:
    change = f"{before * 1e6:.0f} to {after * 1e6:.0f} µs"
    return f"{change} (no difference)" if abs(after / before - 1) <= _SAME else f"{change} ({after / before - 1:+.0%})"
