"""Frames of pandas and polars: columns by name, names kept, `set_output` in a pipeline."""

import datetime

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklm import LMClassifier, LMRegressor
from sklm.displays import FitDisplay

DECAY = "a * exp(-b * time) + c"
RNG = np.random.default_rng(0)
TIME = np.sort(RNG.uniform(0, 4, 40))
LAB = np.where(RNG.uniform(size=40) < 0.5, "north", "south")
TEXT = list(LAB)
SIGNAL = 3 * np.exp(-1.3 * TIME) + 0.5 + 0.05 * RNG.standard_normal(40)


@pytest.fixture(params=["pandas", "polars"])
def library(request):
    return pytest.importorskip(request.param)


@pytest.fixture
def X(library):
    return library.DataFrame({"lab": LAB, "time": TIME, "other": TIME[::-1].copy()})


@pytest.fixture
def y(library):
    return library.Series(name="signal", **{"data" if library is pd else "values": SIGNAL})


def test_a_curve_takes_its_columns_by_name(X, y):
    model = LMRegressor(DECAY).fit(X, y)
    array = LMRegressor("a * exp(-b * x) + c").fit(TIME[:, None], SIGNAL)
    assert model.parameters_ == pytest.approx(array.parameters_, rel=1e-9)
    assert model.feature_names_in_.tolist() == ["lab", "time", "other"]
    np.testing.assert_array_equal(model.predict(X[["other", "time"]]), model.predict(X))
    for method in (model.predict_interval, lambda table: model.predict(table, return_std=True)):
        np.testing.assert_array_equal(method(X), method(X[["time"]]))
    with pytest.raises(ValueError, match="Feature names seen at fit time, yet now missing: time"):
        model.predict(X[["other"]])


@pytest.mark.parametrize(
    "values",
    [
        [datetime.date(2020, 1, 1)] * 40,
        [datetime.datetime(2020, 1, 1)] * 40,
        [datetime.timedelta(1)] * 40,
        TEXT,
    ],
    ids=["dates", "times", "durations", "text"],
)
def test_columns_without_numbers_are_named(library, y, values):
    table = library.DataFrame({"time": TIME, "when": values})
    if library is not pd and values is not TEXT:
        pytest.skip("polars makes numbers of its dates")
    with pytest.raises(ValueError, match=r"`X` must hold numbers; the columns \['when'\] do not"):
        LMRegressor().fit(table, y)


def test_targets_without_numbers():
    with pytest.raises(ValueError, match="`y` must hold numbers; got date"):
        LMRegressor().fit(TIME[:, None], [datetime.date(2020, 1, 1)] * 40)


@pytest.mark.parametrize("kind", ["pandas", "polars", "category", "array", "strings"])
def test_a_text_column_of_a_formula_is_named(kind):
    numbers, text = np.arange(6.0), list("ABABAB")
    table = pd.DataFrame({"dose": numbers, "drug": text})
    formula, name = "a + b * dose + c * drug", r"X\['drug'\]"
    if kind == "polars":
        table = pytest.importorskip("polars").DataFrame({"dose": numbers, "drug": text})
    elif kind == "category":
        table["drug"] = table["drug"].astype("category")
    elif kind != "pandas":
        table = table.to_numpy().astype(object if kind == "array" else str)
        formula, name = "a + b * x0 + c * x1", r"X\[:, 1\]"
    message = rf"columns of the curve; not so {name}. Code a category as 0 and 1, for instance by \({name} == 'A'\)"
    with pytest.raises(ValueError, match=message):
        LMRegressor(formula).fit(table, numbers)


def test_a_text_column_that_a_formula_gets_later_is_named():
    table = pd.DataFrame({"drug": [0.0, 1.0] * 5, "dose": np.arange(10.0)})
    model = LMRegressor("a * drug + b * dose").fit(table, table.drug + 2 * table.dose)
    with pytest.raises(ValueError, match=r"not so X\['drug'\]"):
        model.predict(pd.DataFrame({"dose": [1.0], "drug": ["B"]}))


@pytest.mark.parametrize("kind", [list, np.array, pd.Series, pd.Categorical], ids=lambda kind: kind.__name__)
def test_text_as_targets_of_a_regression(kind):
    with pytest.raises(ValueError, match=r"`y` must hold numbers; got text, 'A'. For classes use LMClassifier"):
        LMRegressor().fit(TIME[:, None], kind(list("AB") * 20))


def test_names_reach_summary_and_display(X, y):
    model = LMRegressor(DECAY).fit(X, y)
    assert DECAY in str(model.summary())
    display = FitDisplay.from_estimator(model, X, y)
    assert (display.residual_ax_.get_xlabel(), display.ax_.get_ylabel()) == ("time", "signal")
    np.testing.assert_allclose(display.curve, model.predict(pd.DataFrame({"time": display.grid})), rtol=1e-12)


def test_bounds_and_initial_values_by_the_names_of_a_frame(X, y):
    model = LMRegressor(DECAY, module__b=1.0, module__bounds={"c": (0.6, None)}).fit(X, y)
    assert model.parameters_["c"] == 0.6


def test_a_network_keeps_names_and_their_order(X, y):
    table = X[["time", "other"]]
    model = LMRegressor(module__hidden_layer_sizes=(2,), random_state=0, ftol=1e-3).fit(table, y)
    assert model.feature_names_in_.tolist() == ["time", "other"]
    assert model.predict(table).shape == (40,)
    with pytest.raises(ValueError, match="Feature names must be in the same order"):
        model.predict(X[["other", "time"]])


def test_frames_of_several_targets_and_weights(library, X):
    Y = library.DataFrame({"p": SIGNAL, "q": -SIGNAL})
    weights = library.Series(np.linspace(1, 2, 40).tolist())
    model = LMRegressor(module__hidden_layer_sizes=(2,), random_state=0, ftol=1e-3)
    frames = model.fit(X[["time"]], Y, sample_weight=weights).predict(X[["time"]])
    arrays = model.fit(TIME[:, None], np.column_stack([SIGNAL, -SIGNAL]), sample_weight=np.linspace(1, 2, 40))
    np.testing.assert_array_equal(frames, arrays.predict(TIME[:, None]))


def test_labels_of_a_series(library, X):
    labels = library.Series(np.where(SIGNAL > 1, "high", "low").tolist())
    model = LMClassifier(module__hidden_layer_sizes=(2,), random_state=0, ftol=1e-3).fit(X[["time"]], labels)
    assert model.classes_.tolist() == ["high", "low"]
    assert model.score(X[["time"]], labels) > 0.9


def test_cross_validation_of_a_frame(X, y):
    shuffled = RNG.permutation(40)
    frame, target = (X.iloc[shuffled], y.iloc[shuffled]) if isinstance(X, pd.DataFrame) else (X[shuffled], y[shuffled])
    assert np.all(cross_val_score(LMRegressor(DECAY), frame, target, cv=3) > 0.9)


def test_a_scaler_with_set_output_keeps_the_names(library, X, y):
    scaler = StandardScaler().set_output(transform=library.__name__)
    model = make_pipeline(scaler, LMRegressor(DECAY)).fit(X[["time", "other"]], y)
    assert model[-1].feature_names_in_.tolist() == ["time", "other"]
    assert model.score(X[["time", "other"]], y) > 0.99


def test_set_output_of_a_whole_pipeline(library, X, y):
    columns = make_column_transformer((StandardScaler(), ["other"]), ("passthrough", ["time"]))
    columns.set_params(verbose_feature_names_out=False)
    model = make_pipeline(columns, LMRegressor(DECAY)).set_output(transform=library.__name__).fit(X, y)
    assert model[-1].feature_names_in_.tolist() == ["other", "time"]
    assert model[-1].parameters_ == pytest.approx(LMRegressor(DECAY).fit(X, y).parameters_, rel=1e-9)


def test_a_missing_value(library, X, y):
    holes = library.Series([None, *TIME[1:].tolist()])
    with pytest.raises(ValueError, match="Input X contains NaN"):
        LMRegressor(DECAY).fit(library.DataFrame({"time": holes}), y)


def test_dates_are_no_numbers(library, y):
    days = [datetime.datetime(2026, 1, 1) + datetime.timedelta(days=i) for i in range(40)]
    with pytest.raises(ValueError, match="`X` must hold numbers in the columns of the curve; got dates"):
        LMRegressor(DECAY).fit(library.DataFrame({"time": days}), y)


def test_a_formula_whose_columns_a_pipeline_has_lost():
    table = pd.DataFrame({"dose": np.arange(10.0)})
    model = make_pipeline(StandardScaler(), LMRegressor("k * dose + m"))
    with pytest.raises(
        ValueError, match=r"its columns are x. .* after a transformer of a pipeline they need `.set_output\(transform="
    ):
        model.fit(table, table["dose"])
    assert model.set_output(transform="pandas").fit(table, table["dose"]).score(table, table["dose"]) == 1
