"""How good without tuning: `LMRegressor()` and `LMClassifier()` beside the usual peers, on real tables.

Protocol, the same for every model and table:

* The published splits where there are any, else seeded ones of 25 % test rows (stratified for classes). Training rows
  are shuffled and capped at 5000; test rows are not. Labels are integers, the one column of text (abalone's Sex) is
  three columns of 0 and 1, every other column is taken as a number.
* X goes through one StandardScaler; y is standardized for the peers that do not scale it (MLP, skorch, Gaussian
  process). No setting depends on the table. One thread; seconds are CPU seconds of `fit`, search included.
* Peers at their documented defaults, and with ``--grid`` the best of a small grid by 3-fold cross-validation. A skorch
  network is one layer of 20 tanh units, 200 epochs of Adam. A Gaussian process (RBF plus white noise, as its default
  kernel takes y to be free of noise) only up to 1000 training rows.
* Intervals are nominal 90 % for a new measurement: `predict_interval` of sklm, mean and standard deviation of the
  Gaussian process. Their width is in standard deviations of y in the test rows, as is the relative RMSE.

A table counts by the median over its splits. A variant of sklm is ranked among the peers alone, so that variants do not
displace each other; a peer among the other peers and the reference, sklm at its defaults. A failed fit is the worst.

The tables are in two halves, named in `HALVES`: defaults are chosen on "tune" and "test" is only looked at afterwards.

Rows are kept in results/quality.csv, by table, split and model; a run computes those that are missing or failed, or
whose variant has other parameters, and appends them (of equal keys the last counts). Rows of sklm do not notice that
its code has changed: run those again with ``--models '^LM' --redo``. The report comes from the csv and goes to
results/quality.md too. Tables come from the folder named by SKLM_DATA, or ../shared/data beside this checkout; those
that are not there are skipped.

Run: python benchmarks/quality.py [--splits N] [--tables REGEX] [--models REGEX] [--half tune] [--grid] [--redo]
     [--report] [--reference NAME] [--variant 'bayes:alpha="bayes", module__hidden_layer_sizes=(10,)'] ...
"""

import argparse
import ast
import csv
import os
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from harness import HERE, machine, markdown, set_threads, versions
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.metrics import accuracy_score, log_loss, root_mean_squared_error
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import EarlyStopping
from torch import nn

from sklm import LMClassifier, LMRegressor

HALVES = {
    "tune": ["abalone", "boston", "diabetes", "kin8nm", "yacht", "breast_cancer", "iris", "phoneme", "vowel"],
    "test": ["airfoil", "concrete", "energy", "wine_red", "digits", "pendigits", "satellite", "wine"],
}
ALL = [name for names in HALVES.values() for name in names]
BUNDLED = {
    "diabetes": load_diabetes,
    "breast_cancer": load_breast_cancer,
    "digits": load_digits,
    "iris": load_iris,
    "wine": load_wine,
}
CLASSES = {"breast_cancer", "digits", "iris", "pendigits", "phoneme", "satellite", "vowel", "wine"}
LOW_NOISE = ["energy", "yacht", "kin8nm"]
DATA = Path(os.environ.get("SKLM_DATA", HERE.parent.parent / "shared" / "data")) / "tabular"
CACHE = HERE / "results" / "quality.csv"
MAX_ROWS = 5000
MAX_ROWS_GP = 1000
LEVEL, QUANTILE = 0.9, 1.6449
BEST = {"rmse": "min", "relative_rmse": "min", "log_loss": "min", "accuracy": "max"}
UNITS = {"rmse": "%", "log_loss": "nats", "accuracy": "share"}  # of the distance from the best network
KEY = ["table", "split", "model"]
METRICS = {"regression": ["rmse", "relative_rmse", "coverage", "width"], "classes": ["accuracy", "log_loss"]}
COLUMNS = [*KEY, "parameters", *METRICS["regression"], *METRICS["classes"], "seconds", "n_train", "message", "date"]


# ---------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    name: str
    task: str  # "regression" or "classes"
    X: np.ndarray
    y: np.ndarray

    def split(self, number):
        """Return the rows for training, shuffled and at most MAX_ROWS, and those for the test."""
        train, test = self._published(number) or self._drawn(number)
        return np.random.default_rng(number).permutation(train)[:MAX_ROWS], test

    def _published(self, number):
        path = DATA / "splits" / f"{self.name}.npz"
        if not path.exists():
            return None
        arrays = np.load(path)
        if "test_mask" in arrays:
            mask = arrays["test_mask"][:, number]
            return np.flatnonzero(~mask), np.flatnonzero(mask)
        return arrays[f"train_{number}"], arrays[f"test_{number}"]

    def _drawn(self, number):
        kind = ShuffleSplit if self.task == "regression" else StratifiedShuffleSplit
        return next(kind(1, test_size=0.25, random_state=number).split(self.X, self.y))


def load(name):
    """Return a table, or None where its file is absent."""
    task = "classes" if name in CLASSES else "regression"
    if name in BUNDLED:
        return Table(name, task, *BUNDLED[name](return_X_y=True))
    path = DATA / f"{name}.csv"
    if not path.exists():
        print(f"{name}: skipped, there is no {path}")
        return None
    frame = pd.read_csv(path)
    X = pd.get_dummies(frame.iloc[:, :-1]).to_numpy(float)
    y = frame.iloc[:, -1]
    return Table(name, task, X, y.to_numpy(float) if task == "regression" else np.unique(y, return_inverse=True)[1])


# ---------------------------------------------------------------------- models


@dataclass(frozen=True)
class Model:
    """A contender; `make` maps a table to an estimator without a seed."""

    name: str
    make: Callable
    kind: str  # "sklm", "net" (a peer that is a neural network) or "other"
    parameters: str = ""
    scales_y: bool = False
    max_rows: int = MAX_ROWS


class Hidden(nn.Module):
    """One hidden layer of tanh units, for skorch."""

    def __init__(self, n_features, n_outputs, hidden=20):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_features, hidden), nn.Tanh(), nn.Linear(hidden, n_outputs))

    def forward(self, X):
        return self.layers(X.float())


class ColumnRegressor(NeuralNetRegressor):
    """skorch wants y as a column of float32."""

    def fit(self, X, y, **kwargs):
        return super().fit(X, np.float32(y).reshape(-1, 1), **kwargs)


def skorch_net(table, *, stop=False):
    n_classes = len(np.unique(table.y)) if table.task == "classes" else 1
    sizes = {"module__n_features": table.X.shape[1], "module__n_outputs": n_classes}
    common = {"max_epochs": 200, "optimizer": torch.optim.Adam, "verbose": 0, **sizes}
    common |= {"callbacks": [("stop", EarlyStopping(patience=10, load_best=True))]} if stop else {"train_split": None}
    if table.task == "regression":
        return ColumnRegressor(Hidden, **common)
    return NeuralNetClassifier(Hidden, criterion=nn.CrossEntropyLoss, **common)


def either(regressor, classifier):
    """Return a function of a table that returns a copy of the estimator for its task."""
    return lambda table: clone(regressor if table.task == "regression" else classifier)


def mlp(**kwargs):
    return either(MLPRegressor(**kwargs), MLPClassifier(**kwargs))


def searched(make, grid):
    """Return a function of a table that returns the search over a grid."""

    def search(table):
        if table.task == "regression":
            folds, scoring = KFold(3), "neg_mean_squared_error"
        else:
            folds, scoring = StratifiedKFold(3), "neg_log_loss"
        return GridSearchCV(make(table), grid, cv=folds, scoring=scoring)

    return search


def peers(*, with_grid):
    """Return the peers: at their defaults, then the searched ones."""
    nets = {
        "MLP adam": mlp(),
        "MLP adam stop": mlp(early_stopping=True),
        "MLP lbfgs": mlp(solver="lbfgs"),
        "skorch adam": skorch_net,
        "skorch adam stop": lambda table: skorch_net(table, stop=True),
    }
    trees = either(HistGradientBoostingRegressor(), HistGradientBoostingClassifier())
    linear = either(RidgeCV(np.logspace(-3, 3, 13)), LogisticRegressionCV(scoring="neg_log_loss", cv=3, max_iter=1000))
    rbf = ConstantKernel() * RBF()
    process = either(GaussianProcessRegressor(rbf + WhiteKernel()), GaussianProcessClassifier(rbf))
    models = [Model(name, make, "net", scales_y=True) for name, make in nets.items()]
    models += [Model("linear", linear, "other"), Model("trees", trees, "other")]
    models += [Model("GP", process, "other", scales_y=True, max_rows=MAX_ROWS_GP)]
    if with_grid:
        mlp_grid = {"hidden_layer_sizes": [(20,), (100,), (50, 50)], "alpha": [1e-4, 1e-2, 1.0]}
        skorch_grid = {"module__hidden": [10, 20, 50], "optimizer__weight_decay": [0, 1e-4, 1e-2]}
        for name, make in nets.items():
            grid = mlp_grid if name.startswith("MLP") else skorch_grid
            models.append(Model(f"{name} grid", searched(make, grid), "net", scales_y=True))
        tree_grid = {"learning_rate": [0.03, 0.1], "max_leaf_nodes": [7, 31]}
        models.append(Model("trees grid", searched(trees, tree_grid), "other"))
    return models


def sklm_model(variant=""):
    """Return sklm at its defaults, or a variant given as ``name:parameter=value, ...``."""
    name, _, text = variant.partition(":")
    keywords = ast.parse(f"f({text})", mode="eval").body.keywords
    kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords}
    return Model(f"LM {name}".strip(), either(LMRegressor(**kwargs), LMClassifier(**kwargs)), "sklm", text.strip())


def kind(name):
    """Return the kind of a model of the csv, which may be a variant that this run does not name."""
    return "sklm" if name.split()[0] == "LM" else "net" if name.split()[0] in ("MLP", "skorch") else "other"


# ---------------------------------------------------------------------- one fit


def built(model, table, seed):
    """Return the pipeline of a model with its seed set."""
    estimator = model.make(table)
    seeds = [name for name in estimator.get_params() if name in ("random_state", "estimator__random_state")]
    estimator.set_params(**dict.fromkeys(seeds, seed))
    if table.task == "regression" and model.scales_y:
        estimator = TransformedTargetRegressor(estimator, transformer=StandardScaler())
    return make_pipeline(StandardScaler(), estimator)


def measure(model, table, number):
    """Return the row of a fit; when it fails, without metrics and with the message."""
    train, test = table.split(number)
    row = dict.fromkeys(COLUMNS, "") | {"table": table.name, "split": number, "model": model.name}
    row |= {"parameters": model.parameters, "n_train": len(train), "date": date.today().isoformat()}
    torch.manual_seed(number)  # skorch has no seed of its own
    start = time.process_time()
    try:
        pipeline = built(model, table, number).fit(table.X[train], table.y[train])
        row["seconds"] = time.process_time() - start
        score = regression_metrics if table.task == "regression" else class_metrics
        row["message"] = said(pipeline)
        return row | score(pipeline, table.X[test], table.y[test])
    except Exception as error:  # one failure must not end a run of hours
        return row | {"seconds": time.process_time() - start, "message": f"failed: {error!r}"[:300]}


def said(pipeline):
    """Return what the model has to say about its fit."""
    model = getattr(pipeline[-1], "regressor_", pipeline[-1])
    if isinstance(model, GridSearchCV):
        return str(model.best_params_)
    steps = f"{model.n_iter_} steps: " if hasattr(model, "message_") else ""
    return steps + str(getattr(model, "message_", ""))


def regression_metrics(pipeline, X, y):
    error = root_mean_squared_error(y, pipeline.predict(X))
    row = {"rmse": error, "relative_rmse": error / y.std()}
    try:
        ends = interval(pipeline, X)
    except Exception as problem:  # a fit without intervals still has an error
        return row | {"message": f"no interval: {problem!r}"[:300]}
    if ends is None or np.isnan(ends).any():
        return row
    held = (ends[:, 0] <= y) & (y <= ends[:, 1])
    return row | {"coverage": held.mean(), "width": np.diff(ends).mean() / y.std()}


def interval(pipeline, X):
    """Return the ends of the intervals for new measurements, (n_samples, 2), or None."""
    scaled, model = pipeline[:-1].transform(X), pipeline[-1]
    if isinstance(model, LMRegressor):
        return model.predict_interval(scaled, level=LEVEL, kind="prediction")
    if not isinstance(getattr(model, "regressor_", None), GaussianProcessRegressor):
        return None
    mean, std = model.regressor_.predict(scaled, return_std=True)
    ends = mean[:, None] + QUANTILE * std[:, None] * np.array([-1, 1])
    return ends * model.transformer_.scale_ + model.transformer_.mean_


def class_metrics(pipeline, X, y):
    probabilities = pipeline.predict_proba(X).astype(float)  # float32 would be clipped elsewhere
    probabilities /= probabilities.sum(1, keepdims=True)
    accuracy = accuracy_score(y, pipeline.predict(X))
    return {"accuracy": accuracy, "log_loss": log_loss(y, probabilities, labels=pipeline.classes_)}


# ---------------------------------------------------------------------- the csv


def read_cache():
    """Return the kept rows, the last of equal keys."""
    if not CACHE.exists():
        return pd.DataFrame(columns=COLUMNS)
    frame = pd.read_csv(CACHE, dtype={"parameters": str, "message": str})
    return frame.fillna({"parameters": "", "message": ""}).drop_duplicates(KEY, keep="last")


def append(row):
    CACHE.parent.mkdir(exist_ok=True)
    is_new = not CACHE.exists()
    with CACHE.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})


def run(tables, models, n_splits, *, redo):
    """Compute the rows that are missing, split by split."""
    kept = read_cache()
    kept = kept[kept["rmse"].notna() | kept["accuracy"].notna()]
    done = set() if redo else set(kept[[*KEY, "parameters"]].itertuples(index=False, name=None))
    jobs = [
        (number, table, model)
        for number in range(n_splits)
        for table in tables
        for model in models
        if (table.name, number, model.name, model.parameters) not in done
        and len(table.split(number)[0]) <= model.max_rows
    ]
    warm_up({model.name: model for *_, model in jobs}.values())
    for i, (number, table, model) in enumerate(jobs):
        row = measure(model, table, number)
        append(row)
        shown = [f"{c} {row[c]:.4g}" for c in METRICS[table.task] if row[c] != ""] or [row["message"]]
        print(f"{i + 1}/{len(jobs)} {table.name} {number} {model.name}: {row['seconds']:.2f} s, {', '.join(shown)}")


def warm_up(models):
    """Fit every model that is not searched once, so that what its packages load on first use is not in the times."""
    for name in ("diabetes", "iris"):
        table = load(name)
        small = Table("warm-up", table.task, table.X[::3], table.y[::3])
        for model in models:
            if "grid" not in model.name:
                measure(model, small, 0)


# ---------------------------------------------------------------------- report


def medians(rows, metric, *, worst=None):
    """Return a frame of tables x models with the median over the splits; nan where a model was not run."""
    filled = rows if worst is None else rows.assign(**{metric: rows[metric].fillna(worst)})
    frame = filled.pivot_table(index="table", columns="model", values=metric, aggfunc="median", dropna=False)
    return frame[sorted(frame, key=lambda name: (["sklm", "net", "other"].index(kind(name)), name))]


def field_of(model, names, reference):
    """Return whom a model is compared with: the peers, and for a peer the reference."""
    return [n for n in names if n != model and (kind(n) != "sklm" or (n == reference and kind(model) != "sklm"))]


def ranks(loss, model, field):
    """Return the rank of a model within the field on every table, 1 for the best, ties shared."""
    mine, others = loss[model].dropna(), loss[field]
    others = others.loc[mine.index]
    return 1 + others.lt(mine, axis=0).sum(axis=1) + 0.5 * others.eq(mine, axis=0).sum(axis=1)


def is_net(name):
    return kind(name) != "other"


def halved(values):
    """Return means over all tables and over each half."""
    groups = {"all tables": values.index} | {half: values.index.intersection(names) for half, names in HALVES.items()}
    return {name: values[index].mean() for name, index in groups.items() if len(index)}


def behind(loss, model, field, *, is_ratio):
    """Return how far the loss is above that of the best of the field, on every table; negative when below."""
    mine, best = loss[model].dropna(), loss[field].min(axis=1)
    best = best[mine.index]
    return 100 * (mine / best - 1) if is_ratio else mine - best


def summary(rows, loss, reference, unit):
    """Return a line per model: mean ranks, distance from the best network, time, intervals."""
    names, lines = list(loss), []
    times, intervals = medians(rows, "seconds"), [c for c in ("coverage", "width") if rows[c].notna().any()]
    for model in names:
        field = field_of(model, names, reference)
        nets = [name for name in field if is_net(name)]
        line = {"model": model, "tables": loss[model].notna().sum()}
        within = halved(ranks(loss, model, nets)) if is_net(model) else {}
        for group in ("all tables", *HALVES):
            line[f"rank among nets, {group}"] = cell(within.get(group))
        line["rank among all"] = cell(ranks(loss, model, field).mean())
        gaps = behind(loss, model, nets, is_ratio=unit == "%")
        line |= {f"median behind best net, {unit}": cell(gaps.median()), f"worst, {unit}": cell(gaps.max())}
        line["median seconds"] = cell(times[model].median())
        for column in intervals:
            line[column] = cell(rows.loc[rows["model"] == model, column].mean())
        lines.append((not is_net(model), within.get("all tables", 0), line))
    return markdown([line for *_, line in sorted(lines, key=lambda entry: entry[:2])])


def cell(value, digits=3):
    if value is None or np.isnan(value):
        return ""
    return "failed" if np.isinf(value) else f"{value:.{digits}g}"


def by_table(frame, *, best=None):
    """Return a markdown table of tables x models, the best network, by "min" or "max", in bold."""
    lines = []
    for half, names in HALVES.items():
        for name in frame.index.intersection(names):
            numbers = frame.loc[name]
            cells = {model: cell(value, 4) for model, value in numbers.items()}
            if best is not None:
                first = numbers[[model for model in cells if is_net(model)]].agg(f"idx{best}")
                cells[first] = f"**{cells[first]}**"
            lines.append({"table": name, "half": half} | cells)
    return markdown(lines)


def goal_lines(rows, reference):
    """Return the lines of the table of goals, on the tables of the reference and against peers that have them all."""
    lines = []
    for task, part in rows.groupby("task", sort=False):
        part = part[part["table"].isin(part.loc[part["model"] == reference, "table"])]
        if part.empty:
            continue
        if task == "classes":
            lines += [rank_goal(part, metric, reference, with_grid=False) for metric in ("log_loss", "accuracy")]
            continue
        lines += [rank_goal(part, "rmse", reference, with_grid=True), time_goal(part, reference)]
        lines += low_noise_goals(losses(part, "rmse"), reference)
    return [
        {"goal": text, "measured": measured, "met": "yes" if met else "no"}
        for text, measured, met in filter(None, lines)
    ]


def rank_goal(rows, metric, reference, *, with_grid):
    loss = losses(rows, metric).dropna(axis="columns")
    names = [name for name in loss if is_net(name) and (with_grid or "grid" not in name)]
    mean = {name: ranks(loss, name, field_of(name, names, reference)).mean() for name in names}
    rival = min((name for name in names if kind(name) == "net"), key=mean.get, default=None)
    if rival is None:
        return None
    which = "all networks" if with_grid else "networks at their defaults"
    measured = f"{mean[reference]:.2f} against {mean[rival]:.2f} ({rival}), {len(loss)} tables"
    return f"{metric}: mean rank among {which}", measured, mean[reference] <= mean[rival]


def time_goal(rows, reference):
    times = medians(rows, "seconds").dropna(axis="columns").median()
    if "MLP lbfgs" not in times:
        return None
    mine, other = times[reference], times["MLP lbfgs"]
    return "regression: median seconds, against MLP lbfgs", f"{mine:.3g} against {other:.3g}", mine <= other


def low_noise_goals(loss, reference):
    """Return a goal for each smooth table."""
    defaults = [name for name in loss if name.startswith("MLP") and "grid" not in name]
    gains = 100 * (1 - loss[reference] / loss[defaults].min(axis=1))
    return [
        (f"{name}: RMSE at least 20 % below the best default MLP", f"{gains[name]:.0f} %", gains[name] >= 20)
        for name in loss.index.intersection(LOW_NOISE)
    ]


def losses(rows, metric):
    """Return medians for which lower is better, a failure being infinite."""
    return -medians(rows, metric, worst=-np.inf) if metric == "accuracy" else medians(rows, metric, worst=np.inf)


def notes(rows, n_splits):
    """Return what is incomplete and what failed."""
    counts = rows.groupby(["table", "model"]).size()
    few = [f"{table} / {model}: {n}" for (table, model), n in counts[counts < n_splits].items()]
    failed = rows[rows["rmse"].isna() & rows["accuracy"].isna()]
    lines = [f"Fewer than {n_splits} splits: {'; '.join(few)}." if few else ""]
    lines += [f"{r.table} {r.split} {r.model}: {r.message}" for r in failed.itertuples()]
    variants = rows[rows["parameters"] != ""].groupby("model")["parameters"].last()
    lines += [f"{name}: `{text}`" for name, text in variants.items()]
    return "\n".join(f"- {line}" for line in lines if line)


def report(n_splits, half, reference):
    """Return the report on the splits below n_splits, of all tables or of one half."""
    rows = read_cache()
    rows = rows[(rows["split"] < n_splits) & rows["table"].isin(HALVES[half] if half else ALL)]
    rows = rows.assign(task=["classes" if name in CLASSES else "regression" for name in rows["table"]])
    text = [f"# Quality without tuning\n\n{n_splits} splits; reference: {reference}.", machine(), versions()]
    text += [markdown(goals)] if (goals := goal_lines(rows, reference)) else []
    for task, part in rows.groupby("task", sort=False):
        main = "rmse" if task == "regression" else "log_loss"
        for metric in [main] if task == "regression" else [main, "accuracy"]:
            text += [f"## {metric}: ranks", summary(part, losses(part, metric), reference, UNITS[metric])]
        for metric in [*METRICS[task], "seconds"]:
            shown = part[part[metric].notna()] if metric in ("coverage", "width") else part
            if len(shown):
                text += [
                    f"## {task}: {metric}, median over splits",
                    by_table(medians(shown, metric), best=BEST.get(metric)),
                ]
    return "\n\n".join([*text, "## Notes", notes(rows, n_splits)]).rstrip() + "\n"


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--tables", default="", metavar="REGEX", help="tables to compute")
    parser.add_argument("--models", default="", metavar="REGEX", help="models to compute, by the names of the report")
    parser.add_argument("--half", choices=list(HALVES), help="compute and report this half alone")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME:PARAMETERS", help="of sklm")
    parser.add_argument("--grid", action="store_true", help="also the peers after a grid search")
    parser.add_argument("--redo", action="store_true", help="compute also what is there")
    parser.add_argument("--report", action="store_true", help="compute nothing")
    parser.add_argument("--reference", default="LM", help='the variant that the goals are for; "LM" is the defaults')
    return parser.parse_args()


def main():
    choice = options()
    set_threads(1)
    warnings.simplefilter("ignore")
    if not choice.report:
        models = [sklm_model(), *map(sklm_model, choice.variant), *peers(with_grid=choice.grid)]
        models = [model for model in models if re.search(choice.models, model.name)]
        names = HALVES[choice.half] if choice.half else ALL
        found = [load(name) for name in names if re.search(choice.tables, name)]
        run([table for table in found if table is not None], models, choice.splits, redo=choice.redo)
    text = report(choice.splits, choice.half, choice.reference)
    print(f"\n{text}")
    CACHE.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
