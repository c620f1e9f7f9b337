"""The values of `device`, `dtype` and `random_state`: where, how precisely and from which seed a fit is computed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from sklm.engine._checks import check_choice

SMALL = 1e-12  # targets whose squares have no digits left in float32
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def draw_seed(random_state: Any) -> int:
    """Return a seed from `random_state`; for None a fresh one, without touching NumPy's global generator."""
    if random_state is None:
        return secrets.randbits(31)
    return int(checked_random_state(random_state).randint(2**31 - 1))


def checked_random_state(random_state: Any) -> Any:
    try:
        return check_random_state(random_state)
    except ValueError:
        raise ValueError(
            "`random_state` must be None, an integer from 0 to 2**32 - 1 or a RandomState instance; "
            f"got {random_state!r}."
        ) from None


def resolve_device(device: Any) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or another torch device; got {device!r}."
        ) from None
    if not is_available(resolved):
        raise ValueError(f"`device={device!r}` is not available on this machine; pass 'auto' or 'cpu'.")
    return resolved


def is_available(device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    backend: Any = getattr(torch, device.type, None)
    return hasattr(backend, "is_available") and backend.is_available() and (device.index or 0) < backend.device_count()


def dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    if isinstance(dtype, type) and issubclass(dtype, np.generic):
        name = np.dtype(dtype).name
    return check_choice("dtype", name, ["auto", *DTYPES])


def resolve_dtype(dtype: Any, arrays: Any, device: torch.device, targets: Any = None) -> torch.dtype:
    """Return the dtype of a fit; ``"auto"`` is that of the inputs, if it also has the squares of the targets."""
    name = dtype_name(dtype)
    if name == "auto":
        parts = list(arrays.values()) if isinstance(arrays, Mapping) else [arrays]
        real = [part.dtype for part in parts if part.dtype.kind == "f"]
        name = "float32" if real and all(kind == np.float32 for kind in real) else "float64"
        largest = 0.0 if targets is None or targets.dtype.kind != "f" else float(np.abs(targets).max())
        if largest and not SMALL <= largest <= 1 / SMALL:
            name = "float64"
        if device.type == "mps":
            name = "float32"
    elif name == "float64" and device.type == "mps":
        raise ValueError("`device='mps'` has no float64; pass `dtype='float32'` or `device='cpu'`.")
    return DTYPES[name]
