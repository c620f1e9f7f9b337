"""Bounds on parameters: the damped sub-problem within a box.

A parameter that sits on a bound and would leave the box along the negative gradient is held there; the others take the
step of the sub-problem in them alone. Where that step crosses a bound it ends on the bound, and the remaining ones are
solved for again, given that. So every iterate lies in the box, and once the bounds that hold at the solution are found,
the others move as without bounds. Holding by the sign of the gradient is the projected Newton method (Bertsekas 1982,
"Projected Newton methods for optimization problems with simple constraints").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sklm.engine._checks import did_you_mean
from sklm.engine.convergence import largest
from sklm.engine.solvers import SubProblem


class Box:
    """Lower and upper bounds of all parameters, as vectors.

    Parameters
    ----------
    bounds : mapping of str to (lower, upper)
        Parameter name to its bounds: numbers or tensors of its shape, None for no bound. Equal bounds hold a parameter.
    parameters : mapping of str to Tensor
        All parameters in the order of the vector.

    Raises
    ------
    ValueError
        For an unknown name, a lower bound above the upper one, or a parameter outside its bounds.
    """

    def __init__(self, bounds: Mapping[str, tuple[Any, Any]], parameters: Mapping[str, Tensor]) -> None:
        for name in bounds:
            if name not in parameters:
                raise ValueError(
                    f"`bounds` has no trainable parameter {name!r} to hold; there are {', '.join(parameters)}"
                    f"{did_you_mean(name, parameters)}"
                )
        self.lower = torch.cat([_side(bounds, name, p, 0, -torch.inf) for name, p in parameters.items()])
        self.upper = torch.cat([_side(bounds, name, p, 1, torch.inf) for name, p in parameters.items()])
        for name, value in parameters.items():
            lower, upper = _side(bounds, name, value, 0, -torch.inf), _side(bounds, name, value, 1, torch.inf)
            if not bool((lower <= upper).all()):
                raise ValueError(f"`bounds` of {name} must have lower <= upper; got {bounds[name]}.")
            if not bool(((value.detach().reshape(-1) >= lower) & (value.detach().reshape(-1) <= upper)).all()):
                raise ValueError(
                    f"the initial value of {name} must lie within its bounds {bounds[name]}; got {value.tolist()}."
                )

    def select(self, indices: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds of the parameters at `indices` (None for all), on the device of `like`."""
        lower, upper = self.lower.to(like), self.upper.to(like)
        return (lower, upper) if indices is None else (lower[indices], upper[indices])


def _side(bounds: Mapping[str, tuple[Any, Any]], name: str, parameter: Tensor, side: int, default: float) -> Tensor:
    try:
        pair = bounds.get(name, (None, None))
        bound = default if pair[side] is None else pair[side]
        tensor = torch.as_tensor(bound, dtype=parameter.dtype, device=parameter.device)
        return tensor.detach().expand(parameter.shape).reshape(-1)
    except (TypeError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"`bounds` of {name} must be a pair (lower, upper) of numbers, None or tensors of shape "
            f"{tuple(parameter.shape)}; got {bounds[name]!r}."
        ) from error


def clip(theta: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return theta within the box, and on a bound where rounding keeps it just off."""
    rounding = 4 * torch.finfo(theta.dtype).eps
    for bound in (lower, upper):
        near = (theta - bound).abs() <= rounding * bound.abs()
        theta = torch.where(near & bound.isfinite(), bound, theta)
    return theta.clamp(lower, upper)


def held(theta: Tensor, gradient: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return which parameters (shape (p,)) sit on a bound that the negative gradient points beyond."""
    return ((theta <= lower) & (gradient >= 0)) | ((theta >= upper) & (gradient <= 0))


def bounded_step(
    problem: SubProblem, damping: Tensor, theta: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Solve the sub-problem within the box.

    Parameters
    ----------
    problem : SubProblem
    damping : Tensor of shape (p,)
        The diagonal lambda D.
    theta, lower, upper : Tensor of shape (p,)

    Returns
    -------
    step : Tensor of shape (p,) or None
        None when a factorization fails.
    free : Tensor of shape (p,), bool
        Which parameters neither were held nor end on a bound.
    """
    step = torch.zeros_like(theta)
    free = ~held(theta, problem.gradient, lower, upper)
    while bool(free.any()):
        part = problem if bool(free.all()) else problem.restrict(free, step)
        direction = part.solve(damping[free])
        if direction is None or not math.isfinite(largest(direction)):
            return None, free
        step = step.masked_scatter(free, direction)
        beyond = free & ((theta + step < lower) | (theta + step > upper))
        if not bool(beyond.any()):
            break
        step = torch.where(beyond, (theta + step).clamp(lower, upper) - theta, step)
        free = free & ~beyond
    return step, free
