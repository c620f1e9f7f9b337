"""The Jacobian of a module whose parameters are all scalars, as those of a curve, in one backward pass.

Give every sample its own copy of each parameter: theta_j becomes a tensor with n equal numbers. The output of sample i
then depends on the i-th copies alone, so the gradient of the sum of all outputs holds every df_i / dtheta_j. This needs
a module that works element by element; one that does not say so itself (`is_elementwise`) is tried on the first use, by
comparing some rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sklm.engine.bounds import clip
from sklm.engine.inputs import flat_output, take

if TYPE_CHECKING:
    from sklm.engine.jacobian import ModuleFunction

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


def with_differences(
    jacobian: Tensor, function: ModuleFunction, vector: Tensor, inputs: Any, outputs: Tensor
) -> Tensor:
    """Return the Jacobian with central differences where autograd has nothing finite, but the module has.

    Autograd multiplies a derivative of 0 by an infinite one, for instance of ``sqrt(a * x)`` in a at x = 0, or of
    the side that ``torch.where`` does not take. A difference to one side stands in where the other has no value.
    """
    missing = ~torch.isfinite(jacobian)
    rows = (missing.any(1) & torch.isfinite(outputs)).nonzero()[:, 0]
    some, here = take(inputs, rows), outputs[rows]
    found = jacobian.clone()
    for j, value in enumerate(vector.tolist()):
        if not bool(missing[rows, j].any()):
            continue
        ends = vector.repeat(2, 1)
        ends[:, j] += (
            torch.tensor([1.0, -1.0]).to(vector) * torch.finfo(vector.dtype).eps ** (1 / 3) * (abs(value) or 1.0)
        )
        if function.box is not None:
            ends = torch.stack([clip(end, *function.box.select(None, end)) for end in ends])
        slope = torch.zeros_like(here)
        if ends[0, j] != ends[1, j]:  # not held
            above, below = (flat_output(function.call(end, some), len(rows))[:, 0] for end in ends)
            slope = (above - below) / (ends[0, j] - ends[1, j])
            slope = torch.where(torch.isfinite(slope), slope, (above - here) / (ends[0, j] - vector[j]))
            slope = torch.where(torch.isfinite(slope), slope, (here - below) / (vector[j] - ends[1, j]))
        found[rows, j] = torch.where(missing[rows, j], slope, jacobian[rows, j])
    return found
