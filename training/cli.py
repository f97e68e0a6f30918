"""`foldserve-train`: from a table to a bundle. Composes; nothing imports it.

Exit status: 0 a bundle was written, 1 refused with one line on standard error, 2 a wrong command line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rich.console import Console

from service import bundle
from training.errors import TrainingError
from training.plan import PRESETS, Architecture, Plan, Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = parsed.command
    try:
        command(parsed)
    except (TrainingError, bundle.BundleError) as error:
        print(f"foldserve-train: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("foldserve-train: interrupted, no bundle was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("foldserve-train", description="Train a batch-norm MLP, fold it, certify it.")
    parser.add_argument("--version", action="version", version=f"foldserve {version('foldserve')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit = commands.add_parser("fit", help="train on a table and write a bundle", description=_fit.__doc__)
    fit.add_argument("source", metavar="SOURCE", help="digits, iris, wine, breast_cancer or diabetes")
    fit.add_argument("--name", type=_name, help="the model's name (default: the source's)")
    fit.add_argument("--models", type=Path, default=Path("models"), help="folder to write to (default: %(default)s)")
    fit.add_argument("--seed", type=int, default=Plan.seed, help="of everything random (default: %(default)s)")
    fit.add_argument("--threads", type=int, default=Plan.threads, help="threads of the fit (default: %(default)s)")
    fit.add_argument(
        "--test-share",
        type=float,
        default=Plan.test_share,
        metavar="SHARE",
        help="share of the rows that is only reported on (default: %(default)s)",
    )
    fit.add_argument(
        "--validation-share",
        type=float,
        default=Plan.validation_share,
        metavar="SHARE",
        help="share of the rows to stop by (default: %(default)s)",
    )
    fit.add_argument(
        "--preset",
        choices=PRESETS,
        default="fast",
        help="the recipe that the flags below change (default: %(default)s)",
    )
    _add_options(fit.add_argument_group("network"), Architecture)
    _add_options(fit.add_argument_group("recipe"), Recipe)
    fit.set_defaults(command=_fit)
    return parser


def _add_options(group: argparse._ArgumentGroup, owner: type[Architecture] | type[Recipe]) -> None:
    """Give every field of `owner` its flag; one that is not given is absent, so that the preset's value stays."""
    hints = get_type_hints(owner, include_extras=True)
    for option in fields(owner):
        kind, text = get_args(hints[option.name])
        form: dict[str, Any]
        if kind is bool:
            form = {"action": argparse.BooleanOptionalAction}
        elif get_origin(kind) is Literal:
            form = {"choices": get_args(kind)}
        elif get_origin(kind) is tuple:
            form = {"type": _widths, "metavar": "N,N"}
        else:
            form = {"type": kind, "metavar": kind.__name__.upper()}
        shown = ",".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
        flag = "--" + option.name.replace("_", "-")
        group.add_argument(flag, default=argparse.SUPPRESS, help=f"{text} (default: {shown})", **form)


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(",") if width)
    except ValueError:
        raise argparse.ArgumentTypeError("widths are whole numbers with commas between, as in 64,64") from None


def _name(text: str) -> str:
    if not bundle.NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("a name is letters, digits and . _ - in between, 64 at most")
    return text


def _given(parsed: argparse.Namespace, owner: type[Architecture] | type[Recipe]) -> dict[str, Any]:
    return {option.name: getattr(parsed, option.name) for option in fields(owner) if option.name in parsed}


def _plan(parsed: argparse.Namespace) -> Plan:
    try:
        return Plan(
            source=parsed.source,
            name=parsed.name or parsed.source,
            models=parsed.models,
            architecture=Architecture(**_given(parsed, Architecture)),
            recipe=replace(PRESETS[parsed.preset], **_given(parsed, Recipe)),
            seed=parsed.seed,
            threads=parsed.threads,
            test_share=parsed.test_share,
            validation_share=parsed.validation_share,
        )
    except ValueError as error:
        raise TrainingError(str(error)) from error


def _fit(parsed: argparse.Namespace) -> None:
    """Train on SOURCE, fold every affine step into the Dense weights, prove that nothing changed, and write the next
    version of the model to <models>/<name>/<version>. Nothing is written unless the proof holds."""
    started = time.perf_counter()
    plan = _plan(parsed)
    # Imported late: torch takes seconds, and a wrong flag should not.
    try:
        from training.pipeline import run
        from training.progress import FitProgress
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"{error.name} is not installed: pip install 'foldserve[train,cpu]' or 'foldserve[train,gpu]'"
        ) from error
    with FitProgress(Console(stderr=True)) as progress:
        written = run(plan, progress.update)
    _summarise(written, time.perf_counter() - started)


def _summarise(written: bundle.Bundle, seconds: float) -> None:
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
    models = written.path.parent.parent
    print(f"wrote        {written.path} in {seconds:.1f} s; serve it: foldserve serve --models {models}")
