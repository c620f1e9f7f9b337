r"""Inference: what a fit says about its parameters and predictions, from the curvature at its minimum.

With rows J_i of the derivative of the outputs, weights w_i, residuals r_i = f_i - y_i and the penalty alpha, the
classical covariance of least squares is

    C = s^2 (sum w_i J_i' J_i + alpha I)^-1,      s^2 = sum w_i r_i^2 / dof,      dof = n - p_eff,

with p_eff = tr((H + alpha I)^-1 H), the number of parameters that the data determine (MacKay 1992), p for alpha = 0.
Weights are relative precisions, as `sigma` in `scipy.optimize.curve_fit`: n counts the rows with a positive weight.

* Several outputs have a variance s_k^2 each, with n - p_eff / n_outputs degrees of freedom, and
  C = H^-1 (sum_k s_k^2 H_k) H^-1 with the curvature H_k of output k: exact for outputs that share no parameter.
* Robust losses: s^2 is replaced by (sum w psi^2 / dof) / (mean psi')^2, the variance of an M-estimator (Huber 1981,
  "Robust statistics", eq. 7.6.7).
* Likelihoods (Poisson, cross-entropy): C is the inverse Fisher information.
* ``"sandwich"``: C = n / (n - p) H^-1 (sum w_i^2 g_i g_i') H^-1 with the gradients g_i of the samples (White 1980; HC1
  of MacKinnon and White 1985), valid when the variance of the noise differs from sample to sample.

All from a QR of the rows with columns of norm one, so that digits are not lost to the scale of the parameters.
Directions that the data do not determine (`RANK_TOLERANCE`) have no variance of their own: the parameters in them get
a missing standard error, and the others the one of the remaining directions.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor, nn

from sklm.engine import LevenbergMarquardt
from sklm.engine.bounds import Box
from sklm.engine.jacobian import ModuleFunction, map_tensors, samples_per_chunk
from sklm.engine.losses import Loss, SquaredError, residual_form
from sklm.engine.solvers import reduce_rows

MAX_PARAMS = 5000  # a covariance of 200 MB
RANK_TOLERANCE = 1e-9  # of the singular values, with columns of norm 1
SHARE = 1e-2  # of a direction that the data do not determine: a parameter with less does not belong to it


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
    """

    module: nn.Module
    criterion: Loss
    inputs: Any
    targets: Tensor
    weights: Tensor
    alpha: float
    bounds: Mapping[str, tuple[Any, Any]]
    absolute_sigma: bool


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
    n_samples, n_outputs : int
    n_effective : float
        Parameters that the data determine.
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
        correlation: np.ndarray = self.covariance / np.outer(errors, errors)
        return correlation

    def quantile(self, level: float) -> float:
        """Return the factor on a standard error for a two-sided interval of this level: Student's t, or normal."""
        dof = self.dof if self.dof > 0 else math.nan
        return float(stats.t.ppf((1 + level) / 2, dof if math.isfinite(self.dof) else math.inf))


def element_names(module: nn.Module) -> list[str]:
    """Return a name for every trainable number: ``name`` of a scalar, else ``name[i, j]``."""
    names: list[str] = []
    for name, parameter in ModuleFunction(module).parameters.items():
        if parameter.ndim == 0:
            names.append(name)
        else:
            names += [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(tuple(parameter.shape))]
    return names


def has_covariance(criterion: Loss) -> bool:
    """Return whether the loss has residuals or a curvature that stands for its Fisher information."""
    return residual_form(criterion, 1)[0] is not None or criterion._has_ggn()


def infer(problem: Problem, kind: str) -> Inference:
    """Return the inference of kind ``"classical"`` or ``"sandwich"``, see the module text."""
    function = ModuleFunction(problem.module)
    if function.n_params > MAX_PARAMS:
        raise ValueError(
            f"the covariance of {function.n_params} parameters does not fit; there may be at most {MAX_PARAMS}. Use a "
            "smaller module, or freeze parameters with requires_grad_(False)."
        )
    if not has_covariance(problem.criterion):
        raise ValueError(
            f"`criterion` {problem.criterion} has neither residuals nor a Gauss-Newton curvature, and so no "
            "covariance; fit with a built-in loss."
        )
    theta = function.vector()
    with torch.no_grad():
        outputs = function.outputs(theta, problem.inputs)
        targets = problem.criterion.prepare(outputs, problem.targets)
        curvature = _Curvature(problem, function, theta, outputs, targets)
        return curvature.summarize(kind)


class _Curvature:
    """The pieces of `infer` that depend on one another."""

    def __init__(
        self, problem: Problem, function: ModuleFunction, theta: Tensor, outputs: Tensor, targets: Tensor
    ) -> None:
        self.problem, self.function, self.theta, self.outputs, self.targets = problem, function, theta, outputs, targets
        self.n_samples, self.n_outputs = outputs.shape
        self.loss, scale = residual_form(problem.criterion, self.n_outputs)
        self.free = self._free()
        if self.loss is not None:
            root = problem.weights.sqrt()[:, None, None]
            factor = root * torch.eye(self.n_outputs).to(outputs)
            self.slope = self._mean_slope()
            scale *= self.slope if self.slope > 0 else 1.0
        else:
            _, factor = problem.criterion.ggn(outputs, targets)
            factor = problem.weights.sqrt()[:, None, None] * factor
        self.triangle = self.reduced(factor)
        penalized = function.per_element(lambda parameter: parameter.ndim >= 2)[self.free].to(theta)
        self.penalty = problem.alpha / scale * penalized
        self._invert()

    def _free(self) -> Tensor:
        """Return which parameters no bound holds."""
        free = torch.ones_like(self.theta, dtype=torch.bool)
        if self.problem.bounds:
            box = Box(self.problem.bounds, self.function.parameters)
            lower, upper = box.select(None, self.theta)
            free = (self.theta > lower) & (self.theta < upper)
        return free

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

    def _mean_slope(self) -> float:
        """Return the weighted mean of psi', 1 for squared errors."""
        loss: Any = self.loss
        with torch.enable_grad():
            leaf = self.outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(loss.gradient(leaf, self.targets).sum(), leaf)
        weights = self.problem.weights[:, None].expand_as(slope)
        return float((weights * slope).sum() / weights.sum())

    def _invert(self) -> None:
        """Set `inverse_root` L with L L' = (H + penalty)^-1 where it exists, and what does not."""
        total = torch.cat([self.triangle, torch.diag(self.penalty.sqrt())])
        norms = torch.linalg.vector_norm(total, dim=0)
        scale = torch.where(norms > 0, norms, 1.0)
        if not len(norms):
            self.inverse_root = total.new_zeros(0, 0)
            self.null = total.new_zeros(0, 0)
            self.n_effective = 0.0
            return
        _, values, right = torch.linalg.svd(total / scale, full_matrices=True)
        kept = values > RANK_TOLERANCE * values[0]
        self.null = right[~kept].T
        self.inverse_root = right[kept].T / values[kept] / scale[:, None]
        self.n_effective = float((self.triangle @ self.inverse_root).square().sum())

    def summarize(self, kind: str) -> Inference:
        problem, n_samples = self.problem, self.n_samples
        dof = n_samples - self.n_effective / self.n_outputs
        weights = problem.weights[:, None]
        variance = self.outputs.new_full((self.n_outputs,), math.nan)
        if self.loss is not None:
            squares = (weights * (self.outputs - self.targets).square()).sum(0)
            chi_square = float(squares.sum())
            if dof > 0:
                variance = squares / dof
            fit = n_samples * float(torch.log(squares / n_samples).sum())
        else:
            chi_square = fit = 2 * float(problem.weights @ problem.criterion.value(self.outputs, self.targets))
        known = problem.absolute_sigma or self.loss is None
        noise = torch.ones_like(variance) if known else variance
        if not known and not isinstance(self.loss, SquaredError):
            psi = self.loss.gradient(self.outputs, self.targets)  # type: ignore[union-attr]
            noise = (weights * psi.square()).sum(0) / dof / self.slope**2 if self.slope > 0 and dof > 0 else variance
        root = self._root(kind, noise, dof)
        n_params = self.function.n_params
        full = self.theta.new_zeros(len(root), n_params)
        full[:, self.free] = root
        covariance = (full.T @ full).cpu().numpy()
        names = element_names(problem.module)
        reasons, unidentified = self._missing(names, dof, noise)
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
            n_samples=n_samples,
            n_outputs=self.n_outputs,
            n_effective=self.n_effective,
            dof=math.inf if known else dof,
            residual_variance=variance.cpu().numpy(),
            chi_square=chi_square,
            dispersion=1.0 if known else float(noise.mean()),
            aic=fit + 2 * self.n_effective,
            bic=fit + math.log(n_observations) * self.n_effective,
            unidentified=unidentified,
        )

    def _root(self, kind: str, noise: Tensor, dof: float) -> Tensor:
        """Return a matrix whose Gram matrix is the covariance over the free parameters."""
        inverse_root = self.inverse_root
        if kind == "classical":
            if self.n_outputs == 1 or self.loss is None:
                return noise[0].sqrt() * inverse_root.T
            parts = [noise.mean().sqrt() * torch.diag(self.penalty.sqrt())]
            for k in range(self.n_outputs):
                factor = torch.zeros_like(self.outputs)[:, None, :]
                factor[:, 0, k] = self.problem.weights.sqrt()
                parts.append(noise[k].sqrt() * self.reduced(factor))
            return torch.cat(parts) @ inverse_root @ inverse_root.T
        loss, scale = self.problem.criterion, 1.0
        if self.loss is not None:
            loss, scale = self.loss, self.slope or math.nan
        gradient = loss.gradient(self.outputs, self.targets) * self.problem.weights[:, None] / scale
        correction = math.sqrt(self.n_samples / dof) if dof > 0 else math.nan
        return correction * self.reduced(gradient[:, None, :]) @ inverse_root @ inverse_root.T

    def _missing(self, names: list[str], dof: float, noise: Tensor) -> tuple[dict[str, str], list[str]]:
        """Return why parameters have no standard error, and sentences about those that are not told apart."""
        reasons = {}
        positions = self.free.nonzero()[:, 0].tolist()
        for i in (~self.free).nonzero()[:, 0].tolist():
            reasons[names[i]] = f"at its bound {float(self.theta[i]):g}"
        sentences = []
        for direction in self.null.T:
            members = [names[positions[i]] for i in (direction.abs() > SHARE).nonzero()[:, 0].tolist()]
            if len(members) == 1:
                sentences.append(f"parameter {members[0]} has no influence on the loss")
                continue
            first, second = direction[direction.abs().topk(2).indices].sign().tolist()
            correlation = f" (correlation {first * second:.4f})" if len(members) == 2 else ""
            sentences.append(f"parameters {_listed(members)} are not separately identifiable{correlation}")
        for i in (self.null.abs() > SHARE).any(1).nonzero()[:, 0].tolist():
            reasons[names[positions[i]]] = "not identifiable"
        if not dof > 0 and not bool(torch.isfinite(noise).all()):
            reasons |= {name: "no degrees of freedom are left" for name in names if name not in reasons}
        return reasons, sentences


def _listed(names: list[str]) -> str:
    shown = names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"]
    return ", ".join(shown[:-1]) + f" and {shown[-1]}"


def prediction_variance(inference: Inference, module: nn.Module, inputs: Any, n_samples: int) -> np.ndarray:
    """Return the variance of the module's outputs by the delta method, shape (n_samples, n_outputs)."""
    function = ModuleFunction(module)
    theta = function.vector()
    factor = torch.eye(inference.n_outputs).to(theta).expand(n_samples, -1, -1)
    chunk = samples_per_chunk("auto", n_samples, inference.n_outputs, theta)
    root = inference.root.to(theta)
    with torch.no_grad():
        blocks = function.rows(theta, None, inputs, factor, chunk=chunk)
        parts = [(block @ root.T).square().sum(2) for block in blocks]
    variance: np.ndarray = torch.cat(parts).cpu().numpy()
    return variance


def profile(
    problem: Problem, inference: Inference, index: int, *, levels: list[float], n_points: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follow the profile likelihood of one parameter: refit all others with it held.

    With z(v)^2 = 2 W (F(v) - F(estimate)) / dispersion, signed as v - estimate, z would be a straight line for a linear
    model; the interval of a level ends where |z| is its quantile (Bates and Watts 1988, section 6.1).

    Parameters
    ----------
    problem : Problem
    inference : Inference
    index : int
        The parameter.
    levels : list of float
        Levels of the intervals.
    n_points : int
        Points of the profile to return, over the interval of the largest level.

    Returns
    -------
    ends : ndarray of shape (n_levels, 2)
        Lower and upper ends; a bound or an infinity where |z| stays below the quantile.
    values, z : ndarray of shape (n_points,)
    """
    loss, scale = residual_form(problem.criterion, inference.n_outputs)
    if loss is not None and not isinstance(loss, SquaredError):
        raise ValueError(
            "method='profile' needs the squared error or a likelihood, as robust losses have none; use method='wald'."
        )
    path = _Path(problem, inference, index, scale)
    quantiles = [inference.quantile(level) for level in levels]
    ends = np.array([[path.crossing(-q), path.crossing(q)] for q in quantiles])
    values = np.empty(0)
    if n_points:
        widest = ends[int(np.argmax(quantiles))]
        reach = inference.estimates[index] + path.step * max(quantiles) * np.array([-3, 3])
        low, high = np.where(np.isfinite(widest), widest, reach)
        values = np.linspace(low, high, n_points)
    return ends, values, np.array([path.z(value) for value in values])


class _Path:
    """Refits along one parameter."""

    def __init__(self, problem: Problem, inference: Inference, index: int, scale: float) -> None:
        self.problem, self.inference, self.index = problem, inference, index
        self.function = ModuleFunction(copy.deepcopy(problem.module))
        self.best = self.function.vector()
        self.estimate = float(inference.estimates[index])
        total = float(problem.weights.sum())
        self.factor = 2 * total / scale / inference.dispersion
        lower, upper = self.best.new_full(self.best.shape, -math.inf), self.best.new_full(self.best.shape, math.inf)
        if problem.bounds:
            lower, upper = Box(problem.bounds, self.function.parameters).select(None, self.best)
        self.lower, self.upper = lower, upper
        error = inference.standard_errors[index]
        self.step = float(error) if error > 0 else max(abs(self.estimate), 1.0)
        covariance = inference.covariance[:, index]
        slope = np.nan_to_num(covariance / covariance[index]) if error > 0 else np.zeros_like(covariance)
        self.slope = torch.as_tensor(slope).to(self.best)
        self.loss = self._minimum(self.estimate)

    def _minimum(self, value: float) -> float:
        """Return the smallest loss with the parameter held at `value`."""
        start = (self.best + self.slope * (value - self.estimate)).clamp(self.lower, self.upper)
        losses = []
        for vector in (start, self.best.clone()):
            vector[self.index] = value
            loss = self._refit(vector)
            losses.append(loss)
            if math.isfinite(loss):
                break
        return min(losses)

    def _refit(self, vector: Tensor) -> float:
        self.function.assign(vector)
        lower, upper = self.lower.clone(), self.upper.clone()
        lower[self.index] = upper[self.index] = vector[self.index]
        sizes = list(self.function.sizes.values())
        bounds = {
            name: (low.view(parameter.shape), high.view(parameter.shape))
            for (name, parameter), low, high in zip(
                self.function.parameters.items(), torch.split(lower, sizes), torch.split(upper, sizes), strict=True
            )
        }
        optimizer = LevenbergMarquardt(
            self.function.module,
            self.problem.criterion,
            alpha=self.problem.alpha,
            ftol=1e-14,
            xtol=1e-12,
            gtol=1e-12,
            bounds=bounds,
            acceleration=all(parameter.ndim < 2 for parameter in self.function.parameters.values()),
            seed=0,
        )
        for _ in range(200):
            result = optimizer.step(self.problem.inputs, self.problem.targets, self.problem.weights)
            if result.status != "running" or not result.accepted:
                break
        return result.loss

    def z(self, value: float) -> float:
        """Return the signed root of the likelihood ratio at `value`."""
        rise = self.factor * (self._minimum(value) - self.loss)
        if not math.isfinite(rise):
            rise = math.inf
        if rise < -1e-6:
            name = self.inference.names[self.index]
            warnings.warn(
                f"a lower minimum than the fitted one lies at {name} = {value:g}; fit again from there.",
                RuntimeWarning,
                stacklevel=5,
            )
        return math.copysign(math.sqrt(max(rise, 0.0)), value - self.estimate)

    def crossing(self, quantile: float) -> float:
        """Return where z is `quantile`; the bound or an infinity where it does not get so far."""
        side = math.copysign(1.0, quantile)
        limit = float((self.upper if side > 0 else self.lower)[self.index])
        if not math.isfinite(quantile) or self.estimate == limit:
            return limit if math.isfinite(quantile) else math.nan
        inner, reach = self.estimate, self.step * abs(quantile)
        for _ in range(30):
            outer = self.estimate + side * reach
            at_limit = side * (outer - limit) >= 0
            outer = limit if at_limit else outer
            if side * self.z(outer) >= abs(quantile):
                break
            if at_limit:
                return limit
            inner, reach = outer, 2 * reach
        else:
            return side * math.inf
        if not math.isfinite(self.z(outer)):
            outer = self._finite(inner, outer)
        found: float = optimize.brentq(
            lambda value: max(min(self.z(value), 1e9), -1e9) - quantile, inner, outer, xtol=1e-9 * self.step, rtol=1e-12
        )
        return found

    def _finite(self, inner: float, outer: float) -> float:
        """Return a point towards `outer` that is as far as the loss is finite, by bisection."""
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if math.isfinite(self.z(middle)) else (inner, middle)
        return outer


def to_float64(tensors: Any, device: torch.device) -> Any:
    """Return real tensors in float64 on `device`."""
    return map_tensors(lambda tensor: tensor.to(device, torch.float64 if tensor.is_floating_point() else None), tensors)
