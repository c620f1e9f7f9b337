"""Where a curve starts when nobody says: a search over the scales of the data, in batches.

A rate has the scale of 1 / x, a position that of x, an exponent is near one, and so on; nothing tells which parameter
is what, so every candidate draws a role for each. Parameters that enter linearly (found by comparing derivatives) are
not drawn but solved for, candidate by candidate, which leaves few dimensions to search (the idea of variable
projection: Golub and Pereyra 1973). The best ones have children for some rounds, and of several groups of them the best
ones are improved by damped Gauss-Newton steps; the start is the best of these.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sklm.engine.losses import SquaredError
from sklm.engine.multistart import best_of, derivatives

N_CANDIDATES = 2048
# Where one start is wanted of a curve with so many parameters that are not linear: groups of candidates whose best ones
# are improved together for some steps. The best of them is the start.
COMPARED = (1, 1, 16, 32, 32)
COMPARING_STEPS = 20
N_BEST = 64  # of them from which one with a finite Jacobian is taken
ROUNDS = 6  # in which the best candidates of each group have children
CHILDREN = 512  # in all groups together, per round
PARENTS = 16  # of each group
MOVED, CROSSING = 0.6, 0.7  # share of the parameters that take a multiplicative step; factor of a difference
MIN_GROUP = 256  # candidates of which a start is the best
LARGEST = 1e100  # of a parameter: beyond, squares overflow
LINEAR_TRIALS = 64  # candidates at which linearity is looked at
N_SIGNED = 6  # roles that may be negative: the first ones
ANY = 4.0  # orders of magnitude around the span of x and around its inverse in which anything may lie
SKEW = 10.0  # ratio of the largest to the median x from which a position or a rate may be of any order of magnitude
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
    rows = torch.linspace(0, len(y) - 1, min(MAX_ROWS, len(y)), device=y.device).round().long()
    order = torch.argsort(X.reshape(len(X), -1)[:, 0], stable=True)[rows]
    X, y, weights = X[order], y[order], weights[order]
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
        candidates[:, places[name]] = _draw(len(candidates), X, y, around, box.get(name))
    sides = [box.get(name, (-math.inf, math.inf)) if name in moved else (start[name],) * 2 for name in names]
    lower, upper = candidates.new_tensor(sides).unbind(1)
    candidates = candidates.clamp(lower, upper)
    with warnings.catch_warnings():  # torch's own, when forward mode is first used
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        linear = _linear(jacobian, candidates, [places[name] for name in moved if name not in centers])
        n_groups = n_starts if n_starts > 1 else COMPARED[min(len(moved) - len(linear), len(COMPARED) - 1)]

        def solved(candidates: Tensor) -> tuple[Tensor, Tensor]:
            """Return the candidates with their linear parameters solved for, and their losses, by group."""
            if linear:
                candidates = _solve_linear(curve, X, units[linear], candidates, linear, y, weights).clamp(lower, upper)
            values = torch.vmap(outputs, chunk_size=N_CANDIDATES)(candidates)
            losses = ((values - y).square() * weights).sum(1)
            losses = torch.where(torch.isfinite(losses), losses, torch.inf).reshape(n_groups, -1)
            return candidates.reshape(*losses.shape, -1), losses

        candidates, losses = solved(candidates)
        bent = [places[name] for name in moved if places[name] not in linear]
        if n_starts == 1 and len(bent) > 1:
            for _ in range(ROUNDS):
                children = _children(candidates, losses, bent).clamp(lower, upper)
                more, their = solved(children.flatten(0, 1))
                candidates, losses = torch.cat([candidates, more], 1), torch.cat([losses, their], 1)
        order = torch.argsort(losses, dim=1)[:, :N_BEST]
        best = torch.take_along_dim(candidates, order[:, :, None], dim=1)
        jacobians = torch.vmap(jacobian, chunk_size=N_CANDIDATES)(best.flatten(0, 1))
        smooth = torch.isfinite(jacobians).flatten(1).all(1).reshape(order.shape)
    first = (smooth & (best.abs() < LARGEST).all(2)).long().argmax(1)
    groups = torch.arange(n_groups, device=best.device)
    chosen, least = best[groups, first], losses[groups, order[groups, first]]
    if n_groups > n_starts:
        found = best_of(curve, chosen, SquaredError(), X, y, weights, lower, upper, steps=COMPARING_STEPS)
        chosen = chosen[least.argmin()][None] if found is None else found[None]
    return [dict(zip(names, values, strict=True)) for values in chosen.tolist()]


def _draw(n: int, X: Tensor, y: Tensor, around: float | None, bounds: tuple[float, float] | None) -> Tensor:
    """Return values for one parameter of all n candidates."""

    def uniform(low: Any, high: Any) -> Tensor:
        return low + (high - low) * torch.rand(n, dtype=y.dtype).to(y.device)

    if around is not None:
        factor = torch.randn(n, dtype=y.dtype).to(y.device).exp()
        return around * factor if around else factor.log()
    if bounds is not None and all(map(math.isfinite, bounds)):
        return uniform(*bounds)
    columns = X.reshape(len(X), -1)
    of = torch.randint(columns.shape[1], (n,), device="cpu").to(y.device)  # the column whose scale it has
    lows, highs = columns.amin(0), columns.amax(0)
    spans = highs - lows
    spans = torch.where(spans > 0, spans, highs.abs())
    spans = torch.where(spans > 0, spans, 1.0)
    low, high, span = lows[of], highs[of], spans[of]
    positive = torch.where(columns > 0, columns, torch.nan)
    is_logarithmic = (lows >= 0) & (SKEW * positive.nanmedian(0).values <= highs)
    least = torch.nan_to_num(positive, torch.inf).amin(0)[of]
    place = 10 ** uniform(least.log10(), high.log10())
    roles = [  # with their shares, and those for x on a logarithmic scale
        (2, 2, 10 ** uniform(-1, 1.5) / span),  # a rate
        (2, 2, span * 10 ** uniform(-2, 0.3)),  # a width
        (2, 2, 10 ** uniform(-1, 0.8)),  # an exponent, or another pure number
        (2, 2, uniform(float(y.min()), float(y.max()))),  # a level
        (1, 1, 10 ** uniform(-ANY, ANY) * torch.where(uniform(0, 1) < 0.5, span, 1 / span)),  # none of these
        (0, 2, 1 / place),  # a rate of any order of magnitude
        (3, 3, uniform(low, high)),  # a position
        (0, 2, place),  # a position of any order of magnitude
    ]
    shares = torch.tensor([shares for *shares, _ in roles], dtype=torch.float64, device="cpu").T
    role = torch.multinomial(shares[is_logarithmic[of].long().cpu()], 1)[:, 0].to(y.device)
    values = torch.stack([value for *_, value in roles])[role, torch.arange(n, device=y.device)]
    flip = (uniform(0, 1) < 0.25) & (role < N_SIGNED)
    return torch.where(flip, -values, values)


def _children(candidates: Tensor, losses: Tensor, places: list[int]) -> Tensor:
    """Return variations of the best candidates of each group at `places`, (n_groups, n_children, n_parameters).

    One half takes multiplicative steps, over orders of magnitude; the other differences of two others, along valleys
    (differential evolution: Storn and Price 1997).
    """
    n_groups = len(candidates)
    n_children = max(CHILDREN // n_groups, 1)
    parents = torch.take_along_dim(candidates, torch.argsort(losses, dim=1)[:, :PARENTS, None], dim=1)

    def someone() -> Tensor:
        which = torch.randint(parents.shape[1], (n_groups, n_children, 1)).to(parents.device)
        return torch.take_along_dim(parents, which, dim=1)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n_groups, n_children, *shape, dtype=parents.dtype).to(parents.device)

    children = someone()
    old = children[..., places]
    steps = torch.randn(old.shape, dtype=old.dtype).to(old.device) * (uniform(len(places)) < MOVED)
    scaled = old * (10 ** (2 * uniform(1) - 1.5) * steps).exp()
    crossed = old + CROSSING * (someone() - someone())[..., places]
    half = (torch.arange(n_children, device=old.device) % 2 == 0)[:, None]
    children[..., places] = torch.where(half, scaled, crossed)
    return children


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
) -> Tensor:
    """Return the candidates with their linear parameters at the weighted least-squares solution."""
    candidates = candidates.clone()
    candidates[:, linear] = 0.0

    def base_and_slopes(vector: Tensor) -> tuple[Tensor, Tensor]:
        return curve(X, vector), derivatives(curve, X, vector, units)

    base, slopes = torch.vmap(base_and_slopes, chunk_size=N_CANDIDATES)(candidates)
    root = weights.sqrt()
    slopes, target = slopes * root[:, None], (y - base) * root
    slopes = torch.nan_to_num(slopes, 0.0, 0.0, 0.0)
    largest = slopes.abs().amax(1)
    largest = torch.where(largest > 0, largest, 1.0)
    slopes = slopes / largest[:, None]  # whose squares do not overflow
    norms = slopes.square().sum(1).sqrt()
    norms = torch.where(norms > 0, norms, 1.0)
    slopes = slopes / norms[:, None]
    gram = slopes.mT @ slopes + 1e-10 * torch.eye(len(linear)).to(slopes)
    right = slopes.mT @ torch.nan_to_num(target, 0.0, 0.0, 0.0)[:, :, None]
    candidates[:, linear] = torch.linalg.solve_ex(gram, right)[0][:, :, 0] / norms / largest
    return candidates
