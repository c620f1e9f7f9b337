"""A module as a function of one flat parameter vector: its outputs, and rows of the derivative of its outputs.

`ModuleFunction` is functional: it evaluates the module at any parameter vector without touching the module, so a
rejected attempt has nothing to restore. Outputs are flattened to (n_samples, n_outputs).

The rows that a step needs are A_i = S_i J_i with the factor S_i (k x o) of the loss, so J itself is never formed. They
come from the fastest way that the module allows, found by trying it on some rows first: layer by layer (`layerwise`),
by copies of scalar parameters (`scalars`), or else by `torch.func` (`functional`).

Samples never mix: every row is the derivative of the module applied to that sample alone. BatchNorm layers therefore
run with their running statistics, unchanged (`steady_batchnorm`). A module that draws random numbers (dropout) draws
the same ones for residuals, Jacobian and trials of a step, from a seed: its outputs then go through the same `vmap` in
the same chunks as its rows.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sklm.engine._checks import check_choice
from sklm.engine.bounds import Box
from sklm.engine.functional import FunctionalJacobian, sample_rows
from sklm.engine.gram import Gram, n_products
from sklm.engine.inputs import (
    Reader,
    check_output,
    chunks,
    count_samples,
    flat_output,
    split_arguments,
    take,
)
from sklm.engine.layerwise import LayerwiseJacobian
from sklm.engine.memory import is_out_of_memory
from sklm.engine.modes import plain_attention, quiet_forward_mode
from sklm.engine.scalars import ScalarJacobian, with_differences
from sklm.engine.trial import Trial

FORWARD_ROWS = 2**16  # samples of a forward pass, until memory runs out
KEPT_BYTES = 128 * 2**20  # of a graph that waits for the Jacobian
DIFFERENCE = 0.1  # of a direction, as Transtrum and Sethna 2012: rounding is a hundred times that of the outputs

Factor = Callable[[slice], Tensor]


class ModuleFunction:
    """Outputs and Jacobian rows of a module, as functions of the flat vector of its trainable parameters.

    Parameters
    ----------
    module : torch.nn.Module
        Parameters that require a gradient at construction form the vector, tied ones once.
    jacobian : {"auto", "layerwise", "functional"}, default="auto"
        How rows are computed: by layers or copies of scalar parameters where the module allows it, else by
        vector-Jacobian products; ``"layerwise"`` refuses a module that does not allow it.

    Attributes
    ----------
    modules : list of torch.nn.Module
        The module and all within it.
    sizes : dict of str to int
        Name and number of elements of every trainable tensor, in the order of the vector.
    n_params : int
    all_scalar : bool
        Whether every parameter is one number.
    box : Box or None
        Where the module may be evaluated; None for everywhere.
    """

    box: Box | None = None

    def __init__(self, module: nn.Module, jacobian: str = "auto") -> None:
        if not isinstance(module, nn.Module):
            raise ValueError(f"`module` must be a torch.nn.Module, not its parameters(); got {type(module).__name__}.")
        named = list(module.named_modules())
        self.module, self.modules = module, [part for _, part in named]
        self.jacobian = check_choice("jacobian", jacobian, ["auto", "layerwise", "functional"])
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError(
                "`module` has no trainable parameters; give it at least one nn.Parameter with requires_grad=True."
            )
        if any(p.is_inference() for p in self.parameters.values()):
            raise ValueError(
                "`module` was made in torch.inference_mode(), so it has no derivatives; make it outside of that."
            )
        if any(is_lazy(p) for p in self.parameters.values()):
            raise ValueError("`module` has lazy parameters without a shape; call it once with data before.")
        kinds = {(p.dtype, p.device) for p in self.parameters.values()}
        if len(kinds) > 1 or next(iter(kinds))[0] not in (torch.float32, torch.float64):
            raise ValueError(
                "all trainable parameters of `module` must be float32 or all float64, on one device; got "
                f"{', '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}. Use module.to(...)."
            )
        bounded = [
            path
            for path, part in named
            if isinstance(part, nn.Embedding | nn.EmbeddingBag)
            and part.max_norm is not None
            and part.weight.requires_grad
        ]
        if bounded:
            raise ValueError(
                f"`module` changes its parameters in forward: {bounded[0] or 'it'} is a layer with `max_norm`; use one "
                "without."
            )
        self.sizes = {name: p.numel() for name, p in self.parameters.items()}
        self.n_params = sum(self.sizes.values())
        # every place that holds a parameter, each once: tied ones have several, a layer that is used twice only one
        order = {id(p): i for i, p in enumerate(self.parameters.values())}
        found = [
            (path, owner._parameters, name, order[id(p)])
            for path, owner in named
            for name, p in owner._parameters.items()  # `named_parameters` leaves out a second name in one module
            if id(p) in order
        ]
        self.places = [(f"{path}.{name}" if path else name, i) for path, _, name, i in found]
        self._slots = [(owner, name, i) for _, owner, name, i in found]
        self.functional = FunctionalJacobian()
        self._has_forward_mode = True  # until it was wanted
        self._gram_works = True
        self.all_scalar = all(p.ndim == 0 for p in self.parameters.values())
        self.scalars: ScalarJacobian | None = None
        if self.all_scalar and jacobian != "functional":
            self.scalars = ScalarJacobian(is_elementwise=getattr(module, "is_elementwise", False))
        self.layerwise: LayerwiseJacobian | None = None
        # parameters and inputs of the last `outputs`, and the records of its chunks by their first sample
        self._kept: tuple[Tensor, Any, int, dict[int, Any]] | None = None
        self._last: tuple[Tensor, Any, Tensor] | None = None  # where scalar rows were computed last
        self._forward_rows = FORWARD_ROWS
        self._chunk = self._kept_samples = 0  # samples of which `outputs` may keep the records: of one, and in all
        if jacobian == "functional":
            return
        starts = [0, *itertools.accumulate(self.sizes.values())]
        self.layerwise = LayerwiseJacobian.for_module(
            module, {name: starts[i] for name, i in self.places}, self.n_params
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "_last": None}

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def vector(self) -> Tensor:
        """Return the current parameters as a new tensor of shape (n_params,)."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters.values()])

    def assign(self, vector: Tensor) -> None:
        """Write `vector` of shape (n_params,) into the module, in one call that no interrupt divides."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.parameters.values()), self._split(vector))

    def per_element(self, value: Callable[[nn.Parameter], bool]) -> Tensor:
        """Return a boolean tensor of shape (n_params,) with `value(parameter)` for each element of each parameter."""
        return torch.cat([torch.full((p.numel(),), value(p), device=p.device) for p in self.parameters.values()])

    @property
    def penalized(self) -> Tensor:
        """Which numbers the L2 penalty is on: those of weight matrices, not of biases or constants of a curve."""
        return self.per_element(lambda parameter: parameter.ndim >= 2)

    @property
    def n_matrices(self) -> int:
        """How many parameters the L2 penalty is on."""
        return sum(parameter.ndim >= 2 for parameter in self.parameters.values())

    def outputs(
        self, vector: Tensor, inputs: Any, *, seed: int | None = None, chunk: int = 0, keep: bool = False
    ) -> Tensor:
        """Return the outputs at `vector`, of shape (n_samples, n_outputs).

        With a `seed`, random numbers are those that `rows` draws for the same seed and `chunk` (samples at once). With
        `keep`, the forward pass serves the next call of `rows` for the same vector and inputs too, until `forget`, if
        its graph is not larger than `KEPT_BYTES`.
        """
        if seed is not None:
            parts = [self.functional.outputs(self, vector, x, seed + at.start) for at, x in chunks(inputs, chunk)]
            return torch.cat(parts)
        return self._in_parts(inputs, lambda: self._outputs(vector, inputs, keep=keep))

    def _in_parts(self, inputs: Any, of: Callable[[], Tensor]) -> Tensor:
        """Return what `of` computes, with fewer rows at once as long as it runs out of memory."""
        while True:
            try:
                return of()
            except RuntimeError as error:
                if not is_out_of_memory(error) or self._forward_rows == 1:
                    raise
            self.forget()
            self._forward_rows = max(1, min(self._forward_rows, count_samples(inputs)) // 2)
            self._kept_samples = 0
            warnings.warn(
                f"out of memory; the module is now evaluated on {self._forward_rows} rows at once.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _outputs(self, vector: Tensor, inputs: Any, *, keep: bool) -> Tensor:
        is_small = count_samples(inputs) <= self._kept_samples
        if keep and is_small:
            recorded = self._recorded(vector, inputs)
            if recorded is not None:
                return recorded
        outputs: Tensor | None = None
        for span, part in chunks(inputs, self._chunk if is_small else self._forward_rows):  # kept or not: same rounding
            with self.layerwise.relayed() if is_small and self.layerwise is not None else nullcontext():
                found = flat_output(self.call(vector, part), count_samples(part))
            if len(found) == count_samples(inputs):
                return found
            if outputs is None:  # allocated once: parts that are kept would pin the memory freed between them
                outputs = found.new_empty(count_samples(inputs), found.shape[1])
            outputs[span] = found
        assert outputs is not None  # noqa: S101 - there is at least one sample
        return outputs

    def _recorded(self, vector: Tensor, inputs: Any) -> Tensor | None:
        """Return the outputs and keep the records of all chunks; None where there are none."""
        if self._fast_rows(vector, inputs, lambda: self._count_outputs(vector, inputs), self._chunk) is None:
            return None
        records, outputs = {}, []
        for span, part in chunks(inputs, self._chunk):
            record = self._record(vector, part)
            if record is None:
                return None
            records[span.start] = record
            outputs.append(flat_output(record.outputs.detach(), count_samples(part)))
        self._kept = vector, inputs, self._chunk, records
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _count_outputs(self, vector: Tensor, inputs: Any) -> int:
        return flat_output(self.call(vector, take(inputs, slice(0, 1))), 1).shape[1]

    def state_dict(self) -> dict[str, int]:
        """Return in which chunks `outputs` keeps its forward passes: rounding depends on them."""
        return {"chunk": self._chunk, "kept_samples": self._kept_samples}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take the state that `state_dict` returned."""
        self._chunk, self._kept_samples = state["chunk"], state["kept_samples"]

    def rows(
        self,
        vector: Tensor,
        indices: Tensor | None,
        inputs: Any,
        factor: Tensor | Factor,
        *,
        seed: int | None = None,
        chunk: int,
    ) -> Iterator[Tensor]:
        """Yield the rows factor @ J chunk by chunk, each of shape (samples, k, n_selected).

        Parameters
        ----------
        vector : Tensor of shape (n_params,)
        indices : Tensor of shape (n_selected,) or None
            Parameters to differentiate with respect to; None for all.
        inputs : tensor, tuple or dict of tensors, or Reader
        factor : Tensor of shape (n_samples, k, n_outputs), or callable
            ``factor(span)`` returns that of a slice of the samples; it is called right before their rows come.
        seed : int or None
            See `outputs`.
        chunk : int
            Samples at once.
        """
        of = factor if callable(factor) else factor.__getitem__
        fast = None
        if seed is None:
            fast = self._fast_rows(vector, inputs, lambda: of(slice(0, 1)).shape[2], chunk)
        if fast is None and self.jacobian == "layerwise":
            raise ValueError(
                "`jacobian='layerwise'` needs a module whose trainable parameters all sit in Linear, Conv1d, Conv2d, "
                "LayerNorm, BatchNorm or Embedding layers that do nothing else with them, without random numbers; pass "
                "'auto'."
            )
        records = self._records(vector, inputs, chunk)
        for span, part in chunks(inputs, chunk):
            own = of(span)
            block = None
            if fast is not None:
                record = records.pop(span.start, None) or self._record(vector, part)
                self._size_up(record, len(own), inputs, chunk)
                block = None if record is None else fast(vector, part, record, own)
            if block is None:  # the module takes another way for these samples
                own_seed = None if seed is None else seed + span.start
                yield self.functional.rows(self, vector, indices, part, own, own_seed)
            else:
                yield block if indices is None else block[:, :, indices]

    def _records(self, vector: Tensor, inputs: Any, chunk: int) -> dict[int, Any]:
        """Return the kept forward passes of these chunks by their first sample, and let them go."""
        kept, self._kept = self._kept, None  # a graph is used up by its rows
        return kept[3] if kept is not None and kept[0] is vector and kept[1] is inputs and kept[2] == chunk else {}

    def _size_up(self, record: Any, n_samples: int, inputs: Any, chunk: int) -> None:
        """Note in which chunks `outputs` may keep its forward passes, and of how many samples."""
        if record is not None and not isinstance(inputs, Reader):
            self._chunk, self._kept_samples = chunk, KEPT_BYTES * n_samples // max(1, record.n_bytes)

    def gram(
        self,
        vector: Tensor,
        inputs: Any,
        linearize: Callable[[slice], tuple[Tensor, Tensor]],
        *,
        rows_per_sample: int,
        chunk: int,
    ) -> tuple[Tensor, Tensor, float] | None:
        """Return A'A, A'r and |r|^2 of all rows without forming them; None where that takes more memory than the rows.

        Parameters
        ----------
        vector : Tensor of shape (n_params,)
        inputs : tensor, tuple or dict of tensors, or Reader
        linearize : callable
            ``linearize(span)`` returns residual (n_samples, k) and factor (n_samples, k, n_outputs) of a slice of the
            samples.
        rows_per_sample : int
            k.
        chunk : int
            Samples whose rows fit in memory at once.
        """
        fast = self._fast_rows(vector, inputs, lambda: linearize(slice(0, 1))[1].shape[2], chunk)
        if fast is None or self.layerwise is None:
            return None
        layers = self.layerwise.linear(vector.device)
        if layers is None or not self._gram_works:
            return None
        per_sample = n_products(layers.values())
        of_rows = rows_per_sample * self.n_params
        if per_sample > of_rows:
            return None
        sums, square = Gram(list(layers.values()), self.n_params), 0.0
        at_once = chunk * of_rows // per_sample
        records = self._records(vector, inputs, at_once)
        for span, part in chunks(inputs, at_once):
            residual, factor = linearize(span)
            record = records.pop(span.start, None) or self._layerwise_record(vector, part)
            self._size_up(record, len(factor), inputs, at_once)
            found = self.layerwise.factors(record, factor)
            if found is None:
                self._gram_works = False
                return None
            columns = [layer.columns(found[path][0]) for path, layer in layers.items()]
            sums.add(columns, [found[path][1] for path in layers], residual)
            square += float(residual.square().sum())
        return *sums.matrix(), square

    def _fast_rows(
        self, vector: Tensor, inputs: Any, count_outputs: Callable[[], int], chunk: int
    ) -> Callable[[Tensor, Any, Any, Tensor], Tensor | None] | None:
        """Return the faster way to rows that this module allows, if one does; see on the first use."""
        scalars, layerwise = self.scalars, self.layerwise
        if scalars is not None and scalars.works is None:
            self._try_scalars(scalars, vector, inputs, count_outputs(), chunk)
        if scalars is not None and scalars.works:
            return self._scalar_rows
        if layerwise is not None and layerwise.works is None:
            self._try_layerwise(layerwise, vector, inputs, count_outputs(), chunk)
        return self._layerwise_rows if layerwise is not None and layerwise.works else None

    @property
    def method(self) -> str:
        """How the last rows were computed: "scalar", "layerwise", "forward", "functional" or "sample by sample"."""
        if self.scalars is not None and self.scalars.works:
            return "scalar"
        if self.layerwise is not None and self.layerwise.works:
            return "layerwise"
        return self.functional.method

    def _try_layerwise(
        self, layerwise: LayerwiseJacobian, vector: Tensor, inputs: Any, n_outputs: int, chunk: int
    ) -> None:
        """See whether rows layer by layer are those of the general way."""
        trial = Trial.near(self, vector, inputs, n_outputs, chunk)
        try:
            found = layerwise.rows(self._layerwise_record(trial.vector, trial.inputs), trial.factor)
        except RuntimeError as error:
            if not layerwise.relays or is_out_of_memory(error):
                raise
            layerwise.relays = False  # `view`, for one, needs the layout that the module expects
            found = layerwise.rows(self._layerwise_record(trial.vector, trial.inputs), trial.factor)
        layerwise.works = found is not None and trial.confirms(found[:, 0])

    def _layerwise_rows(self, vector: Tensor, inputs: Any, record: Any, factor: Tensor) -> Any:
        layerwise: Any = self.layerwise
        return layerwise.rows(record, factor)

    def _layerwise_record(self, vector: Tensor, inputs: Any) -> Any:
        leaf = vector.detach().requires_grad_()
        layerwise: Any = self.layerwise
        return layerwise.forward(lambda: flat_output(self.call(leaf, inputs), count_samples(inputs)))

    def _scalar_record(self, vector: Tensor, inputs: Any) -> Any:
        scalars: Any = self.scalars
        return scalars.forward(self.call_with, vector, inputs, count_samples(inputs))

    def _record(self, vector: Tensor, inputs: Any) -> Any:
        """Return a forward pass that the fast way to rows can start from; None where there is none."""
        if self.scalars is not None and self.scalars.works:
            return self._scalar_record(vector, inputs)
        return self._layerwise_record(vector, inputs)

    def forget(self) -> None:
        """Drop what `outputs` and `rows` have kept."""
        self._kept = self._last = None

    def _try_scalars(self, scalars: ScalarJacobian, vector: Tensor, inputs: Any, n_outputs: int, chunk: int) -> None:
        """See whether rows from copies of scalar parameters are those of the general way; one sample does not tell."""
        if n_outputs != 1:
            scalars.works = False
            return
        if min(chunk, count_samples(inputs)) > 1:
            trial = Trial.near(self, vector, inputs, 1, chunk)
            scalars.check(
                self.call_with,
                trial.vector,
                trial.inputs,
                len(trial.factor),
                lambda rows: trial.confirms(trial.factor[:, 0] * rows),
            )

    def rows_alone(self, vector: Tensor, inputs: Any, factor: Tensor) -> Tensor:
        """Return the rows of all parameters by backward passes for each sample alone."""
        return torch.stack([sample_rows(self, vector, None, take(inputs, i), own) for i, own in enumerate(factor)])

    def _scalar_rows(self, vector: Tensor, inputs: Any, copies: Any, factor: Tensor) -> Any:
        scalars: Any = self.scalars
        jacobian = scalars.rows(copies)
        if not math.isfinite(float(jacobian.sum())):
            jacobian = with_differences(jacobian, self, vector, inputs, copies.outputs.detach().reshape(-1))
        self._last = vector, inputs, jacobian
        return factor * jacobian[:, None, :]

    def second_derivative(self, vector: Tensor, direction: Tensor, inputs: Any, outputs: Tensor) -> Tensor:
        """Return the second derivative of the outputs along `direction`, by their difference over a tenth of it.

        Parameters
        ----------
        vector, direction : Tensor of shape (n_params,)
        inputs : tensor, tuple or dict of tensors, or Reader
        outputs : Tensor of shape (n_samples, n_outputs)
            Those at `vector`.
        """
        short = DIFFERENCE * direction
        forward, backward = self.outputs(vector + short, inputs), self.outputs(vector - short, inputs)
        return ((forward - outputs) + (backward - outputs)) / DIFFERENCE**2

    def pushforward(self, vector: Tensor, direction: Tensor, inputs: Any) -> Tensor:
        """Return J_i direction of every sample, shape (n_samples, n_outputs), for `direction` (n_params,).

        Raises
        ------
        ValueError
            For a module that has neither forward mode nor second derivatives.
        """

        def outputs(point: Tensor) -> Tensor:
            return self.outputs(point, inputs)

        tangent: Tensor | None = None
        if self._has_forward_mode:
            try:
                with quiet_forward_mode():
                    tangent = torch.func.jvp(outputs, (vector,), (direction,))[1]
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._has_forward_mode = False  # the module has run before
        if tangent is None:
            with plain_attention():
                tangent = self._twice_backward(vector, direction, inputs)
        return tangent

    def _twice_backward(self, vector: Tensor, direction: Tensor, inputs: Any) -> Tensor:
        """Return J_i direction without forward mode: as the derivative of u'J direction in u."""
        leaf = vector.detach().requires_grad_()
        try:
            with torch.enable_grad():
                outputs = self.outputs(leaf, inputs)
                if not outputs.requires_grad:
                    return torch.zeros_like(outputs)
                u = torch.zeros_like(outputs, requires_grad=True)
                pulled = torch.autograd.grad(outputs, leaf, u, create_graph=True, materialize_grads=True)[0]
                return torch.autograd.grad(pulled, u, direction, materialize_grads=True)[0]
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"`solver='cg'` needs a module with forward mode or second derivatives; this one has neither: {error}. "
                "Pass solver='cholesky'."
            ) from error

    def pullback(self, vector: Tensor, cotangent: Tensor, inputs: Any) -> Tensor:
        """Return the sum of J_i' cotangent_i, shape (n_params,), for `cotangent` (n_samples, n_outputs)."""
        last = self._last
        if last is not None and last[0] is vector and last[1] is inputs:
            return last[2].T @ cotangent[:, 0]

        def pulled() -> Tensor:
            total = torch.zeros_like(vector)
            for span, part in chunks(inputs, self._forward_rows):
                leaf = vector.detach().requires_grad_()
                with torch.enable_grad():
                    outputs = flat_output(self.call(leaf, part), count_samples(part))
                if outputs.requires_grad:
                    total += torch.autograd.grad(outputs, leaf, cotangent[span], materialize_grads=True)[0]
            return total

        return self._in_parts(inputs, pulled)

    def call(self, vector: Tensor, inputs: Any) -> Tensor:
        """Return what the module returns at `vector`, in its dtype."""
        return self.call_with(self._split(vector), inputs).to(vector.dtype)

    def _split(self, vector: Tensor) -> list[Tensor]:
        """Return views of the vector with the shapes of the parameters."""
        if self.all_scalar:
            return list(vector.unbind())
        parts = torch.split_with_sizes(vector, list(self.sizes.values()))
        return [part.view(p.shape) for p, part in zip(self.parameters.values(), parts, strict=True)]

    def call_with(self, values: Sequence[Tensor], inputs: Any) -> Tensor:
        """Return what the module returns with other tensors as its parameters, in their order."""
        arguments, keywords = split_arguments(inputs)
        before = [owner[name] for owner, name, _ in self._slots]
        try:  # as torch.func.functional_call does, at a fraction of its cost
            for owner, name, i in self._slots:
                owner[name] = values[i]
            return check_output(self.module(*arguments, **keywords))
        finally:
            for (owner, name, _), parameter in zip(self._slots, before, strict=True):
                owner[name] = parameter


def element_names(parameters: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return a name for every number of named tensors: ``name`` of a scalar, else ``name[i, j]``."""
    return [
        f"{name}[{', '.join(map(str, index))}]" if index else name
        for name, parameter in parameters
        for index in itertools.product(*map(range, parameter.shape))
    ]
