"""Rows of the Jacobian of any module by `torch.func`, and its outputs where it draws random numbers.

Vector-Jacobian products are batched over samples with `torch.vmap`, and over the rows of a sample; where parameters are
fewer than rows, Jacobian-vector products are less work. What torch cannot do for a module, or does wrong, shows on the
first use: then samples or rows come one after another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sklm.engine.inputs import count_samples, map_tensors, take
from sklm.engine.memory import is_out_of_memory
from sklm.engine.modes import evaluating, quiet_forward_mode, seed_rng
from sklm.engine.trial import CHECKED_ROWS, Trial

if TYPE_CHECKING:
    from sklm.engine.jacobian import ModuleFunction


class FunctionalJacobian:
    """What `torch.func` can do for a module.

    Attributes
    ----------
    vmap_works : bool
        Whether samples can be batched.
    nests : bool or None
        Whether `vmap` also works over the rows of a sample; None before it was tried.
    forward_works : bool or None
        Whether the module has forward mode; None before it was wanted.
    was_forward : bool
        Whether the last rows came in forward mode.
    """

    def __init__(self) -> None:
        self.vmap_works = True
        self.nests: bool | None = None
        self.forward_works: bool | None = None
        self.was_forward = False

    @property
    def method(self) -> str:
        """How the last rows were computed: "forward", "functional" or "sample by sample"."""
        if self.was_forward:
            return "forward"
        return "functional" if self.vmap_works else "sample by sample"

    def outputs(self, function: ModuleFunction, vector: Tensor, inputs: Any, seed: int) -> Tensor:
        """Return the outputs, (n_samples, n_outputs), with the random numbers that `rows` draws for this seed."""

        def one(sample: Any) -> Tensor:
            return _one(function, vector, sample)

        return self._over_samples(function, one, inputs, seed=seed)

    def rows(
        self,
        function: ModuleFunction,
        vector: Tensor,
        indices: Tensor | None,
        inputs: Any,
        factor: Tensor,
        seed: int | None,
    ) -> Tensor:
        """Return factor @ J of some samples, (n_samples, k, n_selected); arguments as of `ModuleFunction.rows`."""
        n_selected = len(vector) if indices is None else len(indices)
        if seed is None and n_selected < factor.shape[1] and self.forward_works is not False:
            jacobian = self._forward_jacobian(function, vector, indices, inputs)
            if jacobian is not None and self.forward_works is None:
                self._try_forward(function, vector, indices, inputs, jacobian)
            self.was_forward = jacobian is not None and bool(self.forward_works)
            if jacobian is not None and self.was_forward:
                return factor @ jacobian
        self.was_forward = False
        if factor.shape[1] > 1 and self.nests is None:
            self._try_nested(function, vector, inputs, factor.shape[2], draws=seed is not None)
        return self._batched_rows(function, vector, indices, inputs, factor, seed, nests=bool(self.nests))

    def _try_nested(
        self, function: ModuleFunction, vector: Tensor, inputs: Any, n_outputs: int, *, draws: bool
    ) -> None:
        """See whether two rows per sample at once are right: for some operations torch batches only once."""
        with evaluating(function.module) if draws else nullcontext():  # what is drawn does not compare
            trial = Trial.near(function, vector, inputs, n_outputs, CHECKED_ROWS)
            other = replace(trial, factor=1 / trial.factor)
            both = torch.cat([trial.factor, other.factor], 1)
            rows = self._batched_rows(function, trial.vector, None, trial.inputs, both, None, nests=True).unbind(1)
            sizes = [part.abs().nan_to_num_(posinf=0.0) for part in rows]
            self.nests = all(map(Trial.confirms_some, (trial, other), rows, sizes))

    def _batched_rows(
        self,
        function: ModuleFunction,
        vector: Tensor,
        indices: Tensor | None,
        inputs: Any,
        factor: Tensor,
        seed: int | None,
        *,
        nests: bool,
    ) -> Tensor:
        """Return the rows by vector-Jacobian products, batched over samples, and with `nests` over their rows too."""
        selected = vector if indices is None else vector[indices]

        def insert(part: Tensor) -> Tensor:
            return part if indices is None else vector.index_copy(0, indices, part)

        def one(sample: Any, cotangents: Tensor) -> Tensor:
            pullback = torch.func.vjp(lambda part: _one(function, insert(part), sample), selected)[1]
            if len(cotangents) == 1 or not nests:
                return torch.stack([pullback(cotangent)[0] for cotangent in cotangents.unbind()])
            return torch.vmap(lambda cotangent: pullback(cotangent)[0])(cotangents)

        def alone(sample: Any, cotangents: Tensor) -> Tensor:
            return sample_rows(function, vector, indices, sample, cotangents)

        return self._over_samples(function, one, inputs, factor, seed=seed, fallback=alone)

    def _try_forward(
        self, function: ModuleFunction, vector: Tensor, indices: Tensor | None, inputs: Any, jacobian: Tensor
    ) -> None:
        """See whether J of the first samples is that of backward passes, times a random factor."""
        some = jacobian[:CHECKED_ROWS]
        generator = torch.Generator().manual_seed(0)
        factor = torch.rand(len(some), 1, some.shape[1], generator=generator, device="cpu").to(vector)
        trial = Trial(function, vector, inputs, factor)
        self.forward_works = trial.confirms_some((factor @ some)[:, 0], (factor @ some.abs())[:, 0], indices)

    def _forward_jacobian(
        self, function: ModuleFunction, vector: Tensor, indices: Tensor | None, inputs: Any
    ) -> Tensor | None:
        """Return J, (n_samples, n_outputs, n_selected), by a forward pass per parameter; None without forward mode."""

        def outputs(point: Tensor) -> Tensor:
            return function.outputs(point, inputs)

        places = range(len(vector)) if indices is None else indices.tolist()
        columns = []
        try:
            with quiet_forward_mode():
                for place in places:
                    direction = torch.zeros_like(vector)
                    direction[place] = 1
                    columns.append(torch.func.jvp(outputs, (vector,), (direction,))[1])
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.forward_works = False  # the module has run before
            return None
        return torch.stack(columns, 2)

    def _over_samples(
        self,
        function: ModuleFunction,
        one: Callable[..., Tensor],
        inputs: Any,
        *others: Tensor,
        seed: int | None,
        fallback: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        if self.vmap_works:
            if seed is not None:
                seed_rng(seed, function.device)
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    return torch.vmap(one, randomness="different")(inputs, *others)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self.vmap_works = False  # the module has run before, so it is vmap that cannot
        one = fallback or one
        if seed is not None:
            seed_rng(seed, function.device)
        n_samples = count_samples(inputs)
        return torch.stack([one(take(inputs, i), *(other[i] for other in others)) for i in range(n_samples)])


def sample_rows(
    function: ModuleFunction, vector: Tensor, indices: Tensor | None, sample: Any, cotangents: Tensor
) -> Tensor:
    """Return the rows of a sample, (k, n_selected), by a backward pass for each of its cotangents (k, n_outputs)."""
    with torch.enable_grad():
        leaf = vector.detach().requires_grad_()
        output = _one(function, leaf, sample)
        rows = [
            torch.autograd.grad(output, leaf, cotangent, retain_graph=True)[0] if output.requires_grad else None
            for cotangent in cotangents
        ]
    found = torch.stack([torch.zeros_like(vector) if row is None else row for row in rows])
    return found if indices is None else found[:, indices]


def _one(function: ModuleFunction, vector: Tensor, sample: Any) -> Tensor:
    """Return the outputs for one sample, shape (n_outputs,)."""
    return function.call(vector, map_tensors(lambda tensor: tensor[None], sample)).reshape(-1)
