"""`LMRegressor` and `LMClassifier` as a scikit-learn user meets them."""

import copy
import functools
import inspect
import io
import pickle
import re
import signal
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import BaggingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from skorch.callbacks import Callback
from torch import nn

from sklm import MLP, LMClassifier, LMRegressor, curve, curves, damping, losses, selection

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = np.sin(X[:, 0]) + X[:, 1] * 0.5 + 0.1 * RNG.normal(size=40)
Y2 = np.column_stack([Y, X @ [1.0, -1.0, 2.0] + 3])
NOISE = 1.5 * RNG.normal(size=(2, 40))
BINARY = np.where(X[:, 0] + NOISE[0] > 0, "yes", "no")  # not separable: a finite optimum without penalty
THREE = np.array(["blue", "green", "red"])[np.digitize(X[:, 0] + NOISE[1], [-0.5, 0.5])]
COUNTS = RNG.poisson(np.exp(0.3 * X[:, 0] + 1)).astype(float)
WEIGHTS = RNG.integers(0, 4, 40)


class Linear(nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_features_in, n_outputs)

    def forward(self, X):
        return self.linear(X)


class Network(nn.Module):
    def __init__(self, n_features_in, n_outputs, n_hidden=3, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_features_in, n_hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(n_hidden, n_outputs)
        )

    def forward(self, X):
        return self.net(X)


def network(n_features_in, n_outputs, n_hidden=3):
    return Network(n_features_in, n_outputs, n_hidden)


def regressor(**params):
    return LMRegressor(**{"module": Network, "random_state": 0, "max_epochs": 20, **params})


def classifier(**params):
    return LMClassifier(**{"module": Network, "random_state": 0, "max_epochs": 20, **params})


def assert_same_fit(one, other):
    assert one.loss_curve_ == other.loss_curve_
    for (name, a), (_, b) in zip(one.module_.state_dict().items(), other.module_.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


# ---------------------------------------------------------------- inside scikit-learn


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"size": rng.uniform(1, 100, 60), "city": rng.choice(["Bern", "Oslo", "Rome"], 60)})
    target = 0.1 * frame["size"] + frame["city"].map({"Bern": 0.0, "Oslo": 5.0, "Rome": -5.0})
    return frame, target


def columns():
    return ColumnTransformer([("numbers", StandardScaler(), ["size"]), ("strings", OneHotEncoder(), ["city"])])


def test_pipeline_on_a_frame_with_strings(table):
    frame, target = table
    model = make_pipeline(columns(), regressor(module=Linear)).fit(frame, target)
    assert model.score(frame, target) > 1 - 1e-12  # the target is linear in the encoded columns


def test_pipeline_of_a_classifier_on_a_frame_with_strings(table):
    frame, target = table
    labels = np.where(target > 4, "dear", "cheap")
    model = make_pipeline(columns(), classifier(module__n_hidden=4)).fit(frame, labels)
    assert set(model.predict(frame)) == {"dear", "cheap"}
    assert model.score(frame, labels) > 0.95


def test_pipeline_passes_frames_and_their_names_on(table):
    frame, target = table
    model = make_pipeline(columns().set_output(transform="pandas"), regressor(module=Linear))
    model.named_steps["columntransformer"].set_params(sparse_threshold=0, strings__sparse_output=False)
    model.fit(frame, target)
    expected = ["numbers__size", "strings__city_Bern", "strings__city_Oslo", "strings__city_Rome"]
    assert model[-1].feature_names_in_.tolist() == expected


def test_grid_search_in_two_processes():
    grid = {
        "damping__initial": [1e-3, 1.0],
        "lr": [0.5, 1.0],
        "module__hidden_layer_sizes": [(2,), (3,)],
        "criterion__curvature": ["ggn", "sqrt"],
    }
    data = load_diabetes(return_X_y=True)
    sample = data[0][:60, :3], np.column_stack([data[1][:60], data[0][:60, 3]])  # curvatures differ from two outputs on
    search = GridSearchCV(LMRegressor(random_state=0, max_epochs=5), grid, cv=2, n_jobs=2, error_score="raise")
    with joblib.parallel_config("loky", n_jobs=2):
        search.fit(*sample)
    assert set(search.best_params_) == set(grid)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(set(search.cv_results_["mean_test_score"])) > 8  # the parameters do something
    best = LMRegressor(random_state=0, max_epochs=5, **search.best_params_).fit(*sample)
    np.testing.assert_array_equal(best.predict(sample[0]), search.predict(sample[0]))


def test_grid_search_over_estimator_parameters():
    grid = {"module": [Linear, Network], "damping": ["nielsen", "standard", "fletcher"], "alpha": [0.0, 1.0]}
    search = GridSearchCV(regressor(max_epochs=5), grid, cv=2, error_score="raise").fit(X, Y)
    assert len(search.cv_results_["params"]) == 12


def test_cross_val_score():
    scores = cross_val_score(regressor(module=Linear), X, Y, cv=4)
    expected = cross_val_score(LinearRegression(), X, Y, cv=4)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)  # ftol


def test_cross_val_score_of_a_classifier():
    X_iris, y = load_iris(return_X_y=True)
    assert cross_val_score(LMClassifier(random_state=0), X_iris, y, cv=3).mean() > 0.93


def test_transformed_target():
    target = np.exp(X @ [1.0, 2.0, -1.0])
    model = TransformedTargetRegressor(regressor(module=Linear), func=np.log, inverse_func=np.exp).fit(X, target)
    np.testing.assert_allclose(model.predict(X), target, rtol=1e-6)


def test_bagging():
    model = BaggingRegressor(regressor(), n_estimators=3, random_state=0).fit(X, Y)
    assert model.predict(X).shape == (40,)
    assert len({one.random_state for one in model.estimators_}) == 3


@pytest.mark.parametrize("labels", [BINARY, THREE], ids=["binary", "three"])
def test_calibration(labels):
    model = CalibratedClassifierCV(classifier(max_epochs=5), cv=2).fit(X, labels)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1, rtol=1e-12)


def test_permutation_importance():
    model = regressor(module=Linear).fit(X, 5 * X[:, 1] + 0.01 * X[:, 0])
    result = permutation_importance(model, X, 5 * X[:, 1], n_repeats=3, random_state=0)
    assert result.importances_mean.argmax() == 1


def test_sample_weight_is_routed_through_a_pipeline():
    with sklearn.config_context(enable_metadata_routing=True):
        model = Pipeline(
            [("scale", StandardScaler()), ("fit", regressor(module=Linear).set_fit_request(sample_weight=True))]
        )
        model["scale"].set_fit_request(sample_weight=False)
        model.fit(X, Y, sample_weight=WEIGHTS)
    expected = LinearRegression().fit(X, Y, sample_weight=WEIGHTS)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-6)


def test_sample_weight_is_routed_through_a_grid_search():
    with sklearn.config_context(enable_metadata_routing=True):
        model = regressor(module=Linear).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"alpha": [0.0]}, cv=2).fit(X, Y, sample_weight=WEIGHTS)
        other = LinearRegression().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        expected = GridSearchCV(other, {"fit_intercept": [True]}, cv=2).fit(X, Y, sample_weight=WEIGHTS)
    np.testing.assert_allclose(search.best_score_, expected.best_score_, rtol=1e-6)
    np.testing.assert_allclose(search.predict(X), expected.predict(X), rtol=1e-6)


def test_sample_weight_that_is_not_asked_for_is_refused():
    with sklearn.config_context(enable_metadata_routing=True), pytest.raises(ValueError, match="sample_weight"):
        make_pipeline(StandardScaler(), regressor()).fit(X, Y, sample_weight=WEIGHTS)


def test_partial_fit_request():
    with sklearn.config_context(enable_metadata_routing=True):
        requests = classifier().set_partial_fit_request(classes=True, sample_weight=True).get_metadata_routing()
    assert requests.partial_fit.requests == {"classes": True, "sample_weight": True}


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("y", "shape"),
    [
        pytest.param(Y, (40,), id="1-D"),
        pytest.param(Y[:, None], (40, 1), id="one column"),
        pytest.param(Y2, (40, 2), id="two columns"),
        pytest.param(Y.astype(np.float32), (40,), id="float32"),
        pytest.param(np.arange(40), (40,), id="integers"),
        pytest.param(list(Y), (40,), id="list"),
        pytest.param(pd.Series(Y), (40,), id="Series"),
        pytest.param(pd.DataFrame(Y2), (40, 2), id="DataFrame"),
        pytest.param(torch.tensor(Y), (40,), id="tensor"),
    ],
)
def test_predictions_have_the_shape_of_y(y, shape):
    model = regressor(module=Linear).fit(X, y)
    assert model.predict(X).shape == shape
    assert model.n_outputs_ == (1 if len(shape) == 1 else shape[1])
    expected = LinearRegression().fit(X, np.asarray(y)).predict(X)
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-5, atol=1e-6)


def test_logarithms_of_probabilities():
    model = classifier(max_epochs=5).fit(X, THREE)
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(model.predict_proba(X)), rtol=1e-9)


def test_multi_output_linear_module_solves_least_squares():
    model = regressor(module=Linear).fit(X, Y2)
    design = np.column_stack([X, np.ones(40)])
    solution, *_ = np.linalg.lstsq(design, Y2, rcond=None)
    np.testing.assert_allclose(model.module_.linear.weight.numpy(force=True), solution[:-1].T, atol=1e-7)
    np.testing.assert_allclose(model.module_.linear.bias.numpy(force=True), solution[-1], atol=1e-7)


def test_module_with_one_dimensional_output():
    class Flat(Linear):
        def forward(self, X):
            return super().forward(X)[:, 0]

    model, expected = regressor(module=Flat).fit(X, Y), LinearRegression().fit(X, Y)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), atol=1e-7)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        pytest.param(BINARY, ["no", "yes"], id="binary strings"),
        pytest.param(THREE, ["blue", "green", "red"], id="three strings"),
        pytest.param(BINARY.astype(object), ["no", "yes"], id="objects"),
        pytest.param(pd.Series(BINARY, dtype="category"), ["no", "yes"], id="category"),
        pytest.param(pd.Series(BINARY), ["no", "yes"], id="Series of str"),
        pytest.param(BINARY == "yes", [False, True], id="booleans"),
        pytest.param(np.where(BINARY == "yes", 7, -3), [-3, 7], id="integers"),
        pytest.param(np.where(BINARY == "yes", 1.0, 2.0), [1.0, 2.0], id="whole floats"),
        pytest.param(list(THREE), ["blue", "green", "red"], id="list"),
        pytest.param(torch.tensor(BINARY == "yes").long(), [0, 1], id="tensor"),
    ],
)
def test_labels(labels, classes):
    model = classifier().fit(X, labels)
    assert model.classes_.tolist() == classes
    assert set(model.predict(X)) <= set(classes)
    probability, decision = model.predict_proba(X), model.decision_function(X)
    assert probability.shape == (40, len(classes))
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-12)
    chosen = (decision > 0).astype(int) if len(classes) == 2 else decision.argmax(axis=1)
    np.testing.assert_array_equal(model.predict(X), model.classes_[chosen])
    np.testing.assert_array_equal(model.predict(X), model.classes_[probability.argmax(axis=1)])
    assert model.score(X, labels) == accuracy_score(np.asarray(labels), model.predict(X)) > 0.5


def test_label_column_warns_like_scikit_learn():
    with pytest.warns(sklearn.exceptions.DataConversionWarning, match="column-vector"):
        classifier().fit(X, BINARY[:, None])


def test_one_class():
    model = classifier().fit(X, ["a"] * 40)
    assert set(model.predict(X)) == {"a"}
    assert model.predict_proba(X).shape == (40, 1)


@pytest.mark.parametrize("labels", [BINARY, THREE], ids=["binary", "three"])
@pytest.mark.parametrize("curvature", ["ggn", "sqrt"])
def test_unpenalized_linear_classifier_is_logistic_regression(labels, curvature):
    model = classifier(module=Linear, alpha=0.0, max_epochs=500, criterion__curvature=curvature, lr=0.5).fit(X, labels)
    expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, labels).predict_proba(X)
    # the square-root trick is not a second-order method at its optimum and approaches it slowly
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-4 if curvature == "ggn" else 0.02)


@pytest.mark.parametrize("criterion", ["log_loss", nn.BCEWithLogitsLoss], ids=["log_loss", "BCEWithLogitsLoss"])
def test_penalty_of_a_linear_classifier_is_that_of_scikit_learn(criterion):
    model = classifier(module=Linear, alpha=2.0, criterion=criterion, max_epochs=200, ftol=1e-14).fit(X, BINARY)
    expected = LogisticRegression(C=1 / 2.0, tol=1e-10).fit(X, BINARY)
    np.testing.assert_allclose(model.decision_function(X), expected.decision_function(X), atol=1e-5)


def test_penalty_of_a_linear_regressor_is_that_of_ridge():
    model, expected = regressor(module=Linear, alpha=5.0).fit(X, Y), Ridge(alpha=5.0).fit(X, Y)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), atol=1e-7)


# ---------------------------------------------------------------- modules

with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    INSTANCE = Network(3, 1).double()
FACTORIES = {
    "class": Network,
    "function": network,
    "partial": functools.partial(Network, n_hidden=3),
    "partial of a function": functools.partial(network, n_hidden=3),
    "lambda": lambda n_features_in, n_outputs: Network(n_features_in, n_outputs),
    "without arguments": lambda: Network(3, 1),
    "instance": INSTANCE,
    "torch class": functools.partial(nn.Linear, 3, 1),
}


@pytest.mark.parametrize("module", FACTORIES.values(), ids=FACTORIES)
def test_module_factories(module):
    model = regressor(module=module).fit(X, Y)
    assert model.loss_ < 0.5 * np.var(Y)
    assert model.loss_curve_[0] >= model.loss_


def test_instance_is_never_trained_in_place():
    instance = Network(3, 1)
    before = copy.deepcopy(instance.state_dict())
    model = regressor(module=instance).fit(X, Y)
    model.partial_fit(X, Y)
    assert model.module is instance
    assert model.module_ is not instance
    assert instance.training
    for name, value in instance.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    start = regressor(module=instance, max_epochs=1, lr=1e-9).fit(X, Y).module_.state_dict()
    for name, value in start.items():  # it is where training starts
        np.testing.assert_allclose(value.cpu(), before[name], atol=1e-6)


def recording(*names):
    """Return a factory whose signature is `names`, and the list of what it was called with."""
    calls = []

    def build(**given):
        calls.append(given)
        return nn.Linear(3, 1)

    build.__signature__ = inspect.Signature([inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in names])
    return build, calls


@pytest.mark.parametrize(
    "names",
    [(), ("n_features_in",), ("n_outputs",), ("feature_names_in",), ("n_features_in", "n_outputs", "feature_names_in")],
    ids=lambda names: "-".join(names) or "none",
)
def test_facts_are_passed_only_when_asked_for(names):
    build, calls = recording(*names)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    regressor(module=build).fit(frame, Y)
    (given,) = calls
    expected = {"n_features_in": 3, "n_outputs": 1, "feature_names_in": ["a", "b", "c"]}
    assert {k: list(v) if k == "feature_names_in" else v for k, v in given.items()} == {n: expected[n] for n in names}


def test_feature_names_are_none_without_names():
    build, calls = recording("feature_names_in")
    regressor(module=build).fit(X, Y)
    assert calls == [{"feature_names_in": None}]


@pytest.mark.parametrize(
    ("labels", "params", "n_outputs"),
    [
        pytest.param(BINARY, {}, 1, id="binary"),
        pytest.param(THREE, {}, 3, id="three"),
        pytest.param(BINARY, {"criterion": nn.CrossEntropyLoss}, 2, id="binary CrossEntropyLoss"),
        pytest.param(BINARY, {"criterion": nn.BCEWithLogitsLoss()}, 1, id="BCEWithLogitsLoss"),
    ],
)
def test_n_outputs_of_classifiers(labels, params, n_outputs):
    model = classifier(**params).fit(X, labels)
    assert model.module_.net[-1].out_features == model.n_outputs_ == n_outputs


def test_user_value_wins_over_the_fact():
    model = classifier(module__n_outputs=2).fit(X, BINARY)
    assert model.n_outputs_ == 2


def test_init_from_data_gets_the_training_data():
    seen = []

    class Initialized(Linear):
        def init_from_data(self, X, y, sample_weight=None):
            seen.append((X.clone(), y.clone(), sample_weight.clone()))

    regressor(module=Initialized).fit(X[:5], Y[:5], sample_weight=[1, 2, 0, 4, 5])
    ((inputs, targets, weights),) = seen
    inputs, targets, weights = (part.numpy(force=True) for part in (inputs, targets, weights))
    order = np.argsort(weights)
    np.testing.assert_array_equal(inputs[order], X[[0, 1, 3, 4]])
    np.testing.assert_array_equal(targets[order], Y[[0, 1, 3, 4]])
    np.testing.assert_array_equal(weights[order], [1, 2, 4, 5])


# ---------------------------------------------------------------- criteria


class Quartic(losses.Loss):
    def value(self, outputs, targets):
        return (outputs - targets).pow(4).sum(1)


CRITERIA = {
    "squared_error": "squared_error",
    "absolute_error": "absolute_error",
    "huber": "huber",
    "soft_l1": "soft_l1",
    "cauchy": "cauchy",
    "MSELoss": nn.MSELoss,
    "MSELoss()": nn.MSELoss(),
    "L1Loss": nn.L1Loss,
    "HuberLoss()": nn.HuberLoss(delta=0.5),
    "SmoothL1Loss": nn.SmoothL1Loss,
    "other torch loss": nn.HuberLoss(reduction="sum"),
    "Loss class": losses.Huber,
    "Loss instance": losses.Huber(delta=0.3),
    "Loss subclass": Quartic,
    "Loss subclass instance": Quartic(),
}


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_regression_criteria_reach_their_minimum(criterion):
    model = regressor(module=Linear, criterion=criterion, max_epochs=300, ftol=1e-12).fit(X, Y)
    design, target = torch.tensor(np.column_stack([X, np.ones(40)])), torch.tensor(Y)[:, None]

    def objective(theta):
        return float(model.criterion_(design @ torch.tensor(theta)[:, None], target))

    start = LinearRegression().fit(X, Y)
    found = minimize(
        objective,
        [*start.coef_, start.intercept_],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000},
    )
    assert model.loss_ <= found.fun * (1 + 1e-6)


@pytest.mark.parametrize(
    ("criterion", "scale"),
    [
        pytest.param("squared_error", 0.5, id="squared_error"),
        pytest.param(nn.MSELoss, 1.0, id="MSELoss"),
        pytest.param(nn.MSELoss(reduction="sum"), 2.0, id="sum over outputs"),
    ],
)
def test_loss_is_the_loss_of_the_predictions(criterion, scale):
    model = regressor(criterion=criterion).fit(X, Y2)
    error = np.square(model.predict(X) - Y2)
    expected = scale * (error.mean() if scale == 1.0 else error.sum(axis=1).mean() * (1 if scale == 0.5 else 0.5))
    np.testing.assert_allclose(model.loss_, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("criterion", "final"),
    [
        pytest.param("log_loss", nn.Identity(), id="log_loss, one column"),
        pytest.param(nn.BCEWithLogitsLoss, nn.Identity(), id="BCEWithLogitsLoss"),
        pytest.param(nn.BCEWithLogitsLoss(), nn.Identity(), id="BCEWithLogitsLoss()"),
        pytest.param(nn.BCELoss, nn.Sigmoid(), id="BCELoss"),
        pytest.param(nn.BCELoss(), nn.Sigmoid(), id="BCELoss()"),
    ],
)
def test_binary_module_with_one_column(criterion, final):
    model = classifier(module=nn.Sequential(nn.Linear(3, 1), final), criterion=criterion, alpha=0.0).fit(X, BINARY)
    expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, BINARY)
    np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-4)
    np.testing.assert_allclose(model.decision_function(X), expected.decision_function(X), atol=1e-3)
    np.testing.assert_array_equal(model.predict(X), model.classes_[(model.decision_function(X) > 0).astype(int)])
    np.testing.assert_allclose(model.loss_, log_loss(BINARY, model.predict_proba(X)), rtol=1e-10)


@pytest.mark.parametrize(
    "criterion", ["log_loss", nn.CrossEntropyLoss, nn.CrossEntropyLoss()], ids=["log_loss", "class", "instance"]
)
def test_binary_module_with_two_columns(criterion):
    model = classifier(module=nn.Linear(3, 2), criterion=criterion, alpha=0.0).fit(X, BINARY)
    expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, BINARY)
    np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-4)
    np.testing.assert_allclose(model.decision_function(X), expected.decision_function(X), atol=1e-3)
    np.testing.assert_allclose(model.loss_, log_loss(BINARY, model.predict_proba(X)), rtol=1e-10)


@pytest.mark.parametrize(
    "criterion", ["poisson", nn.PoissonNLLLoss, nn.PoissonNLLLoss()], ids=["poisson", "class", "instance"]
)
def test_poisson_predicts_means(criterion):
    model = regressor(module=Linear, criterion=criterion).fit(X, COUNTS)
    expected = PoissonRegressor(alpha=0, tol=1e-10, max_iter=1000).fit(X, COUNTS)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-5)


# ---------------------------------------------------------------- forms of X


def test_frame_gives_names_and_the_numbers_of_the_array():
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = regressor().fit(frame, Y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert_same_fit(model, regressor().fit(X, Y))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[["b", "a", "c"]])
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        model.predict(X)


def test_tensor_gives_the_numbers_of_the_array():
    model = regressor().fit(torch.tensor(X, requires_grad=True), torch.tensor(Y))
    assert model.n_features_in_ == 3
    assert_same_fit(model, regressor().fit(X, Y))
    np.testing.assert_array_equal(model.predict(torch.tensor(X)), model.predict(X))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(1, 1, bias=False), nn.Linear(2, 1)

    def forward(self, narrow, wide):
        return self.one(narrow) + self.two(wide)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["arrays", "tensors"])
@pytest.mark.parametrize("batch_size", [-1, 10])
def test_dict_of_arrays(kind, batch_size):
    inputs = {"wide": kind(X[:, 1:]), "narrow": kind(X[:, :1])}
    model = regressor(module=TwoInputs, batch_size=batch_size).fit(inputs, 2 * X[:, 0] - X[:, 2])
    np.testing.assert_allclose(model.predict(inputs), 2 * X[:, 0] - X[:, 2], atol=1e-6)
    assert not hasattr(model, "n_features_in_")


def test_dataset():
    dataset = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    model = regressor().fit(dataset)
    expected = regressor().fit(X, Y)
    np.testing.assert_allclose(model.predict(dataset), expected.predict(X), rtol=1e-9)
    np.testing.assert_allclose(model.loss_, expected.loss_, rtol=1e-9)


def test_dataset_with_separate_y():
    class Inputs(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return torch.tensor(X[index])

    model = classifier().fit(Inputs(), BINARY)
    np.testing.assert_array_equal(model.predict(Inputs()), model.predict(X))


@pytest.mark.parametrize("batch_size", [-1, 8])
def test_images(batch_size):
    def convolution():  # a factory: its start follows random_state
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 1))

    images = np.random.default_rng(0).normal(size=(20, 1, 5, 5))
    target = images.mean(axis=(1, 2, 3))
    model = regressor(module=convolution, batch_size=batch_size, max_epochs=10).fit(images, target)
    assert model.predict(images).shape == (20,)
    assert model.score(images, target) > 0.95


def test_integer_tensor_reaches_an_embedding():
    words = torch.tensor([[0], [1], [2], [1], [0], [2]])
    target = torch.tensor([1.0, 5.0, -2.0, 6.0, 2.0, -3.0]).double()
    model = regressor(module=nn.Sequential(nn.Embedding(3, 1), nn.Flatten())).fit(words, target)
    np.testing.assert_allclose(model.predict(words), [1.5, 5.5, -2.5, 5.5, 1.5, -2.5], atol=1e-6)  # group means


# ---------------------------------------------------------------- copies and parameters


@pytest.fixture(scope="module", params=["regressor", "classifier", "mini-batches"])
def fitted(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if request.param == "classifier":
            return classifier(selection="random", max_epochs=5).fit(X, BINARY)
        return regressor(max_epochs=5, batch_size=-1 if request.param == "regressor" else 8).fit(X, Y)


def joblib_round_trip(model):
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
    "joblib": joblib_round_trip,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_predict_and_go_on_equally(fitted, copied):
    other, another = copied(fitted), copied(fitted)
    np.testing.assert_array_equal(other.predict(X), fitted.predict(X))
    assert other.history_.to_list() == fitted.history_.to_list()
    assert other.optimizer_.module is other.module_
    y = BINARY if hasattr(fitted, "classes_") else Y
    before = fitted.predict(X)
    assert_same_fit(other.partial_fit(X, y), another.partial_fit(X, y))
    np.testing.assert_array_equal(fitted.predict(X), before)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_unfitted_copies(copied):
    model = regressor(module__n_hidden=2, damping__initial=0.1)
    assert copied(model).get_params() == model.get_params()
    assert_same_fit(copied(model).fit(X, Y), model.fit(X, Y))


def test_clone_is_unfitted_and_equal(fitted):
    other = clone(fitted)
    assert other.get_params() == fitted.get_params()
    assert not hasattr(other, "module_")
    assert_same_fit(other.fit(X, BINARY if hasattr(fitted, "classes_") else Y), fitted)


def test_constructor_stores_its_arguments_untouched():
    values = {"lr": np.float64(0.5), "callbacks": [], "random_state": np.random.RandomState(0), "module__n_hidden": [3]}
    params = LMRegressor(**values).get_params(deep=False)
    assert all(params[name] is value for name, value in values.items())


def test_get_params_round_trip():
    model = regressor(module__n_hidden=4, criterion__curvature="sqrt", damping__scaling="more", alpha=0.5)
    other = LMRegressor(**model.get_params())
    assert other.get_params() == model.get_params()
    assert LMRegressor().set_params(**model.get_params()).get_params() == model.get_params()
    assert model.get_params()["module__n_hidden"] == 4


def test_set_params_before_fit():
    model = regressor().set_params(module__n_hidden=5, alpha=0.1, damping__initial=0.5)
    assert_same_fit(model.fit(X, Y), regressor(module__n_hidden=5, alpha=0.1, damping__initial=0.5).fit(X, Y))
    assert model.module_.net[0].out_features == 5


NEW_PARAMS = {
    "module__n_hidden": 5,
    "module": Linear,
    "criterion": "huber",
    "criterion__curvature": "sqrt",
    "damping": "standard",
    "damping__initial": 10.0,
    "damping__scaling": "identity",
    "selection": "random",
    "lr": 0.5,
    "alpha": 1.0,
    "solver": "svd",
    "max_attempts": 1,
    "batch_size": 8,
    "dtype": "float32",
}


@pytest.mark.parametrize(("name", "value"), NEW_PARAMS.items(), ids=NEW_PARAMS)
def test_set_params_after_fit(name, value):
    """Predictions stay, and the next fit is that of a new estimator."""
    model = regressor().fit(X, Y)
    before = model.predict(X)
    model.set_params(**{name: value})
    np.testing.assert_array_equal(model.predict(X), before)
    assert_same_fit(model.fit(X, Y), regressor(**{name: value}).fit(X, Y))


LIVE = {
    "lr": (0.25, lambda optimizer: optimizer.param_groups[0]["lr"]),
    "alpha": (0.7, lambda optimizer: optimizer.param_groups[0]["alpha"]),
    "max_attempts": (3, lambda optimizer: optimizer.max_attempts),
    "solver": ("svd", lambda optimizer: optimizer.solver),
    "jacobian_max_rows": (7, lambda optimizer: optimizer.jacobian_max_rows),
    "ftol": (1e-3, lambda optimizer: optimizer.tests.ftol),
    "damping__maximum": (1e3, lambda optimizer: optimizer.damping.maximum),
}


@pytest.mark.parametrize(("name", "value", "read"), [(n, *v) for n, v in LIVE.items()], ids=LIVE)
@pytest.mark.parametrize("go_on", ["partial_fit", "warm_start"])
def test_set_params_counts_when_training_goes_on(name, value, read, go_on):
    model = regressor(warm_start=True, max_epochs=2).fit(X, Y).set_params(**{name: value})
    (model.partial_fit if go_on == "partial_fit" else model.fit)(X, Y)
    assert read(model.optimizer_) == value


def test_dropping_a_prefixed_parameter_is_not_needed_to_clone():
    assert clone(regressor(module__n_hidden=2)).set_params(module__n_hidden=3).get_params()["module__n_hidden"] == 3


def test_prefixed_parameters_are_attributes():
    model = regressor(module__n_hidden=2)
    assert model.module__n_hidden == 2
    assert not hasattr(model, "module__other")


def line(x, a, b):
    return a + b * x


def linear(n_features_in):
    return nn.Linear(n_features_in, 1)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (LMRegressor(), "LMRegressor()"),
        (LMClassifier(), "LMClassifier()"),
        (
            LMRegressor(alpha=0.5, module__hidden_layer_sizes=(4,)),
            "LMRegressor(alpha=0.5, module__hidden_layer_sizes=(4,))",
        ),
        (LMRegressor("a * exp(-b * x)", module__a=3), "LMRegressor(module='a * exp(-b * x)', module__a=3)"),
        (LMRegressor(curve(line)), "LMRegressor(module=curve(line))"),
        (LMRegressor(curve("a * x")), "LMRegressor(module=curve('a * x'))"),
        (LMRegressor(curves.Gaussian), "LMRegressor(module=Gaussian)"),
        (LMRegressor(linear), "LMRegressor(module=linear)"),
        (LMRegressor(nn.Sequential(nn.Linear(1, 9), nn.Tanh())), "LMRegressor(module=Sequential(...))"),
        (LMRegressor(MLP, module__activation=nn.Tanh), "LMRegressor(module__activation=Tanh)"),
        (LMRegressor(criterion=nn.HuberLoss), "LMRegressor(criterion=HuberLoss)"),
        (LMRegressor(criterion=losses.Huber(delta=2)), "LMRegressor(criterion=Huber(delta=2))"),
        (
            LMRegressor(damping=damping.NielsenDamping(initial=0.1), selection=selection.RandomSelection()),
            "LMRegressor(damping=NielsenDamping(initial=0.1), selection=RandomSelection())",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_repr_shows_what_differs_from_the_default_in_short(model, text):
    before = model.get_params()
    assert repr(model) == repr(clone(model)) == repr(pickle.loads(pickle.dumps(model))) == text  # noqa: S301
    assert model.get_params() == before


def test_repr_with_all_parameters():
    with sklearn.config_context(print_changed_only=False):
        text = repr(LMRegressor(nn.Linear))
    assert "max_epochs=100, module=Linear, n_init=1" in text


@pytest.mark.parametrize("model", [LMRegressor(alpha=0.5), LMClassifier()], ids=["regressor", "classifier"])
def test_html_before_a_fit(model):
    html = model._repr_html_()
    assert type(model).__name__ in html
    assert "damping" in html
    assert "<span>Not fitted</span>" in html
    make_pipeline(StandardScaler(), model)._repr_html_()


@pytest.mark.parametrize("build", [LMRegressor, LMClassifier])
def test_html_of_a_fit_is_short_and_computes_nothing(build, monkeypatch):
    module = nn.Sequential(*[nn.Linear(X.shape[1], X.shape[1]) for _ in range(20)], nn.Linear(X.shape[1], 1))
    model = build(module, max_epochs=2).partial_fit(X, Y if build is LMRegressor else BINARY)
    monkeypatch.setattr(LMRegressor, "covariance_", property(lambda self: pytest.fail("computed the covariance")))
    html = model._repr_html_()
    assert "<span>Fitted</span>" in html
    assert "in_features" not in html
    assert "message_" in html
    assert "callbacks_" not in html
    assert re.search(r"<pre>LM\w+\([^<\n]*module=Sequential\(\.\.\.\)[^<\n]*\)</pre>", html)


OF_SKORCH = {"callbacks_", "init_context_", "initialized_"}
FOR_DICTS = {"input_names_"}
FOR_TABLES = {"n_features_in_", "feature_names_in_"}


@pytest.mark.parametrize("kind", ["table", "dict"])
@pytest.mark.parametrize(
    "model",
    [
        LMRegressor(Linear, module__n_features_in=3, alpha="bayes", max_epochs=3),
        LMClassifier(Linear, module__n_features_in=3, alpha="bayes", max_epochs=3),
    ],
    ids=["regressor", "classifier"],
)
def test_the_docstring_names_every_fitted_attribute(model, kind):
    inputs = pd.DataFrame(X, columns=["u", "v", "w"]) if kind == "table" else {"X": X}
    model = clone(model).partial_fit(inputs, Y if isinstance(model, LMRegressor) else BINARY)
    section = re.search(r"\n    Attributes\n    -+\n(.*?)\n\n", type(model).__doc__, re.DOTALL)[1]
    entries = re.findall(r"^    (\w.*(?:\n\w.*)?)", section, re.MULTILINE)
    described = {name for entry in entries for name in re.findall(r"\w+_(?=[,\s])", entry.split(" : ")[0] + " ")}
    kept = {name for name in vars(model) if name.endswith("_") and not name.startswith("_")}
    kinds = {name: getattr(type(model), name, None) for name in dir(type(model))}
    computed = {
        name for name, value in kinds.items() if re.fullmatch(r"[a-z]\w*_", name) and isinstance(value, property)
    }
    assert kept | computed == described - (FOR_TABLES if kind == "dict" else FOR_DICTS) | OF_SKORCH
    assert type(model.loss_) is type(model.loss_curve_[0]) is float


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("rule", [None, "random"])
@pytest.mark.parametrize(
    ("build", "y"),
    [
        pytest.param(regressor, Y, id="regressor"),
        pytest.param(regressor, Y2, id="two outputs"),
        pytest.param(classifier, BINARY, id="binary"),
        pytest.param(classifier, THREE, id="three"),
        pytest.param(functools.partial(regressor, criterion="huber", alpha=0.1), Y, id="huber"),
        pytest.param(functools.partial(LMRegressor, random_state=0, max_epochs=20), Y, id="MLP"),
    ],
)
def test_weights_equal_repeated_rows(build, y, rule):
    weighted = build(selection=rule).fit(X, y, sample_weight=WEIGHTS)
    rows = np.repeat(np.arange(40), WEIGHTS)
    repeated = build(selection=rule).fit(X[rows], np.asarray(y)[rows])
    output = "predict" if not hasattr(weighted, "predict_proba") else "predict_proba"
    np.testing.assert_allclose(getattr(weighted, output)(X), getattr(repeated, output)(X), rtol=1e-9)
    np.testing.assert_allclose(weighted.loss_curve_, repeated.loss_curve_, rtol=1e-9)


def test_weights_equal_repeated_rows_in_a_large_table():
    """Where merging rows (at most 4 MiB) plays no part."""
    rng = np.random.default_rng(0)
    large, weights = rng.normal(size=(60_000, 9)), rng.integers(0, 3, 60_000)
    y = large @ rng.normal(size=9) + rng.normal(size=60_000)
    rows = np.repeat(np.arange(60_000), weights)
    weighted = regressor(max_epochs=3).fit(large, y, sample_weight=weights)
    repeated = regressor(max_epochs=3).fit(large[rows], y[rows])
    np.testing.assert_allclose(weighted.predict(large[:50]), repeated.predict(large[:50]), rtol=1e-7)


@pytest.mark.parametrize("batch_size", [-1, 7])
def test_weight_zero_is_absence(batch_size):
    kept = WEIGHTS > 0
    one = regressor(batch_size=batch_size).fit(X, Y, sample_weight=kept.astype(float))
    other = regressor(batch_size=batch_size).fit(X[kept], Y[kept], sample_weight=np.ones(kept.sum()))
    assert_same_fit(one, other)


def test_weight_zero_is_absence_with_early_stopping():
    kept = WEIGHTS > 0
    one = regressor(early_stopping=True).fit(X, Y, sample_weight=kept.astype(float))
    other = regressor(early_stopping=True).fit(X[kept], Y[kept], sample_weight=np.ones(kept.sum()))
    assert_same_fit(one, other)


def test_a_common_factor_of_the_weights_does_nothing_without_penalty():
    one, other = (regressor(max_epochs=5).fit(X, Y, sample_weight=np.full(40, factor)) for factor in (1.0, 1024.0))
    np.testing.assert_allclose(one.predict(X), other.predict(X), rtol=1e-9)


def test_score_uses_weights():
    model = regressor().fit(X, Y)
    assert model.score(X, Y) == r2_score(Y, model.predict(X))
    assert model.score(X, Y, sample_weight=WEIGHTS) == r2_score(Y, model.predict(X), sample_weight=WEIGHTS)


# ---------------------------------------------------------------- going on


def test_warm_start_goes_on_where_it_was():
    straight = regressor(max_epochs=12).fit(X, Y)
    model = regressor(max_epochs=4, warm_start=True).fit(X, Y)
    for _ in range(2):
        model.fit(X, Y)
    assert_same_fit(model, straight)
    assert model.n_iter_ == 12


def test_warm_start_with_mini_batches():
    straight = regressor(max_epochs=6, batch_size=8).fit(X, Y)
    model = regressor(max_epochs=3, batch_size=8, warm_start=True).fit(X, Y).fit(X, Y)
    assert_same_fit(model, straight)


def test_fit_starts_anew_without_warm_start():
    model = regressor(max_epochs=4).fit(X, Y)
    assert_same_fit(model.fit(X, Y), regressor(max_epochs=4).fit(X, Y))
    model.fit(X[:, :2], Y)
    assert model.n_features_in_ == 2


def test_partial_fit_goes_on():
    model = regressor(max_epochs=4).partial_fit(X, Y).partial_fit(X, Y)
    assert_same_fit(model, regressor(max_epochs=8).fit(X, Y))


def test_partial_fit_with_classes():
    first = THREE != "red"
    model = classifier(max_epochs=5, alpha=0.01).partial_fit(X[first], THREE[first], classes=["red", "green", "blue"])
    assert model.classes_.tolist() == ["blue", "green", "red"]
    model.partial_fit(X, THREE).partial_fit(X, THREE)
    assert model.predict_proba(X).shape == (40, 3)
    assert model.score(X, THREE) > np.mean(THREE == "blue")
    assert "red" in model.predict(X)  # which the first call did not see


def test_partial_fit_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regressor(max_epochs=1).partial_fit(X, Y)


# ---------------------------------------------------------------- stopping


def validation_loss(model, rows):
    return 0.5 * np.mean(np.square(model.predict(X[rows]) - Y[rows]))


def test_early_stopping_restores_the_best_parameters():
    class Rows(Callback):
        def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
            self.valid = dataset_valid

    rows = Rows()
    model = regressor(
        early_stopping=True,
        module__n_hidden=20,
        max_epochs=200,
        validation_fraction=0.25,
        callbacks=[rows],
        ftol=None,
        xtol=None,
        gtol=None,
    ).fit(X, Y)
    curve = model.history_[:, "valid_loss"]
    valid = rows.valid
    error = model.predict(valid.X) - valid.targets.numpy(force=True)
    assert len(valid) == 10
    assert int(np.argmin(curve)) < len(curve) - 1  # it did overfit
    np.testing.assert_allclose(0.5 * np.mean(np.square(error)), min(curve), rtol=1e-10)
    assert "the best" in model.message_
    assert len(curve) == int(np.argmin(curve)) + 1 + 10  # n_iter_no_change
    np.testing.assert_allclose(model.loss_, model.history_[int(np.argmin(curve)), "train_loss"])


def test_early_stopping_split_is_stratified():
    class Rows(Callback):
        def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
            self.valid, self.train = dataset_valid.y, dataset_train.y

    labels, rows = np.repeat(["a", "b"], [32, 8]), Rows()
    classifier(early_stopping=True, validation_fraction=0.25, callbacks=[rows]).fit(X, labels)
    assert np.unique(rows.valid, return_counts=True)[1].tolist() == [8, 2]
    assert np.unique(rows.train, return_counts=True)[1].tolist() == [24, 6]


def test_early_stopping_with_a_class_of_one():
    classifier(early_stopping=True).fit(X, ["a"] * 39 + ["b"])


def test_convergence_warning_gives_advice():
    with pytest.warns(ConvergenceWarning, match=r"max_epochs=2 reached .*Raise max_epochs") as caught:
        model = regressor(max_epochs=2).fit(X, Y)
    assert caught[0].filename == __file__  # points at the caller's line
    assert not model.converged_
    assert model.message_ == "Not converged after 2 epochs: max_epochs=2 reached."


def test_convergence_warning_of_mini_batches_names_their_cures():
    with pytest.warns(ConvergenceWarning, match="batch_size"):
        regressor(max_epochs=2, batch_size=8).fit(X, Y)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        pytest.param(
            {"gtol": 0.05, "ftol": None, "xtol": None}, r"Converged after .*scaled gradient .* gtol=0\.05", id="gtol"
        ),
        pytest.param(
            {"ftol": 1e-2, "gtol": None, "xtol": None}, r"Converged after .*reduction .* ftol=0\.01", id="ftol"
        ),
        pytest.param(
            {"xtol": 1e-1, "gtol": None, "ftol": None}, r"Converged after .*relative step .* xtol=0\.1", id="xtol"
        ),
    ],
)
def test_message_names_the_test_that_stopped(params, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = regressor(max_epochs=100, **params).fit(X, Y)
    assert model.converged_
    assert model.n_iter_ < 100
    assert re.match(message, model.message_)


def test_all_tests_can_be_disabled():
    model = regressor(module=Linear, ftol=None, xtol=None, gtol=None, max_epochs=30).fit(X, Y)
    assert model.n_iter_ <= 30
    assert not model.converged_


# ---------------------------------------------------------------- fitted attributes


def test_fitted_attributes_of_a_full_batch():
    model = regressor(alpha=0.3, max_epochs=15).fit(pd.DataFrame(X, columns=["a", "b", "c"]), Y)
    weights = sum(float(p.detach().square().sum()) for p in model.module_.parameters() if p.ndim >= 2)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    expected = 0.5 * np.mean(np.square(model.predict(frame) - Y)) + 0.3 / (2 * 40) * weights
    np.testing.assert_allclose(model.loss_, expected, rtol=1e-12)
    assert model.loss_curve_[-1] == model.loss_
    assert len(model.loss_curve_) == model.n_iter_ == len(model.history_) <= 15
    assert (np.diff(model.loss_curve_) <= 0).all()
    assert model.loss_curve_ == model.history_[:, "train_loss"]
    assert isinstance(model.module_, Network)
    assert not model.module_.training
    assert model.optimizer_.module is model.module_
    assert isinstance(model.criterion_, losses.Loss)
    assert (model.n_features_in_, model.n_outputs_) == (3, 1)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert model.device_.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert model.dtype_ == torch.float64
    for name in ("train_loss", "damping", "attempts", "gain_ratio", "dur"):
        assert len(model.history_[:, name]) == model.n_iter_


def test_history_of_every_batch():
    model = regressor(batch_size=15, max_epochs=4, early_stopping=True).fit(X, Y)
    for name in ("train_loss", "damping", "attempts", "gain_ratio"):
        values = model.history_[:, "batches", :, name]
        assert [len(epoch) for epoch in values] == [3] * 4  # 36 rows
    assert model.history_[:, "attempts"] == [sum(epoch) for epoch in model.history_[:, "batches", :, "attempts"]]
    assert model.history_[:, "damping"] == [epoch[-1] for epoch in model.history_[:, "batches", :, "damping"]]
    assert len(model.history_[:, "valid_loss"]) == 4


LOSSES_THAT_FALL = {
    "plain": {},
    "huber": {"criterion": "huber"},
    "absolute_error": {"criterion": "absolute_error"},
    "sqrt": {"criterion__curvature": "sqrt"},
    "random": {"selection": "random"},
    "layer": {"selection": "layer"},
    "lr": {"lr": 1.5},
    "identity": {"damping__scaling": "identity"},
    "fletcher": {"damping": "fletcher"},
    "standard": {"damping": "standard"},
    "alpha": {"alpha": 10.0},
    "cholesky": {"solver": "cholesky"},
    "float32": {"dtype": "float32"},
}


@pytest.mark.parametrize("params", LOSSES_THAT_FALL.values(), ids=LOSSES_THAT_FALL)
def test_training_loss_of_a_full_batch_never_rises(params):
    model = regressor(module__n_hidden=10, max_epochs=40, **params).fit(X, Y)
    assert (np.diff(model.loss_curve_) <= 0).all()


# ---------------------------------------------------------------- reproducible

REPRODUCIBLE = {
    "full batch": {},
    "mini-batches": {"batch_size": 7},
    "dropout": {"module__dropout": 0.3},
    "dropout in mini-batches": {"module__dropout": 0.3, "batch_size": 7},
    "random selection": {"selection": "random"},
    "random layers": {"selection": "layer", "selection__order": "random"},
    "early stopping": {"early_stopping": True},
}


@pytest.mark.parametrize("params", [{}, {"batch_size": 7}, {"module__dropout": 0.3}, {"selection": "random"}])
def test_sampled_curvature_is_reproducible(params):
    params = {"criterion__curvature": "mc", "max_epochs": 5, **params}
    one = classifier(**params).fit(X, THREE)
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    assert_same_fit(one, classifier(**params).fit(X, THREE))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.loss_curve_ != classifier(**{**params, "criterion__curvature": "ggn"}).fit(X, THREE).loss_curve_


def test_sampled_curvature_of_two_classes_is_that_of_gauss_newton():
    fits = [classifier(criterion__curvature=curvature).fit(X, BINARY) for curvature in ("mc", "ggn")]
    assert_same_fit(*fits)


@pytest.mark.parametrize("params", REPRODUCIBLE.values(), ids=REPRODUCIBLE)
def test_same_random_state_same_numbers(params):
    one = regressor(max_epochs=5, **params).fit(X, Y)
    torch.manual_seed(1234)
    np.random.seed(1234)
    other = regressor(max_epochs=5, **params).fit(X, Y)
    assert_same_fit(one, other)
    different = regressor(max_epochs=5, **{**params, "random_state": 1}).fit(X, Y)
    assert different.loss_curve_ != one.loss_curve_


def test_random_state_instance():
    one, other = (regressor(max_epochs=3, random_state=np.random.RandomState(5)).fit(X, Y) for _ in range(2))
    assert_same_fit(one, other)


def test_without_random_state_fits_differ():
    one, other = (regressor(max_epochs=1, random_state=None).fit(X, Y) for _ in range(2))
    assert one.loss_ != other.loss_


@pytest.mark.parametrize("random_state", [0, None])
@pytest.mark.parametrize("params", REPRODUCIBLE.values(), ids=REPRODUCIBLE)
@pytest.mark.parametrize("build", [regressor, classifier])
def test_callers_state_is_untouched(build, params, random_state):
    y = (Y if build is regressor else BINARY).copy()
    rows, weights, module = X.copy(), WEIGHTS.astype(float), functools.partial(Network, n_hidden=3)
    before = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        filters = list(warnings.filters)
        model = build(module=module, max_epochs=3, random_state=random_state, **params).fit(rows, y, weights)
        model.partial_fit(rows, y, sample_weight=weights)
        model.predict(rows)
        model.score(rows, y)
        assert warnings.filters == filters
    assert torch.equal(torch.get_rng_state(), before["torch"])
    np.testing.assert_array_equal(np.random.get_state()[1], before["numpy"])
    assert torch.get_default_dtype() == before["dtype"]
    assert torch.get_num_threads() == before["threads"]
    assert torch.is_grad_enabled() == before["grad"]
    assert torch.are_deterministic_algorithms_enabled() == before["deterministic"]
    np.testing.assert_array_equal(rows, X)
    np.testing.assert_array_equal(y, Y if build is regressor else BINARY)
    np.testing.assert_array_equal(weights, WEIGHTS)


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["array", "tensor"])
def test_a_module_that_writes_into_its_input_does_not_reach_the_callers_array(make):
    class Writing(Linear):
        def forward(self, X):
            X += 1
            return super().forward(X)

    rows = make(X.copy())
    y = Y.copy()
    with pytest.raises(ValueError, match="changes its inputs in place"):
        regressor(module=Writing, max_epochs=3).fit(rows, y).predict(rows)
    np.testing.assert_array_equal(np.asarray(rows), X)


# ---------------------------------------------------------------- dtype


@pytest.mark.parametrize(
    ("params", "rows", "expected"),
    [
        pytest.param({}, X.astype(np.float32), torch.float32, id="float32 X"),
        pytest.param({}, X, torch.float64, id="float64 X"),
        pytest.param({}, np.rint(X).astype(int), torch.float64, id="integer X"),
        pytest.param({}, torch.tensor(X).float(), torch.float32, id="float32 tensor"),
        pytest.param({"dtype": "float64"}, X.astype(np.float32), torch.float64, id="float64"),
        pytest.param({"dtype": "float32"}, X, torch.float32, id="float32"),
        pytest.param({"dtype": torch.float32}, X, torch.float32, id="torch.float32"),
        pytest.param({"dtype": np.float32}, X, torch.float32, id="np.float32"),
        pytest.param({"dtype": np.dtype("float32")}, X, torch.float32, id="np.dtype"),
        pytest.param({"device": "cpu"}, X, torch.float64, id="cpu"),
        pytest.param({"device": torch.device("cpu")}, X, torch.float64, id="torch.device"),
    ],
)
def test_dtype(params, rows, expected):
    model = regressor(**params).fit(rows, Y)
    assert model.dtype_ == expected
    assert {p.dtype for p in model.module_.parameters()} == {expected}
    assert str(model.predict(rows).dtype) == ("float64" if rows.dtype in (np.float64, int) else str(expected)[6:])


def test_default_dtype_of_torch_plays_no_part():
    before = torch.get_default_dtype()
    expected = regressor().fit(X, Y)
    torch.set_default_dtype(torch.float64)
    try:
        model = regressor().fit(X, Y)
        assert {p.dtype for p in model.module_.parameters()} == {torch.float64}
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)
    assert model.dtype_ == expected.dtype_


# ---------------------------------------------------------------- engine options


@pytest.mark.parametrize("rows", [1, 3, 40, 10_000, None])
@pytest.mark.parametrize("n_hidden", [2, 20], ids=["tall", "wide"])
def test_jacobian_max_rows_changes_rounding_only(rows, n_hidden):
    one, other = (
        regressor(module__n_hidden=n_hidden, jacobian_max_rows=size, max_epochs=5).fit(X, Y) for size in (rows, "auto")
    )
    np.testing.assert_allclose(one.predict(X), other.predict(X), rtol=1e-6)
    np.testing.assert_allclose(one.loss_curve_, other.loss_curve_, rtol=1e-6)


class Halving(damping.Damping):
    def __init__(self, *, initial=1.0, factor=0.5):
        super().__init__(initial=initial)
        self.factor = factor

    def accepted(self, gain_ratio):
        self.value *= self.factor

    def rejected(self):
        self.value /= self.factor


@pytest.mark.parametrize(
    "params",
    [{"damping": Halving, "damping__factor": 0.25}, {"damping": Halving(factor=0.25)}],
    ids=["class", "instance"],
)
def test_damping_subclass(params):
    model = regressor(module=Linear, max_epochs=4, ftol=None, xtol=None, gtol=None, **params).fit(X, Y)
    assert model.history_[:2, "damping"] == [1.0, 0.25]
    if isinstance(params["damping"], damping.Damping):
        assert params["damping"].value == 1.0  # the user's instance is not used up
        assert model.optimizer_.damping is not params["damping"]


def test_built_in_damping_as_instance():
    one = regressor(damping=damping.MultiplicativeDamping(increase=3.0, decrease=0.3)).fit(X, Y)
    other = regressor(damping="standard", damping__increase=3.0, damping__decrease=0.3).fit(X, Y)
    assert_same_fit(one, other)


class BiasesOnly(selection.Selection):
    def __init__(self):
        self.calls = 0

    def select(self, sizes, step, generator):
        self.calls += 1
        positions, start = [], 0
        for name, size in sizes.items():
            if name.endswith("bias"):
                positions.append(torch.arange(start, start + size))
            start += size
        return torch.cat(positions)


@pytest.mark.parametrize("rule", [BiasesOnly, BiasesOnly()], ids=["class", "instance"])
def test_selection_subclass(rule):
    module = Network(3, 1)
    model = regressor(module=module, selection=rule).fit(X, Y)
    for name, value in model.module_.state_dict().items():
        moved = not torch.equal(value, module.state_dict()[name].to(value))
        assert moved == name.endswith("bias")
    if isinstance(rule, selection.Selection):
        assert rule.calls == 0  # the user's instance is not touched


def test_built_in_selection_as_instance():
    one = regressor(selection=selection.RandomSelection(subset_size=4)).fit(X, Y)
    assert_same_fit(one, regressor(selection="random", selection__subset_size=4).fit(X, Y))


class OwnConstructor(LMRegressor):
    def __init__(self, hidden=5, *, lr=0.5):
        super().__init__(lr=lr)
        self.hidden = hidden


class PassesOn(LMRegressor):
    def __init__(self, module=MLP, *, lr=0.5, **kwargs):
        super().__init__(module, lr=lr, **kwargs)


def test_subclass_with_its_own_parameters():
    model = clone(OwnConstructor(hidden=2, lr=0.7))
    assert model.get_params() == {"hidden": 2, "lr": 0.7}


def test_subclass_that_passes_keywords_on():
    model = clone(PassesOn(alpha=0.1, module__hidden_layer_sizes=3))
    assert (model.alpha, model.lr) == (0.1, 0.5)
    assert model.get_params()["module__hidden_layer_sizes"] == 3


def test_a_warm_start_with_early_stopping_does_not_end_worse():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), rng.normal(size=60)
    model = LMRegressor(early_stopping=True, warm_start=True, random_state=0, max_epochs=30).fit(X, y)
    before = min(model.history_[:, "valid_loss"])
    model.fit(X, y)
    _, valid = model._early_stopping_split(model._training_data(X, y, None, reset=False))
    loss = np.mean((model.predict(X[valid.indices]) - y[valid.indices]) ** 2) / 2
    assert loss <= before * (1 + 1e-9)


def test_a_warm_start_refuses_another_module():
    X, y = np.arange(12.0).reshape(6, 2), np.arange(6.0)
    model = LMRegressor(nn.Linear(2, 1), warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="`module` has changed since the module was built"):
        model.set_params(module=nn.Linear(2, 1, bias=False)).fit(X, y)


def test_class_weights_of_torch_in_float64():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2))
    y = X[:, 0] + rng.normal(size=40) > 0
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    model = LMClassifier(nn.Linear(2, 2), criterion=criterion, random_state=0).fit(X, y)
    weighted = LMClassifier(nn.Linear(2, 2), criterion=nn.CrossEntropyLoss, random_state=0)
    weighted.fit(X, y, sample_weight=np.where(y, 3.0, 1.0))
    np.testing.assert_allclose(model.decision_function(X), weighted.decision_function(X), atol=0.05)


def test_scores_that_are_no_probabilities():
    X, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    model = LMClassifier(nn.Linear(2, 3), criterion=nn.MultiMarginLoss, random_state=0, max_epochs=3)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y)
    assert set(model.predict(X)) <= {0, 1, 2}
    with pytest.raises(ValueError, match="gives no probabilities"):
        model.predict_proba(X)


def noisy_rows(n_rows=3000):
    rng = np.random.default_rng(5)
    X = rng.uniform(-1, 1, (n_rows, 1))
    return X, np.sin(4 * X[:, 0]) + 0.3 * rng.standard_normal(n_rows)


@pytest.mark.parametrize("batch_size", [100, 500])
def test_mini_batches_end_at_the_optimum_of_all_rows(batch_size):
    X, y = noisy_rows()
    ends = []
    for size in (-1, batch_size):
        model = LMRegressor(torch.nn.Linear(1, 1), batch_size=size, random_state=0, max_epochs=60).fit(X, y)
        assert model.converged_
        ends.append(np.mean((model.predict(X) - y) ** 2))
    assert ends[1] == pytest.approx(ends[0], rel=1e-10)
    sizes = model.history_[:, "batch_size"]
    assert sizes[0] == batch_size
    assert sizes[-1] == 3000
    assert sizes == sorted(sizes)


def test_mini_batches_of_a_network_come_within_a_percent_of_the_optimum():
    X, y = noisy_rows()
    settings = {"alpha": 0, "max_epochs": 60, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ends = [np.mean((LMRegressor(batch_size=s, **settings).fit(X, y).predict(X) - y) ** 2) for s in (-1, 100)]
    assert ends[1] < 1.01 * ends[0]


def test_batches_do_not_grow_while_the_loss_falls():
    X = np.random.default_rng(0).uniform(-1, 1, (2000, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LMRegressor(batch_size=200, alpha=0, max_epochs=20, random_state=0).fit(X, np.sinc(4 * X[:, 0]))
    rows = model.history_
    for before, row, after in zip(rows, rows[1:], rows[2:], strict=False):
        if row["batch_size"] == 2000 or before["batch_size"] != row["batch_size"]:
            continue
        stalls = row["initial_loss"] > 0.99 * before["initial_loss"]
        assert (after["batch_size"] > row["batch_size"]) == stalls
    assert len(set(model.history_[:, "batch_size"])) > 1


@pytest.mark.parametrize(
    ("module", "n_rows", "expected"),
    [(Network, 3000, 3000), (Network, 5000, 1000), ("a * x0 + b * x1", 5000, -1), (None, 5000, -1)],
    ids=["few rows", "many rows", "curve", "default network"],
)
def test_automatic_batch_size(module, n_rows, expected):
    X = np.random.default_rng(0).standard_normal((n_rows, 2))
    chosen = {} if module is None else {"module": module}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LMRegressor(batch_size="auto", max_epochs=1, random_state=0, **chosen).fit(X, X @ [1.0, 2.0])
    assert model.history_[0].get("batch_size", -1) == expected


CLASS_WEIGHTS = {
    "balanced": "balanced",
    "dict": {"blue": 3.0, "green": 0.5, "red": 1.5},
    "one class left at 1": {"blue": 3.0, "red": 0.25},
    "a class that does not count": {"blue": 0.0, "green": 2.0},
}


@pytest.mark.parametrize("sample_weight", [None, WEIGHTS], ids=["alone", "times sample_weight"])
@pytest.mark.parametrize("class_weight", CLASS_WEIGHTS.values(), ids=CLASS_WEIGHTS)
def test_class_weight_multiplies_sample_weight(class_weight, sample_weight):
    counts = np.ones(len(X)) if sample_weight is None else sample_weight
    if class_weight == "balanced":  # every class has the same total weight
        totals = {label: counts[label == THREE].sum() for label in np.unique(THREE)}
        by_hand = {label: counts.sum() / (3 * total) for label, total in totals.items()}
    else:
        by_hand = {"green": 1.0, "red": 1.0} | class_weight
    found = classifier(class_weight=class_weight).fit(X, THREE, sample_weight=sample_weight)
    expected = classifier().fit(X, THREE, sample_weight=counts * np.array([by_hand[label] for label in THREE]))
    np.testing.assert_array_equal(found.predict_proba(X), expected.predict_proba(X))


@pytest.mark.parametrize("class_weight", [None, "balanced", {"no": 3.0}], ids=["none", "balanced", "dict"])
def test_class_weight_is_that_of_scikit_learn(class_weight):
    mine = LMClassifier(Linear, alpha=1.0, class_weight=class_weight, random_state=0)
    mine.fit(X, BINARY, sample_weight=WEIGHTS)
    other = LogisticRegression(class_weight=class_weight, tol=1e-10).fit(X, BINARY, sample_weight=WEIGHTS)
    np.testing.assert_allclose(mine.decision_function(X), other.decision_function(X), atol=1e-4)


def test_balanced_class_weight_with_a_class_of_weight_zero():
    """Rows of weight zero are not there, so their class has no frequency."""
    absent = np.where(THREE == "green", 0.0, 1.0)
    model = classifier(class_weight="balanced").fit(X, THREE, sample_weight=absent)
    counts = [np.sum(label == THREE) for label in ("blue", "red")]
    weights = absent * np.where(THREE == "blue", sum(counts) / (2 * counts[0]), sum(counts) / (2 * counts[1]))
    expected = classifier().fit(X, THREE, sample_weight=weights)
    np.testing.assert_array_equal(model.predict_proba(X), expected.predict_proba(X))


def test_class_weight_in_partial_fit():
    weights = {"blue": 3.0, "red": 0.5}
    found = classifier(class_weight=weights).partial_fit(X[:20], THREE[:20], classes=np.unique(THREE))
    factors = np.array([weights.get(label, 1.0) for label in THREE])
    expected = classifier().partial_fit(X[:20], THREE[:20], classes=np.unique(THREE), sample_weight=factors[:20])
    for model, given in ((found, None), (expected, factors[20:])):
        model.partial_fit(X[20:], THREE[20:], sample_weight=given)
    np.testing.assert_array_equal(found.predict_proba(X), expected.predict_proba(X))
    with pytest.raises(ValueError, match="'balanced' is not supported for partial_fit"):
        classifier(class_weight="balanced").partial_fit(X, THREE)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ("equal", "The 'class_weight' parameter of LMClassifier must be an instance of 'dict', a str among"),
        ([1.0, 2.0, 3.0], "The 'class_weight' parameter of LMClassifier must be"),
        ({"blue": 1.0, "violet": 2.0}, r"The classes, \['green', 'red'\], are not in class_weight"),
        ({"blue": -1.0}, "`class_weight` must have finite weights >= 0"),
        ({"blue": np.nan}, "`class_weight` must have finite weights >= 0"),
    ],
)
def test_bad_class_weight(class_weight, message):
    model = classifier(class_weight=class_weight)
    with pytest.raises(ValueError, match=message):
        model.fit(X, THREE)
    assert not hasattr(model, "module_")


def test_every_start_is_another_one():
    X, y = noisy_rows(100)
    firsts = []

    class Start(Callback):
        def on_train_begin(self, net, **kwargs):
            firsts.append(tuple(net.parameters_.values()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        LMRegressor(n_init=5, random_state=0, max_epochs=1, alpha=0.0, callbacks=[Start()]).fit(X, y)
    assert len(set(firsts)) == len(firsts) == 5


def test_the_best_of_several_starts_with_mini_batches():
    X, y = noisy_rows(300)
    settings = {"batch_size": 30, "max_epochs": 6, "alpha": 0.0, "random_state": 0}
    ends = []

    class End(Callback):
        def on_train_end(self, net, X=None, **kwargs):
            ends.append(float(np.mean((net.predict(X.numpy(force=True)) - y) ** 2)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LMRegressor(n_init=4, callbacks=[End()], **settings).fit(X, y)
    assert np.mean((model.predict(X) - y) ** 2) == pytest.approx(min(ends))


def test_a_full_batch_after_batches_that_grew():
    X, y = noisy_rows(400)
    model = LMRegressor(batch_size=50, alpha=0.0, max_epochs=10, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
        assert model.history_[-1, "batch_size"] > 50
        model.set_params(batch_size=-1).partial_fit(X, y)
    assert len(model.history_[-1, "batches"]) == 1


def test_other_batches_begin_anew():
    X, y = noisy_rows(400)
    model = LMRegressor(batch_size=50, alpha=0.0, warm_start=True, max_epochs=30, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
        assert model.history_[-1, "batch_size"] == 400
        model.set_params(max_epochs=1).fit(X, y)
        assert model.history_[-1, "batch_size"] == 400
        model.set_params(batch_size=20).fit(X, y)
    assert model.history_[-1, "batch_size"] == 20


@pytest.mark.parametrize("early_stopping", [False, True])
def test_partial_fit_after_an_interrupt_within_an_epoch(early_stopping, ctrl_c):
    X, y = noisy_rows(400)

    class Interrupt(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            if training and len(net.history) == 2 and len(net.history[-1, "batches"]) == 2:
                signal.raise_signal(signal.SIGINT)

    model = LMRegressor(
        batch_size=100, alpha=0.0, max_epochs=5, random_state=0, callbacks=[Interrupt()], early_stopping=early_stopping
    )
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    model.set_params(callbacks=None, max_epochs=1).partial_fit(X, y)
    assert model.n_iter_ == 2


def test_early_stopping_waits_anew_after_the_batches_have_grown():
    X, y = noisy_rows(1000)
    model = LMRegressor(
        batch_size=100, alpha=0.0, early_stopping=True, n_iter_no_change=3, max_epochs=60, ftol=None, random_state=1
    ).fit(X, y)
    sizes = model.history_[:, "batch_size"]
    assert model.message_.startswith("Stopped early")
    assert sizes.count(sizes[-1]) > 3


def test_a_function_that_is_edited_in_place_is_read_again():
    """As IPython's autoreload does it."""

    def edited(n_features_in, width=2):
        return nn.Sequential(nn.Linear(n_features_in, width), nn.Linear(width, 1))

    def factory(n_features_in):
        return nn.Linear(n_features_in, 1)

    table, y = np.linspace(0, 1, 9)[:, None], np.linspace(0, 2, 9)
    LMRegressor(factory).fit(table, y)
    factory.__code__, factory.__defaults__ = edited.__code__, edited.__defaults__
    assert len(LMRegressor(factory, module__width=3).fit(table, y).module_) == 2


def test_a_perfect_classifier_is_not_called_constant():
    x = np.linspace(0, 4, 50)[:, None]
    model = LMClassifier(module__hidden_layer_sizes=(3,), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, x[:, 0] > 1.6)
    assert model.score(x, x[:, 0] > 1.6) == 1
    assert model.n_effective_ < 5  # of 3 + 2 parameters without penalty, hardly one more
    assert "constant" not in model.message_


@pytest.mark.parametrize("unit", [1e-30, 1e-22, 1.0, 1e22, 1e30])
def test_targets_in_any_units_in_float32(unit):
    X32 = X.astype(np.float32)
    y = ((np.sin(X32[:, 0]) + X32[:, 1]) * unit).astype(np.float32)
    model = LMRegressor(random_state=0).fit(X32, y)
    assert model.dtype_ == (torch.float32 if unit == 1.0 else torch.float64)
    assert model.score(X32, y) > 0.99


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_log_probabilities_far_out(n_classes, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)).astype(dtype)
    labels = np.digitize(x[:, 0], [0.0] if n_classes == 2 else [-0.5, 0.5])
    model = LMClassifier(module__hidden_layer_sizes=(), alpha=0.1, random_state=0).fit(x, labels)
    found = model.predict_log_proba(1000 * x)
    logits = model.decision_function(1000 * x).astype(np.longdouble)
    logits = np.column_stack([0 * logits, logits]) if n_classes == 2 else logits
    logits = logits - logits.max(1, keepdims=True)
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert np.isfinite(found).all()
    rtol, atol = (1e-4, 1e-7) if dtype == np.float32 else (1e-12, 1e-15)
    np.testing.assert_allclose(found, expected.astype(float), rtol=rtol, atol=atol)


@pytest.mark.parametrize("alpha", [0.0, "auto"])
def test_a_warm_start_that_does_not_improve_describes_the_epoch_it_returns_to(alpha):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    y = np.sin(X[:, 0]) + 0.3 * rng.normal(size=80)
    model = LMRegressor(early_stopping=True, warm_start=True, alpha=alpha, random_state=0)
    names = ["loss_", "alpha_", "residual_variance_", "dof_"]
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            model.fit(X, y)
            seen.append([np.abs(model.predict(X)).sum(), *(getattr(model, name) for name in names)])
    best = int(np.argmin(model.history_[:, "valid_loss"])) + 1
    assert f"those of epoch {best}, the best" in model.message_
    np.testing.assert_array_equal(seen[1:], seen[:1] * 2)


def test_a_module_that_does_not_fit_the_data_is_named():
    X = np.zeros((20, 3))
    with pytest.raises(ValueError, match=r"`module` cannot be called on the first samples of X, of shape \(\d, 3\)"):
        LMRegressor(lambda: nn.Linear(5, 1)).fit(X, X[:, 0])
    with pytest.raises(ValueError, match="the keys of a dict are the arguments of forward"):
        LMRegressor(module__n_features_in=3).fit({"Z": X}, X[:, 0])


@pytest.mark.parametrize("alpha", ["Auto", None, -1.0])
def test_alpha_names_all_that_it_may_be(alpha):
    with pytest.raises(ValueError, match="`alpha` must be a finite number >= 0, 'auto' or 'bayes'"):
        LMRegressor(alpha=alpha).fit(np.zeros((5, 1)), np.arange(5.0))


def test_class_weight_without_any_weight_is_named():
    with pytest.raises(ValueError, match="`class_weight` must have a weight > 0 for a class in y"):
        LMClassifier(class_weight={0: 0, 1: 0}).fit(np.arange(6.0)[:, None], [0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Weights", "sample_weight=weights)"),
        ("weights", "sample_weight=weights**2)"),
        ("scale_covar", "absolute_sigma=not scale_covar"),
    ],
)
def test_hints_for_names_from_elsewhere_have_the_same_sense(name, hint):
    with pytest.raises(TypeError, match=re.escape(hint)):
        LMRegressor(**{name: 1})


def test_a_network_of_ones_own_that_ends_as_a_constant_warns():
    x = np.linspace(1000, 2000, 60)[:, None]

    def module():
        return nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1))

    with pytest.warns(ConvergenceWarning, match="the outputs are constant; .* scale X and y to mean 0 and variance 1"):
        LMRegressor(module, random_state=0).fit(x, np.sin(x[:, 0] / 80))


@pytest.mark.parametrize("criterion", ["cauchy", "soft_l1"])
def test_a_network_beside_an_outlier_is_not_a_constant(criterion):
    x = np.linspace(-1, 1, 200)[:, None]
    y = np.sin(3 * x[:, 0]) + 0.1 * np.random.default_rng(0).standard_normal(200)
    y[17] = 3000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LMRegressor(criterion=criterion, criterion__delta=0.1, alpha=1e-4, random_state=0).fit(x, y)
    assert r2_score(np.delete(y, 17), np.delete(model.predict(x), 17)) > 0.9
    assert "constant" not in model.message_
