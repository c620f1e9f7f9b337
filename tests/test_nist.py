"""The 27 nonlinear regression problems of the NIST Statistical Reference Datasets, from both of their starts.

Data and certified values, to 11 digits, are in tests/nist. Source: National Institute of Standards and Technology,
https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml, public domain.

Digits are -log10 of the relative error, the worst over the parameters. All settings are the defaults.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from sklm import LMRegressor

FOLDER = Path(__file__).parent / "nist"
PROBLEMS = json.loads((FOLDER / "certified.json").read_text())
# The residuals of Lanczos1, 1e-13 of y, are the rounding of its data to 14 digits: their certified sum of squares,
# 1.4e-25, and what is computed from it, drowns in the rounding of the model itself in float64.
ROUNDING_ONLY = "Lanczos1"


def digits(found, certified):
    error = np.abs(np.subtract(found, certified) / certified).max()
    return -np.log10(max(error, 1e-16))


def fitted(name, start):
    problem = PROBLEMS[name]
    table = pd.read_csv(FOLDER / f"{name}.csv")
    y = np.log(table["y"]) if problem["response"] == "log(y)" else table["y"]  # Nelson's response is log(y)
    parameters = [f"b{i + 1}" for i in range(problem["n_params"])]
    initial = {f"module__{b}": value for b, value in zip(parameters, problem[f"start{start}"], strict=True)}
    return LMRegressor(problem["model_numpy"], **initial).fit(table[problem["x_columns"]], y), table, y, parameters


@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_certified_values(name, start):
    problem = PROBLEMS[name]
    model, table, y, parameters = fitted(name, start)
    assert model.converged_
    assert digits([model.parameters_[b] for b in parameters], problem["certified"]) >= 8
    if name != ROUNDING_ONLY:
        assert digits(np.sum((y - model.predict(table[problem["x_columns"]])) ** 2), problem["rss"]) >= 9
        assert digits([model.standard_errors_[b] for b in parameters], problem["certified_sd"]) >= 6


@pytest.mark.parametrize("name", ["Misra1a", "Nelson", "MGH09", "Rat43", "Thurber"])
def test_profile_intervals_end_where_scipy_says(name):
    """Refits by scipy with a parameter held at an end of its interval raise the sum of squares by t**2 variances."""
    problem = PROBLEMS[name]
    model, table, y, parameters = fitted(name, 2)
    functions = {f: getattr(np, f) for f in ("exp", "log", "sin", "cos", "arctan", "pi")}
    code = compile(problem["model_numpy"], name, "eval")
    columns = {column: table[column].to_numpy(float) for column in problem["x_columns"]}
    estimate, covariance = np.array(list(model.parameters_.values())), model.covariance_

    def rise(index, value):
        def residuals(others):
            theta = dict(zip(parameters, np.insert(others, index, value), strict=True))
            return eval(code, functions | columns | theta) - y.to_numpy()  # noqa: S307

        line = estimate + covariance[:, index] / covariance[index, index] * (value - estimate[index])
        starts = [np.delete(start, index) for start in (line, estimate)]
        tight = {"x_scale": "jac", "ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14, "max_nfev": 2000}
        with np.errstate(all="ignore"):
            lowest = min(optimize.least_squares(residuals, start, **tight).cost for start in starts)
        return (2 * lowest - problem["rss"]) / (problem["rss"] / problem["dof"])

    square = stats.t.ppf(0.975, problem["dof"]) ** 2
    intervals = model.confidence_intervals(method="profile")
    found = [rise(i, end) for i, name in enumerate(parameters) for end in intervals[name]]
    np.testing.assert_allclose(found, square, rtol=1e-4)  # what scipy's forward differences leave


def test_all_problems_are_here():
    assert len(PROBLEMS) == 27
    assert all((FOLDER / f"{name}.csv").exists() for name in PROBLEMS)
