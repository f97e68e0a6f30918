"""The commands `import` and `fold` of `foldserve-train`: their flags, and the lines that they print.

The module imports no framework before a command runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from foldserve.service.bundle import Label
from foldserve.service.figures import format_difference, format_percent
from foldserve.training.errors import DataError
from foldserve.training.flags import add_options, model_name, split_texts
from foldserve.training.plan import DataOptions
from foldserve.training.summary import describe_bundle
from foldserve.training.text import printable

# The user can set only the following options for reading a table. The model determines all other options for reading a
# table.
_TABLE_OPTIONS = ("target", "drop", "missing", "sep", "encoding", "sheet")


def add_import_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands `import` and `fold` to the parser of `foldserve-train`."""
    parser = commands.add_parser(
        "import", help="make a bundle from a model of another framework", description=_import.__doc__
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the model; its suffix gives the format")
    parser.add_argument("--name", type=model_name, required=True, help="name of the model")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--data", metavar="TABLE", help="table for the certificate and, with --target, for the metrics")
    parser.add_argument(
        "--ranges",
        type=split_texts,
        default=(),
        metavar="R,R",
        help="ranges of the features without a table, as in age=0:99; 0:16 is for all others",
    )
    parser.add_argument("--labels", type=split_texts, default=(), metavar="A,B", help="labels, in the order of outputs")
    parser.add_argument(
        "--layers", type=Path, metavar="FILE", help="text file with print(model), for a file of PyTorch weights alone"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random rows (default: %(default)s)")
    _add_model_flags(parser)
    add_options(parser.add_argument_group("table"), DataOptions, only=_TABLE_OPTIONS)
    parser.set_defaults(command=_import)

    fold = commands.add_parser("fold", help="fold an ONNX file", description=_fold.__doc__)
    fold.add_argument("file", metavar="FILE", type=Path, help="the ONNX model")
    fold.add_argument("-o", "--to", type=Path, required=True, metavar="FILE", help="the file to write")
    _add_model_flags(fold)
    fold.set_defaults(command=_fold)


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--features", type=split_texts, default=(), metavar="A,B", help="names of the features, in the model's order"
    )
    parser.add_argument("--output", default="", metavar="NAME", help="output of the model, if it has several")
    parser.add_argument(
        "--keep-unknown", action="store_true", help="keep operators that are not understood as they are"
    )


def parse_labels(texts: tuple[str, ...]) -> tuple[Label, ...]:
    """Convert all labels to one type: integers if possible, otherwise numbers, otherwise texts."""
    for number in (int, float):
        try:
            return tuple(number(text) for text in texts)
        except ValueError:
            continue
    return texts


def _read_options(source: str, given: dict[str, Any]) -> DataOptions:
    try:
        return DataOptions(source, **given)
    except ValueError as error:
        raise DataError(str(error)) from error


def _import(parsed: argparse.Namespace) -> None:
    """Read a model that another framework trained. Fold every affine step into the Dense weights, and certify in
    float64 that the folded model gives the same answers. Write the next version to <models>/<name>/<version>."""
    started = time.perf_counter()
    if parsed.data is None and "target" in parsed:
        raise DataError("--target is a column of a table: give the table with --data")
    from foldserve.training.imports.front_ends import read_model
    from foldserve.training.imports.imported import Options
    from foldserve.training.imports.pipeline import ImportPlan, run
    from foldserve.training.imports.rows import parse_ranges

    options = Options(
        features=parsed.features,
        labels=parse_labels(parsed.labels),
        output=parsed.output,
        keep_unknown=parsed.keep_unknown,
        layers=parsed.layers,
        ranges=parse_ranges(parsed.ranges),
    )
    given = {name: vars(parsed)[name] for name in _TABLE_OPTIONS if name in parsed}
    data = _read_options(parsed.data, given) if parsed.data is not None else None
    plan = ImportPlan(parsed.name, parsed.models, data, options.ranges, parsed.seed)
    written = run(read_model(parsed.file, options), plan)
    findings, notes = "", written.notes
    if written.evidence is not None:
        from foldserve.training.report.sentences import summarise

        findings, notes = summarise(written.evidence), written.evidence.notes
    print(describe_bundle(written.bundle, notes, findings, time.perf_counter() - started))


def _fold(parsed: argparse.Namespace) -> None:
    """Fold every affine step of an ONNX file into the weights next to it, and write another ONNX file. The input and
    the output keep their names. Nothing is written unless both files give the same outputs on random rows."""
    from foldserve.training.imports.fold_file import fold_file
    from foldserve.training.imports.imported import Options

    options = Options(features=parsed.features, output=parsed.output, keep_unknown=parsed.keep_unknown)
    folded = fold_file(parsed.file, parsed.to, options)
    for line in folded.report:
        if line.into == line.layer:
            print(printable(f"{'kept':<12} {line.layer}  ({line.rule.removeprefix('kept: ')})"))
        else:
            print(printable(f"{'folded':<12} {line.layer} -> {line.into}  ({line.rule})"))
    for note in folded.notes:
        print(printable(f"{'note':<12} {note}"))
    before, after = folded.nodes
    print(
        f"{'checked':<12} off by {format_difference(folded.parity.max_absolute)} at most on random rows, "
        f"{format_percent(folded.parity.worst)} of the tolerance"
    )
    print(f"{'wrote':<12} {parsed.to}: {after} nodes instead of {before}")
