"""Wrong input ends in an error that names what is wrong and the way out, and leaves the estimator as it was."""

import copy
import re

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.exceptions import NotFittedError
from torch import nn

from sklm import LMClassifier, LMRegressor, curve

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 2))
Y = X @ [1.0, -2.0] + 0.1 * RNG.normal(size=24)
LABELS = np.array(["no", "yes"])[(Y > 0).astype(int)]


def linear(n_features_in, n_outputs):
    return nn.Linear(n_features_in, n_outputs)


def regressor(**params):
    return LMRegressor(**{"module": linear, "random_state": 0, **params})


def classifier(**params):
    return LMClassifier(**{"module": linear, "random_state": 0, **params})


def with_value(array, value):
    array = array.copy()
    array.flat[3] = value
    return array


class Snapshot:
    """All that a fitted estimator is: its attributes, and the numbers behind them."""

    def __init__(self, model, rows):
        self.model, self.rows = model, rows
        self.attributes = dict(vars(model))
        self.parameters = copy.deepcopy(model.module_.state_dict())
        self.optimizer = copy.deepcopy(model.optimizer_.state_dict()["levenberg_marquardt"])
        self.history = copy.deepcopy(model.history_.to_list())
        self.training = model.module_.training
        self.predictions = model.predict(rows)

    def assert_unchanged(self):
        now = vars(self.model)
        assert set(now) == set(self.attributes)
        assert [name for name, value in self.attributes.items() if now[name] is not value] == []
        state = self.model.module_.state_dict()
        assert all(torch.equal(state[name], value) for name, value in self.parameters.items())
        assert repr(self.model.optimizer_.state_dict()["levenberg_marquardt"]) == repr(self.optimizer)
        assert self.model.history_.to_list() == self.history
        assert self.model.module_.training == self.training
        np.testing.assert_array_equal(self.model.predict(self.rows), self.predictions)


def assert_refused(model, message, X=X, y=Y, error=ValueError, **fit_params):
    """The unfitted estimator refuses and stays unfitted."""
    before = dict(vars(model))
    with pytest.raises(error, match=message):
        model.fit(X, y, **fit_params)
    assert vars(model) == before
    with pytest.raises(NotFittedError):
        model.predict(X)


def assert_refit_refused(model, message, X=X, y=Y, error=ValueError, rows=None, method="fit", **fit_params):
    """The fitted estimator refuses and keeps its fit, bit for bit."""
    snapshot = Snapshot(model, rows)
    with pytest.raises(error, match=message):
        getattr(model, method)(X, y, **fit_params)
    snapshot.assert_unchanged()


# ---------------------------------------------------------------- parameters

WRONG_VALUES = [
    ("lr", 0, r"`lr` must be a finite number > 0 and < 2; got 0\."),
    ("lr", 2.0, r"`lr` must be .*got 2\.0"),
    ("lr", -1.0, r"`lr` must be .*got -1\.0"),
    ("lr", float("nan"), r"`lr` must be .*got nan"),
    ("lr", "large", r"`lr` must be .*got 'large'"),
    ("damping", "nielson", r"`damping` must be one of 'nielsen', .*got 'nielson'; did you mean 'nielsen'\?"),
    ("damping", 1e-3, r"`damping` must be one of .*or a subclass or an instance of Damping; got 0\.001"),
    ("damping", LMRegressor, r"`damping` must be one of"),
    ("damping__initial", 0, r"`damping__initial` must be .*got 0\."),
    ("damping__initial", float("inf"), r"`damping__initial` must be .*got inf"),
    ("damping__initial", "small", r"`damping__initial` must be .*got 'small'"),
    ("damping__minimum", -1.0, r"`damping__minimum` must be .*> 0; got -1"),
    ("damping__maximum", 1e-30, r"`damping__maximum` must be .*got 1e-30"),
    ("damping__scaling", "mor", r"`damping__scaling` must be one of .*did you mean 'more'\?"),
    ("max_attempts", 0, r"`max_attempts` must be an integer >= 1; got 0\."),
    ("max_attempts", 2.5, r"`max_attempts` must be an integer >= 1; got 2\.5"),
    ("jacobian", "fast", r"`jacobian` must be one of .*got .fast."),
    ("solver", "lu", r"`solver` must be one of 'auto', 'cholesky', 'qr', 'svd', 'cg'; got 'lu'"),
    ("solver", None, r"`solver` must be one of .*got None"),
    ("jacobian_max_rows", 0, r"`jacobian_max_rows` must be .*got 0"),
    ("jacobian_max_rows", 1.5, r"`jacobian_max_rows` must be .*got 1\.5"),
    ("jacobian_max_rows", "all", r"`jacobian_max_rows` must be .*got 'all'"),
    ("selection", "rando", r"`selection` must be one of .*did you mean 'random'\?"),
    ("selection", 0.5, r"`selection` must be one of .*got 0\.5"),
    ("selection__subset_size", 3, r"`selection__subset_size` needs `selection='random'`"),
    ("alpha", -1e-3, r"`alpha` must be a finite number >= 0, 'auto' or 'bayes'; got -0\.001"),
    ("alpha", None, r"`alpha` must be .*got None"),
    ("alpha", float("inf"), r"`alpha` must be .*got inf"),
    ("max_epochs", 0, r"`max_epochs` must be an integer >= 1; got 0\."),
    ("max_epochs", 10.0, r"`max_epochs` must be an integer >= 1; got 10\.0"),
    ("max_epochs", True, r"`max_epochs` must be an integer >= 1; got True"),
    ("batch_size", 0, r"`batch_size` must be an integer >= 1, -1 for all samples or .auto.; got 0\."),
    ("batch_size", -2, r"`batch_size` must be .*got -2"),
    ("batch_size", "all", r"`batch_size` must be .*got 'all'"),
    ("ftol", -1e-8, r"`ftol` must be a finite number >= 0; got -1e-08"),
    ("xtol", float("nan"), r"`xtol` must be .*got nan"),
    ("gtol", "tight", r"`gtol` must be .*got 'tight'"),
    ("early_stopping", "yes", r"`early_stopping` must be True or False; got 'yes'"),
    ("validation_fraction", 0.0, r"`validation_fraction` must be .*> 0 and < 1; got 0\.0"),
    ("validation_fraction", 1, r"`validation_fraction` must be .*got 1\."),
    ("n_iter_no_change", 0, r"`n_iter_no_change` must be an integer >= 1; got 0"),
    ("warm_start", 1, r"`warm_start` must be True or False; got 1"),
    ("random_state", "seed", r"`random_state`.*'seed'"),
    ("random_state", -1, r"`random_state`.*-1"),
    ("verbose", -1, r"`verbose` must be an integer >= 0; got -1"),
    ("verbose", "loud", r"`verbose` must be .*'loud'"),
    ("callbacks", "off", r"`callbacks` must be None, a list or 'disable'; got 'off'"),
    ("callbacks", 3, r"`callbacks` must be .*got 3"),
    ("train_split", 5, r"`train_split` must be None or a callable; got 5"),
    ("device", "tpu", r"`device` must be .*got 'tpu'"),
    ("device", [0], r"`device` must be .*got \[0\]"),
    ("device", "cuda:99", r"`device='cuda:99'` is not available on this machine; pass 'auto' or 'cpu'\."),
    ("device", "xpu", r"`device='xpu'` is not available"),
    ("dtype", "float16", r"`dtype` must be one of 'auto', 'float32', 'float64'; got 'float16'"),
    ("dtype", torch.int64, r"`dtype` must be one of"),
    ("dtype", None, r"`dtype` must be one of"),
    ("module", 3, r"`module` must be a torch\.nn\.Module class, a function .*got 3"),
    ("module", "MLP", r"`module` (has changed|.MLP., read as a formula, uses no column)"),
    ("module", lambda: 3, r"`module` must return a torch\.nn\.Module; got int"),
    ("criterion", "mse", r"`criterion` must be one of .*got 'mse'"),
    ("criterion", "squared_eror", r"did you mean 'squared_error'\?"),
    ("criterion", 3, r"`criterion` must be .*got 3"),
    ("criterion", nn.Linear(1, 1), r"`criterion` must be a torch loss with a `reduction` attribute"),
    ("criterion", nn.ReLU, r"`criterion` must be a torch loss with a `reduction` attribute"),
    ("criterion__curvature", "gnn", r"`criterion__curvature` must be one of .*did you mean 'ggn'\?"),
    ("criterion__curvature", 1, r"`criterion__curvature` must be one of"),
    ("module__bias_", 1, r"`module__bias_` is not a parameter of linear"),
    ("module__n_output", 1, r"`module__n_output` .*did you mean 'n_outputs'\?"),
    ("criterion__curvatur", "ggn", r"`criterion__curvatur` .*did you mean 'curvature'\?"),
    ("criterion__delta", 1.0, r"`criterion__delta` is not a parameter of SquaredError"),
    ("damping__initail", 1.0, r"`damping__initail` .*did you mean 'initial'\?"),
]
WRONG_VALUES = [pytest.param(*case, id=f"{case[0]}={str(case[1])[:20]}") for case in WRONG_VALUES]


def skip_where_available(name, value):
    if name == "device" and value == "xpu" and torch.xpu.is_available():
        pytest.skip("this machine has the device that the test takes to be missing")


@pytest.mark.parametrize("estimator", [regressor, classifier])
@pytest.mark.parametrize(("name", "value", "message"), WRONG_VALUES)
def test_wrong_value(estimator, name, value, message):
    skip_where_available(name, value)
    if estimator is classifier and name.startswith("criterion__delta"):
        message = message.replace("SquaredError", "CrossEntropy")
    if estimator is classifier and value == "squared_eror":
        value, message = "log_los", r"did you mean 'log_loss'\?"
    assert_refused(estimator(**{name: value}), message, y=Y if estimator is regressor else LABELS)


@pytest.mark.parametrize("warm_start", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(("name", "value", "message"), WRONG_VALUES)
def test_wrong_value_in_a_refit(name, value, message, warm_start):
    skip_where_available(name, value)
    if warm_start and name == "module" and callable(value) and not isinstance(value, type):
        pytest.skip("a warm start keeps the module that is there and calls no factory")
    model = regressor(warm_start=warm_start).fit(X, Y).set_params(**{name: value})
    assert_refit_refused(model, message, rows=X)


PAIRS_OF_VALUES = [
    ({"damping": "standard", "damping__increase": 1.0}, r"`damping__increase` must be .*> 1; got 1\.0"),
    ({"damping": "standard", "damping__decrease": 0.0}, r"`damping__decrease` must be .*got 0\.0"),
    ({"damping": "nielsen", "damping__increase": 3.0}, r"`damping__increase` is not a parameter of NielsenDamping"),
    ({"selection": "random", "selection__subset_size": 0}, r"`selection__subset_size` must be an integer >= 1; got 0"),
    ({"selection": "random", "selection__subset_size": 1.5}, r"`selection__subset_size` must be .*got 1\.5"),
    ({"selection": "random", "selection__subset_size": "half"}, r"`selection__subset_size` must be .*got 'half'"),
    ({"selection": "layer", "selection__order": "cylic"}, r"`selection__order` .*did you mean 'cyclic'\?"),
    ({"selection": "random", "selection__subset_siz": 3}, r"did you mean 'subset_size'\?"),
    ({"module": nn.Linear(2, 1), "module__bias": False}, r"`module` is an instance, so `module__bias` cannot"),
    ({"criterion": "huber", "criterion__delta": 0.0}, r"`criterion__delta` must be .*> 0; got 0\.0"),
    ({"criterion": "huber", "criterion__delt": 1.0}, r"did you mean 'delta'\?"),
    ({"device": "mps", "dtype": "float64"}, r"`device='mps'`"),
]


@pytest.mark.parametrize(
    ("params", "message"), PAIRS_OF_VALUES, ids=["-".join(map(str, p)) for p, _ in PAIRS_OF_VALUES]
)
def test_wrong_combination(params, message):
    assert_refused(regressor(**params), message)
    assert_refit_refused(regressor().fit(X, Y).set_params(**params), message, rows=X)


@pytest.mark.parametrize("estimator", [LMRegressor, LMClassifier])
def test_unknown_constructor_keyword(estimator):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'max_epoch'; did you mean 'max_epochs'\?"):
        estimator(max_epoch=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p0", r"; did you mean 'module__a=1'\?"),
        ("max_nfev", r"; did you mean 'max_epochs'\?"),
        ("weights", r"; did you mean 'fit\(\.\.\., sample_weight=weights\*\*2\)'\?"),
        ("nan_policy", r"\. Parameters of the module"),
        ("max_itr", r"; did you mean 'max_epochs'\?"),  # near max_iter, which is no name here
    ],
)
def test_argument_of_others(name, message):
    with pytest.raises(TypeError, match=f"'{name}'{message}"):
        LMRegressor("a * x", **{name: 1})


def test_unknown_prefix():
    with pytest.raises(TypeError, match=r"'modul__hidden_layer_sizes'"):
        LMRegressor(modul__hidden_layer_sizes=(3,))


def test_positional_criterion():
    with pytest.raises(TypeError, match="positional"):
        LMRegressor(nn.Linear, "huber")


def test_set_params_with_unknown_name_sets_nothing():
    model = regressor()
    before = model.get_params()
    with pytest.raises(ValueError, match=r"Invalid parameter 'dampin' .*did you mean 'damping'\?"):
        model.set_params(lr=0.5, dampin="standard")
    assert model.get_params() == before


# ---------------------------------------------------------------- data

WRONG_DATA = {
    "nan in X": ({"X": with_value(X, np.nan)}, "Input X contains NaN"),
    "inf in X": ({"X": with_value(X, np.inf)}, "Input X contains infinity"),
    "nan in y": ({"y": with_value(Y, np.nan)}, "Input y contains NaN"),
    "inf in y": ({"y": with_value(Y, -np.inf)}, "Input y contains infinity"),
    "complex X": ({"X": X + 1j}, "Complex data not supported"),
    "strings in X": ({"X": np.array([["a", "b"]] * 24)}, "could not convert string"),
    "1-D X": ({"X": X[:, 0]}, "Reshape your data"),
    "no rows": ({"X": X[:0], "y": Y[:0]}, "Found array with 0 sample"),
    "no columns": ({"X": X[:, :0]}, "0 feature"),
    "empty dict": ({"X": {}}, "empty dict"),
    "short y": ({"y": Y[:-1]}, "inconsistent numbers of samples"),
    "no y": ({"y": None}, "requires y"),
    "3-D y": ({"y": Y.reshape(-1, 1, 1)}, "dim 3, while dim <= 2 is required"),
    "strings in y": ({"y": LABELS}, "`y` must hold numbers; got text, .* For classes use LMClassifier"),
    "nan weight": ({"sample_weight": with_value(np.ones(24), np.nan)}, "Input sample_weight contains NaN"),
    "inf weight": ({"sample_weight": with_value(np.ones(24), np.inf)}, "Input sample_weight contains infinity"),
    "negative weight": (
        {"sample_weight": with_value(np.ones(24), -1)},
        "Negative values in data passed to `sample_weight`",
    ),
    "zero weights": ({"sample_weight": np.zeros(24)}, "`?[Ss]ample.?weight.*(zero|positive|> 0)"),
    "few weights": ({"sample_weight": np.ones(23)}, "sample_weight.shape == "),
    "2-D weights": ({"sample_weight": np.ones((24, 2))}, "[Ss]ample.?weights? must be 1D|sample_weight.shape"),
    "dict of unequal lengths": ({"X": {"input": X[:-1], "other": X}}, "inconsistent numbers of samples"),
}


@pytest.mark.parametrize(("data", "message"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_wrong_data(data, message):
    assert_refused(regressor(), message, **data)


@pytest.mark.parametrize("warm_start", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(("data", "message"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_wrong_data_in_a_refit(data, message, warm_start):
    assert_refit_refused(regressor(warm_start=warm_start).fit(X, Y), message, rows=X, **data)


@pytest.mark.parametrize("module", [linear, "a * x0"], ids=["network", "formula"])
def test_sparse_data_ask_for_dense_ones(module):
    with pytest.raises(
        TypeError, match=r"dense data is required.* In a pipeline pass OneHotEncoder\(sparse_output=False"
    ):
        regressor(module=module).fit(csr_matrix(X), Y)


WRONG_LABELS = {
    "continuous": (Y, "Unknown label type"),
    "nan": (with_value((Y > 0).astype(float), np.nan), "Input y contains NaN"),
    "two columns": (np.column_stack([LABELS, LABELS]), "y should be a 1d array"),
    "wrong length": (LABELS[1:], "inconsistent numbers of samples"),
}


@pytest.mark.parametrize(("labels", "message"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_wrong_labels(labels, message):
    assert_refused(classifier(), message, y=labels)
    assert_refit_refused(classifier().fit(X, LABELS), message, y=labels, rows=X)


def test_unknown_label_in_partial_fit():
    model = classifier(max_epochs=2).partial_fit(X, LABELS)
    labels = with_value(LABELS.astype(object), "perhaps")
    assert_refit_refused(
        model, r"labels that are not among the classes .*perhaps", y=labels, rows=X, method="partial_fit"
    )


def test_other_number_of_outputs_in_partial_fit():
    model = regressor(max_epochs=2).partial_fit(X, Y)
    assert_refit_refused(
        model,
        r"`y` must have 1 outputs, as in the fit before; got 2",
        y=np.column_stack([Y, Y]),
        rows=X,
        method="partial_fit",
    )


def test_other_number_of_features_in_partial_fit():
    model = regressor(max_epochs=2).partial_fit(X, Y)
    assert_refit_refused(model, r"X has 1 features.*expecting 2", X=X[:, :1], rows=X, method="partial_fit")


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function", "score"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(X[:, :1], "X has 1 features, but LMClassifier is expecting 2 features as input", id="features"),
        pytest.param(with_value(X, np.nan), "Input X contains NaN", id="nan"),
        pytest.param(X[:0], "Found array with 0 sample", id="no rows"),
    ],
)
def test_wrong_data_in_prediction(method, rows, message):
    model = classifier().fit(X, LABELS)
    snapshot = Snapshot(model, X)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(rows, *([LABELS[: len(rows)]] if method == "score" else []))
    snapshot.assert_unchanged()


def test_wrong_keys_in_prediction():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, a, b):
            return self.one(a) + self.two(b)

    model = regressor(module=TwoInputs).fit({"a": X[:, :1], "b": X[:, 1:]}, Y)
    with pytest.raises(ValueError, match=r"`X` must have the keys \['a', 'b'\], as in fit; got \['a', 'c'\]"):
        model.predict({"a": X[:, :1], "c": X[:, 1:]})


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_not_fitted(method):
    with pytest.raises(NotFittedError, match="LMClassifier instance is not fitted yet"):
        getattr(classifier(), method)(X)


def test_regressor_has_no_probabilities():
    assert not hasattr(regressor().fit(X, Y), "predict_proba")


# ---------------------------------------------------------------- modules and criteria that do not fit


class Returning(nn.Module):
    """Linear module whose output is reshaped by a function, to go wrong in every way."""

    def __init__(self, change, n_outputs=1):
        super().__init__()
        self.change, self.linear = change, nn.Linear(2, n_outputs)

    def forward(self, X):
        return self.change(self.linear(X))


def frozen():
    return nn.Linear(2, 1).requires_grad_(False)


class WithoutParameters(nn.Module):
    def forward(self, X):
        return X[:, :1]


WRONG_MODULES = {
    "too many outputs": (
        nn.Linear(2, 3),
        r"SquaredError\(\) needs one target per output; the module returns \(\d+, 3\)",
    ),
    "tuple": (Returning(lambda out: (out, out)), r"`module` must return a tensor .*; got tuple"),
    "one number": (Returning(lambda out: out.sum()), r"`module` must return one row per sample"),
    "transposed": (Returning(lambda out: out.T), r"`module` must return one row per sample"),
    "repeated": (Returning(lambda out: torch.cat([out, out])), r"`module` must return one row per sample"),
    "no parameters": (WithoutParameters(), r"`module` .*(no|without) trainable parameters?|trainable"),
    "frozen": (frozen(), r"trainable"),
    "nan": (Returning(lambda out: out * torch.nan), r"loss is nan .*Check the module, its initial values"),
    "overflow": (Returning(lambda out: (out.abs() * 1e200).exp()), r"loss is (inf|nan)"),
    "complex": (Returning(lambda out: out.to(torch.complex128)), r"`module` must return .*(real|floating)"),
    "integers": (Returning(lambda out: out.round().long()), r"`module` must return .*(real|floating|differentiable)"),
}


@pytest.mark.parametrize(("module", "message"), WRONG_MODULES.values(), ids=WRONG_MODULES)
def test_module_that_does_not_fit(module, message):
    before = copy.deepcopy(module.state_dict())
    assert_refused(regressor(module=module), message)
    assert_refit_refused(regressor().fit(X, Y).set_params(module=module), message, rows=X)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("module", "params", "labels", "message"),
    [
        pytest.param(nn.Linear(2, 3), {}, LABELS, "2 columns, one per class for 2 classes .* returned 3", id="3 for 2"),
        pytest.param(
            nn.Linear(2, 1), {}, np.arange(24) % 3, "3 columns, one per class for 3 classes .* returned 1", id="1 for 3"
        ),
        pytest.param(
            nn.Linear(2, 2), {"criterion": nn.BCEWithLogitsLoss}, LABELS, "one column for 2 classes", id="2 for BCE"
        ),
        pytest.param(
            nn.Linear(2, 3), {"criterion": nn.BCEWithLogitsLoss}, np.arange(24) % 3, "one column for 3", id="BCE for 3"
        ),
        pytest.param(
            nn.Linear(2, 1), {"criterion": nn.CrossEntropyLoss}, LABELS, "2 columns, one per class", id="1 for softmax"
        ),
        pytest.param(
            Returning(lambda out: out + 10),
            {"criterion": nn.BCELoss},
            LABELS,
            "between 0 and 1",
            id="logits for BCELoss",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), {}, LABELS, "leave the last Softmax out", id="Softmax"
        ),
        pytest.param(
            Returning(lambda out: torch.cat([out, out.square()], 1).softmax(1)),
            {"criterion": nn.CrossEntropyLoss()},
            LABELS,
            "leave the last Softmax out",
            id="a softmax that is no layer",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)),
            {"criterion": nn.NLLLoss},
            LABELS,
            "NLLLoss takes their logarithms; end the module with LogSoftmax",
            id="Softmax for NLLLoss",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()),
            {},
            LABELS,
            "leave the last Sigmoid out, or pass criterion=torch.nn.BCELoss",
            id="Sigmoid",
        ),
    ],
)
def test_classifier_module_that_does_not_fit(module, params, labels, message):
    assert_refused(classifier(module=module, **params), message, y=labels)
    model = classifier().fit(X, LABELS).set_params(module=module, **params)
    assert_refit_refused(model, message, y=labels, rows=X)


class SigmoidWithin(nn.Module):
    """A network whose last layer is not the one that was made last."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(2, 3), nn.Linear(3, 1), nn.Sigmoid()
        nn.init.zeros_(self.second.weight)

    def forward(self, X):
        return self.second(self.act(self.first(X)))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("seed", range(4))
def test_a_network_that_starts_at_numbers_like_probabilities_is_none(seed):
    assert classifier(module=SigmoidWithin, max_epochs=3, random_state=seed).fit(X, LABELS).score(X, LABELS) > 0.5


@pytest.mark.parametrize(
    ("estimator", "criterion", "message"),
    [
        pytest.param(regressor, "log_loss", "must be a regression loss for LMRegressor; got 'log_loss'", id="log_loss"),
        pytest.param(
            regressor, nn.CrossEntropyLoss, "must be a regression loss for LMRegressor", id="CrossEntropyLoss"
        ),
        pytest.param(regressor, nn.BCEWithLogitsLoss(), "must be a regression loss", id="BCEWithLogitsLoss()"),
        pytest.param(classifier, "squared_error", "must be a classification loss for LMClassifier", id="squared_error"),
        pytest.param(classifier, nn.MSELoss(), "must be a classification loss for LMClassifier", id="MSELoss()"),
        pytest.param(classifier, "poisson", "must be a classification loss for LMClassifier", id="poisson"),
    ],
)
def test_criterion_of_the_other_task(estimator, criterion, message):
    y = Y if estimator is regressor else LABELS
    assert_refused(estimator(criterion=criterion), message, y=y)
    assert_refit_refused(estimator().fit(X, y).set_params(criterion=criterion), message, y=y, rows=X)


def test_negative_counts():
    message = r"Poisson\(\) needs y >= 0; got -1"
    assert_refused(regressor(criterion="poisson"), message, y=with_value(np.abs(Y), -1))
    model = regressor(criterion="poisson").fit(X, np.abs(Y))
    assert_refit_refused(model, message, y=with_value(np.abs(Y), -1), rows=X)


def test_negative_counts_in_partial_fit():
    model = regressor(criterion="poisson", max_epochs=3).partial_fit(X, np.abs(Y))
    message = r"Poisson\(\) needs y >= 0; got -1"
    assert_refit_refused(model, message, y=with_value(np.abs(Y), -1), rows=X, method="partial_fit")


@pytest.mark.filterwarnings("ignore:X has one sample")
def test_early_stopping_needs_two_samples():
    assert_refused(regressor(early_stopping=True), "needs at least 2 samples", X=X[:1], y=Y[:1])


def test_module_asks_for_what_a_dict_does_not_tell():
    message = r"`module` asks for `n_features_in`, which is not known here .*pass `module__n_features_in`"
    assert_refused(regressor(), message, X={"input": X})


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return x[:, 0] * self.a.item()


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x):
        return self.linear(x - x.mean(0))


@pytest.mark.parametrize(
    ("params", "hint"),
    [
        ({"solver": "lbfgs"}, "got 'lbfgs'. It is the linear algebra of a step"),
        ({"module__activation": "tansig"}, "did you mean 'tanh'?"),
        ({"module__activation": "radbas"}, "for another pass a module of your own"),
        ({"module": (10, 5)}, "layers of the default network are module__hidden_layer_sizes"),
        ({"damping__increase": 5.0}, "; damping='standard' or 'fletcher' takes it."),
        ({"train_split": [0, 1]}, "ValidSplit(PredefinedSplit(folds))"),
        ({"module": "b(1) * exp(-b(2) * x)"}, "for the parameter write b1"),
        ({"module": "a * x.^2"}, "write *, / and ** without dots"),
        ({"module": "@(a, x) a * x"}, "write the right-hand side alone"),
        ({"module": "a * x;"}, "leave out the semicolon"),
        ({"module": "a * (x ~= 1)"}, "write != instead of ~="),
        ({"module": "b[1] * x"}, "name each parameter: b1 and not b[1]"),
        ({"module": "a * mod(x, 2)"}, "write a % b"),
        ({"module": "a * normcdf(x)"}, "write (1 + erf(x / sqrt(2))) / 2"),
        ({"module": curve(lambda x, b: b[0] * x)}, "name each parameter, f(x, b1, b2)"),
        ({"criterion": "mse"}, "did you mean 'squared_error'?"),
        ({"damping": "trainlm"}, "did you mean 'standard'?"),
        ({"damping": "standard", "damping__mu_max": 1e10}, "did you mean 'maximum'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_habits_of_other_packages_get_a_hint(params, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        LMRegressor(**params, max_epochs=1).fit([[1.0], [2.0], [3.0]], [1.0, 2.0, 4.0])


def test_samples_in_columns_get_a_hint():
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[2, 24\]\. Samples are rows"):
        LMRegressor().fit(X.T, Y)
    with pytest.raises(ValueError, match=r"pass y\.argmax\(axis=1\)"):
        LMClassifier().fit(X, np.eye(3)[np.arange(24) % 3])


def test_a_message_shows_little_of_an_array():
    with pytest.raises(ValueError, match="must be None or a callable") as caught:
        LMRegressor(train_split=(X, Y)).fit(X, Y)
    assert len(str(caught.value)) < 300


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_single_row_of_many_features_warns():
    X, y = np.random.default_rng(0).normal(size=(1, 20)), np.zeros((1, 20))
    with pytest.warns(UserWarning, match="one sample of 20 features"):
        LMRegressor(max_epochs=1, ftol=None).fit(X, y)


@pytest.mark.parametrize(
    ("module", "message"),
    [(Detached, "do not depend on its parameters"), (Mixing, "`module` mixes samples")],
)
def test_modules_that_would_fit_wrongly_in_silence(module, message):
    x, y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20.0)
    with pytest.raises(ValueError, match=message):
        LMRegressor(module, random_state=0).fit(x, y)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hidden_layer_sizes", "module__hidden_layer_sizes"),
        ("max_iter", "max_epochs"),
        ("tol", "ftol"),
        ("maxiter", "max_epochs"),  # near a name that is known, but not one of its own
        ("learning_rate", "lr"),
        ("mu", "damping__initial"),
        ("max_fail", "n_iter_no_change"),
        ("goal", "callbacks"),
        ("MaxIterations", "max_epochs"),
        ("TolFun", "ftol"),
        ("weight_decay", "alpha"),
        ("divideInd", "train_split"),
        ("alhpa", "alpha"),
    ],
)
def test_names_of_others_give_a_hint(name, hint):
    with pytest.raises(TypeError, match=rf"did you mean '{hint}'\? Parameters of"):
        LMRegressor(**{name: 1})
    with pytest.raises(ValueError, match=rf"did you mean '{hint}'\? Valid parameters are"):
        LMRegressor().set_params(**{name: 1})
    with pytest.raises(ValueError, match=r"'zzz' for estimator LMRegressor\. Valid parameters are"):
        LMRegressor().set_params(zzz=1)


def test_classes_of_a_later_call():
    model = LMClassifier(max_epochs=2, random_state=0).partial_fit(X, Y > 0, classes=[False, True])
    model.partial_fit(X, Y > 0, classes=[True, False])
    before = model.predict_proba(X)
    with pytest.raises(
        ValueError, match=r"`classes` must be those of the first call of `partial_fit`, \[False, True\]"
    ):
        model.partial_fit(X, Y > 0, classes=[0, 1, 2])
    np.testing.assert_array_equal(model.predict_proba(X), before)


@pytest.mark.parametrize("loss", [nn.SoftMarginLoss, nn.HingeEmbeddingLoss, nn.MultiLabelSoftMarginLoss])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_losses_of_other_targets(loss, n_classes):
    labels = np.arange(len(X)) % n_classes
    with pytest.raises(ValueError, match="`criterion` cannot be called as loss"):
        LMClassifier(criterion=loss).fit(X, labels)


def test_a_data_loader():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)))
    with pytest.raises(ValueError, match="Of a DataLoader pass its `dataset`"):
        LMRegressor().fit(loader)


class Slope(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, X):
        t = X[:, :1].detach().requires_grad_()
        return torch.autograd.grad(self.layers(t).sum(), t, create_graph=True)[0]


def test_derivatives_within_forward():
    with pytest.raises(ValueError, match=r"take derivatives within forward by torch\.vmap\(torch\.func\.grad"):
        LMRegressor(Slope).fit(X, Y)
