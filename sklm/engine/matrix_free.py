r"""The damped sub-problem without its matrix, for modules of many parameters: memory O(p).

H v = sum_i (w_i / W) J_i' C_i J_i v + a v needs one product with J (forward mode) and one with J' (reverse mode) over
the data, in chunks. Conjugate gradients, preconditioned by the diagonal, solve (H + lambda D) d = -g, truncated once
the residual is below eta |g|. With the forcing term eta = min(0.1, sqrt(|g| / |g_0|)) of the gradient over that of the
first step, early steps are cheap and the last ones exact enough for fast convergence (Dembo and Steihaug 1983,
"Truncated-Newton algorithms for large-scale unconstrained optimization"). Started at 0, every iterate d satisfies
d'(H + lambda D) d = -g'd, so the predicted reduction holds for truncated steps too.

The diagonal of H is estimated: diag(H) = E[z * H z] for random signs z (Bekas, Kokiopoulou and Saad 2007).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from sklm.engine.solvers import SubProblem

MAX_ITERATIONS = 200
N_PROBES = 4
EXACT = 1e-8  # relative residual where a solution must be accurate
FLOOR = 1e-4  # of the mean of the estimated diagonal: below, it is noise

Product = Callable[[Tensor], Tensor]


class ConjugateGradients(SubProblem):
    """Matrix-free solver; see the module text.

    Parameters
    ----------
    product : callable
        v to H v without the penalty, both of shape (p,).
    gradient : Tensor of shape (p,)
        A'r, without the penalty.
    square : float
        |r|^2.
    penalty, theta : Tensor of shape (p,)
    forcing : float
        Relative residual at which a solution is good enough.
    generator : torch.Generator
        For the probes of the diagonal.
    """

    def __init__(
        self,
        product: Product,
        gradient: Tensor,
        square: float,
        penalty: Tensor,
        theta: Tensor,
        *,
        forcing: float,
        generator: torch.Generator,
    ) -> None:
        self._multiply: Product = lambda vector: product(vector) + penalty * vector
        self.gradient = gradient + penalty * theta
        self.residual_norm = math.sqrt(square + float((penalty * theta * theta).sum()))
        self.forcing = forcing
        estimate = torch.zeros_like(theta)
        for _ in range(N_PROBES):
            signs = (torch.randint(2, (len(theta),), generator=generator, device="cpu") * 2 - 1).to(theta)
            estimate += signs * self._multiply(signs) / N_PROBES
        self.diagonal = estimate.clamp_min(FLOOR * float(estimate.clamp_min(0).mean()))

    def factorize(self, damping: Tensor) -> bool:
        self._damping = damping
        return bool(torch.isfinite(self.gradient).all())

    def _solve(self) -> Tensor:
        return self._conjugate_gradients(-self.gradient, self.forcing)

    def apply_inverse(self, vector: Tensor) -> Tensor:
        return self._conjugate_gradients(vector, EXACT)

    def _conjugate_gradients(self, right: Tensor, tolerance: float) -> Tensor:
        solution, residual = torch.zeros_like(right), right.clone()
        inverse = 1 / (self.diagonal + self._damping)
        goal = tolerance * float(torch.linalg.vector_norm(right))
        search = inverse * residual
        size = residual @ search
        for _ in range(MAX_ITERATIONS):
            if float(torch.linalg.vector_norm(residual)) <= goal:
                break
            image = self._multiply(search) + self._damping * search
            curvature = search @ image
            if not float(curvature) > 0:
                break
            length = size / curvature
            solution = solution + length * search
            residual = residual - length * image
            following = inverse * residual
            new_size = residual @ following
            search = following + new_size / size * search
            size = new_size
        return solution

    def quadratic(self, direction: Tensor) -> Tensor:
        return (direction @ self._multiply(direction)).clamp_min(0)

    def restrict(self, free: Tensor, step: Tensor) -> ConjugateGradients:
        part = copy.copy(self)
        moved = torch.where(free, 0.0, step)
        shifted = self.gradient + self._multiply(moved)
        square = self.residual_norm**2 + float(moved @ (self.gradient + shifted))
        part.residual_norm = math.sqrt(max(square, 0.0))
        part.gradient, part.diagonal = shifted[free], self.diagonal[free]

        def product(vector: Tensor) -> Tensor:
            return self._multiply(torch.zeros_like(step).masked_scatter(free, vector))[free]

        part._multiply = product
        return part
