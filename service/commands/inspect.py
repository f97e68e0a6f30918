"""`foldserve inspect`: shows the contents of a bundle as tables for a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foldserve.service.bundle import Bundle, Certificate, Feature, Manifest, Parity, find_bundle
from foldserve.service.figures import format_difference, format_figure, format_percent
from foldserve.service.runtime.golden import check_description, check_graph

_FEATURES_SHOWN = 20
_LABELS_SHOWN = 100


def run(path: Path, *, as_json: bool = False, whole: bool = False) -> None:
    """Print the model, metrics, folded layers, certificate, features and provenance of a bundle.

    path: the folder of the bundle, or the folder of a model, whose newest version is printed.
    as_json: whether to print one JSON object with all contents instead of the tables. whole: whether to print all
    features, all labels and the golden rows. Raises `BundleError` if the bundle is incomplete or damaged.
    """
    bundle = find_bundle(path)
    manifest = bundle.manifest
    if bundle.warning:
        print(f"warning: {bundle.warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(_describe(bundle), ensure_ascii=False))
        return
    out = Console(highlight=False)
    for table in (
        _table(f"{manifest.name}/{manifest.version}", ("", ""), _model(bundle, whole=whole)),
        _table("metrics", ("rows of", *_metric_names(manifest)), _metrics(manifest)),
        _table(
            "folded layers",
            ("layer", "rule", "into"),
            ((f.layer, f.rule, f.into) for f in manifest.folded),
        ),
        _table(
            _certificate_title(manifest.certificate),
            ("runtime", "rows", "batch", "max abs", "max rel", "used", "same argmax"),
            (
                (m.runtime, f"{m.parity.rows:,} {m.rows}", f"{m.batch:,}", *_parity(m.parity))
                for m in manifest.certificate.measurements
            ),
        ),
        _table("features", ("", "name", "kind", "missing", "range, or categories"), _features(manifest, whole=whole)),
        *([_table("golden rows", ("", "inputs", "outputs"), _golden(manifest))] if whole else []),
        _table("provenance", ("", ""), _provenance(manifest)),
    ):
        if table.row_count:
            out.print(table)
            out.print()


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.show_header = any(columns)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # otherwise rich would read [red] in a name as markup
    return table


def _describe(bundle: Bundle) -> dict[str, Any]:
    """Return the manifest, the digest of its seal (null without a seal), and the graph."""
    graph = _graph(bundle)
    return {
        "manifest": bundle.manifest.model_dump(mode="json"),
        "seal": bundle.digest,
        "graph": {"nodes": [node.op_type for node in graph.node], "parameters": _count_parameters(graph)},
    }


def _graph(bundle: Bundle) -> onnx.GraphProto:
    """Return the graph of the model. Raises `BundleError` if the graph or the description does not fit the manifest."""
    model = check_graph(bundle)
    check_description(model, bundle.manifest)
    return model.graph


def _count_parameters(graph: Any) -> int:
    return sum(math.prod(tensor.dims) for tensor in graph.initializer)


def _model(bundle: Bundle, *, whole: bool) -> Iterable[tuple[str, str]]:
    manifest, graph = bundle.manifest, _graph(bundle)
    parameters = _count_parameters(graph)
    yield "task", manifest.task
    yield "created", manifest.created.isoformat()
    yield "input", f"{manifest.input.name} {list(manifest.input.shape)} {manifest.input.dtype}"
    yield "output", f"{manifest.output.name} {list(manifest.output.shape)} {manifest.output.dtype}"
    if manifest.labels:
        labels = manifest.labels if whole else manifest.labels[:_LABELS_SHOWN]
        hidden = len(manifest.labels) - len(labels)
        yield "labels", ", ".join(map(str, labels)) + (f" and {hidden:,} more" if hidden else "")
    if threshold := manifest.threshold:
        yield "threshold", f"{threshold.positive} from a probability of {threshold.value:g} on, by {threshold.rule}"
    if manifest.ignored:
        yield "ignored", ", ".join(manifest.ignored)
    yield "graph", f"{' '.join(node.op_type for node in graph.node)}, opset {manifest.model.opset}"
    yield "size", f"{parameters:,} parameters, {manifest.model.size:,} bytes"
    yield "sha256", manifest.model.sha256
    yield "seal", f"sha256 {bundle.digest} of the manifest" if bundle.digest else "none"


def _certificate_title(certificate: Certificate) -> str:
    wide = f", which is {certificate.widened:.2g} times the usual one" if certificate.widened > 1 else ""
    return f"certificate, against {certificate.reference}; used: share of the tolerance{wide}"


def _metric_names(manifest: Manifest) -> tuple[str, ...]:
    return tuple(next(iter(manifest.metrics.values()), {}))


def _metrics(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    for name, values in manifest.metrics.items():
        rows = manifest.provenance.rows.get(name, 0)
        yield f"{name} ({rows:,})", *(format_figure(values[metric]) for metric in _metric_names(manifest))


def _parity(parity: Parity) -> tuple[str, str, str, str]:
    agreement = (
        ""
        if parity.argmax_agreement is None
        else f"{format_percent(parity.argmax_agreement)} of {parity.argmax_rows:,}"
    )
    absolute, relative = format_difference(parity.max_absolute), format_difference(parity.max_relative)
    return absolute, relative, format_percent(parity.worst), agreement


def _values(feature: Feature) -> str:
    if feature.range is None:
        return f"{len(feature.categories):,} categories"
    if feature.kind == "time" and feature.reading is not None:
        return " to ".join(map(feature.reading.moment_text, feature.range))
    return "{:g} to {:g}".format(*feature.range)


def _golden(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    for i, (row, outputs) in enumerate(zip(manifest.golden.inputs, manifest.golden.outputs, strict=True)):
        inputs = ("null" if value is None else f"{value:g}" for value in row)
        yield str(i), " ".join(inputs), " ".join(f"{value:g}" for value in outputs)


def _features(manifest: Manifest, *, whole: bool) -> Iterable[tuple[str, ...]]:
    shown = len(manifest.features) if whole else _FEATURES_SHOWN
    for i, feature in enumerate(manifest.features[:shown]):
        missing = format_percent(feature.missing_share) if feature.missing else "no"
        yield str(i), feature.name, feature.kind, missing, _values(feature)
    hidden = len(manifest.features) - shown
    if hidden > 0:
        yield "", f"and {hidden} more; --all shows them", "", "", ""


def _provenance(manifest: Manifest) -> Iterable[tuple[str, str]]:
    provenance, imported = manifest.provenance, manifest.source
    if imported:
        yield "imported", f"{imported.file}, written by {imported.framework} {imported.version}".rstrip()
        yield "its sha256", imported.sha256
    yield "source", provenance.source
    yield "data sha256", provenance.data_sha256 or "no table was given"
    yield "rows", ", ".join(f"{count:,} {name}" for name, count in provenance.rows.items()) or "none"
    yield "seed", str(provenance.seed)
    yield "threads", f"{provenance.threads} on {provenance.cpu}"
    if provenance.hyperparameters:
        yield "training", ", ".join(f"{k}={v}" for k, v in provenance.hyperparameters.items())
    yield "versions", ", ".join(f"{k} {v}" for k, v in provenance.versions.items())
