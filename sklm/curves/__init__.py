"""Curves: parametric functions of the columns of a table as `nn.Module`s, from formulas, functions or ready models.

| curve | formula |
|---|---|
| `Line`, `Polynomial` | slope x + intercept; c0 + c1 x + c2 x^2 + ... (`degree`) |
| `ExponentialDecay`, `ExponentialGrowth` | amplitude exp(-rate x) + offset; amplitude exp(rate x) |
| `PowerLaw` | amplitude x^exponent |
| `Gaussian`, `Lorentzian`, `Voigt`, `PseudoVoigt` | a peak at `center` |
| `Peaks` | a sum of peaks on a background (`n_peaks`, `peak`, `background`) |
| `Logistic3`, `Logistic4`, `Logistic5`, `Gompertz`, `WeibullGrowth` | growth from one level to another |
| `MichaelisMenten`, `Hill` | saturation |
| `Sine`, `DampedOscillation` | oscillations |

Ready models start from a guess from the data, every other curve from a search (`sklm.curves.start`).
"""

from sklm.curves.curve import Curve, ReadyCurve, curve, is_curve
from sklm.curves.models import (
    ExponentialDecay,
    ExponentialGrowth,
    Gompertz,
    Hill,
    Line,
    Logistic3,
    Logistic4,
    Logistic5,
    MichaelisMenten,
    Polynomial,
    PowerLaw,
    WeibullGrowth,
)
from sklm.curves.peaks import Gaussian, Lorentzian, Peak, PseudoVoigt, Voigt
from sklm.curves.spectrum import Peaks
from sklm.curves.waves import DampedOscillation, Sine

__all__ = [
    "Curve",
    "DampedOscillation",
    "ExponentialDecay",
    "ExponentialGrowth",
    "Gaussian",
    "Gompertz",
    "Hill",
    "Line",
    "Logistic3",
    "Logistic4",
    "Logistic5",
    "Lorentzian",
    "MichaelisMenten",
    "Peak",
    "Peaks",
    "Polynomial",
    "PowerLaw",
    "PseudoVoigt",
    "ReadyCurve",
    "Sine",
    "Voigt",
    "WeibullGrowth",
    "curve",
    "is_curve",
]
