"""Gauss-Newton steps at the end, which find the last digits of the parameters of a curve.

Near the minimum the loss has no digits left to judge steps by: it is flat there to the square of the error. The
relative offset |Q'r| / |r|, the share of the residuals that the Jacobian still explains, falls with the error itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sklm.engine.linearization import Point
from sklm.engine.quadratic import QuadraticModel

STEPS = 30
POLISHED = 1e-12  # relative offset below which rounding is all that is left
LAST = 1e-14  # relative offset that a step will leave, from which on it is the last and not looked at again
SHORTEST_STEP = 1 / 8  # Gauss-Newton steps overshoot where residuals are large: they are halved down to this


def polish(
    model: QuadraticModel, linearize: Callable[[Point], QuadraticModel], *, fall: float, rounding: float
) -> tuple[Point, QuadraticModel]:
    """Make undamped steps as long as they lower the offset and, but for rounding, not raise the loss.

    Parameters
    ----------
    model : QuadraticModel
        Of a problem solved by QR.
    linearize : callable
        Returns such a model at another point.
    fall : float
        By how much a step is expected to lower the offset: known from the step before, or 1.
    rounding : float
        Relative rounding of the loss.

    Returns
    -------
    point : Point
        The last point reached.
    model : QuadraticModel
        There, or before the last step where that was too short to change it.
    """
    point, length = model.at.point, 1.0
    for _ in range(STEPS):
        if model.offset <= POLISHED:
            break
        step, _ = model.propose(torch.zeros_like(model.at.theta), length)
        if step is None:
            break
        trial = model.at.trial(step)
        near = model.at.reduction(trial) >= -rounding * abs(point.loss)
        if near and length == 1 and model.offset * fall <= LAST:  # the Jacobian there is the same
            return trial, model
        found = linearize(trial) if near else model
        if found.offset < model.offset:
            fall = found.offset / model.offset
            point, model = trial, found
        elif length > SHORTEST_STEP:
            length /= 2
        else:
            break
    return point, model
