"""
A time series from its lags: sunspots
=====================================

Yearly sunspot numbers from 1700 to 2008, bundled with statsmodels (public domain). A network predicts the next year
from the last few, as a linear autoregression does; both see square roots, which even out the scatter of high and low
years. How many lags? `TimeSeriesSplit` answers with folds in the order of time, on the years before 1950 alone. The
years from 1950 on are held out: one-step errors are compared with those of the autoregression and of persistence (next
year as this year). At last both run freely from 1950 on, fed with their own predictions.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.metrics import root_mean_squared_error
from sklearn.model_selection import TimeSeriesSplit, cross_val_score
from statsmodels.datasets import sunspots

from sklm import LMRegressor

warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is enough

numbers = sunspots.load_pandas().data.set_index("YEAR")["SUNACTIVITY"]
MOST_LAGS, HELD_OUT, SEEDS = 10, 1950, range(3)
lags = pd.DataFrame({f"root, {k} years before": np.sqrt(numbers).shift(k) for k in range(1, MOST_LAGS + 1)}).dropna()
y = numbers[lags.index]
X_train, X_test = lags[lags.index < HELD_OUT], lags[lags.index >= HELD_OUT]
y_train, y_test = y[X_train.index], y[X_test.index]


# %%
# Both methods fit the square root and predict the number. The network has ten units and finds its penalty by the
# evidence; it is fitted from three starts, to see what is luck.
def on_roots(model):
    return TransformedTargetRegressor(
        model, func=np.sqrt, inverse_func=lambda root: np.clip(root, 0, None) ** 2, check_inverse=False
    )


MODELS = {"linear": [on_roots(LinearRegression())]}
MODELS["network"] = [
    on_roots(LMRegressor(module__hidden_layer_sizes=(10,), max_epochs=200, random_state=seed)) for seed in SEEDS
]

# %%
# Five folds of 20 years, each after its training years; then the held-out years.
folds = TimeSeriesSplit(n_splits=5, test_size=20)
rows = []
for name, models in MODELS.items():
    for n_lags in range(2, MOST_LAGS + 1):
        columns = lags.columns[:n_lags]
        for model in models:
            scores = cross_val_score(model, X_train[columns], y_train, cv=folds, scoring="neg_root_mean_squared_error")
            predicted = model.fit(X_train[columns], y_train).predict(X_test[columns])
            rows.append([name, n_lags, -scores.mean(), root_mean_squared_error(y_test, predicted)])
errors = pd.DataFrame(rows, columns=["model", "lags", "cross-validated", "held out"])
mean = errors.groupby(["lags", "model"]).mean().unstack()
print(f"root mean square error, mean over the starts\n{mean.to_string(float_format='{:.1f}'.format)}")

persistence = root_mean_squared_error(y_test, numbers.shift(1)[y_test.index])
print(f"\nyears of a rising number: {np.mean(numbers.diff() > 0):.0%}, falling: {np.mean(numbers.diff() < 0):.0%}")
print(f"highest before {HELD_OUT}: {y_train.max():.0f}, from then on: {y_test.max():.0f}")
print(f"persistence, held out: {persistence:.1f}")
chosen = mean["cross-validated"].idxmin()
for name in MODELS:
    print(f"{name}: {chosen[name]} lags by cross-validation, held out {mean.loc[chosen[name], ('held out', name)]:.1f}")
for kind in ("cross-validated", "held out"):
    lower = mean[kind]["network"] < mean[kind]["linear"]
    print(f"{kind}: the network is lower with {', '.join(map(str, lower.index[lower]))} lags")

# %%
# Free runs from 1950 on, with the lags that cross-validation chose.
runs = {name: [] for name in MODELS}
for name, models in MODELS.items():
    columns = lags.columns[: chosen[name]]
    for model in models:
        model.fit(X_train[columns], y_train)
        values = list(numbers[numbers.index < HELD_OUT])
        for _ in y_test:
            recent = pd.DataFrame([np.sqrt(values[: -chosen[name] - 1 : -1])], columns=columns)
            values.append(float(model.predict(recent)[0]))
        runs[name].append(pd.Series(values[-len(y_test) :], index=y_test.index))
for name, series in {"observed": [y_test], **runs}.items():
    ranges = ", ".join(f"{last.min():.0f} to {last.max():.0f}" for last in (one.iloc[-22:] for one in series))
    print(f"last 22 years, {name}: {ranges}")

# %%
# Left: one-step errors by number of lags. Right: the free runs.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(2, 3))
for name, color in (("linear", "C1"), ("network", "C0")):
    left.plot(mean.index, mean["held out"][name], color, label=f"{name}, held out")
    left.plot(mean.index, mean["cross-validated"][name], color, linestyle="--", label=f"{name}, cross-validated")
    points = errors[errors["model"] == name]
    left.plot(points["lags"], points["held out"], ".", color=color)
left.axhline(persistence, color="0.5", linestyle=":", label="persistence, held out")
left.set(xlabel="lags [years]", ylabel="root mean square error [sunspot number]", title="One year ahead", ylim=(12, 36))
left.legend(loc="upper right", bbox_to_anchor=(1, 0.85))
recent = numbers[numbers.index >= HELD_OUT - 30]
right.plot(recent, color="0.6", label="observed")
for name, color in (("linear", "C1"), ("network", "C0")):
    for label, run in zip([f"{name}, {chosen[name]} lags", None, None], runs[name], strict=False):
        right.plot(run, color, linewidth=1.2, label=label)
right.axvline(HELD_OUT - 0.5, color="0.4", linestyle=":")
right.set(xlabel="year", ylabel="sunspot number", ylim=(0, 260), title="Free runs")
right.legend(loc="upper left", ncols=3)
plt.show()

# %%
# Take away: with three to six lags the network predicts better than the linear autoregression, as the rise of a cycle
# is steeper than its fall, which no linear model knows. Its free run keeps cycling, where the linear one fades to the
# mean. But compare before you rely on it: a linear autoregression that sees nearly a whole cycle gets the lower error
# one year ahead on these held-out years, whose cycles are higher than those of the training years, and both are much
# better than persistence.
