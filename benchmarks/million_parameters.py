"""A module of 1 000 000 parameters with `solver="cg"`: time per step, peak memory, and how the loss falls.

A process of its own makes the data (2000 rows, float32), notes its memory, and fits a network with two hidden layers
for some full-batch steps through `LMRegressor`. Peak memory counts from there: parameters, their copies and what
autograd keeps. torch's L-BFGS, the usual method where no matrix fits, gets as much time, from the same kind of start.
Run: python benchmarks/million_parameters.py [--quick] [--threads N]
"""

import json
import statistics
import sys
import time
import warnings

import numpy as np
import torch
from harness import (
    Goal,
    duration,
    folder,
    in_child,
    markdown,
    memory_now,
    memory_peak,
    options,
    plot_curves,
    save,
    set_threads,
)

from sklm import MLP, LMRegressor

HIDDEN, N_ROWS, N_FEATURES = (1000, 978), 2000, 20


def draw():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N_ROWS, N_FEATURES), dtype=np.float32)
    return X, np.sin(2 * X[:, 0]) * X[:, 1] + X[:, 2] ** 2


def fit_sklm(X, y, steps):
    """Return seconds and loss after every step."""
    model = LMRegressor(
        module__hidden_layer_sizes=HIDDEN,
        solver="cg",
        alpha=0.0,
        max_epochs=steps,
        ftol=None,
        xtol=None,
        gtol=None,
        random_state=0,
    ).fit(X, y)
    return np.cumsum(model.history_[:, "dur"]).tolist(), model.loss_curve_


def child(steps, threads):
    warnings.simplefilter("ignore")
    set_threads(int(threads))
    X, y = draw()
    LMRegressor(module__hidden_layer_sizes=(5,), solver="cg", max_epochs=2, random_state=0).fit(X, y)
    before = memory_now()
    seconds, losses = fit_sklm(X, y, int(steps))
    print(json.dumps({"seconds": seconds, "losses": losses, "memory": memory_peak() - before}))


def fit_lbfgs(X, y, limit):
    """Return seconds and loss (half the mean squared error, as sklm's) of torch's L-BFGS."""
    torch.manual_seed(0)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    module = MLP(N_FEATURES, 1, HIDDEN)
    module.init_from_data(inputs, targets)
    optimizer = torch.optim.LBFGS(module.parameters(), line_search_fn="strong_wolfe")

    def loss():
        return (module(inputs)[:, 0] - targets).square().mean() / 2

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    seconds, losses = [0.0], []
    while seconds[-1] < limit:
        start = time.perf_counter()
        optimizer.step(closure)
        seconds.append(seconds[-1] + time.perf_counter() - start)
        losses.append(loss().item())
    return seconds[1:], losses


def start_loss(y):
    """Return the loss of the mean, about that of the first parameters."""
    return float(np.var(y)) / 2


def main():
    called = options()
    set_threads(called.threads)
    X, y = draw()
    found = in_child(__file__, 2 if called.quick else 10, called.threads)
    seconds, losses = found["seconds"], found["losses"]
    curves = {"sklm, cg": (seconds, losses), "torch L-BFGS": fit_lbfgs(X, y, seconds[-1])}
    n_params = sum(p.numel() for p in MLP(N_FEATURES, 1, HIDDEN).parameters())
    memory = found["memory"] / 2**30
    falls = losses[-1] < start_loss(y) and losses == sorted(losses, reverse=True)
    each = statistics.median(np.diff([0.0, *seconds]))
    job = f'{n_params} parameters, `solver="cg"`'
    goals = [
        Goal(f"{job}: peak memory", f"{memory:.2f} GiB", "under 2 GiB", memory < 2),
        Goal(
            f"{job}: time and loss",
            f"{duration(each)} a step; loss {start_loss(y):.3g} to {losses[-1]:.3g} in {len(losses)} steps",
            "loss falls",
            falls,
        ),
    ]
    rows = [
        {"method": name, "steps": len(taken), "seconds": f"{taken[-1]:.1f}", "loss": f"{values[-1]:.3g}"}
        for name, (taken, values) in curves.items()
    ]
    text = (
        f"{N_ROWS} rows, {N_FEATURES} features, full batch, float32; {called.threads} threads. A step of L-BFGS is at "
        f"most 20 of its iterations.\n\n{markdown(rows)}"
    )
    path = folder(called.quick) / "plots" / "million_parameters.png"
    plot_curves(path, curves, ylabel="loss")
    save("million_parameters", "1 000 000 parameters", goals, text, is_quick=called.quick, plot=path.name)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
