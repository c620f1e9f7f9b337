"""
On a GPU, where there is one
============================

``device="auto"``, the default, takes CUDA where torch finds a GPU and else the CPU; ``device="cuda:1"`` or ``"cpu"``
decide by hand. Nothing else changes: arrays go in, arrays come out, data move to the device once. This script is the
same on both and prints where it ran. These pages are built on a machine without a GPU, so the times below are of a CPU
and say nothing about a GPU; run the script on your own machine before you decide.

The work of a step is a product of matrices, rows times the square of the parameters, which is what GPUs are made for,
and many small operations, which they are not. So what can gain is a fit of many rows and parameters, hardly a small
curve; where the border lies depends on the machine. The table here: visits to the doctor in 20 190 person-years of the
RAND health insurance experiment, bundled with statsmodels, as counts (``criterion="poisson"``) for networks of several
sizes.
"""

import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import mean_poisson_deviance
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.datasets import randhie

from sklm import LMRegressor

warnings.simplefilter("ignore", ConvergenceWarning)  # 20 steps each

table = randhie.load_pandas().data.astype(np.float32)  # a fit to float32 is in float32, which GPUs are faster in
X, y = table.drop(columns="mdvis"), table["mdvis"]
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=0)

# %%
# What ``"auto"`` takes on this machine.
settings = {"criterion": "poisson", "alpha": 10.0, "max_epochs": 20, "random_state": 0}
model = LMRegressor(module__hidden_layer_sizes=(5,), **settings).fit(X_train, y_train)
print(f"GPU found: {torch.cuda.is_available()}; device='auto' took {model.device_}")

# %%
# The same fits on every device that is here. The first step on a GPU loads its libraries: the fit above was a warm-up.
devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
rows = []
for device in devices:
    for units in (5, 10, 20, 50, 100):
        model = LMRegressor(module__hidden_layer_sizes=(units,), device=device, **settings)
        start = time.perf_counter()
        model.fit(X_train, y_train)
        per_step = (time.perf_counter() - start) / model.n_iter_
        deviance = mean_poisson_deviance(y_test, model.predict(X_test))
        rows.append([str(model.device_), units, len(model.parameters_), per_step, deviance])
table = pd.DataFrame(rows, columns=["device", "units", "parameters", "seconds per step", "test deviance"])
print(table.to_string(index=False, float_format="{:.4f}".format))
linear = make_pipeline(StandardScaler(), PoissonRegressor(alpha=0, max_iter=1000)).fit(X_train, y_train)
print(f"log-linear model: test deviance {mean_poisson_deviance(y_test, linear.predict(X_test)):.4f}")

# %%
# Time per step.
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for device, rows in table.groupby("device"):
    axes.loglog(rows["parameters"], rows["seconds per step"], "o-", label=device)
axes.set(xlabel="parameters", ylabel="seconds per step", title=f"{len(X_train)} rows, float32")
axes.legend()
plt.show()

# %%
# Takeaway: leave ``device="auto"``, and for many small fits on a machine with a GPU, compare with ``device="cpu"``. A
# fitted estimator can be pickled on one machine and loaded on the other; without a GPU there it warns and goes to the
# CPU.
