"""Several starts of a curve, improved together: every step of all of them is one batch.

Plain damped Gauss-Newton steps on the normal equations, scaled as MINPACK does, with Nielsen's update of the damping
for each start: enough to tell which start leads to the best minimum. The digits are left to the fit that follows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sklm.engine.bounds import held
from sklm.engine.losses import Loss
from sklm.engine.modes import quiet_forward_mode

STEPS = 50
SAME = 1e-6  # relative difference of losses below which the earlier start is kept
FALLEN, MAX_IDLE = 1e-9, 8  # relative fall of a loss that counts, and steps without one after which all have ended
MAX_ELEMENTS = 2**22  # of the Jacobians of all starts; beyond, rows are left out evenly


def derivatives(curve: Callable[[Tensor, Tensor], Tensor], X: Tensor, point: Tensor, units: Tensor) -> Tensor:
    """Return the derivatives of ``curve(X, point)`` along the rows of `units`, of shape (n_samples, n_units)."""
    X = X if X.is_floating_point() else X.to(point.dtype)

    def along(unit: Tensor) -> Tensor:
        tangent: Tensor
        try:  # with no tangent of X torch would import its compiler first, a second of work
            tangent = torch.func.jvp(curve, (X, point), (torch.zeros_like(X), unit))[1]
        except NotImplementedError:  # an operation on X has no forward mode
            tangent = torch.func.jvp(lambda point: curve(X, point), (point,), (unit,))[1]
        return tangent

    return torch.vmap(along, out_dims=1)(units)


def best_of(
    curve: Callable[[Tensor, Tensor], Tensor],
    starts: Tensor,
    loss: Loss,
    X: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    lower: Tensor,
    upper: Tensor,
    *,
    steps: int = STEPS,
) -> Tensor | None:
    """Return the parameters of the lowest loss that some damped steps from the starts reach, or None.

    Parameters
    ----------
    curve : callable
        ``curve(X, parameters)`` gives the outputs, shape (n_samples,), differentiable and vectorizable.
    starts : Tensor of shape (n_starts, n_parameters)
    loss : Loss
    X, targets : Tensor of shape (n_samples, n_features) and (n_samples,)
    weights : Tensor of shape (n_samples,) or None
    lower, upper : Tensor of shape (n_parameters,)
        Bounds, infinite where there are none.
    steps : int, default=50

    Returns
    -------
    Tensor of shape (n_parameters,), or None where the loss is not finite at any start
    """
    points, losses = improved(curve, starts, loss, X, targets, weights, lower, upper, steps=steps)
    if not bool(torch.isfinite(losses).any()):
        return None
    good = losses <= losses.min() * (1 + SAME)
    return points[int(good.long().argmax())]


def improved(
    curve: Callable[[Tensor, Tensor], Tensor],
    starts: Tensor,
    loss: Loss,
    X: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    lower: Tensor,
    upper: Tensor,
    *,
    steps: int = STEPS,
) -> tuple[Tensor, Tensor]:
    """Return what some damped steps make of each start, and the losses there; parameters as in `best_of`.

    Returns
    -------
    points : Tensor of shape (n_starts, n_parameters)
    losses : Tensor of shape (n_starts,)
        Infinite where the loss or the Jacobian was not finite on the way.
    """
    n_rows = max(min(len(X), MAX_ELEMENTS // starts.numel()), 1)
    rows = torch.linspace(0, len(X) - 1, n_rows, device=X.device).round().long()
    X, targets = X[rows], targets[rows]
    weights = X.new_ones(n_rows) if weights is None else weights[rows]
    repeated = targets.repeat(len(starts))

    def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
        outputs = torch.vmap(lambda point: curve(X, point))(points)
        flat = outputs.reshape(-1, 1)
        values = loss.value(flat, loss.prepare(flat, repeated)).reshape(outputs.shape)
        return outputs, torch.nan_to_num(values @ weights, torch.inf, torch.inf, torch.inf)

    def quadratic(points: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients (n_starts, n_parameters) and curvatures (n_starts, n_parameters, n_parameters)."""
        units = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
        jacobian = torch.vmap(lambda point: derivatives(curve, X, point, units))(points)
        flat = outputs.reshape(-1, 1)
        residual, factor = loss.linearize(flat, loss.prepare(flat, repeated))
        slope = (residual[:, :, None] * factor).sum((1, 2)).reshape(outputs.shape) * weights
        bend = factor.square().sum((1, 2)).reshape(outputs.shape) * weights
        return (slope[:, None] @ jacobian)[:, 0], (jacobian.mT * bend[:, None]) @ jacobian

    with quiet_forward_mode():
        points, alive = _refine(evaluate, quadratic, starts.clamp(lower, upper), lower, upper, steps)
    return points, torch.where(alive, evaluate(points)[1], torch.inf)


def _refine(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    quadratic: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    points: Tensor,
    lower: Tensor,
    upper: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Return the points after the steps, and which of them had a finite loss and Jacobian all along."""
    outputs, losses = evaluate(points)
    gradients, curvatures = quadratic(points, outputs)
    scales = torch.zeros_like(points)
    damping, growth = torch.full_like(losses, 1e-3), torch.full_like(losses, 2.0)
    alive = torch.isfinite(losses)
    idle = 0  # steps in which no loss has fallen
    for _ in range(steps):
        alive &= torch.isfinite(gradients).all(1) & torch.isfinite(curvatures).flatten(1).all(1)
        if not bool(alive.any()):
            break
        gradient = torch.where(alive[:, None], gradients, 0.0)
        curvature = torch.where(alive[:, None, None], curvatures, 0.0)
        scales = torch.maximum(scales, curvature.diagonal(dim1=1, dim2=2).sqrt())
        scale = torch.where(scales > 0, scales, 1.0)
        free = (~held(points, gradient, lower, upper)).to(points) / scale
        scaled = curvature * free[:, :, None] * free[:, None, :]
        slope = gradient * free
        damped = scaled + damping[:, None, None] * torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
        factor, failed = torch.linalg.cholesky_ex(damped)
        step = -torch.cholesky_solve(slope[:, :, None], factor)[:, :, 0]
        expected = -(slope * step).sum(1) - 0.5 * (step * (scaled @ step[:, :, None])[:, :, 0]).sum(1)
        trial = (points + step * free).clamp(lower, upper)
        new_outputs, new_losses = evaluate(trial)
        gain = (losses - new_losses) / expected
        better = alive & (failed == 0) & (gain > 1e-4)
        idle = 0 if bool((better & (losses - new_losses > FALLEN * losses)).any()) else idle + 1
        if idle == MAX_IDLE:
            break
        points = torch.where(better[:, None], trial, points)
        losses = torch.where(better, new_losses, losses)
        damping = damping * torch.where(better, (1 - (2 * gain - 1) ** 3).clamp(1 / 3, 1.0), growth).clamp_max(1e10)
        growth = torch.where(better, 2.0, 2 * growth)
        if bool(better.any()):
            outputs = torch.where(better[:, None], new_outputs, outputs)
            gradients, curvatures = quadratic(points, outputs)
    return points, alive
