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
from sklm.engine.losses import SquaredError
from sklm.engine.multistart import derivatives, improved

N_CANDIDATES = 2048
# Where one start is wanted of a curve with so many parameters that are not linear: groups of candidates whose best ones
# are improved together for some steps. The best of them is the start.
COMPARED = (1, 4, 16, 32, 32)
COMPARING_STEPS = 20
COMPARING_ROWS = 4096  # of the data, on which they are compared
TIED = 1e-3  # relative difference of losses of starts between which their paths between the rows decide
ROUGHER = 1.1  # times the shortest path of these
BETWEEN = 4  # points between two rows of a path
GAPS = 512  # between rows that paths are followed in
N_BEST = 64  # of them from which one with a finite Jacobian is taken
ROUNDS = 6  # in which the best candidates of each group have children
MIN_GROUP = 256  # candidates of which a start is the best
LARGEST = 1e100  # of a parameter: beyond, squares overflow
LINEAR_TRIALS = 64  # candidates at which linearity is looked at
MAX_ROWS = 128  # of the data: enough to rank starts

Evaluate = Callable[[Tensor, Mapping[str, Any]], Tensor]


def find_starts(
    evaluate: Evaluate,
    X: Tensor,
    y: Tensor,
    weights: Tensor,
    start: Mapping[str, float],
    moved: list[str],
    centers: set[str],
    box: Mapping[str, tuple[float, float]],
    *,
    n_starts: int = 1,
) -> list[dict[str, float]]:
    """Return `start` with the parameters `moved` set to the best of the candidates, once for each group of them.

    Parameters
    ----------
    evaluate : callable
        ``evaluate(X, parameters)`` gives the curve, shape (n_samples,).
    X, y, weights : Tensor of shape (n_samples, n_features), (n_samples,) and (n_samples,)
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
    """
    order = torch.argsort(X.reshape(len(X), -1)[:, 0], stable=True)
    every = X[order], y[order], weights[order]
    rows, shares = _telling(*every[1:], MAX_ROWS)
    draws = Draws(*every, rows)
    X, y, weights = every[0][rows], every[1][rows], shares
    names = list(start)
    places = {name: i for i, name in enumerate(names)}

    def curve(X: Tensor, vector: Tensor) -> Tensor:
        return evaluate(X, dict(zip(names, vector.unbind(), strict=True)))

    def outputs(vector: Tensor) -> Tensor:
        return curve(X, vector)

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
        linear = _linear(jacobian, candidates, [places[name] for name in moved if name not in centers])
        n_groups = n_starts if n_starts > 1 else COMPARED[min(len(moved) - len(linear), len(COMPARED) - 1)]

        def solved(candidates: Tensor) -> tuple[Tensor, Tensor]:
            """Return the candidates with their linear parameters solved for, and their losses, by group."""
            usable = torch.ones_like(candidates[:, 0], dtype=torch.bool)
            if linear:
                candidates, usable = _solve_linear(curve, X, units[linear], candidates, linear, y, weights)
                candidates = candidates.clamp(lower, upper)
            losses = loss(torch.vmap(outputs, chunk_size=N_CANDIDATES)(candidates), y, weights)
            losses = torch.where(usable, losses, torch.inf).reshape(n_groups, -1)
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
        found, reached = improved(curve, chosen, SquaredError(), X, y, weights, lower, upper, steps=COMPARING_STEPS)
        usable = torch.isfinite(reached)
        chosen = _best(curve, found[usable], every) if bool(usable.any()) else chosen[least.argmin()][None]
    return [dict(zip(names, values, strict=True)) for values in chosen.tolist()]


def loss(values: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted squared errors of curves, infinite where they are not finite; shape (n_candidates,)."""
    losses = ((values - y).square() * weights).sum(1)
    return torch.where(torch.isfinite(losses), losses, torch.inf)


def _telling(y: Tensor, weights: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Return at most `n_rows` rows of data sorted by x that tell most, and weights with which they stand for all.

    One half lies evenly, the other where y deviates from its mean, or a narrow peak would lie between the rows.
    """
    if len(y) <= n_rows:
        return torch.arange(len(y), device=y.device), weights
    deviation = (y - (weights @ y) / weights.sum()).abs()
    deviation = weights * (deviation / deviation.max()).square()
    density = 0.5 / len(y) + 0.5 * torch.nan_to_num(deviation / deviation.sum())
    quantiles = (torch.arange(n_rows, dtype=y.dtype, device=y.device) + 0.5) / n_rows
    total = torch.cumsum(density, 0)
    rows = torch.unique(torch.searchsorted(total, quantiles * total[-1]).clamp_max(len(y) - 1))
    return rows, weights[rows] / (n_rows * density[rows]).clamp_max(1.0)


def _best(curve: Callable[[Tensor, Tensor], Tensor], points: Tensor, data: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the best point, as a row; of points that fit equally one whose curve goes straight between the rows.

    So of the frequencies that cannot be told apart on even x, the aliases, the lowest is taken.
    """
    X, y, weights = data
    rows, weights = _telling(y, weights, COMPARING_ROWS)

    def values(X: Tensor, points: Tensor) -> Tensor:
        return torch.vmap(lambda point: curve(X, point), chunk_size=N_CANDIDATES)(points)

    losses = loss(values(X[rows], points), y[rows], weights)
    mean = (weights @ y[rows]) / weights.sum()
    rounding = torch.finfo(y.dtype).eps * float(weights @ (y[rows] - mean).square())
    tied = losses <= losses.min() * (1 + TIED) + rounding
    differ = (points - points[losses.argmin()]).abs() > TIED * points.abs()
    if bool((tied & differ.any(1)).any()) and len(X) > 1 and X.is_floating_point():
        starts = torch.randperm(len(X) - 1, device="cpu")[:GAPS].to(X.device)
        along = torch.rand(len(starts), BETWEEN, dtype=X.dtype).to(X.device).sort(1).values
        along = torch.nn.functional.pad(torch.nn.functional.pad(along, (1, 0)), (0, 1), value=1.0)
        along = along.reshape(*along.shape, *(1,) * (X.ndim - 1))
        paths = torch.lerp(X[starts][:, None], X[starts + 1][:, None], along).flatten(0, 1)
        lengths = values(paths, points).reshape(len(points), len(starts), -1).diff(dim=2).abs().sum((1, 2))
        lengths = torch.where(tied & torch.isfinite(lengths), lengths, torch.inf)
        if bool(torch.isfinite(lengths).any()):
            losses = torch.where(lengths <= ROUGHER * lengths.min(), losses, torch.inf)
    return points[losses.argmin()][None]


def _linear(jacobian: Callable[[Tensor], Tensor], candidates: Tensor, places: list[int]) -> list[int]:
    """Return the parameters among `places` that enter linearly, given all others.

    Together they must leave their own derivatives alone, at every one of some candidates that tells: where no
    derivative has overflowed or vanished.
    """
    jacobian = torch.vmap(jacobian)
    one, other = candidates[:LINEAR_TRIALS], candidates[LINEAR_TRIALS : 2 * LINEAR_TRIALS]
    reference = jacobian(one)
    found: list[int] = []
    for place in places:
        trial = [*found, place]
        moved = one.clone()
        moved[:, trial] = other[:, trial] + 1.0
        before, after = reference[:, :, trial], jacobian(moved)[:, :, trial]
        size = torch.maximum(before.abs().amax(1, keepdim=True), after.abs().amax(1, keepdim=True))
        tells = ((torch.isfinite(before) & torch.isfinite(after)).all(1) & (size[:, 0] > 0)).all(1)
        same = ((before - after).abs() <= 1e-9 * size).all(1).all(1)
        if bool(tells.any()) and bool(same[tells].all()):
            found = trial
    return found


def _solve_linear(
    curve: Callable[[Tensor, Tensor], Tensor],
    X: Tensor,
    units: Tensor,
    candidates: Tensor,
    linear: list[int],
    y: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the candidates with their linear parameters at the weighted least-squares solution.

    And whether their slopes have squares that do not overflow: where those of all do, all are taken.
    """
    candidates = candidates.clone()
    candidates[:, linear] = 0.0

    def base_and_slopes(vector: Tensor) -> tuple[Tensor, Tensor]:
        return curve(X, vector), derivatives(curve, X, vector, units)

    base, slopes = torch.vmap(base_and_slopes, chunk_size=N_CANDIDATES)(candidates)
    root = weights.sqrt()
    slopes, target = slopes * root[:, None], (y - base) * root
    slopes = torch.nan_to_num(slopes, 0.0, 0.0, 0.0)
    largest = slopes.abs().amax(1)
    usable = torch.isfinite(len(y) * largest.square()).all(1)
    largest = torch.where(largest > 0, largest, 1.0)
    slopes = slopes / largest[:, None]  # whose squares do not overflow
    norms = slopes.square().sum(1).sqrt()
    norms = torch.where(norms > 0, norms, 1.0)
    slopes = slopes / norms[:, None]
    gram = slopes.mT @ slopes + 1e-10 * torch.eye(len(linear)).to(slopes)
    right = slopes.mT @ torch.nan_to_num(target, 0.0, 0.0, 0.0)[:, :, None]
    candidates[:, linear] = torch.linalg.solve_ex(gram, right)[0][:, :, 0] / norms / largest
    return candidates, usable | ~usable.any()
