"""Curves: formulas against NumPy, names and values of parameters, and fits against scipy and scikit-learn."""

import contextlib
import copy
import pickle
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy.optimize import curve_fit, least_squares
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from skorch.callbacks import Callback

from sklm import LMClassifier, LMRegressor, curve, curves
from sklm.curves import Curve
from sklm.curves.formula import FUNCTIONS, OPERATORS, Formula

DECAY = "a * exp(-b * x) + c"
x = np.linspace(0, 4, 40)
X = x[:, None]
y = 3 * np.exp(-1.2 * x) + 0.5 + 0.05 * np.random.default_rng(0).standard_normal(40)


WAVE = np.sin(9 * x + 1) + 0.3 * np.sin(4 * x)


def decay(x, a, b, c):
    return a * torch.exp(-b * x) + c


def decay_numpy(x, a, b, c):
    return a * np.exp(-b * x) + c


def evaluate(text, **values):
    values = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}
    result = Formula(text)(values, torch.zeros((), dtype=torch.float64))
    return torch.as_tensor(result, dtype=torch.float64).numpy()


def fitted(text=DECAY, X=X, y=y, **keywords):
    return LMRegressor(text, random_state=0, **keywords).fit(X, y)


def values_of(model):
    return np.array(list(model.parameters_.values()))


BEST = curve_fit(decay_numpy, x, y, [3, 1, 0.5], ftol=1e-15, xtol=1e-15, gtol=1e-15)[0]  # to about 8 digits


# --- formulas ---

GRID = np.array([-2.5, -1.0, -0.3, 0.0, 0.4, 0.9, 1.0, 1.7, 3.0])
REFERENCES = {
    "clip": lambda v, low, high: np.clip(v, low, high),
    "erf": special.erf,
    "erfc": special.erfc,
    "expit": special.expit,
    "gammaln": special.gammaln,
    "softplus": lambda v: np.logaddexp(0, v),
    "where": lambda condition, one, other: np.where(condition != 0, one, other),
}
ALIASES = {
    **{short: short.replace("a", "arc", 1) for short in ("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh")},
    "clamp": "clip",
    "lgamma": "gammaln",
    "max": "maximum",
    "min": "minimum",
    "pow": "power",
    "sigmoid": "expit",
}
ARGUMENTS = dict.fromkeys(["clip", "where"], "(x, -1, a)")
ARGUMENTS |= dict.fromkeys(["arctan2", "heaviside", "hypot", "logaddexp", "maximum", "minimum", "power"], "(x, a)")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    meant = ALIASES.get(name, name)
    arguments = ARGUMENTS.get(meant, "(x)")
    reference = REFERENCES[meant] if meant in REFERENCES else getattr(np, meant)
    with np.errstate(all="ignore"):
        expected = eval("f" + arguments, {"f": reference, "x": GRID, "a": 0.4})  # noqa: S307
    np.testing.assert_allclose(evaluate(name + arguments, x=GRID, a=0.4), expected, rtol=1e-13, atol=1e-15)


OPERATIONS = ["x + a", "x - a", "x * a", "x / a", "x ** a", "x % a", "+x", "-x", "x < a", "x <= a", "x > a", "x >= a"]
OPERATIONS += ["x == a", "x != a", "a ** x", "a % x", "x ** 2", "2 ** x", "x % 2", "2 / x", "-x ** 2", "2 ** -x ** 2"]
OPERATIONS += ["-2 ** 2 * x", "x - a - 1", "x / a / 2", "x ** a ** 2", "7 % 4 * x", "1e-3 * x", "1_000 * x"]


@pytest.mark.parametrize("text", OPERATIONS)
def test_operators(text):
    with np.errstate(all="ignore"):
        expected = eval(text, {"x": GRID, "a": np.float64(0.4)})  # noqa: S307
    np.testing.assert_allclose(evaluate(text, x=GRID, a=0.4), np.asarray(expected, float), rtol=1e-14)


def test_every_operator_is_tested():
    assert len(OPERATORS) == 14


def test_comparisons_chain():
    np.testing.assert_array_equal(evaluate("-1 <= x < a", x=GRID, a=0.4), (GRID >= -1) & (GRID < 0.4))


@pytest.mark.parametrize(
    ("text", "value"),
    [("pi", np.pi), ("2", 2), ("1 / 0", np.inf), ("1 % 0", np.nan), ("(-8) ** (1 / 3)", np.nan), ("2 ** -1", 0.5)],
)
def test_numbers_alone_follow_numpy(text, value):
    np.testing.assert_equal(float(evaluate(text)), value)


# Operations that IEEE 754 rounds correctly, so NumPy and torch agree to the last bit.
atoms = st.one_of(
    st.sampled_from([("x", "x"), ("a", "a"), ("pi", "pi")]),
    st.one_of(st.integers(0, 9), st.floats(0.125, 100, width=16)).map(lambda v: (f"{v}", f"num({v})")),
)


def compound(parts):
    def join(pattern):
        n = pattern.count("{}")
        return st.tuples(*[parts] * n).map(lambda p: tuple(pattern.format(*(q[i] for q in p)) for i in (0, 1)))

    plain = ["{} + {}", "{} - {}", "{} * {}", "{} / {}", "({})", "-{}", "({}) * ({})", "({}) / ({})", "({}) ** 2"]
    calls = ["abs({})", "maximum({}, {})", "minimum({}, {})", "floor({})", "square({})"]
    compared = [f"({{}} {op} {{}})" for op in ("<", "<=", ">", ">=", "==", "!=")]
    return st.one_of(
        st.sampled_from(plain + calls).flatmap(join),
        st.sampled_from(compared).flatmap(join).map(lambda pair: (pair[0], f"num{pair[1]}")),
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(atoms, compound, max_leaves=12), st.floats(-3, 3))
def test_random_formulas(pair, a):
    names = {f: getattr(np, f) for f in ("abs", "sqrt", "maximum", "minimum", "floor", "square")}
    values = {"x": GRID, "a": np.float64(a), "pi": np.float64(np.pi)}
    with np.errstate(all="ignore"):
        expected = eval(pair[1], names | values | {"num": lambda v: np.asarray(v, float)[()]})  # noqa: S307
    np.testing.assert_array_equal(evaluate(pair[0], x=GRID, a=a), expected)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=20), st.text("ax1.+-*/%(),<>= \n'\"[]{}:", max_size=20)))
def test_any_text_is_a_formula_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        Formula(text)


REFUSED = {
    "attribute": ("a * x.real", "'x.real'"),
    "module": ("a * np.exp(x)", "write the bare name 'exp'"),
    "subscript": ("a * x[0]", r"'x\[0\]'"),
    "lambda": ("lambda v: v", "'lambda v: v'"),
    "list comprehension": ("[v for v in x]", "for v in x"),
    "generator": ("exp(v for v in x)", "for v in x"),
    "list": ("[a, x]", "cannot hold"),
    "tuple": ("a, x", "cannot hold"),
    "dict": ("{a: x}", "cannot hold"),
    "string": ("a * 'x'", "cannot hold"),
    "f-string": ("f'{x}'", "cannot hold"),
    "bytes": ("b'x'", "cannot hold"),
    "boolean": ("a * True", "'True'"),
    "None": ("None", "'None'"),
    "complex": ("1j * x", "'1j'"),
    "walrus": ("(a := x)", "cannot hold"),
    "await": ("await x", "cannot hold"),
    "yield": ("(yield x)", "cannot hold"),
    "not": ("not x", "'not x'"),
    "floor division": ("x // a", "'x // a'"),
    "matrix product": ("x @ a", "'x @ a'"),
    "shift": ("x << 2", "'x << 2'"),
    "in": ("x in a", "'x in a'"),
    "caret": ("a * x ^ 2", r"\*\* instead of \^"),
    "and": ("(x > 0) and (x < 1)", r"\(x > 0\) \* \(x < 1\)"),
    "ampersand": ("(x > 0) & (x < 1)", r"\(x > 0\) \* \(x < 1\)"),
    "bar": ("(x > 0) | (x < 1)", "where"),
    "conditional": ("a if x > 0 else b", r"where\(condition, a, b\)"),
    "keyword argument": ("exp(input=x)", "takes 1 argument"),
    "star argument": ("exp(*x)", r"'\*x'"),
    "double star": ("exp(**x)", "takes 1 argument"),
    "too many arguments": ("exp(x, a)", r"takes 1 argument; got 'exp\(x, a\)'"),
    "too few arguments": ("where(x > 0, a)", "takes 3 arguments"),
    "unknown near": ("a * expp(x)", "did you mean 'exp'"),
    "unknown far": ("a * zzz(x)", "not a known function. There are abs, "),
    "ln": ("a * ln(x)", "did you mean 'log'"),
    "import": ("__import__('os')", "not a known function"),
    "eval": ("eval('1')", "not a known function"),
    "call of a call": ("exp(x)(x)", "not a known function"),
    "function as a name": ("a * exp", "the function exp as a name"),
    "dunder name": ("a * x + __name__", "__name__"),
    "empty": ("", r"not a formula: .*; write one, such as 'a \* exp"),
    "blank": (" \n ", "not a formula"),
    "newline": ("a * x\nb", "not a formula"),
    "semicolon": ("a * x; b", "write one expression, without semicolons"),
    "absolute value": ("a * |x|", r"write abs\(x\)"),
    "factorial": ("a * x!", r"write exp\(gammaln\(n \+ 1\)\)"),
    "constant of a package": ("a * math.pi * x", "write the bare name pi"),
    "assignment": ("y = a * x", "not a formula"),
    "word of Python": ("a * exp(-lambda * x)", "not a formula: .*; lambda is a word of Python, rename it"),
    "statement": ("import os", "not a formula"),
    "unclosed": ("(a * x", r"'\(' was never closed\.$"),
    "unopened": ("a * x)", r"unmatched '\)'\.$"),
    "two names": ("exp(-b x)", "invalid syntax; write \\* for a product"),
    "column with a space": ("a * exp(-time s)", "If 'time s' is a column, rename it: names must be valid Python names"),
    "text": ("a * x * (drug == 'B')", r"code the text as 0 and 1 before: \(table.drug == 'B'\).astype\(int\)"),
    "null byte": ("a\x00x", "null"),
    "trailing operator": ("a * x +", "not a formula"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Formula(text)
    with pytest.raises(ValueError, match="`module`"):
        LMRegressor(text).fit(X, y)


@pytest.mark.parametrize("text", ["10**10**10 * x", "9**9**9**9 * x", "x ** 10000000000", "(-9)**9**9**9 * x"])
def test_huge_powers_do_not_hang(text):
    assert evaluate(text, x=[1.0]).shape == (1,)


def test_long_integers_are_real_numbers():
    np.testing.assert_allclose(evaluate("1" * 30 + " * x", x=[1.0]), [1e30 / 9])


def test_numbers_beyond_float64_are_refused():
    with pytest.raises(ValueError, match="a number above 1e\\+300"):
        Formula("1" * 400 + " * x")


@pytest.mark.parametrize(
    "text",
    ["(" * 5000 + "x" + ")" * 5000, "-" * 5000 + "x", "exp(" * 5000 + "x" + ")" * 5000, "x" + "**x" * 5000],
    ids=["parentheses", "signs", "calls", "powers"],
)
def test_deep_nesting(text):
    with pytest.raises(ValueError, match=r"nested|nesting"):
        Formula(text)


def test_what_parses_also_fits():
    """Depth that the check lets through must not exhaust the stack in the fit."""
    try:
        LMRegressor("+".join(["a * x"] * 490)).fit([[1.0], [2.0]], [1.0, 2.0])
    except ValueError as error:
        assert "nested" in str(error)  # noqa: PT017


def test_names_in_order_of_appearance():
    assert Formula("b * exp(-x / tau) + b + pi * é").names == ["b", "x", "tau", "é"]


# --- which names are inputs ---

TABLE = pd.DataFrame({"who": ["u"] * 40, "t": x, "hole": np.full(40, np.nan), "T": 1 + x**2})


def test_single_column_is_x():
    np.testing.assert_allclose(values_of(fitted()), BEST, rtol=1e-7)


def test_a_named_single_column_is_also_x():
    assert_same = np.testing.assert_array_equal
    assert_same(values_of(fitted(X=TABLE[["t"]])), values_of(fitted()))


def test_several_columns_are_numbered():
    model = fitted("slope * x1 + other * x0", np.c_[x, x**2], 2 * x - 3 * x**2)
    assert model.parameters_ == pytest.approx({"slope": -3, "other": 2})
    assert model.n_features_in_ == 2


def test_columns_by_name_and_unused_ones_ignored():
    model = fitted("a * exp(-b * t) + c", TABLE)
    np.testing.assert_allclose(values_of(model), BEST, rtol=1e-7)
    assert model.n_features_in_ == 4
    assert model.feature_names_in_.tolist() == ["who", "t", "hole", "T"]
    np.testing.assert_array_equal(model.predict(TABLE), fitted().predict(X))


def test_two_columns_by_name_in_any_order():
    model = fitted("p * T + q * t", TABLE, 2 * TABLE["T"] - TABLE["t"])
    assert model.parameters_ == pytest.approx({"p": 2, "q": -1})
    np.testing.assert_allclose(model.predict(TABLE), 2 * TABLE["T"] - TABLE["t"])


def test_unused_columns_of_an_array_may_hold_anything():
    model = fitted("a * exp(-b * x1) + c", TABLE.to_numpy(dtype=object))
    np.testing.assert_allclose(values_of(model), BEST, rtol=1e-7)
    np.testing.assert_allclose(values_of(fitted("a * exp(-b * x1) + c", np.c_[x * np.nan, x])), BEST, rtol=1e-7)


def test_names_of_columns_win_over_parameters():
    model = fitted("k * a + c", pd.DataFrame({"a": x, "b": x}), 2 * x + 1)
    assert model.parameters_ == pytest.approx({"k": 2, "c": 1})


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table[["t", "who", "hole", "T"]],
        lambda table: table.drop(columns="hole"),
        lambda table: table.assign(more=1),
        lambda table: table[["t"]],
    ],
    ids=["reordered", "unused missing", "more", "used alone"],
)
def test_predict_takes_its_columns_by_name(change):
    model = fitted("a * exp(-b * t) + c", TABLE)
    np.testing.assert_array_equal(model.predict(change(TABLE)), model.predict(TABLE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="t"), "now missing: t"),
        (lambda table: table.rename(columns={"t": "u"}), "now missing: t"),
        (lambda table: table.assign(t=np.nan), "NaN"),
        (lambda table: table.assign(t=pd.Timestamp("2020-01-01")), "got dates"),
    ],
    ids=["missing", "renamed", "nan", "dates"],
)
def test_predict_with_another_table(change, message):
    model = fitted("a * exp(-b * t) + c", TABLE)
    with pytest.raises(ValueError, match=message):
        model.predict(change(TABLE))


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("a * exp(-b * tiem) + c * time", "time"),
        ("a * exp(-b * time) + c * Dose", "dose"),
        ("a * exp(-time / tau) + time0", None),
        ("a * exp(-b * time) + A * dose", None),
    ],
    ids=["letters", "case", "with a number", "parameters alone"],
)
def test_a_parameter_like_a_column(text, warned):
    columns = ["time", "dose"]
    if warned is None:
        Curve(text, 2, columns)
        return
    with pytest.warns(UserWarning, match=f"if the column '{warned}' is meant"):
        Curve(text, 2, columns)


def test_names_in_two_forms_of_unicode():
    micro = pd.DataFrame({"\u00b5": x, "z": x})
    model = LMRegressor("a * exp(-b * \u00b5) + c", random_state=0).fit(micro, y)
    np.testing.assert_allclose(values_of(model), BEST, rtol=1e-7)


def test_predict_with_another_width():
    with pytest.raises(ValueError, match="X has 2 features, but LMRegressor is expecting 1 features"):
        fitted().predict(np.c_[x, x])


@pytest.mark.parametrize(
    ("X", "text", "message"),
    [
        (TABLE, "a * exp(-b * tt)", "did you mean 't'"),
        (TABLE, "a * exp(-b * u)", "uses no column of X; its columns are who, t, hole, T"),
        (X, "a * exp(-b * t)", "uses no column of X; its columns are x"),
        (np.c_[x, x], "a * x", "its columns are x0, x1"),
        (X, "exp(-x)", "no parameters"),
        (TABLE, "a * who", r"columns of the curve; not so X\['who'\]"),
        (TABLE, "a * hole", "NaN"),
        (x, "a * x", "Expected 2D array"),
        ({"x": x}, "a * x", "must be a table"),
        (X[:0], "a * x", "0 sample"),
    ],
    ids=["near", "far", "array", "x of two", "no parameters", "strings", "nan", "1-D", "dict", "empty"],
)
def test_wrong_inputs(X, text, message):
    with pytest.raises(ValueError, match=message):
        LMRegressor(text).fit(X, np.zeros(len(x) if len(X) else 0))


def test_function_takes_the_columns_as_its_leading_arguments():
    model = fitted(curve(lambda u, v, p, q: p * u + q * v), np.c_[x, x**2], 2 * x - x**2)
    assert model.parameters_ == pytest.approx({"p": 2, "q": -1})


def test_function_takes_columns_by_argument_name():
    model = fitted(curve(lambda a, t, b, c: a * torch.exp(-b * t) + c), TABLE)
    np.testing.assert_allclose(values_of(model), BEST, rtol=1e-7)


def test_keyword_only_arguments_are_parameters():
    def f(x, a, *, b=1.0, c):
        return decay(x, a, b, c)

    np.testing.assert_allclose(values_of(fitted(curve(f))), BEST, rtol=1e-7)


def test_defaults_are_initial_values():
    def f(x, w=5.2, p=0.0):
        return torch.sin(w * x + p)

    module = Curve(f)
    assert {name: p.item() for name, p in module.named_parameters()} == {"w": 5.2, "p": 0.0}
    module.init_from_data(torch.tensor(X), torch.tensor(y))
    assert {name: p.item() for name, p in module.named_parameters()} == {"w": 5.2, "p": 0.0}
    assert Curve(f, w=4.0).w.item() == 4.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, *a: x, r"named arguments only.*got \*a"),
        (lambda x, **a: x, r"named arguments only.*got \*\*a"),
        (lambda x, /, a: x, "named arguments only"),
        (lambda x: x, "no parameters"),
        (lambda x, a=None: x, "default of a` must be a finite number; got None"),
        (lambda a=1.0: a, "must take the 1 columns of X"),
    ],
    ids=["args", "kwargs", "positional-only", "no parameters", "default", "no input"],
)
def test_wrong_functions(function, message):
    with pytest.raises(ValueError, match=message):
        LMRegressor(curve(function)).fit(X, y)


def test_curve_of_something_else():
    with pytest.raises(ValueError, match="must be a formula or a function; got 3"):
        curve(3)


@pytest.mark.parametrize("f", [decay, lambda x, a=1.0: a * x, lambda x: x], ids=["no defaults", "defaults", "none"])
def test_plain_function_needs_curve(f):
    with pytest.raises(ValueError, match=r"curve\(function\)"):
        LMRegressor(f).fit(X, y)


@pytest.mark.parametrize(
    "f",
    [
        lambda x, a, b: a * np.exp(-b * x),
        lambda x, a, b: np.exp(-b * x) * a,
        lambda x, a, b: a * np.where(x > 1, x, b),
        lambda x, a=1.0, b=1.0: a * np.exp(-b * x),
    ],
    ids=["of a parameter", "first", "where", "with defaults"],
)
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # NumPy about torch
def test_numpy_in_a_function(f):
    with pytest.raises(ValueError, match=r"torch functions, torch\.exp and not numpy\.exp"):
        LMRegressor(curve(f)).fit(X, y)


def test_height_of_a_heaviside_step():
    with pytest.warns(UserWarning, match="parameter b has no influence"):
        model = LMRegressor("a * heaviside(x - b, 0.5) + c", module__b=1).fit(X, 3.0 * (X[:, 0] > 1) + 2)
    assert model.parameters_ == pytest.approx({"a": 3, "b": 1, "c": 2})


def takes_all_columns(X, a, b):
    return a * X[:, 0] + b * X[:, 1]


def unpacks_columns(X, a, b):
    u, v = X
    return a * u + b * v


@pytest.mark.parametrize("f", [takes_all_columns, unpacks_columns])
def test_function_of_all_columns_at_once(f):
    with pytest.raises(ValueError, match=r"shape \(n_samples,\) for each column of X; here X, a; got"):
        LMRegressor(curve(f)).fit(np.column_stack([X, X**2]), y)


def test_branch_in_a_function():
    def step(x, a, b):
        return a if x > 1 else b * x

    with pytest.raises(ValueError, match=r"for all rows at once: torch\.where\(condition, a, b\) and not if"):
        LMRegressor(curve(step)).fit(X, y)


def test_function_that_returns_nothing():
    with pytest.raises(ValueError, match="`module`"):
        LMRegressor(curve(lambda x, a: None)).fit(X, y)


@pytest.mark.parametrize("start", [{}, {"module__a": 1.0, "module__b": 1.0}], ids=["no start", "start"])
def test_several_outputs(start):
    f = curve(lambda x, a, b: torch.stack([a * x, b * x + a], 1))
    model = fitted(f, y=np.c_[2 * x, 3 * x + 2], **start)
    assert model.parameters_ == pytest.approx({"a": 2, "b": 3})
    assert model.predict(X).shape == (40, 2)


def test_constant_curve_is_broadcast():
    assert fitted(curve(lambda x, a: a)).parameters_["a"] == pytest.approx(y.mean())


# --- initial values, bounds, fixed ---

WRONG = {
    "unknown near": ({"module__amplitud": 1.0}, "`module__amplitud` is not a parameter.*did you mean 'amplitude'"),
    "unknown far": ({"module__zzz": 1.0}, "whose parameters are amplitude, rate$|rate\\.$"),
    "input": ({"module__x": 1.0}, "`module__x` is not a parameter"),
    "bounds near": ({"module__bounds": {"rat": (0, 1)}}, "did you mean 'rate'"),
    "bounds of the input": ({"module__bounds": {"x": (0, 1)}}, "not a parameter"),
    "bounds reversed": ({"module__bounds": {"rate": (1, 0)}}, r"lower < upper; got \(1, 0\)"),
    "bounds equal": ({"module__bounds": {"rate": (1, 1)}}, r"lower < upper; got \(1, 1\)"),
    "bounds nan": ({"module__bounds": {"rate": (np.nan, 1)}}, "lower < upper"),
    "bounds text": ({"module__bounds": {"rate": ("0", 1)}}, "must be numbers"),
    "bounds single": ({"module__bounds": {"rate": 3}}, "must be a pair"),
    "bounds triple": ({"module__bounds": {"rate": (0, 1, 2)}}, "must be a pair"),
    "bounds list": ({"module__bounds": [(0, 1)]}, "must be a dict"),
    "outside": ({"module__rate": 2.0, "module__bounds": {"rate": (0, 1)}}, r"within its bounds \(0, 1\); got 2"),
    "fixed near": ({"module__fixed": ("rats",)}, "did you mean 'rate'"),
    "fixed without value": ({"module__fixed": ("rate",)}, "pass `module__rate`"),
    "fixed as text without value": ({"module__fixed": "rate"}, "pass `module__rate`"),
    "fixed number": ({"module__fixed": 3}, "`module__fixed`"),
    "all fixed": (
        {"module__fixed": ("amplitude", "rate"), "module__amplitude": 1.0, "module__rate": 1.0},
        "fixed",
    ),
    "value text": ({"module__rate": "1"}, "`module__rate` must be a finite number; got '1'"),
    "value nan": ({"module__rate": np.nan}, "must be a finite number"),
    "value inf": ({"module__rate": np.inf}, "must be a finite number"),
    "value boolean": ({"module__rate": True}, "must be a finite number"),
    "value None": ({"module__rate": None}, "must be a finite number"),
}


@pytest.mark.parametrize(("keywords", "message"), WRONG.values(), ids=WRONG)
def test_wrong_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        LMRegressor("amplitude * exp(-rate * x)", **keywords).fit(X, y)


def test_fixed_parameters_stay():
    model = fitted(module__fixed=("c",), module__c=0.4)
    expected, _ = curve_fit(lambda x, a, b: decay_numpy(x, a, b, 0.4), x, y, [3, 1])
    assert model.parameters_["c"] == 0.4
    np.testing.assert_allclose(values_of(model)[:2], expected, rtol=1e-6)  # of scipy's ftol


@pytest.mark.parametrize("n_init", [1, 3])
def test_fixed_as_one_name_and_with_restarts(n_init):
    assert fitted(module__fixed="c", module__c=0.4, n_init=n_init).parameters_["c"] == 0.4


class Recorder(Callback):
    """Keeps the parameters after every epoch and every run."""

    def __init__(self):
        self.epochs, self.runs = [], []

    def on_epoch_end(self, net, **kwargs):
        self.epochs.append([p.item() for p in net.module_._parameters.values()])

    def on_train_end(self, net, **kwargs):
        self.runs.append([p.item() for p in net.module_._parameters.values()])


BOXES = {
    "inactive": {"b": (0, None)},
    "rate at its upper bound": {"b": (0, 1)},
    "rate at its lower bound": {"b": (2, 5)},
    "two at bounds": {"a": (None, 2.5), "b": (1.5, None)},
    "level positive": {"c": (0.6, None), "a": (0, 10)},
}


@pytest.mark.parametrize("start", [None, (1.7, 0.8, 0.9)], ids=["search", "start"])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_bounds_against_scipy(box, start):
    lower, upper = (np.array([(box.get(name, (None, None))[side]) for name in "abc"], float) for side in (0, 1))
    lower, upper = np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper)
    begin = np.clip((1.7, 0.8, 0.9), lower, upper)
    keywords = {} if start is None else dict(zip(("module__a", "module__b", "module__c"), begin.tolist(), strict=True))

    recorder = Recorder()
    model = fitted(module__bounds=box, callbacks=[recorder], **keywords)

    path = np.array(recorder.epochs)
    assert np.all((lower <= path) & (path <= upper))
    tight = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
    expected = least_squares(lambda p: decay_numpy(x, *p) - y, begin, bounds=(lower, upper), **tight)
    assert 2 * model.loss_ * len(y) <= 2 * expected.cost * (1 + 1e-9)
    np.testing.assert_allclose(values_of(model), expected.x, rtol=1e-5)  # scipy stays inside by a margin


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["lower", "upper"])
def test_initial_value_on_a_bound(value):
    model = fitted(module__bounds={"b": (0, 1)}, module__b=value)
    assert model.parameters_["b"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["half", "type", "train", "T_destination", "forward", "evaluate", "guess"])
def test_parameters_named_like_attributes_of_a_module(name):
    model = fitted(f"a * exp(-{name} * x) + c", **{f"module__{name}": 1.0})
    np.testing.assert_allclose(values_of(model), BEST, rtol=1e-7)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


# --- an estimator among others ---


def test_instance():
    model = LMRegressor(Curve(DECAY, a=1.0, b=1.0)).fit(X, y)
    np.testing.assert_allclose(values_of(model), BEST, rtol=1e-7)


def test_instance_is_not_trained_in_place():
    module = Curve("a * x2 + c", 3, a=1.0)
    before = copy.deepcopy(module.state_dict())
    data = np.c_[x * np.nan, x * np.nan, x]
    model = LMRegressor(module).fit(data, y)
    assert module.state_dict() == before
    np.testing.assert_array_equal(LMRegressor(module).fit(data, y).predict(data), model.predict(data))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"n_init": 2}, "`n_init` must be 1 for a module instance"), ({"module__a": 1.0}, "is an instance")],
    ids=["n_init", "module__a"],
)
def test_instance_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        LMRegressor(Curve(DECAY), **keywords).fit(X, y)


def test_instance_for_another_table():
    with pytest.raises(ValueError, match=r"column|features"):
        LMRegressor(Curve("a * x1 + b * x0", 2)).fit(X, y)


SETTINGS = {"module__a": 5.0, "module__bounds": {"b": (0, None)}, "module__fixed": ("c",), "module__c": 0.5}
COPIES = {"pickle": lambda model: pickle.loads(pickle.dumps(model)), "deepcopy": copy.deepcopy}  # noqa: S301
SOURCES = {"formula": DECAY, "function": curve(decay), "instance": Curve(DECAY, a=1.0)}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("again", COPIES.values(), ids=COPIES)
def test_copies(again, source):
    model = fitted(source)
    np.testing.assert_array_equal(again(model).predict(X), model.predict(X))
    assert again(model).parameters_ == model.parameters_


def test_clone_and_parameters_round_trip():
    model = LMRegressor(DECAY, n_init=3, **SETTINGS)
    assert clone(model).get_params() == model.get_params()
    assert model.get_params()["module"] == DECAY
    assert LMRegressor().set_params(**model.get_params()).get_params() == model.get_params()
    np.testing.assert_array_equal(
        clone(model).set_params(random_state=0).fit(X, y).predict(X), fitted(n_init=3, **SETTINGS).predict(X)
    )


def test_set_params_takes_effect_in_the_next_fit():
    model = fitted(module__fixed="c", module__c=0.4)
    assert model.set_params(module__c=0.3).fit(X, y).parameters_["c"] == 0.3
    assert model.set_params(module="a * x + c").fit(X, y).parameters_.keys() == {"a", "c"}


GRIDS = {
    "initial value": {"module__a": [1.0, 5.0]},
    "formula": {"module": ["p * x + q", DECAY, "p * x**2 + q * x + r"]},
    "damping": {"damping": ["nielsen", "fletcher"]},
    "n_init": {"n_init": [1, 2]},
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_grid_search(grid):
    folds = KFold(4, shuffle=True, random_state=0)
    search = GridSearchCV(LMRegressor(DECAY, random_state=0), grid, cv=folds, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.95
    if "module" in grid:
        assert search.best_params_ == {"module": DECAY}


def test_cross_val_score():
    folds = KFold(5, shuffle=True, random_state=0)
    assert cross_val_score(LMRegressor(DECAY), X, y, cv=folds).min() > 0.95


def test_pipeline():
    pipeline = make_pipeline(StandardScaler(), LMRegressor("a + b * x"))
    expected = LinearRegression().fit(X, y).predict(X)
    np.testing.assert_allclose(pipeline.fit(X, y).predict(X), expected, rtol=1e-9)


def test_column_transformer():
    columns = ColumnTransformer(
        [("kind", OneHotEncoder(sparse_output=False), ["kind"])],
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    table = pd.DataFrame({"kind": ["old", "new"] * 20, "t": x})
    target = 2 * x + np.where(table["kind"] == "old", 1.0, -1.0)
    model = make_pipeline(columns, LMRegressor("slope * t + old * kind_old + new * kind_new")).fit(table, target)
    assert model[-1].parameters_ == pytest.approx({"slope": 2, "old": 1, "new": -1})


def test_transformed_target():
    model = TransformedTargetRegressor(LMRegressor("a - b * x"), func=np.log, inverse_func=np.exp)
    model.fit(X, 3 * np.exp(-1.2 * x))
    assert model.regressor_.parameters_ == pytest.approx({"a": np.log(3), "b": 1.2})


def test_weights_against_scipy():
    sigma = 0.05 + 0.1 * x
    expected, covariance = curve_fit(decay_numpy, x, y, [3, 1, 0.5], sigma, ftol=1e-15, xtol=1e-15, gtol=1e-15)
    model = LMRegressor(DECAY, random_state=0).fit(X, y, sample_weight=1 / sigma**2)
    np.testing.assert_allclose(values_of(model), expected, rtol=1e-7)
    errors = list(model.standard_errors_.values())
    np.testing.assert_allclose(errors, np.sqrt(np.diag(covariance)), rtol=1e-5)  # scipy's finite differences


@pytest.mark.parametrize("n_init", [1, 3])
@pytest.mark.parametrize("source", [DECAY, curve(decay)], ids=["formula", "function"])
def test_weights_equal_repeated_rows(source, n_init):
    weights = np.random.default_rng(1).integers(0, 4, 40)
    weighted = LMRegressor(source, n_init=n_init, random_state=0).fit(X, y, sample_weight=weights)
    repeated = LMRegressor(source, n_init=n_init, random_state=0).fit(np.repeat(X, weights, 0), np.repeat(y, weights))
    assert weighted.parameters_ == repeated.parameters_


def test_target_column():
    assert fitted(y=y[:, None]).predict(X).shape == (40, 1)
    np.testing.assert_allclose(values_of(fitted(y=y[:, None])), BEST, rtol=1e-7)


def test_other_losses_reach_scipys_minimum():
    noisy = y + np.where(np.arange(40) % 9 == 4, 2.0, 0.0)
    model = fitted(y=noisy, criterion="soft_l1", criterion__delta=0.1)
    tight = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
    best = least_squares(lambda p: decay_numpy(x, *p) - noisy, BEST, loss="soft_l1", f_scale=0.1, **tight)
    np.testing.assert_allclose(values_of(model), best.x, rtol=1e-5)


def test_classifier_is_logistic_regression():
    labels = np.where(np.random.default_rng(0).random(40) < special.expit(2 * x - 4), "yes", "no")
    model = LMClassifier("a + b * x").fit(X, labels)
    expected = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000).fit(X, labels)
    np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(X), rtol=1e-6)
    assert model.predict(X).tolist() == expected.predict(X).tolist()
    assert [model.module_.a.item(), model.module_.b.item()] == pytest.approx(
        [expected.intercept_[0], expected.coef_[0, 0]], rel=1e-6
    )


def test_classifier_of_three_classes_refuses_one_column():
    with pytest.raises(ValueError, match="must return 3 columns"):
        LMClassifier("a + b * x").fit(X, np.arange(40) % 3)


# --- precision ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_curves_are_fitted_in_float64(dtype):
    model = fitted("a * x + c", X.astype(dtype), y.astype(np.float32))
    assert model.dtype_ == torch.float64
    assert "float32" not in model.message_
    expected = LinearRegression().fit(X.astype(dtype).astype(float), y.astype(np.float32).astype(float))
    assert model.parameters_ == pytest.approx({"a": expected.coef_[0], "c": expected.intercept_}, rel=1e-12)


def test_float32_on_request_says_so():
    model = fitted(dtype="float32")
    assert model.dtype_ == torch.float32
    assert "float32 limits the parameters to 7 digits or fewer" in model.message_
    np.testing.assert_allclose(values_of(model), BEST, rtol=1e-4)


# --- starts ---

GRID_X = np.linspace(0.05, 4, 60)
TYPICAL = {
    "exponential": ("a * exp(-b * x) + c", lambda v: 3 * np.exp(-1.2 * v) + 0.5),
    "growth": ("a * exp(b * x)", lambda v: 0.2 * np.exp(1.1 * v)),
    "gaussian": ("a * exp(-(x - m)**2 / (2 * s**2))", lambda v: 3 * np.exp(-((v - 1.8) ** 2) / (2 * 0.4**2))),
    "gaussian on a level": (
        "a * exp(-(x - m)**2 / (2 * s**2)) + c",
        lambda v: 3 * np.exp(-((v - 1.8) ** 2) / (2 * 0.4**2)) + 1,
    ),
    "logistic": ("a / (1 + exp(-k * (x - m)))", lambda v: 3 / (1 + np.exp(-2.5 * (v - 1.8)))),
    "sine": ("a * sin(w * x + p) + c", lambda v: 2 * np.sin(5 * v + 0.7) + 1),
    "michaelis-menten": ("v * x / (k + x)", lambda v: 3 * v / (0.8 + v)),
    "power": ("a * x**b", lambda v: 2 * v**1.6),
    "two exponentials": (
        "a * exp(-b * x) + c * exp(-d * x)",
        lambda v: 3 * np.exp(-4 * v) + 2 * np.exp(-0.7 * v),
    ),
}


@pytest.mark.parametrize("noise", [0.0, 0.03], ids=["clean", "noisy"])
@pytest.mark.parametrize(
    ("scale_x", "scale_y"),
    [(1, 1), (1e-3, 1e5), (1e3, 1e-4), (1, 1e-4)],
    ids=["unit", "small x large y", "large x small y", "small y"],
)
@pytest.mark.parametrize("name", TYPICAL)
def test_global_minimum_without_initial_values(name, scale_x, scale_y, noise):
    formula, f = TYPICAL[name]
    truth = f(GRID_X)
    target = truth + noise * np.ptp(truth) * np.random.default_rng(0).standard_normal(60)
    data = scale_x * GRID_X[:, None]
    found = LMRegressor(formula, random_state=0).fit(data, scale_y * target).predict(data) / scale_y
    rounding = 1e-6 * np.ptp(truth)
    # the least squares solution is nearer to noisy data than the truth is
    assert np.linalg.norm(found - target) <= np.linalg.norm(truth - target) + rounding


def test_random_state_reproduces_and_global_generators_stay():
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    one, other = (LMRegressor("a * sin(w * x + p)", n_init=2, random_state=3).fit(X, WAVE) for _ in range(2))
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert one.parameters_ == other.parameters_
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1][1], after[1][1])
    assert before[2] == after[2]


def test_order_of_rows_does_not_matter():
    order = np.random.default_rng(0).permutation(40)
    assert fitted(X=X[order], y=y[order]).parameters_ == fitted().parameters_


ONE_WAVE = {"module": "a * sin(w * x + p)", "module__w": 4.0, "module__a": 1.0, "module__p": 0.0}  # a side minimum


def fits_from_all_starts(source, n_starts, target, seed=0, **arguments):
    """Return the sums of squares of a fit from each of the starts of a curve, one after the other."""
    generator = torch.get_rng_state()
    torch.manual_seed(seed)
    starts = source.starts(torch.tensor(X), torch.tensor(target), n_starts=n_starts)
    torch.set_rng_state(generator)
    losses = []
    for start in starts:
        initial = {f"module__{name}": value for name, value in start.items()}
        model = LMRegressor(source.extra_repr(), **initial, **arguments).fit(X, target)
        losses.append(np.sum((model.predict(X) - target) ** 2))
    return np.array(losses)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:.*identifiable:UserWarning")
def test_best_of_several_starts_is_kept(seed):
    """Improved as one batch, the starts lead to what the best of separate fits finds."""
    recorder = Recorder()
    one = LMRegressor(**ONE_WAVE, random_state=seed).fit(X, WAVE)
    model = LMRegressor(**ONE_WAVE, n_init=8, random_state=seed, callbacks=[recorder]).fit(X, WAVE)
    separate = fits_from_all_starts(Curve("a * sin(w * x + p)", a=1.0, w=4.0, p=0.0), 8, WAVE, seed)
    loss = np.sum((model.predict(X) - WAVE) ** 2)
    assert loss <= separate.min() + 1e-9
    assert loss < np.sum((one.predict(X) - WAVE) ** 2)
    assert len(recorder.runs) == 1  # one fit, however many starts
    assert model.n_iter_ == len(model.loss_curve_)


def test_first_of_several_starts_has_the_given_values():
    module = Curve("a * sin(w * x + p)", a=1.5, w=4.0)
    module.init_from_data(torch.tensor(X), torch.tensor(WAVE))
    first, *others = module.starts(torch.tensor(X), torch.tensor(WAVE), n_starts=3)
    assert (first["a"], first["w"]) == (1.5, 4.0)
    assert all(other["a"] != 1.5 for other in others)
    assert len(others) == 2


def test_starts_are_improved_within_bounds():
    model = LMRegressor("a * exp(-b * x) + c", module__bounds={"b": (2.0, 3.0)}, n_init=6, random_state=0).fit(X, y)
    alone = LMRegressor("a * exp(-b * x) + c", module__bounds={"b": (2.0, 3.0)}, random_state=0).fit(X, y)
    assert model.parameters_["b"] == 2.0
    assert model.parameters_ == pytest.approx(alone.parameters_, rel=1e-8)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_starts_that_cannot_be_drawn_warn(n_outputs):
    def branching(x, a=1.0, b=1.0):
        return a * torch.exp(-x) if a > 0 else b * x

    def double(x, a=1.0, b=1.0):
        return torch.stack([a * x, b * x], 1)

    function, target = (branching, np.exp(-x)) if n_outputs == 1 else (double, np.c_[x, 2 * x])
    fixed = {"module__fixed": "b"} if n_outputs == 1 else {}
    model = LMRegressor(curve(function), n_init=3, random_state=0, **fixed, **({"module__b": 2.0} if fixed else {}))
    with pytest.warns(UserWarning, match="`n_init` has no effect on"):
        model.fit(X, target)
    np.testing.assert_allclose(model.predict(X), target, atol=1e-8)


def test_starts_that_are_not_finite_are_skipped():
    text = "log(a) * x + c"  # a = 0 at the first start; the others scatter around it
    with pytest.raises(ValueError, match=r"loss is|Jacobian is"):
        LMRegressor(text, module__a=0.0, random_state=0).fit(X, 2 * x)
    model = LMRegressor(text, module__a=0.0, n_init=4, random_state=0).fit(X, 2 * x)
    assert model.parameters_ == pytest.approx({"a": np.exp(2), "c": 0}, abs=1e-6)


def test_no_start_is_finite():
    with pytest.raises(ValueError, match="no start of 3 has a finite loss"):
        LMRegressor("log(a) * x", module__a=-1.0, n_init=3, random_state=0).fit(X, y)


class RandomDecay(torch.nn.Module):
    """A decay that starts at random; it calls `on_forward` first."""

    def __init__(self, on_forward):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Parameter(0.5 + torch.rand(())) for _ in range(3))
        self.on_forward = on_forward

    def forward(self, inputs):
        self.on_forward()
        return decay(inputs[:, 0], self.a, self.b, self.c)


def random_decay(calls, stop_at=None, **arguments):
    """Return an estimator whose starts are fitted one after the other, with Ctrl-C in the call `stop_at`."""

    def on_forward():
        calls.append(1)
        if len(calls) == stop_at:
            signal.raise_signal(signal.SIGINT)

    return LMRegressor(lambda: RandomDecay(on_forward), dtype="float64", random_state=0, **arguments)


@pytest.mark.parametrize("later", [0.02, 0.4, 0.7, 0.97])
@pytest.mark.usefixtures("ctrl_c")
def test_interrupt_in_a_later_start_keeps_the_best(later):
    counts = []
    for n_init in (1, 2):
        calls = []
        random_decay(calls, n_init=n_init).fit(X, y)
        counts.append(len(calls))
    first = random_decay([]).fit(X, y)
    stop_at = round(counts[0] + later * (counts[1] - counts[0]))
    model = random_decay([], stop_at, n_init=2)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert model.loss_ <= first.loss_
    np.testing.assert_allclose(values_of(model), values_of(first), rtol=1e-6)
    np.testing.assert_allclose(model.predict(X), first.predict(X), rtol=1e-6)


def test_one_start_is_the_first_of_several():
    first, several = Recorder(), Recorder()
    random_decay([], callbacks=[first]).fit(X, y)
    random_decay([], n_init=3, callbacks=[several]).fit(X, y)
    assert first.runs == several.runs[: len(first.runs)]
    assert len(several.runs) == 3


@pytest.mark.parametrize("stop_at", [3, 40])
@pytest.mark.usefixtures("ctrl_c")
def test_interrupt_before_the_first_epoch_leaves_the_estimator_as_it_was(stop_at):
    """Also in the middle of the search for a start."""
    calls = []

    def f(x, a, b, c):
        calls.append(1)
        if len(calls) == stop_at:
            signal.raise_signal(signal.SIGINT)
        return decay(x, a, b, c)

    model = LMRegressor(curve(f), n_init=4, random_state=0)
    before = dict(vars(model))
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert vars(model) == before


class CtrlC(Callback):
    """Gets Ctrl-C after a certain epoch, counted over all starts."""

    def __init__(self, epoch):
        self.left = epoch

    def on_epoch_end(self, net, **kwargs):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c")
def test_interrupt_within_a_callback_of_a_later_start():
    first = random_decay([]).fit(X, y)
    model = random_decay([], n_init=3, callbacks=[CtrlC(first.n_iter_ + 1)])
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    np.testing.assert_array_equal(values_of(model), values_of(first))
    assert model.converged_


class Raise(Callback):
    """Stops training after a certain epoch, counted over all starts, as skorch's `EarlyStopping` does."""

    def __init__(self, epoch):
        self.left = epoch

    def on_epoch_end(self, net, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_a_callback_that_stops_ends_the_fit_of_one_start():
    model = LMRegressor(DECAY, module__b=9.0, random_state=0, callbacks=[Raise(1)]).fit(X, y)
    assert model.message_ == "Stopped by a callback after 1 epoch."


def test_a_callback_that_stops_a_later_start_keeps_the_best():
    first = random_decay([]).fit(X, y)
    model = random_decay([], n_init=2, callbacks=[Raise(first.n_iter_ + 1)]).fit(X, y)
    np.testing.assert_array_equal(values_of(model), values_of(first))
    assert model.message_ == first.message_.replace("epochs:", "epochs (start 1 of 2):")


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize(
    ("formula", "truth"),
    [
        ("A*exp(-g*x)*sin(2*pi*f*x+p)+c", {"A": 1.5, "g": 0.4, "f": 2.3, "p": 0.6, "c": 0.3}),
        ("h*exp(-(x-m)**2/(2*s**2))", {"h": 2.0, "m": 2.0, "s": 0.7}),
        ("D*ka/(ka-ke)*(exp(-ke*x)-exp(-ka*x))", {"D": 10.0, "ka": 1.2, "ke": 0.15}),
    ],
    ids=["phase", "sign", "order"],
)
def test_of_equal_solutions_the_plain_one(formula, truth, seed):
    t = np.linspace(0, 5, 200)
    y = Curve(formula, **truth)(torch.tensor(t)[:, None]).detach().numpy()
    model = LMRegressor(formula, random_state=seed).fit(t[:, None], y + 1e-3 * np.cos(50 * t))
    np.testing.assert_allclose(list(model.parameters_.values()), [truth[name] for name in model.parameters_], rtol=0.01)


def test_a_formula_gives_the_same_numbers_again():
    t = np.linspace(0, 5, 60)
    y = 3 * np.exp(-0.3 * t) + 2 * np.exp(-2.5 * t) + 0.2
    fits = [LMRegressor("a1*exp(-k1*x)+a2*exp(-k2*x)+c").fit(t[:, None], y) for _ in range(2)]
    assert fits[0].parameters_ == fits[1].parameters_


@pytest.mark.parametrize("per_row", [0.1, 0.47])
def test_a_wave_in_many_rows(per_row):
    x = np.arange(50_000) * 0.01
    y = 2 * np.sin(2 * np.pi * per_row * 100.00123 * x + 0.5) + 0.3 * np.random.default_rng(0).standard_normal(50_000)
    assert LMRegressor("a*sin(w*x+p)+o").fit(x[:, None], y).score(x[:, None], y) > 0.95


def test_more_starts_than_candidates():
    starts = Curve("a * x").starts(torch.tensor(X), torch.tensor(2 * x), n_starts=500)
    assert len(starts) == 500
    assert all(np.isfinite(start["a"]) for start in starts)


@pytest.mark.parametrize("name", ["training", "bounds", "fixed", "n_features_in", "__name__"])
def test_reserved_names(name):
    with pytest.raises(ValueError, match=f"{name}, which is reserved"):
        Formula(f"{name} * x")


@pytest.mark.parametrize("text", ["a * x1 + b * x2", "a * x0 + x"])
def test_columns_with_a_wrong_number(text):
    with pytest.raises(ValueError, match="X has 2 columns without these names: x0 to x1"):
        LMRegressor(text).fit(np.ones((5, 2)), np.ones(5))


@pytest.mark.filterwarnings("ignore:parameters .* are hardly separately")
def test_a_valley_without_an_end_is_left():
    """Of a peak beyond its data, height and center may run away together."""
    x = np.linspace(0, 1, 10)
    y = np.exp(-((x - 1.1) ** 2) / 0.02) + 0.05 * np.random.default_rng(9).standard_normal(10)
    epochs = []

    class Count(Callback):
        def on_epoch_end(self, net, **kwargs):
            epochs.append(net.history[-1, "epoch"])

    with pytest.warns(ConvergenceWarning, match="The curve may not suit the data"):
        model = LMRegressor(curves.Gaussian, callbacks=[Count()], random_state=0).fit(x[:, None], y)
    assert not model.converged_
    assert 200 < len(epochs) < 400  # in two runs, of which the second would have 1000


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_no_second_strategy_where_the_length_of_the_fit_is_set():
    model = fitted("a * exp(-b * x) + c", module__a=1.0, module__b=9.0, module__c=0.0, max_epochs=3)
    assert model.n_iter_ == 3


def test_epochs_of_a_curve_that_cannot_be_told_apart_make_attempts():
    rng = np.random.default_rng(0)
    X = np.linspace(-1, 1, 200)[:, None]
    y = np.sin(3 * X[:, 0]) + 0.1 * rng.standard_normal(200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # c and e are one parameter too many, almost
        model = LMRegressor("a*sin(b*x+d)+c+e/(1+exp(-f*x-g))", random_state=1).fit(X, y)
    assert model.converged_
    assert all(model.history_[:-1, "attempts"])


def test_many_rows_start_from_a_fit_to_some_of_them(monkeypatch):
    rng = np.random.default_rng(0)
    inputs = np.linspace(0, 4, 3000)
    targets = 3 * np.exp(-1.2 * inputs) + 0.5 + 0.05 * rng.standard_normal(3000)
    start = {"module__a": 1.0, "module__b": 1.0, "module__c": 0.0}
    on_all = LMRegressor(DECAY, **start).fit(inputs[:, None], targets)
    monkeypatch.setattr("sklm._net.intake.MANY_ROWS", 3000)
    monkeypatch.setattr("sklm._net.components.SOME_ROWS", 300)
    model = LMRegressor(DECAY, random_state=0, **start).fit(inputs[:, None], targets)
    assert model.n_iter_ < on_all.n_iter_
    assert model.history_[0, "damping"] < 1e-3  # which a cold start begins with
    for name, value in on_all.parameters_.items():
        assert model.parameters_[name] == pytest.approx(value, rel=1e-11)
    for name, value in on_all.standard_errors_.items():
        assert model.standard_errors_[name] == pytest.approx(value, rel=1e-9)


def test_many_rows_do_not_start_from_some_that_mislead(monkeypatch):
    """Those that the first fit gets lie on another curve and weigh almost nothing."""
    rng, counts = np.random.default_rng(0), np.arange(3000) < 50
    inputs = np.tile(np.linspace(0, 4, 50), 60)
    targets = np.where(counts, 3 * np.exp(-1.2 * inputs), -9 * np.exp(-0.1 * inputs)) + 0.01 * rng.standard_normal(3000)
    misled = []

    def some_rows(self, data, n_rows):
        misled.append(n_rows)
        return data.subset(np.arange(50, 350))

    monkeypatch.setattr("sklm._net.intake.MANY_ROWS", 3000)
    monkeypatch.setattr("sklm._net.components.WithParts._some_rows", some_rows)
    model = LMRegressor(DECAY, module__a=2.9, module__b=1.2, module__c=0.0)
    model.fit(inputs[:, None], targets, sample_weight=np.where(counts, 1e9, 1.0))
    assert misled == [2**13]
    assert model.history_[0, "damping"] == 1e-3
    assert model.parameters_["a"] == pytest.approx(3, abs=0.05)


DOSE = np.array([0, 0, 0.1, 0.3, 1, 3, 10, 30, 100.0])
RISE = np.linspace(0, 5, 60)
ZERO_TIMES_INFINITY = {
    "where(x > c, a * sqrt(x - c), 0)": (RISE, 3 * np.sqrt(np.maximum(RISE - 2, 0)), {"c": 1.5, "a": 1}),
    "where(x > 0, a * log(x), b)": (RISE, 2 * np.log(np.where(RISE > 0, RISE, np.exp(-1.5))), {"a": 1, "b": 1}),
    "where(x == 0, a, a * sin(b * x) / (b * x))": (RISE, np.sinc(2 * RISE / np.pi), {"a": 1, "b": 1.5}),
    "low + (top - low) / (1 + (ec50 / x)**h)": (
        DOSE,
        0.1 + 2 * DOSE**1.2 / (5**1.2 + DOSE**1.2),
        {"low": 0, "top": 2, "ec50": 4, "h": 1},
    ),
    "a * exp(-b / x)": (RISE, 2 * np.exp(-0.5 / np.maximum(RISE, 1e-9)), {"a": 1, "b": 1}),
    "sqrt(a * x)": (RISE, np.sqrt(2 * RISE), {"a": 1}),
}


@pytest.mark.parametrize("formula", ZERO_TIMES_INFINITY)
def test_derivatives_that_autograd_does_not_have(formula):
    x, y, start = ZERO_TIMES_INFINITY[formula]
    y = y + 0.02 * np.random.default_rng(0).standard_normal(len(x))
    functions = {name: getattr(np, name) for name in ("where", "sqrt", "log", "exp", "sin")}

    def by_numpy(x, *values):
        return eval(formula, functions | {"x": x} | dict(zip(start, values, strict=True)))  # noqa: S307

    with np.errstate(all="ignore"):
        expected, covariance = curve_fit(by_numpy, x, y, tuple(start.values()), xtol=1e-12, ftol=1e-12)
    model = LMRegressor(formula, **{f"module__{name}": value for name, value in start.items()}).fit(x[:, None], y)
    np.testing.assert_allclose(list(model.parameters_.values()), expected, rtol=1e-4)
    np.testing.assert_allclose(list(model.standard_errors_.values()), np.sqrt(np.diag(covariance)), rtol=1e-3)


@pytest.mark.parametrize("n_init", [1, 4])
def test_function_that_keeps_the_column(n_init):
    def decay(x, a, b):
        return (a * torch.exp(-b * x))[:, None]

    x = np.linspace(0, 3, 40)
    model = LMRegressor(curve(decay), n_init=n_init, random_state=0).fit(x[:, None], 3 * np.exp(-2 * x))
    assert model.parameters_ == pytest.approx({"a": 3.0, "b": 2.0})


def test_a_column_named_like_a_constant():
    X = pd.DataFrame({"x": [1.0, 2.0, 3.0], "pi": [0.0, 1.0, 0.0]})
    with pytest.raises(ValueError, match="uses pi, a number and a column of X; rename the column"):
        LMRegressor("a * x + b * pi").fit(X, [1.0, 2.0, 3.0])
    LMRegressor("a * x").fit(X, [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "text", ["a * exp(-b * x)\n  + c", "a * exp(-b * x)  # decay\n+ c", "\n a * exp(\n-b * x) + c\n"]
)
def test_formula_on_several_lines(text):
    x = np.linspace(0, 3, 40)
    model = LMRegressor(text, random_state=0).fit(x[:, None], 2 * np.exp(-x) + 3)
    assert model.parameters_ == pytest.approx({"a": 2.0, "b": 1.0, "c": 3.0})


CURVES = {
    "a1*exp(-((x-c1)/s1)**2/2) + a2*exp(-((x-c2)/s2)**2/2) + b*exp(-x/t)": (
        np.linspace(0, 10, 200),
        [5, 3, 0.5, 3, 6, 0.8, 4, 3],
        0.2,
    ),
    "b + (t - b) / (1 + (e/x)**h)": (np.repeat(np.geomspace(1, 1e5, 6), 3), [0, 100, 300, 1.2], 5.0),
    "t / (1 + (x/k)**n)": (np.geomspace(1e-9, 1e-3, 12), [100, 2e-7, 1.2], 4.0),
    "a*exp(-x/t) + b*exp(-x/u)": (np.geomspace(1e-9, 1e-3, 60), [3, 2e-7, 2, 1e-5], 0.05),
    "10**(a - b/(c + x))": (np.linspace(0, 100, 20), [8.07, 1730, 233], 1.0),
}


@pytest.mark.parametrize("formula", CURVES)
def test_start_of_a_formula_leads_to_the_minimum_near_the_truth(formula):
    x, truth, noise = CURVES[formula]
    names = Curve(formula, n_features_in=1).named_parameters()
    true = dict(zip([name for name, _ in names], truth, strict=True))
    function = LMRegressor(formula, max_epochs=1, **{f"module__{name}": value for name, value in true.items()})
    for seed in range(4):
        rng = np.random.default_rng(1000 + seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clean = Formula(formula)(
                {"x": torch.tensor(x), **{k: torch.tensor(float(v)) for k, v in true.items()}}, torch.tensor(x)
            ).numpy()
            y = clean + noise * rng.standard_normal(len(x))
            best = clone(function).set_params(max_epochs=100).fit(x[:, None], y)
            model = LMRegressor(formula, random_state=seed).fit(x[:, None], y)
        assert model.chi_square_ <= best.chi_square_ * 1.001, (seed, model.parameters_)


@pytest.mark.parametrize("last", [5.0, 42.0, 1000.0])
def test_start_is_no_spike_whose_squares_overflow(last):
    x = np.linspace(0, 10, 60)
    y = 5 * np.exp(-0.6 * x) + 1 + 0.1 * np.random.default_rng(0).standard_normal(60)
    y[-1] = last
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last row may be met best by a spike, on the way to infinity
        model = LMRegressor(DECAY, random_state=0).fit(x[:, None], y)
    theirs = decay_numpy(x, *curve_fit(decay_numpy, x, y, p0=(5, 0.6, 1))[0])
    assert model.chi_square_ <= np.square(theirs - y).sum() * (1 + 1e-9)


@pytest.mark.parametrize(
    ("formula", "turns"),
    [
        ("a*sin(w*x + p) + c", lambda w: w),
        ("a*sin(w*x) + b*cos(w*x) + c", lambda w: w),
        ("a*sin(2*pi*f*x + p) + c", lambda f: 2 * np.pi * f),
        ("a*sin(2*pi*x/t + p) + c", lambda t: 2 * np.pi / t),
        ("c + a*sin(w*x/2 + p)**2", lambda w: w),
    ],
)
@pytest.mark.parametrize(
    ("x", "frequency"),
    [(np.arange(365.0), 2 * np.pi / 7), (np.linspace(0, 100, 200), 2.0), (2000 + np.arange(120) / 12, 2 * np.pi)],
    ids=["days", "even", "years"],
)
def test_frequency_is_no_alias(formula, turns, x, frequency):
    for seed in range(2):
        y = 2 * np.sin(frequency * x + 0.4) + 1 + 0.2 * np.random.default_rng(seed).standard_normal(len(x))
        model = LMRegressor(formula, random_state=seed).fit(x[:, None], y)
        (found,) = (abs(turns(value)) for name, value in model.parameters_.items() if name in "wft")
        # eight times the standard error of a frequency, sqrt(24 / n) noise / (amplitude span)
        assert abs(found - frequency) < 8 * np.sqrt(24 / len(x)) * 0.1 / np.ptp(x)


@pytest.mark.parametrize("n_init", [1, 5])
def test_start_is_a_wave_of_many_cycles(n_init):
    x = np.linspace(0, 1000, 5000)
    y = 3 * np.sin(x + 1) + 2 + np.random.default_rng(0).standard_normal(5000)
    model = LMRegressor("a*sin(w*x + p) + c", random_state=0, n_init=n_init).fit(x[:, None], y)
    assert abs(abs(model.parameters_["w"]) - 1) < 1e-3


@pytest.mark.parametrize(
    ("n_samples", "center", "sigma", "height"),
    [(2048, 700.3, 2.0, 50.0), (4096, 1700.3, 4.0, 50.0), (4096, 900.0, 3.0, -30.0), (10**5, 17000.3, 20.0, 50.0)],
)
def test_start_is_a_peak_much_narrower_than_x(n_samples, center, sigma, height):
    x = np.arange(float(n_samples))
    for seed in range(3):
        noise = np.random.default_rng(seed).standard_normal(n_samples)
        y = height * np.exp(-(((x - center) / sigma) ** 2) / 2) + 2 + noise
        model = LMRegressor("h*exp(-((x-c)/s)**2/2) + o", random_state=seed).fit(x[:, None], y)
        found = [model.parameters_["c"], abs(model.parameters_["s"]), model.parameters_["h"]]
        assert np.allclose(found, [center, sigma, height], rtol=0.1, atol=0.1)  # the noise is 1 in 30 or 50


def deviance(means, counts):
    return 2 * (means - counts + special.xlogy(counts, counts / np.maximum(means, 1e-300))).sum()


@pytest.mark.parametrize("n_init", [1, 4])
@pytest.mark.parametrize(
    ("module", "mean"),
    [
        ("a + b*x", lambda x: 5.05 - 0.5 * x),
        (DECAY, lambda x: 20 * np.exp(-1.5 * x) + 0.1),
        (curves.ExponentialDecay, lambda x: 20 * np.exp(-1.5 * x) + 0.1),
    ],
    ids=["line", "decay", "ready"],
)
def test_start_of_counts_has_a_mean_above_0(module, mean, n_init):
    x = np.linspace(0, 10, 100)
    for seed in range(3):
        counts = np.random.default_rng(seed).poisson(mean(x))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the best mean may touch 0 at an end
            model = LMRegressor(
                module, criterion="poisson", criterion__log_link=False, n_init=n_init, random_state=seed
            ).fit(x[:, None], counts)
        assert deviance(model.predict(x[:, None]), counts) <= deviance(mean(x), counts)


@pytest.mark.parametrize("criterion", ["huber", "soft_l1", "cauchy"])
@pytest.mark.parametrize(
    ("module", "function", "truth"),
    [
        ("t / (1 + exp(-(x - c)/w))", lambda x, t, c, w: t / (1 + np.exp(-(x - c) / w)), (5.0, 4.0, 0.6)),
        (curves.ExponentialDecay, decay_numpy, (5.0, 0.6, 1.0)),
    ],
    ids=["logistic", "ready"],
)
def test_start_of_a_robust_fit_is_robust(criterion, module, function, truth):
    x = np.linspace(0, 10, 60)
    for seed in range(1, 4):
        rng = np.random.default_rng(seed)
        y = function(x, *truth) + 0.1 * rng.standard_normal(60)
        gross = rng.choice(60, 8, replace=False)
        y[gross] += rng.choice([-1, 1], 8) * rng.uniform(5, 50, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a spike through a row at an end may cost least
            model = LMRegressor(module, criterion=criterion, criterion__delta=0.1, random_state=seed)
            model = model.fit(x[:, None], y)

        def cost(means, y=y):
            return least_squares(lambda _: means - y, [0.0], loss=criterion, f_scale=0.1, max_nfev=1).cost

        near = least_squares(lambda p, y=y: function(x, *p) - y, truth, loss=criterion, f_scale=0.1, xtol=1e-12)
        assert cost(model.predict(x[:, None])) <= near.cost * (1 + 1e-6)


def test_a_first_fit_does_not_import_what_takes_long():
    code = """
import sys
import numpy as np
from sklm import LMRegressor
assert "scipy.signal" not in sys.modules
x = np.linspace(0, 4, 30)[:, None]
LMRegressor("a * exp(-b * x) + c / (d + x)").fit(x, np.exp(-x[:, 0]) + 1 / (3 + x[:, 0]))
print([name for name in ("torch._dynamo", "sympy", "scipy.signal") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert found.stdout == "[]\n"


LAWS = {  # of very different units, with noise of 1 to 3 per cent
    "a * exp(-e / (8.314 * x))": (np.linspace(300, 380, 12), [1e10, 6e4]),
    "x / e + a * (x / 1e6)**n": (np.linspace(1e7, 5e8, 25), [7e10, 1e-20, 7.0]),
    "i + (z - i) * (1 + (l * x)**2)**((n - 1) / 2)": (np.geomspace(1e-3, 1e4, 30), [0.003, 50.0, 8.0, 0.35]),
    "a * x0**n * exp(-q / (8.314 * x1))": (
        np.array([(s, t) for s in (20, 40, 80, 160) for t in (750, 800, 850, 900)], dtype=float),
        [1e-3, 4.0, 2.5e5],
    ),
}


@pytest.mark.parametrize("formula", LAWS)
def test_start_of_laws_in_units_of_their_own(formula):
    x, truth = LAWS[formula]
    X = x.reshape(len(x), -1)
    names = [name for name, _ in Curve(formula, n_features_in=X.shape[1]).named_parameters()]
    true = {f"module__{name}": value for name, value in zip(names, truth, strict=True)}
    for seed in range(3):
        rng = np.random.default_rng(1000 + seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            columns = {f"x{i}" if X.shape[1] > 1 else "x": torch.tensor(X[:, i]) for i in range(X.shape[1])}
            values = {name: torch.tensor(value) for name, value in zip(names, truth, strict=True)}
            f = Formula(formula)({**columns, **values}, torch.tensor(X)).numpy()
            y = f * (1 + 0.02 * rng.standard_normal(len(x)))
            best = LMRegressor(formula, **true).fit(X, y, sample_weight=1 / f**2)
            model = LMRegressor(formula, random_state=seed).fit(X, y, sample_weight=1 / f**2)
        assert model.chi_square_ <= best.chi_square_ * 1.001, (seed, model.parameters_)


def test_a_function_of_x_without_forward_mode():
    def absorbed(x, a, b, c):
        return a * torch.special.gammaincc(torch.full_like(x, 2.0), x / 30) * torch.exp(-(((x - b) / c) ** 2))

    x = np.linspace(1, 100, 60)
    y = absorbed(*map(torch.tensor, (x, 5.0, 40.0, 12.0))).numpy()
    model = LMRegressor(curve(absorbed), random_state=0).fit(x[:, None], y)
    np.testing.assert_allclose([model.parameters_[name] for name in "ab"], [5, 40], rtol=1e-6)


def test_starts_from_integers():
    x = torch.arange(1, 40)
    y = 3 * torch.exp(-0.1 * x.double()) + 1
    module = Curve("a * exp(-b * x) + c")
    module.init_from_data(x[:, None], y)
    assert module.b.item() == pytest.approx(0.1, rel=0.5)
