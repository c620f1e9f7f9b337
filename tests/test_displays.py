import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.inspection import DecisionBoundaryDisplay, PartialDependenceDisplay
from sklearn.metrics import ConfusionMatrixDisplay, PredictionErrorDisplay
from sklearn.model_selection import KFold, LearningCurveDisplay
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklm import LMClassifier, LMRegressor, _uncertainty, curve
from sklm.displays import DampingDisplay, FitDisplay, LossCurveDisplay, ProfileDisplay

mpl.use("Agg")

DECAY = "a * exp(-b * x) + c"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def decay_data(n=40, noise=0.05):
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 4, n))
    return x[:, None], 3 * np.exp(-1.3 * x) + 0.5 + noise * rng.standard_normal(n)


@pytest.fixture(scope="module")
def fitted():
    X, y = decay_data()
    return LMRegressor(DECAY, random_state=0).fit(X, y), X, y


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_fit_display_holds_the_predictions_of_the_estimator(fitted):
    model, X, y = fitted
    display = FitDisplay.from_estimator(model, X, y, level=0.9, n_points=101)
    grid = display.grid[:, None]
    assert len(display.grid) == 101
    assert np.all(np.diff(display.grid) >= 0)
    assert (display.grid[0], display.grid[-1]) == (X.min(), X.max())
    np.testing.assert_array_equal(display.x, X[:, 0])
    np.testing.assert_array_equal(display.y, y)
    np.testing.assert_array_equal(display.predicted, model.predict(X))
    np.testing.assert_array_equal(display.residuals, y - model.predict(X))
    np.testing.assert_array_equal(display.curve, model.predict(grid))
    np.testing.assert_array_equal(display.confidence, model.predict_interval(grid, level=0.9))
    np.testing.assert_array_equal(display.prediction, model.predict_interval(grid, level=0.9, kind="prediction"))


def test_fit_display_draws_what_it_holds(fitted):
    model, X, y = fitted
    display = FitDisplay.from_estimator(model, X, y)
    assert list(display.axes_) == list(display.figure_.axes) == [display.ax_, display.residual_ax_]
    np.testing.assert_array_equal(display.line_.get_xydata(), np.column_stack([display.grid, display.curve]))
    np.testing.assert_array_equal(display.points_.lines[0].get_xydata(), np.column_stack([X[:, 0], y]))
    np.testing.assert_array_equal(display.residual_points_.get_ydata(), display.residuals)
    for band, ends in [
        (display.confidence_band_, display.confidence),
        (display.prediction_band_, display.prediction),
    ]:
        vertices = band.get_paths()[0].vertices[:, 1]
        assert (vertices.min(), vertices.max()) == (ends.min(), ends.max())
    assert set(labels(display.ax_)) == {"data", "fit", "95 % confidence", "95 % prediction"}
    assert (display.ax_.get_ylabel(), display.residual_ax_.get_ylabel()) == ("y", "residual")
    assert (display.ax_.get_xlabel(), display.residual_ax_.get_xlabel()) == ("", "x")
    low, high = display.residual_ax_.get_ylim()
    assert low == -high
    display.figure_.canvas.draw()


def test_labels_come_from_names():
    X, y = decay_data()
    table = pd.DataFrame({"lab": ["north"] * len(y), "time [s]": X[:, 0], "t": X[:, 0]})
    model = LMRegressor("a * exp(-b * t) + c", random_state=0).fit(table, y)
    display = FitDisplay.from_estimator(model, table, pd.Series(y, name="signal"))
    assert (display.residual_ax_.get_xlabel(), display.ax_.get_ylabel()) == ("t", "signal")
    grid = pd.DataFrame({"lab": "north", "time [s]": 0.0, "t": display.grid})
    np.testing.assert_array_equal(display.curve, model.predict(grid))
    np.testing.assert_array_equal(display.confidence, model.predict_interval(grid))


@pytest.mark.parametrize("kind", [list, torch.tensor, np.float32, pd.DataFrame], ids=["list", "tensor", "32", "frame"])
def test_kinds_of_tables(fitted, kind):
    _, X, y = fitted
    table = X.tolist() if kind is list else kind(X)
    model = LMRegressor(DECAY, random_state=0).fit(table, y)
    display = FitDisplay.from_estimator(model, table, torch.tensor(y) if kind is torch.tensor else y)
    assert display.curve.shape == (300,)


def test_a_network_of_one_column():
    X, y = decay_data()
    model = LMRegressor(module__hidden_layer_sizes=(3,), alpha=1e-3, random_state=0, max_epochs=500, ftol=1e-5)
    display = FitDisplay.from_estimator(model.fit(X, y), X, y)
    np.testing.assert_array_equal(display.confidence, model.predict_interval(display.grid[:, None]))


def test_true_sigma_gives_error_bars_and_standardized_residuals():
    X, y = decay_data()
    sigma = np.linspace(0.03, 0.1, len(y))
    sigma[3] = np.inf
    weights = 1 / sigma**2
    model = LMRegressor(DECAY, random_state=0, absolute_sigma=True).fit(X, y, sample_weight=weights)
    display = FitDisplay.from_estimator(model, X, y, sample_weight=weights)
    np.testing.assert_allclose(np.delete(display.sigma, 3), np.delete(sigma, 3), rtol=1e-14)
    residuals = (y - model.predict(X)) / sigma
    np.testing.assert_allclose(np.delete(display.residuals, 3), np.delete(residuals, 3), rtol=1e-12)
    assert np.isnan([display.sigma[3], display.residuals[3]]).all()
    assert display.points_.has_yerr
    assert display.prediction is None
    assert display.prediction_band_ is None
    assert display.residual_ax_.get_ylabel() == "residual / sigma"
    assert "95 % prediction" not in labels(display.ax_)


def test_relative_weights_give_residuals_of_variance_one():
    X, y = decay_data()
    weights = np.linspace(1, 5, len(y))
    model = LMRegressor(DECAY, random_state=0).fit(X, y, sample_weight=weights)
    display = FitDisplay.from_estimator(model, X, y, sample_weight=weights)
    assert np.sum(display.residuals**2) == pytest.approx(model.dof_, rel=1e-9)
    assert display.sigma is None
    assert not display.points_.has_yerr


def test_several_columns_need_a_feature_and_have_no_line():
    rng = np.random.default_rng(1)
    X = pd.DataFrame(rng.uniform(size=(30, 3)), columns=["u", "v", "w"])
    y = 2 * X["u"] * np.exp(X["w"])
    y += 0.01 * rng.standard_normal(30)
    model = LMRegressor("a * u * exp(b * w)", random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="uses 2 columns: u, w; pass `feature`"):
        FitDisplay.from_estimator(model, X, y)
    by_name, by_place = (FitDisplay.from_estimator(model, X, y, feature=key) for key in ("w", 2))
    np.testing.assert_array_equal(by_name.x, by_place.x)
    assert by_name.grid is by_name.curve is by_name.confidence is by_name.confidence_band_ is None
    np.testing.assert_array_equal(by_name.line_.get_xydata(), np.column_stack([X["w"], model.predict(X)]))
    assert by_name.line_.get_linestyle() == "None"
    assert by_name.residual_ax_.get_xlabel() == "w"
    with pytest.raises(ValueError, match=r"`feature` must be a column.*u, v, w; got 'z'"):
        FitDisplay.from_estimator(model, X, y, feature="z")


def test_several_outputs():
    X, y = decay_data()
    Y = pd.DataFrame({"first": y, "second": 1 - y})
    model = LMRegressor(torch.nn.Linear(1, 2), random_state=0).fit(X, Y)
    display = FitDisplay.from_estimator(model, X, Y, output="second")
    grid = display.grid[:, None]
    np.testing.assert_array_equal(display.curve, model.predict(grid)[:, 1])
    np.testing.assert_array_equal(display.confidence, model.predict_interval(grid)[:, 1])
    np.testing.assert_array_equal(display.residuals, Y["second"] - model.predict(X)[:, 1])
    assert display.ax_.get_ylabel() == "second"
    with pytest.raises(ValueError, match=r"`output` must be a column.*first, second; got 2"):
        FitDisplay.from_estimator(model, X, Y, output=2)


def test_a_poisson_loss_has_no_prediction_band():
    rng = np.random.default_rng(0)
    X = np.linspace(0, 2, 50)[:, None]
    y = rng.poisson(np.exp(0.5 + X[:, 0]))
    model = LMRegressor("a + b * x", criterion="poisson", random_state=0).fit(X, y)
    display = FitDisplay.from_estimator(model, X, y)
    assert display.prediction is None
    np.testing.assert_array_equal(display.confidence, model.predict_interval(display.grid[:, None]))


def test_own_axes(fitted):
    model, X, y = fitted
    figure, (one, two) = plt.subplots(1, 2)
    display = FitDisplay.from_estimator(model, X, y, ax=one, level=None)
    assert display.ax_ is one
    assert display.residual_ax_ is display.residual_points_ is display.confidence is None
    assert one.get_xlabel() == "x"
    assert display.plot([one, two]).residual_ax_ is two
    assert two.get_xlabel() == "x"
    assert display.figure_ is figure
    assert len(plt.get_fignums()) == 1
    with pytest.raises(ValueError, match="`ax` must be one or two axes; got 3"):
        display.plot([one, two, one])


def test_styles(fitted):
    model, X, y = fitted
    display = FitDisplay.from_estimator(model, X, y, line_kwargs={"c": "red", "lw": 3}, point_kwargs={"ms": 7})
    assert (display.line_.get_color(), display.line_.get_linewidth()) == ("red", 3)
    assert display.points_.lines[0].get_markersize() == 7


def test_repeated_plots_make_one_figure_each(fitted):
    model, X, y = fitted
    display = FitDisplay.from_estimator(model, X, y)
    first = display.figure_
    assert display.plot() is display
    assert display.figure_ is not first
    assert len(plt.get_fignums()) == 2


def test_profile_display(fitted):
    model, _, _ = fitted
    display = ProfileDisplay.from_estimator(model, level=0.98, n_points=9)
    assert list(display.values) == ["a", "b", "c"]
    intervals = model.confidence_intervals(method="profile")
    for i, name in enumerate("abc"):
        values, z = model.profile(name, level=0.98, n_points=9)
        np.testing.assert_allclose(display.lines_[i].get_xydata(), np.column_stack([values, z]), rtol=1e-6)
        np.testing.assert_allclose(display.ends_[i].get_xdata(), intervals[name], rtol=1e-6)
        np.testing.assert_allclose(np.abs(display.ends_[i].get_ydata()), display.quantile, rtol=0.05)
        wald = (values - model.parameters_[name]) / model.standard_errors_[name]
        np.testing.assert_allclose(display.wald_lines_[i].get_ydata(), wald, rtol=1e-6, atol=1e-9)
        assert display.axes_[i].get_xlabel() == name
    assert display.quantile == pytest.approx(stats.t.ppf(0.975, model.dof_), rel=1e-9)
    assert labels(display.axes_[0]) == ["Wald", "profile", "95 % interval"]
    assert display.axes_[0].get_ylabel() == "signed root z"
    assert len(display.figure_.axes) == 3


def test_profile_display_of_chosen_parameters_on_own_axes(fitted):
    model, _, _ = fitted
    _, ax = plt.subplots()
    display = ProfileDisplay.from_estimator(model, "b", n_points=5, ax=ax)
    assert list(display.axes_) == [ax]
    assert len(plt.get_fignums()) == 1
    with pytest.raises(ValueError, match="`ax` must be 1 axes, one per parameter; got 2"):
        display.plot([ax, ax])


def test_a_profile_display_of_many_parameters_asks_for_names(monkeypatch):
    X, y = decay_data()
    model = LMRegressor(module__hidden_layer_sizes=(15,), alpha=1e-3, random_state=0).fit(X, y)
    message = r"`names` must say which of the \d\d parameters to draw.*names=\['layers.0.weight\[0, 0\]', "
    with pytest.raises(ValueError, match=message):
        ProfileDisplay.from_estimator(model)
    followed = []
    profile = _uncertainty.profile
    monkeypatch.setattr(_uncertainty, "profile", lambda *args, **kw: followed.append(args[2]) or profile(*args, **kw))
    model = LMRegressor(DECAY, random_state=0).fit(X, y)
    ProfileDisplay.from_estimator(model, "b", n_points=3)
    assert set(followed) == {1}  # no other is refitted


def test_a_linear_model_has_straight_profiles():
    X, y = decay_data()
    display = ProfileDisplay.from_estimator(LMRegressor("a + b * x", random_state=0).fit(X, y), n_points=5)
    for line, wald in zip(display.lines_, display.wald_lines_, strict=True):
        np.testing.assert_allclose(line.get_ydata(), wald.get_ydata(), atol=1e-4)


def test_fixed_parameters_have_no_profile():
    X, y = decay_data()
    model = LMRegressor(DECAY, module__c=0.5, module__fixed="c", random_state=0).fit(X, y)
    assert list(ProfileDisplay.from_estimator(model, n_points=3).values) == ["a", "b"]
    with pytest.raises(ValueError, match=r"`names` must be parameters with a standard error, a, b; got c"):
        ProfileDisplay.from_estimator(model, ["a", "c"])


@pytest.mark.parametrize("display", [FitDisplay, ProfileDisplay, LossCurveDisplay, DampingDisplay])
def test_needs_matplotlib(fitted, display, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.delattr(mpl, "pyplot", raising=False)
    arguments = fitted if display is FitDisplay else fitted[:1]
    with pytest.raises(ImportError, match=rf"`{display.__name__}.from_estimator` needs matplotlib: pip install sklm"):
        display.from_estimator(*arguments)


def test_errors(fitted):
    model, X, y = fitted
    classifier = LMClassifier(alpha=0.01, random_state=0, max_epochs=3, ftol=1.0).fit(X, y > 1)
    with pytest.raises(ValueError, match="`FitDisplay` needs a fitted LMRegressor; got LMClassifier"):
        FitDisplay.from_estimator(classifier, X, y)
    with pytest.raises(ValueError, match=r"`n_points` must be an integer >= 2; got 1\."):
        FitDisplay.from_estimator(model, X, y, n_points=1)
    with pytest.raises(ValueError, match=r"`X` must be a table of shape"):
        FitDisplay.from_estimator(model, X[:, 0], y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        FitDisplay.from_estimator(model, X, y[1:])
    with pytest.raises(ValueError, match=r"`interval_level` must be in \(0, level=0.9\]; got 0.95"):
        ProfileDisplay.from_estimator(model, level=0.9)
    with pytest.raises(ValueError, match="not fitted"):
        FitDisplay.from_estimator(LMRegressor(DECAY), X, y)
    assert not plt.get_fignums()


def test_a_function_as_module(fitted):
    _, X, y = fitted

    def line(x, a, b):
        return a + b * x

    model = LMRegressor(curve(line), random_state=0).fit(X, y)
    display = FitDisplay.from_estimator(model, X, y, n_points=2)
    np.testing.assert_allclose(display.curve, model.predict(X[[0, -1]]), rtol=1e-12)


# ---------------------------------------------------------------- the course of a fit


@pytest.fixture(scope="module")
def stopped_early():
    X, y = decay_data(noise=0.3)
    model = LMRegressor(module__hidden_layer_sizes=(4,), early_stopping=True, n_iter_no_change=5, random_state=0)
    return model.fit(X, y)


def test_loss_curve_display_shows_both_losses_and_the_epoch_returned(stopped_early):
    model = stopped_early
    display = LossCurveDisplay.from_estimator(model)
    epochs = np.arange(1, model.n_iter_ + 1)
    np.testing.assert_array_equal(display.line_.get_xydata(), np.column_stack([epochs, model.loss_curve_]))
    valid = model.history_[:, "valid_loss"]
    np.testing.assert_array_equal(display.valid_line_.get_xydata(), np.column_stack([epochs, valid]))
    best = int(np.argmin(valid))
    assert best < len(valid) - 1
    assert display.epoch == best + 1
    np.testing.assert_array_equal(display.epoch_point_.get_xydata(), [[best + 1, valid[best]]])
    assert display.ax_.get_yscale() == "log"
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("epoch", "loss")
    assert labels(display.ax_) == ["training", "validation", "parameters returned"]
    assert display.valid_line_.get_color() == display.line_.get_color()
    display.figure_.canvas.draw()


def test_loss_curve_display_without_validation(fitted):
    display = LossCurveDisplay.from_estimator(fitted[0])
    assert display.valid_loss is display.valid_line_ is display.epoch_point_ is None
    assert labels(display.ax_) == ["training"]


def test_loss_curves_of_several_fits_in_one_picture(fitted, stopped_early):
    one = LossCurveDisplay.from_estimator(fitted[0], name="curve")
    two = LossCurveDisplay.from_estimator(stopped_early, name="network", ax=one.ax_, line_kwargs={"lw": 3})
    assert two.ax_ is one.ax_
    assert len(plt.get_fignums()) == 1
    assert one.line_.get_color() != two.line_.get_color()
    assert labels(one.ax_)[:3] == ["curve, training", "network, training", "network, validation"]
    assert two.valid_line_.get_linewidth() == 3
    assert two.valid_line_.get_linestyle() == "--"


def test_a_loss_that_is_not_positive_has_a_linear_axis():
    display = LossCurveDisplay(train_loss=np.array([1.0, 0.0, -1.0])).plot()
    assert display.ax_.get_yscale() == "linear"


def test_an_epoch_that_was_broken_off_is_left_out(fitted):
    _, X, y = fitted
    model = LMRegressor(DECAY, random_state=0).fit(X, y)
    model.history_.new_epoch()
    assert len(LossCurveDisplay.from_estimator(model).train_loss) == model.n_iter_
    assert len(DampingDisplay.from_estimator(model).loss) == model.n_iter_


def test_damping_display_shows_every_step_of_mini_batches():
    X, y = decay_data()
    model = LMClassifier(random_state=0, batch_size=10, max_epochs=5, alpha=0.01).partial_fit(X, y > 1)
    display = DampingDisplay.from_estimator(model)
    steps = [batch for row in model.history_ for batch in row["batches"]]
    assert len(steps) == 20
    np.testing.assert_array_equal(display.loss_line_.get_ydata(), [step["train_loss"] for step in steps])
    np.testing.assert_array_equal(display.damping_line_.get_ydata(), [step["damping"] for step in steps])
    np.testing.assert_array_equal(display.attempts_.get_data().values, [step["attempts"] for step in steps])
    np.testing.assert_array_equal(display.damping_line_.get_xdata(), np.arange(1, 21))
    assert [panel.get_ylabel() for panel in display.axes_] == ["loss", "damping", "attempts"]
    assert [panel.get_yscale() for panel in display.axes_] == ["linear", "log", "linear"]  # a loss within a decade
    assert labels(display.axes_[2]) == ["tried", "rejected"]
    display.figure_.canvas.draw()


def test_damping_display_counts_the_rejected_attempts(fitted):
    _, X, y = fitted
    model = LMRegressor(DECAY, module__a=1, module__b=30, module__c=0, random_state=0, max_attempts=4).fit(X, y)
    display = DampingDisplay.from_estimator(model)
    assert display.attempts[0] == display.rejected[0] == 4  # from this start no step was taken
    assert np.any((display.rejected > 0) & (display.rejected < display.attempts))
    np.testing.assert_array_equal((display.attempts - display.rejected)[1:], np.diff(model.loss_curve_) < 0)
    np.testing.assert_array_equal(display.rejected_.get_data().values, display.rejected)


def test_damping_of_several_fits_in_one_picture(fitted, stopped_early):
    one = DampingDisplay.from_estimator(fitted[0], name="curve")
    two = DampingDisplay.from_estimator(stopped_early, name="network", ax=one.axes_)
    assert list(two.axes_) == list(one.axes_)
    assert len(plt.get_fignums()) == 1
    assert labels(one.axes_[0]) == ["curve", "network"]
    assert labels(one.axes_[2]) == ["tried", "rejected"]
    assert two.loss_line_.get_color() == two.damping_line_.get_color() != one.loss_line_.get_color()
    with pytest.raises(ValueError, match="`ax` must be three axes, for loss, damping and attempts; got 1"):
        DampingDisplay.from_estimator(fitted[0], ax=one.axes_[0])


@pytest.mark.parametrize("display", [LossCurveDisplay, DampingDisplay])
def test_the_course_of_what_has_none(fitted, display):
    _, X, y = fitted
    scaled = make_pipeline(StandardScaler(), LMRegressor(DECAY)).fit(X, y)
    with pytest.raises(ValueError, match=rf"`{display.__name__}` needs a fitted LMRegressor or LM.*of a pipeline"):
        display.from_estimator(scaled)
    with pytest.raises(ValueError, match="not fitted"):
        display.from_estimator(LMRegressor(DECAY))
    assert not plt.get_fignums()


# ---------------------------------------------------------------- scikit-learn's own displays


def test_prediction_error_display(fitted):
    model, X, y = fitted
    display = PredictionErrorDisplay.from_estimator(model, X, y, kind="actual_vs_predicted", subsample=None)
    np.testing.assert_array_equal(display.y_pred, model.predict(X))


def test_learning_curve_display(fitted):
    model, X, y = fitted
    cv = KFold(3, shuffle=True, random_state=0)
    display = LearningCurveDisplay.from_estimator(model, X, y, train_sizes=[0.5, 1.0], cv=cv)
    assert display.test_scores.shape == (2, 3)
    assert np.all(display.test_scores > 0.9)


@pytest.mark.parametrize("kind", ["average", "both"])
def test_partial_dependence_display(kind):
    rng = np.random.default_rng(1)
    X = pd.DataFrame(rng.uniform(size=(40, 2)), columns=["u", "w"])
    y = 2 * X["u"] * np.exp(X["w"])
    model = LMRegressor("a * u * exp(b * w)", random_state=0).fit(X, y)
    display = PartialDependenceDisplay.from_estimator(model, X, ["w"], kind=kind, grid_resolution=5)
    result = display.pd_results[0]
    np.testing.assert_allclose(result["average"][0], 2 * X["u"].mean() * np.exp(result["grid_values"][0]), rtol=1e-6)
    assert display.axes_.ravel()[0].get_xlabel() == "w"


def test_displays_of_a_classifier():
    X, y = load_iris(return_X_y=True, as_frame=True)
    X = X.iloc[:, :2]
    model = LMClassifier(module__hidden_layer_sizes=(2,), random_state=0, ftol=1e-3).fit(X, y)
    confusion = ConfusionMatrixDisplay.from_estimator(model, X, y)
    assert np.trace(confusion.confusion_matrix) == round(model.score(X, y) * len(y))
    boundary = DecisionBoundaryDisplay.from_estimator(model, X, response_method="predict", grid_resolution=10)
    assert set(np.unique(boundary.response)) <= set(y)
    PartialDependenceDisplay.from_estimator(model, X, [0], target=1, grid_resolution=5)


@pytest.mark.parametrize("absolute_sigma", [False, True])
def test_counts_have_no_prediction_band(absolute_sigma):
    x = np.linspace(0, 2, 60)[:, None]
    counts = np.random.default_rng(0).poisson(np.exp(0.5 + x[:, 0]))
    model = LMRegressor("a + b * x", criterion="poisson", absolute_sigma=absolute_sigma).fit(x, counts)
    assert FitDisplay.from_estimator(model, x, counts).prediction is None


def test_several_data_sets_of_one_fit():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"t": np.tile(np.linspace(0, 5, 25), 2), "kind": np.repeat(["a", "b"], 25)})
    table["group"] = (table.kind == "b").astype(float)
    y = np.where(table.group > 0, 3, 5) * np.exp(-0.6 * table.t) + 0.1 * rng.standard_normal(50)
    model = LMRegressor("where(group > 0, a2, a1) * exp(-k * t)").fit(table, y)
    both = FitDisplay.from_estimator(model, table, y, feature="t")
    assert both.grid is None
    axes = None
    displays = []
    for group in (0, 1):
        rows = table.group == group
        displays.append(
            FitDisplay.from_estimator(model, table[rows], y[rows], feature="t", name=f"set {group}", ax=axes)
        )
        axes = displays[0].axes_
    for display, height in zip(displays, ("a1", "a2"), strict=True):
        values = model.parameters_
        np.testing.assert_allclose(display.curve, values[height] * np.exp(-values["k"] * display.grid), rtol=1e-12)
        assert display.confidence_band_ is not None
        assert display.points_[0].get_color() == display.line_.get_color()
    assert displays[0].line_.get_color() != displays[1].line_.get_color()
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert {"set 0: fit", "set 1: fit", "set 0: data", "set 1: 95 % prediction"} <= set(labels)
    limit = axes[1].get_ylim()[1]
    assert limit > max(np.abs(display.residuals).max() for display in displays)


def test_a_fit_of_one_epoch_is_seen():
    x = np.linspace(0, 4, 60)[:, None]
    y = 3 * np.exp(-0.7 * x[:, 0]) + 1 + 0.05 * np.random.default_rng(0).standard_normal(60)
    model = LMRegressor("a * exp(-b * x) + c").fit(x, y)
    assert model.n_iter_ == 1
    assert LossCurveDisplay.from_estimator(model).line_.get_marker() == "o"
    display = DampingDisplay.from_estimator(model)
    assert display.loss_line_.get_marker() == display.damping_line_.get_marker() == "o"


@pytest.mark.filterwarnings("ignore:X has feature names")
def test_a_frame_in_place_of_an_array_has_the_same_bands():
    x = np.linspace(0, 4, 60)[:, None]
    y = 3 * np.exp(-0.7 * x[:, 0]) + 1 + 0.05 * np.random.default_rng(0).standard_normal(60)
    model = LMRegressor("a * exp(-b * x) + c").fit(x, y)
    display = FitDisplay.from_estimator(model, pd.DataFrame({"x": x[:, 0]}), y)
    np.testing.assert_array_equal(display.prediction, FitDisplay.from_estimator(model, x, y).prediction)


def test_losses_within_a_decade_have_a_linear_axis():
    X = np.linspace(0, 1, 30)[:, None]
    y = np.sin(9 * X[:, 0])
    flat, steep = (LMRegressor(alpha=0, lr=lr, max_epochs=5, random_state=0) for lr in (1e-3, 1.0))
    with pytest.warns(ConvergenceWarning):
        scales = [LossCurveDisplay.from_estimator(m.fit(X, y)).ax_.get_yscale() for m in (flat, steep)]
    assert scales == ["linear", "log"]


def test_data_without_points():
    X, y = decay_data()
    model = LMRegressor("a * exp(-b * x) + c").fit(X, y)
    display = FitDisplay.from_estimator(model, X, y, point_kwargs={"fmt": "none"}, name="one")
    assert display.line_ is not None
