"""The interface of all losses; see the text of `sklm.engine.losses`."""

from __future__ import annotations

import abc
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sklm.engine._checks import check_choice

ROUNDING = 1000  # times the machine epsilon: how far below 0 a loss may be, for outputs of size one

Curvature = Literal["ggn", "sqrt", "mc"]


class Loss(nn.Module, abc.ABC):
    """A loss per sample, as a sum of squares near the current outputs.

    Subclass it to fit with a loss of your own: `value` is enough (the curvature is then the square-root trick);
    override `ggn` too where a better curvature is known.

    Parameters
    ----------
    curvature : {"ggn", "sqrt", "mc"}, default=None
        Generalized Gauss-Newton, square-root trick or sampled Gauss-Newton, see the module text. ``None`` takes
        ``"ggn"`` where the loss defines it, else ``"sqrt"``.

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
        check_choice("criterion__curvature", curvature, ["ggn", "sqrt", "mc"])
        if curvature == "ggn" and not self._has_ggn():
            raise ValueError(
                f"`criterion__curvature='ggn'` needs a loss that defines it, and {self} does not; "
                "pass curvature='sqrt' or override `ggn`."
            )
        if curvature == "mc" and not self._has_sampled():
            raise ValueError(
                f"`criterion__curvature='mc'` is for the cross-entropy of several classes, which {self} is not; "
                "pass 'ggn' or 'sqrt'."
            )
        self.curvature = curvature

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _has_ggn(self) -> bool:
        return type(self).ggn is not Loss.ggn

    def _has_sampled(self) -> bool:
        return type(self).sampled is not Loss.sampled

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

    def sampled(self, outputs: Tensor, targets: Any, uniform: Tensor) -> Tensor:
        """Return the factor (n_samples, 1, n_outputs) of a curvature whose mean over draws is that of `ggn`.

        Parameters
        ----------
        outputs, targets
            As in `linearize`.
        uniform : Tensor of shape (n_samples,)
            Random numbers, uniform on [0, 1), from which the draws are made.
        """
        raise TypeError(f"{type(self).__name__} defines no sampled curvature.")

    def linearize(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Return residual r and factor S of the chosen curvature, with S'r the gradient and S'S the curvature.

        For ``"mc"`` those of ``"ggn"``, the mean of its draws.

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
        if self.curvature != "sqrt":
            return self.ggn(outputs, targets)
        value = self.value(outputs, targets).detach()
        rounding = ROUNDING * torch.finfo(value.dtype).eps
        if bool((value < -rounding * outputs.detach().abs().clamp_min(1).amax(1)).any()):
            raise ValueError(
                f"`criterion__curvature='sqrt'` needs a loss >= 0; {self} is {value.min().item():.3g} for a sample. "
                "Pass another criterion, or 'ggn' where the loss has it."
            )
        residual = (2 * value.clamp_min(0)).sqrt()
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
            f"{tuple(targets.shape)}. Make the module's number of outputs match y; a formula has one, a function that "
            "sklm.curve takes may return more with torch.stack([...], 1)."
        )
    return targets.to(outputs.dtype).reshape(outputs.shape)


def residual_and_diagonal(gradient: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Return residual and factor for elementwise losses.

    The floor keeps the residual of a saturated output from drowning all others; the gradient stays exact.
    """
    root = curvature.clamp_min(torch.finfo(curvature.dtype).eps).sqrt()
    return gradient / root, torch.diag_embed(root)
