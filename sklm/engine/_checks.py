"""Argument checks whose messages name the parameter, the rule, what was given and the way out; arguments as text."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import math
import numbers
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

ELSEWHERE = {  # names of MATLAB, torch and Keras for values and arguments
    "mu": "initial",
    "mu_max": "maximum",
    "mu_inc": "increase",
    "mu_dec": "decrease",
    "mse": "squared_error",
    "sse": "squared_error",
    "mae": "absolute_error",
    "sae": "absolute_error",
    "crossentropy": "log_loss",
    "trainlm": "standard",
    "observation": "prediction",
    "curve": "confidence",
}


_PARAMETERS: weakref.WeakKeyDictionary[Callable[..., Any], Mapping[str, inspect.Parameter]]
_PARAMETERS = weakref.WeakKeyDictionary()


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a callable by name; of ours they are looked up once, as every fit asks for them."""
    kind = function.func if isinstance(function, functools.partial) else function
    if not str(getattr(kind, "__module__", "")).startswith("sklm."):
        return inspect.signature(function).parameters  # it may have been edited, as by IPython's autoreload
    if function not in _PARAMETERS:
        _PARAMETERS[function] = inspect.signature(function).parameters
    return _PARAMETERS[function]


def did_you_mean(name: str, choices: Iterable[str], others: Mapping[str, str] | None = None) -> str:
    """Return the end of a sentence: ``"; did you mean 'x'?"`` for the nearest choice, or a full stop.

    `others` has names from elsewhere, and what they are here; case and underscores do not matter.
    """
    choices = list(choices)
    others = others or {name: choice for name, choice in ELSEWHERE.items() if choice in choices}
    plain = {_plain(other): here for other, here in others.items()}
    found = others.get(str(name), plain.get(_plain(name)))
    near = difflib.get_close_matches(str(name), choices, n=1) if found is None else [found]
    near = near or [others[other] for other in difflib.get_close_matches(str(name), others, n=1, cutoff=0.8)]
    return f"; did you mean {near[0]!r}?" if near else "."


def _plain(name: Any) -> str:
    return str(name).lower().replace("_", "")


def check_integer(name: str, value: Any, *, minimum: int) -> int:
    """Return `value` as an int, or raise when it is not an integer >= `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"`{name}` must be an integer >= {minimum}; got {value!r}.")
    return int(value)


def check_real(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
) -> float:
    """Return `value` as a float, or raise when it is not a finite number within the bounds."""
    rule = " and ".join(
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", minimum), ("<", below), ("<=", maximum))
        if bound is not None
    )
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    valid = (
        is_number
        and math.isfinite(value)
        and (above is None or value > above)
        and (minimum is None or value >= minimum)
        and (below is None or value < below)
        and (maximum is None or value <= maximum)
    )
    if not valid:
        raise ValueError(f"`{name}` must be a finite number {rule}; got {value!r}.".replace("  ", " "))
    return float(value)


def check_choice(name: str, value: Any, choices: Iterable[str], note: str = "") -> str:
    """Return `value`, or raise when it is not one of `choices`; the message ends with `note`."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        end = f"{did_you_mean(value, choices)} {note}".rstrip()
        raise ValueError(f"`{name}` must be one of {listed}; got {value!r}{end}")
    return value


def check_keywords(
    name: str,
    function: Callable[..., Any],
    keywords: Mapping[str, Any],
    others: Mapping[str, Callable[..., Any]] | None = None,
) -> None:
    """Raise when `function` does not take one of `keywords`.

    `name` is the prefix users write; `others` are what else could have been chosen by name, for the message.
    """
    parameters = parameters_of(function)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for keyword in keywords:
        if keyword not in parameters:
            owners = [repr(o) for o, other in (others or {}).items() if keyword in parameters_of(other)]
            hint = f"; {name}={' or '.join(owners)} takes it." if owners else did_you_mean(keyword, parameters)
            raise ValueError(
                f"`{name}__{keyword}` is not a parameter of {getattr(function, '__name__', function)}; "
                f"it takes {', '.join(parameters) or 'none'}{hint}"
            )


def resolve(
    name: str, value: Any, built_in: Mapping[str, Callable[..., Any]], base: type, keywords: Mapping[str, Any]
) -> Any:
    """Turn a name, a subclass or an instance of `base` into a new instance of `base`, which is no one else's.

    Parameters
    ----------
    name : str
        Name of the parameter, for messages; also the prefix of its ``name__keyword`` parameters.
    value : str, type or instance
        What the user gave.
    built_in : mapping of str to callable
        What the names stand for.
    base : type
        The class that the result must have.
    keywords : mapping
        Arguments for the constructor; refused together with an instance.
    """
    if isinstance(value, base):
        if keywords:
            raise ValueError(
                f"`{name}` is an instance, so `{name}__{next(iter(keywords))}` cannot be applied to it; "
                "set the value on the instance or pass the class instead."
            )
        return copy.deepcopy(value)
    if isinstance(value, type) and issubclass(value, base):
        factory: Callable[..., Any] = value
    elif isinstance(value, str):
        factory = built_in[check_choice(name, value, built_in)]
    else:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, built_in))}, or a subclass or an instance of "
            f"{base.__name__}; got {value!r}."
        )
    check_keywords(name, factory, keywords, built_in)
    return factory(**keywords)


def as_call(instance: object) -> str:
    """Return an instance as the call that makes it, with the arguments that differ from their defaults."""
    parameters = parameters_of(type(instance)).values()
    values = [(p.name, vars(instance).get(p.name, p.default), p.default) for p in parameters]
    changed = [f"{name}={value!r}" for name, value, default in values if value != default]
    return f"{type(instance).__name__}({', '.join(changed)})"
