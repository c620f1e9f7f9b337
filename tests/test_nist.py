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

from sklm import LMRegressor

FOLDER = Path(__file__).parent / "nist"
PROBLEMS = json.loads((FOLDER / "certified.json").read_text())
# The residuals of Lanczos1, 1e-13 of y, are the rounding of its data to 14 digits: their certified sum of squares,
# 1.4e-25, and what is computed from it, drowns in the rounding of the model itself in float64.
ROUNDING_ONLY = "Lanczos1"


def digits(found, certified):
    error = np.abs(np.subtract(found, certified) / certified).max()
    return -np.log10(max(error, 1e-16))


@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_certified_values(name, start):
    problem = PROBLEMS[name]
    table = pd.read_csv(FOLDER / f"{name}.csv")
    y = np.log(table["y"]) if problem["response"] == "log(y)" else table["y"]  # Nelson's response is log(y)
    parameters = [f"b{i + 1}" for i in range(problem["n_params"])]
    initial = {f"module__{b}": value for b, value in zip(parameters, problem[f"start{start}"], strict=True)}

    model = LMRegressor(problem["model_numpy"], **initial).fit(table[problem["x_columns"]], y)

    assert model.converged_
    assert digits([model.parameters_[b] for b in parameters], problem["certified"]) >= 8
    if name != ROUNDING_ONLY:
        assert digits(np.sum((y - model.predict(table[problem["x_columns"]])) ** 2), problem["rss"]) >= 9
        assert digits([model.standard_errors_[b] for b in parameters], problem["certified_sd"]) >= 6


def test_all_problems_are_here():
    assert len(PROBLEMS) == 27
    assert all((FOLDER / f"{name}.csv").exists() for name in PROBLEMS)
