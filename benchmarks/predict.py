"""`predict` of 1 000 000 rows beside the bare module.

The module is the default network of `LMRegressor`, fitted to some rows before. Bare is `module(X)` under
`torch.no_grad()`, on a tensor that shares the memory of the same array, in batches of the same 65 536 rows; whole is
one call with all rows. What `predict` adds is validation and bookkeeping. Rounds run in turn, on all cores.
Run: python benchmarks/predict.py [--quick]
"""

import statistics
import warnings

import numpy as np
import torch
from harness import Goal, duration, interleaved, markdown, options, ratio, save, set_threads
from sklearn.neural_network import MLPRegressor

from sklm import LMRegressor

N_ROWS, N_FEATURES, BATCH = 1_000_000, 10, 65_536


@torch.no_grad()
def bare(module, X, batch):
    return torch.cat([module(part) for part in torch.from_numpy(X).split(batch)]).numpy()


def measure(dtype, rounds):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N_ROWS, N_FEATURES)).astype(dtype)
    y = np.sin(X[:1000]).sum(1)
    model = LMRegressor(max_epochs=10, random_state=0).fit(X[:1000], y)
    peer = MLPRegressor(hidden_layer_sizes=(20,), activation="tanh", max_iter=10, random_state=0).fit(X[:1000], y)
    module = model.module_.eval()
    times = interleaved(
        {
            "bare": lambda i: bare(module, X, BATCH),
            "bare, whole": lambda i: bare(module, X, N_ROWS),
            "sklm": lambda i: model.predict(X),
            "MLPRegressor": lambda i: peer.predict(X),
        },
        rounds,
    )
    rows = [
        {
            "dtype": dtype,
            "predict": name,
            "median": duration(statistics.median(taken)),
            "rows per second": f"{N_ROWS / statistics.median(taken):.3g}",
            "over bare": f"{ratio(taken, times['bare']):.2f}",
        }
        for name, taken in times.items()
    ]
    return ratio(times["sklm"], times["bare"]), rows


def main():
    called = options()
    is_quick = called.quick
    warnings.simplefilter("ignore")
    set_threads(called.threads)
    goals, table = [], []
    for dtype in ("float32", "float64"):
        over, rows = measure(dtype, rounds=5 if is_quick else 25)
        table += rows
        measured = f"{over:.2f} x the time of the bare module"
        goals.append(Goal(f"`predict` of 1 000 000 rows, {dtype}", measured, "within 10 %", over <= 1.1))
    text = (
        f"{N_FEATURES} features, 20 hidden units, batches of 65 536 rows; {torch.get_num_threads()} threads.\n\n"
        + markdown(table)
    )
    save("predict", "Prediction", goals, text, is_quick=is_quick)


if __name__ == "__main__":
    main()
