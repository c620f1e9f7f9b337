r"""The damped sub-problem: prepared once per step, solved for many damping values.

With the rows A (m x p) and residuals r (m) of the weighted problem and the penalty a = alpha / W on some parameters, a
step is

    d = argmin |A d + r|^2 + sum_j a_j (theta_j + d_j)^2 + lambda sum_j D_jj d_j^2

| solver | prepared once | for every lambda | right when |
|---|---|---|---|
| `Cholesky` | H = A'A + diag(a), g = A'r + a theta, chunk by chunk | factor H + lambda D | m >= p |
| `DualCholesky` | all rows of A | factor I + A E^-1 A', E = diag(a) + lambda D (Woodbury) | m < p |
| `QR` | R and Q'r of [A; sqrt(a)], chunk by chunk | QR of [R; sqrt(lambda D)] | few parameters, accuracy counts |
| `SVD` | the same R, then singular values of R D^-1/2 | a sum over singular values | rank-deficient problems |

QR and SVD never square the condition number (Bjorck 1996, "Numerical methods for least squares problems", section 2.4);
the QR form is MINPACK's (More 1978, section 3). `reduce_rows` folds chunks into one triangle, so a tall A is never held
as a whole. A factorization that fails returns None, which counts as a rejected attempt.
"""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

QR_MAX_PARAMS = 32  # up to here a QR of the rows costs little more than their Gram matrix
QR_MAX_CURVE_PARAMS = 256
JITTER = 1e-9
INVERSE_BLOCK = 128  # columns
QR_BLOCK = 4096  # rows
GRAM_BLOCKS = 8  # rows of blocks of which only those on and above the diagonal are computed, each of
MIN_GRAM_BLOCK, MAX_GRAM_BLOCK = 32, 256  # columns
ONE_BLOCK = 96  # columns up to which one product of all is as fast
CUDA_BLOCK = 512  # columns at least, as every launch costs

Rows = Iterable[tuple[Tensor, Tensor]]


class Inverse(NamedTuple):
    """What is asked of H^-1: its diagonal (p,), and of the rest log det(H) and g'H^-1 g."""

    diagonal: Tensor
    log_determinant: float
    decrement: float


class SubProblem(abc.ABC):
    """One step's least-squares problem.

    Attributes
    ----------
    diagonal : Tensor of shape (p,)
        Diagonal of H, the penalty included.
    gradient : Tensor of shape (p,)
        A'r + a theta.
    residual_norm : float
        Norm of (r, sqrt(a) theta).
    """

    diagonal: Tensor
    gradient: Tensor
    residual_norm: float
    _adds: bool = False  # whether the gradient is not that of the rows

    def add_gradient(self, gradient: Tensor, residual_norm: float) -> None:
        """Add to A'r + a theta a gradient that the rows do not have, as that of a sampled curvature; and to |r|."""
        self._adds = True
        self.gradient = self.gradient + gradient
        self.residual_norm = math.hypot(self.residual_norm, residual_norm)

    def solve(self, damping: Tensor) -> Tensor | None:
        """Return d for the damping diagonal lambda D (shape (p,), positive), or None when the factorization fails."""
        if not self.factorize(damping):
            return None
        return self.apply_inverse(-self.gradient) if self._adds else self._solve()

    @abc.abstractmethod
    def factorize(self, damping: Tensor) -> bool:
        """Factor H + lambda D; return whether that worked."""

    @abc.abstractmethod
    def _solve(self) -> Tensor:
        """Return d from the factors."""

    @abc.abstractmethod
    def apply_inverse(self, vector: Tensor) -> Tensor:
        """Return (H + lambda D)^-1 vector from the factors of the last `factorize`."""

    @abc.abstractmethod
    def restrict(self, free: Tensor, step: Tensor) -> SubProblem:
        """Return the problem in the parameters `free` (boolean, shape (p,)) once the others make their part of `step`.

        Its rows are those columns of A, its residual is r + A step over the others.
        """

    @abc.abstractmethod
    def quadratic(self, direction: Tensor) -> Tensor:
        """Return d'Hd >= 0 as a sum of squares where the form has one."""

    def inverse(self, added: Tensor | float = 0.0) -> Inverse | None:
        """Return what H^-1 says, with `added` on the diagonal of H; None where it is not formed.

        Where H vanishes it counts as `JITTER` of its largest entry, or ten times the rounding of that.
        """
        return None


class Cholesky(SubProblem):
    """Normal equations, accumulated in chunks; see the module text."""

    def __init__(self, rows: Rows, penalty: Tensor, theta: Tensor) -> None:
        self.curvature = theta.new_zeros(len(theta), len(theta))
        self.gradient = penalty * theta
        square = (self.gradient * theta).sum()
        for matrix, residual in rows:
            add_gram(self.curvature, matrix)
            self.gradient = self.gradient + matrix.T @ residual
            square = square + residual.square().sum()
        mirror(self.curvature)
        self.diagonal = self.curvature.diagonal()
        self.diagonal.add_(penalty)
        self.residual_norm = float(square.sqrt())
        self._factor: Tensor | None = None

    @classmethod
    def from_sums(cls, gram: Tensor, gradient: Tensor, square: float, penalty: Tensor, theta: Tensor) -> Cholesky:
        """Return the problem from A'A, A'r and |r|^2; `gram` becomes its own."""
        problem = cls([], penalty, theta)
        problem.curvature = gram
        problem.diagonal = gram.diagonal()
        problem.diagonal.add_(penalty)
        problem.gradient = problem.gradient + gradient
        problem.residual_norm = math.hypot(problem.residual_norm, math.sqrt(square))
        return problem

    def factorize(self, damping: Tensor) -> bool:
        if self._factor is None:
            self._factor = torch.empty_like(self.curvature).T  # LAPACK's order of storage: factored in place
        self._factor.copy_(self.curvature)
        self._factor.diagonal().add_(damping)
        info = torch.empty((), dtype=torch.int32, device=damping.device)
        torch.linalg.cholesky_ex(self._factor, out=(self._factor, info))
        return not int(info)

    def _solve(self) -> Tensor:
        return self.apply_inverse(-self.gradient)

    def apply_inverse(self, vector: Tensor) -> Tensor:
        factor: Any = self._factor
        return torch.cholesky_solve(vector[:, None], factor)[:, 0]

    def restrict(self, free: Tensor, step: Tensor) -> Cholesky:
        part = copy.copy(self)
        part._factor = None
        moved = torch.where(free, 0.0, step)
        gradient = self.gradient + self.curvature @ moved
        part.residual_norm = _moved_norm(self, gradient, moved)
        part.curvature = self.curvature[free][:, free]
        part.diagonal, part.gradient = part.curvature.diagonal(), gradient[free]
        return part

    def quadratic(self, direction: Tensor) -> Tensor:
        return (direction @ (self.curvature @ direction)).clamp_min(0)

    def inverse(self, added: Tensor | float = 0.0) -> Inverse | None:
        return inverse_of(self.curvature, self.gradient, added)


def inverse_of(curvature: Tensor, gradient: Tensor, added: Tensor | float = 0.0) -> Inverse | None:
    """Return `SubProblem.inverse` for H and g themselves."""
    given, jitter = curvature, _jitter(curvature.diagonal())
    curvature = _precise(given).clone()
    curvature.diagonal().add_(torch.as_tensor(added).to(curvature))
    factor, info = torch.linalg.cholesky_ex(curvature)
    if int(info) or bool(factor.diagonal().square().min() < jitter):  # rounding of a zero may be positive as well
        factor, info = torch.linalg.cholesky_ex(curvature + torch.diag(jitter.expand(len(curvature))))
    if int(info):
        return None
    diagonal = torch.empty_like(curvature[0])
    for start in range(0, len(factor), INVERSE_BLOCK):  # the inverse of the factor, without the zeros above
        below = factor[start:, start:]
        n_columns = min(INVERSE_BLOCK, len(below))
        unit = torch.eye(len(below), n_columns, dtype=factor.dtype, device=factor.device)
        columns = torch.linalg.solve_triangular(below, unit, upper=False)
        diagonal[start : start + n_columns] = columns.square().sum(0)
    half = torch.linalg.solve_triangular(factor, _precise(gradient)[:, None], upper=False)
    return Inverse(diagonal.to(given), float(2 * factor.diagonal().log().sum()), float(half.square().sum()))


def _precise(tensor: Tensor) -> Tensor:
    """Return it in float64: its rounding errors stay, but none are added."""
    return tensor.to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64)


def _jitter(diagonal: Tensor) -> Tensor:
    """Return what a vanishing curvature counts as."""
    return max(JITTER, 10 * torch.finfo(diagonal.dtype).eps) * _precise(diagonal).max()


def _block_rows(gram: Tensor) -> list[tuple[int, int]]:
    """Return where the rows of blocks begin and end; one for all columns when more would not pay."""
    n_params = len(gram)
    if gram.is_cuda:
        block = max(CUDA_BLOCK, n_params // GRAM_BLOCKS)
    elif n_params > ONE_BLOCK:
        block = max(MIN_GRAM_BLOCK, min(MAX_GRAM_BLOCK, n_params // GRAM_BLOCKS))
    else:
        block = n_params
    return [(start, min(start + block, n_params)) for start in range(0, n_params, block)]


def mirror(gram: Tensor) -> None:
    """Copy the upper triangle that `add_gram` has made to the lower one, in place."""
    blocks = _block_rows(gram)
    if len(blocks) == 1:
        return
    for start, stop in blocks:
        own = gram[start:stop, start:stop]
        own.copy_(own.triu() + own.triu(1).T)
        gram[stop:, start:stop] = gram[start:stop, stop:].T


def add_gram(gram: Tensor, matrix: Tensor) -> None:
    """Add matrix' matrix to the upper triangle of `gram`, block row by block row; what is below is not defined."""
    for start, stop in _block_rows(gram):
        gram[start:stop, start:].addmm_(matrix[:, start:stop].T, matrix[:, start:])


class DualCholesky(SubProblem):
    """Woodbury form with an m x m matrix; see the module text."""

    def __init__(self, rows: Rows, penalty: Tensor, theta: Tensor) -> None:
        self.matrix, self.residual = _stack(rows, theta)
        self.penalty = penalty
        self.pull = penalty * theta
        self.diagonal = self.matrix.square().sum(0) + penalty
        self.gradient = self.matrix.T @ self.residual + self.pull
        self.residual_norm = float((self.residual.square().sum() + (self.pull * theta).sum()).sqrt())

    def factorize(self, damping: Tensor) -> bool:
        self._inverse = 1 / (self.penalty + damping)
        self._scaled = self.matrix * self._inverse
        kernel = self._scaled @ self.matrix.T
        kernel.diagonal().add_(1)
        self._factor, info = torch.linalg.cholesky_ex(kernel)
        return not int(info)

    def _solve(self) -> Tensor:
        dual = torch.cholesky_solve((self.residual - self._scaled @ self.pull)[:, None], self._factor)[:, 0]
        return -self._inverse * self.pull - self._scaled.T @ dual

    def apply_inverse(self, vector: Tensor) -> Tensor:
        dual = torch.cholesky_solve((self._scaled @ vector)[:, None], self._factor)[:, 0]
        return self._inverse * vector - self._scaled.T @ dual

    def restrict(self, free: Tensor, step: Tensor) -> DualCholesky:
        part = copy.copy(self)
        moved = torch.where(free, 0.0, step)
        gradient = self.gradient + self.matrix.T @ (self.matrix @ moved) + self.penalty * moved
        part.residual_norm = _moved_norm(self, gradient, moved)
        part.residual = self.residual + self.matrix @ moved
        part.matrix, part.penalty, part.pull = self.matrix[:, free], self.penalty[free], self.pull[free]
        part.diagonal, part.gradient = self.diagonal[free], gradient[free]
        return part

    def quadratic(self, direction: Tensor) -> Tensor:
        return (self.matrix @ direction).square().sum() + (self.penalty * direction.square()).sum()

    def inverse(self, added: Tensor | float = 0.0) -> Inverse | None:
        given, gradient = self.diagonal, _precise(self.gradient)
        matrix = _precise(self.matrix)
        eigen = _precise(self.penalty) + torch.as_tensor(added).to(matrix)
        jitter = _jitter(given)
        if bool(eigen.min() < jitter):
            eigen = eigen + jitter
        scaled = matrix / eigen
        kernel = scaled @ matrix.T
        kernel.diagonal().add_(1)
        factor, info = torch.linalg.cholesky_ex(kernel)
        if int(info):
            return None
        seen = torch.linalg.solve_triangular(factor, scaled, upper=False).square_().sum(0)
        half = torch.linalg.solve_triangular(factor, (scaled @ gradient)[:, None], upper=False)
        decrement = float(gradient @ (gradient / eigen) - half.square().sum())
        log_determinant = float(eigen.log().sum() + 2 * factor.diagonal().log().sum())
        return Inverse((1 / eigen - seen).to(given), log_determinant, max(decrement, 0.0))


class _Triangular(SubProblem):
    """What QR and SVD share: the triangle R and Q'r of all rows, those of the penalty included."""

    def __init__(self, rows: Rows, penalty: Tensor, theta: Tensor) -> None:
        self.triangle, self.target, square = reduce_rows(rows, penalty, theta)
        self.diagonal = self.triangle.square().sum(0)
        self.gradient = self.triangle.T @ self.target
        self.residual_norm = float(square.sqrt())

    def quadratic(self, direction: Tensor) -> Tensor:
        return (self.triangle @ direction).square().sum()

    def inverse(self, added: Tensor | float = 0.0) -> Inverse | None:
        return inverse_of(self.triangle.T @ self.triangle, self.gradient, added)

    def restrict(self, free: Tensor, step: Tensor) -> Self:
        part = copy.copy(self)
        moved = torch.where(free, 0.0, step)
        part.target = self.target + self.triangle @ moved
        gradient = self.gradient + self.triangle.T @ (self.triangle @ moved)
        part.residual_norm = _moved_norm(self, gradient, moved)
        part.triangle = self.triangle[:, free]
        part.diagonal = self.diagonal[free]
        part.gradient = gradient[free] if self._adds else part.triangle.T @ part.target
        return part


def _moved_norm(problem: SubProblem, gradient: Tensor, moved: Tensor) -> float:
    """Return |r + A moved|, from the gradients before and after."""
    square = problem.residual_norm**2 + float(moved @ (problem.gradient + gradient))
    return math.sqrt(max(square, 0.0))


def reduce_rows(rows: Rows, penalty: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return R (at most p rows), Q'r and |r|^2 of the stacked rows, holding one chunk and R at a time."""
    n_params = len(theta)
    stacked, square = theta.new_zeros(0, n_params + 1), theta.new_zeros(())
    if bool(penalty.any()):
        root = penalty.sqrt()
        stacked = torch.cat([torch.diag(root), (root * theta)[:, None]], 1)[root != 0]
        square = stacked[:, -1].square().sum()
    for matrix, residual in rows:
        square = square + residual @ residual
        folded = _folded(torch.cat([matrix.T, residual[None]]).T)  # LAPACK's order of storage
        stacked = torch.cat([stacked, folded]) if len(stacked) else folded
        if len(stacked) > n_params:
            stacked = torch.linalg.qr(stacked, mode="r")[1]
    kept = stacked[:n_params]
    return kept[:, :-1], kept[:, -1], square


def _folded(rows: Tensor) -> Tensor:
    """Return fewer rows with the same Gram matrix: the triangles of blocks of rows that fit in cache."""
    while len(rows) >= 2 * QR_BLOCK > 4 * rows.shape[1]:
        whole = len(rows) // QR_BLOCK * QR_BLOCK
        blocks = rows[:whole].view(-1, QR_BLOCK, rows.shape[1])
        triangles = torch.linalg.qr(blocks, mode="r")[1].flatten(0, 1)
        rows = torch.cat([triangles, rows[whole:]])
    return rows


class QR(_Triangular):
    """QR of the rows once, and of the triangle over the damping for every lambda; see the module text."""

    def factorize(self, damping: Tensor) -> bool:
        n_params = len(damping)
        upper = torch.cat([self.triangle, self.target[:, None]], 1)
        lower = damping.new_zeros(n_params, n_params + 1)
        lower.diagonal().copy_(damping).sqrt_()
        reduced = torch.linalg.qr(torch.cat([upper, lower]), mode="r")[1][:n_params]
        self._factor, self._projected = reduced[:, :-1], reduced[:, -1:]
        return all(value != 0 and math.isfinite(value) for value in self._factor.diagonal().tolist())

    def _solve(self) -> Tensor:
        return -torch.linalg.solve_triangular(self._factor, self._projected, upper=True)[:, 0]

    def apply_inverse(self, vector: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(self._factor.T, vector[:, None], upper=False)
        return torch.linalg.solve_triangular(self._factor, half, upper=True)[:, 0]


class SVD(_Triangular):
    """Singular values of the scaled triangle once per scaling, so that further damping values cost a product."""

    def __init__(self, rows: Rows, penalty: Tensor, theta: Tensor) -> None:
        super().__init__(rows, penalty, theta)
        self._scale = theta.new_empty(0)

    def factorize(self, damping: Tensor) -> bool:
        self._size = damping.max()
        scale = damping.sqrt() / self._size.sqrt()
        if self._scale.shape != scale.shape or not torch.allclose(scale, self._scale, rtol=1e-12, atol=0.0):
            scaled = self.triangle / scale
            if not bool(torch.isfinite(scaled).all()):
                return False
            self._scale = scale
            left, self._values, self._right = torch.linalg.svd(scaled, full_matrices=False)
            self._projected = left.T @ self.target
        return True

    def _solve(self) -> Tensor:
        filtered = self._values / (self._values.square() + self._size) * self._projected
        return -(self._right.T @ filtered) / self._scale

    def apply_inverse(self, vector: Tensor) -> Tensor:
        scaled = vector / self._scale
        seen = self._right @ scaled
        within = self._right.T @ (seen / (self._values.square() + self._size))
        return (within + (scaled - self._right.T @ seen) / self._size) / self._scale

    def restrict(self, free: Tensor, step: Tensor) -> SVD:
        part = super().restrict(free, step)
        part._scale = step.new_empty(0)
        return part


def _stack(rows: Rows, theta: Tensor) -> tuple[Tensor, Tensor]:
    parts = list(rows)
    matrix = torch.cat([matrix for matrix, _ in parts]) if len(parts) != 1 else parts[0][0]
    return matrix, torch.cat([residual for _, residual in parts])


def choose_solver(
    name: str, n_rows: int, n_params: int, dtype: torch.dtype, *, curve: bool = False
) -> tuple[Callable[[Rows, Tensor, Tensor], SubProblem], str]:
    """Return the solver for `name` and a sentence that says why.

    Parameters
    ----------
    name : {"auto", "cholesky", "qr", "svd"}
    n_rows, n_params : int
        Shape of A.
    dtype : torch.dtype
    curve : bool, default=False
        Whether digits of the parameters count, so that more of them are worth a QR.
    """
    if name == "qr":
        return QR, "qr, as asked"
    if name == "svd":
        return SVD, "svd, as asked"
    limit = QR_MAX_CURVE_PARAMS if curve else QR_MAX_PARAMS
    if name == "auto" and n_params <= limit and dtype == torch.float64:
        return QR, f"qr: {n_params} parameters in float64"
    if n_rows >= n_params:
        return Cholesky, f"cholesky: {n_rows} rows, {n_params} parameters"
    return DualCholesky, f"cholesky of the dual: {n_rows} rows, {n_params} parameters"
