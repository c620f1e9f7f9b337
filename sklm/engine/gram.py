"""The Gram matrix of Jacobian rows of linear layers, without the rows.

With the inputs a_i of a layer (a 1 appended for the bias) and the derivatives d_ik of row k of sample i with respect to
its outputs, the rows are the products d_ik a_i', so that of two layers

    sum_ik (d_ik a_i') x (e_ik b_i') = sum_i (sum_k d_ik e_ik') x (a_i b_i').

The sum over the rows of a sample comes first, which leaves one matrix product over samples: as many times less work as
there are rows per sample, and for a layer with itself half of it again, as both factors are symmetric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LinearLayer:
    """Where the parameters of a linear layer are in the vector.

    Attributes
    ----------
    has_weight, has_bias : bool
        Whether they are among the parameters.
    n_outputs : int
    place : Tensor of shape (n_outputs * n_columns,)
        Position of every number, output by output; the last column is the bias.
    """

    has_weight: bool
    has_bias: bool
    n_outputs: int
    place: Tensor

    @property
    def n_columns(self) -> int:
        return len(self.place) // self.n_outputs

    def columns(self, a: Tensor) -> Tensor:
        """Return the factors (n_columns, n_samples) of the derivatives with respect to the outputs."""
        ones = a.new_ones(1, len(a))
        return torch.cat([*([a.T] if self.has_weight else []), *([ones] if self.has_bias else [])])


def linear_layers(
    layers: Mapping[str, nn.Module], places: Mapping[str, int], device: torch.device
) -> dict[str, LinearLayer] | None:
    """Return the layers by path; None where one is of another kind, or two share parameters."""
    found: dict[str, LinearLayer] = {}
    if len(set(places.values())) < len(places):
        return None
    for path, layer in layers.items():
        if type(layer) is not nn.Linear:
            return None
        start = {name: places.get(f"{path}.{name}" if path else name) for name in ("weight", "bias")}
        parts = []
        if start["weight"] is not None:
            parts.append(start["weight"] + torch.arange(layer.weight.numel(), device="cpu").view(layer.weight.shape))
        if start["bias"] is not None:
            parts.append(start["bias"] + torch.arange(layer.out_features, device="cpu")[:, None])
        place = torch.cat(parts, 1).flatten().to(device)
        found[path] = LinearLayer(start["weight"] is not None, start["bias"] is not None, layer.out_features, place)
    return found


def n_products(layers: Iterable[LinearLayer]) -> int:
    """Return how many numbers per sample the products take."""
    sizes, total = [(layer.n_outputs, layer.n_columns) for layer in layers], 0
    for i, (h, d) in enumerate(sizes):
        total += h * h + d * (d + 1) // 2
        total += sum(h * other_h + d * other_d for other_h, other_d in sizes[i + 1 :])
    return total


class Gram:
    """Sums over chunks of samples.

    Parameters
    ----------
    layers : list of LinearLayer
    n_params : int
    """

    def __init__(self, layers: list[LinearLayer], n_params: int) -> None:
        self.layers, self.n_params = layers, n_params
        self.sums: dict[tuple[int, int], Tensor] = {}
        self.pulled: list[Tensor] = []

    def add(self, columns: list[Tensor], derivatives: list[Tensor], residual: Tensor) -> None:
        """Add samples.

        Parameters
        ----------
        columns : list of Tensor of shape (n_columns, n_samples)
        derivatives : list of Tensor of shape (n_samples, n_rows, n_outputs)
            Of the layers' outputs, for every row.
        residual : Tensor of shape (n_samples, n_rows)
        """
        for i, (a, d) in enumerate(zip(columns, derivatives, strict=True)):
            upper = _upper(d.shape[2], d.device)
            self._add(i, i, (d.mT @ d).flatten(1)[:, upper], _own_products(a))
            for j in range(i + 1, len(columns)):
                self._add(i, j, (d.mT @ derivatives[j]).flatten(1), (a[:, None] * columns[j]).flatten(0, 1))
            pulled = (residual[:, None] @ d)[:, 0].T @ a.T
            if len(self.pulled) == i:
                self.pulled.append(pulled)
            else:
                self.pulled[i] += pulled

    def _add(self, i: int, j: int, of_outputs: Tensor, of_columns: Tensor) -> None:
        """Add (n_samples, n) and (m, n_samples) products."""
        if (i, j) in self.sums:
            self.sums[i, j].addmm_(of_outputs.T, of_columns.T)
        else:
            self.sums[i, j] = of_outputs.T @ of_columns.T

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Return A'A of shape (n_params, n_params) and A'r."""
        like = self.pulled[0]
        gram, gradient = like.new_empty(self.n_params, self.n_params), like.new_empty(self.n_params)
        for (i, j), sums in self.sums.items():
            (h, d), (other_h, other_d) = self.pulled[i].shape, self.pulled[j].shape
            if i == j:
                units, columns = _packed(h, like.device), _packed(d, like.device)
                block = sums[units[:, None, :, None], columns[None, :, None, :]]
            else:
                block = sums.view(h, other_h, d, other_d).transpose(1, 2)
            block = block.reshape(h * d, other_h * other_d)
            rows, others = self.layers[i].place, self.layers[j].place
            gram[rows[:, None], others] = block
            if i != j:
                gram[others[:, None], rows] = block.T
        for layer, pulled in zip(self.layers, self.pulled, strict=True):
            gradient[layer.place] = pulled.flatten()
        return gram, gradient


def _upper(n: int, device: torch.device) -> Tensor:
    """Return the positions of the upper triangle in a flattened (n, n) matrix, row by row."""
    rows, columns = torch.triu_indices(n, n, device=device)
    return rows * n + columns


def _packed(n: int, device: torch.device) -> Tensor:
    """Return for every entry of a symmetric (n, n) matrix its position in the packed upper triangle."""
    position = torch.zeros(n, n, dtype=torch.long, device=device)
    rows, columns = torch.triu_indices(n, n, device=device)
    position[rows, columns] = torch.arange(len(rows), device=device)
    return torch.maximum(position, position.T)


def _own_products(a: Tensor) -> Tensor:
    """Return the products (n (n + 1) / 2, n_samples) of the upper triangle of a a', for a of shape (n, n_samples)."""
    n = len(a)
    products = a.new_empty(n * (n + 1) // 2, a.shape[1])
    start = 0
    for i in range(n):
        torch.mul(a[i], a[i:], out=products[start : start + n - i])
        start += n - i
    return products
