"""`LMRegressor` and `LMClassifier`: any `torch.nn.Module` fitted by Levenberg-Marquardt, as scikit-learn estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, overload

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sklm._data import validate_labels, validate_real_targets
from sklm._net import Data, LMNet
from sklm._uncertainty import Uncertainty
from sklm.engine.losses import BinaryCrossEntropy, CrossEntropy, Loss, TorchLoss
from sklm.modules import MLP

Factory = type[nn.Module] | Callable[..., nn.Module] | nn.Module | str


class LMRegressor(RegressorMixin, Uncertainty):
    """Regression with any `torch.nn.Module`, fitted by Levenberg-Marquardt.

    Minimizes (1/W) sum_i w_i l(f(x_i), y_i) + (alpha / 2W) |weights|^2 over the parameters of the module f, with sample
    weights w_i and their sum W.

    Parameters
    ----------
    module : type, callable, torch.nn.Module or str, default=MLP
        A formula such as ``"a * exp(-b * x) + c"``, or a Python function as ``sklm.curve(f)``, see `sklm.curves`: names
        of columns are inputs, the others parameters, with initial values ``module__a=...``, ``module__bounds`` and
        ``module__fixed``. Or a class, factory function or instance; an instance is copied, never trained in place.
        ``n_features_in``, ``n_outputs`` and ``feature_names_in`` (None without names) are passed when its signature
        asks for them; further
        arguments are ``module__name``. Returns (n_samples,) or (n_samples, n_outputs). Where it has a method
        ``init_from_data(X, y)``, with an optional ``sample_weight``, this is called with the training tensors before
        the first step.
    criterion : str, torch loss or sklm.losses.Loss, default="squared_error"
        ``"squared_error"`` (half the squared error), ``"absolute_error"``, ``"huber"``, ``"soft_l1"``, ``"cauchy"``,
        ``"poisson"`` (the module returns the logarithm of the mean, `predict` the mean); a torch loss class or
        instance, in torch's scaling; a `sklm.losses.Loss` class or instance. Arguments are ``criterion__name``:
        ``criterion__curvature`` is ``"ggn"`` (default where the loss has it) or ``"sqrt"``, ``criterion__delta`` the
        outlier threshold in units of y.
    lr : float in (0, 2), default=1.0
        Step length; 1 is the full step.
    damping : {"nielsen", "standard", "fletcher"} or sklm.damping.Damping, default="nielsen"
        ``"nielsen"`` follows the gain ratio; ``"standard"`` is lambda I, x10 and x0.1; ``"fletcher"`` lambda diag(H).
        Arguments are ``damping__initial``, ``damping__scaling``, ``damping__minimum``, ``damping__maximum`` and, for
        the last two, ``damping__increase`` and ``damping__decrease``; see `sklm.damping`.
    max_attempts : int, default=10
        Damping factors tried per step.
    solver : {"auto", "cholesky", "qr", "svd", "cg"}, default="auto"
        Linear solver of the step, see `sklm.LevenbergMarquardt`.
    jacobian : {"auto", "layerwise", "functional"}, default="auto"
        How the Jacobian is computed, see `sklm.LevenbergMarquardt`; the numbers are the same.
    jacobian_max_rows : int, None or "auto", default="auto"
        Rows (samples times outputs) of the Jacobian computed at once; None for all, ``"auto"`` from free memory. Out of
        memory halves it, with a warning.
    selection : {"random", "layer"}, sklm.selection.Selection or None, default=None
        Parameters that move in a step; None for all. Arguments are ``selection__subset_size`` and ``selection__order``.
    alpha : float, "bayes" or "auto", default="auto"
        L2 penalty on weight matrices (parameters with two or more dimensions, so not on the constants of a curve), as
        scikit-learn's MLP; on the scale of the loss, so in squared units of y for the squared error. ``"bayes"`` finds
        it by the evidence (MacKay 1992; MATLAB's ``trainbr``): re-estimated after every full-batch step, until it has
        settled (to a relative sqrt(ftol)), or the log evidence in `n_iter_no_change` epochs has been more than 5 below
        its highest value, or has risen by less than 5 while alpha changed by less than a factor of 2 (in a module that
        is not linear). The last epoch that is less than 5 below the highest is kept (that of the lowest validation loss
        with `early_stopping`); epochs far from a minimum, where the evidence means nothing, do not count. As the
        evidence of a network has several maxima, `fit` makes a second run from the same weights and a hundredth of the
        first alpha, which (but for classes and counts) does not rise before a minimum is near, and keeps the one of
        higher evidence (lower validation loss); `callbacks` see the second one if it is that. The formulas are in
        `sklm.engine.evidence`; a module of your own needs X and y of about mean 0 and variance 1, which `sklm.MLP`
        makes of them by itself.
        ``"auto"`` is ``"bayes"`` for a `sklm.MLP` of at most 3000 parameters, or nine million over the rows (times
        outputs), with full batches, without `selection`, ``solver="cg"`` and ``criterion__curvature="mc"``, else 0.
    max_epochs : int, default=100
        Passes over the data in one call of `fit` or `partial_fit`; a full batch makes one step per epoch. A curve (any
        module without weight matrices) that has not converged by then is fitted a second time by `fit`, from the same
        start with ``damping__scaling="identity"`` and up to ten times as many epochs, if damping is left at its
        default and `max_epochs` is not below it; the better fit is kept. That run ends where it goes down a valley
        without an end: when 100 epochs lower the loss by less than a hundredth of itself over the rows.
    batch_size : int or "auto", default=-1
        Samples per step; -1 is the full batch. Other batches are drawn anew every epoch, and an epoch in which the loss
        before the steps has fallen by less than 1 % makes them four times as large, up to all samples: so the fit ends
        at the optimum of all of them. ``"auto"`` starts with the larger of 1000 and five rows per parameter (over the
        outputs), or with the full batch where that makes less than four batches, for a curve and for
        ``alpha="bayes"``.
    ftol, xtol, gtol : float or None, default=1e-8
        Stop when the relative reduction of the loss, the relative step, or the cosine between residuals and Jacobian is
        at most this, as MINPACK defines them; None disables a test. With mini-batches only steps on all samples end
        a fit; with a selection, a test must pass in every step of a sweep.
    n_init : int, default=1
        Number of starts, of which the best is kept. For a network: fits from other initial weights, compared by
        training loss (validation loss with `early_stopping`, evidence with ``alpha="bayes"``). For a curve of
        `sklm.curves`: other initial values, all improved together as one batch of damped steps on the training data,
        and one fit from the best point they reach. Callbacks see every fit; a file that they write is of the last one.
    early_stopping : bool, default=False
        Split off a validation set, stop when its loss has not fallen for `n_iter_no_change` epochs, and restore the
        best parameters. With ``alpha="bayes"`` the wait begins where the steps have come near a minimum, at the latest
        after eight times as many epochs, and of the run with a low first alpha only epochs near one are taken.
    validation_fraction : float in (0, 1), default=0.1
        Share of the validation set, with `early_stopping` and without `train_split`.
    n_iter_no_change : int, default=10
        Epochs without a lower validation loss that stop, with `early_stopping` (counted anew when mini-batches have
        grown); and see `alpha`.
    warm_start : bool, default=False
        Whether `fit` goes on from the present parameters.
    random_state : int, RandomState instance or None, default=None
        Seeds initial parameters, batches, splits, selections and dropout. None takes a fresh seed, of a
        curve always the same one; the global generators are never touched.
    verbose : int, default=0
        1 shows a bar of the epochs, with loss, damping and attempts, where one can be seen (a terminal or a notebook),
        and prints `message_` at the end; 2 prints a line per epoch instead of the bar.
    callbacks : list of skorch callbacks, "disable" or None, default=None
        See skorch; ``"disable"`` also drops the default ones (``dur`` and the lines of ``verbose=2``).
    train_split : callable or None, default=None
        Splits off validation data as in skorch, for instance ``skorch.dataset.ValidSplit(5)``.
    covariance : {"classical", "sandwich"}, default="classical"
        Covariance of the parameters: for noise of one variance (times 1 / `sample_weight`), or robust to a variance
        that differs from row to row (HC1).
    absolute_sigma : bool, default=False
        Whether ``sample_weight = 1 / sigma**2`` holds the true sigma of every measurement. If not, only their ratios
        count and the covariance is scaled by the reduced chi-square, as in `scipy.optimize.curve_fit`.
    device : str or torch.device, default="auto"
        ``"auto"`` is CUDA where there is a GPU, else the CPU.
    dtype : {"auto", "float32", "float64"} or torch.dtype, default="auto"
        ``"auto"`` is float32 for float32 X and targets between 1e-12 and 1e12 in size, else float64, and for a curve of
        `sklm.curves` float64 in any case.
    **kwargs
        ``module__...``, ``criterion__...``, ``damping__...``, ``selection__...``, ``callbacks__...``.

    Attributes
    ----------
    parameters_, standard_errors_ : dict of str to float
        Parameters of the fitted module and their standard errors by name; nan where there is none, and `summary` says
        why.
    covariance_, correlation_ : ndarray of shape (n_params, n_params)
        Of the parameters that are not fixed, in the order of `parameters_`. For these and what follows from them the
        estimator keeps the training rows, up to 256 MiB, in pickles too.
    residual_variance_ : float, or ndarray of shape (n_outputs,)
        Weighted sum of squared residuals over the degrees of freedom.
    dof_ : float
        Rows minus parameters, per output; with ``alpha > 0`` minus the effective number of parameters.
    chi_square_, reduced_chi_square_, aic_, bic_ : float
        As lmfit defines them.
    module_ : torch.nn.Module
        The fitted module.
    alpha_, n_effective_, log_evidence_ : float
        The penalty of the last step and, with ``alpha="bayes"``, the effective number of parameters and the logarithm
        of the evidence up to a constant of the data.
    optimizer_ : sklm.LevenbergMarquardt
        The engine.
    criterion_ : sklm.losses.Loss
        The loss.
    history_ : skorch.history.History
        ``train_loss`` (after the step, penalty included), ``valid_loss``, ``damping``, ``attempts``, ``gain_ratio`` per
        epoch and batch, with ``alpha="bayes"`` also ``alpha``, ``n_effective`` and ``log_evidence``, with mini-batches
        ``initial_loss`` (before the steps), ``batch_size``, ``first_batch_size`` (as set, with the rows) and ``growth``
        (the factor from then on), and ``dur`` (seconds) per epoch. An epoch has the mean of the losses, the sum of the
        attempts, else what its last step has.
    loss_ : float
        Training loss at the returned parameters. With mini-batches the mean over the batches of their epoch, each right
        after its own step, and so lower than the loss of the returned parameters on all rows.
    loss_curve_ : list of float
        Training loss after every epoch.
    n_iter_ : int
        Epochs done.
    converged_ : bool
        Whether a stopping test passed.
    message_ : str
        Why training ended, with the value that decided.
    n_features_in_, n_outputs_ : int
        Columns of X and of y.
    feature_names_in_ : ndarray of str
        When X has column names.
    input_names_ : list of str
        When X is a dict, its keys.
    device_, dtype_ : torch.device, torch.dtype
        Of the module and its inputs.

    Raises
    ------
    ValueError
        From `fit`, for a parameter outside its domain, data that are not finite or do not fit the module, a criterion
        for classification, or a device that is not there. The estimator is then as it was before.

    See Also
    --------
    LMClassifier : The classifier.
    LevenbergMarquardt : The engine, for a plain torch loop.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklm import LMRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = LMRegressor(module__hidden_layer_sizes=(3,), early_stopping=True, random_state=0).fit(X, y)
    >>> model.predict(X[:2]).shape
    (2,)

    A curve, its parameters and their standard errors (data: Misra1a of NIST):

    >>> x = [[77.6], [114.9], [141.1], [190.8], [239.9], [289], [332.8], [378.4], [434.8], [477.3], [536.8], [593.1]]
    >>> y = [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78]
    >>> x += [[689.1], [760]]
    >>> curve = LMRegressor("b1 * (1 - exp(-b2 * x))", module__b1=500, module__b2=1e-4).fit(x, y)
    >>> {name: f"{value:.4g} +- {curve.standard_errors_[name]:.1g}" for name, value in curve.parameters_.items()}
    {'b1': '238.9 +- 3', 'b2': '0.0005502 +- 7e-06'}
    """

    if TYPE_CHECKING:  # scikit-learn's mixins have no types

        def score(self, X: Any, y: Any, sample_weight: Any = None) -> float: ...

    def __init__(
        self,
        module: Factory = MLP,
        *,
        criterion: Any = "squared_error",
        lr: float = 1.0,
        damping: Any = "nielsen",
        max_attempts: int = 10,
        solver: str = "auto",
        jacobian: str = "auto",
        jacobian_max_rows: int | str | None = "auto",
        selection: Any = None,
        alpha: float | str = "auto",
        max_epochs: int = 100,
        batch_size: int | str = -1,
        ftol: float | None = 1e-8,
        xtol: float | None = 1e-8,
        gtol: float | None = 1e-8,
        n_init: int = 1,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        callbacks: Any = None,
        train_split: Any = None,
        covariance: str = "classical",
        absolute_sigma: bool = False,
        device: Any = "auto",
        dtype: Any = "auto",
        **kwargs: Any,
    ) -> None:
        self._store(locals())

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the module to data.

        Parameters
        ----------
        X : array, frame or tensor of shape (n_samples, n_features), or dict of arrays, or torch Dataset
            Inputs; more than two dimensions are passed on. A dict gives the keyword arguments of the module's forward.
            A Dataset, or a `numpy.memmap` above 256 MiB, is read in batches and never loaded whole.
        y : array of shape (n_samples,) or (n_samples, n_outputs)
            Targets; None when a Dataset has them.
        sample_weight : array of shape (n_samples,), default=None
            Weights >= 0, equivalent to repeated rows; for measurements with standard deviation sigma, 1 / sigma**2.
            Of rates with ``criterion="poisson"`` the exposures: pass counts / exposure as y. To the evidence
            (``alpha="bayes"``) only the ratios of other weights say something, and copies of a row are one row (in data
            of up to 4 MiB); but where y has at most ten values, or a fifth as many as there are distinct rows, equal
            rows may be equal by chance, so each is a row, and weights that are whole numbers without a common divisor
            count rows.

        Returns
        -------
        self
        """
        self._fit(X, y, sample_weight, cold=not (self.warm_start and self.initialized_))
        self._describe()
        return self

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> Self:
        """Go on fitting from the present parameters for up to `max_epochs` epochs, as skorch does.

        A `sklm.MLP` keeps the scaling of its first data. Where a fit by the evidence has converged to a constant, there
        is nothing to go on from: the weights are drawn anew.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes : None
            Not used, for the sake of a common interface.

        Returns
        -------
        self
        """
        self._fit(X, y, sample_weight, cold=not self.initialized_, warn=False)
        self._describe()
        return self

    @overload
    def predict(self, X: Any, return_std: Literal[False] = False) -> np.ndarray: ...

    @overload
    def predict(self, X: Any, return_std: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def predict(self, X: Any, return_std: bool) -> np.ndarray | tuple[np.ndarray, np.ndarray]: ...

    def predict(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict targets.

        Parameters
        ----------
        X : as in `fit`
        return_std : bool, default=False
            Also return the standard error of every prediction (of the curve, without the noise of a measurement).

        Returns
        -------
        mean : ndarray of shape (n_samples,) or (n_samples, n_outputs), as y in `fit`
        std : ndarray of the same shape
            Only with `return_std`.
        """
        mean = self._like_y(self._mean(X))
        return (mean, self._standard_deviation(X)) if return_std else mean

    def _like_y(self, values: np.ndarray) -> np.ndarray:
        return values[:, 0] if values.shape[1] == 1 and self._y_ndim != 2 else values

    _y_ndim: int | None = None  # of y in the fit

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @property
    def predict_proba(self) -> NoReturn:
        """Not for regressors."""
        raise AttributeError(f"{type(self).__name__} has no predict_proba; use predict.")

    def _encode(self, y: Any, *, reset: bool, classes: Any) -> tuple[np.ndarray, np.ndarray]:
        y = validate_real_targets(y)
        n_outputs = 1 if y.ndim == 1 else y.shape[1]
        if reset:
            self.n_outputs_, self._y_ndim = n_outputs, y.ndim
        elif n_outputs != self.n_outputs_:
            raise ValueError(f"`y` must have {self.n_outputs_} outputs, as in the fit before; got {n_outputs}.")
        return y, y

    def _n_module_outputs(self) -> int:
        return int(self.n_outputs_)


class LMClassifier(ClassifierMixin, LMNet):
    """Classification with any `torch.nn.Module`, fitted by Levenberg-Marquardt.

    Minimizes the mean cross-entropy of the class labels plus (alpha / 2W) |weights|^2, or another criterion.

    Parameters
    ----------
    module : type, callable or torch.nn.Module, default=MLP
        As in `LMRegressor`. Returns logits (n_samples, n_classes), or for two classes one column, the logit of the
        second class (its probability where the criterion is `torch.nn.BCELoss`). ``n_outputs`` is the number of
        classes; 1 for two classes, unless the criterion is a cross-entropy over columns.
    criterion : str, torch loss or sklm.losses.Loss, default="log_loss"
        ``"log_loss"``, softmax or for one column logistic; `torch.nn.CrossEntropyLoss`, `BCELoss`, `BCEWithLogitsLoss`
        or another torch loss, class or instance; a `sklm.losses.Loss`. ``criterion__curvature`` is ``"ggn"`` (default
        where the loss has it), ``"sqrt"``, or for more than two classes ``"mc"``: one sampled row of ``"ggn"`` per
        sample, drawn anew in every step.
    alpha : float, "bayes" or "auto", default="auto"
        L2 penalty on weight matrices; separable classes have no finite optimum without one. ``"bayes"`` as in
        `LMRegressor`, by the Laplace approximation with the curvature of the criterion. ``"auto"`` is ``"bayes"`` where
        it is for `LMRegressor`, else 1, as scikit-learn's LogisticRegression.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes as ``{label: weight}``, labels without one weigh 1; or weights that are inverse to the
        number of samples of a class, ``n_samples / (n_classes * n_samples_of_the_class)``, with `sample_weight` counted
        as repeated rows. They multiply `sample_weight`, and do not change the number of rows that the evidence sees.
    lr, damping, max_attempts, solver, jacobian, jacobian_max_rows, selection, max_epochs, batch_size, ftol, xtol, \
gtol, n_init, early_stopping, validation_fraction, n_iter_no_change, warm_start, random_state, verbose, callbacks, \
train_split, device, dtype
        As in `LMRegressor`; the split of `early_stopping` is stratified.
    **kwargs
        ``module__...``, ``criterion__...``, ``damping__...``, ``selection__...``, ``callbacks__...``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    n_outputs_ : int
        Columns that the module returns.
    parameters_, module_, alpha_, n_effective_, log_evidence_, optimizer_, criterion_, history_, loss_, loss_curve_, \
n_iter_, converged_, message_, n_features_in_, feature_names_in_, input_names_, device_, dtype_
        As in `LMRegressor`.

    Raises
    ------
    ValueError
        As in `LMRegressor`.

    See Also
    --------
    LMRegressor : The regressor, with the text of the common parameters.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklm import LMClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LMClassifier(module__hidden_layer_sizes=(3,), random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.95)
    True
    """

    classes_: np.ndarray
    _fixed_alpha = 1.0

    if TYPE_CHECKING:  # scikit-learn's mixins have no types

        def score(self, X: Any, y: Any, sample_weight: Any = None) -> float: ...

    def __init__(
        self,
        module: Factory = MLP,
        *,
        criterion: Any = "log_loss",
        lr: float = 1.0,
        damping: Any = "nielsen",
        max_attempts: int = 10,
        solver: str = "auto",
        jacobian: str = "auto",
        jacobian_max_rows: int | str | None = "auto",
        selection: Any = None,
        alpha: float | str = "auto",
        class_weight: Any = None,
        max_epochs: int = 100,
        batch_size: int | str = -1,
        ftol: float | None = 1e-8,
        xtol: float | None = 1e-8,
        gtol: float | None = 1e-8,
        n_init: int = 1,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        callbacks: Any = None,
        train_split: Any = None,
        device: Any = "auto",
        dtype: Any = "auto",
        **kwargs: Any,
    ) -> None:
        self._store(locals())

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the module to data.

        Parameters
        ----------
        X : as in `LMRegressor.fit`
        y : array of shape (n_samples,)
            Class labels, numbers or strings; None when a Dataset has them.
        sample_weight : array of shape (n_samples,), default=None
            Weights >= 0, equivalent to repeated rows; where alpha comes from the evidence as in `LMRegressor.fit`.

        Returns
        -------
        self
        """
        self._fit(X, y, sample_weight, cold=not (self.warm_start and self.initialized_))
        return self

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> Self:
        """Go on fitting from the present parameters for up to `max_epochs` epochs, as skorch does.

        A `sklm.MLP` keeps the scaling of its first data. Where a fit by the evidence has converged to a constant, there
        is nothing to go on from: the weights are drawn anew.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes : array of shape (n_classes,), default=None
            All class labels; used in the first call, where None takes those in y.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As in `LMRegressor`, and for ``class_weight="balanced"``: the data of one call do not tell the frequencies.
        """
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit. In order to use 'balanced' weights, use "
                "compute_class_weight('balanced', classes=classes, y=y). In place of y you can use a large enough "
                "sample of the full training set target to properly estimate the class frequency distributions. Pass "
                "the resulting weights as the class_weight parameter, a dict."
            )
        self._fit(X, y, sample_weight, cold=not self.initialized_, classes=classes, warn=False)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict class labels.

        Parameters
        ----------
        X : as in `fit`

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self, ["module_", "classes_"])
        scores = self._mean(X)
        codes = (scores[:, 0] > 0.5).astype(int) if self._has_one_column(scores) else scores.argmax(axis=1)
        labels: np.ndarray = self.classes_[codes]
        return labels

    def _has_one_column(self, scores: np.ndarray | Tensor) -> bool:
        return scores.shape[1] == 1 and len(self.classes_) == 2

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict class probabilities.

        Parameters
        ----------
        X : as in `fit`

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`.

        Raises
        ------
        ValueError
            When the criterion is a loss of scores that are no probabilities.
        """
        check_is_fitted(self, ["module_", "classes_"])
        loss = self.criterion_
        if isinstance(loss, TorchLoss) and loss.twin is None and not isinstance(loss.criterion, nn.NLLLoss):
            raise ValueError(f"{loss} gives no probabilities; use `predict` or `decision_function`.")
        mean = self._mean(X)
        return np.hstack([1 - mean, mean]) if self._has_one_column(mean) else mean

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Predict the logarithms of the class probabilities.

        Parameters
        ----------
        X : as in `fit`

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`. From the logits where the module returns such: with all digits where a
            probability rounds to 0 or 1. Else minus infinity for 0.

        Raises
        ------
        ValueError
            As `predict_proba`.
        """
        check_is_fitted(self, ["module_", "classes_"])
        loss = self.criterion_.twin if isinstance(self.criterion_, TorchLoss) else self.criterion_
        found: np.ndarray
        if isinstance(loss, CrossEntropy):
            found = self._outputs(X).log_softmax(1).numpy()
        elif isinstance(loss, BinaryCrossEntropy) and loss.from_logits:
            logits = self._outputs(X)
            both = torch.cat([-logits, logits], 1) if self._has_one_column(logits) else logits
            found = nn.functional.logsigmoid(both).numpy()
        else:
            with np.errstate(divide="ignore"):
                found = np.log(self.predict_proba(X))
        return found

    def decision_function(self, X: Any) -> np.ndarray:
        """Return logits.

        Parameters
        ----------
        X : as in `fit`

        Returns
        -------
        ndarray of shape (n_samples,) for two classes, positive for the second one; else (n_samples, n_classes)
        """
        check_is_fitted(self, ["module_", "classes_"])
        outputs = self._outputs(X)
        loss = _twin_or_self(self.criterion_)
        is_probability = isinstance(loss, BinaryCrossEntropy) and not loss.from_logits
        logits: np.ndarray = (outputs.logit() if is_probability else outputs).numpy()
        if len(self.classes_) == 2:
            return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return logits

    def _encode(self, y: Any, *, reset: bool, classes: Any) -> tuple[np.ndarray, np.ndarray]:
        y = validate_labels(y)
        check_classification_targets(y)
        if reset:
            self.classes_ = np.unique(y if classes is None else validate_labels(classes))
        elif classes is not None and not np.array_equal(np.unique(validate_labels(classes)), self.classes_):
            raise ValueError(
                f"`classes` must be those of the first call of `partial_fit`, {self.classes_.tolist()}; got "
                f"{list(classes)}. `fit` anew for others."
            )
        codes = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        unknown = self.classes_[codes] != y
        if np.any(unknown):
            raise ValueError(
                f"`y` has labels that are not among the classes {self.classes_.tolist()}: "
                f"{np.unique(y[unknown])[:5].tolist()}. "
                "Pass all labels as `classes` in the first call of `partial_fit`, or `fit` anew."
            )
        return y, codes.astype(np.int64)

    def _validate_params(self) -> None:
        super()._validate_params()
        given = self.class_weight
        if not (given is None or isinstance(given, dict) or (isinstance(given, str) and given == "balanced")):
            raise ValueError(
                f"The 'class_weight' parameter of {type(self).__name__} must be an instance of 'dict', a str among "
                f"{{'balanced'}} or None. Got {given!r} instead."
            )

    def _reweighted(self, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
        present = np.ones(len(labels), dtype=bool) if weights is None else weights > 0
        if self.class_weight is None or not present.any():
            return weights
        seen, counts = labels[present], None if weights is None else weights[present]
        classes = np.unique(seen) if isinstance(self.class_weight, str) else self.classes_
        factors = compute_class_weight(self.class_weight, classes=classes, y=seen, sample_weight=counts)
        if not np.all(np.isfinite(factors) & (factors >= 0)):
            raise ValueError(f"`class_weight` must have finite weights >= 0; got {self.class_weight!r}.")
        if not np.any(factors > 0):
            raise ValueError(f"`class_weight` must have a weight > 0 for a class in y; got {self.class_weight!r}.")
        of_samples: np.ndarray = factors[np.searchsorted(classes, labels).clip(max=len(classes) - 1)]
        return of_samples if weights is None else weights * of_samples

    def _n_module_outputs(self) -> int:
        n_classes = len(self.classes_)
        if n_classes == 2 and not _needs_columns(self.criterion):
            return 1
        return n_classes

    def _fit_criterion(self, loss: Loss, outputs: Tensor) -> Loss:
        self.n_outputs_ = n_outputs = outputs.shape[1]
        n_classes = len(self.classes_)
        if n_outputs == 1 and n_classes == 2 and self.criterion == "log_loss":
            one_row = "ggn" if loss.curvature == "mc" else loss.curvature  # as many rows as draws
            loss = BinaryCrossEntropy(curvature=one_row)
        one_column = isinstance(_twin_or_self(loss), BinaryCrossEntropy)
        if n_outputs != (1 if one_column else n_classes) or (one_column and n_classes > 2):
            raise ValueError(
                f"`module` must return {'one column' if one_column else f'{n_classes} columns, one per class'} for "
                f"{n_classes} classes with criterion {self.criterion!r}; it returned {n_outputs}."
            )
        self._check_takes(loss, outputs)
        return loss

    def _check_takes(self, loss: Loss, outputs: Tensor) -> None:
        """Raise where the module returns probabilities and the loss takes their logits or logarithms."""
        if not _are_probabilities(self.module_, outputs):
            return
        twin = _twin_or_self(loss)
        last = "Softmax" if outputs.shape[1] > 1 else "Sigmoid"
        if isinstance(twin, TorchLoss) and isinstance(twin.criterion, nn.NLLLoss):
            raise ValueError(
                "`module` returns probabilities, but `criterion` NLLLoss takes their logarithms; end the module with "
                "LogSoftmax, or without either and with criterion='log_loss'."
            )
        if isinstance(twin, CrossEntropy) or (isinstance(twin, BinaryCrossEntropy) and twin.from_logits):
            other = "" if outputs.shape[1] > 1 else ", or pass criterion=torch.nn.BCELoss"
            raise ValueError(
                f"`module` returns probabilities, but `criterion` {self.criterion!r} takes logits and applies {last} "
                f"itself; leave the last {last} out{other}. `predict_proba` gives probabilities all the same."
            )

    def _strata(self, data: Data, n_valid: int) -> np.ndarray | None:
        """Return the labels, unless a class is too small to be on both sides of the split."""
        labels, counts = np.unique(data.y, return_counts=True)
        n_smaller = min(n_valid, len(data) - n_valid)
        return data.y if counts.min() >= 2 and n_smaller >= len(labels) else None


def _are_probabilities(module: nn.Module, outputs: Tensor) -> bool:
    """Return whether a module surely ends in Softmax or Sigmoid: as the last layer of a sequence, or by its sums."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    if isinstance(module, nn.Softmax) or (isinstance(module, nn.Sigmoid) and outputs.shape[1] == 1):
        return True
    sums_to_one = outputs.shape[1] > 1 and bool(((outputs.sum(1) - 1).abs() <= 1e-5).all())
    differ = bool((outputs != outputs[:1]).any())
    return sums_to_one and differ and bool(((outputs >= 0) & (outputs <= 1)).all())


def _twin_or_self(loss: Loss) -> Loss:
    return loss.twin if isinstance(loss, TorchLoss) and loss.twin is not None else loss


def _needs_columns(criterion: Any) -> bool:
    """Return whether the criterion needs one column per class, also for two classes."""
    flexible = criterion == "log_loss"
    kinds = (BinaryCrossEntropy, nn.BCELoss, nn.BCEWithLogitsLoss)
    one_column = isinstance(criterion, kinds) or (isinstance(criterion, type) and issubclass(criterion, kinds))
    return not (flexible or one_column)
