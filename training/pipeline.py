"""The whole way in one place: table -> split -> network -> fit -> fold -> ONNX -> certificate -> bundle.

Every stage is a function of the one before; nothing is written until the certificate holds.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal

import numpy as np
import torch
from torch import nn

from foldserve.service import bundle
from foldserve.training.certify import certificate, record
from foldserve.training.fit import calibrate
from foldserve.training.fit.checkpoint import Checkpoints
from foldserve.training.fit.distributed import World
from foldserve.training.fit.loop import Epoch, EpochProgress, Examples, Fitted, fit
from foldserve.training.fold.export import INPUT, OPSET, OUTPUT, to_onnx
from foldserve.training.fold.fold import Folded
from foldserve.training.fold.merge import fold_mean
from foldserve.training.network.layers import Affine, Mean
from foldserve.training.network.mlp import build_mlp
from foldserve.training.network.preprocessing import fit_preprocessing, transform
from foldserve.training.plan import Execution, Plan
from foldserve.training.report import report
from foldserve.training.report.evaluate import metrics, permutation_importance
from foldserve.training.table.load import load, load_held_out
from foldserve.training.table.schema import Split, Table
from foldserve.training.table.split import split_rows

# What the last layer of a chain is called: it undoes the target's scale, or divides by the temperature.
_BACK: dict[bundle.Task, str] = {"classification": "temperature", "regression": "unstandardise"}


@dataclass(frozen=True)
class Ready:
    """A table ready to be learned from.

    front: what stands before every network, raw features to `learn.x`. mean, spread: of a regression's training
    targets, which `learn.y` is in terms of; 0 and 1 for classification. learn, stop: the split's two parts, encoded.
    """

    table: Table
    split: Split
    front: nn.Sequential
    mean: float
    spread: float
    learn: Examples
    stop: Examples


@dataclass(frozen=True)
class Trained:
    """The stages' results. `network` is unfolded and takes raw rows, `folded` is the same function.

    tolerance: what the certificate allows, in the output's own units. fitted: one for each member of the ensemble.
    """

    table: Table
    split: Split
    tolerance: bundle.Tolerance
    fitted: tuple[Fitted, ...]
    temperature: float
    network: nn.Module
    folded: Folded


@dataclass(frozen=True)
class Written:
    """A bundle, and what its report was made of."""

    bundle: bundle.Bundle
    evidence: report.Evidence


@dataclass(frozen=True)
class Context:
    """What a run takes place in. Who watches: `on_epoch` and `on_progress`, the hooks of `fit`, whose epochs are
    numbered through all members of an ensemble."""

    execution: Execution = field(default_factory=Execution)
    world: World = field(default_factory=World)
    on_epoch: Callable[[Epoch], None] = lambda _: None
    on_progress: Callable[[EpochProgress], None] = lambda _: None


def run(plan: Plan, table: Table | None = None, context: Context | None = None) -> Written | None:
    """Train, fold, certify and write the next version of `plan.name`; None in all processes but the first.

    table: what `load(plan.data)` gave, for a caller that has it. Raises `TrainingError` or `BundleError`; no
    bundle is written then.
    """
    bundle.require_folder(plan.models)  # before the work, not after it
    table, context = table or load(plan.data), context or Context()
    checkpoints = None
    if folder := context.execution.checkpoint:
        run_identity = record.identity(plan, table.sha256(), context.world, context.execution)
        checkpoints = Checkpoints(folder, run_identity, context.execution.resume)
    trained = train(plan, table, context, checkpoints)
    if not context.world.is_first:
        return None
    written = export(plan, trained)
    if checkpoints:
        checkpoints.remove()
    return written


def train(
    plan: Plan,
    table: Table | None = None,
    context: Context | None = None,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Load, unless `table` is given, split, encode, fit each member of the ensemble, calibrate and fold."""
    ready, context = prepare(plan, table or load(plan.data)), context or Context()
    members = range(plan.architecture.members)
    fitted = tuple(fit_member(plan, ready, member, context, checkpoints) for member in members)
    temperature = _temperature(plan, ready, fitted)
    task, outputs = ready.table.task, torch.ones(ready.table.outputs, dtype=torch.float64)
    scale, shift = (1 / temperature, 0.0) if task == "classification" else (ready.spread, ready.mean)
    back = OrderedDict({_BACK[task]: Affine(scale * outputs, shift * outputs)})
    front = list(ready.front.named_children())
    chains = [
        nn.Sequential(OrderedDict((*front, *each.network.named_children(), *back.items()))).eval() for each in fitted
    ]
    network = chains[0] if len(chains) == 1 else Mean(chains).eval()
    tolerance = _tolerance(ready.mean, ready.spread)
    return Trained(ready.table, ready.split, tolerance, fitted, temperature, network, fold_mean(chains))


def prepare(plan: Plan, table: Table) -> Ready:
    """Split `table`, and encode the rows to learn from and to stop by, by those to learn from."""
    test = 0.0 if plan.data.test else plan.data.test_share
    split = split_rows(table, test=test, validation=plan.data.validation_share, seed=plan.seed)
    front = fit_preprocessing(table.columns, table.x[split.train], plan.architecture.bins, plan.architecture.binned)
    mean, spread = _target_scale(table, split)
    y = torch.from_numpy(table.y if table.labels else ((table.y - mean) / spread).astype(np.float32))
    learn, stop = (Examples(transform(front, table.x[rows]), y[rows]) for rows in (split.train, split.validation))
    return Ready(table, split, front, mean, spread, learn, stop)


def fit_member(
    plan: Plan, ready: Ready, member: int, context: Context, checkpoints: Checkpoints | None = None
) -> Fitted:
    """Fit network number `member` of the ensemble: its own initial weights, its own order of the rows."""
    # Apart by more than anybody's next seed, so that the ensembles of two seeds share no member.
    seed = (plan.seed + member * 0x9E3779B1) % 2**32
    epochs = plan.recipe.resolved(len(ready.learn.x)).epochs or 0
    before, in_all = member * epochs, plan.architecture.members * epochs
    with _fixed_arithmetic(plan.threads):
        torch.manual_seed(seed)  # the initial weights
        return fit(
            build_mlp(ready.learn.x.shape[1], ready.table.outputs, plan.architecture),
            ready.learn,
            ready.stop,
            plan.recipe,
            seed=seed,
            on_epoch=lambda epoch: context.on_epoch(replace(epoch, number=before + epoch.number, epochs=in_all)),
            on_progress=lambda part: context.on_progress(replace(part, number=before + part.number, epochs=in_all)),
            world=context.world,
            compiled=context.execution.compile,
            checkpoint=checkpoints.for_member(member) if checkpoints else None,
        )


def _temperature(plan: Plan, ready: Ready, fitted: Sequence[Fitted]) -> float:
    if ready.table.task == "regression" or not plan.recipe.calibrate:
        return 1.0
    with _fixed_arithmetic(plan.threads), torch.no_grad():
        mean = Mean([each.network for each in fitted])
        logits = torch.cat([mean(chunk) for chunk in torch.split(ready.stop.x, 8192)])
    return calibrate.fit_temperature(logits, ready.stop.y)


def export(plan: Plan, trained: Trained) -> Written:
    """Turn what was trained into ONNX, certify it and write it."""
    table, split = trained.table, trained.split
    task, held_out = table.task, load_held_out(plan.data, table, split)
    model = to_onnx(trained.folded.network, table.x.shape[1], table.outputs, task)
    seen = table.x[split.train]
    features = tuple(record.feature(column, values) for column, values in zip(table.columns, seen.T, strict=True))
    drawn = certificate.draw(features, seen, certificate.RANDOM_ROWS, plan.seed)
    with _fixed_arithmetic(plan.threads):
        evidence = certificate.certify(
            trained.network, trained.folded.network, model, task, trained.tolerance, held_out=held_out.x, drawn=drawn
        )
        golden = certificate.golden(trained.network, task, drawn)
    # The figures are the exported model's own, not those of the network that it came from.
    predict = certificate.onnx_runtime_cpu(model)
    stop, outputs = table.select(split.validation), predict(held_out.x)
    scores: dict[Literal["validation", "test"], dict[str, float]]
    scores = {"validation": metrics(task, stop.y, predict(stop.x)), "test": metrics(task, held_out.y, outputs)}

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
            features=features,
            labels=table.labels,
            certificate=evidence,
            golden=golden,
            folded=tuple(bundle.Folding(**asdict(line)) for line in trained.folded.report),
            metrics=scores,
            provenance=record.provenance(
                plan,
                table.source,
                table.sha256(),
                {"train": len(split.train), "validation": len(split.validation), "test": len(held_out.y)},
                best_epochs=tuple(each.best_epoch for each in trained.fitted),
                temperature=trained.temperature,
            ),
        )

    importances = permutation_importance(predict, held_out.x, held_out.y, task, plan.seed)

    def evidence_of(manifest: bundle.Manifest) -> report.Evidence:
        histories = tuple(each.history for each in trained.fitted)
        return report.Evidence(manifest, histories, held_out.y, outputs, importances, table.notes)

    written = bundle.write(plan.models, plan.name, model, manifest, lambda m: report.render(evidence_of(m)))
    return Written(written, evidence_of(written.manifest))


def _target_scale(table: Table, split: Split) -> tuple[float, float]:
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


@contextlib.contextmanager
def _fixed_arithmetic(threads: int) -> Iterator[None]:
    """Sums split over two threads round differently from one: a fixed, recorded number, and only stable kernels."""
    before = torch.get_num_threads()
    mode = torch.get_deterministic_debug_mode()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property of it
    torch.set_num_threads(threads)
    # `use_deterministic_algorithms` is the same, and imports the compiler first, which takes seconds.
    torch.set_deterministic_debug_mode("error")
    # Every tensor is written before it is read: filling each one first takes a quarter of a small step's time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
            yield
    finally:
        torch.set_num_threads(before)
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        torch.set_deterministic_debug_mode(mode)
