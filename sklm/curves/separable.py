"""What ready curves share: separable least squares for their guess, and functions that are safe at 0.

Most models are linear in some parameters (an amplitude, an offset) once the others are known (a rate, a center). Their
guess lays a grid over the others, scaled to the data, solves a small least-squares problem for the linear ones at every
grid point and returns the best (separable least squares: Golub and Pereyra 1973). It uses no random numbers, and a
parameter with an initial value keeps it while the others are guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sklm.curves.curve import ReadyCurve

MAX_ROWS = 512  # of the data: enough to rank candidates
RIDGE = 1e-14  # relative: keeps coefficients finite where columns are collinear; below the square of signal over offset


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
        given = self.given
        grid = {name: values.new_tensor([given[name]]).expand_as(values) if name in given else values
                for name, values in self.candidates(x).items()}  # fmt: skip
        rows = {name: values[:, None] for name, values in grid.items()}
        free = [name for name in self.linear if name not in given]
        zeros = {name: x.new_zeros(()) for name in self.linear}

        def values(**linear: Tensor) -> Tensor:
            return self.function(x, **{**zeros, **linear}, **rows).broadcast_to(len(rows[next(iter(rows))]), len(x))

        columns = [values(**{name: x.new_ones(())}) for name in free]
        known = values(**{name: x.new_tensor(given[name]) for name in self.linear if name in given})
        best, coefficients = best_candidate(columns, y, weights, known)
        return (
            {name: float(values[best]) for name, values in grid.items()}
            | given
            | dict(zip(free, coefficients, strict=True))
        )


def thinned(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return at most MAX_ROWS rows, on the CPU and in float64, with weights of mean 1.

    Rows are taken at multiples of the golden ratio, so evenly but without a period that a wave could share.
    """
    x, y, weights = (part.detach().cpu().double() for part in (x, y, weights))
    if len(x) > MAX_ROWS:
        places = torch.arange(MAX_ROWS, dtype=torch.float64, device="cpu") * ((math.sqrt(5) - 1) / 2) % 1
        rows = torch.unique((places * len(x)).long())
        x, y, weights = x[rows], y[rows], weights[rows]
    total = float(weights.sum())
    return x, y, weights * (len(x) / total) if total > 0 else torch.ones_like(weights)


def best_candidate(
    columns: Sequence[Tensor], y: Tensor, weights: Tensor, known: Tensor | None = None
) -> tuple[int, list[float]]:
    """Return the candidate whose columns fit best, and its coefficients.

    Parameters
    ----------
    columns : sequence of Tensor of shape (n_candidates, n_samples)
        One for each linear parameter; an empty sequence asks for nothing, and gets the first candidate.
    y, weights : Tensor of shape (n_samples,)
    known : Tensor of shape (n_candidates, n_samples), default=None
        What every candidate adds to the columns.
    """
    if not columns and known is None:
        return 0, []
    height = float(y.abs().max()) or 1.0
    left = (y if known is None else y - known)[..., None] / height
    stack = torch.stack(list(columns), dim=2) if columns else y.new_zeros(len(left), len(y), 0)
    every = torch.cat([stack, left.expand(len(stack), -1, -1)], dim=2)
    usable = torch.isfinite(every).any(0).all(1)  # not so at x < 0 for a power
    finite = torch.isfinite(every[:, usable]).all(2).all(1)
    root = torch.where(usable, weights, 0.0).sqrt()
    target = torch.nan_to_num(left, 0.0, 0.0, 0.0) * root[:, None]
    if not columns:
        losses = target.square().sum((1, 2))
        return int(torch.where(finite & torch.isfinite(losses), losses, torch.inf).argmin()), []
    stack = torch.nan_to_num(stack, 0.0, 0.0, 0.0)
    largest = stack.abs().amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    stack = stack / largest * root[:, None]
    norms = stack.square().sum(1, keepdim=True).sqrt()
    norms = torch.where(norms > 0, norms, 1.0)
    stack = stack / norms
    gram = stack.mT @ stack + RIDGE * torch.eye(stack.shape[2], device=stack.device).to(stack)
    solution = torch.linalg.solve(gram, stack.mT @ target)
    losses = (stack @ solution - target).square().sum((1, 2)) + RIDGE * solution.square().sum((1, 2))
    best = int(torch.where(finite & torch.isfinite(losses), losses, torch.inf).argmin())
    return best, (solution[best, :, 0] * height / norms[best, 0] / largest[best, 0]).tolist()


def extent(x: Tensor) -> tuple[float, float, float]:
    """Return the lowest and the highest x, and a span that is never 0."""
    low, high = float(x.min()), float(x.max())
    return low, high, high - low or abs(high) or 1.0


def powers_of_ten(low: float, high: float, n: int) -> Tensor:
    """Return n values from 10**low to 10**high."""
    return torch.logspace(low, high, n, dtype=torch.float64, device="cpu")


def product(**axes: Tensor) -> dict[str, Tensor]:
    """Return all combinations of values of the parameters."""
    mesh = torch.meshgrid(*axes.values(), indexing="ij")
    return {name: values.reshape(-1) for name, values in zip(axes, mesh, strict=True)}


def both_signs(values: Tensor) -> Tensor:
    """Return the values and their negatives."""
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
    columns = ((x - center) / scale)[:, None] ** torch.arange(degree + 1, device=x.device)
    solution = torch.linalg.lstsq(columns * root, y[:, None] * root, driver="gelsd").solution[:, 0].tolist()
    coefficients = columns.new_zeros(degree + 1)
    powers = [columns.new_tensor([-center, 1 / scale]) ** k for k in range(degree + 1)]  # tensors: no overflow errors
    for k, value in enumerate(solution):  # ((x - center) / scale)**k in powers of x
        for j in range(k + 1):
            coefficients[j] += value * math.comb(k, j) * powers[k - j][0] * powers[k][1]
    return torch.nan_to_num(coefficients, 0.0, 0.0, 0.0).tolist()
