"""The Jacobian of a module whose parameters are all scalars, as those of a curve, in one backward pass.

Give every sample its own copy of each parameter: theta_j becomes a tensor with n equal numbers. The output of sample i
then depends on the i-th copies alone, so the gradient of the sum of all outputs holds every df_i / dtheta_j. This needs
a module that works element by element; whether it does is seen on the first use, by comparing some rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHECKED_ROWS = 4

Call = Callable[[Sequence[Tensor], Any], Tensor]


@dataclass(frozen=True)
class Copies:
    """Copies of the parameters, (n_params, n_samples) or (n_params, n_samples, 1), and the outputs with their graph."""

    leaf: Tensor
    outputs: Tensor

    @property
    def n_bytes(self) -> int:
        """What they and the graph take, about: a function has a few intermediate results per parameter."""
        return 4 * self.leaf.nbytes


class ScalarJacobian:
    """Derivatives of an element-wise module by copies of its scalar parameters.

    The methods take a function ``call(parameters, inputs)`` that evaluates the module with other tensors as its
    parameters.

    Attributes
    ----------
    works : bool or None
        None before the first use.
    """

    def __init__(self) -> None:
        self.works: bool | None = None
        self._shape: tuple[int, ...] = (-1,)  # of a copy: (n,), or (n, 1) for a module that keeps the column of X

    def forward(self, call: Call, vector: Tensor, inputs: Any, n_samples: int) -> Copies | None:
        """Return the copies and the outputs with their graph; None where the module does not take copies."""
        shape = (n_samples, *self._shape[1:])
        leaf = vector.detach().reshape(-1, *(1 for _ in shape)).expand(-1, *shape).clone().requires_grad_()
        try:
            with torch.enable_grad():
                outputs = call(leaf.unbind(), inputs).to(vector.dtype)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        if outputs.shape[:1] != (n_samples,) or outputs.numel() != n_samples:
            return None
        return Copies(leaf, outputs)

    def rows(self, copies: Copies) -> Tensor:
        """Return J of shape (n_samples, n_params); uses up the graph of `copies`."""
        leaf, outputs = copies.leaf, copies.outputs
        if not outputs.requires_grad:
            return leaf.new_zeros(len(outputs), len(leaf))
        (gradient,) = torch.autograd.grad(outputs, leaf, torch.ones_like(outputs))
        return gradient.reshape(len(leaf), len(outputs)).T

    def second(self, call: Call, vector: Tensor, direction: Tensor, inputs: Any, n_samples: int) -> Tensor | None:
        """Return the second derivative of the outputs along `direction`, shape (n_samples, 1)."""
        copies = self.forward(call, vector, inputs, n_samples)
        if copies is None:
            return None
        zero = vector.new_zeros(n_samples, 1)
        if not copies.outputs.requires_grad:
            return zero
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(copies.outputs.sum(), copies.leaf, create_graph=True)
            along = direction @ gradient.reshape(len(vector), n_samples)
            if not along.requires_grad:
                return zero
            (second,) = torch.autograd.grad(along.sum(), copies.leaf)
        return (direction @ second.reshape(len(vector), n_samples))[:, None]

    def check(self, call: Call, vector: Tensor, inputs: Any, n_samples: int, expected: Tensor) -> None:
        """Set `works` by comparing rows for all samples with the `expected` first ones."""
        for shape in ((-1,), (-1, 1)):
            self._shape = shape
            copies = self.forward(call, vector, inputs, n_samples)
            if copies is not None:
                found = self.rows(copies)
                self.works = torch.allclose(found[: len(expected)], expected, rtol=1e-6, atol=0.0, equal_nan=True)
                if self.works:
                    return
        self.works = False
