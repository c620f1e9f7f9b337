"""500 cross-validated fits at 100 rows in `GridSearchCV`: fits per second, and what the estimator adds to the engine.

100 settings times 5 folds, for a small network (5 features, 5 hidden units, at most 20 epochs) and for a curve of three
parameters, one thread each, with n_jobs 1 and 2. The share outside the engine is what `LMRegressor.fit` takes beside
`LevenbergMarquardt.step`, seen by a clock around both (n_jobs=1). Scikit-learn's MLPRegressor with L-BFGS and the same
number of iterations runs the same search beside. The workers of n_jobs=2 have started, and imported what they need, in
a small search before; what that took is reported.
Run: python benchmarks/grid_search.py [--quick]
"""

import functools
import time
import warnings

import numpy as np
from harness import Goal, duration, interleaved, markdown, options, ratio, save, seconds, set_threads
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor

from sklm import LevenbergMarquardt, LMRegressor

FOLDS, N_ROWS, EPOCHS = 5, 100, 20


def network_data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N_ROWS, 5))
    return X, np.sin(X).sum(1) + 0.1 * rng.standard_normal(N_ROWS)


def curve_data():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 4, N_ROWS)
    return x[:, None], 3 * np.exp(-0.7 * x) + 1 + 0.05 * rng.standard_normal(N_ROWS)


def searches(n_settings):
    """Return estimator, grid and data of every search."""
    network = LMRegressor(module__hidden_layer_sizes=(5,), max_epochs=EPOCHS, random_state=0)
    peer = MLPRegressor(hidden_layer_sizes=(5,), activation="tanh", solver="lbfgs", max_iter=EPOCHS, random_state=0)
    curve = LMRegressor("a * exp(-b * x) + c", module__a=1.0, module__b=1.0, module__c=0.0)
    alphas = list(np.geomspace(1e-6, 1e2, n_settings))
    starts = list(np.linspace(0.5, 1.5, n_settings))
    return {
        "network": (network, {"alpha": alphas}, network_data()),
        "curve": (curve, {"module__b": starts}, curve_data()),
        "MLPRegressor": (peer, {"alpha": alphas}, network_data()),
    }


def run(search, n_jobs):
    estimator, grid, data = search
    GridSearchCV(estimator, grid, cv=FOLDS, n_jobs=n_jobs).fit(*data)


def share_outside_steps(search):
    """Return the share of `fit` that is spent outside the steps of the engine."""
    inside = {"fit": 0.0, "step": 0.0}

    def clocked(function, name):
        @functools.wraps(function)  # with torch's mark that `step` is wrapped
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside[name] += time.perf_counter() - start

        return call

    estimator, grid, (X, y) = search
    estimator.fit(X, y)  # torch wraps `step` when the first optimizer is made: within the clock, not around it
    fit, step = LMRegressor.fit, LevenbergMarquardt.step
    LevenbergMarquardt.step = clocked(step, "step")
    try:
        for name, values in grid.items():
            for value in values:
                clocked(fit, "fit")(estimator.set_params(**{name: value}), X, y)
    finally:
        LevenbergMarquardt.step = step
    return 1 - inside["step"] / inside["fit"]


def main():
    called = options()
    warnings.simplefilter("ignore")
    set_threads(1)
    n_settings, rounds = (20, 1) if called.quick else (100, 3)
    n_fits = n_settings * FOLDS
    found = searches(n_settings)
    for name, search in searches(2).items():
        run(search, 1)
        if name == "network":
            start_up = seconds(lambda search=search: run(search, 2))
    contenders = {
        (name, n_jobs): lambda _, search=search, n_jobs=n_jobs: run(search, n_jobs)
        for name, search in found.items()
        for n_jobs in (1, 2)
    }
    times = interleaved(contenders, rounds, warm=False)
    share = {name: share_outside_steps(found[name]) for name in ("network", "curve")}
    gain = {name: ratio(times[name, 1], times[name, 2]) for name in found}
    rows = [
        {
            "search": f"sklm, {name}" if name in share else name,
            "fits per second, n_jobs=1": f"{n_fits / np.median(times[name, 1]):.0f}",
            "n_jobs=2": f"{n_fits / np.median(times[name, 2]):.0f}",
            "gain": f"{gain[name]:.2f}",
            "outside the engine": f"{100 * share[name]:.0f} %" if name in share else "",
        }
        for name in found
    ]
    goals = []
    for name in share:
        job = f"{n_fits} fits in `GridSearchCV`, {name}"
        outside = f"{100 * share[name]:.0f} % of `fit` outside the engine"
        goals.append(Goal(f"{job}: overhead", outside, "under 20 %", bool(share[name] < 0.2)))
        goals.append(Goal(f"{job}: n_jobs=2", f"{gain[name]:.2f} x", "at least 1.6 x", bool(gain[name] >= 1.6)))
    text = (
        f"{n_fits} fits at {N_ROWS} rows, one thread per process; a network of 36 parameters and at most {EPOCHS} "
        f"epochs, and a curve of 3. The first search with n_jobs=2 took {duration(start_up)}, as it starts the "
        "workers.\n\n" + markdown(rows)
    )
    save("grid_search", "Grid search", goals, text, is_quick=called.quick)


if __name__ == "__main__":
    main()
