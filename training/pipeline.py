"""The whole way in one place: table -> split -> network -> fit -> fold -> ONNX -> certificate -> bundle.

Every stage is a function of the one before; nothing is written until the certificate holds.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from platform import processor, python_version
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from service import bundle
from training import certificate, data
from training.evaluate import metrics
from training.export import INPUT, OPSET, OUTPUT, to_onnx
from training.fit import Epoch, Fitted, Rows, fit
from training.fold import Folded, fold
from training.network import Affine, mlp
from training.plan import Plan

_RECORDED = ("foldserve", "numpy", "onnx", "protobuf", "scikit-learn")
_HISTOGRAM_BINS = 10


@dataclass(frozen=True)
class Trained:
    """The stages' results. `network` is unfolded and takes raw rows, `folded` is the same function.

    tolerance: what the certificate allows, in the output's own units.
    """

    table: data.Table
    split: data.Split
    tolerance: bundle.Tolerance
    fitted: Fitted
    network: nn.Sequential
    folded: Folded


def run(
    plan: Plan, on_epoch: Callable[[Epoch], None] = lambda _: None, table: data.Table | None = None
) -> bundle.Bundle:
    """Train, fold, certify and write the next version of `plan.name`.

    table: what `data.load(plan.data)` gave, for a caller that has it.
    Raises `TrainingError` or `BundleError`; no bundle is written then.
    """
    bundle.require_folder(plan.models)  # before the work, not after it
    return export(plan, train(plan, on_epoch, table))


def train(plan: Plan, on_epoch: Callable[[Epoch], None] = lambda _: None, table: data.Table | None = None) -> Trained:
    """Load, unless `table` is given, split, standardise, fit and fold."""
    table = table or data.load(plan.data)
    test = 0.0 if plan.data.test else plan.data.test_share
    split = data.split(table, test=test, validation=plan.data.validation_share, seed=plan.seed)
    before = _standardisation(table.x[split.train])
    mean, spread = _target_scale(table, split)
    y = torch.from_numpy(table.y) if table.labels else torch.from_numpy(((table.y - mean) / spread).astype(np.float32))
    x = before(torch.from_numpy(table.x))
    with _fixed_arithmetic(plan.threads):
        torch.manual_seed(plan.seed)  # the initial weights
        fitted = fit(
            mlp(table.x.shape[1], table.outputs, plan.architecture),
            Rows(x[split.train], y[split.train]),
            Rows(x[split.validation], y[split.validation]),
            plan.recipe,
            seed=plan.seed,
            on_epoch=on_epoch,
        )
        layers = OrderedDict[str, nn.Module]([("standardise", before), *fitted.network.named_children()])
        if not table.labels:
            layers["unstandardise"] = Affine(torch.tensor([spread]), torch.tensor([mean]))
        network = nn.Sequential(layers).eval()
        return Trained(table, split, _tolerance(mean, spread), fitted, network, fold(network))


def export(plan: Plan, trained: Trained) -> bundle.Bundle:
    """Turn what was trained into ONNX, certify it and write it."""
    table, split = trained.table, trained.split
    task, held_out = table.task, data.held_out(plan.data, table, split)
    model = to_onnx(trained.folded.network, table.x.shape[1], table.outputs, task)
    seen = table.x[split.train]
    ranges = np.stack([seen.min(0), seen.max(0)], axis=1)
    drawn = certificate.draw(ranges, (seen == np.rint(seen)).all(0), certificate.RANDOM_ROWS, plan.seed)
    evidence = certificate.certify(
        trained.network, trained.folded.network, model, task, trained.tolerance, held_out=held_out.x, drawn=drawn
    )
    # The figures are the exported model's own, not those of the network that it came from.
    predict = certificate.onnx_runtime_cpu(model)
    part_of: dict[Literal["validation", "test"], data.Table]
    part_of = {"validation": table.rows(split.validation), "test": held_out}
    scores = {name: metrics(task, part.y, predict(part.x)) for name, part in part_of.items()}
    golden = certificate.golden(trained.network, task, drawn)

    def manifest(number: int) -> bundle.Manifest:
        return bundle.Manifest(
            schema_version=bundle.SCHEMA_VERSION,
            name=plan.name,
            version=number,
            created=datetime.now(UTC).replace(microsecond=0),
            task=task,
            model=bundle.ModelFile(size=len(model), sha256=sha256(model).hexdigest(), opset=OPSET),
            input=bundle.Tensor(name=INPUT, shape=(-1, table.x.shape[1])),
            output=bundle.Tensor(name=OUTPUT[task], shape=(-1, table.outputs)),
            features=tuple(_feature(name, column) for name, column in zip(table.features, seen.T, strict=True)),
            labels=table.labels,
            certificate=evidence,
            golden=golden,
            folded=tuple(bundle.Folding(**asdict(line)) for line in trained.folded.report),
            metrics=scores,
            provenance=_provenance(plan, trained, len(held_out.y)),
        )

    return bundle.write(plan.models, plan.name, model, manifest)


def _standardisation(x: npt.NDArray[np.float32]) -> Affine:
    """(x - mean) / spread over the training rows, float64; a constant column is only centred.

    The spread is the standard deviation, and at least a sixth of the range: else a value that is rare in training
    (a corner pixel that is nearly always 0) would lie 30 deviations out and decide a prediction by itself.
    """
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    spread = np.maximum(std, np.ptp(x.astype(np.float64), axis=0) / 6)
    scale = 1 / np.where(spread > 0, spread, 1.0)
    return Affine(torch.from_numpy(scale), torch.from_numpy(-mean * scale))


def _target_scale(table: data.Table, split: data.Split) -> tuple[float, float]:
    """Mean and spread of a regression's training targets; a classification's target has neither."""
    if table.labels:
        return 0.0, 1.0
    y = table.y[split.train]
    return float(y.mean()), float(y.std()) or 1.0


def _tolerance(mean: float, spread: float) -> bundle.Tolerance:
    """1e-5 + 1e-4 |ref| for outputs around 1: probabilities, or a regression's value in spreads of its target.

    In the target's own units the absolute part is scaled by the spread, and the relative part is held to 1e-4
    spreads at the mean: 1e-4 of a mean that is 10,000 spreads out would pass any model. Its floor is what float32 can
    tell apart, 16 units in the last place.
    """
    relative = 1e-4 * spread / abs(mean) if mean else 1e-4
    return bundle.Tolerance(absolute=1e-5 * spread, relative=min(max(relative, 2.0**-20), 1e-4))


def _feature(name: str, column: npt.NDArray[np.float32]) -> bundle.Feature:
    counts, edges = np.histogram(column.astype(np.float64), _HISTOGRAM_BINS)
    return bundle.Feature(
        name=name,
        range=(float(column.min()), float(column.max())),
        histogram=bundle.Histogram(edges=edges.tolist(), counts=counts.tolist()),
    )


def _provenance(plan: Plan, trained: Trained, held_out: int) -> bundle.Provenance:
    split = trained.split
    return bundle.Provenance(
        source=trained.table.source,
        data_sha256=trained.table.sha256(),
        rows={"train": len(split.train), "validation": len(split.validation), "test": held_out},
        seed=plan.seed,
        threads=plan.threads,
        cpu=_cpu(),
        hyperparameters={
            **asdict(plan.architecture),
            **asdict(plan.recipe),
            "test_share": plan.data.test_share,
            "validation_share": plan.data.validation_share,
            "best_epoch": trained.fitted.best_epoch,
        },
        versions={
            "python": python_version(),
            **{name: version(name) for name in _RECORDED},
            "torch": torch.__version__,  # with its build, which the installed metadata may leave out: 2.13.0+cu130
            **certificate.runtime_version(),
        },
    )


def _cpu() -> str:
    """Name the kind of CPU: matrix libraries choose their kernels, and so the last bits, by it."""
    model = processor()
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


@contextlib.contextmanager
def _fixed_arithmetic(threads: int) -> Iterator[None]:
    """Sums split over two threads round differently from one: a fixed, recorded number, and only stable kernels."""
    before = torch.get_num_threads()
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
            yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
