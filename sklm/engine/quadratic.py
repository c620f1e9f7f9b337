"""The quadratic model of the loss at a point: what it says of the point, and the steps that it proposes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sklm.engine.bounds import bounded_step, held
from sklm.engine.convergence import largest, largest_cosine, relative_offset
from sklm.engine.jacobian import DIFFERENCE
from sklm.engine.linearization import Linearization
from sklm.engine.solvers import QR, SubProblem

ACCELERATION_RATIO = 0.75  # of Transtrum and Sethna 2012, eq. 15


@dataclass(frozen=True)
class QuadraticModel:
    """The damped sub-problem of a batch at a point, within the box of the module.

    Parameters
    ----------
    at : Linearization
    problem : SubProblem
        What a solver made of it.
    solver : str
        The solver, and why it was chosen.
    """

    at: Linearization
    problem: SubProblem
    solver: str

    @cached_property
    def cosine(self) -> float:
        """Largest cosine between the residuals and a column of the Jacobian, of the parameters that no bound holds."""
        free = self._free
        return largest_cosine(self.problem.gradient[free], self.problem.diagonal[free], self._residual_size)

    @cached_property
    def offset(self) -> float:
        """How much of the residuals the Jacobian can still explain: |Q'r| / |r| over the free parameters."""
        if not isinstance(self.problem, QR):
            return math.nan
        return relative_offset(self.problem.triangle[:, self._free], self.problem.target, self._residual_size)

    @property
    def _free(self) -> Tensor | slice:
        """Which parameters no bound holds."""
        bounds = self.at.bounds
        return slice(None) if bounds is None else ~held(self.at.theta, self.problem.gradient, *bounds)

    @property
    def _residual_size(self) -> float:
        """Norm of the residuals for the stopping tests, of which the loss is half the square.

        The residuals of a likelihood are derivatives over the roots of its curvature: one row that is wrong and
        saturated, where that vanishes, may be 1e8 large, and beside it every gradient would look small.
        """
        loss = self.at.point.loss
        return min(self.problem.residual_norm, math.sqrt(2 * loss)) if loss > 0 else self.problem.residual_norm

    def propose(self, damping: Tensor, lr: float, *, accelerate: bool = False) -> tuple[Tensor | None, float]:
        """Return a step, and the reduction of the loss that the model predicts for it.

        Parameters
        ----------
        damping : Tensor of shape (n_selected,)
            The diagonal lambda D.
        lr : float
            Step length.
        accelerate : bool
            Whether to add half the geodesic acceleration.

        Returns
        -------
        step : Tensor of shape (n_selected,) or None
            None where the factorization fails, or the acceleration says that the model does.
        predicted : float
            nan without a step.
        """
        problem, theta, bounds = self.problem, self.at.theta, self.at.bounds
        inside = True
        if bounds is None:
            direction = problem.solve(damping)
        else:
            direction, free = bounded_step(problem, damping, theta, *bounds)
            inside = bool(free.all())
        if direction is None or not math.isfinite(largest(direction)):
            return None, math.nan
        step = lr * direction
        if bounds is not None and lr > 1:
            step = (theta + step).clamp(*bounds) - theta
            inside = False
        if inside:
            damped = float(damping @ direction.square())
            predicted = lr * ((1 - lr / 2) * float(problem.quadratic(direction)) + damped)
        else:
            predicted = float(-(problem.gradient @ step) - problem.quadratic(step) / 2)
        if accelerate and inside and self.at.batch.seed is None and damped:
            correction = self._correction(direction)
            if correction is not None:
                if not 2 * math.sqrt(float(damping @ correction.square()) / damped) <= ACCELERATION_RATIO:
                    return None, math.nan
                step = step + lr**2 / 2 * correction
        return step, predicted

    def _correction(self, direction: Tensor) -> Tensor | None:
        """Return the geodesic acceleration along `direction`; None where there is none, or it would be rounding."""
        at, function = self.at, self.at.function
        theta, outputs, inputs = at.point.theta, at.point.outputs, at.batch.inputs
        full = at.scattered(direction)
        back = theta - DIFFERENCE * full
        if not torch.equal(back, at.clipped(back)):
            return None
        second = function.second_derivative(theta, full, inputs, outputs)
        rounding = 10 * torch.finfo(second.dtype).eps / DIFFERENCE**2
        if float(torch.linalg.vector_norm(second)) <= rounding * float(torch.linalg.vector_norm(outputs)):
            return None
        _, factor = at.criterion.linearize(outputs, at.batch.targets)
        pushed = (factor * second[:, None]).sum(2, keepdim=True)
        curved = (factor * pushed).sum(1) * at.batch.weights[:, None]
        correction = -self.problem.apply_inverse(at.selected(function.pullback(theta, curved, inputs)))
        return correction if math.isfinite(largest(correction)) else None  # the module may have no value further on
