"""Curves: parametric functions of the columns of a table as `nn.Module`s, from formulas, functions or ready models."""

from sklm.curves.curve import Curve, ReadyCurve, curve, is_curve

__all__ = ["Curve", "ReadyCurve", "curve", "is_curve"]
