"""
Bands and intervals, and how often they hold
============================================

Response of an ultrasonic reference block against the distance of metal, 214 measurements: Chwirut1 of the NIST
Statistical Reference Datasets (D. Chwirut, NIST, 1979). A band that claims 95 % should hold 95 of 100 new measurements.
The script counts, on held-out measurements. Over all distances the plain prediction band is not far off, but it is too
narrow where the response is large and too wide elsewhere, since the noise grows with the response. Weights make the
worst of that much smaller. Before, the script prints standard errors and two kinds of confidence intervals, from all
measurements and from a few.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.model_selection import RepeatedKFold

from sklm import LMRegressor

RESPONSES = """0.5: 92.9 90.6 80 74.1 81.5 78 76.8 78 76.8 75.8 70.5 78 70.8 80.7 66.7 81 81.7 81.3
0.625: 78.7 76.9 79 67.3 66
0.75: 64.2 71.6 63.8 60.8 62.4 59.9 61 63.5 60 62 59.5 62 54.7 61.3 59.2 64.5 61.6 60.9
0.875: 64.9 63.6 57.2 55.5 58
1: 57.1 54 53.2 50.3 47.8 48.8 48.5 47.7 48 47.5 40.8
1.25: 43.3 39.2 42.5 41 37.8
1.5: 32.5 33.2 32.9 33.8 32 35.2 35.8 39.8 29 30.7 35.5
1.75: 31.1 31.05 29.3 29.175 26.8 26.85 29.4 29.363 25.5 25.95 29.8 29.81 28.4 28.69 28.9 28.95
2: 22.2 22.57 20 20.32 21 21.67 29.8 29.62 24 24.56 25.7 25.99
2.25: 23.6 23.775 21.4 22.125 20.4 21 20.4 21.15 20.2 21.07
2.5: 18.82 19.31 21 23.7 23.81 17.7 18.67 16.3 16.95
2.75: 17.738 17.512 16.462 16.762 13.87 17.17 16.65
3: 12.41 13.12 15.56 13.84 12.75 14.62 13.87 11.81 13.31 12.56 12.75 13.12 13.95 12.75 15.64
3: 24.19 25.76 18.07 11.81 12.07 16.12 17.7 16.24 13.35 13.69 13.31 12.94 15.19 14.62 15.64
3.25: 13.8 14.25 12.525 13.2 9.67
3.75: 11.588 9.45 10.537 10.875 7.76 10.39 10.05
4: 11.25 10.42 8.17 11.55 8.74 8.62
4.25: 9.412 9.15 8.588 8.175 5.44
4.75: 7.725 7.912 7.125 7.35 4.87
5: 9 7.31 8.55 12.07 7.87 7.2
5.25: 7.35 8.475 6.112 5.963 4.01
5.75: 8.025 6.112 5.963 5.625 3.75
6: 5.63 3.94 5.44 5.63 5.44 6.67 7.42 10.12 8.74 8.51 6.64 4.87 5.06"""
lines = [line.split(":") for line in RESPONSES.splitlines()]
table = pd.DataFrame([(float(x), float(y)) for x, values in lines for y in values.split()], columns=["x", "response"])
X, y = table[["x"]], table["response"]

# %%
# Estimates and standard errors, and NIST's. All measurements give profile intervals much like the Wald ones; every
# fifteenth measurement alone gives wider ones, and that of `b1` leans to a side.
model = LMRegressor("exp(-b1 * x) / (b2 + b3 * x)", random_state=0)
full, few = clone(model).fit(X, y), clone(model).fit(X[::15], y[::15])
CERTIFIED = {"b1": (0.1902781837, 0.021938557035), "b2": (0.0061314004477, 0.00034500025051)}
CERTIFIED["b3"] = (0.010530908399, 0.00079281847748)
for name, (value, error) in CERTIFIED.items():
    estimate = f"{full.parameters_[name]:.6f} +- {full.standard_errors_[name]:.6f}"
    print(f"{name}  {estimate}   certified {value:.6f} +- {error:.6f}")
for fit, rows in ((full, len(X)), (few, len(X[::15]))):
    print(f"\n95 % intervals, {rows} measurements")
    wald, profile = fit.confidence_intervals(), fit.confidence_intervals(method="profile")
    for name, estimate in fit.parameters_.items():
        (low, high), (below, above) = wald[name], profile[name]
        arms = f"arms of the profile -{estimate - below:.4f} +{above - estimate:.4f}"
        print(f"{name}  Wald {low:7.4f} to {high:.4f}   profile {below:7.4f} to {above:.4f}   {arms}")

# %%
# The noise, from measurements at the same distance: how does it grow with the response?
groups = table.groupby("x")["response"]
growth = np.polyfit(np.log(groups.mean()), np.log(groups.std()), 1, w=np.sqrt(groups.size()))[0]
print(f"\nstandard deviation of repeats ~ response to the power {growth:.2f}")


# %%
# So the variance goes about as the response. A weight is one over a variance, up to a factor; the responses come from a
# fit without weights. New measurements need their weights too.
def fit_weighted(X, y):
    first = clone(model).fit(X, y)
    return first, clone(model).fit(X, y, sample_weight=1 / first.predict(X))


def bands(first, weighted, X, level):
    plain = first.predict_interval(X, level, kind="prediction")
    even = weighted.predict_interval(X, level, kind="prediction", sample_weight=1 / first.predict(X))
    return {"plain": plain, "weights": even}


# %%
# Counted on held-out measurements, three times five folds.
rows = []
for train, test in RepeatedKFold(n_splits=5, n_repeats=3, random_state=0).split(X):
    fits = fit_weighted(X.iloc[train], y.iloc[train])
    for level in (0.5, 0.8, 0.95):
        for name, (low, high) in {k: band.T for k, band in bands(*fits, X.iloc[test], level).items()}.items():
            held = (low <= y.iloc[test]) & (y.iloc[test] <= high)
            rows.append(pd.DataFrame({"band": name, "level": level, "x": X["x"].iloc[test], "held": held}))
counts = pd.concat(rows)
counts["distance"] = pd.cut(counts["x"], [0, 1, 2, 4, 6], labels=["to 1", "1 to 2", "2 to 4", "4 to 6"])
overall = counts.pivot_table("held", "level", "band")
print(f"\nshare held, all distances\n{overall.to_string(float_format='{:.3f}'.format)}")
near = counts[counts["level"] == 0.95].pivot_table("held", "distance", "band", observed=True)
print(f"\nshare held by the 95 % band\n{near.to_string(float_format='{:.3f}'.format)}")
print("\nfarthest from 0.95:", (near - 0.95).abs().max().round(3).to_dict())

# %%
# Left: the curve and both bands. Right: the counts by distance.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(3, 2))
grid = pd.DataFrame({"x": np.linspace(0.5, 6, 200)})
fits = fit_weighted(X, y)
mean, std = fits[1].predict(grid, return_std=True)
print(f"\nstandard error of the curve: {std.min():.2f} to {std.max():.2f}")
both = bands(*fits, grid, 0.95)
left.fill_between(grid["x"], *both["weights"].T, color="C0", alpha=0.25, linewidth=0, label="95 % band, weights")
left.plot(grid["x"], both["plain"], "C1--", label=["95 % band, plain", None])
left.plot(grid["x"], mean, "C0", label="curve")
left.plot(X["x"], y, ".", color="0.4", markersize=3)
left.set(xlabel="distance of metal", ylabel="ultrasonic response", title="Prediction bands")
left.legend()
for name, shift, color, marker in (("plain", -0.1, "C1", "o"), ("weights", 0.1, "C0", "s")):
    right.plot(np.arange(4) + shift, near[name], marker, color=color, markersize=9, label=name)
right.axhline(0.95, color="0.2", linestyle=":", label="claimed")
right.set_xticks(range(4), near.index)
right.set(xlabel="distance of metal", ylabel="share held", title="Held-out measurements")
right.set(xlim=(-0.5, 3.5), ylim=(0.65, 1.03))
right.legend(loc="lower right")
plt.show()

# %%
# Take away: count before you trust a band, and count in parts, as an average hides them. With weights that follow the
# noise, the bands come much nearer to what they claim where they were worst; at the largest distances they are now a
# little narrow. Few measurements are where profile intervals are worth their time.
