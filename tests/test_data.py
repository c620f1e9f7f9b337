"""Batches, weights and the way from arrays to tensors; oracles are NumPy and counting by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklm import LMClassifier, LMRegressor
from sklm._data import Batch, Batches, TensorData, joined, merge_repeated_rows, stored, to_tensors

CPU = torch.device("cpu")


def numbered(n_samples, *, weights=False):
    """Return data whose every part holds the number of its sample."""
    numbers = torch.arange(n_samples, dtype=torch.float64)
    return TensorData(numbers[:, None], numbers.numpy(), numbers, numbers + 1 if weights else None)


def sample_numbers(batches):
    return [batch[0][:, 0].int().tolist() for batch in batches]


@given(n_samples=st.integers(1, 40), batch_size=st.integers(1, 45) | st.just(-1), shuffled=st.booleans())
def test_batches_cover_every_sample_once(n_samples, batch_size, shuffled):
    batches = Batches(numbered(n_samples), batch_size, (lambda: 3) if shuffled else None)
    parts = sample_numbers(batches)
    assert sorted(itertools.chain(*parts)) == list(range(n_samples))
    assert len(parts) == len(batches)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert 1 <= len(parts[-1]) <= len(parts[0]) <= (n_samples if batch_size == -1 else batch_size)


def test_parts_of_a_batch_belong_together():
    for batch in Batches(numbered(23, weights=True), 5, lambda: 0):
        inputs, labels = batch
        np.testing.assert_array_equal(inputs[:, 0], labels)
        np.testing.assert_array_equal(batch.targets, labels)
        np.testing.assert_array_equal(batch.weights, labels + 1)


def test_order_is_kept_without_seed():
    assert sample_numbers(Batches(numbered(5), 2)) == [[0, 1], [2, 3], [4]]


def test_shuffled_order_is_that_of_its_seed():
    one, again, other = (sample_numbers(Batches(numbered(50), 7, lambda seed=seed: seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert list(itertools.chain(*one)) != list(range(50))


def test_every_pass_asks_for_its_seed():
    seeds = iter([1, 2, 1])
    batches = Batches(numbered(50), 7, lambda: next(seeds))
    first, second, third = (sample_numbers(batches) for _ in range(3))
    assert first == third != second


def test_shuffling_leaves_the_global_generators_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(Batches(numbered(50), 7, lambda: 1))
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_following_is_the_next_batch_and_after_the_last_the_first():
    parts, following = [], []
    for batch in Batches(numbered(10), 3, lambda: 0):
        parts.append(batch[0][:, 0].tolist())
        following.append(batch.following[0][:, 0].tolist())
    assert following == [*parts[1:], parts[0]]


def test_following_keeps_no_chain_alive():
    batches = list(Batches(numbered(10), 3))
    assert all(batch.following is None for batch in batches)


@pytest.mark.parametrize("batch_size", [-1, 10, 99])
def test_a_single_batch_has_none_that_follows(batch_size):
    (batch,) = Batches(numbered(10), batch_size, lambda: 0)
    assert batch.following is None
    assert len(batch[0]) == 10


def test_batch_is_the_pair_that_skorch_unpacks():
    batch = Batch("inputs", "labels", "targets", None)
    inputs, labels = batch
    assert (inputs, labels, batch.targets, batch.weights) == ("inputs", "labels", "targets", None)


def test_subset_of_dict_inputs():
    data = TensorData({"a": torch.arange(4.0), "b": torch.arange(8.0).reshape(4, 2)}, np.arange(4), torch.arange(4.0))
    part = data.subset(np.array([3, 1]))
    assert len(part) == 2
    assert part.X["a"].tolist() == [3, 1]
    assert part.X["b"].tolist() == [[6, 7], [2, 3]]
    assert part.y.tolist() == part.targets.tolist() == [3, 1]


# ---------------------------------------------------------------- repeated rows


@given(rows=st.lists(st.sampled_from([(0.0, 1.0), (0.0, 2.0), (1.0, 1.0)]), min_size=1, max_size=20))
def test_merged_weights_are_counts(rows):
    X, y = np.array(rows)[:, :1], np.array(rows)[:, 1]
    merged = merge_repeated_rows(TensorData(torch.tensor(X), y, torch.tensor(y)), torch.float64)
    weights = [1.0] * len(rows) if merged.weights is None else merged.weights.tolist()
    found = {
        (row[0], target): weight
        for row, target, weight in zip(merged.X.tolist(), merged.targets.tolist(), weights, strict=True)
    }
    assert found == {row: rows.count(row) for row in set(rows)}
    np.testing.assert_array_equal(merged.y, merged.targets)


def test_merged_weights_are_sums_of_weights():
    X, weights = torch.tensor([[1.0], [2.0], [1.0]]), torch.tensor([0.5, 3.0, 0.25])
    merged = merge_repeated_rows(TensorData(X, np.ones(3), torch.ones(3), weights), torch.float64)
    assert dict(zip(merged.X[:, 0].tolist(), merged.weights.tolist(), strict=True)) == {1.0: 0.75, 2.0: 3.0}


def test_merged_order_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 3, (30, 2)).astype(float), rng.integers(0, 2, 30).astype(float)
    order = rng.permutation(30)
    one, other = (
        merge_repeated_rows(TensorData(torch.tensor(A), b, torch.tensor(b)), torch.float64)
        for A, b in ((X, y), (X[order], y[order]))
    )
    assert torch.equal(one.X, other.X)
    assert torch.equal(one.targets, other.targets)
    assert torch.equal(one.weights, other.weights)


def test_large_data_are_not_merged():
    data = TensorData(torch.zeros(400_000, 2, dtype=torch.float64), np.zeros(400_000), torch.zeros(400_000))
    assert merge_repeated_rows(data, torch.float64) is data


# ---------------------------------------------------------------- arrays to tensors


def read_only():
    array = np.arange(6.0).reshape(3, 2)
    array.flags.writeable = False
    return array


AWKWARD = {
    "read-only": read_only,
    "negative stride": lambda: np.arange(6.0).reshape(3, 2)[::-1],
    "negative stride, columns": lambda: np.arange(6.0).reshape(3, 2)[:, ::-1],
    "big-endian": lambda: np.arange(6.0).reshape(3, 2).astype(">f8"),
    "big-endian integers": lambda: np.arange(6).reshape(3, 2).astype(">i4"),
    "fortran order": lambda: np.asfortranarray(np.arange(6.0).reshape(3, 2)),
    "every other row": lambda: np.arange(12.0).reshape(6, 2)[::2],
}


@pytest.mark.parametrize("make", AWKWARD.values(), ids=AWKWARD)
def test_awkward_arrays_become_tensors(make):
    array = make()
    before, dtype, flags = array.copy(), array.dtype, str(array.flags)
    tensor = to_tensors(array, torch.float64, CPU)
    np.testing.assert_array_equal(tensor.numpy(), before)
    np.testing.assert_array_equal(array, before)
    assert array.dtype == dtype
    assert str(array.flags) == flags


def test_read_only_memory_is_not_shared():
    array = read_only()
    to_tensors(array, torch.float64, CPU).add_(1)
    np.testing.assert_array_equal(array, np.arange(6.0).reshape(3, 2))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(np.zeros(2, np.float32), torch.float64, id="float32 to float64"),
        pytest.param(np.zeros(2, np.float16), torch.float64, id="float16 to float64"),
        pytest.param(np.zeros(2, np.int32), torch.int32, id="integers stay"),
        pytest.param(np.zeros(2, bool), torch.bool, id="booleans stay"),
    ],
)
def test_dtype(array, expected):
    assert to_tensors(array, torch.float64, CPU).dtype == expected


def test_dict_of_arrays():
    tensors = to_tensors({"a": np.zeros(2), "b": np.ones((2, 3), int)}, torch.float32, CPU)
    assert tensors["a"].dtype == torch.float32
    assert tensors["b"].dtype == torch.int64


# ---------------------------------------------------------------- torch datasets


class Squares(torch.utils.data.Dataset):
    def __init__(self, n_samples, item):
        self.n_samples, self.item = n_samples, item

    def __len__(self):
        return self.n_samples

    def __getitem__(self, index):
        return self.item(index)


def test_dataset_of_pairs_is_read_in_parts():
    source = stored(Squares(2500, lambda i: (torch.tensor([float(i)]), float(i) ** 2)))
    parts = list(source.parts())
    assert len(parts) == 3
    np.testing.assert_array_equal(np.concatenate([X[:, 0] for X, _ in parts]), np.arange(2500))
    np.testing.assert_array_equal(joined([y for _, y in parts]), np.arange(2500) ** 2)
    X, y = source.read(np.array([7, 3]))
    assert X[:, 0].tolist() == [7, 3]
    assert y.tolist() == [49, 9]


def test_dataset_of_dicts_with_targets():
    X, y = stored(Squares(3, lambda i: ({"a": np.float64(i), "b": np.full(2, i)}, i))).read(slice(0, 3))
    assert X["a"].tolist() == y.tolist() == [0, 1, 2]
    assert X["b"].tolist() == [[0, 0], [1, 1], [2, 2]]


def test_dataset_of_inputs_alone():
    X, y = stored(Squares(3, lambda i: torch.tensor([float(i)]))).read(slice(1, 3))
    assert X[:, 0].tolist() == [1, 2]
    assert joined([y]) is None


def test_dataset_that_fetches_batches():
    class Batched(Squares):
        def __getitems__(self, positions):
            return [self.item(i) for i in positions]

        def __getitem__(self, index):
            raise AssertionError("read one by one")

    X, _ = stored(Batched(5, lambda i: (torch.tensor([float(i)]), i))).read(np.array([4, 0]))
    assert X[:, 0].tolist() == [4, 0]


def test_iterable_dataset():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return ((torch.tensor([float(i)]), i) for i in range(4))

    assert stored(Stream()).n_samples == 4


def test_empty_dataset():
    with pytest.raises(ValueError, match="empty Dataset"):
        stored(Squares(0, lambda i: i))


@pytest.mark.parametrize(
    ("item", "message"),
    [((torch.zeros(1), 0, 0), "must be pairs"), (((torch.zeros(1), torch.zeros(1)), 0), "must give them as a dict")],
)
def test_items_that_are_no_pairs(item, message):
    with pytest.raises(ValueError, match=message):
        stored(Squares(3, lambda i: item)).read(slice(0, 3))


def test_memmap_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("sklm._data.LOADED_BYTES", 79)
    X = np.memmap(tmp_path / "X", dtype="f4", mode="w+", shape=(10, 2))
    X[:] = np.arange(20).reshape(10, 2)
    source = stored(X)
    assert source.read(np.array([3, 9]))[0].tolist() == [[6, 7], [18, 19]]
    assert stored(np.asarray(X)) is None
    assert stored(X[1:]) is None  # small enough to be loaded


# ---------------------------------------------------------------- fits to what is read in batches

RNG = np.random.default_rng(0)
X_STORED = RNG.standard_normal((300, 3))
Y_STORED = np.sin(X_STORED[:, 0]) + X_STORED[:, 1] * X_STORED[:, 2]
SETTINGS = {"module__hidden_layer_sizes": (4,), "random_state": 0, "max_epochs": 20}


class Counting(torch.utils.data.Dataset):
    """Knows how many items were held at once."""

    def __init__(self, X, y):
        self.X, self.y, self.reads, self.most = X, y, 0, 0

    def __len__(self):
        return len(self.X)

    def __getitems__(self, positions):
        self.reads += len(positions)
        self.most = max(self.most, len(positions))
        return [(self.X[i], self.y[i]) for i in positions]


def on_disk(tmp_path, X):
    mapped = np.memmap(tmp_path / "X", dtype=X.dtype, mode="w+", shape=X.shape)
    mapped[:] = X
    return mapped


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("batch_size", [-1, 64])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("solver", ["cholesky", "qr", "cg"])
@pytest.mark.parametrize("kind", ["dataset", "memmap"])
def test_same_fit_as_in_memory(tmp_path, monkeypatch, kind, solver, early_stopping, batch_size):
    monkeypatch.setattr("sklm._data.LOADED_BYTES", 0)
    settings = SETTINGS | {"batch_size": batch_size, "early_stopping": early_stopping, "solver": solver}
    expected = LMRegressor(**settings).fit(X_STORED, Y_STORED)
    if kind == "dataset":
        found = LMRegressor(**settings).fit(Counting(X_STORED, Y_STORED), None)
    else:
        found = LMRegressor(**settings).fit(on_disk(tmp_path, X_STORED), Y_STORED)
    np.testing.assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-6)
    np.testing.assert_allclose(found.predict(X_STORED), expected.predict(X_STORED), rtol=1e-5, atol=1e-7)
    assert found.n_features_in_ == 3


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_no_more_than_a_chunk_is_in_memory(monkeypatch):
    monkeypatch.setattr("sklm.engine.jacobian.FORWARD_ROWS", 50)
    monkeypatch.setattr("sklm._net.components.INIT_ROWS", 40)
    monkeypatch.setattr("sklm._data.LOAD_ROWS", 60)
    dataset = Counting(X_STORED, Y_STORED)
    LMRegressor(**SETTINGS, jacobian_max_rows=30).fit(dataset, None)
    assert dataset.most == 60
    assert dataset.reads > 20 * 2 * 300  # read anew in every step, for the outputs and for the Jacobian


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_curve_and_classifier_from_disk(tmp_path, monkeypatch):
    small = LMRegressor("a * x0 + b * sin(x1)").fit(on_disk(tmp_path, X_STORED), 2 * X_STORED[:, 0] + Y_STORED)
    assert set(small.standard_errors_) == {"a", "b"}
    monkeypatch.setattr("sklm._data.LOADED_BYTES", 0)
    X = on_disk(tmp_path, X_STORED)
    curve = LMRegressor("a * x0 + b * sin(x1)", module__a=1.0, module__b=1.0).fit(X, 2 * X_STORED[:, 0])
    assert curve.parameters_ == pytest.approx({"a": 2, "b": 0}, abs=1e-9)
    with pytest.raises(AttributeError, match="of a Dataset or a large memmap"):
        curve.standard_errors_  # noqa: B018
    labels = np.where(X_STORED[:, 0] + 0.5 * RNG.standard_normal(300) > 0, "yes", "no")
    found, expected = (
        LMClassifier(alpha=1.0, max_epochs=20, random_state=0).fit(data, labels) for data in (X, X_STORED)
    )
    np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(X_STORED), atol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_weights_with_a_dataset():
    weights = RNG.integers(0, 3, 300)
    found = LMRegressor(**SETTINGS).fit(Counting(X_STORED, Y_STORED), None, sample_weight=weights)
    expected = LMRegressor(**SETTINGS).fit(X_STORED, Y_STORED, sample_weight=weights)
    np.testing.assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_values_on_disk_are_found(tmp_path, value):
    bad = X_STORED.copy()
    bad[250, 1] = value
    with pytest.raises(ValueError, match="contains"):
        LMRegressor().fit(on_disk(tmp_path, bad), Y_STORED)


def test_predictions_from_disk(tmp_path):
    model = LMRegressor(alpha=1.0, **SETTINGS | {"max_epochs": 300}).fit(X_STORED, Y_STORED)
    np.testing.assert_array_equal(model.predict(on_disk(tmp_path, X_STORED)), model.predict(X_STORED))
    np.testing.assert_array_equal(model.predict(Counting(X_STORED, Y_STORED)), model.predict(X_STORED))


def test_batches_have_about_one_size():
    data = TensorData(torch.arange(25.0)[:, None], np.arange(25), torch.arange(25.0))
    assert [len(batch[1]) for batch in Batches(data, 8, lambda: 0)] == [7, 6, 6, 6]
    assert [len(batch[1]) for batch in Batches(data, 5, lambda: 0)] == [5, 5, 5, 5, 5]
