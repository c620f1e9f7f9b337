"""
Grid search in a pipeline
=========================

Every setting is a parameter as scikit-learn knows it: the damping rule, the step length, the penalty, and whatever the
module takes (prefix ``module__``). So one search tries them all, here within a pipeline of a principal component
analysis and a network, on the digits bundled with scikit-learn. Each fit gets twelve epochs, so a setting also counts
by how fast it is there. The heat map shows which settings matter: penalty and size of the network far more than the
rule of damping and the step length. The best setting, refitted by the search, is scored on rows that it has not seen.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline

from sklm import LMClassifier

warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X.astype(np.float32), y, test_size=0.4, stratify=y, random_state=0)

# %%
# The search. `n_jobs=2` would use two cores.
network = LMClassifier(max_epochs=12, random_state=0)
pipeline = Pipeline([("pca", PCA(16, random_state=0)), ("net", network)])
grid = {
    "net__damping": ["nielsen", "standard"],
    "net__lr": [0.5, 1.0],
    "net__alpha": [0.1, 1.0, 10.0],
    "net__module__hidden_layer_sizes": [(4,), (12,)],
}
search = GridSearchCV(pipeline, grid, scoring="neg_log_loss", cv=3).fit(X_train, y_train)
results = pd.DataFrame(search.cv_results_)
results["log loss"] = -results["mean_test_score"]
print(f"best of {len(results)} settings: {search.best_params_}")
print(f"its log loss, cross-validated: {-search.best_score_:.3f}")

# %%
# How much does each setting matter? Cross-validated log loss, mean over the other settings.
results = results.rename(columns=lambda name: name.replace("param_net__", "").replace("module__", ""))
settings = [name.removeprefix("net__").removeprefix("module__") for name in grid]
for name in settings:
    means = results.groupby(name)["log loss"].mean()
    print(f"{name:20}" + ", ".join(f"{value}: {mean:.3f}" for value, mean in means.items()))

# %%
# Held-out rows, beside logistic regression on the same components.
best = search.best_estimator_
linear = Pipeline([("pca", best["pca"]), ("linear", LogisticRegression(max_iter=1000))]).fit(X_train, y_train)
for name, model in (("best of the search", best), ("logistic regression", linear)):
    loss = log_loss(y_test, model.predict_proba(X_test))
    print(f"{name:20} held-out accuracy {model.score(X_test, y_test):.3f}, log loss {loss:.3f}")

# %%
# Every setting: down the sides what matters, along the bottom what hardly does.
table = results.pivot(index=["hidden_layer_sizes", "alpha"], columns=["damping", "lr"], values="log loss")
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
image = axes.imshow(table, cmap="viridis_r", aspect="auto")
axes.set_xticks(range(table.shape[1]), [f"{damping}\nlr {lr:g}" for damping, lr in table.columns])
axes.set_yticks(range(len(table)), [f"{units[0]} units, alpha {alpha:g}" for units, alpha in table.index])
dark = table.to_numpy() > (table.to_numpy().min() + table.to_numpy().max()) / 2
for (i, j), value in np.ndenumerate(table):
    axes.text(j, i, f"{value:.3f}", ha="center", va="center", color="white" if dark[i, j] else "black")
axes.set_title("Digits: log loss, 3-fold cross-validation")
figure.colorbar(image, label="log loss")
plt.show()

# %%
# Takeaway: search penalty and architecture first; their defaults cannot know your data. Damping rule and step length
# change the result little here, so their defaults are a fair start.
