"""From what the user passes to tensors, batches and validation sets."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import skorch
import torch
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import _check_sample_weight, check_consistent_length
from torch import Tensor

from sklm._data import (
    Batches,
    DataT,
    Stored,
    TensorData,
    count_copies_once,
    joined,
    merge_repeated_rows,
    stored,
    to_tensors,
    validate_columns,
    validate_inputs,
)
from sklm._device import dtype_name, resolve_device, resolve_dtype
from sklm._net.parameters import Parameterized, init_takes
from sklm.curves import Curve, is_curve
from sklm.engine.evidence import check_alpha, counted
from sklm.engine.inputs import Reader

MANY_ROWS = 2**18  # a curve with as many starts from a fit to some of them
# batch_size="auto": rows of the first batches, at least and per parameter, and how many of them the data must fill
LEAST_BATCH, ROWS_PER_PARAM, FEWEST_BATCHES = 1000, 5, 4


class Data(TensorData, skorch.dataset.Dataset):
    """`TensorData` that skorch's callbacks recognize as a dataset."""


class WithData(Parameterized):
    """A net that takes in data."""

    @abc.abstractmethod
    def _encode(self, y: Any, *, reset: bool, classes: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return labels as the user gave them, checked, and targets: real numbers or class indices."""

    def _training_data(self, X: Any, y: Any, sample_weight: Any, *, reset: bool, classes: Any = None) -> Data:
        """Validate data for a fit and move them to the device."""
        source = stored(X)
        if y is None and source is None:
            raise self._no_targets(X)
        if reset:
            self.device_ = resolve_device(self.device)
        if source is None:
            arrays = self._validate_inputs(X, reset=reset)
            one = next(iter(arrays.values())) if isinstance(arrays, dict) else arrays
            n_samples = len(one)
        else:
            arrays, found = self._validate_stored(source, reset=reset)
            y, n_samples = found if y is None else y, source.n_samples
        if y is None:
            raise self._no_targets(X)
        if n_samples == 1 and reset and getattr(self, "n_features_in_", 1) > 1:
            warnings.warn(
                f"X has one sample of {self.n_features_in_} features. Samples are rows and features are columns; "
                "transpose X and y if they are the other way round.",
                UserWarning,
                stacklevel=4,
            )
        labels, targets = self._encode(y, reset=reset, classes=classes)
        try:
            if len(labels) != n_samples:
                check_consistent_length(range(n_samples), labels)  # raises
        except ValueError as error:
            raise ValueError(f"{error}. Samples are rows, of X and of y; transpose what has them in columns.") from None
        weights = None
        if sample_weight is not None:
            sample_weight = sample_weight.detach().cpu() if isinstance(sample_weight, Tensor) else sample_weight
            weights = _check_sample_weight(sample_weight, labels, dtype=np.float64, ensure_non_negative=True)
        given, weights = weights, self._reweighted(labels, weights)
        if reset:
            dtype = "float64" if is_curve(self.module) and dtype_name(self.dtype) == "auto" else self.dtype
            self.dtype_ = resolve_dtype(dtype, arrays, self.device_, targets)
        convert = partial(to_tensors, dtype=self.dtype_, device=self.device_)
        inputs = convert(arrays) if source is None else self._reader(source, self.dtype_)
        data = Data(inputs, labels, convert(targets), None if weights is None else self._convert_weights(weights))
        if weights is not None:
            counts = np.ones(n_samples) if given is None else counted(torch.tensor(given)).numpy()
            data.counts = None if np.array_equal(counts, weights) else convert(counts)
        if self.train_split is None:  # which may go by positions
            data = _with_weight(data)
        if not self._is_classifier() and check_alpha(self._alpha(built=not reset)):
            data = count_copies_once(data)
        sees_rows = self.early_stopping or self.train_split or isinstance(self.callbacks, list)
        if (
            (self.batch_size == -1 or is_curve(self.module))
            and not sees_rows
            and init_takes("sample_weight", self.module)
        ):
            data = merge_repeated_rows(data, self.dtype_)
        return data

    def _convert_weights(self, weights: np.ndarray) -> Tensor:
        found: Tensor = to_tensors(weights, self.dtype_, self.device_)
        if not 0 < float(found.sum()) < math.inf:
            raise ValueError(
                f"`sample_weight` and its sum must be within the range of {self.dtype_}; got {weights.min():g} to "
                f"{weights.max():g}. Pass dtype='float64', or weights in other units."
            )
        return found

    def _reweighted(self, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
        """Return the weights of the samples times those that the estimator gives them."""
        return weights

    def _no_targets(self, X: Any) -> ValueError:
        hint = " Of a DataLoader pass its `dataset`." if isinstance(X, torch.utils.data.DataLoader) else ""
        return ValueError(
            f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.{hint}"
        )

    def _validate_stored(self, source: Stored, *, reset: bool) -> tuple[Any, Any]:
        """Check all inputs part by part; return the first part as arrays, and all targets that came along, or None."""
        first, targets = None, []
        for inputs, target in source.parts():
            arrays = self._validate_inputs(inputs, reset=reset and first is None)
            first = arrays if first is None else first
            targets.append(target)
        return first, joined(targets)

    def _reader(self, source: Stored, dtype: torch.dtype) -> Reader:
        def read(index: Any) -> Any:
            return to_tensors(self._validate_inputs(source.read(index)[0], reset=False), dtype, self.device_)

        return Reader(read, source.n_samples)

    def _validate_inputs(self, X: Any, *, reset: bool) -> Any:
        """Return checked inputs as an array or a dict of arrays; of a table for a curve, the columns that it uses."""
        if reset:
            self.__dict__.pop("_input_columns", None)
        takes_columns = is_curve(self.module) if reset else "_input_columns" in self.__dict__
        if not takes_columns:
            return validate_inputs(self, X, reset=reset)
        if isinstance(X, Mapping):
            raise ValueError("`X` must be a table for a curve, whose columns have the names of its inputs; got a dict.")

        def find() -> list[int]:
            if reset:
                module = self.module if isinstance(self.module, Curve) else self._call_factory(self._keywords(), 0)
                if isinstance(self.module, str):
                    self.__dict__["_parsed"] = module  # to skorch an attribute would be a part of its own
                if max(module.input_columns) >= self.n_features_in_:
                    raise ValueError(
                        f"`module` is a curve of the columns {module.input_columns} (from 0); X has only "
                        f"{self.n_features_in_}."
                    )
                self._input_columns = module.input_columns
            columns: list[int] = self._input_columns
            return columns

        return validate_columns(self, X, find, reset=reset)

    def _prediction_data(self, X: Any) -> TensorData:
        """Return inputs for prediction; data that are ours already pass through."""
        if isinstance(X, TensorData):
            return X
        if isinstance(X, torch.utils.data.Subset) and isinstance(_whole(X), TensorData):
            return self._prediction_data(X.dataset).subset(np.asarray(X.indices))
        source = stored(X)
        arrays = self._validate_inputs(X if source is None else next(source.parts())[0], reset=False)
        dtype = torch.promote_types(self.dtype_, resolve_dtype("auto", arrays, self.device_))
        return TensorData(to_tensors(arrays, dtype, self.device_) if source is None else self._reader(source, dtype))

    def _to_data(self, part: Any) -> TensorData:
        """Return a part of a training split as data: ours, or a Dataset that a user's `train_split` returned."""
        if isinstance(_whole(part), TensorData):
            return self._prediction_data(part)
        return self._training_data(part, None, None, reset=False)

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[TensorData, TensorData | None]:
        """Return training and validation data (None without validation), and scale a new module to the former."""
        train, valid = X, None
        if self.train_split is not None:
            train, valid = self.train_split(X, X.y)
            train, valid = (None if part is None else _with_weight(self._to_data(part)) for part in (train, valid))
            for name, left in (("training", train), ("validation", valid)):
                if left is not None and not len(left):
                    raise ValueError(
                        f"`train_split` must leave rows with a positive weight for {name}; got none. Give weights to "
                        "some of them."
                    )
        elif self.early_stopping:
            train, valid = (self._to_data(part) for part in self._early_stopping_split(X))
        self.optimizer_.rows_per_weight = train.rows_per_weight(self.criterion_)
        if self._is_new:
            self._init_from_data(train)
            if len(train) >= MANY_ROWS and self._is_left_to_us():
                self._start_on_some_rows(train)
            self._is_new = False
        elif self.early_stopping and valid is not None and self.history:  # a warm fit must not end worse than it began
            self._run.keep(self._loss(valid), self.__dict__.get("_epoch", len(self.history)), self.module_)
        return train, valid

    def _early_stopping_split(self, data: Data) -> Iterator[torch.utils.data.Subset[Any]]:
        n_samples = len(data)
        if n_samples < 2:
            raise ValueError(
                "`early_stopping=True` needs at least 2 samples to split off a validation set; "
                f"got n_samples={n_samples}."
            )
        n_valid = min(max(1, math.ceil(self.validation_fraction * n_samples)), n_samples - 1)
        parts = train_test_split(
            np.arange(n_samples),
            test_size=n_valid,
            stratify=self._strata(data, n_valid),
            random_state=self._split_seed % 2**32,
        )
        return (torch.utils.data.Subset(data, part) for part in parts)

    def _strata(self, data: Data, n_valid: int) -> np.ndarray | None:
        """Return the labels by which to stratify a split; None for none."""
        return None

    def get_iterator(self, dataset: TensorData, training: bool = False) -> Batches:
        """Return the batches of one epoch: shuffled in training, a single one for validation."""
        if not training:
            return Batches(dataset, -1)
        return Batches(
            dataset,
            lambda: self._batch_size(len(dataset)),
            lambda: (self.optimizer_.seed + len(self.history)) % 2**62,
        )

    def _growth_so_far(self) -> int:
        """Return the factor of the size of the batches of this epoch."""
        run = self.__dict__.get("_run")
        is_first = run is not None and run.n_epochs == 0 and run.is_new
        return self.history[-2].get("growth", 1) if len(self.history) > 1 and not is_first else 1

    @property
    def _on_all_rows(self) -> bool:
        """Whether every step is on all rows, as far as the settings tell."""
        return self.batch_size == -1 or (
            self.batch_size == "auto" and (is_curve(self.module) or bool(check_alpha(self._alpha())))
        )

    def _batch_size(self, n_rows: int) -> int:
        """Return the size of the batches of this epoch; -1 for all rows."""
        size = self.batch_size
        if size == -1:
            return -1
        if size == "auto":
            n_params = sum(parameter.numel() for parameter in self.module_.parameters() if parameter.requires_grad)
            size = max(LEAST_BATCH, ROWS_PER_PARAM * n_params // self._n_module_outputs())
            if self._on_all_rows or n_rows < FEWEST_BATCHES * size:
                return -1
        growth = self._growth_so_far()
        return -1 if growth > 1 and 2 * size * growth > n_rows else int(size * growth)  # no half a batch at the end


def _whole(part: Any) -> Any:
    """Return the dataset that a Subset, or one of a Subset, is part of."""
    return _whole(part.dataset) if isinstance(part, torch.utils.data.Subset) else part


def _with_weight(data: DataT) -> DataT:
    """Return the rows with a positive weight: one of weight 0 is as if it were not there."""
    if data.weights is None or bool(data.weights.all()):
        return data
    return data.subset(data.weights.nonzero()[:, 0].cpu().numpy())
