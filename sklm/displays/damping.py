"""`DampingDisplay`: loss, damping and attempts over the steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklm.displays._common import count_along, epochs, line_style, panels, pyplot, set_log_scale, styles

LEAST_GAIN = 1e-4  # gain ratio above which the engine accepts a step


class DampingDisplay:
    """Loss after every step, the damping factor it was made with, and how many factors were tried and rejected.

    Made by `DampingDisplay.from_estimator`. All parameters are stored as attributes. A full batch makes one step per
    epoch, mini-batches one each. The axes of loss and damping are logarithmic where
    they span a decade.

    Parameters
    ----------
    loss, damping : ndarray of shape (n_steps,)
        Loss after the step, on its own batch, penalty included, and damping factor of the last attempt.
    attempts, rejected : ndarray of int of shape (n_steps,)
        Damping factors tried, and those whose step was not taken; all of them where the parameters stayed.
    name : str, default=None
        Of the fit, for the legend.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of matplotlib Axes
        The panels of loss, damping and attempts.
    loss_line_, damping_line_ : matplotlib Line2D
    attempts_, rejected_ : matplotlib StepPatch
        Attempts, pale, and the rejected ones in full color.

    See Also
    --------
    LossCurveDisplay : Training and validation loss over the epochs.

    Examples
    --------
    >>> import numpy as np
    >>> from sklm import LMRegressor
    >>> from sklm.displays import DampingDisplay
    >>> x = np.linspace(0, 3, 20)[:, None]
    >>> y = 3 * np.exp(-2 * x[:, 0]) + 0.1 * np.cos(30 * x[:, 0])
    >>> display = DampingDisplay.from_estimator(LMRegressor("a * exp(-b * x)", module__b=30).fit(x, y))
    """

    def __init__(
        self,
        *,
        loss: np.ndarray,
        damping: np.ndarray,
        attempts: np.ndarray,
        rejected: np.ndarray,
        name: str | None = None,
    ) -> None:
        self.loss, self.damping, self.attempts, self.rejected, self.name = loss, damping, attempts, rejected, name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        name: str | None = None,
        ax: Any = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> DampingDisplay:
        """Take the steps from the history and draw them.

        Parameters
        ----------
        estimator : LMRegressor or LMClassifier
            Fitted.
        name : str, default=None
            Of the fit, for the legend.
        ax : array of three matplotlib Axes, default=None
            For loss, damping and attempts: the `axes_` of another display draw over it. None makes a new figure.
        line_kwargs : dict, default=None
            For the lines (`matplotlib.axes.Axes.plot`).

        Returns
        -------
        DampingDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            For another estimator, or a history without batches.
        """
        pyplot(f"{cls.__name__}.from_estimator")
        steps = [batch for row in epochs(cls, estimator) for batch in row["batches"] if "damping" in batch]
        attempts = np.array([step["attempts"] for step in steps], dtype=int)
        accepted = np.array([step["gain_ratio"] for step in steps], dtype=float) > LEAST_GAIN
        return cls(
            loss=np.array([step["train_loss"] for step in steps], dtype=float),
            damping=np.array([step["damping"] for step in steps], dtype=float),
            attempts=attempts,
            rejected=attempts - accepted,
            name=name,
        ).plot(ax, line_kwargs=line_kwargs)

    def plot(self, ax: Any = None, *, line_kwargs: dict[str, Any] | None = None) -> DampingDisplay:
        """Draw.

        Parameters
        ----------
        ax, line_kwargs
            As in `from_estimator`.

        Returns
        -------
        DampingDisplay
        """
        plt = pyplot(f"{type(self).__name__}.plot")
        if ax is None:
            _, ax = plt.subplots(3, 1, sharex=True, figsize=(6.4, 6.4), height_ratios=[2, 2, 1], layout="constrained")
        self.axes_ = panels(ax, 3, "three axes, for loss, damping and attempts")
        above, middle, below = self.axes_
        self.figure_ = above.figure
        steps = np.arange(1, len(self.loss) + 1)
        marked = line_style(steps)
        (self.loss_line_,) = above.plot(steps, self.loss, **styles({**marked, "label": self.name}, line_kwargs))
        style = styles({**marked, "color": self.loss_line_.get_color()}, line_kwargs)
        (self.damping_line_,) = middle.plot(steps, self.damping, **style)
        for panel, name in [(above, "loss"), (middle, "damping")]:
            set_log_scale(panel, *(line.get_ydata() for line in panel.lines))
            panel.set_ylabel(name)
        self._plot_attempts(below, style["color"])
        if self.name is not None:
            above.legend()
        self.figure_.align_ylabels(self.axes_)
        return self

    def _plot_attempts(self, ax: Any, color: Any) -> None:
        edges = np.arange(len(self.attempts) + 1) + 0.5
        first = not ax.patches  # of several fits, one explains the shades
        style = {"fill": True, "color": color, "lw": 0}
        self.attempts_ = ax.stairs(self.attempts, edges, alpha=0.25, label="tried" if first else None, **style)
        self.rejected_ = ax.stairs(self.rejected, edges, alpha=0.8, label="rejected" if first else None, **style)
        count_along(ax.xaxis)
        count_along(ax.yaxis)
        top = max(ax.get_ylim()[1], 1.6 * max(self.attempts, default=1))  # room for the legend
        ax.set(xlabel="step", ylabel="attempts", ylim=(0, top))
        ax.legend(ncols=2, loc="upper right")
