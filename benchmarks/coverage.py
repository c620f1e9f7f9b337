"""Coverage of nominal 95 % intervals by simulation: how often they hold the truth.

1000 data sets per model with normal noise of one variance: Wald intervals of the parameters (the mean over them, and
the worst), `predict_interval` for the curve at five x (mean and worst) and for a new measurement at each of them, and
profile intervals for the first 100 data sets. With 1000 data sets a coverage of 95 % has a standard error of 0.7
points, with 100 one of 2.2 for each parameter. The network has three tanh units and alpha=1e-3; its parameters can be
exchanged, so that only its predictions have a coverage; its penalty and its minima, which need not be the best, are
part of what is measured. Run: python benchmarks/coverage.py (six to seven minutes, most of
it for the profiles)
"""

import time
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning

from sklm import LMRegressor

SEED = 0
N_DATA_SETS = 1000
N_PROFILES = 200
PLACES = np.linspace(0.05, 0.95, 5)  # of the predictions, as shares of the range of x


@dataclass(frozen=True)
class Model:
    formula: str | None  # None is the network
    truth: dict[str, float]
    x: np.ndarray
    noise: float

    def curve(self, x):
        if self.formula is None:
            return np.sin(x)
        code = compile(self.formula, "formula", "eval")
        return eval(code, {"exp": np.exp, "x": x, **self.truth})  # noqa: S307 - our own text

    def estimator(self, seed):
        if self.formula is None:
            return LMRegressor(module__hidden_layer_sizes=(3,), alpha=1e-3, random_state=seed, max_epochs=300)
        return LMRegressor(self.formula, random_state=seed)


MODELS = {
    "line": Model("a + b*x", {"a": 1, "b": 2}, np.linspace(0, 1, 15), 0.3),
    "exponential decay": Model("a*exp(-b*x) + c", {"a": 3, "b": 1.3, "c": 0.5}, np.linspace(0, 4, 25), 0.1),
    "4-parameter logistic": Model(
        "d + (a-d) / (1 + exp(b*(x-c)))", {"a": 2, "b": 1.5, "c": 3, "d": 0.2}, np.linspace(-1, 7, 30), 0.08
    ),
    "Gaussian peak": Model(
        "a*exp(-(x-m)**2 / (2*s**2)) + c", {"a": 2, "m": 1, "s": 0.8, "c": 0.3}, np.linspace(-2, 4, 30), 0.1
    ),
    "network": Model(None, {}, np.linspace(-3, 3, 60), 0.1),
}


def inside(intervals, truth):
    ends = np.asarray(intervals)
    return (ends[..., 0] <= truth) & (truth <= ends[..., 1])


def canonical(model, intervals):
    """Return the intervals in the order of the truth, of the mirror image where the fit found that.

    The sign of a width is free, and so is that of a logistic's slope, if its two levels change places.
    """
    for name in {"b", "s"} & set(model.truth):
        low, high = intervals[name]
        if high < 0:
            intervals = {**intervals, name: (-high, -low)}
            if "d" in intervals:
                intervals |= {"a": intervals["d"], "d": intervals["a"]}
    return [intervals[name] for name in model.truth]


def simulate(model, rng):
    """Return which intervals held the truth, one row per data set, and the share of fits that converged."""
    X = model.x[:, None]
    at = model.x[0] + PLACES * np.ptp(model.x)
    curve, truth = model.curve(at), np.array(list(model.truth.values()))
    found = {"Wald": [], "curve": [], "measurement": [], "profile": []}
    converged = 0
    for i in range(N_DATA_SETS):
        y = model.curve(model.x) + model.noise * rng.standard_normal(len(X))
        new = curve + model.noise * rng.standard_normal(len(at))
        fit = model.estimator(i).fit(X, y)
        converged += fit.converged_
        found["curve"].append(inside(fit.predict_interval(at[:, None]), curve))
        found["measurement"].append(inside(fit.predict_interval(at[:, None], kind="prediction"), new))
        methods = [("Wald", "wald")] + [("profile", "profile")] * (i < N_PROFILES)
        for column, method in methods if model.formula else []:
            found[column].append(inside(canonical(model, fit.confidence_intervals(method=method)), truth))
    return {column: np.array(rows) for column, rows in found.items()}, converged / N_DATA_SETS


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for title, model in MODELS.items():
        start = time.perf_counter()
        found, converged = simulate(model, np.random.default_rng(SEED))
        row = {"model": title}
        for column, held in found.items():
            each = 100 * held.mean(0) if len(held) else np.array([np.nan])
            row |= {column: each.mean(), f"{column} worst": each[np.argmax(np.abs(each - 95))]}
        rows.append({**row, "converged": 100 * converged, "seconds": time.perf_counter() - start})
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.1f}".format, na_rep="-"))


if __name__ == "__main__":
    main()
