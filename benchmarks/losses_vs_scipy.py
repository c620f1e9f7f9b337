"""Minima of sklm, loss by loss and solver by solver, beside scipy.optimize.least_squares at tolerances of 1e-15.

A decaying exponential with offset (3 parameters, 60 points, a fifth of them outliers). The table shows the largest
relative difference of a parameter from scipy's, and sklm's steps. Run: python benchmarks/losses_vs_scipy.py
"""

import numpy as np
import pandas as pd
import torch
from scipy.optimize import least_squares
from torch import nn

from sklm import LevenbergMarquardt

LOSSES = {"squared_error": "linear", "huber": "huber", "soft_l1": "soft_l1", "cauchy": "cauchy"}
SOLVERS = ("auto", "cholesky", "qr", "svd")


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))

    def forward(self, x):
        a, b, c = self.theta
        return a * torch.exp(-b * x[:, 0]) + c


def main():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 4, 60)
    y = 5 * np.exp(-1.3 * x) + 0.5 + 0.1 * rng.standard_normal(60)
    y[::5] += rng.uniform(1, 4, 12)
    rows = []
    for loss, scipy_loss in LOSSES.items():
        reference = least_squares(
            lambda p: p[0] * np.exp(-p[1] * x) + p[2] - y,
            [1.0, 1.0, 0.0],
            jac=lambda p: np.stack([np.exp(-p[1] * x), -p[0] * x * np.exp(-p[1] * x), np.ones_like(x)], 1),
            loss=scipy_loss,
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        for solver in SOLVERS:
            module = Decay()
            optimizer = LevenbergMarquardt(module, loss, solver=solver, ftol=1e-15, xtol=1e-12, gtol=1e-12)
            steps = 0
            while steps < 200:
                steps += 1
                if optimizer.step(torch.tensor(x)[:, None], torch.tensor(y)).status != "running":
                    break
            found = module.theta.detach().numpy()
            rows.append([loss, solver, steps, np.max(np.abs(found / reference.x - 1))])
    table = pd.DataFrame(rows, columns=["loss", "solver", "steps", "difference"])
    print("largest relative difference from scipy's parameters")
    print(table.pivot(index="loss", columns="solver", values="difference").to_string(float_format="{:.0e}".format))
    print("\nsteps")
    print(table.pivot(index="loss", columns="solver", values="steps").to_string())


if __name__ == "__main__":
    main()
