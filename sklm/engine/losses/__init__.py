r"""Losses: value, gradient and curvature per sample, in output space.

A Levenberg-Marquardt step needs, for sample i with module outputs f (o numbers), the gradient g of the loss l(f, y)
and a positive semi-definite curvature C. Every loss gives both through a *residual* r (k numbers) and a *factor* S
(k x o) with

    S' r = g,        S' S = C,

so that the step solves the linear least-squares problem  min_d  sum_i |r_i + S_i J_i d|^2  whatever the loss is.

Three curvatures:

``"ggn"``
    The generalized Gauss-Newton matrix (Schraudolph 2002, "Fast curvature matrix-vector products", section 2): C is the
    Hessian of the loss in the outputs where that is positive semi-definite. For the robust losses C = psi(r)/r, the
    weight of iteratively reweighted least squares (Holland and Welsch 1977); for probabilities it is the Fisher
    information.

``"sqrt"``
    The square-root trick: l is read as r^2 / 2 of the single residual r = sqrt(2 l), hence S = g' / sqrt(2 l) and
    C = g g' / (2 l). It works for every loss l >= 0 that autograd can differentiate, with one row per sample. This is
    the method that torch-levenberg-marquardt publishes.

``"mc"``
    The Gauss-Newton matrix sampled (Martens and Grosse 2015, "Optimizing neural networks with Kronecker-factored
    approximate curvature", section 2: the Fisher information as a mean over the model's own distribution): for every
    sample a class c is drawn from p, and S = p - e_c, one row, with the mean C = diag(p) - p p' over the draws. The
    gradient is not S'r for any r; it is taken in full. For the cross-entropy of several classes, whose C has as many
    rows as there are classes; that of all other losses has as few as it can.

| loss | value l | gradient | curvature C |
|---|---|---|---|
| SquaredError | \|f - y\|^2 / 2 | f - y | I |
| AbsoluteError, Huber, SoftL1, Cauchy | sum of rho(f - y) | psi(r) | psi(r) / r |
| CrossEntropy | -sum t log p, p = softmax(f) | p - t | diag(p) - p p' |
| BinaryCrossEntropy, logits | softplus(f) - y f | s - y | s (1 - s) |
| BinaryCrossEntropy, probabilities | -y log p - (1 - y) log(1 - p) | (p - y) / (p (1 - p)) | 1 / (p (1 - p)) |
| Poisson | e^f - y f - y + y log y | e^f - y | e^f |
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from sklm.engine._checks import check_keywords, resolve
from sklm.engine.losses.base import Curvature, Loss
from sklm.engine.losses.classification import BinaryCrossEntropy, CrossEntropy
from sklm.engine.losses.from_torch import TorchLoss
from sklm.engine.losses.regression import AbsoluteError, Cauchy, Elementwise, Huber, Poisson, SoftL1, SquaredError

__all__ = [
    "AbsoluteError",
    "BinaryCrossEntropy",
    "Cauchy",
    "CrossEntropy",
    "Curvature",
    "Elementwise",
    "Huber",
    "Loss",
    "Poisson",
    "SoftL1",
    "SquaredError",
    "TorchLoss",
    "plain_form",
    "resolve_loss",
]


def plain_form(loss: Loss, n_outputs: int) -> tuple[Loss, float]:
    """Return the loss without the scaling that torch gives it, and that factor."""
    if isinstance(loss, TorchLoss) and loss.twin is not None:
        is_mean = not loss.sums and not isinstance(loss.twin, CrossEntropy)
        return loss.twin, loss._twin_scale / (n_outputs if is_mean else 1)
    return loss, 1.0


BUILT_IN: dict[str, type[Loss]] = {
    "squared_error": SquaredError,
    "absolute_error": AbsoluteError,
    "huber": Huber,
    "soft_l1": SoftL1,
    "cauchy": Cauchy,
    "poisson": Poisson,
    "log_loss": CrossEntropy,
}


def resolve_loss(criterion: Any, keywords: Mapping[str, Any] | None = None) -> Loss:
    """Return the `Loss` for a name, a torch loss (class or instance), or a `Loss` (class or instance)."""
    keywords = dict(keywords or {})
    if isinstance(criterion, nn.Module) and not isinstance(criterion, Loss):
        curvature = keywords.pop("curvature", None)
        if keywords:
            resolve("criterion", SquaredError(), BUILT_IN, Loss, keywords)  # raises
        return TorchLoss(criterion, curvature=curvature)
    if isinstance(criterion, type) and issubclass(criterion, nn.Module) and not issubclass(criterion, Loss):
        curvature = keywords.pop("curvature", None)
        if "reduction" not in inspect.signature(criterion).parameters:
            raise ValueError(
                f"`criterion` must be a torch loss with a `reduction` attribute; got {criterion!r}. Subclass "
                "sklm.losses.Loss instead."
            )
        check_keywords("criterion", criterion, keywords)
        return TorchLoss(criterion(**keywords), curvature=curvature)
    if not isinstance(criterion, (str, type, Loss)):
        raise ValueError(
            f"`criterion` must be one of {', '.join(map(repr, BUILT_IN))}, a torch loss, or a subclass or an instance "
            f"of Loss; got {criterion!r}."
        )
    loss: Loss = resolve("criterion", criterion, BUILT_IN, Loss, keywords)
    return loss
