"""
A convolutional network
=======================

Any `torch.nn.Module` can be fitted, so also a convolution with pooling and a linear layer on top, the plan of the
networks for MNIST. The data are the 1797 digits of 8 x 8 pixels bundled with scikit-learn. The module is an ordinary
torch class; `LMClassifier` fills in `n_outputs`. Beside it stand logistic regression and scikit-learn's network with
one hidden layer, and the same module trained by Adam with the same penalty. Everything is repeated on three splits
into training and test rows; the script prints the number of wrong test digits.
"""

import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import skorch
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from torch import nn

from sklm import LMClassifier

warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)  # 64 pixels from 0 to 1; in float32, so the fit is in float32 too
ALPHA = 1.0


# %%
# The network. Smooth activations suit Levenberg-Marquardt, which follows a linear model of the outputs.
class Convolution(nn.Module):
    def __init__(self, n_outputs, channels=4):
        super().__init__()
        self.filters = nn.Conv2d(1, channels, 5, padding=2)
        self.head = nn.Linear(16 * channels, n_outputs)

    def forward(self, X):
        maps = torch.tanh(self.filters(X.reshape(-1, 1, 8, 8)))
        return self.head(nn.functional.max_pool2d(maps, 2).flatten(1))


def adam(n_samples):
    return skorch.NeuralNetClassifier(
        Convolution,
        module__n_outputs=10,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer__weight_decay=ALPHA / n_samples,  # on biases too
        lr=1e-2,
        max_epochs=60,
        batch_size=100,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )


# %%
# Four classifiers on three splits.
def count(model):
    if hasattr(model, "module_"):
        return sum(parameter.numel() for parameter in model.module_.parameters())
    arrays = [*model.coefs_, *model.intercepts_] if hasattr(model, "coefs_") else [model.coef_, model.intercept_]
    return sum(array.size for array in arrays)


rows, fitted = [], {}
for seed in range(3):
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=seed)
    torch.manual_seed(seed)  # for skorch
    classifiers = {
        "logistic regression": LogisticRegression(max_iter=1000),
        "one hidden layer": MLPClassifier((20,), max_iter=2000, random_state=seed),
        "convolution, Adam": adam(len(X_train)),
        "convolution, LM": LMClassifier(Convolution, alpha=ALPHA, max_epochs=15, random_state=seed),
    }
    for name, model in classifiers.items():
        start = time.perf_counter()
        model.fit(X_train, y_train)
        seconds = time.perf_counter() - start
        probabilities = model.predict_proba(X_test)
        wrong = int((probabilities.argmax(1) != y_test).sum())
        rows.append([name, seed, count(model), seconds, wrong, log_loss(y_test, probabilities)])
        fitted[name] = model

table = pd.DataFrame(rows, columns=["classifier", "split", "parameters", "seconds", "wrong", "log loss"])
by_split = table.pivot(index="classifier", columns="split", values="wrong").loc[[*classifiers]]
print(f"wrong digits of {len(y_test)}, by split\n{by_split.to_string()}\n")
means = table.groupby("classifier", sort=False)[["parameters", "seconds", "wrong", "log loss"]].mean()
print(f"means over the splits\n{means.to_string(float_format='{:.3f}'.format)}")

# %%
# Left: wrong digits per split. Right: those of the last split that the convolution fitted by Levenberg-Marquardt
# takes for something else, with what it says they are.
figure = plt.figure(figsize=(9, 4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1.3, 1))
axes = left.subplots()
for (split, values), marker in zip(by_split.items(), "os^", strict=True):
    axes.plot(values, by_split.index, marker, fillstyle="none", markersize=8, label=f"split {split}")
axes.set(xlabel=f"wrong digits of {len(y_test)}", xlim=(0, None))
axes.xaxis.get_major_locator().set_params(integer=True)
axes.invert_yaxis()
axes.margins(y=0.15)
axes.grid(axis="x", alpha=0.3)
left.legend(loc="outside upper center", ncols=3, frameon=False)

predicted = fitted["convolution, LM"].predict(X_test)
wrong = np.flatnonzero(predicted != y_test)[:12]
right.suptitle("true digit, and what the network says")
for axes, index in zip(right.subplots(3, 4).flat, [*wrong, *[None] * 12], strict=False):
    axes.axis("off")
    if index is not None:
        axes.imshow(X_test[index].reshape(8, 8), cmap="gray_r")
        axes.set_title(f"{y_test[index]}, {predicted[index]}", fontsize=10)
plt.show()

# %%
# Takeaway: what lowers the errors here is the convolution, which both optimizers fit about equally well;
# `LMClassifier` needs no learning rate, no batches and few epochs for it. This holds for small networks: the cost of a
# step grows with the square of the number of parameters, so for images at scale Adam is the better choice.
