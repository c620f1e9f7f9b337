"""What the displays share: matplotlib on demand, styles and checks."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted


def pyplot(caller: str) -> Any:
    """Return `matplotlib.pyplot`, or raise in the name of the caller."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f"`{caller}` needs matplotlib: pip install sklm[plot].") from error
    return plt


def styles(defaults: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any]:
    """Return the defaults overridden by what was given, where "lw" and "linewidth" are one."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return {**defaults, **normalize_kwargs(given or {}, Line2D)}


def line_style(steps: np.ndarray) -> dict[str, Any]:
    """Return how a line over the steps is drawn: a single one, as of a curve that starts at its minimum, as a point."""
    return {"marker": "o"} if len(steps) == 1 else {}


def check_regressor(cls: type, estimator: Any) -> None:
    """Raise where the estimator is no fitted `LMRegressor`."""
    check_is_fitted(estimator)
    if not (hasattr(estimator, "module_") and hasattr(estimator, "predict_interval")):
        raise ValueError(
            f"`{cls.__name__}` needs a fitted LMRegressor; got {type(estimator).__name__}. Of a search pass "
            "`best_estimator_`, of a pipeline its last step and the transformed X."
        )


def epochs(cls: type, estimator: Any) -> list[dict[str, Any]]:
    """Return the rows of the history of a fitted estimator, without an epoch that was broken off."""
    check_is_fitted(estimator)
    if not hasattr(estimator, "history_"):
        raise ValueError(
            f"`{cls.__name__}` needs a fitted LMRegressor or LMClassifier; got {type(estimator).__name__}. Of a search "
            "pass `best_estimator_`, of a pipeline its last step."
        )
    return [row for row in estimator.history_ if "train_loss" in row]


def panels(ax: Any, n_panels: int, wanted: str) -> np.ndarray:
    """Return the axes to draw on as a flat array, or raise where they are not as many as `wanted` says."""
    axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(axes) != n_panels:
        raise ValueError(f"`ax` must be {wanted}; got {len(axes)}.")
    return axes


def set_log_scale(ax: Any, *values: np.ndarray) -> None:
    """Give an axis of values that are all positive a logarithmic scale, where they span a decade."""
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    if len(finite) and np.all(finite > 0) and finite.max() >= 10 * finite.min():
        ax.set_yscale("log")


def count_along(axis: Any) -> None:
    """Mark an axis at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True))


def check_points(n_points: Any) -> None:
    """Raise where the number of points makes no line."""
    if isinstance(n_points, bool) or not isinstance(n_points, numbers.Integral) or n_points < 2:
        raise ValueError(f"`n_points` must be an integer >= 2; got {n_points!r}.")
