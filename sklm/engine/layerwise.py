"""Jacobian rows layer by layer, for modules whose trainable parameters all sit in common layers.

One forward pass keeps the inputs a and outputs z of every layer, and one backward pass per row of the factor gives the
derivative d of the outputs with respect to every z, for all samples at once. The rows of a layer are then products:
for a linear layer z = W a + b, the derivative with respect to W is the outer product d a', that with respect to b is d
(Goodfellow 2015, "Efficient per-example gradient computations"). That takes a third of the time of vector-Jacobian
products batched over samples. Whether a module computes all it does with its parameters in such layers is seen on the
first use, by comparing some rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklm.engine.gram import LinearLayer, linear_layers
from sklm.engine.inputs import version

Blocks = dict[str, Tensor]


def _linear(layer: Any, a: Tensor, d: Tensor) -> Blocks:
    if d.ndim == 2:
        return {"weight": d[:, :, None] * a[:, None, :], "bias": d}
    d, a = d.flatten(1, -2), a.flatten(1, -2)
    return {"weight": d.mT @ a, "bias": d.sum(1)}


def _convolution(layer: Any, a: Tensor, d: Tensor) -> Blocks:
    flat = isinstance(layer, nn.Conv1d)
    if flat:
        a, d = a[:, :, None], d[:, :, None]
    one = (0, 1) if flat else (1, 1)
    kernel, stride, padding, dilation = (
        (base, *values) if flat else tuple(values)
        for base, values in zip(
            (one[1], one[1], one[0], one[1]),
            (layer.kernel_size, layer.stride, layer.padding, layer.dilation),
            strict=True,
        )
    )
    if any(padding):
        a = F.pad(a, (padding[1], padding[1], padding[0], padding[0]))
    sample, channel, *along = a.stride()
    steps = [size * step for size, step in zip(along, stride, strict=True)]
    within = [size * step for size, step in zip(along, dilation, strict=True)]
    n_samples, n_channels = a.shape[:2]
    places, d = d.shape[2:], d.flatten(2)
    # what torch.nn.functional.unfold returns, at a fifth of its time for many small images
    if channel == 1 < n_channels:  # channels last: they are copied together
        patches = a.as_strided((n_samples, *places, *kernel, n_channels), (sample, *steps, *within, channel))
        weight = (d @ patches.flatten(1, 2).flatten(2)).view(n_samples, -1, *kernel, n_channels).movedim(4, 2)
    else:
        patches = a.as_strided((n_samples, n_channels, *kernel, *places), (sample, channel, *within, *steps))
        weight = d @ patches.flatten(1, 3).flatten(2).mT
    return {"weight": weight, "bias": d.sum(2)}


def _layer_norm(layer: Any, a: Tensor, d: Tensor) -> Blocks:
    normalized = F.layer_norm(a, layer.normalized_shape, None, None, layer.eps)
    middle = list(range(1, d.ndim - len(layer.normalized_shape)))

    def over(values: Tensor) -> Tensor:
        return values.sum(middle) if middle else values

    return {"weight": over(d * normalized), "bias": over(d)}


def _batch_norm(layer: Any, a: Tensor, d: Tensor) -> Blocks:
    shape = (1, -1, *(1 for _ in a.shape[2:]))
    normalized = (a - layer.running_mean.view(shape)) * (layer.running_var.view(shape) + layer.eps).rsqrt()
    spatial = list(range(2, d.ndim))

    def over(values: Tensor) -> Tensor:
        return values.sum(spatial) if spatial else values

    return {"weight": over(d * normalized), "bias": over(d)}


def _embedding(layer: Any, a: Tensor, d: Tensor) -> Blocks:
    index = a.reshape(len(a), -1)
    d = d.reshape(len(a), -1, layer.embedding_dim)
    block = d.new_zeros(len(a), layer.num_embeddings, layer.embedding_dim)
    block.scatter_add_(1, index[:, :, None].expand(-1, -1, layer.embedding_dim), d)
    if layer.padding_idx is not None:
        block[:, layer.padding_idx] = 0
    return {"weight": block}


RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Blocks]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Embedding: _embedding,
}


def _is_plain(layer: nn.Module) -> bool:
    """Return whether the rule of the layer's type holds for its settings."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.sparse and not layer.scale_grad_by_freq
    return True


@dataclass(frozen=True)
class Record:
    """A forward pass: outputs with their graph, and path, input and output of every layer that ran.

    Attributes
    ----------
    is_whole : bool
        Whether the outputs of the layers are still what they were: nothing has written into them.
    """

    outputs: Tensor
    seen: list[tuple[str, Tensor, Tensor]]
    is_whole: bool = True

    @property
    def n_bytes(self) -> int:
        """What its tensors take, at most."""
        return sum(tensor.nbytes for _, a, z in self.seen for tensor in (a, z) if isinstance(tensor, Tensor))


def _backward(outputs: Tensor, tensors: list[Tensor], factor: Tensor) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield the derivatives of the rows factor[:, k] @ outputs in `tensors`; the last one uses up the graph."""
    n_rows = factor.shape[1]
    for k in range(n_rows):
        yield torch.autograd.grad(outputs, tensors, factor[:, k], retain_graph=k < n_rows - 1, allow_unused=True)


class LayerwiseJacobian:
    """Rows of a module by layers; make it with `for_module`.

    Parameters
    ----------
    layers : dict of str to torch.nn.Module
        The layers that hold trainable parameters, by path.
    places : dict of str to int
        Full name of every trainable parameter to its first position in the vector.
    n_params : int

    Attributes
    ----------
    works : bool or None
        None before the first use.
    relays : bool
        Whether images come channels last.
    """

    def __init__(self, layers: dict[str, nn.Module], places: dict[str, int], n_params: int) -> None:
        self.layers, self.places, self.n_params = layers, places, n_params
        starts = sorted(set(places.values()))
        self.spans = list(zip(starts, [*starts[1:], n_params], strict=True))
        self.works: bool | None = None
        self.relays = any(isinstance(layer, nn.Conv2d) for layer in layers.values())
        self._linear: tuple[torch.device, dict[str, LinearLayer] | None] | None = None

    @classmethod
    def for_module(cls, module: nn.Module, places: Mapping[str, int], n_params: int) -> LayerwiseJacobian | None:
        """Return the rows by layers of a module, or None where a trainable parameter sits elsewhere."""
        layers: dict[str, nn.Module] = {}
        if isinstance(module, torch.jit.ScriptModule):
            return None
        for name in places:
            path, _, attribute = name.rpartition(".")
            layer = module.get_submodule(path)
            if type(layer) not in RULES or attribute not in ("weight", "bias") or not _is_plain(layer):
                return None
            layers[path] = layer
        return cls(layers, dict(places), n_params)

    def forward(self, call: Callable[[], Tensor]) -> Record:
        """Return the outputs of the module with the inputs and outputs of its layers.

        Parameters
        ----------
        call : callable
            Evaluates the module at parameters that require a gradient; returns (n_samples, n_outputs).
        """
        seen: list[tuple[str, Tensor, Tensor]] = []
        versions: list[int | None] = []

        def keep(path: str, inputs: Any, keywords: Any, output: Tensor) -> None:
            inputs = *inputs, *keywords.values()  # one: these layers have no other argument
            seen.append((path, inputs[0].detach(), output))
            versions.append(version(output))

        handles: list[Any] = [
            layer.register_forward_hook(
                lambda _, inputs, keywords, output, path=path: keep(path, inputs, keywords, output), with_kwargs=True
            )
            for path, layer in self.layers.items()
        ]
        try:
            with torch.enable_grad(), self.relayed():
                outputs = call()
        finally:
            for handle in handles:
                handle.remove()
        return Record(
            outputs, seen, all(version(z) == before for (_, _, z), before in zip(seen, versions, strict=True))
        )

    @contextmanager
    def relayed(self) -> Iterator[None]:
        """Give images to the layers as `forward` does."""
        layers = [layer for layer in self.layers.values() if isinstance(layer, nn.Conv2d)] if self.relays else []
        handles = [layer.register_forward_pre_hook(self._relay) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _relay(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return images channels last, where convolutions in float32 take half the time on a CPU."""
        if not inputs:  # by keyword
            return inputs
        a, *others = inputs
        if a.ndim != 4 or a.dtype != torch.float32 or a.device.type != "cpu":
            return inputs
        if a.shape[1] == 1:  # for one channel torch takes the strides at their word
            return a[:, 0, :, :, None].permute(0, 3, 1, 2), *others
        return a.contiguous(memory_format=torch.channels_last), *others

    def rows(self, record: Record, factor: Tensor) -> Tensor | None:
        """Return factor @ J of shape (n_samples, k, n_params); None where the layers do not tell.

        Parameters
        ----------
        record : Record
            Of `forward`; used up.
        factor : Tensor of shape (n_samples, k, n_outputs)
        """
        outputs, seen = record.outputs, record.seen
        n_samples, n_rows = factor.shape[:2]
        if not self._tells(record, n_samples):
            return None
        tensors = [z for _, _, z in seen]
        if not outputs.requires_grad or not tensors:
            return factor.new_zeros(n_samples, n_rows, self.n_params)
        block = factor.new_empty(n_samples, n_rows, self.n_params)
        for k, gradients in enumerate(_backward(outputs, tensors, factor)):
            self._fill(block[:, k], seen, gradients)
        return block

    def _tells(self, record: Record, n_samples: int) -> bool:
        if not record.is_whole:
            return False
        for path, a, z in record.seen:  # a layer may have run on something else than all samples
            least = 1 if isinstance(self.layers[path], nn.Embedding) else 2
            if not isinstance(z, Tensor) or a.ndim < least or z.ndim < 2 or not len(a) == len(z) == n_samples:
                return False
        return True

    def linear(self, device: torch.device) -> dict[str, LinearLayer] | None:
        """Return the layers where all of them are linear, see `gram`."""
        if self._linear is None or self._linear[0] != device:
            self._linear = device, linear_layers(self.layers, self.places, device)
        return self._linear[1]

    def factors(self, record: Record, factor: Tensor) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Return the factors of the rows of linear layers by path; None where a layer has not run once on vectors.

        Parameters
        ----------
        record : Record
            Of `forward`; used up unless the answer is None.
        factor : Tensor of shape (n_samples, k, n_outputs)

        Returns
        -------
        dict of str to (Tensor of shape (n_samples, n_inputs), Tensor of shape (n_samples, k, n_layer_outputs))
        """
        outputs, seen = record.outputs, record.seen
        once = sorted(path for path, _, _ in seen) == sorted(self.layers)
        flat = once and self._tells(record, len(factor)) and all(a.ndim == z.ndim == 2 for _, a, z in seen)
        if not flat or not outputs.requires_grad:
            return None
        tensors = [z for _, _, z in seen]
        found = [factor.new_zeros(*factor.shape[:2], z.shape[1]) for z in tensors]
        for k, gradients in enumerate(_backward(outputs, tensors, factor)):
            for whole, gradient in zip(found, gradients, strict=True):
                if gradient is not None:
                    whole[:, k] = gradient
        return {path: (a.to(factor.dtype), d) for (path, a, _), d in zip(seen, found, strict=True)}

    def _fill(self, block: Tensor, seen: list[tuple[str, Tensor, Tensor]], gradients: Any) -> None:
        """Write the rows (n_samples, n_params) of one backward pass; a layer that runs twice adds to its rows."""
        filled: set[int] = set()
        for (path, a, _), d in zip(seen, gradients, strict=True):
            if d is None:
                continue
            layer = self.layers[path]
            plain = type(layer) is nn.Linear and d.ndim == 2  # its outer products go straight to their place
            for name, part in RULES[type(layer)](layer, a, d).items() if not plain else (("weight", d), ("bias", d)):
                start = self.places.get(f"{path}.{name}" if path else name)
                if start is None:
                    continue
                n_own = a.shape[1] * d.shape[1] if plain and name == "weight" else part.flatten(1).shape[1]
                own = block[:, start : start + n_own]
                if plain and name == "weight":
                    self._outer(own, d, a, add=start in filled)
                elif start in filled:
                    own += part.flatten(1)
                else:
                    own.copy_(part.flatten(1))
                filled.add(start)
        for start, stop in self.spans:
            if start not in filled:
                block[:, start:stop] = 0

    @staticmethod
    def _outer(own: Tensor, d: Tensor, a: Tensor, *, add: bool) -> None:
        view = own.view(len(d), d.shape[1], a.shape[1])
        if add:
            view.addcmul_(d[:, :, None], a[:, None, :].to(d.dtype))
        else:
            torch.mul(d[:, :, None], a[:, None, :].to(d.dtype), out=view)
