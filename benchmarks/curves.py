"""Fit of a curve of three parameters, a exp(-b x) + c, to 100 and to 1 000 000 rows, beside lmfit and SciPy.

Every round draws new noise, and all contenders fit the same rows in float64 from the same start; "start found" leaves
the start to sklm, "warm start" goes on from the parameters of the round before. Timed is the call of the fit on an
object made before (`LMRegressor`, `lmfit.Model`). All run with one setting of threads: one at 100 rows, all cores at
1 000 000.
Run: python benchmarks/curves.py [--quick]
"""

import statistics
import warnings

import lmfit
import numpy as np
import torch
from harness import Goal, duration, interleaved, markdown, options, ratio, save, set_threads
from scipy.optimize import curve_fit

from sklm import LMRegressor

TRUE, START = (3.0, 0.7, 1.0), (1.0, 1.0, 0.0)
FORMULA = "a * exp(-b * x) + c"


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def contenders(x, targets):
    """Return the fits by name; the round gives the targets, and every fit returns its parameters."""
    start = dict(zip("abc", START, strict=True))
    given = {f"module__{name}": value for name, value in start.items()}
    X, model = x[:, None], lmfit.Model(decay)

    def by_sklm(**params):
        estimator = LMRegressor(FORMULA, **params)
        return lambda i: list(estimator.fit(X, targets[i]).parameters_.values())

    found = {
        "sklm": by_sklm(**given, device="cpu"),
        "sklm, start found": by_sklm(device="cpu"),
        "sklm, warm start": by_sklm(**given, device="cpu", warm_start=True),
        "curve_fit": lambda i: list(curve_fit(decay, x, targets[i], p0=START)[0]),
        "lmfit": lambda i: list(model.fit(targets[i], x=x, **start).best_values.values()),
    }
    if torch.cuda.is_available():
        found["sklm on the GPU"] = by_sklm(**given, device="cuda")
    return found


def measure(n_samples, rounds, budget):
    """Return the seconds of every contender by name, and the rows of the table."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 4, n_samples)
    clean = decay(x, *TRUE)
    targets = {i: clean + 0.05 * rng.standard_normal(n_samples) for i in range(-1, rounds)}
    fits = contenders(x, targets)
    times = interleaved(fits, rounds, budget)
    expected = np.array(fits["curve_fit"](0))
    rows = []
    for name, taken in times.items():
        rows.append(
            {
                "rows": f"{n_samples:,}".replace(",", " "),
                "fit": name,
                "median": duration(statistics.median(taken)),
                "over sklm": f"{ratio(taken, times['sklm']):.2f}",
                "over curve_fit": f"{ratio(taken, times['curve_fit']):.2f}",
                "largest difference to curve_fit": f"{np.abs(fits[name](0) / expected - 1).max():.0e}",
            }
        )
    return times, rows


def main():
    called = options()
    is_quick = called.quick
    warnings.simplefilter("ignore")
    set_threads(1)
    small, table = measure(100, 40 if is_quick else 200, budget=30)
    set_threads(called.threads)
    large, more = measure(1_000_000, 3 if is_quick else 7, budget=120)
    over_lmfit = ratio(small["sklm"], small["lmfit"])
    faster = ratio(large["curve_fit"], large["sklm"])
    goals = [
        Goal(
            "curve of 3 parameters, 100 rows",
            f"{over_lmfit:.2f} x lmfit's `Model.fit`, {ratio(small['sklm'], small['curve_fit']):.1f} x `curve_fit` "
            f"({duration(statistics.median(small['sklm']))})",
            "under 2 x lmfit",
            over_lmfit < 2,
        ),
        Goal(
            "curve of 3 parameters, 1 000 000 rows",
            f"{faster:.2f} x the speed of `curve_fit` ({duration(statistics.median(large['sklm']))})",
            "2 x faster on the CPU",
            faster >= 2,
        ),
    ]
    if "sklm on the GPU" in large:
        faster = ratio(large["curve_fit"], large["sklm on the GPU"])
        goals.append(Goal("the same on a GPU", f"{faster:.1f} x the speed of `curve_fit`", "20 x faster", faster >= 20))
    text = (
        f"`{FORMULA}` in float64 from the start {START}; new noise in every round. One thread at 100 rows, "
        f"{torch.get_num_threads()} at 1 000 000.\n\n" + markdown(table + more)
    )
    save("curves", "Curve of 3 parameters", goals, text, is_quick=is_quick)


if __name__ == "__main__":
    main()
