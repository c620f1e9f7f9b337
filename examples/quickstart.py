"""
Quick start: two real tables, two pipelines, one grid search each
=================================================================

A regression (disease progression of 442 diabetes patients) and a classification (569 breast tumors, benign or
malignant), both bundled with scikit-learn. Each pipeline scales the columns and fits a network of ten hidden units by
Levenberg-Marquardt; the grid search chooses damping, learning rate and penalty by cross-validation on three quarters of
the rows. Prints a table of results on the other rows, beside scikit-learn's MLP at its defaults (100 hidden units,
until it converges), and writes ``build/quickstart.png``.
"""

import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import ConfusionMatrixDisplay, PredictionErrorDisplay
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sklm import LMClassifier, LMRegressor

# Searching over settings, some fits end at max_epochs: they are scored like the others.
warnings.simplefilter("ignore", ConvergenceWarning)

# %%
# The models. The penalty `alpha` is on the scale of the loss: squared units of y for the regression.
common = {"module__hidden_layer_sizes": (10,), "random_state": 0}
TASKS = {
    "diabetes": {
        "data": load_diabetes(return_X_y=True, as_frame=True),
        "models": {"sklm": LMRegressor(**common), "MLP": MLPRegressor(random_state=0, max_iter=2000)},
        "alpha": [1e4, 3e4, 1e5, 3e5],
        "score": "R2",
        "search": "r2",
    },
    "tumors": {
        "data": load_breast_cancer(return_X_y=True, as_frame=True),
        "models": {"sklm": LMClassifier(**common), "MLP": MLPClassifier(random_state=0, max_iter=2000)},
        "alpha": [1.0, 3.0, 10.0],
        "score": "accuracy",
        "search": "neg_log_loss",
    },
}

# %%
# Search with sklm, fit both, and score on rows that neither has seen.
rows, fitted = [], {}
for task, setup in TASKS.items():
    X_train, X_test, y_train, y_test = train_test_split(*setup["data"], test_size=0.25, random_state=0)
    pipeline = Pipeline([("scale", StandardScaler()), ("net", setup["models"]["sklm"])])
    grid = {
        "net__damping": ["nielsen", "standard"],
        "net__lr": [0.5, 1.0],
        "net__alpha": setup["alpha"],
    }
    search = GridSearchCV(pipeline, grid, cv=5, scoring=setup["search"], n_jobs=2).fit(X_train, y_train)
    print(f"{task}: best of {len(search.cv_results_['params'])} settings: {search.best_params_}")
    peer = Pipeline([("scale", StandardScaler()), ("net", setup["models"]["MLP"])])
    for name, model in (("sklm", search.best_estimator_), ("MLP", peer)):
        start = time.perf_counter()
        model.fit(X_train, y_train)
        seconds = time.perf_counter() - start
        train, test = model.score(X_train, y_train), model.score(X_test, y_test)
        label = type(model["net"]).__name__
        epochs = model["net"].n_iter_
        rows.append([task, label, setup["score"], train, test, epochs, seconds])
        if name == "sklm":
            print(f"{task}: {model['net'].message_}")
            fitted[task] = (model, X_test, y_test)

print()
table = pd.DataFrame(rows, columns=["task", "model", "score", "train", "test", "epochs", "fit [s]"])
print(table.to_string(index=False, float_format="{:.3f}".format))

# %%
# Predictions on the held-out rows.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
PredictionErrorDisplay.from_estimator(*fitted["diabetes"], kind="actual_vs_predicted", ax=left)
left.set(title="Diabetes: progression after one year", xlabel="predicted", ylabel="measured")
ConfusionMatrixDisplay.from_estimator(
    *fitted["tumors"], display_labels=["malignant", "benign"], ax=right, colorbar=False, cmap="Blues"
)
right.set_title("Breast tumors")
path = Path("build") / "quickstart.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=120)
print(f"\nfigure: {path}")
