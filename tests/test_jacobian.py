"""`sklm.engine.jacobian`: the oracle is plain autograd, one output at a time, on the module itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sklm.engine.inputs import call_module, count_samples, map_tensors, split_arguments, tensors
from sklm.engine.jacobian import ModuleFunction
from sklm.engine.memory import GPU_CHUNK_BYTES, samples_per_chunk
from sklm.engine.modes import preserved_rng, steady_batchnorm
from sklm.engine.trial import check_reach

N = 5

# torch's own note on operators that `vmap` runs in a loop (attention, weight_norm); the numbers are the same
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def flat_parameters(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in trainable(module)])


def autograd_jacobian(module: nn.Module, inputs) -> Tensor:
    """Return J of shape (n_samples, n_outputs, n_params) by one backward pass per output number."""
    parameters = trainable(module)
    outputs = call_module(module, inputs)
    outputs = outputs.reshape(len(outputs), -1)
    rows = []
    for number in outputs.reshape(-1):
        if not number.requires_grad:
            rows.append(torch.zeros(sum(p.numel() for p in parameters), dtype=number.dtype))
            continue
        grads = torch.autograd.grad(number, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows).reshape(*outputs.shape, -1)


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        return self.net(x).squeeze(-1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x).tanh())


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.rate = self.weight

    def forward(self, x):
        return x @ self.weight + (x * self.rate).exp().sum(-1)


class SharedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x).tanh())


class Transposed(nn.Module):
    """A parameter whose storage is a transposed one, and one that is a strided view of another tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64).T)
        self.bias = nn.Parameter(torch.randn(8, dtype=torch.float64)[::2])
        assert not self.weight.is_contiguous()
        assert not self.bias.is_contiguous()

    def forward(self, x):
        return (x @ self.weight + self.bias).tanh()


class WithBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("shift", torch.randn(2))
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x):
        return (self.linear(x) * self.shift + self.count).sin()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, words):
        return self.head(self.embedding(words).mean(1)).tanh()


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(2, 3)
        self.right = nn.Linear(3, 3)

    def forward(self, a, b):
        return self.left(a).tanh() * self.right(b)


class NestedInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(2, 2)
        self.right = nn.Linear(3, 2)

    def forward(self, a, others):
        return self.left(a).tanh() * self.right(others["b"]) + others["pair"][0] - others["pair"][1]


class Branching(nn.Module):
    """Python control flow on values: `vmap` refuses it."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 2)
        self.two = nn.Linear(3, 2)

    def forward(self, x):
        return torch.stack([self.one(row).tanh() if row[0] > 0 else self.two(row).exp() for row in x])


class Ignoring(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(3, 1)
        self.unused = nn.Linear(3, 1)

    def forward(self, x):
        return self.used(x)


class Constant(nn.Module):
    """An output that depends on no parameter, and branching, so that the fallback meets it too."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return torch.stack([row * 2 if row[0] > 0 else row for row in x])


def frozen_first() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net[0].weight.requires_grad_(False)
    return net


def eval_batchnorm() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    net(draw(20, 3))
    return net.eval()


ZOO = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), lambda: draw(N, 3)),
    "vector_output": (Squeezed, lambda: draw(N, 3)),
    "multi_output": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 3)), lambda: draw(N, 3)),
    "image_output": (lambda: nn.Conv2d(1, 2, 2), lambda: draw(N, 1, 3, 3)),
    "tied_weights": (Tied, lambda: draw(N, 3)),
    "two_names": (TwoNames, lambda: draw(N, 3)),
    "shared_layer": (SharedLayer, lambda: draw(N, 3)),
    "frozen": (frozen_first, lambda: draw(N, 3)),
    "non_contiguous": (Transposed, lambda: draw(N, 3)),
    "buffers": (WithBuffer, lambda: draw(N, 3)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)),
        lambda: draw(N, 1, 6, 6),
    ),
    "layer_norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)), lambda: draw(N, 3)),
    "group_norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 1)), lambda: draw(N, 3)),
    "batchnorm_eval": (eval_batchnorm, lambda: draw(N, 3)),
    "gru": (Recurrent, lambda: draw(N, 4, 2)),
    "attention": (Attention, lambda: draw(N, 3, 4)),
    "embedding": (Words, lambda: torch.randint(6, (N, 4))),
    "weight_norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)),
        lambda: draw(N, 3),
    ),
    "dict_inputs": (TwoInputs, lambda: {"b": draw(N, 3), "a": draw(N, 2)}),
    "tuple_inputs": (TwoInputs, lambda: (draw(N, 2), draw(N, 3))),
    "nested_inputs": (NestedInputs, lambda: (draw(N, 2), {"b": draw(N, 3), "pair": (draw(N, 2), draw(N, 2))})),
    "control_flow": (Branching, lambda: draw(N, 3)),
    "ignored_parameter": (Ignoring, lambda: draw(N, 3)),
    "constant_output": (Constant, lambda: draw(N, 2)),
}

zoo = pytest.mark.parametrize("name", ZOO)


def build(name: str):
    make, data = ZOO[name]
    return make().double(), data()


def all_rows(function: ModuleFunction, inputs, factor: Tensor, *, indices=None, chunk: int = N, seed=None) -> Tensor:
    vector = function.vector()
    return torch.cat(list(function.rows(vector, indices, inputs, factor, chunk=chunk, seed=seed)))


@zoo
@pytest.mark.parametrize("k", [1, 3])
def test_rows_are_factor_times_jacobian(name, k):
    module, inputs = build(name)
    expected = autograd_jacobian(module, inputs)
    factor = draw(N, k, expected.shape[1])
    actual = all_rows(ModuleFunction(module), inputs, factor)
    assert actual.shape == (N, k, expected.shape[2])
    torch.testing.assert_close(actual, factor @ expected, rtol=1e-11, atol=1e-12)


@zoo
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
def test_every_chunk_size_gives_the_same_rows(name, chunk):
    module, inputs = build(name)
    jacobian = autograd_jacobian(module, inputs)
    factor = draw(N, 2, jacobian.shape[1])
    function = ModuleFunction(module)
    blocks = list(function.rows(function.vector(), None, inputs, factor, chunk=chunk))
    assert [len(block) for block in blocks] == [min(chunk, N - start) for start in range(0, N, chunk)]
    torch.testing.assert_close(torch.cat(blocks), factor @ jacobian, rtol=1e-11, atol=1e-12)


@zoo
def test_subset_of_the_parameters(name):
    module, inputs = build(name)
    jacobian = autograd_jacobian(module, inputs)
    factor = draw(N, 2, jacobian.shape[1])
    indices = torch.arange(jacobian.shape[2])[1::2]
    actual = all_rows(ModuleFunction(module), inputs, factor, indices=indices, chunk=2)
    torch.testing.assert_close(actual, factor @ jacobian[:, :, indices], rtol=1e-11, atol=1e-12)


@zoo
def test_outputs_are_those_of_the_module_at_any_vector(name):
    module, inputs = build(name)
    function = ModuleFunction(module)
    torch.testing.assert_close(function.vector(), flat_parameters(module), rtol=0, atol=0)
    vector = function.vector() + 0.1 * draw(function.n_params)
    actual = function.outputs(vector, inputs)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    function.assign(vector)
    with torch.no_grad():
        expected = call_module(module, inputs)
    torch.testing.assert_close(actual, expected.reshape(N, -1), rtol=1e-13, atol=1e-13)
    assert any(not torch.equal(before[key], value) for key, value in module.state_dict().items())
    torch.testing.assert_close(flat_parameters(module), vector, rtol=0, atol=0)


@zoo
def test_the_module_is_not_touched(name):
    module, inputs = build(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    inputs_before = map_tensors(torch.clone, inputs)
    function = ModuleFunction(module)
    outputs = function.outputs(function.vector() + 1, inputs)
    all_rows(function, inputs, draw(N, 1, outputs.shape[1]))
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert all(p.grad is None for p in module.parameters())
    for one, other in zip(tensors(inputs), tensors(inputs_before), strict=True):
        assert torch.equal(one, other)


def test_only_control_flow_falls_back_from_vmap():
    for name in ("mlp", "conv", "tied_weights", "dict_inputs", "weight_norm", "embedding", "attention"):
        module, inputs = build(name)
        function = ModuleFunction(module)
        all_rows(function, inputs, draw(N, 1, function.outputs(function.vector(), inputs).shape[1]))
        assert function.functional.vmap_works, name
    module, inputs = build("control_flow")
    function = ModuleFunction(module)
    all_rows(function, inputs, draw(N, 1, 2))
    assert not function.functional.vmap_works


def test_tied_weights_are_counted_once_and_frozen_ones_not():
    assert ModuleFunction(Tied().double()).n_params == 9 + 3 + 3
    function = ModuleFunction(frozen_first().double())
    assert list(function.sizes) == ["0.bias", "2.weight", "2.bias"]
    assert function.n_params == 4 + 8 + 2


def test_ignored_parameter_has_zero_columns():
    module, inputs = build("ignored_parameter")
    rows = all_rows(ModuleFunction(module), inputs, torch.ones(N, 1, 1, dtype=torch.float64))
    assert rows[:, :, :4].abs().min() > 0
    assert torch.equal(rows[:, :, 4:], torch.zeros_like(rows[:, :, 4:]))


def test_rows_in_float32():
    module, inputs = build("mlp")
    expected = autograd_jacobian(module, inputs)
    function = ModuleFunction(module.float())
    actual = all_rows(function, inputs.float(), torch.ones(N, 1, 1))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_one_sample_and_one_parameter():
    module = nn.Linear(1, 1, bias=False).double()
    rows = all_rows(ModuleFunction(module), torch.tensor([[3.0]]).double(), torch.tensor([[[2.0]]]).double())
    assert rows.tolist() == [[[6.0]]]


# --- random modules ---


class NoisyLinear(nn.Module):
    """Linear in its parameters given the random mask, so that the mask can be read off rows and outputs."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.dropout = nn.Dropout(0.5, inplace=inplace)
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return (self.dropout(x * 1.0) * self.weight).sum(-1, keepdim=True)


@pytest.mark.parametrize("chunk", [1, 2, N])
@pytest.mark.parametrize("indices", [None, [0, 2, 5]], ids=["all", "some"])
def test_dropout_rows_and_outputs_share_one_mask(chunk, indices):
    function = ModuleFunction(NoisyLinear().double())
    x = torch.ones(N, 6, dtype=torch.float64)
    chosen = None if indices is None else torch.tensor(indices)
    ones = torch.ones(N, 1, 1, dtype=torch.float64)
    rows = all_rows(function, x, ones, indices=chosen, chunk=chunk, seed=3)[:, 0]
    assert set(rows.unique().tolist()) <= {0.0, 2.0}  # the mask over 1 - p
    # outputs are linear in the parameters: f(e_j) is column j of the mask
    columns = [function.outputs(unit, x, seed=3, chunk=chunk)[:, 0] for unit in torch.eye(6).double()]
    mask = torch.stack(columns, 1)
    torch.testing.assert_close(rows, mask if indices is None else mask[:, indices], rtol=0, atol=0)
    assert len({tuple(row) for row in mask.tolist()}) > 1  # samples have masks of their own


class NoisyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 2))

    def forward(self, x):
        return self.net(x)


class NoisyBranching(NoisyNet):
    """Random numbers before control flow: `vmap` fails after it has drawn."""

    def forward(self, x):
        hidden = self.net(x)
        return torch.stack([row if row[0] > -1e9 else -row for row in hidden])


class NoisyRecurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, num_layers=2, dropout=0.4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.gru(x[:, None, :].expand(-1, 2, -1))[0][:, -1])


NOISY = {"dropout": NoisyNet, "dropout_then_control_flow": NoisyBranching, "gru_dropout": NoisyRecurrent}


@pytest.mark.parametrize("chunk", [1, 3, N])
@pytest.mark.parametrize("first", ["outputs", "rows"])
@pytest.mark.parametrize("name", NOISY)
def test_random_rows_are_the_derivative_of_random_outputs(name, chunk, first):
    """Central differences of outputs(vector, seed); step 1e-5, so errors stay below 1e-8."""
    function = ModuleFunction(NOISY[name]().double())
    x, vector = draw(N, 3), function.vector()
    factor = torch.eye(2, dtype=torch.float64).expand(N, 2, 2)
    early = function.outputs(vector, x, seed=11, chunk=chunk) if first == "outputs" else None
    rows = all_rows(function, x, factor, chunk=chunk, seed=11)
    columns = []
    for unit in torch.eye(function.n_params, dtype=torch.float64) * 1e-5:
        up = function.outputs(vector + unit, x, seed=11, chunk=chunk)
        down = function.outputs(vector - unit, x, seed=11, chunk=chunk)
        columns.append((up - down) / 2e-5)
    torch.testing.assert_close(rows, torch.stack(columns, -1), rtol=1e-6, atol=1e-8)
    if early is not None:
        torch.testing.assert_close(function.outputs(vector, x, seed=11, chunk=chunk), early, rtol=0, atol=0)


def test_other_seeds_give_other_masks():
    function = ModuleFunction(NoisyLinear().double())
    x = draw(N, 6)
    outputs = [function.outputs(function.vector(), x, seed=seed, chunk=N) for seed in (0, 0, 1)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("chunk", [2, N])
def test_a_module_that_draws_nothing_ignores_the_seed(chunk):
    module = NoisyNet().double().eval()
    function, x = ModuleFunction(module), draw(N, 3)
    with torch.no_grad():
        expected = module(x)
    actual = function.outputs(function.vector(), x, seed=5, chunk=chunk)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)
    factor = draw(N, 2, 2)
    rows = all_rows(function, x, factor, chunk=chunk, seed=5)
    torch.testing.assert_close(rows, factor @ autograd_jacobian(module, x), rtol=1e-11, atol=1e-12)


def test_preserved_rng_restores_the_global_state():
    before = torch.get_rng_state()
    with preserved_rng(torch.device("cpu")):
        torch.manual_seed(123)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), preserved_rng(torch.device("cpu")):
        {}[torch.rand(3)]
    assert torch.equal(torch.get_rng_state(), before)


# --- batch normalization ---


def batchnorm_net() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    for _ in range(3):
        net(draw(20, 3) * 2 + 1)
    return net.train()


def test_steady_batchnorm_uses_and_keeps_running_statistics():
    net, x = batchnorm_net(), draw(N, 3)
    net[2] = nn.Sequential(nn.Tanh(), nn.Dropout(0.5))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with steady_batchnorm(net.modules()):
        assert not net[1].training
        assert net.training
        assert net[2][1].training  # the others stay in their mode
        inside = net[1](net[0](x))
    assert net[1].training
    layer, hidden = net[1], net[0](x)
    expected = (hidden - layer.running_mean) / (layer.running_var + layer.eps).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(inside, expected)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_steady_batchnorm_leaves_layers_in_eval_mode_and_restores_after_an_error():
    net = batchnorm_net()
    net.append(nn.BatchNorm1d(1).double().eval())
    with pytest.raises(KeyError), steady_batchnorm(net.modules()):
        raise KeyError
    assert net[1].training
    assert not net[4].training


def test_batchnorm_rows_do_not_mix_samples():
    net, x = batchnorm_net(), draw(N, 3)
    function, ones = ModuleFunction(net), torch.ones(N, 1, 1, dtype=torch.float64)
    changed = x.clone()
    changed[0] += 10
    with steady_batchnorm(net.modules()):
        rows, others = (all_rows(function, data, ones) for data in (x, changed))
        expected = autograd_jacobian(net, x)
    torch.testing.assert_close(rows[1:], others[1:], rtol=0, atol=0)
    assert not torch.allclose(rows[0], others[0])
    torch.testing.assert_close(rows, expected, rtol=1e-11, atol=1e-12)


def test_batchnorm_without_running_statistics_raises():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with (
        pytest.raises(ValueError, match="track_running_stats=False mixes the samples"),
        steady_batchnorm(net.modules()),
    ):
        pass
    assert net[1].training


# --- second derivatives and pullbacks ---


class Curve(nn.Module):
    def __init__(self):
        super().__init__()
        self.height = nn.Parameter(torch.tensor(1.3))
        self.rates = nn.Parameter(torch.tensor([0.7, 0.2]))

    def forward(self, x):
        return self.height * torch.exp(-self.rates[0] * x) + torch.sin(self.rates[1] * x * self.height)


SMOOTH = {
    "curve": (Curve, lambda: draw(N)),
    "net, one output": (Squeezed, lambda: draw(N, 3)),
    "net, two outputs": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), lambda: draw(N, 3)),
    "tied": (Tied, lambda: draw(N, 3)),
    "shared layer": (SharedLayer, lambda: draw(N, 3)),
    "buffer": (WithBuffer, lambda: draw(N, 3)),
    "strided": (Transposed, lambda: draw(N, 4)[:, :3]),
}
by_smooth = pytest.mark.parametrize("name", SMOOTH)


@by_smooth
def test_second_derivative_is_that_of_the_hessian(name):
    make, inputs = SMOOTH[name]
    function, x = ModuleFunction(make().double()), inputs()
    vector, direction = function.vector(), draw(function.n_params)
    outputs = function.outputs(vector, x)
    expected = torch.empty_like(outputs)
    for i in range(outputs.shape[0]):
        for j in range(outputs.shape[1]):
            hessian = torch.autograd.functional.hessian(lambda v, i=i, j=j: function.outputs(v, x)[i, j], vector)
            expected[i, j] = direction @ hessian @ direction
    found = function.second_derivative(vector, 0.01 * direction, x, outputs) / 0.01**2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not found.requires_grad


@by_smooth
def test_second_derivative_is_of_second_order_in_the_direction(name):
    make, inputs = SMOOTH[name]
    function, x = ModuleFunction(make().double()), inputs()
    vector, direction = function.vector(), draw(function.n_params)
    outputs = function.outputs(vector, x)
    exact, *found = (
        function.second_derivative(vector, length * direction, x, outputs) / length**2 for length in (0.01, 0.1, 0.2)
    )
    errors = [float((estimate - exact).norm()) for estimate in found]
    assert errors[0] <= 1e-12 or errors[1] / errors[0] == pytest.approx(4, rel=0.1)


def test_second_derivative_by_hand():
    """The second derivative of a exp(-b x) along (u, v) is (-2 u v x + a v^2 x^2) exp(-b x)."""

    class Decay(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([3.0, 0.5], dtype=torch.float64))

        def forward(self, x):
            return self.theta[0] * torch.exp(-self.theta[1] * x)

    x, u, v = torch.tensor([0.0, 1.0, 2.0]).double(), 2.0, -1.0
    function = ModuleFunction(Decay())
    outputs = function.outputs(function.vector(), x)
    found = function.second_derivative(function.vector(), torch.tensor([u, v]).double() / 100, x, outputs)
    expected = (-2 * u * v * x + 3 * v**2 * x**2) * torch.exp(-0.5 * x) / 100**2
    torch.testing.assert_close(found, expected[:, None], rtol=1e-5, atol=1e-12)


def test_second_derivative_of_a_linear_module_is_zero():
    function = ModuleFunction(nn.Linear(3, 2).double())
    x = draw(N, 3)
    outputs = function.outputs(function.vector(), x)
    found = function.second_derivative(function.vector(), draw(function.n_params), x, outputs)
    torch.testing.assert_close(found, torch.zeros(N, 2).double(), rtol=0, atol=1e-12)


@by_smooth
def test_pullback_is_the_transposed_jacobian(name):
    make, inputs = SMOOTH[name]
    module, x = make().double(), inputs()
    function = ModuleFunction(module)
    jacobian = autograd_jacobian(module, x)
    cotangent = draw(*jacobian.shape[:2])
    found = function.pullback(function.vector(), cotangent, x)
    torch.testing.assert_close(found, torch.einsum("nk,nkp->p", cotangent, jacobian), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("inputs", [tuple, dict])
def test_second_derivative_and_pullback_take_nested_inputs(inputs):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([2.0, 3.0]).double())

        def forward(self, a, b):
            return self.weight[0] * self.weight[1] * a + b

    a, b = draw(N), draw(N)
    function = ModuleFunction(Product())
    given = (a, b) if inputs is tuple else {"b": b, "a": a}
    outputs = function.outputs(function.vector(), given)
    second = function.second_derivative(function.vector(), torch.tensor([1.0, 1.0]).double(), given, outputs)
    torch.testing.assert_close(second, 2 * a[:, None], rtol=0, atol=1e-11)
    pulled = function.pullback(function.vector(), torch.ones(N, 1).double(), given)
    torch.testing.assert_close(pulled, a.sum() * torch.tensor([3.0, 2.0]).double())


def test_second_derivative_changes_neither_parameters_nor_gradients():
    module = Squeezed().double()
    function, x = ModuleFunction(module), draw(N, 3)
    before = function.vector()
    function.second_derivative(before + 1, draw(function.n_params), x, function.outputs(before + 1, x))
    function.pullback(before + 1, draw(N, 1), x)
    assert torch.equal(function.vector(), before)
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


# --- assign ---


def test_assign_writes_every_parameter_in_the_order_of_the_vector():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    function = ModuleFunction(module)
    wanted = torch.arange(function.n_params, dtype=torch.float64)
    function.assign(wanted)
    assert torch.equal(torch.nn.utils.parameters_to_vector(module.parameters()), wanted)


@pytest.mark.parametrize("size", [0, 25, 27])
def test_assign_refuses_another_length(size):
    function = ModuleFunction(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double())
    before = function.vector()
    with pytest.raises((ValueError, RuntimeError)):
        function.assign(torch.zeros(size, dtype=torch.float64))
    assert torch.equal(function.vector(), before)


def test_vector_is_a_copy():
    module = nn.Linear(2, 1)
    vector = ModuleFunction(module).vector()
    assert not vector.requires_grad
    vector += 1
    assert not torch.equal(vector[:2], module.weight.detach().reshape(-1))


def test_per_element():
    function = ModuleFunction(nn.Linear(3, 2))
    assert function.per_element(lambda p: p.ndim >= 2).tolist() == [True] * 6 + [False] * 2


# --- construction and outputs: errors ---


def all_frozen() -> nn.Module:
    return nn.Linear(2, 1).requires_grad_(False)


def mixed_dtypes() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).double())


def complex_parameters() -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nn.Tanh, "`module` has no trainable parameters"),
        (all_frozen, "`module` has no trainable parameters"),
        (mixed_dtypes, r"must be float32 or all float64.*torch.float32 on cpu, torch.float64 on cpu"),
        (complex_parameters, "must be float32 or all float64.*complex64"),
    ],
    ids=["none", "frozen", "mixed_dtypes", "complex"],
)
def test_unusable_modules(make, message):
    with pytest.raises(ValueError, match=message):
        ModuleFunction(make())


class Returning(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1).double())
        self.function = function

    def forward(self, x):
        return self.function(x * self.weight)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x, x), "`module` must return a tensor .*; got tuple"),
        (lambda x: x[:2], r"one row per sample.*for 5 samples it returned shape \(2, 3\)"),
        (lambda x: x.mean(), r"one row per sample.*returned shape \(\)"),
        (lambda x: x.T, r"one row per sample.*returned shape \(3, 5\)"),
    ],
    ids=["tuple", "too_few_rows", "scalar", "transposed"],
)
def test_outputs_of_a_wrong_kind(function, message):
    module_function = ModuleFunction(Returning(function))
    with pytest.raises(ValueError, match=message):
        module_function.outputs(module_function.vector(), draw(N, 3))


# --- helpers ---


def test_map_tensors_and_tensors_keep_order_and_structure():
    a, b, c = draw(2), draw(2), draw(2)
    nested = (a, {"b": b, "deep": [c]})
    doubled = map_tensors(lambda tensor: 2 * tensor, nested)
    assert isinstance(doubled, tuple)
    assert list(doubled[1]) == ["b", "deep"]
    torch.testing.assert_close(doubled[1]["deep"][0], 2 * c)
    assert [t is u for t, u in zip(tensors(nested), (a, b, c), strict=True)] == [True] * 3


@pytest.mark.parametrize("inputs", [None, (torch.zeros(2), "text"), {"a": 3.0}], ids=["none", "text", "number"])
def test_map_tensors_refuses_other_leaves(inputs):
    with pytest.raises(ValueError, match="must be tensors, or tuples and dicts of tensors"):
        map_tensors(torch.clone, inputs)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [(torch.zeros(3), 3), ((torch.zeros(4, 2), {"a": torch.zeros(4)}), 4), (torch.zeros(0, 2), 0)],
    ids=["vector", "nested", "empty"],
)
def test_count_samples(inputs, expected):
    assert count_samples(inputs) == expected


@pytest.mark.parametrize(
    "inputs", [(torch.zeros(3), torch.zeros(4)), {"a": torch.zeros(3), "b": torch.tensor(1.0)}, ()],
    ids=["lengths", "scalar_beside", "nothing"],
)  # fmt: skip
def test_count_samples_refuses_unequal_lengths(inputs):
    with pytest.raises(ValueError, match="same number of samples"):
        count_samples(inputs)


def test_split_arguments():
    a, b = draw(1), draw(1)
    assert split_arguments(a) == ((a,), {})
    assert split_arguments((a, b)) == ((a, b), {})
    assert split_arguments([a, b]) == ((a, b), {})
    assert split_arguments({"x": a}) == ((), {"x": a})


@pytest.mark.parametrize(
    ("max_rows", "n_samples", "rows_per_sample", "expected"),
    [(None, 7, 2, 7), (6, 7, 2, 3), (1, 7, 2, 1), (5, 7, 2, 2), (100, 7, 2, 7), (7, 0, 1, 1), (None, 0, 1, 1)],
)
def test_samples_per_chunk(max_rows, n_samples, rows_per_sample, expected):
    assert samples_per_chunk(max_rows, n_samples, rows_per_sample, torch.zeros(10)) == expected


def test_samples_per_chunk_auto_fits_the_budget():
    row = torch.zeros(1000, dtype=torch.float64)
    chunk = samples_per_chunk("auto", 10**9, 2, row)
    assert 1 <= chunk <= GPU_CHUNK_BYTES // (8 * 1000) // 2
    assert samples_per_chunk("auto", 5, 1, row) == 5
    huge = torch.zeros(1).expand(10**10)  # one row beyond any budget is still one row at a time
    assert samples_per_chunk("auto", 5, 1, huge) == 1


class Spectrum(nn.Module):
    """Two parameters, six outputs per sample."""

    def __init__(self, mixes=False):
        super().__init__()
        self.width, self.height = nn.Parameter(draw(1)), nn.Parameter(draw(1))
        self.grid, self.mixes = torch.linspace(0, 1, 6, dtype=torch.float64), mixes

    def forward(self, X):
        shift = X.mean() if self.mixes else 0.0
        return self.height * torch.exp(-self.width * (X - shift) * self.grid)


class NoForwardMode(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


class BackwardOnly(Spectrum):
    def forward(self, X):
        return self.height * NoForwardMode.apply(-self.width * X * self.grid)


@pytest.mark.parametrize("indices", [None, torch.tensor([1])])
@pytest.mark.parametrize(("make", "method"), [(Spectrum, "forward"), (BackwardOnly, "functional")])
def test_rows_of_fewer_parameters_than_outputs(make, method, indices):
    module, X, factor = make(), draw(N, 1), draw(N, 4, 6)
    function = ModuleFunction(module)
    found = torch.cat(list(function.rows(function.vector(), indices, X, factor, chunk=2)))
    expected = factor @ autograd_jacobian(module, X)
    torch.testing.assert_close(found, expected if indices is None else expected[:, :, indices])
    assert function.method == method


def test_forward_mode_is_not_taken_where_samples_mix():
    module, X, factor = Spectrum(mixes=True), draw(N, 1), draw(N, 6, 6)
    function = ModuleFunction(module)
    found = next(iter(function.rows(function.vector(), None, X, factor, chunk=N)))
    alone = torch.cat([autograd_jacobian(module, X[i : i + 1]) for i in range(N)])
    torch.testing.assert_close(found, factor @ alone)
    assert function.method == "functional"


class Hidden(nn.Module):
    """Takes parameters from elsewhere than their attributes."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor([0.5]))
        self.kind, self.held = kind, (self.a, self.b)

    def forward(self, x):
        a, b = self.held
        if self.kind == "in part":
            a = a * self.a
        if self.kind == "not at all":
            a, b = self.a, self.b
        return a * torch.exp(-b * x[:, 0])


@pytest.mark.parametrize(("kind", "name"), [("all", "a"), ("in part", "a")])
def test_parameters_that_would_not_be_replaced(kind, name):
    with pytest.raises(ValueError, match=rf"takes its parameter {name} from elsewhere .* use the attribute"):
        check_reach(ModuleFunction(Hidden(kind).double()), draw(4, 1))


def test_parameters_that_are_only_kept_elsewhere_too():
    module = Hidden("not at all").double()
    before = torch.get_rng_state()
    check_reach(ModuleFunction(module), draw(4, 1))
    assert all(p.grad is None for p in module.parameters())
    assert not torch.equal(before, torch.get_rng_state())  # by `draw` alone
    for name in ZOO:
        module, inputs = build(name)
        check_reach(ModuleFunction(module), inputs)


def test_forward_mode_is_not_used_where_it_is_another_derivative():
    """Forward mode does not know `padding_idx`."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.factor = nn.Embedding(4, 1, padding_idx=0), nn.Parameter(torch.ones(1))

        def forward(self, words):
            return self.factor * self.layer(words)[:, :, 0]

    function = ModuleFunction(Padded().double())
    words = torch.arange(N * 8).reshape(N, 8) % 4
    rows = all_rows(function, words, torch.eye(8).double().expand(N, -1, -1))
    assert function.method == "functional"
    assert not rows[:, :, 1].any()  # of the padding row; the factor comes first


def test_forward_mode_is_tried_with_random_factors():
    """The outputs of a softmax add up to a constant, so that a sum of them tells nothing."""

    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor([0.3, 0.7]))

        def forward(self, x):
            return torch.softmax(torch.cumsum(self.a[0] * x, 0) + self.a[1] * x**2, 1)

    function = ModuleFunction(Mixing().double())
    all_rows(function, draw(N, 4), torch.eye(4).double().expand(N, -1, -1))
    assert function.method != "forward"


class Strict(nn.Module):
    """Takes no parameters but those near the start."""

    def __init__(self, error):
        super().__init__()
        self.layer, self.error = nn.Linear(2, 2), error
        self.start = self.layer.weight.detach().clone()

    def forward(self, x):
        if self.error is not None and bool((self.layer.weight - self.start).abs().max() > 1e-3):
            raise self.error
        return self.layer(x)


@pytest.mark.parametrize("error", [ValueError("outside"), RuntimeError("outside")])
def test_a_module_that_raises_near_the_start(error):
    function = ModuleFunction(Strict(error))
    rows = all_rows(function, draw(N, 2).float(), torch.eye(2).expand(N, -1, -1))
    assert function.method == "layerwise"
    assert rows.shape == (N, 2, 6)


def test_parameters_without_numbers_and_zero_rows_at_first():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.empty, self.a = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.tensor(1.0))
            self.held = (self.a,)

        def forward(self, x):
            return torch.relu(self.held[0] * x[:, 0])

    with pytest.raises(ValueError, match="parameter a from elsewhere"):
        check_reach(ModuleFunction(Gated()), torch.cat([torch.zeros(5, 1), torch.ones(5, 1)]))


class Radial(nn.Module):
    """Where `vmap` of torch, over samples and their rows at once, gives wrong derivatives of `cdist`."""

    def __init__(self, n_outputs, *, drop=0.0):
        super().__init__()
        self.centers, self.last = nn.Parameter(torch.randn(4, 2)), nn.Linear(4, n_outputs)
        self.dropout = nn.Dropout(drop)

    def forward(self, x):
        return self.last(self.dropout(torch.exp(-torch.cdist(x, self.centers).square())))


class Determinant(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(2, 3, 3))

    def forward(self, x):
        return torch.linalg.det(self.matrix + x[:, :1, None, None].expand(-1, 2, 3, 3).tril())


@pytest.mark.parametrize("make", [lambda: Radial(3), Determinant], ids=["cdist", "det"])
def test_operations_that_torch_does_not_batch_twice(make):
    torch.manual_seed(0)
    function, x = ModuleFunction(make().double()), draw(N, 2)
    outputs = function.outputs(function.vector(), x).shape[1]
    factor = draw(N, 3, outputs)
    for chunk in (1, N):
        found = all_rows(function, x, factor, chunk=chunk)
        torch.testing.assert_close(found, function.rows_alone(function.vector(), x, factor))
    assert function.method == "functional"


def test_operations_that_torch_does_not_batch_twice_beside_dropout():
    torch.manual_seed(0)
    module, x, factor = Radial(3, drop=0.5).double(), draw(N, 2), draw(N, 3, 3)
    function = ModuleFunction(module)
    at_once = all_rows(function, x, factor, seed=3)
    alone = torch.cat([all_rows(function, x, factor[:, k : k + 1], seed=3) for k in range(3)], 1)
    torch.testing.assert_close(at_once, alone)
    assert function.method == "functional"
    assert all(part.training for part in module.modules())
