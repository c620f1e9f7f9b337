"""What a loss depends on, as far as tensors and settings tell, so that a step knows whether something has changed."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sklm.engine.inputs import map_tensors, version


@dataclass(frozen=True)
class State:
    """Tensors, compared by identity, and other values."""

    tensors: list[Tensor]
    others: list[Any]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, State)
            and len(self.tensors) == len(other.tensors)
            and all(map(operator.is_, self.tensors, other.tensors))
            and self.others == other.others
        )


def state_of(modules: list[nn.Module], criterion: nn.Module, data: Iterable[Any], settings: list[Any]) -> State | None:
    """Return the state of modules with all within them, a loss and data; None where the data are no tensors."""
    held: list[Tensor] = []
    of_loss = list(criterion.modules())
    for part in (*modules, *of_loss):
        held += [tensor for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None]

    def hold(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    try:
        map_tensors(hold, [part for part in data if part is not None])
    except ValueError:  # something else than tensors
        return None
    flags = [part.training for part in modules]
    settings = [*settings, id(criterion)]
    for part in of_loss:
        settings += [value for value in vars(part).values() if isinstance(value, (bool, int, float, str))]
    return State(held, [[version(tensor) for tensor in held], flags, settings])
