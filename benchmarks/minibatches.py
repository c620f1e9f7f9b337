"""Full batch, growing batches and batches of one size: how close they come to the optimum of all rows, and when.

Three tasks, 20 tanh units, no penalty, five starts each: sin(5 x) with noise of standard deviation 0.3 (4000 rows),
sinc(10 x) without noise (20 000 rows), and kin8nm (8192 rows) from the folder named by SKLM_DATA, skipped with a
message when absent. Full batch and growing batches are `LMRegressor` as it is, with up to 200 epochs. Batches of one
size are a plain loop over `LevenbergMarquardt.step` from the same initial weights, 200 epochs, each a new permutation
whose incomplete last batch is left out.

The mean squared error is that of all rows after an epoch, relative to the lowest at which a full-batch fit of any start
ends, and to the full-batch fit of the same start; the goal is 1 % above the first, for sinc 3.3e-7. Seconds are CPU
seconds on one thread, without the time of these measurements. The plot, plots/minibatches.png, shows medians over the
starts.
Run: python benchmarks/minibatches.py [--quick] (about ten minutes; quick: two starts, 30 epochs)
"""

import copy
import os
import time
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from harness import HERE, folder, markdown, options, set_threads
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback

from sklm import LevenbergMarquardt, LMRegressor

mpl.use("Agg")
import matplotlib.pyplot as plt

SINC_GOAL = 3.3e-7
RATES = (1.0, 0.3, 0.1)


class Clock(Callback):
    """Notes CPU seconds, without its own, and the error on all rows after every epoch; keeps the initial module."""

    def __init__(self, X, y):
        self.X, self.y = X, y

    def on_train_begin(self, net, **kwargs):
        self.module = copy.deepcopy(net.module_)
        self.start(net.module_)

    def on_epoch_end(self, net, **kwargs):
        self.note(net.module_)

    def start(self, module):
        self.seconds, self.errors = [0.0], [mean_squared_error(module, self.X, self.y)]
        self.began = time.process_time()

    def note(self, module):
        now = time.process_time()
        self.seconds.append(now - self.began)
        self.errors.append(mean_squared_error(module, self.X, self.y))
        self.began += time.process_time() - now


@torch.no_grad()
def mean_squared_error(module, X, y):
    return float((module(X)[:, 0] - y).square().mean())


def sine():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (4000, 1))
    return X, np.sin(5 * X[:, 0]) + 0.3 * rng.standard_normal(len(X))


def sinc():
    X = np.random.default_rng(0).uniform(-1, 1, (20_000, 1))
    return X, np.sinc(10 * X[:, 0])


def kin8nm():
    path = Path(os.environ.get("SKLM_DATA", HERE.parent.parent / "shared" / "data")) / "tabular" / "kin8nm.csv"
    if not path.exists():
        print(f"kin8nm: skipped, there is no {path}")
        return None
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1]


def fit(X, y, seed, max_epochs, batch_size):
    """Fit the estimator; return its clock and how training ended."""
    clock = Clock(*map(torch.from_numpy, (X, y)))
    model = LMRegressor(alpha=0, batch_size=batch_size, max_epochs=max_epochs, random_state=seed, callbacks=[clock])
    model.fit(X, y)
    return clock, model


def loop(clock, seed, n_epochs, batch_size, lr):
    """Take steps on batches of one size from the initial weights of a fit; return a clock of its own."""
    clock, module = Clock(clock.X, clock.y), copy.deepcopy(clock.module)
    optimizer = LevenbergMarquardt(module, "squared_error", lr=lr, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    clock.start(module)
    for _ in range(n_epochs):
        for rows in torch.randperm(len(clock.X), generator=generator).split(batch_size):
            if len(rows) == batch_size:
                optimizer.step(clock.X[rows], clock.y[rows, None])
        clock.note(module)
    return clock


def runs(X, y, size, seeds, max_epochs):
    """Return, by method, the clocks of all starts, and how many of them converged."""
    clocks, converged = {}, {}

    def keep(name, clock):
        clocks.setdefault(name, []).append(clock)

    for seed in seeds:
        for name, batch_size in {"full batch": -1, "growing, from 200": 200, 'growing, "auto"': "auto"}.items():
            clock, model = fit(X, y, seed, max_epochs, batch_size)
            if batch_size == "auto":
                name = f"growing, from {model.history_[0, 'batch_size']} (auto)"
            keep(name, clock)
            converged[name] = converged.get(name, 0) + model.converged_
        for lr in RATES:
            keep(f"always {size}, lr {lr:g}", loop(clock, seed, max_epochs, size, lr))
        print(f"start {seed} done", flush=True)
    return clocks, converged


def lines(task, clocks, converged, best, goal):
    """Return the rows of the table."""
    found = []
    full = np.array([clock.errors[-1] for clock in clocks["full batch"]])
    for name, own in clocks.items():
        ends = np.array([clock.errors[-1] for clock in own])
        first = [next((i for i, error in enumerate(clock.errors) if error <= goal), None) for clock in own]
        arrived = [(clock.seconds[i], i) for clock, i in zip(own, first, strict=True) if i is not None]
        seconds, epochs = np.median(arrived, 0) if arrived else (np.nan, np.nan)
        found.append(
            {
                "task": task,
                "batches": name,
                "error at the end over the best": f"{np.median(ends) / best:.4g}",
                "worst": f"{ends.max() / best:.4g}",
                "over the same start": f"{np.median(ends / full):.4g}",
                "ever at the goal": f"{len(arrived)} of {len(own)}",
                "after seconds": f"{seconds:.2f}" if arrived else "",
                "after epochs": f"{epochs:g}" if arrived else "",
                "seconds in all": f"{np.median([clock.seconds[-1] for clock in own]):.2f}",
                "converged": f"{converged[name]} of {len(own)}" if name in converged else "",
            }
        )
    return found


def median_curve(clocks):
    """Return epochs, seconds and errors, medians over the starts; a fit that has ended stays where it is."""
    n = max(len(clock.errors) for clock in clocks)
    curves = [[np.pad(values, (0, n - len(values)), "edge") for values in (c.seconds, c.errors)] for c in clocks]
    return np.arange(n), *np.median(curves, axis=0)


def draw(axes, task, clocks, best):
    for name, own in clocks.items():
        epochs, seconds, errors = median_curve(own)
        style = {"linestyle": "--" if name.startswith("always") else "-", "label": name}
        shown = errors if best is None else 100 * (errors / best - 1)
        for ax, x in zip(axes, (epochs, seconds), strict=True):
            ax.loglog(x[1:], shown[1:], **style)
    for ax, unit in zip(axes, ("epochs", "CPU seconds"), strict=True):
        ax.set(xlabel=unit, ylabel="mean squared error" if best is None else "% above the best full-batch fit")
        ax.axhline(SINC_GOAL if best is None else 1, color="0.6", linewidth=0.8)
    axes[0].set_title(task)
    axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize="small", frameon=False)


def main():
    called = options()
    warnings.simplefilter("ignore", ConvergenceWarning)
    set_threads(1)
    seeds, max_epochs = (range(2), 30) if called.quick else (range(5), 200)
    tasks = {"sin(5 x) with noise": (sine(), 200), "sinc(10 x)": (sinc(), 1000), "kin8nm": (kin8nm(), 1000)}
    tasks = {name: task for name, task in tasks.items() if task[0] is not None}
    figure, axes = plt.subplots(2, len(tasks), figsize=(4.5 * len(tasks), 8), layout="constrained", squeeze=False)
    table = []
    for (name, ((X, y), size)), column in zip(tasks.items(), axes.T, strict=True):
        print(name, flush=True)
        clocks, converged = runs(X, y, size, seeds, max_epochs)
        best = min(clock.errors[-1] for clock in clocks["full batch"])
        is_noisy = name != "sinc(10 x)"
        table += lines(name, clocks, converged, best, 1.01 * best if is_noisy else SINC_GOAL)
        draw(column, name, clocks, best if is_noisy else None)
    print(markdown(table))
    path = folder(called.quick) / "plots" / "minibatches.png"
    path.parent.mkdir(exist_ok=True, parents=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
