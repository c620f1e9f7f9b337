"""Stopping tests: hand-made cases, after MINPACK's definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from sklm import LMClassifier
from sklm.engine import LevenbergMarquardt
from sklm.engine.convergence import ConvergenceTests, largest_cosine, relative_offset
from sklm.engine.losses import BinaryCrossEntropy

ALL = {"ftol": 1e-3, "xtol": 1e-4, "gtol": 1e-2}
FTOL, XTOL, GTOL = ({name: value if name == one else None for name, value in ALL.items()} for one in ALL)
RUNNING = {"loss": 10.0, "actual_reduction": 1.0, "predicted_reduction": 1.0, "step_norm": 1.0, "parameter_norm": 5.0}


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def attempt(tolerances, **changes):
    return ConvergenceTests(**tolerances).after_attempt(**{**RUNNING, **changes})


@pytest.mark.parametrize(
    ("gradient", "diagonal", "residual_norm", "expected"),
    [
        ((3.0, 0.0), (4.0, 1.0), 5.0, 0.3),
        ((-3.0, 2.0), (4.0, 1.0), 5.0, 0.4),
        ((3.0, 0.0), (4.0, 0.0), 5.0, 0.3),
        ((0.0, 0.0), (0.0, 0.0), 5.0, 0.0),
        ((0.0, 0.0), (4.0, 1.0), 0.0, 0.0),
    ],
    ids=["one column", "largest of two", "a zero column", "zero columns only", "zero residuals"],
)
def test_largest_cosine_by_hand(gradient, diagonal, residual_norm, expected):
    assert largest_cosine(vector(*gradient), vector(*diagonal), residual_norm) == pytest.approx(expected, rel=1e-15)


def test_largest_cosine_is_that_of_the_angles():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    residual = torch.randn(9, generator=generator, dtype=torch.float64)
    expected = torch.cosine_similarity(matrix, residual[:, None].expand_as(matrix), dim=0).abs().max()
    found = largest_cosine(matrix.T @ residual, matrix.square().sum(0), float(residual.norm()))
    assert found == pytest.approx(float(expected), rel=1e-13)


def random_rows(n_rows=9, n_params=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n_rows, n_params, generator=generator, dtype=torch.float64)
    return matrix, torch.randn(n_rows, generator=generator, dtype=torch.float64)


def offset_of(matrix, residual):
    orthogonal, triangle = torch.linalg.qr(matrix)
    return relative_offset(triangle, orthogonal.T @ residual, float(residual.norm()))


@pytest.mark.parametrize(
    ("triangle", "target", "residual_norm", "expected"),
    [
        (((2.0, 0.0), (0.0, 7.0)), (3.0, 4.0), 10.0, 0.5),
        (((2.0, 2.0), (0.0, 1e-16)), (3.0, 4.0), 10.0, 0.3),
        (((1e-9, 1.0), (0.0, 1.0)), (3.0, 4.0), 10.0, 0.5),
        (((0.0, 3.0), (0.0, 0.0)), (3.0, 4.0), 10.0, 0.3),
        (((0.0, 0.0), (0.0, 0.0)), (0.0, 0.0), 10.0, 0.0),
        (((2.0, 0.0), (0.0, 7.0)), (0.0, 0.0), 0.0, 0.0),
    ],
    ids=["two columns", "one that is double", "a small column", "a zero column", "zero columns", "zero residuals"],
)
def test_relative_offset_by_hand(triangle, target, residual_norm, expected):
    found = relative_offset(torch.tensor(triangle, dtype=torch.float64), vector(*target), residual_norm)
    assert found == pytest.approx(expected, rel=1e-12)


def test_relative_offset_is_the_share_that_least_squares_explains():
    matrix, residual = random_rows()
    explained = matrix @ torch.linalg.lstsq(matrix, residual[:, None], driver="gelsd").solution[:, 0]
    assert offset_of(matrix, residual) == pytest.approx(float(explained.norm() / residual.norm()), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1e12], ids=str)
def test_relative_offset_does_not_depend_on_the_units_of_a_parameter(scale):
    matrix, residual = random_rows()
    expected = offset_of(matrix, residual)
    matrix[:, 1] *= scale
    assert offset_of(matrix, residual) == pytest.approx(expected, rel=1e-12)


def test_relative_offset_counts_dependent_columns_once():
    matrix, residual = random_rows()
    more = torch.cat([matrix, matrix @ torch.ones(4, 2).double()], 1)
    assert offset_of(more, residual) == pytest.approx(offset_of(matrix, residual), rel=1e-12)


def test_relative_offset_is_zero_at_the_least_squares_solution():
    matrix, residual = random_rows()
    rest = residual - matrix @ torch.linalg.lstsq(matrix, residual[:, None], driver="gelsd").solution[:, 0]
    assert offset_of(matrix, rest) < 1e-14


def test_relative_offset_without_columns_is_zero():
    assert relative_offset(torch.zeros(3, 0).double(), vector(1.0, 2.0, 3.0), 5.0) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_relative_offset_that_is_not_finite_passes_no_limit(value):
    broken = torch.tensor([[1.0, value], [0.0, 1.0]], dtype=torch.float64)
    assert relative_offset(broken, vector(0.0, 0.0), 1.0) == math.inf
    assert not relative_offset(torch.eye(2).double(), vector(value, 0.0), 1.0) <= 1e300
    assert relative_offset(torch.eye(2).double(), vector(0.0, 0.0), math.nan) == math.inf


def test_largest_cosine_without_columns_is_zero():
    assert largest_cosine(vector(), vector(), 5.0) == 0.0


@pytest.mark.parametrize(
    ("gradient", "passes"), [(0.0999, True), (0.1, True), (0.1001, False)], ids=["below", "at", "above"]
)
def test_gradient_test(gradient, passes):
    # |column| = 2, |r| = 5: the cosine is gradient / 10, gtol 1e-2
    message = ConvergenceTests(**GTOL).at_point(largest_cosine(vector(gradient, 0.0), vector(4.0, 1.0), 5.0))
    assert bool(message) is passes


def test_gradient_message():
    message = ConvergenceTests(**ALL).at_point(largest_cosine(vector(0.05), vector(4.0), 5.0))
    assert message == "the scaled gradient 0.005 is at most gtol=0.01"


@pytest.mark.parametrize("gtol", [0.0, 1e-8])
def test_a_loss_of_zero_passes_the_gradient_test(gtol):
    assert ConvergenceTests(ftol=None, xtol=None, gtol=gtol).at_point(
        largest_cosine(vector(0.0, 0.0), vector(4.0, 1.0), 0.0)
    )


@pytest.mark.parametrize(
    ("gradient", "diagonal", "residual_norm"),
    [
        ((math.nan, 0.0), (4.0, 1.0), 5.0),
        ((0.0, math.nan), (4.0, 1.0), 5.0),
        ((math.inf, 0.0), (4.0, 1.0), 5.0),
        ((1.0, 0.0), (4.0, 1.0), math.inf),
        ((1.0, 0.0), (math.inf, 1.0), 5.0),
        ((1.0, 0.0), (4.0, 1.0), math.nan),
        ((1.0, 0.0), (math.nan, 1.0), 5.0),
    ],
    ids=["nan gradient", "nan gradient, last", "inf gradient", "inf norm", "inf diagonal", "nan norm", "nan diagonal"],
)
def test_what_is_not_finite_never_passes_the_gradient_test(gradient, diagonal, residual_norm):
    assert ConvergenceTests(**GTOL).at_point(largest_cosine(vector(*gradient), vector(*diagonal), residual_norm)) == ""


@pytest.mark.parametrize(
    ("changes", "passes"),
    [  # limit: ftol * loss = 0.01
        ({"actual_reduction": 0.009, "predicted_reduction": 0.009}, True),
        ({"actual_reduction": 0.01, "predicted_reduction": 0.01}, True),
        ({"actual_reduction": 0.011, "predicted_reduction": 0.009}, False),
        ({"actual_reduction": 0.009, "predicted_reduction": 0.011}, False),
        ({"actual_reduction": -0.009, "predicted_reduction": 0.009}, True),
        ({"actual_reduction": -0.011, "predicted_reduction": 0.009}, False),
        ({"actual_reduction": 0.009, "predicted_reduction": 0.0045}, True),
        ({"actual_reduction": 0.009, "predicted_reduction": 0.0044}, False),
        ({"actual_reduction": 0.0, "predicted_reduction": 0.0}, True),
        ({"actual_reduction": 0.0, "predicted_reduction": 0.0, "loss": 0.0}, True),
        ({"actual_reduction": 1e-300, "predicted_reduction": 1e-300, "loss": 0.0}, False),
        ({"actual_reduction": 0.009, "predicted_reduction": 0.009, "loss": -10.0}, True),
    ],
    ids=[
        "both below",
        "both at",
        "actual above",
        "predicted above",
        "a small rise",
        "a large rise",
        "gain ratio of 2",
        "gain ratio above 2",
        "no reduction",
        "zero loss",
        "zero loss, some reduction",
        "negative loss",
    ],
)
def test_reduction_test(changes, passes):
    assert bool(attempt(FTOL, **changes)) is passes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("actual_reduction", math.nan),
        ("actual_reduction", math.inf),
        ("actual_reduction", -math.inf),
        ("predicted_reduction", math.nan),
        ("predicted_reduction", math.inf),
    ],
)
@pytest.mark.parametrize("ftol", [1e-3, 0.0, 1e300])
def test_reductions_that_are_not_finite_never_pass(name, value, ftol):
    changes = {"actual_reduction": 0.0, "predicted_reduction": 0.0, name: value}
    assert attempt({"ftol": ftol, "xtol": None, "gtol": None}, **changes) == ""


@pytest.mark.parametrize("loss", [math.nan, math.inf], ids=str)
def test_a_loss_that_is_not_finite_never_passes_with_such_a_reduction(loss):
    assert attempt(FTOL, loss=loss, actual_reduction=math.nan, predicted_reduction=1.0) == ""


@pytest.mark.parametrize(
    ("step_norm", "parameter_norm", "passes"),
    [(4.9e-4, 5.0, True), (5e-4, 5.0, True), (5.1e-4, 5.0, False), (0.0, 0.0, True), (1e-300, 0.0, False)],
    ids=["below", "at", "above", "no step from zero", "a step from zero"],
)
def test_step_test(step_norm, parameter_norm, passes):
    assert bool(attempt(XTOL, step_norm=step_norm, parameter_norm=parameter_norm)) is passes


@pytest.mark.parametrize("step_norm", [math.nan, math.inf], ids=str)
def test_steps_that_are_not_finite_never_pass(step_norm):
    assert attempt(XTOL, step_norm=step_norm) == ""


def test_messages_name_the_test_its_value_and_the_tolerance():
    reduction = {"actual_reduction": 0.005, "predicted_reduction": 0.007}
    assert attempt(ALL, **reduction) == "the relative reduction of the loss 0.0007 is at most ftol=0.001"
    assert attempt(ALL, step_norm=1e-4) == "the relative step 2e-05 is at most xtol=0.0001"
    assert attempt(ALL, **reduction, step_norm=1e-4).endswith("ftol=0.001")
    assert attempt(ALL) == ""


@pytest.mark.parametrize("name", ["ftol", "xtol", "gtol"])
def test_none_disables_a_test(name):
    tests = ConvergenceTests(**{**ALL, name: None})
    at_point = tests.at_point(largest_cosine(vector(0.0), vector(1.0), 1.0))
    reduced = tests.after_attempt(**{**RUNNING, "actual_reduction": 0.0, "predicted_reduction": 0.0})
    moved = tests.after_attempt(**{**RUNNING, "step_norm": 0.0})
    passed = {"gtol": bool(at_point), "ftol": bool(reduced), "xtol": bool(moved)}
    assert passed == {other: other != name for other in ALL}


@pytest.mark.parametrize("name", ["ftol", "xtol", "gtol"])
@pytest.mark.parametrize("value", [-1e-8, math.nan, math.inf, "small", True], ids=repr)
def test_tolerances_must_be_numbers_from_zero(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be a finite number >= 0; got {value!r}"):
        ConvergenceTests(**{**ALL, name: value})


# In the engine: a far-off sample has a residual as large as 1 / sqrt(curvature), which must not hide the gradient


def first_message(module, criterion, x, y):
    return LevenbergMarquardt(module, criterion, ftol=None, xtol=None).step(x, y).message


@pytest.mark.parametrize("curvature", ["ggn", "sqrt"])
@pytest.mark.parametrize("size", [1.0, 30.0, 100.0, 1000.0])
def test_a_sample_that_is_confidently_wrong_does_not_look_like_convergence(size, curvature):
    # The logit is x theta at theta = 1. Of 20 samples the first is wrong by `size`; the derivative of the mean loss is
    # (size s(size) - 19 * 0.1 s(-0.1)) / 20, -0.0086 for size 1 and above 1 for the others: no minimum is near.
    x = torch.full((20, 1), 0.1, dtype=torch.float64)
    x[0] = size
    y = torch.ones(20, 1, dtype=torch.float64)
    y[0] = 0.0
    module = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.ones_(module.weight)
    assert "gtol" not in first_message(module, BinaryCrossEntropy(curvature=curvature), x, y)


@pytest.mark.parametrize("scale", [1.0, 30.0, 100.0])
def test_cross_entropy_reaches_its_minimum_from_a_saturated_start(scale):
    # a convex problem; the labels are noise, so the large weights of the start are far from the minimum
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (50,), generator=generator)
    module = torch.nn.Linear(2, 3).double()
    with torch.no_grad():
        module.weight.copy_(scale * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        module.bias.zero_()
    optimizer = LevenbergMarquardt(module, "log_loss")
    for _ in range(100):
        result = optimizer.step(x, y)
        if result.status != "running":
            break

    def mean_loss(theta):
        logits = x.numpy() @ theta[:6].reshape(3, 2).T + theta[6:]
        return -log_softmax(logits, axis=1)[range(50), y].mean()

    # ftol = 1e-8 of a loss near 1
    assert result.loss == pytest.approx(minimize(mean_loss, np.zeros(9)).fun, abs=2e-8)


def test_poisson_does_not_stop_at_a_mean_far_too_small():
    x = torch.tensor([[1.0], [0.1], [0.2]], dtype=torch.float64)
    y = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    module = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(module.weight, -80.0)
    assert "gtol" not in first_message(module, "poisson", x, y)


@pytest.mark.parametrize(("center", "spread"), [(2000, 100), (1e6, 1e5), (1e4, 3e3)])
def test_a_saturated_row_that_is_wrong_is_no_convergence(center, spread):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        z = rng.standard_normal((150, 1))
        y = (rng.random(150) < expit(1.5 * z[:, 0])).astype(int)
        model = LMClassifier("a + b * x", random_state=0).fit(center + spread * z, y)
        expected = LogisticRegression(C=np.inf, tol=1e-10).fit(z, y)
        found = log_loss(y, model.predict_proba(center + spread * z))
        assert found <= log_loss(y, expected.predict_proba(z)) + 1e-6
