"""The flags of `foldserve-train`: one flag for each field of the plan's classes.

The module also builds the plan from the given flags.

The module does not import torch, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from foldserve.service import bundle
from foldserve.training.errors import TrainingError
from foldserve.training.plan import PRESETS, Architecture, DataOptions, DecisionOptions, Execution, Plan, Recipe

Options = type[DataOptions] | type[Architecture] | type[Recipe] | type[DecisionOptions] | type[Execution]

_METAVARS = {"sep": "CHAR", "encoding": "NAME", "sheet": "NAME", "threshold": "RULE", "positive": "CLASS"}
_METAVARS |= {"decimal": "MARK", "thousands": "MARK"}
_SUFFIXES = "csv|tsv|txt|parquet|xlsx|jsonl|ndjson|arrow|feather|ipc|npz"
_NAME_RULE = "letters and digits, with . _ - between them, at most 64 characters"


def add_options(group: argparse._ArgumentGroup, owner: Options, only: Sequence[str] | None = None) -> None:
    """Add a flag for each annotated field of `owner`. If `only` is not None, leave out fields whose names are not in
    `only`.

    A flag that the user does not give is absent from the parsed arguments, so that the value of the preset is used.
    """
    hints = get_type_hints(owner, include_extras=True)
    for option in fields(owner):
        if get_origin(hints[option.name]) is not Annotated or (only is not None and option.name not in only):
            continue  # SOURCE is a positional argument, not a flag
        kind, text = get_args(hints[option.name])
        default = ",".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
        if default not in (None, ""):
            text += f" (default: {default})"
        flag = "--" + option.name.replace("_", "-")
        argument = _argument(kind)
        if option.name in _METAVARS:
            argument["metavar"] = _METAVARS[option.name]
        group.add_argument(flag, default=argparse.SUPPRESS, help=text, **argument)


def _argument(kind: Any) -> dict[str, Any]:
    """Return the keyword arguments of `add_argument` for a field of type `kind`."""
    # Before Python 3.14, the origin of `Literal[...] | None` is Union, and the origin of any other `kind | None` is
    # UnionType.
    if get_origin(kind) in (Union, UnionType):  # None stands for a flag that is not given
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    known: dict[Any, dict[str, Any]] = {
        bool: {"action": argparse.BooleanOptionalAction},
        str: {"metavar": "COL"},
        Path: {"type": Path, "metavar": "FILE"},
        tuple[str, ...]: {"type": split_texts, "metavar": "A,B"},
        tuple[int, ...]: {"type": _widths, "metavar": "N,N"},
    }
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    return known.get(kind) or {"type": kind, "metavar": kind.__name__.upper()}


def split_texts(text: str) -> tuple[str, ...]:
    """Split `text` like one row of a CSV file, so that a value with a comma can be quoted."""
    return tuple(next(csv.reader([text]), ()))


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(",") if width)
    except ValueError:
        raise argparse.ArgumentTypeError("expected whole numbers separated by commas, as in 64,64") from None


def model_name(text: str) -> str:
    """Return `text` if it can be the name of a model."""
    if not bundle.NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"a name consists of {_NAME_RULE}")
    return text


def trial_count(text: str) -> int:
    """Convert `text` to a number of trials."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("expected a whole number of at least 1")
    return int(text)


def read_data_options(parsed: argparse.Namespace) -> DataOptions:
    """Return the data options, which say how to read the table.

    Raises `TrainingError` for options that contradict each other.
    """
    try:
        return DataOptions(**_given(parsed, DataOptions))
    except ValueError as error:
        raise TrainingError(str(error)) from error


def read_plan(parsed: argparse.Namespace) -> tuple[Plan, Execution]:
    """Return the preset with the changes that the given flags make, and the options for the execution. Raises
    `TrainingError`.
    """
    preset = PRESETS[parsed.preset]
    data = read_data_options(parsed)
    try:
        plan = Plan(
            data=data,
            name=parsed.name or default_name(parsed.source),
            models=parsed.models,
            preset=parsed.preset,
            architecture=replace(preset.architecture, **_given(parsed, Architecture)),
            recipe=replace(preset.recipe, **_given(parsed, Recipe)),
            decision=DecisionOptions(**_given(parsed, DecisionOptions)),
            seed=parsed.seed,
            threads=parsed.threads,
        )
        return plan, Execution(**_given(parsed, Execution))
    except ValueError as error:
        raise TrainingError(str(error)) from error


def _given(parsed: argparse.Namespace, owner: Options) -> dict[str, Any]:
    given = {option.name: getattr(parsed, option.name) for option in fields(owner) if option.name in parsed}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def default_name(source: str) -> str:
    """Return a name for the model, made from the name of its table: `houses` for data/houses.csv.gz or
    data/houses.train.csv.
    """
    name = re.sub(rf"(\.train)?\.({_SUFFIXES})(\.gz)?$", "", Path(source).name, flags=re.IGNORECASE)
    if source and not bundle.NAME.fullmatch(name):
        raise TrainingError(f"{name!r} can't be a model's name, which consists of {_NAME_RULE}: use --name")
    return name
