"""Damping: update rules and scaling matrices against hand-made tables."""

import math

import pytest
import torch

from sklm.engine.damping import Damping, MultiplicativeDamping, NielsenDamping, resolve_damping

R = "rejected"


def replay(damping, events):
    """Return the damping factors after every event: a gain ratio, or R for a rejection."""
    values = []
    for event in events:
        if event == R:
            damping.rejected()
        else:
            damping.accepted(event)
        damping.clip()
        values.append(damping.value)
    return values


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("events", "expected"),
    [  # Nielsen 1999, eq. 2.5, worked out by hand from lambda = 1
        ([1.0], [1 / 3]),
        ([0.5], [1.0]),
        ([0.75], [7 / 8]),
        ([0.25], [9 / 8]),
        ([0.0], [2.0]),
        ([0.9], [1 - 0.512]),
        ([1 / 2 + (2 / 3) ** (1 / 3) / 2], [1 / 3]),
        ([1.7], [1 / 3]),
        ([1e300], [1 / 3]),
        ([math.inf], [1 / 3]),
        ([R, R, R, R], [2.0, 8.0, 64.0, 1024.0]),
        ([R, R, 0.5, R, R], [2.0, 8.0, 8.0, 16.0, 64.0]),
        ([1.0, 1.0, R], [1 / 3, 1 / 9, 2 / 9]),
    ],
)
def test_nielsen_follows_the_published_rule(events, expected):
    assert replay(NielsenDamping(initial=1.0), events) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("settings", "events", "expected"),
    [
        ({}, [0.5, 0.5, R, R], [0.1, 0.01, 0.1, 1.0]),
        ({}, [0.001, 1.0, 5.0], [0.1, 0.01, 0.001]),
        ({"increase": 3.0, "decrease": 0.5}, [R, R, 1.0], [3.0, 9.0, 4.5]),
        ({"decrease": 1.0}, [1.0, R], [1.0, 10.0]),
    ],
    ids=["ten up, ten down", "gain ratio is ignored", "own factors", "never down"],
)
def test_multiplicative_rule(settings, events, expected):
    assert replay(MultiplicativeDamping(initial=1.0, **settings), events) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("kind", [NielsenDamping, MultiplicativeDamping])
def test_the_factor_stays_within_its_bounds(kind):
    damping = kind(initial=1.0, minimum=0.25, maximum=30.0)
    assert replay(damping, [R] * 8)[-1] == 30.0
    assert replay(damping, [1.0] * 8)[-1] == 0.25
    assert min(replay(damping, [R])) > 0.25


@pytest.mark.parametrize("kind", [NielsenDamping, MultiplicativeDamping])
def test_long_series_of_rejections_stay_finite(kind):
    assert replay(kind(), [R] * 5000)[-1] == 1e20


def test_after_the_maximum_nielsen_comes_down_again():
    damping = NielsenDamping(initial=1.0, maximum=100.0)
    replay(damping, [R] * 50)
    assert replay(damping, [1.0, R]) == pytest.approx([100 / 3, 200 / 3])


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ("identity", [1.0, 1.0, 1.0]),
        ("marquardt", [4.0, 1.0, 9.0]),
        ("max", [9.0, 9.0, 9.0]),
        ("more", [4.0, 1.0, 9.0]),
        ("auto", [4.0, 1.0, 9.0]),
    ],
)
@pytest.mark.parametrize("kind", [NielsenDamping, MultiplicativeDamping])
def test_scaling_of_a_first_step(kind, scaling, expected):
    # a curvature of exactly zero counts as 1, as in MINPACK
    scaled = kind(scaling=scaling).scale(vector(4, 0, 9), None, 3)
    assert scaled.tolist() == expected
    assert scaled.dtype == torch.float64


@pytest.mark.parametrize("scaling", ["identity", "marquardt", "max", "more", "auto"])
def test_parameters_without_influence_get_one(scaling):
    assert NielsenDamping(scaling=scaling).scale(vector(0, 0), None, 2).tolist() == [1.0, 1.0]


def test_more_keeps_the_running_maximum():
    damping = NielsenDamping(scaling="more")
    steps = [vector(4, 0, 9), vector(1, 2, 10), vector(5, 1, 0), vector(0, 0, 0)]
    expected = [[4, 1, 9], [4, 2, 10], [5, 2, 10], [5, 2, 10]]
    assert [damping.scale(step, None, 3).tolist() for step in steps] == expected


def test_zero_curvature_leaves_no_trace_in_the_running_maximum():
    # the 1 that stands for zero is not a curvature: a later, smaller one must count as it is
    damping = NielsenDamping(scaling="more")
    damping.scale(vector(0, 1), None, 2)
    assert damping.scale(vector(0.25, 1), None, 2).tolist() == [0.25, 1.0]


@pytest.mark.parametrize("scaling", ["marquardt", "max", "identity"])
def test_the_other_scalings_have_no_memory(scaling):
    damping = NielsenDamping(scaling=scaling)
    damping.scale(vector(100, 100), None, 2)
    expected = {"marquardt": [1.0, 2.0], "max": [2.0, 2.0], "identity": [1.0, 1.0]}[scaling]
    assert damping.scale(vector(1, 2), None, 2).tolist() == expected


def test_running_maximum_over_subsets_of_the_parameters():
    damping = NielsenDamping(scaling="more")

    def scale(indices, *diagonal):
        chosen = None if indices is None else torch.tensor(indices)
        return damping.scale(vector(*diagonal), chosen, 4).tolist()

    assert scale([0, 2], 5, 1) == [5, 1]
    assert scale([1, 2], 7, 0.5) == [7, 1]
    assert scale([0], 2) == [5]
    assert scale([3], 0) == [1]
    assert scale(None, 1, 1, 3, 2) == [5, 7, 3, 2]
    assert scale([2, 3], 1, 8) == [3, 8]
    assert scale(None, 0, 0, 0, 0) == [5, 7, 3, 8]


@pytest.mark.parametrize("indices", [None, [1, 2]], ids=["all", "subset"])
@pytest.mark.parametrize("scaling", ["identity", "marquardt", "max", "more"])
def test_scaling_leaves_its_arguments_and_earlier_results_alone(scaling, indices):
    damping = NielsenDamping(scaling=scaling)
    chosen = None if indices is None else torch.tensor(indices)
    diagonal = vector(3, 2)
    first = damping.scale(diagonal, chosen, 2 if indices is None else 3)
    copy = first.clone()
    damping.scale(vector(9, 9), chosen, 2 if indices is None else 3)
    assert diagonal.tolist() == [3, 2]
    assert torch.equal(first, copy)


@pytest.mark.parametrize("kind", [NielsenDamping, MultiplicativeDamping])
def test_state_round_trip_continues_alike(kind):
    damping = kind(initial=0.5, scaling="more", maximum=1e6)
    damping.scale(vector(4, 1), None, 2)
    replay(damping, [R, R, 0.6])
    state = damping.state_dict()
    assert not {"initial", "scaling", "maximum", "minimum"} & set(state)  # settings stay those of the new object
    restored = kind(initial=0.5, scaling="more", maximum=1e6)
    restored.load_state_dict(state)
    assert restored.value == damping.value
    assert restored.scale(vector(1, 3), None, 2).tolist() == [4, 3]
    assert replay(restored, [R, 0.9, R]) == replay(damping, [R, 0.9, R])


def test_the_growth_of_nielsen_is_part_of_the_state():
    damping = NielsenDamping(initial=1.0)
    replay(damping, [R, R])
    restored = NielsenDamping()
    restored.load_state_dict(damping.state_dict())
    assert replay(restored, [R]) == [64.0]


def test_a_state_is_a_copy():
    damping = NielsenDamping(scaling="more")
    damping.scale(vector(4, 1), None, 2)
    state = damping.state_dict()
    replay(damping, [R])
    damping.scale(vector(100, 100), torch.tensor([0, 1]), 2)
    restored = NielsenDamping(scaling="more")
    restored.load_state_dict(state)
    assert restored.value == 1e-3
    assert restored.scale(vector(0, 0), None, 2).tolist() == [4, 1]


@pytest.mark.parametrize(
    ("name", "kind", "scaling"),
    [
        ("nielsen", NielsenDamping, "auto"),
        ("standard", MultiplicativeDamping, "identity"),
        ("fletcher", MultiplicativeDamping, "marquardt"),
    ],
)
def test_names(name, kind, scaling):
    damping = resolve_damping(name)
    assert type(damping) is kind
    assert damping.scaling == scaling
    assert damping.value == 1e-3
    changed = resolve_damping(name, {"initial": 5.0, "scaling": "max", "minimum": 1e-3, "maximum": 7.0})
    assert (changed.value, changed.scaling, changed.minimum, changed.maximum) == (5.0, "max", 1e-3, 7.0)


@pytest.mark.parametrize("name", ["standard", "fletcher"])
def test_names_take_the_factors(name):
    damping = resolve_damping(name, {"increase": 4.0, "decrease": 0.25, "initial": 1.0})
    assert replay(damping, [R, 1.0, 1.0]) == [4.0, 1.0, 0.25]


class Fixed(Damping):
    def accepted(self, gain_ratio):
        pass

    def rejected(self):
        self.value *= 7


def test_subclasses_and_instances():
    assert isinstance(resolve_damping(Fixed), Fixed)
    assert resolve_damping(Fixed, {"initial": 3.0}).value == 3.0
    instance = Fixed(initial=2.0)
    resolved = resolve_damping(instance)
    assert replay(resolved, [1.0, R]) == [2.0, 14.0]
    assert instance.value == 2.0  # the copy has moved


@pytest.mark.parametrize(
    ("damping", "keywords", "message"),
    [
        (
            "nielson",
            {},
            r"`damping` must be one of 'nielsen', 'standard', 'fletcher'; got 'nielson'; did you mean 'nielsen'\?",
        ),
        (3.0, {}, r"`damping` must be one of .* or a subclass or an instance of Damping; got 3.0"),
        (None, {}, r"`damping` must be one of .*; got None"),
        (dict, {}, r"`damping` must be one of .*; got <class 'dict'>"),
        ("nielsen", {"increase": 2.0}, r"`damping__increase` is not a parameter of NielsenDamping; it takes initial, "),
        ("standard", {"inital": 2.0}, r"`damping__inital` is not a parameter .* did you mean 'initial'\?"),
        (NielsenDamping(), {"initial": 1.0}, r"`damping` is an instance, so `damping__initial` cannot be applied"),
        ("nielsen", {"scaling": "mor"}, r"`damping__scaling` must be one of .*; got 'mor'; did you mean 'more'\?"),
        ("nielsen", {"initial": 0.0}, r"`damping__initial` must be a finite number >= 1e-15 and <= 1e\+20; got 0.0"),
        ("nielsen", {"initial": -1}, r"`damping__initial` must be a finite number .*; got -1\."),
        ("nielsen", {"initial": math.nan}, r"`damping__initial` must be a finite number .*; got nan"),
        ("nielsen", {"initial": "1"}, r"`damping__initial` must be a finite number .*; got '1'"),
        ("nielsen", {"initial": True}, r"`damping__initial` must be a finite number .*; got True"),
        ("nielsen", {"initial": 10.0, "maximum": 1.0}, r"`damping__initial` must be .* <= 1; got 10.0"),
        ("nielsen", {"minimum": 0}, r"`damping__minimum` must be a finite number > 0; got 0\."),
        ("nielsen", {"minimum": 2.0, "maximum": 1.0}, r"`damping__maximum` must be a finite number >= 2; got 1.0"),
        ("nielsen", {"maximum": math.inf}, r"`damping__maximum` must be a finite number >= 1e-15; got inf"),
        ("standard", {"increase": 1.0}, r"`damping__increase` must be a finite number > 1; got 1.0"),
        ("standard", {"decrease": 0.0}, r"`damping__decrease` must be a finite number > 0 and <= 1; got 0.0"),
        ("fletcher", {"decrease": 1.5}, r"`damping__decrease` must be a finite number > 0 and <= 1; got 1.5"),
    ],
)
def test_errors_name_the_parameter_the_rule_and_the_value(damping, keywords, message):
    with pytest.raises(ValueError, match=message):
        resolve_damping(damping, keywords)
