"""The Levenberg-Marquardt engine: torch only, usable without the estimators."""

from sklm.engine.inputs import Reader
from sklm.engine.optimizer import LevenbergMarquardt
from sklm.engine.result import StepResult

__all__ = ["LevenbergMarquardt", "Reader", "StepResult"]
