r"""Losses: value, gradient and curvature per sample, in output space.

A Levenberg-Marquardt step needs, for sample i with module outputs f (o numbers), the gradient g of the loss l(f, y)
and a positive semi-definite curvature C. Every loss gives both through a *residual* r (k numbers) and a *factor* S
(k x o) with

    S' r = g,        S' S = C,

so that the step solves the linear least-squares problem  min_d  sum_i |r_i + S_i J_i d|^2  whatever the loss is.

Two curvatures:

``"ggn"``
    The generalised Gauss-Newton matrix (Schraudolph 2002, "Fast curvature matrix-vector products", section 2): C is the
    Hessian of the loss in the outputs where that is positive semi-definite. For the robust losses C = psi(r)/r, the
    weight of iteratively reweighted least squares (Holland and Welsch 1977); for probabilities it is the Fisher
    information.

``"sqrt"``
    The square-root trick: l is read as r^2 / 2 of the single residual r = sqrt(2 l), hence S = g' / sqrt(2 l) and
    C = g g' / (2 l). It works for every loss l >= 0 that autograd can differentiate, with one row per sample. This is
    the method that torch-levenberg-marquardt publishes.

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

import abc
import copy
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklm.engine._checks import check_choice, check_keywords, check_real, resolve

Curvature = Literal["ggn", "sqrt"]


class Loss(nn.Module, abc.ABC):
    """A loss per sample, as a sum of squares near the current outputs.

    Subclass it to fit with a loss of your own: `value` is enough (the curvature is then the square-root trick);
    override `ggn` too where a better curvature is known.

    Parameters
    ----------
    curvature : {"ggn", "sqrt"}, default=None
        Generalised Gauss-Newton or square-root trick, see the module text. ``None`` takes ``"ggn"`` where the loss
        defines it, else ``"sqrt"``.

    Attributes
    ----------
    task : {"regression", "classification", None}
        The kind of target the loss is for; ``None`` for any.
    """

    task: Literal["regression", "classification"] | None = None

    def __init__(self, *, curvature: Curvature | None = None) -> None:
        super().__init__()
        self._set_curvature(curvature)

    def _set_curvature(self, curvature: Curvature | None) -> None:
        if curvature is None:
            curvature = "ggn" if self._has_ggn() else "sqrt"
        check_choice("criterion__curvature", curvature, ["ggn", "sqrt"])
        if curvature == "ggn" and not self._has_ggn():
            raise ValueError(
                f"`criterion__curvature='ggn'` needs a loss that defines it, and {self} does not; "
                "pass curvature='sqrt' or override `ggn`."
            )
        self.curvature = curvature

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _has_ggn(self) -> bool:
        return type(self).ggn is not Loss.ggn

    def forward(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the mean loss over the samples, as torch's losses do."""
        outputs = outputs.reshape(len(outputs), -1)
        return self.value(outputs, self.prepare(outputs, targets)).mean()

    @abc.abstractmethod
    def value(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the loss of every sample.

        Parameters
        ----------
        outputs : Tensor of shape (n_samples, n_outputs)
        targets : Tensor
            As `prepare` returned them.

        Returns
        -------
        Tensor of shape (n_samples,)
        """

    def gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the gradient of every sample's loss in its outputs, of shape (n_samples, n_outputs), by autograd."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(leaf, targets).sum(), leaf)
        return gradient

    def ggn(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Return residual (n_samples, k) and factor (n_samples, k, n_outputs) of the Gauss-Newton curvature."""
        raise TypeError(f"{type(self).__name__} defines no Gauss-Newton curvature; use curvature='sqrt'.")

    def linearize(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Return residual r and factor S of the chosen curvature, with S'r the gradient and S'S the curvature.

        Parameters
        ----------
        outputs : Tensor of shape (n_samples, n_outputs)
        targets : Tensor
            As `prepare` returned them.

        Returns
        -------
        residual : Tensor of shape (n_samples, k)
        factor : Tensor of shape (n_samples, k, n_outputs)
        """
        if self.curvature == "ggn":
            return self.ggn(outputs, targets)
        value = self.value(outputs, targets).detach()
        if bool((value < 0).any()):
            raise ValueError(
                f"`criterion__curvature='sqrt'` needs a loss >= 0; {self} is {value.min().item():.3g} for a sample. "
                "Pass another criterion, or 'ggn' where the loss has it."
            )
        residual = (2 * value).sqrt()
        factor = torch.where(value[:, None] > 0, self.gradient(outputs, targets) / residual[:, None], 0.0)
        return residual[:, None], factor[:, None, :]

    def prepare(self, outputs: Tensor, targets: Any) -> Any:
        """Bring targets to the shape and dtype that the other methods take; raise where they do not fit the outputs.

        The default reshapes floating targets to the shape of the outputs and leaves everything else alone.
        """
        return like_outputs(outputs, targets, self)

    def check_targets(self, targets: Tensor) -> None:
        """Raise `ValueError` where a target is outside the domain of the loss. The default accepts every target."""

    def link(self, targets: Tensor) -> Tensor:
        """Return targets in units of the module's outputs (the default: as they are)."""
        return targets

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the expected target for given outputs: predictions, or class probabilities (the default: outputs)."""
        return outputs


def like_outputs(outputs: Tensor, targets: Any, loss: Loss) -> Any:
    """Return floating targets in dtype and shape of `outputs`; raise where the sizes differ."""
    if not isinstance(targets, Tensor):
        return targets
    if targets.numel() != outputs.numel() or targets.shape[:1] != outputs.shape[:1]:
        raise ValueError(
            f"{loss} needs one target per output; the module returns {tuple(outputs.shape)} and the target has shape "
            f"{tuple(targets.shape)}. Make the module's number of outputs match y."
        )
    return targets.to(outputs.dtype).reshape(outputs.shape)


class _Elementwise(Loss):
    """Regression losses that are sums of rho(f - y) over the outputs, with weight psi(r) / r."""

    task = "regression"

    @abc.abstractmethod
    def _rho(self, residual: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _weight(self, residual: Tensor) -> Tensor: ...

    def value(self, outputs: Tensor, targets: Any) -> Tensor:
        return self._rho(outputs - targets).sum(1)

    def gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        residual = outputs - targets
        return self._weight(residual) * residual

    def ggn(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        residual = outputs - targets
        root = self._weight(residual).sqrt()
        return root * residual, torch.diag_embed(root)


class SquaredError(_Elementwise):
    """Half the squared error, |f - y|^2 / 2 per sample.

    Parameters
    ----------
    curvature : {"ggn", "sqrt"}, default="ggn"
    """

    def _rho(self, residual: Tensor) -> Tensor:
        return residual.square() / 2

    def _weight(self, residual: Tensor) -> Tensor:
        return torch.ones_like(residual)


class AbsoluteError(_Elementwise):
    """Absolute error, sum of |f - y| per sample: fits the median.

    Parameters
    ----------
    smoothing : float, default=1e-8
        Residuals below it, in units of y, count as this large in the weight 1 / |r|; the value is exact everywhere.
    curvature : {"ggn", "sqrt"}, default="ggn"
    """

    def __init__(self, *, smoothing: float = 1e-8, curvature: Curvature | None = None) -> None:
        super().__init__(curvature=curvature)
        self.smoothing = check_real("criterion__smoothing", smoothing, above=0)

    def _rho(self, residual: Tensor) -> Tensor:
        return residual.abs()

    def _weight(self, residual: Tensor) -> Tensor:
        return 1 / residual.abs().clamp_min(self.smoothing)


class _Robust(_Elementwise):
    def __init__(self, *, delta: float = 1.0, curvature: Curvature | None = None) -> None:
        super().__init__(curvature=curvature)
        self.delta = check_real("criterion__delta", delta, above=0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(delta={self.delta:g})"


class Huber(_Robust):
    """Huber's loss: r^2 / 2 for |r| <= delta, else delta (|r| - delta / 2). The ``"huber"`` of scipy's `least_squares`.

    Parameters
    ----------
    delta : float, default=1.0
        Residual, in units of y, from which a point counts as an outlier (scipy: ``f_scale``).
    curvature : {"ggn", "sqrt"}, default="ggn"
    """

    def _rho(self, residual: Tensor) -> Tensor:
        size = residual.abs()
        return torch.where(size <= self.delta, residual.square() / 2, self.delta * (size - self.delta / 2))

    def _weight(self, residual: Tensor) -> Tensor:
        return self.delta / residual.abs().clamp_min(self.delta)


class SoftL1(_Robust):
    """Smooth absolute error, delta^2 (sqrt(1 + (r / delta)^2) - 1). The ``"soft_l1"`` of scipy's `least_squares`.

    Parameters
    ----------
    delta : float, default=1.0
        Residual, in units of y, at which the loss turns from quadratic to linear (scipy: ``f_scale``).
    curvature : {"ggn", "sqrt"}, default="ggn"
    """

    def _rho(self, residual: Tensor) -> Tensor:
        square = (residual / self.delta).square()
        return self.delta**2 * square / (1 + (1 + square).sqrt())

    def _weight(self, residual: Tensor) -> Tensor:
        return (1 + (residual / self.delta).square()).rsqrt()


class Cauchy(_Robust):
    """Cauchy's loss, delta^2 / 2 log(1 + (r / delta)^2). The ``"cauchy"`` of scipy's `least_squares`.

    Parameters
    ----------
    delta : float, default=1.0
        Residual, in units of y, at which the loss turns from quadratic to logarithmic (scipy: ``f_scale``).
    curvature : {"ggn", "sqrt"}, default="ggn"
    """

    def _rho(self, residual: Tensor) -> Tensor:
        return self.delta**2 / 2 * (residual / self.delta).square().log1p()

    def _weight(self, residual: Tensor) -> Tensor:
        return 1 / (1 + (residual / self.delta).square())


def _residual_and_diagonal(gradient: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Return residual and factor for elementwise losses.

    The floor keeps the residual of a saturated output from drowning all others; the gradient stays exact.
    """
    root = curvature.clamp_min(torch.finfo(curvature.dtype).eps).sqrt()
    return gradient / root, torch.diag_embed(root)


class Poisson(Loss):
    """Half the Poisson deviance.

    Parameters
    ----------
    log_link : bool, default=True
        Whether the module returns the logarithm of the expected count, or the expected count itself. The curvature of
        the latter is the Fisher information 1 / f.
    curvature : {"ggn", "sqrt"}, default="ggn"
    """

    task = "regression"

    def __init__(self, *, log_link: bool = True, curvature: Curvature | None = None) -> None:
        super().__init__(curvature=curvature)
        self.log_link = log_link

    def value(self, outputs: Tensor, targets: Any) -> Tensor:
        mean = outputs.exp() if self.log_link else outputs
        product = targets * outputs if self.log_link else torch.xlogy(targets, outputs)
        deviance = mean - product - targets + torch.xlogy(targets, targets)
        if not self.log_link:
            deviance = torch.where(outputs < 0, torch.nan, deviance)  # no count is below 0
        return deviance.clamp_min(0).sum(1)

    def gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        return outputs.exp() - targets if self.log_link else 1 - targets / outputs

    def ggn(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        curvature = outputs.exp() if self.log_link else 1 / outputs
        return _residual_and_diagonal(self.gradient(outputs, targets), curvature)

    def check_targets(self, targets: Tensor) -> None:
        if bool((targets < 0).any()):
            raise ValueError(f"{self} needs y >= 0; got {targets.min().item():g}. Pass another criterion.")

    def link(self, targets: Tensor) -> Tensor:
        return targets.clamp_min(0.5).log() if self.log_link else targets  # half a count stands for none

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.exp() if self.log_link else outputs


class CrossEntropy(Loss):
    """Softmax cross-entropy from logits of shape (n_samples, n_classes).

    Targets are class indices (n_samples,), or weights of the classes (n_samples, n_classes), for instance
    probabilities.

    Parameters
    ----------
    curvature : {"ggn", "sqrt"}, default="ggn"
    """

    task = "classification"

    def prepare(self, outputs: Tensor, targets: Any) -> Any:
        if targets.is_floating_point():
            return like_outputs(outputs, targets, self)
        if targets.numel() != len(outputs):
            raise ValueError(
                f"{self} needs one class index per sample; the module returns {tuple(outputs.shape)} and the target "
                f"has shape {tuple(targets.shape)}."
            )
        targets = targets.reshape(-1).long()
        if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < outputs.shape[1]):
            raise ValueError(
                f"{self} needs class indices from 0 to {outputs.shape[1] - 1}, the module's outputs; got "
                f"{int(targets.min())} to {int(targets.max())}. Give the module one output per class."
            )
        return F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)

    def value(self, outputs: Tensor, targets: Any) -> Tensor:
        return -(targets * outputs.log_softmax(1)).sum(1)

    def gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        return targets.sum(1, keepdim=True) * outputs.softmax(1) - targets

    def ggn(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        # With s = sum t and q = max(p, eps): S = sqrt(s) diag(sqrt q) (I - 1p') and r = -t / sqrt(s q) give
        # S'r = s p - t exactly, and S'S = s (diag(p) - pp') for q = p.
        probability = outputs.softmax(1)
        total = targets.sum(1, keepdim=True)
        root = (total * probability.clamp_min(torch.finfo(outputs.dtype).eps)).sqrt()
        residual = torch.where(total > 0, -targets / root, 0.0)
        identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        return residual, root[:, :, None] * (identity - probability[:, None, :])

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1)


class BinaryCrossEntropy(Loss):
    """Cross-entropy of yes-or-no outcomes, one per output.

    Parameters
    ----------
    from_logits : bool, default=True
        Whether the module returns logits, or probabilities between 0 and 1.
    positive_weight : float or Tensor of shape (n_outputs,), default=1.0
        Weight of the positive outcomes, logits only.
    curvature : {"ggn", "sqrt"}, default="ggn"
    """

    task = "classification"
    positive_weight: Tensor

    def __init__(
        self,
        *,
        from_logits: bool = True,
        positive_weight: float | Tensor = 1.0,
        curvature: Curvature | None = None,
    ) -> None:
        super().__init__(curvature=curvature)
        if not from_logits and bool((torch.as_tensor(positive_weight) != 1).any()):
            raise ValueError("`criterion__positive_weight` needs `from_logits=True`.")
        self.from_logits = from_logits
        if not isinstance(positive_weight, Tensor):
            checked = check_real("criterion__positive_weight", positive_weight, above=0)
            positive_weight = torch.tensor(checked, dtype=torch.float64)
        self.register_buffer("positive_weight", positive_weight)

    def prepare(self, outputs: Tensor, targets: Any) -> Any:
        if not self.from_logits and bool(((outputs < 0) | (outputs > 1)).any()):
            raise ValueError(
                f"{self} needs a module that returns probabilities between 0 and 1; it returned {outputs.min():.3g} to "
                f"{outputs.max():.3g}. End the module with a sigmoid, or use the loss that takes logits."
            )
        return like_outputs(outputs, targets, self)

    def value(self, outputs: Tensor, targets: Any) -> Tensor:
        if self.from_logits:
            weight = self.positive_weight
            return -(weight * targets * F.logsigmoid(outputs) + (1 - targets) * F.logsigmoid(-outputs)).sum(1)
        # bounded by 100, as torch does; nan outside [0, 1], where torch raises, so that such a trial is rejected
        inside = (outputs >= 0) & (outputs <= 1)
        finfo = torch.finfo(outputs.dtype)
        positive = torch.where(outputs > 0, outputs.clamp_min(finfo.tiny).log().clamp_min(-100), -100.0)
        negative = torch.where(outputs < 1, (-outputs.clamp_max(1 - finfo.eps / 2)).log1p().clamp_min(-100), -100.0)
        return -torch.where(inside, targets * positive + (1 - targets) * negative, torch.nan).sum(1)

    def gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        if self.from_logits:
            return (1 - targets) * outputs.sigmoid() - self.positive_weight * targets * (-outputs).sigmoid()
        return (outputs - targets) * self._fisher(outputs)

    def ggn(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        if self.from_logits:
            curvature = (self.positive_weight * targets + 1 - targets) * outputs.sigmoid() * (-outputs).sigmoid()
        else:
            curvature = self._fisher(outputs)
        return _residual_and_diagonal(self.gradient(outputs, targets), curvature)

    @staticmethod
    def _fisher(probability: Tensor) -> Tensor:
        # torch clamps log p at -100 in the value; the same point keeps this finite
        return 1 / (probability * (1 - probability)).clamp_min(torch.finfo(probability.dtype).eps ** 2)

    def check_targets(self, targets: Tensor) -> None:
        if bool(((targets < 0) | (targets > 1)).any()):
            raise ValueError(f"{self} needs targets between 0 and 1; encode the two classes as 0 and 1.")

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid() if self.from_logits else outputs


class TorchLoss(Loss):
    """A torch loss module, in torch's own scaling: the mean over a sample's outputs, or the sum if it says so.

    `MSELoss`, `L1Loss`, `HuberLoss`, `SmoothL1Loss`, `PoissonNLLLoss`, `CrossEntropyLoss`, `BCELoss` and
    `BCEWithLogitsLoss` use the Gauss-Newton curvature of their twin in this module; every other loss >= 0 with a
    ``reduction`` attribute the square-root trick by autograd.

    Parameters
    ----------
    criterion : torch.nn.Module
        The loss; copied, and evaluated with ``reduction="none"``.
    curvature : {"ggn", "sqrt"}, default=None
        ``None`` takes ``"ggn"`` where there is a twin.
    """

    criterion: Any

    def __init__(self, criterion: nn.Module, *, curvature: Curvature | None = None) -> None:
        if not isinstance(criterion, nn.Module) or not hasattr(criterion, "reduction"):
            raise ValueError(
                "`criterion` must be a torch loss with a `reduction` attribute; "
                f"got {criterion!r}. Subclass sklm.losses.Loss instead."
            )
        super().__init__(curvature="sqrt")
        self.sums = criterion.reduction == "sum"
        self.criterion = copy.deepcopy(criterion)
        self.criterion.reduction = "none"
        self.twin, self._twin_scale = _twin(self.criterion)
        self._twin_has_curvature = getattr(criterion, "weight", None) is None or isinstance(
            criterion, nn.CrossEntropyLoss
        )
        self.task = self.twin.task if self.twin else None
        self._set_curvature(curvature)

    def __repr__(self) -> str:
        return f"TorchLoss({self.criterion})"

    def _has_ggn(self) -> bool:
        return getattr(self, "twin", None) is not None and self._twin_has_curvature

    def value(self, outputs: Tensor, targets: Any) -> Tensor:
        if isinstance(self.twin, BinaryCrossEntropy) and not self.twin.from_logits and self._twin_has_curvature:
            values = self.twin.value(outputs, targets)  # as torch's, and nan where torch raises
            return values if self.sums else values / outputs.shape[1]
        values = self.criterion(outputs, targets)
        if not isinstance(values, Tensor) or values.shape[:1] != outputs.shape[:1]:
            raise ValueError(f"{self} must return one loss per sample with reduction='none'; pass another criterion.")
        values = values.reshape(len(outputs), -1)
        return values.sum(1) if self.sums else values.mean(1)

    def ggn(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        if self.twin is None:
            return super().ggn(outputs, targets)
        if isinstance(self.criterion, nn.CrossEntropyLoss):
            targets = _class_weights(self.criterion, outputs, targets)
            scale = 1.0
        else:
            scale = self._twin_scale if self.sums else self._twin_scale / outputs.shape[1]
        residual, factor = self.twin.ggn(outputs, targets)
        return residual * scale**0.5, factor * scale**0.5

    def prepare(self, outputs: Tensor, targets: Any) -> Any:
        if isinstance(self.criterion, nn.CrossEntropyLoss) and not targets.is_floating_point():
            if targets.numel() != len(outputs):
                return CrossEntropy().prepare(outputs, targets)  # raises
            targets = targets.reshape(-1).long()
            named = targets[targets != self.criterion.ignore_index]
            CrossEntropy().prepare(outputs[: len(named)], named)
            return targets
        if self.twin is not None:
            return self.twin.prepare(outputs, targets)
        fits = isinstance(targets, Tensor) and targets.is_floating_point() and targets.numel() == outputs.numel()
        return like_outputs(outputs, targets, self) if fits else targets

    def check_targets(self, targets: Tensor) -> None:
        if self.twin is not None:
            self.twin.check_targets(targets)

    def link(self, targets: Tensor) -> Tensor:
        return targets if self.twin is None else self.twin.link(targets)

    def mean(self, outputs: Tensor) -> Tensor:
        if type(self.criterion) is nn.NLLLoss:
            return outputs.exp()
        return outputs if self.twin is None else self.twin.mean(outputs)


def _twin(criterion: Any) -> tuple[Loss | None, float]:
    """Return the loss of this module with the same curvature up to a factor, and that factor; None for other losses."""
    if type(criterion).__module__ != "torch.nn.modules.loss":  # a subclass may compute something else
        return None, 1.0
    match criterion:
        case nn.MSELoss():
            return SquaredError(), 2.0
        case nn.L1Loss():
            return AbsoluteError(), 1.0
        case nn.HuberLoss():
            return Huber(delta=criterion.delta), 1.0
        case nn.SmoothL1Loss():
            beta = criterion.beta
            return (Huber(delta=beta), 1 / beta) if beta > 0 else (AbsoluteError(), 1.0)
        case nn.PoissonNLLLoss():
            return Poisson(log_link=criterion.log_input), 1.0
        case nn.CrossEntropyLoss():
            return CrossEntropy(), 1.0
        case nn.BCELoss():
            return BinaryCrossEntropy(from_logits=False), 1.0
        case nn.BCEWithLogitsLoss():
            weight = 1.0 if criterion.pos_weight is None else criterion.pos_weight
            return BinaryCrossEntropy(positive_weight=weight), 1.0
    return None, 1.0


def _class_weights(criterion: nn.CrossEntropyLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return torch's cross-entropy targets (with class weights, smoothing, ignored rows) as weights of the classes."""
    n_classes = outputs.shape[1]
    if targets.is_floating_point():
        weights, kept = targets, torch.ones_like(targets[:, :1])
    else:
        kept = (targets != criterion.ignore_index).to(outputs.dtype)[:, None]
        weights = F.one_hot(torch.where(kept[:, 0] > 0, targets, 0), n_classes).to(outputs.dtype)
    smoothing = criterion.label_smoothing
    weights = ((1 - smoothing) * weights + smoothing / n_classes) * kept
    return weights if criterion.weight is None else weights * criterion.weight.to(outputs)


def residual_form(loss: Loss, n_outputs: int) -> tuple[Loss | None, float]:
    """Return the loss of residuals f - y that `loss` is up to a factor, and the factor; None for other losses."""
    if isinstance(loss, _Elementwise):
        return loss, 1.0
    if isinstance(loss, TorchLoss) and isinstance(loss.twin, _Elementwise):
        return loss.twin, loss._twin_scale / (1 if loss.sums else n_outputs)
    return None, 1.0


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
    loss: Loss = resolve("criterion", criterion, BUILT_IN, Loss, keywords)
    return loss
