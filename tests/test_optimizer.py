"""`LevenbergMarquardt`: oracles are scipy, scikit-learn, torch.linalg.lstsq and repeated rows."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from torch import Tensor, nn

from sklm import LevenbergMarquardt
from sklm.engine import optimizer as optimizer_module
from sklm.engine import solvers
from sklm.engine.damping import MultiplicativeDamping, NielsenDamping, resolve_damping
from sklm.engine.losses import Cauchy, CrossEntropy, Huber, Loss, SoftL1, SquaredError, resolve_loss
from sklm.engine.selection import LayerSelection, RandomSelection

SOLVERS = ["auto", "cholesky", "qr", "svd"]
SCALINGS = ["more", "marquardt", "identity", "max"]


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def draw(*shape: int, seed: int | None = None) -> Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def net(n_in: int = 2, hidden: int = 4, n_out: int = 1, *, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, n_out)).double()


def run(optimizer: LevenbergMarquardt, *data, steps: int = 200):
    for _ in range(steps):
        result = optimizer.step(*data)
        if result.status != "running":
            break
    return result


def tiny(**keywords):
    """Practically undamped."""
    return NielsenDamping(initial=1e-15, **keywords)


def linear_solution(x: Tensor, y: Tensor, weights: Tensor | None = None, alpha: float = 0.0) -> Tensor:
    """Return [weight | bias] of shape (n_outputs, n_features + 1) by `torch.linalg.lstsq`; alpha not on the bias."""
    n_samples, n_features = x.shape
    root = torch.ones(n_samples).double() if weights is None else weights.sqrt()
    design = torch.cat([x, torch.ones(n_samples, 1).double()], 1) * root[:, None]
    ridge = torch.diag(torch.full((n_features + 1,), alpha**0.5).double())[:n_features]
    right = torch.cat([y * root[:, None], torch.zeros(n_features, y.shape[1]).double()])
    return torch.linalg.lstsq(torch.cat([design, ridge]), right, driver="gelsd").solution.T


# --- linear problems: one step ---


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_one_step_solves_a_linear_problem(solver, n_outputs, weighted, alpha):
    x, y = draw(12, 3), draw(12, n_outputs)
    weights = torch.rand(12).double() * 3 if weighted else None
    module = nn.Linear(3, n_outputs).double()
    optimizer = LevenbergMarquardt(module, damping=tiny(), solver=solver, alpha=alpha)
    result = optimizer.step(x, y, weights)
    expected = linear_solution(x, y, weights, alpha)
    torch.testing.assert_close(module.weight.detach(), expected[:, :-1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(module.bias.detach(), expected[:, -1], rtol=1e-9, atol=1e-10)
    assert result.accepted
    assert result.attempts == 1
    assert result.gain_ratio == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("n_samples", range(3, 10))
def test_linear_problems_of_every_height(solver, alpha, n_samples):
    """Around the square system, where rows are just as many as parameters (4), or one more."""
    x, y = draw(n_samples, 3, seed=n_samples), draw(n_samples, 1, seed=99)
    module = nn.Linear(3, 1).double()
    optimizer = LevenbergMarquardt(module, solver=solver, alpha=alpha, damping=NielsenDamping(initial=1e-12))
    for _ in range(6):
        result = optimizer.step(x, y)
    solution = linear_solution(x, y, alpha=alpha)
    residual = x @ solution[:, :-1].T + solution[:, -1] - y
    best = (residual.square().sum() + alpha * solution[:, :-1].square().sum()) / 2 / n_samples
    assert result.loss == pytest.approx(float(best), rel=1e-9, abs=1e-12)
    if n_samples > 3:
        tolerance = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(module.weight.detach(), solution[:, :-1], **tolerance)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 30.0])
def test_alpha_is_that_of_ridge(alpha):
    x, y, weights = draw(20, 4), draw(20, 2) + 3, torch.rand(20).double() + 0.1
    module = nn.Linear(4, 2).double()
    run(LevenbergMarquardt(module, alpha=alpha, damping=tiny(), ftol=None, xtol=None), x, y, weights)
    ridge = Ridge(alpha=alpha, tol=1e-12).fit(x.numpy(), y.numpy(), sample_weight=weights.numpy())
    np.testing.assert_allclose(module.weight.detach().numpy(), ridge.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(module.bias.detach().numpy(), ridge.intercept_, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("lr", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("initial", [1e-10, 0.1, 10.0])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_gain_ratio_is_one_on_a_quadratic(lr, initial, scaling, alpha):
    """The model is exact there: predicted = actual reduction."""
    x, y = draw(10, 3), draw(10, 2)
    module = nn.Linear(3, 2).double()
    damping = NielsenDamping(initial=initial, scaling=scaling)
    result = LevenbergMarquardt(module, lr=lr, damping=damping, alpha=alpha).step(x, y)
    assert result.gain_ratio == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("solver", ["cholesky", "qr", "svd"])
@pytest.mark.parametrize("lr", [0.5, 1.0, 1.7])
def test_predicted_reduction_is_that_of_the_quadratic_model(solver, lr):
    """actual / gain_ratio against m(0) - m(lr d), with J from autograd and d read off the parameters."""
    module, x, y, alpha, n = net(), draw(15, 2), draw(15, 1), 0.3, 15
    theta, parameters = flat(module), list(module.parameters())
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(o, parameters, retain_graph=True)])
        for o in module(x).reshape(-1)
    ]
    matrix = torch.stack(rows) / n**0.5
    residual = (module(x) - y).detach()[:, 0] / n**0.5
    penalty = torch.cat([torch.full((p.numel(),), alpha / n if p.ndim > 1 else 0.0).double() for p in parameters])
    optimizer = LevenbergMarquardt(module, lr=lr, alpha=alpha, solver=solver, damping=NielsenDamping(initial=3.0))
    result = optimizer.step(x, y)
    assert result.accepted
    step = flat(module) - theta

    def model(s: Tensor) -> Tensor:
        return ((residual + matrix @ s).square().sum() + (penalty * (theta + s).square()).sum()) / 2

    predicted = float(model(torch.zeros_like(step)) - model(step))
    actual = result.initial_loss - result.loss
    assert result.gain_ratio == pytest.approx(actual / predicted, rel=1e-8)


# --- minima against scipy ---


class Exponential(nn.Module):
    def __init__(self, a=1.0, b=0.5, c=0.0):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([a, b, c], dtype=torch.float64))

    def forward(self, x):
        a, b, c = self.theta
        return a * torch.exp(-b * x) + c

    @staticmethod
    def numpy(theta, x):
        return theta[0] * np.exp(-theta[1] * x) + theta[2]


class Peak(nn.Module):
    def __init__(self):
        super().__init__()
        self.height = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.center = nn.Parameter(torch.tensor(1.2, dtype=torch.float64))
        self.width = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x):
        return self.height * torch.exp(-(((x - self.center) / self.width) ** 2))

    @staticmethod
    def numpy(theta, x):
        return theta[0] * np.exp(-(((x - theta[1]) / theta[2]) ** 2))


def curve_data(curve):
    rng = np.random.default_rng(1)
    x = np.linspace(0, 4, 40)
    truth = {Exponential: (3.0, 1.1, 0.7), Peak: (2.0, 1.8, 0.8)}[curve]
    y = curve.numpy(truth, x) + 0.05 * rng.standard_normal(40)
    y[[5, 20, 33]] += [1.5, -1.0, 2.0]  # outliers, so that the losses differ
    return x, y


ROBUST = {"squared_error": SquaredError, "huber": Huber, "soft_l1": SoftL1, "cauchy": Cauchy}
SCIPY_NAME = {"squared_error": "linear", "huber": "huber", "soft_l1": "soft_l1", "cauchy": "cauchy"}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", ROBUST)
@pytest.mark.parametrize("curve", [Exponential, Peak])
def test_minimum_equals_scipy(curve, loss, solver):
    x, y = curve_data(curve)
    delta = 0.2
    module = curve()
    start = flat(module).numpy()
    fitted = optimize.least_squares(
        lambda t: curve.numpy(t, x) - y, start, loss=SCIPY_NAME[loss], f_scale=delta, xtol=1e-15, ftol=1e-15,
        gtol=1e-13, x_scale="jac", jac="3-point", max_nfev=2000,
    )  # fmt: skip
    criterion = SquaredError() if loss == "squared_error" else ROBUST[loss](delta=delta)
    optimizer = LevenbergMarquardt(module, criterion, solver=solver, ftol=1e-14, xtol=1e-13, gtol=1e-12)
    result = run(optimizer, torch.tensor(x), torch.tensor(y), steps=500)
    assert result.status == "converged"
    np.testing.assert_allclose(flat(module).numpy(), fitted.x, rtol=1e-6)
    assert result.loss == pytest.approx(fitted.cost / len(x), rel=1e-9)  # scipy: cost = f_scale^2 / 2 sum rho


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy"])
def test_sqrt_curvature_reaches_the_same_minimum(loss):
    x, y = map(torch.tensor, curve_data(Exponential))
    ends = []
    for curvature in ("ggn", "sqrt"):
        module = Exponential(2.5, 1.0, 0.5)
        optimizer = LevenbergMarquardt(module, ROBUST[loss](delta=0.2, curvature=curvature), ftol=None, xtol=None)
        run(optimizer, x, y, steps=1500)
        ends.append(flat(module))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_absolute_error_equals_linear_programming(solver):
    rng = np.random.default_rng(0)
    X, n = rng.standard_normal((31, 2)), 31
    y = X @ [1.0, -2.0] + 0.5 + rng.standard_t(2, n)
    design = np.column_stack([X, np.ones(n)])
    identity = np.eye(n)
    program = optimize.linprog(
        np.r_[np.zeros(3), np.ones(2 * n)],
        A_eq=np.column_stack([design, identity, -identity]),
        b_eq=y,
        bounds=[(None, None)] * 3 + [(0, None)] * (2 * n),
    )
    module = nn.Linear(2, 1).double()
    optimizer = LevenbergMarquardt(module, "absolute_error", solver=solver, ftol=None, xtol=None)
    result = run(optimizer, torch.tensor(X), torch.tensor(y), steps=300)
    assert result.loss == pytest.approx(program.fun / n, rel=1e-6)
    np.testing.assert_allclose(flat(module).numpy(), program.x[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_poisson_equals_scikit_learn(solver, weighted):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 2))
    y = rng.poisson(np.exp(X @ [0.5, -0.8] + 0.3)).astype(float)
    weights = rng.uniform(0.2, 2, 60) if weighted else None
    oracle = PoissonRegressor(alpha=0, tol=1e-10, max_iter=2000, solver="newton-cholesky").fit(X, y, weights)
    module = nn.Linear(2, 1).double()
    optimizer = LevenbergMarquardt(module, "poisson", solver=solver, ftol=None, xtol=None, gtol=1e-7)
    data = torch.tensor(X), torch.tensor(y), None if weights is None else torch.tensor(weights)
    assert run(optimizer, *data).status == "converged"
    np.testing.assert_allclose(flat(module).numpy(), [*oracle.coef_, oracle.intercept_], rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("curvature", ["ggn", "sqrt", "mc"])
def test_log_loss_equals_scikit_learn(solver, n_classes, curvature):
    """F = (1/W) sum l + alpha / (2 W) |w|^2: LogisticRegression with C = 1 / alpha."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 3))
    y = (X @ rng.standard_normal((3, n_classes)) + rng.gumbel(size=(80, n_classes))).argmax(1)
    alpha = 0.5
    logits = lambda t: X @ t[: 3 * n_classes].reshape(n_classes, 3).T + t[3 * n_classes :]  # noqa: E731

    def objective(t):
        f = logits(t)
        log_p = f - np.logaddexp.reduce(f, axis=1, keepdims=True)
        gradient = np.exp(log_p)
        gradient[np.arange(80), y] -= 1
        w = t[: 3 * n_classes]
        value = -log_p[np.arange(80), y].sum() + alpha / 2 * w @ w
        return value, np.r_[(gradient.T @ X).ravel() + alpha * w, gradient.sum(0)]

    oracle = optimize.minimize(
        objective, np.zeros(4 * n_classes), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000}
    )
    module = nn.Linear(3, n_classes).double()
    criterion = CrossEntropy(curvature=curvature)
    optimizer = LevenbergMarquardt(module, criterion, solver=solver, alpha=alpha, ftol=None, xtol=None, gtol=1e-9)
    result = run(optimizer, torch.tensor(X), torch.tensor(y), steps=1000)
    if n_classes == 3:
        sklearn = LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=10000).fit(X, y)
        np.testing.assert_allclose(oracle.x[:9].reshape(3, 3), sklearn.coef_, rtol=1e-4, atol=1e-5)
    assert result.loss == pytest.approx(oracle.fun / 80, rel=1e-8)
    np.testing.assert_allclose(module.weight.detach().numpy().ravel(), oracle.x[: 3 * n_classes], rtol=1e-4, atol=1e-5)


# --- the same step however it is computed ---


def one_step(x, y, *, n_out=1, hidden=4, monkeypatch=None, forced=None, **keywords):
    module = net(x.shape[1], hidden, n_out)
    optimizer = LevenbergMarquardt(module, seed=0, **keywords)
    if forced is not None:
        monkeypatch.setattr(optimizer_module, "choose_solver", lambda *_, **__: (forced, "forced"))
    result = optimizer.step(x, y)
    return flat(module), result


CLASSES = [solvers.Cholesky, solvers.DualCholesky, solvers.QR, solvers.SVD]


@pytest.mark.parametrize("n_samples", [4, 8, 9, 40], ids=["wide", "square_less", "one_more", "tall"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("alpha", [0.0, 0.8])
@pytest.mark.parametrize("n_out", [1, 2])
def test_all_forms_make_the_same_step(monkeypatch, n_samples, scaling, alpha, n_out):
    """The oracle solves the dense damped system with `numpy.linalg.lstsq`."""
    x, y = draw(n_samples, 2, seed=1), draw(n_samples, n_out, seed=2)
    module = net(2, 2, n_out)
    parameters, theta, n = list(module.parameters()), flat(module), n_samples
    outputs = module(x)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(o, parameters, retain_graph=True)])
        for o in outputs.reshape(-1)
    ]
    A, r = torch.stack(rows).numpy() / n**0.5, (outputs - y).detach().reshape(-1).numpy() / n**0.5
    a = np.concatenate([np.full(p.numel(), alpha / n if p.ndim > 1 else 0.0) for p in parameters])
    h = (A**2).sum(0) + a
    D = {"more": h, "marquardt": h, "identity": np.ones_like(h), "max": np.full_like(h, h.max())}[scaling]
    for form in CLASSES:
        damping = NielsenDamping(initial=0.05, scaling=scaling)
        got, result = one_step(
            x, y, n_out=n_out, hidden=2, damping=damping, alpha=alpha, monkeypatch=monkeypatch, forced=form
        )
        assert result.accepted, form
        left = np.vstack([A, np.diag(np.sqrt(a)), np.diag(np.sqrt(result.damping * D))])
        right = np.r_[r, np.sqrt(a) * theta.numpy(), np.zeros(len(h))]
        expected = theta.numpy() - np.linalg.lstsq(left, right, rcond=None)[0]
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-8, atol=1e-10, err_msg=form.__name__)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(30, 1), (6, 1), (9, 2), (18, 1)], ids=["tall", "wide", "two_outputs", "one_more"])
@pytest.mark.parametrize("max_rows", [1, 2, 3, 7, "auto"], ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_chunked_equals_unchunked(solver, shape, max_rows, alpha):
    x, y = draw(shape[0], 2), draw(*shape)
    ends = []
    for rows in (None, max_rows):
        module = net(2, 4, shape[1])
        optimizer = LevenbergMarquardt(module, solver=solver, alpha=alpha, jacobian_max_rows=rows, seed=0)
        results = [optimizer.step(x, y) for _ in range(3)]
        ends.append((flat(module), results[-1].loss))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-7, atol=1e-9)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-9)


@pytest.mark.parametrize("max_rows", [1, 3])
@pytest.mark.parametrize("criterion", ["log_loss", "poisson", "huber", nn.MSELoss])
def test_chunked_equals_unchunked_for_losses(criterion, max_rows):
    x = draw(12, 2)
    y = torch.randint(3, (12,)) if criterion == "log_loss" else torch.randint(5, (12, 3)).double()
    ends = []
    for rows in (None, max_rows):
        module = net(2, 4, 3)
        optimizer = LevenbergMarquardt(module, criterion, jacobian_max_rows=rows)
        for _ in range(3):
            optimizer.step(x, y)
        ends.append(flat(module))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-10)


def test_dropout_does_not_depend_on_the_chunk():
    """`jacobian_max_rows` "changes no result beyond rounding", and "auto" depends on the free memory."""
    ends = []
    for rows in (None, 3):
        module = nn.Sequential(net(2, 6), nn.Dropout(0.5)).double()
        LevenbergMarquardt(module, jacobian_max_rows=rows, seed=0).step(draw(12, 2, seed=0), draw(12, 1, seed=1))
        ends.append(flat(module))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("criterion", ["squared_error", "huber", "absolute_error", "poisson", "log_loss"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_weights_equal_repeated_rows(solver, criterion, alpha):
    """alpha is divided by W, the sum of the weights, in both."""
    x = draw(14, 2)
    y = torch.randint(2, (14,)) if criterion == "log_loss" else torch.randint(4, (14, 2)).double()
    repeats = torch.tensor([1, 2, 0, 3, 1, 1, 2, 1, 0, 1, 4, 1, 2, 1])
    one, other = net(2, 3, 2), net(2, 3, 2)
    a = LevenbergMarquardt(one, criterion, solver=solver, alpha=alpha)
    b = LevenbergMarquardt(other, criterion, solver=solver, alpha=alpha)
    for _ in range(3):
        first = a.step(x, y, repeats.double())
        second = b.step(x.repeat_interleave(repeats, 0), y.repeat_interleave(repeats, 0))
        assert first.loss == pytest.approx(second.loss, rel=1e-9)
    torch.testing.assert_close(flat(one), flat(other), rtol=1e-6, atol=1e-8)


# --- acceptance ---


class Rosenbrock(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))

    def forward(self, x):
        a, b = self.theta
        return torch.where(x == 0, 10 * (b - a**2), 1 - a)


ROSENBROCK = torch.tensor([0.0, 1.0]).double(), torch.zeros(2).double()


def test_rosenbrock_is_solved():
    module = Rosenbrock()
    result = run(LevenbergMarquardt(module), *ROSENBROCK)
    assert result.status == "converged"
    assert flat(module).tolist() == pytest.approx([1, 1], abs=1e-7)


def test_a_rejected_step_leaves_the_parameters_bitwise():
    module = Rosenbrock()
    before = flat(module)
    optimizer = LevenbergMarquardt(module, damping=NielsenDamping(initial=1e-12), max_attempts=1)
    result = optimizer.step(*ROSENBROCK)
    assert not result.accepted
    assert result.gain_ratio < 0
    assert result.attempts == 1
    assert result.status == "running"
    assert result.message == "no step lowered the loss in 1 attempts"
    assert torch.equal(flat(module), before)
    assert result.loss == result.initial_loss
    assert optimizer.damping.value == pytest.approx(2e-12)
    assert run(optimizer, *ROSENBROCK, steps=500).loss < 1e-12


class Walled(Loss):
    """Squared error that is not finite away from the start."""

    def __init__(self, bad: float, radius: float):
        super().__init__()
        self.bad, self.radius = bad, radius

    def value(self, outputs, targets):
        value = (outputs - targets).square().sum(1) / 2
        return torch.where(outputs.abs().max() > self.radius, torch.full_like(value, self.bad), value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_trials_are_rejections(bad):
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(module.weight)
    x, y = torch.ones(3, 1).double(), torch.full((3, 1), 5.0).double()
    optimizer = LevenbergMarquardt(module, Walled(bad, 1.0), max_attempts=30)
    result = optimizer.step(x, y)
    assert result.accepted
    assert result.attempts > 1
    assert 0 < module.weight.item() <= 1
    stuck = LevenbergMarquardt(module, Walled(bad, module.weight.item()), max_attempts=2)
    before = flat(module)
    result = stuck.step(x, y)
    assert not result.accepted
    assert torch.equal(flat(module), before)
    assert math.isfinite(result.loss)


def test_damping_at_its_maximum_fails():
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(module.weight)
    damping = MultiplicativeDamping(initial=1e-3, maximum=0.1)
    optimizer = LevenbergMarquardt(module, Walled(math.nan, 0.0), damping=damping)
    result = optimizer.step(torch.ones(3, 1).double(), torch.ones(3, 1).double())
    assert result.status == "failed"
    assert result.message == "no step lowers the loss with damping at its maximum 0.1"
    assert module.weight.item() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_start_fails_and_touches_nothing(value):
    module = net()
    before, x = flat(module), draw(5, 2)
    x[2, 1] = value
    optimizer = LevenbergMarquardt(module)
    result = optimizer.step(x, torch.full((5, 1), value).double())
    assert result.status == "failed"
    assert "the loss is" in result.message
    assert result.attempts == 0
    assert torch.equal(flat(module), before)


class RootAtZero(nn.Module):
    """Finite outputs with an infinite derivative."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return self.theta.sqrt() * x


@pytest.mark.parametrize("solver", SOLVERS)
def test_non_finite_jacobian_fails_and_touches_nothing(solver):
    module = RootAtZero()
    result = LevenbergMarquardt(module, solver=solver).step(torch.ones(3).double(), torch.ones(3).double())
    assert result.status == "failed"
    assert result.message == "the Jacobian is not finite at the current parameters"
    assert module.theta.item() == 0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    damping=st.sampled_from(["nielsen", "standard", "fletcher"]),
    scaling=st.sampled_from(SCALINGS),
    solver=st.sampled_from(SOLVERS),
    criterion=st.sampled_from(["squared_error", "absolute_error", "huber", "soft_l1", "cauchy", "poisson", "log_loss"]),
    curvature=st.sampled_from(["ggn", "sqrt"]),
    lr=st.floats(0.01, 1.99),
    alpha=st.sampled_from([0.0, 0.3]),
    n_samples=st.integers(1, 30),
)
def test_the_loss_never_rises(seed, damping, scaling, solver, criterion, curvature, lr, alpha, n_samples):
    """The loss is computed here from the module itself, by the formula of F."""
    loss = resolve_loss(criterion, {"curvature": curvature})
    x = draw(n_samples, 2, seed=seed)
    y = draw(n_samples, 2, seed=seed + 1)
    if criterion == "poisson":
        y = y.exp().round()
    if criterion == "log_loss":
        y = (y[:, 0] > 0).long()
    module = net(2, 3, 2, seed=seed)
    optimizer = LevenbergMarquardt(
        module, loss, lr=lr, alpha=alpha, solver=solver, damping=resolve_damping(damping, {"scaling": scaling})
    )

    @torch.no_grad()
    def objective():
        penalty = sum(p.square().sum() for p in module.parameters() if p.ndim > 1) * alpha / 2 / n_samples
        return float(loss(module(x), y) + penalty)

    last = objective()
    for _ in range(6):
        before = flat(module)
        result = optimizer.step(x, y)
        now = objective()
        assert math.isfinite(now)
        assert now <= last * (1 + 1e-12) + 1e-300
        assert result.loss == pytest.approx(now, rel=1e-10)
        assert result.loss <= result.initial_loss
        assert result.accepted or torch.equal(flat(module), before)
        last = now


# --- geodesic acceleration ---


def steps_to_the_end(module, x, y, **keywords):
    optimizer = LevenbergMarquardt(module, **keywords)
    assert run(optimizer, x, y, steps=500).status == "converged"
    return optimizer.n_steps


@pytest.mark.parametrize("solver", SOLVERS)
def test_acceleration_solves_rosenbrock_in_fewer_steps(solver):
    counts = []
    for acceleration in (False, True):
        module = Rosenbrock()
        damping = NielsenDamping(initial=1.0)
        keywords = {"acceleration": acceleration, "solver": solver, "damping": damping}
        counts.append(steps_to_the_end(module, *ROSENBROCK, **keywords))
        assert flat(module).tolist() == pytest.approx([1, 1], abs=1e-7)
    assert counts[1] < counts[0]


@pytest.mark.parametrize("curve", [Exponential, Peak])
@pytest.mark.parametrize("loss", ROBUST)
def test_acceleration_reaches_the_same_minimum(curve, loss):
    x, y = map(torch.tensor, curve_data(curve))
    criterion = SquaredError() if loss == "squared_error" else ROBUST[loss](delta=0.2)
    ends = []
    for acceleration in (False, True):
        module = curve()
        steps_to_the_end(module, x, y, criterion=criterion, acceleration=acceleration, xtol=1e-13, gtol=1e-12)
        ends.append(flat(module))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-7, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("lr", [0.6, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_accelerated_step_is_that_of_the_explicit_matrices(solver, lr, weighted):
    """d and a from dense matrices, the second derivative from differences over a tenth of d."""
    x, y = map(torch.tensor, curve_data(Exponential))
    module = Exponential(2.0, 0.9, 0.4)
    share = torch.linspace(1, 3, 40).double() if weighted else torch.ones(40).double()
    theta, root = flat(module), (share / share.sum()).sqrt()

    def outputs(t):
        return t[0] * torch.exp(-t[1] * x) + t[2]

    A = root[:, None] * torch.autograd.functional.jacobian(outputs, theta)
    r = root * (outputs(theta) - y)
    optimizer = LevenbergMarquardt(
        module, lr=lr, solver=solver, acceleration=True, damping=NielsenDamping(initial=0.5, scaling="identity")
    )
    result = optimizer.step(x, y, share)
    assert result.accepted
    system = A.T @ A + result.damping * torch.eye(3).double()
    d = -torch.linalg.solve(system, A.T @ r)
    second = (outputs(theta + d / 10) - 2 * outputs(theta) + outputs(theta - d / 10)) * 100
    a = -torch.linalg.solve(system, A.T @ (root * second))
    hessians = [torch.autograd.functional.hessian(lambda t, i=i: outputs(t)[i], theta) for i in range(40)]
    exact = -torch.linalg.solve(system, A.T @ (root * torch.stack([d @ h @ d for h in hessians])))
    torch.testing.assert_close(a, exact, rtol=0.02, atol=0)
    assert float(a.norm()) > 1e-3 * float(d.norm())
    torch.testing.assert_close(flat(module), theta + lr * d + lr**2 / 2 * a, rtol=1e-9, atol=1e-11)


def test_a_large_acceleration_is_a_rejection():
    """At (-1.2, 1) the undamped step d = (2.2, -4.84) has a = (0, 2 d_1^2) = (0, 9.68): 2 |a| > 0.75 |d|."""
    module = Rosenbrock()
    before = flat(module)
    damping = NielsenDamping(initial=1e-12, scaling="identity")
    result = LevenbergMarquardt(module, acceleration=True, damping=damping, max_attempts=1).step(*ROSENBROCK)
    assert not result.accepted
    assert math.isnan(result.gain_ratio)
    assert torch.equal(flat(module), before)


@pytest.mark.parametrize("acceleration", [False, True])
def test_acceleration_changes_nothing_in_a_linear_problem(acceleration):
    x, y = draw(12, 3, seed=0), draw(12, 1, seed=1)
    module = nn.Linear(3, 1).double()
    LevenbergMarquardt(module, damping=tiny(), acceleration=acceleration).step(x, y)
    torch.testing.assert_close(module.weight.detach(), linear_solution(x, y)[:, :-1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("selection", [None, "random", "layer"])
def test_acceleration_of_a_network_never_raises_the_loss(selection):
    module, x, y = net(), draw(30, 2), draw(30, 1)
    optimizer = LevenbergMarquardt(module, acceleration=True, selection=selection, seed=0)
    first = None
    for _ in range(15):
        result = optimizer.step(x, y)
        first = result.initial_loss if first is None else first
        assert result.loss <= result.initial_loss
    assert result.loss < 0.9 * first
    assert optimizer.acceleration


def test_acceleration_with_a_frozen_parameter():
    class Rates(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.tensor(1.0).double()), nn.Parameter(torch.tensor(0.5).double())

        def forward(self, x):
            return self.a * torch.exp(-self.b * x)

    module, x = Rates(), torch.linspace(0, 4, 30).double()
    optimizer = LevenbergMarquardt(module, acceleration=True)
    module.a.requires_grad_(False)
    run(optimizer, x, torch.exp(-1.3 * x))
    assert module.a.item() == 1.0
    assert module.b.item() == pytest.approx(1.3, rel=1e-8)


class PlainExp(torch.autograd.Function):
    """No jvp and no vmap rule, and of the old form that `torch.func` refuses."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.exp())
        return x.exp()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class NewExp(torch.autograd.Function):
    """No jvp."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


@pytest.mark.parametrize("function", [PlainExp, NewExp])
def test_acceleration_does_without_forward_mode(function):
    class Custom(Exponential):
        def forward(self, x):
            a, b, c = self.theta
            return a * function.apply(-b * x) + c

    x, y = map(torch.tensor, curve_data(Exponential))
    custom, plain = Custom(), Exponential()
    optimizer = LevenbergMarquardt(custom, acceleration=True)
    run(optimizer, x, y)
    run(LevenbergMarquardt(plain, acceleration=True), x, y)
    torch.testing.assert_close(flat(custom), flat(plain), rtol=1e-9, atol=0)


def test_acceleration_is_kept_by_a_copy():
    assert copy.deepcopy(LevenbergMarquardt(net(), acceleration=True)).acceleration


# --- polish of curves ---


class TwoExponentials(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([2.0, 2.0, 1.0, 0.3], dtype=torch.float64))

    def forward(self, x):
        a, b, c, d = self.theta
        return a * torch.exp(-b * x) + c * torch.exp(-d * x)

    @staticmethod
    def numpy(theta, x):
        return theta[0] * np.exp(-theta[1] * x) + theta[2] * np.exp(-theta[3] * x)


def noisy(curve, truth, noise):
    x = np.linspace(0, 4, 60)
    return x, curve.numpy(truth, x) + noise * np.random.default_rng(3).standard_normal(60)


def scipy_minimum(module, x, y):
    """Return the minimum of `least_squares`, then the root of the gradient: the loss has half the digits."""

    def residual(t):
        return torch.func.functional_call(module, {"theta": t}, torch.tensor(x)) - torch.tensor(y)

    def half(t):
        return residual(t).square().sum() / 2

    def numpy(function):
        return lambda t: function(torch.tensor(t)).detach().numpy()

    fitted = optimize.least_squares(
        numpy(residual), flat(module).numpy(), numpy(lambda t: torch.autograd.functional.jacobian(residual, t)),
        x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=2000,
    )  # fmt: skip
    gradient = numpy(lambda t: torch.autograd.functional.jacobian(half, t))
    hessian = numpy(lambda t: torch.autograd.functional.hessian(half, t))
    root = optimize.root(gradient, fitted.x, jac=hessian, tol=1e-15).x
    np.testing.assert_allclose(root, fitted.x, rtol=1e-6)
    return root


LARGE_RESIDUALS = {
    "exponential": (Exponential, (3.0, 1.1, 0.7), 0.5),
    "exponential, noise as large": (Exponential, (3.0, 1.1, 0.7), 1.0),
    "two exponentials": (TwoExponentials, (2.0, 3.0, 1.0, 0.4), 0.02),
}
by_large_residual = pytest.mark.parametrize("name", LARGE_RESIDUALS)


@by_large_residual
def test_polished_parameters_equal_scipy_to_nine_digits(name):
    curve, truth, noise = LARGE_RESIDUALS[name]
    x, y = noisy(curve, truth, noise)
    module = curve()
    expected = scipy_minimum(module, x, y)
    result = run(LevenbergMarquardt(module), torch.tensor(x), torch.tensor(y))
    assert result.status == "converged"
    np.testing.assert_allclose(flat(module).numpy(), expected, rtol=1e-9)
    outputs = module(torch.tensor(x)).detach()
    torch.testing.assert_close(result.outputs[:, 0], outputs, rtol=0, atol=0)
    assert result.loss == pytest.approx(float((outputs - torch.tensor(y)).square().mean()) / 2, rel=1e-13)
    assert result.cosine < 1e-12


@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
def test_polished_parameters_do_not_depend_on_the_tolerances(tolerance):
    x, y = noisy(Exponential, (3.0, 1.1, 0.7), 0.5)
    module = Exponential()
    expected = scipy_minimum(module, x, y)
    tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), tolerance)
    assert run(LevenbergMarquardt(module, **tolerances), torch.tensor(x), torch.tensor(y)).status == "converged"
    np.testing.assert_allclose(flat(module).numpy(), expected, rtol=1e-9)


@by_large_residual
@pytest.mark.parametrize("lr", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("solver", ["auto", "svd"])
@pytest.mark.parametrize("acceleration", [False, True])
def test_the_loss_of_a_curve_never_rises_beyond_rounding(name, lr, solver, acceleration):
    curve, truth, noise = LARGE_RESIDUALS[name]
    x, y = map(torch.tensor, noisy(curve, truth, noise))
    module = curve()
    optimizer = LevenbergMarquardt(module, lr=lr, solver=solver, acceleration=acceleration)

    @torch.no_grad()
    def objective():
        return float((module(x) - y).square().mean()) / 2

    for _ in range(100):
        before, last = flat(module), objective()
        result = optimizer.step(x, y)
        assert objective() <= last * (1 + 1e-11)  # 1e3 eps in each of few polishing steps
        assert result.loss == pytest.approx(objective(), rel=1e-12)
        assert result.accepted or torch.equal(flat(module), before)
        if result.status != "running":
            break
    assert result.status == "converged"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("noise", [0.0, 0.1], ids=["exact", "noisy"])
def test_a_rank_deficient_curve_converges(dtype, solver, noise):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([1.0, 2.0], dtype=dtype))

        def forward(self, x):
            return self.theta[0] * self.theta[1] * x

    x = torch.linspace(0, 4, 40).double()
    y = 3 * x + noise * draw(40, seed=0)
    module = Product()
    result = run(LevenbergMarquardt(module, solver=solver), x.to(dtype), y.to(dtype), steps=60)
    slope = float(x @ y / (x @ x))
    assert result.status == "converged"
    assert float(flat(module).prod()) == pytest.approx(slope, rel=1e-7 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("solver", ["auto", "qr"])
def test_float32_curves_end_at_the_minimum(solver):
    x, y = noisy(Exponential, (3.0, 1.1, 0.7), 0.5)
    expected = scipy_minimum(Exponential(), x, y)
    module = Exponential().float()
    result = run(LevenbergMarquardt(module, solver=solver, acceleration=True), torch.tensor(x).float(), torch.tensor(y))
    assert result.status == "converged"
    assert result.outputs.dtype == torch.float32
    np.testing.assert_allclose(flat(module).numpy(), expected, rtol=1e-3)  # sqrt of float32's eps


@pytest.mark.parametrize("curve", [Exponential, TwoExponentials])
def test_exact_data_converge(curve):
    truth = (3.0, 1.1, 0.7) if curve is Exponential else (2.0, 3.0, 1.0, 0.4)
    module, x = curve(), torch.linspace(0, 4, 60).double()
    result = run(LevenbergMarquardt(module), x, torch.tensor(curve.numpy(truth, x.numpy())))
    assert result.status == "converged"
    assert sorted(flat(module).tolist()) == pytest.approx(sorted(truth), rel=1e-10)


def test_a_flat_valley_is_not_a_minimum():
    """With steps this small `ftol` passes at once, and an undamped step from here raises the loss."""
    module = Rosenbrock()
    damping = NielsenDamping(initial=1e6, scaling="identity")
    optimizer = LevenbergMarquardt(module, ftol=0.1, damping=damping)
    first = optimizer.step(*ROSENBROCK)
    assert first.loss > 0.9 * first.initial_loss
    assert first.status == "running"
    assert run(optimizer, *ROSENBROCK, steps=500).status == "converged"
    assert flat(module).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_accepted_says_whether_polishing_moved_the_parameters():
    """A loose `gtol` passes before the first attempt."""
    x, y = map(torch.tensor, noisy(Exponential, (3.0, 1.1, 0.7), 0.5))
    module = Exponential(2.8, 0.97, 0.65)
    before = flat(module)
    result = LevenbergMarquardt(module, gtol=0.5).step(x, y)
    assert result.status == "converged"
    assert result.attempts == 0
    assert result.accepted is not torch.equal(flat(module), before)


def test_cosine_is_that_of_the_explicit_jacobian():
    x, y = map(torch.tensor, curve_data(Peak))
    module = Peak()
    outputs = module(x)
    columns = torch.stack([torch.cat([g.reshape(-1) for g in torch.autograd.grad(o, list(module.parameters()),
                           retain_graph=True)]) for o in outputs])  # fmt: skip
    residual = (outputs - y).detach()
    expected = torch.cosine_similarity(columns, residual[:, None].expand_as(columns), dim=0).abs().max()
    assert LevenbergMarquardt(module).step(x, y).cosine == pytest.approx(float(expected), rel=1e-12)


def test_cosine_of_a_failed_start_is_nan():
    result = LevenbergMarquardt(net()).step(torch.full((3, 2), math.nan).double(), draw(3, 1))
    assert math.isnan(result.cosine)


# --- degenerate problems ---


def dead_relu() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        module[0].bias[0] = -1e3
    return module


DEGENERATE = {
    "zero_loss": (lambda: net(), draw(8, 2, seed=0), None),
    "dead_relu": (dead_relu, draw(20, 2, seed=0), draw(20, 1, seed=1)),
    "duplicate_columns": (lambda: nn.Linear(4, 1).double(), draw(10, 2, seed=0).repeat(1, 2), draw(10, 1, seed=1)),
    "constant_inputs": (lambda: net(), torch.ones(10, 2).double(), draw(10, 1, seed=1)),
    "zero_inputs": (lambda: net(), torch.zeros(10, 2).double(), draw(10, 1, seed=1)),
    "one_sample": (lambda: net(), draw(1, 2, seed=0), draw(1, 1, seed=1)),
    "more_parameters_than_rows": (lambda: net(2, 30), draw(6, 2, seed=0), draw(6, 1, seed=1)),
    "huge_scale": (lambda: net(), draw(10, 2, seed=0) * 1e8, draw(10, 1, seed=1) * 1e10),
    "tiny_scale": (lambda: net(), draw(10, 2, seed=0) * 1e-8, draw(10, 1, seed=1) * 1e-10),
}


@pytest.mark.parametrize("damping", ["nielsen", "standard", "fletcher"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_problems_end_finite(case, solver, damping):
    make, x, y = DEGENERATE[case]
    module = make()
    y = module(x).detach() if y is None else y
    result = run(LevenbergMarquardt(module, solver=solver, damping=damping), x, y, steps=40)
    assert torch.isfinite(flat(module)).all()
    assert math.isfinite(result.loss)
    assert torch.isfinite(result.outputs).all()
    assert result.loss <= float((y - make()(x).detach()).square().mean()) * 10 or case == "dead_relu"
    if case == "zero_loss":
        assert result.status == "converged"
        assert result.loss == 0
    if case == "duplicate_columns":
        solution = linear_solution(x, y)
        best = (x @ solution[:, :-1].T + solution[:, -1] - y).square().mean() / 2
        assert result.loss == pytest.approx(float(best), rel=1e-6)


@pytest.mark.parametrize("tests", [{}, {"gtol": None, "ftol": None, "xtol": None}], ids=["tests", "no_tests"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_loss_and_zero_parameters(solver, tests):
    module = nn.Linear(2, 1).double()
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    result = LevenbergMarquardt(module, solver=solver, **tests).step(draw(4, 2), torch.zeros(4, 1).double())
    assert result.loss == 0
    assert flat(module).tolist() == [0.0] * 3


# --- stopping tests ---


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("gtol", r"the scaled gradient \S+ is at most gtol=1e-06"),
        ("ftol", r"the relative reduction of the loss \S+ is at most ftol=1e-06"),
        ("xtol", r"the relative step \S+ is at most xtol=1e-06"),
    ],
)
def test_each_test_ends_a_run(only, message):
    x, y = map(torch.tensor, curve_data(Exponential))
    tolerances = {"ftol": None, "xtol": None, "gtol": None, only: 1e-6}
    module = Exponential()
    result = run(LevenbergMarquardt(module, **tolerances), x, y)
    assert result.status == "converged"
    assert re.fullmatch(message, result.message), result.message
    fitted = optimize.least_squares(lambda t: Exponential.numpy(t, x.numpy()) - y.numpy(), [1, 0.5, 0], xtol=1e-15)
    np.testing.assert_allclose(flat(module).numpy(), fitted.x, rtol=1e-3)


def test_gradient_test_value_is_the_largest_cosine():
    x, y = draw(9, 3), draw(9, 1)
    module = nn.Linear(3, 1).double()
    residual = (module(x) - y).detach()[:, 0]
    columns = torch.cat([x, torch.ones(9, 1).double()], 1)
    cosine = float(((columns.T @ residual) / columns.norm(dim=0) / residual.norm()).abs().max())
    result = LevenbergMarquardt(module, gtol=0.9999).step(x, y)
    assert result.message == f"the scaled gradient {cosine:.2g} is at most gtol=0.9999"
    assert result.attempts == 0
    assert not result.accepted


def test_no_tests_no_end():
    module = nn.Linear(2, 1).double()
    optimizer = LevenbergMarquardt(module, ftol=None, xtol=None, gtol=None)
    x, y = draw(9, 2), draw(9, 1)
    assert [optimizer.step(x, y).status for _ in range(5)] == ["running"] * 5


# --- a sampled curvature ---


def sampled_problem(optimizer, data):
    with torch.no_grad():
        return optimizer._linearize(optimizer._at(*optimizer._evaluate(*data), None)).problem


@pytest.mark.parametrize("solver", ["cholesky", "qr"])
def test_sampled_curvature_is_unbiased_and_its_gradient_exact(solver):
    """Weighted; over 400 steps the mean is within 5 of its standard errors, those of the draws themselves."""
    module = net(n_in=3, n_out=4)
    data = draw(60, 3), torch.arange(60) % 4, torch.rand(60, generator=torch.Generator().manual_seed(1)).double()
    exact = sampled_problem(LevenbergMarquardt(module, CrossEntropy(), alpha=0.1, solver="cholesky"), data)
    optimizer = LevenbergMarquardt(module, CrossEntropy(curvature="mc"), alpha=0.1, solver=solver, seed=0)
    curvatures = []
    for optimizer.n_steps in range(400):
        problem = sampled_problem(optimizer, data)
        curvatures.append(problem.curvature if solver == "cholesky" else problem.triangle.T @ problem.triangle)
        torch.testing.assert_close(problem.gradient, exact.gradient, rtol=1e-9, atol=1e-12)
        assert problem.residual_norm == pytest.approx(exact.residual_norm, rel=1e-9)
    draws = torch.stack(curvatures)
    error = draws.std(0) / 400**0.5
    assert bool(((draws.mean(0) - exact.curvature).abs() <= 5 * error + 1e-12).all())
    step = problem.solve(torch.full_like(problem.gradient, 0.3))
    matrix = curvatures[-1] + 0.3 * torch.eye(len(step)).double()
    torch.testing.assert_close(step, -torch.linalg.solve(matrix, exact.gradient), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", ["cholesky", "qr", "svd"])
def test_sampled_step_within_bounds(solver):
    """Restricted to some parameters the problem is that of the explicit matrices."""
    module = net(n_in=3, n_out=4)
    data = draw(60, 3), torch.arange(60) % 4
    optimizer = LevenbergMarquardt(module, CrossEntropy(curvature="mc"), alpha=0.1, solver=solver, seed=0)
    problem = sampled_problem(optimizer, data)
    matrix = problem.curvature if solver == "cholesky" else problem.triangle.T @ problem.triangle
    free = torch.arange(len(matrix)) % 3 > 0
    moved = torch.where(free, 0.0, draw(1, len(matrix))[0])
    part = problem.restrict(free, moved)
    right = (problem.gradient + matrix @ moved)[free]
    expected = -torch.linalg.solve(matrix[free][:, free] + 0.2 * torch.eye(int(free.sum())).double(), right)
    torch.testing.assert_close(part.solve(torch.full_like(right, 0.2)), expected, rtol=1e-8, atol=1e-10)


def test_sampled_curvature_does_not_depend_on_chunks():
    data = draw(60, 3), torch.arange(60) % 4
    for alpha, n_in in ((0.1, 3), (0.0, 40)):  # the normal equations, and the dual form
        data = draw(60, n_in), torch.arange(60) % 4
        ends = []
        for max_rows in (None, 14):
            module = net(n_in=n_in, n_out=4)
            keywords = {"alpha": alpha, "solver": "cholesky", "seed": 5, "jacobian_max_rows": max_rows}
            optimizer = LevenbergMarquardt(module, CrossEntropy(curvature="mc"), **keywords)
            losses = [optimizer.step(*data).loss for _ in range(3)]
            ends.append(losses)
            assert losses == sorted(losses, reverse=True)
        np.testing.assert_allclose(*ends, rtol=1e-8)


def test_sampled_curvature_with_conjugate_gradients_is_that_of_gauss_newton():
    data = draw(60, 3), torch.arange(60) % 4
    ends = []
    for curvature in ("ggn", "mc"):
        module = net(n_in=3, n_out=4)
        optimizer = LevenbergMarquardt(module, CrossEntropy(curvature=curvature), solver="cg", seed=0)
        ends.append([optimizer.step(*data).loss for _ in range(3)])
    assert ends[0] == ends[1]


# --- state ---


def dropout_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 1)).double()


RESUMED = {
    "plain": (net, {}),
    "random_selection": (net, {"selection": "random"}),
    "layer_selection": (net, {"selection": LayerSelection(order="random")}),
    "dropout": (dropout_net, {}),
    "dropout_and_selection": (dropout_net, {"selection": RandomSelection(subset_size=5)}),
    "standard": (net, {"damping": "standard", "lr": 0.5, "alpha": 0.1}),
    "more": (net, {"damping": NielsenDamping(scaling="more")}),
    "sampled": (lambda: net(n_out=3), {"criterion": CrossEntropy(curvature="mc")}),
    "chunks": (lambda: net(n_out=2).float(), {"jacobian_max_rows": 7}),
}


def through_torch_save(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_resumes_bit_for_bit(case, how):
    make, keywords = RESUMED[case]
    x, y = draw(20, 2), torch.arange(20) % 3 if case == "sampled" else draw(20, 1)
    if case == "chunks":  # in float32, where rounding shows in which chunks the outputs were computed
        x, y = draw(300, 2).float(), draw(300, 2).float()
    optimizer = LevenbergMarquardt(make(), seed=1, **keywords)
    for _ in range(3):
        optimizer.step(x, y)
    if how == "state_dict":
        module = make()
        module.load_state_dict(through_torch_save(optimizer.module.state_dict()))
        other = LevenbergMarquardt(module, seed=77, **keywords)
        other.load_state_dict(through_torch_save(optimizer.state_dict()))
    else:
        other = pickle.loads(pickle.dumps(optimizer)) if how == "pickle" else copy.deepcopy(optimizer)  # noqa: S301
        assert other.module is not optimizer.module
    torch.rand(5)  # the global generator plays no part
    for _ in range(4):
        one, two = optimizer.step(x, y), other.step(x, y)
        assert (one.loss, one.damping, one.attempts) == (two.loss, two.damping, two.attempts)
        assert torch.equal(flat(optimizer.module), flat(other.module))


def test_outputs_of_a_step_may_be_changed():
    x, y = draw(20, 2), draw(20, 1)
    one, two = (LevenbergMarquardt(net(), seed=1) for _ in range(2))
    for _ in range(5):
        result, same = one.step(x, y), two.step(x, y)
        assert result.loss == same.loss
        result.outputs.sub_(y)


def test_damping_stays_below_its_maximum_on_small_batches():
    x, y = draw(20, 3), draw(20, 1)
    damping = NielsenDamping(initial=1e-4, maximum=1e-4)
    optimizer = LevenbergMarquardt(
        nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 1)).double(), damping=damping
    )
    assert optimizer.step(x[:10], y[:10], fresh=(x[10:], y[10:])).damping <= 1e-4


def test_a_scripted_module():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(copy.deepcopy(plain))
    x, y = draw(20, 2), draw(20, 1)
    one, two = (LevenbergMarquardt(module, jacobian="functional") for module in (plain, scripted))
    auto = LevenbergMarquardt(copy.deepcopy(scripted))
    for _ in range(3):
        loss = one.step(x, y).loss
        assert two.step(x, y).loss == pytest.approx(loss, rel=1e-9)
        assert auto.step(x, y).loss == pytest.approx(loss, rel=1e-9)


def test_state_dict_is_a_snapshot():
    optimizer = LevenbergMarquardt(net(), damping=NielsenDamping(scaling="more"))
    x, y = draw(20, 2), draw(20, 1)
    optimizer.step(x, y)
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    optimizer.step(x, y * 100)
    assert state["levenberg_marquardt"]["n_steps"] == 1
    for name, value in kept["levenberg_marquardt"]["damping"].items():
        now = state["levenberg_marquardt"]["damping"][name]
        assert torch.equal(now, value) if isinstance(value, Tensor) else now == value


def test_a_loss_of_the_caller_that_changes_later_is_not_the_one_of_the_optimizer():
    x, y = draw(20, 2), draw(20)
    loss = Huber(delta=0.5)
    changed, kept = (LevenbergMarquardt(nn.Linear(2, 1).double(), given) for given in (loss, Huber(delta=0.5)))
    kept.module.load_state_dict(changed.module.state_dict())
    for _ in range(3):
        found, expected = changed.step(x, y), kept.step(x, y)
        loss.delta *= 2
        assert found.loss == expected.loss


def test_the_damping_instance_of_the_caller_is_not_changed():
    damping = NielsenDamping(initial=0.5)
    before = damping.state_dict()
    LevenbergMarquardt(net(), damping=damping).step(draw(9, 2), draw(9, 1))
    assert damping.state_dict() == before


def test_same_seed_same_run():
    x, y = draw(20, 2), draw(20, 1)
    ends = []
    for seed in (4, 4, 5):
        module = dropout_net()
        optimizer = LevenbergMarquardt(module, seed=seed, selection="random")
        for _ in range(3):
            optimizer.step(x, y)
        ends.append(flat(module))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


# --- a torch optimizer ---


def test_learning_rate_schedulers_work():
    module = nn.Linear(2, 1).double()
    optimizer = LevenbergMarquardt(module, lr=1.0, damping=tiny())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    x, y = draw(10, 2), draw(10, 1)
    solution = linear_solution(x, y)
    target = torch.cat([solution[0, :2], solution[0, 2:]])
    optimizer.step(x, y)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    with torch.no_grad():
        module.weight.zero_()
        module.bias.zero_()
    optimizer.step(x, y)  # half of the way from zero
    torch.testing.assert_close(flat(module), target / 2, rtol=1e-8, atol=1e-9)
    assert isinstance(optimizer, torch.optim.Optimizer)
    optimizer.zero_grad()


@pytest.mark.parametrize("selection", ["random", "layer", RandomSelection(subset_size=3)], ids=["half", "layer", "3"])
def test_only_selected_parameters_move(selection):
    module = net()
    optimizer = LevenbergMarquardt(module, selection=selection, seed=2)
    x, y = draw(20, 2), draw(20, 1)
    moved = torch.zeros(17, dtype=torch.bool)
    for step in range(8):
        generator = torch.Generator().manual_seed(2 + step)
        chosen = optimizer.selection.select(optimizer.function.sizes, step, generator)
        before = flat(module)
        assert optimizer.step(x, y).accepted
        differs = flat(module) != before
        assert set(differs.nonzero()[:, 0].tolist()) == set(chosen.tolist())
        moved |= differs
    assert moved.all() or selection not in ("layer",)


@pytest.mark.parametrize("selection", [None, "random"])
def test_frozen_after_construction_stays(selection):
    module = net()
    optimizer = LevenbergMarquardt(module, selection=selection, seed=0)
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone(), module[2].weight.clone()
    x, y = draw(20, 2), draw(20, 1)
    for _ in range(4):
        optimizer.step(x, y)
    assert torch.equal(module[0].weight, before[0])
    assert not torch.equal(module[2].weight, before[1])


def test_frozen_parameters_are_not_moved_and_the_rest_is_optimal():
    module = nn.Linear(2, 1).double()
    module.weight.requires_grad_(False)
    x, y = draw(9, 2), draw(9, 1)
    weight = module.weight.clone()
    LevenbergMarquardt(module, damping=tiny()).step(x, y)
    assert torch.equal(module.weight, weight)
    assert module.bias.item() == pytest.approx((y - x @ weight.T).mean().item(), rel=1e-10)


def test_everything_frozen_after_construction():
    module = net()
    optimizer = LevenbergMarquardt(module)
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="all parameters of `module` are frozen"):
        optimizer.step(draw(4, 2), draw(4, 1))


def test_a_frozen_layer_is_left_out_of_layer_selection():
    module = net()
    optimizer = LevenbergMarquardt(module, selection="layer")
    module[0].requires_grad_(False)
    x, y = draw(20, 2), draw(20, 1)
    for _ in range(4):
        assert math.isfinite(optimizer.step(x, y).loss)


class SharedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2).double()
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_a_layer_used_twice_keeps_its_parameters():
    module = SharedLayer()
    weight, bias = module.first.weight, module.first.bias
    x, y = draw(20, 2), draw(20, 2)
    result = LevenbergMarquardt(module).step(x, y)
    assert module.first.weight is weight
    assert module.first.bias is bias
    assert isinstance(module.second.weight, nn.Parameter)
    assert float((module(x).detach() - y).square().sum()) / 40 == pytest.approx(result.loss, rel=1e-12)


# --- randomness and modes ---


def test_global_state_is_untouched():
    module = dropout_net()
    optimizer = LevenbergMarquardt(module, selection="random")
    x, y, weights = draw(20, 2), draw(20, 1), torch.rand(20).double()
    copies = x.clone(), y.clone(), weights.clone()
    state, dtype, threads = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].copy()
    optimizer.step(x, y, weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.get_default_dtype() == dtype
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip((x, y, weights), copies, strict=True))
    assert all(m.training for m in module.modules())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_random_state_is_untouched_by_an_error():
    optimizer = LevenbergMarquardt(dropout_net())
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="one target per output"):
        optimizer.step(draw(5, 2, seed=0), draw(4, 1, seed=0))
    assert torch.equal(torch.get_rng_state(), state)


class LinearDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(3, 1).double()

    def forward(self, x):
        return self.linear(self.dropout(x))


@pytest.mark.parametrize("max_rows", [None, 2])
def test_dropout_has_one_mask_per_step(max_rows):
    """Linear given the mask: with one mask for residual, Jacobian and trial the gain ratio of a step is exactly 1."""
    module = LinearDropout()
    optimizer = LevenbergMarquardt(module, jacobian_max_rows=max_rows, damping=tiny())
    x, y = draw(30, 3), draw(30, 1)
    for _ in range(4):
        result = optimizer.step(x, y)
        assert result.gain_ratio == pytest.approx(1, abs=1e-7)
        assert result.loss == pytest.approx(float((result.outputs - y).square().mean()) / 2, rel=1e-12)
    module.eval()
    result = optimizer.step(x, y)
    assert result.loss == pytest.approx(float((module(x).detach() - y).square().mean()) / 2, rel=1e-12)
    torch.testing.assert_close(module.linear.weight.detach(), linear_solution(x, y)[:, :-1], rtol=1e-6, atol=1e-8)


class BranchingDropout(LinearDropout):
    def forward(self, x):
        x = self.dropout(x)
        return torch.stack([self.linear(row) if row.sum() > -1e9 else row[:1] for row in x])


@pytest.mark.parametrize("max_rows", [None, 2])
def test_dropout_has_one_mask_where_vmap_fails(max_rows):
    optimizer = LevenbergMarquardt(BranchingDropout(), jacobian_max_rows=max_rows, damping=tiny())
    result = optimizer.step(draw(30, 3), draw(30, 1))
    assert result.gain_ratio == pytest.approx(1, abs=1e-7)


def test_batchnorm_keeps_statistics_and_mode():
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    module(draw(30, 2) * 3)
    before = {name: value.clone() for name, value in module.named_buffers()}
    x, y = draw(20, 2), draw(20, 1)
    optimizer = LevenbergMarquardt(module)
    result = run(optimizer, x, y, steps=5)
    assert len(before) == 3
    for name, value in module.named_buffers():
        assert torch.equal(value, before[name]), name
    assert module.training
    assert module[1].training
    module.eval()
    assert result.loss == pytest.approx(float((module(x).detach() - y).square().mean()) / 2, rel=1e-12)


def test_batchnorm_without_statistics_raises():
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1)).double()
    before = flat(module)
    with pytest.raises(ValueError, match="track_running_stats=False mixes the samples"):
        LevenbergMarquardt(module).step(draw(5, 2), draw(5, 1))
    assert torch.equal(flat(module), before)


# --- fresh batches ---


def test_fresh_batch_judges_a_wide_step():
    """A batch of 3 rows can be fitted exactly; a contradicting second batch makes the mean reduction negative."""
    module = net(2, 8)
    before, x, y = flat(module), draw(3, 2), draw(3, 1) * 5
    optimizer = LevenbergMarquardt(module, damping=tiny())
    result = optimizer.step(x, y, fresh=(x, -y * 10))
    assert not result.accepted
    assert result.attempts == 1
    assert torch.equal(flat(module), before)
    agreeing = LevenbergMarquardt(module).step(x, y, fresh=(x, y))
    assert agreeing.accepted
    assert agreeing.attempts == 1


def test_fresh_gain_ratio_is_the_mean_reduction():
    def loss(x, y):
        return float((module(x).detach() - y).square().mean()) / 2

    module = net(2, 8)
    x, y, z, t = draw(3, 2), draw(3, 1), draw(4, 2), draw(4, 1)
    first = loss(x, y), loss(z, t)
    keywords = {"damping": NielsenDamping(initial=10.0), "seed": 0}
    alone = LevenbergMarquardt(copy.deepcopy(module), **keywords).step(x, y)
    predicted = (alone.initial_loss - alone.loss) / alone.gain_ratio
    result = LevenbergMarquardt(module, **keywords).step(x, y, fresh=(z, t))
    assert result.accepted
    mean = (first[0] - loss(x, y) + first[1] - loss(z, t)) / 2
    assert result.gain_ratio == pytest.approx(mean / predicted, rel=1e-8)


def test_fresh_is_not_used_by_tall_batches():
    x, y = draw(30, 2), draw(30, 1)
    one, other = net(), net()
    LevenbergMarquardt(one).step(x, y)
    LevenbergMarquardt(other).step(x, y, fresh=(x, -y * 100))
    assert torch.equal(flat(one), flat(other))


# --- nested data and custom losses ---


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 1).double(), nn.Linear(3, 1).double()

    def forward(self, a, b):
        return torch.cat([self.left(a), self.right(b["deep"][0])], 1)


class Masked(Loss):
    """Targets are a dict: values with a mask of those that count."""

    def value(self, outputs, targets):
        return (targets["mask"] * (outputs - targets["parts"][0])).square().sum(1) / 2


class MaskedByHand(Masked):
    def ggn(self, outputs, targets):
        mask = targets["mask"]
        return mask * (outputs - targets["parts"][0]), torch.diag_embed(mask)


@pytest.mark.parametrize("form", [tuple, dict])
@pytest.mark.parametrize("loss", [Masked, MaskedByHand])
def test_nested_inputs_and_targets(form, loss):
    a, b, y = draw(20, 2), draw(20, 3), draw(20, 2)
    mask = (torch.rand(20, 2) > 0.3).double()
    inputs = (a, {"deep": (b,)}) if form is tuple else {"b": {"deep": (b,)}, "a": a}
    module = TwoHeads()
    optimizer = LevenbergMarquardt(module, loss(), ftol=None, xtol=None, gtol=1e-11)
    run(optimizer, inputs, {"mask": mask, "parts": (y,)}, steps=800)
    for x, head, column in ((a, module.left, 0), (b, module.right, 1)):
        solution = linear_solution(x, y[:, [column]], mask[:, column])
        torch.testing.assert_close(head.weight.detach(), solution[:, :-1], rtol=1e-5, atol=1e-6)


def test_float32():
    x, y = draw(30, 2).float(), draw(30, 1).float()
    module = net().float()
    optimizer = LevenbergMarquardt(module)
    result = run(optimizer, x, y, steps=60)
    assert flat(module).dtype == torch.float32
    assert result.outputs.dtype == torch.float32
    exact = net()
    LevenbergMarquardt(exact).step(x.double(), y.double())
    again = net().float()
    LevenbergMarquardt(again).step(x, y)
    torch.testing.assert_close(flat(again).double(), flat(exact), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("targets", [torch.float32, torch.int64])
def test_targets_of_another_dtype(targets):
    x, y = draw(10, 2), torch.arange(10).to(targets)
    module = nn.Linear(2, 1).double()
    LevenbergMarquardt(module, damping=tiny()).step(x, y)
    expected = linear_solution(x, torch.arange(10).double()[:, None])
    torch.testing.assert_close(module.weight.detach(), expected[:, :-1], rtol=1e-9, atol=1e-10)


# --- errors ---


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"lr": 0}, r"`lr` must be a finite number > 0 and < 2; got 0\."),
        ({"lr": 2.0}, "`lr` must be"),
        ({"lr": math.nan}, "`lr` must be"),
        ({"lr": "big"}, "`lr` must be"),
        ({"alpha": -1}, r"`alpha` must be a finite number >= 0; got -1\."),
        ({"alpha": math.inf}, "`alpha` must be"),
        ({"max_attempts": 0}, r"`max_attempts` must be an integer >= 1; got 0\."),
        ({"max_attempts": 2.5}, "`max_attempts` must be an integer >= 1"),
        ({"max_attempts": True}, "`max_attempts` must be an integer >= 1"),
        ({"jacobian_max_rows": 0}, r"`jacobian_max_rows` must be an integer >= 1; got 0\."),
        ({"jacobian_max_rows": "all"}, "`jacobian_max_rows` must be"),
        ({"solver": "choleski"}, "`solver` must be one of 'auto', .*did you mean 'cholesky'"),
        ({"solver": None}, "`solver` must be one of"),
        ({"damping": "nielson"}, "`damping` must be one of 'nielsen', .*did you mean 'nielsen'"),
        ({"damping": 0.1}, "`damping` must be one of"),
        ({"selection": "layers"}, "`selection` must be one of 'random', 'layer'.*did you mean 'layer'"),
        ({"selection": 3}, "`selection` must be one of"),
        ({"criterion": "square_error"}, "`criterion` must be one of.*did you mean 'squared_error'"),
        ({"criterion": None}, "`criterion` must be one of"),
        ({"criterion": nn.Linear(1, 1)}, "`criterion` must be a torch loss with a `reduction` attribute"),
        ({"ftol": -1e-3}, "`ftol` must be a finite number >= 0"),
        ({"xtol": "1e-8"}, "`xtol` must be a finite number >= 0"),
        ({"gtol": math.nan}, "`gtol` must be a finite number >= 0"),
        ({"seed": -1}, r"`seed` must be an integer >= 0; got -1\."),
        ({"seed": 1.5}, "`seed` must be an integer"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        LevenbergMarquardt(net(), **keywords)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Tanh(), "`module` has no trainable parameters"),
        (nn.Linear(1, 1).requires_grad_(False), "`module` has no trainable parameters"),
        (nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()), "must be float32 or all float64"),
    ],
    ids=["none", "frozen", "mixed"],
)
def test_bad_modules(module, message):
    with pytest.raises(ValueError, match=message):
        LevenbergMarquardt(module)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1, 1, 1, 1], "`weights` must be finite and >= 0 with a positive, finite sum"),
        ([1.0, math.nan, 1, 1, 1], "`weights` must be finite"),
        ([1.0, math.inf, 1, 1, 1], "`weights` must be finite"),
        ([0.0] * 5, "`weights` must be finite and >= 0 with a positive, finite sum"),
        ([1.0] * 4, "`weights` must have one number per sample; got 4 for 5 samples"),
        ([1.0] * 6, "`weights` must have one number per sample; got 6 for 5 samples"),
    ],
    ids=["negative", "nan", "inf", "zero", "short", "long"],
)
def test_bad_weights(weights, message):
    module = net()
    before = flat(module)
    with pytest.raises(ValueError, match=message):
        LevenbergMarquardt(module).step(draw(5, 2), draw(5, 1), torch.tensor(weights))
    assert torch.equal(flat(module), before)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(5, 2).double(), torch.zeros(4, 1), r"one target per output.*\(5, 1\).*\(4, 1\)"),
        (torch.zeros(5, 2).double(), torch.zeros(5, 2), "one target per output"),
        (torch.zeros(5, 2).double(), torch.zeros(1, 5), "one target per output"),
        (torch.zeros(0, 2).double(), torch.zeros(0, 1), "at least one sample"),
        ((torch.zeros(5, 2), torch.zeros(4, 2)), torch.zeros(5, 1), "same number of samples"),
        ("text", torch.zeros(5, 1), "must be tensors"),
        (None, torch.zeros(5, 1), "must be tensors"),
    ],
    ids=["rows", "outputs", "transposed", "empty", "lengths", "text", "none"],
)
def test_bad_data(inputs, targets, message):
    module = net()
    before = flat(module)
    with pytest.raises(ValueError, match=message):
        LevenbergMarquardt(module).step(inputs, targets)
    assert torch.equal(flat(module), before)


class Returning(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1).double())
        self.function = function

    def forward(self, x):
        return self.function(x * self.weight)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x, x), "`module` must return a tensor .*; got tuple"),
        (lambda x: x[:3], r"one row per sample.*returned shape \(3, 2\)"),
        (lambda x: x.sum(), r"one row per sample.*returned shape \(\)"),
    ],
    ids=["tuple", "rows", "scalar"],
)
def test_bad_outputs(function, message):
    with pytest.raises(ValueError, match=message):
        LevenbergMarquardt(Returning(function)).step(draw(5, 2), draw(5, 2))


@pytest.mark.parametrize("curvature", ["ggn", "nonsense"])
def test_curvature_a_loss_does_not_have(curvature):
    with pytest.raises(ValueError, match="criterion__curvature"):
        Masked(curvature=curvature)


def test_negative_losses_are_refused():
    class Negative(Loss):
        def value(self, outputs, targets):
            return (outputs - targets).sum(1) - 1e6

    module = net()
    before = flat(module)
    with pytest.raises(ValueError, match="needs a loss >= 0"):
        LevenbergMarquardt(module, Negative()).step(draw(5, 2), draw(5, 1))
    assert torch.equal(flat(module), before)


def test_a_first_step_does_not_import_the_compiler_of_torch():
    code = (
        "import sys, torch; from sklm import LevenbergMarquardt; x = torch.ones(9, 2).double();"
        "net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double();"
        "LevenbergMarquardt(net).step(x, x[:, 0]); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_second_derivative_of_rounding_is_none(dtype):
    """That of a line on a large offset is rounding, in float32 large beside the residuals."""

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            return 1e5 + (self.a + self.b * x)

    x = torch.linspace(0, 1, 50, dtype=dtype)
    y = 1e5 + (0.3 + 0.2 * x) + 0.05 * torch.sin(40 * x)
    losses = []
    for acceleration in (False, True):
        optimizer = LevenbergMarquardt(Line().to(dtype), acceleration=acceleration, damping=NielsenDamping(initial=0.1))
        losses.append([optimizer.step(x, y).loss for _ in range(4)])
    assert losses[0] == losses[1]


def test_acceleration_looks_at_nothing_outside_the_bounds():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.tensor(1.0).double()), nn.Parameter(torch.tensor(0.0).double())

        def forward(self, x):
            if bool((self.b.detach() < 0).any()):
                raise AssertionError("outside")
            return self.a * torch.exp(-self.b * x)

    x = torch.linspace(0, 4, 30).double()
    module = Root()
    result = run(LevenbergMarquardt(module, acceleration=True, bounds={"b": (0, 2)}), x, 3 * torch.exp(-1.3 * x))
    assert result.status == "converged"
    assert module.b.item() == pytest.approx(1.3, rel=1e-8)


@pytest.mark.parametrize("change", ["setting", "loss", "tensor"])
def test_another_loss_on_the_same_data(change):
    x, y = draw(30, 2), draw(30, 1)
    y[0] = 100
    optimizer = LevenbergMarquardt(
        nn.Linear(2, 1).double(), WeightedError() if change == "tensor" else Huber(delta=0.1)
    )
    for _ in range(3):
        optimizer.step(x, y)
    if change == "setting":
        optimizer.criterion.delta = 5.0
    elif change == "loss":
        optimizer.criterion = SquaredError()
    else:
        optimizer.criterion.weight.mul_(3)
    fresh = LevenbergMarquardt(copy.deepcopy(optimizer.module), optimizer.criterion)
    fresh.damping.load_state_dict(optimizer.damping.state_dict())
    found, expected = optimizer.step(x, y), fresh.step(x, y)
    assert (found.initial_loss, found.loss) == (expected.initial_loss, expected.loss)


class WeightedError(SquaredError):
    def __init__(self):
        super().__init__(curvature="sqrt")
        self.register_buffer("weight", torch.tensor(1.0))

    def value(self, outputs, targets):
        return self.weight * super().value(outputs, targets)

    def gradient(self, outputs, targets):
        return self.weight * super().gradient(outputs, targets)


@pytest.mark.parametrize("damping", ["nielsen", "fletcher", "standard"])
@pytest.mark.parametrize("scale", [1.0, 1e4])  # the first is a control
def test_saturated_logits_do_not_pass_for_a_minimum(scale, damping):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    y = (X.sum(1) + torch.randn(200, generator=generator, dtype=torch.float64) > 0).double()
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, y)
    expected = nn.BCELoss()(torch.as_tensor(reference.predict_proba(X)[:, 1]), y).item()
    for seed in range(3):
        torch.manual_seed(seed)
        optimizer = LevenbergMarquardt(nn.Linear(3, 1).double(), nn.BCEWithLogitsLoss(), damping=damping)
        for _ in range(300):
            result = optimizer.step(scale * X, y)
            if result.status != "running":
                break
        assert result.status == "converged"
        assert result.loss == pytest.approx(expected, rel=1e-6)


def test_inference_mode_of_the_caller_is_left_for_the_step():
    x = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
    optimizer = LevenbergMarquardt(nn.Linear(1, 1).double())
    with torch.inference_mode():
        y = 3 * x - 1
        result = [optimizer.step(x, y) for _ in range(3)][-1]
        assert torch.is_inference_mode_enabled()
        inside = nn.Linear(1, 1)
    assert result.loss < 1e-8
    with pytest.raises(ValueError, match=r"was made in torch\.inference_mode"):
        LevenbergMarquardt(inside)


def test_parameters_instead_of_the_module_are_refused():
    with pytest.raises(ValueError, match=r"`module` must be a torch.nn.Module, not its parameters\(\); got generator"):
        LevenbergMarquardt(nn.Linear(1, 1).parameters())


@pytest.mark.parametrize("settings", [{}, {"selection": "random"}, {"selection": "layer"}, {"solver": "cg"}])
def test_default_device_of_torch_does_not_matter(settings):
    x = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]

    def losses():
        torch.manual_seed(0)
        layers = nn.Linear(1, 3, device="cpu"), nn.Tanh(), nn.Linear(3, 1, device="cpu")
        optimizer = LevenbergMarquardt(nn.Sequential(*layers).double(), seed=0, **settings)
        return [optimizer.step(x, 3 * x - 1).loss for _ in range(3)]

    expected = losses()
    with torch.device("meta"):  # stands in for a GPU
        assert losses() == expected


@pytest.mark.parametrize("gtol", [1e-8, None])
def test_a_selection_without_influence_does_not_end_a_fit(gtol):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    nn.init.zeros_(module[2].weight)  # so the first layer, whose turn is first, does nothing
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    optimizer = LevenbergMarquardt(module, selection="layer", seed=0, gtol=gtol)
    results = [optimizer.step(x, torch.sin(3 * x)) for _ in range(20)]
    assert "failed" not in {result.status for result in results}
    assert not results[0].accepted
    assert results[-1].loss < 1e-2 * results[0].loss


def test_weights_whose_sum_overflows():
    x = torch.linspace(0, 1, 20)[:, None]
    with pytest.raises(ValueError, match="with a positive, finite sum"):
        LevenbergMarquardt(nn.Linear(1, 1)).step(x, x, torch.full((20,), 1e38))


@pytest.mark.parametrize("solver", ["cholesky", "qr", "svd"])
@pytest.mark.parametrize("n_samples", [20, 1])
def test_squares_that_underflow_are_no_convergence(solver, n_samples):
    x = torch.linspace(0.5, 1, n_samples)[:, None]
    module = nn.Linear(1, 1)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    result = LevenbergMarquardt(module, solver=solver).step(x, 1e-24 * (3 * x - 1))
    assert result.status == "failed"
    assert "squares of the residuals are too small for torch.float32" in result.message
    assert LevenbergMarquardt(module, solver=solver).step(x, 0 * x).status == "converged"  # this one is perfect


def test_representation_of_a_result_leaves_out_the_outputs():
    x = torch.linspace(0, 1, 20)[:, None]
    assert "tensor" not in repr(LevenbergMarquardt(nn.Linear(1, 1)).step(x, x))


class Shifts(nn.Linear):
    def forward(self, X):
        return super().forward(X.sub_(0.5))


@pytest.mark.parametrize(
    "module",
    [
        Shifts(3, 1),
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 1)),
        nn.Sequential(nn.Dropout(0.1, inplace=True), nn.Linear(3, 1)),
    ],
)
def test_modules_that_change_their_inputs_are_refused(module):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    with pytest.raises(ValueError, match="changes its inputs in place"):
        LevenbergMarquardt(module).step(x, x[:, :1])
    assert torch.equal(x, before)
    hidden = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    assert LevenbergMarquardt(hidden).step(x, x[:, :1]).accepted


def test_tensors_of_inference_mode():
    with torch.inference_mode():
        x = torch.linspace(0, 1, 20)[:, None]
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        LevenbergMarquardt(nn.Linear(1, 1)).step(x, x)


def test_the_state_of_another_optimizer_is_refused():
    module = nn.Linear(2, 1).double()
    state = torch.optim.SGD(module.parameters()).state_dict()
    with pytest.raises(ValueError, match=r"must come from LevenbergMarquardt.state_dict\(\); got one with state"):
        LevenbergMarquardt(module).load_state_dict(state)


def test_a_layer_that_changes_its_parameters_is_refused():
    with pytest.raises(ValueError, match="changes its parameters in forward: 0 is a layer with `max_norm`"):
        LevenbergMarquardt(nn.Sequential(nn.Embedding(5, 2, max_norm=1.0), nn.Linear(2, 1)))
    frozen = nn.Embedding(5, 2, max_norm=1.0).requires_grad_(requires_grad=False)
    LevenbergMarquardt(nn.Sequential(frozen, nn.Linear(2, 1)))
