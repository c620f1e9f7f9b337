r"""Damping: how far a step trusts its linear model.

A step solves  (H + lambda D) d = -g. Two things define a damping strategy:

The scaling matrix D (diagonal), from the diagonal of H:

| `scaling` | D_jj | source |
|---|---|---|
| ``"more"`` | largest H_jj so far: scale-free, and wary of a parameter that once was stiff | More 1978, eq. 6.2 |
| ``"marquardt"`` | H_jj of this step, at least 1e-8 of the largest | Marquardt 1963; Fletcher 1971 |
| ``"max"`` | the largest H_jj of this step, for every j | Madsen, Nielsen and Tingleff 2004, eq. 3.14 |
| ``"identity"`` | 1: plain lambda I | Levenberg 1944 |
| ``"auto"`` | ``"max"`` for a module with weight matrices, else ``"more"`` | |

Parameters of a curve have units of their own, which "more" takes out. The weights of a network share one scale, and
there "max" finds better minima (benchmarks/scaling.py).

The update of the factor lambda from the gain ratio rho = actual / predicted reduction after every attempt:

* `NielsenDamping`: lambda *= max(1/3, 1 - (2 rho - 1)^3) when a step is accepted, lambda *= 2, 4, 8, ... while steps
  are rejected (Nielsen 1999, "Damping parameter in Marquardt's method", eq. 2.5).
* `MultiplicativeDamping`: lambda *= decrease when accepted, lambda *= increase when rejected (Marquardt 1963).
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sklm.engine._checks import as_call, check_choice, check_real, resolve

Scaling = Literal["auto", "more", "marquardt", "identity", "max"]


class Damping(abc.ABC):
    """Scaling matrix and update rule of the damping factor; subclass it and override `accepted` and `rejected`.

    Parameters
    ----------
    initial : float, default=1e-3
        Damping factor of the first attempt, relative to the scaling matrix.
    scaling : {"auto", "more", "marquardt", "identity", "max"}, default="auto"
        Scaling matrix, see the module text.
    minimum, maximum : float, default=1e-15 and 1e20
        Bounds of the damping factor.

    Attributes
    ----------
    value : float
        The damping factor of the next attempt.
    """

    def __init__(
        self,
        *,
        initial: float = 1e-3,
        scaling: Scaling = "auto",
        minimum: float = 1e-15,
        maximum: float = 1e20,
    ) -> None:
        self.minimum = check_real("damping__minimum", minimum, above=0)
        self.maximum = check_real("damping__maximum", maximum, minimum=self.minimum)
        self.initial = check_real("damping__initial", initial, minimum=self.minimum, maximum=self.maximum)
        self.scaling = check_choice("damping__scaling", scaling, list(get_args(Scaling)))
        self.value = self.initial
        self._largest: Tensor | None = None

    def __repr__(self) -> str:
        return as_call(self)

    def scale(self, diagonal: Tensor, indices: Tensor | None, n_params: int) -> Tensor:
        """Return the diagonal of D for this step.

        Parameters
        ----------
        diagonal : Tensor of shape (n_selected,)
            Diagonal of the curvature H, for the parameters that move in this step.
        indices : Tensor of shape (n_selected,) or None
            Their positions among all parameters; None when all move.
        n_params : int
            Number of all parameters.

        Returns
        -------
        Tensor of shape (n_selected,)
            Positive: a parameter without any influence gets 1, as in MINPACK.
        """
        if self.scaling == "identity":
            return torch.ones_like(diagonal)
        if self.scaling == "max":
            diagonal = diagonal.max().expand_as(diagonal)
        if self.scaling == "marquardt":  # a parameter that has lost its influence must not run away
            diagonal = torch.where(diagonal > 0, diagonal.clamp_min(1e-8 * float(diagonal.max())), 0.0)
        if self.scaling in ("auto", "more"):
            if self._largest is None or self._largest.shape != (n_params,):
                self._largest = diagonal.new_zeros(n_params)
            seen = self._largest if indices is None else self._largest[indices]
            diagonal = torch.maximum(diagonal, seen.to(diagonal))
            if indices is None:
                self._largest = diagonal
            else:
                self._largest = self._largest.to(diagonal).index_copy(0, indices, diagonal)
        return torch.where(diagonal > torch.finfo(diagonal.dtype).tiny, diagonal, 1.0)

    @abc.abstractmethod
    def accepted(self, gain_ratio: float) -> None:
        """Update `value` after an accepted step with this gain ratio."""

    @abc.abstractmethod
    def rejected(self) -> None:
        """Update `value` after a rejected attempt."""

    def clip(self) -> None:
        """Keep `value` between `minimum` and `maximum`."""
        self.value = min(max(self.value, self.minimum), self.maximum)

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes that change while training, as numbers and tensors: all but the settings."""
        kinds = [kind for kind in type(self).__mro__ if issubclass(kind, Damping)]
        settings = {name for kind in kinds for name in inspect.signature(kind).parameters}
        return {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
            if name not in settings
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the attributes that `state_dict` returned."""
        vars(self).update(state)


class NielsenDamping(Damping):
    """Nielsen's rule: the factor follows the gain ratio smoothly, and grows ever faster while steps are rejected.

    Parameters
    ----------
    initial, scaling, minimum, maximum
        See `Damping`.
    """

    def __init__(
        self,
        *,
        initial: float = 1e-3,
        scaling: Scaling = "auto",
        minimum: float = 1e-15,
        maximum: float = 1e20,
    ) -> None:
        super().__init__(initial=initial, scaling=scaling, minimum=minimum, maximum=maximum)
        self._growth = 2.0

    def accepted(self, gain_ratio: float) -> None:
        self.value *= max(1 / 3, 1 - (2 * min(gain_ratio, 1.0) - 1) ** 3)
        self._growth = 2.0

    def rejected(self) -> None:
        self.value *= self._growth
        self._growth = min(2 * self._growth, 2.0**20)


class MultiplicativeDamping(Damping):
    """Marquardt's rule: one factor down after a success, another up after a failure.

    Parameters
    ----------
    increase : float > 1, default=10.0
        Factor after a rejected attempt.
    decrease : float in (0, 1], default=0.1
        Factor after an accepted step.
    initial, scaling, minimum, maximum
        See `Damping`; the default of `scaling` is ``"identity"``.
    """

    def __init__(
        self,
        *,
        increase: float = 10.0,
        decrease: float = 0.1,
        initial: float = 1e-3,
        scaling: Scaling = "identity",
        minimum: float = 1e-15,
        maximum: float = 1e20,
    ) -> None:
        super().__init__(initial=initial, scaling=scaling, minimum=minimum, maximum=maximum)
        self.increase = check_real("damping__increase", increase, above=1)
        self.decrease = check_real("damping__decrease", decrease, above=0, maximum=1)

    def accepted(self, gain_ratio: float) -> None:
        self.value *= self.decrease

    def rejected(self) -> None:
        self.value *= self.increase


def _fletcher(
    *,
    increase: float = 10.0,
    decrease: float = 0.1,
    initial: float = 1e-3,
    scaling: Scaling = "marquardt",
    minimum: float = 1e-15,
    maximum: float = 1e20,
) -> Damping:
    return MultiplicativeDamping(
        increase=increase, decrease=decrease, initial=initial, scaling=scaling, minimum=minimum, maximum=maximum
    )


BUILT_IN: dict[str, Callable[..., Damping]] = {
    "nielsen": NielsenDamping,
    "standard": MultiplicativeDamping,
    "fletcher": _fletcher,
}


def resolve_damping(damping: Any, keywords: Mapping[str, Any] | None = None) -> Damping:
    """Return the `Damping` for ``"nielsen"``, ``"standard"``, ``"fletcher"``, a subclass or an instance."""
    resolved: Damping = resolve("damping", damping, BUILT_IN, Damping, dict(keywords or {}))
    return resolved
