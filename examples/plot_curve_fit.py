"""
A curve from a formula: standard errors, bands and profiles
===========================================================

Biochemical oxygen demand of stream water against incubation time, six measurements: BoxBOD of the NIST Statistical
Reference Datasets (Box, Hunter and Hunter 1978, "Statistics for Experimenters", Wiley), a problem of the higher level
of difficulty. The curve is written as a formula: ``days`` is the column of the table, all other names are parameters.
Nobody gives initial values. The script prints the estimates beside NIST's certified ones, the summary, and two kinds of
confidence intervals. The model is curved in its parameters, so the two differ, and the profiles show why. Writes
``build/curve_fit.png`` and ``build/curve_fit_profiles.png``.
"""

from pathlib import Path

import pandas as pd

from sklm import LMRegressor
from sklm.displays import FitDisplay, ProfileDisplay

table = pd.DataFrame({"days": [1, 2, 3, 5, 7, 10], "oxygen demand [mg/l]": [109, 149, 149, 191, 213, 224]})
X, y = table[["days"]], table["oxygen demand [mg/l]"]
CERTIFIED = {"final": (213.80940889, 12.354515176), "rate": (0.54723748542, 0.10455993237)}

# %%
# The fit. A demand that falls makes no sense, so the rate has a bound.
model = LMRegressor("final * (1 - exp(-rate * days))", module__bounds={"rate": (0, None)}, random_state=0)
model.fit(X, y)
print(model.summary())

# %%
# Beside the certified values.
frame = pd.DataFrame({"estimate": model.parameters_, "std. error": model.standard_errors_})
frame[["certified", "certified std. error"]] = pd.DataFrame(CERTIFIED, index=["estimate", "error"]).T
print(f"\n{frame.to_string(float_format='{:.8g}'.format)}")

# %%
# A Wald interval is the estimate plus and minus a multiple of its standard error. A profile interval refits the other
# parameter along the way and so follows the curvature of the model: it reaches farther up than down.
wald, profile = model.confidence_intervals(), model.confidence_intervals(method="profile")
intervals = pd.DataFrame(
    [[*wald[name], *profile[name]] for name in wald],
    index=list(wald),
    columns=["95 % Wald from", "to", "95 % profile from", "to"],
)
print(f"\n{intervals.to_string(float_format='{:.4g}'.format)}")

# %%
# Data, curve and bands: of the curve (dark) and for a new measurement (light). Residuals below.
fit = FitDisplay.from_estimator(model, X, y)
fit.figure_.suptitle("Oxygen demand of stream water")

# %%
# Profiles. The farther a profile is from the dashed line, the less the standard error tells.
profiles = ProfileDisplay.from_estimator(model)
profiles.figure_.suptitle("Profiles of the parameters")

build = Path("build")
build.mkdir(exist_ok=True)
fit.figure_.savefig(build / "curve_fit.png", dpi=120)
profiles.figure_.savefig(build / "curve_fit_profiles.png", dpi=120)
print(f"\nfigures: {build / 'curve_fit.png'}, {build / 'curve_fit_profiles.png'}")
