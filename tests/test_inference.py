"""Standard errors, intervals and reports, against scipy, lmfit, statsmodels and closed forms.

A fit at the default ftol=1e-8 has its covariance to 7 digits; `RTOL` is one less, unless the oracle knows fewer.
"""

import io
import pickle
import re
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

import joblib
import lmfit
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.optimize import brentq, curve_fit, least_squares
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch import nn
from torch.utils.data import Subset

from sklm import LMRegressor as Regressor
from sklm import curve, curves
from sklm.losses import SquaredError

RTOL = 1e-6
RNG = np.random.default_rng(20240607)

# a decay with known sigma per point
DECAY = "a*exp(-b*x)+c"
x = np.linspace(0, 4, 60)
SIGMA = 0.02 + 0.05 * RNG.random(60)
DECAY_Y = 3 * np.exp(-1.3 * x) + 0.5 + SIGMA * RNG.standard_normal(60)
PRECISION = 1 / SIGMA**2

# linear data: heteroscedastic, and outputs of unequal noise
X = RNG.standard_normal((40, 3))
DESIGN = sm.add_constant(X)
Y = X @ [1.0, -2.0, 0.5] + 3 + (0.2 + np.abs(X[:, 0])) * RNG.standard_normal(40)
Y2 = np.column_stack([Y, X @ [0.3, 1.0, 2.0] - 1 + 5 * RNG.standard_normal(40)])
WEIGHTS = 0.5 + RNG.random(40)
COUNTS = RNG.integers(0, 4, 40)
NEW = RNG.standard_normal((7, 3))
NEW_DESIGN = sm.add_constant(NEW, has_constant="add")
LINEAR = "a+b*x0+c*x1+d*x2"

# counts
EVENTS = RNG.poisson(np.exp(0.5 + 0.4 * X[:, 0]))


def LMRegressor(*args, **params):
    """Return a regressor whose search for a start is the same in every run."""
    return Regressor(*args, **{"random_state": 0, **params})


def decay(t, a, b, c):
    return a * np.exp(-b * t) + c


def decay_jacobian(t, a, b, c):
    return np.column_stack([np.exp(-b * t), -a * t * np.exp(-b * t), np.ones_like(t)])


def scipy_decay(**kwargs):
    tight = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
    return curve_fit(decay, x, DECAY_Y, p0=[1, 1, 0], jac=decay_jacobian, **tight, **kwargs)


def fit_decay(weights=None, **params):
    return LMRegressor(DECAY, **params).fit(x[:, None], DECAY_Y, sample_weight=weights)


def fit_linear(y=Y, weights=None, **params):
    return LMRegressor(LINEAR, **params).fit(X, y, sample_weight=weights)


def fit_module(y=Y, weights=None, **params):
    return LMRegressor(nn.Linear(3, 1 if y.ndim == 1 else y.shape[1]), **params).fit(X, y, sample_weight=weights)


def errors(model):
    return np.array(list(model.standard_errors_.values()))


def of_module(matrix, n_outputs=1):
    """Return vectors or matrices in the order (constant, features) as nn.Linear has them: weights, then bias."""
    order = [1, 2, 3, 0]
    return matrix[order] if matrix.ndim == 1 else matrix[np.ix_(order, order)]


def block(model, k):
    """Return the covariance of output k of nn.Linear(3, 2), in the order weights, bias."""
    at = [3 * k, 3 * k + 1, 3 * k + 2, 6 + k]
    return model.covariance_[np.ix_(at, at)]


@pytest.fixture(scope="module")
def fitted():
    return fit_decay(PRECISION)


# ---------------------------------------------------------------------------------------------- covariance


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
@pytest.mark.parametrize("sigma", [None, SIGMA, 100 * SIGMA], ids=["unit", "sigma", "sigma*100"])
def test_covariance_is_that_of_curve_fit(sigma, absolute):
    values, covariance = scipy_decay(sigma=sigma, absolute_sigma=absolute)
    model = fit_decay(None if sigma is None else 1 / sigma**2, absolute_sigma=absolute)
    assert_allclose(list(model.parameters_.values()), values, rtol=RTOL)
    assert_allclose(model.covariance_, covariance, rtol=RTOL)
    assert_allclose(errors(model), np.sqrt(np.diag(covariance)), rtol=RTOL)
    scale = np.sqrt(np.diag(covariance))
    assert_allclose(model.correlation_, covariance / np.outer(scale, scale), rtol=RTOL)


def test_standard_errors_are_those_of_lmfit_with_an_exact_jacobian(fitted):
    start = lmfit.create_params(a=1, b=1, c=0)
    values = lambda p: [p[name].value for name in "abc"]  # noqa: E731
    result = lmfit.minimize(
        lambda p: (decay(x, *values(p)) - DECAY_Y) / SIGMA,
        start,
        Dfun=lambda p: decay_jacobian(x, *values(p)) / SIGMA[:, None],
        ftol=1e-15,
        xtol=1e-15,
        gtol=1e-15,
    )
    assert_allclose(errors(fitted), [result.params[name].stderr for name in "abc"], rtol=1e-6)


def test_statistics_are_those_of_lmfit(fitted):
    result = lmfit.Model(decay, independent_vars=["t"]).fit(DECAY_Y, t=x, a=1, b=1, c=0, weights=1 / SIGMA)
    assert_allclose(
        errors(fitted), [result.params[name].stderr for name in "abc"], rtol=1e-4
    )  # its forward differences
    assert_allclose(fitted.chi_square_, result.chisqr, rtol=RTOL)
    assert_allclose(fitted.reduced_chi_square_, result.redchi, rtol=RTOL)
    assert_allclose(fitted.residual_variance_, result.redchi, rtol=RTOL)
    assert_allclose([fitted.aic_, fitted.bic_], [result.aic, result.bic], rtol=RTOL)
    assert fitted.dof_ == pytest.approx(result.nfree)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unit", "weights"])
@pytest.mark.parametrize(("kind", "cov_type"), [("classical", "nonrobust"), ("sandwich", "HC1")])
@pytest.mark.parametrize("module", [False, True], ids=["formula", "nn.Linear"])
def test_linear_covariance_is_that_of_statsmodels(weights, kind, cov_type, module):
    oracle = sm.WLS(Y, DESIGN, weights=1.0 if weights is None else weights).fit(cov_type=cov_type)
    model = (fit_module if module else fit_linear)(weights=weights, covariance=kind)
    expected = of_module(oracle.cov_params()) if module else oracle.cov_params()
    assert_allclose(model.covariance_, expected, rtol=RTOL, atol=1e-9)
    assert_allclose(model.residual_variance_, oracle.scale, rtol=RTOL)


@pytest.mark.parametrize("weights", [None, PRECISION], ids=["unit", "weights"])
def test_sandwich_of_a_curve(weights):
    model = fit_decay(weights, covariance="sandwich")
    a, b, c = model.parameters_.values()
    w = np.ones(60) if weights is None else weights
    J, r = decay_jacobian(x, a, b, c), DECAY_Y - decay(x, a, b, c)
    bread = np.linalg.inv((J.T * w) @ J)
    assert_allclose(model.covariance_, 60 / 57 * bread @ ((J.T * (w * r) ** 2) @ J) @ bread, rtol=RTOL)


def test_sandwich_ignores_absolute_sigma():
    one, other = (fit_decay(PRECISION, covariance="sandwich", absolute_sigma=flag) for flag in (False, True))
    assert_allclose(one.covariance_, other.covariance_, rtol=1e-12)


@pytest.mark.parametrize(("kind", "cov_type"), [("classical", "nonrobust"), ("sandwich", "HC1")])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unit", "weights"])
@pytest.mark.parametrize("criterion", ["squared_error", nn.MSELoss(), nn.MSELoss(reduction="sum")], ids=str)
def test_outputs_are_fits_of_their_own(kind, cov_type, weights, criterion):
    model = fit_module(Y2, weights, covariance=kind, criterion=criterion)
    oracles = [sm.WLS(y, DESIGN, weights=1.0 if weights is None else weights).fit(cov_type=cov_type) for y in Y2.T]
    for k, oracle in enumerate(oracles):
        assert_allclose(block(model, k), of_module(oracle.cov_params()), rtol=RTOL, atol=1e-9)
    assert_allclose(model.residual_variance_, [oracle.scale for oracle in oracles], rtol=RTOL)
    assert model.dof_ == pytest.approx(36)


@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 2, 30)], ids=["unit", "weights"])
def test_outputs_with_noise_in_common_that_share_a_parameter(weights):
    z = np.linspace(0, 1, 30)
    noise = np.random.default_rng(0).multivariate_normal([0, 0], [[0.04, 0.057], [0.057, 0.09]], 30)
    y = np.column_stack([1 + 2 * z, -1 + 2 * z]) + noise

    def two(x, a=1.0, b=1.0, c=0.0):
        return torch.stack([a + b * x, c + b * x], 1)

    model = LMRegressor(curve(two)).fit(z[:, None], y, sample_weight=weights)
    root = np.ones(30) if weights is None else np.sqrt(weights)
    J = root[:, None, None] * np.stack(
        [np.stack([np.ones(30), z, np.zeros(30)], 1), np.stack([np.zeros(30), z, np.ones(30)], 1)], 1
    )
    r = root[:, None] * (model.predict(z[:, None]) - y)
    S = r.T @ r / (30 - 3 / 2)
    bread = np.linalg.inv(np.einsum("ika,ikb->ab", J, J))
    assert_allclose(model.covariance_, bread @ np.einsum("ika,kl,ilb->ab", J, S, J) @ bread, rtol=RTOL)
    assert S[0, 1] > 0.9 * np.sqrt(S[0, 0] * S[1, 1])  # the noise in common is seen


def test_outputs_that_share_parameters_in_few_rows():
    """Of fewer than ten rows per parameter the residuals say nothing of the noise along these."""
    t = torch.linspace(0, 1, 20, dtype=torch.float64)

    def line(x, a=1.0, b=1.0):
        return (a + b * t).expand(len(x), 20)

    y = 1 + 2 * t.numpy() + 0.2 * np.random.default_rng(0).standard_normal((1, 20))
    oracle = sm.OLS(y[0], sm.add_constant(t.numpy())).fit()
    assert_allclose(errors(LMRegressor(curve(line)).fit([[0.0]], y)), oracle.bse, rtol=0.3)


@pytest.mark.parametrize("kind", ["classical", "sandwich"])
def test_repeated_rows_are_rows(kind):
    oracle = sm.OLS(np.repeat(Y, COUNTS), np.repeat(DESIGN, COUNTS, axis=0))
    oracle = oracle.fit(cov_type={"classical": "nonrobust", "sandwich": "HC1"}[kind])
    model = LMRegressor(LINEAR, covariance=kind).fit(np.repeat(X, COUNTS, axis=0), np.repeat(Y, COUNTS))
    assert_allclose(model.covariance_, oracle.cov_params(), rtol=RTOL)
    assert model.dof_ == pytest.approx(oracle.df_resid)
    assert_allclose(model.residual_variance_, oracle.scale, rtol=RTOL)


@pytest.mark.parametrize("kind", ["classical", "sandwich"])
def test_repeated_rows_with_weights_are_rows(kind):
    rows = RNG.permutation(np.r_[np.arange(40), np.arange(25)])
    weights = 0.5 + RNG.random(65)
    oracle = sm.WLS(Y[rows], DESIGN[rows], weights=weights)
    oracle = oracle.fit(cov_type={"classical": "nonrobust", "sandwich": "HC1"}[kind])
    model = LMRegressor(LINEAR, covariance=kind).fit(X[rows], Y[rows], sample_weight=weights)
    assert_allclose(model.covariance_, oracle.cov_params(), rtol=RTOL)
    assert model.dof_ == pytest.approx(oracle.df_resid)


def test_repeated_rows_of_a_curve():
    t, y = np.repeat(x, 2), np.repeat(DECAY_Y, 2)
    _, covariance = curve_fit(decay, t, y, p0=[1, 1, 0], jac=decay_jacobian, ftol=1e-15, xtol=1e-15, gtol=1e-15)
    assert_allclose(LMRegressor(DECAY).fit(t[:, None], y).covariance_, covariance, rtol=RTOL)


@pytest.mark.parametrize("kind", ["classical", "sandwich"])
@pytest.mark.parametrize("fit", [fit_linear, fit_module], ids=["formula", "nn.Linear"])
def test_weight_zero_is_a_row_that_is_not_there(fit, kind):
    kept = COUNTS > 0
    weights = COUNTS * WEIGHTS
    oracle = sm.WLS(Y[kept], DESIGN[kept], weights=weights[kept])
    oracle = oracle.fit(cov_type={"classical": "nonrobust", "sandwich": "HC1"}[kind])
    model = fit(weights=weights, covariance=kind)
    expected = oracle.bse if fit is fit_linear else of_module(oracle.bse)
    assert_allclose(errors(model), expected, rtol=RTOL)
    assert model.dof_ == pytest.approx(oracle.df_resid)


# ---------------------------------------------------------------------------------------------- likelihoods, robust


@pytest.mark.parametrize(("kind", "cov_type", "factor"), [("classical", "nonrobust", 1), ("sandwich", "HC0", 40 / 36)])
@pytest.mark.parametrize("weights", [None, 1 + COUNTS], ids=["unit", "weights"])
def test_poisson_is_that_of_statsmodels(kind, cov_type, factor, weights):
    """The HC1 of statsmodels' GLM is its HC0, so the factor n / (n - p) is put here."""
    oracle = sm.GLM(EVENTS, DESIGN, family=sm.families.Poisson(), var_weights=weights).fit(tol=1e-14, cov_type=cov_type)
    model = fit_linear(EVENTS, weights, criterion="poisson", covariance=kind)
    bse = oracle.bse * np.sqrt(factor)
    assert_allclose(model.covariance_, factor * oracle.cov_params(), rtol=RTOL)
    assert_allclose(model.chi_square_, oracle.deviance, rtol=RTOL)
    assert_allclose(model.aic_, oracle.deviance + 2 * 4, rtol=RTOL)
    assert_allclose(model.bic_, oracle.deviance + np.log(40) * 4, rtol=RTOL)
    ends = oracle.params[:, None] + stats.norm.ppf(0.975) * np.outer(bse, [-1, 1])
    assert_allclose(list(model.confidence_intervals().values()), ends, rtol=RTOL, atol=1e-7)


@pytest.mark.filterwarnings("ignore:The Identity link function")
def test_poisson_of_the_mean_itself_is_the_identity_link():
    X1 = np.abs(X[:, :1])
    y = np.random.default_rng(0).poisson(2 + 3 * X1[:, 0])
    family = sm.families.Poisson(sm.families.links.Identity())
    oracle = sm.GLM(y, sm.add_constant(X1), family=family).fit(tol=1e-14)
    model = LMRegressor("a+b*x", criterion="poisson", criterion__log_link=False, module__a=2, module__b=2).fit(X1, y)
    assert_allclose(model.covariance_, oracle.cov_params(), rtol=1e-5)  # not canonical: the fit converges linearly


def test_poisson_predictions_are_those_of_statsmodels():
    oracle = sm.GLM(EVENTS, DESIGN, family=sm.families.Poisson()).fit(tol=1e-14).get_prediction(NEW_DESIGN)
    model = fit_linear(EVENTS, criterion="poisson")
    mean, std = model.predict(NEW, return_std=True)
    assert_allclose(mean, oracle.predicted, rtol=RTOL)
    assert_allclose(std, oracle.se, rtol=RTOL)
    assert_allclose(model.predict_interval(NEW), oracle.conf_int(), rtol=RTOL)
    with pytest.raises(ValueError, match="kind='prediction' needs a loss of residuals"):
        model.predict_interval(NEW, kind="prediction")


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_torch_poisson_has_the_fisher_information(n_outputs):
    y = np.column_stack([EVENTS, EVENTS[::-1]])[:, :n_outputs].astype(float)
    oracles = [sm.GLM(column, DESIGN, family=sm.families.Poisson()).fit(tol=1e-14) for column in y.T]
    model = fit_module(y, criterion=nn.PoissonNLLLoss())
    expected = [oracle.bse[1:] for oracle in oracles] + [[oracle.bse[0] for oracle in oracles]]
    assert_allclose(errors(model), np.concatenate(expected), rtol=1e-5)


def test_torch_poisson_has_the_deviance():
    oracle = sm.GLM(EVENTS, DESIGN, family=sm.families.Poisson()).fit(tol=1e-14)
    assert_allclose(fit_linear(EVENTS, criterion=nn.PoissonNLLLoss()).chi_square_, oracle.deviance, rtol=RTOL)


def test_huber_is_that_of_statsmodels():
    y = Y + 8 * (COUNTS == 3)
    oracle = sm.RLM(y, DESIGN, M=sm.robust.norms.HuberT()).fit(cov="H1", tol=1e-13, maxiter=500)
    model = fit_linear(y, criterion="huber", criterion__delta=1.345 * oracle.scale)
    assert_allclose(list(model.parameters_.values()), oracle.params, rtol=1e-5)
    assert_allclose(model.covariance_, oracle.bcov_scaled, rtol=1e-5, atol=1e-9)


RHO = {  # psi and its derivative in residuals over delta, after scipy.optimize.least_squares
    "huber": (lambda z: np.clip(z, -1, 1), lambda z: np.abs(z) <= 1),
    "soft_l1": (lambda z: z / np.sqrt(1 + z**2), lambda z: (1 + z**2) ** -1.5),
    "cauchy": (lambda z: z / (1 + z**2), lambda z: (1 - z**2) / (1 + z**2) ** 2),
}


@pytest.mark.parametrize("kind", ["classical", "sandwich"])
@pytest.mark.parametrize("name", RHO)
def test_robust_covariance_of_a_curve(name, kind):
    delta = 0.05
    params = {"criterion": name, "criterion__delta": delta, "covariance": kind, "ftol": 1e-14}
    model = fit_decay(**params)
    fit = least_squares(lambda p: decay(x, *p) - DECAY_Y, [3, 1.3, 0.5], loss=name, f_scale=delta, xtol=1e-15)
    assert_allclose(list(model.parameters_.values()), fit.x, rtol=1e-4)  # scipy's Gauss-Newton is approximate here
    J = decay_jacobian(x, *model.parameters_.values())
    z = (decay(x, *model.parameters_.values()) - DECAY_Y) / delta
    psi, slope = delta * RHO[name][0](z), RHO[name][1](z)
    if kind == "classical":
        inflation = 1 + 3 / 60 * slope.var() / slope.mean() ** 2
        bread, meat = np.linalg.inv(J.T @ J) / slope.mean(), inflation**2 * psi @ psi / 57 * J.T @ J
    else:
        bread, meat = np.linalg.inv((J.T * slope) @ J), 60 / 57 * (J.T * psi**2) @ J
    assert_allclose(model.covariance_, bread @ meat @ bread, rtol=RTOL)


def simulated(noise, weights=None, **params):
    """Return the standard deviation of the slope of a line over many draws, and the mean standard error."""
    z = np.linspace(0, 4, 80)
    slopes, found = [], []
    for seed in range(100):
        y = 1 + 2 * z + noise * np.random.default_rng(seed).standard_normal(80)
        model = LMRegressor("a+b*x", random_state=0, **params).fit(z[:, None], y, sample_weight=weights)
        slopes.append(model.parameters_["b"])
        found.append(model.standard_errors_["b"])
    return np.std(slopes), np.mean(found)


@pytest.mark.parametrize("name", ["huber", "soft_l1"])
def test_sandwich_of_a_robust_loss_where_the_noise_grows(name):
    noise = np.geomspace(0.05, 2, 80)
    true, found = simulated(noise, criterion=name, criterion__delta=0.3, covariance="sandwich")
    assert found == pytest.approx(true, rel=0.15)
    _, classical = simulated(noise, criterion=name, criterion__delta=0.3)
    assert classical < 0.7 * true


@pytest.mark.parametrize("name", RHO)
def test_robust_errors_with_weights(name):
    noise = 0.1 * np.exp(np.random.default_rng(0).uniform(-1.5, 1.5, 80))
    true, found = simulated(noise, 1 / noise**2, criterion=name, criterion__delta=0.1)
    assert found == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize("kind", ["classical", "sandwich"])
@pytest.mark.parametrize("name", RHO)
def test_robust_outputs_are_fits_of_their_own(name, kind):
    rng = np.random.default_rng(0)
    z = np.linspace(0.05, 4, 80)
    y = np.column_stack([z + 0.1 * rng.standard_normal(80), z + 10 * rng.standard_normal(80)])

    def two(x, a=1.0, b=1.0):
        return torch.stack([a * x, b * x], 1)

    params = {"criterion": name, "covariance": kind, "ftol": 1e-14}
    model = LMRegressor(curve(two), **params).fit(z[:, None], y)
    alone = [LMRegressor("a * x", **params).fit(z[:, None], column) for column in y.T]
    assert_allclose(errors(model), [fit.standard_errors_["a"] for fit in alone], rtol=1e-6)


@pytest.mark.parametrize("seed", [1618, 2071])
def test_absolute_error_of_a_curvature_that_is_rounding(seed):
    z = np.linspace(0, 4, 60)
    y = 1 + 2 * z + 0.1 * np.random.default_rng(seed).standard_normal(60)
    assert np.isnan(errors(LMRegressor("a+b*x", criterion="absolute_error", random_state=0).fit(z[:, None], y))).all()


def test_line_far_from_zero():
    z = np.linspace(0, 10, 50)
    y = 5 + 0.3 * z + 0.1 * np.random.default_rng(0).standard_normal(50)
    oracle = sm.OLS(y, sm.add_constant(z)).fit()
    model = LMRegressor("a + b * x").fit(1.7e9 + z[:, None], y)
    assert_allclose(model.standard_errors_["b"], oracle.bse[1], rtol=1e-4)
    assert model.dof_ == pytest.approx(48)


def test_smooth_l1_is_huber_up_to_its_scale():
    one = fit_linear(criterion="huber", criterion__delta=0.5, ftol=1e-14)
    other = fit_linear(criterion=nn.SmoothL1Loss(beta=0.5), ftol=1e-14)
    assert_allclose(other.covariance_, one.covariance_, rtol=RTOL)


@pytest.mark.parametrize("kind", ["classical", "sandwich"])
def test_absolute_error_has_the_error_of_a_median_or_none(kind):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((300, 1)), rng.standard_normal(300)
    model = LMRegressor("a+b*x", criterion="absolute_error", covariance=kind).fit(X, y)
    oracle = sm.QuantReg(y, sm.add_constant(X)).fit()
    found = errors(model)
    stated = np.isnan(found).all() and all(model.summary().notes)
    assert stated or ((found > oracle.bse / 2) & (found < oracle.bse * 2)).all()  # a density estimate: a rough oracle


def test_criterion_without_residuals():
    class Own(nn.Module):
        reduction = "mean"

        def forward(self, outputs, targets):
            return (outputs - targets).square() + 0.1 * (outputs - targets) ** 4

    model = fit_linear(criterion=Own())
    assert model.converged_
    assert model.predict(X).shape == (40,)
    assert list(model.parameters_) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=r"`criterion` .* no covariance; fit with a built-in loss"):
        model.covariance_  # noqa: B018
    with pytest.raises(ValueError, match=r"`criterion` .* no covariance"):
        model.predict(X, return_std=True)


# ---------------------------------------------------------------------------------------------- penalty, networks


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unit", "weights"])
@pytest.mark.parametrize("criterion", ["squared_error", nn.MSELoss()], ids=["squared_error", "MSELoss"])
def test_alpha_is_the_posterior_of_ridge(weights, criterion):
    alpha = 5.0
    w = np.ones(40) if weights is None else weights
    scale = 1 if criterion == "squared_error" else 2
    A = np.column_stack([X, np.ones(40)])
    H = (A.T * w) @ A
    inverse = np.linalg.inv(H + alpha / scale * np.diag([1, 1, 1, 0]))
    residual = Y - A @ (inverse @ (A.T @ (w * Y)))
    effective = np.trace(inverse @ H)
    variance = w @ residual**2 / (40 - effective)
    model = fit_module(weights=weights, alpha=alpha, criterion=criterion)
    assert_allclose(model.dof_, 40 - effective, rtol=RTOL)
    assert_allclose(model.residual_variance_, variance, rtol=RTOL)
    assert_allclose(model.covariance_, variance * inverse, rtol=RTOL, atol=1e-9)
    assert_allclose(model.bic_, 40 * np.log(w @ residual**2 / 40) + np.log(40) * effective, rtol=RTOL)
    model.set_params(absolute_sigma=True)
    assert_allclose(model.covariance_, inverse, rtol=RTOL, atol=1e-9)
    assert f"({effective:.4g} effective)" in str(model.summary())


def test_alpha_with_several_outputs_is_the_posterior_of_each():
    y = np.column_stack([Y, 2 * Y])
    one, both = fit_module(Y, alpha=5.0), fit_module(y, alpha=5.0)
    assert_allclose(both.dof_, one.dof_, rtol=RTOL)
    assert_allclose(both.residual_variance_, one.residual_variance_ * np.array([1, 4]), rtol=RTOL)


def test_network_is_the_delta_method_of_its_autograd_jacobian():
    alpha = 0.05
    model = LMRegressor(module__hidden_layer_sizes=(4,), alpha=alpha, random_state=0, max_epochs=500, device="cpu").fit(
        X, Y
    )
    module = model.module_
    names = [name for name, _ in module.named_parameters()]
    values = [parameter.detach() for _, parameter in module.named_parameters()]

    def jacobian(inputs):
        def outputs(*parameters):
            return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), inputs).reshape(-1)

        parts = torch.autograd.functional.jacobian(outputs, tuple(values))
        return torch.cat([part.reshape(len(inputs), -1) for part in parts], 1).numpy()

    J, new = jacobian(torch.as_tensor(X)), jacobian(torch.as_tensor(NEW))
    penalized = np.concatenate([np.full(value.numel(), value.ndim >= 2) for value in values])
    inverse = np.linalg.inv(J.T @ J + alpha * np.diag(penalized))
    effective = np.trace(inverse @ J.T @ J)
    variance = np.sum((Y - model.predict(X)) ** 2) / (40 - effective)
    assert_allclose(model.dof_, 40 - effective, rtol=RTOL)
    assert_allclose(model.covariance_, variance * inverse, rtol=1e-5, atol=1e-9)  # of a condition of 1e6
    std = np.sqrt(variance * np.einsum("ij,jk,ik->i", new, inverse, new))
    mean, found = model.predict(NEW, return_std=True)
    assert_allclose(found, std, rtol=RTOL)
    reach = stats.t.ppf(0.95, 40 - effective) * np.sqrt(std**2 + variance)
    interval = model.predict_interval(NEW, level=0.9, kind="prediction")
    assert_allclose(interval, np.column_stack([mean - reach, mean + reach]), rtol=RTOL)
    assert len(model.summary().names) == len(penalized) == 21


def test_network_without_weight_decay_reports_its_free_directions():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 1), nn.Linear(1, 1)

        def forward(self, inputs):
            return self.second(self.first(inputs))

    model = LMRegressor(Scaled, random_state=0).fit(X, Y)
    oracle = sm.OLS(Y, DESIGN).fit()
    assert np.isnan(errors(model)).all()  # two scales and two shifts too many
    assert set(model.summary().notes) == {"not identifiable"}
    assert model.dof_ == pytest.approx(36)
    assert_allclose(model.predict(NEW, return_std=True)[1], oracle.get_prediction(NEW_DESIGN).se_mean, rtol=1e-5)


def test_float32_fit():
    oracle = sm.OLS(Y, DESIGN).fit()
    model = LMRegressor(nn.Linear(3, 1)).fit(X.astype(np.float32), Y.astype(np.float32))
    assert model.dtype_ == torch.float32
    assert_allclose(errors(model), of_module(oracle.bse), rtol=1e-4)  # 7 digits of data and parameters
    interval = model.predict_interval(NEW.astype(np.float32))
    assert_allclose(interval, oracle.get_prediction(NEW_DESIGN).conf_int(), rtol=1e-4, atol=1e-4)


def test_mini_batches_use_all_training_rows():
    model = LMRegressor(nn.Linear(3, 1), batch_size=10, max_epochs=5, lr=0.5, random_state=0)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, Y)
    A = np.column_stack([X, np.ones(40)])
    variance = np.sum((Y - model.predict(X)) ** 2) / 36
    assert_allclose(model.covariance_, variance * np.linalg.inv(A.T @ A), rtol=RTOL, atol=1e-12)


def test_validation_rows_do_not_count():
    def split(data, y):
        return Subset(data, np.arange(30)), Subset(data, np.arange(30, 40))

    model = fit_linear(weights=WEIGHTS, train_split=split)
    assert_allclose(errors(model), sm.WLS(Y[:30], DESIGN[:30], weights=WEIGHTS[:30]).fit().bse, rtol=RTOL)
    assert fit_module(early_stopping=True, random_state=0).dof_ == pytest.approx(36 - 4)


# ---------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_wald_intervals_are_those_of_statsmodels(level):
    expected = sm.OLS(Y, DESIGN).fit().conf_int(1 - level)
    assert_allclose(list(fit_linear().confidence_intervals(level).values()), expected, rtol=RTOL)


def test_profile_of_a_linear_model_is_its_wald_interval():
    model = fit_linear(weights=WEIGHTS)
    expected = sm.WLS(Y, DESIGN, weights=WEIGHTS).fit().conf_int(0.1)
    assert_allclose(list(model.confidence_intervals(0.9, method="profile").values()), expected, rtol=RTOL)
    values, z = model.profile("b", level=0.9, n_points=5)
    assert_allclose(values, np.linspace(*expected[1], 5), rtol=RTOL)
    assert_allclose(z, stats.t.ppf(0.95, 36) * np.linspace(-1, 1, 5), rtol=1e-5, atol=1e-5)


def test_profile_of_several_outputs_is_refused():
    with pytest.raises(ValueError, match="method='profile' needs one output"):
        fit_module(Y2).confidence_intervals(method="profile")


def refitted(index, value, weights):
    """Return the weighted sum of squares of the decay with one parameter held."""
    others = [i for i in range(3) if i != index]

    def full(free):
        theta = np.empty(3)
        theta[index], theta[others] = value, free
        return theta

    root = np.sqrt(weights)
    fit = least_squares(
        lambda free: root * (decay(x, *full(free)) - DECAY_Y),
        np.array([3, 1.3, 0.5])[others],
        jac=lambda free: root[:, None] * decay_jacobian(x, *full(free))[:, others],
        ftol=1e-15,
        xtol=1e-15,
        gtol=1e-15,
    )
    return 2 * fit.cost


@pytest.mark.parametrize("weights", [np.full(60, 400.0), PRECISION], ids=["equal", "precision"])
@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_profile_interval_is_that_of_refits_by_scipy(weights, absolute):
    values, covariance = scipy_decay(sigma=1 / np.sqrt(weights), absolute_sigma=absolute)
    best = weights @ (decay(x, *values) - DECAY_Y) ** 2
    variance = 1.0 if absolute else best / 57
    quantile = stats.norm.ppf(0.99) if absolute else stats.t.ppf(0.99, 57)
    found = fit_decay(weights, absolute_sigma=absolute).confidence_intervals(0.98, method="profile")
    for index, name in enumerate("abc"):

        def above(value, index=index):
            return (refitted(index, value, weights) - best) / variance - quantile**2

        far = 2 * quantile * np.sqrt(covariance[index, index])
        expected = [brentq(above, values[index], values[index] + side * far, xtol=1e-12) for side in (-1, 1)]
        assert_allclose(found[name], expected, rtol=RTOL)


def test_profile_is_that_of_refits_by_scipy(fitted):
    values, z = fitted.profile("b", level=0.9, n_points=4)
    best = refitted(1, fitted.parameters_["b"], PRECISION)
    rise = np.array([refitted(1, value, PRECISION) - best for value in values]) / fitted.residual_variance_
    assert_allclose(z, np.sign(values - fitted.parameters_["b"]) * np.sqrt(rise), rtol=1e-5)
    assert_allclose(values[[0, -1]], fitted.confidence_intervals(0.9, method="profile")["b"], rtol=RTOL)


def test_profile_interval_is_that_of_lmfit(fitted):
    result = lmfit.Model(decay, independent_vars=["t"]).fit(DECAY_Y, t=x, a=1, b=1, c=0, weights=1 / SIGMA)
    oracle = result.conf_interval(sigmas=[0.95])
    found = fitted.confidence_intervals(method="profile")
    for name, error in fitted.standard_errors_.items():
        (_, lower), _, (_, upper) = oracle[name]
        assert_allclose(found[name], (lower, upper), rtol=0, atol=1e-3 * error)  # its tolerance is on the probability


def test_profile_of_a_likelihood():
    t = X[:, 0]
    model = LMRegressor("a+b*x", criterion="poisson").fit(X[:, :1], EVENTS)

    def log_likelihood(b):  # at the best a, which has a closed form
        mean = EVENTS.sum() * np.exp(b * t) / np.exp(b * t).sum()
        return stats.poisson.logpmf(EVENTS, mean).sum()

    b = model.parameters_["b"]
    half = stats.chi2.ppf(0.95, 1) / 2
    expected = [brentq(lambda v: log_likelihood(b) - log_likelihood(v) - half, b, b + s, xtol=1e-13) for s in (-1, 1)]
    assert_allclose(model.confidence_intervals(method="profile")["b"], expected, rtol=RTOL)


def test_profile_without_end_is_infinite():
    t = np.linspace(0, 1, 12)[:, None]
    y = 1 - np.exp(-20 * t[:, 0]) + 0.1 * np.random.default_rng(3).standard_normal(12)
    lower, upper = LMRegressor("a*(1-exp(-b*x))").fit(t, y).confidence_intervals(0.99, method="profile")["b"]
    assert 0 < lower < 20
    assert upper == np.inf  # a curve that has saturated before the second point sets no end


def test_profile_of_robust_losses_is_refused():
    model = fit_linear(criterion="huber")
    with pytest.raises(ValueError, match="method='profile' needs the squared error"):
        model.confidence_intervals(method="profile")
    with pytest.raises(ValueError, match="method='profile' needs the squared error"):
        model.profile("a")


@pytest.mark.filterwarnings("ignore:the fit had sample weights")
@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unit", "weights"])
@pytest.mark.parametrize("fit", [fit_linear, fit_module], ids=["formula", "nn.Linear"])
def test_intervals_of_predictions_are_those_of_statsmodels(fit, weights, level):
    oracle = sm.WLS(Y, DESIGN, weights=1.0 if weights is None else weights).fit().get_prediction(NEW_DESIGN)
    model = fit(weights=weights)
    mean, std = model.predict(NEW, return_std=True)
    assert_allclose(mean, oracle.predicted_mean, rtol=RTOL)
    assert_allclose(std, oracle.se_mean, rtol=RTOL)
    assert_allclose(model.predict_interval(NEW, level), oracle.conf_int(alpha=1 - level), rtol=RTOL)
    interval = model.predict_interval(NEW, level, kind="prediction")
    assert_allclose(interval, oracle.conf_int(obs=True, alpha=1 - level), rtol=RTOL)


@pytest.mark.filterwarnings("ignore:the fit had sample weights")
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unit", "weights"])
def test_intervals_of_several_outputs(weights):
    model = fit_module(Y2, weights)
    _, std = model.predict(NEW, return_std=True)
    assert std.shape == (7, 2)
    for k, y in enumerate(Y2.T):
        oracle = sm.WLS(y, DESIGN, weights=1.0 if weights is None else weights).fit().get_prediction(NEW_DESIGN)
        assert_allclose(std[:, k], oracle.se_mean, rtol=RTOL)
        assert_allclose(model.predict_interval(NEW)[:, k], oracle.conf_int(), rtol=RTOL)
        assert_allclose(model.predict_interval(NEW, kind="prediction")[:, k], oracle.conf_int(obs=True), rtol=RTOL)


def test_interval_of_predictions_from_the_sandwich():
    covariance = sm.OLS(Y, DESIGN).fit(cov_type="HC1").cov_params()
    _, std = fit_linear(covariance="sandwich").predict(NEW, return_std=True)
    assert_allclose(std, np.sqrt(np.einsum("ij,jk,ik->i", NEW_DESIGN, covariance, NEW_DESIGN)), rtol=RTOL)


@pytest.mark.filterwarnings("ignore:the fit had sample weights")
def test_interval_of_predictions_with_known_sigma():
    model = fit_decay(PRECISION, absolute_sigma=True)
    values, covariance = scipy_decay(sigma=SIGMA, absolute_sigma=True)
    t = np.array([0.3, 5.0])
    J = decay_jacobian(t, *values)
    variance = np.einsum("ij,jk,ik->i", J, covariance, J)
    for kind, noise in (("confidence", 0.0), ("prediction", 1.0)):
        reach = stats.norm.ppf(0.975) * np.sqrt(variance + noise)
        expected = np.column_stack([decay(t, *values) - reach, decay(t, *values) + reach])
        assert_allclose(model.predict_interval(t[:, None], kind=kind), expected, rtol=RTOL)


@pytest.mark.parametrize(
    ("y", "shape"), [(Y, (7, 2)), (Y[:, None], (7, 1, 2)), (Y2, (7, 2, 2))], ids=["1d", "(n,1)", "2"]
)
def test_shapes_follow_y(y, shape):
    model = fit_module(y)
    assert model.predict_interval(NEW).shape == shape
    assert model.predict(NEW, return_std=True)[1].shape == shape[:-1]
    assert np.shape(model.residual_variance_) == ((2,) if y is Y2 else ())


# ---------------------------------------------------------------------------------------------- missing errors


def test_fixed_parameter_has_no_error():
    model = fit_decay(module__c=0.5, module__fixed="c")
    fit = curve_fit(lambda t, a, b: decay(t, a, b, 0.5), x, DECAY_Y, p0=[1, 1], ftol=1e-15, xtol=1e-15, gtol=1e-15)
    assert_allclose(model.covariance_, fit[1], rtol=1e-5)  # forward differences
    assert model.dof_ == pytest.approx(58)
    assert model.parameters_["c"] == 0.5
    assert np.isnan(model.standard_errors_["c"])
    assert list(model.standard_errors_) == ["a", "b", "c"]
    assert model.summary().notes == ["", "", "fixed"]
    assert_array_equal(model.confidence_intervals()["c"], (np.nan, np.nan))
    with pytest.raises(ValueError, match="`name` must be one of 'a', 'b'; got 'c'"):
        model.profile("c")


def test_bound_reached_has_no_error_and_a_reason():
    model = fit_decay(module__bounds={"c": (0.6, None)})
    fit = curve_fit(lambda t, a, b: decay(t, a, b, 0.6), x, DECAY_Y, p0=[1, 1], ftol=1e-15, xtol=1e-15, gtol=1e-15)
    # forward differences; the parameter at its bound takes a degree of freedom, as in scipy and lmfit
    assert_allclose(model.covariance_[:2, :2], fit[1] * 58 / 57, rtol=1e-5)
    assert np.isnan(model.standard_errors_["c"])
    assert "c is at its bound 0.6" in model.message_
    assert model.summary().notes == ["", "", "at its bound 0.6"]
    assert model.dof_ == pytest.approx(57)
    lower, upper = model.confidence_intervals(method="profile")["c"]
    assert lower == 0.6 < upper


def test_bound_not_reached_changes_nothing(fitted):
    model = fit_decay(PRECISION, module__bounds={"a": (0, 10), "c": (0, None)})
    assert_allclose(model.covariance_, fitted.covariance_, rtol=RTOL)


def test_all_parameters_at_bounds():
    model = fit_decay(module__bounds={"a": (0, 1), "b": (2, 3), "c": (0, 0.2)})
    assert np.isnan(errors(model)).all() == all(note.startswith("at its bound") for note in model.summary().notes)
    assert np.isfinite(model.predict(x[:, None], return_std=True)[1]).all()


@pytest.mark.filterwarnings("ignore:parameters .* not separately")
def test_parameters_that_only_their_product_fixes():
    oracle = sm.OLS(Y, DESIGN[:, :2]).fit()
    model = LMRegressor("a*b*x0+c").fit(X, Y)
    assert "parameters a and b are not separately identifiable" in model.message_
    assert np.isnan([model.standard_errors_["a"], model.standard_errors_["b"]]).all()
    assert_allclose(model.standard_errors_["c"], oracle.bse[0], rtol=RTOL)
    assert model.dof_ == pytest.approx(38)
    assert_allclose(model.predict(NEW, return_std=True)[1], oracle.get_prediction(NEW_DESIGN[:, :2]).se_mean, rtol=RTOL)
    assert model.summary().notes == ["not identifiable", "not identifiable", ""]


@pytest.mark.filterwarnings("ignore:parameter c has no influence")
def test_parameter_without_influence():
    oracle = sm.OLS(Y, DESIGN[:, :2]).fit()
    model = LMRegressor("a+b*x0+0*c").fit(X, Y)
    assert "parameter c has no influence on the loss" in model.message_
    assert_allclose(errors(model), [*oracle.bse, np.nan], rtol=RTOL)
    intervals = model.confidence_intervals(method="profile")
    assert_allclose([intervals["a"], intervals["b"]], oracle.conf_int(), rtol=RTOL)
    assert intervals["c"] == (-np.inf, np.inf)


@pytest.mark.filterwarnings("ignore:the outputs depend on parameter a", "ignore:parameter a has no influence")
@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x, a=1.0, b=1.0: a.detach() + b * x, True),
        (lambda x, a=0.0, b=1.0: a**2 + b * x, False),  # at its stationary point
        (lambda x, a=1.0, b=1.0: 0 * a + b * x, False),
    ],
    ids=["detached", "square", "none"],
)
def test_parameter_whose_derivative_is_lost(function, found):
    z = np.linspace(0, 1, 20)
    model = LMRegressor(curve(function), random_state=0).fit(z[:, None], 1 + 2 * z)
    assert ("but their derivative by it is zero; start it elsewhere, or in a function" in model.message_) == found
    assert ("parameter a has no influence on the loss" in model.message_) != found


def test_predictions_along_what_the_data_do_not_tell_have_no_small_error():
    """Columns that are equal in the data tell nothing about where they differ."""
    twice = np.column_stack([X[:, 0], X[:, 0]])
    model = LMRegressor(nn.Linear(2, 1)).fit(twice, Y)
    inside, outside = model.predict(np.array([[1.0, 1.0], [1.0, -1.0]]), return_std=True)[1]
    assert_allclose(inside, sm.OLS(Y, DESIGN[:, :2]).fit().get_prediction([[1.0, 1.0]]).se_mean[0], rtol=RTOL)
    assert not outside < 10 * inside


POLYNOMIALS = {2: "a+b*x", 3: "a+b*x+c*x**2", 4: "a+b*x+c*x**2+d*x**3"}


@pytest.mark.filterwarnings("ignore:.* rows leave no degrees")
@pytest.mark.parametrize("kind", ["classical", "sandwich"])
@pytest.mark.parametrize("n_params", POLYNOMIALS)
def test_no_degrees_of_freedom(n_params, kind):
    for seed in range(10):  # the sign of a rounding error decides, which no single data set shows
        rng = np.random.default_rng(seed)
        X, y = rng.uniform(0, 2, (n_params, 1)), rng.standard_normal(n_params)
        model = LMRegressor(POLYNOMIALS[n_params], covariance=kind).fit(X, y)
        assert np.isnan(errors(model)).all()
        assert np.isnan([model.residual_variance_, model.reduced_chi_square_]).all()
        assert model.summary().notes == ["no degrees of freedom are left"] * n_params
        assert np.isnan(model.predict_interval(X)).all()


@pytest.mark.filterwarnings("ignore:parameters .* not separately")
@pytest.mark.parametrize("n_params", POLYNOMIALS)
def test_fewer_rows_than_parameters(n_params):
    X = np.linspace(0.1, 1, n_params - 1)[:, None]
    model = LMRegressor(POLYNOMIALS[n_params]).fit(X, np.cos(5 * X[:, 0]))
    assert np.isnan(errors(model)).all()
    assert all(model.summary().notes)
    assert "not separately identifiable" in model.message_
    assert np.isnan(list(model.confidence_intervals().values())).all()


@pytest.mark.filterwarnings("ignore:.* rows leave no degrees")
def test_known_sigma_needs_no_degrees_of_freedom():
    X, y = np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 3.0, 2.0])
    design = np.vander(X[:, 0], increasing=True)
    model = LMRegressor(POLYNOMIALS[3], absolute_sigma=True).fit(X, y)
    assert_allclose(model.covariance_, np.linalg.inv(design.T @ design), rtol=RTOL)


@pytest.mark.filterwarnings("ignore:.* rows leave no degrees")
def test_sandwich_without_degrees_of_freedom_says_so_with_known_sigma():
    X, y = np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 3.0, 2.0])
    model = LMRegressor(POLYNOMIALS[3], absolute_sigma=True, covariance="sandwich").fit(X, y)
    assert np.isnan(errors(model)).all()
    assert all(model.summary().notes)


def test_perfect_fit():
    model = LMRegressor("a+b*x").fit(X[:, :1], np.zeros(40))
    assert model.residual_variance_ == 0
    assert model.chi_square_ == 0
    assert_array_equal(errors(model), 0)
    assert model.confidence_intervals() == {"a": (0, 0), "b": (0, 0)}
    assert_array_equal(model.predict_interval(X[:, :1], kind="prediction"), 0)
    assert model.aic_ < -1e3


def test_perfect_fit_has_a_summary():
    model = LMRegressor("a+b*x").fit(X[:, :1], np.zeros(40))
    assert np.isnan(model.correlation_[0, 1]) or abs(model.correlation_[0, 1]) <= 1
    assert "a+b*x" in str(model.summary())


def test_perfect_fit_has_a_profile():
    model = LMRegressor("a+b*x").fit(X[:, :1], np.zeros(40))
    assert_allclose(list(model.confidence_intervals(method="profile").values()), 0, atol=1e-12)


@pytest.mark.parametrize("truth", [(3.0, 0.7, 1.0), (1e5, 0.3, -2.0)])
def test_profile_of_data_without_noise_is_the_wald_interval(truth):
    a, b, c = truth
    t = np.linspace(0, 4, 50)
    model = LMRegressor("a*exp(-b*x)+c", random_state=0).fit(t[:, None], a * np.exp(-b * t) + c)
    found = model.confidence_intervals(method="profile")
    assert_allclose(list(found.values()), list(model.confidence_intervals().values()), rtol=1e-12)
    assert_allclose(np.mean(list(found.values()), axis=1), truth, rtol=1e-9)
    assert_allclose(np.diff(model.profile("b", n_points=3)[1], 2), 0, atol=1)  # a line, but for the rounding of values


def test_profile_with_a_limit_does_not_end_where_a_function_overflows():
    rng = np.random.default_rng(0)
    t = np.linspace(0, 6, 20)
    y = 3 / (1 + np.exp(-(t - 5) / 0.6)) + 0.2 * rng.standard_normal(180)[160:]
    model = LMRegressor("t/(1+exp(-(x-m)/w))", random_state=0).fit(t[:, None], y)
    limit = LMRegressor("a*exp(x/w)", random_state=0).fit(t[:, None], y)  # which the rise tends to as m grows
    z = np.sqrt((limit.chi_square_ - model.chi_square_) / model.residual_variance_)
    assert z < stats.t.ppf(0.975, model.dof_)
    assert model.confidence_intervals(method="profile", names="m")["m"][1] == np.inf


def test_profile_where_a_standard_error_overflows():
    t = np.linspace(0, 4, 50)
    y = 3 * np.exp(-0.7 * t) + 1 + 0.05 * np.random.default_rng(1).standard_normal(50)
    model = LMRegressor("a*exp(-b*x)+c", random_state=0).fit(t[:, None] * 1e-160, y)
    with pytest.warns(RuntimeWarning, match="of b, whose standard error overflows"):
        assert np.isnan(model.confidence_intervals(method="profile", names="b")["b"]).all()


def test_fit_to_rounding_errors():
    model = LMRegressor(DECAY).fit(x[:, None], decay(x, 3.0, 1.3, 0.5))
    assert (errors(model) < 1e-7).all()
    assert str(model.summary()).startswith("LMRegressor")


# ---------------------------------------------------------------------------------------------- summary


def test_summary_has_the_numbers_of_statsmodels():
    oracle = sm.OLS(Y, DESIGN).fit()
    frame = fit_linear().summary(level=0.9).to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.index) == ["a", "b", "c", "d"]
    expected = np.column_stack([oracle.params, oracle.bse, oracle.tvalues, oracle.pvalues, oracle.conf_int(0.1)])
    assert_allclose(frame.drop(columns="note").to_numpy(), expected, rtol=1e-5)  # p has the error of t times t
    assert list(frame["note"]) == [""] * 4


def unidentified():
    with pytest.warns(UserWarning, match="not separately identifiable"):
        return LMRegressor("longname*b*x0+c").fit(X, Y)


@pytest.mark.parametrize(
    "model",
    [
        fit_decay(),
        fit_decay(module__bounds={"c": (0.6, None)}),
        fit_decay(module__a=2.95, module__fixed=["a"]),
        unidentified(),
        fit_module(Y2),
    ],
    ids=["plain", "bound", "fixed", "unidentified", "module"],
)
def test_text_of_the_summary_is_aligned(model):
    lines = str(model.summary()).splitlines()
    assert lines[1] == "=" * len(lines[0])
    start = next(i for i, line in enumerate(lines) if "std. error" in line)
    rows = lines[start + 1 : start + 1 + len(model.parameters_)]
    ends = [match.end() for match in re.finditer(r"\S+( \S+)*", lines[start])]
    assert len(ends) == 6
    for row, name in zip(rows, model.parameters_, strict=True):
        assert row.startswith(f"{name} ")
        assert all(row[end - 1] != " " and row[end : end + 2].strip() == "" for end in ends)
    assert not any(line.endswith(" ") for line in lines)
    assert lines[-1] == model.message_


def test_summary_states_the_fit():
    text = str(fit_decay(PRECISION, absolute_sigma=True, covariance="sandwich").summary(0.5))
    assert re.search(r"Rows, parameters +60, 3\n", text)
    assert re.search(r"Degrees of freedom +57\n", text)
    assert re.search(r"Covariance +sandwich", text)
    assert "lower 50 %" in text


def test_summary_leaves_out_what_a_loss_does_not_have():
    counts = fit_linear(EVENTS, criterion="poisson").summary().statistics
    robust = fit_linear(criterion="huber").summary().statistics
    assert list(counts)[2:] == ["Degrees of freedom", "Deviance", "Reduced deviance", "AIC", "BIC", "Covariance"]
    assert "Residual std. dev." in robust
    assert not {"Chi-square", "Reduced chi-square", "AIC", "BIC"} & set(robust)
    with pytest.warns(UserWarning, match="no degrees of freedom"):
        saturated = LMRegressor("a+b*x").fit(X[:2, :1], Y[:2])
    assert "Chi-square" in saturated.summary().statistics
    assert "nan" not in str(saturated.summary())


def test_huge_t_of_the_summary_has_no_decimals():
    summary = LMRegressor("a+b*x").fit(X[:, :1], 1 + 2 * X[:, 0] + 1e-13 * Y).summary()
    cells = str(summary).splitlines()[-4].split()  # of a
    assert float(cells[3]) == pytest.approx(summary.table[0, 2], rel=1e-2)
    assert len(cells[3]) <= len("1.23e+15")


def test_summary_lists_high_correlations():
    t = np.linspace(100, 101, 30)
    y = 2 + 3 * t + np.random.default_rng(0).standard_normal(30)
    oracle = sm.OLS(y, sm.add_constant(t)).fit().cov_params()
    summary = LMRegressor("a+b*x").fit(t[:, None], y).summary()
    expected = oracle[0, 1] / np.sqrt(oracle[0, 0] * oracle[1, 1])
    assert f"a, b: {expected:.4f}" in str(summary)
    assert f"a, b: {expected:.4f}" in summary._repr_html_()


def test_html_of_the_summary_is_well_formed():
    model = LMRegressor("a*(x0<1)+b*x1").fit(X, Y)
    tree = ET.fromstring("<div>" + model.summary()._repr_html_().replace("<br>", "<br/>") + "</div>")  # noqa: S314
    cells = [[cell.text or "" for cell in row] for row in tree.findall("table")[1]]
    assert tree.find("h4").text == "LMRegressor: a*(x0<1)+b*x1"
    assert [row[0] for row in cells] == ["", "a", "b"]
    assert {len(row) for row in cells} == {8}


def test_long_summary_is_cut_but_the_frame_is_whole():
    wide = np.random.default_rng(0).standard_normal((80, 50))
    summary = LMRegressor(nn.Linear(50, 1)).fit(wide, wide[:, 0]).summary()
    assert "... and 11 more; to_frame() has them all" in str(summary)
    assert len(summary.to_frame()) == 51


# ---------------------------------------------------------------------------------------------- life cycle


def other_data():
    rng = np.random.default_rng(99)
    X = rng.standard_normal((50, 3))
    y = X @ [1.0, 1.0, 1.0] + rng.standard_normal(50)
    return X, y, sm.OLS(y, sm.add_constant(X)).fit().bse


@pytest.mark.parametrize("how", ["fit", "partial_fit", "warm_start"])
def test_another_fit_has_its_own_errors(how):
    model = fit_linear(warm_start=how == "warm_start")
    before = errors(model)
    X, y, expected = other_data()
    getattr(model, "partial_fit" if how == "partial_fit" else "fit")(X, y)
    assert not np.allclose(before, expected, rtol=0.01)
    assert_allclose(errors(model), expected, rtol=RTOL)
    assert_allclose(model.confidence_intervals()["a"], sm.OLS(y, sm.add_constant(X)).fit().conf_int()[0])


def test_settings_take_effect_without_another_fit(fitted):
    model = fit_decay(PRECISION)
    relative = model.covariance_
    absolute = model.set_params(absolute_sigma=True).covariance_
    assert_allclose(absolute, relative / model.reduced_chi_square_, rtol=1e-12)
    sandwich = model.set_params(covariance="sandwich", absolute_sigma=False).covariance_
    assert_array_equal(sandwich, fit_decay(PRECISION, covariance="sandwich").covariance_)
    assert_array_equal(model.set_params(covariance="classical").covariance_, relative)


def test_a_failed_fit_keeps_the_errors_of_the_last_one():
    model = fit_linear()
    before = errors(model)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(X, np.full(40, np.nan))
    assert_array_equal(errors(model), before)


def test_the_errors_do_not_see_later_changes_of_the_data():
    X1, y1 = X.copy(), Y.copy()
    model = LMRegressor(LINEAR).fit(X1, y1)
    X1[:], y1[:] = 0, 0
    assert_allclose(errors(model), sm.OLS(Y, DESIGN).fit().bse, rtol=RTOL)


def test_reading_changes_nothing(fitted):
    before = {name: tensor.clone() for name, tensor in fitted.module_.state_dict().items()}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    fitted.confidence_intervals(method="profile")
    fitted.predict_interval(x[:, None])
    str(fitted.summary())
    assert all(torch.equal(before[name], tensor) for name, tensor in fitted.module_.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert_array_equal(numpy_state, np.random.get_state()[1])
    assert all(parameter.grad is None for parameter in fitted.module_.parameters())


def through_joblib(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize("read", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), through_joblib], ids=["pickle", "joblib"])  # noqa: S301
def test_a_copy_gives_the_same_numbers(copied, read):
    model = fit_decay(PRECISION)
    if read:
        model.summary()
    other = copied(model)
    assert_array_equal(other.covariance_, model.covariance_)
    assert str(other.summary()) == str(model.summary())
    assert_array_equal(other.profile("b", n_points=3), model.profile("b", n_points=3))
    assert_array_equal(other.predict_interval(x[:, None]), model.predict_interval(x[:, None]))


def test_a_clone_is_unfitted_and_fits_to_the_same_numbers():
    model = fit_decay(PRECISION, covariance="sandwich", absolute_sigma=True)
    other = clone(model)
    assert (other.covariance, other.absolute_sigma) == ("sandwich", True)
    with pytest.raises(NotFittedError):
        other.confidence_intervals()
    other.fit(x[:, None], DECAY_Y, sample_weight=PRECISION)
    assert_array_equal(other.covariance_, model.covariance_)


def test_a_function_gives_the_numbers_of_its_formula(fitted):
    def f(t, a, b, c):
        return a * torch.exp(-b * t) + c

    model = LMRegressor(curve(f)).fit(x[:, None], DECAY_Y, sample_weight=PRECISION)
    assert_allclose(model.covariance_, fitted.covariance_, rtol=RTOL)


# ---------------------------------------------------------------------------------------------- errors

METHODS = {
    "confidence_intervals": lambda m: m.confidence_intervals(),
    "profile": lambda m: m.profile("a"),
    "predict_interval": lambda m: m.predict_interval(X),
    "predict": lambda m: m.predict(X, return_std=True),
    "summary": lambda m: m.summary(),
}
PROPERTIES = [
    "parameters_",
    "standard_errors_",
    "covariance_",
    "correlation_",
    "residual_variance_",
    "dof_",
    "chi_square_",
    "reduced_chi_square_",
    "aic_",
    "bic_",
]


@pytest.mark.parametrize("name", METHODS)
def test_methods_need_a_fit(name):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        METHODS[name](LMRegressor(LINEAR))


@pytest.mark.parametrize("name", PROPERTIES)
def test_attributes_need_a_fit(name):
    model = LMRegressor(LINEAR)
    assert not hasattr(model, name)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(model, name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.confidence_intervals(1.0), "`level` must be .* got 1.0"),
        (lambda m: m.confidence_intervals(level=0), "`level` must be .* got 0"),
        (lambda m: m.confidence_intervals(level="95"), "`level` must be .* got '95'"),
        (lambda m: m.confidence_intervals(level=95), "`level` must be .* got 95"),
        (lambda m: m.confidence_intervals(method="bootstrap"), "`method` must be one of 'wald', 'profile'"),
        (lambda m: m.confidence_intervals(method=None), "`method` must be one of"),
        (lambda m: m.profile("e"), "`name` must be one of 'a', 'b', 'c'; got 'e'"),
        (lambda m: m.profile("a", level=-1), "`level` must be"),
        (lambda m: m.predict_interval(x[:, None], level=2), "`level` must be"),
        (lambda m: m.predict_interval(x[:, None], kind="credible"), "`kind` must be one of 'confidence', 'prediction'"),
        (lambda m: m.summary(level=np.nan), "`level` must be"),
    ],
)
def test_wrong_arguments_are_named(fitted, call, message):
    with pytest.raises(ValueError, match=message):
        call(fitted)


@pytest.mark.parametrize("n_points", [-1, 2.5, "5"], ids=str)
def test_wrong_number_of_points_is_named(fitted, n_points):
    with pytest.raises(ValueError, match="n_points"):
        fitted.profile("a", n_points=n_points)


BAD = [("covariance", value) for value in ("robust", None, 1, ["classical"])]
BAD += [("absolute_sigma", value) for value in ("yes", None, 1, 0.0)]
BAD += [("n_init", value) for value in (0, -1, 1.5, True, "2", None)]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}={value!r}" for name, value in BAD])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_wrong_parameters_are_refused_and_nothing_is_lost(name, value, method):
    model = fit_linear()
    good, before = model.get_params()[name], errors(model)
    model.set_params(**{name: value})
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        getattr(model, method)(X[:20], Y[:20])
    assert_array_equal(errors(model.set_params(**{name: good})), before)


@pytest.mark.parametrize(
    "name",
    [
        "covariance",
        "absolute_sigma",
    ],
)
def test_wrong_settings_are_refused_when_read(name):
    model = fit_linear().set_params(**{name: "no"})
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        model.covariance_  # noqa: B018


@pytest.mark.parametrize("name", METHODS)
def test_loaded_parameters_have_no_errors(tmp_path, name):
    model = fit_linear()
    model.save_params(f_params=tmp_path / "module.pt")
    model.load_params(f_params=tmp_path / "module.pt")
    with pytest.raises(AttributeError, match="no uncertainty without the training rows"):
        METHODS[name](model)
    assert list(model.parameters_) == ["a", "b", "c", "d"]
    assert model.predict(X).shape == (40,)


@pytest.mark.parametrize("name", PROPERTIES[1:])
def test_attributes_of_loaded_parameters_say_why(tmp_path, name):
    model = fit_linear()
    model.save_params(f_params=tmp_path / "module.pt")
    model.load_params(f_params=tmp_path / "module.pt")
    with pytest.raises(AttributeError, match="no uncertainty without the training rows"):
        getattr(model, name)


def test_too_many_parameters_are_refused():
    model = LMRegressor(nn.Linear(2500, 2), selection="random", selection__subset_size=50, max_epochs=1)
    with pytest.warns(ConvergenceWarning):
        model.fit(np.ones((4, 2500)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="covariance of 5002 parameters"):
        model.covariance_  # noqa: B018


@pytest.mark.parametrize(
    ("formula", "rows", "message"),
    [
        ("a * b * x", 20, "parameters a and b are not separately identifiable"),
        ("a * x + b", 2, "2 rows leave no degrees of freedom for 2 parameters"),
    ],
    ids=["rank", "rows"],
)
def test_doubts_are_warnings(formula, rows, message):
    with pytest.warns(UserWarning, match=message):
        model = LMRegressor(formula, random_state=0).fit(x[:rows, None], DECAY_Y[:rows])
    assert message in model.message_


def test_a_prediction_after_a_weighted_fit_asks_for_the_weight():
    model = fit_decay(PRECISION)
    with pytest.warns(UserWarning, match="the fit had sample weights"):
        band = model.predict_interval(x[:, None], kind="prediction")
    assert_array_equal(band, model.predict_interval(x[:, None], kind="prediction", sample_weight=1.0))
    equal = fit_decay(np.full(len(x), 400.0))
    band_of_equal = equal.predict_interval(x[:, None], kind="prediction")
    assert_allclose(band_of_equal, fit_decay().predict_interval(x[:, None], kind="prediction"), rtol=1e-7)
    narrow = model.predict_interval(x[:, None], kind="prediction", sample_weight=PRECISION)
    assert (np.diff(narrow) < np.diff(band)).all()


def test_outliers_leave_the_prediction_of_a_robust_fit_alone():
    y = DECAY_Y.copy()
    y[::15] += 5
    model = LMRegressor("a * exp(-b * x) + c", criterion="cauchy", criterion__delta=0.1, random_state=0).fit(
        x[:, None], y
    )
    clean = LMRegressor("a * exp(-b * x) + c", random_state=0).fit(x[:, None], DECAY_Y)
    assert model.residual_variance_ == pytest.approx(clean.residual_variance_, rel=0.5)
    assert np.isnan(model.aic_)
    assert np.isnan(model.bic_)


def test_errors_of_predictions_in_threads():
    model = Regressor(DECAY).fit(x[:, None], DECAY_Y)
    expected, parameters = model.predict(x[:, None], return_std=True), model.parameters_
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.predict(x[:, None], return_std=True), range(100)))
    for pair in found:
        assert_array_equal(pair, expected)
    assert model.parameters_ == parameters


@pytest.mark.parametrize("kind", ["classical", "sandwich"])
@pytest.mark.parametrize("criterion", [nn.MSELoss, nn.MSELoss(reduction="sum"), SquaredError(curvature="sqrt")])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_squared_errors_have_the_same_standard_errors(criterion, kind, n_outputs):
    y = DECAY_Y if n_outputs == 1 else np.stack([DECAY_Y, DECAY_Y[::-1], DECAY_Y**2], 1)
    one = curve(lambda x, a, b: a * torch.exp(-b * x) if n_outputs == 1 else torch.stack([a * x, b * x, a + b * x], 1))
    fits = [Regressor(one, criterion=c, covariance=kind).fit(x[:, None], y) for c in ("squared_error", criterion)]
    errors = [list(fit.standard_errors_.values()) for fit in fits]
    assert_allclose(errors[1], errors[0], rtol=1e-4)  # "sqrt" is slower, so its fit is not as close


def test_profile_with_another_valley_behind_the_ridge():
    """The upper ends are open; below, vmax < 0 fits again."""
    dose = np.arange(1, 7)[:, None] / 10
    y = 3 * dose[:, 0] / (1.5 + dose[:, 0]) + 0.05 * np.random.default_rng(5).standard_normal(6)
    formula = "vmax * x / (km + x)"
    free, bounded = (
        Regressor(formula, module__bounds=bounds).fit(dose, y).confidence_intervals(method="profile")
        for bounds in ({}, {"km": (0, None)})
    )
    for name in ("vmax", "km"):
        assert free[name][1] == np.inf
        assert_allclose(free[name][0], bounded[name][0], rtol=1e-6)


def test_absolute_sigma_of_a_robust_loss():
    """It replaces the scale of the residuals, not what the loss costs beside least squares (Huber's factor)."""
    table, sigma, delta = np.linspace(0, 4, 4000)[:, None], 0.1, 0.05
    y = 3 * np.exp(-table[:, 0]) + sigma * np.random.default_rng(0).standard_normal(4000)
    known = {"absolute_sigma": True}
    weights = np.full(4000, sigma**-2)
    plain, robust = (
        Regressor("a * exp(-b * x)", criterion=criterion, **known, **more).fit(table, y, sample_weight=weights)
        for criterion, more in (("squared_error", {}), ("huber", {"criterion__delta": delta}))
    )
    normal, limit = stats.norm(), delta / sigma
    slope = normal.cdf(limit) - normal.cdf(-limit)
    square = slope - 2 * limit * normal.pdf(limit) + limit**2 * (1 - slope)
    ratios = np.divide(list(robust.standard_errors_.values()), list(plain.standard_errors_.values()))
    assert_allclose(ratios, np.sqrt(square) / slope, rtol=0.05)


@pytest.mark.parametrize("criterion", ["huber", "soft_l1", "cauchy"])
def test_absolute_sigma_of_a_robust_loss_on_exact_data(criterion):
    y = 3 * np.exp(-x)
    fits = [
        Regressor("a * exp(-b * x)", criterion=c, absolute_sigma=True).fit(x[:, None], y, sample_weight=PRECISION)
        for c in ("squared_error", criterion)
    ]
    plain, robust = (list(fit.standard_errors_.values()) for fit in fits)
    assert_allclose(robust, plain, rtol=1e-3)


def test_a_profile_that_jumps_has_no_end():
    x = np.array([0.078, 1.113, 1.195, 1.834, 1.934, 2.344, 3.531, 5.438, 6.721, 8.588, 8.968, 9.47])
    y = np.array([0.41, 0.27, 0.81, -0.34, 0.79, 0.48, 0.73, 1.94, 3.55, 3.83, 4.01, 3.68])
    model = Regressor(curves.Logistic4, random_state=0).fit(x[:, None], y)
    with pytest.warns(RuntimeWarning, match="no end of the profile interval of width: the refits jump"):
        low, high = model.confidence_intervals(method="profile", names="width")["width"]
    assert np.isnan(low)
    assert high == pytest.approx(1.71, abs=0.01)


def test_robust_residual_variance_allows_for_the_parameters():
    x = np.linspace(-1, 1, 12)[:, None]
    found = []
    for seed in range(60):
        y = 1 + x[:, 0] + 0.3 * np.random.default_rng(seed).standard_normal(12)
        model = LMRegressor("a + b*x + c*x**2 + d*x**3 + e*x**4", criterion="huber", criterion__delta=1e3)
        found.append(model.fit(x, y).residual_variance_)
    assert np.mean(found) == pytest.approx(0.3**2, rel=0.2)  # 0.58 of it without the degrees of freedom
