"""Data: arrays become tensors once, and batches are slices of them; Datasets and arrays on disk are read in batches.

`TensorData` holds what a fit needs, on its device: inputs, labels as the user gave them, targets as the engine takes
them, and weights. `Batches` yields `Batch` pairs (inputs, labels), the form that skorch and its callbacks know, which
carry targets and weights along.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils.validation import check_array, check_consistent_length, column_or_1d, validate_data
from torch import Tensor

from sklm.engine.evidence import counted_rows
from sklm.engine.inputs import Reader, count_samples, map_tensors, spans, take, tensors
from sklm.engine.losses import Loss

MERGE_BYTES = 4 * 2**20
FEW_TARGETS, FEW_SHARE = 10, 0.2  # distinct ones, of all distinct rows: so few are not measured on a scale
KEPT_BYTES = 256 * 2**20  # of training rows kept for uncertainty
LOADED_BYTES = 256 * 2**20  # of a memmap that is loaded
LOAD_ROWS = 1024  # items of a torch Dataset collated at once


class Batch(tuple[Any, Any]):
    """The pair (inputs, labels) with `targets` and `weights` (or None) as attributes, and the batch that follows."""

    targets: Any
    weights: Tensor | None
    following: Batch | None = None

    def __new__(cls, inputs: Any, labels: Any, targets: Any, weights: Tensor | None) -> Batch:
        """Build the pair and attach what the engine needs."""
        batch = super().__new__(cls, (inputs, labels))
        batch.targets, batch.weights = targets, weights
        return batch


@dataclass
class TensorData:
    """Data of a fit: all in memory, or with inputs that are read batch by batch.

    Attributes
    ----------
    X : Tensor, or dict or tuple of tensors, with samples along the first axis, or Reader
        Inputs of the module.
    y : ndarray or None
        Labels or targets as the user gave them, for scoring callbacks.
    targets : Tensor or None
        Targets as the loss takes them: real numbers, or class indices.
    weights : Tensor of shape (n_samples,) or None
    source : TensorData or None
        The rows before repeated ones were merged.
    counts : Tensor of shape (n_samples,) or None
        How many rows each stands for in the evidence, see `sklm.engine.evidence`; None where it is the weight.
    """

    X: Any
    y: Any = None
    targets: Any = None
    weights: Tensor | None = None
    source: TensorData | None = None
    counts: Tensor | None = None

    def rows_per_weight(self, criterion: Loss) -> float:
        """Return how many rows, for the evidence, a weight of one stands for."""
        if self.counts is None:
            return 1.0
        weights = torch.ones_like(self.counts) if self.weights is None else self.weights
        return counted_rows(weights, criterion, self.counts) / float(weights.sum())

    def __len__(self) -> int:
        return count_samples(self.X)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        batch = self.take(index)
        return batch[0], batch[1]

    def take(self, index: Any) -> Batch:
        """Return the samples at `index` (slice, or array of positions)."""
        at: Any = index
        if isinstance(index, np.ndarray):
            like = self.targets if isinstance(self.X, Reader) else tensors(self.X)[0]
            at = torch.as_tensor(index, device=None if like is None else like.device)
        return Batch(
            take(self.X, index if isinstance(self.X, Reader) else at),
            None if self.y is None else self.y[index],
            None if self.targets is None else self.targets[at],
            None if self.weights is None else self.weights[at],
        )

    def subset(self, index: np.ndarray) -> Self:
        """Return the samples at `index` as data of their own, of the same class."""
        whole = self.X
        positions = torch.arange(len(whole), device="cpu") if isinstance(whole, Reader) else whole
        batch = replace(self, X=positions).take(index)
        inputs = Reader(lambda part: whole.read(index[part]), len(index)) if isinstance(whole, Reader) else batch[0]
        counts = None if self.counts is None else self.counts[torch.as_tensor(index, device=self.counts.device)]
        return type(self)(inputs, batch[1], batch.targets, batch.weights, counts=counts)


DataT = TypeVar("DataT", bound=TensorData)


def _distinct(*parts: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the first place of every distinct row, and which of these each row is."""
    columns = [part.detach().cpu().reshape(len(part), -1).contiguous().numpy() for part in parts]
    rows = np.hstack([column.view(np.uint8) for column in columns])
    rows = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}")[:, 0]
    _, first, group = np.unique(rows, return_index=True, return_inverse=True)
    return first, group


def _is_large(data: TensorData) -> bool:
    """Return whether rows are not worth sorting."""
    return isinstance(data.X, Reader) or sum(part.nbytes for part in (*tensors(data.X), data.targets)) > MERGE_BYTES


def count_copies_once(data: DataT) -> DataT:
    """Return `data` whose copies of a row count as one row together, whatever their weights.

    A copy brings no noise of its own, and a weight that happens to be whole, as 1 / sigma^2 may be, does not make one.
    That holds where measured targets are equal by being copied: where there are more than `FEW_TARGETS` of them, and
    a `FEW_SHARE` of the distinct rows at least. Others, as grades, are equal by chance and are left as they are. Copies
    in data that are large, or read batch by batch, are not looked for.
    """
    counts = np.ones(len(data)) if data.weights is None else (data.weights > 0).double().cpu().numpy()
    n_targets = len(torch.unique(data.targets[torch.as_tensor(counts > 0).to(data.targets.device)], dim=0))
    group = np.arange(len(data))
    if n_targets < counts.sum() and not _is_large(data):
        group = _distinct(*tensors(data.X), data.targets)[1]
    times = np.bincount(group, weights=counts)
    n_distinct = np.count_nonzero(times)
    if n_targets <= max(FEW_TARGETS, FEW_SHARE * n_distinct) or (data.weights is None and n_distinct == len(data)):
        return data
    return replace(data, counts=torch.as_tensor(counts / np.maximum(times, 1)[group]).to(data.targets))


def merge_repeated_rows(data: DataT, dtype: torch.dtype) -> DataT:
    """Return `data` with each distinct row once, in a fixed order, and how often it occurs as its weight.

    Then weights equal repeated rows to the last bit, in whatever order they come. Data of more than
    `MERGE_BYTES` are returned as they are: there sorting would cost more than the last bit is worth.
    """
    if _is_large(data):
        return data
    first, group = _distinct(*tensors(data.X), data.targets)
    if len(first) == len(data) and data.weights is None:
        return data

    def added(values: Tensor | None) -> Tensor:
        each = None if values is None else values.double().cpu().numpy()
        return torch.as_tensor(np.bincount(group, weights=each)).to(data.targets.device, dtype)

    merged = data.subset(first)
    merged.source, merged.weights = data, added(data.weights)
    merged.counts = None if data.counts is None else added(data.counts)
    return merged


def kept_rows(data: TensorData) -> TensorData | None:
    """Return the rows of a fit on the CPU without their labels; None above `KEPT_BYTES` or read batch by batch."""
    rows = data if data.source is None else data.source
    if (
        isinstance(rows.X, Reader)
        or sum(tensor.numel() * tensor.element_size() for tensor in tensors(rows.X)) > KEPT_BYTES
    ):
        return None
    weights, counts = (None if part is None else part.cpu() for part in (rows.weights, rows.counts))
    return TensorData(map_tensors(torch.Tensor.cpu, rows.X), None, rows.targets.cpu(), weights, counts=counts)


class Batches:
    """Iterate over `data` in batches; with `epoch_seed`, in an order drawn anew for every pass.

    Parameters
    ----------
    data : TensorData
    size : int or callable returning int
        Samples per batch at most, asked for at every pass; -1 for all. The batches of a pass have about one size.
    epoch_seed : callable returning int, default=None
        Called once per pass for the seed of its order; None keeps the order.
    """

    def __init__(
        self, data: TensorData, size: int | Callable[[], int], epoch_seed: Callable[[], int] | None = None
    ) -> None:
        self.data, self.size, self.epoch_seed = data, size, epoch_seed

    @property
    def batch_size(self) -> int:
        """Samples of the largest batch of the next pass."""
        return -(-len(self.data) // len(self))

    def __len__(self) -> int:
        size = self.size() if callable(self.size) else self.size
        return 1 if size == -1 else -(-len(self.data) // size)

    def __iter__(self) -> Iterator[Batch]:
        n_samples, n_batches = len(self.data), len(self)
        if n_batches == 1:
            data = self.data
            yield Batch(data.X, data.y, data.targets, data.weights)
            return
        order = None
        if self.epoch_seed is not None:
            generator = torch.Generator().manual_seed(self.epoch_seed())
            order = torch.randperm(n_samples, generator=generator, device="cpu").numpy()
        least, longer = divmod(n_samples, n_batches)  # so many have one more
        ends = [i * least + min(i, longer) for i in range(n_batches + 1)]
        parts = (
            self.data.take(slice(*span) if order is None else order[slice(*span)]) for span in itertools.pairwise(ends)
        )
        batch = first = next(parts)
        for following in parts:
            batch.following = following
            yield batch
            batch.following, batch = None, following  # no chain that keeps an epoch alive
        batch.following = first
        yield batch
        batch.following = None


@dataclass(frozen=True)
class Stored:
    """A torch Dataset or an array on disk: what is too large to be loaded.

    Attributes
    ----------
    read : callable
        ``read(index)`` returns inputs and targets (or None) at a slice or an array of positions.
    n_samples : int
    """

    read: Callable[[Any], tuple[Any, Any]]
    n_samples: int

    def parts(self) -> Iterator[tuple[Any, Any]]:
        """Yield inputs and targets of `LOAD_ROWS` samples at a time."""
        yield from map(self.read, spans(self.n_samples, LOAD_ROWS))


def stored(X: Any) -> Stored | None:
    """Return how to read a torch Dataset of the user's or a large `numpy.memmap` in parts; None for anything else."""
    if isinstance(X, np.memmap):
        if X.nbytes <= LOADED_BYTES:  # as joblib's, which passes arrays from 1 MB on to its workers so
            return None
        return Stored(lambda index: (X[index], None), len(X)) if X.ndim > 1 else None
    if not isinstance(X, torch.utils.data.Dataset) or isinstance(X, TensorData):
        return None
    if isinstance(X, torch.utils.data.IterableDataset):
        X = list(X)  # no other way to more than one pass
    if not len(X):
        raise ValueError("`X` is an empty Dataset; it must have at least one item.")
    return Stored(partial(_read_items, X), len(X))


def _read_items(dataset: Any, index: Any) -> tuple[Any, Any]:
    """Return inputs and targets (None where items are inputs alone) of the items at `index`."""
    positions = range(len(dataset))[index] if isinstance(index, slice) else index.tolist()
    fetch = getattr(dataset, "__getitems__", None)
    items = [dataset[i] for i in positions] if fetch is None else fetch(list(positions))
    part = torch.utils.data.default_collate(items)
    if isinstance(part, (tuple, list)) and len(part) == 2:
        inputs, targets = part
    elif isinstance(part, (Tensor, Mapping)):
        inputs, targets = part, None
    else:
        raise ValueError("the items of a Dataset must be pairs (inputs, target), or inputs alone: a tensor or a dict.")
    if isinstance(inputs, (tuple, list)):
        raise ValueError(
            "a Dataset with several inputs must give them as a dict, the arguments of the module's forward."
        )
    return inputs, targets


def joined(parts: list[Any]) -> Any:
    """Return targets of a Dataset in one piece; None where there are none."""
    if parts[0] is None:
        return None
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def as_array(value: Any) -> Any:
    """Return a tensor as a NumPy array (bfloat16, which NumPy lacks, as float32), anything else as it is.

    Sequences that can be arrays, as skorch's `SliceDataset`, become such.
    """
    if isinstance(value, Sequence) and hasattr(value, "__array__"):
        return np.asarray(value)
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def validate_inputs(estimator: Any, X: Any, *, reset: bool) -> Any:
    """Check the inputs as scikit-learn does and return them as an array, or a dict of arrays.

    Arrays and frames become float32 or float64; integer tensors, and integer arrays in a dict, stay integers (for
    embeddings). Sets `n_features_in_` and `feature_names_in_` on `estimator` where `reset`, else compares with them.
    """
    if isinstance(X, Mapping) and not issparse(X):  # a scipy dok_matrix is a dict
        return _validate_dict(estimator, X, reset=reset)
    if not reset and hasattr(estimator, "input_names_"):
        raise ValueError(f"`X` must be a dict with the keys {estimator.input_names_}, as in fit.")
    if reset:
        vars(estimator).pop("input_names_", None)
    keeps_integers = isinstance(X, Tensor) and not X.is_floating_point() and X.dtype != torch.bool
    dtype = None if keeps_integers else [np.float64, np.float32]
    try:
        return validate_data(estimator, as_array(X), reset=reset, dtype=dtype, allow_nd=True)
    except (TypeError, ValueError) as error:
        if issparse(X) and isinstance(error, TypeError):
            advice = (
                "In a pipeline pass OneHotEncoder(sparse_output=False), and sparse_threshold=0 to ColumnTransformer."
            )
            raise TypeError(f"{error} {advice}") from error
        columns = [str(name) for name in getattr(X, "columns", []) if not _holds_numbers(X[name])]
        if not columns or (isinstance(error, ValueError) and "convert" not in str(error)):
            raise
        raise ValueError(
            f"`X` must hold numbers; the columns {columns} do not. Encode categories, for instance by OneHotEncoder in "
            "a ColumnTransformer, and pass dates as days since one."
        ) from error


def validate_columns(estimator: Any, X: Any, find: Callable[[], list[int]], *, reset: bool) -> np.ndarray:
    """Check a table of which only some columns are used, and return those alone, as an array.

    Parameters
    ----------
    estimator : object
        Gets or has `n_features_in_` and `feature_names_in_` of the whole table.
    X : table of shape (n_samples, n_features)
        The other columns may hold anything; after a fit to a frame with names, they may be missing.
    find : callable
        Returns the positions of the columns, once the facts of the table are set on `estimator`.
    reset : bool
        See `validate_inputs`.
    """
    X = as_array(X)
    if not hasattr(X, "shape"):
        X = np.asarray(X)
    if len(X.shape) != 2 or issparse(X):
        return validate_inputs(estimator, X, reset=reset)[:, find()]  # raises with scikit-learn's advice
    known = getattr(estimator, "feature_names_in_", None)
    if not reset and known is not None and hasattr(X, "columns"):  # by name, in any order and without the other columns
        columns = find()
        names = [known[column] for column in columns]
        missing = [name for name in names if name not in X.columns]
        if missing:
            raise ValueError(
                "The feature names should match those that were passed during fit.\n"
                f"Feature names seen at fit time, yet now missing: {', '.join(missing)}"
            )
        used = X[names]
    else:
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        columns = find()
        used = X.iloc[:, columns] if hasattr(X, "iloc") else X[:, columns]
    if any(_is_date(kind) for kind in getattr(used, "dtypes", [])):
        raise ValueError(
            "`X` must hold numbers in the columns of the curve; got dates. Pass, for instance, days since one."
        )
    try:
        return check_array(used, dtype=[np.float64, np.float32], estimator=estimator, input_name="X")
    except ValueError as error:
        if hasattr(used, "columns"):
            parts = {f"X[{str(name)!r}]": used[name] for name in used.columns}
        else:
            parts = {f"X[:, {column}]": used[:, i] for i, column in enumerate(columns)}
        text = [name for name, part in parts.items() if not _holds_numbers(part)]
        if not text or "convert" not in str(error):
            raise
        raise ValueError(
            f"`X` must hold numbers in the columns of the curve; not so {', '.join(text)}. Code a category as 0 and 1, "
            f"for instance by ({text[0]} == {str(np.asarray(parts[text[0]])[0])!r}).astype(int)."
        ) from error


def _holds_numbers(column: Any) -> bool:
    values = np.asarray(column)
    try:
        values.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return values.dtype.kind not in "mM"


def _is_date(kind: Any) -> bool:
    """Return whether the dtype of a column, of pandas or polars, is one of dates."""
    return getattr(kind, "kind", "") == "M" or getattr(kind, "is_temporal", bool)()


def _validate_dict(estimator: Any, X: Mapping[str, Any], *, reset: bool) -> dict[str, Any]:
    if not X:
        raise ValueError("`X` is an empty dict; give one array per argument of the module's forward.")
    arrays = {}
    for name, value in X.items():
        value = as_array(value)
        arrays[name] = check_array(value, dtype="numeric", ensure_2d=False, allow_nd=True, input_name=f"X[{name!r}]")
    check_consistent_length(*arrays.values())
    names = getattr(estimator, "input_names_", None)
    if not reset and sorted(X) != names and hasattr(estimator, "n_outputs_"):
        wanted = "be an array" if names is None else f"have the keys {names}"
        raise ValueError(f"`X` must {wanted}, as in fit; got {sorted(X)}.")
    if reset:
        estimator.input_names_ = sorted(X)
        for name in ("n_features_in_", "feature_names_in_"):
            vars(estimator).pop(name, None)
    return arrays


def validate_real_targets(y: Any) -> np.ndarray:
    """Return finite real targets of shape (n_samples,) or (n_samples, n_outputs) as float64 or float32."""
    y = as_array(y)
    try:
        checked = check_array(y, dtype="numeric", ensure_2d=False, input_name="y")
        return checked if checked.dtype == np.float32 else checked.astype(np.float64, copy=False)
    except TypeError:
        raise ValueError(f"`y` must hold numbers; got {type(checked.flat[0]).__name__}.") from None
    except ValueError as error:
        text = [value for value in np.asarray(y, dtype=object).flat if isinstance(value, str)]
        if not text:
            raise
        raise ValueError(f"`y` must hold numbers; got text, {str(text[0])!r}. For classes use LMClassifier.") from error


def validate_labels(y: Any) -> np.ndarray:
    """Return class labels of shape (n_samples,)."""
    y = as_array(y)
    y = check_array(y, dtype=None, ensure_2d=False, input_name="y")
    try:
        return column_or_1d(y, warn=True)
    except ValueError as error:
        raise ValueError(f"{error} One class per sample: for columns of 0 and 1 pass y.argmax(axis=1).") from None


def to_tensors(arrays: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return arrays as tensors on `device`, real numbers in `dtype`; never views of the caller's memory."""
    if isinstance(arrays, Mapping):
        return {name: to_tensors(array, dtype, device) for name, array in arrays.items()}
    array = np.array(arrays)  # a module may write into its input
    tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
