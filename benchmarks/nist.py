"""Certified digits on the 27 NIST problems from both starts: sklm beside scipy's curve_fit and lmfit, all at defaults.

Digits are -log10 of the relative error, the worst over the parameters; "raised" is a fit that ended in an exception,
"no" one without a single digit. RSS and std.err. are sklm's residual sum of squares and standard errors; Lanczos1 has
few digits of them in float64, because its residuals are rounding. Data: NIST Statistical Reference Datasets, in
tests/nist. Run: python benchmarks/nist.py
"""

import json
import warnings
from pathlib import Path

import lmfit
import numpy as np
import pandas as pd
import torch
from scipy.optimize import curve_fit

from sklm import LMRegressor

FOLDER = Path(__file__).parents[1] / "tests" / "nist"
PROBLEMS = json.loads((FOLDER / "certified.json").read_text())
NUMPY = {name: getattr(np, name) for name in ("exp", "sin", "cos", "arctan", "pi")}


def digits(found, certified):
    found = np.asarray(found, dtype=float)
    if not np.isfinite(found).all():
        return np.nan
    error = np.abs((found - certified) / np.asarray(certified)).max()
    return max(0.0, -np.log10(max(error, 1e-16)))


def fit_sklm(problem, X, y, names, start):
    initial = {f"module__{name}": value for name, value in zip(names, start, strict=True)}
    model = LMRegressor(problem["model_numpy"], **initial).fit(X, y)
    return {
        "sklm": digits([model.parameters_[name] for name in names], problem["certified"]),
        "RSS": digits([np.sum((y - model.predict(X)) ** 2)], [problem["rss"]]),
        "std.err.": digits([model.standard_errors_[name] for name in names], problem["certified_sd"]),
        "epochs": model.n_iter_,
    }


def fit_scipy(problem, X, y, names, start):
    inputs = X.to_dict("series")
    code = compile(problem["model_numpy"], "formula", "eval")

    def f(_, *values):
        return np.asarray(eval(code, NUMPY | inputs | dict(zip(names, values, strict=True))))  # noqa: S307 - our file

    return {"scipy": digits(curve_fit(f, None, np.asarray(y), start)[0], problem["certified"])}


def fit_lmfit(problem, X, y, names, start):
    model = lmfit.models.ExpressionModel(problem["model_numpy"], independent_vars=list(X))
    inputs = {name: column.to_numpy() for name, column in X.items()}
    result = model.fit(np.asarray(y), **dict(zip(names, start, strict=True)), **inputs)
    return {"lmfit": digits([result.params[name].value for name in names], problem["certified"])}


def main():
    torch.set_num_threads(1)
    rows = []
    for title, problem in PROBLEMS.items():
        table = pd.read_csv(FOLDER / f"{title}.csv")
        X, y = table[problem["x_columns"]], np.log(table["y"]) if problem["response"] == "log(y)" else table["y"]
        names = [f"b{i + 1}" for i in range(problem["n_params"])]
        for start in (1, 2):
            row = {"problem": title, "difficulty": problem["difficulty"].lower(), "start": start}
            for fit, column in ((fit_sklm, "sklm"), (fit_scipy, "scipy"), (fit_lmfit, "lmfit")):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        row |= fit(problem, X, y, names, problem[f"start{start}"])
                    except (RuntimeError, ValueError):  # curve_fit without convergence, lmfit with nan
                        row[column] = np.nan
            rows.append(row)
    found = pd.DataFrame(rows)
    order = [*found.columns[:3], "sklm", "RSS", "std.err.", "epochs", "scipy", "lmfit"]
    tools = ["sklm", "scipy", "lmfit"]
    shown = found[order].copy()
    for column in ["sklm", "RSS", "std.err.", "scipy", "lmfit"]:
        shown[column] = ["raised" if np.isnan(v) else "no" if v < 1 else f"{v:.1f}" for v in found[column]]
    print(shown.to_string(index=False))
    counts = pd.DataFrame({f">= {n} digits": (found[tools] >= n).sum() for n in (6, 8)})
    print(f"\nof {len(found)} fits, all parameters with")
    print(counts.to_string())


if __name__ == "__main__":
    main()
