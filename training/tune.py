"""Hyper-parameter search: runs Optuna's TPE over the settings that matter most, and minimises the validation loss.

The search chooses an architecture and a recipe. Each trial trains only one network, and the search does not change the
number of ensemble members. The search never sees the test rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import optuna

from foldserve.training.errors import FitError
from foldserve.training.fit.loop import Epoch
from foldserve.training.pipeline import Context, Prepared, fit_member, prepare
from foldserve.training.plan import Plan
from foldserve.training.table.schema import Table

_WIDTHS = (32, 64, 128, 256)


@dataclass(frozen=True)
class Trial:
    """A finished trial. number: the number of the trial, from 1 to `trials`.

    loss: the lowest validation loss of the trial; None if the trial was stopped early or failed. best: the lowest loss
    of all trials so far; infinite if no trial has a loss.
    """

    number: int
    trials: int
    loss: float | None
    best: float


def tune(plan: Plan, table: Table, trials: int, on_trial: Callable[[Trial], None] = lambda _: None) -> Plan:
    """Return `plan` with the architecture and the recipe of the trial with the lowest validation loss.

    The first trial uses the settings of `plan`; if they are outside the search space, it uses the closest settings
    inside. A trial is stopped when its loss is worse than the median loss of the earlier trials. The same plan and
    table give the same result. Raises `FitError` if no trial finishes.
    """
    # With a lower log level, Optuna would print the traceback of a failed trial.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=plan.seed),
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=4, n_warmup_steps=(plan.recipe.epochs or plan.recipe.most_epochs) // 4
        ),
    )
    study.enqueue_trial(_planned_parameters(plan))

    def report_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        # For a trial that was stopped early, Optuna returns the loss of the last epoch.
        loss = trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None
        losses = [finished.value for finished in _finished(study) if finished.value is not None]
        on_trial(Trial(trial.number + 1, trials, loss, min(losses, default=float("inf"))))

    # The table is prepared once for all trials, because no parameter of the search changes the preprocessing.
    prepared = prepare(plan, table)
    study.optimize(
        lambda trial: _objective(trial, _suggest(trial, plan), prepared),
        n_trials=trials,
        catch=(FitError,),
        callbacks=[report_trial],
    )
    if not _finished(study):
        raise FitError(f"none of the {trials} trials finished")
    return _suggest(study.best_trial, plan)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])


def _planned_parameters(plan: Plan) -> dict[str, int | float]:
    """Return the trial parameters that describe `plan`, so that `_suggest` returns the plan unchanged.

    If the plan is outside the search space, return the parameters of the closest plan in the search space.
    """
    return {
        "width": min(_WIDTHS, key=lambda width: abs(width - max(plan.architecture.hidden, default=64))),
        "depth": min(max(len(plan.architecture.hidden), 1), 4),
        "dropout": min(plan.architecture.dropout, 0.5),
        "learning_rate": min(max(plan.recipe.learning_rate, 5e-4), 3e-2),
        "weight_decay": min(max(plan.recipe.weight_decay, 1e-3), 1.0),
        "input_noise": min(plan.recipe.input_noise, 0.4),
        "label_smoothing": min(plan.recipe.label_smoothing, 0.2),
    }


def _suggest(trial: optuna.trial.BaseTrial, plan: Plan) -> Plan:
    """Return the plan with the parameters of `trial`."""
    hidden = (trial.suggest_categorical("width", _WIDTHS),) * trial.suggest_int("depth", 1, 4)
    return replace(
        plan,
        architecture=replace(plan.architecture, hidden=hidden, dropout=trial.suggest_float("dropout", 0.0, 0.5)),
        recipe=replace(
            plan.recipe,
            learning_rate=trial.suggest_float("learning_rate", 5e-4, 3e-2, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-3, 1.0, log=True),
            input_noise=trial.suggest_float("input_noise", 0.0, 0.4),
            label_smoothing=trial.suggest_float("label_smoothing", 0.0, 0.2),
        ),
    )


def _objective(trial: optuna.Trial, plan: Plan, prepared: Prepared) -> float:
    """Fit one network and return its lowest validation loss."""
    lowest = float("inf")

    def report_epoch(epoch: Epoch) -> None:
        nonlocal lowest
        lowest = min(lowest, epoch.validation_loss)
        trial.report(lowest, epoch.number)
        if trial.should_prune():
            raise optuna.TrialPruned

    fit_member(plan, prepared, 0, Context(on_epoch=report_epoch))
    return lowest
