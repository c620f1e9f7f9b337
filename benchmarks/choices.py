"""The tables of the page "How to choose" that no other script makes: solvers, and fixed penalties.

1. CPU seconds per attempt of a full-batch step on one thread, the median of some steps: networks of one hidden layer,
   three inputs, one output, float64; those of every solver relative to ``"auto"``.
2. Networks of ten hidden units on two tables: five-fold cross-validation, mean over three seeds of folds and starts.

Run: python benchmarks/choices.py (about five minutes)
"""

import time
import warnings

import numpy as np
import torch
from harness import duration, markdown, set_threads
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score

from sklm import MLP, LevenbergMarquardt, LMClassifier, LMRegressor

SIZES = [(1000, 20), (10_000, 20), (1000, 200), (10_000, 200), (10_000, 1000)]  # rows, hidden units
SOLVERS = ("cholesky", "qr", "svd", "cg")
MOST_UNITS = 200  # of the solvers that take minutes above
SEEDS = range(3)


def seconds_per_attempt(n_rows, units, solver):
    """Return the median over steps, and what was solved."""
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.standard_normal((n_rows, 3)))
    y = torch.sin(X.sum(1, keepdim=True)) + 0.1 * torch.from_numpy(rng.standard_normal((n_rows, 1)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = MLP(3, 1, hidden_layer_sizes=units).double()
    module.init_from_data(X, y)
    optimizer = LevenbergMarquardt(module, solver=solver, seed=0)
    optimizer.step(X[:units], y[:units])  # what is done once does not count
    times = []
    while len(times) < 3 or (len(times) < 15 and sum(times) < 5):
        start = time.process_time()
        result = optimizer.step(X, y)
        times.append((time.process_time() - start) / max(result.attempts, 1))
    return float(np.median(times)), result.solver


def solvers():
    for n_rows, units in SIZES:
        auto, chosen = seconds_per_attempt(n_rows, units, "auto")
        row = {"rows": n_rows, "parameters": 5 * units + 1, "auto took": chosen.split(":")[0], "auto": duration(auto)}
        for solver in SOLVERS:
            if units <= MOST_UNITS or solver == "cg":
                row[solver] = f"{seconds_per_attempt(n_rows, units, solver)[0] / auto:.2g}"
            else:
                row[solver] = ""
        yield row


def cross_validated(estimator, X, y, folds, scoring):
    scores = []
    for seed in SEEDS:
        model = estimator(module__hidden_layer_sizes=(10,), random_state=seed)
        scores.append(cross_val_score(model, X, y, cv=folds(5, shuffle=True, random_state=seed), scoring=scoring))
    return np.mean(scores)


def penalties():
    """Yield a row per setting of both tables."""
    X, y = load_diabetes(return_X_y=True)
    settings = [{"alpha": alpha} for alpha in (0, 1e4, 1e5, 1e6, "bayes")] + [{"alpha": 0, "early_stopping": True}]
    for params in settings:
        score = cross_validated(lambda params=params, **kw: LMRegressor(**params, **kw), X, y, KFold, "r2")
        yield {"table": "diabetes", "settings": params, "score": f"R2 {score:.2f}"}
    X, y = load_breast_cancer(return_X_y=True)
    settings = [{"alpha": alpha} for alpha in (0.01, 0.1, 1, 10, "bayes")] + [{"alpha": 0.01, "early_stopping": True}]
    for params in settings:
        score = cross_validated(
            lambda params=params, **kw: LMClassifier(**params, **kw), X, y, StratifiedKFold, "neg_log_loss"
        )
        yield {"table": "breast cancer", "settings": params, "score": f"log loss {-score:.3f}"}


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)
    set_threads(1)
    print(markdown(list(penalties())), flush=True)
    print(markdown(list(solvers())))


if __name__ == "__main__":
    main()
