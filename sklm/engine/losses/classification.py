"""Losses of class labels and probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sklm.engine._checks import check_real
from sklm.engine.losses.base import Curvature, Loss, like_outputs, residual_and_diagonal


class CrossEntropy(Loss):
    """Softmax cross-entropy from logits of shape (n_samples, n_classes).

    Targets are class indices (n_samples,), or weights of the classes (n_samples, n_classes), for instance
    probabilities.

    Parameters
    ----------
    curvature : {"ggn", "sqrt", "mc"}, default="ggn"
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
        return -torch.where(targets == 0, 0.0, targets * outputs.log_softmax(1)).sum(1)  # a logit may be -inf

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

    def sampled(self, outputs: Tensor, targets: Any, uniform: Tensor) -> Tensor:
        # A class c drawn from p gives the row S = sqrt(s) (p - e_c); E[e_c] = p makes E[S'S] = s (diag(p) - pp').
        probability = outputs.softmax(1)
        drawn = (probability.cumsum(1) <= uniform[:, None]).sum(1).clamp_max(outputs.shape[1] - 1)
        row = probability - F.one_hot(drawn, outputs.shape[1])
        return (targets.sum(1, keepdim=True).sqrt() * row)[:, None, :]

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
        return residual_and_diagonal(self.gradient(outputs, targets), curvature)

    @staticmethod
    def _fisher(probability: Tensor) -> Tensor:
        # torch clamps log p at -100 in the value; the same point keeps this finite
        return 1 / (probability * (1 - probability)).clamp_min(torch.finfo(probability.dtype).eps ** 2)

    def check_targets(self, targets: Tensor) -> None:
        if bool(((targets < 0) | (targets > 1)).any()):
            raise ValueError(f"{self} needs targets between 0 and 1; encode the two classes as 0 and 1.")

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid() if self.from_logits else outputs
