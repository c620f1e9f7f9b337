"""The matrix-free solver: dense algebra, Cholesky, and fits that end where the others end."""

import numpy as np
import pytest
import torch
from torch import nn

from sklm import LevenbergMarquardt, LMClassifier, LMRegressor
from sklm.engine.jacobian import ModuleFunction
from sklm.engine.matrix_free import ConjugateGradients


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(n_rows=30, n_params=7, penalty=0.0, forcing=1e-14):
    matrix, residual, theta = draw(n_rows, n_params), draw(n_rows, seed=1), draw(n_params, seed=2)
    penalty = torch.full((n_params,), penalty, dtype=torch.float64)
    solver = ConjugateGradients(
        lambda v: matrix.T @ (matrix @ v),
        matrix.T @ residual,
        float(residual @ residual),
        penalty,
        theta,
        forcing=forcing,
        generator=torch.Generator().manual_seed(0),
    )
    return (
        solver,
        matrix.T @ matrix + torch.diag(penalty),
        matrix.T @ residual + penalty * theta,
        matrix,
        residual,
        theta,
    )


@pytest.mark.parametrize("penalty", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(30, 7), (5, 12)], ids=["tall", "wide"])
def test_equals_dense_algebra(shape, penalty):
    solver, curvature, gradient, _, residual, theta = problem(*shape, penalty=penalty)
    damping = torch.linspace(0.1, 2, shape[1], dtype=torch.float64)
    dense = curvature + torch.diag(damping)
    torch.testing.assert_close(solver.solve(damping), -torch.linalg.solve(dense, gradient), rtol=1e-9, atol=1e-11)
    vector = draw(shape[1], seed=3)
    torch.testing.assert_close(solver.apply_inverse(vector), torch.linalg.solve(dense, vector), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(solver.quadratic(vector), vector @ curvature @ vector)
    norm = torch.cat([residual, penalty**0.5 * theta]).norm()
    assert solver.residual_norm == pytest.approx(float(norm), rel=1e-12)


def test_restrict_equals_the_explicit_columns():
    solver, curvature, _, matrix, residual, _ = problem()
    free, step = torch.tensor([True, False, True, True, False, True, True]), draw(7, seed=4)
    part = solver.restrict(free, step)
    moved = residual + matrix[:, ~free] @ step[~free]
    damping = torch.ones(5, dtype=torch.float64)
    wanted = -torch.linalg.solve(curvature[free][:, free] + torch.eye(5).double(), matrix[:, free].T @ moved)
    torch.testing.assert_close(part.solve(damping), wanted, rtol=1e-9, atol=1e-11)
    assert part.residual_norm == pytest.approx(float(moved.norm()), rel=1e-12)


def test_a_truncated_step_keeps_its_promise():
    """Every iterate d has d'(H + D) d = -g'd, on which the predicted reduction rests; and the residual is small."""
    solver, curvature, gradient, *_ = problem(200, 60, forcing=0.1)
    damping = torch.full((60,), 0.1, dtype=torch.float64)
    direction = solver.solve(damping)
    image = curvature @ direction + damping * direction
    assert float(direction @ image) == pytest.approx(-float(gradient @ direction), rel=1e-9)
    assert 1e-6 < float((image + gradient).norm() / gradient.norm()) <= 0.1


def test_diagonal_is_estimated():
    matrix = torch.diag(torch.arange(1.0, 9.0).double())  # of a diagonal matrix the estimate is exact
    solver = ConjugateGradients(
        lambda v: matrix @ v,
        torch.ones(8).double(),
        1.0,
        torch.zeros(8).double(),
        torch.zeros(8).double(),
        forcing=0.1,
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(solver.diagonal, torch.arange(1.0, 9.0).double())


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, X):
        return NoForwardMode.apply(self.layer(X))


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), Custom],
    ids=["plain", "no forward mode"],
)
def test_pushforward_equals_the_jacobian(make):
    torch.manual_seed(0)
    function, X = ModuleFunction(make().double()), draw(5, 3)
    vector, direction = function.vector(), draw(function.n_params, seed=5)
    if make is Custom:
        exact = torch.func.jacfwd(lambda v: torch.tanh(X @ v[:6].view(2, 3).T + v[6:]))(vector)
    else:
        exact = torch.autograd.functional.jacobian(lambda v: function.outputs(v, X), vector)
    found = function.pushforward(vector, direction, X)
    torch.testing.assert_close(found, exact @ direction, rtol=1e-10, atol=1e-12)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, X):
        return self.layer(X).mean((1, 2))


class OldStyle(torch.autograd.Function):
    """A function as torch had them before `setup_context`, which `torch.func` does not take."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


class WithOldStyle(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, X):
        return OldStyle.apply(self.layer(X)).mean((1, 2))


@pytest.mark.parametrize("make", [Attention, WithOldStyle])
def test_pushforward_where_torch_has_no_forward_mode_by_default(make):
    torch.manual_seed(0)
    function, X = ModuleFunction(make().double()), draw(5, 3, 4)
    vector, direction = function.vector(), draw(function.n_params, seed=5)
    exact = torch.autograd.functional.jacobian(lambda v: function.outputs(v, X), vector)
    torch.testing.assert_close(function.pushforward(vector, direction, X), exact @ direction, rtol=1e-10, atol=1e-12)


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.EmbeddingBag(5, 1)

    def forward(self, X):
        return self.layer(X.long())


def test_a_module_without_second_derivatives_is_refused():
    optimizer = LevenbergMarquardt(Bag().double(), solver="cg")
    with pytest.raises(
        ValueError, match="needs a module with forward mode or second derivatives; this one has neither"
    ):
        optimizer.step(torch.arange(10.0).reshape(5, 2) % 5, draw(5))


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("selection", [None, "layer"])
def test_fits_end_where_cholesky_ends(alpha, selection):
    X = draw(80, 2).numpy()
    y = X[:, 0] - 0.5 * X[:, 1] ** 2 + 0.1 * draw(80, seed=1).numpy()
    settings = {"module": nn.Linear, "module__in_features": 2, "module__out_features": 1, "selection": selection}
    settings |= {"alpha": alpha, "random_state": 0, "max_epochs": 300, "ftol": 1e-14, "xtol": 1e-12}
    cg, cholesky = (LMRegressor(solver=solver, **settings).fit(X, y) for solver in ("cg", "cholesky"))
    assert list(cg.parameters_.values()) == pytest.approx(list(cholesky.parameters_.values()), rel=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_network_and_a_classifier():
    X = draw(200, 3).numpy()
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    model = LMClassifier(solver="cg", alpha=0.01, random_state=0, max_epochs=60).fit(X, y)
    other = LMClassifier(solver="cholesky", alpha=0.01, random_state=0, max_epochs=60).fit(X, y)
    assert model.loss_ == pytest.approx(other.loss_, rel=0.2)
    assert all(np.diff(model.loss_curve_) <= 0)


def test_bounds():
    X = draw(40, 1).numpy()
    model = LMRegressor("a * x + b", solver="cg", module__bounds={"a": (0, 1)}, random_state=0).fit(X, 3 * X[:, 0] + 1)
    assert model.parameters_["a"] == 1
    assert model.parameters_["b"] == pytest.approx(1 + 2 * X.mean(), rel=1e-6)


def test_auto_takes_it_for_many_parameters_and_rows():
    module = nn.Sequential(nn.Linear(90, 100), nn.Tanh(), nn.Linear(100, 1))
    X = torch.randn(9000, 90, generator=torch.Generator().manual_seed(0))
    optimizer = LevenbergMarquardt(module, seed=0, max_attempts=3)
    first = optimizer.step(X, X[:, :2].prod(1))
    assert first.solver == "cg: 9201 parameters, 9000 rows"
    assert first.loss < first.initial_loss


def test_random_numbers_are_refused():
    module = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 1)).double().train()
    with pytest.raises(ValueError, match="`solver='cg'` needs a module that draws no random numbers"):
        LevenbergMarquardt(module, solver="cg", seed=0).step(draw(5, 2), draw(5))
