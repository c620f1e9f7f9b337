"""Stopping tests, scale-free, as MINPACK defines them (More, Garbow and Hillstrom 1980, section 2.3 and `lmder`).

| test | passes when |
|---|---|
| ``gtol`` | the cosine between the residuals and every column of the Jacobian is at most gtol |
| ``ftol`` | actual and predicted relative reduction of the loss are at most ftol, and the gain ratio at most 2 |
| ``xtol`` | the step is at most xtol times the parameters, both measured in the norm of the scaling matrix D |

The columns and residuals are those of the weighted problem, the penalty included. A loss of exactly zero passes `gtol`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sklm.engine._checks import check_real

RANK_ROUNDING = 4096  # singular values, of columns of norm 1, below so many times the machine epsilon are rounding


@dataclass(frozen=True)
class ConvergenceTests:
    """The three tolerances; None disables a test."""

    ftol: float | None
    xtol: float | None
    gtol: float | None

    def __post_init__(self) -> None:
        for name in ("ftol", "xtol", "gtol"):
            if getattr(self, name) is not None:
                check_real(name, getattr(self, name), minimum=0)

    def at_point(self, cosine: float) -> str:
        """Return the sentence of the gradient test when it passes for the largest cosine, else an empty string."""
        if self.gtol is None:
            return ""
        if cosine <= self.gtol:
            return f"the scaled gradient {cosine:.2g} is at most gtol={self.gtol:g}"
        return ""

    def after_attempt(
        self,
        *,
        loss: float,
        actual_reduction: float,
        predicted_reduction: float,
        step_norm: float,
        parameter_norm: float,
    ) -> str:
        """Return the sentence of the first test that an attempt passes, else an empty string."""
        if self.ftol is not None:
            actual, predicted = abs(actual_reduction), predicted_reduction
            limit = self.ftol * abs(loss)
            if actual <= limit and predicted <= limit and actual_reduction <= 2 * predicted:
                relative = max(actual, predicted) / abs(loss) if loss else 0.0
                return f"the relative reduction of the loss {relative:.2g} is at most ftol={self.ftol:g}"
        if self.xtol is not None and step_norm <= self.xtol * parameter_norm:
            relative = step_norm / parameter_norm if parameter_norm else 0.0
            return f"the relative step {relative:.2g} is at most xtol={self.xtol:g}"
        return ""


def largest(values: Tensor) -> float:
    """Return the largest absolute value: nan or infinite where one is, 0 where there is none."""
    return float(torch.linalg.vector_norm(values, math.inf)) if values.numel() else 0.0


def largest_cosine(gradient: Tensor, diagonal: Tensor, residual_norm: float) -> float:
    """Return the largest |cosine| between a column of the Jacobian and the residuals.

    Parameters
    ----------
    gradient, diagonal : Tensor of shape (n_params,)
        A'r and the squared norms of the columns of A.
    residual_norm : float
        Norm of r.
    """
    if not math.isfinite(residual_norm) or not math.isfinite(largest(diagonal)):
        return math.inf
    norms = diagonal.sqrt() * residual_norm
    cosines = (gradient.abs() / norms).where(norms != 0, 0.0)
    return largest(cosines)


def relative_offset(triangle: Tensor, target: Tensor, residual_norm: float) -> float:
    """Return the norm of the residuals' projection on the columns of the Jacobian, over that of the residuals.

    Columns that others make up to rounding count once.

    Parameters
    ----------
    triangle : Tensor of shape (m, p)
        R of A = QR.
    target : Tensor of shape (m,)
        Q'r.
    residual_norm : float
        Norm of r.
    """
    norms = torch.linalg.vector_norm(triangle, dim=0)
    scaled = triangle / torch.where(norms > 0, norms, 1.0)
    if not residual_norm > 0 or not triangle.shape[1] or not math.isfinite(largest(scaled)):
        return 0.0 if residual_norm == 0 or not triangle.shape[1] else math.inf
    left, values, _ = torch.linalg.svd(scaled, full_matrices=False)
    seen = values > RANK_ROUNDING * torch.finfo(values.dtype).eps * values[0]
    return float(torch.linalg.vector_norm(left[:, seen].T @ target)) / residual_norm
