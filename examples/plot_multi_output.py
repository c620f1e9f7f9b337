"""
Several outputs: one network, outputs in units of their noise
=============================================================

Blood serum of 442 patients, the diabetes table bundled with scikit-learn. From total cholesterol, HDL cholesterol and
the logarithm of the triglycerides one network predicts three other columns at once: LDL cholesterol, the ratio of total
to HDL cholesterol, and blood sugar. The first two were computed from the inputs, which the network does not know; the
third was measured. The loss of several outputs is the sum of their squared errors, so what an output counts depends on
its unit. Three choices of units are compared on held-out patients with one network per output and a linear regression.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.multioutput import MultiOutputRegressor

from sklm import LMRegressor

warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is enough

table = load_diabetes(scaled=False, as_frame=True).data
X = table[["s1", "s3", "s5"]].to_numpy()
NAMES = ["LDL", "ratio", "blood sugar"]
Y = table[["s2", "s4", "s6"]].to_numpy()

# %%
# Friedewald's formula gives LDL from the inputs, and the ratio is a quotient, often written as a whole number.
friedewald = X[:, 0] - X[:, 1] - np.exp(X[:, 2]) / 5
ratio = X[:, 0] / X[:, 1]
print(f"LDL is Friedewald's formula to 0.1 mg/dl in {np.mean(np.abs(Y[:, 0] - friedewald) < 0.1):.0%} of the rows")
print(f"the ratio is a whole number in {np.mean(Y[:, 1] % 1 == 0):.0%} of the rows")
print("standard deviations:", dict(zip(NAMES, Y.std(0).round(2).tolist(), strict=True)))

# %%
# The network has one penalty and one noise for all outputs, both found by the evidence. That suits outputs whose noise
# is the same. `residual_variance_` has the noise of every output: after a first fit in units of the standard
# deviations, it tells better units, and a second time still better ones.
network = LMRegressor(module__hidden_layer_sizes=(10,), max_epochs=200, random_state=0)


def predict_scaled(X_train, Y_train, X_test, n_refits):
    scale = Y_train.std(0)
    network.fit(X_train, Y_train / scale)
    for _ in range(n_refits):
        scale = scale * np.sqrt(network.residual_variance_)
        network.fit(X_train, Y_train / scale)
    return network.predict(X_test) * scale


METHODS = {
    "linear regression": lambda X_train, Y_train, X_test: LinearRegression().fit(X_train, Y_train).predict(X_test),
    "units as given": lambda X_train, Y_train, X_test: network.fit(X_train, Y_train).predict(X_test),
    "unit: standard deviation": lambda *rows: predict_scaled(*rows, n_refits=0),
    "unit: noise": lambda *rows: predict_scaled(*rows, n_refits=2),
    "three networks": lambda X_train, Y_train, X_test: (
        MultiOutputRegressor(network).fit(X_train, Y_train).predict(X_test)
    ),
}

# %%
# Held-out patients, two times five folds. The error is the share of the variance that is left, 1 - R2.
rows = []
for seed in (0, 1):
    predicted = {name: np.empty_like(Y) for name in METHODS}
    for train, test in KFold(n_splits=5, shuffle=True, random_state=seed).split(X):
        for name, predict in METHODS.items():
            predicted[name][test] = predict(X[train], Y[train], X[test])
    for name, values in predicted.items():
        rows.append([name, *(1 - r2_score(Y, values, multioutput="raw_values"))])
left_over = pd.DataFrame(rows, columns=["method", *NAMES]).groupby("method", sort=False).mean()
print(f"\nvariance left on held-out rows, 1 - R2\n{left_over.to_string(float_format='{:.5f}'.format)}")
print("\nlowest:", left_over.idxmin().to_dict())

# %%
# Left: the table. Right: what is left of the ratio by the network with noise units, against the exact quotient. The
# stripes are the rounding of the table, which nothing can predict better.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(3, 2))
for name, marker in zip(left_over.index, ("x", "^", "v", "o", "s"), strict=True):
    left.semilogy(NAMES, left_over.loc[name], marker, markersize=8, label=name, fillstyle="none", markeredgewidth=1.8)
left.set(ylabel="variance left, 1 - R2", title="Held-out patients", xlim=(-0.4, 2.4))
left.legend(loc="lower right")
residual = Y[:, 1] - predicted["unit: noise"][:, 1]
for whole, color, label in ((True, "C3", "whole number in the table"), (False, "C0", "with decimals")):
    chosen = (Y[:, 1] % 1 == 0) == whole
    right.plot(ratio[chosen], residual[chosen], ".", color=color, markersize=4, label=label)
right.set(xlabel="total / HDL cholesterol", ylabel="table - network", title="Ratio: the rest is rounding")
right.set_ylim(-1.1, 0.75)
right.legend(loc="lower right")
plt.show()

# %%
# Take away: one network for several outputs is one fit and one set of hidden units. Give it outputs in units of their
# noise, which `residual_variance_` tells after a first fit; in the units of the table an output of small
# numbers hardly counts, and the standard deviation is no more than a first guess. It is then about as good as one
# network per output. Blood sugar is hardly determined by these columns; there the linear regression is as good as any.
