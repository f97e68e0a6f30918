"""Tests the way from a CSV file to the answers of a server: kinds of columns, missing values, numbers far from zero,
and metrics.
"""

import contextlib
import csv
import html
import io
import json

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.metrics import accuracy_score, log_loss, r2_score, root_mean_squared_error

from foldserve.service import bundle
from foldserve.training.cli import main
from tests.service.support import Served, serving

TOWNS = ("NA", "Paris", "l'eau, «là»", "Oslo")
LABELS = ("maybe", "no", "yes")


def people(rows, seed, towns=TOWNS):
    """Return a dictionary and a score for each row. None is a missing value."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        age, income = round(float(generator.normal(40, 9)), 2), round(float(generator.normal(0, 3)), 3)
        town, member = str(generator.choice(towns)), bool(generator.integers(2))
        moment = 1_700_000_000 + int(generator.integers(3_000_000))
        score = (age - 40) / 9 + (town == "Paris") * 2 - member + (moment - 1.7e9) / 3e6 + income / 6
        person = {
            "age": age,
            "town": town,
            "member": member,
            "income": None if generator.random() < 0.2 else income,
            "smokes": None if generator.random() < 0.1 else bool(generator.integers(2)),
            "size": None if generator.random() < 0.1 else int(generator.choice([1, 2, 40])),
            "moment": moment,
            "batch <1>": 1e17,
        }
        made.append((person, score + float(generator.normal(0, 0.3))))
    return made


def write(path, rows):
    def cell(value):
        return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows([cell(value) for value in row.values()] for row in rows)


def with_class(rows):
    """Add a label that depends on the score."""
    return [person | {"answer": LABELS[int(np.digitize(score, [-0.5, 1]))]} for person, score in rows]


def with_price(rows):
    return [person | {"price": round(250_000 + 40_000 * score, 2)} for person, score in rows]


def with_rare_class(rows):
    """Add a label that is true in one row of fifty. The label does not depend on the features."""
    return [person | {"fraud": place % 50 == 0} for place, (person, _) in enumerate(rows)]


def fit(*arguments):
    """Run `foldserve-train fit` in this process, where torch is loaded, and return its output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["fit", *map(str, arguments)]) == 0
    return out.getvalue()


QUICK = ("--epochs", 4)
SMALL_BEST = ("--preset", "best", "--hidden", "16,16", "--members", 3, *QUICK)
ARGUMENTS = {
    "fast": ("people.csv", "--test", "people.test.csv", "--categorical", "size", *QUICK),
    "best": ("people.csv", "--test", "people.test.csv", "--categorical", "size", *SMALL_BEST),
    "post": ("people.csv", "--test", "people.test.csv", "--placement", "post", "--input-norm", "--members", 2, *QUICK),
    "prices": ("prices.csv", "--test", "prices.test.csv", "--categorical", "size", *SMALL_BEST),
    "groups": ("groups.csv", "--target", "price", "--group", "who", *QUICK),
    "times": ("times.csv", "--target", "answer", "--time", "day", "--drop", "age", *QUICK),
    "rare": ("rare.csv", *QUICK),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tables. Every fourth test row has a town that the training table does not have."""
    made = tmp_path_factory.mktemp("tables")
    some, others = people(260, 0), people(80, 1)
    for place, (person, _) in enumerate(others):
        person["town"] = "Reykjavík" if place % 4 == 0 else person["town"]
    write(made / "people.csv", with_class(some))
    write(made / "people.test.csv", with_class(others))
    write(made / "prices.csv", with_price(some))
    write(made / "prices.test.csv", with_price(others))
    write(made / "groups.csv", [{"who": f"person {place % 26}"} | row for place, row in enumerate(with_price(some))])
    days = [f"2024-{1 + place // 28:02}-{1 + place % 28:02}" for place in range(260)]
    write(made / "times.csv", [row | {"day": day} for row, day in zip(with_class(some), days, strict=True)])
    write(made / "rare.csv", with_rare_class(people(500, 2)))
    return made


@pytest.fixture(scope="module")
def printed(folder):
    """Return the output of each training. The trainings write their bundles to models/."""
    models = folder / "models"
    models.mkdir()
    with contextlib.chdir(folder):
        return {name: fit(*a, "--name", name, "--models", models) for name, a in ARGUMENTS.items()}


@pytest.fixture(scope="module")
def bundles(folder, printed):
    return {name: bundle.read(folder / "models" / name / "1") for name in printed}


@pytest.fixture(scope="module")
def server(folder, bundles, tmp_path_factory):
    assert bundles
    with serving(folder / "models", tmp_path_factory.mktemp("log") / "log") as served:
        yield served


# --- the tensor of a row and the graph in float64, without code of this project


def codes(manifest: bundle.Manifest, rows):
    """Return the input tensor for rows of values.

    A category becomes its index, a boolean 0 or 1, and a missing value NaN.
    """

    def code(feature, value):
        if value is None:
            return np.nan
        if feature.kind != "categorical":
            return float(value)
        return feature.categories.index(value) if value in feature.categories else len(feature.categories)

    return np.array([[code(f, row[f.name]) for f in manifest.features] for row in rows], np.float32)


def in_float64(model: bytes, rows):
    """Evaluate the graph of `model` in float64 with ONNX's own reference evaluator."""
    proto = onnx.load_model_from_string(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = TensorProto.DOUBLE
    (found,) = ReferenceEvaluator(proto).run(None, {"input": rows.astype(np.float64)})
    assert found.dtype == np.float64
    return found


def named(manifest, rows):
    return [{feature.name: row[feature.name] for feature in manifest.features} for row in rows]


def ask(server: Served, name, instances):
    url = f"{server.url}/v1/models/{name}:predict"
    return httpx.post(url, json={"instances": instances}).raise_for_status().json()


def infer(server: Served, name, head, content=b""):
    body = json.dumps({"inputs": [head]}, allow_nan=False).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))} if content else {}
    url = f"{server.url}/v2/models/{name}/infer"
    (output,) = httpx.post(url, content=body + content, headers=headers).raise_for_status().json()["outputs"]
    return np.array(output["data"]).reshape(output["shape"])


def request_rows(name):
    """Return rows of people for a request. Some rows have an unseen town or missing values."""
    rows = people(60, 7)
    for place, (person, _) in enumerate(rows):
        if place % 5 == 0:
            person["town"] = "Nowhere"
        if place % 7 == 0:
            person |= {"income": None, "smokes": None, "size": None}
    rows = with_price(rows) if name in ("prices", "groups") else with_class(rows)
    return [row | {"day": "2024-01-01", "who": "nobody"} for row in rows]


# --- tests


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_protocol_agrees_with_the_graph_in_float64(bundles, server, name):
    manifest, model = bundles[name].manifest, bundles[name].model
    rows = request_rows(name)
    tensor = codes(manifest, rows)
    expected = in_float64(model, tensor)
    answers = [
        ask(server, name, named(manifest, rows)),
        ask(server, name, [list(row.values()) for row in named(manifest, rows)]),
    ]
    head = {"name": "input", "shape": tensor.shape, "datatype": "FP32"}
    data = [None if np.isnan(value) else value for value in tensor.ravel().tolist()]
    content = tensor.astype("<f4").tobytes()
    size = {"parameters": {"binary_data_size": len(content)}}
    inferred = [infer(server, name, head | {"data": data}), infer(server, name, head | size, content)]
    friendly = [a["probabilities"] if manifest.labels else np.array(a["predictions"])[:, None] for a in answers]
    tolerance = manifest.certificate.tolerance
    for found in (*friendly, *inferred):
        np.testing.assert_allclose(found, expected, rtol=tolerance.relative, atol=tolerance.absolute)
    if manifest.labels:
        two = np.sort(expected, axis=1)[:, -2:]
        clear = two[:, 1] - two[:, 0] > 1e-3
        predicted = np.array([manifest.labels.index(label) for label in answers[0]["predictions"]])
        assert (predicted == expected.argmax(1))[clear].all()


@pytest.mark.parametrize("name", ["fast", "best", "post", "prices"])
def test_the_metrics_of_a_test_file_agree_with_the_server_s_answers(folder, bundles, server, name):
    manifest = bundles[name].manifest
    with (folder / ("prices.test.csv" if name == "prices" else "people.test.csv")).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    truth = [row.popitem()[1] for row in rows]
    readers = {"categorical": lambda text: int(text) if text.isdigit() else text, "boolean": "true".__eq__}
    kinds = {feature.name: readers.get(feature.kind, float) for feature in manifest.features}
    answer = ask(server, name, [{n: read(row[n]) if row[n] else None for n, read in kinds.items()} for row in rows])
    found = manifest.metrics["test"]
    assert manifest.provenance.rows["test"] == len(rows) == 80
    if manifest.labels:
        probabilities = np.array(answer["probabilities"])
        probabilities /= probabilities.sum(1, keepdims=True)
        assert found["accuracy"] == accuracy_score(truth, answer["predictions"])
        assert found["log_loss"] == pytest.approx(log_loss(truth, probabilities, labels=manifest.labels), rel=1e-5)
    else:
        values = np.array(truth, float)
        assert found["rmse"] == pytest.approx(root_mean_squared_error(values, answer["predictions"]), rel=1e-5)
        assert found["r2"] == pytest.approx(r2_score(values, answer["predictions"]), rel=1e-4)


def test_the_manifest_has_the_schema_of_the_table(bundles):
    features = {feature.name: feature for feature in bundles["fast"].manifest.features}
    kinds = {name: (feature.kind, feature.missing) for name, feature in features.items()}
    assert kinds == {
        "age": ("numeric", False),
        "town": ("categorical", False),
        "member": ("boolean", False),
        "income": ("numeric", True),
        "smokes": ("boolean", True),
        "size": ("categorical", True),
        "moment": ("numeric", False),
        "batch <1>": ("numeric", False),
    }
    assert features["town"].categories == tuple(sorted(TOWNS))
    assert features["size"].categories == (1, 2, 40)
    assert bundles["fast"].manifest.labels == LABELS
    assert bundles["prices"].manifest.labels == ()


def test_an_unseen_category_and_an_expected_missing_value_are_answered_an_unexpected_one_is_refused(bundles, server):
    person = request_rows("fast")[1] | {"town": "a town that nobody has heard of"}
    row = named(bundles["fast"].manifest, [person])[0]
    answer = ask(server, "fast", [row, row | {"town": "another"}, row | {"income": None, "smokes": None, "size": None}])
    first, second, without = answer["probabilities"]
    assert first == pytest.approx(second, abs=1e-6)
    assert first != pytest.approx(without, abs=1e-6)
    refused = httpx.post(f"{server.url}/v1/models/fast:predict", json={"instances": [row | {"moment": None}]})
    assert refused.status_code == 400
    assert "moment" in refused.json()["error"]


@pytest.mark.parametrize(("name", "file"), [("times", "times.csv"), ("groups", "groups.csv")])
def test_whole_rows_of_the_table_may_be_sent_and_constants_left_out(folder, bundles, server, name, file):
    manifest = bundles[name].manifest
    with (folder / file).open(newline="", encoding="utf-8") as lines:
        rows = [row | {"batch <1>": None} for row in csv.DictReader(lines)][:20]
    assert manifest.ignored
    assert set(rows[0]) == {feature.name for feature in manifest.features} | set(manifest.ignored)
    plain = named(manifest, rows)
    for row in rows + plain:
        del row["batch <1>"]  # this column has the same value in every row of the table
    answer = httpx.post(
        f"{server.url}/v1/models/{name}:predict?warnings=true", json={"instances": rows}
    ).raise_for_status()
    assert answer.json()["predictions"] == ask(server, name, plain)["predictions"]
    warnings = {entry["column"] for entry in answer.json()["warnings"] if "row" not in entry}
    assert warnings == {"batch <1>", *manifest.ignored}


def test_golden_rows_have_missing_values_and_unseen_categories(bundles):
    names = [feature.name for feature in bundles["fast"].manifest.features]
    columns = dict(zip(names, zip(*bundles["fast"].manifest.golden.inputs, strict=True), strict=True))
    assert any(None in column for column in columns.values())
    assert {name for name, column in columns.items() if None in column} <= {"income", "smokes", "size"}
    assert len(TOWNS) in columns["town"]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_offset_of_a_column_far_from_zero_is_subtracted_first(bundles, name):
    certificate = bundles[name].manifest.certificate
    assert max(measured.parity.worst for measured in certificate.measurements) < 0.5
    assert any("subtracted" in line.rule for line in bundles[name].manifest.folded)
    operators = [node.op_type for node in onnx.load_model_from_string(bundles[name].model).graph.node]
    assert "Sub" in operators
    assert "BatchNormalization" not in operators


def test_the_flags_are_in_the_provenance(bundles):
    chosen = {name: made.manifest.provenance.hyperparameters for name, made in bundles.items()}
    assert (chosen["fast"]["preset"], chosen["fast"]["members"]) == ("fast", 1)
    assert (chosen["best"]["preset"], chosen["best"]["members"]) == ("best", 3)
    assert len(chosen["best"]["best_epochs"]) == 3
    assert chosen["fast"]["test"] == "people.test.csv"
    assert chosen["groups"]["group"] == "who"
    assert chosen["times"]["time"] == "day"
    assert chosen["times"]["drop"] == ("age",)


def test_a_group_a_date_and_a_dropped_column_are_not_features(bundles):
    assert "who" not in {feature.name for feature in bundles["groups"].manifest.features}
    assert not {"day", "age"} & {feature.name for feature in bundles["times"].manifest.features}
    assert bundles["times"].manifest.provenance.rows == {"train": 182, "validation": 26, "test": 52}


@pytest.mark.parametrize("name", ["fast", "best"])
def test_the_same_command_gives_the_same_bytes_and_another_seed_different_bytes(folder, bundles, tmp_path, name):
    with contextlib.chdir(folder):
        for seed in (0, 1):
            fit(*ARGUMENTS[name], "--name", name, "--models", tmp_path, "--seed", seed)
    again, other = (bundle.read(tmp_path / name / version) for version in ("1", "2"))
    assert again.model == bundles[name].model
    assert other.model != again.model
    assert again.manifest.model_copy(update={"created": None}) == bundles[name].manifest.model_copy(
        update={"created": None}
    )


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_bundle_s_report_names_every_column(bundles, name):
    page = (bundles[name].path / "report.html").read_text("utf-8")
    for feature in bundles[name].manifest.features:
        assert html.escape(feature.name) in page or html.escape(feature.name).replace("&#x27;", "&#39;") in page
    assert "batch <1>" not in page


def test_a_constant_column_is_noted_once(printed):
    for name, text in printed.items():
        assert text.count("constant, and so useless: batch <1>") == 1, name
        assert text.lower().count("useless") == 1, name


def test_strong_imbalance_shows_in_the_scores_of_each_class(bundles, printed):
    manifest = bundles["rare"].manifest
    assert manifest.labels == (False, True)
    page = (bundles["rare"].path / "report.html").read_text("utf-8")
    assert manifest.metrics["test"]["accuracy"] == pytest.approx(0.98, abs=0.02)
    assert "accuracy 0.9800" in next(line for line in printed["rare"].splitlines() if line.startswith("baseline"))
    assert "worst        True: 0.0% of 2 found" in printed["rare"]
    assert "Classes of the test rows that the model never predicts: True." in page
    assert "no better than an answer that looks at no feature" in page
