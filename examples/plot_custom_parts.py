"""
A loss, a damping rule and a selection of your own
==================================================

Where the built-in parts do not suit, subclass `sklm.losses.Loss`, `sklm.damping.Damping` or `sklm.selection.Selection`
and pass the class. Arguments of its constructor are parameters of the estimator: ``criterion__level``. The loss here
fits quantiles of the food expenditure of 235 Belgian households (Engel 1857, bundled with statsmodels), and the result
stands beside that of scikit-learn's linear program. Damping and selection are tried on a network that predicts the
yearly number of sunspots, also from statsmodels, from the twelve years before.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import QuantileRegressor
from statsmodels.datasets import engel, sunspots

from sklm import LMRegressor, damping, losses, selection


# %%
# A loss: the check loss, level * r above the curve and (level - 1) * r below it. `value` would be enough for a smooth
# loss. This one has a corner, so `ggn` gives a curvature too: residual r and factor S with S'r the gradient. The weight
# ``1 / |r|`` makes it a least-squares problem that changes from step to step; `smoothing` bounds it, in units of y.
class QuantileLoss(losses.Loss):
    task = "regression"

    def __init__(self, level=0.5, smoothing=1e-3, curvature=None):
        super().__init__(curvature=curvature)
        self.level, self.smoothing = level, smoothing

    def value(self, outputs, targets):
        residual = targets - outputs
        return torch.maximum(self.level * residual, (self.level - 1) * residual).sum(1)

    def ggn(self, outputs, targets):
        residual = outputs - targets
        slope = torch.where(residual < 0, self.level, 1 - self.level)
        root = (slope / residual.abs().clamp_min(self.smoothing)).sqrt()
        return root * residual, torch.diag_embed(root)


table = engel.load_pandas().data
X, y = table[["income"]], table["foodexp"]
LEVELS = (0.1, 0.5, 0.9)
quantiles, rows = {}, []
for level in LEVELS:
    model = LMRegressor("a + b * income", criterion=QuantileLoss, criterion__level=level, random_state=0).fit(X, y)
    exact = QuantileRegressor(quantile=level, alpha=0).fit(X, y)
    below = np.mean(y < model.predict(X))
    quantiles[level] = model
    rows.append([level, *model.parameters_.values(), exact.intercept_, *exact.coef_, below])
columns = ["level", "a", "b", "a, linear program", "b, linear program", "share below"]
print(pd.DataFrame(rows, columns=columns).to_string(index=False, float_format="{:.3f}".format))


# %%
# A damping rule: `value` is the factor lambda of the next attempt. This one falls fast and rises in small steps, so it
# seeks the longest step that still helps, at the price of more attempts.
class SmallRises(damping.Damping):
    def __init__(self, up=1.5, down=5.0, **settings):
        super().__init__(**settings)
        self.up, self.down = up, down

    def accepted(self, gain_ratio):
        self.value /= self.down

    def rejected(self):
        self.value *= self.up


# %%
# A selection: the positions of the parameters that move in a step, out of all in order. This one moves the last layer
# (weights and biases, the last two tensors), and everything in every fifth step.
class MostlyLastLayer(selection.Selection):
    def __init__(self, every=5):
        self.every = every

    def select(self, sizes, step, generator):
        *others, weights, biases = sizes.values()
        start = 0 if step % self.every == 0 else sum(others)
        return torch.arange(start, sum(others) + weights + biases)

    def steps_per_sweep(self, sizes):
        return self.every


# %%
# Both on the sunspots, with the loss after every step.
spots = sunspots.load_pandas().data.set_index("YEAR")["SUNACTIVITY"]
before = pd.concat({f"{years} years before": spots.shift(years) for years in range(1, 13)}, axis=1).iloc[12:]
PARTS = {
    "the defaults": {},
    "small rises": {"damping": SmallRises, "damping__up": 1.5, "max_attempts": 30},
    "mostly the last layer": {"selection": MostlyLastLayer, "selection__every": 5},
}
warnings.simplefilter("ignore", ConvergenceWarning)  # at most 100 steps each
fits = {
    name: LMRegressor(module__hidden_layer_sizes=(5,), alpha=1e3, random_state=0, **parts).fit(before, spots.iloc[12:])
    for name, parts in PARTS.items()
}
print()
for name, model in fits.items():
    attempts = sum(model.history_[:, "attempts"])
    print(f"{name:22} {model.n_iter_} steps, {attempts} attempts, loss {model.loss_:.1f}")

# %%
# Left: a tenth, a half and nine tenths of the households are below the lines. Right: the loss of the network.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(X["income"], y, ".", color="0.6", markersize=4)
grid = pd.DataFrame({"income": np.linspace(X["income"].min(), X["income"].max(), 50)})
for level, model in quantiles.items():
    left.plot(grid["income"], model.predict(grid), label=f"level {level:g}")
left.set(xlabel="income [francs]", ylabel="food expenditure [francs]", title="Quantiles by a loss of one's own")
left.legend(loc="upper left")
for (name, model), style in zip(fits.items(), ("-", "--", "-."), strict=True):
    right.semilogy(range(1, model.n_iter_ + 1), model.loss_curve_, style, label=name)
right.set(xlabel="step", ylabel="loss", title="Damping and selection of one's own")
right.legend()
plt.show()

# %%
# Takeaway: each part is a class of a few lines, and a pipeline or a grid search treats its arguments as any other
# parameter. The defaults are hard to beat, so compare: here they come down fastest at first, with the fewest attempts.
