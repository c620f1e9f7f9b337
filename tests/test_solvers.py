"""Solvers: every form against `torch.linalg.lstsq` of the explicitly stacked system."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklm.engine import solvers
from sklm.engine.solvers import JITTER, QR, SVD, Cholesky, DualCholesky, add_gram, choose_solver, reduce_rows

SOLVERS = [Cholesky, DualCholesky, QR, SVD]
by_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_chunks(matrix, residual, size):
    return list(zip(matrix.split(size), residual.split(size), strict=True))


def stacked_solution(matrix, residual, penalty, theta, damping):
    """Return argmin |A d + r|^2 + sum a (theta + d)^2 + sum damping d^2 from all rows, by LAPACK's gelsd."""
    system = torch.cat([matrix, torch.diag(penalty.sqrt()), torch.diag(damping.sqrt())])
    right = torch.cat([residual, penalty.sqrt() * theta, torch.zeros_like(theta)])
    return torch.linalg.lstsq(system, -right[:, None], driver="gelsd").solution[:, 0]


def tall():
    return draw(40, 6)


def wide():
    return draw(5, 17)


def square():
    return draw(7, 7)


def one_row_more():
    return draw(8, 7)


def one_row_less():
    return draw(6, 7)


def one_by_one():
    return draw(1, 1)


def rank_deficient():
    return draw(30, 3) @ draw(3, 9, seed=1)


def zero_columns():
    matrix = draw(20, 6)
    matrix[:, [0, 4]] = 0
    return matrix


def duplicate_columns():
    matrix = draw(20, 6)
    matrix[:, 3] = matrix[:, 1]
    return matrix


def badly_scaled():
    return draw(25, 5) * torch.tensor([1e-3, 1.0, 1e2, 1e-1, 10.0], dtype=torch.float64)


def all_zero():
    return torch.zeros(9, 4, dtype=torch.float64)


PROBLEMS = [
    tall,
    wide,
    square,
    one_row_more,
    one_row_less,
    one_by_one,
    rank_deficient,
    zero_columns,
    duplicate_columns,
    badly_scaled,
    all_zero,
]
by_problem = pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)

PENALTIES = {
    "no penalty": lambda p: torch.zeros(p, dtype=torch.float64),
    "penalty on some": lambda p: (torch.arange(p) % 2 == 0).double() * 0.3,
    "penalty on all": lambda p: torch.linspace(0.1, 2.0, p, dtype=torch.float64),
}
by_penalty = pytest.mark.parametrize("penalize", PENALTIES.values(), ids=PENALTIES)


def safe(diagonal):
    return torch.where(diagonal > 0, diagonal, 1.0)


SCALINGS = {
    "identity": torch.ones_like,
    "marquardt": safe,
    "max": lambda diagonal: safe(diagonal.max().expand_as(diagonal)),
    "more, larger seen before": lambda diagonal: safe(diagonal) * torch.linspace(1, 50, len(diagonal)).to(diagonal),
}


@by_solver
@by_problem
@by_penalty
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_solution_is_that_of_the_stacked_system(solver, make, penalize, scaling):
    matrix = make()
    n_rows, n_params = matrix.shape
    residual, theta, penalty = draw(n_rows, seed=2), draw(n_params, seed=3), penalize(n_params)
    problem = solver([(matrix, residual)], penalty, theta)
    scale = scaling(matrix.square().sum(0) + penalty)
    for factor in (1e-2, 1.0, 1e3):
        expected = stacked_solution(matrix, residual, penalty, theta, factor * scale)
        # Normal equations lose cond(H + lambda D) <= 1e8 of the 1e16 that float64 has.
        torch.testing.assert_close(problem.solve(factor * scale), expected, rtol=1e-7, atol=1e-9)


@by_solver
@by_problem
@by_penalty
def test_first_order_quantities_are_those_of_the_explicit_matrices(solver, make, penalize):
    matrix = make()
    n_rows, n_params = matrix.shape
    residual, theta, penalty = draw(n_rows, seed=2), draw(n_params, seed=3), penalize(n_params)
    problem = solver([(matrix, residual)], penalty, theta)
    curvature = matrix.T @ matrix + torch.diag(penalty)
    direction = draw(n_params, seed=4)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(problem.diagonal, curvature.diagonal(), **close)
    torch.testing.assert_close(problem.gradient, matrix.T @ residual + penalty * theta, **close)
    torch.testing.assert_close(problem.quadratic(direction), direction @ curvature @ direction, **close)
    assert problem.residual_norm == pytest.approx(math.sqrt(residual.square().sum() + (penalty * theta**2).sum()))


@by_solver
@pytest.mark.parametrize("make", [tall, wide, square, one_row_more, rank_deficient], ids=lambda make: make.__name__)
@by_penalty
@pytest.mark.parametrize("size", [1, 2, 3, 7, 39], ids="{} rows at once".format)
def test_chunks_change_nothing(solver, make, penalize, size):
    matrix = make()
    n_rows, n_params = matrix.shape
    residual, theta, penalty = draw(n_rows, seed=2), draw(n_params, seed=3), penalize(n_params)
    problem = solver(in_chunks(matrix, residual, size), penalty, theta)
    damping = torch.full_like(theta, 0.1)
    expected = stacked_solution(matrix, residual, penalty, theta, damping)
    torch.testing.assert_close(problem.solve(damping), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(problem.gradient, matrix.T @ residual + penalty * theta, rtol=1e-10, atol=1e-10)
    assert problem.residual_norm == pytest.approx(math.sqrt(residual.square().sum() + (penalty * theta**2).sum()))


@settings(max_examples=40, deadline=None)
@given(
    n_rows=st.integers(1, 12),
    n_params=st.integers(1, 10),
    size=st.integers(1, 12),
    penalized=st.integers(0, 10),
    log_damping=st.floats(-3, 6),
    seed=st.integers(0, 2**31),
)
def test_all_shapes_penalties_and_chunks_agree(n_rows, n_params, size, penalized, log_damping, seed):
    matrix, residual, theta = (
        draw(n_rows, n_params, seed=seed),
        draw(n_rows, seed=seed + 1),
        draw(n_params, seed=seed + 2),
    )
    penalty = (torch.arange(n_params) < penalized).double() * 0.7
    damping = 10**log_damping * draw(n_params, seed=seed + 3).abs().clamp_min(0.1)
    expected = stacked_solution(matrix, residual, penalty, theta, damping)
    for solver in SOLVERS:
        found = solver(in_chunks(matrix, residual, size), penalty, theta).solve(damping)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@by_solver
def test_one_preparation_serves_many_damping_values_in_any_order(solver):
    matrix, residual, theta, penalty = draw(20, 5), draw(20, seed=1), draw(5, seed=2), torch.full((5,), 0.2).double()
    problem = solver([(matrix, residual)], penalty, theta)
    one, other = torch.ones(5).double(), torch.linspace(0.5, 3, 5).double()
    for damping in (one, 10 * one, other, 1e-3 * other, one):
        expected = stacked_solution(matrix, residual, penalty, theta, damping)
        torch.testing.assert_close(problem.solve(damping), expected, rtol=1e-10, atol=1e-12)


@by_solver
def test_solving_changes_no_argument(solver):
    matrix, residual, theta, penalty = draw(6, 6), draw(6, seed=1), draw(6, seed=2), torch.full((6,), 0.2).double()
    damping = torch.ones(6).double()
    arguments = [matrix, residual, theta, penalty, damping]
    before = [argument.clone() for argument in arguments]
    problem = solver([(matrix, residual)], penalty, theta)
    first = problem.solve(damping)
    problem.quadratic(first)
    assert torch.equal(problem.solve(damping), first)
    assert all(map(torch.equal, arguments, before))


@by_solver
def test_rows_may_come_from_a_generator(solver):
    matrix, residual, theta = draw(12, 4), draw(12, seed=1), draw(4, seed=2)
    penalty, damping = torch.zeros(4).double(), torch.ones(4).double()
    problem = solver((part for part in in_chunks(matrix, residual, 5)), penalty, theta)
    expected = stacked_solution(matrix, residual, penalty, theta, damping)
    torch.testing.assert_close(problem.solve(damping), expected, rtol=1e-10, atol=1e-12)


@by_solver
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 4)], ids=["tall", "wide", "one row more"])
def test_a_matrix_that_is_not_finite_gives_none(solver, shape):
    matrix = draw(*shape)
    matrix[1, 2] = math.nan
    theta = torch.zeros(shape[1]).double()
    assert solver([(matrix, draw(shape[0]))], torch.zeros_like(theta), theta).solve(torch.ones_like(theta)) is None


@pytest.mark.parametrize("damping", [-5.0, math.nan], ids=["indefinite", "nan"])
@pytest.mark.parametrize("solver", [Cholesky, DualCholesky], ids=lambda solver: solver.__name__)
def test_a_failed_cholesky_factorisation_gives_none(solver, damping):
    matrix = torch.eye(3, dtype=torch.float64) * 2
    theta = torch.zeros(3).double()
    problem = solver([(matrix, torch.ones(3).double())], torch.zeros(3).double(), theta)
    # H + damping has diagonal 4 - 5 < 0; the dual's kernel is 1 - 4 / 5 > 0 there, so it takes -3: 1 - 4 / 3 < 0
    value = -3.0 if solver is DualCholesky and damping < 0 else damping
    assert problem.solve(torch.full((3,), value).double()) is None


def test_a_singular_triangle_gives_none():
    matrix = torch.zeros(3, 2, dtype=torch.float64)
    theta = torch.zeros(2).double()
    assert QR([(matrix, torch.ones(3).double())], torch.zeros(2).double(), theta).solve(torch.zeros(2).double()) is None


# --- factors used again, and problems in some of the parameters ---


def explicit(make, penalize):
    """Return A, r, the penalty, theta and H of one of the problems."""
    matrix = make()
    n_rows, n_params = matrix.shape
    residual, theta, penalty = draw(n_rows, seed=2), draw(n_params, seed=3), penalize(n_params)
    return matrix, residual, penalty, theta, matrix.T @ matrix + torch.diag(penalty)


@by_solver
@by_problem
@by_penalty
def test_apply_inverse_is_that_of_the_explicit_matrix(solver, make, penalize):
    matrix, residual, penalty, theta, curvature = explicit(make, penalize)
    problem = solver([(matrix, residual)], penalty, theta)
    vector = draw(len(theta), seed=5)
    for scaling in (safe, torch.ones_like):
        for factor in (1e-2, 1.0, 1e3):
            damping = factor * scaling(curvature.diagonal())
            assert problem.factorize(damping)
            expected = torch.linalg.solve(curvature + torch.diag(damping), vector)
            torch.testing.assert_close(problem.apply_inverse(vector), expected, rtol=1e-7, atol=1e-9)  # as above


@by_solver
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["tall", "wide"])
def test_apply_inverse_uses_the_last_factors_and_solve_makes_them(solver, shape):
    matrix, vector, theta = draw(*shape), draw(shape[1], seed=1), draw(shape[1], seed=2)
    penalty, damping = torch.full_like(theta, 0.1), torch.ones_like(theta)
    problem = solver([(matrix, draw(shape[0], seed=3))], penalty, theta)
    problem.factorize(7 * damping)
    problem.solve(damping)
    expected = torch.linalg.solve(matrix.T @ matrix + 1.1 * torch.eye(shape[1]).double(), vector)
    torch.testing.assert_close(problem.apply_inverse(vector), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", [Cholesky, QR], ids=lambda solver: solver.__name__)  # the others divide by it
@pytest.mark.parametrize("make", [tall, square], ids=lambda make: make.__name__)
def test_an_undamped_factorisation_gives_the_least_squares_solution(solver, make):
    matrix, residual = make(), draw(len(make()), seed=2)
    zero = torch.zeros(matrix.shape[1]).double()
    expected = torch.linalg.lstsq(matrix, -residual[:, None], driver="gelsd").solution[:, 0]
    # cond(A)^2 <= 1e6 for the normal equations
    torch.testing.assert_close(solver([(matrix, residual)], zero, zero).solve(zero), expected, rtol=1e-8, atol=1e-10)


FREE = {
    "all": lambda p: torch.ones(p, dtype=torch.bool),
    "all but the first": lambda p: torch.arange(p) > 0,
    "every second": lambda p: torch.arange(p) % 2 == 1,
    "only the last": lambda p: torch.arange(p) == p - 1,
}
by_free = pytest.mark.parametrize("select", FREE.values(), ids=FREE)
SEVERAL = [make for make in PROBLEMS if make is not one_by_one]


def check_restricted(part, matrix, residual, penalty, theta, free, moved):
    """Check a problem in the parameters `free` after the step `moved` of the others against the explicit matrices."""
    reached, kept, pull = residual + matrix @ moved, matrix[:, free], penalty * (theta + moved)
    curvature = kept.T @ kept + torch.diag(penalty[free])
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(part.gradient, kept.T @ reached + pull[free], **close)
    torch.testing.assert_close(part.diagonal, curvature.diagonal(), **close)
    norm = math.sqrt(float(reached.square().sum() + (pull * (theta + moved)).sum()))
    assert part.residual_norm == pytest.approx(norm, rel=1e-9)
    direction = draw(int(free.sum()), seed=6)
    torch.testing.assert_close(part.quadratic(direction), direction @ curvature @ direction, **close)
    for factor in (1e-2, 1.0, 1e3):
        damping = factor * safe(curvature.diagonal())
        solution = stacked_solution(kept, reached, penalty[free], theta[free], damping)
        torch.testing.assert_close(part.solve(damping), solution, rtol=1e-7, atol=1e-9)
        inverse = torch.linalg.solve(curvature + torch.diag(damping), direction)
        torch.testing.assert_close(part.apply_inverse(direction), inverse, rtol=1e-7, atol=1e-9)


@by_solver
@pytest.mark.parametrize("make", SEVERAL, ids=lambda make: make.__name__)
@by_penalty
@by_free
def test_restricted_problem_is_that_of_the_remaining_columns(solver, make, penalize, select):
    matrix, residual, penalty, theta, _ = explicit(make, penalize)
    free, step = select(len(theta)), draw(len(theta), seed=4)  # what the free ones would do is ignored
    part = solver(in_chunks(matrix, residual, 3), penalty, theta).restrict(free, step)
    check_restricted(part, matrix, residual, penalty, theta, free, torch.where(free, 0.0, step))


@by_solver
@pytest.mark.parametrize("make", [tall, wide], ids=lambda make: make.__name__)
@by_penalty
def test_restricting_twice_is_restricting_once(solver, make, penalize):
    matrix, residual, penalty, theta, _ = explicit(make, penalize)
    n_params = len(theta)
    first, second = torch.arange(n_params) != 1, torch.arange(n_params) > 2
    step = draw(n_params, seed=4)
    part = solver([(matrix, residual)], penalty, theta).restrict(first, step).restrict(second[first], step[first])
    check_restricted(part, matrix, residual, penalty, theta, second, torch.where(second, 0.0, step))


@by_solver
@pytest.mark.parametrize("make", [tall, wide], ids=lambda make: make.__name__)
def test_restricting_leaves_the_problem_as_it_was(solver, make):
    matrix, residual, penalty, theta, curvature = explicit(make, PENALTIES["penalty on some"])
    problem = solver([(matrix, residual)], penalty, theta)
    damping, vector, free = safe(curvature.diagonal()), draw(len(theta), seed=5), torch.arange(len(theta)) > 1
    before = problem.solve(damping), problem.apply_inverse(vector), problem.gradient.clone(), problem.diagonal.clone()
    norm = problem.residual_norm
    part = problem.restrict(free, draw(len(theta), seed=4))
    part.solve(3 * damping[free])
    after = problem.apply_inverse(vector), problem.solve(damping), problem.gradient, problem.diagonal
    assert torch.equal(after[0], before[1])
    assert all(torch.equal(after[i], before[j]) for i, j in ((1, 0), (2, 2), (3, 3)))
    assert problem.residual_norm == norm


def ill_conditioned():
    """Return A (60 x 6) with singular values from 1 to 1e-10 and r = -A d for d of ones."""
    left, right = torch.linalg.qr(draw(60, 6))[0], torch.linalg.qr(draw(6, 6, seed=1))[0]
    matrix = left * torch.logspace(0, -10, 6, dtype=torch.float64) @ right.T
    return matrix, -matrix.sum(1)


@pytest.mark.parametrize("solver", [QR, SVD], ids=lambda solver: solver.__name__)
@pytest.mark.parametrize("size", [60, 11], ids=["one chunk", "chunks"])
def test_orthogonal_solvers_keep_digits_at_condition_1e10(solver, size):
    matrix, residual = ill_conditioned()
    theta = torch.zeros(6).double()
    found = solver(in_chunks(matrix, residual, size), theta, theta).solve(torch.full((6,), 1e-30).double())
    # backward stable: error of about cond * eps = 1e10 * 2e-16, times a modest constant
    assert float((found - 1).abs().max()) < 1e-4


def test_normal_equations_lose_these_digits():
    matrix, residual = ill_conditioned()
    theta = torch.zeros(6).double()
    found = Cholesky([(matrix, residual)], theta, theta).solve(torch.full((6,), 1e-30).double())
    assert found is None or float((found - 1).abs().max()) > 1e-2


@pytest.mark.parametrize("n_params", [1, 255, 256, 257, 520, 700])
def test_add_gram_adds_the_upper_triangle_of_the_product(n_params):
    first, second = draw(9, n_params), draw(4, n_params, seed=1)
    gram = torch.zeros(n_params, n_params, dtype=torch.float64)
    add_gram(gram, first)
    add_gram(gram, second)
    expected = first.T @ first + second.T @ second
    torch.testing.assert_close(gram.triu(), expected.triu(), rtol=1e-12, atol=1e-12)


def test_cholesky_over_several_blocks_of_columns():
    n_params = solvers.GRAM_BLOCKS * solvers.MIN_GRAM_BLOCK + 10
    matrix, residual = draw(n_params + 30, n_params), draw(n_params + 30, seed=1)
    theta = draw(n_params, seed=2)
    penalty = (torch.arange(n_params) % 3 == 0).double()
    problem = Cholesky(in_chunks(matrix, residual, 100), penalty, theta)
    torch.testing.assert_close(problem.curvature, matrix.T @ matrix + torch.diag(penalty), rtol=1e-11, atol=1e-11)
    damping = torch.ones_like(theta)
    expected = stacked_solution(matrix, residual, penalty, theta, damping)
    torch.testing.assert_close(problem.solve(damping), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "n_rows", "n_params", "dtype", "expected", "reason"),
    [
        ("auto", 100, 5, torch.float64, QR, "qr: 5 parameters in float64"),
        ("auto", 3, 5, torch.float64, QR, "qr"),
        ("auto", 100, solvers.QR_MAX_PARAMS, torch.float64, QR, "qr"),
        ("auto", 100, solvers.QR_MAX_PARAMS + 1, torch.float64, Cholesky, "100 rows, 33 parameters"),
        ("auto", 100, 5, torch.float32, Cholesky, "cholesky: 100 rows"),
        ("auto", 33, 33, torch.float64, Cholesky, "cholesky: 33 rows"),
        ("auto", 32, 33, torch.float64, DualCholesky, "dual: 32 rows, 33 parameters"),
        ("auto", 3, 5, torch.float32, DualCholesky, "dual"),
        ("cholesky", 100, 5, torch.float64, Cholesky, "cholesky"),
        ("cholesky", 4, 5, torch.float64, DualCholesky, "dual"),
        ("qr", 100, 500, torch.float32, QR, "as asked"),
        ("svd", 100, 500, torch.float32, SVD, "as asked"),
    ],
)
def test_choice_of_solver_and_its_reason(name, n_rows, n_params, dtype, expected, reason):
    solver, why = choose_solver(name, n_rows, n_params, dtype)
    assert solver is expected
    assert reason in why


@pytest.mark.parametrize(
    ("n_params", "dtype", "expected"),
    [
        (solvers.QR_MAX_CURVE_PARAMS, torch.float64, QR),
        (solvers.QR_MAX_CURVE_PARAMS + 1, torch.float64, Cholesky),
        (5, torch.float32, Cholesky),
    ],
)
def test_a_curve_gets_qr_up_to_more_parameters(n_params, dtype, expected):
    assert choose_solver("auto", 1000, n_params, dtype, curve=True)[0] is expected


@pytest.mark.parametrize("n_rows", [4096, 8191, 8192, 20_000, 70_001])
@pytest.mark.parametrize("n_params", [1, 4, 40])
def test_blocks_of_rows_fold_into_the_triangle_of_all(n_rows, n_params):
    matrix, residual, theta = draw(n_rows, n_params), draw(n_rows, seed=1), torch.zeros(n_params).double()
    triangle, target, square = reduce_rows([(matrix, residual)], theta, theta)
    whole = torch.linalg.qr(torch.cat([matrix, residual[:, None]], 1), mode="r")[1]
    signs = triangle.diagonal().sign() * whole.diagonal()[:n_params].sign()
    torch.testing.assert_close(signs[:, None] * triangle[:n_params], whole[:n_params, :-1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(signs * target[:n_params], whole[:n_params, -1], rtol=1e-9, atol=1e-9)
    assert float(square) == pytest.approx(float(residual @ residual), rel=1e-13)


@pytest.mark.parametrize("n", [1, 60, 128, 300])
@pytest.mark.parametrize("rows", [2.0, 0.5], ids=["more rows", "fewer rows"])
@pytest.mark.parametrize("solver", [Cholesky, DualCholesky, QR], ids=["Cholesky", "Dual", "QR"])
def test_inverse_diagonal(solver, n, rows):
    n_rows = max(1, int(rows * n))
    matrix, residual = draw(n_rows, n), draw(n_rows, seed=1)
    penalty = torch.rand(n, generator=torch.Generator().manual_seed(0)).double()
    penalty[::3] = 0
    added = torch.where(penalty == 0, 0.3, 0.0)
    problem = solver([(matrix, residual)], penalty, draw(n))
    diagonal, log_determinant, decrement = problem.inverse(added)
    curvature = matrix.T @ matrix + torch.diag(penalty + added)
    torch.testing.assert_close(diagonal, torch.linalg.inv(curvature).diagonal(), rtol=1e-7, atol=0)
    assert log_determinant == pytest.approx(float(torch.logdet(curvature)), rel=1e-9, abs=1e-9)
    gradient = matrix.T @ residual + penalty * draw(n)
    expected = float(gradient @ torch.linalg.solve(curvature, gradient))
    assert decrement == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("solver", [Cholesky, DualCholesky, QR], ids=["Cholesky", "Dual", "QR"])
def test_inverse_diagonal_where_the_curvature_vanishes(solver):
    matrix, nothing = draw(3, 5), torch.zeros(5).double()
    diagonal, log_determinant, _ = solver([(matrix, draw(3))], nothing, draw(5)).inverse()
    curvature = matrix.T @ matrix
    curvature = curvature + JITTER * curvature.diagonal().max() * torch.eye(5)
    torch.testing.assert_close(diagonal, torch.linalg.inv(curvature).diagonal(), rtol=1e-6, atol=0)
    assert log_determinant == pytest.approx(float(torch.logdet(curvature)), rel=1e-6)
