"""What many candidates for a curve cost on some rows, by the criterion of the fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sklm.engine.losses import Loss, SquaredError, plain_form


@dataclass(frozen=True)
class Cost:
    """The criterion on some rows.

    Parameters
    ----------
    criterion : Loss
    targets, weights : Tensor of shape (n_samples,)
        Targets as the criterion takes them.
    """

    criterion: Loss
    targets: Tensor
    weights: Tensor

    @property
    def y(self) -> Tensor:
        """Targets in units of the curve."""
        return self.criterion.link(self.targets)

    @property
    def is_square(self) -> bool:
        return isinstance(self.criterion, SquaredError)

    def take(self, rows: Tensor, weights: Tensor | None = None) -> Cost:
        """Return the cost on some of the rows, with weights of their own where given."""
        return Cost(self.criterion, self.targets[rows], self.weights[rows] if weights is None else weights)

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the cost of every candidate, infinite where it is not finite.

        Parameters
        ----------
        outputs : Tensor of shape (n_candidates, n_samples)

        Returns
        -------
        Tensor of shape (n_candidates,)
        """
        costs = self._values(outputs) @ self.weights
        return torch.where(torch.isfinite(costs), costs, torch.inf)

    def least_squares(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return targets and weights of the least-squares problem that the criterion is near the outputs.

        Both of the shape of the outputs. It is that of iteratively reweighted least squares, and of Fisher scoring;
        rows where the criterion is not finite keep their targets, with the weights that others have.
        """
        flat = outputs.reshape(-1, 1)
        residual, factor = self.criterion.linearize(flat, self._prepared(flat))
        bend = factor.square().sum((1, 2))
        near = outputs - ((residual[:, :, None] * factor).sum((1, 2)) / bend).reshape(outputs.shape)
        weights = bend.reshape(outputs.shape)
        good = torch.isfinite(self._values(outputs)) & torch.isfinite(near) & torch.isfinite(weights)
        usual = torch.where(good, weights, torch.nan).nanmedian(1, keepdim=True).values
        weights = torch.where(good, weights, torch.nan_to_num(usual, 1.0))
        return torch.where(good, near, self.y), weights * self.weights

    def _values(self, outputs: Tensor) -> Tensor:
        flat = outputs.reshape(-1, 1)
        return self.criterion.value(flat, self._prepared(flat)).reshape(outputs.shape)

    def _prepared(self, flat: Tensor) -> Tensor:
        prepared: Tensor = self.criterion.prepare(flat, self.targets.repeat(len(flat) // len(self.targets)))
        return prepared


def cost_of_starts(criterion: Loss | None, y: Tensor, weights: Tensor) -> Cost:
    """Return the cost that starts are compared by: squared errors where the criterion has no curvature of its own."""
    plain = SquaredError() if criterion is None else plain_form(criterion, 1)[0]
    return Cost(plain, y, weights) if plain.curvature == "ggn" else Cost(SquaredError(), plain.link(y), weights)
