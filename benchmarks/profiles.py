"""Where the time goes: a step on MNIST by torch operation, and fits of 100 rows by package, on one thread.

To compare with another version, run it with that version's folder in PYTHONPATH. MNIST needs SKLM_DATA.
Run: python benchmarks/profiles.py
"""

import cProfile
import os
import pstats
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sklm import LevenbergMarquardt, LMRegressor, losses

ROUNDS = 30
PACKAGES = {"torch": "/torch/", "skorch": "/skorch/", "sklm/engine": "/sklm/engine/", "sklm": "/sklm/"}


def mnist_step(path):
    """Print the operations of eight steps on batches of 5000 images, network of torch-levenberg-marquardt's example."""
    data = np.load(path)
    X = torch.from_numpy(data["X_train"][:45_000]).float().div(255)[:, None]
    y = torch.from_numpy(data["y_train"][:45_000].astype(np.int64))
    torch.manual_seed(0)
    convolutions = [(1, 8, 4, 2), (8, 4, 4, 2), (4, 4, 2, 1), (4, 4, 2, 1), (4, 4, 2, 1)]
    layers = [layer for i, o, k, s in convolutions for layer in (nn.Conv2d(i, o, k, stride=s), nn.ELU())]
    optimizer = LevenbergMarquardt(
        nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10)), losses.CrossEntropy(curvature="sqrt"), lr=0.05
    )
    first, *batches = zip(X.split(5000), y.split(5000), strict=True)
    optimizer.step(*first)
    start = time.process_time()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        attempts = sum(optimizer.step(*batch).attempts for batch in batches)
    seconds = time.process_time() - start
    own = pd.Series({event.key: event.self_cpu_time_total for event in found.key_averages()})
    own = 1e-3 * own.sort_values(ascending=False) / len(batches)
    print(f"MNIST: {1e3 * seconds / len(batches):.0f} ms a step, {attempts / len(batches):.1f} attempts; of it:")
    print(own.head(10).round(1).to_string())


def fits(name, X, y, *arguments, **params):
    """Print milliseconds per fit, and the share of the packages in the profile."""

    def fit():
        return LMRegressor(*arguments, random_state=0, **params).fit(X, y)

    fit()
    start = time.process_time()
    for _ in range(ROUNDS):
        epochs = fit().n_iter_
    seconds = (time.process_time() - start) / ROUNDS
    recorder = cProfile.Profile()
    recorder.enable()
    for _ in range(ROUNDS):
        fit()
    recorder.disable()
    shares = dict.fromkeys([*PACKAGES, "other Python", "built in, mostly torch"], 0.0)
    for (file, _, _), (_, _, own, _, _) in pstats.Stats(recorder).stats.items():
        place = next((package for package, part in PACKAGES.items() if part in file), "other Python")
        shares[place if file != "~" else "built in, mostly torch"] += own
    total = sum(shares.values())
    print(f"{name}: {1e3 * seconds:.1f} ms and {epochs} epochs a fit; own time by package, of the profile:")
    print(pd.Series({package: f"{100 * own / total:.0f} %" for package, own in shares.items()}).to_string())


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    x = np.linspace(0, 4, 100)
    y = 3 * np.exp(-0.7 * x) + 1 + 0.05 * rng.standard_normal(100)
    start = {"module__a": 1.0, "module__b": 1.0, "module__c": 0.0}
    fits("curve, 100 rows", x[:, None], y, "a * exp(-b * x) + c", **start)
    X = rng.standard_normal((100, 5))
    fits("network, 100 rows", X, np.sin(X).sum(1), module__hidden_layer_sizes=(5,), max_epochs=20)
    path = Path(os.environ.get("SKLM_DATA", "")) / "mnist" / "mnist.npz"
    if path.exists():
        mnist_step(path)
    else:
        print("MNIST: skipped, the folder named by SKLM_DATA has no mnist/mnist.npz")


if __name__ == "__main__":
    main()
