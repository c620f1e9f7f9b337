"""Bounds: `scipy.optimize.lsq_linear` and `least_squares` with bounds, the explicit system, and hand-made cases."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import nn

from sklm import LevenbergMarquardt
from sklm.engine.bounds import Box, bounded_step, held
from sklm.engine.damping import NielsenDamping
from sklm.engine.solvers import QR, SVD, Cholesky, DualCholesky

FORMS = [Cholesky, DualCholesky, QR, SVD]
by_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
SOLVERS = ["auto", "cholesky", "qr", "svd"]
INF = math.inf


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the box ---


def parameters(**values):
    return {name: nn.Parameter(torch.as_tensor(value, dtype=torch.float64)) for name, value in values.items()}


def test_box_lies_in_the_order_of_the_parameters():
    box = Box({"b": (0, None), "a": (vector(-1, -2), 5)}, parameters(a=[0.0, 1.0], c=7.0, b=3.0))
    assert box.lower.tolist() == [-1.0, -2.0, -INF, 0.0]
    assert box.upper.tolist() == [5.0, 5.0, INF, INF]
    lower, upper = box.select(torch.tensor([3, 0]), vector(0.0))
    assert lower.tolist() == [0.0, -1.0]
    assert upper.tolist() == [INF, 5.0]


def test_numbers_keep_their_digits():
    """A Python float is a float64, whatever the default dtype of torch."""
    box = Box({"a": (0.1, 0.3)}, parameters(a=0.3))
    assert (box.lower.item(), box.upper.item()) == (0.1, 0.3)


def test_box_has_the_dtype_of_the_parameters():
    """0.1 in float32 is above 0.1 in float64, which must not put it outside."""
    box = Box({"a": (0.1, 0.1)}, {"a": nn.Parameter(torch.tensor(0.1))})
    lower, upper = box.select(None, torch.zeros(1))
    assert lower.dtype == upper.dtype == torch.float32


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"hight": (0, 1)}, "`bounds` has no trainable parameter 'hight'.*there are height, rates.*'height'"),
        ({"height": (2, 1)}, "`bounds` of height must have lower <= upper"),
        ({"rates": (vector(0, 3), vector(1, 2))}, "`bounds` of rates must have lower <= upper"),
        ({"height": (math.nan, 1)}, "`bounds` of height must have lower <= upper"),
        ({"height": (1.5, 2)}, r"initial value of height must lie within its bounds \(1.5, 2\); got 1.0"),
        ({"height": (None, 0.5)}, "initial value of height must lie within its bounds"),
        ({"rates": (0, vector(1, 0.1))}, r"initial value of rates must lie within.*got \[0.5, 0.25\]"),
    ],
    ids=["unknown", "crossed", "crossed in one element", "nan", "below", "above", "one element above"],
)
def test_bad_bounds(bounds, message):
    module = nn.Module()
    module.height = nn.Parameter(vector(1.0)[0])
    module.rates = nn.Parameter(vector(0.5, 0.25))
    with pytest.raises(ValueError, match=message):
        LevenbergMarquardt(module, bounds=bounds)


def test_bounds_of_a_frozen_parameter_are_refused():
    module = nn.Linear(2, 1).double()
    module.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter 'bias'"):
        LevenbergMarquardt(module, bounds={"bias": (None, None)})


@pytest.mark.parametrize(
    ("theta", "gradient", "expected"),
    [
        (0.0, 1.0, True),
        (0.0, 0.0, True),
        (0.0, -1.0, False),
        (2.0, -1.0, True),
        (2.0, 0.0, True),
        (2.0, 1.0, False),
        (1.0, 1.0, False),
        (1.0, 0.0, False),
    ],
)
def test_held_by_hand(theta, gradient, expected):
    assert held(vector(theta), vector(gradient), vector(0.0), vector(2.0)).tolist() == [expected]


def test_equal_bounds_hold_and_no_bounds_never_do():
    assert held(vector(1, 1), vector(3, -3), vector(1, 1), vector(1, 1)).tolist() == [True, True]
    assert held(vector(1, 1), vector(3, -3), vector(-INF, -INF), vector(INF, INF)).tolist() == [False, False]


# --- the step within the box ---


@by_form
@pytest.mark.parametrize("shape", [(20, 5), (4, 9)], ids=["tall", "wide"])
@pytest.mark.parametrize("penalized", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(4))
def test_free_parameters_solve_the_rest_given_the_others(form, shape, penalized, seed):
    n_rows, n_params = shape
    matrix, residual, theta = draw(*shape, seed=seed), draw(n_rows, seed=seed + 10), draw(n_params, seed=seed + 20)
    penalty, damping = penalized * (torch.arange(n_params) % 2).double(), torch.linspace(0.1, 2, n_params).double()
    lower, upper = theta - 0.2, theta + 0.3
    lower[0] = theta[0]
    problem = form([(matrix, residual)], penalty, theta)
    step, free = bounded_step(problem, damping, theta, lower, upper)
    start = held(theta, matrix.T @ residual + penalty * theta, lower, upper)
    assert (step[start] == 0).all()
    assert not free[start].any()
    end = theta + step
    assert ((end >= lower - 1e-15) & (end <= upper + 1e-15)).all()
    near = torch.minimum((end - lower).abs(), (end - upper).abs())
    assert (near[~free & ~start] < 1e-15).all()
    # the gradient of |A d + r|^2 + sum a (theta + d)^2 + sum damping d^2 vanishes in the free ones
    gradient = matrix.T @ (matrix @ step + residual) + penalty * end + damping * step
    torch.testing.assert_close(gradient[free], torch.zeros_like(gradient[free]), rtol=0, atol=1e-10)


@by_form
@pytest.mark.parametrize("seed", range(5))
def test_step_of_a_separable_problem_equals_lsq_linear(form, seed):
    matrix = torch.diag(draw(6, seed=seed).abs() + 0.1)
    residual, theta, damping = draw(6, seed=seed + 10), draw(6, seed=seed + 20), draw(6, seed=seed + 30).abs() + 0.01
    lower, upper = theta - draw(6, seed=seed + 40).abs(), theta + draw(6, seed=seed + 50).abs()
    problem = form([(matrix, residual)], torch.zeros_like(theta), theta)
    step, _ = bounded_step(problem, damping, theta, lower, upper)
    system = np.vstack([matrix, torch.diag(damping.sqrt())])
    right = np.r_[-residual.numpy(), np.zeros(6)]
    oracle = optimize.lsq_linear(system, right, ((lower - theta).numpy(), (upper - theta).numpy()), tol=1e-15)
    np.testing.assert_allclose(step.numpy(), oracle.x, rtol=1e-7, atol=1e-9)


@by_form
def test_step_without_effective_bounds_is_that_without_bounds(form):
    matrix, residual, theta = draw(20, 5), draw(20, seed=1), draw(5, seed=2)
    problem = form([(matrix, residual)], torch.full_like(theta, 0.1), theta)
    damping, wide = torch.ones(5).double(), torch.full((5,), 1e6).double()
    step, free = bounded_step(problem, damping, theta, -wide, wide)
    assert torch.equal(step, problem.solve(damping))
    assert free.all()


@by_form
def test_no_step_where_all_are_held(form):
    theta = vector(1.0, 2.0)
    problem = form([(draw(5, 2), draw(5, seed=1))], torch.zeros_like(theta), theta)
    step, free = bounded_step(problem, torch.ones(2).double(), theta, theta, theta)
    assert step.tolist() == [0.0, 0.0]
    assert not free.any()


def test_a_failed_factorisation_gives_no_step():
    theta = torch.zeros(2).double()
    problem = QR([(torch.zeros(3, 2).double(), torch.ones(3).double())], theta, theta)
    assert bounded_step(problem, theta, theta, theta - 1, theta + 1)[0] is None


# --- linear problems ---


class Line(nn.Module):
    """Linear in one vector of parameters; `matrices` makes it a weight matrix, which alpha penalizes."""

    def __init__(self, theta, *, matrices=False):
        super().__init__()
        self.theta = nn.Parameter(theta.reshape(1, -1) if matrices else theta)

    def forward(self, x):
        return x @ self.theta.reshape(-1)


def fit(module, x, y, *, steps=200, **keywords):
    """Run to the end and return the last result; every iterate must be in the box, and the loss may not rise."""
    optimizer = LevenbergMarquardt(module, **keywords)
    lower, upper = optimizer.box.lower, optimizer.box.upper
    for _ in range(steps):
        result = optimizer.step(x, y)
        theta = optimizer.function.vector()
        assert ((theta >= lower) & (theta <= upper)).all()
        assert result.loss <= result.initial_loss * (1 + 1e-12) + 1e-28
        if result.status != "running":
            break
    return result


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n_params=st.integers(1, 6), room=st.floats(0.01, 3), solver=st.sampled_from(SOLVERS))
def test_linear_problems_equal_lsq_linear(seed, n_params, room, solver):
    x, y = draw(12, n_params, seed=seed), 2 * draw(12, seed=seed + 1)
    lower, upper = -room * draw(n_params, seed=seed + 2).abs() - 0.01, room * draw(n_params, seed=seed + 3).abs() + 0.01
    module = Line(torch.zeros(n_params).double())
    result = fit(module, x, y, bounds={"theta": (lower, upper)}, solver=solver)
    oracle = optimize.lsq_linear(x.numpy(), y.numpy(), (lower.numpy(), upper.numpy()), method="bvls", tol=1e-14)
    assert result.status == "converged"
    assert result.loss * 12 == pytest.approx(oracle.cost, rel=1e-7)
    np.testing.assert_allclose(module.theta.detach().numpy(), oracle.x, atol=1e-4)  # sqrt of ftol


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("alpha", [0.5, 20.0])
def test_alpha_with_bounds_equals_lsq_linear_of_the_stacked_system(solver, alpha):
    x, y = draw(15, 4), draw(15, seed=1) * 3
    lower, upper = vector(-0.2, -INF, 0.0, -1), vector(0.1, INF, 0.3, 1)
    module = Line(torch.zeros(4).double(), matrices=True)
    bounds = {"theta": (lower[None], upper[None])}
    result = fit(module, x, y, bounds=bounds, solver=solver, alpha=alpha, ftol=None, xtol=None, steps=50)
    system = np.vstack([x, alpha**0.5 * np.eye(4)])
    oracle = optimize.lsq_linear(system, np.r_[y.numpy(), np.zeros(4)], (lower.numpy(), upper.numpy()), method="bvls")
    assert result.status == "converged"
    assert result.loss * 15 == pytest.approx(oracle.cost, rel=1e-10)
    np.testing.assert_allclose(module.theta.detach().numpy()[0], oracle.x, rtol=1e-7, atol=1e-7)


# --- curves against scipy ---


class Decay(nn.Module):
    def __init__(self, a=1.0, b=0.5, c=0.3):
        super().__init__()
        self.a = nn.Parameter(vector(a)[0])
        self.b = nn.Parameter(vector(b)[0])
        self.c = nn.Parameter(vector(c)[0])

    def forward(self, x):
        return self.a * torch.exp(-self.b * x) + self.c

    def values(self):
        return np.array([self.a.item(), self.b.item(), self.c.item()])


X = torch.linspace(0, 4, 40).double()
Y = 3 * torch.exp(-1.1 * X) + 0.7 + 0.05 * draw(40)


def oracle(bounds, start=(1.0, 0.5, 0.3), free=(True, True, True)):
    """Return scipy's bounded solution; parameters that are not `free` stay at the start."""
    free, start, x, y = np.array(free), np.array(start), X.numpy(), Y.numpy()
    sides = [[INF * sign if bounds.get(n, (None,) * 2)[i] is None else bounds[n][i] for n in "abc"]
             for i, sign in ((0, -1), (1, 1))]  # fmt: skip

    def full(p):
        theta = start.copy()
        theta[free] = p
        return theta

    def residual(p):
        a, b, c = full(p)
        return a * np.exp(-b * x) + c - y

    def jacobian(p):
        a, b, _ = full(p)
        return np.column_stack([np.exp(-b * x), -a * x * np.exp(-b * x), np.ones_like(x)])[:, free]

    limits = tuple(np.array(side, dtype=float)[free] for side in sides)
    inside = np.clip(start[free], limits[0] + 1e-6, limits[1] - 1e-6)
    found = optimize.least_squares(
        residual, inside, jacobian, limits, method="trf", ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=5000
    )
    return full(found.x), found.cost / len(x)


CASES = {
    "inside": {"a": (0, 10), "b": (0, 5), "c": (-1, None)},
    "on an upper bound": {"a": (0, 10), "b": (None, 0.9)},
    "on a lower bound": {"c": (0.1, 0.5), "b": (0.2, 3), "a": (0.5, None)},
    "on two bounds": {"a": (0, 2.5), "b": (0, 0.8)},
    "on two bounds, the start on one": {"a": (0, 2.5), "c": (0.3, 0.5)},
    "the start on a bound it leaves": {"a": (1.0, 10), "b": (0.5, 5), "c": (None, 2)},
}
by_case = pytest.mark.parametrize("case", CASES)


@by_case
@pytest.mark.parametrize("solver", ["auto", "cholesky", "svd"])
def test_bounded_curves_equal_scipy(case, solver):
    module = Decay()
    result = fit(module, X, Y, bounds=CASES[case], solver=solver, ftol=1e-15, xtol=1e-12)
    expected, cost = oracle(CASES[case])
    assert result.status == "converged"
    assert result.loss == pytest.approx(cost, rel=1e-9)
    np.testing.assert_allclose(module.values(), expected, rtol=1e-7)


@by_case
def test_bounded_curves_equal_scipy_at_the_default_tolerances(case):
    module = Decay()
    result = fit(module, X, Y, bounds=CASES[case])
    assert result.status == "converged"
    np.testing.assert_allclose(module.values(), oracle(CASES[case])[0], rtol=1e-7)
    assert result.cosine < 1e-7  # of the free ones


@by_case
@pytest.mark.parametrize("lr", [0.5, 1.5])
def test_bounded_curves_with_another_step_length(case, lr):
    module = Decay()
    result = fit(module, X, Y, bounds=CASES[case], lr=lr)
    assert result.status == "converged"
    np.testing.assert_allclose(module.values(), oracle(CASES[case])[0], rtol=1e-7)


@pytest.mark.parametrize("case", ["inside", "on two bounds"])
@pytest.mark.parametrize("damping", ["nielsen", "standard", "fletcher"])
def test_bounded_curves_with_every_damping(case, damping):
    module = Decay()
    assert fit(module, X, Y, bounds=CASES[case], damping=damping).status == "converged"
    np.testing.assert_allclose(module.values(), oracle(CASES[case])[0], rtol=1e-7)


@by_case
def test_bounded_curves_with_acceleration(case):
    module = Decay()
    assert fit(module, X, Y, bounds=CASES[case], acceleration=True).status == "converged"
    np.testing.assert_allclose(module.values(), oracle(CASES[case])[0], rtol=1e-7)


def test_a_half_step_to_a_bound_converges():
    """0.9 + 0.3 rounds to one bit below 1.2, and half of the last bit is no step."""
    x, y = X, 2 * torch.exp(-(((X - 1.8) / 0.8) ** 2))
    module = Decay()
    module.forward = lambda x: module.a * torch.exp(-(((x - module.b) / module.c) ** 2))
    with torch.no_grad():
        module.b.fill_(1.2)
        module.c.fill_(1.0)
    result = fit(module, x, y, bounds={"a": (0.9, 1.2), "b": (None, 1.5), "c": (0.9, 1.2)}, lr=0.5)
    assert result.status == "converged"
    assert module.a.item() == pytest.approx(1.2, rel=1e-9)


def test_equal_bounds_hold_a_parameter_to_the_bit():
    module = Decay()
    assert fit(module, X, Y, bounds={"b": (0.5, 0.5)}).status == "converged"
    assert module.b.item() == 0.5
    expected, _ = oracle({}, free=(True, False, True))
    np.testing.assert_allclose(module.values(), expected, rtol=1e-7)


def test_all_parameters_held_converge_at_once():
    module = Decay()
    result = fit(module, X, Y, bounds={"a": (1.0, 1.0), "b": (0.5, 0.5), "c": (0.3, 0.3)})
    assert (result.status, result.attempts, result.cosine) == ("converged", 0, 0.0)
    assert module.values().tolist() == [1.0, 0.5, 0.3]


def test_a_frozen_parameter_with_bounds_on_the_others():
    bounds = {"a": (0, 2.5), "c": (None, 0.8)}
    module = Decay()
    optimizer = LevenbergMarquardt(module, bounds=bounds)
    module.b.requires_grad_(False)
    for _ in range(50):
        result = optimizer.step(X, Y)
        assert 0 <= module.a.item() <= 2.5
        assert module.c.item() <= 0.8
        if result.status != "running":
            break
    assert result.status == "converged"
    assert module.b.item() == 0.5
    np.testing.assert_allclose(module.values(), oracle(bounds, free=(True, False, True))[0], rtol=1e-7)


@pytest.mark.parametrize("selection", ["layer", "random"])
def test_selection_with_bounds_stays_inside_and_fits(selection):
    x, y = draw(30, 2), draw(30, 1, seed=1) * 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    last = module[2]
    bounds = {"0.weight": (-1, 1), "0.bias": (-1, 1), "2.bias": (last.bias.item(), None), "2.weight": (None, 0.5)}
    frozen = last.bias.item()
    optimizer = LevenbergMarquardt(module, bounds=bounds, selection=selection, seed=0)
    losses = []
    for _ in range(40):
        losses.append(optimizer.step(x, y).loss)
        for layer in (module[0].weight, module[0].bias):
            assert float(layer.detach().abs().max()) <= 1
        assert last.bias.item() >= frozen
        assert float(last.weight.detach().max()) <= 0.5
    assert all(now <= before * (1 + 1e-12) for before, now in itertools.pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


def test_a_rejected_step_with_bounds_leaves_the_parameters_bitwise():
    """Rosenbrock's undamped first step, to (1, -3.84), raises the loss from 12.1 to 1171."""
    module = nn.Module()
    module.theta = nn.Parameter(vector(-1.2, 1.0))
    module.forward = lambda x: torch.where(x == 0, 10 * (module.theta[1] - module.theta[0] ** 2), 1 - module.theta[0])
    optimizer = LevenbergMarquardt(
        module, bounds={"theta": (-5, 5)}, damping=NielsenDamping(initial=1e-12), max_attempts=1
    )
    result = optimizer.step(vector(0.0, 1.0), vector(0.0, 0.0))
    assert not result.accepted
    assert result.gain_ratio < 0
    assert module.theta.tolist() == [-1.2, 1.0]
    assert result.loss == result.initial_loss


def test_bounds_as_float32_parameters():
    module = Decay().float()
    optimizer = LevenbergMarquardt(module, bounds=CASES["on two bounds"])
    for _ in range(100):
        result = optimizer.step(X.float(), Y.float())
        if result.status != "running":
            break
    assert result.status == "converged"
    assert module.a.dtype == torch.float32
    np.testing.assert_allclose(module.values(), oracle(CASES["on two bounds"])[0], rtol=1e-3)  # sqrt of float32's eps
    assert module.a.item() == 2.5


def test_bounds_are_copied_with_the_optimizer():
    module = Decay()
    optimizer = copy.deepcopy(LevenbergMarquardt(module, bounds={"a": (0, 2.5)}))
    for _ in range(30):
        optimizer.step(X, Y)
    assert optimizer.module.a.item() == 2.5
    assert module.a.item() == 1.0
