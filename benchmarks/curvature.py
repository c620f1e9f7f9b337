"""Which curvature of the cross-entropy: Gauss-Newton ("ggn"), sampled ("mc") or the square-root trick ("sqrt").

`LMClassifier` at its defaults on classification tables, three splits each: accuracy and log loss on held-out rows, the
training loss, and the CPU seconds of `fit`. Tables of scikit-learn, and those of the folder named by SKLM_DATA
(tabular/NAME.csv, last column the target), skipped with a message when absent; at most 1000 rows each.
Run: python benchmarks/curvature.py
"""

import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from sklm import LMClassifier

warnings.simplefilter("ignore", ConvergenceWarning)
SPLITS = range(3)
CURVATURES = ["ggn", "mc", "sqrt"]  # for two classes the first two are one


def tables():
    bundled = {"iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer, "digits": load_digits}
    for name, load in bundled.items():
        yield name, *load(return_X_y=True)
    folder = Path(os.environ.get("SKLM_DATA", "")) / "tabular"
    for name in ("vowel", "phoneme", "pendigits"):
        path = folder / f"{name}.csv"
        if not path.exists():
            print(f"{name}: skipped, SKLM_DATA has no {path}")
            continue
        table = pd.read_csv(path).sample(frac=1, random_state=0)[:1000]
        yield name, table.iloc[:, :-1].to_numpy(float), table.iloc[:, -1].to_numpy()


def main():
    rows = []
    for name, X, y in tables():
        scores = {curvature: [] for curvature in CURVATURES}
        for split in SPLITS:
            X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=split)
            for curvature in CURVATURES:
                start = time.process_time()
                model = LMClassifier(criterion__curvature=curvature, random_state=split).fit(X_train, y_train)
                seconds = time.process_time() - start
                loss = log_loss(y_test, model.predict_proba(X_test))
                scores[curvature].append([model.score(X_test, y_test), loss, model.loss_, seconds])
        medians = [np.median(scores[curvature], 0) for curvature in CURVATURES]
        rows.append([name, *np.column_stack(medians).ravel()])
        print(f"{name} done")
    measured = ("accuracy", "log loss", "train loss", "seconds")
    table = pd.DataFrame(rows, columns=["table", *(f"{what} {c}" for what in measured for c in CURVATURES)])
    print(table.to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
