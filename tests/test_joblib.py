"""Grid searches under the backends of joblib: the same numbers everywhere, and no more threads than joblib grants."""

import joblib
import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklm import LMRegressor

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (60, 2))
Y = np.sin(3 * X[:, 0]) + X[:, 1] + 0.1 * RNG.standard_normal(60)


def search(scoring=None):
    network = LMRegressor(module__hidden_layer_sizes=(3,), random_state=0, ftol=1e-3)
    grid = {"lmregressor__lr": [0.5, 1.0]}
    return GridSearchCV(make_pipeline(StandardScaler(), network), grid, cv=2, n_jobs=2, scoring=scoring)


def scores(fitted):
    return fitted.cv_results_["mean_test_score"]


def count_threads():
    """Return a scorer that reports torch's threads where it runs; a closure, so that workers need no import of it."""
    return lambda estimator, X, y: torch.get_num_threads()


@pytest.fixture(scope="module")
def expected():
    return search().set_params(n_jobs=None).fit(X, Y)


def test_threads_give_the_same_numbers(expected):
    with joblib.parallel_config("threading"):
        found = search().fit(X, Y)
    np.testing.assert_array_equal(scores(found), scores(expected))
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))


def test_processes_give_the_same_numbers_and_share_the_processors(expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    found = search().fit(X, Y)
    threads = search(count_threads()).fit(X, Y)
    np.testing.assert_array_equal(scores(found), scores(expected))
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))
    granted = max(joblib.cpu_count() // 2, 1)
    assert scores(threads).tolist() == [granted, granted]
    assert torch.get_num_threads() == before


def test_a_grid_search_on_a_dask_cluster(expected):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        found = search().fit(X, Y)
        threads = search(count_threads()).fit(X, Y)
    np.testing.assert_array_equal(scores(found), scores(expected))
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))
    assert scores(threads).tolist() == [1, 1]
