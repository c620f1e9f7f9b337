"""Parameters of a curve that enter linearly: found by comparing derivatives, and solved for (variable projection)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sklm.curves.cost import Cost
from sklm.engine.multistart import derivatives

LINEAR_TRIALS = 64  # candidates at which linearity is looked at
CHUNK = 2048  # candidates at once
REWEIGHTED = 8  # solutions of a reweighted problem where the criterion is not the squared error


def linear_places(jacobian: Callable[[Tensor], Tensor], candidates: Tensor, places: list[int]) -> list[int]:
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


def solve_linear(
    curve: Callable[[Tensor, Tensor], Tensor],
    X: Tensor,
    units: Tensor,
    candidates: Tensor,
    linear: list[int],
    cost: Cost,
) -> tuple[Tensor, Tensor]:
    """Return the candidates with their linear parameters where the cost is least.

    For other criteria than squared errors by iteratively reweighted least squares; the best iterate is taken.

    Returns
    -------
    candidates : Tensor of shape (n_candidates, n_parameters)
    usable : Tensor of bool of shape (n_candidates,)
        Whether the squares of the slopes do not overflow: where those of all do, all are taken.
    """
    candidates = candidates.clone()
    candidates[:, linear] = 0.0

    def base_and_slopes(vector: Tensor) -> tuple[Tensor, Tensor]:
        return curve(X, vector), derivatives(curve, X, vector, units)

    base, slopes = torch.vmap(base_and_slopes, chunk_size=CHUNK)(candidates)
    slopes = torch.nan_to_num(slopes, 0.0, 0.0, 0.0)
    largest = slopes.abs().amax(1)
    usable = torch.isfinite(len(X) * largest.square()).all(1)
    largest = torch.where(largest > 0, largest, 1.0)
    slopes = slopes / largest[:, None]  # whose squares do not overflow
    best = _weighted_solution(slopes, cost.y - base, cost.weights)
    if not cost.is_square:
        outputs = base + (slopes @ best[:, :, None])[:, :, 0]
        least = cost(outputs)
        for _ in range(REWEIGHTED):
            near, weights = cost.least_squares(outputs)
            found = _weighted_solution(slopes, near - base, weights)
            outputs = base + (slopes @ found[:, :, None])[:, :, 0]
            costs = cost(outputs)
            best = torch.where((costs < least)[:, None], found, best)
            least = torch.minimum(costs, least)
    candidates[:, linear] = best / largest
    return candidates, usable | ~usable.any()


def _weighted_solution(slopes: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return coefficients (n_candidates, n_linear) of weighted least squares, for weights of all or of each."""
    root = weights.sqrt()
    slopes = slopes * root[..., None]
    norms = slopes.square().sum(1).sqrt()
    norms = torch.where(norms > 0, norms, 1.0)
    slopes = slopes / norms[:, None]
    gram = slopes.mT @ slopes + 1e-10 * torch.eye(slopes.shape[2]).to(slopes)
    right = slopes.mT @ torch.nan_to_num(target * root, 0.0, 0.0, 0.0)[:, :, None]
    return torch.linalg.solve_ex(gram, right)[0][:, :, 0] / norms
