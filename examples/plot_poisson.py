"""
Counts: the Poisson loss, and counts that scatter more
======================================================

Cases of breast cancer in 301 counties against their population (J. A. Rice, "Mathematical Statistics and Data
Analysis"), bundled with statsmodels. The counts run from none to hundreds, and the larger ones scatter more. With
``criterion="poisson"`` the formula is the logarithm of the mean, and `predict` returns the mean. Cases grow as a power
of the population; a power of 1 is the same risk everywhere. The script prints the power by two losses, with standard
errors that hold for Poisson counts and with others that do not need that, beside those of statsmodels. Then it compares
the mean Poisson deviance on held-out counties, also with scikit-learn's ``PoissonRegressor`` and two small networks.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import statsmodels.api as sm
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import PoissonRegressor
from sklearn.model_selection import RepeatedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from statsmodels.datasets import cancer

from sklm import LMRegressor

warnings.simplefilter("ignore", ConvergenceWarning)  # networks: a fixed number of epochs is enough

table = cancer.load_pandas().data
X, y = table[["population"]], table["cancer"]

# %%
# The same curve by two losses. The squared error needs the mean itself; ``covariance="sandwich"`` gives standard errors
# that hold whatever the variance of the counts.
LOG_MEAN = "level + exponent * log(population / 10000)"
poisson = LMRegressor(LOG_MEAN, criterion="poisson", random_state=0).fit(X, y)
robust = LMRegressor(LOG_MEAN, criterion="poisson", covariance="sandwich", random_state=0).fit(X, y)
squared = LMRegressor(f"exp({LOG_MEAN})", covariance="sandwich", random_state=0).fit(X, y)
print(robust.summary())

# %%
# A Poisson count has a variance equal to its mean, and then the reduced chi-square (here the deviance over the degrees
# of freedom) is near 1. It is not, so the classical standard errors are too small.
print(f"reduced chi-square: {poisson.reduced_chi_square_:.2f}\n")
glm = sm.GLM(y, sm.add_constant(np.log(X / 10_000)), family=sm.families.Poisson())
others = {"Poisson, classical": glm.fit(), "Poisson, sandwich": glm.fit(cov_type="HC1")}
FITS = {"Poisson, classical": poisson, "Poisson, sandwich": robust, "squared error, sandwich": squared}
for name, model in FITS.items():
    line = f"{name:24} exponent {model.parameters_['exponent']:.4f} +- {model.standard_errors_['exponent']:.4f}"
    if name in others:
        line += f"   statsmodels {others[name].params['population']:.4f} +- {others[name].bse['population']:.4f}"
    print(line)

# %%
# Held-out counties, four times five folds. `PoissonRegressor` without a penalty is the same model as the formula. The
# networks have three units and choose their penalty by the evidence.
to_log = FunctionTransformer(np.log)
CONTENDERS = {
    "formula, Poisson": poisson,
    "formula, squared error": squared,
    "PoissonRegressor": make_pipeline(to_log, PoissonRegressor(alpha=0, max_iter=1000, tol=1e-8)),
    "network, Poisson": make_pipeline(
        to_log, LMRegressor(criterion="poisson", module__hidden_layer_sizes=(3,), random_state=0)
    ),
    "network, squared error": make_pipeline(to_log, LMRegressor(module__hidden_layer_sizes=(3,), random_state=0)),
}
folds = RepeatedKFold(n_splits=5, n_repeats=4, random_state=0)
deviances = pd.DataFrame(
    {
        name: -cross_val_score(model, X, y, cv=folds, scoring="neg_mean_poisson_deviance", error_score="raise")
        for name, model in CONTENDERS.items()
    }
)
scores = deviances.mean().to_frame("mean deviance")
scores["folds above 'formula, Poisson'"] = deviances.gt(deviances["formula, Poisson"] + 1e-6, axis=0).sum()
print(f"\non held-out counties, of {len(deviances)} folds\n{scores.to_string(float_format='{:.3f}'.format)}")

# %%
# Left: both curves and the sandwich band of the first, per 10 000 people. Right: 95 % intervals of the exponent.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(3, 2))
grid = pd.DataFrame({"population": np.geomspace(X["population"].min(), X["population"].max(), 200)})
per_10_000 = 10_000 / grid["population"]
left.plot(X["population"], y * 10_000 / X["population"], ".", color="0.6", markersize=4)
left.plot(grid["population"], poisson.predict(grid) * per_10_000, "C0", label="Poisson")
low, high = robust.predict_interval(grid).T
left.fill_between(grid["population"], low * per_10_000, high * per_10_000, color="C0", alpha=0.3, linewidth=0)
left.plot(grid["population"], squared.predict(grid) * per_10_000, "C1--", label="squared error")
left.set(xscale="log", ylim=(-2, None), xlabel="population of the county", ylabel="cases per 10 000 people")
left.set_title("301 counties")
left.legend()
for row, (name, model) in enumerate(FITS.items()):
    low, high = model.confidence_intervals()["exponent"]
    color = "C1" if model is squared else "C0"
    right.errorbar((low + high) / 2, -row, xerr=(high - low) / 2, fmt="o", color=color, capsize=4)
    right.text((low + high) / 2, 0.12 - row, name, ha="center", va="bottom", color=color)
right.axvline(1, color="0.4", linestyle=":")
right.set(xlabel="exponent of the population", yticks=[], ylim=(-2.5, 0.6), title="Same risk everywhere?")
plt.show()

# %%
# Take away: the Poisson loss weighs counties of all sizes as their counts deserve, and predicts the held-out ones
# better than the squared error, which listens to the largest. One look at the reduced chi-square tells whether its
# classical standard errors can be believed; if not, the sandwich's can. A straight line in the logarithms is enough
# here: the network adds nothing.
