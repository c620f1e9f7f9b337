"""Which curvature of the cross-entropy: Gauss-Newton ("ggn") or the square-root trick ("sqrt").

`LMClassifier` at its defaults on classification tables, three splits each: accuracy and log loss on held-out rows, the
training loss, and the ratio of the times. Tables of scikit-learn, and those of the folder named by SKLM_DATA
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
        scores, seconds = {"ggn": [], "sqrt": []}, {"ggn": [], "sqrt": []}
        for split in SPLITS:
            X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=split)
            for curvature in scores:
                start = time.perf_counter()
                model = LMClassifier(criterion__curvature=curvature, random_state=split).fit(X_train, y_train)
                seconds[curvature].append(time.perf_counter() - start)
                probabilities = model.predict_proba(X_test)
                scores[curvature].append([model.score(X_test, y_test), log_loss(y_test, probabilities), model.loss_])
        ggn, sqrt = np.median(scores["ggn"], 0), np.median(scores["sqrt"], 0)
        ratio = np.median(np.divide(seconds["ggn"], seconds["sqrt"]))
        rows.append([name, *np.column_stack([ggn, sqrt]).ravel(), ratio])
        print(f"{name} done")
    columns = ["table"] + [f"{what} {c}" for what in ("accuracy", "log loss", "train loss") for c in ("ggn", "sqrt")]
    table = pd.DataFrame(rows, columns=[*columns, "time ggn/sqrt"])
    print(table.to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
