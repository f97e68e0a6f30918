"""The plan of a training run: every setting that decides the result, and the options for where the training runs.

The annotation of a field contains the help text of its flag in `foldserve-train fit --help`. The module does not import
torch, so that `--help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log2, nan
from pathlib import Path
from typing import Annotated, Literal

from foldserve.training.activations import Activation

Placement = Literal["pre", "post"]
Schedule = Literal["cosine", "onecycle"]
Binned = Literal["tails", "all"]
Precision = Literal["fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
PresetName = Literal["fast", "best"]
ClassWeight = Literal["none", "balanced"]
Decimal = Literal[".", ","]
Rare = Literal["refuse", "drop", "merge"]
Thousands = Literal["", ",", ".", " ", "'"]
TaskOption = Literal["auto", "classification", "regression"]

_MIN_EPOCHS = 5
# The default number of epochs is reduced if all epochs of a training together would have more rows than this number.
_MAX_ROWS_SEEN = 3_000_000


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


@dataclass(frozen=True)
class DataOptions:
    """The table, and the options for reading the columns and splitting the rows of the table.

    source: the name of a built-in table, the path of a file, the path of a folder of Parquet files, or - for the
    standard input. more: further files, whose rows follow those of `source`. test_share, validation_share: shares of
    the rows of the table; if `test` names a file, test_share has no effect. Raises `ValueError` for options that
    contradict each other.
    """

    source: str
    more: tuple[str, ...] = ()
    target: Annotated[str | None, "column to predict (default: the last)"] = None
    test: Annotated[Path | None, "file with the test rows, read only for the final scores"] = None
    task: Annotated[TaskOption, "auto: classification for texts, booleans and up to 20 different integers"] = "auto"
    categorical: Annotated[tuple[str, ...], "columns of categories, even if the values are numbers"] = ()
    numeric: Annotated[tuple[str, ...], "columns that must be numeric"] = ()
    boolean: Annotated[tuple[str, ...], "columns of true and false, or 1 and 0"] = ()
    drop: Annotated[tuple[str, ...], "columns to leave out"] = ()
    rare: Annotated[Rare, "classes too small for the split: refuse, drop their rows, or merge them"] = "refuse"
    keep_duplicates: Annotated[bool, "keep test rows that are equal to a training row"] = False
    missing: Annotated[tuple[str, ...], "texts that mean a missing value, like an empty cell; for example NA,?"] = ()
    sep: Annotated[str | None, "separator of the cells of a text file; \\t or tab for a tab (default: found)"] = None
    encoding: Annotated[str | None, "encoding of a text file (default: UTF-8, UTF-16 with its mark, or cp1252)"] = None
    sheet: Annotated[str | None, "sheet of a spreadsheet (default: the only one)"] = None
    decimal: Annotated[Decimal | None, "decimal mark of numbers, . or , (default: each column decides)"] = None
    thousands: Annotated[
        Thousands | None, "thousands separator of numbers: , . ' or a space (default: each column decides)"
    ] = None
    group: Annotated[str | None, "column of groups: a group stays in one part of the split; not a feature"] = None
    time: Annotated[str | None, "column of times: the latest rows are the test set; a feature if numeric"] = None
    test_share: Annotated[float, "share of the rows in the test set"] = 0.2
    validation_share: Annotated[float, "share of the rows in the validation set, which decides when to stop"] = 0.1

    def __post_init__(self) -> None:
        held_out = 0.0 if self.test else self.test_share
        _require(self.test_share > 0 and self.validation_share > 0, "test and validation shares must be above 0")
        _require(held_out + self.validation_share < 1, "test and validation shares leave no training rows")
        _require(not (self.group and self.time), "split by a group or by time, not by both")
        one_letter = self.sep is None or (len(self.sep) == 1 and self.sep not in '"\r\n') or self.sep in ("\\t", "tab")
        _require(one_letter, "--sep must be one character, or tab")
        _require(self.decimal is None or self.decimal != self.thousands, "--decimal and --thousands must differ")
        declared = [*self.categorical, *self.numeric, *self.boolean, *self.drop]
        twice = sorted({name for name in declared if declared.count(name) > 1})
        _require(not twice, f"column {twice and twice[0]!r} is declared twice")
        _require(self.target not in declared or self.target is None, f"column {self.target!r} is the target")


@dataclass(frozen=True)
class Architecture:
    """The settings of the network's layers. The same settings work for any table. Raises `ValueError` for a value out
    of range.

    `eps` and `momentum` have the same meaning as in PyTorch, where `momentum` is the weight of the newest batch. In
    Keras, `momentum` is the weight of the earlier batches, so 0.99 in Keras is 0.01 here. The default `epsilon` is 1e-3
    in Keras and 1e-5 in PyTorch.
    """

    hidden: Annotated[tuple[int, ...], "widths of the hidden Dense layers"] = (64, 64)
    placement: Annotated[Placement, "pre: Dense - BN - activation; post: Dense - activation - BN"] = "pre"
    activation: Annotated[Activation, "activation function of the hidden layers"] = "relu"
    members: Annotated[int, "number of networks; the model is their mean, in one graph"] = 1
    bins: Annotated[int, "bins of the piecewise-linear encoding of a numeric column; 0: no bins"] = 16
    binned: Annotated[Binned, "columns with bins. tails: only columns with extreme values"] = "tails"
    dropout: Annotated[float, "probability of dropping a hidden unit during training"] = 0.15
    batch_norm: Annotated[bool, "batch norm in the hidden layers; off for a comparison"] = True
    input_norm: Annotated[bool, "batch norm on the standardised input too"] = False
    eps: Annotated[float, "epsilon of batch norm (Keras: 1e-3)"] = 1e-5
    momentum: Annotated[float, "weight of the newest batch in the running statistics (Keras's 0.99 is 0.01)"] = 0.1

    def __post_init__(self) -> None:
        _require(
            all(1 <= width <= 65_536 for width in self.hidden),
            "a hidden layer must have at least 1 unit, at most 65536",
        )
        _require(1 <= self.members <= 64, "members must be from 1 to 64")
        _require(0 <= self.bins <= 256, "bins must be from 0 to 256")
        _require(0 <= self.dropout < 1, "dropout must be at least 0 and below 1")
        _require(0 < self.eps < 1, "eps must be above 0 and below 1")
        _require(0 < self.momentum <= 1, "momentum must be above 0 and at most 1")


@dataclass(frozen=True)
class Recipe:
    """The settings of the optimisation. The same settings work for any table. Raises `ValueError` for a value out of
    range.

    If `epochs` or `batch_size` is None, `resolved` chooses a number that suits the number of training rows.
    """

    epochs: Annotated[int | None, "passes over the training rows (default: --most-epochs, fewer for a large table)"] = (
        None
    )
    most_epochs: Annotated[int, "passes over a table of up to about 50,000 rows"] = 60
    patience: Annotated[int, "epochs without a lower validation loss before the training stops"] = 40
    batch_size: Annotated[int | None, "rows per step, in all processes together (default: by --steps)"] = None
    steps: Annotated[int, "steps per epoch, roughly, within batches of 32 to 256 rows"] = 32
    learning_rate: Annotated[float, "highest learning rate of the schedule"] = 1e-2
    weight_decay: Annotated[float, "weight decay of AdamW, for weight matrices only"] = 0.1
    schedule: Annotated[Schedule, "schedule of the learning rate"] = "onecycle"
    input_noise: Annotated[float, "noise on the input during training, in standard deviations of each column"] = 0.1
    label_smoothing: Annotated[float, "label smoothing of the training loss, for classification"] = 0.1
    class_weight: Annotated[ClassWeight, "balanced: all classes have equal weight, even rare ones"] = "none"
    calibrate: Annotated[bool, "divide the logits by a temperature fitted to the validation rows"] = True
    precision: Annotated[Precision, "precision of matrix products during training; bf16 is for CUDA"] = "fp32"

    def __post_init__(self) -> None:
        _require(self.epochs is None or self.epochs >= 1, "epochs must be at least 1")
        _require(min(self.most_epochs, self.patience, self.steps) >= 1, "epochs, patience and steps must be at least 1")
        _require(
            self.batch_size is None or self.batch_size >= 2,
            "the batch size must be at least 2: batch norm has no statistics of one row",
        )
        _require(0 < self.learning_rate < inf, "the learning rate must be above 0 and finite")
        _require(0 <= self.weight_decay < inf, "weight decay must be at least 0 and finite")
        _require(0 <= self.input_noise < inf, "input noise must be at least 0 and finite")
        _require(0 <= self.label_smoothing < 1, "label smoothing must be at least 0 and below 1")

    def resolved(self, rows: int) -> Recipe:
        """Return the recipe with a batch size and a number of epochs that suit `rows` training rows.

        A batch size or a number of epochs that the user gave does not change.

        The batch size is a power of two. A batch has 32 to 256 rows, so that an epoch has about `steps` steps. On a
        large table, a batch may have up to 1024 rows, so that an epoch has about 1024 steps. The default number of
        epochs is `most_epochs`. If all epochs together would have more than 3 million rows, the default number of
        epochs is smaller, but at least 5.
        """
        small, large = min(max(rows // self.steps, 32), 256), min(rows // 1024, 1024)
        size = 2 ** round(log2(max(small, large)))
        epochs = min(self.most_epochs, max(_MIN_EPOCHS, _MAX_ROWS_SEEN // rows))
        return replace(self, batch_size=self.batch_size or size, epochs=self.epochs or epochs)


@dataclass(frozen=True)
class DecisionOptions:
    """The decision threshold for a target with two classes. Raises `ValueError` if the text of `threshold` is not
    valid.

    threshold: if it is None, the model predicts the class with the larger probability.
    """

    threshold: Annotated[
        str | None,
        "for two classes: f1 or cost:FP,FN (chosen on the validation rows), or a probability (default: none)",
    ] = None
    positive: Annotated[str | None, "class that --threshold is about (default: the second one)"] = None

    def __post_init__(self) -> None:
        _require(self.positive is None or self.threshold is not None, "--positive needs --threshold")
        known = self.threshold in (None, "f1") or self.costs is not None or self.value is not None
        _require(known, "--threshold must be f1, a probability from 0 to 1, or cost:FP,FN with costs above 0")

    @property
    def costs(self) -> tuple[float, float] | None:
        """The costs of a false positive and of a false negative, if the threshold has the form `cost:FP,FN`."""
        head, _, tail = (self.threshold or "").partition(":")
        costs = tuple(map(_number, tail.split(",")))
        if head != "cost" or len(costs) != 2 or not all(0 < cost < inf for cost in costs):
            return None
        return costs[0], costs[1]

    @property
    def value(self) -> float | None:
        """The threshold, if the user gave it as a number; otherwise None."""
        value = _number(self.threshold or "")
        return value if 0 <= value <= 1 else None


def _number(text: str) -> float:
    """Convert a text to a number. Return NaN if the text is not a number."""
    try:
        return float(text)
    except ValueError:
        return nan


@dataclass(frozen=True)
class Execution:
    """The options for the device and the checkpoints of a run. These options are not hyper-parameters.

    Raises `ValueError` for options that contradict each other.
    """

    device: Annotated[Device, "device to train on; cuda is an error without CUDA"] = "auto"
    compile: Annotated[bool, "compile the network with torch.compile; for CUDA only, a CPU gains nothing"] = False
    checkpoint: Annotated[Path | None, "folder for the state of an unfinished run; removed when it is finished"] = None
    resume: Annotated[bool, "continue from the checkpoint folder, if it has a checkpoint"] = False

    def __post_init__(self) -> None:
        _require(
            self.checkpoint is not None or not self.resume, "--resume needs --checkpoint, the folder to continue from"
        )


@dataclass(frozen=True)
class Preset:
    """An architecture and a recipe for training it. A preset works for any table."""

    architecture: Architecture = Architecture()
    recipe: Recipe = Recipe()


PRESETS: dict[PresetName, Preset] = {
    "fast": Preset(),
    "best": Preset(
        Architecture(hidden=(128, 128, 128), members=6, binned="all"),
        Recipe(
            most_epochs=36,
            patience=12,
            steps=8,
            learning_rate=4e-3,
            weight_decay=0.2,
            input_noise=0.0,
            label_smoothing=0.05,
        ),
    ),
}


@dataclass(frozen=True)
class Plan:
    """The plan of a whole run.

    The same plan, data, library versions and kind of CPU give the same `model.onnx`, byte for byte.

    preset: the name of the preset from which the architecture and the recipe were made. seed: the seed of the split and
    of the fit. threads: the number of CPU threads of the fit. The number of threads affects the last bits of the
    result, because a sum that is split between two threads is rounded differently from a sum in one thread. Raises
    `ValueError` for a value out of range.
    """

    data: DataOptions
    name: str
    models: Path
    preset: PresetName = "fast"
    architecture: Architecture = Architecture()
    recipe: Recipe = Recipe()
    decision: DecisionOptions = DecisionOptions()
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "the seed must be from 0 to 4294967295")
        _require(1 <= self.threads <= 1024, "threads must be from 1 to 1024")
