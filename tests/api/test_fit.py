"""`foldserve.fit` trains as the command `fit` does, and also takes tables in memory."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import polars as pl
import pytest

import foldserve
from foldserve.api.fit import FitOptions
from foldserve.service import bundle as bundles
from foldserve.training.cli import main
from foldserve.training.plan import Architecture, DataOptions, DecisionOptions, Execution, Recipe
from tests.api.conftest import PENGUINS

QUICK = {"epochs": 2, "hidden": 8, "bins": 0}


def test_a_path_gives_the_bytes_of_the_command(tmp_path, capsys):
    flags = ["--epochs", "2", "--hidden", "8", "--bins", "0", "--drop", "year"]
    assert main(["fit", str(PENGUINS), "--target", "species", "--models", str(tmp_path), *flags]) == 0
    printed = capsys.readouterr().out
    found = foldserve.fit(PENGUINS, "species", models=tmp_path / "2", drop="year", progress=True, **QUICK)
    assert (found.path, found.manifest.name) == (tmp_path / "2" / "penguins" / "1", "penguins")
    assert found.model == bundles.read(tmp_path / "penguins" / "1").model
    lines, theirs = (text.splitlines()[:-1] for text in (capsys.readouterr().out, printed))
    assert lines == theirs


def test_tables_in_memory_give_the_model_of_the_same_columns(penguins, tmp_path, capsys):
    polars = pl.read_csv(PENGUINS, null_values="NA")
    tables = [
        penguins,
        polars,
        polars.to_arrow(),
        polars.to_dict(as_series=False),
    ]
    found = [foldserve.fit(table, "species", models=tmp_path, **QUICK) for table in tables]
    assert len({each.model for each in found}) == 1
    assert [each.path for each in found] == [tmp_path / "species" / str(version) for version in range(1, 5)]
    assert "id" not in [feature.name for feature in found[0].manifest.features]
    assert capsys.readouterr() == ("", "")
    assert repr(found[0]).startswith(f"<Bundle {tmp_path}/species/1: classification, test accuracy ")


def test_arrays_and_a_target_of_values(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 3))
    y = x @ [1.0, 2.0, 0.5] + generator.normal(size=200)
    found = foldserve.fit(x, y, models=tmp_path, name="sums", **QUICK)
    assert (found.manifest.task, found.manifest.target.name) == ("regression", "target")
    assert [feature.name for feature in found.manifest.features] == ["x0", "x1", "x2"]
    same = foldserve.fit(pd.DataFrame(x, columns=["x0", "x1", "x2"]), pd.Series(y, name="y"), models=tmp_path, **QUICK)
    assert same.manifest.target.name == same.manifest.name == "y"


def test_a_note_is_a_warning_with_arguments_instead_of_flags(penguins, tmp_path):
    named = penguins.assign(name=[f"penguin {i}" for i in range(len(penguins))])
    with pytest.warns(foldserve.TableWarning, match="'name' was dropped: .* use categorical='name' to keep it") as seen:
        foldserve.fit(named, "species", models=tmp_path, **QUICK)
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"target": "nope"}, foldserve.DataError, "target: DataFrame has no column 'nope'"),
        ({"drop": "nope"}, foldserve.DataError, "drop: DataFrame has no column 'nope'"),
        ({"numeric": "island"}, foldserve.DataError, "must be numeric, .*; use missing='Torgersen', categorical='isla"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"positive": "Gentoo"}, ValueError, "^positive needs threshold$"),
        ({"threshold": "f1"}, foldserve.DataError, "threshold"),
        ({"preset": "slow"}, ValueError, "preset must be one of fast, best"),
        ({"name": "../x"}, ValueError, "can't be the name of a model"),
        ({"depth": 3}, TypeError, "unexpected keyword argument 'depth'"),
        ({"target": [1, 2]}, foldserve.DataError, "the target has 2 values, and the table has 344 rows"),
    ],
)
def test_a_wrong_argument_is_one_line_and_writes_nothing(penguins, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message) as refused:
        foldserve.fit(penguins, **{"target": "species", "models": tmp_path / "m"} | options)
    assert isinstance(refused.value, ValueError | TypeError)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            pd.DataFrame({"a": [1, "x", None] * 9, "y": [0, 1, 1] * 9}),
            "column 'a' has values that have no common Arrow type",
        ),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns with the name 'a'"),
        (pd.DataFrame({"a": [], "y": []}), "has no rows"),
        (pl.LazyFrame({"a": [1]}), "LazyFrame is not a table"),
        ({"a": [1, 2], "y": [1]}, "the columns differ in length"),
        ({"a": 1, "y": 2}, "column 'a' is not a sequence"),
        (np.zeros(3), r"the array has the shape \[3\], expected \[rows, columns\]"),
        (7, "int is not a table"),
    ],
)
def test_an_object_that_is_no_table_is_refused(table, message, tmp_path):
    with pytest.raises(foldserve.DataError, match=message):
        foldserve.fit(table, models=tmp_path)


def test_the_options_are_those_of_the_plan_with_their_types():
    owners = (DataOptions, Architecture, Recipe, DecisionOptions, Execution)
    known = {name: hint for owner in owners for name, hint in get_type_hints(owner, include_extras=True).items()}
    flags = {name: get_args(hint)[0] for name, hint in known.items() if get_origin(hint) is Annotated}
    named = inspect.signature(foldserve.fit).parameters
    options = get_type_hints(FitOptions)
    assert options.keys() == flags.keys() - named.keys()
    for name, hint in options.items():
        expected = [kind for kind in (get_args(flags[name]) or (flags[name],)) if kind is not type(None)]
        if bool in expected or int in expected or float in expected or get_origin(flags[name]) is Literal:
            assert name == "hidden" or hint == flags[name] or hint in expected, name
    assert {each.name for each in fields(DataOptions)} - options.keys() == {"source", "more", "target"}


def test_the_numbers_and_dates_of_a_frame_of_texts_are_read_and_noted(tmp_path):
    frame = pd.DataFrame(
        {
            "price": [f"${1000 + 37 * row:,.2f}" for row in range(60)],
            "when": [f"2024-{row % 12 + 1:02}-03" for row in range(60)],
            0: [row % 2 for row in range(60)],
        }
    )
    with pytest.warns(foldserve.TableWarning) as seen:
        made = foldserve.fit(frame, target=0, name="sales", models=tmp_path, epochs=1)
    noted = [str(note.message) for note in seen]
    assert any("'price' has texts, which are all numbers" in note for note in noted)
    assert any("'when' has texts, which are all dates" in note for note in noted)
    assert [feature.kind for feature in made.manifest.features] == ["numeric", "time"]
    assert len(foldserve.load(made).predict(frame)) == 60
