"""
A subset of the parameters in every step
========================================

A step solves a linear system of the size of the parameters that move, and filling its matrix costs the square of that
size. So with thousands of parameters it can pay to move only some of them per step: a random subset drawn anew for
every step, one layer after the other, or, for good, only the last layer, with the rest frozen by torch's own
``requires_grad_(False)``. The network has 24 hidden units, the data are the digits bundled with scikit-learn. The
script prints time and matrix of a step and the quality on test rows.
"""

import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from skorch.dataset import Dataset
from skorch.helper import predefined_split

from sklm import MLP, LMClassifier

warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of steps each

X, y = load_digits(return_X_y=True)
X = X.astype(np.float32)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
UNITS = (24,)


# %%
# Only the last layer: a function that returns the module with the first one frozen at its initial values.
def last_layer(n_features_in, n_outputs):
    module = MLP(n_features_in, n_outputs, UNITS)
    module.layers[0].requires_grad_(False)
    return module


# %%
# The same penalty and start for all. A cheaper step gets more of them.
MOVING = {
    "all": {"max_epochs": 12},
    "random 300": {"selection": "random", "selection__subset_size": 300, "max_epochs": 50},
    "layer by layer": {"selection": "layer", "max_epochs": 16},
    "last layer only": {"module": last_layer, "max_epochs": 50},
}
rows, fits = [], {}
for name, settings in MOVING.items():
    if "module" not in settings:
        settings = {**settings, "module__hidden_layer_sizes": UNITS}
    watch_test = predefined_split(Dataset(X_test, y_test))  # its loss after every step, in the history
    model = LMClassifier(alpha=1.0, random_state=0, train_split=watch_test, **settings)
    start = time.perf_counter()
    model.fit(X_train, y_train)
    seconds = time.perf_counter() - start
    sizes = {part: p.numel() for part, p in model.module_.named_parameters() if p.requires_grad}
    largest = {"random 300": 300, "layer by layer": sum(list(sizes.values())[:2])}.get(name, sum(sizes.values()))
    probabilities = model.predict_proba(X_test)
    test = np.mean(probabilities.argmax(1) == y_test), log_loss(y_test, probabilities)
    rows.append([name, largest, 4e-6 * largest**2, model.n_iter_, seconds, seconds / model.n_iter_, *test])
    fits[name] = model

columns = ["moving", "parameters", "matrix [MB]", "steps", "seconds", "per step", "test accuracy", "test log loss"]
print(pd.DataFrame(rows, columns=columns).to_string(index=False, float_format="{:.3f}".format))

# %%
# Loss on the test rows over time.
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, model), style in zip(fits.items(), ("-", "--", "-.", ":"), strict=True):
    axes.loglog(np.cumsum(model.history_[:, "dur"]), model.history_[:, "valid_loss"], style, label=name)
axes.set(xlabel="seconds", ylabel="test log loss", title=f"Digits, {rows[0][1]} parameters: which move in a step")
figure.legend(loc="outside right upper", frameon=False)
plt.show()

# %%
# Takeaway: a small random subset makes the steps so much cheaper that its loss falls faster at first, and it ends with
# a fit about as good as that of all parameters. The last layer alone is the cheapest and the poorest: random features
# need to be many, or learned before, as those of a network trained elsewhere.
