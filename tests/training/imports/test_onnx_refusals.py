"""An unknown operator or a damaged file is refused in one line, and nothing is written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.training.cli import main
from foldserve.training.errors import ModelImportError
from foldserve.training.imports.onnx_file import MAX_NODES, parse
from tests.training.imports.support import ML, Model, read, run_folded, run_unoptimised

GENERATOR = np.random.default_rng(0)
FLOATS = np.ones(4, np.float32)


def model_of(kind, *constants, **given):
    model = Model()
    model.add(kind, *constants, **given)
    return model.build()


def training_batch_norm():
    model = Model()
    model.batch_norm(GENERATOR, 4)
    model.nodes[-1].attribute.append(helper.make_attribute("training_mode", 1))
    return model.build()


def two_outputs():
    model = Model()
    return model.build([model.add("Relu"), model.add("Tanh")])


def cast_and_back(to):
    """A model that casts its input to another type and back, and then multiplies it by a matrix."""
    model = Model()
    model.add("Cast", to=to)
    model.add("Cast", to=TensorProto.FLOAT)
    model.dense(GENERATOR, 4, 1)
    return model.build()


def cast_like_integers():
    model = Model()
    model.add("CastLike", np.int64(0), source=["x"])
    model.add("Cast", to=TensorProto.FLOAT)
    model.dense(GENERATOR, 4, 1)
    return model.build()


def integers_joined_with_numbers():
    model = Model()
    whole = model.add("Cast", to=TensorProto.INT64)
    whole = model.add("Cast", source=[whole], to=TensorProto.FLOAT)
    model.add("Concat", source=[whole, "x"], axis=1)
    model.dense(GENERATOR, 8, 1)
    return model.build()


def independent_sigmoids():
    model = Model()
    model.dense(GENERATOR, 4, 3)
    model.add("Sigmoid")
    return model.build()


def sum_of_sigmoids():
    model = Model()
    model.dense(GENERATOR, 4, 1)
    model.add("Sigmoid")
    model.add("Add", source=[model.value, model.value])
    return model.build()


UNKNOWN = {
    "LayerNormalization": (model_of("LayerNormalization", FLOATS), "no rule covers this operator; keep it as it is"),
    "training mode": (training_batch_norm(), "training mode, .*; export the model in eval mode"),
    "a dropout in training mode": (model_of("Dropout", np.float32(0.5), True), "its outputs are random"),
    "a softmax over other rows": (model_of("Softmax", axis=0), "it works along axis 0"),
    "a sum over the rows": (model_of("ReduceSum", np.array([0])), "it works across the rows"),
    "a constant that differs between rows": (model_of("Add", np.ones((3, 4), np.float32)), "differs from row to row"),
    "a wrong number of columns": (model_of("Add", np.ones(3, np.float32)), r"the shape \[3\], and its rows \[4\]"),
    "a weight of a wrong shape": (model_of("MatMul", np.ones((5, 2), np.float32)), "its weight reads 5 columns"),
    "a division by 0": (model_of("Div", np.float32(0)), "it divides by 0"),
    "a weight that is not finite": (model_of("MatMul", np.full((4, 2), np.inf, np.float32)), "not finite"),
    "a variance below 0": (model_of("BatchNormalization", FLOATS, FLOATS, FLOATS, -FLOATS), "not above 0"),
    "an imputer of a number": (
        model_of("Imputer", domain=ML, imputed_value_floats=[0.0], replaced_value_float=-9.0),
        "missing_values=np.nan",
    ),
    "an unknown post_transform": (
        model_of("LinearRegressor", domain=ML, coefficients=[1.0] * 4, post_transform="PROBIT"),
        "its post_transform PROBIT",
    ),
    "a wrong number of coefficients": (model_of("LinearRegressor", domain=ML, coefficients=[1.0]), "1 coefficients"),
    "a selection of rows": (model_of("Gather", np.array([0])), "it selects rows"),
    "too many columns": (model_of("MatMul", np.ones((4, 2**18), np.float32)), "an import takes at most 131,072"),
    "columns that do not exist": (model_of("Gather", np.array([9]), axis=1), "columns that do not exist"),
    "a shape that mixes rows": (model_of("Reshape", np.array([-1, 2])), "turns rows of the shape"),
    "several outputs": (two_outputs(), "choose one with --output"),
    "independent probabilities": (independent_sigmoids(), "whose sum is not 1"),
    "several values that may be logits": (model_of("Relu"), "if they are the logits of 4 classes, name the classes"),
    "a cast to integers": (cast_and_back(TensorProto.INT64), "^Cast 'cast0': it rounds numbers that Gemm 'gemm2' "),
    "a cast to int32": (cast_and_back(TensorProto.INT32), "^Cast 'cast0': .*; export the model without it"),
    "a cast to truth values": (
        cast_and_back(TensorProto.BOOL),
        "^Cast 'cast0': it rounds values, or turns them into texts; export the model without it$",
    ),
    "a cast to the type of an integer": (cast_like_integers(), "^CastLike 'castlike0': it rounds numbers"),
    "integers joined with numbers": (integers_joined_with_numbers(), "^Cast 'cast0': it rounds numbers"),
    "a reshape that allows no rows": (model_of("Reshape", np.array([-1, 4]), allowzero=1), "its allowzero=1"),
    "a linear model of other columns": (
        model_of("LinearClassifier", domain=ML, coefficients=[1.0] * 6, classlabels_ints=[0, 1]),
        "6 coefficients for 4 columns and 2 outputs; the file contradicts itself: .* an input of 3 columns",
    ),
}


@pytest.mark.parametrize(("model", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_operation_that_is_not_understood_is_refused(model, reason):
    with pytest.raises(ModelImportError, match=reason) as raised:
        read(model)
    assert "\n" not in str(raised.value)


def test_labels_do_not_turn_a_sum_of_sigmoids_into_a_logit():
    with pytest.raises(ModelImportError, match="neither a probability nor a logit"):
        read(sum_of_sigmoids(), labels=("a", "b"))


def test_the_refusal_names_the_node_and_its_type():
    with pytest.raises(ModelImportError, match=r"^LayerNormalization 'layernormalization0': "):
        read(model_of("LayerNormalization", FLOATS))


def test_an_unknown_node_is_kept_on_request_and_folded_around():
    model = Model(4)
    model.dense(GENERATOR, 4, 6)
    model.batch_norm(GENERATOR, 6)
    model.add("LayerNormalization", np.ones(6, np.float32))
    model.batch_norm(GENERATOR, 6)
    model.dense(GENERATOR, 6, 3)
    model.add("Softmax")
    imported = read(model.build(), keep_unknown=True)
    rows = GENERATOR.normal(size=(20, 4)).astype(np.float32)
    outputs, kinds = run_folded(imported, rows)
    assert kinds == ["Gemm", "LayerNormalization", "Gemm", "Softmax"]
    np.testing.assert_allclose(outputs, run_unoptimised(model.build(), rows), rtol=1e-4, atol=1e-5)
    assert [note for note in imported.notes if "is kept as it is" in note]


@pytest.mark.parametrize("to", [TensorProto.BOOL, TensorProto.INT64, TensorProto.INT8])
def test_a_cast_that_rounds_can_not_be_kept(to):
    with pytest.raises(ModelImportError, match=r"^Cast 'cast0': it rounds .*; export the model without it"):
        read(cast_and_back(to), keep_unknown=True)


def test_an_unknown_node_with_truth_values_can_not_be_kept():
    model = Model()
    model.add("IsNaN")
    model.add("Not")
    with pytest.raises(ModelImportError, match=r"^Not 'not1': .*; --keep-unknown can't keep it either"):
        read(model.build(), keep_unknown=True)


def valid():
    model = Model()
    model.dense(GENERATOR, 4, 3)
    model.add("Softmax")
    return model.build()


def lie(change):
    model = valid()
    change(model)
    return model.SerializeToString()


def external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def huge(model):
    model.graph.initializer[0].dims[:] = [2**40, 3]


def short(model):
    model.graph.initializer[0].dims[:] = [4, 4]


def sparse(model):
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**60]))


def cycle(model):
    model.graph.node[0].input[0] = model.graph.node[0].output[0]


def duplicate(model):
    model.graph.node.append(model.graph.node[0])


def opset(model):
    model.opset_import[0].version = 9999


def bomb(model):
    """Add 64 functions. Each function calls the next function twice, so the expanded graph would have 2^64 nodes."""
    for level in range(64):
        call = helper.make_node(
            f"f{level + 1}" if level < 63 else "Relu", ["a"], ["b"], domain="d" if level < 63 else ""
        )
        again = helper.make_node(call.op_type, ["b"], ["c"], domain=call.domain)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
        model.functions.append(helper.make_function("d", f"f{level}", ["a"], ["c"], [call, again], opsets))
    model.opset_import.append(helper.make_opsetid("d", 1))
    model.graph.node.append(helper.make_node("f0", [model.graph.node[0].output[0]], ["end"], domain="d"))


def deep(model):
    last = model.graph.node[0].output[0]
    for i in range(MAX_NODES):
        model.graph.node.append(helper.make_node("Relu", [last], [f"r{i}"]))
        last = f"r{i}"


LIES = {
    "external data": (external, "is stored in another file; save it as one file"),
    "a huge initialiser": (huge, "has a wrong shape, or too many numbers"),
    "too few numbers": (short, "has 48 bytes, and its shape needs 64"),
    "a sparse bomb": (sparse, "sparse initialisers"),
    "a cycle": (cycle, "is not a valid ONNX model"),
    "duplicate names": (duplicate, "is not a valid ONNX model"),
    "an unknown opset": (opset, "has opset 9999 of ai.onnx; this version of onnx reads up to"),
    "functions that multiply": (bomb, "nodes; at most"),
    "a deep graph": (deep, "nodes; at most"),
}


@pytest.mark.parametrize(("change", "reason"), LIES.values(), ids=LIES)
def test_a_file_that_lies_gets_one_line(change, reason):
    with pytest.raises(ModelImportError, match=reason) as raised:
        parse(lie(change), "lies.onnx")
    assert "\n" not in str(raised.value)


def test_a_constant_that_a_graph_would_make_huge_is_refused():
    model = Model()
    size = model.add("ConstantOfShape", np.array([2**40]), source=[])
    model.value = "x"
    model.add("Add", source=["x", size])
    with pytest.raises(ModelImportError, match="too many numbers"):
        read(model.build())


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08" * 1000])
def test_bytes_that_are_no_model_are_refused(content, tmp_path, capsys):
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    assert main(["import", str(file), "--name", "x", "--models", str(tmp_path / "models")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_a_long_chain_is_folded_without_recursion():
    model = Model(2)
    for _ in range(1500):
        model.add("Mul", np.float32(1.001))
    model.dense(GENERATOR, 2, 3)
    model.add("Softmax")
    rows = GENERATOR.normal(size=(3, 2)).astype(np.float32)
    assert run_folded(read(model.build()), rows)[1] == ["Gemm", "Softmax"]


FLAGS = {
    "no rows and no ranges": ([], "give a table with --data, or ranges with --ranges"),
    "a range that is no range": (["--ranges", "1"], "'1' is not a range"),
    "a range of another feature": (["--ranges", "age=0:1"], "the model has no feature 'age'"),
    "a range the wrong way round": (["--ranges", "2:1"], "the smaller one first"),
    "too few labels": (["--ranges", "0:1", "--labels", "a,b"], "gives 3 probabilities, and there are 2 labels"),
    "too few features": (["--ranges", "0:1", "--features", "a,b"], "names 2 columns, and the model has 4"),
    "an unknown output": (["--ranges", "0:1", "--output", "y"], "has no output 'y'"),
    "a target without a table": (["--target", "y"], "give the table with --data"),
    "a table of other columns": (["--data", "wine"], "and the model has 4 features without names"),
}


@pytest.mark.parametrize(("flags", "reason"), FLAGS.values(), ids=FLAGS)
def test_a_wrong_flag_is_refused(flags, reason, tmp_path, capsys):
    file = tmp_path / "model.onnx"
    onnx.save(valid(), file)
    command = ["import", str(file), "--name", "x", "--models", str(tmp_path / "models"), *flags]
    assert main(command) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_an_unknown_suffix_is_refused(tmp_path, capsys):
    assert main(["import", str(tmp_path / "model.txt"), "--name", "x"]) == 1
    assert "models are read from files with the suffix .onnx" in capsys.readouterr().err
