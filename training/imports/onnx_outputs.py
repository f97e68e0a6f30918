"""Turns the output of an ONNX model into the output of a bundle: probabilities of labels, or one value.

A model often gives logits, log-probabilities, or only the probability of the second class. The module adds the missing
layers to the network, and applies the same arithmetic to the outputs of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from scipy import special

from foldserve.service.bundle import Label, Task
from foldserve.training.errors import ModelImportError
from foldserve.training.imports.form import Network
from foldserve.training.imports.imported import Evaluate, Imported, Options
from foldserve.training.imports.layers import Affine, Concat, Dense, Softmax
from foldserve.training.imports.meaning import choose_names, default_labels, find_mass, unnamed_logits
from foldserve.training.imports.onnx_inputs import Inputs
from foldserve.training.imports.onnx_reference import find_narrow, make_feeds, run_original, run_reference
from foldserve.training.imports.onnx_values import Constant, Context, Numbers, RawColumn, Truth, attributes
from foldserve.training.table.schema import Column

_TRIAL_ROWS = 64

Array = npt.NDArray[Any]
Last = Callable[[Array], Array]
# Five values: the task; the name of the network's last value; a function that applies the same last step to the outputs
# of the reference; the labels; and notes for the user.
_Finished = tuple[Task, str, Last, tuple[Label, ...], list[str]]


def finish(
    model: onnx.ModelProto, context: Context, inputs: Inputs, file: str, sha256: str, options: Options
) -> Imported:
    """Add the last layers, and return the imported model with its reference."""
    columns = tuple(_column(column) for column in context.columns)
    value = context.values[inputs.output]
    if isinstance(value, Constant):
        raise ModelImportError(f"the output {inputs.output!r} is a constant")
    name = value.name if isinstance(value, Numbers | Truth) else ""
    if not name or len(value.shape) > 1:
        raise ModelImportError(f"the output {inputs.output!r} is not a row of numbers")
    width = context.builder.columns[name]
    labels, renamed = choose_names(options.labels, _find_labels(model, max(width, 2)), "--labels")
    if width == 1:
        task, name, last, labels, notes = _finish_one(context, name, labels)
    else:
        are_scores = inputs.output not in {info.name for info in model.graph.output}
        task, name, last, labels, notes = _finish_scores(
            context, columns, name, labels, are_scores=are_scores, ranges=options.ranges
        )
    feeds = partial(make_feeds, inputs.feeds, columns)
    notes = [*inputs.notes, *context.notes, *renamed, *notes]
    reference = f"the ReferenceEvaluator of onnx {onnx.__version__}, float64, original graph"
    network = context.builder.network(name)
    evaluate, float32 = _references(model, inputs, feeds, last, notes)
    if evaluate is None:
        evaluate, reference = network.evaluate, "the layers as foldserve reads them, float64"
    return Imported(
        network=network,
        columns=columns,
        named=inputs.named,
        task=task,
        labels=labels,
        framework=model.producer_name or "ONNX",
        framework_version=model.producer_version,
        file=file,
        sha256=sha256,
        reference=reference,
        evaluate=evaluate,
        float32=float32,
        narrow=find_narrow(model, inputs.needed),
        whole=frozenset(i for i, column in enumerate(context.columns) if column.is_whole),
        notes=tuple(dict.fromkeys(notes)),
    )


def _column(column: RawColumn) -> Column:
    if column.categories and column.read_as_number:
        raise ModelImportError(f"column {column.name!r} is read as a category and as a number, which is not understood")
    if column.is_text and not column.categories:
        raise ModelImportError(f"column {column.name!r} holds texts, and no encoder says which")
    if column.categories:
        return Column(column.name, "categorical", tuple(column.categories), missing=column.missing)
    return Column(column.name, "numeric", missing=column.missing)


def _find_labels(model: onnx.ModelProto, count: int) -> tuple[Label, ...]:
    """Return the `count` labels that a converter stores in a ZipMap, in a classifier, or in a table of classes.

    Return () if the file does not store exactly `count` labels.
    """
    names = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")
    zip_maps = [node for node in model.graph.node if node.op_type == "ZipMap"]
    found: list[tuple[Label, ...]] = []
    for node in (*zip_maps, *model.graph.node):
        given = attributes(node) if any(each.name in names for each in node.attribute) else {}
        found += [tuple(given[name]) for name in names if given.get(name)]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ends = {info.name for info in model.graph.output}
    for node in model.graph.node:
        # To compute the label of a row, Hummingbird writes a Gather that picks one of the classes.
        is_label = node.op_type == "Gather" and ends.intersection(node.output)
        if (is_label or node.op_type == "ArrayFeatureExtractor") and node.input[0] in constants:
            labels = numpy_helper.to_array(constants[node.input[0]]).reshape(-1).tolist()
            found.append(tuple(each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in labels))
    return next((labels for labels in found if len(labels) == count), ())


def _same(outputs: Array) -> Array:
    return outputs


def _both(outputs: Array) -> Array:
    positive = outputs.reshape(len(outputs), 1)
    return np.concatenate([1 - positive, positive], 1)


def _flat(last: Last, rows: int, outputs: Array) -> Array:
    return last(outputs.reshape(rows, -1))


def _finish_scores(
    context: Context,
    columns: tuple[Column, ...],
    name: str,
    labels: tuple[Label, ...],
    *,
    are_scores: bool,
    ranges: Mapping[str, tuple[float, float]],
) -> _Finished:
    """Add the last layers for several outputs.

    are_scores: whether the file computes the class from the outputs; if it does, the outputs may be logits. ranges: as
    in `Options`.

    Raises `ModelImportError` if the outputs are neither probabilities nor logits.
    """
    network, builder = context.builder.network(name), context.builder
    outputs = builder.columns[name]
    final = network.nodes[-1].layer if network.nodes else None
    notes = [] if labels else [default_labels(outputs)]
    is_named, labels = bool(labels), labels or tuple(range(outputs))
    if isinstance(final, Softmax) and final.log:
        source = network.nodes[-1].inputs[0]
        return "classification", builder.add(f"{name}.exp", "Softmax", Softmax(), source), np.exp, labels, notes
    if isinstance(final, Softmax) or _gives_probabilities(network, columns, ranges):
        return "classification", name, _same, labels, notes
    if find_mass(network) is not None:
        raise ModelImportError(
            f"the output has {outputs} independent probabilities, whose sum is not 1; a bundle has one label for a row"
        )
    if not is_named and not are_scores:
        raise ModelImportError(unnamed_logits(outputs))
    notes.append("the outputs are taken as logits: a softmax turns them into probabilities")
    name = builder.add(f"{name}.probabilities", "Softmax", Softmax(), name)
    return "classification", name, partial(special.softmax, axis=1), labels, notes


def _finish_one(context: Context, name: str, labels: tuple[Label, ...]) -> _Finished:
    """Add the last layers for one output: a value, the probability of the second label, or its logit.

    Raises `ModelImportError`.
    """
    network, builder = context.builder.network(name), context.builder
    if network.nodes and isinstance(network.nodes[-1].layer, Softmax):
        raise ModelImportError("the model ends with a softmax of one column, which is always 1")
    mass = find_mass(network)
    if mass is not None and abs(mass - 1) < 1e-6:  # this value is a sigmoid, or a mean of sigmoids
        rest = builder.add(f"{name}.first", "Sub", Affine.of(-1.0, 1.0, 0.0, 1), name)
        both = builder.add(f"{name}.probabilities", "Concat", Concat(), rest, name)
        return "classification", both, _both, labels or (0, 1), [] if labels else [default_labels(2)]
    if not labels:
        return "regression", name, _same, (), []
    if mass is not None:
        raise ModelImportError(
            f"the output is neither a probability nor a logit: it is a sum of sigmoids of up to {mass:g}; export a "
            "model that ends with their mean"
        )
    name = builder.add(f"{name}.probabilities", "Softmax", Softmax(), _logits(context, name))
    return "classification", name, _binary, labels, ["the output is taken as the logit of the second label"]


def _logits(context: Context, name: str) -> str:
    weight = np.array([[0.0], [1.0]])
    return context.builder.add(f"{name}.logits", "Gemm", Dense(weight, np.zeros(2)), name)


def _binary(outputs: Array) -> Array:
    return _both(special.expit(outputs))


def _gives_probabilities(
    network: Network, columns: tuple[Column, ...], ranges: Mapping[str, tuple[float, float]]
) -> bool:
    """Whether the outputs of a row are from 0 to 1 and add up to 1.

    The function checks some random rows. It leaves out the rows for which the network gives NaN, and raises
    `ModelImportError` if no row remains.
    """
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(_TRIAL_ROWS, len(columns))) * 10.0 ** generator.integers(-2, 3, (_TRIAL_ROWS, 1))
    rows[::2] = abs(rows[::2])  # a logarithm needs positive numbers
    for i, column in enumerate(columns):
        limits = ranges.get(column.name, ranges.get(""))
        if column.categories:
            rows[:, i] = generator.integers(0, len(column.categories) + 1, _TRIAL_ROWS)
        elif limits is not None:
            rows[:, i] = generator.uniform(*limits, _TRIAL_ROWS)
    with np.errstate(all="ignore"):
        outputs = network.evaluate(rows)
    outputs = outputs[np.isfinite(outputs).all(1)]
    if not len(outputs):
        raise ModelImportError("the model gives NaN for all random rows: give values that it accepts with --ranges")
    return bool((outputs >= -1e-9).all() and (abs(outputs.sum(1) - 1) < 1e-6).all())


def _references(
    model: onnx.ModelProto, inputs: Inputs, feeds: Callable[..., dict[str, Array]], last: Last, notes: list[str]
) -> tuple[Evaluate | None, dict[str, Evaluate]]:
    """Return the float64 reference, and a function that runs the original in ONNX Runtime.

    If ONNX Runtime can't run the original, the second result is empty.

    The reference is None if onnx can't evaluate an operator.
    """
    evaluate: Evaluate | None = None
    float32: dict[str, Evaluate] = {}
    rows = np.zeros((2, len(inputs.columns)), np.float32)
    try:
        exact = run_reference(model, inputs.output, lambda x: feeds(x, np.float64))
        exact(rows)
        evaluate = lambda x: _flat(last, len(x), exact(x))  # noqa: E731
    except Exception as error:  # noqa: BLE001 (each operator of the reference raises its own errors)
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        notes.append(f"onnx's ReferenceEvaluator can't evaluate the original ({reason}); the reference is weaker")
    try:
        original = run_original(model, inputs.output, lambda x: feeds(x, np.float32))
        original(rows)
        float32[f"onnxruntime {ort.__version__} CPU float32, original"] = lambda x: _flat(last, len(x), original(x))
    except Exception as error:  # noqa: BLE001 (ONNX Runtime raises several kinds of errors)
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        notes.append(f"ONNX Runtime can't run the original in batches ({reason})")
    if evaluate is None and not float32:
        raise ModelImportError(
            "neither onnx's ReferenceEvaluator nor ONNX Runtime runs the original: nothing to certify"
        )
    return evaluate, float32
