"""Peak memory of a step over what was there before it, held to the bound that docs/guide/jacobians.rst promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 2**20
CHUNK, FORWARD_ROWS = 8 * MIB, 65_536
SCRIPT = """
import sys, torch
from pathlib import Path
from torch import nn
from sklm import LevenbergMarquardt

solver, (n, d, h, o) = sys.argv[1], map(int, sys.argv[2:6])
settings = {"alpha": "bayes"} if solver == "bayes" else {"solver": solver}
torch.set_num_threads(1)

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

def network(d, h, o):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, h), nn.Tanh(), nn.Linear(h, o)).double()

small = torch.randn(50, 3).double()
LevenbergMarquardt(network(3, 3, 1), **settings).step(small, small[:, 0])
X, y = torch.randn(n, d).double(), torch.randn(n, o).double()
optimizer = LevenbergMarquardt(network(d, h, o), **settings)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
for _ in range(2):
    optimizer.step(X, y)
print(status("VmHWM") - before, optimizer.function.n_params)
"""


def bound(solver, n, p, o, width):
    """Return bytes, as in the documentation."""
    kept = 16 * n * width
    common = 8 * (16 * n * o + 3 * min(n, FORWARD_ROWS) * width) + 6 * CHUNK + (kept if kept <= 128 * MIB else 0)
    if solver == "dual":
        return common + 8 * (4 * n * o * p + 4 * (n * o) ** 2)
    if solver == "bayes" and n * o < p:
        return common + 8 * (6 * n * o * p + 4 * (n * o) ** 2)
    return common + 8 * {"cholesky": 4 * p**2, "qr": 6 * p**2, "svd": 8 * p**2, "cg": 40 * p, "bayes": 6 * p**2}[solver]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("solver", "n", "d", "h", "o"),
    [
        ("cholesky", 300_000, 18, 50, 1),
        ("cholesky", 20_000, 54, 54, 1),
        ("cholesky", 50_000, 18, 30, 5),
        ("cholesky", 4000, 100, 40, 3),
        ("qr", 20_000, 18, 50, 1),
        ("svd", 20_000, 18, 50, 1),
        ("dual", 500, 100, 50, 1),
        ("cg", 2000, 500, 400, 1),
        ("bayes", 100, 3, 590, 1),
        ("bayes", 20_000, 54, 36, 1),
    ],
)
def test_peak_memory_of_a_step(solver, n, d, h, o):
    name = "cholesky" if solver == "dual" else solver
    command = [sys.executable, "-c", SCRIPT, name, *map(str, (n, d, h, o))]
    returns_memory = {"MALLOC_MMAP_THRESHOLD_": str(MIB)}  # else what glibc holds back counts, more or less of it
    run = subprocess.run(command, capture_output=True, check=True, text=True, env={**os.environ, **returns_memory})  # noqa: S603
    peak, p = map(int, run.stdout.split())
    assert peak <= bound(solver, n, p, o, h + o)
    assert peak >= bound(solver, n, p, o, h + o) / 20  # the measurement measures
