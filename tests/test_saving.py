"""Saving and loading: whole estimators by pickle, and without code in the file by safetensors and skops."""

import json
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklm import LMClassifier, LMRegressor, curve
from sklm.curves import Gaussian

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

LEARNED = ("n_features_in_", "feature_names_in_", "n_outputs_", "classes_")  # beside the weights
NETWORK = {"module__hidden_layer_sizes": (3,), "max_epochs": 5, "random_state": 0}
DIABETES, IRIS, CANCER = (
    load(return_X_y=True, as_frame=True) for load in (load_diabetes, load_iris, load_breast_cancer)
)
TIMES = np.linspace(0, 4, 30)
DECAY = 3 * np.exp(-0.7 * TIMES) + 1 + 0.01 * np.cos(9 * TIMES)
BELL = 3 * np.exp(-((TIMES - 2) ** 2)) + 0.01 * np.cos(9 * TIMES)


class Line(nn.Module):
    def __init__(self, n_features_in):
        super().__init__()
        self.layer = nn.Linear(n_features_in, 1)

    def forward(self, X):
        return self.layer(X)


def decay(t, a=1.0, k=1.0, c=0.0):
    return a * torch.exp(-k * t) + c


def fitted_classifier(data, **params):
    X, y = data
    return LMClassifier(**NETWORK, **params).fit(X, y.map(str)), X


FITTED = {
    "network": lambda: (LMRegressor(**NETWORK).fit(*DIABETES), DIABETES[0]),
    "network in float32": lambda: (LMRegressor(**NETWORK, dtype="float32").fit(*DIABETES), DIABETES[0]),
    "module of one's own": lambda: (LMRegressor(Line, max_epochs=5).fit(*DIABETES), DIABETES[0]),
    "formula": lambda: (LMRegressor("a * exp(-k * x) + c", random_state=0).fit(TIMES[:, None], DECAY), TIMES[:, None]),
    "formula of a column": lambda: (
        LMRegressor("a + b * bmi", module__bounds={"a": (0, None)}, random_state=0).fit(*DIABETES),
        DIABETES[0],
    ),
    "function": lambda: (LMRegressor(curve(decay)).fit(TIMES[:, None], DECAY), TIMES[:, None]),
    "ready curve": lambda: (LMRegressor(Gaussian).fit(TIMES[:, None], BELL), TIMES[:, None]),
    "classifier": lambda: fitted_classifier(IRIS),
    "classifier of two classes": lambda: fitted_classifier(CANCER),
    "classifier of two classes, two columns": lambda: fitted_classifier(CANCER, criterion=nn.CrossEntropyLoss),
}


def fitted(case):
    return FITTED[case]()


def assert_predicts_the_same(model, other, X):
    for name in ("predict", "predict_proba", "decision_function"):
        if hasattr(model, name):
            assert_array_equal(getattr(other, name)(X), getattr(model, name)(X))


def numbers_to(model, folder):
    """Save what a fit has learned, as numbers and names only."""
    facts = {name: np.asarray(getattr(model, name)).tolist() for name in LEARNED if hasattr(model, name)}
    (folder / "facts.json").write_text(json.dumps(facts))
    model.save_params(f_params=str(folder / "weights.safetensors"), use_safetensors=True)


def numbers_from(model, folder):
    """Give an unfitted estimator what `numbers_to` has saved."""
    for name, value in json.loads((folder / "facts.json").read_text()).items():
        setattr(model, name, np.array(value) if isinstance(value, list) else value)
    model.initialize()
    model.load_params(f_params=str(folder / "weights.safetensors"), use_safetensors=True)
    return model


@pytest.mark.parametrize("case", FITTED)
def test_pickle(case):
    model, X = fitted(case)
    assert_predicts_the_same(model, pickle.loads(pickle.dumps(model)), X)  # noqa: S301


@pytest.mark.parametrize("case", FITTED)
def test_weights_as_safetensors_facts_as_json(case, tmp_path):
    pytest.importorskip("safetensors")
    model, X = fitted(case)
    numbers_to(model, tmp_path)
    assert_predicts_the_same(model, numbers_from(clone(model), tmp_path), X)


def test_weights_of_a_module_alone(tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    model, X = fitted("network")
    torch_files.save_file(model.module_.state_dict(), tmp_path / "weights.safetensors")
    module = type(model.module_)(X.shape[1], 1, hidden_layer_sizes=(3,)).double()
    module.load_state_dict(torch_files.load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        assert_array_equal(module(torch.tensor(X.to_numpy()))[:, 0].numpy(), model.predict(X))


@pytest.mark.parametrize(
    ("case", "types"),
    [
        ("network", ["sklm.estimators.LMRegressor", "sklm.modules.MLP"]),
        ("formula", ["sklm.estimators.LMRegressor"]),
        (
            "function",
            ["functools.partial", "sklm.curves.curve.Curve", "sklm.estimators.LMRegressor", f"{__name__}.decay"],
        ),
        ("ready curve", ["sklm.curves.peaks.Gaussian", "sklm.estimators.LMRegressor"]),
        ("classifier", ["sklm.estimators.LMClassifier", "sklm.modules.MLP"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_by_skops(case, types, tmp_path):
    skops = pytest.importorskip("skops.io")
    pytest.importorskip("safetensors")
    model, X = fitted(case)
    skops.dump(clone(model), tmp_path / "settings.skops")
    numbers_to(model, tmp_path)
    assert sorted(skops.get_untrusted_types(file=tmp_path / "settings.skops")) == sorted(types)
    with pytest.raises(TypeError, match=r"sklm\.estimators"):
        skops.load(tmp_path / "settings.skops")
    other = skops.load(tmp_path / "settings.skops", trusted=types)
    assert str(other.get_params()) == str(model.get_params())
    assert_predicts_the_same(model, numbers_from(other, tmp_path), X)


def test_pipeline(tmp_path):
    skops = pytest.importorskip("skops.io")
    pytest.importorskip("safetensors")
    X, y = DIABETES
    pipeline = make_pipeline(StandardScaler(), LMRegressor(**NETWORK)).fit(X, y)
    skops.dump(pipeline[:-1], tmp_path / "before.skops")
    numbers_to(pipeline[-1], tmp_path)
    assert not skops.get_untrusted_types(file=tmp_path / "before.skops")
    other = make_pipeline(skops.load(tmp_path / "before.skops"), numbers_from(LMRegressor(**NETWORK), tmp_path))
    assert_array_equal(other.predict(X), pipeline.predict(X))


def test_partial_fit_goes_on_from_loaded_weights(tmp_path):
    pytest.importorskip("safetensors")
    X, y = CANCER[0], CANCER[1].map(str)
    model = LMClassifier(**NETWORK).fit(X, y)
    numbers_to(model, tmp_path)
    other = numbers_from(clone(model), tmp_path).partial_fit(X, y)
    assert other.history_[0, "train_loss"] < model.loss_


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.mark.parametrize("use_safetensors", [False, True])
def test_load_params_runs_no_code(use_safetensors, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    torch.save(RunsCode(tmp_path / "trace"), tmp_path / "weights")
    model = LMRegressor(module__n_features_in=2, module__n_outputs=1).initialize()
    with pytest.raises((pickle.UnpicklingError, safetensors.SafetensorError)):
        model.load_params(f_params=str(tmp_path / "weights"), use_safetensors=use_safetensors)
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "weights", weights_only=False)  # the file is what it seems to be
    assert (tmp_path / "trace").exists()
