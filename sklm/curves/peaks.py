"""Peaks: Gaussian, Lorentzian and their mixtures.

The Voigt profile is the real part of the Faddeeva function w(z) with z = (x - center + i gamma) / (sigma sqrt(2)). Near
the center w comes from the rational approximation of Weideman (1994), SIAM J. Numer. Anal. 31, 1497, eq. 38; beyond
|z| = 12 from its asymptotic series (Abramowitz and Stegun 7.1.23), written without a division by sigma, so the profile
becomes a Lorentzian as sigma goes to 0. The error of w is below 1e-13, relative to its modulus.

A guess looks for the box (an interval of rows) that explains most of the data, which is robust against noise, and then
fits the shape on a grid of centers and widths around it.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import ClassVar

import torch
from torch import Tensor

from sklm.curves.curve import Bounds, ReadyCurve
from sklm.curves.models import POSITIVE
from sklm.curves.separable import best_candidate, extent, nonzero, powers_of_ten, product, thinned

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
FWHM_OF_VOIGT = 3.6013  # with sigma = gamma = 1 (Olivero and Longbothum 1977)
N_TERMS = 40  # of Weideman's series: more do not lower the error in float64


class Peak(ReadyCurve):
    """A peak on no background, linear in its first parameter, with a `center` as the second."""

    @staticmethod
    def widths(fwhm: Tensor) -> dict[str, Tensor]:
        """Return the parameters after amplitude and center for full widths at half maximum, of the same shape."""
        raise TypeError("a peak overrides `widths`.")

    def guess(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        x, y, weights, height = scaled(x, y, weights)
        center = self.given.get("center")
        peak = place_peak(type(self), x, y, weights, center)
        return {name: value * (height if i == 0 else 1) for i, (name, value) in enumerate(peak.items())}


class Gaussian(Peak):
    """Gaussian peak, height * exp(-((x - center) / sigma)**2 / 2).

    Parameters
    ----------
    height : float, units of y
    center : float, units of x
    sigma : float > 0, units of x; the full width at half maximum is 2.3548 sigma
    """

    default_bounds: ClassVar[Bounds] = {"sigma": POSITIVE}

    @staticmethod
    def function(x: Tensor, height: Tensor, center: Tensor, sigma: Tensor) -> Tensor:
        return height * _gaussian((x - center) / nonzero(sigma))

    @staticmethod
    def widths(fwhm: Tensor) -> dict[str, Tensor]:
        return {"sigma": fwhm / FWHM_PER_SIGMA}


class Lorentzian(Peak):
    """Lorentzian (Cauchy) peak, height / (1 + ((x - center) / gamma)**2).

    Parameters
    ----------
    height : float, units of y
    center : float, units of x
    gamma : float > 0, units of x; the half width at half maximum
    """

    default_bounds: ClassVar[Bounds] = {"gamma": POSITIVE}

    @staticmethod
    def function(x: Tensor, height: Tensor, center: Tensor, gamma: Tensor) -> Tensor:
        return height * _lorentzian((x - center) / nonzero(gamma))

    @staticmethod
    def widths(fwhm: Tensor) -> dict[str, Tensor]:
        return {"gamma": fwhm / 2}


class Voigt(Peak):
    """Voigt peak, area times the convolution of a normal and a Cauchy density.

    Parameters
    ----------
    area : float, units of x * y
    center : float, units of x
    sigma : float > 0, units of x; standard deviation of the normal part
    gamma : float > 0, units of x; half width at half maximum of the Cauchy part
    """

    default_bounds: ClassVar[Bounds] = {"sigma": POSITIVE, "gamma": POSITIVE}

    @staticmethod
    def function(x: Tensor, area: Tensor, center: Tensor, sigma: Tensor, gamma: Tensor) -> Tensor:
        return area * voigt_profile(x - center, sigma, gamma)

    @staticmethod
    def widths(fwhm: Tensor) -> dict[str, Tensor]:
        return {"sigma": fwhm / FWHM_OF_VOIGT, "gamma": fwhm / FWHM_OF_VOIGT}


class PseudoVoigt(Peak):
    """Pseudo-Voigt peak, height times a Lorentzian and a Gaussian of the same width and height 1, mixed by fraction.

    Parameters
    ----------
    height : float, units of y
    center : float, units of x
    fwhm : float > 0, units of x; the full width at half maximum
    fraction : float in [0, 1]
        Of the Lorentzian, by height.
    """

    default_bounds: ClassVar[Bounds] = {"fwhm": POSITIVE, "fraction": (0, 1)}

    @staticmethod
    def function(x: Tensor, height: Tensor, center: Tensor, fwhm: Tensor, fraction: Tensor) -> Tensor:
        z = 2 * (x - center) / nonzero(fwhm)
        gaussian = _gaussian(z * (FWHM_PER_SIGMA / 2))
        return height * (gaussian + fraction * (_lorentzian(z) - gaussian))

    @staticmethod
    def widths(fwhm: Tensor) -> dict[str, Tensor]:
        return {"fwhm": fwhm, "fraction": torch.full_like(fwhm, 0.5)}


def _gaussian(z: Tensor) -> Tensor:
    return torch.exp(-z.clamp(-40, 40).square() / 2)  # 0 at 40, in every precision


def _lorentzian(z: Tensor) -> Tensor:
    return 1 / (1 + z.square())


@functools.lru_cache(maxsize=1)
def _weideman() -> tuple[float, list[float]]:
    """Return the scale L and the coefficients of Weideman's polynomial, highest power first."""
    half = 2 * N_TERMS
    scale = math.sqrt(N_TERMS / math.sqrt(2))
    angles = torch.arange(-half + 1, half, dtype=torch.float64, device="cpu") * (math.pi / half)
    t = scale * torch.tan(angles / 2)
    samples = torch.cat([t.new_zeros(1), torch.exp(-t.square()) * (scale**2 + t.square())])
    coefficients = torch.fft.fft(torch.fft.fftshift(samples)).real / (2 * half)
    return scale, coefficients[1 : N_TERMS + 1].flip(0).tolist()


def _faddeeva_real(re: Tensor, im: Tensor) -> Tensor:
    """Return the real part of w(re + i im) for im >= 0 and moderate |z|."""
    scale, coefficients = _weideman()
    inverse = 1 / torch.complex(scale + im, -re)  # 1 / (L - iz)
    ratio = 2 * scale * inverse - 1  # (L + iz) / (L - iz)
    # Neighbors are joined in pairs before Horner's rule: a third of the operations that torch has to dispatch.
    terms = ratio.new_tensor(coefficients).expand(*ratio.shape, -1)
    while terms.shape[-1] % 2 == 0:
        terms, ratio = terms[..., 1::2] + terms[..., ::2] * ratio[..., None], ratio.square()
    total = terms[..., 0]
    for k in range(1, terms.shape[-1]):
        total = total * ratio + terms[..., k]
    return torch.real(inverse * (2 * total * inverse + 1 / math.sqrt(math.pi)))


def voigt_profile(x: Tensor, sigma: Tensor, gamma: Tensor) -> Tensor:
    """Return the Voigt density at x, for sigma and gamma >= 0, not both 0 where x is 0."""
    x, gamma = x + torch.zeros_like(gamma), gamma + torch.zeros_like(x)  # of one shape
    wide, far = nonzero(sigma) * math.sqrt(2), x.square() + gamma.square() > 288 * sigma.square()  # |z| > 12
    near = _faddeeva_real(torch.where(far, 0.0, x) / wide, torch.where(far, 1.0, gamma / wide))
    return torch.where(far, _voigt_wing(x, sigma, gamma, far), near / (wide * math.sqrt(math.pi)))


def _voigt_wing(x: Tensor, sigma: Tensor, gamma: Tensor, far: Tensor) -> Tensor:
    """Return the density by the series i / (sqrt(pi) z) * sum of (2k - 1)!! / (2 z**2)**k, where `far` holds."""
    x, gamma = torch.where(far, x, 1.0), torch.where(far, gamma, 1.0)
    square = x.square() + gamma.square()
    p_real, p_imag = sigma * x / square, -sigma * gamma / square  # sigma / (x + i gamma)
    q_real, q_imag = p_real.square() - p_imag.square(), 2 * p_real * p_imag
    real, imag = torch.ones_like(x), torch.zeros_like(x)
    for odd in range(19, 0, -2):  # sum of (2k - 1)!! q**k by Horner's rule
        real, imag = 1 + odd * (q_real * real - q_imag * imag), odd * (q_real * imag + q_imag * real)
    return (gamma * real - x * imag) / (math.pi * square)


def scaled(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the data on the CPU in float64, y divided by its largest absolute value, and that."""
    x, y, weights = (part.detach().cpu().double() for part in (x, y, weights))
    height = float(y.abs().max()) or 1.0
    return x, y / height, weights if float(weights.sum()) > 0 else torch.ones_like(weights), height


def place_peak(
    kind: type[Peak], x: Tensor, y: Tensor, weights: Tensor, center: float | None = None, favor: float = 1.0
) -> dict[str, float]:
    """Return the parameters of the peak that explains most of y, at this center if one is given.

    With `favor` below 1 narrow peaks are preferred: one of several, rather than the hill that they form.
    """
    _, _, span = extent(x)
    if center is None:
        low, high = _best_box(y, weights, favor)
        gap = span / len(x)
        width = max(float(x[high] - x[low]), gap)
        middle = float((x[low] + x[high]) / 2)
        centers = middle + width * torch.linspace(-0.8, 0.8, 17, dtype=x.dtype, device=x.device)
        fwhms = width * powers_of_ten(-0.6, 0.6, 9)
        near = (x >= middle - 4 * width) & (x <= middle + 4 * width)
        x, y, weights = x[near], y[near], weights[near]
    else:
        centers = x.new_tensor([center])
        widest = 0.3 if favor == 1 else -0.6  # a quarter of the span: wider ones would serve as a background
        fwhms = span * powers_of_ten(-math.log10(len(x) + 1), widest, 49)
    grid = product(center=centers, fwhm=fwhms)
    shape = kind.widths(grid["fwhm"])
    x, y, weights = thinned(x, y, weights)
    unit = kind.function(x, x.new_ones(()), grid["center"][:, None], *(part[:, None] for part in shape.values()))
    best, (amplitude,) = best_candidate([unit], y, weights)
    first = list(inspect.signature(kind.function).parameters)[1]
    rest = {name: float(values[best]) for name, values in shape.items()}
    return {first: amplitude, "center": float(grid["center"][best]), **rest}


def _best_box(y: Tensor, weights: Tensor, favor: float) -> tuple[int, int]:
    """Return the first and the last row of the interval whose mean explains most of y."""
    sums = torch.cat([y.new_zeros(1), (weights * y).cumsum(0)])
    totals = torch.cat([y.new_zeros(1), weights.cumsum(0)])
    best, place, length = -1.0, 0, 1
    size = 1
    while size <= len(y):
        total = totals[size:] - totals[:-size]
        means = torch.where(total > 0, (sums[size:] - sums[:-size]) / total, 0.0)
        scores = means.square() * total**favor
        where = int(scores.argmax())
        if float(scores[where]) > best:
            best, place, length = float(scores[where]), where, size
        size = max(size + 1, int(1.25 * size))
    return place, place + length - 1
