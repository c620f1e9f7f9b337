"""`FitDisplay`: data, fitted curve, bands and residuals."""

from __future__ import annotations

import contextlib
import numbers
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_consistent_length

from sklm.displays._common import check_points, check_regressor, pyplot, styles
from sklm.engine.losses import Elementwise, plain_form


class FitDisplay:
    """Data, fitted curve, confidence and prediction bands, and the residuals below.

    Made by `FitDisplay.from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    x, y, predicted, residuals : ndarray of shape (n_samples,)
        Values of the input column, targets, predictions and what the lower panel shows of their difference.
    sigma : ndarray of shape (n_samples,), default=None
        Lengths of the error bars; nan for none.
    grid, curve : ndarray of shape (n_points,), default=None
        The fitted curve; without it the predictions are drawn as points.
    confidence, prediction : ndarray of shape (n_points, 2), default=None
        Lower and upper ends of the bands on `grid`.
    level : float, default=0.95
        Of the bands.
    x_label, y_label, residual_label : str
        Labels of the axes.
    name : str, default=None
        Of the data: in the legend, and data and curve get a color of their own.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of matplotlib Axes
        The panel of the fit, and of the residuals where there is one.
    ax_, residual_ax_ : matplotlib Axes
        The same; `residual_ax_` is None where a single `ax` was passed.
    points_ : matplotlib ErrorbarContainer
        The data.
    line_ : matplotlib Line2D
        The curve, or the predictions as points.
    confidence_band_, prediction_band_ : matplotlib PolyCollection or None
    residual_points_ : matplotlib Line2D or None

    Examples
    --------
    >>> import numpy as np
    >>> from sklm import LMRegressor
    >>> from sklm.displays import FitDisplay
    >>> x = np.linspace(0, 3, 20)[:, None]
    >>> y = 3 * np.exp(-2 * x[:, 0]) + 0.1 * np.cos(30 * x[:, 0])
    >>> model = LMRegressor("a * exp(-b * x)").fit(x, y)
    >>> display = FitDisplay.from_estimator(model, x, y)
    """

    def __init__(
        self,
        *,
        x: np.ndarray,
        y: np.ndarray,
        predicted: np.ndarray,
        residuals: np.ndarray,
        sigma: np.ndarray | None = None,
        grid: np.ndarray | None = None,
        curve: np.ndarray | None = None,
        confidence: np.ndarray | None = None,
        prediction: np.ndarray | None = None,
        level: float | None = 0.95,
        x_label: str = "x",
        y_label: str = "y",
        residual_label: str = "residual",
        name: str | None = None,
    ) -> None:
        self.x, self.y, self.predicted, self.residuals, self.sigma = x, y, predicted, residuals, sigma
        self.grid, self.curve, self.confidence, self.prediction, self.level = grid, curve, confidence, prediction, level
        self.x_label, self.y_label, self.residual_label = x_label, y_label, residual_label
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        sample_weight: Any = None,
        level: float | None = 0.95,
        n_points: int = 300,
        feature: int | str | None = None,
        output: int | str = 0,
        name: str | None = None,
        ax: Any = None,
        point_kwargs: dict[str, Any] | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> FitDisplay:
        """Compute and draw.

        Parameters
        ----------
        estimator : LMRegressor
            Fitted.
        X : array, frame or tensor of shape (n_samples, n_features)
        y : array of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array of shape (n_samples,), default=None
            As in `fit`. The residuals are then divided by their standard deviation: ``1 / sqrt(sample_weight)`` with
            ``absolute_sigma=True``, which also gives error bars to the data, else that times the residual standard
            deviation. There is no prediction band, as the weight of a new measurement is not known.
        level : float in (0, 1) or None, default=0.95
            Of the bands; None draws none. There is no prediction band for a Poisson loss.
        n_points : int, default=300
            Points of the curve: half of them evenly spaced, the others evenly spread over the gaps between the data, so
            that the curve stays smooth on a logarithmic axis too.
        feature : int or str, default=None
            Column of X to draw against, by position or name. Not needed where the module uses one column. Where it uses
            others that are not the same in all rows, predictions are drawn as points, without bands: pass the rows of
            one data set after another, with the same `ax`.
        output : int or str, default=0
            Column of y to draw, by position or name.
        name : str, default=None
            Of the data: in the legend, and data and curve get a color of their own, for several in one figure.
        ax : matplotlib Axes, or two of them, default=None
            Two for fit and residuals; one for the fit alone. None makes a new figure.
        point_kwargs, line_kwargs : dict, default=None
            For the data (`matplotlib.axes.Axes.errorbar`) and the curve (`matplotlib.axes.Axes.plot`).

        Returns
        -------
        FitDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            For another estimator, a module of several columns without `feature`, or an unknown column.
        """
        pyplot(f"{cls.__name__}.from_estimator")
        check_regressor(cls, estimator)
        check_points(n_points)
        X, n_features = _table(X)
        names = _column_names(X, n_features, getattr(estimator, "feature_names_in_", None))
        used = list(getattr(estimator.module_, "input_columns", range(n_features)))
        if feature is None and len(used) != 1:
            listed = ", ".join(names[i] for i in used[:10]) + (", ..." if len(used) > 10 else "")
            raise ValueError(f"the module uses {len(used)} columns: {listed}; pass `feature`, the one to draw against.")
        column = used[0] if feature is None else _position("feature", feature, names)
        x = np.asarray(X.iloc[:, column] if hasattr(X, "iloc") else np.asarray(X)[:, column], dtype=float)
        targets, target_names = _targets(y)
        place = _position("output", output, target_names)
        check_consistent_length(x, targets, sample_weight)
        predicted = estimator.predict(X).reshape(len(x), -1)[:, place]
        target = targets[:, place]
        residuals, sigma, label = _residuals(estimator, target - predicted, sample_weight, place)
        display = cls(
            x=x,
            y=target,
            predicted=predicted,
            residuals=residuals,
            sigma=sigma,
            level=level,
            x_label=names[column],
            y_label=target_names[place],
            residual_label=label,
            name=name,
        )
        if all(_is_constant(X, other) for other in used if other != column):
            display._add_curve(estimator, X, column, n_points, place, weighted=sample_weight is not None)
        return display.plot(ax, point_kwargs=point_kwargs, line_kwargs=line_kwargs)

    def _add_curve(self, estimator: Any, X: Any, column: int, n_points: int, place: int, *, weighted: bool) -> None:
        self.grid = _grid(self.x, n_points)
        table = _along(X, column, self.grid)
        self.curve = estimator.predict(table).reshape(n_points, -1)[:, place]
        if self.level is None:
            return
        self.confidence = estimator.predict_interval(table, level=self.level).reshape(n_points, -1, 2)[:, place]
        has_residuals = isinstance(plain_form(estimator.criterion_, 1)[0], Elementwise)
        known = estimator.absolute_sigma or not np.isnan(np.atleast_1d(estimator.residual_variance_)).all()
        if not weighted and has_residuals and known:
            with warnings.catch_warnings(), contextlib.suppress(UserWarning):
                warnings.filterwarnings("error", message="the fit had sample weights")  # no band, as in `weighted`
                band = estimator.predict_interval(table, level=self.level, kind="prediction")
                self.prediction = band.reshape(n_points, -1, 2)[:, place]

    def plot(
        self,
        ax: Any = None,
        *,
        point_kwargs: dict[str, Any] | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> FitDisplay:
        """Draw.

        Parameters
        ----------
        ax, point_kwargs, line_kwargs
            As in `from_estimator`.

        Returns
        -------
        FitDisplay
        """
        plt = pyplot(f"{type(self).__name__}.plot")
        if ax is None:
            _, ax = plt.subplots(2, 1, sharex=True, figsize=(6.4, 5.4), height_ratios=[3, 1], layout="constrained")
        self.axes_ = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
        if len(self.axes_) > 2:
            raise ValueError(f"`ax` must be one or two axes; got {len(self.axes_)}.")
        self.ax_, self.residual_ax_ = self.axes_[0], self.axes_[1] if len(self.axes_) == 2 else None
        self.figure_ = self.ax_.figure
        points = self._plot_fit(self.ax_, point_kwargs, line_kwargs)
        self.residual_points_ = None
        if self.residual_ax_ is None:
            self.ax_.set_xlabel(self.x_label)
        else:
            self._plot_residuals(self.residual_ax_, points)
        return self

    def _plot_fit(
        self, ax: Any, point_kwargs: dict[str, Any] | None, line_kwargs: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Draw the upper panel and return the style of the data."""
        prefix = "" if self.name is None else f"{self.name}: "
        style: dict[str, Any] = {"fmt": "o", "markersize": 4, "label": f"{prefix}data", "zorder": 2}
        style |= {"color": "0.25"} if self.name is None else {}
        points = styles(style, point_kwargs)
        self.points_ = ax.errorbar(self.x, self.y, yerr=self.sigma, **points)
        if self.points_[0] is not None:
            points["color"] = self.points_[0].get_color()
        self.confidence_band_ = self.prediction_band_ = None
        style = {"color": "C0" if self.name is None else points.get("color"), "zorder": 3}
        if self.grid is None:
            style |= {"linestyle": "", "marker": "x", "label": f"{prefix}prediction"}
            (self.line_,) = ax.plot(self.x, self.predicted, **styles(style, line_kwargs))
        else:
            style["label"] = f"{prefix}fit"
            (self.line_,) = ax.plot(self.grid, self.curve, **styles(style, line_kwargs))
            color = self.line_.get_color()
            percent = f"{prefix}{100 * (self.level or 0):g} %"
            if self.confidence is not None:
                self.confidence_band_ = ax.fill_between(
                    self.grid, *self.confidence.T, color=color, alpha=0.3, lw=0, label=f"{percent} confidence"
                )
            if self.prediction is not None:
                self.prediction_band_ = ax.fill_between(
                    self.grid, *self.prediction.T, color=color, alpha=0.12, lw=0, label=f"{percent} prediction"
                )
        ax.set_ylabel(self.y_label)
        ax.legend()
        return points

    def _plot_residuals(self, ax: Any, points: dict[str, Any]) -> None:
        ax.axhline(0, color=self.line_.get_color(), linewidth=1, zorder=1)
        style = {name: points[name] for name in ("color", "markersize") if name in points}
        (self.residual_points_,) = ax.plot(self.x, self.residuals, "o", **style)
        largest = np.max(np.abs(self.residuals), where=np.isfinite(self.residuals), initial=0.0)
        if largest > 0:
            limit = max(1.2 * largest, ax.get_ylim()[1] if len(ax.lines) > 2 else 0.0)  # of data drawn before
            ax.set_ylim(-limit, limit)
        ax.set(xlabel=self.x_label, ylabel=self.residual_label)
        if self.ax_.get_shared_x_axes().joined(self.ax_, ax):
            self.ax_.tick_params(labelbottom=False)
        else:
            self.ax_.set_xlabel(self.x_label)
        if self.figure_ is ax.figure:
            self.figure_.align_ylabels([self.ax_, ax])


def _table(X: Any) -> tuple[Any, int]:
    """Return a frame as it is, anything else as an array, and its number of columns."""
    X = X.detach().cpu().numpy() if isinstance(X, torch.Tensor) else X
    X = X if hasattr(X, "columns") else np.asarray(X)
    if len(X.shape) != 2:
        raise ValueError(f"`X` must be a table of shape (n_samples, n_features); got {X!r:.60}.")
    return X, X.shape[1]


def _column_names(X: Any, n_features: int, fitted: Any) -> list[str]:
    if hasattr(X, "columns"):
        return [str(name) for name in X.columns]
    if fitted is not None:
        return [str(name) for name in fitted]
    return ["x"] if n_features == 1 else [f"x{i}" for i in range(n_features)]


def _targets(y: Any) -> tuple[np.ndarray, list[str]]:
    """Return y as an array of shape (n_samples, n_outputs), and the names of its columns."""
    values = np.asarray(y.detach().cpu() if isinstance(y, torch.Tensor) else y, dtype=float)
    if values.ndim == 1:
        name = getattr(y, "name", None)
        return values[:, None], ["y" if name is None else str(name)]
    if hasattr(y, "columns"):
        return values, [str(name) for name in y.columns]
    return values, ["y"] if values.shape[1] == 1 else [f"y{i}" for i in range(values.shape[1])]


def _position(parameter: str, key: int | str, names: list[str]) -> int:
    if isinstance(key, str) and key in names:
        return names.index(key)
    if isinstance(key, numbers.Integral) and not isinstance(key, bool) and 0 <= key < len(names):
        return int(key)
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise ValueError(f"`{parameter}` must be a column, by position from 0 or name, of {shown}; got {key!r}.")


def _residuals(
    estimator: Any, difference: np.ndarray, sample_weight: Any, place: int
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Return the residuals to draw, the error bars and the label of the residuals."""
    if sample_weight is None:
        return difference, None, "residual"
    weights = np.asarray(sample_weight, dtype=float)
    sigma = np.full_like(weights, np.nan)  # a row of weight 0 has no residual to speak of
    sigma[weights > 0] = 1 / np.sqrt(weights[weights > 0])
    if estimator.absolute_sigma:
        return difference / sigma, sigma, "residual / sigma"
    variance = float(np.atleast_1d(estimator.residual_variance_)[place])
    if not variance > 0:  # no degrees of freedom, or a likelihood
        return difference, None, "residual"
    return difference / sigma / np.sqrt(variance), None, "residual / sigma"


def _grid(x: np.ndarray, n_points: int) -> np.ndarray:
    values = np.unique(x)
    n_between = (n_points - 1) // 2
    even = np.linspace(values[0], values[-1], n_points - n_between)
    between = np.interp(np.linspace(0, len(values) - 1, n_between), np.arange(len(values)), values)
    return np.sort(np.concatenate([even, between]))


def _is_constant(X: Any, column: int) -> bool:
    values = np.asarray(X.iloc[:, column] if hasattr(X, "iloc") else np.asarray(X)[:, column])
    return bool((values == values[:1]).all())


def _along(X: Any, column: int, grid: np.ndarray) -> Any:
    """Return the first row of X repeated, with `grid` in one column, as a table of the same kind."""
    if hasattr(X, "columns"):
        cells = {name: np.asarray(X[name])[:1].repeat(len(grid)) for name in X.columns}
        cells[X.columns[column]] = grid
        return type(X)(cells)
    table = np.repeat(X[:1], len(grid), axis=0)
    table = table if table.dtype.kind in "fO" else table.astype(float)
    table[:, column] = grid
    return table
