"""The contenders of the quality benchmark: sklm and its variants, the peers, their grids, and the ablation."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from quality_tables import MAX_ROWS
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import EarlyStopping
from torch import nn

from sklm import MLP, LMClassifier, LMRegressor

MAX_ROWS_GP = 1000
BOTH = ("regression", "classes")


@dataclass(frozen=True)
class Model:
    """A contender; `make` maps a table to an estimator without a seed."""

    name: str
    make: Callable
    kind: str  # "sklm", "net" (a peer that is a neural network) or "other"
    parameters: str = ""
    scales_y: bool = False
    max_rows: int = MAX_ROWS
    seed: int = 0  # added to the number of the split
    tasks: tuple = BOTH
    skipped: tuple = ()  # tables

    def takes(self, table, number):
        """Return whether the model is meant for a split of a table."""
        fits = table.task in self.tasks and table.name not in self.skipped
        return fits and len(table.split(number)[0]) <= self.max_rows


def kind(name):
    """Return the kind of a model of the csv, which may be a variant that this run does not name."""
    return "sklm" if name.split()[0] == "LM" else "net" if name.split()[0] in ("MLP", "skorch") else "other"


def is_net(name):
    return kind(name) != "other"


def is_searched(name):
    return name.endswith(" grid")


def either(regressor, classifier):
    """Return a function of a table that returns a copy of the estimator for its task."""
    return lambda table: clone(regressor if table.task == "regression" else classifier)


# ---------------------------------------------------------------------- peers


class Hidden(nn.Module):
    """One hidden layer of tanh units, for skorch."""

    def __init__(self, n_features, n_outputs, hidden=20):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_features, hidden), nn.Tanh(), nn.Linear(hidden, n_outputs))

    def forward(self, X):
        return self.layers(X.float())


class ColumnRegressor(NeuralNetRegressor):
    """skorch wants y as a column of float32."""

    def fit(self, X, y, **kwargs):
        return super().fit(X, np.float32(y).reshape(-1, 1), **kwargs)


def skorch_net(table, *, stop=False):
    n_classes = len(np.unique(table.y)) if table.task == "classes" else 1
    sizes = {"module__n_features": table.X.shape[1], "module__n_outputs": n_classes}
    common = {"max_epochs": 200, "optimizer": torch.optim.Adam, "verbose": 0, **sizes}
    common |= {"callbacks": [("stop", EarlyStopping(patience=10, load_best=True))]} if stop else {"train_split": None}
    if table.task == "regression":
        return ColumnRegressor(Hidden, **common)
    return NeuralNetClassifier(Hidden, criterion=nn.CrossEntropyLoss, **common)


def mlp(**kwargs):
    return either(MLPRegressor(**kwargs), MLPClassifier(**kwargs))


def searched(make, grid):
    """Return a function of a table that returns the search over a grid."""

    def search(table):
        if table.task == "regression":
            folds, scoring = KFold(3), "neg_mean_squared_error"
        else:
            folds, scoring = StratifiedKFold(3), "neg_log_loss"
        return GridSearchCV(make(table), grid, cv=folds, scoring=scoring)

    return search


def peers(*, with_grid):
    """Return the peers: at their defaults, then the searched ones."""
    nets = {
        "MLP adam": mlp(),
        "MLP adam stop": mlp(early_stopping=True),
        "MLP lbfgs": mlp(solver="lbfgs"),
        "skorch adam": skorch_net,
        "skorch adam stop": lambda table: skorch_net(table, stop=True),
    }
    trees = either(HistGradientBoostingRegressor(), HistGradientBoostingClassifier())
    linear = either(RidgeCV(np.logspace(-3, 3, 13)), LogisticRegressionCV(scoring="neg_log_loss", cv=3, max_iter=1000))
    rbf = ConstantKernel() * RBF()
    process = either(GaussianProcessRegressor(rbf + WhiteKernel()), GaussianProcessClassifier(rbf))
    models = [Model(name, make, "net", scales_y=True) for name, make in nets.items()]
    models += [Model("linear", linear, "other"), Model("trees", trees, "other")]
    models += [Model("GP", process, "other", scales_y=True, max_rows=MAX_ROWS_GP)]
    if with_grid:
        mlp_grid = {"hidden_layer_sizes": [(20,), (100,), (50, 50)], "alpha": [1e-4, 1e-2, 1.0]}
        skorch_grid = {"module__hidden": [10, 20, 50], "optimizer__weight_decay": [0, 1e-4, 1e-2]}
        for name, make in nets.items():
            grid = mlp_grid if name.startswith("MLP") else skorch_grid
            models.append(Model(f"{name} grid", searched(make, grid), "net", scales_y=True))
        tree_grid = {"learning_rate": [0.03, 0.1], "max_leaf_nodes": [7, 31]}
        models.append(Model("trees grid", searched(trees, tree_grid), "other"))
    return models


# ---------------------------------------------------------------------- sklm


def sklm_model(variant=""):
    """Return sklm at its defaults, or a variant given as ``name:parameter=value, ...``."""
    name, _, text = variant.partition(":")
    keywords = ast.parse(f"f({text})", mode="eval").body.keywords
    kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords}
    return Model(f"LM {name}".strip(), either(LMRegressor(**kwargs), LMClassifier(**kwargs)), "sklm", text.strip())


class RawTargets(MLP):
    """The default network without the scaling of targets."""

    def init_from_data(self, X, y, sample_weight=None):
        super().init_from_data(X, y.long(), sample_weight)  # integers have no scale


class TorchStart(MLP):
    """The default network with the initial parameters of torch."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()


class SteepStart(MLP):
    """The default network with the slope that Nguyen and Widrow proposed."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        with torch.no_grad():
            for parameter in self.layers[0].parameters():
                parameter *= 0.7 / 0.25


class Accelerated:
    """Switches geodesic acceleration on, which the estimators keep for curves, in all runs of a fit."""

    def _build_optimizer(self, seed):
        optimizer = super()._build_optimizer(seed)
        optimizer.acceleration = optimizer._accelerates = True
        return optimizer


class AcceleratedRegressor(Accelerated, LMRegressor):
    pass


class AcceleratedClassifier(Accelerated, LMClassifier):
    pass


def changes():
    """Return sklm at its defaults with three seeds, then with one default changed at a time."""
    gratification = {"damping": "standard", "damping__increase": 2, "damping__scaling": "auto"}
    return [
        change("", {}),
        change("another seed", {}, seed=1000),
        change("a third seed", {}, seed=2000),
        change("alpha=0", {"alpha": 0}),
        *(change(f"alpha={alpha:g}", {"alpha": alpha}, scales_y=True) for alpha in (1e-3, 0.01, 0.1, 1.0)),
        change("early_stopping=True", {"early_stopping": True}),
        change("5 units", {"module__hidden_layer_sizes": (5,)}),
        change("10 units", {"module__hidden_layer_sizes": (10,)}),
        change("50 units", {"module__hidden_layer_sizes": (50,)}, skipped=("digits",)),
        change("20 and 20 units", {"module__hidden_layer_sizes": (20, 20)}),
        *(change(name, {"module__activation": name}) for name in ("logistic", "softplus", "silu", "relu")),
        change("initial weights of torch", {"module": TorchStart}),
        change("initial slope 0.7", {"module": SteepStart}),
        change("targets not scaled", {"module": RawTargets}, tasks=("regression",)),
        change('criterion__curvature="sqrt"', {"criterion__curvature": "sqrt"}, tasks=("classes",)),
        change('criterion__curvature="mc"', {"criterion__curvature": "mc"}, tasks=("classes",)),
        change('damping="standard"', {"damping": "standard"}),
        change("damping x2, x0.1", gratification),
        *(
            change(f'damping__scaling="{scaling}"', {"damping__scaling": scaling})
            for scaling in ("identity", "more", "marquardt")
        ),
        change("damping__initial=1", {"damping__initial": 1.0}),
        replace(
            change("geodesic acceleration", {}, (AcceleratedRegressor, AcceleratedClassifier)), parameters="Accelerated"
        ),
        change("ftol, xtol, gtol 1e-4", dict.fromkeys(("ftol", "xtol", "gtol"), 1e-4)),
        change("max_epochs=30", {"max_epochs": 30}),
        change("max_epochs=300", {"max_epochs": 300}),
        change("n_iter_no_change=3", {"n_iter_no_change": 3}),
        change("n_iter_no_change=30", {"n_iter_no_change": 30}),
        change("batch_size=200", {"batch_size": 200}),
        change("batch_size=200, early stopping", {"batch_size": 200, "early_stopping": True}),
        change("n_init=3", {"n_init": 3}),
        change('dtype="float32"', {"dtype": "float32"}),
    ]


def change(name, kwargs, kinds=(LMRegressor, LMClassifier), **fields):
    """Return a variant of sklm; `fields` are those of `Model`."""
    text = ", ".join(f"{key}={getattr(value, '__name__', repr(value))}" for key, value in kwargs.items())
    estimators = [kind(**kwargs) for kind in kinds]
    return Model(f"LM {name}".strip(), either(*estimators), "sklm", text, **fields)
