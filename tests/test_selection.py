"""Selection: which positions move in a step."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklm.engine.selection import LayerSelection, RandomSelection, Selection, resolve_selection

# first Linear (3 -> 4), second Linear (4 -> 2), and a parameter of the module itself
SIZES = {"scale": 1, "first.weight": 12, "first.bias": 4, "deep.second.weight": 8, "deep.second.bias": 2}
LAYERS = [[0], list(range(1, 17)), list(range(17, 27))]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_valid(chosen, n_params):
    assert chosen.dtype == torch.int64
    assert chosen.ndim == 1
    positions = chosen.tolist()
    assert positions == sorted(set(positions))
    assert positions[0] >= 0
    assert positions[-1] < n_params


@pytest.mark.parametrize(
    ("subset_size", "count", "sweep"),
    [
        (1, 1, 27),
        (10, 10, 3),
        (13, 13, 3),
        (14, 14, 2),
        (27, 27, 1),
        (1000, 27, 1),
        (np.int64(5), 5, 6),
        (1.0, 27, 1),
        (0.1, 3, 9),
        (1e-9, 1, 27),
        (np.float64(0.1), 3, 9),
    ],
)
def test_size_of_a_random_subset(subset_size, count, sweep):
    selection = RandomSelection(subset_size=subset_size)
    chosen = selection.select(SIZES, 0, generator())
    assert_valid(chosen, 27)
    assert len(chosen) == count
    assert selection.steps_per_sweep(SIZES) == sweep


def test_a_half_is_the_default():
    assert len(RandomSelection().select({"weight": 40}, 0, generator())) == 20
    assert RandomSelection().steps_per_sweep({"weight": 40}) == 2


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    subset_size=st.one_of(st.integers(1, 200), st.floats(1e-6, 1.0)),
    seed=st.integers(0, 2**31),
)
def test_random_subsets_are_sorted_distinct_and_within_range(sizes, subset_size, seed):
    named = {f"layer{i}.weight": size for i, size in enumerate(sizes)}
    n_params = sum(sizes)
    selection = RandomSelection(subset_size=subset_size)
    chosen = selection.select(named, 3, generator(seed))
    assert_valid(chosen, n_params)
    assert len(chosen) * selection.steps_per_sweep(named) >= n_params


@pytest.mark.parametrize("selection", [RandomSelection(), LayerSelection(order="random")], ids=["random", "layer"])
def test_the_generator_alone_decides(selection):
    first = [selection.select(SIZES, step, generator(step)).tolist() for step in range(20)]
    torch.manual_seed(7)
    again = [selection.select(SIZES, step, generator(step)).tolist() for step in range(20)]
    assert again == first
    assert len({tuple(chosen) for chosen in first}) > 1


@pytest.mark.parametrize("selection", [RandomSelection(), LayerSelection(order="random")], ids=["random", "layer"])
def test_the_callers_random_numbers_are_untouched(selection):
    before = torch.get_rng_state()
    selection.select(SIZES, 0, generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_random_subsets_reach_every_parameter_equally_often():
    selection, source = RandomSelection(subset_size=9), generator()
    counts = torch.zeros(27)
    for step in range(3000):
        counts[selection.select(SIZES, step, source)] += 1
    # binomial(3000, 1/3): standard deviation 26; five of them
    assert float((counts - 1000).abs().max()) < 130


@pytest.mark.parametrize("step", range(7))
def test_cyclic_layers_come_in_turn(step):
    chosen = LayerSelection(order="cyclic").select(SIZES, step, generator())
    assert_valid(chosen, 27)
    assert chosen.tolist() == LAYERS[step % 3]


def test_one_cyclic_sweep_moves_every_parameter_once():
    selection = LayerSelection()
    moved = [selection.select(SIZES, step, generator()) for step in range(selection.steps_per_sweep(SIZES))]
    assert torch.cat(moved).tolist() == list(range(27))


def test_random_layers_are_whole_layers_and_all_come():
    selection, source = LayerSelection(order="random"), generator()
    chosen = [selection.select(SIZES, step, source).tolist() for step in range(60)]
    assert all(layer in LAYERS for layer in chosen)
    assert all(layer in chosen for layer in LAYERS)
    assert selection.steps_per_sweep(SIZES) == 3


def test_layers_of_a_torch_module_are_its_submodules():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    selection = LayerSelection()
    assert selection.steps_per_sweep(sizes) == 2
    assert selection.select(sizes, 0, generator()).tolist() == list(range(16))
    assert selection.select(sizes, 1, generator()).tolist() == list(range(16, 26))


def test_a_module_with_parameters_of_its_own_is_one_layer():
    selection = LayerSelection()
    assert selection.steps_per_sweep({"a": 1, "b": 1}) == 1
    assert selection.select({"a": 1, "b": 1}, 5, generator()).tolist() == [0, 1]


class First(Selection):
    def __init__(self, *, count=1):
        self.count = count

    def select(self, sizes, step, generator):
        return torch.arange(self.count)


@pytest.mark.parametrize(
    ("given_", "keywords", "kind", "attributes"),
    [
        ("random", {}, RandomSelection, {"subset_size": 0.5}),
        ("random", {"subset_size": 3}, RandomSelection, {"subset_size": 3}),
        ("layer", {}, LayerSelection, {"order": "cyclic"}),
        ("layer", {"order": "random"}, LayerSelection, {"order": "random"}),
        (LayerSelection, {"order": "random"}, LayerSelection, {"order": "random"}),
        (First, {"count": 2}, First, {"count": 2}),
    ],
)
def test_names_and_classes(given_, keywords, kind, attributes):
    resolved = resolve_selection(given_, keywords)
    assert type(resolved) is kind
    assert {name: getattr(resolved, name) for name in attributes} == attributes


def test_none_stays_none_and_instances_are_copied():
    instance = First(count=4)
    assert resolve_selection(None) is None
    resolved = resolve_selection(instance)
    assert resolved is not instance
    assert resolved.count == 4
    assert resolved.steps_per_sweep(SIZES) == 1


@pytest.mark.parametrize(
    ("given_", "keywords", "message"),
    [
        ("randm", {}, r"`selection` must be one of 'random', 'layer'; got 'randm'; did you mean 'random'\?"),
        (0.5, {}, r"`selection` must be one of .* or a subclass or an instance of Selection; got 0.5"),
        (None, {"subset_size": 2}, r"`selection__subset_size` needs `selection='random'` or 'layer'; got None"),
        (First(), {"count": 2}, r"`selection` is an instance, so `selection__count` cannot be applied to it"),
        ("layer", {"subset_size": 2}, r"`selection__subset_size` is not a parameter of LayerSelection; it takes order"),
        ("random", {"subset": 2}, r"`selection__subset` is not .* did you mean 'subset_size'\?"),
        ("layer", {"order": "cycle"}, r"`selection__order` must be one of .*; got 'cycle'; did you mean 'cyclic'\?"),
        ("random", {"subset_size": 0}, r"`selection__subset_size` must be an integer >= 1; got 0"),
        ("random", {"subset_size": -3}, r"`selection__subset_size` must be an integer >= 1; got -3"),
        ("random", {"subset_size": True}, r"`selection__subset_size` must be an integer >= 1; got True"),
        ("random", {"subset_size": 0.0}, r"`selection__subset_size` must be a finite number > 0 and <= 1; got 0.0"),
        ("random", {"subset_size": 1.5}, r"`selection__subset_size` must be a finite number > 0 and <= 1; got 1.5"),
        ("random", {"subset_size": math.nan}, r"`selection__subset_size` must be a finite number .*; got nan"),
        ("random", {"subset_size": "half"}, r"`selection__subset_size` must be a finite number .*; got 'half'"),
        ("random", {"subset_size": None}, r"`selection__subset_size` must be a finite number .*; got None"),
    ],
)
def test_errors_name_the_parameter_the_rule_and_the_value(given_, keywords, message):
    with pytest.raises(ValueError, match=message):
        resolve_selection(given_, keywords)
