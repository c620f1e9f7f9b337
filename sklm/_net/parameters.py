"""The parameters of the estimators: the contract of scikit-learn, and names of elsewhere that lead to ours."""

from __future__ import annotations

import abc
import inspect
import reprlib
from collections.abc import Mapping
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any, ClassVar, Self

import numpy as np
import skorch
from sklearn.base import BaseEstimator
from torch import nn

from sklm._device import checked_random_state, dtype_name, resolve_device
from sklm.curves import Curve
from sklm.engine._checks import check_integer, check_real, did_you_mean, parameters_of
from sklm.engine.evidence import check_alpha

OF_SKORCH = ("callbacks_", "init_context_", "initialized_")
PREFIXES = ("module", "criterion", "damping", "selection", "callbacks")
HINTS = {
    "hidden_layer_sizes": "module__hidden_layer_sizes",
    "activation": "module__activation",
    "max_iter": "max_epochs",
    "tol": "ftol",
    "learning_rate": "lr",
    "learning_rate_init": "lr",
    "loss": "criterion",
    "curvature": "criterion__curvature",
    "bounds": "module__bounds",
    "fixed": "module__fixed",
    "sigma": "fit(..., sample_weight=1 / sigma**2)",
    "p0": "module__a=1",
    "maxfev": "max_epochs",
    "max_nfev": "max_epochs",
    "Weights": "fit(..., sample_weight=weights)",  # MATLAB's, of squared residuals
    "weights": "fit(..., sample_weight=weights**2)",  # lmfit's, of residuals
    "scale_covar": "absolute_sigma=not scale_covar",
    "f_scale": "criterion__delta",
    "mu": "damping__initial",
    "mu_max": "damping__maximum",
    "mu_inc": "damping__increase",
    "mu_dec": "damping__decrease",
    "epochs": "max_epochs",
    "max_fail": "n_iter_no_change",
    "min_grad": "gtol",
    "show": "verbose",
    "goal": "callbacks",
    "max_time": "callbacks",
    "time": "callbacks",
    "hiddenSizes": "module__hidden_layer_sizes",
    "layers": "module__hidden_layer_sizes",
    "transferFcn": "module__activation",
    "performFcn": "criterion",
    "RobustWgtFun": "criterion",
    "divideFcn": "train_split",
    "divideInd": "train_split",
    "valInd": "train_split",
    "validation_data": "train_split",
    "valRatio": "validation_fraction",
    "regularization": "alpha",
    "weight_decay": "alpha",
    "decay": "alpha",
    "showWindow": "verbose",
    "showCommandLine": "verbose",
    "Display": "verbose",
    "lb": "module__bounds",
    "ub": "module__bounds",
    "beta0": "module__a=1",
    "MaxIterations": "max_epochs",
    "MaxFunctionEvaluations": "max_epochs",
    "TolFun": "ftol",
    "FunctionTolerance": "ftol",
    "TolX": "xtol",
    "StepTolerance": "xtol",
    "OptimalityTolerance": "gtol",
    "mem_reduction": "jacobian_max_rows",
    "useGPU": "device",
    "seed": "random_state",
}  # names of scikit-learn's MLP, SciPy, lmfit and MATLAB, for messages


class Parameterized(skorch.NeuralNet, abc.ABC):
    """A skorch net with parameters as scikit-learn keeps them."""

    prefixes_: ClassVar[list[str]] = [*PREFIXES, "optimizer"]
    cuda_dependent_attributes_: ClassVar[list[str]] = []
    _modules: ClassVar[list[str]] = ["module"]
    _criteria: ClassVar[list[str]] = ["criterion"]
    _optimizers: ClassVar[list[str]] = ["optimizer"]
    history_: Any = None
    initialized_ = False
    virtual_params_: ClassVar[dict[str, Any]] = {}
    device: Any
    criterion: Any
    callbacks: Any
    n_features_in_: int
    n_outputs_: int
    feature_names_in_: np.ndarray
    alpha_: float
    n_effective_: float
    log_evidence_: float
    _is_new: bool
    _split_seed = 0
    _fixed_alpha: ClassVar[float] = 0.0  # what alpha="auto" is without the evidence
    # skorch settings that are not parameters here
    predict_nonlinearity = None
    use_caching = "auto"
    compile = False
    torch_load_kwargs = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        shown: dict[str, inspect.Parameter] = {}
        for parent in cls.__mro__:  # a subclass that passes **kwargs on keeps the parameters of its parent
            if parent is Parameterized:
                break
            if "__init__" not in vars(parent):
                continue
            parameters = list(inspect.signature(vars(parent)["__init__"]).parameters.values())[1:]
            for parameter in parameters:
                if parameter.kind is not parameter.VAR_KEYWORD:
                    shown.setdefault(parameter.name, parameter)
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
        ordered = sorted(shown.values(), key=lambda p: p.kind)
        cls.__signature__ = inspect.Signature(ordered)

    def _store(self, arguments: Mapping[str, Any]) -> None:
        """Set the constructor's arguments as attributes; `arguments` is its ``locals()``."""
        dunder = arguments["kwargs"]
        for name in dunder:
            if not self._is_dunder(name):
                raise TypeError(
                    f"{type(self).__name__}() got an unexpected keyword argument {name!r}"
                    f"{did_you_mean(name, self._signature_names(), HINTS)} "
                    "Parameters of the module have the prefix module__."
                )
        for name, value in arguments.items():
            if name not in ("self", "kwargs", "__class__"):
                setattr(self, name, value)
        self._prefixed = dict(dunder)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_prefixed"][name]
        except KeyError:
            kind = getattr(type(self), name, None)
            if isinstance(kind, property) and kind.fget is not None:
                return kind.fget(self)  # raises again what brought us here, with its message
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}") from None

    def __setattr__(self, name: str, attr: Any) -> None:
        if self._is_dunder(name):
            super().__setattr__("_prefixed", {**self._prefixed, name: attr})
        else:
            super().__setattr__(name, attr)

    # ------------------------------------------------------------------ scikit-learn parameters

    @classmethod
    def _signature_names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    @staticmethod
    def _is_dunder(name: str) -> bool:
        prefix, separator, rest = name.partition("__")
        return bool(prefix in PREFIXES and separator and rest)

    def _get_param_names(self) -> list[str]:
        return self._signature_names() + sorted(self._prefixed)

    def _get_params_for(self, prefix: str) -> dict[str, Any]:
        start = prefix + "__"
        return {name.removeprefix(start): value for name, value in self._prefixed.items() if name.startswith(start)}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, those with a prefix (``module__...``) included.

        Parameters
        ----------
        deep : bool, default=True
            Also return the parameters of parameters that are estimators.

        Returns
        -------
        dict
        """
        params: dict[str, Any] = BaseEstimator.get_params(self, deep=deep)
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters; they take effect in the next `fit`.

        ``lr``, and on a fitted estimator ``damping__...`` and ``selection__...``, also change the optimizer in use, as
        skorch does for callbacks.

        Parameters
        ----------
        **params
            Parameters of the constructor, or with a prefix: ``module__...``, ``criterion__...``, ``damping__...``,
            ``selection__...``, ``callbacks__...``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For an unknown name.
        """
        names = self._signature_names()
        for name in params:
            if name not in names and not self._is_dunder(name):
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}"
                    f"{did_you_mean(name, names, HINTS)} "
                    f"Valid parameters are: {names}, and names with the prefixes {[p + '__' for p in PREFIXES]}."
                )
        for name, value in params.items():
            if self.initialized_:
                self._set_live(name, value)
            setattr(self, name, value)
        return self

    def _set_live(self, name: str, value: Any) -> None:
        optimizer = self.optimizer_
        prefix, _, attribute = name.partition("__")
        if name == "lr":
            optimizer.param_groups[0]["lr"] = value
        elif prefix in ("damping", "selection") and attribute and hasattr(getattr(optimizer, prefix), attribute):
            setattr(getattr(optimizer, prefix), attribute, value)
        elif prefix == "callbacks" and attribute:
            self._set_params_callback(**{name: value})

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        shown = object.__new__(type(self))  # the same parameters, with classes and modules by their names alone
        parameters = inspect.signature(type(self)).parameters
        brief = {name: _brief(value) for name, value in vars(self).items() if name in parameters}
        changed = {name: value for name, value in brief.items() if getattr(self, name) is not parameters[name].default}
        prefixed = {name: _brief(value) for name, value in self._prefixed.items()}
        shown.__dict__.update(vars(self), **changed, _prefixed=prefixed)
        text: str = BaseEstimator.__repr__(shown, N_CHAR_MAX)
        return text

    def _get_fitted_attr_html(self, doc_link: str = "") -> Any:
        """Return scikit-learn's table of fitted attributes, without those that would have to be computed for it."""
        own = {name: value for name, value in vars(self).items() if name.endswith("_") and name not in OF_SKORCH}
        return BaseEstimator._get_fitted_attr_html(SimpleNamespace(parameters_=self.parameters_, **own), doc_link)

    def get_metadata_routing(self) -> Any:
        """Return the metadata that the methods ask for (``sample_weight``)."""
        return BaseEstimator.get_metadata_routing(self)

    def _validate_params(self) -> None:
        """Check the parameters that the engine does not check itself; the first step of every fit."""
        check_integer("max_epochs", self.max_epochs, minimum=1)
        check_integer("n_init", self.n_init, minimum=1)
        try:
            by_evidence = check_alpha(self._alpha())
        except ValueError:
            raise ValueError(f"`alpha` must be a finite number >= 0, 'auto' or 'bayes'; got {self.alpha!r}.") from None
        if by_evidence and not self._on_all_rows:
            raise ValueError(
                f"`alpha='bayes'` needs all data in every step; got batch_size={self.batch_size!r}. Pass batch_size=-1 "
                "or 'auto', or a number for alpha."
            )
        if self.n_init > 1 and isinstance(self.module, nn.Module):
            raise ValueError(
                f"`n_init` must be 1 for a module instance, which has one start; got {self.n_init}. Pass its class or "
                "a factory function."
            )
        if self.batch_size not in (-1, "auto"):
            try:
                check_integer("batch_size", self.batch_size, minimum=1)
            except ValueError:
                raise ValueError(
                    f"`batch_size` must be an integer >= 1, -1 for all samples or 'auto'; got {self.batch_size!r}."
                ) from None
        resolve_device(self.device)
        dtype_name(self.dtype)
        checked_random_state(self.random_state)
        check_real("validation_fraction", self.validation_fraction, above=0, below=1)
        check_integer("n_iter_no_change", self.n_iter_no_change, minimum=1)
        check_integer("verbose", int(self.verbose) if isinstance(self.verbose, bool) else self.verbose, minimum=0)
        for name in ("early_stopping", "warm_start"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ValueError(f"`{name}` must be True or False; got {getattr(self, name)!r}.")
        if self.train_split is not None and not callable(self.train_split):
            raise ValueError(
                f"`train_split` must be None or a callable; got {reprlib.repr(self.train_split)}. For rows of your own "
                "pass skorch's ValidSplit(PredefinedSplit(folds)), with fold 0 for validation and -1 else."
            )
        if self.callbacks is not None and not isinstance(self.callbacks, list) and self.callbacks != "disable":
            raise ValueError(f"`callbacks` must be None, a list or 'disable'; got {self.callbacks!r}.")


def init_takes(name: str, module: Any) -> bool:
    """Return whether the `init_from_data` of a module or its class, if it has one, takes an argument of this name."""
    method = getattr(module, "init_from_data", None)
    return method is None or name in parameters_of(getattr(method, "__func__", method))


class _Name(str):
    """A text that shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _brief(value: Any) -> Any:
    """Return the name of a class, a function or a module that torch would show over several lines; else the value."""
    if isinstance(value, (type, FunctionType)):
        return _Name(value.__name__)
    if isinstance(value, partial) and value.func is Curve and value.args:  # what `sklm.curve` returns
        return _Name(f"curve({_brief(value.args[0])!r})")
    return _Name(f"{type(value).__name__}(...)") if isinstance(value, nn.Module) and "\n" in repr(value) else value
