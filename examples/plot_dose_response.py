"""
A dose-response curve, chosen by cross-validation
=================================================

Root length of ryegrass against the concentration of ferulic acid, 24 measurements (Inderjit, Streibig and Olofsdotter
2002, "Joint action of phenolic acid mixtures and its significance in allelopathy research", Physiologia Plantarum 114).
Five formulas compete in one grid search, which scores them by cross-validation; AIC and BIC, computed from a fit to all
rows, stand beside in the table that the script prints. The four-parameter logistic wins by all three, and its
estimates are printed beside the published ones of the R package drc (model LL.4). Writes ``build/dose_response.png``.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

from sklm import LMRegressor
from sklm.displays import FitDisplay

DOSES = {  # mM of ferulic acid: root length in cm
    0: [7.58, 8.0, 8.3286, 7.25, 7.375, 7.9625],
    0.94: [8.3556, 6.9143, 7.75],
    1.88: [6.8714, 6.45, 5.9222],
    3.75: [1.925, 2.8857, 4.2333],
    7.5: [1.1875, 0.8571, 1.0571],
    15: [0.6875, 0.525, 0.825],
    30: [0.25, 0.22, 0.44],
}
table = pd.DataFrame([(dose, length) for dose, lengths in DOSES.items() for length in lengths], columns=["conc", "y"])
X, y = table[["conc"]], table["y"].rename("root length [cm]")

# %%
# The candidates are settings of the estimator like any other: a formula and the bounds of its parameters.
positive = (1e-3, None)
logistic = {"ed50": positive, "slope": positive}
CANDIDATES = {
    "straight line": ("a + b * conc", {}),
    "exponential decay": ("lower + (upper - lower) * exp(-rate * conc)", {"rate": positive}),
    "3-parameter logistic": ("upper / (1 + (conc / ed50) ** slope)", logistic),
    "4-parameter logistic": ("lower + (upper - lower) / (1 + (conc / ed50) ** slope)", logistic),
    "5-parameter logistic": (
        "lower + (upper - lower) / (1 + (conc / ed50) ** slope) ** asymmetry",
        {**logistic, "asymmetry": (0.05, 20)},
    ),
}
grid = [{"module": [formula], "module__bounds": [bounds]} for formula, bounds in CANDIDATES.values()]
model = LMRegressor(max_epochs=300, random_state=0)
folds = KFold(n_splits=6, shuffle=True, random_state=0)
search = GridSearchCV(model, grid, scoring="neg_root_mean_squared_error", cv=folds).fit(X, y)

# %%
# One table of all candidates. The fits to all rows give AIC, BIC and the residual standard deviation.
settings = zip(CANDIDATES, search.cv_results_["params"], strict=True)
fits = {name: clone(model).set_params(**params).fit(X, y) for name, params in settings}
scores = pd.DataFrame(
    {
        "parameters": {name: len(fit.parameters_) for name, fit in fits.items()},
        "residual std. dev.": {name: np.sqrt(fit.residual_variance_) for name, fit in fits.items()},
        "RMSE, cross-validated": dict(zip(CANDIDATES, -search.cv_results_["mean_test_score"], strict=True)),
        "AIC": {name: fit.aic_ for name, fit in fits.items()},
        "BIC": {name: fit.bic_ for name, fit in fits.items()},
    }
)
print(scores.to_string(float_format="{:.3f}".format))
for column in scores.columns[2:]:
    print(f"lowest {column}: {scores[column].idxmin()}")

# %%
# The winner, refitted to all rows by the search. `ed50` is the dose that halves the effect.
best = search.best_estimator_
print(f"\n{best.summary()}\n")
for name, value in {"slope": 2.98, "lower": 0.48, "upper": 7.79, "ed50": 3.06}.items():
    print(f"{name:6}{best.parameters_[name]:6.2f}   published {value:.2f}")

# %%
# On an axis of square roots, as the dose 0 has no logarithm.
display = FitDisplay.from_estimator(best, X, y)
doses = display.residual_ax_
doses.set_xscale("function", functions=(lambda v: np.sign(v) * np.sqrt(np.abs(v)), lambda v: np.sign(v) * v**2))
doses.set_xticks(list(DOSES), [f"{dose:g}" for dose in DOSES])
doses.set(xlim=(-0.05, 33), xlabel="ferulic acid [mM]")
display.ax_.axvline(best.parameters_["ed50"], color="0.5", linestyle=":", zorder=0)
display.ax_.text(best.parameters_["ed50"] * 1.06, 7.5, f"ED50 = {best.parameters_['ed50']:.2f} mM", color="0.4")
display.ax_.legend(loc="lower left")
display.figure_.suptitle(f"Ryegrass: {scores['RMSE, cross-validated'].idxmin()}")

build = Path("build")
build.mkdir(exist_ok=True)
display.figure_.savefig(build / "dose_response.png", dpi=120)
print(f"\nfigure: {build / 'dose_response.png'}")
