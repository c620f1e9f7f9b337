"""Profile likelihood: how the loss rises along one parameter when all others are fitted anew."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from sklm.engine import LevenbergMarquardt
from sklm.engine.jacobian import ModuleFunction
from sklm.engine.losses import Elementwise, SquaredError, plain_form
from sklm.inference import Inference, Problem

REFIT_STEPS = 100
JUMP = 0.01  # share of a quantile by which z misses it where it is not continuous
EXACT = 1e3  # times the machine epsilon: residuals below it, relative to the targets, are rounding
LEVEL = 1e-6  # share of a quantile: where z rises by less while the distance doubles, the loss has a limit
MAX_DOUBLINGS = 12  # of the distance from the estimate: an interval 4096 times as wide as Wald's has no end


def profile(
    problem: Problem, inference: Inference, index: int, *, levels: list[float], n_points: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follow the profile likelihood of one parameter: refit all others with it held.

    With z(v)^2 = 2 W (F(v) - F(estimate)) / dispersion, signed as v - estimate, z would be a straight line for a linear
    model; the interval of a level ends where |z| is its quantile (Bates and Watts 1988, section 6.1).

    Parameters
    ----------
    problem : Problem
    inference : Inference
    index : int
        The parameter.
    levels : list of float
        Levels of the intervals.
    n_points : int
        Points of the profile to return, over the interval of the largest level.

    Returns
    -------
    ends : ndarray of shape (n_levels, 2)
        Lower and upper ends; a bound or an infinity where |z| stays below the quantile.
    values, z : ndarray of shape (n_points,)
    """
    loss, scale = plain_form(problem.criterion, inference.n_outputs)
    if isinstance(loss, Elementwise) and not isinstance(loss, SquaredError):
        raise ValueError(
            "method='profile' needs the squared error or a likelihood, as robust losses have none; use method='wald'."
        )
    if isinstance(loss, Elementwise) and inference.n_outputs > 1:
        raise ValueError("method='profile' needs one output, as each has a variance of its own; use method='wald'.")
    path = _Path(problem, inference, index, scale)
    quantiles = [inference.quantile(level) for level in levels]
    ends = np.array([[path.crossing(-q), path.crossing(q)] for q in quantiles])
    values = np.empty(0)
    if n_points:
        widest = ends[int(np.argmax(quantiles))]
        reach = inference.estimates[index] + path.step * max(quantiles) * np.array([-3, 3])
        low, high = np.where(np.isfinite(widest), widest, reach)
        values = np.linspace(low, high, n_points)
    return ends, values, np.array([path.z(value) for value in values])


def _is_exact(problem: Problem, inference: Inference) -> bool:
    """Return whether residuals are no more than rounding, over which the loss does not rise smoothly."""
    if problem.absolute_sigma or not isinstance(plain_form(problem.criterion, inference.n_outputs)[0], SquaredError):
        return False
    squares = problem.targets.reshape(len(problem.weights), -1).square().sum(1)
    rounding = EXACT * torch.finfo(torch.float64).eps
    return inference.dispersion <= rounding**2 * float(problem.weights @ squares) / len(squares)


class _Path:
    """The profile of one parameter: refits along it, each from the nearest one before."""

    def __init__(self, problem: Problem, inference: Inference, index: int, scale: float) -> None:
        self.problem, self.inference, self.index = problem, inference, index
        module = copy.deepcopy(problem.module)
        everything: dict[str, Any] = dict.fromkeys(ModuleFunction(module).parameters, (None, None))
        self.optimizer = LevenbergMarquardt(
            module,
            problem.criterion,
            alpha=problem.alpha,
            ftol=1e-14,
            xtol=1e-12,
            gtol=1e-12,
            bounds={**everything, **problem.bounds},
            acceleration="auto",
            seed=0,
        )
        box: Any = self.optimizer.box
        self.box, self.lower, self.upper = box, box.lower.clone(), box.upper.clone()
        self.damping = self.optimizer.damping.state_dict()
        self.estimate = float(inference.estimates[index])
        self.factor = 2 * float(problem.weights.sum()) / scale / (inference.dispersion or math.nan)
        error = inference.standard_errors[index]
        self.step = float(error) if error > 0 else max(abs(self.estimate), 1.0)
        self.is_exact = _is_exact(problem, inference)
        covariance = inference.covariance[:, index]
        has_slope = error > 0 and math.isfinite(covariance[index])
        slope = np.nan_to_num(covariance / covariance[index]) if has_slope else np.zeros_like(covariance)
        best = self.optimizer.function.vector()
        self.slope = torch.as_tensor(slope).to(best)
        self.loss = 0.0
        self.loss, vector, _ = self._refit(best, self.estimate)
        self.solved = {self.estimate: (vector, self.loss)}  # value: the parameters there, and the loss
        self.stride = self.step / 2
        self.has_warned = False  # of a lower minimum

    def _refit(self, vector: Tensor, value: float) -> tuple[float, Tensor, bool]:
        """Fit the others from `vector`; return the loss, their solution and whether it is one."""
        optimizer, problem = self.optimizer, self.problem
        vector = vector.clamp(self.lower, self.upper)
        vector[self.index] = value
        self.box.lower, self.box.upper = self.lower.clone(), self.upper.clone()
        self.box.lower[self.index] = self.box.upper[self.index] = value
        optimizer.function.assign(vector)
        optimizer.damping.load_state_dict(self.damping)
        halfway = math.inf
        for step in range(REFIT_STEPS):
            result = optimizer.step(problem.inputs, problem.targets, problem.weights)
            if result.status != "running":
                break
            if step == REFIT_STEPS // 2:
                halfway = result.loss
        # with the others on their way to infinity the loss has a limit, which is what counts
        level = halfway - result.loss <= 1e-4 * abs(result.loss - self.loss)
        solved = math.isfinite(result.loss) and (result.status != "running" or level)
        return result.loss, optimizer.function.vector(), solved

    def _solve(self, value: float, nearest: float) -> bool:
        """Refit at `value` from the solution at `nearest`, along the secant there; return whether that worked."""
        start = self.solved[nearest][0]
        others = [v for v in self.solved if (v - nearest) * (value - nearest) < 0]
        slope = self.slope
        if others:
            other = min(others, key=lambda v: abs(v - nearest))
            slope = (start - self.solved[other][0]) / (nearest - other)
        predicted = start + slope * (value - nearest)
        predicted = torch.where((predicted <= self.lower) | (predicted >= self.upper), start, predicted)
        loss, vector, solved = self._refit(predicted, value)
        reach = abs(self._root(loss)) if math.isfinite(loss) else math.inf
        if not solved or reach > 1 + 2 * abs(value - self.estimate) / self.step:  # perhaps another valley
            inner = min(
                (v for v in self.solved if (v - self.estimate) * (value - v) >= 0), key=lambda v: abs(v - value)
            )
            for place in dict.fromkeys((nearest, inner)):
                second = self._refit(self.solved[place][0], value)
                if second[2] and (not solved or second[0] < loss):
                    loss, vector, solved = second
        if solved:
            self.solved[value] = vector, loss
        return solved

    def _root(self, loss: float) -> float:
        return math.sqrt(max(self.factor * (loss - self.loss), 0.0))

    def z(self, value: float) -> float:
        """Return the signed root of the likelihood ratio at `value`, infinite where the refits break off."""
        if value == self.estimate:
            return 0.0
        side = math.copysign(1.0, value - self.estimate)
        if self.inference.dispersion == 0:
            return side * math.inf
        if self.is_exact:
            return (value - self.estimate) / self.step
        smallest = self.stride / 2**10
        while value not in self.solved:
            nearest = min(self.solved, key=lambda v: abs(v - value))
            stride = min(self.stride, abs(value - nearest))
            target = value if stride == abs(value - nearest) else nearest + math.copysign(stride, value - nearest)
            if self._solve(target, nearest):
                self.stride = min(2 * self.stride, 8 * self.step)
            elif self.stride <= smallest:
                return side * math.inf
            else:
                self.stride = min(self.stride, stride) / 2
        loss = self.solved[value][1]
        if self.factor * (loss - self.loss) < -1e-6 and not self.has_warned:
            self.has_warned = True
            name = self.inference.names[self.index]
            warnings.warn(
                f"a lower minimum than the fitted one lies at {name} = {value:g}; fit again from there.",
                RuntimeWarning,
                stacklevel=5,
            )
        return side * self._root(loss)

    def crossing(self, quantile: float) -> float:
        """Return where z is `quantile`; the bound or an infinity where it does not get so far."""
        side = math.copysign(1.0, quantile)
        limit = float((self.upper if side > 0 else self.lower)[self.index])
        name = self.inference.names[self.index]
        if self.inference.reasons.get(name) == "not identifiable":
            return limit
        if self.inference.dispersion == 0:
            return self.estimate
        if not math.isfinite(quantile) or self.estimate == limit:
            return limit if math.isfinite(quantile) else math.nan
        if not math.isfinite(self.step * quantile):
            warnings.warn(
                f"no end of the profile interval of {name}, whose standard error overflows; rescale X or y.",
                RuntimeWarning,
                stacklevel=5,
            )
            return math.nan
        if self.is_exact:
            end = self.estimate + self.step * quantile
            return min(end, limit) if side > 0 else max(end, limit)
        inner, reach = self.estimate, self.step * abs(quantile)
        for _ in range(MAX_DOUBLINGS):
            outer = self.estimate + side * reach
            at_limit = side * (outer - limit) >= 0
            outer = limit if at_limit else outer
            z = self.z(outer)
            passed = [v for v in self.solved if 0 < side * (v - inner) < side * (outer - inner)]
            passed = [v for v in passed if side * self.z(v) >= abs(quantile)]
            if passed:  # further out may lie another valley
                outer = min(passed, key=lambda v: side * v)
                z = self.z(outer)
            if side * z >= abs(quantile):
                break
            if at_limit:
                return limit
            if abs(z - self.z(inner)) <= LEVEL * abs(quantile):  # before a function overflows on the way
                return side * math.inf
            inner, reach = outer, 2 * reach
        else:
            return side * math.inf
        if not math.isfinite(z):  # the refits break off before; the crossing may lie within reach of the last
            within = [v for v in self.solved if side * (v - inner) > 0 and side * (outer - v) > 0]
            outer = max(within, key=lambda v: side * v, default=inner)
            if abs(self.z(outer)) < abs(quantile):
                warnings.warn(
                    f"no end of the profile interval of {name}: the refits break off at {outer:g}.",
                    RuntimeWarning,
                    stacklevel=5,
                )
                return math.nan
        found: float = optimize.brentq(
            lambda value: max(min(self.z(value), 1e9), -1e9) - quantile, inner, outer, xtol=1e-8 * self.step, rtol=1e-12
        )
        if abs(self.z(found) - quantile) > JUMP * abs(quantile):
            warnings.warn(
                f"no end of the profile interval of {name}: the refits jump to another minimum at {found:g}.",
                RuntimeWarning,
                stacklevel=5,
            )
            return math.nan
        return found
