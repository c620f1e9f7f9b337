"""
Handwritten digits: two curvatures, and Adam
============================================

The 1797 digits of 8 x 8 pixels bundled with scikit-learn, and a network of 20 tanh units (1510 parameters).
Levenberg-Marquardt needs a curvature of the cross-entropy. ``"ggn"`` is the generalized Gauss-Newton matrix, ten rows
per digit; ``"sqrt"`` reads the loss as one squared residual, a single row per digit, which is less informed. A step
costs about the same with both, as for layers of this kind the rows of a digit are added up before the large matrix
product. Adam trains the same network through skorch, on the same cross-entropy, with the same
penalty but on biases too. All end at about the same test loss; on this task Adam is there first.
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
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from skorch.helper import predefined_split

from sklm import MLP, LMClassifier

warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs each

X, y = load_digits(return_X_y=True)
X = X.astype(np.float32)  # so everything is computed in float32
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
ALPHA = 1.0
rows, curves = [], {}


# After every epoch skorch evaluates the loss on these rows, for both methods alike.
watch_test = predefined_split(skorch.dataset.Dataset(X_test, y_test))


def report(name, seconds, model, probabilities):
    accuracy = np.mean(probabilities.argmax(1) == y_test)
    epochs = len(model.history)
    rows.append([name, epochs, seconds, seconds / epochs, accuracy, log_loss(y_test, probabilities)])
    curves[name] = (np.cumsum(model.history[:, "dur"]), model.history[:, "valid_loss"])


# %%
# Levenberg-Marquardt, full batch.
for curvature, epochs in (("ggn", 30), ("sqrt", 120)):
    model = LMClassifier(
        alpha=ALPHA, criterion__curvature=curvature, max_epochs=epochs, train_split=watch_test, random_state=0
    )
    start = time.perf_counter()
    model.fit(X_train, y_train)
    seconds = time.perf_counter() - start
    report(f"LM, {curvature}", seconds, model, model.predict_proba(X_test))


# %%
# Adam through skorch, with batches cut from tensors in memory.
class Batches:
    def __init__(self, dataset, batch_size, shuffle=False):
        self.X, self.y, self.batch_size, self.shuffle = dataset.X, dataset.y, batch_size, shuffle

    def __iter__(self):
        order = torch.randperm(len(self.X)) if self.shuffle else torch.arange(len(self.X))
        for part in order.split(self.batch_size):
            yield torch.as_tensor(self.X)[part], None if self.y is None else torch.as_tensor(self.y)[part]


def scaled_mlp():
    module = MLP(64, 10)
    module.init_from_data(torch.tensor(X_train), torch.tensor(y_train))
    return module


for lr in (3e-3, 1e-2):
    torch.manual_seed(0)
    adam = skorch.NeuralNetClassifier(
        scaled_mlp,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        # torch's weight decay is the gradient of decay / 2 |theta|^2, on biases too
        optimizer__weight_decay=ALPHA / len(X_train),
        lr=lr,
        max_epochs=150,
        batch_size=100,
        iterator_train=Batches,
        iterator_train__shuffle=True,
        iterator_valid=Batches,
        train_split=watch_test,
        verbose=0,
    )
    start = time.perf_counter()
    adam.fit(torch.tensor(X_train), torch.tensor(y_train))
    seconds = time.perf_counter() - start
    report(f"Adam, lr {lr:g}", seconds, adam, adam.predict_proba(torch.tensor(X_test)))

columns = ["method", "epochs", "seconds", "per epoch", "test accuracy", "test log loss"]
print(pd.DataFrame(rows, columns=columns).to_string(index=False, float_format="{:.4f}".format))

# %%
# Loss on the test rows over time.
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, (times, losses) in curves.items():
    axes.loglog(times, losses, label=name)
axes.set(xlabel="seconds", ylabel="test log loss", title="Digits, 1510 parameters")
axes.legend()
plt.show()
