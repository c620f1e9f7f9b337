"""Arguments of a module: copied, so that training does not change what was given, and compared when a fit goes on."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import Tensor, nn

MUTABLE = (list, dict, set, np.ndarray)  # what may have been changed in place


def own(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of what training might change: modules, tensors and arrays, also within containers."""
    if not _holds_tensors(value):
        return value
    try:
        return copy.deepcopy(value, memo)
    except (RuntimeError, TypeError):  # a tensor with a history, as of torch's old weight_norm; a lock
        return value


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (list, tuple, set)):
        return any(map(_holds_tensors, value))
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, (nn.Module, Tensor, np.ndarray))


def same_argument(before: tuple[Any, Any], now: Any) -> bool:
    """Return whether a value is the one that was given before, where it is with a copy of it as it was then."""
    given, copied = before
    if now is given and not isinstance(now, MUTABLE):
        return True
    try:
        if isinstance(now, (list, dict, set)):
            return bool(copied == now)
        return np.array_equal(copied, now) or np.array_equal(copied, now, equal_nan=True)
    except (TypeError, ValueError, RuntimeError):  # nothing to compare by
        return now is given
