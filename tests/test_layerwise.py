"""Rows layer by layer against autograd, one sample and one output at a time, on a zoo of architectures."""

import copy

import pytest
import torch
from torch import nn

from sklm import LevenbergMarquardt
from sklm.engine.inputs import take
from sklm.engine.jacobian import ModuleFunction
from sklm.engine.modes import steady_batchnorm

N = 6


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, X):
        X = X + torch.tanh(self.first(X))
        return self.last(X + torch.tanh(self.second(X)))


class Twice(nn.Module):
    """One layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, X):
        return self.last(torch.tanh(self.layer(torch.tanh(self.layer(X)))))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight

    def forward(self, X):
        return self.two(torch.tanh(self.one(X)))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.idle, self.layer = nn.Linear(4, 4), nn.Linear(3, 2)

    def forward(self, X):
        return self.layer(X)


class Outside(nn.Module):
    """Uses a weight outside its layer too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, X):
        return self.layer(X) * self.layer.weight.square().sum()


class Words(nn.Module):
    def __init__(self, padding_idx=None):
        super().__init__()
        self.embedding, self.last = nn.Embedding(5, 3, padding_idx=padding_idx), nn.Linear(3, 2)

    def forward(self, X):
        return self.last(torch.tanh(self.embedding(X)).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.last = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, X):
        return self.last(self.gru(X)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

    def forward(self, X):
        return self.last(self.attention(X, X, X, need_weights=False)[0].mean(1))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.gain = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def forward(self, X):
        return self.gain * self.layer(X)


def frozen():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    module[0].weight.requires_grad_(False)
    return module


def batch_norm():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    module[1].running_mean += torch.arange(4.0)
    module[1].running_var += torch.arange(4.0)
    return module


def image_batch_norm():
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 2))


# module, shape of one sample, whether its rows come layer by layer
ZOO = {
    "linear": (lambda: nn.Linear(3, 2), (3,), True),
    "without bias": (lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)), (3,), True),
    "deep": (lambda: nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(3, 3), nn.Tanh())]), (3,), True),
    "linear over time": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)),
        (4, 3),
        True,
    ),
    "residual": (Residual, (3,), True),
    "a layer twice": (Twice, (3,), True),
    "tied weights": (Tied, (3,), True),
    "frozen": (frozen, (3,), True),
    "an unused layer": (Unused, (3,), True),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), (3,), True),
    "layer norm over time": (lambda: nn.Sequential(nn.LayerNorm(3), nn.Flatten(), nn.Linear(12, 1)), (4, 3), True),
    "batch norm": (batch_norm, (3,), True),
    "image batch norm": (image_batch_norm, (2, 4, 4), True),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, (2, 3), stride=2, padding=(1, 0)), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2)
        ),
        (2, 5, 6),
        True,
    ),
    "dilated convolution": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3, dilation=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(15, 1)),
        (2, 7),
        True,
    ),
    "grouped convolution": (lambda: nn.Sequential(nn.Conv1d(2, 2, 2, groups=2), nn.Flatten()), (2, 3), False),
    "embedding": (Words, (4,), True),
    "embedding with padding": (lambda: Words(0), (4,), True),
    "relu in place": (lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(inplace=True), nn.Linear(8, 1)), (3,), None),
    "a weight outside its layer": (Outside, (3,), False),
    "a parameter of its own": (Gated, (3,), False),
    "GRU": (Recurrent, (4, 2), False),
    "attention": (Attention, (3, 4), False),
}


def built(name):
    make, shape, expected = ZOO[name]
    torch.manual_seed(0)
    module = make().double()
    X = torch.randint(0, 5, (N, *shape)) if "embedding" in name else torch.randn(N, *shape, dtype=torch.float64)
    return module, X, expected


@pytest.mark.parametrize("indices", [None, torch.tensor([0, 2, 5])], ids=["all", "some"])
@pytest.mark.parametrize("chunk", [2, 4, N])
@pytest.mark.parametrize("name", ZOO)
def test_rows_equal_autograd(name, chunk, indices):
    with torch.random.fork_rng():
        module, X, expected = built(name)
    function = ModuleFunction(module)
    vector = function.vector()
    generator = torch.Generator().manual_seed(1)
    with steady_batchnorm(module.modules()):
        n_outputs = function.outputs(vector, X).shape[1]
        factor = torch.randn(N, 2, n_outputs, dtype=torch.float64, generator=generator)
        rows = torch.cat(list(function.rows(vector, indices, X, factor, chunk=chunk)))
        samples = [take(X, slice(i, i + 1)) for i in range(N)]
        jacobians = [
            torch.autograd.functional.jacobian(lambda v, x=sample: function.outputs(v, x)[0], vector)
            for sample in samples
        ]
    wanted = factor @ torch.stack(jacobians)
    torch.testing.assert_close(rows, wanted if indices is None else wanted[:, :, indices], rtol=1e-10, atol=1e-12)
    if expected is not None:
        assert bool(function.layerwise is not None and function.layerwise.works) == expected


def test_the_module_keeps_no_hooks():
    module, X, _ = built("deep")
    function = ModuleFunction(module)
    next(function.rows(function.vector(), None, X, torch.ones(N, 1, 3, dtype=torch.float64), chunk=N))
    assert function.layerwise.works
    assert not any(layer._forward_hooks for layer in module.modules())


def test_float32():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    function, X = ModuleFunction(module), torch.randn(N, 3)
    vector, factor = function.vector(), torch.ones(N, 1, 1)
    rows = next(function.rows(vector, None, X, factor, chunk=N))
    assert function.layerwise.works
    expected = function.functional.rows(function, vector, None, X, factor, None)
    torch.testing.assert_close(rows, expected)


class Viewing(nn.Module):
    """Takes its images to lie channel by channel."""

    def __init__(self, n_channels):
        super().__init__()
        self.first, self.second = nn.Conv2d(n_channels, 3, 3, padding=1), nn.Conv2d(3, 2, (2, 3), stride=(1, 2))
        self.last = nn.Linear(16, 2)

    def forward(self, X):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(X)))).view(len(X), -1))


class Flattening(Viewing):
    def forward(self, X):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(X)))).flatten(1))


@pytest.mark.parametrize("n_channels", [1, 4])
@pytest.mark.parametrize("kind", [Viewing, Flattening])
def test_images_in_float32(kind, n_channels):
    torch.manual_seed(0)
    module, X = kind(n_channels), torch.randn(N, n_channels, 5, 6)
    function = ModuleFunction(module)
    vector, factor = function.vector(), torch.randn(N, 2, 2)
    rows = next(function.rows(vector, None, X, factor, chunk=N))
    assert function.layerwise.works
    assert function.layerwise.relays == (kind is Flattening)
    torch.testing.assert_close(rows, function.functional.rows(function, vector, None, X, factor, None))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


@pytest.mark.parametrize(
    ("name", "jacobian", "method"),
    [
        ("deep", "auto", "layerwise"),
        ("deep", "layerwise", "layerwise"),
        ("deep", "functional", "functional"),
        ("attention", "auto", "functional"),
        ("GRU", "auto", "sample by sample"),
    ],
)
def test_the_choice_is_reported(name, jacobian, method):
    module, X, _ = built(name)
    y = torch.zeros(ModuleFunction(module).outputs(ModuleFunction(module).vector(), X).shape, dtype=torch.float64)
    assert LevenbergMarquardt(module, jacobian=jacobian).step(X, y).jacobian == method


@pytest.mark.parametrize("name", ["GRU", "a weight outside its layer"])
def test_layerwise_refuses_what_it_cannot(name):
    module, X, _ = built(name)
    rows = ModuleFunction(module, "layerwise").rows(
        ModuleFunction(module).vector(), None, X, torch.ones(N, 1, 2 - (name == "GRU"), dtype=torch.float64), chunk=N
    )
    with pytest.raises(ValueError, match="`jacobian='layerwise'` needs a module whose trainable parameters"):
        next(rows)


class Counting(nn.Sequential):
    calls = 0

    def forward(self, X):
        Counting.calls += 1
        return super().forward(X)


def counting():
    torch.manual_seed(0)
    module = Counting(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return module, torch.randn(50, 3, dtype=torch.float64)


def test_a_step_evaluates_the_module_once_per_point():
    module, X = counting()
    optimizer = LevenbergMarquardt(module, seed=0)
    optimizer.step(X, X[:, 0].sin())  # which also finds out how the Jacobian is computed
    Counting.calls = 0
    result = optimizer.step(X, X[:, 0].sin())
    assert Counting.calls == 1 + result.attempts
    copy.deepcopy(optimizer)  # nothing of the graph is kept


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: not enough memory", "CUDA out of memory"])
def test_out_of_memory_halves_the_chunk(message, monkeypatch):
    module, X, _ = built("deep")
    X, y = X.repeat(10, 1), torch.zeros(10 * N, 3, dtype=torch.float64)
    twin = copy.deepcopy(module)
    rows = ModuleFunction.rows

    def limited(self, *args, chunk, **kwargs):
        if chunk > 16:
            raise RuntimeError(message)
        return rows(self, *args, chunk=chunk, **kwargs)

    monkeypatch.setattr(ModuleFunction, "rows", limited)
    optimizer = LevenbergMarquardt(module, seed=0)
    with pytest.warns(RuntimeWarning, match="out of memory; the Jacobian is now computed in chunks"):
        optimizer.step(X, y)
    assert optimizer.jacobian_max_rows == 15 * 3
    optimizer.step(X, y)  # at once within the limit
    monkeypatch.undo()
    other = LevenbergMarquardt(twin, seed=0)
    for _ in range(2):
        other.step(X, y)
    torch.testing.assert_close(optimizer.function.vector(), other.function.vector(), rtol=1e-10, atol=1e-12)


def test_out_of_memory_at_the_smallest_chunk_is_raised(monkeypatch):
    module, X, _ = built("deep")

    def none(self, *args, **kwargs):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(ModuleFunction, "rows", none)
    with pytest.warns(RuntimeWarning, match="out of memory"), pytest.raises(RuntimeError, match="CUDA out of memory"):
        LevenbergMarquardt(module, seed=0).step(X, torch.zeros(N, 3, dtype=torch.float64))


class Limited(nn.Module):
    """Runs out of memory on more rows than `most`, and with a graph on more than `most_graph`."""

    def __init__(self, most, most_graph):
        super().__init__()
        self.most, self.most_graph = most, most_graph
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def forward(self, X):
        if len(X) > (self.most_graph if torch.is_grad_enabled() else self.most):
            raise torch.OutOfMemoryError("out of memory")
        return self.layers(X)


@pytest.mark.parametrize("settings", [{}, {"solver": "cg"}, {"solver": "cholesky", "alpha": "bayes"}], ids=str)
def test_out_of_memory_in_a_forward_pass_halves_its_rows(settings):
    torch.manual_seed(0)
    module = Limited(40, 8)
    twin = copy.deepcopy(module)
    twin.most = twin.most_graph = 1000
    X = torch.randn(80, 3, dtype=torch.float64)
    steps = [LevenbergMarquardt(m, seed=0, **settings) for m in (module, twin)]
    with pytest.warns(RuntimeWarning, match="out of memory; the .* now .* of jacobian_max_rows=|rows at once"):
        losses = [steps[0].step(X, X[:, 0].sin()).loss for _ in range(3)]
    assert losses == pytest.approx([steps[1].step(X, X[:, 0].sin()).loss for _ in range(3)], rel=1e-10)


def test_a_step_goes_on_from_the_loss():
    module, X = counting()
    y, weights = X[:, 0].sin(), torch.linspace(1, 2, 50, dtype=torch.float64)
    optimizer = LevenbergMarquardt(module, alpha=0.3, seed=0)
    optimizer.step(X, y, weights)
    optimizer.forget()
    residual = module(X)[:, 0].detach() - y
    squares = sum(float(layer.weight.detach().square().sum()) for layer in (module[0], module[2]))
    expected = float(weights @ residual.square() / 2 + 0.3 * squares / 2) / float(weights.sum())
    loss = optimizer.loss(X, y, weights)
    assert loss == pytest.approx(expected, rel=1e-12)
    Counting.calls = 0
    result = optimizer.step(X, y, weights)
    assert result.initial_loss == loss
    assert Counting.calls == result.attempts
    optimizer.param_groups[0]["alpha"] = 0.0  # what a step goes on from is not the loss with the old penalty
    fit_alone = float(weights @ (module(X)[:, 0].detach() - y).square() / 2 / weights.sum())
    assert optimizer.step(X, y, weights).initial_loss == pytest.approx(fit_alone, rel=1e-12)


def inplace(n_inputs, n_hidden):
    return nn.Sequential(nn.Linear(n_inputs, n_hidden), nn.ReLU(inplace=True), nn.Linear(n_hidden, 1)).double()


def last_layer_zero():
    module = inplace(3, 8)
    nn.init.zeros_(module[2].weight)
    return module, torch.randn(40, 3).double(), torch.ones(40).double()


def all_units_active_at_first():
    module = inplace(1, 2)
    start = {"0.weight": [[-1.0], [-0.8]], "0.bias": [0.1, 1.0], "2.weight": [[0.5, 0.3]], "2.bias": [0.0]}
    module.load_state_dict({name: torch.tensor(values) for name, values in start.items()})
    return module, torch.linspace(-2, 2, 40).double()[:, None], torch.ones(40).double()


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def forward(self, X):
        return nn.functional.linear(torch.tanh(self.encoder(X)), self.encoder.weight.T)


def no_weight_on_first_rows():
    return Autoencoder().double(), torch.randn(40, 3).double(), (torch.arange(40) > 9).double()


class Sorting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, X):
        order = X[:, 0].argsort(stable=True)
        return self.net(X[order])[order.argsort()]


def sorted_at_first():
    X = torch.randn(40, 2).double()
    return Sorting().double(), X[X[:, 0].argsort()], torch.ones(40).double()


class Trend(nn.Module):
    """One parameter in units so large that the rows of all others are small beside its own."""

    def __init__(self):
        super().__init__()
        self.trend, self.hidden, self.last = nn.Linear(1, 1), nn.Linear(1, 4), nn.Linear(4, 1)

    def forward(self, X):
        hidden = torch.tanh(self.hidden(X[:, 1:]))
        return self.trend(X[:, :1]) + nn.functional.linear(hidden, self.last.weight, self.last.bias)


def large_units():
    X = torch.stack([torch.linspace(1.6e9, 1.7e9, 40), torch.linspace(-1, 1, 40)], 1).double()
    return Trend().double(), X, torch.ones(40).double()


def saturates_later():
    layers = nn.Linear(2, 8), nn.Hardtanh(-0.5, 0.5, inplace=True), nn.Linear(8, 1)
    nn.init.uniform_(layers[0].weight, -0.05, 0.05)
    nn.init.zeros_(layers[0].bias)
    return nn.Sequential(*layers).double(), torch.rand(40, 2).double(), torch.ones(40).double()


@pytest.mark.parametrize(
    "case",
    [
        last_layer_zero,
        all_units_active_at_first,
        no_weight_on_first_rows,
        sorted_at_first,
        large_units,
        saturates_later,
    ],
)
def test_modules_that_look_layerwise_at_the_start(case):
    torch.manual_seed(0)
    module, X, weights = case()
    function = ModuleFunction(module)
    vector, eye = function.vector(), torch.eye(function.outputs(function.vector(), X).shape[1]).double()
    list(function.rows(vector, None, X, weights[:, None, None] * eye, chunk=len(X)))
    X, vector = X[torch.randperm(len(X))], vector + 0.3 * torch.randn(len(vector)).double()
    rows = torch.cat(list(function.rows(vector, None, X, eye.expand(len(X), -1, -1), chunk=len(X))))
    expected = torch.autograd.functional.jacobian(lambda v: function.outputs(v, X), vector)
    scale = expected.abs().amax((0, 1)).clamp_min(1e-3)
    torch.testing.assert_close(rows / scale, expected / scale, rtol=1e-9, atol=1e-9)
    assert not function.layerwise.works


def test_a_hook_that_returns_more_than_a_tensor():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)
            self.first.register_forward_hook(lambda layer, inputs, output: (output, output.square()))

        def forward(self, X):
            one, two = self.first(X)
            return self.last(one + two)

    torch.manual_seed(0)
    X, y = torch.randn(20, 2).double(), torch.randn(20, 1).double()
    assert LevenbergMarquardt(Net().double()).step(X, y).jacobian == "functional"


def test_layers_called_by_keyword():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 2, 2), nn.Linear(2, 1)

        def forward(self, x):
            return self.second(input=torch.tanh(self.first(input=x)).flatten(1))

    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        X, y, module = torch.rand(30, 1, 2, 2, dtype=dtype), torch.rand(30, dtype=dtype), Net().to(dtype)
        results = [LevenbergMarquardt(copy.deepcopy(module), jacobian=way).step(X, y) for way in ("auto", "functional")]
        assert results[0].jacobian == "layerwise"
        assert results[0].loss == pytest.approx(results[1].loss, rel=1e-4 if dtype == torch.float32 else 1e-10)
