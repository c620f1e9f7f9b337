r"""Inference: what a fit says about its parameters and predictions, from the curvature at its minimum.

With rows J_i of the derivative of the outputs, weights w_i, residuals r_i = f_i - y_i and the penalty alpha, the
classical covariance of least squares is

    C = s^2 (sum w_i J_i' J_i + alpha I)^-1,      s^2 = sum w_i r_i^2 / dof,      dof = n - p_eff,

with p_eff = tr((H + alpha I)^-1 H), the number of parameters that the data determine (MacKay 1992), p for alpha = 0;
where the evidence sets alpha, with its wide prior on the biases too.
Weights are relative precisions, or with `absolute_sigma` (s = 1) true ones, as `sigma` in `scipy.optimize.curve_fit`: n
counts the rows with a positive weight.

* The residuals of several outputs have a covariance S = sum w_i r_i r_i' / dof, with dof = n - p_eff / n_outputs, and
  C = H^-1 (sum w_i J_i' S J_i) H^-1. With fewer than `SHARED` rows per parameter S is its diagonal, as the parameters
  have taken what the outputs have in common; with `absolute_sigma` S = I.
* Robust losses: the curvature of output k is H_k times psi_k', the mean of psi' by the weights, and s_k^2 is replaced
  by K_k^2 n / dof (sum w^2 psi^2 / sum w) / psi_k'^2, the variance of an M-estimator, where K_k = 1 + (1 - dof / n)
  times the variance of psi' over psi_k'^2 (Huber 1981, "Robust statistics", eq. 7.6.5 to 7.6.7); S likewise; with
  `absolute_sigma` by that over the robust variance of the residuals, both at least 1, and S is diagonal. Weights that
  go with the inputs ask for the sandwich, as psi then does too.
* Likelihoods (Poisson, cross-entropy): C is the inverse Fisher information.
* ``"sandwich"``: C = n / (n - p) H^-1 (sum w_i^2 g_i g_i') H^-1 with the gradients g_i of the samples (White 1980; HC1
  of MacKinnon and White 1985), valid when the variance of the noise differs from sample to sample. For robust losses
  H = sum w_i J_i' psi_i' J_i, as then psi' is not independent of J.

All from a QR of the rows with columns of norm one, so that digits are not lost to the scale of the parameters.
Directions that the data do not determine (`RANK_TOLERANCE`) have no variance of their own: the parameters in them get
a missing standard error, and the others the one of the remaining directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from sklm.engine.bounds import Box
from sklm.engine.evidence import prior_of_others
from sklm.engine.inputs import map_tensors
from sklm.engine.jacobian import ModuleFunction, element_names
from sklm.engine.losses import Elementwise, Loss, SquaredError, plain_form
from sklm.engine.memory import samples_per_chunk
from sklm.engine.solvers import reduce_rows

MAX_PARAMS = 5000  # a covariance of 200 MB
RANK_TOLERANCE = 1e-10  # of the singular values, with columns of norm 1
LEAK = 1e-6  # share of a prediction's derivative in such directions from which its variance is infinite
NO_DOF = 1e-9  # degrees of freedom, relative to the rows, that are rounding
MAD = 1.4826  # standard deviation of a normal variable over the median of its size
FLAT = 1e-6  # psi' over psi / r that is rounding
SHARED = 10  # rows per parameter from which the residuals tell the noise that outputs have in common
NUDGE = 1e-4  # of a parameter, to see whether it changes the outputs
SHARE = 1e-2  # of a direction that the data do not determine: a parameter with less does not belong to it


class NoCovarianceError(ValueError, AttributeError):
    """There is no covariance; also an AttributeError, as scikit-learn's NotFittedError, so that `hasattr` works."""


@dataclass(frozen=True)
class Problem:
    """A fitted module with the data it was fitted to, in float64.

    Attributes
    ----------
    module : torch.nn.Module
    criterion : Loss
    inputs, targets : tensors with samples along the first axis
    weights : Tensor of shape (n_samples,)
    alpha : float
    bounds : dict of str to (lower, upper)
    absolute_sigma : bool
    triangle : Tensor of shape (n_params, n_params) or None
        R of the rows sqrt(w_i) J_i over all parameters, where the fit has left it.
    rows_per_weight : float or None
        For alpha from the evidence, which has a wide prior on the other parameters too, see `sklm.engine.evidence`.
    """

    module: nn.Module
    criterion: Loss
    inputs: Any
    targets: Tensor
    weights: Tensor
    alpha: float
    bounds: Mapping[str, tuple[Any, Any]]
    absolute_sigma: bool
    triangle: Tensor | None = None
    rows_per_weight: float | None = None


@dataclass(frozen=True)
class Inference:
    """What `infer` finds; vectors and matrices are over the trainable numbers of the module.

    Attributes
    ----------
    names : list of str
    estimates : ndarray of shape (n_params,)
    covariance : ndarray of shape (n_params, n_params)
        nan where there is none.
    reasons : dict of str to str
        Why a parameter has no standard error.
    root : Tensor of shape (k, n_params)
        root' root is the covariance over what the data determine, zero elsewhere; for predictions.
    null : Tensor of shape (n_null, n_params)
        Directions that the data do not determine, in units of `scale`.
    scale : Tensor of shape (n_params,)
        Norms of the columns of the Jacobian.
    n_samples, n_outputs : int
    n_effective : float
        Parameters that the data determine, and those at a bound.
    dof : float
        Degrees of freedom, per output.
    residual_variance : ndarray of shape (n_outputs,)
    chi_square : float
        Weighted sum of squared residuals; for a likelihood the deviance.
    dispersion : float
        What twice the loss is measured in: the residual variance, or 1 where that is known.
    aic, bic : float
    unidentified : list of str
        Sentences about parameters that the data do not tell apart.
    """

    names: list[str]
    estimates: np.ndarray
    covariance: np.ndarray
    reasons: dict[str, str]
    root: Tensor
    null: Tensor
    scale: Tensor
    n_samples: int
    n_outputs: int
    n_effective: float
    dof: float
    residual_variance: np.ndarray
    chi_square: float
    dispersion: float
    aic: float
    bic: float
    unidentified: list[str]

    @property
    def standard_errors(self) -> np.ndarray:
        errors: np.ndarray = np.sqrt(np.diag(self.covariance))
        return errors

    @property
    def correlation(self) -> np.ndarray:
        errors = self.standard_errors
        with np.errstate(invalid="ignore"):
            correlation: np.ndarray = self.covariance / np.outer(errors, errors)
        return correlation

    def quantile(self, level: float) -> float:
        """Return the factor on a standard error for a two-sided interval of this level: Student's t, or normal."""
        dof = self.dof if self.dof > 0 else math.nan
        return float(stats.t.ppf((1 + level) / 2, dof if math.isfinite(self.dof) else math.inf))


def _function(module: nn.Module) -> ModuleFunction:
    """Return the function of a module, that is not evaluated outside its bounds."""
    function, bounds = ModuleFunction(module), getattr(module, "parameter_bounds", None)
    function.box = Box(bounds, function.parameters) if bounds else None
    return function


def has_covariance(criterion: Loss) -> bool:
    """Return whether the loss has residuals or a curvature that stands for its Fisher information."""
    plain, _ = plain_form(criterion, 1)
    return isinstance(plain, Elementwise) or plain._has_ggn()


def infer(problem: Problem, kind: str, function: ModuleFunction | None = None) -> Inference:
    """Return the inference of kind ``"classical"`` or ``"sandwich"``, see the module text; `function` of the module."""
    function = function or _function(problem.module)
    if function.n_params > MAX_PARAMS:
        raise NoCovarianceError(
            f"the covariance of {function.n_params} parameters does not fit; there may be at most {MAX_PARAMS}. Use a "
            "smaller module, or freeze parameters with requires_grad_(False)."
        )
    if not has_covariance(problem.criterion):
        raise NoCovarianceError(
            f"`criterion` {problem.criterion} has neither residuals nor a Gauss-Newton curvature, and so no "
            "covariance; fit with a built-in loss."
        )
    theta = function.vector()
    with torch.no_grad():
        outputs = function.outputs(theta, problem.inputs)
        targets = plain_form(problem.criterion, 1)[0].prepare(outputs, problem.targets)
        return _Curvature(problem, kind, function, theta, outputs, targets).summarize()


class _Curvature:
    """The pieces of `infer` that depend on one another."""

    def __init__(
        self, problem: Problem, kind: str, function: ModuleFunction, theta: Tensor, outputs: Tensor, targets: Tensor
    ) -> None:
        self.kind = kind
        self.problem, self.function, self.theta, self.outputs, self.targets = problem, function, theta, outputs, targets
        self.n_samples, self.n_outputs = outputs.shape
        self.loss, scale = plain_form(problem.criterion, self.n_outputs)
        self.has_residuals = isinstance(self.loss, Elementwise)
        self.free = self._free()
        self.held = (~self.free).nonzero()[:, 0].tolist()
        self.is_robust = self.has_residuals and not isinstance(self.loss, SquaredError)
        self.slopes = self.shares = outputs.new_ones(self.n_outputs)  # mean psi' of every output, and over that of all
        self.n_curved = outputs.new_full((self.n_outputs,), math.inf)
        self.negative: Tensor | None = None  # triangle of the rows where psi' < 0, for the sandwich
        if self.is_robust:
            scale *= self._measure_slopes()
        known = problem.triangle if isinstance(self.loss, SquaredError) and not self.held else None
        self.triangle = self.reduced(self._factor()) if known is None else known
        self.penalty = theta.new_zeros(len(theta) - len(self.held))
        if problem.alpha:
            penalty = problem.alpha * function.penalized.to(theta)
            if problem.rows_per_weight is not None:
                penalty = penalty + self._prior_of_others() / problem.rows_per_weight
            self.penalty = penalty[self.free] / scale
        self._invert()

    def _free(self) -> Tensor:
        """Return which parameters no bound holds."""
        free = torch.ones_like(self.theta, dtype=torch.bool)
        if self.problem.bounds:
            box = Box(self.problem.bounds, self.function.parameters)
            lower, upper = box.select(None, self.theta)
            free = (self.theta > lower) & (self.theta < upper)
        return free

    def _prior_of_others(self) -> Tensor:
        criterion, weights = self.problem.criterion, self.problem.weights
        targets = criterion.prepare(self.outputs, self.problem.targets)
        loss = float(weights @ criterion.value(self.outputs, targets) / weights.sum())
        tau = prior_of_others(self.theta, self.function.penalized, loss, self.n_outputs, criterion)
        return tau.to(self.theta)

    def _factor(self) -> Tensor:
        """Return the factors whose rows with the Jacobian have the curvature of the loss as their Gram matrix."""
        root = self.problem.weights.sqrt()[:, None, None]
        if self.is_robust and self.kind == "sandwich":
            return root * torch.diag_embed(self.bends.clamp_min(0).sqrt())
        if self.has_residuals:
            return root * torch.diag(self.shares.sqrt())
        return root * self.loss.ggn(self.outputs, self.targets)[1]

    def reduced(self, factor: Tensor) -> Tensor:
        """Return the triangle of the rows factor_i J_i over the free parameters."""
        indices = self.free.nonzero()[:, 0]
        chunk = samples_per_chunk("auto", self.n_samples, factor.shape[1], self.theta)
        zero = self.theta.new_zeros(len(indices))

        def rows() -> Iterator[tuple[Tensor, Tensor]]:
            for block in self.function.rows(self.theta, indices, self.problem.inputs, factor, chunk=chunk):
                flat = block.flatten(0, 1)
                yield flat, flat.new_zeros(len(flat))

        return reduce_rows(rows(), zero, zero)[0]

    def _measure_slopes(self) -> float:
        """Set psi', its weighted means and how many residuals share in them; return what H is a multiple of."""
        loss: Any = self.loss
        with torch.enable_grad():
            leaf = self.outputs.detach().requires_grad_()
            (bends,) = torch.autograd.grad(loss.gradient(leaf, self.targets).sum(), leaf)
        noticed = bends.abs() > FLAT * loss._weight(self.outputs - self.targets)
        self.bends = torch.where(noticed, bends, 0.0)
        weights = self.problem.weights
        self.slopes = (weights[:, None] * self.bends).sum(0) / weights.sum()
        squares = self.bends.square().sum(0)
        self.n_curved = torch.where(squares > 0, self.bends.sum(0).square() / squares, 0.0)
        if self.kind == "sandwich":
            if bool((self.bends < 0).any()):
                root = (weights[:, None] * -self.bends.clamp_max(0)).sqrt()
                self.negative = self.reduced(torch.diag_embed(root))
            return 1.0
        if not bool((self.slopes > 0).all()):
            return 1.0
        mean = float(self.slopes.mean())
        self.shares = self.slopes / mean
        return mean

    def _invert(self) -> None:
        """Set `inverse_root` L with L L' = (H + penalty)^-1 where it exists, and what does not."""
        total = torch.cat([self.triangle, torch.diag(self.penalty.sqrt())])
        norms = torch.linalg.vector_norm(total, dim=0)
        scale = torch.where(norms > 0, norms, 1.0)
        if not len(norms):
            self.inverse_root = total.new_zeros(0, 0)
            self.null, self.scale = total.new_zeros(0, 0), scale
            self.n_effective = 0.0
            return
        _, values, right = torch.linalg.svd(total / scale, full_matrices=True)
        kept = values > RANK_TOLERANCE * values[0]
        self.null, self.scale = right[~kept].T, scale
        self.inverse_root = right[kept].T / values[kept] / scale[:, None]
        if self.negative is not None:
            pulled = self.negative @ self.inverse_root
            factor, failed = torch.linalg.cholesky_ex(torch.eye(pulled.shape[1]).to(pulled) - pulled.T @ pulled)
            if bool(failed):
                self.n_curved = torch.zeros_like(self.n_curved)
            else:
                self.inverse_root = torch.linalg.solve_triangular(factor.T, self.inverse_root, upper=True, left=False)
        self.n_effective = float(kept.sum())
        if self.problem.alpha:
            self.n_effective = float((self.triangle @ self.inverse_root).square().sum())
            if self.negative is not None:
                self.n_effective -= float((self.negative @ self.inverse_root).square().sum())

    def _robust_variance(self) -> Tensor:
        """Return the squared median size of the weighted residuals, in units of a normal standard deviation.

        It wants the same correction for the parameters as a sum of squares.
        """
        sizes = (self.problem.weights.sqrt()[:, None] * (self.outputs - self.targets)).abs()
        return (MAD * sizes.quantile(0.5, dim=0)).square()

    def _barely_curved(self) -> bool:
        """Return whether hardly more residuals than parameters have a psi', so that its mean says nothing."""
        return bool((self.n_curved <= 2 * self.n_effective / self.n_outputs).any())

    def summarize(self) -> Inference:
        problem, n_samples = self.problem, self.n_samples
        n_params = self.n_effective + len(self.held)  # one at a bound was fitted too
        dof = n_samples - n_params / self.n_outputs
        if dof <= NO_DOF * n_samples:
            dof = 0.0
        weights = problem.weights[:, None]
        variance = self.outputs.new_full((self.n_outputs,), math.nan)
        if self.has_residuals:
            squares = (weights * (self.outputs - self.targets).square()).sum(0)
            chi_square = float(squares.sum())
            fit = math.nan
            if isinstance(self.loss, SquaredError):
                fit = n_samples * float(torch.log(squares / n_samples).sum())
            if dof:
                variance = (
                    squares / dof if isinstance(self.loss, SquaredError) else self._robust_variance() * n_samples / dof
                )
        else:
            chi_square = fit = 2 * float(problem.weights @ self.loss.value(self.outputs, self.targets))
        known = problem.absolute_sigma or not self.has_residuals
        noise = self._noise_root(variance, dof, known=known)
        dispersion = noise.square().sum(0).mean()
        root = self._root(noise, dispersion, dof)
        full, null = self._over_all(root), self._over_all(self.null.T)
        scale = self._over_all(self.scale, 1.0)
        covariance = (full.T @ full).cpu().numpy()
        names = element_names(self.function.parameters.items())
        reasons, unidentified = self._missing(names, dof, bool(torch.isfinite(root).all()))
        missing = [i for i, name in enumerate(names) if name in reasons]
        covariance[missing, :] = math.nan
        covariance[:, missing] = math.nan
        n_observations = n_samples * self.n_outputs
        return Inference(
            names=names,
            estimates=self.theta.cpu().numpy(),
            covariance=covariance,
            reasons=reasons,
            root=full.cpu(),
            null=null.cpu(),
            scale=scale.cpu(),
            n_samples=n_samples,
            n_outputs=self.n_outputs,
            n_effective=n_params,
            dof=math.inf if known else dof,
            residual_variance=variance.cpu().numpy(),
            chi_square=chi_square,
            dispersion=1.0 if known else float(dispersion),
            aic=fit + 2 * n_params,
            bic=fit + math.log(n_observations) * n_params,
            unidentified=unidentified,
        )

    def _over_all(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Return numbers for the free parameters as numbers for all, with `fill` for those that a bound holds."""
        if not self.held:
            return values
        full = values.new_full((*values.shape[:-1], len(self.theta)), fill)
        full[..., self.free] = values
        return full

    def _noise_root(self, variance: Tensor, dof: float, *, known: bool) -> Tensor:
        """Return a matrix whose Gram matrix is the covariance of the noise of the outputs: S of the module text."""
        weights = self.problem.weights[:, None]
        if self._barely_curved():
            return torch.diag(torch.full_like(variance, math.nan))
        if known and not (self.is_robust and dof):
            return torch.diag(torch.ones_like(variance))
        if not dof:
            return torch.diag(torch.full_like(variance, math.nan))
        if not self.is_robust:
            return self._triangle(weights.sqrt() * (self.outputs - self.targets)) / math.sqrt(dof)
        psi = weights * self.loss.gradient(self.outputs, self.targets) / weights.sum().sqrt()
        spread = self.n_samples / self.n_curved - 1  # variance of psi' over its squared mean
        inflation = (1 + (self.n_samples - dof) / self.n_samples * spread) / self.slopes
        noise = self._triangle(psi * inflation) * math.sqrt(self.n_samples / dof)
        if known:  # the errors have variance 1, so least squares is the best there is
            relative = noise.square().sum(0) / variance.clamp_min(1)
            noise = torch.diag(relative.nan_to_num(nan=1.0).clamp_min(1).sqrt())
        return noise

    def _triangle(self, scores: Tensor) -> Tensor:
        """Return a matrix with the Gram matrix of the scores, (n_samples, n_outputs), or with the diagonal of that."""
        if self.n_samples < SHARED * self.n_effective:
            return torch.diag(torch.linalg.vector_norm(scores, dim=0))
        return torch.linalg.qr(scores, mode="r").R

    def _root(self, noise: Tensor, dispersion: Tensor, dof: float) -> Tensor:
        """Return a matrix whose Gram matrix is the covariance over the free parameters."""
        inverse_root = self.inverse_root
        if self.kind == "classical":
            if self.n_outputs == 1 or not self.has_residuals:
                return dispersion.sqrt() * inverse_root.T
            factor = self.problem.weights.sqrt()[:, None, None] * noise * self.shares
            penalty = dispersion.sqrt() * torch.diag(self.penalty.sqrt())
            return torch.cat([penalty, self.reduced(factor)]) @ inverse_root @ inverse_root.T
        gradient = self.loss.gradient(self.outputs, self.targets) * self.problem.weights[:, None]
        if self._barely_curved():
            gradient = torch.full_like(gradient, math.nan)
        correction = math.sqrt(self.n_samples / dof) if dof else math.nan
        return correction * self.reduced(gradient[:, None, :]) @ inverse_root @ inverse_root.T

    def _moves_outputs(self, index: int) -> bool:
        """Return whether the outputs change in proportion to a parameter, a tenth as much for a tenth of the change."""
        changes = []
        for size in (NUDGE, NUDGE / 10):
            theta = self.theta.clone()
            theta[index] += size * max(1.0, abs(float(theta[index])))
            moved = self.function.outputs(theta, self.problem.inputs)
            changes.append(float(torch.linalg.vector_norm(moved - self.outputs)))
        return 0.05 < changes[1] / (changes[0] or math.inf) < 0.5

    def _missing(self, names: list[str], dof: float, is_finite: bool) -> tuple[dict[str, str], list[str]]:
        """Return why parameters have no standard error, and sentences about those that are not told apart."""
        reasons = {names[i]: f"at its bound {float(self.theta[i])!r}" for i in self.held}
        positions = self.free.nonzero()[:, 0].tolist()
        sentences = []
        for direction in self.null.T:
            members = [names[positions[i]] for i in (direction.abs() > SHARE).nonzero()[:, 0].tolist()]
            if len(members) == 1 and self._moves_outputs(names.index(members[0])):
                sentences.append(
                    f"the outputs depend on parameter {members[0]}, but their derivative by it is zero; start it "
                    "elsewhere, or in a function of your own compute them with torch operations, without the math "
                    "module, .item(), .detach() or .numpy()"
                )
                continue
            if len(members) == 1:
                sentences.append(f"parameter {members[0]} has no influence on the loss")
                continue
            first, second = direction[direction.abs().topk(2).indices].sign().tolist()
            correlation = f" (correlation {first * second:.4f})" if len(members) == 2 else ""
            sentences.append(f"parameters {_listed(members)} are not separately identifiable{correlation}")
        for i in (self.null.abs() > SHARE).any(1).nonzero()[:, 0].tolist():
            reasons[names[positions[i]]] = "not identifiable"
        if not is_finite:
            why = (
                "the loss has no curvature at most residuals; use a larger delta, or soft_l1 in place of absolute_error"
                if dof
                else "no degrees of freedom are left"
            )
            reasons |= {name: why for name in names if name not in reasons}
        return reasons, sentences


def _listed(names: list[str]) -> str:
    shown = names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"]
    return ", ".join(shown[:-1]) + f" and {shown[-1]}"


def prediction_variance(inference: Inference, module: nn.Module, inputs: Any, n_samples: int) -> np.ndarray:
    """Return the variance of the module's outputs by the delta method, shape (n_samples, n_outputs).

    Infinite where an output depends on a direction of the parameters that the data do not determine.
    """
    function = _function(module)
    theta = function.vector()
    factor = torch.eye(inference.n_outputs).to(theta).expand(n_samples, -1, -1)
    chunk = samples_per_chunk("auto", n_samples, inference.n_outputs, theta)
    root, null, scale = inference.root.to(theta), inference.null.to(theta), inference.scale.to(theta)

    def variance_of(block: Tensor) -> Tensor:
        variance = (block @ root.T).square().sum(2)
        scaled = block / scale
        leak = torch.linalg.vector_norm(scaled @ null.T, dim=2) > LEAK * torch.linalg.vector_norm(scaled, dim=2)
        return torch.where(leak, math.inf, variance)

    with torch.no_grad():
        parts = [variance_of(block) for block in function.rows(theta, None, inputs, factor, chunk=chunk)]
    variance: np.ndarray = torch.cat(parts).cpu().numpy()
    return variance


def to_float64(tensors: Any, device: torch.device) -> Any:
    """Return real tensors in float64 on `device`."""
    return map_tensors(lambda tensor: tensor.to(device, torch.float64 if tensor.is_floating_point() else None), tensors)
