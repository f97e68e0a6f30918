"""Hyper-parameter search: Optuna's TPE over the choices that matter most, by the loss on the validation rows.

It settles an architecture and a recipe, one network a trial; how many networks then make the model stays as planned.
The rows to report on are never looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import optuna

from foldserve.training.errors import FitError
from foldserve.training.fit.loop import Epoch
from foldserve.training.pipeline import Context, Ready, fit_member, prepare
from foldserve.training.plan import Plan
from foldserve.training.table.schema import Table

_WIDTHS = (32, 64, 128, 256)


@dataclass(frozen=True)
class Trial:
    """One recipe that was tried: its lowest validation loss, None where it was given up, and the lowest of all."""

    number: int
    of: int
    loss: float | None
    best: float


def tune(plan: Plan, table: Table, trials: int, on_trial: Callable[[Trial], None] = lambda _: None) -> Plan:
    """Give `plan` with the architecture and recipe of the lowest validation loss among `trials`, its own the first.

    A trial that is behind the median of those before it is given up. The same plan and table give the same answer.
    Raises `FitError` when no trial comes to an end.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # of a trial that failed it would show the traceback
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=plan.seed),
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=4, n_warmup_steps=(plan.recipe.epochs or plan.recipe.most_epochs) // 4
        ),
    )
    study.enqueue_trial(_as_planned(plan))

    def told(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        # Of a trial that was given up, Optuna keeps the last epoch's loss.
        loss = trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None
        finished = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
        losses = [each.value for each in finished if each.value is not None]
        on_trial(Trial(trial.number + 1, trials, loss, min(losses, default=float("inf"))))

    ready = prepare(plan, table)  # for all trials: nothing that is tried changes what the rows are encoded as
    study.optimize(
        lambda trial: _loss(trial, _chosen(trial, plan), ready), n_trials=trials, catch=(FitError,), callbacks=[told]
    )
    if not study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
        raise FitError(f"no trial of {trials} came to an end")
    return _chosen(study.best_trial, plan)


def _as_planned(plan: Plan) -> dict[str, int | float]:
    """What `_chosen` has to find for it to give the plan itself, as near as its choices allow."""
    return {
        "width": min(_WIDTHS, key=lambda width: abs(width - max(plan.architecture.hidden, default=64))),
        "depth": min(max(len(plan.architecture.hidden), 1), 4),
        "dropout": min(plan.architecture.dropout, 0.5),
        "learning_rate": min(max(plan.recipe.learning_rate, 5e-4), 3e-2),
        "weight_decay": min(max(plan.recipe.weight_decay, 1e-3), 1.0),
        "input_noise": min(plan.recipe.input_noise, 0.4),
        "label_smoothing": min(plan.recipe.label_smoothing, 0.2),
    }


def _chosen(trial: optuna.trial.BaseTrial, plan: Plan) -> Plan:
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


def _loss(trial: optuna.Trial, plan: Plan, ready: Ready) -> float:
    lowest = float("inf")

    def look(epoch: Epoch) -> None:
        nonlocal lowest
        lowest = min(lowest, epoch.validation_loss)
        trial.report(lowest, epoch.number)
        if trial.should_prune():
            raise optuna.TrialPruned

    fit_member(plan, ready, 0, Context(on_epoch=look))
    return lowest
