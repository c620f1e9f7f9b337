"""The jobs that can gain by a GPU, on it and on the CPU of its machine, beside torch-levenberg-marquardt on the GPU.

1. Steps on the MLPs of mlp_steps.py, 301 to 3001 parameters.
2. 1 000 000 rows x 997 parameters, as in million_rows.py, with the memory of the GPU over that of the data.
3. The curve of curves.py at 1 000 000 rows, beside `curve_fit` on the CPU.
4. MNIST as in mnist.py: time of a step, and time to 97.5 % of the test images.
5. `predict` of 1 000 000 rows.

All run in turn in one process; a time ends when the GPU has finished. TF32 is off, as torch has it. The report goes to
results-gpu.md. Nothing else of the suite needs a GPU, and this script does nothing without one.
Run: python benchmarks/gpu.py [--quick] [--device cuda]
"""

import itertools
import os
import statistics
import sys
import warnings
from dataclasses import asdict
from datetime import date
from pathlib import Path

import curves
import million_rows
import mlp_steps
import mnist
import numpy as np
import torch
import torch_levenberg_marquardt as tlm
from harness import (
    Goal,
    arguments,
    duration,
    finished,
    folder,
    goal_table,
    interleaved,
    machine,
    markdown,
    ratio,
    set_threads,
    versions,
)

from sklm import LevenbergMarquardt, LMRegressor, losses

PEER = "torch-levenberg-marquardt"
PEER_BYTES = 8 * 2**30  # the Jacobian of the peer at once


def medians(times):
    return {name: statistics.median(taken) for name, taken in times.items()}


def mlp_step_rows(device, sizes, budget):
    """Return a row per network, number of rows and dtype."""
    rows = []
    for n_params, n_rows, dtype in itertools.product(*sizes, ("float32", "float64")):
        n_hidden = round((n_params - 1) / 12)
        contenders = {}
        for name in ("cpu", device):
            module, X, y = (part.to(name) for part in mlp_steps.problem(n_hidden, n_rows, dtype))
            lm = mlp_steps.make_optimizer(module)
            contenders[f"sklm {name}"] = lambda i, lm=lm, X=X, y=y: lm.step(X, y)
        module, X, y = (part.to(device) for part in mlp_steps.problem(n_hidden, n_rows, dtype))
        n_params, chunk = sum(p.numel() for p in module.parameters()), PEER_BYTES // (8 * n_params)
        peer = tlm.training.LevenbergMarquardtModule(
            module, loss_fn=tlm.loss.MSELoss(), solve_method="cholesky", max_batch_size=min(n_rows, chunk)
        )
        contenders[PEER] = finished(lambda i, peer=peer, X=X, y=y: peer.training_step(X, y), device)
        A = torch.randn(min(n_rows, chunk), n_params, dtype=X.dtype, device=device)
        contenders["mm"] = finished(lambda i, A=A: A.T @ A, device)
        times = interleaved(contenders, 30, budget)
        middle = medians(times)
        rows.append(
            {
                "parameters": n_params,
                "rows": n_rows,
                "dtype": dtype,
                "sklm, GPU": duration(middle[f"sklm {device}"]),
                "sklm, CPU": duration(middle["sklm cpu"]),
                f"{PEER}, GPU": duration(middle[PEER]),
                "CPU over GPU": f"{ratio(times['sklm cpu'], times[f'sklm {device}']):.1f}",
                "peer over sklm": f"{ratio(times[PEER], times[f'sklm {device}']):.1f}",
                "one `A.T @ A` on the GPU": duration(middle["mm"]),
            }
        )
        print(rows[-1], flush=True)
    return rows


def million_row_rows(device, n_rows, dtypes):
    """Return a row per dtype and library."""
    rows = []
    for dtype in dtypes:
        X, y = million_rows.draw(n_rows, dtype)
        for name, fit in (("sklm", million_rows.fit_sklm), (PEER, million_rows.fit_peer)):
            for where in (device, "cpu"):
                if where == "cpu" and name == PEER:
                    continue
                fit(X[:1500], y[:1500], where)
                held = 0
                if where == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                    held = torch.cuda.memory_allocated() + X.nbytes + y.nbytes
                seconds = fit(X, y, where)
                peak = f"{(torch.cuda.max_memory_allocated() - held) / 2**20:.0f} MiB" if where == "cuda" else ""
                middle = statistics.median(seconds[1:])
                row = {"library": name, "device": where, "rows": n_rows, "dtype": dtype, "step": duration(middle)}
                rows.append(row | {"peak over the data": peak})
                print(rows[-1], flush=True)
    return rows


def mnist_rows(device, is_quick):
    """Return the rows of the steps and of the times to 97.5 %; None without the images."""
    path = Path(os.environ.get("SKLM_DATA", "")) / "mnist" / "mnist.npz"
    if not path.exists():
        print("mnist: skipped, the folder named by SKLM_DATA has no mnist/mnist.npz")
        return None
    data = tuple(part.to(device) for part in mnist.load(path))
    X, y = data[0][: mnist.BATCH], data[1][: mnist.BATCH]
    contenders = {}
    for name in ("cpu", device):
        lm = LevenbergMarquardt(mnist.seeded_network(0).to(name), losses.CrossEntropy(curvature="sqrt"), lr=0.05)
        batch = X.to(name), y.to(name)
        contenders[f"sklm, {name}"] = lambda i, lm=lm, batch=batch: lm.step(*batch)
    peer = mnist.make_peer(mnist.seeded_network(0).to(device))
    contenders[f"{PEER}, {device}"] = finished(lambda i: peer.training_step(X, y), device)
    times = interleaved(contenders, 5 if is_quick else 30, budget=15)
    ours = times[f"sklm, {device}"]
    steps = [
        {"step": name, "median": duration(statistics.median(taken)), "over sklm": f"{ratio(taken, ours):.2f}"}
        for name, taken in times.items()
    ]
    runs = {
        "sklm, lr 0.2": lambda *a: mnist.run_sklm(*a, 0.2),
        f"{PEER}, lr 0.05": lambda *a: mnist.run_peer(*a, 0.05),
        "Adam, batch 250, lr 0.01": lambda *a: mnist.run_adam(*a, 250, 0.01),
    }
    found = {
        name: [mnist.watched(run, data, seed, 5 if is_quick else 15) for seed in range(1 if is_quick else 3)]
        for name, run in runs.items()
    }
    trainings = [
        {
            "training": name,
            "median seconds": f"{statistics.median(watch.seconds[-1] for watch in own):.2f}",
            "arrived": f"{sum(watch.arrived for watch in own)} of {len(own)}",
        }
        for name, own in found.items()
    ]
    return steps, trainings


def predict_rows(device):
    X = np.random.default_rng(0).standard_normal((1_000_000, 10)).astype(np.float32)
    y = np.sin(X[:1000]).sum(1)
    contenders = {}
    for name in ("cpu", device):
        model = LMRegressor(max_epochs=10, random_state=0, device=name).fit(X[:1000], y)
        contenders[f"sklm, {name}"] = lambda i, model=model: model.predict(X)
    return [{"predict": name, "median": duration(t)} for name, t in medians(interleaved(contenders, 5)).items()]


def main():
    parser = arguments()
    parser.add_argument("--device", default="cuda")
    called = parser.parse_args()
    is_quick, device = called.quick, called.device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(print("gpu: skipped, torch finds no GPU"))
    warnings.simplefilter("ignore")
    set_threads(called.threads)
    sizes = ((300, 1000), (1000, 10_000)) if is_quick else ((300, 1000, 3000), (1000, 10_000, 100_000))
    head = ["# Results on a GPU", "", f"- machine: {machine()}", f"- versions: {versions()}"]
    head += [f"- `python benchmarks/gpu.py`, {date.today().isoformat()}", ""]
    sections = []

    def add(title, text, *tables):
        sections.extend([f"## {title}", "", text, "", *(line for table in tables for line in (markdown(table), ""))])

    found = mnist_rows(device, is_quick)
    if found is not None:
        text = f"1026 parameters, batches of {mnist.BATCH}, float32; the second table is the time to 97.5 %."
        add("MNIST, 1026 parameters", text, *found)
    n_rows = 20_000 if is_quick else 1_000_000
    times, table = curves.measure(n_rows, 3 if is_quick else 7, budget=60)
    if "sklm on the GPU" in times:
        faster = ratio(times["curve_fit"], times["sklm on the GPU"])
        goal = Goal("curve, 1 000 000 rows", f"{faster:.1f} x the speed of `curve_fit`", "20 x faster", faster >= 20)
        head += [goal_table([asdict(goal)]), ""]
    add("Curve of 3 parameters", f"`{curves.FORMULA}` in float64, {called.threads} threads.", table)
    table = million_row_rows(device, 20_000 if is_quick else 1_000_000, ("float32", "float64"))
    add("1 000 000 rows", "997 parameters, full batch; medians of the steps after the first.", table)
    add("`predict` of 1 000 000 rows", "Array in, array out; float32.", predict_rows(device))
    text = "10 inputs, one hidden layer of tanh units, one output; medians per step."
    add("Steps on MLPs", text, mlp_step_rows(device, sizes, budget=0.5 if is_quick else 1.5))
    path = folder(is_quick) / "results-gpu.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(head + sections).rstrip() + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
