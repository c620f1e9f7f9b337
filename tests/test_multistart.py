"""Starts improved as one batch, against fits by scipy from each of them."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from sklm import losses
from sklm.engine.multistart import best_of

X = torch.linspace(0, 4, 60, dtype=torch.float64)[:, None]
GENERATOR = np.random.default_rng(0)
STARTS = torch.tensor(GENERATOR.uniform(0.2, 8, (12, 3)))
WAVE = 2 * np.sin(3 * X[:, 0].numpy() + 0.5) + 0.1 * GENERATOR.standard_normal(60)
OUTLIERS = np.where(np.arange(60) % 6 == 0, WAVE + 10, WAVE)
FREE = torch.full((3,), -torch.inf, dtype=torch.float64), torch.full((3,), torch.inf, dtype=torch.float64)


def wave(X, point):
    a, w, p = point.unbind()
    return a * torch.sin(w * X[:, 0] + p)


def scipy_minimum(target, weights, loss, bounds, start):
    """Return the loss that scipy reaches, in units of half a square."""

    def residuals(point):
        a, w, p = point
        return np.sqrt(weights) * (a * np.sin(w * X[:, 0].numpy() + p) - target)

    lower, upper = (side.numpy() for side in bounds)
    start = np.clip(start, lower + 1e-9, upper - 1e-9)
    return least_squares(residuals, start, loss=loss, bounds=(lower, upper), x_scale="jac", max_nfev=1000).cost


@pytest.mark.parametrize("box", ["free", "bounded"])
@pytest.mark.parametrize(("ours", "theirs"), [("squared_error", "linear"), ("huber", "huber"), ("cauchy", "cauchy")])
def test_best_is_the_best_that_scipy_finds_from_all_starts(ours, theirs, box):
    bounds = FREE if box == "free" else torch.tensor([[0.0, 0.1, 0.0], [1.5, 5.0, 6.3]]).double().unbind()
    criterion = {"squared_error": losses.SquaredError, "huber": losses.Huber, "cauchy": losses.Cauchy}[ours]()
    weights = np.ones(60)
    if ours == "squared_error":  # scipy scales the residual, and so what its other losses take for an outlier
        weights = np.random.default_rng(1).uniform(0.5, 2, 60)
    target, weight = torch.tensor(OUTLIERS), torch.tensor(weights)
    best = best_of(wave, STARTS, criterion, X, target, weight, *bounds)
    outputs = wave(X, best)[:, None]
    found = float((criterion.value(outputs, criterion.prepare(outputs, target)) * weight).sum())
    expected = min(scipy_minimum(OUTLIERS, weights, theirs, bounds, start) for start in STARTS.numpy())
    assert found <= expected * (1 + 1e-3)  # the same minimum; its digits are left to the fit
    assert bool(((best >= bounds[0]) & (best <= bounds[1])).all())


def test_criterion_decides():
    """A start at each of two minima: the squared error goes with the outliers, the Cauchy loss without."""
    step = np.where(np.arange(60) % 4 == 0, 30.0, 1.0)
    starts = torch.tensor([[30.0], [1.0]]).double()
    bounds = (torch.tensor([0.0]).double(), torch.tensor([40.0]).double())

    def level(X, point):
        return point.expand(len(X))

    def best(criterion):
        return best_of(level, starts, criterion, X, torch.tensor(step), None, *bounds).item()

    assert best(losses.SquaredError()) == pytest.approx(step.mean(), rel=1e-9)
    assert best(losses.Cauchy()) == pytest.approx(1, abs=0.05)


def test_earlier_of_equal_minima():
    starts = torch.tensor([[2.0, 3.0, 0.5], [-2.0, -3.0, -0.5], [2.0, 3.0, 0.5 + 2 * np.pi]]).double()
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        best = best_of(wave, starts[order], losses.SquaredError(), X, torch.tensor(WAVE), None, *FREE)
        assert int((starts - best).abs().sum(1).argmin()) == order[0]


def test_starts_that_are_not_finite_are_left_out():
    def root(X, point):
        return torch.sqrt(point[0]) * X[:, 0]

    starts = torch.tensor([[-1.0], [4.0], [torch.nan]]).double()
    free = torch.tensor([-torch.inf]).double(), torch.tensor([torch.inf]).double()
    best = best_of(root, starts, losses.SquaredError(), X, 3 * X[:, 0], None, *free)
    assert best.item() == pytest.approx(9, rel=1e-6)
    assert best_of(root, starts[[0, 2]], losses.SquaredError(), X, 3 * X[:, 0], None, *free) is None


def test_more_rows_than_fit(monkeypatch):
    monkeypatch.setattr("sklm.engine.multistart.MAX_ELEMENTS", 12 * 3 * 20)
    best = best_of(wave, STARTS, losses.SquaredError(), X, torch.tensor(WAVE), None, *FREE)
    assert float((wave(X, best) - torch.tensor(WAVE)).square().mean()) < 0.05
