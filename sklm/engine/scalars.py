"""The Jacobian of a module whose parameters are all scalars, as those of a curve, in one backward pass.

Give every sample its own copy of each parameter: theta_j becomes a tensor with n equal numbers. The output of sample i
then depends on the i-th copies alone, so the gradient of the sum of all outputs holds every df_i / dtheta_j. This needs
a module that works element by element; one that does not say so itself (`is_elementwise`) is tried on the first use, by
comparing some rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[[Sequence[Tensor], Any], Tensor]


@dataclass(frozen=True)
class Copies:
    """Copies of every parameter, (n_samples,) or (n_samples, 1), and the outputs with their graph."""

    leaves: list[Tensor]
    outputs: Tensor

    @property
    def n_bytes(self) -> int:
        """What they and the graph take, about: a function has a few intermediate results per parameter."""
        return 4 * len(self.leaves) * self.outputs.nbytes


class ScalarJacobian:
    """Derivatives of an element-wise module by copies of its scalar parameters.

    The methods take a function ``call(parameters, inputs)`` that evaluates the module with other tensors as its
    parameters.

    Attributes
    ----------
    works : bool or None
        None before the first use, unless the module says itself that it works so.
    """

    def __init__(self, *, is_elementwise: bool = False) -> None:
        self.works: bool | None = is_elementwise or None
        self._shape: tuple[int, ...] = (-1,)  # of a copy: (n,), or (n, 1) for a module that keeps the column of X

    def forward(self, call: Call, vector: Tensor, inputs: Any, n_samples: int) -> Copies | None:
        """Return the copies and the outputs with their graph; None where the module does not take copies."""
        shape = (n_samples, *self._shape[1:])
        leaves = [number.expand(shape).requires_grad_() for number in vector.detach().unbind()]
        try:
            with torch.enable_grad():
                outputs = call(leaves, inputs).to(vector.dtype)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        if outputs.shape[:1] != (n_samples,) or outputs.numel() != n_samples:
            return None
        return Copies(leaves, outputs)

    def rows(self, copies: Copies) -> Tensor:
        """Return J of shape (n_samples, n_params); uses up the graph of `copies`."""
        leaves, outputs = copies.leaves, copies.outputs
        if not outputs.requires_grad:
            return outputs.new_zeros(len(outputs), len(leaves))
        # given gradients for the outputs, and not their sum, torch would import sympy first, a third of a second
        with torch.enable_grad():
            total = outputs.sum()
        gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
        return torch.stack(gradients).reshape(len(leaves), len(outputs)).T

    def check(
        self, call: Call, vector: Tensor, inputs: Any, n_samples: int, is_right: Callable[[Tensor], bool]
    ) -> None:
        """Set `works` by what `is_right` says of the rows of at least two samples."""
        for shape in ((-1,), (-1, 1)):
            self._shape = shape
            copies = self.forward(call, vector, inputs, n_samples)
            self.works = copies is not None and is_right(self.rows(copies))
            if self.works:
                return
