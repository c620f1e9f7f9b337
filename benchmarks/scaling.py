"""Which scaling of the damping, and which slope of the initial units, find good minima of a network.

sinc(10 x), 20 tanh units, 20 000 points, 60 epochs of batches that grow from 1000: how many of ten starts end below a
mean squared error of 3.3e-7, and the median error. Run: python benchmarks/scaling.py (about five minutes)
"""

import warnings

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

import sklm.modules
from sklm import LMRegressor

warnings.simplefilter("ignore", ConvergenceWarning)
STARTS = range(10)


def errors(**params):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (20_000, 1))
    y = np.sinc(10 * X[:, 0])
    found = []
    for seed in STARTS:
        model = LMRegressor(batch_size=1000, max_epochs=60, random_state=seed, **params).fit(X, y)
        found.append(np.mean((model.predict(X) - y) ** 2))
    return np.array(found)


def main():
    rows = []
    default = sklm.modules.SLOPE
    for scaling in ("max", "identity", "more", "marquardt"):
        found = errors(damping__scaling=scaling)
        rows.append([scaling, default, (found < 3.3e-7).sum(), np.median(found)])
    for slope in (0.7, 0.5, 0.35):
        sklm.modules.SLOPE = slope
        found = errors()
        rows.append(["max", slope, (found < 3.3e-7).sum(), np.median(found)])
    sklm.modules.SLOPE = default
    table = pd.DataFrame(rows, columns=["scaling", "slope", f"of {len(STARTS)} below 3.3e-7", "median error"])
    print(table.to_string(index=False, float_format="{:.2g}".format))


if __name__ == "__main__":
    main()
