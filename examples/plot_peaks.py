"""
How many peaks? Sunspot cycles as a sum of Gaussians
====================================================

The yearly sunspot numbers from 1901 to 1964, bundled with statsmodels (public domain), hold six of the cycles of about
eleven years. `sklm.curves.Peaks` fits a sum of Gaussian peaks on a constant background; it finds its initial values
itself, for any number of peaks. Fits with three to seven peaks are compared by AIC and BIC in a table that the script
prints. Too few peaks leave residuals of neighboring years that are related (column autocorrelation); a peak beyond the
six cycles lowers neither AIC nor BIC. The script also prints the summary of the best fit, the years of its maxima and
the times between them. The residuals are larger in the later, higher cycles, so the bands are a rough guide. Writes
``build/peaks.png``.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from statsmodels.datasets import sunspots

from sklm import LMRegressor
from sklm.curves import Peaks
from sklm.displays import FitDisplay

table = sunspots.load_pandas().data.rename(columns={"YEAR": "year", "SUNACTIVITY": "sunspot number"})
table = table[table["year"].between(1901, 1964)]
X, y = table[["year"]], table["sunspot number"]

# %%
# One fit per number of peaks. No peak is negative, and none so narrow that it fits a single observation.
fits = {}
for n_peaks in range(3, 8):
    bounds = {f"sigma{k}": (0.5, 10) for k in range(1, n_peaks + 1)}
    bounds |= {f"height{k}": (0, None) for k in range(1, n_peaks + 1)}
    model = LMRegressor(Peaks, module__n_peaks=n_peaks, module__bounds=bounds, max_epochs=500, random_state=0)
    fits[n_peaks] = model.fit(X, y)
scores = pd.DataFrame(
    {
        "residual std. dev.": {n: np.sqrt(fit.residual_variance_) for n, fit in fits.items()},
        "autocorrelation": {n: pd.Series(y.to_numpy() - fit.predict(X)).autocorr() for n, fit in fits.items()},
        "AIC": {n: fit.aic_ for n, fit in fits.items()},
        "BIC": {n: fit.bic_ for n, fit in fits.items()},
    }
).rename_axis("peaks")
print(scores.to_string(float_format="{:.2f}".format))
n_best = int(scores["BIC"].idxmin())
print(f"lowest AIC: {scores['AIC'].idxmin()} peaks, lowest BIC: {n_best} peaks")

# %%
# The best by BIC, with the fewest peaks where several are equal.
best = fits[n_best]
print(f"\n{best.summary()}")
centers = sorted((best.parameters_[name], best.standard_errors_[name]) for name in best.parameters_ if "center" in name)
print("\nmaxima:", ", ".join(f"{year:.1f} +- {error:.1f}" for year, error in centers))
print("years between:", ", ".join(f"{years:.1f}" for years in np.diff([year for year, _ in centers])))

# %%
# The data, the sum and its bands.
display = FitDisplay.from_estimator(best, X, y, n_points=600)
display.figure_.suptitle(f"Sunspot cycles: {n_best} Gaussian peaks on a constant background")

build = Path("build")
build.mkdir(exist_ok=True)
display.figure_.savefig(build / "peaks.png", dpi=120)
print(f"\nfigure: {build / 'peaks.png'}")
