"""`foldserve-train import` and `fold` turn a scikit-learn model into a bundle that gives scikit-learn's own answers."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import pytest

import foldserve
from foldserve.service import bundle
from foldserve.service.cli import main as foldserve_main
from foldserve.training.cli import main
from tests.training.imports.support import FILES, Model

ROWS = FILES / "rows.csv"
MIXED = ["age", "income", "city", "size"]
NUMBERS = ["income", "score"]


def import_file(tmp_path, name, *flags):
    """Run the command in this process, and return the bundle."""
    assert main(["import", str(FILES / f"{name}.onnx"), "--name", name, "--models", str(tmp_path), *flags]) == 0
    return bundle.read(tmp_path / name / "1")


def answers(name):
    return json.loads((FILES / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["mixed_mlp", "mixed_binary", "mixed_logistic", "mixed_value"])
def test_raw_rows_get_the_answers_of_scikit_learn(name, tmp_path):
    expected = answers(name)
    others = [column for column in ("rich", "class", "score") if column != expected["target"]]
    found = import_file(tmp_path, name, "--data", str(ROWS), "--target", expected["target"], "--drop", ",".join(others))
    model = foldserve.load(found.path)
    frame = pd.read_csv(ROWS)[MIXED]
    outputs = model.predict(frame) if found.manifest.task == "regression" else model.predict_proba(frame)
    np.testing.assert_allclose(np.asarray(outputs).reshape(len(frame), -1), expected["answers"], rtol=1e-4, atol=1e-5)
    manifest = found.manifest
    assert [feature.kind for feature in manifest.features] == ["numeric", "numeric", "categorical", "categorical"]
    # The pipeline imputes only the first two features.
    assert [feature.missing for feature in manifest.features] == [True, True, False, False]
    assert manifest.features[2].categories == ("Oslo", "Paris", "Rome")
    assert (manifest.source.framework, manifest.source.file) == ("skl2onnx", f"{name}.onnx")
    assert manifest.certificate.reference.startswith(f"the ReferenceEvaluator of onnx {onnx.__version__}, float64")
    assert {measured.rows for measured in manifest.certificate.measurements} == {"held-out", "random"}
    assert f"onnxruntime {ort.__version__} CPU float32, original" in {
        measured.runtime for measured in manifest.certificate.measurements
    }
    assert set(manifest.metrics) == {"test"}
    assert "no history of the losses" in (found.path / "report.html").read_text()


@pytest.mark.parametrize("name", ["numbers_tanh", "numbers_ovr", "numbers_ridge"])
def test_a_single_tensor_takes_the_columns_of_a_table_in_order(name, tmp_path):
    expected = answers(name)
    table = tmp_path / "rows.csv"
    pd.read_csv(ROWS)[NUMBERS].to_csv(table, index=False)
    found = import_file(tmp_path, name, "--data", str(table))
    assert [feature.name for feature in found.manifest.features] == NUMBERS
    rows = pd.read_csv(table).to_numpy(np.float32)
    outputs = ort.InferenceSession(found.model).run(None, {"input": rows})[0]
    np.testing.assert_allclose(outputs, expected["answers"], rtol=1e-4, atol=1e-5)
    assert found.manifest.metrics == {}


def test_the_labels_of_a_classifier_are_kept(tmp_path):
    found = import_file(tmp_path, "mixed_binary", "--ranges", "age=0:99,income=0:90000")
    assert found.manifest.labels == ("no", "yes")
    assert found.manifest.provenance.data_sha256 is None
    assert not (found.path / "report.html").exists()


def test_nothing_downstream_knows_the_difference(tmp_path, capsys):
    found = import_file(tmp_path, "mixed_mlp", "--ranges", "age=0:99,income=0:90000")
    assert foldserve_main(["verify", str(found.path)]) == 0
    assert foldserve_main(["inspect", str(found.path)]) == 0
    printed = capsys.readouterr().out
    assert "mixed_mlp.onnx, written by skl2onnx" in printed
    assert "no table was given" in printed


def test_the_next_version_has_a_report_though_the_one_before_has_no_metrics(tmp_path):
    import_file(tmp_path, "mixed_logistic", "--ranges", "age=0:99,income=0:90000")
    flags = ["--data", str(ROWS), "--target", "rich", "--drop", "class,score", "--models", str(tmp_path)]
    assert main(["import", str(FILES / "mixed_logistic.onnx"), "--name", "mixed_logistic", *flags]) == 0
    report = (tmp_path / "mixed_logistic" / "2" / "report.html").read_text()
    assert "imported without a table" in report
    assert f"not trained on the rows of {ROWS.name}" in report


def test_import_model_takes_a_frame(tmp_path):
    frame = pd.read_csv(ROWS).drop(columns=["rich", "score"])
    found = foldserve.import_model(FILES / "mixed_mlp.onnx", frame, "class", name="mixed", models=tmp_path)
    assert found.manifest.target.name == "class"
    assert found.manifest.metrics["test"].keys() >= {"accuracy", "log_loss"}


def test_import_model_refuses_an_object_that_is_no_model(tmp_path):
    with pytest.raises(foldserve.TrainingError, match="a dict is not a model that can be imported"):
        foldserve.import_model({}, name="x", models=tmp_path)


def test_an_import_says_which_steps_are_kept(tmp_path, capsys):
    model = Model(4)
    model.dense(np.random.default_rng(0), 4, 1)
    model.add("Mul", np.float32(0.5), source=[model.add("Sigmoid")])
    scaled = model.value
    onnx.save(model.build(), tmp_path / "model.onnx")
    assert main(["fold", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "folded.onnx")]) == 0
    assert f"kept         {scaled}  (no Dense beside it)\n" in capsys.readouterr().out
    flags = ["--name", "kept", "--models", str(tmp_path), "--ranges", "0:1"]
    assert main(["import", str(tmp_path / "model.onnx"), *flags]) == 0
    printed = capsys.readouterr().out
    assert "folded       nothing: the model has no affine step beside a Dense\n" in printed
    assert f"kept         {scaled}: affine steps with no Dense beside them\n" in printed


def test_fold_refuses_a_file_of_another_format_in_one_line(tmp_path, capsys):
    assert main(["fold", str(tmp_path / "model.keras"), "-o", str(tmp_path / "folded.onnx")]) == 1
    assert capsys.readouterr().err.endswith("model.keras is not an ONNX file: fold reads only ONNX; use import\n")


def function_and_dense(kind, outputs, *constants):
    """A model with a function that is not defined for negative numbers. With several outputs, a softmax follows."""
    model = Model()
    model.add(kind, *constants)
    model.dense(np.random.default_rng(0), 4, outputs)
    if outputs > 1:
        model.add("Softmax")
    return model.build()


@pytest.mark.parametrize(("kind", "constants"), [("Log", ()), ("Sqrt", ()), ("Pow", (np.float32(0.5),))])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_function_of_positive_numbers_needs_ranges_of_positive_numbers(tmp_path, capsys, kind, constants, outputs):
    path = tmp_path / "net.onnx"
    onnx.save(function_and_dense(kind, outputs, *constants), path)
    command = ["import", str(path), "--name", "net", "--models", str(tmp_path)]
    assert main([*command, "--ranges=-1:3"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(
        r"the original gives NaN for a random row \(x_0=.*give values that the model accepts with --ranges$", line
    )
    assert not (tmp_path / "net").exists()
    assert main([*command, "--ranges=0.1:3"]) == 0
    assert main(["fold", str(path), "-o", str(tmp_path / "folded.onnx")]) == 0


def test_import_model_names_its_own_argument_for_the_ranges(tmp_path):
    onnx.save(function_and_dense("Log", 1), tmp_path / "net.onnx")
    with pytest.raises(foldserve.DataError, match=r"give values that the model accepts with ranges$"):
        foldserve.import_model(tmp_path / "net.onnx", name="net", models=tmp_path, ranges=(-1, 3))


def test_rows_of_a_table_without_an_output_are_named(tmp_path, capsys):
    path, table = tmp_path / "net.onnx", tmp_path / "rows.csv"
    onnx.save(function_and_dense("Log", 1), path)
    pd.DataFrame({"a": [1.5, 2.5, -3.5], "b": 1.5, "c": [2.5, 1.5, 3.5], "d": 2.5}).to_csv(table, index=False)
    assert main(["import", str(path), "--name", "net", "--models", str(tmp_path), "--data", str(table)]) == 1
    assert re.search(r"NaN for row 3 of .*rows.csv \(a=-3.5.*leave out such rows", capsys.readouterr().err)


def test_fold_refuses_a_model_without_a_finite_output_in_one_line(tmp_path, capsys):
    model = Model()
    model.add("Sub", np.float32(100))
    model.add("Log")
    model.dense(np.random.default_rng(0), 4, 1)
    onnx.save(model.build(), tmp_path / "net.onnx")
    assert main(["fold", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "folded.onnx")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "gives NaN or infinity for random rows" in line
    assert "use import with --ranges" in line
    assert not (tmp_path / "folded.onnx").exists()


def test_a_refusal_of_fold_says_how_far_the_original_in_float32_is(tmp_path, capsys):
    model = Model(1)
    # The two columns of the first Gemm differ by 1e-6. For values of about 1, float32 keeps few digits of a difference
    # of 1e-6.
    model.add("Gemm", np.ones((1, 2), np.float32), np.array([0, 1e-6], np.float32))
    model.add("Relu")
    model.add("MatMul", np.array([[-1e6], [1e6]], np.float32))
    original, folded = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    onnx.save(model.build(), original)
    assert main(["fold", str(original), "-o", str(folded)]) == 1
    error = capsys.readouterr().err
    differences = re.search(r"in float64 by (\S+), .* the original in float32 differs from it by (\S+), ", error)
    assert error.count("\n") == 1
    assert all(0.01 < float(difference) < 1 for difference in differences.groups())
    assert not folded.exists()


def sensitive_model(size):
    """A model that subtracts two values. Both values are about `size`, and their difference is about 1. In float32,
    values of about `size` lose the digits below 1e-7 * `size`.
    """
    model = Model(2)
    model.add("Gemm", np.array([[1, 1], [1, -1]], np.float32), np.array([size, size], np.float32))
    model.add("Relu")
    model.add("Gemm", np.array([[1], [-1]], np.float32), np.zeros(1, np.float32))
    return model.build()


@pytest.mark.parametrize(("size", "is_widened"), [(1, False), (400, True)])
def test_a_tolerance_grows_only_with_the_rounding_of_the_original_and_says_so(tmp_path, capsys, size, is_widened):
    path = tmp_path / "model.onnx"
    onnx.save(sensitive_model(size), path)
    assert main(["fold", str(path), "-o", str(tmp_path / "folded.onnx")]) == 0
    assert ("times the usual one" in capsys.readouterr().out) == is_widened
    assert main(["import", str(path), "--name", "model", "--models", str(tmp_path), "--ranges=-1:1"]) == 0
    assert ("times the usual one" in capsys.readouterr().out) == is_widened
    certificate = bundle.read(tmp_path / "model" / "1").manifest.certificate
    assert (1 < certificate.widened <= 10) == is_widened
    assert foldserve_main(["inspect", str(tmp_path / "model" / "1")]) == 0
    assert ("times the usual" in " ".join(capsys.readouterr().out.split())) == is_widened
    assert all(measured.parity.worst <= 1 for measured in certificate.measurements)


def test_a_note_names_the_cast_that_rounds_more_than_float32(tmp_path, capsys):
    path, model = tmp_path / "model.onnx", Model()
    model.add("Cast", to=onnx.TensorProto.FLOAT16)
    model.add("Cast", to=onnx.TensorProto.FLOAT)
    model.dense(np.random.default_rng(0), 4, 1)
    onnx.save(model.build(), path)
    assert main(["import", str(path), "--name", "model", "--models", str(tmp_path), "--ranges=-3:3"]) == 0
    assert main(["fold", str(path), "-o", str(tmp_path / "folded.onnx")]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "is not within the tolerance" in line]
    assert len(notes) == 2
    for note in notes:
        assert "the file rounds more than float32 does (Cast 'cast0' rounds to float16), by " in note
        assert "the model in float32 differs" not in note
    assert bundle.read(tmp_path / "model" / "1").manifest.certificate.widened == 1


def test_a_model_of_one_row_runs_in_onnx_runtime_row_by_row(tmp_path, capsys):
    model = Model(4)
    model.dense(np.random.default_rng(0), 4, 1)
    single = model.build()
    for info in (*single.graph.input, *single.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(single, tmp_path / "model.onnx")
    assert main(["fold", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "folded.onnx")]) == 0
    found = tmp_path / "single" / "1"
    flags = ["--name", "single", "--models", str(tmp_path), "--ranges=-1:1"]
    assert main(["import", str(tmp_path / "model.onnx"), *flags]) == 0
    assert "; also with onnxruntime" in capsys.readouterr().out
    runtimes = {measured.runtime for measured in bundle.read(found).manifest.certificate.measurements}
    assert f"onnxruntime {ort.__version__} CPU float32, original" in runtimes


def test_fold_writes_a_file_with_the_names_of_the_original(tmp_path, capsys):
    generator = np.random.default_rng(0)
    model = Model(4)
    model.dense(generator, 4, 8)
    model.batch_norm(generator, 8)
    model.add("Relu")
    last = model.dense(generator, 8, 2)
    original, folded = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    onnx.save(model.build(), original)
    assert main(["fold", str(original), "-o", str(folded)]) == 0
    assert "3 nodes instead of 4" in capsys.readouterr().out
    session = ort.InferenceSession(folded)
    assert [session.get_inputs()[0].name, session.get_outputs()[0].name] == ["x", last]
    rows = generator.normal(size=(9, 4)).astype(np.float32)
    expected = ort.InferenceSession(original).run(None, {"x": rows})[0]
    np.testing.assert_allclose(session.run(None, {"x": rows})[0], expected, rtol=1e-4, atol=1e-5)
