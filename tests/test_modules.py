"""`sklm.modules`: scaling against numpy, initial weights against the formula of Nguyen and Widrow."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from sklm import MLP, LevenbergMarquardt, LMRegressor
from sklm.modules import ACTIVATIONS, nguyen_widrow_


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("hidden", "sizes"),
    [((), [3, 2]), (5, [3, 5, 2]), ((5,), [3, 5, 2]), ([4, 6], [3, 4, 6, 2]), (1, [3, 1, 2])],
    ids=["linear", "int", "tuple", "list", "one_unit"],
)
def test_shapes(hidden, sizes):
    module = MLP(3, 2, hidden_layer_sizes=hidden).double()
    assert module(draw(7, 3)).shape == (7, 2)
    weights = [p.shape for p in module.parameters() if p.ndim == 2]
    assert weights == [(b, a) for a, b in pairwise(sizes)]


def test_numpy_integers_are_layer_sizes():
    assert MLP(3, 1, hidden_layer_sizes=np.int64(4))(torch.zeros(2, 3)).shape == (2, 1)
    assert MLP(3, 1, hidden_layer_sizes=(np.int64(4),))(torch.zeros(2, 3)).shape == (2, 1)


def test_forward_is_the_formula():
    module = MLP(2, 1, hidden_layer_sizes=(3,)).double()
    x, y = draw(9, 2) * 5 + 7, draw(9, 1) * 3 - 2
    module.init_from_data(x, y)
    W1, b1, W2, b2 = (p.detach().numpy() for p in module.parameters())
    X, Y = x.numpy(), y.numpy()
    hidden = np.tanh((X - X.mean(0)) / X.std(0) @ W1.T + b1)
    np.testing.assert_allclose(module(x).detach().numpy(), (hidden @ W2.T + b2) * Y.std(0) + Y.mean(0), rtol=1e-12)


@pytest.mark.parametrize("shape", [(12,), (12, 1), (12, 3)], ids=["vector", "column", "matrix"])
def test_standardisation_equals_numpy(shape):
    x, y = draw(12, 4) * torch.tensor([1e-6, 1.0, 1e3, 1e6]).double() + 5, draw(*shape) * 40 + 100
    module = MLP(4, y.numel() // 12).double()
    module.init_from_data(x, y)
    Y = y.numpy().reshape(12, -1)
    np.testing.assert_allclose(module.x_mean.numpy(), x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(module.x_scale.numpy(), x.numpy().std(0), rtol=1e-8)
    np.testing.assert_allclose(module.y_mean.numpy(), Y.mean(0), rtol=1e-12)
    np.testing.assert_allclose(module.y_scale.numpy(), Y.std(0), rtol=1e-10)


def test_weights_are_repeated_rows():
    x, y, weights = draw(6, 2), draw(6), torch.tensor([0.0, 1, 2, 3, 1, 5]).double()
    one, other = MLP(2, 1).double(), MLP(2, 1).double()
    one.init_from_data(x, y, weights)
    repeats = weights.long()
    other.init_from_data(x.repeat_interleave(repeats, 0), y.repeat_interleave(repeats, 0))
    for name in ("x_mean", "x_scale", "y_mean", "y_scale"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e9, -1e-9], ids=str)
@pytest.mark.parametrize("n_samples", [1, 3, 1000])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_constant_columns(value, n_samples, weighted):
    x = torch.full((n_samples, 2), value, dtype=torch.float64)
    module = MLP(2, 1).double()
    module.init_from_data(x, x[:, 0], torch.rand(n_samples).double() + 0.1 if weighted else None)
    assert module.x_scale.tolist() == [1.0, 1.0]
    assert module.y_scale.tolist() == [1e-3 * abs(value) or 1.0]
    torch.testing.assert_close(module.x_mean, x[0], rtol=1e-12, atol=0)
    assert torch.isfinite(module(x)).all()


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_constant_output_has_the_unit_of_the_others(unit):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (120, 2))
    y = np.column_stack([X[:, 0] * X[:, 1], np.full(120, 5.0), 3 * X[:, 0] + 0.1 * rng.standard_normal(120)])
    model = LMRegressor(random_state=0).fit(X, y * [unit, unit, unit])
    assert model.module_.y_scale[1] == model.module_.y_scale[0]
    expected = LMRegressor(random_state=0).fit(X, y).predict(X)
    np.testing.assert_allclose(model.predict(X) / unit, expected, rtol=1e-3, atol=1e-3)


def test_an_output_too_small_to_be_fitted_beside_another_warns():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (200, 3))
    y = np.column_stack([1e3 * (np.sin(3 * X[:, 0]) + 0.1 * rng.standard_normal(200)), X[:, 1] ** 2])
    with pytest.warns(ConvergenceWarning, match=r"the outputs \[1\] hardly vary.* scale y, as by TransformedTarget"):
        LMRegressor(random_state=0).fit(X, y)
    scaled = LMRegressor(random_state=0).fit(X, y / [1e3, 1])
    assert "hardly vary" not in scaled.message_


@pytest.mark.filterwarnings("ignore:max_epochs=100 reached")
@pytest.mark.parametrize("value", [1e-9, 7.0, -3e6, 1e200])
def test_constant_targets_are_predicted(value):
    X = np.random.default_rng(0).standard_normal((60, 3))
    model = LMRegressor(random_state=0).fit(X, np.full(60, value))
    np.testing.assert_allclose(model.predict(X), value, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool], ids=str)
def test_class_indices_leave_the_output_scale_alone(dtype):
    module = MLP(2, 3).double()
    module.init_from_data(draw(6, 2), torch.tensor([0, 1, 2, 1, 0, 2]).to(dtype))
    assert module.y_mean.tolist() == [0.0] * 3
    assert module.y_scale.tolist() == [1.0] * 3
    assert module.x_scale.tolist() != [1.0] * 2


def test_scaling_travels_with_the_state_and_is_not_trained():
    module, other = MLP(2, 1).double(), MLP(2, 1).double()
    x, y = draw(8, 2) * 3, draw(8)
    module.init_from_data(x, y)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
    assert {name for name, _ in module.named_parameters()} == {
        "layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias",
    }  # fmt: skip


def test_init_from_data_leaves_the_data_alone():
    x, y, weights = draw(6, 2), draw(6), torch.rand(6).double()
    copies = x.clone(), y.clone(), weights.clone()
    MLP(2, 1).double().init_from_data(x, y, weights)
    assert all(torch.equal(a, b) for a, b in zip((x, y, weights), copies, strict=True))


@pytest.mark.parametrize("steepness", [1.0, 2.0])
@pytest.mark.parametrize(("units", "fan_in"), [(1, 1), (1, 4), (10, 1), (8, 3), (50, 20)])
def test_nguyen_widrow(units, fan_in, steepness):
    linear = torch.nn.Linear(fan_in, units).double()
    nguyen_widrow_(linear, steepness=steepness)
    norm = steepness * 0.25 * units ** (1 / fan_in)  # for inputs in [-1, 1]; ours fill plus and minus sqrt(3)
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(weight, axis=1), norm / math.sqrt(3), rtol=1e-12)
    expected = np.linspace(-norm, norm, units) if units > 1 else np.zeros(1)
    np.testing.assert_allclose(np.sort(bias), expected, rtol=1e-6, atol=1e-6)  # torch draws them in float32


@pytest.mark.parametrize(("activation", "steepness"), [("tanh", 1.0), ("logistic", 2.0)])
def test_sigmoid_networks_start_as_nguyen_widrow(activation, steepness):
    module = MLP(2, 1, hidden_layer_sizes=(9,), activation=activation)
    norms = module.layers[0].weight.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.full((9,), steepness * 0.25 * 3 / math.sqrt(3)))


@pytest.mark.parametrize("activation", ["relu", "softplus", "silu", "gelu", "identity"])
def test_other_networks_start_as_torch(activation):
    module = MLP(4, 1, hidden_layer_sizes=(9,), activation=activation)
    assert module.layers[0].weight.detach().abs().max() <= 1 / math.sqrt(4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_trains(activation):
    x = torch.linspace(-20, 60, 40, dtype=torch.float64)[:, None]
    y = 1e3 * torch.sigmoid(x[:, 0] / 10) + x[:, 0]
    module = MLP(1, 1, hidden_layer_sizes=(6,), activation=activation).double()
    module.init_from_data(x, y)
    optimizer = LevenbergMarquardt(module, seed=0)
    first = optimizer.step(x, y)
    for _ in range(100):
        last = optimizer.step(x, y)
    line = np.polyfit(x[:, 0].numpy(), y.numpy(), 1)
    linear = np.mean((np.polyval(line, x[:, 0].numpy()) - y.numpy()) ** 2) / 2
    # a network is at least as good as the straight line, and exactly that without an activation
    if activation == "identity":
        assert last.loss == pytest.approx(linear, rel=1e-6)
    else:
        assert last.loss < 0.2 * linear
    assert last.loss < first.initial_loss


def test_activation_functions():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    X = x.numpy()
    expected = {
        "tanh": np.tanh(X),
        "logistic": 1 / (1 + np.exp(-X)),
        "relu": np.maximum(X, 0),
        "softplus": np.log1p(np.exp(X)),
        "silu": X / (1 + np.exp(-X)),
        "gelu": [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in X],
        "identity": X,
    }
    assert set(expected) == set(ACTIVATIONS)
    for name, values in expected.items():
        np.testing.assert_allclose(ACTIVATIONS[name]()(x).numpy(), values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "hidden", [0, -3, (5, 0), (2.5,), [True], True, "abc", (None,), (float("nan"),), 2.5], ids=repr
)
def test_wrong_layer_sizes(hidden):
    with pytest.raises(ValueError, match=r"`module__hidden_layer_sizes` must be integers >= 1; got"):
        MLP(2, 1, hidden_layer_sizes=hidden)


@pytest.mark.parametrize("activation", ["tanhh", None, 3], ids=repr)
def test_wrong_activation(activation):
    with pytest.raises(ValueError, match=r"`module__activation` must be one of 'tanh', .*; got"):
        MLP(2, 1, activation=activation)


def test_torch_defaults_and_other_generators_untouched():
    dtype, state = torch.get_default_dtype(), np.random.get_state()[1].copy()
    MLP(2, 1)
    assert torch.get_default_dtype() == dtype
    assert (np.random.get_state()[1] == state).all()


def test_inputs_of_a_dict_need_a_module_of_their_own():
    X = np.ones((4, 2))
    with pytest.raises(ValueError, match=r"takes one array X; got a dict of inputs\. Pass a module"):
        LMRegressor(module__n_features_in=2).fit({"X": X}, X[:, 0])


def test_a_constant_column_of_large_numbers_in_float32():
    X = torch.cat([torch.randn(50, 2), torch.full((50, 1), 1.7e9)], 1)
    module = MLP(n_features_in=3, n_outputs=1)
    module.init_from_data(X, torch.randn(50))
    assert not ((X - module.x_mean) / module.x_scale)[:, 2].any()


def test_columns_that_the_network_was_not_made_for():
    x = torch.ones(5, 1)
    with pytest.raises(ValueError, match="made for X with n_features_in=3 columns; got 1"):
        MLP(3, 1)(x)  # which would be taken for all three
    with pytest.raises(ValueError, match="made for X with n_features_in=3 columns; got 1"):
        LMRegressor(MLP(3, 1)).fit(x.numpy(), np.ones(5))
    model = LMRegressor(module__n_features_in=3, module__n_outputs=1).initialize()
    with pytest.raises(ValueError, match="made for X with n_features_in=3 columns; got 2"):
        model.predict(np.ones((5, 2)))


def test_columns_are_not_looked_at_where_there_are_none():
    assert MLP(1, 1)(torch.tensor(0.5)).shape == (1,)
    assert torch.vmap(MLP(1, 1))(torch.randn(5)).shape == (5, 1)
    assert torch.fx.symbolic_trace(MLP(2, 1))(torch.ones(3, 2)).shape == (3, 1)
