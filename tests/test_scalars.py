"""The Jacobian by copies of scalar parameters: autograd one sample at a time, and modules that must not use it."""

import pytest
import torch
from torch import nn

from sklm.curves import Curve
from sklm.curves.formula import FUNCTIONS, N_ARGUMENTS
from sklm.engine.jacobian import ModuleFunction

X = torch.linspace(0.1, 2, 12, dtype=torch.float64)[:, None]


class Scalars(nn.Module):
    def __init__(self, function, n_params=2):
        super().__init__()
        self.function = function
        for i in range(n_params):
            self.register_parameter(f"p{i}", nn.Parameter(torch.tensor(0.5 + i, dtype=torch.float64)))

    def forward(self, X):
        return self.function(X, *self.parameters())


def jacobian_by_autograd(function, vector):
    return torch.stack(
        [torch.autograd.functional.jacobian(lambda v, x=x: function.outputs(v, x[None]).sum(), vector) for x in X]
    )


ELEMENTWISE = {
    "of a column": lambda X, a, b: a * torch.exp(-b * X[:, 0]),
    "of the table": lambda X, a, b: a * torch.exp(-b * X),
    "without one parameter": lambda X, a, b: a * X[:, 0],
    "linear": lambda X, a, b: a + b * X[:, 0],
    "without curvature in a": lambda X, a, b: torch.where(X[:, 0] > 1, a * X[:, 0], b**3),
}
OTHERS = {
    "norm over parameters": lambda X, a, b: torch.stack([a, b]).norm() * X[:, 0],
    "matrix of parameters": lambda X, a, b: torch.stack([X[:, 0], X[:, 0] ** 2], 1) @ torch.stack([a, b]),
    "control flow": lambda X, a, b: a * X[:, 0] if a.reshape(-1)[0] > 0 and a.ndim == 0 else b * X[:, 0],
    "two outputs": lambda X, a, b: torch.stack([a * X[:, 0], b * X[:, 0]], 1),
}


@pytest.mark.parametrize("indices", [None, torch.tensor([1])], ids=["all", "one"])
@pytest.mark.parametrize("chunk", [2, 5, 12])
@pytest.mark.parametrize("name", [*ELEMENTWISE, *OTHERS])
def test_rows_equal_autograd(name, chunk, indices):
    function = ModuleFunction(Scalars((ELEMENTWISE | OTHERS)[name]))
    vector = function.vector()
    n_outputs = function.outputs(vector, X).shape[1]
    factor = torch.arange(1.0, 1 + 12 * 2 * n_outputs, dtype=torch.float64).reshape(12, 2, n_outputs)
    rows = torch.cat(list(function.rows(vector, indices, X, factor, chunk=chunk)))
    if n_outputs == 1:
        expected = factor * jacobian_by_autograd(function, vector)[:, None, :]
    else:
        jacobian = torch.autograd.functional.jacobian(lambda v: function.outputs(v, X), vector)
        expected = factor @ jacobian
    torch.testing.assert_close(rows, expected if indices is None else expected[:, :, indices], rtol=1e-12, atol=1e-14)
    assert bool(function.scalars.works) == (name in ELEMENTWISE)


def test_a_module_with_a_tensor_of_parameters_has_no_copies():
    assert ModuleFunction(nn.Linear(1, 1)).scalars is None


def test_one_that_draws_random_numbers_keeps_its_draws():
    class Noisy(Scalars):
        def forward(self, X):
            return nn.functional.dropout(super().forward(X), 0.5, training=True)

    function = ModuleFunction(Noisy(ELEMENTWISE["of a column"]))
    vector, factor = function.vector(), torch.ones(12, 1, 1, dtype=torch.float64)
    rows = torch.cat(list(function.rows(vector, None, X, factor, seed=3, chunk=12)))[:, 0, 0]
    outputs = function.outputs(vector, X, seed=3, chunk=12)[:, 0]
    assert torch.equal(rows == 0, outputs == 0)
    assert function.scalars.works is None


def test_samples_for_which_copies_fail_take_the_other_way():
    def function(X, a, b):
        if len(X) == 2 and a.ndim:  # the last chunk
            raise RuntimeError("not for these")
        return a * torch.exp(-b * X[:, 0])

    function = ModuleFunction(Scalars(function))
    vector, factor = function.vector(), torch.ones(12, 1, 1, dtype=torch.float64)
    rows = torch.cat(list(function.rows(vector, None, X, factor, chunk=5)))
    assert function.scalars.works
    plain = ModuleFunction(Scalars(ELEMENTWISE["of a column"]))
    expected = torch.cat(list(plain.rows(vector, None, X, factor, chunk=12)))
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_a_formula_works_element_by_element(name):
    others = ", 0.7" * (N_ARGUMENTS.get(name, 1) - 1)
    curve = Curve(f"a * {name}(0.9 - b * x{others}) + (x > b) / a", a=0.8, b=0.3)
    assert curve.is_elementwise
    function = ModuleFunction(curve)
    vector = function.vector()
    rows = torch.cat(list(function.rows(vector, None, X, X.new_ones(12, 1, 1), chunk=5)))[:, 0]
    assert function.method == "scalar"
    torch.testing.assert_close(rows, jacobian_by_autograd(function, vector), rtol=1e-12, atol=1e-14, equal_nan=True)


def test_a_function_and_a_subclass_do_not_say_that_they_work_element_by_element():
    class Centered(Curve):
        def evaluate(self, X, parameters):
            value = super().evaluate(X, parameters)
            return value - value.mean()

    assert not Curve(lambda x, a: a * x, a=1.0).is_elementwise
    curve = Centered("a * x", a=1.0)
    assert not curve.is_elementwise
    assert ModuleFunction(curve).scalars.works is None


def test_one_sample_does_not_tell_the_shape_of_the_copies():
    """Copies of shape (n,) times a column of shape (n, 1) are a matrix, which shows with two samples."""
    function = ModuleFunction(Scalars(lambda X, a, b: (a * X + b).sum(1)))
    vector = function.vector()
    (row,) = function.rows(vector, None, X[:1], X.new_ones(1, 1, 1), chunk=1)
    assert function.scalars.works is None
    rows = torch.cat(list(function.rows(vector, None, X, X.new_ones(12, 1, 1), chunk=12)))[:, 0]
    expected = jacobian_by_autograd(function, vector)
    torch.testing.assert_close(row[:, 0], expected[:1])
    torch.testing.assert_close(rows, expected)


def test_an_infinite_derivative_does_not_hide_others():
    """An infinite entry says nothing of how exact the others must be."""

    def mixing(X, a, b):
        w = torch.stack([a.reshape(-1)[0], b.reshape(-1)[0]])
        w = w / w.sum()
        return w[0] * torch.sqrt(X[:, 0] - 0.1) + w[1]

    function = ModuleFunction(Scalars(mixing))
    vector = function.vector()
    rows = torch.cat(list(function.rows(vector, None, X, X.new_ones(12, 1, 1), chunk=12)))[:, 0]
    torch.testing.assert_close(rows, jacobian_by_autograd(function, vector))
