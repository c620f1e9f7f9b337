"""Ready curves of one column x, each with a `guess` of its parameters from data.

Most models are linear in some parameters (an amplitude, an offset) once the others are known (a rate, a center). Their
guess lays a grid over the others, scaled to the data, solves a small least-squares problem for the linear ones at every
grid point and returns the best (separable least squares: Golub and Pereyra 1973). It uses no random numbers, and a
parameter with an initial value keeps it while the others are guessed.

The functions avoid nan in values and in derivatives with respect to parameters: at x = 0, where an exponential
overflows, and on a bound, where a width is 0.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sklm.curves.curve import Bounds, ReadyCurve

MAX_ROWS = 512  # of the data: enough to rank candidates
RIDGE = 1e-8  # relative: keeps coefficients finite where columns are collinear, too small to matter elsewhere
POSITIVE = (0, None)


class SeparableCurve(ReadyCurve):
    """A ready curve that is linear in some of its parameters; `candidates` gives the grid of the others.

    Attributes
    ----------
    linear : tuple of str
        Parameters in which `function` is linear and homogeneous, jointly.
    """

    linear: ClassVar[tuple[str, ...]] = ()

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        """Return the grid of the nonlinear parameters, each of shape (n_candidates,), for x sorted ascending."""
        raise TypeError("a separable curve overrides `candidates`.")

    def guess(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        x, y, weights = thinned(x, y, weights)
        given = {name: self._parameters[name].item() for name in self._given}  # type: ignore[union-attr]
        grid = {name: values.new_tensor([given[name]]).expand_as(values) if name in given else values
                for name, values in self.candidates(x).items()}  # fmt: skip
        rows = {name: values[:, None] for name, values in grid.items()}
        free = [name for name in self.linear if name not in given]
        zeros = {name: x.new_zeros(()) for name in self.linear}

        def values(**linear: Tensor) -> Tensor:
            return self.function(x, **{**zeros, **linear}, **rows).broadcast_to(len(rows[next(iter(rows))]), len(x))

        columns = [values(**{name: x.new_ones(())}) for name in free]
        known = values(**{name: x.new_tensor(given[name]) for name in self.linear if name in given})
        best, coefficients = best_candidate(columns, y - known, weights)
        return {name: float(values[best]) for name, values in grid.items()} | given | dict(
            zip(free, coefficients, strict=True)
        )


def thinned(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return at most MAX_ROWS rows, on the CPU and in float64, with weights of mean 1.

    Rows are taken at multiples of the golden ratio, so evenly but without a period that a wave could share.
    """
    x, y, weights = (part.detach().cpu().double() for part in (x, y, weights))
    if len(x) > MAX_ROWS:
        places = torch.arange(MAX_ROWS, dtype=torch.float64) * ((math.sqrt(5) - 1) / 2) % 1
        rows = torch.unique((places * len(x)).long())
        x, y, weights = x[rows], y[rows], weights[rows]
    total = float(weights.sum())
    return x, y, weights * (len(x) / total) if total > 0 else torch.ones_like(weights)


def best_candidate(columns: Sequence[Tensor], y: Tensor, weights: Tensor) -> tuple[int, list[float]]:
    """Return the candidate whose columns fit best, and its coefficients.

    Parameters
    ----------
    columns : sequence of Tensor of shape (n_candidates, n_samples)
        One for each linear parameter; an empty sequence asks for nothing, and gets the first candidate.
    y : Tensor of shape (n_samples,) or (n_candidates, n_samples)
    weights : Tensor of shape (n_samples,)
    """
    y = torch.nan_to_num(y, 0.0, 0.0, 0.0)
    height = float(y.abs().max()) or 1.0
    root = weights.sqrt()
    target = (y / height * root)[..., None]
    if not columns:
        return int(target.square().sum((-2, -1)).argmin()), []
    stack = torch.stack(list(columns), dim=2)
    finite = torch.isfinite(stack).all(2).all(1)
    stack = torch.nan_to_num(stack, 0.0, 0.0, 0.0)
    largest = stack.abs().amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    stack = stack / largest * root[:, None]
    norms = stack.square().sum(1, keepdim=True).sqrt()
    norms = torch.where(norms > 0, norms, 1.0)
    stack = stack / norms
    gram = stack.mT @ stack + RIDGE * torch.eye(stack.shape[2]).to(stack)
    solution = torch.linalg.solve(gram, stack.mT @ target)
    losses = (stack @ solution - target).square().sum((1, 2)) + RIDGE * solution.square().sum((1, 2))
    best = int(torch.where(finite & torch.isfinite(losses), losses, torch.inf).argmin())
    return best, (solution[best, :, 0] * height / norms[best, 0] / largest[best, 0]).tolist()


def extent(x: Tensor) -> tuple[float, float, float]:
    """Return the lowest and the highest x, and a span that is never 0."""
    low, high = float(x.min()), float(x.max())
    return low, high, high - low or abs(high) or 1.0


def powers_of_ten(low: float, high: float, n: int) -> Tensor:
    return torch.logspace(low, high, n, dtype=torch.float64)


def product(**axes: Tensor) -> dict[str, Tensor]:
    """Return all combinations of values of the parameters."""
    mesh = torch.meshgrid(*axes.values(), indexing="ij")
    return {name: values.reshape(-1) for name, values in zip(axes, mesh, strict=True)}


def both_signs(values: Tensor) -> Tensor:
    return torch.cat([values, -values])


def nonzero(value: Tensor) -> Tensor:
    """Return a width or a scale away from 0, far enough for its inverse square not to overflow."""
    floor = torch.finfo(value.dtype).tiny ** (1 / 3)
    return torch.where(value.abs() < floor, floor, value)


def power(x: Tensor, exponent: Tensor) -> Tensor:
    """Return x**exponent for x >= 0 with derivatives that are finite at 0, nan for x < 0."""
    limit = torch.where(exponent > 0, 0.0, torch.where(exponent < 0, torch.inf, 1.0)).to(x.dtype)
    return torch.where(x == 0, limit, torch.exp(exponent * torch.log(torch.where(x == 0, 1.0, x))))


def polynomial(x: Tensor, y: Tensor, weights: Tensor, degree: int) -> list[float]:
    """Return coefficients c0, c1, ... by weighted least squares, of smallest norm where there are too few points."""
    x, y, weights = (part.detach().cpu().double() for part in (x, y, weights))
    if not float(weights.sum()) > 0:
        weights = torch.ones_like(weights)
    low, high, span = extent(x)
    center, scale = (low + high) / 2, span / 2
    root = weights.sqrt()[:, None]
    columns = ((x - center) / scale)[:, None] ** torch.arange(degree + 1)
    solution = torch.linalg.lstsq(columns * root, y[:, None] * root, driver="gelsd").solution[:, 0].tolist()
    coefficients = [0.0] * (degree + 1)
    for k, value in enumerate(solution):  # (x - center)**k / scale**k in powers of x
        for j in range(k + 1):
            coefficients[j] += value * math.comb(k, j) * (-center) ** (k - j) / scale**k
    return coefficients


class Line(ReadyCurve):
    """Straight line, slope * x + intercept; guessed by least squares.

    Parameters
    ----------
    slope : float, units of y / x
    intercept : float, units of y

    Examples
    --------
    >>> from sklm import LMRegressor
    >>> model = LMRegressor(Line).fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])
    >>> {name: round(value, 6) for name, value in model.parameters_.items()}
    {'slope': 2.0, 'intercept': 1.0}
    """

    @staticmethod
    def function(x: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
        return slope * x + intercept

    def guess(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        intercept, slope = polynomial(x, y, weights, 1)
        return {"slope": slope, "intercept": intercept}


class Polynomial(ReadyCurve):
    """Polynomial, c0 + c1 * x + c2 * x**2 + ...; guessed by least squares.

    Parameters
    ----------
    degree : int, default=2
        Highest power, at least 1.
    c0, c1, ... : float, units of y, y / x, ...
    """

    def __init__(
        self,
        n_features_in: int = 1,
        feature_names_in: Sequence[str] | None = None,
        *,
        degree: int = 2,
        bounds: Bounds | None = None,
        fixed: str | Iterable[str] = (),
        **initial: float,
    ) -> None:
        self.degree = checked_count("degree", degree)
        terms = ["c0", "c1 * x", *(f"c{k} * x**{k}" for k in range(2, self.degree + 1))]
        self.function = " + ".join(terms)  # type: ignore[assignment]
        super().__init__(n_features_in, feature_names_in, bounds=bounds, fixed=fixed, **initial)

    def guess(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        return {f"c{k}": value for k, value in enumerate(polynomial(x, y, weights, self.degree))}


def checked_count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`module__{name}` must be an integer >= 1; got {value!r}.")
    return int(value)


def _rates(x: Tensor) -> Tensor:
    """Return rates of both signs, none so large that the exponential of rate * x overflows."""
    low, high, span = extent(x)
    largest = 0.9 * math.log(torch.finfo(x.dtype).max) / max(abs(low), abs(high), 1e-300)
    return both_signs(powers_of_ten(-1.5, 2.5, 65) / span).clamp(-largest, largest)


class ExponentialDecay(SeparableCurve):
    """Exponential decay towards an offset, offset + amplitude * exp(-rate * x); guessed on a grid of rates.

    Parameters
    ----------
    amplitude : float, units of y
    rate : float, units of 1 / x; negative for a growth
    offset : float, units of y
    """

    linear = ("amplitude", "offset")

    @staticmethod
    def function(x: Tensor, amplitude: Tensor, rate: Tensor, offset: Tensor) -> Tensor:
        return offset + amplitude * torch.exp(-rate * x)

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        return {"rate": _rates(x)}


class ExponentialGrowth(SeparableCurve):
    """Exponential growth, amplitude * exp(rate * x); guessed on a grid of rates.

    Parameters
    ----------
    amplitude : float, units of y
    rate : float, units of 1 / x; negative for a decay
    """

    linear = ("amplitude",)

    @staticmethod
    def function(x: Tensor, amplitude: Tensor, rate: Tensor) -> Tensor:
        return amplitude * torch.exp(rate * x)

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        return {"rate": _rates(x)}


class PowerLaw(SeparableCurve):
    """Power law, amplitude * x**exponent for x > 0 (and x = 0, if exponent > 0); guessed on a grid of exponents.

    Parameters
    ----------
    amplitude : float, units of y / x**exponent
    exponent : float
    """

    linear = ("amplitude",)

    @staticmethod
    def function(x: Tensor, amplitude: Tensor, exponent: Tensor) -> Tensor:
        return amplitude * power(x, exponent)

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        return {"exponent": both_signs(powers_of_ten(-2, 1, 61))}
