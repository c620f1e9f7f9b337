"""The tables of the quality benchmark: where they come from, their halves and their splits."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from harness import HERE
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

HALVES = {
    "tune": ["abalone", "boston", "diabetes", "kin8nm", "yacht", "breast_cancer", "iris", "phoneme", "vowel"],
    "test": ["airfoil", "concrete", "energy", "wine_red", "digits", "pendigits", "satellite", "wine"],
}
ALL = [name for names in HALVES.values() for name in names]
BUNDLED = {
    "diabetes": load_diabetes,
    "breast_cancer": load_breast_cancer,
    "digits": load_digits,
    "iris": load_iris,
    "wine": load_wine,
}
CLASSES = {"breast_cancer", "digits", "iris", "pendigits", "phoneme", "satellite", "vowel", "wine"}
DATA = Path(os.environ.get("SKLM_DATA", HERE.parent.parent / "shared" / "data")) / "tabular"
MAX_ROWS = 5000


@dataclass(frozen=True)
class Table:
    name: str
    task: str  # "regression" or "classes"
    X: np.ndarray
    y: np.ndarray

    def split(self, number):
        """Return the rows for training, shuffled and at most MAX_ROWS, and those for the test."""
        train, test = self._published(number) or self._drawn(number)
        return np.random.default_rng(number).permutation(train)[:MAX_ROWS], test

    def _published(self, number):
        path = DATA / "splits" / f"{self.name}.npz"
        if not path.exists():
            return None
        arrays = np.load(path)
        if "test_mask" in arrays:
            mask = arrays["test_mask"][:, number]
            return np.flatnonzero(~mask), np.flatnonzero(mask)
        return arrays[f"train_{number}"], arrays[f"test_{number}"]

    def _drawn(self, number):
        kind = ShuffleSplit if self.task == "regression" else StratifiedShuffleSplit
        return next(kind(1, test_size=0.25, random_state=number).split(self.X, self.y))


def task_of(name):
    """Return the task of a table: "regression" or "classes"."""
    return "classes" if name in CLASSES else "regression"


def load(name):
    """Return a table, or None where its file is absent."""
    task = task_of(name)
    if name in BUNDLED:
        return Table(name, task, *BUNDLED[name](return_X_y=True))
    path = DATA / f"{name}.csv"
    if not path.exists():
        print(f"{name}: skipped, there is no {path}")
        return None
    frame = pd.read_csv(path)
    X = pd.get_dummies(frame.iloc[:, :-1]).to_numpy(float)
    y = frame.iloc[:, -1]
    return Table(name, task, X, y.to_numpy(float) if task == "regression" else np.unique(y, return_inverse=True)[1])
