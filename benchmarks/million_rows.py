"""1 000 000 rows x 1000 parameters: time of a step and peak memory over the data, through `LMRegressor.fit`.

Each measurement is a process of its own: it makes the data (10 features), fits once to a few rows so that imports and
thread pools are there, notes its memory, makes full-batch steps on all rows, and notes its peak. The time of a step is
that of an epoch in the history. A quarter of the rows shows whether the cost is linear. torch-levenberg-marquardt makes
the same steps with Cholesky and its `max_batch_size`, without which it would hold the whole Jacobian.
Run: python benchmarks/million_rows.py [--quick] [--threads N]
"""

import json
import statistics
import sys
import time
import warnings

import numpy as np
import torch
from harness import Goal, duration, in_child, markdown, memory_now, memory_peak, options, save, set_threads, synchronize

from sklm import LMRegressor

N_FEATURES, N_HIDDEN, STEPS, PEER_ROWS = 10, 83, 3, 4096
PEER = "torch-levenberg-marquardt"


def draw(n_rows, dtype):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, N_FEATURES), dtype=dtype)
    y = np.sin(X[:, 0]) * X[:, 1] + X[:, 2] ** 2
    return X, y + rng.standard_normal(n_rows, dtype=dtype) / 10


def fit_sklm(X, y, device="cpu"):
    """Return the seconds of every step."""
    model = LMRegressor(
        module__hidden_layer_sizes=(N_HIDDEN,),
        alpha=0.0,
        max_epochs=STEPS,
        ftol=None,
        xtol=None,
        gtol=None,
        random_state=0,
        device=device,
    ).fit(X, y)
    return model.history_[:, "dur"]


def fit_peer(X, y, device="cpu"):
    import torch_levenberg_marquardt as tlm

    torch.manual_seed(0)
    inputs, targets = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)[:, None]
    network = torch.nn.Sequential(
        torch.nn.Linear(N_FEATURES, N_HIDDEN), torch.nn.Tanh(), torch.nn.Linear(N_HIDDEN, 1)
    ).to(inputs)
    module = tlm.training.LevenbergMarquardtModule(
        network, loss_fn=tlm.loss.MSELoss(), solve_method="cholesky", max_batch_size=PEER_ROWS
    )
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        module.training_step(inputs, targets)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def child(library, n_rows, dtype, threads):
    warnings.simplefilter("ignore")
    set_threads(int(threads))
    fit = {"sklm": fit_sklm, PEER: fit_peer}[library]
    X, y = draw(int(n_rows), dtype)
    fit(X[:1500], y[:1500])
    before = memory_now()
    seconds = fit(X, y)
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "memory": memory_peak() - before}))


def main():
    called = options()
    largest = 100_000 if called.quick else 1_000_000
    runs = [("sklm", rows, dtype) for dtype in ("float32", "float64") for rows in (largest // 4, largest)]
    if called.quick:
        runs = runs[:2]
    found = {run: in_child(__file__, *run, called.threads) for run in [*runs, (PEER, largest // 4, "float32")]}
    rows = [
        {
            "library": library,
            "rows": n_rows,
            "dtype": dtype,
            "step": duration(result["seconds"]),
            "step per 1000 rows": duration(result["seconds"] / n_rows * 1000),
            "peak over the data": f"{result['memory'] / 2**20:.0f} MiB",
        }
        for (library, n_rows, dtype), result in found.items()
    ]
    goals = []
    for dtype in dict.fromkeys(dtype for _, _, dtype in runs):
        whole, quarter = found["sklm", largest, dtype], found["sklm", largest // 4, dtype]
        job = f"{largest} rows x 1000 parameters, {dtype}"
        memory = whole["memory"] / 2**30
        linear = whole["seconds"] / quarter["seconds"] / 4
        goals.append(
            Goal(f"{job}: peak memory over the data", f"{memory:.2f} GiB", "under 1 GiB", memory < 1),
        )
        goals.append(
            Goal(
                f"{job}: time",
                f"{duration(whole['seconds'])} a step, {linear:.2f} x the cost per row of a quarter of the rows",
                "linear in rows (at most 1.15)",
                linear <= 1.15,
            )
        )
    text = f"997 parameters, full batch; {called.threads} threads. Medians of the steps after the first."
    text += f"\n\n{markdown(rows)}"
    save("million_rows", "1 000 000 rows", goals, text, is_quick=called.quick)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
