"""`foldserve-train`: `fit` makes a bundle from a table, and `diagnose` measures what batch norm does on a table.
`import` makes a bundle from a model of another framework, and `fold` folds an ONNX file (imports/cli.py).

No other module imports this module. The exit status is 0 after success. After an error, the exit status is 1, and
standard error has one line about the error. The exit status is 2 for a wrong command line, and 130 after an interrupt.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from foldserve.service import bundle
from foldserve.service.figures import format_duration
from foldserve.training.diagnose.plan import QUICK, DiagnosisPlan
from foldserve.training.errors import TrainingError
from foldserve.training.flags import add_options, model_name, read_plan, trial_count
from foldserve.training.imports.cli import add_import_commands
from foldserve.training.plan import PRESETS, Architecture, DataOptions, DecisionOptions, Execution, Plan, Recipe
from foldserve.training.summary import describe_bundle, describe_search, describe_table
from foldserve.training.text import printable

if TYPE_CHECKING:
    from foldserve.training.fit.distributed import World
    from foldserve.training.plan import Device
    from foldserve.training.table.schema import Table

_SOURCES = (
    "a .csv, .tsv, .txt or .jsonl file (also .gz), a .xlsx, .parquet, .feather or .npz file (x, y, feature_names), a "
    "folder of such files of one format, - for the standard input, or digits, iris, wine, breast_cancer, diabetes"
)
_MORE = "further files with the same columns; their rows follow"
# torchrun sets this environment variable in each process that it starts.
_TORCHRUN = "TORCHELASTIC_RUN_ID"
_LIBRARIES = ("onnxruntime", "pyarrow", "safetensors", "sklearn", "torch")


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
    _add_fit(commands)
    _add_diagnose(commands)
    add_import_commands(commands)
    return parser


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fit = commands.add_parser("fit", help="train on a table and write a bundle", description=_fit.__doc__)
    fit.add_argument("source", metavar="SOURCE", help=_SOURCES)
    fit.add_argument("more", metavar="FILE", nargs="*", help=_MORE)
    fit.add_argument("--name", type=model_name, help="name of the model (default: of the source, or the file's stem)")
    fit.add_argument("--models", type=Path, default=Path("models"), help="folder to write to (default: %(default)s)")
    fit.add_argument("--seed", type=int, default=Plan.seed, help="seed of all random numbers (default: %(default)s)")
    fit.add_argument("--threads", type=int, default=Plan.threads, help="CPU threads of the fit (default: %(default)s)")
    fit.add_argument("--tune", type=trial_count, metavar="N", default=0, help="try N recipes first and take the best")
    fit.add_argument(
        "--preset",
        choices=PRESETS,
        default="fast",
        help="network and recipe that the flags below change (default: %(default)s)",
    )
    add_options(fit.add_argument_group("table"), DataOptions)
    add_options(fit.add_argument_group("network"), Architecture)
    add_options(fit.add_argument_group("recipe"), Recipe)
    add_options(fit.add_argument_group("decision"), DecisionOptions)
    add_options(fit.add_argument_group("execution"), Execution)
    fit.set_defaults(command=_fit)


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
    diagnose.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    diagnose.add_argument(
        "--seed", type=int, default=DiagnosisPlan.seed, help="seed of all random numbers (default: %(default)s)"
    )
    diagnose.add_argument(
        "--textbook-steps", type=int, help=f"of each training of three sigmoid layers (default: {DiagnosisPlan.steps})"
    )
    diagnose.add_argument("--quick", action="store_true", help="a first look: fewer steps, depths and batch sizes")
    diagnose.add_argument("--threads", type=int, default=Plan.threads, help="CPU threads of your recipe's fits")
    diagnose.add_argument("--preset", choices=PRESETS, default="fast", help="as for fit (default: %(default)s)")
    add_options(diagnose.add_argument_group("table"), DataOptions)
    add_options(diagnose.add_argument_group("network of your recipe"), Architecture)
    add_options(diagnose.add_argument_group("your recipe"), Recipe)
    diagnose.set_defaults(command=_diagnose, name="diagnosis", models=Path())


def _fit(parsed: argparse.Namespace) -> None:
    """Train on SOURCE, and fold every affine step into the Dense weights. Certify that the folded model is the same
    model, and write its next version to <models>/<name>/<version>. Nothing is written unless the certificate holds."""
    started = time.perf_counter()
    plan, execution = read_plan(parsed)
    for library in _LIBRARIES:
        _require(library)
    with ExitStack() as stack:
        # Under torchrun, the processes join a group before they do anything else. A group of processes prints an error
        # only once. Without torchrun, the process reads the table first, so that an error in the table is reported
        # early. Torch is imported later, because the import takes seconds.
        world = _join(stack, execution.device) if _TORCHRUN in os.environ else None
        bundle.require_writable(plan.models)  # checked before the training, so that a wrong folder is reported early
        table = _read(plan.data)
        from foldserve.training.table.target import check_decision

        if world is None or world.is_first:
            print(describe_table(table), flush=True)
        check_decision(plan.decision, table)
        with _start_trainer():
            world = world or _join(stack, execution.device)
            from foldserve.training.pipeline import Context, run
            from foldserve.training.progress import FitProgress
            from foldserve.training.report.sentences import summarise
        if parsed.tune:
            plan = _search(plan, table, parsed.tune, world)
        with FitProgress(Console(stderr=True)) as progress:
            written = run(plan, table, Context(execution, world, progress.update, progress.update_within_epoch))
    if written:
        seconds = time.perf_counter() - started
        print(describe_bundle(written.bundle, written.notes, summarise(written.evidence), seconds))


def _require(library: str) -> None:
    if find_spec(library) is None:
        extras = "'foldserve[tune]'" if library == "optuna" else "'foldserve[train,cpu]' or 'foldserve[train,gpu]'"
        raise TrainingError(f"{library} is not installed: pip install {extras}")


@contextmanager
def _start_trainer() -> Iterator[None]:
    """Show a progress bar while PyTorch is imported, which takes a second. Switch off Python's garbage collection
    during the import.

    The import leaves no garbage to collect. Garbage collection during the import and at the end of the process would
    take another 0.4 s.
    """
    from foldserve.training.progress import StartProgress

    imported = "torch" in sys.modules
    gc.disable()
    try:
        with StartProgress(Console(stderr=True)):
            yield
    finally:
        gc.enable()
        if not imported:
            gc.freeze()


def _join(stack: ExitStack, device: Device) -> World:
    """If torchrun started this process, join the group of processes, and leave the group when `stack` is closed."""
    from foldserve.training.fit.distributed import join_processes

    return stack.enter_context(join_processes(device))


def _read(options: DataOptions) -> Table:
    from foldserve.training.progress import ReadProgress

    with ReadProgress(options.source, Console(stderr=True)) as progress:
        from foldserve.training.table.load import load

        return load(options, progress.update)


def _search(plan: Plan, table: Table, trials: int, world: World) -> Plan:
    _require("optuna")
    from foldserve.training.progress import StageProgress
    from foldserve.training.tune import tune

    with StageProgress(Console(stderr=True)) as progress:
        found = tune(plan, table, trials, lambda trial: progress.update("tune", trial.number, trial.trials))
    if world.is_first:
        print(describe_search(plan, found, trials), flush=True)
    return found


def _diagnose(parsed: argparse.Namespace) -> None:
    """Train small networks with and without batch norm on SOURCE, and write an HTML report. The usual claims about
    batch norm are faster training, steady activations, and gradients that don't vanish. For each claim, the report says
    whether the figures support the claim. The report also has figures on the cost of batch norm.
    """
    started = time.perf_counter()
    plan = QUICK if parsed.quick else DiagnosisPlan()
    try:
        plan = replace(
            plan, seed=parsed.seed, steps=plan.steps if parsed.textbook_steps is None else parsed.textbook_steps
        )
    except ValueError as error:
        raise TrainingError(str(error)) from error
    own, _ = read_plan(parsed)
    outputs = [path for path in (parsed.output, parsed.json) if path is not None]
    for path in outputs:  # checked before the measurements, so that a wrong path is reported early
        if path.is_dir() or not path.parent.is_dir():
            raise TrainingError(f"{path}: not a file in an existing folder")
    for library in _LIBRARIES:
        _require(library)
    table = _read(own.data)
    with _start_trainer():
        from foldserve.training.diagnose.run import diagnose, to_json
        from foldserve.training.diagnose.sections import build_sections, describe_rows, render
        from foldserve.training.progress import StageProgress
    with StageProgress(Console(stderr=True)) as progress:
        measured = diagnose(table, plan, own, progress.update)
    sections = build_sections(measured)
    try:
        parsed.output.write_text(render(measured, sections), encoding="utf-8")
        if parsed.json is not None:
            parsed.json.write_text(to_json(measured), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{error.filename}: {error.strerror}") from error
    print(f"{table.source}: {describe_rows(measured.sample)}")
    for section in sections:
        print(f"\n{section.title}")
        for finding in section.findings:
            print(textwrap.fill(finding.sentence, 100, initial_indent="  - ", subsequent_indent="    "))
    print(f"\nwrote {', '.join(map(str, outputs))} in {format_duration(time.perf_counter() - started)}")
