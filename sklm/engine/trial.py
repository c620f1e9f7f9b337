"""What is tried on a module before it is differentiated: faster ways to its rows, and whether parameters are replaced.

A faster way that fits by accident would end in wrong parameters, so nothing about a `Trial` is special: the parameters
are not quite those of the start, where a layer may be zero, the samples come in random order, and each has a factor of
its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sklm.engine.bounds import clip
from sklm.engine.inputs import (
    check_output,
    count_samples,
    flat_output,
    map_tensors,
    split_arguments,
    take,
    tensors,
    version,
)
from sklm.engine.memory import is_out_of_memory
from sklm.engine.modes import preserved_rng

if TYPE_CHECKING:
    from sklm.engine.jacobian import ModuleFunction

CHECKED_ROWS = 3  # that a faster way to rows must get right one by one
NEARBY = 0.1  # of the parameters: how far from them a way to rows is tried
REACH_ROWS = 64  # at most
REACH = 0.01  # relative difference of derivatives that rounding does not make


@dataclass(frozen=True)
class Trial:
    """A point, samples and their factors (n_samples, 1, n_outputs), to try a way to rows on."""

    function: ModuleFunction
    vector: Tensor
    inputs: Any
    factor: Tensor

    @classmethod
    def near(cls, function: ModuleFunction, vector: Tensor, inputs: Any, n_outputs: int, chunk: int) -> Trial:
        """Return a trial near `vector` on at most `chunk` samples; at `vector` for scalar parameters."""
        generator = torch.Generator().manual_seed(0)
        n_samples = min(chunk, count_samples(inputs))
        part = take(inputs, torch.randperm(n_samples, generator=generator, device="cpu").numpy())
        factor = (torch.rand(n_samples, 1, n_outputs, generator=generator, device="cpu") + 0.5).to(vector)
        point = vector
        if not function.all_scalar:
            size = vector.abs()
            noise = torch.randn(len(vector), generator=generator, device="cpu").to(vector)
            near = vector + NEARBY * noise * (size + size.mean().clamp(NEARBY, 1.0))
            if function.box is not None:
                near = clip(near, *function.box.select(None, near))
            if _has_value(function, near, part):
                point = near
        return cls(function, point, part, factor)

    def confirms(self, rows: Tensor) -> bool:
        """Return whether rows of all samples, (n_samples, n_params), add up to those of autograd, and some are these.

        Every column has a tolerance of its own, as parameters have units, beside the rounding of the largest.
        """
        leaf = self.vector.detach().requires_grad_()
        with torch.enable_grad():
            outputs = flat_output(self.function.call(leaf, self.inputs), len(rows))
        (total,) = _slopes(outputs, [leaf], self.factor[:, 0])
        sizes = rows.abs().nan_to_num_(posinf=0.0)
        bound = _tolerance(rows) * sizes.sum(0) + len(rows) * _rounding(sizes)
        return self.confirms_some(rows, sizes.amax(0)) and _same_within(rows.sum(0), total, bound)

    def confirms_some(self, rows: Tensor, sizes: Tensor, indices: Tensor | None = None) -> bool:
        """Return whether the first rows, (n_samples, n_selected), are those of backward passes for each alone.

        Their sizes, of shape (n_selected,) or with a row for each, scale the tolerance.
        """
        few = slice(0, CHECKED_ROWS)
        alone = self.function.rows_alone(self.vector, take(self.inputs, few), self.factor[few])[:, 0]
        alone = alone if indices is None else alone[:, indices]
        return _same_within(rows[few], alone, _tolerance(rows) * sizes + _rounding(sizes))


def _has_value(function: ModuleFunction, vector: Tensor, inputs: Any) -> bool:
    try:
        return bool(torch.isfinite(function.call(vector, inputs)).all())
    except (RuntimeError, ValueError) as error:  # of a module that takes some parameters only
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return False


def _tolerance(rows: Tensor) -> float:
    """Return the relative difference of rows that rounding may make; convolutions on a GPU may use TF32."""
    return 0.01 if rows.is_cuda and rows.dtype == torch.float32 else float(torch.finfo(rows.dtype).eps ** 0.5)


def _rounding(sizes: Tensor) -> Tensor:
    """Return a bound on the rounding of numbers beside the largest of these."""
    return 10 * torch.finfo(sizes.dtype).eps * sizes.max()


def check_reach(function: ModuleFunction, inputs: Any) -> None:
    """Raise where the module does not take its parameters from the attributes that hold them, on some samples."""
    n_samples, n_rows = count_samples(inputs), REACH_ROWS
    is_done = not n_samples or getattr(function.module, "is_elementwise", False)
    while not is_done:
        try:
            _check_reach(function, map_tensors(torch.clone, take(inputs, slice(None, None, -(-n_samples // n_rows)))))
            is_done = True
        except RuntimeError as error:
            if not is_out_of_memory(error) or n_rows == 1:
                raise
            n_rows //= 2


def _check_reach(function: ModuleFunction, part: Any) -> None:
    module, parameters = function.module, function.parameters
    arguments, keywords = split_arguments(part)
    versions = [version(tensor) for tensor in tensors(part)]
    copies = [p.detach().clone().requires_grad_(p.requires_grad) for p in parameters.values()]
    with torch.enable_grad():
        with preserved_rng(function.device):
            of_module = check_output(module(*arguments, **keywords))
        if [version(tensor) for tensor in tensors(part)] != versions:
            raise ValueError(
                "`module` changes its inputs in place, and with them the data; make its first layer one without "
                "inplace=True, or let `forward` begin with a copy."
            )
        with preserved_rng(function.device):
            of_copies = function.call_with(copies, part)
    weights = torch.arange(1.0, 1 + of_module.numel(), device=of_module.device).to(of_module.dtype).view_as(of_module)
    moving = {name: p for name, p in parameters.items() if p.requires_grad and p.numel()}
    slopes = _slopes(of_module, list(moving.values()), weights)
    others = _slopes(of_copies, [copy for copy in copies if copy.requires_grad and copy.numel()], weights)
    for name, one, other in zip(moving, slopes, others, strict=True):
        if not _same_within(one, other, REACH * one.abs().nan_to_num(posinf=0.0).max()):
            raise ValueError(
                f"`module` takes its parameter {name} from elsewhere than from the attribute of this name, as from a "
                "list, a tuple or a dict; keep it in nn.ParameterList or nn.ParameterDict, or use the attribute."
            )


def _slopes(outputs: Tensor, parameters: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Return the derivatives of the weighted sum of the outputs in the parameters."""
    if not outputs.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    return list(torch.autograd.grad(outputs, parameters, weights, materialize_grads=True, allow_unused=True))


def _same_within(one: Tensor, other: Tensor, tolerance: Tensor) -> bool:
    """Return whether two tensors differ by no more than the tolerance, nan equal to nan."""
    return bool((((one - other).abs() <= tolerance) | (one == other) | (one.isnan() & other.isnan())).all())
