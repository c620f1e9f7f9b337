"""Losses: values, gradients and curvatures against torch's functions, autograd and scipy."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy.integrate import quad
from scipy.optimize import least_squares
from torch import Tensor, nn
from torch.nn import functional as F

from sklm.engine.losses import (
    AbsoluteError,
    BinaryCrossEntropy,
    Cauchy,
    CrossEntropy,
    Huber,
    Loss,
    Poisson,
    SoftL1,
    SquaredError,
    TorchLoss,
    resolve_loss,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # a few hundred roundings of float64


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A loss, data it fits, its value by other means, and what its Gauss-Newton curvature is."""

    make: Callable[..., Loss]
    outputs: Tensor
    targets: Tensor
    reference: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> values (n_samples,), differentiable
    curvature: str  # "hessian", "weight" (psi(r) / r), "fisher" or "none"
    negative: bool = False


def from_torch(criterion, outputs, targets, curvature, negative=False):
    plain = type(criterion)(**{**settings_of(criterion), "reduction": "none"})

    def reference(f, y):
        values = plain(f, y).reshape(len(f), -1)
        return values.sum(1) if criterion.reduction == "sum" else values.mean(1)

    return Case(lambda **kw: TorchLoss(criterion, **kw), outputs, targets, reference, curvature, negative)


def settings_of(criterion):
    names = [
        "delta",
        "beta",
        "log_input",
        "full",
        "weight",
        "label_smoothing",
        "ignore_index",
        "pos_weight",
        "p",
        "margin",
    ]
    return {name: getattr(criterion, name) for name in names if hasattr(criterion, name)}


class LogCosh(nn.Module):
    """A user's own loss, which knows `reduction` only."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, outputs, targets):
        values = (outputs - targets).cosh().log()
        return {"none": values, "mean": values.mean(), "sum": values.sum()}[self.reduction]


REAL = draw(12, 3, scale=2.0), draw(12, 3, seed=1, scale=2.0)
COUNTS = draw(12, 2), torch.poisson(torch.full((12, 2), 1.5).double(), generator=torch.Generator().manual_seed(0))
LOGITS = draw(12, 4, scale=3.0)
HARD = torch.arange(12) % 4
SOFT = draw(12, 4, seed=2).softmax(1)
UNNORMALIZED = draw(12, 4, seed=3).exp()
BINARY = draw(12, 2, scale=3.0), (torch.arange(24).reshape(12, 2) % 3 == 0).double()
FRACTIONS = draw(12, 2, scale=3.0), torch.rand(12, 2, generator=torch.Generator().manual_seed(0)).double()
PROBABILITIES = draw(12, 2, scale=2.0).sigmoid(), BINARY[1]
CLASS_WEIGHTS = tensor(0.5, 2.0, 1.0, 3.0)
POSITIVE_WEIGHTS = tensor(0.4, 3.0)


def binary(f, y, **keywords):
    return F.binary_cross_entropy_with_logits(f, y, reduction="none", **keywords).sum(1)


CASES = {
    "SquaredError": Case(SquaredError, *REAL, lambda f, y: ((f - y) ** 2).sum(1) / 2, "hessian"),
    "AbsoluteError": Case(AbsoluteError, *REAL, lambda f, y: F.l1_loss(f, y, reduction="none").sum(1), "weight"),
    "Huber": Case(Huber, *REAL, lambda f, y: F.huber_loss(f, y, reduction="none").sum(1), "weight"),
    "Huber(0.3)": Case(
        lambda **kw: Huber(delta=0.3, **kw),
        *REAL,
        lambda f, y: F.huber_loss(f, y, reduction="none", delta=0.3).sum(1),
        "weight",
    ),
    "SoftL1": Case(SoftL1, *REAL, lambda f, y: ((1 + (f - y) ** 2) ** 0.5 - 1).sum(1), "weight"),
    "SoftL1(2)": Case(
        lambda **kw: SoftL1(delta=2, **kw), *REAL, lambda f, y: 4 * ((1 + (f - y) ** 2 / 4) ** 0.5 - 1).sum(1), "weight"
    ),
    "Cauchy": Case(Cauchy, *REAL, lambda f, y: (1 + (f - y) ** 2).log().sum(1) / 2, "weight"),
    "Cauchy(2)": Case(
        lambda **kw: Cauchy(delta=2, **kw), *REAL, lambda f, y: 2 * (1 + (f - y) ** 2 / 4).log().sum(1), "weight"
    ),
    "Poisson": Case(
        Poisson,
        *COUNTS,
        lambda f, y: (F.poisson_nll_loss(f, y, reduction="none") + torch.special.xlogy(y, y) - y).sum(1),
        "hessian",
    ),
    "CrossEntropy, hard": Case(
        CrossEntropy, LOGITS, HARD, lambda f, y: F.cross_entropy(f, y, reduction="none"), "hessian"
    ),
    "CrossEntropy, soft": Case(
        CrossEntropy, LOGITS, SOFT, lambda f, y: F.cross_entropy(f, y, reduction="none"), "hessian"
    ),
    "CrossEntropy, class weights": Case(
        CrossEntropy, LOGITS, UNNORMALIZED, lambda f, y: F.cross_entropy(f, y, reduction="none"), "hessian"
    ),
    "BinaryCrossEntropy": Case(BinaryCrossEntropy, *BINARY, binary, "hessian"),
    "BinaryCrossEntropy, soft": Case(BinaryCrossEntropy, *FRACTIONS, binary, "hessian"),
    "BinaryCrossEntropy, positive_weight": Case(
        lambda **kw: BinaryCrossEntropy(positive_weight=POSITIVE_WEIGHTS, **kw),
        *BINARY,
        lambda f, y: binary(f, y, pos_weight=POSITIVE_WEIGHTS),
        "hessian",
    ),
    "BinaryCrossEntropy, positive_weight, soft": Case(
        lambda **kw: BinaryCrossEntropy(positive_weight=3.0, **kw),
        *FRACTIONS,
        lambda f, y: binary(f, y, pos_weight=tensor(3.0)),
        "hessian",
    ),
    "BinaryCrossEntropy, probabilities": Case(
        lambda **kw: BinaryCrossEntropy(from_logits=False, **kw),
        *PROBABILITIES,
        lambda f, y: F.binary_cross_entropy(f, y, reduction="none").sum(1),
        "fisher",
    ),
    "MSELoss": from_torch(nn.MSELoss(), *REAL, "hessian"),
    "MSELoss, sum": from_torch(nn.MSELoss(reduction="sum"), *REAL, "hessian"),
    "L1Loss": from_torch(nn.L1Loss(), *REAL, "weight"),
    "L1Loss, sum": from_torch(nn.L1Loss(reduction="sum"), *REAL, "weight"),
    "HuberLoss": from_torch(nn.HuberLoss(delta=0.7), *REAL, "weight"),
    "HuberLoss, sum": from_torch(nn.HuberLoss(delta=0.7, reduction="sum"), *REAL, "weight"),
    "SmoothL1Loss": from_torch(nn.SmoothL1Loss(), *REAL, "weight"),
    "SmoothL1Loss, beta": from_torch(nn.SmoothL1Loss(beta=0.4, reduction="sum"), *REAL, "weight"),
    "SmoothL1Loss, beta 0": from_torch(nn.SmoothL1Loss(beta=0.0), *REAL, "weight"),
    "PoissonNLLLoss": from_torch(nn.PoissonNLLLoss(), *COUNTS, "hessian", negative=True),
    "PoissonNLLLoss, full, sum": from_torch(nn.PoissonNLLLoss(full=True, reduction="sum"), *COUNTS, "hessian"),
    "PoissonNLLLoss, rates": from_torch(
        nn.PoissonNLLLoss(log_input=False, full=True), COUNTS[0].exp(), COUNTS[1], "none"
    ),
    "CrossEntropyLoss": from_torch(nn.CrossEntropyLoss(), LOGITS, HARD, "hessian"),
    "CrossEntropyLoss, soft": from_torch(nn.CrossEntropyLoss(), LOGITS, SOFT, "hessian"),
    "CrossEntropyLoss, sum": from_torch(nn.CrossEntropyLoss(reduction="sum"), LOGITS, HARD, "hessian"),
    "CrossEntropyLoss, weight": from_torch(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), LOGITS, HARD, "hessian"),
    "CrossEntropyLoss, weight, soft": from_torch(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), LOGITS, SOFT, "hessian"),
    "CrossEntropyLoss, label_smoothing": from_torch(nn.CrossEntropyLoss(label_smoothing=0.2), LOGITS, HARD, "hessian"),
    "CrossEntropyLoss, label_smoothing, soft": from_torch(
        nn.CrossEntropyLoss(label_smoothing=0.2), LOGITS, SOFT, "hessian"
    ),
    "CrossEntropyLoss, ignore_index": from_torch(
        nn.CrossEntropyLoss(), LOGITS, torch.where(HARD == 2, -100, HARD), "hessian"
    ),
    "CrossEntropyLoss, ignore_index, a class": from_torch(nn.CrossEntropyLoss(ignore_index=1), LOGITS, HARD, "hessian"),
    "CrossEntropyLoss, everything ignored": from_torch(
        nn.CrossEntropyLoss(), LOGITS, torch.full((12,), -100), "hessian"
    ),
    "CrossEntropyLoss, weight, label_smoothing, ignore_index": from_torch(
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.3, ignore_index=0), LOGITS, HARD, "hessian"
    ),
    "CrossEntropyLoss, weight, label_smoothing, soft": from_torch(
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.3), LOGITS, SOFT, "hessian"
    ),
    "BCELoss": from_torch(nn.BCELoss(), *PROBABILITIES, "fisher"),
    "BCELoss, sum": from_torch(nn.BCELoss(reduction="sum"), *PROBABILITIES, "fisher"),
    "BCELoss, weight": from_torch(nn.BCELoss(weight=tensor(1.0, 2.0)), *PROBABILITIES, "none"),
    "BCEWithLogitsLoss": from_torch(nn.BCEWithLogitsLoss(), *BINARY, "hessian"),
    "BCEWithLogitsLoss, pos_weight": from_torch(nn.BCEWithLogitsLoss(pos_weight=POSITIVE_WEIGHTS), *BINARY, "hessian"),
    "BCEWithLogitsLoss, pos_weight, sum": from_torch(
        nn.BCEWithLogitsLoss(pos_weight=POSITIVE_WEIGHTS, reduction="sum"), *FRACTIONS, "hessian"
    ),
    "BCEWithLogitsLoss, weight": from_torch(nn.BCEWithLogitsLoss(weight=tensor(1.0, 2.0)), *BINARY, "none"),
    "MultiMarginLoss": from_torch(nn.MultiMarginLoss(p=2), LOGITS, HARD, "none"),
    "SoftMarginLoss": from_torch(nn.SoftMarginLoss(), LOGITS, 2.0 * (LOGITS.roll(1, 0) > 0) - 1, "none"),
    "own module": from_torch(LogCosh(), *REAL, "none"),
    "own module, sum": from_torch(LogCosh(reduction="sum"), *REAL, "none"),
}
by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
with_ggn = pytest.mark.parametrize(
    "case",
    [c for c in CASES.values() if c.curvature != "none"],
    ids=[n for n, c in CASES.items() if c.curvature != "none"],
)
non_negative = pytest.mark.parametrize(
    "case", [c for c in CASES.values() if not c.negative], ids=[n for n, c in CASES.items() if not c.negative]
)


def reference_gradient(case):
    leaf = case.outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.reference(leaf, case.targets).sum(), leaf)
    return gradient


def hessians(case, targets):
    """Return the Hessian of every sample's reference value in its outputs, (n_samples, n_outputs, n_outputs)."""

    def of_one(f, y):
        return torch.autograd.functional.hessian(lambda g: case.reference(g[None], y[None])[0], f)

    return torch.stack([of_one(f, y) for f, y in zip(case.outputs, targets, strict=True)])


def reference_curvature(case):
    if case.curvature == "hessian":
        return hessians(case, case.targets)
    if case.curvature == "weight":
        return torch.diag_embed(reference_gradient(case) / (case.outputs - case.targets))
    # Fisher: the expected Hessian when the module's probabilities are true
    p = torch.diag_embed(case.outputs)
    yes, no = (hessians(case, torch.full_like(case.targets, y)) for y in (1.0, 0.0))
    return p @ yes + (torch.eye(p.shape[1]) - p) @ no


def products(residual, factor):
    """Return S'r and S'S."""
    return (factor.mT @ residual[:, :, None])[:, :, 0], factor.mT @ factor


@by_case
def test_value_and_gradient_are_those_of_the_reference(case):
    loss = case.make()
    targets = loss.prepare(case.outputs, case.targets)
    values = loss.value(case.outputs, targets)
    assert values.shape == (len(case.outputs),)
    torch.testing.assert_close(values, case.reference(case.outputs, case.targets), **CLOSE)
    torch.testing.assert_close(loss.gradient(case.outputs, targets), reference_gradient(case), **CLOSE)


@by_case
def test_forward_is_the_mean_and_differentiable(case):
    leaf = case.outputs.clone().requires_grad_()
    mean = case.make()(leaf, case.targets)
    torch.testing.assert_close(mean, case.reference(case.outputs, case.targets).mean(), **CLOSE)
    (gradient,) = torch.autograd.grad(mean, leaf)
    torch.testing.assert_close(gradient, reference_gradient(case) / len(case.outputs), **CLOSE)


@with_ggn
def test_gauss_newton_residual_and_factor(case):
    loss = case.make(curvature="ggn")
    assert case.make().curvature == "ggn"
    residual, factor = loss.linearize(case.outputs, loss.prepare(case.outputs, case.targets))
    assert factor.shape == (*residual.shape, case.outputs.shape[1])
    gradient, curvature = products(residual, factor)
    torch.testing.assert_close(gradient, reference_gradient(case), **CLOSE)
    # torch's second derivative of binary_cross_entropy adds 1e-12 to p (1 - p), which is above 0.009 in these data
    close = {"rtol": 1e-9, "atol": 1e-12} if case.curvature == "fisher" else CLOSE
    torch.testing.assert_close(curvature, reference_curvature(case), **close)


@non_negative
def test_square_root_trick(case):
    loss = case.make(curvature="sqrt")
    residual, factor = loss.linearize(case.outputs, loss.prepare(case.outputs, case.targets))
    assert residual.shape == (len(case.outputs), 1)
    assert factor.shape == (len(case.outputs), 1, case.outputs.shape[1])
    values, gradient = case.reference(case.outputs, case.targets), reference_gradient(case)
    torch.testing.assert_close(residual[:, 0] ** 2 / 2, values, **CLOSE)
    found, curvature = products(residual, factor)
    torch.testing.assert_close(found, gradient, **CLOSE)
    expected = gradient[:, :, None] * gradient[:, None, :] / (2 * values.clamp_min(1e-300))[:, None, None]
    torch.testing.assert_close(curvature, expected, rtol=1e-9, atol=1e-12)


SAMPLED = {
    "indices": (CrossEntropy, HARD),
    "probabilities": (CrossEntropy, SOFT),
    "weights of classes": (CrossEntropy, UNNORMALIZED),
    "torch": (lambda **kw: TorchLoss(nn.CrossEntropyLoss(), **kw), HARD),
    "torch, class weights": (lambda **kw: TorchLoss(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), **kw), HARD),
    "torch, smoothed": (lambda **kw: TorchLoss(nn.CrossEntropyLoss(label_smoothing=0.1), **kw), HARD),
}


@pytest.mark.parametrize(("make", "targets"), SAMPLED.values(), ids=SAMPLED)
def test_sampled_curvature_is_on_average_that_of_gauss_newton(make, targets):
    """Over an even grid of random numbers, whose share of a class is off by at most one point."""
    loss, n_points = make(curvature="mc"), 20_000
    targets = loss.prepare(LOGITS, targets)
    grid = (torch.arange(n_points).double() + 0.5) / n_points
    for i in range(len(LOGITS)):
        span = slice(i, i + 1)
        many = LOGITS[span].expand(n_points, -1), targets[span].expand(n_points, *targets.shape[1:])
        factor = loss.sampled(*many, grid)
        assert factor.shape == (n_points, 1, 4)
        expected = products(*loss.ggn(LOGITS[span], targets[span]))[1][0]
        mean = (factor.mT @ factor).mean(0)
        torch.testing.assert_close(mean, expected, rtol=0, atol=float(8 * factor.square().max() / n_points))


@pytest.mark.parametrize("logits", [[800.0, -800.0, 0.0], [0.0, 0.0, 0.0], [-1e4, -1e4, -1e4]])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_draws_at_the_ends_are_classes(logits, uniform):
    loss = CrossEntropy(curvature="mc")
    outputs = tensor(logits)
    factor = loss.sampled(outputs, loss.prepare(outputs, torch.tensor([0])), torch.tensor([uniform]).double())[0, 0]
    assert bool(torch.isfinite(factor).all())
    assert float(factor.sum()) == pytest.approx(0, abs=1e-12)


@by_case
def test_nothing_carries_a_graph_or_changes_an_argument(case):
    loss = case.make()
    outputs, targets = case.outputs.clone(), case.targets.clone()
    prepared = loss.prepare(outputs, targets)
    with torch.no_grad():
        residual, factor = loss.linearize(outputs, prepared)
    assert not residual.requires_grad
    assert not factor.requires_grad
    assert torch.equal(outputs, case.outputs)
    assert torch.equal(targets, case.targets)


# Values by scipy and numpy, also where torch's functions round


@pytest.mark.parametrize("delta", [0.25, 1.0, 3.0])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(Huber, "huber"), (SoftL1, "soft_l1"), (Cauchy, "cauchy")],
    ids=["huber", "soft_l1", "cauchy"],
)
def test_robust_losses_are_those_of_scipy(kind, name, delta):
    residuals = np.concatenate([draw(30, scale=2.0).numpy(), [0.0, delta, -delta, 1e-9, 1e3]])
    for residual in residuals:
        fit = least_squares(
            lambda _, r=residual: np.array([r]), [0.0], lambda _: np.zeros((1, 1)), loss=name, f_scale=delta
        )
        value = kind(delta=delta).value(tensor([residual]), tensor([0.0]))
        assert value.item() == pytest.approx(fit.cost, rel=1e-9, abs=1e-15)


ROBUST = {  # rho(z) and rho'(z) with z = (r / f_scale)^2, from the documentation of scipy.optimize.least_squares
    "huber": (
        Huber,
        lambda z: z if z <= 1 else 2 * z**0.5 - 1,
        lambda z: 1.0 if z <= 1 else z**-0.5,
    ),
    "soft_l1": (SoftL1, lambda z: 2 * z / (1 + (1 + z) ** 0.5), lambda z: (1 + z) ** -0.5),
    "cauchy": (Cauchy, np.log1p, lambda z: 1 / (1 + z)),
}


@pytest.mark.parametrize(("kind", "rho", "slope"), ROBUST.values(), ids=ROBUST)
@settings(max_examples=60, deadline=None)
@given(residual=st.floats(-1e9, 1e9), delta=st.floats(1e-3, 1e3))
def test_robust_losses_follow_their_definition_everywhere(kind, rho, slope, residual, delta):
    loss = kind(delta=delta)
    z = (residual / delta) ** 2
    outputs, targets = tensor([residual]), tensor([0.0])
    assert loss.value(outputs, targets).item() == pytest.approx(delta**2 / 2 * rho(z), rel=1e-12, abs=1e-300)
    assert loss.gradient(outputs, targets).item() == pytest.approx(residual * slope(z), rel=1e-12, abs=1e-300)
    r, s = loss.ggn(outputs, targets)
    assert s.item() ** 2 == pytest.approx(slope(z), rel=1e-12)
    assert s.item() * r.item() == pytest.approx(residual * slope(z), rel=1e-12, abs=1e-300)


@settings(max_examples=60, deadline=None)
@given(logit=st.floats(-700, 700), target=st.floats(0, 1), weight=st.floats(0.1, 10))
def test_logistic_loss_is_exact_for_every_logit(logit, target, weight):
    loss = BinaryCrossEntropy(positive_weight=torch.tensor(weight, dtype=torch.float64))
    expected = weight * target * np.logaddexp(0, -logit) + (1 - target) * np.logaddexp(0, logit)
    assert loss.value(tensor([logit]), tensor([target])).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("logit", [19.0, 20.5, 25.0, 30.0, -20.5])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_logistic_loss_keeps_its_digits_beyond_torchs_softplus_threshold(logit, target):
    # torch's softplus is the identity above 20 by default, which is 2e-9 off there
    value = BinaryCrossEntropy().value(tensor([logit]), tensor([target])).item()
    assert value == pytest.approx(np.logaddexp(0, logit if target == 0 else -logit), rel=1e-14)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-300, 300), min_size=2, max_size=5),
    label=st.integers(0, 4),
)
def test_cross_entropy_is_scipys_log_softmax(logits, label):
    label = label % len(logits)
    loss = CrossEntropy()
    outputs = tensor(logits)
    targets = loss.prepare(outputs, torch.tensor([label]))
    expected = -special.log_softmax(logits)[label]
    assert loss.value(outputs, targets).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    probability = special.softmax(logits)
    onehot = np.eye(len(logits))[label]
    np.testing.assert_allclose(loss.gradient(outputs, targets)[0], probability - onehot, rtol=1e-10, atol=1e-14)
    gradient, curvature = products(*loss.ggn(outputs, targets))
    np.testing.assert_allclose(gradient[0], probability - onehot, rtol=1e-10, atol=1e-12)
    expected = np.diag(probability) - np.outer(probability, probability)
    np.testing.assert_allclose(curvature[0], expected, rtol=1e-9, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(log_mean=st.floats(-30, 30), count=st.integers(0, 1000))
def test_poisson_is_scipys_divergence(log_mean, count):
    value = Poisson().value(tensor([log_mean]), tensor([float(count)])).item()
    # kl_div(y, m) = y log(y / m) - y + m, half the deviance; terms cancel down to their rounding
    expected = special.kl_div(count, np.exp(log_mean))
    size = np.exp(log_mean) + count * (abs(log_mean) + 8)
    assert value == pytest.approx(expected, rel=1e-12, abs=4e-16 * size)
    assert value >= 0


@pytest.mark.parametrize("probability", [1e-30, 1e-10, 0.3, 0.999])
@pytest.mark.parametrize("target", [0.0, 0.4, 1.0])
def test_binary_cross_entropy_from_probabilities_by_hand(probability, target):
    loss = BinaryCrossEntropy(from_logits=False)
    outputs, targets = tensor([probability]), tensor([target])
    expected = -special.xlogy(target, probability) - special.xlog1py(1 - target, -probability)
    slope = (1 - target) / (1 - probability) - target / probability
    assert loss.value(outputs, targets).item() == pytest.approx(expected, rel=1e-12, abs=1e-28)
    assert loss.gradient(outputs, targets).item() == pytest.approx(slope, rel=1e-10)
    gradient, curvature = products(*loss.ggn(outputs, targets))
    assert gradient.item() == pytest.approx(slope, rel=1e-10)
    assert curvature.item() == pytest.approx(1 / probability / (1 - probability), rel=1e-10)


# Limits: everything finite, and the identities kept, at zero loss, saturation and huge residuals

HUGE = tensor(0.0, 1e-300, 1e-12, 1.0, 1e15, -1e15, 1e100, -1e100)[:, None]
SATURATED = tensor(0.0, 40.0, -40.0, 100.0, -100.0, 700.0, -700.0, 1e4, -1e4)

EXTREME = {
    **{
        kind.__name__: (kind, HUGE, torch.zeros_like(HUGE))
        for kind in (SquaredError, AbsoluteError, Huber, SoftL1, Cauchy)
    },
    "MSELoss": (lambda **kw: TorchLoss(nn.MSELoss(), **kw), HUGE, torch.zeros_like(HUGE)),
    "HuberLoss": (lambda **kw: TorchLoss(nn.HuberLoss(), **kw), HUGE, torch.zeros_like(HUGE)),
    "Poisson, none": (Poisson, tensor(-1e4, -700.0, -40.0, 0.0, 300.0)[:, None], torch.zeros(5, 1).double()),
    "Poisson, some": (Poisson, tensor(-1e4, -700.0, -40.0, 0.0, 300.0)[:, None], torch.full((5, 1), 3.0).double()),
    "CrossEntropy": (CrossEntropy, torch.stack([SATURATED, -SATURATED, 0 * SATURATED], 1), torch.arange(9) % 3),
    "CrossEntropy, soft": (
        CrossEntropy,
        torch.stack([SATURATED, -SATURATED], 1),
        torch.full((9, 2), 0.5).double(),
    ),
    "CrossEntropyLoss": (
        lambda **kw: TorchLoss(nn.CrossEntropyLoss(), **kw),
        torch.stack([SATURATED, -SATURATED], 1),
        torch.arange(9) % 2,
    ),
    "BinaryCrossEntropy, 0": (BinaryCrossEntropy, SATURATED[:, None], torch.zeros(9, 1).double()),
    "BinaryCrossEntropy, 1": (BinaryCrossEntropy, SATURATED[:, None], torch.ones(9, 1).double()),
    "BCEWithLogitsLoss": (
        lambda **kw: TorchLoss(nn.BCEWithLogitsLoss(), **kw),
        SATURATED[:, None],
        torch.ones(9, 1).double(),
    ),
    "probabilities, 0": (
        lambda **kw: BinaryCrossEntropy(from_logits=False, **kw),
        SATURATED.sigmoid()[:, None],
        torch.zeros(9, 1).double(),
    ),
    "probabilities, 1": (
        lambda **kw: BinaryCrossEntropy(from_logits=False, **kw),
        SATURATED.sigmoid()[:, None],
        torch.ones(9, 1).double(),
    ),
}


@pytest.mark.parametrize(("make", "outputs", "targets"), EXTREME.values(), ids=EXTREME)
@pytest.mark.parametrize("curvature", ["ggn", "sqrt"])
def test_extremes_stay_finite(make, outputs, targets, curvature):
    loss = make(curvature=curvature)
    targets = loss.prepare(outputs, targets)
    residual, factor = loss.linearize(outputs, targets)
    gradient = loss.gradient(outputs, targets)
    for part in (loss.value(outputs, targets), gradient, residual, factor, residual.square(), factor.square()):
        assert bool(torch.isfinite(part).all())
    torch.testing.assert_close(products(residual, factor)[0], gradient, rtol=1e-9, atol=1e-12)


EXACT = {
    "SquaredError": (SquaredError, [[2.0]], [[2.0]]),
    "AbsoluteError": (AbsoluteError, [[2.0]], [[2.0]]),
    "Huber": (Huber, [[2.0]], [[2.0]]),
    "SoftL1": (SoftL1, [[2.0]], [[2.0]]),
    "Cauchy": (Cauchy, [[2.0]], [[2.0]]),
    "Poisson": (Poisson, [[0.0]], [[1.0]]),
    "CrossEntropy": (CrossEntropy, [[1e4, -1e4]], [[1.0, 0.0]]),
    "BinaryCrossEntropy": (BinaryCrossEntropy, [[1e4]], [[1.0]]),
    "probabilities": (lambda **kw: BinaryCrossEntropy(from_logits=False, **kw), [[1.0]], [[1.0]]),
    "MSELoss": (lambda **kw: TorchLoss(nn.MSELoss(), **kw), [[2.0]], [[2.0]]),
    "own module": (lambda **kw: TorchLoss(LogCosh(), **kw), [[2.0]], [[2.0]]),
}


@pytest.mark.parametrize(("make", "outputs", "targets"), EXACT.values(), ids=EXACT)
def test_the_trick_is_zero_at_a_loss_of_zero(make, outputs, targets):
    residual, factor = make(curvature="sqrt").linearize(tensor(*outputs), tensor(*targets))
    assert residual.tolist() == [[0.0]]
    assert not bool(factor.any())


# A smooth convex loss >= 0 obeys |g|^2 <= 2 L l with L the largest curvature near by, so the trick's C = gg'/(2l) <= L.
# Where the value rounds to zero before the gradient does, dividing by it must not blow the curvature up.


@pytest.mark.parametrize("gap", [20.0, 36.0, 37.0, 40.0, 60.0, 100.0, 300.0, 700.0])
@pytest.mark.parametrize(
    "make", [CrossEntropy, lambda **kw: TorchLoss(nn.CrossEntropyLoss(), **kw)], ids=["own", "CrossEntropyLoss"]
)
def test_the_trick_stays_below_the_largest_curvature_of_cross_entropy(make, gap):
    loss = make(curvature="sqrt")
    outputs = tensor([gap, 0.0, 0.0])
    _, factor = loss.linearize(outputs, loss.prepare(outputs, torch.tensor([0])))
    assert float(factor.square().sum()) <= 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("error", [0.0, 1e-12, 1e-10, 1e-9, 1e-8, 1.6e-8, 1e-7, 1e-5])
@pytest.mark.parametrize("count", [1.0, 100.0, 1e6])
def test_the_trick_stays_near_the_largest_curvature_of_poisson(count, error):
    outputs = tensor([np.log(count) + error])
    _, factor = Poisson(curvature="sqrt").linearize(outputs, tensor([count]))
    assert float(factor.square()) <= 10 * count  # 10 for the rounding of a value near zero


@pytest.mark.parametrize("logit", [20.0, 40.0, 300.0, 740.0])
def test_the_trick_stays_below_the_largest_curvature_of_the_logistic_loss(logit):
    _, factor = BinaryCrossEntropy(curvature="sqrt").linearize(tensor([logit]), tensor([1.0]))
    assert float(factor.square()) <= 0.25 * (1 + 1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BinaryCrossEntropy(from_logits=False),
        lambda: TorchLoss(nn.BCELoss()),
        lambda: TorchLoss(nn.BCELoss(weight=tensor(1.0))),
    ],
    ids=["BinaryCrossEntropy", "BCELoss", "BCELoss, weight"],
)
def test_outputs_that_are_not_numbers_give_a_value_that_is_none(make):
    # a trial step may end in nan; the engine rejects it by its loss, so the loss must not raise
    values = make().value(tensor([0.5], [np.nan], [1.1]), tensor([1.0], [1.0], [1.0]))
    assert values[0].item() == pytest.approx(np.log(2))
    assert values[1:].isnan().all()


def test_batchmean_is_a_sum_over_the_outputs():
    outputs, targets = LOGITS.log_softmax(1), SOFT
    loss = nn.KLDivLoss(reduction="batchmean")
    assert TorchLoss(loss)(outputs, targets).item() == pytest.approx(loss(outputs, targets).item(), rel=1e-14)


def test_no_count_where_none_is_expected():
    loss = Poisson(log_link=False)
    outputs, targets = tensor([0.0], [1e-300], [2.0]), tensor([0.0], [0.0], [3.0])
    residual, factor = loss.ggn(outputs, targets)
    assert torch.isfinite(residual).all()
    assert torch.isfinite(factor).all()
    np.testing.assert_allclose((factor[:, 0] * residual)[:, 0], [1.0, 1.0, -0.5], rtol=1e-14)
    assert not torch.isfinite(loss.gradient(tensor([0.0]), tensor([1.0]))).any()  # a count that cannot be


@pytest.mark.parametrize("make", [Huber, SoftL1, Cauchy])
def test_sampling_is_refused_by_name(make):
    with pytest.raises(ValueError, match=rf"curvature='mc'` is for the cross-entropy.*{make.__name__}"):
        make(curvature="mc")


def test_a_negative_loss_has_no_square_root():
    loss = TorchLoss(nn.PoissonNLLLoss(), curvature="sqrt")
    with pytest.raises(
        ValueError, match=r"`criterion__curvature='sqrt'` needs a loss >= 0; .*PoissonNLLLoss.* is -2\.27"
    ):
        loss.linearize(tensor([2.0]), tensor([4.83]))  # e^2 - 4.83 * 2 = -2.27


def test_absolute_error_is_smoothed_in_its_weight_only():
    loss = AbsoluteError(smoothing=1e-3)
    outputs, targets = tensor([1e-5], [0.5], [0.0]), tensor([0.0], [0.0], [0.0])
    assert loss.value(outputs, targets).tolist() == [1e-5, 0.5, 0.0]
    _, factor = loss.ggn(outputs, targets)
    torch.testing.assert_close(factor[:, 0, 0] ** 2, tensor(1e3, 2.0, 1e3))


# From outputs to predictions


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (SquaredError(), [-1.0, 0.0, 2.0]),
        (Huber(), [-1.0, 0.0, 2.0]),
        (Poisson(), np.exp([-1.0, 0.0, 2.0])),
        (CrossEntropy(), special.softmax([-1.0, 0.0, 2.0])),
        (BinaryCrossEntropy(), special.expit([-1.0, 0.0, 2.0])),
        (BinaryCrossEntropy(from_logits=False), [-1.0, 0.0, 2.0]),
        (TorchLoss(nn.MSELoss()), [-1.0, 0.0, 2.0]),
        (TorchLoss(nn.PoissonNLLLoss()), np.exp([-1.0, 0.0, 2.0])),
        (TorchLoss(nn.PoissonNLLLoss(log_input=False)), [-1.0, 0.0, 2.0]),
        (TorchLoss(nn.CrossEntropyLoss()), special.softmax([-1.0, 0.0, 2.0])),
        (TorchLoss(nn.BCEWithLogitsLoss()), special.expit([-1.0, 0.0, 2.0])),
        (TorchLoss(nn.BCEWithLogitsLoss(weight=tensor(1.0, 2.0, 3.0))), special.expit([-1.0, 0.0, 2.0])),
        (TorchLoss(nn.BCELoss()), [-1.0, 0.0, 2.0]),
        (TorchLoss(LogCosh()), [-1.0, 0.0, 2.0]),
    ],
)
def test_mean_turns_outputs_into_predictions(loss, expected):
    np.testing.assert_allclose(loss.mean(tensor([-1.0, 0.0, 2.0]))[0], expected, rtol=1e-14)


def test_link_is_the_inverse_of_the_mean():
    targets = tensor([0.7], [3.0], [100.0])
    for loss in (SquaredError(), Cauchy(), Poisson(), TorchLoss(nn.PoissonNLLLoss()), TorchLoss(nn.L1Loss())):
        torch.testing.assert_close(loss.mean(loss.link(targets)), targets)


def test_the_link_of_a_count_of_zero_is_finite():
    assert bool(torch.isfinite(Poisson().link(tensor([0.0]))).all())


@pytest.mark.parametrize(
    ("loss", "task"),
    [
        (SquaredError(), "regression"),
        (AbsoluteError(), "regression"),
        (Cauchy(), "regression"),
        (Poisson(), "regression"),
        (CrossEntropy(), "classification"),
        (BinaryCrossEntropy(), "classification"),
        (TorchLoss(nn.SmoothL1Loss()), "regression"),
        (TorchLoss(nn.CrossEntropyLoss()), "classification"),
        (TorchLoss(nn.BCELoss()), "classification"),
        (TorchLoss(nn.MultiMarginLoss()), None),
    ],
)
def test_task(loss, task):
    assert loss.task == task


# Targets


def test_targets_take_shape_and_dtype_of_the_outputs():
    prepared = SquaredError().prepare(torch.zeros(3, 1).double(), torch.tensor([1, 2, 3]))
    assert prepared.tolist() == [[1.0], [2.0], [3.0]]
    assert prepared.dtype == torch.float64
    assert CrossEntropy().prepare(torch.zeros(3, 2).double(), torch.tensor([[1], [0], [1]])).tolist() == [
        [0.0, 1.0],
        [1.0, 0.0],
        [0.0, 1.0],
    ]
    assert TorchLoss(nn.MultiMarginLoss()).prepare(torch.zeros(3, 4), HARD[:3]).tolist() == [0, 1, 2]


FITTING = r" needs one target per output; the module returns \(4, 2\) and the target has shape "


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (SquaredError(), torch.zeros(4), r"SquaredError\(\)" + FITTING + r"\(4,\)"),
        (SquaredError(), torch.zeros(2, 4), FITTING + r"\(2, 4\)"),
        (SquaredError(), torch.zeros(8), FITTING + r"\(8,\)"),
        (Huber(), torch.zeros(4, 1), r"Huber\(delta=1\)" + FITTING + r"\(4, 1\)"),
        (Poisson(), torch.zeros(3, 2), FITTING + r"\(3, 2\)"),
        (BinaryCrossEntropy(), torch.zeros(4), FITTING + r"\(4,\).*Make the module's number of outputs match y"),
        (CrossEntropy(), torch.zeros(4, 3), FITTING + r"\(4, 3\)"),
        (CrossEntropy(), torch.zeros(3).long(), r"needs one class index per sample; the module returns \(4, 2\)"),
        (CrossEntropy(), torch.zeros(4, 2).long(), r"needs one class index per sample"),
        (
            CrossEntropy(),
            torch.tensor([0, 1, 2, 0]),
            r"needs class indices from 0 to 1, .*; got 0 to 2\. Give the module",
        ),
        (CrossEntropy(), torch.tensor([0, 1, -1, 0]), r"needs class indices from 0 to 1, .*; got -1 to 1"),
        (TorchLoss(nn.MSELoss()), torch.zeros(4), r"MSELoss|SquaredError"),
        (TorchLoss(nn.CrossEntropyLoss()), torch.tensor([0, 1, 2, -100]), r"class indices from 0 to 1, .*; got 0 to 2"),
        (TorchLoss(nn.CrossEntropyLoss()), torch.zeros(3).long(), r"one class index per sample"),
    ],
)
def test_targets_that_do_not_fit_the_outputs(loss, targets, message):
    with pytest.raises(ValueError, match=message):
        loss.prepare(torch.zeros(4, 2).double(), targets)


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (Poisson(), tensor(1.0, -2.0), r"Poisson\(\) needs y >= 0; got -2\. Pass another criterion"),
        (TorchLoss(nn.PoissonNLLLoss()), tensor(1.0, -2.0), r"needs y >= 0; got -2"),
        (BinaryCrossEntropy(), tensor(0.0, 1.5), r"BinaryCrossEntropy\(\) needs targets between 0 and 1; encode"),
        (BinaryCrossEntropy(), tensor(-1.0, 1.0), r"needs targets between 0 and 1"),
        (TorchLoss(nn.BCELoss()), tensor(0.0, 2.0), r"needs targets between 0 and 1"),
    ],
)
def test_targets_outside_the_domain(loss, targets, message):
    with pytest.raises(ValueError, match=message):
        loss.check_targets(targets)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (SquaredError(), tensor(-1e9, 1e9)),
        (Poisson(), tensor(0.0, 2.5)),
        (BinaryCrossEntropy(), tensor(0.0, 0.3, 1.0)),
        (TorchLoss(nn.MultiMarginLoss()), tensor(-3.0)),
    ],
)
def test_targets_inside_the_domain(loss, targets):
    loss.check_targets(targets)


# Torch losses


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_users_criterion_is_copied(reduction):
    criterion = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS.clone(), reduction=reduction)
    loss = TorchLoss(criterion)
    loss.float()
    assert criterion.reduction == reduction
    assert criterion.weight.dtype == torch.float64
    assert loss.criterion is not criterion


def test_a_torch_loss_must_keep_its_samples_apart():
    class Mean(LogCosh):
        def forward(self, outputs, targets):
            return (outputs - targets).cosh().log().mean()

    with pytest.raises(
        ValueError, match=r"must return one loss per sample with reduction='none'; pass another criterion"
    ):
        TorchLoss(Mean()).value(*REAL)


class Doubled(nn.MSELoss):
    """A user's variation of a torch loss: twice the squared error, where overestimated ten times that."""

    def forward(self, outputs, targets):
        weight = torch.where(outputs > targets, 20.0, 2.0)
        return weight * (outputs - targets) ** 2


def test_a_users_subclass_of_a_torch_loss_is_not_taken_for_its_parent():
    loss = TorchLoss(Doubled())
    outputs, targets = REAL
    residual, factor = loss.linearize(outputs, targets)
    leaf = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Doubled()(leaf, targets).mean(1).sum(), leaf)
    torch.testing.assert_close(products(residual, factor)[0], gradient, **CLOSE)


@pytest.mark.parametrize(
    "weight", [2.3, torch.tensor(2.3, dtype=torch.float64), tensor(2.3)], ids=["float", "scalar tensor", "tensor"]
)
def test_a_positive_weight_keeps_its_digits(weight):
    value = BinaryCrossEntropy(positive_weight=weight).value(tensor([0.0]), tensor([1.0]))
    assert value.item() == pytest.approx(2.3 * np.log(2), rel=1e-14)


# Subclasses


class Quartic(Loss):
    """A user's loss with nothing but a value."""

    def value(self, outputs, targets):
        return ((outputs - targets) ** 4).sum(1)


def test_a_subclass_needs_only_its_value():
    loss = Quartic()
    outputs, targets = REAL
    assert loss.curvature == "sqrt"
    assert loss.task is None
    residual, factor = loss.linearize(outputs, loss.prepare(outputs, targets))
    gradient = 4 * (outputs - targets) ** 3
    torch.testing.assert_close(residual[:, 0] ** 2 / 2, ((outputs - targets) ** 4).sum(1), **CLOSE)
    torch.testing.assert_close(loss.gradient(outputs, targets), gradient, **CLOSE)
    torch.testing.assert_close(products(residual, factor)[0], gradient, **CLOSE)


def test_a_subclass_works_where_gradients_are_switched_off():
    with torch.no_grad():
        gradient = Quartic().gradient(tensor([2.0]), tensor([1.0]))
    assert gradient.tolist() == [[4.0]]
    assert not gradient.requires_grad


def test_a_subclass_without_gauss_newton_says_so():
    with pytest.raises(
        ValueError, match=r"`criterion__curvature='ggn'` needs a loss that defines it, and Quartic\(\) does"
    ):
        Quartic(curvature="ggn")
    with pytest.raises(TypeError, match=r"Quartic defines no Gauss-Newton curvature; use curvature='sqrt'"):
        Quartic().ggn(*REAL)


def test_a_subclass_may_add_gauss_newton():
    class Mine(Quartic):
        def ggn(self, outputs, targets):
            return outputs - targets, torch.eye(outputs.shape[1]).to(outputs).expand(len(outputs), -1, -1)

    assert Mine().curvature == "ggn"
    assert Mine(curvature="sqrt").curvature == "sqrt"
    assert torch.equal(Mine().linearize(*REAL)[0], REAL[0] - REAL[1])


# Names, classes and instances


@pytest.mark.parametrize(
    ("criterion", "keywords", "kind", "attributes"),
    [
        ("squared_error", {}, SquaredError, {"curvature": "ggn"}),
        ("absolute_error", {"smoothing": 0.1}, AbsoluteError, {"smoothing": 0.1}),
        ("huber", {"delta": 2}, Huber, {"delta": 2.0}),
        ("soft_l1", {"curvature": "sqrt"}, SoftL1, {"curvature": "sqrt", "delta": 1.0}),
        ("cauchy", {"delta": np.float64(0.5), "curvature": None}, Cauchy, {"delta": 0.5, "curvature": "ggn"}),
        ("poisson", {}, Poisson, {}),
        ("log_loss", {}, CrossEntropy, {"curvature": "ggn"}),
        (Huber, {"delta": 3.0}, Huber, {"delta": 3.0}),
        (BinaryCrossEntropy, {"from_logits": False}, BinaryCrossEntropy, {"from_logits": False}),
        (Quartic, {}, Quartic, {"curvature": "sqrt"}),
        (nn.MSELoss, {}, TorchLoss, {"curvature": "ggn", "sums": False}),
        (nn.MSELoss, {"reduction": "sum", "curvature": "sqrt"}, TorchLoss, {"curvature": "sqrt", "sums": True}),
        (nn.MultiMarginLoss, {"margin": 0.5}, TorchLoss, {"curvature": "sqrt"}),
        (nn.HuberLoss(), {}, TorchLoss, {"curvature": "ggn"}),
        (nn.HuberLoss(), {"curvature": "sqrt"}, TorchLoss, {"curvature": "sqrt"}),
        (LogCosh, {"reduction": "sum"}, TorchLoss, {"curvature": "sqrt", "sums": True}),
        (LogCosh(), {}, TorchLoss, {"curvature": "sqrt", "sums": False}),
    ],
)
def test_names_classes_and_instances(criterion, keywords, kind, attributes):
    before = dict(keywords)
    loss = resolve_loss(criterion, keywords)
    assert type(loss) is kind
    assert {name: getattr(loss, name) for name in attributes} == attributes
    assert keywords == before


def test_a_loss_instance_is_copied():
    loss = Huber(delta=2.0)
    resolved = resolve_loss(loss)
    assert resolved is not loss
    assert isinstance(resolved, Huber)
    assert resolved.delta == 2.0


@pytest.mark.parametrize(
    ("criterion", "keywords", "message"),
    [
        ("hubber", {}, r"`criterion` must be one of 'squared_error', .*; got 'hubber'; did you mean 'huber'\?"),
        ("squared-error", {}, r"got 'squared-error'; did you mean 'squared_error'\?"),
        ("???", {}, r"`criterion` must be one of .*; got '\?\?\?'"),
        (42, {}, r"`criterion` must be one of .* or a subclass or an instance of Loss; got 42"),
        (None, {}, r"`criterion` must be one of .*; got None"),
        (F.mse_loss, {}, r"`criterion` must be one of .*; got <function mse_loss"),
        (nn.Identity(), {}, r"`criterion` must be a torch loss with a `reduction` attribute; got Identity\(\)"),
        (nn.Identity, {}, r"`criterion` must be a torch loss with a `reduction` attribute"),
        (nn.Linear, {}, r"`criterion`"),
        (
            Huber(),
            {"delta": 2.0},
            r"`criterion` is an instance, so `criterion__delta` cannot be applied to it; set the",
        ),
        (Huber(), {"curvature": "sqrt"}, r"`criterion` is an instance, so `criterion__curvature` cannot be applied"),
        (nn.HuberLoss(), {"delta": 2.0}, r"`criterion__delta`"),
        (nn.HuberLoss(), {"criterion": nn.MSELoss()}, r"`criterion__criterion`"),
        ("squared_error", {"delta": 2.0}, r"`criterion__delta` is not a parameter of SquaredError; it takes curvature"),
        ("huber", {"dleta": 2.0}, r"`criterion__dleta` is not a parameter of Huber; .*; did you mean 'delta'\?"),
        (
            nn.SmoothL1Loss,
            {"bta": 2.0},
            r"`criterion__bta` is not a parameter of SmoothL1Loss; .* did you mean 'beta'\?",
        ),
        ("squared_error", {"curvature": "gn"}, r"`criterion__curvature` must be one of 'ggn', 'sqrt', 'mc'; got 'gn'"),
        ("squared_error", {"curvature": 1}, r"`criterion__curvature` must be one of 'ggn', 'sqrt', 'mc'; got 1"),
        (
            "squared_error",
            {"curvature": "mc"},
            r"'mc'` is for the cross-entropy of several classes, which SquaredError",
        ),
        (nn.BCEWithLogitsLoss, {"curvature": "mc"}, r"'mc'` is for the cross-entropy of several classes"),
        (nn.MultiMarginLoss, {"curvature": "mc"}, r"'mc'` is for the cross-entropy of several classes"),
        (
            nn.MultiMarginLoss,
            {"curvature": "ggn"},
            r"`criterion__curvature='ggn'` needs a loss that defines it, and Torch",
        ),
        (nn.MultiMarginLoss(), {"curvature": "ggn"}, r"`criterion__curvature='ggn'` needs a loss that"),
        ("huber", {"delta": 0}, r"`criterion__delta` must be a finite number > 0; got 0\."),
        ("cauchy", {"delta": -1.0}, r"`criterion__delta` must be a finite number > 0; got -1.0"),
        ("soft_l1", {"delta": "1"}, r"`criterion__delta` must be a finite number > 0; got '1'"),
        ("huber", {"delta": float("nan")}, r"`criterion__delta` must be a finite number > 0; got nan"),
        ("absolute_error", {"smoothing": 0.0}, r"`criterion__smoothing` must be a finite number > 0; got 0.0"),
        (
            BinaryCrossEntropy,
            {"from_logits": False, "positive_weight": 2.0},
            r"`criterion__positive_weight` needs `from_log",
        ),
        (BinaryCrossEntropy, {"positive_weight": -1.0}, r"`criterion__positive_weight` must be .*; got -1"),
        (BinaryCrossEntropy, {"positive_weight": float("nan")}, r"`criterion__positive_weight` must be .*; got nan"),
    ],
)
def test_errors_name_the_parameter_the_rule_and_the_value(criterion, keywords, message):
    with pytest.raises(ValueError, match=message):
        resolve_loss(criterion, keywords)


@pytest.mark.parametrize("eps", [1e-8, 0.5])
def test_poisson_of_torch_with_its_eps(eps):
    loss = resolve_loss(nn.PoissonNLLLoss(log_input=False, eps=eps))
    outputs = torch.tensor([[0.0], [0.2], [3.0]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[2.0], [0.0], [4.0]], dtype=torch.float64)
    residual, factor = loss.ggn(outputs.detach(), targets)
    (expected,) = torch.autograd.grad(loss.value(outputs, targets).sum(), outputs)
    torch.testing.assert_close((factor.mT @ residual[:, :, None])[:, :, 0], expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
def test_a_loss_that_rounds_to_below_zero_at_its_minimum(reduction):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 3, generator=generator, dtype=torch.float64).log_softmax(1)
    loss = resolve_loss(nn.KLDivLoss(reduction=reduction))
    targets = loss.prepare(logits, logits.exp())
    assert (loss.value(logits, targets) < 0).any()
    residual, factor = loss.linearize(logits, targets)
    assert residual.abs().max() < 1e-7
    assert torch.isfinite(factor).all()
    with pytest.raises(ValueError, match="needs a loss >= 0"):
        loss.linearize(logits, targets / 2)


@pytest.mark.parametrize("criterion", [nn.HingeEmbeddingLoss(), nn.SoftMarginLoss()], ids=str)
def test_integer_targets_of_one_output_are_not_broadcast(criterion):
    outputs = torch.tensor([[0.2], [1.5], [0.4]], dtype=torch.float64)
    y = torch.tensor([1, -1, 1])
    loss = resolve_loss(criterion)
    for targets in (y, y.double()):
        values = loss.value(outputs, loss.prepare(outputs, targets))
        assert values.mean().item() == pytest.approx(criterion(outputs[:, 0], y).item())


def test_weights_of_samples_within_a_loss_are_refused():
    with pytest.raises(ValueError, match="must have a weight per output; got one of shape"):
        resolve_loss(nn.BCELoss(weight=torch.ones(5, 1)))


def test_a_loss_that_mixes_the_samples_is_refused():
    class Broadcast(nn.Module):
        reduction = "mean"

        def forward(self, outputs, targets):
            return (outputs - targets.reshape(-1)) ** 2

    outputs = torch.full((5, 1), 0.5)
    loss = resolve_loss(Broadcast())
    with pytest.raises(ValueError, match="mixes the samples: it returned 5 x 5 losses"):
        loss.value(outputs, loss.prepare(outputs, torch.ones(5)))


def test_several_values_of_a_sample_are_no_broadcast():
    class Interval(nn.Module):
        reduction = "mean"

        def forward(self, outputs, targets):
            return (outputs - targets) ** 2

    outputs, targets = torch.tensor([[0.2], [0.7]]), torch.tensor([[0.0, 1.0], [0.5, 1.0]])
    loss = resolve_loss(Interval())
    found = loss.value(outputs, loss.prepare(outputs, targets))
    assert torch.equal(found, ((outputs - targets) ** 2).mean(1))


def test_integer_targets_in_one_long_vector_are_left_alone():
    outputs, targets = torch.zeros(4, 2), torch.ones(8, dtype=torch.long)
    assert resolve_loss(nn.SoftMarginLoss()).prepare(outputs, targets) is targets


NOISES = [
    SquaredError(),
    AbsoluteError(),
    *(loss(delta=d) for loss in (Huber, SoftL1, Cauchy) for d in (0.1, 1.0, 30.0)),
]


@pytest.mark.parametrize("phi", [1e-3, 0.3, 20.0])
@pytest.mark.parametrize("loss", NOISES, ids=repr)
def test_noise_of_a_loss_is_its_density(loss, phi):
    if isinstance(loss, Cauchy) and phi >= loss.delta**2:
        assert loss.noise(phi) == (np.inf, np.inf)  # which has no density
        return

    def rho(residual):
        return float(loss._rho(torch.tensor(residual, dtype=torch.float64)))

    scale = phi if isinstance(loss, AbsoluteError) else max(phi**0.5, phi / getattr(loss, "delta", np.inf))

    def density(t):  # r = scale sinh(t) reaches far into the tails
        return np.exp(-rho(scale * np.sinh(t)) / phi) * scale * np.cosh(t)

    end = 60 if isinstance(loss, Cauchy) else 8
    settings = {"epsabs": 0, "epsrel": 1e-10, "limit": 500}
    total = 2 * quad(density, 0, end, **settings)[0]
    mean = 2 * quad(lambda t: rho(scale * np.sinh(t)) * density(t), 0, end, **settings)[0] / total
    np.testing.assert_allclose(loss.noise(phi), (np.log(total / np.sqrt(2 * np.pi)), mean), rtol=1e-6, atol=1e-6)


def test_noise_becomes_normal_for_a_large_delta():
    for loss in (Huber, SoftL1, Cauchy):
        for delta in (1e3, 1e5, 1e150):
            np.testing.assert_allclose(loss(delta=delta).noise(0.3), SquaredError().noise(0.3), rtol=1e-5)


@pytest.mark.parametrize("outputs", [torch.tensor([[1.0, -2.0, -torch.inf]]), torch.tensor([[0.5, 0.5, -torch.inf]])])
def test_a_class_that_is_ruled_out(outputs):
    targets = torch.tensor([0])
    loss = CrossEntropy()
    found = loss.value(outputs, loss.prepare(outputs, targets))
    torch.testing.assert_close(found, F.cross_entropy(outputs, targets, reduction="none"))
    assert torch.isfinite(
        torch.cat([part.flatten() for part in loss.linearize(outputs, loss.prepare(outputs, targets))])
    ).all()
    assert torch.isinf(loss.value(outputs, loss.prepare(outputs, torch.tensor([2])))).all()
