"""The Gram matrix of linear layers against that of explicit rows."""

import pytest
import torch
from torch import nn

from sklm import MLP, LevenbergMarquardt
from sklm.engine import solvers
from sklm.engine.jacobian import ModuleFunction
from sklm.engine.losses import CrossEntropy

N, D, K, N_OUT = 23, 5, 8, 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_seed(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


class Branches(nn.Module):
    """A layer whose output goes two ways, and one that nothing depends on."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(D, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, N_OUT)
        self.idle = nn.Linear(D, 2)

    def forward(self, X):
        self.idle(X)
        X = torch.tanh(self.first(X))
        return self.last(X + torch.tanh(self.second(X)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(D, D), nn.Linear(D, N_OUT)

    def forward(self, X):
        return self.last(torch.tanh(self.layer(torch.tanh(self.layer(X)))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, N_OUT)
        self.two.weight = self.one.weight

    def forward(self, X):
        return self.last(self.two(torch.tanh(self.one(X))))


class Sequence(nn.Module):
    """Linear layers on one more dimension."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(1, 3), nn.Linear(3, N_OUT)

    def forward(self, X):
        return self.last(torch.tanh(self.layer(X[:, :, None])).mean(1))


def frozen(name):
    module = MLP(D, N_OUT, (3,))
    module.get_parameter(name).requires_grad_(False)
    return module


MODULES = {
    "no hidden layer": lambda: MLP(D, N_OUT, ()),
    "one": lambda: MLP(D, N_OUT, (6,)),
    "three": lambda: MLP(D, N_OUT, (4, 2, 3)),
    "relu": lambda: MLP(D, N_OUT, (6,), "relu"),
    "branches": Branches,
    "frozen weight": lambda: frozen("layers.0.weight"),
    "frozen bias": lambda: frozen("layers.0.bias"),
}
OTHERS = {
    "twice": Twice,
    "tied": Tied,
    "sequence": Sequence,
    "normalized": lambda: nn.Sequential(nn.Linear(D, 3), nn.LayerNorm(3), nn.Linear(3, N_OUT)),
    "wide": lambda: MLP(80, N_OUT, (1,)),
}


def gram_of(module, n_features, chunk):
    function = ModuleFunction(module)
    X, residual, factor = draw(N, n_features), draw(N, K, seed=1), draw(N, K, N_OUT, seed=2)
    found = function.gram(
        function.vector(), X, lambda span: (residual[span], factor[span]), rows_per_sample=factor.shape[1], chunk=chunk
    )
    (rows,) = ModuleFunction(module, "functional").rows(function.vector(), None, X, factor, chunk=N)
    return found, rows.flatten(0, 1), residual.flatten()


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_gram_is_that_of_the_rows(make, chunk):
    found, rows, residual = gram_of(with_seed(make), D, chunk)
    gram, gradient, square = found
    torch.testing.assert_close(gram, rows.T @ rows, rtol=1e-9, atol=1e-11)
    assert torch.equal(gram, gram.T)
    torch.testing.assert_close(gradient, rows.T @ residual, rtol=1e-9, atol=1e-11)
    assert square == pytest.approx(float(residual.square().sum()))


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_modules_need_rows(make):
    n_features = 80 if make is OTHERS["wide"] else D
    assert gram_of(with_seed(make), n_features, 100)[0] is None


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("max_rows", [None, 30])
def test_steps_are_those_with_rows(monkeypatch, max_rows, weighted):
    X, y = draw(60, D), torch.arange(60) % N_OUT
    weights = torch.rand(60, generator=torch.Generator().manual_seed(0)).double() if weighted else None
    calls, ends = [], []
    of_sums = solvers.Cholesky.from_sums
    monkeypatch.setattr(solvers.Cholesky, "from_sums", lambda *sums: (calls.append(1), of_sums(*sums))[1])
    for uses_rows in (False, True):
        module = with_seed(lambda: MLP(D, N_OUT, (3,)))
        optimizer = LevenbergMarquardt(module, CrossEntropy(), alpha=0.3, solver="cholesky", jacobian_max_rows=max_rows)
        if uses_rows:
            monkeypatch.setattr(optimizer.function, "gram", lambda *args, **kwargs: None)
        results = [optimizer.step(X, y, weights) for _ in range(4)]
        ends.append([(r.loss, r.gain_ratio, r.cosine, r.attempts) for r in results])
    assert len(calls) == 4
    for one, other in zip(*ends, strict=True):
        assert one == pytest.approx(other, rel=1e-7)
