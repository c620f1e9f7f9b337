"""What a module takes and returns: arrays, or tuples and dicts of them, in memory or read batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


class Reader:
    """Inputs that are read when they are used, instead of tensors.

    Parameters
    ----------
    read : callable
        ``read(index)`` returns the samples at a slice or an array of positions as tensors, or tuples or dicts of them.
    n_samples : int
    """

    def __init__(self, read: Callable[[Any], Any], n_samples: int) -> None:
        self.read, self.n_samples = read, n_samples

    def __len__(self) -> int:
        return self.n_samples


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Apply `function` to every tensor of nested tuples, lists and dicts."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {key: map_tensors(function, value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(map_tensors(function, value) for value in inputs)
    raise ValueError(
        f"`inputs` and `targets` must be tensors, or tuples and dicts of tensors; got {type(inputs).__name__}."
    )


def take(inputs: Any, index: Any) -> Any:
    """Return the samples at `index` of every tensor in `inputs`, or as a `Reader` reads them."""
    if isinstance(inputs, Reader):
        return inputs.read(index)
    return map_tensors(lambda tensor: tensor[index], inputs)


def tensors(inputs: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists and dicts, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(keep, inputs)
    return found


def count_samples(inputs: Any) -> int:
    """Return the common length of all tensors in `inputs`; raise when there is none."""
    if isinstance(inputs, Tensor) and inputs.ndim:
        return inputs.shape[0]
    if isinstance(inputs, Reader):
        return len(inputs)
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors(inputs)}
    if len(lengths) != 1:
        raise ValueError(f"all `inputs` must have the same number of samples; got {sorted(lengths)}.")
    return lengths.pop()


def spans(n_samples: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` samples that cover all."""
    for start in range(0, n_samples, size):
        yield slice(start, min(start + size, n_samples))


def chunks(inputs: Any, chunk: int) -> Iterator[tuple[slice, Any]]:
    """Yield slices of at most `chunk` samples and the inputs there: themselves where they are one chunk of tensors."""
    n_samples = count_samples(inputs)
    if n_samples <= chunk and not isinstance(inputs, Reader):
        yield slice(0, n_samples), inputs
        return
    for span in spans(n_samples, chunk):
        yield span, take(inputs, span)


def split_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments: a dict gives the latter, a tuple the former, a tensor is the only."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def version(output: Any) -> int | None:
    """Return how often a tensor was written into, where torch counts that."""
    return output._version if isinstance(output, Tensor) and not output.is_inference() else None


def call_module(module: nn.Module, inputs: Any) -> Any:
    """Call `module` with its inputs, see `split_arguments`."""
    arguments, keywords = split_arguments(inputs)
    return module(*arguments, **keywords)


def check_output(output: Any) -> Tensor:
    """Return what a module returned, or raise when it is not a tensor of real numbers."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"`module` must return a tensor of real floating-point numbers; got {kind}.")
    return output


def flat_output(output: Tensor, n_samples: int) -> Tensor:
    """Return outputs as (n_samples, n_outputs), or raise where they are not one row per sample."""
    if output.shape[:1] != (n_samples,):
        raise ValueError(
            "`module` must return one row per sample, (n_samples,) or (n_samples, n_outputs); for "
            f"{n_samples} samples it returned shape {tuple(output.shape)}."
        )
    return output.reshape(n_samples, -1)
