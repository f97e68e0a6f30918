"""Everything that decides what comes out of a training run, and nothing else. Needs no torch, so `--help` is quick.

Each field's annotation carries its line of `foldserve-train fit --help`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log2
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
TaskOption = Literal["auto", "classification", "regression"]


_LEAST_EPOCHS = 5
_ROWS_SEEN = 3_000_000


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


@dataclass(frozen=True)
class DataOptions:
    """Which table, and what is what in it. Raises `ValueError` for what contradicts itself.

    source: a built-in table or a file. test_share, validation_share: of the table's rows; where `test` names a file,
    no row of the table is held out and test_share is of no effect.
    """

    source: str
    target: Annotated[str | None, "column to predict (default: the last)"] = None
    test: Annotated[Path | None, "file to report on, not looked at before the final figures"] = None
    task: Annotated[TaskOption, "auto: classes for texts, booleans and at most 20 different whole numbers"] = "auto"
    categorical: Annotated[tuple[str, ...], "columns whose values are names, numbers or not"] = ()
    numeric: Annotated[tuple[str, ...], "columns that are numbers, or else an error"] = ()
    boolean: Annotated[tuple[str, ...], "columns of true and false, or 1 and 0"] = ()
    drop: Annotated[tuple[str, ...], "columns to leave out"] = ()
    missing: Annotated[tuple[str, ...], "texts that mean no value, as the empty cell does: NA,?"] = ()
    group: Annotated[str | None, "keep rows of one value of it on one side of every split; it is no feature"] = None
    time: Annotated[str | None, "test on the latest rows; it stays a feature if it is numeric"] = None
    test_share: Annotated[float, "share of the rows that is only reported on"] = 0.2
    validation_share: Annotated[float, "share of the rows to stop by"] = 0.1

    def __post_init__(self) -> None:
        held_out = 0.0 if self.test else self.test_share
        _require(self.test_share > 0 and self.validation_share > 0, "test and validation shares are above 0")
        _require(held_out + self.validation_share < 1, "test and validation shares leave no rows to train on")
        _require(not (self.group and self.time), "split by a group or by time, not by both")
        declared = [*self.categorical, *self.numeric, *self.boolean, *self.drop]
        twice = sorted({name for name in declared if declared.count(name) > 1})
        _require(not twice, f"column {twice and twice[0]!r} is declared twice")
        _require(self.target not in declared or self.target is None, f"column {self.target!r} is the target")


@dataclass(frozen=True)
class Architecture:
    """What the network is made of, whatever the table. Raises `ValueError` for what can't be built.

    `eps` and `momentum` are PyTorch's. Keras states the weight of the past instead of the newest batch: its
    `momentum=0.99` is 0.01 here. Its default `epsilon` is 1e-3, where PyTorch's is 1e-5.
    """

    hidden: Annotated[tuple[int, ...], "widths of the hidden Dense layers, as in 64,64"] = (64, 64)
    placement: Annotated[Placement, "pre: Dense - BN - activation; post: Dense - activation - BN"] = "pre"
    activation: Annotated[Activation, "after each hidden Dense"] = "relu"
    members: Annotated[int, "networks whose mean is the model; one graph in the end"] = 1
    bins: Annotated[int, "of the piecewise-linear encoding of a numeric column; 0: none"] = 16
    binned: Annotated[Binned, "columns with bins. tails: those far wider than where nine of ten rows lie"] = "tails"
    dropout: Annotated[float, "probability of dropping a hidden unit while training"] = 0.15
    batch_norm: Annotated[bool, "batch-normalise the hidden layers; off to compare with"] = True
    input_norm: Annotated[bool, "batch-normalise the standardised input too"] = False
    eps: Annotated[float, "added to a BN's variance under the root (Keras: 1e-3)"] = 1e-5
    momentum: Annotated[float, "weight of the newest batch in a BN's running statistics (Keras's 0.99 is 0.01)"] = 0.1

    def __post_init__(self) -> None:
        _require(
            all(1 <= width <= 65_536 for width in self.hidden), "a hidden layer has at least 1 unit, at most 65536"
        )
        _require(1 <= self.members <= 64, "members are from 1 to 64")
        _require(0 <= self.bins <= 256, "bins are from 0 to 256")
        _require(0 <= self.dropout < 1, "dropout is at least 0 and below 1")
        _require(0 < self.eps < 1, "eps is above 0 and below 1")
        _require(0 < self.momentum <= 1, "momentum is above 0 and at most 1")


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the table. Raises `ValueError` for what can't work.

    epochs, batch_size: None is chosen by the number of training rows, in `resolved`.
    """

    epochs: Annotated[int | None, "passes over the training rows (default: --most-epochs, fewer of a large table)"] = (
        None
    )
    most_epochs: Annotated[int, "passes over a table of up to some 50,000 rows"] = 60
    patience: Annotated[int, "epochs without a better validation loss to stop after"] = 40
    batch_size: Annotated[int | None, "rows per step, over all processes (default: by --steps, 32 to 1024)"] = None
    steps: Annotated[int, "about so many an epoch, as far as batches of 32 to 256 rows allow"] = 32
    learning_rate: Annotated[float, "the schedule's highest"] = 1e-2
    weight_decay: Annotated[float, "AdamW's, on weight matrices only"] = 0.1
    schedule: Annotated[Schedule, "of the learning rate"] = "onecycle"
    input_noise: Annotated[float, "noise on the input while training, in standard deviations of each column"] = 0.1
    label_smoothing: Annotated[float, "of the training loss, for classification"] = 0.1
    class_weight: Annotated[ClassWeight, "balanced: a class weighs as much as any other, however rare"] = "none"
    calibrate: Annotated[bool, "divide the logits by a temperature that fits the validation rows"] = True
    precision: Annotated[Precision, "of the matrix products while training; bf16 is for CUDA"] = "fp32"

    def __post_init__(self) -> None:
        _require(self.epochs is None or self.epochs >= 1, "epochs are at least 1")
        _require(min(self.most_epochs, self.patience, self.steps) >= 1, "epochs, patience and steps are at least 1")
        _require(
            self.batch_size is None or self.batch_size >= 2,
            "the batch size is at least 2: a BN has no statistics of one row",
        )
        _require(0 < self.learning_rate < inf, "the learning rate is above 0 and finite")
        _require(0 <= self.weight_decay < inf, "weight decay is at least 0 and finite")
        _require(0 <= self.input_noise < inf, "input noise is at least 0 and finite")
        _require(0 <= self.label_smoothing < 1, "label smoothing is at least 0 and below 1")

    def resolved(self, rows: int) -> Recipe:
        """Fill in what depends on the number of training rows; what is given stays.

        A batch is the nearest power of two: from 32 to 256 for about `steps` an epoch, or else for about 1024 an
        epoch, up to 1024. Epochs are `most_epochs` until 3 million rows have been seen, and at least 5.
        """
        few, many = min(max(rows // self.steps, 32), 256), min(rows // 1024, 1024)
        size = 2 ** round(log2(max(few, many)))
        epochs = min(self.most_epochs, max(_LEAST_EPOCHS, _ROWS_SEEN // rows))
        return replace(self, batch_size=self.batch_size or size, epochs=self.epochs or epochs)


@dataclass(frozen=True)
class Execution:
    """Where and how a run is carried out; nothing that a manifest's hyper-parameters would name.

    Raises `ValueError` for what can't work.
    """

    device: Annotated[Device, "to train on; cuda is CUDA or a refusal"] = "auto"
    compile: Annotated[bool, "torch.compile the network: for CUDA; a CPU needs a C++ compiler and gains nothing"] = (
        False
    )
    checkpoint: Annotated[Path | None, "folder for the state of an unfinished run; gone when it is finished"] = None
    resume: Annotated[bool, "go on from what is in the checkpoint folder, if anything is"] = False

    def __post_init__(self) -> None:
        _require(
            self.checkpoint is not None or not self.resume, "--resume needs --checkpoint, the folder to go on from"
        )


@dataclass(frozen=True)
class Preset:
    """A network and how to train it, for any table."""

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
    """A whole run. Same plan, data, versions and kind of CPU: the same `model.onnx`, byte for byte.

    data: which table; its splits are drawn with `seed`. preset: what architecture and recipe were changed from.
    threads: of the fit, since sums that are split over two threads round differently from one. Raises `ValueError` for
    what can't work.
    """

    data: DataOptions
    name: str
    models: Path
    preset: PresetName = "fast"
    architecture: Architecture = Architecture()
    recipe: Recipe = Recipe()
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "the seed is from 0 to 4294967295")
        _require(1 <= self.threads <= 1024, "threads are at least 1, at most 1024")
