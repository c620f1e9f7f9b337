"""Losses of real-valued targets."""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from scipy import special
from torch import Tensor

from sklm.engine._checks import check_real
from sklm.engine.losses.base import Curvature, Loss, residual_and_diagonal

SMALLEST = 1e-300  # delta^2 / phi that a double holds with its root
NEAR_NORMAL = 1e8  # delta^2 / phi from which the noise of a robust loss is normal to rounding


class Elementwise(Loss):
    """Regression losses that are sums of rho(f - y) over the outputs, with weight psi(r) / r.

    They are multiples of the likelihood of noise r with the density exp(-rho(r) / phi) / Z(phi).
    """

    task = "regression"

    @abc.abstractmethod
    def _rho(self, residual: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _weight(self, residual: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def noise(self, phi: float) -> tuple[float, float]:
        """Return log(Z(phi) / sqrt(2 pi)) and the mean of rho(r) for noise r of this dispersion."""

    def value(self, outputs: Tensor, targets: Any) -> Tensor:
        values = self._rho(outputs - targets)
        return values[:, 0] if values.shape[1] == 1 else values.sum(1)  # a sum over one costs a pass over all

    def gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        residual = outputs - targets
        return self._weight(residual) * residual

    def ggn(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        residual = outputs - targets
        root = self._weight(residual).sqrt()
        return root * residual, torch.diag_embed(root)


class SquaredError(Elementwise):
    """Half the squared error, |f - y|^2 / 2 per sample.

    Parameters
    ----------
    curvature : {"ggn", "sqrt"}, default="ggn"
    """

    def _rho(self, residual: Tensor) -> Tensor:
        return residual.square().mul_(0.5)

    def _weight(self, residual: Tensor) -> Tensor:
        return torch.ones_like(residual)

    def noise(self, phi: float) -> tuple[float, float]:
        return _normal(phi)

    def ggn(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        residual = outputs - targets
        identity = torch.eye(residual.shape[1], dtype=residual.dtype, device=residual.device)
        return residual, identity.expand(len(residual), -1, -1)


class AbsoluteError(Elementwise):
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

    def noise(self, phi: float) -> tuple[float, float]:
        return math.log(2 * phi) - math.log(2 * math.pi) / 2, phi


def _normal(phi: float) -> tuple[float, float]:
    return math.log(phi) / 2, phi / 2


class _Robust(Elementwise):
    delta = 1.0

    def noise(self, phi: float) -> tuple[float, float]:
        ratio = max(self.delta / phi * self.delta, SMALLEST)  # without a power, which may overflow
        if ratio > NEAR_NORMAL:
            return _normal(phi)
        log_integral, mean = self._noise(ratio)  # with r in units of sqrt(phi)
        return log_integral + (math.log(phi) - math.log(2 * math.pi)) / 2, phi * mean

    @abc.abstractmethod
    def _noise(self, ratio: float) -> tuple[float, float]:
        """Return log Z and the mean of rho for phi = 1 and delta^2 = ratio."""

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

    def _noise(self, ratio: float) -> tuple[float, float]:
        delta, tail = math.sqrt(ratio), math.exp(-ratio / 2)
        within = math.sqrt(2 * math.pi) * math.erf(delta / math.sqrt(2))
        integral = within + 2 / delta * tail
        of_rho = within / 2 - delta * tail + 2 / delta * (1 + ratio / 2) * tail
        return math.log(integral), of_rho / integral


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

    def _noise(self, ratio: float) -> tuple[float, float]:  # the hyperbolic distribution
        zero, one = special.kve(0, ratio), special.kve(1, ratio)
        return math.log(2 * math.sqrt(ratio) * one), 1 - ratio * float(1 - zero / one)


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

    def _noise(self, ratio: float) -> tuple[float, float]:  # Student's t with ratio - 1 degrees of freedom
        if ratio <= 1:
            return math.inf, math.inf
        log_integral = math.log(math.pi * ratio) / 2 + math.lgamma((ratio - 1) / 2) - math.lgamma(ratio / 2)
        mean = ratio / 2 * float(special.digamma(ratio / 2) - special.digamma((ratio - 1) / 2))
        return log_integral, mean


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
        self.shift = 0.0  # of the expected count in the likelihood: torch's `eps`

    def value(self, outputs: Tensor, targets: Any) -> Tensor:
        mean = outputs.exp() if self.log_link else outputs
        product = targets * outputs if self.log_link else torch.xlogy(targets, outputs + self.shift)
        deviance = mean - product - targets + torch.xlogy(targets, targets)
        if not self.log_link:
            deviance = torch.where(outputs < 0, torch.nan, deviance)  # no count is below 0
        return deviance.clamp_min(0).sum(1)

    def gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        if self.log_link:
            return outputs.exp() - targets
        return 1 - torch.where(targets == 0, 0.0, targets / (outputs + self.shift))

    def ggn(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        if self.log_link:
            curvature = outputs.exp()
        else:  # finite where nothing is expected, and nothing counted
            least = torch.where(targets == 0, torch.finfo(outputs.dtype).eps ** 2, 0.0)
            curvature = 1 / torch.maximum(outputs + self.shift, least)
        return residual_and_diagonal(self.gradient(outputs, targets), curvature)

    def check_targets(self, targets: Tensor) -> None:
        if bool((targets < 0).any()):
            raise ValueError(f"{self} needs y >= 0; got {targets.min().item():g}. Pass another criterion.")

    def link(self, targets: Tensor) -> Tensor:
        if not self.log_link:
            return targets
        positive = targets[targets > 0]
        least = positive.min() if positive.numel() else 1.0  # about a count, over the exposure
        return targets.clamp_min(least / 2).log()  # half of it stands for none

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.exp() if self.log_link else outputs
