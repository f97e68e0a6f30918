"""The steps of an import: front end -> fold -> ONNX -> certificate -> bundle.

The module does not depend on the formats of other frameworks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service import bundle
from foldserve.service.sources import Source
from foldserve.training.certify import certificate, record
from foldserve.training.certify.manifest import Metrics, build_manifest
from foldserve.training.errors import ModelImportError
from foldserve.training.fit.determinism import deterministic
from foldserve.training.imports.comparison import certify
from foldserve.training.imports.folding import fold
from foldserve.training.imports.imported import Imported
from foldserve.training.imports.rows import Range, make_rows
from foldserve.training.imports.write import to_onnx
from foldserve.training.plan import DataOptions
from foldserve.training.report.evaluate import keep_defined, permutation_importance, score
from foldserve.training.report.evidence import Evidence
from foldserve.training.report.latency import measure_latency
from foldserve.training.report.previous import read_previous
from foldserve.training.report.report import render
from foldserve.training.table.schema import Table


@dataclass(frozen=True)
class ImportPlan:
    """The choices of the user for an import. data: the table for the certificate and the metrics. ranges: maps the name
    of each feature to its range; the name "" stands for all other features. seed: the seed of the random rows.
    """

    name: str
    models: Path = Path("models")
    data: DataOptions | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """A written bundle, and notes for the user.

    evidence: the evidence for the report; None if there is no table with targets.
    """

    bundle: bundle.Bundle
    evidence: Evidence | None
    notes: tuple[str, ...]


def run(imported: Imported, plan: ImportPlan, source: Source | None = None) -> Written:
    """Fold and certify the model, and write it as the next version of `plan.name`.

    If an error occurs, no part of the bundle stays on the disk.

    The function has more than 50 lines, because it keeps all steps of an import in one place.

    source: the table in memory, if `plan.data` does not name a file.

    Raises `ModelImportError`, `FoldError`, `DataError`, `ParityError`, `ExportError` or `BundleError`.
    """
    bundle.require_writable(plan.models)
    _require_output(imported)
    rows = make_rows(imported, plan.data, plan.ranges, plan.seed, source)
    folded = fold(imported.network)
    table = rows.table
    target = bundle.Target(name=table.target) if table.target else None
    description = bundle.describe(imported.task, rows.features, imported.labels, target)
    model = to_onnx(folded.network, imported.task, description=description)
    with deterministic(1):
        compared = certify(imported, folded, rows, model)
    scores, outputs = _score(model, table)
    manifest = partial(
        build_manifest,
        name=plan.name,
        model=model,
        table=replace(table, labels=imported.labels),
        features=rows.features,
        target=target,
        folded=folded.report,
        certificate=compared.certificate,
        golden=compared.golden,
        metrics=scores,
        provenance=_provenance(table, plan.seed),
        imported=bundle.ImportedModel(
            framework=imported.framework,
            version=imported.framework_version,
            file=imported.file,
            sha256=imported.sha256,
        ),
    )
    notes = (*imported.notes, *rows.notes, *compared.notes)
    if not scores:
        return Written(bundle.write(plan.models, plan.name, model, manifest), None, notes)
    trust = f"the metrics hold for new rows only if the model was not trained on the rows of {table.source}"
    predict = certificate.onnx_runtime_cpu(model)
    importances = permutation_importance(predict, table.x, table.y, imported.task, plan.seed)
    latency = measure_latency(predict, table.x)

    def evidence(manifest: bundle.Manifest) -> Evidence:
        previous = read_previous(plan.models / plan.name, manifest.version)
        return Evidence(manifest, (), table.y, outputs, importances, (*notes, trust), previous, latency)

    written = bundle.write(plan.models, plan.name, model, manifest, lambda m: render(evidence(m)))
    return Written(written, evidence(written.manifest), notes)


def _require_output(imported: Imported) -> None:
    outputs, classes = imported.network.widths()[imported.network.output], len(imported.labels)
    if imported.task == "regression" and outputs != 1:
        raise ModelImportError(f"the model gives {outputs} values for a row; a bundle has one value, or probabilities")
    if imported.task == "classification" and outputs != classes:
        raise ModelImportError(f"the model gives {outputs} probabilities, and there are {classes} labels: use --labels")


def _score(model: bytes, table: Table) -> tuple[Metrics, npt.NDArray[np.floating[Any]]]:
    """Score the exported model on the rows of the table. If the table has no targets, return no metrics."""
    if not len(table.y):
        return {}, np.empty((0, table.outputs))
    outputs = certificate.onnx_runtime_cpu(model)(table.x)
    return keep_defined({"test": score(table.task, table.y, outputs)}), outputs


def _provenance(table: Table, seed: int) -> bundle.Provenance:
    digest = table.sha256() if len(table.x) else None
    return record.import_provenance(table.source, digest, {"test": len(table.x)} if len(table.x) else {}, seed)
