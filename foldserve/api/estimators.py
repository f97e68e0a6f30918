"""Estimators for scikit-learn. The estimators use the network, the training and the folding of `foldserve.fit`.

The method `fit` uses all rows of X for training and validation. `fit` keeps no test rows and writes no bundle. The
predictions come from the folded model in ONNX Runtime. This module is the only one outside of `training/` that imports
scikit-learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt

from foldserve.api.errors import TableWarning, in_python
from foldserve.api.extras import require
from foldserve.api.frames import library, read_columns
from foldserve.service.runtime.session import open_cpu
from foldserve.training.activations import Activation
from foldserve.training.errors import DataError
from foldserve.training.plan import PRESETS, DataOptions, Placement, Plan, PresetName

require("sklearn", extra="train,cpu")

from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin  # noqa: E402
from sklearn.utils import check_random_state  # noqa: E402
from sklearn.utils.multiclass import check_classification_targets  # noqa: E402
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data  # noqa: E402

if TYPE_CHECKING:
    from foldserve.service.arrays import Outputs, Rows
    from foldserve.service.bundle import Feature, Task
    from foldserve.training.table.schema import Column, Table

_BATCH = 8192
# The smallest number of rows that can be split into training and validation rows.
_MIN_ROWS = 6


class _FoldedEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The code for training and prediction that both estimators share."""

    _task: Task
    features_: tuple[Feature, ...]
    onnx_: bytes

    def __init__(
        self,
        *,
        preset: PresetName = "fast",
        hidden: Sequence[int] | None = None,
        placement: Placement | None = None,
        activation: Activation | None = None,
        members: int | None = None,
        bins: int | None = None,
        dropout: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        categorical: Sequence[str] = (),
        numeric: Sequence[str] = (),
        missing: Sequence[str] = (),
        validation_share: float = 0.1,
        threads: int = 1,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.preset = preset
        self.hidden = hidden
        self.placement = placement
        self.activation = activation
        self.members = members
        self.bins = bins
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.categorical = categorical
        self.numeric = numeric
        self.missing = missing
        self.validation_share = validation_share
        self.threads = threads
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """Describe the estimator to scikit-learn: NaN is a missing value, and a data frame may have columns of text."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle, without the session of ONNX Runtime."""
        state = dict(super().__getstate__())
        state.pop("_session", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, and open a session again."""
        super().__setstate__(state)
        if "onnx_" in state:
            self._session = open_cpu(self.onnx_, self.threads)

    def _fit_table(self, table: Table) -> None:
        """Train on a table, fold the network, and open the folded model."""
        require("torch", "pyarrow", extra="train,cpu")
        from foldserve.training.certify.manifest import describe_features
        from foldserve.training.fold.export import to_onnx
        from foldserve.training.pipeline import train
        from foldserve.training.table.split import split_rows

        plan = self._plan()
        split = split_rows(table, test=0.0, validation=self.validation_share, seed=plan.seed)
        trained = train(plan, table, split=split)
        self.features_ = describe_features(table.columns, table.x)
        self.onnx_ = to_onnx(trained.folded.network, len(table.columns), table.outputs, table.task)
        self._session = open_cpu(self.onnx_, self.threads)

    def _plan(self) -> Plan:
        preset = PRESETS[self.preset]
        hidden = None if self.hidden is None else tuple(self.hidden)
        network = {
            "hidden": hidden,
            "placement": self.placement,
            "activation": self.activation,
            "members": self.members,
            "bins": self.bins,
            "dropout": self.dropout,
        }
        recipe = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
        }
        return Plan(
            DataOptions("X", validation_share=self.validation_share),
            name="X",
            models=Path(),
            preset=self.preset,
            architecture=replace(preset.architecture, **_given(network)),
            recipe=replace(preset.recipe, **_given(recipe)),
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
            threads=self.threads,
        )

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _read_training(self, X: Any, y: Any) -> tuple[tuple[Column, ...], Rows, npt.NDArray[Any]]:  # noqa: N803
        """Return the columns, the rows as float32 [rows, features], and the target [rows]. scikit-learn checks X if X
        is an array.
        """
        numeric = self._task == "regression"
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        self._names: tuple[str, ...] | None = None  # the names of the columns of a data frame
        if library(X) is None:
            checks = {"dtype": np.float32, "ensure_all_finite": "allow-nan", "ensure_min_samples": _MIN_ROWS}
            X, y = validate_data(self, X, y, y_numeric=numeric, multi_output=False, **checks)  # noqa: N806
            return *_numeric_columns(X), y
        validate_data(self, X, skip_check_array=True)
        y = column_or_1d(y, warn=True)
        columns, x = self._read_training_frame(X, len(y))
        if not np.isfinite(y.astype(np.float64) if numeric else 0.0).all():
            raise ValueError("Input y contains NaN or infinity.")
        return columns, x, y

    def _read_training_frame(self, X: Any, targets: int) -> tuple[tuple[Column, ...], Rows]:  # noqa: N803
        from foldserve.training.table.cells import simplify
        from foldserve.training.table.features import FeatureBuilder
        from foldserve.training.table.missing import remove_missing

        found = read_columns(X)
        self._names = found.names
        if found.rows != targets or found.rows < _MIN_ROWS:
            raise ValueError(f"X has {found.rows} rows and y {targets} values: both need the same, and {_MIN_ROWS}")
        options = DataOptions(
            "X", categorical=_names(self.categorical), numeric=_names(self.numeric), missing=_names(self.missing)
        )
        builder = FeatureBuilder(options, found.rows, len(found.names), typed=True)
        for name in found.names:
            try:
                builder.add(name, remove_missing(simplify(name, found.take(name)), options.missing))
            except DataError as error:
                raise DataError(in_python(str(error))) from error
        columns, x, notes = builder.finish()
        if not columns:
            raise ValueError("X has no column that can be a feature")
        for note in notes:
            warnings.warn(in_python(note), TableWarning, stacklevel=5)
        return columns, x

    def _rows(self, X: Any) -> Rows:  # noqa: N803
        check_is_fitted(self)
        if self._names is None:
            checked = validate_data(self, X, reset=False, dtype=np.float32, ensure_all_finite="allow-nan")
            x = cast("Rows", checked)
            for place, feature in enumerate(self.features_):
                if not feature.missing and np.isnan(x[:, place]).any():
                    raise ValueError(f"Input X contains NaN in {feature.name!r}, which had no NaN in fit.")
            return x
        from foldserve.api.rows import encode

        validate_data(self, X, reset=False, skip_check_array=True)
        return encode(read_columns(X, self._names), self.features_)

    def _run(self, X: Any) -> Outputs:  # noqa: N803
        rows = self._rows(X)
        batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        return np.concatenate([self._session.run(None, {"input": np.ascontiguousarray(batch)})[0] for batch in batches])


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _numeric_columns(x: Rows) -> tuple[tuple[Column, ...], Rows]:
    from foldserve.training.table.schema import Column

    missing = [bool(np.isnan(column).any()) for column in x.T]
    return tuple(Column(f"x{place}", "numeric", missing=each) for place, each in enumerate(missing)), x


class FoldedClassifier(ClassifierMixin, _FoldedEstimator):  # type: ignore[misc]
    """A batch-norm MLP for classification, folded and run by ONNX Runtime.

    The estimator can replace a classifier of scikit-learn.

    The parameters are options of `foldserve.fit`; None means the value of the preset. X may be an array of numbers, or
    a frame of pandas or polars with numbers, texts, booleans, dates and missing values. `foldserve.fit` describes how
    columns of a frame become features. validation_share: the share of the rows that are validation rows. The error on
    the validation rows decides when the training stops. The estimators don't support sample weights.
    random_state: the seed of all random numbers; a fit with the same seed gives the same model.

    Attributes: `classes_` the labels [classes], `features_` the features as a manifest describes them, `onnx_` the
    folded model, `n_features_in_`, and `feature_names_in_` for a frame.
    """

    _task = "classification"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train on X [rows, features] and the labels y [rows]. Raises `ValueError` for an input that can't be used."""
        from foldserve.training.table.schema import Table

        columns, x, y = self._read_training(X, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has only one class: at least 2 classes are needed")
        labels = tuple(range(len(self.classes_)))
        self._fit_table(Table("X", "classification", "y", columns, x, codes.astype(np.int64), labels))
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float32]:  # noqa: N803
        """Return the probability of each class, float32 [rows, classes], in the order of `classes_`."""
        return self._run(X)

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """Return the most probable label of each row."""
        likeliest = self._run(X).argmax(axis=1)
        labels: npt.NDArray[Any] = self.classes_[likeliest]
        return labels


class FoldedRegressor(RegressorMixin, _FoldedEstimator):  # type: ignore[misc]
    """A batch-norm MLP for regression, folded and run by ONNX Runtime.

    The estimator has the same parameters, inputs and attributes as `FoldedClassifier`, except `classes_`.
    """

    _task = "regression"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train on X [rows, features] and the values y [rows]. Raises `ValueError` for an input that can't be used."""
        from foldserve.training.table.schema import Table

        columns, x, y = self._read_training(X, y)
        self._fit_table(Table("X", "regression", "y", columns, x, y.astype(np.float64), ()))
        return self

    def predict(self, X: Any) -> npt.NDArray[np.float32]:  # noqa: N803
        """Return the value of each row, float32 [rows]."""
        return self._run(X)[:, 0]
