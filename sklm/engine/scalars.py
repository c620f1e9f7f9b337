"""The Jacobian of a module whose parameters are all scalars, as those of a curve, in one backward pass.

Give every sample its own copy of each parameter: theta_j becomes a tensor with n equal numbers. The output of sample i
then depends on the i-th copies alone, so the gradient of the sum of all outputs holds every df_i / dtheta_j. This needs
a module that works element by element; whether it does is seen on the first use, by comparing some rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

CHECKED_ROWS = 4

Call = Callable[[Mapping[str, Tensor], Any], Tensor]


class ScalarJacobian:
    """Derivatives of an element-wise module by copies of its scalar parameters.

    Parameters
    ----------
    names : list of str
        The scalar parameters. The methods take a function ``call(parameters, inputs)`` that evaluates the module with
        other tensors, by name, as its parameters.

    Attributes
    ----------
    works : bool or None
        None before the first use.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.works: bool | None = None
        self._shape: tuple[int, ...] = (-1,)  # of a copy: (n,), or (n, 1) for a module that keeps the column of X

    def rows(self, call: Call, vector: Tensor, inputs: Any, n_samples: int) -> Tensor | None:
        """Return J of shape (n_samples, n_params); None where the module does not take copies."""
        with torch.enable_grad():
            leaf, outputs = self._outputs(call, vector, inputs, n_samples)
            if outputs is None:
                return None
            if not outputs.requires_grad:
                return vector.new_zeros(n_samples, len(vector))
            (gradient,) = torch.autograd.grad(outputs.sum(), leaf)
        return gradient.reshape(len(vector), n_samples).T

    def second(self, call: Call, vector: Tensor, direction: Tensor, inputs: Any, n_samples: int) -> Tensor | None:
        """Return the second derivative of the outputs along `direction`, shape (n_samples, 1)."""
        with torch.enable_grad():
            leaf, outputs = self._outputs(call, vector, inputs, n_samples)
            if outputs is None:
                return None
            zero = vector.new_zeros(n_samples, 1)
            if not outputs.requires_grad:
                return zero
            (gradient,) = torch.autograd.grad(outputs.sum(), leaf, create_graph=True)
            along = direction @ gradient.reshape(len(vector), n_samples)
            if not along.requires_grad:
                return zero
            (second,) = torch.autograd.grad(along.sum(), leaf)
        return (direction @ second.reshape(len(vector), n_samples))[:, None]

    def _outputs(self, call: Call, vector: Tensor, inputs: Any, n_samples: int) -> tuple[Tensor, Tensor | None]:
        shape = (n_samples, *self._shape[1:])
        leaf = vector.detach().reshape(-1, *(1 for _ in shape)).expand(-1, *shape).clone().requires_grad_()
        try:
            outputs = call(dict(zip(self.names, leaf.unbind(), strict=True)), inputs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return leaf, None
        if outputs.shape[:1] != (n_samples,) or outputs.numel() != n_samples:
            return leaf, None
        return leaf, outputs

    def check(self, call: Call, vector: Tensor, inputs: Any, n_samples: int, expected: Tensor) -> None:
        """Set `works` by comparing rows for all samples with the `expected` first ones."""
        for shape in ((-1,), (-1, 1)):
            self._shape = shape
            found = self.rows(call, vector, inputs, n_samples)
            if found is not None:
                self.works = torch.allclose(found[: len(expected)], expected, rtol=1e-6, atol=0.0, equal_nan=True)
                if self.works:
                    return
        self.works = False
