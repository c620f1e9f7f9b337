"""Waves: a sine and a damped oscillation, guessed by a least-squares periodogram."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from sklm.curves.curve import ReadyCurve
from sklm.curves.periodogram import periodogram
from sklm.curves.separable import best_candidate, both_signs, extent, powers_of_ten, product, thinned

BINS_PER_ROW = 8  # of the grid for the periodogram
FASTEST = 5  # times half the number of rows per span: the highest frequency that is looked for in uneven x
LEFT = 0.15  # share of the variance that slow waves must leave for fast ones, which may be aliases, to be looked at


def wave_frequencies(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return promising slow and fast frequencies: around the highest peaks of a periodogram, and the lowest ones.

    Its peaks only propose; least squares on the rows decides, as in the periodogram of Lomb (1976). Slow ones go up to
    half a cycle in the median distance of neighbors, fast ones from there on.
    """
    span = extent(x)[2]
    lowest = torch.linspace(0.2, 3, 29, dtype=x.dtype, device=x.device) / span
    frequencies, spectrum, limit = periodogram(x, y, weights, BINS_PER_ROW)
    if not len(frequencies):
        return lowest, lowest[:0]
    padded = functional.pad(spectrum, (1, 1))
    peaks = torch.where((spectrum >= padded[:-2]) & (spectrum >= padded[2:]), spectrum, -1.0)

    def highest(keep: Tensor) -> Tensor:
        best = frequencies[keep][torch.argsort(peaks[keep], descending=True, stable=True)[:10]]
        around = (best[:, None] + torch.linspace(-0.5, 0.5, 9, dtype=x.dtype, device=x.device) / span).reshape(-1)
        return around[around > 0]

    slow = highest(frequencies <= limit)
    return torch.cat([lowest, slow]), highest((frequencies > limit) & (frequencies <= FASTEST * len(x) / (2 * span)))


def _guess_wave(x: Tensor, y: Tensor, weights: Tensor, decays: Tensor, given: Mapping[str, float]) -> dict[str, float]:
    """Return amplitude, phase, offset, frequency and decay of the best wave with the frequency or decay given."""
    x, y, weights = (part.detach().cpu().double() for part in (x, y, weights))
    if "frequency" in given:
        grids = decays.new_tensor([given["frequency"]]), decays[:0]
    else:
        grids = wave_frequencies(x, y, weights)
    if "decay" in given:
        decays = decays.new_tensor([given["decay"]])
    x, y, weights = thinned(x, y, weights)
    found: dict[str, float] = {}
    least = math.inf
    variance = float(weights @ (y - (weights @ y) / weights.sum()).square())
    for frequencies in grids:
        if not len(frequencies) or (found and least < LEFT * variance):
            continue
        grid = product(frequency=frequencies, decay=decays)
        envelope = torch.exp(-grid["decay"][:, None] * x)
        angle = 2 * math.pi * grid["frequency"][:, None] * x
        columns = [envelope * angle.sin(), envelope * angle.cos(), torch.ones_like(angle)]
        best, coefficients = best_candidate(columns, y, weights)
        fitted = sum(value * column[best] for value, column in zip(coefficients, columns, strict=True))
        left = float(weights @ (y - fitted).square())
        if not found or left < least / 2:
            sine, cosine, offset = coefficients
            least, found = left, {name: float(values[best]) for name, values in grid.items()}
            found |= {"amplitude": math.hypot(sine, cosine), "phase": math.atan2(cosine, sine), "offset": offset}
    return found


class Sine(ReadyCurve):
    """Sine wave, offset + amplitude * sin(2 * pi * frequency * x + phase); guessed by a periodogram, for any spacing.

    Frequencies are looked for up to half a cycle per median distance of the rows, and in uneven x up to 2.5 cycles per
    mean distance, if slow waves leave much of y and a fast one less than half of that. Give others a start.

    Parameters
    ----------
    amplitude : float, units of y
    frequency : float, units of 1 / x
    phase : float, radians
    offset : float, units of y
    """

    @staticmethod
    def function(x: Tensor, amplitude: Tensor, frequency: Tensor, phase: Tensor, offset: Tensor) -> Tensor:
        return offset + amplitude * torch.sin(2 * math.pi * frequency * x + phase)

    def guess(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        found = _guess_wave(x, y, weights, x.new_zeros(1).double().cpu(), self.given)
        return {name: found[name] for name in ("amplitude", "frequency", "phase", "offset")}


class DampedOscillation(ReadyCurve):
    """Damped wave, offset + amplitude * exp(-decay * x) * sin(2 * pi * frequency * x + phase); guessed as `Sine`.

    Parameters
    ----------
    amplitude : float, units of y
    decay : float, units of 1 / x
    frequency : float, units of 1 / x
    phase : float, radians
    offset : float, units of y
    """

    @staticmethod
    def function(
        x: Tensor, amplitude: Tensor, decay: Tensor, frequency: Tensor, phase: Tensor, offset: Tensor
    ) -> Tensor:
        return offset + amplitude * torch.exp(-decay * x) * torch.sin(2 * math.pi * frequency * x + phase)

    def guess(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        low, high, span = extent(x.detach().cpu().double())
        decays = both_signs(powers_of_ten(-1, 1.5, 12)) / span
        decays = decays[(decays > -4 / span)].clamp(*(side / max(abs(low), abs(high), 1e-300) for side in (-80, 80)))
        return _guess_wave(x, y, weights, decays, self.given)
