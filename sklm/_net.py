"""`skorch.NeuralNet` as a scikit-learn estimator, with Levenberg-Marquardt as its training step.

skorch gives the training loop, history, callbacks, saving and loading. What is bent, and why:

* `__init__` stores the arguments and nothing else; `history_`, `initialized_` and `virtual_params_` are class-level
  defaults, and parameter names come from the signature plus the keys with ``__``, which live in the private dict
  `_prefixed` (scikit-learn's contract: no public attribute that the signature does not name).
* `initialize` needs the data: the module may ask for ``n_features_in``, ``n_outputs`` and ``feature_names_in``.
* Data are validated as scikit-learn does, made tensors once, and batches are slices of them, without a data loader.
  Batches are pairs (inputs, labels as the user gave them), so scoring callbacks compare with `predict`; what the engine
  needs travels with them.
* Stopping is a private kind of KeyboardInterrupt, raised when an epoch has ended; a callback's KeyboardInterrupt
  (skorch's `EarlyStopping`) stops too; the user's own keeps the best parameters and is raised again.
* A fit that fails before its first epoch ends leaves the estimator as it was.
"""

from __future__ import annotations

import abc
import copy
import dis
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import skorch
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted
from skorch.history import History
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sklm._data import (
    Batch,
    Batches,
    Stored,
    TensorData,
    joined,
    merge_repeated_rows,
    stored,
    to_tensors,
    validate_columns,
    validate_inputs,
)
from sklm._device import (
    DTYPES,
    checked_random_state,
    draw_seed,
    dtype_name,
    is_available,
    resolve_device,
    resolve_dtype,
)
from sklm._progress import Progress, table
from sklm.curves import Curve, curve, is_curve
from sklm.engine import LevenbergMarquardt
from sklm.engine._checks import check_integer, check_keywords, check_real, did_you_mean
from sklm.engine.damping import resolve_damping
from sklm.engine.evidence import LEAST_EFFECTIVE, check_alpha
from sklm.engine.jacobian import (
    Reader,
    call_module,
    check_output,
    chunks,
    element_names,
    evaluating,
    flat_output,
    map_tensors,
    preserved_rng,
    seed_rng,
    take,
    tensors,
)
from sklm.engine.losses import Loss, resolve_loss
from sklm.engine.multistart import best_of
from sklm.engine.selection import resolve_selection
from sklm.modules import MLP

PREDICT_ROWS = 65_536  # rows per forward pass outside training: bounds the memory of hidden layers
OF_SKORCH = ("callbacks_", "init_context_", "initialized_")
PREFIXES = ("module", "criterion", "damping", "selection", "callbacks")
HINTS = {
    "hidden_layer_sizes": "module__hidden_layer_sizes",
    "activation": "module__activation",
    "max_iter": "max_epochs",
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
    "weights": "fit(..., sample_weight=weights**2)",
    "scale_covar": "absolute_sigma",
    "f_scale": "criterion__delta",
    "mu": "damping__initial",
    "mu_max": "damping__maximum",
    "mu_inc": "damping__increase",
    "mu_dec": "damping__decrease",
    "epochs": "max_epochs",
    "max_fail": "n_iter_no_change",
    "min_grad": "gtol",
    "show": "verbose",
    "hiddenSizes": "module__hidden_layer_sizes",
}  # names of scikit-learn's MLP, SciPy, lmfit and MATLAB, for messages
# Where a curve's first run has not converged: from the same start with another scaling, and ten times the epochs.
SECOND_SCALING, SECOND_EPOCHS = "identity", 10
DEFAULT_EPOCHS = 100
MOST_BAYES_PARAMS = 3000  # for alpha="auto": the evidence takes an inverse in every step
EVIDENCE = ("alpha", "n_effective", "log_evidence")
EVIDENCE_NOISE = 5.0  # of the log evidence of a network: its curvature is an approximation
LINEAR = 1e-3  # distance of the gain ratio from 1
ALPHA_CHANGE = 2.0  # a factor: alpha that still changes so much has not been found
MANY_ROWS, SOME_ROWS = 2**18, 2**15  # a curve with many rows starts from a fit to some of them
INIT_ROWS = 2**16  # of those read batch by batch: enough for the scales of a new module
# Mini-batches: an epoch in which the loss falls by less than a share makes them larger by a factor, up to all rows.
LEAST_FALL, GROWTH, ALL = 0.01, 4, 2**30
# batch_size="auto": rows of the first batches, at least and per parameter, and how many of them the data must fill
LEAST_BATCH, ROWS_PER_PARAM, FEWEST_BATCHES = 1000, 5, 4
RESTART_SEED = 0x9E3779B1  # odd, as torch takes seeds modulo 2**32; far from those of the epochs of a run


class StopTraining(KeyboardInterrupt):
    """Ends the training loop; skorch's loop knows KeyboardInterrupt as the signal to stop."""


class _NoStartError(ValueError):
    """The loss or the Jacobian is not finite at the start."""


class Data(TensorData, skorch.dataset.Dataset):
    """`TensorData` that skorch's callbacks recognize as a dataset."""


class MeanLoss(skorch.callbacks.PassthroughScoring):
    """Says of the mean loss that the net has recorded for an epoch whether it is the best."""

    best_score_: float

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Record ``train_loss_best`` or ``valid_loss_best``."""
        row = net.history[-1]
        if self.name in row:
            row[f"{self.name}_best"] = row[self.name] < self.best_score_
            self.best_score_ = min(self.best_score_, row[self.name])


class PrintLog(skorch.callbacks.PrintLog):
    """skorch's table of epochs with small numbers readable and without colors; not even made where none is printed."""

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        if net.verbose > 1:
            super().on_epoch_end(net, **kwargs)

    def table(self, row: Any) -> str:
        return table(row, self._sorted_keys(row.keys()))


class LMNet(skorch.NeuralNet, abc.ABC):
    """What `LMRegressor` and `LMClassifier` share; see the module text."""

    prefixes_: ClassVar[list[str]] = [*PREFIXES, "optimizer"]
    cuda_dependent_attributes_: ClassVar[list[str]] = []
    _modules: ClassVar[list[str]] = ["module"]
    _criteria: ClassVar[list[str]] = ["criterion"]
    _optimizers: ClassVar[list[str]] = ["optimizer"]
    history_: Any = None
    initialized_ = False
    virtual_params_: ClassVar[dict[str, Any]] = {}
    device: Any
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

    if TYPE_CHECKING:  # scikit-learn's mixins, which have no types

        def score(self, X: Any, y: Any, sample_weight: Any = None) -> float: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        shown: dict[str, inspect.Parameter] = {}
        for parent in cls.__mro__:  # a subclass that passes **kwargs on keeps the parameters of its parent
            if parent is LMNet:
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
                    f"{did_you_mean(name, self._signature_names(), HINTS) or '.'} "
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
                    f"{did_you_mean(name, names, HINTS) or '.'} "
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
        if check_alpha(self._alpha()) and not self._on_all_rows:
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
            raise ValueError(f"`train_split` must be None or a callable; got {self.train_split!r}.")
        if self.callbacks is not None and not isinstance(self.callbacks, list) and self.callbacks != "disable":
            raise ValueError(f"`callbacks` must be None, a list or 'disable'; got {self.callbacks!r}.")

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        ours = {"print_log": PrintLog(), "train_loss": MeanLoss("train_loss"), "valid_loss": MeanLoss("valid_loss")}
        return [(name, ours.get(name, callback)) for name, callback in super()._default_callbacks]

    # ------------------------------------------------------------------ data

    @abc.abstractmethod
    def _encode(self, y: Any, *, reset: bool, classes: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return labels as the user gave them, checked, and targets: real numbers or class indices."""

    def _training_data(self, X: Any, y: Any, sample_weight: Any, *, reset: bool, classes: Any = None) -> Data:
        """Validate data for a fit and move them to the device."""
        source = stored(X)
        if y is None and source is None:
            raise self._no_targets()
        if reset:
            self.device_ = resolve_device(self.device)
        if source is None:
            arrays = self._validate_inputs(X, reset=reset)
            one = next(iter(arrays.values())) if isinstance(arrays, dict) else arrays
            n_samples = len(one)
        else:
            arrays, found = self._validate_stored(source, reset=reset)
            y, n_samples = found if y is None else y, source.n_samples
        if y is None:
            raise self._no_targets()
        labels, targets = self._encode(y, reset=reset, classes=classes)
        check_consistent_length(range(n_samples), labels)
        weights = None
        if sample_weight is not None:
            sample_weight = sample_weight.detach().cpu() if isinstance(sample_weight, Tensor) else sample_weight
            weights = _check_sample_weight(sample_weight, labels, dtype=np.float64, ensure_non_negative=True)
        weights = self._reweighted(labels, weights)
        if reset:
            dtype = "float64" if is_curve(self.module) and dtype_name(self.dtype) == "auto" else self.dtype
            self.dtype_ = resolve_dtype(dtype, arrays, self.device_)
        convert = partial(to_tensors, dtype=self.dtype_, device=self.device_)
        inputs = convert(arrays) if source is None else self._reader(source, self.dtype_)
        data = Data(inputs, labels, convert(targets), None if weights is None else convert(weights))
        if weights is not None and not weights.all():
            data = data.subset(np.flatnonzero(weights))  # weight 0 is a row that is not there
        sees_rows = self.early_stopping or self.train_split or isinstance(self.callbacks, list)
        if (self.batch_size == -1 or is_curve(self.module)) and not sees_rows and self._init_takes_weights():
            data = merge_repeated_rows(data, self.dtype_)
        return data

    def _reweighted(self, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
        """Return the weights of the samples times those that the estimator gives them."""
        return weights

    def _no_targets(self) -> ValueError:
        return ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")

    def _validate_stored(self, source: Stored, *, reset: bool) -> tuple[Any, Any]:
        """Check all inputs part by part; return the first part as arrays, and all targets that came along, or None."""
        first, targets = None, []
        for inputs, target in source.parts():
            arrays = self._validate_inputs(inputs, reset=reset and first is None)
            first = arrays if first is None else first
            targets.append(target)
        return first, joined(targets)

    def _reader(self, source: Stored, dtype: torch.dtype) -> Reader:
        def read(index: Any) -> Any:
            return to_tensors(self._validate_inputs(source.read(index)[0], reset=False), dtype, self.device_)

        return Reader(read, source.n_samples)

    def _validate_inputs(self, X: Any, *, reset: bool) -> Any:
        """Return checked inputs as an array or a dict of arrays; of a table for a curve, the columns that it uses."""
        if reset:
            self.__dict__.pop("_input_columns", None)
        takes_columns = is_curve(self.module) if reset else "_input_columns" in self.__dict__
        if not takes_columns:
            return validate_inputs(self, X, reset=reset)
        if isinstance(X, Mapping):
            raise ValueError("`X` must be a table for a curve, whose columns have the names of its inputs; got a dict.")

        def find() -> list[int]:
            if reset:
                module = self.module if isinstance(self.module, Curve) else self._call_factory(self._keywords(), 0)
                if max(module.input_columns) >= self.n_features_in_:
                    raise ValueError(
                        f"`module` is a curve of the columns {module.input_columns} (from 0); X has only "
                        f"{self.n_features_in_}."
                    )
                self._input_columns = module.input_columns
            columns: list[int] = self._input_columns
            return columns

        return validate_columns(self, X, find, reset=reset)

    def _init_takes_weights(self) -> bool:
        """Return whether the module's `init_from_data`, if it has one, takes weights."""
        method = getattr(self.module, "init_from_data", None)
        return method is None or "sample_weight" in inspect.signature(method).parameters

    def _prediction_data(self, X: Any) -> TensorData:
        """Return inputs for prediction; data that are ours already pass through."""
        if isinstance(X, TensorData):
            return X
        if isinstance(X, torch.utils.data.Subset) and isinstance(X.dataset, TensorData):
            return X.dataset.subset(np.asarray(X.indices))
        source = stored(X)
        arrays = self._validate_inputs(X if source is None else next(source.parts())[0], reset=False)
        dtype = torch.promote_types(self.dtype_, resolve_dtype("auto", arrays, self.device_))
        return TensorData(to_tensors(arrays, dtype, self.device_) if source is None else self._reader(source, dtype))

    def _to_data(self, part: Any) -> TensorData:
        """Return a part of a training split as data: ours, or a Dataset that a user's `train_split` returned."""
        ours = part.dataset if isinstance(part, torch.utils.data.Subset) else part
        if isinstance(ours, TensorData):
            return self._prediction_data(part)
        return self._training_data(part, None, None, reset=False)

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[TensorData, TensorData | None]:
        """Return training and validation data (None without validation), and scale a new module to the former."""
        train, valid = X, None
        if self.train_split is not None:
            train, valid = self.train_split(X, X.y)
            train, valid = self._to_data(train), None if valid is None else self._to_data(valid)
        elif self.early_stopping:
            train, valid = (self._to_data(part) for part in self._early_stopping_split(X))
        if self._is_new:
            self._init_from_data(train)
            if len(train) >= MANY_ROWS and self._is_left_to_us():
                self._start_on_some_rows(train)
            self._is_new = False
        elif self.early_stopping and valid is not None and self.history:  # a warm fit must not end worse than it began
            self._run.keep(self._loss(valid), len(self.history), self.module_)
        return train, valid

    def _early_stopping_split(self, data: Data) -> Iterator[torch.utils.data.Subset[Any]]:
        n_samples = len(data)
        if n_samples < 2:
            raise ValueError(
                "`early_stopping=True` needs at least 2 samples to split off a validation set; "
                f"got n_samples={n_samples}."
            )
        n_valid = min(max(1, math.ceil(self.validation_fraction * n_samples)), n_samples - 1)
        parts = train_test_split(
            np.arange(n_samples),
            test_size=n_valid,
            stratify=self._strata(data, n_valid),
            random_state=self._split_seed % 2**32,
        )
        return (torch.utils.data.Subset(data, part) for part in parts)

    def _strata(self, data: Data, n_valid: int) -> np.ndarray | None:
        """Return the labels by which to stratify a split; None for none."""
        return None

    def get_iterator(self, dataset: TensorData, training: bool = False) -> Batches:
        """Return the batches of one epoch: shuffled in training, a single one for validation."""
        if not training:
            return Batches(dataset, -1)
        return Batches(
            dataset,
            lambda: self._batch_size(len(dataset)),
            lambda: (self.optimizer_.seed + len(self.history)) % 2**62,
        )

    def _growth_so_far(self) -> int:
        """Return the factor of the size of the batches of this epoch."""
        run = self.__dict__.get("_run")
        is_first = run is not None and run.n_epochs == 0 and run.is_new
        return self.history[-2].get("growth", 1) if len(self.history) > 1 and not is_first else 1

    @property
    def _on_all_rows(self) -> bool:
        """Whether every step is on all rows, as far as the settings tell."""
        return self.batch_size == -1 or (
            self.batch_size == "auto" and (is_curve(self.module) or bool(check_alpha(self._alpha())))
        )

    def _batch_size(self, n_rows: int) -> int:
        """Return the size of the batches of this epoch; -1 for all rows."""
        size = self.batch_size
        if size == -1:
            return -1
        if size == "auto":
            n_params = sum(parameter.numel() for parameter in self.module_.parameters() if parameter.requires_grad)
            size = max(LEAST_BATCH, ROWS_PER_PARAM * n_params // self._n_module_outputs())
            if self._on_all_rows or n_rows < FEWEST_BATCHES * size:
                return -1
        growth = self._growth_so_far()
        return -1 if growth > 1 and 2 * size * growth > n_rows else int(size * growth)  # no half a batch at the end

    # ------------------------------------------------------------------ components

    def initialize(self) -> Self:
        """Create module, criterion and optimizer without data, as `load_params` needs them.

        Raises
        ------
        ValueError
            When the module asks for sizes that only data tell; use `fit`, or skorch's ``LoadInitState`` callback.
        """
        self._validate_params()
        if not hasattr(self, "dtype_"):
            self.device_ = resolve_device(self.device)
            self.dtype_ = DTYPES.get(dtype_name(self.dtype), torch.float64)
        self._split_seed = draw_seed(self.random_state)
        try:
            self._initialize_parts(None, self._split_seed)
        except ValueError as error:
            if not is_curve(self.module):
                raise
            raise ValueError(
                f"{error} Before `fit` the columns of X are not known: pass `module__n_features_in` and "
                "`module__feature_names_in`, or save and load curves with pickle or joblib."
            ) from error
        return self

    def _initialize_parts(self, data: Data | None, seed: int) -> None:
        self._built_from, self._built_callbacks = self._module_source(), self.callbacks
        self.callbacks_: list[Any] = []
        self._initialize_callbacks()
        with self._current_init_context("module"):
            self.module_ = self._build_module(seed)
        with self._current_init_context("criterion"):
            self.criterion_ = self._build_criterion(data).to(device=self.device_, dtype=self.dtype_)
        with self._current_init_context("optimizer"):
            self.optimizer_ = self._build_optimizer(seed)
        self.history_ = History()
        self.initialized_ = True
        self._is_new = True

    def _continue_parts(self, data: Data) -> None:
        """Take over changed parameters of the estimator, and go on with module, damping and history."""
        if not isinstance(self.module, nn.Module):
            self._check_factory(self.get_params_for("module"))
        before, now = self._built_from, self._module_source()
        changed = [name for name in {**before, **now} if not _same(before.get(name), now.get(name))]
        if changed:
            raise ValueError(
                f"`{changed[0]}` has changed since the module was built, and `partial_fit` and `warm_start=True` keep "
                "that module; call `fit` with `warm_start=False`."
            )
        if self.callbacks is not self._built_callbacks:
            self._initialize_callbacks()
            self._built_callbacks = self.callbacks
        self.module_.to(device=self.device_, dtype=self.dtype_)
        with self._current_init_context("criterion"):
            self.criterion_ = self._build_criterion(data).to(device=self.device_, dtype=self.dtype_)
        used = self.optimizer_
        with self._current_init_context("optimizer"):
            self.optimizer_ = self._build_optimizer(used.seed)
        self.optimizer_.n_steps = used.n_steps
        self.optimizer_.continue_alpha(used)
        if type(self.optimizer_.damping) is type(used.damping):
            self.optimizer_.damping.load_state_dict(used.damping.state_dict())
        history = History()
        history.extend(row for row in self.history_ if "train_loss" in row)  # without an interrupted epoch
        self.history_ = history

    def _module_source(self) -> dict[str, Any]:
        """Return what a module is built from."""
        arguments = {f"module__{name}": copy.copy(value) for name, value in self.get_params_for("module").items()}
        return {"module": self.module, "device": self.device, "dtype": self.dtype, **arguments}

    @abc.abstractmethod
    def _n_module_outputs(self) -> int:
        """Return the number of outputs that a module which asks for it should have."""

    def _build_module(self, seed: int) -> nn.Module:
        keywords = self._keywords()
        if isinstance(self.module, nn.Module):
            if keywords:
                raise ValueError(
                    f"`module` is an instance, so `module__{next(iter(keywords))}` cannot be applied to it; "
                    "pass the class or a factory function instead."
                )
            module = copy.deepcopy(self.module)
        else:
            module = self._call_factory(keywords, seed)
        if isinstance(module, Curve):
            self._input_columns = module.input_columns
            module.keep_inputs()
        return module.to(device=self.device_, dtype=self.dtype_)

    def _keywords(self) -> dict[str, Any]:
        keywords: dict[str, Any] = self.get_params_for("module")
        return keywords

    def _factory(self) -> Any:
        return curve(self.module) if isinstance(self.module, str) else self.module

    def _call_factory(self, keywords: dict[str, Any], seed: int) -> Any:
        """Return a new module for the data whose facts are set on the estimator."""
        self._check_factory(keywords)
        factory = self._factory()
        asked = inspect.signature(factory).parameters
        known = self._facts()
        for name in ("n_features_in", "n_outputs", "feature_names_in"):
            if name not in asked or name in keywords:
                continue
            if name in known:
                keywords[name] = known[name]
            elif asked[name].default is inspect.Parameter.empty:
                raise ValueError(
                    f"`module` asks for `{name}`, which is not known here (from a dict of arrays, or before `fit`); "
                    f"pass `module__{name}`."
                )
        missing = [
            name
            for name, p in asked.items()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and name not in keywords
        ]
        if missing:
            raise ValueError(
                f"`module` asks for {', '.join(missing)}; pass {', '.join(f'module__{name}' for name in missing)}, or "
                "where it is a function of the data and not one that makes a module, pass sklm.curve(function)."
            )
        with preserved_rng(self.device_):
            seed_rng(seed, self.device_)
            module = factory(**keywords)
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"`module` must return a torch.nn.Module; got {type(module).__name__}. Pass a function of the data as "
                "sklm.curve(function)."
            )
        return module

    def _check_factory(self, keywords: dict[str, Any]) -> None:
        if not callable(self._factory()):
            raise ValueError(
                "`module` must be a torch.nn.Module class, a function that returns a module, a module, or a formula; "
                f"got {self.module!r}."
            )
        check_keywords("module", self._factory(), keywords)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if hasattr(self, "n_outputs_") or hasattr(self, "classes_"):
            facts["n_outputs"] = self._n_module_outputs()
        if hasattr(self, "n_features_in_"):
            facts["n_features_in"] = self.n_features_in_
            facts["feature_names_in"] = getattr(self, "feature_names_in_", None)
        return facts

    def _build_criterion(self, data: Data | None) -> Loss:
        loss = copy.deepcopy(resolve_loss(self.criterion, self.get_params_for("criterion")))
        task = "classification" if self._is_classifier() else "regression"
        if loss.task not in (None, task):
            raise ValueError(
                f"`criterion` must be a {task} loss for {type(self).__name__}; got {self.criterion!r}, which is for "
                f"{loss.task}."
            )
        if data is not None:
            outputs = self._probe(data)
            loss = self._fit_criterion(loss, outputs).to(device=self.device_, dtype=self.dtype_)
            loss.check_targets(data.targets)
            targets = loss.prepare(outputs, data.targets[: len(outputs)])
            try:
                loss.value(outputs, targets)
            except TypeError as error:
                raise ValueError(f"`criterion` cannot be called as loss(outputs, targets): {error}.") from error
        elif hasattr(self, "n_outputs_"):  # from a file, before `load_params`
            loss = self._fit_criterion(loss, torch.empty(0, self.n_outputs_))
        return loss

    def _is_classifier(self) -> bool:
        return bool(self.__sklearn_tags__().estimator_type == "classifier")

    def _fit_criterion(self, loss: Loss, outputs: Tensor) -> Loss:
        """Return the loss for these outputs, or raise where they do not fit."""
        return loss

    def _probe(self, data: Data) -> Tensor:
        """Return the module's outputs for the first samples; raise where it does not return one row per sample."""
        n_probe = min(2, len(data))
        batch = data.take(slice(0, n_probe))
        if any(is_lazy(parameter) for parameter in self.module_.parameters()):
            with torch.no_grad(), preserved_rng(self.device_):
                seed_rng(draw_seed(self.random_state), self.device_)
                call_module(self.module_, batch[0])
        with evaluating(self.module_), torch.no_grad(), preserved_rng(self.device_):
            outputs = check_output(call_module(self.module_, map_tensors(torch.clone, batch[0]))).to(self.dtype_)
            flat = flat_output(outputs, n_probe)
            self._check_samples_apart(self.module_, batch[0], outputs, data.targets)
        return flat

    def _check_samples_apart(self, module: nn.Module, inputs: Any, outputs: Tensor, targets: Tensor) -> None:
        """Raise when the output for a sample depends on the other samples; a module that draws cannot be told."""
        before = torch.get_rng_state()
        alone = call_module(module, map_tensors(torch.clone, take(inputs, slice(0, 1))))
        draws = not torch.equal(before, torch.get_rng_state())
        if alone.shape[:1] != (1,) or draws or not bool(torch.isfinite(outputs).all()):
            return
        alone, together = alone.reshape(1, -1).to(outputs.dtype), outputs[:1].reshape(1, -1)
        # rounding is relative to the scale of the problem, not to an output that happens to be near zero
        size = max(1.0, float(outputs.abs().max()), float(targets.abs().max()))
        tolerance = 10 * torch.finfo(outputs.dtype).eps ** 0.5 * size
        if alone.shape != together.shape or not torch.allclose(alone, together, rtol=0, atol=tolerance):
            raise ValueError(
                "`module` mixes samples: its output for one sample depends on the others, so a sample has no Jacobian "
                "of its own; compute every row from its own inputs alone."
            )

    def _alpha(self) -> float | str:
        """Return alpha with "auto" resolved."""
        if not (isinstance(self.alpha, str) and self.alpha == "auto"):
            alpha: float | str = self.alpha
            return alpha
        module = self.module if isinstance(self.module, type) else type(self.module)
        if (
            not issubclass(module, MLP)
            or self.batch_size not in (-1, "auto")
            or self.selection is not None
            or self.solver == "cg"
        ):
            return self._fixed_alpha
        built = self.__dict__.get("module_")
        n_params = 0 if built is None else sum(p.numel() for p in built.parameters())
        return "bayes" if n_params <= MOST_BAYES_PARAMS else self._fixed_alpha

    def _build_optimizer(self, seed: int) -> LevenbergMarquardt:
        damping = resolve_damping(self.damping, self.get_params_for("damping"))
        run = self.__dict__.get("_run")
        second = run is not None and run.second
        if second:
            damping.scaling = SECOND_SCALING
        return LevenbergMarquardt(
            self.module_,
            self.criterion_,
            lr=self.lr,
            damping=damping,
            solver=self.solver,
            max_attempts=self.max_attempts,
            jacobian=self.jacobian,
            jacobian_max_rows=self.jacobian_max_rows,
            selection=resolve_selection(self.selection, self.get_params_for("selection")),
            alpha=self._alpha(),
            ftol=self.ftol,
            xtol=self.xtol,
            gtol=self.gtol,
            bounds=getattr(self.module_, "parameter_bounds", None),
            acceleration=self._on_all_rows and (second or "auto"),
            seed=seed,
        )

    def _init_from_data(self, data: TensorData) -> None:
        method = getattr(self.module_, "init_from_data", None)
        if method is None:
            return
        if isinstance(data.X, Reader):
            data = self._some_rows(data, INIT_ROWS)
        targets = data.targets
        if targets.is_floating_point():
            targets = self.criterion_.link(targets)
        weighted = "sample_weight" in inspect.signature(method).parameters
        weights = {"sample_weight": data.weights} if weighted else {}
        with preserved_rng(self.device_):
            seed_rng(self.optimizer_.seed, self.device_)
            if self.n_init > 1 and isinstance(self.module_, Curve):
                self._choose_start(self.module_, data, targets)
            else:
                method(data.X, targets, **weights)
        self.module_.to(device=self.device_, dtype=self.dtype_)

    def _start_on_some_rows(self, data: TensorData) -> None:
        """Start a curve where a fit to a few of many rows ends, if it converges and fits all rows better."""
        before = copy.deepcopy(self.module_.state_dict())
        loss = self._loss(data)
        some = self._some_rows(data, SOME_ROWS)
        optimizer = self._build_optimizer(self.optimizer_.seed)
        status = "running"
        while status == "running" and optimizer.n_steps < self.max_epochs:
            status = optimizer.step(some.X, some.targets, some.weights).status
        if status != "converged" or not self._loss(data) <= loss:
            self.module_.load_state_dict(before)

    def _some_rows(self, data: TensorData, n_rows: int) -> TensorData:
        """Return at most `n_rows` samples in memory, drawn at random."""
        rows = np.arange(len(data))
        if len(data) > n_rows:
            generator = torch.Generator().manual_seed(self.optimizer_.seed)
            rows = torch.randint(len(data), (n_rows,), generator=generator).sort().values.numpy()
        batch = data.take(rows)
        return TensorData(batch[0], batch[1], batch.targets, batch.weights)

    def _loss(self, data: TensorData) -> float:
        return float(self.validation_step(next(iter(self.get_iterator(data))))["loss"])

    def _choose_start(self, curve: Curve, data: TensorData, targets: Tensor) -> None:
        """Set a curve to the best point that its starts lead to."""
        starts = curve.starts(data.X, targets, data.weights, n_starts=self.n_init)
        if len(starts) < self.n_init:
            warnings.warn(
                f"`n_init` has no effect on {curve}: other starts are drawn for one numeric output, by a function that "
                "torch.vmap can evaluate for many parameters at once (no `if` on the value of a tensor, no .item()).",
                UserWarning,
                stacklevel=2,
            )
            curve.init_from_data(data.X, targets, data.weights)
            return
        names = list(starts[0])
        parameters = dict(curve.named_parameters())
        box = [curve.parameter_bounds.get(name, (-math.inf, math.inf)) for name in names]
        lower, upper = torch.tensor(box).to(targets).unbind(1)

        def outputs(X: Tensor, point: Tensor) -> Tensor:
            return curve.evaluate(X, {**parameters, **dict(zip(names, point.unbind(), strict=True))})

        points = torch.tensor([list(start.values()) for start in starts]).to(targets)
        best = best_of(outputs, points, self.criterion_, data.X, data.targets, data.weights, lower, upper)
        if best is None:
            raise _NoStartError(
                f"no start of {self.n_init} has a finite loss. Check the module and the scale of X and y."
            )
        with torch.no_grad():
            for name, value in zip(names, best, strict=True):
                parameters[name].fill_(value)

    # ------------------------------------------------------------------ training

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, cold: bool, classes: Any = None, warn: bool = True) -> None:
        """Validate, build (when `cold`) and train; on failure before the end of an epoch, restore the estimator."""
        before = dict(self.__dict__)
        parameters = None if cold else copy.deepcopy(self.module_.state_dict())
        reset = cold or not hasattr(self, "n_outputs_")  # `initialize` or `load_params` came before any data
        run = _Run()
        finished = False
        try:
            self._validate_params()
            data = self._training_data(X, y, sample_weight, reset=reset, classes=classes)
            if cold:
                self._train_from_starts(data)
            else:
                self._continue_parts(data)
                self._run = _Run()
                self._train(data, self.max_epochs)
            finished = True
        finally:
            run = self.__dict__.pop("_run", run)
            if not finished and not run.n_epochs:
                self.__dict__.clear()
                self.__dict__.update(before)
                if parameters is not None:
                    self.module_.load_state_dict(parameters)
        if self.verbose:
            print(self.message_, flush=True)  # noqa: T201
        if run.verdict == "Stopped":
            warnings.warn(self.message_, ConvergenceWarning, stacklevel=3)
        elif run.exhausted and warn:
            self._warn_not_converged(on_all=run.on_all)

    def _train_from_starts(self, data: Data) -> None:
        """Fit from `n_init` starts and keep the best fit; a curve gets a second run where the first has not converged.

        What a run leaves on the estimator is in its `__dict__`, so a copy of that keeps the best one.
        """
        seed = draw_seed(self.random_state)
        best: dict[str, Any] = {}
        try:
            for restart in range(self.n_init):
                run = self._train_once(data, seed, restart, best)
                if (run.exhausted or run.verdict == "Stopped") and self._is_left_to_us():
                    self._train_once(data, seed, restart, best, second=True)
                if isinstance(self.module_, Curve):
                    break  # its starts were compared before the fit
            if not best:
                raise _NoStartError(
                    f"no start of {self.n_init} has a finite loss. Check the module and the scale of X and y."
                )
        finally:
            if best:
                self.__dict__.clear()
                self.__dict__.update(best)

    def _train_once(self, data: Data, seed: int, restart: int, best: dict[str, Any], *, second: bool = False) -> _Run:
        """Fit from one start, put the estimator's state in `best` if it is better, and return the run."""
        run = _Run(second=second)
        self._run = run
        try:
            self._initialize_parts(data, seed + restart * RESTART_SEED)
            self._split_seed = seed  # one split for all starts
            several = self.n_init > 1 and not isinstance(self.module_, Curve)
            title = "second strategy" if second else f"start {restart + 1} of {self.n_init}" if several else ""
            self._train(data, self.max_epochs * (SECOND_EPOCHS if second else 1), title)
        except _NoStartError:
            if self.n_init == 1:
                raise
        finally:
            if run.n_epochs and not run.score >= best.get("_run", _Run()).score:
                best.clear()
                best.update(self.__dict__)
        return run

    def _is_left_to_us(self) -> bool:
        """Return whether the fit is that of a curve with full batches, and damping and its length are left to us."""
        ours = self.damping == "nielsen" and not self.get_params_for("damping") and self.max_epochs >= DEFAULT_EPOCHS
        ours = ours and any(tolerance is not None for tolerance in (self.ftol, self.xtol, self.gtol))
        return ours and self._on_all_rows and self.selection is None and self.optimizer_.is_curve

    def _train(self, data: Data, max_epochs: int, title: str = "") -> None:
        with Progress(max_epochs, title, shown=self.verbose == 1) as self._run.progress:
            self._run_epochs(data, max_epochs)

    def _run_epochs(self, data: Data, max_epochs: int) -> None:
        run = self._run
        self.notify("on_train_begin", X=data.X, y=data.y)
        try:
            self.fit_loop(data, epochs=max_epochs)
            run.exhausted = True
            run.verdict, run.reason = "Not converged", f"max_epochs={self.max_epochs} reached"
            if run.second:
                run.reason += f", and {SECOND_EPOCHS} times as many with a second strategy"
        except StopTraining:
            pass
        except KeyboardInterrupt as interrupt:
            has_steps = any("damping" in batch for row in self.history[-1:] for batch in row["batches"])
            callbacks = [callback for _, callback in self.callbacks_]
            if not _raised_by_callback(interrupt, callbacks) or not (run.n_epochs or has_steps):
                run.verdict, run.reason = "Interrupted", ""
                self._finish(restore=True)
                raise
            if has_steps and "train_loss" not in self.history[-1]:  # within an epoch
                self.on_epoch_end(self)
            if has_steps:
                self._judge_epoch()
            run.verdict, run.reason = "Stopped by a callback", ""
        except BaseException as error:
            run.verdict, run.reason = "Failed", f"{type(error).__name__}: {error}"
            self._finish(restore=True)
            raise
        self._finish(restore=bool(self.early_stopping) or self._by_evidence)
        self.notify("on_train_end", X=data.X, y=data.y)

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the hook of the net and of every callback; after an epoch, decide whether to go on.

        Parameters
        ----------
        method_name : str
            ``"on_train_begin"``, ``"on_epoch_end"`` and so on, see skorch.
        **cb_kwargs
            Arguments of the hook.
        """
        super().notify(method_name, **cb_kwargs)
        if method_name == "on_epoch_end":
            self._judge_epoch()
            if self._run.verdict:
                raise StopTraining

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Open a new epoch in the history."""
        super().on_epoch_begin(net, dataset_train=dataset_train, dataset_valid=dataset_valid, **kwargs)
        if not self._on_all_rows:  # batches that have grown stay so when a fit goes on with as many rows
            begin = [self.batch_size, len(dataset_train)]
            if not self._run.n_epochs and len(self.history) > 1:
                self._run.is_new = self.history[-2].get("first_batch_size") != begin
            self.history.record("first_batch_size", begin)
        batches = self.get_iterator(dataset_train, training=True)
        n_batches = len(batches)
        if not self._on_all_rows:
            self.history.record("batch_size", batches.batch_size)
            self.history.record("growth", self._growth_so_far())
        self._run.on_all = n_batches == 1
        self._run.steps_needed = max(n_batches, self.optimizer_.steps_per_sweep)
        self._run.train = dataset_train

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Record the damping of the epoch's last step, all its attempts, its last gain ratio and the mean losses."""
        row = self.history[-1]
        steps = [batch for batch in row["batches"] if "damping" in batch]
        row["attempts"] = sum(step["attempts"] for step in steps)
        for name in ("damping", "gain_ratio", *(EVIDENCE if self.optimizer_.bayes else ())):
            row[name] = steps[-1][name]
        for name, part in (("train_loss", "train"), ("valid_loss", "valid"), ("initial_loss", "train")):
            found = [(float(batch[name]), batch[f"{part}_batch_size"]) for batch in row["batches"] if name in batch]
            if found:  # also with callbacks="disable", where skorch does not average
                row[name] = sum(value * size for value, size in found) / sum(size for _, size in found)

    def train_step(self, batch: Batch, **fit_params: Any) -> dict[str, Any]:
        """Make one Levenberg-Marquardt step on a batch.

        Parameters
        ----------
        batch : Batch

        Returns
        -------
        dict
            ``"loss"``, after the step, and ``"y_pred"``, the module's outputs after it.
        """
        run = self._run
        if not all(part.training for part in self.optimizer_.function.modules):
            self._set_training(True)
        following = batch.following
        fresh = None if following is None else (following[0], following.targets, following.weights)
        result = self.optimizer_.step(batch[0], batch.targets, batch.weights, fresh=fresh)
        if result.status == "failed" and not result.attempts and not run.n_steps:
            raise _NoStartError(f"{result.message}. Check the module, its initial values and the scale of X and y.")
        run.n_steps += 1
        run.settled = 0 if result.status == "running" else run.settled + 1
        run.status, run.reason = result.status, result.message
        names = ["damping", "attempts", "gain_ratio", *(EVIDENCE if self.optimizer_.bayes else ())]
        if not self._on_all_rows:
            names.append("initial_loss")
        self.history[-1]["batches"][-1].update((name, getattr(result, name)) for name in names)
        return {"loss": torch.tensor(result.loss, dtype=torch.float64), "y_pred": result.outputs}

    @torch.no_grad()
    def validation_step(self, batch: Batch, **fit_params: Any) -> dict[str, Any]:
        """Return loss (weighted mean, without the penalty) and outputs of a batch in evaluation mode."""
        self._set_training(False)
        outputs = self.infer(batch[0])
        flat = outputs.reshape(len(outputs), -1)
        values = self.criterion_.value(flat, self.criterion_.prepare(flat, batch.targets))
        weights = batch.weights
        loss = values.mean() if weights is None else (weights @ values) / weights.sum()
        return {"loss": loss, "y_pred": outputs}

    def _judge_epoch(self) -> None:
        """Count the epoch, keep its parameters when they are the best, and set the verdict when it was the last."""
        run = self._run
        run.n_epochs += 1
        row = self.history[-1]
        if run.progress is not None:
            run.progress.update(row)
        score, needed = row["train_loss"], run.best_score
        if self.early_stopping:
            score = row.get("valid_loss", math.nan)
        elif self._by_evidence:  # a later epoch fits more closely, so it takes the place of one that is hardly better
            score = -row["log_evidence"]
            run.least_score = min(run.least_score, score)  # in this order a nan does not count
            needed = run.least_score + EVIDENCE_NOISE
            change = max(row["alpha"], run.landmark_alpha) / min(row["alpha"], run.landmark_alpha)
            if score < run.landmark - EVIDENCE_NOISE or (change > ALPHA_CHANGE and math.isfinite(score)):
                run.landmark, run.landmark_alpha, run.landmark_epoch = score, row["alpha"], row["epoch"]
        if score < needed:
            # with the full batch, and without validation or evidence, the last parameters are the best
            any_epoch = self.early_stopping or self._by_evidence or run.steps_needed > 1
            run.keep(score, row["epoch"], self.module_ if any_epoch else None)
        if not run.on_all:
            self._judge_batches()
        waited = row["epoch"] - max(run.best_epoch or row["epoch"] - run.n_epochs, run.grown_epoch)
        if run.on_all and run.settled >= run.steps_needed:
            run.verdict = "Converged" if run.status == "converged" else "Stopped"
        elif self.early_stopping and waited >= self.n_iter_no_change:
            run.verdict = "Stopped early"
            run.reason = f"no validation loss below {run.best_score:.6g} in the last {waited} epochs"
        elif self._by_evidence and run.best_epoch and waited >= self.n_iter_no_change:
            run.verdict = "Converged"
            run.reason = f"the log evidence has fallen from {-run.least_score:.6g} for {waited} epochs"
        elif self._by_evidence and run.landmark_epoch:
            stalled = row["epoch"] - run.landmark_epoch
            # the evidence of a linear model, whose gain ratio is 1, is exact
            if stalled >= self.n_iter_no_change and any(
                not abs(ratio - 1) <= LINEAR for ratio in self.history[-stalled:, "gain_ratio"]
            ):
                run.verdict = "Converged"
                run.reason = f"the log evidence has risen by less than {EVIDENCE_NOISE:g} in {stalled} epochs"

    def _judge_batches(self) -> None:
        """Let the batches grow where they have nothing more to say: the loss before each step has stopped to fall."""
        run, rows = self._run, self.history[-1:] if self._run.n_epochs == 1 and self._run.is_new else self.history[-2:]
        sizes = {row.get("batch_size") for row in rows}
        stalls = (
            len(rows) == 2 and len(sizes) == 1 and rows[1]["initial_loss"] > (1 - LEAST_FALL) * rows[0]["initial_loss"]
        )
        settled = run.settled >= run.steps_needed
        if not stalls and not settled:
            return
        growth = rows[-1]["growth"] * GROWTH
        self.history.record("growth", ALL if settled else growth)
        run.settled, run.grown_epoch = 0, self.history[-1, "epoch"]
        if not self.early_stopping:
            run.best_score = math.inf  # losses after a step on a batch of another size do not compare

    @property
    def _by_evidence(self) -> bool:
        """Whether epochs are compared by their evidence: losses with different alpha do not compare."""
        return self.optimizer_.bayes and self.optimizer_.param_groups[0]["alpha"] > 0 and not self.early_stopping

    def _finish(self, *, restore: bool) -> None:
        """Set the fitted attributes; with `restore`, go back to the best parameters of this run."""
        run = self._run
        self.optimizer_.forget()
        if not run.n_epochs:
            return
        rows = [row for row in self.history if "train_loss" in row]
        last, reason = rows[-1], run.reason
        if restore and run.best_state is not None and run.best_epoch is not None:
            self.module_.load_state_dict(run.best_state)  # also where an epoch after the best has begun
            if run.best_epoch != last["epoch"]:
                last = next(row for row in rows if row["epoch"] == run.best_epoch)
                reason = f"{reason}; the parameters are those of epoch {run.best_epoch}, the best".removeprefix("; ")
        self._set_training(False)
        self.n_iter_ = len(rows)
        self.loss_curve_ = [float(row["train_loss"]) for row in rows]
        self.loss_ = float(last["train_loss"])
        self.alpha_ = last.get("alpha", self.optimizer_.param_groups[0]["alpha"])
        chosen = self.early_stopping or (self._by_evidence and run.best_epoch)
        run.score = run.best_score if chosen else self.loss_
        if not run.on_all and not chosen and run.train is not None:  # the losses of small batches do not compare
            run.score = self._loss(run.train)
        for name in ("n_effective", "log_evidence"):
            self.__dict__.pop(f"{name}_", None)
            if math.isfinite(last.get(name, math.nan)):
                setattr(self, f"{name}_", last[name])
        if hasattr(self, "n_effective_"):
            found = f"alpha={self.alpha_:.3g} by the evidence, {self.n_effective_:.4g} effective parameters"
            if self.n_effective_ - int((~self.optimizer_.penalized).sum()) < LEAST_EFFECTIVE:
                found += ", no weight among them: the outputs are constant; try another random_state, n_init or damping"
            reason = f"{reason}; {found}".removeprefix("; ")
        self.converged_ = run.verdict == "Converged"
        epochs = "epoch" if self.n_iter_ == 1 else "epochs"
        if self.optimizer_.is_curve and self.dtype_ == torch.float32:
            reason = f"{reason}; float32 limits the parameters to 7 digits or fewer".removeprefix("; ")
        self.message_ = f"{run.verdict} after {self.n_iter_} {epochs}{': ' if reason else ''}{reason}."

    def _warn_not_converged(self, *, on_all: bool) -> None:
        advice = (
            "Raise max_epochs, or loosen ftol."
            if on_all
            else "Raise max_epochs or batch_size, or set early_stopping=True."
        )
        if self.optimizer_.is_curve:
            advice = "The curve may not suit the data; give initial values or bounds, or raise max_epochs."
        warnings.warn(
            f"max_epochs={self.max_epochs} reached before a stopping test passed; loss {self.loss_:.6g}. {advice}",
            ConvergenceWarning,
            stacklevel=4,
        )

    # ------------------------------------------------------------------ inference

    @property
    def parameters_(self) -> dict[str, float]:
        """Parameters by name, the fixed ones included; ``name[i, j]`` for the elements of a tensor."""
        check_is_fitted(self, "module_")
        parameters = list(self.module_.named_parameters())
        values = [value for _, parameter in parameters for value in parameter.detach().reshape(-1).tolist()]
        return dict(zip(element_names(parameters), values, strict=True))

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        """Return the module's output for inputs on its device: a dict as keyword arguments.

        Inputs in float64 are computed in float64 also by a module fitted in float32.
        """
        if isinstance(x, Reader):
            return torch.cat([self.infer(part) for _, part in chunks(x, PREDICT_ROWS)])
        module = self.module_
        if any(tensor.dtype == torch.float64 for tensor in tensors(x)) and self.dtype_ != torch.float64:
            module = copy.deepcopy(module).double()
        output: Tensor = call_module(module, x)
        return output

    def evaluation_step(self, batch: Any, training: bool = False) -> Tensor:
        """Return the module's output for a batch, in evaluation mode unless `training`."""
        self._set_training(training)
        with torch.set_grad_enabled(training):
            return self.infer(batch[0])

    def forward_iter(self, X: Any, training: bool = False, device: str = "cpu") -> Iterator[Tensor]:
        """Yield the module's outputs for X, at most 65 536 rows at once.

        Parameters
        ----------
        X : array, frame, tensor, dict of arrays, or Dataset
        training : bool, default=False
            Mode of the module.
        device : str, default="cpu"
            Where the outputs go.
        """
        check_is_fitted(self, "module_")
        data = self._prediction_data(X)
        for batch in Batches(data, PREDICT_ROWS):
            yield self.evaluation_step(batch, training=training).to(device)

    def _outputs(self, X: Any) -> Tensor:
        """Return the module's outputs for X on the CPU, of shape (n_samples, n_outputs)."""
        check_is_fitted(self, "module_")
        return torch.cat([part.reshape(len(part), -1) for part in self.forward_iter(X, device="cpu")])

    def _mean(self, X: Any) -> np.ndarray:
        """Return the expected target for every sample, (n_samples, n_outputs): predictions or probabilities."""
        outputs = self._outputs(X)
        mean: np.ndarray = self.criterion_.mean(outputs).numpy()
        return mean

    # ------------------------------------------------------------------ saving

    def load_params(self, *args: Any, **kwargs: Any) -> None:
        """Load module, optimizer and history from files, as skorch does, to the device in use.

        Parameters
        ----------
        *args, **kwargs
            ``f_params``, ``f_optimizer``, ``f_criterion``, ``f_history``, ``checkpoint``, ``use_safetensors``.
        """
        if not self.initialized_:
            self.initialize()
        requested = self.device
        self.device = str(self.device_)
        try:
            super().load_params(*args, **kwargs)
            self._is_new = False  # the scaling of the module comes from the file
            self.__dict__.pop("_training_rows", None)
            self.__dict__.pop("_inferred", None)
        finally:
            self.device = requested

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(BaseEstimator.__getstate__(self))
        state.pop("_run", None)  # of a fit whose callback saves
        if self.initialized_ and self.device_.type != "cpu":
            parts = {name: state[name] for name in ("module_", "criterion_", "optimizer_")}
            parts = copy.deepcopy(parts)  # together: the optimizer holds the module
            parts["module_"].cpu()
            parts["criterion_"].cpu()
            state.update(parts)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        BaseEstimator.__setstate__(self, state)
        if not self.initialized_ or self.device_.type == "cpu":
            return
        if not is_available(self.device_):
            warnings.warn(
                f"fitted on {self.device_}, which is not available here; the estimator is now on the CPU.",
                skorch.exceptions.DeviceWarning,
                stacklevel=2,
            )
            self.__dict__["device_"] = torch.device("cpu")
        self.module_.to(self.device_)
        self.criterion_.to(self.device_)


@dataclass
class _Run:
    """What one call of `fit` or `partial_fit` has seen so far."""

    n_steps: int = 0
    n_epochs: int = 0
    steps_needed: int = 1  # steps that must pass a stopping test in a row
    settled: int = 0  # steps in a row that did
    status: str = "running"
    reason: str = ""
    best_score: float = math.inf
    least_score: float = math.inf  # with evidence: of any epoch
    landmark: float = math.inf  # with evidence: the last epoch that was much better or had quite another alpha
    landmark_alpha: float = math.inf
    landmark_epoch: int = 0
    best_epoch: int | None = None
    best_state: dict[str, Tensor] | None = None
    verdict: str = ""  # how training ended; empty while it goes on
    exhausted: bool = False
    second: bool = False  # whether this is the second strategy
    score: float = math.inf  # what runs are compared by
    train: TensorData | None = None  # the rows used for training
    is_new: bool = False  # whether the batches are not those of the run before
    on_all: bool = True  # whether the steps of this epoch are on all rows
    grown_epoch: int = 0  # the last with batches smaller than those that follow
    progress: Progress | None = None

    def keep(self, score: float, epoch: int, module: nn.Module | None) -> None:
        """Note the best epoch so far, with a copy of the parameters of `module`; None where later ones are better."""
        self.best_score, self.best_epoch, self.best_state = score, epoch, None
        if module is not None:
            self.best_state = {name: value.detach().clone() for name, value in module.state_dict().items()}


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


def _same(one: Any, other: Any) -> bool:
    return one is other or bool(np.array_equal(one, other))


def _raised_by_callback(interrupt: KeyboardInterrupt, callbacks: list[Any]) -> bool:
    """Return whether a callback itself raised the interrupt, which asks to stop, rather than the user in its midst."""
    traceback, frames = interrupt.__traceback__, []
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
        frames.append(traceback.tb_frame)
    if traceback is None:
        return False
    raised = dis.opname[traceback.tb_frame.f_code.co_code[traceback.tb_lasti]] == "RAISE_VARARGS"  # not by a signal
    holders = [value for frame in [*frames, traceback.tb_frame] for value in frame.f_locals.values()]
    return raised and any(value is callback for value in holders for callback in callbacks)
