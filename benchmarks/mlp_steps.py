"""Time of a Levenberg-Marquardt step on MLPs, and where in the step it goes.

The network has 10 inputs, one hidden layer of tanh units and one output: 61 to 3001 parameters; rows 1000 to 100 000,
in float32 and float64, all cores. `sklm.LevenbergMarquardt` makes steps at its defaults, without stopping tests. The
split comes from wrapping private functions of the engine (`PARTS`) by a clock, so it has to follow them when they
change; time inside a part that another part calls counts for the inner one. What "Gram" holds is compared with one
`torch.mm` of the same full product A'A, timed in turn with the steps; where A would take more than `MM_BYTES` the
product is timed on fewer rows and scaled up. Where rows are fewer than parameters the engine takes the dual form, whose
product is part of the solve.

optimistix's `LevenbergMarquardt` (QR) is stepped by hand, as its documentation shows, under `eqx.filter_jit` on the
same network of 1201 parameters, rows and start, in turn with sklm; the first call, which compiles, counts as that.
Run: python benchmarks/mlp_steps.py [--quick] [--threads N]
"""

import itertools
import statistics
import time
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from harness import Goal, duration, interleaved, markdown, options, ratio, save, seconds, set_threads

from sklm import LevenbergMarquardt
from sklm.engine import solvers
from sklm.engine.jacobian import ModuleFunction

N_FEATURES = 10
PARAMS, ROWS, DTYPES = (60, 300, 1000, 3000), (1000, 10_000, 100_000), ("float32", "float64")
MM_BYTES = 512 * 2**20
PARTS = {  # private places of the engine, and the part that each belongs to
    (ModuleFunction, "outputs"): "forward",
    (ModuleFunction, "_record"): "forward",
    (ModuleFunction, "rows"): "Jacobian",
    (solvers, "add_gram"): "Gram",
    (solvers.SubProblem, "solve"): "solve",
}
NAMES = ("forward", "Jacobian", "Gram", "solve", "rest")


class Split:
    """Adds up the time of nested parts, each without those inside it."""

    def __init__(self):
        self.totals, self.stack = dict.fromkeys(NAMES, 0.0), ["rest"]
        self.last = time.perf_counter()

    def _switch(self):
        now = time.perf_counter()
        self.totals[self.stack[-1]] += now - self.last
        self.last = now

    @contextmanager
    def part(self, name):
        self._switch()
        self.stack.append(name)
        try:
            yield
        finally:
            self._switch()
            self.stack.pop()

    def close(self):
        self._switch()
        return self.totals


def wrapped(function, name, current):
    """Return `function` with its time, or that of the generator it returns, counted for `name` in `current[0]`."""

    def generate(items):
        end = object()
        while True:
            with current[0].part(name):
                item = next(items, end)
            if item is end:
                return
            yield item

    def call(*args, **kwargs):
        if current[0] is None:
            return function(*args, **kwargs)
        with current[0].part(name):
            result = function(*args, **kwargs)
        return generate(result) if hasattr(result, "__next__") else result

    return call


def wrap_parts():
    """Put clocks around `PARTS`; return the list whose only element is the `Split` in use, or None."""
    current = [None]
    for (owner, attribute), name in PARTS.items():
        setattr(owner, attribute, wrapped(getattr(owner, attribute), name, current))
    return current


def problem(n_hidden, n_rows, dtype):
    """Return network, inputs and targets."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    module = torch.nn.Sequential(
        torch.nn.Linear(N_FEATURES, n_hidden), torch.nn.Tanh(), torch.nn.Linear(n_hidden, 1)
    ).to(kind)
    X = torch.randn(n_rows, N_FEATURES, dtype=kind)
    y = torch.sin(X).sum(1, keepdim=True) + 0.1 * torch.randn(n_rows, 1, dtype=kind)
    return module, X, y


def make_optimizer(module):
    return LevenbergMarquardt(module, ftol=None, xtol=None, gtol=None, seed=0)


def product(n_rows, n_params, dtype):
    """Return a call that computes A'A, and the factor for the rows that it leaves out."""
    kind = getattr(torch, dtype)
    n_used = max(1, min(n_rows, MM_BYTES // (n_params * kind.itemsize)))
    A = torch.randn(n_used, n_params, dtype=kind)
    out = torch.empty(n_params, n_params, dtype=kind)
    return lambda: torch.mm(A.T, A, out=out), n_rows / n_used


def measure(n_hidden, n_rows, dtype, current, budget):
    """Return a row of the table as numbers."""
    module, X, y = problem(n_hidden, n_rows, dtype)
    lm = make_optimizer(module)
    result = lm.step(X, y)  # chooses the way to the Jacobian
    n_params = sum(p.numel() for p in module.parameters())
    has_gram = result.solver.startswith("cholesky:")
    multiply, factor = product(n_rows, n_params, dtype)
    multiply()
    splits, plain, attempts = [], [], []
    start = time.perf_counter()
    while len(splits) < 3 or (time.perf_counter() - start < budget and len(splits) < 50):
        current[0] = Split()
        attempts.append(lm.step(X, y).attempts)
        splits.append(current[0].close())
        current[0] = None
        plain.append(seconds(multiply) * factor)
    parts = {name: statistics.median(split[name] for split in splits) for name in NAMES}
    outside = statistics.median(1 - (split["Gram"] + split["solve"]) / sum(split.values()) for split in splits)
    return {
        "parameters": n_params,
        "rows": n_rows,
        "dtype": dtype,
        "step": statistics.median(sum(split.values()) for split in splits),
        **parts,
        "outside": outside,
        "mm": statistics.median(plain),
        "gram": ratio([split["Gram"] for split in splits], plain) if has_gram else None,
        "attempts": statistics.mean(attempts),
        "solver": result.solver.split(":")[0],
    }


def shown(row):
    """Return a row of the table as text."""
    return {
        "parameters": row["parameters"],
        "rows": row["rows"],
        "dtype": row["dtype"],
        "solver": row["solver"],
        "attempts": f"{row['attempts']:.1f}",
        "step": duration(row["step"]),
        **{name: duration(row[name]) for name in NAMES},
        "all but Gram and solve": f"{100 * row['outside']:.0f} %",
        "Gram over `torch.mm`": "" if row["gram"] is None else f"{row['gram']:.2f}",
    }


def against_optimistix(rounds, n_hidden=100, n_rows=4000):
    """Return the seconds per step of both, and those of the compilation; None without optimistix."""
    try:
        import equinox as eqx
        import jax
        import jax.numpy as jnp
        import optimistix as optx
    except ImportError as error:
        print(f"optimistix: skipped, {error}")
        return None
    module, X, y = problem(n_hidden, n_rows, "float32")
    parameters = [jnp.asarray(p.detach().numpy().copy()) for p in module.parameters()]
    inputs, targets = jnp.asarray(X.numpy()), jnp.asarray(y.numpy())

    def residuals(p, args):
        W, b, V, c = p
        return (jnp.tanh(inputs @ W.T + b) @ V.T + c - targets)[:, 0], None

    tags, options = frozenset(), {}
    solver = optx.LevenbergMarquardt(rtol=1e-12, atol=1e-12)
    shape = (jax.ShapeDtypeStruct((n_rows,), jnp.float32), None)
    state = solver.init(residuals, parameters, None, options, shape[0], shape[1], tags)
    step = eqx.filter_jit(eqx.Partial(solver.step, fn=residuals, args=None, options=options, tags=tags))
    held = [parameters, state]

    def advance(_):
        held[0], held[1], _ = step(y=held[0], state=held[1])
        jax.block_until_ready(held[0])

    compilation = seconds(lambda: advance(-1))
    lm = make_optimizer(module)
    times = interleaved({"sklm": lambda i: lm.step(X, y), "optimistix": advance}, rounds)
    loss = float(np.mean(np.square(residuals(held[0], None)[0])) / 2)
    print(f"losses after {rounds + 1} steps: sklm {lm.step(X, y).loss:.4g}, optimistix {loss:.4g}")
    return times, compilation


def goals_and_text(rows, peer):
    worst = max((row for row in rows if row["gram"] is not None and row["parameters"] > 900), key=lambda r: r["gram"])
    goals = [
        Goal(
            "Gram matrix of a step, 1000 and 3000 parameters",
            f"at most {worst['gram']:.2f} of `torch.mm` ({worst['parameters']} parameters, {worst['rows']} rows, "
            f"{worst['dtype']})",
            "at most 0.8 of the full product",
            worst["gram"] <= 0.8,
        )
    ]
    for row in rows:
        if (row["parameters"] // 10, row["rows"]) == (99, 10_000):
            share = f"{100 * row['outside']:.0f} % of {duration(row['step'])}"
            label = f"all but Gram and solve, 1000 parameters, 10 000 rows, {row['dtype']}"
            goals.append(Goal(label, share, "under 40 %", row["outside"] < 0.4))
    text = (
        f"10 inputs, one hidden layer of tanh units, one output; {torch.get_num_threads()} threads. Medians per "
        "step.\n\n" + markdown([shown(row) for row in rows])
    )
    if peer is not None:
        times, compilation = peer
        faster = ratio(times["optimistix"], times["sklm"])
        goals.append(
            Goal(
                "step beside optimistix, 1201 parameters x 4000 rows",
                f"{faster:.1f} x its speed",
                "5 x faster",
                faster >= 5,
            )
        )
        lines = [{"step": name, "median": duration(statistics.median(taken))} for name, taken in times.items()]
        text += (
            "\n\n1201 parameters x 4000 rows, float32; optimistix compiles its first step in "
            f"{compilation:.0f} s, which is not counted:\n\n{markdown(lines)}"
        )
    return goals, text


def main():
    called = options()
    is_quick = called.quick
    warnings.simplefilter("ignore")
    set_threads(called.threads)
    current = wrap_parts()
    rows = []
    for n_params, n_rows, dtype in itertools.product(PARAMS, ROWS, DTYPES):
        if is_quick and (n_rows > 10_000 or n_params > 1000):
            continue
        rows.append(measure(round((n_params - 1) / 12), n_rows, dtype, current, budget=0.5 if is_quick else 3))
        print(shown(rows[-1]), flush=True)
    goals, text = goals_and_text(rows, against_optimistix(3 if is_quick else 10))
    save("mlp_steps", "Steps on MLPs", goals, text, is_quick=is_quick)


if __name__ == "__main__":
    main()
