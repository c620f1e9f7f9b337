"""Formulas: text such as ``"a * exp(-b * x) + c"`` as a function of tensors, without running any of it as Python.

The text is parsed by `ast` and every node must be on the list below: numbers, names, arithmetic, comparisons and calls
of the functions in `FUNCTIONS` (exp, exp2, expm1, log, log10, log1p, log2, sqrt, square, power, abs, sign, sin, cos,
tan, arcsin, arccos, arctan, arctan2, sinh, cosh, tanh, arcsinh, arccosh, arctanh, sinc, erf, erfc, expit, softplus,
gammaln, hypot, logaddexp, heaviside, maximum, minimum, clip, floor, ceil, where; also absolute and torch's names). The
one constant is pi.
Every node then becomes a function of the values that calls those of its parts, so nothing else can happen, whoever
wrote the text. All of them work element by element.
"""

from __future__ import annotations

import ast
import difflib
import functools
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

MAX_DEPTH = 200  # Python's own limit on recursion is 1000 frames, of the caller's stack too
MAX_NUMBER = 1e300
MAX_SHOWN = 80  # characters of a formula in messages
RESERVED = ("training", "bounds", "fixed", "n_features_in", "feature_names_in")  # of nn.Module and of `Curve`
CONSTANTS = {"pi": math.pi, "π": math.pi}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "absolute": torch.abs,
    "arccos": torch.acos,
    "arccosh": torch.acosh,
    "arcsin": torch.asin,
    "arcsinh": torch.asinh,
    "arctan": torch.atan,
    "arctan2": torch.atan2,
    "arctanh": torch.atanh,
    "ceil": torch.ceil,
    "clip": torch.clamp,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expit": torch.sigmoid,
    "expm1": torch.expm1,
    "floor": torch.floor,
    "gammaln": torch.lgamma,
    "heaviside": lambda x, middle: torch.where(x == 0, middle, (x.sign() + 1) / 2),  # torch's has no derivative
    "hypot": torch.hypot,
    "log": torch.log,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "log2": torch.log2,
    "logaddexp": torch.logaddexp,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "power": lambda base, exponent: _power(base, exponent),
    "sign": torch.sign,
    "sin": torch.sin,
    "sinc": torch.sinc,
    "sinh": torch.sinh,
    "softplus": torch.nn.functional.softplus,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "where": lambda condition, one, other: torch.where(condition != 0, one, other),
}
FUNCTIONS |= {
    name: FUNCTIONS[other]
    for name, other in {
        "acos": "arccos",
        "acosh": "arccosh",
        "asin": "arcsin",
        "asinh": "arcsinh",
        "atan": "arctan",
        "atan2": "arctan2",
        "atanh": "arctanh",
        "clamp": "clip",
        "lgamma": "gammaln",
        "max": "maximum",
        "min": "minimum",
        "pow": "power",
        "sigmoid": "expit",
    }.items()
}
N_ARGUMENTS = {"arctan2": 2, "atan2": 2, "heaviside": 2, "hypot": 2, "logaddexp": 2, "maximum": 2, "max": 2}
N_ARGUMENTS |= {"minimum": 2, "min": 2, "power": 2, "pow": 2, "where": 3, "clip": 3, "clamp": 3}


def _power(base: Any, exponent: Any) -> Any:
    """Return base ** exponent, with derivatives that are finite where the base is 0.

    There x**s and all its derivatives that matter for a curve tend to 0 for s > 0, while autograd multiplies 0 by the
    infinite 0**(s - 1).
    """
    if not isinstance(base, Tensor) or not isinstance(exponent, Tensor):
        return base**exponent
    singular = (base == 0) & (exponent < 2) & (exponent != 1)
    power = torch.where(singular, 1.0, base) ** exponent
    return torch.where(singular, base.detach() ** exponent.detach(), power)


OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: _power,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
Value = Callable[[Mapping[str, Tensor], Tensor], Any]
HINTS: dict[type[ast.AST], str] = {
    ast.BitXor: "for a power write ** instead of ^",
    ast.BitAnd: "for two conditions multiply them: (x > 0) * (x < 1)",
    ast.BitOr: "for two conditions use where(...) twice",
    ast.BoolOp: "for two conditions multiply them: (x > 0) * (x < 1)",
    ast.IfExp: "write where(condition, a, b)",
    ast.Subscript: "name each parameter: b1 and not b[1]",
    ast.Attribute: "write the bare name, exp and not np.exp",
}

ELSEWHERE = {  # functions of MATLAB
    "ln": "did you mean 'log'?",
    "mod": "write a % b",
    "rem": "write sign(a) * (abs(a) % abs(b))",
    "nthroot": "write x ** (1 / n)",
    "sec": "write 1 / cos(x)",
    "csc": "write 1 / sin(x)",
    "cot": "write 1 / tan(x)",
    "normcdf": "write (1 + erf(x / sqrt(2))) / 2",
    "gamma": "write exp(gammaln(x)), for x > 0",
}


class Formula:
    """An expression of named inputs and parameters.

    Parameters
    ----------
    text : str
        Numbers, names, ``+ - * / % **``, comparisons, and functions by their numpy or torch names.

    Attributes
    ----------
    names : list of str
        Names that are neither functions nor constants, in the order of appearance.
    constants : list of str

    Raises
    ------
    ValueError
        For a text that does not parse or that holds anything else.

    Examples
    --------
    >>> Formula("a * exp(-b * x)").names
    ['a', 'b', 'x']
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._shown = repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")
        try:
            source = text.strip()
            body = ast.parse(f"({source}\n)" if "\n" in source else source, mode="eval").body
        except SyntaxError as error:
            reason = error.msg.partition(". Perhaps")[0]
            raise ValueError(
                f"`module` {self._shown} is not a formula: {reason}{_syntax_hint(text, reason)}."
            ) from None
        except (RecursionError, MemoryError):
            raise self._too_deep() from None
        self.names: list[str] = []
        self.constants: list[str] = []
        self._check(body, 0)
        self._value = _compiled(body)

    def __reduce__(self) -> tuple[Callable[[str], Formula], tuple[str]]:
        return parsed, (self.text,)

    def _too_deep(self) -> ValueError:
        return ValueError(
            f"`module` {self._shown} is nested too deeply, more than {MAX_DEPTH} operations within one another (a sum "
            "of so many terms counts as such); pass a function: sklm.curve(f)."
        )

    def _check(self, node: ast.AST, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._too_deep()
        number = node.value if isinstance(node, ast.Constant) else None
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            if number > MAX_NUMBER:
                raise ValueError(f"`module` {self._shown} has a number above {MAX_NUMBER:g}.")
            return
        if isinstance(node, ast.Name):
            self._check_name(node.id)
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            self._check(node.left, depth + 1)
            self._check(node.right, depth + 1)
        elif isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
            self._check(node.operand, depth + 1)
        elif isinstance(node, ast.Compare) and all(type(op) in OPERATORS for op in node.ops):
            for part in (node.left, *node.comparators):
                self._check(part, depth + 1)
        elif isinstance(node, ast.Call):
            self._check_call(node, depth)
        else:
            kind = type(node.op) if isinstance(node, (ast.BinOp, ast.UnaryOp)) else type(node)
            hint = HINTS.get(kind, "use numbers, names, + - * / % **, comparisons and functions")
            if isinstance(node, ast.Attribute) and node.attr in CONSTANTS:
                hint = f"write the bare name {node.attr}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                hint = f"code the text as 0 and 1 before: (table.drug == {node.value!r}).astype(int) for a column drug"
            raise ValueError(f"`module` {self._shown} has {ast.unparse(node)!r}, which a formula cannot hold; {hint}.")

    def _check_name(self, name: str) -> None:
        if name.startswith("__") or name in RESERVED:
            raise ValueError(f"`module` {self._shown} uses the name {name}, which is reserved; rename it.")
        if name in FUNCTIONS:
            raise ValueError(f"`module` {self._shown} uses the function {name} as a name; call it, or rename.")
        found = self.constants if name in CONSTANTS else self.names
        if name not in found:
            found.append(name)

    def _check_call(self, node: ast.Call, depth: int) -> None:
        name = ast.unparse(node.func)
        if name.rpartition(".")[2] in FUNCTIONS and name not in FUNCTIONS:
            raise ValueError(f"`module` {self._shown} has {name!r}; write the bare name {name.rpartition('.')[2]!r}.")
        if name not in FUNCTIONS:
            near = difflib.get_close_matches(name, FUNCTIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f". There are {', '.join(sorted(FUNCTIONS))}."
            if name in ELSEWHERE:
                hint = f"; {ELSEWHERE[name]}"
            elif len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, int):
                hint = f"; for the parameter write {name}{node.args[0].value}, for a product *."
            raise ValueError(f"`module` {self._shown} calls {name!r}, which is not a known function{hint}")
        wanted = N_ARGUMENTS.get(name, 1)
        if len(node.args) != wanted or node.keywords:
            raise ValueError(
                f"`module` {self._shown}: {name} takes {wanted} argument{'s' * (wanted > 1)}; got "
                f"{ast.unparse(node)!r}."
            )
        for argument in node.args:
            self._check(argument, depth + 1)

    def __call__(self, values: Mapping[str, Tensor], like: Tensor) -> Any:
        """Return the value of the formula; `like` gives dtype and device of its numbers."""
        return self._value(values, like)


def _syntax_hint(text: str, reason: str) -> str:
    """Return what may be meant by a text that does not parse."""
    if not text.strip():
        return "; write one, such as 'a * exp(-b * x) + c'"
    keywords = [word for word in re.findall(r"\w+", text) if keyword.iskeyword(word)]
    if keywords:
        return f"; {keywords[0]} is a word of Python, rename it"
    if ";" in text:
        return (
            "; leave out the semicolon" if text.rstrip().endswith(";") else "; write one expression, without semicolons"
        )
    if re.search(r"\w!(?!\s*=)", text):
        return "; for a factorial write exp(gammaln(n + 1))"
    if re.search(r"\|[^|]+\|", text):
        return "; for an absolute value write abs(x)"
    if "~=" in text:
        return "; write != instead of ~="
    if "=" in text or "~" in text or text.lstrip().startswith("@"):
        return "; write the right-hand side alone"
    if re.search(r"\.[*/^]", text):
        return "; write *, / and ** without dots"
    if "closed" in reason or "unmatched" in reason:  # of parentheses
        return ""
    apart = re.search(r"[^\W\d]\w*\s+\w+", text)
    if apart:
        return f"; write * for a product. If {apart[0]!r} is a column, rename it: names must be valid Python names"
    return "; write * for a product"


def _compiled(node: Any) -> Value:
    """Return the function of the values and of `like` that a checked node stands for."""
    if isinstance(node, ast.Constant):
        number: Any = node.value
        if number > 2**31 or number == 0:  # torch has no longer integers, and -0 is not 0
            number = float(number)
        return lambda values, like: number
    if isinstance(node, ast.Name):
        name = node.id
        return (lambda values, like: CONSTANTS[name]) if name in CONSTANTS else lambda values, like: values[name]
    if isinstance(node, ast.BinOp):
        return _compiled_operation(OPERATORS[type(node.op)], node)
    if isinstance(node, ast.UnaryOp):
        sign, part = OPERATORS[type(node.op)], _compiled(node.operand)
        return lambda values, like: sign(part(values, like))
    if isinstance(node, ast.Compare):
        parts = [_compiled(node.left), *map(_compiled, node.comparators)]
        operators = [OPERATORS[type(op)] for op in node.ops]

        def compared(values: Mapping[str, Tensor], like: Tensor) -> Any:
            found = [part(values, like) for part in parts]
            holds = _tensor(1.0, like)
            for op, left, right in zip(operators, found[:-1], found[1:], strict=True):
                holds = holds * op(left, right)
            return holds

        return compared
    function, arguments = FUNCTIONS[node.func.id], [_compiled(argument) for argument in node.args]
    return lambda values, like: function(*[_tensor(argument(values, like), like) for argument in arguments])


def _compiled_operation(operator: Callable[..., Any], node: ast.BinOp) -> Value:
    left, right = _compiled(node.left), _compiled(node.right)
    divides = isinstance(node.op, ast.Div)

    def value(values: Mapping[str, Tensor], like: Tensor) -> Any:
        one, other = left(values, like), right(values, like)
        if not isinstance(one, Tensor) and (divides or not isinstance(other, Tensor)):
            one = _tensor(one, like)  # no huge integers or exceptions of Python; and torch takes 3 / x for 3 * (1 / x)
        return operator(one, other)

    return value


def _tensor(number: Any, like: Tensor) -> Tensor:
    return number if isinstance(number, Tensor) else torch.as_tensor(number, dtype=like.dtype, device=like.device)


@functools.lru_cache(maxsize=128)
def parsed(text: str) -> Formula:
    """Return the formula of a text, which nothing changes, so that all curves of one text share it."""
    return Formula(text)
