"""Waves: a sine and a damped oscillation, guessed by a least-squares periodogram."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sklm.curves.curve import ReadyCurve
from sklm.curves.separable import best_candidate, both_signs, extent, powers_of_ten, product, thinned


def wave_frequencies(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Return promising frequencies: around the highest peaks of a periodogram, and the lowest ones.

    The rows are put on a fine even grid for a Fourier transform (as Press and Rybicki 1989, ApJ 338, 277), which costs
    n log n for uneven x too. Its peaks only propose; least squares on the rows decides, as in the periodogram of Lomb
    (1976). Frequencies go up to half a cycle in the median distance of neighbors.
    """
    low, _, span = extent(x)
    lowest = torch.linspace(0.2, 3, 29, dtype=x.dtype, device=x.device) / span
    gaps = x.diff()
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return lowest
    bins = 2 ** min(max(6, math.ceil(math.log2(8 * len(x)))), 18)
    places = ((x - low) / span * (bins - 1)).round().long()
    centered = weights * (y - (weights * y).sum() / weights.sum().clamp_min(torch.finfo(y.dtype).tiny))
    spectrum = torch.fft.rfft(x.new_zeros(bins).index_add(0, places, centered), n=4 * bins).abs()
    frequencies = torch.arange(len(spectrum), dtype=x.dtype, device=x.device) * ((bins - 1) / (4 * bins * span))
    keep = frequencies <= 0.5 / float(gaps.median()) * (1 + 1e-9)
    spectrum, frequencies = spectrum[keep], frequencies[keep]
    padded = functional.pad(spectrum, (1, 1))
    peaks = torch.where((spectrum >= padded[:-2]) & (spectrum >= padded[2:]), spectrum, -1.0)
    best = frequencies[torch.argsort(peaks, descending=True, stable=True)[:10]]
    around = (best[:, None] + torch.linspace(-0.5, 0.5, 9, dtype=x.dtype, device=x.device) / span).reshape(-1)
    return torch.cat([lowest, around[around > 0]])


def _guess_wave(x: Tensor, y: Tensor, weights: Tensor, decays: Tensor) -> tuple[float, float, float, float, float]:
    """Return amplitude, phase, offset, frequency and decay of the best wave."""
    x, y, weights = (part.detach().cpu().double() for part in (x, y, weights))
    frequencies = wave_frequencies(x, y, weights)
    x, y, weights = thinned(x, y, weights)
    grid = product(frequency=frequencies, decay=decays)
    envelope = torch.exp(-grid["decay"][:, None] * x)
    angle = 2 * math.pi * grid["frequency"][:, None] * x
    columns = [envelope * angle.sin(), envelope * angle.cos(), torch.ones_like(angle)]
    best, (sine, cosine, offset) = best_candidate(columns, y, weights)
    wave = math.hypot(sine, cosine), math.atan2(cosine, sine), offset
    return *wave, float(grid["frequency"][best]), float(grid["decay"][best])


class Sine(ReadyCurve):
    """Sine wave, offset + amplitude * sin(2 * pi * frequency * x + phase); guessed by a periodogram, for any spacing.

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
        amplitude, phase, offset, frequency, _ = _guess_wave(x, y, weights, x.new_zeros(1).double().cpu())
        return {"amplitude": amplitude, "frequency": frequency, "phase": phase, "offset": offset}


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
        amplitude, phase, offset, frequency, decay = _guess_wave(x, y, weights, decays)
        return {"amplitude": amplitude, "decay": decay, "frequency": frequency, "phase": phase, "offset": offset}
