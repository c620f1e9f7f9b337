"""Loss modules of torch, with the curvature of their twins here."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklm.engine.losses.base import Curvature, Loss, like_outputs
from sklm.engine.losses.classification import BinaryCrossEntropy, CrossEntropy
from sklm.engine.losses.regression import AbsoluteError, Huber, Poisson, SquaredError


class TorchLoss(Loss):
    """A torch loss module, in torch's own scaling: the mean over a sample's outputs, or the sum if it says so.

    `MSELoss`, `L1Loss`, `HuberLoss`, `SmoothL1Loss`, `PoissonNLLLoss`, `CrossEntropyLoss`, `BCELoss` and
    `BCEWithLogitsLoss` (the last two without ``weight``) use the Gauss-Newton curvature of their twin in this module;
    every other loss >= 0 with a ``reduction`` attribute the square-root trick by autograd.

    Parameters
    ----------
    criterion : torch.nn.Module
        The loss; copied, and evaluated with ``reduction="none"``.
    curvature : {"ggn", "sqrt", "mc"}, default=None
        ``None`` takes ``"ggn"`` where there is a twin; ``"mc"`` is for `CrossEntropyLoss`.
    """

    criterion: Any

    def __init__(self, criterion: nn.Module, *, curvature: Curvature | None = None) -> None:
        if not isinstance(criterion, nn.Module) or not hasattr(criterion, "reduction"):
            raise ValueError(
                "`criterion` must be a torch loss with a `reduction` attribute; "
                f"got {criterion!r}. Subclass sklm.losses.Loss instead."
            )
        weight = criterion.weight if isinstance(criterion, (nn.BCELoss, nn.BCEWithLogitsLoss)) else None
        if weight is not None and weight.ndim > 1 and len(weight) > 1:
            raise ValueError(
                f"`criterion` must have a weight per output; got one of shape {tuple(weight.shape)}. Pass weights of "
                "samples as `sample_weight` of fit, or `weights` of a step."
            )
        super().__init__(curvature="sqrt")
        self.sums = criterion.reduction in ("sum", "batchmean")
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

    def _has_sampled(self) -> bool:
        return isinstance(getattr(self, "twin", None), CrossEntropy)

    def value(self, outputs: Tensor, targets: Any) -> Tensor:
        if isinstance(self.twin, BinaryCrossEntropy) and not self.twin.from_logits:  # nan where torch raises
            inside = (outputs >= 0) & (outputs <= 1)
            values = torch.where(inside, self.criterion(torch.where(inside, outputs, 0.5), targets), torch.nan)
        else:
            values = self.criterion(outputs, targets)
        if not isinstance(values, Tensor) or values.shape[:1] != outputs.shape[:1]:
            raise ValueError(f"{self} must return one loss per sample with reduction='none'; pass another criterion.")
        values = values.reshape(len(outputs), -1)
        alike = isinstance(targets, Tensor) and targets.numel() == outputs.numel()
        if alike and values.shape[1] == len(outputs) > 1 == outputs.shape[1]:
            raise ValueError(
                f"{self} mixes the samples: it returned {len(values)} x {len(values)} losses. Give targets the shape "
                f"{tuple(outputs.shape)} of the outputs, and weights of samples as weights of the step."
            )
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

    def sampled(self, outputs: Tensor, targets: Any, uniform: Tensor) -> Tensor:
        if not isinstance(self.twin, CrossEntropy):
            return super().sampled(outputs, targets, uniform)
        return self.twin.sampled(outputs, _class_weights(self.criterion, outputs, targets), uniform)

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
        fits = isinstance(targets, Tensor) and targets.numel() == outputs.numel() and len(targets) == len(outputs)
        if not fits:
            return targets
        return like_outputs(outputs, targets, self) if targets.is_floating_point() else targets.reshape(outputs.shape)

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
            poisson = Poisson(log_link=criterion.log_input)
            poisson.shift = criterion.eps
            return poisson, 1.0
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
