"""Selection: which parameters move in a step.

A step over a subset of the parameters costs a fraction of the full one: the linear system has the size of the subset.
Rules are stateless: the subset is a function of the step number and of a random generator seeded from it, so that a
restored optimizer continues with the same subsets.
"""

from __future__ import annotations

import abc
import math
import numbers
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sklm.engine._checks import as_call, check_choice, check_integer, check_real, resolve


class Selection(abc.ABC):
    """Rule that picks the parameters of a step; subclass it and override `select`."""

    def __repr__(self) -> str:
        return as_call(self)

    @abc.abstractmethod
    def select(self, sizes: Mapping[str, int], step: int, generator: torch.Generator) -> Tensor:
        """Return the positions of the parameters that move.

        Parameters
        ----------
        sizes : mapping of str to int
            Name and number of elements of every trainable tensor, in order; positions count through all of them.
        step : int
            Number of steps done before.
        generator : torch.Generator
            Source of random numbers for this step.

        Returns
        -------
        Tensor of int64, sorted and without repetition
        """

    def steps_per_sweep(self, sizes: Mapping[str, int]) -> int:
        """Return after how many steps every parameter should have moved; convergence is judged over so many."""
        return 1


class RandomSelection(Selection):
    """A random subset of all parameters, drawn anew for every step.

    Parameters
    ----------
    subset_size : int or float, default=0.5
        Number of parameters (int, at most all), or their fraction (float, in (0, 1]).
    """

    def __init__(self, *, subset_size: float = 0.5) -> None:
        if isinstance(subset_size, numbers.Integral):
            self.subset_size: float = check_integer("selection__subset_size", subset_size, minimum=1)
        else:
            self.subset_size = check_real("selection__subset_size", subset_size, above=0, maximum=1)

    def _count(self, n_params: int) -> int:
        if isinstance(self.subset_size, int):
            return min(self.subset_size, n_params)
        return max(1, round(self.subset_size * n_params))

    def select(self, sizes: Mapping[str, int], step: int, generator: torch.Generator) -> Tensor:
        n_params = sum(sizes.values())
        return torch.randperm(n_params, generator=generator, device="cpu")[: self._count(n_params)].sort().values

    def steps_per_sweep(self, sizes: Mapping[str, int]) -> int:
        n_params = sum(sizes.values())
        return math.ceil(n_params / self._count(n_params))


class LayerSelection(Selection):
    """One layer per step: the parameters that belong to the same submodule.

    Parameters
    ----------
    order : {"cyclic", "random"}, default="cyclic"
        Layers in turn, from the first to the last, or one drawn at random.
    """

    def __init__(self, *, order: Literal["cyclic", "random"] = "cyclic") -> None:
        self.order = check_choice("selection__order", order, ["cyclic", "random"])

    def _layers(self, sizes: Mapping[str, int]) -> list[Tensor]:
        layers: dict[str, list[Tensor]] = {}
        start = 0
        for name, size in sizes.items():
            owner = name.rpartition(".")[0]
            layers.setdefault(owner, []).append(torch.arange(start, start + size, device="cpu"))
            start += size
        return [torch.cat(parts) for parts in layers.values()]

    def select(self, sizes: Mapping[str, int], step: int, generator: torch.Generator) -> Tensor:
        layers = self._layers(sizes)
        if self.order == "random":
            return layers[int(torch.randint(len(layers), (), generator=generator, device="cpu"))]
        return layers[step % len(layers)]

    def steps_per_sweep(self, sizes: Mapping[str, int]) -> int:
        return len(self._layers(sizes))


BUILT_IN = {"random": RandomSelection, "layer": LayerSelection}


def resolve_selection(selection: Any, keywords: Mapping[str, Any] | None = None) -> Selection | None:
    """Return the `Selection` for ``"random"``, ``"layer"``, a subclass or an instance; None stays None (all move)."""
    keywords = dict(keywords or {})
    if selection is None:
        if keywords:
            raise ValueError(f"`selection__{next(iter(keywords))}` needs `selection='random'` or 'layer'; got None.")
        return None
    resolved: Selection = resolve("selection", selection, BUILT_IN, Selection, keywords)
    return resolved
