"""What a type checker sees of the interface: `make lint` checks this file with mypy --strict, pytest runs it."""

from typing import Any, assert_type

import numpy as np
import pytest
import torch

from sklm import (
    MLP,
    DampingDisplay,
    FitDisplay,
    LevenbergMarquardt,
    LMClassifier,
    LMRegressor,
    LossCurveDisplay,
    ProfileDisplay,
    StepResult,
    curve,
    curves,
    damping,
    losses,
    selection,
)

X = np.linspace(0, 3, 30)[:, None]
Y = 3 * np.exp(-2 * X[:, 0]) + 0.1 * np.cos(30 * X[:, 0])


def decay(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a * torch.exp(-b * x)


class Mine(LMRegressor):
    """A subclass keeps its type."""


def test_a_regressor() -> None:
    model = assert_type(LMRegressor("a * exp(-b * x)", criterion="squared_error", lr=1.0).fit(X, Y), LMRegressor)
    assert_type(model.predict(X), np.ndarray)
    assert_type(model.fit(X, Y).predict(X).mean(), Any)
    mean, std = assert_type(model.predict(X, return_std=True), tuple[np.ndarray, np.ndarray])
    assert mean.shape == std.shape
    assert_type(model.score(X, Y), float)
    assert_type(model.set_params(lr=0.9).get_params(), dict[str, Any])
    assert_type(model.partial_fit(X, Y), LMRegressor)
    assert_type(Mine("a * exp(-b * x)").set_params(max_epochs=50).fit(X, Y), Mine)


def test_what_a_fit_knows() -> None:
    model = LMRegressor(curve(decay)).fit(X, Y)
    assert_type(model.parameters_, dict[str, float])
    assert_type(model.standard_errors_["a"], float)
    assert_type(model.covariance_, np.ndarray)
    assert_type(model.aic_ + model.dof_ + model.reduced_chi_square_, float)
    assert_type(model.predict_interval(X), np.ndarray)
    assert_type(model.confidence_intervals()["a"], tuple[float, float])
    assert_type(model.summary().notes, list[str])
    assert_type(model.loss_, float)
    assert_type(model.loss_curve_, list[float])
    assert_type(model.alpha_, float)
    assert_type(model.n_iter_, int)
    assert_type(model.n_features_in_, int)
    assert_type(model.converged_, bool)
    assert_type(model.message_.upper(), str)
    assert_type(model.module_, torch.nn.Module)
    assert_type(model.optimizer_, LevenbergMarquardt)
    assert_type(model.criterion_, losses.Loss)
    assert_type(model.dtype_, torch.dtype)


def test_a_classifier() -> None:
    model = LMClassifier(module__hidden_layer_sizes=(2,), random_state=0, ftol=1e-2)
    assert_type(model.fit(X, Y > 1), LMClassifier)
    assert_type(model.predict(X), np.ndarray)
    assert_type(model.predict_proba(X), np.ndarray)
    assert_type(model.decision_function(X), np.ndarray)
    assert_type(model.classes_, np.ndarray)
    assert_type(model.score(X, Y > 1), float)


@pytest.mark.parametrize("module", [MLP, torch.nn.Linear(1, 1), curves.ExponentialDecay, curve("a * x"), "a * x"])
def test_modules_of_all_kinds(module: type[torch.nn.Module] | torch.nn.Module | str) -> None:
    LMRegressor(module, max_epochs=2, damping=damping.NielsenDamping(initial=0.1))
    LMRegressor(module, selection=selection.RandomSelection(subset_size=0.5), criterion=losses.Huber(delta=2))


def test_the_engine() -> None:
    inputs, targets = torch.from_numpy(X).float(), torch.from_numpy(Y).float()
    engine = LevenbergMarquardt(MLP(1, 1), losses.SquaredError(), damping="standard", alpha=1e-3)
    result = assert_type(engine.step(inputs, targets), StepResult)
    assert_type(result.loss, float)
    assert_type(result.accepted, bool)
    assert_type(result.outputs, torch.Tensor)
    assert_type(engine.state_dict(), dict[str, Any])
    loss = losses.Cauchy()
    assert_type(loss.value(result.outputs, targets[:, None]), torch.Tensor)


def test_displays() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    model = LMRegressor("a * exp(-b * x)").fit(X, Y)
    assert_type(FitDisplay.from_estimator(model, X, Y).plot(), FitDisplay)
    assert_type(ProfileDisplay.from_estimator(model, ["b"], n_points=5).intervals, dict[str, tuple[float, float]])
    assert_type(LossCurveDisplay.from_estimator(model).train_loss, np.ndarray)
    assert_type(DampingDisplay.from_estimator(model).plot(), DampingDisplay)
