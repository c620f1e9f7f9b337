"""`ProfileDisplay`: profiles of the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sklm.displays._common import check_points, check_regressor, panels, pyplot, styles

MAX_PROFILES = 20  # that are drawn without being asked for by name


class ProfileDisplay:
    """Profile of every parameter: the signed root z of the likelihood ratio against its value.

    Where z is as straight as the Wald line, the standard error tells all; where it bends, the profile interval is the
    better one (Bates and Watts 1988, section 6.1). Made by `ProfileDisplay.from_estimator`; all parameters are stored
    as attributes.

    Parameters
    ----------
    values, z : dict of str to ndarray of shape (n_points,)
        The profiles by parameter.
    estimates, standard_errors : dict of str to float
        For the Wald line (value - estimate) / standard error.
    intervals : dict of str to (lower, upper)
        Profile intervals to mark.
    quantile : float
        |z| at the ends of these intervals.
    interval_level : float, default=0.95
        Of these intervals.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of matplotlib Axes
        One per parameter.
    lines_, wald_lines_, ends_ : list of matplotlib Line2D
        Profiles, Wald lines and marked ends of the intervals, one per parameter.

    Examples
    --------
    >>> import numpy as np
    >>> from sklm import LMRegressor
    >>> from sklm.displays import ProfileDisplay
    >>> x = np.linspace(0, 3, 20)[:, None]
    >>> y = 3 * np.exp(-2 * x[:, 0]) + 0.1 * np.cos(30 * x[:, 0])
    >>> model = LMRegressor("a * exp(-b * x)").fit(x, y)
    >>> display = ProfileDisplay.from_estimator(model, ["b"])
    """

    def __init__(
        self,
        *,
        values: dict[str, np.ndarray],
        z: dict[str, np.ndarray],
        estimates: dict[str, float],
        standard_errors: dict[str, float],
        intervals: dict[str, tuple[float, float]],
        quantile: float,
        interval_level: float = 0.95,
    ) -> None:
        self.values, self.z, self.estimates, self.standard_errors = values, z, estimates, standard_errors
        self.intervals, self.quantile, self.interval_level = intervals, quantile, interval_level

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        names: str | Sequence[str] | None = None,
        *,
        level: float = 0.99,
        interval_level: float = 0.95,
        n_points: int = 25,
        ax: Any = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> ProfileDisplay:
        """Compute and draw; takes some refits per point.

        Parameters
        ----------
        estimator : LMRegressor
            Fitted, with the squared error or a likelihood.
        names : str or sequence of str, default=None
            Parameters, of `parameters_`; None for all that have a standard error, of which there may be 20 then.
        level : float in (0, 1), default=0.99
            The profiles span the intervals of this level.
        interval_level : float in (0, level], default=0.95
            Level of the intervals that are marked.
        n_points : int, default=25
            Points per profile.
        ax : matplotlib Axes or array of them, default=None
            One per parameter. None makes a new figure.
        line_kwargs : dict, default=None
            For the profiles (`matplotlib.axes.Axes.plot`).

        Returns
        -------
        ProfileDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            For another estimator, an unknown name, a parameter without a standard error, or more than 20 parameters
            without `names`.
        """
        pyplot(f"{cls.__name__}.from_estimator")
        check_regressor(cls, estimator)
        check_points(n_points)
        if not 0 < interval_level <= level:
            raise ValueError(f"`interval_level` must be in (0, level={level}]; got {interval_level}.")
        estimates, errors = estimator.parameters_, estimator.standard_errors_
        identified = [name for name, error in errors.items() if error > 0]
        chosen = identified if names is None else [names] if isinstance(names, str) else list(names)
        unknown = [name for name in chosen if name not in identified]
        if unknown or not chosen:
            raise ValueError(
                f"`names` must be parameters with a standard error, {', '.join(identified) or 'of which there is none'}"
                f"; got {', '.join(unknown) or 'none'}. `summary()` says why one is missing."
            )
        if names is None and len(chosen) > MAX_PROFILES:
            raise ValueError(
                f"`names` must say which of the {len(chosen)} parameters to draw, as every profile takes many refits; "
                f"for instance names={chosen[:2]}."
            )
        wald = estimator.confidence_intervals(level=interval_level)[chosen[0]]
        profiles = {name: estimator.profile(name, level=level, n_points=n_points) for name in chosen}
        intervals = estimator.confidence_intervals(level=interval_level, method="profile", names=chosen)
        return cls(
            values={name: values for name, (values, _) in profiles.items()},
            z={name: z for name, (_, z) in profiles.items()},
            estimates={name: estimates[name] for name in chosen},
            standard_errors={name: errors[name] for name in chosen},
            intervals={name: intervals[name] for name in chosen},
            quantile=(wald[1] - wald[0]) / 2 / errors[chosen[0]],
            interval_level=interval_level,
        ).plot(ax, line_kwargs=line_kwargs)

    def plot(self, ax: Any = None, *, line_kwargs: dict[str, Any] | None = None) -> ProfileDisplay:
        """Draw.

        Parameters
        ----------
        ax, line_kwargs
            As in `from_estimator`.

        Returns
        -------
        ProfileDisplay
        """
        plt = pyplot(f"{type(self).__name__}.plot")
        n_panels = len(self.values)
        if ax is None:
            n_columns = n_panels if n_panels <= 3 else 2 if n_panels == 4 else 3
            n_rows = -(-n_panels // n_columns)
            size = (3.4 * n_columns + 0.6, 2.9 * n_rows + 0.5)
            _, ax = plt.subplots(n_rows, n_columns, sharey=True, squeeze=False, figsize=size, layout="constrained")
            for unused in ax.ravel()[n_panels:]:
                unused.remove()
            ax = ax.ravel()[:n_panels]
        self.axes_ = panels(ax, n_panels, f"{n_panels} axes, one per parameter")
        self.figure_ = self.axes_[0].figure
        self.lines_: list[Any] = []
        self.wald_lines_: list[Any] = []
        self.ends_: list[Any] = []
        heights = [self.quantile, *(np.abs(z[np.isfinite(z)]).max() for z in self.z.values())]
        style = styles({"color": "C0", "label": "profile"}, line_kwargs)
        for name, panel in zip(self.values, self.axes_, strict=True):
            self._plot_panel(panel, name, style)
            panel.set(xlabel=name, ylim=(-1.15 * max(heights), 1.15 * max(heights)))
            if panel.get_subplotspec() is None or panel.get_subplotspec().is_first_col():
                panel.set_ylabel("signed root z")
        self.axes_[0].legend(loc="lower right")
        return self

    def _plot_panel(self, ax: Any, name: str, style: dict[str, Any]) -> None:
        values, z = self.values[name], self.z[name]
        finite = np.isfinite(z)
        for height in (-self.quantile, self.quantile):
            ax.axhline(height, color="0.6", linewidth=0.8, zorder=1)
        wald = (values - self.estimates[name]) / self.standard_errors[name]
        self.wald_lines_ += ax.plot(values, wald, color="0.4", linestyle="--", label="Wald")
        self.lines_ += ax.plot(values[finite], z[finite], **style)
        ends = np.array(self.intervals[name], dtype=float)
        ends = ends[np.isfinite(ends)]
        heights = np.interp(ends, values[finite], z[finite])
        color = self.lines_[-1].get_color()
        self.ends_ += ax.plot(
            ends, heights, "o", color=color, markersize=5, label=f"{100 * self.interval_level:g} % interval"
        )
