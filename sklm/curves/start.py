"""Where a curve starts when nobody says: a search over the scales of the data, in batches.

A rate has the scale of 1 / x, a position that of x, an exponent is near one, and so on; nothing tells which parameter
is what, so every candidate draws a role for each. Parameters that enter linearly (found by comparing derivatives) are
not drawn but solved for, candidate by candidate, which leaves few dimensions to search (the idea of variable
projection: Golub and Pereyra 1973). The best ones have children for some rounds, and of several groups of them the best
ones are improved by damped Gauss-Newton steps; the start is the best of these. All this is done on few of the rows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sklm.curves.candidates import Draws, children
from sklm.curves.cost import Cost
from sklm.curves.linear import linear_places, solve_linear
from sklm.engine.multistart import derivatives, improved

N_CANDIDATES = 2048
# Where one start is wanted of a curve with so many parameters that are not linear: groups of candidates whose best ones
# are improved together for some steps. The best of them is the start.
COMPARED = (1, 4, 16, 32, 32)
LEAST_COMPARED = 4  # where the criterion is not the squared error, which solves for what is linear
COMPARING_STEPS = 20
COMPARING_ROWS = 4096  # of the data, on which they are compared
TIED = 1e-3  # relative difference of losses of starts between which their paths between the rows decide
SAME = 1e-4  # the same of starts that are one curve by other numbers
ROUGHER = 1.1  # times the shortest path of these
BETWEEN = 4  # points between two rows of a path
GAPS = 512  # between rows that paths are followed in
N_BEST = 64  # of them from which one with a finite Jacobian is taken
ROUNDS = 6  # in which the best candidates of each group have children
MIN_GROUP = 256  # candidates of which a start is the best
LARGEST = 1e100  # of a parameter: beyond, squares overflow
MAX_ROWS = 128  # of the data: enough to rank starts

Evaluate = Callable[[Tensor, Mapping[str, Any]], Tensor]


def find_starts(
    evaluate: Evaluate,
    X: Tensor,
    cost: Cost,
    start: Mapping[str, float],
    moved: list[str],
    centers: set[str],
    box: Mapping[str, tuple[float, float]],
    *,
    n_starts: int = 1,
    guess: Mapping[str, float] | None = None,
) -> list[dict[str, float]]:
    """Return `start` with the parameters `moved` set to the best of the candidates, once for each group of them.

    Parameters
    ----------
    evaluate : callable
        ``evaluate(X, parameters)`` gives the curve, shape (n_samples,).
    X : Tensor of shape (n_samples, n_features)
    cost : Cost
        The criterion on the same rows.
    start : mapping of str to float
        All parameters.
    moved : list of str
        Parameters to set.
    centers : set of str
        Those of them whose candidates scatter around their value in `start`.
    box : mapping of str to (lower, upper)
        Bounds.
    n_starts : int
        Groups into which the candidates are parted: so the starts are good and differ.
    guess : mapping of str to float, default=None
        Values of the parameters `moved` that are compared with the best of the candidates.
    """
    first = X.reshape(len(X), -1)[:, 0]
    if bool((first.diff() < 0).any()):
        order = torch.argsort(first, stable=True)
        X, cost = X[order], cost.take(order)
    every = X, cost
    rows, shares = _telling(cost.y, cost.weights, MAX_ROWS)
    draws = Draws(X, cost.y, cost.weights, rows)
    X, cost = X[rows], cost.take(rows, shares)
    y = cost.y
    names = list(start)
    places = {name: i for i, name in enumerate(names)}

    def curve(X: Tensor, vector: Tensor) -> Tensor:
        return evaluate(X, dict(zip(names, vector.unbind(), strict=True)))

    def outputs(vectors: Tensor) -> Tensor:
        return torch.vmap(lambda vector: curve(X, vector), chunk_size=N_CANDIDATES)(vectors)

    units = torch.eye(len(names), dtype=y.dtype, device=y.device)

    def jacobian(vector: Tensor) -> Tensor:
        return derivatives(curve, X, vector, units)

    group = max(N_CANDIDATES // n_starts, MIN_GROUP)
    candidates = y.new_tensor([start[name] for name in names]).repeat(n_starts * group, 1)
    for name in moved:
        around = start[name] if name in centers else None
        candidates[:, places[name]] = draws.draw(len(candidates), around, box.get(name))
    sides = [box.get(name, (-math.inf, math.inf)) if name in moved else (start[name],) * 2 for name in names]
    lower, upper = candidates.new_tensor(sides).unbind(1)
    candidates = candidates.clamp(lower, upper)
    with warnings.catch_warnings():  # torch's own, when forward mode is first used
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        linear = linear_places(jacobian, candidates, [places[name] for name in moved if name not in centers])
        n_groups = n_starts
        if n_starts == 1:
            n_groups = COMPARED[min(len(moved) - len(linear), len(COMPARED) - 1)]
            n_groups = n_groups if cost.is_square else max(n_groups, LEAST_COMPARED)
            if len(linear) == len(moved):  # the same solution from each
                candidates = candidates[:MIN_GROUP]

        def solved(candidates: Tensor) -> tuple[Tensor, Tensor]:
            """Return the candidates with their linear parameters solved for, and their losses, by group."""
            drawn, usable = candidates, torch.ones_like(candidates[:, 0], dtype=torch.bool)
            if linear:
                candidates, usable = solve_linear(curve, X, units[linear], candidates, linear, cost)
                candidates = candidates.clamp(lower, upper)
            losses = torch.where(usable, cost(outputs(candidates)), torch.inf)
            if linear and not cost.is_square:  # which may not be finite at any solution, as of a mean count below 0
                others = cost(outputs(drawn))
                candidates = torch.where((others < losses)[:, None], drawn, candidates)
                losses = torch.minimum(others, losses)
            losses = losses.reshape(n_groups, -1)
            return candidates.reshape(*losses.shape, -1), losses

        candidates, losses = solved(candidates)
        bent = [places[name] for name in moved if places[name] not in linear]
        if n_starts == 1 and len(bent) > 1:
            for _ in range(ROUNDS):
                more, their = solved(children(candidates, losses, bent).clamp(lower, upper).flatten(0, 1))
                candidates, losses = torch.cat([candidates, more], 1), torch.cat([losses, their], 1)
        order = torch.argsort(losses, dim=1)[:, :N_BEST]
        best = torch.take_along_dim(candidates, order[:, :, None], dim=1)
        jacobians = torch.vmap(jacobian, chunk_size=N_CANDIDATES)(best.flatten(0, 1))
        smooth = torch.isfinite(jacobians.square().sum(1)).all(1).reshape(order.shape)
    first = (smooth & (best.abs() < LARGEST).all(2)).long().argmax(1)
    groups = torch.arange(n_groups, device=best.device)
    chosen, least = best[groups, first], losses[groups, order[groups, first]]
    if n_groups > n_starts:
        if guess is not None:
            chosen = torch.cat([chosen, chosen.new_tensor([[{**start, **guess}[name] for name in names]])])
        data = X, cost.targets, cost.weights
        found, reached = improved(curve, chosen, cost.criterion, *data, lower, upper, steps=COMPARING_STEPS)
        usable = torch.isfinite(reached)
        chosen = _best(curve, found[usable], *every) if bool(usable.any()) else chosen[least.argmin()][None]
    return [dict(zip(names, values, strict=True)) for values in chosen.tolist()]


def _telling(y: Tensor, weights: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Return at most `n_rows` rows of data sorted by x that tell most, and weights with which they stand for all.

    One half lies evenly, the other where y deviates from its mean, or a narrow peak would lie between the rows.
    """
    if len(y) <= n_rows:
        return torch.arange(len(y), device=y.device), weights
    deviation = (y - (weights @ y) / weights.sum()).abs()
    deviation = weights * (deviation / deviation.max()).square()
    density = 0.5 / len(y) + 0.5 * torch.nan_to_num(deviation / deviation.sum())
    quantiles = torch.linspace(0, 1, n_rows, dtype=y.dtype, device=y.device)  # with both ends of x
    total = torch.cumsum(density, 0)
    rows = torch.unique(torch.searchsorted(total, quantiles * total[-1]).clamp_max(len(y) - 1))
    return rows, weights[rows] / (n_rows * density[rows]).clamp_max(1.0)


def _best(curve: Callable[[Tensor, Tensor], Tensor], points: Tensor, X: Tensor, cost: Cost) -> Tensor:
    """Return the best point, as a row; of points that fit equally one whose curve goes straight between the rows.

    So of the frequencies that cannot be told apart on even x, the aliases, the lowest is taken; and of the signs and
    phases of one curve those with the fewest negative numbers, and of these the smallest.
    """
    rows, shares = _telling(cost.y, cost.weights, COMPARING_ROWS)
    cost = cost.take(rows, shares)

    def values(X: Tensor, points: Tensor) -> Tensor:
        return torch.vmap(lambda point: curve(X, point), chunk_size=N_CANDIDATES)(points)

    losses = cost(values(X[rows], points))
    level = (cost.weights @ cost.y) / cost.weights.sum()
    rounding = torch.finfo(level.dtype).eps * cost(level.expand(1, len(rows)))
    tied = losses <= losses.min() * (1 + TIED) + rounding
    differ = (points - points[losses.argmin()]).abs() > TIED * points.abs()
    if bool((tied & differ.any(1)).any()) and len(X) > 1 and X.is_floating_point():
        starts = torch.randperm(len(X) - 1, device="cpu")[:GAPS].to(X.device)
        along = torch.rand(len(starts), BETWEEN, dtype=X.dtype, device="cpu").to(X.device).sort(1).values
        along = torch.nn.functional.pad(torch.nn.functional.pad(along, (1, 0)), (0, 1), value=1.0)
        along = along.reshape(*along.shape, *(1,) * (X.ndim - 1))
        paths = torch.lerp(X[starts][:, None], X[starts + 1][:, None], along).flatten(0, 1)
        lengths = values(paths, points).reshape(len(points), len(starts), -1).diff(dim=2).abs().sum((1, 2))
        lengths = torch.where(tied & torch.isfinite(lengths), lengths, torch.inf)
        if bool(torch.isfinite(lengths).any()):
            losses = torch.where(lengths <= ROUGHER * lengths.min(), losses, torch.inf)
    same = losses <= losses.min() * (1 + SAME) + rounding
    negative, sizes = (points < 0).sum(1), points.abs().sum(1)
    same &= negative == negative[same].min()
    return points[torch.where(same, sizes, torch.inf).argmin()][None]
