"""Pictures of a fit, one class each.

`FitDisplay` draws data, curve, bands and residuals; `ProfileDisplay` the profiles of the parameters;
`LossCurveDisplay` the loss over the epochs; `DampingDisplay` loss, damping and attempts over the steps.

As scikit-learn's displays: `from_estimator` computes and draws, the arrays are attributes, `plot` draws them again.
Everything comes from public methods of the fitted estimator.
"""

from sklm.displays.damping import DampingDisplay
from sklm.displays.fit import FitDisplay
from sklm.displays.loss import LossCurveDisplay
from sklm.displays.profile import ProfileDisplay

__all__ = ["DampingDisplay", "FitDisplay", "LossCurveDisplay", "ProfileDisplay"]
