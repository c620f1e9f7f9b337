"""Curves: a formula or a Python function of the columns of X and named parameters, as an `nn.Module`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "arctan": torch.atan,
    "sin": torch.sin,
    "cos": torch.cos,
}
CONSTANTS = {"pi": math.pi}
