"""The lines that `foldserve-train fit` prints about the table before the training, and about the bundle after the
training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from foldserve.service.figures import (
    count_of,
    format_difference,
    format_duration,
    format_figure,
    format_percent,
    format_value,
)
from foldserve.training.text import join_some, printable

if TYPE_CHECKING:
    from foldserve.service.bundle import Bundle, Certificate, Reading
    from foldserve.training.plan import Plan
    from foldserve.training.table.schema import Column, Table

_MOST_NAMES = 6


def describe_table(table: Table) -> str:
    """Return the lines about the table: the kinds of its columns, its target and the notes."""
    parts = []
    for kind in ("numeric", "categorical", "boolean", "time"):
        columns = [column for column in table.columns if column.kind == kind]
        details = [f"{column.name} {text}" for column in columns if (text := _detail(column))]
        if columns:
            parts.append(f"{len(columns)} {kind}" + (f" ({join_some(details, _MOST_NAMES)})" if details else ""))
    missing = [column.name for column in table.columns if column.missing]
    columns_line = ", ".join(parts) + (f"; missing in {join_some(missing, _MOST_NAMES)}" if missing else "")
    labels = f" ({join_some(table.labels, _MOST_NAMES)})" if table.labels else ""
    reading = table.target_reading
    read_as = f", read as {describe_notation(reading)}" if reading and not reading.is_plain else ""
    lines = [("columns", columns_line), ("target", f"{table.target}: {_outcome(len(table.labels))}{labels}{read_as}")]
    lines += [("note", note) for note in table.notes]
    return "\n".join(printable(_line(head, text)) for head, text in lines)


def describe_search(plan: Plan, found: Plan, trials: int) -> str:
    """Return the lines that list the settings that the search for hyper-parameters changed. found: the plan that the
    search returned.
    """
    before, after = ({**vars(each.architecture), **vars(each.recipe)} for each in (plan, found))
    changes = [f"{name} {_setting(value)}" for name, value in after.items() if value != before[name]]
    return _line("tuned", f"{', '.join(changes) or 'no change: the plan itself was the best'} (of {trials} trials)")


def describe_bundle(bundle: Bundle, notes: tuple[str, ...], findings: str, seconds: float) -> str:
    """Return the lines about the result of a training.

    notes: the notes on the test rows. findings: the text that `summarise` returns. seconds: the duration of the whole
    command.
    """
    manifest, models = bundle.manifest, bundle.path.parent.parent
    rows = ", ".join(f"{count:,} {part}" for part, count in manifest.provenance.rows.items())
    folded = [f"{line.layer} -> {line.into}" for line in manifest.folded if line.into not in ("-", line.layer)]
    kept = dict.fromkeys(line.layer for line in manifest.folded if line.into == line.layer)
    measured = [measurement.parity for measurement in manifest.certificate.measurements]
    lines = [
        ("table", f"{len(manifest.features)} features to {_outcome(len(manifest.labels))}; rows: {rows or 'none'}"),
        ("folded", ", ".join(folded) or "nothing: the model has no affine step beside a Dense"),
        *([("kept", f"{', '.join(kept)}: affine steps with no Dense beside them")] if kept else []),
        (
            "certificate",
            f"{count_of(len(measured), 'measurement')}, off by "
            f"{format_difference(max(p.max_absolute for p in measured))} at most, "
            f"{format_percent(max(p.worst for p in measured))} of the tolerance",
        ),
        *([("compared", _describe_originals(manifest.certificate))] if manifest.source else []),
    ]
    for part, scores in manifest.metrics.items():
        lines.append((part, ", ".join(f"{metric} {format_figure(value)}" for metric, value in scores.items())))
    lines += [("note", printable(note)) for note in notes]
    last = _line("wrote", f"{bundle.path} in {format_duration(seconds)}; serve it: foldserve serve --models {models}")
    return "\n".join([*(_line(head, text) for head, text in lines), *filter(None, [findings]), last])


def _describe_originals(certificate: Certificate) -> str:
    """Name the arithmetic and the runtimes that an imported model was compared with."""
    runtimes = dict.fromkeys(each.runtime for each in certificate.measurements if each.runtime.endswith("original"))
    originals = [f"also with {runtime.removesuffix(', original')}" for runtime in runtimes]
    return "; ".join([f"with {certificate.reference}", *originals])


def _detail(column: Column) -> str:
    """Return a short detail about a column, such as its number of categories, or an example of how its numbers are
    written.
    """
    if column.categories:
        return str(len(column.categories))
    if column.kind == "time" and column.reading is not None:
        return f"in {column.reading.step}s"
    plain = column.reading is None or column.kind != "numeric" or column.reading.is_plain
    return "" if plain or column.reading is None else f"as {describe_notation(column.reading)}"


def describe_notation(reading: Reading) -> str:
    """Write an example of a notation: `$1,234.5`, `1234,5`, `12.5%`."""
    whole = f"1{reading.thousands}234" if reading.thousands else "1234"
    number = f"{whole}{reading.decimal}5"
    if reading.unit == "%":
        number = f"12{reading.decimal}5%"
    elif reading.unit:
        number = f"{reading.unit}{number}" if len(reading.unit) == 1 else f"{number} {reading.unit}"
    return f"{number} or ({number})" if reading.accounting else number


def _outcome(labels: int) -> str:
    return f"{labels} classes" if labels else "a value"


def _setting(value: object) -> str:
    return format_value(value) if isinstance(value, float) else ",".join(map(str, cast("tuple[int, ...]", value)))


def _line(head: str, text: str) -> str:
    return f"{head:<12} {text}"
