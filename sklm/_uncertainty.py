"""Standard errors, intervals and reports of a fitted regressor: the methods, over `inference`."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from sklm import inference
from sklm._data import KEPT_BYTES, kept_rows
from sklm._net import LMNet
from sklm._profile import profile
from sklm._report import HIGH_CORRELATION, Summary
from sklm.curves import Curve
from sklm.engine._checks import check_choice, check_integer, check_real
from sklm.engine.inputs import count_samples
from sklm.engine.losses import Elementwise, SquaredError, plain_form
from sklm.inference import Inference, Problem

NEARLY_ONE = 0.9999  # correlation from which `message_` names a pair


class Uncertainty(LMNet):
    """What a fit says about its parameters; the attributes are computed when they are first read.

    Formulas are in the text of `sklm.inference`.
    """

    def _validate_params(self) -> None:
        super()._validate_params()
        self._kind()

    def _kind(self) -> tuple[str, bool]:
        """Return the checked parameters that choose the covariance."""
        check_choice("covariance", self.covariance, ["classical", "sandwich"])
        if not isinstance(self.absolute_sigma, (bool, np.bool_)):
            raise ValueError(f"`absolute_sigma` must be True or False; got {self.absolute_sigma!r}.")
        return self.covariance, bool(self.absolute_sigma)

    def _finish(self, *, restore: bool) -> None:
        super()._finish(restore=restore)
        if self._run.train is not None:
            self._training_rows = kept_rows(self._run.train)
            self.__dict__.pop("_inferred", None)

    def _problem(self, *, is_ours: bool = False) -> Problem:
        """Return a copy of the module, or with `is_ours` the fitted one, and the training rows in float64."""
        check_is_fitted(self, "module_")
        data = self.__dict__.get("_training_rows")
        if data is None:
            raise AttributeError(
                "there is no uncertainty without the training rows, which are not kept above "
                f"{KEPT_BYTES / 2**20:g} MiB, of a Dataset or a large memmap, nor by `load_params`; fit to fewer rows."
            )
        module, device, criterion = self.module_, self.device_, self.criterion_
        if not is_ours:
            module, device = self._module_in_float64()
            criterion = copy.deepcopy(criterion).to(device, torch.float64)
        targets = inference.to_float64(data.targets, device)
        weights = torch.ones(len(data), dtype=torch.float64, device=device)
        if data.weights is not None:
            weights = data.weights.to(weights)
        alpha = self.alpha_ if hasattr(self, "alpha_") else self.optimizer_.param_groups[0]["alpha"]
        return Problem(
            module=module,
            criterion=criterion,
            inputs=inference.to_float64(data.X, device),
            targets=targets,
            weights=weights,
            alpha=alpha,
            bounds=getattr(module, "parameter_bounds", {}),
            absolute_sigma=bool(self.absolute_sigma),
            triangle=self._triangle(module, float(weights.sum())),
            rows_per_weight=data.rows_per_weight(self.criterion_) if self.optimizer_.bayes else None,
        )

    def _triangle(self, module: Any, total: float) -> torch.Tensor | None:
        """Return R of the rows sqrt(w_i) J_i where the last step has left it for the parameters of the module."""
        left, criterion = self.optimizer_.triangle, self.criterion_
        if left is None or left[1].dtype != torch.float64 or not self._on_all_rows:
            return None
        if type(criterion) is not SquaredError or criterion.curvature != "ggn":
            return None  # its rows are not those of J
        theta, triangle = left
        now = torch.cat([p.detach().reshape(-1) for p in module.parameters() if p.requires_grad])
        return triangle * math.sqrt(total) if torch.equal(theta, now) else None

    def _module_in_float64(self) -> tuple[Any, torch.device]:
        """Return a copy of the module for exact derivatives, and its device: the CPU for MPS, which has no float64."""
        device = torch.device("cpu") if self.device_.type == "mps" else self.device_
        return copy.deepcopy(self.module_).to(device, torch.float64).eval(), device

    def _weights(self) -> torch.Tensor | None:
        """Return the weights of the training rows, None without."""
        return None if self._training_rows is None else self._training_rows.weights

    def _infer(self, *, is_ours: bool = False) -> Inference:
        """Return the inference of the fit; with `is_ours` the fitted module is in float64, and evaluated itself."""
        settings = self._kind()
        kept = self.__dict__.get("_inferred")
        if kept is None or kept[0] != settings:
            function = self.optimizer_.function if is_ours else None
            with torch.inference_mode(mode=False):
                kept = settings, inference.infer(self._problem(is_ours=is_ours), self.covariance, function)
            self.__dict__["_inferred"] = kept
        found: Inference = kept[1]
        return found

    @property
    def standard_errors_(self) -> dict[str, float]:
        """Standard errors by name; nan for parameters that are fixed, at a bound or not identifiable."""
        found = self._infer()
        errors = dict(zip(found.names, found.standard_errors.tolist(), strict=True))
        return {name: errors.get(name, np.nan) for name in self.parameters_}

    @property
    def covariance_(self) -> np.ndarray:
        """Covariance of the parameters that are not fixed, (n_params, n_params); nan where there is none."""
        return self._infer().covariance

    @property
    def correlation_(self) -> np.ndarray:
        """Correlation of the parameters that are not fixed, (n_params, n_params)."""
        return self._infer().correlation

    @property
    def residual_variance_(self) -> float | np.ndarray:
        """Weighted sum of squared residuals over the degrees of freedom; for several outputs an array.

        For a robust loss the square of 1.4826 times the median of their sizes, which outliers do not move.
        """
        return _single(self._infer().residual_variance)

    @property
    def dof_(self) -> float:
        """Degrees of freedom n - p, per output; with alpha > 0, p is the effective number of parameters.

        Parameters that are not identifiable do not count, those at a bound do.
        """
        found = self._infer()
        return found.n_samples - found.n_effective / found.n_outputs

    @property
    def chi_square_(self) -> float:
        """Weighted sum of squared residuals, with outliers also for a robust loss; the deviance for a Poisson loss."""
        return self._infer().chi_square

    @property
    def reduced_chi_square_(self) -> float:
        """`chi_square_` over the degrees of freedom: near 1 where the weights are 1 / sigma**2 and the model holds."""
        found = self._infer()
        dof = self.dof_ * found.n_outputs
        return found.chi_square / dof if dof > 0 else np.nan

    @property
    def aic_(self) -> float:
        """Akaike's criterion n log(chi_square / n) + 2 p; deviance + 2 p for a Poisson loss. As lmfit defines it.

        nan for a robust loss, which is no likelihood.
        """
        return self._infer().aic

    @property
    def bic_(self) -> float:
        """Schwarz's criterion n log(chi_square / n) + p log(n); deviance + p log(n) for a Poisson loss.

        nan for a robust loss.
        """
        return self._infer().bic

    def confidence_intervals(
        self, level: float = 0.95, method: str = "wald", *, names: Iterable[str] | None = None
    ) -> dict[str, tuple[float, float]]:
        """Return confidence intervals of the parameters.

        Parameters
        ----------
        level : float in (0, 1), default=0.95
        names : str or sequence of str, default=None
            Parameters; None for all.
        method : {"wald", "profile"}, default="wald"
            ``"wald"``: estimate plus and minus Student's t times the standard error. ``"profile"``: where the profile
            likelihood, refitted with the parameter held, has risen to that t squared, with the classical variance; it
            follows the curvature of the model, and takes some refits per parameter. Needs one output and the squared
            error or a likelihood. Without the prior that the evidence has on biases.

        Returns
        -------
        dict of str to (lower, upper)
            nan where there is no interval; with ``"profile"`` a bound or an infinity where the data set no end.
        """
        check_real("level", level, above=0, below=1)
        check_choice("method", method, ["wald", "profile"])
        found = self._infer()
        known = self.parameters_
        asked = known if names is None else names if np.iterable(names) and not isinstance(names, str) else [names]
        wanted = [check_choice("names", name, known) for name in asked]
        intervals = dict.fromkeys(wanted, (np.nan, np.nan))
        problem = self._problem() if method == "profile" else None
        reach = found.quantile(level) * found.standard_errors
        for index, name in enumerate(found.names):
            if name not in intervals:
                continue
            if problem is None:
                ends = found.estimates[index] + np.array([-1, 1]) * reach[index]
            else:
                ends = profile(problem, found, index, levels=[level])[0][0]
            intervals[name] = float(ends[0]), float(ends[1])
        return intervals

    def profile(self, name: str, level: float = 0.99, n_points: int = 25) -> tuple[np.ndarray, np.ndarray]:
        """Return the profile of a parameter: the signed root z of the likelihood ratio, refitted with it held.

        Parameters
        ----------
        name : str
        level : float in (0, 1), default=0.99
            The profile spans the interval of this level.
        n_points : int, default=25

        Returns
        -------
        values, z : ndarray of shape (n_points,)
            A straight line for a linear model; |z| beyond Student's t lies outside the interval.
        """
        check_real("level", level, above=0, below=1)
        check_integer("n_points", n_points, minimum=2)
        found = self._infer()
        check_choice("name", name, found.names)
        index = found.names.index(name)
        _, values, z = profile(self._problem(), found, index, levels=[level], n_points=n_points)
        return values, z

    def predict_interval(
        self, X: Any, level: float = 0.95, kind: str = "confidence", *, sample_weight: Any = None
    ) -> np.ndarray:
        """Return intervals of the predictions by the delta method.

        Parameters
        ----------
        X : as in `fit`
        level : float in (0, 1), default=0.95
        kind : {"confidence", "prediction"}, default="confidence"
            For the curve, or for a new measurement.
        sample_weight : float or array of shape (n_samples,), default=None
            Weights of the new measurements, as in `fit`; None for the weight of all rows of the fit, or where these
            differ for ones, with a warning.

        Returns
        -------
        ndarray of shape (n_samples, 2) or (n_samples, n_outputs, 2), as y in `fit`
            Lower and upper ends.

        Raises
        ------
        ValueError
            For a prediction interval where the loss does not tell the noise: Poisson.
        """
        check_real("level", level, above=0, below=1)
        check_choice("kind", kind, ["confidence", "prediction"])
        found = self._infer()
        outputs, variance = self._outputs_and_variance(X)
        if kind == "prediction":
            if not isinstance(plain_form(self.criterion_, found.n_outputs)[0], Elementwise):
                raise ValueError(f"kind='prediction' needs a loss of residuals; got {self.criterion_}.")
            noise = np.ones_like(found.residual_variance) if self.absolute_sigma else found.residual_variance
            weights = np.ones(len(variance))
            known = self._weights()
            if sample_weight is None and known is not None and bool((known == known[0]).all()):
                sample_weight = float(known[0])
            elif sample_weight is None and known is not None:
                warnings.warn(
                    "the fit had sample weights; without `sample_weight` a new measurement has weight 1"
                    + (", so sigma = 1." if self.absolute_sigma else ".")
                    + " Pass sample_weight, for instance 1 / sigma**2.",
                    UserWarning,
                    stacklevel=2,
                )
            if sample_weight is not None:
                weights = _check_sample_weight(sample_weight, variance, dtype=np.float64, ensure_non_negative=True)
            with np.errstate(divide="ignore"):
                variance = variance + noise / weights[:, None]
        reach = found.quantile(level) * np.sqrt(variance)
        ends = [self.criterion_.mean(torch.as_tensor(end)).numpy() for end in (outputs - reach, outputs + reach)]
        return self._like_y(np.stack(ends, -1))

    def _outputs_and_variance(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return outputs and their variance, both of shape (n_samples, n_outputs), in float64."""
        found = self._infer()
        with torch.inference_mode(mode=False):
            data = self._prediction_data(X)
            module, device = self._module_in_float64()
            inputs = inference.to_float64(data.X, device)
            variance = inference.prediction_variance(found, module, inputs, count_samples(inputs))
            return self._outputs(X).double().numpy(), variance

    def _standard_deviation(self, X: Any) -> np.ndarray:
        """Return the standard error of the predictions, shaped like them."""
        outputs, variance = self._outputs_and_variance(X)
        with torch.enable_grad():
            leaf = torch.as_tensor(outputs).requires_grad_()
            (slope,) = torch.autograd.grad(self.criterion_.mean(leaf).sum(), leaf)
        return self._like_y(np.abs(slope.numpy()) * np.sqrt(variance))

    def _like_y(self, values: np.ndarray) -> np.ndarray:
        """Drop the axis of the outputs where y in `fit` had none."""
        raise TypeError("an estimator overrides `_like_y`.")

    def summary(self, level: float = 0.95) -> Summary:
        """Return a report of the fit.

        Parameters
        ----------
        level : float in (0, 1), default=0.95
            Of the confidence intervals (Wald).

        Returns
        -------
        Summary
            Prints as aligned text, shows as HTML in a notebook, and has `to_frame()`.
        """
        found = self._infer()
        values, errors = self.parameters_, self.standard_errors_
        intervals = self.confidence_intervals(level)
        rows, notes = [], []
        for name, value in values.items():
            error = errors[name]
            t = value / error if error > 0 else np.nan
            p = 2 * stats.t.sf(abs(t), found.dof) if found.dof > 0 else np.nan
            rows.append([value, error, t, p, *intervals[name]])
            notes.append(found.reasons.get(name, "") if name in found.names else "fixed")
        weighted = self._weights() is not None
        loss = plain_form(self.criterion_, found.n_outputs)[0]
        chi_square = "Chi-square" if isinstance(loss, Elementwise) else "Deviance"
        # the squares of a robust loss have the outliers in them
        is_robust = isinstance(loss, Elementwise) and not isinstance(loss, SquaredError)
        deviations = [] if np.isnan(found.residual_variance).all() else np.sqrt(found.residual_variance)
        statistics = {
            "Loss": str(self.criterion_),
            "Rows, parameters": f"{found.n_samples}, {len(found.names)}"
            + (f" ({found.n_effective:.4g} effective)" if self.optimizer_.param_groups[0]["alpha"] else ""),
            "Degrees of freedom": f"{self.dof_:.6g}",
            f"{'Weighted residual' if weighted else 'Residual'} std. dev.": ", ".join(
                f"{root:.6g}" for root in deviations
            ),
            chi_square: "" if is_robust else f"{found.chi_square:.6g}",
            f"Reduced {chi_square.lower()}": "" if is_robust else f"{self.reduced_chi_square_:.6g}",
            "AIC": f"{found.aic:.6g}",
            "BIC": f"{found.bic:.6g}",
            "Covariance": self.covariance + (", sigma as given" if self.absolute_sigma else ""),
        }
        return Summary(
            title=f"{type(self).__name__}: {_title(self.module_)}",
            names=list(values),
            table=np.array(rows),
            notes=notes,
            statistics={name: text for name, text in statistics.items() if text not in ("", "nan")},
            correlations=_pairs(found, HIGH_CORRELATION),
            level=level,
            message=self.message_,
        )

    def _describe(self) -> None:
        """Say in `message_` what the curvature of a curve tells: bounds reached, parameters not told apart."""
        if not self.optimizer_.is_curve or self._training_rows is None or not inference.has_covariance(self.criterion_):
            return
        # within `fit` nobody else uses the module, which therefore needs no copy
        found = self._infer(is_ours=isinstance(self.module_, Curve) and self.dtype_ == torch.float64)
        remarks = [f"{name} is {why}" for name, why in found.reasons.items() if why.startswith("at its bound")]
        remarks += [
            f"parameters {one} and {other} are hardly separately identifiable (correlation {value:.5f})"
            for one, other, value in _pairs(found, NEARLY_ONE)[:3]
        ]
        doubts = list(dict.fromkeys(found.unidentified))
        if self.dof_ <= 0 and not doubts:
            doubts = [f"{found.n_samples} rows leave no degrees of freedom for {len(found.names)} parameters"]
        if remarks or doubts:
            self.message_ = f"{self.message_.removesuffix('.')}; {'; '.join([*remarks, *doubts])}."
        if doubts:
            warnings.warn(f"{'; '.join(doubts)}.", UserWarning, stacklevel=3)


def _pairs(found: Inference, least: float) -> list[tuple[str, str, float]]:
    """Return pairs of parameters with a correlation above `least` in size, the largest first, at most 100."""
    sizes = np.abs(np.triu(np.nan_to_num(found.correlation), 1))
    pairs = np.argwhere(sizes > least)
    pairs = pairs[np.argsort(-sizes[tuple(pairs.T)])][:100]
    return [(found.names[i], found.names[j], float(found.correlation[i, j])) for i, j in pairs]


def _single(values: np.ndarray) -> float | np.ndarray:
    return float(values[0]) if len(values) == 1 else values


def _title(module: Any) -> str:
    described = module.extra_repr()
    return described or type(module).__name__
