"""The penalty by the evidence, against scikit-learn's BayesianRidge and closed forms."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import BayesianRidge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import Subset

from sklm import LevenbergMarquardt, LMClassifier, LMRegressor
from sklm.engine.evidence import counted, counted_rows, fitted_dispersion
from sklm.engine.losses import AbsoluteError, Cauchy, CrossEntropy, Huber, Poisson, SoftL1, SquaredError
from sklm.engine.solvers import JITTER, inverse_of

QUIET = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
RNG = np.random.default_rng(0)


class Linear(torch.nn.Module):
    """A linear model, whose evidence is exact."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.linear = torch.nn.Linear(n_features_in, n_outputs, bias=False)

    def forward(self, X):
        return self.linear(X)


def linear_data(n, p, seed, n_outputs=None):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    size = p if n_outputs is None else (p, n_outputs)
    y = X @ (0.5 * rng.standard_normal(size))
    return X, y + rng.standard_normal(y.shape)


def bayesian_ridge(X, y):
    none = dict.fromkeys(["alpha_1", "alpha_2", "lambda_1", "lambda_2"], 0)
    return BayesianRidge(fit_intercept=False, tol=1e-12, max_iter=10_000, **none).fit(X, y)


def weights_of(model):
    return model.module_.linear.weight.numpy(force=True)


@pytest.mark.parametrize("solver", ["qr", "cholesky", "svd"])
@pytest.mark.parametrize(("n", "p", "seed"), [(60, 5, 0), (200, 20, 1), (40, 30, 2), (30, 40, 1), (25, 60, 0)])
def test_linear_models_are_those_of_bayesian_ridge(n, p, seed, solver):
    X, y = linear_data(n, p, seed)
    expected = bayesian_ridge(X, y)
    settings = {"alpha": "bayes", "solver": solver, "max_epochs": 2000, "random_state": 0}
    model = LMRegressor(Linear, **settings).fit(X, y)
    np.testing.assert_allclose(weights_of(model)[0], expected.coef_, atol=1e-4 * np.abs(expected.coef_).max())
    assert model.alpha_ == pytest.approx(expected.lambda_ / expected.alpha_, rel=2e-3)
    assert model.converged_
    sizes = np.linalg.svd(X, compute_uv=False) ** 2
    assert model.n_effective_ == pytest.approx(np.sum(sizes / (sizes + model.alpha_)), rel=1e-3)


def test_evidence_is_the_density_of_the_data():
    """Up to a constant, for the dispersion that a fit finds: y is normal with covariance phi (I + X X' / alpha)."""
    X, y = linear_data(30, 6, 4)
    model = LMRegressor(Linear, alpha="bayes", max_epochs=500, random_state=0).fit(X, y)
    alphas = model.history_[:, "alpha"][-1], 3.0

    def evidence(alpha):
        theta = np.linalg.solve(X.T @ X + alpha * np.eye(6), X.T @ y)
        rss = np.sum((y - X @ theta) ** 2)
        sizes = np.linalg.svd(X, compute_uv=False) ** 2
        phi = rss / (30 - np.sum(sizes / (sizes + alpha)))
        module = Linear(6, 1).double()
        with torch.no_grad():
            module.linear.weight.copy_(torch.tensor(theta))
        optimizer = LevenbergMarquardt(module, alpha="bayes", ftol=None, xtol=None, gtol=None)
        optimizer.param_groups[0]["alpha"], optimizer._has_alpha = alpha, True
        found = optimizer.step(torch.tensor(X), torch.tensor(y)).log_evidence
        return found, multivariate_normal(np.zeros(30), phi * (np.eye(30) + X @ X.T / alpha)).logpdf(y)

    (ours, exact), (ours_other, exact_other) = map(evidence, alphas)
    assert ours - ours_other == pytest.approx(exact - exact_other, rel=1e-6)


def test_several_outputs_share_alpha():
    """The fixed point of MacKay for all outputs together."""
    X, y = linear_data(80, 5, 0, n_outputs=3)
    model = LMRegressor(Linear, alpha="bayes", max_epochs=500, random_state=0).fit(X, y)
    sizes = np.linalg.svd(X, compute_uv=False) ** 2
    decided = 3 * np.sum(sizes / (sizes + model.alpha_))
    assert model.n_effective_ == pytest.approx(decided, rel=1e-3)
    phi = np.sum((model.predict(X) - y) ** 2) / (3 * 80 - decided)
    assert model.alpha_ == pytest.approx(phi * decided / np.sum(weights_of(model) ** 2), rel=1e-3)


def test_weights_that_the_data_do_not_need():
    X, y = linear_data(25, 60, 5)
    model = LMRegressor(Linear, alpha="bayes", max_epochs=2000, random_state=0)
    with pytest.warns(ConvergenceWarning, match="the outputs are constant"):
        model.fit(X, y)
    assert model.converged_
    assert model.n_effective_ < 1e-2
    assert np.abs(model.predict(X)).max() < 1e-3


def test_classes_have_no_dispersion():
    X = RNG.standard_normal((300, 4))
    labels = X @ [1.0, -1.0, 0.5, 0.0] + RNG.logistic(size=300) > 0
    model = LMClassifier(Linear, alpha="bayes", max_epochs=500, random_state=0).fit(X, labels)
    assert model.alpha_ * np.sum(weights_of(model) ** 2) == pytest.approx(model.n_effective_, rel=1e-3)
    p = model.predict_proba(X)[:, 1]
    hessian = X.T @ (X * (p * (1 - p))[:, None])
    decided = np.trace(np.linalg.solve(hessian + model.alpha_ * np.eye(4), hessian))
    assert model.n_effective_ == pytest.approx(decided, rel=1e-3)


@pytest.mark.parametrize("curvature", ["ggn", "mc"])
def test_log_evidence_of_classes_is_that_of_laplace(curvature):
    """Of a linear softmax model at its minimum for a given alpha, with the Hessian written out in numpy."""
    rng, alpha = np.random.default_rng(1), 2.0
    X = rng.standard_normal((4000, 2))
    codes = (X @ rng.standard_normal((2, 3)) + rng.gumbel(size=(4000, 3))).argmax(1)
    module = Linear(2, 3).double()
    optimizer = LevenbergMarquardt(module, CrossEntropy(curvature=curvature), alpha=alpha, solver="cholesky", seed=0)
    data = torch.tensor(X), torch.tensor(codes)
    for _ in range(60):
        optimizer.step(*data)
    weights = module.linear.weight.detach().numpy()
    optimizer = LevenbergMarquardt(
        module, CrossEntropy(curvature=curvature), alpha="bayes", solver="cholesky", seed=0, gtol=None
    )
    optimizer.param_groups[0]["alpha"], optimizer._has_alpha = alpha, True
    found = optimizer.step(*data)

    p = np.exp(X @ weights.T)
    p /= p.sum(1, keepdims=True)
    curvatures = np.einsum("ni,ij->nij", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
    hessian = np.einsum("nij,na,nb->iajb", curvatures, X, X).reshape(6, 6)
    posterior = hessian + alpha * np.eye(6)
    expected = np.log(p[np.arange(4000), codes]).sum() - alpha / 2 * np.sum(weights**2)
    expected += 3 * np.log(alpha) - np.linalg.slogdet(posterior)[1] / 2
    # drawn rows: each of the six eigenvalues is a sum over thousands, good to some percent; their logarithms are halved
    assert found.log_evidence == pytest.approx(expected, abs=1e-5 if curvature == "ggn" else 0.2)
    decided = np.trace(np.linalg.solve(posterior, hessian))
    assert found.n_effective == pytest.approx(decided, rel=1e-5 if curvature == "ggn" else 1e-2)


@QUIET
def test_weights_equal_repeated_rows():
    X, y = linear_data(50, 3, 5)
    weights = RNG.integers(1, 4, 50)
    settings = {"alpha": "bayes", "module__hidden_layer_sizes": (4,), "max_epochs": 40, "random_state": 0}
    weighted = LMRegressor(**settings).fit(X, y, sample_weight=weights)
    repeated = LMRegressor(**settings).fit(np.repeat(X, weights, 0), np.repeat(y, weights))
    assert weighted.alpha_ == pytest.approx(repeated.alpha_, rel=1e-6)
    assert weighted.log_evidence_ == pytest.approx(repeated.log_evidence_, rel=1e-6)
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def network():
    X, y = load_diabetes(return_X_y=True)
    return LMRegressor(alpha="bayes", random_state=0).fit(X, y), X, y


def test_last_epoch_of_high_evidence_is_kept(network):
    model, X, y = network
    evidence = np.array(model.history_[:, "log_evidence"])
    best = np.flatnonzero(evidence > np.nanmax(evidence) - 5)[-1]
    assert np.argmax(evidence) < best < len(evidence) - 1
    assert model.log_evidence_ == evidence[best]
    assert model.alpha_ == model.history_[int(best), "alpha"]
    assert model.n_effective_ == model.history_[int(best), "n_effective"]
    assert model.loss_ == model.history_[int(best), "train_loss"]
    penalty = model.alpha_ / 2 * sum(float(p.detach().square().sum()) for p in model.module_.parameters() if p.ndim > 1)
    loss = (np.sum((model.predict(X) - y) ** 2) / 2 + penalty) / len(y)
    assert model.loss_ == pytest.approx(loss, rel=1e-9)


def test_report(network):
    model, X, _ = network
    assert model.converged_
    assert f"alpha={model.alpha_:.3g}, {model.n_effective_:.4g} effective parameters" in model.message_
    assert 1 < model.n_effective_ < len(model.parameters_)
    assert pickle.loads(pickle.dumps(model)).alpha_ == model.alpha_  # noqa: S301
    low, high = model.predict_interval(X, kind="prediction").T
    assert np.all(low < high)


@QUIET
def test_more_starts_are_compared_by_their_evidence():
    X, y = linear_data(60, 2, 6)
    settings = {"alpha": "bayes", "module__hidden_layer_sizes": (6,), "random_state": 0}
    one, three = (LMRegressor(**settings, n_init=n).fit(X, y) for n in (1, 3))
    assert three.log_evidence_ >= one.log_evidence_


@QUIET
def test_early_stopping_judges_by_the_validation_loss():
    X, y = load_diabetes(return_X_y=True)
    model = LMRegressor(alpha="bayes", early_stopping=True, random_state=0).fit(X, y)
    valid = np.array(model.history_[:, "valid_loss"])
    assert model.alpha_ == model.history_[int(np.argmin(valid)), "alpha"]


@QUIET
@pytest.mark.parametrize("split", [7, 9])
def test_early_stopping_does_not_take_a_network_on_its_way(split):
    """A low first alpha fits the noise before it rises, which the few validation rows of these splits like."""
    X, y = load_diabetes(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=split)
    settings = {"module__hidden_layer_sizes": (3,), "random_state": split}
    scores = [LMRegressor(early_stopping=es, **settings).fit(X, y).score(X_test, y_test) for es in (False, True)]
    assert scores[1] > scores[0] - 0.1  # 0.3 less otherwise


@QUIET
@pytest.mark.parametrize("seed", [2, 6])
def test_early_stopping_waits_for_the_neighbourhood_of_a_minimum(seed):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, (400, 2))
    y = np.sin(8 * X[:, 0]) * np.cos(5 * X[:, 1])
    model = LMRegressor(early_stopping=True, random_state=seed).fit(X, y + 0.05 * rng.standard_normal(400))
    assert model.score(X, y) > 0.8  # 0 where the wait began at once


def test_a_class_of_large_weight_is_no_more_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 6))
    logit = -4 + 2 * np.sin(2 * X[:, 0]) + 1.5 * X[:, 1] * X[:, 2] + X[:, 3]
    y = (rng.random(3000) < 1 / (1 + np.exp(-logit))).astype(int)
    settings = {"random_state": 0, "module__hidden_layer_sizes": (10,)}
    fits = [LMClassifier(class_weight=w, **settings).fit(X[:1000], y[:1000]) for w in (None, "balanced")]
    areas = [roc_auc_score(y[1000:], fit.predict_proba(X[1000:])[:, 1]) for fit in fits]
    assert areas[1] > areas[0] - 0.03  # 0.08 less where every weight counted as so many rows


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [1, 1, 1, 9.5], [0, 0.5, 0.5, 2]])
def test_rows_of_classes_and_of_real_numbers(weights):
    weights = torch.tensor(weights, dtype=torch.float64)
    n_rows = int((weights > 0).sum())
    assert counted_rows(weights, SquaredError()) == n_rows
    expected = float(weights.sum() ** 2 / weights.square().sum())
    assert counted_rows(weights, CrossEntropy()) == pytest.approx(expected, rel=1e-12)
    assert counted_rows(7 * weights, CrossEntropy(), torch.ones(4).double()) == pytest.approx(expected, rel=1e-12)


@QUIET
def test_warm_start_goes_on_from_alpha():
    X, y = linear_data(60, 3, 7)
    model = LMRegressor(alpha="bayes", max_epochs=4, warm_start=True, random_state=0, n_iter_no_change=100).fit(X, y)
    before = model.optimizer_.param_groups[0]["alpha"]
    model.fit(X, y)
    assert model.history_[4, "alpha"] == before


@QUIET
def test_grid_search_over_alpha():
    X, y = linear_data(60, 3, 8)
    search = GridSearchCV(LMRegressor(max_epochs=20, random_state=0), {"alpha": ["bayes", 0.1]}, cv=2).fit(X, y)
    assert set(search.cv_results_["param_alpha"]) == {"bayes", 0.1}
    assert clone(LMRegressor(alpha="bayes")).alpha == "bayes"


def test_curves_have_no_penalty():
    x = np.linspace(0, 3, 30)[:, None]
    y = 2 * np.exp(-x[:, 0]) + 0.01 * RNG.standard_normal(30)
    found, expected = (LMRegressor("a * exp(-b * x)", alpha=alpha, random_state=0).fit(x, y) for alpha in ("bayes", 0))
    assert found.parameters_ == expected.parameters_
    assert not hasattr(found, "log_evidence_")


def test_frozen_weights():
    class Frozen(Linear):
        def __init__(self, n_features_in, n_outputs):
            super().__init__(n_features_in, n_outputs)
            self.frozen = torch.nn.Linear(n_features_in, n_outputs).requires_grad_(False)

    X, y = linear_data(60, 5, 0)
    model = LMRegressor(Frozen, alpha="bayes", max_epochs=200, random_state=0).fit(X, y)
    assert model.alpha_ == pytest.approx(LMRegressor(Linear, alpha="bayes", random_state=0).fit(X, y).alpha_, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 10}, "needs all data in every step"),
        ({"solver": "cg"}, "neither `selection` nor `solver='cg'`"),
        ({"selection": "layer"}, "neither `selection` nor `solver='cg'`"),
        ({"alpha": "gcv"}, "`alpha` must be a finite number >= 0, 'auto' or 'bayes'; got 'gcv'"),
        ({"alpha": -1.0}, "`alpha` must be"),
    ],
)
def test_bad_arguments(settings, message):
    X, y = linear_data(20, 2, 0)
    model = LMRegressor(**{"alpha": "bayes", **settings})
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)
    assert not hasattr(model, "module_")


def test_evidence_of_classes_that_hardly_rises_ends_the_fit():
    X, y = load_iris(return_X_y=True)
    model = LMClassifier(alpha="bayes", random_state=0).fit(X, y)
    evidence, alpha = (np.array(model.history_[:, name]) for name in ("log_evidence", "alpha"))
    landmarks = [0]
    for epoch, value in enumerate(evidence):
        ratio = alpha[epoch] / alpha[landmarks[-1]]
        if value > evidence[landmarks[-1]] + 5 or not 0.5 <= ratio <= 2:
            landmarks.append(epoch)
    assert len(landmarks) > 2
    assert landmarks[-1] == len(evidence) - 11  # n_iter_no_change epochs before the end
    assert "the log evidence has risen by less than 5 in 10 epochs" in model.message_


@QUIET
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_smooth_data_in_float32_are_fitted_as_closely_as_in_float64(noise):
    X = np.random.default_rng(0).uniform(-1, 1, (200, 4))
    smooth = np.sin(3 * X[:, 0]) + X[:, 1] * X[:, 2]
    y = smooth + noise * np.random.default_rng(1).standard_normal(200)
    models = [LMRegressor(alpha="bayes", dtype=dtype, random_state=0).fit(X, y) for dtype in ("float64", "float32")]
    exact, rounded = (np.sqrt(np.mean((model.predict(X) - smooth) ** 2)) for model in models)
    assert rounded < 2 * exact
    assert np.isfinite(models[1].history_[:, "log_evidence"]).all()  # although the curvature is singular to rounding


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_single_class_has_nothing_to_fit(dtype):
    X = RNG.standard_normal((10, 3))
    model = LMClassifier(dtype=dtype, random_state=0).fit(X, np.full(10, "a"))
    assert model.converged_
    assert set(model.predict(X)) == {"a"}


@QUIET
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "bayes"),
        ({"module": Linear}, 1.0),
        ({"batch_size": 20}, 1.0),
        ({"selection": "random"}, 1.0),
        ({"solver": "cg"}, 1.0),
        ({"module__hidden_layer_sizes": (600,)}, "bayes"),  # 3601 parameters, times 40 rows
        ({"module__hidden_layer_sizes": (40_000,)}, 1.0),
        ({"criterion__curvature": "mc"}, 1.0),
        ({"alpha": 0.3}, 0.3),
    ],
    ids=str,
)
def test_default_alpha_of_a_classifier(settings, expected):
    X = RNG.standard_normal((40, 4))
    model = LMClassifier(max_epochs=2, random_state=0, **settings).fit(X, X[:, 0] + RNG.standard_normal(40) > 0)
    assert hasattr(model, "log_evidence_") == (expected == "bayes")
    assert expected == "bayes" or model.alpha_ == expected


def test_message_of_a_network_that_ends_as_a_constant():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 1))
    model = LMRegressor(module__hidden_layer_sizes=(1,), alpha="bayes", random_state=0)
    with pytest.warns(ConvergenceWarning, match="the outputs are constant"):
        model.fit(X, rng.standard_normal(30))
    assert np.ptp(model.predict(X)) < 1e-3
    assert "effective parameters; the outputs are constant" in model.message_


@pytest.mark.parametrize("seed", range(8))
def test_curvature_that_vanishes_counts_the_same_whatever_the_rounding(seed):
    rows = torch.randn(19, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    curvature = rows.T @ rows
    diagonal, log_determinant, _ = inverse_of(curvature, curvature[0])
    given = curvature + JITTER * curvature.diagonal().max() * torch.eye(20, dtype=torch.float64)
    torch.testing.assert_close(diagonal, torch.linalg.inv(given).diagonal(), rtol=1e-5, atol=0)
    assert log_determinant == pytest.approx(float(torch.linalg.slogdet(given)[1]), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [(5, 5), (10, 10, 10)], ids=str)
def test_hidden_layers_do_not_vanish_at_the_start(sizes, seed):
    X = np.linspace(-1, 1, 80)[:, None]
    y = np.sin(4 * X[:, 0]) + 0.1 * np.random.default_rng(0).standard_normal(80)
    assert LMRegressor(module__hidden_layer_sizes=sizes, random_state=seed).fit(X, y).score(X, y) > 0.9


def test_evidence_of_two_hidden_layers_has_no_spikes():
    rng = np.random.default_rng(0)
    X = np.linspace(-1, 1, 80)[:, None]
    y = np.sin(4 * X[:, 0]) + 0.1 * rng.standard_normal(80)
    model = LMRegressor(module__hidden_layer_sizes=(10, 5), random_state=0).fit(X, y)
    evidence = np.array(model.history_[:, "log_evidence"])
    assert (evidence[1:-1] - np.maximum(evidence[2:], evidence[:-2])).max() < 30
    assert model.score(X, y) > 0.95


def test_poisson_of_torch_with_two_outputs():
    """The mean over outputs is a likelihood divided by their number; counts near 20 have a loss below 0."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 2))
    y = rng.poisson(np.exp(3 + np.stack([X[:, 0], -X[:, 1]], 1) / 4))
    module = {"module__hidden_layer_sizes": (3,), "random_state": 0, "alpha": "bayes", "max_epochs": 15}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fits = [
            LMRegressor(criterion=nn.PoissonNLLLoss(reduction=reduction), **module).fit(X, y)
            for reduction in ("sum", "mean")
        ]
    np.testing.assert_allclose(fits[1].n_effective_, fits[0].n_effective_, rtol=1e-6)
    np.testing.assert_allclose(fits[1].predict(X), fits[0].predict(X), rtol=1e-6)
    np.testing.assert_allclose(fits[1].alpha_, fits[0].alpha_ / 2, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 0.37, 2500.0])
def test_of_precisions_only_the_ratios_count(factor):
    X = np.linspace(-3, 3, 80)[:, None]
    sigma = np.where(X[:, 0] < 0, 0.05, 0.2)
    y = np.sin(X[:, 0]) + sigma * np.random.default_rng(0).standard_normal(80)
    settings = {"module__hidden_layer_sizes": (4,), "random_state": 0, "max_epochs": 20}
    weights = 1 / sigma**2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one, other = (
            LMRegressor(**settings).fit(X, y, sample_weight=w) for w in (weights / weights.mean(), factor * weights)
        )
    np.testing.assert_allclose(other.predict(X), one.predict(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.alpha_, factor * weights.mean() * one.alpha_, rtol=1e-4)  # of the loss with these
    np.testing.assert_allclose(
        other.predict(X, return_std=True)[1], one.predict(X, return_std=True)[1], rtol=1e-4, atol=1e-7
    )


def test_grades_twice_are_twice_as_many():
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:60, :3], y[:60] // 50
    settings = {"module__hidden_layer_sizes": (2,), "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        twice = LMRegressor(**settings).fit(np.repeat(X, 2, axis=0), np.repeat(y, 2))
        mixed = LMRegressor(**settings).fit(np.r_[X, X, X[:1]], np.r_[y, y, y[:1]])
        once = LMRegressor(**settings).fit(X, y)
        ones = LMRegressor(**settings).fit(np.repeat(X, 2, axis=0), np.repeat(y, 2), sample_weight=np.ones(120))
        halves = LMRegressor(**settings).fit(np.repeat(X, 2, axis=0), np.repeat(y, 2), sample_weight=np.full(120, 0.5))
    assert abs(twice.n_effective_ - mixed.n_effective_) < abs(twice.n_effective_ - once.n_effective_)
    for other in (ones, halves):
        np.testing.assert_allclose(other.log_evidence_, twice.log_evidence_, rtol=1e-9)


def weighted_data():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (80, 3))
    sigma = np.where(rng.random(80) < 0.5, 1.0, 0.5)
    return X, 2.5 * (np.sin(3 * X[:, 0]) + X[:, 1] * X[:, 2]) + sigma * rng.standard_normal(80), sigma


@pytest.mark.parametrize("unit", [1.0, 0.5, 10.0])  # weights 1 and 4; 4 and 16; 0.01 and 0.04
def test_precisions_that_are_whole_numbers_do_not_count_rows(unit):
    X, y, sigma = weighted_data()
    weights = 1 / sigma**2
    near = LMRegressor(random_state=0).fit(X, y, sample_weight=1.1 * weights)
    model = LMRegressor(random_state=0).fit(X, unit * y, sample_weight=weights / unit**2)
    assert model.n_effective_ == pytest.approx(near.n_effective_, rel=1e-4)
    np.testing.assert_allclose(model.predict(X) / unit, near.predict(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [-1, "auto"])  # rows are merged where all are taken at once, and counted in both
def test_copies_of_a_row_are_one_row(batch_size):
    X, y, _ = weighted_data()
    times = np.random.default_rng(1).integers(0, 3, 80)
    settings = {"random_state": 0, "batch_size": batch_size, "max_epochs": 30}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        once = LMRegressor(**settings).fit(X[times > 0], y[times > 0], sample_weight=times[times > 0])
        copies = LMRegressor(**settings).fit(np.repeat(X, times, axis=0), np.repeat(y, times))
        twice = LMRegressor(**settings).fit(X, y, sample_weight=np.full(80, 2.0))
        plain = LMRegressor(**settings).fit(X, y)
    np.testing.assert_allclose(copies.predict(X), once.predict(X), rtol=1e-5, atol=1e-5)
    assert copies.n_effective_ == pytest.approx(once.n_effective_, rel=1e-5)
    np.testing.assert_allclose(twice.predict(X), plain.predict(X), rtol=1e-5, atol=1e-5)
    assert copies.n_effective_ < (times > 0).sum() / 2


@pytest.mark.parametrize(
    ("weights", "n_rows"),
    [([0, 1, 2], 3), ([2, 4, 4], 3), ([0.5, 1, 1], 3), ([0, 0.5], 1), ([1e7, 2e7 + 1], 2), ([1, 1], 2)],
)
def test_rows_that_weights_stand_for(weights, n_rows):
    assert counted(torch.tensor(weights, dtype=torch.float32)).sum() == n_rows


@pytest.mark.parametrize("offset", [50.0, 500.0, -1e4])
def test_a_bias_in_units_of_the_data_costs_no_evidence(offset):
    X = np.random.default_rng(0).normal(size=(100, 2))
    y = X @ [10.0, -5.0] + np.random.default_rng(1).normal(size=100)

    class Linear(nn.Linear):
        def __init__(self, n_features_in, n_outputs):
            super().__init__(n_features_in, n_outputs)

    model = LMRegressor(Linear, alpha="bayes", random_state=0)
    centered, moved = clone(model).fit(X, y), clone(model).fit(X, y + offset)
    np.testing.assert_allclose(moved.predict(X) - offset, centered.predict(X), atol=1e-3)
    np.testing.assert_allclose(moved.alpha_, centered.alpha_, rtol=1e-3)
    np.testing.assert_allclose(moved.n_effective_, centered.n_effective_, rtol=1e-3)


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_alpha_is_that_of_the_loss_with_the_weights_as_given(factor):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 5))
    y = X @ [1, 0, 0.5, 0, 0] + rng.normal(size=30)
    w = factor * rng.integers(1, 4, 30)
    settings = {"module__hidden_layer_sizes": (), "random_state": 0, "max_epochs": 1000}
    model = LMRegressor(**settings).fit(X, y, sample_weight=w)
    again = LMRegressor(**settings, alpha=model.alpha_).fit(X, y, sample_weight=w)
    np.testing.assert_allclose(again.predict(X), model.predict(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.dof_, 30 - model.n_effective_, rtol=1e-4)


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 1, 1: 3}, {0: 1, 1: 2.9}])
def test_class_weights_leave_the_number_of_rows(class_weight):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    y = (X[:, 0] + rng.normal(size=60) > 0.8).astype(int)
    w = rng.integers(1, 5, 60)
    rows = np.repeat(np.arange(60), w)
    model = LMClassifier(class_weight=class_weight, module__hidden_layer_sizes=(3,), random_state=0)
    weighted, repeated = clone(model).fit(X, y, sample_weight=w), clone(model).fit(X[rows], y[rows])
    np.testing.assert_allclose(weighted.alpha_, repeated.alpha_, rtol=1e-8)
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6)


def test_degrees_of_freedom_have_the_prior_of_the_evidence():
    found = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(60, 3))
        mean = X[:, 0] + 0.5 * X[:, 1]
        y = mean + 0.5 * rng.normal(size=60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LMRegressor(random_state=0, max_epochs=300).fit(X, y)
        predicted, std = model.predict(X, return_std=True)
        found.append([60 - model.dof_, model.n_effective_, np.square(std).mean(), np.square(predicted - mean).mean()])
    n_params, n_effective, variance, error = np.mean(found, axis=0)
    assert n_params == pytest.approx(n_effective, rel=0.1)
    assert 0.7 < np.sqrt(variance / error) < 1.4


def test_posterior_covariance_with_the_prior_of_the_evidence():
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:40, :3] * 20, (y[:40] - 150) / 70
    model = LMRegressor(nn.Linear, module__in_features=3, module__out_features=1, alpha="bayes", random_state=0)
    model.fit(X, y)
    rows = np.hstack([X, np.ones((40, 1))])
    tau = np.square(y - model.predict(X)).mean() / 10**2
    precision = rows.T @ rows + np.diag([model.alpha_] * 3 + [tau])
    inverse = np.linalg.inv(precision)
    n_effective = np.trace(inverse @ rows.T @ rows)
    np.testing.assert_allclose(40 - model.dof_, n_effective, rtol=1e-6)
    variance = np.square(y - model.predict(X)).sum() / (40 - n_effective)
    np.testing.assert_allclose(model.residual_variance_, variance, rtol=1e-6)
    np.testing.assert_allclose(model.covariance_, variance * inverse, rtol=1e-6)


def test_precisions_of_a_part_count_the_rows_of_the_part():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 3))
    y = X[:, 0] + 0.3 * rng.normal(size=120)
    w = np.r_[rng.uniform(0.5, 1.5, 60), 100 * rng.uniform(0.5, 1.5, 60)]

    def split(data, y):
        return Subset(data, np.arange(60)), Subset(data, np.arange(60, 120))

    part = LMRegressor(train_split=split, random_state=0).fit(X, y, sample_weight=w)
    alone = LMRegressor(random_state=0).fit(X[:60], y[:60], sample_weight=w[:60])
    np.testing.assert_allclose(part.alpha_, alone.alpha_, rtol=1e-6)
    np.testing.assert_allclose(part.n_effective_, alone.n_effective_, rtol=1e-6)


def test_a_class_of_weight_zero_is_not_counted():
    X, y = load_iris(return_X_y=True)
    settings = {"module__hidden_layer_sizes": (3,), "random_state": 0}
    by_class = LMClassifier(class_weight={0: 1, 1: 1, 2: 0}, **settings).fit(X, y)
    by_sample = LMClassifier(**settings).fit(X, y, sample_weight=(y != 2).astype(float))
    np.testing.assert_allclose(by_class.alpha_, by_sample.alpha_, rtol=1e-8)
    np.testing.assert_allclose(by_class.predict_proba(X), by_sample.predict_proba(X), rtol=1e-6, atol=1e-9)


def test_copies_of_an_optimizer_go_on_with_weights():
    x = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
    optimizer = LevenbergMarquardt(torch.nn.Linear(1, 1).double(), alpha="bayes", seed=0)
    optimizer.step(x, torch.sin(3 * x), x[:, 0] + 0.5)
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]  # noqa: S301
    losses = [one.step(x, torch.sin(3 * x), x[:, 0] + 0.5).loss for one in (optimizer, *others)]
    assert losses[1:] == losses[:1] * 2


@pytest.mark.parametrize(
    ("n_samples", "factor", "seeds"), [(40, 2.0, range(4)), (60, 3.0, range(4)), (200, 5.0, range(3))]
)
def test_several_periods_on_few_rows_are_found(n_samples, factor, seeds):
    grid = np.linspace(-2.5, 2.5, 100)[:, None]
    for seed in seeds:
        rng = np.random.default_rng(seed)
        x = np.sort(rng.uniform(-3, 3, n_samples))[:, None]
        y = np.sin(factor * x[:, 0]) + 0.1 * rng.standard_normal(n_samples)
        model = LMRegressor(random_state=seed).fit(x, y)
        assert np.square(model.predict(grid) - np.sin(factor * grid[:, 0])).mean() < 0.05


class Runs(Callback):
    """Keeps the history of every run that it sees."""

    def on_train_end(self, net, **kwargs):
        self.histories.append(net.history)

    def __init__(self):
        self.histories = []


def test_the_run_of_higher_evidence_is_kept():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(-3, 3, 60))[:, None]
    y = np.sin(3 * x[:, 0]) + 0.1 * rng.standard_normal(60)
    runs = Runs()
    watched = LMRegressor(random_state=0, callbacks=[runs]).fit(x, y)
    first, second = runs.histories
    assert second[-1, "log_evidence"] > first[-1, "log_evidence"] + 10
    assert second[0, "alpha"] == pytest.approx(first[0, "alpha"] / 100)
    model = LMRegressor(random_state=0).fit(x, y)
    np.testing.assert_array_equal(watched.predict(x), model.predict(x))
    assert watched.message_ == model.message_
    assert watched.history_ is second
    runs = Runs()
    noise = rng.standard_normal(60)
    with pytest.warns(ConvergenceWarning, match="the outputs are constant"):
        watched, model = (LMRegressor(random_state=0, callbacks=c).fit(x, noise) for c in ([runs], []))
    np.testing.assert_array_equal(watched.predict(x), model.predict(x))
    assert len(runs.histories) == 1  # the other run is worse, so nobody sees it


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("mean", [1e-3, 0.4, 30.0])
@pytest.mark.parametrize(
    "loss", [SquaredError(), AbsoluteError(), Huber(delta=0.3), SoftL1(delta=0.3), Cauchy(delta=0.3)]
)
def test_dispersion_is_where_the_evidence_is_highest(loss, mean, share):
    n_rows, gamma = 100, 100 * (1 - share)
    phi = fitted_dispersion(loss, mean, share)

    def log_evidence(phi):
        # of alpha |theta|^2 = gamma phi at the optimum, a constant here
        return -(mean + gamma / n_rows * best / 2) * n_rows / phi - n_rows * loss.noise(phi)[0]

    best = phi
    end = 0.3**2 / phi if isinstance(loss, Cauchy) else 2.0
    others = [log_evidence(phi * factor) for factor in (0.5, 0.9, 0.999, *np.linspace(1.0, end, 6)[1:-1])]
    assert log_evidence(phi) >= max(others)


def test_absolute_error_has_laplace_noise():
    assert fitted_dispersion(AbsoluteError(), 0.7, 1.0) == pytest.approx(0.7)
    assert fitted_dispersion(AbsoluteError(), 0.7, 0.5) == pytest.approx(2 * 0.7 / (2 - 0.5))  # 2 D / (2 n - gamma)
    assert fitted_dispersion(SquaredError(), 0.7, 0.5) == 2 * 0.7 / 0.5  # 2 D / (n - gamma)


@pytest.mark.parametrize("loss", ["absolute_error", "huber", "soft_l1", "cauchy"])
def test_networks_with_outliers(loss):
    delta = {} if loss == "absolute_error" else {"criterion__delta": 0.1}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((600, 3))
        f = X[:, 0] + np.sin(3 * X[:, 1])
        y = f + 0.1 * rng.standard_normal(600) + (rng.random(600) < 0.05) * 10 * rng.standard_normal(600)
        model = LMRegressor(criterion=loss, random_state=seed, **delta).fit(X[:200], y[:200])
        assert r2_score(f[200:], model.predict(X[200:])) > 0.85


@pytest.mark.parametrize(
    ("twin", "ours"),
    [
        (nn.HuberLoss(delta=0.2), Huber(delta=0.2)),
        (nn.SmoothL1Loss(beta=0.2), Huber(delta=0.2)),
        (nn.L1Loss(), AbsoluteError()),
        (nn.MSELoss(), SquaredError()),
    ],
)
def test_evidence_does_not_depend_on_the_scale_of_the_loss(twin, ours):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 2))
    y = np.sin(X[:, 0]) + 0.1 * rng.standard_t(2, size=100)
    one, other = (LMRegressor(criterion=loss, random_state=0).fit(X, y) for loss in (twin, ours))
    np.testing.assert_allclose(one.predict(X), other.predict(X), rtol=1e-6)
    assert one.log_evidence_ == pytest.approx(other.log_evidence_, rel=1e-6)
    assert one.n_effective_ == pytest.approx(other.n_effective_, rel=1e-6)


def test_exposures_of_counts_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, (150, 1))
    rate = np.exp(-1 + np.sin(2 * x[:, 0]))
    exposure = rng.integers(1, 30, 150).astype(float)
    counts = rng.poisson(rate * exposure)
    for unit in (1.0, 1 / 12, 365.25, 1e6):  # which says nothing about the counts
        weights = exposure * unit
        model = LMRegressor(criterion="poisson", random_state=0).fit(x, counts / weights, sample_weight=weights)
        found = model.predict(x) * unit
        assert np.average(rate * np.log(rate / found) - (rate - found), weights=exposure) < 0.01
        assert 8 < model.n_effective_ < 25
        assert model.dof_ == pytest.approx(150 - model.n_effective_, abs=3)


def test_link_of_rates():
    link = Poisson().link
    counts = torch.tensor([0.0, 1.0, 3.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(link(counts), torch.tensor([0.5, 1, 3, 7], dtype=torch.float64).log())
    torch.testing.assert_close(link(counts / 1e6), (torch.tensor([0.5, 1, 3, 7], dtype=torch.float64) / 1e6).log())
    torch.testing.assert_close(link(counts + 5)[0], torch.tensor(5.0, dtype=torch.float64).log())
    torch.testing.assert_close(link(0 * counts), torch.full_like(counts, 0.5).log())


class StopAt(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        self.seen = len(net.history)
        if self.seen == self.epoch:
            raise KeyboardInterrupt


def test_a_callback_that_stops_a_fit_stops_all_of_it(monkeypatch):
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(-3, 3, 60))[:, None]
    y = np.sin(3 * x[:, 0]) + 0.1 * rng.standard_normal(60)
    steps = []
    step = LevenbergMarquardt.step
    monkeypatch.setattr(LevenbergMarquardt, "step", lambda *args, **kw: steps.append(1) or step(*args, **kw))
    model = LMRegressor(random_state=0, callbacks=[StopAt(3)]).fit(x, y)
    assert len(steps) == model.n_iter_ == 3


@pytest.mark.parametrize("loss", [SquaredError(), AbsoluteError(), Huber(), Huber(delta=1e-150), SoftL1(), Cauchy()])
@pytest.mark.parametrize("mean", [1e-290, 1e-30, 1.0, 1e30])
def test_dispersion_of_extremes(loss, mean):
    phi = fitted_dispersion(loss, mean, 0.5)
    assert 0 < phi < np.inf
    assert loss.noise(phi)[1] - phi / 4 == pytest.approx(mean, rel=1e-6) or isinstance(loss, Cauchy)


def test_extreme_targets_of_a_network():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 2))
    y = np.sin(X[:, 0]) + 0.1 * rng.standard_normal(60)
    for scale in (1e-150, 1e150):
        model = LMRegressor(random_state=0).fit(X, scale * y)
        assert model.score(X, scale * y) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_far_from_a_minimum_is_not_kept(seed):
    """With more weights than rows, the formula of the evidence would be highest before anything is fitted."""
    X, y = make_regression(1200, 150, n_informative=10, noise=20, random_state=0)
    model = LMRegressor(module__hidden_layer_sizes=(2,), random_state=seed).fit(X[:200], y[:200])
    assert model.score(X[200:], y[200:]) > 0.8  # ridge regression: 0.94


@pytest.mark.parametrize("seed", [0, 1, 3])  # of 20 draws and starts, 2 end as constants; without the second run 14
def test_a_second_run_keeps_its_low_alpha_until_it_has_fitted(seed):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (1400, 2))
    y = np.sin(8 * X[:, 0]) * np.cos(5 * X[:, 1]) + 0.05 * rng.standard_normal(1400)
    model = LMRegressor(random_state=seed).fit(X[:400], y[:400])
    assert model.score(X[400:], y[400:]) > 0.97


def test_a_step_says_how_near_to_a_minimum_it_began():
    X, y = linear_data(50, 3, 0)
    data = torch.tensor(X), torch.tensor(y)
    optimizer = LevenbergMarquardt(Linear(3, 1).double(), alpha="bayes")
    optimizer.loss(*data)
    with torch.no_grad():
        optimizer.module.linear.weight += 10
    assert [optimizer.step(*data).is_near for _ in range(5)] == [False, True, True, True, True]


def test_a_wide_network_on_few_rows_has_a_penalty():
    X, y = load_diabetes(return_X_y=True)
    model = LMRegressor(module__hidden_layer_sizes=(100, 50), max_epochs=30, random_state=0).fit(X[:120], y[:120])
    assert model.alpha_ > 0
    assert model.n_effective_ < 60
    assert model.score(X[120:], y[120:]) > 0.3  # -1.2 without one


def test_a_refit_is_that_of_a_new_estimator():
    X, y, _ = weighted_data()
    X, y = np.repeat(X, 3, axis=0), np.repeat(y, 3)
    model = LMRegressor(module__hidden_layer_sizes=(40_000,), max_epochs=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y).set_params(module__hidden_layer_sizes=(5,), max_epochs=30).fit(X, y)
        new = LMRegressor(module__hidden_layer_sizes=(5,), max_epochs=30, random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), new.predict(X))


def test_copies_of_weight_zero_do_not_count():
    X, y, _ = weighted_data()
    settings = {
        "random_state": 0,
        "max_epochs": 30,
        "callbacks": [],
    }  # callbacks see the rows, so they stay as they are
    weights = np.r_[np.ones(80), np.zeros(80)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        copies = LMRegressor(**settings).fit(np.r_[X, X], np.r_[y, y], sample_weight=weights)
        plain = LMRegressor(**settings).fit(X, y)
    assert copies.n_effective_ == pytest.approx(plain.n_effective_, rel=1e-5)


def test_a_low_alpha_goes_on_from_a_state():
    X, y, _ = weighted_data()
    data = torch.tensor(X), torch.tensor(y)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1)).double()
    straight = LevenbergMarquardt(module, alpha="bayes", seed=0)
    straight.starts_low = True
    straight.step(*data)
    resumed = LevenbergMarquardt(copy.deepcopy(module), alpha="bayes", seed=0)
    resumed.load_state_dict(straight.state_dict())
    assert [resumed.step(*data).alpha for _ in range(5)] == [straight.step(*data).alpha for _ in range(5)]
