"""What goes to files and comes from them: parameters as skorch saves them, and pickles that know of devices."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import skorch
import torch
from sklearn.base import BaseEstimator

from sklm._device import is_available
from sklm._net.components import WithParts

FOUND = (
    "n_iter_",
    "loss_",
    "loss_curve_",
    "converged_",
    "message_",
    "alpha_",
    "n_effective_",
    "log_evidence_",
    "_epoch",
)  # by a fit


class WithFiles(WithParts):
    """A net that can be saved, loaded and moved."""

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
            has_params = any(args[:1]) or kwargs.get("f_params") or kwargs.get("checkpoint")
            found = FOUND if has_params and "_run" not in self.__dict__ else ()  # a fit sets them at its end
            for name in (*found, "_training_rows", "_inferred"):
                self.__dict__.pop(name, None)
        finally:
            self.device = requested

    def trim_for_prediction(self) -> None:
        """Drop what only training needs, as skorch does; for good. `predict` stays, standard errors do not."""
        kept = self.criterion, self.criterion_
        if isinstance(self.callbacks, list):
            self.callbacks = list(self.callbacks)  # skorch clears it
        super().trim_for_prediction()
        self.criterion, self.criterion_ = kept
        for name in ("_training_rows", "_inferred"):
            self.__dict__.pop(name, None)

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
