"""Module, loss and optimizer: built, checked on the data, and set to their start."""

from __future__ import annotations

import abc
import copy
import functools
import inspect
import math
import warnings
from typing import Any, Self

import numpy as np
import torch
from skorch.callbacks import LRScheduler
from skorch.history import History
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sklm._data import TensorData
from sklm._device import DTYPES, draw_seed, dtype_name, resolve_device
from sklm._net.arguments import MUTABLE, own, same_argument
from sklm._net.intake import Data, WithData
from sklm._net.parameters import init_takes
from sklm.curves import Curve, curve, is_curve
from sklm.engine import LevenbergMarquardt
from sklm.engine._checks import check_choice, check_keywords, parameters_of
from sklm.engine.damping import resolve_damping
from sklm.engine.inputs import Reader, call_module, check_output, flat_output, map_tensors, take, tensors
from sklm.engine.losses import Loss, resolve_loss
from sklm.engine.memory import is_out_of_memory
from sklm.engine.modes import evaluating, preserved_rng, seed_rng
from sklm.engine.multistart import best_of
from sklm.engine.selection import resolve_selection
from sklm.modules import MLP

SECOND_SCALING = "identity"  # of a curve whose first run has not converged: from the same start
# For alpha="auto": the evidence takes an inverse in every step, of parameters x parameters or, where there are fewer
# rows, of rows x rows; the rows that are then kept may take as much memory.
MOST_BAYES_PARAMS = 3000
SOME_ROWS = 2**13  # that a curve with many rows is fitted to first, and outputs are looked at for being constant
CONSTANT = 1e-3  # outputs that vary by no more than this share of the targets
SMALL, FLAT = 0.1, 0.25  # range of targets beside the largest of several outputs, and of outputs beside these targets
INIT_ROWS = 2**16  # of those read batch by batch: enough for the scales of a new module

of_formula = functools.lru_cache(maxsize=128)(curve)  # one factory for every text, whose parameters are known


class NoStartError(ValueError):
    """The loss or the Jacobian is not finite at the start."""


class WithParts(WithData):
    """A net with its module, loss and optimizer."""

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
            self._n_rows = math.inf if data is None else len(data) * self._n_module_outputs()
        with self._current_init_context("criterion"):
            self.criterion_ = self._build_criterion(data, seed).to(device=self.device_, dtype=self.dtype_)
        with self._current_init_context("optimizer"):
            self.optimizer_ = self._build_optimizer(seed)
        self.history_ = History()
        self.initialized_ = True
        self._is_new = True

    def _initialize_callbacks(self) -> Self:
        super()._initialize_callbacks()
        given = self.get_params_for("callbacks")
        if given and self.callbacks != "disable":
            names = [name for name, _ in self._uniquely_named_callbacks()]
            for name in given:
                check_choice("callbacks__...", name.partition("__")[0], names)
        return self

    def _continue_parts(self, data: Data) -> None:
        """Take over changed parameters of the estimator, and go on with module, damping and history."""
        if not isinstance(self.module, nn.Module):
            self._check_factory(self.get_params_for("module"))
        before, now = self._built_from, self._module_source()
        same = {"device"} if resolve_device(self.device) == self.device_ else set()  # by another name
        same |= {"dtype"} if DTYPES.get(dtype_name(self.dtype)) == self.dtype_ else set()
        changed = [
            name
            for name in {**before, **now}
            if name not in same and not same_argument(before.get(name, (None, None)), now.get(name, [None])[0])
        ]
        if changed:
            raise ValueError(
                f"`{changed[0]}` has changed since the module was built, and `partial_fit` and `warm_start=True` keep "
                "that module; call `fit` with `warm_start=False`."
            )
        if self.callbacks is not self._built_callbacks:
            self._initialize_callbacks()
            self._built_callbacks = self.callbacks
        used = self.optimizer_
        has_vanished = self._has_vanished(data)
        if has_vanished:
            self.module_ = self._build_module(used.seed)
            self._is_new = True
        self.module_.to(device=self.device_, dtype=self.dtype_)
        with self._current_init_context("criterion"):
            self.criterion_ = self._build_criterion(data, used.seed).to(device=self.device_, dtype=self.dtype_)
        with self._current_init_context("optimizer"):
            self.optimizer_ = self._build_optimizer(used.seed)
        self.optimizer_.n_steps = used.n_steps
        if not has_vanished:
            self.optimizer_.continue_alpha(used)
            if type(self.optimizer_.damping) is type(used.damping):
                self.optimizer_.damping.load_state_dict(used.damping.state_dict())
        if any(isinstance(callback, LRScheduler) for _, callback in self.callbacks_):
            group, before_it = self.optimizer_.param_groups[0], used.param_groups[0]
            group.update({name: value for name, value in before_it.items() if name not in group})
            if self.lr == used.defaults["lr"]:
                group["lr"] = before_it["lr"]
            elif "initial_lr" in group:  # the user has changed it
                group["initial_lr"] = self.lr
        history = History()
        history.extend(row for row in self.history_ if "train_loss" in row)  # without an interrupted epoch
        self.history_ = history

    def _module_source(self) -> dict[str, tuple[Any, Any]]:
        """Return what a module is built from, with copies."""
        arguments = {f"module__{name}": value for name, value in self.get_params_for("module").items()}
        settings = {"module": self.module, "device": self.device, "dtype": self.dtype}
        return {
            name: (value, copy.copy(value) if isinstance(value, MUTABLE) else value)
            for name, value in {**settings, **arguments}.items()
        }

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
        elif "_parsed" in self.__dict__:  # a formula, when its columns were looked for
            module = self.__dict__.pop("_parsed")
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
        return of_formula(self.module) if isinstance(self.module, str) else self.module

    def _call_factory(self, keywords: dict[str, Any], seed: int) -> Any:
        """Return a new module for the data whose facts are set on the estimator."""
        self._check_factory(keywords)
        factory = self._factory()
        asked = parameters_of(factory)
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
            memo: dict[int, Any] = {}  # one for all: a module may be in two of them
            module = factory(**{name: own(value, memo) for name, value in keywords.items()})
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"`module` must return a torch.nn.Module; got {type(module).__name__}. Pass a function of the data as "
                "sklm.curve(function)."
            )
        # a function may return what is there already
        return module if isinstance(factory, type) or isinstance(module, Curve) else own(module, {})

    def _check_factory(self, keywords: dict[str, Any]) -> None:
        if not callable(self._factory()):
            raise ValueError(
                "`module` must be a torch.nn.Module class, a function that returns a module, a module, or a formula; "
                f"got {self.module!r}. The sizes of the layers of the default network are module__hidden_layer_sizes."
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

    def _has_vanished(self, data: Data) -> bool:
        """Return whether the last fit by the evidence has converged to a constant, from where no step leads away."""
        ended = self.__dict__.get("converged_", False) and hasattr(self, "n_effective_")
        return ended and self._are_constant(data)[0]

    @torch.no_grad()
    def _are_constant(self, data: TensorData) -> tuple[bool, list[int]]:
        """Return whether the outputs hardly differ between samples in memory, beside targets that do.

        And which vary little whose targets are small beside those of others, in sums with which they have no weight.
        """
        if isinstance(data.X, Reader):
            return False, []
        data = self._some_rows(data, SOME_ROWS)
        outputs, targets = self.infer(data.X), data.targets
        if targets.is_floating_point():
            targets = self.criterion_.link(targets)
        targets = targets.reshape(len(outputs), -1).to(torch.float64)
        low, high = torch.quantile(targets, targets.new_tensor([0.05, 0.95]), dim=0)  # outliers do not count
        wanted = torch.where(high > low, high - low, targets.amax(0) - targets.amin(0))
        spread = outputs.amax(0) - outputs.amin(0)
        is_constant = bool((spread <= CONSTANT * wanted).all() & (wanted > 0).any())
        if is_constant or targets.shape != outputs.shape:
            return is_constant, []
        small = (spread < FLAT * wanted) & (wanted < SMALL * wanted.max())
        return False, small.nonzero()[:, 0].tolist()

    def _has_constant_inputs(self, data: TensorData) -> bool:
        return isinstance(data.X, Tensor) and bool((data.X[:1] == data.X).all())

    def _build_criterion(self, data: Data | None, seed: int = 0) -> Loss:
        loss = resolve_loss(self.criterion, self.get_params_for("criterion"))
        task = "classification" if self._is_classifier() else "regression"
        if loss.task not in (None, task):
            raise ValueError(
                f"`criterion` must be a {task} loss for {type(self).__name__}; got {self.criterion!r}, which is for "
                f"{loss.task}."
            )
        if data is not None:
            outputs = self._probe(data, seed)
            loss = self._fit_criterion(loss, outputs).to(device=self.device_, dtype=self.dtype_)
            loss.check_targets(data.targets)
            n_rows = len(outputs) - 1 if len(outputs) == outputs.shape[1] > 1 else len(outputs)  # shapes that differ
            targets = loss.prepare(outputs[:n_rows], data.targets[:n_rows])
            try:
                loss.value(outputs[:n_rows], targets)
            except (TypeError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                raise ValueError(
                    f"`criterion` cannot be called as loss(outputs, targets) with outputs of shape "
                    f"{tuple(outputs[:n_rows].shape)} and targets of shape {tuple(targets.shape)}: {error}. "
                    "Pass another criterion, or a module with other outputs."
                ) from error
        elif hasattr(self, "n_outputs_"):  # from a file, before `load_params`
            loss = self._fit_criterion(loss, torch.empty(0, self.n_outputs_))
        return loss

    def _is_classifier(self) -> bool:
        return bool(self.__sklearn_tags__().estimator_type == "classifier")

    def _fit_criterion(self, loss: Loss, outputs: Tensor) -> Loss:
        """Return the loss for these outputs, or raise where they do not fit."""
        return loss

    def _probe(self, data: Data, seed: int) -> Tensor:
        """Return the module's outputs for the first samples; raise where it does not return one row per sample."""
        n_probe = min(3, len(data))
        batch = data.take(slice(0, n_probe))
        if any(is_lazy(parameter) for parameter in self.module_.parameters()):
            with torch.no_grad(), preserved_rng(self.device_):
                seed_rng(seed, self.device_)
                self._first_call(batch[0])
        with evaluating(self.module_), torch.no_grad(), preserved_rng(self.device_):
            outputs = check_output(self._first_call(map_tensors(torch.clone, batch[0]))).to(self.dtype_)
            flat = flat_output(outputs, n_probe)
            if not getattr(self.module_, "is_elementwise", False):
                self._check_samples_apart(self.module_, batch[0], outputs, data.targets)
        return flat

    def _first_call(self, inputs: Any) -> Any:
        try:
            return call_module(self.module_, inputs)
        except (RuntimeError, TypeError) as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors(inputs))
            hint = (
                "A factory gets the number of columns as `n_features_in`; the keys of a dict are the arguments of "
                "forward."
            )
            if "does not require grad" in str(error):
                hint = (
                    "Modules are called without a graph: take derivatives within forward by torch.vmap(torch.func.grad("
                    "f)), or, much slower, by torch.autograd.grad within torch.enable_grad()."
                )
            raise ValueError(
                f"`module` cannot be called on the first samples of X, of shape {shapes}: {error}. {hint}"
            ) from error

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

    def _alpha(self, *, built: bool = True) -> float | str:
        """Return alpha with "auto" resolved, for the module that is built or for one that is still to be."""
        if not (isinstance(self.alpha, str) and self.alpha == "auto"):
            alpha: float | str = self.alpha
            return alpha
        module = self.module if isinstance(self.module, type) else type(self.module)
        if (
            not issubclass(module, MLP)
            or self.batch_size not in (-1, "auto")
            or self.selection is not None
            or self.solver == "cg"
            or "mc" in (self.get_params_for("criterion").get("curvature"), getattr(self.criterion, "curvature", None))
        ):
            return self._fixed_alpha
        module_ = self.__dict__.get("module_") if built else None
        n_params = 0 if module_ is None else sum(p.numel() for p in module_.parameters())
        n_rows = self.__dict__.get("_n_rows", math.inf)
        is_small = n_params <= MOST_BAYES_PARAMS or n_params * n_rows <= MOST_BAYES_PARAMS**2
        return "bayes" if is_small else self._fixed_alpha

    def _build_optimizer(self, seed: int) -> LevenbergMarquardt:
        damping = resolve_damping(self.damping, self.get_params_for("damping"))
        run = self.__dict__.get("_run")
        second = run is not None and run.further == "strategy"
        if second:
            damping.scaling = SECOND_SCALING
        optimizer = LevenbergMarquardt(
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
        if run is not None and run.further == "alpha":
            optimizer.starts_low = True
        return optimizer

    def _init_from_data(self, data: TensorData) -> None:
        method = getattr(self.module_, "init_from_data", None)
        if method is None:
            return
        if isinstance(data.X, Reader):
            data = self._some_rows(data, INIT_ROWS)
        targets = data.targets
        keywords: dict[str, Any] = {"sample_weight": data.weights} if init_takes("sample_weight", self.module_) else {}
        if isinstance(self.module_, Curve) and init_takes("criterion", self.module_):
            keywords["criterion"] = self.criterion_
        elif targets.is_floating_point():
            targets = self.criterion_.link(targets)
        with preserved_rng(self.device_):
            seed_rng(self.optimizer_.seed, self.device_)
            if self.n_init == 1 or not isinstance(self.module_, Curve) or not self._choose_start(self.module_, data):
                method(data.X, targets, **keywords)
        self.module_.to(device=self.device_, dtype=self.dtype_)

    def _start_on_some_rows(self, data: TensorData) -> None:
        """Start a curve where a fit to a few of many rows ends, if it converges and fits all rows better."""
        before = copy.deepcopy(self.module_.state_dict())
        loss = self.optimizer_.loss(data.X, data.targets, data.weights)
        some = self._some_rows(data, SOME_ROWS)
        optimizer = self._build_optimizer(self.optimizer_.seed)
        status = "running"
        while status == "running" and optimizer.n_steps < self.max_epochs:
            status = optimizer.step(some.X, some.targets, some.weights).status
        if status == "converged" and self.optimizer_.loss(data.X, data.targets, data.weights) <= loss:
            damping = self.optimizer_.damping
            damping.value = min(damping.value, optimizer.damping.value)
        else:
            self.module_.load_state_dict(before)

    def _some_rows(self, data: TensorData, n_rows: int) -> TensorData:
        """Return at most `n_rows` samples in memory, drawn at random."""
        rows = np.arange(len(data))
        if len(data) > n_rows:
            generator = torch.Generator().manual_seed(self.optimizer_.seed)
            rows = torch.randint(len(data), (n_rows,), generator=generator, device="cpu").sort().values.numpy()
        batch = data.take(rows)
        return TensorData(batch[0], batch[1], batch.targets, batch.weights)

    def _loss(self, data: TensorData) -> float:
        return float(self.validation_step(next(iter(self.get_iterator(data))))["loss"])

    def _choose_start(self, curve: Curve, data: TensorData) -> bool:
        """Set a curve to the best point that its starts lead to; return whether it has several."""
        starts = curve.starts(data.X, data.targets, data.weights, n_starts=self.n_init, criterion=self.criterion_)
        if len(starts) < self.n_init:
            warnings.warn(
                f"`n_init` has no effect on {curve}: other starts are drawn for one numeric output, by a function that "
                "torch.vmap can evaluate for many parameters at once (no `if` on the value of a tensor, no .item()).",
                UserWarning,
                stacklevel=2,
            )
            return False
        names = list(starts[0])
        parameters = dict(curve.named_parameters())
        box = [curve.parameter_bounds.get(name, (-math.inf, math.inf)) for name in names]
        lower, upper = torch.tensor(box).to(next(curve.parameters())).unbind(1)

        def outputs(X: Tensor, point: Tensor) -> Tensor:
            return curve.evaluate(X, {**parameters, **dict(zip(names, point.unbind(), strict=True))})

        points = torch.tensor([list(start.values()) for start in starts]).to(lower)
        best = best_of(outputs, points, self.criterion_, data.X, data.targets, data.weights, lower, upper)
        if best is None:
            raise NoStartError(
                f"no start of {self.n_init} has a finite loss. Check the module and the scale of X and y."
            )
        with torch.no_grad():
            for name, value in zip(names, best, strict=True):
                parameters[name].fill_(value)
        return True
