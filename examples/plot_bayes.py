"""
A penalty from the data: Bayesian regularization
================================================

The progress of diabetes in 442 patients, bundled with scikit-learn: ten features, much noise, and here only 150 rows
to train on. A network of some units can fit them all, noise included. ``alpha="bayes"`` (MacKay 1992; MATLAB's
``trainbr``) estimates the penalty from the training rows alone, by the evidence, and so the number of parameters that
the data determine. The script fits networks of growing size with it and without a penalty, beside ridge regression,
and prints errors on the other rows. Then it asks how much the log evidence says about that error.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.metrics import root_mean_squared_error
from sklearn.model_selection import ShuffleSplit

from sklm import LMRegressor

warnings.simplefilter("ignore", ConvergenceWarning)  # without a penalty large networks do not end

X, y = load_diabetes(return_X_y=True)
SPLITS = list(ShuffleSplit(n_splits=6, train_size=150, random_state=0).split(X))
SIZES = [1, 2, 4, 8, 16]


def network(units, alpha, seed=0):
    return LMRegressor(module__hidden_layer_sizes=(units,), alpha=alpha, random_state=seed)


# %%
# One fit. `alpha_` is on the scale of the loss, `n_effective_` counts the parameters that the data determine.
train, test = SPLITS[0]
model = network(8, "bayes").fit(X[train], y[train])
print(f"alpha {model.alpha_:.0f}, {model.n_effective_:.1f} of {len(model.parameters_)} parameters effective")
print(model.message_)

# %%
# All sizes, over the splits, with training error, error on the other rows, and what the evidence says.
rows = []
for train, test in SPLITS:
    ridge = RidgeCV(np.logspace(-4, 2, 25)).fit(X[train], y[train])
    errors = [root_mean_squared_error(y[i], ridge.predict(X[i])) for i in (train, test)]
    rows.append(["ridge", 0, *errors, *[np.nan] * 3])
    for units in SIZES:
        for alpha in (0, "bayes"):
            fit = network(units, alpha).fit(X[train], y[train])
            errors = [root_mean_squared_error(y[i], fit.predict(X[i])) for i in (train, test)]
            evidence = [len(fit.parameters_), fit.n_effective_, fit.log_evidence_] if alpha else [np.nan] * 3
            rows.append([f"alpha={alpha}", units, *errors, *evidence])
columns = ["model", "units", "train", "held out", "parameters", "effective", "log evidence"]
table = pd.DataFrame(rows, columns=columns).groupby(["model", "units"]).mean()
print(f"\nroot mean square error\n{table.to_string(float_format='{:.1f}'.format, na_rep='')}")
held_out = table["held out"]
for name in ("alpha=0", "alpha=bayes"):
    print(f"{name}: held out {held_out[name].min():.1f} to {held_out[name].max():.1f} over the sizes")
print(f"units of the largest evidence: {table.loc['alpha=bayes', 'log evidence'].idxmax()}", end=", ")
print(f"of the lowest held-out error with alpha=bayes: {held_out['alpha=bayes'].idxmin()}")

# %%
# Does the evidence tell good minima from bad ones? Ten starts of four units on every split.
starts = []
for split, (train, test) in enumerate(SPLITS):
    for seed in range(10):
        fit = network(4, "bayes", seed).fit(X[train], y[train])
        error = root_mean_squared_error(y[test], fit.predict(X[test]))
        starts.append([split, fit.log_evidence_, error])
starts = pd.DataFrame(starts, columns=["split", "log evidence", "held out"])
centered = starts - starts.groupby("split").transform("mean")[["log evidence", "held out"]]
groups = starts.groupby("split")
ranks = groups.apply(lambda one: one["log evidence"].corr(one["held out"], method="spearman"))
best = starts.loc[groups["log evidence"].idxmax(), "held out"]
print(f"\nrank correlation of evidence and held-out error, by split: {', '.join(f'{r:.2f}' for r in ranks)}")
print(f"held out: {best.mean():.1f} for the start of the largest evidence, {starts['held out'].mean():.1f} on average")

# %%
# Above: errors, and parameters that count, by size. Below: the course of the fit of 8 units, and the starts of 4 units
# as differences to the mean of their split.
figure, ((error, size), (course, start)) = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
bayes = table.loc["alpha=bayes"]
error.plot(SIZES, held_out["alpha=0"], "C1o-", label="alpha=0")
error.plot(SIZES, held_out["alpha=bayes"], "C0o-", label='alpha="bayes"')
error.axhline(held_out["ridge"].iloc[0], color="0.4", linestyle=":", label="ridge regression")
error.set(ylabel="root mean square error", title="Held-out rows")
size.plot(SIZES, bayes["parameters"], "C1o-", label="parameters")
size.plot(SIZES, bayes["effective"], "C0o-", label="effective parameters")
size.set(yscale="log", ylabel="number", title="What the training rows determine")
size.set_yticks([10, 30, 100], ["10", "30", "100"])
for ax in (error, size):
    ax.set_xscale("log", base=2)
    ax.set_xticks(SIZES, SIZES)
    ax.set_xlabel("hidden units")
    ax.legend(loc="upper left")
epochs = np.arange(1, len(model.history_) + 1)
course.plot(epochs, model.history_[:, "n_effective"], "C0", label="effective parameters")
kept = 1 + np.argmin(np.abs(np.array(model.history_[:, "n_effective"]) - model.n_effective_))
course.axvline(kept, color="0.4", linestyle=":")
course.text(kept, course.get_ylim()[1], " kept", va="top", color="0.4")
course.set(xlabel="epoch", ylabel="effective parameters", title="One fit of 8 units", xticks=epochs[::3])
course.yaxis.label.set_color("C0")
penalty = course.twinx()
penalty.plot(epochs, model.history_[:, "alpha"], "C2--")
penalty.set_ylabel("alpha", color="C2")
start.plot(centered["log evidence"], centered["held out"], "C0.")
start.set(xlabel="log evidence, difference", ylabel="held-out error, difference", title="Starts of 4 units")
plt.show()

# %%
# Take away: with ``alpha="bayes"`` the size of a network hardly matters for its error, as the data decide how many
# parameters they pay for; without a penalty it matters very much. These data ask for little more than a straight
# line, and the regularized network is close to ridge regression. Among starts of one size those of a larger evidence
# are better on average (``n_init`` chooses so), by little. Do not choose the size by it: units that the data do not
# use hardly change it.
