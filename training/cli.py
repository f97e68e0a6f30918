"""`foldserve-train`: from a table to a bundle, and what batch norm does on a table. Composes; nothing imports it.

Exit status: 0 a bundle or a report was written, 1 refused with one line on standard error, 2 a wrong command line.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

from rich.console import Console

from foldserve.service import bundle
from foldserve.training.diagnose.plan import QUICK, DiagnosisPlan
from foldserve.training.errors import TrainingError
from foldserve.training.plan import PRESETS, Architecture, DataOptions, Execution, Plan, Recipe
from foldserve.training.text import join_some, printable

if TYPE_CHECKING:
    from foldserve.training.fit.distributed import World
    from foldserve.training.plan import Device
    from foldserve.training.table.schema import Table

_SOURCES = """a .csv, .tsv (.gz too), .parquet or .npz file (x, y, feature_names), or digits, iris, wine, breast_cancer,
diabetes"""
# Set in each process that torchrun starts.
_TORCHRUN = "TORCHELASTIC_RUN_ID"
_NEEDED = ("pyarrow", "safetensors", "sklearn", "torch")
_Options = type[DataOptions] | type[Architecture] | type[Recipe] | type[Execution]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = parsed.command
    try:
        command(parsed)
    except (TrainingError, bundle.BundleError) as error:
        print(f"foldserve-train: error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("foldserve-train: interrupted, no result was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("foldserve-train", description="Train a batch-norm MLP, fold it, certify it.")
    parser.add_argument("--version", action="version", version=f"foldserve {version('foldserve')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit = commands.add_parser("fit", help="train on a table and write a bundle", description=_fit.__doc__)
    fit.add_argument("source", metavar="SOURCE", help=_SOURCES)
    fit.add_argument("--name", type=_name, help="the model's name (default: the source's, or the file's stem)")
    fit.add_argument("--models", type=Path, default=Path("models"), help="folder to write to (default: %(default)s)")
    fit.add_argument("--seed", type=int, default=Plan.seed, help="of everything random (default: %(default)s)")
    fit.add_argument("--threads", type=int, default=Plan.threads, help="threads of the fit (default: %(default)s)")
    fit.add_argument("--tune", type=_trials, metavar="N", default=0, help="try N recipes first, and take the best")
    fit.add_argument(
        "--preset",
        choices=PRESETS,
        default="fast",
        help="the recipe that the flags below change (default: %(default)s)",
    )
    _add_options(fit.add_argument_group("table"), DataOptions)
    _add_options(fit.add_argument_group("network"), Architecture)
    _add_options(fit.add_argument_group("recipe"), Recipe)
    _add_options(fit.add_argument_group("execution"), Execution)
    fit.set_defaults(command=_fit)
    _add_diagnose(commands)
    return parser


def _add_diagnose(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    diagnose = commands.add_parser(
        "diagnose", help="measure what batch norm does on a table", description=_diagnose.__doc__
    )
    diagnose.add_argument(
        "source", metavar="SOURCE", nargs="?", default="digits", help="as for fit (default: %(default)s)"
    )
    diagnose.add_argument(
        "--output", type=Path, default=Path("diagnose.html"), help="report to write (default: %(default)s)"
    )
    diagnose.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    diagnose.add_argument(
        "--seed", type=int, default=DiagnosisPlan.seed, help="of everything random (default: %(default)s)"
    )
    diagnose.add_argument(
        "--steps", type=int, help=f"of each training of three sigmoid layers (default: {DiagnosisPlan.steps})"
    )
    diagnose.add_argument("--quick", action="store_true", help="a first look: fewer steps, depths and batch sizes")
    of_splits = ("test", "test_share", "validation_share", "group", "time")
    _add_options(diagnose.add_argument_group("table"), DataOptions, without=of_splits)
    diagnose.set_defaults(command=_diagnose)


def _add_options(group: argparse._ArgumentGroup, owner: _Options, without: Sequence[str] = ()) -> None:
    """Give every field of `owner` its flag; one that is not given is absent, so that the preset's value stays."""
    hints = get_type_hints(owner, include_extras=True)
    for option in fields(owner):
        if get_origin(hints[option.name]) is not Annotated or option.name in without:
            continue  # SOURCE is no flag
        kind, text = get_args(hints[option.name])
        shown = ",".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
        if shown not in (None, ""):
            text += f" (default: {shown})"
        group.add_argument("--" + option.name.replace("_", "-"), default=argparse.SUPPRESS, help=text, **_form(kind))


def _form(kind: Any) -> dict[str, Any]:
    """How a field of this type is given on the command line."""
    if isinstance(kind, UnionType):  # "or None", where it is not given
        kind = get_args(kind)[0]
    known: dict[Any, dict[str, Any]] = {
        bool: {"action": argparse.BooleanOptionalAction},
        str: {"metavar": "COL"},
        Path: {"type": Path, "metavar": "FILE"},
        tuple[str, ...]: {"type": _texts, "metavar": "A,B"},
        tuple[int, ...]: {"type": _widths, "metavar": "N,N"},
    }
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    return known.get(kind) or {"type": kind, "metavar": kind.__name__.upper()}


def _texts(text: str) -> tuple[str, ...]:
    """Split as a row of a CSV, so that a text with a comma can be quoted."""
    return tuple(next(csv.reader([text]), ()))


def _trials(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("a number of trials is at least 1")
    return int(text)


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(",") if width)
    except ValueError:
        raise argparse.ArgumentTypeError("widths are whole numbers with commas between, as in 64,64") from None


def _name(text: str) -> str:
    if not bundle.NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("a name is letters, digits and . _ - in between, 64 at most")
    return text


def _given(parsed: argparse.Namespace, owner: _Options) -> dict[str, Any]:
    return {option.name: getattr(parsed, option.name) for option in fields(owner) if option.name in parsed}


def _stem(source: str) -> str:
    """Name the model after its table: `houses` for data/houses.csv.gz, and for data/houses.train.csv too."""
    name = re.sub(r"(\.train)?\.(csv|tsv|parquet|npz)(\.gz)?$", "", Path(source).name, flags=re.IGNORECASE)
    if source and not bundle.NAME.fullmatch(name):
        raise TrainingError(f"{name!r} can't be a model's name, letters, digits and . _ - in between: give it a --name")
    return name


def _plan(parsed: argparse.Namespace) -> tuple[Plan, Execution]:
    preset = PRESETS[parsed.preset]
    try:
        plan = Plan(
            data=DataOptions(**_given(parsed, DataOptions)),
            name=parsed.name or _stem(parsed.source),
            models=parsed.models,
            preset=parsed.preset,
            architecture=replace(preset.architecture, **_given(parsed, Architecture)),
            recipe=replace(preset.recipe, **_given(parsed, Recipe)),
            seed=parsed.seed,
            threads=parsed.threads,
        )
        return plan, Execution(**_given(parsed, Execution))
    except ValueError as error:
        raise TrainingError(str(error)) from error


def _fit(parsed: argparse.Namespace) -> None:
    """Train on SOURCE, fold every affine step into the Dense weights, prove that nothing changed, and write the next
    version of the model to <models>/<name>/<version>. Nothing is written unless the proof holds."""
    started = time.perf_counter()
    plan, execution = _plan(parsed)
    for needed in _NEEDED:
        if find_spec(needed) is None:
            raise TrainingError(
                f"{needed} is not installed: pip install 'foldserve[train,cpu]' or 'foldserve[train,gpu]'"
            )
    with _processes(execution.device, later=_TORCHRUN not in os.environ) as world:
        bundle.require_folder(plan.models)  # before the work, not after it
        table = _read(plan.data)
        if world is None or world.is_first:
            _describe(table)
        # Imported late: torch takes seconds, and neither a wrong flag nor the table should have to wait.
        from foldserve.training.pipeline import Context, run
        from foldserve.training.progress import FitProgress
        from foldserve.training.report import report

        if parsed.tune:
            plan = _tuned(plan, table, parsed.tune, told=world is None or world.is_first)
        with (
            _processes(execution.device, later=world is not None) as own,
            FitProgress(Console(stderr=True)) as progress,
        ):
            there = world or own
            hooks = progress.update, progress.update_within_epoch
            written = run(plan, table, Context(execution, there, *hooks) if there else None)
    if written:
        _summarise(written.bundle, report.summarise(written.evidence), time.perf_counter() - started)


@contextlib.contextmanager
def _processes(device: Device, *, later: bool) -> Iterator[World | None]:
    """Join torchrun's processes before there is anything to refuse, so that it is said once; None for not now.

    Alone, the table is read first: torch takes seconds to import.
    """
    if later:
        yield None
        return
    from foldserve.training.fit.distributed import join_processes

    with join_processes(device) as world:
        yield world


def _tuned(plan: Plan, table: Table, trials: int, *, told: bool) -> Plan:
    if find_spec("optuna") is None:
        raise TrainingError("optuna is not installed: pip install 'foldserve[tune]'")
    from foldserve.training.progress import StageProgress
    from foldserve.training.tune import tune

    with StageProgress(Console(stderr=True)) as progress:
        found = tune(plan, table, trials, lambda trial: progress.update("tune", trial.number, trial.of))
    if told:
        changes = _differences(plan, found) or "nothing: the recipe itself was the best"
        print(f"tuned        {changes} (of {trials} tried)", flush=True)
    return found


def _differences(plan: Plan, found: Plan) -> str:
    def form(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else ",".join(map(str, cast("tuple[int, ...]", value)))

    before, after = ({**vars(each.architecture), **vars(each.recipe)} for each in (plan, found))
    return ", ".join(f"{name} {form(value)}" for name, value in after.items() if value != before[name])


def _read(options: DataOptions) -> Table:
    from foldserve.training.progress import ReadProgress

    with ReadProgress(options.source, Console(stderr=True)) as progress:
        from foldserve.training.table.load import load

        return load(options, progress.update)


def _describe(table: Table) -> None:
    """Say what was read as what, before anything is learned from it."""
    kinds = {kind: [c for c in table.columns if c.kind == kind] for kind in ("numeric", "categorical", "boolean")}
    parts = []
    for kind, columns in kinds.items():
        sizes = [f"{column.name} {len(column.categories)}" for column in columns if column.categories]
        if columns:
            parts.append(f"{len(columns)} {kind}" + (f" ({join_some(sizes, 6)})" if sizes else ""))
    missing = [column.name for column in table.columns if column.missing]
    print(printable("columns      " + ", ".join(parts) + (f"; missing in {join_some(missing, 6)}" if missing else "")))
    outcome = f"{len(table.labels)} classes ({join_some(table.labels, 6)})" if table.labels else "a value"
    print(printable(f"target       {table.target}: {outcome}"))
    for note in table.notes:
        print(printable(f"note         {note}"))
    sys.stdout.flush()


def _summarise(written: bundle.Bundle, findings: str, seconds: float) -> None:
    manifest = written.manifest
    rows, measured = manifest.provenance.rows, [m.parity for m in manifest.certificate.measurements]
    outcome = f"{len(manifest.labels)} classes" if manifest.labels else "a value"
    print(
        f"table        {len(manifest.features)} features to {outcome}; rows: "
        + ", ".join(f"{n:,} {name}" for name, n in rows.items())
    )
    print("folded       " + ", ".join(f"{line.layer} -> {line.into}" for line in manifest.folded if line.into != "-"))
    print(
        f"certificate  {len(measured)} measurements, off by {max(p.max_absolute for p in measured):.2g} at most, "
        f"{max(p.worst for p in measured):.2%} of the tolerance"
    )
    for name, values in manifest.metrics.items():
        print(f"{name:<12} " + ", ".join(f"{metric} {value:.4f}" for metric, value in values.items()))
    print(findings)
    models = written.path.parent.parent
    print(f"wrote        {written.path} in {seconds:.1f} s; serve it: foldserve serve --models {models}")


def _diagnose(parsed: argparse.Namespace) -> None:
    """Train small networks with and without batch norm on SOURCE, measure what is claimed of it (faster training,
    steady activations, gradients that don't vanish) and what it costs, and write an HTML report that says of each
    claim whether these figures support it."""
    started = time.perf_counter()
    plan = QUICK if parsed.quick else DiagnosisPlan()
    try:
        plan = replace(plan, seed=parsed.seed, steps=plan.steps if parsed.steps is None else parsed.steps)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    outputs = [path for path in (parsed.output, parsed.json) if path is not None]
    for path in outputs:  # before the work, not after it
        if path.is_dir() or not path.parent.is_dir():
            raise TrainingError(f"{path}: not a file in an existing folder")
    try:
        from foldserve.training.diagnose import run as diagnosis
        from foldserve.training.progress import StageProgress
        from foldserve.training.table.load import load
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"{error.name} is not installed: pip install 'foldserve[train,cpu]' or 'foldserve[train,gpu]'"
        ) from error
    table = load(DataOptions(**_given(parsed, DataOptions)))
    with StageProgress(Console(stderr=True)) as progress:
        measured = diagnosis.diagnose(table, plan, progress.update)
    told = diagnosis.sections(measured)
    try:
        parsed.output.write_text(diagnosis.html(measured, told), encoding="utf-8")
        if parsed.json is not None:
            parsed.json.write_text(diagnosis.raw(measured), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{error.filename}: {error.strerror}") from error
    print(f"{table.source}: {diagnosis.rows_used(measured.sample)}")
    for section in told:
        print(f"\n{section.title}")
        for finding in section.findings:
            print(textwrap.fill(finding.sentence, 100, initial_indent="  - ", subsequent_indent="    "))
    print(f"\nwrote {', '.join(map(str, outputs))} in {time.perf_counter() - started:.0f} s")
