"""scikit-learn estimators that fit any `torch.nn.Module` by the Levenberg-Marquardt algorithm."""

from sklm import curves, damping, losses, selection
from sklm.curves import curve
from sklm.displays import DampingDisplay, FitDisplay, LossCurveDisplay, ProfileDisplay
from sklm.engine import LevenbergMarquardt, StepResult
from sklm.estimators import LMClassifier, LMRegressor
from sklm.modules import MLP

__version__ = "0.1.0"
__all__ = [
    "MLP",
    "DampingDisplay",
    "FitDisplay",
    "LMClassifier",
    "LMRegressor",
    "LevenbergMarquardt",
    "LossCurveDisplay",
    "ProfileDisplay",
    "StepResult",
    "curve",
    "curves",
    "damping",
    "losses",
    "selection",
]
