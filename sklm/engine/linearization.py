"""A batch at a point: its least-squares problem, and how the loss changes from there.

The problem puts together residuals, factors of the loss and the Jacobian.

The rows A_i = sqrt(w_i/W) S_i J_i of all samples, in chunks; or the sums A'A and A'r without the rows (`gram`); or a
drawn row per sample, for the curvature "mc"; or no more than products with A and A', for conjugate gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sklm.engine.bounds import clip
from sklm.engine.inputs import spans, take
from sklm.engine.jacobian import ModuleFunction
from sklm.engine.losses import Loss
from sklm.engine.matrix_free import ConjugateGradients
from sklm.engine.solvers import Cholesky, Rows, SubProblem

CG_ROWS = 65_536  # samples per product


@dataclass(frozen=True)
class Batch:
    """Data of one step and what does not change within it."""

    inputs: Any
    targets: Any
    weights: Tensor  # w_i / W
    roots: Tensor  # of the weights
    total: float  # W
    n_rows: float  # that they stand for
    penalty: Tensor  # alpha / W for every parameter that is penalized
    seed: int | None
    chunk: int
    repeats: bool = False  # whether the next step is on the same data, so that what a trial computes is worth keeping

    @cached_property
    def is_penalized(self) -> bool:
        return bool(self.penalty.any())

    def point(self, criterion: Loss, theta: Tensor, outputs: Tensor) -> Point:
        """Return parameters and their outputs with the losses on these data."""
        values = criterion.value(outputs, self.targets)
        loss = self.weights @ values
        if self.is_penalized:
            loss = loss + self.penalty * theta @ theta / 2  # no 0 times infinity
        return Point(theta, outputs, values, float(loss))


@dataclass(frozen=True)
class Point:
    """Parameters with their outputs and losses: the penalty and `values` add up to `loss`."""

    theta: Tensor
    outputs: Tensor
    values: Tensor
    loss: float


@dataclass(frozen=True)
class Linearization:
    """A batch at a point.

    Parameters
    ----------
    function, criterion
    batch : Batch
    point : Point
    indices : Tensor of shape (n_selected,) or None
        Positions of the parameters that move; None for all.
    seed : int
        Of what is drawn here; however often it is asked for, it is the same.
    """

    function: ModuleFunction
    criterion: Loss
    batch: Batch
    point: Point
    indices: Tensor | None
    seed: int

    @property
    def theta(self) -> Tensor:
        return self.selected(self.point.theta)

    @property
    def penalty(self) -> Tensor:
        return self.selected(self.batch.penalty)

    def selected(self, vector: Tensor) -> Tensor:
        return vector if self.indices is None else vector[self.indices]

    def scattered(self, vector: Tensor) -> Tensor:
        """Return a vector of the parameters that move among zeros for the others."""
        return (
            vector if self.indices is None else torch.zeros_like(self.point.theta).index_copy(0, self.indices, vector)
        )

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper bounds of the parameters that move."""
        box = self.function.box
        return None if box is None else box.select(self.indices, self.theta)

    def clipped(self, theta: Tensor) -> Tensor:
        """Return parameters within the box of the module, where it has one."""
        box = self.function.box
        return theta if box is None else clip(theta, *box.select(None, theta))

    def trial(self, step: Tensor) -> Point:
        """Return the point at a step of the parameters that move."""
        theta, batch = self.point.theta, self.batch
        theta = self.clipped(theta + step if self.indices is None else theta.index_add(0, self.indices, step))
        outputs = self.function.outputs(theta, batch.inputs, seed=batch.seed, chunk=batch.chunk, keep=batch.repeats)
        return batch.point(self.criterion, theta, outputs)

    def reduction(self, trial: Point) -> float:
        """Return how much lower the loss is at a trial, added up from differences."""
        batch, point = self.batch, self.point
        reduction = batch.weights @ (point.values - trial.values)
        if batch.is_penalized:
            reduction = reduction + batch.penalty * (point.theta - trial.theta) @ (point.theta + trial.theta) / 2
        return float(reduction)

    @property
    def is_sampled(self) -> bool:
        return self.criterion.curvature == "mc"

    @property
    def rows_per_sample(self) -> int:
        """Rows that are computed for a sample: with a sampled curvature, one more for the gradient."""
        return 2 if self.is_sampled else self._first[1][0].shape[1]

    @property
    def n_rows(self) -> int:
        return len(self.point.outputs) * (1 if self.is_sampled else self.rows_per_sample)

    @cached_property
    def _first(self) -> tuple[slice, tuple[Tensor, Tensor]]:
        """Residuals and factors of all samples where they are one chunk, else of one sample, and of which they are."""
        n_samples = len(self.point.outputs)
        span = slice(0, n_samples if n_samples <= self.batch.chunk else 1)
        return span, self._residuals(span)

    def residuals(self, span: slice) -> tuple[Tensor, Tensor]:
        """Return weighted residuals (samples, k) and factors (samples, k, n_outputs) of a slice of the samples."""
        first, known = self._first
        return known if span == first else self._residuals(span)

    def _residuals(self, span: slice) -> tuple[Tensor, Tensor]:
        residual, factor = self.criterion.linearize(self.point.outputs[span], take(self.batch.targets, span))
        root = self.batch.roots[span]
        return residual * root[:, None], factor * root[:, None, None]

    def problem(self, solver: Callable[[Rows, Tensor, Tensor], SubProblem], chunk: int) -> SubProblem:
        """Return the sub-problem for a solver, from `chunk` samples at once."""
        if self.is_sampled:
            return self._sampled(solver, chunk)
        batch, n_rows = self.batch, self.rows_per_sample
        if solver is Cholesky and n_rows > 1 and self.indices is None and batch.seed is None:
            theta, inputs = self.point.theta, batch.inputs
            sums = self.function.gram(theta, inputs, self.residuals, rows_per_sample=n_rows, chunk=chunk)
            if sums is not None:
                return Cholesky.from_sums(*sums, self.penalty, self.theta)
        return solver(self._rows(chunk), self.penalty, self.theta)

    def _rows(self, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
        residual = self.theta

        def factor(span: slice) -> Tensor:
            nonlocal residual
            residual, found = self.residuals(span)
            return found

        for block in self._blocks(factor, chunk):
            yield block.flatten(0, 1), residual.flatten()

    def _blocks(self, factor: Callable[[slice], Tensor], chunk: int) -> Iterator[Tensor]:
        batch = self.batch
        return self.function.rows(self.point.theta, self.indices, batch.inputs, factor, seed=batch.seed, chunk=chunk)

    def _sampled(self, solver: Callable[[Rows, Tensor, Tensor], SubProblem], chunk: int) -> SubProblem:
        """Return the sub-problem of curvature "mc": a drawn row per sample, and beside it one for the gradient."""
        generator = torch.Generator().manual_seed(self.seed)
        uniform = torch.rand(len(self.point.outputs), dtype=torch.float64, generator=generator, device="cpu")
        uniform = uniform.to(self.theta)
        root = self.batch.roots
        gradient, square = torch.zeros_like(self.theta), 0.0
        residual = share = root

        def factor(span: slice) -> Tensor:
            nonlocal residual, share
            share = root[span]
            outputs, targets = self.point.outputs[span], take(self.batch.targets, span)
            residual = share[:, None] * self.criterion.linearize(outputs, targets)[0]
            drawn = self.criterion.sampled(outputs, targets, uniform[span])
            return share[:, None, None] * torch.cat([drawn, self.criterion.gradient(outputs, targets)[:, None]], 1)

        def rows() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal gradient, square
            for block in self._blocks(factor, chunk):
                gradient = gradient + share @ block[:, 1]
                square += float(residual.square().sum())
                yield block[:, 0], torch.zeros_like(share)

        problem = solver(rows(), self.penalty, self.theta)
        problem.add_gradient(gradient, math.sqrt(square))
        return problem

    def matrix_free(self, first_gradient: float) -> ConjugateGradients:
        """Return the sub-problem with products instead of rows.

        Parameters
        ----------
        first_gradient : float
            Norm of the gradient in the first step, for the forcing term; 0 in the first step.
        """
        if self.batch.seed is not None:
            raise ValueError(
                "`solver='cg'` needs a module that draws no random numbers, as dropout does; pass another solver."
            )

        def product(vector: Tensor) -> Tensor:
            full = self.scattered(vector)

            def curved(inputs: Any, _: Tensor, factor: Tensor) -> Tensor:
                pushed = self.function.pushforward(self.point.theta, full, inputs)
                return (factor.mT @ (factor @ pushed[:, :, None]))[:, :, 0]

            return self._pulled(curved)

        gradient = self._pulled(lambda _, residual, factor: (factor.mT @ residual[:, :, None])[:, :, 0])
        size = float(torch.linalg.vector_norm(gradient + self.penalty * self.theta))
        forcing = min(0.1, math.sqrt(size / (first_gradient or size))) if size else 0.1
        generator = torch.Generator().manual_seed(self.seed)
        square = sum(float(self.residuals(span)[0].square().sum()) for span in self._cg_spans())
        return ConjugateGradients(
            product, gradient, square, self.penalty, self.theta, forcing=forcing, generator=generator
        )

    def _cg_spans(self) -> Iterator[slice]:
        return spans(len(self.point.outputs), CG_ROWS)

    def _pulled(self, of: Callable[[Any, Tensor, Tensor], Tensor]) -> Tensor:
        """Return the sum over the spans of J' of what `of` makes of inputs, residual and factor."""
        total = torch.zeros_like(self.point.theta)
        for span in self._cg_spans():
            inputs = take(self.batch.inputs, span)
            total += self.function.pullback(self.point.theta, of(inputs, *self.residuals(span)), inputs)
        return self.selected(total)
