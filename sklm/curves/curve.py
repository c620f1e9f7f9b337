"""`Curve`: a formula or a Python function of the columns of X and of named parameters, as an `nn.Module`."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sklm.curves.cost import cost_of_starts
from sklm.curves.formula import RESERVED, Formula, parsed
from sklm.curves.start import find_starts
from sklm.engine.losses import Loss
from sklm.engine.memory import is_out_of_memory

Bounds = Mapping[str, tuple[float | None, float | None]]


class Curve(nn.Module):
    """A curve with named parameters, from a formula or a function.

    Usually made by `LMRegressor("a * exp(-b * x)")` or `LMRegressor(curve(f))`, which know the columns.

    Parameters
    ----------
    function : str or callable
        A formula, see `sklm.curves.formula`, or a function ``f(x, a, b)`` that takes the input columns, tensors of
        shape (n_samples,), and then the parameters, and returns a tensor of shape (n_samples,) made by torch functions.
        Defaults in its signature are initial values.
    n_features_in : int, default=1
        Number of columns of X.
    feature_names_in : sequence of str, default=None
        Names of the columns. Names that the formula, or the arguments of the function, share with the columns are
        inputs; all other names are parameters. Without such names a single column is ``x`` and several are ``x0``,
        ``x1``, ...; a function without these takes the columns as its leading arguments.
    bounds : dict of str to (lower, upper), default=None
        Bounds of parameters; None or an infinity for no bound.
    fixed : str or sequence of str, default=()
        Parameters that keep their initial values.
    **initial : float
        Initial values by name. Parameters without one start from the data (`init_from_data`).

    Attributes
    ----------
    input_columns : list of int
        Columns of X that the curve uses, in the order in which it takes them.
    parameter_bounds : dict of str to (lower, upper)
        Bounds of the parameters that are not fixed.
    is_elementwise : bool
        Whether it is a formula, which computes every row from that row alone. A subclass may do something else.

    Raises
    ------
    ValueError
        For an unknown name, bounds that leave no room or exclude an initial value, a fixed parameter without a value,
        or a curve that uses no column or has no parameter.

    Examples
    --------
    >>> import torch
    >>> from sklm.curves import Curve
    >>> Curve("a * exp(-b * x)", a=2.0, b=0.0)(torch.zeros(3, 1)).tolist()
    [2.0, 2.0, 2.0]
    """

    def __init__(
        self,
        function: str | Callable[..., Tensor],
        /,
        n_features_in: int = 1,
        feature_names_in: Sequence[str] | None = None,
        *,
        bounds: Bounds | None = None,
        fixed: str | Iterable[str] = (),
        **initial: float,
    ) -> None:
        super().__init__()
        self._source: Formula | Callable[..., Tensor]
        columns = None if feature_names_in is None else [_normal(str(name)) for name in feature_names_in]
        initial = {_normal(name): value for name, value in initial.items()}
        if isinstance(bounds, Mapping):
            bounds = {_normal(str(name)): pair for name, pair in bounds.items()}
        if isinstance(function, str):
            self._source = parsed(function)
            self._inputs, names = _formula_names(self._source, n_features_in, columns, initial)
            defaults: dict[str, float] = {}
        else:
            self._source = function
            self._inputs, names, defaults = _function_names(function, n_features_in, columns)
        self.input_columns = list(self._inputs.values())
        if not names:
            raise ValueError(f"`module` {_text(function)} has no parameters to fit besides its inputs {self._inputs}.")
        _check_names("module__", initial, names)
        values = {**defaults, **{name: _number(f"module__{name}", value) for name, value in initial.items()}}
        self._box = _checked_bounds(bounds or {}, names, values)
        self._given = set(values)
        if not isinstance(fixed, Iterable) or isinstance(fixed, Mapping):
            raise ValueError(
                f"`module__fixed` must be a sequence of names, whose values are `module__name`; got {fixed!r}."
            )
        held = [_normal(str(name)) for name in ([fixed] if isinstance(fixed, str) else fixed)]
        _check_names("module__fixed: ", dict.fromkeys(held), names)
        for name in held:
            if name not in values:
                raise ValueError(f"`module__fixed` holds {name} at its initial value; pass `module__{name}` too.")
        if len(set(held)) == len(names):
            raise ValueError(f"`module__fixed` must leave a parameter to fit; it holds all: {', '.join(names)}.")
        for name in names:  # not by register_parameter, which refuses names such as "half"
            start = values.get(name, _inside(1.0, *self._box.get(name, (-math.inf, math.inf))))
            parameter = nn.Parameter(torch.tensor(start, dtype=torch.float64), requires_grad=name not in held)
            self._parameters[name] = parameter

    def keep_inputs(self) -> Curve:
        """Expect the columns `input_columns` alone, in this order, from now on; return the curve."""
        self._inputs = {name: i for i, name in enumerate(self._inputs)}
        return self

    @property
    def given(self) -> dict[str, float]:
        """Values of the parameters that the user has given a start, by name: the fitted ones after a fit."""
        return {name: self._parameters[name].item() for name in self._given}  # type: ignore[union-attr]

    @property
    def parameter_bounds(self) -> dict[str, tuple[float, float]]:
        return {name: box for name, box in self._box.items() if self._parameters[name].requires_grad}  # type: ignore[union-attr]

    @property
    def is_elementwise(self) -> bool:
        return type(self) is Curve and isinstance(self._source, Formula)

    def extra_repr(self) -> str:
        return self._source.text if isinstance(self._source, Formula) else _text(self._source)

    def forward(self, X: Tensor) -> Tensor:
        """Return the curve at the rows of X, shape (n_samples,)."""
        return self.evaluate(X, dict(self._parameters.items()))

    def evaluate(self, X: Tensor, parameters: Mapping[str, Any]) -> Tensor:
        """Return the curve at the rows of X for other parameters.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features_in)
        parameters : mapping of str to Tensor of shape ()
            All parameters by name.

        Returns
        -------
        Tensor of shape (n_samples,), or what the function returns if it is of higher dimension
        """
        like = next(iter(parameters.values()))
        X = X.reshape(len(X), -1)
        columns = {name: X[:, i].to(like.dtype) for name, i in self._inputs.items()}
        try:
            if isinstance(self._source, Formula):
                value = self._source({**columns, **parameters}, like)
            else:
                value = self._source(**columns, **parameters)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            hint = self._hint(str(error).lower())
            if hint:
                raise ValueError(f"`module` {_text(self._source)} must {hint}; got: {error}") from error
            raise
        if not isinstance(value, (Tensor, float, int)):
            raise ValueError(
                f"`module` {_text(self._source)} must return a tensor of shape (n_samples,); "
                f"got {type(value).__name__}."
            )
        value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        if value.ndim == 0:
            return value.expand(len(X))
        return value[:, 0] if value.shape[1:] == (1,) else value

    def _hint(self, message: str) -> str:
        """Return what a function must do that fails in ways known from functions written for numpy, or nothing."""
        if any(word in message for word in ("numpy", "python scalar")):
            return "be made of torch functions, torch.exp and not numpy.exp or math.exp"
        if "boolean value of tensor with more than one" in message:
            return "hold for all rows at once: torch.where(condition, a, b) and not if"
        if any(word in message for word in ("too many indices", "values to unpack")):
            return f"take a tensor of shape (n_samples,) for each column of X; here {', '.join(self._inputs)}"
        if "index of a 0-dim tensor" in message:
            return "name each parameter, f(x, b1, b2) with numbers b1 and b2 and not f(x, b) with b[0]"
        return ""

    def guess(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float] | None:
        """Return initial values from data sorted by x, or None for a search; ready models override it."""
        return None

    def init_from_data(
        self, X: Tensor, y: Tensor, sample_weight: Tensor | None = None, criterion: Loss | None = None
    ) -> None:
        """Set the parameters that have no initial value, to the first of the `starts`.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features_in)
        y : Tensor of shape (n_samples,)
        sample_weight : Tensor of shape (n_samples,), default=None
        criterion : Loss, default=None
            See `starts`.
        """
        if self._given.issuperset(self._parameters):
            return
        (start,) = self.starts(X, y, sample_weight, criterion=criterion) or [{}]
        with torch.no_grad():
            for name, value in start.items():
                if name not in self._given:
                    self._parameters[name].fill_(value)  # type: ignore[union-attr]

    def starts(
        self,
        X: Tensor,
        y: Tensor,
        sample_weight: Tensor | None = None,
        *,
        n_starts: int = 1,
        criterion: Loss | None = None,
    ) -> list[dict[str, float]]:
        """Return values of the free parameters to start from, within their bounds.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features_in)
        y : Tensor of shape (n_samples,)
        sample_weight : Tensor of shape (n_samples,), default=None
        n_starts : int, default=1
            The first start keeps the initial values that are given; the others, from a random search around it, move
            all free parameters.
        criterion : Loss, default=None
            What starts are compared by and improved in, with targets `y` as it takes them; None for squared errors. A
            ready model, whose guess has the least squared errors, is then searched for as others are.

        Returns
        -------
        list of dict of str to float
            Of length `n_starts`; of length 1 for a function that `torch.vmap` cannot batch; empty for one of several
            outputs, which has no common scale to start from.
        """
        if y.ndim > 1 and y.shape[1:] != (1,):
            return []
        y = y.reshape(-1)
        weights = torch.ones_like(y) if sample_weight is None else sample_weight
        cost = cost_of_starts(criterion, y, weights)
        y = cost.y
        free = [name for name, p in self._parameters.items() if p is not None and p.requires_grad]
        first = {name: p.item() for name, p in self._parameters.items() if p is not None}
        unset = [name for name in free if name not in self._given]
        searched = unset
        if unset and len(self._inputs) == 1 and type(self).guess is not Curve.guess:
            x = X.reshape(len(X), -1)[:, next(iter(self._inputs.values()))].to(y.dtype)
            order = torch.argsort(x, stable=True)
            guessed = self.guess(x[order], y[order], weights[order])
            if guessed is not None:
                first |= {name: guessed[name] for name in unset if math.isfinite(guessed[name])}
                searched = []

        def loss(start: Mapping[str, float]) -> float:
            values = {name: y.new_tensor(value) for name, value in {**first, **start}.items()}
            return float(cost(self.evaluate(X, values)[None]))

        data = (self.evaluate, X, cost)
        given = {name: first[name] for name in free if name in self._given}
        others: list[dict[str, float]] = []
        best = self._inside_bounds(first, free) | given
        if not y.is_floating_point():  # classes have no scale
            return [best]
        knows_bounds = all(best[name] == first[name] for name in unset)
        try:
            if searched or not knows_bounds or (unset and not cost.is_square):
                guess = None if searched else best
                (found,) = find_starts(*data, first, unset, set(), self._box, guess=guess)
                found = self._inside_bounds(found, free) | given
                best = found if searched else min(best, found, key=loss)
            if n_starts > 1:
                centers = set(free) - set(searched)
                others = find_starts(*data, {**first, **best}, free, centers, self._box, n_starts=n_starts - 1)
        except RuntimeError as error:  # a function that torch cannot batch starts from 1
            if is_out_of_memory(error):
                raise
        return [best, *(self._inside_bounds(start, free) for start in others)]

    def _inside_bounds(self, start: Mapping[str, float], names: list[str]) -> dict[str, float]:
        """Return values well within their bounds."""
        return {name: _inside(start[name], *self._box.get(name, (-math.inf, math.inf))) for name in names}


class ReadyCurve(Curve):
    """A curve with a `function`, a `guess` and default bounds of its own.

    Parameters
    ----------
    n_features_in, feature_names_in, bounds, fixed, **initial
        As in `Curve`; `bounds` overrides the default ones by name. The input is the one column of X or, of several, the
        one named x.
    """

    default_bounds: ClassVar[Bounds] = {}
    function: Callable[..., Tensor]

    def __init__(
        self,
        n_features_in: int = 1,
        feature_names_in: Sequence[str] | None = None,
        *,
        bounds: Bounds | None = None,
        fixed: str | Iterable[str] = (),
        **initial: float,
    ) -> None:
        position = 0
        if n_features_in > 1:
            columns = [] if feature_names_in is None else [str(name) for name in feature_names_in]
            if "x" not in columns:
                raise ValueError(
                    f"`module` {type(self).__name__} takes one column; got {n_features_in}. Select it or name it x."
                )
            position = columns.index("x")
        bounds = merged_bounds(self.default_bounds, bounds)
        super().__init__(self.function, 1, None, bounds=bounds, fixed=fixed, **initial)
        self._inputs, self.input_columns = {"x": position}, [position]

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return "" if text == "function" else text


def merged_bounds(defaults: Bounds, bounds: Bounds | None) -> Bounds:
    """Return the default bounds with those of the user over them."""
    if bounds is not None and not isinstance(bounds, Mapping):
        return bounds  # `Curve` says what is wrong
    return {**defaults, **(bounds or {})}


def curve(function: str | Callable[..., Tensor]) -> Callable[..., Curve]:
    """Return a module factory for a function or a formula, for `LMRegressor(curve(f))`.

    Parameters
    ----------
    function : callable or str
        See `Curve`.

    Returns
    -------
    callable
        Makes a `Curve`.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklm import LMRegressor, curve
    >>> def decay(x, a=1.0, b=1.0):
    ...     return a * torch.exp(-b * x)
    >>> x = np.linspace(0, 3, 20)[:, None]
    >>> model = LMRegressor(curve(decay)).fit(x, 3 * np.exp(-2 * x[:, 0]))
    >>> {name: round(value, 6) for name, value in model.parameters_.items()}
    {'a': 3.0, 'b': 2.0}
    """
    if not isinstance(function, str) and not callable(function):
        raise ValueError(f"`function` must be a formula or a function; got {function!r}.")
    return functools.partial(Curve, function)


def is_curve(module: Any) -> bool:
    """Return whether `module`, as an estimator takes it, is a curve: a formula, a `Curve`, its class or a factory."""
    kind = module.func if isinstance(module, functools.partial) else module
    return isinstance(kind, (str, Curve)) or (isinstance(kind, type) and issubclass(kind, Curve))


def _formula_names(
    formula: Formula, n_features: int, columns: list[str] | None, given: Iterable[str]
) -> tuple[dict[str, int], list[str]]:
    """Return the inputs (name to column) and the parameters of a formula."""
    positions = {} if columns is None else {name: i for i, name in enumerate(columns)}
    for name in formula.constants:
        if name in positions:
            raise ValueError(f"`module` {formula.text!r} uses {name}, a number and a column of X; rename the column.")
    inputs = {name: positions[name] for name in formula.names if name in positions}
    generic = {"x": 0} if n_features == 1 else {f"x{i}": i for i in range(n_features)}
    if not inputs:
        inputs = {name: generic[name] for name in formula.names if name in generic}
        if not inputs:
            known = [*(positions or generic)][:20]
            near = [m for name in formula.names for m in difflib.get_close_matches(name, known, n=1)]
            raise ValueError(
                f"`module` {formula.text!r}, read as a formula, uses no column of X; its columns are {', '.join(known)}"
                + (" (also x)" if positions and n_features == 1 else "")
                + (f"; did you mean {near[0]!r}?" if near else ".")
                + (
                    ""
                    if positions
                    else " For names of your own pass a DataFrame; after a transformer of a pipeline they "
                )
                + ("" if positions else 'need `.set_output(transform="pandas")`.')
            )
        strange = [name for name in formula.names if re.fullmatch(r"x\d*", name) and name not in inputs]
        if n_features > 1 and strange:
            raise ValueError(
                f"`module` {formula.text!r} uses {strange[0]}, but X has {n_features} columns without these names: "
                f"x0 to x{n_features - 1}. Correct or rename it."
            )
    names = [name for name in formula.names if name not in inputs]
    for name in names:
        near = [] if name in given else _misspelt(name, list(positions or generic), inputs)
        if near:
            warnings.warn(
                f"`module` {formula.text!r}: {name} is a parameter; if the column {near[0]!r} is meant, correct it, "
                f"else pass `module__{name}`.",
                UserWarning,
                stacklevel=2,
            )
    return inputs, names


def _misspelt(name: str, columns: list[str], inputs: Mapping[str, int]) -> list[str]:
    """Return columns that a parameter may have been meant to be: time for tiem or Time, but not for time0."""
    near = [column for column in columns if column.lower() == name.lower() and column not in inputs]
    if len(name) > 2:
        near += difflib.get_close_matches(name, [c for c in columns if len(c) > 2 and c not in name], n=1, cutoff=0.75)
    return near


def _function_names(
    function: Callable[..., Tensor], n_features: int, columns: list[str] | None
) -> tuple[dict[str, int], list[str], dict[str, float]]:
    """Return inputs, parameters and their defaults of a function."""
    arguments = inspect.signature(function).parameters
    for argument in arguments.values():
        if argument.kind not in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
            raise ValueError(
                f"`module` {_text(function)} must have named arguments only, the inputs and then the parameters; "
                f"got {argument}."
            )
    positions = {} if columns is None else {name: i for i, name in enumerate(columns)}
    inputs = {name: positions[name] for name in arguments if name in positions}
    generic = {"x": 0} if n_features == 1 else {f"x{i}": i for i in range(n_features)}
    if not inputs and all(name in arguments for name in generic):
        inputs = generic
    if not inputs:
        leading = [n for n, a in arguments.items() if a.default is a.empty and a.kind is a.POSITIONAL_OR_KEYWORD]
        if len(leading) < n_features:
            raise ValueError(
                f"`module` {_text(function)} must take the {n_features} columns of X as its leading arguments; it has "
                f"{len(leading)} arguments without a default: {', '.join(leading) or 'none'}."
            )
        inputs = {name: i for i, name in enumerate(leading[:n_features])}
    names = [name for name in arguments if name not in inputs]
    reserved = [name for name in names if name in RESERVED]
    if reserved:
        raise ValueError(f"`module` {_text(function)} uses the name {reserved[0]}, which is reserved; rename it.")
    defaults = {name: arguments[name].default for name in names if arguments[name].default is not inspect._empty}
    return inputs, names, {name: _number(f"default of {name}", value) for name, value in defaults.items()}


def _normal(name: str) -> str:
    """Return a name as Python reads it in a formula: micro and mu are one letter."""
    return unicodedata.normalize("NFKC", name)


def _check_names(prefix: str, given: Mapping[str, Any], names: list[str]) -> None:
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            raise ValueError(
                f"`{prefix}{name}` is not a parameter of the curve, whose parameters are {', '.join(names)}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
            )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number; got {value!r}.")
    return float(value)


def _checked_bounds(bounds: Any, names: list[str], values: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    if not isinstance(bounds, Mapping):
        raise ValueError(f"`module__bounds` must be a dict of name to (lower, upper); got {bounds!r}.")
    _check_names("module__bounds: ", bounds, names)
    checked = {}
    for name, pair in bounds.items():
        if not isinstance(pair, Iterable) or isinstance(pair, str) or len(pair := tuple(pair)) != 2:
            raise ValueError(f"`module__bounds` of {name} must be a pair (lower, upper); got {pair!r}.")
        low, high = (-math.inf if pair[0] is None else pair[0], math.inf if pair[1] is None else pair[1])
        if not all(isinstance(side, numbers.Real) and not math.isnan(side) for side in (low, high)) or not low < high:
            raise ValueError(f"`module__bounds` of {name} must be numbers with lower < upper; got {pair!r}.")
        if name in values and not low <= values[name] <= high:
            raise ValueError(
                f"`module__{name}` must lie within its bounds {pair!r}; got {values[name]:g}. Move it or the bounds."
            )
        checked[name] = (float(low), float(high))
    return checked


def _inside(value: float, low: float, high: float) -> float:
    """Return `value`, or where it is not well within its bounds the nearest point that is."""
    width = high - low
    margin = 0.01 * width if math.isfinite(width) else 0.0
    return min(max(value, low + margin), high - margin)


def _text(function: Any) -> str:
    return repr(function) if isinstance(function, str) else str(getattr(function, "__name__", function))
