"""
Outliers: robust losses on household budgets
============================================

Food expenditure against income of 235 Belgian working-class households, collected by Ernst Engel in 1857 and bundled
with statsmodels (public domain). A few well-off households spend far less on food than a straight line through the
others says. The squared error lets them turn the line. The losses ``"huber"`` and ``"cauchy"`` are quadratic up to
``criterion__delta``, in units of y, and flatter beyond; ``"absolute_error"`` fits the median. The script prints the
slopes with all households and without the richest, beside those of statsmodels and scipy, and the error on held-out
households.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.optimize import least_squares
from sklearn.base import clone
from sklearn.model_selection import RepeatedKFold, cross_validate
from statsmodels.datasets import engel

from sklm import LMRegressor

table = engel.load_pandas().data.sort_values("income", ascending=False, ignore_index=True)
X, y = table[["income"]], table["foodexp"]

# %%
# The threshold is about the noise of an ordinary household: 1.4826 times the median size of the residuals of a median
# line estimates a standard deviation that outliers do not move.
line = LMRegressor("intercept + slope * income", max_epochs=500, random_state=0)
median_line = clone(line).set_params(criterion="absolute_error").fit(X, y)
DELTA = float(1.4826 * np.median(np.abs(y - median_line.predict(X))))
print(f"delta: {DELTA:.0f} francs")
MODELS = {
    "squared_error": line,
    "absolute_error": median_line,
    "huber": clone(line).set_params(criterion="huber", criterion__delta=DELTA),
    "cauchy": clone(line).set_params(criterion="cauchy", criterion__delta=DELTA),
}

# %%
# Slopes: francs for food of every further franc of income. How far do they move when the richest households are left
# out, one after the other?
LEFT_OUT = np.arange(11)
slopes = pd.DataFrame(
    {name: [clone(m).fit(X[k:], y[k:]).parameters_["slope"] for k in LEFT_OUT] for name, m in MODELS.items()},
    index=pd.Index(LEFT_OUT, name="left out"),
)
print(slopes.iloc[:4].to_string(float_format="{:.3f}".format))
moves = slopes.max() - slopes.min()
print(f"\nrange of the slope over {LEFT_OUT[-1]} households left out:")
print(moves.to_string(float_format="{:.3f}".format))
print(f"most: {moves.idxmax()}, least: {moves.idxmin()}")

# %%
# The same lines by other programs.
design = sm.add_constant(X)


def residuals(theta):
    return theta[0] + theta[1] * X["income"] - y


cauchy = least_squares(residuals, [0, 0.5], loss="cauchy", f_scale=DELTA, x_scale=[100, 1], xtol=1e-12, ftol=1e-12)
others = {
    "squared_error": ("statsmodels OLS", sm.OLS(y, design).fit().params["income"]),
    "absolute_error": ("statsmodels QuantReg", sm.QuantReg(y, design).fit(q=0.5).params["income"]),
    "cauchy": ("scipy least_squares", cauchy.x[1]),
}
print()
for name, (program, slope) in others.items():
    print(f"{name:16}{slopes.loc[0, name]:.5f}   {program:22}{slope:.5f}")

# %%
# Held-out households, two times five folds: the typical error (median), and the root mean square, which the unusual
# households rule.
scoring = {"median": "neg_median_absolute_error", "root mean square": "neg_root_mean_squared_error"}
folds = RepeatedKFold(n_splits=5, n_repeats=2, random_state=0)
scores = {name: cross_validate(model, X, y, cv=folds, scoring=scoring) for name, model in MODELS.items()}
errors = pd.DataFrame(
    {kind: {name: -score[f"test_{kind}"].mean() for name, score in scores.items()} for kind in scoring}
)
print(f"\nerror on held-out households [francs]\n{errors.to_string(float_format='{:.1f}'.format)}")
for kind in errors:
    print(f"{kind}: lowest {errors[kind].idxmin()}, highest {errors[kind].idxmax()}")

# %%
# Left: the lines. Right: their slopes as the richest households leave.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
left.plot(X["income"], y, ".", color="0.6", markersize=4)
ends = pd.DataFrame({"income": [300.0, 5000.0]})
for name, style in zip(MODELS, ("C3-", "C2-.", "C1--", "C0-"), strict=True):
    model = clone(MODELS[name]).fit(X, y)
    left.plot(ends["income"], model.predict(ends), style, label=name)
    right.plot(LEFT_OUT, slopes[name], style, marker="o", markersize=4, label=name)
left.set(xlabel="income [francs]", ylabel="food expenditure [francs]", title="235 households, 1857")
right.set(xlabel="richest households left out", ylabel="slope", title="What a few households do to the slope")
right.set_xticks(LEFT_OUT[::2])
left.legend(loc="lower right")
plt.show()

# %%
# Take away: where a few rows do not follow the others, a robust loss with ``criterion__delta`` at about the noise
# describes the others, and says the same with or without those rows. ``"huber"`` still gives way a little, as every
# far residual keeps its pull; with ``"cauchy"`` the pull fades.
