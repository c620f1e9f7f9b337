"""`LossCurveDisplay`: the loss over the epochs."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklm.displays._common import count_along, epochs, line_style, pyplot, set_log_scale, styles


class LossCurveDisplay:
    """Training loss after every epoch, and the validation loss where there is one.

    Made by `LossCurveDisplay.from_estimator`. All parameters are stored as attributes. The axis is logarithmic where
    all losses are positive and span a decade.

    Parameters
    ----------
    train_loss : ndarray of shape (n_epochs,)
        As the history has it: after the step, penalty included.
    valid_loss : ndarray of shape (n_epochs,), default=None
        Without the penalty.
    epoch : int, default=None
        Epoch of the parameters that the fit returned, from 1; marked where it is not the last.
    name : str, default=None
        Of the fit, for the legend.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    line_ : matplotlib Line2D
        The training loss.
    valid_line_ : matplotlib Line2D or None
        The validation loss, dashed in the same color.
    epoch_point_ : matplotlib Line2D or None
        The mark on the validation loss, or where there is none on the training loss.

    See Also
    --------
    DampingDisplay : Loss, damping and attempts over the steps.

    Examples
    --------
    Two fits in one picture:

    >>> from sklearn.datasets import load_diabetes
    >>> from sklm import LMRegressor
    >>> from sklm.displays import LossCurveDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = LMRegressor(module__hidden_layer_sizes=(3,), early_stopping=True, random_state=0)
    >>> display = LossCurveDisplay.from_estimator(model.fit(X, y), name="full step")
    >>> display = LossCurveDisplay.from_estimator(model.set_params(lr=0.3).fit(X, y), name="lr=0.3", ax=display.ax_)
    """

    def __init__(
        self,
        *,
        train_loss: np.ndarray,
        valid_loss: np.ndarray | None = None,
        epoch: int | None = None,
        name: str | None = None,
    ) -> None:
        self.train_loss, self.valid_loss, self.epoch, self.name = train_loss, valid_loss, epoch, name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        name: str | None = None,
        ax: Any = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> LossCurveDisplay:
        """Take the losses from the history and draw them.

        Parameters
        ----------
        estimator : LMRegressor or LMClassifier
            Fitted.
        name : str, default=None
            Of the fit, for the legend.
        ax : matplotlib Axes, default=None
            Where to draw, also over another fit. None makes a new figure.
        line_kwargs : dict, default=None
            For the lines (`matplotlib.axes.Axes.plot`).

        Returns
        -------
        LossCurveDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            For another estimator.
        """
        pyplot(f"{cls.__name__}.from_estimator")
        rows = epochs(cls, estimator)
        train_loss = np.array([row["train_loss"] for row in rows], dtype=float)
        valid_loss = np.array([row.get("valid_loss", np.nan) for row in rows], dtype=float)
        returned = np.flatnonzero(train_loss == getattr(estimator, "loss_", np.nan))
        return cls(
            train_loss=train_loss,
            valid_loss=valid_loss if np.isfinite(valid_loss).any() else None,
            epoch=int(returned[-1]) + 1 if len(returned) else None,
            name=name,
        ).plot(ax, line_kwargs=line_kwargs)

    def plot(self, ax: Any = None, *, line_kwargs: dict[str, Any] | None = None) -> LossCurveDisplay:
        """Draw.

        Parameters
        ----------
        ax, line_kwargs
            As in `from_estimator`.

        Returns
        -------
        LossCurveDisplay
        """
        plt = pyplot(f"{type(self).__name__}.plot")
        self.ax_ = plt.subplots(layout="constrained")[1] if ax is None else ax
        self.figure_ = self.ax_.figure
        prefix = "" if self.name is None else f"{self.name}, "
        steps = np.arange(1, len(self.train_loss) + 1)
        marked = line_style(steps)
        style = styles({**marked, "label": f"{prefix}training"}, line_kwargs)
        (self.line_,) = self.ax_.plot(steps, self.train_loss, **style)
        color, shown = self.line_.get_color(), self.train_loss
        self.valid_line_ = self.epoch_point_ = None
        if self.valid_loss is not None:
            shown = self.valid_loss
            style = styles({**marked, "color": color, "linestyle": "--"}, line_kwargs)
            style |= {"label": f"{prefix}validation"}
            (self.valid_line_,) = self.ax_.plot(steps, shown, **style)
        if self.epoch is not None and self.epoch < len(steps):
            at = self.epoch - 1
            label = f"{prefix}parameters returned"
            (self.epoch_point_,) = self.ax_.plot(steps[at], shown[at], "o", color=color, label=label)
        set_log_scale(self.ax_, *(line.get_ydata() for line in self.ax_.lines))
        count_along(self.ax_.xaxis)
        self.ax_.set(xlabel="epoch", ylabel="loss")
        self.ax_.legend()
        return self
