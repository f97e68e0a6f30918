"""The training loop learns, does not change its arguments, and stops early."""

import copy
import time

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.metrics import recall_score
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn

from foldserve.training.errors import FitError
from foldserve.training.fit.loop import Examples, fit
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture, Recipe


def rows(count, seed=0):
    x, y = make_classification(count, 8, n_informative=6, n_classes=3, random_state=seed)
    return Examples(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y))


TRAIN, VALIDATION = rows(300), rows(100)


pytestmark = pytest.mark.usefixtures("one_thread")


def network(**kwargs):
    torch.manual_seed(0)
    return build_mlp(8, 3, Architecture(hidden=(16,), **kwargs))


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_it_learns_to_beat_the_majority_class():
    x, y = make_classification(500, 8, n_informative=6, n_classes=3, class_sep=2.0, random_state=1)
    x = torch.from_numpy(x.astype(np.float32))
    y = torch.from_numpy(y)
    fitted = fit(network(), Examples(x[:300], y[:300]), Examples(x[300:400], y[300:400]), Recipe(epochs=30), seed=0)
    accuracy = (fitted.network(x[400:]).argmax(1) == y[400:]).double().mean()
    assert accuracy > 0.8


def test_the_same_seed_gives_the_same_weights_and_another_seed_gives_other_weights():
    first, again = (fit(network(), TRAIN, VALIDATION, Recipe(epochs=3), seed=1) for _ in range(2))
    other = fit(network(), TRAIN, VALIDATION, Recipe(epochs=3), seed=2)
    assert torch.equal(weights(first.network), weights(again.network))
    assert not torch.equal(weights(first.network), weights(other.network))


def test_the_given_network_does_not_change():
    before = network()
    kept = copy.deepcopy(before.state_dict())
    fit(before, TRAIN, VALIDATION, Recipe(epochs=2), seed=0)
    assert all(torch.equal(kept[name], value) for name, value in before.state_dict().items())


def test_it_stops_when_the_validation_loss_no_longer_improves_and_restores_the_best_weights():
    # The targets are random, so a network that learns the training rows predicts other rows badly.
    noise = Examples(TRAIN.x, torch.randint(3, (300,), generator=torch.Generator().manual_seed(0)))
    recipe = Recipe(epochs=200, patience=5, input_noise=0, label_smoothing=0)
    seen = []
    # The network has no BN, because recomputed BN statistics would change the loss after the best epoch.
    fitted = fit(network(dropout=0, batch_norm=False), noise, VALIDATION, recipe, seed=0, on_epoch=seen.append)
    losses = [epoch.validation_loss for epoch in seen]
    assert len(seen) == fitted.best_epoch + 5 < 200
    assert fitted.best_epoch == int(np.argmin(losses)) + 1
    assert tuple(seen) == fitted.history
    with torch.no_grad():
        restored = float(nn.functional.cross_entropy(fitted.network(VALIDATION.x), VALIDATION.y))
    assert restored == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize("left_over", [1, 2, 31])
def test_a_last_batch_of_any_size_trains_even_one_row(left_over):
    count = 64 + left_over
    few = Examples(TRAIN.x[:count], TRAIN.y[:count])
    fitted = fit(network(), few, VALIDATION, Recipe(epochs=2, batch_size=32), seed=0)
    assert len(fitted.history) == 2


def test_every_row_is_used_once_per_epoch():
    drawn = []

    class Recorder(nn.Module):
        def forward(self, x):
            if self.training:
                drawn.extend(x[:, 0].tolist())
            return x

    count = 65
    marked = Examples(torch.arange(count, dtype=torch.float32)[:, None].repeat(1, 8), TRAIN.y[:count])
    recipe = Recipe(epochs=1, batch_size=32, input_noise=0)
    fit(nn.Sequential(Recorder(), nn.Linear(8, 3)), marked, VALIDATION, recipe, seed=0)
    assert sorted(drawn) == list(range(count))


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_both_schedules_train(schedule):
    fitted = fit(network(), TRAIN, VALIDATION, Recipe(epochs=8, schedule=schedule), seed=0)
    assert fitted.history[-1].loss < fitted.history[0].loss


@pytest.mark.parametrize(
    ("count", "batch_size", "epochs"),
    [
        (5, 32, 60),
        (1_259, 32, 60),
        (3_312, 128, 60),
        (5_000, 128, 60),
        (50_000, 256, 60),
        (100_000, 256, 30),
        (10**6, 1024, 5),
    ],
)
def test_batch_size_and_epochs_depend_on_the_rows_unless_given(count, batch_size, epochs):
    resolved = Recipe().resolved(count)
    assert (resolved.batch_size, resolved.epochs) == (batch_size, epochs)
    assert Recipe(batch_size=7, epochs=9).resolved(count) == Recipe(batch_size=7, epochs=9)
    assert resolved.resolved(10 * count) == resolved


def test_a_long_epoch_reports_its_progress():
    """Each batch waits until the clock has advanced far enough, so the speed of the machine does not matter."""
    seen = []

    class Slow(nn.Module):
        def forward(self, x):
            started = time.monotonic()
            while time.monotonic() - started < 0.11:
                pass
            return x

    recipe = Recipe(epochs=1, batch_size=50)
    fit(nn.Sequential(Slow(), nn.Linear(8, 3)), TRAIN, VALIDATION, recipe, seed=0, on_progress=seen.append)
    done = [part.rows_done for part in seen]
    assert done == sorted(done)
    assert len(done) >= 2
    assert {0 < part.rows_done <= part.rows == 300 for part in seen} == {True}
    assert all(0 < part.rows_per_second < 500 for part in seen)


def test_bf16_trains_a_float32_network_that_differs_by_rounding():
    exact, rounded = (
        fit(network(), TRAIN, VALIDATION, Recipe(epochs=10, precision=precision), seed=0)
        for precision in ("fp32", "bf16")
    )
    assert {tensor.dtype for tensor in rounded.network.parameters()} == {torch.float32}
    assert not torch.equal(weights(exact.network), weights(rounded.network))
    assert rounded.history[-1].loss == pytest.approx(exact.history[-1].loss, rel=0.05)


def imbalanced(count, seed):
    """One row in twenty has the rare class. The two classes overlap in the values of the features."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(count) % 20 == 0).long()
    return Examples(torch.randn(count, 8, generator=generator) + 0.5 * y[:, None], y)


def test_balanced_weights_find_more_rows_of_a_rare_class():
    train, validation, test = imbalanced(1000, 0), imbalanced(400, 1), imbalanced(2000, 2)
    recall = {}
    for weight in ("none", "balanced"):
        recipe = Recipe(epochs=6, class_weight=weight)
        torch.manual_seed(0)
        found = fit(build_mlp(8, 2, Architecture(hidden=(16,))), train, validation, recipe, seed=0).network
        with torch.no_grad():
            recall[weight] = recall_score(test.y, found(test.x).argmax(1))
    assert recall["balanced"] > recall["none"] + 0.3


def test_balanced_weights_are_scikit_learn_s():
    train, validation = imbalanced(200, 0), imbalanced(100, 1)
    # The class shares of the validation set differ from the class shares of the training set.
    validation = Examples(validation.x, validation.y.roll(1) | validation.y)
    plain = build_mlp(8, 2, Architecture(hidden=(16,), batch_norm=False))
    fitted = fit(plain, train, validation, Recipe(epochs=1, class_weight="balanced"), seed=0)
    weight_of = dict(zip(train.y.tolist(), compute_sample_weight("balanced", train.y), strict=True))
    with torch.no_grad():
        losses = nn.functional.cross_entropy(fitted.network(validation.x), validation.y, reduction="none").double()
    expected = np.mean([weight_of[y] * loss for y, loss in zip(validation.y.tolist(), losses.tolist(), strict=True)])
    assert fitted.history[0].validation_loss == pytest.approx(expected, rel=1e-5)


def test_class_weights_do_not_change_a_regression():
    values = Examples(TRAIN.x, TRAIN.x[:, 0].clone())
    torch.manual_seed(0)
    one_output = build_mlp(8, 1, Architecture(hidden=(16,)))
    first, second = (
        fit(one_output, values, values, Recipe(epochs=2, class_weight=weight), seed=0)
        for weight in ("none", "balanced")
    )
    assert [epoch.loss for epoch in first.history] == [epoch.loss for epoch in second.history]
    assert torch.equal(weights(first.network), weights(second.network))


def test_input_noise_is_in_standard_deviations_of_each_column():
    seen = []

    class Recorder(nn.Module):
        def forward(self, x):
            if self.training:
                seen.append(x.clone())
            return x

    count = 20_000
    std = torch.tensor([1.0, 1e-3, 50.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0)) * std + 3.0
    train = Examples(x, torch.zeros(count, dtype=torch.int64))
    recipe = Recipe(epochs=1, batch_size=1000, input_noise=1.5)
    fit(nn.Sequential(Recorder(), nn.Linear(8, 3)), train, VALIDATION, recipe, seed=0)
    noisy = torch.cat(seen)
    # The variances of independent variables add up. Noise does not change a constant column.
    np.testing.assert_allclose(noisy.var(0) / (1 + 1.5**2), std.square(), rtol=0.05, atol=0)
    assert (noisy[:, 3] == 3.0).all()
    np.testing.assert_allclose(noisy.mean(0), 3.0, atol=0.05 * max(std))
    # If all columns got the same noise, they would be correlated.
    varied = noisy[:, std > 0]
    np.testing.assert_allclose(np.corrcoef(varied.T), np.eye(varied.shape[1]), atol=0.05)


def test_a_float_target_is_fitted_by_squared_error():
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([1.0, -2.0, 0.5])
    torch.manual_seed(0)
    fitted = fit(
        build_mlp(3, 1, Architecture(dropout=0)),
        Examples(x[:300], y[:300]),
        Examples(x[300:], y[300:]),
        Recipe(epochs=30),
        seed=0,
    )
    with torch.no_grad():
        residual = fitted.network(x[300:])[:, 0] - y[300:]
    assert float(residual.square().mean() / y[300:].var()) < 0.05


def test_a_loss_that_is_not_finite_stops_the_fit_and_names_the_epoch():
    with pytest.raises(FitError, match="epoch 1"):
        fit(network(batch_norm=False), TRAIN, VALIDATION, Recipe(learning_rate=1e30), seed=0)
