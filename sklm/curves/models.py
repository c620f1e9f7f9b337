"""Ready curves of one column x, each with a `guess` of its parameters from data.

The functions avoid nan in values and in derivatives with respect to parameters: at x = 0, where an exponential
overflows, and on a bound, where a width is 0.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from sklm.curves.curve import Bounds, ReadyCurve
from sklm.curves.separable import (
    SeparableCurve,
    both_signs,
    extent,
    nonzero,
    polynomial,
    power,
    powers_of_ten,
    product,
)

POSITIVE = (0, None)  # bounds


class Line(ReadyCurve):
    """Straight line, slope * x + intercept; guessed by least squares.

    Parameters
    ----------
    slope : float, units of y / x
    intercept : float, units of y

    Examples
    --------
    >>> from sklm import LMRegressor
    >>> model = LMRegressor(Line).fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])
    >>> {name: round(value, 6) for name, value in model.parameters_.items()}
    {'slope': 2.0, 'intercept': 1.0}
    """

    @staticmethod
    def function(x: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
        return slope * x + intercept

    def guess(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        intercept, slope = polynomial(x, y, weights, 1)
        return {"slope": slope, "intercept": intercept}


class Polynomial(ReadyCurve):
    """Polynomial, c0 + c1 * x + c2 * x**2 + ...; guessed by least squares.

    For x far from 0, as years, subtract a constant first (x - 2005): from degree 4 on powers of such x differ by less
    than rounding, and parameters and bands lose their errors.

    Parameters
    ----------
    degree : int, default=2
        Highest power, at least 1.
    c0, c1, ... : float, units of y, y / x, ...
    """

    def __init__(
        self,
        n_features_in: int = 1,
        feature_names_in: Sequence[str] | None = None,
        *,
        degree: int = 2,
        bounds: Bounds | None = None,
        fixed: str | Iterable[str] = (),
        **initial: float,
    ) -> None:
        self.degree = checked_count("degree", degree)
        terms = ["c0", "c1 * x", *(f"c{k} * x**{k}" for k in range(2, self.degree + 1))]
        self.function = " + ".join(terms)  # type: ignore[assignment]
        super().__init__(n_features_in, feature_names_in, bounds=bounds, fixed=fixed, **initial)

    def guess(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        return {f"c{k}": value for k, value in enumerate(polynomial(x, y, weights, self.degree))}


def checked_count(name: str, value: object) -> int:
    """Return `value` as an int >= 1, or raise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`module__{name}` must be an integer >= 1; got {value!r}.")
    return int(value)


def _rates(x: Tensor) -> Tensor:
    """Return rates of both signs, none so large that the exponential of rate * x overflows."""
    low, high, span = extent(x)
    largest = 0.9 * math.log(torch.finfo(x.dtype).max) / max(abs(low), abs(high), 1e-300)
    return both_signs(powers_of_ten(-1.5, 2.5, 65) / span).clamp(-largest, largest)


class ExponentialDecay(SeparableCurve):
    """Exponential decay toward an offset, offset + amplitude * exp(-rate * x); guessed on a grid of rates.

    Parameters
    ----------
    amplitude : float, units of y
    rate : float, units of 1 / x; negative for a growth
    offset : float, units of y
    """

    linear = ("amplitude", "offset")

    @staticmethod
    def function(x: Tensor, amplitude: Tensor, rate: Tensor, offset: Tensor) -> Tensor:
        return offset + amplitude * torch.exp(-rate * x)

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        return {"rate": _rates(x)}


class ExponentialGrowth(SeparableCurve):
    """Exponential growth, amplitude * exp(rate * x); guessed on a grid of rates.

    Parameters
    ----------
    amplitude : float, units of y
    rate : float, units of 1 / x; negative for a decay
    """

    linear = ("amplitude",)

    @staticmethod
    def function(x: Tensor, amplitude: Tensor, rate: Tensor) -> Tensor:
        return amplitude * torch.exp(rate * x)

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        return {"rate": _rates(x)}


class PowerLaw(SeparableCurve):
    """Power law, amplitude * x**exponent for x > 0 (and x = 0, if exponent > 0); guessed on a grid of exponents.

    Parameters
    ----------
    amplitude : float, units of y / x**exponent
    exponent : float
    """

    linear = ("amplitude",)

    @staticmethod
    def function(x: Tensor, amplitude: Tensor, exponent: Tensor) -> Tensor:
        return amplitude * power(x, exponent)

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        return {"exponent": both_signs(powers_of_ten(-2, 1, 61))}


def _sigmoid_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return centers, also beyond the data, and positive widths."""
    low, high, span = extent(x)
    centers = torch.linspace(low - span / 2, high + span / 2, 49, dtype=x.dtype, device=x.device)
    return centers, span * powers_of_ten(-2.3, 0.2, 16)


class Logistic3(SeparableCurve):
    """Logistic curve from 0 to top, top / (1 + exp(-(x - center) / width)); guessed on a grid of centers and widths.

    Parameters
    ----------
    top : float, units of y
    center : float, units of x
    width : float, units of x; negative for a fall from top to 0
    """

    linear = ("top",)

    @staticmethod
    def function(x: Tensor, top: Tensor, center: Tensor, width: Tensor) -> Tensor:
        return top * torch.sigmoid((x - center) / nonzero(width))

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        centers, widths = _sigmoid_grid(x)
        return product(center=centers, width=both_signs(widths))


class Logistic4(SeparableCurve):
    """Logistic curve from bottom to top, bottom + (top - bottom) / (1 + exp(-(x - center) / width)).

    Guessed on a grid of centers and widths.

    Parameters
    ----------
    bottom, top : float, units of y
        Levels at low and at high x, so bottom > top for a fall.
    center : float, units of x
    width : float > 0, units of x
    """

    linear = ("bottom", "top")
    default_bounds: ClassVar[Bounds] = {"width": POSITIVE}

    @staticmethod
    def function(x: Tensor, bottom: Tensor, top: Tensor, center: Tensor, width: Tensor) -> Tensor:
        return bottom + (top - bottom) * torch.sigmoid((x - center) / nonzero(width))

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        centers, widths = _sigmoid_grid(x)
        return product(center=centers, width=widths)


class Logistic5(SeparableCurve):
    """Asymmetric logistic curve, bottom + (top - bottom) / (1 + exp(-(x - center) / width))**asymmetry.

    Richards (1959), J. Exp. Bot. 10, 290. Guessed on a grid of centers, widths and asymmetries.

    Parameters
    ----------
    bottom, top : float, units of y
        Levels at low and at high x, so bottom > top for a fall.
    center : float, units of x
        Where the curve is at bottom + (top - bottom) / 2**asymmetry.
    width : float > 0, units of x
    asymmetry : float > 0
        1 for the symmetric curve.
    """

    linear = ("bottom", "top")
    default_bounds: ClassVar[Bounds] = {"width": POSITIVE, "asymmetry": POSITIVE}

    @staticmethod
    def function(x: Tensor, bottom: Tensor, top: Tensor, center: Tensor, width: Tensor, asymmetry: Tensor) -> Tensor:
        log_sigmoid = -functional.softplus((center - x) / nonzero(width), threshold=40)
        return bottom + (top - bottom) * torch.exp(asymmetry * log_sigmoid)

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        centers, widths = _sigmoid_grid(x)
        return product(center=centers, width=widths, asymmetry=x.new_tensor([0.3, 1.0, 3.0]))


class Gompertz(SeparableCurve):
    """Gompertz growth, top * exp(-exp(-rate * (x - center))); guessed on a grid of centers and rates.

    Parameters
    ----------
    top : float, units of y
    center : float, units of x; the inflection
    rate : float, units of 1 / x; negative for a fall from top to 0
    """

    linear = ("top",)

    @staticmethod
    def function(x: Tensor, top: Tensor, center: Tensor, rate: Tensor) -> Tensor:
        # exp(-exp(20)) is 0 in every precision
        return top * torch.exp(-torch.exp((-rate * (x - center)).clamp(max=20)))

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        centers, widths = _sigmoid_grid(x)
        return product(center=centers, rate=both_signs(1 / widths))


class WeibullGrowth(SeparableCurve):
    """Weibull growth from 0, top * (1 - exp(-(x / scale)**shape)) for x >= 0; guessed on a grid of scales and shapes.

    Parameters
    ----------
    top : float, units of y
    scale : float > 0, units of x; where 63 % of top is reached
    shape : float > 0
    """

    linear = ("top",)
    default_bounds: ClassVar[Bounds] = {"scale": POSITIVE, "shape": POSITIVE}

    @staticmethod
    def function(x: Tensor, top: Tensor, scale: Tensor, shape: Tensor) -> Tensor:
        log_ratio = torch.log(torch.where(x == 0, 1.0, x)) - torch.log(nonzero(scale))
        grown = -torch.expm1(-torch.exp((shape * log_ratio).clamp(max=20)))  # exp(-exp(20)) is 0
        return top * torch.where(x == 0, 0.0, grown)

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        return product(scale=_positive_grid(x), shape=powers_of_ten(-0.7, 1, 18))


class MichaelisMenten(SeparableCurve):
    """Michaelis-Menten kinetics, vmax * x / (km + x) for x >= 0; guessed on a grid of km.

    Parameters
    ----------
    vmax : float, units of y
    km : float > 0, units of x; where half of vmax is reached
    """

    linear = ("vmax",)
    default_bounds: ClassVar[Bounds] = {"km": POSITIVE}

    @staticmethod
    def function(x: Tensor, vmax: Tensor, km: Tensor) -> Tensor:
        total = km + x
        return vmax * x / torch.where(total == 0, 1.0, total)

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        return {"km": _positive_grid(x)}


class Hill(SeparableCurve):
    """Dose response, bottom + (top - bottom) * x**hill / (ec50**hill + x**hill) for x >= 0; guessed on a grid.

    Parameters
    ----------
    bottom, top : float, units of y
        Levels at x = 0 and at high x for hill > 0, so bottom > top for an inhibition. For hill < 0 they change places.
    ec50 : float > 0, units of x; where the middle is reached
    hill : float
        Steepness. The guess is positive, unless a level has an initial value: then its sign is the one that fits
        better, so an inhibition with bottom = 0 has hill < 0.
    """

    linear = ("bottom", "top")
    default_bounds: ClassVar[Bounds] = {"ec50": POSITIVE}

    @staticmethod
    def function(x: Tensor, bottom: Tensor, top: Tensor, ec50: Tensor, hill: Tensor) -> Tensor:
        log_ratio = torch.log(torch.where(x == 0, 1.0, x)) - torch.log(nonzero(ec50))
        at_zero = (1 - torch.sign(hill)) / 2
        return bottom + (top - bottom) * torch.where(x == 0, at_zero, torch.sigmoid(hill * log_ratio))

    def candidates(self, x: Tensor) -> dict[str, Tensor]:
        hills = powers_of_ten(-0.6, 1, 13)
        if "bottom" in self.given or "top" in self.given:  # which cannot change places for another direction
            hills = both_signs(hills)
        return product(ec50=_positive_grid(x), hill=hills)


def _positive_grid(x: Tensor) -> Tensor:
    """Return positive scales from below the lowest positive x to above the highest."""
    positive = x[x > 0]
    if not len(positive):
        positive = x.new_ones(1)
    low, high = math.log10(float(positive.min())), math.log10(float(positive.max()))
    return powers_of_ten(max(low - 0.5, high - 5), high + 1.5, 61)
