"""The search is reproducible and does not depend on the test rows.

The result of the search is at least as good as the plan.
"""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from foldserve.service import bundle
from foldserve.training import pipeline
from foldserve.training.cli import main
from foldserve.training.plan import PRESETS, Architecture, DataOptions, Plan, Recipe
from foldserve.training.table.load import load
from foldserve.training.tune import tune

# The settings that the search chooses.
SEARCHED = {"hidden", "dropout", "learning_rate", "weight_decay", "input_noise", "label_smoothing"}


def plan(**changes):
    """Return a plan inside the search space. The first trial uses such a plan unchanged."""
    architecture = Architecture(hidden=(32,), dropout=0.1)
    return Plan(
        **{
            "data": DataOptions("iris"),
            "name": "iris",
            "models": None,
            "architecture": architecture,
            "recipe": Recipe(epochs=4),
        }
        | changes
    )


@pytest.fixture(scope="module")
def iris():
    return load(DataOptions("iris"))


def lowest(plan, table):
    """Return the lowest validation loss of a fit outside the search."""
    fitted = pipeline.fit_member(plan, pipeline.prepare(plan, table), 0, pipeline.Context())
    return min(epoch.validation_loss for epoch in fitted.history)


def test_the_same_plan_and_table_give_the_same_result(iris):
    first, again = [], []
    assert tune(plan(), iris, 6, first.append) == tune(plan(), iris, 6, again.append)
    assert first == again
    assert [(trial.number, trial.trials) for trial in first] == [(number, 6) for number in range(1, 7)]
    # The first trial uses the plan unchanged. The other trials depend on the seed.
    another = []
    tune(plan(seed=1), iris, 3, another.append)
    assert [trial.loss for trial in another] != [trial.loss for trial in first[:3]]


@pytest.mark.parametrize("seed", range(3))
def test_the_result_is_at_least_as_good_as_the_plan_which_is_the_first_trial(iris, seed):
    planned, trials = plan(seed=seed), []
    found = tune(planned, iris, 5, trials.append)
    finished = [trial.loss for trial in trials if trial.loss is not None]
    assert trials[0].loss == lowest(planned, iris)
    assert lowest(found, iris) == min(finished) == trials[-1].best <= trials[0].loss
    assert [trial.best for trial in trials] == sorted((trial.best for trial in trials), reverse=True)


def test_a_single_trial_is_the_plan_itself(iris):
    assert tune(plan(), iris, 1) == plan()


def test_settings_outside_the_search_stay(iris):
    network = Architecture(hidden=(32,), placement="post", members=3, bins=4, binned="all", eps=1e-3)
    planned = plan(architecture=network, recipe=Recipe(epochs=2, schedule="cosine", class_weight="balanced"), seed=5)
    found = tune(planned, iris, 3)
    for before, after in ((planned.architecture, found.architecture), (planned.recipe, found.recipe)):
        changed = {name for name, value in vars(after).items() if value != vars(before)[name]}
        assert changed <= SEARCHED
    assert replace(found, architecture=planned.architecture, recipe=planned.recipe) == planned


def test_the_test_rows_are_not_used(iris):
    """The trials stay the same if the features and labels of the test rows change."""
    planned, trials, others = plan(), [], []
    rows = pipeline.prepare(planned, iris).split.test
    x, y = iris.x.copy(), iris.y.copy()
    x[rows] = -1e6
    # The labels stay the same, because the split depends on them.
    changed = replace(iris, x=x)
    assert np.array_equal(pipeline.prepare(planned, changed).split.test, rows)
    assert tune(planned, iris, 5, trials.append) == tune(planned, changed, 5, others.append)
    assert trials == others

    # A split by time does not depend on the labels, so the test changes the labels too.
    moments = replace(iris, time=np.random.default_rng(0).permutation(len(y)))
    rows = pipeline.prepare(planned, moments).split.test
    y[rows] = np.random.default_rng(1).permutation(y[rows])
    assert not np.array_equal(y, iris.y)
    trials, others = [], []
    assert tune(planned, moments, 5, trials.append) == tune(planned, replace(moments, y=y), 5, others.append)
    assert trials == others


def test_a_trial_behind_the_median_is_stopped(iris):
    trials = []
    tune(plan(recipe=Recipe(epochs=8)), iris, 16, trials.append)
    stopped = [trial for trial in trials if trial.loss is None]
    assert stopped
    # The pruner needs four finished trials for a median.
    assert min(trial.number for trial in stopped) > 4
    assert all(math.isfinite(trial.best) for trial in trials)


def with_extreme_validation_row(table, planned, value):
    """Return the table with an extreme value in one validation row.

    The squared error of the row with the extreme value may overflow float32.
    """
    x = table.x.copy()
    x[pipeline.prepare(planned, table).split.validation[0], 0] = value
    return replace(table, x=x)


@pytest.fixture(scope="module")
def diabetes():
    return load(DataOptions("diabetes"))


def test_the_search_continues_after_a_failed_trial(diabetes):
    planned = plan(
        data=DataOptions("diabetes"), architecture=Architecture(hidden=(32,), bins=0), recipe=Recipe(epochs=1)
    )
    # Far from zero, the network's output grows linearly with the value, so the squared error grows with the square of
    # the value. With the extreme value 1e10, the squared error overflows in some trials, but not in all.
    trials = []
    tune(planned, with_extreme_validation_row(diabetes, planned, 1e10), 4, trials.append)
    losses = np.array([trial.loss for trial in trials])
    rows = len(pipeline.prepare(planned, diabetes).split.validation)
    middle = math.exp(np.log(np.sort(losses)[1:3]).mean()) * rows
    table = with_extreme_validation_row(diabetes, planned, 1e10 * math.sqrt(np.finfo(np.float32).max / middle))
    trials = []
    found = tune(planned, table, 4, trials.append)
    assert [trial.loss is None for trial in trials] == (losses > np.median(losses)).tolist()
    assert lowest(found, table) == min(trial.loss for trial in trials if trial.loss is not None)


def test_one_line_says_that_every_trial_failed(tmp_path):
    # With the split by time, the rows 70 to 79 are the validation set.
    rows = (f"{place},{'3e38' if 70 <= place < 80 else place % 7},{'ab'[place % 2]}\n" for place in range(100))
    (tmp_path / "far.csv").write_text("t,x,y\n" + "".join(rows))
    command = [
        sys.executable,
        "-m",
        "foldserve.training",
        "fit",
        "far.csv",
        "--time",
        "t",
        "--models",
        ".",
        "--tune",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "foldserve-train: error: none of the 2 trials finished\n"
    assert [path.name for path in tmp_path.iterdir()] == ["far.csv"]


def test_the_command_searches_first_and_prints_the_changes(tmp_path, capsys):
    arguments = ["fit", "iris", "--models", str(tmp_path), "--tune", "3", "--epochs", "2", "--hidden", "32"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    (line,) = (line for line in printed.out.splitlines() if line.startswith("tuned "))
    assert line.endswith("(of 3 trials)")
    planned = replace(PRESETS["fast"].architecture, hidden=(32,)), replace(PRESETS["fast"].recipe, epochs=2)
    table = load(DataOptions("iris"))
    found = tune(plan(architecture=planned[0], recipe=planned[1]), table, 3)
    recorded = bundle.read(tmp_path / "iris" / "1").manifest.provenance.hyperparameters
    for name in SEARCHED:
        assert recorded[name] == {**vars(found.architecture), **vars(found.recipe)}[name]
        assert (f"{name} " in line) == (recorded[name] != {**vars(planned[0]), **vars(planned[1])}[name])


@pytest.mark.parametrize("trials", ["0", "-1", "many"])
def test_the_number_of_trials_must_be_at_least_1(trials, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "iris", "--tune", trials])
    assert "--tune" in capsys.readouterr().err


def test_without_optuna_the_error_has_the_install_command(tmp_path):
    script = (
        "import sys; sys.modules['optuna'] = None; from foldserve.training.cli import main\n"
        "sys.exit(main(['fit', 'iris', '--models', '.', '--tune', '2']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "foldserve-train: error: optuna is not installed: pip install 'foldserve[tune]'\n"
    assert not list(tmp_path.iterdir())
