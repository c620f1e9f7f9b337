"""What the benchmark jobs share: clocks, memory, tables, plots, and the report that they make up together.

A job is a script of this folder. It times sklm and its peers in one process, in turn, and calls `save`, which keeps its
part of the report in results/NAME.json and writes results.md anew from all parts. With ``--quick`` (fewer seeds and
smaller sizes) everything goes to the folder quick/ instead, so that a short round never replaces a full one.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import threadpoolctl
import torch

import sklm

HERE = Path(__file__).parent
JOBS = ("sinc", "mnist", "mlp_steps", "curves", "grid_search", "predict", "million_rows", "million_parameters")
PACKAGES = [
    "torch",
    "scikit-learn",
    "skorch",
    "numpy",
    "scipy",
    "lmfit",
    "torch-levenberg-marquardt",
    "jax",
    "optimistix",
    "lineax",
]
STARTED = time.perf_counter()


@dataclass(frozen=True)
class Goal:
    """A line of the table of goals; `met` is None for what is reported without a goal."""

    job: str
    measured: str
    goal: str
    met: bool | None


def arguments():
    """Return the parser of what every job can be called with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer seeds, smaller sizes")
    parser.add_argument(
        "--threads", type=int, default=_cores(), help="of the jobs that use all cores; fewer on a busy machine"
    )
    return parser


def options():
    """Return what the script was called with: `quick` and `threads`."""
    return arguments().parse_args()


def set_threads(number):
    """Use this many threads in torch and in the BLAS of NumPy and SciPy."""
    torch.set_num_threads(number)
    threadpoolctl.threadpool_limits(number)


def _cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# ---------------------------------------------------------------------- time


def seconds(call):
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def finished(call, device):
    """Return `call` that ends when the GPU has, where the device is one."""

    def wait(i):
        call(i)
        synchronize(device)

    return wait


def synchronize(device):
    """Wait for the device, so that a clock read next has all work behind it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def interleaved(contenders, repetitions, budget=None, *, warm=True):
    """Time contenders in turn, so that what else the machine does meets them all.

    Parameters
    ----------
    contenders : dict of str to callable
        Called with the number of the repetition.
    repetitions : int
        Rounds; the order of the contenders rotates.
    budget : float, default=None
        Seconds after which no further round begins, once there are three.
    warm : bool, default=True
        Whether a first round, with number -1, is not counted.

    Returns
    -------
    dict of str to list of float
        Seconds, in the order of the rounds.
    """
    names, times = list(contenders), {name: [] for name in contenders}
    for name in names if warm else ():
        contenders[name](-1)
    start = time.perf_counter()
    for i in range(repetitions):
        if budget is not None and i >= 3 and time.perf_counter() - start > budget:
            break
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds(lambda name=name, i=i: contenders[name](i)))
    return times


def ratio(times, base):
    """Return the median over the rounds of `times` divided by `base`."""
    return statistics.median(t / b for t, b in zip(times, base, strict=True))


# ---------------------------------------------------------------------- memory


def _memory(field):
    """Return a line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def memory_now():
    """Return the memory that this process holds, in bytes."""
    return _memory("VmRSS")


def memory_peak():
    """Return the most memory that this process has ever held, in bytes.

    Not `resource.getrusage`: on Linux its ru_maxrss begins with the size of the process that started this one.
    """
    return _memory("VmHWM")


def in_child(script, *arguments):
    """Run ``script --child arguments`` in a process of its own and return the JSON that it prints last."""
    command = [sys.executable, script, "--child", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------- report


def machine():
    """Return processor, cores, memory and, where there is one, GPU."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), name)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {_cores()} cores, {memory:.0f} GiB, {platform.system()}{gpu}"


def versions():
    """Return Python's version and those of the packages that are installed."""
    found = [f"Python {platform.python_version()}", f"sklm {sklm.__version__}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def markdown(rows):
    """Return a list of dicts with the same keys as a table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def duration(value):
    """Return seconds in the unit that suits them."""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def folder(is_quick):
    """Return where the report goes."""
    return HERE / "quick" if is_quick else HERE


def plot_curves(path, curves, *, xlabel="seconds", ylabel, goal=None):
    """Draw curves (name to a pair of lists) on two logarithmic axes and write the picture to `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, (x, y) in curves.items():
        ax.loglog(x, y, label=name, marker="." if len(x) < 60 else None)
    if goal is not None:
        ax.axhline(goal, color="0.6", linestyle="--", label=f"goal: {goal:g}")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="small")
    path.parent.mkdir(exist_ok=True, parents=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def save(name, title, goals, text, *, is_quick, plot=None):
    """Keep a job's part of the report and write the report anew.

    Parameters
    ----------
    name, title : str
        The script's name and the heading.
    goals : list of Goal
    text : str
        Markdown: how it was measured, and tables.
    is_quick : bool
    plot : str, default=None
        File name of a picture in the folder plots.
    """
    part = {
        "title": title,
        "goals": [asdict(goal) for goal in goals],
        "text": text,
        "plot": plot,
        "machine": machine(),
        "versions": versions(),
        "date": date.today().isoformat(),
        "seconds": round(time.perf_counter() - STARTED),
    }
    parts = folder(is_quick) / "results"
    parts.mkdir(exist_ok=True, parents=True)
    (parts / f"{name}.json").write_text(json.dumps(part, indent=1) + "\n")
    print(f"\n## {title}\n\n{goal_table(part['goals'])}\n\n{text}\n")
    write_report(is_quick)


def goal_table(goals):
    """Return goals, each as a dict, as a table."""
    return markdown([goal | {"met": {True: "yes", False: "no", None: ""}[goal["met"]]} for goal in goals])


def write_report(is_quick):
    """Write results.md from the parts that are there."""
    found = {name: folder(is_quick) / "results" / f"{name}.json" for name in JOBS}
    parts = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    lines = ["# Results of the benchmarks", ""]
    lines += [
        f"Written by `make bench{'-quick' if is_quick else ''}`; one job alone: `python benchmarks/NAME.py`. Every job "
        "runs sklm and its peers in one process, in turn; a ratio is the median over rounds or seeds. "
        "Times on a machine that does other things too vary by ten per cent and more, and by a factor from day to day, "
        "so that seconds of jobs with different dates or in different sections do not compare.",
        "",
    ]
    for label in ("machine", "versions"):
        for value in dict.fromkeys(part[label] for part in parts.values()):
            jobs = [name for name, part in parts.items() if part[label] == value]
            which = "" if len(jobs) == len(parts) else f" ({', '.join(jobs)})"
            lines.append(f"- {label}{which}: {value}")
    lines += ["", "## Goals", "", goal_table(goal for part in parts.values() for goal in part["goals"]), ""]
    for name, part in parts.items():
        lines += [f"## {part['title']}", "", part["text"], ""]
        if part["plot"]:
            lines += [f"![{part['title']}](plots/{part['plot']})", ""]
        lines += [f"`benchmarks/{name}.py`, {part['date']}, {part['seconds']} s.", ""]
    missing = [name for name in JOBS if name not in parts]
    if missing:
        lines += [f"Not run: {', '.join(missing)}.", ""]
    (folder(is_quick) / "results.md").write_text("\n".join(lines).rstrip() + "\n")
