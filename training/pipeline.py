"""The steps from a table to a bundle: table -> split -> network -> fit -> fold -> ONNX -> certificate -> bundle.

Each stage depends only on the stages before it. A bundle is written only after its certificate holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from foldserve.service import bundle
from foldserve.training.certify import certificate, record
from foldserve.training.certify.manifest import Metrics, build_manifest, describe_features
from foldserve.training.certify.tolerance import output_tolerance
from foldserve.training.fit.calibrate import fit_temperature
from foldserve.training.fit.checkpoint import Checkpoints
from foldserve.training.fit.determinism import deterministic
from foldserve.training.fit.distributed import World
from foldserve.training.fit.loop import Epoch, EpochProgress, Examples, Fitted, fit
from foldserve.training.fit.threshold import choose_threshold
from foldserve.training.fold.export import to_onnx
from foldserve.training.fold.fold import Folded
from foldserve.training.fold.merge import fold_mean
from foldserve.training.network.layers import Affine, Mean
from foldserve.training.network.mlp import build_mlp
from foldserve.training.network.preprocessing import fit_preprocessing, transform
from foldserve.training.plan import Execution, Plan
from foldserve.training.report.evaluate import keep_defined, permutation_importance, score
from foldserve.training.report.evidence import Evidence
from foldserve.training.report.latency import measure_latency
from foldserve.training.report.previous import read_previous
from foldserve.training.report.report import render
from foldserve.training.table.load import load, load_held_out
from foldserve.training.table.schema import Split, Table
from foldserve.training.table.split import split_rows
from foldserve.training.table.target import check_decision, positive_class

# Rows are evaluated in chunks of this size, to limit the memory.
_CHUNK = 8192
# If a class has fewer validation rows than this, a note says that the threshold is uncertain.
_FEW_ROWS = 30


@dataclass(frozen=True)
class Prepared:
    """A table that has been split and preprocessed.

    preprocessing: the layers in front of every network. The layers are fitted to the training rows, and map raw
    features [rows, features] to `train.x`. target_mean, target_std: in a regression, the mean and the standard
    deviation of the targets in the training rows; in a classification, 0 and 1. `train.y` and `validation.y` of a
    regression are standardised with `target_mean` and `target_std`.
    """

    table: Table
    split: Split
    preprocessing: nn.Sequential
    target_mean: float
    target_std: float
    train: Examples
    validation: Examples


@dataclass(frozen=True)
class Trained:
    """A trained model, before its export.

    tolerance: the tolerance of the certificate, in the units of the output. fitted: the trained network of each member
    of the ensemble. network: the unfolded model, which maps raw features [rows, features] to logits or values [rows,
    outputs]. folded: a chain that computes the same function as `network`, with every affine step folded into the Dense
    weights.
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
    """A written bundle, the evidence for its report, and notes on the test rows."""

    bundle: bundle.Bundle
    evidence: Evidence
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """The device and the processes of a run, and the functions that observe the run.

    on_epoch, on_progress: the callbacks of `fit`. In an ensemble, the epoch numbers continue from one member to the
    next.
    """

    execution: Execution = field(default_factory=Execution)
    world: World = field(default_factory=World)
    on_epoch: Callable[[Epoch], None] = lambda _: None
    on_progress: Callable[[EpochProgress], None] = lambda _: None


def run(plan: Plan, table: Table | None = None, context: Context | None = None) -> Written | None:
    """Train, fold and certify a model, and write the next version of the model `plan.name`. With several processes, all
    processes except the first return None.

    table: the result of `load(plan.data)`, if the caller has loaded the table already. Raises `TrainingError` or
    `BundleError`. After an error, no bundle is written.
    """
    bundle.require_writable(plan.models)  # checked before the training, so that a wrong folder is reported early
    table, context = table or load(plan.data), context or Context()
    check_decision(plan.decision, table)
    checkpoints = None
    if folder := context.execution.checkpoint:
        identity = record.run_identity(plan, table.sha256(), context.world, context.execution)
        checkpoints = Checkpoints(folder, identity, context.execution.resume)
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
    split: Split | None = None,
) -> Trained:
    """Prepare the table, fit each member of the ensemble, calibrate, and fold.

    If `table` is None, the function loads the table first. split: the training, validation and test rows; by default,
    the function splits the table as the plan says.
    """
    prepared, context = prepare(plan, table or load(plan.data), split), context or Context()
    members = range(plan.architecture.members)
    fitted = tuple(fit_member(plan, prepared, member, context, checkpoints) for member in members)
    return assemble(plan, prepared, fitted)


def assemble(plan: Plan, prepared: Prepared, fitted: tuple[Fitted, ...]) -> Trained:
    """Calibrate and fold the networks of the members. Raises `FoldError` if a weight is not finite."""
    temperature = _temperature(plan, prepared, fitted)
    first, last = list(prepared.preprocessing.named_children()), _output_layer(prepared, temperature)
    chains = [nn.Sequential(OrderedDict((*first, *m.network.named_children(), last))).eval() for m in fitted]
    return Trained(
        prepared.table,
        prepared.split,
        output_tolerance(prepared.target_mean, prepared.target_std),
        fitted,
        temperature,
        network=chains[0] if len(chains) == 1 else Mean(chains).eval(),
        folded=fold_mean(chains),
    )


def prepare(plan: Plan, table: Table, split: Split | None = None) -> Prepared:
    """Split the table, and preprocess the training and validation rows.

    The preprocessing is fitted to the training rows alone. split: the training, validation and test rows; by default,
    the function splits the table as the plan says.
    """
    if split is None:
        test = 0.0 if plan.data.test else plan.data.test_share
        split = split_rows(table, test=test, validation=plan.data.validation_share, seed=plan.seed)
    architecture = plan.architecture
    layers = fit_preprocessing(table.columns, table.x[split.train], architecture.bins, architecture.binned)
    mean, std = _target_scale(table, split)
    y = torch.from_numpy(table.y if table.labels else ((table.y - mean) / std).astype(np.float32))
    train, validation = (
        Examples(transform(layers, table.x[rows]), y[rows]) for rows in (split.train, split.validation)
    )
    return Prepared(table, split, layers, mean, std, train, validation)


def fit_member(
    plan: Plan,
    prepared: Prepared,
    member: int,
    context: Context = Context(),  # frozen
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """Fit network number `member` of the ensemble, counted from 0.

    Each member has different initial weights and a different order of rows.
    """
    # The seeds of the members are far apart, so that two ensembles with seeds such as 1 and 2 have no member in common.
    seed = (plan.seed + member * 0x9E3779B1) % 2**32
    epochs = plan.recipe.resolved(len(prepared.train)).epochs or 0
    first, total = member * epochs, plan.architecture.members * epochs
    with deterministic(plan.threads):
        torch.manual_seed(seed)  # the seed of the initial weights
        return fit(
            build_mlp(prepared.train.x.shape[1], prepared.table.outputs, plan.architecture),
            prepared.train,
            prepared.validation,
            plan.recipe,
            seed=seed,
            on_epoch=lambda epoch: context.on_epoch(replace(epoch, number=first + epoch.number, epochs=total)),
            on_progress=lambda part: context.on_progress(replace(part, number=first + part.number, epochs=total)),
            world=context.world,
            compiled=context.execution.compile,
            checkpoint=checkpoints.for_member(member) if checkpoints else None,
        )


def _temperature(plan: Plan, prepared: Prepared, fitted: Sequence[Fitted]) -> float:
    if prepared.table.task == "regression" or not plan.recipe.calibrate:
        return 1.0
    with deterministic(plan.threads), torch.no_grad():
        mean = Mean([member.network for member in fitted])
        logits = torch.cat([mean(chunk) for chunk in torch.split(prepared.validation.x, _CHUNK)])
    return fit_temperature(logits, prepared.validation.y)


def _output_layer(prepared: Prepared, temperature: float) -> tuple[str, Affine]:
    """Return the name of the network's last layer, and the layer.

    In a classification, the last layer divides the logits by the temperature. In a regression, the last layer undoes
    the standardisation of the target.
    """
    outputs = torch.ones(prepared.table.outputs, dtype=torch.float64)
    if prepared.table.task == "classification":
        return "temperature", Affine(1 / temperature * outputs, 0.0 * outputs)
    return "unstandardise", Affine(prepared.target_std * outputs, prepared.target_mean * outputs)


def _target_scale(table: Table, split: Split) -> tuple[float, float]:
    """In a regression, return the mean and the standard deviation of the training targets; in a classification, return
    0 and 1.
    """
    if table.labels:
        return 0.0, 1.0
    y = table.y[split.train]
    return float(y.mean()), float(y.std()) or 1.0


def export(plan: Plan, trained: Trained) -> Written:
    """Export the model to ONNX, certify it, and write the bundle.

    Raises `ParityError` if the certificate does not hold, and `DataError` if the test file can't be read. Raises
    `ExportError` or `BundleError` if the model or the bundle can't be written. This function may have more than 50
    lines, because it keeps all steps after a training together.
    """
    table, split, task = trained.table, trained.split, trained.table.task
    test, train_rows = load_held_out(plan.data, table, split), table.x[split.train]
    features = describe_features(table.columns, train_rows)
    target = bundle.Target(name=table.target, reading=table.target_reading)
    description = bundle.describe(task, features, table.labels, target)
    model = to_onnx(trained.folded.network, len(features), table.outputs, task, description=description)
    drawn = certificate.draw(features, train_rows, certificate.RANDOM_ROWS, plan.seed)
    with deterministic(plan.threads):
        certified = certificate.certify(
            trained.network, trained.folded.network, model, task, trained.tolerance, held_out=test.x, drawn=drawn
        )
        golden = certificate.golden(certificate.reference(trained.network, task), drawn)
    # The metrics are those of the exported model, not of the trained network.
    predict = certificate.onnx_runtime_cpu(model)
    validation, outputs = table.select(split.validation), predict(test.x)
    validated = predict(validation.x)
    threshold, threshold_notes = _threshold(plan, validation, validated)
    decision = bundle.Decision(table.labels, threshold)
    scores: Metrics = keep_defined(
        {
            "validation": score(task, validation.y, validated, decision),
            "test": score(task, test.y, outputs, decision),
        }
    )
    manifest = partial(
        build_manifest,
        name=plan.name,
        model=model,
        table=table,
        features=features,
        target=target,
        folded=[bundle.Folding(**asdict(line)) for line in trained.folded.report],
        certificate=certified,
        golden=golden,
        metrics=scores,
        provenance=_provenance(plan, trained, test),
        threshold=threshold,
    )
    importances = permutation_importance(predict, test.x, test.y, task, plan.seed)
    histories = tuple(member.history for member in trained.fitted)

    latency = measure_latency(predict, test.x)

    def evidence(manifest: bundle.Manifest) -> Evidence:
        previous = read_previous(plan.models / plan.name, manifest.version)
        notes = (*table.notes, *test.notes, *threshold_notes)
        return Evidence(manifest, histories, test.y, outputs, importances, notes, previous, latency)

    written = bundle.write(plan.models, plan.name, model, manifest, lambda m: render(evidence(m)))
    return Written(written, evidence(written.manifest), (*test.notes, *threshold_notes))


def _threshold(
    plan: Plan, validation: Table, outputs: npt.NDArray[np.float32]
) -> tuple[bundle.Threshold | None, list[str]]:
    """Return the decision threshold, and a note if only a few validation rows decided the threshold."""
    options, labels = plan.decision, validation.labels
    if options.threshold is None:
        return None, []
    positive = positive_class(options, validation.target, labels)
    threshold = choose_threshold(options, labels, positive, validation.y, outputs)
    rows = int(np.count_nonzero(validation.y == positive))
    if threshold.rule == "value" or min(rows, len(outputs) - rows) >= _FEW_ROWS:
        return threshold, []
    name = bundle.Decision(labels).names[positive]
    note = f"the threshold is uncertain: {rows} of the {len(outputs):,} validation rows that chose it are {name!r}"
    return threshold, [f"{note}; a larger --validation-share has more"]


def _provenance(plan: Plan, trained: Trained, test: Table) -> bundle.Provenance:
    table, split = trained.table, trained.split
    return record.provenance(
        plan,
        table.source,
        table.sha256(),
        {"train": len(split.train), "validation": len(split.validation), "test": len(test.y)},
        best_epochs=tuple(member.best_epoch for member in trained.fitted),
        temperature=trained.temperature,
    )
