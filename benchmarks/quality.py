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
Searched peers are compared apart, on the splits that all of them have.

The tables are in two halves, named in `HALVES`: defaults are chosen on "tune" and "test" is only looked at afterwards.

Rows are kept in results/quality.csv, by table, split and model; a run computes those that are missing or failed, or
whose variant has other parameters, and appends them (of equal keys the last counts). Rows of sklm do not notice that
its code has changed: run those again with ``--models '^LM' --redo``. The report comes from the csv and goes to
results/quality.md too. Tables come from the folder named by SKLM_DATA, or ../shared/data beside this checkout; those
that are not there are skipped.

``--ablation`` compares sklm with itself, one default changed at a time (`changes` in quality_models.py), with rows in
results/quality_ablation.csv and the report in results/quality_ablation.md; ranks are among the peers of quality.csv.

Run: python benchmarks/quality.py [--splits N] [--tables REGEX] [--models REGEX] [--half tune] [--grid] [--redo]
     [--report] [--reference NAME] [--variant 'wide:module__hidden_layer_sizes=(50,)'] ...
     python benchmarks/quality.py --ablation [--splits N] [--tables REGEX] [--models REGEX] [--redo] [--report]

This file measures; quality_tables.py has the tables, quality_models.py who is compared, quality_report.py the reports.
"""

import argparse
import csv
import re
import time
import warnings
from datetime import date

import numpy as np
import pandas as pd
import torch
from harness import HERE, set_threads
from quality_models import changes, is_searched, peers, sklm_model
from quality_report import METRICS, ablation_report, report
from quality_tables import ALL, HALVES, Table, load
from sklearn.compose import TransformedTargetRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.metrics import accuracy_score, log_loss, root_mean_squared_error
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklm import LMRegressor

CACHE = HERE / "results" / "quality.csv"
ABLATION = HERE / "results" / "quality_ablation.csv"
LEVEL, QUANTILE = 0.9, 1.6449
KEY = ["table", "split", "model"]
COLUMNS = [*KEY, "parameters", *METRICS["regression"], *METRICS["classes"], "seconds", "n_train", "message", "date"]


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
        pipeline = built(model, table, number + model.seed).fit(table.X[train], table.y[train])
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


# ---------------------------------------------------------------------- rows


def read(path):
    """Return the kept rows, the last of equal keys."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    frame = pd.read_csv(path, dtype={"parameters": str, "message": str})
    return frame.fillna({"parameters": "", "message": ""}).drop_duplicates(KEY, keep="last")


def append(row, path):
    path.parent.mkdir(exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})


def run(tables, models, n_splits, path, *, redo):
    """Compute the rows that are missing, split by split."""
    kept = read(path)
    kept = kept[kept["rmse"].notna() | kept["accuracy"].notna()]
    done = set() if redo else set(kept[[*KEY, "parameters"]].itertuples(index=False, name=None))
    jobs = [
        (number, table, model)
        for number in range(n_splits)
        for table in tables
        for model in models
        if (table.name, number, model.name, model.parameters) not in done and model.takes(table, number)
    ]
    warm_up({model.name: model for *_, model in jobs}.values())
    for i, (number, table, model) in enumerate(jobs):
        row = measure(model, table, number)
        append(row, path)
        shown = [f"{c} {row[c]:.4g}" for c in METRICS[table.task] if row[c] != ""] or [row["message"]]
        print(f"{i + 1}/{len(jobs)} {table.name} {number} {model.name}: {row['seconds']:.2f} s, {', '.join(shown)}")


def warm_up(models):
    """Fit every model that is not searched once, so that what its packages load on first use is not in the times."""
    for name in ("diabetes", "iris"):
        table = load(name)
        small = Table("warm-up", table.task, table.X[::3], table.y[::3])
        for model in models:
            if table.task in model.tasks and not is_searched(model.name):
                measure(model, small, 0)


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--tables", default="", metavar="REGEX", help="tables to compute")
    parser.add_argument("--models", default="", metavar="REGEX", help="models to compute, by the names of the report")
    parser.add_argument("--half", choices=list(HALVES), help="compute and report this half alone")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME:PARAMETERS", help="of sklm")
    parser.add_argument("--grid", action="store_true", help="also the peers after a grid search")
    parser.add_argument("--ablation", action="store_true", help="compare sklm with single defaults changed")
    parser.add_argument("--redo", action="store_true", help="compute also what is there")
    parser.add_argument("--report", action="store_true", help="compute nothing")
    parser.add_argument("--reference", default="LM", help='the variant that the goals are for; "LM" is the defaults')
    return parser.parse_args()


def main():
    choice = options()
    set_threads(1)
    warnings.simplefilter("ignore")
    path = ABLATION if choice.ablation else CACHE
    if not choice.report:
        models = [sklm_model(), *map(sklm_model, choice.variant), *peers(with_grid=choice.grid)]
        models = [m for m in (changes() if choice.ablation else models) if re.search(choice.models, m.name)]
        names = HALVES[choice.half] if choice.half else ALL
        found = [load(name) for name in names if re.search(choice.tables, name)]
        run([table for table in found if table is not None], models, choice.splits, path, redo=choice.redo)
    if choice.ablation:
        text = ablation_report(read(path), read(CACHE), [model.name for model in changes()], choice.splits)
    else:
        text = report(read(path), choice.splits, choice.half, choice.reference)
    print(f"\n{text}")
    path.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
